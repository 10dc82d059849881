"""What works for the connected role, and what to do about what does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from psycopg.sql import Identifier

from dagster_tools.postgres.connection import Connection, translated
from dagster_tools.postgres.tracking import Tracking

__all__ = ["Finding", "examine"]

OLDEST_VERSION = 140_000


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Args:
        state: `ok`, `note` where something optional is missing, `bad` where writes will fail.
        remedy: What to do about it, empty where nothing is to be done.
    """

    subject: str
    state: Literal["ok", "note", "bad"]
    found: str
    remedy: str = ""


def examine(connection: Connection, tracking: Tracking, schema: str) -> list[Finding]:
    """Look at the server and the role's privileges; changes nothing.

    Args:
        schema: The schema assets are to be written to.
    """
    with translated("examining the server"):
        return [
            *_server(connection),
            *_tls(connection),
            *_pooler(connection),
            *_privileges(connection, schema),
            *_postgis(connection),
            *_tracking(connection, tracking),
        ]


def _server(connection: Connection) -> Iterator[Finding]:
    info = connection.info
    place = f"{info.dbname} on {info.host}:{info.port} as {info.user}"
    yield Finding("connection", "ok", place)
    version = info.server_version
    text = f"PostgreSQL {version // 10_000}.{version % 10_000}"
    if version < OLDEST_VERSION:
        yield Finding("version", "bad", text, "Use PostgreSQL 14 or newer.")
    else:
        yield Finding("version", "ok", text)
    [(replica,)] = connection.execute("SELECT pg_catalog.pg_is_in_recovery()").fetchall()
    if replica:
        yield Finding(
            "role of server", "note", "a replica, which takes no writes", "Write to the primary."
        )


def _tls(connection: Connection) -> Iterator[Finding]:
    rows = connection.execute(
        "SELECT ssl, version FROM pg_catalog.pg_stat_ssl WHERE pid = pg_catalog.pg_backend_pid()"
    ).fetchall()
    encrypted, version = rows[0] if rows else (False, None)
    mode = connection.info.get_parameters().get("sslmode", "prefer")
    local = connection.info.host.startswith("/") or connection.info.host in {
        "localhost",
        "127.0.0.1",
        "::1",
    }
    if encrypted and mode == "verify-full":
        yield Finding("TLS", "ok", f"{version}, server verified")
    elif encrypted:
        yield Finding(
            "TLS",
            "note",
            f"{version}, but sslmode={mode} does not prove who the server is",
            "Set sslmode='verify-full' and sslrootcert.",
        )
    elif local:
        yield Finding("TLS", "ok", "none, and the server is on this machine")
    else:
        yield Finding("TLS", "note", "none: passwords and rows travel in the clear", "Set sslmode.")


def _pooler(connection: Connection) -> Iterator[Finding]:
    # A pooler hands out process numbers of its own; the server tells the real one.
    [(pid,)] = connection.execute("SELECT pg_catalog.pg_backend_pid()").fetchall()
    if pid == connection.info.backend_pid:
        yield Finding("pooler", "ok", "none")
    else:
        yield Finding("pooler", "ok", "a pooler such as PgBouncer; transaction mode is enough")


def _privileges(connection: Connection, schema: str) -> Iterator[Finding]:
    role = Identifier(connection.info.user).as_string()
    database = Identifier(connection.info.dbname).as_string()
    quoted = Identifier(schema).as_string()
    [(create, temp, exists, usable)] = connection.execute(
        """
        SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE'),
               pg_catalog.has_database_privilege(pg_catalog.current_database(), 'TEMP'),
               EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1),
               coalesce((
                   SELECT pg_catalog.has_schema_privilege(oid, 'CREATE, USAGE')
                   FROM pg_catalog.pg_namespace
                   WHERE nspname = $1
               ), false)
        """,
        [schema],
    ).fetchall()
    if create:
        yield Finding("new schemas", "ok", "may be created")
    else:
        yield Finding(
            "new schemas",
            "note",
            "may not be created; those that exist are enough",
            f"GRANT CREATE ON DATABASE {database} TO {role};",
        )
    if temp:
        yield Finding("staging", "ok", "temporary tables may be made")
    else:
        yield Finding(
            "staging",
            "bad",
            "upserts and referenced tables need temporary tables",
            f"GRANT TEMPORARY ON DATABASE {database} TO {role};",
        )
    if usable or (not exists and create):
        yield Finding(f"schema {schema}", "ok", "tables may be made" if exists else "will be made")
    elif exists:
        yield Finding(
            f"schema {schema}",
            "bad",
            "no tables may be made in it",
            f"GRANT CREATE, USAGE ON SCHEMA {quoted} TO {role};",
        )
    else:
        yield Finding(
            f"schema {schema}",
            "bad",
            "does not exist and may not be created",
            f"CREATE SCHEMA {quoted} AUTHORIZATION {role};",
        )


def _postgis(connection: Connection) -> Iterator[Finding]:
    rows = connection.execute(
        """
        SELECT default_version, installed_version
        FROM pg_catalog.pg_available_extensions
        WHERE name = 'postgis'
        """
    ).fetchall()
    available, installed = rows[0] if rows else (None, None)
    if installed:
        yield Finding("PostGIS", "ok", str(installed))
    elif available:
        yield Finding(
            "PostGIS", "note", f"{available} is there, not in this database",
            "CREATE EXTENSION postgis;",
        )  # fmt: skip
    else:
        yield Finding(
            "PostGIS", "note", "not on the server; only geometry needs it",
            "Debian: apt-get install postgresql-postgis",
        )  # fmt: skip


def _tracking(connection: Connection, tracking: Tracking) -> Iterator[Finding]:
    role = Identifier(connection.info.user).as_string()
    rows = connection.execute(
        """
        SELECT c.relname, pg_catalog.has_table_privilege(c.oid, 'SELECT')
               AND pg_catalog.has_table_privilege(c.oid, 'INSERT')
               AND (c.relname = 'materializations'
                    OR pg_catalog.has_table_privilege(c.oid, 'UPDATE'))
        FROM pg_catalog.pg_class AS c
        JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = $1
          AND c.relname IN ('assets', 'materializations', 'leftovers', 'watermarks')
        """,
        [tracking.schema],
    ).fetchall()
    subject = f"tracking in {tracking.schema}"
    if not rows:
        yield Finding(subject, "ok", "no tables yet; the first write makes them")
    elif all(usable for _name, usable in rows):
        yield Finding(subject, "ok", "the tables may be used")
    else:
        schema = Identifier(tracking.schema).as_string()
        yield Finding(
            subject,
            "bad",
            "the tables may not be used",
            f"GRANT USAGE ON SCHEMA {schema} TO {role}; "
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}; "
            f"GRANT USAGE, UPDATE ON ALL SEQUENCES IN SCHEMA {schema} TO {role};",
        )
