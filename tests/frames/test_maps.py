from __future__ import annotations

import io

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pytest
import shapely
from PIL import Image

from dagster_tools.frames import maps, to_arrow
from dagster_tools.frames.maps import Sample, Summary, sampled, summarize


def table_of(*wkt: str | None, crs: object = 4326) -> pa.Table:
    return to_arrow(gpd.GeoDataFrame(geometry=gpd.GeoSeries.from_wkt(list(wkt), crs=crs)))


def summary_of(table: pa.Table) -> Summary:
    _rows, sample = sampled(table)
    [summary] = summarize(sample)
    return summary


def drawn(summary: Summary) -> np.ndarray:
    """Return which pixels of the map have any color."""
    assert summary.png is not None
    return np.asarray(Image.open(io.BytesIO(summary.png)).convert("L")) < 255


def test_geometry_is_summed_up():
    summary = summary_of(table_of("POINT (1 2)", "LINESTRING Z (0 0 1, 5 8 1)", None, crs=25832))

    assert summary.crs == "EPSG:25832"
    assert summary.kinds == ("LineStringZ", "Point")
    assert summary.bounds == (0, 0, 5, 8)
    assert summary.rows == 3


def test_north_is_up_and_east_is_right():
    ink = drawn(summary_of(table_of("POINT (0 0)", "POINT (10 0)", "POINT (10 9)")))

    height, width = ink.shape
    quarters = [ink[: height // 2, : width // 2], ink[: height // 2, width // 2 :]]
    quarters += [ink[height // 2 :, : width // 2], ink[height // 2 :, width // 2 :]]
    assert [bool(quarter.any()) for quarter in quarters] == [False, True, True, True]


def test_an_area_is_filled_and_a_line_is_not():
    square = "0 0, 0 1, 1 1, 1 0, 0 0"

    area = drawn(summary_of(table_of(f"POLYGON (({square}))", crs=None)))
    line = drawn(summary_of(table_of(f"LINESTRING ({square})", crs=None)))

    assert area.sum() > 20 * line.sum() > 0


@pytest.mark.parametrize(
    "wkt",
    [
        ["POINT EMPTY", None],
        [None],
        ["POINT (inf 1)"],
        ["GEOMETRYCOLLECTION EMPTY"],
        ["POLYGON EMPTY", "MULTILINESTRING EMPTY"],
    ],
)
def test_what_has_no_place_has_no_map(wkt):
    summary = summary_of(table_of(*wkt))

    assert summary.bounds is None
    assert summary.png is None


@pytest.mark.parametrize(
    "wkt",
    [
        ["POINT (1 2)"],
        ["LINESTRING (1 1, 1 1)"],
        ["LINESTRING (0 5, 9 5)"],
        ["GEOMETRYCOLLECTION (POINT (1 2), GEOMETRYCOLLECTION (LINESTRING (0 0, 1 1)))"],
        ["POINT (1e300 1e300)", "POINT (-1e300 0)"],
        ["POINT (0 90)", "POINT (10 90)"],
        ["POLYGON ((0 0, 2 2, 2 0, 0 2, 0 0))"],
    ],
)
def test_odd_geometry_is_drawn_all_the_same(wkt):
    assert drawn(summary_of(table_of(*wkt))).any()


def test_what_shapely_cannot_read_is_left_out():
    curve = bytes.fromhex("010800000003000000") + bytes(48)
    table = table_of("POINT (1 2)", "POINT (3 4)")
    wkb = pa.array([table["geometry"][0].as_py(), curve], pa.large_binary())

    summary = summary_of(table.set_column(0, table.schema.field(0), wkb))

    assert summary.kinds == ("CircularString", "Point")
    assert summary.bounds == (1, 2, 1, 2)


def test_a_map_is_small_however_much_there_is():
    random = np.random.default_rng(1)
    many = shapely.linestrings(random.uniform(-180, 180, (5_000, 50, 2)))
    table = to_arrow(gpd.GeoDataFrame(geometry=many, crs=4326))

    summary = summary_of(table)

    assert summary.rows == maps.ROWS
    assert summary.png is None or len(summary.png) <= maps.PNG_BYTES


def test_a_frame_is_sampled_all_over():
    points = shapely.points(np.arange(100_000), 0)

    summary = summary_of(to_arrow(gpd.GeoDataFrame(geometry=points, crs=25832)))

    assert summary.bounds is not None
    assert summary.bounds[0] == 0
    assert summary.bounds[2] > 99_000


def test_large_values_are_not_all_looked_at():
    ring = shapely.Point(0, 0).buffer(1, quad_segs=20_000)

    summary = summary_of(to_arrow(gpd.GeoDataFrame(geometry=[ring] * 20, crs=25832)))

    assert 0 < summary.rows < 20


def test_a_stream_is_sampled_as_it_passes_and_loses_nothing():
    table = table_of(*(f"POINT ({n} 0)" for n in range(2_000)))
    rows, sample = sampled(table.to_reader(max_chunksize=7))

    assert summarize(sample) == []
    passed = pa.Table.from_batches(rows)
    [summary] = summarize(sample)

    assert passed.equals(table)
    assert summary.rows == maps.ROWS


def test_rows_without_geometry_are_not_touched():
    table = pa.table({"id": [1]})

    assert sampled(table) == (table, Sample(()))
