"""The story of an SQL output: statements in the server, their tracking and grants, in one."""

from __future__ import annotations

from collections.abc import Mapping

import psycopg

from dagster_tools.errors import ConfigurationError
from dagster_tools.postgres.catalog import fetch_catalog
from dagster_tools.postgres.connection import Connection, libpq_uri, transaction, translated
from dagster_tools.postgres.grants import check_roles, grant_select
from dagster_tools.postgres.privileges import explained
from dagster_tools.postgres.statements import Statement, split_statements
from dagster_tools.postgres.tracking import lock_table
from dagster_tools.postgres.write import Output, Written, write_query
from dagster_tools.sql import SQL, Query

__all__ = ["run_sql"]


def run_sql(
    connection: Connection, output: Output, sql: SQL | Query, *, environment: str, retry: bool
) -> Written:
    """Run statements, or make a table of a query, all or nothing.

    `SQL` runs as it is, with one materialization recorded; rows its statements insert into
    the asset's table bear it. `Query` goes the way of a frame (`write_query`), unless it is
    a statement that returns no rows.

    Args:
        environment: Where the statements run; a relation from elsewhere is not there.
        retry: The Dagster run may have done this already: then it is not done again.

    Raises:
        ConfigurationError: A relation of another environment, COMMIT among the statements.
        DatabaseError: A statement failed; says which. Nothing is left of the others.
    """
    for name, relation in sql.relations.items():
        if relation.environment != environment:
            raise ConfigurationError(
                f"{{{name}}} is in {relation.environment} and the statement runs in "
                f"{environment}: one server cannot see the other. Load it as a frame instead."
            )
    statements = split_statements(sql, lambda text, values: _quoted(connection, text, values))
    if isinstance(sql, Query):
        if len(statements) != 1:
            raise ConfigurationError(
                f"A Query is one statement, not {len(statements)}. Use SQL for several."
            )
        if statements[0].returns_rows:
            return write_query(connection, output, statements[0].as_sql)
    with explained(
        libpq_uri(connection), output.table, output.tracking.schema, "look up", "record"
    ):
        return _run_statements(connection, output, statements, retry=retry)


def _run_statements(
    connection: Connection, output: Output, statements: list[Statement], *, retry: bool
) -> Written:
    table, tracking, lineage = output.table, output.tracking, output.lineage
    tracking.check_target(table)
    check_roles(connection, output.options.users)
    before = fetch_catalog(connection, table, tracking.schema)
    if not before.tracking_exists:
        tracking.create(connection)
    with translated("committing the statements"), transaction(connection, long=True):
        with translated(f"locking {table}"):
            lock_table(connection, table, first_write=False)
        partitions = tracking.lock_partitions(connection, table, lineage)
        if retry and tracking.has_run(connection, partitions, lineage.run_id):
            output.log.info("This run has run the statements already; they are not run again.")
        else:
            tracking.set_materialization(connection, partitions[0])
            for number, statement in enumerate(statements, 1):
                with translated(f"running statement {number} of {len(statements)}"):
                    connection.execute(statement.as_sql)
            tracking.record(connection, lineage, partitions, counts=None)
            if output.before_commit is not None:
                output.before_commit(connection)
        existing = fetch_catalog(connection, table, tracking.schema).existing
        if existing is not None:
            grant_select(connection, table, output.options.users)
        elif output.options.users:
            output.log.warning(
                "users of %s get no privilege: the statements made no table of that name. "
                "Point schema and table of the asset's metadata at the one they make.",
                table,
            )
    return Written(before.database, table, existing, counts={}, rows=None)


def _quoted(connection: Connection, text: str, values: Mapping[str, object]) -> str:
    """Quote values into a text; DDL, and several statements at once, take no parameters."""
    cursor: psycopg.ClientCursor[tuple[object, ...]] = psycopg.ClientCursor(connection)
    try:
        return cursor.mogrify(text, values)
    except psycopg.Error as error:
        raise ConfigurationError(
            f"The parameters do not fit the text: {error}. Those given are {sorted(values)}; a "
            "literal % beside them is written %%."
        ) from error
