from __future__ import annotations

import datetime as dt

import pyarrow as pa
import pytest

from dagster_tools.errors import BadValue, ConfigurationError
from dagster_tools.postgres.column_types import PgType, parse_type
from dagster_tools.postgres.names import Table
from dagster_tools.postgres.projection import (
    Projected,
    compose_select,
    decode,
    decoded_schema,
    empty_columns,
    project,
)
from tests.postgres.statements import ODD_NAMES, text_of, unquoted
from tests.postgres.tables import TABLE, declared, existing_column, existing_table

INTERVAL = pa.month_day_nano_interval()


def one(type_: str, *, storage: str | None = None, cast: str | None = None) -> Projected:
    """Project a table's only column, `c`, or have it cast."""
    table = existing_table({"c": existing_column("c", type_, storage=storage or type_)})
    [column] = project(table, {"c": parse_type(cast) if cast else None})
    return column


def arriving(array: pa.Array, *dimensions: pa.Array) -> pa.RecordBatch:
    names = [str(number) for number in range(1 + len(dimensions))]
    return pa.RecordBatch.from_arrays([array, *dimensions], names=names)


# --- what is asked for ----------------------------------------------------------------------


def test_all_columns_are_loaded_in_the_tables_order_but_not_who_wrote_the_row():
    columns = project(existing_table({"b": "int", "a": "text"}), None)

    assert [column.name for column in columns] == ["b", "a"]


def test_the_columns_asked_for_are_loaded_in_the_order_asked_for():
    table = existing_table({"a": "int", "b": "int", "c": "int"})

    assert [column.name for column in project(table, {"c": None, "a": None})] == ["c", "a"]


@pytest.mark.parametrize(
    ("columns", "order_by"), [({"x": None, "a": None}, ()), (None, ("a", "x"))]
)
def test_columns_that_are_not_there_are_refused_with_those_that_are(columns, order_by):
    with pytest.raises(ConfigurationError, match=r"s\.t has no columns \['x'\].*\['a'\]"):
        project(existing_table({"a": "int"}), columns, order_by)


def test_who_wrote_a_row_can_be_neither_loaded_nor_sorted_by():
    with pytest.raises(ConfigurationError, match="has no columns"):
        project(existing_table({"a": "int"}), {"materialization_id": None})


@pytest.mark.parametrize(
    ("column", "item"),
    [
        (one("int"), '"c"'),
        (one("numeric(12,2)"), '"c"'),
        (one("zip", storage="text"), '"c"'),
        (one("mood", storage="enum"), '"c"'),
        (one("geometry(Point,4326)"), '"st_asbinary"("c", \'NDR\')'),
        (one("geometry"), '"st_asbinary"("c", \'NDR\'), "st_srid"("c")'),
        (one("oid"), '"c"::bigint'),
        (one("inet"), '"c"::text'),
        (one("int4range"), '"c"::text'),
        (one("int", cast="text"), '"c"::text'),
        (one("int", cast="numeric(12,2)"), '"c"::numeric(12,2)'),
        (one("text", cast="inet"), '"c"::inet::text'),
        (one("text", cast='types."My Mood"'), '"c"::types."My Mood"::text'),
        (one("int[]"), '"c", pg_catalog.array_ndims("c")'),
        (one("mood[]", storage="enum[]"), '"c"::text[], pg_catalog.array_ndims("c"::text[])'),
        (one("numeric[]"), '"c"::text[], pg_catalog.array_ndims("c"::text[])'),
        (one("text", cast="int[]"), '"c"::integer[], pg_catalog.array_ndims("c"::integer[])'),
    ],
)
def test_what_the_driver_does_not_decode_is_cast_by_the_server(column, item):
    composed = compose_select(TABLE, [column], None, [])

    assert text_of(composed) == f'SELECT {item} FROM "s"."t" AS stored'


@pytest.mark.parametrize(
    ("ids", "since", "order_by", "ending"),
    [
        (None, None, [], ""),
        (None, 7, [], ' WHERE "materialization_id" >= 7'),
        (
            [70000, 70001],
            7,
            [],
            " WHERE \"materialization_id\" = ANY ('{70000,70001}'::int4[]::integer[])",
        ),
        ([], None, [], " WHERE \"materialization_id\" = ANY ('{}'::integer[])"),
        (None, None, ["c", "b"], ' ORDER BY "stored"."c", "stored"."b"'),
    ],
)
def test_a_statement_selects_the_rows_meant_in_the_order_asked_for(ids, since, order_by, ending):
    composed = compose_select(TABLE, [one("int")], ids, order_by, since=since)

    assert text_of(composed) == f'SELECT "c" FROM "s"."t" AS stored{ending}'


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_stands_in_a_statement_only_within_its_quotes(name):
    table = existing_table({name: "int[]"})
    columns = project(table, {name: parse_type("text[]")}, [name])

    composed = compose_select(Table(name, name), columns, [1], [name])

    assert "victim" not in unquoted(composed)
    assert composed.as_string().count('"' + name.replace('"', '""') + '"') == 5


# --- what arrives ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "type_"),
    [
        (one("smallint"), pa.int16()),
        (one("numeric"), pa.string()),
        (one("real"), pa.float32()),
        (one("timestamptz"), pa.timestamp("us", "UTC")),
        (one("uuid"), pa.uuid()),
        (one("jsonb"), pa.json_()),
        (one("geometry"), pa.binary()),
        (one("inet"), pa.string()),
        (one("int[]"), pa.list_(pa.int32())),
        (one("numeric[]"), pa.list_(pa.string())),
        (one("mood", storage="enum"), pa.string()),
        (one("int", cast="text"), pa.string()),
    ],
)
def test_the_schema_depends_on_the_columns_alone_and_tells_their_types(column, type_):
    [field] = decoded_schema([column])

    assert field.type == type_
    assert field.metadata[b"postgresql:type"] == str(column.type).encode()


@pytest.mark.parametrize(
    ("column", "array", "values"),
    [
        (one("int"), pa.array([1, None], pa.int32()), [1, None]),
        (one("text"), pa.array(["a", None]), ["a", None]),
        (one("uuid"), pa.array([b"x" * 16, None], pa.binary(16)), [b"x" * 16, None]),
        (one("jsonb"), pa.array(['{"a": 1}', "null", None]), ['{"a": 1}', "null", None]),
        (one("date"), pa.array([dt.date(1, 1, 1), None]), [dt.date(1, 1, 1), None]),
        (
            one("interval"),
            pa.array([(0, -1, 1_000_000), None, (0, 0, -2000)], INTERVAL),
            [
                dt.timedelta(days=-1, milliseconds=1),
                None,
                dt.timedelta(microseconds=-2),
            ],
        ),
    ],
)
@pytest.mark.parametrize("offset", [0, 1])
def test_values_arrive_as_the_schema_says(column, array, values, offset):
    padded = pa.concat_arrays([array[:1], array])
    batch = arriving(padded.slice(1)) if offset else arriving(array)

    decoded = decode(batch, [column], TABLE)

    assert decoded.schema.equals(decoded_schema([column]), check_metadata=True)
    arrived = decoded.column(0)
    storage = arrived.storage if isinstance(arrived, pa.ExtensionArray) else arrived
    assert storage.to_pylist() == values


@pytest.mark.parametrize(
    ("column", "array", "what"),
    [
        (one("date"), pa.array([0, -(2**31)], pa.int32()).cast(pa.date32()), "infinity"),
        (one("datetime"), pa.array([0, -(2**63)], pa.timestamp("us")), "infinity"),
        (one("timestamptz"), pa.array([-(2**62)], pa.timestamp("us", "UTC")), "infinity"),
        (one("interval"), pa.array([(0, 1, 0), (1, 0, 0)], INTERVAL), "months"),
        (one("interval"), pa.array([(-1, 0, 0)], INTERVAL), "months"),
        (
            one("date[]"),
            pa.ListArray.from_arrays([0, 1], pa.array([-(2**31)], pa.int32()).cast(pa.date32())),
            "infinity",
        ),
    ],
)
def test_what_arrow_cannot_hold_is_refused_with_a_way_to_load_it(column, array, what):
    dimensions = [pa.array([1] * len(array))] if column.storage.array else []

    with pytest.raises(BadValue, match=f"column 'c': of s.t holds .*{what}.*'c': 'text'"):
        decode(arriving(array, *dimensions), [column], TABLE)


def test_an_infinity_under_a_null_is_none():
    infinite = pa.array([-(2**63)], pa.int64()).buffers()[1]
    array = pa.Array.from_buffers(pa.timestamp("us"), 1, [pa.py_buffer(b"\0"), infinite])

    assert decode(arriving(array), [one("datetime")], TABLE).column(0).to_pylist() == [None]


@pytest.mark.parametrize("dimensions", [[1, 1], [1, None], [None, None]])
def test_lists_of_one_dimension_arrive_as_they_are(dimensions):
    lists = pa.array([[1], []], pa.list_(pa.int32()))

    decoded = decode(arriving(lists, pa.array(dimensions, pa.int32())), [one("int[]")], TABLE)

    assert decoded.column(0).to_pylist() == [[1], []]


def test_a_list_of_several_dimensions_which_would_arrive_flat_is_refused():
    lists = pa.array([[1], [1, 2]], pa.list_(pa.int32()))

    with pytest.raises(BadValue, match="holds arrays of several dimensions"):
        decode(arriving(lists, pa.array([1, 2], pa.int32())), [one("int[]")], TABLE)


def test_each_list_column_has_its_own_dimensions():
    columns = project(existing_table({"a": "int[]", "n": "int", "b": "int[]"}), None)
    lists, numbers = pa.array([[1]], pa.list_(pa.int32())), pa.array([1], pa.int32())
    ones, twos = pa.array([1], pa.int32()), pa.array([2], pa.int32())
    batch = pa.RecordBatch.from_arrays(
        [lists, numbers, lists, ones, twos], names=[str(number) for number in range(5)]
    )

    with pytest.raises(BadValue, match="column 'b'"):
        decode(batch, columns, TABLE)


# --- before there is a table ----------------------------------------------------------------


def test_an_output_that_was_always_empty_has_its_declared_columns():
    columns = empty_columns([*declared(a="int", b="timestamptz").values()], None)

    assert decoded_schema(columns).types == [pa.int32(), pa.timestamp("us", "UTC")]


def test_of_an_output_that_was_always_empty_the_columns_asked_for_are_there():
    columns = empty_columns(
        [*declared(a="int", b="date").values()],
        {"b": None, "x": None, "a": PgType("text")},
    )

    assert decoded_schema(columns).names == ["b", "x", "a"]
    assert decoded_schema(columns).types == [pa.date32(), pa.string(), pa.string()]
