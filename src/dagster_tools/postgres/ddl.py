"""Compose what creates or alters: nothing here is executed.

On a live table only statements that wait for a moment are composed: a nullable
column, a default, an index built CONCURRENTLY, a constraint added NOT VALID. The
one exception is `compose_alter_type`, which rewrites the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from psycopg import sql
from psycopg.sql import Composable, Composed, Identifier

from dagster_tools.postgres.column_types import EWKB, PgType
from dagster_tools.postgres.columns import Column
from dagster_tools.postgres.geometry import ewkb_pattern, needs_check
from dagster_tools.postgres.names import MATERIALIZATION_ID, Table, derived_name

__all__ = [
    "MATERIALIZATION_SETTING",
    "compose_add_check",
    "compose_add_column",
    "compose_add_materialization_id",
    "compose_add_shape_check",
    "compose_alter_type",
    "compose_analyze",
    "compose_create_schema",
    "compose_create_table",
    "compose_drop_constraint",
    "compose_drop_index",
    "compose_find_contradiction",
    "compose_find_repeated",
    "compose_index",
    "compose_key",
    "compose_key_using_index",
    "compose_lock",
    "compose_not_null",
    "compose_staging",
    "compose_staging_key",
    "compose_validate",
    "shape_check_name",
]

COLLATED = frozenset(map(PgType, ("text", "character varying", "character")))

MATERIALIZATION_SETTING = "dagster_tools.materialization_id"

MATERIALIZATION_DEFAULT = sql.SQL(
    "nullif(pg_catalog.current_setting('dagster_tools.materialization_id', true), '')::integer"
)
"""Tags rows a user's own statements insert in the writing transaction.

After SET LOCAL the setting is '' for the rest of the session, not NULL; hence nullif.
"""


def compose_create_schema(schema: str) -> Composed:
    """Compose it without IF NOT EXISTS, which asks for more privileges than looking does."""
    return sql.SQL("CREATE SCHEMA {}").format(Identifier(schema))


def compose_create_table(table: Table, columns: Sequence[Column]) -> Composed:
    """Compose the table without keys and indexes: they are built after its rows are loaded."""
    definitions: list[Composable] = [_definition(table, column) for column in columns]
    definitions.append(
        sql.SQL("{} integer DEFAULT {}").format(
            Identifier(MATERIALIZATION_ID), MATERIALIZATION_DEFAULT
        )
    )
    return sql.SQL("CREATE TABLE {} (\n    {}\n)").format(
        table.identifier, sql.SQL(",\n    ").join(definitions)
    )


def compose_staging(name: str, table: Table, columns: Sequence[str]) -> Composed:
    """Compose a temporary table with the target's column types and none of its constraints."""
    return sql.SQL(
        """
        CREATE TEMPORARY TABLE {staging} ON COMMIT DROP AS
        SELECT {columns}
        FROM {table}
        WITH NO DATA
        """
    ).format(
        staging=Identifier("pg_temp", name),
        columns=sql.SQL(", ").join(map(Identifier, [*columns, MATERIALIZATION_ID])),
        table=table.identifier,
    )


def compose_staging_key(name: str, key: Mapping[str, PgType]) -> Composed:
    """Compose the unique index of a staging table; where it fails, rows repeat a key.

    Text is sorted by its bytes, which is faster and finds the same repetitions. (Only a
    collation that takes different texts for equal would find more.)

    Args:
        key: Its columns, and what each is encoded as.
    """
    collated = sql.SQL('{} COLLATE pg_catalog."C"')
    return sql.SQL("CREATE UNIQUE INDEX ON {} ({})").format(
        Identifier("pg_temp", name),
        sql.SQL(", ").join(
            collated.format(Identifier(column)) if type_ in COLLATED else Identifier(column)
            for column, type_ in key.items()
        ),
    )


def compose_analyze(table: Identifier, columns: Sequence[str]) -> Composed:
    """Compose what tells the planner how a temporary table is ordered: autovacuum sees none."""
    return sql.SQL("ANALYZE {} ({})").format(table, sql.SQL(", ").join(map(Identifier, columns)))


def compose_add_column(table: Table, column: Column) -> Composed:
    """Compose a nullable column: PostgreSQL adds it without touching a row."""
    return sql.SQL("ALTER TABLE {} ADD COLUMN IF NOT EXISTS {} {}").format(
        table.identifier, Identifier(column.name), column.type.as_sql
    )


def compose_add_materialization_id(table: Table) -> list[Composed]:
    """Compose the tracking column for a table made elsewhere.

    Two statements, in this order: with the default in the first, PostgreSQL would
    stamp the rows that are already there.
    """
    column = Identifier(MATERIALIZATION_ID)
    return [
        sql.SQL("ALTER TABLE {} ADD COLUMN IF NOT EXISTS {} integer").format(
            table.identifier, column
        ),
        sql.SQL("ALTER TABLE {} ALTER COLUMN {} SET DEFAULT {}").format(
            table.identifier, column, MATERIALIZATION_DEFAULT
        ),
    ]


def compose_alter_type(table: Identifier, column: str, type_: PgType, *, empty: bool) -> Composed:
    """Compose a change of type; it rewrites the table under ACCESS EXCLUSIVE.

    Args:
        empty: The column holds no value, so that none needs a cast.
    """
    value = sql.SQL("NULL") if empty else Identifier(column)
    return sql.SQL("ALTER TABLE {} ALTER COLUMN {} TYPE {} USING {}::{}").format(
        table, Identifier(column), type_.as_sql, value, type_.as_sql
    )


def compose_index(
    table: Table,
    columns: Sequence[str],
    *,
    unique: bool,
    concurrently: bool,
    spatial: bool = False,
) -> Composed:
    """Compose an index; a unique one becomes a key, and both that and a retry need its name.

    Args:
        spatial: Of boxes around geometry (GiST), for `&&` and the functions that use it.
        concurrently: The table is live: nobody waits, it may not be in a transaction, and
            several may build it at once.
    """
    name = Identifier(index_name(table, columns, unique=unique))
    if concurrently:
        named = sql.SQL("CONCURRENTLY IF NOT EXISTS {} ").format(name)
    else:
        named = sql.SQL("{} ").format(name) if unique else Composed([])
    return sql.SQL("CREATE {}INDEX {}ON {}{} ({})").format(
        sql.SQL("UNIQUE ") if unique else sql.SQL(""),
        named,
        table.identifier,
        sql.SQL(" USING gist") if spatial else sql.SQL(""),
        sql.SQL(", ").join(map(Identifier, columns)),
    )


def compose_drop_index(table: Table, name: str) -> Composed:
    """Compose the removal of what a failed CREATE INDEX CONCURRENTLY leaves.

    Not CONCURRENTLY: that waits for all who use the table, and no `lock_timeout` can limit it.
    """
    return sql.SQL("DROP INDEX IF EXISTS {}").format(Identifier(table.schema, name))


def compose_key(table: Table, columns: Sequence[str], *, primary: bool) -> Composed:
    """Compose a primary key or a unique constraint for a table nobody else sees yet.

    The server names it: it finds a name that no other table of the schema has.
    """
    return sql.SQL("ALTER TABLE {} ADD {} ({})").format(
        table.identifier,
        sql.SQL("PRIMARY KEY" if primary else "UNIQUE"),
        sql.SQL(", ").join(map(Identifier, columns)),
    )


def compose_key_using_index(table: Table, columns: Sequence[str], *, primary: bool) -> Composed:
    """Compose a key from an index built before, under its name; the lock is short."""
    return sql.SQL("ALTER TABLE {} ADD {} USING INDEX {}").format(
        table.identifier,
        sql.SQL("PRIMARY KEY" if primary else "UNIQUE"),
        Identifier(index_name(table, columns, unique=True)),
    )


def compose_add_check(table: Table, column: str, *, nonnegative: bool) -> Composed:
    """Compose a CHECK that holds for new rows at once and for old ones after VALIDATE."""
    condition = sql.SQL("{} >= 0" if nonnegative else "{} IS NOT NULL").format(Identifier(column))
    return sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} CHECK ({}) NOT VALID").format(
        table.identifier,
        Identifier(check_name(table, column, nonnegative=nonnegative)),
        condition,
    )


def compose_add_shape_check(table: Table, column: str, type_: PgType, *, valid: bool) -> Composed:
    """Compose the CHECK that says what geometry a column holds, of a type that needs one.

    Args:
        valid: Look at every row. PostGIS' view `geometry_columns` fails, for everybody, where a
            CHECK on a SRID is NOT VALID (3.3).
    """
    return sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} CHECK ({}){}").format(
        table.identifier,
        Identifier(shape_check_name(table, column)),
        _shape_condition(column, type_),
        sql.SQL("" if valid else " NOT VALID"),
    )


def compose_find_contradiction(table: Table, column: str, *, nonnegative: bool) -> Composed:
    """Compose a query for a row that such a CHECK would refuse. $1: materializations that leave."""
    condition = sql.SQL("{} < 0" if nonnegative else "{} IS NULL").format(Identifier(column))
    return sql.SQL("SELECT FROM {} WHERE {} AND ({} = ANY ($1)) IS NOT TRUE LIMIT 1").format(
        table.identifier, condition, Identifier(MATERIALIZATION_ID)
    )


def compose_find_repeated(table: Table, columns: Sequence[str]) -> Composed:
    """Compose a query for rows a unique index would refuse. $1: materializations that leave."""
    names = list(map(Identifier, columns))
    return sql.SQL(
        """
        SELECT
        FROM {table}
        WHERE {no_null}
          AND ({id} = ANY ($1)) IS NOT TRUE
        GROUP BY {columns}
        HAVING pg_catalog.count(*) > 1
        LIMIT 1
        """
    ).format(
        table=table.identifier,
        no_null=sql.SQL(" AND ").join(sql.SQL("{} IS NOT NULL").format(name) for name in names),
        id=Identifier(MATERIALIZATION_ID),
        columns=sql.SQL(", ").join(names),
    )


def compose_validate(table: Table, column: str, *, nonnegative: bool) -> Composed:
    """Compose the scan that makes a CHECK hold for old rows; others read and write meanwhile."""
    return sql.SQL("ALTER TABLE {} VALIDATE CONSTRAINT {}").format(
        table.identifier, Identifier(check_name(table, column, nonnegative=nonnegative))
    )


def compose_drop_constraint(table: Table, name: str) -> Composed:
    """Compose the removal of a constraint of ours that has served its purpose, or failed."""
    return sql.SQL("ALTER TABLE {} DROP CONSTRAINT IF EXISTS {}").format(
        table.identifier, Identifier(name)
    )


def compose_lock(table: Table, mode: Literal["ROW EXCLUSIVE", "ACCESS EXCLUSIVE"]) -> Composed:
    """Compose a lock that ends with the transaction; partitions and children lock themselves."""
    return sql.SQL("LOCK TABLE ONLY {} IN {} MODE").format(table.identifier, sql.SQL(mode))


def compose_not_null(table: Table, column: str) -> Composed:
    """Compose NOT NULL; without a scan where a validated CHECK already says so (ALTER TABLE)."""
    return sql.SQL("ALTER TABLE {} ALTER COLUMN {} SET NOT NULL").format(
        table.identifier, Identifier(column)
    )


def index_name(table: Table, columns: Sequence[str], *, unique: bool) -> str:
    """Return the name of an index that is built while others use the table."""
    suffix = "key" if unique else "idx"
    return derived_name(table.name, *columns, suffix=suffix, hashed=True)


def check_name(table: Table, column: str, *, nonnegative: bool) -> str:
    """Return the name of a CHECK of ours."""
    suffix = "nonnegative" if nonnegative else "not_null"
    return derived_name(table.name, column, suffix=suffix)


def shape_check_name(table: Table, column: str) -> str:
    """Return the name of the CHECK that says what geometry a column holds."""
    return derived_name(table.name, column, suffix="srid")


def _shape_condition(column: str, type_: PgType) -> Composed:
    """Compose what geometry must be where its type does not say so.

    The one on the SRID is what PostGIS' own catalog, `geometry_columns`, looks for.
    """
    if type_.name == EWKB:
        return sql.SQL("pg_catalog.encode(pg_catalog.substr({}, 1, 9), 'hex') LIKE {}").format(
            Identifier(column), sql.Literal(ewkb_pattern(type_))
        )
    function = Identifier(*([type_.schema] if type_.schema else []), "st_srid")
    return sql.SQL("{}({}) = {}").format(
        function, Identifier(column), sql.Literal(int(type_.modifiers[1]))
    )


def _definition(table: Table, column: Column) -> Composed:
    definition = sql.SQL("{} {}").format(Identifier(column.name), column.type.as_sql)
    if needs_check(column.type):
        condition = _shape_condition(column.name, column.type)
        name = Identifier(shape_check_name(table, column.name))
        definition += sql.SQL(" CONSTRAINT {} CHECK ({})").format(name, condition)
    if column.not_null:
        definition += sql.SQL(" NOT NULL")
    if column.nonnegative:
        definition += sql.SQL(" CHECK ({} >= 0)").format(Identifier(column.name))
    return definition
