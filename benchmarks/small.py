"""What ten rows cost, and one partition of ten thousand: the fixed price of a write and of a load.

Against a write stand the same steps by hand, as few statements as they take, on one new psycopg
connection; against a load of one partition of ten thousand stands that of one of ten.

    python benchmarks/small.py
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from unittest import mock

import dagster as dg
import pandas as pd
import psycopg
from measuring import Bench, Contender, bench, load, report, take_turns, timed
from psycopg import sql
from ten_columns import COLUMNS, frame

ROUNDS = 30
MANY = 10_000
ROWS_OF_A_PARTITION = 100


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    with bench() as running:
        print(f"{running}; {ROUNDS} rounds, {load()}")
        ten = frame(10)
        for title, contenders in (
            ("replace ten rows", replaces(running, ten)),
            ("load ten rows", loads(running, ten)),
            (f"load {ROWS_OF_A_PARTITION} rows of one partition", partitions(running)),
        ):
            take_turns(contenders, ROUNDS)
            report(title, contenders)
        print()
        for name, transfer in (
            ("replace", lambda: running.store("by_us", ten)),
            ("load", lambda: running.load("by_us")),
        ):
            print(f"{name}: waits {waits(transfer)} times for the server, connecting aside")


# --- ten rows -------------------------------------------------------------------------------


def replaces(running: Bench, ten: pd.DataFrame) -> list[Contender]:
    running.store("by_us", ten)
    running.store("by_hand", ten)
    return [
        Contender("by hand, on a new connection", lambda: write_by_hand(running, "by_hand", ten)),
        Contender("dagster-tools: handle_output", lambda: running.store("by_us", ten)),
    ]


def write_by_hand(running: Bench, table: str, rows: pd.DataFrame) -> float:
    """Replace the rows and record it: lock, number, delete, copy, record, commit."""
    cells = rows.astype(object).where(rows.notna(), None).itertuples(index=False, name=None)
    values = list(cells)

    def replace() -> None:
        with psycopg.connect(running.url(), prepare_threshold=None) as connection:
            [asset] = _one(
                connection,
                "SELECT id FROM meta.assets WHERE asset_key = %s FOR NO KEY UPDATE",
                [f"public/{table}"],
            )
            [number] = _one(
                connection, "SELECT nextval('meta.materializations_id_seq')::integer", []
            )
            target = sql.Identifier(table)
            connection.execute(sql.SQL("DELETE FROM {}").format(target))
            copy = sql.SQL("COPY {} FROM STDIN (FORMAT binary)").format(target)
            with connection.cursor() as cursor, cursor.copy(copy) as copying:
                copying.set_types([*COLUMNS.values(), "integer"])
                for row in values:
                    copying.write_row([*row, number])
            connection.execute(
                "INSERT INTO meta.materializations VALUES (%s, 'a run', %s, now(), 10, 0, 10, 0)",
                [number, asset],
            )

    return timed(replace)


def _one(
    connection: psycopg.Connection[tuple[int, ...]], query: str, parameters: list[object]
) -> tuple[int, ...]:
    row = connection.execute(query, parameters).fetchone()
    assert row is not None
    return row


def loads(running: Bench, ten: pd.DataFrame) -> list[Contender]:
    running.store("read_by_us", ten)
    return [
        Contender("psycopg: connect and SELECT", lambda: read_by_hand(running, "read_by_us")),
        Contender("dagster-tools: load_input", lambda: running.load("read_by_us")),
    ]


def read_by_hand(running: Bench, table: str) -> float:
    def select() -> None:
        with psycopg.connect(running.url()) as connection:
            query = sql.SQL("SELECT * FROM {}").format(sql.Identifier(table))
            connection.execute(query).fetchall()

    return timed(select)


# --- one partition of many ------------------------------------------------------------------


def partitions(running: Bench) -> list[Contender]:
    few, many = _partitioned(running, "few", 10), _partitioned(running, "many", MANY)
    return [
        Contender("dagster-tools: one of 10", few),
        Contender(f"dagster-tools: one of {MANY:,}", many),
    ]


def _partitioned(running: Bench, table: str, count: int) -> Callable[[], float]:
    """Write a table of so many partitions, and return what loads one in their middle."""
    keys = [f"{number:05}" for number in range(count)]
    definition = dg.StaticPartitionsDefinition(keys)
    rows = frame(count * ROWS_OF_A_PARTITION)
    rows["key"] = [key for key in keys for _row in range(ROWS_OF_A_PARTITION)]
    running.io_manager().handle_output(
        dg.build_output_context(
            asset_key=["public", table],
            run_id="a run",
            name="result",
            asset_partitions_def=definition,
            asset_partition_key_range=dg.PartitionKeyRange(keys[0], keys[-1]),
            definition_metadata={"partition_expr": "key"},
        ),
        rows,
    )
    running.run("VACUUM ANALYZE")
    key = keys[count // 2]

    def load_one() -> float:
        manager = running.io_manager()
        context = dg.build_input_context(
            asset_key=["public", table],
            name="rows",
            asset_partitions_def=definition,
            asset_partition_key_range=dg.PartitionKeyRange(key, key),
        )
        return timed(lambda: manager.load_input(context))

    return load_one


# --- round trips ----------------------------------------------------------------------------


def waits(transfer: Callable[[], object]) -> int:
    """Count how often psycopg waits for an answer; each is a round trip on a distant server."""
    with mock.patch.object(
        psycopg.Connection, "wait", autospec=True, side_effect=psycopg.Connection.wait
    ) as waited:
        transfer()
    return waited.call_count


if __name__ == "__main__":
    main()
