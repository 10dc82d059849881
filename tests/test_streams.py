"""Whatever an asset has, it may return, and what it returns may be larger than memory.

Frames of every library, streams and iterators of them: out, in, one per partition, and within an
`IncrementalDataFrame`; what happens where one fails or is left before its end; and what becomes
of a column whose first rows do not tell its type.
"""

from __future__ import annotations

import gc
import io
import time
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any, Optional

import dagster as dg
import duckdb
import geopandas as gpd
import ibis
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from dagster_tools.errors import BadValue, SchemaConflict, UnsupportedFrame
from dagster_tools.postgres_io_manager import PostgresIOManager
from dagster_tools.sql import Eq, IncrementalDataFrame
from tests.fix_servers import Database
from tests.partitioned import load_partitions, rows_of, store_bare
from tests.pipelines import (
    arrow_stream,
    arrow_table,
    column_types,
    duckdb_relation,
    fingerprint,
    load,
    logged,
    manager_for,
    materialize,
    pandas_chunks,
    pandas_frame,
    polars_frame,
    polars_lazy_frame,
    query,
    rows,
    store,
)


@pytest.fixture
def database(cleaned_database: Database) -> Database:
    return cleaned_database


@pytest.fixture
def io_manager(database: Database) -> PostgresIOManager:
    return manager_for(database)


def list_of_frames(columns: Mapping[str, Any]) -> list[Any]:
    return [pandas_frame(columns)]


def generator_of_batches(columns: Mapping[str, Any]) -> Iterator[pa.RecordBatch]:
    yield from arrow_table(columns).to_batches()


def ibis_table(columns: Mapping[str, Any]) -> Any:
    return ibis.memtable(arrow_table(columns))


def duckdb_reader(columns: Mapping[str, Any]) -> pa.RecordBatchReader:
    return duckdb_relation(columns).to_arrow_reader()


MAKERS = [
    pandas_frame,
    polars_frame,
    polars_lazy_frame,
    arrow_table,
    arrow_stream,
    pandas_chunks,
    list_of_frames,
    generator_of_batches,
    duckdb_relation,
    duckdb_reader,
    ibis_table,
]
every_library = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)


# --- out and in -----------------------------------------------------------------------------


def test_an_asset_may_return_whatever_it_has(database, io_manager):
    def asset_of(make: Callable[..., Any]) -> dg.AssetsDefinition:
        # A generator that an asset returns itself is Dagster's, which would take it for events.
        @dg.asset(name=make.__name__)
        def returning():
            return dg.Output(make({"id": [1, 2], "name": ["a", None]}))

        return returning

    materialize([asset_of(make) for make in MAKERS], io_manager)

    found = {make: rows(database, f"public.{make.__name__}") for make in MAKERS}
    assert [make.__name__ for make in MAKERS if found[make] != [(1, "a"), (2, None)]] == []


def test_a_csv_file_in_chunks_may_be_returned_as_it_is(database, io_manager):
    @dg.asset
    def numbers() -> Any:
        return pd.read_csv(io.StringIO("n,t\n1,a\n2,\n3,c"), chunksize=2)

    materialize(numbers, io_manager)

    assert rows(database) == [(1, "a"), (2, None), (3, "c")]


@every_library
def test_within_an_incremental_data_frame_too(database, io_manager, make):
    store(io_manager, pd.DataFrame({"id": [1, 2, 3], "v": [1, 1, 1]}))

    store(io_manager, IncrementalDataFrame(make({"id": [2, 4], "v": [5, 5]}), Eq("id", [1, 2])))

    assert rows(database) == [(2, 5), (3, 1), (4, 5)]


@every_library
def test_a_dict_may_hold_one_for_each_partition(database, io_manager, make):
    frames = {"a": make({"id": [1, 2]}), "b": make({"id": [3]}), "c": pd.DataFrame({"id": [0.5]})}

    store_bare(io_manager, frames, ["a", "b", "c"])

    assert rows_of(database, "numbers", "id") == {"a": [(1,), (2,)], "b": [(3,)], "c": [(0.5,)]}


@every_library
def test_a_dict_within_an_incremental_data_frame_may_hold_one_for_each_partition(
    database, io_manager, make
):
    store_bare(io_manager, {key: pd.DataFrame({"id": [1, 2]}) for key in "abc"}, "abc")

    frames = {"a": make({"id": [5]}), "b": make({"id": [1]})}
    store_bare(io_manager, IncrementalDataFrame(frames, Eq("id", 1)), "ab")

    assert rows_of(database, "numbers", "id") == {
        "a": [(2,), (5,)],
        "b": [(1,), (2,)],
        "c": [(1,), (2,)],
    }


def test_a_column_may_tell_the_partitions_of_an_iterator(database, io_manager):
    frames = [pd.DataFrame({"p": ["a", "b"], "n": [1, 2]}), pl.DataFrame({"p": ["a"], "n": [0.5]})]

    store_bare(io_manager, iter(frames), ["a", "b"], partition_expr="p")

    assert rows_of(database, "numbers", "n") == {"a": [(0.5,), (1,)], "b": [(2,)]}


CLASSES: list[Any] = [
    pd.DataFrame, gpd.GeoDataFrame, pl.DataFrame, pl.LazyFrame, pa.Table, pa.RecordBatchReader,
]  # fmt: skip
WRAPPED: dict[str, Callable[[Any], Any]] = {
    "itself": lambda class_: class_,
    "Optional": Optional.__getitem__,
    "or None": lambda class_: class_ | None,
    "dict": lambda class_: dict[str, class_],  # type: ignore[valid-type]  # made while running
    "dict or None": lambda class_: dict[str, class_] | None,  # type: ignore[valid-type]
    "dict of Optional": lambda class_: dict[str, class_ | None],  # type: ignore[valid-type]
}


@pytest.mark.parametrize("as_class", CLASSES, ids=lambda class_: class_.__name__)
def test_an_input_is_of_the_class_that_its_annotation_names_however_it_is_wrapped(
    io_manager, as_class
):
    places = gpd.GeoDataFrame({"id": [1, 2]}, geometry=gpd.points_from_xy([1, 2], [3, 4]), crs=4326)
    store_bare(io_manager, {"a": places[:1], "b": places[1:]}, ["a", "b"])
    forms = {form: wrap for form, wrap in WRAPPED.items() if as_class is not pa.RecordBatchReader
             or "dict" not in form}  # fmt: skip

    taken = {form: load_partitions(io_manager, "ab", wrap(as_class), order_by="id")
             for form, wrap in forms.items()}  # fmt: skip

    for form, given in taken.items():
        frames = list(given.values()) if "dict" in form else [given]
        assert [type(frame) for frame in frames] == [as_class] * len(frames), form
        assert [ids_of(frame) for frame in frames] == ([[1], [2]] if "dict" in form else [[1, 2]])


def ids_of(frame: Any) -> list[int]:
    if isinstance(frame, pl.LazyFrame):
        return list(frame.collect()["id"])
    if isinstance(frame, pa.RecordBatchReader):
        frame = frame.read_all()
    return list(frame["id"].to_pylist() if isinstance(frame, pa.Table) else frame["id"])


@pytest.mark.parametrize("annotation", [duckdb.DuckDBPyRelation, pl.Series])
def test_a_class_that_cannot_be_loaded_is_an_error_that_lists_those_that_can(
    io_manager, annotation
):
    store(io_manager, pd.DataFrame({"n": [1]}))

    with pytest.raises(UnsupportedFrame, match=r"pandas\.DataFrame, .*polars\.DataFrame"):
        load(io_manager, annotation)


def test_an_index_of_a_later_chunk_that_is_not_written_is_told_in_the_log(io_manager):
    @dg.asset
    def numbers() -> Any:
        return [pd.DataFrame({"n": [1]}), *(pd.DataFrame({"n": [2]}, index=[7]) for _ in range(3))]

    result = materialize(numbers, io_manager)

    told = [line for line in logged(result, level="WARNING") if "unnamed index" in line]
    assert len(told) == 1


# --- a stream that fails, and one that is left ----------------------------------------------


class SourceError(Exception):
    """What a user's own iterator raises."""


def failing_frames(error: Exception) -> Iterator[pd.DataFrame]:
    yield pd.DataFrame({"id": [1, 7], "v": [7, 7]})
    raise error


def failing_reader(error: Exception) -> pa.RecordBatchReader:
    def batches() -> Iterator[pa.RecordBatch]:
        yield pa.record_batch({"id": [1, 7], "v": [7, 7]})
        raise error

    return pa.RecordBatchReader.from_batches(
        pa.schema({"id": pa.int64(), "v": pa.int64()}), batches()
    )


def failing_lazy_frame(error: Exception) -> pl.LazyFrame:
    def fail(_frame: pl.DataFrame) -> pl.DataFrame:
        raise error

    return pl.LazyFrame({"id": [1], "v": [7]}).map_batches(fail)


FAILING = [failing_frames, failing_reader, failing_lazy_frame]
MODES: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "replace": (lambda frame: frame, {}),
    "upsert": (lambda frame: frame, {"incremental": True, "primary_key": "id"}),
    "delete and insert": (lambda frame: IncrementalDataFrame(frame, Eq("id", 1)), {}),
    "list": (lambda frame: iter([pd.DataFrame({"id": [9], "v": [9]}), frame]), {}),
}


@pytest.mark.parametrize("existing", [True, False], ids=["later write", "first write"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fail", FAILING, ids=lambda make: make.__name__)
def test_an_error_of_the_source_is_what_the_user_sees_and_nothing_was_written(
    database, io_manager, fail, mode, existing
):
    wrap, metadata = MODES[mode]
    if existing:
        store(io_manager, pd.DataFrame({"id": [1, 2], "v": [1, 1]}), **metadata)
    before = stored(database)
    error = SourceError("page 7 timed out")
    if mode == "list" and fail is failing_frames:
        frame: Any = failing_reader(error)
    else:
        frame = fail(error)

    with pytest.raises(SourceError, match=r"^page 7 timed out$") as raised:
        store(io_manager, wrap(frame), **metadata)

    assert raised.value is error
    assert raised.value.__cause__ is None
    assert stored(database) == before
    assert sessions(database) == []


def stored(database: Database) -> list[Any]:
    """Return the rows of the table and what is recorded of them, where there are such tables."""
    return [
        query(database, f"SELECT t::text FROM {table} AS t ORDER BY 1")
        for table in ("numbers", "meta.materializations")
        if query(database, "SELECT to_regclass(%s)", table) != [(None,)]
        and query(database, f"SELECT FROM {table}")
    ]


def sessions(database: Database) -> list[Any]:
    """Return what the sessions of the IO manager do, once those that end have had the time to."""
    deadline = time.monotonic() + 5
    while True:
        found = query(
            database,
            """
            SELECT state, query
            FROM pg_stat_activity
            WHERE datname = current_database()
              AND backend_type = 'client backend'
              AND pid <> pg_backend_pid()
              AND NOT (%s AND state = 'idle')
            """,
            database.pooled,
        )
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


def test_an_error_of_one_partitions_source_leaves_all_partitions_as_they_were(database, io_manager):
    store_bare(io_manager, {key: pd.DataFrame({"id": [1], "v": [1]}) for key in "ab"}, "ab")
    before = stored(database)

    with pytest.raises(SourceError):
        store_bare(io_manager, {"a": pd.DataFrame(), "b": failing_frames(SourceError())}, "ab")

    assert stored(database) == before


def test_a_value_of_a_later_frame_that_does_not_fit_is_named_by_its_row_in_all(
    database, io_manager
):
    store(io_manager, pd.DataFrame({"n": [1]}), columns={"n": "int"})
    before = fingerprint(database)
    frames = [pd.DataFrame({"n": [1, 2]}), pl.DataFrame({"n": [3, 2**31]})]

    with pytest.raises(BadValue) as caught:
        store(io_manager, frames, columns={"n": "int"})

    assert (caught.value.column, caught.value.row) == ("n", 3)
    assert fingerprint(database) == before


LONG = "SELECT n, (n || '.50')::numeric(12,2) AS d, repeat('x', 200) AS t"


@pytest.mark.parametrize("leave", ["break", "drop", "close"])
def test_a_consumer_that_stops_early_leaves_no_connection_and_no_transaction(
    database, io_manager, leave
):
    with database.connect() as connection:
        connection.execute(f"CREATE TABLE numbers AS {LONG} FROM generate_series(1, 200000) AS n")
    reader = load(io_manager, pa.RecordBatchReader)

    while_reading = query(database, "SELECT count(*) FROM pg_stat_activity WHERE query ~ '^COPY'")
    if leave == "break":
        for _batch in reader:
            break
    elif leave == "close":
        reader.read_next_batch()
        reader.close()
    del reader
    gc.collect()

    assert while_reading == [(1,)]
    assert sessions(database) == []


def test_an_asset_that_stops_reading_leaves_no_connection_once_it_is_done(database, io_manager):
    with database.connect() as connection:
        connection.execute(f"CREATE TABLE numbers AS {LONG} FROM generate_series(1, 200000) AS n")

    @dg.asset(ins={"frame": dg.AssetIn("numbers")})
    def first_rows(frame: pa.RecordBatchReader) -> pa.Table:
        return pa.table([frame.read_next_batch()["n"]], names=["n"])

    materialize(
        [dg.AssetSpec("numbers").with_io_manager_key("io_manager"), first_rows],
        io_manager,
        selection=[first_rows],
    )
    gc.collect()

    assert 0 < len(rows(database, "public.first_rows")) < 200_000
    assert sessions(database) == []


# --- more than the first rows ---------------------------------------------------------------


def csv(text: str, **options: Any) -> Iterator[pd.DataFrame]:
    """Return a file in chunks of two rows; columns of one are typed by these rows alone."""
    chunks: Any = pd.read_csv(io.StringIO(text), chunksize=2, **options)
    return iter(chunks)


@pytest.mark.parametrize(
    ("values", "type_", "stored"),
    [
        (["", "", "x", ""], "text", [None, None, "x", None]),
        (["1", "2", "0.5", ""], "double precision", [1, 2, 0.5, None]),
        (["1", "2", "", "3"], "bigint", [1, 2, None, 3]),
        (["", "", "7", "8"], "double precision", [None, None, 7, 8]),
        (["", "", "True", "False"], "boolean", [None, None, True, False]),
        (["1", "9007199254740993", "0.5", ""], "numeric", [1, 2**53 + 1, Decimal("0.5"), None]),
        (["", "", "", ""], "double precision", [None] * 4),
    ],
    ids=["text late", "fraction late", "missing late", "integer late", "boolean late", "large", ""],
)
@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
def test_a_column_gets_the_type_of_all_chunks(database, io_manager, values, type_, stored, again):
    text = "i,v\n" + "\n".join(f"{number},{value}" for number, value in enumerate(values))

    for _time in range(1 + again):
        store(io_manager, csv(text))

    assert column_types(database)["v"] == type_
    assert query(database, "SELECT v FROM numbers ORDER BY i") == [(value,) for value in stored]


def test_integers_and_text_in_one_column_are_refused_with_what_to_do(database, io_manager):
    with pytest.raises(SchemaConflict, match=r"column 'v', row 3.*bigint .* text here.*dtype"):
        store(io_manager, csv("v\n1\n2\n3\nx"))

    assert query(database, "SELECT to_regclass('numbers')") == [(None,)]
    store(io_manager, csv("v\n1\n2\n3\nx", dtype={"v": "str"}))
    assert rows(database) == [("1",), ("2",), ("3",), ("x",)]


@pytest.mark.parametrize("first", [[1], [0.5]], ids=["integers", "floats"])
def test_a_column_without_values_fits_one_of_any_type(database, io_manager, first):
    store(io_manager, pd.DataFrame({"i": [1, 2], "v": ["a", None]}))

    store(io_manager, pd.DataFrame({"i": [1], "v": pd.Series([None], dtype="float64")}))

    assert column_types(database)["v"] == "text"
    store(io_manager, pl.DataFrame({"i": [1], "v": ["b"]}))
    assert rows(database) == [(1, "b")]


def test_a_column_that_others_filled_is_not_given_another_type(database, io_manager):
    store(io_manager, pd.DataFrame({"v": [5]}), key="other", table="numbers")

    with pytest.raises(SchemaConflict, match="ALTER TABLE"):
        store(io_manager, csv('v\n""\n""\nx'))

    assert rows(database) == [(5,)]


def test_strict_lets_no_chunk_change_a_type_that_was_there_before(database, io_manager):
    store(io_manager, csv("v\n1\n2\n0.5"), schema_evolution="strict")
    assert column_types(database) == {"v": "double precision"}

    with pytest.raises(SchemaConflict):
        store(io_manager, csv("v\n1\n2\nx"), schema_evolution="strict")
    store(io_manager, csv("v\n1\n2"), schema_evolution="strict", table="whole")
    with pytest.raises(SchemaConflict, match="'strict'"):
        store(io_manager, csv("v\n1\n2\n0.5"), schema_evolution="strict", table="whole")


def test_a_declared_column_is_what_it_is_declared_as_from_the_first_chunk_on(database, io_manager):
    columns = {"d": "date", "n": "numeric(6,2)"}

    store(io_manager, csv("d,n\n,\n,1\n2024-01-01,0.5\n,"), columns=columns)

    assert column_types(database) == columns
    assert query(database, "SELECT d::text, n FROM numbers WHERE d IS NOT NULL") == [
        ("2024-01-01", Decimal("0.50"))
    ]


@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
def test_an_upsert_takes_a_stream_whose_types_change_on_the_way(database, io_manager, again):
    options = {"incremental": True, "primary_key": "k"}
    store(io_manager, csv("k,v\n1,\n2,"), **options)

    for _time in range(1 + again):
        logs = store(io_manager, csv("k,v,w\n2,,1\n3,,2\n4,x,0.5\n1,y,"), **options)

    assert column_types(database) == {"k": "bigint", "v": "text", "w": "double precision"}
    assert rows(database) == [(1, "y", None), (2, None, 1), (3, None, 2), (4, "x", 0.5)]
    counts = {name: value.value for name, value in logs.items() if name.startswith("rows_")}
    assert counts["rows_unchanged"] == (4 if again else 0)


def test_values_on_their_way_to_an_upsert_keep_their_column_from_another_type(database, io_manager):
    options = {"incremental": True, "primary_key": "k"}
    store(io_manager, csv("k,v\n1,\n2,"), **options)

    with pytest.raises(SchemaConflict, match="column 'v', row 2"):
        store(io_manager, csv("k,v\n1,5\n2,6\n3,x"), **options)

    assert rows(database) == [(1, None), (2, None)]


def test_a_key_that_two_chunks_share_is_refused_with_both_rows(io_manager):
    with pytest.raises(BadValue, match=r"in rows 1 and 2"):
        store(io_manager, csv("k\n1\n2\n2\n3"), incremental=True, primary_key="k")


def test_rows_go_and_come_with_a_stream_whose_types_change_on_the_way(database, io_manager):
    store(io_manager, pd.DataFrame({"k": [1, 2], "v": [None, None]}))

    store(io_manager, IncrementalDataFrame(csv("k,v\n1,\n3,\n4,2024-01-01\n"), Eq("k", [1])))

    assert rows(database) == [(1, None), (2, None), (3, None), (4, "2024-01-01")]


# --- what else speaks the Arrow C stream protocol -------------------------------------------


def test_a_duckdb_relation_of_every_type_is_stored_as_what_its_values_are(database, io_manager):
    relation = duckdb.connect().sql(
        """
        SELECT 1::UTINYINT AS u, 170141183460469231731687303715884105727::HUGEINT AS huge,
               1.50::DECIMAL(6,2) AS d, 'ä' AS t, '\\x00\\xFF'::BLOB AS b,
               '00000000-0000-0000-0000-000000000001'::UUID AS id,
               DATE '2024-02-29' AS day, TIME '23:59:59.999999' AS clock,
               TIMESTAMP '2024-02-29 12:00:00' AS at, TIMESTAMPTZ '2024-02-29 12:00:00+02' AS utc,
               INTERVAL 90 MINUTE AS span, 'b'::ENUM('a', 'b') AS mood, [1, NULL] AS list,
               {'k': 1} AS struct, MAP {'k': 1} AS map, NULL AS nothing
        """
    )

    store(io_manager, relation)

    assert column_types(database) == {
        "u": "smallint", "huge": "numeric", "d": "numeric", "t": "text", "b": "bytea",
        "id": "text", "day": "date", "clock": "time without time zone",
        "at": "timestamp without time zone", "utc": "timestamp with time zone",
        "span": "interval", "mood": "text", "list": "integer[]", "struct": "jsonb",
        "map": "jsonb", "nothing": "text",
    }  # fmt: skip
    [found] = query(
        database,
        "SELECT u, huge::text, d::text, t, b, id, day::text, clock::text, at::text,"
        " utc AT TIME ZONE 'UTC' = '2024-02-29 10:00', span::text, mood, list, struct, map, nothing"
        " FROM numbers",
    )
    assert found == (
        1, "170141183460469231731687303715884105727", "1.50", "ä", b"\0\xff",
        "00000000-0000-0000-0000-000000000001", "2024-02-29", "23:59:59.999999",
        "2024-02-29 12:00:00", True, "01:30:00", "b", [1, None], {"k": 1}, {"k": 1}, None,
    )  # fmt: skip


def test_an_ibis_expression_is_computed_when_it_is_stored(database, io_manager):
    expression = ibis_table({"n": [1, 2, 3]}).mutate(double=ibis._.n * 2).filter(ibis._.n > 1)

    store(io_manager, expression)

    assert rows(database) == [(2, 4), (3, 6)]
