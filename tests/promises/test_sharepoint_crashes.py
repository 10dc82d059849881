"""Promise: a run that ends anywhere loses no file and applies none twice.

It loses its connection to the database at a message of the write, or its process is killed.
"""

from __future__ import annotations

import inspect
import pkgutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from dagster_tools.errors import DatabaseError
from dagster_tools.postgres.feed import FeedTables
from tests.fix_proxy import Fault, Message, Point, Proxy
from tests.fix_servers import Database
from tests.graph import Drive, Graph
from tests.pipelines import manager_for, query
from tests.promises.processes import CONTEXT, running
from tests.promises.writing import settings_of
from tests.sharepoint.test_feed import Follower, told
from tests.test_sharepoint_asset import (
    metadata,
    resource_of,
    resources,
    results_asset,
    rows,
    run,
)

__all__ = ["resources"]

SECONDS = 60.0
TERMINATE = "X"


def test_what_is_stored_and_what_was_delivered_are_one_whenever_the_connection_breaks(
    database, graph, drive, proxy
):
    cut_and_run_again(database, graph, drive, proxy, share=100)


@pytest.mark.sweep
def test_what_is_stored_and_what_was_delivered_are_one_at_every_message(
    database, graph, drive, proxy
):
    cut_and_run_again(database, graph, drive, proxy, share=1)


def cut_and_run_again(
    database: Database, graph: Graph, drive: Drive, proxy: Proxy, *, share: int
) -> None:
    resources = {
        "sharepoint": resource_of(graph, database),
        "postgres_io_manager": manager_for(proxy.route(database), schema="lab"),
    }
    calls: list[dict[str, str]] = []
    asset = results_asset(calls)
    for value in (1, 2):
        drive.write("/Results/a.csv", f"x\n{value}\n")
        proxy.reset()
        assert run(asset, resources).success
    for number, fault in enumerate(plan_faults(proxy.sessions[0], share), start=3):
        drive.write("/Results/a.csv", f"x\n{number}\n")
        proxy.reset(fault)

        result = run(asset, resources)

        assert proxy.struck.is_set(), f"{fault} never came by"
        assert not result.success
        (stored,) = rows(database)
        assert stored in {(number - 1,), (number,)}
        assert delivered(database, drive) == (stored == (number,)), f"{fault}"
        called = len(calls)
        assert run(asset, resources).success
        assert len(calls) == called + (stored != (number,)), f"{fault}"
        assert rows(database) == [(number,)]


def delivered(database: Database, drive: Drive) -> bool:
    """Tell whether the file's newest version counts as delivered."""
    found = query(database, "SELECT etag FROM meta.sharepoint_delivered")
    return found == [(drive["/Results/a.csv"].etag,)]


def plan_faults(messages: list[Message], share: int) -> Iterator[Fault]:
    """Yield cuts between the first word of the acknowledgement and the answer to COMMIT."""
    sent = [each for each in messages if each.point.direction == "frontend"]
    begins = next(each for each in sent if "sharepoint_assets" in each.statement)
    commit = next(
        each
        for each in sent
        if each.statement == "COMMIT" and each.point.number > begins.point.number
    )
    first, last = messages.index(begins), messages.index(commit)
    points = [each.point for each in messages[first : last + 1 : share]]
    points += [commit.point, answer_to(messages, last)]
    for point in points:
        yield Fault("cut before", point)
        yield Fault("cut after", point)


def answer_to(messages: list[Message], position: int) -> Point:
    return next(m.point for m in messages[position:] if m.point.direction == "backend")


# --- taking in ------------------------------------------------------------------------------


async def test_what_changed_is_taken_in_whole_or_not_at_all_whenever_the_connection_breaks(
    database, graph, drive, proxy
):
    await cut_and_take_in_again(database, graph, drive, proxy, share=23)


@pytest.mark.sweep
async def test_what_changed_is_taken_in_whole_or_not_at_all_at_every_message(
    database, graph, drive, proxy
):
    await cut_and_take_in_again(database, graph, drive, proxy, share=1)


async def cut_and_take_in_again(
    database: Database, graph: Graph, drive: Drive, proxy: Proxy, *, share: int
) -> None:
    follower = Follower(graph, drive, FeedTables(settings_of(database), "meta"))
    cut_off = Follower(graph, drive, FeedTables(settings_of(proxy.route(database)), "meta"))
    drive.write("/Results/a.csv", "0")
    drive.write("/Results/b.csv", "0")
    await follower.follow()
    drive.write("/Results/a.csv", "1")
    drive.rename("/Results/b.csv", "c.csv")
    proxy.reset()
    await cut_off.take_in()
    await follower.follow()
    # The last word of a session may come by when nobody waits for it any more.
    messages = [each for each in max(proxy.sessions, key=len) if each.kind != TERMINATE]
    points = [messages[place].point for place in range(0, len(messages), share)]
    (commit,) = [each.point for each in messages if each.statement == "COMMIT"]
    points += [commit, answer_to(messages, [m.point for m in messages].index(commit))]
    for number, fault in enumerate(
        (Fault(action, point) for point in points for action in ("cut before", "cut after")), 3
    ):
        name = "b.csv" if number % 2 else "c.csv"
        drive.write("/Results/a.csv", str(number))
        drive.rename("/Results/c.csv" if number % 2 else "/Results/b.csv", name)
        before = follower.stored()
        proxy.reset(fault)

        # What is cut after the last word of a connection does no harm.
        with suppress(DatabaseError):
            await cut_off.take_in()

        assert proxy.struck.is_set(), f"{fault} never came by"
        changes = {"/Results/a.csv": "changed", f"/Results/{name}": "renamed"}
        # In this order: a COMMIT that was sent may come through in between.
        assert follower.stored() == before or told(follower.work()) == changes, f"{fault}"
        assert await follower.follow() == changes, f"{fault}"


# --- processes that are killed --------------------------------------------------------------


BEFORE_COMMIT = {
    "a page of what changed has come": "sharepoint.feed:_Enumeration.add",
    "what changed is in the tables and not committed": "postgres.feed_listing:Listing.apply",
    "what changed was taken in": "sharepoint_run:bring_up_to_date",
    "the function has read a file": "sharepoint.files:SharePointFile.read_csv",
    "rows and files are written and not committed": "postgres.feed:FeedTables.deliver",
}
"""What has just been done when the process is killed."""


@pytest.mark.parametrize("moment", BEFORE_COMMIT)
def test_a_run_whose_process_is_killed_before_commit_loses_nothing(
    database, graph, drive, resources, moment
):
    calls: list[dict[str, str]] = []
    asset = results_asset(calls)
    fill_and_change(drive, lambda: run(asset, resources))

    kill_after(BEFORE_COMMIT[moment], graph, database, folder=None)

    assert rows(database) == [(1,), (10,)]
    del calls[:]
    assert [run(asset, resources).success for _time in range(2)] == [True, True]
    assert calls == [{"/Results/a.csv": "changed", "/Results/b.csv": "deleted"}]
    assert rows(database) == [(2,)]


def test_what_a_run_has_committed_whose_process_is_killed_then_is_not_applied_twice(
    database, graph, drive, resources, tmp_path
):
    calls: list[dict[str, str]] = []
    asset = results_asset(calls)
    fill_and_change(drive, lambda: run(asset, resources))

    done = "postgres_io_manager:PostgresIOManager.handle_output"
    kill_after(done, graph, database, folder=tmp_path)

    assert rows(database) == [(2,)]
    del calls[:]
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        (killed,) = instance.get_runs()
        first, second = [run(asset, resources, instance=instance) for _time in range(2)]
    assert (first.success, second.success, calls) == (True, True, [])
    assert metadata(first)["sharepoint/recovered_from_run_id"] == killed.run_id
    assert "sharepoint/recovered_from_run_id" not in metadata(second)
    assert rows(database) == [(2,)]


def fill_and_change(drive: Drive, run_it: Callable[[], Any]) -> None:
    drive.write("/Results/a.csv", "x\n1\n")
    drive.write("/Results/b.csv", "x\n10\n")
    assert run_it().success
    drive.write("/Results/a.csv", "x\n2\n")
    drive.delete("/Results/b.csv")


def kill_after(done: str, graph: Graph, database: Database, folder: Path | None) -> None:
    """Run the asset in a process that is killed when it has done something.

    Args:
        done: The module and name of a function that has returned then.
        folder: Of Dagster's instance, where what it knows of the run is to be seen later.
    """
    reached = CONTEXT.Event()
    with running(run_until, done, reached_by(graph), database, folder, reached) as process:
        assert reached.wait(SECONDS), "it was not done"
        process.kill()
        process.join()


def run_until(done: str, graph: Any, database: Database, folder: Path | None, reached: Any) -> None:
    module, _, path = done.partition(":")
    *names, name = path.split(".")
    owner = pkgutil.resolve_name(f"dagster_tools.{module}:{'.'.join(names)}")
    setattr(owner, name, stopping_after(getattr(owner, name), reached))
    instance = dg.DagsterInstance.local_temp(str(folder)) if folder else None
    run(results_asset([]), resources_of(graph, database), instance=instance)


def stopping_after(function: Callable[..., Any], reached: Any) -> Callable[..., Any]:
    def stop() -> None:
        reached.set()
        time.sleep(SECONDS)

    def plain(*arguments: Any, **named: Any) -> None:
        function(*arguments, **named)
        stop()

    async def asynchronous(*arguments: Any, **named: Any) -> None:
        await function(*arguments, **named)
        stop()

    return asynchronous if inspect.iscoroutinefunction(function) else plain


def resources_of(graph: Any, database: Database) -> dict[str, Any]:
    return {
        "sharepoint": resource_of(graph, database),
        "postgres_io_manager": manager_for(database, schema="lab"),
    }


def reached_by(graph: Graph) -> Any:
    """Return what another process needs to know of the emulator."""
    identity = graph.identity
    known = {name: getattr(identity, name) for name in ("tenant", "client_id", "secret")}
    return SimpleNamespace(url=graph.url, ca_file=graph.ca_file, identity=SimpleNamespace(**known))
