"""What tests of the IO manager share: frames of every library, short pipelines, and what they left.

A claim about frames takes the fixture `frame` and so is made for pandas, Polars, Arrow, streams
and iterators alike. `store` and `load` use the manager bare, which is quick; `materialize` runs
Dagster.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any, Protocol

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from psycopg import sql

from dagster_tools.embedded import Server
from dagster_tools.postgres_io_manager import PostgresIOManager, PostgresResource
from tests import fix_servers
from tests.fix_servers import Database

Rows = list[tuple[Any, ...]]
_numbers = count(1)
_LOG: Any = dg.get_dagster_logger()


class FrameFactory(Protocol):
    """Make a frame of one library: `frame({"id": [1, 2], "name": ["a", None]})`.

    Values are lists, or numpy arrays where their type matters.
    """

    def __call__(self, columns: Mapping[str, Any]) -> Any: ...


def pandas_frame(columns: Mapping[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(dict(columns))


def arrow_table(columns: Mapping[str, Any]) -> pa.Table:
    return pa.table(dict(columns))


def arrow_stream(columns: Mapping[str, Any]) -> pa.RecordBatchReader:
    """Make a stream, which is read once, of batches so small that two rows are two of them."""
    return pa.table(dict(columns)).to_reader(max_chunksize=1)


def polars_frame(columns: Mapping[str, Any]) -> pl.DataFrame:
    return pl.DataFrame(dict(columns))


def polars_lazy_frame(columns: Mapping[str, Any]) -> pl.LazyFrame:
    return pl.LazyFrame(dict(columns))


def pandas_chunks(columns: Mapping[str, Any]) -> Iterator[pd.DataFrame]:
    """Make what `pd.read_csv(chunksize=…)` gives: a first frame, then one of all other rows."""
    whole = pandas_frame(columns)
    parts = [{name: values[:1] for name, values in columns.items()}] if len(whole) else []
    parts.append({name: values[1:] for name, values in columns.items()})
    return map(pandas_frame, parts)


def duckdb_relation(columns: Mapping[str, Any]) -> Any:
    import duckdb

    return duckdb.connect().from_arrow(arrow_table(columns))


@pytest.fixture(
    params=[
        pytest.param(pandas_frame, id="pandas"),
        pytest.param(polars_frame, id="polars"),
        pytest.param(arrow_stream, id="stream"),
        pytest.param(pandas_chunks, id="chunks"),
        pytest.param(arrow_table, id="arrow"),
        pytest.param(polars_lazy_frame, id="lazy", marks=pytest.mark.sweep),
        pytest.param(duckdb_relation, id="duckdb", marks=pytest.mark.sweep),
    ]
)
def frame(request: pytest.FixtureRequest) -> FrameFactory:
    """A factory of frames, once for each library: who asks for it makes the claim for all.

    The sweep's two are read as a stream is.
    """
    factory: FrameFactory = request.param
    return factory


@pytest.fixture
def io_manager(database: Database) -> PostgresIOManager:
    """The IO manager on a fresh database."""
    return manager_for(database)


@pytest.fixture(scope="module")
def module_database(dev_server: Server) -> Iterator[Database]:
    """One database for many small tests, each with a table of its own: `table_name`."""
    yield from fix_servers._database(dev_server, fix_servers._TEMPLATE)


@pytest.fixture
def cleaned_database(
    _kept_database: Database, _roles: list[tuple[Database, fix_servers.Role]]
) -> Iterator[Database]:
    """A database with nothing in it; a module of many tests names it `database`.

    It is the module's own. Cleaning one takes a tenth of the time of making one, and what a
    test leaves that is not cleaned fails that test.
    """
    names = _names(_kept_database)
    yield _kept_database
    with _kept_database.connect() as connection:
        for _database, role in _roles:
            connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role.name)))
        connection.execute(_CLEAN)
        connection.execute(
            sql.SQL("ALTER DATABASE {} RESET ALL").format(sql.Identifier(_kept_database.dbname))
        )
    assert _names(_kept_database) == names


@pytest.fixture(scope="module")
def _kept_database(dev_server: Server) -> Iterator[Database]:
    yield from fix_servers._database(dev_server, fix_servers._TEMPLATE)


def _names(database: Database) -> Rows:
    return query(database, f"{' UNION ALL '.join(_NAMES)} ORDER BY 1")


@pytest.fixture
def table_name() -> str:
    """A table's name that no other test has."""
    return f"table_{next(_numbers)}"


def manager_for(database: Database, **options: Any) -> PostgresIOManager:
    """Return the IO manager on a database, or on it as another role: `database.as_role(…)`."""
    return PostgresIOManager(connection=resource_for(database), **options)


def resource_for(database: Database, **overrides: Any) -> PostgresResource:
    return PostgresResource(**(database.settings() | overrides))


# --- short pipelines ------------------------------------------------------------------------


def store(
    manager: PostgresIOManager,
    obj: object,
    *,
    key: str | Sequence[str] = "numbers",
    **metadata: Any,
) -> dict[str, dg.MetadataValue]:
    """Hand an asset's output to the manager, without a run; return the metadata it logs.

    Args:
        metadata: Of the asset's definition.
    """
    context = _output_context(key, metadata)
    manager.handle_output(context, obj)
    logged_metadata: dict[str, Any] = dict(context.get_logged_metadata())
    return logged_metadata


def load(
    manager: PostgresIOManager,
    annotation: Any = pd.DataFrame,
    *,
    key: str | Sequence[str] = "numbers",
    upstream: Mapping[str, Any] | None = None,
    **metadata: Any,
) -> Any:
    """Load an asset, without a run, as an input of this annotation.

    Args:
        upstream: Metadata of the asset's definition.
        metadata: Of the input.
    """
    dagster_type: Any = dg.In(annotation).dagster_type
    return manager.load_input(
        dg.InputContext(
            asset_key=dg.AssetKey(key),
            dagster_type=dagster_type,
            definition_metadata=metadata,
            upstream_output=_output_context(key, upstream or {}),
            log_manager=_LOG,
            resources=_no_resources(),
        )
    )


def _output_context(key: str | Sequence[str], metadata: Mapping[str, Any]) -> dg.OutputContext:
    """Return what `build_output_context` does; that makes an instance for each, which is slow."""
    return dg.OutputContext(
        run_id="a run",
        asset_key=dg.AssetKey(key),
        definition_metadata=metadata,
        log_manager=_LOG,
        resources=_no_resources(),
    )


@functools.cache
def _no_resources() -> Any:
    with dg.build_resources({}, instance=shared_instance()) as resources:
        return resources


def materialize(
    assets: Any, manager: object, *, instance: dg.DagsterInstance | None = None, **options: Any
) -> dg.ExecuteInProcessResult:
    """Materialize one or several assets; `options` are those of `dg.materialize`."""
    return dg.materialize(
        list(assets) if isinstance(assets, (list, tuple)) else [assets],
        resources={"io_manager": manager} | options.pop("resources", {}),
        instance=instance or shared_instance(),
        **options,
    )


@functools.cache
def shared_instance() -> dg.DagsterInstance:
    """Return an instance for tests that do not mind what others ran: making one takes longer."""
    return dg.DagsterInstance.ephemeral()


def logged(result: dg.ExecuteInProcessResult, *, level: str = "INFO") -> list[str]:
    """Return what `context.log` said in a run, at this level."""
    entries = shared_instance().all_logs(result.run_id)
    return [
        entry.user_message
        for entry in entries
        if not entry.is_dagster_event and entry.level == getattr(logging, level)
    ]


# --- what is there now ----------------------------------------------------------------------


def query(database: Database, statement: str, *parameters: object) -> Rows:
    """Ask the database, in SQL with `%s` for parameters."""
    with database.connect() as connection:
        return connection.execute(statement, parameters or None).fetchall()


def rows(database: Database, table: str = "public.numbers") -> Rows:
    """Return the rows of `schema.table` as they are stored, but without `materialization_id`."""
    schema, name = table.split(".", 1)
    with database.connect() as connection:
        columns = connection.execute(
            """
            SELECT column_name
            FROM information_schema.columns
            WHERE table_schema = %s AND table_name = %s AND column_name <> 'materialization_id'
            ORDER BY ordinal_position
            """,
            [schema, name],
        ).fetchall()
        selected = sql.SQL(", ").join(sql.Identifier(column) for (column,) in columns)
        return connection.execute(
            sql.SQL("SELECT {} FROM {} ORDER BY {}").format(
                selected, sql.Identifier(schema, name), selected
            )
        ).fetchall()


def column_types(database: Database, table: str = "public.numbers") -> dict[str, str]:
    """Return the columns of a table in their order, each with its type as PostgreSQL spells it."""
    found = query(
        database,
        """
        SELECT attname, pg_catalog.format_type(atttypid, atttypmod)
        FROM pg_catalog.pg_attribute
        WHERE attrelid = %s::pg_catalog.regclass
          AND attnum > 0
          AND NOT attisdropped
          AND attname <> 'materialization_id'
        ORDER BY attnum
        """,
        table,
    )
    return dict(found)


def fingerprint(database: Database) -> dict[str, object]:
    """Return all there is in a database that a write could change, comparable by `==`.

    Every relation with its OID, definition, owner, privileges, comment and rows (with the
    transaction that wrote each), every schema and role; PostGIS' own objects aside.
    """
    with database.connect() as connection:
        found: dict[str, object] = {
            kind: connection.execute(statement).fetchall()
            for kind, statement in _FINGERPRINTS.items()
        }
        tables = connection.execute(_TABLES).fetchall()
        for (table,) in tables:
            found[table] = connection.execute(
                f"SELECT xmin::text, t::text FROM {table} AS t ORDER BY 2, 1"
            ).fetchall()
    return found


_CLEAN = """
    DO $$
    DECLARE
        statement text;
    BEGIN
        -- All at once: what is dropped with something else would have no name any more.
        FOREACH statement IN ARRAY ARRAY(
            SELECT format('DROP SCHEMA %I CASCADE', n.nspname)
            FROM pg_namespace AS n
            WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'public')
              AND n.nspname !~ '^pg_(toast_)?temp'
            UNION ALL
            SELECT format('DROP %s IF EXISTS %s CASCADE', kind, name)
            FROM (
                SELECT CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW'
                                    WHEN 'S' THEN 'SEQUENCE' WHEN 'f' THEN 'FOREIGN TABLE'
                                    ELSE 'TABLE' END,
                       oid::regclass::text, oid
                FROM pg_class
                WHERE relnamespace = 'public'::regnamespace AND relkind NOT IN ('i', 'I', 't', 'c')
                UNION ALL
                SELECT 'TYPE', oid::regtype::text, oid
                FROM pg_type AS t
                WHERE typnamespace = 'public'::regnamespace
                  AND (typtype IN ('e', 'd', 'r')
                       OR EXISTS (SELECT FROM pg_class WHERE oid = t.typrelid AND relkind = 'c'))
                UNION ALL
                SELECT 'ROUTINE', oid::regprocedure::text, oid
                FROM pg_proc
                WHERE pronamespace = 'public'::regnamespace
            ) AS ours (kind, name, oid)
            WHERE NOT EXISTS (
                SELECT
                FROM pg_depend AS d
                WHERE d.objid = ours.oid
                  AND (d.deptype = 'e' OR d.deptype = 'i' AND kind = 'SEQUENCE')
            )
        )
        LOOP
            EXECUTE statement;
        END LOOP;
    END
    $$
"""
_NAMES = (
    "SELECT nspname::text FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp'",
    "SELECT oid::regclass::text FROM pg_class WHERE relkind <> 't'",
    "SELECT oid::regtype::text FROM pg_type WHERE typtype IN ('e', 'd')",
    "SELECT count(*)::text FROM pg_proc",
)
_OURS = """
    n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
    AND n.nspname NOT LIKE 'pg_temp%'
    AND n.nspname NOT LIKE 'pg_toast_temp%'
    AND NOT EXISTS (
        SELECT
        FROM pg_depend AS d
        WHERE d.classid = '{of}'::regclass AND d.objid = {oid} AND d.deptype = 'e'
    )
"""
_TABLES = f"""
    SELECT c.oid::regclass::text
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'm') AND {_OURS.format(oid="c.oid", of="pg_class")}
    ORDER BY 1
"""
_FINGERPRINTS = {
    "roles": "SELECT rolname FROM pg_roles ORDER BY 1",
    "schemas": f"""
        SELECT n.nspname, n.nspowner, n.nspacl::text
        FROM pg_namespace AS n
        WHERE {_OURS.format(oid="n.oid", of="pg_namespace")}
        ORDER BY 1
    """,
    "relations": f"""
        SELECT c.oid, c.oid::regclass::text, c.relkind, c.relowner, c.relacl::text,
               c.relrowsecurity, c.relforcerowsecurity, obj_description(c.oid, 'pg_class'),
               CASE WHEN c.relkind IN ('v', 'm') THEN pg_get_viewdef(c.oid)
                    WHEN c.relkind = 'i' THEN pg_get_indexdef(c.oid) END
        FROM pg_class AS c
        JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE {_OURS.format(oid="c.oid", of="pg_class")}
        ORDER BY 1
    """,
    "columns": f"""
        SELECT c.oid, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attnum,
               a.attacl::text, pg_get_expr(e.adbin, e.adrelid), col_description(c.oid, a.attnum)
        FROM pg_class AS c
        JOIN pg_namespace AS n ON n.oid = c.relnamespace
        JOIN pg_attribute AS a ON a.attrelid = c.oid
        LEFT JOIN pg_attrdef AS e ON e.adrelid = c.oid AND e.adnum = a.attnum
        WHERE a.attnum > 0 AND {_OURS.format(oid="c.oid", of="pg_class")}
        ORDER BY 1, 5
    """,
    "constraints": f"""
        SELECT r.oid, r.conname, r.convalidated, pg_get_constraintdef(r.oid)
        FROM pg_constraint AS r
        JOIN pg_class AS c ON c.oid = r.conrelid
        JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE {_OURS.format(oid="c.oid", of="pg_class")}
        ORDER BY 1
    """,
    "triggers": """
        SELECT t.oid, t.tgname, pg_get_triggerdef(t.oid)
        FROM pg_trigger AS t
        WHERE NOT t.tgisinternal
        ORDER BY 1
    """,
    "policies": "SELECT * FROM pg_policies ORDER BY 1, 2, 3",
    "functions": f"""
        SELECT p.oid, p.oid::regprocedure::text
        FROM pg_proc AS p
        JOIN pg_namespace AS n ON n.oid = p.pronamespace
        WHERE {_OURS.format(oid="p.oid", of="pg_proc")}
        ORDER BY 1
    """,
    "types": f"""
        SELECT t.oid, t.typname
        FROM pg_type AS t
        JOIN pg_namespace AS n ON n.oid = t.typnamespace
        WHERE t.typtype IN ('e', 'd') AND {_OURS.format(oid="t.oid", of="pg_type")}
        ORDER BY 1
    """,
}
"""Statements whose answers, in a database nobody wrote to, are the same twice."""
