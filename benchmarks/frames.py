r"""Frames of several libraries and shapes, written and read: each as a multiple of psql's `\copy`.

    python benchmarks/frames.py                       # some minutes
    python benchmarks/frames.py --quick               # a tenth of the rows, three rounds
    python benchmarks/frames.py --only wide text

The limit is psql moving the same rows as ready-made bytes in COPY's binary format. What there is
without this package takes part for Polars: `write_database` and `read_database_uri`, over ADBC.
Geometry has benchmarks/geometry.py, a pandas frame of ten columns benchmarks/write_read.py.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
from measuring import Bench, Contender, bench, load, report, take_turns, timed
from ten_columns import frame as ten_columns

SEED = 1


def polars_frame(rows: int) -> pl.DataFrame:
    return pl.from_pandas(ten_columns(rows))


def lazy_frame(rows: int) -> pl.LazyFrame:
    return polars_frame(rows).lazy()


def arrow_table(rows: int) -> pa.Table:
    return pa.Table.from_pandas(ten_columns(rows), preserve_index=False)


def pandas_chunks(rows: int) -> list[pd.DataFrame]:
    whole = ten_columns(rows)
    return [whole.iloc[start : start + 100_000] for start in range(0, rows, 100_000)]


def wide(rows: int) -> pd.DataFrame:
    values = np.random.default_rng(SEED).normal(size=(rows, 300))
    return pd.DataFrame(values, columns=[f"column_{number}" for number in range(300)])


def narrow(rows: int) -> pd.DataFrame:
    return pd.DataFrame({"n": np.arange(rows)})


def text(rows: int) -> pd.DataFrame:
    words = np.random.default_rng(SEED).integers(0, 36**4, (rows, 200))
    return pd.DataFrame(
        {"t": [" ".join(np.base_repr(word, 36) for word in row) for row in words.tolist()]}
    )


def text_polars(rows: int) -> pl.DataFrame:
    return pl.from_pandas(text(rows))


def nulls(rows: int) -> pd.DataFrame:
    whole = ten_columns(rows)
    missing = np.random.default_rng(SEED).random(whole.shape) < 0.8
    return whole.astype({"id": "Int64", "small": "Int32", "flag": "boolean"}).mask(missing)


@dataclass(frozen=True)
class Case:
    """A frame to be moved.

    Args:
        name: What `--only` calls it.
        as_class: What it is loaded as.
    """

    name: str
    what: str
    make: Callable[[int], Any]
    rows: int
    as_class: type


CASES = (
    Case("polars", "Polars, ten columns", polars_frame, 1_000_000, pl.DataFrame),
    Case("lazy", "Polars LazyFrame, ten columns", lazy_frame, 1_000_000, pl.LazyFrame),
    Case("arrow", "Arrow, ten columns", arrow_table, 1_000_000, pa.Table),
    Case("chunks", "pandas in chunks, ten columns", pandas_chunks, 1_000_000, pd.DataFrame),
    Case("wide", "pandas, 300 columns", wide, 40_000, pd.DataFrame),
    Case("narrow", "pandas, one column", narrow, 5_000_000, pd.DataFrame),
    Case("text", "pandas, text of 1 KB", text, 200_000, pd.DataFrame),
    Case("text-polars", "Polars, text of 1 KB", text_polars, 200_000, pl.DataFrame),
    Case("nulls", "pandas, ten columns, four fifths NULL", nulls, 500_000, pd.DataFrame),
)


def main() -> None:
    options = _options()
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    with bench() as running, tempfile.TemporaryDirectory() as folder:
        print(f"{running}\n{options.rounds} rounds, {load()}")
        for case in CASES:
            if case.name in options.only:
                rows = Rows(running, case, case.rows // options.part, Path(folder, "rows.copy"))
                for title, turns in (("write", writes(rows)), ("read", reads(rows))):
                    take_turns(turns, options.rounds, between=lambda: running.run("CHECKPOINT"))
                    report(f"{case.what}: {title}", turns)
                running.run("DROP TABLE stored, written")
        print(f"\n{load()}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, 3 rounds")
    names = [case.name for case in CASES]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    options = parser.parse_args()
    options.part = 10 if options.quick else 1
    options.rounds = 3 if options.quick else options.rounds
    return options


class Rows:
    """A case's rows: as a frame, in the table `stored`, and as a file in COPY's binary format."""

    def __init__(self, running: Bench, case: Case, count: int, file: Path) -> None:
        self.bench, self.case, self.file = running, case, file
        self.frame = case.make(count)
        running.store("stored", self.frame)
        running.run("VACUUM FREEZE stored")
        running.psql(rf"\copy stored TO '{file}' (FORMAT binary)")


def writes(rows: Rows) -> list[Contender]:
    def drop() -> None:
        rows.bench.run("DROP TABLE IF EXISTS written")

    contenders = [
        Contender(r"psql \copy into a new table: the limit", lambda: psql_write(rows), drop),
        Contender(
            "dagster-tools: handle_output", lambda: rows.bench.store("written", rows.frame), drop
        ),
    ]
    if isinstance(rows.frame, pl.DataFrame):
        contenders.append(Contender("polars: write_database", lambda: write_database(rows), drop))
    return contenders


def reads(rows: Rows) -> list[Contender]:
    contenders = [
        Contender(r"psql \copy to /dev/null: the limit", lambda: psql_read(rows)),
        Contender(
            "dagster-tools: load_input", lambda: rows.bench.load("stored", rows.case.as_class)
        ),
    ]
    if rows.case.as_class is pl.DataFrame:
        contenders.append(Contender("polars: read_database_uri", lambda: read_database(rows)))
    return contenders


def psql_write(rows: Rows) -> float:
    return rows.bench.psql(
        f"""
        BEGIN;
        CREATE TABLE written (LIKE stored);
        \\copy written FROM '{rows.file}' (FORMAT binary)
        COMMIT;
        """
    )


def psql_read(rows: Rows) -> float:
    return rows.bench.psql(r"\copy stored TO '/dev/null' (FORMAT binary)")


def write_database(rows: Rows) -> float:
    url = rows.bench.url()
    return timed(lambda: rows.frame.write_database("written", url, engine="adbc"))


def read_database(rows: Rows) -> float:
    url = rows.bench.url()
    return timed(lambda: pl.read_database_uri("SELECT * FROM stored", url, engine="adbc"))


if __name__ == "__main__":
    main()
