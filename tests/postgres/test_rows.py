"""How the rows of a frame are handed on: all of them, and few enough at a time."""

from __future__ import annotations

import pyarrow as pa
import pytest

from dagster_tools.postgres.rows import open_source


@pytest.mark.parametrize(
    "type_",
    [
        pa.string(),
        pa.string_view(),
        pa.binary_view(),
        pa.list_(pa.string_view()),
        pa.list_view(pa.string()),
    ],
    ids=str,
)
def test_rows_of_every_layout_are_cut_into_chunks_of_about_the_size_asked_for(type_):
    text = "long " * 200
    value = [text] if "list" in str(type_) else text
    table = pa.table({"a": pa.array([value] * 100, type_)})

    batches = list(open_source(table, 10_000, by_partition=False).batches())

    assert pa.Table.from_batches(batches).equals(table)
    assert 2 <= max(batch.num_rows for batch in batches) <= 10
