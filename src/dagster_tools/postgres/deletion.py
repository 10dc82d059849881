"""Which earlier rows go: an expression of keys, composed into a condition.

Keys travel as arrays of text and are cast to their columns' types by the server: one
parameter for a hundred thousand keys, any type, and an equality that is the server's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql
from psycopg.sql import Composable, Composed, Identifier
from typing_extensions import assert_never

from dagster_tools.errors import BadValue, ConfigurationError, SchemaConflict
from dagster_tools.postgres.columns import ExistingColumn, ExistingTable
from dagster_tools.postgres.names import MATERIALIZATION_ID
from dagster_tools.postgres.wire import fit, render

__all__ = ["EVERYTHING", "AllOf", "AnyOf", "Condition", "Deletion", "Keys", "compose_condition"]

AND, OR = sql.SQL(" AND "), sql.SQL(" OR ")


BYTES_PER_KEY = 100
"""32 for a text of unknown length, 24 for a row's header, and some to spare."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Rows whose columns hold one of the key's rows; NULL matches NULL."""

    columns: tuple[str, ...]
    values: pa.Table


@dataclass(frozen=True, slots=True)
class AllOf:
    """Rows that every operand matches."""

    operands: tuple[Deletion, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Rows that an operand matches."""

    operands: tuple[Deletion, ...]


Deletion: TypeAlias = "Keys | AllOf | AnyOf"

EVERYTHING: Deletion = AllOf(())


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition for WHERE, and the parameters it names."""

    clause: Composed
    parameters: tuple[list[str], ...]

    @property
    def kilobytes(self) -> int:
        """What hashing its keys takes, as the server reckons beforehand."""
        return sum(map(len, self.parameters)) * BYTES_PER_KEY // 1024


def compose_condition(
    deletion: Deletion, existing: ExistingTable, alias: str, *, first: int
) -> Condition:
    """Compose the condition on rows of the table under `alias`.

    Args:
        first: Number of the condition's first parameter.

    Raises:
        ConfigurationError: A column that does not exist; lists those that do.
        BadValue: A value that its column cannot hold.
    """
    parameters: list[list[str]] = []
    clause = _compose(deletion, existing, alias, first, parameters)
    return Condition(clause, tuple(parameters))


def _compose(
    deletion: Deletion,
    existing: ExistingTable,
    alias: str,
    first: int,
    parameters: list[list[str]],
) -> Composed:
    match deletion:
        case Keys():
            clauses = _compose_keys(deletion, existing, alias, first, parameters)
            return _joined(list(clauses) or [sql.SQL("false")], OR)
        case AllOf():
            joiner, nothing = AND, sql.SQL("true")
        case AnyOf():
            joiner, nothing = OR, sql.SQL("false")
        case _:
            assert_never(deletion)
    operands = [
        _compose(operand, existing, alias, first, parameters) for operand in deletion.operands
    ]
    return _joined(operands or [nothing], joiner)


def _compose_keys(
    keys: Keys,
    existing: ExistingTable,
    alias: str,
    first: int,
    parameters: list[list[str]],
) -> Iterator[Composable]:
    """Yield one clause for each pattern of NULLs among the keys: `IN` never matches NULL."""
    columns = [_column(existing, name) for name in keys.columns]
    texts = pa.table(
        [_texts(keys.values.column(i), column) for i, column in enumerate(columns)],
        names=[str(i) for i in range(len(columns))],
    )
    patterns = pa.table([pc.is_null(text) for text in texts.columns], names=texts.schema.names)
    for pattern in patterns.group_by(patterns.schema.names).aggregate([]).to_pylist():
        nulls = list(pattern.values())
        rows = texts.filter(_matching(patterns, nulls))
        clauses: list[Composable] = [
            sql.SQL("{} IS NULL").format(Identifier(alias, column.name))
            for column, null in zip(columns, nulls, strict=True)
            if null
        ]
        valued = [
            (i, c) for i, (c, null) in enumerate(zip(columns, nulls, strict=True)) if not null
        ]
        if valued:
            number = first + len(parameters)
            parameters += [rows.column(i).to_pylist() for i, _column_of in valued]
            clauses.append(_compose_in([column for _i, column in valued], alias, number))
        yield _joined(clauses, AND)


def _compose_in(columns: Sequence[ExistingColumn], alias: str, first: int) -> Composed:
    names = [Identifier(f"k{position}") for position in range(len(columns))]
    return sql.SQL("({}) IN (SELECT {} FROM ROWS FROM ({}) AS keys ({}))").format(
        sql.SQL(", ").join(
            _comparable(Identifier(alias, column.name), column) for column in columns
        ),
        sql.SQL(", ").join(
            _comparable(sql.SQL("{}::{}").format(name, column.type.as_sql), column)
            for name, column in zip(names, columns, strict=True)
        ),
        sql.SQL(", ").join(
            sql.SQL("pg_catalog.unnest(${}::text[])").format(first + position)
            for position in range(len(columns))
        ),
        sql.SQL(", ").join(names),
    )


def _comparable(value: Composable, column: ExistingColumn) -> Composable:
    """Compose a value of a type that has `=`; `json` has none, and `jsonb` says what it means."""
    return sql.SQL("{}::jsonb").format(value) if column.storage.name == "json" else value


def _column(existing: ExistingTable, name: str) -> ExistingColumn:
    column = existing.column(name)
    if column is None or name == MATERIALIZATION_ID:
        present = [column.name for column in existing.columns if column.name != MATERIALIZATION_ID]
        raise ConfigurationError(
            f"delete names the column {name!r}, which {existing.table} does not have. "
            f"Its columns are {present}."
        )
    if column.spatial:
        raise ConfigurationError(
            f"delete names the column {name!r}, which holds geometry. Rows are not found by their "
            "geometry: name a column of numbers or text."
        )
    return column


def _texts(values: pa.ChunkedArray, column: ExistingColumn) -> pa.Array:
    field = pa.field(column.name, values.type)
    try:
        fitted = fit(values.combine_chunks(), field, column.storage)
    except BadValue as error:
        raise BadValue(f"delete: value {error.row} {error.reason}", column=column.name) from None
    except SchemaConflict:
        raise ConfigurationError(
            f"delete compares the column {column.name!r}, which is {column.type}, with values of "
            f"type {values.type}. Give values as the column has them."
        ) from None
    return render(fitted, column.storage)


def _matching(patterns: pa.Table, nulls: Sequence[bool]) -> pa.ChunkedArray:
    matches = [pc.equal(column, null) for column, null in zip(patterns.columns, nulls, strict=True)]
    together = matches[0]
    for match in matches[1:]:
        together = pc.and_(together, match)
    return together


def _joined(clauses: Sequence[Composable], joiner: sql.SQL) -> Composed:
    """Compose one clause that means the same whatever stands around it."""
    if len(clauses) == 1:
        return Composed([clauses[0]])
    return sql.SQL("({})").format(joiner.join(clauses))
