from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from dagster_tools.errors import BadValue, SchemaConflict, UnsupportedFrame
from dagster_tools.frames import IndexDropped, Stream, is_frame, to_arrow


class SourceError(Exception):
    """What a user's own iterator raises."""


def values(stream: Any) -> list[Any]:
    """Return the rows of the column `a`, whatever type each batch has it in."""
    return [value for batch in stream for value in batch["a"].to_pylist()]


def test_frames_of_every_library_make_one_stream():
    frames = [pd.DataFrame({"a": [1]}), pl.DataFrame({"a": [2]}), pa.table({"a": [3]})]
    frames += [pl.LazyFrame({"a": [4]}), pa.record_batch({"a": [5]}), pa.table({"a": [6]})]

    stream = to_arrow(iter([*frames, pa.table({"a": [7]}).to_reader()]))

    assert isinstance(stream, Stream)
    assert values(stream) == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("make", [list, tuple, iter], ids=["list", "tuple", "iterator"])
def test_a_list_or_tuple_of_frames_is_one_frame_after_the_other(make):
    frames = make([pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [2]})])

    assert is_frame(frames)
    assert values(to_arrow(frames)) == [1, 2]


def test_a_csv_file_in_chunks_is_an_iterator_of_frames():
    with pd.read_csv(io.StringIO("a\n1\n2\n3"), chunksize=2) as chunks:
        assert values(to_arrow(chunks)) == [1, 2, 3]


def test_only_what_the_schema_needs_is_read_beforehand():
    read = []

    def frames() -> Iterator[pd.DataFrame]:
        for number in range(3):
            read.append(number)
            yield pd.DataFrame({"a": [number]})

    to_arrow(frames())

    assert read == [0]


def test_frames_without_rows_have_no_say_about_columns():
    nothing = pd.DataFrame({"b": pd.Series(dtype="float64")})

    stream = to_arrow([pd.DataFrame(), nothing, pd.DataFrame({"a": [1]}), nothing])

    assert stream.schema == pa.schema({"a": pa.int64()})
    assert values(stream) == [1]


def test_nothing_but_frames_without_rows_have_the_columns_of_the_first():
    stream = to_arrow([pd.DataFrame(), pa.table({"b": pa.array([], pa.date32())})])

    assert stream.schema == pa.schema({"b": pa.date32()})
    assert list(stream) == []


def test_no_frames_at_all_are_a_stream_without_columns():
    assert to_arrow(iter(())).schema.names == []


def test_columns_are_matched_by_name():
    frames = [pa.table({"a": [1], "b": ["x"]}), pa.table({"b": ["y"], "a": [2]})]

    batches = list(to_arrow(frames))

    assert [batch.schema.names for batch in batches if batch.num_rows] == [["a", "b"], ["a", "b"]]
    assert [batch["a"].to_pylist() for batch in batches if batch.num_rows] == [[1], [2]]


def test_a_column_that_a_later_frame_lacks_is_null_there():
    assert values(to_arrow([pa.table({"b": [1], "a": [1]}), pa.table({"b": [2]})])) == [1, None]


def test_a_column_that_the_first_frame_lacks_is_refused_by_name():
    stream = to_arrow([pa.table({"a": [1]}), pa.table({"a": [2], "late": [3]})])

    with pytest.raises(SchemaConflict, match=r"has columns \['late'\].*that one has \['a'\]"):
        list(stream)


def test_each_frame_keeps_its_own_types():
    stream = to_arrow([pd.DataFrame({"a": [1, 2]}), pd.DataFrame({"a": [None, 0.5]})])

    types = [batch.schema.field("a").type for batch in stream if batch.num_rows]
    assert types == [pa.int64(), pa.float64()]


def test_what_earlier_frames_were_is_a_hint_to_the_later_ones():
    stream = to_arrow([pd.DataFrame({"a": [{"k": 1}]}), pd.DataFrame({"a": [[[1]]]})])

    assert values(stream) == ['{"k":1}', "[[1]]"]


def test_a_hint_from_outside_goes_before_what_earlier_frames_were():
    stream = to_arrow([pd.DataFrame({"a": ["1"]}), pd.DataFrame({"a": ["2"]})], {"a": pa.json_()})

    assert {str(batch.schema.field("a").type) for batch in stream} == {"extension<arrow.json>"}


def test_a_row_that_is_refused_is_counted_from_the_first_frame_on():
    stream = to_arrow([pd.DataFrame({"a": [b"x", b"y"]}), pd.DataFrame({"a": [b"z", {1}]})])

    with pytest.raises(BadValue, match=r"column 'a', row 3: holds a set"):
        list(stream)


def test_what_is_no_frame_is_refused_with_its_place():
    stream = to_arrow(iter([pd.DataFrame({"a": [1]}), "text"]))

    with pytest.raises(UnsupportedFrame, match="frame 1 of the iterator: cannot store a str"):
        list(stream)


def test_a_list_of_other_things_is_no_list_of_frames():
    assert not is_frame([pd.DataFrame({"a": [1]}), 1])


def test_an_error_of_the_iterator_comes_through_as_it_is():
    def frames() -> Iterator[pd.DataFrame]:
        yield pd.DataFrame({"a": [1]})
        raise SourceError("page 7 timed out")

    with pytest.raises(SourceError, match=r"^page 7 timed out$") as raised:
        list(to_arrow(frames()))

    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None


def test_an_unnamed_index_of_any_of_the_frames_is_warned_of():
    stream = to_arrow([pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [2]}, index=[7])])

    with pytest.warns(IndexDropped):
        list(stream)
