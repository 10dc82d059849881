"""One table's part in a write: what is committed before, what within, what after.

Several tables may be written in one transaction, so each step is taken for all of them before
the next: `prepare`, then within the transaction `take_turn`, `move` and `grant`, then `finish`,
or `abandon` where it failed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from psycopg import errors

from dagster_tools.postgres import alter, ddl
from dagster_tools.postgres.catalog import Catalog, fetch_catalog
from dagster_tools.postgres.column_types import PgType
from dagster_tools.postgres.columns import ExistingTable
from dagster_tools.postgres.connection import Connection, translated
from dagster_tools.postgres.deletion import Deletion, compose_condition
from dagster_tools.postgres.evolution import Evolution
from dagster_tools.postgres.grants import grant_select
from dagster_tools.postgres.incoming import Plan, Rows
from dagster_tools.postgres.loader import Loader, delete_earlier
from dagster_tools.postgres.names import MATERIALIZATION_ID, Table
from dagster_tools.postgres.options import OutputOptions
from dagster_tools.postgres.planning import check_deletion
from dagster_tools.postgres.tracking import (
    Counts,
    Lineage,
    Partition,
    Tracking,
    create_schema,
    lock_table,
)

__all__ = ["EmptyWrite", "Merge", "Output", "RowsWrite", "TableWrite", "Written"]


@dataclass(frozen=True, slots=True)
class Merge:
    """Add to the asset's earlier rows instead of replacing them.

    Args:
        deletion: Which of them go before.
        upsert: Rows of the same primary key, where there is one, are updated. Otherwise a key
            that is there already is an error.
        repeated: What becomes of rows of the same primary key among the new ones: an error, or
            the last one counts. It takes `upsert`.
    """

    deletion: Deletion | None = None
    upsert: bool = True
    repeated: Literal["error", "last"] = "error"


@dataclass(frozen=True, slots=True)
class Output:
    """One output to be written: where, how, and for whom.

    Args:
        merge: How the rows join the earlier ones; None where they replace them.
        before_commit: Runs in the transaction when the rows are there. What it raises undoes
            them.
    """

    table: Table
    options: OutputOptions
    lineage: Lineage
    tracking: Tracking
    log: logging.Logger
    merge: Merge | None = None
    before_commit: Callable[[Connection], object] | None = None


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


class TableWrite(Protocol):
    """One table's part in a write; see the module."""

    @property
    def connection(self) -> Connection:
        """Which it goes over."""

    @property
    def output(self) -> Output:
        """What is written."""

    def prepare(self) -> None:
        """Decide what to do, and commit what others could otherwise wait for."""

    def take_turn(self) -> None:
        """Wait until nobody else writes these partitions.

        Raises:
            TableChangedError: What was decided no longer holds. Nothing was written.
        """

    def move(self) -> Written:
        """Delete, load, record."""

    def grant(self) -> None:
        """Let those read the table who are to.

        It comes last: whoever grants holds up all others who do, until the transaction ends.
        """

    def finish(self, written: Written) -> Written:
        """Do what had to wait for the rows to be committed."""

    def abandon(self) -> None:
        """Take back what was prepared."""


@dataclass
class RowsWrite:
    """Rows into a table, which is created where it is missing.

    Args:
        plan_for: Decides what the table must become; asked again where it changed meanwhile.
        rows_for: Makes the rows ready for a plan.
        number: Of this table among those of its transaction.
    """

    connection: Connection
    output: Output
    plan_for: Callable[[Catalog], Plan]
    rows_for: Callable[[Plan, Sequence[Partition]], Rows]
    number: int = 0
    _catalog: Catalog = field(init=False)
    _plan: Plan = field(init=False)
    _unfinished: alter.Unfinished = field(init=False, default=alter.Unfinished())
    _partitions: list[Partition] = field(init=False)
    _current: ExistingTable | None = field(init=False)
    _earlier: dict[int, str | None] = field(init=False, default_factory=dict)

    def prepare(self) -> None:
        """See `TableWrite`."""
        output = self.output
        catalog = fetch_catalog(self.connection, output.table, output.tracking.schema)
        catalog.check_writable()
        self._plan, self._unfinished = self.plan_for(catalog), alter.Unfinished()
        check_deletion(catalog, self._plan, output.merge.deletion if output.merge else None)
        self._catalog = self._prepared(catalog)

    def _prepared(self, catalog: Catalog) -> Catalog:
        """Commit what others could otherwise wait for; return the catalog then."""
        connection, output, plan = self.connection, self.output, self._plan
        table, existing, tracking = catalog.table, catalog.existing, output.tracking
        if not catalog.tracking_exists:
            tracking.create(connection)
        if not catalog.schema_exists:
            create_schema(connection, table.schema)
        if existing is None:
            return catalog
        adopted = not existing.tracked or not existing.has_materialization_default
        if adopted:
            alter.track(connection, table)
        evolves = plan.evolution != Evolution(plan.evolution.targets)
        if evolves:
            leaving = [] if output.merge else tracking.fetch_numbers(connection, output.lineage)
            self._unfinished = alter.evolve(connection, table, plan.evolution, leaving, output.log)
        indexed = existing.has_index([MATERIALIZATION_ID], unique=False)
        # CREATE INDEX CONCURRENTLY cannot index a partitioned table (PostgreSQL documentation).
        if not (indexed or existing.partitioned) and (
            output.lineage.partitioned
            or tracking.has_other_owners(connection, table, output.lineage.asset_key)
        ):
            alter.index_materialization_id(connection, table, output.log)
        if adopted or evolves:
            return fetch_catalog(connection, table, tracking.schema)
        return catalog

    def take_turn(self) -> None:
        """See `TableWrite`.

        The table may be another than the plan was made for, so it is looked at once more when
        nobody can change it any longer: it is locked against ALTER TABLE, or, where there is
        none yet, its name is locked. All writers lock in one order: name, tracking rows, table.
        """
        connection, output = self.connection, self.output
        table, tracking = output.table, output.tracking
        if self._catalog.existing is None:
            with translated(f"locking {table}"):
                lock_table(connection, table, first_write=True)
            self._current = fetch_catalog(connection, table, tracking.schema).existing
            if self._current is not None:
                raise alter.TableChangedError
            self._partitions = tracking.lock_partitions(connection, table, output.lineage)
        else:
            self._partitions = tracking.lock_partitions(connection, table, output.lineage)
            self._current = self._locked(self._catalog.existing)
        first_here = self._current is not None and not self._find_earlier()
        if first_here and tracking.step_over_strays(connection, table, self._partitions):
            raise alter.TableChangedError

    def _find_earlier(self) -> bool:
        """Look for earlier materializations: for all of them where rows of theirs may go.

        A load of thousands of batches would else read each time what all before it have written.
        """
        tracking, merge = self.output.tracking, self.output.merge
        if merge is not None and merge.deletion is None:
            return tracking.has_earlier(self.connection, self._partitions)
        self._earlier = tracking.fetch_earlier(self.connection, self._partitions)
        return bool(self._earlier)

    def _locked(self, planned: ExistingTable) -> ExistingTable:
        """Return the table as it is now that nobody can alter it."""
        connection, table = self.connection, self.output.table
        with translated(f"locking {table}"):
            try:
                connection.execute(ddl.compose_lock(table, "ROW EXCLUSIVE"))
            except errors.UndefinedTable:
                raise alter.TableChangedError from None
        current = fetch_catalog(connection, table, self.output.tracking.schema).existing
        targets = self._plan.evolution.targets
        if current is None or current.columns != planned.columns or not _takes(current, targets):
            raise alter.TableChangedError
        return current

    def move(self) -> Written:
        """See `TableWrite`."""
        connection, output, current = self.connection, self.output, self._current
        table, tracking, partitions = output.table, output.tracking, self._partitions
        if len(partitions) == 1:
            tracking.set_materialization(connection, partitions[0])
        rows = self.rows_for(self._plan, partitions)
        loader = Loader(connection, table, self._plan, rows, number=self.number)
        if current is None:
            repeated = output.merge.repeated if output.merge else "error"
            loader.create(indexed=output.lineage.partitioned, repeated=repeated)
            current = fetch_catalog(connection, table, tracking.schema).existing
        elif output.merge is not None:
            merge = output.merge
            loader.merge(
                current, self._earlier, merge.deletion, upsert=merge.upsert, repeated=merge.repeated
            )
        else:
            loader.replace(current, self._earlier)
        if current is not None and not _takes(
            current, {**self._plan.evolution.targets, **rows.targets}
        ):
            # A stream has widened a column on its way.
            current = fetch_catalog(connection, table, tracking.schema).existing
        loader.index_keys(self._unfinished.without_index)
        counts = loader.counts()
        tracking.record(connection, output.lineage, partitions, counts)
        sent = sum(rows.counts.values())
        return Written(self._catalog.database, table, current, counts, sent, rows.bytes)

    def grant(self) -> None:
        """See `TableWrite`."""
        grant_select(self.connection, self.output.table, self.output.options.users)

    def finish(self, written: Written) -> Written:
        """See `TableWrite`."""
        if self._unfinished == alter.Unfinished():
            return written
        output = self.output
        alter.finish(self.connection, output.table, self._unfinished, output.log)
        catalog = fetch_catalog(self.connection, output.table, output.tracking.schema)
        return replace(written, existing=catalog.existing)

    def abandon(self) -> None:
        """See `TableWrite`."""
        alter.abandon(self.connection, self.output.table, self._unfinished)


@dataclass
class EmptyWrite:
    """No rows: those that go are deleted and the materialization recorded; creates no table."""

    connection: Connection
    output: Output
    _database: str = field(init=False)
    _current: ExistingTable | None = field(init=False)
    _partitions: list[Partition] = field(init=False)

    def prepare(self) -> None:
        """See `TableWrite`."""
        tracking = self.output.tracking
        catalog = fetch_catalog(self.connection, self.output.table, tracking.schema)
        catalog.check_writable()
        if not catalog.tracking_exists:
            tracking.create(self.connection)
        self._database = catalog.database

    def take_turn(self) -> None:
        """See `TableWrite`."""
        connection, table, tracking = self.connection, self.output.table, self.output.tracking
        with translated(f"locking {table}"):
            lock_table(connection, table, first_write=False)
        self._current = fetch_catalog(connection, table, tracking.schema).existing
        self._partitions = tracking.lock_partitions(connection, table, self.output.lineage)

    def move(self) -> Written:
        """See `TableWrite`."""
        connection, output, current = self.connection, self.output, self._current
        table, tracking, lineage = output.table, output.tracking, output.lineage
        deleted: Mapping[str | None, int] = {}
        if current is not None and current.tracked:
            earlier = tracking.fetch_earlier(connection, self._partitions)
            deleted = _delete_without_rows(connection, current, earlier, output.merge)
        counts = {key: Counts(deleted=deleted.get(key, 0)) for key in lineage.partition_keys}
        tracking.record(connection, lineage, self._partitions, counts)
        return Written(self._database, table, current, counts)

    def grant(self) -> None:
        """See `TableWrite`."""
        if self._current is not None:
            grant_select(self.connection, self.output.table, self.output.options.users)

    def finish(self, written: Written) -> Written:
        """See `TableWrite`."""
        return written

    def abandon(self) -> None:
        """See `TableWrite`."""


def _takes(existing: ExistingTable, targets: Mapping[str, PgType]) -> bool:
    """Whether the columns have the types that values are encoded as."""
    return all(
        (column := existing.column(name)) is not None and column.storage == type_
        for name, type_ in targets.items()
    )


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
