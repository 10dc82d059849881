"""What tests of the IO manager share: frames of every library, short pipelines, and what they left.

A claim about frames takes the fixture `frame` and so is made for pandas, Arrow tables and Arrow
streams alike. `store` and `load` use the manager bare, which is quick; `materialize` runs Dagster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import dagster as dg
import pandas as pd
import pyarrow as pa
import pytest
from psycopg import sql

from dagster_tools.postgres_io_manager import PostgresIOManager, PostgresResource
from tests.fix_servers import Database

Rows = list[tuple[Any, ...]]


class FrameFactory(Protocol):
    """Make a frame of one library: `frame({"id": [1, 2], "name": ["a", None]})`.

    Values are lists, or numpy arrays where their type matters.
    """

    def __call__(self, columns: Mapping[str, Any]) -> Any: ...


def pandas_frame(columns: Mapping[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(dict(columns))


def arrow_table(columns: Mapping[str, Any]) -> pa.Table:
    return pa.table(dict(columns))


def arrow_stream(columns: Mapping[str, Any]) -> pa.RecordBatchReader:
    """Make a stream, which is read once, of batches so small that two rows are two of them."""
    return pa.table(dict(columns)).to_reader(max_chunksize=1)


@pytest.fixture(
    params=[
        pytest.param(pandas_frame, id="pandas"),
        pytest.param(arrow_table, id="arrow"),
        pytest.param(arrow_stream, id="stream"),
    ]
)
def frame(request) -> FrameFactory:
    """A factory of frames, once for each library: whoever asks for it claims it for all."""
    factory: FrameFactory = request.param
    return factory


@pytest.fixture
def io_manager(database: Database) -> PostgresIOManager:
    """The IO manager on a fresh database."""
    return PostgresIOManager(connection=resource_for(database))


def resource_for(database: Database, **overrides: Any) -> PostgresResource:
    settings: dict[str, Any] = {
        "host": database.host,
        "port": database.port,
        "dbname": database.dbname,
        "user": database.user,
        "password": database.password,
    }
    return PostgresResource(**(settings | overrides))


def manager_for(database: Database, **options: Any) -> PostgresIOManager:
    return PostgresIOManager(connection=resource_for(database), **options)


# --- short pipelines ------------------------------------------------------------------------


def store(
    manager: PostgresIOManager,
    obj: object,
    *,
    key: str | Sequence[str] = "numbers",
    **metadata: Any,
) -> dict[str, Any]:
    """Hand an asset's output to the manager, and return the metadata it logged.

    Args:
        metadata: Of the asset's definition.
    """
    context = dg.build_output_context(
        asset_key=dg.AssetKey(key), definition_metadata=metadata or None
    )
    manager.handle_output(context, obj)
    return {name: _raw(value) for name, value in context.get_logged_metadata().items()}


def load(
    manager: PostgresIOManager,
    as_type: Any = pd.DataFrame,
    *,
    key: str | Sequence[str] = "numbers",
    upstream: Mapping[str, Any] | None = None,
    **metadata: Any,
) -> Any:
    """Load an asset as an input of this annotation.

    Args:
        upstream: Metadata of the asset's definition.
        metadata: Of the input.
    """
    return manager.load_input(
        dg.build_input_context(
            asset_key=dg.AssetKey(key),
            dagster_type=dg.TypeHintInferredDagsterType(as_type)
            if False
            else dg.PythonObjectDagsterType(as_type),
            definition_metadata=metadata or None,
            upstream_output=dg.build_output_context(
                asset_key=dg.AssetKey(key), definition_metadata=dict(upstream or {})
            ),
        )
    )


def materialize(
    assets: Any,
    manager: Any,
    *,
    resources: Mapping[str, Any] | None = None,
    **options: Any,
) -> dg.ExecuteInProcessResult:
    """Materialize assets in this process; `options` are those of `dg.materialize`."""
    return dg.materialize(
        list(assets) if isinstance(assets, (list, tuple)) else [assets],
        resources={"io_manager": manager, **(resources or {})},
        **options,
    )


