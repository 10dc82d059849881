"""The story of one output: rows, their tracking and a new table in one transaction."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
from psycopg import sql
from psycopg.sql import Identifier

from dagster_tools.errors import DatabaseError, SchemaConflict
from dagster_tools.postgres import alter
from dagster_tools.postgres.catalog import Catalog, fetch_catalog, fetch_storage
from dagster_tools.postgres.columns import ExistingTable, wanted_columns
from dagster_tools.postgres.connection import Connection, transaction, translated
from dagster_tools.postgres.copy import Progress
from dagster_tools.postgres.deletion import Deletion, compose_condition
from dagster_tools.postgres.evolution import Evolution, check_values, plan_evolution
from dagster_tools.postgres.grants import check_roles, grant_select
from dagster_tools.postgres.incoming import CopiedRows, Plan
from dagster_tools.postgres.loader import Loader, delete_earlier
from dagster_tools.postgres.names import MATERIALIZATION_ID, Table, check_column_names
from dagster_tools.postgres.options import OutputOptions
from dagster_tools.postgres.rows import Feed, Source, open_source
from dagster_tools.postgres.tracking import (
    Counts,
    Lineage,
    Tracking,
    create_schema,
    lock_table,
)

__all__ = ["Merge", "Written", "write_table"]

ATTEMPTS = 10
"""How often a write plans again because the table changed under it."""


@dataclass(frozen=True, slots=True)
class Merge:
    """Add to the asset's earlier rows instead of replacing them.

    Args:
        deletion: Which of them go before. Rows of the same primary key, where there is
            one, are updated.
    """

    deletion: Deletion | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """What a write did.

    Args:
        existing: The table afterwards; None where there is none.
        counts: What was done to the rows of each partition.
        rows: Rows the frame had.
        bytes: What COPY sent.
    """

    database: str
    table: Table
    existing: ExistingTable | None
    counts: Mapping[str | None, Counts]
    rows: int = 0
    bytes: int = 0


def write_table(
    connection: Connection,
    table: Table,
    data: pa.Table | pa.RecordBatchReader,
    *,
    options: OutputOptions,
    lineage: Lineage,
    tracking: Tracking,
    log: logging.Logger,
    by_partition: bool = False,
    merge: Merge | None = None,
    progress: Progress = lambda _rows, _size: None,
) -> Written:
    """Write the rows of one asset, or of some of its partitions, all or nothing.

    Other sessions see the old rows or the new ones, never a mix and never none. Schema,
    tracking tables and additive changes of a live table are committed before; if the rows
    then fail, those stay and the log says so.

    Locks: the table's name (shared among writers of different partitions, exclusive for the
    first write), the partitions' tracking rows, then what DELETE and COPY take. Readers
    are never blocked, but by a widening.

    Args:
        data: A frame in memory, or a stream that is read once.
        by_partition: The last column of `data` is `materialization_id` and holds, for each
            row, the position of its partition in `lineage.partition_keys`.
        merge: How the rows join the earlier ones; without it they replace them.
        progress: Told the rows and bytes of each part that was sent.

    Raises:
        ConfigurationError, BadValue, SchemaConflict: Refused; nothing was written.
        DatabaseError: The server failed; nothing was written, unless the connection broke
            while COMMIT was under way. A re-run then writes the same rows again.
    """
    tracking.check_target(table)
    check_roles(connection, options.users)
    source = open_source(data, options.chunk_size, by_partition=by_partition)
    if source.empty:
        return _write_nothing(connection, table, lineage, tracking, merge, options.users)
    check_column_names(source.schema.names)
    for _attempt in range(ATTEMPTS):
        catalog = fetch_catalog(connection, table, tracking.schema)
        catalog.check_writable()
        plan = _plan(connection, catalog, source, options)
        catalog, unfinished = _prepare(connection, catalog, plan, lineage, tracking, log, merge)
        keys = unfinished.without_index
        try:
            with transaction(connection):
                written = _write(
                    connection, catalog, source, plan, lineage, tracking, log, merge, keys, progress
                )
        except _TableChangedError:
            log.info("%s changed while the write was being planned; planning again.", table)
            continue
        except BaseException:
            alter.abandon(connection, table, unfinished)
            raise
        if unfinished == alter.Unfinished():
            return written
        alter.finish(connection, table, unfinished, log)
        existing = fetch_catalog(connection, table, tracking.schema).existing
        return replace(written, existing=existing)
    raise DatabaseError(
        f"{table} kept changing while this write was being planned, {ATTEMPTS} times in a row. "
        "Another process alters it again and again; run the asset again when it is done.",
        step="planning the write",
    )


class _TableChangedError(Exception):
    """Between plan and lock somebody created or altered the table."""


# --- what to do -----------------------------------------------------------------------------


def _plan(connection: Connection, catalog: Catalog, source: Source, options: OutputOptions) -> Plan:
    wanted = wanted_columns(source.schema, options.columns, options.primary_key)
    existing = catalog.existing
    if existing is not None:
        new = [column for column in wanted if existing.column(column.name) is None]
        evolution = plan_evolution(
            existing,
            wanted,
            source.schema,
            source.chunks,
            storage=fetch_storage(connection, new),
            primary_key=options.primary_key,
            mode=options.schema_evolution,
            holds_no_value=lambda name: _holds_no_value(connection, catalog.table, name),
        )
        return Plan(options, wanted, evolution)
    targets = fetch_storage(connection, wanted)
    absent = [c.name for c in wanted if c.name not in source.schema.names]
    if absent and options.schema_evolution == "strict":
        raise SchemaConflict(
            f"The frame lacks the declared columns {absent}, and schema_evolution is 'strict'. "
            f"Its columns are {source.schema.names}."
        )
    for column in wanted:
        if column.name not in absent:
            frame_field = source.schema.field(column.name)
            chunks = source.chunks(column.name)
            check_values(frame_field, chunks, targets[column.name], column.not_null)
        elif column.not_null:
            raise SchemaConflict(
                f"Column {column.name!r} is declared 'not null', and the frame lacks it. "
                f"Its columns are {source.schema.names}."
            )
    return Plan(options, wanted, Evolution(targets))


def _prepare(
    connection: Connection,
    catalog: Catalog,
    plan: Plan,
    lineage: Lineage,
    tracking: Tracking,
    log: logging.Logger,
    merge: Merge | None,
) -> tuple[Catalog, alter.Unfinished]:
    """Commit what others could otherwise wait for; return the catalog then, and what is left."""
    table, existing = catalog.table, catalog.existing
    if not catalog.tracking_exists:
        tracking.create(connection)
    if not catalog.schema_exists:
        create_schema(connection, table.schema)
    if existing is None:
        return catalog, alter.Unfinished()
    before = existing
    if not existing.tracked or not existing.has_materialization_default:
        alter.track(connection, table)
    if plan.evolution == Evolution(plan.evolution.targets):
        unfinished = alter.Unfinished()
    else:
        leaving = tracking.fetch_numbers(connection, lineage) if merge is None else []
        unfinished = alter.evolve(connection, table, plan.evolution, leaving, log)
    if not existing.has_index([MATERIALIZATION_ID], unique=False) and (
        lineage.partitioned or tracking.has_other_owners(connection, table, lineage.asset_key)
    ):
        alter.index_materialization_id(connection, table, log)
    changed = plan.evolution != Evolution(plan.evolution.targets) or not before.tracked
    return (
        fetch_catalog(connection, table, tracking.schema) if changed else catalog,
        unfinished,
    )


def _holds_no_value(connection: Connection, table: Table, column: str) -> bool:
    with translated(f"looking for values in {table}"):
        found = connection.execute(
            sql.SQL("SELECT FROM {} WHERE {} IS NOT NULL LIMIT 1").format(
                table.identifier, Identifier(column)
            )
        ).fetchone()
    return found is None


# --- the transaction ------------------------------------------------------------------------


def _write(
    connection: Connection,
    catalog: Catalog,
    source: Source,
    plan: Plan,
    lineage: Lineage,
    tracking: Tracking,
    log: logging.Logger,
    merge: Merge | None,
    keys: Sequence[alter.Key],
    progress: Progress,
) -> Written:
    table, existing = catalog.table, catalog.existing
    with translated(f"locking {table}"):
        lock_table(connection, table, first_write=existing is None)
    current = fetch_catalog(connection, table, tracking.schema).existing
    if (current and current.columns) != (existing and existing.columns):
        raise _TableChangedError
    partitions = tracking.lock_partitions(connection, table, lineage)
    earlier = tracking.fetch_earlier(connection, partitions)
    first_here = current is not None and not earlier
    if first_here and tracking.step_over_strays(connection, table, partitions):
        raise _TableChangedError
    if len(partitions) == 1:
        tracking.set_materialization(connection, partitions[0])
    feed = Feed(source, partitions, plan.evolution.targets)
    rows = CopiedRows(connection, table, plan, feed, log, progress)
    loader = Loader(connection, table, plan, rows)
    if current is None:
        loader.create(indexed=lineage.partitioned)
        current = fetch_catalog(connection, table, tracking.schema).existing
    elif merge is not None:
        loader.merge(current, earlier, merge.deletion)
    else:
        loader.replace(current, earlier)
    loader.index_keys(keys)
    counts = loader.counts()
    tracking.record(connection, lineage, partitions, counts)
    grant_select(connection, table, plan.options.users)
    return Written(catalog.database, table, current, counts, feed.row, rows.copied.bytes)


def _write_nothing(
    connection: Connection,
    table: Table,
    lineage: Lineage,
    tracking: Tracking,
    merge: Merge | None,
    users: Sequence[str],
) -> Written:
    """Delete the rows that go and record the materialization; creates no table."""
    catalog = fetch_catalog(connection, table, tracking.schema)
    catalog.check_writable()
    if not catalog.tracking_exists:
        tracking.create(connection)
    with transaction(connection):
        with translated(f"locking {table}"):
            lock_table(connection, table, first_write=False)
        existing = fetch_catalog(connection, table, tracking.schema).existing
        partitions = tracking.lock_partitions(connection, table, lineage)
        deleted: Mapping[str | None, int] = {}
        if existing is not None and existing.tracked:
            earlier = tracking.fetch_earlier(connection, partitions)
            deleted = _delete_without_rows(connection, existing, earlier, merge)
        counts = {key: Counts(deleted=deleted.get(key, 0)) for key in lineage.partition_keys}
        tracking.record(connection, lineage, partitions, counts)
        if existing is not None:
            grant_select(connection, table, users)
    return Written(catalog.database, table, existing, counts)


def _delete_without_rows(
    connection: Connection,
    existing: ExistingTable,
    earlier: Mapping[int, str | None],
    merge: Merge | None,
) -> Mapping[str | None, int]:
    if merge is None:
        return delete_earlier(connection, existing.table, earlier)
    if merge.deletion is None:
        return {}
    condition = compose_condition(merge.deletion, existing, "kept", first=2)
    return delete_earlier(connection, existing.table, earlier, condition)
