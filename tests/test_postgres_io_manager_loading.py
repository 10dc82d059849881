"""What an asset takes is the rows of exactly the assets and partitions it asks for."""

from __future__ import annotations

import datetime as dt
import gc
import time
import uuid
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Optional

import dagster as dg
import pandas as pd
import pyarrow as pa
import pytest

from dagster_tools.errors import (
    BadValue,
    ConfigurationError,
    DatabaseError,
    MaterializationNotFound,
    UnsupportedFrame,
)
from dagster_tools.postgres import read
from dagster_tools.postgres_io_manager import PostgresIOManager
from tests.fix_servers import Database
from tests.partitioned import BACKFILL, backfill, load_partitions, store_bare
from tests.pipelines import (
    load,
    logged,
    manager_for,
    materialize,
    query,
    resource_for,
    rows,
    shared_instance,
    store,
)

DAYS = dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-02-01")
WEEKS = dg.WeeklyPartitionsDefinition("2023-12-31", end_date="2024-02-04")  # Sundays
COLORS = dg.StaticPartitionsDefinition(["blue", "green", "red"])
COLORS_BY_DAY = dg.MultiPartitionsDefinition({"color": COLORS, "day": DAYS})


def days(first: int, last: int) -> list[str]:
    return [f"2024-01-{day:02}" for day in range(first, last + 1)]


def execute(database: Database, *statements: str) -> None:
    with database.connect() as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.fixture(params=["few values", "many values"])
def way(request, monkeypatch) -> None:
    """Read both ways: few values come over the connection at hand, many through a driver."""
    if request.param == "many values":
        monkeypatch.setattr(read, "FEW_VALUES", -1)


def taken(
    manager: PostgresIOManager,
    definition: dg.PartitionsDefinition | None = None,
    *,
    annotation: Any = pd.DataFrame,
    to: dg.PartitionsDefinition | None = None,
    partition_key: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    mapping: dg.PartitionMapping | None = None,
    consumer: Mapping[str, Any] | None = None,
) -> Any:
    """Run an asset that takes the asset `numbers`, and return what it was given.

    Args:
        definition: Partitions of `numbers`; those of the asset that takes it are `to`.
        metadata: Of the input; the taking asset's own is `consumer`.
    """
    given: list[object] = []
    numbers = dg.AssetSpec("numbers", partitions_def=definition).with_io_manager_key("io_manager")
    dagster_type: Any = dg.In(annotation).dagster_type
    taking_in = dg.AssetIn(metadata=metadata, partition_mapping=mapping, dagster_type=dagster_type)

    @dg.asset(ins={"numbers": taking_in}, partitions_def=to, metadata=consumer)
    def taking(numbers: Any) -> None:
        given.append(numbers)

    materialize([numbers, taking], manager, selection=[taking], partition_key=partition_key)
    return given.pop()


def store_keys(manager: PostgresIOManager, keys: list[str]) -> None:
    """Store each partition of `numbers` with one row, which holds its key."""
    store_bare(manager, {key: pd.DataFrame({"key": [key]}) for key in keys}, keys)


# --- which partitions -----------------------------------------------------------------------

MAPPINGS = {
    "the same": (DAYS, days(1, 3), DAYS, "2024-01-02", None, days(2, 2)),
    "the same, static": (COLORS, ["blue", "red"], COLORS, "red", None, ["red"]),
    "the day before": (
        DAYS,
        days(1, 3),
        DAYS,
        "2024-01-03",
        dg.TimeWindowPartitionMapping(start_offset=-1, end_offset=-1),
        days(2, 2),
    ),
    "the last three days": (
        DAYS,
        days(1, 5),
        DAYS,
        "2024-01-05",
        dg.TimeWindowPartitionMapping(start_offset=-2),
        days(3, 5),
    ),
    "all of them": (DAYS, DAYS.get_partition_keys(), None, None, None, DAYS.get_partition_keys()),
    "daily to weekly": (DAYS, days(1, 20), WEEKS, "2024-01-07", None, days(7, 13)),
    "weekly to daily": (
        WEEKS,
        ["2023-12-31", "2024-01-07"],
        DAYS,
        "2024-01-09",
        None,
        ["2024-01-07"],
    ),
    "the last": (DAYS, days(1, 31), None, None, dg.LastPartitionMapping(), days(31, 31)),
    "days with gaps": (
        DAYS,
        days(1, 9),
        None,
        None,
        dg.SpecificPartitionsPartitionMapping(["2024-01-02", "2024-01-05", "2024-01-09"]),
        ["2024-01-02", "2024-01-05", "2024-01-09"],
    ),
    "static keys with gaps": (
        COLORS,
        ["blue", "green", "red"],
        dg.StaticPartitionsDefinition(["warm", "purple"]),
        "purple",
        dg.StaticPartitionMapping({"blue": "purple", "red": {"purple", "warm"}}),
        ["blue", "red"],
    ),
    "one dimension of several": (
        COLORS_BY_DAY,
        [f"{color}|2024-01-{day:02}" for color in ("blue", "green", "red") for day in (1, 2)],
        DAYS,
        "2024-01-02",
        dg.MultiToSingleDimensionPartitionMapping("day"),
        ["blue|2024-01-02", "green|2024-01-02", "red|2024-01-02"],
    ),
    "into several dimensions": (
        DAYS,
        days(1, 3),
        COLORS_BY_DAY,
        dg.MultiPartitionKey({"color": "red", "day": "2024-01-02"}),
        dg.MultiToSingleDimensionPartitionMapping("day"),
        days(2, 2),
    ),
    "the same, several dimensions": (
        COLORS_BY_DAY,
        ["red|2024-01-01", "blue|2024-01-01", "red|2024-01-02"],
        COLORS_BY_DAY,
        dg.MultiPartitionKey({"color": "red", "day": "2024-01-01"}),
        None,
        ["red|2024-01-01"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("definition", "stored", "to", "partition_key", "mapping", "expected"),
    MAPPINGS.values(),
    ids=list(MAPPINGS),
)
def test_an_asset_takes_exactly_the_partitions_that_are_mapped_to_its_own(
    database, io_manager, definition, stored, to, partition_key, mapping, expected
):
    store_keys(io_manager, stored)

    frame = taken(io_manager, definition, to=to, partition_key=partition_key, mapping=mapping)

    assert sorted(frame["key"]) == expected


def test_an_unpartitioned_asset_is_taken_whole_by_each_partition(database, io_manager):
    store(io_manager, pd.DataFrame({"n": [1, 2]}))

    assert list(taken(io_manager, to=DAYS, partition_key="2024-01-01")["n"]) == [1, 2]


def test_a_run_over_several_partitions_takes_those_of_all(database, io_manager):
    store_keys(io_manager, days(1, 9))
    given: list[list[str]] = []
    numbers = dg.AssetSpec("numbers", partitions_def=DAYS).with_io_manager_key("io_manager")

    @dg.asset(partitions_def=DAYS, backfill_policy=BACKFILL)
    def taking(numbers: pd.DataFrame) -> None:
        given.append(sorted(numbers["key"]))

    backfill([numbers, taking], io_manager, "2024-01-03", "2024-01-05", selection=[taking])

    assert given == [days(3, 5)]


def self_dependent(annotation: Any, seen: list[Any]) -> dg.AssetsDefinition:
    """An asset that adds the row of its day to those of the day before."""
    mapping = dg.TimeWindowPartitionMapping(start_offset=-1, end_offset=-1)
    before: Any = dg.In(annotation).dagster_type

    @dg.asset(
        partitions_def=DAYS,
        ins={"numbers": dg.AssetIn(partition_mapping=mapping, dagster_type=before)},
    )
    def numbers(context, numbers):
        seen.append(numbers)
        today = pd.DataFrame({"day": [context.partition_key]})
        return today if numbers is None else pd.concat([numbers, today])

    return numbers


def test_the_first_partition_of_an_asset_that_depends_on_itself_takes_an_empty_frame(
    database, io_manager
):
    seen: list[pd.DataFrame] = []
    numbers = self_dependent(pd.DataFrame, seen)

    for key in days(1, 3):
        materialize(numbers, io_manager, partition_key=key)
    materialize(numbers, io_manager, partition_key="2024-01-01")

    assert [list(frame.get("day", [])) for frame in seen] == [[], days(1, 1), days(1, 2), []]
    assert list(seen[-1].columns) == ["day"]


def test_the_first_partition_takes_none_where_its_annotation_is_optional(database, io_manager):
    seen: list[pd.DataFrame | None] = []
    numbers = self_dependent(pd.DataFrame | None, seen)

    for key in (*days(1, 2), "2024-01-01"):
        materialize(numbers, io_manager, partition_key=key)

    assert seen[0] is None
    assert list(seen[1]["day"]) == days(1, 1)
    assert seen[2] is None


def test_the_first_partition_of_an_asset_kept_in_a_hand_made_table_takes_none_of_its_rows(
    database, io_manager
):
    execute(database, "CREATE TABLE numbers AS SELECT 'by hand' AS day")
    seen: list[pd.DataFrame] = []

    materialize(self_dependent(pd.DataFrame, seen), io_manager, partition_key="2024-01-01")

    assert len(seen[0]) == 0


# --- what was never materialized ------------------------------------------------------------


def test_a_partition_never_materialized_is_an_error_that_names_it_and_both_remedies(
    database, io_manager
):
    store_keys(io_manager, days(2, 3))

    with pytest.raises(ValueError, match="No materialization") as raised:
        taken(io_manager, DAYS, to=DAYS, partition_key="2024-01-01")

    assert isinstance(raised.value, MaterializationNotFound)
    assert str(raised.value) == (
        "No materialization found for partitions ['2024-01-01'] (asset numbers). Materialize them "
        "first, or set full_table: True on the input to load every row of the table whichever "
        "partition wrote it."
    )


def test_of_many_missing_partitions_twenty_are_named(database, io_manager):
    store_keys(io_manager, days(1, 2))

    with pytest.raises(MaterializationNotFound) as raised:
        taken(io_manager, DAYS)

    assert str(raised.value).startswith(
        f"No materialization found for partitions {days(3, 22)} and 9 more (asset numbers)."
    )


def test_an_asset_never_materialized_is_an_error(database, io_manager):
    with pytest.raises(MaterializationNotFound) as missing:
        taken(io_manager)
    store(io_manager, pd.DataFrame({"n": [1]}), key="other", table="numbers")
    with pytest.raises(MaterializationNotFound) as others:
        taken(io_manager)

    assert str(missing.value) == (
        "No materialization found for asset numbers. Its table is public.numbers, which does not "
        "exist. Materialize the asset first."
    )
    assert str(others.value) == (
        "No materialization found for asset numbers. Its table is public.numbers, which other "
        "assets wrote. Materialize the asset first, or set full_table: True on the input."
    )


@pytest.mark.parametrize("definition", [None, DAYS], ids=["unpartitioned", "partitioned"])
def test_an_optional_input_is_none_where_nothing_was_ever_materialized(
    database, io_manager, definition
):
    assert taken(io_manager, definition, annotation=pd.DataFrame | None) is None


def test_an_optional_input_is_the_frame_where_there_is_one(database, io_manager):
    store(io_manager, pd.DataFrame({"n": [1]}))

    for annotation in (pd.DataFrame | None, Optional[pd.DataFrame]):  # noqa: UP045  # both exist
        assert list(taken(io_manager, annotation=annotation)["n"]) == [1]


def test_partitions_never_materialized_are_left_out_where_the_input_allows_it(database, io_manager):
    store_keys(io_manager, days(2, 3))
    allowed = {"allow_missing_partitions": True}

    some = taken(io_manager, DAYS, metadata=allowed)
    by_key = taken(io_manager, DAYS, annotation=dict[str, pd.DataFrame], metadata=allowed)
    none = taken(io_manager, DAYS, to=DAYS, partition_key="2024-01-09", metadata=allowed)

    assert sorted(some["key"]) == days(2, 3)
    assert list(by_key) == days(2, 3)
    assert list(none.columns) == ["key"]
    assert len(none) == 0


def test_what_was_materialized_empty_is_an_empty_frame_of_the_columns_it_would_have(
    database, io_manager
):
    columns = {"n": "int", "at": "date"}
    store(io_manager, pd.DataFrame(), columns=columns)

    frame = load(io_manager, upstream={"columns": columns})

    assert frame.dtypes.to_dict() == {"n": "int32", "at": "object"}
    assert len(frame) == 0


def test_a_table_that_somebody_dropped_is_not_read_as_nothing(database, io_manager):
    store(io_manager, pd.DataFrame({"n": [1]}))
    execute(database, "DROP TABLE numbers")

    with pytest.raises(
        MaterializationNotFound, match=r"public\.numbers is gone, and rows of asset"
    ):
        taken(io_manager)


# --- options of an input --------------------------------------------------------------------


def test_full_table_loads_every_row_whoever_wrote_it(database, io_manager):
    store_keys(io_manager, days(1, 2))
    store(io_manager, pd.DataFrame({"key": ["other's"]}), key="other", table="numbers")
    execute(database, "INSERT INTO numbers VALUES ('by hand')")
    everything = ["2024-01-01", "2024-01-02", "by hand", "other's"]

    one = taken(io_manager, DAYS, to=DAYS, partition_key="2024-01-01")
    for said in ({"metadata": {"full_table": "true"}}, {"consumer": {"full_table": True}}):
        whole = taken(io_manager, DAYS, to=DAYS, partition_key="2024-01-09", **said)
        assert sorted(whole["key"]) == everything

    assert list(one["key"]) == ["2024-01-01"]


def test_full_table_said_on_the_input_wins_over_the_asset_that_takes_it(database, io_manager):
    store_keys(io_manager, days(1, 2))

    frame = taken(
        io_manager,
        DAYS,
        to=DAYS,
        partition_key="2024-01-02",
        metadata={"full_table": False},
        consumer={"full_table": True},
    )

    assert list(frame["key"]) == ["2024-01-02"]


def test_columns_are_those_asked_for_in_the_order_asked_for(database, io_manager):
    store(io_manager, pd.DataFrame({"a": [1], "b": [2], "c": [3]}))

    frame = taken(io_manager, metadata={"columns": ["c", "a"]})

    assert frame.to_dict("list") == {"c": [3], "a": [1]}


@pytest.mark.usefixtures("way")
def test_columns_with_a_type_are_cast_in_the_server(database, io_manager):
    store(io_manager, pd.DataFrame({"n": [1], "f": [0.5], "j": [{"k": 1}], "kept": [2]}))

    frame = taken(
        io_manager,
        metadata={"columns": {"n": "text", "j": "text", "f": "numeric(4,2)", "kept": None}},
    )

    assert frame.to_dict("list") == {
        "n": ["1"],
        "j": ['{"k": 1}'],
        "f": [Decimal("0.50")],
        "kept": [2],
    }


def test_a_column_that_is_not_there_is_an_error_that_lists_those_that_are(database, io_manager):
    store(io_manager, pd.DataFrame({"a": [1], "b": [2]}))

    with pytest.raises(ConfigurationError) as refused:
        taken(io_manager, metadata={"columns": ["a", "z", "materialization_id"]})

    assert str(refused.value) == (
        "asset numbers: public.numbers has no columns ['z', 'materialization_id']. "
        "Its columns are ['a', 'b']."
    )


@pytest.mark.usefixtures("way")
def test_a_value_that_cannot_be_cast_is_an_error_that_does_not_show_it(database, io_manager):
    store(io_manager, pd.DataFrame({"a": ["1", "secret"]}))

    with pytest.raises(DatabaseError, match="asset numbers: invalid input syntax") as refused:
        taken(io_manager, metadata={"columns": {"a": "int"}})

    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("order_by", "expected"),
    [("b", [2, 3, 1]), (["a", "b"], [2, 1, 3])],
    ids=["one column", "several"],
)
def test_order_by_sorts_the_rows(database, io_manager, order_by, expected):
    store(io_manager, pd.DataFrame({"a": ["x", "x", "y"], "b": [9, 1, 5], "n": [1, 2, 3]}))

    assert list(taken(io_manager, metadata={"order_by": order_by})["n"]) == expected


@pytest.mark.usefixtures("way")
def test_columns_and_order_by_hold_for_each_partition_of_a_dict(database, io_manager):
    frames = {key: pd.DataFrame({"n": [3, 1, 2], "m": [0, 0, 0]}) for key in days(1, 2)}
    store_bare(io_manager, frames, days(1, 2))

    by_key = load_partitions(
        io_manager, days(1, 2), dict[str, pa.Table], columns=["n"], order_by="n"
    )

    assert [table.to_pydict() for table in by_key.values()] == [{"n": [1, 2, 3]}] * 2


def test_an_option_with_a_value_it_cannot_have_names_input_key_and_value(database, io_manager):
    store(io_manager, pd.DataFrame({"n": [1]}))

    for metadata, message in (
        ({"full_table": "yes"}, r"numbers, metadata 'full_table' is 'yes'; expected True, False"),
        ({"columns": []}, r"numbers, metadata 'columns' is \[\]; expected at least one column"),
        ({"order_by": 5}, r"numbers, metadata 'order_by' is 5; expected a column name"),
        ({"environment": "prod"}, r"numbers, metadata 'environment' is 'prod'; expected 'produc"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            taken(io_manager, metadata=metadata)


# --- what it is asked for as ----------------------------------------------------------------


class Numbers(pd.DataFrame):
    """A frame with a method of its own."""

    @property
    def _constructor(self) -> type[Numbers]:
        return Numbers

    def total(self) -> int:
        return int(self["n"].sum())


FRAMES_OF_A_DICT = [dict[str, pd.DataFrame | None], dict[str, Optional[pa.Table]]]  # noqa: UP045  # both exist


class Named(pd.DataFrame):
    """A frame that cannot be made from another alone."""

    def __init__(self, frame: pd.DataFrame, name: str) -> None:
        super().__init__(dict(frame))  # type: ignore[call-arg]  # the stubs know only __new__
        self.attrs["name"] = name


def test_an_input_is_loaded_as_the_class_of_its_annotation(database, io_manager):
    store(io_manager, pd.DataFrame({"n": [1, 2]}))

    table = taken(io_manager, annotation=pa.Table)
    reader = taken(io_manager, annotation=pa.RecordBatchReader)
    own = taken(io_manager, annotation=Numbers)

    assert type(taken(io_manager, annotation=pd.DataFrame)) is pd.DataFrame
    assert type(taken(io_manager, annotation=Any)) is pd.DataFrame
    assert type(table) is pa.Table
    assert table.to_pydict() == {"n": [1, 2]}
    assert isinstance(reader, pa.RecordBatchReader)
    assert reader.read_all() == table
    assert own.total() == 3


@pytest.mark.usefixtures("way")
def test_a_dict_has_the_frame_of_each_partition_by_its_key(database, io_manager):
    store_bare(
        io_manager,
        {key: pd.DataFrame({"n": [n] * n}) for n, key in enumerate(days(1, 3))},
        days(1, 3),
    )

    by_key = load_partitions(io_manager, days(1, 3), dict[str, pd.DataFrame])

    assert {key: list(frame["n"]) for key, frame in by_key.items()} == {
        "2024-01-01": [],
        "2024-01-02": [1],
        "2024-01-03": [2, 2],
    }
    assert list(by_key) == days(1, 3)


@pytest.mark.parametrize("annotation", FRAMES_OF_A_DICT, ids=str)
def test_a_dict_of_optional_frames_has_none_for_a_partition_never_materialized(
    io_manager, annotation
):
    store_keys(io_manager, days(2, 2))

    found = load_partitions(io_manager, days(1, 3), annotation)
    nothing = load_partitions(io_manager, days(4, 5), annotation)

    assert list(found) == days(1, 3)
    assert [key for key, frame in found.items() if frame is None] == ["2024-01-01", "2024-01-03"]
    assert len(found["2024-01-02"]) == 1
    assert nothing == {"2024-01-04": None, "2024-01-05": None}


@pytest.mark.parametrize(
    ("arrange", "metadata", "message"),
    [
        (lambda manager: store(manager, pd.DataFrame({"n": [1]})), {}, "asset numbers has none"),
        (lambda manager: store_keys(manager, days(1, 1)), {"full_table": True}, "full_table asks"),
    ],
    ids=["unpartitioned", "full_table"],
)
def test_a_dict_of_rows_that_no_partition_tells_apart_is_refused(
    database, io_manager, arrange, metadata, message
):
    arrange(io_manager)

    with pytest.raises(ConfigurationError, match=message):
        taken(io_manager, annotation=dict[str, pd.DataFrame], metadata=metadata)


def test_a_dict_of_a_hand_made_table_is_refused(database, io_manager):
    execute(database, "CREATE TABLE numbers AS SELECT 1 AS n")

    with pytest.raises(ConfigurationError, match="asset numbers has none"):
        taken(io_manager, annotation=dict[str, pd.DataFrame])


def test_a_dict_of_streams_is_refused(database, io_manager):
    store_keys(io_manager, days(1, 2))

    with pytest.raises(ConfigurationError, match=r"Annotate the input as dict\[str, pyarrow.Tab"):
        taken(io_manager, DAYS, annotation=dict[str, pa.RecordBatchReader])


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (int, "cannot load an input as int; supported are .*pandas.DataFrame, .*pyarrow.Table"),
        (pd.Series, "cannot load an input as pandas.*Series; supported are .*pandas.DataFrame"),
        (pa.RecordBatch, "cannot load an input as pyarrow.lib.RecordBatch; supported are"),
        (dict[str, int], "cannot load an input as int; supported are"),
        (Named, "Named cannot be made from a pandas.DataFrame alone"),
    ],
    ids=["int", "series", "batch", "dict of int", "class of several arguments"],
)
def test_an_annotation_nothing_can_be_loaded_as_is_an_error_that_lists_what_can(
    database, io_manager, annotation, message
):
    store_keys(io_manager, days(1, 1))

    with pytest.raises(UnsupportedFrame, match=f"asset numbers: .*{message}"):
        taken(io_manager, annotation=annotation)


# --- tables made elsewhere ------------------------------------------------------------------


@pytest.mark.parametrize(
    "made",
    ["CREATE TABLE numbers AS SELECT 1 AS n", "CREATE VIEW numbers AS SELECT 1 AS n"],
    ids=["table", "view"],
)
def test_what_was_made_by_hand_is_loaded_whole(database, io_manager, made):
    execute(database, made)

    assert list(taken(io_manager)["n"]) == [1]


def test_an_external_asset_names_its_schema_and_table_like_any_other(database, io_manager):
    execute(database, "CREATE SCHEMA raw", "CREATE TABLE raw.orders AS SELECT 1 AS n")

    assert list(load(io_manager, upstream={"schema": "raw", "table": "orders"})["n"]) == [1]


def test_one_partition_of_a_hand_made_table_is_an_error_that_names_full_table(database, io_manager):
    execute(database, "CREATE TABLE numbers AS SELECT 1 AS n")

    with pytest.raises(MaterializationNotFound, match=r"\['2024-01-02'\].* full_table: True on"):
        taken(io_manager, DAYS, to=DAYS, partition_key="2024-01-02")

    whole = taken(
        io_manager, DAYS, to=DAYS, partition_key="2024-01-02", metadata={"full_table": True}
    )
    assert list(whole["n"]) == [1]


def test_the_first_write_to_a_hand_made_table_adopts_it_without_rewriting_it(database, io_manager):
    execute(database, "CREATE TABLE numbers AS SELECT 1::bigint AS n")
    file = "SELECT oid, relfilenode FROM pg_class WHERE relname = 'numbers'"
    row = "SELECT xmin::text, ctid FROM numbers WHERE n = 1"
    before = query(database, file), query(database, row)

    store(io_manager, pd.DataFrame({"n": [2]}))

    assert (query(database, file), query(database, row)) == before
    assert query(database, "SELECT n, materialization_id FROM numbers ORDER BY n") == [
        (1, None),
        (2, 1),
    ]
    assert list(taken(io_manager)["n"]) == [2]
    assert sorted(taken(io_manager, metadata={"full_table": True})["n"]) == [1, 2]


def test_rows_inserted_by_hand_into_an_assets_table_are_nobodys(database, io_manager):
    store(io_manager, pd.DataFrame({"n": [1]}))
    execute(database, "INSERT INTO numbers (n) VALUES (2)")

    assert list(taken(io_manager)["n"]) == [1]
    store(io_manager, pd.DataFrame({"n": [3]}))
    assert rows(database) == [(2,), (3,)]


# --- outside of a run -----------------------------------------------------------------------


def numbers_by_day() -> dg.AssetsDefinition:
    @dg.asset(partitions_def=DAYS)
    def numbers():
        """Never run here: what it is kept in is stored bare."""

    return numbers


def test_load_asset_value_loads_one_partition_or_all_of_them(database, io_manager):
    store_keys(io_manager, days(1, 3))
    defs = dg.Definitions([numbers_by_day()], resources={"io_manager": io_manager})

    one = defs.load_asset_value("numbers", partition_key="2024-01-02")
    everything: Any = defs.load_asset_value("numbers", python_type=pa.Table)
    with pytest.raises(MaterializationNotFound, match=r"partitions \['2024-01-09'\]"):
        defs.load_asset_value("numbers", partition_key="2024-01-09")

    assert list(one["key"]) == ["2024-01-02"]
    assert sorted(everything["key"].to_pylist()) == days(1, 3)


def test_load_asset_value_loads_a_dict_of_all_partitions(database, io_manager):
    store_keys(io_manager, days(1, 3))
    defs = dg.Definitions([numbers_by_day()], resources={"io_manager": io_manager})

    by_key: Any = defs.load_asset_value("numbers", python_type=dict[str, pd.DataFrame])

    assert list(by_key) == days(1, 3)


def test_a_range_of_partitions_is_loaded_outside_a_run(database, io_manager):
    """What `AssetValueLoader.load_asset_value(partition_key_range=…)` does, newer than 1.11."""
    store_keys(io_manager, days(1, 5))
    asked = dg.build_input_context(
        asset_key="numbers",
        asset_partitions_def=DAYS,
        asset_partition_key_range=dg.PartitionKeyRange("2024-01-02", "2024-01-03"),
    )

    with asked:
        some: Any = io_manager.load_input(asked)

    assert sorted(some["key"]) == days(2, 3)


def test_load_asset_value_knows_nothing_of_the_asset_that_calls_it(database, io_manager):
    store_keys(io_manager, days(1, 2))
    numbers = numbers_by_day()
    defs = dg.Definitions([numbers], resources={"io_manager": io_manager})

    # There is no production connection; with this asset's options the load would fail.
    @dg.asset(metadata={"environment": "production", "full_table": True})
    def calling():
        frame: Any = defs.load_asset_value("numbers", partition_key="2024-01-01")
        return frame

    materialize(calling, io_manager)

    assert rows(database, "public.calling") == [("2024-01-01",)]


def test_a_manager_used_bare_loads_what_it_stored(database, io_manager):
    output = dg.build_output_context(asset_key=["sales", "orders"], partition_key="a")
    io_manager.handle_output(output, pd.DataFrame({"n": [1]}))

    frame = io_manager.load_input(
        dg.build_input_context(
            asset_key=["sales", "orders"], partition_key="a", upstream_output=output
        )
    )

    assert list(frame["n"]) == [1]
    assert rows(database, "sales.orders") == [(1,)]


# --- ops ------------------------------------------------------------------------------------


def test_ops_hand_on_columns_of_tables_in_schemas_of_their_own(database, io_manager):
    @dg.op(out=dg.Out(metadata={"schema": "first", "table": "emitted"}))
    def emit():
        return pd.DataFrame({"a": [1, 2], "b": [3, 4]})

    @dg.op(
        ins={"frame": dg.In(pd.DataFrame, metadata={"columns": ["a"]})},
        out=dg.Out(metadata={"schema": "second"}),
    )
    def add(frame):
        assert list(frame.columns) == ["a"]
        return frame + 10

    @dg.job(resource_defs={"io_manager": io_manager})
    def adding():
        add(emit())

    assert adding.execute_in_process(instance=shared_instance()).success
    assert rows(database, "first.emitted") == [(1, 3), (2, 4)]
    assert rows(database, "second.result") == [(11,), (12,)]


def test_ops_that_share_a_table_read_their_own_rows_back(database, io_manager):
    seen: dict[str, list[int]] = {}

    @dg.op
    def emit(context):
        return pd.DataFrame({"n": [len(context.op_handle.name)]})

    @dg.op
    def check(context, frame: pd.DataFrame) -> None:
        seen[context.op_handle.name] = list(frame["n"])

    @dg.job(resource_defs={"io_manager": io_manager})
    def two():
        check.alias("check_one")(emit.alias("one")())
        check.alias("check_three")(emit.alias("three")())

    assert two.execute_in_process(instance=shared_instance()).success
    assert seen == {"check_one": [3], "check_three": [5]}


def test_ops_of_a_graph_asset_read_the_partition_they_compute(database, io_manager):
    @dg.op
    def emit(context):
        return pd.DataFrame({"day": [context.partition_key]})

    @dg.op
    def copy(emitted: pd.DataFrame):
        return emitted

    @dg.graph_asset(partitions_def=DAYS)
    def numbers():
        return copy(emit())

    for key in days(1, 2):
        materialize(numbers, io_manager, partition_key=key)

    assert rows(database) == [("2024-01-01",), ("2024-01-02",)]


# --- what is read is what is there ----------------------------------------------------------

EVERYTHING = """
    CREATE TYPE mood AS ENUM ('sad', 'happy');
    CREATE DOMAIN percent AS integer CHECK (VALUE <= 100);
    CREATE TABLE numbers (
        bool boolean, int2 smallint, int4 integer, int8 bigint, oid oid, percent percent,
        float4 real, float8 double precision, numeric numeric, scaled numeric(6,2),
        text text, varchar varchar(9), "char" char(3), name name, mood mood, bytea bytea,
        date date, time time, timestamp timestamp, timestamptz timestamptz, interval interval,
        uuid uuid, json json, jsonb jsonb, inet inet, range int4range, bits bit(3), money money,
        xml xml, ints integer[], texts text[], moods mood[], numerics numeric[]
    );
"""
VALUES = """
    INSERT INTO numbers VALUES (
        true, -2, -4, 9007199254740993, 4294967295, 50,
        0.1, 0.1, 123456789012345678901234567890.123456789, 1.50,
        'ä', 'v', 'c', 'n', 'happy', '\\x00ff',
        '0001-01-01', '23:59:59.999999', '2024-02-29 12:00:00.000001',
        '2024-07-01 12:00:00+02', '1 day 02:00:00.000001',
        '00000000-0000-0000-0000-000000000001', '[1]', '{"k": null}', '10.0.0.1/8', '[1,5)',
        '101', 12.34, '<a/>', '{1,NULL}', '{a,NULL,""}', '{sad}', '{1.10}'
    )
"""
TEXT = str(pd.Series([""]).dtype)  # 'str' in pandas 3, 'object' in pandas 2
EXPECTED = {
    "bool": ("bool", True),
    "int2": ("int16", -2),
    "int4": ("int32", -4),
    "int8": ("int64", 2**53 + 1),
    "oid": ("int64", 2**32 - 1),
    "percent": ("int32", 50),
    "float4": ("float32", pytest.approx(0.1)),
    "float8": ("float64", 0.1),
    "numeric": ("object", Decimal("123456789012345678901234567890.123456789")),
    "scaled": ("object", Decimal("1.50")),
    "text": (TEXT, "ä"),
    "varchar": (TEXT, "v"),
    "char": (TEXT, "c  "),
    "name": (TEXT, "n"),
    "mood": (TEXT, "happy"),
    "bytea": ("object", b"\x00\xff"),
    "date": ("object", dt.date(1, 1, 1)),
    "time": ("object", dt.time(23, 59, 59, 999_999)),
    "timestamp": ("datetime64[us]", pd.Timestamp("2024-02-29 12:00:00.000001")),
    "timestamptz": ("datetime64[us, UTC]", pd.Timestamp("2024-07-01 10:00", tz="UTC")),
    "interval": ("timedelta64[us]", pd.Timedelta(days=1, hours=2, microseconds=1)),
    "uuid": ("object", uuid.UUID(int=1)),
    "json": ("object", [1]),
    "jsonb": ("object", {"k": None}),
    "inet": (TEXT, "10.0.0.1/8"),
    "range": (TEXT, "[1,5)"),
    "bits": (TEXT, "101"),
    "money": (TEXT, "$12.34"),
    "xml": (TEXT, "<a/>"),
    "ints": ("object", [1, None]),
    "texts": ("object", ["a", None, ""]),
    "moods": ("object", ["sad"]),
    "numerics": ("object", [Decimal("1.10")]),
}
NULLABLE = {"bool": "boolean", "int16": "Int16", "int32": "Int32", "int64": "Int64"}


def dtypes(frame: pd.DataFrame) -> dict[Any, str]:
    return {name: str(dtype) for name, dtype in frame.dtypes.items()}


def adopt(database: Database, manager: PostgresIOManager) -> None:
    """Let all rows of the hand-made table `numbers` be the asset's."""
    store(manager, pd.DataFrame({"n": [1]}), key="other")
    execute(
        database,
        "ALTER TABLE numbers ADD COLUMN materialization_id integer DEFAULT 1000",
        "INSERT INTO meta.assets VALUES (1000, 'numbers', NULL, 'public', 'numbers')",
        "INSERT INTO meta.materializations VALUES (1000, 'run', 1000, now(), 1, 0, 0, 0)",
    )


@pytest.mark.usefixtures("way")
def test_every_type_is_read_as_the_class_that_holds_it_exactly(database, io_manager):
    execute(database, EVERYTHING, VALUES)
    adopt(database, io_manager)

    frame = taken(io_manager)

    assert dtypes(frame) == {name: dtype for name, (dtype, _value) in EXPECTED.items()}
    for name, (_dtype, value) in EXPECTED.items():
        found = frame[name].iloc[0]
        assert (list(found) if isinstance(value, list) else found) == value, name


@pytest.mark.usefixtures("way")
def test_classes_depend_on_the_type_but_for_integers_and_booleans_with_a_null(database, io_manager):
    execute(database, EVERYTHING)
    adopt(database, io_manager)
    without_rows = taken(io_manager)
    execute(database, "INSERT INTO numbers DEFAULT VALUES")
    with_nulls = taken(io_manager)

    expected = {name: dtype for name, (dtype, _value) in EXPECTED.items()}
    assert dtypes(without_rows) == expected
    assert dtypes(with_nulls) == {
        name: NULLABLE.get(dtype, dtype) for name, dtype in expected.items()
    }
    assert with_nulls.isna().all(axis=None)


UNREADABLE = {
    "infinite date": ("date", "'infinity'", "infinity"),
    "infinite timestamp": ("timestamp", "'-infinity'", "-infinity"),
    "infinite timestamptz": ("timestamptz", "'infinity'", "infinity"),
    "infinite date in an array": ("date[]", "'{infinity}'", "{infinity}"),
    "months": ("interval", "'1 mon 2 days'", "1 mon 2 days"),
    "two dimensions": ("integer[]", "'{{1,2},{3,4}}'", "{{1,2},{3,4}}"),
}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("type_", "value", "text"), UNREADABLE.values(), ids=list(UNREADABLE))
def test_a_value_no_frame_holds_is_an_error_that_tells_how_to_load_it(
    database, io_manager, type_, value, text
):
    execute(database, f"CREATE TABLE numbers AS SELECT 1 AS ok, {value}::{type_} AS odd")
    adopt(database, io_manager)

    with pytest.raises(BadValue) as refused:
        taken(io_manager, annotation=pa.Table)
    as_text = taken(io_manager, metadata={"columns": {"odd": "text"}})

    assert refused.value.column == "odd"
    assert str(refused.value).startswith("asset numbers: column 'odd': of public.numbers holds")
    assert "AssetIn(metadata={'columns': {'odd': 'text'" in str(refused.value)
    assert list(as_text["odd"]) == [text]


# --- one snapshot ---------------------------------------------------------------------------


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("shared", [False, True], ids=["own table", "shared table"])
@pytest.mark.parametrize(
    "annotation", [pd.DataFrame, dict[str, pd.DataFrame]], ids=["frame", "dict"]
)
def test_a_replace_that_commits_while_an_input_is_looked_up_is_not_read_as_nothing(
    database, io_manager, monkeypatch, shared, annotation
):
    if shared:
        store(io_manager, pd.DataFrame({"n": [0]}), key="other", table="numbers")
    store_bare(io_manager, pd.DataFrame({"n": [1]}), ["a"])
    locate, looks = read._locate, []

    def and_then_a_replace(*asked: Any) -> Any:
        located = locate(*asked)
        looks.append(located)
        store_bare(io_manager, pd.DataFrame({"n": [1 + len(looks)]}), ["a"])
        return located

    with monkeypatch.context() as patched:
        patched.setattr(read, "_locate", and_then_a_replace)
        found = load_partitions(io_manager, ["a"], annotation)

    frame = found if annotation is pd.DataFrame else found["a"]
    # The driver looks for itself, and what it reads is of that moment.
    assert list(frame["n"]) == [len(looks)]
    assert list(load_partitions(io_manager, ["a"])["n"]) == [1 + len(looks)]


def test_reading_writes_nothing(database, io_manager):
    execute(
        database,
        "CREATE TABLE log (n integer)",
        """
        CREATE FUNCTION logged() RETURNS integer LANGUAGE sql VOLATILE
        AS 'INSERT INTO log VALUES (1) RETURNING n'
        """,
        "CREATE VIEW numbers AS SELECT logged() AS n",
    )

    with pytest.raises(DatabaseError, match="cannot execute INSERT in a read-only transaction"):
        taken(io_manager)


def test_who_may_only_select_can_load(database, io_manager, role):
    store_keys(io_manager, days(1, 2))
    reader = role()
    execute(
        database,
        f"GRANT USAGE ON SCHEMA meta TO {reader.name}",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA meta TO {reader.name}",
        f"GRANT SELECT ON numbers TO {reader.name}",
    )

    frame = load_partitions(manager_for(database.as_role(reader)), days(2, 2))

    assert list(frame["key"]) == ["2024-01-02"]


def connections(database: Database) -> int:
    """Count the connections of others, once those that are ending have had the time to."""
    found = 0
    for _attempt in range(50):
        [(found,)] = query(
            database,
            """
            SELECT count(*)
            FROM pg_stat_activity
            WHERE datname = current_database()
              AND backend_type = 'client backend'
              AND pid <> pg_backend_pid()
            """,
        )
        if found == 0:
            break
        time.sleep(0.1)
    return found


@pytest.mark.parametrize("batches", [0, 1], ids=["before the first batch", "after the first"])
def test_a_stream_that_nobody_reads_to_its_end_leaves_no_connection(database, io_manager, batches):
    execute(
        database,
        "CREATE TABLE numbers AS SELECT repeat('x', 200) AS t FROM generate_series(1, 200000)",
    )

    reader = taken(io_manager, annotation=pa.RecordBatchReader)
    while_reading = query(
        database, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY%'"
    )
    for _batch in range(batches):
        assert reader.read_next_batch().num_rows < 200_000
    del reader
    gc.collect()  # Dagster's own references to the input are circular

    assert while_reading == [(1,)]
    assert connections(database) == 0


@pytest.mark.direct("pgbouncer", reason="the pool keeps its connections")
@pytest.mark.parametrize("annotation", [pa.Table, pa.RecordBatchReader, dict[str, pd.DataFrame]])
def test_a_load_leaves_no_connection(database, io_manager, annotation):
    store_keys(io_manager, days(1, 2))

    found = load_partitions(io_manager, days(1, 2), annotation)
    if isinstance(found, pa.RecordBatchReader):
        found.read_all()

    assert connections(database) == 0


def test_a_load_that_fails_half_way_leaves_no_connection(database, io_manager):
    execute(
        database,
        "CREATE TABLE numbers AS SELECT CASE n WHEN 200000 THEN 'infinity' ELSE now() END AS at, "
        "repeat('x', 200) AS t FROM generate_series(1, 200000) AS n",
    )

    with pytest.raises(BadValue, match="column 'at'"):
        taken(io_manager)

    assert connections(database) == 0


@pytest.mark.direct("pgbouncer", reason="pooled sessions count for the statistics when they like")
@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.sweep)])
def test_loading_one_partition_of_thousands_reads_by_the_index(database, io_manager, count):
    keys = [f"{number:05}" for number in range(count)]
    store_bare(io_manager, {key: pa.table({"key": [key]}) for key in keys}, keys)
    execute(
        database,
        "INSERT INTO numbers SELECT n.* FROM numbers AS n, generate_series(1, 49)",
        "ANALYZE",
    )
    scans = "SELECT seq_scan, idx_scan FROM pg_stat_user_tables WHERE relname = 'numbers'"
    [(sequential, by_index)] = query(database, scans)

    frame = load_partitions(io_manager, keys[7:8])

    assert list(frame["key"]) == ["00007"] * 50
    for _attempt in range(100):
        [found] = query(database, scans)
        if found != (sequential, by_index):
            break
        time.sleep(0.1)
    assert found == (sequential, by_index + 1)


# --- what is told about it ------------------------------------------------------------------


def observed(result: dg.ExecuteInProcessResult) -> list[tuple[str | None, dict[str, Any]]]:
    """Return partition and metadata of each observation of a run."""
    entries = shared_instance().all_logs(result.run_id)
    observations = [
        entry.dagster_event.asset_observation_data.asset_observation
        for entry in entries
        if entry.dagster_event is not None and entry.dagster_event.is_asset_observation
    ]
    return [
        (observation.partition, {key: value.value for key, value in observation.metadata.items()})
        for observation in observations
    ]


@pytest.mark.parametrize(
    ("annotation", "told"),
    [
        (pd.DataFrame, {"rows": 1, "environment": "development"}),
        (dict[str, pd.DataFrame], {"rows": 1, "environment": "development"}),
        (pa.RecordBatchReader, {"environment": "development"}),
    ],
    ids=["frame", "dict", "stream"],
)
def test_an_input_is_observed_with_its_rows_and_where_they_came_from(
    database, io_manager, annotation, told
):
    store_keys(io_manager, days(1, 3))
    dagster_type: Any = dg.In(annotation).dagster_type
    numbers = numbers_by_day()

    @dg.asset(partitions_def=DAYS, ins={"numbers": dg.AssetIn(dagster_type=dagster_type)})
    def one(numbers) -> None: ...

    mapping = dg.TimeWindowPartitionMapping(start_offset=-2)
    last = dg.AssetIn("numbers", partition_mapping=mapping, dagster_type=dagster_type)

    @dg.asset(partitions_def=DAYS, ins={"last": last})
    def three(last) -> None: ...

    def run(asset: dg.AssetsDefinition) -> dg.ExecuteInProcessResult:
        return materialize(
            [numbers, asset], io_manager, selection=[asset], partition_key="2024-01-03"
        )

    assert observed(run(one)) == [("2024-01-03", told)]
    several = told | ({"rows": 3} if "rows" in told else {}) | {"partitions": 3}
    assert observed(run(three)) == [(None, several)]


def test_a_misspelled_option_of_an_input_is_told_with_the_right_spelling(database, io_manager):
    store(io_manager, pd.DataFrame({"n": [1]}))

    @dg.asset(ins={"numbers": dg.AssetIn(metadata={"ful_table": True, "owner": "me"})})
    def taking(numbers: pd.DataFrame) -> None: ...

    numbers = dg.AssetSpec("numbers").with_io_manager_key("io_manager")
    result = materialize([numbers, taking], io_manager, selection=[taking])

    assert logged(result, level="WARNING") == [
        "Metadata 'ful_table' of input numbers is ignored; is 'full_table' meant?"
    ]


# --- production -----------------------------------------------------------------------------


@pytest.fixture
def two_managers(database, prod_database) -> tuple[PostgresIOManager, PostgresIOManager]:
    """The manager of development, which knows production, and production's own."""
    here = PostgresIOManager(
        connection=resource_for(database), production=resource_for(prod_database)
    )
    return here, manager_for(prod_database)


def test_an_input_comes_from_production_where_it_or_its_asset_says_so(two_managers):
    here, production = two_managers
    store(here, pd.DataFrame({"n": ["here"]}))
    store(production, pd.DataFrame({"n": ["production"]}))
    there, no, none = (
        {"environment": "production"},
        {"environment": "development"},
        {"environment": None},
    )

    assert list(taken(here)["n"]) == ["here"]
    assert list(taken(here, metadata=there)["n"]) == ["production"]
    assert list(taken(here, consumer=there)["n"]) == ["production"]
    assert list(taken(here, consumer=there, metadata=no)["n"]) == ["here"]
    assert list(taken(here, consumer=there, metadata=none)["n"]) == ["here"]


def test_partitions_and_full_table_of_production_are_productions(two_managers):
    here, production = two_managers
    store_keys(here, days(1, 1))
    store_keys(production, days(1, 3))
    said = {"environment": "production"}

    one = taken(here, DAYS, to=DAYS, partition_key="2024-01-02", metadata=said)
    whole = taken(
        here, DAYS, to=DAYS, partition_key="2024-01-02", metadata=said | {"full_table": True}
    )

    assert list(one["key"]) == ["2024-01-02"]
    assert sorted(whole["key"]) == days(1, 3)


def test_an_assets_own_earlier_partitions_never_come_from_production(
    two_managers, database, prod_database
):
    here, production = two_managers
    store_bare(
        production, {key: pd.DataFrame({"day": ["theirs"]}) for key in days(1, 2)}, days(1, 2)
    )
    mapping = dg.TimeWindowPartitionMapping(start_offset=-1, end_offset=-1)

    @dg.asset(
        partitions_def=DAYS,
        metadata={"environment": "production"},
        ins={"numbers": dg.AssetIn(partition_mapping=mapping)},
    )
    def numbers(context, numbers: pd.DataFrame):
        return pd.concat([numbers, pd.DataFrame({"day": [context.partition_key]})])

    for key in days(1, 2):
        materialize(numbers, here, partition_key=key)

    assert rows(database) == [("2024-01-01",), ("2024-01-01",), ("2024-01-02",)]
    assert rows(prod_database) == [("theirs",), ("theirs",)]


def test_production_that_is_not_configured_is_an_error_that_says_how(database, io_manager):
    store(io_manager, pd.DataFrame({"n": [1]}))

    with pytest.raises(ConfigurationError, match=r"PostgresIOManager\(connection=…, production="):
        taken(io_manager, metadata={"environment": "production"})
