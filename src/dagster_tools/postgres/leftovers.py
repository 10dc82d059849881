"""Rows an asset left behind when its partitioning or its table changed.

They stay where they are, since nobody but the user can tell whether they are still wanted.
No load returns them but one of the full table, and each write of the asset says so.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from psycopg import sql
from psycopg.sql import Composed, Identifier, Literal

from dagster_tools.errors import DatabaseError
from dagster_tools.postgres.catalog import fetch_catalog
from dagster_tools.postgres.connection import Connection, translated
from dagster_tools.postgres.names import MATERIALIZATION_ID, Table
from dagster_tools.postgres.tracking import Lineage, Tracking

__all__ = ["compose_remove", "warn_of_leftovers"]


def warn_of_leftovers(
    connection: Connection, tracking: Tracking, lineage: Lineage, log: logging.Logger
) -> None:
    """Warn of each table that holds such rows, with their number and the command that removes them.

    Costs one query of the tracking tables unless they know of such a table; no table is read
    then. Comes after the write and does not fail it.
    """
    try:
        for table in _fetch_tables(connection, tracking, lineage):
            rows = _count(connection, tracking, lineage, table)
            if not rows:
                _forget(connection, tracking, lineage, table)
                continue
            log.warning(
                "%s has %s rows in %s from before its partitioning or its table changed. They "
                "stay there, and only full_table loads them. To remove them, run: %s",
                lineage.asset_key,
                rows,
                table,
                compose_remove(tracking, lineage, table).as_string(),
            )
    except DatabaseError as error:
        log.warning("Could not look for rows %s has left behind: %s", lineage.asset_key, error)


def compose_remove(tracking: Tracking, lineage: Lineage, table: Table) -> Composed:
    """Compose the statement that removes the asset's leftovers from a table.

    It has no parameters, as a person shall run it.
    """
    return sql.SQL("DELETE FROM {} WHERE {}").format(
        table.identifier, _is_leftover(tracking, lineage, table)
    )


@dataclass(frozen=True, slots=True)
class _Place:
    pass


def _fetch_tables(connection: Connection, tracking: Tracking, lineage: Lineage) -> list[Table]:
    """Return the tables where the asset's other form lives, or that it was moved away from."""
    with translated(f"reading {tracking.schema}.leftovers"):
        rows = connection.execute(
            sql.SQL(
                """
                SELECT schema, "table"
                FROM {assets}
                WHERE asset_key = $1
                  AND (partition_key IS NULL) = $2
                UNION
                SELECT l.schema, l."table"
                FROM {leftovers} AS l
                JOIN {assets} AS a ON a.id = l.asset_id
                WHERE a.asset_key = $1
                ORDER BY 1, 2
                """
            ).format(assets=tracking.assets, leftovers=tracking.leftovers),
            [lineage.asset_key, lineage.partitioned],
        ).fetchall()
    return [Table(*row) for row in rows]


