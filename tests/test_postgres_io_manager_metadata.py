"""What a write shows in Dagster: metadata of the materialization, and lines in the run's log."""

from __future__ import annotations

import itertools
import re

import dagster as dg
import pandas as pd
import pyarrow as pa
import pytest

from dagster_tools.postgres import progress
from tests.pipelines import logged, manager_for, materialize, store


@pytest.fixture
def database(cleaned_database):
    return cleaned_database


def metadata_of(result: dg.ExecuteInProcessResult, node: str) -> dict[str, dg.MetadataValue]:
    (event,) = result.asset_materializations_for_node(node)
    return dict(event.metadata)


def test_a_materialization_says_how_much_went_where_and_how_fast(database, io_manager, frame):
    @dg.asset(key_prefix="sales")
    def orders():
        return frame({"n": list(range(100)), "name": ["some text"] * 100})

    metadata = metadata_of(materialize(orders, io_manager), "sales__orders")

    assert metadata["dagster/row_count"] == dg.IntMetadataValue(100)
    assert metadata["dagster/table_name"] == dg.TextMetadataValue(f"{database.dbname}.sales.orders")
    assert metadata["dagster/storage_kind"] == dg.TextMetadataValue("postgres")
    seconds, rate, size = (metadata[key].value for key in ("seconds", "rows_per_second", "bytes"))
    assert 0 < seconds < 60
    assert rate == pytest.approx(100 / seconds, rel=0.5)
    # 2 bytes, then 4 bytes of length and a value for each of n, name, materialization_id.
    assert size == 19 + 2 + 100 * (2 + 4 + 8 + 4 + len("some text") + 4 + 4)


def test_the_schema_shown_is_the_tables_with_nullability_uniqueness_and_keys(io_manager, frame):
    metadata = store(
        io_manager,
        frame({"a": [1], "b": [2], "code": ["x"], "day": ["2024-01-01"], "price": [1.5]}),
        primary_key=["a", "b"],
        columns={
            "code": ("varchar(5)", "unique", "not null"),
            "day": "date",
            "price": "numeric(12,2)",
            "later": "text[]",
        },
    )

    schema = metadata["dagster/column_schema"].value
    shown = {
        column.name: (
            column.type,
            column.constraints.nullable,
            column.constraints.unique,
            column.constraints.other,
        )
        for column in schema.columns
    }
    assert shown == {
        "a": ("bigint", False, False, ["primary key"]),
        "b": ("bigint", False, False, ["primary key"]),
        "code": ("character varying(5)", False, True, []),
        "day": ("date", True, False, []),
        "price": ("numeric(12,2)", True, False, []),
        "later": ("text[]", True, False, []),
    }


def test_a_key_of_one_column_is_shown_as_unique(io_manager):
    metadata = store(io_manager, pa.table({"id": [1]}), primary_key="id")

    (column,) = metadata["dagster/column_schema"].value.columns
    assert column.constraints == dg.TableColumnConstraints(
        nullable=False, unique=True, other=["primary key"]
    )


def test_the_schema_shown_is_the_one_after_the_write(database, io_manager, frame):
    with database.connect() as connection:
        connection.execute("CREATE TABLE numbers (n smallint, made_elsewhere point)")

    metadata = store(
        io_manager, frame({"n": [2**20], "new": ["a"]}), columns={"new": ("text", "not null")}
    )

    columns = metadata["dagster/column_schema"].value.columns
    assert [(column.name, column.type, column.constraints.nullable) for column in columns] == [
        ("n", "integer", True),
        ("made_elsewhere", "point", True),
        ("new", "text", False),
    ]


def test_one_partition_says_its_own_row_count(io_manager):
    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["a", "b"]))
    def numbers():
        return pd.DataFrame({"n": [1, 2, 3]})

    metadata = metadata_of(materialize(numbers, io_manager, partition_key="a"), "numbers")

    assert metadata["dagster/partition_row_count"] == dg.IntMetadataValue(3)
    assert "dagster/row_count" not in metadata


def test_several_partitions_do_not_each_claim_the_rows_of_all(io_manager):
    @dg.asset(
        partitions_def=dg.StaticPartitionsDefinition(["a", "b"]),
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def numbers():
        return {"a": pd.DataFrame({"n": [1]}), "b": pd.DataFrame({"n": [2, 3]})}

    result = materialize(
        numbers,
        io_manager,
        tags={"dagster/asset_partition_range_start": "a", "dagster/asset_partition_range_end": "b"},
    )

    events = result.asset_materializations_for_node("numbers")
    assert {event.partition for event in events} == {"a", "b"}
    for event in events:
        assert "dagster/row_count" not in event.metadata
        assert "dagster/partition_row_count" not in event.metadata
        assert event.metadata["rows"] == dg.IntMetadataValue(3)


def test_an_unpartitioned_asset_in_a_partitioned_run_says_its_row_count(io_manager):
    partitions = dg.StaticPartitionsDefinition(["a"])

    @dg.asset(partitions_def=partitions)
    def parts():
        return pd.DataFrame({"n": [1]})

    @dg.asset
    def whole():
        return pd.DataFrame({"n": [1, 2]})

    result = materialize([parts, whole], io_manager, partition_key="a")

    assert metadata_of(result, "whole")["dagster/row_count"] == dg.IntMetadataValue(2)


def test_an_empty_frame_says_that_it_had_no_rows(database, io_manager, frame):
    metadata = store(io_manager, frame({"n": []}))

    assert metadata["dagster/row_count"] == dg.IntMetadataValue(0)
    assert metadata["dagster/table_name"].value == f"{database.dbname}.public.numbers"
    assert "dagster/column_schema" not in metadata


def test_what_the_user_says_stays_beside_it(io_manager):
    @dg.asset
    def numbers():
        return dg.Output(pd.DataFrame({"n": [1]}), metadata={"source": "api", "rows": 7})

    metadata = metadata_of(materialize(numbers, io_manager), "numbers")

    assert metadata["source"] == dg.TextMetadataValue("api")
    assert metadata["rows"] == dg.IntMetadataValue(7)
    assert metadata["dagster/row_count"] == dg.IntMetadataValue(1)


def test_none_shows_nothing(io_manager):
    assert store(io_manager, None) == {}


# --- progress -------------------------------------------------------------------------------

PROGRESS = re.compile(r"(?P<rows>[\d,]+) rows \([\d,]+ MB\) to public\.numbers, [\d,]+ rows/s")


def numbers_asset(rows: int):
    @dg.asset(metadata={"chunk_size": "100KB"})
    def numbers():
        return pd.DataFrame({"n": range(rows)})

    return numbers


def test_a_long_transfer_tells_its_progress(io_manager, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)

    result = materialize(numbers_asset(50_000), io_manager)

    told = [match for line in logged(result) if (match := PROGRESS.fullmatch(line))]
    counts = [int(match["rows"].replace(",", "")) for match in told]
    assert len(counts) >= 4
    assert counts == sorted(counts)
    assert 0 < counts[-1] <= 50_000


def test_lines_of_progress_keep_their_distance(io_manager, monkeypatch):
    clock = itertools.count(0, 1)  # each look at it is a second later
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    told = []

    class Log:
        def info(self, message, *arguments):
            told.append(message % arguments if arguments else message)

    part_sent = progress.Progress(Log(), "to public.numbers")
    for _part in range(25):
        part_sent(1_000, 8_000_000)

    assert [line.split(" rows")[0] for line in told] == ["10,000", "20,000"]
    assert told[0] == "10,000 rows (80 MB) to public.numbers, 1,000 rows/s"


def test_a_short_transfer_is_silent(io_manager):
    result = materialize(numbers_asset(1_000), io_manager)

    assert logged(result, level="INFO") == []
    assert logged(result, level="WARNING") == []


def test_the_manager_says_nothing_of_a_first_write_into_a_schema_it_makes(database):
    @dg.asset(key_prefix="new")
    def numbers():
        return pd.DataFrame({"n": [1]})

    result = materialize(numbers, manager_for(database, tracking_schema="lineage"))

    assert logged(result, level="WARNING") == []
