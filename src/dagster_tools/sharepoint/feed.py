"""What libraries hold and what assets have of it: taken in, compared, delivered.

`take_in` brings what changed in a library to a store, `find_work` tells what an asset still has
to do. That is no queue but a difference: the files as they are now, of those the asset watches,
against the files that were delivered to it. So nothing gets lost, whichever run fails where; a
changed filter or a folder moved away needs no case of its own.

The store is a database's (`Store`), and this package knows none.
"""

from __future__ import annotations

import fnmatch
import json
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass, fields
from datetime import datetime, timedelta, timezone
from typing import Any, Literal, NamedTuple, Protocol, TextIO, TypeAlias

from dagster_tools.errors import SharePointError
from dagster_tools.sharepoint.client import GraphClient
from dagster_tools.sharepoint.delta import Page, changes
from dagster_tools.sharepoint.files import SharePointFile
from dagster_tools.sharepoint.items import Item, Tombstone
from dagster_tools.sharepoint.sites import Library, Site, find_library, find_site
from dagster_tools.sharepoint.tree import (
    Change,
    Folders,
    Incomplete,
    Located,
    change_between,
    check_complete,
)
from dagster_tools.sharepoint.watch import Watch

__all__ = [
    "ITEM_FIELDS",
    "Again",
    "AssetState",
    "Claim",
    "Claimed",
    "Delivered",
    "Incoming",
    "LibraryState",
    "Store",
    "View",
    "Watched",
    "find_work",
    "missing_folders",
    "resolve",
    "take_in",
]

Row: TypeAlias = Sequence[Any]

ITEM_FIELDS = tuple(field.name for field in fields(Item))
"""What a store's row of an item has, in this order; of a tombstone an id, and kind "deleted"."""

LISTED_IN_FULL_EVERY = timedelta(days=7)
"""How often a library is listed in full: deltas were seen to leave things out."""

TRIES = 5
"""How often what was taken in may turn out to be late, or not all, before that is an error."""

SPOOLED = 8 * 2**20


# --- what a store has -----------------------------------------------------------------------


class Delivered(NamedTuple):
    """A file as it was when its contents were last stored for an asset."""

    drive_id: str
    id: str
    etag: str | None
    path: str
    url: str
    size: int
    created: datetime | None
    modified: datetime | None
    modified_by: str | None


class LibraryState(NamedTuple):
    """How far the changes of a library were taken in.

    Args:
        generation: Counts the times that something changed.
        listed_at: When everything was last listed.
    """

    link: str | None
    generation: int
    listed_at: datetime | None


class AssetState(NamedTuple):
    """What was last delivered to an asset.

    Args:
        token: Tells the database apart from another one with such tables.
        deliveries: How many there were.
        clean: The watch and the generations at which nothing was left to do.
        claim_id: Of what another IO manager may or may not have stored.
    """

    token: str
    deliveries: int
    clean: str | None
    run_id: str | None
    claim_id: str | None


class View(Protocol):
    """The store at one moment."""

    def library_states(self, drive_ids: Collection[str]) -> Mapping[str, Row]:
        """Return the row of `LibraryState` of those libraries that are remembered."""

    def asset(self, asset_key: str) -> Row | None:
        """Return the row of `AssetState`; None where nothing was ever delivered."""

    def folders(self, drive_id: str) -> Iterable[Row]:
        """Return the folders and opaque items of a library, also those that were deleted."""

    def delivered_drives(self, asset_key: str) -> Collection[str]:
        """Return the libraries an asset was delivered files of."""

    def compared(
        self, asset_key: str, drive_id: str, folder_ids: Sequence[str]
    ) -> Iterable[tuple[Row | None, Row | None]]:
        """Yield the files in some folders, and those delivered, side by side.

        The first is an item's row as it is now, the second one of `Delivered`.
        """

    def quarantined(self, asset_key: str) -> Collection[tuple[str, str, str | None]]:
        """Return drive, id and version of the files that are left out until they change."""

    def library(self, drive_id: str) -> Row | None:
        """Return what `Store.remember` was told."""


class Incoming(Protocol):
    """An enumeration of a library that has ended, in the transaction that stores it."""

    def folders(self) -> Iterable[Row]:
        """See `StoredTree`."""

    def listed_folders(self) -> Iterable[Row]:
        """See `StoredTree`."""

    def listed_parents(self) -> Iterable[str]:
        """See `StoredTree`."""

    def listed_children(self, folder_ids: Collection[str]) -> Mapping[str, int]:
        """See `StoredTree`."""

    def displaced(self) -> bool:
        """See `StoredTree`."""

    def apply(self, *, full: bool, link: str) -> None:
        """Let the enumeration be what the library holds, and ask from this link next time."""


class Store(Protocol):
    """Where the feed is kept."""

    def reading(self) -> AbstractContextManager[View]:
        """Look at one moment of it; what is yielded must be read within."""

    def taking_in(
        self, drive_id: str, generation: int, rows: Iterable[Row]
    ) -> AbstractContextManager[Incoming | None]:
        """Begin to store an enumeration, all or nothing.

        None where the library is at another generation meanwhile: then it is void.

        Args:
            rows: Of items and tombstones, in the order they came; the last of an id counts.
        """

    def advance(self, drive_id: str, generation: int, link: str) -> bool:
        """Ask from this link next time, as nothing changed; False as `taking_in` gives None."""

    def address(self, site: str, library: str) -> Row | None:
        """Return the row of the library that a watch's words were found to mean."""

    def remember(self, site: str, library: str, row: Row) -> None:
        """Remember that: drive, name and URL of a library, then id, name and URL of its site."""

    def forget(self, site: str, library: str) -> None:
        """Forget that."""


# --- which libraries ------------------------------------------------------------------------


class Watched(NamedTuple):
    """A watch and the library it means."""

    watch: Watch
    library: Library


async def resolve(
    client: GraphClient, store: Store, watches: Iterable[Watch], *, anew: bool = False
) -> list[Watched]:
    """Return which library each watch means; what was found once is not asked for again.

    Raises:
        SharePointNotFound: A site or library is not there, or several are called so.
        SharePointAccessDenied: A permission is missing.
    """
    return [Watched(watch, await _library(client, store, watch, anew=anew)) for watch in watches]


async def _library(client: GraphClient, store: Store, watch: Watch, *, anew: bool) -> Library:
    words = (watch.site, watch.library or "")
    row = None if anew else store.address(*words)
    if row is not None:
        return _library_of(row)
    site = await find_site(client, watch.site)
    library = await find_library(client, site, watch.library)
    store.remember(*words, (*astuple(library)[:3], site.id, site.name, site.url))
    return library


def _library_of(row: Row) -> Library:
    drive_id, name, url, *site = row
    return Library(drive_id, name, url, Site(*site))


# --- taking in ------------------------------------------------------------------------------


async def take_in(
    client: GraphClient, library: Library, store: Store, *, full: bool = False
) -> None:
    """Bring the store up to what a library holds now.

    What comes over the network comes without a transaction or a lock. What was taken in becomes
    visible together with the link to ask from next time, or nothing of it does.

    Args:
        full: List everything, whatever is known.

    Raises:
        SharePointError: As `changes`. The store is as it was.
    """
    for _try in range(TRIES):
        with store.reading() as view:
            state = LibraryState(*view.library_states([library.drive_id])[library.drive_id])
        link = None if full or _due(state) else state.link
        with _Enumeration() as enumeration:
            async for page in changes(client, library, link):
                enumeration.add(page)
            try:
                if _stored(store, library, state.generation, enumeration):
                    return
            except Incomplete:
                full = True
    raise SharePointError(
        f"Library {library.name!r} of site {library.site.name!r} kept being taken in by others, or "
        f"what Microsoft Graph told of it was not all that happened, {TRIES} times in a row."
    )


def _stored(store: Store, library: Library, generation: int, enumeration: _Enumeration) -> bool:
    """Store an enumeration; tell whether the library was still at its generation.

    Raises:
        Incomplete: It does not tell all that happened.
    """
    drive_id, link = library.drive_id, enumeration.link
    if enumeration.empty and not enumeration.full:
        return store.advance(drive_id, generation, link)
    with store.taking_in(drive_id, generation, enumeration) as incoming:
        if incoming is None:
            return False
        if not enumeration.full:
            check_complete(_Incoming(incoming))
        incoming.apply(full=enumeration.full, link=link)
        return True


def _due(state: LibraryState) -> bool:
    """Tell whether everything is to be listed again, to find what deltas left out."""
    if state.listed_at is None:
        return True
    return datetime.now(timezone.utc) - state.listed_at > LISTED_IN_FULL_EVERY


class _Enumeration:
    """The rows of an enumeration in the order they came; on disk where they are many.

    When it has ended, it is `empty` or not, `full` or not, and has a `link` for next time.
    """

    def __init__(self) -> None:
        self.empty, self.full, self.link = True, False, ""
        self._file: TextIO = tempfile.SpooledTemporaryFile(  # type: ignore[assignment]  # noqa: SIM115
            SPOOLED, "w+", encoding="utf-8"
        )

    def __enter__(self) -> _Enumeration:  # noqa: PYI034  # typing has no Self in Python 3.10
        return self

    def __exit__(self, *failure: object) -> None:
        self._file.close()

    def add(self, page: Page) -> None:
        """Take a page; the one that says `first` makes those before it void."""
        if page.first:
            self._file.seek(0)
            self._file.truncate()
        for entry in page.items:
            row = astuple(entry) if isinstance(entry, Item) else (entry.id, "deleted")
            self._file.write(json.dumps(row, default=datetime.isoformat) + "\n")
        self.empty = self._file.tell() == 0
        self.full, self.link = page.full, page.link or ""

    def __iter__(self) -> Iterator[Row]:
        self._file.seek(0)
        width = len(ITEM_FIELDS)
        for line in self._file:
            row = json.loads(line)
            yield row + [None] * (width - len(row))


@dataclass(frozen=True, slots=True)
class _Incoming:
    """An enumeration as `check_complete` looks at it."""

    rows: Incoming

    def folders(self) -> Iterator[Item | Tombstone]:
        return map(_item, self.rows.folders())

    def listed_folders(self) -> Iterator[Item | Tombstone]:
        return map(_item, self.rows.listed_folders())

    def listed_parents(self) -> Iterable[str]:
        return self.rows.listed_parents()

    def listed_children(self, folder_ids: Collection[str]) -> Mapping[str, int]:
        return self.rows.listed_children(folder_ids)

    def displaced(self) -> bool:
        return self.rows.displaced()


def _item(row: Row) -> Item | Tombstone:
    values = dict(zip(ITEM_FIELDS, row, strict=True))
    return Tombstone(values["id"]) if values["kind"] == "deleted" else Item(**values)


# --- what is to be done ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Again:
    """Files to deliver again although they did not change.

    Args:
        everything: All of them.
        paths: Patterns of paths, such as `/Results/2024/*.csv`; `*` also stands for slashes.
        ids: Of files.
        since: Those modified since.
    """

    everything: bool = False
    paths: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    since: datetime | None = None

    def means(self, file: SharePointFile) -> bool:
        """Tell whether a file is among them."""
        path = file.path.casefold()
        return (
            self.everything
            or file.id in self.ids
            or any(fnmatch.fnmatchcase(path, _pattern(each)) for each in self.paths)
            or (
                self.since is not None and file.modified is not None and file.modified >= self.since
            )
        )


def _pattern(path: str) -> str:
    return path.casefold() if path.startswith(("/", "*")) else f"/{path.casefold()}"


@dataclass(frozen=True, slots=True)
class Claimed:
    """A file that is handed to an asset, and what is to be recorded once it has stored it."""

    file: SharePointFile
    now: Delivered | None


@dataclass(frozen=True, slots=True)
class Claim:
    """What is to be done for one asset.

    Args:
        files: To be handed to it; in snapshot mode all there are.
        pending: How many of them changed, or are to be delivered again.
        held_back: Files that could not be read and did not change since.
        state: The asset's, when this was found out.
        signature: The watch and the generations of its libraries then.
    """

    asset_key: str
    files: tuple[Claimed, ...]
    pending: int
    held_back: int
    state: AssetState | None
    signature: str

    @property
    def delivered_before(self) -> bool:
        """Whether anything ever was delivered to the asset."""
        return self.state is not None and self.state.deliveries > 0


def find_work(
    view: View,
    asset_key: str,
    watched: Sequence[Watched],
    client: GraphClient | None = None,
    *,
    again: Again = Again(),
    snapshot: bool = False,
) -> Claim:
    """Return what is to be done for an asset, as of one moment of the store.

    Nothing is read but a row where nothing can have changed since nothing was left to do.

    Args:
        client: What the files are read with; without one they can be looked at alone.
        again: Which files besides, though they did not change.
        snapshot: All current files are to be handed over as soon as there is something to do.
    """
    row = view.asset(asset_key)
    state = AssetState(*row) if row is not None else None
    rows = view.library_states({each.library.drive_id for each in watched})
    signature = _signature(watched, {drive: LibraryState(*row) for drive, row in rows.items()})
    if state is not None and state.clean == signature and again == Again():
        return Claim(asset_key, (), 0, 0, state, signature)
    held_back = set(view.quarantined(asset_key))
    files: list[Claimed] = []
    unchanged: list[Claimed] = []
    left_out = 0
    for file, now in _differences(view, asset_key, watched, client):
        wanted = again.means(file)
        if now is not None and not wanted and (now.drive_id, now.id, now.etag) in held_back:
            left_out += 1
        elif file.change != "unchanged" or wanted:
            files.append(Claimed(file, now))
        elif snapshot:
            unchanged.append(Claimed(file, now))
    pending = len(files)
    if snapshot and pending:
        files += unchanged
    files.sort(key=lambda each: each.file.path)
    return Claim(asset_key, tuple(files), pending, left_out, state, signature)


def missing_folders(view: View, watched: Sequence[Watched]) -> list[Watched]:
    """Return those whose folder is not there."""
    missing = []
    for each in watched:
        items = [_item(row) for row in view.folders(each.library.drive_id)]
        folders = Folders(items)
        paths = {(folders.path(item.id) or "").casefold() for item in items}
        if each.watch.folder.rstrip("/").casefold() not in paths:
            missing.append(each)
    return missing


def _signature(watched: Sequence[Watched], states: Mapping[str, LibraryState]) -> str:
    definitions = sorted(each.watch.definition for each in watched)
    generations = {drive: state.generation for drive, state in sorted(states.items())}
    return json.dumps({"generations": generations, "watch": definitions})


def _differences(
    view: View, asset_key: str, watched: Sequence[Watched], client: GraphClient | None
) -> Iterator[tuple[SharePointFile, Delivered | None]]:
    """Yield each file that is watched or was delivered, and what it is now to be recorded as."""
    libraries = {each.library.drive_id: each.library for each in watched}
    for drive_id in {*libraries, *view.delivered_drives(asset_key)}:
        library = libraries.get(drive_id) or _stored_library(view, drive_id)
        watches = [each.watch for each in watched if each.library.drive_id == drive_id]
        items = [_item(row) for row in view.folders(drive_id)] if watches else []
        folders = Folders(items)
        covered = [
            item.id
            for item in items
            if (path := folders.path(item.id)) is not None
            and any(watch.covers(path) for watch in watches)
        ]
        for item_row, delivered_row in view.compared(asset_key, drive_id, covered):
            item = _item(item_row) if item_row is not None else None
            located = folders.located(item if isinstance(item, Item) else None)
            was = Delivered(*delivered_row) if delivered_row is not None else None
            found = _difference(located, was, watches, library, client)
            if found is not None:
                yield found


def _stored_library(view: View, drive_id: str) -> Library:
    """Return a library that is watched no longer."""
    row = view.library(drive_id)
    return _library_of(row) if row is not None else Library(drive_id, "", "", Site("", "", ""))


def _difference(
    located: Located | None,
    was: Delivered | None,
    watches: Sequence[Watch],
    library: Library,
    client: GraphClient | None,
) -> tuple[SharePointFile, Delivered | None] | None:
    seen = None
    if located is not None:
        looked_at = SharePointFile.of(located, library)
        seen = located if any(watch.sees(looked_at) for watch in watches) else None
    change = change_between(was, seen)
    if seen is not None:
        file = SharePointFile.of(seen, library, change or "unchanged", client)
        return file, _delivered(file)
    if was is not None:
        return _gone(was, library), None
    return None


def _delivered(file: SharePointFile) -> Delivered:
    return Delivered(
        file.drive_id,
        file.id,
        file.etag,
        file.path,
        file.url,
        file.size,
        file.created,
        file.modified,
        file.modified_by,
    )


def _gone(was: Delivered, library: Library) -> SharePointFile:
    change: Change | Literal["unchanged"] = "deleted"
    return SharePointFile(
        id=was.id,
        name=was.path.rpartition("/")[2],
        path=was.path,
        url=was.url,
        site=library.site.name,
        library=library.name,
        drive_id=was.drive_id,
        change=change,
        modified=was.modified,
        created=was.created,
        size=was.size,
        etag=was.etag,
        modified_by=was.modified_by,
    )
