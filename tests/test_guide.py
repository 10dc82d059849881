"""What the first users were promised: their code as they type it, and what it then does.

The assets are those of the users' guide, with its names, values and import paths; what it leaves
open (`...`) is filled in. What has geometry or comes from SharePoint is told elsewhere.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest

import dagster_tools
from dagster_tools.embedded import Server
from dagster_tools.postgres_io_manager import PostgresIOManager
from shared.db.sql import SQL, And, Eq, IncrementalDataFrame, Or, Query
from tests import fix_servers
from tests.fix_servers import Database, RoleFactory
from tests.pipelines import (
    Rows,
    column_types,
    load,
    logged,
    manager_for,
    materialize,
    query,
    resource_for,
    rows,
    store,
)


@pytest.fixture
def database(cleaned_database: Database) -> Database:
    return cleaned_database


def run(manager: object, *assets: Any, **options: Any) -> dg.ExecuteInProcessResult:
    """Materialize assets that name their IO manager as the guide does."""
    return materialize(assets, manager, resources={"postgres_io_manager": manager}, **options)


def execute(database: Database, *statements: str) -> None:
    with database.connect() as connection:
        for statement in statements:
            connection.execute(statement)


def test_everything_is_imported_from_where_it_always_was():
    for name in (PostgresIOManager, IncrementalDataFrame, Eq, And, Or, SQL, Query):
        assert getattr(dagster_tools, name.__name__) is name


# --- overview, basic usage ------------------------------------------------------------------


@dg.asset(
    io_manager_key="postgres_io_manager",
    metadata={
        "schema": "analytics",
        "table": "daily_metrics",  # optional, defaults to asset key
    },
)
def daily_metrics():
    return pd.DataFrame(
        {
            "date": ["2024-01-01", "2024-01-02"],
            "value": [100, 200],
        }
    )


def test_a_returned_frame_is_a_table_in_a_schema_that_did_not_exist(database, io_manager):
    run(io_manager, daily_metrics)

    assert rows(database, "analytics.daily_metrics") == [("2024-01-01", 100), ("2024-01-02", 200)]
    assert column_types(database, "analytics.daily_metrics") == {"date": "text", "value": "bigint"}


def test_every_option_has_the_default_that_the_guide_gives(database, io_manager):
    @dg.asset(io_manager_key="postgres_io_manager")
    def my_asset():
        return pd.DataFrame({"id": [1, 1]})

    for _run in range(2):
        run(io_manager, my_asset)

    assert rows(database, "public.my_asset") == [(1,), (1,)]
    assert query(
        database,
        """
        SELECT relacl, (SELECT count(*) FROM pg_constraint WHERE conrelid = c.oid)
        FROM pg_class AS c WHERE oid = 'my_asset'::regclass
        """,
    ) == [(None, 0)]


def test_columns_have_the_types_and_constraints_that_the_guide_names(database, io_manager):
    @dg.asset(
        io_manager_key="postgres_io_manager",
        metadata={
            "columns": {
                # Simple type specification
                "id": "int",
                "name": "string",
                "price": "float",
                "active": "bool",
                "created": "date",
                "updated": "datetime",

                # With constraints (use tuple)
                "user_id": ("int", "not null"),
                "email": ("string", "unique"),
            }
        },
    )  # fmt: skip
    def users():
        return pd.DataFrame({
            "id": [1], "name": ["Ada"], "price": [1], "active": [True], "created": ["2024-01-01"],
            "updated": ["2024-01-01 10:00"], "user_id": [7], "email": ["ada@example.com"],
        })  # fmt: skip

    run(io_manager, users)

    assert column_types(database, "public.users") == {
        "id": "integer",
        "name": "text",
        "price": "double precision",
        "active": "boolean",
        "created": "date",
        "updated": "timestamp without time zone",
        "user_id": "integer",
        "email": "text",
    }
    assert query(
        database,
        """
        SELECT attname
        FROM pg_attribute
        WHERE attrelid = 'users'::regclass AND attnum > 0 AND attnotnull
        """,
    ) == [("user_id",)]
    assert query(
        database,
        """
        SELECT pg_get_constraintdef(oid) FROM pg_constraint
        WHERE conrelid = 'users'::regclass AND contype = 'u'
        """,
    ) == [("UNIQUE (email)",)]


# --- incremental updates --------------------------------------------------------------------


@dg.asset(
    io_manager_key="postgres_io_manager",
    metadata={
        "schema": "analytics",
        "primary_key": "id",
        "incremental": "true",
    },
)
def user_metrics():
    # Rows with existing IDs are updated, new IDs are inserted
    return pd.DataFrame(
        {
            "id": [1, 2, 3],
            "score": [95, 87, 92],
        }
    )


def test_an_upsert_leaves_what_the_statement_of_the_guide_leaves(database, io_manager):
    before = "(id bigint PRIMARY KEY, score bigint)", "VALUES (2, 0), (3, 92), (9, 9)"
    execute(
        database,
        "CREATE SCHEMA analytics",
        f"CREATE TABLE analytics.user_metrics {before[0]}",
        f"INSERT INTO analytics.user_metrics {before[1]}",
        f"CREATE TABLE by_statement {before[0]}",
        f"INSERT INTO by_statement {before[1]}",
    )

    run(io_manager, user_metrics)
    execute(
        database,
        """
        INSERT INTO by_statement (id, score)
        VALUES (1, 95), (2, 87), (3, 92)
        ON CONFLICT (id) DO UPDATE SET
            score = EXCLUDED.score;
        """,
    )

    assert rows(database, "analytics.user_metrics") == rows(database, "public.by_statement")


@pytest.mark.filterwarnings("ignore:Support for arbitrary metadata values:DeprecationWarning")
def test_a_composite_key_is_a_tuple_of_columns(database, io_manager):
    scores = iter([95, 96])

    @dg.asset(
        io_manager_key="postgres_io_manager",
        metadata={
            "primary_key": ("user_id", "date"),  # Composite key
            "incremental": "true",
        },
    )
    def user_scores():
        return pd.DataFrame({"user_id": [1], "date": ["2024-01-01"], "score": [next(scores)]})

    for _run in range(2):
        run(io_manager, user_scores)

    assert rows(database, "public.user_scores") == [(1, "2024-01-01", 96)]


# --- delete expressions ---------------------------------------------------------------------


def expressions() -> dict[str, Any]:
    return {
        # Single value
        "single": Eq("file_id", "abc123"),

        # Multiple values (generates IN clause)
        "multiple": Eq("file_id", ["abc123", "def456", "ghi789"]),

        # Composite key
        "composite": Eq(["user_id", "date"], [
            (1, "2024-01-01"),
            (2, "2024-01-02"),
        ]),

        # Logical AND
        "and": And(
            Eq("file_id", "abc123"),
            Eq("status", "active"),
        ),

        # Logical OR
        "or": Or(
            Eq("source", "manual"),
            Eq("source", "api"),
        ),
    }  # fmt: skip


FILES = pd.DataFrame(
    [
        ("abc123", 1, "2024-01-01", "active", "manual"),
        ("abc123", 1, "2024-01-02", "done", "sensor"),
        ("def456", 2, "2024-01-02", "active", "api"),
        ("ghi789", 2, "2024-01-01", "done", "sensor"),
        ("jkl012", 3, "2024-01-01", "active", "sensor"),
    ],
    columns=["file_id", "user_id", "date", "status", "source"],
)


@pytest.mark.parametrize(
    ("which", "condition"),
    [
        ("single", "file_id = 'abc123'"),
        ("multiple", "file_id IN ('abc123', 'def456', 'ghi789')"),
        ("composite", "(user_id, date) IN ((1, '2024-01-01'), (2, '2024-01-02'))"),
        ("and", "file_id = 'abc123' AND status = 'active'"),
        ("or", "source = 'manual' OR source = 'api'"),
    ],
)
def test_a_delete_expression_deletes_what_its_where_clause_would(
    database, io_manager, which, condition
):
    store(io_manager, FILES, key="lab_results")
    kept = query(database, f"SELECT * FROM lab_results WHERE NOT ({condition})")

    store(
        io_manager,
        IncrementalDataFrame(pd.DataFrame(), delete=expressions()[which]),
        key="lab_results",
    )

    assert 0 < len(kept) < len(FILES)
    assert query(database, "SELECT * FROM lab_results") == kept


# --- loading from production ----------------------------------------------------------------


@pytest.fixture(scope="module")
def production(prod_server: Server) -> Iterator[Database]:
    """Where each upstream asset of the guide has a row of its own and one of somebody else's."""
    for made in fix_servers._database(prod_server, fix_servers._TEMPLATE):
        manager = manager_for(made)
        for key in UPSTREAM:
            store(manager, pd.DataFrame({"place": ["production"]}), key=key)
            store(manager, pd.DataFrame({"place": ["another's"]}), key=f"not_{key}", table=key)
        yield made


@pytest.fixture
def hybrid(database: Database, production: Database) -> object:
    """The IO manager of a development environment that has the same assets."""
    manager = manager_for(database, production=resource_for(production))
    for key in UPSTREAM:
        store(manager, pd.DataFrame({"place": ["here"]}), key=key)
    return manager


UPSTREAM = (
    "upstream_data",
    "prod_data",
    "dev_data",
    "all_routes",
    "reference_data",
    "verified_sites",
    "local_updates",
)
given: dict[str, list[str]] = {}


@dg.asset(
    io_manager_key="postgres_io_manager",
    metadata={"environment": "production"},
)
def analysis(upstream_data):
    # upstream_data is loaded from production database
    given["upstream_data"] = sorted(upstream_data["place"])
    return upstream_data


@dg.asset(
    io_manager_key="postgres_io_manager",
    ins={
        "prod_data": dg.AssetIn(metadata={"environment": "production"}),
        "dev_data": dg.AssetIn(),  # loads from dev (default)
    },
)
def combined_analysis(prod_data, dev_data):
    # Mix production and development data
    given["prod_data"], given["dev_data"] = list(prod_data["place"]), list(dev_data["place"])
    return prod_data


@dg.asset(
    io_manager_key="postgres_io_manager",
    ins={
        "all_routes": dg.AssetIn(metadata={
            "environment": "production",
            "full_table": True,  # Load entire table, all partitions
        }),
    },
)  # fmt: skip
def route_analysis(all_routes):
    # all_routes contains every row in the table
    given["all_routes"] = sorted(all_routes["place"])
    return all_routes


@dg.asset(
    io_manager_key="postgres_io_manager",
    metadata={"schema": "analysis"},
    ins={
        "reference_data": dg.AssetIn(metadata={"environment": "production"}),
        "verified_sites": dg.AssetIn(metadata={
            "environment": "production",
            "full_table": True,
        }),
    },
)  # fmt: skip
def site_analysis(reference_data, verified_sites, local_updates):
    # reference_data: from prod, filtered by materialization
    # verified_sites: from prod, full table
    # local_updates: from dev (default)
    given["reference_data"] = sorted(reference_data["place"])
    given["verified_sites"] = sorted(verified_sites["place"])
    given["local_updates"] = sorted(local_updates["place"])
    return local_updates


@pytest.mark.parametrize(
    ("asset", "table", "taken"),
    [
        (analysis, "public.analysis", {"upstream_data": ["production"]}),
        (
            combined_analysis,
            "public.combined_analysis",
            {"prod_data": ["production"], "dev_data": ["here"]},
        ),
        (route_analysis, "public.route_analysis", {"all_routes": ["another's", "production"]}),
        (
            site_analysis,
            "analysis.site_analysis",
            {
                "reference_data": ["production"],
                "verified_sites": ["another's", "production"],
                "local_updates": ["here"],
            },
        ),
    ],
    ids=["by asset", "by input", "full table", "hybrid"],
)
def test_inputs_come_from_production_and_outputs_stay_here(
    database, production, hybrid, asset, table, taken
):
    given.clear()
    upstream = [dg.AssetSpec(key).with_io_manager_key("postgres_io_manager") for key in UPSTREAM]

    run(hybrid, *upstream, asset, selection=[asset])

    assert given == taken
    assert query(database, f"SELECT count(*) > 0 FROM {table}") == [(True,)]
    assert query(production, "SELECT to_regclass(%s)", table) == [(None,)]


# --- SQL ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*non_argument_deps.*:DeprecationWarning")
def test_the_sql_of_the_guide_runs_each_time_it_is_materialized(database, io_manager):
    @dg.asset(io_manager_key="postgres_io_manager", metadata={"schema": "analytics"})
    def raw_data():
        return pd.DataFrame({"category": ["a", "a", "b"], "value": [1, 2, 5]})

    @dg.asset(
        io_manager_key="postgres_io_manager",
        non_argument_deps={"raw_data"},
    )
    def aggregated_view() -> SQL:
        return SQL("""
            DROP TABLE IF EXISTS analytics.aggregated;

            CREATE TABLE analytics.aggregated AS
            SELECT
                category,
                COUNT(*) as count,
                AVG(value) as avg_value
            FROM analytics.raw_data
            GROUP BY category;
        """)

    for _run in range(2):
        result = run(io_manager, raw_data, aggregated_view)

    assert rows(database, "analytics.aggregated") == [("a", 2, 1.5), ("b", 1, 5)]
    assert logged(result, level="WARNING") == []


# --- grants ---------------------------------------------------------------------------------


@dg.asset(
    io_manager_key="postgres_io_manager",
    metadata={
        "schema": "public",
        "users": ["felt", "metabase_reader", "api_user"],
    },
)
def shared_metrics():
    return pd.DataFrame({"value": [1]})


@pytest.fixture
def granted(database: Database) -> Iterator[Database]:
    """A database that writes down each GRANT, as it was sent."""
    execute(
        database,
        "CREATE TABLE granted (number serial, statement text)",
        """
        CREATE FUNCTION note_grant() RETURNS event_trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO granted (statement) VALUES (current_query()); END $$
        """,
        """
        CREATE EVENT TRIGGER note_grant ON ddl_command_end WHEN TAG IN ('GRANT')
        EXECUTE FUNCTION note_grant()
        """,
    )
    yield database
    execute(database, "DROP EVENT TRIGGER note_grant")


def statements(database: Database) -> Rows:
    return query(database, "SELECT statement FROM granted ORDER BY number")


def test_the_grants_are_those_of_the_guide_and_given_once(
    granted: Database, io_manager, role: RoleFactory
):
    for name in ("felt", "metabase_reader", "api_user"):
        role(name, on=granted)

    for _run in range(2):
        run(io_manager, shared_metrics)

    assert statements(granted) == [
        ('GRANT USAGE ON SCHEMA "public" TO "felt"',),
        ('GRANT SELECT ON "public"."shared_metrics" TO "felt"',),
        ('GRANT USAGE ON SCHEMA "public" TO "metabase_reader"',),
        ('GRANT SELECT ON "public"."shared_metrics" TO "metabase_reader"',),
        ('GRANT USAGE ON SCHEMA "public" TO "api_user"',),
        ('GRANT SELECT ON "public"."shared_metrics" TO "api_user"',),
    ]


def test_assets_in_the_datasmart_code_location_are_granted_to_datasmart_user(
    granted: Database, io_manager, role: RoleFactory
):
    role("datasmart_user", on=granted)

    run(io_manager, daily_metrics, tags={"dagster/code_location": "another"})
    others = statements(granted)
    run(io_manager, daily_metrics, tags={"dagster/code_location": "datasmart"})

    assert others == []
    assert statements(granted) == [
        ('GRANT USAGE ON SCHEMA "analytics" TO "datasmart_user"',),
        ('GRANT SELECT ON "analytics"."daily_metrics" TO "datasmart_user"',),
    ]


DATASMART = """
import dagster as dg
import pandas as pd

from dagster_tools.postgres_io_manager import PostgresIOManager


@dg.asset(io_manager_key="postgres_io_manager", metadata={"schema": "analytics"})
def launched():
    return pd.DataFrame({"value": [1]})


defs = dg.Definitions(
    assets=[launched],
    jobs=[dg.define_asset_job("everything")],
    resources={"postgres_io_manager": PostgresIOManager()},
)
"""

LAUNCHES_AT_ONCE = """
telemetry: {enabled: false}
run_coordinator: {module: dagster._core.run_coordinator, class: DefaultRunCoordinator}
"""


def test_a_run_launched_from_the_real_code_location_datasmart_grants_too(
    granted: Database, role: RoleFactory, tmp_path: Path
):
    """Dagster says where a run comes from; here a code server does, and Dagster launches it."""
    role("datasmart_user", on=granted)
    port = free_port()
    (tmp_path / "definitions.py").write_text(DATASMART)
    (tmp_path / "dagster.yaml").write_text(LAUNCHES_AT_ONCE)
    (tmp_path / "workspace.yaml").write_text(
        f"load_from: [{{grpc_server: {{host: localhost, port: {port}, location_name: datasmart}}}}]"
    )
    dagster = [sys.executable, "-m", "dagster"]
    where: dict[str, Any] = {
        "cwd": tmp_path,
        "env": os.environ | granted.environment() | {"DAGSTER_HOME": str(tmp_path)},
        "stdout": subprocess.DEVNULL,
    }
    serve = [*dagster, "api", "grpc", "-f", "definitions.py", "-h", "localhost", "-p", str(port)]
    launch = [*dagster, "job", "launch", "-w", "workspace.yaml", "-j", "everything"]

    with subprocess.Popen(serve, **where) as server:
        try:
            wait_for(lambda: answers(port))
            subprocess.run([*launch, "-l", "datasmart"], **where, check=True)
            wait_for(lambda: len(statements(granted)) == 2)
        finally:
            server.terminate()

    assert statements(granted) == [
        ('GRANT USAGE ON SCHEMA "analytics" TO "datasmart_user"',),
        ('GRANT SELECT ON "analytics"."launched" TO "datasmart_user"',),
    ]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port: int = found.getsockname()[1]
        return port


def answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("localhost", port)):
        return True
    return False


def wait_for(happened: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.2)


# --- materialization tracking ---------------------------------------------------------------


def test_every_row_leads_to_its_run_asset_partition_and_time(database, io_manager):
    @dg.asset(
        io_manager_key="postgres_io_manager",
        partitions_def=dg.StaticPartitionsDefinition(["a", "b"]),
        metadata={"schema": "analytics", "table": "metrics"},
    )
    def partitioned(context):
        return pd.DataFrame({"key": [context.partition_key] * 2})

    @dg.asset(
        io_manager_key="postgres_io_manager",
        metadata={"schema": "analytics", "table": "metrics"},
    )
    def another():
        return pd.DataFrame({"key": ["another"]})

    runs = {
        "a": run(io_manager, partitioned, partition_key="a").run_id,
        "b": run(io_manager, partitioned, partition_key="b").run_id,
        "another": run(io_manager, another).run_id,
    }

    assert query(
        database,
        """
        SELECT t.key, m.run_id, a.asset_key, a.partition_key, a.schema, a."table",
               m.timestamp BETWEEN now() - interval '5 minutes' AND now()
        FROM analytics.metrics AS t
        JOIN meta.materializations AS m ON m.id = t.materialization_id
        JOIN meta.assets AS a ON a.id = m.asset_id
        ORDER BY 1
        """,
    ) == [
        ("a", runs["a"], "partitioned", "a", "analytics", "metrics", True),
        ("a", runs["a"], "partitioned", "a", "analytics", "metrics", True),
        ("another", runs["another"], "another", None, "analytics", "metrics", True),
        ("b", runs["b"], "partitioned", "b", "analytics", "metrics", True),
        ("b", runs["b"], "partitioned", "b", "analytics", "metrics", True),
    ]


def test_the_tracking_column_is_there_in_the_table_and_gone_when_it_is_loaded(database, io_manager):
    run(io_manager, daily_metrics)
    place = {"schema": "analytics"}

    loaded: Any = load(io_manager, key="daily_metrics", upstream=place)
    whole: Any = load(io_manager, key="daily_metrics", upstream=place, full_table=True)

    assert list(loaded) == list(whole) == ["date", "value"]
    assert query(database, "SELECT count(materialization_id) FROM analytics.daily_metrics") == [
        (2,)
    ]


# --- troubleshooting ------------------------------------------------------------------------


def test_an_empty_frame_is_a_warning_in_the_words_of_the_guide_and_no_table(database, io_manager):
    @dg.asset(io_manager_key="postgres_io_manager")
    def my_asset():
        return pd.DataFrame()

    result = run(io_manager, my_asset)

    assert logged(result, level="WARNING") == [
        "Empty DataFrame received for asset my_asset. The database table will not be created."
    ]
    assert query(database, "SELECT to_regclass('my_asset')") == [(None,)]


DAYS = dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-01-03")


@dg.asset(io_manager_key="postgres_io_manager", partitions_def=DAYS)
def by_day(context):
    return pd.DataFrame({"day": [context.partition_key]})


def taking(metadata: dict[str, Any] | None = None) -> dg.AssetsDefinition:
    @dg.asset(
        io_manager_key="postgres_io_manager",
        partitions_def=DAYS,
        ins={"by_day": dg.AssetIn(metadata=metadata)},
    )
    def taking(by_day):
        return by_day

    return taking


def test_a_partition_that_is_not_found_is_the_error_of_the_guide(io_manager):
    asset = taking()

    with pytest.raises(ValueError, match="No materialization found") as not_found:
        run(io_manager, by_day, asset, selection=[asset], partition_key="2024-01-01")

    first, remedies = str(not_found.value).split(" (asset by_day). ")
    assert first == "No materialization found for partitions ['2024-01-01']"
    assert remedies.startswith("Materialize them first, or set full_table: True")


def test_to_materialize_the_partition_first_helps(database, io_manager):
    asset = taking()

    run(io_manager, by_day, partition_key="2024-01-01")
    run(io_manager, by_day, asset, selection=[asset], partition_key="2024-01-01")

    assert rows(database, "public.taking") == [("2024-01-01",)]


def test_to_take_the_full_table_regardless_of_partition_helps(database, io_manager):
    asset = taking({"full_table": True})

    run(io_manager, by_day, partition_key="2024-01-02")
    run(io_manager, by_day, asset, selection=[asset], partition_key="2024-01-01")

    assert rows(database, "public.taking") == [("2024-01-02",)]
