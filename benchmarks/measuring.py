"""What the benchmarks share: a server as users have it, psql on it, and turns taken fairly."""

from __future__ import annotations

import gc
import os
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import dagster as dg
import pandas as pd
import psycopg
import pyarrow as pa

from dagster_tools.embedded import Binaries, Server
from dagster_tools.postgres_io_manager import PostgresIOManager, PostgresResource

DBNAME = "postgres"


@dataclass(frozen=True)
class Bench:
    """A running server, and the ways in."""

    server: Server
    connection: psycopg.Connection[Any]

    def __str__(self) -> str:
        setting = self.connection.execute("SHOW fsync").fetchone()
        assert setting is not None
        version = self.connection.info.server_version // 10_000
        return f"PostgreSQL {version}, fsync {setting[0]}, {os.cpu_count()} processors"

    def run(self, statement: str) -> None:
        """Run what belongs to nobody's time."""
        self.connection.execute(statement)

    def url(self, driver: str = "postgresql") -> str:
        server = self.server
        return f"{driver}://{server.user}:{server.password}@{server.host}:{server.port}/{DBNAME}"

    def psql(self, script: str) -> float:
        """Run a script with psql, and return the seconds from its start to its end."""
        server = self.server
        environment = {
            "PGHOST": server.host,
            "PGPORT": str(server.port),
            "PGUSER": server.user,
            "PGPASSWORD": server.password,
            "PGDATABASE": DBNAME,
        }
        command = [str(server.binaries.folder / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1"]
        began = time.perf_counter()
        subprocess.run(command, input=script, text=True, env=os.environ | environment, check=True)
        return time.perf_counter() - began

    def io_manager(self) -> PostgresIOManager:
        return io_manager(self.url())

    def store(self, table: str, value: object, **metadata: Any) -> float:
        """Time the IO manager with what an asset returned, from the call to its return."""
        return store(self.url(), table, value, **metadata)

    def load(self, table: str, annotation: type = pd.DataFrame) -> float:
        """Time the IO manager with an input of a class, from the call to the frame."""
        manager = self.io_manager()
        context = dg.build_input_context(
            asset_key=dg.AssetKey(["public", table]),
            name="stored",
            dagster_type=dg.PythonObjectDagsterType(annotation),
        )
        return timed(lambda: manager.load_input(context))


def io_manager(url: str) -> PostgresIOManager:
    return PostgresIOManager(connection=PostgresResource.from_url(url))


def store(url: str, table: str, value: object, **metadata: Any) -> float:
    """Time the same from a process that has but the address of the server."""
    manager = io_manager(url)
    context = dg.build_output_context(
        asset_key=dg.AssetKey(["public", table]),
        run_id="a run",
        name="result",
        definition_metadata=metadata,
    )
    return timed(lambda: manager.handle_output(context, value))


@contextmanager
def bench() -> Iterator[Bench]:
    """Start Debian's PostgreSQL with its defaults, fsync on, for the time of the block."""
    with Server(binaries=Binaries.find(postgis=True)) as server:
        connection = psycopg.connect(
            host=server.host,
            port=server.port,
            user=server.user,
            password=server.password,
            dbname=DBNAME,
            autocommit=True,
        )
        with connection:
            yield Bench(server, connection)


@dataclass
class Contender:
    """One way to do what is measured.

    Args:
        run: Does it, and returns the seconds that count.
        prepare: Makes what `run` needs; not counted.
        share: The part of the rows it moves, for those that would take minutes. Its seconds
            are divided by this.
        rounds: In how many rounds it takes part; None for all.
    """

    name: str
    run: Callable[[], float]
    prepare: Callable[[], None] = lambda: None
    share: float = 1.0
    rounds: int | None = None
    seconds: list[float] = field(default_factory=list)


def take_turns(
    contenders: Sequence[Contender], rounds: int, between: Callable[[], None] = lambda: None
) -> None:
    """Let all do it once, uncounted, then in each round once more, in turning order.

    Args:
        between: Run before each, so that none pays for what the one before left behind.
    """
    for number in range(rounds + 1):
        for contender in contenders if number % 2 else reversed(contenders):
            limit = rounds if contender.rounds is None else contender.rounds
            warm_up = number == 0
            if number > limit or (warm_up and limit < rounds):
                continue
            contender.prepare()
            between()
            gc.collect()
            seconds = contender.run() / contender.share
            if not warm_up:
                contender.seconds.append(seconds)


def report(title: str, contenders: Sequence[Contender]) -> None:
    """Print seconds and multiples; the first contender is the limit."""
    limit = contenders[0]
    print(f"\n{title:58}{'median':>9}{'least':>9}{'most':>9}{'x limit':>9}{'of least':>9}")
    for contender in contenders:
        middle, least = statistics.median(contender.seconds), min(contender.seconds)
        note = f" [{contender.share:.0%} of the rows, scaled]" if contender.share < 1 else ""
        print(
            f"{contender.name + note:58}{middle:9.3f}{least:9.3f}{max(contender.seconds):9.3f}"
            f"{middle / statistics.median(limit.seconds):9.2f}{least / min(limit.seconds):9.2f}",
            flush=True,
        )


def timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


@final
class Peak:
    """The highest resident set of the block, above the one at its beginning."""

    def __enter__(self) -> Peak:
        gc.collect()
        pa.default_memory_pool().release_unused()
        Path("/proc/self/clear_refs").write_text("5")  # starts the kernel's peak anew
        self.before, self.began = _status("VmRSS"), time.perf_counter()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.seconds = time.perf_counter() - self.began
        self.megabytes = (_status("VmHWM") - self.before) / 1e6

    def __str__(self) -> str:
        return f"in {self.seconds:5.1f} s, peak {self.megabytes:4.0f} MB"


def _status(key: str) -> int:
    """Return a line of /proc/self/status in bytes (man 5 proc)."""
    found = re.search(rf"^{key}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def load() -> str:
    """Return how busy the machine is, for a reader to judge the numbers by."""
    return "load average " + " ".join(f"{number:.1f}" for number in os.getloadavg())
