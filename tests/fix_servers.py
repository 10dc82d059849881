"""Fixtures: real PostgreSQL servers, and a fresh database on them for each test.

`database` is what a test usually wants; `prod_database` is one on another server. Both servers
have PostGIS. They start when first asked for, belong to this process (each pytest-xdist worker
has its own) and are gone with it. `pytest --through=…` leads to them another way (fix_through.py).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Protocol, TypeAlias
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql

from dagster_tools.embedded import Binaries, Server
from dagster_tools.errors import ConfigurationError

_TEMPLATE = "template_postgis"
_started = pytest.StashKey[dict[str, Server]]()
_numbers = count(1)

Way: TypeAlias = Callable[[Server], AbstractContextManager["Led"]]
"""Prepares a server, and says how its databases are reached then."""
Led: TypeAlias = Callable[["Database"], "Database"]
WAY = pytest.StashKey[Way]()
_led: dict[int, Led] = {}
"""How each server with PostGIS is reached, by its port."""


@dataclass(frozen=True)
class Role:
    """A login role made for one test."""

    name: str
    password: str


@dataclass(frozen=True)
class Database:
    """A database made for one test, and a user to connect as: by default the superuser.

    Args:
        direct: Host and port of the server itself, where those above are of a pooler before it.
        authority: File of the certificate that vouches for the server, where it is to be verified.
    """

    host: str
    port: int
    dbname: str
    user: str
    password: str
    socket_dir: str
    direct: tuple[str, int] | None = None
    authority: str | None = None

    @classmethod
    def of(cls, server: Server, dbname: str = "postgres") -> Database:
        return cls(
            host=server.host,
            port=server.port,
            dbname=dbname,
            user=server.user,
            password=server.password,
            socket_dir=str(server.socket_dir),
        )

    def by(self, host: str, port: int) -> Database:
        """Return the same database, reached through what listens there."""
        return replace(self, host=host, port=port, direct=None)

    @property
    def url(self) -> str:
        login = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}"
        return f"postgresql://{login}@{self.host}:{self.port}/{quote(self.dbname, safe='')}"

    @property
    def pooled(self) -> bool:
        """Whether there is a pooler before the server, which keeps sessions that are idle."""
        return self.direct is not None

    def settings(self) -> dict[str, Any]:
        """Return the fields of a `PostgresResource`, or of `ConnectionSettings`."""
        names = ("host", "port", "dbname", "user", "password")
        verified = {"sslmode": "verify-full", "sslrootcert": self.authority}
        return {name: getattr(self, name) for name in names} | (verified if self.authority else {})

    def environment(self) -> dict[str, str]:
        """Compose libpq's variables, for `monkeypatch.setenv` or a subprocess."""
        variables = {"dbname": "PGDATABASE"}
        settings = self.settings().items()
        return {variables.get(name, f"PG{name.upper()}"): str(value) for name, value in settings}

    def connect(self, *, autocommit: bool = True, **overrides: Any) -> psycopg.Connection[Any]:
        """Open a connection, which the test closes; past a pooler that is before all tests."""
        host, port = self.direct or (self.host, self.port)
        parameters: dict[str, Any] = {
            "host": host,
            "port": port,
            "dbname": self.dbname,
            "user": self.user,
            "password": self.password,
        }
        return psycopg.connect(autocommit=autocommit, **(parameters | overrides))

    def as_role(self, role: Role) -> Database:
        """The same database, connected to as this role."""
        return replace(self, user=role.name, password=role.password)


class RoleFactory(Protocol):
    """Make a login role that may do nothing yet, dropped after the test with all it owns."""

    def __call__(
        self, name: str | None = None, *, options: str = "", on: Database | None = None
    ) -> Role: ...


@pytest.fixture(scope="session")
def dev_server(pytestconfig: pytest.Config) -> Iterator[Server]:
    """The development server: a test may crash or restart it, but not change what others see."""
    yield from _server_with_postgis(pytestconfig, "dev")


@pytest.fixture(scope="session")
def prod_server(pytestconfig: pytest.Config) -> Iterator[Server]:
    """A second server, as far from the first as another machine."""
    yield from _server_with_postgis(pytestconfig, "prod")


@pytest.fixture(scope="session")
def embedded_server(pytestconfig: pytest.Config) -> Iterator[Server]:
    """What users of `dagster-tools[embedded]` get: PostgreSQL 18 without PostGIS."""
    yield from _running(pytestconfig, "embedded", Binaries.in_wheel())


@pytest.fixture
def database(dev_server: Server, _roles: list[tuple[Database, Role]]) -> Iterator[Database]:
    """A fresh database with PostGIS on the development server; its user is the superuser."""
    yield from _database(dev_server, _TEMPLATE)


@pytest.fixture
def prod_database(prod_server: Server, _roles: list[tuple[Database, Role]]) -> Iterator[Database]:
    """A fresh database with PostGIS on the production server."""
    yield from _database(prod_server, _TEMPLATE)


@pytest.fixture
def embedded_database(embedded_server: Server) -> Iterator[Database]:
    """A fresh database on PostgreSQL 18, without PostGIS."""
    yield from _database(embedded_server, "template1")


@pytest.fixture
def role(request: pytest.FixtureRequest, _roles: list[tuple[Database, Role]]) -> RoleFactory:
    """A factory: `role("reader")`, `role(options="BYPASSRLS")`, `role(on=prod_database)`."""

    def make(name: str | None = None, *, options: str = "", on: Database | None = None) -> Role:
        database = on or request.getfixturevalue("database")
        made = Role(name or f"role_{next(_numbers)}", secrets.token_urlsafe(8))
        with database.connect() as conn:
            conn.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} {}").format(
                    sql.Identifier(made.name), sql.Literal(made.password), sql.SQL(options)
                )
            )
        _roles.append((database, made))
        return made

    return make


@pytest.fixture
def _roles() -> Iterator[list[tuple[Database, Role]]]:
    """The roles of a test. Databases ask for it, so they are gone when the roles are dropped."""
    made: list[tuple[Database, Role]] = []
    yield made
    for database, role in made:
        with replace(database, dbname="postgres").connect() as conn:
            name = sql.Identifier(role.name)
            conn.execute(sql.SQL("DROP OWNED BY {}").format(name))
            conn.execute(sql.SQL("DROP ROLE {}").format(name))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of the servers' logs below a test that failed."""
    report = yield
    if report.failed:
        for name, server in item.config.stash.get(_started, {}).items():
            report.sections.append((f"log of the PostgreSQL server {name!r}", server.log_tail(30)))
    return report


def _server_with_postgis(config: pytest.Config, name: str) -> Iterator[Server]:
    try:
        binaries = Binaries.find(postgis=True)
    except ConfigurationError as exc:
        pytest.fail(f"{exc}\n`make test` installs PostGIS before it runs the tests.", pytrace=False)
    for server in _running(config, name, binaries):
        with Database.of(server).connect() as conn:
            conn.execute(f"CREATE DATABASE {_TEMPLATE}")
        with Database.of(server, _TEMPLATE).connect() as conn:
            conn.execute("CREATE EXTENSION postgis")
        with config.stash[WAY](server) as led:
            _led[server.port] = led
            yield server


def _running(config: pytest.Config, name: str, binaries: Binaries) -> Iterator[Server]:
    servers = config.stash.setdefault(_started, {})
    with Server(binaries=binaries, fsync=False, settings={"log_checkpoints": False}) as server:
        servers[name] = server
        yield server
        del servers[name]


def _database(server: Server, template: str) -> Iterator[Database]:
    server.start()  # an earlier test may have crashed it
    database = Database.of(server, f"test_{next(_numbers)}")
    name = sql.Identifier(database.dbname)
    with Database.of(server).connect() as conn:
        conn.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(name, sql.Identifier(template))
        )
    yield _led.get(server.port, lambda same: same)(database)
    server.start()
    with Database.of(server).connect() as conn:
        conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
