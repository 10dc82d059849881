"""Arrow → COPY FROM STDIN."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import pgpq
import pyarrow as pa
import pyarrow.compute as pc
from psycopg.sql import Identifier

from dagster_tools.postgres.column_types import PgType, wire_type
from dagster_tools.postgres.connection import Connection, translated
from dagster_tools.postgres.merge import compose_copy_in
from dagster_tools.postgres.wire import encode, render

__all__ = ["Copied", "copy_in", "has_binary_form"]

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"


@dataclass(frozen=True, slots=True)
class Copied:
    """How much a COPY moved: rows as the server counts them, bytes as they were sent."""

    rows: int = 0
    bytes: int = 0

    def __add__(self, other: Copied) -> Copied:
        return Copied(self.rows + other.rows, self.bytes + other.bytes)


def has_binary_form(schema: pa.Schema, targets: Mapping[str, PgType]) -> bool:
    """Whether every column has a binary form; one that has none makes the whole COPY text."""
    return all(wire_type(targets[field.name], field.type) is not None for field in schema)


def copy_in(
    connection: Connection,
    target: Identifier,
    columns: list[str],
    batches: Iterable[pa.RecordBatch],
    targets: Mapping[str, PgType],
    *,
    binary: bool,
    first_row: int = 0,
    progress: Callable[[int, int], None],
) -> Copied:
    """Copy record batches into a table, in one COPY.

    Args:
        columns: The columns of the batches, the materialization's number among them.
        batches: Their values as `fit` returned them.
        targets: What each column is encoded as.
        first_row: Position of the first row in the frame, for messages.
        progress: Told the rows and bytes of each part that was sent.

    Raises:
        BadValue: The server refused a value; nothing of this COPY is kept.
    """
    parts = _binary_parts(batches, targets) if binary else _text_parts(batches, targets)
    statement = compose_copy_in(target, columns, binary=binary)
    size = 0
    with translated("copying rows", data=True, first_row=first_row), connection.cursor() as cursor:
        with cursor.copy(statement) as copy:
            for rows, data in parts:
                copy.write(data)
                size += len(data)
                progress(rows, len(data))
        return Copied(cursor.rowcount, size)


def _binary_parts(
    batches: Iterable[pa.RecordBatch], targets: Mapping[str, PgType]
) -> Iterator[tuple[int, bytes]]:
    # Header and trailer are written here and not by the encoder: its schema may change on
    # the way, since decimals of another scale have another Arrow type.
    yield 0, HEADER
    encoder, schema = None, None
    for batch in batches:
        encoded = _mapped(batch, targets, encode)
        if encoder is None or encoded.schema != schema:
            yield 0, _rest(encoder)
            encoder, schema = pgpq.ArrowToPostgresBinaryEncoder(encoded.schema), encoded.schema
            encoder.write_header()
        yield batch.num_rows, encoder.write_batch(encoded)
    yield 0, _rest(encoder)
    yield 0, TRAILER


def _rest(encoder: pgpq.ArrowToPostgresBinaryEncoder | None) -> bytes:
    """Return what the encoder still holds back: it gives its bytes out by the megabyte."""
    if encoder is None:
        return b""
    held: bytes = encoder.finish()
    return held.removesuffix(TRAILER)


def _text_parts(
    batches: Iterable[pa.RecordBatch], targets: Mapping[str, PgType]
) -> Iterator[tuple[int, bytes]]:
    for batch in batches:
        rendered = _mapped(batch, targets, render)
        cells = [pc.fill_null(_escaped(column), "\\N") for column in rendered.columns]
        lines = pc.binary_join_element_wise(*cells, pa.scalar("\t", pa.large_string()))
        ended = pc.binary_join_element_wise(
            lines, *(pa.scalar(text, pa.large_string()) for text in ("\n", ""))
        )
        yield batch.num_rows, ended.buffers()[2].to_pybytes()


def _mapped(
    batch: pa.RecordBatch,
    targets: Mapping[str, PgType],
    dress: Callable[[pa.Array, PgType], pa.Array],
) -> pa.RecordBatch:
    columns = [
        dress(column, targets[name])
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    ]
    # The encoder matches columns by position; names of any shape need not reach it.
    return pa.RecordBatch.from_arrays(columns, [str(position) for position in range(len(columns))])


def _escaped(column: pa.Array) -> pa.Array:
    """Escape what COPY's text format gives a meaning to (documentation, "COPY", text format)."""
    for character, escape in (("\\", r"\\"), ("\n", r"\n"), ("\r", r"\r"), ("\t", r"\t")):
        column = pc.replace_substring(column, character, escape)
    return column
