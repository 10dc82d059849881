"""Compose what moves rows: into the table, out of it, and from a staging table."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql
from psycopg.sql import Composed, Identifier

from dagster_tools.postgres.names import MATERIALIZATION_ID, Table

__all__ = [
    "compose_copy_in",
    "compose_delete",
    "compose_delete_and_count",
    "compose_insert_new",
    "compose_update_kept",
]


def compose_copy_in(target: Identifier, columns: Sequence[str], *, binary: bool) -> Composed:
    """Compose the COPY that takes the rows, in either of its two forms."""
    options = sql.SQL("FORMAT binary" if binary else "FORMAT text")
    return sql.SQL("COPY {} ({}) FROM STDIN ({})").format(target, _names(columns), options)


def compose_delete(table: Table) -> Composed:
    """$1: the materializations whose rows go."""
    return sql.SQL("DELETE FROM {} WHERE {} = ANY ($1)").format(
        table.identifier, Identifier(MATERIALIZATION_ID)
    )


def compose_delete_and_count(table: Table) -> Composed:
    """Compose a delete that returns how many rows of each materialization went. $1: which."""
    return sql.SQL(
        """
        WITH deleted AS (
            DELETE FROM {table}
            WHERE {id} = ANY ($1)
            RETURNING {id}
        )
        SELECT {id}, pg_catalog.count(*)
        FROM deleted
        GROUP BY 1
        """
    ).format(table=table.identifier, id=Identifier(MATERIALIZATION_ID))


def compose_update_kept(
    table: Table, staging: Identifier, columns: Sequence[str], key: Sequence[str]
) -> Composed:
    """Give rows whose referenced key stays their new values. $1: the materializations replaced.

    They are not deleted, so no ON DELETE action of a foreign key fires for them; and as
    they now bear the new materialization, what still bears an old one has vanished.
    """
    return sql.SQL(
        """
        UPDATE {table} AS kept
        SET {assignments}
        FROM {staging} AS staging
        WHERE {same_key}
          AND kept.{id} = ANY ($1)
        """
    ).format(
        table=table.identifier,
        assignments=sql.SQL(", ").join(
            sql.SQL("{} = staging.{}").format(Identifier(name), Identifier(name))
            for name in [*(name for name in columns if name not in key), MATERIALIZATION_ID]
        ),
        staging=staging,
        same_key=_same_key("kept", key),
        id=Identifier(MATERIALIZATION_ID),
    )


def compose_insert_new(
    table: Table, staging: Identifier, columns: Sequence[str], key: Sequence[str]
) -> Composed:
    """Insert what `compose_update_kept` found no row for. $1: the new materializations."""
    names = _names([*columns, MATERIALIZATION_ID])
    return sql.SQL(
        """
        INSERT INTO {table} ({names})
        SELECT {names}
        FROM {staging} AS staging
        WHERE NOT EXISTS (
            SELECT
            FROM {table} AS kept
            WHERE {same_key}
              AND kept.{id} = ANY ($1)
        )
        """
    ).format(
        table=table.identifier,
        names=names,
        staging=staging,
        same_key=_same_key("kept", key),
        id=Identifier(MATERIALIZATION_ID),
    )


def _same_key(alias: str, key: Sequence[str]) -> Composed:
    return sql.SQL("\n          AND ").join(
        sql.SQL("{}.{} = staging.{}").format(Identifier(alias), Identifier(name), Identifier(name))
        for name in key
    )


def _names(columns: Sequence[str]) -> Composed:
    return sql.SQL(", ").join(map(Identifier, columns))
