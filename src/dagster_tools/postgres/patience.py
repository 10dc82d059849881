"""Ask for a lock on a live table, but not for long: give up, let the others through, ask again.

Whoever comes after a statement that waits for a lock waits behind it, readers too. So no
statement of ours waits for one longer than a second.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from psycopg import errors, sql
from psycopg.sql import Composed

from dagster_tools.errors import DatabaseError
from dagster_tools.postgres.connection import Connection, transaction, translated

__all__ = ["LOCK_TIMEOUT", "PATIENCE", "alter_patiently", "brief_transaction", "patiently"]

LOCK_TIMEOUT = 1.0
"""Seconds a statement waits for a lock, and others behind it."""

PATIENCE = 60.0
"""Seconds over which it is tried again while others hold the table."""

SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 5.0


def alter_patiently(
    connection: Connection,
    statements: Sequence[Composed],
    step: str,
    *,
    patience: float = PATIENCE,
) -> None:
    """Run statements in one transaction, trying again while the table is in use.

    Raises:
        DatabaseError: The table was still in use after `patience` seconds, or is not this
            role's to alter; the message then has the statements for its owner.
    """

    def attempt() -> None:
        with brief_transaction(connection):
            for statement in statements:
                connection.execute(statement)

    try:
        patiently(attempt, step, patience=patience)
    except DatabaseError as error:
        if error.sqlstate != errors.InsufficientPrivilege.sqlstate:
            raise
        commands = " ".join(f"{statement.as_string()};" for statement in statements)
        raise DatabaseError(
            f"{error}. Ask the table's owner to run: {commands}",
            sqlstate=error.sqlstate,
            step=step,
        ) from None


@contextmanager
def brief_transaction(connection: Connection) -> Iterator[None]:
    """Run a block in a transaction, or a savepoint, in which no statement waits long for a lock."""
    with transaction(connection):
        connection.execute(
            sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(f"{LOCK_TIMEOUT:.0f}s"))
        )
        yield
        # Where this is a savepoint of a longer transaction, its later waits are its own.
        connection.execute("SET LOCAL lock_timeout TO DEFAULT")


def patiently(attempt: Callable[[], None], step: str, *, patience: float = PATIENCE) -> None:
    """Call `attempt` until it no longer ends in LockNotAvailable, or patience does.

    Raises:
        DatabaseError: Any error of the last attempt.
    """
    deadline = time.monotonic() + patience
    pause = SHORTEST_PAUSE
    with translated(step):
        while True:
            try:
                return attempt()
            except errors.LockNotAvailable as error:
                if time.monotonic() + pause > deadline:
                    raise _given_up(step, patience, error) from None
            time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311  # jitter, not a secret
            pause = min(pause * 2, LONGEST_PAUSE)


def _given_up(step: str, patience: float, error: errors.LockNotAvailable) -> DatabaseError:
    return DatabaseError(
        f"Others held the table for {patience:.0f} seconds (lock timeout, while {step}). A long "
        "transaction does that, even one that only reads. Look for it in pg_stat_activity, and run "
        "the asset again when it has ended.",
        sqlstate=error.sqlstate,
        step=step,
    )
