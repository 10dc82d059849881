"""What users of Dagster's IO managers for DuckDB, Snowflake and BigQuery rely on holds here too.

Most of it is claimed where it belongs (partitions, loading, writing); here is what remains.
"""

from __future__ import annotations

from typing import Any

import dagster as dg
import pandas as pd
import pytest
from pydantic import Field

from dagster_tools.postgres_io_manager import PostgresIOManager, PostgresResource
from tests.fix_servers import Database
from tests.partitioned import BACKFILL, backfill, rows_of
from tests.pipelines import (
    manager_for,
    materialize,
    query,
    resource_for,
    rows,
    shared_instance,
    store,
)

DAYS = dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-01-08")


@pytest.fixture
def database(cleaned_database: Database) -> Database:
    return cleaned_database


# --- subclasses -----------------------------------------------------------------------------


class Suffixed(PostgresIOManager):
    """Keeps its outputs under a name with a suffix, counts, and has a setting of its own."""

    suffix: str = Field(default="_default", description="What the names of tables end in.")

    def handle_output(self, context: dg.OutputContext, obj: object) -> None:
        context.add_output_metadata({"table": f"{context.asset_key.path[-1]}{self.suffix}"})
        super().handle_output(context, obj)

    def load_input(self, context: dg.InputContext) -> object:
        frame: Any = super().load_input(context)
        return frame.assign(loaded_by=type(self).__name__)


class OfThisTeam(PostgresResource):
    """A resource with the defaults of a team."""

    application_name: str | None = "the team"


@dg.asset
def numbers():
    return pd.DataFrame({"n": [1]})


@dg.asset(name="taking")
def taking_numbers(numbers):
    return numbers


def test_a_subclass_adds_settings_and_wraps_what_is_stored_and_loaded(database):
    manager = Suffixed(connection=resource_for(database), suffix="_ours", schema="team")

    materialize([numbers, taking_numbers], manager)

    assert rows(database, "team.numbers_ours") == [(1,)]
    assert rows(database, "team.taking_ours") == [(1, "Suffixed")]


def test_a_subclass_is_configured_by_run_config_and_environment(database, monkeypatch):
    monkeypatch.setenv("TEAM_SCHEMA", "of_env")
    connection = resource_for(database)
    from_environment = Suffixed(connection=connection, schema=dg.EnvVar("TEAM_SCHEMA"))
    at_launch = Suffixed.configure_at_launch(connection=connection)

    materialize(numbers, from_environment)
    materialize(
        numbers,
        at_launch,
        run_config={"resources": {"io_manager": {"config": {"suffix": "_launched"}}}},
    )

    assert rows(database, "of_env.numbers_default") == [(1,)]
    assert rows(database, "public.numbers_launched") == [(1,)]


def test_a_subclass_of_the_resource_is_a_connection(database):
    settings = resource_for(database).model_dump(exclude_none=True)
    manager = PostgresIOManager(connection=OfThisTeam(**settings))

    @dg.asset
    def named():
        return pd.DataFrame({"n": [1]})

    materialize(named, manager)

    assert rows(database, "public.named") == [(1,)]
    with OfThisTeam(**settings).get_connection() as connection:
        assert connection.execute("SHOW application_name").fetchone() == ("the team",)


# --- several managers in one job ------------------------------------------------------------


def test_assets_of_one_run_are_kept_by_managers_of_different_schemas(database):
    @dg.asset(io_manager_key="raw")
    def orders():
        return pd.DataFrame({"n": [1]})

    @dg.asset(io_manager_key="clean", key="orders_cleaned")
    def cleaned(orders):
        return orders * 10

    managers = {name: manager_for(database, schema=name) for name in ("raw", "clean")}
    materialize([orders, cleaned], dg.mem_io_manager, resources=managers)

    assert rows(database, "raw.orders") == [(1,)]
    assert rows(database, "clean.orders_cleaned") == [(10,)]


def test_an_input_is_loaded_by_the_manager_it_names(database, io_manager):
    """Whoever keeps the upstream asset: here one that keeps nothing at all."""

    class Refuses(dg.IOManager):
        def handle_output(self, context, obj):
            raise AssertionError

        def load_input(self, context):
            raise AssertionError

    store(io_manager, pd.DataFrame({"n": [1]}))
    upstream = dg.AssetSpec("numbers").with_io_manager_key("refuses")

    @dg.asset(ins={"numbers": dg.AssetIn(input_manager_key="io_manager")})
    def taking(numbers):
        return numbers

    materialize(
        [upstream, taking], io_manager, selection=[taking], resources={"refuses": Refuses()}
    )

    assert rows(database, "public.taking") == [(1,)]


def test_a_dependency_that_is_no_input_loads_nothing(database, io_manager):
    """There is no table of the upstream asset, so that loading it would fail."""
    ran = []

    @dg.asset
    def upstream() -> None:
        ran.append("upstream")

    @dg.asset(deps=[upstream])
    def by_deps() -> None:
        ran.append("by_deps")

    @dg.asset(ins={"order_only": dg.AssetIn("upstream", dagster_type=dg.Nothing)})
    def by_nothing() -> None:
        ran.append("by_nothing")

    materialize([upstream, by_deps, by_nothing], io_manager)

    assert ran[0] == "upstream"
    assert sorted(ran[1:]) == ["by_deps", "by_nothing"]


def test_two_inputs_of_one_run_take_different_columns_of_the_same_asset(database, io_manager):
    @dg.asset
    def wide():
        return pd.DataFrame({"a": [1], "b": [2], "c": [3]})

    @dg.asset(ins={"wide": dg.AssetIn(metadata={"columns": ["a"]})})
    def first(wide):
        return wide

    @dg.asset(ins={"wide": dg.AssetIn(metadata={"columns": ["c", "b"]})})
    def others(wide):
        return wide

    materialize([wide, first, others], io_manager)

    assert rows(database, "public.first") == [(1,)]
    assert rows(database, "public.others") == [(3, 2)]


# --- partitions -----------------------------------------------------------------------------


def test_partition_keys_may_be_written_in_any_format(database, io_manager):
    formatted = dg.DailyPartitionsDefinition("01/01/2024", end_date="04/01/2024", fmt="%d/%m/%Y")

    @dg.asset(
        partitions_def=formatted, backfill_policy=BACKFILL, metadata={"partition_expr": "day"}
    )
    def daily():
        return pd.DataFrame({"day": pd.to_datetime(["2024-01-01 10:00", "2024-01-02 00:00"])})

    @dg.asset(partitions_def=formatted)
    def downstream(daily):
        return daily

    backfill([daily], io_manager, "01/01/2024", "02/01/2024")
    materialize([daily, downstream], io_manager, selection=[downstream], partition_key="02/01/2024")

    assert set(rows_of(database, "daily", "day", table="daily")) == {"01/01/2024", "02/01/2024"}
    assert query(database, "SELECT day::text FROM downstream") == [("2024-01-02 00:00:00",)]


def test_a_dynamic_partition_that_was_deleted_is_not_loaded_any_more(database, io_manager):
    files = dg.DynamicPartitionsDefinition(name="uploads")
    instance = shared_instance()
    instance.add_dynamic_partitions("uploads", ["a", "b"])

    @dg.asset(partitions_def=files)
    def uploaded(context):
        return pd.DataFrame({"file": [context.partition_key]})

    @dg.asset
    def everything(uploaded):
        return uploaded

    for key in ("a", "b"):
        materialize(uploaded, io_manager, partition_key=key)
    instance.delete_dynamic_partition("uploads", "a")
    materialize([uploaded, everything], io_manager, selection=[everything])

    assert rows(database, "public.everything") == [("b",)]


def test_an_asset_of_several_dimensions_depends_on_itself_in_one_of_them(database, io_manager):
    colors_by_day = dg.MultiPartitionsDefinition(
        {"color": dg.StaticPartitionsDefinition(["blue", "red"]), "day": DAYS}
    )
    the_day_before = dg.MultiPartitionMapping(
        {
            "color": dg.DimensionPartitionMapping("color", dg.IdentityPartitionMapping()),
            "day": dg.DimensionPartitionMapping(
                "day", dg.TimeWindowPartitionMapping(start_offset=-1, end_offset=-1)
            ),
        }
    )

    @dg.asset(
        partitions_def=colors_by_day,
        ins={"balance": dg.AssetIn(partition_mapping=the_day_before)},
    )
    def balance(balance):
        return pd.DataFrame({"total": [1 + (sum(balance["total"]) if len(balance) else 0)]})

    for day in ("2024-01-01", "2024-01-02", "2024-01-03"):
        for color in ("blue", "red") if day != "2024-01-03" else ("red",):
            key = dg.MultiPartitionKey({"color": color, "day": day})
            materialize(balance, io_manager, partition_key=key)

    assert rows_of(database, "balance", "total", table="balance") == {
        "blue|2024-01-01": [(1,)],
        "blue|2024-01-02": [(2,)],
        "red|2024-01-01": [(1,)],
        "red|2024-01-02": [(2,)],
        "red|2024-01-03": [(3,)],
    }


@pytest.mark.parametrize(
    "expression",
    ["TO_TIMESTAMP(time)", "strptime(time, '%Y-%m-%d')", "CAST(time AS TIMESTAMP)", "time"],
)
def test_a_partition_expr_written_for_another_database_is_tolerated_from_end_to_end(
    database, io_manager, expression
):
    """Rows may have any column, or none, that tells the partition; a re-run replaces them."""
    metadata = {"partition_expr": expression}

    @dg.asset(partitions_def=DAYS, metadata=metadata)
    def daily(context):
        return pd.DataFrame({"time": [context.partition_key], "a": [1]})

    @dg.asset(partitions_def=DAYS, metadata=metadata)
    def downstream(daily):
        return daily[["a"]]

    for key in ("2024-01-01", "2024-01-02", "2024-01-01"):
        materialize([daily, downstream], io_manager, partition_key=key)

    assert rows_of(database, "downstream", "a", table="downstream") == {
        "2024-01-01": [(1,)],
        "2024-01-02": [(1,)],
    }


# --- types ----------------------------------------------------------------------------------


def test_what_an_annotation_cannot_be_loaded_as_fails_the_step_that_takes_it_alone(
    database, io_manager
):
    @dg.asset
    def taking(numbers: int) -> None: ...

    result = materialize([numbers, taking], io_manager, raise_on_error=False)

    failed = result.failure_data_for_node("taking")
    assert failed is not None
    assert "UnsupportedFrame" in str(failed.error)
    assert "asset numbers" in str(failed.error)
    assert rows(database) == [(1,)]
