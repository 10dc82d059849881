"""What changed in a library since it was last asked, page by page.

Protocol: Microsoft Graph, "driveItem: delta". Links are opaque and kept whole.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from dagster_tools.errors import SharePointError
from dagster_tools.sharepoint.client import Answer, GraphClient
from dagster_tools.sharepoint.items import SELECTED, Item, Tombstone, parse_listed
from dagster_tools.sharepoint.sites import Library

__all__ = ["Page", "changes"]

EMPTY_PAGES = 1000
"""Pages in a row without an entry, after which an enumeration is taken to have no end."""

RESTARTS = 2
TOKEN_REFUSED = frozenset({400, 404, 410})


@dataclass(frozen=True, slots=True)
class Page:
    """A part of an enumeration.

    The same item may be listed several times, in one page or in several; the last entry counts,
    and what became of a folder is known at the end.

    Args:
        first: The enumeration begins here: what pages before this one said is void.
        full: It lists everything there is, and what it does not list is gone; without, what
            changed since the link.
        link: Where to ask from next time. The last page alone has one.
    """

    items: tuple[Item | Tombstone, ...]
    first: bool
    full: bool
    link: str | None = field(default=None, repr=False)


class _TokenRefused(Exception):
    """An enumeration cannot be gone on with.

    Args:
        error: What to raise where a new one is of no help either.
        location: Where the service says to begin anew.
    """

    def __init__(self, error: SharePointError, location: str | None = None) -> None:
        super().__init__()
        self.error, self.location = error, location


async def changes(
    client: GraphClient, library: Library, link: str | None = None
) -> AsyncIterator[Page]:
    """Yield what changed in a library since a link was given, or all there is.

    Where the service does not know the link any longer, refuses to go on, or goes round in
    circles, everything is listed anew: a page that says `first` and `full` comes next. One such
    beginning may be where the service points to; if that fails too, the last is from nothing.

    Args:
        link: The last one, stored when all of its enumeration was; None for all there is.

    Raises:
        SharePointError: As `GraphClient.get`; or the enumeration failed from nothing too, or is
            not complete. Then nothing may be concluded from the pages that came.
    """
    start, full = link or _from_nothing(library), link is None
    restarts = 0
    while True:
        try:
            async for page in _enumeration(client, library, start, full=full):
                yield page
            return  # noqa: TRY300  # an else after yield reads worse
        except _TokenRefused as refusal:
            restarts += 1
            if restarts > RESTARTS:
                raise refusal.error from None
            pointed_to = refusal.location if restarts == 1 else None
            start, full = pointed_to or _from_nothing(library), True


async def _enumeration(
    client: GraphClient, library: Library, start: str, *, full: bool
) -> AsyncIterator[Page]:
    subject = f"changes of library {library.name!r} of site {library.site.name!r}"
    params = {"$top": str(client.page_size), "$select": SELECTED}
    following: str | None = start
    asked, empty, complete, first = set(), 0, not full, True
    while following is not None:
        asked.add(hash(following))
        by_token = following != _from_nothing(library)
        answer = await client.get(
            following,
            subject,
            params=None if by_token else params,
            accept=TOKEN_REFUSED if by_token else (),
        )
        if answer.status in TOKEN_REFUSED:
            raise _TokenRefused(client.error(answer, subject), answer.location)
        items = tuple(parse_listed(entry) for entry in answer.body.get("value", []))
        following, link = _links(answer, subject)
        empty = 0 if items else empty + 1
        if hash(following) in asked or empty > EMPTY_PAGES:
            raise _TokenRefused(SharePointError(f"The pages of the {subject} have no end."))
        complete = complete or any(isinstance(i, Item) and i.parent_id is None for i in items)
        if link is not None and not complete:
            # Taken for the truth, it would mean that every file was deleted.
            raise SharePointError(
                f"Microsoft Graph listed the {subject} in full without the library's root. Nothing "
                "was concluded from that."
            )
        yield Page(items, first, full, link)
        first = False


def _from_nothing(library: Library) -> str:
    return f"/drives/{library.drive_id}/root/delta"


def _links(answer: Answer, subject: str) -> tuple[str | None, str | None]:
    """Return the link to the next page, or the one for next time."""
    following = answer.body.get("@odata.nextLink")
    link = answer.body.get("@odata.deltaLink")
    if following is None and link is None:
        raise SharePointError(f"Microsoft Graph broke off the {subject}: a page has no link.")
    return following, None if following else link
