"""Writes as the promises' tests make them: small, on a connection of their own, interruptible.

Imports no Dagster, so that the processes some tests start are there at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pyarrow as pa

from dagster_tools.postgres.connection import ConnectionSettings, connect
from dagster_tools.postgres.deletion import Deletion
from dagster_tools.postgres.names import Table
from dagster_tools.postgres.options import InputOptions, OutputOptions
from dagster_tools.postgres.read import Request, read_table
from dagster_tools.postgres.run import run_sql
from dagster_tools.postgres.tracking import Lineage, Tracking
from dagster_tools.postgres.write import Merge, Output, Written, write_table
from dagster_tools.sql import SQL, Query
from tests.fix_servers import Database

__all__ = ["NUMBERS", "ids", "load", "numbers", "run", "settings_of", "stream", "write"]

NUMBERS = Table("sales", "numbers")
"""Where writes go unless they say otherwise; the asset has the table's name."""

log = logging.getLogger("promises")


def settings_of(database: Database) -> ConnectionSettings:
    return ConnectionSettings(**database.settings())


def numbers(*ids: int, label: str = "") -> pa.Table:
    """Make a small frame: whole numbers, and a text that may tell one frame from another."""
    return pa.table(
        {"id": pa.array(ids, pa.int64()), "label": pa.array([label] * len(ids), pa.string())}
    )


def stream(*parts: pa.Table | Callable[[], object]) -> pa.RecordBatchReader:
    """Make a stream of frames; a function among them is called when the writer gets there.

    The writer reads the first frame before it begins; what follows is read in mid-COPY.
    """
    schema = next(part.schema for part in parts if isinstance(part, pa.Table))

    def batches() -> Iterator[pa.RecordBatch]:
        for part in parts:
            if isinstance(part, pa.Table):
                yield from part.to_batches()
            else:
                part()

    return pa.RecordBatchReader.from_batches(schema, batches())


def write(
    database: Database,
    data: pa.Table | pa.RecordBatchReader,
    *,
    table: Table = NUMBERS,
    partition: str | None = None,
    run_id: str = "a run",
    asset_key: str | None = None,
    tracking_schema: str = "meta",
    delete: Deletion | None = None,
    **metadata: Any,
) -> Written:
    """Write one output, as the IO manager does.

    Args:
        delete: What of the asset's rows goes before, as for an `IncrementalDataFrame`.
        metadata: The output's options, as an asset's definition has them.
    """
    asset_key = asset_key or table.name
    options = OutputOptions.from_metadata(metadata, asset_key)
    output = Output(
        table,
        options,
        Lineage(asset_key, run_id, (partition,)),
        Tracking(tracking_schema),
        log,
        merge=Merge(delete) if options.incremental or delete is not None else None,
    )
    with closing(connect(settings_of(database))) as connection:
        return write_table(connection, output, data)


def run(database: Database, statement: SQL | Query, *, run_id: str = "a run") -> Written:
    """Run what an asset returned to be run in the server, as the IO manager does."""
    options = OutputOptions.from_metadata({}, NUMBERS.name)
    output = Output(NUMBERS, options, Lineage(NUMBERS.name, run_id), Tracking("meta"), log)
    with closing(connect(settings_of(database))) as connection:
        return run_sql(connection, output, statement, environment="development", retry=True)


def load(
    database: Database, *, table: Table = NUMBERS, partition: str | None = None, **metadata: Any
) -> list[dict[str, Any]]:
    """Load one input, as the IO manager does."""
    request = Request(
        table.name,
        table,
        None if partition is None else (partition,),
        InputOptions.from_metadata(metadata, table.name),
        {},
    )
    rows: list[dict[str, Any]] = (
        read_table(settings_of(database), Tracking("meta"), request).read_all().to_pylist()
    )
    return rows


def ids(database: Database, table: Table = NUMBERS) -> list[int]:
    """Return the sorted ids of all rows of the table."""
    with closing(database.connect()) as connection:
        query = f"SELECT id FROM {table} ORDER BY id"
        return [row[0] for row in connection.execute(query).fetchall()]
