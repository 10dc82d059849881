from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal

import polars as pl
import pyarrow as pa
import pytest

from dagster_tools.errors import BadValue, UnsupportedFrame
from dagster_tools.frames import Stream, frame_class, from_arrow, is_frame, to_arrow


class SalesFrame(pl.DataFrame):
    """A user's own DataFrame."""


class NeedsMore(pl.DataFrame):
    def __init__(self, data, unit):
        super().__init__(data)


class QueryError(Exception):
    """What a user's own function raises in a LazyFrame."""


def column(values, dtype=None, hint=None):
    frame = pl.DataFrame({"c": pl.Series(values, dtype=dtype)})
    return to_arrow(frame, None if hint is None else {"c": hint})["c"]


def load(data: pa.Array, declared: str | None = None) -> pl.Series:
    metadata = {"postgresql:type": declared} if declared else None
    schema = pa.schema([pa.field("c", data.type, metadata=metadata)])
    frame = from_arrow(pa.table([data], schema=schema).to_reader(), pl.DataFrame)
    assert type(frame) is pl.DataFrame
    return frame["c"]


def uuids(*values: uuid.UUID | None) -> pa.Array:
    storage = pa.array([None if v is None else v.bytes for v in values], pa.binary(16))
    return pa.ExtensionArray.from_storage(pa.uuid(), storage)


NOON = dt.datetime(2024, 6, 1, 12)


@pytest.mark.parametrize(
    ("values", "dtype", "type_"),
    [
        ([True, None], pl.Boolean, "bool"),
        ([-128, None], pl.Int8, "int8"),
        ([2**64 - 1, None], pl.UInt64, "uint64"),
        ([0.5, None], pl.Float32, "float"),
        ([Decimal("1.50"), None], pl.Decimal(10, 2), "decimal128(10, 2)"),
        ([dt.date(1, 1, 1), None], pl.Date, "date32[day]"),
        ([dt.time(1), None], pl.Time, "time64[ns]"),
        ([NOON, None], pl.Datetime("ms"), "timestamp[ms]"),
        ([NOON, None], pl.Datetime("us", "Europe/Berlin"), "timestamp[us, tz=Europe/Berlin]"),
        ([dt.timedelta(days=-1), None], pl.Duration("us"), "duration[us]"),
        ([None, None], pl.Null, "null"),
    ],
    ids=str,
)
def test_a_dtype_that_arrow_has_is_handed_over_as_it_is(values, dtype, type_):
    data = column(values, dtype)

    assert str(data.type) == type_
    assert data.null_count == values.count(None)


@pytest.mark.parametrize("dtype", [pl.String, pl.Categorical, pl.Enum(["", "a", "🦆"])], ids=str)
def test_text_of_every_dtype_is_the_same_text(dtype):
    values = ["", None, "🦆", "a"]

    data = column(values, dtype)

    assert data.to_pylist() == values


def test_nan_stays_nan_beside_null():
    data = column([float("nan"), None, 1.0])

    assert str(data.to_pylist()) == "[nan, None, 1.0]"


@pytest.mark.parametrize("dtype", [pl.Int128, pl.UInt128], ids=str)
def test_integers_of_128_bits_are_exact_numbers(dtype):
    table = to_arrow(pl.DataFrame({"c": pl.Series([2**100, None, 0], dtype=dtype)}))

    assert table["c"].to_pylist() == [str(2**100), None, "0"]
    assert table.schema.field("c").metadata == {b"postgresql:type": b"numeric"}


@pytest.mark.parametrize("dtype", [pl.List(pl.Int128), pl.Struct({"n": pl.Int128})], ids=str)
def test_integers_of_128_bits_within_others_are_refused_by_column(dtype):
    with pytest.raises(BadValue, match=r"column 'c': is of dtype .*Int128.*Decimal\(38, 0\)"):
        to_arrow(pl.DataFrame(schema={"c": dtype}))


def test_objects_are_what_they_are_and_never_their_addresses():
    objects = [uuid.UUID(int=1), None, uuid.UUID(int=2)]
    frame = pl.DataFrame({"n": [1, 2, 3], "c": pl.Series(objects, dtype=pl.Object), "t": ["a"] * 3})

    table = to_arrow(frame)

    assert table.column_names == ["n", "c", "t"]
    assert table["c"].to_pylist() == objects


def test_an_object_that_no_column_holds_is_refused_with_its_row():
    with pytest.raises(BadValue, match="column 'c', row 1: holds a set"):
        column([None, {1}], pl.Object)


def test_objects_take_the_hinted_type_where_they_leave_a_choice():
    data = column([[[1]], None], pl.Object, hint=pa.json_())

    assert data.to_pylist() == ["[[1]]", None]


def test_a_frame_is_handed_over_without_a_copy_of_its_text():
    frame = pl.DataFrame({"c": ["a text too long to be stored within its view"] * 10_000})
    before = pa.total_allocated_bytes()

    table = to_arrow(frame)

    assert pa.total_allocated_bytes() - before < 10_000
    assert table.num_rows == 10_000


def test_a_lazy_frame_is_not_computed_before_it_is_read():
    def refuse(_frame: pl.DataFrame) -> pl.DataFrame:
        raise AssertionError("computed too early")

    frame = pl.LazyFrame({"n": [1]}).map_batches(refuse, schema={"n": pl.Int64})

    stream = to_arrow(frame)

    assert isinstance(stream, Stream)
    assert stream.schema == pa.schema({"n": pa.int64()})


def test_a_lazy_frame_is_a_stream_of_batches():
    frame = pl.LazyFrame({"n": range(300_000)}).with_columns(t=pl.col("n").cast(pl.String))

    batches = list(to_arrow(frame))

    assert len(batches) > 1
    assert [n for batch in batches for n in batch["n"].to_pylist()] == list(range(300_000))
    assert {str(batch.schema) for batch in batches} == {str(to_arrow(frame).schema)}


def test_a_lazy_frame_without_rows_has_its_columns():
    stream = to_arrow(pl.LazyFrame({"n": [1], "t": ["a"]}).filter(pl.col("n") > 1))

    assert stream.schema.names == ["n", "t"]
    assert sum(batch.num_rows for batch in stream) == 0


def test_what_a_lazy_frame_raises_comes_through_as_it_is():
    def fail(_frame: pl.DataFrame) -> pl.DataFrame:
        raise QueryError("page 7 timed out")

    stream = to_arrow(pl.LazyFrame({"n": [1]}).map_batches(fail, schema={"n": pl.Int64}))

    with pytest.raises(QueryError, match=r"^page 7 timed out$"):
        list(stream)


def test_a_polars_whose_streams_hide_errors_is_told_to_be_upgraded(monkeypatch):
    monkeypatch.setattr(pl, "__version__", "1.38.1")

    with pytest.raises(UnsupportedFrame, match=r"Polars 1\.39 or later, and this is 1\.38\.1"):
        to_arrow(pl.LazyFrame({"n": [1]}))


def test_a_series_is_no_frame():
    assert not is_frame(pl.Series([1]))
    with pytest.raises(UnsupportedFrame, match="to_frame"):
        to_arrow(pl.Series([1]))


@pytest.mark.parametrize(
    ("data", "declared", "dtype", "values"),
    [
        (pa.array([1, None], pa.int16()), "smallint", pl.Int16, [1, None]),
        (pa.array(["a", None]), "text", pl.String, ["a", None]),
        (pa.array([b"\0", None]), "bytea", pl.Binary, [b"\0", None]),
        (uuids(uuid.UUID(int=15), None), "uuid", pl.String, [str(uuid.UUID(int=15)), None]),
        (pa.array(['{"a": 1}', None], pa.json_()), "jsonb", pl.String, ['{"a": 1}', None]),
        (pa.array(["1.50", None]), "numeric(10,2)", pl.Decimal(10, 2), [Decimal("1.50"), None]),
        (pa.array(["1.50", None]), "numeric", pl.String, ["1.50", None]),
        (pa.array(["1.5", None]), "numeric(40,1)", pl.String, ["1.5", None]),
        (pa.array([dt.time(1), None], pa.time64("us")), "time", pl.Time, [dt.time(1), None]),
        (pa.array([NOON, None], pa.timestamp("us")), "timestamp", pl.Datetime("us"), [NOON, None]),
        (pa.array([[1], None]), "bigint[]", pl.List(pl.Int64), [[1], None]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_column_is_of_the_dtype_that_polars_has_for_it(data, declared, dtype, values):
    assert load(data, declared).dtype == dtype
    assert load(data, declared).to_list() == values
    assert load(data.slice(0, 0), declared).dtype == dtype


def test_the_time_24_is_refused_by_column_and_row():
    with pytest.raises(BadValue, match=r"column 'c', row 1: holds the time 24:00:00"):
        load(pa.array([0, 86_400_000_000], pa.int64()).cast(pa.time64("us")))


def test_lists_of_uuids_are_lists_of_their_text():
    lists = pa.ListArray.from_arrays([0, 2, 2], uuids(uuid.UUID(int=1), None))

    assert load(lists).to_list() == [[str(uuid.UUID(int=1)), None], []]


@pytest.mark.parametrize("as_type", [pl.DataFrame, pl.LazyFrame, SalesFrame])
def test_the_class_asked_for_is_the_class_that_comes(as_type):
    loaded = from_arrow(pa.table({"a": [1]}).to_reader(), frame_class(as_type))

    assert type(loaded) is as_type
    assert loaded.lazy().collect().to_dicts() == [{"a": 1}]


def test_a_lazy_frame_may_be_collected_again():
    loaded = from_arrow(pa.table({"a": [1]}).to_reader(), pl.LazyFrame)

    assert loaded.collect().equals(loaded.collect())


def test_a_subclass_that_a_dataframe_does_not_make_is_refused():
    with pytest.raises(UnsupportedFrame, match=r"annotate the input as polars\.DataFrame"):
        from_arrow(pa.table({"a": [1]}).to_reader(), NeedsMore)


def test_an_error_of_the_stream_comes_through_as_it_is():
    def batches():
        yield pa.record_batch({"a": [1]})
        raise QueryError("gone")

    stream = pa.RecordBatchReader.from_batches(pa.schema({"a": pa.int64()}), batches())

    with pytest.raises(QueryError):
        from_arrow(stream, pl.DataFrame)
