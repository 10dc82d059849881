"""Inputs come from production where they or the asset that takes them say so, else from here.

Production is a real second server in these tests, and its role may do anything there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa
import pytest

from dagster_tools.embedded import Server
from dagster_tools.errors import ConfigurationError, DatabaseError
from dagster_tools.postgres import read
from dagster_tools.postgres_io_manager import PostgresIOManager
from dagster_tools.sql import Relation
from tests import fix_servers
from tests.fix_servers import Database
from tests.partitioned import store_bare
from tests.pipelines import (
    fingerprint,
    manager_for,
    materialize,
    query,
    resource_for,
    rows,
    shared_instance,
    store,
)

PRODUCTION = {"environment": "production"}
HERE = {"environment": "development"}
DAYS = dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-02-01")
NUMBERS = dg.AssetSpec("numbers").with_io_manager_key("io_manager")


@pytest.fixture
def database(cleaned_database: Database) -> Database:
    """Where assets are kept in these tests; each asset has one row there."""
    filled(manager_for(cleaned_database), "here")
    return cleaned_database


@pytest.fixture(scope="module")
def production(prod_server: Server) -> Iterator[Database]:
    """A database on the other server, where each asset has one row too; nobody writes to it."""
    for made in fix_servers._database(prod_server, fix_servers._TEMPLATE):
        filled(manager_for(made), "production")
        yield made


@pytest.fixture
def manager(database: Database, production: Database) -> PostgresIOManager:
    """The manager that development has."""
    return manager_for(database, production=resource_for(production))


def filled(manager: PostgresIOManager, place: str) -> PostgresIOManager:
    """Store a row of `numbers`, one of `others` in the same table, and one of `sums` by day."""
    store(manager, pd.DataFrame({"place": [place]}))
    store(manager, pd.DataFrame({"place": [f"{place}, others"]}), key="others", table="numbers")
    days = ["2024-01-01"]
    store_bare(manager, {day: pd.DataFrame({"n": [7]}) for day in days}, days, key="sums")
    return manager


def test_production_is_on_another_server(database, production):
    identity = "SELECT system_identifier FROM pg_control_system()"

    assert query(database, identity) != query(production, identity)


# --- who says it ----------------------------------------------------------------------------
# Each maker gives an asset `taking` that takes `numbers` and returns it as it came.

Metadata = Mapping[str, Any]


def plain_asset(own: Metadata, input_: Metadata | None) -> dg.AssetsDefinition:
    @dg.asset(metadata=own, ins={"numbers": dg.AssetIn(metadata=input_)})
    def taking(numbers):
        return numbers

    return taking


def async_asset(own: Metadata, input_: Metadata | None) -> dg.AssetsDefinition:
    @dg.asset(metadata=own, ins={"numbers": dg.AssetIn(metadata=input_)})
    async def taking(numbers):
        await asyncio.sleep(0)
        return numbers

    return taking


def generator_asset(own: Metadata, input_: Metadata | None) -> dg.AssetsDefinition:
    @dg.asset(metadata=own, ins={"numbers": dg.AssetIn(metadata=input_)})
    def taking(numbers):
        yield dg.Output(numbers)

    return taking


def multi_asset(own: Metadata, input_: Metadata | None) -> dg.AssetsDefinition:
    @dg.multi_asset(
        outs={"taking": dg.AssetOut(metadata=own), "silent": dg.AssetOut()},
        ins={"numbers": dg.AssetIn(metadata=input_)},
    )
    def both(numbers):
        return numbers, numbers

    return both


def multi_asset_of_specs(own: Metadata, input_: Metadata | None) -> dg.AssetsDefinition:
    """Where Dagster wants the word of an input on the dependency."""
    dependency = dg.AssetDep("numbers", metadata=input_)
    spec = dg.AssetSpec("taking", deps=[dependency], metadata=own)

    @dg.multi_asset(
        specs=[spec.with_io_manager_key("io_manager")], ins={"numbers": dg.AssetIn("numbers")}
    )
    def one(numbers):
        return dg.MaterializeResult(asset_key="taking", value=numbers)

    return one


def graph_asset(own: Metadata, input_: Metadata | None) -> dg.AssetsDefinition:
    """Of two ops, of which the first says the word of the input."""

    @dg.op(ins={"numbers": dg.In(metadata=input_)})
    def first(numbers):
        return numbers

    @dg.op
    def second(handed_on):
        return handed_on

    @dg.graph_asset(metadata=own, ins={"numbers": dg.AssetIn()})
    def taking(numbers):
        return second(first(numbers))

    return taking


def mapped_asset(own: Metadata, input_: Metadata | None) -> dg.AssetsDefinition:
    """Of a definition that is given its metadata later."""

    @dg.asset(ins={"numbers": dg.AssetIn(metadata=input_)})
    def taking(numbers):
        return numbers

    unmapped = dg.Definitions([taking], resources={"io_manager": dg.mem_io_manager})
    mapped = unmapped.map_asset_specs(func=lambda spec: spec.merge_attributes(metadata=own))
    (definition,) = mapped.assets or ()
    assert isinstance(definition, dg.AssetsDefinition)
    return definition


EVERY_KIND = pytest.mark.parametrize(
    "make",
    [
        plain_asset,
        async_asset,
        generator_asset,
        multi_asset,
        multi_asset_of_specs,
        graph_asset,
        mapped_asset,
    ],
)


@EVERY_KIND
def test_an_asset_of_any_kind_says_where_all_its_inputs_come_from_and_how_much_of_them(
    database, manager, make
):
    taking = make({"environment": "production", "full_table": "true"}, None)

    materialize([NUMBERS, taking], manager, selection=[taking])

    assert rows(database, "public.taking") == [("production",), ("production, others",)]


@EVERY_KIND
def test_the_word_of_an_input_wins_over_that_of_an_asset_of_any_kind(database, manager, make):
    taking = make(
        {"environment": "production", "full_table": True},
        {"environment": "development", "full_table": "false"},
    )

    materialize([NUMBERS, taking], manager, selection=[taking])

    assert rows(database, "public.taking") == [("here",)]


def test_each_input_of_one_asset_comes_from_where_it_says(manager):
    given = {}
    whole = PRODUCTION | {"full_table": True}

    @dg.asset(ins={"numbers": dg.AssetIn(metadata=whole), "others": dg.AssetIn()})
    def taking(numbers, others) -> None:
        given.update(numbers=sorted(numbers["place"]), others=list(others["place"]))

    others = dg.AssetSpec("others", metadata={"table": "numbers"}).with_io_manager_key("io_manager")
    materialize([NUMBERS, others, taking], manager, selection=[taking])

    assert given == {
        "numbers": ["production", "production, others"],
        "others": ["here, others"],
    }


def test_the_ops_of_a_graph_asset_hand_on_what_is_here(database, manager):
    taking = graph_asset({"environment": "production", "full_table": True}, HERE)

    materialize([NUMBERS, taking], manager, selection=[taking])

    assert rows(database, "public.taking") == [("here",), ("here, others",)]


def test_an_op_of_a_job_says_it_at_its_input(manager):
    given = []

    @dg.op(ins={"frame": dg.In(metadata=PRODUCTION)})
    def take(frame: pd.DataFrame) -> None:
        given.extend(frame["place"])

    @dg.asset
    def numbers(): ...

    @dg.job(resource_defs={"io_manager": manager})
    def taking():
        take(numbers.to_source_asset())

    taking.execute_in_process()

    assert given == ["production"]


def test_an_asset_check_looks_at_what_is_here_unless_its_input_says_otherwise(database, manager):
    compared = []

    @dg.asset(metadata=PRODUCTION)
    def taking(numbers):
        return numbers

    @dg.asset_check(
        asset=taking, additional_ins={"there": dg.AssetIn("numbers", metadata=PRODUCTION)}
    )
    def as_in_production(taking: pd.DataFrame, there: pd.DataFrame):
        compared.append((list(taking["place"]), list(there["place"])))
        return dg.AssetCheckResult(passed=True)

    materialize(
        [NUMBERS, taking, as_in_production],
        manager,
        selection=dg.AssetSelection.assets(taking),
    )

    assert compared == [(["production"], ["production"])]
    assert rows(database, "public.taking") == [("production",)]


# --- words that do not fit ------------------------------------------------------------------


def several(**said: Metadata) -> dg.AssetsDefinition:
    """A multi-asset that takes `numbers`, whose outputs say these things."""
    outs = {name: dg.AssetOut(metadata=own, is_required=False) for name, own in said.items()}

    @dg.multi_asset(outs=outs, can_subset=True)
    def several(context, numbers):
        for name in context.op_execution_context.selected_output_names:
            yield dg.Output(numbers, name)

    return several


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (PRODUCTION, HERE, "asset one says 'production', asset other says 'development'"),
        (PRODUCTION, {"environment": None}, "asset one says 'production', asset other says None"),
        ({"full_table": True}, {"full_table": "false"}, "one says True, asset other says 'false'"),
    ],
)
def test_outputs_of_one_computation_that_disagree_are_an_error_that_says_where_to_say_it(
    database, manager, one, other, words
):
    asset = several(one=one, other=other)
    (key,) = one
    before = fingerprint(database)

    with pytest.raises(ConfigurationError, match=rf"{words}.*AssetIn\(metadata={{'{key}': …}}"):
        materialize([NUMBERS, asset], manager, selection=[asset])

    assert fingerprint(database) == before


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (PRODUCTION, PRODUCTION),
        (PRODUCTION, {}),
        (PRODUCTION | {"full_table": False}, {"full_table": "false"}),
    ],
)
def test_outputs_of_one_computation_agree_where_they_mean_the_same_or_say_nothing(
    database, manager, one, other
):
    asset = several(one=one, other=other)

    materialize([NUMBERS, asset], manager, selection=[asset])

    assert rows(database, "public.one") == rows(database, "public.other") == [("production",)]


def test_an_output_that_is_not_computed_says_nothing(database, manager):
    asset = several(one=PRODUCTION, other=HERE)

    materialize([NUMBERS, asset], manager, selection=["other"])

    assert rows(database, "public.other") == [("here",)]


@pytest.mark.parametrize("value", ["Production", "", ["production"]])
@pytest.mark.parametrize(
    ("who", "said_by_input"), [("asset taking", False), ("input numbers", True)]
)
def test_an_unknown_environment_is_refused_with_who_says_it_and_what_is_legal(
    manager, value, who, said_by_input
):
    said = {"environment": value}
    taking = plain_asset(*(({}, said) if said_by_input else (said, None)))

    with pytest.raises(ConfigurationError) as refused:
        materialize([NUMBERS, taking], manager, selection=[taking])

    assert str(refused.value) == (
        f"{who}, metadata 'environment' is {value!r}; expected 'production' or 'development'."
    )


@pytest.mark.parametrize("own", [{}, PRODUCTION], ids=["input", "asset"])
def test_without_a_production_nothing_is_read_from_here_instead(database, own):
    here = manager_for(database)
    taking = plain_asset(own, None if own else PRODUCTION)

    with pytest.raises(ConfigurationError, match="asset numbers is to be loaded from production, "):
        materialize([NUMBERS, taking], here, selection=[taking])

    assert query(database, "SELECT to_regclass('taking')") == [(None,)]


# --- what production is asked ---------------------------------------------------------------


def test_rows_are_read_where_production_has_put_them(database, prod_database):
    """Development keeps the asset in another schema, and in another table."""
    store(manager_for(prod_database, schema="live"), pd.DataFrame({"place": ["production"]}))
    here = manager_for(database, schema="try", production=resource_for(prod_database))
    spec = dg.AssetSpec("numbers", metadata={"table": "tried"}).with_io_manager_key("io_manager")
    taking = plain_asset(PRODUCTION, None)
    materialize([spec, taking], here, selection=[taking])

    assert rows(database, "try.taking") == [("production",)]


def test_an_input_written_in_the_same_run_still_comes_from_production(database, manager):
    @dg.asset
    def numbers():
        return pd.DataFrame({"place": ["just now"]})

    taking = plain_asset(PRODUCTION, None)
    materialize([numbers, taking], manager)

    assert rows(database, "public.taking") == [("production",)]


def test_what_came_from_production_is_observed_as_such(manager):
    taking = plain_asset(PRODUCTION, None)

    result = materialize([NUMBERS, taking], manager, selection=[taking])

    (observed,) = [
        entry.dagster_event.asset_observation_data.asset_observation
        for entry in shared_instance().all_logs(result.run_id)
        if entry.dagster_event is not None and entry.dagster_event.is_asset_observation
    ]
    assert {key: value.value for key, value in observed.metadata.items()} == {
        "environment": "production",
        "rows": 1,
    }


@pytest.mark.parametrize("said_by", ["asset", "input"])
def test_an_assets_own_earlier_partitions_are_read_from_here_whoever_says_otherwise(
    database, manager, said_by
):
    """Production has a 7 for the first day."""
    yesterday = dg.TimeWindowPartitionMapping(start_offset=-1, end_offset=-1)
    own, input_ = (PRODUCTION, None) if said_by == "asset" else ({}, PRODUCTION)

    @dg.asset(
        metadata=own,
        partitions_def=DAYS,
        ins={"sums": dg.AssetIn(partition_mapping=yesterday, metadata=input_)},
    )
    def sums(sums):
        return pd.DataFrame({"n": [1 + sum(sums["n"]) if len(sums) else 1]})

    for day in ("2024-01-01", "2024-01-02"):
        materialize(sums, manager, partition_key=day)

    assert rows(database, "public.sums") == [(1,), (2,)]


# --- production is only read ----------------------------------------------------------------

ANNOTATIONS = [
    pd.DataFrame,
    pa.Table,
    pa.RecordBatchReader,
    Relation,
    dict[str, pd.DataFrame],
]


@pytest.mark.parametrize("annotation", ANNOTATIONS, ids=str)
def test_production_is_the_same_before_and_after(database, production, manager, annotation):
    sums = dg.AssetSpec("sums", partitions_def=DAYS).with_io_manager_key("io_manager")
    before = fingerprint(production)

    @dg.asset(
        metadata=PRODUCTION,
        partitions_def=DAYS,
        ins={"sums": dg.AssetIn(dagster_type=dg.In(annotation).dagster_type)},
    )
    def taking(sums):
        return pd.DataFrame({"n": [1]})

    materialize([sums, taking], manager, selection=[taking], partition_key="2024-01-01")

    assert fingerprint(production) == before
    assert rows(database, "public.taking") == [(1,)]


def test_a_production_that_has_no_tracking_tables_gets_none(database, prod_database):
    with prod_database.connect() as connection:
        connection.execute("CREATE TABLE numbers AS SELECT 'by hand' AS place")
    here = manager_for(database, production=resource_for(prod_database))
    before = fingerprint(prod_database)

    taking = plain_asset(PRODUCTION, None)
    materialize([NUMBERS, taking], here, selection=[taking])

    assert rows(database, "public.taking") == [("by hand",)]
    assert fingerprint(prod_database) == before


@pytest.mark.parametrize("few", [20_000, -1], ids=["few values", "many values"])
def test_no_query_that_production_runs_for_an_input_can_write(
    database, prod_database, monkeypatch, few
):
    """The table is a view there that writes when it is read, and the role may write."""
    monkeypatch.setattr(read, "FEW_VALUES", few)
    filled(manager_for(prod_database), "production")
    with prod_database.connect() as connection:
        for statement in (
            "CREATE TABLE written (n integer)",
            """
            CREATE FUNCTION write() RETURNS text LANGUAGE sql VOLATILE
            AS $$ INSERT INTO written VALUES (1) RETURNING 'written' $$
            """,
            "ALTER TABLE numbers RENAME TO kept",
            "CREATE VIEW numbers AS SELECT write() AS place, materialization_id FROM kept",
        ):
            connection.execute(statement)
        assert connection.execute("SELECT place FROM numbers LIMIT 1").fetchall() == [("written",)]
    manager = manager_for(database, production=resource_for(prod_database))
    taking = plain_asset(PRODUCTION, None)

    with pytest.raises(DatabaseError, match="cannot execute INSERT in a read-only transaction"):
        materialize([NUMBERS, taking], manager, selection=[taking])

    assert rows(prod_database, "public.written") == [(1,)]


# --- outside of a run -----------------------------------------------------------------------

OUTSIDE: dict[str, Callable[[dg.Definitions, PostgresIOManager], Any]] = {
    "load_asset_value": lambda defs, _manager: defs.load_asset_value("numbers"),
    "a bare context": lambda _defs, manager: manager.load_input(
        dg.build_input_context(asset_key="numbers")
    ),
    "a bare context with a name": lambda _defs, manager: manager.load_input(
        dg.build_input_context(name="numbers", asset_key="numbers")
    ),
}


@pytest.mark.parametrize("load", OUTSIDE.values(), ids=list(OUTSIDE))
def test_what_the_body_of_an_asset_loads_takes_nothing_from_what_that_asset_says(
    database, manager, load
):
    defs = dg.Definitions([NUMBERS], resources={"io_manager": manager})

    @dg.asset(metadata={"environment": "production", "full_table": True})
    def calling():
        return load(defs, manager)

    materialize(calling, manager)

    assert rows(database, "public.calling") == [("here",)]


def test_outside_of_a_run_production_is_asked_for_by_the_metadata_of_the_load(manager):
    defs = dg.Definitions([NUMBERS], resources={"io_manager": manager})
    context = dg.build_input_context(asset_key="numbers", definition_metadata=PRODUCTION)

    loaded: Any = defs.get_asset_value_loader().load_asset_value(
        "numbers", input_definition_metadata=PRODUCTION
    )

    assert list(loaded["place"]) == ["production"]
    assert list(manager.load_input(context)["place"]) == ["production"]
