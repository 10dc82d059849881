"""Settings → connection, and driver errors translated here, once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeAlias
from urllib.parse import quote

import psycopg
from psycopg import errors
from psycopg.pq import Conninfo, TransactionStatus
from psycopg.rows import TupleRow
from psycopg.sql import Composed

from dagster_tools.errors import BadValue, ConfigurationError, DatabaseError

__all__ = [
    "Asked",
    "Connection",
    "ConnectionSettings",
    "connect",
    "connect_again",
    "libpq_uri",
    "server_message",
    "transaction",
    "translated",
    "url_settings",
    "working_memory",
]

Connection: TypeAlias = psycopg.Connection[TupleRow]

CONNECT_TIMEOUT = 10
"""Seconds, unless the settings or libpq's environment say otherwise."""

KEEPALIVES = {
    "keepalives_idle": "60",
    "keepalives_interval": "15",
    "keepalives_count": "4",
    "tcp_user_timeout": "120000",
}
"""A server that vanished without a word is given up after two minutes; Linux would take hours."""

CANCEL_TIMEOUT = 5.0
"""Seconds that a statement gets to be canceled."""


class Asked(Protocol):
    """What answers a question: psycopg's connection, or a snapshot of the ADBC driver's."""

    def execute(self, query: Composed, params: Sequence[object]) -> Answer:
        """Return the answer to a question with `$1` for parameters."""
        ...


class Answer(Protocol):
    """The rows of an answer, as psycopg's cursors return them."""

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return all rows."""
        ...

    def fetchone(self) -> tuple[Any, ...] | None:
        """Return the first row, None where there is none."""
        ...


_LOOK_FOR_CLIENT = """
SELECT CASE WHEN pg_catalog.version() LIKE '%linux%' THEN
    pg_catalog.set_config('client_connection_check_interval', '2s', true)
END
"""
"""Servers on other systems than Linux may not know how, and refuse the setting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings:
    """Where to connect and as whom; None leaves a setting to libpq's own environment.

    libpq's environment is what `psql` uses too: the `PG*` variables, the service
    file, `.pgpass` (documentation, "libpq Environment Variables").
    """

    host: str | None = None
    port: int | None = None
    dbname: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    sslmode: str | None = None
    sslrootcert: str | None = None
    sslcert: str | None = None
    sslkey: str | None = None
    connect_timeout: int | None = None
    application_name: str | None = None

    def keywords(self) -> dict[str, str]:
        """Return libpq's keywords for what is set, and this package's defaults."""
        given = {item.name: getattr(self, item.name) for item in fields(self)}
        keywords = {key: str(value) for key, value in given.items() if value is not None}
        known = _libpq_defaults()
        keywords.setdefault("application_name", known.get("application_name") or "dagster-tools")
        if not known.get("connect_timeout"):
            keywords.setdefault("connect_timeout", str(CONNECT_TIMEOUT))
        for keyword, value in KEEPALIVES.items():
            if not known.get(keyword):
                keywords.setdefault(keyword, value)
        return keywords

    def __str__(self) -> str:
        known = _libpq_defaults() | self.keywords()
        shown = ("host", "port", "dbname", "user")
        if not known.get("dbname"):
            known["dbname"] = known.get("user") or ""
        return ", ".join(f"{key}={known.get(key) or '(libpq default)'}" for key in shown)


def connect(settings: ConnectionSettings) -> Connection:
    """Open a connection in autocommit mode; transactions are opened explicitly.

    Nothing is prepared and nothing is set on the session, so the connection may
    be one of PgBouncer's in transaction mode.

    Raises:
        DatabaseError: Within `connect_timeout`; names host, port, database and user.
    """
    try:
        return _opened(**settings.keywords())
    except psycopg.Error as error:
        reason = _scrubbed(str(error), settings.password)
        advice = "".join(f" {remedy}" for cause, remedy in _REMEDIES.items() if cause in reason)
        raise DatabaseError(
            f"Could not connect to PostgreSQL ({settings}): {reason}{advice}",
            sqlstate=error.sqlstate,
            step="connect",
        ) from None


_REMEDIES = {
    "certificate verify failed": "sslrootcert must name the file of the authority that signed the "
    "server's certificate, and another did, or nobody.",
    "does not match host name": "Connect by a name that the server's certificate has; "
    "sslmode='verify-ca' trusts the authority and does not look at the name.",
    "root certificate file": "Set sslrootcert to the file of the authority that signed the "
    "server's certificate.",
    "server does not support SSL": "Turn `ssl` on in the server's postgresql.conf; "
    "sslmode='prefer' would do without encryption.",
}
"""What helps, by libpq's words for what is the matter (fe-connect.c, fe-secure-openssl.c)."""


def connect_again(uri: str) -> Connection:
    """Open another session of the same user on the same server; `uri` is `libpq_uri`'s."""
    return _opened(conninfo=uri)


def _opened(**keywords: str) -> Connection:
    connection = psycopg.connect(
        **keywords,  # type: ignore[arg-type]  # psycopg types each keyword on its own
        autocommit=True,
        prepare_threshold=None,
        cursor_factory=psycopg.RawCursor,
    )
    # Stated in each BEGIN, whatever default_transaction_isolation the server or the role has.
    connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    connection.read_only = False
    return connection


@contextmanager
def transaction(connection: Connection, *, long: bool = False) -> Iterator[None]:
    """Run a block in one READ COMMITTED transaction: all of it, or none.

    A block that is interrupted cancels the statement it waits for, so that no session is
    left in the server working on it, or waiting for a lock.

    Args:
        long: It may take a while. Then the server looks for its client, and gives up within
            seconds where that was killed; otherwise it would only at the statement's end.
    """
    with connection.transaction():
        try:
            if long:
                connection.execute(_LOOK_FOR_CLIENT)
            yield
        except BaseException:
            _cancel_running(connection)
            raise
    if connection.closed:
        # psycopg leaves the block without a word, and without COMMIT, where the connection
        # ended within it.
        raise psycopg.OperationalError("the connection was lost before COMMIT")


def _cancel_running(connection: Connection) -> None:
    # psycopg does so itself for KeyboardInterrupt; Dagster interrupts a run with another.
    if connection.info.transaction_status is TransactionStatus.ACTIVE:
        with suppress(psycopg.Error):
            connection.cancel_safe(timeout=CANCEL_TIMEOUT)


@contextmanager
def working_memory(connection: Connection, kilobytes: int) -> Iterator[None]:
    """Let the statements of a block, within a transaction, sort and hash in this much memory."""
    connection.execute(
        """
        SELECT pg_catalog.set_config('work_mem', pg_catalog.concat(greatest(
            $1, pg_catalog.pg_size_bytes(pg_catalog.current_setting('work_mem')) / 1024
        ), 'kB'), true)
        """,
        [kilobytes],
    )
    yield
    connection.execute("SET LOCAL work_mem TO DEFAULT")


def libpq_uri(connection: Connection) -> str:
    """Return a URI for another driver that reaches the very server this connection reached.

    A driver with a libpq of its own may look for sockets and service files
    elsewhere, so it is told what was resolved rather than what was configured.
    """
    info = connection.info
    parameters = info.get_parameters() | {"host": info.host, "port": str(info.port)}
    parameters |= {"dbname": info.dbname, "user": info.user}
    if info.hostaddr:
        parameters["hostaddr"] = info.hostaddr
    if info.password:
        parameters["password"] = info.password
    parameters.pop("service", None)
    pairs = (f"{key}={quote(value, safe='')}" for key, value in parameters.items() if value)
    return f"postgresql://?{'&'.join(pairs)}"


@contextmanager
def translated(step: str, *, data: bool = False, first_row: int = 0) -> Iterator[None]:
    """Turn driver errors into `DatabaseError`, without the values PostgreSQL quotes in them.

    Args:
        step: What is being done, in words that follow "while".
        data: Whether values are on the move: an error about one of them is then `BadValue`.
        first_row: Position in the frame of the first row that is on the move.
    """
    try:
        yield
    except psycopg.Error as error:
        # `from None`: DETAIL and CONTEXT carry rows, and Dagster logs the whole chain.
        raise _translate(error, step, data=data, first_row=first_row) from None


_VALUE_ERRORS = ("22", "23502", "23505", "23514")
_INTERNAL_ERROR = "XX000"
"""What PostGIS answers to text that is no geometry; only COPY's context tells that it is data."""
_QUOTES = '"«»„“”'

_LITERAL = re.compile(f"[{_QUOTES}](?: *E)?['0-9].*[{_QUOTES}]", re.DOTALL)
"""Where a syntax error is: at a parameter's value perhaps, which is quoted into a statement."""

_COPY_LINE = re.compile(r"^COPY .*?, line (\d+)", re.MULTILINE)
_COPY_COLUMN = re.compile(r"^COPY .*?, line \d+, column ((?:.|\n)*?)(?:: |$)", re.MULTILINE)


def _translate(
    error: psycopg.Error, step: str, *, data: bool, first_row: int
) -> DatabaseError | BadValue:
    diagnosis, sqlstate = error.diag, error.sqlstate
    message = _without_values(diagnosis.message_primary or str(error), sqlstate)
    context = diagnosis.context or ""
    line, column = _COPY_LINE.search(context), _COPY_COLUMN.search(context)
    about_a_value = (sqlstate or "").startswith(_VALUE_ERRORS) or (
        sqlstate == _INTERNAL_ERROR and column is not None
    )
    if data and about_a_value:
        reason = f"{message} (SQLSTATE {sqlstate}, while {step})"
        return BadValue(
            reason,
            column=diagnosis.column_name or (column[1] if column else None),
            row=first_row + int(line[1]) - 1 if line else None,
            constraint=diagnosis.constraint_name,
        )
    where = f"SQLSTATE {sqlstate}, " if sqlstate else ""
    parts = (
        f"{kind} {name!r}"
        for kind, name in (
            ("table", diagnosis.table_name),
            ("column", diagnosis.column_name),
            ("constraint", diagnosis.constraint_name),
        )
        if name
    )
    named = "".join(f", {part}" for part in parts)
    return DatabaseError(f"{message} ({where}while {step}{named})", sqlstate=sqlstate, step=step)


def server_message(text: str, sqlstate: str | None) -> str:
    """Return the server's primary message out of what another libpq driver reports."""
    _before, found, after = text.partition("ERROR:")
    primary = after.strip().splitlines()[0] if found else text.splitlines()[0]
    return _without_values(primary, sqlstate)


def _without_values(message: str, sqlstate: str | None) -> str:
    """Cut what messages about data quote: the value stands between the outer quotes.

    They are those of the server's language (lc_messages): German has »…«, French « … ».
    """
    if sqlstate == errors.SyntaxError.sqlstate:
        return _LITERAL.sub('"…"', message)
    if sqlstate is None or not sqlstate.startswith(("22", _INTERNAL_ERROR)):
        return message
    return re.sub(f"[{_QUOTES}].*[{_QUOTES}]", '"…"', message, flags=re.DOTALL)


def _scrubbed(text: str, secret: str | None) -> str:
    secrets = {secret, os.environ.get("PGPASSWORD")}
    for known in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(known, "***")
    return text


def _libpq_defaults() -> dict[str, str]:
    options = Conninfo.get_defaults()
    return {item.keyword.decode(): item.val.decode() for item in options if item.val is not None}


def url_settings(url: str | None) -> ConnectionSettings:
    """Read a `postgresql://` URL into settings.

    Raises:
        ConfigurationError: Not a URL, or with parameters that have no field; never quotes it.
    """
    if url is None or not url.startswith(("postgresql://", "postgres://")):
        raise ConfigurationError(_NO_URL)
    try:
        options = Conninfo.parse(url.encode())
    except psycopg.Error:
        # libpq quotes parts of a malformed URL, and a part may be the password.
        raise ConfigurationError(_NO_URL) from None
    given = {item.keyword.decode(): item.val.decode() for item in options if item.val is not None}
    if "@" in given.get("host", "")[1:]:  # the end of a password; "@name" is an abstract socket
        raise ConfigurationError(_NO_URL)
    known = {item.name for item in fields(ConnectionSettings)}
    unknown = sorted(given.keys() - known)
    if unknown:
        raise ConfigurationError(
            f"The URL sets {unknown}, for which there is no field. "
            f"The fields are {sorted(known)}; others belong into libpq's environment."
        )
    try:
        numbers = {key: int(given.pop(key)) for key in ("port", "connect_timeout") if key in given}
    except ValueError:
        # Several ports; or the end of a password with an '@' in it, hence no quoting.
        raise ConfigurationError(f"{_NO_URL} Port and connect_timeout are one number.") from None
    return ConnectionSettings(**given, **numbers)  # type: ignore[arg-type]  # the keys are the fields


_NO_URL = (
    "The URL is not a valid PostgreSQL URL (postgresql://user:password@host:port/dbname). "
    "Characters such as '@', ':', '/' and '%' in a password must be percent-encoded."
)
