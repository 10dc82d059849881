"""The demo: a year of real flights through Dagster into PostgreSQL, and what came of it.

`make demo` runs it. It brings its own PostgreSQL and takes it away again. Where the tables do not
hold what it says they do, it ends with an error.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from textwrap import indent

import dagster as dg
import psycopg
from definitions import (
    airlines,
    airports,
    carrier_league,
    daily_delays,
    defs,
    flights,
    months,
    planes,
    weather,
)

from dagster_tools.embedded import Server

RERUN = "2013-02"

LEAGUE = """\
SELECT place, name, planned, late_percent, late_percent_in_rain
FROM nyc.carrier_league
ORDER BY place
LIMIT 5"""

LINEAGE = """\
SELECT a.partition_key AS month, f.materialization_id, count(*) AS rows,
       left(m.run_id, 8) AS run, m.timestamp::time(1) AS written
FROM nyc.flights AS f
JOIN meta.materializations AS m ON m.id = f.materialization_id
JOIN meta.assets AS a ON a.id = m.asset_id
GROUP BY a.id, f.materialization_id, m.id
ORDER BY month
LIMIT 4"""

FLIGHTS_BY_MONTH = """\
SELECT to_char(make_date(year::int, month::int, 1), 'YYYY-MM'),
       array_agg(DISTINCT materialization_id), count(*)
FROM nyc.flights
GROUP BY 1"""


def main() -> None:
    started = time.monotonic()
    with Server() as server:
        os.environ.update(server.environment())
        with psycopg.connect(autocommit=True) as connection:
            version = connection.info.parameter_status("server_version")
            print(f"PostgreSQL {version} is up, for as long as this demo runs.")
            tell(connection, months.get_partition_keys())
    seconds = time.monotonic() - started
    print(f"\nDone in {seconds:.0f} seconds. PostgreSQL is stopped and its files are gone.")
    print("The same in Dagster's UI: make ui")


def tell(connection: psycopg.Connection, partition_keys: Sequence[str]) -> None:
    """Run the pipeline over these months, and say what happened."""
    heading("Three tables, one run. Seconds are the whole write, from connect to commit.")
    written = materialize(airlines, airports, planes)
    print_table(
        ["table", "rows", "seconds", "rows/s"],
        [[f"nyc.{name}", w.rows, f"{w.seconds:.3f}", w.rate] for name, w in written.items()],
    )

    heading(f"{len(partition_keys)} months, a run for each: rows, and rows per second.")
    total = load_months(partition_keys)
    require(total == count(connection, "flights"), "every flight is in the table once")

    heading(f"The league of {partition_keys[0][:4]}, from all partitions of daily_delays.")
    materialize(carrier_league)
    print_query(connection, LEAGUE)

    heading(f"{RERUN} once more. It is replaced, and nothing else is touched.")
    print_table(
        ["nyc.flights", "rows", "materialization"], rerun_one_month(connection, partition_keys)
    )

    heading("Which run wrote which rows?")
    print_query(connection, LINEAGE)


def load_months(partition_keys: Sequence[str]) -> int:
    """Materialize the partitioned assets month by month; return the number of flights."""
    print_row = TableRow([7, 9, 10, 9, 10, 14, 9])
    print_row(["month", "flights", "rows/s", "weather", "rows/s", "daily_delays", "rows/s"])
    totals = dict.fromkeys(["flights", "weather", "daily_delays"], 0)
    for key in partition_keys:
        written = materialize(flights, weather, daily_delays, partition_key=key)
"""
