"""The demo does what it says: `make demo`, `make ui`, and the definitions of both."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import dagster as dg
import psycopg
import pytest

from dagster_tools.embedded import Server
from tests.fix_servers import Database
from tests.pipelines import query

FLIGHTS = Path(__file__).resolve().parent.parent / "examples" / "flights"


@pytest.fixture
def demo(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script run.py, on the database of this test."""
    for variable, value in database.environment().items():
        monkeypatch.setenv(variable, value)
    monkeypatch.syspath_prepend(str(FLIGHTS))
    yield import_module("run")
    for name in ("run", "definitions", "data"):
        del sys.modules[name]


@pytest.fixture
def connection(database: Database) -> Iterator[psycopg.Connection[Any]]:
    with database.connect() as connection:
        yield connection


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody may enter, as pytest's own are not when root runs it."""
    made = Path(tempfile.mkdtemp(prefix="examples-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


# --- the pipeline ---------------------------------------------------------------------------


def test_the_definitions_load(demo):
    dg.Definitions.validate_loadable(demo.defs)


def test_every_month_is_stored_whole_and_what_was_computed_from_it(demo, database, connection):
    demo.tell(connection, ["2013-01", "2013-02"])

    per_month = "SELECT month, count(*), {} FROM nyc.{} GROUP BY month ORDER BY month"
    assert query(database, per_month.format("sum(dep_delay)", "flights")) == [
        (1, 27_004, 265_801),
        (2, 24_951, 256_251),
    ]
    assert query(database, per_month.format("count(DISTINCT origin)", "weather")) == [
        (1, 2_226, 3),
        (2, 2_010, 3),
    ]
    assert query(
        database, "SELECT sum(planned), sum(delay_minutes), max(day)::text FROM nyc.daily_delays"
    ) == [(51_955, 522_052, "2013-02-28")]
    assert query(database, "SELECT sum(planned), min(place) FROM nyc.carrier_league") == [
        (51_955, 1)
    ]


def test_the_airports_come_back_as_geometry_and_the_demo_tells_its_storage(
    demo, connection, capsys
):
    demo.materialize(demo.airports)

    demo.map_airports(connection)

    told = capsys.readouterr().out
    assert "1,458 points in EPSG:4326" in told
    assert "stored as          EWKB in bytea" in told


def test_a_month_that_is_repeated_is_replaced_and_no_other(demo, database, connection):
    demo.load_months(connection, ["2013-01", "2013-02"])
    connection.execute("UPDATE nyc.flights SET distance = -month WHERE day = 3")

    demo.repeat_month(connection, "2013-02")

    changed = "SELECT month, count(*) FROM nyc.flights WHERE distance < 0 GROUP BY month"
    assert query(database, changed) == [(1, 914)]


def test_the_demo_tells_which_run_wrote_which_rows(demo, connection, capsys):
    demo.tell(connection, ["2013-01", "2013-02"])

    told = capsys.readouterr().out
    (repeating,) = re.findall(r"by run (\w{8})$", told, re.MULTILINE)
    (january,) = re.findall(r"^  2013-01 +27,004 +\d+ +(\w{8})  ", told, re.MULTILINE)
    (february,) = re.findall(r"^  2013-02 +24,951 +\d+ +(\w{8})  ", told, re.MULTILINE)
    assert february == repeating != january


def test_the_demo_ends_with_an_error_where_another_month_is_touched(demo, connection, monkeypatch):
    demo.load_months(connection, ["2013-01", "2013-02"])
    materialize = demo.materialize

    def clumsy(*assets, **options):
        connection.execute("DELETE FROM nyc.flights WHERE month = 1 AND day = 3")
        return materialize(*assets, **options)

    monkeypatch.setattr(demo, "materialize", clumsy)
    with pytest.raises(SystemExit, match="the other months are as they were"):
        demo.repeat_month(connection, "2013-02")


# --- the commands ---------------------------------------------------------------------------


def test_the_demo_brings_its_own_server_and_fits_a_terminal():
    done = subprocess.run(
        [sys.executable, str(FLIGHTS / "run.py")],
        env={},
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert "336,776" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_ui_knows_the_assets_stops_when_asked_and_keeps_the_tables(folder):
    with ui(FLIGHTS, folder) as (process, url, database_url):
        assets = asset_names(url)
        with psycopg.connect(database_url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 'yes' AS answer")
        process.send_signal(signal.SIGINT)
        printed, complaint = process.communicate(timeout=60)

    assert (process.returncode, printed, complaint) == (0, "\nStopped.\n", "")
    assert assets == {
        "airlines",
        "airports",
        "airports_map",
        "carrier_league",
        "daily_delays",
        "flights",
        "planes",
        "weather",
    }
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(database_url)
    with Server(folder / "postgres") as server, psycopg.connect(server.url) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == ("yes",)


def test_the_sharepoint_demo_ends_well():
    script = FLIGHTS.parent / "sharepoint" / "run.py"

    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("The sensor asked for a run.") == 4
    assert "The sensor asked for no run. Requests to Graph: 1\n" in done.stdout


def test_the_sharepoint_ui_knows_the_assets_and_stops_when_asked():
    with ui(FLIGHTS.parent / "sharepoint") as (process, url, database_url):
        assets = asset_names(url)
        process.send_signal(signal.SIGINT)
        printed, complaint = process.communicate(timeout=60)

    assert (process.returncode, printed, complaint) == (0, "\nStopped.\n", "")
    assert assets == {"results", "means"}
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(database_url)


@contextmanager
def ui(example: Path, *arguments: Path) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """Run an example's ui.py; yield it, the address of the UI and that of its database."""
    with subprocess.Popen(
        [sys.executable, example / "ui.py", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stderr
        try:
            said = ""
            while "Ctrl-C" not in said:
                said += (line := process.stdout.readline())
                assert line, f"{said}\n{process.stderr.read()}"
            (url,) = re.findall(r"http://\S+", said)
            (database_url,) = re.findall(r"postgresql://\S+", said)
            yield process, url, database_url
        finally:
            process.terminate()


def asset_names(url: str) -> set[str]:
    """Ask the UI's own interface."""
    request = urllib.request.Request(
        f"{url}/graphql",
        data=json.dumps({"query": "{ assetNodes { assetKey { path } } }"}).encode(),
        headers={"Content-Type": "application/json"},
    )
    without_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with without_proxy.open(request, timeout=60) as answer:
        nodes = json.load(answer)["data"]["assetNodes"]
    return {"/".join(node["assetKey"]["path"]) for node in nodes}
