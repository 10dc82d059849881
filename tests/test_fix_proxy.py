from __future__ import annotations

import threading
import time

import psycopg
import pytest

from tests.fix_proxy import Fault, Point, Proxy


@pytest.fixture
def table(database):
    with database.connect() as conn:
        conn.execute("CREATE TABLE t (i integer)")

    def rows() -> list[int]:
        with database.connect() as conn:
            return [i for (i,) in conn.execute("SELECT i FROM t ORDER BY i").fetchall()]

    return rows


def point(messages, statement: str) -> Point:
    found: Point = next(m.point for m in messages if m.statement == statement)
    return found


def insert(database, value: int) -> None:
    with database.connect() as conn:
        conn.execute(f"INSERT INTO t VALUES ({value})")


def wait_until_idle(database) -> None:
    """Wait until no session but the one that asks is left."""
    with database.connect() as conn:
        for _attempt in range(200):
            (others,) = conn.execute(
                "SELECT count(*) - 1 FROM pg_stat_activity WHERE datname = current_database()"
            ).fetchone()
            if not others:
                return
            time.sleep(0.01)
    pytest.fail("A session outlived its connection.")


def test_without_a_fault_everything_comes_through_and_is_recorded(database, proxy: Proxy, table):
    with proxy.route(database).connect() as conn:
        conn.execute("INSERT INTO t VALUES (1)")
        conn.execute("SELECT i FROM t WHERE i > %s", [0])

    (messages,) = proxy.sessions
    frontend = [message for message in messages if message.point.direction == "frontend"]
    assert table() == [1]
    assert [message.point.number for message in frontend] == list(range(1, len(frontend) + 1))
    assert "QPBDES" in "".join(message.kind for message in frontend)
    assert [message.statement for message in frontend if message.statement] == [
        "INSERT INTO t VALUES (1)",
        "SELECT i FROM t WHERE i > $1",
    ]
    assert not proxy.struck.is_set()


def test_a_message_larger_than_any_buffer_comes_through_whole(database, proxy: Proxy):
    with proxy.route(database).connect() as conn:
        answer = conn.execute("SELECT %s", ["x" * 20_000_000]).fetchone()

    assert answer == ("x" * 20_000_000,)


def test_encryption_is_declined_and_the_connection_goes_on_without(database, proxy: Proxy):
    with proxy.route(database).connect(sslmode="prefer") as conn:
        assert not conn.pgconn.ssl_in_use


@pytest.mark.parametrize(("action", "arrives"), [("cut before", False), ("cut after", True)])
def test_a_cut_at_a_message_of_the_client_decides_whether_the_server_gets_it(
    database, proxy: Proxy, table, action, arrives
):
    insert(proxy.route(database), 1)
    here = point(proxy.sessions[0], "INSERT INTO t VALUES (1)")
    proxy.reset(Fault(action, here))

    with pytest.raises(psycopg.OperationalError):
        insert(proxy.route(database), 2)

    wait_until_idle(database)
    assert proxy.struck.is_set()
    assert table() == ([1, 2] if arrives else [1])


@pytest.mark.parametrize("action", ["cut before", "cut after"])
def test_a_cut_at_a_message_of_the_server_comes_when_the_server_has_done_its_work(
    database, proxy: Proxy, table, action
):
    insert(proxy.route(database), 1)
    (messages,) = proxy.sessions
    done = next(m.point for m in messages if m.point.direction == "backend" and m.kind == "C")
    proxy.reset(Fault(action, done))

    with pytest.raises(psycopg.OperationalError):
        insert(proxy.route(database), 2)

    wait_until_idle(database)
    last = proxy.sessions[0][-1]
    assert (last.point, table()) == (done, [1, 2])


def test_a_fault_happens_once(database, proxy: Proxy, table):
    insert(proxy.route(database), 1)
    proxy.reset(Fault("cut before", point(proxy.sessions[0], "INSERT INTO t VALUES (1)")))

    with pytest.raises(psycopg.OperationalError):
        insert(proxy.route(database), 2)
    insert(proxy.route(database), 3)

    assert table() == [1, 3]


def test_a_stall_leaves_the_client_waiting_until_it_is_healed(database, proxy: Proxy, table):
    insert(proxy.route(database), 1)
    proxy.reset(Fault("stall", point(proxy.sessions[0], "INSERT INTO t VALUES (1)")))
    waiting = threading.Thread(target=insert, args=(proxy.route(database), 2))
    waiting.start()
    assert proxy.struck.wait(5)
    waiting.join(0.1)
    stalled, rows_meanwhile = waiting.is_alive(), table()

    proxy.heal()

    waiting.join(5)
    assert (stalled, rows_meanwhile) == (True, [1])
    assert (waiting.is_alive(), table()) == (False, [1, 2])


def test_a_delay_holds_one_message_back(database, proxy: Proxy, table):
    insert(proxy.route(database), 1)
    here = point(proxy.sessions[0], "INSERT INTO t VALUES (1)")
    proxy.reset(Fault("delay", here, seconds=0.2))
    started = time.monotonic()

    insert(proxy.route(database), 2)

    assert time.monotonic() - started >= 0.2
    assert table() == [1, 2]


def test_a_request_to_cancel_reaches_the_server(database, proxy: Proxy):
    with proxy.route(database).connect() as conn:
        canceling = threading.Timer(0.2, conn.cancel_safe)
        canceling.start()

        with pytest.raises(psycopg.errors.QueryCanceled):
            conn.execute("SELECT pg_sleep(30)")
        canceling.join()


def test_a_closed_proxy_leaves_no_thread_and_no_session(database, proxy: Proxy):
    with Proxy(database.host, database.port) as other:
        before = threading.active_count()
        connections = [other.route(database).connect() for _number in range(3)]
        assert threading.active_count() == before + 6

    assert threading.active_count() == before - 1
    for connection in connections:
        connection.close()
    wait_until_idle(database)
