"""Dagster assets in PostgreSQL: what an asset returns is a table, what it takes came from one."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dagster_tools.embedded import Server
    from dagster_tools.errors import (
        BadValue,
        ConfigurationError,
        DagsterToolsError,
        DatabaseError,
        GrantFailed,
        MaterializationNotFound,
        SchemaConflict,
        UnsupportedFrame,
    )
    from dagster_tools.postgres_io_manager import (
        BatchesConfig,
        PostgresIOManager,
        PostgresResource,
    )
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
    "BadValue",
    "Batch",
    "Batches",
    "BatchesConfig",
    "ConfigurationError",
    "DagsterToolsError",
    "DatabaseError",
    "Eq",
    "GrantFailed",
    "IncrementalDataFrame",
    "MaterializationNotFound",
    "Or",
    "PostgresIOManager",
    "PostgresResource",
    "Query",
    "Relation",
    "SchemaConflict",
    "Server",
    "UnsupportedFrame",
]

_HOMES = {
    "And": "sql",
    "Batch": "sql",
    "Batches": "sql",
    "BatchesConfig": "postgres_io_manager",
    "Eq": "sql",
    "IncrementalDataFrame": "sql",
    "Or": "sql",
    "PostgresIOManager": "postgres_io_manager",
    "PostgresResource": "postgres_io_manager",
    "Query": "sql",
    "Relation": "sql",
    "SQL": "sql",
    "Server": "embedded",
}


def __getattr__(name: str) -> Any:
    # When asked for and not before: importing Dagster takes a second, and `embedded`, like all
    # below the edges, does without.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
