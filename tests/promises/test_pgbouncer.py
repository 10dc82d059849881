"""Promise 10: it works through PgBouncer in transaction mode, with a pool of two."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from dagster_tools.embedded import Binaries
from dagster_tools.postgres.names import Table
from tests.fix_servers import Database
from tests.promises.writing import ids, load, numbers, write

SECONDS_TO_START = 10.0


@pytest.fixture
def pooled(database: Database) -> Iterator[Database]:
    """The same database, behind a pooler that gives each transaction any of two connections."""
    port = free_port()
    # Not pytest's folder, which nobody but root may enter, whom the pooler does not run as.
    folder = Path(tempfile.mkdtemp(prefix="dagster-tools-pgbouncer-"))
    config, users = folder / "pgbouncer.ini", folder / "users.txt"
    config.write_text(
        f"""
        [databases]
        * = host={database.host} port={database.port} password={database.password}
        [pgbouncer]
        listen_addr = 127.0.0.1
        listen_port = {port}
        unix_socket_dir =
        auth_type = plain
        auth_file = {users}
        pool_mode = transaction
        default_pool_size = 2
        max_client_conn = 50
        server_login_retry = 1
        """.replace("        ", ""),
        encoding="utf-8",
    )
    users.write_text(f'"{database.user}" "{database.password}"\n', "utf-8")
    binary, environment = find_pgbouncer()
    user = None
    if os.getuid() == 0:  # it refuses to run as root, as PostgreSQL does
        user = "nobody"
        for path in (folder, config, users):
            shutil.chown(path, user)
    process = subprocess.Popen(
        [binary, "-q", config],
        env=environment,
        user=user,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
    )
    behind = replace(database, host="127.0.0.1", port=port)
    try:
        wait_for(behind, process)
        yield behind
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


def find_pgbouncer() -> tuple[str, dict[str, str]]:
    """Return Debian's, or the one that scripts/install-postgres unpacked without root."""
    variables = Binaries.find(postgis=True).variables()
    installed = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin")
    if installed:
        return installed, dict(os.environ)
    for folder in variables.get("LD_LIBRARY_PATH", "").split(":"):
        for parent in Path(folder).parents:
            unpacked = parent / "usr" / "sbin" / "pgbouncer"
            if unpacked.exists():
                return str(unpacked), os.environ | variables
    pytest.fail("PgBouncer is missing; `make test` installs it.")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(database: Database, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while True:
        assert process.poll() is None, "PgBouncer ended"
        try:
            with closing(database.connect()):
                return
        except psycopg.OperationalError:
            assert time.monotonic() < deadline, "PgBouncer takes no connections"
            time.sleep(0.05)


def test_a_table_is_written_replaced_evolved_and_loaded_through_a_pooler(database, pooled):
    write(pooled, numbers(1), primary_key="id")
    write(pooled, numbers(1, 2, label="a"), primary_key="id")
    write(pooled, numbers(2, 3), primary_key="id", columns={"label": ("string", "index")})
    write(pooled, numbers(3, 4), primary_key="id", incremental=True)

    assert ids(database) == [2, 3, 4]
    assert sorted(row["id"] for row in load(pooled)) == [2, 3, 4]


def test_partitions_are_replaced_and_loaded_through_a_pooler(database, pooled):
    for partition, number in (("a", 1), ("b", 2), ("a", 3)):
        write(pooled, numbers(number), partition=partition)

    assert ids(database) == [2, 3]
    assert [row["id"] for row in load(pooled, partition="a")] == [3]


def test_a_second_owner_of_a_table_comes_in_through_a_pooler(database, pooled):
    """Its index is built outside a transaction, beside a session that keeps others away."""
    table = Table("sales", "shared")
    write(pooled, numbers(1), table=table, asset_key="one")
    write(pooled, numbers(2), table=table, asset_key="two")

    assert ids(database, table) == [1, 2]


def test_nothing_is_left_on_a_pooled_connection_for_the_next_client(pooled):
    write(pooled, numbers(1), primary_key="id")
    write(pooled, numbers(2), primary_key="id", incremental=True)
    load(pooled)

    with closing(pooled.connect(prepare_threshold=None)) as connection:
        settings = connection.execute(
            "SELECT name FROM pg_settings WHERE source = 'session' AND name NOT IN"
            " ('application_name', 'client_encoding', 'DateStyle', 'TimeZone',"
            "  'standard_conforming_strings', 'IntervalStyle')"
        ).fetchall()
        locks = connection.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        ).fetchone()
        relations = connection.execute(
            "SELECT count(*) FROM pg_class WHERE relpersistence = 't'"
        ).fetchone()
    assert settings == []
    assert locks == (0,)
    assert relations == (0,)
