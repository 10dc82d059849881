from __future__ import annotations

import pyarrow as pa
import pytest
import shapely

from dagster_tools import geoarrow
from dagster_tools.errors import BadValue
from dagster_tools.geoarrow import Crs
from dagster_tools.postgres.column_types import EWKB, PgType, parse_type
from dagster_tools.postgres.geometry import (
    Shape,
    crs_of,
    ewkb_pattern,
    misfit,
    read_ewkb_check,
    read_srid_check,
    settled_type,
    srid_of,
    wider_types,
    with_srid,
    without_srid,
)


def wkb(*texts: str | None, **options: object) -> pa.Array:
    values = shapely.from_wkt(texts)
    return pa.array(shapely.to_wkb(values, output_dimension=4, **options), pa.large_binary())


def field(crs: Crs | None = None) -> pa.Field:
    plain = pa.field("g", pa.large_binary())
    return plain if crs is None else geoarrow.mark(plain, crs)


# --- what a column takes --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "shape"),
    [
        ("geometry", Shape()),
        ("geometry(Point,4326)", Shape("Point", "", 4326)),
        ("geometry(POINTZ)", Shape("Point", "Z", 0)),
        ("geometry(geometryzm,25832)", Shape("Geometry", "ZM", 25832)),
        ("geometry(MultiPolygonM, 3857)", Shape("MultiPolygon", "M", 3857)),
        ("geography", Shape(srid=4326)),
        ("geography(Point)", Shape("Point", "", 4326)),
        ("geometry(TIN,4326)", Shape("TIN", "", 4326)),
    ],
)
def test_a_types_modifiers_say_what_it_takes(type_, shape):
    assert Shape.of(parse_type(type_)) == shape


@pytest.mark.parametrize(
    ("shape", "modifiers"),
    [
        (Shape("Geometry", "", 4326), ("Geometry", "4326")),
        (Shape("Geometry", "Z", 0), ("GeometryZ", "0")),
        (Shape("Point", "", 0), ("Point", "0")),
        (Shape("Geometry", None, 4326), ("*", "4326")),
        (Shape("Geometry", "", 0), ()),
        (Shape("Geometry", None, 0), ()),
    ],
)
def test_a_shape_says_so_in_modifiers(shape, modifiers):
    assert shape.on(PgType("geometry")).modifiers == modifiers


def test_a_type_stands_in_statements_without_what_postgis_has_no_modifier_for():
    any_shape = PgType("geometry", ("*", "4326"), schema="Ge o")

    assert any_shape.as_sql.as_string() == '"Ge o".geometry'
    assert PgType(EWKB, ("Point", "4326")).as_sql.as_string() == "bytea"
    assert PgType("geometry", ("Point", "4326")).as_sql.as_string() == "geometry(Point,4326)"


@pytest.mark.parametrize(
    ("type_", "wider"),
    [
        ("geometry(Point,4326)", [("Geometry", "4326"), ("*", "4326")]),
        ("geometry(GeometryZ,4326)", [("*", "4326")]),
        ("geometry(Point)", [()]),
        ("geometry", []),
        ("geography(Point,4326)", [("Geometry", "4326"), ()]),
    ],
)
def test_wider_types_keep_the_srid(type_, wider):
    assert [found.modifiers for found in wider_types(parse_type(type_))] == wider


@pytest.mark.parametrize(
    ("declared", "values", "type_"),
    [
        ("geometry", ["POINT (1 2)"], "geometry(Geometry,4326)"),
        ("geometry", ["POINT Z (1 2 3)", None], "geometry(GeometryZ,4326)"),
        ("geometry", [None], "geometry(Geometry,4326)"),
        ("geometry", [], "geometry(Geometry,4326)"),
        ("geography", ["POINT M (1 2 3)"], "geography(GeometryM,4326)"),
        ("geometry(Point,4326)", ["POINT Z (1 2 3)"], "geometry(Point,4326)"),
    ],
)
def test_a_new_column_is_what_its_declaration_and_its_values_say(declared, values, type_):
    marked = field(Crs("EPSG:4326"))

    settled = settled_type(parse_type(declared), marked, [wkb(*values)], ewkb=False)

    assert settled == parse_type(type_)


# --- SRID and CRS ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("crs", "srid"),
    [
        (Crs(), 0),
        (Crs("EPSG:4326", "authority_code"), 4326),
        (Crs("epsg:25832"), 25832),
        (Crs("4326", "srid"), 4326),
        (Crs("102017", "srid"), 102017),
        (Crs({"id": {"authority": "EPSG", "code": 3857}}), 3857),
        (Crs({"id": {"authority": "ESRI", "code": "54009"}}), 54009),
        (Crs("OGC:CRS84"), 4326),
        (Crs({"id": {"authority": "OGC", "code": "CRS83"}}), 4269),
        (Crs('PROJCRS["x",BASEGEOGCRS["y",ID["EPSG",4258]],ID["EPSG",25832]]'), 25832),
        (
            Crs('GEOGCS["x",UNIT["degree",1,AUTHORITY["EPSG","9122"]],AUTHORITY["EPSG","4326"]]'),
            4326,
        ),
    ],
    ids=str,
)
def test_a_crs_of_an_authority_has_a_srid(crs, srid):
    assert srid_of(field(crs)) == srid


@pytest.mark.parametrize(
    "crs",
    [
        Crs({"name": "my own"}),
        Crs({"id": {"authority": "IAU_2015", "code": 30100}}),
        Crs('PROJCRS["x",BASEGEOGCRS["y",ID["EPSG",4258]]]'),
        Crs("+proj=laea +lat_0=10"),
        Crs("EPSG:999001"),
        Crs("EPSG:0"),
        Crs("anything", "srid"),
    ],
    ids=str,
)
def test_a_crs_without_a_code_that_postgis_knows_is_refused(crs):
    with pytest.raises(BadValue, match=r"column 'g'.*EPSG or ESRI code.*to_crs"):
        srid_of(field(crs))


def test_a_srid_is_what_the_database_says_it_is():
    assert crs_of(4326, {}, spherical=False) == Crs("EPSG:4326", "authority_code")
    assert crs_of(54009, {}, spherical=False) == Crs("ESRI:54009", "authority_code")
    assert crs_of(990001, {990001: 'PROJCS["x"]'}, spherical=True).definition == 'PROJCS["x"]'
    assert crs_of(0, {}, spherical=False) == Crs()


# --- WKB ------------------------------------------------------------------------------------


def test_the_first_value_that_does_not_fit_is_found_whatever_it_is():
    values = wkb(None, "POINT (1 2)", "POINT Z (1 2 3)", "LINESTRING (0 0, 1 1)")

    assert misfit(values, Shape()) is None
    assert misfit(values, Shape("Point")) == (3, "is a LineString, and the column takes Point")
    assert misfit(values, Shape(dimensions="")) == (
        2,
        "has dimensions XYZ, and the column takes XY",
    )
    assert misfit(pa.array([b"\x01"]), Shape()) == (0, "is no WKB")


def test_a_value_that_names_a_srid_fits_where_the_column_names_none_or_the_same():
    named = with_srid(wkb(None, "POINT (1 2)", "POINT (3 4)"), 4326)
    cut_short = pa.array([named[1].as_py()[:7]], named.type)

    assert misfit(named, Shape()) is None
    assert misfit(named, Shape(srid=4326)) is None
    assert misfit(named, Shape(srid=3857)) == (1, "has SRID 4326, and the column takes 3857")
    assert misfit(named, Shape(), ewkb=True) == (1, "has SRID 4326, and the column takes none")
    assert misfit(cut_short, Shape(srid=4326)) == (0, "is no WKB")


def test_big_endian_fits_where_postgis_reads_it_and_not_where_the_bytes_are_kept():
    values = wkb("POINT (1 2)", byte_order=0)

    assert misfit(values, Shape()) is None
    row, reason = misfit(values, Shape(), ewkb=True) or (None, "")
    assert (row, "big-endian" in reason) == (0, True)


@pytest.mark.parametrize("byte_order", [0, 1])
@pytest.mark.parametrize("flavor", ["iso", "extended"])
def test_a_srid_goes_into_the_header_and_out_again(flavor, byte_order):
    texts = ["POINT (1 2)", "POLYGON Z ((0 0 1, 1 1 1, 1 0 1, 0 0 1))", None, "POINT M (1 2 3)"]
    texts += ["GEOMETRYCOLLECTION ZM (POINT ZM (1 2 3 4))", "POINT EMPTY"]
    plain = wkb(*texts, flavor=flavor, byte_order=byte_order)

    named = with_srid(plain, 25832)
    back = without_srid(named)

    parsed = shapely.from_wkb(named.to_pylist())
    assert [None if value is None else shapely.get_srid(value) for value in parsed] == [
        25832 if text else None for text in texts
    ]
    assert shapely.equals_identical(
        [v for v in parsed if v is not None], [shapely.from_wkt(t) for t in texts if t]
    ).all()
    assert [None if v is None else v.wkt for v in shapely.from_wkb(back.to_pylist())] == texts
    assert shapely.get_srid([v for v in shapely.from_wkb(back.to_pylist()) if v]).sum() == 0


def test_values_that_name_a_srid_keep_it():
    named = with_srid(wkb("POINT (1 2)"), 3857)

    mixed = with_srid(pa.concat_arrays([named, wkb("POINT (1 2)")]), 4326)

    assert shapely.get_srid(shapely.from_wkb(mixed.to_pylist())).tolist() == [3857, 4326]


# --- what CHECKs say ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "column", "srid"),
    [
        ("CHECK ((st_srid(geom) = 4326))", "geom", 4326),
        ('CHECK ((ext.st_srid("My ""Geo""") = 25832))', 'My "Geo"', 25832),
        ('CHECK ((("Ge o".st_srid(g) = 3857)))', "g", 3857),
    ],
)
def test_a_check_on_the_srid_is_read(check, column, srid):
    assert read_srid_check(check) == (column, srid)


def test_other_checks_say_nothing_of_a_srid():
    assert read_srid_check("CHECK ((n >= 0))") is None
    assert read_srid_check("CHECK ((my_st_srid(g) = 4326))") is None
    assert read_ewkb_check("CHECK ((n >= 0))") is None


@pytest.mark.parametrize(
    "storage",
    [
        PgType(EWKB, (kind, srid))
        for kind in ("*", "Point", "MultiPolygonZM", "GeometryZ", "GeometryM", "Geometry", "PointZ")
        for srid in ("0", "4326", "102017")
    ],
    ids=str,
)
def test_a_pattern_says_what_was_said(storage):
    check = (
        f"CHECK ((encode(substr(\"My G\", 1, 9), 'hex'::text) ~~ '{ewkb_pattern(storage)}'::text))"
    )

    assert read_ewkb_check(check) == ("My G", storage)
    assert read_ewkb_check(f"{check} NOT VALID") == ("My G", storage)
