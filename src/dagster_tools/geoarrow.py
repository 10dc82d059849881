"""A geometry column at the waist: WKB, and a field that says so and in which CRS.

Fields are marked the way GeoArrow marks them (geoarrow.org, "Extension types", version 0.2), so
that what GeoPandas, DuckDB, GDAL and others put into Arrow is understood, and they understand what
is loaded. Values are ISO WKB; the CRS is the column's, not each value's.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

__all__ = [
    "DIMENSIONS",
    "HAS_M",
    "HAS_SRID",
    "HAS_Z",
    "KINDS",
    "Crs",
    "byte_order",
    "fields",
    "is_geometry",
    "mark",
    "read_crs",
    "read_header",
    "type_code",
]

KINDS = {
    1: "Point",
    2: "LineString",
    3: "Polygon",
    4: "MultiPoint",
    5: "MultiLineString",
    6: "MultiPolygon",
    7: "GeometryCollection",
    8: "CircularString",
    9: "CompoundCurve",
    10: "CurvePolygon",
    11: "MultiCurve",
    12: "MultiSurface",
    15: "PolyhedralSurface",
    16: "TIN",
    17: "Triangle",
}
"""Geometry types by their WKB codes, in the spelling of PostGIS' modifiers."""

DIMENSIONS = ("", "Z", "M", "ZM")
"""Besides X and Y, in the order of the thousands that ISO WKB adds to the code of the kind."""
HAS_Z, HAS_M, HAS_SRID = 0x80000000, 0x40000000, 0x20000000
"""What EWKB has instead: flags in the code, one of them for a SRID that follows."""

NAME, METADATA = b"ARROW:extension:name", b"ARROW:extension:metadata"
WKB = "geoarrow.wkb"


@dataclass(frozen=True, slots=True)
class Crs:
    """The coordinate reference system of a column.

    Args:
        definition: PROJJSON as a mapping, or text: `EPSG:4326`, WKT, a SRID; None for none.
        kind: What the text is, in GeoArrow's words (`crs_type`); None where it does not tell.
        spherical: Edges follow the sphere, as PostGIS' `geography` has it.
    """

    definition: Mapping[str, Any] | str | None = None
    kind: str | None = None
    spherical: bool = False


def is_geometry(field: pa.Field) -> bool:
    """Tell whether the field holds WKB, marked the way GeoArrow marks it."""
    return _extension(field)[0] == WKB


def fields(schema: pa.Schema) -> list[pa.Field]:
    """Return the geometry columns of a schema, in its order."""
    return [field for field in schema if is_geometry(field)]


def read_crs(field: pa.Field) -> Crs:
    """Return the CRS of a geometry field; without one where it names none."""
    said = _parsed(_extension(field)[1])
    if said is None:
        return Crs()
    definition = said.get("crs")
    if isinstance(definition, str):
        # GeoPandas 1.0 has PROJJSON as text within the JSON.
        definition = _parsed(definition) or definition
    if not isinstance(definition, (str, dict)):
        definition = None
    return Crs(definition, said.get("crs_type"), spherical=said.get("edges") == "spherical")


def mark(field: pa.Field, crs: Crs) -> pa.Field:
    """Return the field marked as WKB in this CRS; its other metadata stays."""
    said: dict[str, Any] = {"crs": crs.definition} if crs.definition is not None else {}
    if said and crs.kind is not None:
        said["crs_type"] = crs.kind
    if crs.spherical:
        said["edges"] = "spherical"
    marks = {NAME: WKB.encode(), METADATA: json.dumps(said).encode()}
    return field.with_metadata({**(field.metadata or {}), **marks})


def _parsed(text: str | bytes | None) -> dict[str, Any] | None:
    """Return a JSON object, None for anything else."""
    try:
        parsed = json.loads(text or "")
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None


def _extension(field: pa.Field) -> tuple[str | None, bytes | None]:
    """Return name and metadata of the field's extension type, registered here or not."""
    if isinstance(field.type, pa.BaseExtensionType):
        # Where a library registered GeoArrow's types, pyarrow takes the marks off the field.
        serialize = getattr(field.type, "__arrow_ext_serialize__", lambda: None)
        return field.type.extension_name, serialize()
    metadata = field.metadata or {}
    name = metadata.get(NAME)
    return (name.decode() if name else None), metadata.get(METADATA)


# --- the first five bytes of WKB ------------------------------------------------------------


def read_header(header: bytes) -> tuple[str, str] | None:
    """Return kind and dimensions of a value, None for what is no WKB.

    Args:
        header: Its first five bytes, or more.
    """
    if len(header) < 5 or header[0] > 1:
        return None
    code = type_code(header)
    thousands, kind = divmod(code & 0xFFFF, 1000)
    if kind not in KINDS or thousands >= len(DIMENSIONS):
        return None
    has_z = bool(code & HAS_Z) or thousands in {1, 3}
    has_m = bool(code & HAS_M) or thousands in {2, 3}
    return KINDS[kind], "Z" * has_z + "M" * has_m


def type_code(header: bytes) -> int:
    """Return the type code, flags and all; 0 of what is too short to have one."""
    if len(header) < 5:
        return 0
    code: int = struct.unpack_from(f"{byte_order(header)}I", header, 1)[0]
    return code


def byte_order(header: bytes) -> str:
    """Return the byte order as `struct` writes it."""
    return "<" if header[0] else ">"
