"""Bring Arrow arrays to what a column takes, or say which row does not fit.

Two steps. `fit` checks: every value must survive the way into the column's type
unchanged, or `BadValue` names the first row that would not. `encode` and `render`
then only change the dress: binary for COPY's binary format, text for its CSV.
The encoder trusts the Arrow type it is given and the server trusts the bytes, so
an unchecked same-width cast would store a wrong value without an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from dagster_tools import json_text
from dagster_tools.errors import BadValue, SchemaConflict
from dagster_tools.geoarrow import is_geometry
from dagster_tools.postgres.column_types import (
    EWKB,
    PgType,
    is_list,
    plain_type,
    wire_type,
)
from dagster_tools.postgres.geometry import SPATIAL, Shape, given_srid, misfit, srid_of, with_srid

__all__ = ["check_modifiers", "encode", "fit", "render"]

DAYS_4713_BC = -2_440_588
LAST_DAY = 2_145_042_541
"""31 December 5874897, the last date PostgreSQL stores, in days since 1970."""
MICROSECONDS_PER_DAY = 86_400_000_000
LONGEST_VALUE = 2**30 - 100
"""Bytes of a value, with room for its header, that the server allocates (MaxAllocSize)."""
NUMBER = r"^\s*([+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|(?i:nan|[+-]?inf(inity)?))\s*$"
"""What `numeric` reads as a number, hexadecimal and underscores of PostgreSQL 16 aside."""

_NUL = re.compile(rb"\0")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an array stands: for messages."""

    column: str
    first_row: int
    target: PgType

    def bad(self, row: int, reason: str) -> BadValue:
        return BadValue(reason, column=self.column, row=self.first_row + row)

    def conflict(self, source: pa.DataType, remedy: str) -> SchemaConflict:
        return SchemaConflict(
            f"column {self.column!r} is {self.target} in the table and {source} in the frame. "
            f"{remedy}"
        )


def fit(array: pa.Array, field: pa.Field, target: PgType, *, first_row: int = 0) -> pa.Array:
    """Check that every value of `array` fits `target`, and return it in that type's terms.

    Rows without any value fit every column, whatever the type of nothing is said to be: pandas
    has doubles for what was all missing in a file.

    Args:
        field: The array's field in the frame; its metadata tells geometry and exact numbers.
        target: The column's storage type.
        first_row: Position of the array's first row in the frame, for messages.

    Raises:
        BadValue: A value does not fit; names column and row.
        SchemaConflict: Values of this Arrow type never fit; says what would settle it.
    """
    place = _Place(field.name, first_row, target)
    array, geometry = _plain(array), is_geometry(field)
    if pat.is_null(array.type) or 0 < len(array) == array.null_count:
        return pa.nulls(len(array), wire_type(target, array.type) or pa.large_string())
    _refuse_too_long(array, place)
    if target.array:
        return _fit_list(array, place)
    if target.name in SPATIAL or target.name == EWKB:
        return _fit_geometry(array, field if geometry else None, place)
    fitting = _FITTING.get(target.name, _fit_other)
    if geometry and target.name != "bytea":
        raise place.conflict(pa.binary(), "Declare the column as geometry.")
    return fitting(array, place)


def check_modifiers(
    array: pa.Array, name: str, *, not_null: bool, nonnegative: bool, first_row: int = 0
) -> None:
    """Refuse a value of an array that `fit` returned if the column's modifiers forbid it.

    Raises:
        BadValue: A NULL where there must be none, or a negative number; names column and row.
    """
    if not_null and array.null_count:
        row = first_row + array.is_null().index(True).as_py()
        raise BadValue("is NULL, and the column is NOT NULL", column=name, row=row)
    if nonnegative:
        row = pc.index(pc.less(array, pa.scalar(0, array.type)), pa.scalar(True)).as_py()
        if row >= 0:
            raise BadValue("is negative, and the column is uint", column=name, row=first_row + row)


def encode(array: pa.Array, target: PgType) -> pa.Array:
    """Return the binary form of an array that `fit` returned."""
    if target.name == "jsonb" and not target.array:
        return _with_jsonb_version(array)
    wire = wire_type(target, array.type)
    return array if wire is None or array.type == wire else array.cast(wire)


def render(array: pa.Array, target: PgType) -> pa.Array:
    """Return the text form of an array that `fit` returned, for the type's input function."""
    if target.array and is_list(array.type):
        return _array_literals(array, target.element)
    if pat.is_boolean(array.type) or pat.is_decimal(array.type) or pat.is_integer(array.type):
        return array.cast(pa.large_string())
    if pat.is_duration(array.type):
        return _joined(array.cast(pa.int64()).cast(pa.large_string()), after=" microseconds")
    if target.name == "timestamp with time zone":
        return _joined(array.cast(pa.large_string()), after="+00")
    if pat.is_large_binary(array.type):
        return _hexadecimal(array, target)
    return array.cast(pa.large_string())


# --- what each type takes -------------------------------------------------------------------


def _fit_boolean(array: pa.Array, place: _Place) -> pa.Array:
    if pat.is_boolean(array.type):
        return array
    if pat.is_integer(array.type):
        zero, one = pa.scalar(0, array.type), pa.scalar(1, array.type)
        outside = pc.or_(pc.less(array, zero), pc.greater(array, one))
        _refuse(outside, place, "is neither 0 nor 1")
        return array.cast(pa.bool_())
    if _is_text(array.type):
        return _cast(array, pa.bool_(), place, "is not 'true' or 'false'")
    raise place.conflict(array.type, "Convert it in the asset: frame[column].astype(bool).")


def _fit_integer(array: pa.Array, place: _Place) -> pa.Array:
    wire = wire_type(place.target, array.type)
    if array.type == wire:
        return array
    reason = f"does not fit into {place.target}"
    if pat.is_decimal(array.type):
        whole = _cast(array, pa.decimal256(76, 0), place, "is not a whole number")
        return _cast(whole, wire, place, reason)
    if pat.is_boolean(array.type):
        return array.cast(pa.int8()).cast(wire)
    if pat.is_integer(array.type) or pat.is_floating(array.type) or _is_text(array.type):
        return _cast(array, wire, place, reason)
    raise place.conflict(
        array.type, f"Convert it in the asset, or declare it other than {place.target}."
    )


def _fit_float(array: pa.Array, place: _Place) -> pa.Array:
    wire = wire_type(place.target, array.type)
    if array.type == wire:
        return array
    if pat.is_decimal(array.type):
        return _fit_decimal_as_float(array, wire, place)
    if pat.is_floating(array.type):
        narrowed = array.cast(wire, safe=False)
        same = pc.or_(
            pc.equal(narrowed.cast(array.type, safe=False), array),
            pc.and_(pc.is_nan(narrowed), pc.is_nan(array)),
        )
        _refuse(pc.invert(same), place, f"would be rounded by {place.target}")
        return narrowed
    if pat.is_boolean(array.type):
        raise place.conflict(array.type, "Convert it in the asset: frame[column].astype(float).")
    if _is_text(array.type):
        return _fit_text_as_float(array, wire, place)
    if pat.is_integer(array.type):
        return _cast(array, wire, place, f"does not fit into {place.target}")
    raise place.conflict(
        array.type, f"Convert it in the asset, or declare it other than {place.target}."
    )


def _fit_decimal_as_float(array: pa.Array, wire: pa.DataType, place: _Place) -> pa.Array:
    # By way of text: its shortest digits that mean the float must be the decimal's own.
    floats = array.cast(pa.large_string()).cast(wire)
    reason = f"has more digits than {place.target} keeps"
    returned = _cast(floats.cast(pa.large_string()), array.type, place, reason)
    _refuse(pc.not_equal(returned, array), place, reason)
    return floats


def _fit_text_as_float(array: pa.Array, wire: pa.DataType, place: _Place) -> pa.Array:
    floats = _cast(array, wire, place, f"is no number that fits into {place.target}")
    # Arrow reads 1e400 as infinity and 1e-400 as zero.
    written = pc.match_substring_regex(array, r"^[^eE]*[1-9]")
    changed = pc.or_(pc.is_inf(floats), pc.equal(floats, pa.scalar(0, wire)))
    _refuse(pc.and_(written, changed), place, f"is out of the range of {place.target}")
    return floats


def _fit_numeric(array: pa.Array, place: _Place) -> pa.Array:
    if pat.is_boolean(array.type) or not (
        pat.is_integer(array.type)
        or pat.is_floating(array.type)
        or pat.is_decimal(array.type)
        or _is_text(array.type)
    ):
        raise place.conflict(array.type, "Convert it in the asset, or declare another type.")
    if _is_text(array.type):
        written = pc.match_substring_regex(array, NUMBER)
        _refuse(pc.invert(written), place, "is not a number")
    declared = place.target.precision_and_scale
    if declared is None:
        return _unlimited_numeric(array)
    precision, scale = declared
    if pat.is_floating(array.type):
        _refuse(pc.invert(pc.is_finite(array)), place, f"is no finite number, as {place.target} is")
    if scale < 0 or precision > 76 or scale > precision:
        return _unusual_numeric(array, scale, place)
    reason = f"does not fit into {place.target} without rounding"
    exact = array.cast(pa.large_string()) if pat.is_floating(array.type) else array
    widest = pa.decimal128(38, scale) if precision <= 38 else pa.decimal256(76, scale)
    fitted = _cast(exact, widest, place, reason)
    return _cast(fitted, _decimal(precision, scale), place, reason)


def _unlimited_numeric(array: pa.Array) -> pa.Array:
    if pat.is_integer(array.type):
        return array.cast(pa.decimal128(20, 0))
    if pat.is_decimal128(array.type):
        return array
    if pat.is_decimal(array.type) and array.type.precision <= 38:
        return array.cast(pa.decimal128(array.type.precision, array.type.scale))
    return array.cast(pa.large_string())


def _unusual_numeric(array: pa.Array, scale: int, place: _Place) -> pa.Array:
    """Refuse what the server would round, of a `numeric` that Arrow has no decimal for."""
    texts = array.cast(pa.large_string())
    for row, text in enumerate(texts.to_pylist()):
        _sign, digits, exponent = Decimal(text or 0).as_tuple()
        significant = len(bytes(digits).rstrip(b"\0"))
        if isinstance(exponent, int) and significant:
            last_place = exponent + len(digits) - significant
            if last_place < -scale:
                raise place.bad(row, f"does not fit into {place.target} without rounding")
    return texts


def _fit_text(array: pa.Array, place: _Place) -> pa.Array:
    if not _is_text(array.type):
        raise place.conflict(
            array.type,
            "Only text is stored as text. Convert it in the asset: frame[column].astype(str).",
        )
    _refuse_nul(array, place)
    limit = place.target.max_length
    if limit is not None:
        _refuse(pc.greater(pc.utf8_length(array), limit), place, f"is longer than {place.target}")
    return array


def _fit_json(array: pa.Array, place: _Place) -> pa.Array:
    if _is_text(array.type):
        _refuse_nul(array, place)
        return array.cast(pa.large_string())
    if pat.is_nested(array.type):
        texts = [_json_text(value, place, row) for row, value in enumerate(array)]
        return pa.array(texts, pa.large_string())
    raise place.conflict(array.type, "Return JSON text, dicts or lists.")


def _fit_bytes(array: pa.Array, place: _Place) -> pa.Array:
    if _is_bytes(array.type):
        return array.cast(pa.binary()).cast(pa.large_binary())
    raise place.conflict(array.type, "Convert it in the asset: frame[column].str.encode('utf-8').")


def _fit_geometry(array: pa.Array, marked: pa.Field | None, place: _Place) -> pa.Array:
    """Take WKB, of the column's SRID where the frame's field is marked and so names one.

    What PostGIS does not give them by itself, the values have to bring.
    """
    if _is_text(array.type) and place.target.name in SPATIAL:
        _refuse_nul(array, place)
        return array.cast(pa.large_string())
    if not _is_bytes(array.type):
        raise place.conflict(array.type, "Return geometry as WKB, or a GeoDataFrame.")
    wkb, shape = array.cast(pa.large_binary()), Shape.of(place.target)
    srid = shape.srid if marked is None else _checked_srid(marked, shape.srid, place)
    if (found := misfit(wkb, shape, ewkb=place.target.name == EWKB)) is not None:
        raise place.bad(*found)
    return wkb if srid and srid == given_srid(place.target) else with_srid(wkb, srid)


def _checked_srid(field: pa.Field, expected: int, place: _Place) -> int:
    srid = srid_of(field)
    if srid == expected or not (expected or place.target.name == EWKB):
        return srid
    if not expected:
        raise SchemaConflict(
            f"column {place.column!r} was made for geometry without a CRS, and the frame's has "
            f"SRID {srid}. frame.set_crs(None, allow_override=True) takes it off; or drop the "
            "column from the table, and it is made for that CRS."
        )
    if not srid:
        raise SchemaConflict(
            f"column {place.column!r} has SRID {expected} in the table, and the frame's has no "
            f"CRS. If that is what its coordinates are in, frame.set_crs({expected}) says so."
        )
    raise SchemaConflict(
        f"column {place.column!r} has SRID {expected} in the table, and {srid} in the frame. "
        f"frame.to_crs({expected}) converts it."
    )


def _fit_uuid(array: pa.Array, place: _Place) -> pa.Array:
    if pat.is_fixed_size_binary(array.type) and array.type.byte_width == 16:
        return array.cast(pa.binary()).cast(pa.large_binary())
    if _is_text(array.type):
        pattern = r"^\s*\{?[0-9a-fA-F]{8}-?([0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}\}?\s*$"
        matched = pc.match_substring_regex(array, pattern)
        _refuse(pc.invert(matched), place, "is not a UUID")
        return array.cast(pa.large_string())
    raise place.conflict(array.type, "Return uuid.UUID objects or their text.")


def _fit_date(array: pa.Array, place: _Place) -> pa.Array:
    if pat.is_date32(array.type):
        dates = array
    elif pat.is_date64(array.type):
        dates = array.cast(pa.date32())
    elif pat.is_timestamp(array.type) and array.type.tz is None:
        dates = array.cast(pa.date32(), safe=False)
        whole = pc.equal(dates.cast(array.type), array)
        _refuse(pc.invert(whole), place, "has a time of day, which a date would lose")
    elif _is_text(array.type):
        dates = _cast(array, pa.date32(), place, "is not a date written YYYY-MM-DD")
    else:
        raise place.conflict(array.type, "Convert it in the asset: frame[column].dt.date.")
    _refuse_range(dates.cast(pa.int32()), place, DAYS_4713_BC, LAST_DAY)
    return dates


def _fit_time(array: pa.Array, place: _Place) -> pa.Array:
    if pat.is_time(array.type):
        return _rounded_by_type(_cast(array, pa.time64("us"), place, "has nanoseconds"), place)
    if _is_text(array.type):
        digits = int(place.target.modifiers[0]) if place.target.modifiers else 6
        pattern = rf"^\d{{2}}:\d{{2}}(:\d{{2}}(\.\d{{0,{digits}}}0*)?)?$"
        reason = f"is not a time written HH:MM:SS, with at most {digits} digits after the point"
        _refuse(pc.invert(pc.match_substring_regex(array, pattern)), place, reason)
        return array.cast(pa.large_string())
    raise place.conflict(array.type, "Convert it in the asset: frame[column].dt.time.")


def _fit_timestamp(array: pa.Array, place: _Place) -> pa.Array:
    aware_target = place.target.name == "timestamp with time zone"
    if pat.is_timestamp(array.type):
        if (array.type.tz is not None) != aware_target:
            raise place.conflict(array.type, _zone_remedy(aware_target))
        stamps = _cast(array, pa.timestamp("us", array.type.tz), place, _lost(array.type, place))
    elif _is_text(array.type):
        offset = "with" if aware_target else "without"
        stamps = _cast(
            array,
            pa.timestamp("us", "UTC" if aware_target else None),
            place,
            f"is not a timestamp written YYYY-MM-DD HH:MM:SS {offset} an offset such as +00:00",
        )
    elif pat.is_date(array.type) and not aware_target:
        stamps = _cast(array, pa.timestamp("us"), place, "is out of range")
    else:
        raise place.conflict(array.type, _zone_remedy(aware_target))
    naive = stamps.cast(pa.timestamp("us"))
    _refuse_range(naive.cast(pa.int64()), place, DAYS_4713_BC * MICROSECONDS_PER_DAY, None)
    return _rounded_by_type(naive, place)


def _fit_interval(array: pa.Array, place: _Place) -> pa.Array:
    if pat.is_duration(array.type):
        return _cast(array, pa.duration("us"), place, _lost(array.type, place))
    if _is_text(array.type):
        return array.cast(pa.large_string())
    if pat.is_interval(array.type):
        texts = [
            None if value is None else _interval_text(value, place, row)
            for row, value in enumerate(array.to_pylist())
        ]
        return pa.array(texts, pa.large_string())
    raise place.conflict(array.type, "Return timedelta values.")


def _fit_other(array: pa.Array, place: _Place) -> pa.Array:
    """Take text for a type without a wire form (inet, ranges, money, …): the server parses it."""
    if _is_text(array.type):
        _refuse_nul(array, place)
        return array.cast(pa.large_string())
    if pat.is_integer(array.type) or pat.is_decimal(array.type):
        return array.cast(pa.large_string())
    raise place.conflict(array.type, f"Return the text form of {place.target}.")


def _fit_list(array: pa.Array, place: _Place) -> pa.Array:
    element = place.target.element
    if _is_text(array.type):
        return _fit_other(array, place)
    if not is_list(array.type):
        raise place.conflict(array.type, "Return a list in each row.")
    lists = array.cast(pa.large_list(array.type.value_type))
    values = _plain(lists.flatten())
    field = pa.field(place.column, values.type)
    try:
        fitted = fit(values, field, element)
    except BadValue as error:
        row = _row_of_element(lists, error.row or 0)
        raise place.bad(row, f"an element {error.reason}") from None
    return _relisted(lists, fitted)


_FITTING: dict[str, Callable[[pa.Array, _Place], pa.Array]] = {
    "boolean": _fit_boolean,
    "smallint": _fit_integer,
    "integer": _fit_integer,
    "bigint": _fit_integer,
    "real": _fit_float,
    "double precision": _fit_float,
    "numeric": _fit_numeric,
    "text": _fit_text,
    "character varying": _fit_text,
    "character": _fit_text,
    "name": _fit_text,
    "citext": _fit_text,
    "enum": _fit_text,
    "json": _fit_json,
    "jsonb": _fit_json,
    "bytea": _fit_bytes,
    "uuid": _fit_uuid,
    "date": _fit_date,
    "time without time zone": _fit_time,
    "timestamp without time zone": _fit_timestamp,
    "timestamp with time zone": _fit_timestamp,
    "interval": _fit_interval,
}


# --- helpers --------------------------------------------------------------------------------


def _plain(array: pa.Array) -> pa.Array:
    """Decode dictionaries and run ends, unwrap extension types, straighten views.

    Half floats become floats, which hold them exactly and have all of Arrow's functions.
    """
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    if pat.is_dictionary(array.type):
        # Its values straightened first: Arrow takes nothing out of views (pyarrow 26).
        array = _plain(array.dictionary).take(array.indices)
    if pat.is_run_end_encoded(array.type):
        array = pc.run_end_decode(array)
    plain = pa.float32() if pat.is_float16(array.type) else plain_type(array.type)
    return array if array.type == plain else array.cast(plain)


def _cast(array: pa.Array, type_: pa.DataType, place: _Place, reason: str) -> pa.Array:
    """Cast without loss, or name the first row that would lose something."""
    try:
        return array.cast(type_)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        row = _first_failing(array, lambda part: part.cast(type_))
        raise place.bad(row, reason) from None


def _first_failing(array: pa.Array, attempt: Callable[[pa.Array], object]) -> int:
    """Return the first row that fails, by halving."""
    low, high = 0, len(array)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            attempt(array.slice(low, middle - low))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            high = middle
        else:
            low = middle
    return low


def _refuse(mask: pa.Array, place: _Place, reason: str) -> None:
    """Raise for the first row where the mask is true; NULL is never refused."""
    row = pc.index(mask, pa.scalar(True)).as_py()
    if row >= 0:
        raise place.bad(row, reason)


def _refuse_too_long(array: pa.Array, place: _Place) -> None:
    if (_is_text(array.type) or _is_bytes(array.type)) and array.nbytes > LONGEST_VALUE:
        too_long = pc.greater(pc.binary_length(array), LONGEST_VALUE)
        _refuse(too_long, place, "is longer than 1 GB, the most that PostgreSQL keeps in a value")


def _refuse_nul(array: pa.Array, place: _Place) -> None:
    # Searching the buffer is five times faster than pc.find_substring, and text is most bytes.
    _validity, offsets, data = array.buffers()
    if data is None or offsets is None:
        return
    bounds = memoryview(offsets).cast("q" if pat.is_large_string(array.type) else "i")
    text = memoryview(data)[bounds[array.offset] : bounds[array.offset + len(array)]]
    if _NUL.search(text):
        found = pc.greater_equal(pc.find_substring(array, "\0"), 0)
        _refuse(found, place, "contains a NUL character, which PostgreSQL text cannot hold")


def _refuse_range(numbers: pa.Array, place: _Place, low: int, high: int | None) -> None:
    extremes = pc.min_max(numbers)
    smallest, largest = extremes["min"].as_py(), extremes["max"].as_py()
    reason = f"is out of the range of {place.target}"
    if smallest is not None and smallest < low:
        _refuse(pc.less(numbers, low), place, reason)
    if high is not None and largest is not None and largest > high:
        _refuse(pc.greater(numbers, high), place, reason)


def _rounded_by_type(times: pa.Array, place: _Place) -> pa.Array:
    """Refuse fractions of a second that `timestamp(0)` or `time(3)` would round away."""
    if not place.target.modifiers:
        return times
    unit = 10 ** (6 - int(place.target.modifiers[0]))
    numbers = times.cast(pa.int64())
    rest = pc.subtract(numbers, pc.multiply(pc.divide(numbers, unit), unit))
    _refuse(pc.not_equal(rest, 0), place, f"would be rounded by {place.target}")
    return times


def _lost(type_: pa.DataType, place: _Place) -> str:
    """Say why a time of this unit does not become one of microseconds."""
    return "has nanoseconds" if type_.unit == "ns" else f"is out of the range of {place.target}"


def _decimal(precision: int, scale: int) -> pa.DataType:
    return pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(precision, scale)


def _zone_remedy(aware_target: bool) -> str:
    if aware_target:
        return (
            "A time without a zone names no instant; say which with "
            "frame[column].dt.tz_localize(...)."
        )
    return (
        "The zone would be lost; declare the column timestamptz, or drop it on purpose with "
        "frame[column].dt.tz_localize(None)."
    )


def _interval_text(value: tuple[int, int, int], place: _Place, row: int) -> str:
    months, days, nanoseconds = value
    if nanoseconds % 1000:
        raise place.bad(row, "has nanoseconds")
    return f"{months} months {days} days {nanoseconds // 1000} microseconds"


def _json_text(scalar: pa.Scalar, place: _Place, row: int) -> str | None:
    if not scalar.is_valid:
        return None
    try:
        return json_text.dumps(_json_value(scalar.as_py(), scalar.type))
    except ValueError as error:
        raise place.bad(row, str(error)) from None


def _json_value(value: Any, type_: pa.DataType) -> object:
    """Make a map an object; Arrow gives it as a list of pairs."""
    if value is None:
        return None
    if pat.is_map(type_):
        pairs = [(key, _json_value(item, type_.item_type)) for key, item in value]
        if len(dict(pairs)) < len(pairs):
            raise ValueError("has a key twice")
        return dict(pairs)
    if pat.is_struct(type_):
        return {field.name: _json_value(value[field.name], field.type) for field in type_}
    if is_list(type_):
        return [_json_value(item, type_.value_type) for item in value]
    return value


def _with_jsonb_version(array: pa.Array) -> pa.Array:
    # jsonb's binary form is a version byte, 1, and the text (jsonb_recv).
    version, nothing = (pa.scalar(text, pa.large_binary()) for text in (b"\x01", b""))
    return pc.binary_join_element_wise(version, array.cast(pa.large_binary()), nothing)


def _joined(array: pa.Array, *, after: str) -> pa.Array:
    suffix, nothing = (pa.scalar(text, pa.large_string()) for text in (after, ""))
    return pc.binary_join_element_wise(array, suffix, nothing)


def _hexadecimal(array: pa.Array, target: PgType) -> pa.Array:
    prefix = r"\x" if target.name == "bytea" else ""
    texts = [None if value is None else prefix + value.hex() for value in array.to_pylist()]
    return pa.array(texts, pa.large_string())


def _array_literals(array: pa.Array, element: PgType) -> pa.Array:
    texts = render(array.flatten(), element).to_pylist()
    literals: list[str | None] = []
    start = 0
    for length in pc.list_value_length(array).to_pylist():
        if length is None:
            literals.append(None)
            continue
        parts = (_array_element(text) for text in texts[start : start + length])
        literals.append("{" + ",".join(parts) + "}")
        start += length
    return pa.array(literals, pa.large_string())


def _array_element(text: str | None) -> str:
    if text is None:
        return "NULL"
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _relisted(lists: pa.Array, values: pa.Array) -> pa.Array:
    """Put converted values back between the boundaries of the lists they came from."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0)
    ends = pc.cumulative_sum(lengths.cast(pa.int64()))
    offsets = pa.concat_arrays([pa.array([0], pa.int64()), ends])
    mask = lists.is_null() if lists.null_count else None
    return pa.LargeListArray.from_arrays(offsets, values, mask=mask)


def _row_of_element(lists: pa.Array, position: int) -> int:
    ends = pc.cumulative_sum(pc.fill_null(pc.list_value_length(lists), 0).cast(pa.int64()))
    return int(pc.index(pc.greater(ends, position), pa.scalar(True)).as_py())


def _is_text(type_: pa.DataType) -> bool:
    return bool(pat.is_string(type_) or pat.is_large_string(type_))


def _is_bytes(type_: pa.DataType) -> bool:
    return bool(
        pat.is_binary(type_) or pat.is_large_binary(type_) or pat.is_fixed_size_binary(type_)
    )
