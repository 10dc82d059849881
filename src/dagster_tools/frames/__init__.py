"""Frames of any library ⇄ Arrow: the one waist between what users hold and PostgreSQL.

Two verbs, [`to_arrow`][dagster_tools.frames.to_arrow] and
[`from_arrow`][dagster_tools.frames.from_arrow]; each library is one module here that
offers the same two, and a line in `_LIBRARIES`. No library is imported that the user did
not bring: what is handed over is recognised through `sys.modules`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from itertools import chain
from typing import Any, Protocol

import pyarrow as pa

from dagster_tools import geoarrow
from dagster_tools.errors import BadValue, UnsupportedFrame
from dagster_tools.frames import (
    arrow,
    geopandas,
    iterators,
    objects,
    pandas,
    polars,
    records,
)
from dagster_tools.frames.arrow import Rows, Stream
from dagster_tools.frames.pandas import IndexDropped

__all__ = [
    "IndexDropped",
    "Rows",
    "Stream",
    "frame_class",
    "from_arrow",
    "is_frame",
    "rows_to_arrow",
    "to_arrow",
    "values_to_arrow",
]


class Library(Protocol):
    """What a module here offers to be one of the supported libraries."""

    SUPPORTED: str
    """The classes it knows, as a message names them."""

    EXTRA: str | None
    """What the library and our extra that installs it are called; None where it comes with us."""

    def owns(self, frame: object) -> bool:
        """Tell whether a returned value is this library's frame."""

    def loads_as(self, annotation: type) -> bool:
        """Tell whether an input annotated with this class is this library's to build."""

    def to_arrow(self, frame: Any, hints: Mapping[str, pa.DataType]) -> Rows:
        """Turn a frame that `owns` said yes to into Arrow."""

    def from_arrow(self, stream: pa.RecordBatchReader, as_type: type) -> object:
        """Build a frame of a class that `loads_as` said yes to."""


_LIBRARIES: tuple[Library, ...] = (geopandas, pandas, polars, arrow)
"""In the order they are asked, the most specific first: nearly every frame is also an
`__arrow_c_stream__` object, and arrow therefore comes last."""


_NO_ROWS = (str, bytes, bytearray, memoryview, Mapping)
"""What can be iterated over and is no rows."""


def is_frame(value: object) -> bool:
    """Tell whether `to_arrow` takes the value, without importing or reading anything.

    What an iterator gives is not looked at.
    """
    return _owner(value) is not None or iterators.owns(value, is_frame)


def to_arrow(frame: object, hints: Mapping[str, pa.DataType] | None = None) -> Rows:
    """Turn a frame into Arrow: a table where it is in memory, a stream where it is not.

    The frame is never modified. The result may share its memory, so use it up before
    control returns to the user's code. A stream can be read once.

    Args:
        frame: A pandas or Polars DataFrame, a LazyFrame, an Arrow table, batch or reader, any
            object with `__arrow_c_stream__`, or an iterator or list of these.
        hints: Arrow type of the declared or existing column, by column name. Consulted
            only where Python objects leave a choice: see `frames.objects`.

    Raises:
        UnsupportedFrame: The value is no frame.
        ConfigurationError: A column's name is not one, or is there twice.
        BadValue: A column holds what no PostgreSQL column can; names column and row.

    Example:
        >>> import pandas as pd
        >>> to_arrow(pd.DataFrame({"n": [1, None]}, dtype="Int64")).schema
        n: int64
    """
    library = _owner(frame)
    if library is None and iterators.owns(frame, is_frame):
        return iterators.to_arrow(frame, to_arrow, hints or {})  # type: ignore[arg-type]  # `owns` says it is iterable
    if library is None:
        raise UnsupportedFrame(
            f"cannot store a {_name(type(frame))}; supported are {_supported()}, any object with "
            f"__arrow_c_stream__, or an iterator or list of these.{_remedy(frame)}"
        )
    return library.to_arrow(frame, hints or {})


def rows_to_arrow(
    data: object,
    columns: Sequence[str] = (),
    hints: Mapping[str, pa.DataType] | None = None,
    *,
    chunk_size: int = records.MOST_BYTES,
) -> Rows:
    """Turn a frame into Arrow as `to_arrow` does, or rows: tuples, dicts, dataclass instances.

    Rows may come from any iterable; they are read and converted in chunks.

    Args:
        columns: What a tuple's values are called, in its order.
        chunk_size: Bytes that a chunk of rows may have; never more than `records.MOST_BYTES`.

    Raises:
        UnsupportedFrame: Neither a frame nor rows.
        ConfigurationError: Tuples whose columns nobody named.
        BadValue, SchemaConflict: As `to_arrow`; a row unlike the first.
    """
    if _owner(data) is not None or not isinstance(data, Iterable) or isinstance(data, _NO_ROWS):
        return to_arrow(data, hints)
    rows = iter(data)
    first = next(rows, None)
    every = () if first is None else chain([first], rows)
    if first is None or is_frame(first) or not records.owns(first):
        return iterators.to_arrow(every, to_arrow, hints or {})
    chunks = records.chunks(every, columns, chunk_size)
    return iterators.to_arrow(chunks, records.to_arrow, hints or {})


def from_arrow(stream: pa.RecordBatchReader, as_type: type) -> object:
    """Build a frame of a class that `frame_class` returned from an Arrow stream.

    A field's metadata key `postgresql:type` may hold the column's type as PostgreSQL's
    `format_type` writes it; it tells `numeric` in text from text. Column classes depend on
    the column's type, not on its rows; the one exception is pandas' integers and booleans,
    which are numpy's unless a NULL is among them. A field marked as GeoArrow's WKB is geometry.

    Raises:
        UnsupportedFrame: No library here builds that class.
        BadValue: A value cannot be held by that library, such as a date after year 9999.
    """
    has_geometry = bool(geoarrow.fields(stream.schema))
    if as_type is object:
        as_type = geopandas.default_class() if has_geometry else pandas.default_class()
    library = _builder(as_type)
    if has_geometry and library is pandas:
        return geopandas.from_arrow(stream, as_type)
    return library.from_arrow(stream, as_type)


def frame_class(annotation: object) -> type:
    """Return the class an input's annotation stands for, to be handed to `from_arrow`.

    Nothing (`None`, `typing.Any`, `object`) gives `object`: GeoPandas where a column is
    geometry, else pandas. `Optional` and `dict` are the caller's to peel off first.

    Raises:
        UnsupportedFrame: No library here builds that class, or pandas is not installed.
    """
    if annotation is None or annotation is Any or annotation is object:
        pandas.default_class()
        return object
    if not isinstance(annotation, type):
        raise UnsupportedFrame(
            f"cannot load an input as {annotation!r}; supported are {_supported()}"
        )
    _builder(annotation)
    return annotation


def values_to_arrow(values: list[Any], name: str) -> pa.Array:
    """Turn the Python objects of one column into an Arrow array, as a frame's column would be.

    Raises:
        BadValue: The objects are of types that make no column.
    """
    try:
        data = objects.to_arrow(values).data
    except BadValue as error:
        raise BadValue(error.reason, column=name, row=error.row) from None
    return data.combine_chunks() if isinstance(data, pa.ChunkedArray) else data


def _owner(value: object) -> Library | None:
    return next((library for library in _LIBRARIES if library.owns(value)), None)


def _builder(annotation: type) -> Library:
    for library in _LIBRARIES:
        if library.loads_as(annotation):
            return library
    raise UnsupportedFrame(
        f"cannot load an input as {_name(annotation)}; supported are {_supported()}"
    )


def _supported() -> str:
    return ", ".join(f"{library.SUPPORTED}{_installation(library)}" for library in _LIBRARIES)


def _installation(library: Library) -> str:
    name = library.EXTRA
    if name is None or sys.modules.get(name) is not None or find_spec(name) is not None:
        return ""
    return f" (not installed: pip install 'dagster-tools[{name}]')"


def _remedy(value: object) -> str:
    if type(value).__name__.endswith("Series"):
        return " Make it a frame of one column, as Series.to_frame(name) does."
    if isinstance(value, (dict, list, tuple)):
        return " Make it a frame, as pandas.DataFrame(value) does."
    return ""


def _name(cls: type) -> str:
    return cls.__name__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__name__}"
