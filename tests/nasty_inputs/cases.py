"""What a case of one column is, and how it is tried in every library that can express it.

A success is told by an oracle that has no part in the writing: the server's own text of each
value. What is read is then right if, written again, it has the same text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from dagster_tools.errors import DagsterToolsError
from tests.fix_servers import Database
from tests.pipelines import column_types, load, manager_for, query, store

Text = list[str | None]


@dataclass(frozen=True)
class Case:
    """One column `v`, the same in each library.

    Args:
        row: The number of the nasty input in the catalogue.
        column: The type that the column becomes.
        text: What the server says its values are.
        error, match: What is raised instead, and what the message says.
        at: The row that the message names.
        pandas, polars, arrow: How each library is told the values: the dtype or type, ... where
            it finds it by itself, None where it cannot express them.
        declared: The type that the asset declares.
        reread: Libraries' classes as which what was stored may be loaded and stored again.
        load_error: What loading says, where no library holds the value.
    """

    row: int
    what: str
    values: Any
    column: str = ""
    text: Text = field(default_factory=list)
    error: type[DagsterToolsError] | None = None
    match: str = ""
    at: int | None = None
    pandas: Any = ...
    polars: Any = ...
    arrow: Any = ...
    declared: str | None = None
    reread: Sequence[Any] = (pd.DataFrame, pa.Table, pl.DataFrame)
    load_error: str | None = None

    def frame(self, library: str) -> Any:
        """Return the frame of a library that can express the values."""
        makers: dict[str, Callable[[Any, Any], Any]] = {
            "pandas": pandas_frame,
            "polars": polars_frame,
            "arrow": arrow_table,
        }
        return makers[library](self.values, getattr(self, library))


def pandas_frame(values: Sequence[Any], dtype: Any) -> pd.DataFrame:
    return pd.DataFrame({"v": pd.Series(values, dtype=None if dtype is ... else dtype)})


def polars_frame(values: Sequence[Any], dtype: Any) -> pl.DataFrame:
    series = pl.Series("v", values) if dtype is ... else pl.Series("v", values, dtype, strict=True)
    return pl.DataFrame([series])


def arrow_table(values: Sequence[Any], type_: Any) -> pa.Table:
    return pa.table({"v": pa.array(values) if type_ is ... else pa.array(values, type_)})


def each_library(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """Try every case in every library; the id begins with the case's number."""
    return pytest.mark.parametrize(
        ("case", "library"),
        [
            pytest.param(case, library, id=f"{case.row} {case.what} {library}")
            for case in cases
            for library in ("pandas", "polars", "arrow")
            if getattr(case, library) is not None
        ],
    )


def check(case: Case, library: str, database: Database, table: str) -> None:
    """Store the case in a new table, and see that what it says is what happens."""
    io_manager = manager_for(database)
    frame = case.frame(library)
    columns = {} if case.declared is None else {"columns": {"v": case.declared}}
    if case.error is not None:
        with pytest.raises(case.error, match=case.match) as caught:
            store(io_manager, frame, key=table, **columns)
        assert "column 'v'" in str(caught.value)
        assert getattr(caught.value, "row", None) == case.at
        assert query(database, "SELECT to_regclass(%s)", table) == [(None,)]
        return

    store(io_manager, frame, key=table, **columns)

    assert column_types(database, f"public.{table}") == {"v": case.column}
    assert texts(database, table) == case.text
    class_ = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "arrow": pa.Table}[library]
    if case.load_error is not None:
        with pytest.raises(DagsterToolsError, match=case.load_error):
            load(io_manager, class_, key=table)
    elif class_ in case.reread:
        store(io_manager, load(io_manager, class_, key=table), key=f"{table}_again")
        assert texts(database, f"{table}_again") == case.text


def texts(database: Database, table: str) -> Text:
    """Return the values as the server writes them, in the order in which they were stored."""
    with database.connect() as connection:
        connection.execute("SET TIME ZONE 'UTC'")
        found = connection.execute(f"SELECT v::text FROM {table} ORDER BY ctid").fetchall()
    return [text for (text,) in found]
