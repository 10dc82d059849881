"""Judge a database after something went wrong in the middle of a write.

`Oracle.look` says what is there, `Oracle.judge` whether that is what a promise allows: the old
rows or the new ones exactly, recorded if and only if they are the new ones, and nothing else
left behind. `fetch_catalog_entries` describes all that hangs on the relations of some schemas.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from dagster_tools.postgres.names import MATERIALIZATION_ID, Table
from tests.fix_servers import Database

__all__ = ["Oracle", "State", "fetch_catalog_entries", "fetch_leftovers", "fetch_sessions"]

SECONDS_TO_DIE = 5.0
"""What a session gets to notice that its client is gone; on an idle machine it takes none."""

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


@dataclass(frozen=True)
class Oracle:
    """Knows one table of one asset, and its tracking."""

    database: Database
    table: Table
    asset_key: str
    tracking_schema: str = "meta"

    def look(self) -> State:
        with closing(self.database.connect()) as connection:
            if not _exists(connection, self.table):
                return State(None)
            entries = fetch_catalog_entries(connection, [self.table.schema], identity=False)
            return State(self._rows(connection), entries)

    def judge(self, *, old: State, new: State, run_id: str, returned: bool, told: bool) -> State:
        """Return what is there, which is `old` or `new`; fail with all that is wrong about it.

        Args:
            run_id: Of the write that went wrong.
            returned: It returned, so the rows must be the new ones.
            told: The server was told to commit; then they may be, even though it failed.
        """
        wrong = [f"a session outlives the write: {name}" for name in self._surviving_sessions()]
        with closing(self.database.connect()) as connection:
            wrong += fetch_leftovers(connection)
            found = self.look()
            side = "new" if found.rows == new.rows else "old" if found.rows == old.rows else None
            if side is None:
                wrong.append(f"the rows are neither the old nor the new ones: {found.rows}")
            elif found.catalog not in ([new.catalog] if side == "new" else [old.catalog]):
                wrong.append(f"the {side} rows are in another table: {found.catalog}")
            if returned and side == "old":
                wrong.append("the write returned, and the old rows are there")
            if side == "new" and not told:
                wrong.append("the new rows are there, and nobody said COMMIT")
            wrong += self._wrong_about_tracking(connection, found, run_id, committed=side == "new")
        assert not wrong, "\n".join(wrong)
        return found

    def _rows(self, connection: psycopg.Connection[Any]) -> Rows:
        """Read the rows; each must belong to a materialization that is recorded."""
        found: dict[str | None, Counter[str]] = {}
        query = sql.SQL(
            """
            SELECT a.partition_key, (to_jsonb(t) - {name})::text
            FROM {table} AS t
            LEFT JOIN {materializations} AS m ON m.id = t.{column}
            LEFT JOIN {assets} AS a ON a.id = m.asset_id
            """
        ).format(
            name=sql.Literal(MATERIALIZATION_ID),
            column=sql.Identifier(MATERIALIZATION_ID),
            table=self.table.identifier,
            materializations=sql.Identifier(self.tracking_schema, "materializations"),
            assets=sql.Identifier(self.tracking_schema, "assets"),
        )
        for key, row in connection.execute(query).fetchall():
            found.setdefault(key, Counter())[row] += 1
        return found

    def _wrong_about_tracking(
        self, connection: psycopg.Connection[Any], found: State, run_id: str, *, committed: bool
    ) -> Iterable[str]:
        present = [
            _exists(connection, Table(self.tracking_schema, name))
            for name in ("assets", "materializations")
        ]
        if not any(present) and found.rows is None:
            return
        if not all(present):
            yield "only one of the tracking tables exists"
            return
        schema = sql.Identifier(self.tracking_schema)
        recorded = connection.execute(
            sql.SQL(
                """
                SELECT count(*)
                FROM {schema}.materializations AS m
                JOIN {schema}.assets AS a ON a.id = m.asset_id
                WHERE m.run_id = %s AND a.asset_key = %s
                """
            ).format(schema=schema),
            [run_id, self.asset_key],
        ).fetchone()
        if recorded != (int(committed),):
            yield f"the write is recorded {recorded} times, committed: {committed}"
        orphans = connection.execute(
            sql.SQL(
                """
                SELECT a.asset_key, a.partition_key
                FROM {schema}.assets AS a
                WHERE NOT EXISTS (
                    SELECT FROM {schema}.materializations AS m WHERE m.asset_id = a.id
                )
                """
            ).format(schema=schema)
        ).fetchall()
        if orphans:
            yield f"assets that nothing materialized: {orphans}"
        if found.rows is not None and (unknown := self._rows_of_nobody(connection)):
            yield f"{unknown} rows bear a materialization that is not recorded"

    def _rows_of_nobody(self, connection: psycopg.Connection[Any]) -> int:
        query = sql.SQL(
            "SELECT count(*) FROM {table} AS t WHERE {column} IS NOT NULL AND NOT EXISTS "
            "(SELECT FROM {recorded} AS m WHERE m.id = t.{column})"
        ).format(
            table=self.table.identifier,
            column=sql.Identifier(MATERIALIZATION_ID),
            recorded=sql.Identifier(self.tracking_schema, "materializations"),
        )
        row = connection.execute(query).fetchone()
        return int(row[0]) if row else 0

    def _surviving_sessions(self) -> list[str]:
        deadline = time.monotonic() + SECONDS_TO_DIE
        with closing(self.database.connect()) as connection:
            while (sessions := fetch_sessions(connection)) and time.monotonic() < deadline:
                time.sleep(0.01)
        return sessions


def fetch_sessions(connection: psycopg.Connection[Any]) -> list[str]:
    """Return what each session of ours is doing in this database."""
    rows = connection.execute(
        """
        SELECT state || ' ' || coalesce(wait_event, '') || ': ' || query
        FROM pg_stat_activity
        WHERE datname = current_database()
          AND application_name = 'dagster-tools'
        """
    ).fetchall()
    return [row[0] for row in rows]


def fetch_leftovers(connection: psycopg.Connection[Any]) -> list[str]:
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
          AND (database = (SELECT oid FROM pg_database WHERE datname = current_database()))
          AND pid IN (SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend')
        UNION ALL
        SELECT 'a prepared transaction is left: ' || gid
        FROM pg_prepared_xacts
        WHERE database = current_database()
        """
    ).fetchall()
    return [row[0] for row in rows]


def fetch_catalog_entries(
    connection: psycopg.Connection[Any], schemas: Iterable[str], *, identity: bool = True
) -> dict[str, str]:
    """Describe every relation of the schemas and what hangs on it, each by a name of its own.

    Args:
        identity: With OIDs and file nodes, which tell a table from another made just like it.
    """
    rows = connection.execute(_ENTRIES, [list(schemas), identity]).fetchall()
    entries = dict(rows)
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
                               'relfrozenxid', 'relminmxid', 'relam', 'relchecks']
           || CASE WHEN %s THEN jsonb_build_object('oid', oid, 'relfilenode', relfilenode)
                   ELSE '{}' END
           || jsonb_build_object(
                  'owner', pg_get_userbyid(relowner),
                  'view', CASE WHEN relkind IN ('v', 'm') THEN pg_get_viewdef(oid) END,
                  'index', CASE WHEN relkind = 'i' THEN pg_get_indexdef(oid) END)
    FROM relations AS r
    UNION ALL
    SELECT 'pg_class'::regclass, attrelid, attnum,
           to_jsonb(a) - ARRAY['attrelid', 'attcacheoff', 'atttypid', 'attmissingval']
           || jsonb_build_object('type', format_type(atttypid, atttypmod))
    FROM pg_attribute AS a
    WHERE attrelid IN (SELECT oid FROM relations)
      AND attnum > 0
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
    SELECT 'pg_publication_rel'::regclass, oid, 0, to_jsonb(pg_get_expr(prqual, prrelid))
    FROM pg_publication_rel
    WHERE prrelid IN (SELECT oid FROM relations)
    UNION ALL
    SELECT 'pg_statistic_ext'::regclass, oid, 0, to_jsonb(pg_get_statisticsobjdef(oid))
    FROM pg_statistic_ext
    WHERE stxrelid IN (SELECT oid FROM relations)
)
SELECT o.classid::text || ' ' || i.type || ' ' || i.identity,
       coalesce(o.described::text, 'null')
       || coalesce(' -- ' || d.description, '')
       || CASE WHEN o.objsubid = 0 AND o.classid = 'pg_class'::regclass
               THEN coalesce((SELECT string_agg(u.pubname, ',' ORDER BY u.pubname)
                              FROM pg_publication_tables AS u
                              WHERE (u.schemaname || '.' || u.tablename)::regclass = o.objid), '')
               ELSE '' END
FROM objects AS o
CROSS JOIN LATERAL pg_identify_object(o.classid, o.objid, o.objsubid) AS i
LEFT JOIN pg_description AS d
  ON (d.classoid, d.objoid, d.objsubid) = (o.classid, o.objid, o.objsubid)
ORDER BY 1
"""


def _exists(connection: psycopg.Connection[Any], table: Table) -> bool:
    row = connection.execute(
        "SELECT to_regclass(%s) IS NOT NULL", [table.identifier.as_string()]
    ).fetchone()
    return row is not None and bool(row[0])
