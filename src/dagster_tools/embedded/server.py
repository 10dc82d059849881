"""A server: started, stopped, asked where it is."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias, final
from urllib.parse import quote, urlencode

import psycopg

from dagster_tools.embedded.account import Account
from dagster_tools.embedded.binaries import Binaries
from dagster_tools.embedded.home import Home
from dagster_tools.embedded.supervisor import Supervisor
from dagster_tools.errors import ConfigurationError, DatabaseError

__all__ = ["Server"]

_Setting: TypeAlias = str | int | float | bool

_START_SECONDS = 60
_STOP_SECONDS = 10


@final
class Server:
    """A PostgreSQL server that belongs to the process which starts it.

    As a context manager it is started on entry and closed on exit:

        with Server(settings={"wal_level": "logical"}) as server:
            conn = psycopg.connect(server.url)

    Args:
        data_dir: Where the database cluster lives, created when missing, and kept. Without it the
            cluster is thrown away when the server is closed or its process ends. For root, the
            server's user must be able to enter the folders above it.
        binaries: Which PostgreSQL to run; by default `Binaries.find()`.
        port: TCP port; by default a free one.
        listen_tcp: Whether to listen on 127.0.0.1, or on a Unix-domain socket alone.
        password: Of the superuser `postgres`, asked for over TCP and over the socket alike. By
            default one is made up, and kept inside a `data_dir` that is kept.
        settings: Any of PostgreSQL's, e.g. `{"max_connections": 20}`.
        fsync: False is faster, and safe when PostgreSQL crashes, but not when the machine does.
    """

    user = "postgres"

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        *,
        binaries: Binaries | None = None,
        port: int | None = None,
        listen_tcp: bool = True,
        password: str | None = None,
        settings: Mapping[str, _Setting] | None = None,
        fsync: bool = True,
    ) -> None:
        self.settings = dict(settings or {})
        self._binaries = binaries
        self._wanted_data_dir = None if data_dir is None else Path(data_dir).absolute()
        self._wanted_port = port
        self._wanted_password = password
        self._listen_tcp = listen_tcp
        self._fsync = fsync
        self._home: Home | None = None
        self._supervisor: Supervisor | None = None

    def __repr__(self) -> str:
        where = f"{self.host}:{self.port}" if self._home else "not started"
        return f"<{type(self).__name__} {where}>"

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> Server:
        """Return when the server accepts connections; at once when it runs already.

        After a crash this includes PostgreSQL's recovery.
        """
        first = self._home is None
        try:
            if first:
                self._open()
            if not self.running:
                self._launch()
        except BaseException:
            if first:
                self.close()
            raise
        return self

    def stop(self) -> None:
        """Shut down in order: transactions are rolled back, sessions ended, all data written.

        A server that takes longer than ten seconds is stopped as by `stop_immediate`.
        """
        self._end(signal.SIGINT, signal.SIGQUIT)

    def stop_immediate(self) -> None:
        """Abort all server processes, so that the next start goes through recovery."""
        self._end(signal.SIGQUIT)

    def crash(self) -> None:
        """Kill the server process with SIGKILL, as the kernel does when memory runs out.

        Its sessions notice a moment later. The next `start` waits for that, and recovers.
        """
        self._end(signal.SIGKILL)

    def restart(self, **settings: _Setting) -> None:
        """Stop and start again, with these settings besides the earlier ones, on the same port."""
        self.stop()
        self.settings.update(settings)
        self.start()

    def close(self) -> None:
        """Stop the server and remove what is not to be kept. `start` then begins anew."""
        supervisor, home = self._supervisor, self._home
        try:
            if supervisor is not None and supervisor.killed:
                # Only a start removes the shared memory that a crash leaves behind.
                with contextlib.suppress(DatabaseError):
                    self._launch()
        finally:
            self._supervisor = self._home = None
            if supervisor is not None:
                supervisor.close()
            elif home is not None:
                shutil.rmtree(home.folder)

    @property
    def running(self) -> bool:
        """Whether the server process exists; false after a crash of its own, too."""
        return self._supervisor is not None and self._supervisor.running

    @property
    def pid(self) -> int:
        """The server's process id (the postmaster's)."""
        return self._watched.pid

    @property
    def binaries(self) -> Binaries:
        """Which PostgreSQL runs."""
        if self._binaries is None:
            self._binaries = Binaries.find()
        return self._binaries

    @property
    def host(self) -> str:
        """`127.0.0.1`, or the socket's folder when there is no TCP. libpq takes either."""
        return "127.0.0.1" if self._listen_tcp else str(self.socket_dir)

    @property
    def port(self) -> int:
        """The TCP port; without TCP the number in the socket's name."""
        return self._opened.port

    @property
    def password(self) -> str:
        """Of the superuser `postgres`."""
        return self._opened.password

    @property
    def socket_dir(self) -> Path:
        """The folder of the Unix-domain socket, which only the server's user may enter."""
        return self._opened.socket_dir

    @property
    def data_dir(self) -> Path:
        """The database cluster's folder (PGDATA)."""
        return self._opened.data_dir

    @property
    def url(self) -> str:
        """The superuser's connection URL to the database `postgres`, with the password."""
        login = f"{self.user}:{quote(self.password, safe='')}"
        if self._listen_tcp:
            return f"postgresql://{login}@{self.host}:{self.port}/postgres"
        return f"postgresql://{login}@/postgres?{urlencode({'host': self.host, 'port': self.port})}"

    def environment(self) -> dict[str, str]:
        """Compose libpq's variables for a process that is to find this server by itself."""
        return {
            "PGHOST": self.host,
            "PGPORT": str(self.port),
            "PGUSER": self.user,
            "PGPASSWORD": self.password,
            "PGDATABASE": "postgres",
        }

    def log_tail(self, lines: int = 20) -> str:
        """Read the end of the server's log. It holds statements, hence maybe data."""
        return _tail(self._opened.log, lines)

    @property
    def _opened(self) -> Home:
        if self._home is None:
            raise ConfigurationError("The server has not been started: call start() first.")
        return self._home

    @property
    def _watched(self) -> Supervisor:
        if self._supervisor is None:
            raise ConfigurationError("The server has not been started: call start() first.")
        return self._supervisor

    def _open(self) -> None:
        """Make the folders, hand them to a supervisor, and create the cluster if there is none."""
        if sys.platform == "win32":
            raise ConfigurationError(
                "dagster_tools.embedded does not run on Windows. Use WSL, or a server of your own."
            )
        account = Account.for_server()
        programs = self.binaries.usable_by(account)
        home = self._home = Home.create(account, self._wanted_data_dir)
        self._supervisor = Supervisor(home, programs)
        home.port = self._wanted_port or (_free_port() if self._listen_tcp else 5432)
        if (home.data_dir / "PG_VERSION").exists():
            home.password = self._wanted_password or home.stored_password()
        else:
            home.password = self._wanted_password or secrets.token_urlsafe(16)
            self._create_cluster(home, programs.major(account))

    def _create_cluster(self, home: Home, major: int) -> None:
        home.make_data_dir()
        password_file, log = home.folder / "password", home.folder / "initdb-log"
        home.write_secret(password_file, home.password)
        command = ["initdb", "-D", str(home.data_dir), "-U", self.user, "-E", "UTF8"]
        command += ["-A", "scram-sha-256", f"--pwfile={password_file}", *_locale_options(major)]
        command += [] if self._fsync else ["--no-sync"]
        self._watched.run(command, log)
        if self._watched.exit_code(_START_SECONDS) != 0:
            raise _failure("initdb could not create a database cluster", log, home.account)
        password_file.unlink()
        if home.keep_data:
            home.store_password()

    def _launch(self) -> None:
        """Start the server, again when a port was taken or an earlier server is not gone yet."""
        home, began = self._opened, time.monotonic()
        while True:
            said_before = home.log.stat().st_size if home.log.exists() else 0
            self._watched.run(self._command(), home.log)
            if self._wait_until_ready(began + _START_SECONDS):
                home.was_ready = True
                return
            said = _read(home.log, said_before)
            patient = time.monotonic() < began + _STOP_SECONDS
            if self.running or not patient or not self._worth_another_try(said):
                raise _failure("The PostgreSQL server did not start", home.log, home.account)
            time.sleep(0.05)

    def _worth_another_try(self, said: str) -> bool:
        home = self._opened
        if "Address already in use" in said and self._wanted_port is None and not home.was_ready:
            home.port = _free_port()
            return True
        # After a crash, or while the server of an owner that was killed is shutting down.
        return "is still in use" in said or 'lock file "postmaster.pid" already exists' in said

    def _command(self) -> list[str]:
        home = self._opened
        settings: dict[str, _Setting] = {
            "port": home.port,
            "listen_addresses": "127.0.0.1" if self._listen_tcp else "",
            "unix_socket_directories": str(home.socket_dir),
            "logging_collector": False,
        }
        if not self._fsync:
            # synchronous_commit stays on: it keeps committed rows when only PostgreSQL crashes.
            settings |= {"fsync": False, "full_page_writes": False}
        settings |= self.settings
        options = [f"--{name}={_as_text(value)}" for name, value in settings.items()]
        return ["postgres", "-D", str(home.data_dir), *options]

    def _wait_until_ready(self, deadline: float) -> bool:
        """Poll by connecting, for nothing less proves that clients can; false if it ended.

        Through the socket: nobody else's server can answer in a folder of our own.
        """
        while self.running and time.monotonic() < deadline:
            try:
                self._connect().close()
            except psycopg.OperationalError as exc:
                if "password authentication failed" in str(exc):
                    raise ConfigurationError(
                        f"The superuser of the cluster in {self.data_dir} has another password: "
                        "pass the one it was created with, as Server(password=...)."
                    ) from None
                time.sleep(0.02)
            else:
                return True
        return False

    def _connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(
            host=str(self.socket_dir),
            port=self.port,
            user=self.user,
            password=self.password,
            dbname="postgres",
            connect_timeout=_STOP_SECONDS,
        )

    def _end(self, *numbers: signal.Signals) -> None:
        """Send one signal after the other until the server is gone."""
        for number in (*numbers, signal.SIGKILL):
            if not self.running:
                return
            self._watched.send_signal(number)
            self._watched.exit_code(_STOP_SECONDS)


def _locale_options(major: int) -> list[str]:
    """Choose UTF-8 sorted by code point: the same on every machine, whatever its locale."""
    if major >= 17:
        return ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
    return ["--locale=C.UTF-8"] if sys.platform == "linux" else ["--locale=C"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _as_text(value: _Setting) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def _read(log: Path, offset: int) -> str:
    with log.open("rb") as file:
        file.seek(offset)
        return file.read().decode("utf-8", "replace")


def _tail(log: Path, lines: int) -> str:
    return "\n".join(_read(log, 0).splitlines()[-lines:])


def _failure(what: str, log: Path, account: Account) -> DatabaseError:
    return DatabaseError(
        f"{what}{account.explanation}. The end of its log:\n{_tail(log, 20)}",
        step="start the server",
    )
