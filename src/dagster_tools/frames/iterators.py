"""Several frames, one after another → one Arrow stream: `pd.read_csv(chunksize=…)`, a list.

The first frame that has rows tells the columns. Columns are matched by name: one that a later
frame lacks is NULL there, and one that the first lacks is refused. Types need not agree: each
frame keeps its own, and the writer fits them to the column's type, or widens that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import TypeAlias

import pyarrow as pa

from dagster_tools.errors import BadValue, DagsterToolsError, SchemaConflict
from dagster_tools.frames.arrow import Rows, Stream, matched

__all__ = ["owns", "to_arrow"]


Convert: TypeAlias = Callable[[object, Mapping[str, pa.DataType]], Rows]


def owns(value: object, is_frame: Callable[[object], bool]) -> bool:
    """Tell whether the value is an iterator, or a list or tuple of nothing but frames.

    What an iterator gives is only known by reading it.
    """
    if isinstance(value, (list, tuple)):
        return all(map(is_frame, value))
    return isinstance(value, Iterator)


def to_arrow(
    frames: Iterable[object], convert: Convert, hints: Mapping[str, pa.DataType]
) -> Stream:
    """Turn frames into one stream; reads as far as the first that has rows.

    An error of the iterator itself comes through as it is.

    Args:
        convert: Turns one of them into Arrow.
        hints: As in `frames.to_arrow`; what earlier frames were is a hint to the later ones.

    Raises:
        UnsupportedFrame, ConfigurationError, BadValue: As `frames.to_arrow`, of one of the
            frames; also while the stream is read. Rows are counted from the first frame on.
        SchemaConflict: A later frame has a column that the first lacks.
    """
    batches = _batches(frames, convert, dict(hints))
    schema = pa.schema([])
    for batch in batches:
        if batch.num_rows:
            return Stream(batch.schema, _matched(chain([batch], batches), batch.schema.names))
        schema = schema if len(schema) else batch.schema
    return Stream(schema, iter(()))


def _batches(
    frames: Iterable[object], convert: Convert, hints: dict[str, pa.DataType]
) -> Iterator[pa.RecordBatch]:
    """Yield the batches of each frame, one without rows where a frame has none."""
    row = 0
    for number, frame in enumerate(frames):
        with _placed(number, row):
            rows = convert(frame, hints)
        hints |= {f.name: f.type for f in rows.schema if not pa.types.is_null(f.type)} | hints
        yield pa.RecordBatch.from_pylist([], rows.schema)
        for batch in rows.to_batches() if isinstance(rows, pa.Table) else rows:
            yield batch
            row += batch.num_rows


def _matched(batches: Iterable[pa.RecordBatch], names: list[str]) -> Iterator[pa.RecordBatch]:
    """Bring the columns of each batch into the order of the first frame's."""
    for batch in batches:
        if batch.num_rows and (unknown := set(batch.schema.names) - set(names)):
            raise SchemaConflict(
                f"A later frame of the iterator has columns {sorted(unknown)}, which its first "
                f"frame with rows lacks: that one has {names}. Give all of them the same columns."
            )
        yield batch if batch.schema.names == names else matched(batch, names)


@contextmanager
def _placed(number: int, first_row: int) -> Iterator[None]:
    """Say which of the frames an error is about; count rows from the first one on."""
    try:
        yield
    except BadValue as error:
        row = None if error.row is None else first_row + error.row
        raise BadValue(error.reason, column=error.column, row=row) from error.__cause__
    except DagsterToolsError as error:
        error.about(f"frame {number} of the iterator")
        raise
