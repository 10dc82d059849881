"""Tables as the catalog would describe them, for decisions that need no server."""

from __future__ import annotations

from typing import Any

from dagster_tools.postgres.column_types import parse_type
from dagster_tools.postgres.columns import (
    Column,
    ExistingColumn,
    ExistingTable,
    ForeignKey,
    Index,
    declared_column,
)
from dagster_tools.postgres.names import MATERIALIZATION_ID, Table

TABLE = Table("s", "t")


def existing_table(
    columns: dict[str, str | ExistingColumn],
    *,
    primary_key: tuple[str, ...] = (),
    indexes: tuple[Index, ...] = (),
    checks: tuple[str, ...] = (),
    referencing: tuple[ForeignKey, ...] = (),
    tracked: bool = True,
) -> ExistingTable:
    """Describe a table by its columns and their types; keys get their index."""
    found = [
        column if isinstance(column, ExistingColumn) else existing_column(name, column)
        for name, column in columns.items()
    ]
    if tracked:
        found.append(existing_column(MATERIALIZATION_ID, "integer", has_default=True))
    key = Index("t_pkey", primary_key, unique=True, primary=True, valid=True)
    return ExistingTable(
        TABLE,
        tuple(found),
        indexes=indexes + ((key,) if primary_key else ()),
        referencing=referencing,
        checks=checks,
        row_security=False,
        owned=True,
        has_materialization_default=tracked,
    )


def existing_column(name: str, type_: str, **facts: Any) -> ExistingColumn:
    """Describe a column; `storage` is its type unless said otherwise."""
    known: dict[str, Any] = {"not_null": False, "filled_by_server": False, "has_default": False}
    storage = parse_type(facts.pop("storage", type_))
    return ExistingColumn(name, parse_type(type_), storage, **(known | facts))


def index(*columns: str, unique: bool = False, valid: bool = True) -> Index:
    return Index("_".join(columns), columns, unique=unique, primary=False, valid=valid)


def declared(**columns: object) -> dict[str, Column]:
    """Read `columns` metadata: `declared(a="int", b=("text", "unique"))`."""
    return {name: declared_column(name, declaration) for name, declaration in columns.items()}
