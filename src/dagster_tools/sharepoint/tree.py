"""What the changes of a library mean for its files: pure, tested with values alone.

A delta tells of each item that changed what it is now, and of a deleted one nothing but its id.
It does not tell the path of anything, nor of the files in a folder that was moved, renamed or
deleted. So a tree of the whole library is kept, and a file's change is read off the difference:
what was delivered before, where it is now (`feed`).

Folders are held in memory, about 300 bytes each. Files are not: who keeps the tree streams them.

Whether a file's content changed is decided by its eTag, never by a time or a hash: old files
arrive with old times, and QuickXorHash is the same for many different contents.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias

from dagster_tools.sharepoint.items import Item, Tombstone

__all__ = [
    "Change",
    "Folders",
    "Incomplete",
    "Located",
    "StoredTree",
    "Version",
    "change_between",
    "check_complete",
]

Change: TypeAlias = Literal["created", "changed", "moved", "renamed", "deleted"]


class Incomplete(Exception):
    """What a delta told cannot be all that happened; enumerate the library in full instead.

    The service leaves out what it should tell in a few known cases: a file deleted and made
    anew while the delta is paged, the contents of a folder restored from the recycle bin.
    """


@dataclass(frozen=True, slots=True)
class Located:
    """A file and where it lies.

    Args:
        path: From the library's root, such as `/Results/2024/a.csv`.
    """

    item: Item
    path: str

    @property
    def etag(self) -> str | None:
        """The file's version."""
        return self.item.etag


class Version(Protocol):
    """What tells two states of a file apart."""

    @property
    def path(self) -> str:
        """From the library's root."""

    @property
    def etag(self) -> str | None:
        """The file's version; None where it is not known."""


def change_between(before: Version | None, after: Version | None) -> Change | None:
    """Tell what happened to a file that somebody watches; None where nothing did.

    Give None for a state that they do not watch: a file that came into a watched folder, or got
    a name that passes the filters, was created for them, and one that left was deleted. A file
    that was moved or renamed may have other content too. One whose version is unknown counts
    as changed.
    """
    if before is None:
        return None if after is None else "created"
    if after is None:
        return "deleted"
    if before.path != after.path:
        same_folder = before.path.rpartition("/")[0] == after.path.rpartition("/")[0]
        return "renamed" if same_folder else "moved"
    if before.etag is None or before.etag != after.etag:
        return "changed"
    return None


class StoredTree(Protocol):
    """A library as it was stored, and an enumeration of it that has just ended.

    What the enumeration *lists* is, for each id, the last entry of all its pages; pages before
    the last one that says `first` do not count.
    """

    def folders(self) -> Iterable[Item | Tombstone]:
        """Return the stored folders and opaque items, and tombstones of those there were once.

        A folder is remembered that was deleted, or that a full enumeration did not list: its
        return is the sign of a restoration. Its descendants need not be kept.
        """

    def listed_folders(self) -> Iterable[Item | Tombstone]:
        """Return the listed folders and opaque items, and all listed tombstones."""

    def listed_parents(self) -> Iterable[str]:
        """Return the folders in which living items are listed."""

    def listed_children(self, folder_ids: Collection[str]) -> Mapping[str, int]:
        """Return how many living items are listed in each of some folders; 0 may be left out."""

    def displaced(self) -> bool:
        """Tell whether a living item, listed or not, has a listed one in its place.

        That is: another, living one in the same folder under the same name, whatever its case.
        What is stored of an item that is listed does not count.
        """


def check_complete(tree: StoredTree) -> None:
    """Look for signs that more happened since the last enumeration than the new one tells.

    Of one that listed everything there is no need to ask.

    Raises:
        Incomplete: There is one.
    """
    before, listed = Folders(tree.folders()), list(tree.listed_folders())
    after = before.updated(listed, full=False)
    after.check_complete(before)
    _check_new_folders(tree, [folder for folder in listed if folder.id not in before])
    if tree.displaced():
        raise Incomplete("an item has the name of another in the same folder")
    if not all(after.remembers(parent) for parent in tree.listed_parents()):
        raise Incomplete("a file was listed in a folder that is not known")


class _Folder(NamedTuple):
    parent_id: str | None
    name: str
    opaque: bool


class Folders:
    """The folders of a library by id, immutable.

    Args:
        folders: Folders and opaque items, in any order; tombstones of those that were deleted.
    """

    def __init__(self, folders: Iterable[Item | Tombstone]) -> None:
        self._living: dict[str, _Folder] = {}
        self._dead: set[str] = set()
        self._paths: dict[str, str | None] = {}
        self._cyclic = False
        for folder in folders:
            self._take(folder)

    def __contains__(self, folder_id: object) -> bool:
        return folder_id in self._living

    def remembers(self, folder_id: str | None) -> bool:
        """Tell whether a folder is there, or was deleted."""
        return folder_id in self._living or folder_id in self._dead

    def path(self, folder_id: str | None) -> str | None:
        """Return a folder's path from the root, which itself is `""`.

        None where the folder is not there, was deleted with one above it, or lies in a notebook.
        """
        if folder_id is None:
            return None
        if folder_id not in self._paths:
            self._find_paths(folder_id)
        return self._paths[folder_id]

    def located(self, item: Item | None) -> Located | None:
        """Return a file with its path; None where there is none that can be read."""
        if item is None or item.kind != "file":
            return None
        folder = self.path(item.parent_id)
        return None if folder is None else Located(item, f"{folder}/{item.name}")

    def updated(self, listed: Iterable[Item | Tombstone], *, full: bool) -> Folders:
        """Return the folders after an enumeration; a full one leaves none that it did not list."""
        updated = Folders(())
        updated._dead = set(self._dead)
        updated._living = {} if full else dict(self._living)
        for folder in listed:
            if isinstance(folder, Item) or folder.id in self._living:
                updated._take(folder)
        return updated

    def check_complete(self, before: Folders) -> None:
        """Look for signs that more happened to the folders of `before` than was told.

        Raises:
            Incomplete: There is one.
        """
        if not before._dead.isdisjoint(self._living):
            raise Incomplete("a folder was restored from the recycle bin")
        parents = (folder.parent_id for folder in self._living.values())
        if not all(parent is None or self.remembers(parent) for parent in parents):
            raise Incomplete("a folder was listed in one that is not known")
        if any(self.path(folder_id) is None and self._cyclic for folder_id in self._living):
            raise Incomplete("two folders were listed in each other")

    def _take(self, folder: Item | Tombstone) -> None:
        if isinstance(folder, Tombstone):
            self._living.pop(folder.id, None)
            self._dead.add(folder.id)
        else:
            opaque = folder.kind == "opaque"
            self._living[folder.id] = _Folder(folder.parent_id, folder.name, opaque)
            self._dead.discard(folder.id)

    def _find_paths(self, folder_id: str) -> None:
        """Remember the paths of a folder and of those above it."""
        chain: list[str] = []
        above: str | None = folder_id
        # Moved while the delta was paged, two folders can seem to lie in each other.
        while above in self._living and above not in self._paths and above not in chain:
            chain.append(above)
            above = self._living[above].parent_id
        self._cyclic |= above in chain
        # Above the root is nothing; what is above anything else was found before, or is not there.
        path = "" if above is None else self._paths.get(above)
        for each in reversed(chain):
            folder = self._living[each]
            if folder.opaque:
                path = None
            elif path is not None and folder.parent_id is not None:
                path = f"{path}/{folder.name}"
            self._paths[each] = path
        self._paths.setdefault(folder_id, None)


def _check_new_folders(tree: StoredTree, new: Iterable[Item | Tombstone]) -> None:
    """Check that what lies in folders nobody knew was listed too.

    Raises:
        Incomplete: Some of it was not, as may happen when a folder returns that was deleted
            before it was ever seen.
    """
    folders = (each for each in new if isinstance(each, Item) and each.kind == "folder")
    expected = {folder.id: folder.child_count for folder in folders}
    listed = tree.listed_children(expected.keys())
    if any(listed.get(folder_id, 0) < count for folder_id, count in expected.items()):
        raise Incomplete("a new folder was listed without all that is in it")
