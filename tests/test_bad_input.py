"""Whatever cannot be right is refused: named, with a remedy, without a trace and without a value.

What single frames and columns get wrong is in test_errors.py and in the tests of the types; here
are the ways in beside them: upserts, deletions, statements, relations, grants, environments.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from dagster_tools.cli import main
from dagster_tools.errors import (
    BadValue,
    ConfigurationError,
    DagsterToolsError,
    DatabaseError,
    MaterializationNotFound,
    SchemaConflict,
)
from dagster_tools.postgres.names import Table
from dagster_tools.sql import SQL, Eq, IncrementalDataFrame, Query, Relation
from tests.pipelines import fingerprint, load, resource_for, store
from tests.promises.writing import write

CANARY = "canary4711"
NUMBERS = Table("public", "numbers")
UPSERT = {"incremental": True, "primary_key": "n"}
PRODUCTION = Relation("public", "numbers", None, shared=False, environment="production")


@pytest.fixture
def database(cleaned_database):
    return cleaned_database


@dataclass(frozen=True)
class Refused:
    """An output that is refused.

    Args:
        remedy: What the message has to say, besides the asset: what is the matter, what helps.
    """

    output: object
    error: type[DagsterToolsError]
    remedy: tuple[str, ...]
    metadata: dict[str, Any] = field(default_factory=dict)


def rows(n: list[Any], label: str = CANARY) -> pd.DataFrame:
    return pd.DataFrame({"n": n, "label": [label] * len(n)})


def deleting(delete: Any) -> IncrementalDataFrame:
    return IncrementalDataFrame(rows([4711]), delete=delete)


OUTPUTS = {
    # --- upserts
    "a key twice in the frame": Refused(
        rows([4711, 1, 4711]), BadValue, ("'n'", "rows 0 and 2", "primary key"), UPSERT
    ),
    "no key": Refused(rows([4711, None]), BadValue, ("'n'", "row 1", "primary key"), UPSERT),
    "an upsert without a primary key": Refused(
        rows([4711]), ConfigurationError, ("primary_key",), {"incremental": True}
    ),
    "an upsert whose key is no column": Refused(
        rows([4711]),
        ConfigurationError,
        ("['id']", "['n', 'label']"),
        {"incremental": True, "primary_key": "id"},
    ),
    "rows that forbid the key": Refused(
        rows([1]), SchemaConflict, ("primary key", "'label'"), UPSERT | {"primary_key": "label"}
    ),
    "incremental that is no boolean": Refused(
        rows([4711]), ConfigurationError, ("incremental", "true"), {"incremental": "sometimes"}
    ),
    # --- deletions
    "a deletion by a column there is not": Refused(
        deleting(Eq("nn", 4711)), ConfigurationError, ("'nn'", "'n'", "'label'")
    ),
    "a deletion by a value of another type": Refused(
        deleting(Eq("n", CANARY)), (BadValue), ("'n'", "bigint")
    ),
    "a deletion by nothing": Refused(
        IncrementalDataFrame(rows([4711])), ConfigurationError, ("primary_key", "delete")
    ),
    # --- statements
    "the third statement of four": Refused(
        SQL(
            "CREATE TABLE a (n int); INSERT INTO a VALUES (1); "
            "INSERT INTO a VALUES (%(value)s); DROP TABLE a",
            value=CANARY,
        ),
        DatabaseError,
        ("statement 3 of 4",),
    ),
    "a value where the grammar has none": Refused(
        SQL("UPDATE numbers SET n = 1 %(value)s", value=CANARY), DatabaseError, ("statement 1",)
    ),
    "a statement that repeats a key": Refused(
        SQL("INSERT INTO keyed VALUES (%(value)s)", value=CANARY),
        DatabaseError,
        ("statement 1", "'keyed_pkey'"),
    ),
    "a statement that says the value itself": Refused(
        SQL(f"SELECT '{CANARY}'::integer"), DatabaseError, ("statement 1 of 1",)
    ),
    "a parameter that is not given": Refused(
        SQL("DELETE FROM numbers WHERE n = %(day)s", value=CANARY),
        ConfigurationError,
        ("day", "['value']"),
    ),
    "COMMIT among statements": Refused(
        SQL("INSERT INTO numbers VALUES (4711); COMMIT"), ConfigurationError, ("Statement 2",)
    ),
    "a Query of two statements": Refused(
        Query("SELECT 1 AS n; SELECT 2 AS n"), ConfigurationError, ("Use SQL",)
    ),
    "a Query with a column twice": Refused(
        Query("SELECT 1 AS n, 2 AS n"), ConfigurationError, ("['n']", "AS")
    ),
    "a Query of another type": Refused(
        Query("SELECT %(value)s::text AS n", value=CANARY), SchemaConflict, ("'n'", "text")
    ),
    "a Query that fails at a row": Refused(
        Query("SELECT label::integer AS n FROM keyed"), DagsterToolsError, ("while",)
    ),
    "a Query that repeats a key": Refused(
        Query("SELECT n, label FROM numbers UNION ALL SELECT n, label FROM numbers"),
        BadValue,
        ("primary key", "'n'"),
        UPSERT,
    ),
    "a relation from production": Refused(
        Query("SELECT * FROM {raw}", raw=PRODUCTION), ConfigurationError, ("{raw}", "frame")
    ),
    # --- grants
    "a role there is not": Refused(
        rows([1]), ConfigurationError, ("nobody_here", "CREATE ROLE"), {"users": ["nobody_here"]}
    ),
    "a role for statements that there is not": Refused(
        SQL("INSERT INTO numbers VALUES (4711)"),
        ConfigurationError,
        ("nobody_here", "CREATE ROLE"),
        {"users": ["nobody_here"]},
    ),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_an_output_that_cannot_be_right_is_refused_and_the_database_stays_as_it_is(
    database, io_manager, caplog, case
):
    refused = OUTPUTS[case]
    fill(database)
    before = fingerprint(database)
    caplog.set_level(logging.DEBUG)

    with pytest.raises(refused.error) as caught:
        store(io_manager, refused.output, **refused.metadata)

    assert_told(caught.value, "asset numbers", *refused.remedy)
    assert_no_value(caught.value, caplog.text, database.password)
    assert fingerprint(database) == before


INPUTS: dict[str, tuple[dict[str, Any], type[DagsterToolsError], tuple[str, ...]]] = {
    "an environment there is not": (
        {"environment": "staging"},
        ConfigurationError,
        ("input numbers", "'staging'", "production", "development"),
    ),
    "production that is not configured": (
        {"environment": "production"},
        ConfigurationError,
        ("PostgresIOManager(connection=…, production=",),
    ),
    "columns there are not": ({"columns": ["nn"]}, ConfigurationError, ("'nn'", "'label'")),
    "an order there is not": ({"order_by": "nn"}, ConfigurationError, ("'nn'", "'label'")),
    "a cast that fails": ({"columns": {"label": "int"}}, DatabaseError, ("while reading",)),
}


@pytest.mark.parametrize("case", INPUTS)
@pytest.mark.parametrize("annotation", [pd.DataFrame, Relation])
def test_an_input_that_cannot_be_right_is_refused(database, io_manager, caplog, case, annotation):
    metadata, error, remedy = INPUTS[case]
    if annotation is Relation and "environment" not in metadata:
        annotation = pa.Table  # a relation has no options of its own to be wrong
    fill(database)
    before = fingerprint(database)

    with pytest.raises(error) as caught:
        load(io_manager, annotation, **metadata)

    assert_told(caught.value, "numbers", *remedy)
    assert_no_value(caught.value, caplog.text, database.password)
    assert fingerprint(database) == before


@pytest.mark.parametrize("annotation", [pd.DataFrame, Relation, dict[str, pd.DataFrame]])
def test_what_was_never_materialized_is_told_with_what_to_do(database, io_manager, annotation):
    before = fingerprint(database)

    with pytest.raises(MaterializationNotFound) as caught:
        load(io_manager, annotation)

    assert_told(caught.value, "asset numbers", "Materialize")
    assert fingerprint(database) == before


@pytest.mark.parametrize(
    "act",
    [
        lambda manager: store(manager, rows([1])),
        lambda manager: store(manager, SQL("SELECT 1")),
        load,
        lambda manager: load(manager, environment="production"),
    ],
    ids=["write", "statements", "read", "read production"],
)
def test_a_wrong_password_is_not_repeated(database, io_manager, caplog, act: Callable[..., Any]):
    wrong = resource_for(database, password=CANARY)
    manager = type(io_manager)(connection=wrong, production=wrong)

    with pytest.raises(DatabaseError) as caught:
        act(manager)

    assert_told(caught.value, "asset numbers", "Could not connect", f"port={database.port}")
    assert_no_value(caught.value, caplog.text, database.password)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lineage", "public.nothing"], "public.nothing"),
        (["lineage", "public.numbers", "--where", "nn = 1"], "nn"),
        (["lineage", "public.numbers", "--where", f"n = '{CANARY}'"], "bigint"),
        (["lineage", "public.numbers", "--where", "n = 1; DELETE FROM numbers"], ""),
        (["prune", "--yes", "--tracking-schema", "nowhere"], "nowhere"),
    ],
)
def test_the_shell_says_what_is_wrong_and_changes_nothing(
    database, io_manager, capsys, arguments, said
):
    fill(database)
    before = fingerprint(database)
    capsys.readouterr()

    code = main([*arguments, "--url", database.url])

    told = "".join(capsys.readouterr())
    assert code != 0
    assert said in told
    assert "Traceback" not in told
    assert CANARY not in told
    assert database.password not in told
    assert fingerprint(database) == before


# --- what each has to be --------------------------------------------------------------------


def fill(database: Any) -> None:
    """Make a table with rows of the asset, whose labels repeat, and one that is keyed."""
    # In another run: in the same one, statements would count as run already.
    write(database, pa.table(rows([1, 2])), table=NUMBERS, run_id="an earlier run")
    with database.connect() as connection:
        connection.execute("CREATE TABLE keyed (label text PRIMARY KEY)")
        connection.execute(f"INSERT INTO keyed VALUES ('{CANARY}')")


def assert_told(error: DagsterToolsError, *parts: str) -> None:
    assert [part for part in parts if part not in str(error)] == [], str(error)


def assert_no_value(error: BaseException, log: str, password: str) -> None:
    lines = "".join(traceback.format_exception(error)).splitlines()
    # Lines of source code are in a traceback, the cases' own among them; messages are not.
    messages = "\n".join(line for line in lines if not line.startswith("    "))
    for secret in ("4711", password):
        assert secret not in messages
        assert secret not in log
    chain: BaseException | None = error
    while chain is not None:
        assert "4711" not in repr(chain.__dict__)
        chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)
