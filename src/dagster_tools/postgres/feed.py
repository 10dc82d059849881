"""The SharePoint feed in PostgreSQL: the SQL of it, and nothing of SharePoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field, replace
from importlib import resources

import psycopg
from psycopg import sql
from psycopg.sql import Identifier

from dagster_tools.errors import ConfigurationError, DatabaseError
from dagster_tools.postgres.connection import (
    Connection,
    ConnectionSettings,
    connect,
    libpq_uri,
    transaction,
    translated,
)
from dagster_tools.postgres.feed_listing import Listing
from dagster_tools.postgres.feed_rows import (
    DELIVERED_COLUMNS,
    Delivery,
    Failure,
    FeedNames,
    FeedStatus,
    Row,
)
from dagster_tools.postgres.feed_view import FeedView
from dagster_tools.postgres.names import check_schema_name
from dagster_tools.postgres.privileges import Purpose, explained
from dagster_tools.postgres.tracking import FEED_TABLES, create_schema, lock_feed

__all__ = ["FeedTables"]

_DDL = resources.files(__package__).joinpath("feed.sql").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class FeedTables:
    """The feed's tables in one schema; made where they are missing.

    Each method opens a connection of its own, and holds none while anybody else is asked.
    """

    settings: ConnectionSettings
    schema: str
    _made: list[bool] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_schema_name("tracking schema", self.schema)

    @property
    def names(self) -> FeedNames:
        """What the tables are called."""
        return FeedNames(self.schema)

    # --- looking ----------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[FeedView]:
        """Look at one moment of the feed; what is yielded must be read within."""
        with self._connected("reading the SharePoint feed") as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            with connection.transaction():
                yield FeedView(connection, self.names)

    def address(self, site: str, library: str) -> Row | None:
        """Return the row of the library that words were found to mean."""
        with self._connected("reading the SharePoint feed") as connection:
            return connection.execute(
                self.names.composed(
                    sql.SQL("""
                    SELECT drive_id, name, url, site_id, site_name, site_url
                    FROM {addresses} JOIN {libraries} USING (drive_id)
                    WHERE site = $1
                      AND library = $2
                    """)
                ),
                [site, library],
            ).fetchone()

    def status(self) -> list[FeedStatus]:
        """Return all assets of the feed."""
        with self.reading() as view:
            return view.status()

    # --- taking in --------------------------------------------------------------------------

    def remember(self, site: str, library: str, row: Row) -> None:
        """Remember which library words mean: drive, name and URL; id, name and URL of the site."""
        with self._changing("recording a SharePoint library") as connection:
            connection.execute(
                self.names.composed(
                    sql.SQL("""
                    INSERT INTO {libraries} (drive_id, name, url, site_id, site_name, site_url)
                    VALUES ($1, $2, $3, $4, $5, $6)
                    ON CONFLICT (drive_id) DO UPDATE SET
                        name = excluded.name,
                        url = excluded.url,
                        site_id = excluded.site_id,
                        site_name = excluded.site_name,
                        site_url = excluded.site_url
                    """)
                ),
                list(row),
            )
            connection.execute(
                self.names.composed(
                    sql.SQL("""
                    INSERT INTO {addresses} (site, library, drive_id)
                    VALUES ($1, $2, $3)
                    ON CONFLICT (site, library) DO UPDATE SET drive_id = excluded.drive_id
                    """)
                ),
                [site, library, row[0]],
            )

    def forget(self, site: str, library: str) -> None:
        """Forget which library words mean."""
        with self._changing("forgetting a SharePoint library") as connection:
            connection.execute(
                self.names.composed(
                    sql.SQL("DELETE FROM {addresses} WHERE site = $1 AND library = $2")
                ),
                [site, library],
            )

    @contextmanager
    def taking_in(
        self, drive_id: str, generation: int, rows: Iterable[Row]
    ) -> Iterator[Listing | None]:
        """Begin to store an enumeration, all or nothing.

        None where the library is at another generation meanwhile, or gone: then it is void.

        Locks: the library's row, until the block ends.

        Args:
            rows: Of `ITEM_COLUMNS`, in the order they came; the last of an id counts.
        """
        with self._changing("taking in what changed in a SharePoint library") as connection:
            locked = connection.execute(
                self.names.composed(
                    sql.SQL(
                        "SELECT generation FROM {libraries} WHERE drive_id = $1 FOR NO KEY UPDATE"
                    )
                ),
                [drive_id],
            ).fetchone()
            if locked != (generation,):
                yield None
                return
            listing = Listing(connection, self.names, drive_id)
            listing.load(rows)
            yield listing

    def advance(self, drive_id: str, generation: int, link: str) -> bool:
        """Ask from this link next time, as nothing changed; tell whether that still holds."""
        with self._changing("recording that nothing changed in a SharePoint library") as connection:
            cursor = connection.execute(
                self.names.composed(
                    sql.SQL("""
                    UPDATE {libraries} SET delta_link = $3, taken_at = pg_catalog.now()
                    WHERE drive_id = $1
                      AND generation = $2
                    """)
                ),
                [drive_id, generation, link],
            )
        return cursor.rowcount > 0

    # --- delivering -------------------------------------------------------------------------

    def begin(self, asset_key: str, watch: str) -> None:
        """See to it that an asset has a row, without which nothing can be delivered to it."""
        with self._changing("recording a SharePoint asset") as connection:
            connection.execute(
                self.names.composed(
                    sql.SQL("""
                    INSERT INTO {assets} (asset_key, watch)
                    VALUES ($1, $2)
                    ON CONFLICT DO NOTHING
                    """)
                ),
                [asset_key, watch],
            )

    def deliver(self, connection: Connection, delivery: Delivery) -> None:
        """Record that an asset has what it was handed, in the transaction that stores it.

        Locks: the asset's row.

        Raises:
            ConfigurationError: It is stored in another database than the feed.
            DatabaseError: Another run delivered something meanwhile.
        """
        with (
            self._explained(connection, "deliver"),
            translated("recording what was delivered"),
        ):
            self._check_turn(connection, delivery)
            self._record(connection, delivery)

    def deliver_alone(self, delivery: Delivery) -> None:
        """Record the same in a transaction of its own."""
        with self._changing("recording what was delivered") as connection:
            self.deliver(connection, delivery)

    def settle(self, delivery: Delivery) -> None:
        """Record, in a transaction of its own, that there was nothing left to do."""
        with self._changing("recording that nothing is left to do") as connection:
            connection.execute(
                self.names.composed(
                    sql.SQL("""
                    UPDATE {assets} SET clean = $3, watch = $4, pending = 0
                    WHERE asset_key = $1
                      AND deliveries = $2
                    """)
                ),
                [delivery.asset_key, delivery.deliveries, delivery.clean, delivery.watch],
            )

    def note_pending(self, pending: Mapping[str, int]) -> None:
        """Record how many files are to be delivered to assets, for the shell to show."""
        with self._changing("recording what is left to do") as connection:
            connection.execute(
                self.names.composed(
                    sql.SQL("""
                    UPDATE {assets} AS a SET pending = given.pending
                    FROM ROWS FROM (
                        pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::bigint[])
                    ) AS given (asset_key, pending)
                    WHERE a.asset_key = given.asset_key
                      AND a.pending <> given.pending
                    """)
                ),
                [list(pending), list(pending.values())],
            )

    def recover(self, asset_key: str, run_id: str) -> None:
        """Record that this run tells of what another has stored that ended before it could."""
        with self._changing("recording what was delivered") as connection:
            connection.execute(
                self.names.composed(
                    sql.SQL("UPDATE {assets} SET run_id = $2 WHERE asset_key = $1")
                ),
                [asset_key, run_id],
            )

    def hand_over(self, claim_id: str, delivery: Delivery) -> None:
        """Remember what was handed to another IO manager, until it is known to be stored."""
        with self._changing("recording what was handed over") as connection:
            self._check_turn(connection, delivery)
            connection.execute(
                self.names.composed(
                    sql.SQL("""
                    UPDATE {assets} SET claim_id = $2, claim = $3, run_id = $4
                    WHERE asset_key = $1
                    """)
                ),
                [delivery.asset_key, claim_id, delivery.dumped(), delivery.run_id],
            )

    def confirm(self, asset_key: str, claim_id: str) -> None:
        """Record that what was handed over is stored; nothing where it is no longer the last."""
        with self._changing("recording what was delivered") as connection:
            delivery = self._handed_over(connection, asset_key, claim_id)
            if delivery is not None:
                self._record(connection, delivery)

    def doubt(self, asset_key: str, claim_id: str) -> None:
        """Record that what was handed over may be stored or not: it is to be delivered again.

        What was deleted since is delivered as deleted, then.
        """
        with self._changing("recording what may have been delivered") as connection:
            delivery = self._handed_over(connection, asset_key, claim_id)
            if delivery is None:
                return
            unsure = [(*row[:2], None, *row[3:]) for row in delivery.files]
            kept = replace(delivery, files=unsure, gone=(), clean=None)
            self._record(connection, kept)

    def _handed_over(
        self, connection: Connection, asset_key: str, claim_id: str
    ) -> Delivery | None:
        """Lock the asset's row; return what was handed over, if it was that."""
        row = connection.execute(
            self.names.composed(
                sql.SQL(
                    """
                    SELECT token::text, deliveries, run_id, claim
                    FROM {assets}
                    WHERE asset_key = $1
                      AND claim_id = $2
                    FOR NO KEY UPDATE
                    """
                )
            ),
            [asset_key, claim_id],
        ).fetchone()
        if row is None:
            return None
        token, deliveries, run_id, claim = row
        return Delivery(
            asset_key=asset_key, run_id=run_id, token=token, deliveries=deliveries, **claim
        )

    def fail(self, failures: Sequence[Failure]) -> None:
        """Record files that could not be read, in a transaction of its own."""
        with self._changing("recording files that could not be read") as connection:
            for each in failures:
                connection.execute(
                    self.names.composed(
                        sql.SQL("""
                        INSERT INTO {failures} AS f (
                            asset_key, drive_id, id, etag, path, url,
                            attempts, error, failed_at, quarantined
                        )
                        VALUES ($1, $2, $3, $4, $5, $6, 1, $7, pg_catalog.now(), $8)
                        ON CONFLICT (asset_key, drive_id, id) DO UPDATE SET
                            etag = excluded.etag,
                            path = excluded.path,
                            url = excluded.url,
                            attempts = f.attempts + 1,
                            error = excluded.error,
                            failed_at = excluded.failed_at,
                            quarantined = excluded.quarantined
                        """)
                    ),
                    [
                        each.asset_key,
                        each.drive_id,
                        each.id,
                        each.etag,
                        each.path,
                        each.url,
                        each.error,
                        each.quarantined,
                    ],
                )

    # --- by hand ----------------------------------------------------------------------------

    def reset_asset(self, asset_key: str) -> bool:
        """Let every file be delivered again to an asset; tell whether there is such an asset.

        What it has is not forgotten, so that files deleted meanwhile are delivered as deleted.
        """
        with self._changing("resetting a SharePoint asset") as connection:
            found = connection.execute(
                self.names.composed(
                    sql.SQL("""
                    UPDATE {assets} SET
                        clean = NULL, claim_id = NULL, claim = NULL, deliveries = deliveries + 1
                    WHERE asset_key = $1
                    """)
                ),
                [asset_key],
            )
            connection.execute(
                self.names.composed(
                    sql.SQL("UPDATE {delivered} SET etag = NULL WHERE asset_key = $1")
                ),
                [asset_key],
            )
            connection.execute(
                self.names.composed(sql.SQL("DELETE FROM {failures} WHERE asset_key = $1")),
                [asset_key],
            )
        return found.rowcount > 0

    def reset_library(self, url: str) -> bool:
        """Let everything in a library be listed anew; tell whether there is such a library."""
        with self._changing("resetting a SharePoint library") as connection:
            found = connection.execute(
                self.names.composed(
                    sql.SQL("""
                    UPDATE {libraries} SET delta_link = NULL, listed_at = NULL
                    WHERE url = $1
                       OR drive_id = $1
                    """)
                ),
                [url],
            )
        return found.rowcount > 0

    # --- how it is done ---------------------------------------------------------------------

    def _check_turn(self, connection: Connection, delivery: Delivery) -> None:
        exists = connection.execute(
            "SELECT pg_catalog.to_regclass($1) IS NOT NULL",
            [self.names.table("assets").as_string()],
        ).fetchone()
        row = None
        if exists == (True,):
            row = connection.execute(
                self.names.composed(
                    sql.SQL("""
                    SELECT token::text, deliveries
                    FROM {assets}
                    WHERE asset_key = $1
                    FOR NO KEY UPDATE
                    """)
                ),
                [delivery.asset_key],
            ).fetchone()
        if row is None or row[0] != delivery.token:
            raise ConfigurationError(
                f"The IO manager stores in database {connection.info.dbname!r}, and the SharePoint "
                f"feed is in another one ({self.settings}, schema {self.schema}). What is stored "
                "and what was delivered are one transaction: give SharePointResource and the "
                "IO manager the same connection. Nothing was written."
            )
        if row[1] != delivery.deliveries:
            raise DatabaseError(
                "Another run has delivered files to this asset since this one began. Nothing was "
                "written, and nothing is lost: run it again for what is left, if anything is.",
                step="recording what was delivered",
            )

    def _record(self, connection: Connection, delivery: Delivery) -> None:
        self._forget(connection, delivery.asset_key, [*delivery.files, *delivery.gone])
        self._insert_delivered(connection, delivery.asset_key, delivery.files)
        connection.execute(
            self.names.composed(
                sql.SQL("""
                UPDATE {assets} SET
                    deliveries = deliveries + 1,
                    delivered_at = pg_catalog.now(),
                    run_id = $2,
                    watch = $3,
                    clean = $4,
                    pending = 0,
                    claim_id = NULL,
                    claim = NULL
                WHERE asset_key = $1
                """)
            ),
            [delivery.asset_key, delivery.run_id, delivery.watch, delivery.clean],
        )

    def _forget(self, connection: Connection, key: str, named: Sequence[Sequence[object]]) -> None:
        """Forget what was known of files, and failures of those that are there no longer."""
        for table in ("delivered", "failures"):
            connection.execute(
                self.names.composed(
                    sql.SQL("""
                    DELETE FROM {table} AS t
                    USING ROWS FROM (
                        pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[])
                    ) AS named (drive_id, id)
                    WHERE t.asset_key = $1
                      AND t.drive_id = named.drive_id
                      AND t.id = named.id
                    """),
                    table=self.names.table(table),
                ),
                [key, [row[0] for row in named], [row[1] for row in named]],
            )
        connection.execute(
            self.names.composed(
                sql.SQL("""
                DELETE FROM {failures} AS f
                WHERE f.asset_key = $1
                  AND NOT EXISTS (
                      SELECT
                      FROM {items} AS i
                      WHERE i.drive_id = f.drive_id
                        AND i.id = f.id
                        AND i.kind = 'file'
                  )
                """)
            ),
            [key],
        )

    def _insert_delivered(
        self, connection: Connection, key: str, files: Sequence[Sequence[object]]
    ) -> None:
        columns = list(zip(*files, strict=True)) if files else [()] * len(DELIVERED_COLUMNS)
        connection.execute(
            self.names.composed(
                sql.SQL("""
                INSERT INTO {delivered} (
                    asset_key, drive_id, id, etag, path, url, size, created, modified, modified_by
                )
                SELECT $1, given.*
                FROM ROWS FROM (
                    pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[]),
                    pg_catalog.unnest($4::text[]), pg_catalog.unnest($5::text[]),
                    pg_catalog.unnest($6::text[]), pg_catalog.unnest($7::bigint[]),
                    pg_catalog.unnest($8::timestamptz[]), pg_catalog.unnest($9::timestamptz[]),
                    pg_catalog.unnest($10::text[])
                ) AS given
                """)
            ),
            [key, *map(list, columns)],
        )

    @contextmanager
    def _connected(self, step: str, *purposes: Purpose) -> Iterator[Connection]:
        with (
            closing(connect(self.settings)) as connection,
            self._explained(connection, "look at the feed", *purposes),
            translated(step),
        ):
            if not self._made:
                self._make(connection)
                self._made.append(True)
            yield connection

    @contextmanager
    def _changing(self, step: str) -> Iterator[Connection]:
        with (
            self._connected(step, "keep the feed") as connection,
            transaction(connection, long=True),
        ):
            yield connection

    def _explained(
        self, connection: Connection, *purposes: Purpose
    ) -> AbstractContextManager[None]:
        return explained(libpq_uri(connection), None, self.schema, *purposes)

    def _make(self, connection: Connection) -> None:
        """Create the tables where they are missing; one of many starters does it."""
        if self._exist(connection):
            return
        create_schema(connection, self.schema)
        with (
            self._explained(connection, "keep the feed"),
            translated("creating the tables of the SharePoint feed"),
            transaction(connection),
        ):
            lock_feed(connection, self.schema)
            if not self._exist(connection):
                # The simple protocol takes several statements at once, the extended does not.
                statement = sql.SQL(_DDL).format(schema=Identifier(self.schema))
                connection.cursor().execute(statement, prepare=False)

    def _exist(self, connection: Connection) -> bool:
        row = connection.execute(
            """
            SELECT pg_catalog.count(*)
            FROM pg_catalog.pg_class AS c
            JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
            WHERE n.nspname = $1
              AND c.relname = ANY ($2)
            """,
            [self.schema, [f"sharepoint_{name}" for name in FEED_TABLES]],
        ).fetchone()
        return row == (len(FEED_TABLES),)
