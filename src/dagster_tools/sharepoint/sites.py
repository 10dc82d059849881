"""Which site, which library, which folder: names as people know them → ids as Graph does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from dagster_tools.errors import SharePointAccessDenied, SharePointError, SharePointNotFound, listed
from dagster_tools.sharepoint.client import GraphClient
from dagster_tools.sharepoint.items import Item, parse_item

__all__ = ["Library", "Site", "find_folder", "find_library", "find_site"]


@dataclass(frozen=True, slots=True)
class Site:
    """A SharePoint site.

    Args:
        name: Its display name.
    """

    id: str
    name: str
    url: str


@dataclass(frozen=True, slots=True)
class Library:
    """A document library of a site; Graph calls it a drive."""

    drive_id: str
    name: str
    url: str
    site: Site


async def find_site(client: GraphClient, name: str) -> Site:
    """Return a site.

    Args:
        name: Its URL, its path such as `/sites/lab`, or its display name. A display name is
            searched for among all sites, which `Sites.Selected` does not allow.

    Raises:
        SharePointNotFound: There is none, or several have the display name.
        SharePointAccessDenied: A permission is missing.
    """
    if name.startswith("https://"):
        url = urlsplit(name)
        return await _site_at(client, url.netloc, unquote(url.path))
    if name.startswith("/"):
        return await _site_at(client, client.hostname or await _hostname(client, name), name)
    return await _site_called(client, name)


async def find_library(client: GraphClient, site: Site, name: str | None = None) -> Library:
    """Return a document library of a site.

    Args:
        name: As SharePoint shows it ("Documents") or as its URL ends ("Shared Documents"),
            whatever the case; None for the site's default library.

    Raises:
        SharePointNotFound: There is none of this name; the message has those there are.
        SharePointAccessDenied: A permission is missing.
    """
    if name is None:
        answer = await client.get(
            f"/sites/{site.id}/drive", f"default library of site {site.name!r}"
        )
        return _library(answer.body, site)
    drives = [
        drive
        async for drive in client.pages(
            f"/sites/{site.id}/drives", f"list of libraries of site {site.name!r}"
        )
    ]
    for drive in drives:
        segment = unquote(str(drive.get("webUrl", ""))).rstrip("/").rpartition("/")[2]
        if name.casefold() in {str(drive["name"]).casefold(), segment.casefold()}:
            return _library(drive, site)
    raise SharePointNotFound(
        f"Site {site.name!r} has no library {name!r}. It has: "
        f"{listed([drive['name'] for drive in drives])}."
    )


async def find_folder(client: GraphClient, library: Library, path: str) -> Item:
    """Return a folder of a library.

    Args:
        path: From the library's root, such as `/Results/2024`; `""` or `/` for the root.

    Raises:
        SharePointNotFound: There is none; the message says up to where the path is right, and
            which folders are there instead.
        SharePointAccessDenied: A permission is missing.
    """
    parts = [part for part in path.split("/") if part]
    item = await _item_at(client, library, parts)
    if item is not None and item.kind == "folder":
        return item
    raise await _folder_missing(client, library, parts, item)


async def _site_at(client: GraphClient, hostname: str, path: str) -> Site:
    address = (
        f"/sites/{hostname}:{quote(path.rstrip('/'))}" if path.strip("/") else f"/sites/{hostname}"
    )
    where = f"site at https://{hostname}{path}"
    try:
        answer = await client.get(address, where)
    except SharePointNotFound as error:
        raise SharePointNotFound.because_of(
            error,
            f"{error} A site's path ends with its name, as in /sites/lab: without a library, a "
            "folder or a page.",
        ) from None
    return _site(answer.body)


async def _hostname(client: GraphClient, path: str) -> str:
    """Return the tenant's own host, which an app may not ask for that may read few sites."""
    try:
        answer = await client.get("/sites/root", "tenant's root site")
    except SharePointAccessDenied as error:
        raise SharePointAccessDenied.because_of(
            error,
            f"The host of site {path!r} is not known, and the app may not ask for it. Give the "
            f"site's URL (https://contoso.sharepoint.com{path}), or set hostname.",
        ) from None
    return str(answer.body["siteCollection"]["hostname"])


async def _site_called(client: GraphClient, name: str) -> Site:
    by_url = (
        "Give its URL or its path, such as /sites/lab, instead: searching by display name takes "
        "Sites.Read.All."
    )
    try:
        found = [
            _site(each)
            async for each in client.pages(
                "/sites", f"search for site {name!r}", params={"search": name}
            )
        ]
    except SharePointError as error:
        # What an app with Sites.Selected alone is told was seen to be a 500 as well.
        if error.status not in {403, 500}:
            raise
        raise SharePointAccessDenied.because_of(
            error,
            f"Site {name!r} could not be searched for ({error.status} {error.code}). {by_url}",
        ) from None
    called = [site for site in found if site.name.casefold() == name.casefold()]
    if len(called) == 1:
        return called[0]
    if called:
        raise SharePointNotFound(
            f"{len(called)} sites are called {name!r}: {listed([site.url for site in called])}. "
            "Give the URL of the one that is meant."
        )
    raise SharePointNotFound(
        f"No site is called {name!r}. The search found: "
        f"{listed([f'{site.name} ({site.url})' for site in found])}. {by_url}"
    )


async def _item_at(client: GraphClient, library: Library, parts: list[str]) -> Item | None:
    root = f"/drives/{library.drive_id}/root"
    address = f"{root}:/{'/'.join(quote(part, safe='') for part in parts)}" if parts else root
    subject = f"folder /{'/'.join(parts)} in library {library.name!r} of site {library.site.name!r}"
    answer = await client.get(address, subject, accept={404})
    return parse_item(answer.body) if answer.status == 200 else None


async def _folder_missing(
    client: GraphClient, library: Library, parts: list[str], found: Item | None
) -> SharePointNotFound:
    where = f"library {library.name!r} of site {library.site.name!r}"
    if found is not None:
        return SharePointNotFound(f"/{'/'.join(parts)} in {where} is not a folder.")
    right = list(parts)
    above: Item | None = None
    while above is None:
        if not right:
            return SharePointNotFound(f"There is no {where} any longer.")
        right.pop()
        above = await _item_at(client, library, right)
    siblings = [
        child.name
        async for entry in client.pages(
            f"/drives/{library.drive_id}/items/{above.id}/children", f"contents of {where}"
        )
        if (child := parse_item(entry)).kind == "folder"
    ]
    return SharePointNotFound(
        f"There is no folder /{'/'.join(parts)} in {where}. /{'/'.join(right)} has the folders: "
        f"{listed(siblings)}.",
        status=404,
    )


def _site(resource: Mapping[str, Any]) -> Site:
    name = resource.get("displayName") or resource.get("name") or ""
    return Site(str(resource["id"]), str(name), str(resource.get("webUrl", "")))


def _library(resource: Mapping[str, Any], site: Site) -> Library:
    name, url = resource.get("name", ""), resource.get("webUrl", "")
    return Library(str(resource["id"]), str(name), str(url), site)
