from __future__ import annotations

import pyarrow as pa
import pytest

from dagster_tools.errors import ConfigurationError, UnsupportedFrame
from dagster_tools.geoarrow import is_geometry
from dagster_tools.postgres.column_types import (
    DECLARED_WORDS,
    PgType,
    arrow_hint,
    infer,
    is_json,
    is_list,
    is_uuid,
    parse_type,
    plain_type,
    wire_type,
)

WKB = {b"ARROW:extension:name": b"geoarrow.wkb"}
EXACT = {b"postgresql:type": b"numeric"}


@pytest.mark.parametrize(
    ("word", "type_"),
    [
        ("bool", "boolean"),
        ("int", "integer"),
        ("int32", "integer"),
        ("uint", "integer"),
        ("float", "double precision"),
        ("string", "text"),
        ("date", "date"),
        ("datetime", "timestamp without time zone"),
        ("geometry", "geometry"),
    ],
)
def test_the_words_of_the_guide_mean_postgresqls_types(word, type_):
    assert str(parse_type(word)) == type_


def test_the_table_above_has_every_word():
    assert len(DECLARED_WORDS) == 9


@pytest.mark.parametrize(
    ("written", "type_"),
    [
        ("INT8", "bigint"),
        (" Int4 ", "integer"),
        ("float4", "real"),
        ("double   precision", "double precision"),
        ("decimal(12 , 2)", "numeric(12,2)"),
        ("numeric(5,-2)", "numeric(5,-2)"),
        ("varchar(20)", "character varying(20)"),
        ("character varying (20)", "character varying(20)"),
        ("bpchar", "character"),
        ("timestamptz", "timestamp with time zone"),
        ("timestamp(3) with time zone", "timestamp(3) with time zone"),
        ("time", "time without time zone"),
        ("TIME(0) WITHOUT TIME ZONE", "time(0) without time zone"),
        ("interval(3)", "interval(3)"),
        ("text[]", "text[]"),
        ("int[3][3]", "integer[]"),
        ("numeric(12,2)[]", "numeric(12,2)[]"),
        ("timestamptz[]", "timestamp with time zone[]"),
        ("geometry(PointZ,4326)", "geometry(PointZ,4326)"),
        ("jsonb", "jsonb"),
        ("Mood", "mood"),
        ('"Mood"', '"Mood"'),
        ('types."My ""Mood"""', 'types."My ""Mood"""'),
        ("types . mood", "types . mood"),
        ("größe", "größe"),
    ],
)
def test_any_type_postgresql_writes_is_read_and_spelled_as_the_server_spells_it(written, type_):
    assert str(parse_type(written)) == type_


@pytest.mark.parametrize(
    "spelled",
    [
        "integer",
        "numeric(12,2)",
        "timestamp(3) with time zone[]",
        "character varying(20)",
        'types."My ""Mood"""[]',
        "geometry(Point,4326)",
    ],
)
def test_what_the_server_spells_is_read_unchanged(spelled):
    assert str(parse_type(spelled)) == spelled


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "int; DROP TABLE victim",
        "int DEFAULT 1",
        "int NOT NULL",
        "int --",
        "int /* */",
        "int)",
        "numeric(1,2",
        "numeric(--)",
        "numeric(1,-)",
        "numeric(1;2)",
        "numeric('1')",
        "geometry(Point,4326) CHECK (true)",
        'text COLLATE "C"',
        '"Mood',
        '""',
        "int, b int",
        "a.b.c",
        "1int",
        "int\0",
        "$1",
        "text[]; --",
        "text[1:2]",
        "(int)",
    ],
)
def test_nothing_but_the_name_of_a_type_passes(text):
    with pytest.raises(ConfigurationError, match="not the name of a PostgreSQL type"):
        parse_type(text)


@pytest.mark.parametrize(
    "text", ["numeric(a,b)", "numeric(1,2,3)", "varchar(max)", "char(1,2)", "timestamp(x)"]
)
def test_numbers_that_values_depend_on_must_be_numbers(text):
    with pytest.raises(ConfigurationError, match="whole number"):
        parse_type(text)


@pytest.mark.parametrize(
    "text",
    [
        "geometry(Circle,4326)",
        "geometry(PointY)",
        "geometry(4326)",
        "geography(Point,WGS84)",
        "geometry(Point,-1)",
        "public.geometry(Point,4326,2)",
    ],
)
def test_a_shape_that_postgis_does_not_know_is_refused_with_those_it_knows(text):
    with pytest.raises(ConfigurationError, match=r"Point,4326.*MultiPolygon.*Z, M or ZM"):
        parse_type(text)


def test_the_parts_of_a_type_are_told_apart():
    assert parse_type("numeric(12,2)").precision_and_scale == (12, 2)
    assert parse_type("numeric(12)").precision_and_scale == (12, 0)
    assert parse_type("numeric").precision_and_scale is None
    assert parse_type("varchar(3)").max_length == 3
    assert parse_type("char").max_length == 1
    assert parse_type("varchar").max_length is None
    assert parse_type("text").max_length is None
    assert parse_type("varchar(3)[]").element == parse_type("varchar(3)")


@pytest.mark.parametrize(
    ("arrow", "type_"),
    [
        (pa.int8(), "smallint"),
        (pa.int16(), "smallint"),
        (pa.int32(), "integer"),
        (pa.int64(), "bigint"),
        (pa.uint8(), "smallint"),
        (pa.uint16(), "integer"),
        (pa.uint32(), "bigint"),
        (pa.uint64(), "numeric(20,0)"),
        (pa.float16(), "real"),
        (pa.float32(), "real"),
        (pa.float64(), "double precision"),
        (pa.decimal128(10, 2), "numeric"),
        (pa.decimal256(50, 2), "numeric"),
        (pa.string(), "text"),
        (pa.large_string(), "text"),
        (pa.string_view(), "text"),
        (pa.binary(), "bytea"),
        (pa.large_binary(), "bytea"),
        (pa.binary(4), "bytea"),
        (pa.binary_view(), "bytea"),
        (pa.bool_(), "boolean"),
        (pa.date32(), "date"),
        (pa.date64(), "date"),
        (pa.time32("s"), "time without time zone"),
        (pa.time64("ns"), "time without time zone"),
        (pa.timestamp("ns"), "timestamp without time zone"),
        (pa.timestamp("us", "Europe/Berlin"), "timestamp with time zone"),
        (pa.duration("s"), "interval"),
        (pa.month_day_nano_interval(), "interval"),
        (pa.list_(pa.int32()), "integer[]"),
        (pa.large_list(pa.string()), "text[]"),
        (pa.list_(pa.float64(), 3), "double precision[]"),
        (pa.list_view(pa.bool_()), "boolean[]"),
        (pa.list_(pa.dictionary(pa.int8(), pa.string())), "text[]"),
        (pa.list_(pa.list_(pa.int32())), "jsonb"),
        (pa.list_(pa.struct({"a": pa.int32()})), "jsonb"),
        (pa.list_(pa.json_()), "jsonb[]"),
        (pa.struct({"a": pa.int32()}), "jsonb"),
        (pa.map_(pa.string(), pa.int32()), "jsonb"),
        (pa.json_(), "jsonb"),
        (pa.uuid(), "uuid"),
        (pa.dictionary(pa.int32(), pa.string()), "text"),
        (pa.dictionary(pa.int32(), pa.date32()), "date"),
        (pa.run_end_encoded(pa.int32(), pa.int64()), "bigint"),
        (pa.null(), "text"),
    ],
    ids=str,
)
def test_an_undeclared_column_gets_the_type_that_holds_its_values(arrow, type_):
    assert str(infer(pa.field("c", arrow))) == type_


def test_metadata_of_a_field_tells_what_its_type_does_not():
    assert infer(pa.field("c", pa.binary(), metadata=WKB)) == PgType("geometry")
    assert infer(pa.field("c", pa.string(), metadata=EXACT)) == PgType("numeric")


@pytest.mark.parametrize(
    "arrow", [pa.dense_union([pa.field("a", pa.int8())]), pa.list_(pa.sparse_union([]))], ids=str
)
def test_values_without_a_postgresql_type_are_refused_with_their_column(arrow):
    with pytest.raises(UnsupportedFrame, match="column 'c': values of Arrow type"):
        infer(pa.field("c", arrow))


@pytest.mark.parametrize(
    ("declared", "hint"),
    [
        ("int", pa.int32()),
        ("float", pa.float64()),
        ("string", pa.string()),
        ("varchar(3)", pa.string()),
        ("bool", pa.bool_()),
        ("date", pa.date32()),
        ("datetime", pa.timestamp("us")),
        ("timestamptz", pa.timestamp("us", "UTC")),
        ("time", pa.time64("us")),
        ("interval", pa.duration("us")),
        ("bytea", pa.binary()),
        ("jsonb", pa.json_()),
        ("json", pa.json_()),
        ("uuid", pa.uuid()),
        ("numeric(12,2)", None),
        ("geometry", None),
        ("inet", None),
        ("int[]", pa.list_(pa.int32())),
        ("jsonb[]", pa.list_(pa.json_())),
        ("inet[]", None),
    ],
)
def test_a_column_hints_what_ambiguous_objects_should_become(declared, hint):
    assert arrow_hint(parse_type(declared)) == hint


@pytest.mark.parametrize(
    ("declared", "source", "wire"),
    [
        ("int", pa.int64(), pa.int32()),
        ("int", pa.string(), pa.int32()),
        ("text", pa.dictionary(pa.int8(), pa.string()), pa.large_string()),
        ("jsonb", pa.json_(), pa.large_binary()),
        ("json", pa.json_(), pa.large_string()),
        ("uuid", pa.uuid(), pa.large_binary()),
        ("timestamptz", pa.timestamp("ns", "UTC"), pa.timestamp("us")),
        ("numeric(12,2)", pa.float64(), pa.decimal128(12, 2)),
        ("numeric", pa.decimal128(7, 3), pa.decimal128(7, 3)),
        ("numeric", pa.uint64(), pa.decimal128(20, 0)),
        ("numeric", pa.null(), pa.decimal128(1, 0)),
        ("int[]", pa.list_(pa.int64()), pa.large_list(pa.int32())),
        ("int[]", pa.null(), pa.large_list(pa.int32())),
        ("numeric(12,2)[]", pa.list_(pa.float64()), pa.large_list(pa.decimal128(12, 2))),
        # Arrow cannot parse these, or the encoder cannot write them: they travel as text.
        ("uuid", pa.string(), None),
        ("interval", pa.string(), None),
        ("interval", pa.month_day_nano_interval(), None),
        ("geometry", pa.string_view(), None),
        ("numeric", pa.float64(), None),
        ("numeric", pa.string(), None),
        ("numeric", pa.decimal256(50, 2), None),
        ("numeric(50,2)", pa.decimal128(7, 2), None),
        ("numeric(5,-2)", pa.int64(), None),
        ("inet", pa.string(), None),
        ("int[]", pa.string(), None),
        ("uuid[]", pa.list_(pa.uuid()), None),
        ("varchar(3)[]", pa.list_(pa.string()), None),
    ],
    ids=str,
)
def test_what_has_a_binary_form_is_known_before_a_row_is_sent(declared, source, wire):
    assert wire_type(parse_type(declared), source) == wire


@pytest.mark.parametrize(
    ("nested", "plain"),
    [
        (pa.dictionary(pa.int8(), pa.string_view()), pa.large_string()),
        (pa.run_end_encoded(pa.int32(), pa.dictionary(pa.int8(), pa.int64())), pa.int64()),
        (pa.uuid(), pa.binary(16)),
        (pa.json_(pa.string_view()), pa.large_string()),
        (pa.binary_view(), pa.large_binary()),
        (pa.list_view(pa.int8()), pa.large_list(pa.int8())),
        (pa.int8(), pa.int8()),
    ],
    ids=str,
)
def test_a_plain_type_is_that_of_the_same_values_in_arrows_simplest_layout(nested, plain):
    assert plain_type(nested) == plain


def test_marks_of_arrow_are_recognised():
    assert is_json(pa.json_())
    assert not is_json(pa.string())
    assert is_uuid(pa.uuid())
    assert not is_uuid(pa.binary(16))
    assert is_geometry(pa.field("g", pa.binary(), metadata=WKB))
    assert not is_geometry(pa.field("g", pa.binary()))
    assert is_list(pa.large_list_view(pa.int8()))
    assert not is_list(pa.map_(pa.int8(), pa.int8()))
