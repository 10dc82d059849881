"""Which run wrote what: asked of the tracking tables and the rows themselves."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql
from psycopg.sql import Composed, Identifier

from dagster_tools.errors import ConfigurationError
from dagster_tools.postgres.catalog import fetch_catalog
from dagster_tools.postgres.connection import Connection, transaction, translated
from dagster_tools.postgres.names import MATERIALIZATION_ID, Table
from dagster_tools.postgres.statements import Statement
from dagster_tools.postgres.tracking import Tracking

__all__ = ["Prunable", "Writing", "fetch_lineage", "fetch_prunable", "prune"]

EVERY_ROW = "true"


@dataclass(frozen=True, slots=True)
class Writing:
    """One materialization of a table, or the rows nobody here wrote (`materialization_id` None).

    Args:
        rows: Rows of the table that bear it now, and meet the condition where one is given.
    """

    materialization_id: int | None
    asset_key: str | None
    partition_key: str | None
    run_id: str | None
    timestamp: dt.datetime | None
    rows: int
    inserted: int | None
    updated: int | None
    deleted: int | None


@dataclass(frozen=True, slots=True)
class Prunable:
    """Materializations of one table that no row refers to."""

    table: Table
    materialization_ids: tuple[int, ...]


def fetch_lineage(
    connection: Connection, tracking: Tracking, table: Table, where: str | None = None
) -> list[Writing]:
    """Return what wrote the table, newest first.

    Args:
        where: A condition in SQL; only what wrote rows that meet it is returned. It runs as
            the connected role, in a read-only transaction.

    Raises:
        ConfigurationError: The table does not exist or is not tracked.
    """
    catalog = fetch_catalog(connection, table, tracking.schema)
    if catalog.existing is None:
        raise ConfigurationError(f"{table} does not exist in database {catalog.database}.")
    if not catalog.existing.tracked or not catalog.tracking_exists:
        raise ConfigurationError(
            f"{table} has no {MATERIALIZATION_ID}: nothing here has written it."
        )
    connection.read_only = True
    with translated(f"reading the lineage of {table}"), transaction(connection):
        rows = connection.execute(
            _compose_lineage(tracking, table, where), [table.schema, table.name, where is None]
        ).fetchall()
    return [Writing(*row) for row in rows]


def fetch_prunable(connection: Connection, tracking: Tracking) -> list[Prunable]:
    """Return the materializations that no row refers to, table by table.

    The newest of each asset and partition is kept, whatever it wrote: it says that the
    asset was materialized, and where.
    """
    with translated(f"reading {tracking.schema}.assets"):
        places = connection.execute(
            sql.SQL(
                """
                SELECT schema, "table" FROM {}
                UNION
                SELECT schema, "table" FROM {}
                ORDER BY 1, 2
                """
            ).format(tracking.assets, tracking.leftovers)
        ).fetchall()
    found = []
    for schema, name in places:
        table = Table(schema, name)
        existing = fetch_catalog(connection, table, tracking.schema).existing
        tracked = existing is not None and existing.tracked
        with translated(f"looking for rows in {table}"):
            rows = connection.execute(
                _compose_prunable(tracking, table, exists=tracked), [schema, name]
            ).fetchall()
        if rows:
            found.append(Prunable(table, tuple(row[0] for row in rows)))
    return found


def prune(connection: Connection, tracking: Tracking, found: Sequence[Prunable]) -> int:
    """Forget materializations, in one transaction; return how many."""
    numbers = sorted({number for item in found for number in item.materialization_ids})
    with translated(f"deleting from {tracking.schema}.materializations"), transaction(connection):
        cursor = connection.execute(
            sql.SQL("DELETE FROM {} WHERE id = ANY ($1)").format(tracking.materializations),
            [numbers],
        )
    return cursor.rowcount


def _compose_lineage(tracking: Tracking, table: Table, where: str | None) -> Composed:
    return sql.SQL(
        """
        WITH there AS (
            SELECT {id} AS id, pg_catalog.count(*) AS rows
            FROM {table}
            WHERE (
                {where}
            )
            GROUP BY 1
        ),
        wrote AS (
            SELECT m.id, a.asset_key, a.partition_key, m.run_id, m.timestamp,
                   m.rows_inserted, m.rows_updated, m.rows_deleted, a.schema, a."table"
            FROM {materializations} AS m
            JOIN {assets} AS a ON a.id = m.asset_id
        )
        SELECT coalesce(w.id, t.id), w.asset_key, w.partition_key, w.run_id, w.timestamp,
               coalesce(t.rows, 0), w.rows_inserted, w.rows_updated, w.rows_deleted
        FROM wrote AS w
        FULL JOIN there AS t ON t.id = w.id
        WHERE t.rows > 0
           OR $3 AND w.schema = $1 AND w."table" = $2
        ORDER BY coalesce(w.id, t.id) DESC NULLS LAST
        """
    ).format(
        id=Identifier(MATERIALIZATION_ID),
        table=table.identifier,
        where=Statement(where or EVERY_ROW, "unknown").as_sql,
        materializations=tracking.materializations,
        assets=tracking.assets,
    )


def _compose_prunable(tracking: Tracking, table: Table, *, exists: bool) -> Composed:
    referred = sql.SQL("SELECT {} FROM {}").format(Identifier(MATERIALIZATION_ID), table.identifier)
    return sql.SQL(
        """
        SELECT m.id
        FROM {materializations} AS m
        JOIN {assets} AS a ON a.id = m.asset_id
        WHERE a.schema = $1
          AND a."table" = $2
          AND m.id < (
              SELECT pg_catalog.max(newest.id)
              FROM {materializations} AS newest
              WHERE newest.asset_id = m.asset_id
          )
          AND NOT EXISTS (
              SELECT
              FROM ({referred}) AS referred (id)
              WHERE referred.id = m.id
          )
          AND NOT EXISTS (
              SELECT
              FROM {leftovers} AS l
              WHERE l.asset_id = m.asset_id
          )
        ORDER BY m.id
        """
    ).format(
        materializations=tracking.materializations,
        assets=tracking.assets,
        leftovers=tracking.leftovers,
        referred=referred if exists else sql.SQL("SELECT NULL::integer"),
    )
