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
    "compose_counted",
    "compose_delete",
    "compose_delete_and_count",
    "compose_insert_absent",
    "compose_insert_selected",
    "compose_keep_last",
    "compose_known_keys",
    "compose_repeated_keys",
    "compose_replace",
    "compose_replace_kept",
    "compose_selected",
    "compose_srid_joined",
    "compose_update_changed",
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
    """Compose the insert of a query's rows; the arguments are `compose_selected`'s."""
    return sql.SQL("INSERT INTO {} ({})\n{}").format(
        target,
        _names([*columns, MATERIALIZATION_ID]),
        compose_selected(query, columns, casts, materialization_id),
    )


def compose_selected(
    query: Composed,
    columns: Sequence[str],
    casts: Mapping[str, PgType],
    materialization_id: int,
) -> Composed:
    """Compose the select of a query's rows, each with the materialization's number.

    Args:
        casts: Columns whose declared type is another than the query's.
    """
    selected = [
        sql.SQL("query.{}::{}").format(Identifier(name), casts[name].as_sql)
        if name in casts
        else Identifier("query", name)
        for name in columns
    ]
    return sql.SQL("SELECT {}, {} AS {}\nFROM (\n{}\n) AS query").format(
        sql.SQL(", ").join(selected),
        sql.Literal(materialization_id),
        Identifier(MATERIALIZATION_ID),
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
    return compose_counted(compose_delete(table, condition))


def compose_srid_joined(
    table: Table, column: str, postgis: str | None, *, others: bool
) -> Composed:
    """Compose a query for the SRID of a row that new ones have joined.

    $1: materializations: those that were joined, or the new ones, which joined all others.

    Args:
        postgis: Schema of the extension.
    """
    return sql.SQL("SELECT {}({}) FROM {} WHERE {} IS NOT NULL AND {} {} ($1) LIMIT 1").format(
        Identifier(*([postgis] if postgis else []), "st_srid"),
        Identifier(column),
        table.identifier,
        Identifier(column),
        Identifier(MATERIALIZATION_ID),
        sql.SQL("<> ALL" if others else "= ANY"),
    )


def compose_absent_from_staging(staging: Identifier, key: Sequence[str]) -> Composed:
    """Compose the condition that the frame has no row of the same key as `kept`."""
    return sql.SQL("NOT EXISTS (SELECT FROM {} AS staging WHERE {})").format(
        staging, _same_key("kept", key)
    )


def compose_keep_last(target: Identifier, key: Sequence[str]) -> Composed:
    """Compose what keeps, of new rows that share a key, the one that came last.

    It returns how many rows of each materialization went. New rows lie in the order they came
    in, which `ctid` tells.
    """
    names = sql.SQL(", ").join(map(Identifier, key))
    return sql.SQL(
        """
        WITH gone AS (
            DELETE FROM {target} AS earlier
            USING (
                SELECT {names}, pg_catalog.max(ctid) AS "last row"
                FROM {target}
                GROUP BY {names}
                HAVING pg_catalog.count(*) > 1
            ) AS repeated
            WHERE {same} AND earlier.ctid < repeated."last row"
            RETURNING earlier.{id}
        )
        SELECT {id}, pg_catalog.count(*)
        FROM gone
        GROUP BY {id}
        """
    ).format(
        target=target,
        names=names,
        same=_same_key("earlier", key, "repeated"),
        id=Identifier(MATERIALIZATION_ID),
    )


def compose_repeated_keys(staging: Identifier, key: Sequence[str]) -> Composed:
    """Compose a query for keys that more than one row has: how many, and the first such rows.

    It returns no row where every key is there once. NULL repeats nothing.
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
            WHERE {whole}
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
        whole=sql.SQL(" AND ").join(sql.SQL("{} IS NOT NULL").format(name) for name in own),
        own=sql.SQL(", ").join(own),
        staging=staging,
    )


def compose_update_changed(
    table: Table,
    staging: Identifier,
    columns: Sequence[str],
    key: Sequence[str],
    compared_by_image: Collection[str] = (),
) -> Composed:
    """Compose the update of rows that differ from the staged ones of their key.

    Rows that do not differ are not touched, and columns the frame lacks keep their values.

    Args:
        compared_by_image: Columns whose type has no equality, or one that is not identity.
    """
    values = [name for name in columns if name not in key]
    return sql.SQL(
        """
        UPDATE {table} AS kept
        SET {assignments}
        FROM {staging} AS staging
        WHERE {same_key}
          AND {differs}
        """
    ).format(
        table=table.identifier,
        assignments=sql.SQL(", ").join(
            sql.SQL("{name} = staging.{name}").format(name=Identifier(name))
            for name in [*values, MATERIALIZATION_ID]
        ),
        staging=staging,
        same_key=_same_key("kept", key),
        differs=_differs(values, compared_by_image),
    )


def compose_insert_absent(
    table: Table, staging: Identifier, columns: Sequence[str], key: Sequence[str]
) -> Composed:
    """Compose the insert of staged rows whose key the table lacks."""
    return sql.SQL(
        """
        INSERT INTO {table} AS kept ({names})
        SELECT {names}
        FROM {staging} AS staging
        WHERE NOT EXISTS (SELECT FROM {table} AS present WHERE {same_key})
        """
    ).format(
        table=table.identifier,
        names=_names([*columns, MATERIALIZATION_ID]),
        staging=staging,
        same_key=_same_key("present", key),
    )


def compose_counted(statement: Composed) -> Composed:
    """Compose the same statement, returning how many rows of each materialization it wrote."""
    return sql.SQL(
        """
        WITH written AS (
            {statement}
            RETURNING kept.{id}
        )
        SELECT {id}, pg_catalog.count(*)
        FROM written
        GROUP BY 1
        """
    ).format(statement=statement, id=Identifier(MATERIALIZATION_ID))


def compose_known_keys(
    table: Table, staging: Identifier, key: Sequence[str], *, sample: int
) -> Composed:
    """Compose how many of the first staged keys the table has."""
    return sql.SQL(
        """
        SELECT pg_catalog.count(*)
        FROM (SELECT {key} FROM {staging} LIMIT {sample}) AS staging
        WHERE EXISTS (SELECT FROM {table} AS present WHERE {same_key})
        """
    ).format(
        key=_names(key),
        staging=staging,
        sample=sql.Literal(sample),
        table=table.identifier,
        same_key=_same_key("present", key),
    )


def compose_replace(
    table: Table,
    staging: Composable,
    columns: Sequence[str],
    condition: Composable = EVERY_ROW,
) -> Composed:
    """Compose delete and insert as one statement, at whose end references must hold.

    $1: the materializations replaced. Returns, for each materialization, how many rows were
    inserted, updated and deleted.

    Args:
        staging: The table with the new rows, or a query in parentheses, which still sees the old.
        condition: Which rows are replaced, in terms of `kept`.
    """
    return sql.SQL(
        """
        WITH deleted AS (
            {delete}
            RETURNING kept.{id}
        ),
        inserted AS (
            INSERT INTO {table} ({names})
            SELECT {names}
            FROM {staging} AS staging
            WHERE {after_deleted}
            RETURNING {id}
        )
        {counts}
        """
    ).format(
        delete=compose_delete(table, condition),
        table=table.identifier,
        names=_names([*columns, MATERIALIZATION_ID]),
        staging=staging,
        after_deleted=_after("deleted"),
        counts=_counts("inserted", "deleted"),
        id=Identifier(MATERIALIZATION_ID),
    )


def compose_replace_kept(
    table: Table,
    staging: Identifier,
    columns: Sequence[str],
    key: Sequence[str],
    *,
    absent: Sequence[str],
    condition: Composable = EVERY_ROW,
) -> Composed:
    """Compose the same for rows that keep their place in the table as long as their key stays.

    They are updated and not deleted, so no ON DELETE action of a foreign key fires for them.

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
        WITH deleted AS (
            {delete}
            RETURNING kept.{id}
        ),
        updated AS (
            UPDATE {table} AS kept
            SET {assignments}
            FROM {staging} AS staging
            WHERE {same_key}
              AND kept.{id} = ANY ($1)
              AND {condition}
              AND {after_deleted}
            RETURNING kept.{id}
        ),
        inserted AS (
            INSERT INTO {table} ({names})
            SELECT {names}
            FROM {staging} AS staging
            WHERE NOT EXISTS (
                SELECT
                FROM {table} AS kept
                WHERE {same_key}
                  AND kept.{id} = ANY ($1)
                  AND {condition}
            )
              AND {after_updated}
            RETURNING {id}
        )
        {counts}
        """
    ).format(
        delete=compose_delete(
            table,
            sql.SQL("{} AND {}").format(condition, compose_absent_from_staging(staging, key)),
        ),
        table=table.identifier,
        assignments=sql.SQL(", ").join(assignments),
        names=_names([*columns, MATERIALIZATION_ID]),
        staging=staging,
        same_key=_same_key("kept", key),
        condition=condition,
        after_deleted=_after("deleted"),
        after_updated=_after("updated"),
        counts=_counts("inserted", "updated", "deleted"),
        id=Identifier(MATERIALIZATION_ID),
    )


def _after(step: str) -> Composed:
    """Compose a condition that is true, but not known before a step of the WITH is through.

    Without it the server promises no order, and a unique value could come before it went.
    """
    return sql.SQL("(SELECT pg_catalog.count(*) FROM {}) IS NOT NULL").format(Identifier(step))


def _counts(*steps: str) -> Composed:
    """Compose how many rows of each materialization were inserted, updated and deleted."""
    every = (
        sql.SQL("SELECT {id}, {step} AS step FROM {name}").format(
            id=Identifier(MATERIALIZATION_ID), step=sql.Literal(step), name=Identifier(step)
        )
        for step in steps
    )
    return sql.SQL(
        """
        SELECT {id},
               pg_catalog.count(*) FILTER (WHERE step = 'inserted'),
               pg_catalog.count(*) FILTER (WHERE step = 'updated'),
               pg_catalog.count(*) FILTER (WHERE step = 'deleted')
        FROM ({every}) AS every
        GROUP BY 1
        """
    ).format(id=Identifier(MATERIALIZATION_ID), every=sql.SQL(" UNION ALL ").join(every))


def _same_key(alias: str, key: Sequence[str], other: str = "staging") -> Composed:
    return sql.SQL("\n          AND ").join(
        sql.SQL("{}.{} = {}.{}").format(*map(Identifier, (alias, name, other, name)))
        for name in key
    )


def _differs(columns: Sequence[str], compared_by_image: Collection[str]) -> Composed:
    """Compose whether `kept` and `staging` differ; NULL equals NULL and NaN equals NaN."""
    by_value = sql.SQL("kept.{name} IS DISTINCT FROM staging.{name}")
    by_image = sql.SQL(
        "ROW(kept.{name})::record OPERATOR(pg_catalog.*<>) ROW(staging.{name})::record"
    )
    return sql.SQL("({})").format(
        sql.SQL(" OR ").join(
            (by_image if name in compared_by_image else by_value).format(name=Identifier(name))
            for name in columns
        )
    )


def _names(columns: Sequence[str]) -> Composed:
    return sql.SQL(", ").join(map(Identifier, columns))
