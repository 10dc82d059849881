"""What an asset returned → rows as Arrow, and how they join those that are there."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import dagster as dg
import pyarrow as pa

from dagster_tools import frames
from dagster_tools.errors import (
    BadValue,
    ConfigurationError,
    DagsterToolsError,
)
from dagster_tools.partitioning import assign_partitions, join_partitions
from dagster_tools.postgres.catalog import fetch_catalog, fetch_storage
from dagster_tools.postgres.column_types import arrow_hint
from dagster_tools.postgres.connection import (
    Connection,
)
from dagster_tools.postgres.deletion import AllOf, AnyOf, Deletion, Keys
from dagster_tools.postgres.geometry import is_spatial
from dagster_tools.postgres.names import check_column_names
from dagster_tools.postgres.options import (
    OutputOptions,
)
from dagster_tools.postgres.write import Merge, Output
from dagster_tools.sql import (
    SQL,
    And,
    Batches,
    Delete,
    Eq,
    IncrementalDataFrame,
    Transacted,
)

__all__ = [
    "batch_to_arrow",
    "check_incremental",
    "check_transacted",
    "frame_and_merge",
    "hints_for",
    "rows_of",
    "told_once",
]


def frame_and_merge(obj: object, options: OutputOptions) -> tuple[object, Merge | None]:
    """Return the frame, and how its rows join the earlier ones; None where they replace them.

    There is no append by accident: without a key or a deletion a re-run would double the rows.
    """
    check_incremental(options)
    if not isinstance(obj, IncrementalDataFrame):
        return obj, Merge() if options.incremental else None
    if obj.delete is None and not options.primary_key:
        raise ConfigurationError(
            "An IncrementalDataFrame needs to know which earlier rows go: give it "
            "delete=Eq(...), or the asset a primary_key."
        )
    if isinstance(obj.frame, (SQL, IncrementalDataFrame, Batches)):
        raise ConfigurationError(
            "IncrementalDataFrame takes a frame or a Query, and got an object of class "
            f"{type(obj.frame).__name__}."
        )
    return obj.frame, Merge(_deletion(obj.delete) if obj.delete is not None else None)


def check_transacted(obj: Transacted, options: OutputOptions) -> None:
    """Refuse rows that would replace more than they stand for, and what has no one transaction."""
    if isinstance(obj.value, Batches):
        raise ConfigurationError(
            "Batches are committed one by one, and this value is to be written in one "
            "transaction. Return a frame, or an iterator of frames."
        )
    joins = obj.value is None or isinstance(obj.value, (IncrementalDataFrame, SQL))
    if obj.partial is not None and not joins and not options.incremental:
        raise ConfigurationError(obj.partial)


def check_incremental(options: OutputOptions) -> None:
    """Refuse an upsert without a key."""
    if options.incremental and not options.primary_key:
        raise ConfigurationError(
            "incremental needs a primary_key, which tells new rows from those to update. "
            "Name it in the metadata: 'primary_key': 'id'."
        )


def _deletion(expression: Delete) -> Deletion:
    """Bring the values of a delete expression to Arrow, as those of a frame are."""
    if isinstance(expression, Eq):
        # Not zip(*rows): of a hundred thousand rows that takes thirty times as long.
        arrays = [
            _values([row[position] for row in expression.rows], column)
            for position, column in enumerate(expression.columns)
        ]
        return Keys(expression.columns, pa.table(arrays, names=list(expression.columns)))
    operands = tuple(_deletion(operand) for operand in expression.operands)
    return AllOf(operands) if isinstance(expression, And) else AnyOf(operands)


def _values(values: list[object], column: str) -> pa.Array:
    try:
        return frames.values_to_arrow(values, column)
    except BadValue as error:
        if any(base.__name__ == "BaseGeometry" for value in values for base in type(value).__mro__):
            raise ConfigurationError(
                f"delete gives geometries for the column {column!r}. Rows are not found by their "
                "geometry: name a column of numbers or text."
            ) from None
        which = "a value" if error.row is None else f"value {error.row}"
        raise BadValue(f"delete: {which} {error.reason}", column=column) from None


def rows_of(
    context: dg.OutputContext, output: Output, obj: object, hints: Mapping[str, pa.DataType]
) -> tuple[frames.Rows, bool]:
    """Return the output's rows as Arrow, and whether each is marked with its partition."""
    keys = [key for key in output.lineage.partition_keys if key is not None]
    if isinstance(obj, dict):
        if not keys:
            raise ConfigurationError(
                "A dict of frames is for a run over several partitions, and this output has none."
            )
        by_key = {key: _partition(key, frame, hints) for key, frame in obj.items()}
        return join_partitions(by_key, keys), True
    rows = _arrow(obj, hints)
    if len(keys) < 2:
        return rows, False
    if output.options.partition_expr is None:
        raise ConfigurationError(
            f"The run covers {len(keys)} partitions ({keys[0]} to {keys[-1]}), and a single "
            "frame does not say which row belongs to which. Return a dict of partition key to "
            "frame, or name the column that tells with metadata={'partition_expr': 'column'}."
        )
    if len(rows.schema) == 0:
        return join_partitions(dict.fromkeys(keys, rows), keys), True
    definition = context.asset_partitions_def
    return assign_partitions(rows, output.options.partition_expr, definition, keys), True


def _partition(key: object, frame: object, hints: Mapping[str, pa.DataType]) -> frames.Rows:
    try:
        return _arrow(frame, hints)
    except DagsterToolsError as error:
        error.about(f"partition {key}")
        raise


@contextmanager
def told_once(context: dg.OutputContext) -> Iterator[None]:
    """Log which indexes are not written: once, however many frames have such an index.

    Those of an iterator are seen while it is written; warnings of its own come after that.
    """
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", frames.IndexDropped)
            yield
    finally:
        dropped = [w for w in caught if issubclass(w.category, frames.IndexDropped)]
        for message in dict.fromkeys(str(w.message) for w in dropped):
            context.log.warning(message)
        for other in caught:
            if other not in dropped:
                warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)


def _arrow(frame: object, hints: Mapping[str, pa.DataType]) -> frames.Rows:
    return _named(frames.to_arrow(frame, hints))


def _named(rows: frames.Rows) -> frames.Rows:
    if rows.schema.names:
        check_column_names(rows.schema.names)
    return rows


def batch_to_arrow(
    connection: Connection, output: Output, data: object
) -> tuple[frames.Rows, Merge | None]:
    """Return a batch's rows as Arrow, and how they join those that are there."""
    rows, merge = frame_and_merge(data, output.options)
    hints = hints_for(connection, output)
    options = output.options
    arrow = frames.rows_to_arrow(rows, list(options.columns), hints, chunk_size=options.chunk_size)
    return _named(arrow), merge


def hints_for(connection: Connection, output: Output) -> dict[str, pa.DataType]:
    """Return the Arrow type of each declared or existing column, by name."""
    catalog = fetch_catalog(connection, output.table, output.tracking.schema)
    # Geometry needs no hint, and where there is no PostGIS, there is no such type.
    declared = [c for c in output.options.columns.values() if not is_spatial(c.type)]
    storage = fetch_storage(connection, declared)
    if catalog.existing is not None:
        storage |= {column.name: column.storage for column in catalog.existing.columns}
    return {name: hint for name, type_ in storage.items() if (hint := arrow_hint(type_))}
