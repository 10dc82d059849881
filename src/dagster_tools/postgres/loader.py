"""Move the rows of one output into its table, inside the transaction that `write` opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from psycopg import errors, sql
from psycopg.sql import Composed, Identifier

from dagster_tools.errors import BadValue, DatabaseError, SchemaConflict
from dagster_tools.postgres import ddl
from dagster_tools.postgres.alter import Key
from dagster_tools.postgres.columns import ExistingTable
from dagster_tools.postgres.connection import (
    Connection,
    transaction,
    translated,
    working_memory,
)
from dagster_tools.postgres.deletion import Condition, Deletion, compose_condition
from dagster_tools.postgres.geometry import is_spatial
from dagster_tools.postgres.incoming import Plan, Rows, SelectedRows
from dagster_tools.postgres.merge import (
    EVERY_ROW,
    compose_absent_from_staging,
    compose_delete,
    compose_delete_and_count,
    compose_keep_last,
    compose_repeated_keys,
    compose_replace,
    compose_replace_kept,
    compose_srid_joined,
)
from dagster_tools.postgres.names import MATERIALIZATION_ID, Table
from dagster_tools.postgres.rows import different_srids
from dagster_tools.postgres.tracking import Counts
from dagster_tools.postgres.upsert import Staged, upsert

__all__ = ["Loader", "delete_earlier"]

STAGING = "dagster_tools_staging"
NO_ROW = Condition(sql.SQL("false").format(), ())
"""Nothing goes before the rows come in."""

SMALL_WORK_MEM = 1024
"""Kilobytes that every server allows; its default is 4096."""

Repeated: TypeAlias = Literal["error", "last"]

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
    with translated(f"deleting the old rows of {table}"), _room_for_keys(connection, condition):
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
    number: int = 0
    deleted: Mapping[str | None, int] = field(default_factory=dict)
    upserted: dict[int, tuple[int, int]] | None = None
    left_out: dict[int, int] = field(default_factory=dict)

    def create(self, *, indexed: bool, repeated: Repeated = "error") -> None:
        """Create the table, load it, and only then build its keys and indexes.

        Args:
            indexed: Build an index on `materialization_id`, since the table is shared.
            repeated: What becomes of rows that have the same primary key.
        """
        connection, table, options = self.connection, self.table, self.plan.options
        with translated(f"creating {table}"):
            connection.execute(ddl.compose_create_table(table, self.plan.wanted))
        self.rows.fill(table.identifier)
        if options.primary_key:
            self._add_key(Key(options.primary_key, primary=True), repeated=repeated)
        for column in self.plan.wanted:
            if column.unique:
                self._add_key(Key((column.name,)))
        indexes = [([c.name], is_spatial(c.type)) for c in self.plan.wanted if c.index]
        indexes += [([MATERIALIZATION_ID], False)] if indexed else []
        with translated(f"indexing {table}"):
            for columns, spatial in indexes:
                connection.execute(
                    ddl.compose_index(
                        table, columns, unique=False, concurrently=False, spatial=spatial
                    )
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
        *,
        upsert: bool = True,
        repeated: Repeated = "error",
    ) -> None:
        """Add the new rows to those of the earlier materializations.

        With a primary key, rows of the same key are updated where they differ. Before,
        the rows that `deletion` matches go, but for those whose key comes again.

        Args:
            upsert: False where a key that is there already is an error.
            repeated: What becomes of new rows that have the same primary key.

        Raises:
            BadValue: Two new rows have the same key.
            SchemaConflict: Their geometry has another CRS than that of rows that stay.
        """
        condition = (
            compose_condition(deletion, existing, "kept", first=2) if deletion is not None else None
        )
        upsert = upsert and bool(self.plan.options.primary_key)
        if upsert:
            self._upsert(existing, earlier, condition, repeated)
        else:
            self._put_in_place(existing, earlier, condition or NO_ROW)
        self._check_srids(existing, None if upsert or deletion is None else earlier)

    def counts(self) -> dict[str | None, Counts]:
        """Return what was done to the rows of each partition."""
        counted = {}
        for partition in self.rows.partitions:
            number, deleted = partition.materialization_id, self.deleted.get(partition.key, 0)
            came = self.rows.counts[partition.key] - self.left_out.get(number, 0)
            inserted, updated = (came, 0)
            if self.upserted is not None:
                inserted, updated = self.upserted.get(number, (0, 0))
            counted[partition.key] = Counts(inserted, updated, deleted, came - inserted - updated)
        return counted

    def _check_srids(
        self, existing: ExistingTable, joined: Mapping[int, str | None] | None
    ) -> None:
        """Refuse geometry in another CRS than that of rows it joins, where no type names one.

        Args:
            joined: The materializations of those; None for all other rows.
        """
        new = [partition.materialization_id for partition in self.rows.partitions]
        for name, srid in self.rows.srids.items():
            column = existing.column(name)
            if column is None:
                continue
            query = compose_srid_joined(
                self.table, name, column.storage.schema, others=joined is None
            )
            with translated(f"looking for geometry in {self.table}"):
                numbers = new if joined is None else list(joined)
                found = self.connection.execute(query, [numbers]).fetchone()
            if found is not None and found[0] != srid:
                raise different_srids(name, found[0], f"in {self.table}", srid)

    def _put_in_place(
        self,
        existing: ExistingTable,
        earlier: Mapping[int, str | None],
        condition: Condition | None,
    ) -> None:
        if existing.referencing:
            self._put_in_place_referenced(existing, earlier, condition)
        elif isinstance(self.rows, SelectedRows):
            self._put_in_place_selected(self.rows, existing, earlier, condition)
        else:
            self.deleted = delete_earlier(self.connection, self.table, earlier, condition)
            with _naming_keys(existing):
                self.rows.fill(self.table.identifier)

    def _put_in_place_selected(
        self,
        rows: SelectedRows,
        existing: ExistingTable,
        earlier: Mapping[int, str | None],
        condition: Condition | None,
    ) -> None:
        """Replace rows by those of a query, in one statement: it may read what it replaces."""
        clause, parameters = (
            (condition.clause, condition.parameters) if condition else (EVERY_ROW, ())
        )
        source = sql.SQL("(\n{}\n)").format(rows.selected)
        statement = compose_replace(self.table, source, rows.names, clause)
        with _naming_keys(existing), translated("running the query", data=True):
            counts = self.connection.execute(statement, [list(earlier), *parameters]).fetchall()
        self._count_replaced(counts, earlier)
        rows.count = sum(inserted for _number, inserted, _updated, _gone in counts)

    def _put_in_place_referenced(
        self,
        existing: ExistingTable,
        earlier: Mapping[int, str | None],
        condition: Condition | None,
    ) -> None:
        """Replace rows that a foreign key may reference, in one statement.

        The server checks references at its end, so a row may go and come again. An ON DELETE
        action would not wait for that: where there is one, rows whose key stays are updated
        in place, and only vanished keys are deleted.
        """
        table, names = self.table, self.rows.names
        clause, parameters = (
            (condition.clause, condition.parameters) if condition else (EVERY_ROW, ())
        )
        key = self._acting_key(existing)
        staging = self._stage()
        if key is None:
            statement = compose_replace(table, staging, names, clause)
        else:
            absent = [
                column.name
                for column in existing.columns
                if column.name not in (*names, MATERIALIZATION_ID) and not column.filled_by_server
            ]
            statement = compose_replace_kept(
                table, staging, names, key, absent=absent, condition=clause
            )
        with (
            translated(f"replacing rows of {table}", data=True),
            _room_for_keys(self.connection, condition),
        ):
            counts = self.connection.execute(statement, [list(earlier), *parameters]).fetchall()
        self._count_replaced(counts, earlier)
        if key is not None and any(count.unchanged for count in self.counts().values()):
            self._refuse_repeated_keys(staging, key, "referenced key")

    def _acting_key(self, existing: ExistingTable) -> tuple[str, ...] | None:
        """Return the key whose loss would fire an ON DELETE action, None where there is none."""
        keys = [key.columns for key in existing.referencing if key.on_delete != NO_ACTION]
        if not keys:
            return None
        if not set(keys[0]) <= set(self.rows.names):
            raise SchemaConflict(
                f"{self.table} is referenced by its columns {list(keys[0])}, and the frame lacks "
                f"some of them. Its columns are {list(self.rows.names)}."
            )
        return keys[0]

    def _count_replaced(
        self, counts: Sequence[tuple[int, int, int, int]], earlier: Mapping[int, str | None]
    ) -> None:
        """Sort the counts: of old materializations rows were deleted, of new ones all else."""
        deleted: dict[str | None, int] = {}
        self.upserted = {}
        for number, inserted, updated, gone in counts:
            if number in earlier:
                deleted[earlier[number]] = deleted.get(earlier[number], 0) + gone
            else:
                self.upserted[number] = (inserted, updated)
        self.deleted = deleted

    def _upsert(
        self,
        existing: ExistingTable,
        earlier: Mapping[int, str | None],
        condition: Condition | None,
        repeated: Repeated,
    ) -> None:
        table, key, rows = self.table, self.plan.options.primary_key, self.rows
        staging = self._stage()
        self._index_staging(staging, key, repeated)
        numbers = [partition.materialization_id for partition in rows.partitions]
        count = sum(rows.counts.values()) - sum(self.left_out.values())
        staged = Staged(staging, rows.targets, key, count, numbers)

        def delete() -> Mapping[str | None, int]:
            if condition is None:
                return {}
            comes_again = compose_absent_from_staging(staging, key)
            clause = sql.SQL("({}) AND {}").format(condition.clause, comes_again)
            gone = Condition(clause, condition.parameters)
            return delete_earlier(self.connection, table, earlier, gone)

        done = upsert(self.connection, existing, staged, delete)
        self.deleted = done.deleted
        self.upserted = {n: (done.inserted.get(n, 0), done.updated.get(n, 0)) for n in numbers}

    def _stage(self) -> Identifier:
        """Put the new rows into a temporary table that ends with the transaction."""
        staging = Identifier("pg_temp", self._staging)
        statement = ddl.compose_staging(self._staging, self.table, self.rows.names)
        step = "creating a staging table"
        try:
            with translated(step):
                self.connection.execute(statement)
        except DatabaseError as error:
            if error.sqlstate != errors.InsufficientPrivilege.sqlstate:
                raise
            info = self.connection.info
            raise DatabaseError(
                "This role may not create temporary tables, which an upsert needs, and a replace "
                "of rows that a foreign key references. Ask an administrator for: GRANT TEMPORARY "
                f"ON DATABASE {Identifier(info.dbname).as_string()} "
                f"TO {Identifier(info.user).as_string()};",
                sqlstate=error.sqlstate,
                step=step,
            ) from None
        self.rows.fill(staging)
        return staging

    @property
    def _staging(self) -> str:
        return f"{STAGING}_{self.number}" if self.number else STAGING

    def _index_staging(self, staging: Identifier, key: Sequence[str], repeated: Repeated) -> None:
        """Build the index that shows repeated keys; it costs a third of grouping by them."""
        statement = ddl.compose_staging_key(
            self._staging, {name: self.rows.targets[name] for name in key}
        )
        with translated("looking for repeated keys"):
            unique = self._is_unique(statement)
        if not unique and repeated == "last":
            self._leave_out_repeated(staging, key)
            unique = self._is_unique(statement)
        if not unique:
            self._refuse_repeated_keys(staging, key, "primary key")

    def _leave_out_repeated(self, target: Identifier, key: Sequence[str]) -> None:
        """Keep of the rows that share a key the one that came last."""
        with translated("leaving out repeated keys"):
            counts = self.connection.execute(compose_keep_last(target, key)).fetchall()
        self.left_out = dict(counts)

    def _refuse_repeated_keys(self, target: Identifier, key: Sequence[str], kind: str) -> None:
        with translated("looking for repeated keys"):
            found = self.connection.execute(compose_repeated_keys(target, key)).fetchall()
        for count, first, again in found:
            what = f"of the {kind} {list(key)}"
            raise BadValue(
                f"1 value {what} stands in more than one row, in rows {first} and {again}."
                if count == 1
                else f"{count} values {what} stand in more than one row, the first of them in "
                f"rows {first} and {again}."
            )

    def _add_key(self, key: Key, repeated: Repeated = "error") -> None:
        statement = ddl.compose_key(self.table, key.columns, primary=key.primary)
        with translated(f"adding the {key} to {self.table}"):
            unique = self._is_unique(statement)
            if not unique and repeated == "last":
                self._leave_out_repeated(self.table.identifier, key.columns)
                unique = self._is_unique(statement)
        if not unique:
            kind = "primary key" if key.primary else "unique column"
            self._refuse_repeated_keys(self.table.identifier, key.columns, kind)

    def _is_unique(self, statement: Composed) -> bool:
        """Build a unique index or a key, or tell that rows forbid it."""
        try:
            with transaction(self.connection):
                self.connection.execute(statement)
        except errors.UniqueViolation:
            return False
        return True

    def _refusing_repeated(self, statement: Composed, key: str) -> None:
        try:
            self.connection.execute(statement)
        except errors.UniqueViolation:
            raise BadValue(
                f"The rows repeat values of the {key}, among themselves or of rows that stay."
            ) from None


@contextmanager
def _room_for_keys(connection: Connection, condition: Condition | None) -> Iterator[None]:
    """Let the server hash the keys of a condition, or it may go through all of them for each row.

    That of `col IN (…) OR col IN (…)` it decides by what it reckons to fit into `work_mem`.
    """
    if condition is None or condition.kilobytes < SMALL_WORK_MEM:
        yield
        return
    with working_memory(connection, condition.kilobytes):
        yield


@contextmanager
def _naming_keys(existing: ExistingTable) -> Iterator[None]:
    """Say which columns a key has, where the server only says what it is called."""
    try:
        yield
    except BadValue as error:
        for index in existing.indexes:
            if index.unique and index.name == error.constraint:
                key = Key(index.columns, primary=index.primary)
                reason = f"repeats values of the {key}, or those of a row that stays"
                raise BadValue(reason, row=error.row, constraint=index.name) from None
        raise
