"""SQL, Query and Relation: tables made inside the server, with all that a frame gets."""

from __future__ import annotations

import dagster as dg
import pandas as pd
import pytest

from dagster_tools.errors import (
    BadValue,
    ConfigurationError,
    DatabaseError,
    MaterializationNotFound,
    SchemaConflict,
)
from dagster_tools.sql import SQL, Query, Relation
from tests.pipelines import (
    column_types,
    fingerprint,
    load,
    logged,
    manager_for,
    materialize,
    query,
    rows,
    store,
)

# --- SQL ------------------------------------------------------------------------------------


def test_statements_run_as_they_are_and_downstream_loads_what_they_made(database, io_manager):
    @dg.asset(key_prefix="analytics")
    def raw_data():
        return pd.DataFrame({"category": ["a", "a", "b"], "value": [1.0, 3.0, 5.0]})

    @dg.asset(key_prefix="analytics", deps=[raw_data])
    def aggregated() -> SQL:
        return SQL(
            """
            DROP TABLE IF EXISTS analytics.aggregated;
            CREATE TABLE analytics.aggregated AS
            SELECT category, COUNT(*) AS count, AVG(value) AS avg_value
            FROM analytics.raw_data
            GROUP BY category;
            CREATE OR REPLACE VIEW analytics.all_of_them AS TABLE analytics.raw_data;
            """
        )

    loaded = []

    @dg.asset
    def report(aggregated: pd.DataFrame) -> None:
        loaded.append(aggregated.sort_values("category"))

    # The report has a prefix of its own, and so its input needs its key.
    report = report.with_attributes(
        asset_key_replacements={dg.AssetKey("aggregated"): dg.AssetKey(["analytics", "aggregated"])}
    )
    materialize([raw_data, aggregated, report], io_manager)

    assert loaded[0]["category"].tolist() == ["a", "b"]
    assert loaded[0]["count"].tolist() == [2, 1]
    assert query(database, "SELECT count(*) FROM analytics.all_of_them") == [(3,)]


def test_non_argument_deps_of_the_guide_still_order_the_assets(database, io_manager):
    @dg.asset
    def raw_data():
        return pd.DataFrame({"n": [1]})

    with pytest.warns(DeprecationWarning, match="non_argument_deps"):

        @dg.asset(non_argument_deps={"raw_data"})
        def derived() -> SQL:
            return SQL("CREATE TABLE derived AS SELECT n + 1 AS n FROM raw_data")

    materialize([raw_data, derived], io_manager)

    assert rows(database, "public.derived") == [(2,)]


def test_an_error_in_one_statement_leaves_nothing_of_the_others_and_says_which(
    database, io_manager
):
    store(io_manager, pd.DataFrame({"n": [1]}))
    before = fingerprint(database)

    with pytest.raises(DatabaseError, match="statement 3 of 4") as error:
        store(
            io_manager,
            SQL(
                "CREATE TABLE made (n int); INSERT INTO made VALUES (1);"
                "INSERT INTO made VALUES ('S3cr3t'); SELECT 1"
            ),
            key="made",
        )

    assert "S3cr3t" not in str(error.value)
    assert fingerprint(database) == before


@pytest.mark.parametrize("end", ["COMMIT", "rollback", "BEGIN", "/* x */ END"])
def test_statements_that_end_the_transaction_are_refused(database, io_manager, end):
    with pytest.raises(ConfigurationError, match="Statement 2 begins or ends a transaction"):
        store(io_manager, SQL(f"CREATE TABLE made (n int); {end}; SELECT 1"), key="made")

    assert query(database, "SELECT to_regclass('made')") == [(None,)]


def test_semicolons_in_strings_bodies_and_comments_separate_nothing(database, io_manager):
    store(
        io_manager,
        SQL(
            """
            CREATE TABLE made AS SELECT ';' AS "a;b"; -- not; here
            CREATE FUNCTION two() RETURNS int LANGUAGE sql
            BEGIN ATOMIC SELECT 1; SELECT 2; END;
            DO $body$ BEGIN PERFORM 1; INSERT INTO made VALUES ('x;y'); END $body$;
            """
        ),
        key="made",
    )

    assert rows(database, "public.made") == [(";",), ("x;y",)]


def test_percent_signs_and_braces_are_left_alone_without_parameters(database, io_manager):
    store(io_manager, SQL("CREATE TABLE made AS SELECT '100% {x} {}' AS t"), key="made")

    assert rows(database, "public.made") == [("100% {x} {}",)]


def test_parameters_are_quoted_never_glued(database, io_manager):
    nasty = "x'; DROP TABLE victim; -- {raw} %(day)s"
    store(io_manager, pd.DataFrame({"n": [1]}), key="victim")

    store(
        io_manager,
        SQL(
            "CREATE TABLE made AS SELECT %(text)s AS t, %(day)s::date AS d, '5%%' AS p",
            text=nasty,
            day="2024-01-01",
        ),
        key="made",
    )

    ((text, day, percent),) = rows(database, "public.made")
    assert (text, str(day), percent) == (nasty, "2024-01-01", "5%")
    assert rows(database, "public.victim") == [(1,)]


def test_rows_that_statements_insert_bear_the_materialization(database, io_manager):
    store(io_manager, pd.DataFrame({"n": [1]}), key="one", table="numbers")

    store(io_manager, SQL("INSERT INTO numbers VALUES (2)"), key="two", table="numbers")

    assert load(io_manager, key="two", upstream={"table": "numbers"})["n"].tolist() == [2]
    assert load(io_manager, key="one", upstream={"table": "numbers"})["n"].tolist() == [1]


def test_a_retry_inside_one_run_does_not_run_the_statements_again(database, io_manager):
    """The COMMIT came and its reply did not: the first attempt fails after it wrote."""
    store(io_manager, pd.DataFrame({"n": [1]}))
    attempts = []

    class LosesTheReply(dg.IOManager):
        def handle_output(self, context, obj):
            io_manager.handle_output(context, obj)
            attempts.append(obj)
            if len(attempts) == 1:
                raise dg.RetryRequested(max_retries=1)

        def load_input(self, context):
            raise AssertionError

    @dg.asset(metadata={"table": "numbers"})
    def appended():
        return SQL("INSERT INTO numbers VALUES (2)")

    materialize(appended, LosesTheReply())

    assert len(attempts) == 2
    assert rows(database) == [(1,), (2,)]


def test_a_new_run_runs_the_statements_again(database, io_manager):
    store(io_manager, pd.DataFrame({"n": [1]}))

    @dg.asset(metadata={"table": "numbers"})
    def appended():
        return SQL("INSERT INTO numbers VALUES (2)")

    for _run in range(2):
        materialize(appended, io_manager)

    assert rows(database) == [(1,), (2,), (2,)]


def test_users_of_statements_that_made_no_such_table_get_a_warning(database, io_manager, role):
    reader = role()

    @dg.asset(metadata={"users": [reader.name]})
    def elsewhere():
        return SQL("CREATE TABLE somewhere (n int)")

    result = materialize(elsewhere, io_manager)

    (warning,) = logged(result, level="WARNING")
    assert "public.elsewhere" in warning
    assert "schema and table" in warning


@pytest.mark.parametrize("kind", ["VIEW", "MATERIALIZED VIEW", "TABLE"])
def test_what_statements_make_is_loaded_downstream_and_readable_by_users(
    database, io_manager, role, kind
):
    reader = role()

    @dg.asset
    def raw():
        return pd.DataFrame({"n": [1, 2, 3]})

    @dg.asset(deps=[raw], metadata={"users": [reader.name]})
    def odd() -> SQL:
        return SQL(
            f"DROP {kind} IF EXISTS odd; CREATE {kind} odd AS SELECT n FROM raw WHERE n % 2 = 1"
        )

    @dg.asset
    def doubled(odd: pd.DataFrame):
        return odd * 2

    for _run in range(2):
        materialize([raw, odd, doubled], io_manager)

    assert rows(database, "public.doubled") == [(2,), (6,)]
    with database.as_role(reader).connect() as connection:
        assert connection.execute("SELECT count(*) FROM odd").fetchall() == [(2,)]


@pytest.mark.parametrize("annotation", [pd.DataFrame, pd.DataFrame | None, Relation])
@pytest.mark.parametrize("full_table", [False, True])
def test_loading_what_statements_made_under_another_name_says_how_to_point_at_it(
    io_manager, annotation, full_table
):
    store(io_manager, SQL("CREATE TABLE IF NOT EXISTS made AS SELECT 1 AS n"), key="derived")

    with pytest.raises(ConfigurationError) as refused:
        load(io_manager, annotation, key="derived", full_table=full_table)

    assert "There is no table or view public.derived" in str(refused.value)
    assert "metadata={'schema': …, 'table': …}" in str(refused.value)

    store(
        io_manager,
        SQL("CREATE TABLE IF NOT EXISTS made AS SELECT 1 AS n"),
        key="derived",
        table="made",
    )
    assert list(load(io_manager, key="derived", upstream={"table": "made"})["n"]) == [1]


def test_what_statements_did_to_rows_is_recorded_as_unknown(database, io_manager):
    store(io_manager, SQL("CREATE TABLE made AS SELECT 1 AS n"), key="made")

    assert query(
        database, "SELECT rows_inserted, rows_updated, rows_deleted FROM meta.materializations"
    ) == [(None, None, None)]


# --- Query ----------------------------------------------------------------------------------


def test_a_query_becomes_a_table_with_types_keys_and_tracking(database, io_manager):
    metadata = store(
        io_manager,
        Query("SELECT g AS id, g * 1.50::numeric(12,2) AS price FROM generate_series(1, 3) AS g"),
        primary_key="id",
        columns={"id": "bigint", "price": ("numeric(12,2)", "not null")},
    )

    assert column_types(database) == {"id": "bigint", "price": "numeric(12,2)"}
    assert metadata["dagster/row_count"].value == 3
    assert query(
        database,
        "SELECT rows_inserted FROM meta.materializations m JOIN numbers n"
        " ON n.materialization_id = m.id LIMIT 1",
    ) == [(3,)]
    with pytest.raises(BadValue, match="primary key"):
        store(io_manager, Query("SELECT 1 AS id, 1.0 AS price FROM generate_series(1, 2)"))


def test_a_query_moves_no_row_through_python(io_manager, monkeypatch):
    def refused(*_arguments, **_options):
        raise AssertionError("a row was copied")

    monkeypatch.setattr("dagster_tools.postgres.incoming.copy_in", refused)
    monkeypatch.setattr("dagster_tools.frames.to_arrow", refused)

    metadata = store(io_manager, Query("SELECT g AS n FROM generate_series(1, 1000) AS g"))

    assert metadata["dagster/row_count"].value == 1000
    assert metadata["bytes"].value == 0


def test_a_query_replaces_what_the_asset_had_before(database, io_manager):
    store(io_manager, pd.DataFrame({"n": [1, 2]}))

    store(io_manager, Query("SELECT 7::bigint AS n"))

    assert rows(database) == [(7,)]


@pytest.mark.parametrize("keyed", [False, True])
def test_a_query_may_read_the_very_rows_that_it_replaces(database, io_manager, keyed):
    metadata = {"primary_key": "n"} if keyed else {}
    store(io_manager, pd.DataFrame({"n": [1, 2]}), **metadata)
    with database.connect() as connection:
        connection.execute("CREATE VIEW seen AS SELECT n FROM numbers")

    written = store(io_manager, Query("SELECT n + 1 AS n FROM seen"), **metadata)

    assert rows(database) == [(2,), (3,)]
    assert written["dagster/row_count"].value == 2


def test_a_query_upserts_into_an_incremental_asset(database, io_manager):
    options = {"primary_key": "id", "incremental": True}
    store(io_manager, pd.DataFrame({"id": [1, 2], "v": ["a", "b"]}), **options)

    metadata = store(
        io_manager,
        Query("SELECT * FROM (VALUES (2::bigint, 'B'), (3, 'c')) AS t (id, v)"),
        **options,
    )

    assert rows(database) == [(1, "a"), (2, "B"), (3, "c")]
    assert metadata["rows_inserted"].value == 1
    assert metadata["rows_updated"].value == 1


def test_a_query_may_add_and_widen_columns_like_a_frame(database, io_manager):
    store(io_manager, Query("SELECT 1::smallint AS n"))

    store(io_manager, Query("SELECT 100000 AS n, 'new' AS t"))

    assert column_types(database) == {"n": "integer", "t": "text"}
    with pytest.raises(SchemaConflict, match="integer"):
        store(io_manager, Query("SELECT 'text' AS n"))


def test_a_query_fills_the_run_s_partition_only(database, io_manager):
    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["a", "b"]))
    def numbers(context):
        return Query("SELECT %(key)s AS key", key=context.partition_key)

    for key in ("a", "b", "a"):
        materialize(numbers, io_manager, partition_key=key)

    assert rows(database) == [("a",), ("b",)]


def test_a_query_over_several_partitions_at_once_is_refused(io_manager):
    @dg.asset(
        partitions_def=dg.StaticPartitionsDefinition(["a", "b"]),
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def numbers():
        return Query("SELECT 1 AS n")

    tags = {"dagster/asset_partition_range_start": "a", "dagster/asset_partition_range_end": "b"}
    with pytest.raises(ConfigurationError, match="one partition at a time"):
        materialize(numbers, io_manager, tags=tags)


def test_a_query_that_returns_no_rows_by_nature_runs_like_sql(database, io_manager):
    store(io_manager, Query("CREATE TABLE numbers AS SELECT 1 AS n"))

    assert rows(database) == [(1,)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SELECT 1 AS n; SELECT 2 AS n", "one statement, not 2"),
        ("SELECT 1 AS n, 2 AS n", "columns .'n'. more than once"),
        ("SELECT 1", "column"),
    ],
)
def test_a_query_that_makes_no_table_is_refused(io_manager, text, message):
    if text == "SELECT 1":
        store(io_manager, Query(text))  # PostgreSQL names the column ?column?, which is a name
        return
    with pytest.raises(ConfigurationError, match=message):
        store(io_manager, Query(text))


@pytest.mark.parametrize("text", ["", "   ", "-- nothing"])
def test_a_statement_without_text_is_refused(io_manager, text):
    with pytest.raises(ConfigurationError):
        store(io_manager, Query(text))


# --- Relation -------------------------------------------------------------------------------


def derived_from(upstream, text, **options):
    """An asset `derived` that takes `upstream` as a relation and returns a Query."""

    @dg.asset(ins={"raw": dg.AssetIn(upstream)}, **options)
    def derived(raw: Relation):
        return Query(text, raw=raw)

    return derived


@pytest.mark.parametrize(
    "text",
    [
        "SELECT n FROM {raw}",
        "SELECT r.n FROM {raw} AS r",
        "SELECT r.n FROM {raw} r JOIN {raw} AS s USING (n)",
        "WITH x AS (SELECT * FROM {raw}) SELECT n FROM x",
        "SELECT n FROM (SELECT * FROM {raw} WHERE n > 0) AS q",
    ],
)
def test_a_relation_stands_for_the_upstream_s_rows_with_and_without_alias(
    database, io_manager, text
):
    store(io_manager, pd.DataFrame({"n": [100]}), key="other", table="raw")

    @dg.asset
    def raw():
        return pd.DataFrame({"n": [1, 2]})

    materialize([raw, derived_from("raw", text)], io_manager)

    assert rows(database, "public.derived") == [(1,), (2,)]


def test_a_relation_is_filtered_to_the_partitions_asked_for(database, io_manager):
    letters = dg.StaticPartitionsDefinition(["a", "b"])

    @dg.asset(partitions_def=letters, key_prefix="source")
    def raw(context):
        return pd.DataFrame({"key": [context.partition_key]})

    derived = derived_from(["source", "raw"], "SELECT * FROM {raw}", partitions_def=letters)
    for key in ("a", "b"):
        materialize([raw, derived], io_manager, partition_key=key)

    assert rows(database, "public.derived") == [("a",), ("b",)]
    assert column_types(database, "public.derived") == {"key": "text"}


def test_a_relation_of_what_was_never_materialized_is_an_error(io_manager):
    @dg.asset
    def raw():
        return None

    with pytest.raises(MaterializationNotFound):
        materialize([raw, derived_from("raw", "SELECT * FROM {raw}")], io_manager)


def test_a_view_of_a_shared_table_is_refused_and_of_an_own_table_is_made(database, io_manager):
    @dg.asset
    def raw():
        return pd.DataFrame({"n": [1]})

    @dg.asset
    def viewed(raw: Relation):
        return SQL("CREATE OR REPLACE VIEW viewed AS SELECT n FROM {raw}", raw=raw)

    materialize([raw, viewed], io_manager)
    assert rows(database, "public.viewed") == [(1,)]

    store(io_manager, pd.DataFrame({"n": [2]}), key="other", table="raw")
    with pytest.raises(ConfigurationError, match=r"makes a view of \{raw\}"):
        materialize([raw, viewed], io_manager)


def test_a_relation_from_production_in_a_development_statement_is_refused(database, prod_database):
    store(manager_for(prod_database), pd.DataFrame({"n": [1]}), key="raw")
    manager = manager_for(database, production=manager_for(prod_database).connection)
    given = []

    @dg.asset(ins={"raw": dg.AssetIn(metadata={"environment": "production"})})
    def derived(raw: Relation):
        given.append(raw)
        return Query("SELECT * FROM {raw}", raw=raw)

    raw = dg.AssetSpec("raw").with_io_manager_key("io_manager")
    with pytest.raises(ConfigurationError, match=r"\{raw\} is in production"):
        materialize([raw, derived], manager, selection=[derived])
    assert given[0].environment == "production"


def test_where_production_is_this_database_a_relation_of_it_is_seen_by_statements(database, role):
    """As in production's own deployment, where another role may be the one that reads."""
    reader = role(options="SUPERUSER")
    production = manager_for(database.as_role(reader)).connection
    manager = manager_for(database, production=production)
    store(manager, pd.DataFrame({"n": [1]}), key="raw")

    @dg.asset(ins={"raw": dg.AssetIn(metadata={"environment": "production"})})
    def derived(raw: Relation):
        return Query("SELECT n + 1 AS n FROM {raw}", raw=raw)

    raw = dg.AssetSpec("raw").with_io_manager_key("io_manager")
    materialize([raw, derived], manager, selection=[derived])

    assert rows(database, "public.derived") == [(2,)]


def test_values_do_not_show_in_a_statement_s_repr():
    assert "S3cr3t" not in repr(SQL("SELECT %(password)s", password="S3cr3t"))
