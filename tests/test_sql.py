"""Expressions that say which rows go, and the frame they come with: plain values."""

from __future__ import annotations

import datetime as dt
import pickle
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from dagster_tools.errors import ConfigurationError
from dagster_tools.sql import And, Eq, IncrementalDataFrame, Or

a, b, c = Eq("a", 1), Eq("b", 2), Eq("c", 3)
SECRET = "S3cr3t"


# --- one column -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("abc", id="text is one value and not its letters"),
        pytest.param(b"abc", id="bytes"),
        pytest.param(bytearray(b"abc"), id="bytearray"),
        pytest.param(None, id="None"),
        pytest.param(Decimal("1.50"), id="Decimal"),
        pytest.param(dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc), id="datetime"),
        pytest.param({"key": 1}, id="a JSON object is one value and not its keys"),
        pytest.param(np.int64(3), id="numpy scalar"),
        pytest.param(pd.Timestamp("2024-01-01"), id="Timestamp"),
    ],
)
def test_one_value_is_one_row(value):
    assert Eq("a", value).rows == ((value,),)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([1, 2], id="list"),
        pytest.param((1, 2), id="tuple"),
        pytest.param({1, 2}, id="set"),
        pytest.param({1: "x", 2: "y"}.keys(), id="keys of a dict"),
        pytest.param(range(1, 3), id="range"),
        pytest.param((number for number in (1, 2)), id="generator"),
        pytest.param(np.array([1, 2]), id="numpy array"),
        pytest.param(pd.Series([1, 2], index=[7, 8]), id="Series"),
        pytest.param(pd.Index([1, 2]), id="Index"),
        pytest.param(pd.Series([1, 2], dtype="category"), id="Categorical"),
        pytest.param(pa.array([1, 2]), id="Arrow array"),
        pytest.param(pa.chunked_array([[1], [2]]), id="Arrow chunked array"),
    ],
)
def test_many_values_are_many_rows_whatever_holds_them(values):
    assert sorted(Eq("a", values).rows) == [(1,), (2,)]


def test_an_arrow_array_gives_its_values_and_not_arrows_scalars():
    assert Eq("a", pa.array(["x", None])).rows == (("x",), (None,))


def test_an_array_of_no_dimension_is_its_value():
    assert Eq("a", np.array(5)).rows == ((5,),)


@pytest.mark.parametrize("values", [[], (), set(), pd.Series([], dtype=int), iter(())])
def test_no_values_are_no_rows(values):
    assert Eq("a", values).rows == ()


def test_a_list_among_the_values_is_one_value_of_an_array_column():
    assert Eq("tags", [["x", "y"], []]).rows == ((["x", "y"],), ([],))


# --- several columns ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "rows"),
    [
        pytest.param([(1, "x"), (2, "y")], ((1, "x"), (2, "y")), id="list of tuples"),
        pytest.param([[1, "x"], [2, "y"]], ((1, "x"), (2, "y")), id="list of lists"),
        pytest.param(((1, "x"), (2, "y")), ((1, "x"), (2, "y")), id="tuple of tuples"),
        pytest.param((1, "x"), ((1, "x"),), id="one tuple"),
        pytest.param([(1, None)], ((1, None),), id="NULL in a part"),
        pytest.param(zip([1, 2], ["x", "y"], strict=True), ((1, "x"), (2, "y")), id="zip"),
        pytest.param(np.array([[1, 2], [3, 4]]), ((1, 2), (3, 4)), id="numpy array"),
        pytest.param(
            pd.MultiIndex.from_tuples([(1, "x"), (2, "y")]), ((1, "x"), (2, "y")), id="MultiIndex"
        ),
        pytest.param([], (), id="none"),
    ],
)
def test_of_a_composite_key_each_tuple_is_a_row(values, rows):
    assert Eq(["a", "b"], values).rows == rows


def test_a_list_of_one_column_takes_bare_values_and_tuples_of_one():
    assert Eq(["a"], [1, 2]).rows == Eq(["a"], [(1,), (2,)]).rows == ((1,), (2,))
    assert Eq(["a"], ["abc"]).rows == (("abc",),)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([(1, 2), (3,)], "value 1 has 1 parts for 2 columns"),
        ([(1, 2, 3)], "value 0 has 3 parts for 2 columns"),
        ([1, 2], "value 0 has 1 parts for 2 columns"),
        ((1, 2, 3), "value 0 has 3 parts for 2 columns"),
        ("ab", "takes tuples of 2 values"),
        (5, "takes tuples of 2 values"),
        (None, "takes tuples of 2 values"),
    ],
)
def test_a_key_with_too_few_or_too_many_parts_is_refused(values, message):
    with pytest.raises(ConfigurationError, match=message):
        Eq(["a", "b"], values)


@pytest.mark.parametrize("columns", [[], (), ["a", "a"], 5, None, ["a", 1], [["a"], "b"]])
def test_columns_are_one_or_more_different_names(columns):
    with pytest.raises(ConfigurationError, match="one or more different column names"):
        Eq(columns, [1])


@pytest.mark.parametrize("columns", ["a", ["a", "b"]])
@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(pd.DataFrame({"a": [1], "b": [2]}), id="pandas"),
        pytest.param(pa.table({"a": [1], "b": [2]}), id="arrow"),
    ],
)
def test_the_column_names_of_a_frame_are_not_taken_for_values(frame, columns):
    with pytest.raises(ConfigurationError, match=r"itertuples\(index=False, name=None\)"):
        Eq(columns, frame)


# --- together -------------------------------------------------------------------------------


def test_signs_say_the_same_as_words():
    assert (a & b) == And(a, b)
    assert (a | b) == Or(a, b)
    assert ((a & b) | c) == Or(And(a, b), c)
    assert (a & (b | c)) == And(a, Or(b, c))


def test_and_binds_as_in_python():
    assert (a | b & c) == Or(a, And(b, c))


@pytest.mark.parametrize("kind", [And, Or])
@pytest.mark.parametrize("operands", [(), ("a = 1",), (a, None), (a, [b])])
def test_nothing_but_expressions_can_be_combined(kind, operands):
    with pytest.raises(ConfigurationError, match=f"{kind.__name__} takes one or more of Eq"):
        kind(*operands)


@pytest.mark.parametrize("other", ["b", 1, None])
def test_signs_combine_nothing_but_expressions_either(other):
    with pytest.raises(ConfigurationError, match="takes one or more of Eq, And and Or"):
        a & other
    with pytest.raises(ConfigurationError, match="takes one or more of Eq, And and Or"):
        a | other


def test_expressions_are_equal_by_what_they_say():
    assert Eq("a", 1) == Eq(["a"], [1])
    assert Eq("a", 1) != Eq("a", 2)
    assert And(a, b) != Or(a, b)


def test_an_expression_cannot_be_changed():
    with pytest.raises(AttributeError):
        a.columns = ("b",)
    with pytest.raises(AttributeError):
        And(a, b).operands = ()


def test_an_expression_survives_the_way_to_another_process():
    expression = Eq(["a", "b"], [(1, "x")]) & (a | b)

    assert pickle.loads(pickle.dumps(expression)) == expression


# --- with a frame ---------------------------------------------------------------------------


def test_without_a_delete_there_is_none():
    assert IncrementalDataFrame(pd.DataFrame()).delete is None


@pytest.mark.parametrize("delete", ["file_id", ["a"], {"a": 1}, ("a", 1), True])
def test_a_delete_that_is_no_expression_is_refused(delete):
    with pytest.raises(ConfigurationError, match="it must be an Eq, And or Or"):
        IncrementalDataFrame(pd.DataFrame(), delete=delete)


def test_none_is_no_frame_and_the_error_names_what_would_be():
    with pytest.raises(ConfigurationError, match=r"such as pandas.DataFrame\(\)"):
        IncrementalDataFrame(None, delete=a)


def test_two_are_compared_without_comparing_their_frames():
    one, other = (IncrementalDataFrame(pd.DataFrame({"a": [1, 2]})) for _ in range(2))

    assert one == one  # noqa: PLR0124  # frames have no truth, which == would ask for
    assert one != other


# --- what a log would show ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Eq("file_id", SECRET), "Eq('file_id', ...)"),
        (Eq(["a", "b"], [(SECRET, 1)]), "Eq(['a', 'b'], ...)"),
        (And(Eq("a", SECRET), Or(Eq("b", SECRET), c)), "And(Eq('a', ...), Or(Eq('b', ...), Eq("),
        (
            IncrementalDataFrame(pd.DataFrame({"a": [SECRET]}), delete=Eq("a", SECRET)),
            "IncrementalDataFrame(DataFrame, delete=Eq('a', ...))",
        ),
        (
            IncrementalDataFrame({"2024-01-01": pa.table({"a": [SECRET]})}),
            "IncrementalDataFrame(dict, delete=None)",
        ),
    ],
)
@pytest.mark.parametrize("show", [repr, str])
def test_what_is_shown_names_columns_and_no_value(value, shown, show):
    assert show(value).startswith(shown)
    assert SECRET not in show(value)
