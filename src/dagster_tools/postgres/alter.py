"""Change a live table in short transactions that never make a reader queue for long.

Many writers may find at once that a table lacks the same thing, so each change can be made
twice, and one that cannot looks again once it holds the table.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from psycopg import errors, sql
from psycopg.sql import Composed, Identifier

from dagster_tools.errors import DatabaseError, SchemaConflict
from dagster_tools.postgres import ddl
from dagster_tools.postgres.catalog import fetch_column_type, fetch_dependents
from dagster_tools.postgres.columns import Column
from dagster_tools.postgres.connection import Connection, translated
from dagster_tools.postgres.evolution import Evolution, Widening
from dagster_tools.postgres.geometry import is_spatial, needs_check
from dagster_tools.postgres.indexes import build_index, drop_index, is_written
from dagster_tools.postgres.names import MATERIALIZATION_ID, Table
from dagster_tools.postgres.patience import alter_patiently, brief_transaction, patiently

__all__ = [
    "Key",
    "TableChangedError",
    "Unfinished",
    "abandon",
    "evolve",
    "finish",
    "holds_no_value",
    "index_materialization_id",
    "track",
    "widen",
]

LAST_PATIENCE = 5.0
"""Seconds that are left for cleaning up after an error."""


class TableChangedError(Exception):
    """Between plan and lock somebody created or altered the table: what was planned is void."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """Modifiers declared later that are only half there before the rows are replaced.

    Old rows that are about to go may contradict them, so each is prepared before the data
    transaction, where it binds new rows, and finished after it.

    Args:
        not_null, nonnegative: Columns with a CHECK that is not validated yet.
        keys: Primary and unique keys to add.
        without_index: Keys whose index cannot be built before the old rows are gone.
    """

    not_null: tuple[str, ...] = ()
    nonnegative: tuple[str, ...] = ()
    keys: tuple[Key, ...] = ()
    without_index: tuple[Key, ...] = ()


@dataclass(frozen=True, slots=True)
class Key:
    """A primary key or a unique constraint."""

    columns: tuple[str, ...]
    primary: bool = False

    def __str__(self) -> str:
        kind = "primary key" if self.primary else "unique constraint"
        return f"{kind} on {list(self.columns)}"


def evolve(
    connection: Connection,
    table: Table,
    evolution: Evolution,
    leaving: Sequence[int],
    log: logging.Logger,
) -> Unfinished:
    """Apply what a write needs of an existing table, each change committed by itself.

    Args:
        leaving: Materializations whose rows the write replaces: what they hold is no obstacle.

    Raises:
        SchemaConflict: Rows that stay contradict a modifier that was declared later.
        TableChangedError: Somebody changed the type of a column meanwhile.
    """
    for added in evolution.additions:
        log.info("Adding column %r (%s) to %s.", added.name, added.type, table)
        _add_column(connection, table, added)
    for widening in evolution.widenings:
        widen(connection, table, widening, log)
    for column in evolution.index:
        spatial = is_spatial(evolution.targets[column])
        build_index(connection, table, [column], unique=False, spatial=spatial)
    not_null = tuple(dict.fromkeys((*evolution.not_null, *evolution.primary_key)))
    keys = [Key((column,)) for column in evolution.unique]
    keys += [Key(evolution.primary_key, primary=True)] if evolution.primary_key else []
    unfinished = Unfinished(not_null, evolution.nonnegative, tuple(keys))
    try:
        for column in unfinished.nonnegative:
            _add_check(connection, table, column, leaving, nonnegative=True)
        for column in unfinished.not_null:
            _add_check(connection, table, column, leaving, nonnegative=False)
        unbuilt = [key for key in keys if not _build_key_index(connection, table, key, leaving)]
    except BaseException:
        abandon(connection, table, unfinished)
        raise
    return replace(unfinished, without_index=tuple(unbuilt))


def finish(
    connection: Connection, table: Table, unfinished: Unfinished, log: logging.Logger
) -> None:
    """Finish what `evolve` prepared, now that the rows in its way are gone.

    The rows are committed by now, so a table too busy to be altered fails nothing: the
    next write finishes. What another writer finished already is left alone.
    """
    try:
        for column in unfinished.nonnegative:
            _validate_check(connection, table, column, nonnegative=True)
        for column in unfinished.not_null:
            if _is_nullable(connection, table, column):
                _validate_check(connection, table, column, nonnegative=False)
                _set_not_null(connection, table, column)
        for key in unfinished.keys:
            if _is_key(connection, table, key):
                continue
            statement = ddl.compose_key_using_index(table, key.columns, primary=key.primary)
            alter_patiently(connection, [statement], f"adding the {key} to {table}")
    except DatabaseError as error:
        log.warning(
            "The rows of %s are written, but a declared modifier is not in force yet: %s. "
            "The next write tries again.",
            table,
            error,
        )


def abandon(connection: Connection, table: Table, unfinished: Unfinished) -> None:
    """Take back what `evolve` prepared for rows that were refused in the end.

    What cannot be taken back, on a broken connection, binds later rows until a write that
    declares the same modifiers finishes it.
    """
    if connection.closed:
        return
    checks = [(column, True) for column in unfinished.nonnegative]
    checks += [(column, False) for column in unfinished.not_null]
    names = [ddl.check_name(table, column, nonnegative=kind) for column, kind in checks]
    with suppress(DatabaseError):
        for name in names:
            statement = ddl.compose_drop_constraint(table, name)
            step = f"dropping a constraint of {table}"
            alter_patiently(connection, [statement], step, patience=LAST_PATIENCE)
        for key in unfinished.keys:
            name = ddl.index_name(table, key.columns, unique=True)
            drop_index(connection, table, name, patience=LAST_PATIENCE)


def track(connection: Connection, table: Table) -> None:
    """Give a table made elsewhere its `materialization_id`, without touching a row."""
    statements = ddl.compose_add_materialization_id(table)
    for statement in statements:
        alter_patiently(connection, [statement], f"adding {MATERIALIZATION_ID} to {table}")


def widen(connection: Connection, table: Table, widening: Widening, log: logging.Logger) -> None:
    """Change a column's type; rewrites the table while nobody else can read it.

    Raises:
        SchemaConflict: A view, rule, policy, trigger or generated column depends on it.
        TableChangedError: The column is no longer what the widening was planned for: it would
            now lose values.
    """
    log.warning(
        "Column %r of %s changes from %s to %s, because %s. PostgreSQL rewrites the table "
        "and locks it meanwhile.",
        widening.column,
        table,
        widening.old,
        widening.new,
        "it holds no value yet" if widening.empty else "a value does not fit",
    )
    statement = ddl.compose_alter_type(
        table.identifier, widening.column, widening.new, empty=widening.empty
    )

    def attempt() -> None:
        with brief_transaction(connection):
            connection.execute(ddl.compose_lock(table, "ACCESS EXCLUSIVE"))
            if fetch_column_type(connection, table, widening.column) != widening.old or (
                widening.empty and not holds_no_value(connection, table, widening.column)
            ):
                raise TableChangedError
            connection.execute(statement)
            if needs_check(widening.new):
                connection.execute(
                    ddl.compose_add_shape_check(table, widening.column, widening.new, valid=True)
                )

    try:
        patiently(attempt, f"widening a column of {table}")
    except DatabaseError as error:
        dependents = fetch_dependents(connection, table, widening.column)
        if error.sqlstate != errors.FeatureNotSupported.sqlstate or not dependents:
            raise
        raise SchemaConflict(
            f"Column {widening.column!r} of {table} is {widening.old} and would have to become "
            f"{widening.new}, but there is what depends on it: {', '.join(dependents)}. Drop that, "
            f"run {statement.as_string()}; and create it again."
        ) from None


def _addition(table: Table, column: Column) -> list[Composed]:
    statements = [ddl.compose_add_column(table, column)]
    # The new column is empty, so there is nothing that VALIDATE would have to look at.
    if needs_check(column.type):
        name = ddl.shape_check_name(table, column.name)
        statements += [
            ddl.compose_drop_constraint(table, name),
            ddl.compose_add_shape_check(table, column.name, column.type, valid=False),
        ]
    return statements


def index_materialization_id(connection: Connection, table: Table, log: logging.Logger) -> None:
    """Index `materialization_id` before a second owner moves in.

    An optimization, for which nobody waits: where others use the table, or build the index
    already, a later write sees to it.
    """
    try:
        if is_written(connection, table):
            log.info("%s gets its index on %s later: others write.", table, MATERIALIZATION_ID)
        else:
            build_index(connection, table, [MATERIALIZATION_ID], unique=False, patience=0)
    except DatabaseError as error:
        log.info("%s gets its index on %s later: %s", table, MATERIALIZATION_ID, error)


def holds_no_value(connection: Connection, table: Table, column: str) -> bool:
    """Whether a column is NULL in every row."""
    with translated(f"looking for values in {table}"):
        found = connection.execute(
            sql.SQL("SELECT FROM {} WHERE {} IS NOT NULL LIMIT 1").format(
                table.identifier, Identifier(column)
            )
        ).fetchone()
    return found is None


def _add_column(connection: Connection, table: Table, column: Column) -> None:
    try:
        alter_patiently(connection, _addition(table, column), f"adding a column to {table}")
    except DatabaseError as error:
        if error.sqlstate != errors.TooManyColumns.sqlstate:
            raise
        raise SchemaConflict(
            f"{table} cannot get the column {column.name!r}: a table has at most 1600 columns, "
            "and those that were ever dropped count. Make a new table of it, with CREATE TABLE … "
            "(LIKE …) and INSERT, and rename that."
        ) from None


def _build_key_index(
    connection: Connection, table: Table, key: Key, leaving: Sequence[int]
) -> bool:
    """Build a key's index before the write; tell whether rows that leave forbade it."""
    try:
        build_index(connection, table, key.columns, unique=True)
    except DatabaseError as error:
        if error.sqlstate != errors.UniqueViolation.sqlstate:
            raise
        if not leaving or _rows_repeat(connection, table, key, leaving):
            raise SchemaConflict(
                f"{table} cannot get the {key}: rows that stay repeat values there. Remove the "
                "duplicates, or drop the option."
            ) from None
        return False
    return True


def _rows_repeat(connection: Connection, table: Table, key: Key, leaving: Sequence[int]) -> bool:
    """Whether rows that stay would contradict a key all by themselves."""
    with translated(f"looking for repeated values in {table}"):
        found = connection.execute(
            ddl.compose_find_repeated(table, key.columns), [list(leaving)]
        ).fetchone()
    return found is not None


def _set_not_null(connection: Connection, table: Table, column: str) -> None:
    check = ddl.check_name(table, column, nonnegative=False)
    alter_patiently(
        connection,
        [ddl.compose_not_null(table, column), ddl.compose_drop_constraint(table, check)],
        f"setting {column!r} of {table} NOT NULL",
    )


def _add_check(
    connection: Connection,
    table: Table,
    column: str,
    leaving: Sequence[int],
    *,
    nonnegative: bool,
) -> None:
    """Add a CHECK that binds new rows, unless a row that stays contradicts it."""
    with translated(f"looking for rows of {table} that contradict a modifier"):
        contradicted = connection.execute(
            ddl.compose_find_contradiction(table, column, nonnegative=nonnegative),
            [list(leaving)],
        ).fetchone()
    if contradicted is not None:
        what = "at or above zero" if nonnegative else "NOT NULL"
        raise SchemaConflict(
            f"Column {column!r} of {table} cannot become {what}: some rows that stay are not. "
            "Correct those rows, or drop the modifier."
        )
    name = ddl.check_name(table, column, nonnegative=nonnegative)
    alter_patiently(
        connection,
        [
            ddl.compose_drop_constraint(table, name),
            ddl.compose_add_check(table, column, nonnegative=nonnegative),
        ],
        f"adding a constraint to {table}",
    )


def _validate_check(
    connection: Connection, table: Table, column: str, *, nonnegative: bool
) -> None:
    alter_patiently(
        connection,
        [ddl.compose_validate(table, column, nonnegative=nonnegative)],
        f"validating a constraint of {table}",
    )


def _is_nullable(connection: Connection, table: Table, column: str) -> bool:
    with translated(f"looking {table} up"):
        row = connection.execute(
            "SELECT FROM pg_catalog.pg_attribute "
            "WHERE attrelid = pg_catalog.to_regclass($1) AND attname = $2 AND NOT attnotnull",
            [table.identifier.as_string(), column],
        ).fetchone()
    return row is not None


def _is_key(connection: Connection, table: Table, key: Key) -> bool:
    """Whether the index that was built for the key is one by now."""
    name = ddl.index_name(table, key.columns, unique=True)
    with translated(f"looking {table} up"):
        row = connection.execute(
            "SELECT FROM pg_catalog.pg_constraint WHERE conindid = pg_catalog.to_regclass($1)",
            [Identifier(table.schema, name).as_string()],
        ).fetchone()
    return row is not None
