r"""Upsert a million rows into a million, and delete-then-insert a tenth: ours, SQL and pangres.

The limit is the best SQL one would write by hand, of three kinds, and it is that of each case: the
same frame, ready-made as a file, goes into a temporary table by psql's `\copy`, and from there
into the table

- by INSERT ... ON CONFLICT DO UPDATE,
- by the same with a WHERE that leaves rows alone that do not differ,
- by DELETE ... USING and INSERT.

None of these looks for repeated keys, tells what it did, or records who did it. Both sides have a
primary key and carry `materialization_id`. The table is made anew before each turn.

    python benchmarks/upsert.py            # about half an hour
    python benchmarks/upsert.py --quick    # a tenth of the rows, three rounds, two minutes

pangres would take minutes: it upserts a part of the rows once, and its seconds are scaled.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pangres
import sqlalchemy as sa
from measuring import Bench, Contender, bench, load, report, take_turns, timed
from ten_columns import COLUMNS, frame

from dagster_tools import Eq, IncrementalDataFrame

PANGRES_SHARE = 0.02

NAMES = [*COLUMNS, "materialization_id"]
VALUES = NAMES[1:]
LIST = ", ".join(NAMES)
ASSIGNED = ", ".join(f"{name} = excluded.{name}" for name in VALUES)
DIFFERS = " OR ".join(f"kept.{name} IS DISTINCT FROM excluded.{name}" for name in VALUES[:-1])

ON_CONFLICT = f"""
INSERT INTO {{table}} AS kept ({LIST})
SELECT {LIST} FROM staging
ON CONFLICT (id) DO UPDATE SET {ASSIGNED};
"""
ON_CONFLICT_WHERE = f"{ON_CONFLICT.rstrip().rstrip(';')} WHERE {DIFFERS};"
DELETE_AND_INSERT = f"""
DELETE FROM {{table}} AS kept USING staging WHERE kept.id = staging.id;
INSERT INTO {{table}} ({LIST}) SELECT {LIST} FROM staging;
"""


def main() -> None:
    options = _options()
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    with bench() as running, tempfile.TemporaryDirectory() as folder:
        table = Table(running, frame(options.rows), Path(folder))
        print(f"{running}\n{options.rows:,} rows of {len(COLUMNS)} columns\n{load()}")
        for word in options.only:
            case = CASES[word]
            turns = contenders(table, case, pangres_too=word in {"new", "changed"})
            take_turns(turns, options.rounds, between=lambda: running.run("CHECKPOINT"))
            report(case.title, limit_first(turns))
        print(f"\n{load()}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="100,000 rows, 3 rounds")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    if options.quick:
        options.rows, options.rounds = 100_000, 3
    return options


def limit_first(turns: list[Contender]) -> list[Contender]:
    """Put the best of what is written by hand first, which `report` takes for the limit."""
    by_hand = [turn for turn in turns if turn.name.startswith("psql")]
    best = min(by_hand, key=lambda turn: statistics.median(turn.seconds))
    best.name += ": the limit"
    return [best, *(turn for turn in turns if turn is not best)]


# --- what is merged -------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A frame made of the rows that are there.

    Args:
        keyed: The asset declares the table's primary key; else it deletes by key, and inserts.
    """

    title: str
    change: Callable[[pd.DataFrame], pd.DataFrame]
    keyed: bool = True
    deletes: bool = False


def _new(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(id=rows["id"] + len(rows))


def _changed(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(x=rows["x"] + 1)


def _one_percent(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(x=rows["x"] + (rows["id"] % 100 == 0))


def _tenth(rows: pd.DataFrame) -> pd.DataFrame:
    return _changed(rows[rows["id"] % 10 == 0]).reset_index(drop=True)


def _few(rows: pd.DataFrame) -> pd.DataFrame:
    return _changed(rows[rows["id"] % 100 == 0]).reset_index(drop=True)


def _shuffled(rows: pd.DataFrame) -> pd.DataFrame:
    order = np.random.default_rng(1).permutation(len(rows))
    return _changed(rows).iloc[order].reset_index(drop=True)


CASES = {
    "new": Case("all rows new", _new),
    "changed": Case("all rows changed", _changed),
    "shuffled": Case("all rows changed, in no order", _shuffled),
    "one-percent": Case("1 % of the rows changed", _one_percent),
    "tenth": Case("a tenth of the rows, changed", _tenth),
    "few": Case("a hundredth of the rows, changed", _few),
    "unchanged": Case("all rows unchanged", lambda rows: rows),
    "delete": Case("delete a tenth by its keys, insert it", _tenth, keyed=False, deletes=True),
    "delete-keyed": Case("the same with a primary key declared", _tenth, deletes=True),
}


class Table:
    """The rows that are there, and a table for each contender made of them."""

    def __init__(self, running: Bench, rows: pd.DataFrame, folder: Path) -> None:
        self.bench, self.rows, self.folder = running, rows, folder
        write(self, "by_us", rows)
        running.run("ALTER TABLE by_us RENAME TO stored")
        running.run("VACUUM (FREEZE, ANALYZE) stored")

    def make(self, name: str, *, keyed: bool) -> None:
        """Make it as the first write left it; rows of `by_us` bear that write's number."""
        run = self.bench.run
        run(f"DROP TABLE IF EXISTS {name}")
        run(f"CREATE TABLE {name} (LIKE stored INCLUDING DEFAULTS)")
        run(f"INSERT INTO {name} SELECT * FROM stored")
        if keyed:
            run(f"ALTER TABLE {name} ADD PRIMARY KEY (id)")
        run(f"VACUUM ANALYZE {name}")

    def file(self, rows: pd.DataFrame) -> Path:
        """Write a frame as a file in COPY's binary format, the materialization's number in it."""
        write(self, "copied", rows)
        path = self.folder / "rows.copy"
        self.bench.psql(rf"\copy copied TO '{path}' (FORMAT binary)")
        self.bench.run("DROP TABLE copied")
        return path


# --- who merges it --------------------------------------------------------------------------


def contenders(table: Table, case: Case, *, pangres_too: bool) -> list[Contender]:
    rows = case.change(table.rows)
    file = table.file(rows)

    def contender(name: str, target: str, run: Callable[[str], float], **more: Any) -> Contender:
        def make() -> None:
            table.make(target, keyed=case.keyed)

        return Contender(name, lambda: run(target), prepare=make, **more)

    def by_psql(name: str, merge: str) -> Contender:
        return contender(f"psql {name}", "by_psql", lambda t: psql(table, file, merge, t))

    turns = [by_psql("delete-join + insert", DELETE_AND_INSERT)]
    if not case.deletes:
        turns.append(by_psql("ON CONFLICT", ON_CONFLICT))
        turns.append(by_psql("ON CONFLICT ... WHERE it differs", ON_CONFLICT_WHERE))
    turns.append(
        contender("dagster-tools: handle_output", "by_us", lambda t: write(table, t, rows, case))
    )
    if pangres_too:
        turns.append(
            contender(
                "pangres.upsert",
                "by_pangres",
                lambda t: by_pangres(table, rows, t),
                share=PANGRES_SHARE,
                rounds=1,
            )
        )
    if case.change(table.rows) is table.rows:
        turns.append(
            contender(r"a plain \copy, for comparison", "plain", lambda t: copy(table, file, t))
        )
    return turns


def psql(table: Table, file: Path, merge: str, target: str) -> float:
    return table.bench.psql(
        f"""
        BEGIN;
        CREATE TEMPORARY TABLE staging (LIKE {target}) ON COMMIT DROP;
        \\copy staging FROM '{file}' (FORMAT binary)
        {merge.format(table=target)}
        COMMIT;
        """
    )


def copy(table: Table, file: Path, target: str) -> float:
    table.bench.run(f"DROP TABLE {target}")
    table.bench.run(f"CREATE TABLE {target} (LIKE stored)")
    return table.bench.psql(rf"\copy {target} FROM '{file}' (FORMAT binary)")


def write(table: Table, target: str, rows: pd.DataFrame, case: Case | None = None) -> float:
    metadata: dict[str, Any] = {}
    output: object = rows
    if case is not None and case.keyed:
        metadata = {"primary_key": "id", "incremental": True}
    if case is not None and case.deletes:
        output = IncrementalDataFrame(rows, delete=Eq("id", rows["id"]))
    return table.bench.store(target, output, **metadata)


def by_pangres(table: Table, rows: pd.DataFrame, target: str) -> float:
    part = rows.head(int(len(rows) * PANGRES_SHARE)).set_index("id")
    engine = sa.create_engine(table.bench.url("postgresql+psycopg2"))
    return timed(
        lambda: pangres.upsert(
            con=engine, df=part, table_name=target, if_row_exists="update", schema="public"
        )
    )


if __name__ == "__main__":
    main()
