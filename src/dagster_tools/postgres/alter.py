"""Change a live table in short transactions that never make a reader queue for long.

An ALTER TABLE waits for ACCESS EXCLUSIVE, and whoever comes after it waits behind it.
So each statement gives up after a second, lets the others through, and tries again.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psycopg
from psycopg import errors, sql
from psycopg.sql import Composed

from dagster_tools.errors import DatabaseError, SchemaConflict
from dagster_tools.postgres import ddl
from dagster_tools.postgres.catalog import fetch_dependents
from dagster_tools.postgres.connection import Connection, transaction, translated
from dagster_tools.postgres.evolution import Evolution, Widening
from dagster_tools.postgres.names import MATERIALIZATION_ID, Table

__all__ = [
    "Key",
    "Unfinished",
    "abandon",
    "alter_patiently",
    "evolve",
    "finish",
    "index_materialization_id",
    "track",
    "widen",
]

LOCK_TIMEOUT = "1s"
PATIENCE = 60.0
"""Seconds over which a statement is tried again while others hold the table."""

LONGEST_PAUSE = 5.0


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
    """
    for added in evolution.additions:
        log.info("Adding column %r (%s) to %s.", added.name, added.type, table)
        alter_patiently(
            connection, [ddl.compose_add_column(table, added)], f"adding a column to {table}"
        )
    for widening in evolution.widenings:
        widen(connection, table, widening, log)
    not_null = tuple(dict.fromkeys((*evolution.not_null, *evolution.primary_key)))
    for column in evolution.nonnegative:
        _add_check(connection, table, column, leaving, nonnegative=True)
    for column in not_null:
        _add_check(connection, table, column, leaving, nonnegative=False)
    for column in evolution.index:
        _create_index(connection, table, [column], unique=False)
    keys = [Key((column,)) for column in evolution.unique]
    keys += [Key(evolution.primary_key, primary=True)] if evolution.primary_key else []
    indexed = [_build_key_index(connection, table, key, leaving) for key in keys]
    return Unfinished(
        not_null,
        evolution.nonnegative,
        tuple(keys),
        tuple(key for key, built in zip(keys, indexed, strict=True) if not built),
    )


def finish(
    connection: Connection, table: Table, unfinished: Unfinished, log: logging.Logger
) -> None:
    """Finish what `evolve` prepared, now that the rows in its way are gone.

    The rows are committed by now, so a table too busy to be altered fails nothing: the
    next write finishes.
    """
    try:
        for column in unfinished.nonnegative:
            _validate_check(connection, table, column, nonnegative=True)
        for column in unfinished.not_null:
            _validate_check(connection, table, column, nonnegative=False)
            _set_not_null(connection, table, column)
        for key in unfinished.keys:
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
            alter_patiently(connection, [statement], f"dropping a constraint of {table}")
        for key in unfinished.keys:
            name = ddl.index_name(table, key.columns, unique=True)
            with translated(f"dropping index {name!r}"):
                connection.execute(ddl.compose_drop_index(table, name))


def track(connection: Connection, table: Table) -> None:
    """Give a table made elsewhere its `materialization_id`, without touching a row."""
    statements = ddl.compose_add_materialization_id(table)
    for statement in statements:
        alter_patiently(connection, [statement], f"adding {MATERIALIZATION_ID} to {table}")


def widen(connection: Connection, table: Table, widening: Widening, log: logging.Logger) -> None:
    """Change a column's type; rewrites the table while nobody else can read it.

    Raises:
        SchemaConflict: A view, rule, policy, trigger or generated column depends on it.
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
    statement = ddl.compose_alter_type(table, widening.column, widening.new, empty=widening.empty)
    try:
        alter_patiently(connection, [statement], f"widening a column of {table}")
    except DatabaseError as error:
        dependents = fetch_dependents(connection, table, widening.column)
        if error.sqlstate != errors.FeatureNotSupported.sqlstate or not dependents:
            raise
        raise SchemaConflict(
            f"Column {widening.column!r} of {table} is {widening.old} and would have to become "
            f"{widening.new}, but {', '.join(dependents)} depend on it. Drop them, run "
            f"{statement.as_string()}; and create them again."
        ) from None


def index_materialization_id(connection: Connection, table: Table, log: logging.Logger) -> None:
    """Index `materialization_id` before a second owner moves in; an optimization that may wait."""
    try:
        _create_index(connection, table, [MATERIALIZATION_ID], unique=False)
    except DatabaseError as error:
        log.info("%s keeps no index on %s for now: %s", table, MATERIALIZATION_ID, error)


def alter_patiently(
    connection: Connection,
    statements: Sequence[Composed],
    step: str,
    *,
    patience: float = PATIENCE,
) -> None:
    """Run statements in one transaction, trying again while the table is in use.

    Raises:
        DatabaseError: The table was still in use after `patience` seconds.
    """

    def attempt() -> None:
        with transaction(connection):
            connection.execute(
                sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(LOCK_TIMEOUT))
            )
            for statement in statements:
                connection.execute(statement)
            # Where this is a savepoint of a longer transaction, its later waits are its own.
            connection.execute("SET LOCAL lock_timeout TO DEFAULT")

    _patiently(attempt, step, patience)


def _create_index(
    connection: Connection, table: Table, columns: Sequence[str], *, unique: bool
) -> None:
    """Build an index while others read and write (documentation, "Building Indexes Concurrently").

    It cannot run in a transaction, and what is left of a failed one is dropped.
    """
    name = ddl.index_name(table, columns, unique=unique)
    statement = ddl.compose_index(table, columns, unique=unique, concurrently=True)
    step = f"building index {name!r} on {table}"
    try:
        _patiently(lambda: _concurrently(connection, statement), step, PATIENCE)
    except DatabaseError:
        with translated(step):
            connection.execute(ddl.compose_drop_index(table, name))
        raise


def _concurrently(connection: Connection, statement: Composed) -> None:
    connection.execute(statement)


def _build_key_index(
    connection: Connection, table: Table, key: Key, leaving: Sequence[int]
) -> bool:
    """Build a key's index before the write; tell whether rows that leave forbade it."""
    try:
        _create_index(connection, table, key.columns, unique=True)
    except DatabaseError as error:
        if error.sqlstate != errors.UniqueViolation.sqlstate:
            raise
        if not leaving:
            raise SchemaConflict(
                f"{table} cannot get the {key}: its rows repeat values there. Remove the "
                "duplicates, or drop the option."
            ) from None
        return False
    return True


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


def _patiently(attempt: Callable[[], None], step: str, patience: float) -> None:
    deadline = time.monotonic() + patience
    pause = 0.05
    with translated(step):
        while True:
            try:
                return attempt()
            except psycopg.errors.LockNotAvailable:
                if time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311  # jitter, not a secret
            pause = min(pause * 2, LONGEST_PAUSE)
