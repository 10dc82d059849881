"""Arrow ⇄ Arrow: tables and streams, and everything that speaks the Arrow C stream protocol.

Also the home of the one annotation that columns carry here, `postgresql:type`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyarrow as pa

from dagster_tools.errors import BadValue, UnsupportedFrame

__all__ = [
    "EXTRA",
    "POSTGRESQL_TYPE",
    "SUPPORTED",
    "Rows",
    "Stream",
    "from_arrow",
    "is_text",
    "loads_as",
    "matched",
    "of_class",
    "owns",
    "postgresql_type",
    "to_arrow",
]

SUPPORTED = "pyarrow.Table or RecordBatchReader"

EXTRA: str | None = None

POSTGRESQL_TYPE = b"postgresql:type"
"""Key of field metadata: the column's type as PostgreSQL's `format_type` writes it.

Needed where Arrow has no word for the type (`numeric` without a scale travels as text).
Kept in the tables users get, so that such a column finds its type again when written.
"""


@dataclass(frozen=True, slots=True)
class Stream:
    """Record batches on the move, read once; a `RecordBatchReader` whose types may change.

    Args:
        schema: The columns, as the first batches have them. Later ones have the same columns,
            each perhaps of another type.
    """

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return self.batches


Rows: TypeAlias = pa.Table | pa.RecordBatchReader | Stream
"""What `to_arrow` makes of a frame: a table where it is in memory, else a stream."""

_MAX_DECIMAL128, _MAX_DECIMAL256 = 38, 76
_SCALED_NUMERIC = re.compile(r"numeric\((\d+),(-?\d+)\)")


def owns(frame: object) -> bool:
    """Tell whether the value is Arrow's, or can be read through the C stream protocol.

    A Series speaks that protocol as well, but is a column, not a frame.
    """
    if isinstance(frame, (pa.Table, pa.RecordBatch, pa.RecordBatchReader)):
        return True
    is_column = isinstance(frame, (pa.Array, pa.ChunkedArray))
    if isinstance(frame, type) or is_column or type(frame).__name__.endswith("Series"):
        return False
    return hasattr(frame, "__arrow_c_stream__")


def loads_as(annotation: type) -> bool:
    """Tell whether the class is one of Arrow's two: the table or the stream."""
    return issubclass(annotation, (pa.Table, pa.RecordBatchReader))


def to_arrow(
    frame: object,
    hints: Mapping[str, pa.DataType],  # noqa: ARG001 Arrow leaves nothing to hint at
) -> pa.Table | pa.RecordBatchReader:
    """Hand a table or a reader through as it is; read anything else through its C stream.

    Arrow's types say all there is to say, so hints are not needed, and NaN stays NaN. A
    foreign object gives a reader, since it may be larger than memory.
    """
    if isinstance(frame, (pa.Table, pa.RecordBatchReader)):
        return frame
    if isinstance(frame, pa.RecordBatch):
        return pa.Table.from_batches([frame])
    try:
        return pa.RecordBatchReader.from_stream(frame)
    except pa.ArrowInvalid as exc:
        raise UnsupportedFrame(
            f"the Arrow stream of {type(frame).__module__}.{type(frame).__name__} is not one "
            "of rows and columns; make it a frame of one column"
        ) from exc


def from_arrow(stream: pa.RecordBatchReader, as_type: type) -> pa.Table | pa.RecordBatchReader:
    """Give the stream itself, or read it into a table.

    `numeric(p,s)` becomes a decimal where Arrow has one so wide (76 digits); `numeric`
    without a scale stays exact text, and JSON stays text. Memory of a reader is that of
    one batch.
    """
    reader = _with_decimals(stream)
    return reader if issubclass(as_type, pa.RecordBatchReader) else reader.read_all()


def of_class(frame: object, as_type: type, own: str) -> Any:
    """Return a frame, or an instance of a subclass that its constructor makes of it.

    Args:
        own: The frame's own class, as a user writes it.
    """
    if type(frame) is as_type:
        return frame
    try:
        return as_type(frame)
    except Exception as exc:
        raise UnsupportedFrame(
            f"{as_type.__module__}.{as_type.__qualname__} cannot be made from a {own} alone; "
            f"annotate the input as {own} and convert it"
        ) from exc


def postgresql_type(field: pa.Field) -> str | None:
    """Return the PostgreSQL type a field says it holds, if it says so."""
    stored = (field.metadata or {}).get(POSTGRESQL_TYPE)
    return None if stored is None else str(stored.decode())


def matched(batch: pa.RecordBatch, names: list[str]) -> pa.RecordBatch:
    """Return a batch with its columns in this order, all NULL where it lacks one."""
    own = {field.name: field for field in batch.schema}
    nothing = pa.nulls(batch.num_rows)
    return pa.RecordBatch.from_arrays(
        [batch.column(name) if name in own else nothing for name in names],
        schema=pa.schema([own.get(name, pa.field(name, pa.null())) for name in names]),
    )


def is_text(type_: pa.DataType) -> bool:
    """Tell whether the type is one of Arrow's three for text."""
    return bool(
        pa.types.is_string(type_) or pa.types.is_large_string(type_) or _is_text_view(type_)
    )


def _is_text_view(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string_view(type_))


def _with_decimals(stream: pa.RecordBatchReader) -> pa.RecordBatchReader:
    schema = pa.schema([_with_decimal(field) for field in stream.schema], stream.schema.metadata)
    if schema == stream.schema:
        return stream

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in stream:
            arrays = [
                _cast(array, field) for array, field in zip(batch.columns, schema, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _with_decimal(field: pa.Field) -> pa.Field:
    declared = _SCALED_NUMERIC.fullmatch(postgresql_type(field) or "")
    if not declared or not is_text(field.type):
        return field
    precision, scale = int(declared[1]), int(declared[2])
    # PostgreSQL 15 allows a negative scale and one above the precision; Arrow's does not
    # mean the same by them, so those stay text.
    if not 0 <= scale <= precision <= _MAX_DECIMAL256:
        return field
    decimal = pa.decimal128 if precision <= _MAX_DECIMAL128 else pa.decimal256
    return field.with_type(decimal(precision, scale))


def _cast(array: pa.Array, field: pa.Field) -> pa.Array:
    if array.type == field.type:
        return array
    try:
        return array.cast(field.type)
    except pa.ArrowInvalid:
        # Not `from exc`: Arrow's message holds the value.
        raise BadValue(
            f"holds NaN or Infinity, which Arrow's {field.type} cannot; load it as text with "
            f'columns={{"{field.name}": "text"}}, or load pandas',
            column=field.name,
        ) from None
