"""How far assets that are loaded in batches have come: asked, and set by hand."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from psycopg import errors, sql

from dagster_tools.errors import ConfigurationError, DatabaseError
from dagster_tools.postgres.connection import Connection, translated
from dagster_tools.postgres.tracking import Lineage, Tracking

__all__ = ["Watermark", "fetch_watermarks", "set_watermark"]


@dataclass(frozen=True, slots=True)
class Watermark:
    """How far one asset and partition has come.

    Args:
        high_watermark: As JSON text; None where the next run begins anew.
        finished: Whether the last run came to the end of its source.
        timestamp: When the last batch was written.
    """

    partition_key: str | None
    high_watermark: str | None
    finished: bool
    timestamp: dt.datetime | None


def fetch_watermarks(
    connection: Connection, tracking: Tracking, asset_key: str, partition_key: str | None = None
) -> list[Watermark]:
    """Return how far each partition of an asset has come, or one of them.

    Raises:
        ConfigurationError: No such asset or partition was ever loaded in batches.
    """
    never = _never(connection, asset_key, partition_key, "loaded in batches")
    with _where_nothing_is_tracked(never), translated(f"reading {tracking.schema}.watermarks"):
        rows = connection.execute(
            sql.SQL(
                """
                SELECT a.partition_key, w.high_watermark::text, w.finished,
                       (SELECT pg_catalog.max(timestamp) FROM {} WHERE asset_id = a.id)
                FROM {} AS a
                JOIN {} AS w ON w.asset_id = a.id
                WHERE a.asset_key = $1
                  AND ($2::text IS NULL OR a.partition_key = $2)
                ORDER BY a.partition_key COLLATE "C"
                """
            ).format(tracking.materializations, tracking.assets, tracking.watermarks),
            [asset_key, partition_key],
        ).fetchall()
    if not rows:
        raise never
    return [Watermark(*row) for row in rows]


def set_watermark(
    connection: Connection,
    tracking: Tracking,
    asset_key: str,
    partition_key: str | None,
    high_watermark: str | None,
) -> None:
    """Let the next run begin somewhere else; a run under way begins there after its next batch.

    Args:
        high_watermark: As JSON text; None lets it begin anew.

    Raises:
        ConfigurationError: No such asset or partition was ever materialized.
    """
    lineage = Lineage(asset_key, run_id="", partition_keys=(partition_key,))
    with _where_nothing_is_tracked(
        _never(connection, asset_key, partition_key, "loaded in batches")
    ):
        known = tracking.record_watermark(connection, lineage, high_watermark, finished=True)
    if not known:
        raise _never(connection, asset_key, partition_key, "materialized")


def _never(
    connection: Connection, asset_key: str, partition_key: str | None, done: str
) -> ConfigurationError:
    partition = f", partition {partition_key}," if partition_key is not None else ""
    return ConfigurationError(
        f"Asset {asset_key}{partition} was never {done} into {connection.info.dbname}. Its key is "
        "written as Dagster shows it: a/b."
    )


@contextmanager
def _where_nothing_is_tracked(error: ConfigurationError) -> Iterator[None]:
    """Raise this where there are no tracking tables, or those of a version before batches."""
    try:
        yield
    except DatabaseError as undefined:
        if undefined.sqlstate != errors.UndefinedTable.sqlstate:
            raise
        raise error from None
