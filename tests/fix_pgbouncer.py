"""PgBouncer, Debian's package, in front of a server: it gives a transaction any of few connections.

`pooled` is `database` behind one with two connections, as small as a pool gets in which somebody
can be in somebody's way. `pytest --through=pgbouncer` puts one before the servers of all tests.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from dagster_tools.embedded import Binaries
from tests.fix_servers import Database

__all__ = ["Pooler", "pooler"]

SECONDS_TO_START = 10.0


@dataclass(frozen=True)
class Pooler:
    """A running PgBouncer."""

    host: str
    port: int

    def route(self, database: Database) -> Database:
        """Return the same database, reached through the pooler."""
        return database.by(self.host, self.port)


@pytest.fixture
def pooled(database: Database) -> Iterator[Database]:
    """The same database, behind a pooler that has two connections for all."""
    with pooler(database, connections=2) as running:
        yield running.route(database)


@contextmanager
def pooler(server: Database, *, connections: int) -> Iterator[Pooler]:
    """Run a PgBouncer before a server, in transaction mode, for all its databases and roles.

    Args:
        server: The server, with the superuser that asks it for the passwords of others.
        connections: What the pool of each role and database has.
    """
    # Not pytest's folder, which nobody but root may enter, whom the pooler does not run as.
    folder = Path(tempfile.mkdtemp(prefix="dagster-tools-pgbouncer-"))
    config, users = folder / "pgbouncer.ini", folder / "users.txt"
    port = _free_port()
    # Passwords reach the server as they came (SCRAM): their secrets are the server's own.
    config.write_text(
        f"""
        [databases]
        * = host={server.host} port={server.port} auth_user={server.user}
        [pgbouncer]
        listen_addr = 127.0.0.1
        listen_port = {port}
        unix_socket_dir =
        auth_type = scram-sha-256
        auth_file = {users}
        auth_query = SELECT rolname, rolpassword FROM pg_catalog.pg_authid WHERE rolname = $1
        pool_mode = transaction
        default_pool_size = {connections}
        max_client_conn = 200
        server_login_retry = 1
        query_wait_timeout = 30
        """.replace("        ", ""),
        encoding="utf-8",
    )
    users.write_text(f'"{server.user}" "{server.password}"\n', "utf-8")
    binary, environment = _find()
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
    running = Pooler("127.0.0.1", port)
    try:
        _wait_for(running.route(server), process)
        yield running
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


def _find() -> tuple[str, dict[str, str]]:
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(database: Database, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while True:
        assert process.poll() is None, "PgBouncer ended"
        try:
            with closing(database.connect()):
                return
        except psycopg.OperationalError:
            assert time.monotonic() < deadline, "PgBouncer takes no connections"
            time.sleep(0.05)
