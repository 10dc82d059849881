"""Whatever people do to a library: who takes its deltas in knows what is there.

The emulator's drive is asked directly, without HTTP; its own state is what is true.
"""

from __future__ import annotations

from typing import get_args

from hypothesis import given, settings
from hypothesis import strategies as st

from dagster_tools.sharepoint import (
    Incomplete,
    Item,
    Library,
    Site,
    Suffix,
    Tombstone,
    Watch,
    change_between,
)
from dagster_tools.sharepoint.items import parse_listed
from tests.graph import Behaviour, Drive
from tests.graph.delta import DeltaToken, delta_page
from tests.graph.drive import Extent
from tests.graph.resources import item_json, listed_json
from tests.sharepoint.stored import MemoryTree, Transition, seen

LIBRARY = Library("d", "Documents", "", Site("s", "Lab", ""))
WATCHES = {
    "all": Watch("Lab"),
    "csv beneath /a": Watch("Lab", "/A", filters=[Suffix(".csv")]),
    "in /a/b alone": Watch("Lab", ["a", "b"], recursive=False),
}


class Follower:
    """Keeps what a feed keeps: the tree, the link, and for each watch what was delivered."""

    def __init__(self, drive: Drive) -> None:
        self.drive = drive
        self.tree = MemoryTree()
        self.token: DeltaToken | None = None
        self.delivered: dict[str, dict[str, str]] = {name: {} for name in WATCHES}

    def follow(self, page_size: int, between_pages) -> None:
        try:
            self._take_in(page_size, between_pages, self.token)
        except Incomplete:
            self._take_in(page_size, lambda: None, None)

    def _take_in(self, page_size: int, between_pages, token: DeltaToken | None) -> None:
        full = token is None or token.generation != self.drive.generation
        position = token
        if position is None or full:
            position = DeltaToken.beginning(self.drive, page_size)
        entries: list[Item | Tombstone] = []
        while True:
            page = delta_page(self.drive, position)
            entries += [
                parse_listed(listed_json(self.drive, node, stale=stale))
                for node, stale in page.entries
            ]
            position = page.following
            if page.last:
                break
            between_pages()
        for transition in self.tree.update(entries, full=full):
            self._deliver(transition)
        self.token = position

    def _deliver(self, transition: Transition) -> None:
        for name, watch in WATCHES.items():
            change = change_between(
                seen(watch, transition.before, LIBRARY), seen(watch, transition.after, LIBRARY)
            )
            table = self.delivered[name]
            if change == "deleted":
                del table[transition.id]
            elif change is not None and transition.after is not None:
                assert (change == "created") == (transition.id not in table)
                table[transition.id] = f"{transition.after.path} {transition.after.etag}"


def truth(drive: Drive, watch: Watch) -> dict[str, str]:
    """What is in the library, as anybody sees who opens it."""
    folder = drive.find(watch.folder)
    if folder is None:
        return {}
    nodes = folder.descendants() if watch.recursive else folder.children.values()
    suffix = ".csv" if watch.filters else ""
    return {
        node.id: f"{node.path} {item_json(drive, node)['eTag']}"
        for node in nodes
        if node.kind == "file" and node.name.endswith(suffix)
    }


NAMES = ("a", "b", "x.csv", "y.csv", "z.txt")
PICK = st.integers(0, 11)
OTHER_ACTIONS = ["folder", "touch", "rename", "delete", "restore", "expire"]
ACTIONS = st.tuples(
    st.sampled_from(["write"] * 3 + ["move"] * 2 + OTHER_ACTIONS),
    PICK,
    PICK,
    st.sampled_from(NAMES),
)
BEHAVIOURS = st.builds(
    Behaviour,
    path_in_delta=st.booleans(),
    deletion_tells=st.sampled_from(get_args(Extent)),
    restoration_tells=st.sampled_from(get_args(Extent)),
    stale_copies=st.booleans(),
    childs_first=st.booleans(),
)


def act(drive: Drive, action: tuple[str, int, int, str], deleted: list[str]) -> None:
    """Do what SharePoint would let people do, and nothing where it would not.

    Args:
        action: What is done, to which item, with which folder and name.
        deleted: The recycle bin.
    """
    kind, picked, picked_folder, name = action
    items = list(drive.root.descendants())
    folders = [drive.root, *(item for item in items if item.kind == "folder")]
    folder = folders[picked_folder % len(folders)]
    free = name not in folder.children
    if kind == "expire":
        drive.expire_tokens()
    elif kind == "restore":
        restore(drive, picked, deleted)
    elif kind == "write" and (free or folder.children[name].kind == "file"):
        drive.write(f"{folder.path}/{name}", name)
    elif kind == "folder" and free:
        drive.make_folder(f"{folder.path}/{name}")
    elif items and kind in {"touch", "rename", "move", "delete"}:
        act_on(drive, kind, items[picked % len(items)], folder, name, deleted)


def act_on(drive, kind, item, folder, name, deleted):
    path = item.path
    within = f"{folder.path}/".startswith(f"{path}/")
    if kind == "touch":
        drive.touch(path)
    elif kind == "rename" and name not in item.parent.children:
        drive.rename(path, name)
    elif kind == "move" and not within and item.name not in folder.children:
        drive.move(path, folder.path or "/")
    elif kind == "delete":
        deleted.append(drive.delete(path))


def restore(drive, picked, deleted):
    if not deleted:
        return
    item = drive._nodes[deleted[picked % len(deleted)]]
    if item.parent.deletion is None and item.name not in item.parent.children:
        deleted.remove(item.id)
        drive.restore(item.id)


def assert_follows(follower: Follower, page_size: int) -> None:
    follower.follow(page_size, lambda: None)

    drive = follower.drive
    assert follower.delivered == {name: truth(drive, watch) for name, watch in WATCHES.items()}


@settings(max_examples=150, deadline=None)
@given(
    behaviour=BEHAVIOURS,
    page_size=st.integers(2, 6),
    history=st.lists(st.lists(ACTIONS, max_size=8), min_size=1, max_size=6),
)
def test_after_every_delta_each_watch_knows_its_files_and_no_others(behaviour, page_size, history):
    drive = Drive("b!0000", "Documents", "https://contoso.sharepoint.com/sites/lab")
    drive.behaviour = behaviour
    follower, deleted = Follower(drive), []
    for actions in history:
        for action in actions:
            act(drive, action, deleted)

        assert_follows(follower, page_size)


@settings(max_examples=150, deadline=None)
@given(
    behaviour=BEHAVIOURS,
    before=st.lists(ACTIONS, min_size=4, max_size=10),
    meanwhile=st.lists(ACTIONS, min_size=1, max_size=6),
    after=st.lists(ACTIONS, max_size=4),
)
def test_what_happens_between_pages_is_known_after_the_next_delta(
    behaviour, before, meanwhile, after
):
    drive = Drive("b!0000", "Documents", "https://contoso.sharepoint.com/sites/lab")
    drive.behaviour = behaviour
    follower, deleted, pending = Follower(drive), [], list(meanwhile)
    for action in before:
        act(drive, action, deleted)
    follower.follow(2, lambda: pending and act(drive, pending.pop(), deleted))
    for action in after:
        act(drive, action, deleted)

    assert_follows(follower, 2)


@settings(max_examples=150, deadline=None)
@given(behaviour=BEHAVIOURS, before=st.lists(ACTIONS, min_size=3, max_size=10), picked=PICK)
def test_what_was_deleted_without_a_word_and_made_anew_is_known(behaviour, before, picked):
    """The tombstone the service was seen to forget: microsoft-graph-docs-contrib#8794."""
    drive = Drive("b!0000", "Documents", "https://contoso.sharepoint.com/sites/lab")
    drive.behaviour = behaviour
    drive.write("/a/x.csv", "")
    for action in before:
        act(drive, action, [])
    follower = Follower(drive)
    follower.follow(3, lambda: None)
    items = list(drive.root.descendants())
    if items:
        item = items[picked % len(items)]
        path = item.path
        drive.delete(path, silently=True)
        drive.write(path, "") if item.kind == "file" else drive.make_folder(path)

    assert_follows(follower, 3)
