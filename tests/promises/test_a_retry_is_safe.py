"""Promise 4: a run that lost its connection at any moment, COMMIT included, can be run again.

A proxy cuts the connection before and after each message of a write; an oracle then looks at
what is left (the old rows or the new ones, tracked and nothing else), and the same run writes
again. In the default run that is done at an evenly spread quarter of the messages, and at
all around COMMIT.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import pytest

from dagster_tools.errors import DatabaseError
from tests.fix_proxy import COPY_DATA, Fault, Message, Point, Proxy
from tests.fix_servers import Database
from tests.oracle import Oracle, State, oracle_of
from tests.promises.writing import NUMBERS, numbers, stream, write

SHARE = 4
"""One in so many messages is cut in the default run."""


@dataclass(frozen=True)
class Writing:
    """A write that is cut again and again.

    Args:
        act: Writes rows with a label into a database, in a run.
        prepare: Makes the database what the first write finds.
        forget: Undoes each write, where otherwise it would only be the first that is one.
    """

    act: Callable[[Database, str, str], object]
    prepare: Callable[[Database], None]
    forget: bool = False


def drop_everything(database: Database) -> None:
    with closing(database.connect()) as connection:
        connection.execute("DROP SCHEMA IF EXISTS sales, meta CASCADE")


def fill_partitions(database: Database) -> None:
    for partition in ("a", "b", "c"):
        write(database, numbers(1, 2, label="before"), partition=partition)


def replace(database: Database, label: str, run_id: str) -> None:
    # A stream in several parts, for the COPY to have a first, a middle and a last message.
    parts = [numbers(number, label=label) for number in (1, 2, 3)]
    write(database, stream(*parts), run_id=run_id, primary_key="id")


def replace_partition(database: Database, label: str, run_id: str) -> None:
    write(database, numbers(2, 3, label=label), partition="b", run_id=run_id)


WRITINGS = {
    "first write": Writing(replace, drop_everything, forget=True),
    "replace": Writing(replace, lambda database: replace(database, "before", "before")),
    "partition replace": Writing(replace_partition, fill_partitions),
}


@pytest.mark.parametrize("name", WRITINGS)
def test_a_run_that_lost_its_connection_can_be_run_again_and_the_data_is_there_exactly_once(
    database, proxy, name
):
    cut_and_run_again(database, proxy, WRITINGS[name], share=SHARE)


@pytest.mark.sweep
@pytest.mark.parametrize("name", WRITINGS)
def test_a_run_that_lost_its_connection_at_any_message_can_be_run_again(database, proxy, name):
    cut_and_run_again(database, proxy, WRITINGS[name], share=1)


def cut_and_run_again(database: Database, proxy: Proxy, writing: Writing, *, share: int) -> None:
    labels = ["c4nary 1", "c4nary 2"]
    with oracle_of(database, NUMBERS) as oracle:
        messages = record_messages(database, proxy, writing)
        states = rehearse(oracle, database, writing, labels)
        for number, fault in enumerate(plan_faults(messages, share)):
            if writing.forget:
                drop_everything(database)
            old, new = oracle.look(), states[labels[number % 2]]
            label, run_id = labels[number % 2], f"run {number}"
            proxy.reset(fault)

            error = failure_of(writing, proxy.route(database), label, run_id)

            assert proxy.struck.is_set(), f"{fault} never came by"
            told = commits_sent(proxy) == commits(messages)
            found = oracle.judge(old=old, new=new, run_id=run_id, returned=error is None, told=told)
            assert isinstance(error, DatabaseError), f"{fault}: {error!r}"
            assert "c4nary" not in "".join(traceback.format_exception(error))
            writing.act(database, label, run_id)
            assert oracle.rows() == new.rows, f"after {fault} and another attempt"
            assert oracle.recorded(run_id) == 1 + (found == new)


def record_messages(database: Database, proxy: Proxy, writing: Writing) -> list[Message]:
    writing.prepare(database)
    proxy.reset()
    writing.act(proxy.route(database), "recorded", "recorded")
    (messages,) = proxy.sessions
    return messages


def rehearse(
    oracle: Oracle, database: Database, writing: Writing, labels: list[str]
) -> dict[str, State]:
    """Return what is there after an undisturbed write of each label; of the last one, now."""
    states = {}
    for label in labels:
        writing.act(database, label, "rehearsal")
        states[label] = oracle.look()
    return states


def plan_faults(messages: list[Message], share: int) -> list[Fault]:
    """Choose where to cut: of the COPY data the first, a middle and the last message."""
    data = [message for message in messages if is_data(message)]
    kept = {data[0], data[len(data) // 2], data[-1]}
    # What comes after the server's last word is the orderly end of the connection.
    last = max(n for n, message in enumerate(messages) if message.point.direction == "backend")
    points = [m.point for m in messages[: last + 1] if m in kept or not is_data(m)]
    every = [Fault(action, point) for point in points for action in ("cut before", "cut after")]
    telling = points_around_commit(messages)
    # After the last message nothing is left that could fail.
    return [
        fault
        for number, fault in enumerate(every[:-1])
        if number % share == 0 or fault.point in telling
    ]


def points_around_commit(messages: list[Message]) -> set[Point]:
    commit = max(n for n, message in enumerate(messages) if message.statement == "COMMIT")
    return {message.point for message in messages[commit - 1 :]}


def is_data(message: Message) -> bool:
    return message.kind == COPY_DATA and message.point.direction == "frontend"


def failure_of(writing: Writing, database: Database, label: str, run_id: str) -> Exception | None:
    try:
        writing.act(database, label, run_id)
    except Exception as error:  # noqa: BLE001  # what it is is for the test to say
        return error
    return None


def commits(messages: list[Message]) -> int:
    return sum(message.statement == "COMMIT" for message in messages)


def commits_sent(proxy: Proxy) -> int:
    """Count the COMMITs that reached the server: the cut one came by, but may not have."""
    (messages,) = proxy.sessions
    held_back = proxy.fault is not None and proxy.fault.action == "cut before"
    return commits(messages[:-1] if held_back and is_last(proxy, messages) else messages)


def is_last(proxy: Proxy, messages: list[Message]) -> bool:
    return proxy.fault is not None and messages[-1].point == proxy.fault.point
