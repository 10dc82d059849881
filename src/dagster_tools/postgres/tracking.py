"""Who wrote what: the tracking tables, and the locks that make writers take turns."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from psycopg import errors as sql_errors
from psycopg import sql
from psycopg.sql import Identifier

from dagster_tools.errors import ConfigurationError, DatabaseError
from dagster_tools.postgres.connection import Asked, Connection, transaction, translated
from dagster_tools.postgres.ddl import MATERIALIZATION_SETTING, compose_create_schema
from dagster_tools.postgres.names import MATERIALIZATION_ID, Table, check_schema_name, check_text

__all__ = [
    "FEED_TABLES",
    "Counts",
    "Lineage",
    "Loaded",
    "Partition",
    "Stored",
    "Tracking",
    "create_schema",
    "lock_feed",
    "lock_grants",
    "lock_table",
    "lock_upserts",
    "try_lock_builders",
]

TABLES = frozenset({"assets", "materializations", "leftovers", "watermarks"})
FEED_TABLES = ("libraries", "addresses", "items", "assets", "delivered", "failures")
"""Those of `feed`, which lie beside them as sharepoint_libraries and so on."""
_DDL = resources.files(__package__).joinpath("tracking.sql").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Lineage:
    """What a write is for: one asset, some of its partitions, one run.

    Args:
        asset_key: As Dagster escapes it: `a/b`.
        partition_keys: The partitions this write replaces; `(None,)` for an unpartitioned asset.
    """

    asset_key: str
    run_id: str
    partition_keys: tuple[str | None, ...] = (None,)

    def __post_init__(self) -> None:
        check_text("asset key", self.asset_key)
        for key in self.partition_keys:
            check_text("partition key", key or "")

    @property
    def partitioned(self) -> bool:
        """Whether the asset has partitions at all."""
        return self.partition_keys != (None,)


@dataclass(frozen=True, slots=True)
class Partition:
    """One asset and partition, locked by the transaction that writes it.

    Args:
        asset_id: Its row in the tracking tables.
        materialization_id: The number the new rows bear.
    """

    key: str | None
    asset_id: int
    materialization_id: int


@dataclass(frozen=True, slots=True)
class Counts:
    """What a write did to the rows of one partition."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    unchanged: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.inserted + other.inserted,
            self.updated + other.updated,
            self.deleted + other.deleted,
            self.unchanged + other.unchanged,
        )


@dataclass(frozen=True, slots=True)
class Stored:
    """Where one partition's rows are, and which materializations wrote them.

    Args:
        filled: Whether the last of them had rows; None where it ran the asset's own statements.
        rows: What they wrote and did not delete. A user's own statements may have changed that.
    """

    asset_id: int
    partition_key: str | None
    table: Table
    materialization_ids: tuple[int, ...]
    filled: bool | None
    rows: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """How far the batches of one asset and partition have come.

    Args:
        last: The last materialization, None before the first.
        high_watermark: As JSON text; None where there is none.
        finished: Whether the run that wrote it came to the end of its source.
        table: Where the rows are.
    """

    last: int | None = None
    high_watermark: str | None = None
    finished: bool = True
    table: Table | None = None

    def is_as_far_as(self, other: Loaded) -> bool:
        """Whether nothing was committed between the two, whoever has found its source's end."""
        return (self.last, self.high_watermark) == (other.last, other.high_watermark)


@dataclass(frozen=True, slots=True)
class Tracking:
    """The tracking tables in one schema."""

    schema: str

    def __post_init__(self) -> None:
        check_schema_name("tracking schema", self.schema)

    def check_target(self, table: Table) -> None:
        """Refuse to keep an asset in one of the tracking tables, or of those of the feed."""
        says = "which run wrote which rows" if table.name in TABLES else None
        if table.name in {f"sharepoint_{name}" for name in FEED_TABLES}:
            says = "which SharePoint files were delivered"
        if table.schema == self.schema and says is not None:
            raise ConfigurationError(
                f"{table} is one of the tables that say {says}. Point the "
                "asset's schema or table metadata elsewhere, or the IO manager's tracking_schema."
            )

    @property
    def assets(self) -> Identifier:
        """The table of assets and partitions."""
        return Identifier(self.schema, "assets")

    @property
    def materializations(self) -> Identifier:
        """The table of writes."""
        return Identifier(self.schema, "materializations")

    @property
    def leftovers(self) -> Identifier:
        """Where assets moved to another table may have left rows."""
        return Identifier(self.schema, "leftovers")

    @property
    def watermarks(self) -> Identifier:
        """How far batches have come."""
        return Identifier(self.schema, "watermarks")

    def create(self, connection: Connection) -> None:
        """Create the tracking tables where they are missing; one of many starters does it."""
        create_schema(connection, self.schema)
        statement = sql.SQL(_DDL).format(schema=Identifier(self.schema))
        with translated("creating the tracking tables"), transaction(connection):
            _lock(connection, "tracking", self.schema)
            if not self._exists(connection):
                # The simple protocol takes several statements at once, the extended one does not.
                connection.cursor().execute(statement, prepare=False)

    def lock_partitions(
        self, connection: Connection, table: Table, lineage: Lineage
    ) -> list[Partition]:
        """Wait for other writers of the same partitions, and number the materialization of each.

        The lock is the partition's row in `assets`: ten thousand partitions are ten
        thousand row locks, which PostgreSQL keeps on disk, not in its lock table.
        All writers insert and lock in the order of the keys, so none waits in a circle.
        """
        keys = sorted(lineage.partition_keys, key=lambda key: key or "")
        with translated(f"recording the materialization in {self.schema}"):
            connection.execute(
                sql.SQL(
                    """
                    INSERT INTO {} (asset_key, partition_key, schema, "table")
                    SELECT $1, key, $3, $4
                    FROM pg_catalog.unnest($2::text[]) AS key
                    ON CONFLICT DO NOTHING
                    """
                ).format(self.assets),
                [lineage.asset_key, keys, table.schema, table.name],
            )
            locked = connection.execute(
                sql.SQL(
                    """
                    SELECT a.partition_key, a.id, a.schema, a."table"
                    FROM {} AS a
                    WHERE a.asset_key = $1
                      AND (a.partition_key = ANY ($2::text[])
                           OR $3 AND a.partition_key IS NULL)
                    ORDER BY a.partition_key COLLATE "C" NULLS FIRST
                    FOR NO KEY UPDATE
                    """
                ).format(self.assets),
                [lineage.asset_key, [key for key in keys if key is not None], None in keys],
            ).fetchall()
            moved = [row[1] for row in locked if (row[2], row[3]) != (table.schema, table.name)]
            if moved:
                self._move(connection, moved, table)
            numbers = connection.execute(
                sql.SQL(
                    """
                    SELECT pg_catalog.nextval(pg_catalog.pg_get_serial_sequence($1, 'id'))::integer
                    FROM pg_catalog.generate_series(1, $2)
                    """
                ),
                [self.materializations.as_string(), len(locked)],
            ).fetchall()
        numbered = {
            row[0]: (row[1], number) for row, (number,) in zip(locked, numbers, strict=True)
        }
        return [Partition(key, *numbered[key]) for key in lineage.partition_keys]

    def _move(self, connection: Connection, asset_ids: Sequence[int], table: Table) -> None:
        """Note that partitions live in another table now, and where they may have left rows.

        In the table they return to, what they left is replaced like any earlier rows.
        """
        place = [table.schema, table.name]
        connection.execute(
            sql.SQL(
                """
                INSERT INTO {} (asset_id, schema, "table")
                SELECT id, schema, "table"
                FROM {}
                WHERE id = ANY ($1)
                ON CONFLICT DO NOTHING
                """
            ).format(self.leftovers, self.assets),
            [list(asset_ids)],
        )
        connection.execute(
            sql.SQL(
                'DELETE FROM {} WHERE asset_id = ANY ($1) AND schema = $2 AND "table" = $3'
            ).format(self.leftovers),
            [list(asset_ids), *place],
        )
        connection.execute(
            sql.SQL('UPDATE {} SET schema = $2, "table" = $3 WHERE id = ANY ($1)').format(
                self.assets
            ),
            [list(asset_ids), *place],
        )

    def set_materialization(self, connection: Connection, partition: Partition) -> None:
        """Let rows that triggers or a user's statements insert bear this materialization."""
        connection.execute(
            "SELECT pg_catalog.set_config($1, $2, true)",
            [MATERIALIZATION_SETTING, str(partition.materialization_id)],
        )

    def fetch_earlier(
        self, connection: Connection, partitions: Sequence[Partition]
    ) -> dict[int, str | None]:
        """Return the earlier materializations of these partitions, each with its partition.

        The newest first: most rows bear it, and `= ANY` compares in this order.
        """
        keys = {partition.asset_id: partition.key for partition in partitions}
        with translated(f"reading {self.schema}.materializations"):
            rows = connection.execute(
                sql.SQL(
                    "SELECT id, asset_id FROM {} WHERE asset_id = ANY ($1) ORDER BY id DESC"
                ).format(self.materializations),
                [list(keys)],
            ).fetchall()
        return {row[0]: keys[row[1]] for row in rows}

    def has_earlier(self, connection: Connection, partitions: Sequence[Partition]) -> bool:
        """Whether any of these partitions was materialized before."""
        with translated(f"reading {self.schema}.materializations"):
            row = connection.execute(
                sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE asset_id = ANY ($1))").format(
                    self.materializations
                ),
                [[partition.asset_id for partition in partitions]],
            ).fetchone()
        return row is not None and bool(row[0])

    def has_run(self, connection: Connection, partitions: Sequence[Partition], run_id: str) -> bool:
        """Whether this run has materialized the partitions: a COMMIT whose reply was lost."""
        with translated(f"reading {self.schema}.materializations"):
            row = connection.execute(
                sql.SQL(
                    "SELECT EXISTS (SELECT FROM {} WHERE asset_id = ANY ($1) AND run_id = $2)"
                ).format(self.materializations),
                [[partition.asset_id for partition in partitions], run_id],
            ).fetchone()
        return row is not None and bool(row[0])

    def step_over_strays(
        self, connection: Connection, table: Table, partitions: Sequence[Partition]
    ) -> bool:
        """Skip numbers that rows of the table bear already; tell whether there were any.

        Rows restored without their tracking tables, or copied from another database, bear
        numbers nobody knows here. Given out again, they would make those rows this asset's.
        """
        lowest = min(partition.materialization_id for partition in partitions)
        with translated(f"looking for rows of {table} from another database"):
            row = connection.execute(
                sql.SQL(
                    """
                    SELECT pg_catalog.max({id})
                    FROM {table} AS t
                    WHERE {id} >= $1
                      AND NOT EXISTS (SELECT FROM {known} AS m WHERE m.id = t.{id})
                    """
                ).format(
                    id=Identifier(MATERIALIZATION_ID),
                    table=table.identifier,
                    known=self.materializations,
                ),
                [lowest],
            ).fetchone()
            highest = row[0] if row is not None else None
            if highest is not None:
                connection.execute(
                    "SELECT pg_catalog.setval(pg_catalog.pg_get_serial_sequence($1, 'id'), $2)",
                    [self.materializations.as_string(), highest],
                )
        return highest is not None

    def fetch_numbers(self, connection: Connection, lineage: Lineage) -> list[int]:
        """Return the materializations there are of these partitions, without locking them."""
        with translated(f"reading {self.schema}.materializations"):
            rows = connection.execute(
                sql.SQL(
                    """
                    SELECT m.id
                    FROM {} AS m
                    JOIN {} AS a ON a.id = m.asset_id
                    WHERE a.asset_key = $1
                      AND (a.partition_key = ANY ($2::text[])
                           OR $3 AND a.partition_key IS NULL)
                    """
                ).format(self.materializations, self.assets),
                [
                    lineage.asset_key,
                    [key for key in lineage.partition_keys if key is not None],
                    not lineage.partitioned,
                ],
            ).fetchall()
        return [row[0] for row in rows]

    def record(
        self,
        connection: Connection,
        lineage: Lineage,
        partitions: Sequence[Partition],
        counts: Mapping[str | None, Counts] | None,
    ) -> None:
        """Record one materialization for each partition, with what it did to the rows.

        Args:
            counts: By partition; None where the asset's own statements did who knows what.
        """
        done: list[list[int]] | list[None] = [None] * 4
        if counts is not None:
            by_partition = [counts.get(partition.key, Counts()) for partition in partitions]
            done = [
                [count.inserted for count in by_partition],
                [count.updated for count in by_partition],
                [count.deleted for count in by_partition],
                [count.unchanged for count in by_partition],
            ]
        with translated(f"recording the materialization in {self.schema}"):
            connection.execute(
                sql.SQL(
                    """
                    INSERT INTO {} (
                        id, run_id, asset_id,
                        rows_inserted, rows_updated, rows_deleted, rows_unchanged
                    )
                    SELECT id, $1, asset_id, inserted, updated, deleted, unchanged
                    FROM ROWS FROM (
                        pg_catalog.unnest($2::integer[]),
                        pg_catalog.unnest($3::integer[]),
                        pg_catalog.unnest($4::bigint[]),
                        pg_catalog.unnest($5::bigint[]),
                        pg_catalog.unnest($6::bigint[]),
                        pg_catalog.unnest($7::bigint[])
                    ) AS written (id, asset_id, inserted, updated, deleted, unchanged)
                    """
                ).format(self.materializations),
                [
                    lineage.run_id,
                    [partition.materialization_id for partition in partitions],
                    [partition.asset_id for partition in partitions],
                    *done,
                ],
            )

    def fetch_stored(
        self, connection: Asked, asset_key: str, partition_keys: Sequence[str] | None
    ) -> list[Stored]:
        """Return where an asset's partitions are, and what wrote them.

        Args:
            partition_keys: Those asked for; None for an unpartitioned asset, or for all
                partitions of one that has them. An asset that became partitioned, or
                stopped being, has both forms: the one materialized last is meant.
        """
        with translated(f"reading {self.schema}.assets"):
            rows = connection.execute(
                sql.SQL(
                    """
                    SELECT a.id, a.partition_key, a.schema, a."table",
                           pg_catalog.array_agg(m.id ORDER BY m.id),
                           (pg_catalog.array_agg(
                               m.rows_inserted + m.rows_updated + m.rows_unchanged > 0
                               ORDER BY m.id DESC
                           ))[1],
                           coalesce(pg_catalog.sum(m.rows_inserted - m.rows_deleted), 0)::bigint
                    FROM {} AS a
                    JOIN {} AS m ON m.asset_id = a.id
                    WHERE a.asset_key = $1
                      AND ($2::text[] IS NULL OR a.partition_key = ANY ($2))
                    GROUP BY a.id
                    ORDER BY a.partition_key COLLATE "C"
                    """
                ).format(self.assets, self.materializations),
                [asset_key, None if partition_keys is None else list(partition_keys)],
            ).fetchall()
        stored = [
            Stored(asset_id, key, Table(schema, name), tuple(ids), filled, left)
            for asset_id, key, schema, name, ids, filled, left in rows
        ]
        if partition_keys is not None or not stored:
            return stored
        newest = max(stored, key=lambda item: item.materialization_ids[-1])
        unpartitioned = newest.partition_key is None
        return [item for item in stored if (item.partition_key is None) == unpartitioned]

    def fetch_loaded(self, connection: Connection, lineages: Sequence[Lineage]) -> list[Loaded]:
        """Return how far the batches of assets, each of one partition, have come at one moment.

        Args:
            lineages: All of the same partition.
        """
        keys = [lineage.asset_key for lineage in lineages]
        with translated(f"reading {self.schema}.watermarks"):
            rows = connection.execute(
                sql.SQL(
                    """
                    SELECT a.asset_key,
                           (SELECT pg_catalog.max(id) FROM {} WHERE asset_id = a.id),
                           w.high_watermark::text,
                           coalesce(w.finished, true),
                           a.schema,
                           a."table"
                    FROM {} AS a
                    LEFT JOIN {} AS w ON w.asset_id = a.id
                    WHERE a.asset_key = ANY ($1)
                      AND a.partition_key IS NOT DISTINCT FROM $2
                    """
                ).format(self.materializations, self.assets, self.watermarks),
                [keys, lineages[0].partition_keys[0]],
            ).fetchall()
        found = {
            key: Loaded(last, mark, finished, Table(schema, name))
            for key, last, mark, finished, schema, name in rows
        }
        return [found.get(key, Loaded()) for key in keys]

    def record_watermark(
        self, connection: Connection, lineage: Lineage, mark: str | None, *, finished: bool
    ) -> bool:
        """Record how far batches have come; tell whether there is such an asset.

        Args:
            mark: As JSON text.
            finished: Whether the source was read to its end.
        """
        with translated(f"recording the high watermark in {self.schema}"):
            cursor = connection.execute(
                sql.SQL(
                    """
                    INSERT INTO {} (asset_id, high_watermark, finished)
                    SELECT id, $3, $4
                    FROM {}
                    WHERE asset_key = $1
                      AND partition_key IS NOT DISTINCT FROM $2
                    ON CONFLICT (asset_id) DO UPDATE SET
                        high_watermark = excluded.high_watermark,
                        finished = excluded.finished
                    """
                ).format(self.watermarks, self.assets),
                [lineage.asset_key, lineage.partition_keys[0], mark, finished],
            )
        return cursor.rowcount > 0

    def record_finished(self, connection: Connection, lineage: Lineage, last: int | None) -> None:
        """Note that a source is at its end, unless another run has gone on with it since.

        Args:
            last: The materialization of the last batch.
        """
        with translated(f"recording the high watermark in {self.schema}"):
            connection.execute(
                sql.SQL(
                    """
                    UPDATE {} AS w SET finished = true
                    FROM {} AS a
                    WHERE a.id = w.asset_id
                      AND a.asset_key = $1
                      AND a.partition_key IS NOT DISTINCT FROM $2
                      AND $3 = (SELECT pg_catalog.max(id) FROM {} WHERE asset_id = a.id)
                    """
                ).format(self.watermarks, self.assets, self.materializations),
                [lineage.asset_key, lineage.partition_keys[0], last],
            )

    def has_other_owners(
        self, connection: Asked, table: Table, asset_key: str, asset_ids: Sequence[int] = ()
    ) -> bool:
        """Whether anything but these partitions of the asset may have rows in the table.

        Rows left behind by what was moved to another table count as well.

        Args:
            asset_ids: Rows of `assets` that do not count; without them, the asset's
                unpartitioned form does not.
        """
        with translated(f"reading {self.schema}.assets"):
            row = connection.execute(
                sql.SQL(
                    """
                    SELECT EXISTS (
                        SELECT
                        FROM {} AS a
                        WHERE a.schema = $1
                          AND a."table" = $2
                          AND NOT (a.asset_key = $4 AND a.partition_key IS NULL AND $3 = '{{}}')
                          AND NOT EXISTS (
                              SELECT
                              FROM pg_catalog.unnest($3::integer[]) AS own (id)
                              WHERE own.id = a.id
                          )
                    ) OR EXISTS (
                        SELECT
                        FROM {}
                        WHERE schema = $1
                          AND "table" = $2
                    )
                    """
                ).format(self.assets, self.leftovers),
                [table.schema, table.name, list(asset_ids), asset_key],
            ).fetchone()
        return row is not None and bool(row[0])

    def _exists(self, connection: Connection) -> bool:
        row = connection.execute(
            """
            SELECT pg_catalog.count(*)
            FROM pg_catalog.pg_class AS c
            JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
            WHERE n.nspname = $1
              AND c.relname = ANY ($2)
            """,
            [self.schema, list(TABLES)],
        ).fetchone()
        return row is not None and int(row[0]) == len(TABLES)


def create_schema(connection: Connection, schema: str) -> None:
    """Create a schema where it is missing, in a transaction of its own.

    `CREATE SCHEMA IF NOT EXISTS` asks for CREATE on the database even where the schema
    exists, and two of them at once fail on pg_namespace; so: lock, look, create.
    """
    step = f"creating schema {schema!r}"
    with translated(step), transaction(connection):
        _lock(connection, "schema", schema)
        found = connection.execute(
            "SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1", [schema]
        ).fetchone()
        if found is not None:
            return
        try:
            with connection.transaction():
                connection.execute(compose_create_schema(schema))
        except sql_errors.InsufficientPrivilege:
            raise DatabaseError(
                f"Schema {schema!r} does not exist and this role may not create it. Ask an "
                f"administrator for: CREATE SCHEMA {sql.Identifier(schema).as_string()} "
                "AUTHORIZATION <role>, or for GRANT CREATE ON DATABASE.",
                sqlstate="42501",
                step=step,
            ) from None


def lock_table(connection: Connection, table: Table, *, first_write: bool) -> None:
    """Hold the table's name until the transaction ends.

    Writers of different partitions hold it together; the first write of a table, which
    creates it, holds it alone.
    """
    _lock(connection, "table", table.schema, table.name, shared=not first_write)


def lock_grants(connection: Connection) -> None:
    """Take turns with all other writers that are about to grant, until the transaction ends."""
    _lock(connection, "grants")


def lock_feed(connection: Connection, schema: str) -> None:
    """Take turns with all others that are about to create the SharePoint feed's tables."""
    _lock(connection, "sharepoint feed", schema)


def lock_upserts(connection: Connection, table: Table) -> None:
    """Take turns with all other upserts of the table that met one, until the transaction ends."""
    _lock(connection, "upserts", table.schema, table.name)


def try_lock_builders(connection: Connection, table: Table) -> bool:
    """Be the only one to build an index of the table, until the transaction ends; tell if so.

    Never waits: a session that does holds a snapshot, for whose end the builder would wait.
    """
    # Without parameters: what holds them would keep a snapshot to the end of the transaction.
    number = sql.Literal(_lock_number("builders", table.schema, table.name))
    row = connection.execute(
        sql.SQL("SELECT pg_catalog.pg_try_advisory_xact_lock({})").format(number)
    ).fetchone()
    return row is not None and bool(row[0])


def _lock(connection: Connection, *what: str, shared: bool = False) -> None:
    function = "pg_advisory_xact_lock_shared" if shared else "pg_advisory_xact_lock"
    connection.execute(
        sql.SQL("SELECT pg_catalog.{}($1)").format(Identifier(function)), [_lock_number(*what)]
    )


def _lock_number(*what: str) -> int:
    digest = hashlib.blake2b("\0".join(("dagster_tools", *what)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
