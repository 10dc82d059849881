"""Dagster's contexts ⇄ requests to the core. No SQL and no frame code here."""

# No `from __future__ import annotations`: Dagster finds ResourceDependency fields by their
# evaluated annotations when the class is made (dagster 1.13, _config/pythonic_config/typing_utils).

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import dagster as dg
import pyarrow as pa
from pydantic import ConfigDict, Field

from dagster_tools import frames
from dagster_tools.configuration import refuse_unknown, resolved
from dagster_tools.contexts import unwrapped
from dagster_tools.errors import (
    ConfigurationError,
    DagsterToolsError,
    MaterializationNotFound,
)
from dagster_tools.frames.maps import sampled
from dagster_tools.inputs import Asked, input_name, request_for
from dagster_tools.outputs import (
    AssetOutput,
    Defaults,
    SharedSource,
    port,
    siblings,
    unselected_outputs,
)
from dagster_tools.postgres.batches import Totals, load_batches
from dagster_tools.postgres.connection import (
    Connection,
    ConnectionSettings,
    connect,
    transaction,
    translated,
    url_settings,
)
from dagster_tools.postgres.leftovers import warn_of_leftovers
from dagster_tools.postgres.options import (
    OUTPUT_KEYS,
)
from dagster_tools.postgres.read import Request, read_by_partition, read_relation, read_table
from dagster_tools.postgres.run import run_sql
from dagster_tools.postgres.tracking import Tracking
from dagster_tools.postgres.write import Output, Written, write_table
from dagster_tools.returned import (
    batch_to_arrow,
    check_incremental,
    check_transacted,
    frame_and_merge,
    hints_for,
    rows_of,
    told_once,
)
from dagster_tools.shown import batches_metadata, geometry_metadata, observe, output_metadata
from dagster_tools.sql import (
    LAST,
    SQL,
    Batches,
    Query,
    Relation,
    Transacted,
)

if TYPE_CHECKING:
    import psycopg

__all__ = ["BatchesConfig", "PostgresIOManager", "PostgresResource"]

EPHEMERAL_RUN_ID = "__EPHEMERAL_RUN_ID"
"""What build_output_context gives as the run (dagster, _core/execution/context/output.py)."""


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
        refuse_unknown(type(self), values)
        super().__init__(**values)

    @classmethod
    def from_url(cls, url: str) -> "PostgresResource":
        """Return the resource a `postgresql://` URL describes; an EnvVar is read at once.

        Raises:
            ConfigurationError: It is no such URL; the message does not repeat it.
        """
        settings = url_settings(resolved(url))
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
            item.name: resolved(getattr(self, item.name)) for item in fields(ConnectionSettings)
        }
        return ConnectionSettings(**values)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            if value is not None:
                yield name, "***" if name == "password" else value

    def __str__(self) -> str:
        return repr(self)


class BatchesConfig(dg.Config):
    """Run config of an asset that returns `Batches`: where this one run begins.

    Example:
        >>> @dg.asset(io_manager_key="postgres_io_manager")
        ... def orders(config: BatchesConfig):
        ...     return Batches(read_orders, start=config.start)  # doctest: +SKIP
    """

    start_over: bool = Field(default=False, description="Begin anew, as in the first run.")
    high_watermark: Any = Field(
        default=None, description="Begin at this high watermark instead of the last."
    )

    @property
    def start(self) -> object:
        """What `Batches` take as `start`."""
        if self.start_over and self.high_watermark is not None:
            raise ConfigurationError("Give start_over or high_watermark, not both.")
        if self.start_over:
            return None
        return LAST if self.high_watermark is None else self.high_watermark


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
    geometry_storage: str = Field(
        default="postgis",
        description="How new columns keep geometry: 'postgis', or 'ewkb' (EWKB in bytea) for "
        "servers without PostGIS.",
    )
    code_location_users: dict[str, list[str]] = Field(
        default={"datasmart": ["datasmart_user"]},
        description="Roles that may read what the assets of a code location write.",
    )

    def __init__(self, **values: Any) -> None:
        refuse_unknown(type(self), values)
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
        output = AssetOutput.of(context, self._defaults())
        try:
            self._write(context, output, obj)
        except DagsterToolsError as error:
            error.about(output.label)
            raise

    def load_input(self, context: dg.InputContext) -> object:
        """Load what an asset or op takes, as the class its annotation asks for."""
        asked = Asked.by(context)
        try:
            return self._read(context, asked)
        except MaterializationNotFound:
            if asked.optional:
                return None
            raise

    def _defaults(self) -> Defaults:
        return Defaults(
            resolved(self.schema_), resolved(self.geometry_storage), self.code_location_users
        )

    # --- out --------------------------------------------------------------------------------

    def _write(self, context: dg.OutputContext, output: AssetOutput, obj: object) -> None:
        if isinstance(obj, Batches):
            self._load_batches(context, output, obj)
            return
        started = time.monotonic()
        tracking = Tracking(resolved(self.tracking_schema))
        before_commit: Callable[[Any], object] | None = None
        if isinstance(obj, Transacted):
            check_transacted(obj, output.options)
            before_commit, obj = obj.before_commit, obj.value
        if obj is None and before_commit is not None:
            self._run_alone(before_commit)
            return
        frame, merge = frame_and_merge(obj, output.options)
        target = Output(
            output.table,
            output.options,
            output.lineage,
            tracking,
            context.log,
            merge,
            before_commit,
        )
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
            output_metadata(written, seconds, output.lineage, merged=merge is not None)
        )

    def _run_alone(self, before_commit: Callable[[Any], object]) -> None:
        """Run what was to run in a write's transaction where there is nothing to write."""
        step = "committing an output of nothing"
        with (
            closing(connect(_settings(self.connection))) as connection,
            translated(step),
            transaction(connection),
        ):
            before_commit(connection)

    def _store(
        self,
        context: dg.OutputContext,
        connection: Connection,
        output: Output,
        frame: object,
    ) -> Written:
        with told_once(context):
            data, by_partition = rows_of(context, output, frame, hints_for(connection, output))
            data, sample = sampled(data)
            written = write_table(connection, output, data, by_partition=by_partition)
        if len(output.lineage.partition_keys) == 1:
            # Several partitions would each get the same map, and keep it.
            context.add_output_metadata(geometry_metadata(context, sample, written))
        return written

    def _load_batches(
        self, context: dg.OutputContext, output: AssetOutput, batches: Batches
    ) -> None:
        """Load the batches of a source, once for all outputs that share it."""
        started = time.monotonic()
        check_incremental(output.options)
        shared = SharedSource.of(batches, context)
        total = shared.totals.pop(port(context), None)
        if total is None:
            shared.totals = self._load_shared(context, output, shared, batches)
            total = shared.totals.pop(port(context))
            if total.batches == 0:
                shared.nothing_new[port(context)] = total.high_watermark
        elif unwrapped(context.output_metadata).keys() & set(OUTPUT_KEYS):
            raise ConfigurationError(
                "The outputs that share Batches are written together with the first of them, "
                "before this one's run-time metadata is known. Say it in the definition."
            )
        seconds = time.monotonic() - started
        context.add_output_metadata(batches_metadata(total, seconds))

    def _load_shared(
        self, context: dg.OutputContext, output: AssetOutput, shared: SharedSource, batches: Batches
    ) -> dict[str, Totals]:
        tracking = Tracking(resolved(self.tracking_schema))
        outputs = {port(context): output} | siblings(context, self._defaults(), output)
        with told_once(context):
            return load_batches(
                lambda: connect(_settings(self.connection)),
                {
                    name: Output(item.table, item.options, item.lineage, tracking, context.log)
                    for name, item in outputs.items()
                },
                port(context),
                shared.left_of(batches),
                batch_to_arrow,
                unselected=unselected_outputs(),
                nothing_new=shared.nothing_new,
            )

    # --- in ---------------------------------------------------------------------------------

    def _read(self, context: dg.InputContext, asked: Asked) -> object:
        request, environment = request_for(context, self._defaults(), asked)
        settings = self._environment(environment, request.asset_key)
        try:
            loaded = self._frames(settings, request, asked, environment or "development")
        except MaterializationNotFound:
            raise
        except DagsterToolsError as error:
            error.about(f"asset {input_name(context)}")
            raise
        observe(context, loaded, environment or "development")
        return loaded

    def _frames(
        self, settings: ConnectionSettings, request: Request, asked: Asked, environment: str
    ) -> object:
        """Read what is asked for, as the frame or the dict of frames it is asked for as."""
        tracking = Tracking(resolved(self.tracking_schema))
        if asked.annotation is Relation:
            # Production's own deployment names one database as both, and statements see it.
            here = _same_database(settings, _settings(self.connection))
            return read_relation(
                settings, tracking, request, "development" if here else environment
            )
        frame_class = asked.frame_class
        if not asked.by_partition:
            return frames.from_arrow(read_table(settings, tracking, request), frame_class)
        if issubclass(frame_class, pa.RecordBatchReader):
            raise ConfigurationError(
                "The partitions arrive one after the other, so a dict cannot hold their streams. "
                "Annotate the input as dict[str, pyarrow.Table], or as one RecordBatchReader."
            )
        found = {
            key: frames.from_arrow(stream, frame_class)
            for key, stream in read_by_partition(settings, tracking, request)
        }
        if asked.each_optional and request.partition_keys is not None:
            return {key: found.get(key) for key in request.partition_keys}
        return found

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


# --- small things ---------------------------------------------------------------------------


def _check_resource(name: str, value: object) -> None:
    """Refuse what cannot be a PostgresResource; what Dagster makes one of later passes."""
    if isinstance(value, (str, Mapping)):
        raise ConfigurationError(
            f"{name} is a {type(value).__name__}; expected a PostgresResource. "
            "PostgresResource.from_url(…) makes one of a URL."
        )


def _same_database(one: ConnectionSettings, other: ConnectionSettings) -> bool:
    return (one.host, one.port, one.dbname) == (other.host, other.port, other.dbname)


def _settings(resource: PostgresResource | None) -> ConnectionSettings:
    return resource.settings() if resource is not None else ConnectionSettings()


def _plain_cursor() -> Any:
    import psycopg

    return psycopg.Cursor
