"""A file in SharePoint: what it is, what happened to it, and what is in it."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from dagster_tools.errors import ConfigurationError, FileDeleted, SharePointError
from dagster_tools.sharepoint import pandas
from dagster_tools.sharepoint.client import GraphClient
from dagster_tools.sharepoint.content import Source, Spool, fetch
from dagster_tools.sharepoint.sites import Library
from dagster_tools.sharepoint.tree import Change, Located

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SharePointFile", "blamed", "is_poison"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharePointFile:
    """A file as it was when its change was taken in.

    What is read from it is what is there when it is read. That may be newer, in which case its
    change is delivered with the next run, too.

    Reading fetches the whole file first: in memory up to the client's `spool_limit`, in a
    temporary file beyond. A download that is cut is resumed; one that has ended is checked for
    its size. As many files are read at a time as the client's `concurrency` says; the others
    wait their turn, so any number may be gathered:

        frames = await asyncio.gather(*(file.read_csv() for file in files if not file.deleted))

    Args:
        id: Stays the same when the file is changed, renamed or moved within its library.
        path: From the library's root, with the name: `/Results/2024/a.csv`.
        url: Where people open it in the browser.
        modified: In UTC, as all times here; by the server's clock.
        size: Bytes.
        etag: Changes whenever anything about the file does.
        change: What happened since the last successful run; `unchanged` where all files were
            asked for. A file that left the watched folder, or the filters, is `deleted` too.
        modified_by: Who changed it last: the person's name, or the app's.
        site: The site's display name.
        library: The library's name.
    """

    id: str
    name: str
    path: str
    url: str
    site: str
    library: str
    drive_id: str
    change: Change | Literal["unchanged"]
    modified: datetime | None
    created: datetime | None
    size: int
    etag: str | None
    modified_by: str | None
    client: GraphClient | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        located: Located,
        library: Library,
        change: Change | Literal["unchanged"] = "unchanged",
        client: GraphClient | None = None,
    ) -> SharePointFile:
        """Return the file that lies somewhere in a library.

        Args:
            client: What it is read with; without one it can be looked at alone.
        """
        item = located.item
        return cls(
            id=item.id,
            name=item.name,
            path=located.path,
            url=item.url,
            site=library.site.name,
            library=library.name,
            drive_id=library.drive_id,
            change=change,
            modified=item.modified,
            created=item.created,
            size=item.size,
            etag=item.etag,
            modified_by=item.modified_by,
            client=client,
        )

    @property
    def deleted(self) -> bool:
        """Whether it is gone, or nothing to do with the asset any longer."""
        return self.change == "deleted"

    async def read_bytes(self) -> bytes:
        """Return what is in the file.

        Raises:
            FileDeleted: It was deleted; so for everything that reads.
            SharePointError: It could not be read, after all attempts; likewise.
        """
        async with self._fetched() as spool:
            return spool.file.read()

    async def read_text(self, encoding: str = "utf-8-sig", errors: str = "strict") -> str:
        """Return what is in the file as text; a byte order mark is not part of it."""
        data = await self.read_bytes()
        with _blaming(self):
            return data.decode(encoding, errors)

    async def read_csv(self, **options: Any) -> pd.DataFrame:
        """Return the file as `pandas.read_csv` reads it, to which the options go."""
        frame: pd.DataFrame = await self._read_frame("read_csv", options)
        return frame

    async def read_excel(self, **options: Any) -> pd.DataFrame:
        """Return the file as `pandas.read_excel` reads it; with `sheet_name=None`, a dict."""
        frame: pd.DataFrame = await self._read_frame("read_excel", options)
        return frame

    async def read_parquet(self, **options: Any) -> pd.DataFrame:
        """Return the file as `pandas.read_parquet` reads it."""
        frame: pd.DataFrame = await self._read_frame("read_parquet", options)
        return frame

    async def read_json(self, **options: Any) -> pd.DataFrame:
        """Return the file as `pandas.read_json` reads it."""
        frame: pd.DataFrame = await self._read_frame("read_json", options)
        return frame

    @asynccontextmanager
    async def open(self) -> AsyncIterator[BinaryIO]:
        """Give the file's bytes to any library that reads a binary file.

            async with file.open() as stream:
                archive = zipfile.ZipFile(stream)

        The whole file is there before the block begins. Files held open at the same time take
        up to `spool_limit` of memory each.
        """
        client = self._readable()
        spool = Spool(client.spool_limit)
        try:
            with _blaming(self):
                async with client.file_slots:
                    await fetch(client, self._source(), spool)
                yield spool.file
        finally:
            spool.close()

    async def chunks(self, size: int = 2**20) -> AsyncIterator[bytes]:
        """Yield what is in the file, `size` bytes at a time; none before all of it has arrived."""
        async with self.open() as stream:
            while chunk := stream.read(size):
                yield chunk

    async def download(self, path: str | os.PathLike[str]) -> Path:
        """Write the file to a path, or under its own name into a folder that exists.

        It appears there when it is complete, and replaces what was there.

        Returns:
            Where it was written to.
        """
        client = self._readable()
        with _appearing(Path(path), self.name) as (target, file):
            async with client.file_slots:
                with _blaming(self):
                    await fetch(client, self._source(), Spool(0, file))
        return target

    @asynccontextmanager
    async def _fetched(self) -> AsyncIterator[Spool]:
        """Hold the file, and one of the client's slots with it."""
        client = self._readable()
        async with client.file_slots:
            spool = Spool(client.spool_limit)
            try:
                with _blaming(self):
                    await fetch(client, self._source(), spool)
                    yield spool
            finally:
                spool.close()

    async def _read_frame(self, reader: str, options: dict[str, Any]) -> Any:
        if options.get("chunksize") or options.get("iterator"):
            raise ConfigurationError(
                f"{reader} returns whole frames. To read in chunks: async with file.open() as "
                f"stream: pandas.{reader}(stream, chunksize=…)"
            )
        function = pandas.reader(reader)
        async with self._fetched() as spool:
            # In a thread: other files go on arriving while this one is parsed.
            return await asyncio.to_thread(function, spool.file, **options)

    def _source(self) -> Source:
        return Source(self.drive_id, self.id, self.path, self.library)

    def _readable(self) -> GraphClient:
        if self.deleted:
            raise FileDeleted(
                f"The {self._source()} was deleted, or has left what the asset watches: there is "
                "nothing to read. Ask file.deleted first; its id, name, path and url are still "
                "known."
            )
        if self.client is None:
            raise ConfigurationError(
                f"The {self._source()} can be read in an asset only: a filter decides by what is "
                "known of it (name, path, size, modified, …)."
            )
        return self.client


def blamed(error: BaseException) -> SharePointFile | None:
    """Return the file in the reading of which an error was raised, or one that led to it."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        found = getattr(cause, _BLAMED, None)
        if isinstance(found, SharePointFile):
            return found
        cause = cause.__cause__ or cause.__context__
    return None


def is_poison(error: BaseException) -> bool:
    """Tell whether a file is to blame for an error, and not the network, a library or the code."""
    if isinstance(error, SharePointError):
        return error.code == "malwareDetected"
    return isinstance(error, Exception) and not isinstance(error, _NOT_THE_FILES)


_BLAMED = "_sharepoint_file"
_NOT_THE_FILES = (
    ConfigurationError,
    OSError,
    MemoryError,
    ImportError,
    TypeError,
    AttributeError,
    NameError,
)


@contextmanager
def _blaming(file: SharePointFile) -> Iterator[None]:
    """Let errors know in the reading of which file they were raised."""
    try:
        yield
    except Exception as error:
        with suppress(AttributeError):
            setattr(error, _BLAMED, file)
        raise


@contextmanager
def _appearing(path: Path, name: str) -> Iterator[tuple[Path, BinaryIO]]:
    """Give a file to write to that takes its place when the block ends well, and goes otherwise."""
    target = path / name if path.is_dir() else path
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb+") as file:
            yield target, file
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
