"""Each row finds its partition: by the frame it came in, or by what its own values tell."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import pyarrow as pa
import pytest

from dagster_tools.errors import BadValue, ConfigurationError, SchemaConflict
from dagster_tools.frames import Stream
from dagster_tools.partitioning import _Windows, assign_partitions, join_partitions

DAYS = dg.DailyPartitionsDefinition("2024-01-01")
BERLIN = ZoneInfo("Europe/Berlin")
BERLIN_DAYS = dg.DailyPartitionsDefinition("2024-01-01", timezone="Europe/Berlin")
BERLIN_HOURS = dg.HourlyPartitionsDefinition("2024-01-01-00:00", timezone="Europe/Berlin")
COLORS = dg.StaticPartitionsDefinition(["blue", "green", "red"])
COLORS_BY_DAY = dg.MultiPartitionsDefinition({"color": COLORS, "day": DAYS})


def stream(*columns: Mapping[str, Any]) -> pa.RecordBatchReader:
    """Make a stream with a batch for each of these."""
    tables = [pa.table(dict(batch)) for batch in columns]
    batches = [batch for table in tables for batch in table.to_batches()]
    return pa.RecordBatchReader.from_batches(tables[0].schema, batches)


def joined(frames: Mapping[str, Any]) -> pa.Table:
    rows = join_partitions(frames, sorted(frames))
    if isinstance(rows, pa.Table):
        return rows
    parts = [pa.Table.from_batches([batch]) for batch in rows]
    return pa.concat_tables(parts, promote_options="permissive")


def told(values: Any, definition: dg.PartitionsDefinition, keys: Sequence[str]) -> list[str]:
    """Return the partition of each row, as a frame's only column tells it."""
    rows: Any = assign_partitions(pa.table({"told": values}), "told", definition, keys)
    return [keys[position] for position in rows["materialization_id"].to_pylist()]


# --- a dict of frames -----------------------------------------------------------------------


@pytest.mark.parametrize("make", [pa.table, stream], ids=["table", "stream"])
def test_rows_of_a_dict_are_marked_with_the_position_of_their_partition(make):
    marked = joined({"b": make({"v": [3]}), "a": make({"v": [1, 2]})})

    assert sorted(marked.to_pylist(), key=lambda row: row["v"]) == [
        {"v": 1, "materialization_id": 0},
        {"v": 2, "materialization_id": 0},
        {"v": 3, "materialization_id": 1},
    ]


def test_tables_and_streams_in_one_dict_are_streamed():
    marked = join_partitions({"a": pa.table({"v": [1]}), "b": stream({"v": [2]})}, ["a", "b"])

    assert isinstance(marked, Stream)
    assert [batch["v"].to_pylist() for batch in marked] == [[1], [2]]


def test_a_stream_of_a_dict_is_not_read_before_its_rows_are_asked_for():
    def batches():
        yield pa.record_batch({"v": [1]})
        raise AssertionError("read too early")

    late = pa.RecordBatchReader.from_batches(pa.schema({"v": pa.int64()}), batches())

    marked = join_partitions({"a": late, "b": stream({"v": [2]})}, ["a", "b"])

    assert next(iter(marked))["v"].to_pylist() == [1]


def test_a_dict_must_have_exactly_the_partitions_of_the_run():
    frames = {"a": pa.table({"v": [1]}), "z": pa.table({"v": [1]})}

    with pytest.raises(ConfigurationError) as refused:
        join_partitions(frames, ["a", "b", "c"])

    assert str(refused.value) == (
        "A dict of frames must have exactly the partitions of the run. "
        "Missing: ['b', 'c']. Not of this run: ['z']."
    )


def test_keys_of_a_dict_that_are_no_text_are_named_as_they_are():
    frames: dict[Any, Any] = {dt.date(2024, 1, 1): pa.table({"v": [1]}), 7: pa.table({"v": [1]})}

    with pytest.raises(ConfigurationError, match=r"Not of this run: \[datetime\.date\(.*, 7\]"):
        join_partitions(frames, ["2024-01-01"])


def test_a_multi_partition_key_is_a_key_of_a_dict_like_its_text():
    key = dg.MultiPartitionKey({"color": "red", "day": "2024-01-01"})

    marked = join_partitions({key: pa.table({"v": [1]})}, ["red|2024-01-01"])

    assert marked["materialization_id"].to_pylist() == [0]


def test_a_column_that_one_frame_lacks_is_null_there():
    marked = joined({"a": pa.table({"v": [1], "w": ["x"]}), "b": pa.table({"w": ["y"], "z": [5]})})

    assert marked.select(["v", "w", "z"]).to_pylist() == [
        {"v": 1, "w": "x", "z": None},
        {"v": None, "w": "y", "z": 5},
    ]


COMMON_TYPES = {
    "widths": (pa.array([1], pa.int32()), pa.array([2**40]), pa.int64()),
    "whole and float": (pa.array([1]), pa.array([0.5]), pa.float64()),
    "floats": (pa.array([0.5], pa.float32()), pa.array([0.25]), pa.float64()),
    "whole and decimal": (pa.array([1]), pa.array([Decimal("0.50")]), pa.decimal128(22, 2)),
    "decimals": (
        pa.array([Decimal("12.5")]),
        pa.array([Decimal("0.125")]),
        pa.decimal128(5, 3),
    ),
    "nothing but null": (pa.array([None]), pa.array(["x"]), pa.string()),
    "texts": (pa.array(["x"]), pa.array(["y"], pa.large_string()), pa.large_string()),
    "dictionary": (pa.array(["x"]), pa.array(["y"]).dictionary_encode(), pa.string()),
    "lists": (pa.array([[1]]), pa.array([[0.5]]), pa.list_(pa.float64())),
    "time zones": (
        pa.array([0], pa.timestamp("s", "UTC")),
        pa.array([0], pa.timestamp("us", "Europe/Berlin")),
        pa.timestamp("us", "UTC"),
    ),
}


@pytest.mark.parametrize(("one", "other", "common"), COMMON_TYPES.values(), ids=list(COMMON_TYPES))
def test_columns_of_a_dict_get_a_type_that_changes_no_value(one, other, common):
    marked = joined({"a": pa.table({"v": one}), "b": pa.table({"v": other})})

    assert marked["v"].type == common
    assert [str(value) for value in marked["v"].to_pylist()] == [
        str(value.cast(common).as_py()) for value in (one[0], other[0])
    ]


def test_numbers_that_travel_as_text_stay_exact_beside_decimals():
    metadata = {"postgresql:type": "numeric"}
    text = pa.schema([pa.field("v", pa.string(), metadata=metadata)])
    one = pa.table({"v": ["NaN"]}, schema=text)

    marked = joined({"a": one, "b": pa.table({"v": [Decimal("1.50")]}), "c": pa.table({"v": [7]})})

    assert marked["v"].to_pylist() == ["NaN", "1.50", "7"]
    assert marked.schema.field("v").metadata == {b"postgresql:type": b"numeric"}


NO_COMMON_TYPE = {
    "number and text": (pa.array([1]), pa.array(["x"])),
    "boolean and number": (pa.array([True]), pa.array([1])),
    "bytes and text": (pa.array([b"x"]), pa.array(["x"])),
    "float and decimal": (pa.array([0.5]), pa.array([Decimal("0.5")])),
    "date and time": (pa.array([dt.date(2024, 1, 1)]), pa.array([dt.datetime(2024, 1, 1)])),
    "naive and aware": (
        pa.array([0], pa.timestamp("us")),
        pa.array([0], pa.timestamp("us", "UTC")),
    ),
    "list and element": (pa.array([[1]]), pa.array([1])),
}


@pytest.mark.parametrize(("one", "other"), NO_COMMON_TYPE.values(), ids=list(NO_COMMON_TYPE))
def test_columns_of_a_dict_that_no_type_holds_unchanged_are_refused(one, other):
    frames = {"a": pa.table({"v": [None]}), "b": pa.table({"v": one}), "c": pa.table({"v": other})}

    with pytest.raises(SchemaConflict) as refused:
        join_partitions(frames, ["a", "b", "c"])

    assert str(refused.value).startswith(
        f"Column 'v' is {one.type} in the frame of partition 'b' and {other.type} in that of 'c'."
    )


def test_an_integer_that_is_no_exact_float_is_refused_and_not_shown():
    frames = {"a": pa.table({"v": [2**53 + 1]}), "b": pa.table({"v": [0.5]})}

    with pytest.raises(BadValue, match="column 'v': holds int64 values") as refused:
        joined(frames)

    assert str(2**53 + 1) not in str(refused.value)


def test_a_frame_without_rows_has_no_say_about_columns():
    empty = pa.table({"v": pa.array([], pa.float64()), "only": pa.array([], pa.bool_())})

    marked = joined({"a": empty, "b": pa.table({"v": ["x"]}), "c": pa.table({})})

    assert marked.to_pylist() == [{"v": "x", "materialization_id": 1}]
    assert joined({"a": empty}).num_rows == 0


# --- partition_expr -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [["red", "blue", "red"], pa.array(["red", "blue", "red"]).dictionary_encode()],
    ids=["text", "dictionary"],
)
def test_static_and_dynamic_partitions_are_told_by_equal_text(values):
    dynamic = dg.DynamicPartitionsDefinition(name="colors")

    assert told(values, COLORS, ["blue", "red"]) == ["red", "blue", "red"]
    assert told(values, dynamic, ["blue", "red"]) == ["red", "blue", "red"]


def test_a_static_partition_may_be_told_by_a_number_or_a_date():
    years = dg.StaticPartitionsDefinition(["2023", "2024"])
    days = dg.StaticPartitionsDefinition(["2024-01-01", "2024-01-02"])

    assert told([2024, 2023], years, ["2023", "2024"]) == ["2024", "2023"]
    assert told([dt.date(2024, 1, 2)], days, ["2024-01-01", "2024-01-02"]) == ["2024-01-02"]


@pytest.mark.parametrize(
    "values",
    [
        [dt.date(2024, 1, 1), dt.date(2024, 1, 2)],
        [dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 2, 23, 59, 59, 999_999)],
        pa.array([dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 2, 5)], pa.timestamp("ns")),
        pa.array([dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 2, 5)], pa.timestamp("ms", "UTC")),
        ["2024-01-01", "2024-01-02"],
        ["2024-01-01T00:00:00", "2024-01-02 23:59:59.999999"],
        ["2024-01-01T00:00:00Z", "2024-01-02T01:00:00+01:00"],
    ],
    ids=["date", "timestamp", "nanoseconds", "timestamptz", "key", "iso", "iso with zone"],
)
def test_a_time_lies_in_the_window_that_contains_it(values):
    keys = ["2024-01-01", "2024-01-02"]

    assert told(values, DAYS, keys) == keys


MONTHS = dg.MonthlyPartitionsDefinition("2024-01-01")
WEEKS = dg.WeeklyPartitionsDefinition("2024-01-07")
HOURS = dg.HourlyPartitionsDefinition("2024-01-01-00:00")
YEARS = dg.TimeWindowPartitionsDefinition(start="2020", fmt="%Y", cron_schedule="0 0 1 1 *")


@pytest.mark.parametrize(
    ("definition", "moment", "key"),
    [
        (MONTHS, dt.datetime(2024, 2, 29, 23, 59), "2024-02-01"),
        (WEEKS, dt.datetime(2024, 1, 20, 23, 59), "2024-01-14"),
        (HOURS, dt.datetime(2024, 1, 1, 7, 59), "2024-01-01-07:00"),
        (HOURS, dt.date(2024, 1, 2), "2024-01-02-00:00"),
        (YEARS, dt.date(2023, 12, 31), "2023"),
        (YEARS, 2023, "2023"),
    ],
    ids=["month", "week", "hour", "midnight hour", "year", "year as a number"],
)
def test_windows_are_as_long_as_the_partitions(definition, moment, key):
    assert told([moment], definition, [key]) == [key]


def test_moments_before_1970_lie_in_their_windows():
    days = dg.DailyPartitionsDefinition("1890-01-01", timezone="Europe/Berlin")
    keys = ["1890-06-01", "1969-12-31"]  # in 1890 Berlin's clocks were 53 minutes 28 seconds ahead

    moments = [
        dt.datetime(1890, 6, 1),
        dt.datetime(1890, 6, 1, 23, 59, 59),
        dt.datetime(1969, 12, 31, 23),
    ]

    assert told(moments, days, keys) == ["1890-06-01", "1890-06-01", "1969-12-31"]


@pytest.mark.parametrize(
    ("zone", "year"), [("UTC", 2024), ("Asia/Singapore", 1934)], ids=["UTC", "7:20 ahead of it"]
)
def test_windows_may_begin_at_any_minute(zone, year):
    hours = dg.TimeWindowPartitionsDefinition(
        start=f"{year}-06-01-00:20",
        fmt="%Y-%m-%d-%H:%M",
        cron_schedule="20 * * * *",
        timezone=zone,
    )
    keys = [f"{year}-06-01-00:20", f"{year}-06-01-01:20"]
    moments = [dt.datetime(year, 6, 1, 1, 19, 59), dt.datetime(year, 6, 1, 1, 20)]

    assert told(moments, hours, keys) == keys


def test_times_without_a_zone_are_meant_in_the_zone_of_the_partitions():
    keys = ["2024-06-01", "2024-06-02"]
    shown = [dt.datetime(2024, 6, 1, 23, 30), dt.datetime(2024, 6, 2, 0, 30)]
    instants = [moment.replace(tzinfo=BERLIN) for moment in shown]

    assert told(shown, BERLIN_DAYS, keys) == keys
    assert told(pa.array(instants, pa.timestamp("us", "UTC")), BERLIN_DAYS, keys) == keys
    assert (
        told(["2024-06-01T22:30:00Z", "2024-06-02T00:30"], BERLIN_DAYS, keys) == ["2024-06-02"] * 2
    )


def test_the_day_on_which_clocks_are_put_back_has_25_hours():
    keys = ["2024-10-26", "2024-10-27", "2024-10-28"]
    start = dt.datetime(2024, 10, 26, 22, tzinfo=dt.timezone.utc)  # midnight in Berlin
    hours = [start + dt.timedelta(hours=hour) for hour in range(-1, 26)]

    found = told(pa.array(hours, pa.timestamp("us", "UTC")), BERLIN_DAYS, keys)

    assert found == ["2024-10-26"] + ["2024-10-27"] * 25 + ["2024-10-28"]


def test_of_the_hour_that_clocks_show_twice_each_instant_has_its_own_partition():
    keys = ["2024-10-27-01:00", "2024-10-27-02:00", "2024-10-27-02:00+0100", "2024-10-27-03:00"]
    half_past = [dt.datetime(2024, 10, 26, 23, 30) + dt.timedelta(hours=hour) for hour in range(4)]

    assert told(pa.array(half_past, pa.timestamp("us", "UTC")), BERLIN_HOURS, keys) == keys
    assert told([dt.datetime(2024, 10, 27, 2, 30)], BERLIN_HOURS, keys) == ["2024-10-27-02:00"]
    assert told(keys, BERLIN_HOURS, keys) == keys


def test_the_hour_that_clocks_leave_out_counts_as_the_one_after():
    keys = ["2024-03-31-01:00", "2024-03-31-03:00"]

    assert told([dt.datetime(2024, 3, 31, 2, 30)], BERLIN_HOURS, keys) == ["2024-03-31-03:00"]


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "Australia/Lord_Howe", "Asia/Kathmandu"])
def test_zones_off_the_hour_have_their_own_midnight(zone):
    days = dg.DailyPartitionsDefinition("2024-01-01", timezone=zone)
    keys = ["2024-04-06", "2024-04-07", "2024-04-08"]  # Lord Howe puts back by half an hour
    last, first = dt.datetime(2024, 4, 7, 23, 59, 59), dt.datetime(2024, 4, 7)
    instants = [moment.replace(tzinfo=ZoneInfo(zone)) for moment in (first, last)]

    assert told([first, last], days, keys) == ["2024-04-07"] * 2
    assert told(pa.array(instants, pa.timestamp("us", "UTC")), days, keys) == ["2024-04-07"] * 2


def test_a_multi_partition_is_told_by_a_column_for_each_dimension():
    rows = pa.table(
        {
            "when": [dt.datetime(2024, 1, 2, 12), dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 1)],
            "paint": ["red", "blue", "red"],
        }
    )
    keys = ["blue|2024-01-01", "red|2024-01-01", "red|2024-01-02"]

    marked = assign_partitions(rows, {"day": "when", "color": "paint"}, COLORS_BY_DAY, keys)

    assert [keys[position] for position in marked["materialization_id"].to_pylist()] == [
        "red|2024-01-02",
        "blue|2024-01-01",
        "red|2024-01-01",
    ]


def test_partitions_of_a_run_are_told_apart_even_where_its_dimensions_have_gaps():
    rows = pa.table({"when": [dt.date(2024, 1, 2)], "paint": ["blue"]})
    keys = ["blue|2024-01-01", "red|2024-01-02"]

    with pytest.raises(BadValue, match="column 'paint, when', row 0: tells none of the 2"):
        assign_partitions(rows, {"day": "when", "color": "paint"}, COLORS_BY_DAY, keys)


OUTSIDE = {
    "static key": (["red", "red", "pink"], COLORS, 2),
    "date after": ([dt.date(2024, 1, 1), dt.date(2024, 1, 3)], DAYS, 1),
    "date before": ([dt.date(2023, 12, 31)], DAYS, 0),
    "end of the last window": ([dt.datetime(2024, 1, 2), dt.datetime(2024, 1, 3)], DAYS, 1),
    "no time": (["2024-01-01", "yesterday"], DAYS, 1),
    "number": ([1, 2], DAYS, 0),
    "year 148,000": (pa.array([2**62], pa.timestamp("us")), DAYS, 0),
    "144,000 years ago": (pa.array([-(2**62)], pa.timestamp("us", "UTC")), DAYS, 0),
}


@pytest.mark.parametrize(("values", "definition", "row"), OUTSIDE.values(), ids=list(OUTSIDE))
def test_a_row_outside_the_partitions_of_the_run_is_named_by_column_and_position(
    values, definition, row
):
    keys = ["red"] if definition is COLORS else ["2024-01-01", "2024-01-02"]

    with pytest.raises(BadValue) as refused:
        told(values, definition, keys)

    assert (refused.value.column, refused.value.row) == ("told", row)
    assert f"tells none of the {len(keys)} partitions of this run" in str(refused.value)


@pytest.mark.parametrize(
    ("values", "definition", "key"),
    [
        (["red", None], COLORS, "red"),
        (pa.array(["None", None]), dg.StaticPartitionsDefinition(["None"]), "None"),
        (pa.array(["red", None]).dictionary_encode(), COLORS, "red"),
        ([dt.datetime(2024, 1, 1), None], DAYS, "2024-01-01"),
        ([dt.date(2024, 1, 1), None], DAYS, "2024-01-01"),
    ],
    ids=["text", "text None", "dictionary", "timestamp", "date"],
)
def test_null_tells_no_partition(values, definition, key):
    with pytest.raises(BadValue, match="column 'told', row 1: is NULL"):
        told(values, definition, [key])


def test_rows_of_a_stream_are_marked_batch_by_batch_and_counted_from_its_start():
    rows = stream({"told": ["red"]}, {"told": ["blue", "red"]}, {"told": ["red", "pink"]})
    marked = assign_partitions(rows, "told", COLORS, ["blue", "red"])

    batches = iter(marked)
    assert next(batches)["materialization_id"].to_pylist() == [1]
    assert next(batches)["materialization_id"].to_pylist() == [0, 1]
    with pytest.raises(BadValue, match="column 'told', row 4: tells none"):
        next(batches)


def test_rows_of_a_table_are_counted_from_its_start_whatever_its_chunks():
    rows = pa.chunked_array([["red", "red"], ["red"], ["pink"]])

    with pytest.raises(BadValue, match="column 'told', row 3"):
        told(rows, COLORS, ["red"])


def test_a_million_distinct_times_need_few_look_ups(monkeypatch):
    looked_up: list[float] = []
    at = _Windows._at
    monkeypatch.setattr(
        _Windows, "_at", lambda self, moment: looked_up.append(moment) or at(self, moment)
    )
    first, last = days = ["2024-01-01", "2024-01-02"]
    start, end = 1_704_067_200_000_000, 1_704_240_000_000_000  # of these days, in microseconds
    times = pa.array(range(start, end, 172_800), pa.timestamp("us"))

    found = told(times, DAYS, days)

    assert (found.count(first), found.count(last)) == (500_000, 500_000)
    assert len(looked_up) <= 2 * 24 * 4  # quarters of an hour


@pytest.mark.parametrize(
    ("expression", "definition", "key", "message"),
    [
        ("nope", COLORS, "red", r"partition_expr names \['nope'\].*Its columns are \['v'\]"),
        ({"color": "v"}, COLORS, "red", r"partition_expr names \[\{'color': 'v'\}\]"),
        (["v"], COLORS, "red", r"partition_expr names \[\['v'\]\]"),
        ("v", COLORS_BY_DAY, "red|2024-01-01", r"is 'v'; .* dimensions \['color', 'day'\]"),
        ({"day": "v"}, COLORS_BY_DAY, "red|2024-01-01", r"dimensions \['color', 'day'\]"),
        ({"day": "v", "color": "w"}, COLORS_BY_DAY, "red|2024-01-01", r"names \['w'\]"),
    ],
    ids=["unknown", "dict", "list", "text for multi", "dimension missing", "unknown for multi"],
)
def test_an_expression_that_does_not_fit_is_refused_with_what_would(
    expression, definition, key, message
):
    with pytest.raises(ConfigurationError, match=message):
        assign_partitions(pa.table({"v": ["red"]}), expression, definition, [key])
