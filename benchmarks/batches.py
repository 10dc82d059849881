r"""Load five million rows in ten batches: tuples of a generator and frames, beside pg-bulk-ingest.

The limit is psql's `\copy` of ready-made bytes, one batch after the other, each committed by
itself. The tuples are made beforehand and handed out by a generator again and again, so that
nobody waits for them. pg-bulk-ingest takes the same batches, over psycopg and over ADBC; what
would take minutes moves a part of the rows once, and its seconds are scaled, as is printed.

    python benchmarks/batches.py            # about five minutes
    python benchmarks/batches.py --quick    # 200,000 rows, half a minute

The peaks of memory are those of a process of its own for each, above what it has after a batch of
ten rows; the rows that are handed out again and again are in it before.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

import pandas as pd
import sqlalchemy as sa
from bulk_ingest import by_bulk_ingest
from measuring import Bench, Contender, Peak, bench, load, report, store, take_turns
from ten_columns import COLUMNS, frame

from dagster_tools.sql import Batch, Batches

BATCHES = 10
DIFFERENT_ROWS = 50_000
TUPLES_SHARE = 0.1
DEFINITIONS = ", ".join(f"{name} {type_}" for name, type_ in COLUMNS.items())

Tuple = tuple[Any, ...]


def main() -> None:
    options = _options()
    _be_silent()
    with bench() as running, tempfile.TemporaryDirectory() as folder:
        rows = Rows.of(options.rows // BATCHES)
        print(f"{running}\n{options.rows:,} rows in {BATCHES} batches\n{load()}")
        turns = contenders(running, rows, Path(folder, "batch.copy"))
        take_turns(turns, options.rounds, between=lambda: running.run("CHECKPOINT"))
        report("load in batches", turns)
        _report_ratio(turns)
        spawning = multiprocessing.get_context("spawn")
        print()
        with spawning.Pool(1, maxtasksperchild=1) as processes:
            for name in PEAKS:
                print(processes.apply(peak, [name, running.url(), options.rows // BATCHES]))
        print(f"\n{load()}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="200,000 rows, 3 rounds")
    options = parser.parse_args()
    if options.quick:
        options.rows = 200_000
    return options


def _be_silent() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)


def _report_ratio(turns: list[Contender]) -> None:
    least = {turn.name: min(turn.seconds) for turn in turns}
    ratio = least[THEIR_TUPLES] / least[OUR_TUPLES]
    print(f"tuples: {ratio:.1f} times as fast as pg-bulk-ingest over psycopg, by the least of each")


@dataclass(frozen=True)
class Rows:
    """One batch: as a frame, and as some tuples that come again and again."""

    frame: pd.DataFrame
    some: list[Tuple]

    @classmethod
    def of(cls, count: int) -> Rows:
        some = frame(min(count, DIFFERENT_ROWS)).astype(object)
        tuples = some.where(some.notna(), None).itertuples(index=False, name=None)
        return cls(frame(count), [tuple(map(_plain, row)) for row in tuples])

    def tuples(self) -> Iterator[Tuple]:
        yield from islice(cycle(self.some), len(self.frame))


def _plain(value: object) -> object:
    """Return what a driver or a CSV reader would give: pandas' Timestamps are no datetimes."""
    return value.to_pydatetime() if isinstance(value, pd.Timestamp) else value


# --- who loads them -------------------------------------------------------------------------

OUR_TUPLES = "dagster-tools: Batches of tuples"
OUR_FRAMES = "dagster-tools: Batches of frames"
THEIR_TUPLES = "pg-bulk-ingest 0.1.3: tuples over psycopg"
THEIR_FRAMES = "pg-bulk-ingest 0.1.3: frames over ADBC"


def contenders(running: Bench, rows: Rows, file: Path) -> list[Contender]:
    url = running.url()
    our_load(url, "ready", lambda: rows.frame, 1)
    running.psql(rf"\copy ready TO '{file}' (FORMAT binary)")

    def contender(name: str, table: str, run: Callable[[str], float], **more: Any) -> Contender:
        drop = f"DROP TABLE IF EXISTS {table}"
        return Contender(name, lambda: run(table), prepare=lambda: running.run(drop), **more)

    part = BATCHES * TUPLES_SHARE
    return [
        contender(r"psql \copy, batch by batch: the limit", "by_psql", psql(running, file)),
        contender(OUR_FRAMES, "frames", lambda t: our_load(url, t, lambda: rows.frame)),
        contender(OUR_TUPLES, "tuples", lambda t: our_load(url, t, rows.tuples)),
        contender(THEIR_FRAMES, "by_frames", lambda t: their_frames(url, t, rows)),
        contender(
            THEIR_TUPLES,
            "by_tuples",
            lambda t: their_tuples(url, t, rows, round(part)),
            share=TUPLES_SHARE,
            rounds=1,
        ),
    ]


def psql(running: Bench, file: Path) -> Callable[[str], float]:
    def run(table: str) -> float:
        copies = rf"\copy {table} FROM '{file}' (FORMAT binary)"
        create = f"CREATE TABLE {table} ({DEFINITIONS}, materialization_id integer);"
        return running.psql("\n".join([create, *[copies] * BATCHES]))

    return run


def our_load(url: str, table: str, data: Callable[[], object], batches: int = BATCHES) -> float:
    """Load it in so many batches; each run begins anew."""

    def source(_high_watermark: object) -> Iterator[Batch]:
        for number in range(batches):
            yield Batch(data(), high_watermark=number)

    return store(url, table, Batches(source), columns=COLUMNS)


def their_frames(url: str, table: str, rows: Rows, batches: int = BATCHES) -> float:
    def data(target: sa.Table) -> Iterator[Any]:
        yield target, rows.frame

    return by_bulk_ingest(url, "pgarrow", table, data, batches)


def their_tuples(url: str, table: str, rows: Rows, batches: int = BATCHES) -> float:
    def data(target: sa.Table) -> Iterator[Any]:
        return ((target, row) for row in rows.tuples())

    return by_bulk_ingest(url, "psycopg", table, data, batches)


# --- in how much memory ---------------------------------------------------------------------


def peak(name: str, url: str, count: int) -> str:
    _be_silent()
    rows = Rows.of(count)
    few = Rows(rows.frame.head(10), rows.some[:10])
    run = PEAKS[name]
    run(url, "warmed_up", few)
    with Peak() as measured:
        run(url, "peak", rows)
    return f"{name:50}{measured}"


def _one_long_batch(url: str, table: str, rows: Rows) -> None:
    """All rows in one batch, which is where memory would grow."""
    long = lambda: chain.from_iterable(rows.tuples() for _ in range(BATCHES))  # noqa: E731  # read once by each
    our_load(url, table, long, batches=1)


PEAKS: dict[str, Callable[[str, str, Rows], object]] = {
    f"{OUR_TUPLES}, one batch": _one_long_batch,
    OUR_FRAMES: lambda url, table, rows: our_load(url, table, lambda: rows.frame),
    THEIR_FRAMES: their_frames,
    f"{THEIR_TUPLES}, a tenth": lambda url, table, rows: their_tuples(url, table, rows, 1),
}


if __name__ == "__main__":
    main()
