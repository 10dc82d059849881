"""The story of one input: which rows, out of one snapshot, streamed as Arrow."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from itertools import chain

import psycopg
import pyarrow as pa
from psycopg import sql

from dagster_tools.errors import ConfigurationError, MaterializationNotFound, listed
from dagster_tools.postgres.adbc import AdbcSnapshot, adbc_snapshot
from dagster_tools.postgres.binary import binary_columns, read_values
from dagster_tools.postgres.catalog import Catalog, fetch_catalog, fetch_crs, fetch_srid
from dagster_tools.postgres.column_types import PgType
from dagster_tools.postgres.columns import Column
from dagster_tools.postgres.connection import (
    Asked,
    Connection,
    ConnectionSettings,
    connect,
    libpq_uri,
    translated,
)
from dagster_tools.postgres.geometry import crs_of
from dagster_tools.postgres.names import Table
from dagster_tools.postgres.options import InputOptions
from dagster_tools.postgres.privileges import explained
from dagster_tools.postgres.projection import (
    Projected,
    compose_select,
    compose_srid,
    decode,
    decoded_schema,
    empty_columns,
    project,
)
from dagster_tools.postgres.tracking import Stored, Tracking
from dagster_tools.sql import Relation

__all__ = ["Request", "read_by_partition", "read_relation", "read_table"]

INTEGER = PgType("integer")

FEW_VALUES = 20_000
"""Rows times columns that are read without the driver.

The driver takes 35 ms to open, and half a second in a database of 1,500 tables, because it reads
the whole catalog; this many values take 5 ms without it (measured).
"""


@dataclass(frozen=True, slots=True)
class Request:
    """What one input asks for.

    Args:
        table: Where the asset's definition puts it; the last write's place wins.
        partition_keys: Exactly the partitions asked for; None for an unpartitioned asset, or
            for all there are of a partitioned one.
        declared: The asset's declared columns: what an output that was always empty looks like.
        raise_if_nothing: Whether no rows at all, as the first partition of an asset that depends
            on itself finds, are an error rather than an empty frame.
    """

    asset_key: str
    table: Table
    partition_keys: tuple[str, ...] | None
    options: InputOptions
    declared: Mapping[str, Column]
    raise_if_nothing: bool = False


@dataclass(frozen=True, slots=True)
class _Located:
    """Where the rows are.

    Args:
        stored: The partitions found, those asked for and no others.
        catalog: Their table; without one where every write was empty and made none.
        shared: The table has rows of other assets or partitions.
        tracked: Rows are told apart by materialization; otherwise the whole table is meant.
        nothing: No row is meant, whatever the table holds.
    """

    stored: tuple[Stored, ...]
    catalog: Catalog
    shared: bool = False
    tracked: bool = False
    nothing: bool = False

    @property
    def empty(self) -> bool:
        """Whether there is nothing to ask the server for."""
        return self.nothing or self.catalog.existing is None

    def ids(self, stored: Sequence[Stored]) -> list[int] | None:
        """Return whose rows are meant, None where no other rows need telling apart."""
        if not self.tracked or (not self.shared and len(stored) == len(self.stored)):
            return None
        return [number for item in stored for number in item.materialization_ids]

    def few(self, columns: Sequence[Projected]) -> bool:
        """Whether so little was written that opening the driver takes longer than reading."""
        rows = sum(item.rows for item in self.stored)
        return self.tracked and rows * len(columns) <= FEW_VALUES

    @property
    def since(self) -> int | None:
        """The first materialization of what is meant."""
        first = [item.materialization_ids[0] for item in self.stored]
        return min(first) if self.tracked and first else None


def read_table(
    settings: ConnectionSettings, tracking: Tracking, request: Request
) -> pa.RecordBatchReader:
    """Stream the rows an input asks for.

    Which materializations count and what they wrote come from one snapshot, in a read-only
    transaction: a replace that commits meanwhile is not seen, and never as nothing.

    No more than one connection is open at any time. It ends with the stream: when that is
    exhausted, fails, or is dropped.

    Raises:
        MaterializationNotFound: The asset, or one of the partitions, was never materialized.
        ConfigurationError: The options do not fit the table.
        DatabaseError: The server failed.
    """
    with _snapshot(settings, tracking, request) as connection:
        located = _locate(connection, tracking, request)
        few = _few(connection, located, located.stored, request)
        uri = libpq_uri(connection)
    if few is not None:
        return few
    with ExitStack() as opened:
        reading = opened.enter_context(_adbc(uri, tracking, request))
        # Once more: what was found before may have been replaced since.
        located = _locate(reading, tracking, request)
        columns = _columns(reading, located, request)
        # On its own in the stack: a chain does not close what it is made of.
        batches = opened.enter_context(
            closing(_batches(reading, located, located.stored, columns, request))
        )
        # The first batch is read here, so that errors of the query are this call's.
        first = [batch for batch in [next(batches, None)] if batch is not None]
        kept = _closing(chain(first, batches), opened.pop_all())
        next(kept)
        return pa.RecordBatchReader.from_batches(decoded_schema(columns), kept)


def read_by_partition(
    settings: ConnectionSettings, tracking: Tracking, request: Request
) -> Iterator[tuple[str, pa.RecordBatchReader]]:
    """Yield each partition's key and rows, all out of one snapshot; read each before the next.

    Raises:
        MaterializationNotFound, DatabaseError: As `read_table`.
        ConfigurationError: As `read_table`, or the rows are not told apart by partition.
    """
    with _snapshot(settings, tracking, request) as connection:
        located = _locate(connection, tracking, request)
        _check_partitioned(located, request)
        each_few = _each_few(connection, located, request)
        uri = libpq_uri(connection)
    if each_few is not None:
        yield from each_few
        return
    with _adbc(uri, tracking, request) as reading:
        located = _locate(reading, tracking, request)
        _check_partitioned(located, request)
        columns = _columns(reading, located, request)
        for item in located.stored:
            with closing(_batches(reading, located, [item], columns, request)) as batches:
                stream = pa.RecordBatchReader.from_batches(decoded_schema(columns), batches)
                yield str(item.partition_key), stream


def read_relation(
    settings: ConnectionSettings, tracking: Tracking, request: Request, environment: str
) -> Relation:
    """Return a handle to the rows an input asks for, without reading any.

    Raises:
        MaterializationNotFound: Also where every write was empty and made no table.
    """
    with _snapshot(settings, tracking, request) as connection:
        located = _locate(connection, tracking, request)
    if located.catalog.existing is None or (located.nothing and not located.tracked):
        raise MaterializationNotFound(
            f"Asset {request.asset_key} was empty each time it was materialized and has no "
            "table to refer to. Load it as a frame, or declare its columns."
        )
    ids = [number for item in located.stored for number in item.materialization_ids]
    return Relation(
        located.catalog.table.schema,
        located.catalog.table.name,
        tuple(ids) if located.tracked else None,
        shared=located.shared,
        environment=environment,
    )


@contextmanager
def _snapshot(
    settings: ConnectionSettings, tracking: Tracking, request: Request
) -> Iterator[Connection]:
    with closing(connect(settings)) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        with (
            _explained(libpq_uri(connection), tracking, request),
            translated("opening a read-only transaction"),
            connection.transaction(),
        ):
            yield connection


@contextmanager
def _adbc(uri: str, tracking: Tracking, request: Request) -> Iterator[AdbcSnapshot]:
    with _explained(uri, tracking, request), adbc_snapshot(uri) as reading:
        yield reading


def _explained(uri: str, tracking: Tracking, request: Request) -> AbstractContextManager[None]:
    return explained(uri, request.table, tracking.schema, "look up", "read")


def _locate(connection: Asked, tracking: Tracking, request: Request) -> _Located:
    catalog = fetch_catalog(connection, request.table, tracking.schema)
    stored: list[Stored] = []
    if catalog.tracking_exists:
        stored = tracking.fetch_stored(connection, request.asset_key, request.partition_keys)
    if stored:
        catalog = _catalog_of(connection, tracking, stored, catalog)
    if request.options.full_table:
        if catalog.existing is None and not stored:
            raise MaterializationNotFound(_never(request, catalog))
        if catalog.existing is None:
            _check_never_filled(stored, request)
        return _Located(tuple(stored), catalog)
    missing = set(request.partition_keys or ()) - {item.partition_key for item in stored}
    if missing and not request.options.allow_missing_partitions:
        raise MaterializationNotFound.for_partitions(request.asset_key, sorted(missing))
    if not stored:
        return _unstored(connection, tracking, request, catalog)
    if catalog.existing is None:
        _check_never_filled(stored, request)
        return _Located(tuple(stored), catalog)
    shared = tracking.has_other_owners(
        connection, catalog.table, request.asset_key, [item.asset_id for item in stored]
    )
    return _Located(tuple(stored), catalog, shared, catalog.existing.tracked)


def _catalog_of(
    connection: Asked, tracking: Tracking, stored: Sequence[Stored], catalog: Catalog
) -> Catalog:
    """Return the catalog of the table that holds the rows, wherever the definition points now."""
    tables = {item.table for item in stored}
    if len(tables) > 1:
        places = (
            f"{table} has {listed([item.partition_key for item in stored if item.table == table])}"
            for table in sorted(tables, key=str)
        )
        raise ConfigurationError(
            f"The partitions asked for lie in different tables: {'; '.join(places)}. "
            "Materialize those of the old table again, or load them one table at a time."
        )
    table = tables.pop()
    return catalog if table == catalog.table else fetch_catalog(connection, table, tracking.schema)


def _unstored(
    connection: Asked, tracking: Tracking, request: Request, catalog: Catalog
) -> _Located:
    """Locate what has no materialization: no row where partitions are asked for, else the table.

    A table that nothing here wrote, but dbt or a hand, is loaded whole.
    """
    if request.partition_keys is not None:
        if request.raise_if_nothing:
            raise MaterializationNotFound(
                f"No materialization found for asset {request.asset_key}: there is no partition "
                "before the first, or none of those asked for was materialized."
            )
        tracked = catalog.existing is not None and catalog.existing.tracked
        return _Located((), catalog, tracked=tracked, nothing=True)
    owned = catalog.tracking_exists and tracking.has_other_owners(
        connection, catalog.table, request.asset_key
    )
    if catalog.existing is None or owned:
        raise MaterializationNotFound(_never(request, catalog))
    return _Located((), catalog)


def _check_never_filled(stored: Sequence[Stored], request: Request) -> None:
    """Refuse to take a table that somebody dropped, or named otherwise, for one never needed."""
    if any(item.filled is None for item in stored):
        raise ConfigurationError(
            f"There is no table or view {stored[0].table}, and the asset was materialized by "
            "statements of its own (SQL). Point it at what they make, with metadata={'schema': …, "
            "'table': …}, and materialize it again."
        )
    filled = [item for item in stored if item.filled]
    if filled:
        raise MaterializationNotFound(
            f"{filled[0].table} is gone, and rows of asset {request.asset_key} with it. "
            "Materialize the asset again."
        )


def _check_partitioned(located: _Located, request: Request) -> None:
    if request.options.full_table:
        raise ConfigurationError(
            "A dict has the rows of each partition, and full_table asks for rows of no particular "
            "one. Annotate the input as a frame, or set full_table: False on it."
        )
    if any(item.partition_key is None for item in located.stored) or not (
        located.tracked or located.empty
    ):
        raise ConfigurationError(
            f"A dict has the rows of each partition, and asset {request.asset_key} has none. "
            "Annotate the input as a frame."
        )


def _never(request: Request, catalog: Catalog) -> str:
    there = "which does not exist" if catalog.existing is None else "which other assets wrote"
    return (
        f"No materialization found for asset {request.asset_key}. Its table is {request.table}, "
        f"{there}. Materialize the asset first"
        + ("." if catalog.existing is None else ", or set full_table: True on the input.")
    )


def _columns(connection: Asked, located: _Located, request: Request) -> list[Projected]:
    if located.catalog.existing is None:
        return empty_columns(list(request.declared.values()), request.options.columns)
    options = request.options
    columns = project(located.catalog.existing, options.columns, options.order_by)
    if all(column.crs is None for column in columns):
        return columns
    return _with_crs(connection, located, columns)


def _with_crs(
    connection: Asked, located: _Located, columns: Sequence[Projected]
) -> list[Projected]:
    """Return the columns, those of geometry with their CRS; the rows tell where nothing else does.

    What is recorded here is what all rows are then held to.
    """
    found = {
        column.name: fetch_srid(connection, _srid_query(located, column)) or column.srid
        for column in columns
        if column.tells_srid
    }
    srids = {c.name: found.get(c.name, c.srid) for c in columns if c.crs is not None}
    known = fetch_crs(connection, located.catalog.postgis, srids.values())
    return [
        column
        if column.crs is None
        else replace(
            column,
            crs=crs_of(srids[column.name], known, spherical=column.crs.spherical),
            row_srid=srids[column.name],
        )
        for column in columns
    ]


def _srid_query(located: _Located, column: Projected) -> sql.Composed:
    ids = located.ids(located.stored)
    return compose_srid(located.catalog.table, column, ids, since=located.since)


# --- out of the server ----------------------------------------------------------------------


def _each_few(
    connection: Connection, located: _Located, request: Request
) -> list[tuple[str, pa.RecordBatchReader]] | None:
    """Return the rows of each partition without the driver, None as soon as that must do it."""
    each = []
    for item in located.stored:
        few = _few(connection, located, [item], request)
        if few is None:
            return None
        each.append((str(item.partition_key), few))
    return each


def _few(
    connection: Connection, located: _Located, stored: Sequence[Stored], request: Request
) -> pa.RecordBatchReader | None:
    """Return the rows without the driver, None where that is for the driver to do."""
    columns = _columns(connection, located, request)
    schema = decoded_schema(columns)
    if located.empty:
        return pa.RecordBatchReader.from_batches(schema, [])
    values = binary_columns(columns)
    if values is None or not located.few(columns) or connection.info.encoding != "utf-8":
        return None
    limit = FEW_VALUES // len(columns)
    query = _query(located, stored, values, request) + sql.SQL("\nLIMIT {}").format(limit + 1)
    table = located.catalog.table
    with translated(f"reading {table}"), connection.cursor(binary=True) as cursor:
        result = cursor.execute(query).pgresult
    if result is None or result.ntuples > limit:
        return None
    rows = range(result.ntuples)
    arrays = [
        read_values([result.get_value(row, position) for row in rows], type_)
        for position, type_ in enumerate(
            # What `compose_select` adds to the columns are integers.
            [*(column.arriving for column in values), *[INTEGER] * (result.nfields - len(values))]
        )
    ]
    batch = pa.record_batch(arrays, names=[""] * len(arrays))
    return pa.RecordBatchReader.from_batches(schema, [decode(batch, columns, table)])


def _query(
    located: _Located, stored: Sequence[Stored], columns: Sequence[Projected], request: Request
) -> sql.Composed:
    return compose_select(
        located.catalog.table,
        columns,
        located.ids(stored),
        request.options.order_by,
        since=located.since,
    )


def _batches(
    reading: AdbcSnapshot,
    located: _Located,
    stored: Sequence[Stored],
    columns: Sequence[Projected],
    request: Request,
) -> Generator[pa.RecordBatch]:
    if located.empty:
        return
    table = located.catalog.table
    query = _query(located, stored, columns, request)
    with closing(reading.stream(query, f"reading {table}")) as arriving:
        for batch in arriving:
            yield decode(batch, columns, table)


def _closing(batches: Iterator[pa.RecordBatch], opened: ExitStack) -> Iterator[pa.RecordBatch]:
    """Yield once to enter the block, so that even a stream nobody begins to read ends it."""
    with opened:
        yield pa.record_batch({})
        yield from batches
