from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone

import pytest

from dagster_tools.sharepoint import (
    Folders,
    Incomplete,
    Item,
    Located,
    Tombstone,
    change_between,
)
from tests.sharepoint.stored import MemoryTree, Transition


def folder(item_id: str, parent_id: str | None, name: str = "", kind="folder") -> Item:
    return Item(id=item_id, kind=kind, parent_id=parent_id, name=name or item_id)


def file(item_id: str, parent_id: str, name: str = "", etag: str | None = "1") -> Item:
    return Item(id=item_id, kind="file", parent_id=parent_id, name=name or item_id, etag=etag)


ROOT = folder("root", None)
RESULTS = folder("results", "root", "Results")
YEAR = folder("year", "results", "2024")
ARCHIVE = folder("archive", "root", "Archive")
A = file("a", "results", "a.csv")
B = file("b", "year", "b.csv")


@pytest.fixture
def tree() -> MemoryTree:
    """/Results/a.csv, /Results/2024/b.csv and an empty /Archive."""
    return MemoryTree([ROOT, RESULTS, YEAR, ARCHIVE, A, B])


def moves(transitions: list[Transition]) -> dict[str, tuple[str | None, str | None]]:
    """Where files were and are, by id."""
    return {
        each.id: (
            None if each.before is None else each.before.path,
            None if each.after is None else each.after.path,
        )
        for each in transitions
    }


# --- where a file lies ----------------------------------------------------------------------


def test_a_path_is_made_of_the_names_of_the_folders_above():
    folders = Folders([YEAR, RESULTS, ROOT])

    assert folders.path("root") == ""
    assert folders.path("year") == "/Results/2024"
    assert folders.located(B) == Located(B, "/Results/2024/b.csv")


def test_a_folder_that_is_not_known_has_no_path():
    folders = Folders([ROOT, folder("lost", "nowhere")])

    assert folders.path("nowhere") is None
    assert folders.path("lost") is None
    assert folders.located(file("f", "lost")) is None


def test_folders_that_seem_to_lie_in_each_other_have_no_path():
    folders = Folders([ROOT, folder("x", "y"), folder("y", "x"), folder("z", "y")])

    assert [folders.path(each) for each in ("x", "y", "z")] == [None, None, None]


def test_what_is_in_a_notebook_is_not_a_file_to_read():
    folders = Folders([ROOT, folder("book", "root", "Notes", kind="opaque")])

    assert folders.located(file("page", "book", "page.one")) is None


# --- what happened to a file ----------------------------------------------------------------


def test_the_first_enumeration_finds_every_file():
    found = MemoryTree().update([B, A, YEAR, RESULTS, ROOT, ARCHIVE], full=True)

    assert moves(found) == {"a": (None, "/Results/a.csv"), "b": (None, "/Results/2024/b.csv")}


def test_a_listed_file_was_where_it_was_and_is_where_it_is(tree):
    found = tree.update([replace(A, etag="2")])

    assert found == [
        Transition(
            "a", Located(A, "/Results/a.csv"), Located(replace(A, etag="2"), "/Results/a.csv")
        )
    ]


def test_a_tombstone_says_nothing_and_the_tree_everything(tree):
    (found,) = tree.update([Tombstone("a")])

    assert found == Transition("a", Located(A, "/Results/a.csv"), None)


def test_a_tombstone_of_a_file_nobody_knew_means_nothing(tree):
    assert tree.update([Tombstone("never seen")]) == []


def test_a_renamed_folder_takes_along_the_files_that_are_not_told_of(tree):
    found = tree.update([replace(RESULTS, name="Findings")])

    assert moves(found) == {
        "a": ("/Results/a.csv", "/Findings/a.csv"),
        "b": ("/Results/2024/b.csv", "/Findings/2024/b.csv"),
    }


def test_a_moved_folder_takes_along_the_files_beneath_it(tree):
    found = tree.update([replace(YEAR, parent_id="archive")])

    assert moves(found) == {"b": ("/Results/2024/b.csv", "/Archive/2024/b.csv")}


def test_a_deleted_folder_takes_along_the_files_beneath_it(tree):
    found = tree.update([Tombstone("results")])

    assert moves(found) == {"a": ("/Results/a.csv", None), "b": ("/Results/2024/b.csv", None)}


def test_a_file_that_left_a_deleted_folder_in_time_is_not_deleted(tree):
    found = tree.update([Tombstone("results"), replace(A, parent_id="archive")])

    assert moves(found) == {
        "a": ("/Results/a.csv", "/Archive/a.csv"),
        "b": ("/Results/2024/b.csv", None),
    }


def test_a_file_listed_in_a_folder_that_was_deleted_after_it_is_gone(tree):
    found = tree.update([replace(A, etag="2"), Tombstone("results")])

    assert moves(found)["a"] == ("/Results/a.csv", None)


def test_the_order_in_which_files_and_folders_are_listed_does_not_matter(tree):
    new = folder("new", "archive", "2025")

    found = tree.update([file("c", "new", "c.csv"), new])

    assert moves(found) == {"c": (None, "/Archive/2025/c.csv")}


def test_a_file_made_anew_under_its_old_name_is_another_file(tree):
    found = tree.update([Tombstone("a"), file("a2", "results", "a.csv")])

    assert moves(found) == {"a": ("/Results/a.csv", None), "a2": (None, "/Results/a.csv")}


def test_two_files_may_change_places(tree):
    found = tree.update([replace(A, parent_id="year"), replace(B, parent_id="results")])

    assert moves(found) == {
        "a": ("/Results/a.csv", "/Results/2024/a.csv"),
        "b": ("/Results/2024/b.csv", "/Results/b.csv"),
    }


def test_a_full_enumeration_finds_deletions_by_difference(tree):
    found = tree.update([ROOT, RESULTS, A], full=True)

    assert moves(found) == {
        "a": ("/Results/a.csv", "/Results/a.csv"),
        "b": ("/Results/2024/b.csv", None),
    }
    assert set(tree.items) == {"root", "results", "a"}


# --- when to ask for everything -------------------------------------------------------------


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param([file("a2", "results", "A.CSV")], id="a file took the place of another"),
        pytest.param([folder("r2", "root", "Results")], id="a folder took the place of another"),
        pytest.param([file("c", "nowhere")], id="a file in a folder that is not known"),
        pytest.param(
            [replace(folder("c", "root"), child_count=2), file("d", "c")],
            id="a new folder without all that is in it",
        ),
        pytest.param([folder("c", "nowhere")], id="a folder in one that is not known"),
        pytest.param(
            [replace(RESULTS, parent_id="archive"), replace(ARCHIVE, parent_id="results")],
            id="folders in each other",
        ),
    ],
)
def test_a_delta_that_cannot_be_the_whole_truth_is_not_believed(tree, entries):
    before = dict(tree.items)

    with pytest.raises(Incomplete):
        tree.update(entries)

    assert tree.items == before


def test_a_restored_folder_makes_everything_be_listed_since_its_files_are_not(tree):
    tree.update([Tombstone("results"), Tombstone("year")])

    with pytest.raises(Incomplete, match="restored"):
        tree.update([RESULTS])
    found = tree.update([ROOT, ARCHIVE, RESULTS, YEAR, A, B], full=True)

    assert moves(found) == {"a": (None, "/Results/a.csv"), "b": (None, "/Results/2024/b.csv")}


def test_a_folder_that_a_full_enumeration_missed_is_restored_when_it_returns(tree):
    tree.update([ROOT, ARCHIVE], full=True)

    with pytest.raises(Incomplete, match="restored"):
        tree.update([RESULTS])


def test_a_full_enumeration_is_believed_whatever_it_lists(tree):
    listed = [ROOT, RESULTS, A, file("a2", "results", "a.csv"), file("c", "nowhere")]

    found = tree.update(listed, full=True)

    assert set(moves(found)) == {"a", "a2", "b"}


def test_a_name_that_was_given_up_can_be_taken(tree):
    found = tree.update([replace(A, name="old.csv"), file("a2", "results", "a.csv")])

    assert moves(found) == {
        "a": ("/Results/a.csv", "/Results/old.csv"),
        "a2": (None, "/Results/a.csv"),
    }


# --- what that is to a watcher --------------------------------------------------------------


def at(path: str, etag: str | None = "1") -> Located:
    return Located(file("f", "folder", path.rpartition("/")[2], etag), path)


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        (None, None, None),
        (None, at("/R/a.csv"), "created"),
        (at("/R/a.csv"), None, "deleted"),
        (at("/R/a.csv"), at("/R/a.csv"), None),
        (at("/R/a.csv"), at("/R/a.csv", "2"), "changed"),
        (at("/R/a.csv"), at("/R/b.csv", "2"), "renamed"),
        (at("/R/a.csv"), at("/R/A.csv", "2"), "renamed"),
        (at("/R/a.csv"), at("/S/a.csv", "2"), "moved"),
        (at("/R/a.csv"), at("/S/b.csv", "2"), "moved"),
        (at("/R/a.csv"), at("/S/a.csv"), "moved"),
        (at("/R/a.csv", None), at("/R/a.csv", None), "changed"),
        (at("/R/a.csv", None), at("/R/a.csv", "1"), "changed"),
        (at("/R/a.csv", "1"), at("/R/a.csv", None), "changed"),
    ],
)
def test_a_change_is_read_off_the_difference_of_two_states(before, after, change):
    assert change_between(before, after) == change


def test_neither_time_nor_size_makes_a_change_and_an_etag_alone_does():
    before = at("/R/a.csv", "1")
    later = datetime(2030, 1, 1, tzinfo=timezone.utc)
    other = Located(replace(before.item, size=99, modified=later, created=later), before.path)
    same = Located(replace(before.item, etag="2"), before.path)

    assert change_between(before, other) is None
    assert change_between(before, same) == "changed"
