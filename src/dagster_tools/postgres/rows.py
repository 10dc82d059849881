"""The rows of one output, on their way: from the frame, fitted to the table, numbered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from typing import Protocol

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from dagster_tools.errors import BadValue, SchemaConflict
from dagster_tools.postgres.column_types import PgType
from dagster_tools.postgres.columns import Column
from dagster_tools.postgres.geometry import SPATIAL, Shape, srid_of_value
from dagster_tools.postgres.names import MATERIALIZATION_ID
from dagster_tools.postgres.wire import check_modifiers, fit

__all__ = [
    "CallerError",
    "Feed",
    "Misfit",
    "Numbered",
    "Source",
    "Stream",
    "check_key",
    "different_srids",
    "open_source",
]

ROWS_AT_A_TIME = 8_192
"""Rows encoded at a time: few enough that the server never waits for the next ones.

What is on the way fits a socket's buffers only so long. A million rows of ten columns took 8 %
longer with 65,536 at a time, and nothing less with a thread that encodes ahead (measured).
"""

SHOWN = 5
"""Rows that a message names."""

BYTES_AT_A_TIME = 16_000_000
"""Bounds the same for long rows, and with it the memory that encoding takes."""


@dataclass(frozen=True, slots=True)
class Source:
    """The rows of one output.

    Args:
        schema: Of the frame's own columns; later batches of a stream may have other types.
        known: A frame in memory, or a stream's first batch: what can be checked beforehand.
        rest: What a stream has left.
        by_partition: `known` and `rest` end in a column of partition positions.
    """

    schema: pa.Schema
    known: pa.Table
    rest: Iterator[pa.RecordBatch]
    chunk_size: int
    by_partition: bool

    @property
    def empty(self) -> bool:
        """Whether there is no row at all; streams begin with a batch that has some."""
        return bool(self.known.num_rows == 0)

    def chunks(self, name: str) -> Iterable[pa.Array]:
        """Return what is known of one column."""
        chunks: list[pa.Array] = self.known.column(name).chunks
        return chunks

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all rows once, no more at a time than are encoded at a time."""
        for batch in _callers_own(chain(self.known.to_batches(), self.rest)):
            rows = _rows_at_a_time(batch, self.chunk_size)
            for start in range(0, batch.num_rows, rows):
                yield batch.slice(start, rows)


class Stream(Protocol):
    """Record batches that are read once: of columns of these names, but perhaps of other types."""

    @property
    def schema(self) -> pa.Schema:
        """The columns, each of the type that is inferred from."""

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """Yield the batches."""


def open_source(data: pa.Table | Stream, chunk_size: int, *, by_partition: bool) -> Source:
    """Look at a stream's first rows; an empty one shows here."""
    rest: Iterator[pa.RecordBatch] = iter(())
    if not isinstance(data, pa.Table):
        rest = (batch for batch in data if batch.num_rows)
        first = next(rest, None)
        known = data.schema.empty_table() if first is None else pa.Table.from_batches([first])
    else:
        known = data
    return Source(_own(data.schema, by_partition), known, rest, chunk_size, by_partition)


class CallerError(Exception):
    """What the caller's code raised of the driver's errors: not to be taken for the server's."""

    def __init__(self, error: psycopg.Error) -> None:
        super().__init__()
        self.error = error


def _callers_own(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Mark errors of a source that is read from another PostgreSQL."""
    try:
        yield from batches
    except psycopg.Error as error:
        raise CallerError(error) from error


def _own(schema: pa.Schema, by_partition: bool) -> pa.Schema:
    """Return the frame's columns, without the positions of partitions."""
    return schema.remove(len(schema) - 1) if by_partition else schema


def _rows_at_a_time(batch: pa.RecordBatch, chunk_size: int) -> int:
    bytes_per_row = max(1, _size(batch) // max(1, batch.num_rows))
    rows: int = min(ROWS_AT_A_TIME, min(chunk_size, BYTES_AT_A_TIME) // bytes_per_row)
    return max(1, rows)


def _size(batch: pa.RecordBatch) -> int:
    try:
        size: int = batch.nbytes
    except pa.ArrowTypeError:
        # pyarrow 19 cannot tell it where a column is a view; whole buffers are no less.
        size = batch.get_total_buffer_size()
    return size


def check_key(rows: pa.Table | pa.RecordBatch, key: Sequence[str], *, first_row: int = 0) -> None:
    """Refuse rows whose primary key has a NULL in it.

    Raises:
        BadValue: Names the columns, how many rows, and the first of these.
    """
    nulls = {name: rows.column(name) for name in key if name in rows.schema.names}
    nulls = {name: column.is_null() for name, column in nulls.items() if column.null_count}
    if not nulls:
        return
    anywhere = reduce(pc.or_, nulls.values())
    found = pc.indices_nonzero(anywhere)
    shown = ", ".join(str(first_row + row) for row in found[:SHOWN].to_pylist())
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    count = "1 row has" if len(found) == 1 else f"{len(found)} rows have"
    raise BadValue(
        f"{count} NULL in the primary key {list(key)}, in column {' and '.join(map(repr, nulls))}: "
        f"row {shown}{more}. A row is found by its key; leave those out, or fill the column."
    )


def different_srids(column: str, there: int, where: str, here: int) -> SchemaConflict:
    """Return what to raise for geometry that would join other geometry in another CRS."""
    told, found = (f"SRID {srid}" if srid else "no CRS" for srid in (there, here))
    return SchemaConflict(
        f"column {column!r} has {told} {where}, and {found} in the frame. Bring them together with "
        f"frame.to_crs({there or '…'}), or, if no coordinate has to change, with frame.set_crs."
    )


class Numbered(Protocol):
    """A partition, and the number its new rows bear."""

    @property
    def key(self) -> str | None:
        """The partition's key, None where there are no partitions."""

    @property
    def materialization_id(self) -> int:
        """The number."""


class Feed:
    """The frame's batches, fitted to the table and numbered, up to one that is unlike them.

    Iterating stops at a batch that does not fit; `misfit` then tells it, and after `retarget`
    the next iteration begins with it. It stops, too, where a stream's columns change their
    types, and `schema` with them: they may have to travel another way. `filled` tells the
    columns that had a value so far, `srids` the CRS of geometry whose column names none.
    """

    def __init__(
        self,
        source: Source,
        partitions: Sequence[Numbered],
        targets: Mapping[str, PgType],
        wanted: Iterable[Column],
        key: Sequence[str] = (),
    ) -> None:
        self.schema = source.schema
        self.targets = {name: targets[name] for name in source.schema.names}
        self.wanted = {column.name: column for column in wanted}
        self.key = key
        self.row = 0
        self.partitions = partitions
        self.rows: dict[str | None, int] = {partition.key: 0 for partition in partitions}
        self.filled: set[str] = set()
        self.srids: dict[str, int] = {}
        self.misfit: Misfit | None = None
        self._numbers = pa.array([p.materialization_id for p in partitions], pa.int32())
        self._by_partition = source.by_partition
        self._batches = source.batches()
        self._next: pa.RecordBatch | None = None
        self._exhausted = False

    @property
    def columns(self) -> list[str]:
        """Names of the columns that are yielded."""
        return [*self.schema.names, MATERIALIZATION_ID]

    @property
    def exhausted(self) -> bool:
        """Whether every row was yielded."""
        return self._exhausted

    def retarget(self, column: str, type_: PgType) -> None:
        """Fit a column's values to another type from now on."""
        self.targets[column] = type_

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        pending = [self._next] if self._next else []
        self.misfit = self._next = None
        for batch in chain(pending, self._batches):
            schema = _own(batch.schema, self._by_partition)
            if schema != self.schema:
                self.schema, self._next = schema, batch
                return
            check_key(batch, self.key, first_row=self.row)
            arrays: list[pa.Array] = []
            for frame_field, array in zip(schema, batch.columns, strict=False):
                try:
                    arrays.append(self._fitted(array, frame_field))
                except (BadValue, SchemaConflict) as error:
                    self.misfit, self._next = Misfit(frame_field, array, error), batch
                    return
            yield pa.RecordBatch.from_arrays([*arrays, self._numbered(batch)], names=self.columns)
            self.row += batch.num_rows
        self._exhausted = True

    def _fitted(self, array: pa.Array, frame_field: pa.Field) -> pa.Array:
        name, row = frame_field.name, self.row
        column = self.wanted[name]
        fitted = fit(array, frame_field, self.targets[name], first_row=row)
        if fitted.null_count < len(fitted):
            self.filled.add(name)
            self._check_srid(name, fitted)
        check_modifiers(
            fitted,
            name,
            not_null=column.not_null,
            nonnegative=column.nonnegative,
            first_row=row,
        )
        return fitted

    def _check_srid(self, name: str, fitted: pa.Array) -> None:
        """Refuse geometry in another CRS than the rows before, where no type holds to one."""
        target = self.targets[name]
        is_text = not pat.is_large_binary(fitted.type)
        if is_text or target.name not in SPATIAL or Shape.of(target).srid:
            return
        srid = srid_of_value(fitted)
        if (before := self.srids.setdefault(name, srid)) != srid:
            raise different_srids(name, before, "in the rows before", srid)

    def _numbered(self, batch: pa.RecordBatch) -> pa.Array:
        """Return the materialization's number of each row, and count the rows by partition."""
        if not self._by_partition:
            self.rows[self.partitions[0].key] += batch.num_rows
            return pa.repeat(self._numbers[0], batch.num_rows)
        positions = batch.column(batch.num_columns - 1)
        for counted in pc.value_counts(positions).to_pylist():
            self.rows[self.partitions[counted["values"]].key] += counted["counts"]
        return self._numbers.take(positions)


@dataclass(frozen=True, slots=True)
class Misfit:
    """A column of a batch whose values do not fit the table."""

    field: pa.Field
    values: pa.Array
    error: BadValue | SchemaConflict
