"""A `StoredTree` in memory: the definition of what any other has to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from dagster_tools.sharepoint import (
    Folders,
    Item,
    Library,
    Located,
    SharePointFile,
    StoredTree,
    Tombstone,
    Watch,
    check_complete,
)


class Transition(NamedTuple):
    """A file before and after; None where there was none or is none any longer."""

    id: str
    before: Located | None
    after: Located | None


def seen(watch: Watch, located: Located | None, library: Library) -> Located | None:
    """Return a file as who watches sees it: None where they do not."""
    if located is None or not watch.sees(SharePointFile.of(located, library)):
        return None
    return located


class MemoryTree(StoredTree):
    """A library as it was stored, and the entries of an enumeration since."""

    def __init__(self, items: Iterable[Item] = ()) -> None:
        self.items = {item.id: item for item in items}
        self.dead: set[str] = set()
        self.listed: dict[str, Item | Tombstone] = {}

    def update(
        self, entries: Iterable[Item | Tombstone], *, full: bool = False
    ) -> list[Transition]:
        """Take an enumeration in, and return what became of the files that are listed or changed.

        Nothing is stored if it fails.
        """
        self.listed = {}
        for entry in entries:
            self.listed.pop(entry.id, None)
            self.listed[entry.id] = entry
        if full:
            self._drop_displaced()
        else:
            check_complete(self)
        before = self._located()
        self._store(full=full)
        after = self._located()
        return [
            Transition(each, before.get(each), after.get(each))
            for each in before.keys() | after.keys()
            if each in self.listed or before.get(each) != after.get(each)
        ]

    def _located(self) -> dict[str, Located]:
        folders = Folders(self.folders())
        located = ((each.id, folders.located(each)) for each in self.items.values())
        return {item_id: where for item_id, where in located if where is not None}

    def _drop_displaced(self) -> None:
        """Of two listed items in one place the first was deleted before the second was made."""
        places = {
            (entry.parent_id, entry.name.casefold()): entry.id
            for entry in self.listed.values()
            if isinstance(entry, Item)
        }
        self.listed = {
            entry.id: entry
            for entry in self.listed.values()
            if not isinstance(entry, Item)
            or entry.parent_id is None
            or places[entry.parent_id, entry.name.casefold()] == entry.id
        }

    def folders(self) -> Iterator[Item | Tombstone]:
        yield from (item for item in self.items.values() if item.kind != "file")
        yield from (Tombstone(item_id) for item_id in self.dead)

    def listed_folders(self) -> Iterator[Item | Tombstone]:
        for entry in self.listed.values():
            if isinstance(entry, Tombstone) or entry.kind != "file":
                yield entry

    def listed_parents(self) -> set[str]:
        listed = (each for each in self.listed.values() if isinstance(each, Item))
        return {each.parent_id for each in listed if each.parent_id is not None}

    def listed_children(self, folder_ids: Collection[str]) -> Counter[str]:
        listed = (each for each in self.listed.values() if isinstance(each, Item))
        parents = (each.parent_id for each in listed if each.parent_id is not None)
        return Counter(parent for parent in parents if parent in folder_ids)

    def displaced(self) -> bool:
        taken = Counter(
            (entry.parent_id, entry.name.casefold())
            for entry in self.listed.values()
            if isinstance(entry, Item) and entry.parent_id is not None
        )
        return any(count > 1 for count in taken.values()) or any(
            (item.parent_id, item.name.casefold()) in taken
            for item in self.items.values()
            if item.id not in self.listed
        )

    def _store(self, *, full: bool) -> None:
        before = self.items
        living = {e.id: e for e in self.listed.values() if isinstance(e, Item)}
        self.items = living if full else {**before, **living}
        for entry in self.listed.values():
            if isinstance(entry, Tombstone):
                self.items.pop(entry.id, None)
        folders = {item.id for item in before.values() if item.kind != "file"}
        self.dead = (self.dead | folders) - self.items.keys()
