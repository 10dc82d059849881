"""Which partition a row belongs to, where one output covers several.

The writer wants one stream whose last column holds, for each row, the position of its
partition. That column comes from a `dict` of frames, or from a column of the frame that
`partition_expr` names.
"""

from __future__ import annotations

import bisect
import datetime as dt
import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from dagster_tools.errors import BadValue, ConfigurationError, SchemaConflict
from dagster_tools.postgres.names import MATERIALIZATION_ID

__all__ = ["assign_partitions", "join_partitions"]

Rows: TypeAlias = pa.Table | pa.RecordBatchReader
POSITION = pa.field(MATERIALIZATION_ID, pa.int32())

NUMERIC = {b"postgresql:type": b"numeric"}
"""Metadata of a field whose numbers travel as text, because Arrow has no type for them."""


def join_partitions(frames: Mapping[str, Rows], keys: Sequence[str]) -> Rows:
    """Put the frames of several partitions one after the other, each row marked with its own.

    Columns are matched by name; one that a frame lacks is NULL there. A frame without rows
    has no say about columns and types.

    Args:
        frames: By partition key; exactly the run's partitions.

    Raises:
        ConfigurationError: A partition of the run is missing, or one is not the run's.
        SchemaConflict: No type holds a column's values of all frames unchanged.
    """
    _check_keys(frames, keys)
    present = {key: rows for key, rows in frames.items() if not _is_empty(rows)}
    schema = _common_schema({key: rows.schema for key, rows in present.items()})
    positions = {key: position for position, key in enumerate(keys)}
    batches = (
        batch for key, rows in present.items() for batch in _marked(rows, schema, positions[key])
    )
    marked = schema.append(POSITION)
    if all(isinstance(rows, pa.Table) for rows in present.values()):
        return pa.Table.from_batches(batches, marked)
    return pa.RecordBatchReader.from_batches(marked, batches)


def assign_partitions(
    rows: Rows, expression: object, definition: dg.PartitionsDefinition, keys: Sequence[str]
) -> Rows:
    """Mark each row with the partition its own values tell.

    Static and dynamic keys are compared as text, a time lies in the window that contains
    it, and a multi-partition is told by one column for each dimension. A time without a zone
    is meant in the zone of the partitions; of the hour that a clock shows twice, the first.

    Args:
        expression: A column's name, or a dict of dimension to column's name.
        keys: The run's partitions, in the order the positions count.

    Raises:
        ConfigurationError: The expression does not fit the partitions or the frame.
        BadValue: A row belongs to none of the run's partitions; names column and row.
    """
    locator = _Locator.of(_columns(expression, definition, rows.schema), definition, keys)
    if isinstance(rows, pa.Table):
        return rows.append_column(
            POSITION, pa.chunked_array(locator.locate(rows.to_batches()), POSITION.type)
        )
    return pa.RecordBatchReader.from_batches(rows.schema.append(POSITION), _assigned(rows, locator))


# --- a dict of frames -----------------------------------------------------------------------


def _check_keys(frames: Mapping[str, Rows], keys: Sequence[str]) -> None:
    missing = [key for key in keys if key not in frames]
    foreign = [key for key in frames if key not in set(keys)]
    if missing or foreign:
        raise ConfigurationError(
            "A dict of frames must have exactly the partitions of the run."
            + (f" Missing: {_listed(missing)}." if missing else "")
            + (f" Not of this run: {_listed(foreign)}." if foreign else "")
        )


def _is_empty(rows: Rows) -> bool:
    return len(rows.schema) == 0 or (isinstance(rows, pa.Table) and rows.num_rows == 0)


def _common_schema(schemas: Mapping[str, pa.Schema]) -> pa.Schema:
    """Return the columns of all frames, each with a type that holds every frame's values."""
    common: dict[str, pa.Field] = {}
    first_of: dict[str, str] = {}
    for key, schema in schemas.items():
        for field in schema:
            known = common.setdefault(field.name, field)
            merged = _common_field(known, field)
            if merged is None:
                raise SchemaConflict(
                    f"Column {field.name!r} is {known.type} in the frame of partition "
                    f"{first_of[field.name]!r} and {field.type} in that of {key!r}. Give all "
                    "frames of the dict the same type there."
                )
            common[field.name] = merged
            if first_of.setdefault(field.name, key) != key and pat.is_null(known.type):
                first_of[field.name] = key
    return pa.schema(common.values())


def _common_field(one: pa.Field, other: pa.Field) -> pa.Field | None:
    """Return a field that holds the values of both; None where that would change some."""
    if one.equals(other, check_metadata=True) or pat.is_null(other.type):
        return one
    if pat.is_null(one.type):
        return other
    if NUMERIC in {frozenset((field.metadata or {}).items()) for field in (one, other)}:
        pass
    left, right = _plain(one.type), _plain(other.type)
    if pat.is_decimal(left) != pat.is_decimal(right) and pat.is_floating(left) != pat.is_floating(
        right
    ):
        return None
    try:
        (merged,) = pa.unify_schemas(
            [pa.schema([one.with_type(left)]), pa.schema([other.with_type(right)])],
            promote_options="permissive",
        )
    except pa.ArrowException:
        return None
    return merged
