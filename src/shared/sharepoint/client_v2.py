"""Canonical: `dagster_tools.sharepoint`. An alias for code that imports it from here."""

from __future__ import annotations

from dagster_tools.sharepoint import SharePointFile

__all__ = ["SharePointFile"]
