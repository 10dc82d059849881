"""Which rows go, as a condition: keys are parameters, and statements stay short."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import pyarrow as pa
import pytest

from dagster_tools.errors import BadValue, ConfigurationError
from dagster_tools.postgres.deletion import AllOf, AnyOf, Condition, Keys, compose_condition
from dagster_tools.postgres.names import MATERIALIZATION_ID
from tests.postgres.statements import ODD_NAMES, text_of, unquoted
from tests.postgres.tables import existing_column, existing_table

COLUMNS = {
    "id": "integer",
    "name": "text",
    "day": "date",
    "price": "numeric(10,2)",
    "at": "timestamp with time zone",
    "code": "character varying(3)",
    "payload": "json",
}
SECRET = "S3cr3t"


def keys(**values: list[object]) -> Keys:
    """Make the key rows of the columns: `keys(id=[1, 2])`."""
    return Keys(tuple(values), pa.table(dict(values)))


def condition_of(deletion, *, columns=COLUMNS, first=2) -> Condition:
    return compose_condition(deletion, existing_table(columns), "kept", first=first)


# --- one key --------------------------------------------------------------------------------


def test_all_values_of_a_column_are_one_parameter():
    condition = condition_of(keys(id=list(range(100_000))))

    assert text_of(condition.clause) == (
        '("kept"."id") IN (SELECT "k0"::integer '
        'FROM ROWS FROM (pg_catalog.unnest($2::text[])) AS keys ("k0"))'
    )
    assert condition.parameters == ([str(number) for number in range(100_000)],)


def test_a_composite_key_is_one_parameter_for_each_column():
    condition = condition_of(keys(id=[1, 2], name=["a", "b"]), first=5)

    assert text_of(condition.clause) == (
        '("kept"."id", "kept"."name") IN (SELECT "k0"::integer, "k1"::text '
        "FROM ROWS FROM (pg_catalog.unnest($5::text[]), pg_catalog.unnest($6::text[])) "
        'AS keys ("k0", "k1"))'
    )
    assert condition.parameters == (["1", "2"], ["a", "b"])


def test_no_values_match_no_row():
    condition = condition_of(Keys(("id",), pa.table({"id": pa.array([], pa.null())})))

    assert text_of(condition.clause) == "false"
    assert condition.parameters == ()


def test_null_is_asked_for_by_is_null():
    condition = condition_of(keys(name=[None, None]))

    assert text_of(condition.clause) == '"kept"."name" IS NULL'
    assert condition.parameters == ()


def test_null_among_values_is_a_clause_of_its_own():
    condition = condition_of(keys(name=["a", None, "b"]))

    assert '"kept"."name" IS NULL' in text_of(condition.clause)
    assert " OR " in text_of(condition.clause)
    assert condition.parameters == (["a", "b"],)


def test_each_pattern_of_nulls_in_a_composite_key_is_one_clause_however_many_keys_have_it():
    rows = [(1, "a"), (2, None), (3, None), (None, "b"), (None, None), (4, "c")]

    condition = condition_of(keys(id=[row[0] for row in rows], name=[row[1] for row in rows]))

    assert text_of(condition.clause).count(" OR ") == 3
    assert sorted(condition.parameters) == [["1", "4"], ["2", "3"], ["a", "c"], ["b"]]


# --- together -------------------------------------------------------------------------------


def test_nested_expressions_keep_their_parentheses_and_count_their_parameters_on():
    deletion = AnyOf((AllOf((keys(id=[1]), keys(name=["a"]))), keys(name=["b"])))

    condition = condition_of(deletion)

    shape = text_of(condition.clause)
    for number, column, type_ in ((2, "id", "integer"), (3, "name", "text"), (4, "name", "text")):
        shape = shape.replace(
            f'("kept"."{column}") IN (SELECT "k0"::{type_} '
            f'FROM ROWS FROM (pg_catalog.unnest(${number}::text[])) AS keys ("k0"))',
            f"<{column} {number}>",
        )
    assert shape == "((<id 2> AND <name 3>) OR <name 4>)"
    assert condition.parameters == (["1"], ["a"], ["b"])


@pytest.mark.parametrize(
    "deletion",
    [AnyOf((keys(id=[1]), keys(id=[2]))), keys(id=[1, None])],
    ids=["Or", "NULL among values"],
)
def test_what_stands_beside_an_or_is_not_drawn_into_it(deletion):
    """`WHERE own AND a OR b` would delete the rows of others that `b` matches."""
    clause = text_of(condition_of(deletion).clause)

    assert clause.startswith("(")
    assert clause.endswith(")")
    assert _outside_parentheses(clause) == ""


def _outside_parentheses(text: str) -> str:
    depth, outside = 0, ""
    for character in text:
        depth += (character == "(") - (character == ")")
        outside += character if depth == 0 and character != ")" else ""
    return outside


@pytest.mark.parametrize(("kind", "word"), [(AllOf, "AND"), (AnyOf, "OR")])
def test_an_expression_of_no_row_stays_one_within_others(kind, word):
    nothing = Keys(("id",), pa.table({"id": pa.array([], pa.null())}))

    clause = text_of(condition_of(kind((nothing, nothing))).clause)

    assert clause == f"(false {word} false)"


# --- values ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "values", "texts"),
    [
        ("id", ["7"], ["7"]),
        ("id", pa.array([7.0]), ["7"]),
        ("id", pa.array([Decimal("7.00")]), ["7"]),
        ("day", ["2024-01-02"], ["2024-01-02"]),
        ("day", pa.array([dt.datetime(2024, 1, 2)]), ["2024-01-02"]),
        ("price", pa.array([1.1]), ["1.10"]),
        ("price", pa.array([3]), ["3.00"]),
        (
            "at",
            pa.array([dt.datetime(2024, 1, 2, 3, tzinfo=dt.timezone.utc)]),
            ["2024-01-02 03:00:00.000000+00"],
        ),
        ("name", ["'; DROP TABLE t; --", '%s {} \\ "'], ["'; DROP TABLE t; --", '%s {} \\ "']),
    ],
)
def test_values_are_brought_to_the_columns_type(column, values, texts):
    assert condition_of(keys(**{column: values})).parameters == (texts,)


def test_json_is_compared_by_what_it_says():
    condition = condition_of(keys(payload=['{"a": 1}']))

    assert '("kept"."payload"::jsonb) IN (SELECT "k0"::json::jsonb' in text_of(condition.clause)


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        ("id", pa.array([1, 2**31]), "value 1 does not fit into integer"),
        ("id", ["1", "x"], "value 1 does not fit into integer"),
        ("price", pa.array([1.005]), "value 0 does not fit into numeric"),
        ("code", ["abc", SECRET], "value 1 is longer than character varying"),
        ("day", ["2024-01-01", SECRET], "value 1 is not a date"),
        ("name", ["a\0b"], "value 0 contains a NUL character"),
    ],
)
def test_a_value_that_its_column_cannot_hold_is_named_by_its_place(column, values, reason):
    with pytest.raises(BadValue, match=f"column '{column}': delete: {reason}") as caught:
        condition_of(keys(**{column: values}))

    assert caught.value.column == column
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("column", "values", "types"),
    [
        ("name", pa.array([1]), "is text, with values of type int64"),
        ("at", pa.array([dt.datetime(2024, 1, 1)]), "is timestamp with time zone, with values"),
        ("day", pa.array([True]), "is date, with values of type bool"),
    ],
)
def test_values_of_a_type_that_the_column_never_holds_are_refused_with_both_types(
    column, values, types
):
    with pytest.raises(ConfigurationError, match=f"delete compares the column '{column}'") as error:
        condition_of(keys(**{column: values}))

    assert types in str(error.value)
    assert "frame" not in str(error.value)


# --- columns --------------------------------------------------------------------------------


def test_a_column_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(ConfigurationError) as error:
        condition_of(AllOf((keys(id=[1]), keys(file_id=[]))))

    assert str(error.value) == (
        "delete names the column 'file_id', which s.t does not have. Its columns are "
        "['id', 'name', 'day', 'price', 'at', 'code', 'payload']."
    )


def test_the_tracking_column_is_not_the_users_to_name():
    with pytest.raises(ConfigurationError, match=f"'{MATERIALIZATION_ID}', which s.t does not"):
        condition_of(keys(materialization_id=[1]))


def test_a_type_of_the_users_own_is_cast_to_by_its_own_name():
    mood = existing_column("mood", '"My Schema".mood', storage="enum")

    condition = condition_of(keys(mood=["ok"]), columns={"mood": mood})

    assert 'SELECT "k0"::"My Schema".mood FROM' in text_of(condition.clause)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_and_values_stand_only_in_quotes_or_in_parameters(name):
    condition = condition_of(keys(**{name: [name, None]}), columns={name: "text"})

    assert "victim" not in unquoted(condition.clause)
    assert condition.parameters == ([name],)
