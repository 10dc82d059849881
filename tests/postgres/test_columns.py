from __future__ import annotations

import pyarrow as pa
import pytest

from dagster_tools.errors import ConfigurationError, UnsupportedFrame
from dagster_tools.postgres.column_types import PgType, parse_type
from dagster_tools.postgres.columns import Column, declared_column, wanted_columns
from tests.postgres.tables import declared, existing_table, index


@pytest.mark.parametrize(
    ("declaration", "column"),
    [
        ("int", Column("c", PgType("integer"), declared=True)),
        (("int",), Column("c", PgType("integer"), declared=True)),
        (["int", "not null"], Column("c", PgType("integer"), not_null=True, declared=True)),
        (("text", "unique"), Column("c", PgType("text"), unique=True, declared=True)),
        (("text", "index"), Column("c", PgType("text"), index=True, declared=True)),
        (
            ("numeric(12,2)", "Not  Null", "UNIQUE"),
            Column("c", parse_type("numeric(12,2)"), not_null=True, unique=True, declared=True),
        ),
        ("uint", Column("c", PgType("integer"), nonnegative=True, declared=True)),
        (
            (" UInt ", "not null"),
            Column("c", PgType("integer"), not_null=True, nonnegative=True, declared=True),
        ),
    ],
)
def test_a_declaration_is_a_type_and_modifiers(declaration, column):
    assert declared_column("c", declaration) == column


@pytest.mark.parametrize(
    ("declaration", "said"),
    [
        ((), "expected a type such as 'int'"),
        (None, "expected a type such as 'int'"),
        ({"type": "int"}, "expected a type such as 'int'"),
        (3, "expected a type such as 'int'"),
        ((None, "not null"), "the type is None"),
        ("nonsense type", "'nonsense type' is not the name of a PostgreSQL type"),
        (("int", "primary key"), "'primary key' is not a modifier"),
        (("int", "not null; DROP TABLE victim"), "is not a modifier"),
        (("int", None), "None is not a modifier; the modifiers are 'not null', 'unique', 'index'"),
        ((), r"columns\['c'\]"),
    ],
)
def test_a_declaration_that_cannot_be_meant_is_refused_with_its_column(declaration, said):
    with pytest.raises(ConfigurationError, match=said) as refused:
        declared_column("c", declaration)

    assert "columns['c']" in str(refused.value)


def test_a_table_has_the_columns_of_the_frame_in_its_order_then_declared_ones_it_lacks():
    frame = pa.schema([("b", pa.int64()), ("a", pa.string())])

    wanted = wanted_columns(frame, declared(z="date", a=("text", "index")), ())

    assert [column.name for column in wanted] == ["b", "a", "z"]


def test_a_declaration_wins_over_what_the_values_suggest():
    frame = pa.schema([("a", pa.string()), ("b", pa.int64())])

    wanted = wanted_columns(frame, declared(a="date"), ())

    assert [(str(column.type), column.declared) for column in wanted] == [
        ("date", True),
        ("bigint", False),
    ]


def test_a_declared_column_may_hold_values_that_have_no_type_of_their_own():
    union = pa.schema([("a", pa.dense_union([pa.field("x", pa.int8())]))])

    assert wanted_columns(union, declared(a="jsonb"), ())
    with pytest.raises(UnsupportedFrame):
        wanted_columns(union, {}, ())


def test_columns_of_the_primary_key_are_not_null():
    frame = pa.schema([("a", pa.int64()), ("b", pa.int64())])

    wanted = wanted_columns(frame, {}, ("b",))

    assert [column.not_null for column in wanted] == [False, True]


def test_a_primary_key_of_columns_that_are_not_there_is_refused_with_those_that_are():
    with pytest.raises(ConfigurationError, match=r"primary_key names \['x'\].*\['a'\]"):
        wanted_columns(pa.schema([("a", pa.int64())]), {}, ("a", "x"))


def test_an_index_serves_the_columns_it_begins_with():
    table = existing_table({"a": "int", "b": "int"}, indexes=(index("a", "b"),))

    assert table.has_index(["a"], unique=False)
    assert table.has_index(["a", "b"], unique=False)
    assert not table.has_index(["b"], unique=False)
    assert not table.has_index(["a"], unique=True)


def test_a_unique_index_makes_exactly_its_columns_unique_in_any_order():
    table = existing_table({"a": "int", "b": "int"}, indexes=(index("b", "a", unique=True),))

    assert table.has_index(["a", "b"], unique=True)
    assert not table.has_index(["b"], unique=True)


def test_an_index_whose_building_failed_serves_nothing():
    table = existing_table({"a": "int"}, indexes=(index("a", unique=True, valid=False),))

    assert not table.has_index(["a"], unique=True)
    assert not table.has_index(["a"], unique=False)


def test_a_table_knows_its_primary_key_and_whether_its_rows_say_who_wrote_them():
    assert existing_table({"a": "int", "b": "int"}, primary_key=("b", "a")).primary_key == (
        "b",
        "a",
    )
    assert existing_table({"a": "int"}).primary_key == ()
    assert existing_table({"a": "int"}).tracked
    assert not existing_table({"a": "int"}, tracked=False).tracked
