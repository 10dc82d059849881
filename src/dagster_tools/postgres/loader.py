"""Move the rows of one output into its table, inside the transaction that `write` opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from psycopg import errors, sql
from psycopg.sql import Composed, Identifier

from dagster_tools.errors import BadValue, SchemaConflict
from dagster_tools.postgres import ddl
from dagster_tools.postgres.alter import Key
from dagster_tools.postgres.columns import ExistingTable
from dagster_tools.postgres.connection import Connection, translated
from dagster_tools.postgres.deletion import Condition, Deletion, compose_condition
from dagster_tools.postgres.incoming import Plan, Rows
from dagster_tools.postgres.merge import (
    EVERY_ROW,
    compose_absent_from_staging,
    compose_delete,
    compose_delete_and_count,
    compose_insert_new,
    compose_repeated_keys,
    compose_update_kept,
    compose_upsert,
)
from dagster_tools.postgres.names import MATERIALIZATION_ID, Table
from dagster_tools.postgres.tracking import Counts

__all__ = ["Loader", "delete_earlier"]

STAGING = "dagster_tools_staging"
NO_EQUALITY = frozenset({"json", "xml", "point", "polygon"})
"""Types whose values PostgreSQL cannot compare with `=`."""

NO_ROW = Condition(sql.SQL("false").format(), ())
"""Nothing goes before the rows come in."""

NO_ACTION = "a"
"""pg_constraint.confdeltype of a foreign key without an ON DELETE action."""


def delete_earlier(
    connection: Connection,
    table: Table,
    earlier: Mapping[int, str | None],
    condition: Condition | None = None,
) -> dict[str | None, int]:
    """Delete rows of earlier materializations, and count them by partition.

    Args:
        earlier: The materializations, each with its partition.
        condition: Which of their rows go, in terms of `kept`; None for all.
    """
    if not earlier:
        return {}
    keys = set(earlier.values())
    clause, parameters = (condition.clause, condition.parameters) if condition else (EVERY_ROW, ())
    with translated(f"deleting the old rows of {table}"):
        if len(keys) == 1:
            # Counting by partition costs as much as deleting; one partition needs no GROUP BY.
            statement = compose_delete(table, clause)
            cursor = connection.execute(statement, [list(earlier), *parameters])
            return {keys.pop(): cursor.rowcount}
        statement = compose_delete_and_count(table, clause)
        counts = connection.execute(statement, [list(earlier), *parameters]).fetchall()
    deleted: dict[str | None, int] = {}
    for materialization_id, count in counts:
        key = earlier[materialization_id]
        deleted[key] = deleted.get(key, 0) + count
    return deleted


@dataclass
class Loader:
    """Moves the new rows of one output into its table, within the transaction."""

    connection: Connection
    table: Table
    plan: Plan
    rows: Rows
    deleted: Mapping[str | None, int] = field(default_factory=dict)
    upserted: Mapping[int, tuple[int, int]] | None = None

    def create(self, *, indexed: bool) -> None:
        """Create the table, load it, and only then build its keys and indexes.

        Args:
            indexed: Build an index on `materialization_id`, since the table is shared.
        """
        connection, table, options = self.connection, self.table, self.plan.options
        with translated(f"creating {table}"):
            connection.execute(ddl.compose_create_table(table, self.plan.wanted))
        self.rows.fill(table.identifier)
        if options.primary_key:
            self._add_key(Key(options.primary_key, primary=True))
        for column in self.plan.wanted:
            if column.unique:
                self._add_key(Key((column.name,)))
        indexes = [[column.name] for column in self.plan.wanted if column.index]
        indexes += [[MATERIALIZATION_ID]] if indexed else []
        with translated(f"indexing {table}"):
            for columns in indexes:
                connection.execute(
                    ddl.compose_index(table, columns, unique=False, concurrently=False)
                )

    def index_keys(self, keys: Sequence[Key]) -> None:
        """Build the indexes of keys that only the rows now replaced stood against.

        CREATE INDEX keeps other writers waiting until the transaction ends, and no reader.
        """
        for key in keys:
            with translated(f"indexing {self.table}"):
                statement = ddl.compose_index(
                    self.table, key.columns, unique=True, concurrently=False
                )
                self._refusing_repeated(statement, str(key))

    def replace(self, existing: ExistingTable, earlier: Mapping[int, str | None]) -> None:
        """Put the new rows in the place of all rows of the earlier materializations."""
        self._put_in_place(existing, earlier, None)

    def merge(
        self,
        existing: ExistingTable,
        earlier: Mapping[int, str | None],
        deletion: Deletion | None,
    ) -> None:
        """Add the new rows to those of the earlier materializations.

        With a primary key, rows of the same key are updated where they differ. Before,
        the rows that `deletion` matches go, but for those whose key comes again.

        Raises:
            BadValue: Two new rows have the same key.
        """
        condition = (
            compose_condition(deletion, existing, "kept", first=2) if deletion is not None else None
        )
        if self.plan.options.primary_key:
            self._upsert(earlier, condition)
        else:
            self._put_in_place(existing, earlier, condition or NO_ROW)

    def counts(self) -> dict[str | None, Counts]:
        """Return what was done to the rows of each partition."""
        keys = [partition.key for partition in self.rows.partitions]
        if self.upserted is None:
            return {
                key: Counts(inserted=self.rows.counts[key], deleted=self.deleted.get(key, 0))
                for key in keys
            }
        counted = {}
        for partition in self.rows.partitions:
            inserted, updated = self.upserted.get(partition.materialization_id, (0, 0))
            unchanged = self.rows.counts[partition.key] - inserted - updated
            deleted = self.deleted.get(partition.key, 0)
            counted[partition.key] = Counts(inserted, updated, deleted, unchanged)
        return counted

    def _put_in_place(
        self,
        existing: ExistingTable,
        earlier: Mapping[int, str | None],
        condition: Condition | None,
    ) -> None:
        if existing.referencing:
            self._put_in_place_referenced(existing, earlier, condition)
        else:
            self.deleted = delete_earlier(self.connection, self.table, earlier, condition)
            self.rows.fill(self.table.identifier)

    def _put_in_place_referenced(
        self,
        existing: ExistingTable,
        earlier: Mapping[int, str | None],
        condition: Condition | None,
    ) -> None:
        """Replace rows that a foreign key of another table may reference.

        Rows whose referenced key stays are updated in place, so that a reference holds
        throughout and no ON DELETE action fires; only vanished keys are deleted.
        """
        connection, table, names = self.connection, self.table, self.rows.names
        key = _referenced_key(existing)
        if not set(key) <= set(names):
            raise SchemaConflict(
                f"{table} is referenced by its columns {list(key)}, and the frame lacks some of "
                f"them. Its columns are {names}."
            )
        staging = self._stage()
        absent = [
            column.name
            for column in existing.columns
            if column.name not in (*self.rows.names, MATERIALIZATION_ID)
            and not column.filled_by_server
        ]
        clause, parameters = (
            (condition.clause, condition.parameters) if condition else (EVERY_ROW, ())
        )
        numbers = [partition.materialization_id for partition in self.rows.partitions]
        with translated(f"replacing rows of {table}", data=True):
            connection.execute(
                compose_update_kept(table, staging, names, key, absent=absent, condition=clause),
                [list(earlier), *parameters],
            )
        self.deleted = delete_earlier(connection, table, earlier, condition)
        with translated(f"replacing rows of {table}", data=True):
            connection.execute(compose_insert_new(table, staging, names, key), [numbers])

    def _upsert(self, earlier: Mapping[int, str | None], condition: Condition | None) -> None:
        connection, table, key = self.connection, self.table, self.plan.options.primary_key
        staging = self._stage()
        self._refuse_repeated_keys(staging, key)
        if condition is not None:
            comes_again = compose_absent_from_staging(staging, key)
            clause = sql.SQL("({}) AND {}").format(condition.clause, comes_again)
            gone = Condition(clause, condition.parameters)
            self.deleted = delete_earlier(connection, table, earlier, gone)
        names = self.rows.names
        as_text = [name for name in names if self.rows.targets[name].name in NO_EQUALITY]
        with translated(f"merging rows into {table}", data=True):
            counts = connection.execute(
                compose_upsert(table, staging, names, key, as_text)
            ).fetchall()
        self.upserted = {number: (inserted, updated) for number, inserted, updated in counts}

    def _stage(self) -> Identifier:
        """Put the new rows into a temporary table that ends with the transaction."""
        staging = Identifier("pg_temp", STAGING)
        statement = ddl.compose_staging(STAGING, self.table, self.rows.names)
        with translated("creating a staging table (needs TEMP on the database)"):
            self.connection.execute(statement)
        self.rows.fill(staging)
        return staging

    def _refuse_repeated_keys(self, staging: Identifier, key: Sequence[str]) -> None:
        with translated("looking for repeated keys"):
            found = self.connection.execute(compose_repeated_keys(staging, key)).fetchall()
        for count, first, again in found:
            raise BadValue(
                f"{count} values of the primary key {list(key)} stand in more than one row; the "
                f"first of them in rows {first} and {again}. Nothing was written."
            )

    def _add_key(self, key: Key) -> None:
        with translated(f"adding the {key} to {self.table}"):
            statement = ddl.compose_key(self.table, key.columns, primary=key.primary)
            self._refusing_repeated(statement, str(key))

    def _refusing_repeated(self, statement: Composed, key: str) -> None:
        try:
            self.connection.execute(statement)
        except errors.UniqueViolation:
            raise BadValue(f"Rows repeat values of the {key}.") from None


def _referenced_key(existing: ExistingTable) -> tuple[str, ...]:
    """Return the key to match rows by: one whose loss would fire an action, if there is any."""
    acting = [key for key in existing.referencing if key.on_delete != NO_ACTION]
    return (acting or list(existing.referencing))[0].columns
