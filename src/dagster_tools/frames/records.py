"""Rows as Python has them → Arrow: tuples, lists, dicts, dataclass instances; many at a time.

A row is never looked at on its own: a chunk is turned into columns by C, and a column is made
like one of a frame of Python objects.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from dagster_tools.errors import BadValue, ConfigurationError, SchemaConflict
from dagster_tools.frames import objects
from dagster_tools.frames.arrow import POSTGRESQL_TYPE

__all__ = ["Chunk", "chunks", "owns", "to_arrow"]

FIRST_ROWS, MOST_ROWS = 1_024, 8_192
"""Turning 65,536 tuples into columns took twice as long for each: they leave the processor's cache
in between (measured)."""

MOST_BYTES = 16_000_000
"""What a chunk may have once its rows' size is known: few enough for any memory."""

Columns = list[list[Any]]


@dataclass
class Chunk:
    """Some rows, as columns.

    Args:
        bytes: What they were as Arrow, which tells how many come next.
    """

    names: tuple[str, ...]
    columns: Columns
    rows: int
    bytes: int = 0


def owns(row: object) -> bool:
    """Tell whether this is a row, by the first of them."""
    return isinstance(row, (tuple, list, Mapping)) or _is_dataclass(row)


def chunks(
    rows: Iterable[Any], declared: Sequence[str], most_bytes: int = MOST_BYTES
) -> Iterator[Chunk]:
    """Yield the rows in chunks; the first row tells what kind all of them are.

    Args:
        declared: Names of the columns, in the order of a tuple's values. Rows that name their
            values themselves need none.
        most_bytes: As Arrow, of a chunk after the first.

    Raises:
        ConfigurationError: Tuples without declared columns.
        BadValue: A tuple with too many values, or too few; a row of another kind.
        SchemaConflict: A dict with a key that the first lacks.
    """
    rows, most_bytes = iter(rows), min(most_bytes, MOST_BYTES)
    count, taken = FIRST_ROWS, list(islice(rows, FIRST_ROWS))
    if not taken:
        return
    names, transpose = _reader(taken[0], declared)
    first = 0
    while taken:
        chunk = Chunk(names, transpose(taken, first), len(taken))
        yield chunk
        first += len(taken)
        if chunk.bytes:
            count = max(1, min(MOST_ROWS, most_bytes * len(taken) // chunk.bytes))
        taken = list(islice(rows, count))


def to_arrow(chunk: Any, hints: Mapping[str, pa.DataType]) -> pa.Table:
    """Turn a `Chunk` into a table.

    Raises:
        BadValue: Values that make no column; names column and row.
    """
    arrays, fields = [], []
    for name, values in zip(chunk.names, chunk.columns, strict=True):
        try:
            encoded = objects.to_arrow(values, hints.get(name))
        except BadValue as error:
            raise BadValue(error.reason, column=name, row=error.row) from None
        type_ = encoded.postgresql_type
        metadata = None if type_ is None else {POSTGRESQL_TYPE: type_.encode()}
        arrays.append(encoded.data)
        fields.append(pa.field(name, encoded.data.type, metadata=metadata))
    table = pa.table(arrays, schema=pa.schema(fields))
    chunk.bytes = table.nbytes
    return table


# --- kinds of rows --------------------------------------------------------------------------

Transpose = Callable[[list[Any], int], Columns]


def _reader(row: object, declared: Sequence[str]) -> tuple[tuple[str, ...], Transpose]:
    """Return the columns' names, and what makes columns of such rows."""
    if isinstance(row, Mapping):
        names = tuple(row)
        _check_names(names)
        return names, lambda rows, first: _of_dicts(rows, names, first)
    if _is_dataclass(row):
        names = tuple(item.name for item in dataclasses.fields(row))  # type: ignore[arg-type]  # an instance, as asked
        return names, lambda rows, first: _of_instances(rows, type(row), names, first)
    if hasattr(row, "_fields"):
        declared = row._fields
    if not declared:
        raise ConfigurationError(
            "A tuple does not say which columns its values are of. Declare them in its order, as "
            "in metadata={'columns': {'code': 'string', 'day': 'date'}}, or give dicts."
        )
    names = tuple(declared)
    return names, lambda rows, first: _of_tuples(rows, names, first)


def _of_tuples(rows: list[Any], names: Sequence[str], first: int) -> Columns:
    width = len(names)
    kinds = set(map(type, rows))
    if not all(issubclass(kind, (tuple, list)) for kind in kinds):
        odd = next(n for n, row in enumerate(rows) if not isinstance(row, (tuple, list)))
        raise BadValue(f"is a {type(rows[odd]).__name__}, and the first is not", row=first + odd)
    if set(map(len, rows)) != {width}:
        odd = next(number for number, row in enumerate(rows) if len(row) != width)
        raise BadValue(
            f"has {len(rows[odd])} values, and the columns are {list(names)}", row=first + odd
        )
    return [list(map(operator.itemgetter(position), rows)) for position in range(width)]


def _of_dicts(rows: list[Any], names: Sequence[str], first: int) -> Columns:
    try:
        # Not of a defaultdict, say, which would make the keys it is asked for.
        if set(map(type, rows)) == {dict} and set(map(len, rows)) == {len(names)}:
            with suppress(KeyError):
                return [list(map(operator.itemgetter(name), rows)) for name in names]
        present = set().union(*rows)
        columns = [[row.get(name) for row in rows] for name in names]
    except (AttributeError, TypeError):
        odd = next(number for number, row in enumerate(rows) if not isinstance(row, Mapping))
        raise BadValue(
            f"is a {type(rows[odd]).__name__}, and the first is a dict", row=first + odd
        ) from None
    if None in present:
        odd = next(number for number, row in enumerate(rows) if None in row)
        raise BadValue(f"has more values than the columns {list(names)}", row=first + odd)
    if unknown := present - set(names):
        raise SchemaConflict(
            f"A later row has keys {sorted(map(str, unknown))}, which the first lacks: it has "
            f"{list(names)}. Give all rows the same keys."
        )
    return columns


def _of_instances(rows: list[Any], cls: type, names: Sequence[str], first: int) -> Columns:
    if not all(issubclass(kind, cls) for kind in set(map(type, rows))):
        odd = next(number for number, row in enumerate(rows) if not isinstance(row, cls))
        raise BadValue(
            f"is a {type(rows[odd]).__name__}, and the first is a {cls.__name__}", row=first + odd
        )
    return [list(map(operator.attrgetter(name), rows)) for name in names]


def _check_names(names: Sequence[object]) -> None:
    odd = [name for name in names if not isinstance(name, str)]
    if odd:
        raise ConfigurationError(f"The keys of a row are names of columns, and {odd} are none.")
    if not names:
        raise ConfigurationError("The first row is an empty dict, which names no column.")


def _is_dataclass(row: object) -> bool:
    return dataclasses.is_dataclass(row) and not isinstance(row, type)
