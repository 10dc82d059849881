"""Options of an output or an input: parsed and checked once, here."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Literal, TypeVar

from dagster_tools.errors import ConfigurationError
from dagster_tools.postgres.column_types import PgType, parse_type
from dagster_tools.postgres.columns import Column, declared_column
from dagster_tools.postgres.names import check_column_name, check_identifier

T = TypeVar("T")

__all__ = ["InputOptions", "OutputOptions", "misspelled_keys", "parse_boolean", "parse_size"]

DEFAULT_CHUNK_BYTES = 300_000_000
MOST_COLUMNS_OF_A_KEY = 32
"""INDEX_MAX_KEYS of every server that was not built otherwise."""

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

OUTPUT_KEYS = (
    "schema",
    "table",
    "primary_key",
    "incremental",
    "columns",
    "chunk_size",
    "users",
    "environment",
    "full_table",
    "partition_expr",
    "schema_evolution",
)
INPUT_KEYS = (
    "columns",
    "environment",
    "full_table",
    "order_by",
    "allow_missing_partitions",
    "partition_expr",
)


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """How one output is written.

    Args:
        schema: Target schema, None where the metadata names none.
        table: Target table, None where the metadata names none.
        incremental: Upsert by `primary_key` instead of replacing.
        columns: Declared columns by name.
        chunk_size: Bytes of a large frame that are encoded at a time.
        users: Roles that may read the table.
        partition_expr: Column that tells a row's partition, or one per dimension.
        geometry_storage: How new columns keep geometry: as PostGIS does, or as EWKB in `bytea`.
    """

    schema: str | None = None
    table: str | None = None
    primary_key: tuple[str, ...] = ()
    incremental: bool = False
    columns: Mapping[str, Column] = field(default_factory=lambda: MappingProxyType({}))
    chunk_size: int = DEFAULT_CHUNK_BYTES
    users: tuple[str, ...] = ()
    schema_evolution: Literal["evolve", "strict"] = "evolve"
    partition_expr: object = None
    geometry_storage: Literal["postgis", "ewkb"] = "postgis"

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, object], asset: str) -> OutputOptions:
        """Check the metadata of one output; unknown keys are others' and ignored.

        Raises:
            ConfigurationError: A known key has a value it cannot have; names key, asset and value.
        """
        read = _Reader(metadata, asset)
        nothing: Mapping[str, Column] = MappingProxyType({})
        return cls(
            schema=read("schema", partial(check_identifier, "schema"), None),
            table=read("table", partial(check_identifier, "table"), None),
            primary_key=read("primary_key", _key, ()),
            incremental=read("incremental", parse_boolean, False),
            columns=read("columns", _declared_columns, nothing),
            chunk_size=read("chunk_size", parse_size, DEFAULT_CHUNK_BYTES),
            users=read("users", _roles, ()),
            schema_evolution=read("schema_evolution", _schema_evolution, "evolve"),
            partition_expr=metadata.get("partition_expr"),
        )


@dataclass(frozen=True, slots=True)
class InputOptions:
    """How one input is read.

    Args:
        columns: The columns to load, with the type to cast to where one is given; None for all.
        order_by: Columns to sort by; without them the order of rows is not promised.
        full_table: Load every row, whoever wrote it.
        allow_missing_partitions: Skip partitions never materialized instead of raising.
    """

    columns: Mapping[str, PgType | None] | None = None
    order_by: tuple[str, ...] = ()
    full_table: bool = False
    allow_missing_partitions: bool = False

    @classmethod
    def from_metadata(
        cls, metadata: Mapping[str, object], asset: str, *, full_table: bool = False
    ) -> InputOptions:
        """Check the metadata of one input.

        Args:
            full_table: What the consuming asset says; the input's own word wins.
        """
        read = _Reader(metadata, asset)
        return cls(
            columns=read("columns", _selected_columns, None),
            order_by=read("order_by", _names, ()),
            full_table=read("full_table", parse_boolean, full_table),
            allow_missing_partitions=read("allow_missing_partitions", parse_boolean, False),
        )


def misspelled_keys(metadata: Mapping[str, object], known: tuple[str, ...]) -> dict[str, str]:
    """Return keys that look like a slip of a known one, each with the right spelling."""
    slips = {}
    for key in metadata:
        if key in OUTPUT_KEYS or key in INPUT_KEYS or "/" in key:
            continue
        near = difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.85)
        if near:
            slips[key] = near[0]
    return slips


def parse_boolean(value: object) -> bool:
    """Read `True`, `"true"`, `False` or `"false"`."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in {"true", "false"}:
        return value.strip().lower() == "true"
    raise ValueError("True, False, 'true' or 'false'")


def parse_size(value: object) -> int:
    """Read a number of bytes: `"300MB"`, `"64 KiB"`, `1000000`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(value))
    unit = UNITS.get(match[2].upper()) if match else None
    if isinstance(value, bool) or match is None or unit is None or float(match[1]) * unit < 1:
        raise ValueError(f"a size such as '300MB', in {', '.join(filter(None, UNITS))}")
    return int(float(match[1]) * unit)


class _Reader:
    """Reads one key at a time; a parser says in its ValueError which values are legal."""

    def __init__(self, metadata: Mapping[str, object], asset: str) -> None:
        self.metadata = metadata
        self.asset = asset

    def __call__(self, key: str, parse: Callable[[object], T], default: T) -> T:
        value = self.metadata.get(key)
        if value is None:
            return default
        try:
            return parse(value)
        except ConfigurationError as error:
            raise ConfigurationError(f"asset {self.asset}, metadata {key!r}: {error}") from None
        except ValueError as error:
            raise ConfigurationError(
                f"asset {self.asset}, metadata {key!r} is {value!r}; expected {error}."
            ) from None


def _names(value: object) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ValueError("a column name, or a list or tuple of them")
    if len(set(names)) < len(names):
        raise ValueError("each column once")
    return tuple(check_identifier("column", name) for name in names)


def _key(value: object) -> tuple[str, ...]:
    names = _names(value)
    if len(names) > MOST_COLUMNS_OF_A_KEY:
        raise ValueError(f"at most {MOST_COLUMNS_OF_A_KEY} columns")
    return names


def _roles(value: object) -> tuple[str, ...]:
    roles = (value,) if isinstance(value, str) else value
    if not isinstance(roles, (list, tuple)):
        raise ValueError("a role's name, or a list of them")
    return tuple(dict.fromkeys(check_identifier("role", role) for role in roles))


def _schema_evolution(value: object) -> Literal["evolve", "strict"]:
    if value == "evolve":
        return "evolve"
    if value == "strict":
        return "strict"
    raise ValueError("'evolve' or 'strict'")


def _declared_columns(value: object) -> Mapping[str, Column]:
    if not isinstance(value, Mapping):
        raise ValueError("a dict of column name to type")
    columns = {}
    for name, declaration in value.items():
        columns[name] = declared_column(check_column_name(name), declaration)
    return MappingProxyType(columns)


def _selected_columns(value: object) -> Mapping[str, PgType | None]:
    if isinstance(value, Mapping):
        types = {name: _cast_type(name, text) for name, text in value.items()}
    else:
        types = dict.fromkeys(_names(value))
    if not types:
        raise ValueError("at least one column")
    return MappingProxyType(types)


def _cast_type(name: object, text: object) -> PgType | None:
    check_identifier("column", name)
    if text is None:
        return None
    if not isinstance(text, str):
        raise ValueError("a dict of column name to a type's name")
    return parse_type(text)
