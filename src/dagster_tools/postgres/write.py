"""The story of one output: rows, their tracking and a new table in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack

import pyarrow as pa
from psycopg.sql import Composed

from dagster_tools.errors import ConfigurationError, DatabaseError
from dagster_tools.postgres.alter import TableChangedError
from dagster_tools.postgres.catalog import Catalog, describe_query
from dagster_tools.postgres.connection import Connection, libpq_uri, transaction, translated
from dagster_tools.postgres.grants import check_roles
from dagster_tools.postgres.incoming import CopiedRows, Plan, Rows, SelectedRows
from dagster_tools.postgres.names import check_column_names
from dagster_tools.postgres.planning import check_key_present, plan_frame, plan_query
from dagster_tools.postgres.privileges import Purpose, explained
from dagster_tools.postgres.rows import CallerError, Feed, Source, Stream, open_source
from dagster_tools.postgres.table_write import (
    EmptyWrite,
    Merge,
    Output,
    RowsWrite,
    TableWrite,
    Written,
)
from dagster_tools.postgres.tracking import Partition

__all__ = [
    "Merge",
    "Output",
    "Written",
    "declare_table",
    "table_write",
    "write_query",
    "write_table",
    "write_together",
]

ATTEMPTS = 10
"""How often a write plans again because the table changed under it."""


def write_table(
    connection: Connection,
    output: Output,
    data: pa.Table | Stream,
    *,
    by_partition: bool = False,
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

    Raises:
        ConfigurationError, BadValue, SchemaConflict: Refused; nothing was written.
        DatabaseError: The server failed; nothing was written, unless the connection broke
            while COMMIT was under way. A re-run then writes the same rows again.
    """
    write = table_write(connection, output, data, by_partition=by_partition)
    return write_together(connection, [write])[0]


def write_query(connection: Connection, output: Output, query: Composed) -> Written:
    """Write what a SELECT returns; no row leaves the server. Guarantees are `write_table`'s.

    Args:
        query: One statement that returns rows, without parameters.

    Raises:
        ConfigurationError: The output covers several partitions.
    """
    _check_target(connection, output)
    if len(output.lineage.partition_keys) > 1:
        raise ConfigurationError(
            f"The run covers {len(output.lineage.partition_keys)} partitions, and a Query does "
            "not say which row belongs to which. Run one partition at a time "
            "(backfill_policy=BackfillPolicy.multi_run(1))."
        )
    columns = describe_query(connection, query)
    check_column_names(list(columns))
    if output.merge is not None:
        check_key_present(output.options.primary_key, list(columns))

    def plan(catalog: Catalog) -> Plan:
        return plan_query(connection, catalog, columns, output.options)

    def selected(plan: Plan, partitions: Sequence[Partition]) -> Rows:
        casts = {
            column.name: column.type
            for column in plan.wanted
            if column.name in columns and column.type != columns[column.name]
        }
        return SelectedRows(
            connection, query, list(columns), plan.evolution.targets, casts, partitions[0]
        )

    return write_together(connection, [RowsWrite(connection, output, plan, selected)])[0]


def declare_table(connection: Connection, output: Output) -> Written:
    """Make the table an asset declares, without rows, and record the materialization.

    Without declared columns there is nothing to make it of, and only that is recorded.
    """
    columns = output.options.columns
    if not columns:
        return write_together(connection, [EmptyWrite(connection, output)])[0]
    _check_target(connection, output)
    nothing = pa.table({name: pa.nulls(0) for name in columns})
    source = open_source(nothing, output.options.chunk_size, by_partition=False)
    write = _rows_write(connection, output, source)
    return write_together(connection, [write])[0]


def table_write(
    connection: Connection,
    output: Output,
    data: pa.Table | Stream,
    *,
    by_partition: bool = False,
    number: int = 0,
) -> TableWrite:
    """Make the rows of one output ready for `write_together`; a stream's first are read.

    Args:
        number: Of this table among those of its transaction.

    Raises:
        ConfigurationError: The options do not fit the rows.
    """
    _check_target(connection, output)
    source = open_source(data, output.options.chunk_size, by_partition=by_partition)
    if source.empty:
        return EmptyWrite(connection, output)
    return _rows_write(connection, output, source, number)


def _rows_write(
    connection: Connection, output: Output, source: Source, number: int = 0
) -> RowsWrite:
    check_column_names(source.schema.names)
    if output.merge is not None:
        check_key_present(output.options.primary_key, source.schema.names)

    def plan(catalog: Catalog) -> Plan:
        return plan_frame(connection, catalog, source, output.options)

    def copied(plan: Plan, partitions: Sequence[Partition]) -> Rows:
        key = plan.options.primary_key
        feed = Feed(source, partitions, plan.evolution.targets, plan.wanted, key)
        return CopiedRows(connection, output.table, plan, feed, output.log)

    return RowsWrite(connection, output, plan, copied, number)


def write_together(
    connection: Connection,
    writes: Sequence[TableWrite],
    before_commit: Callable[[], None] = lambda: None,
) -> list[Written]:
    """Write several tables in one transaction; again where somebody changed one in between.

    Args:
        writes: In an order all writers of these tables keep, as that of their names.
        before_commit: Runs in the transaction when all rows are there. What it raises undoes
            them.

    Raises:
        As `write_table`.
    """
    tables = ", ".join(str(write.output.table) for write in writes)
    for _attempt in range(ATTEMPTS):
        try:
            with ExitStack() as explaining:
                for write in writes:
                    explaining.enter_context(_explained(connection, write.output))
                return _write_once(connection, writes, before_commit, tables)
        except CallerError as own:
            raise own.error from own.error.__cause__
        except TableChangedError:
            writes[0].output.log.info("%s changed while it was being written; once more.", tables)
    raise DatabaseError(
        f"{tables} kept changing while this write was being planned, {ATTEMPTS} times in a "
        "row. Another process alters it again and again; run the asset again when it is done.",
        step="planning the write",
    )


def _write_once(
    connection: Connection,
    writes: Sequence[TableWrite],
    before_commit: Callable[[], None],
    tables: str,
) -> list[Written]:
    try:
        for write in writes:
            write.prepare()
        with translated(f"committing rows of {tables}"), transaction(connection, long=True):
            for write in writes:
                write.take_turn()
            written = [write.move() for write in writes]
            for write in writes:
                if write.output.before_commit is not None:
                    write.output.before_commit(connection)
            before_commit()
            for write in writes:
                write.grant()
    except BaseException:
        for write in writes:
            write.abandon()
        raise
    return [write.finish(done) for write, done in zip(writes, written, strict=True)]


def _check_target(connection: Connection, output: Output) -> None:
    output.tracking.check_target(output.table)
    check_roles(connection, output.options.users)


def _explained(connection: Connection, output: Output) -> AbstractContextManager[None]:
    purposes: tuple[Purpose, ...] = ("read", "write", "look up", "record")
    return explained(libpq_uri(connection), output.table, output.tracking.schema, *purposes)
