"""GeoPandas ⇄ Arrow: geometry as WKB in the waist, the CRS in its field; the rest is pandas'.

Out: every geometry column, the active one or not, and those of a plain DataFrame too. The CRS has
to be one that an authority has a code for, exactly. A LinearRing is written as a LineString, and
a point whose coordinates are all NaN as an empty one: WKB does not tell these apart.

In: geometry columns with their CRS. The active one is that named `geometry`, else the first. A
plain DataFrame gets shapely's objects.
"""

from __future__ import annotations

import gc
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dagster_tools import geoarrow
from dagster_tools.errors import BadValue, UnsupportedFrame
from dagster_tools.frames import arrow, pandas
from dagster_tools.geoarrow import Crs, read_crs

__all__ = [
    "EXTRA",
    "SUPPORTED",
    "default_class",
    "from_arrow",
    "is_geographic",
    "loads_as",
    "outlines",
    "owns",
    "to_arrow",
]

SUPPORTED = "geopandas.GeoDataFrame"
EXTRA: str | None = "geopandas"

_INSTALL = "pip install 'dagster-tools[geopandas]'"

_POINT = [("order", "u1"), ("code", "<u4"), ("x", "<f8"), ("y", "<f8")]
"""A point of two dimensions in WKB, for numpy: they are copied as they lie, ten times faster."""
_POINT_BYTES = 21


def owns(frame: object) -> bool:
    """Tell whether the value is a DataFrame with a geometry column."""
    pd, gpd = sys.modules.get("pandas"), sys.modules.get("geopandas")
    if pd is None or gpd is None or not isinstance(frame, pd.DataFrame):
        return False
    return bool(_geometry_columns(frame))


def loads_as(annotation: type) -> bool:
    """Tell whether the class is GeoDataFrame or a subclass that is built from one."""
    gpd = sys.modules.get("geopandas")
    return bool(gpd is not None and issubclass(annotation, gpd.GeoDataFrame))


def default_class() -> type:
    """Return GeoDataFrame, for an input that does not say what it wants; imports GeoPandas."""
    return _import("an input without annotation").GeoDataFrame  # type: ignore[no-any-return]


def to_arrow(frame: Any, hints: Mapping[str, pa.DataType]) -> pa.Table:
    """Turn the frame into a table; geometry is copied, once."""
    import pandas as pd

    positions = _geometry_columns(frame)
    plain = pd.DataFrame(frame.copy(deep=False))
    crs = {}
    for at in positions:
        geometries = frame.iloc[:, at].array
        crs[at] = _crs_of(geometries.crs, str(frame.columns[at]))
        wkb = pa.chunked_array([_to_wkb(geometries.to_numpy())])
        plain.isetitem(at, pd.arrays.ArrowExtensionArray(wkb))
    table = pandas.to_arrow(plain, hints)
    levels = table.num_columns - frame.shape[1]  # of the index, which come first
    fields = list(table.schema)
    for at in positions:
        fields[levels + at] = geoarrow.mark(fields[levels + at], crs[at])
    return table.cast(pa.schema(fields))


def from_arrow(stream: pa.RecordBatchReader, as_type: type) -> Any:
    """Build a GeoDataFrame, or a DataFrame with geometry in columns of objects."""
    gpd = _import("a table with geometry")
    marked = geoarrow.fields(stream.schema)
    if not marked:
        return _without_geometry(stream, as_type)
    others, geometries = _read(stream, marked)
    names = list(geometries)
    for field in marked:
        values = geometries[field.name]
        if loads_as(as_type):
            values = gpd.array.GeometryArray(values, crs=_pyproj_crs(field))
        others.insert(stream.schema.get_field_index(field.name), field.name, values)
    if not loads_as(as_type):
        return arrow.of_class(others, as_type, pandas.SUPPORTED)
    frame = gpd.GeoDataFrame(others, geometry="geometry" if "geometry" in names else names[0])
    return arrow.of_class(frame, as_type, SUPPORTED)


def _import(what: str) -> Any:
    try:
        import geopandas as gpd
    except ModuleNotFoundError as exc:
        raise UnsupportedFrame(
            f"{what} is loaded with geopandas, and that is not installed: {_INSTALL}; or annotate "
            "the input as pyarrow.Table, which has geometry in WKB"
        ) from exc
    return gpd


def _geometry_columns(frame: Any) -> list[int]:
    """Return the positions of geometry columns; several may have the same name."""
    gpd = sys.modules["geopandas"]
    return [
        at for at, dtype in enumerate(frame.dtypes) if isinstance(dtype, gpd.array.GeometryDtype)
    ]


def _without_geometry(stream: pa.RecordBatchReader, as_type: type) -> Any:
    if len(stream.schema):
        raise UnsupportedFrame(
            f"{as_type.__module__}.{as_type.__qualname__} needs a geometry column, and there is "
            f"none among {stream.schema.names}; annotate the input as pandas.DataFrame"
        )
    return as_type()


def _read(stream: pa.RecordBatchReader, marked: list[pa.Field]) -> tuple[Any, dict[str, Any]]:
    """Read all rows: a DataFrame of the columns without geometry, and geometries by column.

    Each batch's WKB becomes geometries before the next batch comes, so no more than one batch of
    it is in memory. The other columns are copied: as they come, they keep all of their batch.
    """
    import numpy as np
    import pandas as pd

    geometries = {field.name: [np.empty(0, dtype=object)] for field in marked}
    plain = pa.schema([field for field in stream.schema if field.name not in geometries])
    memory, batches, rows = pa.default_cpu_memory_manager(), deque[pa.RecordBatch](), 0
    with _collector_paused():
        for batch in stream:
            for field in marked:
                geometries[field.name].append(_decode(field, batch.column(field.name), rows))
            batches.append(batch.select(plain.names).copy_to(memory))
            rows += batch.num_rows
    if len(plain):
        left = (batches.popleft() for _ in range(len(batches)))
        others = pandas.from_arrow(pa.RecordBatchReader.from_batches(plain, left), pd.DataFrame)
    else:
        others = pd.DataFrame(index=pd.RangeIndex(rows))
    return others, {name: np.concatenate(parts) for name, parts in geometries.items()}


# --- CRS ------------------------------------------------------------------------------------


def _crs_of(crs: Any, column: str) -> Crs:
    if crs is None:
        return Crs()
    code = _code_of(crs.to_wkt())
    if code is None:
        raise BadValue(
            "its CRS is none that EPSG or ESRI has a code for, and PostGIS knows a CRS by that. "
            "Convert the geometry to a CRS that has one, such as frame.to_crs('EPSG:4326'), or, "
            "if it is one of these under another name, say so with "
            "frame.set_crs(..., allow_override=True)",
            column=column,
        )
    return Crs(code, "authority_code")


@lru_cache(maxsize=64)
def _code_of(wkt: str) -> str | None:
    """Return the code of a CRS that is exactly that of an authority, None for any other.

    What pyproj finds may be merely alike, of another datum or centre, so it is compared.
    """
    from pyproj import CRS

    crs = CRS.from_wkt(wkt)
    found = crs.to_authority()
    if found is None or found[0] not in {"EPSG", "ESRI", "OGC"}:
        return None
    exact = CRS.from_authority(*found).equals(crs, ignore_axis_order=True)
    return ":".join(found) if exact else None


def _pyproj_crs(field: pa.Field) -> Any:
    crs = read_crs(field)
    if crs.definition is None:
        return None
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    try:
        return CRS.from_user_input(crs.definition)
    except CRSError:
        raise BadValue(
            "has a CRS that pyproj does not know; describe it in PostGIS' table spatial_ref_sys, "
            'or load the column as its bytes, with columns={"…": "bytea"}',
            column=field.name,
        ) from None


# --- WKB ------------------------------------------------------------------------------------


def _to_wkb(geometries: Any) -> pa.Array:
    import numpy as np
    import shapely

    points = _points_to_wkb(geometries)
    if points is not None:
        return points
    with np.errstate(invalid="ignore"):  # NaN coordinates are the user's to have
        wkb = shapely.to_wkb(
            geometries, output_dimension=_max_dimensions(), byte_order=1, flavor="iso"
        )
    return pa.array(wkb, pa.large_binary())


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep Python from looking for garbage while geometries are made.

    It would go through all of them again and again, and find none: four fifths of the time that
    half a million points take (measured).
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _decode(field: pa.Field, chunk: pa.Array, first_row: int) -> Any:
    import numpy as np
    import shapely

    points = _points_from_wkb(chunk)
    if points is not None:
        return points
    values = chunk.to_numpy(zero_copy_only=False)
    try:
        with np.errstate(invalid="ignore"):
            geometries = shapely.from_wkb(values)
    except (shapely.errors.ShapelyError, NotImplementedError):
        raise _unreadable(field, values, first_row) from None
    if _max_dimensions() < 4:
        _refuse_m(field, chunk)
    return geometries


def _refuse_m(field: pa.Field, chunk: pa.Array) -> None:
    """Refuse what an older shapely would read without its M, and say nothing."""
    headers = pc.unique(pc.binary_slice(chunk, 0, 5)).drop_null().to_pylist()
    if any(kind[1].endswith("M") for kind in map(geoarrow.read_header, headers) if kind):
        raise BadValue(
            "has M, which this shapely would lose; install shapely 2.1 or later, or annotate the "
            "input as pyarrow.Table, which has WKB",
            column=field.name,
        )


def _unreadable(field: pa.Field, values: Any, first_row: int) -> BadValue:
    for row, value in enumerate(values):
        found = None if value is None else geoarrow.read_header(value)
        if value is not None and (found is None or found[0] not in _STRAIGHT):
            what = "is no WKB" if found is None else f"is a {found[0]}"
            return BadValue(
                f"{what}, which shapely cannot hold. In the server, ST_CurveToLine makes lines of "
                'curves; or load the column as its bytes, EWKB, with columns={"…": "bytea"}',
                column=field.name,
                row=first_row + row,
            )
    row = next((row for row, value in enumerate(values) if not _is_readable(value)), 0)
    return BadValue("holds WKB that shapely cannot read", column=field.name, row=first_row + row)


def _is_readable(value: bytes | None) -> bool:
    import shapely

    return value is None or shapely.from_wkb(value, on_invalid="ignore") is not None


_STRAIGHT = frozenset(list(geoarrow.KINDS.values())[:7])


def _points_to_wkb(geometries: Any) -> pa.Array | None:
    """Return points of two dimensions as WKB, None where there is anything else but missing."""
    import numpy as np
    import shapely

    kinds = shapely.get_type_id(geometries)
    present = kinds == shapely.GeometryType.POINT
    if not (present | (kinds == shapely.GeometryType.MISSING)).all():
        return None
    if (shapely.get_coordinate_dimension(geometries) > 2).any():
        return None
    coordinates = shapely.get_coordinates(geometries)
    if len(coordinates) != np.count_nonzero(present):  # empty points have none
        return None
    points = np.empty(len(coordinates), dtype=_POINT)
    points["order"], points["code"] = 1, 1
    points["x"], points["y"] = coordinates[:, 0], coordinates[:, 1]
    ends = np.zeros(len(geometries) + 1, dtype="int64")
    np.cumsum(present, out=ends[1:])
    validity = None if present.all() else pa.array(present).buffers()[1]
    buffers = [validity, pa.py_buffer(ends * _POINT_BYTES), pa.py_buffer(points)]
    return pa.Array.from_buffers(pa.large_binary(), len(geometries), buffers)


def _points_from_wkb(chunk: pa.Array) -> Any | None:
    """Return the points of a chunk of nothing else, None where there is anything else."""
    import numpy as np
    import shapely

    valid = chunk.drop_null() if chunk.null_count else chunk
    if not len(valid):
        return np.full(len(chunk), None)
    fixed = _points_of_one_length(valid)
    if fixed is None:
        return None
    x, y = fixed["x"], fixed["y"]
    if (fixed["order"] != 1).any() or (fixed["code"] != 1).any() or np.isnan(x + y).any():
        return None
    points = shapely.points(x, y)
    if not chunk.null_count:
        return points
    values = np.full(len(chunk), None)
    values[chunk.is_valid().to_numpy(zero_copy_only=False)] = points
    return values


def _points_of_one_length(valid: pa.Array) -> Any | None:
    import numpy as np

    _validity, offsets, data = valid.buffers()
    width = "int64" if pa.types.is_large_binary(valid.type) else "int32"
    bounds = np.frombuffer(offsets, width)[valid.offset : valid.offset + len(valid) + 1]
    if data is None or (np.diff(bounds) != _POINT_BYTES).any():
        return None
    return np.frombuffer(data, _POINT, count=len(valid), offset=int(bounds[0]))


def _max_dimensions() -> int:
    import shapely

    # Neither shapely 2.0 nor GEOS 3.11 knows M.
    return 4 if hasattr(shapely, "has_m") and shapely.geos_version >= (3, 12, 0) else 3


# --- for a map ------------------------------------------------------------------------------

_VERTICES = 40
"""Of each line or ring that is drawn: as many as a small map shows."""


def outlines(wkb: pa.Array) -> list[tuple[str, Any]]:
    """Return the points of each part of the values, and whether it is an `area` or a `line`.

    All points without extent are one part, a `point`. Holes, Z and M are left out, vertices
    thinned, and so is what shapely cannot read, or has no place.
    """
    import numpy as np
    import shapely

    headers = pc.binary_slice(wkb, 0, 5).dictionary_encode()
    kinds = map(geoarrow.read_header, headers.dictionary.to_pylist())
    straight = pa.array([kind is not None and kind[0] in _STRAIGHT for kind in kinds], pa.bool_())
    readable = wkb.filter(straight.take(headers.indices), null_selection_behavior="drop")
    with np.errstate(invalid="ignore"):
        parts = shapely.from_wkb(readable.to_numpy(zero_copy_only=False), on_invalid="ignore")
    while (nested := shapely.get_type_id(parts) > shapely.GeometryType.POLYGON).any():
        parts = np.concatenate([parts[~nested], shapely.get_parts(parts[nested])])
    types = shapely.get_type_id(parts)
    rings = shapely.get_exterior_ring(parts[types == shapely.GeometryType.POLYGON])
    lines = parts[types == shapely.GeometryType.LINESTRING]
    points = shapely.get_coordinates(parts[types == shapely.GeometryType.POINT])
    found = [("area", _thinned(ring)) for ring in rings]
    found += [("line", _thinned(line)) for line in lines]
    found += [("point", points)]
    finite = [(kind, xy[np.isfinite(xy).all(axis=1)]) for kind, xy in found]
    return [(kind, xy) for kind, xy in finite if len(xy) > (kind != "point")]


def is_geographic(field: pa.Field) -> bool:
    """Tell whether coordinates are degrees."""
    try:
        crs = _pyproj_crs(field)
    except BadValue:
        return False
    return bool(crs is not None and crs.is_geographic)


def _thinned(line: Any) -> Any:
    import shapely

    points = shapely.get_coordinates(line)
    step = max(1, len(points) // _VERTICES)
    return points[::step] if step > 1 else points
