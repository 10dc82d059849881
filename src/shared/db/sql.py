"""Canonical: `dagster_tools.sql`. An alias for code that imports it from here."""

from __future__ import annotations

from dagster_tools.sql import (
    SQL,
    And,
    Batch,
    Batches,
    Eq,
    IncrementalDataFrame,
    Or,
    Query,
    Relation,
)

__all__ = [
    "SQL",
    "And",
    "Batch",
    "Batches",
    "Eq",
    "IncrementalDataFrame",
    "Or",
    "Query",
    "Relation",
]
