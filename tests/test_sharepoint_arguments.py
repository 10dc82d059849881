"""What dagster.asset and dagster.multi_asset take, SharePoint assets take as well."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import dagster as dg
import pandas as pd
import pytest

from dagster_tools.errors import ConfigurationError
from dagster_tools.postgres_io_manager import PostgresIOManager
from dagster_tools.sharepoint_asset import Watch, sharepoint_asset, sharepoint_multi_asset
from dagster_tools.sharepoint_sensor import TAG
from dagster_tools.sql import Eq, IncrementalDataFrame
from tests.fix_servers import Database
from tests.pipelines import manager_for, query
from tests.test_sharepoint_asset import (
    WATCH,
    crashing_after,
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
    "backfill_policy": dg.BackfillPolicy.single_run(),
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
    "outs": {"one": dg.AssetOut(), "other": dg.AssetOut()},
    "specs": [dg.AssetSpec("one", deps=["base"]), dg.AssetSpec("two", deps=["one"])],
    "internal_asset_deps": {"first": {dg.AssetKey("base")}, "second": {dg.AssetKey("first")}},
    "can_subset": True,
    "check_specs": [dg.AssetCheckSpec("filled", asset="second")],
}
NOT_TAKEN = {"compute_fn", "kwargs", "partitions_def"}
"""What is no argument, and partitions (decision 044)."""

MEANS_NOTHING = {"backfill_policy"}
"""What Dagster itself makes nothing of in an AssetOut."""


def plain(context, base): ...


def of_files(context, files, base): ...


OURS = {"full_refresh", "paths", "ids", "since"}
"""Fields of config."""


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
        "config": fields.keys() - OURS,
        "resources": set(op.required_resource_keys) - {"sharepoint", "io_manager", "shelf"},
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
    [
        (dg.asset, {*OF_ASSET}),
        (dg.multi_asset, {*OF_MULTI_ASSET}),
        (dg.AssetOut, {*OF_OUT} | MEANS_NOTHING),
    ],
)
def test_there_is_no_other_argument(function: Callable[..., Any], arguments):
    known = set(inspect.signature(function).parameters)

    assert known - NOT_TAKEN == arguments


# --- what they do ---------------------------------------------------------------------------


def checked_outs(dagster_type: Any) -> dict[str, dg.AssetOut]:
    return {
        name: dg.AssetOut(io_manager_key="postgres_io_manager", dagster_type=dagster_type)
        for name in ("samples", "measurements")
    }


def test_a_type_is_asked_about_what_the_function_returned_and_not_about_nothing(
    resources, drive, database
):
    asset = results_asset([], dagster_type=INCREMENTAL)
    drive.write("/Results/a.csv", "x\n1\n")
    assert run(asset, resources).success

    result = run(asset, resources)

    assert result.success, failure(result)
    assert rows(database) == [(1,)]


@pytest.mark.parametrize("dagster_type", [INCREMENTAL, IncrementalDataFrame])
def test_the_type_of_an_output_is_asked_about_what_the_function_returned(
    resources, drive, database, dagster_type
):
    @sharepoint_multi_asset(watch=WATCH, outs=checked_outs(dagster_type))
    async def reports(files):
        frames = [(await file.read_csv()).assign(file_id=file.id) for file in files]
        return frame_of(files, frames), (frame_of(files, frames) if suitable else "no frame")

    suitable = False
    drive.write("/Results/a.csv", "x\n1\n")
    assert "Type check failed" in failure(run(reports, resources))
    suitable = True

    assert run(reports, resources).success
    assert run(reports, resources).success
    assert rows(database, "lab.samples") == rows(database, "lab.measurements") == [(1,)]


def test_assets_of_files_and_others_may_be_of_the_same_type(resources):
    @dg.asset(dagster_type=INCREMENTAL)
    def of_no_files(): ...

    assets = [results_asset([], name=name, dagster_type=INCREMENTAL) for name in ("one", "other")]

    definitions = dg.Definitions([of_no_files, *assets], resources=resources)

    definitions.resolve_implicit_global_asset_job_def()


def test_what_is_of_type_nothing_is_stored_by_the_function_itself(resources, drive, graph):
    stored: list[str] = []

    @sharepoint_asset(watch=WATCH, dagster_type=dg.Nothing)
    async def results(files):
        stored.extend([await file.read_text() for file in files])

    drive.write("/Results/a.csv", "1")

    assert run(results, resources).success
    assert run(results, resources).success
    assert stored == ["1"]


def test_config_by_schema_has_the_fields_that_deliver_files_again(resources, drive):
    found: list[Any] = []

    @sharepoint_asset(watch=WATCH, config_schema={"factor": dg.Field(int, default_value=1)})
    def results(context: dg.OpExecutionContext, files):
        found.append((context.op_config["factor"], len(files)))

    drive.write("/Results/a.csv", "x\n1\n")
    run(results, resources)

    config = {"ops": {"results": {"config": {"factor": 2, "full_refresh": True}}}}
    result = run(results, resources, run_config=config)

    assert result.success, failure(result)
    assert found == [(1, 1), (2, 1)]


FACTOR = {"factor": dg.Field(int, default_value=3)}


@pytest.mark.parametrize(
    "schema", [FACTOR, dg.Field(FACTOR), dg.Shape(FACTOR), dg.Permissive(FACTOR)]
)
def test_a_schema_of_any_kind_has_them(resources, drive, schema):
    found: list[Any] = []

    @sharepoint_asset(watch=WATCH, config_schema=schema)
    def results(context: dg.OpExecutionContext, files):
        found.append((context.op_config["factor"], len(files)))

    drive.write("/Results/a.csv", "x\n1\n")
    run(results, resources)
    config = {"ops": {"results": {"config": {"full_refresh": True}}}}
    run(results, resources, run_config=config)

    assert found == [(3, 1), (3, 1)]


def test_a_schema_of_a_single_value_is_refused():
    with pytest.raises(ConfigurationError, match="Make it a dict of fields"):

        @sharepoint_asset(watch=WATCH, config_schema=int)
        def results(files): ...


@pytest.mark.parametrize("argument", ["io_manager_def", "resource_defs"])
def test_an_assets_own_resources_are_those_it_is_stored_with(resources, drive, database, argument):
    calls: list[dict[str, str]] = []
    if argument == "io_manager_def":
        own = {"io_manager_def": manager_for(database, schema="lab"), "io_manager_key": None}
        asset = results_asset(calls, **own)
        resources = {"sharepoint": resources["sharepoint"]}
    else:
        asset, resources = results_asset(calls, resource_defs=resources), {}
    drive.write("/Results/a.csv", "x\n1\n")

    assert run(asset, resources).success
    assert run(asset, resources).success
    assert len(calls) == 1
    assert rows(database) == [(1,)]


def test_resources_are_had_by_their_keys_too(resources, drive):
    found: list[Any] = []

    @sharepoint_asset(watch=WATCH, required_resource_keys={"scale"})
    def results(context, files):
        found.append(context.resources.scale)

    drive.write("/Results/a.csv", "x\n1\n")

    assert run(results, {**resources, "scale": 7}).success
    assert found == [7]


def test_a_retry_within_the_run_gets_the_same_files(resources, drive, database):
    calls: list[dict[str, str]] = []

    @sharepoint_asset(
        watch=WATCH,
        io_manager_key="postgres_io_manager",
        retry_policy=dg.RetryPolicy(max_retries=1),
    )
    async def results(files):
        calls.append({file.path: file.change for file in files})
        frames = [(await file.read_csv()).assign(file_id=file.id) for file in files]
        if len(calls) == 1:
            raise ConnectionError("not this time")
        return frame_of(files, frames)

    drive.write("/Results/a.csv", "x\n1\n")

    result = run(results, resources)

    assert result.success, failure(result)
    assert calls == [{"/Results/a.csv": "created"}] * 2
    assert rows(database) == [(1,)]


def test_hooks_are_called(resources, drive):
    cheered: list[str] = []

    @dg.success_hook
    def note(context) -> None:
        cheered.append(context.step_key)

    drive.write("/Results/a.csv", "x\n1\n")

    assert run(results_asset([], hooks={note}), resources).success
    assert cheered == ["results"]


def test_an_output_that_is_not_required_and_left_out_gets_its_files_again(
    resources, drive, database
):
    calls: list[int] = []

    @sharepoint_asset(watch=WATCH, io_manager_key="postgres_io_manager", output_required=False)
    async def results(files):
        calls.append(len(files))
        frames = [(await file.read_csv()).assign(file_id=file.id) for file in files]
        if len(calls) > 1:
            yield dg.Output(frame_of(files, frames))

    drive.write("/Results/a.csv", "x\n1\n")

    first = run(results, resources)
    for _time in range(2):
        assert run(results, resources).success

    assert first.success, failure(first)
    assert first.asset_materializations_for_node("results") == []
    assert calls == [1, 1]
    assert rows(database) == [(1,)]


def test_specs_say_which_outputs_are_stored_and_by_what(resources, drive, database):
    stored: list[str] = []
    kept = dg.AssetSpec(["lab", "kept"]).with_io_manager_key("postgres_io_manager")

    @sharepoint_multi_asset(watch=WATCH, specs=[kept, dg.AssetSpec("counted")])
    async def reports(files):
        frames = [(await file.read_csv()).assign(file_id=file.id) for file in files]
        stored.extend(file.path for file in files)
        yield dg.MaterializeResult(asset_key="counted")
        yield dg.MaterializeResult(asset_key=["lab", "kept"], value=frame_of(files, frames))

    drive.write("/Results/a.csv", "x\n1\n")

    first, second = run(reports, resources), run(reports, resources)

    assert first.success, failure(first)
    assert second.success, failure(second)
    assert stored == ["/Results/a.csv"]
    assert rows(database, "lab.kept") == [(1,)]


# --- checks within the function -------------------------------------------------------------

POSITIVE = dg.AssetCheckSpec("positive", asset="results", blocking=True)


def checked(result: dg.ExecuteInProcessResult) -> list[tuple[bool, Any]]:
    """What the checks of a run found, with the smallest value that they saw."""
    return [
        (each.passed, each.metadata["least"].value) for each in result.get_asset_check_evaluations()
    ]


def returned(value: Any, check: dg.AssetCheckResult) -> Any:
    return value, check


def in_a_result(value: Any, check: dg.AssetCheckResult) -> Any:
    return dg.MaterializeResult(value=value, check_results=[check])


class Told(NamedTuple):
    value: Any
    check: dg.AssetCheckResult


def in_a_tuple(value: Any, check: dg.AssetCheckResult) -> Any:
    return dg.MaterializeResult(value=value), check


def checked_asset(calls: list[int], told_how: Callable[..., Any] = returned) -> Any:
    @sharepoint_asset(watch=WATCH, io_manager_key="postgres_io_manager", check_specs=[POSITIVE])
    async def results(files):
        calls.append(len(files))
        frames = [(await f.read_csv()).assign(file_id=f.id) for f in files if not f.deleted]
        least = min((int(frame["x"].min()) for frame in frames), default=1)
        check = dg.AssetCheckResult(
            passed=least > 0,
            check_name="positive",
            asset_key="results",
            description="the files at hand",
            metadata={"least": least},
        )
        return told_how(frame_of(files, frames), check)

    return results


@pytest.mark.parametrize("told_how", [returned, Told, in_a_result, in_a_tuple])
def test_a_check_of_the_function_is_told_as_dagster_takes_it(resources, drive, database, told_how):
    drive.write("/Results/a.csv", "x\n1\n")

    result = run(checked_asset([], told_how), resources)

    assert result.success, failure(result)
    assert checked(result) == [(True, 1)]
    assert rows(database) == [(1,)]


def forgotten(value: Any, _check: dg.AssetCheckResult) -> Any:
    return value


def test_a_check_without_a_result_is_an_error_before_anything_is_stored(resources, drive, database):
    drive.write("/Results/a.csv", "x\n1\n")

    said = failure(run(checked_asset([], forgotten), resources))

    assert "has the checks ['positive'], and told 0 results" in said
    assert query(database, "SELECT to_regclass('lab.results')") == [(None,)]


def test_where_nothing_changed_a_check_says_what_it_said_and_still_blocks(
    resources, drive, database
):
    calls: list[int] = []
    asset = checked_asset(calls)
    drive.write("/Results/a.csv", "x\n-1\n")
    with dg.DagsterInstance.ephemeral() as instance:
        first = run(asset, resources, instance=instance)
        second = run(asset, resources, instance=instance)
        third = run(asset, resources, instance=instance)
        drive.write("/Results/a.csv", "x\n1\n")
        fixed = run(asset, resources, instance=instance)
        last = run(asset, resources, instance=instance)

    assert calls == [1, 1]
    for result in (first, second, third):
        assert "blocking asset check failed" in failure(result)
        assert checked(result) == [(False, -1)]
    (again,) = third.get_asset_check_evaluations()
    assert again.description == "the files at hand"
    assert again.metadata["sharepoint/as_in_run_id"].value == first.run_id
    assert fixed.success
    assert last.success
    assert checked(last) == [(True, 1)]
    assert rows(database) == [(1,)]


def test_a_check_that_was_never_made_is_skipped_where_there_is_nothing_to_make_it_of(
    resources, drive
):
    calls: list[int] = []
    drive.make_folder("/Results")

    result = run(checked_asset(calls), resources)

    assert result.success, failure(result)
    assert calls == []
    assert checked(result) == []


def test_a_check_of_a_run_that_was_lost_is_skipped(resources, drive, database, monkeypatch):
    """It may have failed, and an earlier one's result is of other files."""
    calls: list[int] = []
    asset = checked_asset(calls)
    drive.write("/Results/a.csv", "x\n1\n")
    with dg.DagsterInstance.ephemeral() as instance:
        assert run(asset, resources, instance=instance).success
        drive.write("/Results/a.csv", "x\n-1\n")
        with monkeypatch.context() as patched:
            patched.setattr(
                PostgresIOManager, "handle_output", crashing_after(PostgresIOManager.handle_output)
            )
            assert not run(asset, resources, instance=instance).success

        result = run(asset, resources, instance=instance)

    assert result.success, failure(result)
    assert "sharepoint/recovered_from_run_id" in metadata(result)
    assert checked(result) == []
    assert rows(database) == [(-1,)]


def test_checks_of_several_assets_can_be_selected_alone(resources, drive):
    calls: list[int] = []

    @sharepoint_multi_asset(
        watch=WATCH,
        can_subset=True,
        outs={
            name: dg.AssetOut(io_manager_key="postgres_io_manager", is_required=False)
            for name in ("samples", "measurements")
        },
        check_specs=[dg.AssetCheckSpec("filled", asset="samples")],
    )
    async def reports(files):
        calls.append(len(files))
        frame = pd.concat([(await f.read_csv()).assign(file_id=f.id) for f in files])
        for name in ("samples", "measurements"):
            value = IncrementalDataFrame(frame, Eq("file_id", [f.id for f in files]))
            yield dg.Output(value, output_name=name)
        yield dg.AssetCheckResult(
            passed=True, asset_key="samples", check_name="filled", metadata={"least": len(frame)}
        )

    drive.write("/Results/a.csv", "x\n1\n")
    with dg.DagsterInstance.ephemeral() as instance:
        first = run(reports, resources, instance=instance)
        selection = dg.AssetSelection.checks(dg.AssetCheckKey(dg.AssetKey("samples"), "filled"))

        alone = run(reports, resources, instance=instance, selection=selection)

    assert first.success, failure(first)
    assert alone.success, failure(alone)
    assert checked(first) == checked(alone) == [(True, 1)]
    assert calls == [1]


def test_partitions_are_refused_with_what_to_do():
    with pytest.raises(ConfigurationError, match="An asset for each folder"):

        @sharepoint_asset(watch=WATCH, partitions_def=dg.DailyPartitionsDefinition("2024-01-01"))
        def results(files): ...


def test_an_asset_for_each_folder_made_in_a_loop_may_have_one_table(resources, drive, database):
    calls: dict[str, list[dict[str, str]]] = {"north": [], "south": []}
    assets = [
        results_asset(
            calls[region],
            name=region,
            watch=Watch("/sites/lab", f"/{region}"),
            metadata={"table": "results"},
        )
        for region in calls
    ]
    drive.write("/north/a.csv", "x\n1\n")
    drive.write("/south/b.csv", "x\n2\n")
    assert run(assets, resources).success
    drive.move("/south/b.csv", "/north")

    result = run(assets, resources)

    assert result.success, failure(result)
    assert calls["north"][1] == {"/north/b.csv": "created"}
    assert calls["south"][1] == {"/south/b.csv": "deleted"}
    assert rows(database) == [(1,), (2,)]
