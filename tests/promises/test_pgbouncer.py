"""Promise 10: it works through PgBouncer in transaction mode, with a pool of two."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pyarrow as pa
import pytest

from dagster_tools.postgres import read
from dagster_tools.postgres.deletion import Keys
from dagster_tools.postgres.names import Table
from dagster_tools.sql import SQL, Query
from tests.fix_pgbouncer import pooler
from tests.fix_servers import Database
from tests.pipelines import manager_for
from tests.promises.writing import ids, load, numbers, run, write
from tests.test_sharepoint_asset import failure, resource_of, results_asset, rows
from tests.test_sharepoint_asset import run as run_asset

pytestmark = pytest.mark.direct("pgbouncer", "tls", reason="it has poolers of its own")

MANY = 20_000
"""Rows of two columns: more than is read without the driver."""


def test_a_table_is_written_replaced_evolved_and_loaded_through_a_pooler(database, pooled):
    write(pooled, numbers(1), primary_key="id")
    write(pooled, numbers(1, 2, label="a"), primary_key="id")
    write(pooled, numbers(2, 3), primary_key="id", columns={"label": ("string", "index")})
    write(pooled, numbers(3, 4), primary_key="id", incremental=True)

    assert ids(database) == [2, 3, 4]
    assert sorted(row["id"] for row in load(pooled)) == [2, 3, 4]


def test_rows_are_deleted_and_inserted_by_frames_queries_and_statements_through_a_pooler(
    database, pooled
):
    write(pooled, numbers(1, 2))
    write(pooled, numbers(3), delete=Keys(("id",), numbers(2).select(["id"])))
    run(pooled, Query("SELECT id + 1 AS id, label FROM sales.numbers"), run_id="a query")
    run(pooled, SQL("INSERT INTO sales.numbers VALUES (%(id)s, '')", id=7), run_id="statements")

    assert ids(database) == [2, 4, 7]
    assert sorted(row["id"] for row in load(pooled)) == [2, 4, 7]


def test_partitions_are_replaced_and_loaded_through_a_pooler(database, pooled):
    for partition, number in (("a", 1), ("b", 2), ("a", 3)):
        write(pooled, numbers(number), partition=partition)

    assert ids(database) == [2, 3]
    assert [row["id"] for row in load(pooled, partition="a")] == [3]


def test_a_second_owner_of_a_table_comes_in_through_a_pooler(database, pooled):
    """Its index is built outside a transaction, beside a session that keeps others away."""
    table = Table("sales", "shared")
    write(pooled, numbers(1), table=table, asset_key="one")
    write(pooled, numbers(2), table=table, asset_key="two")

    assert ids(database, table) == [1, 2]


def test_nothing_is_left_on_a_pooled_connection_for_the_next_client(pooled):
    write(pooled, numbers(1), primary_key="id")
    write(pooled, numbers(2), primary_key="id", incremental=True)
    load(pooled)

    with closing(pooled.connect(prepare_threshold=None)) as connection:
        settings = connection.execute(
            "SELECT name FROM pg_settings WHERE source = 'session' AND name NOT IN"
            " ('application_name', 'client_encoding', 'DateStyle', 'TimeZone',"
            "  'standard_conforming_strings', 'IntervalStyle')"
        ).fetchall()
        locks = connection.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        ).fetchone()
        relations = connection.execute(
            "SELECT count(*) FROM pg_class WHERE relpersistence = 't'"
        ).fetchone()
    assert settings == []
    assert locks == (0,)
    assert relations == (0,)


# --- at once --------------------------------------------------------------------------------


@pytest.mark.parametrize("connections", [1, 2])
def test_eight_loads_at_once_finish_in_a_pool_smaller_than_they_are_many(database, connections):
    """None holds one connection while it waits for another."""
    write(database, many())
    with pooler(database, connections=connections) as running:
        pooled = running.route(database)

        found = at_once(lambda: len(load(pooled)), 8)

    assert found == [MANY] * 8


def test_loads_and_writes_at_once_finish_in_a_pool_of_one(database):
    write(database, many())
    with pooler(database, connections=1) as running:
        pooled = running.route(database)

        found = at_once(lambda: write(pooled, many()) and len(load(pooled)), 4)

    assert found == [MANY] * 4
    assert len(ids(database)) == MANY


def test_sharepoint_files_are_followed_through_a_pool_of_one(database, graph, drive):
    calls: list[dict[str, str]] = []
    asset = results_asset(calls, on_file_error="quarantine")
    with pooler(database, connections=1) as running:
        pooled = running.route(database)
        resources = {
            "sharepoint": resource_of(graph, pooled),
            "postgres_io_manager": manager_for(pooled, schema="lab"),
        }
        for content in ("x\n1\n", "", "x\n2\n"):
            drive.write("/Results/a.csv", content)

            result = run_asset(asset, resources)

            assert result.success, failure(result)

    assert [list(call.values()) for call in calls] == [["created"], ["changed"], ["changed"]]
    assert rows(database) == [(2,)]


def test_a_connection_that_was_read_from_goes_back_into_the_pool(database, monkeypatch):
    """Left in a transaction it would be thrown away, and the next client wait for a new one."""
    monkeypatch.setattr(read, "FEW_VALUES", -1)
    write(database, numbers(1))
    with pooler(database, connections=1) as running:
        pooled = running.route(database)
        used = set()

        for _time in range(3):
            load(pooled)
            used |= backends(pooled)

    assert len(used) == 1


def backends(pooled: Database) -> set[int]:
    """Return the server's process behind a pool of one."""
    with closing(pooled.connect(prepare_threshold=None)) as connection:
        return {row[0] for row in connection.execute("SELECT pg_backend_pid()").fetchall()}


def many() -> pa.Table:
    return numbers(*range(MANY))


def at_once(act: Callable[[], int], times: int) -> list[int]:
    with ThreadPoolExecutor(times) as pool:
        running = [pool.submit(act) for _time in range(times)]
        return [each.result() for each in running]
