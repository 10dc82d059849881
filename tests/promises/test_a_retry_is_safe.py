"""Promise 4: a run that lost its connection at any moment, COMMIT included, can be run again.

A proxy cuts the connection before and after each message of a write; an oracle then looks at
what is left (the old rows or the new ones, tracked and nothing else), and the same run writes
again. In the default run that is done at an evenly spread share of the messages, and at all around
COMMIT.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from dagster_tools.errors import DatabaseError
from dagster_tools.postgres.deletion import Keys
from dagster_tools.postgres.names import MATERIALIZATION_ID, Table
from dagster_tools.sql import SQL, Query
from tests.fix_proxy import COPY_DATA, Fault, Message, Point, Proxy
from tests.fix_servers import Database
from tests.oracle import Oracle, State, oracle_of
from tests.pipelines import manager_for
from tests.promises.writing import NUMBERS, ids, numbers, run, stream, write


@dataclass(frozen=True)
class Writing:
    """A write that is cut again and again.

    Args:
        act: Writes rows with a label into a database, in a run.
        prepare: Makes the database what the first write finds.
        forget: Undoes each write, where otherwise it would only be the first that is one.
        once: The run finds what it committed, and does nothing then.
    """

    act: Callable[[Database, str, str], object]
    prepare: Callable[[Database], object]
    forget: bool = False
    once: bool = False


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


def upsert(database: Database, label: str, run_id: str) -> None:
    """One row stays as it is, two change."""
    rows = pa.concat_tables([numbers(1), numbers(2, 3, label=label)])
    write(database, rows, run_id=run_id, primary_key="id", incremental=True)


def delete_then_insert(database: Database, label: str, run_id: str) -> None:
    deletion = Keys(("id",), numbers(2, 3).select(["id"]))
    write(database, numbers(2, 3, label=label), run_id=run_id, delete=deletion)


def replace_by_query(database: Database, label: str, run_id: str) -> None:
    query = "SELECT id, %(label)s AS label FROM generate_series(1, 3) AS id"
    run(database, Query(query, label=label), run_id=run_id)


def create_by_query(database: Database, label: str, run_id: str) -> None:
    """Run twice, it would find the table there."""
    query = "CREATE TABLE sales.numbers AS SELECT 1 AS id, %(label)s AS label, NULL::integer AS {}"
    run(database, Query(query.format(MATERIALIZATION_ID), label=label), run_id=run_id)


def run_statements(database: Database, label: str, run_id: str) -> None:
    """Run twice, the numbers would have the sign they had."""
    statements = """
        UPDATE sales.numbers SET id = -id, label = %(label)s;
        CREATE OR REPLACE VIEW sales.labels AS SELECT DISTINCT label FROM sales.numbers;
    """
    run(database, SQL(statements, label=label), run_id=run_id)


def drop_the_table(database: Database) -> None:
    drop_everything(database)
    with closing(database.connect()) as connection:
        connection.execute("CREATE SCHEMA sales")


def fill(database: Database) -> None:
    write(database, numbers(1, 2, 3), primary_key="id")


SHARE = 12
"""One in so many messages is cut in the default run."""

WRITINGS = {
    "first write": Writing(replace, drop_everything, forget=True),
    "replace": Writing(replace, lambda database: replace(database, "before", "before")),
    "partition replace": Writing(replace_partition, fill_partitions),
    "upsert": Writing(upsert, fill),
    "delete, then insert": Writing(delete_then_insert, fill),
    "Query of rows": Writing(replace_by_query, fill),
    "Query of DDL": Writing(create_by_query, drop_the_table, forget=True, once=True),
    "SQL": Writing(run_statements, fill, once=True),
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
                writing.prepare(database)
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
            assert oracle.recorded(run_id) == 1 + (found == new and not writing.once)


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
        if writing.forget:
            writing.prepare(database)
        writing.act(database, label, f"rehearsal of {label}")
        states[label] = oracle.look()
    return states


def plan_faults(messages: list[Message], share: int) -> list[Fault]:
    """Choose where to cut: of the COPY data the first, a middle and the last message."""
    data = [message for message in messages if is_data(message)]
    kept = {data[0], data[len(data) // 2], data[-1]} if data else set()
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


# --- Dagster's own retry ---------------------------------------------------------------------


def commit_of(database: Database, proxy: Proxy, asset: dg.AssetsDefinition) -> Point:
    """Materialize an asset, and return where in its connection the last COMMIT was sent."""
    proxy.reset()
    manager = manager_for(proxy.route(database))
    assert dg.materialize([asset], resources={"io_manager": manager}).success
    sent = [m for messages in proxy.sessions for m in messages if m.statement == "COMMIT"]
    return sent[-1].point


@pytest.mark.parametrize("action", ["cut before", "cut after"])
def test_dagsters_own_retry_writes_the_rows_exactly_once_though_commit_was_lost(
    database, proxy, action
):
    """Cut after it, the rows were committed and the first attempt could not know."""

    @dg.asset(key_prefix="sales", name="numbers", retry_policy=dg.RetryPolicy(max_retries=1))
    def asset() -> Any:
        return numbers(1, 2, 3)

    commit_of(database, proxy, asset)
    proxy.reset(Fault(action, commit_of(database, proxy, asset)))
    manager = manager_for(proxy.route(database))

    result = dg.materialize([asset], resources={"io_manager": manager})

    assert result.success
    assert proxy.struck.is_set()
    assert ids(database) == [1, 2, 3]
    with oracle_of(database, NUMBERS, asset_key="sales/numbers") as oracle:
        assert oracle.recorded(result.run_id) == (2 if action == "cut after" else 1)


@pytest.mark.parametrize("action", ["cut before", "cut after"])
def test_statements_are_not_run_again_by_the_retry_of_a_run_that_committed_them(
    database, proxy, action
):
    """An INSERT that ran twice would show; three runs are three rows, whatever was lost."""
    with closing(database.connect()) as connection:
        connection.execute("CREATE TABLE public.runs (id serial)")

    @dg.asset(name="statements", retry_policy=dg.RetryPolicy(max_retries=1))
    def asset() -> SQL:
        return SQL("INSERT INTO public.runs DEFAULT VALUES")

    commit_of(database, proxy, asset)
    proxy.reset(Fault(action, commit_of(database, proxy, asset)))
    manager = manager_for(proxy.route(database))

    result = dg.materialize([asset], resources={"io_manager": manager})

    assert result.success
    assert proxy.struck.is_set()
    assert len(ids(database, Table("public", "runs"))) == 3


# --- a connection that hangs -----------------------------------------------------------------


def test_a_connection_that_hangs_in_the_middle_blocks_no_reader_and_can_be_run_again_once_cut(
    database, proxy
):
    write(database, numbers(1, 2))
    proxy.reset()
    write(proxy.route(database), numbers(1, 2))
    copying = next(m.point for m in proxy.sessions[0] if is_data(m))
    proxy.reset(Fault("stall", copying))
    errors: list[Exception | None] = []
    hanging = Writing(lambda through, *_: write(through, numbers(3), run_id="hangs"), print)
    writer = threading.Thread(
        target=lambda: errors.append(failure_of(hanging, proxy.route(database), "", ""))
    )

    with oracle_of(database, NUMBERS) as oracle:
        old = oracle.look()
        writer.start()
        assert proxy.struck.wait(20)
        seen_meanwhile = ids(database)
        oracle.connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = 'dagster-tools'"
        )
        proxy.heal()
        writer.join(20)

        oracle.judge(old=old, new=State({}), run_id="hangs", returned=False)
    assert seen_meanwhile == [1, 2]
    assert isinstance(errors[0], DatabaseError)
    write(database, numbers(3), run_id="hangs")
    assert ids(database) == [3]
