"""Dagster's UI on the SharePoint demo: every half minute somebody does something to the files.

`make ui-sharepoint` runs it; Ctrl-C ends it all, and nothing is kept.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from itertools import count
from pathlib import Path

from run import environment_of

from dagster_tools.embedded import Server
from tests.graph import Drive, Graph

HERE = Path(__file__).resolve().parent
PORT = 3000
SECONDS = 30.0


def main() -> None:
    # What ends a terminal, or a container, ends this in the same good order as Ctrl-C.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as home, Server() as server, Graph() as graph:
        drive = graph.site("/sites/lab", "Lab Data").library()
        done = threading.Event()
        threading.Thread(target=keep_busy, args=(drive, done), daemon=True).start()
        environment = os.environ | server.environment() | environment_of(graph)
        command = [sys.executable, "-m", "dagster", "dev", "-f", "definitions.py"]
        print(f"Dagster's UI    http://127.0.0.1:{PORT}  (the asset `results`, and its sensor)")
        print(f"The tables      {server.url}")
        print("Ctrl-C stops all.", flush=True)
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(PORT)],
            cwd=HERE,
            env=environment | {"DAGSTER_HOME": home, "DAGSTER_DISABLE_TELEMETRY": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # so that Ctrl-C reaches it once, from here
        )
        try:
            process.wait()
        except KeyboardInterrupt:
            print("\nStopping ...")
        finally:
            done.set()
            os.killpg(process.pid, signal.SIGINT)
            process.wait()


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
    main()
