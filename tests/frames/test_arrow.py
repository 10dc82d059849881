from __future__ import annotations

from decimal import Decimal

import pandas as pd
import pyarrow as pa
import pytest

from dagster_tools.errors import BadValue, UnsupportedFrame
from dagster_tools.frames import from_arrow, is_frame, to_arrow


class Stream:
    """What DuckDB, Ibis or Polars hand over: nothing but the C stream protocol."""

    def __init__(self, data: pa.Table | pa.ChunkedArray) -> None:
        self.data = data

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.data.__arrow_c_stream__(requested_schema)


def numeric(type_: str, values: list[str | None]) -> pa.RecordBatchReader:
    field = pa.field("n", pa.string(), metadata={"postgresql:type": type_})
    return pa.table([pa.array(values, pa.string())], schema=pa.schema([field])).to_reader()


def test_a_table_passes_as_it_is():
    table = pa.table({"f": [float("nan"), None]})

    assert to_arrow(table) is table


def test_a_reader_passes_unread():
    reader = pa.table({"a": [1]}).to_reader()

    assert to_arrow(reader) is reader
    assert reader.read_all().num_rows == 1


def test_a_record_batch_is_a_table_of_one_batch():
    batch = pa.record_batch({"a": [1, 2]})

    assert to_arrow(batch).equals(pa.table({"a": [1, 2]}))


def test_any_object_with_an_arrow_c_stream_becomes_a_reader():
    table = pa.table({"a": [1, 2]})

    reader = to_arrow(Stream(table))

    assert isinstance(reader, pa.RecordBatchReader)
    assert reader.read_all().equals(table)


def test_a_c_stream_of_one_column_is_refused():
    with pytest.raises(UnsupportedFrame, match="not one of rows and columns"):
        to_arrow(Stream(pa.chunked_array([[1, 2]])))


def test_columns_alone_are_no_frames():
    assert not is_frame(pa.array([1]))
    assert not is_frame(pa.chunked_array([[1]]))
    assert not is_frame(pd.Series([1]))
    assert not is_frame(pa.Table)


def test_a_reader_asked_for_is_the_stream_itself():
    reader = pa.table({"a": [1]}).to_reader()

    assert from_arrow(reader, pa.RecordBatchReader) is reader


def test_a_table_asked_for_has_the_types_and_metadata_of_the_stream():
    field = pa.field("j", pa.json_(), metadata={"postgresql:type": "jsonb"})
    table = pa.table([pa.nulls(1, pa.json_())], schema=pa.schema([field]))

    loaded = from_arrow(table.to_reader(), pa.Table)

    assert loaded.schema.equals(table.schema, check_metadata=True)


@pytest.mark.parametrize(
    ("type_", "expected"),
    [
        ("numeric(5,2)", pa.decimal128(5, 2)),
        ("numeric(38,0)", pa.decimal128(38, 0)),
        ("numeric(76,38)", pa.decimal256(76, 38)),
        ("numeric(77,0)", pa.string()),
        ("numeric(2,-3)", pa.string()),
        ("numeric(2,5)", pa.string()),
        ("numeric", pa.string()),
        ("text", pa.string()),
    ],
)
def test_numeric_is_a_decimal_where_arrow_has_one_of_that_scale(type_, expected):
    loaded = from_arrow(numeric(type_, ["1", None]), pa.Table)

    assert loaded.schema.field("n").type == expected


def test_numeric_keeps_every_digit():
    loaded = from_arrow(numeric("numeric(30,4)", ["12345678901234567890123456.0001"]), pa.Table)

    assert loaded["n"].to_pylist() == [Decimal("12345678901234567890123456.0001")]


@pytest.mark.parametrize("value", ["NaN", "nan", "Infinity", "-inf"])
def test_a_numeric_without_a_finite_value_is_refused_by_name(value):
    with pytest.raises(BadValue, match=r"column 'n'.*NaN or Infinity") as caught:
        from_arrow(numeric("numeric(5,2)", ["1", value]), pa.Table)

    assert caught.value.__cause__ is None


def test_numeric_is_converted_batch_by_batch_in_a_reader():
    reader = from_arrow(numeric("numeric(5,2)", ["1.50"]), pa.RecordBatchReader)

    assert reader.schema.field("n").type == pa.decimal128(5, 2)
    assert reader.read_next_batch()["n"].to_pylist() == [Decimal("1.50")]
