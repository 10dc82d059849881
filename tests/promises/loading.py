"""Loads in batches as the promises' tests make them: without Dagster, each batch known by number.

A source of these has batches 1, 2, 3 …, and its high watermark is the number of the last. `judge`
says whether what is there is so many whole batches, recorded as such, and nothing else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import psycopg
import pyarrow as pa

from dagster_tools.postgres.batches import Totals, load_batches
from dagster_tools.postgres.connection import Connection, connect
from dagster_tools.postgres.names import Table
from dagster_tools.postgres.options import OutputOptions
from dagster_tools.postgres.tracking import Lineage, Tracking
from dagster_tools.postgres.write import Merge, Output
from dagster_tools.sql import Batch, Batches
from tests.fix_servers import Database
from tests.oracle import fetch_leftovers, fetch_sessions
from tests.promises.writing import NUMBERS, numbers, settings_of, stream

__all__ = ["LINES", "judge", "load_all", "numbered", "rows_of", "several_tables", "watermark"]

LINES = Table("sales", "lines")
"""The second table of a load of two; its asset, too, has the table's name."""

SECONDS_TO_DIE = 10.0

log = logging.getLogger("promises")


def numbered(
    last: int, *, at: int | None = None, act: Callable[[], object] | None = None
) -> Callable[[Any], Iterator[Batch]]:
    """Make a source of batches up to a number, two rows in two parts each.

    Args:
        act: Called in the middle of batch `at`, between its two rows.
    """

    def source(high_watermark: int | None) -> Iterator[Batch]:
        for number in range((high_watermark or 0) + 1, last + 1):
            first, second = rows_of(number)
            meanwhile = [act] if number == at and act is not None else []
            data = stream(
                numbers(first, label=str(number)), *meanwhile, numbers(second, label=str(number))
            )
            yield Batch(data, high_watermark=number)

    return source


def several_tables(last: int) -> Callable[[Any], Iterator[Batch]]:
    """Make a source whose batches are for two tables."""

    def source(high_watermark: int | None) -> Iterator[Batch]:
        for number in range((high_watermark or 0) + 1, last + 1):
            rows = numbers(*rows_of(number), label=str(number))
            yield Batch({"numbers": rows, "lines": rows}, high_watermark=number)

    return source


def rows_of(*batches: int) -> list[int]:
    """Return the ids of some batches' rows."""
    return [10 * number + digit for number in batches for digit in (1, 2)]


def load_all(
    database: Database,
    batches: Batches,
    *tables: Table,
    run_id: str = "a run",
    partition: str | None = None,
    connections: list[Connection] | None = None,
    **metadata: Any,
) -> dict[str, Totals]:
    """Load batches, as the IO manager does.

    Args:
        tables: Those of the assets that share the source; `sales.numbers` unless told.
        connections: Gets each one that is opened.
        metadata: The outputs' options, as the assets' definitions have them.
    """

    def opened() -> Connection:
        connection = connect(settings_of(database))
        if connections is not None:
            connections.append(connection)
        return connection

    def to_arrow(_connection: Connection, output: Output, data: Any) -> tuple[Any, Merge | None]:
        return data, Merge() if output.options.incremental else None

    outputs = {
        table.name: Output(
            table,
            OutputOptions.from_metadata(metadata, table.name),
            Lineage(table.name, run_id, (partition,)),
            Tracking("meta"),
            log,
        )
        for table in tables or (NUMBERS,)
    }
    return load_batches(opened, outputs, next(iter(outputs)), batches, to_arrow)


def watermark(database: Database, asset_key: str = "numbers") -> Any:
    with closing(database.connect()) as connection:
        if not _exists(connection, "meta.watermarks"):
            return None
        found = connection.execute(
            "SELECT high_watermark FROM meta.watermarks JOIN meta.assets ON id = asset_id"
            " WHERE asset_key = %s",
            [asset_key],
        ).fetchone()
        return found[0] if found else None


def judge(
    database: Database,
    *,
    table: Table = NUMBERS,
    before: pa.Table | None = None,
    pooled: bool = False,
) -> int:
    """Return how many whole batches are there; fail with all that is wrong about it.

    Args:
        before: What was there first, and is as long as there is no batch.
        pooled: It was loaded through a pooler, which keeps its idle sessions.
    """
    with closing(database.connect()) as connection:
        surviving = _survivors(connection, pooled or database.pooled)
        wrong = [f"a session outlives the load: {name}" for name in surviving]
        wrong += fetch_leftovers(connection)
        mark = watermark(database, table.name) or 0
        found = _rows(connection, table)
        there_before = before.to_pylist() if before is not None and not mark else []
        expected = sorted((row["id"], row["label"]) for row in there_before)
        expected += [(id_, str(n)) for n in range(1, mark + 1) for id_ in rows_of(n)]
        if found != expected:
            wrong.append(f"the high watermark is {mark}, and the rows are {found}")
        if found and (stray := _unrecorded(connection, table)):
            wrong.append(f"{stray} rows bear a materialization that is not recorded")
    assert not wrong, "\n".join(wrong)
    return int(mark)


def _rows(connection: psycopg.Connection[Any], table: Table) -> list[tuple[Any, ...]]:
    if not _exists(connection, str(table)):
        return []
    return connection.execute(f"SELECT id, label FROM {table} ORDER BY id, label").fetchall()


def _unrecorded(connection: psycopg.Connection[Any], table: Table) -> int:
    [(count,)] = connection.execute(
        f"SELECT count(*) FROM {table} WHERE materialization_id NOT IN"
        " (SELECT id FROM meta.materializations)"
    ).fetchall()
    return int(count)


def _exists(connection: psycopg.Connection[Any], name: str) -> bool:
    [(found,)] = connection.execute("SELECT to_regclass(%s) IS NOT NULL", [name]).fetchall()
    return bool(found)


def _survivors(connection: psycopg.Connection[Any], pooled: bool) -> list[str]:
    deadline = time.monotonic() + SECONDS_TO_DIE
    while (sessions := fetch_sessions(connection, busy=pooled)) and time.monotonic() < deadline:
        time.sleep(0.005)
    return sessions
