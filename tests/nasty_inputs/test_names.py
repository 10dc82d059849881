"""The nasty inputs 1 to 32: names. Each way a name comes in has its test in
tests/test_names_acceptance.py; here each name is a column, a table and a schema."""

from __future__ import annotations

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from dagster_tools.errors import ConfigurationError, DagsterToolsError
from dagster_tools.frames import IndexDropped, to_arrow
from tests.pipelines import fingerprint, load, manager_for, materialize, query, rows, store

LONGEST = "x" * 63
DUCKS = "🦆" * 63

KEPT = {
    9: ['a"b', '"'],
    10: ["a; drop table x;--", "a') ; --"],
    11: ["a%b", "%s", "%(x)s"],
    12: [":x", "a:b"],
    13: ["{x}", "{}", "[0]", "a.b", "a\\b"],
    14: ["a\nb", "\t", "\r", " lead", "trail "],
    15: ["A", "a", "Id", "id"],
    16: ["select", "user", "order", "group", "table", "end", "limit", "default"],
    21: ["שלום", "a\u202eb", "a\u200bb"],
    22: ["é", "e\u0301"],
}
REFUSED = {
    1: ["x" * 64],
    3: [DUCKS],
    4: ["a" * 62 + "é"],
    6: [""],
    7: ["a\0b"],
    8: ["\ud800"],
}
OF_A_COLUMN_ALONE = {
    17: ["ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"],
    18: ["materialization_id"],
}
LABELS = [0, None, 2.5, ("a", "b"), pd.Timestamp("2024-01-01")]
ROWS = {*KEPT, *REFUSED, *OF_A_COLUMN_ALONE}
"""What of the catalogue the tables here hold; the other tests bear the number in their names."""


@pytest.fixture
def database(cleaned_database):
    return cleaned_database


@pytest.fixture
def io_manager(database):
    return manager_for(database)


def frame_of(*labels: object) -> pd.DataFrame:
    frame = pd.DataFrame([range(len(labels))])
    frame.columns = pd.Index(list(labels), dtype=object)
    return frame


def refusal(database, io_manager, frame, error=ConfigurationError, **metadata) -> str:
    before = fingerprint(database)
    with pytest.raises(error) as refused:
        store(io_manager, frame, **metadata)
    assert fingerprint(database) == before
    return str(refused.value)


@pytest.mark.parametrize(("row", "names"), KEPT.items(), ids=map(str, KEPT))
def test_names_that_postgresql_keeps_come_back_as_they_are(database, io_manager, row, names):
    store(io_manager, frame_of(*names))
    for name in names:
        store(io_manager, pa.table({"n": [1]}), key=["k", name], schema="in " + name, table=name)

    loaded = load(io_manager)

    assert list(loaded.columns) == names
    assert loaded.iloc[0].tolist() == list(range(len(names)))
    tables = query(
        database,
        "SELECT table_schema, table_name FROM information_schema.tables "
        "WHERE table_schema LIKE 'in %'",
    )
    assert sorted(tables) == sorted(("in " + name, name) for name in names)


@pytest.mark.parametrize(("row", "names"), REFUSED.items(), ids=map(str, REFUSED))
def test_names_that_postgresql_would_change_are_refused(database, io_manager, row, names):
    for name in names:
        assert "column" in refusal(database, io_manager, frame_of("n", name))
        for where in ("schema", "table"):
            assert where in refusal(database, io_manager, pa.table({"n": [1]}), **{where: name})


@pytest.mark.parametrize(
    ("row", "names"), OF_A_COLUMN_ALONE.items(), ids=map(str, OF_A_COLUMN_ALONE)
)
def test_names_that_are_the_servers_or_ours_are_refused_for_columns(
    database, io_manager, row, names
):
    for name in names:
        assert repr(name) in refusal(database, io_manager, frame_of("n", name))
    store(io_manager, frame_of("oid", *(name.upper() for name in names)))
    store(io_manager, pa.table({"n": [1]}), table=names[0])


def test_02_two_long_names_that_begin_alike_are_refused_and_not_cut(database, io_manager):
    one, other = "x" * 69 + "1", "x" * 69 + "2"

    assert one in refusal(database, io_manager, frame_of(one, other))


def test_05_names_derived_from_the_longest_do_not_collide(database, io_manager):
    columns = {"a" * 63: ("int", "unique", "index"), "a" * 62 + "b": ("int", "unique", "index")}

    for key in (LONGEST, "x" * 62 + "y"):
        store(io_manager, frame_of(*columns), key=key, columns=columns, primary_key=list(columns))

    [(count, longest)] = query(
        database,
        "SELECT count(DISTINCT indexrelid), max(length(relname)) FROM pg_index "
        "JOIN pg_class ON pg_class.oid = indexrelid WHERE indrelid IN "
        "(SELECT oid FROM pg_class WHERE relname LIKE 'xxx%' AND relkind = 'r')",
    )
    assert (count, longest) == (2 * 5, 63)


def test_19_schemas_of_the_servers_are_refused_and_tables_called_so_are_not(database, io_manager):
    assert "pg_x" in refusal(database, io_manager, pa.table({"n": [1]}), schema="pg_x")
    store(io_manager, pa.table({"n": [1]}), table="pg_foo")
    assert rows(database, "public.pg_foo") == [(1,)]


def test_20_keys_of_assets_may_hold_dots_and_slashes_but_no_table_of_64_bytes(database, io_manager):
    @dg.asset(key=dg.AssetKey(["s", "a.b"]))
    def dotted():
        return pa.table({"n": [1]})

    materialize(dotted, io_manager)

    assert rows(database, "s.a.b") == [(1,)]
    assert "64 bytes" in refusal(database, io_manager, pa.table({"n": [1]}), key="x" * 64)


@pytest.mark.parametrize("label", LABELS, ids=str)
def test_23_labels_that_are_no_text_are_refused(database, io_manager, label):
    message = refusal(database, io_manager, frame_of("n", label))

    assert repr(label) in message
    assert type(label).__name__ in message


def test_24_two_columns_of_one_name_are_refused(database, io_manager):
    assert "'a'" in refusal(database, io_manager, frame_of("a", "a"))


def test_25_labels_that_would_be_one_name_are_refused_with_both(database, io_manager):
    message = refusal(database, io_manager, frame_of(1, "1"))

    assert "column 1 " in message
    assert "column '1'" in message


def test_26_an_index_is_written_by_its_name_and_dropped_without_one(database, io_manager):
    frame = pd.DataFrame({"v": [1]})
    named = frame.set_index(pd.MultiIndex.from_tuples([("x", 2)], names=["k", "l"]))

    store(io_manager, frame, key="range")
    store(io_manager, named, key="levels")

    assert rows(database, "public.range") == [(1,)]
    assert rows(database, "public.levels") == [("x", 2, 1)]
    with pytest.warns(IndexDropped):
        table = to_arrow(frame.set_index(pd.Index(["x"])))
    assert table.column_names == ["v"]


def test_27_rows_without_a_column_are_refused_and_no_rows_are_an_empty_frame(database, io_manager):
    store(io_manager, pd.DataFrame({"v": [1]}))

    assert "3 rows and no columns" in refusal(
        database, io_manager, pd.DataFrame(index=range(3)), table="numbers"
    )
    store(io_manager, pd.DataFrame())
    assert rows(database) == []


def test_28_more_columns_than_a_table_has_are_refused_with_their_number(database, io_manager):
    frame = pd.DataFrame(np.zeros((1, 1601)), columns=[f"c{n}" for n in range(1601)])

    assert "1601" in refusal(database, io_manager, frame)


def test_29_a_row_that_fits_no_page_is_refused_with_its_size(database, io_manager):
    frame = pd.DataFrame(np.zeros((1, 1500)), columns=[f"c{n}" for n in range(1500)])

    with pytest.raises(DagsterToolsError, match="row is too big: size 12"):
        store(io_manager, frame)

    assert query(database, "SELECT to_regclass('numbers')") == [(None,)]


def test_30_a_table_that_had_too_many_columns_is_an_error_that_says_so(database, io_manager):
    added = ", ".join(f"ADD COLUMN c{n} integer" for n in range(1590))
    dropped = ", ".join(f"DROP COLUMN c{n}" for n in range(1590))
    store(io_manager, pd.DataFrame({"v": [1]}))
    with database.connect() as connection:
        connection.execute(f"ALTER TABLE numbers {added}")
        connection.execute(f"ALTER TABLE numbers {dropped}")
    frame = pd.DataFrame(np.zeros((1, 20)), columns=[f"n{n}" for n in range(20)])

    with pytest.raises(DagsterToolsError, match=r"1600 columns.*dropped"):
        store(io_manager, frame)

    assert rows(database)[0][0] == 1


def test_31_a_key_of_33_columns_is_refused(database, io_manager):
    names = [f"c{n}" for n in range(33)]

    message = refusal(database, io_manager, frame_of(*names), DagsterToolsError, primary_key=names)

    assert "32" in message


@pytest.mark.parametrize("name", ['ro"le', "Role", "nobody here"])
def test_32_a_role_is_meant_as_it_is_written_and_must_exist(database, io_manager, role, name):
    assert name in refusal(database, io_manager, pa.table({"n": [1]}), users=name)

    store(io_manager, pa.table({"n": [1]}), users=role(name, on=database).name)

    granted = query(database, "SELECT has_table_privilege(%s, 'numbers', 'SELECT')", name)
    assert granted == [(True,)]
