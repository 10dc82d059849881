"""Promise 1: the rows of an output, their tracking and a new table are there together or not.

What readers see of it meanwhile is in `test_readers_are_never_blocked`, and what a lost
connection leaves in `test_a_retry_is_safe`.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import dagster as dg
import psycopg
import pyarrow as pa
import pytest

from dagster_tools.embedded import Binaries, Server
from dagster_tools.errors import BadValue, DatabaseError
from dagster_tools.postgres.connection import connect, transaction
from tests.fix_servers import Database
from tests.oracle import State, oracle_of
from tests.pipelines import manager_for
from tests.promises.processes import CONTEXT, running
from tests.promises.writing import NUMBERS, ids, numbers, settings_of, stream, write

SECONDS = 20.0
GATE = 77
"""An advisory lock that holds a writer up in the middle of a statement."""


class Interrupted(Exception):
    """What a user's iterator may raise."""


def fail() -> None:
    raise Interrupted


@contextmanager
def closed_gate(database: Database) -> Iterator[psycopg.Connection[Any]]:
    """Let every DELETE on the table wait in the server until the block ends."""
    with closing(database.connect()) as connection:
        connection.execute(
            f"""
            CREATE FUNCTION sales.wait() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                PERFORM pg_advisory_xact_lock_shared({GATE});
                RETURN old;
            END $$
            """
        )
        connection.execute(
            "CREATE TRIGGER wait BEFORE DELETE ON sales.numbers "
            "FOR EACH ROW EXECUTE FUNCTION sales.wait()"
        )
        connection.execute(f"SELECT pg_advisory_lock({GATE})")
        yield connection


def wait_until(query: str, database: Database) -> None:
    """Wait until a query returns a row."""
    deadline = time.monotonic() + SECONDS
    with closing(database.connect()) as connection:
        while connection.execute(query).fetchone() is None:
            assert time.monotonic() < deadline, f"waited in vain: {query}"
            time.sleep(0.01)


AT_THE_GATE = (
    "SELECT FROM pg_stat_activity WHERE wait_event = 'advisory' AND query LIKE 'DELETE%' "
    "AND datname = current_database()"
)


# --- a first write that fails ----------------------------------------------------------------


def test_after_a_failed_first_write_nothing_is_left_but_an_empty_schema_and_empty_tracking_tables(
    database,
):
    failures = {
        "an exception": lambda: write(database, stream(numbers(1), fail, numbers(2))),
        "a repeated key": lambda: write(database, numbers(1, 1), primary_key="id"),
        "a value": lambda: write(
            database,
            stream(pa.table({"id": ["1"]}), pa.table({"id": ["x"]})),
            columns={"id": "int"},
        ),
    }

    for name, failing in failures.items():
        with pytest.raises((Interrupted, BadValue, DatabaseError)):
            failing()

        with closing(database.connect()) as connection:
            relations = connection.execute(
                "SELECT relname FROM pg_class WHERE relnamespace = 'sales'::regnamespace"
            ).fetchall()
            tracked = connection.execute(
                "SELECT (SELECT count(*) FROM meta.assets), "
                "(SELECT count(*) FROM meta.materializations)"
            ).fetchone()
        assert (name, relations, tracked) == (name, [], (0, 0))


def test_a_new_column_stays_when_its_rows_then_fail_and_the_log_said_so(database, caplog):
    caplog.set_level(logging.INFO, "promises")
    write(database, numbers(1))
    wider = numbers(2).append_column("more", pa.array([1]))

    with pytest.raises(Interrupted):
        write(database, stream(wider, fail))

    with closing(database.connect()) as connection:
        found = connection.execute("SELECT id, more FROM sales.numbers").fetchall()
    assert found == [(1, None)]
    assert "Adding column 'more'" in caplog.text


# --- a replace that fails --------------------------------------------------------------------


@contextmanager
def old_rows_stay(database: Database, run_id: str, *, asset_key: str = "numbers") -> Iterator[None]:
    """Judge what is left of a block that failed to replace the rows."""
    with oracle_of(database, NUMBERS, asset_key=asset_key) as oracle:
        old = oracle.look()
        yield
        oracle.judge(old=old, new=State({}), run_id=run_id, returned=False)


@pytest.mark.parametrize("partition", [None, "a"])
def test_an_exception_in_the_users_iterator_leaves_the_old_rows_and_no_session(database, partition):
    write(database, numbers(1, 2), partition=partition)

    with old_rows_stay(database, "fails"), pytest.raises(Interrupted):
        write(database, stream(numbers(3), fail), partition=partition, run_id="fails")

    assert ids(database) == [1, 2]


@pytest.mark.direct("pgbouncer", reason="a pool has more sessions than the one that is ended")
@pytest.mark.parametrize("function", ["pg_terminate_backend", "pg_cancel_backend"])
def test_a_session_that_is_ended_while_it_copies_leaves_the_old_rows(database, function):
    write(database, numbers(1, 2))

    def end() -> None:
        with closing(database.connect()) as connection:
            connection.execute(
                f"SELECT {function}(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND application_name = 'dagster-tools'"
            )

    with old_rows_stay(database, "ended"), pytest.raises(DatabaseError):
        write(database, stream(numbers(3), end, numbers(4)), run_id="ended")

    assert ids(database) == [1, 2]
    write(database, numbers(3, 4), run_id="ended")
    assert ids(database) == [3, 4]


@pytest.mark.parametrize("function", ["pg_terminate_backend", "pg_cancel_backend"])
def test_a_session_that_is_ended_while_it_deletes_leaves_the_old_rows(database, function):
    write(database, numbers(1, 2))
    errors: list[BaseException] = []

    def fail_to_write() -> None:
        try:
            write(database, numbers(3), run_id="ended")
        except DatabaseError as error:
            errors.append(error)

    with closed_gate(database) as connection, old_rows_stay(database, "ended"):
        writer = threading.Thread(target=fail_to_write)
        writer.start()
        wait_until(AT_THE_GATE, database)
        connection.execute(
            f"SELECT {function}(pid) FROM pg_stat_activity WHERE wait_event = 'advisory'"
        )
        writer.join()
        connection.execute(f"SELECT pg_advisory_unlock({GATE})")

    assert len(errors) == 1


def test_a_server_that_stops_immediately_in_the_middle_recovers_with_the_old_rows():
    """Recovery is the server's; that nothing of ours stands half-written is ours."""
    with Server(binaries=Binaries.find(), fsync=False) as server:
        database = Database.of(server)
        write(database, numbers(1, 2))
        with oracle_of(database, NUMBERS) as oracle:
            old = oracle.look()

        with pytest.raises(DatabaseError):
            write(database, stream(numbers(3), server.stop_immediate, numbers(4)), run_id="lost")

        server.start()
        with oracle_of(database, NUMBERS) as oracle:
            oracle.judge(old=old, new=State({}), run_id="lost", returned=False)
        write(database, numbers(3, 4), run_id="lost")
        assert ids(database) == [3, 4]


def test_a_commit_that_a_deferred_constraint_refuses_leaves_the_old_rows_and_quotes_none(database):
    write(database, numbers(1, 2), primary_key="id")
    with closing(database.connect()) as connection:
        connection.execute(
            "CREATE TABLE sales.uses (number bigint REFERENCES sales.numbers "
            "DEFERRABLE INITIALLY DEFERRED)"
        )
        connection.execute("INSERT INTO sales.uses VALUES (2)")

    with old_rows_stay(database, "refused"), pytest.raises(DatabaseError) as error:
        write(database, numbers(1, 3), primary_key="id", run_id="refused")

    assert error.value.sqlstate == "23503"
    assert "uses_number_fkey" in str(error.value)
    assert "(2)" not in str(error.value)


def test_a_transaction_whose_connection_ended_within_it_is_not_taken_for_committed(database):
    """psycopg leaves such a block without an error."""
    connection = connect(settings_of(database))
    connection.execute("CREATE TABLE t (i integer)")

    def lose_the_connection() -> None:
        with transaction(connection):
            connection.execute("INSERT INTO t VALUES (1)")
            connection.close()

    with pytest.raises(psycopg.OperationalError):
        lose_the_connection()

    with closing(database.connect()) as other:
        assert other.execute("SELECT count(*) FROM t").fetchone() == (0,)


@pytest.mark.parametrize(
    "setting",
    [
        "default_transaction_isolation = 'serializable'",
        "default_transaction_isolation = 'repeatable read'",
        "default_transaction_read_only = on",
        "default_transaction_deferrable = on",
    ],
)
def test_the_transaction_states_its_isolation_whatever_the_role_says(database, role, setting):
    made = role("writer")
    own = database.as_role(made)
    with closing(database.connect()) as connection:
        connection.execute(f"GRANT CREATE ON DATABASE {database.dbname} TO writer")
        connection.execute(f"ALTER ROLE writer SET {setting}")
    write(own, numbers(1))
    with closing(database.connect()) as connection:
        connection.execute("CREATE TABLE sales.heard (isolation text)")
        connection.execute("GRANT INSERT ON sales.heard TO writer")
        connection.execute(
            """
            CREATE FUNCTION sales.hear() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                INSERT INTO sales.heard VALUES (current_setting('transaction_isolation'));
                RETURN NULL;
            END $$
            """
        )
        connection.execute(
            "CREATE TRIGGER hear AFTER INSERT ON sales.numbers EXECUTE FUNCTION sales.hear()"
        )

    write(own, numbers(2, 3))

    with closing(database.connect()) as connection:
        heard = connection.execute("SELECT isolation FROM sales.heard").fetchall()
    assert heard == [("read committed",)]
    assert ids(database) == [2, 3]


# --- a run that is interrupted ---------------------------------------------------------------


def materialize(database: Database, copying: Any) -> None:
    """Materialize the asset `numbers`; say so when its rows are being copied."""

    def wait() -> None:
        copying.set()
        time.sleep(SECONDS)

    @dg.asset(key_prefix="sales", name="numbers")
    def asset() -> Any:
        return stream(numbers(3), wait, numbers(4))

    dg.materialize([asset], resources={"io_manager": manager_for(database)})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_interrupted_while_it_copies_leaves_the_old_rows_and_no_session(
    database, number
):
    write(database, numbers(1, 2), asset_key="sales/numbers")
    copying = CONTEXT.Event()

    with (
        old_rows_stay(database, "?", asset_key="sales/numbers"),
        running(materialize, database, copying) as process,
    ):
        assert copying.wait(SECONDS)
        os.kill(process.pid, number)
        process.join(SECONDS)
        assert process.exitcode not in {None, 0}

    assert ids(database) == [1, 2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_interrupted_while_the_server_works_leaves_no_session_working(
    database, number
):
    """Nor one that waits: the gate stays closed until the oracle has looked."""
    write(database, numbers(1, 2), asset_key="sales/numbers")

    with (
        closed_gate(database),
        old_rows_stay(database, "?", asset_key="sales/numbers"),
        running(materialize, database, CONTEXT.Event()) as process,
    ):
        wait_until(AT_THE_GATE, database)
        os.kill(process.pid, number)
        process.join(SECONDS)
        assert process.exitcode not in {None, 0}

    assert ids(database) == [1, 2]
