"""Assets made of the files in SharePoint folders: what changed in, the right table out.

    @sharepoint_asset(watch=Watch("/sites/lab", "/Results", filters=[Suffix(".csv")]))
    async def results(files: list[SharePointFile]): ...

The function gets the files that changed since they were last stored. What it returns is stored,
and they are marked as delivered, in one transaction.
"""

# No `from __future__ import annotations`: signatures are made here for Dagster to evaluate.

import inspect
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy as duplicate
from typing import Any, Literal

import dagster as dg

from dagster_tools.errors import ConfigurationError
from dagster_tools.postgres_io_manager import PostgresIOManager
from dagster_tools.sharepoint import Contains, FileFilter, Filter, Prefix, Suffix, Watch
from dagster_tools.sharepoint_resource import SharePointResource
from dagster_tools.sharepoint_run import Definition, SharePointConfig, run
from dagster_tools.sharepoint_sensor import TAG, sharepoint_sensor
from dagster_tools.sql import Transacted

__all__ = [
    "Contains",
    "FileFilter",
    "Filter",
    "Prefix",
    "SharePointConfig",
    "SharePointResource",
    "Suffix",
    "Watch",
    "sharepoint_asset",
    "sharepoint_multi_asset",
    "sharepoint_sensor",
]

DEFAULT_IO_MANAGER = "io_manager"
SPEC_IO_MANAGER = "dagster/io_manager_key"
"""Where `AssetSpec.with_io_manager_key` puts it."""
RESOURCE: Any = dg.ResourceParam[object]
"""The annotation of a parameter that is a resource of any class."""


def sharepoint_asset(
    *,
    watch: Watch | Sequence[Watch],
    mode: Literal["changes", "snapshot"] = "changes",
    on_file_error: Literal["fail", "quarantine"] = "fail",
    sharepoint_key: str = "sharepoint",
    **arguments: Any,
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Make an asset of a function of files.

    The function's `files` are those that changed since they were last stored, deleted ones marked.
    It may be asynchronous or not; if not, neither are the methods of the files, which are
    `BlockingFile`s then. With no file to hand over it is not called, and what is stored stays.

    Args:
        watch: Which files.
        mode: With "snapshot" the function gets all current files whenever one of them changed,
            so that what it returns may replace the table.
        on_file_error: What becomes of a file that cannot be read: the run fails; or the file is
            left out until it changes, and what is stored of it stays.
        sharepoint_key: The resource key of the `SharePointResource`.
        arguments: Those of `dagster.asset`, but `partitions_def`. Checks of `check_specs` have
            the results of the last call where the function is not called.

    Raises:
        ConfigurationError: Arguments or the function's signature that cannot be meant.
    """

    def decorate(function: Callable[..., Any]) -> dg.AssetsDefinition:
        definition = _definition(function, watch, mode, on_file_error, sharepoint_key)
        _check_arguments(function, arguments)
        manager = arguments.get("io_manager_def")
        key = arguments.get("io_manager_key", DEFAULT_IO_MANAGER)
        managers = {"result": manager if manager is not None else key}
        given = dict(arguments)
        if given.get("dagster_type") is not None:
            given["dagster_type"] = _seen_through(given["dagster_type"])
        compute = _compute_function(definition, managers, given)
        return _tagged(dg.asset(**given)(compute))

    return decorate


def sharepoint_multi_asset(
    *,
    watch: Watch | Sequence[Watch],
    outs: Mapping[str, dg.AssetOut] | None = None,
    specs: Sequence[dg.AssetSpec] | None = None,
    mode: Literal["changes", "snapshot"] = "changes",
    on_file_error: Literal["fail", "quarantine"] = "fail",
    sharepoint_key: str = "sharepoint",
    **arguments: Any,
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Make several assets of one function of files.

    It gets the files that any of the selected outputs has not stored yet, and each output is
    acknowledged with its own rows. The other arguments are `sharepoint_asset`'s.

    Args:
        outs: The outputs, as for `dagster.multi_asset`.
        specs: The same as assets' specs. The function stores them itself, but for those
            `with_io_manager_key`.
        arguments: Those of `dagster.multi_asset`, but `partitions_def`.
    """

    def decorate(function: Callable[..., Any]) -> dg.AssetsDefinition:
        definition = _definition(function, watch, mode, on_file_error, sharepoint_key)
        _check_arguments(function, arguments)
        given = dict(arguments)
        compute = _compute_function(definition, _managers(outs or {}, specs or ()), given)
        seen = {name: _with_seen_type(out) for name, out in outs.items()} if outs else outs
        return _tagged(dg.multi_asset(outs=seen, specs=specs, **given)(compute))

    return decorate


def _managers(outs: Mapping[str, dg.AssetOut], specs: Iterable[dg.AssetSpec]) -> dict[str, str]:
    """Return, by output, the resource key of its IO manager, as Dagster names outputs."""
    managers = {
        name.replace("-", "_"): out.io_manager_key or DEFAULT_IO_MANAGER
        for name, out in outs.items()
    }
    for spec in specs:
        key = spec.metadata.get(SPEC_IO_MANAGER)
        if key is not None:
            managers[spec.key.to_python_identifier()] = key
    return managers


def _tagged(assets: dg.AssetsDefinition) -> dg.AssetsDefinition:
    """Return assets that say of themselves that they are of SharePoint files."""
    return assets.map_asset_specs(lambda spec: spec.merge_attributes(tags={TAG: ""}))


def _definition(
    function: Callable[..., Any],
    watch: Watch | Sequence[Watch],
    mode: str,
    on_file_error: str,
    resource_key: str,
) -> Definition:
    watches = (watch,) if isinstance(watch, Watch) else tuple(watch)
    name = getattr(function, "__name__", repr(function))
    if not watches or not all(isinstance(each, Watch) for each in watches):
        raise ConfigurationError(
            f"{name}: watch must be a Watch or a list of them, as in "
            'watch=Watch("/sites/lab", "/Results").'
        )
    for option, value, legal in (
        ("mode", mode, ("changes", "snapshot")),
        ("on_file_error", on_file_error, ("fail", "quarantine")),
    ):
        if value not in legal:
            raise ConfigurationError(f"{name}: {option} is {value!r}; expected one of {legal}.")
    if mode == "snapshot" and on_file_error == "quarantine":
        raise ConfigurationError(
            f"{name}: in mode 'snapshot' the table is replaced, and a file that is left out would "
            "lose its rows. Use on_file_error='fail', or mode='changes'."
        )
    if "files" not in inspect.signature(function).parameters:
        raise ConfigurationError(
            f"{name} has no parameter named 'files', by which it gets the files that changed: "
            f"def {name}(files): …"
        )
    return Definition(
        function, watches, mode == "snapshot", on_file_error == "quarantine", resource_key
    )


def _check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Refuse partitions (decision 044)."""
    if arguments.get("partitions_def") is not None:
        raise ConfigurationError(
            f"{function.__name__}: an asset of SharePoint files has no partitions, since nothing "
            "says to which of them a file belongs. An asset for each folder, made in a loop, or a "
            "partitioned asset that takes this one as its input does what is meant."
        )


def _compute_function(
    definition: Definition, managers: Mapping[str, Any], arguments: dict[str, Any]
) -> Callable[..., Iterator[Any]]:
    """Return the function that Dagster calls: the user's parameters without files, and ours.

    Args:
        managers: By output, the IO manager or its resource key.
        arguments: The decorator's; resource keys are added where the user names some.
    """
    function = definition.function
    signature = _signature(function)
    keys = {key for key in managers.values() if isinstance(key, str)} | {definition.resource_key}
    wanted = list(signature.parameters.values())
    takes_context = bool(wanted) and wanted[0].name.strip("_") in {"context", ""}
    own_config = "config" in signature.parameters

    def compute(*given: Any, **named: Any) -> Iterator[Any]:
        context = given[0] if given else named.pop("context")
        config = named.get("config")
        if config is not None and not own_config:
            del named["config"]
        for key in keys - signature.parameters.keys():
            named.pop(key, None)
        if takes_context:
            named[wanted[0].name] = _as_annotated(context, wanted[0].annotation)
        if not isinstance(config, SharePointConfig):
            given_config = context.op_execution_context.op_config
            config = SharePointConfig(**{name: given_config[name] for name in added})
        foreign = [name for name, key in managers.items() if not _is_ours(context, key)]
        return run(context, definition, config.again(), foreign, named)

    parameters = [
        inspect.Parameter(
            "context",
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            annotation=dg.AssetExecutionContext,
        ),
        *(each for each in wanted[takes_context:] if each.name not in {"files", "config"}),
    ]
    added: dict[str, Any] = {}
    if own_config or arguments.get("config_schema") is None:
        config_class = _config_class(signature.parameters.get("config"))
        parameters.append(_keyword("config", config_class))
    else:
        arguments["config_schema"], added = _schema_with_fields(
            function, arguments["config_schema"], SharePointConfig.to_fields_dict()
        )
    named_keys = arguments.get("required_resource_keys") or set()
    # Dagster takes resources as parameters or by their keys, but not both ways at once.
    if named_keys or set(arguments.get("resource_defs") or ()) - signature.parameters.keys():
        arguments["required_resource_keys"] = {*named_keys, *keys}
    else:
        taken = {each.name for each in parameters}
        parameters += [_keyword(key, RESOURCE) for key in sorted(keys - taken)]
    _sign(compute, function, signature.replace(parameters=parameters))
    compute.sharepoint = definition  # type: ignore[attr-defined]  # what the sensor looks for
    return compute


def _sign(
    compute: Callable[..., Any], function: Callable[..., Any], signature: inspect.Signature
) -> None:
    """Give our function the name of the user's, and the parameters that Dagster is to fill."""
    compute.__name__ = function.__name__
    compute.__qualname__ = function.__qualname__
    compute.__doc__ = function.__doc__
    compute.__module__ = function.__module__
    compute.__signature__ = signature.replace(  # type: ignore[attr-defined]  # what inspect reads
        return_annotation=inspect.Signature.empty
    )
    # Dagster reads annotations here or there, depending on its release.
    compute.__annotations__ = {
        each.name: each.annotation
        for each in signature.parameters.values()
        if each.annotation is not inspect.Parameter.empty
    }


def _schema_with_fields(
    function: Callable[..., Any], schema: Any, fields: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Return a schema for run config with fields it has not got, and those alone."""
    kind = (schema if isinstance(schema, dg.Field) else dg.Field(schema)).config_type
    own = getattr(kind, "fields", None)
    if own is None:
        raise ConfigurationError(
            f"{function.__name__}: config_schema is of a single value, and what delivers files "
            "again, such as full_refresh, has to stand beside it. Make it a dict of fields."
        )
    added = {name: field for name, field in fields.items() if name not in own}
    every = {**own, **added}
    if isinstance(kind, dg.Permissive):
        return dg.Permissive(every), added  # type: ignore[no-untyped-call]  # Dagster's own
    return every, added


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation)


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    """Return the signature with its annotations evaluated, where they can be."""
    signature = inspect.signature(function)
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError:
        # A name that is imported for type checkers alone; Dagster needs those of inputs only.
        hints = {}
    parameters = [
        each.replace(
            annotation=hints.get(
                name,
                inspect.Parameter.empty if isinstance(each.annotation, str) else each.annotation,
            )
        )
        for name, each in signature.parameters.items()
    ]
    return signature.replace(parameters=parameters)


def _config_class(own: inspect.Parameter | None) -> type[SharePointConfig]:
    """Return the class of the run's config: the user's, with the fields of ours."""
    annotation = own.annotation if own is not None else SharePointConfig
    if inspect.isclass(annotation) and issubclass(annotation, SharePointConfig):
        return annotation
    if inspect.isclass(annotation) and issubclass(annotation, dg.Config):
        bases = (annotation, SharePointConfig)
        return type(annotation.__name__, bases, {"__module__": annotation.__module__})
    raise ConfigurationError(
        f"config is annotated {annotation!r}; expected a subclass of dagster.Config."
    )


def _as_annotated(context: dg.AssetExecutionContext, annotation: Any) -> Any:
    return context.op_execution_context if annotation is dg.OpExecutionContext else context


def _is_ours(context: dg.AssetExecutionContext, manager: Any) -> bool:
    if isinstance(manager, str):
        manager = getattr(context.resources, manager)
    return isinstance(manager, PostgresIOManager)


def _with_seen_type(out: dg.AssetOut) -> dg.AssetOut:
    """Return the output with its type seeing the value."""
    seen = duplicate(out)
    if out.dagster_type is not _NO_VALUE:
        seen.dagster_type = _seen_through(out.dagster_type)
    return seen


def _seen_through(given: object) -> dg.DagsterType:
    """Return the type of what a value travels in; where there is none, nothing does."""
    inner: dg.DagsterType = _meant_type(given)
    return inner if inner.is_nothing else _SeenThrough(inner)


def _meant_type(given: object) -> Any:
    """Return Dagster's type for a class."""
    return dg.Out(given).dagster_type  # type: ignore[arg-type]  # which takes all that are meant


_NO_VALUE = dg.AssetOut().dagster_type


class _SeenThrough(dg.DagsterType):
    """A type that is asked about a value, and not about what it travels in.

    It is of Dagster's kind "any", whose outputs may have no value: with nothing to do there is
    none, and what is stored stays.
    """

    def __init__(self, inner: dg.DagsterType) -> None:
        self._inner = inner
        # No name: that is the inner type's, and has to be unique.
        super().__init__(
            self._check,
            key=f"{inner.key} of SharePoint files",
            description=inner.description,
            loader=inner.loader,
            required_resource_keys=set(inner.required_resource_keys),
            kind=_meant_type(Any).kind,
            typing_type=inner.typing_type,
            metadata=inner.metadata,
        )

    @property
    def display_name(self) -> str:
        return self._inner.display_name

    def _check(self, context: dg.TypeCheckContext, value: object) -> Any:
        if value is _NO_VALUE:
            return True
        return self._inner.type_check(
            context, value.value if isinstance(value, Transacted) else value
        )
