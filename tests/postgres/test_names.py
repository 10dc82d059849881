from __future__ import annotations

import pytest

from dagster_tools.errors import ConfigurationError
from dagster_tools.postgres.names import (
    MAX_COLUMNS,
    Table,
    check_column_names,
    check_identifier,
    check_schema_name,
    check_text,
    derived_name,
)

DUCK = "🦆"  # four bytes


@pytest.mark.parametrize(
    "name",
    [
        "a",
        'a"b',
        "%s {} :x $1 'it''s' \\",
        " lead and trail ",
        "a\nb\tc",
        "select",
        "Id",
        "日本語",
        "e\u0301",
        "oid",
        "x" * 63,
        DUCK * 15,
    ],
)
def test_what_the_server_keeps_as_it_is_may_be_a_name(name):
    assert check_identifier("column", name) == name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", ["is empty"]),
        ("a\0b", [r"'a\x00b'", "'a'", "NUL"]),
        ("\0", [r"'\x00'", "''"]),
        ("a\ud800", [r"'a\ud800'", "surrogate"]),
        ("x" * 64, ["'" + "x" * 64 + "'", "'" + "x" * 63 + "'", "64 bytes"]),
        (DUCK * 16, [repr(DUCK * 16), repr(DUCK * 15), "64 bytes"]),
        ("x" * 62 + "é", [repr("x" * 62 + "é"), repr("x" * 62), "64 bytes"]),
        (1, ["1", "int"]),
        (None, ["None", "NoneType"]),
        (("a", "b"), ["('a', 'b')", "tuple"]),
        (b"a", ["b'a'", "bytes"]),
    ],
)
def test_what_the_server_would_change_is_refused_with_both_names(name, said):
    with pytest.raises(ConfigurationError) as refused:
        check_identifier("column", name)

    assert str(refused.value).startswith("column name ")
    assert all(part in str(refused.value) for part in said)


@pytest.mark.parametrize("name", ["pg_x", "pg_catalog", "pg_"])
def test_schemas_whose_names_the_server_reserves_are_refused(name):
    with pytest.raises(ConfigurationError, match=f"{name!r}: PostgreSQL reserves"):
        Table(name, "t")


def test_tables_may_have_names_that_are_reserved_for_schemas_only():
    assert Table("s", "pg_foo").name == "pg_foo"
    assert check_schema_name("schema", "PG_x") == "PG_x"


@pytest.mark.parametrize(("schema", "name", "kind"), [("", "t", "schema"), ("s", "", "table")])
def test_a_table_is_valid_by_construction(schema, name, kind):
    with pytest.raises(ConfigurationError, match=f"^{kind} name is empty"):
        Table(schema, name)


@pytest.mark.parametrize(
    ("table", "shown"),
    [
        (Table("public", "routes_2"), "public.routes_2"),
        (Table("a.b", 'c"d'), '"a.b"."c""d"'),
        (Table("Upper", "1st"), '"Upper"."1st"'),
        (Table("é", "ok"), '"é".ok'),
    ],
)
def test_a_table_shows_itself_as_one_would_write_it_in_psql(table, shown):
    assert str(table) == shown


def test_an_identifier_is_quoted_part_by_part():
    assert Table('a"; DROP', "b.c").identifier.as_string() == '"a""; DROP"."b.c"'


@pytest.mark.parametrize("name", ["ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"])
def test_system_columns_are_refused(name):
    with pytest.raises(ConfigurationError, match=f"'{name}' has the name of a PostgreSQL system"):
        check_column_names(["a", name])


def test_the_column_that_links_rows_to_materializations_is_not_the_users():
    with pytest.raises(ConfigurationError, match="'materialization_id' is the one that links"):
        check_column_names(["materialization_id"])


def test_columns_of_one_name_are_refused_with_their_places():
    with pytest.raises(ConfigurationError, match="Columns 0 and 2 are both named 'a'"):
        check_column_names(["a", "A", "a"])


def test_names_that_differ_only_in_case_or_normal_form_are_different():
    check_column_names(["a", "A", "é", "e\u0301", " a"])


def test_a_table_has_at_least_one_column_and_at_most_what_the_server_holds():
    check_column_names([f"c{number}" for number in range(MAX_COLUMNS)])

    with pytest.raises(
        ConfigurationError, match="1600 columns; PostgreSQL tables hold at most 1599"
    ):
        check_column_names([f"c{number}" for number in range(MAX_COLUMNS + 1)])
    with pytest.raises(ConfigurationError, match="has no columns"):
        check_column_names([])


@pytest.mark.parametrize("text", ["", "2024-01-01", 'a"\n%{}', "x" * 1000, "🦆"])
def test_a_partition_key_may_be_any_text(text):
    check_text("partition key", text)


@pytest.mark.parametrize("text", ["a\0", "\udfff"])
def test_text_that_postgresql_cannot_hold_is_refused(text):
    with pytest.raises(ConfigurationError, match=r"^partition key "):
        check_text("partition key", text)


@pytest.mark.parametrize(
    ("parts", "hashed", "name"),
    [
        (("routes", "id"), False, "routes_id_idx"),
        (("routes", "id"), True, "routes_id_891b69037c_idx"),
        (("t" * 59,), False, "t" * 59 + "_idx"),
        (("t" * 60,), False, "t" * 48 + "_78ed39748c_idx"),
    ],
)
def test_derived_names_are_readable_within_63_bytes_and_the_same_in_every_version(
    parts, hashed, name
):
    derived = derived_name(*parts, suffix="idx", hashed=hashed)

    assert len(derived.encode()) <= 63
    assert derived == name


def test_derived_names_of_long_tables_differ_where_the_tables_do():
    long = ["x" * 62 + end for end in "ab"]

    assert len({derived_name(name, "id", suffix="idx") for name in long}) == 2


def test_hashed_names_tell_apart_what_reads_the_same():
    one = derived_name("a_b", "c", suffix="idx", hashed=True)
    other = derived_name("a", "b_c", suffix="idx", hashed=True)

    assert one != other


def test_a_derived_name_never_ends_within_a_character():
    derived = derived_name(DUCK * 15, "é" * 10, suffix="key")

    assert derived.startswith(DUCK * 11)
    assert len(derived.encode()) <= 63
