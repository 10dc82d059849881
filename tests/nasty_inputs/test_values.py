"""The nasty inputs 47 to 98: numbers, text, bytes, JSON, nested values and times."""

from __future__ import annotations

import datetime as dt
import enum
import ipaddress
import pathlib
import uuid
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from dagster_tools.errors import BadValue, DagsterToolsError, SchemaConflict
from tests.nasty_inputs.cases import Case, check, each_library
from tests.pipelines import manager_for, store

INF, NAN = float("inf"), float("nan")
BERLIN = ZoneInfo("Europe/Berlin")
UTC = dt.timezone.utc
ONLY_PANDAS: dict[str, Any] = {"polars": None, "arrow": None}
ONLY_ARROW: dict[str, Any] = {"polars": None, "pandas": None}
AS_TEXT = (pa.Table, pl.DataFrame)
"""Classes that JSON is text in, and so finds its way back into any column."""


class Mood(enum.Enum):
    SAD = "sad"


def extremes(row: int, name: str, type_: str) -> Case:
    """Return the least and the greatest value of an integer type."""
    least, greatest = int(np.iinfo(name).min), int(np.iinfo(name).max)
    return Case(
        row, name, [least, greatest, None], type_, [str(least), str(greatest), None],
        pandas=name.replace("i", "I", 1).replace("uI", "UI"),
        polars=getattr(pl, name.replace("i", "I", 1).replace("uI", "UI")),
        arrow=getattr(pa, name)(),
    )  # fmt: skip


NUMBERS = [
    extremes(47, "int8", "smallint"),
    extremes(47, "int16", "smallint"),
    extremes(47, "int32", "integer"),
    extremes(47, "int64", "bigint"),
    extremes(48, "uint8", "smallint"),
    extremes(48, "uint16", "integer"),
    extremes(48, "uint32", "bigint"),
    Case(
        49, "uint64 that a bigint holds", [2**63 - 1, 0], "numeric(20,0)", [str(2**63 - 1), "0"],
        pandas="uint64", polars=pl.UInt64, arrow=pa.uint64(),
    ),
    extremes(50, "uint64", "numeric(20,0)"),
    Case(
        50, "uint64 beyond the declared bigint", [0, 2**63], error=BadValue, at=1,
        match="does not fit into bigint", declared="bigint",
        pandas="uint64", polars=pl.UInt64, arrow=pa.uint64(),
    ),
    Case(
        51, "large Python integers", [2**63, None, -(2**63) - 1], "numeric",
        [str(2**63), None, str(-(2**63) - 1)], pandas=object, polars=pl.Object, arrow=None,
    ),
    Case(
        51, "128 bits", [2**126, None], "numeric", [str(2**126), None],
        pandas=None, polars=pl.Int128, arrow=None,
    ),
    Case(
        52, "integers that floats lack", [2**53 + 1, None], "bigint", [str(2**53 + 1), None],
        pandas="Int64", polars=pl.Int64, arrow=pa.int64(),
    ),
    Case(53, "nullable booleans", [True, None, False], "boolean", ["true", None, "false"],
         pandas="boolean", polars=pl.Boolean, arrow=pa.bool_()),
    Case(53, "objects of booleans", [True, None], "boolean", ["true", None],
         pandas=object, polars=pl.Object, arrow=None),
    Case(54, "booleans declared int", [True, False], "integer", ["1", "0"], declared="int"),
    Case(54, "0 and 1 declared bool", [0, 1], "boolean", ["false", "true"], declared="bool"),
    Case(54, "2 declared bool", [0, 2], error=BadValue, at=1, match="neither 0 nor 1",
         declared="bool"),
    Case(55, "NaN in pandas", [NAN, None, 1.5], "double precision", [None, None, "1.5"],
         pandas="float64", polars=None, arrow=None),
    Case(55, "NaN elsewhere", [NAN, None, 1.5], "double precision", ["NaN", None, "1.5"],
         pandas=None, reread=(pa.Table, pl.DataFrame)),
    Case(56, "edges of floats", [INF, -INF, -0.0, 5e-324, 1.797e308], "double precision",
         ["Infinity", "-Infinity", "-0", "5e-324", "1.797e+308"]),
    Case(57, "float32", [0.1, 3.4e38], "real", ["0.1", "3.4e+38"],
         pandas="float32", polars=pl.Float32, arrow=pa.float32()),
    Case(57, "float16", np.array([0.5, 65504.0], "float16"), "real", ["0.5", "65504"],
         pandas="float16", polars=None, arrow=pa.float16()),
    Case(58, "too large for real", [1.0, 1e39], error=BadValue, at=1, match="real",
         declared="real"),
    Case(59, "complex", [1j], error=BadValue, match="real and the imaginary part", **ONLY_PANDAS),
    Case(60, "decimals of several scales", [Decimal("1.5"), Decimal("-0.125"), None, Decimal(10)],
         "numeric", ["1.500", "-0.125", None, "10.000"]),
    Case(61, "Decimal NaN and Infinity", [Decimal("NaN"), Decimal("Infinity"), Decimal("1.50")],
         "numeric", ["NaN", "Infinity", "1.50"], pandas=object, polars=pl.Object, arrow=None),
    Case(61, "a Decimal that signals", [Decimal("sNaN")], error=BadValue, at=0,
         match="signalling", pandas=object, polars=pl.Object, arrow=None),
    Case(61, "Infinity in a scale", [Decimal(1), Decimal("Infinity")], error=BadValue, at=1,
         match=r"numeric\(5,2\)", declared="numeric(5,2)",
         pandas=object, polars=pl.Object, arrow=None),
    Case(62, "131,073 digits", [Decimal(1), Decimal(10) ** 131_072], error=DagsterToolsError, at=1,
         match="numeric", declared="numeric", pandas=object, polars=pl.Object, arrow=None),
    Case(63, "what a scale would round", [Decimal("1.25"), Decimal("123.456")], error=BadValue,
         at=1, match="without rounding", declared="numeric(5,2)"),
    Case(63, "what a precision cuts", [Decimal("1.00"), Decimal(1000)], error=BadValue, at=1,
         match=r"does not fit into numeric\(5,2\)", declared="numeric(5,2)"),
    Case(64, "decimal128", [Decimal("1234567890123456789012345678.0123456789"), None], "numeric",
         ["1234567890123456789012345678.0123456789", None],
         polars=pl.Decimal(38, 10), arrow=pa.decimal128(38, 10)),
    Case(64, "decimal256", [Decimal("9" * 70 + ".000001")], "numeric", ["9" * 70 + ".000001"],
         polars=None, arrow=pa.decimal256(76, 6)),
    Case(65, "categories of text", ["a", None, "b"], "text", ["a", None, "b"], pandas="category",
         polars=pl.Categorical, arrow=pa.dictionary(pa.int8(), pa.string())),
    Case(65, "categories of integers", [2, None, 1], "bigint", ["2", None, "1"],
         pandas=pd.CategoricalDtype([1, 2, 3]), polars=None,
         arrow=pa.dictionary(pa.int8(), pa.int64())),
    Case(65, "unused and ordered categories", ["a", None], "text", ["a", None],
         pandas=pd.CategoricalDtype(["c", "a"], ordered=True), polars=pl.Enum(["c", "a"]),
         arrow=None),
]  # fmt: skip

ODD_TEXT = ["", None, "NULL", "\\N", "\\.", "a\tb\r\nc", "\\", "'\"", ",", "🦆", "\U0010ffff",
            "e\u0301", " x "]  # fmt: skip
HALF = "a\ud800"
JSON_TEXT = [None, '{"a": null, "b": [1, {"c": 0.5}]}', "{}"]

TEXT = [
    Case(66, "empty, NULL and what looks like it", ODD_TEXT[:4], "text", list(ODD_TEXT[:4])),
    Case(67, "the end of COPY's text", ["\\.", "after"], "text", ["\\.", "after"]),
    Case(67, "the same where the COPY is text", ["(,)", None], "int4range", ["(,)", None],
         declared="int4range", reread=()),
    Case(68, "characters with a meaning", ODD_TEXT, "text", list(ODD_TEXT)),
    Case(69, "NUL in text", ["ok", "a\0b"], error=BadValue, at=1, match="NUL"),
    Case(70, "half a surrogate pair", ["ok", HALF], error=BadValue, at=1, match="surrogate",
         pandas=object, polars=pl.Object, arrow=None),
    Case(72, "bytes", [b"\0\xff", b"", None], "bytea", ["\\x00ff", "\\x", None]),
    Case(72, "bytearray and memoryview", [bytearray(b"\1"), memoryview(b"\2")], "bytea",
         ["\\x01", "\\x02"], pandas=object, polars=pl.Object, arrow=None),
    Case(73, "bytes in a column of text", [b"x"], error=SchemaConflict, declared="text",
         match="is text in the table and .*binary in the frame"),
    Case(74, "integers and text", [1, "x"], error=BadValue, at=1, match="a str after int values",
         pandas=object, polars=pl.Object, arrow=None),
    Case(74, "integers and text declared text", [1, "x"], error=BadValue, at=1, declared="text",
         match="a str after int values", pandas=object, polars=pl.Object, arrow=None),
    Case(75, "dicts of any shape", [{"a": None, "b": [1, {"c": 0.5}]}, {}, None, {"z": 1}], "jsonb",
         ['{"a": null, "b": [1, {"c": 0.5}]}', "{}", None, '{"z": 1}'],
         pandas=object, polars=pl.Object, arrow=None),
    Case(75, "floats that jsonb has no exponent for", [{"a": [1e23, -1.7976931348623157e308]}],
         "jsonb", [f'{{"a": [1{"0" * 23}.0, -17976931348623157{"0" * 292}.0]}}'],
         pandas=object, polars=pl.Object, arrow=None),
    Case(75, "dicts and lists", [{"a": 1}, [1, [2]]], "jsonb", ['{"a": 1}', "[1, [2]]"],
         pandas=object, polars=pl.Object, arrow=None),
    Case(75, "JSON text declared jsonb", [*JSON_TEXT, '{"k": 1, "k": 2}'], "jsonb",
         [*JSON_TEXT, '{"k": 2}'], declared="jsonb"),
    Case(76, "NUL in JSON", [{"a": "x"}, {"a": "b\0"}], error=BadValue, at=1, match="NUL",
         pandas=object, polars=pl.Object, arrow=None),
    Case(77, "NaN in JSON", [{}, {"a": NAN}], error=BadValue, at=1, match="NaN",
         pandas=object, polars=pl.Object, arrow=None),
    Case(77, "half a surrogate pair in JSON", [{}, {"a": HALF}], error=BadValue, at=1,
         match="surrogate", pandas=object, polars=pl.Object, arrow=None),
    Case(77, "text that is no JSON", ["{}", "{"], error=BadValue, at=1, match="(?i)json",
         declared="jsonb"),
    Case(78, "null and NULL", ["null", None, '{"a":null}'], "jsonb", ["null", None, '{"a": null}'],
         declared="jsonb", reread=AS_TEXT),
    Case(79, "lists of integers", [[1, None], [], None], "bigint[]", ["{1,NULL}", "{}", None]),
    Case(79, "lists of odd text", [["NULL", None, "a,b", 'q"', "\\", ""]], "text[]",
         ['{"NULL",NULL,"a,b","q\\"","\\\\",""}']),
    Case(79, "lists of decimals", [[Decimal("1.50"), None]], "numeric[]", ["{1.50,NULL}"]),
    Case(79, "lists of times", [[dt.datetime(2024, 1, 1)]], "timestamp without time zone[]",
         ['{"2024-01-01 00:00:00"}']),
    Case(80, "lists of lists", [[[1], []], None], error=BadValue, at=0, match='"jsonb"',
         polars=pl.Object, arrow=None),
    Case(80, "lists of lists of one type", [[[1], []], None], "jsonb", ["[[1], []]", None],
         pandas=None, reread=AS_TEXT),
    Case(80, "lists of lists declared jsonb", [[[1], []], None], "jsonb", ["[[1], []]", None],
         declared="jsonb", reread=AS_TEXT),
    Case(80, "seven dimensions", [[[[[[[[1]]]]]]]], "jsonb", ["[[[[[[[1]]]]]]]"], declared="jsonb",
         reread=AS_TEXT),
    Case(80, "lists of mixed types", [["a", 1]], error=BadValue, at=0, match="in a list",
         polars=pl.Object, arrow=None),
    Case(81, "arrays of numpy", [np.array([1, 2], "int32"), None], "integer[]", ["{1,2}", None],
         pandas=object, polars=pl.Object, arrow=None),
    Case(81, "sets", [[1], {1}], error=BadValue, at=1, match="holds a set", pandas=object,
         polars=pl.Object, arrow=None),
    Case(81, "tuples", [(1, 2), None], "bigint[]", ["{1,2}", None], polars=pl.Object),
    Case(81, "structs", [{"a": 1, "b": None}, None], "jsonb", ['{"a": 1, "b": null}', None],
         pandas=None),
    Case(82, "UUIDs", [uuid.UUID(int=1), None], "uuid",
         ["00000000-0000-0000-0000-000000000001", None], polars=pl.Object, arrow=None),
    Case(82, "addresses", [ipaddress.ip_address("10.0.0.1")], error=BadValue, at=0,
         match="inet", pandas=object, polars=pl.Object, arrow=None),
    Case(82, "addresses as text", ["10.0.0.1", "fe80::1/64"], "inet", ["10.0.0.1/32", "fe80::1/64"],
         declared="inet", reread=()),
    Case(82, "members of an Enum", [Mood.SAD], error=BadValue, at=0, match=r"\.value or \.name",
         **ONLY_PANDAS),
    Case(82, "paths", [pathlib.PurePosixPath("/a")], error=BadValue, at=0, match="str",
         pandas=object, polars=pl.Object, arrow=None),
]  # fmt: skip

NOON = dt.datetime(2024, 2, 29, 12)
GAP, FOLD = dt.datetime(2024, 3, 31, 2, 30), dt.datetime(2024, 10, 27, 2, 30)
NANO = np.array(["2024-01-01T00:00:00.123456789"], "datetime64[ns]")

TIMES = [
    Case(83, "a time without a zone", [NOON, None], "timestamp without time zone",
         ["2024-02-29 12:00:00", None]),
    Case(83, "a time with a zone", [NOON.replace(tzinfo=BERLIN), None], "timestamp with time zone",
         ["2024-02-29 11:00:00+00", None], polars=pl.Datetime("us", "Europe/Berlin"),
         arrow=pa.timestamp("us", "Europe/Berlin")),
    Case(84, "several zones", [NOON.replace(tzinfo=UTC), NOON.replace(tzinfo=BERLIN)],
         "timestamp with time zone", ["2024-02-29 12:00:00+00", "2024-02-29 11:00:00+00"],
         pandas=object, polars=pl.Object, arrow=None),
    Case(84, "with and without a zone", [NOON, NOON.replace(tzinfo=UTC)], error=BadValue, at=1,
         match="with and without a time zone", pandas=object, polars=pl.Object, arrow=None),
    Case(85, "nanoseconds", NANO, error=BadValue, at=0, match="nanoseconds",
         polars=pl.Datetime("ns"), arrow=pa.timestamp("ns")),
    Case(86, "nanoseconds before midnight", [86_399_999_999_900], error=BadValue, at=0,
         match="nanoseconds", pandas=None, polars=pl.Time, arrow=pa.time64("ns")),
    Case(87, "NaT", [pd.NaT, pd.Timestamp(NOON)], "timestamp without time zone",
         [None, "2024-02-29 12:00:00"], pandas=object, polars=pl.Object, arrow=None),
    Case(88, "NA", [pd.NA, 1], "bigint", [None, "1"], pandas=object, polars=pl.Object, arrow=None),
    Case(89, "scalars of numpy", [np.datetime64("2024-02-29T12:00"), None],
         "timestamp without time zone", ["2024-02-29 12:00:00", None],
         pandas=object, polars=pl.Object, arrow=None),
    Case(89, "spans of numpy", [np.timedelta64(90, "m"), None], "interval", ["01:30:00", None],
         pandas=object, polars=pl.Object, arrow=None),
    Case(90, "the years 1 and 9999", [dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31)],
         "timestamp without time zone", ["0001-01-01 00:00:00", "9999-12-31 00:00:00"],
         pandas="datetime64[us]"),
    Case(90, "years beyond Python's", np.array(["10000-01-01", "-0001-01-01"], "datetime64[s]"),
         "timestamp without time zone", ["10000-01-01 00:00:00", "0002-01-01 00:00:00 BC"],
         pandas="datetime64[s]", polars=None, arrow=pa.timestamp("s")),
    Case(90, "years beyond PostgreSQL's", np.array(["294277-01-01"], "datetime64[s]"),
         error=BadValue, at=0, match="range", pandas="datetime64[s]", polars=None,
         arrow=pa.timestamp("s")),
    Case(91, "the first moment", [dt.datetime(1, 1, 1, tzinfo=UTC)], "timestamp with time zone",
         ["0001-01-01 00:00:00+00"], pandas="datetime64[us, UTC]",
         polars=pl.Datetime("us", "UTC")),
    Case(92, "infinity declared timestamp", ["infinity"], error=BadValue, at=0,
         match="not a timestamp", declared="timestamp"),
    Case(93, "a clock put forward", [GAP.replace(tzinfo=BERLIN)], "timestamp with time zone",
         ["2024-03-31 01:30:00+00"], pandas=object, polars=pl.Object, arrow=None),
    Case(93, "a clock put back",
         [FOLD.replace(tzinfo=BERLIN), FOLD.replace(tzinfo=BERLIN, fold=1)],
         "timestamp with time zone", ["2024-10-27 00:30:00+00", "2024-10-27 01:30:00+00"],
         pandas=object, polars=pl.Object, arrow=pa.timestamp("us", "Europe/Berlin")),
    Case(94, "dates", [dt.date(9999, 12, 31), None, dt.date(1, 1, 1)], "date",
         ["9999-12-31", None, "0001-01-01"]),
    Case(94, "date64", [dt.date(2024, 2, 29)], "date", ["2024-02-29"], **ONLY_ARROW,
         arrow=pa.date64()),
    Case(94, "a timestamp declared date", [dt.datetime(2024, 2, 29), NOON], error=BadValue, at=1,
         match="time of day", declared="date"),
    Case(95, "times of day", [dt.time(23, 59, 59, 999_999), None], "time without time zone",
         ["23:59:59.999999", None]),
    Case(95, "a nanosecond", [1], error=BadValue, at=0, match="nanoseconds", pandas=None,
         polars=pl.Time, arrow=pa.time64("ns")),
    Case(95, "times with a zone", [dt.time(1, tzinfo=UTC)], error=BadValue, at=0, match="time zone",
         pandas=object, polars=pl.Object, arrow=None),
    Case(95, "24:00", ["24:00:00"], "time without time zone", ["24:00:00"], declared="time",
         load_error="24:00:00", arrow=None),
    Case(95, "24:00 in Arrow", ["24:00:00"], "time without time zone", ["24:00:00"],
         declared="time", pandas=None, polars=None),
    Case(95, "a leap second", ["23:59:60"], "time without time zone", ["24:00:00"],
         declared="time", reread=()),
    Case(96, "spans of time", [dt.timedelta(days=-1, microseconds=1), dt.timedelta(days=10_000)],
         "interval", ["-23:59:59.999999", "240000:00:00"]),
    Case(96, "the shortest span", np.array([1], "timedelta64[ns]"), error=BadValue, at=0,
         match="nanoseconds", polars=pl.Duration("ns"), arrow=pa.duration("ns")),
    Case(96, "spans of whole microseconds", np.array([1000], "timedelta64[ns]"), "interval",
         ["00:00:00.000001"], polars=pl.Duration("ns"), arrow=pa.duration("ns")),
    Case(97, "months", ["1 mon 2 days"], "interval", ["1 mon 2 days"], declared="interval",
         load_error="months"),
    Case(98, "a Period", [pd.Period("2024-06")], error=BadValue, match="to_timestamp",
         **ONLY_PANDAS),
    Case(98, "an Interval", [pd.Interval(0, 1)], error=BadValue, match="bounds", **ONLY_PANDAS),
    Case(98, "a DateOffset", [pd.DateOffset(days=1)], error=BadValue, at=0, match="timedelta",
         **ONLY_PANDAS),
]  # fmt: skip

CASES = [*NUMBERS, *TEXT, *TIMES]
LONG = [Case(71, "text", ["x" * 50, "x" * 51]), Case(71, "bytes", [b"x" * 50, b"x" * 51])]


@each_library(LONG)
def test_a_value_longer_than_postgresql_keeps_is_refused(
    case, library, monkeypatch, module_database
):
    """Where the limit is 50 bytes: a gigabyte takes longer to make than to refuse."""
    monkeypatch.setattr("dagster_tools.postgres.wire.LONGEST_VALUE", 50)

    with pytest.raises(BadValue, match=r"column 'v', row 1: is longer than 1 GB"):
        store(manager_for(module_database), case.frame(library))


@each_library(CASES)
def test_a_value_is_read_as_it_was_written_or_refused(case, library, module_database, table_name):
    check(case, library, module_database, table_name)
