from __future__ import annotations

from typing import Any

import pytest

from dagster_tools.errors import SharePointError, SharePointNotFound
from dagster_tools.sharepoint import Item, Library, Page, Tombstone, changes
from tests.fix_graph import client_of, library_of
from tests.graph import Drive, Graph
from tests.graph.faults import asking_for_resync, failing, looping, meanwhile


async def pages_of(
    graph: Graph, drive: Drive, link: str | None = None, **options: Any
) -> list[Page]:
    async with client_of(graph, **options) as client:
        return [page async for page in changes(client, library_of(drive), link)]


async def link_of(graph: Graph, drive: Drive, **options: Any) -> str:
    pages = await pages_of(graph, drive, **options)
    assert pages[-1].link is not None
    return pages[-1].link


def names(pages: list[Page]) -> list[str]:
    """What was listed since the last beginning, the last entry of each item, in order."""
    begun = max(number for number, page in enumerate(pages) if page.first)
    listed = {entry.id: entry for page in pages[begun:] for entry in page.items}
    return [entry.name if isinstance(entry, Item) else "(deleted)" for entry in listed.values()]


def marks(pages: list[Page]) -> list[tuple[bool, bool, bool]]:
    return [(page.first, page.full, page.link is not None) for page in pages]


# --- what is told ---------------------------------------------------------------------------


async def test_the_first_enumeration_lists_everything_page_by_page(graph, drive):
    for number in range(5):
        drive.write(f"/Results/{number}.csv", "x")

    pages = await pages_of(graph, drive, page_size=3)

    assert names(pages) == ["root", "Results", "0.csv", "1.csv", "2.csv", "3.csv", "4.csv"]
    assert marks(pages) == [(True, True, False), (False, True, False), (False, True, True)]


async def test_the_next_one_lists_what_changed_since_and_no_more(graph, drive):
    drive.write("/a.csv", "x")
    drive.write("/b.csv", "x")
    drive.write("/c.csv", "x")
    link = await link_of(graph, drive)
    drive.write("/b.csv", "y")
    deleted = drive.delete("/c.csv")

    pages = await pages_of(graph, drive, link)

    assert names(pages) == ["root", "b.csv", "(deleted)"]
    assert pages[-1].items[-1] == Tombstone(deleted)
    assert marks(pages) == [(True, False, True)]


async def test_nothing_new_costs_one_request(graph, drive):
    for number in range(20):
        drive.write(f"/{number}.csv", "x")
    link = await link_of(graph, drive)
    before = graph.count()

    (page,) = await pages_of(graph, drive, link)

    assert page.items == ()
    assert graph.count() == before + 1


async def test_of_several_entries_of_an_item_the_last_one_is_right(graph, drive):
    drive.behaviour.stale_copies = True
    for number in range(5):
        drive.write(f"/{number}.csv", "x")

    pages = await pages_of(graph, drive, page_size=2)

    assert sum(len(page.items) for page in pages) > 6
    assert sorted(names(pages)) == ["0.csv", "1.csv", "2.csv", "3.csv", "4.csv", "root"]


async def test_what_is_deleted_and_made_anew_between_pages_is_told(graph, drive):
    for number in range(4):
        drive.write(f"/{number}.csv", "x")
    first = drive["/0.csv"].id

    def make_anew() -> None:
        drive.delete("/0.csv")
        drive.write("/0.csv", "y")

    graph.faults.add("delta", meanwhile(make_anew), after=1)
    pages = await pages_of(graph, drive, page_size=2)

    assert Tombstone(first) in [entry for page in pages for entry in page.items]
    assert names(pages).count("0.csv") == 1


async def test_an_item_has_all_that_is_known_of_it(graph, drive):
    drive.write("/Results/a b.csv", "x,y\n", author="Grace Hopper")

    pages = await pages_of(graph, drive)

    node = drive["/Results/a b.csv"]
    assert pages[0].items[-1] == Item(
        id=node.id,
        kind="file",
        parent_id=drive["/Results"].id,
        name="a b.csv",
        etag=node.etag,
        ctag=None,
        size=4,
        created=node.created,
        modified=node.modified,
        modified_by="Grace Hopper",
        url="https://contoso.sharepoint.com/sites/lab/Shared%20Documents/Results/a%20b.csv",
    )


async def test_a_link_is_not_shown(graph, drive):
    (page,) = await pages_of(graph, drive)

    assert page.link not in repr(page)


# --- when a link is of no use any longer ----------------------------------------------------


async def test_an_expired_link_is_answered_with_everything(graph, drive):
    drive.write("/a.csv", "x")
    link = await link_of(graph, drive)
    drive.expire_tokens()

    pages = await pages_of(graph, drive, link)

    assert names(pages) == ["root", "a.csv"]
    assert marks(pages) == [(True, True, True)]


@pytest.mark.parametrize("location", [True, False])
@pytest.mark.parametrize(
    "code", ["resyncChangesApplyDifferences", "resyncChangesUploadDifferences", None]
)
async def test_a_resync_begins_where_the_service_says_or_from_nothing(graph, drive, location, code):
    drive.write("/a.csv", "x")
    link = await link_of(graph, drive)
    graph.faults.add("delta", asking_for_resync(location=location, code=code))

    pages = await pages_of(graph, drive, link)

    assert names(pages) == ["root", "a.csv"]
    assert marks(pages) == [(True, True, True)]
    assert ("?token=" in graph.received[-1].path) == location


async def test_a_resync_asked_for_between_pages_makes_the_pages_before_void(graph, drive):
    for number in range(4):
        drive.write(f"/{number}.csv", "x")
    graph.page_size = 2  # where the service says to begin anew, it chooses
    graph.faults.add("delta", asking_for_resync(), after=2)

    pages = await pages_of(graph, drive, page_size=2)

    assert [page.first for page in pages] == [True, False, True, False, False]
    assert sorted(names(pages)) == ["0.csv", "1.csv", "2.csv", "3.csv", "root"]


async def test_a_second_resync_begins_from_nothing(graph, drive):
    drive.write("/a.csv", "x")
    link = await link_of(graph, drive)
    graph.faults.add("delta", asking_for_resync(), times=2)

    pages = await pages_of(graph, drive, link)

    assert names(pages) == ["root", "a.csv"]
    assert "?token=" not in graph.received[-1].path


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(asking_for_resync(), id="resync"),
        pytest.param(failing(400, "invalidRequest"), id="400"),
        pytest.param(looping(), id="page loop"),
    ],
)
async def test_a_drive_that_will_not_be_listed_is_an_error_and_not_empty(graph, drive, fault):
    for number in range(4):
        drive.write(f"/{number}.csv", "x")
    link = await link_of(graph, drive, page_size=2)
    graph.faults.add("delta", fault, times=1000)

    with pytest.raises(SharePointError, match="changes of library 'Documents' of site 'Lab Data'"):
        await pages_of(graph, drive, link, page_size=2)

    assert graph.count("delta") < 20


@pytest.mark.parametrize("status", [400, 404, 410])
async def test_a_token_refused_between_pages_makes_everything_be_listed(graph, drive, status):
    for number in range(4):
        drive.write(f"/{number}.csv", "x")
    graph.faults.add("delta", failing(status, "invalidRequest"), after=1)

    pages = await pages_of(graph, drive, page_size=2)

    assert sorted(names(pages)) == ["0.csv", "1.csv", "2.csv", "3.csv", "root"]
    assert pages[-1].full


async def test_pages_that_go_round_in_circles_are_left_for_a_new_beginning(graph, drive):
    for number in range(4):
        drive.write(f"/{number}.csv", "x")
    graph.faults.add("delta", looping(), after=1)

    pages = await pages_of(graph, drive, page_size=2)

    assert sorted(names(pages)) == ["0.csv", "1.csv", "2.csv", "3.csv", "root"]


async def test_a_library_that_is_gone_is_an_error_and_not_a_library_without_files(graph, drive):
    link = await link_of(graph, drive)
    gone = Library("b!gone", "Gone", "", library_of(drive).site)
    link = link.replace(drive.id, gone.drive_id)

    async with client_of(graph) as client:
        with pytest.raises(SharePointNotFound, match="changes of library 'Gone'"):
            _ = [page async for page in changes(client, gone, link)]


async def test_a_full_enumeration_without_the_root_is_not_believed(graph, drive):
    drive.write("/a.csv", "x")
    latest = f"{graph.url}/v1.0/drives/{drive.id}/root/delta?token=latest"
    async with client_of(graph) as client:
        link = (await client.get(latest, "latest")).body["@odata.deltaLink"]
    graph.faults.add("delta", asking_for_resync())
    drive.root.silent, drive.root.changed = True, 0

    with pytest.raises(SharePointError, match="without the library's root"):
        await pages_of(graph, drive, link)


async def test_a_link_to_another_host_is_not_followed(graph, drive):
    with pytest.raises(SharePointError, match=r"link to evil\.example, and not to https://local"):
        await pages_of(graph, drive, "https://evil.example/v1.0/delta?token=1")

    assert graph.count() == 0
