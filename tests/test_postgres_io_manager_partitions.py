"""A partition is the rows that its runs wrote; no column has to say so."""

from __future__ import annotations

import datetime as dt
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa
import pytest

from dagster_tools.errors import BadValue, ConfigurationError, UnsupportedFrame
from dagster_tools.postgres_io_manager import PostgresIOManager
from tests.fix_servers import Database
from tests.partitioned import (
    BACKFILL,
    backfill,
    load_partitions,
    rows_of,
    store_bare,
    store_partitions,
)
from tests.pipelines import (
    Rows,
    fingerprint,
    load,
    logged,
    manager_for,
    materialize,
    query,
    rows,
    shared_instance,
    store,
)

DAYS = dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-01-08")
COLORS = dg.StaticPartitionsDefinition(["blue", "green", "red"])
COLORS_BY_DAY = dg.MultiPartitionsDefinition({"color": COLORS, "day": DAYS})


def days(first: int, last: int) -> list[str]:
    return [f"2024-01-{day:02}" for day in range(first, last + 1)]


def metadata_of(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    [first, *_] = result.get_asset_materialization_events()
    return {key: value.value for key, value in first.materialization.metadata.items()}


# --- one run per partition ------------------------------------------------------------------

PARTITIONINGS = {
    "static": (COLORS, "red", "blue"),
    "daily, over a change of clocks": (
        dg.DailyPartitionsDefinition("2024-03-01", timezone="Europe/Berlin"),
        "2024-03-31",
        "2024-04-01",
    ),
    "weekly": (
        dg.WeeklyPartitionsDefinition("2024-01-01", timezone="America/New_York", day_offset=1),
        "2024-01-01",
        "2024-01-08",
    ),
    "monthly": (
        dg.MonthlyPartitionsDefinition("2024-01-01", timezone="Asia/Kolkata"),
        "2024-01-01",
        "2024-02-01",
    ),
    "hourly, in the hour that comes twice": (
        dg.HourlyPartitionsDefinition("2024-10-27-00:00", timezone="Europe/Berlin"),
        "2024-10-27-02:00",
        "2024-10-27-02:00+0100",
    ),
    "dynamic": (dg.DynamicPartitionsDefinition(name="files"), "a.csv", "ä\"'; DROP {x} %s \\ "),
    "several dimensions": (
        COLORS_BY_DAY,
        dg.MultiPartitionKey({"color": "red", "day": "2024-01-01"}),
        dg.MultiPartitionKey({"color": "blue", "day": "2024-01-01"}),
    ),
}


@pytest.mark.parametrize(
    ("definition", "key", "other"), PARTITIONINGS.values(), ids=list(PARTITIONINGS)
)
def test_a_rerun_replaces_exactly_its_partition(database, io_manager, definition, key, other):
    if isinstance(definition, dg.DynamicPartitionsDefinition):
        shared_instance().add_dynamic_partitions("files", [key, other])
    values = [1, 2]

    @dg.asset(partitions_def=definition)
    def numbers():
        return pd.DataFrame({"n": values})

    materialize(numbers, io_manager, partition_key=key)
    materialize(numbers, io_manager, partition_key=other)
    untouched = "SELECT ctid, xmin, * FROM numbers WHERE materialization_id = 2"
    before = query(database, untouched)
    values = [3]
    materialize(numbers, io_manager, partition_key=key)

    assert rows_of(database, "numbers", "n") == {str(key): [(3,)], str(other): [(1,), (2,)]}
    assert query(database, untouched) == before


def test_the_rows_of_one_run_count_as_those_of_its_partition(database, io_manager):
    @dg.asset(partitions_def=DAYS)
    def numbers():
        return pd.DataFrame({"n": [1, 2]})

    metadata = metadata_of(materialize(numbers, io_manager, partition_key="2024-01-01"))

    assert metadata["dagster/partition_row_count"] == 2
    assert "dagster/row_count" not in metadata


def test_an_empty_frame_empties_its_partition_alone(database, io_manager):
    @dg.asset(partitions_def=DAYS)
    def numbers(context):
        emptied = context.run.tags.get("emptied")
        return pd.DataFrame({"n": [] if emptied else [1]})

    for key in days(1, 2):
        materialize(numbers, io_manager, partition_key=key)
    result = materialize(numbers, io_manager, partition_key="2024-01-01", tags={"emptied": "yes"})

    assert rows_of(database, "numbers", "n") == {"2024-01-02": [(1,)]}
    assert logged(result, level="WARNING") == [
        "Empty DataFrame received for asset numbers. The database table will not be created."
    ]
    assert len(load_partitions(io_manager, days(1, 1))) == 0


# --- a table of several assets and partitions -----------------------------------------------


def test_hundreds_of_partitions_and_several_assets_share_a_table(database, io_manager):
    keys = [f"{number:03}" for number in range(300)]

    def store_each(asset: str, n: int, keys: list[str]) -> None:
        frames = {key: pd.DataFrame({"n": [n]}) for key in keys}
        store_bare(io_manager, frames, keys, key=asset, table="shared")

    def store_whole() -> None:
        store(io_manager, pd.DataFrame({"n": [0, 0]}), key="whole", table="shared")

    store_each("one", 1, keys)
    store_whole()
    store_each("two", 2, keys)
    store_whole()
    store_each("one", 3, keys[7:9])

    assert query(database, "SELECT n, count(*) FROM shared GROUP BY n ORDER BY n") == [
        (0, 2), (1, 298), (2, 300), (3, 2),
    ]  # fmt: skip
    assert list(load(io_manager, key="whole")["n"]) == [0, 0]
    assert sorted(load_partitions(io_manager, keys, key="one")["n"]) == [1] * 298 + [3] * 2
    assert list(load_partitions(io_manager, keys[5:9], key="two")["n"]) == [2] * 4


def test_a_table_gets_its_index_before_a_second_owner_moves_in(database, io_manager):
    store(io_manager, pd.DataFrame({"n": [1]}), key="first", table="shared")
    indexes = "SELECT indexdef FROM pg_indexes WHERE tablename = 'shared'"
    alone = query(database, indexes)
    store(io_manager, pd.DataFrame({"n": [1]}), key="second", table="shared")

    assert alone == []
    [(definition,)] = query(database, indexes)
    assert definition.endswith("USING btree (materialization_id)")


def test_an_unpartitioned_asset_in_a_run_of_a_partition_is_replaced_by_each(database, io_manager):
    @dg.asset(partitions_def=DAYS)
    def daily(context):
        return pd.DataFrame({"day": [context.partition_key]})

    @dg.asset
    def latest(context):
        return pd.DataFrame({"day": [context.run.tags["dagster/partition"]]})

    for key in days(1, 2):
        result = materialize([daily, latest], io_manager, partition_key=key)

    assert rows(database, "public.daily") == [("2024-01-01",), ("2024-01-02",)]
    assert rows(database, "public.latest") == [("2024-01-02",)]
    [event] = result.asset_materializations_for_node("latest")
    assert event.metadata["dagster/row_count"].value == 1


def test_op_outputs_of_a_partitioned_job_are_kept_and_read_by_partition(database, io_manager):
    @dg.op
    def emit(context):
        return pd.DataFrame({"day": [context.partition_key]})

    @dg.op
    def check(context, emitted: pd.DataFrame) -> None:
        assert list(emitted["day"]) == [context.partition_key]

    @dg.job(partitions_def=DAYS, resource_defs={"io_manager": io_manager})
    def daily():
        check(emit())

    for key in (*days(1, 2), "2024-01-01"):
        assert daily.execute_in_process(partition_key=key, instance=shared_instance()).success

    assert rows_of(database, "daily/emit/result", "day", table="public.result") == {
        "2024-01-01": [("2024-01-01",)],
        "2024-01-02": [("2024-01-02",)],
    }


# --- several partitions in one run ----------------------------------------------------------


def test_a_dict_of_frames_replaces_the_partitions_of_the_run_and_no_other(
    database, io_manager, frame
):
    values = iter([[1], [2, 3]])

    @dg.asset(partitions_def=DAYS, backfill_policy=BACKFILL)
    def numbers(context):
        returned = next(values)
        return {
            key: frame({"n": returned, "key": [key] * len(returned)})
            for key in context.partition_keys
        }

    backfill(numbers, io_manager, "2024-01-01", "2024-01-04")
    result = backfill(numbers, io_manager, "2024-01-02", "2024-01-03")

    assert rows_of(database, "numbers", "n", "key") == {
        "2024-01-01": [(1, "2024-01-01")],
        "2024-01-02": [(2, "2024-01-02"), (3, "2024-01-02")],
        "2024-01-03": [(2, "2024-01-03"), (3, "2024-01-03")],
        "2024-01-04": [(1, "2024-01-04")],
    }
    metadata = metadata_of(result)
    assert metadata["rows"] == 4
    assert not metadata.keys() & {"dagster/row_count", "dagster/partition_row_count"}


def test_each_partition_of_a_run_has_a_materialization_that_counts_its_rows(database, io_manager):
    store_partitions(
        io_manager,
        {"a": pd.DataFrame({"n": [1]}), "b": pd.DataFrame({"n": [2]})},
        ["a", "b"],
    )
    store_partitions(
        io_manager, {"a": pd.DataFrame({"n": [3, 4]}), "b": pd.DataFrame()}, ["a", "b"]
    )

    assert query(
        database,
        """
        SELECT a.partition_key, m.id, m.rows_inserted, m.rows_deleted
        FROM meta.materializations AS m
        JOIN meta.assets AS a ON a.id = m.asset_id
        ORDER BY m.id
        """,
    ) == [("a", 1, 1, 0), ("b", 2, 1, 0), ("a", 3, 2, 1), ("b", 4, 0, 1)]


EXPRESSIONS = {
    "static": (COLORS, "color", {"color": ["red", "blue", "red"]}, ["red", "blue", "red"]),
    "dates": (DAYS, "day", {"day": [dt.date(2024, 1, 2), dt.date(2024, 1, 1)]}, days(1, 2)[::-1]),
    "naive timestamps": (
        DAYS,
        "at",
        {"at": [dt.datetime(2024, 1, 2, 23, 59), dt.datetime(2024, 1, 1)]},
        days(1, 2)[::-1],
    ),
    "aware timestamps": (
        dg.DailyPartitionsDefinition("2024-01-01", timezone="Asia/Tokyo"),
        "at",
        {"at": pd.to_datetime(["2024-01-01T15:00Z", "2024-01-01T14:59Z"])},
        days(1, 2)[::-1],
    ),
    "text": (DAYS, "at", {"at": ["2024-01-02", "2024-01-01T10:00:00"]}, days(1, 2)[::-1]),
    "several dimensions": (
        COLORS_BY_DAY,
        {"color": "paint", "day": "at"},
        {"paint": ["red", "blue"], "at": [dt.date(2024, 1, 1), dt.date(2024, 1, 1)]},
        ["red|2024-01-01", "blue|2024-01-01"],
    ),
}


@pytest.mark.parametrize(
    ("definition", "expression", "columns", "keys"), EXPRESSIONS.values(), ids=list(EXPRESSIONS)
)
def test_partition_expr_names_the_column_that_tells_the_partition(
    database, io_manager, definition, expression, columns, keys
):
    @dg.asset(
        partitions_def=definition, backfill_policy=BACKFILL, metadata={"partition_expr": expression}
    )
    def numbers():
        return pd.DataFrame({"n": range(len(keys)), **columns})

    backfill(numbers, io_manager, min(keys), max(keys))

    told: dict[str, Rows] = {}
    for n, key in enumerate(keys):
        told.setdefault(key, []).append((n,))
    assert rows_of(database, "numbers", "n") == told


def test_partition_expr_reads_dynamic_partitions(database, io_manager):
    shared_instance().add_dynamic_partitions("letters", ["a", "b"])

    @dg.asset(
        partitions_def=dg.DynamicPartitionsDefinition(name="letters"),
        backfill_policy=BACKFILL,
        metadata={"partition_expr": "letter"},
    )
    def numbers():
        return pd.DataFrame({"letter": ["b", "a", "b"]})

    backfill(numbers, io_manager, "a", "b")

    assert rows_of(database, "numbers", "letter") == {"a": [("a",)], "b": [("b",), ("b",)]}


def test_without_either_a_frame_for_several_partitions_is_refused_with_both_ways(
    database, io_manager
):
    @dg.asset(partitions_def=DAYS, backfill_policy=BACKFILL)
    def numbers():
        return pd.DataFrame({"n": [1]})

    before = fingerprint(database)
    with pytest.raises(ConfigurationError) as refused:
        backfill(numbers, io_manager, "2024-01-01", "2024-01-03")

    assert str(refused.value) == (
        "asset numbers (public.numbers): The run covers 3 partitions (2024-01-01 to 2024-01-03), "
        "and a single frame does not say which row belongs to which. Return a dict of partition "
        "key to frame, or name the column that tells with metadata={'partition_expr': 'column'}."
    )
    assert fingerprint(database) == before


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"2024-01-01": 1}, r"Missing: \['2024-01-02', '2024-01-03'\]\.$"),
        (dict.fromkeys(days(1, 4), 1), r"Not of this run: \['2024-01-04'\]\.$"),
        ({}, r"Missing: \['2024-01-01', '2024-01-02', '2024-01-03'\]\.$"),
    ],
    ids=["missing", "foreign", "nothing"],
)
def test_a_dict_without_exactly_the_partitions_of_the_run_is_refused(
    database, io_manager, returned, message
):
    frames = {key: pd.DataFrame({"n": [value]}) for key, value in returned.items()}
    before = fingerprint(database)

    with pytest.raises(ConfigurationError, match=message):
        store_partitions(io_manager, frames, days(1, 3))

    assert fingerprint(database) == before


def test_a_dict_is_taken_for_a_run_over_one_partition_too(database, io_manager):
    @dg.asset(partitions_def=DAYS)
    def numbers(context):
        return {context.partition_key: pd.DataFrame({"n": [1]})}

    materialize(numbers, io_manager, partition_key="2024-01-01")

    assert rows_of(database, "numbers", "n") == {"2024-01-01": [(1,)]}


def test_what_is_wrong_with_a_frame_of_a_dict_names_its_partition(database, io_manager):
    frames = {"a": pd.DataFrame({"n": [1]}), "b": 2}

    with pytest.raises(UnsupportedFrame, match="partition b: cannot store a int"):
        store_partitions(io_manager, frames, ["a", "b"])


def test_an_index_that_frames_of_a_dict_are_stored_without_is_told_once(database, io_manager):
    frames = {key: pd.DataFrame({"n": [1]}, index=[7]) for key in days(1, 3)}

    result = store_partitions(io_manager, frames, days(1, 3))

    [warning] = logged(result, level="WARNING")
    assert warning.startswith("the frame is stored without its unnamed index")


def test_a_dict_for_an_unpartitioned_asset_is_refused(database, io_manager):
    with pytest.raises(
        ConfigurationError, match="a run over several partitions, and this output has"
    ):
        store(io_manager, {"a": pd.DataFrame({"n": [1]})})


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (dt.date(2024, 1, 5), "tells none of the 2 partitions of this run"),
        (None, "is NULL, which tells no partition"),
    ],
    ids=["outside", "null"],
)
def test_a_row_that_tells_no_partition_of_the_run_is_refused_by_column_and_row(
    database, io_manager, value, reason
):
    @dg.asset(partitions_def=DAYS, backfill_policy=BACKFILL, metadata={"partition_expr": "day"})
    def numbers():
        return pd.DataFrame({"day": [dt.date(2024, 1, 1), dt.date(2024, 1, 2), value]})

    before = fingerprint(database)
    with pytest.raises(BadValue) as refused:
        backfill(numbers, io_manager, "2024-01-01", "2024-01-02")

    assert str(refused.value) == (f"asset numbers (public.numbers): column 'day', row 2: {reason}")
    assert fingerprint(database) == before


@pytest.mark.parametrize("expression", ["TO_TIMESTAMP(time)", 5, ["day"], {"day": "nope"}, None])
def test_partition_expr_is_tolerated_where_nothing_has_to_tell_partitions(
    database, io_manager, expression
):
    @dg.asset(partitions_def=DAYS, metadata={"partition_expr": expression, "table": "numbers"})
    def daily():
        return pd.DataFrame({"n": [1]})

    @dg.asset(metadata={"partition_expr": expression, "table": "numbers"})
    def whole():
        return pd.DataFrame({"n": [2]})

    @dg.asset(ins={"whole": dg.AssetIn(metadata={"partition_expr": expression})})
    def downstream(whole: pd.DataFrame) -> None:
        assert list(whole["n"]) == [2]

    materialize([daily, whole, downstream], io_manager, partition_key="2024-01-01")

    assert rows(database) == [(1,), (2,)]


def test_frames_of_a_dict_may_differ_in_columns_and_widths(database, io_manager):
    frames = {
        "a": pd.DataFrame({"n": [1, 2], "text": ["x", None]}),
        "b": pd.DataFrame({"n": [0.5], "extra": [{"k": [1]}]}),
        "c": pd.DataFrame({"n": [None], "text": [None]}),
        "d": pd.DataFrame(),
    }

    store_partitions(io_manager, frames, list(frames))

    assert rows_of(database, "numbers", "n", "text", "extra") == {
        "a": [(1.0, "x", None), (2.0, None, None)],
        "b": [(0.5, None, {"k": [1]})],
        "c": [(None, None, None)],
    }


def test_a_run_whose_frames_are_all_empty_empties_its_partitions(database, io_manager):
    for n in ([1], []):
        frames = {key: pd.DataFrame({"n": pd.Series(n, dtype="int64")}) for key in days(1, 2)}
        store_partitions(io_manager, frames, days(1, 2))
        if n:
            store_partitions(io_manager, pd.DataFrame({"n": [3]}), days(3, 3))

    assert rows_of(database, "numbers", "n") == {"2024-01-03": [(3,)]}
    assert list(load_partitions(io_manager, days(1, 3))["n"]) == [3]


def test_a_stream_that_fails_in_one_partition_leaves_all_as_they_were(database, io_manager):
    def failing() -> Iterator[pa.RecordBatch]:
        yield pa.record_batch({"n": [20]})
        raise RuntimeError("the source went away")

    store_partitions(io_manager, {key: pd.DataFrame({"n": [1]}) for key in days(1, 2)}, days(1, 2))
    stream = pa.RecordBatchReader.from_batches(pa.schema({"n": pa.int64()}), failing())
    with pytest.raises(RuntimeError, match="the source went away"):
        store_partitions(
            io_manager,
            {"2024-01-01": pa.table({"n": [10]}), "2024-01-02": stream},
            days(1, 2),
        )

    assert rows_of(database, "numbers", "n") == {"2024-01-01": [(1,)], "2024-01-02": [(1,)]}


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.sweep)])
def test_thousands_of_partitions_are_one_transaction_without_a_lock_or_temporary_table_each(
    database, io_manager, count
):
    keys = [f"{number:05}" for number in range(count)]
    seen: list[Rows] = []

    def last() -> Iterator[pa.RecordBatch]:
        seen.append(query(database, "SELECT count(*) FROM pg_locks WHERE NOT fastpath"))
        seen.append(query(database, "SELECT count(*) FROM pg_class WHERE relpersistence = 't'"))
        seen.append(query(database, "SELECT count(*), count(DISTINCT n) FROM numbers"))
        yield pa.record_batch({"n": [2, 2]})

    def frames(n: int) -> dict[str, Any]:
        stream = pa.RecordBatchReader.from_batches(pa.schema({"n": pa.int64()}), last())
        return {key: pa.table({"n": [n, n]}) for key in keys[:-1]} | {keys[-1]: stream}

    store_bare(io_manager, dict.fromkeys(keys, pa.table({"n": [1]})), keys)
    store_bare(io_manager, frames(2), keys)

    [[(locks,)], [(temporary,)], old] = seen
    assert locks < 50
    assert temporary == 0
    assert old == [(count, 1)]
    assert query(database, "SELECT count(*), sum(n) FROM numbers") == [(2 * count, 4 * count)]
    assert query(database, "SELECT count(DISTINCT xmin::text) FROM numbers") == [(1,)]
    assert query(
        database,
        "SELECT count(*), sum(rows_inserted), sum(rows_deleted) FROM meta.materializations",
    ) == [(2 * count, 3 * count, count)]
    assert len(load_partitions(io_manager, keys)) == 2 * count


# --- at the same time -----------------------------------------------------------------------


def at_once(*tasks: Callable[[], object]) -> None:
    """Run tasks in threads that start together; raise what any of them raised."""
    barrier = threading.Barrier(len(tasks))

    def start(task: Callable[[], object]) -> None:
        barrier.wait()
        task()

    with ThreadPoolExecutor(len(tasks)) as pool:
        for running in [pool.submit(start, task) for task in tasks]:
            running.result()


def test_partitions_written_at_once_are_all_there_from_the_first_on(database, io_manager):
    keys = days(1, 6)

    def storing(key: str, n: int) -> Callable[[], object]:
        return lambda: store_bare(io_manager, pa.table({"n": [n] * 100}), [key])

    for n in range(3):
        at_once(*(storing(key, n) for key in keys))

    assert rows_of(database, "numbers", "n") == {key: [(2,)] * 100 for key in keys}


def test_of_two_writers_of_one_partition_the_rows_of_one_are_left(database, io_manager):
    def storing(first: int) -> Callable[[], object]:
        values = list(range(first, first + 1000))
        return lambda: store_bare(io_manager, pa.table({"n": values}), ["2024-01-01"])

    for _time in range(5):
        at_once(storing(0), storing(5000))

        [(count, first, last)] = query(database, "SELECT count(*), min(n), max(n) FROM numbers")
        assert (count, first, last) in {(1000, 0, 999), (1000, 5000, 5999)}


def parallel_job() -> dg.JobDefinition:
    """A job whose assets share a table; made anew in each process that runs one of its steps."""

    def asset(name: str) -> dg.AssetsDefinition:
        @dg.asset(name=name, partitions_def=DAYS, metadata={"table": "shared"})
        def partitioned(context):
            return pd.DataFrame({"asset": [name], "day": [context.partition_key]})

        return partitioned

    return dg.Definitions(
        assets=[asset("one"), asset("two")],
        jobs=[dg.define_asset_job("parallel", executor_def=dg.multiprocess_executor)],
        # Nothing is configured: libpq's environment says where the database is.
        resources={"io_manager": PostgresIOManager()},
    ).resolve_job_def("parallel")


def test_steps_in_processes_of_their_own_write_to_one_table(database, monkeypatch, tmp_path):
    for variable, value in database.environment().items():
        monkeypatch.setenv(variable, value)

    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        result = dg.execute_job(
            dg.reconstructable(parallel_job),
            instance=instance,
            tags={"dagster/partition": "2024-01-01"},
            raise_on_error=True,
        )

    assert result.success
    assert rows(database, "public.shared") == [("one", "2024-01-01"), ("two", "2024-01-01")]


# --- an asset that changes ------------------------------------------------------------------


def test_rows_from_before_an_asset_was_partitioned_stay_and_are_told_with_their_removal(
    database, io_manager
):
    store(io_manager, pd.DataFrame({"n": [1, 2]}))

    @dg.asset(partitions_def=DAYS)
    def numbers():
        return pd.DataFrame({"n": [3]})

    first = materialize(numbers, io_manager, partition_key="2024-01-01")
    again = materialize(numbers, io_manager, partition_key="2024-01-02")

    assert rows(database) == [(1,), (2,), (3,), (3,)]
    assert list(load_partitions(io_manager, days(1, 2))["n"]) == [3, 3]
    assert list(load(io_manager)["n"]) == [3, 3]
    assert sorted(load_partitions(io_manager, days(1, 1), full_table=True)["n"]) == [1, 2, 3, 3]
    for result in (first, again):
        [warning] = logged(result, level="WARNING")
        assert warning.startswith("numbers left 2 rows in public.numbers when its partitions or")
    run_command_of(warning, database)
    assert rows(database) == [(3,), (3,)]
    assert (
        logged(materialize(numbers, io_manager, partition_key="2024-01-01"), level="WARNING") == []
    )


def test_rows_from_when_an_asset_was_partitioned_stay_and_are_told_with_their_removal(
    database, io_manager
):
    store_partitions(io_manager, {key: pd.DataFrame({"n": [1]}) for key in days(1, 3)}, days(1, 3))

    @dg.asset
    def numbers():
        return pd.DataFrame({"n": [2]})

    result = materialize(numbers, io_manager)

    assert rows(database) == [(1,), (1,), (1,), (2,)]
    assert list(load(io_manager)["n"]) == [2]
    assert sorted(load(io_manager, full_table=True)["n"]) == [1, 1, 1, 2]
    [warning] = logged(result, level="WARNING")
    assert warning.startswith("numbers left 3 rows in public.numbers when its partitions or")
    run_command_of(warning, database)
    assert rows(database) == [(2,)]


def test_a_load_reads_where_the_last_write_put_the_rows(database, io_manager):
    store(io_manager, pd.DataFrame({"n": [1]}), schema="old", table="then")
    store(io_manager, pd.DataFrame({"n": [9]}), key="somebody_else", schema="new", table="now")
    definition = {"schema": "new", "table": "now"}

    before = load(io_manager, upstream=definition)
    store(io_manager, pd.DataFrame({"n": [2]}), **definition)
    after = load(io_manager, upstream=definition)

    assert list(before["n"]) == [1]
    assert list(after["n"]) == [2]
    assert list(load(io_manager)["n"]) == [2]


def test_rows_in_the_table_an_asset_was_kept_in_before_are_told_with_their_removal(
    database, io_manager
):
    table = "orders"

    def definition() -> dg.AssetsDefinition:
        @dg.asset(metadata={"table": table, "schema": 'Old "one"' if table == "orders" else "new"})
        def numbers():
            return pd.DataFrame({"n": [1, 1]})

        return numbers

    materialize(definition(), io_manager)
    table = "invoices"
    moved = materialize(definition(), io_manager)
    again = materialize(definition(), io_manager)

    for result in (moved, again):
        [warning] = logged(result, level="WARNING")
        assert warning.startswith('numbers left 2 rows in "Old ""one""".orders when its')
    run_command_of(warning, database)
    assert rows(database, 'Old "one".orders') == []
    assert rows(database, "new.invoices") == [(1,), (1,)]
    assert logged(materialize(definition(), io_manager), level="WARNING") == []
    assert query(database, "SELECT * FROM meta.leftovers") == []


def test_rows_left_behind_are_nobody_elses(database, io_manager):
    store(io_manager, pd.DataFrame({"n": [1]}), key="staying", table="shared")
    store(io_manager, pd.DataFrame({"n": [2]}), key="moving", table="shared")
    store(io_manager, pd.DataFrame({"n": [2]}), key="moving", table="own")

    alone = load(io_manager, key="staying")
    store(io_manager, pd.DataFrame({"n": [3]}), key="coming", table="shared")

    assert list(alone["n"]) == [1]
    assert list(load(io_manager, key="coming")["n"]) == [3]


def test_an_asset_that_returns_to_a_table_replaces_what_it_left_there(database, io_manager):
    for value, table in enumerate(["first", "second", "first", "second"]):
        store(io_manager, pd.DataFrame({"n": [value]}), table=table)

    assert rows(database, "public.first") == [(2,)]
    assert rows(database, "public.second") == [(3,)]
    assert query(database, 'SELECT "table" FROM meta.leftovers') == [("first",)]


def test_the_command_removes_nothing_that_is_written_after_it_was_shown(database, io_manager):
    store(io_manager, pd.DataFrame({"n": [1]}))

    @dg.asset(partitions_def=DAYS)
    def numbers():
        return pd.DataFrame({"n": [2]})

    result = materialize(numbers, io_manager, partition_key="2024-01-01")
    store(io_manager, pd.DataFrame({"n": [3]}))  # the asset is unpartitioned again

    [warning] = logged(result, level="WARNING")
    run_command_of(warning, database)
    assert rows(database) == [(2,), (3,)]


def test_a_partition_that_stayed_in_the_old_table_is_no_leftover(database, io_manager):
    store_partitions(io_manager, {key: pd.DataFrame({"n": [1]}) for key in days(1, 2)}, days(1, 2))

    @dg.asset(partitions_def=DAYS, metadata={"table": "moved"})
    def numbers():
        return pd.DataFrame({"n": [2]})

    result = materialize(numbers, io_manager, partition_key="2024-01-02")

    [warning] = logged(result, level="WARNING")
    assert warning.startswith("numbers left 1 rows in public.numbers")
    run_command_of(warning, database)
    assert list(load_partitions(io_manager, days(1, 1))["n"]) == [1]
    assert list(load_partitions(io_manager, days(2, 2))["n"]) == [2]


def test_partitions_that_lie_in_different_tables_are_an_error_that_names_them(database, io_manager):
    store_partitions(io_manager, {key: pd.DataFrame({"n": [1]}) for key in days(1, 3)}, days(1, 3))
    store_partitions(io_manager, pd.DataFrame({"n": [2]}), days(3, 3), table="moved")

    with pytest.raises(ConfigurationError) as refused:
        load_partitions(io_manager, days(1, 3), upstream={"table": "moved"})

    assert str(refused.value) == (
        "asset numbers: The partitions asked for lie in different tables: public.moved has "
        "['2024-01-03']; public.numbers has ['2024-01-01', '2024-01-02']. Materialize those of the "
        "old table again, or load them one table at a time."
    )
    assert list(load_partitions(io_manager, days(1, 2))["n"]) == [1, 1]


def test_a_write_succeeds_even_if_nobody_can_count_what_was_left_behind(database, io_manager, role):
    store(io_manager, pd.DataFrame({"n": [1]}), schema="theirs")
    writer = role()
    with database.connect() as connection:
        connection.execute(f"GRANT ALL ON SCHEMA meta TO {writer.name}")
        connection.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA meta TO {writer.name}")
        connection.execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA meta TO {writer.name}")
        connection.execute(f"CREATE SCHEMA mine AUTHORIZATION {writer.name}")

    @dg.asset(metadata={"schema": "mine"})
    def numbers():
        return pd.DataFrame({"n": [2]})

    result = materialize(numbers, manager_for(database.as_role(writer)))

    assert rows(database, "mine.numbers") == [(2,)]
    [warning] = logged(result, level="WARNING")
    assert warning.startswith("Could not look for rows that numbers left behind: permission denied")


def run_command_of(warning: str, database: Database) -> None:
    """Run the command that a warning shows, as the person who reads it would."""
    command = re.search(r"This removes them: (DELETE .*;)$", warning, re.DOTALL)
    assert command is not None
    with database.connect() as connection:
        connection.execute(command[1])
