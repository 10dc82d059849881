"""A file for functions that are not asynchronous: the same, without `await`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from dagster_tools.sharepoint.files import SharePointFile
from dagster_tools.sharepoint.portal import Portal

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["BlockingFile"]


class BlockingFile:
    """A `SharePointFile` whose methods return what there awaits.

    Everything that is known of the file is here too: `id`, `name`, `path`, `deleted` and so on.
    """

    def __init__(self, file: SharePointFile, portal: Portal) -> None:
        self._file = file
        self._portal = portal

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._file, name)

    def __repr__(self) -> str:
        return repr(self._file)

    def read_bytes(self) -> bytes:
        """See `SharePointFile.read_bytes`."""
        return self._portal.run(self._file.read_bytes())

    def read_text(self, encoding: str = "utf-8-sig", errors: str = "strict") -> str:
        """See `SharePointFile.read_text`."""
        return self._portal.run(self._file.read_text(encoding, errors))

    def read_csv(self, **options: Any) -> pd.DataFrame:
        """See `SharePointFile.read_csv`."""
        return self._portal.run(self._file.read_csv(**options))

    def read_excel(self, **options: Any) -> pd.DataFrame:
        """See `SharePointFile.read_excel`."""
        return self._portal.run(self._file.read_excel(**options))

    def read_parquet(self, **options: Any) -> pd.DataFrame:
        """See `SharePointFile.read_parquet`."""
        return self._portal.run(self._file.read_parquet(**options))

    def read_json(self, **options: Any) -> pd.DataFrame:
        """See `SharePointFile.read_json`."""
        return self._portal.run(self._file.read_json(**options))

    def download(self, path: str | os.PathLike[str]) -> Path:
        """See `SharePointFile.download`."""
        return self._portal.run(self._file.download(path))

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """See `SharePointFile.open`."""
        opened = self._file.open()
        stream = self._portal.run(_enter(opened))
        try:
            yield stream
        finally:
            self._portal.run(_leave(opened))

    def chunks(self, size: int = 2**20) -> Iterator[bytes]:
        """See `SharePointFile.chunks`."""
        with self.open() as stream:
            while chunk := stream.read(size):
                yield chunk


async def _enter(opened: Any) -> Any:
    return await opened.__aenter__()


async def _leave(opened: Any) -> None:
    await opened.__aexit__(None, None, None)
