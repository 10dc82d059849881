"""The folders of one server, and what its clients need to know."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from dagster_tools.embedded.account import Account
from dagster_tools.errors import ConfigurationError

__all__ = ["Home"]

_SUPERUSER_FILE = "superuser-password"  # in a data_dir that is kept
_LONGEST_TEMPORARY_FOLDER = 60  # a socket's path ends at about 100 bytes (man 7 unix)


@dataclass
class Home:
    """The folders of one server, and what its clients need to know.

    Args:
        folder: Temporary; the supervisor removes it. Has a short path, for the socket's sake.
        data_dir: The cluster's folder, inside `folder` unless it is to be kept.
        was_ready: Whether clients may know the port by now, so that it must stay.
    """

    account: Account
    folder: Path
    data_dir: Path
    keep_data: bool
    password: str = field(default="", repr=False)
    port: int = 0
    was_ready: bool = False

    @classmethod
    def create(cls, account: Account, data_dir: Path | None) -> Home:
        """Make the temporary folder, and in it that of the socket."""
        folder = Path(tempfile.mkdtemp(prefix="dagster-tools-", dir=_temporary_folder(account)))
        home = cls(account, folder, data_dir or folder / "data", keep_data=data_dir is not None)
        if account.uid is not None:
            folder.chmod(0o755)
        home.socket_dir.mkdir(mode=0o700)
        account.own(home.socket_dir)
        return home

    @property
    def socket_dir(self) -> Path:
        """Where the server's socket lies."""
        return self.folder / "socket"

    @property
    def log(self) -> Path:
        """Where the server writes what it has to say."""
        return self.folder / "log"

    def make_data_dir(self) -> None:
        """Make the cluster's folder, which may be there already if it is empty."""
        if not self.data_dir.exists():
            self.data_dir.mkdir(mode=0o700, parents=True)
            self.account.own(self.data_dir)
        elif any(self.data_dir.iterdir()):
            raise ConfigurationError(
                f"{self.data_dir} is neither empty nor a database cluster: name another data_dir."
            )

    def write_secret(self, path: Path, text: str) -> None:
        """Create a file that the server's account alone can read."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        self.account.own(path)

    def store_password(self) -> None:
        """Keep the superuser's password with the data, for the next time."""
        self.write_secret(self.data_dir / _SUPERUSER_FILE, self.password)

    def stored_password(self) -> str:
        """Return the superuser's password of a cluster that was kept."""
        try:
            return (self.data_dir / _SUPERUSER_FILE).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ConfigurationError(
                f"The database cluster in {self.data_dir} was not created here: "
                "pass the password of its superuser, as Server(password=...)."
            ) from None


def _temporary_folder(account: Account) -> Path:
    usual = ("/tmp", "/var/tmp")  # noqa: S108 # mkdtemp makes what lies in them
    for folder in map(Path, (tempfile.gettempdir(), *usual)):
        short = len(os.fsencode(folder)) <= _LONGEST_TEMPORARY_FOLDER
        if short and folder.is_dir() and account.may_enter(folder):
            return folder
    raise ConfigurationError(
        f"No temporary folder can be entered{account.explanation}: set TMPDIR to one with a short "
        "path that everybody may enter."
    )
