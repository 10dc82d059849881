"""What a write or a load shows in Dagster: metadata and observations."""

from __future__ import annotations

import base64
from collections.abc import Sized
from typing import Any

import dagster as dg

from dagster_tools import json_text
from dagster_tools.contexts import or_none
from dagster_tools.frames.maps import Sample, Summary, summarize
from dagster_tools.inputs import in_a_run
from dagster_tools.postgres.batches import Totals
from dagster_tools.postgres.columns import ExistingTable
from dagster_tools.postgres.names import MATERIALIZATION_ID
from dagster_tools.postgres.tracking import Lineage
from dagster_tools.postgres.write import Written

__all__ = ["batches_metadata", "geometry_metadata", "observe", "output_metadata"]


def output_metadata(
    written: Written, seconds: float, lineage: Lineage, *, merged: bool
) -> dict[str, Any]:
    """Return what is shown of one write.

    Args:
        merged: Its rows joined earlier ones.
    """
    metadata: dict[str, Any] = {
        "dagster/table_name": f"{written.database}.{written.table.schema}.{written.table.name}",
        "dagster/storage_kind": "postgres",
        "seconds": round(seconds, 3),
    }
    if written.existing is not None:
        metadata["dagster/column_schema"] = _table_schema(written.existing)
    if written.rows is None:
        return metadata
    metadata["rows_per_second"] = round(written.rows / seconds) if seconds else 0
    metadata["bytes"] = written.bytes
    if merged:
        done = written.counts.values()
        metadata |= {
            "rows_inserted": sum(count.inserted for count in done),
            "rows_updated": sum(count.updated for count in done),
            "rows_unchanged": sum(count.unchanged for count in done),
            "rows_deleted": sum(count.deleted for count in done),
        }
    elif len(lineage.partition_keys) > 1:
        # Dagster attaches the same metadata to each partition's event; a count for all of
        # them would be shown as each one's.
        metadata["rows"] = written.rows
    elif lineage.partitioned:
        metadata["dagster/partition_row_count"] = written.rows
    else:
        metadata["dagster/row_count"] = written.rows
    return metadata


def batches_metadata(total: Totals, seconds: float) -> dict[str, Any]:
    """Return what is shown of a run's batches."""
    table, done = total.table, total.counts
    metadata: dict[str, Any] = {
        "dagster/table_name": f"{total.database}.{table.schema}.{table.name}",
        "dagster/storage_kind": "postgres",
        "seconds": round(seconds, 3),
        "batches": total.batches,
        "rows_inserted": done.inserted,
        "rows_updated": done.updated,
        "rows_unchanged": done.unchanged,
        "rows_deleted": done.deleted,
        "rows_per_second": round(total.rows / seconds) if seconds else 0,
        "bytes": total.bytes,
    }
    if total.high_watermark is not None:
        metadata["high_watermark"] = _shown_json(total.high_watermark)
    if total.existing is not None:
        metadata["dagster/column_schema"] = _table_schema(total.existing)
    return metadata


def _shown_json(text: str) -> object:
    """Return metadata that shows a JSON value; MetadataValue.json takes lists and dicts alone."""
    value = json_text.loads(text)
    if isinstance(value, (list, dict)):
        return dg.MetadataValue.json(value)
    return value if isinstance(value, (str, bool, float)) else text


def geometry_metadata(
    context: dg.OutputContext, sample: Sample, written: Written
) -> dict[str, Any]:
    """Return what the geometry columns look like: CRS, types, bounds, a small map of some rows."""
    try:
        summaries = summarize(sample)
    except Exception as error:  # noqa: BLE001  # the rows are committed; a picture fails nothing
        context.log.debug("The map could not be drawn: %s", type(error).__name__)
        return {}
    metadata: dict[str, Any] = {}
    if summaries:
        metadata["geometry"] = dg.MetadataValue.json(
            {
                item.column: {
                    "crs": item.crs,
                    "types": list(item.kinds),
                    "bounds": list(item.bounds) if item.bounds is not None else None,
                    "rows_looked_at": item.rows,
                }
                for item in summaries
            }
        )
    drawn = [_drawn(item, written) for item in summaries if item.png is not None]
    if drawn:
        metadata["map"] = dg.MetadataValue.md("\n\n".join(drawn))
    return metadata


def _drawn(item: Summary, written: Written) -> str:
    picture = base64.b64encode(item.png or b"").decode()
    part = f"{item.rows:,} of {written.rows:,}" if written.rows else f"{item.rows:,}"
    return (
        f"**{item.column}**: {', '.join(item.kinds)}, {item.crs or 'no CRS'}, {part} rows\n\n"
        f"![{item.column}](data:image/png;base64,{picture})"
    )


def _table_schema(existing: ExistingTable) -> dg.TableSchema:
    key = existing.primary_key
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                column.name,
                type=str(column.type),
                constraints=dg.TableColumnConstraints(
                    nullable=not column.not_null,
                    unique=existing.has_index([column.name], unique=True),
                    other=["primary key"] if column.name in key else [],
                ),
            )
            for column in existing.columns
            if column.name != MATERIALIZATION_ID
        ]
    )


def observe(context: dg.InputContext, loaded: object, environment: str) -> None:
    """Log how much was loaded and from where, as an observation of the upstream asset."""
    if not (in_a_run(context) and context.has_asset_key):
        return
    several: list[object] = [*loaded.values()] if isinstance(loaded, dict) else [loaded]
    several = [frame for frame in several if frame is not None]
    counts = [len(frame) for frame in several if isinstance(frame, Sized)]
    metadata: dict[str, Any] = {"environment": environment}
    if len(counts) == len(several):  # a stream is not counted beforehand
        metadata["rows"] = sum(counts)
    partitions = len(list(context.asset_partition_keys)) if context.has_asset_partitions else 1
    if partitions == 1:
        context.add_input_metadata(metadata)
        return
    # add_input_metadata asks for the one partition key; the asset as a whole is observed instead.
    running = or_none(dg.AssetExecutionContext.get)
    if partitions and running is not None:
        metadata["partitions"] = partitions
        running.log_event(dg.AssetObservation(context.asset_key, metadata=metadata))
