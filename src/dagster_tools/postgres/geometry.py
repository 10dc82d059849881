"""What a geometry column takes, in PostGIS' words, and the WKB that goes in and comes out.

A column says which kind, dimensions and SRID its values have by its type's modifiers,
`geometry(PointZ,4326)`; without them by a CHECK on the SRID, or not at all. Without PostGIS,
geometry is kept as EWKB in `bytea`, and a CHECK on the first bytes says the same.

Kind, dimensions and SRID of a value stand in the first bytes of its WKB (OGC 06-103r4, 8.2; for
EWKB, PostGIS' `doc/ZMSgeoms.txt`), so nothing here parses coordinates.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from dagster_tools.errors import BadValue
from dagster_tools.geoarrow import (
    DIMENSIONS,
    HAS_M,
    HAS_SRID,
    HAS_Z,
    KINDS,
    Crs,
    byte_order,
    is_geometry,
    read_crs,
    read_header,
    type_code,
)
from dagster_tools.postgres.column_types import ANY_SHAPE, EWKB, PgType

__all__ = [
    "SPATIAL",
    "Shape",
    "crs_of",
    "ewkb_pattern",
    "given_srid",
    "is_spatial",
    "misfit",
    "needs_check",
    "read_ewkb_check",
    "read_srid_check",
    "settled_type",
    "shape_of_values",
    "srid_of",
    "srid_of_value",
    "wider_types",
    "with_srid",
    "without_srid",
]

SPATIAL = frozenset({"geometry", "geography"})

ANY = "Geometry"
CODES = {ANY: 0} | {kind: code for code, kind in KINDS.items()}
SPELLED = {kind.lower(): kind for kind in CODES}

HEADER = 5
"""Bytes of byte order and type code; four more hold the SRID where a flag says so."""

END = 2**31 - 1
"""No value is longer. (Without an end, pyarrow 26's `binary_slice` fails.)"""

WGS84 = 4326
CRS84 = {"CRS84": WGS84, "CRS84H": WGS84, "CRS83": 4269, "CRS27": 4267}
"""OGC's CRSs with longitude first, which is the order that PostGIS and shapely have for all."""

LAST_EPSG = 32767
LAST_SRID = 998999
"""PostGIS gives a larger SRID another number, silently (`clamp_srid`)."""

AUTHORITIES = frozenset({"EPSG", "ESRI"})


@dataclass(frozen=True, slots=True)
class Shape:
    """What a geometry column takes, or what values are.

    Args:
        kind: Its kind as PostGIS spells it, such as `Point`; `Geometry` for any.
        dimensions: Besides X and Y: `""`, `Z`, `M` or `ZM`; None for any.
        srid: 0 for none, or none known.
    """

    kind: str = ANY
    dimensions: str | None = None
    srid: int = 0

    @classmethod
    def of(cls, type_: PgType) -> Shape:
        """Return what a column of this type takes; its modifiers say it."""
        if not type_.modifiers:
            return cls(srid=WGS84 if type_.name == "geography" else 0)
        word, *numbers = type_.modifiers
        srid = int(numbers[0]) if numbers else WGS84 if type_.name == "geography" else 0
        if word == ANY_SHAPE:
            return cls(srid=srid)
        name = re.fullmatch(r"(\w+?)(ZM|Z|M)?", word, re.IGNORECASE)
        kind, dimensions = (name[1], (name[2] or "").upper()) if name else (word, "")
        return cls(SPELLED.get(kind.lower(), kind), dimensions, srid)

    def holds_all_of(self, other: Shape) -> bool:
        """Whether a column of this shape takes all values of the other, and keeps their SRID."""
        return (
            self.srid == other.srid
            and self.kind in {ANY, other.kind}
            and self.dimensions in {None, other.dimensions}
        )

    def on(self, type_: PgType) -> PgType:
        """Return the type with modifiers that say the same.

        PostGIS does not show those of a plane geometry of any kind without a SRID, and yet
        refuses other dimensions there. That one goes without.
        """
        if self.dimensions is None:
            word = ANY_SHAPE if self.srid and type_.name != "geography" else None
        else:
            word = self.kind + self.dimensions
        if type_.name == EWKB:
            word = word or ANY_SHAPE
        elif word == ANY and not self.srid:
            word = None
        return replace(type_, modifiers=(word, str(self.srid)) if word else ())


def is_spatial(type_: PgType) -> bool:
    """Whether it is PostGIS' `geometry` or `geography`, by itself."""
    return type_.name.rpartition(".")[2] in SPATIAL and not type_.array


def needs_check(type_: PgType) -> bool:
    """Whether a column of this type has to say by a CHECK what geometry it holds."""
    return type_.name == EWKB or type_.modifiers[:1] == (ANY_SHAPE,)


def given_srid(type_: PgType) -> int:
    """Return the SRID that PostGIS gives to values without one, 0 for none."""
    if type_.name == "geography":
        return WGS84
    return 0 if needs_check(type_) else Shape.of(type_).srid


def wider_types(type_: PgType) -> list[PgType]:
    """Return the types that hold all values of a geometry column, the narrowest first."""
    shape = Shape.of(type_)
    wider = [replace(shape, kind=ANY), Shape(srid=shape.srid)]
    return [found for found in dict.fromkeys(w.on(type_) for w in wider) if found != type_]


def settled_type(
    type_: PgType, field: pa.Field | None, chunks: Iterable[pa.Array], *, ewkb: bool
) -> PgType:
    """Return the type a new column gets: a declared one, or where that leaves it open, the values'.

    Args:
        type_: `geometry` or `geography`, with modifiers or without.
        field: The column's in the frame; None where the frame lacks it.
        chunks: The values as far as they are known.
        ewkb: Keep EWKB in `bytea`, which takes values of all dimensions unless some are declared.
    """
    if type_.modifiers:
        shape = Shape.of(type_)
    elif field is None or not is_geometry(field):
        shape = Shape(srid=Shape.of(type_).srid)
    elif type_.name == "geography":
        shape = shape_of_values(chunks, WGS84)
    else:
        shape = shape_of_values(chunks, srid_of(field))
    if not ewkb:
        return shape.on(type_)
    return (shape if type_.modifiers else Shape(srid=shape.srid)).on(PgType(EWKB))


# --- SRID and CRS ---------------------------------------------------------------------------


def srid_of(field: pa.Field) -> int:
    """Return the SRID that stands for the CRS of a frame's geometry column, 0 for none.

    Raises:
        BadValue: The CRS has no code of an authority whose codes PostGIS knows.
    """
    crs = read_crs(field)
    if crs.definition is None:
        return 0
    authority, code = _authority(crs) or ("", "")
    if authority == "OGC" and code in CRS84:
        return CRS84[code]
    if authority in AUTHORITIES and code.isdecimal() and 0 < int(code) <= LAST_SRID:
        return int(code)
    known = f"is {authority}:{code}, which is" if authority else "has"
    raise BadValue(
        f"its CRS {known} no EPSG or ESRI code, and PostGIS knows a CRS by that. Convert the "
        "geometry to a CRS that has one, such as frame.to_crs('EPSG:4326'), or name it with "
        "frame.set_crs(..., allow_override=True)",
        column=field.name,
    )


def crs_of(srid: int, known: Mapping[int, str], *, spherical: bool) -> Crs:
    """Return the CRS of a SRID, for the frame.

    Args:
        known: CRSs by SRID, as the database describes them: `EPSG:4326`, or WKT.
    """
    if not srid:
        return Crs(spherical=spherical)
    guess = f"{'EPSG' if srid <= LAST_EPSG else 'ESRI'}:{srid}"
    text = known.get(srid, guess)
    kind = "authority_code" if re.fullmatch(r"\w+:\w+", text) else None
    return Crs(text, kind, spherical=spherical)


def _authority(crs: Crs) -> tuple[str, str] | None:
    if isinstance(crs.definition, str):
        return _written_authority(crs.definition, crs.kind)
    said = (crs.definition or {}).get("id")
    if not isinstance(said, dict) or not {"authority", "code"} <= said.keys():
        return None
    return str(said["authority"]).upper(), str(said["code"])


def _written_authority(text: str, kind: str | None) -> tuple[str, str] | None:
    if kind == "srid" and text.isdecimal():
        return "EPSG" if int(text) <= LAST_EPSG else "ESRI", text
    written = re.fullmatch(r"\s*(\w+):(\w+)\s*", text)
    # Of WKT the last ID belongs to the whole.
    closing = re.search(r'(?:ID|AUTHORITY)\["(\w+)",\s*"?(\w+)"?\]\s*\]\s*$', text)
    found = written or closing
    return (found[1].upper(), found[2]) if found else None


# --- WKB ------------------------------------------------------------------------------------


def shape_of_values(chunks: Iterable[pa.Array], srid: int) -> Shape:
    """Return what all values have in common: their dimensions, or that these differ.

    Kinds are not told apart, so that a point today leaves room for a polygon tomorrow.
    """
    dimensions = {
        value[1]
        for chunk in chunks
        for header in pc.unique(_headers(chunk)).drop_null().to_pylist()
        if (value := read_header(header)) is not None
    }
    if not dimensions:
        return Shape(dimensions="", srid=srid)
    return Shape(dimensions=dimensions.pop() if len(dimensions) == 1 else None, srid=srid)


def misfit(wkb: pa.Array, target: Shape, *, ewkb: bool = False) -> tuple[int, str] | None:
    """Return the first row that is no WKB, or not of the target's shape, and why; None if none.

    Args:
        ewkb: The bytes themselves are kept, and a CHECK reads them: in one byte order alone.
    """
    headers = _headers(wkb).dictionary_encode()
    if any(type_code(header or b"") & HAS_SRID for header in headers.dictionary.to_pylist()):
        headers = pc.binary_slice(wkb, 0, HEADER + 4).dictionary_encode()
    reasons = [_misfit(header, target, ewkb) for header in headers.dictionary.to_pylist()]
    found = [
        (pc.index(headers.indices, pa.scalar(code, headers.indices.type)).as_py(), reason)
        for code, reason in enumerate(reasons)
        if reason is not None
    ]
    return min(found, default=None)


def srid_of_value(wkb: pa.Array) -> int:
    """Return the SRID that the first value, NULL aside, names; 0 where it names none."""
    value = wkb[pc.index(wkb.is_valid(), True).as_py()].as_py()
    return _named_srid(value) or 0


def with_srid(wkb: pa.Array, srid: int) -> pa.Array:
    """Return WKB as EWKB that names the SRID; values that name one keep theirs."""
    return _reheaded(wkb, lambda header: _add_srid(header, srid), HEADER)


def without_srid(ewkb: pa.Array) -> pa.Array:
    """Return EWKB without the SRID, which the column names."""
    headers = pc.unique(_headers(ewkb)).drop_null().to_pylist()
    if any(type_code(header) & HAS_SRID for header in headers):
        return _reheaded(ewkb, _drop_srid, HEADER + 4)
    return ewkb


def _headers(wkb: pa.Array) -> pa.Array:
    return pc.binary_slice(wkb, 0, HEADER)


def _reheaded(
    wkb: pa.Array, change: Callable[[bytes | None], bytes | None], start: int
) -> pa.Array:
    """Return values with another header in front of what follows at `start`.

    Args:
        change: Returns the other header, None for one that is right as it is.
    """
    headers = _headers(wkb).dictionary_encode()
    changed = [change(header) for header in headers.dictionary.to_pylist()]
    if all(header is None for header in changed):
        return wkb
    fronts = pa.array(changed, wkb.type).take(headers.indices)
    nothing = pa.scalar(b"", wkb.type)
    reheaded = pc.binary_join_element_wise(fronts, pc.binary_slice(wkb, start, END), nothing)
    # A header that is right as it is left NULL there.
    return reheaded if None not in changed else pc.coalesce(reheaded, wkb)


def _add_srid(header: bytes | None, srid: int) -> bytes | None:
    """Return a header that names the SRID, and dimensions as ISO does; the code is one of a kind.

    Both PostGIS and GEOS read ISO's thousands and EWKB's flags, in any mixture.
    """
    if header is None:
        return None
    code, order = type_code(header), byte_order(header)
    thousands = (code & 0xFFFF) // 1000 or (code & HAS_Z) // HAS_Z + 2 * ((code & HAS_M) // HAS_M)
    plain = 1000 * thousands + (code & 0xFFFF) % 1000
    named = bool(code & HAS_SRID)
    if named or not srid:
        changed = header[:1] + struct.pack(f"{order}I", plain | HAS_SRID * named)
        return None if changed == header else changed
    return header[:1] + struct.pack(f"{order}II", plain | HAS_SRID, srid)


def _named_srid(header: bytes) -> int | None:
    """Return the SRID that a value names, of which the first nine bytes do; None for none."""
    if not type_code(header) & HAS_SRID:
        return None
    srid: int = struct.unpack_from(f"{byte_order(header)}I", header, HEADER)[0]
    return srid


def _drop_srid(header: bytes | None) -> bytes | None:
    code = type_code(header or b"")
    if header is None or not code & HAS_SRID:
        return None
    return header[:1] + struct.pack(f"{byte_order(header)}I", code & ~HAS_SRID)


def _misfit(header: bytes | None, target: Shape, ewkb: bool) -> str | None:
    if header is None:
        return None
    value = read_header(header)
    if value is None or (type_code(header) & HAS_SRID and len(header) < HEADER + 4):
        return "is no WKB"
    if ewkb and header[0] == 0:
        return (
            "is big-endian WKB, and the column keeps little-endian; "
            "shapely.to_wkb(…, byte_order=1) makes that"
        )
    srid = _named_srid(header)
    if srid not in {None, target.srid} and (target.srid or ewkb):
        return f"has SRID {srid}, and the column takes {target.srid or 'none'}"
    kind, dimensions = value
    if target.kind not in {ANY, kind}:
        return f"is a {kind}, and the column takes {target.kind}"
    if target.dimensions not in {None, dimensions}:
        return f"has dimensions XY{dimensions}, and the column takes XY{target.dimensions}"
    return None


# --- what a table says by its CHECKs --------------------------------------------------------

_COLUMN = r'(?P<column>\w+|"(?:[^"]|"")+")'


def read_srid_check(check: str) -> tuple[str, int] | None:
    """Return column and SRID of a CHECK that PostGIS' own catalog reads, too.

    Args:
        check: As `pg_get_constraintdef` writes it.
    """
    found = re.search(rf"\bst_srid\({_COLUMN}\) = (?P<srid>\d+)\)", check, re.IGNORECASE)
    return (_unquoted(found["column"]), int(found["srid"])) if found else None


def ewkb_pattern(storage: PgType) -> str:
    """Return what the first nine bytes of a column's EWKB are, in hexadecimal and for LIKE.

    They are byte order, type code and SRID; `_` stands for any digit.
    """
    shape = Shape.of(storage)
    base = 1000 * DIMENSIONS.index(shape.dimensions or "")
    low, high = struct.pack("<H", base + CODES[shape.kind]).hex(" ").split()
    low = "__" if shape.kind == ANY else low
    high = "__" if shape.dimensions is None else high
    srid = struct.pack("<I", shape.srid).hex()
    return f"01{low}{high}0020{srid}" if shape.srid else f"01{low}{high}0000%"


def read_ewkb_check(check: str) -> tuple[str, PgType] | None:
    """Return column and storage of a CHECK that `ewkb_pattern` is in."""
    found = re.search(
        rf"encode\(substr\({_COLUMN}, 1, 9\), 'hex'::text\) ~~ "
        r"'01(?P<low>\w\w)(?P<high>\w\w)00(?:20(?P<srid>\w{8})|00%)'",
        check,
    )
    if found is None:
        return None
    word = ANY_SHAPE
    if found["high"] != "__":
        code = int(found["high"] + found["low"].replace("__", "00"), 16)
        # Without its low byte, a code is less than the thousand it stands for.
        thousands, kind = divmod(code, 1000) if found["low"] != "__" else (-(-code // 1000), 0)
        word = KINDS.get(kind, ANY) + DIMENSIONS[thousands]
    srid = int.from_bytes(bytes.fromhex(found["srid"] or ""), "little")
    return _unquoted(found["column"]), PgType(EWKB, (word, str(srid)))


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name
