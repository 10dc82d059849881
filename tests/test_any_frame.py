"""Any frame of any types, NULLs, chunks and sizes is read as it was written, in every library.

Values are drawn by hypothesis. Two oracles that have no part in the writing judge them: the server
compares what is stored with the same values sent as text by psycopg, and Python what is loaded.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pandas as pd
import polars as pl
import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from dagster_tools.postgres_io_manager import PostgresIOManager
from tests.fix_servers import Database
from tests.pipelines import load, manager_for, store

UTC = dt.timezone.utc
DAY = dt.timedelta(days=1)


@dataclass(frozen=True)
class Kind:
    """A kind of column.

    Args:
        type: Of the column.
        values: What is drawn, besides NULL.
        arrow, polars: As what the libraries hold it.
        text: A value as the server reads it.
        read: A value as every library gives it, of what one of them gave.
        give: A value as Arrow and Polars take it.
    """

    type: str
    values: st.SearchStrategy[Any]
    arrow: pa.DataType
    polars: Any
    text: Callable[[Any], str] = str
    read: Callable[[Any], Any] = lambda value: value
    give: Callable[[Any], Any] = lambda value: value


def integers(bits: int) -> st.SearchStrategy[int]:
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def decimals(digits: int, places: int) -> st.SearchStrategy[Decimal]:
    return st.integers(-(10**digits) + 1, 10**digits - 1).map(lambda n: Decimal(n).scaleb(-places))


def as_array(values: list[Any]) -> str:
    quoted = ["NULL" if v is None else json.dumps(str(v), ensure_ascii=False) for v in values]
    return f"{{{','.join(quoted)}}}"


def as_text_array(values: list[str | None]) -> str:
    escaped = ((v or "").replace("\\", "\\\\").replace('"', '\\"') for v in values)
    quoted = ("NULL" if v is None else f'"{e}"' for v, e in zip(values, escaped, strict=True))
    return f"{{{','.join(quoted)}}}"


def as_list(value: Any) -> list[Any]:
    return [None if v is None or v is pd.NA else v for v in value]


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
MOMENTS = st.datetimes(dt.datetime(1, 1, 2), dt.datetime(9999, 12, 30))
FLOATS = st.floats(allow_nan=True)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), integers(64), FLOATS.filter(math.isfinite), TEXT),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
).filter(lambda value: isinstance(value, (dict, list)))  # fmt: skip


def json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def careful_json_text(value: Any) -> str:
    """Return JSON in which a float has a point and no exponent, for jsonb drops that."""
    string_or_large = r'"(?:[^"\\]|\\.)*"|-?[\d.]+e[+]\d+'
    return re.sub(
        string_or_large,
        lambda found: found[0] if found[0][0] == '"' else f"{Decimal(found[0]):.1f}",
        json_text(value),
    )


def parsed(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


KINDS: Mapping[str, Kind] = {
    "bool": Kind("boolean", st.booleans(), pa.bool_(), pl.Boolean),
    "int2": Kind("smallint", integers(16), pa.int16(), pl.Int16),
    "int4": Kind("integer", integers(32), pa.int32(), pl.Int32),
    "int8": Kind("bigint", integers(64), pa.int64(), pl.Int64),
    "uint8": Kind(
        "numeric(20,0)", st.integers(0, 2**64 - 1), pa.uint64(), pl.UInt64, read=int
    ),
    "float4": Kind("real", st.floats(width=32), pa.float32(), pl.Float32, text=repr),
    "float8": Kind("double precision", FLOATS, pa.float64(), pl.Float64, text=repr),
    "numeric": Kind("numeric", decimals(30, 6), pa.decimal128(38, 6), pl.Decimal(38, 6),
                    read=Decimal),
    "scaled": Kind("numeric(12,2)", decimals(12, 2), pa.decimal128(12, 2), pl.Decimal(12, 2)),
    "text": Kind("text", TEXT, pa.string(), pl.String),
    "bytea": Kind("bytea", st.binary(max_size=8), pa.binary(), pl.Binary,
                  text=lambda value: "\\x" + value.hex()),
    "date": Kind("date", st.dates(), pa.date32(), pl.Date),
    "time": Kind("time without time zone", st.times(), pa.time64("us"), pl.Time),
    "at": Kind("timestamp without time zone", MOMENTS, pa.timestamp("us"), pl.Datetime("us")),
    "utc": Kind("timestamp with time zone", MOMENTS.map(lambda at: at.replace(tzinfo=UTC)),
                pa.timestamp("us", "UTC"), pl.Datetime("us", "UTC"),
                read=lambda value: value.astimezone(UTC)),
    "span": Kind("interval", st.timedeltas(-100_000 * DAY, 100_000 * DAY), pa.duration("us"),
                 pl.Duration("us"),
                 text=lambda value: f"{value // dt.timedelta(microseconds=1)} microseconds"),
    "uuid": Kind("uuid", st.uuids(), pa.string(), pl.String, give=str,
                 read=lambda value: uuid.UUID(str(value))),
    "jsonb": Kind("jsonb", JSON, pa.string(), pl.String, text=json_text,
                  give=careful_json_text, read=parsed),
    "ints": Kind("bigint[]", st.lists(st.none() | integers(64), max_size=3),
                 pa.list_(pa.int64()), pl.List(pl.Int64), text=as_array, read=as_list),
    "texts": Kind("text[]", st.lists(st.none() | TEXT, max_size=3), pa.list_(pa.string()),
                  pl.List(pl.String), text=as_text_array, read=as_list),
}  # fmt: skip

COMPARED_AS_THEY_ARE = {"numeric", "numeric(20,0)", "numeric(12,2)", "jsonb"}

Columns = dict[str, list[Any]]


def arrow_table(columns: Columns) -> pa.Table:
    return pa.table({name: arrow_array(name, values) for name, values in columns.items()})


def arrow_array(name: str, values: list[Any]) -> pa.Array:
    given = [None if value is None else KINDS[name].give(value) for value in values]
    return pa.array(given, KINDS[name].arrow)


def arrow_stream(columns: Columns) -> pa.RecordBatchReader:
    table = arrow_table(columns)
    return table.to_reader(max_chunksize=max(2, len(table) // 5))


def slices(columns: Columns) -> pa.Table:
    """Return the rows as slices of longer arrays, whose other values are not theirs."""
    longer = arrow_table({name: [*v[:1], *v, *v[:1]] for name, v in columns.items()})
    middle = len(longer) // 2
    parts = [longer.slice(1, middle - 1), longer.slice(middle, len(longer) - middle - 1)]
    return pa.concat_tables(parts)


def polars_frame(columns: Columns) -> pl.DataFrame:
    return pl.DataFrame(
        [
            pl.Series(name, [None if v is None else KINDS[name].give(v) for v in values],
                      KINDS[name].polars)
            for name, values in columns.items()
        ]
    )  # fmt: skip


def polars_lazy_frame(columns: Columns) -> pl.LazyFrame:
    return polars_frame(columns).lazy()


def pandas_objects(columns: Columns) -> pd.DataFrame:
    """Return a frame in which every value is still the Python object it was."""
    return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})


def pandas_of_arrow(columns: Columns) -> pd.DataFrame:
    frame: pd.DataFrame = arrow_table(columns).to_pandas(types_mapper=pd.ArrowDtype)
    return frame


def pandas_chunks(columns: Columns) -> Iterator[pd.DataFrame]:
    yield pandas_objects({name: values[:1] for name, values in columns.items()})
    yield pandas_objects({name: values[1:] for name, values in columns.items()})


MAKERS = (
    arrow_table, arrow_stream, slices, polars_frame, polars_lazy_frame, pandas_objects,
    pandas_of_arrow, pandas_chunks,
)  # fmt: skip


@st.composite
def any_columns(draw: st.DrawFn) -> Columns:
    """Draw up to five kinds of columns, with values, NULLs between them, or nothing but NULLs.

    Of a few rows, and now and then of so many that they are sent in several parts, and that the
    driver reads them.
    """
    names = draw(st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=5, unique=True))
    count, times = draw(st.integers(1, 8)), draw(st.sampled_from([*[1] * 19, 2_500]))
    columns: Columns = {"int4": list(range(count * times))}
    for name in names:
        values = KINDS[name].values
        of_column = draw(st.sampled_from([values, st.none() | values, st.none()]))
        if name != "int4":
            columns[name] = draw(st.lists(of_column, min_size=count, max_size=count)) * times
    return columns


@pytest.fixture(scope="module")
def io_manager(module_database: Database) -> PostgresIOManager:
    """The IO manager on a table that has a column of each kind."""
    manager = manager_for(module_database)
    types = {name: kind.type for name, kind in KINDS.items()}
    store(manager, arrow_table({name: [None] for name in KINDS}), columns=types)
    return manager


@pytest.fixture(scope="module")
def connection(module_database: Database) -> Iterator[psycopg.Connection[Any]]:
    with module_database.connect() as opened:
        opened.execute("SET TIME ZONE 'UTC'")
        yield opened


def check(
    columns: Columns,
    make: Callable[[Columns], Any],
    as_class: type,
    io_manager: PostgresIOManager,
    connection: psycopg.Connection[Any],
) -> None:
    store(io_manager, make(columns))

    # pandas' NaN is NULL.
    expected = without_nan(columns) if make.__name__.startswith("pandas") else columns
    assert differing(expected, connection) == []
    loaded = load(io_manager, as_class, columns=list(columns), order_by="int4")
    found = python_values(loaded, columns)
    if as_class is pd.DataFrame:
        expected = without_nan(expected)
    assert {name: list(map(told, values)) for name, values in found.items()} == {
        name: list(map(told, values)) for name, values in expected.items()
    }


def without_nan(columns: Columns) -> Columns:
    return {
        name: [None if isinstance(v, float) and math.isnan(v) else v for v in values]
        for name, values in columns.items()
    }


def differing(columns: Columns, connection: psycopg.Connection[Any]) -> list[Any]:
    """Return the rows in which the table and the same values sent as text are not the same."""
    texts = [
        [None if v is None else KINDS[name].text(v) for v in values]
        for name, values in columns.items()
    ]
    names = [sql.Identifier(name) for name in columns]
    unlike = [
        # By their text, for two zeros of different sign are equal; but 1.0 and 1.00 are one number,
        # also in JSON.
        sql.SQL("s.{0}::{2} IS DISTINCT FROM t.{0}::{1}::{2}").format(
            sql.Identifier(name),
            sql.SQL(KINDS[name].type),
            sql.SQL(KINDS[name].type if KINDS[name].type in COMPARED_AS_THEY_ARE else "text"),
        )
        for name in columns
    ]
    statement = sql.SQL(
        "SELECT s.*, t.* FROM numbers AS s FULL JOIN unnest({}) AS t ({}) "
        "ON s.int4 = t.int4::integer WHERE {}"
    ).format(
        sql.SQL(", ").join([sql.SQL("%s::text[]")] * len(names)),
        sql.SQL(", ").join(names),
        sql.SQL(" OR ").join(unlike),
    )
    return connection.execute(statement, texts).fetchall()


def python_values(frame: Any, columns: Columns) -> Columns:
    if isinstance(frame, pa.Table):
        found = frame.to_pydict()
    elif isinstance(frame, pl.DataFrame):
        found = frame.to_dict(as_series=False)
    else:
        # Missing text is NaN there.
        objects = {name: frame[name].astype(object) for name in frame.columns}
        found = {name: s.where(s.notna(), None).tolist() for name, s in objects.items()}
    assert list(found) == list(columns)
    return {
        name: [None if is_missing(value) else KINDS[name].read(value) for value in values]
        for name, values in found.items()
    }


def is_missing(value: Any) -> bool:
    return value is None or value is pd.NaT


def told(value: Any) -> Any:
    """Return a value that equals itself, also where it is NaN, and no zero of another sign."""
    if isinstance(value, float):
        return repr(value)
    return value


EXAMPLES: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


@pytest.mark.parametrize("as_class", [pa.Table, pd.DataFrame, pl.DataFrame])
@given(columns=any_columns(), make=st.sampled_from(MAKERS))
@settings(max_examples=70, **EXAMPLES)
def test_any_frame_is_read_as_it_was_written(io_manager, connection, as_class, columns, make):
    check(columns, make, as_class, io_manager, connection)


@pytest.mark.sweep
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
@given(columns=any_columns(), as_class=st.sampled_from([pa.Table, pd.DataFrame, pl.DataFrame]))
@settings(max_examples=500, **EXAMPLES | {"derandomize": False})
def test_thousands_of_frames_are_read_as_they_were_written(
    io_manager, connection, as_class, columns, make
):
    check(columns, make, as_class, io_manager, connection)
