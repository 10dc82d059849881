"""The nasty inputs 33 to 46: frames with nothing in them, odd keys, odd layouts."""

from __future__ import annotations

import decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from dagster_tools.errors import BadValue, DagsterToolsError, SchemaConflict
from dagster_tools.sql import Eq, IncrementalDataFrame
from tests.pipelines import column_types, load, manager_for, query, rows, store

UPSERT = {"incremental": True, "primary_key": "k"}
EMPTY = {
    "pandas": pd.DataFrame({"k": pd.Series(dtype="int64"), "v": pd.Series(dtype="float64")}),
    "polars": pl.DataFrame(schema={"k": pl.Int64, "v": pl.Float64}),
    "lazy": pl.LazyFrame(schema={"k": pl.Int64, "v": pl.Float64}),
    "arrow": pa.table({"k": pa.array([], pa.int64()), "v": pa.array([], pa.float64())}),
    "iterator": [],
}
empty_frames = pytest.mark.parametrize("empty", EMPTY.values(), ids=list(EMPTY))
NOTHING = {"pandas": pd.DataFrame(), "polars": pl.DataFrame(), "arrow": pa.table({})}


@pytest.fixture
def database(cleaned_database):
    return cleaned_database


@pytest.fixture
def io_manager(database):
    return manager_for(database)


@empty_frames
def test_33_no_rows_make_no_table_and_are_read_with_the_columns_there_are(
    database, io_manager, empty
):
    store(io_manager, empty)
    assert query(database, "SELECT to_regclass('numbers')") == [(None,)]

    store(io_manager, pd.DataFrame({"k": [1], "v": [0.5]}))
    store(io_manager, empty)

    loaded = load(io_manager)
    assert (len(loaded), dict(loaded.dtypes.astype(str))) == (0, {"k": "int64", "v": "float64"})


@empty_frames
def test_34_no_rows_with_a_deletion_still_delete_and_are_recorded(database, io_manager, empty):
    store(io_manager, pd.DataFrame({"k": [1, 2], "v": [0.5, 0.5]}), **UPSERT)

    store(io_manager, empty, **UPSERT)
    store(io_manager, IncrementalDataFrame(empty, Eq("k", [1])), **UPSERT)

    assert rows(database) == [(2, 0.5)]
    assert query(database, "SELECT rows_deleted FROM meta.materializations ORDER BY id") == [
        (0,),
        (0,),
        (1,),
    ]


@pytest.mark.parametrize("nothing", NOTHING.values(), ids=list(NOTHING))
def test_35_a_frame_of_nothing_with_a_deletion_deletes(database, io_manager, nothing):
    store(io_manager, pd.DataFrame({"k": [1, 2]}))

    store(io_manager, IncrementalDataFrame(nothing, Eq("k", [1])))

    assert rows(database) == [(2,)]


@pytest.mark.parametrize("declared", [None, "date"])
def test_36_a_column_of_none_is_text_or_what_it_is_declared_as(database, io_manager, declared):
    columns = {"columns": {"v": declared}} if declared else {}

    store(io_manager, pd.DataFrame({"v": [None, None]}, dtype=object), **columns)

    assert column_types(database) == {"v": declared or "text"}
    store(io_manager, pd.DataFrame({"v": [5]}), key="numbers")
    assert column_types(database) == {"v": "bigint"}


@pytest.mark.parametrize(
    "frame", [pa.table({"v": pa.nulls(2)}), pl.DataFrame({"v": [None, None]})], ids=type
)
def test_37_a_column_of_the_null_type_is_text(database, io_manager, frame):
    store(io_manager, frame)

    assert column_types(database) == {"v": "text"}
    assert rows(database) == [(None,), (None,)]


def frames(columns: dict[str, list[object]]) -> list[object]:
    return [pd.DataFrame(columns), pl.DataFrame(columns), pa.table(columns)]


@pytest.mark.parametrize("frame", frames({"k": [1, 2, 1]}), ids=type)
def test_38_a_key_twice_in_one_frame_is_refused_with_its_rows(database, io_manager, frame):
    with pytest.raises(BadValue, match=r"1 value of the primary key \['k'\].* rows 0 and 2"):
        store(io_manager, frame, **UPSERT)


@pytest.mark.parametrize("frame", frames({"k": [1, None], "v": [1, 2]}), ids=type)
def test_39_a_null_in_a_key_is_refused_with_its_row(database, io_manager, frame):
    with pytest.raises(BadValue, match=r"NULL in the primary key \['k'\].*row 1"):
        store(io_manager, frame, **UPSERT)


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"k": [np.nan, 1.0]}),
        pl.DataFrame({"k": [np.nan, np.nan]}),
        *frames({"k": [0.0, -0.0]}),
    ],
    ids=["NaN is NULL", "NaN twice", "zeros", "zeros", "zeros"],
)
def test_40_keys_that_the_server_takes_for_equal_are_refused(database, io_manager, frame):
    with pytest.raises(BadValue, match=r"primary key \['k'\]"):
        store(io_manager, frame, primary_key="k")


INCOMPRESSIBLE = "".join(map(chr, np.random.default_rng(1).integers(33, 9000, 9000)))


@pytest.mark.parametrize("frame", frames({"k": [INCOMPRESSIBLE]}), ids=type)
def test_41_a_key_too_long_for_an_index_is_refused(database, io_manager, frame):
    with pytest.raises(DagsterToolsError, match="index row"):
        store(io_manager, frame, primary_key="k")

    assert query(database, "SELECT to_regclass('numbers')") == [(None,)]


def test_42_json_is_no_key_and_jsonb_is(database, io_manager):
    frame = pl.DataFrame({"k": ['{"a": 1}']})

    with pytest.raises(DagsterToolsError, match="json has no default operator class"):
        store(io_manager, frame, primary_key="k", columns={"k": "json"})
    store(io_manager, frame, primary_key="k", columns={"k": "jsonb"})

    assert rows(database) == [({"a": 1},)]


def odd_layouts() -> dict[str, object]:
    base = pd.DataFrame({"v": np.arange(6), "t": list("abcdef")})
    block = np.arange(12).reshape(6, 2)
    block.flags.writeable = False
    table = pa.table({"v": pa.chunked_array([[0], [], [1, 2], [3, 4, 5]]), "t": list("abcdef")})
    lists = pa.array([None, "a", "b", "c", "d", "e", "f", None])
    return {
        "an index with repetitions": base.set_index(pd.RangeIndex(6)).loc[[0, 1, 2, 3, 4, 5]],
        "every second of twelve": pd.DataFrame(
            {"v": np.arange(0, 6, 0.5), "t": [c for c in "abcdef" for _ in "12"]}
        )
        .iloc[::2]
        .astype({"v": "int64"})
        .reset_index(drop=True),
        "a block that is read-only": pd.DataFrame(block, columns=["v", "x"])[["v"]]
        .floordiv(2)
        .assign(t=list("abcdef")),
        "chunks of all lengths": table,
        "a slice": pa.table({"v": pa.array(range(-1, 7)), "t": lists}).slice(1, 6),
        "a slice of Polars": pl.DataFrame({"v": range(-1, 7), "t": lists.to_pylist()}).slice(1, 6),
        "chunks of Polars": pl.concat(
            [pl.DataFrame(table.slice(0, 2)), pl.DataFrame(table.slice(2))], rechunk=False
        ),
        "views": pa.table({"v": range(6), "t": pa.array(list("abcdef"), pa.string_view())}),
        "large": pa.table({"v": range(6), "t": pa.array(list("abcdef"), pa.large_string())}),
        "dictionary": pa.table({"v": range(6), "t": pa.array(list("abcdef")).dictionary_encode()}),
        "runs": pa.table(
            {
                "v": range(6),
                "t": pa.RunEndEncodedArray.from_arrays(pa.array(range(1, 7), pa.int32()),
                                                       pa.array(list("abcdef"))),
            }
        ),
    }  # fmt: skip


LAYOUTS = odd_layouts()


@pytest.mark.parametrize("frame", LAYOUTS.values(), ids=list(LAYOUTS))
def test_43_rows_of_every_layout_are_the_same_rows_and_stay_untouched(database, io_manager, frame):
    before = frame.copy() if isinstance(frame, pd.DataFrame) else frame

    store(io_manager, frame)

    assert rows(database) == [(number, "abcdef"[number]) for number in range(6)]
    assert frame.equals(before)


@pytest.mark.parametrize("frame", frames({"t": ["b"], "k": [2]}), ids=type)
def test_44_columns_are_matched_by_name(database, io_manager, frame):
    store(io_manager, pd.DataFrame({"k": [1], "t": ["a"]}))

    store(io_manager, frame)

    assert rows(database) == [(2, "b")]


@pytest.mark.parametrize("frame", frames({"k": [2], "new": ["b"]}), ids=type)
def test_45_a_column_more_is_added_and_one_less_is_null_unless_strict(database, io_manager, frame):
    store(io_manager, pd.DataFrame({"k": [1], "old": ["a"]}))

    with pytest.raises(SchemaConflict, match="'strict'"):
        store(io_manager, frame, schema_evolution="strict")
    store(io_manager, frame)

    assert rows(database) == [(2, None, "b")]


def test_46_attributes_and_flags_make_no_difference_and_sparse_is_densified(database, io_manager):
    class Sales(pd.DataFrame):
        @property
        def _constructor(self):
            return Sales

    frame = Sales({"v": pd.arrays.SparseArray([0, 0, 7]), "w": [decimal.Decimal(1), None, None]})
    frame.attrs["unit"] = object()
    frame = frame.set_flags(allows_duplicate_labels=False)

    store(io_manager, frame)

    assert column_types(database) == {"v": "bigint", "w": "numeric"}
    assert sorted(row[0] for row in rows(database)) == [0, 0, 7]
