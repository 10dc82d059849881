"""What fits which column: each Arrow type of a source against each PostgreSQL type of a target.

Nothing here asks a server; that it takes these bytes and this text is claimed by the tests of
the IO manager.
"""

from __future__ import annotations

import datetime as dt
import json
import uuid
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pat
import pytest

from dagster_tools.errors import BadValue, SchemaConflict
from dagster_tools.postgres.column_types import parse_type, wire_type
from dagster_tools.postgres.wire import encode, fit, render

NAN, INF = float("nan"), float("inf")
ID = uuid.UUID("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0")
NOON = dt.datetime(2024, 2, 29, 12, 0, 0, 123456)
WKB = {b"ARROW:extension:name": b"geoarrow.wkb"}
MAP = pa.map_(pa.string(), pa.int64())
POINT = bytes.fromhex("0101000000" + "00" * 16)


def encoded(array: pa.Array, declared: str, *, field: pa.Field | None = None) -> pa.Array:
    """Bring an array to the binary form of a column, and check that it is the form announced."""
    target = parse_type(declared)
    binary = encode(fit(array, field or pa.field("c", array.type), target), target)
    binary.validate(full=True)
    assert binary.type == wire_type(target, array.type)
    return binary


def rendered(array: pa.Array, declared: str) -> list[str | None]:
    """Bring an array to the text form of a column."""
    target = parse_type(declared)
    texts: list[str | None] = render(
        fit(array, pa.field("c", array.type), target), target
    ).to_pylist()
    return texts


def as_extension(type_: pa.DataType, values: list[Any]) -> pa.Array:
    return pa.ExtensionArray.from_storage(type_, pa.array(values, type_.storage_type))


def run_ends(values: pa.Array) -> pa.Array:
    """Encode each value as a run of two."""
    ends = pa.array(range(2, 2 * len(values) + 1, 2), pa.int32())
    return pa.RunEndEncodedArray.from_arrays(ends, values)


# --- values that fit ------------------------------------------------------------------------

FITTING: list[tuple[pa.Array, str, list[Any]]] = [
    (pa.array([True, None]), "bool", [True, None]),
    (pa.array([0, 1, None], pa.int8()), "bool", [False, True, None]),
    (pa.array([0, 1], pa.uint64()), "bool", [False, True]),
    (pa.array(["true", "FALSE", None, "1", "0"]), "bool", [True, False, None, True, False]),
    # Integers of every width, as far as the column goes.
    (pa.array([-(2**15), 2**15 - 1, None]), "smallint", [-(2**15), 2**15 - 1, None]),
    (pa.array([255], pa.uint8()), "smallint", [255]),
    (pa.array([-(2**31), 2**31 - 1]), "int", [-(2**31), 2**31 - 1]),
    (pa.array([2**32 - 1], pa.uint32()), "bigint", [2**32 - 1]),
    (pa.array([2**63 - 1], pa.uint64()), "bigint", [2**63 - 1]),
    (pa.array([True, None]), "int", [1, None]),
    (pa.array([2.0, None, -3.0]), "int", [2, None, -3]),
    (pa.array([np.float16(2)], pa.float16()), "int", [2]),
    (pa.array([Decimal("7.00"), None]), "int", [7, None]),
    (pa.array([Decimal(7)], pa.decimal256(50, 2)), "bigint", [7]),
    (pa.array(["12", None, "-3"]), "bigint", [12, None, -3]),
    # Floats.
    (pa.array([1.5, None, NAN, INF, -INF]), "float", [1.5, None, NAN, INF, -INF]),
    (pa.array([5e-324, 1.7976931348623157e308]), "float", [5e-324, 1.7976931348623157e308]),
    (pa.array([0.1], pa.float32()), "float", [0.10000000149011612]),
    (pa.array([np.float16(0.5), np.float16(NAN)], pa.float16()), "real", [0.5, NAN]),
    (pa.array([0.5, NAN, INF]), "real", [0.5, NAN, INF]),
    (pa.array([2**53]), "float", [2.0**53]),
    (pa.array([2**24]), "real", [2.0**24]),
    (pa.array([Decimal("0.1"), None], pa.decimal128(38, 18)), "float", [0.1, None]),
    (pa.array([Decimal("123.5")], pa.decimal256(60, 18)), "float", [123.5]),
    (pa.array(["0.1", "1e3", "-inf", "NaN", None]), "float", [0.1, 1000.0, -INF, NAN, None]),
    # Exact numbers.
    (pa.array([2**64 - 1, None], pa.uint64()), "numeric(20,0)", [Decimal(2**64 - 1), None]),
    (pa.array([2**64 - 1], pa.uint64()), "numeric", [Decimal(2**64 - 1)]),
    (pa.array([-(2**63)]), "numeric", [Decimal(-(2**63))]),
    (pa.array([0.1, None, 2.5]), "numeric(12,2)", [Decimal("0.10"), None, Decimal("2.50")]),
    (pa.array([0.1], pa.float32()), "numeric(12,2)", [Decimal("0.10")]),
    (pa.array([Decimal("1.500")]), "numeric(12,2)", [Decimal("1.50")]),
    (pa.array([Decimal("1.500")]), "numeric", [Decimal("1.500")]),
    (pa.array([Decimal("1.5")], pa.decimal256(70, 30)), "numeric(38,2)", [Decimal("1.50")]),
    (pa.array([12]), "numeric(4,2)", [Decimal("12.00")]),
    (pa.array(["1.50", "1e2", None]), "numeric(12,2)", [Decimal("1.50"), Decimal("100.00"), None]),
    # Text.
    (pa.array(["", "NULL", "\\N", "🦆\n\t", None]), "text", ["", "NULL", "\\N", "🦆\n\t", None]),
    (pa.array(["héé", None, "a  "]), "varchar(3)", ["héé", None, "a  "]),
    (pa.array(["abc"]), "char(3)", ["abc"]),
    (pa.array(["happy"]), "citext", ["happy"]),
    (pa.array(['{"a": 1}', None, "null"]), "json", ['{"a": 1}', None, "null"]),
    (pa.array(["[1]", None]), "jsonb", [b"\x01[1]", None]),
    (pa.array([b"\0\xff", None]), "bytea", [b"\0\xff", None]),
    (pa.array([b"abcd"], pa.binary(4)), "bytea", [b"abcd"]),
    (pa.array([ID.bytes, None], pa.binary(16)), "uuid", [ID.bytes, None]),
    (pa.array([POINT]), "geometry", [POINT]),
    (pa.array([POINT]), "geography(Point,4326)", [POINT]),
    # Times.
    (pa.array([dt.date(2024, 2, 29), None]), "date", [dt.date(2024, 2, 29), None]),
    (pa.array([dt.date(1, 1, 1)], pa.date64()), "date", [dt.date(1, 1, 1)]),
    (pa.array([dt.datetime(2024, 2, 29)], pa.timestamp("ns")), "date", [dt.date(2024, 2, 29)]),
    (pa.array(["2024-02-29", None]), "date", [dt.date(2024, 2, 29), None]),
    (pa.array([dt.time(1, 2, 3)], pa.time32("s")), "time", [dt.time(1, 2, 3)]),
    (pa.array([1000], pa.time64("ns")), "time", [dt.time(0, 0, 0, 1)]),
    (pa.array([NOON, None]), "datetime", [NOON, None]),
    (pa.array([NOON], pa.timestamp("ns")), "datetime", [NOON]),
    (pa.array([0], pa.timestamp("s")), "timestamp(0)", [dt.datetime(1970, 1, 1)]),
    (pa.array([dt.date(2024, 2, 29)]), "datetime", [dt.datetime(2024, 2, 29)]),
    (pa.array(["2024-02-29 12:00:00.123456", None]), "datetime", [NOON, None]),
    (pa.array(["2024-02-29T12:00"]), "datetime", [dt.datetime(2024, 2, 29, 12)]),
    (pa.array([NOON], pa.timestamp("us", "UTC")), "timestamptz", [NOON]),
    (
        pa.array([NOON], pa.timestamp("ns", "UTC")).cast(pa.timestamp("ns", "Asia/Tokyo")),
        "timestamptz",
        [NOON],
    ),
    (pa.array(["2024-02-29T14:00:00.123456+02:00"]), "timestamptz", [NOON]),
    (pa.array(["2024-02-29T12:00:00Z"]), "timestamptz", [dt.datetime(2024, 2, 29, 12)]),
    (pa.array([-1, None], pa.duration("s")), "interval", [dt.timedelta(seconds=-1), None]),
    (pa.array([1000], pa.duration("ns")), "interval", [dt.timedelta(microseconds=1)]),
    # Lists.
    (pa.array([[1, None], None, []]), "int[]", [[1, None], None, []]),
    (pa.array([["a", None, ""], []]), "text[]", [["a", None, ""], []]),
    (pa.array([[1, 2], None], pa.list_(pa.int8(), 2)), "bigint[]", [[1, 2], None]),
    (pa.array([[0.1], None]), "numeric(3,1)[]", [[Decimal("0.1")], None]),
    (pa.array([["2024-02-29"]]), "date[]", [[dt.date(2024, 2, 29)]]),
    (pa.array([[True, None]]), "bool[]", [[True, None]]),
]


@pytest.mark.parametrize(
    ("array", "declared", "sent"),
    [pytest.param(*case, id=f"{case[0].type} to {case[1]}") for case in FITTING],
)
def test_values_that_fit_arrive_in_the_binary_form_of_the_column(array, declared, sent):
    arrived = encoded(array, declared).to_pylist()

    assert repr(arrived) == repr(sent)  # as text, where NaN equals NaN and 1 is not True


@pytest.mark.parametrize(
    ("array", "declared"),
    [pytest.param(case[0], case[1], id=f"{case[0].type} to {case[1]}") for case in FITTING],
)
def test_a_slice_is_encoded_like_the_array_it_was_cut_from(array, declared):
    padded = pa.concat_arrays([array[-1:], array, array[:1]])

    cut = encoded(padded.slice(1, len(array)), declared)

    assert repr(cut.to_pylist()) == repr(encoded(array, declared).to_pylist())


@pytest.mark.parametrize(
    ("array", "declared"),
    [pytest.param(case[0], case[1], id=f"{case[0].type} to {case[1]}") for case in FITTING],
)
def test_no_rows_and_only_nulls_fit_like_any_others(array, declared):
    assert encoded(array[:0], declared).to_pylist() == []
    assert encoded(pa.nulls(2, array.type), declared).to_pylist() == [None, None]


@pytest.mark.parametrize(
    "declared",
    [
        *["bool", "smallint", "int", "bigint", "real", "float", "numeric", "numeric(12,2)"],
        *["text", "varchar(3)", "json", "jsonb", "bytea", "uuid", "geometry"],
        *["date", "time", "datetime", "timestamptz", "interval", "int[]", "text[]"],
    ],
)
def test_a_column_without_a_value_fits_everywhere(declared):
    assert encoded(pa.nulls(2), declared).to_pylist() == [None, None]


@pytest.mark.parametrize(
    ("array", "declared", "sent"),
    [
        (pa.array(["a", None, "a"]).dictionary_encode(), "text", ["a", None, "a"]),
        (pa.array([1.5, None]).dictionary_encode(), "float", [1.5, None]),
        (pa.array(["1", "2"]).dictionary_encode(), "int", [1, 2]),
        (run_ends(pa.array([7, None])), "int", [7, 7, None, None]),
        (run_ends(pa.array(["a"])), "text", ["a", "a"]),
        (pa.array(["a", None, "long " * 9], pa.string_view()), "text", ["a", None, "long " * 9]),
        (pa.array([b"a", None], pa.binary_view()), "bytea", [b"a", None]),
        (pa.array(["a", None], pa.large_string()), "text", ["a", None]),
        (as_extension(pa.uuid(), [ID.bytes, None]), "uuid", [ID.bytes, None]),
        (as_extension(pa.json_(), ["{}", None]), "jsonb", [b"\x01{}", None]),
        (pa.array([[1], None], pa.list_view(pa.int64())), "int[]", [[1], None]),
        (pa.array([[1], None], pa.large_list_view(pa.int64())), "int[]", [[1], None]),
        (
            pa.ListArray.from_arrays([0, 2], pa.array(["a", "b"]).dictionary_encode()),
            "text[]",
            [["a", "b"]],
        ),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else None,
)
def test_any_layout_of_arrow_is_encoded_like_the_plain_one(array, declared, sent):
    assert encoded(array, declared).to_pylist() == sent


def test_slices_of_every_layout_are_encoded_from_where_they_begin():
    arrays = [
        (pa.array(["x", "a", None]).dictionary_encode(), "text", ["a", None]),
        (pa.array(["x", "a", None], pa.string_view()), "text", ["a", None]),
        (run_ends(pa.array([7, 8])), "int", [7, 8, 8]),
        (pa.array([["x"], ["a", None], None]), "text[]", [["a", None], None]),
        (pa.array([[9, 9], [1, 2], None], pa.list_(pa.int8(), 2)), "int[]", [[1, 2], None]),
        (as_extension(pa.uuid(), [POINT[:16], ID.bytes, None]), "uuid", [ID.bytes, None]),
    ]

    cut = [encoded(array.slice(1), declared).to_pylist() for array, declared, _sent in arrays]

    assert cut == [sent for _array, _declared, sent in arrays]


# --- values that do not ---------------------------------------------------------------------

REFUSED: list[tuple[pa.Array, str, str]] = [
    (pa.array([1, None, 2]), "bool", "neither 0 nor 1"),
    (pa.array([1, None, -1]), "bool", "neither 0 nor 1"),
    (pa.array([1, None, 2**64 - 1], pa.uint64()), "bool", "neither 0 nor 1"),
    (pa.array(["true", None, "ja"]), "bool", "is not 'true' or 'false'"),
    (pa.array([1, None, 2**15]), "smallint", "does not fit into smallint"),
    (pa.array([1, None, -(2**31) - 1]), "int", "does not fit into integer"),
    (pa.array([1, None, 2**63], pa.uint64()), "bigint", "does not fit into bigint"),
    (pa.array([1.0, None, 1.5]), "int", "does not fit into integer"),
    (pa.array([1.0, None, NAN]), "int", "does not fit into integer"),
    (pa.array([1.0, None, INF]), "bigint", "does not fit into bigint"),
    (pa.array([1.0, None, 2.0**63]), "bigint", "does not fit into bigint"),
    (pa.array([Decimal(1), None, Decimal("1.5")]), "int", "is not a whole number"),
    (pa.array([Decimal(1), None, Decimal(2**31)]), "int", "does not fit into integer"),
    (pa.array(["1", None, "1.0"]), "int", "does not fit into integer"),
    (pa.array(["1", None, ""]), "int", "does not fit into integer"),
    (pa.array([1, None, 2**53 + 1]), "float", "does not fit into double precision"),
    (pa.array([1, None, 2**64 - 1], pa.uint64()), "float", "does not fit into double precision"),
    (pa.array([1, None, 2**24 + 1]), "real", "does not fit into real"),
    (pa.array([0.5, None, 0.1]), "real", "would be rounded by real"),
    (pa.array([0.5, None, 1e39]), "real", "would be rounded by real"),
    (pa.array([0.5, None, 1e-300]), "real", "would be rounded by real"),
    (pa.array([Decimal("0.5"), None, Decimal("0.1234567890123456789")]), "float", "more digits"),
    (pa.array([Decimal("0.5"), None, Decimal("0.123456789")]), "real", "more digits than real"),
    (pa.array(["1", None, "x"]), "float", "is no number that fits into double precision"),
    (pa.array(["1", None, "1e400"]), "float", "is out of the range of double precision"),
    (pa.array(["1", None, "1e-400"]), "float", "is out of the range of double precision"),
    (pa.array([0.5, None, 0.125]), "numeric(12,2)", "does not fit into numeric(12,2) without"),
    (pa.array([0.5, None, 1e10]), "numeric(12,2)", "does not fit into numeric(12,2) without"),
    (pa.array([0.5, None, NAN]), "numeric(12,2)", "is no finite number"),
    (pa.array([Decimal("1.50"), None, Decimal("1.505")]), "numeric(12,2)", "without rounding"),
    (pa.array([1, None, 100]), "numeric(4,2)", "does not fit into numeric(4,2)"),
    (pa.array(["1", None, "1.005"]), "numeric(12,2)", "without rounding"),
    (pa.array(["1", None, "one"]), "numeric", "is not a number"),
    (pa.array(["1", None, "1; DROP TABLE t"]), "numeric", "is not a number"),
    (pa.array(["100", None, "150"]), "numeric(5,-2)", "without rounding"),
    (pa.array(["0.001", None, "0.0000001"]), "numeric(3,6)", "without rounding"),
    (pa.array([1.25, None, 1.125]), "numeric(100,2)", "without rounding"),
    (pa.array(["a", None, "b\0"]), "text", "contains a NUL"),
    (pa.array(["a", None, "b\0"], pa.large_string()), "varchar(9)", "contains a NUL"),
    (pa.array(["{}", None, '"\0"']), "json", "contains a NUL"),
    (pa.array(["a", None, "b\0"]), "inet", "contains a NUL"),
    (pa.array(["héé", None, "abcd"]), "varchar(3)", "is longer than character varying(3)"),
    (pa.array(["a", None, "ab"]), "char", "is longer than character"),
    (pa.array([{"a": 1.0}, None, {"a": NAN}]), "jsonb", "holds NaN"),
    (pa.array([{"a": b""}, None, {"a": b"x"}]).slice(1), "jsonb", "holds a bytes"),
    (
        pa.array([[("a", 1)], None, [("a", 1), ("a", 2)]], MAP),
        "jsonb",
        "has a key twice",
    ),
    (pa.array([[], None, [(1, 2)]], pa.map_(pa.int8(), pa.int8())), "jsonb", "key of type int"),
    (pa.array([str(ID), None, str(ID)[:-1]]), "uuid", "is not a UUID"),
    (pa.array(["2024-02-29", None, "2023-02-29"]), "date", "is not a date written YYYY-MM-DD"),
    (pa.array(["2024-02-29", None, "29.02.2024"]), "date", "is not a date written YYYY-MM-DD"),
    (pa.array([dt.datetime(2024, 2, 29), None, NOON]), "date", "has a time of day"),
    (pa.array([0, None, -(2**31)], pa.int32()).cast(pa.date32()), "date", "out of the range"),
    (pa.array([0, None, 2**31 - 1], pa.int32()).cast(pa.date32()), "date", "out of the range"),
    (pa.array([0, None, 1], pa.time64("ns")), "time", "has nanoseconds"),
    (pa.array([0, None, 1], pa.time64("us")), "time(3)", "would be rounded by time(3)"),
    (pa.array(["10:00", None, "10 o'clock"]), "time", "is not a time written HH:MM:SS"),
    (pa.array(["10:00", None, "10:00:00.1234567"]), "time", "at most 6 digits"),
    (pa.array(["10:00:00.120", None, "10:00:00.123"]), "time(2)", "at most 2 digits"),
    (pa.array([0, None, 1], pa.timestamp("ns")), "datetime", "has nanoseconds"),
    (pa.array([0, None, 1], pa.timestamp("ns", "UTC")), "timestamptz", "has nanoseconds"),
    (pa.array([0, None, 1], pa.timestamp("us")), "timestamp(3)", "would be rounded by"),
    (pa.array([0, None, 2**60], pa.timestamp("s")), "datetime", "is out of the range"),
    (pa.array([0, None, -(2**63)], pa.timestamp("us")), "datetime", "is out of the range"),
    (pa.array(["2024-02-29", None, "today"]), "datetime", "is not a timestamp written"),
    (pa.array(["2024-02-29", None, "2024-02-29T00:00Z"]), "datetime", "without an offset"),
    (pa.array(["2024-02-29T00:00Z", None, "2024-02-29"]), "timestamptz", "with an offset"),
    (pa.array([0, None, 1], pa.duration("ns")), "interval", "has nanoseconds"),
    (pa.array([0, None, 2**60], pa.duration("s")), "interval", "is out of the range"),
    (pa.array([[1, 2], None, [1, 2**31]]), "int[]", "an element does not fit into integer"),
    (pa.array([["a"], None, ["b", "c\0"]]), "text[]", "an element contains a NUL"),
    (pa.array([["a"], None, ["b", "long"]]), "varchar(3)[]", "an element is longer than"),
    (pa.array([1, None, 2**31]).dictionary_encode(), "int", "does not fit into integer"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("array", "declared", "reason"),
    [pytest.param(*case, id=f"{case[0].type} to {case[1]}: {case[2]}") for case in REFUSED],
)
def test_a_value_that_does_not_fit_is_refused_with_its_row_and_not_shown(array, declared, reason):
    field = pa.field("the column", array.type)

    with pytest.raises(BadValue) as refused:
        fit(array, field, parse_type(declared), first_row=1000)

    last = 1000 + len(array) - 1
    assert (refused.value.column, refused.value.row) == ("the column", last)
    assert reason in str(refused.value)
    chained = refused.value.__context__
    assert chained is None or refused.value.__suppress_context__  # Arrow's own quotes the value


@pytest.mark.parametrize("rows", [1, 2, 3, 1000])
def test_the_row_named_is_the_first_that_does_not_fit(rows):
    for bad in {0, rows // 2, rows - 1}:
        texts = ["1"] * bad + ["x"] * (rows - bad)
        with pytest.raises(BadValue) as refused:
            fit(pa.array(texts), pa.field("c", pa.string()), parse_type("int"))
        assert refused.value.row == bad


def test_the_row_of_an_element_is_that_of_its_list():
    lists = pa.array([[], None, ["1", "2"], [], ["3"], ["x"]])

    with pytest.raises(BadValue) as refused:
        fit(lists, pa.field("c", lists.type), parse_type("int[]"))

    assert refused.value.row == 5


def test_a_nul_is_found_in_a_slice_and_only_there():
    texts = pa.array(["a\0", "b", "c\0"])
    field = pa.field("c", pa.string())

    assert fit(texts.slice(1, 1), field, parse_type("text")).to_pylist() == ["b"]
    with pytest.raises(BadValue) as refused:
        fit(texts.slice(1), field, parse_type("text"))
    assert refused.value.row == 1


# --- types that never fit -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "declared", "remedy"),
    [
        (pa.array([1.0]), "bool", "astype(bool)"),
        (pa.array([1]), "text", "Only text is stored as text"),
        (pa.array([True]), "text", "Only text is stored as text"),
        (pa.array([b"a"]), "text", "Only text is stored as text"),
        (pa.array([dt.date(2024, 1, 1)]), "text", "Only text is stored as text"),
        (as_extension(pa.uuid(), [ID.bytes]), "text", "Only text is stored as text"),
        (pa.array([["a"]]), "text", "Only text is stored as text"),
        (pa.array([True]), "float", "astype(float)"),
        (pa.array([True]), "numeric", "Convert it in the asset"),
        (pa.array([dt.date(2024, 1, 1)]), "int", "Convert it in the asset"),
        (pa.array([0], pa.duration("s")), "bigint", "Convert it in the asset"),
        (pa.array([0], pa.timestamp("us")), "float", "Convert it in the asset"),
        (pa.array(["a"]), "bytea", "str.encode('utf-8')"),
        (pa.array([1]), "jsonb", "Return JSON text, dicts or lists"),
        (pa.array([1]), "uuid", "uuid.UUID"),
        (pa.array([b"a" * 15], pa.binary(15)), "uuid", "uuid.UUID"),
        (pa.array([1.0]), "geometry", "WKB"),
        (pa.array([0]), "date", "dt.date"),
        (pa.array([0], pa.timestamp("us", "UTC")), "date", "dt.date"),
        (pa.array([0]), "time", "dt.time"),
        (pa.array([0], pa.timestamp("us", "UTC")), "datetime", "dt.tz_localize(None)"),
        (pa.array([0], pa.timestamp("us")), "timestamptz", "dt.tz_localize(...)"),
        (pa.array([dt.date(2024, 1, 1)]), "timestamptz", "dt.tz_localize(...)"),
        (pa.array([1]), "interval", "timedelta"),
        (pa.array([1.5]), "inet", "text form of inet"),
        (pa.array([1]), "int[]", "Return a list in each row"),
        (pa.array([[1]]), "int", "Convert it in the asset"),
        (pa.array([[[1]]]), "int[]", "Convert it in the asset"),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else None,
)
def test_a_type_that_never_fits_is_a_conflict_with_both_sides_and_a_remedy(array, declared, remedy):
    with pytest.raises(SchemaConflict) as refused:
        fit(array, pa.field("c", array.type), parse_type(declared))

    assert "column 'c' is " in str(refused.value)
    assert " in the table and " in str(refused.value)
    assert remedy in str(refused.value)


def test_geometry_goes_into_columns_for_geometry_only():
    array, field = pa.array([POINT]), pa.field("g", pa.binary(), metadata=WKB)

    assert encoded(array, "geometry", field=field).to_pylist() == [POINT]
    assert encoded(array, "bytea", field=field).to_pylist() == [POINT]
    with pytest.raises(SchemaConflict, match="Declare the column as geometry"):
        fit(array, field, parse_type("uuid"))


# --- the text form --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "declared", "texts"),
    [
        (pa.array([True, None, False]), "bool", ["true", None, "false"]),
        (pa.array([1, None]), "int", ["1", None]),
        (pa.array([0.1, NAN, -INF]), "float", ["0.1", "nan", "-inf"]),
        (pa.array([0.1, NAN, None]), "numeric", ["0.1", "nan", None]),
        (pa.array([Decimal("1.50")], pa.decimal256(50, 2)), "numeric", ["1.50"]),
        (pa.array(["1.50", " 7 ", "-Infinity"]), "numeric", ["1.50", " 7 ", "-Infinity"]),
        (pa.array([2**64 - 1], pa.uint64()), "numeric(50,2)", ["18446744073709551615.00"]),
        (pa.array([Decimal("1.230"), Decimal(7)]), "numeric(100,2)", ["1.230", "7.000"]),
        (pa.array(["a\tb\\", "", None]), "text", ["a\tb\\", "", None]),
        (pa.array([b"\0\xff", None]), "bytea", [r"\x00ff", None]),
        (pa.array([POINT]), "geometry", [POINT.hex()]),
        (pa.array(["POINT(1 2)"]), "geometry", ["POINT(1 2)"]),
        (pa.array([str(ID), f"{{{ID}}}", None]), "uuid", [str(ID), f"{{{ID}}}", None]),
        (as_extension(pa.uuid(), [ID.bytes]), "uuid", [ID.hex]),
        (pa.array([dt.date(2024, 2, 29)]), "date", ["2024-02-29"]),
        (pa.array(["24:00:00", "10:00"]), "time", ["24:00:00", "10:00"]),
        (pa.array([dt.time(1, 2, 3, 4)]), "time", ["01:02:03.000004"]),
        (pa.array([NOON]), "datetime", ["2024-02-29 12:00:00.123456"]),
        (
            pa.array([NOON], pa.timestamp("us", "UTC")).cast(pa.timestamp("us", "Asia/Tokyo")),
            "timestamptz",
            ["2024-02-29 12:00:00.123456+00"],
        ),
        (pa.array([-1500], pa.duration("ms")), "interval", ["-1500000 microseconds"]),
        (
            pa.array([pa.MonthDayNano([1, -2, 3000]), None]),
            "interval",
            ["1 months -2 days 3 microseconds", None],
        ),
        (pa.array(["10.0.0.0/8", None]), "inet", ["10.0.0.0/8", None]),
        (pa.array([7, None]), "oid", ["7", None]),
        (pa.array([Decimal("1.50")]), "money", ["1.50"]),
        (pa.array(["{1,NULL}", None]), "int[]", ["{1,NULL}", None]),
        (pa.array([[1, None], None, []]), "int[]", ['{"1",NULL}', None, "{}"]),
        (
            pa.array([["NULL", None, 'a,b"', "\\", "{}", ""]]),
            "varchar(9)[]",
            ['{"NULL",NULL,"a,b\\"","\\\\","{}",""}'],
        ),
        (pa.array([[b"\xff"]]), "bytea[]", ['{"\\\\xff"}']),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else None,
)  # fmt: skip
def test_the_text_form_is_what_the_types_input_function_reads(array, declared, texts):
    assert rendered(array, declared) == texts


@pytest.mark.parametrize(
    ("array", "value"),
    [
        (pa.array([{"a": 1, "b": [None, "ü"]}]), {"a": 1, "b": [None, "ü"]}),
        (pa.array([[{"a": 1}, None]]), [{"a": 1}, None]),
        (pa.array([[[1], []]]), [[1], []]),
        (pa.array([[("a", 1), ("b", None)]], MAP), {"a": 1, "b": None}),
        (pa.array([{"m": [("a", 1)]}], pa.struct({"m": MAP})), {"m": {"a": 1}}),
        (pa.array([[[("a", 1)], None]], pa.list_(MAP)), [{"a": 1}, None]),
        (pa.array([{"at": NOON, "on": NOON.date()}]), {"at": NOON.isoformat(), "on": "2024-02-29"}),
        (pa.array([{"n": Decimal("1.50")}]), {"n": 1.5}),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else None,
)  # fmt: skip
def test_nested_values_become_json(array, value):
    [text] = rendered(array, "jsonb")

    assert json.loads(text or "") == value
    assert encoded(array, "jsonb").to_pylist() == [b"\x01" + (text or "").encode()]


def test_a_row_that_is_null_is_not_the_json_null():
    nested = pa.array([None, {"a": None}], pa.struct({"a": pa.int8()}))

    assert rendered(nested, "jsonb") == [None, '{"a":null}']


def test_arrays_are_only_copied_where_their_form_changes():
    numbers, texts = pa.array([1, 2]), pa.array(["a"], pa.large_string())

    assert encoded(numbers, "bigint").buffers()[1].address == numbers.buffers()[1].address
    assert encoded(texts, "text").buffers()[2].address == texts.buffers()[2].address
    assert pat.is_large_string(encoded(pa.array(["a"]), "text").type)
