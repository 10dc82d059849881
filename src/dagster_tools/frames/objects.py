"""A column of Python objects ⇄ Arrow, by what the objects are.

No inference from a sample: the set of all Python types in the column decides, found at the
speed of C (`set(map(type, values))`). One family of types makes a column; an int among
floats or Decimals is welcome where it stays exact; anything else mixed is refused with the
first odd row. `None`, `pd.NA`, `NaT` and float NaN are NULL; a Decimal NaN is PostgreSQL's
numeric NaN.

    bool, int, float      bool, int64 (beyond it decimal, scale 0), float64
    Decimal               decimal128/256; text with `postgresql:type` numeric where
                          Arrow's 76 digits or finite numbers do not do
    str, bytes, UUID      string, binary, arrow.uuid
    date, time            date32, time64[us]
    datetime              timestamp[us], or [ns] where a pandas Timestamp needs it; aware
                          ones, of any zones, as the instant in UTC; naive among aware: refused
    timedelta             duration[us], or [ns]
    dict, lists with one  arrow.json (never a struct, which would invent keys)
    list, tuple, ndarray  list of the above; nested ones are JSON, where JSON is hinted

A hint, the type of the declared or existing column, is used where objects leave a choice:
a JSON hint makes every object column JSON, in which `str` is taken as JSON *text* (so the
JSON null is written as the text "null", and the JSON text "a" as '"a"'); a column without
any value, and a list column without any element, take the hinted type.
"""

from __future__ import annotations

import datetime as dt
import enum
import itertools
import math
import operator
import sys
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dagster_tools import json_text
from dagster_tools.errors import BadValue
from dagster_tools.frames.arrow import is_text

__all__ = ["Encoded", "from_arrow", "json_from_text", "remedy_for", "to_arrow"]

Objects = list[Any]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A column's data, and its PostgreSQL type where Arrow has no word for it."""

    data: pa.Array | pa.ChunkedArray
    postgresql_type: str | None = None


def to_arrow(values: Objects, hint: pa.DataType | None = None) -> Encoded:
    """Turn Python objects into an Arrow array.

    Raises:
        BadValue: With the row; the column is the caller's to name.
    """
    given, kinds = values, set(map(type, values))
    values = _with_none_for_missing(given, kinds)
    if values is not given:
        kinds = set(map(type, values))
    kinds.discard(type(None))
    if not kinds:
        return _without_values(len(values), hint)
    if isinstance(hint, pa.JsonType):
        return _encode_json(values, text_is_json=True)
    family = _family_of(values, kinds)
    encode = _ENCODERS.get(family)
    encoded = _encode_lists(values, hint) if encode is None else encode(values)
    # Nothing but NaN: an object column does not thereby become one of floats.
    if encoded.data.null_count == len(values):
        return _without_values(len(values), hint)
    return encoded


def from_arrow(data: pa.Array | pa.ChunkedArray, postgresql_type: str | None = None) -> Objects:
    """Turn an Arrow array into Python objects, None where NULL, lists as lists."""
    chunks = data.chunks if isinstance(data, pa.ChunkedArray) else [data]
    return list(itertools.chain.from_iterable(_decode(chunk, postgresql_type) for chunk in chunks))


def json_from_text(data: pa.Array | pa.ChunkedArray) -> Encoded:
    """Take a text array as JSON text, every value checked.

    Raises:
        BadValue: With the row of the first value that is not JSON.
    """
    return _encode_json(data.to_pylist(), text_is_json=True)


def remedy_for(kind: type) -> str:
    """Say what to do about a Python type that no column can hold."""
    for base in kind.__mro__:
        if base.__name__ in _REMEDIES:
            return _REMEDIES[base.__name__]
    return "convert it to text, numbers or JSON first"


class _Family(enum.Enum):
    """Python types that make one column together."""

    BOOL = enum.auto()
    INT = enum.auto()
    FLOAT = enum.auto()
    DECIMAL = enum.auto()
    TEXT = enum.auto()
    BYTES = enum.auto()
    DATETIME = enum.auto()
    DATE = enum.auto()
    TIME = enum.auto()
    TIMEDELTA = enum.auto()
    NUMPY_DATETIME = enum.auto()
    NUMPY_TIMEDELTA = enum.auto()
    UUID = enum.auto()
    DICT = enum.auto()
    LIST = enum.auto()


# Asked in this order: bool is an int, datetime a date.
_PYTHON_FAMILIES: tuple[tuple[type | tuple[type, ...], _Family], ...] = (
    (bool, _Family.BOOL),
    (int, _Family.INT),
    (float, _Family.FLOAT),
    (Decimal, _Family.DECIMAL),
    (str, _Family.TEXT),
    ((bytes, bytearray, memoryview), _Family.BYTES),
    (dt.datetime, _Family.DATETIME),
    (dt.date, _Family.DATE),
    (dt.time, _Family.TIME),
    (dt.timedelta, _Family.TIMEDELTA),
    (uuid.UUID, _Family.UUID),
    (dict, _Family.DICT),
    ((list, tuple), _Family.LIST),
)

# A timedelta64 is numpy's signedinteger, a longdouble a floating that float64 would round.
_NUMPY_FAMILIES: tuple[tuple[str, _Family | None], ...] = (
    ("bool_", _Family.BOOL),
    ("timedelta64", _Family.NUMPY_TIMEDELTA),
    ("datetime64", _Family.NUMPY_DATETIME),
    ("longdouble", None),
    ("integer", _Family.INT),
    ("floating", _Family.FLOAT),
    ("ndarray", _Family.LIST),
)

_TOGETHER: dict[frozenset[_Family], _Family] = {
    frozenset({_Family.INT, _Family.FLOAT}): _Family.FLOAT,
    frozenset({_Family.INT, _Family.DECIMAL}): _Family.DECIMAL,
    frozenset({_Family.LIST, _Family.DICT}): _Family.DICT,
}

_REMEDIES = {
    "BaseGeometry": "return a geopandas.GeoDataFrame, which knows the CRS",
    "BaseOffset": "convert it to a timedelta, or to text",
    "DataFrame": "join the frames, or store each as an asset of its own",
    "Enum": "store its .value or .name",
    "Interval": "store its bounds as two columns, .left and .right",
    "Period": "convert it to a timestamp, as .dt.to_timestamp() does",
    "PurePath": "convert it to text with str()",
    "Series": "convert it to a list",
    "_IPAddressBase": 'convert it to text with str(), and declare the column, say as "inet"',
    "complex": "store the real and the imaginary part as two columns",
    "complexfloating": "store the real and the imaginary part as two columns",
    "frozenset": "make it a list, in an order of your choice",
    "longdouble": "convert it to float64",
    "set": "make it a list, in an order of your choice",
}

_MISSING = frozenset({"NAType", "NaTType"})


def _with_none_for_missing(values: Objects, kinds: set[type]) -> Objects:
    missing = {kind for kind in kinds if kind.__name__ in _MISSING}
    floats = {kind for kind in kinds if _family_of_kind(kind) is _Family.FLOAT}
    # NaN among Python's floats alone is left to Arrow, which finds it faster.
    only_floats = kinds <= floats | {type(None)} and all(issubclass(k, float) for k in floats)
    if not missing and (not floats or only_floats):
        return values
    return [
        None if (kind := type(v)) in missing or (kind in floats and math.isnan(v)) else v
        for v in values
    ]


def _without_values(length: int, hint: pa.DataType | None) -> Encoded:
    return Encoded(pa.nulls(length, pa.null() if hint is None else hint))


def _family_of_kind(kind: type) -> _Family | None:
    for classes, family in _PYTHON_FAMILIES:
        if issubclass(kind, classes):
            return family
    numpy = sys.modules.get("numpy")
    for name, numpy_family in _NUMPY_FAMILIES if numpy is not None else ():
        if issubclass(kind, getattr(numpy, name)):
            return numpy_family
    return None


def _family_of(values: Objects, kinds: set[type]) -> _Family:
    families = {kind: _family_of_kind(kind) for kind in kinds}
    known = {family for family in families.values() if family is not None}
    if len(known) < len(set(families.values())):
        row = _first_row(values, lambda v: v is not None and families[type(v)] is None)
        kind = type(values[row])
        raise BadValue(
            f"holds a {_name(kind)}, which no PostgreSQL column type stands for; "
            f"{remedy_for(kind)}",
            row=row,
        )
    if len(known) == 1:
        return known.pop()
    if together := _TOGETHER.get(frozenset(known)):
        return together
    raise _mixed(values, families)


def _mixed(values: Objects, families: dict[type, _Family | None]) -> BadValue:
    first = next(type(v) for v in values if v is not None)
    row = _first_row(values, lambda v: v is not None and families[type(v)] is not families[first])
    return BadValue(
        f"holds a {_name(type(values[row]))} after {_name(first)} values; a column has one type: "
        "convert it to one before returning the frame",
        row=row,
    )


def _name(kind: type) -> str:
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return module + kind.__qualname__


def _first_row(values: Objects, is_odd: Callable[[Any], bool]) -> int:
    """Return the row of the first odd value; one is known to be there."""
    return next(row for row, value in enumerate(values) if is_odd(value))


def _array(values: Objects, type_: pa.DataType, reason: str) -> pa.Array | pa.ChunkedArray:
    """Build the array, or name the first row that Arrow refuses."""
    try:
        return pa.array(values, type=type_, from_pandas=True)
    except (pa.ArrowException, ArithmeticError, TypeError, ValueError):
        # Not `from exc`: Arrow's messages hold the value.
        row = next((row for row, v in enumerate(values) if not _fits(v, type_)), None)
        raise BadValue(reason, row=row) from None


def _fits(value: object, type_: pa.DataType) -> bool:
    try:
        pa.array([value], type=type_, from_pandas=True)
    except (pa.ArrowException, ArithmeticError, TypeError, ValueError):
        return False
    return True


def _encode_bools(values: Objects) -> Encoded:
    return Encoded(_array(values, pa.bool_(), "is not a boolean"))


def _encode_ints(values: Objects) -> Encoded:
    try:
        return Encoded(pa.array(values, type=pa.int64()))
    except (pa.ArrowException, OverflowError):
        return _encode_decimals([v if v is None else Decimal(int(v)) for v in values])


def _encode_floats(values: Objects) -> Encoded:
    return Encoded(
        _array(
            values,
            pa.float64(),
            "holds an integer among floats that a float cannot hold exactly; "
            "make the column integers, Decimals or floats",
        )
    )


def _encode_decimals(values: Objects) -> Encoded:
    try:
        # Without from_pandas, which would make NULL of a Decimal NaN.
        return Encoded(pa.array(values))
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        texts = [None if v is None else _numeric_text(v, row) for row, v in enumerate(values)]
        return Encoded(pa.array(texts, type=pa.string()), "numeric")


def _numeric_text(value: Decimal | int, row: int) -> str:
    if not isinstance(value, Decimal):
        return str(Decimal(int(value)))
    if value.is_snan():
        raise BadValue("holds a signalling NaN, which numeric does not have", row=row)
    return "NaN" if value.is_nan() else str(value)


def _encode_text(values: Objects) -> Encoded:
    return Encoded(_array(values, pa.string(), _HALF_SURROGATE))


_HALF_SURROGATE = "holds half of a surrogate pair, which is no text in UTF-8"


def _encode_bytes(values: Objects) -> Encoded:
    return Encoded(_array(values, pa.binary(), "is not contiguous bytes"))


def _encode_dates(values: Objects) -> Encoded:
    return Encoded(_array(values, pa.date32(), "is not a date"))


def _encode_datetimes(values: Objects) -> Encoded:
    naive = next(filter(None, values)).tzinfo is None
    zone = None if naive else "UTC"
    if set(map(type, values)) <= {dt.datetime, type(None)}:
        # Twice to five times as fast as Arrow, which asks each for its parts (measured). What
        # cannot be subtracted is left to it, and to the check before it, to name the row.
        epoch = _EPOCH if naive else _EPOCH.replace(tzinfo=dt.timezone.utc)
        with suppress(TypeError, ValueError):
            since = [value and value - epoch for value in values]
            return Encoded(pa.array(since, pa.duration("us")).view(pa.timestamp("us", zone)))
    # Told apart by identity: some libraries' zones have no hash.
    zones = set(map(id, map(_zone_of, filter(None, values))))
    if id(None) in zones and len(zones) > 1:
        raise BadValue(
            "mixes datetimes with and without a time zone; give all of them one, or none",
            row=_first_row(values, lambda v: v is not None and (v.tzinfo is None) is not naive),
        )
    unit = "us"
    if _any_of_pandas(values):
        _refuse_years_of_no_datetime(values)
        unit = "ns" if _any_has_nanoseconds(values) else "us"
    return Encoded(
        _array(
            values,
            pa.timestamp(unit, tz=zone),
            f"lies outside what a timestamp in {unit} can hold",
        )
    )


_EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001  # the zone is the column's
_zone_of = operator.attrgetter("tzinfo")
_year_of = operator.attrgetter("year")
_nanosecond_of = operator.attrgetter("nanosecond")


def _any_has_nanoseconds(values: Objects) -> bool:
    kinds = set(map(type, filter(None, values)))
    if all(hasattr(kind, "nanosecond") for kind in kinds):
        return any(map(_nanosecond_of, filter(None, values)))
    return any(getattr(value, "nanosecond", 0) for value in values)


def _any_of_pandas(values: Objects) -> bool:
    """Whether there are pandas' own Timestamps or Timedeltas, which may have nanoseconds."""
    return any(hasattr(kind, "to_numpy") for kind in set(map(type, values)))


def _refuse_years_of_no_datetime(values: Objects) -> None:
    """Refuse a pandas Timestamp that says 1972 to whom takes it for a datetime, as Arrow does."""

    def is_odd(value: Any) -> bool:
        return value is not None and not dt.MINYEAR <= value.year <= dt.MAXYEAR

    years = set(map(_year_of, filter(None, values)))
    if min(years) < dt.MINYEAR or max(years) > dt.MAXYEAR:
        raise BadValue(
            "holds a Timestamp outside the years 1 to 9999 among objects; convert the column to "
            "datetime64[us]",
            row=_first_row(values, is_odd),
        )


def _encode_times(values: Objects) -> Encoded:
    if any(v.tzinfo is not None for v in values if v is not None):
        raise BadValue(
            "holds a time with a time zone, which Arrow's times have not; drop the zone, or "
            "store a datetime",
            row=_first_row(values, lambda v: v is not None and v.tzinfo is not None),
        )
    return Encoded(_array(values, pa.time64("us"), "is not a time of day"))


def _encode_timedeltas(values: Objects) -> Encoded:
    finer = _any_of_pandas(values) and any(getattr(v, "nanoseconds", 0) for v in values)
    unit = "ns" if finer else "us"
    return Encoded(
        _array(values, pa.duration(unit), f"is longer than a duration in {unit} can hold")
    )


def _encode_numpy_times(values: Objects) -> Encoded:
    numpy = sys.modules["numpy"]
    nat = next(type(v) for v in values if v is not None)("NaT")
    times = numpy.array([nat if v is None else v for v in values])
    unit = numpy.datetime_data(times.dtype)[0]
    if unit in ({"W", "D", "h", "m"} if times.dtype.kind == "m" else {"h", "m"}):
        times = times.astype(f"{times.dtype.kind}8[s]")
    try:
        return Encoded(pa.array(times))
    except (pa.ArrowException, NotImplementedError):
        raise BadValue(f"holds {times.dtype} values; convert them to nanoseconds") from None


def _encode_uuids(values: Objects) -> Encoded:
    storage = pa.array([None if v is None else v.bytes for v in values], type=pa.binary(16))
    return Encoded(pa.ExtensionArray.from_storage(pa.uuid(), storage))


def _encode_dicts(values: Objects) -> Encoded:
    return _encode_json(values, text_is_json=False)


def _encode_json(values: Objects, *, text_is_json: bool) -> Encoded:
    texts = [_json_text(value, row, text_is_json) for row, value in enumerate(values)]
    storage = _array(texts, pa.string(), _HALF_SURROGATE)
    _refuse_nul(storage, texts)
    return Encoded(_as_extension(pa.json_(), storage))


def _json_text(value: Any, row: int, text_is_json: bool) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    try:
        if text_is_json and isinstance(value, str):
            json_text.check(value)
            return value
        return json_text.dumps(value)
    except ValueError as exc:
        raise BadValue(str(exc), row=row) from None


def _refuse_nul(storage: pa.Array | pa.ChunkedArray, texts: list[str | None]) -> None:
    if not pc.any(pc.match_substring(storage, "\\u0000")).as_py():
        return
    for row, text in enumerate(texts):
        if text is not None and json_text.has_nul(text):
            raise BadValue("is JSON with the character NUL, which jsonb cannot store", row=row)


def _as_extension(
    type_: pa.DataType, storage: pa.Array | pa.ChunkedArray
) -> pa.Array | pa.ChunkedArray:
    if isinstance(storage, pa.ChunkedArray):
        chunks = [pa.ExtensionArray.from_storage(type_, chunk) for chunk in storage.chunks]
        return pa.chunked_array(chunks, type=type_)
    return pa.ExtensionArray.from_storage(type_, storage)


def _encode_lists(values: Objects, hint: pa.DataType | None) -> Encoded:
    elements = _element_type(hint)
    if arrays := _concatenated(values):
        return _as_lists(values, Encoded(arrays[0]))
    cells = [None if v is None else _items(v, row) for row, v in enumerate(values)]
    flat = list(itertools.chain.from_iterable(cell for cell in cells if cell is not None))
    families = {_family_of_kind(kind) for kind in set(map(type, flat))}
    if _Family.DICT in families or (_Family.LIST in families and _holds_dict(flat)):
        return _encode_json(values, text_is_json=False)
    if _Family.LIST in families:
        raise BadValue(
            'holds lists of lists; declare the column as "jsonb" to store them',
            row=_first_row(cells, lambda cell: cell is not None and any(map(_is_list, cell))),
        )
    try:
        return _as_lists(cells, to_arrow(flat, elements))
    except BadValue as exc:
        row = None if exc.row is None else _row_of_element(cells, exc.row)
        raise BadValue(f"in a list: {exc.reason}", row=row) from None


def _element_type(hint: pa.DataType | None) -> pa.DataType | None:
    if hint is None:
        return None
    is_list = (
        pa.types.is_list(hint) or pa.types.is_large_list(hint) or pa.types.is_fixed_size_list(hint)
    )
    return hint.value_type if is_list else None


def _concatenated(values: Objects) -> list[pa.Array]:
    """Return the elements of numeric or time arrays of one dtype, in one go; else nothing."""
    numpy = sys.modules.get("numpy")
    arrays = [v for v in values if v is not None]
    if numpy is None or not all(isinstance(v, numpy.ndarray) for v in arrays):
        return []
    dtypes = {v.dtype for v in arrays}
    if len(dtypes) != 1 or {v.ndim for v in arrays} != {1}:
        return []
    dtype = dtypes.pop()
    if dtype.kind not in "biufMm" or dtype == numpy.float16:
        return []
    try:
        return [pa.array(numpy.concatenate(arrays), from_pandas=True)]
    except pa.ArrowException:
        return []


def _items(cell: Any, row: int) -> Sequence[Any]:
    if getattr(cell, "ndim", 1) == 0:
        raise BadValue("holds a numpy array without a dimension; take its .item()", row=row)
    return cell if isinstance(cell, (list, tuple)) else list(cell)


def _is_list(value: object) -> bool:
    return _family_of_kind(type(value)) is _Family.LIST


def _holds_dict(values: Iterable[Any]) -> bool:
    return any(
        isinstance(v, dict) or (_is_list(v) and getattr(v, "ndim", 1) and _holds_dict(v))
        for v in values
    )


def _as_lists(cells: Objects, elements: Encoded) -> Encoded:
    if elements.postgresql_type is not None:
        raise BadValue(
            "holds NaN, Infinity or more than 76 digits, which a list of Decimals cannot"
        )
    lengths = (0 if cell is None else len(cell) for cell in cells)
    ends = list(itertools.accumulate(lengths, initial=0))
    large = ends[-1] > _MAX_INT32
    array = pa.LargeListArray if large else pa.ListArray
    offsets = pa.array(ends, type=pa.int64() if large else pa.int32())
    missing = pa.array([cell is None for cell in cells], type=pa.bool_())
    return Encoded(array.from_arrays(offsets, elements.data, mask=missing))


_MAX_INT32 = 2**31 - 1


def _row_of_element(cells: Objects, element: int) -> int:
    ends = itertools.accumulate(0 if cell is None else len(cell) for cell in cells)
    return next(row for row, end in enumerate(ends) if element < end)


_ENCODERS: dict[_Family, Callable[[Objects], Encoded]] = {
    _Family.BOOL: _encode_bools,
    _Family.INT: _encode_ints,
    _Family.FLOAT: _encode_floats,
    _Family.DECIMAL: _encode_decimals,
    _Family.TEXT: _encode_text,
    _Family.BYTES: _encode_bytes,
    _Family.DATETIME: _encode_datetimes,
    _Family.DATE: _encode_dates,
    _Family.TIME: _encode_times,
    _Family.TIMEDELTA: _encode_timedeltas,
    _Family.NUMPY_DATETIME: _encode_numpy_times,
    _Family.NUMPY_TIMEDELTA: _encode_numpy_times,
    _Family.UUID: _encode_uuids,
    _Family.DICT: _encode_dicts,
}


def _decode(array: pa.Array, postgresql_type: str | None) -> Objects:
    type_ = array.type
    if pa.types.is_dictionary(type_):
        return _decode(array.dictionary_decode(), postgresql_type)
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return _decode_lists(array, (postgresql_type or "").removesuffix("[]") or None)
    storage = array.storage if isinstance(type_, pa.BaseExtensionType) else array
    constructor = _constructor(type_, (postgresql_type or "").partition("(")[0])
    if constructor is None:
        return list(array.to_pylist())
    return [None if v is None else constructor(v) for v in storage.to_pylist()]


def _constructor(type_: pa.DataType, name: str) -> Callable[[Any], object] | None:
    if isinstance(type_, pa.JsonType) or (name in {"json", "jsonb"} and is_text(type_)):
        return json_text.loads
    if isinstance(type_, pa.UuidType) or (name == "uuid" and type_ == pa.binary(16)):
        return _uuid
    if name == "numeric" and is_text(type_):
        return Decimal
    return None


def _uuid(value: bytes) -> uuid.UUID:
    return uuid.UUID(bytes=value)


def _decode_lists(array: pa.Array, element_type: str | None) -> Objects:
    # flatten() leaves out what NULL lists and a slice's surroundings hold, unlike .values.
    elements = _decode(array.flatten(), element_type)
    lengths = pc.list_value_length(array).to_pylist()
    starts = itertools.accumulate((n or 0 for n in lengths), initial=0)
    return [
        None if n is None else elements[at : at + n] for at, n in zip(starts, lengths, strict=False)
    ]
