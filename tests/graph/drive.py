"""A document library: folders and files, and which of them changed when.

Every change gets the next number of the drive's sequence. A delta is a question about those
numbers, so that paging, changes between pages and tombstones follow from the state alone.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Literal

__all__ = ["Behaviour", "Drive", "Node"]

BEGINNING = datetime(2026, 1, 5, 8, tzinfo=timezone.utc)

Extent = Literal["top", "folders", "all"]
"""What a change of a folder tells of: the folder, its subfolders too, or its files as well."""


@dataclass
class Behaviour:
    """Where Microsoft's documentation is silent or the service was seen to differ.

    Args:
        path_in_delta: `parentReference.path` stands in deltas (documented: it does not).
        ctag_in_delta: `cTag` stands in deltas (documented: not in SharePoint).
        quick_xor_hash: Files have a hash (documented: it may be absent).
        deletion_tells: How far the tombstones of a deleted folder go.
        restoration_tells: How far a restored folder's delta goes.
        stale_copies: The last item of a page is an older copy; the right one comes later.
        childs_first: Within a page, what lies in a folder comes before the folder.
        inflated: Bytes by which the reported size of a file exceeds what is served (Office files).
    """

    path_in_delta: bool = False
    ctag_in_delta: bool = False
    quick_xor_hash: bool = True
    deletion_tells: Extent = "folders"
    restoration_tells: Extent = "all"
    stale_copies: bool = False
    childs_first: bool = False
    inflated: int = 0


@dataclass(eq=False)
class Node:
    """A file or folder, or what is left of one."""

    id: str
    kind: Literal["root", "folder", "package", "file"]
    name: str
    parent: Node | None
    created: datetime
    author: str
    data: bytes = b""
    modified: datetime = BEGINNING
    version: int = 0
    content_version: int = 0
    changed: int = 0
    """The drive's sequence number at the last change."""
    deletion: int | None = None
    """The sequence number of the deletion that took it; None while it lives."""
    silent: bool = False
    """No delta tells that it was deleted."""
    children: dict[str, Node] = field(default_factory=dict)

    @property
    def guid(self) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_OID, self.id)).upper()

    @property
    def etag(self) -> str:
        return f'"{{{self.guid}}},{self.version}"'

    @property
    def ctag(self) -> str:
        return f'"c:{{{self.guid}}},{self.content_version}"'

    @property
    def path(self) -> str:
        """From the library's root, such as `/Results/a.csv`; the root's own is empty."""
        return "" if self.parent is None else f"{self.parent.path}/{self.name}"

    def descendants(self) -> Iterator[Node]:
        for child in self.children.values():
            yield child
            yield from child.descendants()


class Drive:
    """One library. Paths begin at its root and, as in SharePoint, do not care for case.

    Operations return the id of what they changed. They may be called from any thread.
    """

    def __init__(self, drive_id: str, name: str, url: str) -> None:
        self.id = drive_id
        self.name = name
        self.url = url
        self.behaviour = Behaviour()
        self.generation = 0
        """Delta tokens of earlier generations have expired."""
        self.sequence = 0
        self.lock = threading.RLock()
        self._nodes: dict[str, Node] = {}
        self.root = self._add("root", "root", None, "System Account")

    # --- what people do ---------------------------------------------------------------------

    def write(self, path: str, data: bytes | str, *, author: str = "Ada Lovelace") -> str:
        """Create a file, with the folders above it, or replace what is in it."""
        with self.lock:
            node = self.find(path)
            if node is None:
                node = self._add("file", *self._place(path), author)
            else:
                self._change(node)
            node.data = data.encode() if isinstance(data, str) else data
            node.author = author
            node.content_version += 1
            return node.id

    def make_folder(self, path: str, *, package: bool = False) -> str:
        """Create a folder and those above it; a package is what a OneNote notebook is."""
        with self.lock:
            kind: Literal["package", "folder"] = "package" if package else "folder"
            return (self.find(path) or self._add(kind, *self._place(path), "Ada Lovelace")).id

    def touch(self, path: str) -> str:
        """Change something about an item, its sharing for instance, but nothing in it."""
        with self.lock:
            return self._change(self[path])

    def rename(self, path: str, name: str) -> str:
        with self.lock:
            return self._relocate(self[path], self[path].parent, name)

    def move(self, path: str, folder: str) -> str:
        """Put an item into another folder, which is created if need be."""
        with self.lock:
            node = self[path]
            self.make_folder(folder)
            return self._relocate(node, self[folder], node.name)

    def delete(self, path: str, *, silently: bool = False) -> str:
        """Put an item into the recycle bin, with all that is in it.

        Args:
            silently: No delta tells of it, as was seen of deletions while a delta is paged.
        """
        with self.lock:
            node = self[path]
            assert node.parent is not None
            del node.parent.children[node.name.casefold()]
            deletion = self.sequence + 1
            for each in [node, *node.descendants()]:
                each.deletion, each.silent = deletion, silently
                self._tell(each, node, self.behaviour.deletion_tells)
            return node.id

    def restore(self, item_id: str) -> str:
        """Take an item out of the recycle bin, with all that was deleted with it."""
        with self.lock:
            node = self._nodes[item_id]
            assert node.parent is not None
            assert node.deletion is not None
            for each in [node, *node.descendants()]:
                each.deletion, each.silent = None, False
                self._tell(each, node, self.behaviour.restoration_tells)
            node.parent.children[node.name.casefold()] = node
            return node.id

    def expire_tokens(self) -> None:
        """Let every delta link that was given out be answered with 410."""
        self.generation += 1

    # --- what Graph asks --------------------------------------------------------------------

    def __getitem__(self, path: str) -> Node:
        node = self.find(path)
        assert node is not None, f"There is no {path} in {self.name}."
        return node

    def find(self, path: str, *, beneath: Node | None = None) -> Node | None:
        """Return what lies at a path, or None."""
        node = beneath or self.root
        for name in filter(None, path.split("/")):
            child = node.children.get(name.casefold())
            if child is None:
                return None
            node = child
        return node

    def node(self, item_id: str) -> Node | None:
        """Return a living item by its id, or None."""
        node = self._nodes.get(item_id)
        return node if node is not None and node.deletion is None else None

    def listing(self, after: int, died_after: int) -> list[Node]:
        """Return what changed after a sequence number, in that order.

        Args:
            died_after: Tombstones are of what was deleted after this number.
        """
        with self.lock:
            found = [
                node
                for node in self._nodes.values()
                if node.changed > after
                and (node.deletion is None or (node.deletion > died_after and not node.silent))
            ]
        return sorted(found, key=lambda node: node.changed)

    # --- how it is kept ---------------------------------------------------------------------

    def _place(self, path: str) -> tuple[str, Node]:
        """Return the name of a new item, and the folder it goes into."""
        folder, _, name = path.rstrip("/").rpartition("/")
        if folder:
            self.make_folder(folder)
        return name, self[folder]

    def _add(
        self,
        kind: Literal["root", "folder", "package", "file"],
        name: str,
        parent: Node | None,
        author: str,
    ) -> Node:
        item_id = f"01{self.id[-4:].upper()}{len(self._nodes):08}"
        node = Node(item_id, kind, name, parent, self._now(), author)
        self._nodes[node.id] = node
        if parent is not None:
            parent.children[name.casefold()] = node
        self._change(node)
        return node

    def _relocate(self, node: Node, folder: Node | None, name: str) -> str:
        assert node.parent is not None
        assert folder is not None
        assert name.casefold() not in folder.children or folder.children[name.casefold()] is node
        del node.parent.children[node.name.casefold()]
        node.parent, node.name = folder, name
        folder.children[name.casefold()] = node
        return self._change(node)

    def _change(self, node: Node) -> str:
        self.sequence += 1
        node.version += 1
        node.changed = self.sequence
        node.modified = self._now()
        return node.id

    def _now(self) -> datetime:
        return BEGINNING + timedelta(seconds=self.sequence)

    def _tell(self, node: Node, top: Node, extent: Extent) -> None:
        """Let deltas tell of an item, if they go so far when this happens to the top folder."""
        if node is top or extent == "all" or (extent == "folders" and node.kind != "file"):
            self.sequence += 1
            node.changed = self.sequence
