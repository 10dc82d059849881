from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from dagster_tools.errors import BadValue, ConfigurationError
from dagster_tools.frames import IndexDropped, from_arrow, to_arrow

PANDAS_3 = int(pd.__version__.split(".")[0]) >= 3

# Before pandas 3, str made None the text 'None', and zones of today's dateutil were not taken.
TEXT_DTYPES = [object, "string", "string[python]", "string[pyarrow]", "large_string[pyarrow]"]
TEXT_DTYPES += ["str"] if PANDAS_3 else []
ZONES = ["UTC", "Europe/Berlin", "+09:00"] + (["dateutil/Europe/Berlin"] if PANDAS_3 else [])
TEXT = "str" if PANDAS_3 else "object"


def column(values, dtype=None, hint=None):
    frame = pd.DataFrame({"c": pd.Series(values, dtype=dtype)})
    return to_arrow(frame, None if hint is None else {"c": hint})["c"]


def load(table: pa.Table) -> pd.DataFrame:
    frame = from_arrow(table.to_reader(), pd.DataFrame)
    assert type(frame) is pd.DataFrame
    return frame


def arrow(values, type_, postgresql_type=None):
    metadata = {"postgresql:type": postgresql_type} if postgresql_type else None
    data = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values, type_)
    return pa.table([data], schema=pa.schema([pa.field("c", type_, metadata=metadata)]))


@pytest.mark.parametrize(
    "dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
)
@pytest.mark.parametrize("kind", ["numpy", "nullable", "arrow"])
def test_integers_keep_width_sign_and_extremes(dtype, kind):
    limits = [int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)]
    spelled = {
        "numpy": dtype,
        "nullable": dtype.replace("i", "I", 1).replace("u", "U", 1).replace("Ui", "UI"),
        "arrow": f"{dtype}[pyarrow]",
    }[kind]
    values = limits if kind == "numpy" else [*limits, None]

    data = column(values, "UInt" + dtype[4:] if spelled.startswith("U") else spelled)

    assert data.type == getattr(pa, dtype)()
    assert data.to_pylist() == values


def test_a_nullable_integer_beyond_floats_is_exact():
    assert column([2**53 + 1, None], "Int64").to_pylist() == [2**53 + 1, None]


@pytest.mark.parametrize("dtype", ["float32", "float64", "Float64", "double[pyarrow]", object])
def test_nan_in_pandas_is_null_and_infinity_is_not(dtype):
    data = column([float("nan"), float("inf"), -0.0], dtype)

    assert data.null_count == 1
    assert str(data.to_pylist()) == "[None, inf, -0.0]"


def test_a_nan_computed_among_nullable_floats_is_null():
    zero = pd.Series([0.0, None], dtype="Float64")

    assert column(zero / zero).to_pylist() == [None, None]


def test_float16_becomes_float32():
    assert column([0.5, None], "float16").type == pa.float32()


def test_byte_swapped_numbers_are_the_same_numbers():
    assert column(np.array([1, 2], ">i8")).to_pylist() == [1, 2]


@pytest.mark.parametrize("dtype", [bool, "boolean", "bool[pyarrow]", object])
def test_booleans_are_booleans(dtype):
    data = column([True, False], dtype)

    assert data.type == pa.bool_()
    assert data.to_pylist() == [True, False]


@pytest.mark.parametrize("dtype", TEXT_DTYPES)
def test_text_of_every_dtype_is_the_same_text(dtype):
    values = ["", None, "NULL", "\\N", "a\tb\n", "🦆"]

    data = column(values, dtype)

    assert data.type in {pa.string(), pa.large_string()}
    assert data.to_pylist() == values


def test_half_a_surrogate_pair_is_refused_with_column_and_row():
    with pytest.raises(BadValue, match=r"column 'c', row 1: .*surrogate"):
        column(["a", "\ud800"], object)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_keep_their_unit(unit):
    stamps = pd.Series(["2024-01-01", None]).astype(f"datetime64[{unit}]")
    deltas = pd.Series(np.array([1, "NaT"], dtype=f"timedelta64[{unit}]"))

    assert column(stamps).type == pa.timestamp(unit)
    assert column(deltas).type == pa.duration(unit)
    assert column(stamps).null_count == column(deltas).null_count == 1


@pytest.mark.parametrize("zone", ZONES)
def test_the_instant_of_a_time_with_a_zone_is_kept(zone):
    stamps = pd.Series(pd.to_datetime(["2024-01-01 12:00", None])).dt.tz_localize(zone)

    data = column(stamps)

    assert data.type.tz is not None
    assert data.cast(pa.timestamp("us", tz="UTC")).to_pylist() == [
        stamps[0].tz_convert("UTC").to_pydatetime(),
        None,
    ]


@pytest.mark.parametrize(
    ("categories", "type_"),
    [
        ([1, None, 2], pa.int64()),
        ([Decimal("1.5"), None, Decimal(2)], pa.decimal128(2, 1)),
        ([dt.date(2024, 1, 1), None], pa.date32()),
        ([uuid.UUID(int=1), None], pa.uuid()),
        ([True, None], pa.bool_()),
    ],
)
def test_a_categorical_is_of_its_values_type(categories, type_):
    values = pd.Series(pd.Categorical(categories))

    data = column(values)

    assert data.type == type_
    assert data.to_pylist() == categories


def test_a_categorical_of_text_reads_as_text():
    values = pd.Series(["x", None, "y", "x"], dtype=pd.CategoricalDtype(["y", "unused", "x"], True))

    data = column(values)

    assert pa.types.is_dictionary(data.type)
    assert data.to_pylist() == ["x", None, "y", "x"]


def test_an_odd_category_is_refused_with_the_row_it_is_in():
    values = pd.Series(pd.Categorical(["a", "a", 1], categories=["a", 1]))

    with pytest.raises(BadValue, match="column 'c', row 2"):
        column(values)


def test_an_unused_category_says_nothing_about_the_type():
    values = pd.Series(pd.Categorical(["a", "a"], categories=["a", 1]))

    assert column(values).to_pylist() == ["a", "a"]


def test_sparse_columns_are_densified():
    assert column(pd.arrays.SparseArray([0, 0, 1])).to_pylist() == [0, 0, 1]
    assert column(pd.arrays.SparseArray([np.nan, 1.0])).to_pylist() == [None, 1.0]


def test_arrow_backed_columns_stay_what_they_are():
    type_ = pa.list_(pa.struct([("a", pa.int8())]))

    assert column([[{"a": 1}], None], pd.ArrowDtype(type_)).type == type_


@pytest.mark.parametrize(
    ("values", "remedy"),
    [
        (pd.Series([1j]), "two columns"),
        (pd.Series(pd.period_range("2024", periods=1, freq="M")), "to_timestamp"),
        (pd.Series(pd.interval_range(0, 1)), "bounds"),
        (pd.Series(pd.cut([1, 2], 2)), "bounds"),
        (pd.Series([np.longdouble(1)], dtype="longdouble"), "float64"),
        (pd.Series([1, "a"], dtype=object), "convert it to one"),
    ],
)
def test_a_dtype_that_no_column_stands_for_is_refused_by_name(values, remedy):
    with pytest.raises(BadValue, match=f"column 'c'.*{remedy}"):
        column(values)


def test_objects_are_encoded_with_their_column_named():
    with pytest.raises(BadValue, match=r"column 'c', row 2: holds a str after int") as caught:
        column([None, 1, "secret"], object)

    assert caught.value.column == "c"


def test_decimals_beyond_arrow_are_marked_numeric():
    table = to_arrow(pd.DataFrame({"d": [Decimal("NaN"), Decimal("1.50")]}))

    assert table.schema.field("d").metadata == {b"postgresql:type": b"numeric"}
    assert [str(d) for d in load(table)["d"]] == ["NaN", "1.50"]


@pytest.mark.parametrize("dtype", [object, "string", "string[pyarrow]", None, "category"])
def test_with_a_json_hint_a_text_column_is_json_text(dtype):
    data = column(['{"a": 1}', None, "null"], dtype, pa.json_())

    assert data.type == pa.json_()
    assert load(pa.table({"c": data}))["c"].tolist() == [{"a": 1}, None, None]


@pytest.mark.parametrize("dtype", [object, "string", None])
def test_with_a_json_hint_text_that_is_none_is_refused_with_its_row(dtype):
    with pytest.raises(BadValue, match=r"column 'c', row 1: .*json\.dumps"):
        column(["1", "secret"], dtype, pa.json_())


def test_a_column_of_none_takes_the_hinted_type():
    assert column([None, None], object, pa.uuid()).type == pa.uuid()
    assert column([None, None], object).type == pa.null()


def test_the_frame_is_not_modified():
    frame = pd.DataFrame({"o": [{"a": [1]}, None], "n": [1.5, np.nan], "s": ["a", None]})
    before = frame.copy(deep=True)

    to_arrow(frame)

    pd.testing.assert_frame_equal(frame, before)


def test_numbers_are_handed_over_without_a_copy():
    values = np.arange(1000)
    frame = pd.DataFrame({"a": values}, copy=False)

    data = to_arrow(frame)["a"].chunk(0)

    assert data.buffers()[1].address == values.ctypes.data


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"a": range(10), "b": range(10)})[::3],
        pd.DataFrame(np.arange(20).reshape(10, 2), columns=["a", "b"]).iloc[2:5],
        pd.DataFrame({"a": range(10), "b": range(10)}).iloc[::-1],
        pd.DataFrame({"a": [1, 2], "b": [3, 4]}).T.rename(columns={0: "a", 1: "b"}),
    ],
)
@pytest.mark.filterwarnings("ignore::dagster_tools.frames.IndexDropped")
def test_views_and_slices_are_what_they_show(frame):
    table = to_arrow(frame)

    assert table["a"].to_pylist() == frame["a"].tolist()
    assert table["b"].to_pylist() == frame["b"].tolist()


@pytest.mark.parametrize("label", [0, None, 1.5, ("a", "b"), pd.Timestamp("2024-01-01"), b"a"])
def test_a_column_name_that_is_no_text_is_refused(label):
    frame = pd.DataFrame([[1, 2]])
    frame.columns = pd.Index(["a", label], dtype=object, tupleize_cols=False)

    with pytest.raises(ConfigurationError, match="column names are text"):
        to_arrow(frame)


def test_levels_of_columns_are_refused():
    frame = pd.DataFrame([[1]], columns=pd.MultiIndex.from_tuples([("a", "b")]))

    with pytest.raises(ConfigurationError, match=r"\('a', 'b'\)"):
        to_arrow(frame)


@pytest.mark.parametrize(("labels", "shown"), [(["a", "a"], "'a'"), ([1, "1"], "column 1 and")])
def test_two_columns_of_one_name_are_refused_with_both_shown(labels, shown):
    with pytest.raises(ConfigurationError, match=shown):
        to_arrow(pd.DataFrame([[1, 2]], columns=pd.Index(labels, dtype=object)))


def test_a_column_name_of_half_a_surrogate_pair_is_refused():
    with pytest.raises(ConfigurationError, match="surrogate"):
        to_arrow(pd.DataFrame([[1]], columns=pd.Index(["\ud800"], dtype=object)))


@pytest.mark.parametrize("name", ["Id", "id", "a b", 'a"b', "%s", "שלום", "a.b", "{x}"])
def test_odd_text_is_a_name_all_the_same(name):
    assert to_arrow(pd.DataFrame({name: [1]})).column_names == [name]


@pytest.mark.parametrize("index", [pd.RangeIndex(2), pd.RangeIndex(5, 1, -2)])
def test_an_unnamed_range_index_is_not_written(index):
    assert to_arrow(pd.DataFrame({"a": [1, 2]}, index=index)).column_names == ["a"]


def test_a_named_index_is_written_in_front():
    frame = pd.DataFrame({"a": [1, 2]}, index=pd.Index(["x", "y"], name="k"))

    table = to_arrow(frame)

    assert table.column_names == ["k", "a"]
    assert table["k"].to_pylist() == ["x", "y"]


def test_a_named_range_index_is_written_too():
    frame = pd.DataFrame({"a": [1, 2]}, index=pd.RangeIndex(2, name="k"))

    assert to_arrow(frame).to_pydict() == {"k": [0, 1], "a": [1, 2]}


def test_named_levels_of_an_index_are_written_in_order():
    days = pd.to_datetime(["2024-01-01", "2024-01-02"])
    index = pd.MultiIndex.from_arrays([["x", "y"], days], names=["k", "day"])

    table = to_arrow(pd.DataFrame({"a": [1, 2]}, index=index))

    assert table.column_names == ["k", "day", "a"]
    assert pa.types.is_timestamp(table.schema.field("day").type)


def test_an_unnamed_index_is_dropped_with_a_warning():
    frame = pd.DataFrame({"a": [1, 2]}, index=["x", "y"])

    with pytest.warns(IndexDropped, match="without its unnamed index"):
        table = to_arrow(frame)

    assert table.column_names == ["a"]


def test_an_unnamed_level_is_dropped_with_a_warning_and_the_named_one_written():
    index = pd.MultiIndex.from_arrays([["x"], [1]], names=["k", None])

    with pytest.warns(IndexDropped, match="level"):
        table = to_arrow(pd.DataFrame({"a": [1]}, index=index))

    assert table.column_names == ["k", "a"]


def test_an_empty_frame_has_no_index_to_warn_of():
    assert to_arrow(pd.DataFrame({"a": [1]}).iloc[:0]).num_rows == 0
    assert to_arrow(pd.DataFrame(index=pd.Index([], dtype=object))).num_columns == 0


def test_an_index_named_like_a_column_is_refused():
    frame = pd.DataFrame({"a": [1]}, index=pd.Index([1], name="a"))

    with pytest.raises(ConfigurationError, match="index 'a' and column 'a'"):
        to_arrow(frame)


def test_an_index_name_that_is_no_text_is_refused():
    with pytest.raises(ConfigurationError, match="named 0"):
        to_arrow(pd.DataFrame({"a": [1]}, index=pd.Index([1], name=0)))


NATIVE = [
    (pa.int16(), [1, 2], "int16", "Int16"),
    (pa.int32(), [1, 2], "int32", "Int32"),
    (pa.int64(), [2**53 + 1, -(2**63)], "int64", "Int64"),
    (pa.bool_(), [True, False], "bool", "boolean"),
    (pa.float32(), [0.5, float("inf")], "float32", "float32"),
    (pa.float64(), [0.5, -0.0], "float64", "float64"),
    (pa.string(), ["", "🦆"], TEXT, TEXT),
    (pa.large_string(), ["", "a"], TEXT, TEXT),
    (pa.string_view(), ["", "a"], TEXT, TEXT),
    (pa.dictionary(pa.int8(), pa.string()), ["x", "y"], TEXT, TEXT),
    (pa.dictionary(pa.int8(), pa.int64()), [5, 7], "int64", "Int64"),
    (pa.timestamp("us"), [dt.datetime(1, 1, 1), dt.datetime.max], *["datetime64[us]"] * 2),
    (pa.timestamp("s"), [dt.datetime(2024, 1, 1)] * 2, *["datetime64[us]"] * 2),
    (
        pa.timestamp("us", "UTC"),
        [dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc)] * 2,
        *["datetime64[us, UTC]"] * 2,
    ),
    (
        pa.timestamp("us", "Europe/Berlin"),
        [dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc)] * 2,
        *["datetime64[us, UTC]"] * 2,
    ),
    (pa.duration("us"), [dt.timedelta(-1), dt.timedelta(1)], *["timedelta64[us]"] * 2),
    (pa.date32(), [dt.date(1, 1, 1), dt.date(9999, 12, 31)], "object", "object"),
    (pa.time64("us"), [dt.time(0), dt.time(23, 59, 59, 999999)], "object", "object"),
    (pa.decimal128(5, 2), [Decimal("1.50"), Decimal(2)], "object", "object"),
    (pa.decimal256(50, 2), [Decimal("1.50"), Decimal(2)], "object", "object"),
    (pa.binary(), [b"", b"\0\xff"], "object", "object"),
    (pa.list_(pa.int64()), [[1, None], []], "object", "object"),
    (pa.list_(pa.string()), [["a"], ["b"]], "object", "object"),
    (pa.null(), [None, None], "object", "object"),
]


@pytest.mark.parametrize(("type_", "values", "dtype", "_nullable"), NATIVE)
@pytest.mark.parametrize("chunks", [1, 2])
def test_a_column_without_null_has_its_types_class(type_, values, dtype, _nullable, chunks):
    parts = [values] if chunks == 1 else [[v] for v in values]
    data = pa.chunked_array([pa.array(part, type_) for part in parts])

    loaded = load(arrow(data, type_))["c"]

    assert str(loaded.dtype) == dtype
    assert loaded.tolist() == values


@pytest.mark.parametrize(("type_", "values", "_dtype", "nullable"), NATIVE)
def test_a_null_makes_integers_and_booleans_nullable_and_nothing_else(
    type_, values, _dtype, nullable
):
    loaded = load(arrow([values[0], None, values[1]], type_))["c"]

    assert str(loaded.dtype) == nullable
    assert loaded[[0, 2]].tolist() == values
    assert pd.isna(loaded[1])


@pytest.mark.parametrize(("type_", "_values", "dtype", "_nullable"), NATIVE)
@pytest.mark.parametrize("batches", [0, 1])
def test_an_empty_result_keeps_its_classes(type_, _values, dtype, _nullable, batches):
    schema = pa.schema([("c", type_)])
    stream = pa.RecordBatchReader.from_batches(
        schema, [pa.RecordBatch.from_pylist([], schema=schema)] * batches
    )

    frame = from_arrow(stream, pd.DataFrame)

    assert str(frame["c"].dtype) == dtype
    assert len(frame) == 0


@pytest.mark.parametrize(("type_", "values", "_dtype", "_nullable"), NATIVE)
@pytest.mark.parametrize("with_null", [False, True])
def test_a_loaded_column_may_be_written_to(type_, values, _dtype, _nullable, with_null):
    frame = load(arrow([*values, None] if with_null else values, type_))

    frame.loc[0, "c"] = None if _dtype == "object" else frame.loc[1, "c"]
    frame["new"] = frame["c"]

    assert len(frame) == len(frame["new"])


def test_a_missing_object_is_none_not_nan():
    frame = load(arrow([None], pa.date32()))

    assert frame["c"][0] is None


def test_lists_come_back_as_lists_not_arrays():
    assert type(load(arrow([[1, None]], pa.list_(pa.int64())))["c"][0]) is list


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1.50", Decimal("1.50")), ("nan", Decimal("NaN")), ("-inf", Decimal("-Infinity"))],
)
@pytest.mark.parametrize("declared", ["numeric", "numeric(12,2)"])
def test_numeric_text_is_decimals_digit_for_digit(text, expected, declared):
    loaded = load(arrow([text, None], pa.string(), declared))["c"]

    assert str(loaded[0]) == str(expected)
    assert loaded[1] is None


@pytest.mark.parametrize("declared", ["text", "inet", "character varying(5)", "numeric_name"])
def test_text_of_other_types_stays_text(declared):
    assert load(arrow(["1"], pa.string(), declared))["c"].tolist() == ["1"]


@pytest.mark.parametrize(("type_", "declared"), [(pa.json_(), None), (pa.string(), "jsonb")])
def test_json_is_python_objects_with_dates_as_text(type_, declared):
    texts = pa.array(['{"a": [1, null], "d": "2024-01-01"}', None, "null"])
    data = pa.ExtensionArray.from_storage(type_, texts) if type_ == pa.json_() else texts

    loaded = load(arrow(data, type_, declared))["c"]

    assert loaded.tolist() == [{"a": [1, None], "d": "2024-01-01"}, None, None]


def test_uuids_come_back_as_uuids():
    ids = [uuid.uuid4(), None]
    table = to_arrow(pd.DataFrame({"c": pd.Series(ids, dtype=object)}))

    assert load(table)["c"].tolist() == ids


@pytest.mark.parametrize("days", [-719_163, 2_932_897, 2**31 - 1, -(2**31)])
def test_a_date_that_python_lacks_is_refused_by_column_and_row(days):
    data = pa.array([0, days], pa.int32()).cast(pa.date32())

    with pytest.raises(BadValue, match=r"column 'c', row 1: .*as text"):
        load(arrow(data, pa.date32()))


def test_the_time_24_is_refused_by_column_and_row():
    data = pa.array([0, 86_400_000_000], pa.int64()).cast(pa.time64("us"))

    with pytest.raises(BadValue, match="column 'c', row 1"):
        load(arrow(data, pa.time64("us")))


def test_nanoseconds_are_not_cut_off():
    with pytest.raises(BadValue, match=r"column 'c'.*microseconds"):
        load(arrow(pa.array([1], pa.timestamp("ns")), pa.timestamp("ns")))


def test_a_wide_frame_takes_another_column_without_a_warning():
    frame = load(pa.table({f"c{i}": [1, 2] for i in range(150)}))

    frame["new"] = 1

    assert frame.shape == (2, 151)


if PANDAS_3:  # pandas 2 holds text as Python objects

    def test_arrow_backed_text_is_loaded_without_a_copy():
        data = pa.array(["a", "b" * 100], pa.large_string())

        loaded = load(pa.table({"c": data}))["c"]

        kept = to_arrow(loaded.to_frame())["c"].chunk(0)
        assert kept.buffers()[2].address == data.buffers()[2].address


def test_what_was_written_is_read():
    frame = pd.DataFrame(
        {
            "i": pd.Series([1, 2], dtype="int32"),
            "n": pd.Series([1, None], dtype="Int64"),
            "f": [1.5, np.nan],
            "b": [True, False],
            "d": pd.Series([dt.date(2024, 1, 1), None], dtype=object),
            "t": pd.Series(["2024-01-01", None]).astype("datetime64[us]"),
            "z": pd.Series(["2024-01-01", None]).astype("datetime64[us, UTC]"),
            "s": ["a", None],
            "m": pd.Series([Decimal("1.50"), None], dtype=object),
            "u": pd.Series([uuid.UUID(int=1), None], dtype=object),
            "j": pd.Series([{"a": [1]}, None], dtype=object),
            "l": pd.Series([["a", None], None], dtype=object),
        }
    )

    pd.testing.assert_frame_equal(load(to_arrow(frame)), frame)
