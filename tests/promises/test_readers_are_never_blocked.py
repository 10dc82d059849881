"""Promise 2, and what of promise 1 readers can see.

Old rows or new ones, never a mix and never none; and nobody who reads waits for a write.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import psycopg
import pyarrow as pa
import pytest

from dagster_tools.errors import DatabaseError
from dagster_tools.postgres import patience
from tests.fix_servers import Database
from tests.promises.writing import ids, numbers, stream, write

LOOK = "SELECT count(*), min(label), max(label) FROM sales.numbers"
VERSIONS = range(1, 7)


def version(number: int) -> pa.Table:
    """Make a frame that cannot be taken for another version, nor for a part of one."""
    return numbers(*range(100 * number, 101 * number), label=f"version {number}")


def seen_of(number: int) -> tuple[int, str, str]:
    return (number, f"version {number}", f"version {number}")


WAYS = {
    "replace": {},
    "partition replace": {"partition": "a"},
    "replace with a key": {"primary_key": "id"},
}


@dataclass
class Watch:
    """What a session saw, look after look."""

    seen: list[object] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)


@contextmanager
def watching(database: Database, query: str = LOOK) -> Iterator[Watch]:
    """Look all the time, in a session of its own."""
    watch = Watch()

    def look() -> None:
        try:
            with closing(database.connect()) as connection:
                while not watch.ended.is_set():
                    watch.seen.append(connection.execute(query).fetchone())
        except psycopg.Error as error:
            watch.failures.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield watch
    finally:
        watch.ended.set()
        thread.join()
    assert not watch.failures


@contextmanager
def open_reader(database: Database) -> Iterator[psycopg.Connection]:
    """Read the table in a transaction that stays open, and so keep a lock on it."""
    with closing(database.connect(autocommit=False)) as connection:
        connection.execute("SELECT count(*) FROM sales.numbers")
        yield connection


@pytest.mark.parametrize("way", WAYS)
def test_other_sessions_see_the_old_rows_or_the_new_ones_never_a_mix_never_none(database, way):
    write(database, version(1), **WAYS[way])

    with watching(database) as watch:
        for number in VERSIONS:
            write(database, version(number), **WAYS[way])

    assert set(watch.seen) <= {seen_of(number) for number in VERSIONS}
    assert watch.seen == sorted(watch.seen, key=str), "a reader went back in time"


@pytest.mark.parametrize("way", WAYS)
def test_in_the_middle_of_a_write_others_see_the_old_rows_and_the_new_ones_once_it_is_done(
    database, way
):
    write(database, version(1), **WAYS[way])
    meanwhile = []

    def look() -> None:
        with closing(database.connect()) as connection:
            meanwhile.append(connection.execute(LOOK).fetchone())

    write(database, stream(version(2), look, version(3), look), **WAYS[way])

    assert meanwhile == [seen_of(1), seen_of(1)]
    assert len(ids(database)) == 5


@pytest.mark.parametrize("way", WAYS)
def test_a_snapshot_opened_before_a_replace_sees_the_old_rows_after_it(database, way):
    """Not even a table that the snapshot has not looked at yet: TRUNCATE would show it empty."""
    write(database, version(1), **WAYS[way])
    with closing(database.connect(autocommit=False)) as older:
        older.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        older.execute("SELECT 1")

        write(database, version(2), **WAYS[way])
        write(database, version(3), **WAYS[way])

        assert older.execute(LOOK).fetchone() == seen_of(1)
    with closing(database.connect()) as connection:
        assert connection.execute(LOOK).fetchone() == seen_of(3)


@pytest.mark.parametrize("way", WAYS)
def test_a_write_needs_no_lock_that_a_reader_could_be_in_the_way_of(database, way):
    """While a reader holds the table, ACCESS EXCLUSIVE would wait for ever."""
    write(database, version(1), **WAYS[way])

    with open_reader(database):
        write(database, version(2), **WAYS[way])

    assert len(ids(database)) == 2


@pytest.mark.parametrize("frame", ["replaced", "evolved"])
def test_no_lock_that_readers_wait_for_is_held_while_data_moves(database, frame):
    write(database, version(1))
    modes: list[str] = []

    def look() -> None:
        with closing(database.connect()) as connection:
            rows = connection.execute(
                "SELECT mode FROM pg_locks WHERE relation = 'sales.numbers'::regclass"
            ).fetchall()
        modes.extend(mode for (mode,) in rows)

    first, second = version(2), version(3)
    if frame == "evolved":
        first = first.append_column("more", pa.array([1, 2]))
        second = second.append_column("more", pa.array([1, 2, 3]))
    write(database, stream(first, look, second))

    assert "RowExclusiveLock" in modes
    assert not set(modes) & {"AccessExclusiveLock", "ExclusiveLock", "ShareRowExclusiveLock"}


def evolved(number: int) -> pa.Table:
    return version(number).append_column("more", pa.array([1] * number))


def test_readers_get_through_while_a_new_column_waits_for_one_of_them(database):
    write(database, version(1))
    with open_reader(database) as reader:
        writer = threading.Thread(target=write, args=(database, evolved(2)))
        writer.start()
        with watching(database) as watch:
            wait_for_ddl(database)
            before = len(watch.seen)
            wait_until(lambda: len(watch.seen) >= before + 3)
            got_through = writer.is_alive()
        reader.rollback()
        writer.join()

    assert got_through
    with closing(database.connect()) as connection:
        assert connection.execute("SELECT sum(more) FROM sales.numbers").fetchone() == (2,)


def test_a_new_column_that_waits_in_vain_is_given_up_with_an_error_that_says_so(
    database, monkeypatch
):
    write(database, version(1))
    monkeypatch.setattr(patience.alter_patiently, "__kwdefaults__", {"patience": 0.0})

    with open_reader(database), pytest.raises(DatabaseError, match="adding a column") as error:
        write(database, evolved(2))

    assert error.value.sqlstate == "55P03"
    with closing(database.connect()) as connection:
        assert connection.execute(LOOK).fetchone() == seen_of(1)


def wait_for_ddl(database: Database) -> None:
    """Wait until an ALTER TABLE waits for the table."""
    with closing(database.connect()) as connection:
        wait_until(
            lambda: (
                connection.execute(
                    "SELECT FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"
                ).fetchone()
                is not None
            )
        )


def wait_until(true, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
