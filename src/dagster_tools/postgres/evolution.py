"""Wanted against existing: what must change in the table, or why nothing can.

Values are first brought into the type the column has. Only when one does not fit is
the type widened, and only where no stored value can be lost by it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pyarrow as pa

from dagster_tools.errors import BadValue, SchemaConflict
from dagster_tools.postgres.column_types import EWKB, PgType
from dagster_tools.postgres.columns import Column, ExistingColumn, ExistingTable
from dagster_tools.postgres.ddl import compose_add_shape_check, shape_check_name
from dagster_tools.postgres.geometry import Shape, is_spatial, needs_check, wider_types
from dagster_tools.postgres.names import MATERIALIZATION_ID, Table
from dagster_tools.postgres.wire import check_modifiers, fit

__all__ = [
    "Evolution",
    "Widening",
    "check_values",
    "misfit_error",
    "plan_evolution",
    "widened_type",
]

WIDENINGS: Mapping[str, tuple[str, ...]] = {
    "smallint": ("integer", "bigint", "numeric"),
    "integer": ("bigint", "numeric"),
    "bigint": ("numeric",),
    "real": ("double precision",),
    "character varying": ("text",),
    "character": ("text",),
}
"""Types that hold every value of the one before them, and give it back unchanged."""

Chunks = Callable[[str], Iterable[pa.Array]]
"""Yields the arrays of one column of the frame, in order."""


@dataclass(frozen=True, slots=True)
class Widening:
    """A change of a column's type, which rewrites the table.

    Args:
        empty: The column holds no value, so that any type may follow.
    """

    column: str
    old: PgType
    new: PgType
    empty: bool = False


@dataclass(frozen=True, slots=True)
class Evolution:
    """What a write changes in an existing table before it moves a row.

    Args:
        additions: Columns the table lacks.
        not_null, nonnegative, unique, index: Columns that get a modifier declared later.
        primary_key: A primary key declared later, or nothing.
        targets: What the values of each column of the frame are encoded as, afterwards.
        fixed: Columns whose type is more than what its values are encoded as: a domain keeps
            its rules, an enum its labels.
    """

    targets: Mapping[str, PgType]
    additions: tuple[Column, ...] = ()
    widenings: tuple[Widening, ...] = ()
    not_null: tuple[str, ...] = ()
    nonnegative: tuple[str, ...] = ()
    unique: tuple[str, ...] = ()
    index: tuple[str, ...] = ()
    primary_key: tuple[str, ...] = ()
    fixed: frozenset[str] = frozenset()


def plan_evolution(
    existing: ExistingTable,
    wanted: Sequence[Column],
    schema: pa.Schema,
    chunks: Chunks,
    *,
    storage: Mapping[str, PgType],
    primary_key: tuple[str, ...],
    mode: Literal["evolve", "strict"],
    holds_no_value: Callable[[str], bool],
) -> Evolution:
    """Decide what changes in the table so that it takes the frame.

    Args:
        chunks: The frame's values as far as they are known: all of a frame in memory,
            the first batch of a stream.
        storage: What each wanted column is encoded as where it does not exist yet.
        holds_no_value: Asks the server whether a column is NULL in every row.

    Raises:
        SchemaConflict: Table and frame cannot both be right, or `strict` forbids the change.
        BadValue: A value fits neither the column nor a wider one.
    """
    _check_present(existing, schema.names, mode)
    targets: dict[str, PgType] = {}
    additions: list[Column] = []
    widenings: list[Widening] = []
    for column in wanted:
        present = existing.column(column.name)
        field = schema.field(column.name) if column.name in schema.names else None
        if present is None:
            additions.append(column)
            targets[column.name] = storage[column.name]
            if field is not None:
                check_values(field, chunks(column.name), targets[column.name], column)
            continue
        settled = _settle(existing.table, present, column, field, chunks, mode, holds_no_value)
        if isinstance(settled, Widening):
            widenings.append(settled)
            targets[column.name] = settled.new
        else:
            targets[column.name] = settled
    if additions and mode == "strict":
        raise SchemaConflict(
            f"{existing.table} has no columns {[column.name for column in additions]}, and "
            "schema_evolution is 'strict'. Its columns are "
            f"{_own_columns(existing)}. {_add_statements(existing.table, additions)}"
        )
    evolution = Evolution(
        targets=targets,
        additions=tuple(additions),
        widenings=tuple(widenings),
        fixed=frozenset(c.name for c in existing.columns if c.storage != c.type),
        **_later_modifiers(existing, wanted, primary_key),
    )
    if existing.partitioned:
        _check_needs_no_index(existing.table, evolution)
    return evolution


def check_values(
    field: pa.Field, chunks: Iterable[pa.Array], target: PgType, column: Column
) -> None:
    """Raise unless every value fits the type, and the column's modifiers."""
    row = 0
    for chunk in chunks:
        check_modifiers(
            fit(chunk, field, target, first_row=row),
            column.name,
            not_null=column.not_null,
            nonnegative=column.nonnegative,
            first_row=row,
        )
        row += len(chunk)


def widened_type(
    old: PgType, field: pa.Field, chunks: Iterable[pa.Array], column: Column
) -> PgType | None:
    """Return the narrowest wider type that takes the values, None where there is none."""
    values = list(chunks)
    candidates = [PgType(old.name), *(PgType(name) for name in WIDENINGS.get(old.name, ()))]
    for candidate in wider_types(old) if is_spatial(old) else candidates:
        if not _holds_all_of(candidate, old):
            continue
        try:
            check_values(field, values, candidate, column)
        except (BadValue, SchemaConflict):
            continue
        return candidate
    return None


def _holds_all_of(new: PgType, old: PgType) -> bool:
    """Whether every value of `old` fits `new` unchanged, and they are not the same type."""
    if old.array or new.array or new == old:
        return False
    if new.name != old.name:
        return new.name in WIDENINGS.get(old.name, ()) and not new.modifiers
    if _is_geometry(new):
        return Shape.of(new).holds_all_of(Shape.of(old))
    if not new.modifiers:
        # Without modifiers a type is at its widest, but for char, which then holds one character.
        return new.name != "character"
    if (declared := new.precision_and_scale) and (kept := old.precision_and_scale):
        return declared[1] >= kept[1] and declared[0] - declared[1] >= kept[0] - kept[1]
    if (longest := new.max_length) and (length := old.max_length):
        return longest >= length
    return False


def _settle(
    table: Table,
    present: ExistingColumn,
    wanted: Column,
    field: pa.Field | None,
    chunks: Chunks,
    mode: Literal["evolve", "strict"],
    holds_no_value: Callable[[str], bool],
) -> PgType | Widening:
    """Return the storage type the values go into, or the widening they need."""
    name = present.name
    if present.filled_by_server:
        if field is None:
            return present.storage
        raise SchemaConflict(
            f"column {name!r} of {table} is generated by the server and takes no values. "
            "Leave it out of the frame."
        )
    wanted = replace(wanted, not_null=present.not_null or wanted.not_null)
    stored = present.storage if present.storage.name == EWKB else present.type
    if wanted.declared and not _same(stored, wanted.type):
        settled = _redeclare(table, present, wanted, mode, holds_no_value)
        if field is not None:
            target = settled.new if isinstance(settled, Widening) else settled
            check_values(field, chunks(name), target, wanted)
        return settled
    if field is None:
        return present.storage
    try:
        check_values(field, chunks(name), present.storage, wanted)
    except (BadValue, SchemaConflict) as error:
        if wanted.declared:
            raise
        return _widen(table, present, wanted, field, chunks, mode, holds_no_value, error)
    return present.storage


def _widen(
    table: Table,
    present: ExistingColumn,
    wanted: Column,
    field: pa.Field,
    chunks: Chunks,
    mode: Literal["evolve", "strict"],
    holds_no_value: Callable[[str], bool],
    reason: BadValue | SchemaConflict,
) -> Widening:
    name, old, values = present.name, present.type, list(chunks(present.name))
    wider = widened_type(old, field, values, wanted)
    empty = wider is None and present.storage == old != wanted.type and holds_no_value(name)
    new = wanted.type if empty else wider
    if new is None or mode == "strict":
        told = present.storage if present.storage.name == EWKB else old
        raise misfit_error(table, told, wanted, values, reason, wider=new)
    return Widening(name, old, new, empty=empty)


def misfit_error(
    table: Table,
    old: PgType,
    wanted: Column,
    values: Iterable[pa.Array],
    reason: BadValue | SchemaConflict,
    *,
    wider: PgType | None,
) -> BadValue | SchemaConflict:
    """Return what to raise for values that do not fit a column whose type stays.

    Args:
        reason: Why they do not fit.
        wider: The type that `strict` forbids, if there is one.
    """
    new = wider or wanted.type
    no_way = new == old or (wider is None and (is_spatial(old) or EWKB in {old.name, new.name}))
    if no_way or (wanted.not_null and any(array.null_count for array in values)):
        return reason
    said = str(reason)
    if isinstance(reason, BadValue):
        said += f"; the column is {old} in {table} and {wanted.type} in the frame."
    if wider is not None:
        said += f" schema_evolution is 'strict'; else it would become {wider}."
    return SchemaConflict(
        f"{said} To change the table: {_alter_statement(table, wanted.name, old, new)}"
    )


def _redeclare(
    table: Table,
    present: ExistingColumn,
    wanted: Column,
    mode: Literal["evolve", "strict"],
    holds_no_value: Callable[[str], bool],
) -> PgType | Widening:
    stored = _told(present)
    if mode == "evolve":
        if _holds_all_of(wanted.type, present.type):
            return Widening(present.name, present.type, wanted.type)
        if _holds_all_of(stored, _as_stored(wanted.type, stored)):
            return present.storage
        if stored.name != EWKB and holds_no_value(present.name):
            return Widening(present.name, present.type, wanted.type, empty=True)
    remedy = (
        'Declare "geometry", which leaves it as it is.'
        if stored.name == EWKB
        else f"Declare {present.type}, or change the table: "
        f"{_alter_statement(table, present.name, stored, wanted.type)}"
    )
    raise SchemaConflict(
        f"column {present.name!r} of {table} is {stored}, and the asset declares {wanted.type}. "
        f"{remedy}"
    )


def _told(column: ExistingColumn) -> PgType:
    """Return the column's type, or of geometry what its CHECK tells besides."""
    return column.storage if _is_geometry(column.storage) else column.type


def _as_stored(declared: PgType, stored: PgType) -> PgType:
    """Return a declared geometry in EWKB where that is how the column keeps it."""
    ewkb = stored.name == EWKB and is_spatial(declared)
    return replace(declared, name=EWKB, schema=None) if ewkb else declared


def _is_geometry(type_: PgType) -> bool:
    return type_.name == EWKB or is_spatial(type_)


def _same(present: PgType, declared: PgType) -> bool:
    """Whether a declaration means the existing type."""
    if is_spatial(declared) and (is_spatial(present) or present.name == EWKB):
        alike = present.name in {declared.name, EWKB} or present.name.endswith(f".{declared.name}")
        return alike and (not declared.modifiers or Shape.of(present) == Shape.of(declared))
    if present.array != declared.array or declared.modifiers != present.modifiers:
        return False
    # A type outside the search path is spelled with its schema by format_type.
    return present.name == declared.name or present.name.endswith(f".{declared.name}")


def _check_present(
    existing: ExistingTable, names: Sequence[str], mode: Literal["evolve", "strict"]
) -> None:
    absent = [
        column
        for column in existing.columns
        if column.name not in names
        and column.name != MATERIALIZATION_ID
        and not column.filled_by_server
    ]
    needed = [column.name for column in absent if column.not_null and not column.has_default]
    if needed:
        raise SchemaConflict(
            f"The frame lacks columns {needed}, which are NOT NULL without a default in "
            f"{existing.table}. Its columns are {list(names)}."
        )
    if absent and mode == "strict":
        raise SchemaConflict(
            f"The frame lacks columns {[column.name for column in absent]} of {existing.table}, "
            f"and schema_evolution is 'strict'. Its columns are {list(names)}."
        )


def _later_modifiers(
    existing: ExistingTable, wanted: Sequence[Column], primary_key: tuple[str, ...]
) -> dict[str, tuple[str, ...]]:
    present = {column.name: existing.column(column.name) for column in wanted}

    def lacking(has: Callable[[Column], bool]) -> tuple[str, ...]:
        return tuple(column.name for column in wanted if not has(column))

    key = primary_key if existing.primary_key != primary_key else ()
    if key and existing.primary_key:
        if set(key) == set(existing.primary_key):
            key = ()
        else:
            raise SchemaConflict(
                f"{existing.table} has the primary key {list(existing.primary_key)}, and the "
                f"asset declares {list(primary_key)}. A table has one: declare "
                "the existing one, or drop it from the table first."
            )
    return {
        "primary_key": key,
        "not_null": lacking(
            lambda column: (
                not column.not_null
                or column.name in key
                or ((found := present[column.name]) is not None and found.not_null)
            )
        ),
        "nonnegative": lacking(
            lambda column: not column.nonnegative or _kept_nonnegative(existing, column.name)
        ),
        "unique": lacking(
            lambda column: not column.unique or existing.has_index([column.name], unique=True)
        ),
        "index": lacking(
            lambda column: not column.index or existing.has_index([column.name], unique=False)
        ),
    }


def _check_needs_no_index(table: Table, evolution: Evolution) -> None:
    """Refuse to index a partitioned table: CREATE INDEX CONCURRENTLY cannot do it (PostgreSQL)."""
    statements = [
        f"CREATE UNIQUE INDEX ON {table} ({_quoted([column])});" for column in evolution.unique
    ]
    if evolution.primary_key:
        statements += [f"ALTER TABLE {table} ADD PRIMARY KEY ({_quoted(evolution.primary_key)});"]
    for column in evolution.index:
        method = " USING gist" if is_spatial(evolution.targets[column]) else ""
        statements += [f"CREATE INDEX ON {table}{method} ({_quoted([column])});"]
    if statements:
        raise SchemaConflict(
            f"{table} is partitioned (PARTITION BY), and PostgreSQL cannot index such a table "
            "while others write it. Do it when that is no harm; a key must have the columns it is "
            f"partitioned by: {' '.join(statements)}"
        )


def _kept_nonnegative(existing: ExistingTable, column: str) -> bool:
    """Whether a validated CHECK says so; `integer` and wider types spell the zero differently."""
    spellings = ['"' + column.replace('"', '""') + '"']
    if re.fullmatch(r"[a-z_][a-z0-9_]*", column):
        spellings.append(column)
    name = "|".join(map(re.escape, spellings))
    condition = re.compile(rf"CHECK \(\((?:{name}) >= \(?0\)?(?:::\w+)?\)\)")
    return any(condition.fullmatch(check) for check in existing.checks)


def _own_columns(existing: ExistingTable) -> list[str]:
    return [column.name for column in existing.columns if column.name != MATERIALIZATION_ID]


def _alter_statement(table: Table, column: str, old: PgType, new: PgType) -> str:
    quoted, type_ = _quoted([column]), new.as_sql.as_string()
    value, first = f"{quoted}::{type_}", ""
    if old.name == new.name == "geometry" and (srid := Shape.of(new).srid) != Shape.of(old).srid:
        function = "ST_Transform" if srid and Shape.of(old).srid else "ST_SetSRID"
        where = f"{_quoted([new.schema])}." if new.schema else ""
        value = f"{where}{function}({quoted}, {srid})"
        if needs_check(old):
            first = f"DROP CONSTRAINT {_quoted([shape_check_name(table, column)])}, "
    return f"ALTER TABLE {table} {first}ALTER COLUMN {quoted} TYPE {type_} USING {value};"


def _add_statements(table: Table, columns: Sequence[Column]) -> str:
    statements = []
    for column in columns:
        type_ = column.type.as_sql.as_string()
        statements += [f"ALTER TABLE {table} ADD COLUMN {_quoted([column.name])} {type_};"]
        if needs_check(column.type):
            check = compose_add_shape_check(table, column.name, column.type, valid=True)
            statements += [f"{check.as_string()};"]
    return " ".join(statements)


def _quoted(columns: Sequence[str]) -> str:
    return ", ".join('"' + column.replace('"', '""') + '"' for column in columns)
