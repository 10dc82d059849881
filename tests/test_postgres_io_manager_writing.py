"""What an asset returns becomes the rows of its table: where, when, and when not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from dagster_tools.errors import (
    BadValue,
    ConfigurationError,
    MaterializationNotFound,
    UnsupportedFrame,
)
from dagster_tools.postgres_io_manager import PostgresIOManager
from tests.pipelines import (
    arrow_table,
    column_types,
    fingerprint,
    load,
    logged,
    manager_for,
    materialize,
    query,
    rows,
    store,
)

# Dagster is about to refuse tuples as values of metadata; the guide has them, and they work.
TUPLES = pytest.mark.filterwarnings("ignore:Support for arbitrary metadata values is deprecated")


@pytest.fixture
def database(cleaned_database):
    return cleaned_database


class SalesFrame(pd.DataFrame):
    """A user's own DataFrame."""

    @property
    def _constructor(self):
        return SalesFrame


# --- the rows -------------------------------------------------------------------------------


def test_schema_and_table_are_created_when_missing(database, io_manager, frame):
    @dg.asset(key_prefix="sales")
    def orders():
        return frame({"id": [1, 2], "name": ["a", None]})

    materialize(orders, io_manager)

    assert rows(database, "sales.orders") == [(1, "a"), (2, None)]
    assert column_types(database, "sales.orders") == {"id": "bigint", "name": "text"}


def test_a_second_write_replaces_the_rows_and_keeps_the_table(database, io_manager, frame):
    store(io_manager, frame({"n": [1, 2, 3]}))
    table = query(database, "SELECT 'numbers'::regclass::oid")

    store(io_manager, frame({"n": [3, 4]}))

    assert rows(database) == [(3,), (4,)]
    assert query(database, "SELECT 'numbers'::regclass::oid") == table


def test_a_replace_touches_only_the_rows_of_its_own_asset(database, io_manager, frame):
    with database.connect() as connection:
        connection.execute("CREATE TABLE shared AS SELECT 0 AS n")
    store(io_manager, frame({"n": [1]}), key="one", schema="public", table="shared")
    store(io_manager, frame({"n": [2]}), key="two", schema="public", table="shared")

    store(io_manager, frame({"n": [10]}), key="one", schema="public", table="shared")

    assert rows(database, "public.shared") == [(0,), (2,), (10,)]
    assert load(io_manager, key="two", upstream={"table": "shared"})["n"].tolist() == [2]


def test_old_rows_new_rows_and_tracking_change_in_one_transaction(database, io_manager):
    store(io_manager, arrow_table({"n": [1]}))

    store(io_manager, arrow_table({"n": [2, 3]}))

    transactions = query(
        database,
        """
        SELECT xmin::text FROM numbers
        UNION
        SELECT xmin::text FROM meta.materializations WHERE rows_inserted = 2
        """,
    )
    assert len(transactions) == 1


def test_a_write_that_fails_leaves_everything_as_it_was(database, io_manager, frame):
    columns = {"n": ("int", "unique")}
    store(io_manager, frame({"n": [1, 2]}), columns=columns)
    before = fingerprint(database)

    with pytest.raises(BadValue):
        store(io_manager, frame({"n": [3, 3]}), columns=columns)

    assert fingerprint(database) == before


def test_every_row_knows_which_run_wrote_it(database, io_manager):
    @dg.asset(key_prefix="sales")
    def orders():
        return pd.DataFrame({"id": [1, 2]})

    first = materialize(orders, io_manager)
    second = materialize(orders, io_manager)

    assert query(
        database,
        """
        SELECT o.id, a.asset_key, a.partition_key, a.schema, a."table", m.run_id,
               m.rows_inserted, m.rows_deleted, m.timestamp BETWEEN now() - '1 hour'::interval
                                                                AND now()
        FROM sales.orders AS o
        JOIN meta.materializations AS m ON m.id = o.materialization_id
        JOIN meta.assets AS a ON a.id = m.asset_id
        ORDER BY o.id
        """,
    ) == [(n, "sales/orders", None, "sales", "orders", second.run_id, 2, 2, True) for n in (1, 2)]
    assert query(database, "SELECT run_id FROM meta.materializations ORDER BY id") == [
        (first.run_id,),
        (second.run_id,),
    ]


def test_rows_that_nobody_here_wrote_stay_and_belong_to_nobody(database, io_manager, frame):
    with database.connect() as connection:
        connection.execute("CREATE TABLE numbers AS SELECT 0 AS n")
        file_before = query(database, "SELECT pg_relation_filenode('numbers')")

    store(io_manager, frame({"n": [1]}))

    assert query(database, "SELECT n, materialization_id IS NULL FROM numbers ORDER BY n") == [
        (0, True),
        (1, False),
    ]
    assert query(database, "SELECT pg_relation_filenode('numbers')") == file_before  # no rewrite
    assert load(io_manager)["n"].tolist() == [1]


def test_rows_inserted_by_hand_later_belong_to_nobody(database, io_manager):
    store(io_manager, arrow_table({"n": [1]}))
    with database.connect() as connection:
        connection.execute("INSERT INTO numbers (n) VALUES (0)")

    store(io_manager, arrow_table({"n": [2]}))

    assert rows(database) == [(0,), (2,)]


@pytest.mark.parametrize("size", ["100B", "1KiB", 64, "0.0001 MB", "300MB"])
def test_chunk_size_changes_how_a_frame_is_sent_and_not_what_arrives(
    database, io_manager, frame, size
):
    names = [None if n % 7 == 0 else f"row {n}\t\\N \n" for n in range(300)]

    store(io_manager, frame({"n": list(range(300)), "name": names}), chunk_size=size)

    assert rows(database) == list(zip(range(300), names, strict=True))


def test_chunk_size_bounds_what_is_encoded_at_a_time(io_manager, monkeypatch):
    sent = []
    monkeypatch.setattr(
        "dagster_tools.postgres.progress.Progress.__call__",
        lambda self, rows, size: sent.append(rows),
    )

    store(io_manager, arrow_table({"n": list(range(1000))}), chunk_size="800B")

    assert sum(sent) == 1000
    assert max(sent) == 100


def test_the_frame_that_was_returned_is_not_modified(io_manager):
    returned = pd.DataFrame(
        {"n": [3, 1], "s": ["a", None], "o": [{"k": 1}, None], "t": pd.to_datetime(["2024"] * 2)},
        index=pd.Index(["x", "y"], name="key"),
    )
    before = returned.copy(deep=True)

    store(io_manager, returned, primary_key="key")

    pd.testing.assert_frame_equal(returned, before)
    assert returned.index.name == "key"


def test_a_subclass_of_dataframe_is_stored_as_one(database, io_manager):
    store(io_manager, SalesFrame({"n": [1]}))

    assert rows(database) == [(1,)]


def test_a_record_batch_and_a_foreign_arrow_object_are_stored(database, io_manager):
    class Foreign:
        def __arrow_c_stream__(self, requested_schema=None):
            return pa.table({"n": [7]}).__arrow_c_stream__(requested_schema)

    store(io_manager, pa.record_batch({"n": [1]}), key="batch")
    store(io_manager, Foreign(), key="foreign")

    assert rows(database, "public.batch") == [(1,)]
    assert rows(database, "public.foreign") == [(7,)]


# --- where ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "config", "prefix", "expected"),
    [
        ("from metadata", "from config", ["a", "from_prefix"], "from metadata"),
        (None, "from config", ["a", "from_prefix"], "from config"),
        (None, None, ["a", "from_prefix"], "from_prefix"),
        (None, None, [], "public"),
        ("from metadata", None, [], "from metadata"),
    ],
)
def test_the_schema_is_metadatas_else_the_managers_else_the_prefixs_else_public(
    database, metadata, config, prefix, expected
):
    @dg.asset(key_prefix=prefix, metadata={"schema": metadata} if metadata else {})
    def orders():
        return pd.DataFrame({"n": [1]})

    @dg.asset(ins={"orders": dg.AssetIn(key=[*prefix, "orders"])})
    def total(orders: pd.DataFrame):
        return orders * 2

    materialize([orders, total], manager_for(database, schema=config))

    assert rows(database, f"{expected}.orders") == [(1,)]
    assert rows(database, f"{config or 'public'}.total") == [(2,)]


def test_the_table_is_metadatas_else_the_last_part_of_the_key(database, io_manager):
    store(io_manager, arrow_table({"n": [1]}), key=["a", "b", "orders"])
    store(io_manager, arrow_table({"n": [2]}), key=["a", "b", "sums"], table="totals", schema="c")

    assert rows(database, "b.orders") == [(1,)]
    assert rows(database, "c.totals") == [(2,)]


def test_an_ops_table_is_its_outs_metadata_else_the_outputs_name(database, io_manager):
    @dg.op(out=dg.Out(metadata={"schema": "lab", "table": "samples"}))
    def sampled():
        return pd.DataFrame({"n": [1]})

    @dg.op(out={"low": dg.Out(), "high": dg.Out(metadata={"schema": "lab"})})
    def split(samples: pd.DataFrame):
        return samples - 1, samples + 1

    @dg.job(resource_defs={"io_manager": io_manager})
    def process():
        split(sampled())

    process.execute_in_process()

    assert rows(database, "lab.samples") == [(1,)]
    assert rows(database, "public.low") == [(0,)]
    assert rows(database, "lab.high") == [(2,)]


def test_what_the_run_says_wins_over_the_definition(database, io_manager):
    @dg.asset(metadata={"schema": "defined", "table": "defined"})
    def by_output():
        return dg.Output(pd.DataFrame({"n": [1]}), metadata={"schema": "said"})

    @dg.asset(metadata={"schema": "defined", "columns": {"n": "int"}})
    def by_context(context):
        context.add_output_metadata({"table": "said_too", "columns": {"n": "float"}})
        return pd.DataFrame({"n": [2]})

    materialize([by_output, by_context], io_manager)

    assert rows(database, "said.defined") == [(1,)]
    assert rows(database, "defined.said_too") == [(2,)]
    assert column_types(database, "defined.said_too") == {"n": "double precision"}


def test_options_may_be_metadata_values(database, io_manager):
    @dg.asset(
        metadata={
            "schema": dg.MetadataValue.text("wrapped"),
            "primary_key": dg.MetadataValue.json(["a", "b"]),
            "columns": dg.MetadataValue.json({"a": ["int", "not null"], "b": "int"}),
            "chunk_size": dg.MetadataValue.text("1KB"),
            "schema_evolution": dg.MetadataValue.text("strict"),
        }
    )
    def numbers():
        return dg.Output(
            pd.DataFrame({"a": [1], "b": [2]}), metadata={"table": dg.MetadataValue.text("kept")}
        )

    materialize(numbers, io_manager)

    assert rows(database, "wrapped.kept") == [(1, 2)]
    assert _primary_key(database, "wrapped.kept") == ["a", "b"]


@TUPLES
@pytest.mark.parametrize("key", ["a", ["a"], ("a",), ["b", "a"], ("b", "a")])
def test_a_primary_key_is_a_name_or_a_list_or_a_tuple_of_names(database, io_manager, frame, key):
    @dg.asset(metadata={"primary_key": key})
    def numbers():
        return frame({"a": [1], "b": [2]})

    materialize(numbers, io_manager)

    assert _primary_key(database) == ([key] if isinstance(key, str) else list(key))


def _primary_key(database, table="public.numbers"):
    return [
        name
        for (name,) in query(
            database,
            """
            SELECT a.attname
            FROM pg_index AS i
            JOIN unnest(i.indkey) WITH ORDINALITY AS k (attnum, position) ON true
            JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
            WHERE i.indisprimary AND i.indrelid = %s::regclass
            ORDER BY k.position
            """,
            table,
        )
    ]


# --- every way to return --------------------------------------------------------------------


def test_ops_that_share_the_table_result_read_their_own_rows(database, io_manager):
    @dg.op
    def one():
        return pd.DataFrame({"n": [1]})

    @dg.op
    def two():
        return pd.DataFrame({"n": [2, 3]})

    seen = {}

    @dg.op(out=dg.Out(dg.Nothing))
    def both(first: pd.DataFrame, second: pd.DataFrame):
        seen["first"], seen["second"] = first["n"].tolist(), second["n"].tolist()

    @dg.job(resource_defs={"io_manager": io_manager})
    def process():
        both(one(), two())

    process.execute_in_process()
    process.execute_in_process()

    assert seen == {"first": [1], "second": [2, 3]}
    assert rows(database, "public.result") == [(1,), (2,), (3,)]


def test_each_of_an_ops_dynamic_outputs_keeps_its_own_rows(database, io_manager):
    @dg.op(out=dg.DynamicOut())
    def fanned_out():
        for n in (1, 2, 3):
            yield dg.DynamicOutput(pd.DataFrame({"n": [n]}), mapping_key=f"part_{n}")

    @dg.op
    def squared(part: pd.DataFrame):
        return part**2

    seen = []

    @dg.op(out=dg.Out(dg.Nothing))
    def collected(parts: list[pd.DataFrame]):
        seen.extend(int(part["n"].iloc[0]) for part in parts)

    @dg.job(resource_defs={"io_manager": io_manager})
    def process():
        collected(fanned_out().map(squared).collect())

    process.execute_in_process()

    assert sorted(seen) == [1, 4, 9]
    assert rows(database, "public.result") == [(1,), (1,), (2,), (3,), (4,), (9,)]


def test_a_graph_asset_stores_its_last_op_under_its_own_key(database, io_manager):
    @dg.op
    def raw():
        return pd.DataFrame({"n": [1, 2]})

    @dg.op
    def doubled(frame: pd.DataFrame):
        return frame * 2

    @dg.graph_asset(metadata={"schema": "lab"})
    def refined():
        return doubled(raw())

    materialize(refined, io_manager)

    assert rows(database, "lab.refined") == [(2,), (4,)]
    assert rows(database, "public.result") == [(1,), (2,)]


def test_each_output_of_a_multi_asset_is_a_table_with_options_of_its_own(database, io_manager):
    @dg.multi_asset(
        outs={
            "samples": dg.AssetOut(metadata={"schema": "lab", "primary_key": "id"}),
            "errors": dg.AssetOut(key_prefix="ops"),
        }
    )
    def measured():
        return pd.DataFrame({"id": [1]}), pd.DataFrame({"text": ["none"]})

    materialize(measured, io_manager)

    assert rows(database, "lab.samples") == [(1,)]
    assert _primary_key(database, "lab.samples") == ["id"]
    assert rows(database, "ops.errors") == [("none",)]


def test_of_a_multi_assets_outputs_only_the_selected_are_written(database, io_manager):
    @dg.multi_asset(
        outs={name: dg.AssetOut(is_required=False) for name in ("left", "right")}, can_subset=True
    )
    def sides(context):
        for name in sorted(context.op_execution_context.selected_output_names):
            yield dg.Output(pd.DataFrame({"n": [len(name)]}), output_name=name)

    materialize(sides, io_manager, selection=["right"])

    assert rows(database, "public.right") == [(5,)]
    assert query(database, "SELECT to_regclass('\"left\"')") == [(None,)]


def test_async_assets_and_wrapped_outputs_are_stored_like_any_other(database, io_manager):
    @dg.asset
    async def awaited():
        return pd.DataFrame({"n": [1]})

    @dg.asset
    def wrapped() -> dg.Output[pd.DataFrame]:
        return dg.Output(pd.DataFrame({"n": [2]}), metadata={"source": "here"})

    @dg.asset
    def result():
        return dg.MaterializeResult(value=pd.DataFrame({"n": [3]}), metadata={"source": "there"})

    @dg.asset
    def yielded():
        yield dg.Output(pd.DataFrame({"n": [4]}))

    materialize([awaited, wrapped, result, yielded], io_manager)

    names = ("awaited", "wrapped", "result", "yielded")
    assert [rows(database, f"public.{name}") for name in names] == [[(1,)], [(2,)], [(3,)], [(4,)]]


def test_none_does_nothing(database, io_manager):
    store(io_manager, arrow_table({"n": [1]}), key="unannotated")
    before = fingerprint(database)

    @dg.asset
    def unannotated():
        return None

    @dg.asset
    def annotated() -> None:
        return None

    @dg.asset
    def result():
        return dg.MaterializeResult(metadata={"n": 1})

    materialize([unannotated, annotated, result], io_manager)

    assert fingerprint(database) == before


# --- nothing to write -----------------------------------------------------------------------


def test_an_empty_frame_warns_in_these_words_and_makes_no_table(database, io_manager, frame):
    @dg.asset
    def my_asset():
        return frame({"id": [], "name": []})

    result = materialize(my_asset, io_manager)

    assert logged(result, level="WARNING") == [
        "Empty DataFrame received for asset my_asset. The database table will not be created."
    ]
    assert query(database, "SELECT to_regclass('my_asset')") == [(None,)]
    assert query(database, "SELECT run_id, rows_inserted FROM meta.materializations") == [
        (result.run_id, 0)
    ]


def test_an_empty_frame_takes_the_assets_rows_out_of_an_existing_table(database, io_manager, frame):
    store(io_manager, arrow_table({"n": [1, 2]}), key="one", table="shared")
    store(io_manager, arrow_table({"n": [3]}), key="two", table="shared")

    store(io_manager, frame({"n": []}), key="one", table="shared")

    assert rows(database, "public.shared") == [(3,)]
    emptied = load(io_manager, key="one", upstream={"table": "shared"})
    assert (list(emptied.columns), len(emptied)) == (["n"], 0)
    assert emptied["n"].dtype == "int64"


def test_an_empty_frame_is_loaded_with_the_declared_columns_where_there_is_no_table(
    io_manager, frame
):
    columns = {"id": ("int", "not null"), "day": "date", "seen": "timestamptz"}
    store(io_manager, frame({"id": []}), columns=columns)

    loaded = load(io_manager, upstream={"columns": columns})
    as_arrow = load(io_manager, pa.Table, upstream={"columns": columns})

    assert list(loaded.columns) == ["id", "day", "seen"]
    assert len(loaded) == 0
    assert as_arrow.schema.types == [pa.int32(), pa.date32(), pa.timestamp("us", "UTC")]


@pytest.mark.parametrize(
    "nothing",
    [
        pd.DataFrame(),
        pa.table({}),
        pa.RecordBatchReader.from_batches(pa.schema([("n", pa.int64())]), []),
    ],
    ids=["no columns, pandas", "no columns, arrow", "no batches"],
)
def test_a_frame_without_anything_is_an_empty_frame(database, io_manager, nothing):
    store(io_manager, arrow_table({"n": [1]}))

    store(io_manager, nothing)

    assert rows(database) == []
    assert load(io_manager)["n"].tolist() == []


def test_an_empty_frame_after_which_rows_come_again_is_no_obstacle(database, io_manager, frame):
    for values in ([], [1, 2], [], [3]):
        store(io_manager, frame({"n": values}))

    assert rows(database) == [(3,)]


# --- streams --------------------------------------------------------------------------------


def _stream(*batches: Any, then: Exception | None = None) -> pa.RecordBatchReader:
    """A stream of these columns, read once, that fails at its end where `then` is given."""

    def produce() -> Iterator[pa.RecordBatch]:
        yield from made
        if then is not None:
            raise then

    made = [pa.record_batch(batch) for batch in batches]
    return pa.RecordBatchReader.from_batches(made[0].schema, produce())


class SourceFailedError(Exception):
    """What a user's own iterator raises."""


def test_an_error_in_a_streams_source_is_what_the_user_sees(database, io_manager):
    store(io_manager, arrow_table({"n": [1]}))
    before = fingerprint(database)

    @dg.asset
    def numbers():
        return _stream({"n": [2]}, {"n": [3]}, then=SourceFailedError("page 7 timed out"))

    result = materialize(numbers, io_manager, raise_on_error=False)

    error = result.failure_data_for_node("numbers").error
    causes = [error, *_causes(error)]
    assert any(
        cause.cls_name == "SourceFailedError" and "page 7 timed out" in cause.message
        for cause in causes
    )
    assert fingerprint(database) == before


def _causes(error):
    while error.cause is not None:
        error = error.cause
        yield error


def test_a_stream_that_fails_in_its_first_write_leaves_no_table(database, io_manager):
    with pytest.raises(SourceFailedError):
        store(io_manager, _stream({"n": [1]}, then=SourceFailedError()))

    assert query(database, "SELECT to_regclass('numbers')") == [(None,)]
    assert query(database, "SELECT count(*) FROM meta.materializations") == [(0,)]


def test_a_value_that_does_not_fit_is_found_wherever_in_a_stream_it_comes(database, io_manager):
    store(io_manager, arrow_table({"d": [None]}), columns={"d": "date"})
    before = fingerprint(database)
    stream = _stream({"d": ["2024-01-01", "2024-01-02"]}, {"d": ["2024-01-03", "soon"]})

    with pytest.raises(BadValue) as caught:
        store(io_manager, stream, columns={"d": "date"})

    assert (caught.value.column, caught.value.row) == ("d", 3)
    assert "soon" not in str(caught.value)
    assert fingerprint(database) == before


def test_an_array_too_big_for_memory_is_not_needed(io_manager):
    """What a stream has produced is not kept: few batches are alive at any time."""
    alive, most = set(), 0

    class Batch:
        def __init__(self, number: int) -> None:
            alive.add(number)
            self.values = np.full(50_000, number)
            self.number = number

        def __del__(self) -> None:
            alive.discard(self.number)

    def produce() -> Iterator[pa.RecordBatch]:
        nonlocal most
        for number in range(20):
            batch = Batch(number)
            most = max(most, len(alive))
            yield pa.record_batch({"n": pa.array(batch.values)})

    stream = pa.RecordBatchReader.from_batches(pa.schema([("n", pa.int64())]), produce())
    logged_metadata = store(io_manager, stream)

    assert logged_metadata["dagster/row_count"].value == 1_000_000
    assert most <= 3


# --- refused --------------------------------------------------------------------------------


def test_a_misspelled_option_is_warned_about_with_the_right_spelling(io_manager):
    @dg.asset(metadata={"primay_key": "n", "chunksize": "1KB", "owner": "me", "dagster/uri": "x"})
    def numbers():
        return pd.DataFrame({"n": [1]})

    result = materialize(numbers, io_manager)

    assert logged(result, level="WARNING") == [
        "Metadata 'primay_key' of numbers is ignored; is 'primary_key' meant?",
        "Metadata 'chunksize' of numbers is ignored; is 'chunk_size' meant?",
    ]


@pytest.mark.parametrize(
    ("key", "value", "legal"),
    [
        ("schema", 5, "name"),
        ("schema", "", "name"),
        ("schema", "pg_mine", "pg_"),
        ("schema", "x" * 64, "63"),
        ("table", ["a"], "name"),
        ("table", "", "name"),
        ("table", "x" * 64, "63"),
        ("primary_key", 3, "column name, or a list or tuple of them"),
        ("primary_key", [1], "column name, or a list or tuple of them"),
        ("primary_key", ["n", "n"], "each column once"),
        ("primary_key", "missing", "['n']"),
        ("incremental", "yes", "'true' or 'false'"),
        ("columns", ["n"], "dict of column name to type"),
        ("columns", {"n": 5}, "('int', 'not null')"),
        ("columns", {"n": ["int", "primary"]}, "'not null', 'unique', 'index'"),
        ("columns", {"n": []}, "('int', 'not null')"),
        ("columns", {"n": "int; drop table numbers"}, "PostgreSQL type"),
        ("columns", {"n": "nosuchtype"}, "no type"),
        ("columns", {"": "int"}, "empty"),
        ("columns", {"materialization_id": "int"}, "added on output"),
        ("chunk_size", "big", "'300MB'"),
        ("chunk_size", "300 parsecs", "MB"),
        ("chunk_size", 0, "'300MB'"),
        ("chunk_size", -1, "'300MB'"),
        ("chunk_size", True, "'300MB'"),
        ("schema_evolution", "never", "'evolve' or 'strict'"),
        ("schema_evolution", True, "'evolve' or 'strict'"),
    ],
)
def test_a_bad_value_is_refused_with_its_key_its_asset_and_what_is_legal(
    database, io_manager, key, value, legal
):
    store(io_manager, arrow_table({"n": [1]}))
    before = fingerprint(database)

    with pytest.raises(ConfigurationError) as caught:
        store(io_manager, arrow_table({"n": [2]}), **{key: value})

    message = str(caught.value)
    assert key in message
    assert "asset numbers" in message
    assert (repr(value) in message) or (str(value) in message) or key in {"columns", "primary_key"}
    assert legal in message
    assert fingerprint(database) == before


@pytest.mark.parametrize("setting", [{"schema": ""}, {"schema": "pg_x"}, {"tracking_schema": ""}])
def test_a_bad_schema_of_the_manager_is_refused_before_anything_is_written(database, setting):
    before = fingerprint(database)

    with pytest.raises(ConfigurationError, match="schema"):
        store(manager_for(database, **setting), arrow_table({"n": [1]}))

    assert fingerprint(database) == before


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        ([1, 2], "pandas.DataFrame(value)"),
        ((1, 2), "pandas.DataFrame(value)"),
        ("text", "pandas.DataFrame"),
        (5, "pandas.DataFrame"),
        (pd.Series([1], name="n"), "Series.to_frame(name)"),
        (np.zeros(3), "pandas.DataFrame"),
        (pa.array([1]), "pyarrow.Table"),
        (pd.DataFrame, "pandas.DataFrame"),
        (iter((1, 2)), "pandas.DataFrame"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_a_value_that_is_no_frame_is_refused_with_what_would_be(
    database, io_manager, value, remedy
):
    before = fingerprint(database)

    with pytest.raises(UnsupportedFrame) as caught:
        store(io_manager, value)

    assert "asset numbers" in str(caught.value)
    what = int if isinstance(value, Iterator) else type(value)
    assert what.__name__ in str(caught.value)
    assert remedy in str(caught.value)
    assert fingerprint(database) == before


def test_a_dict_of_frames_is_refused_where_there_are_no_partitions(database, io_manager):
    before = fingerprint(database)

    with pytest.raises(ConfigurationError, match=r"asset numbers.*partitions"):
        store(io_manager, {"a": pd.DataFrame({"n": [1]})})

    assert fingerprint(database) == before


def test_a_column_of_the_tracking_columns_name_is_refused(database, io_manager, frame):
    before = fingerprint(database)

    with pytest.raises(ConfigurationError, match=r"'materialization_id'.*Rename or drop"):
        store(io_manager, frame({"n": [1], "materialization_id": [1]}))

    assert fingerprint(database) == before


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("CREATE VIEW numbers AS SELECT 1 AS n", "a view"),
        ("CREATE MATERIALIZED VIEW numbers AS SELECT 1 AS n", "a materialized view"),
        ("CREATE SEQUENCE numbers", "a sequence"),
        ("CREATE TYPE numbers AS (n int)", "a composite type"),
    ],
)
@pytest.mark.parametrize("values", [[1], []], ids=["rows", "empty"])
def test_what_takes_no_rows_is_refused_as_a_target(database, io_manager, statement, kind, values):
    with database.connect() as connection:
        connection.execute(statement)
    before = fingerprint(database)

    with pytest.raises(ConfigurationError, match=f"public.numbers is {kind}.*metadata elsewhere"):
        store(io_manager, arrow_table({"n": pa.array(values, pa.int64())}))

    assert fingerprint(database) == before


@pytest.mark.parametrize("values", [[2], []], ids=["rows", "empty"])
def test_a_writer_under_row_level_security_is_refused_and_told_the_remedies(database, role, values):
    writer = role("writer")
    store(manager_for(database), arrow_table({"n": [1]}))
    with database.connect() as connection:
        connection.execute("GRANT ALL ON ALL TABLES IN SCHEMA public, meta TO writer")
        connection.execute("GRANT USAGE ON SCHEMA meta TO writer")
        connection.execute("ALTER TABLE numbers ENABLE ROW LEVEL SECURITY")
        connection.execute("CREATE POLICY few ON numbers USING (n > 1)")
    before = fingerprint(database)

    with pytest.raises(ConfigurationError, match=r"Row-level security.*owner.*BYPASSRLS"):
        store(
            manager_for(database.as_role(writer)),
            arrow_table({"n": pa.array(values, pa.int64())}),
        )

    assert fingerprint(database) == before


def test_the_owner_of_a_table_with_row_level_security_may_write(database, role):
    owner = role("owner")
    with database.connect() as connection:
        connection.execute("CREATE SCHEMA hers AUTHORIZATION owner")
    manager = manager_for(database.as_role(owner), schema="hers", tracking_schema="hers")
    store(manager, arrow_table({"n": [1]}))
    with database.connect() as connection:
        connection.execute("ALTER TABLE hers.numbers ENABLE ROW LEVEL SECURITY")
        connection.execute("CREATE POLICY few ON hers.numbers USING (n > 1)")

    store(manager, arrow_table({"n": [2]}))

    assert rows(database, "hers.numbers") == [(2,)]


def test_a_table_may_not_be_one_of_the_tracking_tables(database, io_manager):
    with pytest.raises(ConfigurationError, match="tracking"):
        store(io_manager, arrow_table({"n": [1]}), schema="meta", table="assets")


def test_an_asset_never_materialized_is_not_an_empty_frame(io_manager):
    with pytest.raises(MaterializationNotFound):
        load(io_manager)


def test_a_manager_is_a_dagster_io_manager():
    assert issubclass(PostgresIOManager, dg.ConfigurableIOManager)
