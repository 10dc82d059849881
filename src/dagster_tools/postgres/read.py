"""The story of one input: which rows, out of one snapshot, streamed as Arrow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import chain

import adbc_driver_manager
import adbc_driver_postgresql
import psycopg
import pyarrow as pa
from psycopg import sql

from dagster_tools.errors import (
    ConfigurationError,
    DagsterToolsError,
    DatabaseError,
    MaterializationNotFound,
)
from dagster_tools.postgres.catalog import Catalog, fetch_catalog
from dagster_tools.postgres.columns import Column
from dagster_tools.postgres.connection import (
    Connection,
    ConnectionSettings,
    connect,
    libpq_uri,
    server_message,
    translated,
)
from dagster_tools.postgres.names import Table
from dagster_tools.postgres.options import InputOptions
from dagster_tools.postgres.projection import (
    Projected,
    compose_select,
    decode,
    decoded_schema,
    empty_columns,
    project,
)
from dagster_tools.postgres.tracking import Stored, Tracking

__all__ = ["Request", "read_by_partition", "read_table"]


@dataclass(frozen=True, slots=True)
class Request:
    """What one input asks for.

    Args:
        table: Where the asset's definition puts it; the last write's place wins.
        partition_keys: Exactly the partitions asked for; None for an unpartitioned asset, or
            for all there are of a partitioned one.
        declared: The asset's declared columns: what an output that was always empty looks like.
    """

    asset_key: str
    table: Table
    partition_keys: tuple[str, ...] | None
    options: InputOptions
    declared: Mapping[str, Column]


@dataclass(frozen=True, slots=True)
class _Located:
    """Where the rows are.

    Args:
        stored: The partitions found, those asked for and no others.
        existing: Their table, or None where every write was empty and made none.
        shared: The table has rows of other assets or partitions.
        tracked: Rows are told apart by materialization; otherwise the whole table is meant.
    """

    stored: tuple[Stored, ...]
    catalog: Catalog
    shared: bool
    tracked: bool

    def ids(self, stored: Sequence[Stored]) -> list[int] | None:
        if not self.tracked or (not self.shared and len(stored) == len(self.stored)):
            return None
        return [number for item in stored for number in item.materialization_ids]


def read_table(
    settings: ConnectionSettings, tracking: Tracking, request: Request
) -> pa.RecordBatchReader:
    """Stream the rows an input asks for.

    Which materializations count and what they wrote come from one snapshot, in a read-only
    transaction: a replace that commits meanwhile is not seen, and never as nothing.

    The connection ends with the stream: when it is exhausted, fails, or is dropped.

    Raises:
        MaterializationNotFound: The asset, or one of the partitions, was never materialized.
        ConfigurationError: The options do not fit the table.
        DatabaseError: The server failed.
    """
    with ExitStack() as opened:
        connection = opened.enter_context(_snapshot(settings))
        located = _locate(connection, tracking, request)
        columns = _columns(located, request)
        if located.catalog.existing is None:
            return pa.RecordBatchReader.from_batches(decoded_schema(columns), [])
        reader = opened.enter_context(_copy_out(connection))
        batches = _batches(reader, located, located.stored, columns, request)
        # The first batch is read here, so that errors of the query are this call's.
        first = [batch for batch in [next(batches, None)] if batch is not None]
        kept = opened.pop_all()
        return pa.RecordBatchReader.from_batches(
            decoded_schema(columns), _closing(chain(first, batches), kept)
        )


def read_by_partition(
    settings: ConnectionSettings, tracking: Tracking, request: Request
) -> Iterator[tuple[str, pa.RecordBatchReader]]:
    """Yield each partition's key and rows, all out of one snapshot; read each before the next."""
    with ExitStack() as opened:
        connection = opened.enter_context(_snapshot(settings))
        located = _locate(connection, tracking, request)
        columns = _columns(located, request)
        if located.catalog.existing is None:
            schema = decoded_schema(columns)
            for item in located.stored:
                yield str(item.partition_key), pa.RecordBatchReader.from_batches(schema, [])
            return
        reader = opened.enter_context(_copy_out(connection))
        for item in located.stored:
            batches = _batches(reader, located, [item], columns, request)
            schema = decoded_schema(columns)
            yield str(item.partition_key), pa.RecordBatchReader.from_batches(schema, batches)


@contextmanager
def _snapshot(settings: ConnectionSettings) -> Iterator[Connection]:
    with closing(connect(settings)) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        with translated("opening a read-only transaction"), connection.transaction():
            yield connection


def _locate(connection: Connection, tracking: Tracking, request: Request) -> _Located:
    catalog = fetch_catalog(connection, request.table, tracking.schema)
    stored: list[Stored] = []
    if catalog.tracking_exists:
        stored = tracking.fetch_stored(connection, request.asset_key, request.partition_keys)
    if stored:
        catalog = _catalog_of(connection, tracking, stored, catalog)
    if request.options.full_table:
        if catalog.existing is None and not stored:
            raise MaterializationNotFound(_never(request, catalog))
        return _Located(tuple(stored), catalog, shared=False, tracked=False)
    missing = set(request.partition_keys or ()) - {item.partition_key for item in stored}
    if missing and not request.options.allow_missing_partitions:
        raise MaterializationNotFound.for_partitions(request.asset_key, sorted(missing))
    if not stored and request.partition_keys is None:
        return _untracked(connection, tracking, request, catalog)
    shared = catalog.existing is not None and tracking.has_other_owners(
        connection, catalog.table, request.asset_key, [item.asset_id for item in stored]
    )
    tracked = catalog.existing is None or catalog.existing.tracked
    return _Located(tuple(stored), catalog, shared or not stored, tracked)


def _catalog_of(
    connection: Connection, tracking: Tracking, stored: Sequence[Stored], catalog: Catalog
) -> Catalog:
    """Return the catalog of the table that holds the rows, wherever the definition points now."""
    tables = {item.table for item in stored}
    if len(tables) > 1:
        places = sorted(
            f"{table} ({sum(item.table == table for item in stored)} partitions)"
            for table in tables
        )
        raise ConfigurationError(
            f"The partitions asked for lie in different tables: {', '.join(places)}. "
            "Materialize those of the old table again, or load them one table at a time."
        )
    table = tables.pop()
    return catalog if table == catalog.table else fetch_catalog(connection, table, tracking.schema)


def _untracked(
    connection: Connection, tracking: Tracking, request: Request, catalog: Catalog
) -> _Located:
    """Locate a table that nothing here wrote, but dbt or a hand: it is loaded whole."""
    owned = catalog.tracking_exists and tracking.has_other_owners(
        connection, catalog.table, request.asset_key
    )
    if catalog.existing is None or owned:
        raise MaterializationNotFound(_never(request, catalog))
    return _Located((), catalog, shared=False, tracked=False)


def _never(request: Request, catalog: Catalog) -> str:
    there = "which does not exist" if catalog.existing is None else "which other assets wrote"
    return (
        f"No materialization found for asset {request.asset_key}. Its table is {request.table}, "
        f"{there}. Materialize the asset first"
        + ("." if catalog.existing is None else ", or set full_table: True on the input.")
    )


def _columns(located: _Located, request: Request) -> list[Projected]:
    if located.catalog.existing is None:
        return empty_columns(list(request.declared.values()), request.options.columns)
    options = request.options
    return project(located.catalog.existing, options.columns, options.order_by)


# --- out of the server ----------------------------------------------------------------------


@contextmanager
def _copy_out(connection: Connection) -> Iterator[adbc_driver_manager.AdbcConnection]:
    """Open the driver that decodes COPY into Arrow, in this connection's snapshot.

    The driver's DBAPI layer would import pandas and Polars where they are installed; this
    is the layer beneath it.
    """
    [(snapshot,)] = connection.execute("SELECT pg_catalog.pg_export_snapshot()").fetchall()
    importing = sql.SQL("SET TRANSACTION SNAPSHOT {}").format(snapshot)
    with ExitStack() as opened:
        with _adbc_translated("connecting for COPY"):
            database = adbc_driver_postgresql.connect(libpq_uri(connection))
            opened.enter_context(database)
            reading = opened.enter_context(adbc_driver_manager.AdbcConnection(database))
        with _adbc_translated("importing the snapshot"):
            _run(reading, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            _run(reading, importing.as_string())
        yield reading


def _run(reading: adbc_driver_manager.AdbcConnection, statement: str) -> None:
    with adbc_driver_manager.AdbcStatement(reading) as running:
        running.set_sql_query(statement)
        running.execute_update()


def _batches(
    reading: adbc_driver_manager.AdbcConnection,
    located: _Located,
    stored: Sequence[Stored],
    columns: Sequence[Projected],
    request: Request,
) -> Iterator[pa.RecordBatch]:
    table = located.catalog.table
    query = compose_select(
        table,
        columns,
        located.ids(stored),
        request.options.order_by,
        tracked_only=located.tracked,
    )
    with adbc_driver_manager.AdbcStatement(reading) as statement:
        with _adbc_translated(f"reading {table}"):
            statement.set_sql_query(query.as_string())
            handle, _rows = statement.execute_query()
            # The driver's own way to pyarrow, without its DBAPI layer.
            arriving = pa.RecordBatchReader._import_from_c(handle.address)  # noqa: SLF001  # no public one takes an address
        while True:
            with _adbc_translated(f"reading {table}"):
                batch = next(arriving, None)
            if batch is None:
                return
            yield decode(batch, columns, table)


def _closing(batches: Iterator[pa.RecordBatch], opened: ExitStack) -> Iterator[pa.RecordBatch]:
    with opened:
        yield from batches


@contextmanager
def _adbc_translated(step: str) -> Iterator[None]:
    try:
        yield
    except (adbc_driver_manager.Error, OSError, pa.ArrowException) as error:
        if isinstance(error, DagsterToolsError):
            raise
        sqlstate = getattr(error, "sqlstate", None)
        message = server_message(str(error), sqlstate)
        raise DatabaseError(f"{message} (while {step})", sqlstate=sqlstate, step=step) from None
