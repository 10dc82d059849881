"""What the SharePoint feed's tables are called, and the rows that go into them and come out.

Rows of items are what `dagster_tools.sharepoint.feed.ITEM_FIELDS` says, which are the columns of
`sharepoint_items` but the first.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from psycopg import sql
from psycopg.sql import Composed, Identifier

from dagster_tools.postgres.tracking import FEED_TABLES

__all__ = [
    "DELIVERED_COLUMNS",
    "ITEM_COLUMNS",
    "Delivery",
    "Failure",
    "FeedNames",
    "FeedStatus",
    "Row",
]

Row: TypeAlias = Sequence[Any]

ITEM_COLUMNS = (
    "id",
    "kind",
    "parent_id",
    "name",
    "etag",
    "ctag",
    "size",
    "created",
    "modified",
    "modified_by",
    "url",
    "child_count",
)
DELIVERED_COLUMNS = (
    "drive_id",
    "id",
    "etag",
    "path",
    "url",
    "size",
    "created",
    "modified",
    "modified_by",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What an asset has once it has stored what it was handed.

    Args:
        token: The asset's, when the work was found; with `deliveries` the state it is based on.
            None and 0 where there was none.
        watch: What it watches, in words.
        files: Rows of `DELIVERED_COLUMNS`.
        gone: Drive and id of files it has no longer.
        clean: The signature at which nothing is left to do; None where something is.
    """

    asset_key: str
    run_id: str
    token: str
    deliveries: int
    watch: str
    files: Sequence[Row]
    gone: Sequence[tuple[str, str]]
    clean: str | None

    def dumped(self) -> str:
        """Return the part that is kept of it as JSON while it is not known to be stored."""
        kept = {"files": self.files, "gone": self.gone, "clean": self.clean, "watch": self.watch}
        return json.dumps(kept, default=datetime.isoformat)


@dataclass(frozen=True, slots=True)
class Failure:
    """A file that an asset failed to read.

    Args:
        quarantined: It is left out until it changes; otherwise the run failed.
    """

    asset_key: str
    drive_id: str
    id: str
    etag: str | None
    path: str
    url: str
    attempts: int
    error: str
    failed_at: datetime | None
    quarantined: bool


@dataclass(frozen=True, slots=True)
class FeedStatus:
    """An asset of the feed, as the shell shows it.

    Args:
        pending: Files to be delivered when the sensor last looked, or a run ended.
    """

    asset_key: str
    watch: str
    pending: int
    delivered: int
    deliveries: int
    delivered_at: datetime | None
    run_id: str | None
    failures: Sequence[Failure]


@dataclass(frozen=True, slots=True)
class FeedNames:
    """The tables in one schema."""

    schema: str

    def table(self, name: str) -> Identifier:
        """Return the table of a short name."""
        return Identifier(self.schema, f"sharepoint_{name}")

    def composed(self, statement: sql.SQL, **more: sql.Composable) -> Composed:
        """Return a statement in which short names are tables, and `columns` those of items."""
        tables = {name: self.table(name) for name in FEED_TABLES}
        return statement.format(**{"columns": columns(ITEM_COLUMNS), **tables, **more})


def columns(names: Sequence[str], *, of: str | None = None) -> Composed:
    """Compose a list of columns, of one of several tables if need be."""
    qualified = (Identifier(name) if of is None else Identifier(of, name) for name in names)
    return sql.SQL(", ").join(qualified)
