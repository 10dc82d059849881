"""What an input asks for: by its annotation, its metadata and its consumer's."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import dagster as dg

from dagster_tools import frames
from dagster_tools.contexts import or_none, unwrapped
from dagster_tools.errors import (
    ConfigurationError,
)
from dagster_tools.outputs import (
    Defaults,
    table_for,
    tracked_key,
)
from dagster_tools.postgres.options import (
    INPUT_KEYS,
    InputOptions,
    OutputOptions,
    misspelled_keys,
    parse_boolean,
)
from dagster_tools.postgres.read import Request

__all__ = ["Asked", "in_a_run", "input_name", "request_for"]

T = typing.TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """What an input's annotation asks for.

    Args:
        optional: None stands for what was never materialized.
        by_partition: A dict of partition key to frame.
        each_optional: In the dict, None stands for a partition that was never materialized.
    """

    annotation: object
    optional: bool
    by_partition: bool
    each_optional: bool = False

    @classmethod
    def by(cls, context: dg.InputContext) -> Asked:
        """Read the annotation of the input a context is of."""
        annotation: Any = or_none(lambda: context.dagster_type.typing_type)
        if typing.get_origin(annotation) is list:
            # A fan-in of several ops: Dagster loads each of its elements with a call of its own.
            annotation = typing.get_args(annotation)[0]
        annotation, optional = _without_none(annotation)
        if typing.get_origin(annotation) is dict:
            annotation, each_optional = _without_none(typing.get_args(annotation)[1])
            return cls(annotation, optional, by_partition=True, each_optional=each_optional)
        if annotation is dict:
            return cls(None, optional, by_partition=True)
        return cls(annotation, optional, by_partition=False)

    @property
    def frame_class(self) -> type:
        """The class of each frame."""
        return frames.frame_class(self.annotation)


def _without_none(annotation: object) -> tuple[object, bool]:
    if typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        rest = [item for item in typing.get_args(annotation) if item is not type(None)]
        if len(rest) == 1:
            return rest[0], True
    return annotation, False


def request_for(
    context: dg.InputContext, defaults: Defaults, asked: Asked
) -> tuple[Request, str | None]:
    """Return what to read, and from which environment."""
    name = input_name(context)
    own = _input_metadata(context)
    consumer = _consumer(context)
    for slip, right in misspelled_keys(own, INPUT_KEYS).items():
        context.log.warning("Metadata %r of input %s is ignored; is %r meant?", slip, name, right)
    environment = _environment_name(
        own if "environment" in own else {"environment": consumer.environment}, f"input {name}"
    )
    if _is_own_earlier(context):
        environment = None
    options = InputOptions.from_metadata(own, name, full_table=consumer.full_table)
    if asked.each_optional:
        options = replace(options, allow_missing_partitions=True)
    upstream = context.upstream_output
    definition = unwrapped(upstream.definition_metadata) if upstream is not None else {}
    written = OutputOptions.from_metadata(definition, name)
    if context.has_asset_key:
        path = context.asset_key.path
        key, last, prefix = context.asset_key.to_escaped_user_string(), path[-1], path[:-1]
    elif upstream is not None:
        key, last, prefix = tracked_key(upstream), upstream.name, ()
    else:
        raise ConfigurationError("An input without an asset key and without an upstream output.")
    table = table_for(f"input {name}", written, defaults, prefix, last)
    partitions = _input_partitions(context)
    request = Request(key, table, partitions, options, written.columns, asked.optional)
    return request, environment


def in_a_run(context: dg.InputContext) -> bool:
    """Whether a step of a run takes the input; only such a context has an op."""
    return or_none(lambda: context.op_def) is not None


def input_name(context: dg.InputContext) -> str:
    """Return what messages call the input: its asset, as Dagster's users do."""
    if context.has_asset_key:
        return context.asset_key.to_user_string()
    return context.name if context.has_input_name else "input"


def _input_partitions(context: dg.InputContext) -> tuple[str, ...] | None:
    """Return exactly the partitions asked for; ranges and windows raise where these have gaps."""
    if context.has_asset_key:
        if context.has_asset_partitions:
            return tuple(sorted(map(str, context.asset_partition_keys)))
        return None
    return (str(context.partition_key),) if context.has_partition_key else None


def _input_metadata(context: dg.InputContext) -> dict[str, object]:
    """Return what is said at the input: by AssetIn or In, else by AssetDep.

    In a multi-asset of specs that is the only place Dagster leaves for it, and it hands what
    stands there to no IO manager (dagster 1.13; in 1.11 an AssetDep has no metadata).
    """
    own = unwrapped(context.definition_metadata)
    running = or_none(dg.AssetExecutionContext.get) if in_a_run(context) else None
    if running is None or not context.has_asset_key:
        return own
    said: dict[str, object] = {}
    for spec in or_none(lambda: running.assets_def.specs) or ():
        if spec.key in running.selected_asset_keys:
            for dependency in spec.deps:
                if dependency.asset_key == context.asset_key:
                    said |= unwrapped(getattr(dependency, "metadata", None))
    return said | own


def _is_own_earlier(context: dg.InputContext) -> bool:
    """Whether the asset takes its own earlier partitions, which are never production's."""
    if not (in_a_run(context) and context.has_asset_key):
        return False
    computed = or_none(lambda: dg.AssetExecutionContext.get().assets_def.keys)
    return context.asset_key in (computed or ())


@dataclass(frozen=True, slots=True)
class _Consumer:
    """What the assets that take an input say about all their inputs."""

    environment: str | None = None
    full_table: bool = False


def _consumer(context: dg.InputContext) -> _Consumer:
    """Ask the assets that take the input; what the ops of one hand on is nobody's input.

    Outside a run there is no consumer; the context in scope there, if any, is another
    asset's whose body loads this one (`load_asset_value`), and its options are not meant.
    """
    if not (in_a_run(context) and context.has_asset_key):
        return _Consumer()
    try:
        running = dg.AssetExecutionContext.get()
        by_key = running.assets_def.metadata_by_key
        consumers = {
            f"asset {key.to_user_string()}": unwrapped(by_key[key])
            for key in running.selected_asset_keys
        }
    except dg.DagsterError:  # an op or an asset check, which computes no assets
        consumers = {
            f"op {context.op_def.name}, output {output.name}": unwrapped(output.metadata)
            for output in context.op_def.output_defs
        }
    environment = _agreed(consumers, "environment", _environment_name)
    full_table = _agreed(consumers, "full_table", _full_table)
    return _Consumer(environment, full_table or False)


def _agreed(
    consumers: Mapping[str, Mapping[str, object]],
    key: str,
    read: Callable[[Mapping[str, object], str], T],
) -> T | None:
    """Return what those say that say anything about the key.

    Raises:
        ConfigurationError: They say different things, or one of them what cannot be meant.
    """
    said = {who: read(metadata, who) for who, metadata in consumers.items() if key in metadata}
    if len(set(said.values())) > 1:
        words = ", ".join(f"{who} says {consumers[who][key]!r}" for who in sorted(said))
        raise ConfigurationError(
            f"The assets computed together say different things about {key!r}: {words}. "
            f"Say it on the input instead: AssetIn(metadata={{{key!r}: …}})."
        )
    return next(iter(said.values()), None)


def _environment_name(metadata: Mapping[str, object], who: str) -> str | None:
    environment = metadata.get("environment")
    if environment in (None, "development", "production"):
        return "production" if environment == "production" else None
    raise ConfigurationError(
        f"{who}, metadata 'environment' is {environment!r}; expected 'production' or 'development'."
    )


def _full_table(metadata: Mapping[str, object], who: str) -> bool:
    value = metadata.get("full_table")
    try:
        return value is not None and parse_boolean(value)
    except ValueError as error:
        raise ConfigurationError(
            f"{who}, metadata 'full_table' is {value!r}; expected {error}."
        ) from None
