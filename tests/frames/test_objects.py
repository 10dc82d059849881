from __future__ import annotations

import datetime as dt
import decimal
import enum
import ipaddress
import pathlib
import uuid
from decimal import Decimal
from random import Random
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from dagster_tools.errors import BadValue
from dagster_tools.frames import objects

TOKYO = dt.timezone(dt.timedelta(hours=9))
ID = uuid.UUID("12345678-1234-5678-1234-567812345678")


class Colour(enum.Enum):
    RED = "red"


class Word(str, enum.Enum):
    RED = "red"


def encode(values, hint=None):
    return objects.to_arrow(values, hint).data


def round_trip(values, hint=None):
    encoded = objects.to_arrow(values, hint)
    return objects.from_arrow(encoded.data, encoded.postgresql_type)


@pytest.mark.parametrize(
    ("values", "type_"),
    [
        ([True, None, False], pa.bool_()),
        ([1, None, -(2**63)], pa.int64()),
        ([2**53 + 1, None], pa.int64()),
        ([1.5, None], pa.float64()),
        ([1, 1.5], pa.float64()),
        ([2**70, 1, None], pa.decimal128(22, 0)),
        ([2**64 - 1], pa.decimal128(20, 0)),
        ([-(10**40)], pa.decimal256(41, 0)),
        ([Decimal("10.00"), None, Decimal("1.5")], pa.decimal128(4, 2)),
        ([Decimal("1.5"), 2], pa.decimal128(2, 1)),
        ([Decimal("1" * 60)], pa.decimal256(60, 0)),
        (["", None, "a\0b", "🦆"], pa.string()),
        ([b"\0\xff", None, b""], pa.binary()),
        ([dt.date(1, 1, 1), None, dt.date(9999, 12, 31)], pa.date32()),
        ([dt.datetime(1, 1, 1), None, dt.datetime.max], pa.timestamp("us")),
        ([dt.time(23, 59, 59, 999999), None], pa.time64("us")),
        ([dt.timedelta(-1, 3), None], pa.duration("us")),
        ([ID, None], pa.uuid()),
        ([{"b": 1, "a": None}, None, {}], pa.json_()),
        ([[1, None], [], None], pa.list_(pa.int64())),
        ([["NULL", None, "a,b", 'q"', "\\"]], pa.list_(pa.string())),
        ([[ID], []], pa.list_(pa.uuid())),
        ([[dt.date(2024, 1, 1)]], pa.list_(pa.date32())),
        ([[{"a": 1}], [None], None], pa.json_()),
        ([[[{"a": 1}]], {"b": 2}], pa.json_()),
        ([None, None], pa.null()),
        ([], pa.null()),
    ],
)
def test_objects_of_one_family_come_back_as_they_went(values, type_):
    assert encode(values).type == type_
    assert round_trip(values) == values


@pytest.mark.parametrize("missing", [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT])
@pytest.mark.parametrize(
    "value", [True, 2**53 + 1, 1.5, Decimal(1), "a", b"a", dt.date(2024, 1, 1), ID, {"a": 1}, [1]]
)
def test_every_way_to_say_missing_is_null(missing, value):
    assert round_trip([missing, value, missing]) == [None, value, None]


def test_nothing_but_missing_values_has_no_type_of_its_own():
    assert encode([float("nan"), None, pd.NA]).type == pa.null()
    assert encode([float("nan"), float("nan")]).type == pa.null()


@pytest.mark.parametrize(
    ("values", "type_", "expected"),
    [
        ([np.int8(1), 5, np.uint64(7)], pa.int64(), [1, 5, 7]),
        ([np.float32(0.5), 2.0], pa.float64(), [0.5, 2.0]),
        ([np.bool_(True), False], pa.bool_(), [True, False]),
        ([np.str_("a"), Word.RED], pa.string(), ["a", "red"]),
        ([bytearray(b"a"), memoryview(b"b")], pa.binary(), [b"a", b"b"]),
        ([(1, 2), [3]], pa.list_(pa.int64()), [[1, 2], [3]]),
        ([np.array([1, 2]), None], pa.list_(pa.int64()), [[1, 2], None]),
        ([np.array([0.5], "f4")], pa.list_(pa.float32()), [[0.5]]),
        ([np.array([0.5], "f2")], pa.list_(pa.float64()), [[0.5]]),
        ([np.array([0.5], ">f8")], pa.list_(pa.float64()), [[0.5]]),
        ([np.array([1.0]), [2]], pa.list_(pa.float64()), [[1.0], [2.0]]),
        ([np.array(["a", None], dtype=object)], pa.list_(pa.string()), [["a", None]]),
        ([np.datetime64("2024-01-01T00:00:00", "s"), None], pa.timestamp("s"), None),
        ([np.timedelta64(1, "D"), None], pa.duration("s"), [dt.timedelta(1), None]),
    ],
)
def test_relatives_of_pythons_types_are_what_they_stand_for(values, type_, expected):
    assert encode(values).type == type_
    if expected is not None:
        assert round_trip(values) == expected


@pytest.mark.parametrize(
    "values",
    [
        [Decimal("NaN"), Decimal("1.50"), None],
        [Decimal("Infinity"), Decimal("-Infinity")],
        [Decimal("1" * 80)],
        [Decimal("1e-60"), Decimal("1e20")],
        [2**300, None],
    ],
)
def test_decimals_that_arrow_lacks_are_exact_text_marked_numeric(values):
    encoded = objects.to_arrow(values)

    assert encoded.data.type == pa.string()
    assert encoded.postgresql_type == "numeric"
    assert str(round_trip(values)) == str([v if v is None else Decimal(v) for v in values])


def test_several_zones_are_the_same_instants_in_utc():
    berlin = pd.Timestamp("2024-01-01", tz="Europe/Berlin")
    values = [dt.datetime(2024, 1, 1, tzinfo=TOKYO), berlin, None]

    data = encode(values)

    assert data.type == pa.timestamp("us", tz="UTC")
    assert data.to_pylist() == values


def test_an_instant_before_year_one_in_utc_is_still_an_instant():
    data = encode([dt.datetime(1, 1, 1, tzinfo=TOKYO)])

    assert data.cast(pa.int64()).to_pylist() == [(-719_162 * 86_400 - 9 * 3_600) * 10**6]


@pytest.mark.parametrize("zone", [None, dt.timezone.utc, TOKYO, ZoneInfo("Europe/Berlin")])
def test_datetimes_are_the_moments_that_arrow_takes_them_for(zone):
    random = Random(7)
    second_of_the_last_year = 366 * 86_400 - 1
    values = [
        dt.datetime(random.randint(2, 9998), 1, 1, tzinfo=zone, fold=random.randint(0, 1))
        + dt.timedelta(seconds=random.randint(0, second_of_the_last_year), microseconds=n)
        for n in range(1_000)
    ]

    assert encode([None, *values]) == pa.array(
        [None, *values], pa.timestamp("us", None if zone is None else "UTC")
    )


def test_nanoseconds_of_a_pandas_timestamp_are_kept():
    stamp = pd.Timestamp("2024-01-01 00:00:00.123456789")

    data = encode([stamp, dt.datetime(2024, 1, 1)])

    assert data.type == pa.timestamp("ns")
    assert data[0].as_py() == stamp


def test_nanoseconds_of_a_pandas_timedelta_are_kept():
    data = encode([pd.Timedelta(1, "ns"), dt.timedelta(1)])

    assert data.cast(pa.int64()).to_pylist() == [1, 86_400 * 10**9]


@pytest.mark.parametrize(
    ("values", "row", "reason"),
    [
        ([None, 1, "secret"], 2, "holds a str after int values"),
        (["a", "b", 1], 2, "holds a int after str values"),
        (["a", 1.5], 1, "holds a float after str values"),
        ([True, 1], 1, "holds a int after bool values"),
        (["a", b"b"], 1, "holds a bytes after str values"),
        ([Decimal(1), 1.5], 1, "holds a float after decimal.Decimal values"),
        ([dt.date(2024, 1, 1), dt.datetime(2024, 1, 1)], 1, "datetime.datetime after"),
        ([dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 1, tzinfo=TOKYO)], 1, "mixes datetimes"),
        ([None, pd.Timestamp(np.datetime64("20000-01-01", "s"))], 1, "outside the years"),
        ([pd.Timestamp("2024-01-01 00:00:00.000000001"), dt.datetime(1, 1, 1)], 1, "in ns"),
        ([None, dt.time(1, tzinfo=TOKYO)], 1, "time zone"),
        ([dt.timedelta.max], 0, "longer than"),
        ([1.5, 2**53 + 1], 1, "cannot hold exactly"),
        (["a", "\ud800"], 1, "surrogate"),
        ([Decimal("sNaN")], 0, "signalling"),
        ([None, 1j], 1, "complex.*two columns"),
        ([np.complex128(1j)], 0, "two columns"),
        ([np.longdouble(1)], 0, "float64"),
        ([pd.Period("2024-01")], 0, "to_timestamp"),
        ([pd.Interval(0, 1)], 0, "bounds"),
        ([pd.DateOffset(days=1)], 0, "timedelta"),
        ([{1, 2}], 0, "make it a list"),
        ([frozenset()], 0, "make it a list"),
        ([pathlib.PurePosixPath("a")], 0, r"str\(\)"),
        ([Colour.RED], 0, r"\.value"),
        ([ipaddress.ip_address("::1")], 0, "inet"),
        ([ipaddress.ip_network("10.0.0.0/8")], 0, "inet"),
        ([object()], 0, "holds a object"),
        ([{"a": 1}, {1: 2}], 1, "key of type int"),
        ([{"a": "x\0"}], 0, "NUL"),
        ([None, {"a": "\ud800"}], 1, "surrogate"),
        ([{"a": float("nan")}], 0, "NaN"),
        ([[1], [2, "a"]], 1, "in a list: holds a str after int"),
        ([[1], None, [], [b"a", "a"]], 3, "in a list: holds a bytes after int"),
        ([[], ["a", "\ud800"]], 1, "surrogate"),
        ([[1], [[2]]], 1, "lists of lists"),
        ([np.zeros((2, 2))], 0, "lists of lists"),
        ([np.array(1)], 0, "without a dimension"),
        ([[Decimal("NaN")]], None, "list of Decimals"),
    ],
)
def test_a_value_that_no_column_holds_is_refused_with_its_row(values, row, reason):
    with pytest.raises(BadValue, match=reason) as caught:
        objects.to_arrow(values)

    assert caught.value.row == row
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": 1}, '{"a":1}'),
        ([1, "a", [2]], '[1,"a",[2]]'),
        (1, "1"),
        (True, "true"),
        (1.5, "1.5"),
        ("null", "null"),
        ('"a"', '"a"'),
        ('{"a": 1.50}', '{"a": 1.50}'),
        (dt.date(2024, 1, 1), '"2024-01-01"'),
        (None, None),
        (float("nan"), None),
        (pd.NA, None),
    ],
)
def test_with_a_json_hint_everything_is_json_and_text_is_json_text(value, text):
    data = encode([value, {"b": 2}], pa.json_())

    assert data.type == pa.json_()
    assert data.storage.to_pylist() == [text, '{"b":2}']


def test_with_a_json_hint_text_that_is_no_json_is_refused():
    with pytest.raises(BadValue, match=r"json\.dumps") as caught:
        encode([{"a": 1}, "secret"], pa.json_())

    assert caught.value.row == 1
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "hint", [pa.json_(), pa.uuid(), pa.string(), pa.list_(pa.uuid()), pa.decimal128(5, 2)]
)
def test_a_column_without_values_takes_the_hinted_type(hint):
    assert encode([None, pd.NaT], hint).type == hint
    assert encode([], hint).type == hint


def test_a_list_column_without_elements_takes_the_hinted_type():
    hint = pa.list_(pa.decimal128(5, 2))

    data = encode([[], None, [None]], hint)

    assert data.type == hint
    assert data.to_pylist() == [[], None, [None]]


def test_a_hint_does_not_turn_values_into_another_type():
    assert encode(["1"], pa.int64()).type == pa.string()
    assert encode([1], pa.string()).type == pa.int64()


def test_lists_of_numeric_text_and_json_come_back_as_objects():
    numeric = pa.array([["1.50", None], None, []], pa.list_(pa.string()))
    json = pa.ListArray.from_arrays(
        [0, 1], pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a":1}']))
    )

    assert objects.from_arrow(numeric, "numeric(5,2)[]") == [[Decimal("1.50"), None], None, []]
    assert objects.from_arrow(json, "jsonb[]") == [[{"a": 1}]]


def test_a_slice_of_lists_gives_its_own_elements_only():
    data = pa.array([["1"], ["2", "3"], None, ["4"]], pa.list_(pa.string())).slice(1, 2)

    assert objects.from_arrow(data, "numeric[]") == [[Decimal(2), Decimal(3)], None]


def test_the_decimal_context_of_the_user_changes_nothing():
    with decimal.localcontext() as context:
        context.prec = 2
        assert round_trip([Decimal("123.456"), 2**70]) == [Decimal("123.456"), Decimal(2**70)]
