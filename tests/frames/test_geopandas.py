from __future__ import annotations

import gc
import subprocess
import sys

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import shapely
from geopandas.testing import assert_geodataframe_equal

from dagster_tools import geoarrow
from dagster_tools.errors import BadValue, UnsupportedFrame
from dagster_tools.frames import from_arrow, geopandas, to_arrow

POINTS = ["POINT (1 2)", None, "POINT (-3.5 1e300)", "POINT (0 -0.0)"]
NOT_JUST_POINTS = [
    ["POINT (1 2)", "POINT EMPTY"],
    ["POINT (1 2)", "POINT Z (1 2 3)"],
    ["POINT M (1 2 3)"],
    ["LINESTRING (0 0, 1 1)", None, "POINT (1 2)"],
    ["MULTIPOINT (1 2)"],
    [None, None],
    [],
]


def frame_of(*wkt, crs=4326):
    return gpd.GeoDataFrame(
        {"id": np.arange(len(wkt))}, geometry=gpd.GeoSeries.from_wkt(list(wkt), crs=crs)
    )


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_package_does_not_import_geopandas():
    code = (
        "import sys, dagster_tools.postgres_io_manager; "
        "print([m for m in ('geopandas', 'shapely', 'pyproj', 'PIL') if m in sys.modules])"
    )

    assert python(code) == "[]"


def test_an_arrow_table_with_geometry_is_stored_without_geopandas():
    """Those who bring Arrow need not bring shapely."""
    code = (
        "import sys, pyarrow as pa\n"
        "from dagster_tools import geoarrow\n"
        "from dagster_tools.frames import to_arrow\n"
        "from dagster_tools.frames.maps import sampled, summarize\n"
        "field = geoarrow.mark(pa.field('g', pa.binary()), geoarrow.Crs('EPSG:4326'))\n"
        "wkb = bytes.fromhex('0101000000000000000000f03f0000000000000040')\n"
        "rows, sample = sampled(to_arrow(pa.table({'g': [wkb]}, pa.schema([field]))))\n"
        "[summary] = summarize(sample)\n"
        "print(summary.crs, summary.kinds, summary.png, 'shapely' in sys.modules)"
    )

    assert python(code) == "EPSG:4326 ('Point',) None False"


@pytest.mark.parametrize("wkt", [POINTS, *NOT_JUST_POINTS], ids=str)
def test_wkb_is_what_shapely_itself_makes(wkt):
    """Points of two dimensions take a way of their own, for speed."""
    frame = frame_of(*wkt)

    [field] = geoarrow.fields(to_arrow(frame).schema)
    made = to_arrow(frame).column(field.name).to_pylist()

    values = frame.geometry.to_numpy()
    assert made == list(shapely.to_wkb(values, flavor="iso", output_dimension=4, byte_order=1))


@pytest.mark.parametrize("wkt", [POINTS, *NOT_JUST_POINTS], ids=str)
@pytest.mark.parametrize("rows", [1, 100])
def test_a_frame_comes_back_from_chunks_of_any_size(wkt, rows):
    frame = frame_of(*wkt)

    stream = to_arrow(frame).to_reader(max_chunksize=rows)

    assert_geodataframe_equal(from_arrow(stream, gpd.GeoDataFrame), frame)


def test_a_slice_of_points_is_read_from_where_it_begins():
    table = to_arrow(frame_of(*POINTS)).slice(1, 2)

    loaded = from_arrow(table.to_reader(), gpd.GeoDataFrame)

    assert [value and value.wkt for value in loaded.geometry] == [None, "POINT (-3.5 1e+300)"]


def test_no_more_than_a_batch_of_wkb_is_held_while_a_table_is_read():
    """Beside the geometries made of it, a table's WKB would be held once more."""
    geometry = geoarrow.mark(pa.field("g", pa.binary()), geoarrow.Crs())
    schema = pa.schema([pa.field("id", pa.int64()), geometry])
    megabyte = shapely.to_wkb(shapely.linestrings(np.zeros((2**16, 2))))
    held = []

    def batches():
        before = pa.total_allocated_bytes()
        for number in range(4):
            held.append(pa.total_allocated_bytes() - before)
            yield pa.record_batch([[number], [megabyte]], schema=schema)

    # By Arrow's C interface, as the driver hands it over: one owner for all columns of a batch.
    stream = pa.RecordBatchReader.from_stream(pa.RecordBatchReader.from_batches(schema, batches()))

    loaded = from_arrow(stream, gpd.GeoDataFrame)

    assert max(held) < 1.1 * len(megabyte)
    assert loaded["id"].tolist() == [0, 1, 2, 3]
    assert (shapely.get_num_points(loaded.g.values) == 2**16).all()


def test_wkb_that_is_cut_short_is_refused_with_its_row():
    table = to_arrow(frame_of(None, "LINESTRING (1 2, 3 4)", "LINESTRING (1 2, 3 4)"))
    [field] = geoarrow.fields(table.schema)
    values = table.column("geometry").to_pylist()
    bad = pa.array([*values[:2], values[2][:-1]], field.type)

    with pytest.raises(BadValue, match=r"column 'geometry', row 2: .*shapely cannot read"):
        from_arrow(table.set_column(1, field, bad).to_reader(max_chunksize=2), gpd.GeoDataFrame)


def test_points_in_the_other_byte_order_are_read():
    table = to_arrow(frame_of("POINT (1 2)"))
    [field] = geoarrow.fields(table.schema)
    wkb = pa.array(shapely.to_wkb([shapely.Point(1, 2)], byte_order=0), field.type)

    loaded = from_arrow(table.set_column(1, field, wkb).to_reader(), gpd.GeoDataFrame)

    assert loaded.geometry[0] == shapely.Point(1, 2)


@pytest.mark.parametrize(
    ("crs", "said"),
    [
        (4326, "EPSG:4326"),
        ("ESRI:54009", "ESRI:54009"),
        ("OGC:CRS84", "OGC:CRS84"),
        (gpd.GeoSeries(crs=25832).crs.to_wkt(), "EPSG:25832"),
        ("+proj=utm +zone=32 +datum=WGS84", "EPSG:32632"),
        ("+proj=longlat +datum=WGS84 +no_defs", "OGC:CRS84"),
        (None, None),
    ],
)
def test_a_crs_is_told_by_the_code_of_its_authority(crs, said):
    [field] = geoarrow.fields(to_arrow(frame_of("POINT (1 2)", crs=crs)).schema)

    assert geoarrow.read_crs(field).definition == said


@pytest.mark.parametrize(
    "crs",
    [
        "+proj=laea +lat_0=10 +lon_0=20",
        "+proj=utm +zone=32 +ellps=GRS80 +units=m",
        "+proj=longlat +a=6378137 +b=6356752 +lon_wrap=180",
    ],
)
def test_a_crs_that_is_only_like_one_is_refused(crs):
    with pytest.raises(BadValue, match="column 'geometry': its CRS is none"):
        to_arrow(frame_of("POINT (1 2)", crs=crs))


def test_columns_keep_their_order_and_the_index_comes_first():
    frame = frame_of("POINT (1 2)")
    frame.insert(0, "place", frame.geometry)
    frame.index = pd.Index(["a"], name="key")

    assert to_arrow(frame).schema.names == ["key", "place", "id", "geometry"]
    assert [field.name for field in geoarrow.fields(to_arrow(frame).schema)] == [
        "place",
        "geometry",
    ]


def test_a_geodataframe_without_geometry_is_a_dataframe():
    frame = gpd.GeoDataFrame({"id": [1]})

    assert not geopandas.owns(frame)
    assert to_arrow(frame).schema.names == ["id"]


def test_a_geoseries_is_refused_with_what_to_make_of_it():
    with pytest.raises(UnsupportedFrame, match=r"frame of one column.*to_frame"):
        to_arrow(gpd.GeoSeries.from_wkt(["POINT (1 2)"]))


class NeedsMore(gpd.GeoDataFrame):  # type: ignore[misc]  # geopandas has no types
    def __init__(self, data, name):
        super().__init__(data)


def test_a_subclass_that_a_frame_does_not_make_is_refused():
    with pytest.raises(UnsupportedFrame, match=r"cannot be made from a geopandas\.GeoDataFrame"):
        from_arrow(to_arrow(frame_of("POINT (1 2)")).to_reader(), NeedsMore)


def test_an_older_shapely_refuses_m_rather_than_lose_it(monkeypatch):
    monkeypatch.setattr(geopandas, "_max_dimensions", lambda: 3)
    field = geoarrow.mark(pa.field("g", pa.binary()), geoarrow.Crs())
    wkb = shapely.to_wkb(shapely.from_wkt("POINT M (1 2 3)"), flavor="iso", output_dimension=4)

    with pytest.raises(BadValue, match=r"column 'g': has M.*shapely 2\.1"):
        from_arrow(pa.table({"g": [wkb]}, pa.schema([field])).to_reader(), gpd.GeoDataFrame)


def test_without_geopandas_geometry_names_the_install_command():
    code = (
        "import sys\n"
        "class NotInstalled:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'geopandas':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, NotInstalled())\n"
        "import pandas as pd, pyarrow as pa\n"
        "from dagster_tools import geoarrow\n"
        "from dagster_tools.frames import from_arrow, frame_class\n"
        "field = geoarrow.mark(pa.field('g', pa.binary()), geoarrow.Crs())\n"
        "table = pa.table({'g': [None]}, pa.schema([field]))\n"
        "for annotation in (None, pd.DataFrame):\n"
        "    try: from_arrow(table.to_reader(), frame_class(annotation))\n"
        "    except Exception as e: print(type(e).__name__, e)\n"
    )

    said = python(code).splitlines()

    assert len(said) == 2
    assert all(line.startswith("UnsupportedFrame") for line in said)
    assert all("pip install 'dagster-tools[geopandas]'" in line for line in said)


def test_the_garbage_collector_is_only_paused(monkeypatch):
    paused = []
    decode = geopandas._decode

    def looking(*arguments):
        paused.append(not gc.isenabled())
        return decode(*arguments)

    monkeypatch.setattr(geopandas, "_decode", looking)
    field = geoarrow.mark(pa.field("g", pa.binary()), geoarrow.Crs())
    table = pa.table({"g": [b"no WKB"]}, pa.schema([field]))

    with pytest.raises(BadValue):
        from_arrow(table.to_reader(), gpd.GeoDataFrame)

    assert paused == [True]
    assert gc.isenabled()
