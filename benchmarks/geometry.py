r"""Geometry: writing and reading GeoDataFrames against psql and GeoPandas' own functions.

    python benchmarks/geometry.py [--quick]

The limit is psql moving the same rows as ready-made bytes: `\copy` in binary of a table with the
same columns. GeoPandas' `to_postgis` and `read_postgis` are what there is without this package.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyarrow as pa
import shapely
import sqlalchemy as sa
from measuring import Bench, Contender, bench, load, report, take_turns, timed

VERTICES = 200


def main() -> None:
    options = _options()
    with bench() as running, tempfile.TemporaryDirectory() as folder:
        running.run("CREATE EXTENSION postgis")
        print(f"{running}\n{options.rounds} rounds, {load()}")
        for what, frame in (
            (f"{options.points:,} points", points(options.points)),
            (f"{options.polygons:,} polygons of {VERTICES} vertices", polygons(options.polygons)),
        ):
            rows = Rows(running, frame, Path(folder) / "rows.bin")
            print(f"\n{what}, {rows}")
            for title, turns in (("write", writes(rows)), ("read", reads(rows))):
                take_turns(turns, options.rounds, between=lambda: running.run("CHECKPOINT"))
                report(f"{what}: {title}", turns)
        print(f"\n{load()}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=500_000)
    parser.add_argument("--polygons", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, 3 rounds")
    options = parser.parse_args()
    if options.quick:
        options.points, options.polygons, options.rounds = 50_000, 5_000, 3
    return options


def points(count: int) -> gpd.GeoDataFrame:
    """Return points all over the world, numbered and named."""
    random = np.random.default_rng(1)
    places = shapely.points(random.uniform(-180, 180, count), random.uniform(-85, 85, count))
    return _frame(places)


def polygons(count: int) -> gpd.GeoDataFrame:
    """Return circles of so many vertices, as building footprints or catchments are."""
    random = np.random.default_rng(1)
    angles = np.linspace(0, 2 * np.pi, VERTICES - 1, endpoint=False)
    ring = np.column_stack([np.cos(angles), np.sin(angles)])
    ring = np.concatenate([ring, ring[:1]])
    centers = random.uniform(-80, 80, (count, 1, 2))
    return _frame(shapely.polygons(ring[None] * random.uniform(0.1, 1, (count, 1, 1)) + centers))


def _frame(geometry: np.ndarray) -> gpd.GeoDataFrame:
    numbers = np.arange(len(geometry))
    names = [f"place {number}" for number in numbers]
    return gpd.GeoDataFrame({"id": numbers, "name": names}, geometry=geometry, crs=4326)


class Rows:
    """The rows as a frame, as a file in COPY's binary format, and in the table `stored`."""

    def __init__(self, running: Bench, frame: gpd.GeoDataFrame, file: Path) -> None:
        self.bench, self.frame, self.file = running, frame, file
        running.run("DROP TABLE IF EXISTS stored")
        write(self, "stored")
        running.run("VACUUM FREEZE stored")
        running.psql(rf"\copy stored TO '{file}' (FORMAT binary)")
        self.engine = sa.create_engine(running.url("postgresql+psycopg2"))

    def __str__(self) -> str:
        return f"{self.file.stat().st_size / 1e6:.0f} MB as binary COPY"


def writes(rows: Rows) -> list[Contender]:
    def contender(
        name: str, run: Callable[[Rows, str], float], rounds: int | None = None
    ) -> Contender:
        drop = "DROP TABLE IF EXISTS written"
        return Contender(
            name,
            lambda: run(rows, "written"),
            prepare=lambda: rows.bench.run(drop),
            rounds=rounds,
        )

    return [
        contender(r"psql \copy into a new table: the limit", psql_write),
        contender("dagster-tools: handle_output", write),
        contender("geopandas.to_postgis", to_postgis, rounds=1),
    ]


def psql_write(rows: Rows, table: str) -> float:
    return rows.bench.psql(
        f"""
        BEGIN;
        CREATE TABLE {table} (
            id bigint, name text, geometry geometry(Geometry,4326), materialization_id integer
        );
        \\copy {table} FROM '{rows.file}' (FORMAT binary)
        COMMIT;
        """
    )


def write(rows: Rows, table: str) -> float:
    return rows.bench.store(table, rows.frame)


def to_postgis(rows: Rows, table: str) -> float:
    return timed(lambda: rows.frame.to_postgis(table, rows.engine))


def reads(rows: Rows) -> list[Contender]:
    def load_as(annotation: type) -> float:
        return rows.bench.load("stored", annotation)

    return [
        Contender(r"psql \copy (select) to /dev/null: the limit", lambda: psql_read(rows)),
        Contender(
            "dagster-tools: load_input, as a GeoDataFrame", lambda: load_as(gpd.GeoDataFrame)
        ),
        Contender("dagster-tools: load_input, as WKB in Arrow", lambda: load_as(pa.Table)),
        Contender("shapely.from_wkb alone, of WKB in memory", lambda: parse(rows)),
        Contender("geopandas.read_postgis", lambda: read_postgis(rows), rounds=1),
    ]


def psql_read(rows: Rows) -> float:
    statement = "SELECT id, name, geometry FROM stored"
    return rows.bench.psql(rf"\copy ({statement}) TO '/dev/null' (FORMAT binary)")


def parse(rows: Rows) -> float:
    wkb = rows.frame.geometry.to_wkb().to_numpy(dtype=object)
    return timed(lambda: shapely.from_wkb(wkb))


def read_postgis(rows: Rows) -> float:
    query = "SELECT id, name, geometry FROM stored"
    return timed(lambda: gpd.read_postgis(query, rows.engine, geom_col="geometry"))


if __name__ == "__main__":
    main()
