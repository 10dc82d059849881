"""Batches: a run that is cut off leaves whole batches, and the next begins where they end.

High watermark and rows are one transaction. Whatever ends a run, and wherever: what is there are
the batches up to the recorded one, and another run brings the rest, each row exactly once.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
import pytest

from dagster_tools.embedded import Binaries, Server
from dagster_tools.errors import DatabaseError
from dagster_tools.postgres import batches as batches_module
from dagster_tools.postgres.names import Table
from dagster_tools.sql import Batch, Batches
from tests.fix_proxy import Fault, Message, Point, Proxy
from tests.fix_servers import Database
from tests.oracle import fetch_catalog_entries
from tests.pipelines import manager_for, materialize
from tests.promises.loading import (
    LINES,
    judge,
    load_all,
    numbered,
    rows_of,
    several_tables,
    watermark,
)
from tests.promises.processes import CONTEXT, all_at_once, running
from tests.promises.test_a_retry_is_safe import drop_everything
from tests.promises.test_concurrent_writers_are_safe import in_a_thread, wait_for_a_waiting_writer
from tests.promises.test_readers_are_never_blocked import watching
from tests.promises.test_what_hangs_on_the_table_stays import DECORATED
from tests.promises.writing import NUMBERS, ids, numbers, write

UPSERT: dict[str, Any] = {"primary_key": "id", "incremental": True}


# --- killed ---------------------------------------------------------------------------------


def load_and_hang(database: Database, there: Any) -> None:
    """Load, and wait in the middle of batch 7 for the end."""

    def hang() -> None:
        there.set()
        time.sleep(600)

    load_all(database, Batches(numbered(10, at=7, act=hang)))


def test_a_run_killed_in_batch_seven_of_ten_leaves_six_and_the_next_begins_with_the_sixth(
    database,
):
    there, begins = CONTEXT.Event(), []
    with running(load_and_hang, database, there):
        assert there.wait(60)
        # The block's end is `kill -9`.

    assert judge(database) == 6
    load_all(database, Batches(lambda mark: begins.append(mark) or numbered(10)(mark)))
    assert begins == [6]
    assert judge(database) == 10


def test_a_server_that_stops_immediately_leaves_whole_batches_and_the_next_run_goes_on():
    with Server(binaries=Binaries.find(postgis=True)) as server:
        database = Database.of(server)
        source = numbered(4, at=3, act=server.stop_immediate)

        with pytest.raises(DatabaseError):
            load_all(database, Batches(source))

        server.start()
        assert judge(database) == 2
        load_all(database, Batches(numbered(4)))
        assert judge(database) == 4


# --- cut off at every message ---------------------------------------------------------------


@dataclass(frozen=True)
class Loading:
    """A load of three batches that is cut again and again.

    Args:
        share: One in so many messages is cut in the default run, and all around COMMIT.
    """

    share: int
    metadata: dict[str, Any] = field(default_factory=dict)
    replaces: bool = False
    tables: tuple[Any, ...] = (NUMBERS,)

    def __call__(self, database: Database) -> None:
        source = several_tables(3) if len(self.tables) > 1 else numbered(3)
        batches = Batches(source, delete="before_first_batch" if self.replaces else None)
        load_all(database, batches, *self.tables, **self.metadata)

    def prepare(self, database: Database) -> None:
        drop_everything(database)
        if self.replaces:
            write(database, BEFORE)


BEFORE = numbers(1, 2, label="before")

PARTS = 20
"""The sweep is of some hundred cuts; in one test they would take longer than one may."""

LOADINGS = {
    "append": Loading(share=150),
    "upsert": Loading(share=300, metadata=UPSERT),
    "delete before the first": Loading(share=300, replaces=True),
    "two tables": Loading(share=500, tables=(LINES, NUMBERS)),
}


@pytest.mark.parametrize("name", LOADINGS)
def test_a_load_that_lost_its_connection_left_whole_batches_and_another_run_brings_the_rest(
    database, proxy, name
):
    cut_and_go_on(database, proxy, LOADINGS[name], share=LOADINGS[name].share)


@pytest.mark.sweep
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", LOADINGS)
def test_a_load_that_lost_its_connection_at_any_message_left_whole_batches(
    database, proxy, name, part
):
    cut_and_go_on(database, proxy, LOADINGS[name], share=1, chosen=slice(part, None, PARTS))


def cut_and_go_on(
    database: Database,
    proxy: Proxy,
    loading: Loading,
    *,
    share: int,
    chosen: slice = slice(None),
) -> None:
    for fault in faults(record_messages(database, proxy, loading), share)[chosen]:
        loading.prepare(database)
        proxy.reset(fault)

        # Cut after the last batch is there, a load has nothing left that must not fail.
        with suppress(DatabaseError):
            loading(proxy.route(database))

        assert proxy.struck.is_set(), f"{fault} never came by"
        before = BEFORE if loading.replaces else None
        counts = {judge(database, table=table, before=before) for table in loading.tables}
        assert len(counts) == 1, f"{fault}: the tables came unequally far: {counts}"
        loading(database)
        assert {judge(database, table=table) for table in loading.tables} == {3}, str(fault)


def record_messages(database: Database, proxy: Proxy, loading: Loading) -> list[Message]:
    loading.prepare(database)
    proxy.reset()
    loading(proxy.route(database))
    (messages,) = proxy.sessions
    return messages


def faults(messages: list[Message], share: int) -> list[Fault]:
    """Choose where to cut: at one message in so many, and at each batch's COMMIT and its answer."""
    telling = points_at_commits(messages)
    sent_last = max(n for n, message in enumerate(messages) if message.point == telling[-1])
    return [
        Fault(action, message.point)
        for number, message in enumerate(messages[: sent_last + 1])
        for action in ("cut before", "cut after")
        if number % share == 0 or message.point in telling
    ]


def points_at_commits(messages: list[Message]) -> list[Point]:
    """Return the COMMITs that follow the recording of a high watermark, and what answers each."""
    found, marked = [], False
    for number, message in enumerate(messages):
        marked = marked or "excluded.high_watermark" in message.statement
        if marked and message.statement == "COMMIT":
            found += [m.point for m in messages[number : number + 2]]
            marked = False
    return found


@pytest.mark.parametrize("action", ["cut before", "cut after"])
def test_dagsters_own_retry_goes_on_where_the_first_attempt_was_cut_off(database, proxy, action):
    """Cut after its COMMIT, a batch is there, though the first attempt could not know."""
    begins: list[Any] = []

    @dg.asset(key_prefix="sales", name="numbers", retry_policy=dg.RetryPolicy(max_retries=1))
    def asset() -> Any:
        def source(high_watermark: Any) -> Any:
            begins.append(high_watermark)
            return numbered(3)(high_watermark)

        return Batches(source)

    def committed(asset: dg.AssetsDefinition) -> Point:
        proxy.reset()
        materialize(asset, manager_for(proxy.route(database)))
        [messages] = [one for one in proxy.sessions if points_at_commits(one)]
        return points_at_commits(messages)[2]

    point = committed(asset)
    drop_everything(database)
    begins.clear()
    proxy.reset(Fault(action, point))

    result = materialize(asset, manager_for(proxy.route(database)))

    assert result.success
    assert proxy.struck.is_set()
    assert begins == [None, 2 if action == "cut after" else 1]
    assert ids(database) == rows_of(1, 2, 3)


# --- between batches ------------------------------------------------------------------------


@pytest.mark.direct("pgbouncer", reason="whom the server drops is the pooler")
def test_after_a_long_pause_the_connection_is_opened_anew(database, monkeypatch):
    """What lies between may have dropped an idle one without a word; here the server did."""
    monkeypatch.setattr(batches_module, "IDLE_SECONDS", 0.0)

    def source(high_watermark: object) -> Any:
        for batch in numbered(3)(high_watermark):
            with closing(database.connect()) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND application_name = 'dagster-tools'"
                )
            yield batch

    load_all(database, Batches(source))

    assert judge(database) == 3


def test_without_a_pause_all_batches_share_a_connection(database):
    connections: list[Any] = []

    load_all(database, Batches(numbered(5)), connections=connections)

    assert len(connections) == 1


def test_between_batches_no_transaction_is_open_and_no_lock_is_held(database):
    states = []

    def source(high_watermark: object) -> Any:
        for batch in numbered(3)(high_watermark):
            with closing(database.connect()) as connection:
                states.append(
                    connection.execute(
                        "SELECT state, (SELECT count(*) FROM pg_locks AS l WHERE l.pid = a.pid)"
                        " FROM pg_stat_activity AS a"
                        " WHERE datname = current_database() AND application_name = 'dagster-tools'"
                    ).fetchall()
                )
            yield batch

    load_all(database, Batches(source))

    assert states == [[("idle", 0)]] * 3


def test_batches_are_loaded_through_a_pooler(database, pooled):
    load_all(pooled, Batches(several_tables(2)), LINES, NUMBERS)
    load_all(pooled, Batches(numbered(3)), **UPSERT)

    assert judge(database, pooled=True) == 3
    assert judge(database, table=LINES, pooled=True) == 2


# --- several at once ------------------------------------------------------------------------


def load_forty(database: Database, tables: tuple[Any, ...], _index: int, number: int) -> None:
    source = several_tables if len(tables) > 1 else numbered
    load_all(database, Batches(source(20 * (number + 1))), *tables)


@pytest.mark.parametrize("tables", [(NUMBERS,), (LINES, NUMBERS)], ids=["one table", "two tables"])
def test_processes_that_load_the_same_source_at_once_load_each_batch_once(database, tables):
    failures = all_at_once(load_forty, [(database, tables, index) for index in range(3)], rounds=2)

    assert failures == []
    assert {judge(database, table=table) for table in tables} == {40}


def test_runs_that_share_tables_in_another_order_end_in_no_deadlock(database, role):
    """Grants, too: one writer holds their lock while it commits, and nobody before."""
    users = [role().name]
    orders = [(LINES, NUMBERS), (NUMBERS, LINES), (NUMBERS,), (LINES,)]

    def load(number: int) -> None:
        """Each a partition of its own; all upsert the same rows, and take them from each other."""
        tables = orders[number]
        source = several_tables(12) if len(tables) > 1 else numbered(12)
        load_all(
            database,
            Batches(source),
            *tables,
            partition=str(number),
            users=users,
            **UPSERT,
        )

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(load, range(4)))

    with closing(database.connect()) as connection:
        [(deadlocks,)] = connection.execute(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        ).fetchall()
    assert deadlocks == 0


def test_a_load_that_waits_for_rows_of_its_second_table_keeps_no_grant_of_others_waiting(
    database, role
):
    """It grants what is lacking on the first one, too, but not before all rows are there."""
    load_all(database, Batches(several_tables(1)), LINES, NUMBERS, **UPSERT)
    users, other = [role().name], Table("sales", "other")

    with closing(database.connect(autocommit=False)) as holding:
        holding.execute("SELECT FROM sales.numbers FOR UPDATE")
        again = Batches(several_tables(1), start=None)
        with in_a_thread(
            lambda: load_all(database, changed(again), LINES, NUMBERS, users=users, **UPSERT)
        ):
            wait_for_a_waiting_writer(database)
            with in_a_thread(
                lambda: write(database, numbers(1), table=other, users=users)
            ) as beside:
                beside.join(20)
                granted_beside = not beside.is_alive()
                holding.rollback()

    assert granted_beside


def changed(batches: Batches) -> Batches:
    """Give the rows of a source other labels."""

    def source(high_watermark: object) -> Any:
        for batch in batches.function(high_watermark):
            number: Any = batch.high_watermark
            rows = numbers(*rows_of(number), label="changed")
            yield Batch({"numbers": rows, "lines": rows}, high_watermark=number)

    return Batches(source, start=batches.start)


def test_a_run_that_another_ends_under_keeps_what_it_loaded_itself(database):
    """The other finds nothing new and notes the end of the source, which is not the end here."""

    def source(high_watermark: int | None) -> Any:
        yield from numbered(1)(high_watermark)
        load_all(database, Batches(lambda _mark: ()))
        yield from numbered(2)(1)

    load_all(database, Batches(source, delete="before_first_batch"))

    assert judge(database) == 2


# --- readers, and what hangs on the table ---------------------------------------------------


def test_tables_of_a_batch_become_visible_together_to_whoever_looks(database):
    load_all(database, Batches(several_tables(1)), LINES, NUMBERS)
    look = "SELECT (SELECT count(*) FROM sales.lines), (SELECT count(*) FROM sales.numbers)"

    with watching(database, look) as watch:
        load_all(database, Batches(several_tables(15)), LINES, NUMBERS)

    assert watch.failures == []
    assert {(len(rows_of(n)) * n, len(rows_of(n)) * n) for n in range(1, 16)} >= set(watch.seen)
    assert len(set(watch.seen)) > 1


def test_readers_see_the_old_rows_until_the_first_new_batch_and_never_none(database):
    write(database, BEFORE)
    look = "SELECT min(label), count(*) FROM sales.numbers"

    with watching(database, look) as watch:
        for start in (None, None, None):
            load_all(database, Batches(numbered(3), delete="before_first_batch", start=start))

    allowed = {("before", 2), ("1", 2), ("1", 4), ("1", 6)}
    assert watch.failures == []
    assert set(watch.seen) <= allowed


@pytest.mark.parametrize("delete", [None, "before_first_batch"])
def test_while_a_batch_is_on_its_way_readers_wait_for_nothing(database, delete):
    write(database, BEFORE)
    seen = []

    def read() -> None:
        with closing(database.connect()) as connection:
            connection.execute("SET lock_timeout = '1s'")
            seen.append(connection.execute("SELECT count(*) FROM sales.numbers").fetchone())

    load_all(database, Batches(numbered(1, at=1, act=read), delete=delete))

    assert seen == [(2,)]


@pytest.mark.parametrize(
    "way",
    [{}, {"delete": "before_first_batch"}, {"on_duplicate": "last"}],
    ids=["append", "delete", "upsert"],
)
def test_all_that_hangs_on_a_table_survives_batches(database, role, way):
    role("reader")
    role("keeper")
    write(database, BEFORE, primary_key="id")
    with closing(database.connect()) as connection:
        connection.execute(DECORATED)
        before = fetch_catalog_entries(connection, ["sales"])

        metadata = UPSERT if "on_duplicate" in way else {"primary_key": "id"}
        load_all(database, Batches(numbered(3), **way), **metadata)

        after = fetch_catalog_entries(connection, ["sales"])
    assert {name for name in before | after if before.get(name) != after.get(name)} == set()
    assert watermark(database) == 3


# --- many -----------------------------------------------------------------------------------


@pytest.mark.parametrize("metadata", [{}, UPSERT], ids=["append", "upsert"])
def test_a_batch_does_not_read_what_all_before_it_have_recorded(database, metadata):
    count = 60

    load_all(database, Batches(numbered(count)), **metadata)

    with closing(database.connect()) as connection:
        [(read,)] = connection.execute(
            "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables"
            " WHERE relname = 'materializations'"
        ).fetchall()
    assert read < 15 * count
