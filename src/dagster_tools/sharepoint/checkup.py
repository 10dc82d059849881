"""What works between an app registration and a folder, step by step, and what is missing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

from dagster_tools.errors import SharePointError
from dagster_tools.sharepoint.client import GraphClient
from dagster_tools.sharepoint.files import SharePointFile
from dagster_tools.sharepoint.items import Item, parse_item
from dagster_tools.sharepoint.sites import Library, find_folder, find_library, find_site
from dagster_tools.sharepoint.tree import Located
from dagster_tools.sharepoint.watch import Watch

__all__ = ["Finding", "examine"]

LARGEST_TRIED = 50 * 2**20
"""Bytes of the file that is downloaded at most."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One step.

    Args:
        state: `ok`, `note` where it could not be tried, `bad` where assets will fail.
    """

    subject: str
    state: Literal["ok", "note", "bad"]
    found: str
    remedy: str = ""


async def examine(client: GraphClient, watch: Watch) -> list[Finding]:
    """Try what an asset does that watches a folder, up to the first step that fails.

    Args:
        client: Not opened yet.
    """
    findings: list[Finding] = []
    try:
        async with client:
            async for finding in _steps(client, watch):
                findings.append(finding)  # noqa: PERF401  # those before a failure are kept
    except SharePointError as error:
        step = STEPS[min(len(findings), len(STEPS) - 1)]
        findings.append(Finding(step, "bad", str(error)))
    return findings


STEPS = ("sign-in", "site", "library", "folder", "delta", "download")


async def _steps(client: GraphClient, watch: Watch) -> AsyncIterator[Finding]:
    await client.sign_in()
    roles = "unknown" if client.roles is None else ", ".join(client.roles) or "none"
    yield Finding("sign-in", "ok", f"application permissions: {roles}")
    site = await find_site(client, watch.site)
    yield Finding("site", "ok", f"{site.name} ({site.url})")
    library = await find_library(client, site, watch.library)
    yield Finding("library", "ok", f"{library.name} ({library.url})")
    folder = await find_folder(client, library, watch.folder)
    yield Finding("folder", "ok", watch.folder)
    await client.get(
        f"/drives/{library.drive_id}/root/delta",
        f"changes of library {library.name!r}",
        params={"token": "latest"},
    )
    yield Finding("delta", "ok", "changes of the library can be asked for")
    yield await _download(client, library, folder, watch)


async def _download(client: GraphClient, library: Library, folder: Item, watch: Watch) -> Finding:
    """Download one file of the folder that is watched, if there is one."""
    address = f"/drives/{library.drive_id}/items/{folder.id}/children"
    async for entry in client.pages(address, f"contents of {watch.folder}"):
        item = parse_item(entry)
        if item.kind != "file" or item.size > LARGEST_TRIED:
            continue
        path = f"{watch.folder.rstrip('/')}/{item.name}"
        file = SharePointFile.of(Located(item, path), library, client=client)
        if watch.sees(file):
            data = await file.read_bytes()
            return Finding("download", "ok", f"{file.path}, {len(data):,} bytes")
    return Finding("download", "note", f"not tried: no watched file lies right in {watch.folder}")
