"""Which partition a row belongs to, where one output covers several.

The writer wants one stream whose last column holds, for each row, the position of its
partition. That column comes from a `dict` of frames, or from a column of the frame that
`partition_expr` names.
"""

from __future__ import annotations

import bisect
import datetime as dt
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from dagster_tools.errors import BadValue, ConfigurationError, SchemaConflict, listed
from dagster_tools.frames.arrow import POSTGRESQL_TYPE, Rows, Stream, is_text, matched
from dagster_tools.geoarrow import is_geometry
from dagster_tools.postgres.column_types import PgType, infer, plain_type
from dagster_tools.postgres.names import MATERIALIZATION_ID

__all__ = ["assign_partitions", "join_partitions"]

POSITION = pa.field(MATERIALIZATION_ID, pa.int32())

NUMERIC = {POSTGRESQL_TYPE: b"numeric"}
"""Metadata of a field whose numbers travel as text, since Arrow has no type for all of them."""

WHOLE = frozenset({"smallint", "integer", "bigint"})
INEXACT = frozenset({"real", "double precision"})

UNZONED_1970 = dt.datetime(1970, 1, 1)  # noqa: DTZ001  # what a clock shows, in whatever zone

COARSEST_GRAIN = 900
"""Seconds. Clocks are put forward and back at quarter hours, if not at their boundaries."""


def join_partitions(frames: Mapping[str, Rows], keys: Sequence[str]) -> Rows:
    """Put the frames of several partitions one after the other, each row marked with its own.

    Columns are matched by name; one that a frame lacks is NULL there. A frame without rows
    has no say about columns and types. Where one of the frames is a stream, so is the result, and
    each batch keeps the types it has.

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
    in_memory = all(isinstance(rows, pa.Table) for rows in present.values())
    batches = (
        _marked(
            _widened(batch, schema) if in_memory else matched(batch, schema.names), positions[key]
        )
        for key, rows in present.items()
        for batch in (rows.to_batches() if isinstance(rows, pa.Table) else rows)
    )
    marked = schema.append(POSITION)
    return pa.Table.from_batches(batches, marked) if in_memory else Stream(marked, batches)


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
        chunks = [positions for _batch, positions in locator.locate(rows.to_batches())]
        return rows.append_column(POSITION, pa.chunked_array(chunks, POSITION.type))
    return Stream(rows.schema.append(POSITION), _assigned(rows, locator))


# --- a dict of frames -----------------------------------------------------------------------


def _check_keys(frames: Mapping[str, Rows], keys: Sequence[str]) -> None:
    missing = sorted(set(keys) - set(frames))
    foreign = sorted(set(frames) - set(keys), key=str)
    if missing or foreign:
        raise ConfigurationError(
            "A dict of frames must have exactly the partitions of the run."
            + (f" Missing: {listed(missing)}." if missing else "")
            + (f" Not of this run: {listed(foreign)}." if foreign else "")
        )


def _is_empty(rows: Rows) -> bool:
    return len(rows.schema) == 0 or (isinstance(rows, pa.Table) and rows.num_rows == 0)


def _common_schema(schemas: Mapping[str, pa.Schema]) -> pa.Schema:
    """Return the columns of all frames, each of a type that holds every frame's values."""
    common: dict[str, pa.Field] = {}
    told_by: dict[str, str] = {}
    for key, schema in schemas.items():
        for field in schema:
            known = common.setdefault(field.name, field)
            merged = _common_field(known, field)
            if merged is None and is_geometry(known) and is_geometry(field):
                raise SchemaConflict(
                    f"Column {field.name!r} has another CRS in the frame of partition "
                    f"{told_by[field.name]!r} than in that of {key!r}. Convert one "
                    "with to_crs, or name the CRS of one that has none with set_crs."
                )
            if merged is None:
                raise SchemaConflict(
                    f"Column {field.name!r} is {known.type} in the frame of partition "
                    f"{told_by[field.name]!r} and {field.type} in that of {key!r}. Give the "
                    "frames of one dict the same types."
                )
            if field.name not in told_by or merged.type != known.type:
                told_by[field.name] = key
            common[field.name] = merged
    return pa.schema(common.values())


def _common_field(one: pa.Field, other: pa.Field) -> pa.Field | None:
    """Return a field that holds the values of both, None where some would become others."""
    if one.equals(other, check_metadata=True) or pat.is_null(other.type):
        return one
    if pat.is_null(one.type):
        return other
    stored = infer(one), infer(other)
    if not _fit_one_column(*stored) or (is_geometry(one) and one.metadata != other.metadata):
        return None
    if stored[0].name == "numeric" and (is_text(one.type) or is_text(other.type)):
        return pa.field(one.name, pa.large_string(), metadata=NUMERIC)
    bare = [_bare(one.type), _bare(other.type)]
    if any(map(pat.is_decimal, bare)):
        bare = [_as_decimal(type_) for type_ in bare]
    schemas = [pa.schema([pa.field(one.name, type_)]) for type_ in bare]
    try:
        merged = pa.unify_schemas(schemas, promote_options="permissive").field(0)
    except pa.ArrowException:
        return None
    return merged.with_metadata(one.metadata) if one.metadata == other.metadata else merged


def _fit_one_column(one: PgType, other: PgType) -> bool:
    """Whether values of both have a type in common; each is checked when it is cast."""
    names = {one.name, other.name}
    alike = len(names) == 1 or names <= WHOLE | INEXACT or names <= WHOLE | {"numeric"}
    return alike and one.array == other.array


def _bare(type_: pa.DataType) -> pa.DataType:
    """Return a type of the same values that Arrow can combine with its like."""
    if pat.is_timestamp(type_) and type_.tz is not None:
        return pa.timestamp(type_.unit, "UTC")
    return type_ if isinstance(type_, pa.BaseExtensionType) else plain_type(type_)


def _as_decimal(type_: pa.DataType) -> pa.DataType:
    """Return a decimal for integers of up to 20 digits, which Arrow counts as 19."""
    return pa.decimal128(20, 0) if pat.is_integer(type_) else type_


def _marked(batch: pa.RecordBatch, position: int) -> pa.RecordBatch:
    positions = pa.repeat(pa.scalar(position, POSITION.type), batch.num_rows)
    return pa.RecordBatch.from_arrays(
        [*batch.columns, positions], schema=batch.schema.append(POSITION)
    )


def _widened(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Bring the columns of one frame to the types they have in all of them."""
    columns = matched(batch, schema.names).columns
    columns = [_cast(column, field) for column, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _cast(column: pa.Array, field: pa.Field) -> pa.Array:
    if column.type == field.type:
        return column
    if pat.is_null(column.type):
        return pa.nulls(len(column), field.type)
    try:
        return column.cast(field.type)
    except pa.ArrowInvalid:
        # Not `from exc`: Arrow's message holds the value.
        raise BadValue(
            f"holds {column.type} values that are not exact as {field.type}, which the column is "
            "in the frames of other partitions; give the frames of one dict the same types",
            column=field.name,
        ) from None


# --- partition_expr -------------------------------------------------------------------------


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


def _assigned(rows: Stream, locator: _Locator) -> Iterator[pa.RecordBatch]:
    for batch, positions in locator.locate(rows):
        yield pa.RecordBatch.from_arrays(
            [*batch.columns, positions], schema=batch.schema.append(POSITION)
        )


@dataclass(frozen=True, slots=True)
class _Locator:
    """Finds the partition of each row.

    Args:
        columns: The column that tells, or one for each dimension.
        dimensions: How the value of each column is read.
        positions: Position of a partition, by its key in each dimension.
    """

    columns: Sequence[str]
    dimensions: Sequence[_Keys | _Windows]
    positions: Mapping[tuple[str, ...], int]

    @classmethod
    def of(
        cls, columns: Sequence[str], definition: dg.PartitionsDefinition, keys: Sequence[str]
    ) -> _Locator:
        if not isinstance(definition, dg.MultiPartitionsDefinition):
            return cls(
                columns,
                [_dimension(definition, keys)],
                {(key,): position for position, key in enumerate(keys)},
            )
        names = [dimension.name for dimension in definition.partitions_defs]
        parts = [definition.get_partition_key_from_str(key).keys_by_dimension for key in keys]
        dimensions = [
            _dimension(dimension.partitions_def, sorted({part[dimension.name] for part in parts}))
            for dimension in definition.partitions_defs
        ]
        positions = {
            tuple(part[name] for name in names): position for position, part in enumerate(parts)
        }
        return cls(columns, dimensions, positions)

    def locate(
        self, batches: Iterable[pa.RecordBatch]
    ) -> Iterator[tuple[pa.RecordBatch, pa.Array]]:
        """Yield each batch with the positions of its rows.

        Each distinct combination of values is looked up once, however many rows have it.
        """
        first_row = 0
        for batch in batches:
            positions = self._positions(batch)
            outside = pc.index(positions.is_null(), pa.scalar(value=True)).as_py()
            if outside >= 0:
                raise self._outside(batch, outside, first_row)
            yield batch, positions
            first_row += batch.num_rows

    def _positions(self, batch: pa.RecordBatch) -> pa.Array:
        combined = pa.repeat(pa.scalar(0, pa.int64()), batch.num_rows)
        keys: list[list[str | None]] = []
        for name, dimension in zip(self.columns, self.dimensions, strict=True):
            codes, told = dimension.tell(batch.column(name))
            keys.append([*told, None])  # the last stands for NULL
            codes = codes.cast(pa.int64()).fill_null(len(told))
            combined = pc.add(pc.multiply(combined, len(keys[-1])), codes)
        distinct = combined.dictionary_encode()
        found = [self._position(code, keys) for code in distinct.dictionary.to_pylist()]
        return pa.array(found, POSITION.type).take(distinct.indices)

    def _position(self, code: int, keys: Sequence[Sequence[str | None]]) -> int | None:
        """Take a combination of codes apart again, last column first, and look it up."""
        parts: list[str] = []
        for column in reversed(keys):
            code, index = divmod(code, len(column))
            key = column[index]
            if key is None:
                return None
            parts.append(key)
        return self.positions.get(tuple(reversed(parts)))

    def _outside(self, batch: pa.RecordBatch, row: int, first_row: int) -> BadValue:
        null = [name for name in self.columns if not batch.column(name)[row].is_valid]
        return BadValue(
            "is NULL, which tells no partition"
            if null
            else f"tells none of the {len(self.positions)} partitions of this run",
            column=", ".join(null or self.columns),
            row=first_row + row,
        )


def _dimension(definition: dg.PartitionsDefinition, keys: Sequence[str]) -> _Keys | _Windows:
    if isinstance(definition, dg.TimeWindowPartitionsDefinition):
        return _Windows.of(definition, keys)
    return _Keys(frozenset(keys))


@dataclass(frozen=True, slots=True)
class _Keys:
    """Partitions told by a value that reads like their key."""

    keys: frozenset[str]

    def tell(self, column: pa.Array) -> tuple[pa.Array, list[str | None]]:
        """Return the column as codes, and the key that each code stands for."""
        encoded = _encoded(column)
        texts = map(str, encoded.dictionary.to_pylist())
        return encoded.indices, [text if text in self.keys else None for text in texts]


@dataclass(frozen=True, slots=True)
class _Windows:
    """Partitions told by a moment within them, or by their key.

    Args:
        known: The keys.
        keys: The same in the order of time.
        starts: Of each, in seconds since 1970, as `ends`.
        grain: Seconds that divide all of them: moments of one grain lie in one window.
        zone: What a time without a zone is meant in.
        form: How keys are written.
    """

    known: frozenset[str]
    keys: Sequence[str]
    starts: Sequence[float]
    ends: Sequence[float]
    grain: int
    zone: dt.tzinfo | None
    form: str

    @classmethod
    def of(cls, definition: dg.TimeWindowPartitionsDefinition, keys: Sequence[str]) -> _Windows:
        windows = [(definition.time_window_for_partition_key(key), key) for key in keys]
        # Python compares two times of one zone by what the clock shows, so not by themselves.
        windows.sort(key=lambda item: item[0].start.timestamp())
        starts = [window.start.timestamp() for window, _key in windows]
        ends = [window.end.timestamp() for window, _key in windows]
        offsets = {window.start.utcoffset() or dt.timedelta() for window, _key in windows}
        return cls(
            frozenset(keys),
            [key for _window, key in windows],
            starts,
            ends,
            math.gcd(
                COARSEST_GRAIN,
                *(int(moment) for moment in (*starts, *ends)),
                *(int(offset.total_seconds()) for offset in offsets),
            ),
            windows[0][0].start.tzinfo,
            definition.fmt,
        )

    def tell(self, column: pa.Array) -> tuple[pa.Array, list[str | None]]:
        """Return the column as codes, and the key that each code stands for."""
        if not pat.is_timestamp(column.type):
            encoded = _encoded(column)
            return encoded.indices, [self._read(value) for value in encoded.dictionary.to_pylist()]
        # A column of a million moments has few grains: a year of quarter hours is 35,000.
        unzoned = column.cast(pa.timestamp(column.type.unit))
        floored = pc.floor_temporal(unzoned, self.grain, "second").cast(pa.timestamp("s"))
        encoded = floored.cast(pa.int64()).dictionary_encode()
        zoned = column.type.tz is not None
        seconds = encoded.dictionary.to_pylist()
        return encoded.indices, [
            self._at(second if zoned else self._meant(second)) for second in seconds
        ]

    def _read(self, value: object) -> str | None:
        text = str(value)
        if text in self.known:
            return text
        moment = _written_time(text, self.form) if isinstance(value, (str, dt.date)) else None
        if moment is None:
            return None
        zoned = moment if moment.tzinfo is not None else moment.replace(tzinfo=self.zone)
        return self._at(zoned.timestamp())

    def _meant(self, second: int) -> float:
        """Return the moment when a clock of the partitions' zone shows this second."""
        try:
            shown = UNZONED_1970 + dt.timedelta(seconds=second)
        except OverflowError:
            return math.nan
        return shown.replace(tzinfo=self.zone).timestamp()

    def _at(self, moment: float) -> str | None:
        index = bisect.bisect_right(self.starts, moment) - 1
        return self.keys[index] if index >= 0 and moment < self.ends[index] else None


def _encoded(column: pa.Array) -> pa.DictionaryArray:
    if isinstance(column, pa.ExtensionArray):
        return _encoded(column.storage)
    plain = column.dictionary_decode() if pat.is_dictionary(column.type) else column
    return plain.dictionary_encode()


def _written_time(text: str, key_format: str) -> dt.datetime | None:
    """Read a time written as the partition keys are, or in ISO 8601."""
    with suppress(ValueError):
        return dt.datetime.strptime(text, key_format)  # noqa: DTZ007  # the zone is the partitions'
    with suppress(ValueError):
        # Python 3.10 knows no "Z".
        return dt.datetime.fromisoformat(re.sub("Z$", "+00:00", text))
    return None
