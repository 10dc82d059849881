"""Values in PostgreSQL's binary form → Arrow, one by one: for results too small for the driver.

What comes out is what the ADBC driver makes of the same column, infinity included, so that
`decode` of `projection` finishes both alike.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from dagster_tools.postgres.column_types import PgType
from dagster_tools.postgres.projection import Projected

__all__ = ["binary_columns", "read_values"]

DAYS_TO_2000 = 10_957
MICROSECONDS_TO_2000 = 946_684_800_000_000
"""PostgreSQL counts from 2000, Arrow from 1970."""

NUMBERS = {
    "boolean": (struct.Struct(">?"), pa.bool_()),
    "smallint": (struct.Struct(">h"), pa.int16()),
    "integer": (struct.Struct(">i"), pa.int32()),
    "bigint": (struct.Struct(">q"), pa.int64()),
    "real": (struct.Struct(">f"), pa.float32()),
    "double precision": (struct.Struct(">d"), pa.float64()),
    "date": (struct.Struct(">i"), pa.int32()),
    "time without time zone": (struct.Struct(">q"), pa.int64()),
    "timestamp without time zone": (struct.Struct(">q"), pa.int64()),
    "timestamp with time zone": (struct.Struct(">q"), pa.int64()),
}

TIMES = {
    "date": (DAYS_TO_2000, pa.date32()),
    "time without time zone": (0, pa.time64("us")),
    "timestamp without time zone": (MICROSECONDS_TO_2000, pa.timestamp("us")),
    "timestamp with time zone": (MICROSECONDS_TO_2000, pa.timestamp("us", "UTC")),
}

TEXTS = frozenset({"text", "character varying", "character", "name", "enum", "json"})
BYTES = {"bytea": pa.binary(), "uuid": pa.binary(16)}


AS_TEXT = frozenset({"numeric", "jsonb"})
"""Whose binary form is no text, while what is made of it is."""


def binary_columns(columns: Sequence[Projected]) -> list[Projected] | None:
    """Return the columns as they must arrive to be read here, None where one cannot be."""
    arriving = [
        replace(column, casts=(*column.casts, PgType("text")))
        if column.arriving.name in AS_TEXT and not column.arriving.array
        else column
        for column in columns
    ]
    readable = all(
        column.arriving.name in NUMBERS.keys() | TEXTS | BYTES.keys() and not column.arriving.array
        for column in arriving
    )
    return arriving if arriving and readable else None


def read_values(values: Sequence[bytes | None], type_: PgType) -> pa.Array:
    """Return one column's values; NULL is None."""
    if type_.name in BYTES:
        return pa.array(values, BYTES[type_.name])
    if type_.name in TEXTS:
        return pa.array(values, pa.binary()).cast(pa.string())
    form, arrow = NUMBERS[type_.name]
    numbers = pa.array([None if v is None else form.unpack(v)[0] for v in values], arrow)
    if type_.name not in TIMES:
        return numbers
    # The addition wraps, as the driver's does: infinity ends up before the first date.
    shift, arrow = TIMES[type_.name]
    return pc.add(numbers, pa.scalar(shift, numbers.type)).cast(arrow)
