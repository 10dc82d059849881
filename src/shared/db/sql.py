"""Canonical: `dagster_tools.sql`. An alias for code that imports it from here."""

from __future__ import annotations

from dagster_tools.sql import And, Eq, IncrementalDataFrame, Or

__all__ = ["And", "Eq", "IncrementalDataFrame", "Or"]
