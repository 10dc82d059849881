"""Fixtures: an emulator of Microsoft Graph for each test, and tests that are coroutines."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any

import pytest

from dagster_tools.sharepoint import ClientSecret, Cloud, GraphClient, Library, Retry, Site
from dagster_tools.sharepoint.throttle import Pause
from tests.graph import Drive, Graph

HASTY = Retry(shortest_pause=0.001, longest_pause=0.01)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function, in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> Iterator[Graph]:
    """A tenant with nothing but its root site."""
    # The port may be that of an earlier one, which asked to be left alone.
    monkeypatch.setattr(Pause, "_of", {})
    with Graph() as started:
        yield started


@pytest.fixture
def drive(graph: Graph) -> Drive:
    """The default library of the site Lab Data at /sites/lab."""
    return graph.site("/sites/lab", "Lab Data").library()


def client_of(graph: Graph, **options: Any) -> GraphClient:
    """Return a client of the emulator that signs in with the app's secret."""
    identity = graph.identity
    credentials = ClientSecret(identity.tenant, identity.client_id, identity.secret)
    return GraphClient(
        **{
            "credentials": credentials,
            "cloud": Cloud(graph.url, graph.url),
            "retry": HASTY,
            "ca_file": str(graph.ca_file),
            **options,
        }
    )


def library_of(drive: Drive) -> Library:
    """Return what the client would find out about a drive."""
    site = Site("the site's id", "Lab Data", "https://contoso.sharepoint.com/sites/lab")
    return Library(drive.id, drive.name, drive.url, site)
