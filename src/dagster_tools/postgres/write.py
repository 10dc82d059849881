"""The story of one output: rows, their tracking and a new table in one transaction."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc
from psycopg import errors, sql
from psycopg.sql import Identifier

from dagster_tools.errors import BadValue, DatabaseError, SchemaConflict
from dagster_tools.postgres import alter, ddl
from dagster_tools.postgres.catalog import Catalog, fetch_catalog, fetch_storage
from dagster_tools.postgres.column_types import PgType
from dagster_tools.postgres.columns import Column, ExistingTable, wanted_columns
from dagster_tools.postgres.connection import Connection, transaction, translated
from dagster_tools.postgres.copy import Copied, Progress, copy_in, has_binary_form
from dagster_tools.postgres.evolution import (
    Evolution,
    Widening,
    check_values,
    plan_evolution,
    widened_type,
)
from dagster_tools.postgres.merge import (
    compose_delete,
    compose_delete_and_count,
    compose_insert_new,
    compose_update_kept,
)
from dagster_tools.postgres.names import MATERIALIZATION_ID, Table, check_column_names
from dagster_tools.postgres.options import OutputOptions
from dagster_tools.postgres.tracking import (
    Lineage,
    Partition,
    Tracking,
    create_schema,
    lock_table,
)
from dagster_tools.postgres.wire import fit

__all__ = ["Written", "write_table"]

ROWS_AT_A_TIME = 65_536
"""Rows encoded at a time: few enough that client and server work at once."""

ATTEMPTS = 10
"""How often a write plans again because the table changed under it."""

INTEGER = PgType("integer")
STAGING = "dagster_tools_staging"
NO_ACTION = "a"
"""pg_constraint.confdeltype of a foreign key without an ON DELETE action."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a write did.

    Args:
        existing: The table afterwards; None where there is none.
        inserted: Rows that are new, of each partition.
        bytes: What COPY sent.
    """

    database: str
    table: Table
    existing: ExistingTable | None
    inserted: Mapping[str | None, int] = field(default_factory=dict)
    deleted: Mapping[str | None, int] = field(default_factory=dict)
    bytes: int = 0

    @property
    def rows(self) -> int:
        return sum(self.inserted.values())


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
    progress: Progress = lambda rows, size: None,
) -> Written:
    """Replace the rows of one asset, or of some of its partitions, all or nothing.

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
        progress: Told the rows and bytes of each part that was sent.

    Raises:
        ConfigurationError, BadValue, SchemaConflict: Refused; nothing was written.
        DatabaseError: The server failed; nothing was written, unless the connection broke
            while COMMIT was under way. A re-run then writes the same rows again.
    """
    source = _open(data, options.chunk_size, by_partition=by_partition)
    if source.known.num_rows == 0:
        return _write_nothing(connection, table, lineage, tracking)
    check_column_names(source.schema.names)
    for _attempt in range(ATTEMPTS):
        catalog = fetch_catalog(connection, table, tracking.schema)
        catalog.check_writable()
        plan = _plan(connection, catalog, source, options)
        catalog = _prepare(connection, catalog, plan, lineage, tracking, log)
        try:
            with transaction(connection):
                return _write(
                    connection, catalog, source, plan, lineage, tracking, log, progress
                )
        except _TableChangedError:
            log.info("%s changed while the write was being planned; planning again.", table)
    raise DatabaseError(
        f"{table} kept changing while this write was being planned, {ATTEMPTS} times in a row. "
        "Another process alters it again and again; run the asset again when it is done.",
        step="planning the write",
    )


class _TableChangedError(Exception):
    """Between plan and lock somebody created or altered the table."""


# --- the frame ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Source:
    """The rows of one output.

    Args:
        schema: Of the frame's own columns.
        known: A frame in memory, or a stream's first batch: what can be checked beforehand.
        rest: What a stream has left.
        by_partition: `known` and `rest` end in a column of partition positions.
    """

    schema: pa.Schema
    known: pa.Table
    rest: Iterator[pa.RecordBatch]
    chunk_size: int
    by_partition: bool

    def chunks(self, name: str) -> Iterable[pa.Array]:
        return self.known.column(name).chunks

    def batches(self) -> Iterator[pa.RecordBatch]:
        for batch in chain(self.known.to_batches(), self.rest):
            rows = _rows_at_a_time(batch, self.chunk_size)
            for start in range(0, batch.num_rows, rows):
                yield batch.slice(start, rows)


def _open(data: pa.Table | pa.RecordBatchReader, chunk_size: int, *, by_partition: bool) -> _Source:
    rest: Iterator[pa.RecordBatch] = iter(())
    if isinstance(data, pa.RecordBatchReader):
        rest = (batch for batch in data if batch.num_rows)
        first = next(rest, None)
        known = pa.Table.from_batches([first] if first is not None else [], data.schema)
    else:
        known = data
    schema = known.schema.remove(len(known.schema) - 1) if by_partition else known.schema
    return _Source(schema, known, rest, chunk_size, by_partition)


def _rows_at_a_time(batch: pa.RecordBatch, chunk_size: int) -> int:
    bytes_per_row = max(1, batch.nbytes // max(1, batch.num_rows))
    return max(1, min(ROWS_AT_A_TIME, chunk_size // bytes_per_row))


# --- what to do -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the table must become.

    Args:
        wanted: All columns the asset asks for, those of the frame first.
        evolution: Changes of an existing table, and what each column is encoded as.
    """

    options: OutputOptions
    wanted: tuple[Column, ...]
    evolution: Evolution


def _plan(
    connection: Connection, catalog: Catalog, source: _Source, options: OutputOptions
) -> _Plan:
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
        return _Plan(options, wanted, evolution)
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
    return _Plan(options, wanted, Evolution(targets))


def _prepare(
    connection: Connection,
    catalog: Catalog,
    plan: _Plan,
    lineage: Lineage,
    tracking: Tracking,
    log: logging.Logger,
) -> Catalog:
    """Commit what others could otherwise wait for, and return the catalog as it is then."""
    table, existing = catalog.table, catalog.existing
    if not catalog.tracking_exists:
        tracking.create(connection)
    if not catalog.schema_exists:
        create_schema(connection, table.schema)
    if existing is None:
        return catalog
    before = existing
    if not existing.tracked or not existing.has_materialization_default:
        alter.track(connection, table)
    alter.evolve(connection, table, plan.evolution, log)
    if not existing.has_index([MATERIALIZATION_ID], unique=False) and (
        lineage.partitioned or tracking.has_other_owners(connection, table, lineage.asset_key)
    ):
        alter.index_materialization_id(connection, table, log)
    changed = plan.evolution != Evolution(plan.evolution.targets) or not before.tracked
    return fetch_catalog(connection, table, tracking.schema) if changed else catalog


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
    source: _Source,
    plan: _Plan,
    lineage: Lineage,
    tracking: Tracking,
    log: logging.Logger,
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
    if len(partitions) == 1:
        tracking.set_materialization(connection, partitions[0])
    feed = _Feed(source, partitions, plan.evolution.targets)
    loader = _Loader(connection, table, plan, feed, log, progress)
    deleted: Mapping[str | None, int] = {}
    if current is None:
        loader.create(indexed=lineage.partitioned)
        current = fetch_catalog(connection, table, tracking.schema).existing
    elif current.referencing:
        deleted = loader.replace_referenced(current, earlier)
    else:
        deleted = _delete(connection, table, earlier)
        loader.copy(table.identifier)
    tracking.record(connection, lineage, partitions, inserted=feed.inserted, deleted=deleted)
    return Written(catalog.database, table, current, feed.inserted, deleted, loader.copied.bytes)


def _write_nothing(
    connection: Connection, table: Table, lineage: Lineage, tracking: Tracking
) -> Written:
    """Delete the old rows and record the materialization; creates no table."""
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
            deleted = _delete(connection, table, tracking.fetch_earlier(connection, partitions))
        tracking.record(connection, lineage, partitions, inserted={}, deleted=deleted)
    inserted = dict.fromkeys(lineage.partition_keys, 0)
    return Written(catalog.database, table, existing, inserted, deleted)


def _delete(
    connection: Connection, table: Table, earlier: Mapping[int, str | None]
) -> dict[str | None, int]:
    """Delete the rows of earlier materializations, and count them by partition."""
    if not earlier:
        return {}
    keys = set(earlier.values())
    with translated(f"deleting the old rows of {table}"):
        if len(keys) == 1:
            # Counting by partition costs as much as deleting; one partition needs no GROUP BY.
            cursor = connection.execute(compose_delete(table), [list(earlier)])
            return {keys.pop(): cursor.rowcount}
        counts = connection.execute(compose_delete_and_count(table), [list(earlier)]).fetchall()
    deleted: dict[str | None, int] = {}
    for materialization_id, count in counts:
        key = earlier[materialization_id]
        deleted[key] = deleted.get(key, 0) + count
    return deleted


class _Feed:
    """The frame's batches, fitted to the table and numbered, up to one that does not fit.

    Iterating stops at such a batch; `misfit` then tells it, and after `retarget` the next
    iteration begins with it.
    """

    def __init__(
        self, source: _Source, partitions: Sequence[Partition], targets: Mapping[str, PgType]
    ) -> None:
        self.schema = source.schema
        self.targets = {name: targets[name] for name in source.schema.names}
        self.row = 0
        self.partitions = partitions
        self.inserted: dict[str | None, int] = {partition.key: 0 for partition in partitions}
        self.misfit: _Misfit | None = None
        self._numbers = pa.array([p.materialization_id for p in partitions], pa.int32())
        self._by_partition = source.by_partition
        self._batches = source.batches()
        self._exhausted = False

    @property
    def columns(self) -> list[str]:
        return [*self.schema.names, MATERIALIZATION_ID]

    @property
    def exhausted(self) -> bool:
        return self._exhausted

    def retarget(self, column: str, type_: PgType) -> None:
        self.targets[column] = type_

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        pending = [self.misfit.batch] if self.misfit else []
        self.misfit = None
        for batch in chain(pending, self._batches):
            arrays: list[pa.Array] = []
            for frame_field, array in zip(self.schema, batch.columns, strict=False):
                target = self.targets[frame_field.name]
                try:
                    arrays.append(fit(array, frame_field, target, first_row=self.row))
                except (BadValue, SchemaConflict) as error:
                    self.misfit = _Misfit(batch, frame_field, array, error)
                    return
            yield pa.RecordBatch.from_arrays(
                [*arrays, self._numbered(batch)], names=self.columns
            )
            self.row += batch.num_rows
        self._exhausted = True

    def _numbered(self, batch: pa.RecordBatch) -> pa.Array:
        """Return the materialization's number of each row, and count the rows by partition."""
        if not self._by_partition:
            self.inserted[self.partitions[0].key] += batch.num_rows
            return pa.repeat(self._numbers[0], batch.num_rows)
        positions = batch.column(batch.num_columns - 1)
        for counted in pc.value_counts(positions).to_pylist():
            self.inserted[self.partitions[counted["values"]].key] += counted["counts"]
        return self._numbers.take(positions)


@dataclass(frozen=True, slots=True)
class _Misfit:
    """A batch with a column whose values do not fit the table."""

    batch: pa.RecordBatch
    field: pa.Field
    values: pa.Array
    error: BadValue | SchemaConflict


@dataclass
class _Loader:
    """Moves one feed into one table, within the transaction."""

    connection: Connection
    table: Table
    plan: _Plan
    feed: _Feed
    log: logging.Logger
    progress: Progress
    copied: Copied = field(default_factory=Copied)

    def create(self, *, indexed: bool) -> None:
        """Create the table, load it, and only then build its keys and indexes.

        Args:
            indexed: Build an index on `materialization_id`, since the table is shared.
        """
        connection, table, options = self.connection, self.table, self.plan.options
        with translated(f"creating {table}"):
            connection.execute(ddl.compose_create_table(table, self.plan.wanted))
        self.copy(table.identifier)
        if options.primary_key:
            self._add_key(options.primary_key, primary=True)
        for column in self.plan.wanted:
            if column.unique:
                self._add_key([column.name], primary=False)
        indexes = [[column.name] for column in self.plan.wanted if column.index]
        indexes += [[MATERIALIZATION_ID]] if indexed else []
        with translated(f"indexing {table}"):
            for columns in indexes:
                connection.execute(
                    ddl.compose_index(table, columns, unique=False, concurrently=False)
                )

    def copy(self, target: Identifier) -> None:
        """Copy all of the feed, widening a column on the way where a stream asks for it."""
        while not self.feed.exhausted:
            self.copied += copy_in(
                self.connection,
                target,
                self.feed.columns,
                self.feed,
                self.feed.targets | {MATERIALIZATION_ID: INTEGER},
                binary=has_binary_form(self.feed.schema, self.feed.targets),
                first_row=self.feed.row,
                progress=self.progress,
            )
            if self.feed.misfit is not None:
                self._widen(self.feed.misfit, target)
        if self.copied.rows != self.feed.row:
            self.log.warning(
                "%s rows were sent to %s and %s arrived; a trigger of the table keeps some out.",
                self.feed.row,
                self.table,
                self.copied.rows,
            )

    def replace_referenced(
        self, existing: ExistingTable, earlier: Mapping[int, str | None]
    ) -> dict[str | None, int]:
        """Replace rows that a foreign key of another table may reference.

        Rows whose referenced key stays are updated in place, so that a reference holds
        throughout and no ON DELETE action fires; only vanished keys are deleted.
        """
        connection, table = self.connection, self.table
        staging = Identifier("pg_temp", STAGING)
        names = self.feed.schema.names
        key = _referenced_key(existing)
        if not set(key) <= set(names):
            raise SchemaConflict(
                f"{table} is referenced by its columns {list(key)}, and the frame lacks some of "
                f"them. Its columns are {names}."
            )
        with translated("creating a staging table (needs TEMP on the database)"):
            connection.execute(ddl.compose_staging(STAGING, table, names))
        self.copy(staging)
        numbers = [partition.materialization_id for partition in self.feed.partitions]
        with translated(f"replacing rows of {table}", data=True):
            connection.execute(compose_update_kept(table, staging, names, key), [list(earlier)])
        deleted = _delete(connection, table, earlier)
        with translated(f"replacing rows of {table}", data=True):
            connection.execute(compose_insert_new(table, staging, names, key), [numbers])
        return deleted

    def _add_key(self, columns: Sequence[str], *, primary: bool) -> None:
        kind = "primary key" if primary else "unique column"
        with translated(f"adding the {kind} {list(columns)} to {self.table}"):
            try:
                self.connection.execute(ddl.compose_key(self.table, columns, primary=primary))
            except errors.UniqueViolation:
                raise BadValue(
                    f"Rows of the frame repeat values of the {kind} {list(columns)}."
                ) from None

    def _widen(self, misfit: _Misfit, target: Identifier) -> None:
        """Widen the column a batch of a stream does not fit, or raise why it does not."""
        name = misfit.field.name
        wanted = next(column for column in self.plan.wanted if column.name == name)
        old = self.feed.targets[name]
        new = None if wanted.declared else widened_type(old, misfit.field, [misfit.values])
        if new is None or self.plan.options.schema_evolution == "strict":
            raise misfit.error
        alter.widen(self.connection, self.table, Widening(name, old, new), self.log)
        if target != self.table.identifier:
            with translated("widening the staging table"):
                self.connection.execute(
                    sql.SQL("ALTER TABLE {} ALTER COLUMN {} TYPE {}").format(
                        target, Identifier(name), sql.SQL(str(new))  # type: ignore[arg-type]  # a type's name by grammar
                    )
                )
        self.feed.retarget(name, new)


def _referenced_key(existing: ExistingTable) -> tuple[str, ...]:
    """Return the key to match rows by: one whose loss would fire an action, if there is any."""
    acting = [key for key in existing.referencing if key.on_delete != NO_ACTION]
    return (acting or list(existing.referencing))[0].columns
