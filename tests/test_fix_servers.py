from __future__ import annotations

import psycopg
import pytest

from dagster_tools.embedded import Binaries, Server
from dagster_tools.errors import ConfigurationError
from tests import fix_servers


@pytest.mark.parametrize("turn", ["first", "second"])
def test_each_test_has_a_database_of_its_own_with_postgis(database, turn):
    with database.connect() as conn:
        conn.execute("CREATE TABLE spatial_ref_sys_copy AS SELECT srid FROM spatial_ref_sys")

        assert conn.execute("SELECT postgis_lib_version() >= '3'").fetchone() == (True,)


def test_development_and_production_are_different_servers(database, prod_database):
    assert database.port != prod_database.port


def test_a_database_is_reached_over_tcp_and_over_the_socket(database):
    for host, over_tcp in ((database.host, True), (database.socket_dir, False)):
        with database.connect(host=host) as conn:
            assert conn.execute("SELECT inet_server_addr() IS NOT NULL").fetchone() == (over_tcp,)
    with psycopg.connect(database.url) as conn:
        assert conn.info.dbname == database.dbname


def test_what_is_under_test_goes_the_way_that_pytest_was_told(pytestconfig, database):
    with psycopg.connect(**database.settings()) as conn:
        [(port, encrypted)] = conn.execute(
            "SELECT inet_server_port(), ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        ).fetchall()
        pooled = port != conn.info.port
    ways = {(True, False): "pgbouncer", (False, True): "tls", (False, False): "direct"}

    assert ways[pooled, encrypted] == pytestconfig.getoption("--through")


def test_a_role_may_do_nothing_that_it_was_not_granted(database, role):
    reader = role("reader")
    with database.connect() as conn:
        conn.execute("CREATE TABLE hers(); CREATE TABLE his()")
        conn.execute("GRANT SELECT ON hers TO reader")

    with database.as_role(reader).connect() as conn:
        conn.execute("SELECT FROM hers")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute("SELECT FROM his")


@pytest.mark.parametrize("turn", ["first", "second"])
def test_a_role_is_dropped_after_the_test_with_what_it_owns(prod_database, role, turn):
    owner = role("owner", on=prod_database)

    with prod_database.connect() as conn:
        conn.execute("CREATE SCHEMA hers AUTHORIZATION owner")
        conn.execute(f"GRANT CREATE ON DATABASE {prod_database.dbname} TO owner")
    with prod_database.as_role(owner).connect() as conn:
        conn.execute("CREATE TABLE hers.t()")


def test_a_crashed_server_is_up_again_for_the_next_test(dev_server: Server, database):
    dev_server.crash()

    assert not dev_server.running


def test_a_server_that_was_crashed_by_the_test_before_is_up(database):
    with database.connect() as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)


def test_missing_postgis_is_a_failure_that_names_the_cure(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
):
    def find(*, postgis: bool) -> Binaries:
        raise ConfigurationError("No PostgreSQL with PostGIS was found.")

    monkeypatch.setattr(Binaries, "find", find)

    with pytest.raises(pytest.fail.Exception, match="`make test` installs PostGIS"):
        next(fix_servers._server_with_postgis(pytestconfig, "none"))
