"""Promise 5: many write at once, first use included, and nobody fails, waits or loses without need.

A writer that has not committed yet is one whose stream calls the test back in mid-COPY: what
the test does there happens while the transaction is open, every time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import dagster as dg
import psycopg
import pyarrow as pa
import pytest

from dagster_tools.errors import DagsterToolsError
from dagster_tools.postgres.names import Table
from dagster_tools.postgres_io_manager import PostgresIOManager
from tests.fix_servers import Database
from tests.oracle import fetch_leftovers
from tests.promises.processes import all_at_once
from tests.promises.test_readers_are_never_blocked import open_reader, wait_for_ddl, wait_until
from tests.promises.writing import ids, load, numbers, stream, write

EIGHT = range(8)
ROUNDS = 3
SECONDS = 30.0


def rows(database: Database, query: str) -> list[tuple[Any, ...]]:
    with closing(database.connect()) as connection:
        return connection.execute(query).fetchall()


@contextmanager
def no_deadlock(database: Database) -> Iterator[None]:
    count = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    before = rows(database, count)
    yield
    assert rows(database, count) == before


@contextmanager
def in_a_thread(act: Callable[[], object]) -> Iterator[threading.Thread]:
    """Run something beside the block, and fail as it did."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001  # raised again below
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield thread
    thread.join(SECONDS)
    assert not thread.is_alive(), "it hangs"
    for failure in failures:
        raise failure


def wait_for_a_waiting_writer(database: Database) -> None:
    with closing(database.connect()) as connection:
        waiting = "SELECT FROM pg_locks WHERE NOT granted"
        wait_until(lambda: connection.execute(waiting).fetchone() is not None)


# --- at once, from nothing -------------------------------------------------------------------


def write_for_the_first_time(database: Database, way: str, index: int, number: int) -> None:
    table = f"t{index}" if way == "different tables" else "t"
    partition = f"p{index}" if way == "different partitions" else None
    write(
        database,
        numbers(index, label="x"),
        table=Table(f"s{number}", table),
        tracking_schema=f"m{number}",
        partition=partition,
        asset_key=f"a{index}" if way == "different assets" else table,
        run_id=str(index),
    )


@pytest.mark.parametrize(
    ("way", "written"),
    [
        ("different partitions", list(EIGHT)),
        ("different tables", list(EIGHT)),
        ("different assets", list(EIGHT)),
        ("the same partition", None),
    ],
)
def test_eight_processes_that_start_at_once_on_an_empty_database_all_succeed(
    database, way, written
):
    with no_deadlock(database):
        failures = all_at_once(
            write_for_the_first_time, [(database, way, index) for index in EIGHT], ROUNDS
        )

    assert failures == []
    for number in range(ROUNDS):
        tables = [f"t{index}" for index in EIGHT] if way == "different tables" else ["t"]
        found = [i for name in tables for i in ids(database, Table(f"s{number}", name))]
        assert (sorted(found) == written) if written is not None else (len(found) == 1)
        assert rows(database, f"SELECT count(*) FROM m{number}.materializations") == [(8,)]
    with closing(database.connect()) as connection:
        assert fetch_leftovers(connection) == []


def write_what_evolves(database: Database, index: int, number: int) -> None:
    """Write one partition with what the table lacks: a column, a key, an index, NOT NULL."""
    frame = numbers(index, 100 + index, label="x").append_column("more", pa.array([1, 2]))
    write(
        database,
        frame,
        partition=str(index),
        table=Table("sales", f"t{number}"),
        primary_key="id",
        columns={"label": ("string", "not null", "index"), "more": "bigint"},
    )


def test_eight_processes_that_find_the_same_lacking_in_a_table_all_succeed(database):
    for number in range(ROUNDS):
        write(database, numbers(50), table=Table("sales", f"t{number}"), partition="first")

    with no_deadlock(database):
        failures = all_at_once(write_what_evolves, [(database, index) for index in EIGHT], ROUNDS)

    assert failures == []
    for number in range(ROUNDS):
        assert len(ids(database, Table("sales", f"t{number}"))) == 17
    with closing(database.connect()) as connection:
        assert fetch_leftovers(connection) == []


# --- who waits for whom ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        {"partition": "b"},
        {"table": Table("sales", "other")},
        {"table": Table("elsewhere", "other")},
        {"partition": "b", "asset_key": "another asset"},
        {"asset_key": "another asset"},
    ],
    ids=["partition", "table", "schema", "asset and partition", "second owner"],
)
def test_a_writer_that_has_not_committed_holds_up_no_writer_of_anything_else(database, other):
    write(database, numbers(1), partition="a")

    def write_another() -> None:
        write(database, numbers(7), **other)

    write(database, stream(numbers(2), write_another, numbers(3)), partition="a")

    assert ids(database, other.get("table", Table("sales", "numbers"))) == (
        [2, 3, 7] if "table" not in other else [7]
    )


def test_a_writer_of_the_same_partition_waits_for_the_one_before_and_one_set_remains(database):
    write(database, numbers(1), partition="a")
    second = in_a_thread(lambda: write(database, numbers(7, 8), partition="a"))

    def start_second() -> None:
        second.__enter__()
        wait_for_a_waiting_writer(database)

    write(database, stream(numbers(2), start_second, numbers(3)), partition="a")
    second.__exit__(None, None, None)

    assert ids(database) == [7, 8]
    assert load(database, partition="a") == [{"id": 7, "label": ""}, {"id": 8, "label": ""}]


def test_upserts_of_the_same_keys_in_opposite_order_take_turns(database):
    write(database, numbers(1, 2), primary_key="id")

    with no_deadlock(database):
        failures = all_at_once(upsert, [(database, index) for index in EIGHT], ROUNDS)

    assert failures == []
    assert ids(database) == list(range(1, 51))


def upsert(database: Database, index: int, number: int) -> None:
    keys = range(1, 51) if index % 2 else range(50, 0, -1)
    frame = numbers(*keys, label=f"{index} {number}")
    write(database, frame, primary_key="id", incremental=True, asset_key=f"asset {index}")


def test_the_other_partitions_of_a_table_wait_for_its_very_first_write_alone(database):
    write(database, numbers(1), table=Table("sales", "other"))  # the tracking tables, too
    second = in_a_thread(lambda: write(database, numbers(7), partition="b"))

    def start_second() -> None:
        second.__enter__()
        wait_for_a_waiting_writer(database)

    write(database, stream(numbers(2), start_second, numbers(3)), partition="a")
    second.__exit__(None, None, None)

    assert ids(database) == [2, 3, 7]


PARTITIONS = ("a", "b", "c")


def parallel_job() -> dg.JobDefinition:
    """A job of one partitioned asset, made anew in each process that runs a step of it."""

    def meet() -> None:
        """Wait, in the middle of a COPY, until the other partitions are there, too."""
        with psycopg.connect(autocommit=True) as connection:  # libpq's environment says where
            connection.execute("INSERT INTO public.met DEFAULT VALUES")
            met = "SELECT count(*) FROM public.met"
            wait_until(lambda: connection.execute(met).fetchone() == (len(PARTITIONS),), seconds=60)

    @dg.asset(
        key_prefix="sales", name="numbers", partitions_def=dg.StaticPartitionsDefinition(PARTITIONS)
    )
    def asset(context) -> Any:
        number = PARTITIONS.index(context.partition_key)
        return stream(numbers(number), meet, numbers(10 + number))

    return dg.Definitions(
        assets=[asset],
        jobs=[dg.define_asset_job("parallel", executor_def=dg.multiprocess_executor)],
        resources={"io_manager": PostgresIOManager()},
    ).resolve_job_def("parallel")


def run_partition(environment: dict[str, str], folder: str, partition: str, _number: int) -> None:
    os.environ.update(environment)
    with dg.DagsterInstance.local_temp(folder) as instance:
        dg.execute_job(
            dg.reconstructable(parallel_job),
            instance=instance,
            tags={"dagster/partition": partition},
            raise_on_error=True,
        )


@pytest.mark.direct("pgbouncer", reason="three writers wait for each other in a pool of two")
def test_partitions_of_one_table_are_written_in_parallel_by_dagsters_multiprocess_executor(
    database, tmp_path
):
    """Each waits in mid-COPY for the others, so one after the other they would never end."""
    write(database, numbers(0), partition="before", asset_key="sales/numbers")
    with closing(database.connect()) as connection:
        connection.execute("CREATE TABLE public.met ()")
    runs = []
    for partition in PARTITIONS:
        (tmp_path / partition).mkdir()
        runs.append((database.environment(), str(tmp_path / partition), partition))

    failures = all_at_once(run_partition, runs, rounds=1)

    assert failures == []
    assert ids(database) == [0, 0, 1, 2, 10, 11, 12]


# --- what changes under a plan ---------------------------------------------------------------


def test_a_column_widened_while_a_writer_waited_for_its_turn_is_written_as_it_is_now(database):
    """The waiting writer planned for 32 bits, and would send too few."""
    write(database, pa.table({"id": pa.array([1], pa.int32())}), partition="a")
    second = in_a_thread(
        lambda: write(database, pa.table({"id": pa.array([7], pa.int32())}), partition="a")
    )
    big = pa.table({"id": [2**40]})

    def start_second() -> None:
        second.__enter__()
        wait_for_a_waiting_writer(database)

    write(database, stream(pa.table({"id": [2]}), start_second, big), partition="a")
    second.__exit__(None, None, None)

    assert ids(database) == [7]


def test_two_writers_that_add_a_column_with_different_types_corrupt_no_value(database):
    """Both types have 32 bits, and COPY would take the one for the other."""
    write(database, numbers(1), partition="a")
    real = numbers(2).append_column("x", pa.array([1.5], pa.float32()))
    whole = numbers(3).append_column("x", pa.array([7], pa.int32()))

    with (
        open_reader(database) as reader,
        in_a_thread(lambda: write(database, real, partition="b")),
        in_a_thread(lambda: write(database, whole, partition="c")),
    ):
        wait_for_ddl(database)
        reader.rollback()

    found = rows(database, "SELECT x::double precision FROM sales.numbers ORDER BY id")
    assert found == [(None,), (1.5,), (7.0,)]


def test_a_column_that_was_empty_when_a_change_of_its_type_was_planned_keeps_what_came_since(
    database,
):
    empty = pa.table({"id": [1], "x": pa.array([None], pa.string())})
    write(database, empty, partition="a")
    number = pa.table({"id": [2], "x": pa.array([5], pa.int64())})

    with open_reader(database) as reader:
        try:
            with in_a_thread(lambda: write(database, number, partition="b")):
                wait_for_ddl(database)
                with closing(database.connect()) as connection:
                    connection.execute("INSERT INTO sales.numbers (id, x) VALUES (3, 'precious')")
                reader.rollback()
        except DagsterToolsError:
            pass  # that the number does not fit a text column may well be said

    assert rows(database, "SELECT x FROM sales.numbers WHERE id = 3") == [("precious",)]


def test_a_table_that_is_dropped_while_a_writer_waits_is_made_again(database):
    write(database, numbers(1), partition="a")

    with closing(database.connect(autocommit=False)) as holding:
        holding.execute("SELECT FROM meta.assets FOR UPDATE")
        with in_a_thread(lambda: write(database, numbers(2), partition="a")):
            wait_for_a_waiting_writer(database)
            rows_before = ids(database)
            with closing(database.connect()) as connection:
                connection.execute("DROP TABLE sales.numbers")
            holding.rollback()

    assert rows_before == [1]
    assert ids(database) == [2]


# --- indexes of a live table -----------------------------------------------------------------


INDEXES = """
    SELECT indisvalid
    FROM pg_index
    WHERE indrelid = 'sales.numbers'::regclass
      AND pg_get_indexdef(indexrelid) LIKE '%(materialization_id)'
"""


def move_in(database: Database, index: int, number: int) -> None:
    write(database, numbers(index), partition=f"{number}", asset_key=f"asset {index}")


def test_second_owners_that_move_in_at_once_end_in_no_deadlock_and_the_table_gets_its_index(
    database,
):
    write(database, numbers(*range(1000)))

    with no_deadlock(database):
        failures = all_at_once(move_in, [(database, index) for index in EIGHT], ROUNDS)
    write(database, numbers(1), partition="last", asset_key="one more")

    assert failures == []
    assert rows(database, INDEXES) == [(True,)]


def test_an_index_is_put_off_rather_than_waited_for_where_an_old_snapshot_stands_in_its_way(
    database,
):
    write(database, numbers(1))
    with closing(database.connect(autocommit=False)) as older:
        older.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")

        write(database, numbers(2), partition="a", asset_key="second")

        assert rows(database, INDEXES) == []
    write(database, numbers(3), partition="a", asset_key="second")
    assert rows(database, INDEXES) == [(True,)]


def test_an_index_that_a_killed_builder_left_invalid_is_built_again(database):
    write(database, numbers(1))
    write(database, numbers(2), partition="a", asset_key="second")
    with closing(database.connect()) as connection:
        connection.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indrelid = 'sales.numbers'::regclass"
        )

    write(database, numbers(3), partition="a", asset_key="second")

    assert rows(database, INDEXES) == [(True,)]
