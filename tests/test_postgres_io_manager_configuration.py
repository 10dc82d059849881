"""Where PostgreSQL is and as whom to connect: each way to say it, and what is said of a mistake."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import sqlite3
import time
import traceback
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import psycopg
import pytest
from dagster_shared.serdes import serialize_value

from dagster_tools.embedded import Binaries, Server
from dagster_tools.errors import ConfigurationError, DatabaseError
from dagster_tools.postgres_io_manager import PostgresIOManager, PostgresResource
from tests.pipelines import manager_for, materialize, query, resource_for, rows, store

CANARY = "p@ss:w/rd%25 canary"


@dg.asset
def numbers():
    return pd.DataFrame({"n": [1, 2]})


@dg.asset
def doubled(numbers: pd.DataFrame):
    return numbers * 2


PIPELINE = [numbers, doubled]
DOUBLED = [(2,), (4,)]


@pytest.fixture(autouse=True)
def _no_libpq_environment(monkeypatch):
    """What the machine says about PostgreSQL is not part of a test."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PGPASSFILE", os.devnull)


# --- every way to configure -----------------------------------------------------------------


def test_a_manager_made_in_python_writes_and_reads(database):
    manager = PostgresIOManager(
        connection=PostgresResource(
            host=database.host,
            port=database.port,
            dbname=database.dbname,
            user=database.user,
            password=database.password,
        ),
        schema="analytics",
        tracking_schema="lineage",
    )

    materialize(PIPELINE, manager)

    assert rows(database, "analytics.doubled") == DOUBLED
    assert query(database, "SELECT count(*) FROM lineage.materializations") == [(2,)]


def test_every_field_may_be_an_environment_variable(database, monkeypatch):
    monkeypatch.setenv("TEST_HOST", database.host)
    monkeypatch.setenv("TEST_PORT", str(database.port))
    monkeypatch.setenv("TEST_DATABASE", database.dbname)
    monkeypatch.setenv("TEST_USER", database.user)
    monkeypatch.setenv("TEST_PASSWORD", database.password)
    monkeypatch.setenv("TEST_SCHEMA", "analytics")
    manager = PostgresIOManager(
        connection=PostgresResource(
            host=dg.EnvVar("TEST_HOST"),
            port=dg.EnvVar.int("TEST_PORT"),
            dbname=dg.EnvVar("TEST_DATABASE"),
            user=dg.EnvVar("TEST_USER"),
            password=dg.EnvVar("TEST_PASSWORD"),
        ),
        schema=dg.EnvVar("TEST_SCHEMA"),
    )

    materialize(PIPELINE, manager)
    store(manager, pd.DataFrame({"n": [3]}), key="bare")

    assert rows(database, "analytics.doubled") == DOUBLED
    assert rows(database, "analytics.bare") == [(3,)]


def test_an_environment_variable_that_is_not_set_is_named(database):
    manager = PostgresIOManager(connection=resource_for(database, host=dg.EnvVar("NOT_SET")))

    with pytest.raises(ConfigurationError, match="environment variable NOT_SET is not set"):
        store(manager, pd.DataFrame({"n": [1]}))


def test_the_managers_own_fields_come_from_run_config(database, monkeypatch):
    for name, value in database.environment().items():
        monkeypatch.setenv(name, value)

    materialize(
        PIPELINE,
        PostgresIOManager.configure_at_launch(),
        run_config={
            "resources": {
                "io_manager": {"config": {"schema": "launched", "tracking_schema": "lineage"}}
            }
        },
    )

    assert rows(database, "launched.doubled") == DOUBLED
    assert query(database, "SELECT count(*) FROM lineage.assets") == [(2,)]


def test_the_connection_comes_from_run_config_through_a_resource_of_its_own(database, monkeypatch):
    monkeypatch.setenv("TEST_PASSWORD", database.password)
    connection = PostgresResource.configure_at_launch()

    materialize(
        PIPELINE,
        PostgresIOManager(connection=connection, schema="launched"),
        resources={"postgres": connection},
        run_config={
            "resources": {
                "postgres": {
                    "config": {
                        "host": database.host,
                        "port": database.port,
                        "dbname": database.dbname,
                        "user": database.user,
                        "password": {"env": "TEST_PASSWORD"},
                    }
                }
            }
        },
    )

    assert rows(database, "launched.doubled") == DOUBLED


@pytest.mark.parametrize(
    "over",
    [
        "tcp",
        pytest.param(
            "socket", marks=pytest.mark.direct("pgbouncer", reason="the socket is the server's")
        ),
    ],
)
def test_a_manager_without_any_field_connects_as_psql_would(database, monkeypatch, over):
    host = database.host if over == "tcp" else database.socket_dir
    for name, value in (database.environment() | {"PGHOST": host}).items():
        monkeypatch.setenv(name, value)

    materialize(PIPELINE, PostgresIOManager())

    assert rows(database, "public.doubled") == DOUBLED


def test_a_server_that_listens_on_a_socket_only_is_reached(monkeypatch):
    with Server(
        binaries=Binaries.find(postgis=True), fsync=False, settings={"listen_addresses": ""}
    ) as server:
        monkeypatch.setenv("PGHOST", str(server.socket_dir))
        monkeypatch.setenv("PGPORT", str(server.port))
        monkeypatch.setenv("PGUSER", server.user)
        monkeypatch.setenv("PGPASSWORD", server.password)

        result = materialize(PIPELINE, PostgresIOManager())

        with psycopg.connect(dbname="postgres") as connection:
            assert connection.execute("SELECT n FROM doubled ORDER BY n").fetchall() == DOUBLED
        assert result.success


def test_a_service_and_a_password_file_say_it_all(database, monkeypatch, tmp_path):
    service, passwords = tmp_path / "pg_service.conf", tmp_path / "pgpass"
    service.write_text(
        f"[warehouse]\nhost={database.host}\nport={database.port}\n"
        f"dbname={database.dbname}\nuser={database.user}\n"
    )
    passwords.write_text(f"*:*:*:{database.user}:{database.password}\n")
    passwords.chmod(0o600)
    monkeypatch.setenv("PGSERVICEFILE", str(service))
    monkeypatch.setenv("PGSERVICE", "warehouse")
    monkeypatch.setenv("PGPASSFILE", str(passwords))

    materialize(PIPELINE, PostgresIOManager())

    assert rows(database, "public.doubled") == DOUBLED


def test_what_is_set_wins_over_libpqs_environment(database, monkeypatch):
    for name in ("PGHOST", "PGUSER", "PGPASSWORD", "PGDATABASE"):
        monkeypatch.setenv(name, "wrong")

    materialize(PIPELINE, manager_for(database))

    assert rows(database, "public.doubled") == DOUBLED


def test_a_manager_works_bare_without_any_dagster_around_it(database):
    manager = manager_for(database)
    output = dg.build_output_context(asset_key="numbers")

    manager.handle_output(output, pd.DataFrame({"n": [1, 2]}))
    loaded = manager.load_input(dg.build_input_context(asset_key="numbers"))

    assert loaded["n"].tolist() == [1, 2]
    assert output.get_logged_metadata()["dagster/row_count"] == dg.IntMetadataValue(2)


# --- URLs -----------------------------------------------------------------------------------


def test_a_url_is_read_into_fields_with_its_percent_encoding_undone():
    resource = PostgresResource.from_url(
        "postgresql://us%40er:p%40ss%3Aw%2Frd%2525@db.example:5433/my%20db"
        "?sslmode=verify-full&sslrootcert=%2Fetc%2Fca.pem&connect_timeout=3&application_name=etl"
    )

    assert resource == PostgresResource(
        host="db.example",
        port=5433,
        dbname="my db",
        user="us@er",
        password="p@ss:w/rd%25",
        sslmode="verify-full",
        sslrootcert="/etc/ca.pem",
        connect_timeout=3,
        application_name="etl",
    )


def test_a_url_reaches_the_database_with_any_password(database, role):
    writer = role("wr:it@er/")
    with database.connect() as connection:
        connection.execute(f"""ALTER ROLE "{writer.name}" PASSWORD '{CANARY}'""")
    url = (
        f"postgresql://wr%3Ait%40er%2F:p%40ss%3Aw%2Frd%2525%20canary@"
        f"{database.host}:{database.port}/{database.dbname}"
    )

    with PostgresResource.from_url(url).get_connection() as connection:
        assert connection.execute("SELECT current_user").fetchone() == (writer.name,)


def test_a_url_may_come_from_an_environment_variable(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://etl@db/analytics")

    resource = PostgresResource.from_url(dg.EnvVar("DATABASE_URL"))

    assert resource == PostgresResource(host="db", user="etl", dbname="analytics")
    with pytest.raises(ConfigurationError, match="NOT_SET is not set"):
        PostgresResource.from_url(dg.EnvVar("NOT_SET"))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:canary%zz@host/db",
        "postgresql://user:can ary@host:port/db",
        "postgresql://user:55@canary@host/db",
        "postgresql://user:canary/canary@host/db",
        "postgresql://user:canary@[host/db",
        "postgresql://user:canary@one:5432,two:5433/db",
        "postgresql://user:canary@host/db?canary=canary",
        "postgresql://user:canary@host/db?connect_timeout=canary",
        "postgresql://user@host/db?password=canary&options=-c%20work_mem=canary",
        "mysql://user:canary@host/db",
        "host=db password=canary",
        "canary",
        "",
        None,
    ],
)
def test_a_url_that_cannot_be_read_is_not_repeated(url):
    with pytest.raises(ConfigurationError) as caught:
        PostgresResource.from_url(url)

    assert "URL" in str(caught.value)
    assert "canary" not in "".join(traceback.format_exception(caught.value))


# --- connections of the user's own ----------------------------------------------------------


def test_a_connection_is_committed_when_its_block_ends(database):
    with resource_for(database).get_connection() as connection:
        connection.execute("CREATE TABLE kept AS SELECT %s::int AS n", [7])

    assert connection.closed
    assert rows(database, "public.kept") == [(7,)]


def test_a_connection_is_rolled_back_when_its_block_fails(database):
    def failing():
        with resource_for(database).get_connection() as connection:
            connection.execute("CREATE TABLE lost (n int)")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()

    assert query(database, "SELECT to_regclass('lost')") == [(None,)]


def test_an_asset_may_ask_for_the_resource_beside_the_manager(database):
    @dg.asset
    def counted(postgres: PostgresResource):
        with postgres.get_connection() as connection:
            found = connection.execute("SELECT generate_series(1, 3)").fetchall()
        return pd.DataFrame({"n": [len(found)]})

    connection = resource_for(database)
    materialize(
        counted, PostgresIOManager(connection=connection), resources={"postgres": connection}
    )

    assert rows(database, "public.counted") == [(3,)]


def test_sessions_carry_the_applications_name(database, monkeypatch):
    def name_of(resource):
        with resource.get_connection() as connection:
            return connection.execute("SHOW application_name").fetchone()[0]

    assert name_of(resource_for(database)) == "dagster-tools"
    assert name_of(resource_for(database, application_name="etl")) == "etl"
    monkeypatch.setenv("PGAPPNAME", "from libpq")
    assert name_of(resource_for(database)) == "from libpq"


# --- mistakes -------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [PostgresResource, PostgresIOManager])
def test_an_unknown_argument_is_refused_and_the_known_ones_are_listed(cls):
    with pytest.raises(ConfigurationError) as caught:
        cls(passwrd="canary")

    known = {"host", "password"} if cls is PostgresResource else {"connection", "schema"}
    assert f"{cls.__name__} has no 'passwrd'" in str(caught.value)
    assert all(name in str(caught.value) for name in known)
    assert "canary" not in str(caught.value)


def test_a_url_instead_of_a_resource_is_refused_without_repeating_it():
    with pytest.raises(ConfigurationError) as caught:
        PostgresIOManager(connection="postgresql://user:canary@host/db")

    assert "from_url" in str(caught.value)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"host": "no-such-host.invalid"}, "[Errno -"),
        ({"host": "/no/such/folder"}, "No such file or directory"),
        ({"port": 1}, "Connection refused"),
        ({"dbname": "no_such_database"}, 'database "no_such_database" does not exist'),
        ({"user": "no_such_user"}, "password authentication failed"),
        ({"password": CANARY + " "}, "password authentication failed"),
        ({"password": None}, "no password supplied"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.direct("pgbouncer", reason="the pooler has words of its own for each")
def test_what_is_wrong_with_the_connection_is_said_without_the_password(
    database, role, wrong, reason
):
    login = database.as_role(role("writer"))
    with database.connect() as connection:
        connection.execute(f"ALTER ROLE writer PASSWORD '{CANARY}'")
    settings = {"password": CANARY, "connect_timeout": 5} | wrong
    resource = resource_for(login, **settings)

    result = materialize(numbers, PostgresIOManager(connection=resource), raise_on_error=False)

    told = result.failure_data_for_node("numbers").error.to_string()
    expected = {"host": login.host, "port": login.port, "dbname": login.dbname, "user": "writer"}
    for name, value in (expected | wrong).items():
        if name != "password":
            assert f"{name}={value}" in told
    assert reason in told
    assert "asset numbers (public.numbers)" in told
    assert CANARY not in told


def test_a_host_that_accepts_and_never_answers_is_given_up_within_connect_timeout(database):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        manager = PostgresIOManager(connection=resource_for(database, port=port, connect_timeout=1))
        started = time.monotonic()

        with pytest.raises(DatabaseError, match=f"port={port}.*timeout expired"):
            store(manager, pd.DataFrame({"n": [1]}))

    assert time.monotonic() - started < 2 + 3  # less than two seconds is two seconds, in libpq


def test_connect_timeout_is_ten_seconds_unless_libpq_says_otherwise(monkeypatch, tmp_path):
    def timeout(**fields):
        return PostgresResource(**fields).settings().keywords().get("connect_timeout")

    service = tmp_path / "pg_service.conf"
    service.write_text("[patient]\nconnect_timeout=20\n[plain]\nhost=db\n")
    monkeypatch.setenv("PGSERVICEFILE", str(service))

    assert timeout() == "10"
    assert timeout(connect_timeout=3) == "3"
    monkeypatch.setenv("PGSERVICE", "plain")
    assert timeout() == "10"
    monkeypatch.setenv("PGSERVICE", "patient")
    assert timeout() is None
    monkeypatch.delenv("PGSERVICE")
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "4")
    assert timeout() is None


def test_an_error_of_the_connection_survives_the_way_to_another_process(database):
    with pytest.raises(DatabaseError) as caught:
        store(PostgresIOManager(connection=resource_for(database, port=1)), pd.DataFrame({"n": []}))

    copy = pickle.loads(pickle.dumps(caught.value))

    assert str(copy) == str(caught.value)
    assert copy.step == "connect"


# --- secrets --------------------------------------------------------------------------------


def test_a_password_is_masked_wherever_a_resource_is_printed():
    resource = PostgresResource(host="db", user="etl", password="canary")
    manager = PostgresIOManager(connection=resource, production=resource)

    shown = [repr(resource), str(resource), f"{resource}", repr(manager), str(manager)]
    shown += [repr(resource.settings()), str(resource.settings())]

    assert not [text for text in shown if "canary" in text]
    assert repr(resource) == "PostgresResource(host='db', user='etl', password='***')"


def test_a_password_of_the_wrong_type_is_not_shown():
    with pytest.raises(ValueError, match="password") as caught:
        PostgresResource(password=[b"canary"])

    assert "canary" not in str(caught.value)


def test_the_password_alone_is_marked_as_a_secret():
    extras = {name: f.json_schema_extra or {} for name, f in PostgresResource.model_fields.items()}
    schema = PostgresResource.to_config_schema().as_field().config_type.fields

    marked = {name for name, extra in extras.items() if extra.get("dagster__is_secret")}
    assert marked == {"password"}
    if hasattr(dg.Field, "is_secret"):  # Dagster 1.11 does not read the mark yet
        assert {name for name, field in schema.items() if field.is_secret} == marked


def failing_definitions() -> dg.JobDefinition:
    """A job as a code location has it, for the child process; see the test below."""
    return _job(
        [numbers],
        io_manager=PostgresIOManager(
            connection=PostgresResource(
                host=os.environ["TEST_HOST"],
                port=int(os.environ["TEST_PORT"]),
                dbname="postgres",
                user="postgres",
                password=CANARY,
            )
        ),
        postgres=PostgresResource(password=dg.EnvVar("TEST_PASSWORD")),
    )


def _job(assets: list[dg.AssetsDefinition], **resources: Any) -> dg.JobDefinition:
    definitions = dg.Definitions(
        assets=assets, resources=resources, jobs=[dg.define_asset_job("everything")]
    )
    return definitions.resolve_job_def("everything")


def test_a_password_that_fails_reaches_no_file_of_a_dagster_instance(
    dev_server, monkeypatch, tmp_path
):
    """Event log, compute logs, run storage and snapshots, written by a child process."""
    monkeypatch.setenv("TEST_HOST", dev_server.host)
    monkeypatch.setenv("TEST_PORT", str(dev_server.port))
    monkeypatch.setenv("TEST_PASSWORD", CANARY)

    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        job = dg.reconstructable(failing_definitions)
        with dg.execute_job(job, instance=instance, raise_on_error=False) as result:
            run = instance.get_run_by_id(result.run_id)
        assert run is not None
        assert run.job_snapshot_id is not None
        snapshot = serialize_value(instance.get_job_snapshot(run.job_snapshot_id))

    said = [*_everything_stored(tmp_path), snapshot]
    reached = [text for text in said if "password authentication failed" in text]
    assert any("DatabaseError" in text and "Stack Trace" in text for text in reached)
    assert any("Could not connect to PostgreSQL" in text for text in reached)
    assert not [text for text in said if CANARY in text or CANARY.replace(" ", "%20") in text]


def _everything_stored(folder: Path) -> Iterator[str]:
    """Yield the text of each file, and each value of each table of its SQLite databases."""
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.read_bytes().decode(errors="replace")
            if path.suffix == ".db":
                yield from _values(path)


def _values(path: Path) -> Iterator[str]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (name,) in names:
            for row in connection.execute(f'SELECT * FROM "{name}"'):
                for value in row:
                    if isinstance(value, bytes):
                        with contextlib.suppress(zlib.error):
                            value = zlib.decompress(value)  # noqa: PLW2901  # snapshots
                        value = value.decode(errors="replace")  # noqa: PLW2901
                    yield str(value)
