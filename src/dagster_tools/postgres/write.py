"""The story of one output: rows, their tracking and a new table in one transaction."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import pyarrow as pa
from psycopg import errors
from psycopg.sql import Composed

from dagster_tools.errors import ConfigurationError, DatabaseError, SchemaConflict
from dagster_tools.postgres import alter, ddl
from dagster_tools.postgres.catalog import (
    Catalog,
    describe_query,
    fetch_catalog,
    fetch_storage,
    resolve_types,
)
from dagster_tools.postgres.column_types import PgType
from dagster_tools.postgres.columns import (
    Column,
    ExistingColumn,
    ExistingTable,
    wanted_columns,
)
from dagster_tools.postgres.connection import Connection, transaction, translated
from dagster_tools.postgres.copy import Progress
from dagster_tools.postgres.deletion import Deletion, compose_condition
from dagster_tools.postgres.evolution import Evolution, check_values, plan_evolution
from dagster_tools.postgres.grants import check_roles, grant_select
from dagster_tools.postgres.incoming import CopiedRows, Plan, Rows, SelectedRows
from dagster_tools.postgres.loader import Loader, delete_earlier
from dagster_tools.postgres.names import MATERIALIZATION_ID, Table, check_column_names
from dagster_tools.postgres.options import OutputOptions
from dagster_tools.postgres.privileges import Purpose, explained
from dagster_tools.postgres.rows import Feed, Source, check_key, open_source
from dagster_tools.postgres.tracking import (
    Counts,
    Lineage,
    Partition,
    Tracking,
    create_schema,
    lock_table,
)

__all__ = ["Merge", "Output", "Written", "write_query", "write_table"]

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
class Output:
    """One output to be written: where, how, and for whom.

    Args:
        merge: How the rows join the earlier ones; None where they replace them.
    """

    table: Table
    options: OutputOptions
    lineage: Lineage
    tracking: Tracking
    log: logging.Logger
    merge: Merge | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """What a write did.

    Args:
        existing: The table afterwards; None where there is none.
        counts: What was done to the rows of each partition.
        rows: Rows the frame had, or the query; None where statements did who knows what.
        bytes: What COPY sent.
    """

    database: str
    table: Table
    existing: ExistingTable | None
    counts: Mapping[str | None, Counts]
    rows: int | None = 0
    bytes: int = 0


def write_table(
    connection: Connection,
    output: Output,
    data: pa.Table | pa.RecordBatchReader,
    *,
    by_partition: bool = False,
    progress: Progress = lambda _rows, _size: None,
) -> Written:
    """Write the rows of one asset, or of some of its partitions, all or nothing.

    Other sessions see the old rows or the new ones, never a mix and never none. Schema,
    tracking tables and additive changes of a live table are committed before; if the rows
    then fail, those stay and the log says so.

    Locks: the table's name, for the first write alone; the partitions' tracking rows; the
    table in ROW EXCLUSIVE mode, as any DELETE takes it. Readers are never blocked, but by a
    widening.

    Args:
        data: A frame in memory, or a stream that is read once.
        by_partition: The last column of `data` is `materialization_id` and holds, for each
            row, the position of its partition in `lineage.partition_keys`.
        progress: Told the rows and bytes of each part that was sent.

    Raises:
        ConfigurationError, BadValue, SchemaConflict: Refused; nothing was written.
        DatabaseError: The server failed; nothing was written, unless the connection broke
            while COMMIT was under way. A re-run then writes the same rows again.
    """
    output.tracking.check_target(output.table)
    check_roles(connection, output.options.users)
    source = open_source(data, output.options.chunk_size, by_partition=by_partition)
    if source.empty:
        with _explained(connection, output):
            return _write_nothing(connection, output)
    check_column_names(source.schema.names)
    _check_key_present(output, source.schema.names)

    def copied(plan: Plan, partitions: Sequence[Partition]) -> Rows:
        key = plan.options.primary_key
        feed = Feed(source, partitions, plan.evolution.targets, plan.wanted, key)
        return CopiedRows(connection, output.table, plan, feed, output.log, progress)

    def plan(catalog: Catalog) -> Plan:
        return _plan_frame(connection, catalog, source, output)

    with _explained(connection, output):
        return _store(connection, output, plan, copied)


def write_query(connection: Connection, output: Output, query: Composed) -> Written:
    """Write what a SELECT returns; no row leaves the server. Guarantees are `write_table`'s.

    Args:
        query: One statement that returns rows, without parameters.

    Raises:
        ConfigurationError: The output covers several partitions.
    """
    output.tracking.check_target(output.table)
    check_roles(connection, output.options.users)
    if len(output.lineage.partition_keys) > 1:
        raise ConfigurationError(
            f"The run covers {len(output.lineage.partition_keys)} partitions, and a Query does "
            "not say which row belongs to which. Run one partition at a time "
            "(backfill_policy=BackfillPolicy.multi_run(1))."
        )
    columns = describe_query(connection, query)
    check_column_names(list(columns))
    _check_key_present(output, list(columns))

    def selected(plan: Plan, partitions: Sequence[Partition]) -> Rows:
        casts = {
            column.name: column.type
            for column in plan.wanted
            if column.name in columns and column.type != columns[column.name]
        }
        return SelectedRows(
            connection, query, list(columns), plan.evolution.targets, casts, partitions[0]
        )

    def plan(catalog: Catalog) -> Plan:
        return _plan_query(connection, catalog, columns, output)

    with _explained(connection, output):
        return _store(connection, output, plan, selected)


def _explained(connection: Connection, output: Output) -> AbstractContextManager[None]:
    purposes: tuple[Purpose, ...] = ("read", "write", "look up", "record")
    return explained(connection, output.table, output.tracking.schema, *purposes)


def _store(
    connection: Connection,
    output: Output,
    plan_for: Callable[[Catalog], Plan],
    rows_for: Callable[[Plan, Sequence[Partition]], Rows],
) -> Written:
    """Plan, prepare, write; again where somebody changed the table in between."""
    for _attempt in range(ATTEMPTS):
        catalog = fetch_catalog(connection, output.table, output.tracking.schema)
        catalog.check_writable()
        plan = plan_for(catalog)
        _check_deletion(catalog, plan, output)
        unfinished = alter.Unfinished()
        try:
            catalog, unfinished = _prepare(connection, catalog, plan, output)
            with (
                translated(f"committing rows of {output.table}"),
                transaction(connection, long=True),
            ):
                written = _write(
                    connection, catalog, plan, output, rows_for, unfinished.without_index
                )
        except alter.TableChangedError:
            alter.abandon(connection, output.table, unfinished)
            output.log.info("%s changed while it was being written; once more.", output.table)
            continue
        except BaseException:
            alter.abandon(connection, output.table, unfinished)
            raise
        if unfinished == alter.Unfinished():
            return written
        alter.finish(connection, output.table, unfinished, output.log)
        existing = fetch_catalog(connection, output.table, output.tracking.schema).existing
        return replace(written, existing=existing)
    raise DatabaseError(
        f"{output.table} kept changing while this write was being planned, {ATTEMPTS} times in a "
        "row. Another process alters it again and again; run the asset again when it is done.",
        step="planning the write",
    )


# --- what to do -----------------------------------------------------------------------------


def _plan_frame(connection: Connection, catalog: Catalog, source: Source, output: Output) -> Plan:
    options = output.options
    wanted = wanted_columns(source.schema, options.columns, options.primary_key)
    wanted = resolve_types(connection, wanted)
    check_key(source.known, options.primary_key)
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
            holds_no_value=lambda name: alter.holds_no_value(connection, catalog.table, name),
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
            check_values(frame_field, chunks, targets[column.name], column)
        elif column.not_null:
            raise SchemaConflict(
                f"Column {column.name!r} is declared 'not null', and the frame lacks it. "
                f"Its columns are {source.schema.names}."
            )
    return Plan(options, wanted, Evolution(targets))


def _plan_query(
    connection: Connection, catalog: Catalog, columns: Mapping[str, PgType], output: Output
) -> Plan:
    """Decide by types alone: what a query returns counts like what an asset declares."""
    options, existing = output.options, catalog.existing
    returned = {name: Column(name, type_, declared=True) for name, type_ in columns.items()}
    # Values play no part: a field without any stands for each column.
    schema = pa.schema([pa.field(name, pa.null()) for name in columns])
    wanted = wanted_columns(schema, returned | dict(options.columns), options.primary_key)
    wanted = resolve_types(connection, wanted)
    storage = fetch_storage(connection, wanted)
    if existing is None:
        return Plan(options, wanted, Evolution(storage))
    evolution = plan_evolution(
        existing,
        wanted,
        schema,
        lambda _name: (),
        storage=storage,
        primary_key=options.primary_key,
        mode=options.schema_evolution,
        holds_no_value=lambda name: alter.holds_no_value(connection, catalog.table, name),
    )
    return Plan(options, wanted, evolution)


def _check_deletion(catalog: Catalog, plan: Plan, output: Output) -> None:
    """Refuse a deletion that cannot be meant before anything is committed.

    It may name columns that this write adds.
    """
    existing, targets = catalog.existing, plan.evolution.targets
    if existing is None or output.merge is None or output.merge.deletion is None:
        return
    columns = [replace(c, storage=targets.get(c.name, c.storage)) for c in existing.columns]
    columns += [
        ExistingColumn(
            c.name,
            c.type,
            targets[c.name],
            not_null=c.not_null,
            filled_by_server=False,
            has_default=False,
        )
        for c in plan.evolution.additions
    ]
    compose_condition(
        output.merge.deletion, replace(existing, columns=tuple(columns)), "kept", first=2
    )


def _check_key_present(output: Output, names: Sequence[str]) -> None:
    absent = [name for name in output.options.primary_key if name not in names]
    if output.merge is not None and absent:
        raise ConfigurationError(
            f"primary_key names {absent}, which the frame does not have, and an upsert finds rows "
            f"by their key. Its columns are {list(names)}."
        )


def _prepare(
    connection: Connection, catalog: Catalog, plan: Plan, output: Output
) -> tuple[Catalog, alter.Unfinished]:
    """Commit what others could otherwise wait for; return the catalog then, and what is left."""
    table, existing, tracking = catalog.table, catalog.existing, output.tracking
    if not catalog.tracking_exists:
        tracking.create(connection)
    if not catalog.schema_exists:
        create_schema(connection, table.schema)
    if existing is None:
        return catalog, alter.Unfinished()
    adopted = not existing.tracked or not existing.has_materialization_default
    if adopted:
        alter.track(connection, table)
    evolves = plan.evolution != Evolution(plan.evolution.targets)
    unfinished = alter.Unfinished()
    if evolves:
        leaving = [] if output.merge else tracking.fetch_numbers(connection, output.lineage)
        unfinished = alter.evolve(connection, table, plan.evolution, leaving, output.log)
    if not existing.has_index([MATERIALIZATION_ID], unique=False) and (
        output.lineage.partitioned
        or tracking.has_other_owners(connection, table, output.lineage.asset_key)
    ):
        alter.index_materialization_id(connection, table, output.log)
    if adopted or evolves:
        catalog = fetch_catalog(connection, table, tracking.schema)
    return catalog, unfinished


# --- the transaction ------------------------------------------------------------------------


def _write(
    connection: Connection,
    catalog: Catalog,
    plan: Plan,
    output: Output,
    rows_for: Callable[[Plan, Sequence[Partition]], Rows],
    keys: Sequence[alter.Key],
) -> Written:
    table, tracking = catalog.table, output.tracking
    partitions, current = _take_turn(connection, catalog, plan, output)
    earlier = tracking.fetch_earlier(connection, partitions)
    first_here = current is not None and not earlier
    if first_here and tracking.step_over_strays(connection, table, partitions):
        raise alter.TableChangedError
    if len(partitions) == 1:
        tracking.set_materialization(connection, partitions[0])
    rows = rows_for(plan, partitions)
    loader = Loader(connection, table, plan, rows)
    if current is None:
        loader.create(indexed=output.lineage.partitioned)
        current = fetch_catalog(connection, table, tracking.schema).existing
    elif output.merge is not None:
        loader.merge(current, earlier, output.merge.deletion)
    else:
        loader.replace(current, earlier)
    if current is not None and not _takes(current, {**plan.evolution.targets, **rows.targets}):
        # A stream has widened a column on its way.
        current = fetch_catalog(connection, table, tracking.schema).existing
    loader.index_keys(keys)
    counts = loader.counts()
    tracking.record(connection, output.lineage, partitions, counts)
    grant_select(connection, table, output.options.users)
    return Written(catalog.database, table, current, counts, sum(rows.counts.values()), rows.bytes)


def _take_turn(
    connection: Connection, catalog: Catalog, plan: Plan, output: Output
) -> tuple[list[Partition], ExistingTable | None]:
    """Wait until nobody else writes these partitions; return them, and the table as it is then.

    It may be another than the plan was made for, so it is looked at once more when nobody
    can change it any longer: it is locked against ALTER TABLE, or, where there is none yet,
    its name is locked. All writers lock in one order: name, tracking rows, table.

    Raises:
        TableChangedError: The plan no longer holds. Nothing was written.
    """
    table, tracking, planned = catalog.table, output.tracking, catalog.existing
    if planned is None:
        with translated(f"locking {table}"):
            lock_table(connection, table, first_write=True)
        if fetch_catalog(connection, table, tracking.schema).existing is not None:
            raise alter.TableChangedError
        return tracking.lock_partitions(connection, table, output.lineage), None
    partitions = tracking.lock_partitions(connection, table, output.lineage)
    with translated(f"locking {table}"):
        try:
            connection.execute(ddl.compose_lock(table, "ROW EXCLUSIVE"))
        except errors.UndefinedTable:
            raise alter.TableChangedError from None
    current = fetch_catalog(connection, table, tracking.schema).existing
    targets = plan.evolution.targets
    if current is None or current.columns != planned.columns or not _takes(current, targets):
        raise alter.TableChangedError
    return partitions, current


def _takes(existing: ExistingTable, targets: Mapping[str, PgType]) -> bool:
    """Whether the columns have the types that values are encoded as."""
    return all(
        (column := existing.column(name)) is not None and column.storage == type_
        for name, type_ in targets.items()
    )


def _write_nothing(connection: Connection, output: Output) -> Written:
    """Delete the rows that go and record the materialization; creates no table."""
    table, lineage, tracking = output.table, output.lineage, output.tracking
    catalog = fetch_catalog(connection, table, tracking.schema)
    catalog.check_writable()
    if not catalog.tracking_exists:
        tracking.create(connection)
    with translated(f"committing to {table}"), transaction(connection, long=True):
        with translated(f"locking {table}"):
            lock_table(connection, table, first_write=False)
        existing = fetch_catalog(connection, table, tracking.schema).existing
        partitions = tracking.lock_partitions(connection, table, lineage)
        deleted: Mapping[str | None, int] = {}
        if existing is not None and existing.tracked:
            earlier = tracking.fetch_earlier(connection, partitions)
            deleted = _delete_without_rows(connection, existing, earlier, output.merge)
        counts = {key: Counts(deleted=deleted.get(key, 0)) for key in lineage.partition_keys}
        tracking.record(connection, lineage, partitions, counts)
        if existing is not None:
            grant_select(connection, table, output.options.users)
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
