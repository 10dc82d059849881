"""`dagster-tools sharepoint`: what works, what assets have, and beginning anew."""

from __future__ import annotations

import json

import pytest

from dagster_tools.cli import main
from tests.fix_servers import Database
from tests.test_sharepoint_asset import resources, results_asset, rows, run

__all__ = ["resources"]


@pytest.fixture
def database(cleaned_database: Database) -> Database:
    """A database with nothing in it, the module's own."""
    return cleaned_database


@pytest.fixture
def shell(database, graph, monkeypatch, capsys):
    """A function that runs one command, and returns what it printed."""
    monkeypatch.setenv("AZURE_TENANT_ID", graph.identity.tenant)
    monkeypatch.setenv("AZURE_CLIENT_ID", graph.identity.client_id)
    monkeypatch.setenv("AZURE_CLIENT_SECRET", graph.identity.secret)
    monkeypatch.delenv("AZURE_CLIENT_CERTIFICATE_PATH", raising=False)

    def command(action, *arguments, code=0):
        capsys.readouterr()  # what Dagster logged before
        there = ["--authority", graph.url, "--graph", graph.url, "--ca-file", str(graph.ca_file)]
        where = there if action == "check" else ["--url", database.url]
        assert main(["sharepoint", action, *arguments, *where]) == code
        captured = capsys.readouterr()
        return captured.out + captured.err

    return command


def test_check_tries_every_step_from_sign_in_to_download(shell, drive):
    drive.write("/Results/a.csv", "x\n1\n")

    steps = json.loads(shell("check", "/sites/lab", "--folder", "/Results", "--json"))

    assert [step["subject"] for step in steps] == [
        "sign-in",
        "site",
        "library",
        "folder",
        "delta",
        "download",
    ]
    assert {step["state"] for step in steps} == {"ok"}
    assert steps[0]["found"] == "application permissions: Files.Read.All, Sites.Read.All"
    assert steps[-1]["found"] == "/Results/a.csv, 4 bytes"


@pytest.mark.parametrize(
    ("break_it", "arguments", "step", "said"),
    [
        (lambda g: setattr(g.identity, "secret", "new"), [], "sign-in", "AADSTS7000215"),
        (lambda g: g.identity.roles.clear(), [], "site", "Sites.Selected"),
        (lambda g: None, ["--library", "Archive"], "library", "It has: ['Documents']"),
        (lambda g: None, ["--folder", "/Nowhere"], "folder", "has the folders: ['Results']"),
    ],
    ids=["secret", "permission", "library", "folder"],
)
def test_check_ends_at_the_step_that_fails_and_says_what_is_missing(
    shell, drive, graph, break_it, arguments, step, said
):
    drive.make_folder("/Results")
    break_it(graph)
    where = "https://contoso.sharepoint.com/sites/lab"

    *before, last = json.loads(shell("check", where, *arguments, "--json", code=1))

    assert {each["state"] for each in before} <= {"ok"}
    assert (last["subject"], last["state"]) == (step, "bad")
    assert said in last["found"]


def test_check_prints_no_line_longer_than_a_terminal_and_no_secret(shell, drive, graph):
    text = shell("check", "/sites/lab", "--folder", "/Nowhere", code=1)

    assert "BAD   folder" in text
    assert max(map(len, text.splitlines())) <= 80
    assert graph.identity.secret not in text


def test_status_tells_what_each_asset_has_and_what_failed(shell, resources, drive):
    asset = results_asset([], on_file_error="quarantine")
    drive.write("/Results/a.csv", "x\n1\n")
    drive.write("/Results/b.csv", "")
    run(asset, resources)

    text = shell("status")
    (status,) = json.loads(shell("status", "--json"))

    assert (status["asset_key"], status["pending"], status["delivered"]) == ("results", 0, 1)
    assert status["failures"][0]["path"] == "/Results/b.csv"
    assert "results: /Results/b.csv (left out until it changes, attempt 1)" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_reset_asset_is_handed_every_file_again(shell, resources, drive, database):
    calls: list[dict[str, str]] = []
    asset = results_asset(calls)
    drive.write("/Results/a.csv", "x\n1\n")
    run(asset, resources)

    assert "is handed every file" in shell("reset", "--asset", "results")

    run(asset, resources)
    assert [list(call) for call in calls] == [["/Results/a.csv"]] * 2
    assert rows(database) == [(1,)]


def test_a_reset_library_is_listed_anew(shell, resources, drive, graph, database):
    asset = results_asset([])
    drive.write("/Results/a.csv", "x\n1\n")
    drive.write("/Results/b.csv", "x\n2\n")
    run(asset, resources)
    drive.delete("/Results/a.csv", silently=True)
    run(asset, resources)
    assert rows(database) == [(1,), (2,)]

    shell("reset", "--library", drive.url)

    run(asset, resources)
    assert rows(database) == [(2,)]


def test_what_is_not_known_cannot_be_reset(shell, resources):
    assert "knows no asset nobody" in shell("reset", "--asset", "nobody", code=1)
