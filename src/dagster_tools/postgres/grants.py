"""Give roles USAGE on the schema and SELECT on the table, once."""

from __future__ import annotations

import time
from collections.abc import Sequence

from psycopg import errors, sql
from psycopg.sql import Composed, Identifier

from dagster_tools.errors import ConfigurationError, GrantFailed
from dagster_tools.postgres.connection import Connection, translated
from dagster_tools.postgres.names import Table
from dagster_tools.postgres.tracking import lock_grants

__all__ = ["check_roles", "grant_select"]

PUBLIC = "public"
RETRIES = 5
FIRST_PAUSE = 0.05
"""Seconds before the first retry; each further one waits twice as long."""


def check_roles(connection: Connection, roles: Sequence[str]) -> None:
    """Refuse a role that does not exist, before anything is written.

    Raises:
        ConfigurationError: Names the roles that are missing.
    """
    asked = [role for role in roles if role.lower() != PUBLIC]
    if not asked:
        return
    with translated("looking roles up"):
        missing = connection.execute(
            """
            SELECT role
            FROM pg_catalog.unnest($1::text[]) AS role
            WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = role)
            """,
            [asked],
        ).fetchall()
    if missing:
        names = [row[0] for row in missing]
        statements = " ".join(f"CREATE ROLE {Identifier(name).as_string()};" for name in names)
        raise ConfigurationError(
            f"users names roles that do not exist on this server: {names}. Correct the names, "
            f"or create them: {statements}"
        )


def grant_select(connection: Connection, table: Table, roles: Sequence[str]) -> None:
    """Grant what is not granted yet, as the last statements of the writing transaction.

    Grants of all writers take turns: two at once on one schema end in "tuple concurrently
    updated", and even a GRANT of what is granted already does. Where somebody else grants
    at the same time it is tried again.

    Raises:
        GrantFailed: The role that writes may not grant; says who may.
    """
    if not roles or not _lacking(connection, table, roles):
        return
    with translated("granting privileges"):
        lock_grants(connection)
    for statement in _lacking(connection, table, roles):
        _grant(connection, statement)
    left = _lacking(connection, table, roles)
    if left:
        raise GrantFailed(
            f"PostgreSQL granted nothing for: {'; '.join(item.as_string() for item in left)}. "
            f"Only {_owners(connection, table)}, or a role with the grant option, may grant. "
            "Run it once as that role, or make the writing role a member of it.",
            step="granting privileges",
        )


def _grant(connection: Connection, statement: Composed) -> None:
    pause = FIRST_PAUSE
    for attempt in range(RETRIES + 1):
        try:
            with connection.transaction():
                connection.execute(statement)
        except errors.InternalError_ as error:
            # XX000 is any internal error; this one PostgreSQL has no code of its own for.
            concurrent = "tuple concurrently updated" in str(error.diag.message_primary)
            if not concurrent or attempt == RETRIES:
                raise _failed(statement, error) from None
        except (errors.InsufficientPrivilege, errors.DependentObjectsStillExist) as error:
            raise _failed(statement, error) from None
        else:
            return
        time.sleep(pause)
        pause *= 2


def _failed(statement: Composed, error: errors.Error) -> GrantFailed:
    return GrantFailed(
        f"{statement.as_string()} failed: {error.diag.message_primary} (SQLSTATE "
        f"{error.sqlstate}).",
        sqlstate=error.sqlstate,
        step="granting privileges",
    )


def _lacking(connection: Connection, table: Table, roles: Sequence[str]) -> list[Composed]:
    """Return the GRANTs that would change something; what a role inherits does not count."""
    with translated("reading privileges"):
        rows = connection.execute(
            """
            SELECT role, (
                SELECT pg_catalog.count(*) > 0
                FROM pg_catalog.pg_namespace AS n,
                     pg_catalog.aclexplode(
                         coalesce(n.nspacl, pg_catalog.acldefault('n', n.nspowner))
                     ) AS granted
                WHERE n.nspname = $1
                  AND granted.grantee = grantee.oid
                  AND granted.privilege_type = 'USAGE'
            ), (
                SELECT pg_catalog.count(*) > 0
                FROM pg_catalog.pg_class AS c
                JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace,
                     pg_catalog.aclexplode(
                         coalesce(c.relacl, pg_catalog.acldefault('r', c.relowner))
                     ) AS granted
                WHERE n.nspname = $1
                  AND c.relname = $2
                  AND granted.grantee = grantee.oid
                  AND granted.privilege_type = 'SELECT'
            )
            FROM pg_catalog.unnest($3::text[]) AS role
            CROSS JOIN LATERAL (
                SELECT coalesce(
                    (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = role), 0::oid
                ) AS oid
            ) AS grantee
            """,
            [table.schema, table.name, list(roles)],
        ).fetchall()
    lacking: list[Composed] = []
    for role, usage, select in rows:
        grantee = sql.SQL("PUBLIC") if role.lower() == PUBLIC else Identifier(role)
        if not usage:
            lacking.append(
                sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(Identifier(table.schema), grantee)
            )
        if not select:
            lacking.append(sql.SQL("GRANT SELECT ON {} TO {}").format(table.identifier, grantee))
    return lacking


def _owners(connection: Connection, table: Table) -> str:
    with translated("looking owners up"):
        row = connection.execute(
            """
            SELECT pg_catalog.pg_get_userbyid(n.nspowner), pg_catalog.pg_get_userbyid(c.relowner)
            FROM pg_catalog.pg_namespace AS n
            JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid
            WHERE n.nspname = $1
              AND c.relname = $2
            """,
            [table.schema, table.name],
        ).fetchone()
    if row is None:
        return "the owner"
    return f"{row[0]!r} (owner of the schema) and {row[1]!r} (owner of the table)"
