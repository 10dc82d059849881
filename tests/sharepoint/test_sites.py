from __future__ import annotations

import pytest

from dagster_tools.errors import SharePointAccessDenied, SharePointNotFound
from dagster_tools.sharepoint import Library, Site, find_folder, find_library, find_site
from tests.fix_graph import client_of, library_of
from tests.graph import Drive, Graph
from tests.graph.faults import failing


async def site_of(graph: Graph, name: str, **options: object) -> Site:
    async with client_of(graph, **options) as client:
        return await find_site(client, name)


async def library_named(graph: Graph, name: str | None) -> Library:
    async with client_of(graph) as client:
        return await find_library(client, await find_site(client, "/sites/lab"), name)


async def folder_at(graph: Graph, drive: Drive, path: str) -> str:
    async with client_of(graph) as client:
        return (await find_folder(client, library_of(drive), path)).id


@pytest.fixture
def lab(graph: Graph) -> Site:
    found = graph.site("/sites/lab", "Lab Data")
    return Site(found.id, found.display_name, found.url)


# --- sites ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "Lab Data",
        "lab data",
        "/sites/lab",
        "/sites/lab/",
        "/Sites/Lab",
        "https://contoso.sharepoint.com/sites/lab",
        "https://contoso.sharepoint.com/sites/lab/",
    ],
)
async def test_a_site_is_found_by_display_name_path_and_url(graph, lab, name):
    assert await site_of(graph, name) == lab


async def test_a_site_whose_path_has_spaces_is_found_by_path_and_url(graph):
    site = graph.site("/teams/Röntgen lab", "X")

    by_path = await site_of(graph, "/teams/Röntgen lab")

    assert by_path.id == site.id
    assert await site_of(graph, site.url) == by_path


async def test_a_display_name_is_not_a_part_of_another(graph, lab):
    graph.site("/sites/old", "Lab Data (old)")

    assert await site_of(graph, "Lab Data") == lab


async def test_the_root_site_is_the_path_slash(graph):
    assert (await site_of(graph, "/")).name == "Contoso"


async def test_a_name_that_several_sites_have_is_an_error_with_their_urls(graph, lab):
    graph.site("/teams/lab", "Lab Data")

    with pytest.raises(SharePointNotFound) as caught:
        await site_of(graph, "Lab Data")

    assert "2 sites are called 'Lab Data'" in str(caught.value)
    assert "https://contoso.sharepoint.com/sites/lab'" in str(caught.value)
    assert "https://contoso.sharepoint.com/teams/lab'" in str(caught.value)


async def test_a_name_no_site_has_is_an_error_with_what_was_found_instead(graph, lab):
    with pytest.raises(SharePointNotFound) as caught:
        await site_of(graph, "Lab")

    assert "No site is called 'Lab'" in str(caught.value)
    assert "Lab Data (https://contoso.sharepoint.com/sites/lab)" in str(caught.value)


async def test_a_path_without_a_site_is_an_error_that_says_what_a_site_is(graph, lab):
    with pytest.raises(SharePointNotFound, match=r"/sites/lob .*as in /sites/lab") as caught:
        await site_of(graph, "/sites/lob")

    assert caught.value.status == 404


# --- what Sites.Selected suffices for -------------------------------------------------------


@pytest.fixture
def selected(graph: Graph, lab: Site) -> None:
    graph.identity.roles = {"Sites.Selected"}
    graph.identity.granted = {lab.id}


async def test_sites_selected_suffices_for_a_url(graph, lab, selected):
    assert await site_of(graph, "https://contoso.sharepoint.com/sites/lab") == lab


async def test_sites_selected_suffices_for_a_path_where_the_host_is_known(graph, lab, selected):
    assert await site_of(graph, "/sites/lab", hostname="contoso.sharepoint.com") == lab


async def test_without_the_host_a_path_is_refused_with_what_to_do(graph, selected):
    with pytest.raises(SharePointAccessDenied, match=r"Give the site's URL.*or set hostname"):
        await site_of(graph, "/sites/lab")


@pytest.mark.parametrize("status", [403, 500])
async def test_without_the_right_to_search_a_display_name_is_refused_with_what_to_do(
    graph, selected, status
):
    graph.faults.add("search", failing(status), times=99)

    with pytest.raises(SharePointAccessDenied, match=r"'Lab Data' could not.*Give its URL"):
        await site_of(graph, "Lab Data")


async def test_a_site_that_was_not_granted_is_refused_with_the_permission_it_takes(graph, selected):
    graph.site("/sites/other", "Other")

    with pytest.raises(
        SharePointAccessDenied, match=r"sites/other.*POST /sites/.*It has: Sites.Selected"
    ):
        await site_of(graph, "https://contoso.sharepoint.com/sites/other")


# --- libraries ------------------------------------------------------------------------------


async def test_the_default_library_is_documents(graph, drive):
    library = await library_named(graph, None)

    assert (library.drive_id, library.name) == (drive.id, "Documents")


@pytest.mark.parametrize("name", ["Raw data", "raw DATA", "Documents", "Shared Documents"])
async def test_a_library_is_found_by_its_name_and_by_its_url(graph, drive, name):
    raw = graph.sites[-1].library("Raw data")

    library = await library_named(graph, name)

    assert library.drive_id == (raw.id if "raw" in name.lower() else drive.id)


async def test_a_library_is_found_on_a_later_page(graph, drive):
    graph.page_size = 2
    libraries = [graph.sites[-1].library(f"L{number}") for number in range(5)]

    assert (await library_named(graph, "L4")).drive_id == libraries[4].id


async def test_a_library_that_is_not_there_is_an_error_with_those_there_are(graph, drive):
    graph.sites[-1].library("Raw")

    with pytest.raises(SharePointNotFound, match=r"no library 'Row'.*\['Documents', 'Raw'\]"):
        await library_named(graph, "Row")


# --- folders --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/Results/résumé #1 100%", "results/RÉSUMÉ #1 100%/"])
async def test_a_folder_is_found_by_its_path_whatever_its_name(graph, drive, path):
    folder = drive.make_folder("/Results/résumé #1 100%")

    assert await folder_at(graph, drive, path) == folder


@pytest.mark.parametrize("path", ["", "/"])
async def test_the_root_is_a_folder(graph, drive, path):
    assert await folder_at(graph, drive, path) == drive.root.id


async def test_a_folder_that_is_not_there_is_an_error_with_those_that_are(graph, drive):
    drive.make_folder("/Results/2024")
    drive.write("/Results/a.csv", "x")

    with pytest.raises(SharePointNotFound, match=r"/Results has the folders: \['2024'\]"):
        await folder_at(graph, drive, "/Results/2042/raw")


async def test_a_file_is_not_a_folder(graph, drive):
    drive.write("/Results/a.csv", "x")

    with pytest.raises(SharePointNotFound, match="is not a folder"):
        await folder_at(graph, drive, "/Results/a.csv")
