"""Promise: a run that lost its connection anywhere loses no file and applies none twice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fix_proxy import Fault, Message, Point, Proxy
from tests.fix_servers import Database
from tests.graph import Drive, Graph
from tests.pipelines import manager_for, query
from tests.test_sharepoint_asset import resource_of, results_asset, rows, run


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
