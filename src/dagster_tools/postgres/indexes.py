"""Build an index on a live table while others read and write it.

CREATE INDEX CONCURRENTLY cannot run in a transaction, so what guards it is held by a second
session: two builders on one table would wait for each other's snapshots, which the server ends
as a deadlock. It waits for everybody who writes the table or began a query before, however
long that takes, so it is canceled where that is too long. And what fails leaves an INVALID
index, which the next builder removes (documentation, "Building Indexes Concurrently").
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress

import psycopg
from psycopg import errors, sql
from psycopg.sql import Composed, Identifier

from dagster_tools.errors import DatabaseError
from dagster_tools.postgres import ddl
from dagster_tools.postgres.connection import (
    CANCEL_TIMEOUT,
    Connection,
    connect_again,
    libpq_uri,
    transaction,
    translated,
)
from dagster_tools.postgres.names import Table
from dagster_tools.postgres.patience import LOCK_TIMEOUT, PATIENCE, alter_patiently, patiently
from dagster_tools.postgres.tracking import try_lock_builders

__all__ = ["build_index", "drop_index", "is_written"]

SECONDS_BETWEEN_LOOKS = 0.2


def build_index(
    connection: Connection,
    table: Table,
    columns: Sequence[str],
    *,
    unique: bool,
    spatial: bool = False,
    patience: float = PATIENCE,
) -> None:
    """Build an index where there is none of its name, or only a broken one.

    Args:
        spatial: See `compose_index`.
        patience: Seconds to wait for others; building itself takes what it takes.

    Raises:
        DatabaseError: Others were in the way for longer, or rows repeat a unique key. Nothing
            is left but, where the table is too busy to drop it, an INVALID index.
    """
    name = ddl.index_name(table, columns, unique=unique)
    statement = ddl.compose_index(table, columns, unique=unique, concurrently=True, spatial=spatial)
    step = f"building index {name!r} on {table}"

    def attempt() -> None:
        # Not in a transaction while it waits for its turn: behind PgBouncer that would keep
        # from the builder a connection it may need.
        with transaction(beside):
            if not try_lock_builders(beside, table):
                raise errors.LockNotAvailable("another writer builds an index")
            _drop_if_invalid(connection, table, name, patience)
            try:
                with _canceled_after(patience, statement, connection, beside):
                    connection.execute(statement)
            except psycopg.Error:
                with suppress(DatabaseError, psycopg.Error):
                    _drop_if_invalid(connection, table, name, patience)
                raise

    with translated(step), closing(connect_again(libpq_uri(connection))) as beside:
        patiently(attempt, step, patience=patience)


def drop_index(
    connection: Connection, table: Table, name: str, *, patience: float = PATIENCE
) -> None:
    """Drop an index, if it is there; the lock on the table is short."""
    statement = ddl.compose_drop_index(table, name)
    alter_patiently(connection, [statement], f"dropping index {name!r}", patience=patience)


def is_written(connection: Connection, table: Table) -> bool:
    """Whether a transaction under way has written to the table, so that a builder would wait."""
    with translated(f"looking for writers of {table}"):
        row = connection.execute(
            """
            SELECT EXISTS (
                SELECT
                FROM pg_catalog.pg_locks
                WHERE database = (
                        SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()
                    )
                  AND relation = pg_catalog.to_regclass($1)
                  AND mode NOT IN ('AccessShareLock', 'RowShareLock')
                  AND pid <> pg_catalog.pg_backend_pid()
            )
            """,
            [table.identifier.as_string()],
        ).fetchone()
    return row is not None and bool(row[0])


def _drop_if_invalid(connection: Connection, table: Table, name: str, patience: float) -> None:
    row = connection.execute(
        "SELECT FROM pg_catalog.pg_index "
        "WHERE indexrelid = pg_catalog.to_regclass($1) AND NOT indisvalid",
        [Identifier(table.schema, name).as_string()],
    ).fetchone()
    if row is not None:
        drop_index(connection, table, name, patience=patience)


@contextmanager
def _canceled_after(
    patience: float, statement: Composed, connection: Connection, beside: Connection
) -> Iterator[None]:
    """Cancel the statement a block runs once it has waited for others for so many seconds.

    No setting limits that: `lock_timeout` would have to be set on the session, which behind
    PgBouncer may be anybody's next.
    """
    ended, canceled = threading.Event(), threading.Event()
    limit = max(patience, LOCK_TIMEOUT)

    def watch() -> None:
        waited = 0.0
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            for_us = _waits_for_us(beside, statement)
            if for_us is not None:
                waited += SECONDS_BETWEEN_LOOKS
            if for_us or waited > limit:
                canceled.set()
                with suppress(psycopg.Error):
                    connection.cancel_safe(timeout=CANCEL_TIMEOUT)
                return

    watching = threading.Thread(target=watch, name="dagster-tools index watch", daemon=True)
    watching.start()
    try:
        yield
    except errors.QueryCanceled:
        if not canceled.is_set():
            raise
        raise errors.LockNotAvailable(f"others used the table for {limit:.0f} seconds") from None
    finally:
        ended.set()
        watching.join()


def _waits_for_us(beside: Connection, statement: Composed) -> bool | None:
    """Whether the statement, which another session of ours runs, waits for this very session.

    None where it does not wait. A builder that asks for old snapshots while this session looks
    finds the one it looks with, and waits for the end of its transaction, which would be never.
    Without parameters the snapshot at least ends with the look (the unnamed portal, which
    parameters come with, keeps it until the next statement).
    """
    look = sql.SQL(
        """
        SELECT pg_catalog.pg_backend_pid() = ANY (pg_catalog.pg_blocking_pids(pid))
        FROM pg_catalog.pg_stat_activity
        WHERE datname = pg_catalog.current_database()
          AND state = 'active'
          AND wait_event_type = 'Lock'
          AND query <> ''
          AND pg_catalog.starts_with({}, query)
        """
    ).format(sql.Literal(statement.as_string()))
    try:
        # Within a transaction the server shows the same activity again unless told to look.
        beside.execute("SELECT pg_catalog.pg_stat_clear_snapshot()")
        row = beside.execute(look).fetchone()
    except psycopg.Error:
        return None
    return None if row is None else bool(row[0])
