"""Errors: for a tired person, across processes, and without a value of a row."""

from __future__ import annotations

import copy
import pickle
import traceback
from decimal import Decimal

import dagster as dg
import pandas as pd
import pyarrow as pa
import pytest

from dagster_tools import errors
from dagster_tools.errors import (
    BadValue,
    ConfigurationError,
    DagsterToolsError,
    DatabaseError,
    FileDeleted,
    GrantFailed,
    MaterializationNotFound,
    SchemaConflict,
    SharePointAccessDenied,
    SharePointError,
    SharePointNotFound,
    SharePointThrottled,
    UnsupportedFrame,
)
from dagster_tools.postgres.connection import server_message
from tests.pipelines import arrow_table, materialize, store

CANARY = "canary4711"


@pytest.fixture
def database(cleaned_database):
    return cleaned_database


# --- the family -----------------------------------------------------------------------------

MADE = [
    DagsterToolsError("what"),
    ConfigurationError("what"),
    MaterializationNotFound("what"),
    MaterializationNotFound.for_partitions("a/b", ["2024-01-01"]),
    SchemaConflict("what"),
    UnsupportedFrame("what"),
    BadValue("is negative", column="n", row=3, constraint="numbers_n_check"),
    BadValue("is negative"),
    DatabaseError("what", sqlstate="57014", step="copying rows"),
    GrantFailed("what", sqlstate="42501", step="granting"),
    SharePointError("what"),
    SharePointAccessDenied("what"),
    SharePointNotFound("what"),
    SharePointThrottled("what", retry_after=3.0),
    FileDeleted("what"),
]


def test_everything_public_is_tested_here():
    assert {type(error).__name__ for error in MADE} == set(errors.__all__)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (ConfigurationError, ValueError),
        (MaterializationNotFound, ValueError),
        (BadValue, ValueError),
        (UnsupportedFrame, TypeError),
        (GrantFailed, DatabaseError),
    ],
)
def test_who_catches_the_builtin_or_the_family_catches_these(error, builtin):
    assert issubclass(error, builtin)
    assert issubclass(error, DagsterToolsError)


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "travel", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy]
)
def test_an_error_is_the_same_after_its_way_to_another_process(error, labelled, travel):
    error = copy.deepcopy(error)
    if labelled:
        error.about("asset numbers (public.numbers)")

    arrived = travel(error)

    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert arrived.__dict__ == error.__dict__


def test_a_bad_value_says_where_it_is_before_what_it_is():
    assert str(BadValue("is negative", column="n", row=3)) == "column 'n', row 3: is negative"
    assert str(BadValue("is negative", column="n")) == "column 'n': is negative"
    assert str(BadValue("is negative", row=3)) == "row 3: is negative"
    assert str(BadValue("is negative")) == "is negative"


def test_a_missing_materialization_names_partitions_asset_and_both_remedies():
    error = MaterializationNotFound.for_partitions("sales/orders", ["2024-01-01"])

    assert str(error).startswith("No materialization found for partitions ['2024-01-01']")
    assert "sales/orders" in str(error)
    assert "Materialize" in str(error)
    assert "full_table: True" in str(error)


def test_ten_thousand_missing_partitions_make_a_short_message():
    error = MaterializationNotFound.for_partitions("a", [str(n) for n in range(10_000)])

    assert "and 9980 more" in str(error)
    assert len(str(error)) < 600


# --- no value of a row ----------------------------------------------------------------------

TYPES = """
    CREATE TYPE mood AS ENUM ('sad', 'ok');
    CREATE DOMAIN code AS text CHECK (length(VALUE) < 5);
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RETURN NEW;
        END
    $$
"""

# What the server refuses, and what is refused here before it is asked; SQLSTATE where it is.
REFUSED = {
    "22P02 enum": ({"c": "mood"}, {"c": [CANARY]}),
    "22P02 inet": ({"c": "inet"}, {"c": [CANARY]}),
    "22P02 integer": ({"c": "int"}, {"c": [CANARY]}),
    "22P02 json": ({"c": "jsonb"}, {"c": ['{"a": ' + CANARY]}),
    "22P02 array": ({"c": "int4range[]"}, {"c": [[CANARY]]}),
    "22003 integer": ({"c": "int"}, {"c": [4711_4711_4711]}),
    "22003 numeric": ({"c": "numeric(5,2)"}, {"c": [Decimal(47114711)]}),
    "22001 varchar": ({"c": "varchar(3)"}, {"c": [CANARY]}),
    "22007 date": ({"c": "date"}, {"c": [CANARY]}),
    "22008 range": ({"c": "daterange"}, {"c": [f"[{CANARY},)"]}),
    "23502 declared": ({"c": ("string", "not null")}, {"c": [None], "d": [CANARY]}),
    "23505 declared": ({"c": ("string", "unique")}, {"c": [CANARY, CANARY]}),
    "23514 declared": ({"c": "uint"}, {"c": [-4711], "d": [CANARY]}),
    "23514 domain": ({"c": "code"}, {"c": [CANARY]}),
    "XX000 geometry": ({"c": "geometry"}, {"c": [CANARY]}),
    "21000 nested": ({"c": "int[]"}, {"c": [[CANARY]]}),
    "no text": ({"c": "string"}, {"c": [CANARY.encode()]}),
    "no frame": ({}, CANARY),
}


@pytest.mark.parametrize("case", REFUSED)
def test_no_value_of_a_row_is_in_an_error_or_its_chain(database, io_manager, case):
    columns, data = REFUSED[case]
    with database.connect() as connection:
        connection.execute(TYPES)
    value = pa.table(data) if isinstance(data, dict) else data

    with pytest.raises(DagsterToolsError) as caught:
        store(io_manager, value, columns=columns)

    _assert_no_value(caught.value)
    assert "asset numbers" in str(caught.value)


@pytest.mark.parametrize(
    ("sqlstate", "definition", "data"),
    [
        ("23505", "c text UNIQUE", {"c": [CANARY, CANARY]}),
        ("23505", "c text, d int, PRIMARY KEY (c, d)", {"c": [CANARY] * 2, "d": [4711] * 2}),
        ("23502", "c text NOT NULL, d text", {"c": [None], "d": [CANARY]}),
        ("23514", "c text CHECK (length(c) < 3)", {"c": [CANARY]}),
        ("23514", "c code", {"c": [CANARY]}),
        ("23503", "c text REFERENCES parents", {"c": [CANARY]}),
        ("23P01", "c int4range, EXCLUDE USING gist (c WITH &&)", {"c": ["[4711,4712)"] * 2}),
        ("22P02", "c mood", {"c": [CANARY]}),
        ("22001", "c bit(3)", {"c": ["010101"]}),
    ],
)
def test_what_the_server_refuses_is_told_without_its_detail(
    database, io_manager, sqlstate, definition, data
):
    with database.connect() as connection:
        connection.execute(TYPES)
        connection.execute("CREATE TABLE parents (c text PRIMARY KEY)")
        connection.execute(f"CREATE TABLE numbers ({definition})")

    with pytest.raises((BadValue, DatabaseError, SchemaConflict)) as caught:
        store(io_manager, pa.table(data))

    _assert_no_value(caught.value)
    assert "asset numbers (public.numbers)" in str(caught.value)


def test_what_a_run_logs_of_a_refused_row_has_no_value_either(database, io_manager):
    with database.connect() as connection:
        connection.execute(TYPES)

    @dg.asset(metadata={"columns": {"c": "mood"}})
    def numbers():
        return pd.DataFrame({"c": ["ok", CANARY]})

    instance = dg.DagsterInstance.ephemeral()
    result = materialize(numbers, io_manager, instance=instance, raise_on_error=False)

    entries = instance.all_logs(result.run_id)
    told = [entry.to_json() for entry in entries]
    assert any("column 'c', row 1" in text for text in told)
    assert not [text for text in told if CANARY in text]


def _assert_no_value(error: BaseException) -> None:
    told = "".join(traceback.format_exception(error))
    said = [line for line in told.splitlines() if not line.lstrip().startswith("File ")]
    # Lines of source code are in a traceback, this test's among them; the messages are not code.
    messages = [line for line in said if not line.startswith("    ")]
    assert CANARY not in "\n".join(messages)
    assert "4711" not in "\n".join(messages)
    chain: BaseException | None = error
    while chain is not None:
        assert "4711" not in str(chain)
        assert "4711" not in repr(chain.__dict__)
        chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)


@pytest.mark.parametrize(
    "said",
    [
        f'invalid input syntax for type integer: "{CANARY}"',
        f"ungültige Eingabesyntax für Typ integer: »{CANARY}«",
        f"syntaxe en entrée invalide pour le type integer : « {CANARY} »",
        f"neplatná vstupní syntaxe pro typ integer: „{CANARY}“",
        f'invalid input syntax for type json: "{CANARY}" and "{CANARY}"',
    ],
)
def test_the_servers_words_are_kept_without_the_value_in_any_language(said):
    told = server_message(said, "22P02")

    assert CANARY not in told
    assert told.startswith(said[:15])
    assert "…" in told


def test_names_in_messages_about_other_things_are_kept():
    assert server_message('relation "orders" does not exist', "42P01") == (
        'relation "orders" does not exist'
    )


# --- for the person at 3 a.m. ---------------------------------------------------------------


def test_a_server_error_names_asset_step_and_sqlstate(database, io_manager, role):
    writer = role("writer")
    with database.connect() as connection:
        connection.execute("CREATE SCHEMA meta; GRANT USAGE ON SCHEMA meta TO writer")
    manager = type(io_manager)(
        connection=io_manager.connection.model_copy(
            update={"user": writer.name, "password": writer.password}
        )
    )

    with pytest.raises(DatabaseError) as caught:
        store(manager, arrow_table({"n": [1]}))

    assert caught.value.sqlstate == "42501"
    assert "asset numbers (public.numbers)" in str(caught.value)
    assert "tracking tables" in str(caught.value)
    assert "permission denied for schema meta" in str(caught.value)


def test_a_schema_that_may_not_be_created_is_told_with_the_statements_that_help(
    database, io_manager, role
):
    writer = role("writer")
    manager = type(io_manager)(
        connection=io_manager.connection.model_copy(
            update={"user": writer.name, "password": writer.password}
        )
    )

    with pytest.raises(DatabaseError) as caught:
        store(manager, arrow_table({"n": [1]}))

    assert 'CREATE SCHEMA "meta" AUTHORIZATION' in str(caught.value)
    assert "GRANT CREATE ON DATABASE" in str(caught.value)
