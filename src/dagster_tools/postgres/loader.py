"""Move the rows of one output into its table, inside the transaction that `write` opened."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from psycopg import errors, sql
from psycopg.sql import Identifier

from dagster_tools.errors import BadValue, SchemaConflict
from dagster_tools.postgres import alter, ddl
from dagster_tools.postgres.column_types import PgType
from dagster_tools.postgres.columns import Column, ExistingTable
from dagster_tools.postgres.connection import Connection, translated
from dagster_tools.postgres.copy import Copied, Progress, copy_in, has_binary_form
from dagster_tools.postgres.evolution import Evolution, Widening, widened_type
from dagster_tools.postgres.merge import (
    compose_delete,
    compose_delete_and_count,
    compose_insert_new,
    compose_update_kept,
)
from dagster_tools.postgres.names import MATERIALIZATION_ID, Table
from dagster_tools.postgres.options import OutputOptions
from dagster_tools.postgres.rows import Feed, Misfit

__all__ = ["Loader", "Plan", "delete_earlier"]

INTEGER = PgType("integer")
STAGING = "dagster_tools_staging"
NO_ACTION = "a"
"""pg_constraint.confdeltype of a foreign key without an ON DELETE action."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the table must become.

    Args:
        wanted: All columns the asset asks for, those of the frame first.
        evolution: Changes of an existing table, and what each column is encoded as.
    """

    options: OutputOptions
    wanted: tuple[Column, ...]
    evolution: Evolution


def delete_earlier(
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


@dataclass
class Loader:
    """Moves one feed into one table, within the transaction."""

    connection: Connection
    table: Table
    plan: Plan
    feed: Feed
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
        deleted = delete_earlier(connection, table, earlier)
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

    def _widen(self, misfit: Misfit, target: Identifier) -> None:
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
                        target,
                        Identifier(name),
                        sql.SQL(str(new)),  # type: ignore[arg-type]  # a type's name by grammar
                    )
                )
        self.feed.retarget(name, new)


def _referenced_key(existing: ExistingTable) -> tuple[str, ...]:
    """Return the key to match rows by: one whose loss would fire an action, if there is any."""
    acting = [key for key in existing.referencing if key.on_delete != NO_ACTION]
    return (acting or list(existing.referencing))[0].columns
