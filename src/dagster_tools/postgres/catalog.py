"""What exists: asked of the server's catalog, in one query each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

from psycopg import sql
from psycopg.sql import Composed, Identifier

from dagster_tools.errors import ConfigurationError, DatabaseError
from dagster_tools.postgres.column_types import ANY_SHAPE, DECLARED_WORDS, EWKB, PgType, parse_type
from dagster_tools.postgres.columns import (
    Column,
    ExistingColumn,
    ExistingTable,
    ForeignKey,
    Index,
)
from dagster_tools.postgres.connection import Asked, Connection, translated
from dagster_tools.postgres.geometry import (
    SPATIAL,
    is_spatial,
    read_ewkb_check,
    read_srid_check,
)
from dagster_tools.postgres.names import MATERIALIZATION_ID, Table

__all__ = [
    "Catalog",
    "describe_query",
    "fetch_catalog",
    "fetch_column_type",
    "fetch_crs",
    "fetch_dependents",
    "fetch_srid",
    "fetch_storage",
    "postgis_remedy",
    "resolve_types",
]

_QUERY = sql.SQL(
    resources.files(__package__).joinpath("catalog.sql").read_text(encoding="utf-8")
).format()
_KINDS = {
    "v": "a view",
    "m": "a materialized view",
    "f": "a foreign table",
    "S": "a sequence",
    "c": "a composite type",
    "i": "an index",
}


@dataclass(frozen=True, slots=True)
class Catalog:
    """The state of one target when it was asked for.

    Args:
        existing: The table, or None where there is none.
        kind: pg_class.relkind of what has the table's name, None where nothing has.
        postgis: Schema of the PostGIS extension, None where the database has none.
    """

    database: str
    table: Table
    kind: str | None
    schema_exists: bool
    tracking_exists: bool
    postgis: str | None
    existing: ExistingTable | None

    def check_writable(self) -> None:
        """Refuse a target that takes no rows."""
        if self.kind is not None and self.kind not in {"r", "p"}:
            raise ConfigurationError(
                f"{self.table} is {_KINDS.get(self.kind, 'no table')}; rows can only be written "
                "to a table. Point the asset's schema and table metadata elsewhere."
            )
        if self.existing is not None and self.existing.row_security:
            raise ConfigurationError(
                f"Row-level security of {self.table} applies to the role that writes: rows it "
                "may not see would survive a replace. Connect as the table's owner (without "
                "FORCE ROW LEVEL SECURITY) or as a role with BYPASSRLS."
            )


def fetch_catalog(connection: Asked, table: Table, tracking_schema: str) -> Catalog:
    """Ask what exists under the table's name."""
    with translated(f"looking {table} up"):
        names = [table.schema, table.name, tracking_schema]
        [(found,)] = connection.execute(_QUERY, names).fetchall()
    # None is one that another session drops at this moment.
    checks = tuple(check for check in found["checks"] or () if check is not None)
    geometry = _checked_geometry(checks)
    columns = tuple(
        _column(item, found["postgis"], geometry.get(item["name"]))
        for item in found["columns"] or ()
    )
    existing = None
    if found["kind"] is not None:
        existing = ExistingTable(
            table=table,
            columns=columns,
            indexes=tuple(
                Index(
                    item["name"],
                    tuple(item["columns"] or ()),
                    unique=item["unique"],
                    primary=item["primary"],
                    valid=item["valid"],
                )
                for item in found["indexes"] or ()
            ),
            referencing=tuple(
                ForeignKey(item["name"], tuple(item["columns"]), item["on_delete"])
                for item in found["referencing"] or ()
            ),
            checks=checks,
            row_security=found["row_security"],
            owned=found["owned"],
            has_materialization_default=any(
                item["name"] == MATERIALIZATION_ID and item["default"] is not None
                for item in found["columns"] or ()
            ),
            partitioned=found["kind"] == "p",
        )
    return Catalog(
        database=found["database"],
        table=table,
        kind=found["kind"],
        schema_exists=found["schema_exists"],
        tracking_exists=found["tracking_exists"],
        postgis=found["postgis"],
        existing=existing,
    )


def resolve_types(
    connection: Connection, columns: Sequence[Column], postgis: str | None
) -> tuple[Column, ...]:
    """Return the columns with their types spelled as the server spells them.

    `public.mood` and `"mood"` are `mood` to a server that finds it on the search path. Asks
    only about names with a schema or quotes; one the server does not have stays as it is.
    PostGIS' types are told where PostGIS is, whether or not the search path leads there.
    """
    return tuple(
        replace(column, type=_in_postgis(column.type, postgis))
        if postgis is not None and is_spatial(column.type)
        else replace(column, type=_spelled(connection, column))
        if set('."') & set(column.type.name)
        else column
        for column in columns
    )


def fetch_storage(connection: Connection, columns: Iterable[Column]) -> dict[str, PgType]:
    """Return what values of each column are encoded as; asks only about types it does not know.

    Raises:
        ConfigurationError: The server has no such type.
    """
    storage = {column.name: column.type for column in columns}
    for name, type_ in storage.items():
        if type_.name in _KNOWN or type_.schema is not None:
            continue
        storage[name] = _fetch_storage(connection, name, type_)
    return storage


def describe_query(connection: Connection, query: Composed) -> dict[str, PgType]:
    """Return the columns a query returns, without running it: no row, no side effect.

    A `materialization_id` that `SELECT *` brings along is left out.
    """
    described = sql.SQL("SELECT *\nFROM (\n{}\n) AS query\nLIMIT 0").format(query)
    with translated("reading the query's columns"):
        result = connection.execute(described).pgresult
    if result is None:
        raise DatabaseError("The server did not describe the query.", step="reading its columns")
    names = [(result.fname(i) or b"").decode() for i in range(result.nfields)]
    repeated = sorted({name for name in names if names.count(name) > 1} - {MATERIALIZATION_ID})
    if repeated:
        raise ConfigurationError(
            f"The query returns columns {repeated} more than once. Name each with AS."
        )
    with translated("reading the query's types"):
        types = connection.execute(
            """
            SELECT pg_catalog.format_type(type, typmod)
            FROM ROWS FROM (
                pg_catalog.unnest($1::oid[]), pg_catalog.unnest($2::integer[])
            ) AS described (type, typmod)
            """,
            [
                [result.ftype(i) for i in range(result.nfields)],
                [result.fmod(i) for i in range(result.nfields)],
            ],
        ).fetchall()
    columns = {name: _lenient(row[0]) for name, row in zip(names, types, strict=True)}
    columns.pop(MATERIALIZATION_ID, None)
    return columns


def fetch_column_type(connection: Connection, table: Table, column: str) -> PgType | None:
    """Return the type a column has now, None where there is no such column."""
    with translated(f"looking {table} up"):
        row = connection.execute(
            """
            SELECT pg_catalog.format_type(atttypid, atttypmod)
            FROM pg_catalog.pg_attribute
            WHERE attrelid = pg_catalog.to_regclass($1)
              AND attname = $2
            """,
            [table.identifier.as_string(), column],
        ).fetchone()
    if row is None:
        return None
    type_ = _lenient(row[0])
    schema, _point, name = type_.name.rpartition(".")
    return replace(type_, name=name, schema=schema or None) if is_spatial(type_) else type_


def fetch_dependents(connection: Connection, table: Table, column: str) -> list[str]:
    """Return views, rules, policies, triggers and generated columns that use a column."""
    with translated(f"looking for what depends on {table}"):
        rows = connection.execute(
            """
            SELECT DISTINCT
                coalesce(
                    (SELECT CASE c.relkind WHEN 'm' THEN 'materialized view ' ELSE 'view ' END
                            || pg_catalog.format('%I.%I', n.nspname, c.relname)
                     FROM pg_catalog.pg_rewrite AS r
                     JOIN pg_catalog.pg_class AS c ON c.oid = r.ev_class
                     JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
                     WHERE d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
                       AND r.oid = d.objid),
                    pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid)
                )
            FROM pg_catalog.pg_depend AS d
            JOIN pg_catalog.pg_attribute AS a
              ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
            JOIN pg_catalog.pg_class AS t ON t.oid = d.refobjid
            JOIN pg_catalog.pg_namespace AS s ON s.oid = t.relnamespace
            WHERE d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
              AND s.nspname = $1
              AND t.relname = $2
              AND a.attname = $3
              AND d.classid IN (
                  'pg_catalog.pg_rewrite'::pg_catalog.regclass,
                  'pg_catalog.pg_policy'::pg_catalog.regclass,
                  'pg_catalog.pg_trigger'::pg_catalog.regclass,
                  'pg_catalog.pg_attrdef'::pg_catalog.regclass
              )
              AND NOT (
                  d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass
                  AND EXISTS (
                      SELECT FROM pg_catalog.pg_attrdef AS f
                      WHERE f.oid = d.objid AND f.adrelid = a.attrelid AND f.adnum = a.attnum
                  )
              )
            ORDER BY 1
            """,
            [table.schema, table.name, column],
        ).fetchall()
    return [row[0] for row in rows]


def fetch_crs(connection: Asked, postgis: str | None, srids: Iterable[int]) -> dict[int, str]:
    """Return what the database says of SRIDs: authority and code, else the CRS in WKT.

    A SRID that nobody described to PostGIS is left out.
    """
    wanted = sorted({srid for srid in srids if srid})
    if postgis is None or not wanted:
        return {}
    statement = sql.SQL(
        """
        SELECT srid, coalesce(auth_name || ':' || auth_srid, srtext)
        FROM {}
        WHERE srid = ANY ($1)
          AND coalesce(auth_name || ':' || auth_srid, srtext) <> ''
        """
    ).format(Identifier(postgis, "spatial_ref_sys"))
    with translated("looking coordinate reference systems up"):
        return dict(connection.execute(statement, [wanted]).fetchall())


def fetch_srid(connection: Asked, query: Composed) -> int:
    """Return the SRID that a query for a row's gives, 0 where there is no row."""
    with translated("looking for the SRID of a column"):
        row = connection.execute(query, []).fetchone()
    return row[0] if row is not None else 0


def postgis_remedy(connection: Connection) -> str:
    """Return how the database gets PostGIS."""
    with translated("looking for PostGIS"):
        available = connection.execute(
            "SELECT FROM pg_catalog.pg_available_extensions WHERE name = 'postgis'"
        ).fetchone()
    if available is not None:
        return "PostGIS is installed on the server: run CREATE EXTENSION postgis in the database"
    major = connection.info.server_version // 10_000
    return (
        "Install PostGIS on the server (Debian and Ubuntu: apt-get install "
        f"postgresql-{major}-postgis-3) and run CREATE EXTENSION postgis in the database"
    )


def _checked_geometry(checks: Iterable[str]) -> dict[str, PgType]:
    """Return what CHECKs say of columns whose type does not say all about their geometry."""
    said: dict[str, PgType] = {}
    for check in checks:
        if (ewkb := read_ewkb_check(check)) is not None:
            said[ewkb[0]] = ewkb[1]
        elif (srid := read_srid_check(check)) is not None:
            said[srid[0]] = PgType("geometry", (ANY_SHAPE, str(srid[1])))
    return said


def _in_postgis(type_: PgType, postgis: str) -> PgType:
    return replace(type_, name=type_.name.rpartition(".")[2], schema=postgis)


def _storage(storage: PgType, postgis: str | None, checked: PgType | None) -> PgType:
    if storage.name in SPATIAL and postgis is not None:
        storage = replace(storage, schema=postgis)
        alike = checked is not None and checked.name == storage.name
        return (
            replace(storage, modifiers=checked.modifiers)
            if (checked is not None and alike and not storage.modifiers)
            else storage
        )
    ewkb = checked is not None and checked.name == EWKB and storage == PgType("bytea")
    return checked if checked is not None and ewkb else storage


def _column(item: dict[str, Any], postgis: str | None, checked: PgType | None) -> ExistingColumn:
    type_ = _lenient(item["type"])
    if postgis is not None and is_spatial(type_):
        type_ = _in_postgis(type_, postgis)
    return ExistingColumn(
        name=item["name"],
        type=type_,
        storage=_storage(_lenient(item["storage"]), postgis, checked),
        not_null=item["not_null"],
        filled_by_server=item["filled_by_server"],
        has_default=item["has_default"],
    )


def _lenient(text: str) -> PgType:
    """Read a type the server spells; one of unusual grammar (`interval day`) keeps its spelling."""
    try:
        return parse_type(text)
    except ConfigurationError:
        return PgType(text)


def _spelled(connection: Connection, column: Column) -> PgType:
    with translated(f"resolving the type of column {column.name!r}"):
        [(name,)] = connection.execute(
            "SELECT pg_catalog.format_type(pg_catalog.to_regtype($1), -1)", [column.type.name]
        ).fetchall()
    return column.type if name is None else replace(column.type, name=_lenient(name).name)


def _fetch_storage(connection: Connection, column: str, type_: PgType) -> PgType:
    with translated(f"resolving the type of column {column!r}"):
        row = connection.execute(
            """
            WITH RECURSIVE unwrapped AS (
                SELECT pg_catalog.to_regtype($1)::oid AS type, -1 AS typmod
                UNION ALL
                SELECT y.typbasetype, y.typtypmod
                FROM unwrapped AS u
                JOIN pg_catalog.pg_type AS y ON y.oid = u.type
                WHERE y.typtype = 'd'
            )
            SELECT CASE
                WHEN y.typnamespace = 'pg_catalog'::pg_catalog.regnamespace
                    THEN pg_catalog.format_type(u.type, u.typmod)
                WHEN y.typtype = 'e' THEN 'enum'
                ELSE y.typname
            END
            FROM unwrapped AS u
            JOIN pg_catalog.pg_type AS y ON y.oid = u.type
            WHERE y.typtype <> 'd'
            """,
            [str(type_.element)],
        ).fetchone()
    if row is None:
        raise ConfigurationError(
            f"columns[{column!r}]: the server has no type {str(type_)!r}. "
            + (
                f"{postgis_remedy(connection)}."
                if is_spatial(type_)
                else f"Types are {', '.join(DECLARED_WORDS)}, and whatever PostgreSQL calls one."
            )
        )
    storage = _lenient(row[0])
    modifiers = storage.modifiers or type_.modifiers
    return PgType(storage.name, modifiers, array=type_.array or storage.array)


_KNOWN = frozenset(
    {
        "boolean", "smallint", "integer", "bigint", "real", "double precision", "numeric",
        "text", "character varying", "character", "json", "jsonb", "bytea", "date", "uuid",
        "time without time zone", "timestamp without time zone", "timestamp with time zone",
        "interval", EWKB,
    }
)  # fmt: skip
