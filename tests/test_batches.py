"""Batches: a source loaded in parts, each visible whole together with its high watermark."""

from __future__ import annotations

import csv
import dataclasses
import datetime as dt
import io
import re
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import NamedTuple

import dagster as dg
import geopandas as gpd
import numpy as np
import pandas as pd
import psycopg
import pyarrow as pa
import pytest

from dagster_tools import BatchesConfig
from dagster_tools.errors import (
    BadValue,
    ConfigurationError,
    DatabaseError,
    SchemaConflict,
    UnsupportedFrame,
)
from dagster_tools.postgres import batches as loading
from dagster_tools.sql import LAST, Batch, Batches, Eq, IncrementalDataFrame, Query
from tests.pipelines import (
    column_types,
    fingerprint,
    load,
    logged,
    manager_for,
    materialize,
    query,
    rows,
    store,
)

DAYS = ("2024-01-01", "2024-01-02", "2024-01-03")
UPSERT = {"primary_key": "id", "incremental": True}


@pytest.fixture
def database(cleaned_database):
    return cleaned_database


class Failure(Exception):
    """What a source of the user's raises."""


def days(*all_of_them, fail_at=None):
    """Make a source of one row a day, which goes on after its high watermark."""

    def source(high_watermark):
        for day in all_of_them:
            if high_watermark is not None and day <= high_watermark:
                continue
            if day == fail_at:
                raise Failure
            yield Batch([{"day": day}], high_watermark=day)

    return source


def given(*batches):
    """Make a source of these batches, whatever the high watermark."""
    return lambda _high_watermark: iter(batches)


def frame_of(*ids, label=""):
    return pd.DataFrame({"id": ids, "label": label})


def watermark(database, key="numbers"):
    found = query(
        database,
        "SELECT w.high_watermark FROM meta.watermarks AS w JOIN meta.assets AS a ON a.id = asset_id"
        " WHERE asset_key = %s",
        key,
    )
    return found[0][0] if found else None


def counted(done):
    return {key: done[key].value for key in done if key.startswith(("rows_i", "rows_u", "rows_d"))}


# --- where a run goes on --------------------------------------------------------------------


def test_the_next_run_adds_what_came_since_the_last_high_watermark(database, io_manager):
    store(io_manager, Batches(days(*DAYS[:2])))

    done = store(io_manager, Batches(days(*DAYS)))

    assert rows(database) == [(day,) for day in DAYS]
    assert done["batches"].value == 1
    assert done["high_watermark"].value == DAYS[2]


def test_a_run_that_fails_leaves_the_batches_before_and_the_next_begins_there(database, io_manager):
    with pytest.raises(Failure):
        store(io_manager, Batches(days(*DAYS, fail_at=DAYS[2])))
    left = rows(database)

    done = store(io_manager, Batches(days(*DAYS)))

    assert left == [(DAYS[0],), (DAYS[1],)]
    assert rows(database) == [(day,) for day in DAYS]
    assert done["batches"].value == 1


def test_a_batch_that_fails_in_the_middle_leaves_no_row_of_its_own(database, io_manager):
    def half():
        yield from ({"day": DAYS[1]} for _row in range(3_000))
        raise Failure

    def source(high_watermark):
        yield Batch([{"day": DAYS[0]}], high_watermark=1)
        yield Batch(half(), high_watermark=2)

    with pytest.raises(Failure):
        store(io_manager, Batches(source))

    assert rows(database) == [(DAYS[0],)]
    assert watermark(database) == 1


def test_an_error_of_the_users_own_database_is_the_one_the_user_sees(io_manager):
    def half():
        yield {"id": 1}
        raise psycopg.OperationalError("their server is gone")

    with pytest.raises(psycopg.OperationalError, match="their server is gone"):
        store(io_manager, Batches(given(Batch(half()))))


@pytest.mark.direct(
    "pgbouncer", reason="it may hand out a session that was ended before it has noticed"
)
def test_a_source_may_take_its_time_for_the_first_row_of_a_batch(database, io_manager, monkeypatch):
    """A connection that lies idle may be dropped by what it goes through; here the server did."""
    monkeypatch.setattr(loading, "IDLE_SECONDS", 0.0)

    def slow(number):
        query(
            database,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'dagster-tools'",
        )
        yield {"n": number}

    store(io_manager, Batches(given(Batch(slow(1)), Batch(slow(2)))))

    assert rows(database) == [(1,), (2,)]


def test_a_batch_is_visible_before_the_next_is_asked_for(database, io_manager):
    seen = []

    def source(high_watermark):
        for number in range(3):
            yield Batch([{"n": number}], high_watermark=number)
            seen.append((len(rows(database)), watermark(database)))

    store(io_manager, Batches(source))

    assert seen == [(1, 0), (2, 1), (3, 2)]


def test_a_generator_is_closed_when_a_batch_of_it_fails(io_manager):
    closed = []

    def source(high_watermark):
        try:
            yield Batch([{"n": 1}, {"n": "not a number"}])
        finally:
            closed.append(True)

    with pytest.raises(BadValue):
        store(io_manager, Batches(source))

    assert closed == [True]


def test_a_high_watermark_is_kept_for_each_partition(database, io_manager):
    @dg.asset(
        partitions_def=dg.StaticPartitionsDefinition(["a", "b"]),
        metadata={"columns": {"part": "string", "n": "int"}},
    )
    def numbers(context):
        def source(high_watermark):
            start = (high_watermark or 0) + 1
            yield Batch([(context.partition_key, start)], high_watermark=start)

        return Batches(source)

    for partition in ["a", "a", "b"]:
        materialize(numbers, io_manager, partition_key=partition)

    assert rows(database) == [("a", 1), ("a", 2), ("b", 1)]


def test_a_run_over_several_partitions_is_refused(io_manager):
    context = dg.build_output_context(
        asset_key=dg.AssetKey("numbers"),
        asset_partitions_def=dg.StaticPartitionsDefinition(["a", "b"]),
        asset_partition_key_range=dg.PartitionKeyRange("a", "b"),
    )

    with pytest.raises(ConfigurationError, match=r"2 partitions.*multi_run\(1\)"):
        io_manager.handle_output(context, Batches(days(*DAYS)))


# --- high watermarks ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "nul \0",
        "text 'with' \"quotes\" \\ and ünïcode",
        0,
        -1,
        2**70,
        1.5,
        1e300,
        True,
        [1, [2, None]],
        {},
    ],
    ids=repr,
)
def test_any_json_value_is_a_high_watermark_and_comes_back_as_it_was(io_manager, value):
    store(io_manager, Batches(given(Batch([{"n": 1}], high_watermark=value))))
    seen = []

    store(io_manager, Batches(lambda high_watermark: seen.append(high_watermark) or ()))

    assert seen == [value]
    assert type(seen[0]) is type(value)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (dt.date(2024, 1, 2), "2024-01-02"),
        (dt.datetime(2024, 1, 2, 3, 4, 5, tzinfo=dt.timezone.utc), "2024-01-02T03:04:05+00:00"),
        (pd.Timestamp("2024-01-02 03:04:05"), "2024-01-02T03:04:05"),
        (np.int64(7), 7),
        ((1, 2), [1, 2]),
    ],
    ids=repr,
)
def test_dates_numpys_numbers_and_tuples_are_kept_as_their_json(database, io_manager, value, kept):
    store(io_manager, Batches(given(Batch([{"n": 1}], high_watermark=value))))

    assert watermark(database) == kept


@pytest.mark.parametrize("value", [{1, 2}, {1: "a"}, float("nan"), b"bytes"], ids=repr)
def test_what_is_no_json_is_refused_and_its_batch_with_it(database, io_manager, value):
    with pytest.raises(ConfigurationError, match="A high watermark is a JSON value"):
        store(io_manager, Batches(given(Batch([{"n": 1}], high_watermark=value))))

    assert query(database, "SELECT to_regclass('numbers')") == [(None,)]


def test_a_high_watermark_may_be_a_function_that_is_asked_when_the_rows_are_sent(
    database, io_manager
):
    highest = []

    def data():
        for n in range(5_000):
            highest[:] = [n]
            yield {"n": n}

    store(io_manager, Batches(given(Batch(data(), high_watermark=lambda: highest[0]))))

    assert watermark(database) == 4_999


def test_a_batch_without_a_high_watermark_leaves_it_where_it_is(database, io_manager):
    store(io_manager, Batches(given(Batch([{"n": 1}], high_watermark=7), Batch([{"n": 2}]))))

    assert watermark(database) == 7


def test_a_run_may_begin_anew_or_elsewhere(io_manager):
    store(io_manager, Batches(given(Batch([{"n": 1}], high_watermark=7))))
    seen = []

    for start in [LAST, None, 3]:
        store(io_manager, Batches(lambda mark: seen.append(mark) or (), start=start))

    assert seen == [7, None, 3]


@pytest.mark.parametrize(
    ("config", "begins"),
    [({}, 7), ({"start_over": True}, None), ({"high_watermark": ["2024", 1]}, ["2024", 1])],
)
def test_run_config_says_where_this_one_run_begins(io_manager, config, begins):
    seen = []

    def numbers(config):
        def source(high_watermark):
            seen.append(high_watermark)
            yield Batch([{"n": 1}], high_watermark=7)

        return Batches(source, start=config.start)

    numbers.__annotations__["config"] = BatchesConfig  # Dagster reads no strings
    asset = dg.asset(numbers)
    materialize(asset, io_manager)

    materialize(asset, io_manager, run_config={"ops": {"numbers": {"config": config}}})

    assert seen == [None, begins]


def test_a_frame_that_replaces_the_rows_leaves_the_high_watermark(database, io_manager):
    store(io_manager, Batches(days(*DAYS)))

    store(io_manager, pd.DataFrame({"day": ["other"]}))

    assert rows(database) == [("other",)]
    assert watermark(database) == DAYS[2]


# --- everything again -----------------------------------------------------------------------


def test_with_delete_the_first_batch_takes_the_place_of_what_was_there_at_once(
    database, io_manager
):
    store(io_manager, frame_of(1, 2, 3, label="old"))
    seen = []

    def source(high_watermark):
        yield Batch(frame_of(4, label="new"))
        seen.append(rows(database))
        yield Batch(frame_of(5, label="new"))

    done = store(io_manager, Batches(source, delete="before_first_batch"))

    assert seen == [[(4, "new")]]
    assert rows(database) == [(4, "new"), (5, "new")]
    assert counted(done)["rows_deleted"] == 3


def test_with_delete_and_no_batch_nothing_is_deleted(database, io_manager):
    store(io_manager, frame_of(1))
    before = fingerprint(database)

    store(io_manager, Batches(given(), delete="before_first_batch"))

    assert fingerprint(database) == before


def test_with_delete_an_empty_first_batch_deletes(database, io_manager):
    store(io_manager, frame_of(1))

    store(io_manager, Batches(given(Batch(pd.DataFrame())), delete="before_first_batch"))

    assert rows(database) == []


def test_with_delete_a_run_that_goes_on_after_one_that_was_cut_off_deletes_nothing(
    database, io_manager
):
    store(io_manager, Batches(given(Batch([{"day": "old"}])), delete="before_first_batch"))
    with pytest.raises(Failure):
        store(io_manager, Batches(days(*DAYS, fail_at=DAYS[2]), delete="before_first_batch"))

    store(io_manager, Batches(days(*DAYS), delete="before_first_batch"))
    resumed = rows(database)
    store(io_manager, Batches(days("2025-01-01"), delete="before_first_batch"))

    assert resumed == [(day,) for day in DAYS]
    assert rows(database) == [("2025-01-01",)]


def test_with_delete_a_run_that_begins_anew_after_one_that_was_cut_off_deletes(
    database, io_manager
):
    with pytest.raises(Failure):
        store(io_manager, Batches(days(*DAYS, fail_at=DAYS[1]), delete="before_first_batch"))

    store(io_manager, Batches(days(*DAYS), delete="before_first_batch", start=None))

    assert rows(database) == [(day,) for day in DAYS]


# --- keys -----------------------------------------------------------------------------------


def test_an_incremental_asset_is_upserted_batch_by_batch(database, io_manager):
    store(io_manager, Batches(given(Batch(frame_of(1, 2, label="a")))), **UPSERT)

    source = given(Batch(frame_of(2, 3, label="b")), Batch(frame_of(3, 4, label="b")))
    done = store(io_manager, Batches(source), **UPSERT)

    assert rows(database) == [(1, "a"), (2, "b"), (3, "b"), (4, "b")]
    assert counted(done) == {
        "rows_inserted": 2, "rows_updated": 1, "rows_unchanged": 1, "rows_deleted": 0,
    }  # fmt: skip


def test_without_incremental_a_key_that_is_there_already_undoes_its_batch(database, io_manager):
    source = given(Batch(frame_of(1, 2), high_watermark=1), Batch(frame_of(3, 2), high_watermark=2))

    with pytest.raises(BadValue, match=r"repeats values of the primary key on \['id'\]"):
        store(io_manager, Batches(source), primary_key="id")

    assert rows(database) == [(1, ""), (2, "")]
    assert watermark(database) == 1


@pytest.mark.parametrize("earlier", [(), (1, 9)], ids=["new table", "table with rows"])
def test_equal_keys_in_one_batch_are_an_error_unless_the_last_counts(database, io_manager, earlier):
    if earlier:
        store(io_manager, frame_of(*earlier, label="old"), **UPSERT)
    data = pd.DataFrame({"id": [1, 2, 1, 1], "label": ["a", "b", "c", "d"]})

    with pytest.raises(BadValue, match=r"stands in more than one row, in rows 0 and 3"):
        store(io_manager, Batches(given(Batch(data))), **UPSERT)
    done = store(io_manager, Batches(given(Batch(data)), on_duplicate="last"), **UPSERT)

    left = [(9, "old")] if earlier else []
    assert rows(database) == [(1, "d"), (2, "b"), *left]
    assert sum(counted(done).values()) == 2


@pytest.mark.parametrize("delete", [None, "before_first_batch"])
def test_the_last_of_equal_keys_counts_with_composite_keys_too(database, io_manager, delete):
    options = {"primary_key": ["a", "b"], "incremental": True}
    store(io_manager, pd.DataFrame({"a": [1, 7], "b": ["x", "x"], "v": [0, 0]}), **options)
    data = [{"a": 1, "b": "x", "v": 1}, {"a": 1, "b": "y", "v": 2}, {"a": 1, "b": "x", "v": 3}]

    source = Batches(given(Batch(data)), on_duplicate="last", delete=delete)
    store(io_manager, source, **options)

    left = [] if delete else [(7, "x", 0)]
    assert rows(database) == [(1, "x", 3), (1, "y", 2), *left]


def test_on_duplicate_last_is_refused_where_nothing_is_upserted(database, io_manager):
    before = fingerprint(database)

    with pytest.raises(ConfigurationError, match=r"on_duplicate='last'.*incremental"):
        store(io_manager, Batches(given(Batch(frame_of(1))), on_duplicate="last"))

    assert fingerprint(database) == before


# --- data -----------------------------------------------------------------------------------


@dataclasses.dataclass
class Order:
    id: int
    label: str | None


class NamedOrder(NamedTuple):
    label: str | None
    id: int


ORDERS = [(1, "a"), (2, None)]
DECLARED = {"columns": {"id": "int", "label": "string"}}


@pytest.mark.parametrize(
    "data",
    [
        ORDERS,
        tuple(ORDERS),
        iter(ORDERS),
        (row for row in ORDERS),
        [list(row) for row in ORDERS],
        [{"id": 1, "label": "a"}, {"id": 2}],
        [{"label": "a", "id": 1}, {"label": None, "id": 2}],
        [Order(1, "a"), Order(2, None)],
        [NamedOrder("a", 1), NamedOrder(None, 2)],
        csv.DictReader(io.StringIO("label,id\na,1\n")),
        pd.DataFrame(ORDERS, columns=["id", "label"]),
        pa.table({"id": [1, 2], "label": ["a", None]}),
        pa.table({"id": [1, 2], "label": ["a", None]}).to_reader(1),
        [pd.DataFrame({"id": [1], "label": "a"}), pd.DataFrame({"id": [2], "label": [None]})],
    ],
    ids=lambda data: type(data).__name__,
)
def test_a_batch_has_its_rows_as_tuples_dicts_dataclasses_or_frames(database, io_manager, data):
    is_csv = isinstance(data, csv.DictReader)

    store(io_manager, Batches(given(Batch(data))), **DECLARED)

    found = query(database, "SELECT id, label FROM numbers ORDER BY id")
    assert found == ORDERS[:1] if is_csv else ORDERS


def test_tuples_without_declared_columns_are_refused_with_what_to_declare(io_manager):
    with pytest.raises(ConfigurationError, match="Declare them in its order"):
        store(io_manager, Batches(given(Batch(ORDERS))))


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ((1,), r"has 1 values, and the columns are \['id', 'label'\]"),
        ((1, "a", 2), "has 3 values"),
        ({"id": 1}, "is a dict"),
        ("1a", "is a str"),
    ],
)
def test_a_row_unlike_the_first_is_named(database, io_manager, odd, said):
    data = [*ORDERS * 1_000, odd]

    with pytest.raises(BadValue, match=said) as caught:
        store(io_manager, Batches(given(Batch(data))), **DECLARED)

    assert caught.value.row == 2_000
    assert query(database, "SELECT to_regclass('numbers')") == [(None,)]


def test_a_later_key_that_the_first_row_lacks_is_refused(io_manager):
    with pytest.raises(SchemaConflict, match=r"keys \['late'\], which the first lacks"):
        store(io_manager, Batches(given(Batch([{"id": 1}, {"id": 2, "late": 3}]))))


def test_a_line_of_csv_with_too_many_fields_is_named(io_manager):
    lines = csv.DictReader(io.StringIO("id,label\n1,a\n2,b,c\n"))

    with pytest.raises(BadValue, match="has more values than the columns") as caught:
        store(io_manager, Batches(given(Batch(lines))))

    assert caught.value.row == 1


def test_a_value_that_does_not_fit_far_down_is_named_by_its_row(database, io_manager):
    data = ({"id": n if n != 70_000 else "seventy thousand"} for n in range(100_000))

    with pytest.raises(BadValue, match="id") as caught:
        store(io_manager, Batches(given(Batch(data))), columns={"id": "int"})

    assert caught.value.row == 70_000
    assert "seventy" not in str(caught.value)


def test_a_hundred_thousand_rows_come_in_chunks_and_in_order(database, io_manager):
    data = ((n, f"row {n}" if n % 3 else None) for n in range(100_000))

    store(io_manager, Batches(given(Batch(data))), **DECLARED)

    found = query(
        database,
        """
        SELECT count(*), sum(id), count(label), bool_and(label = 'row ' || id)
        FROM numbers
        """,
    )
    assert found == [(100_000, sum(range(100_000)), 66_666, True)]


class Counted(tuple[int]):
    """A row that knows how many of its kind there are."""

    __slots__ = ()
    alive = 0

    def __new__(cls, *values):
        Counted.alive += 1
        return super().__new__(cls, values)

    def __del__(self):
        Counted.alive -= 1


def test_of_a_long_batch_no_more_rows_are_in_memory_than_two_chunks(database, io_manager):
    most = 0

    def data():
        nonlocal most
        for n in range(60_000):
            yield Counted(n)
            most = max(most, Counted.alive)

    store(io_manager, Batches(given(Batch(data()))), columns={"n": "int"})

    assert query(database, "SELECT count(*) FROM numbers") == [(60_000,)]
    assert most <= 2 * 8_192 + 1


def test_chunk_size_bounds_how_many_rows_of_a_long_batch_are_in_memory(database, io_manager):
    most = 0

    def data():
        nonlocal most
        for n in range(20_000):
            yield Counted(n)
            most = max(most, Counted.alive)

    store(io_manager, Batches(given(Batch(data()))), columns={"n": "int"}, chunk_size="4KB")

    assert query(database, "SELECT count(*) FROM numbers") == [(20_000,)]
    assert most <= 2 * 1_024 + 1  # a first chunk tells how large a row is


@pytest.mark.parametrize("data", ["text", {"id": 1}, 7, [1, 2], pd.Series([1])], ids=repr)
def test_what_is_neither_frame_nor_rows_is_refused(database, io_manager, data):
    with pytest.raises((UnsupportedFrame, ConfigurationError)):
        store(io_manager, Batches(given(Batch(data))))

    assert query(database, "SELECT to_regclass('numbers')") == [(None,)]


@pytest.mark.parametrize("thing", [ORDERS, pd.DataFrame({"n": [1]}), None], ids=repr)
def test_what_a_source_yields_besides_batches_is_refused(io_manager, thing):
    with pytest.raises(ConfigurationError, match=r"Yield Batch\(data, high_watermark=…\)"):
        store(io_manager, Batches(lambda _mark: iter([thing])))


@pytest.mark.parametrize(
    "arguments",
    [
        {"function": "not a function"},
        {"function": days(), "delete": "always"},
        {"function": days(), "on_duplicate": "first"},
    ],
)
def test_batches_that_cannot_be_meant_are_refused_when_they_are_made(arguments):
    with pytest.raises(ConfigurationError):
        Batches(**arguments)


def test_batches_inside_an_incremental_frame_are_refused(io_manager):
    with pytest.raises(ConfigurationError, match="Batches"):
        store(io_manager, IncrementalDataFrame(Batches(days())), **UPSERT)


# --- no batch, and batches without rows -----------------------------------------------------


def test_without_a_batch_the_declared_table_exists_and_loads_empty(database, io_manager):
    store(io_manager, Batches(days()), primary_key="id", **DECLARED)

    assert column_types(database) == {"id": "integer", "label": "text"}
    assert load(io_manager).columns.tolist() == ["id", "label"]
    assert len(load(io_manager)) == 0


def test_without_a_batch_nothing_else_changes(database, io_manager):
    store(io_manager, Batches(days(*DAYS)))
    before = fingerprint(database)

    done = store(io_manager, Batches(days(*DAYS)))

    assert fingerprint(database) == before
    assert done["batches"].value == 0
    assert done["high_watermark"].value == DAYS[2]


def test_a_batch_without_rows_moves_the_high_watermark(database, io_manager):
    store(io_manager, Batches(given(Batch([], high_watermark=3))), **DECLARED)

    assert watermark(database) == 3
    assert column_types(database) == {"id": "integer", "label": "text"}


# --- before a batch is visible --------------------------------------------------------------


def test_before_visible_sees_the_rows_that_nobody_else_does_yet(database, io_manager):
    seen = []

    def look(connection, table, metadata):
        count = "SELECT count(*) FROM numbers WHERE day <> %s"
        inside = connection.execute(count, ["none"]).fetchone()
        seen.append((inside, rows(database) if metadata > 1 else None, str(table), metadata))

    source = given(Batch([{"day": "a"}], metadata=1), Batch([{"day": "b"}], metadata=2))
    store(io_manager, Batches(source, before_visible=look))

    assert seen == [((1,), None, "public.numbers", 1), ((2,), [("a",)], "public.numbers", 2)]


@pytest.mark.parametrize("error", [Failure("no"), psycopg.errors.CheckViolation("no")], ids=repr)
def test_what_before_visible_raises_undoes_its_batch_alone_and_is_what_the_user_sees(
    database, io_manager, error
):
    def check(connection, table, metadata):
        connection.execute("CREATE TABLE IF NOT EXISTS derived AS SELECT * FROM numbers")
        if metadata == 2:
            raise error

    source = [Batch([{"day": "a"}], 1, metadata=1), Batch([{"day": "b"}], 2, metadata=2)]
    with pytest.raises(type(error)) as caught:
        store(io_manager, Batches(given(*source), before_visible=check))

    assert caught.value is error
    assert rows(database) == [("a",)]
    assert watermark(database) == 1


def test_before_visible_may_not_end_the_transaction(database, io_manager):
    with pytest.raises(psycopg.ProgrammingError):
        store(
            io_manager,
            Batches(days(*DAYS), before_visible=lambda connection, _t, _m: connection.commit()),
        )

    assert query(database, "SELECT to_regclass('numbers')") == [(None,)]


# --- several runs at once -------------------------------------------------------------------


def test_two_runs_at_once_load_nothing_twice_and_leave_nothing_out(database):
    begun = threading.Barrier(2)

    def source(high_watermark):
        if high_watermark is None:
            begun.wait(timeout=30)
        for number in range((high_watermark or 0) + 1, 21):
            yield Batch([{"n": number}], high_watermark=number)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: store(manager_for(database), Batches(source)), range(2)))

    assert rows(database) == [(n,) for n in range(1, 21)]


def test_two_runs_at_once_without_high_watermarks_do_not_both_add_their_rows(database, io_manager):
    def source(high_watermark):
        store(manager_for(database), Batches(given(Batch([{"n": 1}]))))
        yield Batch([{"n": 1}])

    with pytest.raises(ConfigurationError, match="Give each Batch a high_watermark"):
        store(io_manager, Batches(source))

    assert rows(database) == [(1,)]


# --- the table ------------------------------------------------------------------------------


def test_the_table_evolves_between_batches_and_views_on_it_stay(database, io_manager):
    def source(high_watermark):
        yield Batch([{"id": 1}])
        with database.connect() as connection:
            connection.execute("CREATE VIEW shown AS SELECT id FROM numbers")
            connection.execute("CREATE MATERIALIZED VIEW kept AS SELECT id FROM numbers")
        yield Batch([{"id": 2, "label": "b"}])

    store(io_manager, Batches(source))

    assert rows(database) == [(1, None), (2, "b")]
    assert query(database, "SELECT count(*) FROM shown") == [(2,)]


def test_each_batch_is_a_materialization_and_all_load_as_one_frame(database, io_manager):
    store(io_manager, Batches(days(*DAYS)))

    assert query(database, "SELECT count(DISTINCT materialization_id) FROM numbers") == [(3,)]
    assert sorted(load(io_manager)["day"]) == list(DAYS)


def test_batches_add_to_their_own_rows_and_leave_those_of_others(database, io_manager):
    store(io_manager, frame_of(1, label="other"), key="other", table="numbers")

    store(
        io_manager,
        Batches(given(Batch(frame_of(2, label="mine"))), delete="before_first_batch"),
    )

    assert rows(database) == [(1, "other"), (2, "mine")]
    assert load(io_manager)["id"].tolist() == [2]


def test_a_log_line_tells_of_each_batch(io_manager):
    @dg.asset
    def numbers():
        return Batches(days(*DAYS[:2]))

    result = materialize(numbers, io_manager)

    told = [line for line in logged(result) if line.startswith("Batch ")]
    assert len(told) == 2
    assert re.fullmatch(
        r"Batch 2 to public\.numbers: 1 row, 0\.0 MB in [\d.]+ s \([\d,]+ rows/s\); "
        r'high watermark "2024-01-02"\.',
        told[1],
    )


# --- several tables -------------------------------------------------------------------------


@dg.multi_asset(
    outs={
        "orders": dg.AssetOut(is_required=False, metadata=UPSERT),
        "lines": dg.AssetOut(is_required=False, metadata={"columns": {"id": "int", "n": "int"}}),
    },
    can_subset=True,
)
def sales(context):
    batches = Batches(sales_of_days)
    for name in context.op_execution_context.selected_output_names:
        yield dg.Output(batches, name)


def sales_of_days(high_watermark):
    for number in range((high_watermark or 0) + 1, 4):
        orders = pd.DataFrame({"id": [number], "label": "order"})
        yield Batch({"orders": orders, "lines": [(number, 1), (number, 2)]}, high_watermark=number)


def test_the_tables_of_a_batch_become_visible_together(database, io_manager):
    seen = []

    def both(connection, tables, metadata):
        seen.append((sorted(tables), query(database, "SELECT to_regclass('lines')")))

    @dg.multi_asset(outs={"orders": dg.AssetOut(), "lines": dg.AssetOut()})
    def shop():
        source = given(
            Batch({"orders": frame_of(1), "lines": frame_of(1, 2)}, high_watermark=1),
            Batch({"orders": frame_of(2)}, high_watermark=2),
        )
        batches = Batches(source, before_visible=both)
        return batches, batches

    result = materialize(shop, io_manager)

    assert seen[0] == (["lines", "orders"], [(None,)])
    assert rows(database, "public.orders") == [(1, ""), (2, "")]
    assert rows(database, "public.lines") == [(1, ""), (2, "")]
    assert [watermark(database, key) for key in ("orders", "lines")] == [2, 2]
    events = {
        e.asset_key.to_user_string(): e for e in result.asset_materializations_for_node("shop")
    }
    assert events["lines"].metadata["rows_inserted"].value == 2
    assert events["lines"].metadata["batches"].value == 2


def test_a_multi_asset_goes_on_where_it_came_to(database, io_manager):
    materialize(sales, io_manager)
    materialize(sales, io_manager)

    assert rows(database, "public.orders") == [(n, "order") for n in (1, 2, 3)]
    assert len(rows(database, "public.lines")) == 6


def test_an_output_that_is_not_selected_is_not_written(database, io_manager):
    materialize(sales, io_manager, selection=["orders"])

    assert rows(database, "public.orders") == [(n, "order") for n in (1, 2, 3)]
    assert query(database, "SELECT to_regclass('lines')") == [(None,)]


def test_outputs_that_came_unequally_far_are_refused_with_how_to_make_them_equal(
    database, io_manager
):
    materialize(sales, io_manager, selection=["orders"])

    with pytest.raises(ConfigurationError, match=r"orders: 3, lines: None|lines: None, orders: 3"):
        materialize(sales, io_manager)

    assert query(database, "SELECT to_regclass('lines')") == [(None,)]


def test_data_for_an_output_that_does_not_exist_is_refused(io_manager):
    @dg.multi_asset(outs={"orders": dg.AssetOut(), "lines": dg.AssetOut()})
    def shop():
        batches = Batches(given(Batch({"order": frame_of(1)})))
        return batches, batches

    with pytest.raises(ConfigurationError, match=r"\['order'\].*\['lines', 'orders'\]"):
        materialize(shop, io_manager)


def test_outputs_may_each_have_a_source_of_their_own(database, io_manager):
    @dg.multi_asset(outs={"orders": dg.AssetOut(), "lines": dg.AssetOut()})
    def shop():
        return Batches(given(Batch(frame_of(1), 1))), Batches(given(Batch(frame_of(2), 2)))

    materialize(shop, io_manager)

    assert rows(database, "public.orders") == [(1, "")]
    assert rows(database, "public.lines") == [(2, "")]
    assert [watermark(database, key) for key in ("orders", "lines")] == [1, 2]


def test_what_a_run_says_of_a_later_output_is_refused(io_manager):
    @dg.multi_asset(outs={"orders": dg.AssetOut(), "lines": dg.AssetOut()})
    def shop():
        batches = Batches(given(Batch({"orders": frame_of(1), "lines": frame_of(2)})))
        return batches, dg.Output(batches, metadata={"table": "elsewhere"})

    with pytest.raises(ConfigurationError, match="Say it in the definition"):
        materialize(shop, io_manager)


def test_a_shared_source_without_a_batch_is_asked_once(database, io_manager):
    asked = []

    @dg.multi_asset(
        outs={
            "orders": dg.AssetOut(metadata=DECLARED),
            "lines": dg.AssetOut(metadata=DECLARED),
        }
    )
    def shop():
        batches = Batches(lambda mark: asked.append(mark) or ())
        return batches, batches

    materialize(shop, io_manager)

    assert asked == [None]
    assert rows(database, "public.orders") == rows(database, "public.lines") == []


def test_what_a_high_watermark_raises_of_the_users_own_database_is_what_the_user_sees(io_manager):
    def ask():
        raise psycopg.OperationalError("their server is gone")

    with pytest.raises(psycopg.OperationalError, match="their server is gone"):
        store(io_manager, Batches(given(Batch([{"n": 1}], high_watermark=ask))))


# --- a table that is not there any more -----------------------------------------------------


def test_where_the_table_was_dropped_a_run_begins_anew(database, io_manager):
    store(io_manager, Batches(days(*DAYS[:2])))
    with database.connect() as connection:
        connection.execute("DROP TABLE numbers")

    store(io_manager, Batches(days(*DAYS)))

    assert rows(database) == [(day,) for day in DAYS]


def test_where_the_asset_was_pointed_at_another_table_a_run_begins_anew(database, io_manager):
    store(io_manager, Batches(days(*DAYS[:2])))

    store(io_manager, Batches(days(*DAYS)), table="elsewhere")
    store(io_manager, Batches(days(*DAYS, "2024-01-04")), table="elsewhere")

    assert rows(database) == [(day,) for day in DAYS[:2]]
    assert rows(database, "public.elsewhere") == [(day,) for day in (*DAYS, "2024-01-04")]


def test_where_one_of_two_tables_was_dropped_the_run_says_so(database, io_manager):
    materialize(sales, io_manager)
    with database.connect() as connection:
        connection.execute("DROP TABLE lines; DELETE FROM orders WHERE id = 3")
        connection.execute("UPDATE meta.watermarks SET high_watermark = '2'")

    with pytest.raises(ConfigurationError, match=r"lines: None, orders: 2"):
        materialize(sales, io_manager)


# --- what goes before -----------------------------------------------------------------------


def test_a_batch_may_say_which_earlier_rows_it_replaces(database, io_manager):
    def files(**counts):
        for file, count in counts.items():
            data = [(file, number) for number in range(count)]
            yield Batch(IncrementalDataFrame(data, delete=Eq("file", file)), high_watermark=file)

    options = {"columns": {"file": "string", "n": "int"}}
    store(io_manager, Batches(lambda _mark: files(a=1, b=3)), **options)

    done = store(io_manager, Batches(lambda _mark: files(b=1, c=1)), **options)

    assert rows(database) == [("a", 0), ("b", 0), ("c", 0)]
    assert counted(done)["rows_deleted"] == 3


def test_a_batch_without_rows_deletes_those_it_says(database, io_manager):
    store(io_manager, frame_of(1, 2))

    gone = IncrementalDataFrame(pd.DataFrame(), delete=Eq("id", 1))
    store(io_manager, Batches(given(Batch(gone))))

    assert rows(database) == [(2, "")]


def test_an_incremental_frame_that_neither_deletes_nor_has_a_key_is_refused(io_manager):
    with pytest.raises(ConfigurationError, match="which earlier rows go"):
        store(io_manager, Batches(given(Batch(IncrementalDataFrame(frame_of(1))))))


def test_with_delete_the_first_batch_takes_all_rows_whatever_it_says_itself(database, io_manager):
    store(io_manager, frame_of(1, 2, label="old"))

    batch = Batch(IncrementalDataFrame(frame_of(3, label="new"), delete=Eq("id", 1)))
    store(io_manager, Batches(given(batch), delete="before_first_batch"))

    assert rows(database) == [(3, "new")]


# --- where Batches come from ----------------------------------------------------------------


async def asynchronous(high_watermark):
    yield Batch([{"n": 1}])


async def coroutine(high_watermark):
    return [Batch([{"n": 1}])]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (asynchronous, "asynchronous returned an object of class async_generator"),
        (coroutine, "coroutine returned an object of class coroutine"),
        (lambda _mark: None, "of class NoneType"),
        (lambda _mark: Batch([{"n": 1}]), "of class Batch"),
    ],
)
def test_a_function_that_yields_nothing_is_refused_with_what_to_write(io_manager, function, said):
    with pytest.raises(ConfigurationError, match=said) as caught:
        store(io_manager, Batches(function))

    assert "yield Batch(data, high_watermark=…)" in str(caught.value)


def test_an_op_that_returns_batches_goes_on_where_it_came_to(database, io_manager):
    @dg.op
    def fetch():
        return Batches(days(*DAYS[: 2 if not database_has(database, "result") else 3]))

    @dg.job(resource_defs={"io_manager": io_manager})
    def nightly():
        fetch()

    for _run in range(2):
        assert nightly.execute_in_process().success

    assert rows(database, "public.result") == [(day,) for day in DAYS]
    assert watermark(database, "nightly/fetch/result") == DAYS[2]


def database_has(database, table):
    return query(database, "SELECT to_regclass(%s) IS NOT NULL", table)[0][0]


def test_outputs_of_an_op_that_return_the_same_batches_each_get_all_of_them(database, io_manager):
    @dg.op(out={"one": dg.Out(), "two": dg.Out()})
    def fetch():
        batches = Batches(days(*DAYS))
        return batches, batches

    @dg.job(resource_defs={"io_manager": io_manager})
    def nightly():
        fetch()

    nightly.execute_in_process()

    assert rows(database, "public.one") == rows(database, "public.two") == [(d,) for d in DAYS]


def test_a_graph_asset_goes_on_where_it_came_to(database, io_manager):
    @dg.op
    def fetch():
        return Batches(days(*DAYS))

    @dg.graph_asset
    def numbers():
        return fetch()

    for _run in range(2):
        materialize(numbers, io_manager)

    assert rows(database) == [(day,) for day in DAYS]


def test_the_tables_of_a_partitioned_multi_asset_go_on_by_partition(database, io_manager):
    @dg.multi_asset(
        outs={"orders": dg.AssetOut(), "lines": dg.AssetOut()},
        partitions_def=dg.StaticPartitionsDefinition(["a", "b"]),
    )
    def shop(context):
        def source(high_watermark):
            number = (high_watermark or 0) + 1
            row = [{"part": context.partition_key, "n": number}]
            yield Batch({"orders": row, "lines": row * 2}, high_watermark=number)

        batches = Batches(source)
        return batches, batches

    for partition in ["a", "b", "a"]:
        materialize(shop, io_manager, partition_key=partition)

    assert rows(database, "public.orders") == [("a", 1), ("a", 2), ("b", 1)]
    assert rows(database, "public.lines") == [("a", 1)] * 2 + [("a", 2)] * 2 + [("b", 1)] * 2


def test_partition_expr_changes_nothing_for_one_partition_and_helps_not_with_several(
    database, io_manager
):
    @dg.asset(
        partitions_def=dg.StaticPartitionsDefinition(["a", "b"]),
        backfill_policy=dg.BackfillPolicy.single_run(),
        metadata={"partition_expr": "part"},
    )
    def numbers():
        return Batches(given(Batch([{"part": "a"}])))

    materialize(numbers, io_manager, partition_key="a")
    with pytest.raises(ConfigurationError, match=r"2 partitions.*multi_run\(1\)"):
        materialize(
            numbers,
            io_manager,
            tags={
                "dagster/asset_partition_range_start": "a",
                "dagster/asset_partition_range_end": "b",
            },
        )

    assert rows(database) == [("a",)]


def test_a_query_is_no_batch(io_manager):
    with pytest.raises(UnsupportedFrame, match=r"cannot store a .*Query"):
        store(io_manager, Batches(given(Batch(Query("SELECT 1 AS n")))))


def test_batches_of_geometry_come_back_as_one_geodataframe(database, io_manager):
    def of(x):
        return gpd.GeoDataFrame({"x": [x]}, geometry=gpd.points_from_xy([x], [0]), crs=4326)

    store(io_manager, Batches(given(Batch(of(1), 1), Batch(of(2), 2))))

    loaded = load(io_manager, gpd.GeoDataFrame)
    assert sorted(loaded.geometry.x) == [1, 2]
    assert loaded.crs.to_epsg() == 4326


# --- what pg-bulk-ingest's own tests promise ------------------------------------------------


def test_a_batch_that_fails_leaves_no_table_and_changes_nothing(database, io_manager):
    store(io_manager, Batches(given(Batch(frame_of(1), 1))), **UPSERT)
    before = fingerprint(database)

    def half():
        yield frame_of(2)
        raise Failure

    with pytest.raises(Failure):
        store(io_manager, Batches(given(Batch(half(), 2))), **UPSERT)

    assert fingerprint(database) == before


def test_wide_tables_with_strange_names_and_long_indexes_are_loaded_in_batches(
    database, io_manager
):
    names = ["%s", 'a "quoted" one', "with : and ; and $1", "ünï cödé", "x" * 63, "select"]
    names += [f"column {number}" for number in range(300)]
    columns = dict.fromkeys(names, "int") | {"x" * 63: ("int", "index"), "%s": ("int", "unique")}
    source = given(*(Batch([(number,) * len(names)], number) for number in range(3)))

    store(
        io_manager, Batches(source), table="t" * 63, columns=columns,
        primary_key=["select", "x" * 63], incremental=True,
    )  # fmt: skip

    assert rows(database, f"public.{'t' * 63}") == [(n,) * len(names) for n in range(3)]


def test_arrays_json_dates_and_bytes_are_loaded_as_tuples_and_come_back(database, io_manager):
    columns = {
        "tags": "text[]", "numbers": "integer[]", "doc": "jsonb", "day": "date",
        "at": "timestamptz", "raw": "bytea", "amount": "numeric(12,2)", "id": "uuid",
    }  # fmt: skip
    full = (
        ["a", None, "c,d"], [1, 2], {"k": [1, None]}, dt.date(2024, 2, 29),
        dt.datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=dt.timezone.utc), b"\0\xff", Decimal("1.10"),
        uuid.UUID(int=7),
    )  # fmt: skip
    nothing = (None,) * len(columns)

    source = given(Batch([full, nothing], 1), Batch([nothing], 2), Batch([full], 3))
    store(io_manager, Batches(source), columns=columns)

    found = query(database, f"SELECT {', '.join(columns)} FROM numbers ORDER BY day NULLS LAST")
    assert found == [full, full, nothing, nothing]


def test_an_empty_table_gets_its_first_rows_and_keys_as_declared(database, io_manager):
    columns = {"code": ("string", "not null"), "suffix": "string", "note": ("string", "index")}
    options = {"columns": columns, "primary_key": ["code", "suffix"]}
    store(io_manager, Batches(given()), **options)
    empty = rows(database)

    store(io_manager, Batches(given(Batch([("01", "80", "Live horses")]))), **options)

    assert empty == []
    assert rows(database) == [("01", "80", "Live horses")]
    definitions = query(database, "SELECT indexdef FROM pg_indexes WHERE tablename = 'numbers'")
    assert sorted(d.rpartition("btree ")[2] for (d,) in definitions) == ["(code, suffix)", "(note)"]


def test_before_visible_may_fill_a_derived_table_in_the_same_transaction(database, io_manager):
    def summarize(connection, table, metadata):
        connection.execute("CREATE TABLE IF NOT EXISTS public.days (day text PRIMARY KEY)")
        connection.execute(
            f"INSERT INTO public.days SELECT DISTINCT day FROM {table} ON CONFLICT DO NOTHING"
        )

    with pytest.raises(Failure):
        store(
            io_manager, Batches(days(*DAYS, fail_at=DAYS[2]), before_visible=summarize)
        )  # fmt: skip

    assert query(database, "SELECT day FROM days ORDER BY 1") == [(DAYS[0],), (DAYS[1],)]


def test_tracking_tables_made_before_there_were_batches_get_what_they_lack(database, io_manager):
    store(io_manager, frame_of(1))
    with database.connect() as connection:
        connection.execute("DROP TABLE meta.watermarks")

    store(io_manager, Batches(given(Batch(frame_of(2), high_watermark=2))))

    assert rows(database) == [(1, ""), (2, "")]
    assert watermark(database) == 2


@pytest.mark.parametrize("lacking", ["SELECT", "INSERT, UPDATE"])
def test_a_role_that_may_not_use_high_watermarks_is_told_the_grant(database, role, lacking):
    etl = role()
    store(manager_for(database), frame_of(1), key="made")
    with database.connect() as connection:
        connection.execute(
            f"GRANT CREATE, USAGE ON SCHEMA meta, public TO {etl.name};"
            f"GRANT ALL ON ALL TABLES IN SCHEMA meta TO {etl.name};"
            f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA meta TO {etl.name};"
            f"REVOKE {lacking} ON meta.watermarks FROM {etl.name}"
        )
    manager = manager_for(database.as_role(etl))

    with pytest.raises(DatabaseError) as caught:
        store(manager, Batches(days(*DAYS)))

    assert f"GRANT {lacking} ON TABLE meta.watermarks TO" in str(caught.value)
    with database.connect() as connection:
        connection.execute(f"GRANT {lacking} ON TABLE meta.watermarks TO {etl.name}")
    store(manager, Batches(days(*DAYS)))
    assert rows(database) == [(day,) for day in DAYS]
