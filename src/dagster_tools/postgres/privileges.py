"""Say which GRANTs are missing where the server refuses for want of a privilege.

It is asked for them only then: a role that may do all it has to pays nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import resources
from typing import Literal, TypeAlias

import psycopg
from psycopg import errors
from psycopg.sql import Identifier

from dagster_tools.errors import DatabaseError
from dagster_tools.postgres.connection import Connection, connect_beside
from dagster_tools.postgres.names import Table

__all__ = ["Purpose", "explained"]

Purpose: TypeAlias = Literal["read", "write", "look up", "record"]
"""What is done: to rows of the table, and to what the tracking tables know of them."""

_QUERY = resources.files(__package__).joinpath("privileges.sql").read_text(encoding="utf-8")


@contextmanager
def explained(
    connection: Connection, table: Table, tracking_schema: str, *purposes: Purpose
) -> Iterator[None]:
    """Add to an error about privileges the GRANTs that cure it, for an administrator to run."""
    try:
        yield
    except DatabaseError as error:
        if error.sqlstate != errors.InsufficientPrivilege.sqlstate:
            raise
        grants = _missing(connection, table, tracking_schema, purposes)
        if not grants:
            raise
        raise DatabaseError(
            f"{error}. Ask an administrator for: {' '.join(grants)}",
            sqlstate=error.sqlstate,
            step=error.step,
        ) from None


def _missing(
    connection: Connection, table: Table, tracking_schema: str, purposes: tuple[Purpose, ...]
) -> list[str]:
    role = Identifier(connection.info.user).as_string()
    names = [table.schema, table.name, tracking_schema]
    try:
        # The connection itself may be in a transaction that has failed.
        with closing(connect_beside(connection)) as asking:
            rows = asking.execute(_QUERY, names).fetchall()
    except psycopg.Error:
        return []
    return [f"GRANT {grant} TO {role};" for purpose, grant in rows if purpose in purposes]
