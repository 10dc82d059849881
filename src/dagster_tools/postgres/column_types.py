"""The type vocabulary as data: a declared word ⇄ PostgreSQL ⇄ Arrow ⇄ wire form.

The *wire form* of a column is the Arrow type whose binary encoding is the one
PostgreSQL's receive function expects for that column (documentation, "COPY",
binary format). A type without a wire form travels as text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.types as pat
from psycopg import sql
from psycopg.sql import Composable, Identifier

from dagster_tools.errors import ConfigurationError, UnsupportedFrame
from dagster_tools.geoarrow import DIMENSIONS, KINDS, is_geometry, read_crs

__all__ = [
    "ANY_SHAPE",
    "DECLARED_WORDS",
    "EWKB",
    "PgType",
    "arrow_hint",
    "infer",
    "is_json",
    "is_list",
    "is_uuid",
    "parse_type",
    "plain_type",
    "wire_type",
]

EWKB = "EWKB"
"""What values of a `bytea` column that stands for geometry are encoded as."""
ANY_SHAPE = "*"
"""In the place of a geometry column's kind: any kind, and any dimensions."""

MICROSECONDS = "us"
MAX_DECIMAL128 = 38

DECLARED_WORDS = {
    "bool": "boolean",
    "int": "integer",
    "int32": "integer",
    "uint": "integer",
    "float": "double precision",
    "string": "text",
    "date": "date",
    "datetime": "timestamp without time zone",
    "geometry": "geometry",
}
"""The words of `columns` metadata that are shorter than, or other than, PostgreSQL's."""

ALIASES = {
    "int2": "smallint",
    "int4": "integer",
    "int8": "bigint",
    "float4": "real",
    "float8": "double precision",
    "decimal": "numeric",
    "dec": "numeric",
    "varchar": "character varying",
    "char": "character",
    "bpchar": "character",
    "time": "time without time zone",
    "timetz": "time with time zone",
    "timestamp": "timestamp without time zone",
    "timestamptz": "timestamp with time zone",
}

ONE_LONG = frozenset({"char", "character", "bit"})
"""Types that are one character or digit long where nothing is said, as `format_type` then says."""

COUNTED = {
    "numeric": 2,
    "character varying": 1,
    "character": 1,
    "time without time zone": 1,
    "time with time zone": 1,
    "timestamp without time zone": 1,
    "timestamp with time zone": 1,
    "interval": 1,
}
"""How many numbers may stand in parentheses after a type whose values depend on them here."""

KINDS_OF_GEOMETRY = ("Geometry", *KINDS.values())
SHAPES = frozenset((kind + d).lower() for kind in KINDS_OF_GEOMETRY for d in DIMENSIONS)
"""What stands first in the parentheses of a geometry; a SRID may follow."""

WIRE = {
    "boolean": pa.bool_(),
    "smallint": pa.int16(),
    "integer": pa.int32(),
    "bigint": pa.int64(),
    "real": pa.float32(),
    "double precision": pa.float64(),
    "text": pa.large_string(),
    "character varying": pa.large_string(),
    "character": pa.large_string(),
    "name": pa.large_string(),
    "citext": pa.large_string(),
    "enum": pa.large_string(),
    "json": pa.large_string(),
    "jsonb": pa.large_binary(),
    "bytea": pa.large_binary(),
    "uuid": pa.large_binary(),
    "geometry": pa.large_binary(),
    "geography": pa.large_binary(),
    EWKB: pa.large_binary(),
    "date": pa.date32(),
    "time without time zone": pa.time64(MICROSECONDS),
    "timestamp without time zone": pa.timestamp(MICROSECONDS),
    "timestamp with time zone": pa.timestamp(MICROSECONDS),
    "interval": pa.duration(MICROSECONDS),
}
"""`numeric` is missing here: its wire form is a decimal of the values' own scale."""

ARRAY_WIRE = frozenset(
    {
        "boolean",
        "smallint",
        "integer",
        "bigint",
        "real",
        "double precision",
        "text",
        "bytea",
        "date",
        "time without time zone",
        "timestamp without time zone",
        "numeric",
    }
)
"""Element types whose OID the encoder writes; the server refuses any other OID in an array."""

PARSED_BY_SERVER = frozenset(
    {"uuid", "interval", "time without time zone", "geometry", "geography"}
)
"""Types whose text Arrow cannot parse: such columns travel as text when the frame holds text."""

_TYPE = re.compile(
    r"""\s*
    (?P<name> (?: "(?:[^"]|"")+" | [^\W\d][\w$]* )
              (?: \s*\.\s* (?: "(?:[^"]|"")+" | [^\W\d][\w$]* ) )?
              (?: \s+ (?:precision|varying) )? )
    (?: \s*\(\s* (?P<modifiers> -?\w+ (?:\s*,\s* -?\w+)* ) \s*\) )?
    (?P<zone> \s+ (?:with|without) \s+ time \s+ zone )?
    (?P<array> (?: \s*\[\s*\d*\s*\] )* )
    \s*""",
    re.VERBOSE | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class PgType:
    """A PostgreSQL type, spelled as the server spells it (`format_type`).

    Two of the names are ours: `enum` for an enum's labels, and `EWKB` for geometry in `bytea`.

    Args:
        name: The name without modifiers: `numeric`, `integer`, `"My Type"`.
        modifiers: What stands in parentheses: `("12", "2")`. Of geometry that may have any
            dimensions, `("*", "4326")`: PostGIS has no modifiers for that, but a CHECK.
        array: Whether it is an array of this type. PostgreSQL keeps no number of dimensions.
        schema: Of a type of PostGIS, the schema that the extension lies in: the search path
            need not lead there. Part of how the type is spelled, not of what it is.
    """

    name: str
    modifiers: tuple[str, ...] = ()
    array: bool = False
    schema: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        where = f"{self.schema}." if self.schema not in {None, "public"} else ""
        if self.modifiers[:1] == (ANY_SHAPE,):
            srid = self.modifiers[1]
            return f"{where}{self.name} " + (f"with SRID {srid}" if srid != "0" else "without SRID")
        return where + self._unqualified

    @property
    def as_sql(self) -> Composable:
        """The type as it stands in a statement.

        Safe: what a person writes goes through `parse_type`, and what the catalog tells is
        spelled by the server.
        """
        if self.name == EWKB:
            return sql.SQL("bytea")
        plain = replace(self, modifiers=()) if self.modifiers[:1] == (ANY_SHAPE,) else self
        spelled = sql.SQL(plain._unqualified)  # noqa: SLF001  # its own class
        if self.schema is None:
            return spelled
        return sql.SQL("{}.{}").format(Identifier(self.schema), spelled)

    @property
    def element(self) -> PgType:
        """The type itself, without being an array of it."""
        return replace(self, array=False)

    @property
    def _unqualified(self) -> str:
        inside = f"({','.join(self.modifiers)})" if self.modifiers else ""
        base, zone, rest = self.name.partition(" with")
        text = f"{base}{inside}{zone}{rest}"
        return f"{text}[]" if self.array else text

    @property
    def precision_and_scale(self) -> tuple[int, int] | None:
        """Digits in all and after the point, of a `numeric` that declares them."""
        if self.name != "numeric" or not self.modifiers:
            return None
        precision, *scale = (int(number) for number in self.modifiers)
        return precision, scale[0] if scale else 0

    @property
    def max_length(self) -> int | None:
        """Characters a `varchar(n)` or `char(n)` holds."""
        if self.name == "character" and not self.modifiers:
            return 1
        limited = self.name in {"character varying", "character"} and self.modifiers
        return int(self.modifiers[0]) if limited else None


def parse_type(text: str) -> PgType:
    """Read a type as a person or `format_type` writes it.

    Only the grammar of a type name passes, so the result may stand in a
    statement: no semicolon, comment or clause can hide in it. Whether the
    server knows the type is for the server to say.
    """
    match = _TYPE.fullmatch(text)
    if match is None:
        raise ConfigurationError(f"{text!r} is not the name of a PostgreSQL type.")
    name = match["name"] if '"' in match["name"] else " ".join(match["name"].lower().split())
    if match["zone"]:
        name = f"{name} {' '.join(match['zone'].lower().split())}"
    modifiers = tuple(part.strip() for part in (match["modifiers"] or "").split(",") if part)
    if name in ONE_LONG and not modifiers:
        modifiers = ("1",)
    name = DECLARED_WORDS.get(name) or ALIASES.get(name, name)
    if len(modifiers) > COUNTED.get(name, len(modifiers)) or (
        name in COUNTED and not all(re.fullmatch(r"-?\d+", part) for part in modifiers)
    ):
        raise ConfigurationError(
            f"{text!r}: in parentheses, {name} takes at most {COUNTED[name]} whole number(s)."
        )
    if name.rpartition(".")[2] in {"geometry", "geography"} and modifiers:
        _check_shape(text, *modifiers)
    if name == "numeric" and len(modifiers) == 1:
        modifiers = (*modifiers, "0")  # as `format_type` spells it
    return PgType(name, modifiers, array=bool(match["array"]))


def _check_shape(text: str, shape: str, srid: str = "0", *more: str) -> None:
    if shape.lower() not in SHAPES or not srid.isdecimal() or more:
        raise ConfigurationError(
            f"{text!r}: in parentheses stand a kind of geometry and a SRID, such as Point,4326 or "
            f"PolygonZ,4326. The kinds are {', '.join(KINDS_OF_GEOMETRY)}, each also with Z, M or "
            "ZM after it."
        )


def wire_type(target: PgType, source: pa.DataType) -> pa.DataType | None:
    """Return the Arrow type that encodes as `target`, None if it must travel as text."""
    source = plain_type(source)
    if target.array:
        return _array_wire_type(target.element, source)
    if target.name == "numeric":
        return _numeric_wire_type(target, source)
    is_text = pat.is_string(source) or pat.is_large_string(source)
    if (is_text and target.name in PARSED_BY_SERVER) or pat.is_interval(source):
        return None
    return WIRE.get(target.name)


def infer(field: pa.Field) -> PgType:
    """Return the column type for an Arrow field nobody declared (DESIGN, "Inferred from Arrow").

    Raises:
        UnsupportedFrame: No PostgreSQL type holds such values unchanged.
    """
    if (field.metadata or {}).get(b"postgresql:type") == b"numeric":
        return PgType("numeric")
    if is_geometry(field):
        return PgType("geography" if read_crs(field).spherical else "geometry")
    inferred = _infer(field.type)
    if inferred is None:
        raise UnsupportedFrame(
            f"column {field.name!r}: values of Arrow type {field.type} have no PostgreSQL type. "
            "Convert the column, or leave it out."
        )
    return inferred


def arrow_hint(type_: PgType) -> pa.DataType | None:
    """Return what a frame's ambiguous Python objects should become for such a column."""
    if type_.array:
        element = arrow_hint(type_.element)
        return None if element is None else pa.list_(element)
    match type_.name:
        case "json" | "jsonb":
            return pa.json_()
        case "uuid":
            return pa.uuid()
        case "timestamp with time zone":
            return pa.timestamp(MICROSECONDS, "UTC")
        case "bytea":
            return pa.binary()
        case "geometry" | "geography" | "numeric":
            return None
        case name:
            wire = WIRE.get(name)
            return pa.string() if wire == pa.large_string() else wire


def is_json(type_: pa.DataType) -> bool:
    """Whether it is text that Arrow marks as JSON."""
    return getattr(type_, "extension_name", None) == "arrow.json"


def is_uuid(type_: pa.DataType) -> bool:
    """Whether it is the sixteen bytes that Arrow marks as a UUID."""
    return getattr(type_, "extension_name", None) == "arrow.uuid"


def is_list(type_: pa.DataType) -> bool:
    """Whether each value is a list, in any of Arrow's layouts."""
    return bool(
        pat.is_list(type_)
        or pat.is_large_list(type_)
        or pat.is_fixed_size_list(type_)
        or pat.is_list_view(type_)
        or pat.is_large_list_view(type_)
    )


def plain_type(type_: pa.DataType) -> pa.DataType:
    """Return the type of the same values without dictionary, run ends, extension or views."""
    if isinstance(type_, pa.BaseExtensionType):
        return plain_type(type_.storage_type)
    if pat.is_dictionary(type_) or pat.is_run_end_encoded(type_):
        return plain_type(type_.value_type)
    if pat.is_string_view(type_):
        return pa.large_string()
    if pat.is_binary_view(type_):
        return pa.large_binary()
    if pat.is_list_view(type_) or pat.is_large_list_view(type_):
        return pa.large_list(type_.value_type)
    return type_


def _array_wire_type(element: PgType, source: pa.DataType) -> pa.DataType | None:
    if not (is_list(source) or pat.is_null(source)):
        return None
    inner = source.value_type if is_list(source) else pa.null()
    wire = wire_type(element, inner) if element.name in ARRAY_WIRE else None
    if wire is None or element.max_length is not None:
        return None
    # The encoder knows lists of the 32-bit string types only in this spelling.
    return pa.large_list(wire)


def _numeric_wire_type(target: PgType, source: pa.DataType) -> pa.DataType | None:
    declared = target.precision_and_scale
    if declared is not None:
        precision, scale = declared
        fits = precision <= MAX_DECIMAL128 and 0 <= scale <= precision
        return pa.decimal128(precision, scale) if fits else None
    if pat.is_decimal128(source):
        return source
    if pat.is_integer(source):
        return pa.decimal128(20, 0)
    return pa.decimal128(1, 0) if pat.is_null(source) else None


def _infer(type_: pa.DataType) -> PgType | None:
    if is_json(type_) or pat.is_struct(type_) or pat.is_map(type_):
        return PgType("jsonb")
    if is_uuid(type_):
        return PgType("uuid")
    if isinstance(type_, pa.BaseExtensionType):
        return _infer(type_.storage_type)
    if pat.is_dictionary(type_) or pat.is_run_end_encoded(type_):
        return _infer(type_.value_type)
    if is_list(type_):
        return _infer_list(type_)
    if pat.is_decimal(type_):
        return PgType("numeric")
    if pat.is_timestamp(type_):
        zone = "with" if type_.tz is not None else "without"
        return PgType(f"timestamp {zone} time zone")
    for is_kind, name in _INFERRED:
        if is_kind(type_):
            return PgType(name)
    return PgType("numeric", ("20", "0")) if pat.is_uint64(type_) else None


def _infer_list(type_: pa.DataType) -> PgType | None:
    if is_list(type_.value_type):
        return PgType("jsonb")
    element = _infer(type_.value_type)
    if element is None:
        return None
    nested = element.name == "jsonb" and not is_json(type_.value_type)
    return PgType("jsonb") if nested else PgType(element.name, element.modifiers, array=True)


_INFERRED = (
    (pat.is_null, "text"),
    (pat.is_boolean, "boolean"),
    (pat.is_int8, "smallint"),
    (pat.is_int16, "smallint"),
    (pat.is_uint8, "smallint"),
    (pat.is_int32, "integer"),
    (pat.is_uint16, "integer"),
    (pat.is_int64, "bigint"),
    (pat.is_uint32, "bigint"),
    (pat.is_float16, "real"),
    (pat.is_float32, "real"),
    (pat.is_float64, "double precision"),
    (pat.is_string, "text"),
    (pat.is_large_string, "text"),
    (pat.is_string_view, "text"),
    (pat.is_binary, "bytea"),
    (pat.is_large_binary, "bytea"),
    (pat.is_fixed_size_binary, "bytea"),
    (pat.is_binary_view, "bytea"),
    (pat.is_date, "date"),
    (pat.is_time, "time without time zone"),
    (pat.is_duration, "interval"),
    (pat.is_interval, "interval"),
)
