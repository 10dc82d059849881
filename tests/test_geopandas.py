"""GeoDataFrames and GeoArrow tables in PostGIS: the guide's section, and every input of
reliability.md §2f, whose row number each test's id begins with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
import geopandas as gpd
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import shapely
from geopandas.testing import assert_geodataframe_equal
from hypothesis import HealthCheck, settings
from hypothesis import given as given_by_chance
from hypothesis import strategies as st
from shapely.geometry import LinearRing, Point, Polygon

from dagster_tools import (
    Batch,
    Batches,
    Eq,
    IncrementalDataFrame,
    PostgresIOManager,
    Query,
)
from dagster_tools.embedded import Server
from dagster_tools.errors import BadValue, ConfigurationError, SchemaConflict, UnsupportedFrame
from tests import fix_servers
from tests.fix_servers import Database
from tests.pipelines import column_types, load, manager_for, materialize, query, store

BOWTIE = "POLYGON ((0 0, 2 2, 2 0, 0 2, 0 0))"
COLORS = dg.StaticPartitionsDefinition(["red", "green"])
GERMANY = 25832


@pytest.fixture(scope="module")
def manager(module_database: Database) -> PostgresIOManager:
    return manager_for(module_database)


def frame_of(*wkt: str | None, crs: Any = 4326) -> gpd.GeoDataFrame:
    """Return a frame of these geometries, numbered from 0."""
    geometry = gpd.GeoSeries.from_wkt(list(wkt), crs=crs)
    return gpd.GeoDataFrame({"id": np.arange(len(wkt))}, geometry=geometry)


def as_table(frame: gpd.GeoDataFrame) -> pa.Table:
    """Return what GeoPandas itself makes of a frame in Arrow, its CRS in PROJJSON."""
    return pa.table(frame.to_arrow(geometry_encoding="WKB"))


def as_stream(frame: gpd.GeoDataFrame) -> pa.RecordBatchReader:
    return as_table(frame).to_reader(max_chunksize=1)


@pytest.fixture(
    params=[
        pytest.param(lambda frame: frame, id="geopandas"),
        pytest.param(as_table, id="arrow"),
        pytest.param(as_stream, id="stream"),
    ]
)
def given(request: pytest.FixtureRequest) -> Callable[[gpd.GeoDataFrame], Any]:
    """Hand geometry over as each library has it; the claim is made for all."""
    way: Callable[[gpd.GeoDataFrame], Any] = request.param
    return way


def wkt_of(frame: gpd.GeoDataFrame, column: str = "geometry") -> list[str | None]:
    return [None if value is None else value.wkt for value in frame[column]]


def asked_postgis(database: Database, table: str, what: str = "ST_AsEWKT(geometry)") -> list[Any]:
    return [value for (value,) in query(database, f"SELECT {what} FROM {table} ORDER BY id")]


# --- the guide ------------------------------------------------------------------------------


def test_the_guides_asset_is_a_table_with_geometry_and_comes_back_as_a_geodataframe(
    io_manager: PostgresIOManager, database: Database
):
    @dg.asset(
        metadata={
            "schema": "spatial",
            "columns": {
                "id": ("int", "not null"),
                "name": "string",
                "geometry": ("geometry", "not null"),
            },
        },
    )
    def facility_locations():
        return gpd.GeoDataFrame(
            {
                "id": [1, 2],
                "name": ["Facility A", "Facility B"],
                "geometry": [Point(-122.4, 37.8), Point(-118.2, 34.0)],
            },
            crs="EPSG:4326",
        )

    loaded = []

    @dg.asset
    def unannotated(facility_locations) -> None:
        loaded.append(facility_locations)

    @dg.asset
    def annotated(facility_locations: gpd.GeoDataFrame) -> None:
        loaded.append(facility_locations)

    materialize([facility_locations, unannotated, annotated], io_manager)

    assert query(
        database,
        "SELECT f_geometry_column, srid, type FROM geometry_columns "
        "WHERE f_table_schema = 'spatial'",
    ) == [("geometry", 4326, "GEOMETRY")]
    for frame in loaded:
        assert type(frame) is gpd.GeoDataFrame
        assert frame.crs == "EPSG:4326"
        assert frame["name"].tolist() == ["Facility A", "Facility B"]
        assert frame.geometry.tolist() == [Point(-122.4, 37.8), Point(-118.2, 34.0)]


# --- reliability.md, 2f: what comes back as it was ------------------------------------------

KEPT: dict[str, list[str | None]] = {
    "99-some-null": ["POINT (1 2)", None],
    "99-all-null": [None, None],
    "100-empty": ["POINT EMPTY", "POLYGON EMPTY", "GEOMETRYCOLLECTION EMPTY", "LINESTRING EMPTY"],
    "100-empty-part": ["MULTIPOINT (EMPTY, (1 1))"],
    "101-mixed-types": ["POINT (1 2)", "LINESTRING (0 0, 1 1)", "POLYGON ((0 0, 1 1, 1 0, 0 0))"],
    "102-never-promoted": ["POINT (1 2)", "MULTIPOINT ((1 2))", "MULTIPOINT ((1 2), (3 4))"],
    "103-mixed-dimensions": ["POINT (1 2)", "POINT Z (1 2 3)", None],
    "103-mixed-dimensions-of-polygons": [
        "POLYGON Z ((0 0 1, 1 1 1, 1 0 1, 0 0 1))",
        "POLYGON ((0 0, 1 1, 1 0, 0 0))",
    ],
    "104-Z": ["POINT Z (1 2 3)", "LINESTRING Z (0 0 1, 1 1 2)"],
    "104-M": ["POINT M (1 2 3)", "LINESTRING M (0 0 1, 1 1 2)"],
    "104-ZM": ["POINT ZM (1 2 3 4)"],
    "104-all-of-them": ["POINT (1 2)", "POINT Z (1 2 3)", "POINT M (1 2 3)", "POINT ZM (1 2 3 4)"],
    "105-collection": ["GEOMETRYCOLLECTION (POINT (1 2), LINESTRING (0 0, 1 1))"],
    "107-invalid": [BOWTIE, "POLYGON ((0 0, 1 1, 0 0, 0 0))", "LINESTRING (1 1, 1 1)"],
    "116-latitudes-and-longitudes-out-of-range": ["POINT (37.8 -122.4)", "POINT (200 10)"],
}


def kept(crs: Any = 4326) -> gpd.GeoDataFrame:
    """Return a frame that has a column of each kind of values, over and over to the same length."""
    rows = max(len(wkt) for wkt in KEPT.values())
    columns = {
        kind: gpd.GeoSeries.from_wkt([wkt[row % len(wkt)] for row in range(rows)], crs=crs)
        for kind, wkt in KEPT.items()
    }
    return gpd.GeoDataFrame({"id": np.arange(rows), **columns}, geometry=next(iter(columns)))


def what_postgis_reads_of_the_same_text(
    database: Database, table: str, frame: gpd.GeoDataFrame
) -> list[str]:
    """Return the columns that hold something else than PostGIS makes of the values' text."""
    unlike = []
    with database.connect() as connection:
        for kind in KEPT:
            texts = [text and f"SRID=4326;{text}" for text in wkt_of(frame, kind)]
            [(same,)] = connection.execute(
                f"""
                SELECT bool_and(ST_AsEWKB("{kind}"::geometry) IS NOT DISTINCT FROM ST_AsEWKB(t))
                FROM {table}
                JOIN unnest(%s::text[]::geometry[]) WITH ORDINALITY AS told (t, n) ON n = id + 1
                """,
                [texts],
            ).fetchall()
            unlike += [] if same else [kind]
    return unlike


def test_geometry_of_every_kind_comes_back_as_it_was(given, manager, module_database, table_name):
    frame = kept()

    store(manager, given(frame), key=table_name)
    loaded = load(manager, key=table_name, order_by="id", annotation=None)
    # Twice: what was inferred for a new table now has to do for an existing one.
    store(manager, given(frame), key=table_name)
    again = load(manager, key=table_name, order_by="id", annotation=None)

    assert {kind: wkt_of(loaded, kind) for kind in KEPT} == {
        kind: wkt_of(frame, kind) for kind in KEPT
    }
    assert_geodataframe_equal(loaded, frame)
    assert_geodataframe_equal(again, frame)
    assert what_postgis_reads_of_the_same_text(module_database, table_name, frame) == []


def test_105_a_linear_ring_is_stored_as_the_line_it_is(manager, table_name):
    ring = LinearRing([(0, 0), (1, 1), (1, 0)])

    store(manager, gpd.GeoDataFrame({"id": [1]}, geometry=[ring], crs=4326), key=table_name)
    loaded = load(manager, key=table_name, annotation=None)

    assert wkt_of(loaded) == ["LINESTRING (0 0, 1 1, 1 0, 0 0)"]


def test_107_an_invalid_polygon_is_stored_and_postgis_says_so(
    given, manager, module_database, table_name
):
    store(manager, given(frame_of(BOWTIE)), key=table_name)

    assert asked_postgis(module_database, table_name, "ST_IsValid(geometry)") == [False]


def test_108_nan_and_infinity_stay_coordinates(given, manager, table_name):
    with np.errstate(invalid="ignore"):
        lines = [
            shapely.linestrings([[0, 0], [np.nan, 1], [np.inf, -np.inf]]),
            shapely.points(np.inf, 1),
        ]
    frame = gpd.GeoDataFrame({"id": [0, 1]}, geometry=lines, crs=4326)

    store(manager, given(frame), key=table_name)
    loaded = load(manager, key=table_name, order_by="id", annotation=None)

    expected = [[0, 0], [np.nan, 1], [np.inf, -np.inf], [np.inf, 1]]
    np.testing.assert_array_equal(shapely.get_coordinates(loaded.geometry.values), expected)


def test_108_a_point_of_nan_is_an_empty_point_which_wkb_does_not_tell_apart(manager, table_name):
    nowhere = shapely.points([[np.nan, np.nan], [1, 2]])

    store(manager, gpd.GeoDataFrame({"id": [0, 1]}, geometry=nowhere, crs=4326), key=table_name)
    loaded = load(manager, key=table_name, order_by="id", annotation=None)

    assert wkt_of(loaded) == ["POINT EMPTY", "POINT (1 2)"]


@pytest.mark.parametrize("given", [lambda f: f, as_table], ids=["geopandas", "arrow"])
def test_110_geometry_columns_keep_their_own_srid(given, manager, module_database, table_name):
    frame = frame_of("POINT (9 48)", "POINT (10 49)")
    frame["projected"] = frame.geometry.to_crs(GERMANY)
    frame["unknown"] = gpd.GeoSeries.from_wkt([None, "LINESTRING (0 0, 1 1)"])

    store(manager, given(frame), key=table_name)
    loaded = load(manager, key=table_name, order_by="id", annotation=None)

    assert_geodataframe_equal(loaded, frame)
    assert [loaded[name].crs for name in ("geometry", "projected", "unknown")] == [
        "EPSG:4326",
        f"EPSG:{GERMANY}",
        None,
    ]
    assert loaded.geometry.name == "geometry"
    assert column_types(module_database, table_name) == {
        "id": "bigint",
        "geometry": "geometry(Geometry,4326)",
        "projected": f"geometry(Geometry,{GERMANY})",
        "unknown": "geometry",
    }


def test_110_without_a_column_named_geometry_the_first_is_the_active_one(manager, table_name):
    frame = frame_of("POINT (9 48)").rename_geometry("place")
    frame["outline"] = frame.place

    store(manager, frame, key=table_name)
    loaded = load(manager, gpd.GeoDataFrame, key=table_name)

    assert loaded.geometry.name == "place"
    assert loaded["outline"].crs == "EPSG:4326"


def test_112_a_frame_without_crs_has_none_afterwards(given, manager, module_database, table_name):
    frame = frame_of("POINT (1 2)", "POINT Z (1 2 3)", crs=None)

    store(manager, given(frame), key=table_name)
    loaded = load(manager, key=table_name, order_by="id", annotation=None)

    assert loaded.crs is None
    assert_geodataframe_equal(loaded, frame)
    assert asked_postgis(module_database, table_name, "ST_SRID(geometry)") == [0, 0]


def test_114_ogcs_crs84_is_4326_whose_axes_have_that_order_here(given, manager, table_name):
    store(manager, given(frame_of("POINT (9 48)", crs="OGC:CRS84")), key=table_name)
    loaded = load(manager, key=table_name, annotation=None)

    assert loaded.crs == "EPSG:4326"
    assert wkt_of(loaded) == ["POINT (9 48)"]


def test_115_a_crs_of_esri_keeps_its_code(given, manager, module_database, table_name):
    store(manager, given(frame_of("POINT (9 48)", crs="ESRI:54009")), key=table_name)
    loaded = load(manager, key=table_name, annotation=None)

    assert loaded.crs == "ESRI:54009"
    assert column_types(module_database, table_name)["geometry"] == "geometry(Geometry,54009)"


def test_118_a_table_without_rows_keeps_its_crs(given, manager, table_name):
    store(manager, given(frame_of("POINT (9 48)", crs=GERMANY)), key=table_name)
    store(manager, frame_of(crs=GERMANY), key=table_name)

    loaded = load(manager, key=table_name, annotation=None)

    assert type(loaded) is gpd.GeoDataFrame
    assert len(loaded) == 0
    assert loaded.crs == f"EPSG:{GERMANY}"


def test_118_a_declared_column_of_a_frame_that_was_always_empty_has_its_crs(manager, table_name):
    columns = {"id": "int", "geometry": f"geometry(Point,{GERMANY})"}

    store(manager, frame_of(crs=GERMANY), key=table_name, columns=columns)
    loaded = load(manager, key=table_name, upstream={"columns": columns}, annotation=None)

    assert loaded.crs == f"EPSG:{GERMANY}"
    assert list(loaded) == ["id", "geometry"]


def test_118_a_mixed_column_without_rows_has_the_crs_of_its_check(manager, table_name):
    mixed = ["POINT (1 2)", "POINT Z (1 2 3)"]

    store(manager, frame_of(*mixed), key=table_name)
    store(manager, frame_of(), key=table_name)

    assert load(manager, key=table_name, annotation=None).crs == "EPSG:4326"


# --- reliability.md, 2f: what is refused ----------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "wkt"),
    [
        ("CircularString", "CIRCULARSTRING (0 0, 1 1, 2 0)"),
        ("CompoundCurve", "COMPOUNDCURVE ((0 0, 1 1))"),
        ("CurvePolygon", "CURVEPOLYGON ((0 0, 1 1, 1 0, 0 0))"),
        ("MultiSurface", "MULTISURFACE (((0 0, 1 1, 1 0, 0 0)))"),
        ("TIN", "TIN Z (((0 0 0, 0 1 0, 1 1 0, 0 0 0)))"),
        ("Triangle", "TRIANGLE ((0 0, 0 1, 1 1, 0 0))"),
        ("PolyhedralSurface", "POLYHEDRALSURFACE Z (((0 0 0, 0 1 0, 1 1 0, 0 0 0)))"),
    ],
)
def test_106_what_shapely_cannot_hold_is_an_error_that_names_column_and_kind(
    kind, wkt, manager, module_database, table_name
):
    with module_database.connect() as connection:
        connection.execute(f"CREATE TABLE {table_name} (id int, shape geometry)")
        connection.execute(f"INSERT INTO {table_name} VALUES (1, 'POINT (1 2)'), (2, %s)", [wkt])

    with pytest.raises(BadValue, match=f"column 'shape', row 1: is a {kind}.*ST_CurveToLine"):
        load(manager, key=table_name, annotation=None)

    as_bytes = load(manager, key=table_name, columns={"id": "int", "shape": "bytea"})
    assert all(isinstance(value, bytes) for value in as_bytes["shape"])


def test_106_curves_are_wkb_in_arrow(manager, module_database, table_name):
    with module_database.connect() as connection:
        connection.execute(
            f"CREATE TABLE {table_name} AS SELECT 'CIRCULARSTRING (0 0, 1 1, 2 0)'::geometry AS g"
        )

    table = load(manager, pa.Table, key=table_name)
    store(manager, table, key=f"{table_name}_copy")

    assert query(module_database, f"SELECT ST_AsText(g) FROM {table_name}_copy") == [
        ("CIRCULARSTRING(0 0,1 1,2 0)",)
    ]


@pytest.mark.parametrize(
    "wkb",
    [
        pytest.param("0103000000010000000300000000" + "00" * 47, id="unclosed-ring"),
        pytest.param("0101000000", id="cut-short"),
        pytest.param("01630000000000000000000000", id="no-such-kind"),
        pytest.param("ff01000000" + "00" * 16, id="no-byte-order"),
        pytest.param("00", id="one-byte"),
    ],
)
def test_109_wkb_that_is_none_is_refused_with_its_row(wkb, manager, module_database, table_name):
    good = as_table(frame_of("POINT (1 2)", "POINT (1 2)"))
    field = good.schema.field("geometry")
    bad = pa.array([good["geometry"][0].as_py(), bytes.fromhex(wkb)], field.type)
    table = good.set_column(1, field, bad)

    with pytest.raises(BadValue, match="column 'geometry'") as caught:
        store(manager, table, key=table_name)

    assert caught.value.row == 1
    assert query(module_database, "SELECT to_regclass(%s)", table_name) == [(None,)]


@pytest.mark.parametrize("geometry_storage", ["postgis", "ewkb"])
@pytest.mark.parametrize("marked", [True, False], ids=["marked", "bytes"])
def test_111_a_value_that_names_another_srid_than_its_column_is_refused_with_its_row(
    marked, geometry_storage, module_database, table_name
):
    manager = manager_for(module_database, geometry_storage=geometry_storage)
    table = as_table(frame_of("POINT (1 2)", "POINT (3 4)"))
    store(manager, table, key=table_name)
    stray = shapely.to_wkb(shapely.set_srid(Point(3, 4), 3857), include_srid=True)
    field = table.schema.field("geometry") if marked else pa.field("geometry", pa.binary())
    values = pa.array([shapely.to_wkb(Point(1, 2)), stray], field.type)

    with pytest.raises(BadValue, match="has SRID 3857, and the column takes 4326") as caught:
        store(manager, table.set_column(1, field, values), key=table_name)

    assert (caught.value.column, caught.value.row) == ("geometry", 1)


@pytest.mark.parametrize("existing", ["geometry(Geometry,4326)", "geometry", "declared"])
@pytest.mark.parametrize("crs", [3857, None], ids=["another", "none"])
def test_111_a_crs_that_is_not_the_columns_is_refused(
    existing, crs, given, manager, module_database, table_name
):
    """By the type's modifiers, by the CHECK of a column of mixed dimensions, or declared."""
    metadata: dict[str, Any] = {}
    if existing == "declared":
        metadata = {"columns": {"geometry": "geometry(Point,4326)"}}
    else:
        first = ["POINT (1 2)"] if "4326" in existing else ["POINT (1 2)", "POINT Z (1 2 3)"]
        store(manager, frame_of(*first), key=table_name)

    with pytest.raises(SchemaConflict, match=r"'geometry' has SRID 4326 .*(to|set)_crs\(4326\)"):
        store(manager, given(frame_of("POINT (3 4)", crs=crs)), key=table_name, **metadata)

    if existing != "declared":
        assert asked_postgis(module_database, table_name, "ST_X(geometry)")[0] == 1


def test_113_a_crs_like_one_of_an_authority_is_not_taken_for_it(
    given, manager, module_database, table_name
):
    """At a low confidence pyproj takes this for ESRI:102017, which is centred on the pole."""
    frame = frame_of("POINT (1 2)", crs="+proj=laea +lat_0=10 +lon_0=20")

    with pytest.raises(BadValue, match=r"column 'geometry'.*EPSG or ESRI.*to_crs"):
        store(manager, given(frame), key=table_name)

    assert query(module_database, "SELECT to_regclass(%s)", table_name) == [(None,)]


def test_113_a_crs_of_the_users_own_in_postgis_is_read(manager, module_database, table_name):
    custom = "+proj=laea +lat_0=10 +lon_0=20 +type=crs"
    wkt = gpd.GeoSeries(crs=custom).crs.to_wkt("WKT1_GDAL")
    with module_database.connect() as connection:
        connection.execute("INSERT INTO spatial_ref_sys (srid, srtext) VALUES (990001, %s)", [wkt])
        connection.execute(f"CREATE TABLE {table_name} (g geometry(Point,990001))")
        connection.execute(f"INSERT INTO {table_name} VALUES ('SRID=990001;POINT (1 2)')")

    loaded = load(manager, key=table_name, annotation=None)

    assert loaded.crs.equals(gpd.GeoSeries(crs=custom).crs, ignore_axis_order=True)


def test_115_a_srid_that_postgis_would_change_is_refused(manager, table_name):
    table = as_table(frame_of("POINT (1 2)"))
    crs = {"crs": "EPSG:999001", "crs_type": "authority_code"}
    field = table.schema.field("geometry")
    field = field.with_metadata(
        {**field.metadata, b"ARROW:extension:metadata": json.dumps(crs).encode()}
    )

    with pytest.raises(BadValue, match="999001"):
        store(manager, table.cast(pa.schema([table.schema.field("id"), field])), key=table_name)


def test_116_out_of_range_degrees_come_back_as_they_were_and_not_wrapped(
    manager, module_database, table_name
):
    """`geography` would make -160 of 200."""
    store(manager, frame_of("POINT (200 10)"), key=table_name)

    assert asked_postgis(module_database, table_name, "ST_X(geometry)") == [200]


def test_117_geography_takes_degrees_alone(given, manager, module_database, table_name):
    columns = {"geometry": "geography"}
    with pytest.raises(SchemaConflict, match="SRID 4326"):
        store(manager, given(frame_of("POINT (1 2)", crs=3857)), key=table_name, columns=columns)

    store(manager, given(frame_of("POINT (1 2)")), key=table_name, columns=columns)
    loaded = load(manager, key=table_name, annotation=None)

    assert column_types(module_database, table_name)["geometry"] == "geography(Geometry,4326)"
    assert loaded.crs == "EPSG:4326"
    assert wkt_of(loaded) == ["POINT (1 2)"]


def test_117_geography_of_other_degrees_is_declared_with_their_srid(given, manager, table_name):
    columns = {"geometry": "geography(Point,4267)"}

    store(manager, given(frame_of("POINT (1 2)", crs=4267)), key=table_name, columns=columns)
    loaded = load(manager, key=table_name, annotation=None)

    assert loaded.crs == "EPSG:4267"
    assert wkt_of(loaded) == ["POINT (1 2)"]


@pytest.mark.parametrize("option", ["primary_key", "unique"])
def test_119_geometry_is_no_key(option, given, manager, table_name):
    metadata: dict[str, Any] = {"primary_key": "geometry"}
    if option == "unique":
        metadata = {"columns": {"geometry": ("geometry", "unique")}}

    with pytest.raises(ConfigurationError, match=f"{option}.*'geometry'.*not told apart"):
        store(manager, given(frame_of("POINT (1 2)")), key=table_name, **metadata)


def test_119_rows_are_not_deleted_by_their_geometry(given, manager, module_database, table_name):
    store(manager, given(frame_of("POINT (1 2)")), key=table_name)

    with pytest.raises(ConfigurationError, match="'geometry', which holds geometry"):
        store(
            manager,
            IncrementalDataFrame(
                given(frame_of("POINT (3 4)")), delete=Eq("geometry", ["POINT (1 2)"])
            ),
            key=table_name,
        )

    assert asked_postgis(module_database, table_name, "ST_X(geometry)") == [1]


@pytest.mark.parametrize(
    "delete",
    [Eq("geometry", [Point(1, 2)]), Eq(["id", "geometry"], [(1, Point(1, 2))])],
    ids=["alone", "composite"],
)
def test_119_a_delete_expression_of_geometries_says_what_to_name_instead(
    delete, manager, table_name
):
    frame = frame_of("POINT (1 2)")

    with pytest.raises(ConfigurationError, match=r"'geometry'.*name a column of numbers or text"):
        store(manager, IncrementalDataFrame(frame, delete=delete), key=table_name)


@pytest.mark.parametrize("geometry_storage", ["postgis", "ewkb"])
def test_120_without_postgis_the_error_says_how_to_get_it_or_do_without(
    geometry_storage, given, embedded_database
):
    manager = manager_for(embedded_database, geometry_storage=geometry_storage)

    if geometry_storage == "ewkb":
        store(manager, given(frame_of("POINT (1 2)")))
        assert load(manager, annotation=None).crs == "EPSG:4326"
        return
    with pytest.raises(ConfigurationError) as caught:
        store(manager, given(frame_of("POINT (1 2)")))
    assert "'geometry' holds geometry" in str(caught.value)
    assert "apt-get install postgresql-18-postgis-3" in str(caught.value)
    assert "geometry_storage='ewkb'" in str(caught.value)
    assert query(embedded_database, "SELECT to_regclass('numbers')") == [(None,)]


def test_120_postgis_that_is_there_but_not_in_the_database_is_one_statement_away(database):
    with database.connect() as connection:
        connection.execute("DROP EXTENSION postgis CASCADE")

    with pytest.raises(ConfigurationError, match="run CREATE EXTENSION postgis in the database"):
        store(manager_for(database), frame_of("POINT (1 2)"))


@pytest.fixture(scope="module")
def hidden_postgis(dev_server: Server) -> Iterator[Database]:
    """A database whose PostGIS no search path leads to, nor could be named without quotes."""
    for database in fix_servers._database(dev_server, "template1"):
        with database.connect() as connection:
            connection.execute('CREATE SCHEMA "Ge o"')
            connection.execute('CREATE EXTENSION postgis SCHEMA "Ge o"')
        yield database


@pytest.mark.parametrize(
    "wkt", [["POINT (1 2)"], KEPT["103-mixed-dimensions"]], ids=["2D", "mixed"]
)
def test_120_postgis_may_lie_in_any_schema(wkt, given, hidden_postgis, table_name):
    manager = manager_for(hidden_postgis)
    frame = frame_of(*wkt)
    frame["declared"] = frame.geometry
    columns = {"declared": ("geometry", "index")}

    store(manager, given(frame), key=table_name, columns=columns)
    store(manager, given(frame), key=table_name, columns=columns)
    more = frame.assign(later=frame.geometry)
    store(manager, given(more), key=table_name, columns=columns)
    loaded = load(manager, key=table_name, order_by="id", annotation=None)

    assert_geodataframe_equal(loaded, more)
    found = query(
        hidden_postgis,
        'SELECT f_geometry_column, srid FROM "Ge o".geometry_columns WHERE f_table_name = %s',
        table_name,
    )
    assert {("declared", 4326), ("geometry", 4326)} <= set(found)


# --- declared -------------------------------------------------------------------------------


DECLARED = [
    ("geometry", "geometry(Geometry,4326)", "POINT (1 2)"),
    ("geometry", "geometry(GeometryZ,4326)", "POINT Z (1 2 3)"),
    ("geometry(Point,4326)", "geometry(Point,4326)", "POINT (1 2)"),
    ("GEOMETRY(POINTZ, 4326)", "geometry(PointZ,4326)", "POINT Z (1 2 3)"),
    ("public.geometry(PointZM,4326)", "geometry(PointZM,4326)", "POINT ZM (1 2 3 4)"),
    ("geometry(Polygon)", "geometry(Polygon)", "POLYGON ((0 0, 1 1, 1 0, 0 0))"),
    ("geography", "geography(Geometry,4326)", "POINT (1 2)"),
    ("geography(PointZ,4326)", "geography(PointZ,4326)", "POINT Z (1 2 3)"),
]


def test_a_declaration_makes_the_column_and_goes_on_to_mean_it(
    given, manager, module_database, table_name
):
    names = [f"as_declared_{number}" for number in range(len(DECLARED))]
    places = {
        name: gpd.GeoSeries.from_wkt([wkt], crs=4326)
        for name, (_declared, _stored, wkt) in zip(names, DECLARED, strict=True)
    }
    frame = gpd.GeoDataFrame({"id": [0], **places}, geometry=names[0])
    columns = {
        name: (declared, "not null")
        for name, (declared, _stored, _wkt) in zip(names, DECLARED, strict=True)
    }

    store(manager, given(frame), key=table_name, columns=columns)
    store(manager, given(frame), key=table_name, columns=columns)

    types = column_types(module_database, table_name)
    assert [types[name] for name in names] == [stored for _declared, stored, _wkt in DECLARED]
    loaded = load(manager, key=table_name, annotation=None)
    assert [wkt_of(loaded, name) for name in names] == [wkt_of(frame, name) for name in names]


@pytest.mark.parametrize(
    ("declared", "wkt", "reason"),
    [
        ("geometry(Point,4326)", "POLYGON ((0 0, 1 1, 1 0, 0 0))", "is a Polygon, .* takes Point"),
        ("geometry(Point,4326)", "POINT Z (1 2 3)", "has dimensions XYZ, .* takes XY$"),
        ("geometry(PointZ,4326)", "POINT (1 2)", "has dimensions XY, .* takes XYZ"),
        ("geometry(MultiPoint,4326)", "POINT (1 2)", "is a Point, .* takes MultiPoint"),
        ("geometry", None, "is NULL"),
    ],
)
def test_what_a_declared_column_does_not_take_is_refused_with_its_row(
    declared, wkt, reason, given, manager, module_database, table_name
):
    good = "POINT (1 2)" if "Z" not in declared else "POINT Z (1 2 3)"
    good = "MULTIPOINT (1 2)" if "Multi" in declared else good
    columns = {"geometry": (declared, "not null")}

    with pytest.raises(BadValue, match=reason) as caught:
        store(manager, given(frame_of(good, wkt)), key=table_name, columns=columns)

    assert (caught.value.column, caught.value.row) == ("geometry", 1)
    assert query(module_database, "SELECT to_regclass(%s)", table_name) == [(None,)]


def test_wkb_without_a_mark_has_the_srid_of_the_column(manager, module_database, table_name):
    table = pa.table({"id": [1], "geometry": [shapely.to_wkb(Point(1, 2))]})

    store(manager, table, key=table_name, columns={"geometry": "geometry(Point,4326)"})

    assert asked_postgis(module_database, table_name) == ["SRID=4326;POINT(1 2)"]


@pytest.mark.parametrize("existing", [False, True], ids=["new", "later"])
@pytest.mark.parametrize("declared", ["geometry", "geography"])
def test_an_index_on_geometry_is_one_of_boxes(
    declared, existing, manager, module_database, table_name
):
    if existing:
        store(manager, frame_of("POINT (1 2)"), key=table_name, columns={"geometry": declared})

    columns = {"geometry": (declared, "index")}
    store(manager, frame_of("POINT (1 2)"), key=table_name, columns=columns)
    store(manager, frame_of("POINT (1 2)"), key=table_name, columns=columns)

    [(definition,)] = query(
        module_database, "SELECT indexdef FROM pg_indexes WHERE tablename = %s", table_name
    )
    assert "USING gist (geometry)" in definition


# --- loading --------------------------------------------------------------------------------


def test_a_dataframe_that_is_asked_for_has_shapely_objects(manager, table_name):
    store(manager, frame_of("POINT (1 2)", None), key=table_name)

    loaded = load(manager, pd.DataFrame, key=table_name, order_by="id")

    assert type(loaded) is pd.DataFrame
    assert loaded["geometry"].dtype == object
    assert loaded["geometry"].tolist() == [Point(1, 2), None]


def test_a_geodataframe_asked_of_a_table_without_geometry_says_what_to_ask_for(manager, table_name):
    store(manager, pd.DataFrame({"id": [1]}), key=table_name)

    with pytest.raises(UnsupportedFrame, match=r"needs a geometry column.*pandas\.DataFrame"):
        load(manager, gpd.GeoDataFrame, key=table_name)


class Places(gpd.GeoDataFrame):  # type: ignore[misc]  # geopandas has no types
    """A user's own GeoDataFrame."""

    @property
    def _constructor(self):
        return Places


def test_a_subclass_of_geodataframe_is_loaded_as_that_subclass(manager, table_name):
    store(manager, frame_of("POINT (1 2)"), key=table_name)

    loaded = load(manager, Places, key=table_name)

    assert type(loaded) is Places
    assert loaded.crs == "EPSG:4326"


def test_geometry_without_columns_beside_it_has_all_its_rows(manager, table_name):
    store(manager, frame_of("POINT (1 2)", "POINT (3 4)")[["geometry"]], key=table_name)

    assert len(load(manager, key=table_name, annotation=None)) == 2


def test_selected_columns_without_geometry_are_a_dataframe(manager, table_name):
    store(manager, frame_of("POINT (1 2)"), key=table_name)

    assert type(load(manager, key=table_name, columns=["id"], annotation=None)) is pd.DataFrame


def test_a_column_asked_for_as_geometry_of_another_kind_is_cast_in_the_server(manager, table_name):
    store(manager, frame_of("POINT (1 2)"), key=table_name)

    columns = {"geometry": "geography(Point,4326)"}
    loaded = load(manager, pa.Table, key=table_name, columns=columns)

    said = json.loads(loaded.schema.field("geometry").metadata[b"ARROW:extension:metadata"])
    assert said["edges"] == "spherical"


@pytest.mark.parametrize("annotation", [pa.Table, pl.DataFrame])
def test_other_libraries_get_wkb(annotation, manager, table_name):
    store(manager, frame_of("POINT (1 2)"), key=table_name)

    loaded = load(manager, annotation, key=table_name)

    assert shapely.from_wkb(
        bytes(
            loaded["geometry"].to_list()[0]
            if annotation is pl.DataFrame
            else loaded["geometry"].to_pylist()[0]
        )
    ) == Point(1, 2)


def test_an_arrow_table_is_understood_by_geopandas_itself(manager, table_name):
    frame = frame_of("POINT (1 2)", None, crs=GERMANY)

    store(manager, frame, key=table_name)
    table = load(manager, pa.Table, key=table_name, order_by="id")

    assert_geodataframe_equal(gpd.GeoDataFrame.from_arrow(table), frame)


@pytest.mark.parametrize("definition", ["g geometry", "g geometry(Point)", "g geography"])
def test_a_table_of_others_has_the_crs_of_its_rows(
    definition, manager, module_database, table_name
):
    """Where neither the type nor a CHECK tells the SRID, a row does."""
    with module_database.connect() as connection:
        connection.execute(f"CREATE TABLE {table_name} ({definition})")
        connection.execute(f"INSERT INTO {table_name} VALUES (NULL), ('SRID=4269;POINT (1 2)')")

    loaded = load(manager, key=table_name, annotation=None)

    assert loaded.crs == "EPSG:4269"
    assert set(wkt_of(loaded, "g")) == {None, "POINT (1 2)"}


@pytest.mark.parametrize("rows", [1, 20_000], ids=["few", "many"])
def test_a_column_of_several_srids_is_refused_and_can_be_had_as_bytes(
    rows, manager, module_database, table_name
):
    with module_database.connect() as connection:
        connection.execute(f"CREATE TABLE {table_name} (id int, g geometry)")
        connection.execute(
            f"INSERT INTO {table_name} SELECT i, 'SRID=4326;POINT (1 2)' "
            f"FROM generate_series(1, {rows}) AS i"
        )
        connection.execute(f"INSERT INTO {table_name} VALUES (0, 'SRID=3857;POINT (3 4)')")

    with pytest.raises(BadValue, match=f"column 'g'.*{table_name}.*different SRIDs.*ST_Transform"):
        load(manager, key=table_name, annotation=None)

    loaded = load(manager, key=table_name, columns={"id": "int", "g": "bytea"}, order_by="id")
    assert shapely.get_srid(shapely.from_wkb(loaded["g"])).tolist()[:2] == [3857, 4326]


def test_many_rows_come_back_as_few_do(manager, table_name):
    """Beyond a few thousand values the ADBC driver reads them."""
    points = shapely.points(np.arange(30_000), np.arange(30_000)).astype(object)
    points[7], points[9] = None, Polygon([(0, 0, 1), (1, 1, 1), (1, 0, 1)])
    frame = gpd.GeoDataFrame({"id": np.arange(30_000)}, geometry=points, crs=4326)

    store(manager, frame, key=table_name)
    loaded = load(manager, key=table_name, order_by="id", annotation=None)

    assert_geodataframe_equal(loaded, frame)


def test_a_domain_over_geometry_is_geometry(manager, module_database, table_name):
    with module_database.connect() as connection:
        connection.execute(f"CREATE DOMAIN place_{table_name} AS geometry(Point,4326)")
        connection.execute(f"CREATE TABLE {table_name} (id bigint, geometry place_{table_name})")

    store(manager, frame_of("POINT (1 2)"), key=table_name)

    assert load(manager, key=table_name, annotation=None).crs == "EPSG:4326"


def test_a_view_with_geometry_is_loaded_with_its_crs(manager, module_database, table_name):
    store(manager, frame_of("POINT (1 2)"), key=table_name)
    with module_database.connect() as connection:
        connection.execute(
            f"CREATE VIEW {table_name}_view AS SELECT id, geometry FROM {table_name}"
        )

    assert load(manager, key=f"{table_name}_view", annotation=None).crs == "EPSG:4326"


# --- everything else a frame can do ---------------------------------------------------------


def test_a_dataframe_with_a_geometry_column_is_stored_like_a_geodataframe(
    manager, module_database, table_name
):
    store(manager, pd.DataFrame(frame_of("POINT (1 2)")), key=table_name)

    assert column_types(module_database, table_name)["geometry"] == "geometry(Geometry,4326)"


def test_storing_does_not_change_the_frame(manager, table_name):
    frame = frame_of("POINT (1 2)", None)
    before = frame.copy(deep=True)

    store(manager, frame, key=table_name)

    assert_geodataframe_equal(frame, before)


def test_shapely_objects_without_a_crs_say_to_return_a_geodataframe(manager, table_name):
    with pytest.raises(BadValue, match="GeoDataFrame, which knows the CRS"):
        store(manager, pd.DataFrame({"geometry": [Point(1, 2)]}), key=table_name)


def test_an_upsert_updates_rows_whose_geometry_differs_and_leaves_the_others(
    given, manager, module_database, table_name
):
    options: dict[str, Any] = {"primary_key": "id", "incremental": True}
    store(manager, given(frame_of("POINT (1 2)", "POINT (3 4)", None)), key=table_name, **options)
    again = frame_of("POINT (1 2)", "POINT (5 6)", "POINT (7 8)", None)

    metadata = store(manager, given(again), key=table_name, **options)

    assert [metadata[f"rows_{what}"].value for what in ("inserted", "updated", "unchanged")] == [
        1,
        2,
        1,
    ]
    assert_geodataframe_equal(load(manager, key=table_name, order_by="id", annotation=None), again)


def test_a_vertex_order_that_differs_is_an_update(manager, table_name):
    """PostGIS' own `=` says so too, since 2.4, but only where the search path finds it."""
    options: dict[str, Any] = {"primary_key": "id", "incremental": True}
    store(manager, frame_of("LINESTRING (0 0, 1 1)"), key=table_name, **options)

    metadata = store(manager, frame_of("LINESTRING (1 1, 0 0)"), key=table_name, **options)

    assert metadata["rows_updated"].value == 1


def test_an_incremental_geodataframe_deletes_what_it_says_before_it_adds(
    given, manager, module_database, table_name
):
    store(manager, given(frame_of("POINT (1 2)", "POINT (3 4)")), key=table_name)

    more = given(frame_of("POINT (5 6)"))
    store(manager, IncrementalDataFrame(more, delete=Eq("id", 0)), key=table_name)

    assert asked_postgis(module_database, table_name, "ST_X(geometry)") == [5, 3]


def test_partitions_are_replaced_each_by_itself(io_manager: PostgresIOManager, database: Database):
    places = {"red": "POINT (1 2)", "green": "POINT (3 4)"}

    @dg.asset(partitions_def=COLORS)
    def spots(context):
        return frame_of(places[context.partition_key]).assign(color=context.partition_key)

    loaded = {}

    @dg.asset
    def by_partition(spots: dict[str, gpd.GeoDataFrame]) -> None:
        loaded.update(spots)

    @dg.asset
    def together(spots) -> None:
        loaded["together"] = spots

    for key in places:
        materialize(spots, io_manager, partition_key=key)
    places["red"] = "POINT (9 9)"
    materialize(spots, io_manager, partition_key="red")
    materialize([spots, by_partition, together], io_manager, selection=[by_partition, together])

    assert wkt_of(loaded["red"]) == ["POINT (9 9)"]
    assert wkt_of(loaded["green"]) == ["POINT (3 4)"]
    assert loaded["red"].crs == loaded["together"].crs == "EPSG:4326"
    assert len(loaded["together"]) == 2


@pytest.mark.parametrize("way", ["dict", "partition_expr"])
def test_one_run_writes_several_partitions(way, given, io_manager, database):
    frame = frame_of("POINT (1 2)", "POINT Z (3 4 5)").assign(color=["red", "green"])

    @dg.asset(
        partitions_def=COLORS,
        backfill_policy=dg.BackfillPolicy.single_run(),
        metadata={"partition_expr": "color"} if way == "partition_expr" else {},
    )
    def spots():
        if way == "partition_expr":
            return dg.Output(given(frame))
        return {key: given(frame[frame["color"] == key]) for key in ("red", "green")}

    tags = {
        "dagster/asset_partition_range_start": "red",
        "dagster/asset_partition_range_end": "green",
    }
    materialize(spots, io_manager, tags=tags)

    assert query(database, "SELECT color, ST_AsEWKT(geometry) FROM spots ORDER BY color") == [
        ("green", "SRID=4326;POINT(3 4 5)"),
        ("red", "SRID=4326;POINT(1 2)"),
    ]


def test_frames_of_a_dict_with_different_crs_are_refused(io_manager):
    @dg.asset(partitions_def=COLORS, backfill_policy=dg.BackfillPolicy.single_run())
    def spots():
        return {"red": frame_of("POINT (1 2)"), "green": frame_of("POINT (1 2)", crs=3857)}

    tags = {
        "dagster/asset_partition_range_start": "red",
        "dagster/asset_partition_range_end": "green",
    }

    with pytest.raises(SchemaConflict, match=r"'geometry'.*(CRS|SRID)"):
        materialize(spots, io_manager, tags=tags)


def test_an_iterator_of_geodataframes_is_one_table(manager, module_database, table_name):
    frames = [frame_of("POINT (1 2)"), frame_of("POINT Z (3 4 5)"), frame_of(None)]

    store(manager, iter(frames), key=table_name)

    assert asked_postgis(module_database, table_name, "ST_SRID(geometry)").count(4326) == 2
    assert query(
        module_database, "SELECT srid FROM geometry_columns WHERE f_table_name = %s", table_name
    ) == [(4326,)]


def test_an_iterator_whose_frames_have_different_crs_writes_nothing(
    manager, module_database, table_name
):
    frames = [frame_of("POINT (1 2)"), frame_of("POINT (1 2)", crs=3857)]

    with pytest.raises(SchemaConflict, match=r"SRID 4326 .* 3857"):
        store(manager, iter(frames), key=table_name)

    assert query(module_database, "SELECT to_regclass(%s)", table_name) == [(None,)]


@pytest.mark.parametrize("way", ["iterator", "upsert", "batch", "delete"])
@pytest.mark.parametrize("storage", ["postgis", "ewkb"])
@pytest.mark.parametrize(("first", "later"), [(None, 4326), (4326, None), (4326, 3857)])
def test_rows_in_another_crs_than_those_they_join_are_refused(
    first, later, storage, way, module_database, table_name
):
    """Also where the column's type holds to none, as it was made for a frame without a CRS."""
    manager = manager_for(module_database, geometry_storage=storage)
    options = {"primary_key": "id", "incremental": True} if way == "upsert" else {}
    one, other = frame_of("POINT (1 2)", crs=first), frame_of("POINT (3 4)", crs=later)
    one["id"] = 5
    if storage == "postgis":
        store(manager, frame_of(None, crs=None), key=table_name, **options)
    if way != "iterator":
        store(manager, one, key=table_name, **options)
    refused: Any = {
        "iterator": iter([one, other]),
        "upsert": other,
        "batch": Batches(lambda _high_watermark: iter([Batch(other)])),
        "delete": IncrementalDataFrame(other, delete=Eq("id", 7)),
    }[way]

    said = r"'geometry' (has|was made).*(CRS|SRID).*frame\.(to|set)_crs"
    with pytest.raises(SchemaConflict, match=said):
        store(manager, refused, key=table_name, **options)


def test_values_that_name_their_srid_join_those_that_name_the_same(manager, table_name):
    """Though the frame's mark names no CRS: what counts is what is stored."""
    options: dict[str, Any] = {"primary_key": "id", "incremental": True}
    table = as_table(frame_of("POINT (1 2)", crs=None))
    field = table.schema.field("geometry")
    named = shapely.to_wkb(shapely.set_srid(Point(1, 2), 4326), include_srid=True)
    for number in (1, 2):
        values = [[number], pa.array([named], field.type)]
        store(manager, pa.table(values, table.schema), key=table_name, **options)

    assert load(manager, key=table_name, annotation=None).crs == "EPSG:4326"


def test_a_replace_may_bring_another_crs_where_no_type_holds_to_one(manager, table_name):
    store(manager, frame_of("POINT (1 2)", crs=None), key=table_name)

    store(manager, frame_of("POINT (1 2)"), key=table_name)

    assert load(manager, key=table_name, annotation=None).crs == "EPSG:4326"


@pytest.mark.parametrize("storage", ["postgis", "ewkb"])
def test_a_column_whose_first_frame_had_nothing_in_it_becomes_geometry(
    storage, module_database, table_name
):
    manager = manager_for(module_database, geometry_storage=storage)
    nothing = pd.DataFrame({"id": [-1], "geometry": [None]})

    store(manager, iter([nothing, frame_of("POINT (1 2)", "POINT Z (1 2 3)")]), key=table_name)

    loaded = load(manager, key=table_name, order_by="id", annotation=None)
    assert loaded.crs == "EPSG:4326"
    assert wkt_of(loaded) == [None, "POINT (1 2)", "POINT Z (1 2 3)"]
    stored = column_types(module_database, table_name)["geometry"]
    assert stored == ("bytea" if storage == "ewkb" else "geometry")


@pytest.mark.parametrize("upsert", [False, True], ids=["replace", "upsert"])
def test_later_rows_of_other_dimensions_widen_the_column_and_its_srid_stays(
    upsert, given, manager, module_database, table_name
):
    options: dict[str, Any] = {"primary_key": "id", "incremental": True} if upsert else {}
    store(manager, given(frame_of("POINT (1 2)")), key=table_name, **options)
    again = frame_of("POINT (1 2)", "POINT Z (3 4 5)")

    store(manager, given(again), key=table_name, **options)

    assert column_types(module_database, table_name)["geometry"] == "geometry"
    assert query(
        module_database, "SELECT srid FROM geometry_columns WHERE f_table_name = %s", table_name
    ) == [(4326,)]
    assert_geodataframe_equal(load(manager, key=table_name, order_by="id", annotation=None), again)


def test_strict_evolution_refuses_other_dimensions(given, manager, table_name):
    store(manager, given(frame_of("POINT (1 2)")), key=table_name)

    with pytest.raises(SchemaConflict, match="schema_evolution is 'strict'"):
        store(
            manager,
            given(frame_of("POINT Z (1 2 3)")),
            key=table_name,
            schema_evolution="strict",
        )


def test_a_column_of_points_made_by_hand_becomes_one_of_any_geometry(
    given, manager, module_database, table_name
):
    with module_database.connect() as connection:
        connection.execute(f"CREATE TABLE {table_name} (id bigint, geometry geometry(Point,4326))")

    store(manager, given(frame_of(BOWTIE)), key=table_name)

    assert column_types(module_database, table_name)["geometry"] == "geometry(Geometry,4326)"


@pytest.mark.parametrize("once", [["POINT (9 48)"], KEPT["103-mixed-dimensions"]], ids=len)
@pytest.mark.parametrize(("old", "new"), [(4326, GERMANY), (None, 4326), (4326, None)])
def test_the_statement_that_is_told_for_another_srid_brings_the_column_there(
    old, new, once, manager, module_database, table_name
):
    """Whether it is the column's type that says the SRID or, of mixed dimensions once, a CHECK."""
    there = (
        frame_of("POINT (9 48)", crs=4326).to_crs(new)
        if old and new
        else frame_of("POINT (9 48)", crs=new)
    )
    store(manager, frame_of(*once, crs=old), key=table_name)
    store(manager, frame_of("POINT (9 48)", crs=old), key=table_name)
    columns = {"geometry": f"geometry(Point,{new or 0})"}

    with pytest.raises(SchemaConflict) as refused:
        store(manager, there, key=table_name, columns=columns)
    with module_database.connect() as connection:
        connection.execute(str(refused.value).partition("change the table: ")[2])
    moved = load(manager, key=table_name, annotation=None)
    store(manager, there, key=table_name, columns=columns)

    assert moved.crs == there.crs
    assert moved.geometry.geom_equals_exact(there.geometry, 1e-6).all()


@pytest.mark.parametrize("geometry_storage", ["postgis", "ewkb"])
def test_a_declaration_that_a_column_of_mixed_dimensions_holds_leaves_it_as_it_is(
    geometry_storage, module_database, table_name
):
    manager = manager_for(module_database, geometry_storage=geometry_storage)
    store(manager, frame_of(*KEPT["103-mixed-dimensions"]), key=table_name)
    before = column_types(module_database, table_name)

    columns = {"geometry": "geometry(Point,4326)"}
    store(manager, frame_of("POINT (1 2)"), key=table_name, columns=columns)

    assert column_types(module_database, table_name) == before
    with pytest.raises(SchemaConflict, match=r"is (geometry|EWKB) with SRID 4326, and"):
        store(
            manager,
            frame_of("POINT (1 2)", crs=3857),
            key=table_name,
            columns={"geometry": "geometry(Point,3857)"},
        )


def test_a_declaration_that_holds_more_widens_the_column(manager, module_database, table_name):
    points = {"geometry": "geometry(Point,4326)"}
    store(manager, frame_of("POINT (1 2)"), key=table_name, columns=points)

    anything = {"geometry": "geometry(Geometry,4326)"}
    store(manager, frame_of(BOWTIE), key=table_name, columns=anything)

    assert column_types(module_database, table_name)["geometry"] == "geometry(Geometry,4326)"


@pytest.mark.parametrize(
    "wkt", [["POINT (1 2)"], KEPT["103-mixed-dimensions"]], ids=["2D", "mixed"]
)
def test_geometry_is_added_to_a_table_that_had_none(
    wkt, given, manager, module_database, table_name
):
    store(manager, pd.DataFrame({"id": [0]}), key=table_name)
    frame = frame_of(*wkt)

    store(manager, given(frame), key=table_name)
    store(manager, given(frame), key=table_name)

    assert_geodataframe_equal(load(manager, key=table_name, order_by="id", annotation=None), frame)
    # A CHECK on a SRID that is NOT VALID would break this view for everybody.
    assert query(
        module_database,
        "SELECT srid IN (0, 4326) FROM geometry_columns WHERE f_table_name = %s",
        table_name,
    ) == [(True,)]


def test_a_query_makes_a_table_with_geometry(manager, module_database, table_name):
    text = "SELECT 1 AS id, ST_SetSRID(ST_MakePoint(1, 2), 4326)::geometry(Point,4326) AS place"

    store(manager, Query(text), key=table_name)
    store(manager, Query(text), key=table_name)

    assert column_types(module_database, table_name)["place"] == "geometry(Point,4326)"
    assert load(manager, key=table_name, annotation=None).crs == "EPSG:4326"


# --- without PostGIS ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ewkb_manager(module_database: Database) -> PostgresIOManager:
    """On a server that has PostGIS, so that it can be asked what the bytes mean."""
    return manager_for(module_database, geometry_storage="ewkb")


def test_bytes_come_back_as_the_geometry_they_were(ewkb_manager, module_database, table_name):
    frame = kept()

    store(ewkb_manager, frame, key=table_name)
    store(ewkb_manager, frame, key=table_name)
    loaded = load(ewkb_manager, key=table_name, order_by="id", annotation=None)

    assert_geodataframe_equal(loaded, frame)
    types = column_types(module_database, table_name)
    assert {types[kind] for kind in KEPT} == {"bytea"}
    assert what_postgis_reads_of_the_same_text(module_database, table_name, frame) == []


def test_bytes_keep_each_columns_crs_and_what_a_user_says_of_the_column(
    given, ewkb_manager, module_database, table_name
):
    frame = frame_of("POINT (9 48)")
    frame["projected"] = frame.geometry.to_crs(GERMANY)
    frame["unknown"] = frame.geometry.set_crs(None, allow_override=True)
    store(ewkb_manager, given(frame), key=table_name)
    with module_database.connect() as connection:
        connection.execute(f"COMMENT ON COLUMN {table_name}.geometry IS 'where it stands'")

    store(ewkb_manager, given(frame), key=table_name)
    loaded = load(ewkb_manager, key=table_name, annotation=None)

    assert_geodataframe_equal(loaded, frame)
    comment = f"SELECT col_description('{table_name}'::regclass, 2)"
    assert query(module_database, comment) == [("where it stands",)]


def test_a_column_goes_on_as_it_is_whatever_the_io_manager_says(
    manager, ewkb_manager, module_database, table_name
):
    store(ewkb_manager, frame_of("POINT (1 2)"), key=table_name)
    store(manager, frame_of("POINT (3 4)"), key=table_name)
    assert column_types(module_database, table_name)["geometry"] == "bytea"

    store(manager, frame_of("POINT (1 2)"), key=f"{table_name}_b")
    store(ewkb_manager, frame_of("POINT (3 4)"), key=f"{table_name}_b")
    assert column_types(module_database, f"{table_name}_b")["geometry"].startswith("geometry")


@pytest.mark.parametrize("crs", [3857, None], ids=["another", "none"])
def test_bytes_of_another_srid_are_refused(crs, given, ewkb_manager, table_name):
    store(ewkb_manager, given(frame_of("POINT (1 2)")), key=table_name)

    with pytest.raises(SchemaConflict, match="SRID 4326"):
        store(ewkb_manager, given(frame_of("POINT (1 2)", crs=crs)), key=table_name)


@pytest.mark.parametrize(
    ("declared", "good", "bad"),
    [
        ("geometry(Point,4326)", "POINT (1 2)", "LINESTRING (0 0, 1 1)"),
        ("geometry(GeometryZ,4326)", "POINT Z (1 2 3)", "POINT (1 2)"),
        ("geometry(PointM,4326)", "POINT M (1 2 3)", "POINT Z (1 2 3)"),
    ],
)
def test_bytes_are_of_the_declared_kind_also_those_that_others_write(
    declared, good, bad, ewkb_manager, module_database, table_name
):
    columns = {"geometry": declared}
    store(ewkb_manager, frame_of(good), key=table_name, columns=columns)
    store(ewkb_manager, frame_of(good), key=table_name)

    with pytest.raises(BadValue, match="and the column takes"):
        store(ewkb_manager, frame_of(bad), key=table_name)

    statement = f"INSERT INTO {table_name} (geometry) VALUES (ST_AsEWKB(%s))"
    with module_database.connect() as connection, pytest.raises(Exception, match="check constr"):
        connection.execute(statement, [f"SRID=4326;{bad}"])
    with module_database.connect() as connection, pytest.raises(Exception, match="check constr"):
        connection.execute(statement, [f"SRID=3857;{good}"])


def test_bytes_of_the_other_byte_order_are_refused_with_their_row_and_what_makes_these(
    ewkb_manager, module_database, table_name
):
    """The column's CHECK reads little-endian; PostGIS itself reads both."""
    table = as_table(frame_of("POINT (1 2)", "POINT (1 2)"))
    field = table.schema.field("geometry")
    values = [shapely.to_wkb(Point(1, 2), byte_order=order) for order in (1, 0)]
    table = table.set_column(1, field, pa.array(values, field.type))

    with pytest.raises(BadValue, match=r"big-endian.*shapely\.to_wkb\(…, byte_order=1\)") as caught:
        store(ewkb_manager, table, key=table_name)

    assert (caught.value.column, caught.value.row) == ("geometry", 1)
    assert query(module_database, "SELECT to_regclass(%s)", table_name) == [(None,)]


def test_the_statements_that_strict_tells_add_a_column_that_takes_geometry(
    ewkb_manager, module_database, table_name
):
    store(ewkb_manager, pd.DataFrame({"id": [0]}), key=table_name)
    frame = frame_of("POINT (1 2)", "POINT Z (1 2 3)")

    with pytest.raises(SchemaConflict, match="schema_evolution is 'strict'") as refused:
        store(ewkb_manager, frame, key=table_name, schema_evolution="strict")
    with module_database.connect() as connection:
        connection.execute(str(refused.value)[str(refused.value).index("ALTER TABLE") :])
    store(ewkb_manager, frame, key=table_name, schema_evolution="strict")

    assert_geodataframe_equal(
        load(ewkb_manager, key=table_name, order_by="id", annotation=None), frame
    )


def test_a_column_without_a_value_becomes_one_of_bytes_where_there_is_no_postgis(embedded_database):
    manager = manager_for(embedded_database, geometry_storage="ewkb")
    store(manager, pd.DataFrame({"id": [0], "geometry": [None]}))

    store(manager, frame_of("POINT (1 2)"))

    assert load(manager, annotation=None).crs == "EPSG:4326"


def test_geometry_in_bytes_is_added_to_a_live_table_and_upserted(
    ewkb_manager, module_database, table_name
):
    options: dict[str, Any] = {"primary_key": "id", "incremental": True}
    store(ewkb_manager, pd.DataFrame({"id": [0, 1]}), key=table_name, **options)

    frame = frame_of("POINT (1 2)", "POINT Z (3 4 5)")
    store(ewkb_manager, frame, key=table_name, **options)
    metadata = store(ewkb_manager, frame, key=table_name, **options)

    assert metadata["rows_unchanged"].value == 2
    loaded = load(ewkb_manager, key=table_name, order_by="id", annotation=None)
    assert_geodataframe_equal(loaded, frame)


def test_bytes_become_postgis_geometry_by_one_statement(ewkb_manager, module_database, table_name):
    frame = frame_of("POINT (1 2)", None)
    store(ewkb_manager, frame, key=table_name)
    with module_database.connect() as connection:
        [(name,)] = connection.execute(
            "SELECT conname FROM pg_constraint WHERE conrelid = %s::regclass", [table_name]
        ).fetchall()
        connection.execute(
            f'ALTER TABLE {table_name} DROP CONSTRAINT "{name}", '
            "ALTER COLUMN geometry TYPE geometry(Geometry,4326) USING geometry::geometry"
        )

    store(ewkb_manager, frame, key=table_name)

    assert_geodataframe_equal(
        load(ewkb_manager, key=table_name, order_by="id", annotation=None), frame
    )


def test_an_index_on_bytes_is_not_built(ewkb_manager, module_database, table_name):
    columns = {"geometry": ("geometry", "index")}

    store(ewkb_manager, frame_of("POINT (1 2)"), key=table_name, columns=columns)
    store(ewkb_manager, frame_of("POINT (1 2)"), key=table_name, columns=columns)

    assert (
        query(module_database, "SELECT indexdef FROM pg_indexes WHERE tablename = %s", table_name)
        == []
    )


def test_another_word_for_geometry_storage_is_refused(module_database):
    manager = manager_for(module_database, geometry_storage="wkb")

    with pytest.raises(ConfigurationError, match=r"geometry_storage.*'wkb'.*'postgis', or 'ewkb'"):
        store(manager, frame_of("POINT (1 2)"))


# --- what Dagster shows ---------------------------------------------------------------------


def test_a_materialization_shows_crs_kinds_bounds_and_a_map(given, manager, table_name):
    metadata = store(
        manager, given(frame_of("POINT (1 2)", "LINESTRING (3 4, 5 6)")), key=table_name
    )

    assert metadata["geometry"].value == {
        "geometry": {
            "crs": "EPSG:4326",
            "types": ["LineString", "Point"],
            "bounds": [1, 2, 5, 6],
            "rows_looked_at": 2,
        }
    }
    assert str(metadata["map"].value).startswith(
        "**geometry**: LineString, Point, EPSG:4326, 2 of 2 rows\n\n"
        "![geometry](data:image/png;base64,"
    )
    assert len(str(metadata["map"].value)) < 40_000


def test_a_table_without_geometry_shows_no_map(manager, table_name):
    metadata = store(manager, pd.DataFrame({"id": [1]}), key=table_name)

    assert not {"geometry", "map"} & metadata.keys()


def test_a_map_that_cannot_be_drawn_fails_nothing(
    manager, module_database, table_name, monkeypatch
):
    """The rows are committed by then."""

    def broken(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr("dagster_tools.frames.maps._png", broken)

    metadata = store(manager, frame_of("POINT (1 2)"), key=table_name)

    assert "map" not in metadata
    assert query(module_database, f"SELECT count(*) FROM {table_name}") == [(1,)]


# --- by chance ------------------------------------------------------------------------------

ORDINATES = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-180, 180).map(float)


def vertices(dimensions: str, *, least: int, most: int = 5) -> st.SearchStrategy[str]:
    """Return vertices in WKT, without parentheses."""
    count = 2 + len(dimensions)
    vertex = st.lists(ORDINATES, min_size=count, max_size=count)
    written = vertex.map(lambda numbers: " ".join(map(repr, numbers)))
    return st.lists(written, min_size=least, max_size=most).map(", ".join)


def simple(kind: str, dimensions: str) -> st.SearchStrategy[str]:
    """Return what follows the kind in WKT."""
    if kind == "POINT":
        return vertices(dimensions, least=1, most=1).map("({})".format)
    if kind == "LINESTRING":
        return vertices(dimensions, least=2).map("({})".format)
    ring = vertices(dimensions, least=3).map(lambda text: f"({text}, {text.split(', ')[0]})")
    return st.lists(ring, min_size=1, max_size=2).map(lambda rings: f"({', '.join(rings)})")


@st.composite
def geometries(draw: st.DrawFn, dimensions: str) -> str:
    """Draw a geometry of any kind, with or without parts, as PostGIS and shapely both read it."""
    marked = f" {dimensions}" if dimensions else ""
    kind = draw(st.sampled_from(["POINT", "LINESTRING", "POLYGON", "GEOMETRYCOLLECTION"]))
    form = draw(st.sampled_from(["empty", "one", "multi"]))
    if form == "empty" and kind != "GEOMETRYCOLLECTION":
        return f"{kind}{marked} EMPTY"
    if kind == "GEOMETRYCOLLECTION":
        kinds = draw(st.lists(st.sampled_from(["POINT", "LINESTRING", "POLYGON"]), max_size=3))
        parts = [f"{part}{marked} {draw(simple(part, dimensions))}" for part in kinds]
        # shapely gives an empty collection two dimensions, whatever its text says.
        return f"{kind}{marked} ({', '.join(parts)})" if parts else f"{kind} EMPTY"
    if form == "one":
        return f"{kind}{marked} {draw(simple(kind, dimensions))}"
    parts = draw(st.lists(simple(kind, dimensions), min_size=1, max_size=3))
    return f"MULTI{kind}{marked} ({', '.join(parts)})"


@st.composite
def columns_of_geometry(draw: st.DrawFn) -> tuple[list[str | None], int]:
    """Draw the values of a column, and its SRID."""
    dimensions = draw(st.lists(st.sampled_from(["", "Z", "M", "ZM"]), min_size=1, max_size=3))
    values = st.sampled_from(dimensions).flatmap(geometries)
    return (
        draw(st.lists(st.none() | values, min_size=1, max_size=6)),
        draw(st.sampled_from([4326, 3857, GERMANY, 54009, 0])),
    )


def check_a_column(
    column: tuple[list[str | None], int], manager: PostgresIOManager, database: Database
) -> None:
    """Store it, and have PostGIS compare it with the same text that it was sent by itself."""
    wkt, srid = column
    crs = f"{'ESRI' if srid == 54009 else 'EPSG'}:{srid}" if srid else None
    frame = frame_of(*wkt, crs=crs)
    with database.connect() as connection:
        connection.execute("DROP TABLE IF EXISTS by_chance")

    store(manager, frame, key="by_chance")
    loaded = load(manager, key="by_chance", order_by="id", annotation=None)

    values = list(zip(frame.geometry, loaded.geometry, strict=True))
    assert all((one is None) == (other is None) for one, other in values)
    assert all(shapely.equals_identical(*pair) for pair in values if pair[0] is not None)
    assert loaded.crs == frame.crs
    texts = [f"SRID={srid};{text}" if text else None for text in wkt]
    told = "unnest(%s::text[]) WITH ORDINALITY AS told (t, n)"
    geometry = "geometry::geometry"
    [(same,)] = query(
        database,
        f"SELECT bool_and(ST_AsEWKB({geometry}) IS NOT DISTINCT FROM ST_AsEWKB(t::geometry)) "
        f"FROM by_chance JOIN {told} ON n = id + 1",
        texts,
    )
    assert same


@pytest.mark.parametrize("geometry_storage", ["postgis", "ewkb"])
@settings(max_examples=12, deadline=None, suppress_health_check=[*HealthCheck])
@given_by_chance(column=columns_of_geometry())
def test_any_geometry_comes_back_and_is_what_postgis_reads_of_its_text(
    column, geometry_storage, module_database
):
    check_a_column(
        column, manager_for(module_database, geometry_storage=geometry_storage), module_database
    )


@pytest.mark.sweep
@pytest.mark.parametrize("geometry_storage", ["postgis", "ewkb"])
@settings(max_examples=2_000, deadline=None, suppress_health_check=[*HealthCheck])
@given_by_chance(column=columns_of_geometry())
def test_any_geometry_comes_back_thousands_of_times(column, geometry_storage, module_database):
    check_a_column(
        column, manager_for(module_database, geometry_storage=geometry_storage), module_database
    )
