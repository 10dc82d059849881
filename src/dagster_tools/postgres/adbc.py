"""The ADBC driver's connection: COPY decoded into Arrow, and questions answered as psycopg does.

The driver's DBAPI layer would import pandas and Polars where they are installed; this is the
layer beneath it.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import adbc_driver_manager
import adbc_driver_postgresql
import pyarrow as pa
from psycopg.sql import Composed

from dagster_tools.errors import DagsterToolsError, DatabaseError
from dagster_tools.postgres.connection import server_message

__all__ = ["AdbcSnapshot", "adbc_snapshot"]


@dataclass(frozen=True, slots=True)
class AdbcSnapshot:
    """A read-only transaction, all of whose statements see the same."""

    connection: adbc_driver_manager.AdbcConnection

    def execute(self, query: Composed, params: Sequence[object]) -> _Answer:
        """Ask what psycopg could be asked, with `$1` for parameters."""
        with (
            adbc_driver_manager.AdbcStatement(self.connection) as statement,
            _translated("looking the rows up"),
        ):
            statement.set_sql_query(query.as_string())
            if params:  # a batch of nothing would run the statement no times
                names = [f"${number}" for number, _value in enumerate(params, 1)]
                bound = pa.record_batch([_bound(value) for value in params], names)
                schema, array = bound.__arrow_c_array__()
                statement.bind(array, schema)
            return _Answer(_result(statement).read_all())

    def stream(self, query: Composed, step: str) -> Generator[pa.RecordBatch]:
        """Yield the rows of a query, which has no parameters, as COPY brings them.

        Raises:
            DatabaseError: The server failed, or the connection did.
        """
        with adbc_driver_manager.AdbcStatement(self.connection) as statement:
            with _translated(step):
                statement.set_sql_query(query.as_string())
                arriving = _result(statement)
            while True:
                with _translated(step):
                    batch = next(arriving, None)
                if batch is None:
                    return
                yield batch


@contextmanager
def adbc_snapshot(uri: str) -> Iterator[AdbcSnapshot]:
    """Connect, and open a read-only transaction that sees one snapshot.

    Raises:
        DatabaseError: No connection.
    """
    with _translated("connecting for COPY"):
        connection = adbc_driver_manager.AdbcConnection(_driver(uri))
    with connection:
        with _translated("opening a read-only transaction"):
            _run(connection, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        yield AdbcSnapshot(connection)
        # The end of the connection would end it, too, but then PgBouncer could not use the
        # server's end of it again.
        with _translated("closing a read-only transaction"):
            _run(connection, "COMMIT")


@lru_cache(maxsize=8)
def _driver(uri: str) -> adbc_driver_manager.AdbcDatabase:
    """Open the driver on a database, once in a process: it reads the whole catalog to do so.

    Kept is what each type's OID means, no connection. Enums made later arrive as bytes of
    an unknown type, which `decode` takes for the text they are.
    """
    database: adbc_driver_manager.AdbcDatabase = adbc_driver_postgresql.connect(uri)
    return database


def _run(connection: adbc_driver_manager.AdbcConnection, statement: str) -> None:
    with adbc_driver_manager.AdbcStatement(connection) as running:
        running.set_sql_query(statement)
        running.execute_update()


def _result(statement: adbc_driver_manager.AdbcStatement) -> pa.RecordBatchReader:
    handle, _rows = statement.execute_query()
    # The driver's own way to pyarrow, without its DBAPI layer.
    return pa.RecordBatchReader._import_from_c(handle.address)  # noqa: SLF001  # no public one takes an address


# --- questions and answers ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Answer:
    """Rows as psycopg's cursors return them."""

    table: pa.Table

    def fetchall(self) -> list[tuple[Any, ...]]:
        columns = [_values(column) for column in self.table.columns]
        return list(zip(*columns, strict=True))

    def fetchone(self) -> tuple[Any, ...] | None:
        return next(iter(self.fetchall()), None)


def _values(column: pa.ChunkedArray) -> list[Any]:
    values: list[Any] = column.to_pylist()
    if not isinstance(column.type, pa.JsonType):
        return values
    return [None if value is None else json.loads(value) for value in values]


def _bound(value: object) -> pa.Array:
    """Return a parameter, which the statement casts where its type is not clear."""
    if isinstance(value, (list, tuple)):
        numbers = bool(value) and all(isinstance(item, int) for item in value)
        return pa.array([value], pa.list_(pa.int64() if numbers else pa.string()))
    return pa.array([value])


@contextmanager
def _translated(step: str) -> Iterator[None]:
    try:
        yield
    except (adbc_driver_manager.Error, OSError, pa.ArrowException) as error:
        if isinstance(error, DagsterToolsError):
            raise
        sqlstate = getattr(error, "sqlstate", None)
        # Errors of a stream that runs bring no SQLSTATE; what they quote may be a row's value.
        message = server_message(str(error), sqlstate or "22000")
        raise DatabaseError(f"{message} (while {step})", sqlstate=sqlstate, step=step) from None
