"""Merge staged rows into their table by key, beside others who may do the same.

Two statements, of which each row needs one: an UPDATE of what differs and an INSERT of what is
new. Together they cost less than INSERT … ON CONFLICT, which looks each key up once more; and a
user's triggers see an update as an update.

Two merges that lock the same rows in different orders would wait for each other. Sorting the
rows costs as much as a third of the merge, so the first attempt does without: it waits for
nobody's row, but gives way, and then takes its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import errors, sql
from psycopg.sql import Composed, Identifier

from dagster_tools.errors import DatabaseError
from dagster_tools.postgres.column_types import PgType
from dagster_tools.postgres.columns import ExistingTable
from dagster_tools.postgres.connection import (
    Connection,
    transaction,
    translated,
    working_memory,
)
from dagster_tools.postgres.ddl import compose_analyze
from dagster_tools.postgres.merge import (
    compose_counted,
    compose_insert_absent,
    compose_known_keys,
    compose_update_changed,
)
from dagster_tools.postgres.names import Table
from dagster_tools.postgres.tracking import lock_upserts

__all__ = ["Staged", "Upserted", "upsert"]

GIVE_WAY_AFTER = "200ms"
"""How long the first attempt waits for a row that another writer holds.

Two who wait for each other part before the server, after its `deadlock_timeout` of a second,
would have to cancel one of them.
"""

LARGE = 10_000
"""Rows from which on it pays to look at them first: at how keys are ordered, and which are new."""

SAMPLE = 100

MEMORY = 64 * 1024
"""Kilobytes for the UPDATE, where it has to hash. Of a million rows it took 6.6 s with the server's
default of 4 MB, 3.9 s with this, and 3.7 s with 256 MB. The INSERT hashes keys alone, and had
better not: where both tables lie in the order of the key, it merges in two thirds of the time."""

RANDOM_PAGE_COST = 1.1
"""What the planner counts for a page found by key, in units of one read in sequence. The server's
default of 4 is for a disk that has to seek, and pages of rows to be updated are read anyway. With
it the UPDATE read a million rows to find ten thousand, in 0.58 s; by key it took 0.16 s."""

CONTENTION = frozenset(
    kind.sqlstate
    for kind in (errors.LockNotAvailable, errors.UniqueViolation, errors.DeadlockDetected)
)
"""What the server answers where another writer has one of the rows."""

TURNS = 10
"""How often a merge in its turn begins again because of writers who came without one."""

PLAINLY_EQUAL = frozenset(
    {
        "boolean", "smallint", "integer", "bigint", "real", "double precision", "numeric",
        "text", "character varying", "character", "name", "enum", "bytea", "uuid", "jsonb",
        "date", "time without time zone",
        "timestamp without time zone", "timestamp with time zone",
    }
)  # fmt: skip
"""Types whose `=` finds every difference a user could see. Not so `interval`, to which a month is
thirty days, or `citext`; and `json` has none, nor is PostGIS' found outside the search path."""


@dataclass(frozen=True, slots=True)
class Staged:
    """New rows in a temporary table, each key once.

    Args:
        types: Of each column, what its values are encoded as.
        count: How many there are.
        numbers: The materializations they bear.
    """

    table: Identifier
    types: Mapping[str, PgType]
    key: Sequence[str]
    count: int
    numbers: Sequence[int]

    @property
    def large(self) -> bool:
        """Whether it pays to look at them before they are merged."""
        return self.count >= LARGE


@dataclass(frozen=True, slots=True)
class Upserted:
    """What a merge did.

    Args:
        inserted, updated: Rows by materialization.
        deleted: Rows that went before, by partition.
    """

    inserted: Mapping[int, int]
    updated: Mapping[int, int]
    deleted: Mapping[str | None, int]


def upsert(
    connection: Connection,
    existing: ExistingTable,
    staged: Staged,
    delete: Callable[[], Mapping[str | None, int]],
) -> Upserted:
    """Insert rows whose key is new, and update those that differ; leave the others alone.

    Args:
        delete: Deletes the rows that go before, once in each attempt, and counts them.

    Raises:
        BadValue: A row breaks one of the table's rules, such as another unique column.
    """
    table = existing.table
    with translated(f"merging rows into {table}", data=True):
        if staged.large:
            connection.execute(compose_analyze(staged.table, staged.key))
        try:
            with _giving_way(connection):
                return _merge(connection, table, staged, delete)
        except (psycopg.Error, DatabaseError) as error:
            if error.sqlstate not in CONTENTION:
                raise
        lock_upserts(connection, table)
        for turn in range(TURNS):
            try:
                with transaction(connection):
                    return _merge(connection, table, staged, delete)
            except (psycopg.Error, DatabaseError) as error:
                if turn + 1 == TURNS or not _is_contention(error, existing.primary_key_name):
                    raise
    raise AssertionError("a turn returns or raises")


def _is_contention(error: psycopg.Error | DatabaseError, key: str | None) -> bool:
    """Tell whether another writer is to blame, and not the rows.

    For a repeated value that is one of the key: somebody inserted it since this attempt looked.
    """
    if isinstance(error, errors.UniqueViolation):
        return error.diag.constraint_name == key
    return error.sqlstate in CONTENTION


@contextmanager
def _giving_way(connection: Connection) -> Iterator[None]:
    """Run a block in a savepoint, and roll back to it rather than wait for a lock."""
    with transaction(connection):
        connection.execute(
            sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(GIVE_WAY_AFTER))
        )
        yield
        connection.execute("SET LOCAL lock_timeout TO DEFAULT")


def _merge(
    connection: Connection,
    table: Table,
    staged: Staged,
    delete: Callable[[], Mapping[str | None, int]],
) -> Upserted:
    """Make one attempt. The order of the two statements is a matter of speed alone.

    Where the first finds work for every row, the second is spared.
    """
    deleted = delete()
    with _cheap_lookups(connection, staged):
        if _mostly_new(connection, table, staged):
            inserted = _insert(connection, table, staged)
            done = sum(inserted.values()) == staged.count
            return Upserted(inserted, {} if done else _update(connection, table, staged), deleted)
        updated = _update(connection, table, staged)
        done = sum(updated.values()) == staged.count
        return Upserted({} if done else _insert(connection, table, staged), updated, deleted)


@contextmanager
def _cheap_lookups(connection: Connection, staged: Staged) -> Iterator[None]:
    """Let the planner look keys up where it would read the whole table."""
    if not staged.large:
        yield
        return
    connection.execute(
        """
        SELECT pg_catalog.set_config('random_page_cost', least(
            $1::float8, pg_catalog.current_setting('random_page_cost')::float8
        )::text, true)
        """,
        [RANDOM_PAGE_COST],
    )
    yield
    connection.execute("SET LOCAL random_page_cost TO DEFAULT")


def _mostly_new(connection: Connection, table: Table, staged: Staged) -> bool:
    if not staged.large:
        return False
    statement = compose_known_keys(table, staged.table, staged.key, sample=SAMPLE)
    [(known,)] = connection.execute(statement).fetchall()
    return bool(known < SAMPLE / 2)


def _insert(connection: Connection, table: Table, staged: Staged) -> dict[int, int]:
    statement = compose_insert_absent(table, staged.table, list(staged.types), staged.key)
    return _execute(connection, statement, staged)


def _update(connection: Connection, table: Table, staged: Staged) -> dict[int, int]:
    names = list(staged.types)
    if set(names) <= set(staged.key):
        return {}
    by_image = [name for name in names if staged.types[name].name not in PLAINLY_EQUAL]
    statement = compose_update_changed(table, staged.table, names, staged.key, by_image)
    if not staged.large:
        return _execute(connection, statement, staged)
    with working_memory(connection, MEMORY):
        return _execute(connection, statement, staged)


def _execute(connection: Connection, statement: Composed, staged: Staged) -> dict[int, int]:
    if len(staged.numbers) == 1:
        return {staged.numbers[0]: connection.execute(statement).rowcount}
    return dict(connection.execute(compose_counted(statement)).fetchall())
