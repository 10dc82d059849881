"""Delete-then-insert: some of the asset's rows go and others come, in one transaction."""

from __future__ import annotations

import datetime as dt
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from zoneinfo import ZoneInfo

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from dagster_tools.errors import (
    BadValue,
    ConfigurationError,
    DagsterToolsError,
    UnsupportedFrame,
)
from dagster_tools.sql import SQL, And, Eq, IncrementalDataFrame, Or, Query
from tests.partitioned import rows_of, store_partitions
from tests.pipelines import fingerprint, load, materialize, query, rows, store
from tests.test_incremental_upsert import counts, execute

SECRET = "S3cr3t"
PLACE = "SELECT ctid, xmin, materialization_id FROM numbers WHERE "


@pytest.fixture
def database(cleaned_database):
    return cleaned_database


def files(*rows_of_files):
    """Make a frame of rows that came from files: `files(("a.csv", 1), ("b.csv", 2))`."""
    return pd.DataFrame(rows_of_files, columns=["file", "n"])


def delete_only(manager, delete, **options):
    """Delete rows, bring none; return how many went."""
    done = store(manager, IncrementalDataFrame(pd.DataFrame(), delete), **options)
    return counts(done)[3]


# --- some go, others come -------------------------------------------------------------------


def test_rows_that_match_go_and_the_frames_come(database, io_manager, frame):
    store(io_manager, frame({"file": ["a", "a", "b"], "n": [1, 2, 3]}))

    later = frame({"file": ["a", "c"], "n": [10, 30]})
    done = store(io_manager, IncrementalDataFrame(later, delete=Eq("file", ["a"])))

    assert rows(database) == [("a", 10), ("b", 3), ("c", 30)]
    assert counts(done) == (2, 0, 0, 2)


def test_a_re_run_leaves_the_same_rows(database, io_manager, frame):
    for _run in range(3):
        data = frame({"file": ["a", "a"], "n": [1, 1]})
        store(io_manager, IncrementalDataFrame(data, delete=Eq("file", "a")))

    assert rows(database) == [("a", 1), ("a", 1)]


def test_loading_gives_the_rows_of_all_runs(io_manager):
    for name in ("a", "b", "a"):
        store(io_manager, IncrementalDataFrame(files((name, 1)), delete=Eq("file", name)))

    assert sorted(load(io_manager)["file"]) == ["a", "b"]


def test_what_was_done_is_recorded_for_the_materialization(database, io_manager):
    store(io_manager, files(("a", 1), ("b", 2)))
    store(io_manager, IncrementalDataFrame(files(("a", 3), ("c", 4)), delete=Eq("file", "a")))

    assert query(
        database,
        "SELECT rows_inserted, rows_updated, rows_deleted, rows_unchanged "
        "FROM meta.materializations ORDER BY id",
    ) == [(2, 0, 0, 0), (2, 0, 1, 0)]


def test_rows_that_stay_are_not_rewritten(database, io_manager):
    store(io_manager, files(("a", 1), ("b", 2)))
    before = query(database, PLACE + "file = 'b'")

    store(io_manager, IncrementalDataFrame(files(("a", 3)), delete=Eq("file", "a")))

    assert query(database, PLACE + "file = 'b'") == before


@pytest.mark.parametrize(
    "nothing",
    [
        pytest.param(pd.DataFrame, id="pandas without columns"),
        pytest.param(lambda: pd.DataFrame({"file": [], "n": []}), id="pandas"),
        pytest.param(lambda: pa.table({"file": pa.array([], pa.string())}), id="arrow"),
        pytest.param(
            lambda: pa.RecordBatchReader.from_batches(pa.schema([("file", pa.string())]), []),
            id="stream",
        ),
    ],
)
def test_an_empty_frame_with_a_delete_still_deletes(database, io_manager, nothing):
    store(io_manager, files(("a", 1), ("b", 2)))

    done = store(io_manager, IncrementalDataFrame(nothing(), delete=Eq("file", "a")))

    assert rows(database) == [("b", 2)]
    assert counts(done) == (0, 0, 0, 1)


def test_where_there_is_no_table_nothing_is_deleted_and_the_rows_come(database, io_manager, frame):
    data = frame({"file": ["a"], "n": [1]})

    done = store(io_manager, IncrementalDataFrame(data, delete=Eq("file", ["a", "b"])))

    assert rows(database) == [("a", 1)]
    assert counts(done) == (1, 0, 0, 0)


def test_where_there_is_no_table_an_empty_frame_makes_none_and_is_no_error(database, io_manager):
    assert delete_only(io_manager, Eq("file", "a")) == 0

    assert query(database, "SELECT to_regclass('numbers')") == [(None,)]
    assert query(database, "SELECT count(*) FROM meta.materializations") == [(1,)]


def test_lab_results_come_and_go_with_their_files_as_the_guide_has_it(database, io_manager):
    def lab_results_of(*changed):
        @dg.asset(metadata={"schema": "lab"})
        async def lab_results():
            found = [pd.DataFrame({"value": v}).assign(file_id=f) for f, v in changed if v]
            result = pd.concat(found) if found else pd.DataFrame()
            file_ids = [file_id for file_id, _values in changed]
            return IncrementalDataFrame(result.reset_index(drop=True), Eq("file_id", file_ids))

        materialize(lab_results, io_manager)

    lab_results_of(("1", [1.5, 2.5]), ("2", [3.5]))
    lab_results_of(("1", [9.5]))
    lab_results_of(("2", []))

    assert rows(database, "lab.lab_results") == [(9.5, "1")]


def test_outputs_of_a_multi_asset_delete_each_in_its_own_table(database, io_manager):
    @dg.multi_asset(outs={"one": dg.AssetOut(), "other": dg.AssetOut()})
    def both():
        delete = Eq("file", "a")
        return (
            IncrementalDataFrame(files(("a", 1)), delete=delete),
            IncrementalDataFrame(pd.DataFrame(), delete=delete),
        )

    store(io_manager, files(("a", 0), ("b", 0)), key="one")
    store(io_manager, files(("a", 0), ("b", 0)), key="other")

    materialize(both, io_manager)

    assert rows(database, "public.one") == [("a", 1), ("b", 0)]
    assert rows(database, "public.other") == [("b", 0)]


def test_a_query_may_bring_the_rows(database, io_manager):
    store(io_manager, files(("a", 1), ("b", 2)))

    brought = Query("SELECT 'a' AS file, 7::bigint AS n")
    done = store(io_manager, IncrementalDataFrame(brought, delete=Eq("file", "a")))

    assert rows(database) == [("a", 7), ("b", 2)]
    assert counts(done) == (1, 0, 0, 1)


# --- which rows go --------------------------------------------------------------------------

TABLE = [
    (1, "x", "mo"),
    (2, "x", "tu"),
    (3, "y", "mo"),
    (4, "y", None),
    (5, None, "mo"),
    (6, None, None),
]


@pytest.mark.parametrize(
    ("delete", "gone"),
    [
        pytest.param(Eq("a", "x"), {1, 2}, id="one value"),
        pytest.param(Eq("a", ["x", "y", "z"]), {1, 2, 3, 4}, id="many values"),
        pytest.param(Eq("a", None), {5, 6}, id="NULL"),
        pytest.param(Eq("a", ["x", None]), {1, 2, 5, 6}, id="NULL among values"),
        pytest.param(Eq("a", []), set(), id="no value"),
        pytest.param(Eq("a", "%"), set(), id="no pattern"),
        pytest.param(Eq(["a", "b"], [("x", "mo"), ("y", "tu")]), {1}, id="composite"),
        pytest.param(Eq(["a", "b"], ("x", "tu")), {2}, id="one composite"),
        pytest.param(Eq(["b", "a"], [("mo", "y")]), {3}, id="composite in another order"),
        pytest.param(Eq(["a", "b"], [("y", None)]), {4}, id="composite with NULL"),
        pytest.param(
            Eq(["a", "b"], [("x", "mo"), (None, "mo"), ("y", None), (None, None)]),
            {1, 4, 5, 6},
            id="composite with NULL in each way",
        ),
        pytest.param(Eq(["a", "b"], []), set(), id="no composite"),
        pytest.param(And(Eq("a", "x"), Eq("b", "mo")), {1}, id="And"),
        pytest.param(Or(Eq("a", "x"), Eq("b", "mo")), {1, 2, 3, 5}, id="Or"),
        pytest.param(Eq("a", "x") & Eq("b", "mo"), {1}, id="&"),
        pytest.param(Eq("a", "x") | Eq("b", None), {1, 2, 4, 6}, id="| and NULL"),
        pytest.param(
            (Eq("a", "x") & Eq("b", "tu")) | (Eq("a", None) & Eq("b", ["mo", None])),
            {2, 5, 6},
            id="nested",
        ),
        pytest.param(
            And(Or(Eq("a", "x"), Eq("a", "y")), Or(Eq("b", "mo"), Eq("id", 4))),
            {1, 3, 4},
            id="And of Or",
        ),
        pytest.param(And(Eq("a", "x"), Eq("b", [])), set(), id="And with no value"),
        pytest.param(Or(Eq("a", "x"), Eq("b", [])), {1, 2}, id="Or with no value"),
        pytest.param(And(Eq("id", [1, 2])), {1, 2}, id="And of one"),
    ],
)
def test_exactly_the_rows_that_match_go_and_of_them_only_the_assets_own(
    database, io_manager, delete, gone
):
    table = pd.DataFrame(TABLE, columns=["id", "a", "b"])
    store(io_manager, table, table="shared")
    store(io_manager, table.assign(id=table["id"] + 100), key="theirs", table="shared")
    execute(database, "INSERT INTO shared VALUES (201, 'x', 'mo', NULL), (206, NULL, NULL, NULL)")

    went = delete_only(io_manager, delete, table="shared")

    left = {row[0] for row in query(database, "SELECT id FROM shared")}
    assert left == ({1, 2, 3, 4, 5, 6} - gone) | set(range(101, 107)) | {201, 206}
    assert went == len(gone)


NOON = dt.datetime(2024, 1, 1, 12, tzinfo=dt.timezone.utc)
ID = uuid.UUID(int=7)


@pytest.mark.parametrize(
    ("type_", "stored", "value"),
    [
        ("text", "''", ""),
        ("text", r"'it''s \ ''; -- %s {} \"'", r"it's \ '; -- %s {} \""),
        ("text", "E'a\\n\\t\\\\N'", "a\n\t\\N"),
        ("text", "'NULL'", "NULL"),
        ("text", "'{a,b}'", "{a,b}"),
        ("text", "'ü🦆'", np.str_("ü🦆")),
        ("varchar(5)", "'abc'", "abc"),
        ("char(5)", "'abc'", "abc"),
        ("smallint", "7", 7),
        ("integer", "7", np.int8(7)),
        ("integer", "7", "7"),
        ("integer", "7", 7.0),
        ("bigint", "9223372036854775807", np.uint64(2**63 - 1)),
        ("numeric", "1.10", Decimal("1.1")),
        ("numeric", "1e30", Decimal("1e30")),
        ("numeric", "'NaN'", Decimal("NaN")),
        ("numeric(6,2)", "1.10", 1.1),
        ("numeric(6,2)", "7", np.int64(7)),
        ("double precision", "0.1", 0.1),
        ("double precision", "1e300", np.float64(1e300)),
        ("double precision", "'Infinity'", float("inf")),
        ("double precision", "7", 7),
        ("real", "0.1", np.float32(0.1)),
        ("boolean", "true", True),
        ("boolean", "true", np.bool_(True)),
        ("date", "'2024-01-01'", dt.date(2024, 1, 1)),
        ("date", "'2024-01-01'", "2024-01-01"),
        ("date", "'2024-01-01'", pd.Timestamp("2024-01-01")),
        ("date", "'2024-01-01'", np.datetime64("2024-01-01")),
        ("timestamp", "'2024-01-01 12:00:00.000001'", dt.datetime(2024, 1, 1, 12, 0, 0, 1)),
        ("timestamp", "'2024-01-01 12:00'", pd.Timestamp("2024-01-01 12:00")),
        ("timestamp", "'2024-01-01 12:00'", np.datetime64("2024-01-01T12:00:00")),
        ("timestamptz", "'2024-01-01 12:00Z'", NOON),
        ("timestamptz", "'2024-01-01 12:00Z'", NOON.astimezone(ZoneInfo("Asia/Tokyo"))),
        ("timestamptz", "'2024-01-01 12:00Z'", pd.Timestamp("2024-01-01 07:00", tz="US/Eastern")),
        ("timestamptz", "'2024-01-01 12:00Z'", "2024-01-01 13:00:00+01:00"),
        ("time", "'12:30'", dt.time(12, 30)),
        ("interval", "'1 day'", dt.timedelta(days=1)),
        ("interval", "'1 day'", pd.Timedelta(days=1)),
        ("uuid", f"'{ID}'", ID),
        ("uuid", f"'{ID}'", str(ID)),
        ("bytea", r"'\x00ff'", b"\x00\xff"),
        ("bytea", r"'\x00ff'", memoryview(b"\x00\xff")),
        ("jsonb", """'{"a": [1, null]}'""", {"a": [1, None]}),
        ("json", """'{"a":   1}'""", {"a": 1}),
        ("text[]", "ARRAY['x', NULL, '']", [["x", None, ""]]),
        ("bigint[]", "ARRAY[1, 2]", [[1, 2]]),
        ("inet", "'10.0.0.1'", "10.0.0.1"),
        ("int4range", "'[1,3)'", "[1,2]"),
        ("money", "'1.50'", "1.50"),
        ("bit(3)", "'101'", "101"),
        ("text", "NULL", None),
        ("text", "NULL", pd.NA),
        ("timestamp", "NULL", pd.NaT),
        ("timestamp", "NULL", np.datetime64("NaT", "ns")),
        ("double precision", "NULL", float("nan")),
        ("jsonb", "NULL", None),
    ],
)
def test_values_of_every_type_are_found(database, io_manager, type_, stored, value):
    execute(database, f"CREATE TABLE numbers (id int GENERATED ALWAYS AS IDENTITY, v {type_})")
    store(io_manager, pd.DataFrame({"v": [None]}, dtype=object))
    # One row with the value, and, unless that is NULL, one with NULL beside it.
    execute(
        database,
        f"UPDATE numbers SET v = {stored}",
        "INSERT INTO numbers (v, materialization_id) SELECT NULL, materialization_id "
        f"FROM numbers WHERE ({stored}) IS NOT NULL",
    )

    assert delete_only(io_manager, Eq("v", value)) == 1


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(np.array([1, 3]), id="numpy"),
        pytest.param(pd.Series([1, 3], index=[5, 6]), id="Series"),
        pytest.param(pd.Series([1, 3], dtype="Int64"), id="nullable Series"),
        pytest.param({1, 3}, id="set"),
        pytest.param(range(1, 4, 2), id="range"),
        pytest.param((n for n in (1, 3)), id="generator"),
        pytest.param(pa.chunked_array([[1], [3]]), id="arrow"),
    ],
)
def test_values_may_come_in_any_container(database, io_manager, values):
    store(io_manager, pd.DataFrame({"id": [1, 2, 3]}))

    assert delete_only(io_manager, Eq("id", values)) == 2
    assert rows(database) == [(2,)]


def test_a_type_of_the_users_own_is_compared_too(database, io_manager):
    execute(
        database,
        "CREATE SCHEMA far",
        "CREATE TYPE far.mood AS ENUM ('good', 'bad')",
        "CREATE DOMAIN far.code AS text CHECK (VALUE <> '')",
        "CREATE TABLE numbers (mood far.mood, code far.code)",
    )
    store(io_manager, pd.DataFrame({"mood": ["good", "bad"], "code": ["a", "b"]}))

    assert delete_only(io_manager, Eq(["mood", "code"], [("bad", "b"), ("good", "b")])) == 1


KEYS = 100_000


@pytest.mark.parametrize(
    ("delete", "left"),
    [
        pytest.param(lambda ids, names: Eq("id", ids), {0, 1}, id="one column"),
        pytest.param(
            lambda ids, names: Eq("id", ids) | Eq("name", names), {0}, id="of two columns, either"
        ),
        pytest.param(lambda ids, names: Eq("name", [*names, None]), {0, 2}, id="with NULL"),
        pytest.param(
            lambda ids, names: Eq(["id", "name"], zip(ids, names, strict=True)),
            {0, 1, 2},
            id="composite",
        ),
    ],
)
def test_a_hundred_thousand_keys_are_looked_up_and_not_gone_through_for_each_row(
    database, io_manager, delete, left
):
    ids = np.arange(2, KEYS + 2)
    names = [f"name {number}" for number in (1, *range(3, KEYS + 2))]
    table = pd.DataFrame({"id": range(KEYS + 2)})
    store(io_manager, table.assign(name="name " + table["id"].astype(str)))
    # On a server of 14, or a poor one, this is what the keys would not fit into.
    execute(database, f"ALTER DATABASE {database.dbname} SET work_mem = '2MB'")
    execute(database, f"ALTER DATABASE {database.dbname} SET statement_timeout = '20s'")

    delete_only(io_manager, delete(ids, names))

    assert {row[0] for row in query(database, "SELECT id FROM numbers WHERE id < 3")} == left


# --- own rows only --------------------------------------------------------------------------


def test_only_rows_of_the_runs_partition_go(database, io_manager):
    def by_day(day, data):
        @dg.asset(name="numbers", partitions_def=dg.StaticPartitionsDefinition(["mo", "tu"]))
        def of_day():
            return data

        materialize(of_day, io_manager, partition_key=day)

    for day in ("mo", "tu"):
        by_day(day, files(("a", 1), (None, 2), ("b", 3)))

    by_day("tu", IncrementalDataFrame(files(("c", 4)), delete=Eq("file", ["a", None])))

    assert rows_of(database, "numbers", "n", "file") == {
        "mo": [(1, "a"), (2, None), (3, "b")],
        "tu": [(3, "b"), (4, "c")],
    }


@pytest.mark.parametrize("keyed", [False, True], ids=["inserted", "upserted"])
def test_a_run_over_several_partitions_deletes_in_each_and_counts_each(database, io_manager, keyed):
    options = {"primary_key": "n"} if keyed else {}
    first = {day: files(("a", n), ("b", n + 1)) for day, n in (("mo", 1), ("tu", 3), ("we", 5))}
    store_partitions(io_manager, first, ["mo", "tu", "we"], **options)

    later = {"mo": files(("a", 10), ("a", 11)), "tu": pd.DataFrame()}
    incremental = IncrementalDataFrame(later, delete=Eq("file", "a"))
    store_partitions(io_manager, incremental, ["mo", "tu"], **options)

    assert rows_of(database, "numbers", "n", "file") == {
        "mo": [(2, "b"), (10, "a"), (11, "a")],
        "tu": [(4, "b")],
        "we": [(5, "a"), (6, "b")],
    }
    assert query(
        database,
        """
        SELECT a.partition_key, m.rows_inserted, m.rows_deleted
        FROM meta.materializations AS m
        JOIN meta.assets AS a ON a.id = m.asset_id
        ORDER BY m.id DESC LIMIT 2
        """,
    ) == [("tu", 0, 1), ("mo", 2, 1)]


# --- with a primary key ---------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"incremental": True}])
def test_with_a_primary_key_rows_that_come_again_stay_in_place_and_the_others_go(
    database, io_manager, frame, options
):
    options = options | {"primary_key": "id"}
    store(io_manager, frame({"id": [1, 2, 3, 4], "file": ["a", "a", "a", "b"]}), **options)
    before = query(database, PLACE + "id = 1")

    later = frame({"id": [1, 2, 4, 5], "file": ["a", "A", "a", "a"]})
    done = store(io_manager, IncrementalDataFrame(later, delete=Eq("file", "a")), **options)

    assert rows(database) == [(1, "a"), (2, "A"), (4, "a"), (5, "a")]
    assert counts(done) == (1, 2, 1, 1)
    assert query(database, PLACE + "id = 1") == before


def test_without_a_delete_it_is_an_upsert(database, io_manager, frame):
    store(io_manager, frame({"id": [1, 2]}), primary_key="id")

    done = store(io_manager, IncrementalDataFrame(frame({"id": [2, 3]})), primary_key="id")

    assert rows(database) == [(1,), (2,), (3,)]
    assert counts(done) == (1, 0, 1, 0)


def test_repeated_keys_are_refused_and_nothing_goes(database, io_manager, frame):
    store(io_manager, frame({"id": [1, 2], "file": ["a", "b"]}), primary_key="id")
    before = fingerprint(database)
    repeated = IncrementalDataFrame(frame({"id": [7, 7], "file": ["a", "a"]}), Eq("file", "a"))

    with pytest.raises(BadValue, match="stands in more than one row, in rows 0 and 1"):
        store(io_manager, repeated, primary_key="id")

    assert fingerprint(database) == before


# --- refused before anything is written -----------------------------------------------------


@pytest.mark.parametrize(
    ("data", "columns"),
    [
        (pd.DataFrame(), "['file', 'n']"),
        (files(("a", 1)), "['file', 'n']"),
        (files(("a", 1)).assign(new=1), "['file', 'n', 'new']"),
    ],
)
def test_a_column_that_does_not_exist_is_refused_with_those_that_do(
    database, io_manager, data, columns
):
    store(io_manager, files(("a", 1)))
    before = fingerprint(database)

    with pytest.raises(ConfigurationError) as error:
        store(io_manager, IncrementalDataFrame(data, delete=Eq("n", 1) & Eq("flie", SECRET)))

    assert str(error.value) == (
        "asset numbers (public.numbers): delete names the column 'flie', which public.numbers "
        f"does not have. Its columns are {columns}."
    )
    assert fingerprint(database) == before


def test_a_column_that_comes_with_the_frame_may_be_named(database, io_manager, frame):
    store(io_manager, frame({"n": [1, 2]}))

    named = frame({"file": ["a"], "n": [1]})
    done = store(io_manager, IncrementalDataFrame(named, delete=Eq("file", ["a", None])))

    assert rows(database) == [(1, "a")]
    assert counts(done) == (1, 0, 0, 2)


def test_keys_are_compared_with_a_column_as_the_frame_widens_it(database, io_manager, frame):
    store(io_manager, frame({"n": np.array([1, 2], dtype="int32")}))

    big = frame({"n": [2**40]})
    done = store(io_manager, IncrementalDataFrame(big, delete=Eq("n", [1, 2**40])))

    assert rows(database) == [(2,), (2**40,)]
    assert counts(done) == (1, 0, 0, 1)


@pytest.mark.parametrize(
    ("delete", "error", "message"),
    [
        (Eq("n", [1, "x" + SECRET]), BadValue, "column 'n': delete: value 1 holds a str after int"),
        (Eq("n", ["1", "x" + SECRET]), BadValue, "'n': delete: value 1 does not fit into bigint"),
        (Eq("n", [1, 2**70]), BadValue, "'n': delete: value 1 does not fit into bigint"),
        (Eq("n", object()), BadValue, "'n': delete: value 0 holds a object"),
        (Eq("file", "\0" + SECRET), BadValue, "'file': delete: value 0 contains a NUL"),
        (Eq("file", 1), ConfigurationError, "'file', which is text, with values of type int64"),
        (Eq("file", True), ConfigurationError, "'file', which is text, with values of type bool"),
    ],
)
def test_a_key_that_cannot_be_one_is_refused_without_being_shown(
    database, io_manager, delete, error, message
):
    store(io_manager, files(("a", 1)))
    before = fingerprint(database)

    with pytest.raises(error, match=message) as caught:
        store(io_manager, IncrementalDataFrame(files(("a", 1)).assign(new=1), delete=delete))

    assert fingerprint(database) == before
    assert SECRET not in str(caught.value)


def test_with_neither_a_delete_nor_a_key_it_is_refused(database, io_manager, frame):
    before = fingerprint(database)

    with pytest.raises(ConfigurationError, match="needs to know which earlier rows go"):
        store(io_manager, IncrementalDataFrame(frame({"id": [1]})))

    assert fingerprint(database) == before


def test_incremental_asks_for_a_key_whatever_is_returned(database, io_manager):
    before = fingerprint(database)
    returned = IncrementalDataFrame(files(("a", 1)), delete=Eq("file", "a"))

    with pytest.raises(ConfigurationError, match="incremental needs a primary_key"):
        store(io_manager, returned, incremental=True)

    assert fingerprint(database) == before


@pytest.mark.parametrize(
    ("around", "error", "message"),
    [
        ([1, 2], UnsupportedFrame, r"cannot store a list; .* as pandas.DataFrame\(value\) does"),
        ("a", UnsupportedFrame, "cannot store a str"),
        (SQL("DELETE FROM t"), ConfigurationError, "takes a frame or a Query, and got .* SQL"),
        (
            IncrementalDataFrame(files(("a", 1))),
            ConfigurationError,
            "takes a frame or a Query, and got .* IncrementalDataFrame",
        ),
    ],
)
def test_what_is_no_frame_is_refused_inside_as_well(database, io_manager, around, error, message):
    before = fingerprint(database)

    with pytest.raises(error, match=message):
        store(io_manager, IncrementalDataFrame(around, delete=Eq("file", "a")))

    assert fingerprint(database) == before


# --- one transaction ------------------------------------------------------------------------


def test_rows_that_were_to_go_are_there_after_a_write_that_fails(database, io_manager, frame):
    store(io_manager, frame({"file": ["a", "b"], "n": [1, 2]}))
    execute(database, "ALTER TABLE numbers ADD CHECK (n < 10)")
    before = fingerprint(database)
    data = frame({"file": ["a", "a"], "n": [3, 11]})

    with pytest.raises(BadValue, match="numbers_n_check"):
        store(io_manager, IncrementalDataFrame(data, delete=Eq("file", "a")))

    assert fingerprint(database) == before


def test_readers_see_the_old_rows_until_the_new_ones_are_there(database, io_manager):
    store(io_manager, files(("a", 1), ("b", 2)))
    schema = pa.schema([("file", pa.string()), ("n", pa.int64())])
    seen = []

    def batches():
        for n in (3, 4):
            yield pa.record_batch([["a"], [n]], schema=schema)
            seen.append(rows(database))

    later = pa.RecordBatchReader.from_batches(schema, batches())
    store(io_manager, IncrementalDataFrame(later, delete=Eq("file", "a")))

    assert seen == [[("a", 1), ("b", 2)]] * 2
    assert rows(database) == [("a", 3), ("a", 4), ("b", 2)]


@pytest.mark.parametrize("options", [{}, {"primary_key": ["file", "n"]}], ids=["insert", "upsert"])
def test_two_at_once_on_the_same_keys_leave_one_set(database, io_manager, options):
    store(io_manager, files(("a", 1), ("b", 2)), **options)
    barrier = threading.Barrier(3)

    def write(number):
        data = files(*(("a", 10 * number + n) for n in range(5)))
        barrier.wait(timeout=30)
        store(io_manager, IncrementalDataFrame(data, delete=Eq("file", "a")), **options)

    for _round in range(3):
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(write, (1, 2, 3)))

        numbers = [n for file, n in rows(database) if file == "a"]
        assert numbers in [[10 * number + n for n in range(5)] for number in (1, 2, 3)]
        assert ("b", 2) in rows(database)


# --- what hangs on the table ----------------------------------------------------------------


@pytest.mark.parametrize("action", ["NO ACTION", "RESTRICT", "CASCADE", "SET NULL"])
@pytest.mark.parametrize("options", [{}, {"primary_key": "id"}], ids=["insert", "upsert"])
def test_rows_that_others_reference_may_go_and_come_again(database, io_manager, action, options):
    first = pd.DataFrame({"id": [1, 2, 3], "file": ["a", "a", "b"]})
    store(io_manager, first, primary_key="id")
    execute(
        database,
        f"CREATE TABLE child (parent bigint REFERENCES numbers ON DELETE {action})",
        "INSERT INTO child VALUES (1), (3)",
    )

    later = pd.DataFrame({"id": [1, 4], "file": ["a", "a"]})
    store(io_manager, IncrementalDataFrame(later, delete=Eq("file", "a")), **options)

    assert rows(database) == [(1, "a"), (3, "b"), (4, "a")]
    assert query(database, "SELECT parent FROM child ORDER BY 1") == [(1,), (3,)]


@pytest.mark.parametrize("options", [{}, {"primary_key": "id"}], ids=["insert", "upsert"])
def test_rows_that_others_reference_and_that_do_not_come_again_are_an_error(
    database, io_manager, options
):
    store(io_manager, pd.DataFrame({"id": [1, 2], "file": ["a", "a"]}), primary_key="id")
    execute(
        database,
        "CREATE TABLE child (parent bigint REFERENCES numbers)",
        "INSERT INTO child VALUES (1)",
    )
    before = fingerprint(database)
    later = pd.DataFrame({"id": [2], "file": ["a"]})

    with pytest.raises(DagsterToolsError, match="child_parent_fkey"):
        store(io_manager, IncrementalDataFrame(later, delete=Eq("file", "a")), **options)

    assert fingerprint(database) == before
