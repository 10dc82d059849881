"""What a library says of its files and folders, parsed once from Graph's JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal

from dagster_tools.errors import SharePointError

__all__ = ["SELECTED", "Item", "Tombstone", "parse_item", "parse_listed"]

SELECTED = (
    "id,name,eTag,cTag,size,webUrl,createdDateTime,lastModifiedDateTime,lastModifiedBy,"
    "parentReference,file,folder,package,root,deleted"
)
"""The properties asked for: all that is used here, and no pre-authenticated URL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A file or a folder as it is now.

    Args:
        kind: `opaque` is what cannot be read as a file: a OneNote notebook, a link to elsewhere.
        parent_id: The folder it lies in; None for the library's root.
        name: Its own name; the root's is of no use.
        etag: Changes whenever anything about it does.
        ctag: Changes when its content does. SharePoint leaves it out of deltas.
        url: Where people open it in the browser.
        child_count: Of a folder, how many items it had when it was listed.
    """

    id: str
    kind: Literal["file", "folder", "opaque"]
    parent_id: str | None
    name: str
    etag: str | None = None
    ctag: str | None = None
    size: int = 0
    created: datetime | None = None
    modified: datetime | None = None
    modified_by: str | None = None
    url: str = ""
    child_count: int = 0


@dataclass(frozen=True, slots=True)
class Tombstone:
    """What is left of a deleted file or folder: not even its name."""

    id: str


def parse_listed(resource: Mapping[str, Any]) -> Item | Tombstone:
    """Return an entry of a delta.

    Raises:
        SharePointError: It is not what Graph documents.
    """
    if "deleted" in resource:
        return Tombstone(_required(resource, "id"))
    return parse_item(resource)


def parse_item(resource: Mapping[str, Any]) -> Item:
    """Return a driveItem (Microsoft Graph, "driveItem resource type").

    Raises:
        SharePointError: It is not what Graph documents.
    """
    parent = resource.get("parentReference") or {}
    return Item(
        id=_required(resource, "id"),
        kind=_kind(resource),
        parent_id=None if "root" in resource else _required(parent, "id"),
        name=_required(resource, "name"),
        etag=resource.get("eTag"),
        ctag=resource.get("cTag"),
        size=resource.get("size") or 0,
        created=_moment(resource.get("createdDateTime")),
        modified=_moment(resource.get("lastModifiedDateTime")),
        modified_by=_person(resource.get("lastModifiedBy") or {}),
        url=resource.get("webUrl") or "",
        child_count=(resource.get("folder") or {}).get("childCount") or 0,
    )


def _required(resource: Mapping[str, Any], name: str) -> str:
    value = resource.get(name)
    if not isinstance(value, str):
        raise SharePointError(
            f"Microsoft Graph listed an item (id {resource.get('id')}) without {name!r}."
        )
    return value


def _kind(resource: Mapping[str, Any]) -> Literal["file", "folder", "opaque"]:
    # A notebook has the facets of both a package and, at times, a folder.
    if "package" in resource or "remoteItem" in resource:
        return "opaque"
    if "file" in resource:
        return "file"
    return "folder" if "folder" in resource or "root" in resource else "opaque"


def _person(identities: Mapping[str, Any]) -> str | None:
    """Return who it was: a person, or the app that did it on its own account."""
    for kind in ("user", "application", "device"):
        identity = identities.get(kind) or {}
        name = identity.get("displayName") or identity.get("email")
        if name:
            return str(name)
    return None


_MOMENT = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?Z")


def _moment(text: str | None) -> datetime | None:
    """Return a time in UTC, which Graph writes with and without fractions of any length."""
    found = _MOMENT.fullmatch(text or "")
    if found is None:
        return None
    microseconds = int((found[2] or ".0")[1:7].ljust(6, "0"))
    moment = datetime.fromisoformat(found[1]).replace(tzinfo=timezone.utc)
    return moment.replace(microsecond=microseconds)
