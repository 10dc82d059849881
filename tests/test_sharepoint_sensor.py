"""The sensor: a run for each asset that has work, none while one runs, later after failures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from dagster_tools import sharepoint_sensor as sensor
from dagster_tools.sharepoint_asset import Suffix, Watch, sharepoint_sensor
from tests.fix_servers import Database
from tests.graph.faults import delayed
from tests.test_sharepoint_asset import (
    reports_asset,
    resources,
    results_asset,
    rows,
)

__all__ = ["resources"]


@pytest.fixture
def database(cleaned_database: Database) -> Database:
    """A database with nothing in it, the module's own."""
    return cleaned_database


class Location:
    """A code location with a sensor, and an instance that knows its runs."""

    def __init__(self, instance: dg.DagsterInstance, resources: dict[str, Any]) -> None:
        self.instance = instance
        self.resources = resources
        self.deploy([])

    def deploy(self, assets: list[Any], **options: Any) -> None:
        self.sensor = sharepoint_sensor(**{"retry_after_seconds": 0.0, **options})
        self.definitions = dg.Definitions(
            assets=assets, sensors=[self.sensor], resources=self.resources
        )

    def tick(self) -> list[dg.RunRequest]:
        """Evaluate the sensor; return the runs it asks for."""
        repository = self.definitions.get_repository_def()
        with dg.build_sensor_context(
            instance=self.instance, repository_def=repository, resources=self.resources
        ) as context:
            data = repository.get_sensor_def(self.sensor.name).evaluate_tick(context)
        self.skipped = data.skip_message
        return list(data.run_requests or [])

    def follow(self) -> list[dg.ExecuteInProcessResult]:
        """Evaluate the sensor, and run what it asks for."""
        return [self.run(request) for request in self.tick()]

    def run(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        return self.definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            asset_selection=request.asset_selection,
            tags=dict(request.tags),
            instance=self.instance,
            raise_on_error=False,
        )


@pytest.fixture
def location(resources) -> Iterator[Location]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Location(instance, resources)


def requested(requests: list[dg.RunRequest]) -> list[list[str]]:
    return [[key.to_user_string() for key in each.asset_selection or ()] for each in requests]


def test_a_change_asks_for_one_run_of_the_asset_that_watches_it(location, drive, database):
    calls: list[Any] = []
    other = results_asset([], name="other", watch=Watch("/sites/lab", "/Other"))
    location.deploy([results_asset(calls), other])
    drive.write("/Results/a.csv", "x\n1\n")
    drive.write("/Other/b.csv", "x\n1\n")
    location.follow()
    location.follow()
    drive.write("/Results/a.csv", "x\n2\n")

    requests = location.tick()

    assert requested(requests) == [["results"]]
    assert location.run(requests[0]).success
    assert rows(database) == [(2,)]
    assert location.tick() == []
    assert location.skipped == "Nothing changed."


@pytest.mark.parametrize(
    "happens",
    [
        lambda drive: drive.write("/Results/b.csv", "x\n2\n"),
        lambda drive: drive.write("/Results/a.csv", "x\n2\n"),
        lambda drive: drive.rename("/Results/a.csv", "c.csv"),
        lambda drive: drive.move("/Results/a.csv", "/Results/new"),
        lambda drive: drive.move("/Results/a.csv", "/Elsewhere"),
        lambda drive: drive.delete("/Results/a.csv"),
        lambda drive: drive.rename("/Results", "Old results"),
    ],
    ids=["created", "changed", "renamed", "moved", "moved away", "deleted", "folder renamed"],
)
def test_whatever_happens_to_a_watched_file_asks_for_a_run(location, drive, happens):
    location.deploy([results_asset([])])
    drive.write("/Results/a.csv", "x\n1\n")
    location.follow()
    assert location.tick() == []

    happens(drive)

    assert requested(location.tick()) == [["results"]]


def test_a_tick_in_which_nothing_changed_asks_graph_for_one_page(location, drive, graph):
    location.deploy([results_asset([]), results_asset([], name="again")])
    drive.write("/Results/a.csv", "x\n1\n")
    location.follow()
    location.follow()
    asked = graph.count()

    assert location.tick() == []

    assert graph.count() - asked == 1


def test_a_library_that_was_never_listed_is_left_to_one_run(location, drive, graph):
    location.deploy([results_asset([]), results_asset([], name="more")])
    drive.write("/Results/a.csv", "x\n1\n")

    first = location.tick()

    assert requested(first) == [["more"]]
    assert graph.count("delta") == 0
    assert location.run(first[0]).success
    assert requested(location.tick()) == [["results"]]


def test_what_a_tick_has_no_time_for_is_left_to_a_run(location, drive, graph, database):
    location.deploy([results_asset([])], seconds_per_tick=0.4)
    drive.write("/Results/a.csv", "x\n1\n")
    location.follow()
    drive.write("/Results/a.csv", "x\n2\n")
    graph.faults.add("delta", delayed(3.0))

    requests = location.tick()

    assert requested(requests) == [["results"]]
    assert location.run(requests[0]).success
    assert rows(database) == [(2,)]


def test_no_second_run_is_asked_for_while_one_is_active(location, drive):
    location.deploy([results_asset([])])
    drive.write("/Results/a.csv", "x\n1\n")
    job = location.definitions.resolve_implicit_global_asset_job_def()
    run = location.instance.create_run_for_job(
        job, asset_selection=frozenset([dg.AssetKey("results")])
    )

    assert location.tick() == []
    assert location.skipped == "results is being run"
    location.instance.delete_run(run.run_id)
    assert requested(location.tick()) == [["results"]]


def test_after_a_failed_run_another_is_asked_for_under_another_key(location, drive, database):
    location.deploy([results_asset([])])
    drive.write("/Results/a.csv", "")
    first = location.tick()
    assert not location.run(first[0]).success

    second = location.tick()
    assert not location.run(second[0]).success
    third = location.tick()

    assert len({request.run_key for request in [*first, *second, *third]}) == 3
    drive.write("/Results/a.csv", "x\n1\n")
    assert [result.success for result in location.follow()] == [True]
    assert rows(database) == [(1,)]


def test_after_a_failed_run_the_sensor_waits(location, drive):
    location.deploy([results_asset([])], retry_after_seconds=60.0)
    drive.write("/Results/a.csv", "")
    location.follow()
    # The library was listed in that run, so what there is to do has another name now.
    location.follow()

    assert location.tick() == []
    assert location.skipped == "results waits after a failed run"
    drive.write("/Results/a.csv", "x\n1\n")
    assert [result.success for result in location.follow()] == [True]


def test_each_failed_run_makes_the_sensor_wait_twice_as_long_but_not_for_ever(
    location, drive, monkeypatch
):
    location.deploy([results_asset([])], retry_after_seconds=60.0, longest_retry_seconds=200.0)
    drive.write("/Results/a.csv", "")
    location.follow()  # which lists the library, so that what there is to do has another name
    later = [0.0]
    clock = SimpleNamespace(time=lambda: time.time() + later[0], monotonic=time.monotonic)
    monkeypatch.setattr(sensor, "time", clock)

    for seconds in (60, 120, 200, 200):
        location.follow()
        later[0] = seconds - 5
        assert location.tick() == []
        assert location.skipped == "results waits after a failed run"
        later[0] = seconds + 1


def test_run_requests_say_nothing_about_files(location, drive):
    location.deploy([results_asset([])])
    drive.write("/Results/a.csv", "x\n1\n")

    (request,) = location.tick()

    assert not request.run_config
    assert "a.csv" not in f"{request.tags}{request.run_key}"


def test_the_outputs_of_a_function_are_run_together(location, drive):
    location.deploy([reports_asset([], [])])
    drive.write("/Results/a.csv", "x\n1\n")

    assert requested(location.tick()) == [["measurements", "samples"]]


def test_a_library_that_cannot_be_read_does_not_stop_the_others(location, drive, graph):
    elsewhere = Watch("/sites/none", "/Results", filters=[Suffix(".csv")])
    location.deploy([results_asset([]), results_asset([], name="lost", watch=elsewhere)])
    drive.write("/Results/a.csv", "x\n1\n")

    assert requested(location.tick()) == [["results"]]


def test_a_library_that_was_deleted_and_made_anew_is_left_to_a_run(location, graph, database):
    site = graph.site("/sites/lab", "Lab Data")
    site.library().write("/Results/a.csv", "x\n1\n")
    location.deploy([results_asset([])])
    location.follow()
    site.delete_library()
    site.library().write("/Results/b.csv", "x\n2\n")

    assert [result.success for result in location.follow()] == [True]

    assert rows(database) == [(2,)]
    assert location.tick() == []


def test_a_tick_that_can_do_nothing_fails(location, drive, graph):
    location.deploy([results_asset([], watch=Watch("/sites/none"))])

    with pytest.raises(Exception, match="/sites/none"):
        location.tick()


def test_assets_of_no_files_are_left_alone(location):
    @dg.asset
    def plain() -> None: ...

    location.deploy([plain])

    assert location.tick() == []
    assert location.skipped == "No asset of this code location is of SharePoint files."
