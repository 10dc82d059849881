"""Connections over TLS: all that a step opens are encrypted, and the wrong server is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pytest
import trustme
from psycopg.sql import SQL

from dagster_tools.embedded import Binaries, Server
from dagster_tools.errors import DatabaseError
from dagster_tools.postgres import read
from dagster_tools.postgres.adbc import adbc_snapshot
from dagster_tools.postgres.connection import connect, libpq_uri
from dagster_tools.postgres_io_manager import PostgresIOManager, PostgresResource
from tests import fix_servers
from tests.fix_servers import Database
from tests.fix_tls import speak_tls
from tests.pipelines import fingerprint, load, query, resource_for, store

ENCRYPTED = """
    CREATE FUNCTION encrypted() RETURNS boolean LANGUAGE sql
    AS 'SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()'
"""


@dataclass(frozen=True)
class Verified:
    """A database on a server that has a certificate for the name `localhost` only."""

    database: Database
    authority: Path

    def resource(self, **overrides: object) -> PostgresResource:
        settings = {
            "host": "localhost",
            "sslmode": "verify-full",
            "sslrootcert": str(self.authority),
        }
        return resource_for(self.database, **(settings | overrides))


@pytest.fixture(scope="module")
def tls_server(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Path]]:
    for server in fix_servers._running(pytestconfig, "tls", Binaries.find(postgis=True)):
        yield server, speak_tls(server, tmp_path_factory.mktemp("tls"), "localhost")


@pytest.fixture
def verified(tls_server: tuple[Server, Path]) -> Iterator[Verified]:
    server, authority = tls_server
    for database in fix_servers._database(server, "template1"):
        yield Verified(database, authority)


def test_rows_are_written_over_tls(verified):
    with verified.database.connect() as connection:
        connection.execute(ENCRYPTED)
        connection.execute("CREATE TABLE numbers (n bigint, written boolean DEFAULT encrypted())")

    store(PostgresIOManager(connection=verified.resource()), pa.table({"n": [1]}))

    assert query(verified.database, "SELECT n, written FROM numbers") == [(1, True)]


@pytest.mark.parametrize("few_values", [read.FEW_VALUES, -1], ids=["psycopg", "ADBC"])
@pytest.mark.parametrize("environment", ["development", "production"])
def test_rows_are_read_over_tls(verified, monkeypatch, few_values, environment):
    monkeypatch.setattr(read, "FEW_VALUES", few_values)
    store(PostgresIOManager(connection=verified.resource()), pa.table({"n": [1]}))
    with verified.database.connect() as connection:
        connection.execute(ENCRYPTED)
        connection.execute("ALTER TABLE numbers RENAME TO kept")
        connection.execute(
            "CREATE VIEW numbers AS SELECT n, encrypted() AS read, materialization_id FROM kept"
        )
    manager = PostgresIOManager(**{environment_field(environment): verified.resource()})

    loaded = load(manager, pa.Table, environment=environment)

    assert loaded.to_pydict() == {"n": [1], "read": [True]}


def environment_field(environment: str) -> str:
    return "production" if environment == "production" else "connection"


def test_a_server_that_another_authority_vouches_for_is_refused(verified, tmp_path):
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)

    refused(verified, "sslrootcert must name the file of the authority", sslrootcert=str(other))


def test_the_driver_verifies_the_server_as_psycopg_did(verified, tmp_path):
    """It has a libpq of its own, which is told what to trust."""
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    with closing(connect(verified.resource().settings())) as connection:
        uri = libpq_uri(connection)
    trusted, distrusted = (quote(str(path), safe="") for path in (verified.authority, other))

    with adbc_snapshot(uri) as snapshot:
        [(answer,)] = snapshot.execute(SQL("SELECT $1").format(), ["yes"]).fetchall()
        assert answer == "yes"
    with (
        pytest.raises(DatabaseError, match="certificate verify failed"),
        adbc_snapshot(uri.replace(trusted, distrusted)),
    ):
        pass


def test_a_server_of_another_name_is_refused(verified):
    refused(verified, "Connect by a name that the server's certificate has", host="127.0.0.1")


def test_a_server_is_not_verified_without_an_authority(verified, tmp_path):
    missing = str(tmp_path / "missing.pem")

    refused(verified, "Set sslrootcert to the file of the authority", sslrootcert=missing)


@pytest.mark.direct("tls", reason="every server speaks it there")
def test_a_server_that_speaks_no_tls_is_refused(verified, database):
    plain = Verified(database, verified.authority)

    refused(plain, "Turn `ssl` on in the server's postgresql.conf")


def refused(verified: Verified, remedy: str, **overrides: str) -> None:
    """Write and load, and see both refused before anything but a greeting was sent."""
    manager = PostgresIOManager(connection=verified.resource(**overrides))
    before = fingerprint(verified.database)

    with pytest.raises(DatabaseError, match="Could not connect") as written:
        store(manager, pa.table({"n": [1]}))
    with pytest.raises(DatabaseError, match="Could not connect") as loaded:
        load(manager)

    for error in (written.value, loaded.value):
        assert remedy in str(error)
        assert verified.database.password not in str(error)
    assert fingerprint(verified.database) == before
