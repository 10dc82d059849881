from __future__ import annotations

import pytest

from dagster_tools.postgres import ddl
from dagster_tools.postgres.column_types import parse_type
from dagster_tools.postgres.columns import Column
from dagster_tools.postgres.names import Table
from tests.postgres.statements import CANARY, ODD_NAMES, text_of, unquoted
from tests.postgres.tables import declared

TABLE = Table("s", "t")
DEFAULT = (
    "nullif(pg_catalog.current_setting('dagster_tools.materialization_id', true), '')::integer"
)


@pytest.mark.parametrize(
    ("composed", "statement"),
    [
        (ddl.compose_create_schema("s"), 'CREATE SCHEMA "s"'),
        (
            ddl.compose_create_table(
                TABLE, [*declared(id=("uint", "not null", "unique"), at="timestamptz").values()]
            ),
            (
                'CREATE TABLE "s"."t" ( "id" integer NOT NULL CHECK ("id" >= 0), '
                f'"at" timestamp with time zone, "materialization_id" integer DEFAULT {DEFAULT} )'
            ),
        ),
        (
            ddl.compose_staging("staging", TABLE, ["a", "b"]),
            (
                'CREATE TEMPORARY TABLE "pg_temp"."staging" ON COMMIT DROP AS '
                'SELECT "a", "b", "materialization_id" FROM "s"."t" WITH NO DATA'
            ),
        ),
        (
            ddl.compose_add_column(TABLE, Column("a", parse_type("numeric(12,2)"), not_null=True)),
            'ALTER TABLE "s"."t" ADD COLUMN IF NOT EXISTS "a" numeric(12,2)',
        ),
        (
            ddl.compose_alter_type(TABLE.identifier, "a", parse_type("bigint"), empty=False),
            'ALTER TABLE "s"."t" ALTER COLUMN "a" TYPE bigint USING "a"::bigint',
        ),
        (
            ddl.compose_alter_type(TABLE.identifier, "a", parse_type("date"), empty=True),
            'ALTER TABLE "s"."t" ALTER COLUMN "a" TYPE date USING NULL::date',
        ),
        (
            ddl.compose_index(TABLE, ["a", "b"], unique=False, concurrently=False),
            'CREATE INDEX ON "s"."t" ("a", "b")',
        ),
        (
            ddl.compose_key(TABLE, ["a", "b"], primary=True),
            'ALTER TABLE "s"."t" ADD PRIMARY KEY ("a", "b")',
        ),
        (ddl.compose_key(TABLE, ["a"], primary=False), 'ALTER TABLE "s"."t" ADD UNIQUE ("a")'),
        (
            ddl.compose_add_check(TABLE, "a", nonnegative=True),
            'ALTER TABLE "s"."t" ADD CONSTRAINT "t_a_nonnegative" CHECK ("a" >= 0) NOT VALID',
        ),
        (
            ddl.compose_add_check(TABLE, "a", nonnegative=False),
            'ALTER TABLE "s"."t" ADD CONSTRAINT "t_a_not_null" CHECK ("a" IS NOT NULL) NOT VALID',
        ),
        (
            ddl.compose_validate(TABLE, "a", nonnegative=True),
            'ALTER TABLE "s"."t" VALIDATE CONSTRAINT "t_a_nonnegative"',
        ),
        (
            ddl.compose_drop_constraint(TABLE, "t_a_not_null"),
            'ALTER TABLE "s"."t" DROP CONSTRAINT IF EXISTS "t_a_not_null"',
        ),
        (
            ddl.compose_not_null(TABLE, "a"),
            'ALTER TABLE "s"."t" ALTER COLUMN "a" SET NOT NULL',
        ),
        (
            ddl.compose_drop_index(TABLE, "i"),
            'DROP INDEX IF EXISTS "s"."i"',
        ),
    ],
)
def test_statements_read_as_one_would_write_them_in_psql(composed, statement):
    assert text_of(composed) == statement


def test_the_tracking_column_is_added_before_its_default():
    """Together, PostgreSQL would stamp the rows that are there with the writer's number."""
    added, defaulted = ddl.compose_add_materialization_id(TABLE)

    assert text_of(added).endswith('ADD COLUMN IF NOT EXISTS "materialization_id" integer')
    assert text_of(defaulted).endswith(f'ALTER COLUMN "materialization_id" SET DEFAULT {DEFAULT}')


def test_a_key_is_attached_under_the_name_of_the_index_that_was_built_for_it():
    name = ddl.index_name(TABLE, ["a"], unique=True)
    built = ddl.compose_index(TABLE, ["a"], unique=True, concurrently=True)
    attached = ddl.compose_key_using_index(TABLE, ["a"], primary=True)

    assert f'CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS "{name}" ON' in text_of(built)
    assert text_of(attached) == f'ALTER TABLE "s"."t" ADD PRIMARY KEY USING INDEX "{name}"'


def test_indexes_built_on_live_tables_never_meet_those_of_other_tables():
    """Under IF NOT EXISTS the second of two such indexes would silently not be built."""
    names = {
        ddl.index_name(Table("s", "a_b"), ["c"], unique=False),
        ddl.index_name(Table("s", "a"), ["b_c"], unique=False),
        ddl.index_name(Table("s", "a"), ["b", "c"], unique=False),
        ddl.index_name(Table("s", "a"), ["b", "c"], unique=True),
    }

    assert len(names) == 4


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_stands_in_a_statement_only_within_its_quotes(name):
    table, column = Table(name, name), Column(name, parse_type("int"), nonnegative=True)

    statements = [
        ddl.compose_create_schema(name),
        ddl.compose_create_table(table, [column]),
        ddl.compose_staging(name, table, [name]),
        ddl.compose_add_column(table, column),
        *ddl.compose_add_materialization_id(table),
        ddl.compose_alter_type(table.identifier, name, column.type, empty=False),
        ddl.compose_index(table, [name], unique=True, concurrently=True),
        ddl.compose_index(table, [name], unique=False, concurrently=False),
        ddl.compose_drop_index(table, name),
        ddl.compose_key(table, [name], primary=False),
        ddl.compose_key_using_index(table, [name], primary=True),
        ddl.compose_add_check(table, name, nonnegative=True),
        ddl.compose_validate(table, name, nonnegative=False),
        ddl.compose_drop_constraint(table, name),
        ddl.compose_not_null(table, name),
    ]

    assert all('"' + name.replace('"', '""') in each.as_string() for each in statements)
    assert not [each for each in statements if "victim" in unquoted(each) or ";" in unquoted(each)]


def test_the_look_outside_quotes_would_find_a_name_that_escaped():
    from psycopg import sql

    assert "victim" in unquoted(sql.SQL(f'DROP TABLE "{CANARY}"'))
