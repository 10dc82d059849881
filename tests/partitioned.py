"""What tests of partitions share: outputs and inputs of several partitions, in real runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dagster as dg
import pandas as pd

from dagster_tools.postgres_io_manager import PostgresIOManager
from tests.fix_servers import Database
from tests.pipelines import Rows, materialize, query

BACKFILL = dg.BackfillPolicy.single_run()


def backfill(
    asset: Any, manager: PostgresIOManager, first: str, last: str, **options: Any
) -> dg.ExecuteInProcessResult:
    """Materialize a range of partitions in one run; `options` are those of `dg.materialize`."""
    tags = {
        "dagster/asset_partition_range_start": first,
        "dagster/asset_partition_range_end": last,
    }
    return materialize(asset, manager, tags=tags, **options)


def store_partitions(
    manager: PostgresIOManager,
    obj: object,
    keys: Sequence[str],
    *,
    key: str = "numbers",
    **metadata: Any,
) -> dg.ExecuteInProcessResult:
    """Let an asset of these static partitions return the object, in one run over all of them.

    Args:
        metadata: Of the asset's definition.
    """

    @dg.asset(
        name=key,
        partitions_def=dg.StaticPartitionsDefinition(list(keys)),
        backfill_policy=BACKFILL,
        metadata=metadata,
    )
    def stored():
        return dg.Output(obj)

    return backfill(stored, manager, keys[0], keys[-1])


def store_bare(
    manager: PostgresIOManager,
    obj: object,
    keys: Sequence[str],
    *,
    key: str = "numbers",
    **metadata: Any,
) -> None:
    """Do the same without a run, where Dagster's own event for each partition takes too long."""
    context = _OutputOfPartitions(
        run_id="a run",
        asset_key=dg.AssetKey(key),
        definition_metadata=metadata,
        log_manager=dg.get_dagster_logger(),  # type: ignore[arg-type]  # a Logger logs as well
    )
    context.covered = list(keys)
    manager.handle_output(context, obj)


class _OutputOfPartitions(dg.OutputContext):
    """What `build_output_context` makes of a range of partitions, but not in Dagster 1.11."""

    covered: list[str]

    @property
    def has_asset_partitions(self) -> bool:
        return True

    @property
    def asset_partition_keys(self) -> list[str]:
        return self.covered

    @property
    def asset_partitions_def(self) -> dg.PartitionsDefinition[str]:
        return dg.StaticPartitionsDefinition(self.covered)


def load_partitions(
    manager: PostgresIOManager,
    keys: Sequence[str],
    annotation: Any = pd.DataFrame,
    *,
    key: str = "numbers",
    upstream: dict[str, Any] | None = None,
    **metadata: Any,
) -> Any:
    """Run an asset that takes these partitions of another one, and return what it was given.

    Args:
        upstream: Metadata of the other asset's definition.
        metadata: Of the input.
    """
    given: list[object] = []
    definition = dg.StaticPartitionsDefinition(list(keys))
    dagster_type: Any = dg.In(annotation).dagster_type

    @dg.asset(ins={"frame": dg.AssetIn(key, metadata=metadata, dagster_type=dagster_type)})
    def taking(frame: Any) -> None:
        given.append(frame)

    other = dg.AssetSpec(key, metadata=upstream or {}, partitions_def=definition)
    materialize([other.with_io_manager_key("io_manager"), taking], manager, selection=[taking])
    return given[0]


def rows_of(
    database: Database, asset_key: str, *columns: str, table: str = "public.numbers"
) -> dict[str | None, Rows]:
    """Return the rows of each partition of an asset, as the tracking tables tell them."""
    found: dict[str | None, Rows] = {}
    for key, *values in query(
        database,
        f"""
        SELECT a.partition_key, {", ".join(f"t.{column}" for column in columns)}
        FROM {table} AS t
        JOIN meta.materializations AS m ON m.id = t.materialization_id
        JOIN meta.assets AS a ON a.id = m.asset_id
        WHERE a.asset_key = %s
        ORDER BY 1, 2
        """,
        asset_key,
    ):
        found.setdefault(key, []).append(tuple(values))
    return found
