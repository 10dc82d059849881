"""Promise 10: it works as a role that owns nothing but its schemas, and says what is missing."""

from __future__ import annotations

from contextlib import closing

import pytest

from dagster_tools.errors import ConfigurationError, DatabaseError
from dagster_tools.postgres.names import Table
from tests.fix_servers import Database, Role
from tests.promises.writing import ids, load, numbers, write


def run(database: Database, *statements: str) -> None:
    with closing(database.connect()) as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.fixture
def writer(database, role) -> Role:
    """A role that may create nothing in the database, but owns the schemas it needs."""
    made: Role = role("writer")
    run(
        database,
        "CREATE SCHEMA sales AUTHORIZATION writer",
        "CREATE SCHEMA meta AUTHORIZATION writer",
    )
    return made


def test_a_role_without_create_on_the_database_works_in_its_schemas(database, writer):
    own = database.as_role(writer)

    write(own, numbers(1), primary_key="id")
    write(own, numbers(1, 2), primary_key="id", columns={"label": ("string", "index")})
    write(own, numbers(2, 3), primary_key="id", incremental=True)
    write(own, numbers(7), partition="a", asset_key="other")

    assert ids(database) == [1, 2, 3, 7]
    assert sorted(row["id"] for row in load(own)) == [1, 2, 3]


def test_a_missing_schema_that_may_not_be_created_names_the_statement_that_cures_it(database, role):
    run(database, f"REVOKE CREATE ON DATABASE {database.dbname} FROM PUBLIC")
    own = database.as_role(role("poor"))

    with pytest.raises(DatabaseError, match='CREATE SCHEMA "meta" AUTHORIZATION') as error:
        write(own, numbers(1))

    assert error.value.sqlstate == "42501"


def test_a_schema_that_may_not_be_written_names_the_grant(database, role):
    poor = role("poor")
    run(database, "CREATE SCHEMA meta AUTHORIZATION poor", "CREATE SCHEMA sales")

    with pytest.raises(DatabaseError, match=r"GRANT .* ON SCHEMA") as error:
        write(database.as_role(poor), numbers(1))

    assert "poor" in str(error.value)


def test_temporary_tables_are_needed_only_where_rows_are_staged(database, writer):
    run(database, f"REVOKE TEMPORARY ON DATABASE {database.dbname} FROM PUBLIC")
    own = database.as_role(writer)

    write(own, numbers(1), primary_key="id")
    write(own, numbers(2), primary_key="id")
    with pytest.raises(DatabaseError, match="GRANT TEMP"):
        write(own, numbers(3), primary_key="id", incremental=True)

    assert ids(database) == [2]


def test_a_reader_needs_no_more_than_to_read(database, role):
    write(database, numbers(1, 2))
    reader = role("reader")
    run(
        database,
        "GRANT USAGE ON SCHEMA sales, meta TO reader",
        "GRANT SELECT ON ALL TABLES IN SCHEMA sales, meta TO reader",
    )

    assert sorted(row["id"] for row in load(database.as_role(reader))) == [1, 2]


def test_a_reader_who_may_not_read_is_told_the_grants(database, role):
    write(database, numbers(1, 2))

    with pytest.raises(DatabaseError, match="GRANT") as error:
        load(database.as_role(role("nobody")))

    assert error.value.sqlstate == "42501"


def test_a_writer_whom_row_security_restricts_is_refused_before_anything_is_written(
    database, writer
):
    own = database.as_role(writer)
    write(own, numbers(1))
    run(
        database,
        "ALTER TABLE sales.numbers ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE sales.numbers FORCE ROW LEVEL SECURITY",
    )

    with pytest.raises(ConfigurationError, match="Row-level security"):
        write(own, numbers(2))

    assert ids(database) == [1]


def test_settings_of_the_role_do_not_change_what_a_write_is(database, writer):
    """Serializable by default, or read-only: each transaction says what it is itself."""
    own = database.as_role(writer)
    for setting in (
        "default_transaction_isolation TO 'serializable'",
        "default_transaction_isolation TO 'repeatable read'",
        "default_transaction_read_only TO on",
    ):
        run(database, "ALTER ROLE writer RESET ALL", f"ALTER ROLE writer SET {setting}")

        write(own, numbers(1, 2), table=Table("sales", "settings"))

    assert ids(database, Table("sales", "settings")) == [1, 2]
