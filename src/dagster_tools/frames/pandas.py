"""pandas ⇄ Arrow, one column at a time, with no walk over rows where C can do it.

Out: NaN, NaT, NA and None are NULL, in every kind of column. A named index, or level of
one, is written as a column in front; an unnamed RangeIndex is not written; any other
unnamed index is dropped with a warning. float16 becomes float32, which holds it exactly.

In: numpy integers and booleans, which become the nullable ones (`Int64`, `boolean`) only
where a NULL is among them; float NaN where NULL; `datetime64[us]` and `[us, UTC]`;
`timedelta64[us]`; that pandas' own text dtype; and, as objects, `datetime.date` and
`.time`, `Decimal`, `uuid.UUID`, `bytes`, lists, and what `json.loads` gives. The frame owns
its memory and may be written to; only Arrow-backed text shares it with the stream.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dagster_tools.errors import BadValue, ConfigurationError, UnsupportedFrame
from dagster_tools.frames import arrow, objects
from dagster_tools.frames.arrow import POSTGRESQL_TYPE, is_text, postgresql_type
from dagster_tools.frames.objects import Encoded

__all__ = [
    "EXTRA",
    "SUPPORTED",
    "IndexDropped",
    "default_class",
    "from_arrow",
    "loads_as",
    "owns",
    "to_arrow",
]

SUPPORTED = "pandas.DataFrame"
EXTRA: str | None = "pandas"

_INSTALL = "pip install 'dagster-tools[pandas]'"

_WARNED_BLOCKS = 100
"""Above this many blocks pandas warns its user, on the next `frame["new"] = …`, that the
frame is fragmented (pandas/core/internals/managers.py, `insert`)."""

_SAMPLE = 10_000

_LAST_MICROSECOND = 24 * 60 * 60 * 1_000_000 - 1
_FIRST_DATE, _LAST_DATE = -719_162, 2_932_896  # 0001-01-01 and 9999-12-31, in days


class IndexDropped(UserWarning):
    """A frame's unnamed index, which is not a RangeIndex, was not written."""


def owns(frame: object) -> bool:
    """Tell whether the value is a DataFrame, or of a subclass."""
    pd = sys.modules.get("pandas")
    return pd is not None and isinstance(frame, pd.DataFrame)


def loads_as(annotation: type) -> bool:
    """Tell whether the class is DataFrame or a subclass that is built from one.

    A GeoDataFrame is not: it needs its geometry and CRS, which a DataFrame has not.
    """
    pd = sys.modules.get("pandas")
    if pd is None or annotation.__module__.partition(".")[0] == "geopandas":
        return False
    return issubclass(annotation, pd.DataFrame)


def default_class() -> type:
    """Return DataFrame, for an input that does not say what it wants; imports pandas."""
    try:
        import pandas as pd
    except ModuleNotFoundError as exc:
        raise UnsupportedFrame(
            f"an input without annotation is loaded as pandas.DataFrame, and pandas is not "
            f"installed: {_INSTALL}, or annotate the input as pyarrow.Table"
        ) from exc
    frame: type = pd.DataFrame
    return frame


def to_arrow(frame: Any, hints: Mapping[str, pa.DataType]) -> pa.Table:
    """Turn a DataFrame into a table, sharing the memory of its numbers."""
    fields, arrays = [], []
    if len(frame) and not len(frame.columns) and frame.index.name is None:
        raise ConfigurationError(
            f"the frame has {len(frame)} rows and no columns; name its index to store that, or "
            "return pandas.DataFrame() for no rows"
        )
    for name, series in _columns(frame):
        encoded = _encode_named(name, series, hints.get(name))
        fields.append(_field(name, encoded))
        arrays.append(encoded.data)
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def from_arrow(stream: pa.RecordBatchReader, as_type: type) -> Any:
    """Build a DataFrame; one of a subclass through its constructor, which gets the DataFrame."""
    import pandas as pd

    table = stream.read_all()
    index = pd.RangeIndex(table.num_rows)
    fields, columns = list(table.schema), table.columns
    del table  # so that each Arrow column is freed as soon as its pandas one is built
    data = {field.name: _decode(field, columns.pop(0)) for field in fields}
    # pandas' own default copies all columns into one block per dtype. That is worth its
    # time only where separate blocks would earn the user a warning.
    frame = pd.DataFrame(data, index=index, copy=len(data) > _WARNED_BLOCKS)
    return arrow.of_class(frame, as_type, SUPPORTED)


def _field(name: str, encoded: Encoded) -> pa.Field:
    metadata = {POSTGRESQL_TYPE: encoded.postgresql_type} if encoded.postgresql_type else None
    return pa.field(name, encoded.data.type, metadata=metadata)


def _columns(frame: Any) -> Iterator[tuple[str, Any]]:
    """Give names and values of the index's named levels, then of the columns."""
    index = frame.index
    _warn_of_dropped(index)
    levels = [(name, at) for at, name in enumerate(index.names) if name is not None]
    _check_names([name for name, _ in levels], list(frame.columns))
    for name, at in levels:
        yield str(name), index.get_level_values(at).to_series(index=range(len(index)))
    for at, name in enumerate(frame.columns):
        yield str(name), frame.iloc[:, at]


def _warn_of_dropped(index: Any) -> None:
    import pandas as pd

    if isinstance(index, pd.RangeIndex) or None not in index.names or not len(index):
        return
    what = "an unnamed level of its index" if index.nlevels > 1 else "its unnamed index"
    warnings.warn(
        f"the frame is stored without {what} ({index.dtype}); name it to store it as a column, "
        "or reset_index(drop=True) to silence this",
        IndexDropped,
        stacklevel=2,
    )


def _check_names(levels: list[object], labels: list[object]) -> None:
    seen: dict[str, str] = {}
    for kind, name in [("index", n) for n in levels] + [("column", n) for n in labels]:
        shown = f"{kind} {name!r}"
        if (earlier := seen.get(str(name))) is not None:
            raise ConfigurationError(
                f"{earlier} and {shown} of the frame would both be column {str(name)!r}; "
                "rename one of them"
            )
        seen[str(name)] = shown
    for name in [*levels, *labels]:
        _check_name(name)


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise ConfigurationError(
            f"the frame has a column or index named {name!r}, of type {type(name).__name__}; "
            "column names are text: rename it, say with frame.columns = [...]"
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(
            f"column name {name!r} holds half of a surrogate pair, which is no text in UTF-8"
        ) from None


def _encode_named(name: str, series: Any, hint: pa.DataType | None) -> Encoded:
    try:
        return _encode(series, hint)
    except BadValue as exc:
        raise BadValue(exc.reason, column=name, row=exc.row) from exc.__cause__


def _encode(series: Any, hint: pa.DataType | None) -> Encoded:
    import pandas as pd

    dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return _encode_categorical(series, hint)
    if isinstance(dtype, pd.SparseDtype):
        return _encode(series.sparse.to_dense(), hint)
    if isinstance(dtype, pd.DatetimeTZDtype):
        return Encoded(_aware_times(series))
    if pd.api.types.is_object_dtype(dtype):
        return _encode_objects(series.to_numpy(), hint)
    if isinstance(dtype, (pd.PeriodDtype, pd.IntervalDtype)) or dtype.name == "geometry":
        raise _unsupported(dtype)
    if isinstance(dtype, pd.api.extensions.ExtensionDtype):
        return _encode_extension(series, hint)
    return Encoded(_encode_numpy(series.to_numpy()))


def _unsupported(dtype: Any) -> BadValue:
    remedy = {
        "geometry": "return a geopandas.GeoDataFrame, which knows the CRS",
    }.get(dtype.name) or objects.remedy_for(dtype.type)
    return BadValue(f"is of dtype {dtype}, which no PostgreSQL column type stands for; {remedy}")


def _encode_numpy(values: Any) -> pa.Array:
    dtype = values.dtype
    if dtype.kind not in "biufMm" or dtype.itemsize > 8:
        raise _unsupported(dtype)
    if not dtype.isnative:
        values = values.astype(dtype.newbyteorder("="))
    if dtype.kind == "f" and dtype.itemsize == 2:
        values = values.astype("float32")
    return pa.array(values, from_pandas=True)


def _aware_times(series: Any) -> pa.Array:
    try:
        return pa.array(series, from_pandas=True)
    except (pa.ArrowException, AttributeError, ValueError):
        # A zone that Arrow cannot name, such as dateutil's: the instant is what counts.
        instants = series.dt.tz_convert(None).to_numpy()
        return pa.array(instants, type=pa.timestamp(series.dtype.unit, tz="UTC"))


def _encode_extension(series: Any, hint: pa.DataType | None) -> Encoded:
    try:
        data = pa.array(series.array, from_pandas=True)
    except UnicodeEncodeError:
        return objects.to_arrow(series.astype(object).tolist())  # which names the row
    except (pa.ArrowException, TypeError, ValueError, NotImplementedError):
        raise _unsupported(series.dtype) from None
    if is_text(data.type) and isinstance(hint, pa.JsonType):
        return objects.json_from_text(data)
    if pa.types.is_floating(data.type):
        is_half = pa.types.is_float16(data.type)
        return Encoded(_nan_as_null(data.cast(pa.float32()) if is_half else data))
    return Encoded(data)


def _nan_as_null(data: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    nan = pc.is_nan(data)
    return pc.if_else(nan, pa.scalar(None, data.type), data) if pc.any(nan).as_py() else data


def _encode_objects(values: Any, hint: pa.DataType | None) -> Encoded:
    if _looks_like_text(values) and not isinstance(hint, pa.JsonType):
        try:
            data = pa.array(values, from_pandas=True)
        except (pa.ArrowException, TypeError, ValueError):
            pass  # mixed, or half a surrogate pair: what follows finds the row
        else:
            if is_text(data.type):  # inferred so only if every value is a str
                return Encoded(data)
    return objects.to_arrow(values.tolist(), hint)


def _looks_like_text(values: Any) -> bool:
    """Guess from the first rows whether Arrow's own, faster inference is worth a try."""
    return any(isinstance(value, str) for value in values[:100])


def _encode_categorical(series: Any, hint: pa.DataType | None) -> Encoded:
    """Encode the categories in use, once each; only text stays a dictionary."""
    import pandas as pd

    used = series.cat.remove_unused_categories()
    codes = used.cat.codes.to_numpy()
    try:
        values = _encode(pd.Series(used.cat.categories), hint)
    except BadValue as exc:
        row = None if exc.row is None else int((codes == exc.row).argmax())
        raise BadValue(exc.reason, row=row) from exc.__cause__
    indices = pa.array(codes, mask=codes == -1)
    if is_text(values.data.type) and not values.postgresql_type:
        return Encoded(pa.DictionaryArray.from_arrays(indices, _one_chunk(values.data)))
    return Encoded(values.data.take(indices), values.postgresql_type)


def _one_chunk(data: pa.Array | pa.ChunkedArray) -> pa.Array:
    return data.combine_chunks() if isinstance(data, pa.ChunkedArray) else data


def _decode(field: pa.Field, data: pa.ChunkedArray) -> Any:
    """Return the column as what a DataFrame holds for it."""
    if pa.types.is_dictionary(data.type):
        data = data.cast(data.type.value_type)
    declared = postgresql_type(field)
    if is_text(data.type) and (declared or "").partition("(")[0] not in _TEXT_OF_OTHERS:
        return _decode_text(data)
    for matches, decode in _DECODERS:
        if matches(data.type):
            return _decode_named(field.name, decode, data)
    return _objects(objects.from_arrow(data, declared))


_TEXT_OF_OTHERS = frozenset({"json", "jsonb", "numeric"})


def _decode_named(name: str, decode: Callable[[Any], Any], data: pa.ChunkedArray) -> Any:
    try:
        return decode(data)
    except BadValue as exc:
        raise BadValue(exc.reason, column=name, row=exc.row) from exc.__cause__


def _objects(values: list[Any]) -> Any:
    import pandas as pd

    return pd.Series(values, dtype=object)


def _writable(data: pa.ChunkedArray) -> Any:
    """Return numpy values that the frame's user may write to, copied at most once."""
    values = data.to_numpy(zero_copy_only=False)
    return values if values.flags.writeable else values.copy()


def _decode_text(data: pa.ChunkedArray) -> Any:
    import pandas as pd

    # str in pandas 3, object in pandas 2, or what the option future.infer_string says.
    dtype = pd.Series([""]).dtype
    if not isinstance(dtype, pd.StringDtype):
        return data.to_pandas(deduplicate_objects=_repeats(data))
    return data.cast(pa.large_string()).to_pandas(types_mapper=lambda _: dtype).array


def _repeats(data: pa.ChunkedArray) -> bool:
    """Guess from the first rows whether one object per distinct text will be worth it.

    It saves memory where texts repeat; where they do not, it takes five times as long.
    """
    sample = data.slice(0, _SAMPLE)
    return len(sample.unique()) * 2 <= len(sample)


def _decode_integers(data: pa.ChunkedArray) -> Any:
    import pandas as pd

    if not data.null_count:
        return _writable(data)
    missing = _writable(data.is_null())
    return pd.arrays.IntegerArray(_writable(data.fill_null(0)), missing)


def _decode_booleans(data: pa.ChunkedArray) -> Any:
    import pandas as pd

    if not data.null_count:
        return _writable(data)
    missing = _writable(data.is_null())
    return pd.arrays.BooleanArray(_writable(data.fill_null(False)), missing)


def _decode_timestamps(data: pa.ChunkedArray) -> Any:
    import pandas as pd

    values = _writable(_in_microseconds(data, pa.timestamp("us", tz=data.type.tz)))
    if data.type.tz is None:
        return values
    return pd.Series(values, copy=False).dt.tz_localize("UTC").array


def _decode_durations(data: pa.ChunkedArray) -> Any:
    return _writable(_in_microseconds(data, pa.duration("us")))


def _in_microseconds(data: pa.ChunkedArray, type_: pa.DataType) -> pa.ChunkedArray:
    try:
        return data.cast(type_)
    except pa.ArrowInvalid:
        raise BadValue(f"holds {data.type} values that microseconds cannot") from None


def _decode_dates(data: pa.ChunkedArray) -> Any:
    days = data.cast(pa.date32()).cast(pa.int32())
    _refuse_outside(days, _FIRST_DATE, _LAST_DATE, "infinity, or a date outside years 1 to 9999")
    return data.to_pandas(date_as_object=True)


def _decode_times(data: pa.ChunkedArray) -> Any:
    microseconds = data.cast(pa.time64("us")).cast(pa.int64())
    _refuse_outside(microseconds, 0, _LAST_MICROSECOND, "the time 24:00:00")
    return data.to_pandas()


def _refuse_outside(data: pa.ChunkedArray, first: int, last: int, what: str) -> None:
    outside = pc.or_(pc.less(data, first), pc.greater(data, last))
    if (row := pc.index(outside, True).as_py()) >= 0:
        raise BadValue(
            f"holds {what}, which Python cannot; load the column as text, with "
            'columns={"…": "text"}',
            row=row,
        )


def _decode_plain(data: pa.ChunkedArray) -> Any:
    return data.to_pandas()


_DECODERS: tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.ChunkedArray], Any]], ...] = (
    (pa.types.is_boolean, _decode_booleans),
    (pa.types.is_integer, _decode_integers),
    (pa.types.is_floating, _writable),
    (pa.types.is_timestamp, _decode_timestamps),
    (pa.types.is_duration, _decode_durations),
    (pa.types.is_date, _decode_dates),
    (pa.types.is_time, _decode_times),
    (pa.types.is_decimal, _decode_plain),
    (pa.types.is_binary, _decode_plain),
    (pa.types.is_large_binary, _decode_plain),
)
