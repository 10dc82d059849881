"""A table made elsewhere becomes an asset's without being rewritten, and keeps what it had.

Elsewhere is a hand with psql, dbt, or `pandas.to_sql`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import sqlalchemy

from dagster_tools.errors import (
    BadValue,
    ConfigurationError,
    SchemaConflict,
)
from dagster_tools.sql import Eq, IncrementalDataFrame, Query
from tests.fix_servers import Database
from tests.partitioned import store_bare
from tests.pipelines import fingerprint, load, query, rows, store

OLD = [(1, "old one"), (2, "old two")]
NEW = pd.DataFrame({"id": [3], "name": ["new"]})
BOTH = [*OLD, (3, "new")]


@pytest.fixture
def database(cleaned_database: Database) -> Database:
    return cleaned_database


def execute(database: Database, *statements: str) -> None:
    with database.connect() as connection:
        for statement in statements:
            connection.execute(statement)


# --- where tables come from -----------------------------------------------------------------
# Each maker makes the table `numbers` with the rows of OLD.


def by_hand(database: Database) -> None:
    execute(
        database,
        "CREATE TABLE numbers (id bigint PRIMARY KEY, name text NOT NULL)",
        "INSERT INTO numbers VALUES (1, 'old one'), (2, 'old two')",
    )


def by_dbt(database: Database) -> None:
    """Make the second version of a table model, in the statements of dbt-postgres."""
    select = "SELECT g AS id, 'old ' || w AS name FROM unnest({}) WITH ORDINALITY AS o (w, g)"
    execute(
        database,
        f"CREATE TABLE numbers AS ({select.format('ARRAY[$$zero$$]')})",
        "CREATE VIEW report AS SELECT * FROM numbers",
    )
    with database.connect(autocommit=False) as connection:
        body = select.format("ARRAY['one', 'two']")
        connection.execute(f'CREATE TABLE "public"."numbers__dbt_tmp" AS ({body})')
        connection.execute('ALTER TABLE "public"."numbers" RENAME TO "numbers__dbt_backup"')
        connection.execute('ALTER TABLE "public"."numbers__dbt_tmp" RENAME TO "numbers"')
        connection.commit()
        connection.execute('DROP TABLE IF EXISTS "public"."numbers__dbt_backup" CASCADE')
        connection.commit()


def by_to_sql(database: Database) -> None:
    engine = engine_of(database)
    pd.DataFrame(OLD, columns=["id", "name"]).to_sql("numbers", engine, index=False)
    engine.dispose()


def engine_of(database: Database) -> sqlalchemy.Engine:
    host, port = database.direct or (database.host, database.port)
    return sqlalchemy.create_engine(
        "postgresql+psycopg://",
        connect_args={
            "host": host,
            "port": port,
            "dbname": database.dbname,
            "user": database.user,
            "password": database.password,
        },
    )


def by_partitioning(database: Database) -> None:
    execute(
        database,
        "CREATE TABLE numbers (id bigint, name text) PARTITION BY RANGE (id)",
        "CREATE TABLE numbers_low PARTITION OF numbers FOR VALUES FROM (0) TO (2)",
        "CREATE TABLE numbers_high PARTITION OF numbers FOR VALUES FROM (2) TO (10)",
        "INSERT INTO numbers VALUES (1, 'old one'), (2, 'old two')",
    )


Maker = Callable[[Database], None]
EVERY_MAKER = pytest.mark.parametrize("make", [by_hand, by_dbt, by_to_sql, by_partitioning])


def files(database: Database) -> Any:
    """Tell the files of the table and its partitions, and where in them the old rows lie."""
    return (
        query(
            database,
            "SELECT oid, relfilenode FROM pg_class WHERE relname ~ '^numbers' AND relkind = 'r'",
        ),
        query(
            database, "SELECT tableoid, ctid, xmin::text FROM numbers WHERE id < 3 ORDER BY 1, 2"
        ),
    )


@EVERY_MAKER
def test_a_table_made_elsewhere_is_taken_over_without_being_rewritten(database, io_manager, make):
    make(database)
    before = files(database)

    store(io_manager, NEW)

    assert files(database) == before
    assert rows(database) == BOTH
    nobodys = query(database, "SELECT id FROM numbers WHERE materialization_id IS NULL ORDER BY 1")
    assert nobodys == [(1,), (2,)]


@EVERY_MAKER
def test_rows_from_before_stay_whatever_the_asset_writes_or_deletes(database, io_manager, make):
    make(database)

    for values in ([3], [4, 5], []):
        store(io_manager, pd.DataFrame({"id": values, "name": ["new"] * len(values)}))
    store(
        io_manager,
        IncrementalDataFrame(pd.DataFrame(), delete=Eq("id", [1, 2, 3, 4, 5])),
    )

    assert rows(database) == OLD


@EVERY_MAKER
def test_the_asset_loads_its_own_rows_and_full_table_loads_all(database, io_manager, make):
    make(database)
    before: Any = load(io_manager)
    store(io_manager, NEW)

    own, all_of_it = load(io_manager), load(io_manager, full_table=True)

    assert sorted(zip(before["id"], before["name"], strict=True)) == OLD
    assert list(own["id"]) == [3]
    assert sorted(zip(all_of_it["id"], all_of_it["name"], strict=True)) == BOTH
    assert list(all_of_it) == ["id", "name"]


@EVERY_MAKER
def test_several_assets_and_partitions_may_move_in(database, io_manager, make):
    make(database)

    store(io_manager, NEW)
    store(io_manager, pd.DataFrame({"id": [4], "name": ["other"]}), key="other", table="numbers")
    by_key = {
        key: pd.DataFrame({"id": [number], "name": [key]}) for key, number in (("a", 5), ("b", 6))
    }
    for _run in range(2):
        store_bare(io_manager, by_key, ["a", "b"], key="parts", table="numbers")
    asked = Query("SELECT 7::bigint AS id, 'asked' AS name")
    store(io_manager, asked, key="asked", table="numbers")

    assert rows(database) == [*BOTH, (4, "other"), (5, "a"), (6, "b"), (7, "asked")]
    assert list(load(io_manager, key="other", upstream={"table": "numbers"})["id"]) == [4]


@pytest.mark.parametrize("make", [by_hand, by_dbt, by_to_sql])
def test_an_upsert_takes_over_the_old_rows_that_it_changes_and_no_others(
    database, io_manager, make
):
    """The table gets the primary key where it has none."""
    make(database)
    frame = pd.DataFrame({"id": [1, 2, 3], "name": ["changed", "old two", "new"]})

    store(io_manager, frame, primary_key="id", incremental=True)

    assert rows(database) == [(1, "changed"), (2, "old two"), (3, "new")]
    assert list(load(io_manager, order_by="id")["id"]) == [1, 3]


def test_a_column_added_to_an_adopted_table_is_null_in_the_old_rows(database, io_manager):
    by_dbt(database)

    store(io_manager, NEW.assign(score=[0.5]))

    assert rows(database) == [(1, "old one", None), (2, "old two", None), (3, "new", 0.5)]


def test_a_replace_that_repeats_a_key_of_an_old_row_is_refused(database, io_manager):
    by_hand(database)
    before = rows(database)

    with pytest.raises(BadValue, match=r"key on \['id'\], or those of a row that stays"):
        store(io_manager, pd.DataFrame({"id": [1], "name": ["again"]}))

    assert rows(database) == before


def test_what_dbt_makes_anew_is_adopted_anew(database, io_manager):
    """dbt's next run swaps in a table without our column, and with none of the asset's rows."""
    by_dbt(database)
    store(io_manager, NEW)
    execute(database, "DROP TABLE numbers CASCADE")
    by_dbt(database)

    store(io_manager, NEW)

    assert rows(database) == BOTH
    assert list(load(io_manager)["id"]) == [3]


def test_what_to_sql_appends_to_an_adopted_table_is_nobodys(database, io_manager):
    by_to_sql(database)
    store(io_manager, NEW)
    engine = engine_of(database)
    pd.DataFrame({"id": [4], "name": ["appended"]}).to_sql(
        "numbers", engine, index=False, if_exists="append"
    )
    engine.dispose()

    store(io_manager, NEW)

    assert rows(database) == [*BOTH, (4, "appended")]
    assert list(load(io_manager)["id"]) == [3]


# --- tables that PostgreSQL partitions ------------------------------------------------------


def test_a_row_that_no_partition_of_the_table_takes_is_refused_by_its_position(
    database, io_manager
):
    by_partitioning(database)
    before = rows(database)

    with pytest.raises(BadValue, match='row 1: no partition of relation "numbers" found for row'):
        store(io_manager, pd.DataFrame({"id": [3, 77], "name": ["new", "S3cr3t"]}))

    assert rows(database) == before


def test_rows_of_a_partitioned_table_are_upserted_and_deleted_by_key(database, io_manager):
    by_partitioning(database)
    execute(database, "ALTER TABLE numbers ADD PRIMARY KEY (id)")
    key = {"primary_key": "id", "incremental": True}

    store(io_manager, pd.DataFrame({"id": [1, 3, 4], "name": ["changed", "new", "new"]}), **key)
    store(
        io_manager,
        IncrementalDataFrame(
            pd.DataFrame({"id": [5], "name": ["newer"]}), delete=Eq("id", [1, 2, 4])
        ),
        **key,
    )

    assert rows(database) == [(2, "old two"), (3, "new"), (5, "newer")]


@pytest.mark.parametrize(
    ("options", "statement"),
    [
        ({"primary_key": "id"}, 'ALTER TABLE public.numbers ADD PRIMARY KEY ("id");'),
        (
            {"columns": {"id": ("bigint", "unique")}},
            'CREATE UNIQUE INDEX ON public.numbers ("id");',
        ),
        ({"columns": {"name": ("text", "index")}}, 'CREATE INDEX ON public.numbers ("name");'),
    ],
)
def test_an_index_that_a_partitioned_table_lacks_is_refused_with_its_statement_which_settles_it(
    database, io_manager, options, statement
):
    by_partitioning(database)
    before = rows(database)

    with pytest.raises(SchemaConflict) as refused:
        store(io_manager, NEW, **options)

    assert str(refused.value).endswith(statement)
    assert rows(database) == before

    execute(database, statement)
    store(io_manager, NEW, **options)
    assert rows(database) == BOTH


# --- what is no table -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statements", "kind"),
    [
        (
            [
                "CREATE TABLE base AS SELECT 1::bigint AS id, 'a' AS name",
                "CREATE VIEW numbers AS SELECT * FROM base",
            ],
            "a view",
        ),
        (["CREATE MATERIALIZED VIEW numbers AS SELECT 1 AS id"], "a materialized view"),
        (
            [
                "CREATE EXTENSION IF NOT EXISTS file_fdw",
                "CREATE SERVER files FOREIGN DATA WRAPPER file_fdw",
                "CREATE FOREIGN TABLE numbers (id int) SERVER files OPTIONS (filename '/dev/null')",
            ],
            "a foreign table",
        ),
    ],
    ids=["view", "materialized view", "foreign table"],
)
@pytest.mark.parametrize(
    "written",
    [
        NEW,
        Query("SELECT 3::bigint AS id"),
        IncrementalDataFrame(NEW, delete=Eq("id", 3)),
        IncrementalDataFrame(pd.DataFrame(), delete=Eq("id", 3)),
    ],
    ids=["frame", "query", "delete and insert", "delete"],
)
def test_what_is_no_table_is_refused_however_it_is_written(
    database, io_manager, statements, kind, written
):
    """The view is one that PostgreSQL would let a writer write through."""
    execute(database, *statements)
    before = fingerprint(database)

    with pytest.raises(ConfigurationError, match=f"public.numbers is {kind}; rows can only be"):
        store(io_manager, written)

    assert fingerprint(database) == before
    execute(database, "DROP EXTENSION IF EXISTS file_fdw CASCADE")
