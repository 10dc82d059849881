"""Values of a resource, as Dagster hands them over: checked, and read from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from dagster_tools.errors import (
    ConfigurationError,
)

__all__ = ["refuse_unknown", "resolved"]


def refuse_unknown(cls: type[BaseModel], values: Mapping[str, Any]) -> None:
    """Refuse a misspelled argument: pydantic would ignore it, and its value with it."""
    fields_by_alias = {field.alias or name for name, field in cls.model_fields.items()}
    unknown = sorted(values.keys() - fields_by_alias - cls.model_fields.keys())
    if unknown:
        raise ConfigurationError(
            f"{cls.__name__} has no {', '.join(map(repr, unknown))}; "
            f"it has {', '.join(sorted(fields_by_alias))}."
        )


def resolved(value: Any) -> Any:
    """Read an EnvVar; inside a run Dagster has done so already."""
    if not hasattr(value, "get_value"):
        return value
    read = value.get_value()
    if read is None:
        raise ConfigurationError(f"The environment variable {value.env_var_name} is not set.")
    return read
