"""The road of a frame, from end to end, on the server that the extra `embedded` brings.

scripts/test-wheel runs this file against the built wheel: what is missing there, a statement's
file or a dependency, shows here.
"""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import dagster as dg
import pandas as pd
import pytest

from dagster_tools import SQL, PostgresIOManager
from tests.fix_servers import Database
from tests.pipelines import load, manager_for, materialize, query, store

COLORS = dg.StaticPartitionsDefinition(["red", "green"])


@pytest.fixture
def io_manager(embedded_database: Database) -> PostgresIOManager:
    return manager_for(embedded_database)


def test_a_frame_comes_back_as_it_was_written(io_manager: PostgresIOManager):
    frame = pd.DataFrame(
        {
            "id": [1, 2],
            "weight": [0.1, None],
            "name": ["a", None],
            "day": [dt.date(2024, 2, 29), None],
            "price": [Decimal("1.50"), None],
        }
    )

    store(io_manager, frame, primary_key="id")
    loaded = load(io_manager, order_by="id")

    pd.testing.assert_frame_equal(loaded, frame, check_dtype=False)


def test_assets_and_sql_take_what_other_assets_wrote(
    io_manager: PostgresIOManager, embedded_database: Database
):
    values = {"red": [1, 2], "green": [10]}

    @dg.asset(partitions_def=COLORS)
    def numbers(context):
        return pd.DataFrame({"n": values[context.partition_key]})

    @dg.asset
    def doubled(numbers: pd.DataFrame):
        return numbers * 2

    @dg.asset(deps=[doubled])
    def total() -> SQL:
        return SQL("CREATE TABLE total AS SELECT sum(n) AS n FROM doubled")

    materialize(numbers, io_manager, partition_key="red")
    materialize(numbers, io_manager, partition_key="green")
    values["red"] = [3]
    materialize(numbers, io_manager, partition_key="red")
    materialize([numbers, doubled, total], io_manager, selection=[doubled, total])

    assert query(embedded_database, "SELECT n FROM numbers ORDER BY n") == [(3,), (10,)]
    assert query(embedded_database, "SELECT n FROM total") == [(26,)]
