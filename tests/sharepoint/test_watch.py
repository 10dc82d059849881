from __future__ import annotations

import pytest

from dagster_tools.errors import ConfigurationError
from dagster_tools.sharepoint import Filter, Item, Located, Prefix, Suffix, Watch, change_between
from tests.sharepoint.stored import seen
from tests.sharepoint.test_filters import LIBRARY, file


def located(path: str | None, etag: str = "1") -> Located | None:
    if path is None:
        return None
    item = Item(id="1", kind="file", parent_id="0", name=path.rpartition("/")[2], etag=etag)
    return Located(item, path)


@pytest.mark.parametrize(
    "folder", ["Results/2024", "/Results/2024/", ["Results", "2024"], ("Results/2024",)]
)
def test_a_folder_is_a_path_or_a_list_of_its_parts(folder):
    assert Watch("Lab Data", folder) == Watch("Lab Data", "/Results/2024")


@pytest.mark.parametrize("folder", ["/", "", [], ["/"]])
def test_no_folder_is_the_whole_library(folder):
    assert Watch("Lab Data", folder).folder == "/"
    assert Watch("Lab Data", folder).sees(file("/deep/down/a.csv"))
    assert Watch("Lab Data", folder).sees(file("/a.csv"))


@pytest.mark.parametrize(
    ("watch", "seen", "unseen"),
    [
        (Watch("Lab", "Results"), "/Results/2024/a.csv", "/Results (old)/a.csv"),
        (Watch("Lab", "results"), "/RESULTS/a.csv", "/a.csv"),
        (Watch("Lab", "Results", recursive=False), "/Results/a.csv", "/Results/2024/a.csv"),
        (Watch("Lab", "/", recursive=False), "/a.csv", "/Results/a.csv"),
        (Watch("Lab", filters=[Suffix(".csv"), Prefix("a")]), "/a.csv", "/b.csv"),
        (Watch("Lab", filters=Suffix(".csv")), "/a.csv", "/a.txt"),
        (Watch("Lab", filters=[Filter(lambda f: "/Raw/" in f.path)]), "/Raw/a", "/raw.txt"),
        (Watch("Lab", filters=[Suffix(".xlsx")]), "/a.xlsx", "/~$a.xlsx"),
    ],
)
def test_a_watch_sees_the_files_of_its_folder_that_pass_its_filters(watch, seen, unseen):
    assert watch.sees(file(seen))
    assert not watch.sees(file(unseen))


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        ("/Results/a.csv", "/Elsewhere/a.csv", "deleted"),
        ("/Elsewhere/a.csv", "/Results/a.csv", "created"),
        ("/Results/a.csv", "/Results/a.bak", "deleted"),
        ("/Results/a.bak", "/Results/a.csv", "created"),
        ("/Results/a.csv", "/Results/b.csv", "renamed"),
        ("/Results/a.csv", "/Results/2024/a.csv", "moved"),
        ("/Elsewhere/a.csv", "/Elsewhere/b.csv", None),
        (None, "/Results/a.bak", None),
        ("/Results/a.bak", None, None),
        ("/Results/a.csv", None, "deleted"),
        (None, "/Results/a.csv", "created"),
    ],
)
def test_what_leaves_the_folder_or_the_filters_is_deleted_and_what_comes_in_created(
    before, after, change
):
    watch = Watch("Lab", "Results", filters=[Suffix(".csv")])

    was, is_now = (seen(watch, located(path), LIBRARY) for path in (before, after))

    assert change_between(was, is_now) == change


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([""], "needs a site"),
        ([None], "needs a site"),
        (["Lab", [1]], "folder is"),
        (["Lab", "../Results"], "from the library's root"),
        (["Lab", "/", [".csv"]], "filters has a str"),
    ],
)
def test_a_watch_that_cannot_be_meant_is_refused(arguments, says):
    with pytest.raises(ConfigurationError, match=says):
        Watch(*arguments)


def test_a_watch_shows_what_it_says():
    watch = Watch("Lab", ["Results"], filters=[Suffix(".csv")], library="Raw", recursive=False)

    assert repr(Watch("Lab")) == "Watch('Lab', '/')"
    assert repr(watch) == (
        "Watch('Lab', '/Results', filters=[Suffix('.csv')], library='Raw', recursive=False)"
    )


def test_the_definition_changes_with_everything_it_says():
    watches = [
        Watch("Lab"),
        Watch("Other"),
        Watch("Lab", "Results"),
        Watch("Lab", library="Raw"),
        Watch("Lab", recursive=False),
        Watch("Lab", filters=[Suffix(".csv")]),
        Watch("Lab", filters=[Suffix(".txt")]),
        Watch("Lab", filters=[Suffix(".csv"), Suffix(".txt")]),
        Watch("Lab", filters=[Suffix(".csv") | Suffix(".txt")]),
    ]

    assert len({watch.definition for watch in watches}) == len(watches)
    assert Watch("Lab", ["Results"]).definition == Watch("Lab", "/Results/").definition
