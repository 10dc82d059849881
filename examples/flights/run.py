"""The demo: a year of real flights through Dagster into PostgreSQL, and what came of it.

`make demo` runs it. It brings its own PostgreSQL and takes it away again. Where the tables do not
hold what it says they do, it ends with an error.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from textwrap import indent
from typing import Any

import dagster as dg
import geopandas as gpd
import psycopg
from definitions import (
    airlines,
    airports,
    airports_map,
    carrier_league,
    daily_delays,
    defs,
    flights,
    months,
    planes,
    weather,
)
from psycopg import sql

from dagster_tools.embedded import Server

MONTH_TO_REPEAT = "2013-02"

LEAGUE = """\
SELECT place, name, planned, late_percent, late_percent_in_rain
FROM nyc.carrier_league
ORDER BY place
LIMIT 5"""

GEOMETRY_STORAGE = """\
SELECT format_type(atttypid, atttypmod),
       EXISTS (SELECT FROM pg_extension WHERE extname = 'postgis')
FROM pg_attribute
WHERE attrelid = 'nyc.airports_map'::regclass AND attname = 'geometry'"""

LINEAGE = """\
SELECT a.partition_key, count(*) AS rows, f.materialization_id,
       left(m.run_id, 8) AS run, to_char(m.timestamp, 'HH24:MI:SS') AS written
FROM nyc.flights AS f
JOIN meta.materializations AS m ON m.id = f.materialization_id
JOIN meta.assets AS a ON a.id = m.asset_id
GROUP BY a.id, f.materialization_id, m.id
ORDER BY a.partition_key
LIMIT 4"""

MONTHS_IN_TABLE = """\
SELECT to_char(make_date(year::int, month::int, 1), 'YYYY-MM'),
       count(*), string_agg(DISTINCT materialization_id::text, ', ')
FROM nyc.flights
GROUP BY 1"""


def main() -> None:
    started = time.monotonic()
    with Server() as server:
        os.environ.update(server.environment())
        with psycopg.connect(server.url, autocommit=True) as connection:
            version = connection.info.parameter_status("server_version")
            print("All flights out of New York in 2013, by way of Dagster into PostgreSQL.")
            print(f"PostgreSQL {version} is running, for as long as this demo does.")
            tell(connection, months.get_partition_keys())
    seconds = time.monotonic() - started
    print(f"\nAll this took {seconds:.0f} seconds. PostgreSQL has stopped, its files are gone.")
    print("For the same in Dagster's UI: make ui")


def tell(connection: psycopg.Connection, partition_keys: Sequence[str]) -> None:
    """Run the pipeline over these months, and say what happened."""
    print("\nThree tables in one run. The time is that of the whole write, commit included.\n")
    written = materialize(airlines, airports, planes)
    print_table(
        ["table", "rows", "ms", "rows/s"],
        [[f"nyc.{name}", w.rows, w.milliseconds, w.rate] for name, w in written.items()],
    )

    print("\nThe airports as geometry: a GeoDataFrame out, a GeoDataFrame in.\n")
    map_airports(connection)

    print(f"\n{len(partition_keys)} months, a run for each: rows, and rows per second.\n")
    load_months(connection, partition_keys)

    print("\nThe league of the carriers, from all months of daily_delays.\n")
    materialize(carrier_league)
    print_query(connection, LEAGUE)

    print(f"\n{MONTH_TO_REPEAT} once more: this month is replaced, and no other.\n")
    repeat_month(connection, MONTH_TO_REPEAT)

    print("\nWhich run wrote which rows?\n")
    print_query(connection, LINEAGE)


def map_airports(connection: psycopg.Connection) -> None:
    written = materialize(airports_map)["airports_map"]
    places: gpd.GeoDataFrame = defs.load_asset_value("airports_map", python_type=gpd.GeoDataFrame)
    require(
        len(places) == written.rows and places.crs == "EPSG:4326",
        "geometry comes back with its CRS",
    )
    [(stored, postgis)] = connection.execute(GEOMETRY_STORAGE).fetchall()
    west, south, east, north = places.total_bounds
    print(f"  nyc.airports_map   {len(places):,} points in {places.crs.to_string()},")
    print(
        f"                     {west:.0f} to {east:.0f} east and {south:.0f} to {north:.0f} north"
    )
    why = "the server has PostGIS" if postgis else "this server has no PostGIS"
    form = "EWKB in bytea" if stored == "bytea" else stored
    print(f"  stored as          {form}; {why}")


def load_months(connection: psycopg.Connection, partition_keys: Sequence[str]) -> None:
    names = ["flights", "weather", "daily_delays"]
    written = dict.fromkeys(names, 0)
    print("  month  " + "".join(f"{name:>14}{'rows/s':>9}" for name in names))
    for key in partition_keys:
        month = materialize(flights, weather, daily_delays, partition_key=key)
        print(f"  {key}" + "".join(f"{month[n].rows:14,}{month[n].rate:9,}" for n in names))
        for name in names:
            written[name] += month[name].rows

    stored = {name: count_rows(connection, name) for name in names}
    print("  stored " + "".join(f"{stored[n]:14,}{'':9}" for n in names).rstrip())
    require(stored == written, "the tables hold every row once")


def repeat_month(connection: psycopg.Connection, month: str) -> None:
    before = fetch_months(connection)
    run = materialize(flights, partition_key=month)["flights"].run
    after = fetch_months(connection)

    (rows, old), (rows_now, new) = before.pop(month), after.pop(month)
    require(rows == rows_now and old != new, f"{month} is replaced by as many rows")
    print(f"  {month}   {rows:,} rows of materialization {old} before,")
    print(f"            {rows_now:,} rows of materialization {new} now, by run {run}")
    others = sum(rows for rows, _ in before.values())
    require(before == after, "the other months are as they were")
    print(f"  others    {others:,} rows in {len(before)} months, of the same materializations")


# --- doing ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """What Dagster knows about one write, as its UI shows it too."""

    rows: int
    milliseconds: int
    rate: int
    run: str


def materialize(
    *assets: dg.AssetsDefinition, partition_key: str | None = None
) -> dict[str, Written]:
    """Run these assets in this process; return what was written, by asset."""
    result = dg.materialize(
        list(defs.assets or ()),
        selection=list(assets),
        partition_key=partition_key,
        resources=defs.resources,
        run_config={"loggers": {"console": {"config": {"log_level": "ERROR"}}}},
    )
    written = {}
    for event in result.get_asset_materialization_events():
        metadata: dict[str, Any] = {
            key: value.value for key, value in event.materialization.metadata.items()
        }
        written[event.materialization.asset_key.path[-1]] = Written(
            rows=metadata["dagster/partition_row_count" if partition_key else "dagster/row_count"],
            milliseconds=round(1000 * metadata["seconds"]),
            rate=metadata["rows_per_second"],
            run=result.run_id[:8],
        )
    return written


def fetch_months(connection: psycopg.Connection) -> dict[str, tuple[int, str]]:
    """Ask the table itself: the rows of each month, and the materialization they belong to."""
    return {month: (rows, ids) for month, rows, ids in connection.execute(MONTHS_IN_TABLE)}


def count_rows(connection: psycopg.Connection, table: str) -> int:
    query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier("nyc", table))
    return int(connection.execute(query).fetchall()[0][0])


def require(condition: bool, promise: str) -> None:
    if not condition:
        raise SystemExit(f"Not as promised: {promise}.")


# --- printing -------------------------------------------------------------------------------


def print_query(connection: psycopg.Connection, query: str) -> None:
    cursor = connection.execute(query)
    print(indent(query, "  ") + "\n")
    print_table([column.name for column in cursor.description or ()], cursor)


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print aligned columns, numbers to the right."""
    cells = list(rows)
    shown = [list(header), *([as_text(value) for value in row] for row in cells)]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    is_number = [isinstance(value, (int, float)) for value in cells[0]]
    for row in shown:
        aligned = [
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(row, widths, is_number, strict=True)
        ]
        print("  " + "   ".join(aligned).rstrip())


def as_text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)


if __name__ == "__main__":
    main()
