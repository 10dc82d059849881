"""What a delta of a drive tells, page by page, and where a token says it stands."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, replace

from tests.graph.drive import Drive, Node

__all__ = ["DeltaPage", "DeltaToken", "delta_page"]


@dataclass(frozen=True)
class DeltaToken:
    """Where an enumeration stands: what a nextLink or a deltaLink holds, sealed.

    Args:
        since: The sequence number the enumeration begins after; 0 for everything.
        position: The last number that was told.
        started: The drive's number when the enumeration began.
        generation: The drive's, when the token was given out.
        page_size: Items in a page.
    """

    since: int
    position: int
    started: int
    generation: int
    page_size: int

    @classmethod
    def beginning(cls, drive: Drive, page_size: int, *, latest: bool = False) -> DeltaToken:
        """Return the token of a new enumeration: of everything, or of what comes from now on."""
        since = drive.sequence if latest else 0
        return cls(since, since, drive.sequence, drive.generation, page_size)

    @classmethod
    def opened(cls, sealed: str) -> DeltaToken:
        """Return the token a link holds.

        Raises:
            ValueError: It holds none.
        """
        return cls(*json.loads(base64.urlsafe_b64decode(sealed + "=" * (-len(sealed) % 4))))

    def sealed(self) -> str:
        values = json.dumps([*self.__dict__.values()])
        return base64.urlsafe_b64encode(values.encode()).decode().rstrip("=")


@dataclass(frozen=True)
class DeltaPage:
    """A page of an enumeration.

    Args:
        entries: Items, and whether an older copy of them is told.
        following: What the page's link holds.
        last: It is a deltaLink, and not a nextLink.
    """

    entries: list[tuple[Node, bool]]
    following: DeltaToken
    last: bool


def delta_page(drive: Drive, token: DeltaToken, *, with_ancestors: bool = True) -> DeltaPage:
    """Return the page a token stands before.

    Only the latest state of an item is told, at the place of its latest change: what changes
    while pages are read is told again on a later one.
    """
    with drive.lock:
        # Of what died before a full enumeration began, it has nothing to tell.
        listed = drive.listing(token.position, token.since or token.started)
        nodes, last = listed[: token.page_size], len(listed) <= token.page_size
        entries = [(node, False) for node in nodes]
        position = nodes[-1].changed if nodes else token.position
        if drive.behaviour.childs_first:
            entries.reverse()
        if drive.behaviour.stale_copies and len(nodes) > 1:
            stale = (nodes[-1], True)
            if last:
                entries.insert(0, stale)
            else:
                entries[entries.index((nodes[-1], False))] = stale
                position = nodes[-2].changed
        if with_ancestors and token.position == token.since > 0:
            entries = _ancestors(nodes) + entries
        following = replace(token, position=position)
        if last:
            following = DeltaToken.beginning(drive, token.page_size, latest=True)
        return DeltaPage(entries, following, last)


def _ancestors(nodes: list[Node]) -> list[tuple[Node, bool]]:
    """Return the folders above items, root first, which changes are told together with."""
    above: dict[str, Node] = {}
    for node in nodes:
        chain, folder = [], node.parent
        while folder is not None:
            chain.append(folder)
            folder = folder.parent
        above.update((each.id, each) for each in reversed(chain) if each.deletion is None)
    return [(node, False) for node in above.values() if node not in nodes]
