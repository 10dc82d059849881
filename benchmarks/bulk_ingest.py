"""pg-bulk-ingest, which some are compared with: the ten columns, by either of its drivers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pg_bulk_ingest
import sqlalchemy as sa
from measuring import timed
from sqlalchemy.dialects import postgresql
from ten_columns import COLUMNS

TYPES = {
    "bigint": sa.BIGINT(),
    "integer": sa.INTEGER(),
    "double precision": postgresql.DOUBLE_PRECISION(),
    "boolean": sa.BOOLEAN(),
    "timestamp with time zone": postgresql.TIMESTAMP(timezone=True),
    "timestamp without time zone": postgresql.TIMESTAMP(),
    "text": sa.TEXT(),
}


def by_bulk_ingest(
    url: str,
    driver: str,
    table: str,
    data: Callable[[sa.Table], Iterable[Any]],
    batches: int = 1,
) -> float:
    """Time it with so many batches of the same data.

    Args:
        driver: `pgarrow` for frames, `psycopg` for tuples.
        data: Gives the pairs of table and frame or tuple.
    """
    engine, metadata = sa.create_engine(url.replace("://", f"+{driver}://", 1)), sa.MetaData()
    columns = [sa.Column(name, TYPES[type_]) for name, type_ in COLUMNS.items()]
    target = sa.Table(table, metadata, *columns, schema="public")

    def source(_high_watermark: object) -> Iterator[Any]:
        for number in range(batches):
            yield number, None, data(target)

    def ingest() -> None:
        with engine.connect() as connection:
            pg_bulk_ingest.ingest(connection, metadata, source)

    return timed(ingest)
