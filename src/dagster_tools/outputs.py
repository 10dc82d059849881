"""What an output is, in the core's words: its table, options, partitions and lineage."""

from __future__ import annotations

import typing
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import dagster as dg

from dagster_tools.contexts import code_location, computing_assets, or_none, unwrapped
from dagster_tools.errors import (
    ConfigurationError,
)
from dagster_tools.postgres.batches import Totals
from dagster_tools.postgres.names import Table
from dagster_tools.postgres.options import (
    OUTPUT_KEYS,
    OutputOptions,
    misspelled_keys,
)
from dagster_tools.postgres.tracking import Lineage
from dagster_tools.sql import (
    Batches,
)

__all__ = [
    "AssetOutput",
    "Defaults",
    "SharedSource",
    "port",
    "siblings",
    "table_for",
    "tracked_key",
    "unselected_outputs",
]


DEFAULT_SCHEMA = "public"


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the IO manager says for outputs that say nothing themselves."""

    schema: str | None
    geometry_storage: str
    code_location_users: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class AssetOutput:
    """One output, in the core's words.

    Args:
        name: What messages call it, as Dagster's users do.
        label: The same with its kind.
    """

    name: str
    label: str
    table: Table
    options: OutputOptions
    lineage: Lineage

    @classmethod
    def of(cls, context: dg.OutputContext, defaults: Defaults) -> AssetOutput:
        """Return the output a context is of; what the run says of it wins."""
        # What the run says wins over the definition: output_metadata has Output(metadata=…) and
        # what the asset's context was told, logged metadata what this one was, by a subclass.
        metadata = (
            unwrapped(context.definition_metadata)
            | unwrapped(context.output_metadata)
            | unwrapped(context.get_logged_metadata())
        )
        name = _output_name(context)
        for slip, right in misspelled_keys(metadata, OUTPUT_KEYS).items():
            context.log.warning("Metadata %r of %s is ignored; is %r meant?", slip, name, right)
        path = context.asset_key.path if context.has_asset_key else [context.name]
        label = f"{'asset' if context.has_asset_key else 'output'} {name}"
        options, table = _placed(label, name, path, metadata, defaults)
        lineage = Lineage(tracked_key(context), context.run_id, _output_partitions(context))
        return cls(name, f"{label} ({table})", table, options, lineage)

    def sibling(
        self, key: dg.AssetKey, metadata: Mapping[str, object], defaults: Defaults
    ) -> AssetOutput:
        """Return another asset of the same step, of the same partitions."""
        name = key.to_user_string()
        options, table = _placed(f"asset {name}", name, key.path, metadata, defaults)
        lineage = replace(self.lineage, asset_key=key.to_escaped_user_string())
        return AssetOutput(name, f"asset {name} ({table})", table, options, lineage)


def _placed(
    label: str,
    name: str,
    path: Sequence[str],
    metadata: Mapping[str, object],
    defaults: Defaults,
) -> tuple[OutputOptions, Table]:
    """Return what the metadata says, and where that and the path of the key put the table."""
    options = OutputOptions.from_metadata(metadata, name)
    location_users = defaults.code_location_users.get(code_location() or "", [])
    options = replace(
        options,
        users=tuple(dict.fromkeys([*options.users, *location_users])),
        geometry_storage=_geometry_storage(defaults.geometry_storage),
    )
    return options, table_for(label, options, defaults, path[:-1], path[-1])


def _geometry_storage(value: object) -> typing.Literal["postgis", "ewkb"]:
    if value == "postgis":
        return "postgis"
    if value == "ewkb":
        return "ewkb"
    raise ConfigurationError(
        f"geometry_storage of the IO manager is {value!r}; expected 'postgis', or 'ewkb' for "
        "servers without PostGIS."
    )


def _output_name(context: dg.OutputContext) -> str:
    return context.asset_key.to_user_string() if context.has_asset_key else context.name


def port(context: dg.OutputContext) -> str:
    """Return what the output is called among those of its step."""
    return or_none(lambda: context.name) or "result"


def tracked_key(context: dg.OutputContext) -> str:
    """Return the key an output is tracked by: the asset's, or job/step/output for an op."""
    if context.has_asset_key:
        return context.asset_key.to_escaped_user_string()
    parts = [or_none(lambda: context.job_name), context.step_key, context.name]
    if context.mapping_key is not None and f"[{context.mapping_key}]" not in context.step_key:
        parts.append(context.mapping_key)
    return "/".join(part for part in parts if part)


def _output_partitions(context: dg.OutputContext) -> tuple[str | None, ...]:
    if context.has_asset_partitions:
        return tuple(sorted(map(str, context.asset_partition_keys)))
    if not context.has_asset_key and context.has_partition_key:
        return (str(context.partition_key),)
    return (None,)


def table_for(
    subject: str,
    options: OutputOptions,
    defaults: Defaults,
    prefix: Sequence[str],
    last: str,
) -> Table:
    """Return where an output is kept; what is set but empty is a mistake, not a default."""
    default = prefix[-1] if prefix else DEFAULT_SCHEMA
    named = (options.schema, defaults.schema)
    schema = next((name for name in named if name is not None), default)
    try:
        return Table(schema, last if options.table is None else options.table)
    except ConfigurationError as error:
        error.about(subject)
        raise


@dataclass
class SharedSource:
    """A source that several outputs of a step return; all are loaded with the first of them.

    Args:
        first: The output it was loaded with.
        totals: What was done for the others.
        nothing_new: The high watermarks of outputs for which there was no batch, which would
            have told whether the others share it.
    """

    run_id: str
    first: str
    totals: dict[str, Totals] = field(default_factory=dict)
    nothing_new: dict[str, str | None] = field(default_factory=dict)

    @classmethod
    def of(cls, batches: Batches, context: dg.OutputContext) -> SharedSource:
        """Return what this step has done with the batches already."""
        shared = _SHARED.get(batches)
        if shared is None or shared.run_id != context.run_id or shared.first == port(context):
            shared = _SHARED[batches] = cls(context.run_id, port(context))
        return shared

    def left_of(self, batches: Batches) -> Batches:
        """Return the source, which is not asked again where it had nothing new."""
        return replace(batches, function=lambda _mark: ()) if self.nothing_new else batches


_SHARED: weakref.WeakKeyDictionary[Batches, SharedSource] = weakref.WeakKeyDictionary()


def siblings(
    context: dg.OutputContext, defaults: Defaults, own: AssetOutput
) -> dict[str, AssetOutput]:
    """Return the other outputs of the step that this IO manager writes, by name."""
    running = computing_assets()
    if running is None or not context.has_asset_key:
        return {}
    managers = {item.name: item.io_manager_key for item in running.op_def.output_defs}
    found = {}
    for name, key in running.assets_def.keys_by_output_name.items():
        if (
            name != port(context)
            and key in running.selected_asset_keys
            and managers.get(name) == managers.get(port(context))
        ):
            metadata = unwrapped(running.assets_def.metadata_by_key.get(key))
            found[name] = own.sibling(key, metadata, defaults)
    return found


def unselected_outputs() -> list[str]:
    """Return the outputs of the step that this run does not want."""
    running = computing_assets()
    if running is None:
        return []
    keys, wanted = running.assets_def.keys_by_output_name, running.selected_asset_keys
    names = [item.name for item in running.op_def.output_defs]
    return [name for name in names if keys.get(name) not in wanted]
