"""`users` may read what an asset writes: granted once, by one at a time, or not at all."""

from __future__ import annotations

import threading

import dagster as dg
import pandas as pd
import psycopg
import pytest

from dagster_tools.errors import ConfigurationError, DagsterToolsError, GrantFailed
from dagster_tools.postgres import grants
from dagster_tools.postgres.connection import ConnectionSettings, connect
from dagster_tools.postgres.names import Table
from dagster_tools.sql import SQL, Query
from tests.pipelines import fingerprint, manager_for, materialize, query, store
from tests.promises.processes import all_at_once
from tests.promises.writing import numbers, write

FRAME = pd.DataFrame({"n": [1]})


def may_read(database, role, table="public.numbers"):
    with database.as_role(role).connect() as connection:
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone() is not None


@pytest.mark.parametrize("written", [FRAME, Query("SELECT 1 AS n")], ids=["frame", "query"])
def test_users_may_read_a_new_table_in_a_new_schema(database, io_manager, role, written):
    reader = role()

    store(io_manager, written, key=["reports", "numbers"], users=[reader.name])

    assert may_read(database, reader, "reports.numbers")


def test_users_may_read_a_table_that_statements_made(database, io_manager, role):
    reader = role()

    store(io_manager, SQL("CREATE TABLE numbers AS SELECT 1 AS n"), users=[reader.name])

    assert may_read(database, reader)


def test_users_added_later_may_read_an_existing_table(database, io_manager, role):
    reader = role()
    store(io_manager, FRAME)

    store(io_manager, FRAME, users=reader.name)

    assert may_read(database, reader)


@pytest.mark.parametrize("name", ['Odd "Role"', "UPPER", "with space", "ünï"])
def test_role_names_are_quoted(database, io_manager, role, name):
    reader = role(name)

    store(io_manager, FRAME, users=[name])

    assert may_read(database, reader)


def test_public_is_everybody(database, io_manager, role):
    anybody = role()

    store(io_manager, FRAME, users=["public"])

    assert may_read(database, anybody)


def test_a_missing_role_is_an_error_before_anything_is_written(database, io_manager):
    before = fingerprint(database)

    with pytest.raises(ConfigurationError, match=r"do not exist on this server: \['nobody_here'\]"):
        store(io_manager, FRAME, users=["nobody_here"])

    assert fingerprint(database) == before


def test_what_is_granted_is_not_granted_again(database, io_manager, role):
    reader = role()
    store(io_manager, FRAME, users=[reader.name])
    acl = "SELECT xmin, relacl FROM pg_class WHERE relname = 'numbers'"
    before = query(database, acl)

    store(io_manager, FRAME, users=[reader.name])

    assert query(database, acl) == before


def test_a_role_that_may_not_grant_gets_an_error_that_says_who_may(database, role):
    writer, reader = role(), role()
    with database.connect() as connection:
        connection.execute(f"GRANT CREATE ON DATABASE {database.dbname} TO {writer.name}")
    store(manager_for(database.as_role(writer)), pd.DataFrame({"n": [1]}), key=["own", "x"])
    with database.connect() as connection:
        connection.execute("CREATE TABLE own.numbers (n bigint, materialization_id integer)")
        connection.execute(f"GRANT ALL ON own.numbers TO {writer.name}")
        connection.execute(
            "ALTER TABLE own.numbers ALTER materialization_id SET DEFAULT nullif("
            "current_setting('dagster_tools.materialization_id', true), '')::integer"
        )

    with pytest.raises(GrantFailed, match="owner of the table"):
        store(
            manager_for(database.as_role(writer)), FRAME, key=["own", "numbers"], users=reader.name
        )

    assert query(database, "SELECT count(*) FROM own.numbers") == [(0,)]


def test_the_code_location_s_users_are_granted_too(database, role):
    reader = role()
    manager = manager_for(database, code_location_users={"datasmart": [reader.name]})

    @dg.asset
    def numbers():
        return FRAME

    materialize(numbers, manager, tags={"dagster/code_location": "datasmart"})

    assert may_read(database, reader)


def test_other_code_locations_grant_nothing(database, role):
    reader = role()
    manager = manager_for(database, code_location_users={"datasmart": [reader.name]})

    store(manager, FRAME)

    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        may_read(database, reader)


def test_many_grants_at_once_on_one_schema_all_succeed(database, role):
    """Eight writers; without the lock most would end in "tuple concurrently updated"."""
    readers = [role() for _number in range(8)]
    with database.connect() as connection:
        connection.execute("CREATE SCHEMA busy")
        connection.execute("CREATE TABLE busy.numbers (n int)")
    failures = []
    start = threading.Barrier(8)

    def granting(reader):
        settings = ConnectionSettings(
            host=database.host,
            port=database.port,
            dbname=database.dbname,
            user=database.user,
            password=database.password,
        )
        with connect(settings) as connection:
            start.wait()
            for _round in range(10):
                try:
                    with connection.transaction():
                        grants.grant_select(connection, Table("busy", "numbers"), [reader.name])
                    connection.execute(f"REVOKE SELECT ON busy.numbers FROM {reader.name}")
                except psycopg.errors.InternalError_:
                    continue  # the REVOKE of the test itself is not serialized
                except DagsterToolsError as error:
                    failures.append(error)

    threads = [threading.Thread(target=granting, args=[reader]) for reader in readers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []


@pytest.mark.parametrize(
    ("processes", "grants_each"),
    [(8, 3), pytest.param(8, 50, marks=pytest.mark.sweep)],
)
def test_processes_that_grant_on_one_schema_at_once_all_succeed_and_no_privilege_is_lost(
    database, role, processes, grants_each
):
    """Each writes a table of its own, as runs do, for another reader each time."""
    readers = [[role().name for _round in range(grants_each)] for _process in range(processes)]
    with database.connect() as connection:
        connection.execute("CREATE SCHEMA busy")

    failures = all_at_once(
        write_for_a_reader,
        [(database, number, names) for number, names in enumerate(readers)],
        grants_each,
    )

    assert failures == []
    acl = "SELECT pg_get_userbyid(grantee) FROM {}, aclexplode({}) WHERE privilege_type = '{}'"
    usage = query(database, acl.format("pg_namespace", "nspacl", "USAGE") + " AND nspname = 'busy'")
    everybody = {name for names in readers for name in names}
    assert {name for (name,) in usage} >= everybody
    for number, names in enumerate(readers):
        select = acl.format("pg_class", "relacl", "SELECT") + f" AND relname = 'numbers_{number}'"
        assert {name for (name,) in query(database, select)} >= set(names)


def write_for_a_reader(database, number, readers, turn):
    """Write in a process of its own, at the moment at which the others do."""
    table = Table("busy", f"numbers_{number}")
    write(database, numbers(1), table=table, users=[readers[turn]])


def test_a_concurrent_update_by_somebody_else_is_tried_again(database, io_manager, role):
    """Another session grants on the same schema and commits while our GRANT waits for it."""
    reader, other = role(), role()
    store(io_manager, FRAME, key=["busy", "numbers"])
    with database.connect(autocommit=False) as rival:
        rival.execute(f"GRANT USAGE ON SCHEMA busy TO {other.name}")
        writer = threading.Thread(
            target=store,
            args=[io_manager, FRAME],
            kwargs={"key": ["busy", "numbers"], "users": [reader.name]},
        )
        writer.start()
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'transactionid'"
        while query(database, waiting) == [(0,)]:
            pass
        rival.commit()
        writer.join()

    assert may_read(database, reader, "busy.numbers")


def test_a_grant_that_keeps_failing_is_given_up_after_five_retries(database, io_manager, role):
    reader = role()
    store(io_manager, FRAME)
    with database.connect() as connection:
        connection.execute(
            "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN"
            " RAISE EXCEPTION 'tuple concurrently updated' USING ERRCODE = 'XX000'; END $$"
        )
        connection.execute(
            "CREATE EVENT TRIGGER refuse ON ddl_command_end WHEN TAG IN ('GRANT')"
            " EXECUTE FUNCTION refuse()"
        )
    attempts = []
    pause = grants.time.sleep
    grants.time.sleep = attempts.append
    try:
        with pytest.raises(GrantFailed, match="tuple concurrently updated"):
            store(io_manager, FRAME, users=[reader.name])
    finally:
        grants.time.sleep = pause

    assert attempts == [0.05, 0.1, 0.2, 0.4, 0.8]
