"""SharePoint assets, run by Dagster against the emulator and a real PostgreSQL."""

from __future__ import annotations

import asyncio
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from dagster_tools.errors import ConfigurationError
from dagster_tools.postgres.feed import FeedTables
from dagster_tools.postgres_io_manager import PostgresIOManager
from dagster_tools.sharepoint_asset import (
    SharePointConfig,
    SharePointResource,
    Suffix,
    Watch,
    sharepoint_asset,
    sharepoint_multi_asset,
)
from dagster_tools.sql import SQL, Eq, IncrementalDataFrame
from shared.sharepoint.client_v2 import SharePointFile
from tests.fix_graph import HASTY
from tests.fix_servers import Database
from tests.graph import Graph
from tests.graph.faults import failing, meanwhile, truncated
from tests.pipelines import manager_for, query, resource_for

WATCH = Watch("/sites/lab", "/Results", filters=[Suffix(".csv")])


@pytest.fixture
def database(cleaned_database: Database) -> Database:
    """A database with nothing in it, the module's own."""
    return cleaned_database


class HastyResource(SharePointResource):
    """Does not wait long before it tries again."""

    def client(self) -> Any:
        client = super().client()
        client.retry = HASTY
        return client


@pytest.fixture
def resources(graph: Graph, database: Database) -> dict[str, Any]:
    return {
        "sharepoint": resource_of(graph, database),
        "postgres_io_manager": manager_for(database, schema="lab"),
    }


def resource_of(graph: Graph, database: Database, **options: Any) -> SharePointResource:
    identity = graph.identity
    return HastyResource(
        **{
            "tenant": identity.tenant,
            "client_id": identity.client_id,
            "client_secret": identity.secret,
            "authority": graph.url,
            "graph": graph.url,
            "hostname": "contoso.sharepoint.com",
            "ca_file": str(graph.ca_file),
            "connection": resource_for(database),
            **options,
        }
    )


def frame_of(files: list[SharePointFile], frames: list[pd.DataFrame]) -> IncrementalDataFrame:
    result = pd.concat(frames) if frames else pd.DataFrame()
    return IncrementalDataFrame(result, delete=Eq("file_id", [file.id for file in files]))


def results_asset(calls: list[dict[str, str]], **options: Any) -> dg.AssetsDefinition:
    """The guide's asset; `calls` gets what each call of its function was handed."""

    @sharepoint_asset(**{"watch": WATCH, "io_manager_key": "postgres_io_manager", **options})
    async def results(files: list[SharePointFile]):
        calls.append({file.path: file.change for file in files})
        frames = []
        for file in files:
            if not file.deleted:
                frame = await file.read_csv()
                frames.append(frame.assign(file_id=file.id))
        return frame_of(files, frames)

    return results


def run(assets: Any, resources: dict[str, Any], **options: Any) -> dg.ExecuteInProcessResult:
    assets = assets if isinstance(assets, list) else [assets]
    return dg.materialize(assets, resources=resources, raise_on_error=False, **options)


def rows(database: Database, table: str = "lab.results", columns: str = "x") -> list[Any]:
    return query(database, f"SELECT {columns} FROM {table} ORDER BY {columns}")


def metadata(result: dg.ExecuteInProcessResult, node: str = "results") -> dict[str, Any]:
    (event,) = result.asset_materializations_for_node(node)
    return {key: value.value for key, value in event.metadata.items()}


def failure(result: dg.ExecuteInProcessResult) -> str:
    (event,) = result.get_step_failure_events()
    error = event.step_failure_data.error
    assert error is not None
    return error.to_string()


# --- files in, rows out ---------------------------------------------------------------------


def test_the_function_gets_the_files_that_changed_and_the_table_follows(resources, drive, database):
    calls: list[dict[str, str]] = []
    asset = results_asset(calls)
    drive.write("/Results/a.csv", "x\n1\n")
    drive.write("/Results/b.csv", "x\n2\n3\n")
    assert run(asset, resources).success
    assert rows(database) == [(1,), (2,), (3,)]

    drive.write("/Results/a.csv", "x\n10\n")
    drive.delete("/Results/b.csv")
    result = run(asset, resources)

    assert result.success, failure(result)
    assert calls[1] == {"/Results/a.csv": "changed", "/Results/b.csv": "deleted"}
    assert rows(database) == [(10,)]
    assert metadata(result)["sharepoint/changed"] == 1
    assert metadata(result)["sharepoint/deleted"] == 1
    assert metadata(result)["sharepoint/rows"] == {"/Results/a.csv": 1}
    assert "[/Results/a.csv](<https://contoso" in metadata(result)["sharepoint/files"]


def test_where_nothing_changed_the_function_is_not_called_and_what_is_stored_stays(
    resources, drive, database
):
    calls: list[dict[str, str]] = []
    asset = results_asset(calls)
    drive.write("/Results/a.csv", "x\n1\n")
    run(asset, resources)

    result = run(asset, resources)

    assert result.success
    assert len(calls) == 1
    assert rows(database) == [(1,)]
    assert metadata(result)["sharepoint/changed"] == 0


def test_the_last_file_that_is_deleted_takes_the_last_rows_with_it(resources, drive, database):
    asset = results_asset([])
    drive.write("/Results/a.csv", "x\n1\n")
    run(asset, resources)
    drive.delete("/Results/a.csv")

    result = run(asset, resources)

    assert result.success, failure(result)
    assert rows(database) == []


def test_a_run_that_fails_loses_nothing(resources, drive, database):
    calls: list[dict[str, str]] = []
    asset = results_asset(calls)
    drive.write("/Results/a.csv", "x\n1\n")
    run(asset, resources)
    drive.write("/Results/a.csv", "x\n2\n")
    drive.write("/Results/b.csv", "")

    assert "EmptyDataError" in failure(run(asset, resources))
    assert rows(database) == [(1,)]
    drive.write("/Results/b.csv", "x\n3\n")

    assert run(asset, resources).success
    assert calls[-1] == {"/Results/a.csv": "changed", "/Results/b.csv": "created"}
    assert rows(database) == [(2,), (3,)]


def test_a_value_that_does_not_fit_acknowledges_nothing(resources, drive, database):
    calls: list[dict[str, str]] = []
    asset = results_asset(calls, metadata={"columns": {"x": "int"}})
    drive.write("/Results/a.csv", "x\nten\n")
    assert not run(asset, resources).success
    drive.write("/Results/b.csv", "x\n2\n")
    drive.write("/Results/a.csv", "x\n1\n")

    assert run(asset, resources).success
    assert calls[-1] == {"/Results/a.csv": "created", "/Results/b.csv": "created"}
    assert rows(database) == [(1,), (2,)]


def test_a_plain_function_reads_files_without_await(resources, drive, database):
    @sharepoint_asset(watch=WATCH, io_manager_key="postgres_io_manager")
    def results(context, files, config: SharePointConfig):
        assert context.asset_key == dg.AssetKey("results")
        assert not config.full_refresh
        frames = []
        for file in files:
            assert file.name == "a.csv"
            assert file.read_text() == "x\n1\n"
            assert b"".join(file.chunks(2)) == b"x\n1\n"
            with file.open() as stream:
                frames.append(pd.read_csv(stream).assign(file_id=file.id))
        return frame_of(files, frames)

    drive.write("/Results/a.csv", "x\n1\n")

    result = run(results, resources)

    assert result.success, failure(result)
    assert rows(database) == [(1,)]


def test_a_function_takes_inputs_resources_and_config_of_its_own(resources, drive, database):
    class Scale(dg.Config):
        factor: int = 1

    class Offset(dg.ConfigurableResource):
        value: int

    @dg.asset(io_manager_key="postgres_io_manager")
    def base() -> pd.DataFrame:
        return pd.DataFrame({"x": [100]})

    async def results(files, base: pd.DataFrame, config: Scale, offset: Offset):
        frames = [
            (await file.read_csv()).assign(file_id=file.id) * [config.factor, 1] for file in files
        ]
        frames[0]["x"] += base["x"][0] + offset.value
        return frame_of(files, frames)

    results.__annotations__ |= {"config": Scale, "offset": Offset}
    asset = sharepoint_asset(watch=WATCH, io_manager_key="postgres_io_manager")(results)
    drive.write("/Results/a.csv", "x\n1\n")

    result = run(
        [base, asset],
        {**resources, "offset": Offset(value=1000)},
        run_config={"ops": {"results": {"config": {"factor": 2}}}},
    )

    assert result.success, failure(result)
    assert rows(database) == [(1102,)]


def test_none_for_files_that_have_nothing_to_store_acknowledges_them(resources, drive, database):
    calls = []

    @sharepoint_asset(watch=WATCH, io_manager_key="postgres_io_manager")
    def results(files):
        calls.append(len(files))

    drive.write("/Results/a.csv", "x\n1\n")

    assert run(results, resources).success
    assert run(results, resources).success
    assert calls == [1]


def test_sql_acknowledges_in_its_transaction(resources, drive, database):
    calls = []

    @sharepoint_asset(watch=WATCH, io_manager_key="postgres_io_manager")
    def results(files):
        calls.append(len(files))
        return SQL("CREATE TABLE lab.results AS SELECT 1 AS x; SELECT 1 / %(zero)s", zero=zero[-1])

    zero = [1, 0]
    with database.connect() as connection:
        connection.execute("CREATE SCHEMA lab")
    drive.write("/Results/a.csv", "x\n1\n")

    assert not run(results, resources).success
    zero.append(1)
    assert run(results, resources).success
    assert run(results, resources).success
    assert calls == [1, 1]


def test_a_decorated_function_is_an_asset_with_the_inputs_and_resources_it_names():
    """Dagster's releases read them from the signature or from annotations."""

    class Scale(dg.ConfigurableResource):
        factor: int

    def results(context, files, base: pd.DataFrame, scale: Scale): ...

    results.__annotations__["scale"] = Scale
    asset = sharepoint_asset(watch=WATCH)(results)

    assert asset.keys_by_input_name == {"base": dg.AssetKey("base")}
    assert asset.op.required_resource_keys == {"io_manager", "scale", "sharepoint"}


# --- what is refused ------------------------------------------------------------------------


def test_a_plain_frame_of_the_files_that_changed_is_refused_before_anything_is_written(
    resources, drive, database
):
    @sharepoint_asset(watch=WATCH, io_manager_key="postgres_io_manager")
    async def results(files):
        return pd.DataFrame({"x": [1]})

    drive.write("/Results/a.csv", "x\n1\n")

    said = failure(run(results, resources))

    assert "mode='snapshot'" in said
    assert query(database, "SELECT to_regclass('lab.results')") == [(None,)]


def test_a_snapshot_gets_all_files_whenever_one_changed_and_replaces_the_table(
    resources, drive, database
):
    calls = []

    @sharepoint_asset(watch=WATCH, mode="snapshot", io_manager_key="postgres_io_manager")
    async def results(files):
        calls.append({file.path: file.change for file in files})
        return pd.concat([await file.read_csv() for file in files])

    drive.write("/Results/a.csv", "x\n1\n")
    drive.write("/Results/b.csv", "x\n2\n")
    drive.write("/Results/c.csv", "x\n3\n")
    run(results, resources)
    drive.write("/Results/b.csv", "x\n20\n")
    drive.delete("/Results/c.csv")

    assert run(results, resources).success
    assert run(results, resources).success
    assert calls[1:] == [{"/Results/a.csv": "unchanged", "/Results/b.csv": "changed"}]
    assert rows(database) == [(1,), (20,)]


def test_an_incremental_asset_with_a_key_upserts_a_plain_frame(resources, drive, database):
    @sharepoint_asset(
        watch=WATCH,
        io_manager_key="postgres_io_manager",
        metadata={"primary_key": "x", "incremental": True},
    )
    async def results(files):
        return pd.concat([await file.read_csv() for file in files])

    drive.write("/Results/a.csv", "x\n1\n")
    run(results, resources)
    drive.write("/Results/b.csv", "x\n2\n")

    assert run(results, resources).success
    assert rows(database) == [(1,), (2,)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"watch": "Lab"}, "watch must be a Watch"),
        ({"watch": WATCH, "mode": "all"}, "mode is 'all'"),
        ({"watch": WATCH, "on_file_error": "skip"}, "on_file_error is 'skip'"),
        ({"watch": WATCH, "mode": "snapshot", "on_file_error": "quarantine"}, "would lose"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(arguments, said):
    with pytest.raises(ConfigurationError, match=said):

        @sharepoint_asset(**arguments)
        def results(files): ...


def test_a_function_without_files_is_refused():
    with pytest.raises(ConfigurationError, match="no parameter named 'files'"):

        @sharepoint_asset(watch=WATCH)
        def results(): ...


def test_a_feed_in_another_database_than_the_assets_is_refused(
    graph, drive, database, prod_database
):
    resources = {
        "sharepoint": resource_of(graph, prod_database),
        "postgres_io_manager": manager_for(database, schema="lab"),
    }
    drive.write("/Results/a.csv", "x\n1\n")

    said = failure(run(results_asset([]), resources))

    assert "the same connection" in said
    assert query(database, "SELECT to_regclass('lab.results')") == [(None,)]


def test_a_watched_folder_that_is_not_there_is_an_error_that_names_those_that_are(resources, drive):
    drive.write("/Reports/a.csv", "x\n1\n")

    said = failure(run(results_asset([]), resources))

    assert "There is no folder /Results" in said
    assert "['Reports']" in said


def test_the_feed_lies_in_the_tracking_schema_whatever_its_name(graph, drive, database):
    schema = 'The "meta"\n; --'
    resources = {
        "sharepoint": resource_of(graph, database, tracking_schema=schema),
        "postgres_io_manager": manager_for(database, schema="lab", tracking_schema=schema),
    }
    calls: list[dict[str, str]] = []
    asset = results_asset(calls)
    for content in ("x\n1\n", "x\n2\n"):
        drive.write("/Results/a.csv", content)
        assert run(asset, resources).success

    assert run(asset, resources).success
    assert len(calls) == 2
    assert rows(database) == [(2,)]


# --- files that cannot be read --------------------------------------------------------------


def test_a_file_that_cannot_be_read_is_left_out_until_it_changes(resources, drive, database):
    calls: list[dict[str, str]] = []
    asset = results_asset(calls, on_file_error="quarantine")
    drive.write("/Results/a.csv", "x\n1\n")
    drive.write("/Results/b.csv", "x\n2\n")
    run(asset, resources)
    drive.write("/Results/a.csv", "")
    drive.write("/Results/b.csv", "x\n20\n")

    result = run(asset, resources)

    assert result.success, failure(result)
    assert rows(database) == [(1,), (20,)]
    assert metadata(result)["sharepoint/quarantined"] == 1
    assert "| quarantined | [/Results/a.csv]" in metadata(result)["sharepoint/files"]
    del calls[:]
    assert run(asset, resources).success
    assert calls == []
    drive.write("/Results/a.csv", "x\n10\n")
    assert run(asset, resources).success
    assert calls == [{"/Results/a.csv": "changed"}]
    assert rows(database) == [(10,), (20,)]
    assert query(database, "SELECT count(*) FROM meta.sharepoint_failures") == [(0,)]


def test_the_network_is_no_reason_to_quarantine_a_file(resources, drive, database, graph):
    asset = results_asset([], on_file_error="quarantine")
    drive.write("/Results/a.csv", "x\n1\n")
    graph.faults.add("item", failing(500), times=100)

    assert "generalException" in failure(run(asset, resources))
    assert query(database, "SELECT attempts, quarantined FROM meta.sharepoint_failures") == [
        (1, False)
    ]


def test_a_file_deleted_between_listing_and_download_is_as_good_as_never_there(
    resources, drive, database, graph
):
    calls: list[dict[str, str]] = []
    asset = results_asset(calls)
    drive.write("/Results/a.csv", "x\n1\n")
    drive.write("/Results/b.csv", "x\n2\n")
    run(asset, resources)
    drive.write("/Results/a.csv", "x\n10\n")
    drive.write("/Results/b.csv", "x\n20\n")
    graph.faults.add("item", meanwhile(lambda: drive.delete("/Results/a.csv")))

    result = run(asset, resources)

    assert result.success, failure(result)
    assert calls[-1] == {"/Results/a.csv": "deleted", "/Results/b.csv": "changed"}
    assert rows(database) == [(20,)]
    assert run(asset, resources).success
    assert rows(database) == [(20,)]


# --- again ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "handed"),
    [
        ({"full_refresh": True}, {"/Results/a.csv", "/Results/b.csv"}),
        ({"paths": ["/results/A*"]}, {"/Results/a.csv"}),
        ({"ids": ["the id of b.csv"]}, {"/Results/b.csv"}),
        ({"since": "2026-01-05T08:00:00Z"}, {"/Results/a.csv", "/Results/b.csv"}),
        ({"since": "2999-01-01"}, set()),
    ],
    ids=["everything", "paths", "ids", "since", "since a time to come"],
)
def test_files_are_delivered_again_on_demand(resources, drive, database, config, handed):
    calls: list[dict[str, str]] = []
    asset = results_asset(calls)
    drive.write("/Results/a.csv", "x\n1\n")
    drive.write("/Results/b.csv", "x\n2\n")
    run(asset, resources)
    del calls[:]
    if "ids" in config:
        config = {"ids": [drive["/Results/b.csv"].id]}

    result = run(asset, resources, run_config={"ops": {"results": {"config": config}}})

    assert result.success, failure(result)
    assert {path for call in calls for path in call} == handed
    assert rows(database) == [(1,), (2,)]


# --- whatever happens -----------------------------------------------------------------------


def test_a_crash_before_commit_leaves_rows_and_files_as_they_were(
    resources, drive, database, monkeypatch
):
    calls: list[dict[str, str]] = []
    asset = results_asset(calls)
    drive.write("/Results/a.csv", "x\n1\n")
    run(asset, resources)
    drive.write("/Results/a.csv", "x\n2\n")
    with monkeypatch.context() as patched:
        patched.setattr(FeedTables, "deliver", crashing_after(FeedTables.deliver))
        assert not run(asset, resources).success
        assert rows(database) == [(1,)]

    assert run(asset, resources).success
    assert calls[1:] == [{"/Results/a.csv": "changed"}] * 2
    assert rows(database) == [(2,)]


def test_after_a_crash_between_commit_and_dagsters_event_nothing_is_applied_twice(
    resources, drive, database, monkeypatch
):
    calls: list[dict[str, str]] = []
    asset = results_asset(calls)
    drive.write("/Results/a.csv", "x\n1\n")
    with dg.DagsterInstance.ephemeral() as instance:
        with monkeypatch.context() as patched:
            patched.setattr(
                PostgresIOManager, "handle_output", crashing_after(PostgresIOManager.handle_output)
            )
            crashed = run(asset, resources, instance=instance)
            assert not crashed.success
        assert rows(database) == [(1,)]

        result = run(asset, resources, instance=instance)
        again = run(asset, resources, instance=instance)

    assert result.success, failure(result)
    assert len(calls) == 1
    assert metadata(result)["sharepoint/recovered_from_run_id"] == crashed.run_id
    assert rows(database) == [(1,)]
    assert "sharepoint/recovered_from_run_id" not in metadata(again)


def test_a_retry_of_a_step_that_had_committed_applies_nothing_twice(
    resources, drive, database, monkeypatch
):
    """The connection was lost while COMMIT was under way, say, and Dagster's own retry comes."""
    calls: list[dict[str, str]] = []
    asset = results_asset(calls, retry_policy=dg.RetryPolicy(max_retries=1))
    drive.write("/Results/a.csv", "x\n1\n")
    stored = crashing_after(PostgresIOManager.handle_output)
    monkeypatch.setattr(PostgresIOManager, "handle_output", stored)

    result = run(asset, resources)

    assert result.success, failure(result)
    assert calls == [{"/Results/a.csv": "created"}]
    assert metadata(result)["sharepoint/recovered_from_run_id"] == result.run_id
    assert rows(database) == [(1,)]


def crashing_after(function: Any) -> Any:
    """Do as the function does, and end as if the process did."""

    def crash(*arguments: Any, **named: Any) -> None:
        function(*arguments, **named)
        raise RuntimeError("the process ends here")

    return crash


def test_of_two_runs_at_once_one_stores_and_the_other_says_so(resources, drive, database):
    drive.write("/Results/a.csv", "x\n1\n")
    inner = results_asset([])
    others: list[Any] = []

    @sharepoint_asset(watch=WATCH, io_manager_key="postgres_io_manager")
    async def results(files):
        if not others:
            others.append(None)
            others.append(await asyncio.to_thread(run, inner, resources))
        return frame_of(files, [(await f.read_csv()).assign(file_id=f.id) for f in files])

    said = failure(run(results, resources))

    assert others[1].success
    assert "Another run has delivered files to this asset" in said
    assert rows(database) == [(1,)]
    assert run(results, resources).success
    assert rows(database) == [(1,)]


@pytest.mark.parametrize(("moment", "stored"), [("before it is read", 2), ("after it was", 1)])
def test_a_file_that_changes_while_it_is_read_is_delivered_again(
    resources, drive, database, moment, stored
):
    calls: list[dict[str, str]] = []

    @sharepoint_asset(watch=WATCH, io_manager_key="postgres_io_manager")
    async def results(files):
        calls.append({file.path: file.change for file in files})
        if len(calls) == 1 and moment == "before it is read":
            drive.write("/Results/a.csv", "x\n2\n")
        frames = [(await file.read_csv()).assign(file_id=file.id) for file in files]
        if len(calls) == 1 and moment == "after it was":
            drive.write("/Results/a.csv", "x\n2\n")
        return frame_of(files, frames)

    drive.write("/Results/a.csv", "x\n1\n")
    run(results, resources)
    assert rows(database) == [(stored,)]

    assert run(results, resources).success
    assert calls == [{"/Results/a.csv": "created"}, {"/Results/a.csv": "changed"}]
    assert rows(database) == [(2,)]


def test_a_changed_watch_delivers_the_difference(resources, drive, database):
    calls: list[dict[str, str]] = []
    drive.write("/Results/a.csv", "x\n1\n")
    drive.write("/Results/b.txt", "x\n2\n")
    run(results_asset(calls), resources)

    other = results_asset(calls, watch=Watch("/sites/lab", "/Results", filters=[Suffix(".txt")]))

    assert run(other, resources).success
    assert calls[1] == {"/Results/a.csv": "deleted", "/Results/b.txt": "created"}
    assert rows(database) == [(2,)]


def test_a_library_that_was_deleted_and_made_anew_is_another_with_other_files(
    resources, graph, database
):
    site = graph.site("/sites/lab", "Lab Data")
    site.library().write("/Results/a.csv", "x\n1\n")
    calls: list[dict[str, str]] = []
    asset = results_asset(calls)
    run(asset, resources)
    site.delete_library()
    site.library().write("/Results/b.csv", "x\n2\n")

    result = run(asset, resources)

    assert result.success, failure(result)
    assert calls[1] == {"/Results/a.csv": "deleted", "/Results/b.csv": "created"}
    assert rows(database) == [(2,)]


def test_several_folders_and_libraries_are_watched_by_one_asset(resources, graph, database):
    site = graph.site("/sites/lab", "Lab Data")
    site.library().write("/Results/a.csv", "x\n1\n")
    site.library("Archive").write("/Old/b.csv", "x\n2\n")
    calls: list[dict[str, str]] = []
    watches = [WATCH, Watch("/sites/lab", "/Old", library="Archive")]

    result = run(results_asset(calls, watch=watches), resources)

    assert result.success, failure(result)
    assert rows(database) == [(1,), (2,)]
    del calls[:]
    assert run(results_asset(calls, watch=WATCH), resources).success
    assert calls == [{"/Old/b.csv": "deleted"}]


def test_secrets_and_preauthenticated_urls_reach_no_log_error_or_metadata(
    graph, drive, database, capfd
):
    resources = {
        "sharepoint": resource_of(graph, database),
        "postgres_io_manager": manager_for(database, schema="lab"),
    }
    drive.write("/Results/a.csv", "x\n1\n")
    drive.write("/Results/b.csv", "x\n2\n")
    told = [repr(resources), str(resources["sharepoint"])]
    with dg.DagsterInstance.ephemeral() as instance:
        run(results_asset([]), resources, instance=instance)
        for fault in (truncated(2), failing(500), failing(404), failing(403)):
            drive.write("/Results/a.csv", f"x\n{len(told)}\n")
            graph.faults.add("download", fault, times=20)
            run(results_asset([], on_file_error="quarantine"), resources, instance=instance)
            graph.faults._planned.clear()
        for record in instance.get_run_records():
            logs = instance.all_logs(record.dagster_run.run_id)
            told += [dg.serialize_value(entry) for entry in logs]
    told += [str(row) for row in query(database, "SELECT * FROM meta.sharepoint_failures")]
    told += [str(row) for row in query(database, "SELECT * FROM meta.sharepoint_libraries")]
    told += [*capfd.readouterr()]

    everything = "\n".join(told)
    assert "/Results/a.csv" in everything
    for canary in (graph.identity.secret, "tempauth", "_dl/", *graph.identity._tokens):
        assert canary not in everything


# --- other IO managers ----------------------------------------------------------------------


class Shelf(dg.IOManager):
    """Keeps values in memory, and may fail after it did."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.fails = False

    def handle_output(self, context, obj):
        self.values.append(obj)
        if self.fails:
            raise RuntimeError("no more room")

    def load_input(self, context): ...


def test_another_io_manager_gets_files_again_until_dagster_knows_they_were_stored(resources, drive):
    calls: list[dict[str, str]] = []
    shelf = Shelf()

    @sharepoint_asset(watch=WATCH, io_manager_key="shelf")
    async def results(files):
        calls.append({file.path: file.change for file in files})
        return [await file.read_text() for file in files]

    resources = {**resources, "shelf": shelf}
    drive.write("/Results/a.csv", "1")
    with dg.DagsterInstance.ephemeral() as instance:
        shelf.fails = True
        assert not run(results, resources, instance=instance).success
        shelf.fails = False
        assert run(results, resources, instance=instance).success
        assert run(results, resources, instance=instance).success
        drive.write("/Results/a.csv", "2")
        assert run(results, resources, instance=instance).success

    assert calls == [{"/Results/a.csv": change} for change in ("created", "changed", "changed")]
    assert shelf.values == [["1"], ["1"], ["2"]]


def test_another_io_manager_is_told_of_the_end_of_a_file_it_may_have_stored(resources, drive):
    calls: list[dict[str, str]] = []
    shelf = Shelf()

    @sharepoint_asset(watch=WATCH, io_manager_key="shelf")
    async def results(files):
        calls.append({file.path: file.change for file in files})
        return len(files)

    resources = {**resources, "shelf": shelf}
    drive.write("/Results/a.csv", "1")
    shelf.fails = True
    run(results, resources)
    shelf.fails = False
    drive.delete("/Results/a.csv")

    assert run(results, resources).success
    assert calls[1:] == [{"/Results/a.csv": "deleted"}]


# --- several outputs ------------------------------------------------------------------------


def reports_asset(calls: list[Any], fail: list[str], **options: Any) -> dg.AssetsDefinition:
    @sharepoint_multi_asset(
        watch=WATCH,
        outs={
            name: dg.AssetOut(io_manager_key="postgres_io_manager")
            for name in ("samples", "measurements")
        },
        **options,
    )
    async def reports(files):
        calls.append({file.path: file.change for file in files})
        delete = Eq("file_id", [file.id for file in files])
        frames = [(await f.read_csv()).assign(file_id=f.id) for f in files if not f.deleted]
        frame = pd.concat(frames) if frames else pd.DataFrame()
        other = frame.assign(x=fail.pop()) if fail else frame
        return IncrementalDataFrame(frame, delete), IncrementalDataFrame(other, delete)

    return reports


def test_each_output_of_a_multi_asset_is_acknowledged_with_its_own_rows(resources, drive, database):
    calls: list[Any] = []
    asset = reports_asset(calls, [])
    drive.write("/Results/a.csv", "x\n1\n")

    result = run(asset, resources)

    assert result.success, failure(result)
    assert rows(database, "lab.samples") == rows(database, "lab.measurements") == [(1,)]
    assert run(asset, resources).success
    assert len(calls) == 1


def test_an_output_that_fails_gets_its_files_again_and_the_others_are_safe(
    resources, drive, database
):
    calls: list[Any] = []
    fail: list[str] = []
    asset = reports_asset(calls, fail)
    drive.write("/Results/a.csv", "x\n1\n")
    run(asset, resources)
    drive.write("/Results/a.csv", "x\n2\n")
    fail.append("\x00")

    assert not run(asset, resources).success
    assert rows(database, "lab.samples") == [(2,)]
    assert rows(database, "lab.measurements") == [(1,)]
    assert run(asset, resources).success
    assert rows(database, "lab.samples") == rows(database, "lab.measurements") == [(2,)]
    assert len(calls) == 3
    assert run(asset, resources).success
    assert len(calls) == 3


def test_a_run_of_some_outputs_acknowledges_those_alone(resources, drive, database):
    calls: list[Any] = []

    @sharepoint_multi_asset(
        watch=WATCH,
        can_subset=True,
        outs={
            name: dg.AssetOut(io_manager_key="postgres_io_manager", is_required=False)
            for name in ("samples", "measurements")
        },
    )
    async def reports(context: dg.OpExecutionContext, files):
        calls.append(sorted(context.selected_output_names))
        frame = pd.concat([(await f.read_csv()).assign(file_id=f.id) for f in files])
        for name in context.selected_output_names:
            value = IncrementalDataFrame(frame, Eq("file_id", [f.id for f in files]))
            yield dg.Output(value, output_name=name)

    drive.write("/Results/a.csv", "x\n1\n")

    assert run(reports, resources, selection=["samples"]).success
    result = run(reports, resources)

    assert result.success, failure(result)
    assert calls == [["samples"], ["measurements", "samples"]]
    assert rows(database, "lab.samples") == rows(database, "lab.measurements") == [(1,)]
