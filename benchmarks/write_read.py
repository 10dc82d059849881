r"""Write and read a million rows of ten columns: psql (the limit), dagster-tools and its peers.

The limit is psql's `\copy` of ready-made bytes: nothing is encoded or decoded, so nothing that
goes through the server can be much faster. All connect anew each time, and what this package does
besides moving rows (tables, tracking, checks, metadata) is counted. Two ratios are printed: of the
medians, and of the least, which noise on the machine touches least.

    python benchmarks/write_read.py            # about five minutes
    python benchmarks/write_read.py --quick    # a tenth of the rows, three rounds, half a minute

Those who would take minutes move a part of the rows once; their seconds are scaled, as is printed.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa
import sqlalchemy as sa
from adbc_driver_postgresql import dbapi as adbc
from bulk_ingest import by_bulk_ingest
from measuring import Bench, Contender, bench, load, report, take_turns, timed
from ten_columns import COLUMNS, frame

# The part of the rows moved by those who would take minutes.
TUPLES_SHARE = 0.05
TO_SQL_SHARE = 0.02
READ_SQL_SHARE = 0.2

TITLES = {
    "first": "first write of a table",
    "replace": "replace all rows of a table",
    "read": "read into pandas",
}
NAMES = ", ".join(COLUMNS)
DEFINITIONS = ", ".join(f"{name} {type_}" for name, type_ in COLUMNS.items())


def main() -> None:
    options = _options()
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    with bench() as running, tempfile.TemporaryDirectory() as folder:
        rows = Rows(running, frame(options.rows), Path(folder, "rows.copy"))
        print(f"{running}\n{rows}\n{options.rounds} rounds, {load()}")
        contenders = {"first": first_writes, "replace": replaces, "read": reads}
        for word in options.only:
            turns = contenders[word](rows)
            take_turns(turns, options.rounds, between=lambda: running.run("CHECKPOINT"))
            report(TITLES[word], turns)
        print(f"\n{load()}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="100,000 rows, 3 rounds")
    parser.add_argument("--only", nargs="+", choices=TITLES, default=list(TITLES))
    options = parser.parse_args()
    if options.quick:
        options.rows, options.rounds = 100_000, 3
    return options


class Rows:
    """The rows as a frame, as a file in COPY's binary format, and in the table `stored`."""

    def __init__(self, running: Bench, data: pd.DataFrame, file: Path) -> None:
        self.bench, self.frame, self.file = running, data, file
        write(self, "stored")
        running.run("VACUUM FREEZE stored")
        running.psql(rf"\copy stored TO '{file}' (FORMAT binary)")

    def __str__(self) -> str:
        megabytes = self.file.stat().st_size / 1e6
        return (
            f"{len(self.frame):,} rows of {len(COLUMNS)} columns and materialization_id, "
            f"{megabytes:.0f} MB as binary COPY"
        )

    def first(self, share: float) -> pd.DataFrame:
        return self.frame.head(int(len(self.frame) * share))

    def engine(self, driver: str) -> sa.Engine:
        return sa.create_engine(self.bench.url(f"postgresql+{driver}"))


# --- the first write of a table -------------------------------------------------------------


def first_writes(rows: Rows) -> list[Contender]:
    def contender(name: str, table: str, run: Callable[..., float], **more: Any) -> Contender:
        drop = f"DROP TABLE IF EXISTS {table}"
        return Contender(
            name, lambda: run(rows, table), prepare=lambda: rows.bench.run(drop), **more
        )

    return [
        contender(r"psql \copy into a new table: the limit", "by_psql", psql_first),
        contender("dagster-tools: handle_output", "by_us", write),
        contender("dagster-tools in a run: to HANDLED_OUTPUT", "by_run", write_in_run, rounds=3),
        contender("ADBC: adbc_ingest from pandas", "by_adbc", adbc_ingest),
        contender("pg-bulk-ingest 0.1.3, DataFrame over ADBC", "by_bulk", bulk_ingest),
        contender(
            "pg-bulk-ingest 0.1.3, tuples",
            "by_tuples",
            bulk_ingest_tuples,
            share=TUPLES_SHARE,
            rounds=1,
        ),
        contender("pandas.to_sql", "by_to_sql", to_sql, share=TO_SQL_SHARE, rounds=1),
    ]


def psql_first(rows: Rows, table: str) -> float:
    return rows.bench.psql(
        f"""
        BEGIN;
        CREATE TABLE {table} ({DEFINITIONS}, materialization_id integer);
        \\copy {table} FROM '{rows.file}' (FORMAT binary)
        COMMIT;
        """
    )


def write(rows: Rows, table: str) -> float:
    return rows.bench.store(table, rows.frame)


def write_in_run(rows: Rows, table: str) -> float:
    """Time the same in a run, by its events; Dagster's own work between them is in it."""

    @dg.asset(key=["public", table])
    def asset() -> pd.DataFrame:
        return rows.frame

    return _seconds_in_run(rows, [asset], "STEP_OUTPUT", "HANDLED_OUTPUT")


def _seconds_in_run(
    rows: Rows, assets: list[dg.AssetsDefinition | dg.AssetSpec], first: str, last: str
) -> float:
    with dg.DagsterInstance.ephemeral() as instance:
        done = dg.materialize(
            assets, instance=instance, resources={"io_manager": rows.bench.io_manager()}
        )
        at = {
            record.dagster_event.event_type_value: record.timestamp
            for record in instance.all_logs(done.run_id)
            if record.dagster_event is not None
        }
        return at[last] - at[first]


def adbc_ingest(rows: Rows, table: str) -> float:
    def ingest() -> None:
        with adbc.connect(rows.bench.url()) as connection, connection.cursor() as cursor:
            data = pa.Table.from_pandas(rows.frame, preserve_index=False)
            cursor.adbc_ingest(table, data, mode="create")
            connection.commit()

    return timed(ingest)


def bulk_ingest(rows: Rows, table: str) -> float:
    def data(target: sa.Table) -> Iterator[Any]:
        yield target, rows.frame

    return by_bulk_ingest(rows.bench.url(), "pgarrow", table, data)


def bulk_ingest_tuples(rows: Rows, table: str) -> float:
    part = rows.first(TUPLES_SHARE).astype(object)
    tuples = list(part.where(part.notna(), None).itertuples(index=False, name=None))

    def data(target: sa.Table) -> Iterator[Any]:
        return ((target, row) for row in tuples)

    return by_bulk_ingest(rows.bench.url(), "psycopg", table, data)


def to_sql(rows: Rows, table: str) -> float:
    part, engine = rows.first(TO_SQL_SHARE), rows.engine("psycopg2")
    return timed(lambda: part.to_sql(table, engine, index=False))


# --- replacing ------------------------------------------------------------------------------


def replaces(rows: Rows) -> list[Contender]:
    psql_first(rows, "kept_by_psql")
    write(rows, "kept_by_us")
    return [
        Contender(
            r"psql BEGIN; DELETE; \copy; COMMIT: the limit",
            lambda: psql_replace(rows, "kept_by_psql"),
            prepare=lambda: rows.bench.run("VACUUM kept_by_psql"),
        ),
        Contender(
            "dagster-tools: handle_output",
            lambda: write(rows, "kept_by_us"),
            prepare=lambda: rows.bench.run("VACUUM kept_by_us"),
        ),
    ]


def psql_replace(rows: Rows, table: str) -> float:
    return rows.bench.psql(
        f"""
        BEGIN;
        DELETE FROM {table};
        \\copy {table} FROM '{rows.file}' (FORMAT binary)
        COMMIT;
        """
    )


# --- reading --------------------------------------------------------------------------------


def reads(rows: Rows) -> list[Contender]:
    return [
        Contender(r"psql \copy (select) to /dev/null: the limit", lambda: psql_read(rows)),
        Contender("dagster-tools: load_input", lambda: rows.bench.load("stored")),
        Contender("dagster-tools in a run: to LOADED_INPUT", lambda: read_in_run(rows), rounds=3),
        Contender("ADBC: fetch_df", lambda: adbc_read(rows)),
        Contender("pandas.read_sql", lambda: read_sql(rows), share=READ_SQL_SHARE, rounds=1),
    ]


def psql_read(rows: Rows) -> float:
    return rows.bench.psql(rf"\copy (SELECT {NAMES} FROM stored) TO '/dev/null' (FORMAT binary)")


def read_in_run(rows: Rows) -> float:
    @dg.asset(ins={"stored": dg.AssetIn(["public", "stored"])})
    def reader(stored: pd.DataFrame) -> None:
        assert len(stored) == len(rows.frame)

    upstream = dg.AssetSpec(["public", "stored"])
    return _seconds_in_run(rows, [upstream, reader], "STEP_START", "LOADED_INPUT")


def adbc_read(rows: Rows) -> float:
    def fetch() -> None:
        with adbc.connect(rows.bench.url()) as connection, connection.cursor() as cursor:
            cursor.execute(f"SELECT {NAMES} FROM stored")
            cursor.fetch_df()

    return timed(fetch)


def read_sql(rows: Rows) -> float:
    engine = rows.engine("psycopg2")
    query = f"SELECT {NAMES} FROM stored LIMIT {len(rows.first(READ_SQL_SHARE))}"
    return timed(lambda: pd.read_sql(query, engine))


if __name__ == "__main__":
    main()
