"""Polars ⇄ Arrow, without a walk over rows but in columns that hold Python objects.

Out: null is NULL, and NaN stays NaN. Categorical and Enum are their text, Array is List, Struct
is JSON; Int128 and UInt128 are exact numbers; an Object column is what its objects are (see
`frames.objects`). A LazyFrame is computed while it is written, a batch at a time.

In: what Polars has for the column's type. It has none for UUIDs, for JSON, and for `numeric`
without a scale or with more than 38 digits: those are String. A LazyFrame asked for is loaded
like a DataFrame, since it may be collected many times and a stream can be read once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dagster_tools.errors import BadValue, UnsupportedFrame
from dagster_tools.frames import arrow, objects
from dagster_tools.frames.arrow import POSTGRESQL_TYPE, Stream
from dagster_tools.frames.objects import Encoded

__all__ = ["EXTRA", "SUPPORTED", "from_arrow", "loads_as", "owns", "to_arrow"]

SUPPORTED = "polars.DataFrame or LazyFrame"
EXTRA: str | None = "polars"

_STREAMS_RAISE_SINCE = (1, 39)
_MAX_PRECISION = 38
_MICROSECONDS_A_DAY = 86_400_000_000
_UUID_PARTS = ((0, 8), (8, 4), (12, 4), (16, 4), (20, 12))
"""Where each part of a UUID's text begins in its 32 digits, and how long it is."""


def owns(frame: object) -> bool:
    """Tell whether the value is a DataFrame or a LazyFrame, or of a subclass."""
    pl = sys.modules.get("polars")
    return pl is not None and isinstance(frame, (pl.DataFrame, pl.LazyFrame))


def loads_as(annotation: type) -> bool:
    """Tell whether the class is DataFrame or LazyFrame, or a subclass."""
    pl = sys.modules.get("polars")
    return pl is not None and issubclass(annotation, (pl.DataFrame, pl.LazyFrame))


def to_arrow(frame: Any, hints: Mapping[str, pa.DataType]) -> pa.Table | Stream:
    """Turn a DataFrame into a table that shares its memory, a LazyFrame into a stream.

    The query of a LazyFrame runs in Polars' streaming engine while the stream is read; what it
    raises comes through as it is.
    """
    pl = sys.modules["polars"]
    if not isinstance(frame, pl.LazyFrame):
        return _table(frame, hints)
    _check_version(pl.__version__)
    schema = _table(pl.DataFrame(schema=frame.collect_schema()), hints).schema

    def batches() -> Iterator[pa.RecordBatch]:
        for part in frame.collect_batches(engine="streaming", lazy=True):
            yield from _table(part, hints).to_batches()

    return Stream(schema, batches())


def from_arrow(stream: pa.RecordBatchReader, as_type: type) -> Any:
    """Build a DataFrame, a LazyFrame over one, or a subclass through its constructor."""
    import polars as pl

    table = arrow.from_arrow(stream, pa.Table)
    fields = list(table.schema)
    for field, column in zip(fields, table.columns, strict=True):
        _refuse_midnight_at_the_end(field, column)
    plain = pa.table(
        [_storage(column) for column in table.columns], names=[field.name for field in fields]
    )
    frame: Any = pl.from_arrow(plain, rechunk=False)
    texts = [_uuid_text(pl, field) for field in fields if _holds_uuids(field.type)]
    if texts:
        frame = frame.with_columns(texts)
    if issubclass(as_type, pl.LazyFrame):
        return frame.lazy()
    return arrow.of_class(frame, as_type, "polars.DataFrame")


# --- out ------------------------------------------------------------------------------------


def _check_version(version: str) -> None:
    """Refuse a Polars whose streams end, as if complete, where a query raises (1.34, measured)."""
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) < _STREAMS_RAISE_SINCE:
        since = ".".join(map(str, _STREAMS_RAISE_SINCE))
        raise UnsupportedFrame(
            f"a LazyFrame is stored with Polars {since} or later, and this is {version}: "
            "pip install --upgrade polars, or return frame.collect()"
        )


def _table(frame: Any, hints: Mapping[str, pa.DataType]) -> pa.Table:
    pl = sys.modules["polars"]
    odd: dict[str, Encoded] = {}
    for name, dtype in frame.schema.items():
        encoded = _encode_named(frame, name, dtype, hints.get(name))
        if encoded is not None:
            odd[name] = encoded
    # Text in place of categories costs no copy: both point to the same letters.
    named = [name for name, dtype in frame.schema.items() if dtype in (pl.Categorical, pl.Enum)]
    table = pa.table(frame.drop(list(odd)).cast(dict.fromkeys(named, pl.String)))
    if not odd:
        return table
    columns = dict(zip(table.schema, table.columns, strict=True))
    columns |= {_field(name, encoded): encoded.data for name, encoded in odd.items()}
    by_name = {field.name: field for field in columns}
    fields = [by_name[name] for name in frame.columns]
    return pa.table([columns[field] for field in fields], pa.schema(fields))


def _field(name: str, encoded: Encoded) -> pa.Field:
    metadata = {POSTGRESQL_TYPE: encoded.postgresql_type} if encoded.postgresql_type else None
    return pa.field(name, encoded.data.type, metadata=metadata)


def _encode_named(frame: Any, name: str, dtype: Any, hint: pa.DataType | None) -> Encoded | None:
    """Return a column that Polars cannot hand to Arrow by itself, None where it can."""
    try:
        return _encode(frame, name, dtype, hint)
    except BadValue as exc:
        raise BadValue(exc.reason, column=name, row=exc.row) from exc.__cause__


def _encode(frame: Any, name: str, dtype: Any, hint: pa.DataType | None) -> Encoded | None:
    pl = sys.modules["polars"]
    if dtype == pl.Object:
        # Arrow would get the addresses of the objects (polars 2.1).
        return objects.to_arrow(frame.get_column(name).to_list(), hint)
    if _is_of_128_bits(dtype):
        texts = frame.get_column(name).cast(pl.String).to_arrow()
        return Encoded(texts, "numeric")
    if any(map(_is_of_128_bits, _inner(dtype))):
        raise BadValue(
            f"is of dtype {dtype}, and Arrow has no integers of 128 bits; cast them to "
            "Decimal(38, 0), or to Int64"
        )
    return None


def _is_of_128_bits(dtype: Any) -> bool:
    return str(dtype) in {"Int128", "UInt128"}


def _inner(dtype: Any) -> Iterator[Any]:
    """Yield the types within a nested one, at any depth."""
    inner = getattr(dtype, "inner", None)
    within = [inner] if inner is not None else [f.dtype for f in getattr(dtype, "fields", ())]
    for each in within:
        yield each
        yield from _inner(each)


# --- in -------------------------------------------------------------------------------------


def _refuse_midnight_at_the_end(field: pa.Field, column: pa.ChunkedArray) -> None:
    if not pa.types.is_time(field.type):
        return
    row = pc.index(pc.equal(column.cast(pa.int64()), _MICROSECONDS_A_DAY), True).as_py()
    if row >= 0:
        raise BadValue(
            "holds the time 24:00:00, which Polars cannot; load the column as text, with "
            f'columns={{"{field.name}": "text"}}',
            column=field.name,
            row=row,
        )


def _storage(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return JSON as text and UUIDs as bytes, also within lists; decimals Polars lacks as text."""
    plain = _storage_type(column.type)
    return column if plain == column.type else column.cast(plain)


def _storage_type(type_: pa.DataType) -> pa.DataType:
    if isinstance(type_, pa.UuidType):
        return pa.binary()
    if isinstance(type_, pa.BaseExtensionType):
        return type_.storage_type
    if pa.types.is_list(type_):
        return pa.list_(_storage_type(type_.value_type))
    if pa.types.is_decimal(type_) and type_.precision > _MAX_PRECISION:
        return pa.string()
    return type_


def _holds_uuids(type_: pa.DataType) -> bool:
    element = type_.value_type if pa.types.is_list(type_) else type_
    return isinstance(element, pa.UuidType)


def _uuid_text(pl: Any, field: pa.Field) -> Any:
    column = pl.col(field.name)
    if not pa.types.is_list(field.type):
        return _uuid_parts(pl, column)
    return column.list.eval(_uuid_parts(pl, pl.element()))


def _uuid_parts(pl: Any, column: Any) -> Any:
    digits = column.bin.encode("hex")
    return pl.concat_str(
        [digits.str.slice(start, length) for start, length in _UUID_PARTS], separator="-"
    )
