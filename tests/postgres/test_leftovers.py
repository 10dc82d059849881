"""Rows an asset left behind are told at each write, and cost nothing where there are none."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing

import pytest

from dagster_tools.postgres import leftovers
from dagster_tools.postgres.connection import Connection, connect, transaction
from dagster_tools.postgres.leftovers import warn_of_leftovers
from dagster_tools.postgres.names import Table
from dagster_tools.postgres.tracking import Lineage, Tracking
from tests.fix_servers import Database
from tests.pipelines import resource_for

META = Tracking("meta")
LOG = logging.getLogger("test_leftovers")
OLD, NEW = Table("public", "old"), Table("public", "new")
WHOLE = Lineage("numbers", "run")


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    with closing(connect(resource_for(database).settings())) as connection:
        META.create(connection)
        for table in (OLD, NEW):
            connection.execute(f"CREATE TABLE {table} (n integer, materialization_id integer)")
        yield connection


def write(connection: Connection, lineage: Lineage, table: Table, *, rows: int = 1) -> None:
    """Track a write of each partition, and let it insert this many rows."""
    with transaction(connection):
        partitions = META.lock_partitions(connection, table, lineage)
        META.record(connection, lineage, partitions, {})
        for partition in partitions:
            connection.execute(
                f"INSERT INTO {table} SELECT 1, $1 FROM generate_series(1, $2)",
                [partition.materialization_id, rows],
            )


def warnings(connection: Connection, lineage: Lineage, caplog) -> list[str]:
    caplog.clear()
    warn_of_leftovers(connection, META, lineage, LOG)
    return [record.getMessage() for record in caplog.records]


def test_an_asset_that_never_changed_is_asked_about_in_one_query_of_the_tracking_tables(
    connection, caplog, monkeypatch
):
    write(connection, Lineage("numbers", "run", ("a", "b")), OLD)
    write(connection, Lineage("other", "run"), OLD)
    statements: list[object] = []
    execute = connection.execute
    monkeypatch.setattr(
        connection, "execute", lambda *asked: statements.append(asked[0]) or execute(*asked)
    )

    found = warnings(connection, Lineage("numbers", "run", ("a",)), caplog)

    assert found == []
    assert len(statements) == 1


def test_each_table_with_leftovers_is_told_once(connection, caplog):
    write(connection, Lineage("numbers", "run", ("a", "b")), OLD, rows=2)
    write(connection, WHOLE, OLD, rows=3)
    write(connection, WHOLE, NEW, rows=5)

    [warning] = warnings(connection, WHOLE, caplog)

    assert warning == (
        "numbers left 7 rows in public.old when its partitions or its table changed. They stay "
        "there, and only full_table loads them. This removes them: "
        'DELETE FROM "public"."old" WHERE "materialization_id" IN (SELECT m.id FROM '
        '"meta"."materializations" AS m JOIN "meta"."assets" AS a ON a.id = m.asset_id WHERE '
        "m.id <= 4 AND a.asset_key = 'numbers' AND NOT (a.partition_key IS NULL AND "
        "a.schema = 'public' AND a.\"table\" = 'old'));"
    )


def test_rows_of_others_and_of_nobody_are_no_leftovers(connection, caplog):
    write(connection, WHOLE, OLD)
    write(connection, Lineage("other", "run"), OLD)
    connection.execute("INSERT INTO old VALUES (1, NULL), (1, 999)")
    write(connection, WHOLE, NEW)

    [warning] = warnings(connection, WHOLE, caplog)

    assert warning.startswith("numbers left 1 rows in public.old")


@pytest.mark.parametrize(
    "gone",
    ["DELETE FROM old", "DROP TABLE old", "ALTER TABLE old DROP COLUMN materialization_id"],
)
def test_leftovers_that_are_gone_are_forgotten(connection, caplog, gone):
    write(connection, WHOLE, OLD)
    write(connection, WHOLE, NEW)
    connection.execute(gone)

    assert warnings(connection, WHOLE, caplog) == []
    assert connection.execute("SELECT * FROM meta.leftovers").fetchall() == []


def test_only_partitions_whose_rows_are_gone_are_forgotten(connection):
    pair = Lineage("numbers", "run", ("a", "b"))
    write(connection, pair, OLD)
    write(connection, pair, NEW)
    connection.execute("DELETE FROM old WHERE materialization_id = 1")

    leftovers._forget(connection, META, leftovers._Leftovers("numbers", True, OLD, until=4))

    assert connection.execute(
        """
        SELECT a.partition_key
        FROM meta.leftovers AS l
        JOIN meta.assets AS a ON a.id = l.asset_id
        """
    ).fetchall() == [("b",)]


def test_names_and_keys_of_any_shape_are_quoted_in_the_command(connection, caplog):
    odd = Table('Odd "schema"', "it's; --")
    connection.execute('CREATE SCHEMA "Odd ""schema"""')
    connection.execute(f"CREATE TABLE {odd} (n integer, materialization_id integer)")
    lineage = Lineage("o'clock\\ %s {}", "run")
    write(connection, lineage, odd)
    write(connection, lineage, NEW)

    [warning] = warnings(connection, lineage, caplog)
    connection.execute(warning.partition("This removes them: ")[2].removesuffix(";"))

    assert connection.execute(f"SELECT * FROM {odd}").fetchall() == []
    assert len(connection.execute("SELECT * FROM new").fetchall()) == 1
