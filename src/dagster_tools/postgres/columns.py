"""What a table is made of: columns and their modifiers, declared, inferred or existing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from dagster_tools.errors import ConfigurationError
from dagster_tools.postgres.column_types import EWKB, PgType, infer, parse_type
from dagster_tools.postgres.names import MATERIALIZATION_ID, Table

__all__ = [
    "Column",
    "ExistingColumn",
    "ExistingTable",
    "ForeignKey",
    "Index",
    "declared_column",
    "wanted_columns",
]

MODIFIERS = ("not null", "unique", "index")


@dataclass(frozen=True, slots=True)
class Column:
    """A column as it should be.

    Args:
        nonnegative: Declared `uint`: a CHECK keeps the values at or above zero.
        declared: Whether the user asked for the type, or the frame's values suggest it.
    """

    name: str
    type: PgType
    not_null: bool = False
    unique: bool = False
    index: bool = False
    nonnegative: bool = False
    declared: bool = False


@dataclass(frozen=True, slots=True)
class ExistingColumn:
    """A column as the catalog describes it.

    Args:
        type: The type in the table's definition, a domain or an enum by its own name.
        storage: What values are encoded as: the domain's base type, `enum` for enums, `EWKB` for
            geometry in `bytea`; and what CHECKs say of geometry besides its type.
        filled_by_server: Generated, or `GENERATED ALWAYS AS IDENTITY`: takes no values.
        has_default: A default or an identity gives it a value when none is supplied.
    """

    name: str
    type: PgType
    storage: PgType
    not_null: bool
    filled_by_server: bool
    has_default: bool

    @property
    def spatial(self) -> bool:
        """Whether it holds geometry, of PostGIS or in bytes."""
        return self.storage.name in {"geometry", "geography", EWKB} and not self.storage.array


@dataclass(frozen=True, slots=True)
class Index:
    """An index over plain columns, without a predicate."""

    name: str
    columns: tuple[str, ...]
    unique: bool
    primary: bool
    valid: bool


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A foreign key of another table that references this one.

    Args:
        columns: The referenced columns of this table.
        on_delete: `a` no action, `r` restrict, `c` cascade, `n` set null, `d` set default.
    """

    name: str
    columns: tuple[str, ...]
    on_delete: str


@dataclass(frozen=True, slots=True)
class ExistingTable:
    """A table as the catalog describes it.

    Args:
        checks: Its CHECK constraints, as `pg_get_constraintdef` writes them.
        row_security: Row-level security applies to the role that asks.
        owned: The role that asks may alter the table.
        partitioned: By PostgreSQL (PARTITION BY): it has rows in other tables only.
    """

    table: Table
    columns: tuple[ExistingColumn, ...]
    indexes: tuple[Index, ...]
    referencing: tuple[ForeignKey, ...]
    checks: tuple[str, ...]
    row_security: bool
    owned: bool
    has_materialization_default: bool
    partitioned: bool = False

    def column(self, name: str) -> ExistingColumn | None:
        """Return the column of this name, None where there is none."""
        return next((column for column in self.columns if column.name == name), None)

    @property
    def primary_key(self) -> tuple[str, ...]:
        """Its columns in the key's order, () where there is no primary key."""
        return next((index.columns for index in self.indexes if index.primary), ())

    @property
    def primary_key_name(self) -> str | None:
        """The constraint's name, None where there is no primary key."""
        return next((index.name for index in self.indexes if index.primary), None)

    @property
    def tracked(self) -> bool:
        """Whether rows can say which materialization wrote them."""
        return self.column(MATERIALIZATION_ID) is not None

    def has_index(self, columns: Sequence[str], *, unique: bool) -> bool:
        """Whether a valid index serves these columns (as a set, where uniqueness is asked)."""
        return any(
            index.valid
            and (set(index.columns) == set(columns) and index.unique if unique
                 else index.columns[: len(columns)] == tuple(columns))
            for index in self.indexes
        )  # fmt: skip


def declared_column(name: str, declaration: object) -> Column:
    """Read one entry of `columns` metadata: `"int"` or `("int", "not null", …)`."""
    parts = [declaration] if isinstance(declaration, str) else declaration
    if not isinstance(parts, (tuple, list)) or not parts:
        raise ConfigurationError(
            f"columns[{name!r}] is {declaration!r}; expected a type such as 'int', or a type "
            "and its modifiers such as ('int', 'not null')."
        )
    type_text, *modifiers = parts
    if not isinstance(type_text, str):
        raise ConfigurationError(
            f"columns[{name!r}]: the type is {type_text!r}; expected a type's name such as 'int'."
        )
    flags = {_modifier(name, modifier) for modifier in modifiers}
    try:
        type_ = parse_type(type_text)
    except ConfigurationError as error:
        raise ConfigurationError(f"columns[{name!r}]: {error}") from None
    return Column(
        name,
        type_,
        not_null="not null" in flags,
        unique="unique" in flags,
        index="index" in flags,
        nonnegative=type_text.strip().lower() == "uint",
        declared=True,
    )


def wanted_columns(
    schema: pa.Schema, declared: Mapping[str, Column], primary_key: Iterable[str]
) -> tuple[Column, ...]:
    """Return the columns a frame asks for: its own in its order, then declared ones it lacks."""
    wanted = [declared.get(field.name) or Column(field.name, infer(field)) for field in schema]
    wanted += [column for name, column in declared.items() if name not in schema.names]
    keys = set(primary_key)
    missing = keys - {column.name for column in wanted}
    if missing:
        raise ConfigurationError(
            f"primary_key names {sorted(missing)}, which the frame does not have. "
            f"Its columns are {schema.names}."
        )
    return tuple(
        replace(column, not_null=True) if column.name in keys else column for column in wanted
    )


def _modifier(name: str, modifier: object) -> str:
    spelled = " ".join(modifier.lower().split()) if isinstance(modifier, str) else modifier
    if spelled not in MODIFIERS:
        raise ConfigurationError(
            f"columns[{name!r}]: {modifier!r} is not a modifier; the modifiers are "
            f"{', '.join(map(repr, MODIFIERS))}."
        )
    return str(spelled)
