"""Dagster's UI on the SharePoint demo: every half minute somebody does something to the files.

`make ui-sharepoint` runs it; Ctrl-C ends it all, and nothing is kept.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from itertools import count
from pathlib import Path

from run import environment_of

from dagster_tools.embedded import Server
from tests.graph import Drive, Graph

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import dagster_ui  # noqa: E402  # beside this folder

SECONDS = 30.0


def serve() -> int:
    print("Starting PostgreSQL, an emulator of Microsoft Graph, and Dagster ...", flush=True)
    with tempfile.TemporaryDirectory() as folder, Server() as server, Graph() as graph:
        drive = graph.site("/sites/lab", "Lab Data").library()
        done = threading.Event()
        threading.Thread(target=keep_busy, args=(drive, done), daemon=True).start()
        environment = server.environment() | environment_of(graph)
        notes = {"To look at": "the asset `results`, and its sensor", "The tables": server.url}
        try:
            return dagster_ui.serve(HERE, Path(folder), environment, notes)
        finally:
            done.set()


def keep_busy(drive: Drive, done: threading.Event) -> None:
    """Write, change, move and delete files, one after the other, until it is enough."""
    for day in count(1):
        path = f"/Results/day {day}.csv"
        for act in (
            lambda path=path, day=day: drive.write(path, f"sample,value\nA,{day}\n"),
            lambda path=path, day=day: drive.write(path, f"sample,value\nA,{day}.5\nB,{day}\n"),
            lambda path=path: drive.move(path, "/Results/checked"),
            lambda day=day: day % 2 or drive.delete(f"/Results/checked/day {day}.csv"),
        ):
            act()
            if done.wait(SECONDS):
                return


if __name__ == "__main__":
    sys.exit(dagster_ui.until_stopped(serve))
