"""The bytes of a file: fetched whole and of one version, whatever happens on the way.

Microsoft Graph gives a pre-authenticated URL, good for minutes, on another host. It is asked for
when it is used, again when it has expired, and never kept.
"""

from __future__ import annotations

import logging
import re
import tempfile
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import PurePosixPath
from typing import BinaryIO

import aiohttp

from dagster_tools.errors import FileDeleted, SharePointError, SharePointNotFound
from dagster_tools.sharepoint.client import GraphClient, Unreachable
from dagster_tools.sharepoint.throttle import RETRIED, THROTTLED, Attempts, requested_pause

__all__ = ["Source", "Spool", "fetch"]

_log = logging.getLogger(__name__)

CHUNK = 256 * 1024
URL_REFUSED = frozenset({401, 403, 404, 410})
REWRITTEN = frozenset({".docx", ".xlsx", ".xlsm", ".pptx", ".pdf", ".html", ".htm", ".aspx"})
"""Files whose served size may differ from the reported one: SharePoint writes properties into
them after the upload (OneDrive/onedrive-api-docs#935)."""


@dataclass(frozen=True, slots=True)
class Source:
    """Which file, and how messages call it."""

    drive_id: str
    item_id: str
    path: str
    library: str

    def __str__(self) -> str:
        return f"file {self.path} in library {self.library!r}"


class Spool:
    """A file's bytes in memory, and on disk beyond a limit.

    Args:
        limit: Bytes.
        file: An open, empty file to write to instead, whatever the size.
    """

    def __init__(self, limit: int, file: BinaryIO | None = None) -> None:
        self._limit = limit
        self._in_memory = file is None
        self.file: BinaryIO = BytesIO() if file is None else file
        self.size = 0
        self.etag: str | None = None
        """What the download host called the version these bytes are of."""

    def write(self, data: bytes) -> None:
        """Add bytes to the end."""
        self.size += len(data)
        if self._in_memory and self.size > self._limit:
            on_disk = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close()
            on_disk.write(self.file.getvalue())  # type: ignore[attr-defined]  # BytesIO
            self.file, self._in_memory = on_disk, False
        self.file.write(data)

    def clear(self) -> None:
        """Begin anew."""
        self.file.seek(0)
        self.file.truncate()
        self.size, self.etag = 0, None

    def close(self) -> None:
        """Let go of memory and disk."""
        self.file.close()


@dataclass(frozen=True, slots=True)
class _Offer:
    """What Graph has of a file at this moment."""

    version: str
    size: int
    url: str = field(repr=False)


async def fetch(client: GraphClient, source: Source, spool: Spool) -> None:
    """Write a whole file to an empty spool, and go back to its beginning.

    After a cut it is resumed where it broke off, unless the file has become another version
    meanwhile: then it is read from the beginning. What is written is what was served at one
    time, which may be newer than what a delta last told.

    Raises:
        FileDeleted: The file is not there, or no longer.
        SharePointError: It could not be had; never with what came of it.
    """
    attempts = Attempts(client.retry)
    version, served_short = "", False
    while True:
        offer = await _offer(client, source)
        if offer.version != version:
            spool.clear()
        version, resumed_at = offer.version, spool.size
        try:
            await _receive(client, source, offer, spool)
        except Unreachable as error:
            reason = str(error)
        else:
            if resumed_at and (await _offer(client, source)).version != version:
                reason = "it changed while it was read"
            elif spool.size == offer.size or (served_short and _rewritten(source, offer, spool)):
                spool.file.seek(0)
                return
            else:
                served_short = True
                reason = f"{spool.size} bytes were served of {offer.size}"
            spool.clear()
        if spool.size > resumed_at:
            attempts.made_progress()
        if not await attempts.next_after_failure():
            raise SharePointError(f"The {source} could not be read: {reason}.")


async def _offer(client: GraphClient, source: Source) -> _Offer:
    """Ask for a file's version and where it is served right now."""
    address = f"/drives/{source.drive_id}/items/{source.item_id}"
    try:
        item = (await client.get(address, str(source))).body
        url = item.get("@microsoft.graph.downloadUrl")
        if url is None:
            url = (await client.get(f"{address}/content", str(source), accept={302})).location
    except SharePointNotFound as error:
        raise FileDeleted.because_of(
            error, f"The {source} is not there any longer. It was deleted after it was listed."
        ) from None
    return _Offer(item.get("cTag") or item.get("eTag") or "", item.get("size") or 0, url or "")


async def _receive(client: GraphClient, source: Source, offer: _Offer, spool: Spool) -> None:
    """Write what a file has beyond what is in the spool already.

    Raises:
        Unreachable: Another attempt may help; what came until then is in the spool.
    """
    attempts = Attempts(client.retry)
    while True:
        await client.wait_for_turn(attempts, str(source))
        headers = {"Range": f"bytes={spool.size}-"} if spool.size else {}
        async with client.download(offer.url, headers) as response:
            pause = requested_pause(response.headers)
            if response.status in THROTTLED and pause:
                client.pause(pause)
                continue
            _prepare(response, spool)
            async for chunk in response.content.iter_chunked(CHUNK):
                spool.write(chunk)
            return


def _prepare(response: aiohttp.ClientResponse, spool: Spool) -> None:
    """Make the spool ready for what a response is going to send.

    Raises:
        Unreachable: It sends nothing of the file, or not what comes next.
    """
    etag = response.headers.get("ETag")
    if response.status == 206:
        begins = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if begins is None or int(begins[1]) != spool.size or etag != spool.etag:
            spool.clear()
            raise Unreachable("another part was served than was asked for")
    elif response.status == 200:
        spool.clear()
        spool.etag = etag
    elif response.status == 416:
        spool.clear()
        raise Unreachable("it is shorter than before")
    elif response.status in URL_REFUSED | RETRIED:
        raise Unreachable(f"the download was answered with status {response.status}")
    else:
        raise SharePointError(
            f"A download was answered with status {response.status}.", status=response.status
        )


def _rewritten(source: Source, offer: _Offer, spool: Spool) -> bool:
    """Tell whether a size that differs, and keeps differing, is nothing to worry about."""
    if PurePosixPath(source.path).suffix.lower() not in REWRITTEN:
        return False
    _log.warning(
        "The %s has %d bytes, and not the %d that SharePoint reports: it writes properties into "
        "files of this kind.",
        source,
        spool.size,
        offer.size,
    )
    return True
