"""Judge a database after something went wrong in the middle of a write.

`Oracle.look` says what is there, `Oracle.judge` whether that is what a promise allows: the old
rows or the new ones exactly, recorded if and only if they are the new ones, and nothing else
left behind. `fetch_catalog_entries` describes all that hangs on the relations of some schemas.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import psycopg
from psycopg import sql

from dagster_tools.postgres.names import MATERIALIZATION_ID, Table
from tests.fix_servers import Database

__all__ = [
    "Oracle",
    "State",
    "fetch_catalog_entries",
    "fetch_leftovers",
    "fetch_sessions",
    "oracle_of",
]

SECONDS_TO_DIE = 10.0
"""What a session gets to notice that its client is gone; on an idle machine it takes none."""

Connection: TypeAlias = psycopg.Connection[Any]

Rows = Mapping[str | None, Counter[str]]
"""The rows of each partition, as text and without their materialization."""


@dataclass(frozen=True)
class State:
    """What is in the database.

    Args:
        rows: None where there is no table.
        catalog: Descriptions of the table and of all that hangs on it, without OIDs.
    """

    rows: Rows | None
    catalog: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def oracle_of(
    database: Database, table: Table, *, asset_key: str | None = None
) -> Iterator[Oracle]:
    """Open an oracle on one asset, which has the table's name unless told."""
    with closing(database.connect()) as connection:
        pooled = database.direct is not None
        yield Oracle(connection, table, asset_key or table.name, pooled=pooled)


@dataclass(frozen=True)
class Oracle:
    """Knows one table of one asset, and its tracking.

    Args:
        connection: Of its own, past any proxy.
        pooled: Writes come through a pooler, which keeps its idle sessions.
    """

    connection: Connection
    table: Table
    asset_key: str
    tracking_schema: str = "meta"
    pooled: bool = False

    def look(self) -> State:
        if not self._exists(self.table):
            return State(None)
        entries = fetch_catalog_entries(self.connection, [self.table.schema], identity=False)
        return State(self.rows(), entries)

    def rows(self) -> Rows:
        """Return the rows of each partition."""
        found: dict[str | None, Counter[str]] = {}
        query = sql.SQL(
            """
            SELECT a.partition_key, (to_jsonb(t) - {name})::text
            FROM {table} AS t
            LEFT JOIN {schema}.materializations AS m ON m.id = t.{column}
            LEFT JOIN {schema}.assets AS a ON a.id = m.asset_id
            """
        ).format(
            name=sql.Literal(MATERIALIZATION_ID),
            column=sql.Identifier(MATERIALIZATION_ID),
            table=self.table.identifier,
            schema=sql.Identifier(self.tracking_schema),
        )
        for key, row in self.connection.execute(query).fetchall():
            found.setdefault(key, Counter())[row] += 1
        return found

    def recorded(self, run_id: str) -> int:
        """Return how many materializations of the asset this run has."""
        return self._count(
            """
            SELECT count(*)
            FROM {schema}.materializations AS m
            JOIN {schema}.assets AS a ON a.id = m.asset_id
            WHERE m.run_id = %s AND a.asset_key = %s
            """,
            run_id,
            self.asset_key,
        )

    def judge(
        self, *, old: State, new: State, run_id: str, returned: bool, told: bool = False
    ) -> State:
        """Return what is there, which is `old` or `new`; fail with all that is wrong about it.

        Args:
            run_id: Of the write that went wrong.
            returned: It returned, so the rows must be the new ones.
            told: The server was told to commit; then they may be, even though it failed.
        """
        wrong = [f"a session outlives the write: {name}" for name in self._surviving_sessions()]
        wrong += fetch_leftovers(self.connection)
        found = self.look()
        side = "new" if found.rows == new.rows else "old" if found.rows == old.rows else None
        if side is None:
            wrong.append(f"the rows are neither the old nor the new ones: {found.rows}")
        elif found.catalog != (new.catalog if side == "new" else old.catalog):
            wrong.append(f"the {side} rows are in another table: {found.catalog}")
        if returned and side == "old":
            wrong.append("the write returned, and the old rows are there")
        if side == "new" and not (told or returned):
            wrong.append("the new rows are there, and nobody said COMMIT")
        wrong += self._wrong_about_tracking(found, run_id, committed=side == "new")
        assert not wrong, "\n".join(wrong)
        return found

    def _wrong_about_tracking(self, found: State, run_id: str, *, committed: bool) -> Iterable[str]:
        names = ("assets", "materializations", "leftovers")
        present = [self._exists(Table(self.tracking_schema, name)) for name in names]
        if not all(present):
            if any(present):
                yield "only some of the tracking tables exist"
            if found.rows is not None:
                yield "rows are there without tracking tables"
            return
        recorded = self.recorded(run_id)
        if recorded != committed:
            yield f"the write is recorded {recorded} times, committed: {committed}"
        unmaterialized = self._count(
            """
            SELECT count(*)
            FROM {schema}.assets AS a
            WHERE NOT EXISTS (
                SELECT FROM {schema}.materializations AS m WHERE m.asset_id = a.id
            )
            """
        )
        if unmaterialized:
            yield f"{unmaterialized} assets are known that nothing materialized"
        if found.rows is None:
            return
        unknown = self._count(
            """
            SELECT count(*)
            FROM {table} AS t
            WHERE t.{column} IS NOT NULL
              AND NOT EXISTS (
                  SELECT FROM {schema}.materializations AS m WHERE m.id = t.{column}
              )
            """
        )
        if unknown:
            yield f"{unknown} rows bear a materialization that is not recorded"

    def _count(self, query: str, *parameters: object) -> int:
        composed = sql.SQL(query).format(
            schema=sql.Identifier(self.tracking_schema),
            table=self.table.identifier,
            column=sql.Identifier(MATERIALIZATION_ID),
        )
        row = self.connection.execute(composed, parameters or None).fetchone()
        return int(row[0]) if row else 0

    def _exists(self, table: Table) -> bool:
        row = self.connection.execute(
            "SELECT to_regclass(%s) IS NOT NULL", [table.identifier.as_string()]
        ).fetchone()
        return row is not None and bool(row[0])

    def _surviving_sessions(self) -> list[str]:
        deadline = time.monotonic() + SECONDS_TO_DIE
        while sessions := fetch_sessions(self.connection, busy=self.pooled):
            if time.monotonic() > deadline:
                break
            time.sleep(0.005)
        return sessions


def fetch_sessions(connection: Connection, *, busy: bool = False) -> list[str]:
    """Return what each session of ours, or each that is not idle, does in this database."""
    rows = connection.execute(
        """
        SELECT state || ' ' || coalesce(wait_event, '') || ': ' || query
        FROM pg_stat_activity
        WHERE datname = current_database()
          AND application_name = 'dagster-tools'
          AND NOT (%s AND state = 'idle')
        """,
        [busy],
    ).fetchall()
    return [row[0] for row in rows]


def fetch_leftovers(connection: Connection) -> list[str]:
    """Return what a write must never leave: temporary tables, broken indexes, locks."""
    rows = connection.execute(
        """
        SELECT 'a temporary relation is left: ' || c.oid::regclass::text
        FROM pg_class AS c
        WHERE c.relpersistence = 't'
        UNION ALL
        SELECT 'an index is invalid: ' || indexrelid::regclass::text
        FROM pg_index
        WHERE NOT indisvalid
        UNION ALL
        SELECT 'a lock is held: ' || locktype || ' ' || mode
        FROM pg_locks
        WHERE pid <> pg_backend_pid()
          AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND pid IN (
              SELECT pid FROM pg_stat_activity WHERE application_name = 'dagster-tools'
          )
        UNION ALL
        SELECT 'a prepared transaction is left: ' || gid
        FROM pg_prepared_xacts
        WHERE database = current_database()
        """
    ).fetchall()
    return [row[0] for row in rows]


def fetch_catalog_entries(
    connection: Connection, schemas: Iterable[str], *, identity: bool = True
) -> dict[str, str]:
    """Describe every relation of the schemas and what hangs on it, each by a name of its own.

    Args:
        identity: With OIDs and file nodes, which tell a table from another made just like it.
    """
    rows = connection.execute(_ENTRIES, [list(schemas), identity]).fetchall()
    entries: dict[str, str] = dict(rows)
    assert len(entries) == len(rows), "two entries share a name"
    return entries


_ENTRIES = """
WITH relations AS (
    SELECT c.*
    FROM pg_class AS c
    WHERE c.relnamespace IN (SELECT oid FROM pg_namespace WHERE nspname = ANY (%s))
),
objects (classid, objid, objsubid, described) AS (
    SELECT 'pg_class'::regclass, oid, 0,
           to_jsonb(r) - ARRAY['oid', 'relfilenode', 'reltoastrelid', 'reltype', 'relnamespace',
                               'relpages', 'reltuples', 'relallvisible', 'relallfrozen',
                               'relfrozenxid', 'relminmxid', 'relam']
           || CASE WHEN %s THEN jsonb_build_object('oid', oid, 'relfilenode', relfilenode)
                   ELSE '{}' END
           || jsonb_build_object(
                  'owner', pg_get_userbyid(relowner),
                  'view', CASE WHEN relkind IN ('v', 'm') THEN pg_get_viewdef(oid) END,
                  'index', CASE WHEN relkind = 'i' THEN pg_get_indexdef(oid) END,
                  'publications', ARRAY(
                      SELECT p.pubname || coalesce(': ' || p.rowfilter, '')
                      FROM pg_publication_tables AS p
                      WHERE (quote_ident(p.schemaname) || '.'
                             || quote_ident(p.tablename))::regclass = r.oid
                      ORDER BY 1))
    FROM relations AS r
    UNION ALL
    SELECT 'pg_class'::regclass, attrelid, attnum,
           to_jsonb(a) - ARRAY['attrelid', 'attcacheoff', 'atttypid', 'attmissingval']
           || jsonb_build_object('type', format_type(atttypid, atttypmod))
    FROM pg_attribute AS a
    WHERE attrelid IN (SELECT oid FROM relations)
      AND attnum > 0
      AND NOT attisdropped
    UNION ALL
    SELECT 'pg_attrdef'::regclass, oid, 0, to_jsonb(pg_get_expr(adbin, adrelid))
    FROM pg_attrdef
    WHERE adrelid IN (SELECT oid FROM relations)
    UNION ALL
    SELECT 'pg_constraint'::regclass, oid, 0,
           to_jsonb(ARRAY[pg_get_constraintdef(oid), convalidated::text])
    FROM pg_constraint
    WHERE conrelid IN (SELECT oid FROM relations)
    UNION ALL
    SELECT 'pg_trigger'::regclass, oid, 0, to_jsonb(ARRAY[pg_get_triggerdef(oid), tgenabled::text])
    FROM pg_trigger
    WHERE tgrelid IN (SELECT oid FROM relations)
      AND NOT tgisinternal
    UNION ALL
    SELECT 'pg_rewrite'::regclass, oid, 0, to_jsonb(ARRAY[pg_get_ruledef(oid), ev_enabled::text])
    FROM pg_rewrite
    WHERE ev_class IN (SELECT oid FROM relations)
    UNION ALL
    SELECT 'pg_policy'::regclass, oid, 0,
           to_jsonb(p) - ARRAY['oid', 'polrelid', 'polqual', 'polwithcheck']
           || jsonb_build_object('qual', pg_get_expr(polqual, polrelid),
                                 'check', pg_get_expr(polwithcheck, polrelid))
    FROM pg_policy AS p
    WHERE polrelid IN (SELECT oid FROM relations)
    UNION ALL
    SELECT 'pg_statistic_ext'::regclass, oid, 0, to_jsonb(pg_get_statisticsobjdef(oid))
    FROM pg_statistic_ext
    WHERE stxrelid IN (SELECT oid FROM relations)
)
SELECT o.classid::text || ' ' || i.type || ' ' || i.identity,
       coalesce(o.described::text, 'null') || coalesce(' -- ' || d.description, '')
FROM objects AS o
CROSS JOIN LATERAL pg_identify_object(o.classid, o.objid, o.objsubid) AS i
LEFT JOIN pg_description AS d
  ON (d.classoid, d.objoid, d.objsubid) = (o.classid, o.objid, o.objsubid)
"""
