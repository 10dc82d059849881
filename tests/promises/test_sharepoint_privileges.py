"""Promise 10: SharePoint is followed as a role that may do no more than it takes, and says what."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import pytest

from dagster_tools.errors import DatabaseError
from dagster_tools.postgres.connection import ConnectionSettings, connect, transaction
from dagster_tools.postgres.feed import FeedTables
from dagster_tools.postgres.feed_rows import Delivery, Failure
from tests.fix_servers import Database, Role
from tests.graph import Drive, Graph
from tests.pipelines import manager_for
from tests.promises.test_least_privilege import run as administer
from tests.promises.writing import settings_of
from tests.test_sharepoint_asset import failure, resource_of, results_asset, rows, run


def test_a_role_that_owns_nothing_but_its_schemas_follows_sharepoint(
    graph: Graph, drive: Drive, database, role
):
    writer: Role = role("writer")
    administer(
        database,
        f"REVOKE CREATE ON DATABASE {database.dbname} FROM PUBLIC",
        "CREATE SCHEMA lab AUTHORIZATION writer",
        "CREATE SCHEMA meta AUTHORIZATION writer",
    )
    own = database.as_role(writer)
    resources = {
        "sharepoint": resource_of(graph, own),
        "postgres_io_manager": manager_for(own, schema="lab"),
    }
    asset = results_asset([], on_file_error="quarantine")
    for content in ("x\n1\n", "", "x\n2\n"):
        drive.write("/Results/a.csv", content)

        result = run(asset, resources)

        assert result.success, failure(result)
    assert rows(database) == [(2,)]


# --- what it takes --------------------------------------------------------------------------


def test_the_grants_that_an_error_names_are_enough_and_none_of_them_is_too_much(database, role):
    poor = role("poor")
    administer(
        database,
        "CREATE SCHEMA meta",
        f"REVOKE TEMPORARY ON DATABASE {database.dbname} FROM PUBLIC",
    )
    follow(database, database, "made by another role")

    granted = ask_for_grants(database, database.as_role(poor), database.as_role(poor))

    assert len(granted) < 4
    for privilege in single(granted):
        administer(database, f"REVOKE {privilege} FROM poor")
        with pytest.raises(DatabaseError, match="Ask an administrator for: GRANT"):
            follow(database.as_role(poor), database.as_role(poor), privilege)
        administer(database, f"GRANT {privilege} TO poor")


def test_a_writer_that_is_not_the_feeds_role_is_told_what_it_takes_to_acknowledge(database, role):
    writer = role("writer")
    follow(database, database, "made by the feed's role")

    granted = ask_for_grants(database, database, database.as_role(writer))

    assert [each for each in granted if "CREATE" in each or "TEMPORARY" in each] == []
    for privilege in single(granted):
        administer(database, f"REVOKE {privilege} FROM writer")
        with pytest.raises(DatabaseError, match="Ask an administrator for: GRANT"):
            follow(database, database.as_role(writer), privilege)
        administer(database, f"GRANT {privilege} TO writer")


def test_who_only_looks_needs_no_more_than_to_read(database, role):
    reader = role("reader")
    follow(database, database, "made by another role")
    with pytest.raises(DatabaseError, match="GRANT USAGE ON SCHEMA meta TO"):
        feed_of(database.as_role(reader)).status()
    administer(
        database,
        "GRANT USAGE ON SCHEMA meta TO reader",
        "GRANT SELECT ON ALL TABLES IN SCHEMA meta TO reader",
    )

    assert [each.asset_key for each in feed_of(database.as_role(reader)).status()] == ["asset"]


def test_where_the_tables_cannot_be_made_the_error_names_the_grant(database, role):
    poor = role("poor")
    administer(database, "CREATE SCHEMA meta", "GRANT USAGE ON SCHEMA meta TO poor")

    with pytest.raises(DatabaseError, match='GRANT CREATE ON SCHEMA meta TO "poor"'):
        follow(database.as_role(poor), database.as_role(poor), "")


def ask_for_grants(database: Database, feed: Database, writer: Database) -> list[str]:
    """Grant what errors name until there is none; return it, a text for each time."""
    granted: list[str] = []
    while (grants := refusal(feed, writer, f"after {len(granted)} times")) is not None:
        assert grants not in granted
        administer(database, *grants.split("; "))
        granted.append(grants)
    return granted


def refusal(feed: Database, writer: Database, address: str) -> str | None:
    """Return the grants that an error asks for; None where there is none."""
    try:
        follow(feed, writer, address)
    except DatabaseError as error:
        return str(error).split("Ask an administrator for: ")[1]
    return None


def single(granted: Sequence[str]) -> list[str]:
    """Return each privilege on each object by itself, as GRANT and REVOKE call it."""
    found = re.findall(r"GRANT ([A-Z, ]+) ON ([A-Z]+ \S+) TO", " ".join(granted))
    return [f"{name} ON {thing}" for names, thing in found for name in names.split(", ")]


# --- all that is ever done to the feed ------------------------------------------------------


def feed_of(database: Database) -> FeedTables:
    return FeedTables(settings_of(database), "meta")


def follow(feed: Database, writer: Database, address: str) -> None:
    """Do all that is done to the feed's tables, some of it as the one who writes rows.

    Args:
        address: Words of a watch that nobody had before.
    """
    store, drive = feed_of(feed), "a drive"
    library = (drive, "Documents", "https://contoso/lab", "a site", "Lab", "https://contoso")
    store.remember(address, "", library)
    store.remember(address, "", library)
    store.address(address, "")
    store.begin("asset", "all of it")
    for version in ("1", "2"):
        take_in(store, drive, [item("root", "folder"), item("a", "file", version)], full=True)
    take_in(store, drive, [item("a", "deleted")], full=False)
    with store.reading() as view:
        link, generation, *_ = view.library_states([drive])[drive]
        view.folders(drive)
        view.quarantined("asset")
        list(view.compared("asset", drive, ["root"]))
    store.advance(drive, generation, link)
    failed = Failure("asset", drive, "a", "1", "/a", "", 1, "no CSV", None, quarantined=True)
    for _time in range(2):
        store.fail([failed])
    deliver(store, writer, delivery_of(store, drive))
    store.settle(delivery_of(store, drive))
    store.note_pending({"asset": 7})
    store.recover("asset", "another run")
    for claim_id, end in (
        ("00000000-0000-0000-0000-000000000001", store.confirm),
        ("00000000-0000-0000-0000-000000000002", store.doubt),
    ):
        store.hand_over(claim_id, delivery_of(store, drive))
        end("asset", claim_id)
    store.reset_asset("asset")
    store.reset_library(drive)
    store.forget(address, "")


def item(item_id: str, kind: str, version: str | None = None) -> list[Any]:
    parent = "root" if kind == "file" else None
    return [item_id, kind, parent, item_id, version, *[None] * 7]


def take_in(store: FeedTables, drive: str, listed: list[list[Any]], *, full: bool) -> None:
    with store.reading() as view:
        _link, generation, *_ = view.library_states([drive])[drive]
    with store.taking_in(drive, generation, listed) as incoming:
        assert incoming is not None
        incoming.folders()
        incoming.displaced()
        incoming.apply(full=full, link="a link")


def delivery_of(store: FeedTables, drive: str) -> Delivery:
    with store.reading() as view:
        token, deliveries, *_ = view.asset("asset") or ()
    file = [drive, "a", "1", "/a", "", 1, None, None, None]
    return Delivery(
        asset_key="asset",
        run_id="a run",
        token=token,
        deliveries=deliveries,
        watch="all of it",
        files=[file],
        gone=[(drive, "b")],
        clean=None,
    )


def deliver(store: FeedTables, writer: Database, delivery: Delivery) -> None:
    settings: ConnectionSettings = settings_of(writer)
    with closing(connect(settings)) as connection, transaction(connection):
        store.deliver(connection, delivery)
