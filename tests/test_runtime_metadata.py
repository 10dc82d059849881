"""What a run says about its output wins over the definition, however the output is returned."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from dagster_tools.errors import ConfigurationError
from dagster_tools.postgres.options import OUTPUT_KEYS
from dagster_tools.postgres_io_manager import PostgresIOManager
from tests.fix_servers import Database
from tests.pipelines import (
    Rows,
    column_types,
    fingerprint,
    logged,
    materialize,
    query,
    rows,
    store,
)

Metadata = Mapping[str, Any]
FRAME = pd.DataFrame({"a": [1, 2], "b": [5, 5]})


@pytest.fixture
def database(cleaned_database: Database) -> Database:
    return cleaned_database


# --- every option ---------------------------------------------------------------------------


def by_output(_context: dg.AssetExecutionContext, said: Metadata) -> object:
    return dg.Output(FRAME, metadata=said)


def by_context(context: dg.AssetExecutionContext, said: Metadata) -> object:
    context.add_output_metadata(said)
    return FRAME


def by_result(_context: dg.AssetExecutionContext, said: Metadata) -> object:
    return dg.MaterializeResult(value=FRAME, metadata=said)


def tables(database: Database) -> Rows:
    return query(
        database,
        """
        SELECT schemaname, tablename
        FROM pg_tables
        WHERE schemaname IN ('public', 'defined', 'said') AND tablename <> 'spatial_ref_sys'
        """,
    )


def key_columns(database: Database) -> Rows:
    return query(
        database,
        """
        SELECT array_agg(attname::text ORDER BY attname)
        FROM pg_index
        JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY (indkey)
        WHERE indrelid = 'numbers'::regclass AND indisprimary
        """,
    )


def partitions(database: Database) -> Rows:
    return query(
        database,
        """
        SELECT t.a, p.partition_key
        FROM numbers AS t
        JOIN meta.materializations AS m ON m.id = t.materialization_id
        JOIN meta.assets AS p ON p.id = m.asset_id
        ORDER BY 1
        """,
    )


def may_read(database: Database) -> Rows:
    """Tell of two roles that exist on any server which may read the table."""
    return query(
        database,
        """
        SELECT has_table_privilege('pg_monitor', 'numbers', 'SELECT'),
               has_table_privilege('pg_signal_backend', 'numbers', 'SELECT')
        """,
    )


@dataclass(frozen=True)
class Case:
    """One option: what the definition says, what the run says, and what shows whose word it was.

    Args:
        found: Asks the database, whose answer is `expected` where the run's word won.
        before: What the table has, where the option is about that.
        keys: Partitions of the run.
    """

    defined: Metadata
    said: Metadata
    found: Callable[[Database], object]
    expected: object
    before: pd.DataFrame | None = None
    keys: Sequence[str] = field(default=())


CASES = {
    "schema": Case({"schema": "defined"}, {"schema": "said"}, tables, [("said", "numbers")]),
    "table": Case({"table": "defined"}, {"table": "said"}, tables, [("public", "said")]),
    "primary_key": Case(
        # By the definition's key the frame would be refused: its rows are the same in b.
        {"primary_key": "b"},
        {"primary_key": ["a", "b"]},
        key_columns,
        [(["a", "b"],)],
    ),
    "incremental": Case(
        {"primary_key": "a", "incremental": False},
        {"incremental": "true"},
        rows,
        [(1, 5), (2, 5), (9, 9)],
        before=pd.DataFrame({"a": [9], "b": [9]}),
    ),
    "columns": Case(
        # By the definition's modifier the frame would be refused.
        {"columns": {"a": "int", "b": ("int", "unique")}},
        {"columns": {"a": "float", "b": ["uint", "not null"]}},
        column_types,
        {"a": "double precision", "b": "integer"},
    ),
    "users": Case(
        {"users": ["pg_monitor"]},
        {"users": ["pg_signal_backend"]},
        may_read,
        [(False, True)],
    ),
    "schema_evolution": Case(
        {"schema_evolution": "strict"},
        {"schema_evolution": "evolve"},
        column_types,
        {"a": "bigint", "b": "bigint"},
        before=pd.DataFrame({"a": [9]}),
    ),
    "partition_expr": Case(
        {"partition_expr": "b"},
        {"partition_expr": "a"},
        partitions,
        [(1, "1"), (2, "2")],
        keys=("1", "2"),
    ),
}
EVERY_WAY = pytest.mark.parametrize("way", [by_output, by_context, by_result])


def run(manager: PostgresIOManager, way: Callable[..., object], case: Case) -> None:
    """Materialize the asset `numbers`, of this definition, which says this in its run."""
    spread = (
        {
            "dagster/asset_partition_range_start": case.keys[0],
            "dagster/asset_partition_range_end": case.keys[-1],
        }
        if case.keys
        else {}
    )

    @dg.asset(
        metadata=case.defined,
        partitions_def=dg.StaticPartitionsDefinition(case.keys) if case.keys else None,
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def numbers(context):
        return way(context, case.said)

    materialize(numbers, manager, tags=spread)


@EVERY_WAY
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_what_the_run_says_wins_over_the_definition(database, io_manager, way, case):
    if case.before is not None:
        store(io_manager, case.before, **case.defined)

    run(io_manager, way, case)

    assert case.found(database) == case.expected


def test_the_cases_are_all_options_of_an_output_but_those_for_inputs():
    assert {*CASES, "chunk_size"} == set(OUTPUT_KEYS) - {"environment", "full_table"}


@EVERY_WAY
def test_the_chunk_size_that_the_run_says_wins(io_manager, monkeypatch, way):
    sent = []
    monkeypatch.setattr(
        "dagster_tools.postgres.progress.Progress.__call__",
        lambda _self, rows, _size: sent.append(rows),
    )

    run(io_manager, way, Case({"chunk_size": "1GB"}, {"chunk_size": "16B"}, rows, None))

    assert [rows for rows in sent if rows] == [1, 1]


@EVERY_WAY
def test_none_said_by_the_run_is_the_default_again(database, io_manager, way):
    defined = {"schema": "defined", "table": "defined", "primary_key": "b"}

    run(io_manager, way, Case(defined, dict.fromkeys(defined), rows, None))

    assert tables(database) == [("public", "numbers")]


@EVERY_WAY
def test_what_cannot_be_meant_is_refused_by_its_key_when_the_run_says_it(database, io_manager, way):
    before = fingerprint(database)

    with pytest.raises(ConfigurationError, match="asset numbers, metadata 'chunk_size' is 'lots'"):
        run(io_manager, way, Case({}, {"chunk_size": "lots"}, rows, None))

    assert fingerprint(database) == before


def test_a_slip_of_the_run_is_told_with_the_right_spelling(io_manager):
    @dg.asset
    def numbers():
        return dg.Output(FRAME, metadata={"primay_key": "a"})

    result = materialize(numbers, io_manager)

    assert logged(result, level="WARNING") == [
        "Metadata 'primay_key' of numbers is ignored; is 'primary_key' meant?"
    ]


def test_what_the_run_put_elsewhere_is_loaded_from_there(database, io_manager):
    @dg.asset(metadata={"schema": "defined"})
    def numbers():
        return dg.Output(FRAME, metadata={"schema": "said", "table": "kept"})

    @dg.asset
    def same_run(numbers):
        return numbers

    @dg.asset
    def later_run(numbers):
        return numbers

    materialize([numbers, same_run], io_manager)
    materialize([numbers, later_run], io_manager, selection=[later_run])

    assert rows(database, "public.same_run") == rows(database, "said.kept")
    assert rows(database, "public.later_run") == [(1, 5), (2, 5)]


def test_what_an_op_says_in_its_run_wins_over_its_out(database, io_manager):
    @dg.op(out={"left": dg.Out(metadata={"schema": "defined"}), "right": dg.Out()})
    def split(context):
        context.add_output_metadata({"table": "said"}, output_name="left")
        yield dg.Output(FRAME[:1], "left")
        yield dg.Output(FRAME[1:], "right", metadata={"schema": "said"})

    @dg.job(resource_defs={"io_manager": io_manager})
    def splitting():
        split()

    splitting.execute_in_process()

    assert rows(database, "defined.said") == [(1, 5)]
    assert rows(database, "said.right") == [(2, 5)]


# --- every way to return several outputs ----------------------------------------------------
# Each of these returns two outputs, and says in the run that the second goes to schema `said`.

OUTS = {"left": dg.AssetOut(), "right": dg.AssetOut(metadata={"schema": "defined"})}
SPECS = [
    dg.AssetSpec("left").with_io_manager_key("io_manager"),
    dg.AssetSpec("right", metadata={"schema": "defined"}).with_io_manager_key("io_manager"),
]
SAID = {"schema": "said"}


@dg.multi_asset(outs=OUTS)
def tuple_of_frames(context):
    context.add_output_metadata(SAID, output_name="right")
    return FRAME[:1], FRAME[1:]


@dg.multi_asset(outs=OUTS)
async def async_tuple_of_frames(context):
    await asyncio.sleep(0)
    context.add_output_metadata(SAID, output_name="right")
    return FRAME[:1], FRAME[1:]


@dg.multi_asset(outs=OUTS)
async def async_tuple_of_outputs():
    await asyncio.sleep(0)
    return FRAME[:1], dg.Output(FRAME[1:], "right", metadata=SAID)


@dg.multi_asset(outs=OUTS)
def generator_of_outputs():
    yield dg.Output(FRAME[:1], "left")
    yield dg.Output(FRAME[1:], "right", metadata=SAID)


@dg.multi_asset(outs=OUTS)
async def async_generator_of_outputs():
    await asyncio.sleep(0)
    yield dg.Output(FRAME[1:], "right", metadata=SAID)
    yield dg.Output(FRAME[:1], "left")


@dg.multi_asset(specs=SPECS)
def tuple_of_results():
    return (
        dg.MaterializeResult(asset_key="left", value=FRAME[:1]),
        dg.MaterializeResult(asset_key="right", value=FRAME[1:], metadata=SAID),
    )


@dg.multi_asset(specs=SPECS)
def generator_of_results():
    yield dg.MaterializeResult(asset_key="right", value=FRAME[1:], metadata=SAID)
    yield dg.MaterializeResult(asset_key="left", value=FRAME[:1])


@dg.multi_asset(specs=SPECS)
async def async_generator_of_results():
    await asyncio.sleep(0)
    yield dg.MaterializeResult(asset_key="left", value=FRAME[:1])
    yield dg.MaterializeResult(asset_key="right", value=FRAME[1:], metadata=SAID)


@pytest.mark.parametrize(
    "asset",
    [
        tuple_of_frames,
        async_tuple_of_frames,
        async_tuple_of_outputs,
        generator_of_outputs,
        async_generator_of_outputs,
        tuple_of_results,
        generator_of_results,
        async_generator_of_results,
    ],
    ids=lambda asset: asset.op.name,
)
def test_several_outputs_go_each_where_its_own_word_says(database, io_manager, asset):
    materialize(asset, io_manager)

    assert rows(database, "public.left") == [(1, 5)]
    assert rows(database, "said.right") == [(2, 5)]


def test_a_generator_that_fails_keeps_what_it_yielded_before_and_nothing_of_the_rest(
    database, io_manager
):
    @dg.multi_asset(outs=OUTS)
    def failing():
        yield dg.Output(FRAME[:1], "left")
        raise RuntimeError("the source is gone")

    with pytest.raises(RuntimeError, match="the source is gone"):
        materialize(failing, io_manager)

    assert tables(database) == [("public", "left")]
    assert rows(database, "public.left") == [(1, 5)]


def test_a_result_without_a_value_leaves_the_table_alone(database, io_manager):
    store(io_manager, FRAME)
    before = fingerprint(database)

    @dg.asset
    def numbers():
        return dg.MaterializeResult(metadata={"schema": "said"})

    materialize(numbers, io_manager)

    assert fingerprint(database) == before
