"""The SharePoint demo: files appear, change, move and vanish, and a table follows.

`make demo-sharepoint` runs it. It brings a PostgreSQL and an emulator of Microsoft Graph, and
takes them away again. Where the table is not what it should be, it ends with an error.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import psycopg

from dagster_tools.embedded import Server

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the emulator is the tests'

from tests.graph import Drive, Graph

TABLE = "SELECT sample, value, file_path FROM lab.results ORDER BY file_path, sample"

Step = tuple[str, Callable[[Drive], object], list[tuple[str, float, str]]]

STEPS: list[Step] = [
    (
        "Ada puts two files into /Results.",
        lambda drive: (
            drive.write("/Results/monday.csv", "sample,value\nA,1.5\nB,2.5\n"),
            drive.write("/Results/tuesday.csv", "sample,value\nA,1.7\n"),
        ),
        [
            ("A", 1.5, "/Results/monday.csv"),
            ("B", 2.5, "/Results/monday.csv"),
            ("A", 1.7, "/Results/tuesday.csv"),
        ],
    ),
    ("Nothing happens.", lambda _drive: None, []),
    (
        "She corrects Tuesday's value, and moves Monday's file into a folder of the year.",
        lambda drive: (
            drive.write("/Results/tuesday.csv", "sample,value\nA,1.8\n"),
            drive.move("/Results/monday.csv", "/Results/2026"),
        ),
        [
            ("A", 1.5, "/Results/2026/monday.csv"),
            ("B", 2.5, "/Results/2026/monday.csv"),
            ("A", 1.8, "/Results/tuesday.csv"),
        ],
    ),
    (
        "Somebody uploads a file that is empty, and a good one.",
        lambda drive: (
            drive.write("/Results/broken.csv", "", author="Charles Babbage"),
            drive.write("/Results/wednesday.csv", "sample,value\nC,3.0\n"),
        ),
        [
            ("A", 1.5, "/Results/2026/monday.csv"),
            ("B", 2.5, "/Results/2026/monday.csv"),
            ("A", 1.8, "/Results/tuesday.csv"),
            ("C", 3.0, "/Results/wednesday.csv"),
        ],
    ),
    (
        "The folder of the year goes to the archive, and Tuesday's file into the bin.",
        lambda drive: (
            drive.move("/Results/2026", "/Archive"),
            drive.delete("/Results/tuesday.csv"),
        ),
        [("C", 3.0, "/Results/wednesday.csv")],
    ),
]


def main() -> None:
    """Tell the story."""
    started = time.monotonic()
    logging.disable(logging.INFO)
    with Server() as server, Graph() as graph, dg.DagsterInstance.ephemeral() as instance:
        drive = graph.site("/sites/lab", "Lab Data").library()
        os.environ.update(server.environment())
        os.environ.update(environment_of(graph))
        from definitions import defs

        with psycopg.connect(server.url, autocommit=True) as connection:
            print("An emulator of Microsoft Graph and a PostgreSQL are running.")
            for title, act, expected in STEPS:
                print(f"\n{title}")
                act(drive)
                before = graph.count()
                ran = tick(defs, instance)
                asked = graph.count() - before
                runs = "a run" if ran else "no run"
                print(f"  The sensor asked for {runs}. Requests to Graph: {asked}")
                if ran:
                    shown = connection.execute(TABLE).fetchall()
                    print("\n".join(f"  {s}  {v:4}  {path}" for s, v, path in shown))
                    check(shown, expected)
            (failed,) = connection.execute("SELECT path, error FROM meta.sharepoint_failures")
            print(f"\nLeft out until it changes: {failed[0]} ({failed[1]})")
    print(f"\nAll this took {time.monotonic() - started:.0f} seconds.")


def environment_of(graph: Graph) -> dict[str, str]:
    """Return what the definitions read."""
    return {
        "SHAREPOINT_TENANT": graph.identity.tenant,
        "SHAREPOINT_CLIENT_ID": graph.identity.client_id,
        "SHAREPOINT_CLIENT_SECRET": graph.identity.secret,
        "SHAREPOINT_EMULATOR": graph.url,
        "SHAREPOINT_EMULATOR_CA": str(graph.ca_file),
    }


def tick(defs: dg.Definitions, instance: dg.DagsterInstance) -> bool:
    """Do what Dagster's daemon does: evaluate the sensor, and launch a run it asks for."""
    repository = defs.get_repository_def()
    sensor = repository.get_sensor_def("sharepoint_sensor")
    with dg.build_sensor_context(
        instance=instance, repository_def=repository, resources=dict(defs.resources or {})
    ) as context:
        requests = sensor.evaluate_tick(context).run_requests or []
    for request in requests:
        defs.resolve_implicit_global_asset_job_def().execute_in_process(
            asset_selection=request.asset_selection, tags=dict(request.tags), instance=instance
        )
    return bool(requests)


def check(shown: list[tuple[object, ...]], expected: list[tuple[str, float, str]]) -> None:
    """End the demo if the table is not what it should be."""
    if shown != expected:
        raise SystemExit(f"The table should hold {expected}.")


if __name__ == "__main__":
    main()
