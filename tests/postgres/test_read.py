"""Rows come out of one snapshot, as a stream, and by the shortest way the table allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from psycopg.sql import SQL

from dagster_tools.errors import DatabaseError, MaterializationNotFound
from dagster_tools.postgres import read
from dagster_tools.postgres.column_types import PgType
from dagster_tools.postgres.connection import Connection, connect
from dagster_tools.postgres.names import Table
from dagster_tools.postgres.options import InputOptions
from dagster_tools.postgres.projection import Projected, compose_select
from dagster_tools.postgres.read import Request, read_by_partition, read_table
from dagster_tools.postgres.tracking import Tracking
from tests.fix_servers import Database
from tests.partitioned import store_bare
from tests.pipelines import query, resource_for, store

META = Tracking("meta")


def request(partition_keys: Sequence[str] | None = None, **options: Any) -> Request:
    keys = None if partition_keys is None else tuple(partition_keys)
    return Request("numbers", Table("public", "numbers"), keys, InputOptions(**options), {})


def numbers(database: Database, asked: Request) -> list[int]:
    stream = read_table(resource_for(database).settings(), META, asked)
    return sorted(stream.read_all()["n"].to_pylist())


def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the SELECTs that are composed from now on."""
    composed: list[str] = []

    def recording(*arguments: Any, **named: Any) -> Any:
        statement = compose_select(*arguments, **named)
        composed.append(statement.as_string())
        return statement

    monkeypatch.setattr(read, "compose_select", recording)
    return composed


def execute(database: Database, statement: str) -> None:
    with database.connect() as connection:
        connection.execute(statement)


def test_a_table_with_one_owner_is_read_without_a_list_of_materializations(
    database, io_manager, monkeypatch
):
    keys = ["a", "b", "c"]
    store_bare(io_manager, {key: pa.table({"n": [1]}) for key in keys}, keys)
    composed = statements(monkeypatch)

    everything = numbers(database, request(keys))
    some = numbers(database, request(keys[:2]))

    assert (everything, some) == ([1, 1, 1], [1, 1])
    assert "ANY" not in composed[0]
    assert "ANY" in composed[1]


def test_a_table_of_several_owners_is_read_by_materialization(database, io_manager, monkeypatch):
    store(io_manager, pa.table({"n": [1]}))
    store(io_manager, pa.table({"n": [2]}), key="other", table="numbers")
    composed = statements(monkeypatch)

    assert numbers(database, request()) == [1]
    assert "ANY" in composed[0]


def test_nothing_is_asked_of_a_table_where_no_partition_is_meant(database, io_manager, monkeypatch):
    store_bare(io_manager, {"a": pa.table({"n": [1]})}, ["a"])
    composed = statements(monkeypatch)

    stream = read_table(resource_for(database).settings(), META, request([]))

    assert stream.read_all().to_pydict() == {"n": []}
    assert composed == []


def test_no_partition_at_all_is_an_error_where_rows_are_needed(database, io_manager):
    store_bare(io_manager, {"a": pa.table({"n": [1]})}, ["a"])

    for asked in (request([]), request(["b"], allow_missing_partitions=True)):
        with pytest.raises(MaterializationNotFound, match="for asset numbers: there is no part"):
            numbers(database, replace(asked, raise_if_nothing=True))


def test_partitions_are_read_one_after_the_other_out_of_one_snapshot(database, io_manager):
    keys = ["a", "b"]
    store_bare(io_manager, {key: pa.table({"n": [1]}) for key in keys}, keys)
    reading = read_by_partition(resource_for(database).settings(), META, request(keys))

    first, stream = next(reading)
    store_bare(io_manager, {key: pa.table({"n": [2]}) for key in keys}, keys)
    found = {first: stream.read_all().to_pydict()}
    found |= {key: stream.read_all().to_pydict() for key, stream in reading}

    assert found == {"a": {"n": [1]}, "b": {"n": [1]}}


INTEGERS = pa.int32()
MEANWHILE = {
    "a replace": ("numbers", {"n": pa.array([2], INTEGERS)}),
    "a wider type": ("numbers", {"n": [2**40]}),
    "a new column": ("numbers", {"n": pa.array([2], INTEGERS), "m": ["new"]}),
    "another owner": ("other", {"n": pa.array([3], INTEGERS)}),
}


@pytest.mark.parametrize(
    ("case", "looks"),
    # After the driver's look a wider type leaves its snapshot without rows, as it does any.
    [
        (case, looks)
        for case in MEANWHILE
        for looks in (1, 2)
        if (case, looks) != ("a wider type", 2)
    ],
)
@pytest.mark.parametrize("by_partition", [False, True])
def test_what_the_driver_reads_is_of_the_moment_at_which_it_looked_where_the_rows_are(
    database, io_manager, monkeypatch, case, looks, by_partition
):
    """Whatever commits between psycopg's look, the driver's, and its COPY."""
    monkeypatch.setattr(read, "FEW_VALUES", -1)
    store_bare(io_manager, pa.table({"n": pa.array([1], INTEGERS)}), ["a"])
    writer, written = MEANWHILE[case]
    locate, looked = read._locate, []

    def and_then_a_write(*asked: Any) -> Any:
        located = locate(*asked)
        looked.append(located)
        if len(looked) == looks and writer == "numbers":
            store_bare(io_manager, pa.table(written), ["a"])
        elif len(looked) == looks:
            store(io_manager, pa.table(written), key=writer, table="numbers")
        return located

    monkeypatch.setattr(read, "_locate", and_then_a_write)
    settings, asked = resource_for(database).settings(), request(["a"])
    found = (
        [part.read_all() for _key, part in read_by_partition(settings, META, asked)]
        if by_partition
        else [read_table(settings, META, asked).read_all()]
    )

    sees = looks == 1 and writer == "numbers"
    assert [part.to_pydict() for part in found] == [
        pa.table(written if sees else {"n": [1]}).to_pydict()
    ]
    assert len(looked) == 2


def test_a_load_by_the_driver_has_one_connection_at_a_time(database, io_manager, monkeypatch):
    monkeypatch.setattr(read, "FEW_VALUES", -1)
    store(io_manager, pa.table({"n": [1]}))

    stream = read_table(resource_for(database).settings(), META, request())
    opened = query(
        database, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dagster-tools'"
    )
    stream.read_all()

    assert opened == [(1,)]


def test_what_is_larger_than_a_batch_arrives_in_several(database):
    execute(
        database,
        "CREATE TABLE numbers AS SELECT n, repeat('x', 300) AS t "
        "FROM generate_series(1, 200000) AS n",
    )

    stream = read_table(resource_for(database).settings(), META, request(order_by=("n",)))
    sizes = [batch.num_rows for batch in stream]

    assert sum(sizes) == 200_000
    assert len(sizes) > 1


def test_a_connection_that_is_lost_half_way_is_an_error_of_the_database(database):
    execute(
        database,
        "CREATE TABLE numbers AS SELECT repeat('x', 300) AS t FROM generate_series(1, 200000)",
    )
    stream = read_table(resource_for(database).settings(), META, request())
    query(
        database,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'COPY%'",
    )

    with pytest.raises(DatabaseError, match=r"while reading public\.numbers"):
        stream.read_all()


def test_a_type_made_after_the_first_load_is_read_by_the_second(database, monkeypatch):
    monkeypatch.setattr(read, "FEW_VALUES", -1)
    execute(database, "CREATE TABLE numbers AS SELECT 1 AS n")
    assert numbers(database, request()) == [1]
    execute(database, "CREATE TYPE mood AS ENUM ('sad'); ALTER TABLE numbers ADD m mood")
    execute(database, "UPDATE numbers SET m = 'sad'")

    loaded = read_table(resource_for(database).settings(), META, request()).read_all()

    assert loaded.to_pydict() == {"n": [1], "m": ["sad"]}


@pytest.mark.direct("pgbouncer", reason="the socket is the server's, not the pooler's")
def test_the_server_is_reached_by_the_socket_it_was_configured_with(database, io_manager):
    store(io_manager, pa.table({"n": [1]}))
    by_socket = replace(resource_for(database).settings(), host=database.socket_dir)

    assert read_table(by_socket, META, request()).read_all().to_pydict() == {"n": [1]}


def test_one_of_ten_thousand_partitions_is_found_without_looking_at_the_others(
    database, io_manager
):
    store_bare(io_manager, {"first": pa.table({"n": [1]})}, ["first"])
    execute(
        database,
        """
        INSERT INTO meta.assets (asset_key, partition_key, schema, "table")
        SELECT 'numbers', n::text, 'public', 'numbers'
        FROM generate_series(1, 9999) AS n;
        INSERT INTO meta.materializations (
            run_id, asset_id, rows_inserted, rows_updated, rows_deleted, rows_unchanged
        )
        SELECT 'run', id, 20, 0, 0, 0
        FROM meta.assets
        WHERE partition_key <> 'first';
        INSERT INTO numbers (n, materialization_id)
        SELECT m.asset_id, m.id
        FROM meta.materializations AS m, generate_series(1, 20);
        """,
    )
    execute(database, "ANALYZE")

    with closing(connect(resource_for(database).settings())) as connection:
        looked_up: Any = _Explaining(connection)
        [item] = META.fetch_stored(looked_up, "numbers", ["4711"])
        shared = META.has_other_owners(looked_up, item.table, "numbers", [item.asset_id])
        projected = Projected("n", PgType("bigint"), PgType("bigint"), ())
        loaded = looked_up.execute(
            compose_select(item.table, [projected], item.materialization_ids, ())
        )

        assert shared
        assert loaded.rowcount == 20
        assert looked_up.rows_read < 100


class _Explaining:
    """A connection that counts the rows its statements look at."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.rows_read = 0

    def execute(self, statement: Any, parameters: Sequence[object] | None = None) -> Any:
        explain = SQL("EXPLAIN (ANALYZE, FORMAT JSON, TIMING FALSE) {}").format(statement)
        [([explained],)] = self.connection.execute(explain, parameters).fetchall()
        self.rows_read += _rows_read(explained["Plan"])
        return self.connection.execute(statement, parameters)


def _rows_read(plan: Mapping[str, Any]) -> int:
    """Count the rows that the scans of a plan returned or threw away."""
    own = 0
    if "Relation Name" in plan:
        thrown_away = plan.get("Rows Removed by Filter", 0)
        own = int((plan["Actual Rows"] + thrown_away) * plan["Actual Loops"])
    return own + sum(map(_rows_read, plan.get("Plans", [])))
