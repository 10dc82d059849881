"""Dagster's contexts ⇄ requests to the core. No SQL and no frame code here."""

# No `from __future__ import annotations`: Dagster finds ResourceDependency fields by their
# evaluated annotations when the class is made (dagster 1.13, _config/pythonic_config/typing_utils).

import time
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import dagster as dg
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from dagster_tools import frames
from dagster_tools.errors import (
    BadValue,
    ConfigurationError,
    DagsterToolsError,
    MaterializationNotFound,
)
from dagster_tools.partitioning import assign_partitions, join_partitions
from dagster_tools.postgres.catalog import fetch_catalog, fetch_storage
from dagster_tools.postgres.column_types import arrow_hint
from dagster_tools.postgres.columns import ExistingTable
from dagster_tools.postgres.connection import (
    Connection,
    ConnectionSettings,
    connect,
    url_settings,
)
from dagster_tools.postgres.deletion import AllOf, AnyOf, Deletion, Keys
from dagster_tools.postgres.leftovers import warn_of_leftovers
from dagster_tools.postgres.names import MATERIALIZATION_ID, Table, check_column_names
from dagster_tools.postgres.options import (
    INPUT_KEYS,
    OUTPUT_KEYS,
    InputOptions,
    OutputOptions,
    misspelled_keys,
    parse_boolean,
)
from dagster_tools.postgres.read import Request, read_by_partition, read_relation, read_table
from dagster_tools.postgres.run import run_sql
from dagster_tools.postgres.tracking import Lineage, Tracking
from dagster_tools.postgres.write import Merge, Output, Written, write_table
from dagster_tools.sql import SQL, And, Delete, Eq, IncrementalDataFrame, Query, Relation

if TYPE_CHECKING:
    import psycopg

__all__ = ["PostgresIOManager", "PostgresResource"]

DEFAULT_SCHEMA = "public"
EPHEMERAL_RUN_ID = "__EPHEMERAL_RUN_ID"
"""What build_output_context gives as the run (dagster, _core/execution/context/output.py)."""
SECONDS_BETWEEN_PROGRESS = 10.0


class PostgresResource(dg.ConfigurableResource):  # type: ignore[type-arg]  # generic for factories only
    """Where PostgreSQL is, and as whom to connect.

    Every field may be left out: libpq's own environment (`PGHOST`, `PGPASSWORD`, the service
    file, `.pgpass`) then decides, as it does for `psql`.

    Example:
        >>> PostgresResource(host="db", dbname="analytics", user="etl")
        PostgresResource(host='db', dbname='analytics', user='etl')
    """

    host: str | None = Field(default=None, description="Host name, address or socket directory.")
    port: int | None = Field(default=None, description="Port; 5432 unless libpq says otherwise.")
    dbname: str | None = Field(default=None, description="Database.")
    user: str | None = Field(default=None, description="Role to connect as.")
    password: str | None = Field(
        default=None,
        description="Password; better an EnvVar than a literal.",
        json_schema_extra={"dagster__is_secret": True},
    )
    sslmode: str | None = Field(
        default=None, description="libpq's sslmode; 'verify-full' proves who the server is."
    )
    sslrootcert: str | None = Field(
        default=None, description="File of the authority that signed the server's certificate."
    )
    sslcert: str | None = Field(default=None, description="File of the client's certificate.")
    sslkey: str | None = Field(default=None, description="File of the client's key.")
    connect_timeout: int | None = Field(
        default=None,
        description="Seconds to wait for a connection; 10 unless libpq says otherwise.",
    )
    application_name: str | None = Field(
        default=None, description="Name the server shows for the session."
    )

    # pydantic's errors would else quote the value of a field, the password's too.
    model_config = ConfigDict(hide_input_in_errors=True)

    def __init__(self, **values: Any) -> None:
        _refuse_unknown(type(self), values)
        super().__init__(**values)

    @classmethod
    def from_url(cls, url: str) -> "PostgresResource":
        """Return the resource a `postgresql://` URL describes; an EnvVar is read at once.

        Raises:
            ConfigurationError: It is no such URL; the message does not repeat it.
        """
        settings = url_settings(_resolved(url))
        return cls(**{item.name: getattr(settings, item.name) for item in fields(settings)})

    @contextmanager
    def get_connection(self) -> "Iterator[psycopg.Connection]":
        """Open a psycopg connection: committed when the block ends, rolled back when it fails."""
        with closing(connect(self.settings())) as connection:
            connection.cursor_factory = _plain_cursor()
            with connection.transaction():
                yield connection

    def settings(self) -> ConnectionSettings:
        """Return the same for the core, with each `EnvVar` read."""
        values = {
            item.name: _resolved(getattr(self, item.name)) for item in fields(ConnectionSettings)
        }
        return ConnectionSettings(**values)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            if value is not None:
                yield name, "***" if name == "password" else value

    def __str__(self) -> str:
        return repr(self)


class PostgresIOManager(dg.ConfigurableIOManager):
    """Keep assets in PostgreSQL: what an asset returns is a table, what it takes came from one.

    Args:
        connection: Where assets are kept; None leaves all of it to libpq's own environment.
        production: Where inputs come from that say `environment: "production"`.

    Example:
        >>> import dagster as dg
        >>> dg.Definitions(
        ...     resources={
        ...         "io_manager": PostgresIOManager(
        ...             connection=PostgresResource(host="db", password=dg.EnvVar("PGPASSWORD")),
        ...             schema="analytics",
        ...         )
        ...     }
        ... )  # doctest: +SKIP
    """

    connection: dg.ResourceDependency[PostgresResource | None]
    production: dg.ResourceDependency[PostgresResource | None]
    schema_: str | None = Field(
        default=None,
        alias="schema",
        description="Schema of assets whose metadata names none.",
    )
    tracking_schema: str = Field(
        default="meta", description="Schema of the tables that say which run wrote which rows."
    )
    code_location_users: dict[str, list[str]] = Field(
        default={"datasmart": ["datasmart_user"]},
        description="Roles that may read what the assets of a code location write.",
    )

    def __init__(self, **values: Any) -> None:
        _refuse_unknown(type(self), values)
        for name in ("connection", "production"):
            _check_resource(name, values.get(name))
        # A resource dependency has no class default; None means libpq's environment.
        super().__init__(**{"connection": None, "production": None} | values)

    @classmethod
    def _is_dagster_maintained(cls) -> bool:
        return False

    def handle_output(self, context: dg.OutputContext, obj: object) -> None:
        """Store what an asset or op returned, all or nothing; see `write_table`."""
        if obj is None:
            return
        output = _Output.of(context, self)
        try:
            self._write(context, output, obj)
        except DagsterToolsError as error:
            error.about(output.label)
            raise

    def load_input(self, context: dg.InputContext) -> object:
        """Load what an asset or op takes, as the class its annotation asks for."""
        asked = _Asked.by(context)
        try:
            return self._read(context, asked)
        except MaterializationNotFound:
            if asked.optional:
                return None
            raise

    # --- out --------------------------------------------------------------------------------

    def _write(self, context: dg.OutputContext, output: "_Output", obj: object) -> None:
        started = time.monotonic()
        tracking = Tracking(_resolved(self.tracking_schema))
        frame, merge = _frame_and_merge(obj, output.options)
        target = Output(output.table, output.options, output.lineage, tracking, context.log, merge)
        with closing(connect(_settings(self.connection))) as connection:
            if isinstance(frame, (SQL, Query)):
                # Outside a run all calls share one run id, and none is a retry of another.
                retry = context.run_id != EPHEMERAL_RUN_ID
                written = run_sql(connection, target, frame, environment="development", retry=retry)
            else:
                written = self._store(context, connection, target, frame)
            warn_of_leftovers(connection, tracking, output.lineage, context.log)
        if written.rows == 0 and merge is None and not isinstance(frame, (SQL, Query)):
            context.log.warning(
                "Empty DataFrame received for asset %s. The database table will not be created.",
                output.name,
            )
        seconds = time.monotonic() - started
        context.add_output_metadata(
            _output_metadata(written, seconds, output.lineage, merged=merge is not None)
        )

    def _store(
        self,
        context: dg.OutputContext,
        connection: Connection,
        output: Output,
        frame: object,
    ) -> Written:
        catalog = fetch_catalog(connection, output.table, output.tracking.schema)
        storage = fetch_storage(connection, list(output.options.columns.values()))
        if catalog.existing is not None:
            storage |= {column.name: column.storage for column in catalog.existing.columns}
        hints = {name: hint for name, type_ in storage.items() if (hint := arrow_hint(type_))}
        data, by_partition = _rows(context, output, frame, hints)
        return write_table(
            connection,
            output,
            data,
            by_partition=by_partition,
            progress=_Progress(context.log, f"to {output.table}"),
        )

    # --- in ---------------------------------------------------------------------------------

    def _read(self, context: dg.InputContext, asked: "_Asked") -> object:
        request, environment = _request(context, self, asked)
        settings = self._environment(environment, request.asset_key)
        try:
            loaded = self._frames(settings, request, asked, environment or "development")
        except MaterializationNotFound:
            raise
        except DagsterToolsError as error:
            error.about(f"asset {_input_name(context)}")
            raise
        _observe(context, loaded, environment or "development")
        return loaded

    def _frames(
        self, settings: ConnectionSettings, request: Request, asked: "_Asked", environment: str
    ) -> object:
        """Read what is asked for, as the frame or the dict of frames it is asked for as."""
        tracking = Tracking(_resolved(self.tracking_schema))
        if asked.annotation is Relation:
            return read_relation(settings, tracking, request, environment)
        frame_class = asked.frame_class
        if not asked.by_partition:
            return frames.from_arrow(read_table(settings, tracking, request), frame_class)
        if issubclass(frame_class, pa.RecordBatchReader):
            raise ConfigurationError(
                "The partitions arrive one after the other, so a dict cannot hold their streams. "
                "Annotate the input as dict[str, pyarrow.Table], or as one RecordBatchReader."
            )
        return {
            key: frames.from_arrow(stream, frame_class)
            for key, stream in read_by_partition(settings, tracking, request)
        }

    def _environment(self, environment: str | None, asset: str) -> ConnectionSettings:
        if environment != "production":
            return _settings(self.connection)
        if self.production is None:
            raise ConfigurationError(
                f"asset {asset} is to be loaded from production, and the IO manager has no "
                "production connection. Give it one: "
                "PostgresIOManager(connection=…, production=PostgresResource(host=…))."
            )
        return _settings(self.production)


# --- what an output is ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Output:
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
    def of(cls, context: dg.OutputContext, manager: PostgresIOManager) -> "_Output":
        name = _output_name(context)
        # What the run says wins over the definition; context.output_metadata holds both kinds
        # of the run's: Output(metadata=…) and add_output_metadata.
        metadata = _unwrapped(context.definition_metadata) | _unwrapped(context.output_metadata)
        for slip, right in misspelled_keys(metadata, OUTPUT_KEYS).items():
            context.log.warning("Metadata %r of %s is ignored; is %r meant?", slip, name, right)
        options = OutputOptions.from_metadata(metadata, name)
        location_users = manager.code_location_users.get(_code_location() or "", [])
        options = replace(options, users=tuple(dict.fromkeys([*options.users, *location_users])))
        prefix = list(context.asset_key.path[:-1]) if context.has_asset_key else []
        last = context.asset_key.path[-1] if context.has_asset_key else context.name
        kind = "asset" if context.has_asset_key else "output"
        table = _table(f"{kind} {name}", options, manager, prefix, last)
        lineage = Lineage(_tracked_key(context), context.run_id, _output_partitions(context))
        return cls(name, f"{kind} {name} ({table})", table, options, lineage)


def _code_location() -> str | None:
    """Return the run's code location; a run in process, as in a test, has none."""
    running = _or_none(dg.AssetExecutionContext.get)
    return running.run.tags.get("dagster/code_location") if running is not None else None


def _output_name(context: dg.OutputContext) -> str:
    return context.asset_key.to_user_string() if context.has_asset_key else context.name


def _tracked_key(context: dg.OutputContext) -> str:
    """Return the key an output is tracked by: the asset's, or job/step/output for an op."""
    if context.has_asset_key:
        return context.asset_key.to_escaped_user_string()
    parts = [_or_none(lambda: context.job_name), context.step_key, context.name]
    if context.mapping_key is not None and f"[{context.mapping_key}]" not in context.step_key:
        parts.append(context.mapping_key)
    return "/".join(part for part in parts if part)


def _output_partitions(context: dg.OutputContext) -> tuple[str | None, ...]:
    if context.has_asset_partitions:
        return tuple(sorted(map(str, context.asset_partition_keys)))
    if not context.has_asset_key and context.has_partition_key:
        return (str(context.partition_key),)
    return (None,)


def _frame_and_merge(obj: object, options: OutputOptions) -> tuple[object, Merge | None]:
    """Return the frame, and how its rows join the earlier ones; None where they replace them.

    There is no append by accident: without a key or a deletion a re-run would double the rows.
    """
    if options.incremental and not options.primary_key:
        raise ConfigurationError(
            "incremental needs a primary_key, which tells new rows from those to update. "
            "Name it in the metadata: 'primary_key': 'id'."
        )
    if not isinstance(obj, IncrementalDataFrame):
        return obj, Merge() if options.incremental else None
    if obj.delete is None and not options.primary_key:
        raise ConfigurationError(
            "An IncrementalDataFrame needs to know which earlier rows go: give it "
            "delete=Eq(...), or the asset a primary_key."
        )
    if isinstance(obj.frame, (SQL, IncrementalDataFrame)):
        raise ConfigurationError(
            "IncrementalDataFrame takes a frame or a Query, and got an object of class "
            f"{type(obj.frame).__name__}."
        )
    return obj.frame, Merge(_deletion(obj.delete) if obj.delete is not None else None)


def _deletion(expression: Delete) -> Deletion:
    """Bring the values of a delete expression to Arrow, as those of a frame are."""
    if isinstance(expression, Eq):
        columns = (
            zip(*expression.rows, strict=True)
            if expression.rows
            else [()] * len(expression.columns)
        )
        arrays = [
            _values(list(values), column)
            for values, column in zip(columns, expression.columns, strict=True)
        ]
        return Keys(expression.columns, pa.table(arrays, names=list(expression.columns)))
    operands = tuple(_deletion(operand) for operand in expression.operands)
    return AllOf(operands) if isinstance(expression, And) else AnyOf(operands)


def _values(values: list[object], column: str) -> pa.Array:
    try:
        return frames.values_to_arrow(values, column)
    except BadValue as error:
        which = "a value" if error.row is None else f"value {error.row}"
        raise BadValue(f"delete: {which} {error.reason}", column=column) from None


def _rows(
    context: dg.OutputContext, output: Output, obj: object, hints: Mapping[str, pa.DataType]
) -> tuple[pa.Table | pa.RecordBatchReader, bool]:
    """Return the output's rows as Arrow, and whether each is marked with its partition."""
    keys = [key for key in output.lineage.partition_keys if key is not None]
    if isinstance(obj, dict):
        if not keys:
            raise ConfigurationError(
                "A dict of frames is for a run over several partitions, and this output has none."
            )
        with _told_once(context):
            by_key = {key: _partition(key, frame, hints) for key, frame in obj.items()}
        return join_partitions(by_key, keys), True
    with _told_once(context):
        rows = _arrow(obj, hints)
    if len(keys) < 2:
        return rows, False
    if output.options.partition_expr is None:
        raise ConfigurationError(
            f"The run covers {len(keys)} partitions ({keys[0]} to {keys[-1]}), and a single "
            "frame does not say which row belongs to which. Return a dict of partition key to "
            "frame, or name the column that tells with metadata={'partition_expr': 'column'}."
        )
    if len(rows.schema) == 0:
        return join_partitions(dict.fromkeys(keys, rows), keys), True
    definition = context.asset_partitions_def
    return assign_partitions(rows, output.options.partition_expr, definition, keys), True


def _partition(
    key: object, frame: object, hints: Mapping[str, pa.DataType]
) -> pa.Table | pa.RecordBatchReader:
    try:
        return _arrow(frame, hints)
    except DagsterToolsError as error:
        error.about(f"partition {key}")
        raise


@contextmanager
def _told_once(context: dg.OutputContext) -> Iterator[None]:
    """Log which indexes are not written: once, however many frames have such an index."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", frames.IndexDropped)
        yield
    dropped = [str(w.message) for w in caught if issubclass(w.category, frames.IndexDropped)]
    for message in dict.fromkeys(dropped):
        context.log.warning(message)
    for other in caught:
        if not issubclass(other.category, frames.IndexDropped):
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)


def _arrow(frame: object, hints: Mapping[str, pa.DataType]) -> pa.Table | pa.RecordBatchReader:
    rows = frames.to_arrow(frame, hints)
    if rows.schema.names:
        check_column_names(rows.schema.names)
    return rows


def _output_metadata(
    written: Written, seconds: float, lineage: Lineage, *, merged: bool
) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "dagster/table_name": f"{written.database}.{written.table.schema}.{written.table.name}",
        "dagster/storage_kind": "postgres",
        "seconds": round(seconds, 3),
    }
    if written.existing is not None:
        metadata["dagster/column_schema"] = _table_schema(written.existing)
    if written.rows is None:
        return metadata
    metadata["rows_per_second"] = round(written.rows / seconds) if seconds else 0
    metadata["bytes"] = written.bytes
    if merged:
        done = written.counts.values()
        metadata |= {
            "rows_inserted": sum(count.inserted for count in done),
            "rows_updated": sum(count.updated for count in done),
            "rows_unchanged": sum(count.unchanged for count in done),
            "rows_deleted": sum(count.deleted for count in done),
        }
    elif len(lineage.partition_keys) > 1:
        # Dagster attaches the same metadata to each partition's event; a count for all of
        # them would be shown as each one's.
        metadata["rows"] = written.rows
    elif lineage.partitioned:
        metadata["dagster/partition_row_count"] = written.rows
    else:
        metadata["dagster/row_count"] = written.rows
    return metadata


def _table_schema(existing: ExistingTable) -> dg.TableSchema:
    key = existing.primary_key
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                column.name,
                type=str(column.type),
                constraints=dg.TableColumnConstraints(
                    nullable=not column.not_null,
                    unique=existing.has_index([column.name], unique=True),
                    other=["primary key"] if column.name in key else [],
                ),
            )
            for column in existing.columns
            if column.name != MATERIALIZATION_ID
        ]
    )


# --- what an input asks for -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Asked:
    """What an input's annotation asks for.

    Args:
        optional: None stands for what was never materialized.
        by_partition: A dict of partition key to frame.
    """

    annotation: object
    optional: bool
    by_partition: bool

    @classmethod
    def by(cls, context: dg.InputContext) -> "_Asked":
        annotation: Any = _or_none(lambda: context.dagster_type.typing_type)
        if typing.get_origin(annotation) is list:
            # A fan-in of several ops: Dagster loads each of its elements with a call of its own.
            annotation = typing.get_args(annotation)[0]
        annotation, optional = _without_none(annotation)
        by_partition = typing.get_origin(annotation) is dict
        if by_partition:
            annotation = typing.get_args(annotation)[1]
        elif annotation is dict:
            by_partition, annotation = True, None
        return cls(annotation, optional, by_partition)

    @property
    def frame_class(self) -> type:
        return frames.frame_class(self.annotation)


def _without_none(annotation: object) -> tuple[object, bool]:
    if typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        rest = [item for item in typing.get_args(annotation) if item is not type(None)]
        if len(rest) == 1:
            return rest[0], True
    return annotation, False


def _request(
    context: dg.InputContext, manager: PostgresIOManager, asked: _Asked
) -> tuple[Request, str | None]:
    """Return what to read, and from which environment."""
    name = _input_name(context)
    own = _unwrapped(context.definition_metadata)
    consumer = _consumer_metadata(context)
    for slip, right in misspelled_keys(own, INPUT_KEYS).items():
        context.log.warning("Metadata %r of input %s is ignored; is %r meant?", slip, name, right)
    environment = _environment_name(own if "environment" in own else consumer, name)
    if _is_own_earlier(context):
        environment = None
    options = InputOptions.from_metadata(
        own, name, full_table=_boolean(consumer, "full_table", name)
    )
    upstream = context.upstream_output
    definition = _unwrapped(upstream.definition_metadata) if upstream is not None else {}
    written = OutputOptions.from_metadata(definition, name)
    if context.has_asset_key:
        path = context.asset_key.path
        key, last, prefix = context.asset_key.to_escaped_user_string(), path[-1], path[:-1]
    elif upstream is not None:
        key, last, prefix = _tracked_key(upstream), upstream.name, ()
    else:
        raise ConfigurationError("An input without an asset key and without an upstream output.")
    table = _table(f"input {name}", written, manager, prefix, last)
    partitions = _input_partitions(context)
    request = Request(key, table, partitions, options, written.columns, asked.optional)
    return request, environment


def _input_name(context: dg.InputContext) -> str:
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


def _is_own_earlier(context: dg.InputContext) -> bool:
    """Whether the asset takes its own earlier partitions, which are never production's."""
    if not (context.has_input_name and context.has_asset_key):
        return False
    computed = _or_none(lambda: dg.AssetExecutionContext.get().assets_def.keys)
    return context.asset_key in (computed or ())


def _consumer_metadata(context: dg.InputContext) -> dict[str, object]:
    """Return the metadata of the assets that take the input.

    Outside a run there is no consumer; the context in scope there, if any, is another
    asset's whose body loads this one (`load_asset_value`), and its options are not meant.
    """
    if not context.has_input_name:
        return {}
    try:
        running = dg.AssetExecutionContext.get()
        by_key = running.assets_def.metadata_by_key
        consumers = [_unwrapped(by_key[key]) for key in running.selected_asset_keys]
    except dg.DagsterError:  # an op or an asset check, which computes no assets
        definition = _or_none(lambda: context.op_def)
        outputs = definition.output_defs if definition is not None else []
        consumers = [_unwrapped(output.metadata) for output in outputs]
    merged: dict[str, object] = {}
    for key in ("environment", "full_table"):
        said = [metadata[key] for metadata in consumers if key in metadata]
        if any(value != said[0] for value in said):
            raise ConfigurationError(
                f"The assets computed together say different things about {key!r}: {said}. "
                f"Say it on the input instead: AssetIn(metadata={{{key!r}: …}})."
            )
        if said:
            merged[key] = said[0]
    return merged


def _environment_name(metadata: Mapping[str, object], name: str) -> str | None:
    environment = metadata.get("environment")
    if environment in {None, "development", "production"}:
        return None if environment is None else str(environment)
    raise ConfigurationError(
        f"input {name}, metadata 'environment' is {environment!r}; expected 'production' or "
        "'development'."
    )


def _boolean(metadata: Mapping[str, object], key: str, name: str) -> bool:
    try:
        return parse_boolean(metadata.get(key, False))
    except ValueError as error:
        raise ConfigurationError(
            f"input {name}, metadata {key!r} is {metadata[key]!r}; expected {error}."
        ) from None


def _observe(context: dg.InputContext, loaded: object, environment: str) -> None:
    """Log how much was loaded and from where, as an observation of the upstream asset."""
    if not (context.has_input_name and context.has_asset_key):
        return
    several: list[object] = [*loaded.values()] if isinstance(loaded, dict) else [loaded]
    counts = [len(frame) for frame in several if isinstance(frame, Sized)]
    metadata: dict[str, Any] = {"environment": environment}
    if len(counts) == len(several):  # a stream is not counted beforehand
        metadata["rows"] = sum(counts)
    partitions = len(list(context.asset_partition_keys)) if context.has_asset_partitions else 1
    if partitions == 1:
        context.add_input_metadata(metadata)
        return
    # add_input_metadata asks for the one partition key; the asset as a whole is observed instead.
    running = _or_none(dg.AssetExecutionContext.get)
    if partitions and running is not None:
        metadata["partitions"] = partitions
        running.log_event(dg.AssetObservation(context.asset_key, metadata=metadata))


# --- small things ---------------------------------------------------------------------------


class _Progress:
    """Logs a line every ten seconds; a transfer shorter than that is silent."""

    def __init__(self, log: Any, where: str) -> None:
        self.log, self.where = log, where
        self.started = self.last = time.monotonic()
        self.rows = self.bytes = 0

    def __call__(self, rows: int, size: int) -> None:
        self.rows, self.bytes = self.rows + rows, self.bytes + size
        now = time.monotonic()
        if now - self.last < SECONDS_BETWEEN_PROGRESS:
            return
        self.last = now
        megabytes, rate = self.bytes / 1e6, self.rows / (now - self.started)
        sent = f"{self.rows:,} rows ({megabytes:,.0f} MB)"
        self.log.info("%s %s, %s rows/s", sent, self.where, f"{rate:,.0f}")


def _refuse_unknown(cls: type[BaseModel], values: Mapping[str, Any]) -> None:
    """Refuse a misspelled argument: pydantic would ignore it, and its value with it."""
    fields_by_alias = {field.alias or name for name, field in cls.model_fields.items()}
    unknown = sorted(values.keys() - fields_by_alias - cls.model_fields.keys())
    if unknown:
        raise ConfigurationError(
            f"{cls.__name__} has no {', '.join(map(repr, unknown))}; "
            f"it has {', '.join(sorted(fields_by_alias))}."
        )


def _check_resource(name: str, value: object) -> None:
    """Refuse what cannot be a PostgresResource; what Dagster makes one of later passes."""
    if isinstance(value, (str, Mapping)):
        raise ConfigurationError(
            f"{name} is a {type(value).__name__}; expected a PostgresResource. "
            "PostgresResource.from_url(…) makes one of a URL."
        )


def _settings(resource: PostgresResource | None) -> ConnectionSettings:
    return resource.settings() if resource is not None else ConnectionSettings()


def _table(
    subject: str,
    options: OutputOptions,
    manager: PostgresIOManager,
    prefix: Sequence[str],
    last: str,
) -> Table:
    """Return where an output is kept; what is set but empty is a mistake, not a default."""
    default = prefix[-1] if prefix else DEFAULT_SCHEMA
    named = (options.schema, _resolved(manager.schema_))
    schema = next((name for name in named if name is not None), default)
    try:
        return Table(schema, last if options.table is None else options.table)
    except ConfigurationError as error:
        error.about(subject)
        raise


def _resolved(value: Any) -> Any:
    """Read an EnvVar; inside a run Dagster has done so already."""
    if not hasattr(value, "get_value"):
        return value
    read = value.get_value()
    if read is None:
        raise ConfigurationError(f"The environment variable {value.env_var_name} is not set.")
    return read


def _unwrapped(metadata: Mapping[str, Any] | None) -> dict[str, object]:
    return {
        key: value.value if isinstance(value, dg.MetadataValue) else value
        for key, value in (metadata or {}).items()
    }


def _or_none(read: Callable[[], Any]) -> Any:
    """Return what a context property holds, None where this context has no such thing."""
    try:
        return read()
    except (dg.DagsterError, AttributeError):
        return None


def _plain_cursor() -> Any:
    import psycopg

    return psycopg.Cursor
