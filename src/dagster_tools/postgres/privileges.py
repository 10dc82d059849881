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
from dagster_tools.postgres.connection import connect_again
from dagster_tools.postgres.names import Table

__all__ = ["Purpose", "explained"]

Purpose: TypeAlias = Literal[
    "read", "write", "look up", "record", "look at the feed", "keep the feed", "deliver"
]
"""What is done: to rows of the table; to what the tracking tables know of them; to the tables of
the SharePoint feed, of which some are written to in the transaction that writes rows, too."""

_QUERY = resources.files(__package__).joinpath("privileges.sql").read_text(encoding="utf-8")


@contextmanager
def explained(
    uri: str, table: Table | None, tracking_schema: str, *purposes: Purpose
) -> Iterator[None]:
    """Add to an error about privileges the GRANTs that cure it, for an administrator to run.

    Args:
        uri: Of the connection that a block uses (`libpq_uri`); the server is asked over another,
            since that one may be broken or closed by then.
    """
    try:
        yield
    except DatabaseError as error:
        if error.sqlstate != errors.InsufficientPrivilege.sqlstate:
            raise
        grants = _missing(uri, table, tracking_schema, purposes)
        if not grants:
            raise
        raise DatabaseError(
            f"{error}. Ask an administrator for: {' '.join(grants)}",
            sqlstate=error.sqlstate,
            step=error.step,
        ) from None


def _missing(
    uri: str, table: Table | None, tracking_schema: str, purposes: tuple[Purpose, ...]
) -> list[str]:
    place = [table.schema, table.name] if table is not None else [None, None]
    try:
        with closing(connect_again(uri)) as asking:
            role = Identifier(asking.info.user).as_string()
            rows = asking.execute(_QUERY, [*place, tracking_schema]).fetchall()
    except psycopg.Error:
        return []
    return [f"GRANT {grant} TO {role};" for purpose, grant in rows if purpose in purposes]
