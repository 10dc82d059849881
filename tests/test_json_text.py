from __future__ import annotations

import datetime as dt
import json
import uuid
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from dagster_tools import json_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": [None, True, "é🦆"]}, '{"b":1,"a":[null,true,"é🦆"]}'),
        ([np.int64(5), np.float32(0.5), np.bool_(True)], "[5,0.5,true]"),
        ({"v": np.array([[1, 2], [3, 4]])}, '{"v":[[1,2],[3,4]]}'),
        ([pd.NA, pd.NaT, None], "[null,null,null]"),
        ([dt.date(2024, 1, 2), dt.time(3, 4)], '["2024-01-02","03:04:00"]'),
        ([dt.datetime(2024, 1, 2, tzinfo=dt.timezone.utc)], '["2024-01-02T00:00:00+00:00"]'),
        ([pd.Timestamp("2024-01-02 00:00:00.123456789")], '["2024-01-02T00:00:00.123456789"]'),
        (np.array(["2024-01-02T00:00:00.5"], "M8[ns]"), '["2024-01-02T00:00:00.500000000"]'),
        ({"id": uuid.UUID(int=1)}, '{"id":"00000000-0000-0000-0000-000000000001"}'),
        ([Decimal("12.30"), Decimal("1e20")], "[12.3,100000000000000000000]"),
        (
            [-1e23, 1.5e16, 1e15],
            "[-100000000000000000000000.0,15000000000000000.0,1000000000000000.0]",
        ),
        (
            {'"1e+23': ["\\", "1e+23", '"', 1e16]},
            r'{"\"1e+23":["\\","1e+23","\"",10000000000000000.0]}',
        ),
    ],
)
def test_objects_have_the_json_text_one_expects(value, text):
    assert json_text.dumps(value) == text


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({1: "a"}, "key of type int"),
        ({"a": [{"b": {None: 1}}]}, "key of type NoneType"),
        ({"a": np.array([{True: 1}], dtype=object)}, "key of type bool"),
        ([float("nan")], "NaN"),
        ([np.float64("inf")], "NaN, Infinity"),
        ([Decimal("0.1234567890123456789")], "more digits than a float"),
        ([Decimal("NaN")], "no JSON number"),
        ([{1, 2}], "holds a set"),
        ([b"x"], "holds a bytes"),
        ([dt.timedelta(1)], "holds a timedelta"),
    ],
)
def test_what_json_cannot_hold_is_refused_with_the_reason(value, reason):
    with pytest.raises(ValueError, match=reason):
        json_text.dumps(value)


def test_a_value_that_contains_itself_is_refused():
    value: list[object] = []
    value.append(value)

    with pytest.raises(ValueError, match="itself"):
        json_text.dumps(value)


@pytest.mark.parametrize("text", ["null", "1e400", '"a"', '{"a": [1, 2.50]}', r'"\ud83e\udd86"'])
def test_json_text_passes_the_check(text):
    json_text.check(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("secret", "this is none"),
        ("", "this is none"),
        ("[NaN]", "NaN or Infinity"),
        (r'"\ud800"', "surrogate"),
        ("[" * 100_000, "this is none"),
    ],
)
def test_text_that_is_no_json_fails_the_check_without_being_quoted(text, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        json_text.check(text)

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "holds"), [("\0", True), ("\\u0000", False), ("\\\0", True), ({"\0": 1}, True)]
)
def test_an_escaped_nul_is_told_from_the_text_of_one(value, holds):
    assert json_text.has_nul(json.dumps(value)) is holds
