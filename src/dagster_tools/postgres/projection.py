"""How a column is asked for, and what its Arrow values mean when they arrive.

The driver decodes most types natively. Those it does not decode, or decodes wrongly, are
cast in the SELECT list or checked afterwards: an infinite date wraps to a finite one and
a two-dimensional array arrives flat, both without an error (arrow-adbc 1.13, measured).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat
from psycopg import sql
from psycopg.sql import Composable, Composed, Identifier

from dagster_tools.errors import BadValue, ConfigurationError
from dagster_tools.geoarrow import Crs, mark
from dagster_tools.postgres.column_types import EWKB, PgType
from dagster_tools.postgres.columns import Column, ExistingColumn, ExistingTable
from dagster_tools.postgres.geometry import Shape, crs_of, is_spatial, without_srid
from dagster_tools.postgres.names import MATERIALIZATION_ID, Table

__all__ = [
    "Projected",
    "compose_select",
    "compose_srid",
    "decode",
    "decoded_schema",
    "empty_columns",
    "project",
]

DAYS_4713_BC = -2_440_588
MICROSECONDS_PER_DAY = 86_400_000_000

TYPE_KEY = b"postgresql:type"
"""Field metadata that tells the frame libraries the column's type in the database."""

NATIVE = {
    "boolean": pa.bool_(),
    "smallint": pa.int16(),
    "integer": pa.int32(),
    "bigint": pa.int64(),
    "real": pa.float32(),
    "double precision": pa.float64(),
    "numeric": pa.string(),
    "text": pa.string(),
    "character varying": pa.string(),
    "character": pa.string(),
    "name": pa.string(),
    "enum": pa.string(),
    "bytea": pa.binary(),
    "date": pa.date32(),
    "time without time zone": pa.time64("us"),
    "timestamp without time zone": pa.timestamp("us"),
    "timestamp with time zone": pa.timestamp("us", "UTC"),
    "interval": pa.duration("us"),
    "uuid": pa.uuid(),
    "json": pa.json_(),
    "jsonb": pa.json_(),
}
"""What arrives for each type once decoded; any other type arrives as its text."""

NATIVE_ELEMENTS = frozenset(
    {
        "boolean", "smallint", "integer", "bigint", "real", "double precision", "text",
        "bytea", "date", "uuid", "time without time zone",
        "timestamp without time zone", "timestamp with time zone",
    }
)  # fmt: skip
"""Element types of arrays that arrive as lists of them; others arrive as lists of text."""

CASTS = {"oid": "bigint"}


@dataclass(frozen=True, slots=True)
class Projected:
    """One column of a SELECT list.

    Args:
        type: Its type in the database, or the one the input casts it to.
        storage: What values of that type are encoded as.
        casts: What it is cast to on the way, one after the other.
        crs: Of geometry, which travels as WKB; None of anything else.
        row_srid: The SRID of one of the rows, where only these tell it.
    """

    name: str
    type: PgType
    storage: PgType
    casts: tuple[PgType, ...]
    crs: Crs | None = None
    row_srid: int = 0

    @property
    def arriving(self) -> PgType:
        """The type of the values as the server sends them."""
        if self.crs is not None:
            return PgType("bytea")
        return self.casts[-1] if self.casts else self.storage

    @property
    def srid(self) -> int:
        """What the column says of its geometry's SRID, 0 if nothing."""
        return Shape.of(self.storage).srid if self.crs is not None else 0

    @property
    def tells_srid(self) -> bool:
        """Whether only the values say which SRID they have."""
        said = self.storage.modifiers and self.srid
        return self.crs is not None and is_spatial(self.storage) and not said

    @property
    def field(self) -> pa.Field:
        """The Arrow field of the decoded values."""
        element = NATIVE.get(self.arriving.name, pa.string())
        arrow = pa.list_(element) if self.arriving.array else element
        field = pa.field(self.name, arrow, metadata={TYPE_KEY: str(self.type).encode()})
        return field if self.crs is None else mark(field, self.crs)


def project(
    existing: ExistingTable,
    columns: Mapping[str, PgType | None] | None,
    order_by: Sequence[str] = (),
) -> list[Projected]:
    """Return the columns to load, in the order asked for, or all in the table's.

    Raises:
        ConfigurationError: A column to load or to sort by does not exist; lists those that do.
    """
    present = [column for column in existing.columns if column.name != MATERIALIZATION_ID]
    by_name = {column.name: column for column in present}
    unknown = [name for name in (*(columns or ()), *order_by) if name not in by_name]
    if unknown:
        raise ConfigurationError(
            f"{existing.table} has no columns {unknown}. Its columns are {list(by_name)}."
        )
    if columns is None:
        return [_projected(column.name, column.type, column.storage) for column in present]
    return [_selected(by_name[name], type_) for name, type_ in columns.items()]


def compose_select(
    table: Table,
    columns: Sequence[Projected],
    materialization_ids: Sequence[int] | None,
    order_by: Sequence[str],
    *,
    since: int | None = None,
) -> Composed:
    """Compose the SELECT; an array brings its number of dimensions along, geometry its SRID.

    Args:
        materialization_ids: Whose rows; None for all rows.
        since: Where all tracked rows are meant, the first materialization that wrote any:
            rows from before it came out of another database.
    """
    items: list[Composable] = [_item(column) for column in columns]
    items += [item for column in columns if (item := _companion(column)) is not None]
    statement = sql.SQL("SELECT {}\nFROM {} AS stored").format(
        sql.SQL(", ").join(items), table.identifier
    )
    statement += _compose_whose(materialization_ids, since)
    if order_by:
        # Qualified: a bare name would mean the item above, and `inet` sorts unlike its text.
        keys = sql.SQL(", ").join(Identifier("stored", name) for name in order_by)
        statement += sql.SQL("\nORDER BY {}").format(keys)
    return statement


def _compose_whose(materialization_ids: Sequence[int] | None, since: int | None) -> Composed:
    identifier = Identifier(MATERIALIZATION_ID)
    if materialization_ids is not None:
        # A literal: the driver that runs this statement binds no parameters to a COPY.
        numbers = sql.Literal(list(materialization_ids))
        return sql.SQL("\nWHERE {} = ANY ({}::integer[])").format(identifier, numbers)
    if since is not None:
        return sql.SQL("\nWHERE {} >= {}").format(identifier, sql.Literal(since))
    return Composed([])


def compose_srid(
    table: Table,
    column: Projected,
    materialization_ids: Sequence[int] | None,
    *,
    since: int | None = None,
) -> Composed:
    """Compose a query for the SRID of one of the rows that `compose_select` would give."""
    return sql.SQL("SELECT srid\nFROM ({}) AS told\nWHERE srid IS NOT NULL\nLIMIT 1").format(
        sql.SQL("SELECT {}({}) AS srid\nFROM {} AS stored{}").format(
            _postgis("st_srid", column),
            _value(column),
            table.identifier,
            _compose_whose(materialization_ids, since),
        )
    )


def decoded_schema(columns: Sequence[Projected]) -> pa.Schema:
    """Return what `decode` makes of a batch, known before the first one arrives."""
    return pa.schema([column.field for column in columns])


def empty_columns(
    declared: Sequence[Column], selected: Mapping[str, PgType | None] | None
) -> list[Projected]:
    """Return the columns of an output that was empty before it ever had a table."""
    types = {column.name: column.type for column in declared}
    if selected is not None:
        types = {name: cast or types.get(name, PgType("text")) for name, cast in selected.items()}
    return [_projected(name, type_, type_) for name, type_ in types.items()]


def decode(batch: pa.RecordBatch, columns: Sequence[Projected], table: Table) -> pa.RecordBatch:
    """Return the batch as `decoded_schema` says.

    Raises:
        BadValue: A value that Arrow cannot hold (infinity, years beyond 294247, months in an
            interval, arrays of several dimensions); names table and column.
    """
    companions = iter(batch.columns[len(columns) :])
    decoded = []
    for column, array in zip(columns, batch.columns, strict=False):
        if column.storage.array and (pc.max(next(companions)).as_py() or 1) > 1:
            raise _unreadable(table, column, "holds arrays of several dimensions")
        if column.tells_srid:
            _check_srid(next(companions), column, table)
        decoded.append(_decoded(array, column, table))
    return pa.RecordBatch.from_arrays(decoded, schema=decoded_schema(columns))


def _projected(name: str, type_: PgType, storage: PgType, *, asked: bool = False) -> Projected:
    """Project a column of `type_`; `asked` where the input wants it cast to that type."""
    if storage.array:
        native = storage.name in NATIVE_ELEMENTS
        way = [] if native else [PgType("text", array=True)]
    elif is_spatial(storage) or storage.name == EWKB:
        crs = crs_of(Shape.of(storage).srid, {}, spherical=storage.name == "geography")
        return Projected(name, type_, storage, casts=(type_,) if asked else (), crs=crs)
    elif storage.name in CASTS:
        way = [PgType(CASTS[storage.name])]
    else:
        way = [] if storage.name in NATIVE else [PgType("text")]
    return Projected(name, type_, storage, casts=((type_,) if asked else ()) + tuple(way))


def _selected(present: ExistingColumn, asked: PgType | None) -> Projected:
    if asked is not None and is_spatial(asked) and present.spatial:
        # What was meant to be geometry is so already; more than that, the server may cast.
        asked = replace(asked, schema=present.storage.schema) if asked.modifiers else None
    if asked is None:
        return _projected(present.name, present.type, present.storage)
    return _projected(present.name, asked, asked, asked=True)


def _item(column: Projected) -> Composed:
    value = _value(column)
    if column.crs is None or column.storage.name == EWKB:
        return value
    # ISO WKB, which unlike the cast to bytea has no SRID in each value.
    return sql.SQL("{}({}, 'NDR')").format(_postgis("st_asbinary", column), value)


def _companion(column: Projected) -> Composed | None:
    """Compose what has to be known of each value to read it right."""
    if column.storage.array:
        return sql.SQL("pg_catalog.array_ndims({})").format(_item(column))
    if column.tells_srid:
        return sql.SQL("{}({})").format(_postgis("st_srid", column), _value(column))
    return None


def _value(column: Projected) -> Composed:
    item: Composed = Composed([Identifier(column.name)])
    for type_ in column.casts:
        item += sql.SQL("::") + type_.as_sql
    return item


def _postgis(function: str, column: Projected) -> Identifier:
    schema = column.storage.schema
    return Identifier(schema, function) if schema is not None else Identifier(function)


def _decoded(array: pa.Array, column: Projected, table: Table) -> pa.Array:
    target = column.field.type
    if column.crs is not None:
        wkb = array.cast(target)
        return without_srid(wkb) if column.storage.name == EWKB else wkb
    if array.type == target:
        checked = array
    elif pat.is_interval(array.type):
        checked = _durations(array, column, table)
    else:
        plain = array.storage if isinstance(array, pa.ExtensionArray) else array
        if isinstance(target, pa.BaseExtensionType):
            checked = pa.ExtensionArray.from_storage(target, plain.cast(target.storage_type))
        else:
            checked = plain.cast(target)
    _check_finite(checked, column, table)
    is_numeric = column.arriving.name == "numeric" and not column.arriving.array
    return _spelled_as_by_postgresql(checked) if is_numeric else checked


def _check_srid(srids: pa.Array, column: Projected, table: Table) -> None:
    found = pc.unique(srids.drop_null()).to_pylist()
    if any(srid != column.row_srid for srid in found):
        raise BadValue(
            f"of {table} holds geometry of different SRIDs, and a frame's column has one CRS. "
            "ST_Transform brings them to one; or load the column as its bytes, EWKB, with "
            f"AssetIn(metadata={{'columns': {{{column.name!r}: 'bytea', …}}}}).",
            column=column.name,
        )


def _check_finite(array: pa.Array, column: Projected, table: Table) -> None:
    if pat.is_timestamp(array.type):
        smallest = pc.min(array.cast(pa.int64())).as_py()
        limit = DAYS_4713_BC * MICROSECONDS_PER_DAY
    elif pat.is_date32(array.type):
        smallest, limit = pc.min(array.cast(pa.int32())).as_py(), DAYS_4713_BC
    elif pat.is_list(array.type):
        return _check_finite(array.flatten(), column, table)
    else:
        return None
    if smallest is not None and smallest < limit:
        raise _unreadable(table, column, "holds infinity, or a year that Arrow cannot hold")
    return None


def _spelled_as_by_postgresql(numeric: pa.Array) -> pa.Array:
    """Return the text of numbers as the server casts them; the driver writes nan and inf."""
    special = pc.index_in(numeric, pa.array(["nan", "inf", "-inf"]))
    if special.null_count == len(special):
        return numeric
    return pc.coalesce(pa.array(["NaN", "Infinity", "-Infinity"]).take(special), numeric)


def _durations(array: pa.Array, column: Projected, table: Table) -> pa.Array:
    """Read months, days and nanoseconds out of the interval's 16 bytes."""
    _validity, data = array.buffers()
    halves = pa.Array.from_buffers(
        pa.int64(), 2 * len(array), [None, data], offset=2 * array.offset
    )
    even = pa.array(range(0, 2 * len(array), 2), pa.int64())
    months_and_days, nanoseconds = halves.take(even), halves.take(pc.add(even, 1))
    months = pc.bit_wise_and(months_and_days, 0xFFFFFFFF)
    days = pc.shift_right(months_and_days, 32)
    valid = array.is_valid()
    if pc.any(pc.and_(pc.not_equal(months, 0), valid)).as_py():
        raise _unreadable(table, column, "holds intervals with months, which have no fixed length")
    micros = pc.add(pc.multiply(days, MICROSECONDS_PER_DAY), pc.divide(nanoseconds, 1000))
    return pc.if_else(valid, micros, None).cast(pa.duration("us"))


def _unreadable(table: Table, column: Projected, what: str) -> BadValue:
    return BadValue(
        f"of {table} {what}. Load it as text with "
        f"AssetIn(metadata={{'columns': {{{column.name!r}: 'text', …}}}}), or leave it out.",
        column=column.name,
    )
