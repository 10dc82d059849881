"""What a geometry column looks like: a few of its rows, summed up, and a small map of them.

For the metadata of a materialization, and so bounded in everything: rows, vertices, pixels.
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dagster_tools import geoarrow
from dagster_tools.frames import geopandas
from dagster_tools.frames.arrow import Rows, Stream

__all__ = ["Sample", "Summary", "sampled", "summarize"]

ROWS = 500
"""Of each column; of a frame in memory from all over it, of a stream the first."""
BYTES = 4_000_000
"""Of WKB, which a few large polygons reach before."""
COLUMNS = 3

WIDTH, HEIGHT, MARGIN = 420, 280, 8
PNG_BYTES = 24_000
"""A map that is larger is left out: Dagster keeps each materialization's metadata."""

PAPER, INK, WATER = 0, 1, 2
PALETTE = [255, 255, 255, 38, 84, 160, 190, 212, 240]
"""Red, green and blue of each."""
DOT = 1.5

Bounds = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Sample:
    """Some values of each geometry column, gathered as the rows pass."""

    fields: tuple[pa.Field, ...]
    chunks: dict[str, list[pa.Array]] = field(default_factory=dict)
    rows: list[int] = field(default_factory=lambda: [0])

    def take(self, batch: pa.RecordBatch) -> None:
        """Keep what is still wanted of a batch."""
        wanted = ROWS - self.rows[0]
        if wanted <= 0:
            return
        self.rows[0] += min(wanted, batch.num_rows)
        for item in self.fields:
            if item.name in batch.schema.names:
                values = batch.column(item.name).slice(0, wanted)
                self.chunks.setdefault(item.name, []).append(values)


@dataclass(frozen=True, slots=True)
class Summary:
    """What some rows of a geometry column are.

    Args:
        kinds: Such as `Point` and `PolygonZ`, sorted.
        bounds: Least and greatest x and y: west, south, east, north; None where no value has any,
            or shapely is not there to tell.
        rows: How many were looked at.
        png: A map of them, where it could be drawn.
    """

    column: str
    crs: str | None
    kinds: tuple[str, ...]
    bounds: Bounds | None
    rows: int
    png: bytes | None


def sampled(rows: Rows) -> tuple[Rows, Sample]:
    """Return the rows, to be used instead, and the sample that is complete when they are used up.

    A table is sampled at once; it costs nothing where there is no geometry.
    """
    sample = Sample(tuple(geoarrow.fields(rows.schema)[:COLUMNS]))
    if not sample.fields:
        return rows, sample
    if isinstance(rows, pa.Table):
        step = max(1, rows.num_rows // ROWS)
        picked = rows.select([item.name for item in sample.fields])
        picked = picked.take(pa.array(range(0, rows.num_rows, step), pa.int64()))
        for batch in picked.combine_chunks().to_batches():
            sample.take(batch)
        return rows, sample
    return Stream(rows.schema, _tapped(rows, sample)), sample


def summarize(sample: Sample) -> list[Summary]:
    """Sum up what was gathered, one summary for each geometry column."""
    return [
        _summary(item, _bounded(sample.chunks[item.name]))
        for item in sample.fields
        if item.name in sample.chunks
    ]


def _tapped(rows: pa.RecordBatchReader | Stream, sample: Sample) -> Iterator[pa.RecordBatch]:
    for batch in rows:
        sample.take(batch)
        yield batch


def _bounded(chunks: Sequence[pa.Array]) -> pa.Array:
    """Return the first values that together are not too large."""
    wkb = pa.concat_arrays([_plain(chunk).cast(pa.large_binary()) for chunk in chunks])
    sizes = pc.fill_null(pc.binary_length(wkb), 0).cast(pa.int64())
    return wkb.filter(pc.less_equal(pc.cumulative_sum(sizes), BYTES))


def _plain(chunk: pa.Array) -> pa.Array:
    return chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk


def _summary(item: pa.Field, wkb: pa.Array) -> Summary:
    found = map(geoarrow.read_header, pc.unique(pc.binary_slice(wkb, 0, 5)).drop_null().to_pylist())
    kinds = tuple(sorted({"".join(kind) for kind in found if kind is not None}))
    definition = geoarrow.read_crs(item).definition
    crs = definition if isinstance(definition, str) else _code(definition)
    shapes = geopandas.outlines(wkb) if "shapely" in sys.modules else []
    bounds = reduce(_around, (_box(points) for _kind, points in shapes), None)
    png = None
    if bounds is not None:
        degrees = geopandas.is_geographic(item)
        png = _png(shapes, _scale(bounds, degrees=degrees))
    return Summary(item.name, crs, kinds, bounds, len(wkb), png)


def _code(definition: Any) -> str | None:
    said = (definition or {}).get("id")
    return f"{said['authority']}:{said['code']}" if said else (definition or {}).get("name")


# --- the map --------------------------------------------------------------------------------


def _box(points: Any) -> Bounds | None:
    x, y = points[:, 0], points[:, 1]
    return (float(x.min()), float(y.min()), float(x.max()), float(y.max())) if len(x) else None


def _around(one: Bounds | None, other: Bounds | None) -> Bounds | None:
    if one is None or other is None:
        return one or other
    return (
        min(one[0], other[0]),
        min(one[1], other[1]),
        max(one[2], other[2]),
        max(one[3], other[3]),
    )


@dataclass(frozen=True, slots=True)
class _Scale:
    """Where on the paper a coordinate lies."""

    west: float
    north: float
    x: float
    y: float
    left: float
    top: float

    def place(self, points: Any) -> list[float]:
        placed = points * (self.x, -self.y)
        placed += (self.left - self.west * self.x, self.top + self.north * self.y)
        flat: list[float] = placed.ravel().tolist()
        return flat


def _scale(bounds: Bounds, *, degrees: bool) -> _Scale:
    west, south, east, north = bounds
    # A degree of longitude is shorter the farther from the equator.
    squeeze = math.cos(math.radians((south + north) / 2)) if degrees else 1.0
    squeeze = max(squeeze, 0.1)
    width, height = (east - west) * squeeze, north - south
    room = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN
    y = min(room[0] / width if width else math.inf, room[1] / height if height else math.inf)
    y = y if math.isfinite(y) else 1.0
    left = (WIDTH - width * y) / 2
    return _Scale(west, north, y * squeeze, y, left, (HEIGHT - height * y) / 2)


def _png(shapes: Sequence[tuple[str, Any]], scale: _Scale) -> bytes | None:
    try:
        from PIL import Image, ImageDraw
    except ModuleNotFoundError:
        return None
    paper = Image.new("P", (WIDTH, HEIGHT), PAPER)
    paper.putpalette(PALETTE)
    pen = ImageDraw.Draw(paper)
    for kind, points in sorted(shapes, key=lambda shape: shape[0]):
        if kind == "area":
            pen.polygon(scale.place(points), fill=WATER, outline=INK)
        elif kind == "line":
            pen.line(scale.place(points), fill=INK)
        else:
            placed = scale.place(points)
            for x, y in zip(placed[::2], placed[1::2], strict=True):
                pen.ellipse((x - DOT, y - DOT, x + DOT, y + DOT), fill=INK)
    file = io.BytesIO()
    paper.save(file, "PNG", optimize=True)
    return file.getvalue() if file.tell() <= PNG_BYTES else None
