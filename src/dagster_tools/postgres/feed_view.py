"""The SharePoint feed at one moment: what is known of libraries, and what assets have of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from dagster_tools.postgres.connection import Connection
from dagster_tools.postgres.feed_rows import (
    DELIVERED_COLUMNS,
    ITEM_COLUMNS,
    Failure,
    FeedNames,
    FeedStatus,
    Row,
    columns,
)

__all__ = ["FeedView"]

AT_A_TIME = 2000
"""Rows fetched at a time where all of them are streamed."""


@dataclass(frozen=True, slots=True)
class FeedView:
    """The feed at one moment, within a transaction that reads."""

    connection: Connection
    names: FeedNames

    def library_states(self, drive_ids: Collection[str]) -> Mapping[str, Row]:
        """Return link, generation and time of the last full listing, by library."""
        rows = self._asked(
            sql.SQL("""
            SELECT drive_id, delta_link, generation, listed_at
            FROM {libraries}
            WHERE drive_id = ANY ($1)
            """),
            list(drive_ids),
        )
        return {drive_id: state for drive_id, *state in rows}

    def library(self, drive_id: str) -> Row | None:
        """Return drive, name and URL of a library; id, name and URL of its site."""
        rows = self._asked(
            sql.SQL("""
            SELECT drive_id, name, url, site_id, site_name, site_url
            FROM {libraries}
            WHERE drive_id = $1
            """),
            drive_id,
        )
        return next(iter(rows), None)

    def asset(self, asset_key: str) -> Row | None:
        """Return token, deliveries, clean, run and claim of an asset."""
        rows = self._asked(
            sql.SQL("""
            SELECT token::text, deliveries, clean, run_id, claim_id::text
            FROM {assets}
            WHERE asset_key = $1
            """),
            asset_key,
        )
        return next(iter(rows), None)

    def folders(self, drive_id: str) -> Iterable[Row]:
        """Return what is stored of a library's folders, also of those that were deleted."""
        return self._asked(
            sql.SQL("SELECT {columns} FROM {items} WHERE drive_id = $1 AND kind <> 'file'"),
            drive_id,
        )

    def delivered_drives(self, asset_key: str) -> Collection[str]:
        """Return the libraries an asset was delivered files of."""
        rows = self._asked(
            sql.SQL("SELECT DISTINCT drive_id FROM {delivered} WHERE asset_key = $1"), asset_key
        )
        return [drive_id for (drive_id,) in rows]

    def compared(
        self, asset_key: str, drive_id: str, folder_ids: Sequence[str]
    ) -> Iterator[tuple[Row | None, Row | None]]:
        """Yield the files in some folders, and those delivered to an asset, side by side."""
        statement = self.names.composed(
            sql.SQL("""
            SELECT {columns}, {delivered_columns}
            FROM (
                SELECT *
                FROM {items}
                WHERE drive_id = $2
                  AND kind = 'file'
                  AND parent_id = ANY ($3)
            ) AS item
            FULL JOIN (
                SELECT *
                FROM {delivered}
                WHERE asset_key = $1
                  AND drive_id = $2
            ) AS delivered ON delivered.id = item.id
            """),
            columns=columns(ITEM_COLUMNS, of="item"),
            delivered_columns=columns(DELIVERED_COLUMNS, of="delivered"),
        )
        width = len(ITEM_COLUMNS)
        with psycopg.RawServerCursor(self.connection, "sharepoint_compared") as cursor:
            cursor.itersize = AT_A_TIME
            cursor.execute(statement, [asset_key, drive_id, list(folder_ids)])
            for row in cursor:
                item, delivered = row[:width], row[width:]
                yield (
                    item if item[0] is not None else None,
                    delivered if delivered[1] is not None else None,
                )

    def quarantined(self, asset_key: str) -> Collection[tuple[str, str, str | None]]:
        """Return drive, id and version of the files that are left out until they change."""
        return [
            (drive_id, item_id, etag)
            for drive_id, item_id, etag in self._asked(
                sql.SQL(
                    "SELECT drive_id, id, etag FROM {failures} WHERE asset_key = $1 AND quarantined"
                ),
                asset_key,
            )
        ]

    def status(self) -> list[FeedStatus]:
        """Return all assets of the feed."""
        failures = [
            Failure(*row)
            for row in self._asked(
                sql.SQL("""
                SELECT asset_key, drive_id, id, etag, path, url, attempts, error, failed_at,
                       quarantined
                FROM {failures}
                ORDER BY path
                """)
            )
        ]
        return [
            FeedStatus(
                asset_key,
                watch,
                pending,
                delivered,
                deliveries,
                at,
                run_id,
                [each for each in failures if each.asset_key == asset_key],
            )
            for asset_key, watch, pending, delivered, deliveries, at, run_id in self._asked(
                sql.SQL("""
                SELECT a.asset_key, a.watch, a.pending,
                       (SELECT pg_catalog.count(*) FROM {delivered} AS d
                        WHERE d.asset_key = a.asset_key),
                       a.deliveries, a.delivered_at, a.run_id
                FROM {assets} AS a
                ORDER BY a.asset_key COLLATE "C"
                """)
            )
        ]

    def _asked(self, statement: sql.SQL, *values: object) -> list[Row]:
        composed = self.names.composed(statement)
        return list(self.connection.execute(composed, values).fetchall())
