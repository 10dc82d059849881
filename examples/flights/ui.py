"""Dagster's UI on the demo's assets, with a PostgreSQL that runs as long as the UI does.

`make ui` runs it; Ctrl-C stops both. The tables and Dagster's history stay for the next time, in
the folder it prints, which may be given as an argument.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dagster_tools.embedded import Server

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import dagster_ui  # noqa: E402  # beside this folder


def main(folder: str | None = None) -> int:
    kept = Path(folder).absolute() if folder else folder_to_keep()
    return dagster_ui.until_stopped(lambda: serve(kept))


def serve(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    print("Starting PostgreSQL and Dagster ...", flush=True)
    with Server(data_dir=folder / "postgres") as server:
        notes = {"The tables": server.url, "Kept in": folder}
        return dagster_ui.serve(HERE, folder, server.environment(), notes)


def folder_to_keep() -> Path:
    """Beside this file, unless root keeps it where the server's user may not enter."""
    beside = HERE / ".dagster"
    closed = any(not folder.stat().st_mode & 0o001 for folder in (HERE, *HERE.parents))
    return Path("/var/cache/dagster-tools/flights") if os.geteuid() == 0 and closed else beside


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
