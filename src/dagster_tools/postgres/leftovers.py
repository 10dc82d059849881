"""Rows an asset left behind when it became partitioned, stopped being so, or changed its table.

They stay: only the user can tell whether they are still wanted. No load returns them but
one of the full table, and every write of the asset says that they are there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql
from psycopg.sql import Composed, Identifier, Literal

from dagster_tools.errors import DatabaseError
from dagster_tools.postgres.catalog import fetch_catalog
from dagster_tools.postgres.connection import Connection, translated
from dagster_tools.postgres.names import MATERIALIZATION_ID, Table
from dagster_tools.postgres.tracking import Lineage, Tracking

__all__ = ["warn_of_leftovers"]


def warn_of_leftovers(
    connection: Connection, tracking: Tracking, lineage: Lineage, log: logging.Logger
) -> None:
    """Warn of each table that holds such rows, with their number and the command that removes them.

    Costs one look at the tracking tables; a table is only read where they know that something
    may have been left in it. Comes after the write's COMMIT and never fails it.
    """
    try:
        for leftovers in _fetch_leftovers(connection, tracking, lineage):
            rows = _fetch_rows(connection, tracking, leftovers)
            if rows == 0:
                _forget(connection, tracking, leftovers)
                continue
            log.warning(
                "%s left %s rows in %s when its partitions or its table changed. They stay there, "
                "and only full_table loads them. This removes them: %s;",
                lineage.asset_key,
                rows,
                leftovers.table,
                leftovers.compose_remove(tracking).as_string(),
            )
    except DatabaseError as error:
        log.warning("Could not look for rows that %s left behind: %s", lineage.asset_key, error)


@dataclass(frozen=True, slots=True)
class _Leftovers:
    """What an asset may have left in one table.

    Args:
        partitioned: Whether the asset has partitions now.
        until: The newest materialization; what comes later is not meant.
    """

    asset_key: str
    partitioned: bool
    table: Table
    until: int

    def compose_remove(self, tracking: Tracking) -> Composed:
        """Compose the command for a person to run, now or later, hence without parameters."""
        return sql.SQL("DELETE FROM {} WHERE {}").format(
            self.table.identifier, self.compose_condition(tracking)
        )

    def compose_condition(self, tracking: Tracking) -> Composed:
        """Compose what tells these rows: the asset's, but not where and how it is kept now."""
        return sql.SQL(
            "{id} IN (SELECT m.id FROM {materializations} AS m "
            "JOIN {assets} AS a ON a.id = m.asset_id "
            "WHERE m.id <= {until} AND a.asset_key = {asset_key} "
            'AND NOT (a.partition_key {form} AND a.schema = {schema} AND a."table" = {name}))'
        ).format(
            id=Identifier(MATERIALIZATION_ID),
            materializations=tracking.materializations,
            assets=tracking.assets,
            until=Literal(self.until),
            asset_key=Literal(self.asset_key),
            form=_form(partitioned=self.partitioned),
            schema=Literal(self.table.schema),
            name=Literal(self.table.name),
        )


def _fetch_leftovers(
    connection: Connection, tracking: Tracking, lineage: Lineage
) -> Sequence[_Leftovers]:
    """Return the tables of the asset's other form, and those that it was moved away from."""
    with translated(f"reading {tracking.schema}.leftovers"):
        rows = connection.execute(
            sql.SQL(
                """
                SELECT place.schema, place."table", newest.id
                FROM (
                    SELECT schema, "table"
                    FROM {assets}
                    WHERE asset_key = $1
                      AND partition_key {other_form}
                    UNION
                    SELECT l.schema, l."table"
                    FROM {leftovers} AS l
                    JOIN {assets} AS a ON a.id = l.asset_id
                    WHERE a.asset_key = $1
                ) AS place
                CROSS JOIN (SELECT pg_catalog.max(id) FROM {materializations}) AS newest (id)
                ORDER BY 1, 2
                """
            ).format(
                assets=tracking.assets,
                leftovers=tracking.leftovers,
                materializations=tracking.materializations,
                other_form=_form(partitioned=not lineage.partitioned),
            ),
            [lineage.asset_key],
        ).fetchall()
    return [
        _Leftovers(lineage.asset_key, lineage.partitioned, Table(schema, name), newest)
        for schema, name, newest in rows
    ]


def _fetch_rows(connection: Connection, tracking: Tracking, leftovers: _Leftovers) -> int:
    if not _is_tracked(connection, tracking, leftovers.table):
        return 0
    with translated(f"counting rows left in {leftovers.table}"):
        row = connection.execute(
            sql.SQL("SELECT pg_catalog.count(*) FROM {} WHERE {}").format(
                leftovers.table.identifier, leftovers.compose_condition(tracking)
            )
        ).fetchone()
    return row[0] if row is not None else 0


def _forget(connection: Connection, tracking: Tracking, leftovers: _Leftovers) -> None:
    """Let the table be its owner's alone again, now that somebody has removed the rows.

    One statement, so that a partition which returns and leaves again meanwhile is not forgotten.
    """
    table = leftovers.table
    forget = sql.SQL(
        """
        DELETE FROM {} AS l
        USING {} AS a
        WHERE a.id = l.asset_id
          AND a.asset_key = $1
          AND l.schema = $2
          AND l."table" = $3
        """
    ).format(tracking.leftovers, tracking.assets)
    if _is_tracked(connection, tracking, table):
        forget += sql.SQL(
            """
            AND NOT EXISTS (
                SELECT
                FROM {} AS t
                JOIN {} AS m ON m.id = t.{}
                WHERE m.asset_id = l.asset_id
            )
            """
        ).format(table.identifier, tracking.materializations, Identifier(MATERIALIZATION_ID))
    with translated(f"updating {tracking.schema}.leftovers"):
        connection.execute(forget, [leftovers.asset_key, table.schema, table.name])


def _is_tracked(connection: Connection, tracking: Tracking, table: Table) -> bool:
    existing = fetch_catalog(connection, table, tracking.schema).existing
    return existing is not None and existing.tracked


def _form(*, partitioned: bool) -> sql.SQL:
    return sql.SQL("IS NOT NULL" if partitioned else "IS NULL")
