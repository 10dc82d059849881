"""The arguments of dagster.asset and dagster.multi_asset mean to SharePoint assets what they do there."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from dagster_tools.errors import ConfigurationError
from dagster_tools.sharepoint_asset import sharepoint_asset, sharepoint_multi_asset
from dagster_tools.sharepoint_sensor import TAG
from dagster_tools.sql import Eq, IncrementalDataFrame
from tests.fix_servers import Database
from tests.pipelines import manager_for
from tests.test_sharepoint_asset import (
    WATCH,
    Shelf,
    failure,
    frame_of,
    metadata,
    resources,
    results_asset,
    rows,
    run,
)

__all__ = ["resources"]

pytestmark = [
    pytest.mark.filterwarnings("ignore::dagster.BetaWarning"),
    pytest.mark.filterwarnings("ignore::dagster.PreviewWarning"),
]


@pytest.fixture
def database(cleaned_database: Database) -> Database:
    """A database with nothing in it, the module's own."""
    return cleaned_database


# --- every argument is there ----------------------------------------------------------------


@dg.success_hook
def cheer(context) -> None: ...


def is_incremental(_context: Any, value: object) -> bool:
    return isinstance(value, IncrementalDataFrame)


INCREMENTAL = dg.DagsterType(is_incremental, name="Incremental")

OF_SPECS: dict[str, Any] = {
    "metadata": {"a": 1},
    "tags": {"a": "b"},
    "description": "of files",
    "group_name": "lab",
    "code_version": "7",
    "owners": ["team:lab"],
    "kinds": {"csv"},
    "automation_condition": dg.AutomationCondition.eager(),
    "freshness_policy": dg.FreshnessPolicy.time_window(timedelta(hours=1)),
    "backfill_policy": dg.BackfillPolicy.single_run(),
    "is_virtual": True,
}
OF_OPS: dict[str, Any] = {
    "name": "other",
    "ins": {"base": dg.AssetIn(["deep", "base"])},
    "deps": ["upstream"],
    "config_schema": {"factor": int},
    "required_resource_keys": {"scale"},
    "resource_defs": {"scale": dg.ResourceDefinition.hardcoded_resource(1)},
    "hooks": {cheer},
    "op_tags": {"cpu": "2"},
    "retry_policy": dg.RetryPolicy(max_retries=3),
    "pool": "sharepoint",
}
OF_ASSET: dict[str, Any] = {
    **OF_SPECS,
    **OF_OPS,
    "key": ["deep", "results"],
    "key_prefix": ["deep"],
    "io_manager_def": dg.mem_io_manager,
    "io_manager_key": "shelf",
    "dagster_type": INCREMENTAL,
    "output_required": False,
    "check_specs": [dg.AssetCheckSpec("filled", asset="results", blocking=True)],
}
OF_OUT: dict[str, Any] = {
    **OF_SPECS,
    "key": ["deep", "first"],
    "key_prefix": ["deep"],
    "io_manager_key": "shelf",
    "dagster_type": INCREMENTAL,
    "is_required": False,
}
OUTS = {"first": dg.AssetOut(), "second": dg.AssetOut()}
OF_MULTI_ASSET: dict[str, Any] = {
    **OF_OPS,
    **{name: OF_SPECS[name] for name in ("description", "group_name", "code_version")},
    "backfill_policy": dg.BackfillPolicy.single_run(),
    "outs": {"one": dg.AssetOut(), "other": dg.AssetOut()},
    "specs": [dg.AssetSpec("one"), dg.AssetSpec("two", deps=["one"])],
    "internal_asset_deps": {"first": {dg.AssetKey("base")}, "second": {dg.AssetKey("first")}},
    "can_subset": True,
    "check_specs": [dg.AssetCheckSpec("filled", asset="second")],
}
NO_FRAMES_FUNCTION = {"compute_fn", "kwargs", "partitions_def"}
"""What is no argument; decision 044 is of partitions."""


def plain(context, base): ...


def of_files(context, files, base): ...


def told(assets: dg.AssetsDefinition) -> dict[str, Any]:
    """What Dagster knows of assets, but for what makes them SharePoint's."""
    op = assets.op
    config = op.config_schema.config_type
    fields = getattr(config, "fields", {}) if config is not None else {}
    return {
        "specs": [
            {**vars(spec.merge_attributes()), **spec._asdict()}
            | {"tags": {k: v for k, v in spec.tags.items() if k != TAG}}
            for spec in sorted(assets.specs, key=lambda spec: spec.key)
        ],
        "inputs": {name: assets.keys_by_input_name[name] for name in assets.keys_by_input_name},
        "outputs": [
            (
                each.name,
                each.io_manager_key,
                each.is_required,
                each.dagster_type.display_name,
                each.code_version,
                each.description,
            )
            for each in op.output_defs
        ],
        "checks": list(assets.check_specs),
        "config": {name for name in fields if name not in {"full_refresh", "paths", "ids", "since"}},
        "resources": set(op.required_resource_keys) - {"sharepoint", "io_manager"},
        "resource_defs": set(assets.resource_defs),
        "op": (op.name, op.description, dict(op.tags), op.retry_policy, op.pool),
        "rest": (assets.hook_defs, assets.backfill_policy, assets.can_subset, assets.asset_deps),
    }


@pytest.mark.parametrize("argument", OF_ASSET)
def test_an_argument_of_dagsters_asset_is_found_in_a_sharepoint_asset(argument):
    given: dict[str, Any] = {"name": "results", argument: OF_ASSET[argument]}
    if argument == "key":
        del given["name"]

    ours = sharepoint_asset(watch=WATCH, **given)(of_files)

    theirs = told(dg.asset(**given)(plain))
    assert told(ours) == theirs
    assert theirs != told(dg.asset(name="results")(plain))


@pytest.mark.parametrize("argument", OF_MULTI_ASSET)
def test_an_argument_of_dagsters_multi_asset_is_found_in_a_sharepoint_multi_asset(argument):
    given: dict[str, Any] = {"name": "reports", "outs": OUTS, argument: OF_MULTI_ASSET[argument]}
    if argument == "specs":
        del given["outs"]

    ours = sharepoint_multi_asset(watch=WATCH, **given)(of_files)

    theirs = told(dg.multi_asset(**given)(plain))
    assert told(ours) == theirs
    assert theirs != told(dg.multi_asset(name="reports", outs=OUTS)(plain))


@pytest.mark.parametrize("argument", OF_OUT)
def test_an_argument_of_an_output_is_found_in_a_sharepoint_multi_asset(argument):
    outs = {**OUTS, "first": dg.AssetOut(**{argument: OF_OUT[argument]})}

    ours = sharepoint_multi_asset(watch=WATCH, outs=outs)(of_files)

    theirs = told(dg.multi_asset(name="of_files", outs=outs)(plain))
    assert told(ours) == theirs
    assert theirs != told(dg.multi_asset(name="of_files", outs=OUTS)(plain))


@pytest.mark.parametrize(
    ("function", "arguments"),
    [(dg.asset, OF_ASSET), (dg.multi_asset, OF_MULTI_ASSET), (dg.AssetOut, OF_OUT)],
)
def test_there_is_no_other_argument(function: Callable[..., Any], arguments):
    known = set(inspect.signature(function).parameters)

    assert known - NO_FRAMES_FUNCTION == set(arguments)
