"""Who a server runs as: PostgreSQL refuses to run as root."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from dagster_tools.errors import ConfigurationError

__all__ = ["Account"]


@dataclass(frozen=True)
class Account:
    """Who the server runs as; without ids, whoever runs this process."""

    name: str = ""
    uid: int | None = None
    gid: int | None = None

    @classmethod
    def for_server(cls) -> Account:
        """Choose one that PostgreSQL accepts: anybody but root."""
        import pwd  # not on Windows, where this module can be imported all the same

        if os.geteuid() != 0:
            return cls()
        for name in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                return cls(name, entry.pw_uid, entry.pw_gid)
        raise ConfigurationError(
            "PostgreSQL refuses to run as root, and there is no user 'postgres' or 'nobody'."
        )

    @property
    def explanation(self) -> str:
        """For the end of a message in which permissions may be the matter."""
        return f" by the user {self.name!r}, who runs the server for root" if self.name else ""

    def own(self, path: Path) -> None:
        """Make it the owner of what was just created."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)

    def may_enter(self, folder: Path) -> bool:
        """Whether every folder on the way lets strangers pass; no question but for root."""
        return self.uid is None or all(
            each.stat().st_mode & 0o001 for each in (folder, *folder.parents)
        )
