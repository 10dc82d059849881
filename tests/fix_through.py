"""`pytest --through=pgbouncer` and `--through=tls`: the same behaviours by another way.

What the tests ask the database themselves goes straight to it; what is under test goes through a
pooler in transaction mode with two connections, or over TLS that verifies the server. Tests that
ask no such server, or are of something that the way rules out, are not collected then:
`@pytest.mark.direct(way, reason=…)` says which and why.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from dagster_tools.embedded import Server
from tests.fix_pgbouncer import pooler
from tests.fix_servers import WAY, Database, Led, Way
from tests.fix_tls import speak_tls

SERVERS = {"dev_server", "prod_server"}
"""Fixtures of the servers that a way leads to."""

RULED_OUT = {"proxy", "pooled"}
"""Fixtures that are a way of their own."""


@contextmanager
def straight(server: Server) -> Iterator[Led]:
    yield lambda database: database


@contextmanager
def through_pgbouncer(server: Server) -> Iterator[Led]:
    with pooler(Database.of(server), connections=2) as running:

        def led(database: Database) -> Database:
            routed = running.route(database)
            return replace(routed, direct=(database.host, database.port))

        yield led


@contextmanager
def through_tls(server: Server) -> Iterator[Led]:
    with TemporaryDirectory() as folder:
        authority = speak_tls(server, Path(folder), "127.0.0.1")
        yield lambda database: replace(database, authority=str(authority))


WAYS: dict[str, Way] = {"direct": straight, "pgbouncer": through_pgbouncer, "tls": through_tls}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--through", choices=WAYS, default="direct", help="the way to the servers")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[WAY] = WAYS[config.getoption("--through")]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    way: str = config.getoption("--through")
    if way == "direct":
        return
    kept = [item for item in items if _goes(item, way)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def _goes(item: pytest.Item, way: str) -> bool:
    used = set(getattr(item, "fixturenames", ()))
    ruled_out = any(way in mark.args for mark in item.iter_markers("direct"))
    return bool(used & SERVERS) and not used & RULED_OUT and not ruled_out
