"""Compose what moves rows: into the table, out of it, and from a staging table."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from psycopg import sql
from psycopg.sql import Composable, Composed, Identifier

from dagster_tools.postgres.column_types import PgType
from dagster_tools.postgres.names import MATERIALIZATION_ID, Table

__all__ = [
    "compose_absent_from_staging",
    "compose_copy_in",
    "compose_delete",
    "compose_delete_and_count",
    "compose_insert_new",
    "compose_insert_selected",
    "compose_repeated_keys",
    "compose_update_kept",
    "compose_upsert",
]

EVERY_ROW = sql.SQL("true")


def compose_copy_in(target: Identifier, columns: Sequence[str], *, binary: bool) -> Composed:
    """Compose the COPY that takes the rows, in either of its two forms."""
    options = sql.SQL("FORMAT binary" if binary else "FORMAT text")
    return sql.SQL("COPY {} ({}) FROM STDIN ({})").format(target, _names(columns), options)


def compose_insert_selected(
    target: Identifier,
    query: Composed,
    columns: Sequence[str],
    casts: Mapping[str, PgType],
    materialization_id: int,
) -> Composed:
    """Compose the insert of a query's rows, each with the materialization's number.

    Args:
        casts: Columns whose declared type is another than the query's.
    """
    selected = [
        sql.SQL("query.{}::{}").format(Identifier(name), casts[name].as_sql)
        if name in casts
        else Identifier("query", name)
        for name in columns
    ]
    return sql.SQL("INSERT INTO {} ({})\nSELECT {}, {}\nFROM (\n{}\n) AS query").format(
        target,
        _names([*columns, MATERIALIZATION_ID]),
        sql.SQL(", ").join(selected),
        sql.Literal(materialization_id),
        query,
    )


def compose_delete(table: Table, condition: Composable = EVERY_ROW) -> Composed:
    """Compose the delete of own rows. $1: the materializations whose rows may go.

    Args:
        condition: Which of those rows go, in terms of `kept`.
    """
    return sql.SQL("DELETE FROM {} AS kept WHERE kept.{} = ANY ($1) AND {}").format(
        table.identifier, Identifier(MATERIALIZATION_ID), condition
    )


def compose_delete_and_count(table: Table, condition: Composable = EVERY_ROW) -> Composed:
    """Compose the same delete, returning how many rows of each materialization went."""
    return sql.SQL(
        """
        WITH deleted AS (
            {delete}
            RETURNING kept.{id}
        )
        SELECT {id}, pg_catalog.count(*)
        FROM deleted
        GROUP BY 1
        """
    ).format(delete=compose_delete(table, condition), id=Identifier(MATERIALIZATION_ID))


def compose_absent_from_staging(staging: Identifier, key: Sequence[str]) -> Composed:
    """Compose the condition that the frame has no row of the same key as `kept`."""
    return sql.SQL("NOT EXISTS (SELECT FROM {} AS staging WHERE {})").format(
        staging, _same_key("kept", key)
    )


def compose_repeated_keys(staging: Identifier, key: Sequence[str]) -> Composed:
    """Compose a query for keys that more than one row has: how many, and the first such rows.

    It returns no row where every key is there once.
    """
    # Under names of ours, which the frame's cannot meet.
    own = [Identifier(f"k{position}") for position in range(len(key))]
    return sql.SQL(
        """
        WITH numbered AS (
            SELECT {columns}, pg_catalog.row_number() OVER (ORDER BY ctid) - 1 AS row
            FROM {staging}
        ),
        repeated AS (
            SELECT pg_catalog.min(row) AS first, pg_catalog.max(row) AS last
            FROM numbered
            GROUP BY {own}
            HAVING pg_catalog.count(*) > 1
        )
        SELECT pg_catalog.count(*), pg_catalog.min(first), (
            SELECT last FROM repeated ORDER BY first LIMIT 1
        )
        FROM repeated
        HAVING pg_catalog.count(*) > 0
        """
    ).format(
        columns=sql.SQL(", ").join(
            sql.SQL("{} AS {}").format(Identifier(name), alias)
            for name, alias in zip(key, own, strict=True)
        ),
        own=sql.SQL(", ").join(own),
        staging=staging,
    )


def compose_upsert(
    table: Table,
    staging: Identifier,
    columns: Sequence[str],
    key: Sequence[str],
    compared_as_text: Collection[str],
) -> Composed:
    """Compose insert and update by key; rows that do not differ are left alone.

    Returns, for each materialization, how many rows were inserted and updated. Rows are
    visited in the order of the key, so that two writers of the same keys cannot deadlock.
    Unchanged rows are left out before ON CONFLICT sees them, which would lock each.

    Args:
        compared_as_text: Columns of types without an equality of their own (`json`).
    """
    values = [name for name in columns if name not in key]
    every = [*columns, MATERIALIZATION_ID]
    if values:
        action = sql.SQL("UPDATE SET {} WHERE {}").format(
            sql.SQL(", ").join(
                sql.SQL("{name} = excluded.{name}").format(name=Identifier(name))
                for name in [*values, MATERIALIZATION_ID]
            ),
            _differs("kept", "excluded", values, compared_as_text),
        )
        changed = sql.SQL("present.{} IS NULL OR {}").format(
            Identifier(key[0]), _differs("present", "staging", values, compared_as_text)
        )
    else:
        action = sql.SQL("NOTHING").format()
        changed = sql.SQL("present.{} IS NULL").format(Identifier(key[0]))
    return sql.SQL(
        """
        WITH written AS (
            INSERT INTO {table} AS kept ({names})
            SELECT {staged}
            FROM {staging} AS staging
            LEFT JOIN {table} AS present ON {same_key}
            WHERE {changed}
            ORDER BY {ordered}
            ON CONFLICT ({key}) DO {action}
            RETURNING kept.{id}, kept.xmax = 0 AS inserted
        )
        SELECT {id},
               pg_catalog.count(*) FILTER (WHERE inserted),
               pg_catalog.count(*) FILTER (WHERE NOT inserted)
        FROM written
        GROUP BY 1
        """
    ).format(
        table=table.identifier,
        names=_names(every),
        staged=_qualified("staging", every),
        staging=staging,
        same_key=_same_key("present", key),
        changed=changed,
        ordered=_qualified("staging", key),
        key=_names(key),
        action=action,
        id=Identifier(MATERIALIZATION_ID),
    )


def compose_update_kept(
    table: Table,
    staging: Identifier,
    columns: Sequence[str],
    key: Sequence[str],
    *,
    absent: Sequence[str],
    condition: Composable = EVERY_ROW,
) -> Composed:
    """Give rows whose referenced key stays their new values. $1: the materializations replaced.

    They are not deleted, so no ON DELETE action of a foreign key fires for them; and as
    they now bear the new materialization, what still bears an old one has vanished.

    Args:
        absent: Columns the frame lacks: they get their default, as a new row's would.
        condition: Which rows are replaced, in terms of `kept`.
    """
    assignments = [
        sql.SQL("{name} = staging.{name}").format(name=Identifier(name))
        for name in [*(name for name in columns if name not in key), MATERIALIZATION_ID]
    ]
    assignments += [sql.SQL("{} = DEFAULT").format(Identifier(name)) for name in absent]
    return sql.SQL(
        """
        UPDATE {table} AS kept
        SET {assignments}
        FROM {staging} AS staging
        WHERE {same_key}
          AND kept.{id} = ANY ($1)
          AND {condition}
        """
    ).format(
        table=table.identifier,
        assignments=sql.SQL(", ").join(assignments),
        staging=staging,
        same_key=_same_key("kept", key),
        id=Identifier(MATERIALIZATION_ID),
        condition=condition,
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


def _differs(
    left: str, right: str, columns: Sequence[str], compared_as_text: Collection[str]
) -> Composed:
    """Compose whether two rows differ; NULL equals NULL and NaN equals NaN."""

    def side(alias: str, name: str) -> Composed:
        cast = sql.SQL("::text" if name in compared_as_text else "")
        return sql.SQL("{}{}").format(Identifier(alias, name), cast)

    return sql.SQL("({})").format(
        sql.SQL(" OR ").join(
            sql.SQL("{} IS DISTINCT FROM {}").format(side(left, name), side(right, name))
            for name in columns
        )
    )


def _qualified(alias: str, columns: Sequence[str]) -> Composed:
    return sql.SQL(", ").join(Identifier(alias, name) for name in columns)


def _names(columns: Sequence[str]) -> Composed:
    return sql.SQL(", ").join(map(Identifier, columns))
