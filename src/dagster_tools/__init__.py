"""Dagster assets in PostgreSQL: what an asset returns is a table, what it takes came from one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dagster_tools.postgres_io_manager import PostgresIOManager, PostgresResource

__all__ = ["PostgresIOManager", "PostgresResource"]
