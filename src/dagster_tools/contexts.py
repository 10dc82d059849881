"""What can be asked of Dagster's contexts, which raise where they have no such thing."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg

__all__ = ["code_location", "computing_assets", "or_none", "unwrapped"]


def or_none(read: Callable[[], Any]) -> Any:
    """Return what a context property holds, None where this context has no such thing."""
    try:
        return read()
    except (dg.DagsterError, AttributeError):
        return None


def unwrapped(metadata: Mapping[str, Any] | None) -> dict[str, object]:
    """Return metadata as plain values, whether or not they came as `MetadataValue`."""
    return {
        key: value.value if isinstance(value, dg.MetadataValue) else value
        for key, value in (metadata or {}).items()
    }


def code_location() -> str | None:
    """Return the run's code location; a run in process, as in a test, has none."""
    running = or_none(dg.AssetExecutionContext.get)
    return running.run.tags.get("dagster/code_location") if running is not None else None


def computing_assets() -> dg.AssetExecutionContext | None:
    """Return the context of the step, where it computes assets and is not an op of a job."""
    running = or_none(dg.AssetExecutionContext.get)
    if running is None or or_none(lambda: running.assets_def) is None:
        return None
    return typing.cast("dg.AssetExecutionContext", running)
