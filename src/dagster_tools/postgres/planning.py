"""What a write needs its table to become, decided before a row moves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from dagster_tools.errors import ConfigurationError, SchemaConflict
from dagster_tools.postgres import alter
from dagster_tools.postgres.catalog import (
    Catalog,
    fetch_storage,
    postgis_remedy,
    resolve_types,
)
from dagster_tools.postgres.column_types import EWKB, PgType
from dagster_tools.postgres.columns import Column, ExistingColumn, wanted_columns
from dagster_tools.postgres.connection import Connection
from dagster_tools.postgres.deletion import Deletion, compose_condition
from dagster_tools.postgres.evolution import Evolution, check_values, plan_evolution
from dagster_tools.postgres.geometry import Shape, is_spatial, settled_type
from dagster_tools.postgres.incoming import Plan
from dagster_tools.postgres.options import OutputOptions
from dagster_tools.postgres.rows import Source, check_key

__all__ = ["check_deletion", "check_key_present", "plan_frame", "plan_query"]


def plan_frame(
    connection: Connection, catalog: Catalog, source: Source, options: OutputOptions
) -> Plan:
    """Decide by the values of a frame, of a stream by its first.

    Raises:
        BadValue, SchemaConflict: The values do not fit the table, nor it them.
    """
    wanted = wanted_columns(source.schema, options.columns, options.primary_key)
    wanted = resolve_types(connection, wanted, catalog.postgis)
    check_key(source.known, options.primary_key)
    wanted = tuple(_with_settled_geometry(connection, catalog, wanted, source, options))
    existing = catalog.existing
    if existing is not None:
        new = [column for column in wanted if existing.column(column.name) is None]
        evolution = plan_evolution(
            existing,
            wanted,
            source.schema,
            source.chunks,
            storage=fetch_storage(connection, new),
            primary_key=options.primary_key,
            mode=options.schema_evolution,
            holds_no_value=lambda name: alter.holds_no_value(connection, catalog.table, name),
        )
        return Plan(options, wanted, evolution, catalog.postgis)
    targets = fetch_storage(connection, wanted)
    absent = [c.name for c in wanted if c.name not in source.schema.names]
    if absent and options.schema_evolution == "strict":
        raise SchemaConflict(
            f"The frame lacks the declared columns {absent}, and schema_evolution is 'strict'. "
            f"Its columns are {source.schema.names}."
        )
    for column in wanted:
        if column.name not in absent:
            frame_field = source.schema.field(column.name)
            chunks = source.chunks(column.name)
            check_values(frame_field, chunks, targets[column.name], column)
        elif column.not_null:
            raise SchemaConflict(
                f"Column {column.name!r} is declared 'not null', and the frame lacks it. "
                f"Its columns are {source.schema.names}."
            )
    return Plan(options, wanted, Evolution(targets), catalog.postgis, new_table=True)


def plan_query(
    connection: Connection,
    catalog: Catalog,
    columns: Mapping[str, PgType],
    options: OutputOptions,
) -> Plan:
    """Decide by types alone: what a query returns counts like what an asset declares.

    Raises:
        SchemaConflict: A type does not fit the table.
    """
    existing = catalog.existing
    returned = {name: Column(name, type_, declared=True) for name, type_ in columns.items()}
    # Values play no part: a field without any stands for each column.
    schema = pa.schema([pa.field(name, pa.null()) for name in columns])
    wanted = wanted_columns(schema, returned | dict(options.columns), options.primary_key)
    wanted = resolve_types(connection, wanted, catalog.postgis)
    storage = fetch_storage(connection, wanted)
    if existing is None:
        return Plan(options, wanted, Evolution(storage), catalog.postgis)
    evolution = plan_evolution(
        existing,
        wanted,
        schema,
        lambda _name: (),
        storage=storage,
        primary_key=options.primary_key,
        mode=options.schema_evolution,
        holds_no_value=lambda name: alter.holds_no_value(connection, catalog.table, name),
    )
    return Plan(options, wanted, evolution, catalog.postgis)


def _with_settled_geometry(
    connection: Connection,
    catalog: Catalog,
    wanted: Sequence[Column],
    source: Source,
    options: OutputOptions,
) -> Iterator[Column]:
    """Yield the columns, those for geometry with all that their values say of it.

    A column that exists keeps what it says itself, and the way its geometry is stored.

    Raises:
        ConfigurationError: The database has no PostGIS, or an option is not for geometry.
        BadValue: The CRS has no SRID.
    """
    for column in wanted:
        present = catalog.existing.column(column.name) if catalog.existing is not None else None
        if not is_spatial(column.type):
            yield column
            continue
        _check_no_key(column, options)
        column = _left_open(column, present)  # noqa: PLW2901  # one column all the way
        if present is not None and column.declared:
            yield column
            continue
        ewkb = options.geometry_storage == "ewkb"
        if present is not None and (present.storage.name == EWKB or is_spatial(present.storage)):
            ewkb = present.storage.name == EWKB
        if not ewkb and catalog.postgis is None:
            raise _postgis_absent(connection, column)
        named = column.name in source.schema.names
        field = source.schema.field(column.name) if named else None
        chunks = source.chunks(column.name) if named else ()
        type_ = settled_type(column.type, field, chunks, ewkb=ewkb)
        added = catalog.existing is not None and present is None
        if added and not ewkb and Shape.of(type_).dimensions is None:
            # A CHECK would have to look at every row, and readers to wait for it.
            type_ = replace(type_, modifiers=())
        # An index on bytes would find nothing by place.
        yield replace(column, type=type_, index=column.index and not ewkb)


def _left_open(column: Column, present: ExistingColumn | None) -> Column:
    """Take a declaration that says no more than `geometry` for what it is: no type to insist on."""
    alike = present is None or present.storage.name in {column.type.name, EWKB}
    settled = bool(column.type.modifiers) or not alike
    return replace(column, declared=column.declared and settled)


def _check_no_key(column: Column, options: OutputOptions) -> None:
    """Refuse geometry as a key: what looks equal may differ in a vertex's order."""
    if column.name in options.primary_key or column.unique:
        option = "primary_key" if column.name in options.primary_key else "'unique'"
        raise ConfigurationError(
            f"{option} names {column.name!r}, which is {column.type.name}. Rows are not told apart "
            "by their geometry: give them a key of numbers or text."
        )


def _postgis_absent(connection: Connection, column: Column) -> ConfigurationError:
    return ConfigurationError(
        f"column {column.name!r} holds geometry, and the database {connection.info.dbname!r} does "
        f"not have the PostGIS extension. {postgis_remedy(connection)}; or keep geometry without "
        "it, as bytes: PostgresIOManager(geometry_storage='ewkb')."
    )


def check_deletion(catalog: Catalog, plan: Plan, deletion: Deletion | None) -> None:
    """Refuse a deletion that cannot be meant before anything is committed.

    It may name columns that this write adds.

    Raises:
        ConfigurationError: It names a column that is not there.
        BadValue: A value is none of its column's type.
    """
    existing, targets = catalog.existing, plan.evolution.targets
    if existing is None or deletion is None:
        return
    columns = [replace(c, storage=targets.get(c.name, c.storage)) for c in existing.columns]
    columns += [
        ExistingColumn(
            c.name,
            c.type,
            targets[c.name],
            not_null=c.not_null,
            filled_by_server=False,
            has_default=False,
        )
        for c in plan.evolution.additions
    ]
    compose_condition(deletion, replace(existing, columns=tuple(columns)), "kept", first=2)


def check_key_present(primary_key: Sequence[str], names: Sequence[str]) -> None:
    """Refuse rows that are to be found by a key they do not have."""
    absent = [name for name in primary_key if name not in names]
    if absent:
        raise ConfigurationError(
            f"primary_key names {absent}, which the frame does not have, and an upsert finds rows "
            f"by their key. Its columns are {list(names)}."
        )
