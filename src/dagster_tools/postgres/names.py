"""Names of PostgreSQL objects: refused where the server would change them silently.

PostgreSQL cuts an identifier after 63 bytes without an error, and libpq cuts it
at a NUL (documentation, "Identifiers and Key Words"). Two columns can so become
one, and a table another. Every name is therefore checked before it is sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from dagster_tools.errors import ConfigurationError

__all__ = [
    "MATERIALIZATION_ID",
    "MAX_COLUMNS",
    "Table",
    "check_column_name",
    "check_column_names",
    "check_identifier",
    "check_schema_name",
    "check_text",
    "derived_name",
]

MAX_BYTES = 63
MAX_COLUMNS = 1600 - 1
"""Columns a frame may have: the server's limit less `materialization_id`."""

MATERIALIZATION_ID = "materialization_id"
"""The column that links each row to the materialization that wrote it."""

SYSTEM_COLUMNS = frozenset({"ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"})


@dataclass(frozen=True, slots=True)
class Table:
    """A table's qualified name, valid by construction."""

    schema: str
    name: str

    def __post_init__(self) -> None:
        check_schema_name("schema", self.schema)
        check_identifier("table", self.name)

    @property
    def identifier(self) -> sql.Identifier:
        """The qualified name as it stands in a statement."""
        return sql.Identifier(self.schema, self.name)

    def __str__(self) -> str:
        return f"{_displayed(self.schema)}.{_displayed(self.name)}"


def check_identifier(kind: str, name: object) -> str:
    """Return `name` if the server stores it unchanged; say why not otherwise."""
    if not isinstance(name, str):
        raise ConfigurationError(
            f"{kind} name {name!r} is of type {type(name).__name__}; names must be text."
        )
    if not name:
        raise ConfigurationError(f"{kind} name is empty; PostgreSQL has no empty names.")
    check_text(f"{kind} name", name)
    encoded = name.encode()
    if len(encoded) > MAX_BYTES:
        kept = encoded[:MAX_BYTES].decode(errors="ignore")
        raise ConfigurationError(
            f"{kind} name {name!r} is {len(encoded)} bytes long; PostgreSQL keeps {MAX_BYTES} "
            f"bytes and would store it as {kept!r}. Choose a shorter name."
        )
    return name


def check_text(kind: str, text: str) -> None:
    """Refuse text that PostgreSQL cannot hold, be it a name or a partition's key."""
    if "\0" in text:
        raise ConfigurationError(
            f"{kind} {text!r} contains a NUL character; the server would see "
            f"{text.partition(chr(0))[0]!r} only."
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(
            f"{kind} {text!a} contains a lone surrogate, which has no UTF-8 form."
        ) from None


def check_schema_name(kind: str, name: object) -> str:
    """Return `name` if a schema can have it."""
    schema = check_identifier(kind, name)
    if schema.startswith("pg_"):
        raise ConfigurationError(
            f"{kind} name {schema!r}: PostgreSQL reserves names that begin with 'pg_' "
            "for itself. Choose another."
        )
    return schema


def check_column_name(name: object) -> str:
    """Return `name` if it can be a column's that the user fills."""
    column = check_identifier("column", name)
    if column in SYSTEM_COLUMNS:
        raise ConfigurationError(
            f"Column {column!r} has the name of a PostgreSQL system column. Rename it."
        )
    if column == MATERIALIZATION_ID:
        raise ConfigurationError(
            f"Column {MATERIALIZATION_ID!r} is the one that links rows to their "
            "materialization; it is added on output. Rename or drop yours."
        )
    return column


def check_column_names(names: Sequence[object]) -> None:
    """Refuse column names the table could not hold as they are."""
    if not names:
        raise ConfigurationError("The frame has no columns; a table needs at least one.")
    if len(names) > MAX_COLUMNS:
        raise ConfigurationError(
            f"The frame has {len(names)} columns; PostgreSQL tables hold at most "
            f"{MAX_COLUMNS} and {MATERIALIZATION_ID}."
        )
    seen: dict[str, int] = {}
    for position, name in enumerate(names):
        column = check_column_name(name)
        if column in seen:
            raise ConfigurationError(
                f"Columns {seen[column]} and {position} are both named {column!r}."
            )
        seen[column] = position


def derived_name(*parts: str, suffix: str, hashed: bool = False) -> str:
    """Return a name made of `parts`, within 63 bytes and still its own.

    Names that fit stay readable (`routes_id_not_null`); longer ones end in a hash of the parts.

    Args:
        hashed: Put the hash into short names too: an index shares its names with all tables
            of the schema, and `a_b` with `c` would read like `a` with `b_c`.
    """
    whole = "_".join((*parts, suffix))
    if not hashed and len(whole.encode()) <= MAX_BYTES:
        return whole
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=5).hexdigest()
    ending = f"_{digest}_{suffix}"
    room = MAX_BYTES - len(ending)
    return "_".join(parts).encode()[:room].decode(errors="ignore") + ending


def _displayed(name: str) -> str:
    plain = name.isascii() and name.replace("_", "a").isalnum() and name == name.lower()
    return name if plain and not name[0].isdigit() else '"' + name.replace('"', '""') + '"'
