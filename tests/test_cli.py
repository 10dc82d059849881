"""`dagster-tools` in the shell: what it prints is what is there."""

from __future__ import annotations

import json

import dagster as dg
import pandas as pd
import pytest

from dagster_tools.cli import main
from dagster_tools.sql import Batch, Batches, IncrementalDataFrame
from tests.pipelines import load, manager_for, materialize, query, store

UPSERT = {"primary_key": "id", "incremental": True}


@pytest.fixture
def shell(database, capsys):
    """A function that runs one command on the database and returns what it printed."""

    def run(*arguments, code=0, as_role=None):
        target = database.as_role(as_role) if as_role else database
        capsys.readouterr()  # what Dagster logged before
        assert main([*arguments, "--url", target.url]) == code
        captured = capsys.readouterr()
        return captured.out + captured.err

    return run


def test_lineage_tells_what_each_run_did_and_what_is_left_of_it(io_manager, shell):
    frames = iter([{"id": [1, 2, 3], "v": "abc"}, {"id": [3, 4], "v": "xyz"}])

    @dg.asset(metadata=UPSERT)
    def numbers():
        return pd.DataFrame(next(frames))

    for _run in range(2):
        materialize(numbers, io_manager)

    newest, oldest = json.loads(shell("lineage", "public.numbers", "--json"))

    assert (newest["rows"], newest["inserted"], newest["updated"]) == (2, 1, 1)
    assert (oldest["rows"], oldest["inserted"]) == (2, 3)
    assert newest["run_id"] != oldest["run_id"]
    assert newest["asset_key"] == "numbers"


def test_lineage_with_a_condition_tells_who_wrote_these_rows(io_manager, shell):
    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["a", "b"]))
    def numbers(context):
        return pd.DataFrame({"key": [context.partition_key], "id": [7]})

    for key in ("a", "b"):
        materialize(numbers, io_manager, partition_key=key)

    (found,) = json.loads(shell("lineage", "numbers", "--where", "key = 'b' -- mine", "--json"))

    assert (found["partition_key"], found["rows"]) == ("b", 1)


def test_lineage_shows_rows_that_nobody_here_wrote(database, io_manager, shell):
    store(io_manager, pd.DataFrame({"n": [1]}))
    with database.connect() as connection:
        connection.execute("INSERT INTO numbers VALUES (2), (3)")

    printed = shell("lineage", "public.numbers")

    assert "(not from here)" in printed


def test_a_condition_cannot_write(database, io_manager, shell):
    store(io_manager, pd.DataFrame({"n": [1]}))
    with database.connect() as connection:
        connection.execute(
            "CREATE FUNCTION wipe() RETURNS boolean LANGUAGE sql AS"
            " 'DELETE FROM numbers RETURNING true'"
        )

    printed = shell("lineage", "numbers", "--where", "wipe()", code=1)

    assert "read-only" in printed
    assert query(database, "SELECT count(*) FROM numbers") == [(1,)]


@pytest.mark.parametrize("command", ["lineage", "prune", "doctor"])
def test_tables_fit_eighty_columns(io_manager, shell, command):
    key = ["a_schema_with_a_rather_long_name", "a_table_with_an_even_longer_name_of_its_own"]
    store(io_manager, pd.DataFrame({"n": [1]}), key=key)
    store(io_manager, pd.DataFrame({"n": [1]}), key=key)

    printed = shell(command, *([".".join(key)] if command == "lineage" else []))

    assert printed
    assert max(map(len, printed.splitlines())) <= 80


def test_prune_shows_first_and_forgets_only_when_told(database, io_manager, shell):
    for number in range(3):
        store(io_manager, pd.DataFrame({"n": [number]}))
    count = "SELECT count(*) FROM meta.materializations"

    shown = shell("prune")
    assert "forgets these 2" in shown
    assert query(database, count) == [(3,)]

    shell("prune", "--yes")
    assert query(database, count) == [(1,)]
    assert load(io_manager)["n"].tolist() == [2]


def test_prune_keeps_what_rows_refer_to_and_what_says_an_asset_was_empty(
    database, io_manager, shell
):
    store(io_manager, pd.DataFrame({"id": [1], "v": "a"}), **UPSERT)
    store(io_manager, pd.DataFrame({"id": [2], "v": "b"}), **UPSERT)
    store(io_manager, pd.DataFrame({"n": [1]}), key="emptied")
    store(io_manager, pd.DataFrame({"n": []}), key="emptied")

    shell("prune", "--yes")

    assert sorted(load(io_manager)["id"]) == [1, 2]
    assert len(load(io_manager, key="emptied")) == 0


def test_doctor_finds_nothing_wrong_for_an_owner(shell):
    printed = shell("doctor")

    assert "BAD" not in printed
    assert "PostgreSQL 15" in printed


def test_doctor_names_the_grant_that_a_role_lacks(database, shell, role):
    poor = role()
    with database.connect() as connection:
        connection.execute(f"REVOKE TEMPORARY ON DATABASE {database.dbname} FROM PUBLIC")
        connection.execute("CREATE SCHEMA reports")

    printed = shell("doctor", "--schema", "reports", as_role=poor, code=1)

    assert f"GRANT TEMPORARY ON DATABASE {database.dbname} TO " in printed.replace('"', "")
    assert "GRANT CREATE, USAGE ON SCHEMA" in printed

    for finding in json.loads(
        shell("doctor", "--schema", "reports", "--json", as_role=poor, code=1)
    ):
        if finding["state"] == "bad":
            with database.connect() as connection:
                connection.execute(finding["remedy"])
    assert "BAD" not in shell("doctor", "--schema", "reports", as_role=poor)
    store(manager_for(database.as_role(poor), tracking_schema="reports"), pd.DataFrame({"n": [1]}),
          schema="reports")  # fmt: skip


def test_doctor_repairs_the_tracking_of_a_second_role(database, io_manager, shell, role):
    store(io_manager, pd.DataFrame({"n": [1]}))
    second = role()
    with database.connect() as connection:
        connection.execute(f"CREATE SCHEMA theirs AUTHORIZATION {second.name}")

    findings = json.loads(shell("doctor", "--schema", "theirs", "--json", as_role=second, code=1))
    for finding in findings:
        if finding["state"] == "bad":
            with database.connect() as connection:
                connection.execute(finding["remedy"], prepare=False)

    manager = manager_for(database.as_role(second))
    for key in (["theirs", "numbers"], ["theirs", "numbers"]):
        store(manager, pd.DataFrame({"id": [1], "v": "a"}), key=key, **UPSERT)
    store(manager, IncrementalDataFrame(pd.DataFrame({"id": [2], "v": "b"})),
          key=["theirs", "numbers"], **UPSERT)  # fmt: skip
    batch = Batch(pd.DataFrame({"id": [1]}), high_watermark=1)
    store(manager, Batches(lambda _mark: [batch]), key=["theirs", "loaded"])
    assert sorted(load(manager, key=["theirs", "numbers"])["id"]) == [1, 2]


@pytest.mark.parametrize("table", ["nope", "public.nope", '"odd ""one"."x.y"'])
def test_a_table_that_does_not_exist_is_named(shell, table):
    assert "does not exist" in shell("lineage", table, code=1)


def test_a_connection_that_fails_shows_no_password(capsys):
    url = "postgresql://somebody:S3cr3t@127.0.0.1:1/nowhere"

    assert main(["doctor", "--url", url]) == 1

    printed = capsys.readouterr().err
    assert "127.0.0.1" in printed
    assert "S3cr3t" not in printed


# --- high watermarks ------------------------------------------------------------------------


def load_days(io_manager, *days, key="numbers", fail=False, **partition):
    """Load one row a day in batches, and note where the source was asked to begin."""
    begins = []

    def source(high_watermark):
        begins.append(high_watermark)
        for day in days:
            yield Batch([{"day": day}], high_watermark=day)
        if fail:
            raise RuntimeError("cut off")

    asset = dg.asset(lambda: Batches(source), name=key, **partition)
    materialize(asset, io_manager, raise_on_error=False, **KEYS.get(bool(partition), {}))
    return begins


KEYS = {True: {"partition_key": "a"}}
PARTITIONED = {"partitions_def": dg.StaticPartitionsDefinition(["a", "b"])}


def test_watermark_shows_how_far_an_asset_has_come(io_manager, shell):
    load_days(io_manager, "2024-01-01", "2024-01-02")

    printed = shell("watermark", "show", "numbers")
    [found] = json.loads(shell("watermark", "show", "numbers", "--json"))

    assert '"2024-01-02"' in printed
    assert "at its end" in printed
    assert found["high_watermark"] == "2024-01-02"
    assert (found["partition_key"], found["finished"]) == (None, True)
    assert found["timestamp"].startswith("20")


def test_watermark_tells_a_run_that_was_cut_off(io_manager, shell):
    load_days(io_manager, "2024-01-01", fail=True)

    assert "cut off" in shell("watermark", "show", "numbers")


@pytest.mark.parametrize("value", ['"2023-12-31"', "7", '[1, {"a": null}]'])
def test_watermark_set_is_where_the_next_run_begins(io_manager, shell, value):
    load_days(io_manager, "2024-01-01")

    printed = shell("watermark", "set", "numbers", value)

    assert printed.startswith("The next run of numbers begins at ")
    assert load_days(io_manager) == [json.loads(value)]


def test_watermark_clear_lets_the_next_run_begin_anew(io_manager, shell):
    load_days(io_manager, "2024-01-01")

    printed = shell("watermark", "clear", "numbers")

    assert printed == "The next run of numbers begins anew.\n"
    assert load_days(io_manager) == [None]


def test_watermark_set_and_clear_print_json_when_asked(io_manager, shell):
    load_days(io_manager, "2024-01-01")

    assert json.loads(shell("watermark", "set", "numbers", "7", "--json")) == {"high_watermark": 7}
    assert json.loads(shell("watermark", "clear", "numbers", "--json")) == {"high_watermark": None}


def test_watermark_knows_partitions(io_manager, shell):
    load_days(io_manager, "2024-01-01", **PARTITIONED)

    shell("watermark", "set", "numbers", "5", "--partition", "a")

    [found] = json.loads(shell("watermark", "show", "numbers", "--partition", "a", "--json"))
    assert (found["partition_key"], found["high_watermark"]) == ("a", 5)
    assert load_days(io_manager, **PARTITIONED) == [5]


def test_watermark_may_be_set_of_an_asset_that_was_never_loaded_in_batches(io_manager, shell):
    """So a table that was filled otherwise is gone on with from there."""
    store(io_manager, pd.DataFrame({"day": ["2024-01-01"]}))

    shell("watermark", "set", "numbers", '"2024-01-01"')

    assert load_days(io_manager) == ["2024-01-01"]


@pytest.mark.parametrize("action", [["show"], ["set", "7"], ["clear"]], ids=lambda a: a[0])
@pytest.mark.parametrize("asset", ["nope", "a/nope"])
def test_an_asset_without_a_high_watermark_is_named(io_manager, shell, action, asset):
    store(io_manager, pd.DataFrame({"n": [1]}))

    printed = " ".join(shell("watermark", action[0], asset, *action[1:], code=1).split())

    assert f"Asset {asset} was never" in printed
    assert "a/b" in printed


@pytest.mark.parametrize("action", [["show"], ["set", "7"], ["clear"]], ids=lambda a: a[0])
def test_a_partition_that_was_never_loaded_is_named(io_manager, shell, action):
    load_days(io_manager, "2024-01-01", **PARTITIONED)

    arguments = [action[0], "numbers", *action[1:], "--partition", "b"]
    printed = " ".join(shell("watermark", *arguments, code=1).split())

    assert "Asset numbers, partition b, was never" in printed


@pytest.mark.parametrize("action", [["show"], ["set", "7"], ["clear"]], ids=lambda a: a[0])
def test_a_database_that_no_batches_were_loaded_into_is_named(database, io_manager, shell, action):
    printed = " ".join(shell("watermark", action[0], "numbers", *action[1:], code=1).split())
    store(io_manager, pd.DataFrame({"n": [1]}))
    with database.connect() as connection:
        connection.execute("DROP TABLE meta.watermarks")
    from_an_older_version = " ".join(
        shell("watermark", action[0], "numbers", *action[1:], code=1).split()
    )

    assert f"numbers was never loaded in batches into {database.dbname}" in printed
    assert f"numbers was never loaded in batches into {database.dbname}" in from_an_older_version


def test_text_without_quotes_is_refused_with_how_to_write_it(shell, capsys):
    with pytest.raises(SystemExit):
        shell("watermark", "set", "numbers", "2024-01-01")

    printed = capsys.readouterr().err
    assert "is not JSON" in printed
    assert "'\"2024-01-01\"'" in printed


def test_long_high_watermarks_fit_eighty_columns(io_manager, shell):
    load_days(io_manager, "x" * 200)

    assert max(map(len, shell("watermark", "show", "numbers").splitlines())) <= 80
