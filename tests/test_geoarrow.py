from __future__ import annotations

import json

import pyarrow as pa
import pytest
import shapely

from dagster_tools import geoarrow
from dagster_tools.geoarrow import Crs, mark, read_crs, read_header


class Wkb(pa.ExtensionType):  # type: ignore[misc]  # pyarrow has no types
    """What a library that registers GeoArrow's types makes of a marked field."""

    def __init__(self, metadata: bytes = b"") -> None:
        self.metadata = metadata
        super().__init__(pa.binary(), "geoarrow.wkb")

    def __arrow_ext_serialize__(self) -> bytes:
        return self.metadata

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        return cls(serialized)


@pytest.mark.parametrize(
    "crs",
    [
        Crs(),
        Crs("EPSG:4326", "authority_code"),
        Crs({"id": {"authority": "EPSG", "code": 4326}}),
        Crs('GEOGCS["WGS 84"]'),
        Crs("EPSG:4326", "authority_code", spherical=True),
    ],
)
def test_a_mark_says_what_was_marked(crs):
    field = mark(pa.field("g", pa.binary(), metadata={"postgresql:type": "geometry"}), crs)

    assert geoarrow.is_geometry(field)
    assert read_crs(field) == crs
    assert field.metadata[b"postgresql:type"] == b"geometry"


@pytest.mark.parametrize("said", [b"", b"no JSON", b"[1]", b'{"crs": null}', b'{"crs": 7}', None])
def test_a_mark_that_names_no_crs_is_geometry_without_one(said):
    metadata = {b"ARROW:extension:name": b"geoarrow.wkb"}
    if said is not None:
        metadata[b"ARROW:extension:metadata"] = said
    field = pa.field("g", pa.binary(), metadata=metadata)

    assert geoarrow.fields(pa.schema([pa.field("id", pa.int64()), field])) == [field]
    assert read_crs(field) == Crs()


def test_projjson_as_text_within_the_json_is_understood():
    """GeoPandas 1.0 writes it so."""
    inner = {"id": {"authority": "EPSG", "code": 4326}}
    metadata = {
        b"ARROW:extension:name": b"geoarrow.wkb",
        b"ARROW:extension:metadata": json.dumps({"crs": json.dumps(inner)}).encode(),
    }

    assert read_crs(pa.field("g", pa.binary(), metadata=metadata)).definition == inner


def test_a_registered_extension_type_is_as_good_as_a_mark():
    field = pa.field("g", Wkb(b'{"crs": "EPSG:25832"}'))

    assert geoarrow.is_geometry(field)
    assert read_crs(field) == Crs("EPSG:25832")


def test_other_fields_are_no_geometry():
    assert not geoarrow.is_geometry(pa.field("b", pa.binary()))
    assert not geoarrow.is_geometry(
        pa.field("p", pa.binary(), metadata={"ARROW:extension:name": "geoarrow.point"})
    )


@pytest.mark.parametrize("byte_order", [0, 1], ids=["big-endian", "little-endian"])
@pytest.mark.parametrize("flavor", ["iso", "extended"])
@pytest.mark.parametrize("dimensions", ["", " Z", " M", " ZM"])
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("Point", "({0})"),
        ("LineString", "({0}, {0})"),
        ("MultiPoint", "(({0}))"),
        ("Polygon", "EMPTY"),
    ],
)
def test_kind_and_dimensions_are_read_off_every_flavor_of_wkb(
    kind, text, dimensions, flavor, byte_order
):
    coordinates = " ".join("1234"[: 2 + len(dimensions.strip())])
    value = shapely.from_wkt(f"{kind.upper()}{dimensions} {text.format(coordinates)}")
    wkb = shapely.to_wkb(
        shapely.set_srid(value, 4326),
        flavor=flavor,
        byte_order=byte_order,
        output_dimension=4,
        include_srid=flavor == "extended",
    )

    assert read_header(wkb) == (kind, dimensions.strip())


@pytest.mark.parametrize(
    "wkb", ["", "01", "01010000", "0200000001", "0100000000", "0112000000", "01a10f0000"]
)
def test_what_is_no_wkb_has_no_kind(wkb):
    assert read_header(bytes.fromhex(wkb)) is None
