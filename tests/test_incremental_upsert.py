"""Upserts: rows of the same key are updated where they differ, the others come to those there."""

from __future__ import annotations

import datetime as dt
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from decimal import Decimal

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from psycopg.errors import DeadlockDetected

from dagster_tools.errors import BadValue, ConfigurationError, SchemaConflict
from dagster_tools.sql import Query
from tests.partitioned import backfill, rows_of, store_partitions
from tests.pipelines import (
    column_types,
    fingerprint,
    load,
    logged,
    materialize,
    query,
    rows,
    store,
)

BY_ID = {"primary_key": "id", "incremental": True}


@pytest.fixture
def database(cleaned_database):
    return cleaned_database


def execute(database, *statements):
    with database.connect() as connection:
        for statement in statements:
            connection.execute(statement)


def counts(metadata):
    """Return what a write says it did: rows inserted, updated, unchanged and deleted."""
    found = [metadata[f"rows_{word}"] for word in ("inserted", "updated", "unchanged", "deleted")]
    return tuple(getattr(value, "value", value) for value in found)


def places(database, table="numbers"):
    """Return where each row is and which transaction wrote it, with its materialization."""
    found = query(database, f"SELECT id, ctid, xmin, materialization_id FROM {table}")
    return {row[0]: row[1:] for row in found}


# --- new, changed, unchanged ----------------------------------------------------------------


def test_new_keys_are_inserted_changed_rows_updated_and_all_others_stay(
    database, io_manager, frame
):
    store(io_manager, frame({"id": [1, 2, 3], "name": ["a", "b", "c"]}), **BY_ID)

    done = store(io_manager, frame({"id": [4, 2, 3], "name": ["d", "B", "c"]}), **BY_ID)

    assert rows(database) == [(1, "a"), (2, "B"), (3, "c"), (4, "d")]
    assert counts(done) == (1, 1, 1, 0)


def test_the_first_write_inserts_every_row(database, io_manager, frame):
    done = store(io_manager, frame({"id": [2, 1]}), **BY_ID)

    assert rows(database) == [(1,), (2,)]
    assert counts(done) == (2, 0, 0, 0)


def test_an_unchanged_row_is_not_rewritten_and_keeps_its_materialization(
    database, io_manager, frame
):
    store(io_manager, frame({"id": [1, 2, 3], "name": ["a", None, "c"]}), **BY_ID)
    before = places(database)

    store(io_manager, frame({"id": [3, 2, 1], "name": ["C", None, "a"]}), **BY_ID)

    after = places(database)
    assert {1: after[1], 2: after[2]} == {1: before[1], 2: before[2]}
    assert after[3] != before[3]


def test_where_nothing_changed_the_table_is_not_written_to_at_all(database, io_manager):
    numbers = pd.DataFrame({"id": range(1000), "x": np.arange(1000) / 7})
    store(io_manager, numbers, **BY_ID)
    with database.connect() as connection:
        connection.execute("VACUUM numbers")

    done = store(io_manager, numbers[::-1], **BY_ID)

    assert counts(done) == (0, 0, 1000, 0)
    # A lock would leave its mark in the row, and its page would no longer be all visible.
    assert query(database, "SELECT count(*) FROM numbers WHERE xmax <> 0") == [(0,)]
    assert query(
        database, "SELECT relallvisible = relpages FROM pg_class WHERE relname = 'numbers'"
    )


def test_a_row_belongs_to_the_run_that_last_changed_it(database, io_manager):
    for names in (["a", "b"], ["a", "B"], ["a", "B"]):
        store(io_manager, pd.DataFrame({"id": [1, 2], "name": names}), **BY_ID)

    runs = query(database, "SELECT id FROM meta.materializations ORDER BY id")
    [(first,), (second,), _third] = runs
    assert query(database, "SELECT id, materialization_id FROM numbers ORDER BY id") == [
        (1, first),
        (2, second),
    ]
    assert query(
        database,
        """
        SELECT rows_inserted, rows_updated, rows_unchanged, rows_deleted
        FROM meta.materializations
        ORDER BY id
        """,
    ) == [(2, 0, 0, 0), (0, 1, 1, 0), (0, 0, 2, 0)]


def test_a_frame_of_nothing_but_keys_adds_those_that_are_new(database, io_manager, frame):
    store(io_manager, frame({"id": [1, 2]}), **BY_ID)
    before = places(database)

    done = store(io_manager, frame({"id": [3, 1]}), **BY_ID)

    assert counts(done) == (1, 0, 1, 0)
    assert places(database).items() >= before.items()


def test_an_empty_frame_changes_nothing_and_is_recorded(database, io_manager, frame):
    store(io_manager, frame({"id": [1]}), **BY_ID)

    done = store(io_manager, frame({"id": np.array([], dtype="int64")}), **BY_ID)

    assert rows(database) == [(1,)]
    assert counts(done) == (0, 0, 0, 0)
    assert query(database, "SELECT count(*) FROM meta.materializations") == [(2,)]


def test_an_empty_frame_of_an_upsert_is_no_reason_for_a_warning(io_manager, caplog):
    @dg.asset(metadata=BY_ID)
    def numbers():
        return pd.DataFrame({"id": []})

    result = materialize(numbers, io_manager)

    assert logged(result, level="WARNING") == []


def test_a_query_is_upserted_inside_the_server(database, io_manager):
    numbers = "SELECT i AS id, CASE WHEN i > %(big)s THEN 'big' END AS size "
    text = numbers + "FROM generate_series(1, %(last)s) AS i"
    store(io_manager, Query(text, big=2, last=3), **BY_ID)

    done = store(io_manager, Query(text, big=1, last=4), **BY_ID)

    assert counts(done) == (1, 1, 2, 0)
    assert rows(database) == [(1, None), (2, "big"), (3, "big"), (4, "big")]


# --- how it is said -------------------------------------------------------------------------


@pytest.mark.parametrize("said", [True, "true", "True", dg.MetadataValue.bool(True)])
@pytest.mark.parametrize("when", ["definition", "output", "run"])
def test_incremental_may_be_said_in_the_definition_or_by_the_run(database, io_manager, said, when):
    ids = iter([1, 2])

    defined = {"incremental": said} if when == "definition" else {}

    @dg.asset(metadata={"primary_key": "id"} | defined)
    def numbers(context):
        if when == "run":
            context.add_output_metadata({"incremental": said})
        metadata = {"incremental": said} if when == "output" else {}
        return dg.Output(pd.DataFrame({"id": [next(ids)]}), metadata=metadata)

    for _run in range(2):
        materialize(numbers, io_manager)

    assert rows(database) == [(1,), (2,)]


def test_the_runs_word_wins_over_the_definitions(database, io_manager):
    @dg.asset(metadata=BY_ID)
    def numbers():
        return dg.Output(pd.DataFrame({"id": [2]}), metadata={"incremental": "false"})

    store(io_manager, pd.DataFrame({"id": [1]}), **BY_ID)
    materialize(numbers, io_manager)

    assert rows(database) == [(2,)]


def test_a_run_logs_what_it_did_as_metadata_of_the_asset(io_manager):
    @dg.asset(metadata=BY_ID)
    def numbers():
        return pd.DataFrame({"id": [1, 2]})

    (event,) = materialize(numbers, io_manager).asset_materializations_for_node("numbers")

    assert counts(event.metadata) == (2, 0, 0, 0)
    assert "dagster/row_count" not in event.metadata  # of the table, it would be a guess


# --- keys -----------------------------------------------------------------------------------

UUIDS = [uuid.UUID(int=number) for number in range(3)]
NOON = dt.datetime(2024, 1, 1, 12, tzinfo=dt.timezone.utc)


@pytest.mark.parametrize(
    ("type_", "keys"),
    [
        ("text", ["", "a", "A"]),
        ("varchar(3)", ["é", "e", "'\""]),
        ("uuid", UUIDS),
        ("date", [dt.date(2024, 1, day) for day in (1, 2, 3)]),
        ("numeric", [Decimal("1.5"), Decimal(-1), Decimal("1e20")]),
        ("numeric(6,2)", [Decimal("1.50"), Decimal("-1.00"), Decimal("0.00")]),
        ("timestamptz", [NOON, NOON.replace(microsecond=1), NOON.replace(year=1900)]),
        ("bigint", [2**62, -(2**62), 0]),
        ("double precision", [0.1, -5e-324, 1e308]),
        ("bytea", [b"", b"\0", b"\xff"]),
        ("interval", [dt.timedelta(0), dt.timedelta(1), dt.timedelta(-1)]),
        ("inet", ["::1", "10.0.0.1", "10.0.0.2"]),
    ],
)
def test_keys_may_be_of_any_type_that_has_an_order(database, io_manager, type_, keys):
    options = {"primary_key": "k", "incremental": True, "columns": {"k": type_}}
    store(io_manager, pd.DataFrame({"k": keys[:2], "v": [1, 1]}, dtype=object), **options)

    again = pd.DataFrame({"k": keys[::-1], "v": [3, 2, 1]}, dtype=object)
    done = store(io_manager, again, **options)

    assert counts(done) == (1, 1, 1, 0)
    assert sorted(value for _key, value in rows(database)) == [1, 2, 3]


@pytest.mark.parametrize("key", [("user", "day"), ["day", "user"]])
def test_a_composite_key_is_the_same_where_every_part_is(database, io_manager, frame, key):
    options = {"primary_key": key, "incremental": True}
    store(io_manager, frame({"user": [1, 1], "day": ["mo", "tu"], "n": [1, 2]}), **options)

    later = frame({"user": [1, 2, 1], "day": ["tu", "mo", "mo"], "n": [20, 3, 1]})
    done = store(io_manager, later, **options)

    assert counts(done) == (1, 1, 1, 0)
    assert rows(database) == [(1, "mo", 1), (1, "tu", 20), (2, "mo", 3)]


def test_names_that_need_quotes_are_names_like_others(database, io_manager):
    odd = ['a"b', "%s", "{}", "order"]
    options = {"primary_key": odd[:2], "incremental": True, "table": "t"}

    for value in (1, 2):
        store(io_manager, pd.DataFrame([[1, 1, value, value]], columns=odd), **options)

    assert rows(database, "public.t") == [(1, 1, 2, 2)]


def test_a_table_without_a_primary_key_gets_it(database, io_manager):
    execute(database, "CREATE TABLE numbers (id bigint, v text)")
    execute(database, "INSERT INTO numbers VALUES (1, 'a'), (2, 'b')")

    done = store(io_manager, pd.DataFrame({"id": [2, 3], "v": ["B", "c"]}), **BY_ID)

    assert counts(done) == (1, 1, 0, 0)
    assert rows(database) == [(1, "a"), (2, "B"), (3, "c")]
    assert query(
        database,
        """
        SELECT contype, pg_get_constraintdef(oid)
        FROM pg_constraint
        WHERE conrelid = 'numbers'::regclass
        """,
    ) == [("p", "PRIMARY KEY (id)")]


def test_a_table_with_another_primary_key_is_a_conflict(database, io_manager):
    store(io_manager, pd.DataFrame({"id": [1], "code": ["a"]}), primary_key="code")
    before = fingerprint(database)

    with pytest.raises(SchemaConflict, match=r"has the primary key \['code'\]"):
        store(io_manager, pd.DataFrame({"id": [1], "code": ["b"]}), **BY_ID)

    assert fingerprint(database) == before


@pytest.mark.parametrize("standing", ["(1, 'a'), (1, 'b')", "(NULL, 'a')"], ids=["repeat", "NULL"])
def test_a_table_whose_rows_forbid_the_primary_key_is_a_conflict_and_stays(
    database, io_manager, standing
):
    execute(database, "CREATE TABLE numbers (id bigint, v text)")
    execute(database, f"INSERT INTO numbers VALUES {standing}")

    with pytest.raises(SchemaConflict, match=r"'id'"):
        store(io_manager, pd.DataFrame({"id": [2], "v": ["c"]}), **BY_ID)

    assert len(rows(database)) == standing.count("(")
    assert query(
        database, "SELECT count(*) FROM pg_constraint WHERE conrelid = 'numbers'::regclass"
    ) == [(0,)]
    assert query(
        database, "SELECT count(*) FROM pg_index WHERE indrelid = 'numbers'::regclass"
    ) == [(0,)]


@pytest.mark.parametrize("new", [0, 49, 51, 100], ids="{}% are new".format)
def test_how_many_rows_are_new_is_a_matter_of_speed_alone(database, io_manager, new):
    """From 10,000 rows on, a look at a hundred tells whether INSERT or UPDATE goes first."""
    count = 12_000
    first = pd.DataFrame({"id": range(count), "v": 0})
    store(io_manager, first, **BY_ID)

    later = first.assign(id=first["id"] + count * new // 100, v=first["id"] % 2)
    done = store(io_manager, later, **BY_ID)

    inserted, kept = count * new // 100, count - count * new // 100
    assert counts(done) == (inserted, kept // 2, kept - kept // 2, 0)
    found = query(database, "SELECT count(*), sum(v), max(id) FROM numbers")
    assert found == [(count + inserted, count // 2, count + inserted - 1)]


# --- refused before anything is written -----------------------------------------------------


@pytest.mark.parametrize("written_before", [False, True], ids=["first write", "later write"])
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (
            [5, 6, 7, 6],
            r"1 value of the primary key \['id'\] stands in more than one row, in rows 1",
        ),
        ([5, 6, 5, 6, 6], r"2 values of the primary key \['id'\] stand in .* in rows 0 and 2\."),
    ],
)
def test_repeated_keys_are_refused_with_how_many_there_are_and_where(
    database, io_manager, frame, written_before, ids, message
):
    if written_before:
        store(io_manager, frame({"id": [5, 6], "v": ["a", "b"]}), **BY_ID)
    before = all_rows(database)

    with pytest.raises(BadValue, match=message) as error:
        store(io_manager, frame({"id": ids, "v": ["S3cr3t"] * len(ids)}), **BY_ID)

    assert all_rows(database) == before
    assert error.value.__context__ is None  # PostgreSQL's own error shows the key


def all_rows(database):
    """Return the rows of every table that has any, with the transaction that wrote each."""
    found = fingerprint(database)
    tables = query(database, "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r'")
    return {name: found[name] for (name,) in tables if found.get(name)}


def test_a_key_repeated_far_down_a_stream_is_refused_as_well(database, io_manager):
    store(io_manager, pd.DataFrame({"id": [1]}), **BY_ID)
    ids = [*range(20_000), 3]

    with pytest.raises(BadValue, match="stands in more than one row, in rows 3 and 20000"):
        store(io_manager, pa.table({"id": ids}).to_reader(max_chunksize=5000), **BY_ID)

    assert rows(database) == [(1,)]


def test_keys_are_repeated_by_the_servers_equality(database, io_manager):
    options = {"primary_key": "k", "incremental": True, "columns": {"k": "numeric"}}
    store(io_manager, pd.DataFrame({"k": [Decimal(7)]}), **options)

    with pytest.raises(BadValue, match="in rows 0 and 1"):
        store(io_manager, pd.DataFrame({"k": ["1.0", "1.00"]}), **options)


def test_of_a_composite_key_only_the_whole_is_unique(io_manager, frame):
    options = {"primary_key": ["a", "b"], "incremental": True}
    store(io_manager, frame({"a": [1, 1, 2], "b": [1, 2, 1]}), **options)

    with pytest.raises(BadValue, match=r"primary key \['a', 'b'\] stands .* in rows 1 and 3"):
        store(io_manager, frame({"a": [1, 1, 2, 1], "b": [1, 2, 1, 2]}), **options)


@pytest.mark.parametrize("written_before", [False, True], ids=["first write", "later write"])
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"a": [1, None, 2, None], "b": [1, 1, 1, 1]},
            r"2 rows have NULL in the primary key \['a', 'b'\], in column 'a': row 1, 3\.",
        ),
        (
            {"a": [None, 1, 2, 3], "b": [1, 1, None, 1]},
            r"2 rows have NULL in the primary key \['a', 'b'\], in column 'a' and 'b': row 0, 2\.",
        ),
        (
            {"a": [1, 2, 3, 4], "b": [1, 1, 1, None]},
            r"1 row has NULL in the primary key \['a', 'b'\], in column 'b': row 3\.",
        ),
    ],
)
def test_null_in_a_key_is_refused_with_how_many_there_are_and_where(
    database, io_manager, written_before, columns, message
):
    options = {"primary_key": ["a", "b"], "incremental": True}
    if written_before:
        store(io_manager, pd.DataFrame({"a": [1], "b": [1]}), **options)
    before = fingerprint(database)

    with pytest.raises(BadValue, match=message):
        store(io_manager, pa.table(columns), **options)

    assert fingerprint(database) == before


def test_null_in_a_key_far_down_a_stream_is_refused_as_well(database, io_manager):
    store(io_manager, pd.DataFrame({"id": [1]}), **BY_ID)
    ids = pa.array([*range(10_000), None, None])

    with pytest.raises(BadValue, match=r"2 rows have NULL in the primary key .* row 10000, 10001"):
        store(io_manager, pa.table({"id": ids}).to_reader(max_chunksize=5000), **BY_ID)

    assert rows(database) == [(1,)]


def test_of_many_rows_without_a_key_the_first_are_named(io_manager):
    with pytest.raises(BadValue, match=r"9 rows have NULL .* row 1, 2, 3, 4, 5 and 4 more"):
        store(io_manager, pd.DataFrame({"id": pd.array([1, *[None] * 9], "Int64")}), **BY_ID)


@pytest.mark.parametrize("said", [True, "true"])
@pytest.mark.parametrize("key", [{}, {"primary_key": None}, {"primary_key": ()}])
def test_incremental_without_a_primary_key_is_refused_before_anything_is_written(
    database, io_manager, frame, said, key
):
    before = fingerprint(database)

    with pytest.raises(ConfigurationError, match="incremental needs a primary_key"):
        store(io_manager, frame({"id": [1]}), incremental=said, **key)

    assert fingerprint(database) == before


def test_a_key_the_frame_lacks_is_refused(database, io_manager, frame):
    execute(database, "CREATE TABLE numbers (id int GENERATED BY DEFAULT AS IDENTITY, v int)")
    declared = {"columns": {"id": "int"}}
    before = fingerprint(database)

    with pytest.raises(ConfigurationError, match=r"primary_key names \['id'\], which the frame"):
        store(io_manager, frame({"v": [1]}), **BY_ID, **declared)

    assert fingerprint(database) == before


def test_a_rule_of_the_table_that_a_row_breaks_is_named_and_no_value(database, io_manager):
    columns = {"columns": {"mail": ("string", "unique"), "n": "uint"}}
    store(io_manager, pd.DataFrame({"id": [1], "mail": ["S3cr3t"], "n": [1]}), **BY_ID, **columns)
    before = rows(database)

    with pytest.raises(BadValue, match="numbers_mail_key") as error:
        store(io_manager, pd.DataFrame({"id": [2], "mail": ["S3cr3t"], "n": [1]}), **BY_ID)

    assert rows(database) == before
    assert "S3cr3t" not in str(error.value)
    assert error.value.__suppress_context__


# --- what differs ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "value", "same", "other"),
    [
        pytest.param("float", [float("nan")], [float("nan")], [1.0], id="NaN"),
        pytest.param("float", [None], [None], [float("nan")], id="NULL and NaN"),
        pytest.param("string", [None], [None], [""], id="NULL and empty text"),
        pytest.param("string", ["a"], ["a"], ["A"], id="text"),
        pytest.param("numeric", ["1.50"], ["1.5"], ["1.51"], id="numeric"),
        pytest.param("numeric", ["NaN"], ["NaN"], ["0"], id="numeric NaN"),
        pytest.param(
            "jsonb", ['{"a": 1, "b": [null]}'], ['{"b":[null],  "a":1}'], ['{"a":1}'], id="jsonb"
        ),
        pytest.param("jsonb", ["null"], ["null"], [None], id="jsonb null and NULL"),
        pytest.param("json", ['{"a": 1}'], ['{"a": 1}'], ['{"a":1}'], id="json"),
        pytest.param("bigint[]", [[1, None]], [[1, None]], [[None, 1]], id="array"),
        pytest.param("text[]", [[]], [[]], [None], id="empty array and NULL"),
        pytest.param("bytea", [b"\0"], [b"\0"], [b"\0\0"], id="bytes"),
        pytest.param("interval", ["30 days"], ["30 days"], ["1 month"], id="interval"),
        pytest.param("point", ["(1,2)"], ["(1, 2)"], ["(1,3)"], id="point"),
        pytest.param("xml", ["<a/>"], ["<a/>"], ["<b/>"], id="xml"),
        pytest.param("box", ["(1,1),(0,0)"], ["(1,1),(0,0)"], ["(2,1),(1,0)"], id="box"),
        pytest.param("int4range", ["[1,3)"], ["[1,2]"], ["[1,3]"], id="range"),
        pytest.param("bool", [True], [True], [False], id="bool"),
        pytest.param(
            "geometry",
            ["SRID=4326;POINT(1 2)"],
            ["SRID=4326;POINT(1 2)"],
            ["SRID=4326;POINT(1 3)"],
            id="geometry",
        ),
    ],
)
def test_rows_differ_where_a_user_could_tell_them_apart(
    database, io_manager, type_, value, same, other
):
    arrow = {
        "float": pa.float64(),
        "bigint[]": pa.list_(pa.int64()),
        "text[]": pa.list_(pa.string()),
    }
    options = BY_ID | {"columns": {"v": type_}}

    def stored(values):
        column = pa.array(values, arrow[type_]) if type_ in arrow else pa.array(values)
        return counts(store(io_manager, pa.table({"id": [1], "v": column}), **options))

    stored(value)

    assert stored(same) == (0, 0, 1, 0)
    assert stored(other) == (0, 1, 0, 0)
    assert stored(value) == (0, 1, 0, 0)


def test_types_are_compared_that_have_no_equality_or_whose_schema_is_out_of_sight(
    database, io_manager
):
    execute(
        database,
        "CREATE SCHEMA far",
        "CREATE TYPE far.pair AS (a point, b json)",
        "CREATE TABLE numbers (id bigint PRIMARY KEY, v far.pair)",
    )

    def stored(text):
        return counts(store(io_manager, pd.DataFrame({"id": [1], "v": [text]}), **BY_ID))

    stored('("(1,2)",{})')

    assert stored('("(1,2)",{})') == (0, 0, 1, 0)
    assert stored('("(1,3)",{})') == (0, 1, 0, 0)


# --- loading, and the way there and back ----------------------------------------------------


def test_loading_gives_all_rows_whichever_run_wrote_them(io_manager, frame):
    for first in (0, 2, 4):
        store(io_manager, frame({"id": [first, first + 1, first + 2]}), **BY_ID)

    loaded = load(io_manager, upstream=BY_ID, order_by="id")

    assert loaded["id"].tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_loading_leaves_out_what_others_have_in_the_table(io_manager):
    shared = BY_ID | {"table": "shared"}
    store(io_manager, pd.DataFrame({"id": [1, 2]}), key="ours", **shared)
    store(io_manager, pd.DataFrame({"id": [3]}), key="theirs", **shared)
    store(io_manager, pd.DataFrame({"id": [4]}), key="ours", **shared)

    assert sorted(load(io_manager, key="ours", upstream=shared)["id"]) == [1, 2, 4]
    assert load(io_manager, key="theirs", upstream=shared)["id"].tolist() == [3]


def test_from_replace_to_incremental_and_back(database, io_manager, frame):
    store(io_manager, frame({"id": [1, 2], "v": ["a", "b"]}))
    store(io_manager, frame({"id": [2, 3], "v": ["B", "c"]}), **BY_ID)
    assert rows(database) == [(1, "a"), (2, "B"), (3, "c")]

    done = store(io_manager, frame({"id": [3, 4], "v": ["c", "d"]}), primary_key="id")

    assert rows(database) == [(3, "c"), (4, "d")]
    assert done["dagster/row_count"].value == 2


# --- partitions -----------------------------------------------------------------------------


def store_day(manager, day, data):
    """Materialize one partition of a daily asset, in a run."""

    @dg.asset(metadata=BY_ID, partitions_def=dg.StaticPartitionsDefinition(["mo", "tu"]))
    def numbers():
        return data

    materialize(numbers, manager, partition_key=day)


def test_a_partitions_upsert_leaves_the_other_partitions_rows(database, io_manager):
    for day, ids, value in (("mo", [1, 2], "a"), ("tu", [3], "a"), ("mo", [2, 4], "b")):
        store_day(io_manager, day, pd.DataFrame({"id": ids, "v": value}))

    assert rows_of(database, "numbers", "id", "v") == {
        "mo": [(1, "a"), (2, "b"), (4, "b")],
        "tu": [(3, "a")],
    }


def test_a_row_moves_to_the_partition_that_changes_it_and_to_no_other(database, io_manager):
    for day, names in (("mo", ["a", "b"]), ("tu", ["a", "B"])):
        store_day(io_manager, day, pd.DataFrame({"id": [1, 2], "v": names}))

    assert rows_of(database, "numbers", "id", "v") == {"mo": [(1, "a")], "tu": [(2, "B")]}


@pytest.mark.parametrize("form", ["dict", "partition_expr"])
def test_several_partitions_in_one_run_are_upserted_and_counted_each(database, io_manager, form):
    def frames(**ids):
        parts = {day: pd.DataFrame({"id": i, "day": day, "v": v}) for day, (i, v) in ids.items()}
        return parts if form == "dict" else pd.concat(parts.values(), ignore_index=True)

    options = BY_ID | ({"partition_expr": "day"} if form == "partition_expr" else {})
    store_partitions(io_manager, frames(mo=([1, 2], "a"), tu=([3], "a")), ["mo", "tu"], **options)

    changed = frames(mo=([2, 4, 5], ["a", "a", "a"]), tu=([3, 6], "b"))
    store_partitions(io_manager, changed, ["mo", "tu"], **options)

    assert rows_of(database, "numbers", "id", "v") == {
        "mo": [(1, "a"), (2, "a"), (4, "a"), (5, "a")],
        "tu": [(3, "b"), (6, "b")],
    }
    assert query(
        database,
        """
        SELECT a.partition_key, m.rows_inserted, m.rows_updated, m.rows_unchanged
        FROM meta.materializations AS m
        JOIN meta.assets AS a ON a.id = m.asset_id
        ORDER BY m.id DESC LIMIT 2
        """,
    ) == [("tu", 1, 1, 0), ("mo", 2, 0, 1)]


def test_a_key_that_two_partitions_of_one_run_have_is_refused(io_manager):
    both = {"mo": pd.DataFrame({"id": [1, 2]}), "tu": pd.DataFrame({"id": [2]})}
    store_partitions(io_manager, {"mo": both["mo"], "tu": both["mo"][:0]}, ["mo", "tu"], **BY_ID)

    with pytest.raises(BadValue, match="stands in more than one row, in rows 1 and 2"):
        store_partitions(io_manager, both, ["mo", "tu"], **BY_ID)


def test_a_backfill_of_windows_is_upserted_by_partition_expr(database, io_manager):
    @dg.asset(
        partitions_def=dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-01-03"),
        backfill_policy=dg.BackfillPolicy.single_run(),
        metadata=BY_ID | {"partition_expr": "at"},
    )
    def numbers():
        at = pd.to_datetime(["2024-01-01 05:00", "2024-01-02 23:59"])
        return pd.DataFrame({"id": [1, 2], "at": at})

    for _attempt in range(2):
        backfill(numbers, io_manager, "2024-01-01", "2024-01-02")

    assert {key: len(found) for key, found in rows_of(database, "numbers", "id").items()} == {
        "2024-01-01": 1,
        "2024-01-02": 1,
    }


# --- when the frame is not what it was ------------------------------------------------------


def test_a_new_column_is_added_and_filled_where_rows_change(database, io_manager, frame):
    store(io_manager, frame({"id": [1, 2]}), **BY_ID)

    done = store(io_manager, frame({"id": [2, 3], "new": ["x", "y"]}), **BY_ID)

    assert counts(done) == (1, 1, 0, 0)
    assert rows(database) == [(1, None), (2, "x"), (3, "y")]


def test_a_column_the_frame_lacks_keeps_its_values_where_rows_change(database, io_manager, frame):
    store(io_manager, frame({"id": [1, 2], "a": ["x", "y"], "b": [1, 1]}), **BY_ID)

    done = store(io_manager, frame({"b": [2, 1, 3], "id": [1, 2, 3]}), **BY_ID)

    assert counts(done) == (1, 1, 1, 0)
    assert rows(database) == [(1, "x", 2), (2, "y", 1), (3, None, 3)]


@pytest.mark.parametrize("column", ["id", "v"])
def test_a_type_is_widened_for_a_value_that_does_not_fit(database, io_manager, frame, column):
    small = {"id": np.array([1, 2], dtype="int32"), "v": np.array([1, 2], dtype="int32")}
    store(io_manager, frame(small), **BY_ID)

    big = frame({"id": [2, 3], "v": [2, 3]} | {column: [2, 2**40]})
    done = store(io_manager, big, **BY_ID)

    assert counts(done) == (1, 0, 1, 0)
    assert column_types(database)[column] == "bigint"


@pytest.mark.parametrize("column", ["id", "v"])
def test_a_type_is_widened_in_the_middle_of_a_stream_once_all_rows_are_staged(
    database, io_manager, column
):
    small = pa.table({"id": pa.array([1, 2], pa.int32()), "v": pa.array([1, 2], pa.int32())})
    store(io_manager, small, **BY_ID)
    big = pa.table({"id": [2, 3, 4], "v": [2, 3, 4]} | {column: [2, 2**40, 4]})
    seen = []

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in big.to_batches(max_chunksize=1):
            yield batch
            seen.append(column_types(database)[column])

    done = store(io_manager, pa.RecordBatchReader.from_batches(big.schema, batches()), **BY_ID)

    assert counts(done) == (2, 0, 1, 0)
    assert seen == ["integer"] * 3  # nobody had to wait while rows were on the way
    assert column_types(database)[column] == "bigint"
    schema = done["dagster/column_schema"].value
    assert next(c.type for c in schema.columns if c.name == column) == "bigint"


# --- what hangs on the table ----------------------------------------------------------------


@pytest.mark.parametrize("action", ["NO ACTION", "CASCADE", "SET NULL", "RESTRICT"])
def test_rows_that_others_reference_are_updated_in_place(database, io_manager, frame, action):
    store(io_manager, frame({"id": [1, 2], "v": ["a", "b"]}), **BY_ID)
    with database.connect() as connection:
        connection.execute(
            f"CREATE TABLE child (parent bigint REFERENCES numbers ON DELETE {action})"
        )
        connection.execute("INSERT INTO child VALUES (1), (2)")

    done = store(io_manager, frame({"id": [2, 3], "v": ["B", "c"]}), **BY_ID)

    assert counts(done) == (1, 1, 0, 0)
    assert query(database, "SELECT parent FROM child ORDER BY 1") == [(1,), (2,)]


def test_triggers_see_an_insert_as_one_an_update_as_one_and_an_unchanged_row_not_at_all(
    database, io_manager
):
    store(io_manager, pd.DataFrame({"id": [1, 2], "v": ["a", "b"]}), **BY_ID)
    with database.connect() as connection:
        connection.execute("CREATE TABLE seen (event text, id bigint)")
        connection.execute(
            """
            CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                INSERT INTO seen VALUES (TG_WHEN || ' ' || TG_OP, NEW.id);
                RETURN NEW;
            END $$
            """
        )
        for when in ("BEFORE", "AFTER"):
            connection.execute(
                f"CREATE TRIGGER see_{when} {when} INSERT OR UPDATE OR DELETE ON numbers "
                "FOR EACH ROW EXECUTE FUNCTION see()"
            )

    store(io_manager, pd.DataFrame({"id": [1, 2, 3], "v": ["a", "B", "c"]}), **BY_ID)

    assert sorted(query(database, "SELECT * FROM seen")) == [
        ("AFTER INSERT", 3),
        ("AFTER UPDATE", 2),
        ("BEFORE INSERT", 3),
        ("BEFORE UPDATE", 2),
    ]


def test_generated_and_identity_columns_and_defaults_are_the_servers_to_fill(database, io_manager):
    with database.connect() as connection:
        connection.execute(
            """
            CREATE TABLE numbers (
                id bigint PRIMARY KEY,
                v bigint,
                twice bigint GENERATED ALWAYS AS (v * 2) STORED,
                serial int GENERATED ALWAYS AS IDENTITY,
                made text DEFAULT 'by default'
            )
            """
        )
    store(io_manager, pd.DataFrame({"id": [1, 2], "v": [1, 2]}), **BY_ID)

    store(io_manager, pd.DataFrame({"id": [1, 2, 3], "v": [1, 20, 3]}), **BY_ID)

    assert rows(database) == [
        (1, 1, 2, 1, "by default"),
        (2, 20, 40, 2, "by default"),
        (3, 3, 6, 3, "by default"),  # an update takes no number out of the sequence
    ]


# --- beside others --------------------------------------------------------------------------


@contextmanager
def uncommitted(database, statement):
    """Run a statement in another session's transaction, which the block commits."""
    with database.connect(autocommit=False) as other:
        other.execute(statement)
        yield other


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("UPDATE numbers SET v = 'theirs' WHERE id = 1", id="updated"),
        pytest.param("INSERT INTO numbers VALUES (7, 'theirs')", id="inserted"),
        pytest.param("DELETE FROM numbers WHERE id = 1", id="deleted"),
    ],
)
def test_an_upsert_waits_for_a_writer_who_has_one_of_its_rows_and_then_has_it(
    database, io_manager, statement
):
    store(io_manager, pd.DataFrame({"id": [1, 2], "v": ["a", "b"]}), **BY_ID)
    data = pd.DataFrame({"id": [7, 2, 1], "v": "ours"})

    with ThreadPoolExecutor(1) as pool, uncommitted(database, statement) as other:
        writing = pool.submit(store, io_manager, data, **BY_ID)
        wait([writing], timeout=0.6)  # longer than it takes to give way
        waited = not writing.done()
        other.commit()
        writing.result(timeout=30)

    assert waited
    assert rows(database) == [(1, "ours"), (2, "ours"), (7, "ours")]


def test_an_upsert_waits_for_nobody_whose_rows_are_not_its_own(database, io_manager):
    store(io_manager, pd.DataFrame({"id": [1, 2], "v": ["a", "b"]}), **BY_ID)

    with uncommitted(database, "UPDATE numbers SET v = 'theirs' WHERE id = 1") as other:
        store(io_manager, pd.DataFrame({"id": [2, 3], "v": ["B", "c"]}), **BY_ID)
        other.commit()

    assert rows(database) == [(1, "theirs"), (2, "B"), (3, "c")]


def test_a_writer_who_waits_holds_none_of_the_rows_it_may_have_had(database, io_manager):
    store(io_manager, pd.DataFrame({"id": range(5), "v": "a"}), **BY_ID)
    data = pd.DataFrame({"id": range(5), "v": "ours"})
    theirs = "UPDATE numbers SET v = 'theirs' WHERE id = {}"

    with ThreadPoolExecutor(1) as pool, uncommitted(database, theirs.format(4)) as other:
        writing = pool.submit(store, io_manager, data, **BY_ID)
        other.execute("SET lock_timeout = '5s'")
        wait([writing], timeout=0.1)
        other.execute(theirs.format(0))
        other.commit()
        writing.result(timeout=30)

    assert {value for _id, value in rows(database)} == {"ours"}


ROUNDS = 4
KEYS = 300


@pytest.mark.parametrize("kind", ["one asset", "assets", "partitions"])
def test_upserts_of_the_same_keys_in_any_order_neither_deadlock_nor_lose_a_row(
    database, io_manager, kind
):
    before = deadlocks(database)
    barrier = threading.Barrier(4)
    day = dg.StaticPartitionsDefinition([str(number) for number in range(4)])

    def write(number):
        order = np.random.default_rng(number).permutation(KEYS)
        for turn in range(ROUNDS):
            data = pd.DataFrame({"id": order + 10 * turn, "v": f"{number}.{turn}"})
            barrier.wait(timeout=60)
            key = f"asset_{number}" if kind == "assets" else "numbers"
            options = BY_ID | {"table": "numbers"}
            if kind == "partitions":
                store_one_partition(io_manager, data, str(number), day, **options)
            else:
                store(io_manager, data, key=key, **options)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))

    found = rows(database)
    assert [id_ for id_, _value in found] == list(range(KEYS + 10 * (ROUNDS - 1)))
    last = {value for id_, value in found if id_ >= 10 * (ROUNDS - 1)}
    assert last <= {f"{number}.{ROUNDS - 1}" for number in range(4)}
    assert deadlocks(database) == before


def store_one_partition(manager, obj, partition, definition, **metadata):
    """Write one partition bare: a run for each would be slower than the writes are."""
    context = dg.build_output_context(
        asset_key=dg.AssetKey("numbers"),
        partition_key=partition,
        asset_partitions_def=definition,
        definition_metadata=metadata,
        run_id="a run",
    )
    manager.handle_output(context, obj)


def deadlocks(database):
    with database.connect() as connection:
        connection.execute("SELECT pg_stat_clear_snapshot()")
        return connection.execute(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        ).fetchall()


def test_the_count_of_deadlocks_would_tell_of_one(database):
    """Two sessions that lock two rows crosswise are counted where the test above looks."""
    execute(database, "CREATE TABLE t (id int)", "INSERT INTO t VALUES (1), (2)")
    before, crossed = deadlocks(database), threading.Barrier(2)

    def lock(first, second):
        with database.connect(autocommit=False) as connection:
            connection.execute("SELECT FROM t WHERE id = %s FOR UPDATE", [first])
            crossed.wait(timeout=30)
            connection.execute("SELECT FROM t WHERE id = %s FOR UPDATE", [second])

    with ThreadPoolExecutor(2) as pool:
        ended = [pool.submit(lock, *order) for order in [(1, 2), (2, 1)]]
        errors = [future.exception(timeout=30) for future in ended]

    assert [type(error) for error in errors if error] == [DeadlockDetected]
    assert deadlocks(database) != before
