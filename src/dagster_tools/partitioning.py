"""Which partition a row belongs to, where one output covers several.

The writer wants one stream whose last column holds, for each row, the position of its
partition. That column comes from a `dict` of frames, or from a column of the frame that
`partition_expr` names.
"""

from __future__ import annotations

import bisect
import datetime as dt
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from dagster_tools.errors import BadValue, ConfigurationError
from dagster_tools.postgres.names import MATERIALIZATION_ID

__all__ = ["assign_partitions", "join_partitions"]

Rows: TypeAlias = pa.Table | pa.RecordBatchReader
POSITION = pa.field(MATERIALIZATION_ID, pa.int32())


def join_partitions(frames: Mapping[str, Rows], keys: Sequence[str]) -> Rows:
    """Put the frames of several partitions one after the other, each row marked with its own.

    Args:
        frames: By partition key; exactly the run's partitions.

    Raises:
        ConfigurationError: A partition of the run is missing, or one is not the run's.
    """
    missing, foreign = sorted(set(keys) - set(frames)), sorted(set(frames) - set(keys))
    if missing or foreign:
        raise ConfigurationError(
            "A dict of frames must have exactly the partitions of the run. "
            + (f"Missing: {missing}. " if missing else "")
            + (f"Not of this run: {foreign}." if foreign else "")
        )
    # Frames without a column (pandas.DataFrame()) have no say about the columns.
    present = {key: rows for key, rows in frames.items() if len(rows.schema)}
    schema = pa.unify_schemas(
        [rows.schema for rows in present.values()], promote_options="permissive"
    )
    marked_schema = schema.append(POSITION)
    positions = {key: position for position, key in enumerate(keys)}
    if all(isinstance(rows, pa.Table) for rows in present.values()):
        tables = [
            _widened(rows, schema).append_column(
                POSITION, pa.repeat(pa.scalar(positions[key], pa.int32()), rows.num_rows)
            )
            for key, rows in present.items()
        ]
        return pa.concat_tables(tables) if tables else marked_schema.empty_table()
    batches = (
        batch for key, rows in present.items() for batch in _marked(rows, schema, positions[key])
    )
    return pa.RecordBatchReader.from_batches(marked_schema, batches)


def assign_partitions(
    rows: Rows, expression: object, definition: dg.PartitionsDefinition, keys: Sequence[str]
) -> Rows:
    """Mark each row with the partition its own values tell.

    Static and dynamic keys are compared as text, a time lies in the window that contains
    it, and a multi-partition is told by one column for each dimension.

    Args:
        expression: A column's name, or a dict of dimension to column's name.
        keys: The run's partitions, in the order the positions count.

    Raises:
        ConfigurationError: The expression does not fit the partitions or the frame.
        BadValue: A row belongs to none of the run's partitions; names column and row.
    """
    columns = _columns(expression, definition, rows.schema)
    locate = _locator(definition, keys)
    if isinstance(rows, pa.Table):
        return rows.append_column(POSITION, _positions(rows, columns, locate, 0))
    return pa.RecordBatchReader.from_batches(
        rows.schema.append(POSITION), _assigned(rows, columns, locate)
    )


Locator = Callable[[tuple[object, ...]], int | None]


def _columns(
    expression: object, definition: dg.PartitionsDefinition, schema: pa.Schema
) -> list[str]:
    if isinstance(definition, dg.MultiPartitionsDefinition):
        dimensions = [dimension.name for dimension in definition.partitions_defs]
        if not isinstance(expression, Mapping) or set(expression) != set(dimensions):
            raise ConfigurationError(
                f"partition_expr is {expression!r}; for this asset it is a dict with a column "
                f"for each of the dimensions {dimensions}."
            )
        columns = [expression[dimension] for dimension in dimensions]
    else:
        columns = [expression]
    unknown = [column for column in columns if column not in schema.names]
    if unknown:
        raise ConfigurationError(
            f"partition_expr names {unknown}, which are no columns of the frame. "
            f"Its columns are {schema.names}."
        )
    return [str(column) for column in columns]


def _locator(definition: dg.PartitionsDefinition, keys: Sequence[str]) -> Locator:
    """Return a function from the values of a row to the position of its partition."""
    if not isinstance(definition, dg.MultiPartitionsDefinition):
        find = _finder(definition, keys)
        positions: dict[str | None, int] = {key: position for position, key in enumerate(keys)}
        return lambda values: positions.get(find(values[0]))
    dimensions = definition.partitions_defs
    wanted: dict[tuple[str | None, ...], int] = {}
    for position, key in enumerate(keys):
        parts = definition.get_partition_key_from_str(key).keys_by_dimension
        wanted[tuple(parts[dimension.name] for dimension in dimensions)] = position
    finders = [
        _finder(dimension.partitions_def, sorted({str(parts[index]) for parts in wanted}))
        for index, dimension in enumerate(dimensions)
    ]

    def locate(values: tuple[object, ...]) -> int | None:
        return wanted.get(tuple(find(value) for find, value in zip(finders, values, strict=True)))

    return locate


def _finder(
    definition: dg.PartitionsDefinition, keys: Sequence[str]
) -> Callable[[object], str | None]:
    if not isinstance(definition, dg.TimeWindowPartitionsDefinition):
        known = set(keys)
        return lambda value: str(value) if value is not None and str(value) in known else None
    windows = sorted((definition.time_window_for_partition_key(key), key) for key in set(keys))
    starts = [window.start for window, _key in windows]
    zone = starts[0].tzinfo

    def find(value: object) -> str | None:
        moment = _moment(value, zone, definition)
        index = bisect.bisect_right(starts, moment) - 1 if moment is not None else -1
        if index < 0 or moment is None:
            return None
        window, key = windows[index]
        return key if moment < window.end else None

    return find


def _moment(
    value: object, zone: dt.tzinfo | None, definition: dg.TimeWindowPartitionsDefinition
) -> dt.datetime | None:
    """Read a row's time; one without a zone is meant in the zone of the partitions."""
    if isinstance(value, str):
        value = _written_time(value, definition.fmt)
    if isinstance(value, dt.datetime):
        return value if value.tzinfo is not None else value.replace(tzinfo=zone)
    if isinstance(value, dt.date):
        return dt.datetime(value.year, value.month, value.day, tzinfo=zone)
    return None


def _written_time(text: str, key_format: str) -> dt.datetime | None:
    """Read a time written as the partition keys are, or in ISO 8601."""
    try:
        return dt.datetime.strptime(text, key_format)  # noqa: DTZ007  # the partitions' zone follows
    except ValueError:
        pass
    try:
        return dt.datetime.fromisoformat(text)
    except ValueError:
        return None


def _positions(
    rows: pa.Table | pa.RecordBatch, columns: Sequence[str], locate: Locator, first_row: int
) -> pa.Array:
    """Look each distinct combination of values up once, however many rows have it."""
    combined = pa.repeat(pa.scalar(0, pa.int64()), rows.num_rows)
    alphabets: list[list[object]] = []
    for name in columns:
        encoded = _encoded(rows.column(name))
        alphabets.append([*encoded.dictionary.to_pylist(), None])
        codes = pc.fill_null(encoded.indices.cast(pa.int64()), len(alphabets[-1]) - 1)
        combined = pc.add(pc.multiply(combined, len(alphabets[-1])), codes)
    distinct = combined.dictionary_encode()
    located = [locate(_values(code, alphabets)) for code in distinct.dictionary.to_pylist()]
    positions = pa.array(located, pa.int32()).take(distinct.indices)
    outside = pc.index(pc.is_null(positions), pa.scalar(True)).as_py()
    if outside >= 0:
        raise BadValue(
            f"tells a partition that is not of this run ({positions.null_count} such rows)",
            column=", ".join(columns),
            row=first_row + outside,
        )
    return positions


def _encoded(column: pa.ChunkedArray | pa.Array) -> pa.DictionaryArray:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pat.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array.dictionary_encode()


def _values(code: int, alphabets: Sequence[Sequence[object]]) -> tuple[object, ...]:
    """Take a combination of values apart again, last column first."""
    values: list[object] = []
    for alphabet in reversed(alphabets):
        code, index = divmod(code, len(alphabet))
        values.append(alphabet[index])
    return tuple(reversed(values))


def _assigned(
    rows: pa.RecordBatchReader, columns: Sequence[str], locate: Locator
) -> Iterator[pa.RecordBatch]:
    first_row = 0
    for batch in rows:
        positions = _positions(batch, columns, locate, first_row)
        yield pa.RecordBatch.from_arrays(
            [*batch.columns, positions], schema=batch.schema.append(POSITION)
        )
        first_row += batch.num_rows


def _widened(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Bring one partition's frame to the columns and types of all of them."""
    columns = [
        rows.column(field.name).cast(field.type)
        if field.name in rows.schema.names
        else pa.nulls(rows.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _marked(rows: Rows, schema: pa.Schema, position: int) -> Iterator[pa.RecordBatch]:
    for batch in rows.to_batches() if isinstance(rows, pa.Table) else rows:
        widened = _widened(pa.Table.from_batches([batch]), schema)
        marks = pa.repeat(pa.scalar(position, pa.int32()), batch.num_rows)
        yield from widened.append_column(POSITION, marks).to_batches()
