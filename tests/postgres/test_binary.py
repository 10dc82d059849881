"""A few values are read from their binary form as the driver reads them, in Python."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pyarrow as pa
import pytest

from dagster_tools.postgres import read
from dagster_tools.postgres.binary import binary_columns, read_values
from dagster_tools.postgres.column_types import PgType, parse_type
from dagster_tools.postgres.names import Table
from dagster_tools.postgres.options import InputOptions
from dagster_tools.postgres.projection import Projected
from dagster_tools.postgres.read import Request, read_table
from dagster_tools.postgres.tracking import Tracking
from tests.pipelines import resource_for, store

VALUES = {
    "boolean": [True, False],
    "smallint": [-(2**15), 2**15 - 1],
    "integer": [-(2**31), 2**31 - 1],
    "bigint": [-(2**63), 2**63 - 1],
    "real": [0.5, float("-inf")],
    "double precision": [0.1, float("inf"), -0.0],
    "text": ["", "ä\U0001f600"],
    "bytea": [b"", b"\x00\xff"],
    "date": [dt.date(1, 1, 1), dt.date(1969, 12, 31), dt.date(9999, 12, 31)],
    "time without time zone": [dt.time(0), dt.time(23, 59, 59, 999_999)],
    "timestamp without time zone": [dt.datetime(1, 1, 1), dt.datetime(2024, 2, 29, 1, 2, 3, 4)],
    "timestamp with time zone": [dt.datetime(2024, 2, 29, tzinfo=dt.timezone.utc)],
}


@pytest.mark.parametrize(("type_", "values"), VALUES.items(), ids=list(VALUES))
def test_values_are_those_the_server_sent(module_database, type_, values):
    column = [*values, None]
    with module_database.connect() as connection, connection.cursor(binary=True) as cursor:
        cursor.execute(
            f"SELECT * FROM unnest(%s::{type_}[]) WITH ORDINALITY AS sent (v, n) ORDER BY n",
            [column],
        )
        result = cursor.pgresult
        sent = [result.get_value(row, 0) for row in range(len(column))]

    assert read_values(sent, PgType(type_)).to_pylist() == column


@pytest.mark.parametrize("type_", ["date", "timestamp without time zone"])
def test_infinity_ends_up_before_any_date_postgresql_knows(type_):
    width = 4 if type_ == "date" else 8
    largest, smallest = b"\x7f" + b"\xff" * (width - 1), b"\x80" + b"\x00" * (width - 1)

    found = read_values([largest, smallest], PgType(type_)).cast(
        pa.int32() if type_ == "date" else pa.int64()
    )

    assert all(number < -(2 ** (width * 8 - 2)) for number in found.to_pylist())


def test_what_has_a_binary_form_of_its_own_arrives_as_text():
    columns = [projected("numeric"), projected("jsonb"), projected("bigint")]

    arriving = binary_columns(columns)

    assert arriving == [
        replace(columns[0], casts=(PgType("text"),)),
        replace(columns[1], casts=(PgType("text"),)),
        columns[2],
    ]


@pytest.mark.parametrize("type_", ["integer[]", "interval"])
def test_one_column_that_only_the_driver_reads_leaves_all_to_it(type_):
    assert binary_columns([projected("bigint"), projected(type_)]) is None


def test_a_table_without_columns_is_left_to_the_driver():
    assert binary_columns([]) is None


def projected(type_: str) -> Projected:
    return Projected("v", parse_type(type_), parse_type(type_), ())


NUMBERS_IN_TEXT = ["0", "1.50", "0.0000", "1e20", "1e-20", "100000000000000000000.10", "NaN"]


def test_numbers_are_spelled_as_the_server_spells_them_by_either_way(
    database, io_manager, monkeypatch
):
    store(io_manager, pa.table({"n": NUMBERS_IN_TEXT}), columns={"n": "numeric"})
    with database.connect() as connection:
        connection.execute("INSERT INTO numbers VALUES ('Infinity', 1), ('-Infinity', 1)")
        expected = [text for (text,) in connection.execute("SELECT n::text FROM numbers")]
    asked = Request("numbers", Table("public", "numbers"), None, InputOptions(), {})
    settings = resource_for(database).settings()

    few = read_table(settings, Tracking("meta"), asked).read_all()
    monkeypatch.setattr(read, "FEW_VALUES", -1)
    by_the_driver = read_table(settings, Tracking("meta"), asked).read_all()

    assert few.column("n").to_pylist() == expected
    assert few.equals(by_the_driver, check_metadata=True)


def test_more_rows_than_tracking_knows_of_are_all_read(database, io_manager):
    store(io_manager, pa.table({"n": [1]}))
    with database.connect() as connection:
        connection.execute(
            "INSERT INTO numbers SELECT n, materialization_id FROM numbers AS one, "
            "LATERAL (SELECT generate_series(2, 50000)) AS more (m)"
        )
    asked = Request("numbers", Table("public", "numbers"), None, InputOptions(), {})

    found = read_table(resource_for(database).settings(), Tracking("meta"), asked).read_all()

    assert found.num_rows == 50_000
