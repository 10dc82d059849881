"""What an asset watches: a folder of a library of a site, and which of its files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dagster_tools.errors import ConfigurationError
from dagster_tools.sharepoint.files import SharePointFile
from dagster_tools.sharepoint.filters import FileFilter

__all__ = ["Watch"]

LOCK_FILE = "~$"
"""How the name begins of the file Office keeps beside one that is being edited."""


@dataclass(frozen=True, init=False)
class Watch:
    """A folder whose files make up an asset.

    What is watched is the path: a file that is moved out of the folder, or renamed so that it
    passes the filters no longer, is deleted for the asset, and one that comes in is created. So
    are all files of a folder above that is renamed or moved. Names are compared whatever the
    case, as SharePoint does. Office's lock files (`~$…`) and notebooks are never among them.

    Args:
        site: The site's URL, its path such as `/sites/lab`, or its display name. `Sites.Selected`
            suffices for the first two.
        folder: `"/"` for the whole library, a path such as `"Results/2024"`, or a list of its
            parts.
        filters: Files must pass all of them; `Suffix(".csv") | Suffix(".txt")` is one.
        library: As SharePoint shows it; None for the site's default library, "Documents".
        recursive: Whether folders within the folder are watched too.

    Example:
        >>> Watch("Lab Data", ["XRF Results"], filters=[Suffix(".csv")])
        Watch('Lab Data', '/XRF Results', filters=[Suffix('.csv')])
    """

    site: str
    folder: str
    filters: tuple[FileFilter, ...]
    library: str | None
    recursive: bool

    def __init__(
        self,
        site: str,
        folder: str | Iterable[str] = "/",
        filters: FileFilter | Iterable[FileFilter] = (),
        library: str | None = None,
        recursive: bool = True,
    ) -> None:
        object.__setattr__(self, "site", _site(site))
        object.__setattr__(self, "folder", _folder(folder))
        object.__setattr__(self, "filters", _filters(filters))
        object.__setattr__(self, "library", library)
        object.__setattr__(self, "recursive", recursive)

    def __repr__(self) -> str:
        shown = [repr(self.site), repr(self.folder)]
        shown += [f"filters={list(self.filters)}"] if self.filters else []
        shown += [f"library={self.library!r}"] if self.library is not None else []
        shown += ["recursive=False"] if not self.recursive else []
        return f"{type(self).__name__}({', '.join(shown)})"

    @property
    def definition(self) -> str:
        """What it says: another text when files are meant that were not before, or the reverse."""
        filters = " & ".join(each.definition for each in self.filters)
        return repr((self.site, self.library, self.folder, self.recursive, filters))

    def sees(self, file: SharePointFile) -> bool:
        """Tell whether a file of the watched library is meant."""
        folder, _, name = file.path.rpartition("/")
        return (
            not name.startswith(LOCK_FILE)
            and self.covers(folder)
            and all(each.matches(file) for each in self.filters)
        )

    def covers(self, folder: str) -> bool:
        """Tell whether files right in a folder, of which the path is given, are watched."""
        watched, folder = self.folder.rstrip("/").casefold(), folder.casefold()
        return folder == watched or (self.recursive and folder.startswith(f"{watched}/"))


def _site(site: Any) -> str:
    if not isinstance(site, str) or not site.strip():
        raise ConfigurationError(
            "Watch needs a site: its URL, its path such as /sites/lab, or its display name."
        )
    return site.strip()


def _folder(folder: Any) -> str:
    parts = [folder] if isinstance(folder, str) else list(folder)
    if not all(isinstance(part, str) for part in parts):
        raise ConfigurationError(
            f"folder is {folder!r}; it must be a path such as 'Results/2024', or a list of its "
            "parts, such as ['Results', '2024']."
        )
    names = [name.strip() for part in parts for name in part.split("/") if name.strip()]
    if {".", ".."} & set(names):
        raise ConfigurationError(
            f"folder is {folder!r}; it must be a path from the library's root."
        )
    return "/" + "/".join(names)


def _filters(filters: Any) -> tuple[FileFilter, ...]:
    given = (filters,) if isinstance(filters, FileFilter) else tuple(filters)
    for each in given:
        if not isinstance(each, FileFilter):
            raise ConfigurationError(
                f"filters has a {type(each).__name__}; they are made of Suffix, Prefix, Contains "
                "and Filter, as in filters=[Suffix('.csv')]."
            )
    return given
