from __future__ import annotations

import pytest
from psycopg import sql
from psycopg.sql import Identifier

from dagster_tools.postgres import merge
from dagster_tools.postgres.names import Table
from tests.postgres.statements import ODD_NAMES, text_of, unquoted

TABLE = Table("s", "t")
STAGING = Identifier("pg_temp", "staging")


@pytest.mark.parametrize(
    ("composed", "statement"),
    [
        (
            merge.compose_copy_in(TABLE.identifier, ["a", "b"], binary=True),
            'COPY "s"."t" ("a", "b") FROM STDIN (FORMAT binary)',
        ),
        (
            merge.compose_copy_in(STAGING, ["a"], binary=False),
            'COPY "pg_temp"."staging" ("a") FROM STDIN (FORMAT text)',
        ),
        (
            merge.compose_delete(TABLE),
            'DELETE FROM "s"."t" AS kept WHERE kept."materialization_id" = ANY ($1) AND true',
        ),
        (
            merge.compose_delete_and_count(TABLE),
            (
                'WITH written AS ( DELETE FROM "s"."t" AS kept '
                'WHERE kept."materialization_id" = ANY ($1) AND true '
                'RETURNING kept."materialization_id" ) '
                'SELECT "materialization_id", pg_catalog.count(*) FROM written GROUP BY 1'
            ),
        ),
    ],
)
def test_statements_read_as_one_would_write_them_in_psql(composed, statement):
    assert text_of(composed) == statement


def test_rows_whose_key_stays_get_every_value_but_the_key():
    composed = merge.compose_replace_kept(TABLE, STAGING, ["k", "v"], ["k"], absent=["d"])

    assert (
        'UPDATE "s"."t" AS kept SET "v" = staging."v", '
        '"materialization_id" = staging."materialization_id", "d" = DEFAULT '
        'FROM "pg_temp"."staging" AS staging WHERE "kept"."k" = "staging"."k" '
        'AND kept."materialization_id" = ANY ($1) AND true'
    ) in text_of(composed)


def test_a_referenced_row_goes_and_comes_in_one_statement_in_this_order():
    composed = text_of(merge.compose_replace(TABLE, STAGING, ["k"]))

    assert composed.startswith('WITH deleted AS ( DELETE FROM "s"."t" AS kept')
    assert (
        'inserted AS ( INSERT INTO "s"."t" ("k", "materialization_id") '
        'SELECT "k", "materialization_id" FROM "pg_temp"."staging" AS staging '
        'WHERE (SELECT pg_catalog.count(*) FROM "deleted") IS NOT NULL'
    ) in composed


def test_a_composite_key_is_the_same_where_every_part_is():
    composed = text_of(merge.compose_absent_from_staging(STAGING, ["a", "b"]))

    assert '"kept"."a" = "staging"."a" AND "kept"."b" = "staging"."b"' in composed


@pytest.mark.parametrize("columns", [["k", "v"], ["k"]], ids=["with values", "keys alone"])
@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_stands_in_a_statement_only_within_its_quotes(name, columns):
    table, staging = Table(name, name), Identifier("pg_temp", name)
    names = [name, *columns]

    statements = [
        merge.compose_copy_in(table.identifier, names, binary=True),
        merge.compose_delete(table, sql.SQL("kept.{} = 1").format(Identifier(name))),
        merge.compose_delete_and_count(table),
        merge.compose_srid_joined(table, name, name, others=True),
        merge.compose_absent_from_staging(staging, [name]),
        merge.compose_repeated_keys(staging, [name]),
        merge.compose_update_changed(table, staging, names, [name], compared_by_image=["v"]),
        merge.compose_insert_absent(table, staging, names, [name]),
        merge.compose_known_keys(table, staging, [name], sample=100),
        merge.compose_replace(table, staging, names),
        merge.compose_replace_kept(table, staging, names, [name], absent=[name]),
    ]

    assert all('"' + name.replace('"', '""') in each.as_string() for each in statements)
    assert not [each for each in statements if "victim" in unquoted(each) or ";" in unquoted(each)]
