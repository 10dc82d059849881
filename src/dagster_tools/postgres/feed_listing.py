"""An enumeration of a SharePoint library, brought to the server and taken for what it holds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from psycopg import sql
from psycopg.sql import Identifier

from dagster_tools.postgres.connection import Connection
from dagster_tools.postgres.feed_rows import FeedNames, Row

__all__ = ["Listing"]

LISTED = Identifier("pg_temp", "sharepoint_listed")


@dataclass(frozen=True, slots=True)
class Listing:
    """An enumeration of a library that has ended, in the transaction that stores it."""

    connection: Connection
    names: FeedNames
    drive_id: str

    def load(self, rows: Iterable[Row]) -> None:
        """Bring the rows to the server; of those with the same id the last one stays."""
        self._do(
            sql.SQL("""
            CREATE TEMPORARY TABLE sharepoint_listed (
                LIKE {items}, place bigint GENERATED ALWAYS AS IDENTITY
            ) ON COMMIT DROP
            """)
        )
        self._do(sql.SQL("ALTER TABLE pg_temp.sharepoint_listed DROP COLUMN drive_id"))
        statement = self.names.composed(
            sql.SQL("COPY {listed} ({columns}) FROM STDIN"),
            listed=LISTED,
        )
        with self.connection.cursor().copy(statement) as copy:
            for row in rows:
                copy.write_row(row)
        self._do(
            sql.SQL("""
            DELETE FROM {listed} AS earlier
            USING {listed} AS later
            WHERE later.id = earlier.id
              AND later.place > earlier.place
            """)
        )
        self._do(sql.SQL("CREATE INDEX ON {listed} (id)"))
        self._do(sql.SQL("ANALYZE {listed}"))

    def folders(self) -> Iterable[Row]:
        """Return what is stored of folders, also of those that were deleted."""
        return self._asked(
            sql.SQL("SELECT {columns} FROM {items} WHERE drive_id = $1 AND kind <> 'file'"),
            self.drive_id,
        )

    def listed_folders(self) -> Iterable[Row]:
        """Return the listed folders, and what is listed as deleted."""
        return self._asked(sql.SQL("SELECT {columns} FROM {listed} WHERE kind <> 'file'"))

    def listed_parents(self) -> Iterable[str]:
        """Return the folders in which something is listed."""
        rows = self._asked(
            sql.SQL("SELECT DISTINCT parent_id FROM {listed} WHERE parent_id IS NOT NULL")
        )
        return [parent_id for (parent_id,) in rows]

    def listed_children(self, folder_ids: Collection[str]) -> Mapping[str, int]:
        """Return how many items are listed in each of some folders."""
        rows = self._asked(
            sql.SQL("""
            SELECT parent_id, pg_catalog.count(*)
            FROM {listed}
            WHERE parent_id = ANY ($1)
            GROUP BY parent_id
            """),
            list(folder_ids),
        )
        return {folder_id: count for folder_id, count in rows}  # noqa: C416  # typed

    def displaced(self) -> bool:
        """Tell whether a listed item has the place of another, listed or not."""
        rows = self._asked(
            sql.SQL("""
            SELECT EXISTS (
                SELECT
                FROM {listed}
                WHERE parent_id IS NOT NULL
                GROUP BY parent_id, pg_catalog.lower(name)
                HAVING pg_catalog.count(*) > 1
            ) OR EXISTS (
                SELECT
                FROM {listed} AS l
                JOIN {items} AS i
                    ON i.parent_id = l.parent_id
                   AND pg_catalog.lower(i.name) = pg_catalog.lower(l.name)
                WHERE i.drive_id = $1
                  AND NOT EXISTS (SELECT FROM {listed} AS own WHERE own.id = i.id)
            )
            """),
            self.drive_id,
        )
        return bool(rows[0][0])

    def apply(self, *, full: bool, link: str) -> None:
        """Let the enumeration be what the library holds, and ask from this link next time."""
        if full:
            self._drop_displaced()
        gone = sql.SQL("l.kind = 'deleted' OR l.id IS NULL" if full else "l.kind = 'deleted'")
        changed = self._drop_files(gone) + self._bury_folders(gone) + self._upsert_listed()
        self._do(
            sql.SQL("""
            UPDATE {libraries} SET
                delta_link = $2,
                generation = generation + $3,
                taken_at = pg_catalog.now(),
                listed_at = CASE WHEN $4 THEN pg_catalog.now() ELSE listed_at END
            WHERE drive_id = $1
            """),
            self.drive_id,
            link,
            min(changed, 1),
            full,
        )

    def _drop_files(self, gone: sql.SQL) -> int:
        return self._do(
            sql.SQL("""
            DELETE FROM {items} AS i
            USING {items} AS same LEFT JOIN {listed} AS l ON l.id = same.id
            WHERE i.drive_id = $1
              AND i.kind = 'file'
              AND same.drive_id = i.drive_id
              AND same.id = i.id
              AND ({gone})
            """),
            self.drive_id,
            gone=gone,
        )

    def _bury_folders(self, gone: sql.SQL) -> int:
        """Leave nothing of folders but that there were some: their return is a restoration."""
        return self._do(
            sql.SQL("""
            UPDATE {items} AS i SET
                kind = 'deleted', parent_id = NULL, name = NULL, etag = NULL, ctag = NULL,
                size = NULL, created = NULL, modified = NULL, modified_by = NULL, url = NULL,
                child_count = NULL
            FROM {items} AS same LEFT JOIN {listed} AS l ON l.id = same.id
            WHERE i.drive_id = $1
              AND i.kind IN ('folder', 'opaque')
              AND same.drive_id = i.drive_id
              AND same.id = i.id
              AND ({gone})
            """),
            self.drive_id,
            gone=gone,
        )

    def _upsert_listed(self) -> int:
        return self._do(
            sql.SQL("""
            INSERT INTO {items} AS i (drive_id, {columns})
            SELECT $1, {columns}
            FROM {listed}
            WHERE kind <> 'deleted'
            ON CONFLICT (drive_id, id) DO UPDATE SET
                kind = excluded.kind,
                parent_id = excluded.parent_id,
                name = excluded.name,
                etag = excluded.etag,
                ctag = excluded.ctag,
                size = excluded.size,
                created = excluded.created,
                modified = excluded.modified,
                modified_by = excluded.modified_by,
                url = excluded.url,
                child_count = excluded.child_count
            WHERE i IS DISTINCT FROM excluded
            """),
            self.drive_id,
        )

    def _drop_displaced(self) -> None:
        """Drop listed items whose place one has that was listed later: they were deleted since."""
        self._do(
            sql.SQL("""
            DELETE FROM {listed} AS earlier
            USING {listed} AS later
            WHERE later.parent_id = earlier.parent_id
              AND pg_catalog.lower(later.name) = pg_catalog.lower(earlier.name)
              AND later.place > earlier.place
            """)
        )

    def _asked(self, statement: sql.SQL, *values: object) -> list[Row]:
        composed = self.names.composed(statement, listed=LISTED)
        return list(self.connection.execute(composed, values).fetchall())

    def _do(self, statement: sql.SQL, *values: object, **more: sql.Composable) -> int:
        composed = self.names.composed(statement, listed=LISTED, **more)
        return self.connection.execute(composed, values).rowcount
