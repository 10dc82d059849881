"""The feed: what libraries hold is taken in, compared and delivered, in a real PostgreSQL."""

from __future__ import annotations

import asyncio
from datetime import datetime, timezone
from typing import Any

import psycopg
import pytest

from dagster_tools.errors import SharePointError
from dagster_tools.postgres import feed_rows as tables
from dagster_tools.postgres.connection import ConnectionSettings
from dagster_tools.postgres.feed import FeedTables
from dagster_tools.postgres.feed_view import FeedView
from dagster_tools.sharepoint import Suffix, Watch
from dagster_tools.sharepoint.feed import ITEM_FIELDS, Claim, Delivered, Watched, find_work, take_in
from tests.fix_graph import client_of, library_of
from tests.fix_servers import Database
from tests.graph import Drive, Graph
from tests.graph.faults import asking_for_resync, delayed, failing, looping, meanwhile
from tests.graph.resources import quick_xor_hash

OLD = datetime(2020, 1, 1, tzinfo=timezone.utc)


@pytest.fixture
def database(cleaned_database: Database) -> Database:
    """A database with nothing in it, the module's own."""
    return cleaned_database


@pytest.fixture
def store(database: Database) -> FeedTables:
    return FeedTables(ConnectionSettings(**database.settings()), "meta")


@pytest.fixture
def follower(graph: Graph, drive: Drive, store: FeedTables) -> Follower:
    return Follower(graph, drive, store)


class Follower:
    """Takes in, and delivers to an asset that watches `/Results/*.csv`."""

    WATCH = Watch("/sites/lab", "/Results", filters=[Suffix(".csv")])
    page_size = 200

    def __init__(self, graph: Graph, drive: Drive, store: FeedTables) -> None:
        self.graph, self.store = graph, store
        self.library = library_of(drive)
        site = self.library.site
        row = (*[drive.id, drive.name, drive.url], site.id, site.name, site.url)
        store.remember("/sites/lab", "", row)

    async def take_in(self, **options: Any) -> None:
        async with client_of(self.graph, page_size=self.page_size) as client:
            await take_in(client, self.library, self.store, **options)

    def stored(self) -> list[Any]:
        """Return all that is known of the library."""
        drive_id = self.library.drive_id
        with self.store.reading() as view:
            folders = list(view.folders(drive_id))
            compared = view.compared("nobody", drive_id, [row[0] for row in folders])
            files = [item for item, _ in compared]
            return [
                *view.library_states([drive_id])[drive_id],
                *sorted([*folders, *files], key=str),
            ]

    def work(self, watch: Watch = WATCH, **options: Any) -> Claim:
        with self.store.reading() as view:
            return find_work(view, "asset", [Watched(watch, self.library)], **options)

    def deliver(self, claim: Claim) -> None:
        self.store.begin("asset", "")
        with self.store.reading() as view:
            token, deliveries, *_ = view.asset("asset") or ()
        delivery = tables.Delivery(
            asset_key="asset",
            run_id="run",
            token=token,
            deliveries=claim.state.deliveries if claim.state else deliveries,
            watch="",
            files=[each.now for each in claim.files if each.now],
            gone=[(e.file.drive_id, e.file.id) for e in claim.files if e.now is None],
            clean=claim.signature,
        )
        with psycopg.connect(
            **_keywords(self.store), cursor_factory=psycopg.RawCursor
        ) as connection:
            self.store.deliver(connection, delivery)

    async def follow(self, **options: Any) -> dict[str, str]:
        """Take in, deliver, and return what happened to which path."""
        await self.take_in()
        claim = self.work(**options)
        self.deliver(claim)
        return told(claim)


def _keywords(store: FeedTables) -> dict[str, Any]:
    return {k: v for k, v in store.settings.keywords().items() if k != "application_name"}


def told(claim: Claim) -> dict[str, str]:
    return {each.file.path: each.file.change for each in claim.files}


def test_the_columns_of_the_tables_are_the_fields_of_items_and_of_what_was_delivered():
    assert tables.ITEM_COLUMNS == ITEM_FIELDS
    assert Delivered._fields == tables.DELIVERED_COLUMNS


async def test_a_created_changed_moved_renamed_or_deleted_file_is_delivered_once(follower, drive):
    drive.write("/Results/a.csv", "1")
    drive.write("/Results/b.csv", "1")
    drive.write("/Results/notes.txt", "1")
    drive.write("/Elsewhere/c.csv", "1")
    assert await follower.follow() == {
        "/Results/a.csv": "created",
        "/Results/b.csv": "created",
    }

    drive.write("/Results/a.csv", "2")
    drive.rename("/Results/b.csv", "B2.csv")
    drive.move("/Elsewhere/c.csv", "/Results/new")

    assert await follower.follow() == {
        "/Results/a.csv": "changed",
        "/Results/B2.csv": "renamed",
        "/Results/new/c.csv": "created",
    }
    drive.move("/Results/new/c.csv", "/Results")
    drive.delete("/Results/a.csv")
    assert await follower.follow() == {"/Results/a.csv": "deleted", "/Results/c.csv": "moved"}
    assert await follower.follow() == {}


async def test_a_file_that_leaves_the_folder_or_the_filter_is_deleted_and_created_when_it_returns(
    follower, drive
):
    drive.write("/Results/a.csv", "1")
    drive.write("/Results/b.csv", "1")
    await follower.follow()

    drive.move("/Results/a.csv", "/Elsewhere")
    drive.rename("/Results/b.csv", "b.bak")

    assert await follower.follow() == {"/Results/a.csv": "deleted", "/Results/b.csv": "deleted"}
    drive.move("/Elsewhere/a.csv", "/Results")
    drive.rename("/Results/b.bak", "b.csv")
    assert await follower.follow() == {"/Results/a.csv": "created", "/Results/b.csv": "created"}


async def test_what_happens_to_a_folder_happens_to_the_files_in_it(follower, drive):
    drive.write("/Results/2024/a.csv", "1")
    await follower.follow()

    drive.rename("/Results/2024", "2025")
    assert await follower.follow() == {"/Results/2025/a.csv": "moved"}
    drive.move("/Results/2025", "/Archive")
    assert await follower.follow() == {"/Results/2025/a.csv": "deleted"}
    drive.move("/Archive/2025", "/Results")
    assert await follower.follow() == {"/Results/2025/a.csv": "created"}
    folder = drive.delete("/Results/2025")
    assert await follower.follow() == {"/Results/2025/a.csv": "deleted"}
    drive.restore(folder)
    assert await follower.follow() == {"/Results/2025/a.csv": "created"}


async def test_a_restored_folder_of_which_the_delta_tells_nothing_else_is_listed_in_full(
    follower, drive
):
    drive.behaviour.restoration_tells = "top"
    drive.write("/Results/2024/a.csv", "1")
    await follower.follow()
    folder = drive.delete("/Results/2024")
    await follower.follow()

    drive.restore(folder)

    assert await follower.follow() == {"/Results/2024/a.csv": "created"}


async def test_a_deleted_file_still_tells_its_name_path_and_url(follower, drive):
    drive.write("/Results/a.csv", "1")
    await follower.follow()
    drive.delete("/Results/a.csv")
    await follower.take_in()

    (claimed,) = follower.work().files

    assert claimed.file.deleted
    assert claimed.file.name == "a.csv"
    assert claimed.file.path == "/Results/a.csv"
    assert claimed.file.url.endswith("/Results/a.csv")


@pytest.mark.parametrize("location", [True, False], ids=["with Location", "without Location"])
async def test_after_410_what_was_deleted_meanwhile_is_found_by_difference(
    follower, drive, graph, location
):
    drive.write("/Results/a.csv", "1")
    drive.write("/Results/b.csv", "1")
    await follower.follow()
    drive.delete("/Results/a.csv")
    drive.expire_tokens()
    graph.faults.add("delta", asking_for_resync(location=location))

    assert await follower.follow() == {"/Results/a.csv": "deleted"}


async def test_a_file_deleted_and_made_anew_between_pages_is_delivered_under_its_new_id(
    follower, drive, graph
):
    follower.page_size = 2
    for number in range(5):
        drive.write(f"/Results/{number}.csv", "1")
    await follower.follow()
    for number in range(5):
        drive.write(f"/Results/{number}.csv", "2")

    def recreate() -> None:
        drive.delete("/Results/0.csv", silently=True)
        drive.write("/Results/0.csv", "3")

    graph.faults.add("delta", meanwhile(recreate), after=1)
    await follower.follow()
    await follower.follow()

    with follower.store.reading() as view:
        rows = list(view.compared("asset", drive.id, []))
    assert {(row[1], row[3]) for _, row in rows} == {
        (drive[f"/Results/{n}.csv"].id, f"/Results/{n}.csv") for n in range(5)
    }


@pytest.mark.parametrize(
    "fault",
    [failing(500), failing(400), asking_for_resync(), looping()],
    ids=["500", "400", "410", "page loop"],
)
@pytest.mark.parametrize("known", [False, True], ids=["first listing", "later delta"])
async def test_a_take_in_that_fails_leaves_the_link_and_the_tree_as_they_were(
    follower, drive, graph, fault, known
):
    follower.page_size = 2
    drive.write("/Results/a.csv", "1")
    if known:
        await follower.follow()
    before = follower.stored()
    for number in range(5):
        drive.write(f"/Results/{number}.csv", "1")
    drive.delete("/Results/a.csv")
    graph.faults.add("delta", fault, after=1, times=1000)

    with pytest.raises(SharePointError):
        await follower.take_in()

    assert follower.stored() == before
    assert told(follower.work()) == {}
    graph.faults._planned.clear()
    changes = {f"/Results/{number}.csv": "created" for number in range(5)}
    assert await follower.follow() == changes | ({"/Results/a.csv": "deleted"} if known else {})


async def test_pages_that_go_round_in_circles_are_listed_anew(follower, drive, graph):
    drive.write("/Results/a.csv", "1")
    graph.faults.add("delta", looping())

    assert await follower.follow() == {"/Results/a.csv": "created"}


async def test_what_was_taken_in_late_is_void_and_asked_for_again(follower, drive, graph):
    drive.write("/Results/a.csv", "1")
    graph.faults.add("delta", delayed(0.5))

    await asyncio.gather(follower.take_in(), follower.take_in())

    assert graph.count("delta") == 3
    assert told(follower.work()) == {"/Results/a.csv": "created"}
    with follower.store.taking_in(follower.library.drive_id, 7, []) as incoming:
        assert incoming is None


async def test_of_several_copies_of_an_item_the_last_one_counts(follower, drive):
    drive.behaviour.stale_copies = True
    follower.page_size = 2
    for number in range(4):
        drive.write(f"/Results/{number}.csv", "1")
    await follower.follow()
    for number in range(4):
        drive.rename(f"/Results/{number}.csv", f"{number} new.csv")

    found = await follower.follow()

    assert found == {f"/Results/{number} new.csv": "renamed" for number in range(4)}


async def test_a_changed_watch_takes_effect_without_asking_for_anything(follower, drive, graph):
    drive.write("/Results/a.csv", "1")
    drive.write("/Results/b.txt", "1")
    await follower.follow()
    asked = graph.count()

    other = Watch("/sites/lab", "/Results", filters=[Suffix(".txt")])

    assert told(follower.work(other)) == {"/Results/a.csv": "deleted", "/Results/b.txt": "created"}
    assert graph.count() == asked


async def test_where_nothing_changed_one_page_is_asked_for_and_no_file_is_looked_at(
    follower, drive, graph, monkeypatch
):
    drive.write("/Results/a.csv", "1")
    await follower.follow()
    asked = graph.count()
    monkeypatch.setattr(FeedView, "compared", None)

    await follower.take_in()
    claim = follower.work()

    assert claim.files == ()
    assert graph.count() - asked == 1


async def test_two_runs_at_once_deliver_once(follower, drive):
    drive.write("/Results/a.csv", "1")
    await follower.take_in()
    follower.store.begin("asset", "")
    one, other = follower.work(), follower.work()

    follower.deliver(one)
    with pytest.raises(Exception, match="Another run has delivered files"):
        follower.deliver(other)

    assert told(follower.work()) == {}


async def test_a_file_that_changes_while_it_is_read_is_delivered_again(follower, drive):
    drive.write("/Results/a.csv", "1")
    await follower.take_in()
    claim = follower.work()

    drive.write("/Results/a.csv", "2")
    await follower.take_in()
    follower.deliver(claim)

    assert told(follower.work()) == {"/Results/a.csv": "changed"}


async def test_a_reset_asset_gets_everything_again_and_is_told_what_was_deleted(follower, drive):
    drive.write("/Results/a.csv", "1")
    drive.write("/Results/b.csv", "1")
    await follower.follow()
    drive.delete("/Results/b.csv")
    await follower.take_in()

    follower.store.reset_asset("asset")

    assert told(follower.work()) == {"/Results/a.csv": "changed", "/Results/b.csv": "deleted"}


async def test_a_change_that_neither_time_size_nor_hash_shows_is_delivered(follower, drive):
    """A tool wrote the file that keeps its time; Microsoft's hash is the same for both contents."""
    before, after = b"x,y\n3,4\n" * 1000, b"x,y\n5,6\n" * 1000
    assert quick_xor_hash(before) == quick_xor_hash(after)
    drive.write("/Results/a.csv", before)
    drive["/Results/a.csv"].modified = OLD
    await follower.follow()

    drive.write("/Results/a.csv", after)
    drive["/Results/a.csv"].modified = OLD

    assert await follower.follow() == {"/Results/a.csv": "changed"}


async def test_what_deltas_left_out_is_found_by_the_listing_of_each_week(follower, drive, database):
    drive.write("/Results/a.csv", "1")
    drive.write("/Results/b.csv", "1")
    await follower.follow()
    drive.delete("/Results/a.csv", silently=True)
    assert await follower.follow() == {}

    with database.connect() as connection:
        connection.execute(
            "UPDATE meta.sharepoint_libraries SET listed_at = now() - interval '7 days 1 minute'"
        )

    assert await follower.follow() == {"/Results/a.csv": "deleted"}


async def test_a_reset_library_is_listed_in_full(follower, drive, graph):
    drive.write("/Results/a.csv", "1")
    await follower.follow()
    drive.delete("/Results/a.csv", silently=True)
    assert await follower.follow() == {}

    follower.store.reset_library(follower.library.drive_id)

    assert await follower.follow() == {"/Results/a.csv": "deleted"}
