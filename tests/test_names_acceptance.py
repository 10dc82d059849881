"""Names of any shape come back exactly, impossible ones are refused, and none is ever executed.

What the issue asks under **Names**. Bare contexts for the many cases; where Dagster has a say,
in keys of assets and partitions, real runs too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa
import pytest
from psycopg import sql

from dagster_tools.errors import ConfigurationError, DagsterToolsError
from dagster_tools.postgres_io_manager import PostgresIOManager
from dagster_tools.sql import Eq, IncrementalDataFrame
from tests.fix_servers import Database
from tests.pipelines import (
    FrameFactory,
    duckdb_relation,
    fingerprint,
    load,
    manager_for,
    materialize,
    query,
    resource_for,
    shared_instance,
    store,
)

LONGEST = "x" * 63
DUCKS = "🦆" * 15  # 60 bytes
NAMES = [
    'a"b',
    '"',
    "100%",
    "%s and %(x)s",
    "{}",
    "{x} {0} {{",
    ":x",
    "$1",
    "a.b.c",
    " lead and trail ",
    "a\nb\r\tc",
    "it's \\ back",
    "-- /* $$",
    "Straße",
    "日本語",
    "שלום \u202e",
    "é",
    "e\u0301",
    "select",
    "User",
    "ID",
    "id",
    "oid",
    "materialization_ID",
    LONGEST,
    DUCKS,
]
"""Names that PostgreSQL keeps as they are, and that something on the way might not."""

ALIASES = ["stored", "staging", "kept", "present", "excluded", "query", "row", "k0", "inserted"]
"""Names that statements of ours use themselves."""

EVERY = [*NAMES, *ALIASES]
SOME = ['a"b', "%s {} $1", "a\nb", "select", "Id", LONGEST, DUCKS]
"""Enough for what takes a statement or a round trip each."""


BY_PARTITION: Any = dg.In(dict[str, pa.Table]).dagster_type


def write(
    manager: PostgresIOManager, obj: object, key: Sequence[str] = ("t",), **metadata: Any
) -> None:
    store(manager, obj, key=key, **metadata)


def put(manager: PostgresIOManager, obj: object, **facts: Any) -> None:
    """Hand an output over in a context of these facts; one that is not closed keeps an instance."""
    with dg.build_output_context(**{"instance": shared_instance()} | facts) as context:
        manager.handle_output(context, obj)


def read(
    manager: PostgresIOManager,
    key: Sequence[str] = ("t",),
    upstream: Mapping[str, Any] | None = None,
    **metadata: Any,
) -> pa.Table:
    loaded = load(manager, pa.Table, key=key, upstream=upstream, **metadata)
    assert isinstance(loaded, pa.Table)
    return loaded


def stored_names(database: Database) -> set[tuple[str, str]]:
    """Return schema and name of every table but PostGIS' and the tracking tables."""
    found = query(
        database,
        """
        SELECT n.nspname, c.relname
        FROM pg_class AS c
        JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE c.relkind = 'r'
          AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'meta')
          AND c.relname <> 'spatial_ref_sys'
        """,
    )
    return {(schema, name) for schema, name in found}


# --- names that come back -------------------------------------------------------------------


def test_columns_of_any_name_come_back_in_their_order_with_their_values(
    io_manager: PostgresIOManager, frame: FrameFactory
):
    names = EVERY
    if frame is duckdb_relation:  # which takes "Id" and "id" for one name
        names = list({name.lower(): name for name in EVERY}.values())
    values = {name: [number, None] for number, name in enumerate(names)}

    write(io_manager, frame(values))
    loaded = read(io_manager)

    assert loaded.column_names == names
    assert loaded.to_pylist()[0] == {name: number for number, name in enumerate(names)}


def test_any_column_may_be_declared_and_be_part_of_a_key_unique_and_indexed(
    database: Database, io_manager: PostgresIOManager
):
    frame = pa.table({name: [1, 2] for name in EVERY})
    columns = dict.fromkeys(EVERY, ("bigint", "not null", "unique", "index"))

    write(io_manager, frame, primary_key=EVERY[::-1][:32], columns=columns)

    assert key_columns(database, "p") == [EVERY[::-1][:32]]
    assert sorted(key_columns(database, "u")) == sorted([name] for name in EVERY)


def test_any_column_may_be_declared_not_null_unique_and_indexed_later(
    database: Database, io_manager: PostgresIOManager
):
    names = ['a"b', "%s {} $1", "a\nb", DUCKS]
    frame = pa.table({name: [1, 2] for name in names})
    columns = dict.fromkeys(names, ("uint", "not null", "unique", "index"))

    write(io_manager, frame, table=DUCKS, columns=dict.fromkeys(names, "int"))
    write(io_manager, frame, table=DUCKS, columns=columns, primary_key=names)

    assert key_columns(database, "p") == [names]
    assert sorted(key_columns(database, "u")) == sorted([name] for name in names)
    assert read(io_manager, upstream={"table": DUCKS}).to_pydict() == frame.to_pydict()


def key_columns(database: Database, kind: str) -> list[list[str]]:
    """Return the columns of each primary key ('p') or unique constraint ('u')."""
    found = query(
        database,
        """
        SELECT array_agg(a.attname::text ORDER BY k.position)
        FROM pg_constraint AS r
        JOIN pg_namespace AS n ON n.oid = r.connamespace
        CROSS JOIN unnest(r.conkey) WITH ORDINALITY AS k (number, position)
        JOIN pg_attribute AS a ON a.attrelid = r.conrelid AND a.attnum = k.number
        WHERE r.contype = %s AND n.nspname = 'public' AND r.conrelid <> 'spatial_ref_sys'::regclass
        GROUP BY r.oid
        """,
        kind,
    )
    return [names for (names,) in found]


def test_an_input_selects_casts_and_sorts_by_columns_of_any_name(io_manager: PostgresIOManager):
    frame = pa.table({name: [10, 9, number] for number, name in enumerate(EVERY)})
    write(io_manager, frame)
    backwards = EVERY[::-1]

    selected = read(io_manager, columns=backwards, order_by=EVERY)
    cast = read(io_manager, columns=dict.fromkeys(backwards, "text"), order_by=backwards)

    assert selected.column_names == cast.column_names == backwards
    assert selected.column('a"b').to_pylist() == [0, 9, 10]
    assert cast.column("{}").to_pylist() == ["9", "10", "4"]  # sorted as numbers, by the last name


def test_a_type_may_be_spelled_in_each_way_postgresql_reads(
    database: Database, io_manager: PostgresIOManager
):
    spellings = ["mood", "Public.Mood", '"mood"', 'types."My.Mood"', 'types."My.Mood"[]']
    spellings += ["pg_catalog.int4", "public.geometry(Point,4326)"]
    with database.connect() as connection:
        connection.execute(
            """
            CREATE TYPE mood AS ENUM ('happy');
            CREATE SCHEMA types;
            CREATE TYPE types."My.Mood" AS ENUM ('happy');
            """
        )
    columns = {str(number): declared for number, declared in enumerate(spellings)}
    frame = pa.table({"n": [1], **dict.fromkeys(columns, pa.nulls(1))})

    for _twice in range(2):
        write(io_manager, frame, columns=columns)

    assert read(io_manager).to_pylist() == frame.to_pylist()


def test_columns_of_any_name_are_added_later_and_widened(io_manager: PostgresIOManager):
    names = [*SOME, *ALIASES]
    wide = pa.table({"first": [1], **dict.fromkeys(names, pa.array([2**40]))})

    write(io_manager, pa.table({"first": [1]}), table=LONGEST)
    write(
        io_manager,
        pa.table({"first": [1], **dict.fromkeys(names, pa.array([1], pa.int32()))}),
        table=LONGEST,
    )
    write(io_manager, wide, table=LONGEST)

    assert read(io_manager, upstream={"table": LONGEST}).equals(wide)


@pytest.mark.parametrize("key", [SOME, [*ALIASES, "v"]], ids=["odd", "our own aliases"])
def test_rows_are_replaced_by_a_key_of_any_name(io_manager: PostgresIOManager, key: list[str]):
    """Upserts, deletes by value, and replaces where a foreign key points at the rows."""
    values = [name + "!" for name in key if name not in {LONGEST, DUCKS}]
    old, new = ({name: [at, at + 1] for name in [*key, *values]} for at in (1, 2))
    options: dict[str, Any] = {"primary_key": key, "incremental": True}
    options |= {"table": key[0], "schema": key[1]}

    write(io_manager, pa.table(old), **options)
    write(io_manager, pa.table(new), **options)
    write(
        io_manager,
        IncrementalDataFrame(pa.table(new).slice(0, 0), delete=Eq(key, [(3,) * len(key)])),
        **options,
    )

    loaded = read(io_manager, upstream=options, order_by=key)
    assert loaded.to_pydict() == {name: [1, 2] for name in [*key, *values]}


def test_rows_that_others_reference_are_replaced_whatever_their_columns_are_called(
    database: Database, io_manager: PostgresIOManager
):
    names = [*SOME, *ALIASES]
    frame = pa.table({name: [1, 2] for name in names})
    write(io_manager, frame, table=DUCKS, primary_key=names)
    with database.connect() as connection:
        listed = sql.SQL(", ").join(map(sql.Identifier, names))
        table = sql.Identifier("public", DUCKS)
        connection.execute(sql.SQL("CREATE TABLE child AS SELECT {} FROM {}").format(listed, table))
        connection.execute(
            sql.SQL(
                "ALTER TABLE child ADD FOREIGN KEY ({}) REFERENCES {} ON DELETE CASCADE"
            ).format(listed, table)
        )

    write(io_manager, frame.slice(1), table=DUCKS, primary_key=names)

    assert read(io_manager, upstream={"table": DUCKS}).to_pydict() == frame.slice(1).to_pydict()
    assert query(database, "SELECT count(*) FROM child") == [(1,)]


def test_schemas_tables_and_asset_keys_of_any_name_keep_their_rows_apart(
    database: Database, io_manager: PostgresIOManager
):
    names = [*SOME, '"', "100%", ":x", "a.b.c", " lead and trail ", "日本語", "it's \\ / back"]
    for number, name in enumerate(names):
        write(io_manager, pa.table({"n": [number]}), [name, name])

    loaded = [read(io_manager, [name, name]).column("n").to_pylist() for name in names]

    assert loaded == [[number] for number in range(len(names))]
    assert stored_names(database) == {(name, name) for name in names}
    tracked = query(database, "SELECT asset_key FROM meta.assets ORDER BY id")
    escaped = [dg.AssetKey([name, name]).to_escaped_user_string() for name in names]
    assert [key for (key,) in tracked] == escaped


def test_schema_and_table_of_any_name_are_found_by_metadata_manager_and_full_table(
    database: Database,
):
    manager = manager_for(database, schema='Sch"ema', tracking_schema="%s {} $1\n-- ")
    write(manager, pa.table({"n": [1]}), ["a"], table='t"')
    write(manager, pa.table({"n": [2]}), ["b"], table='t"')

    own = read(manager, ["a"], {"table": 't"'})
    full = read(manager, ["c"], {"table": 't"', "schema": 'Sch"ema'}, full_table=True, order_by="n")

    assert own.to_pydict() == {"n": [1]}
    assert full.to_pydict() == {"n": [1, 2]}
    assert {'Sch"ema', "%s {} $1\n-- "} == {schema for schema, _name in stored_names(database)}


def test_asset_keys_of_any_name_go_through_a_real_run(io_manager: PostgresIOManager):
    keys = {f"o{number}": dg.AssetKey([name, name]) for number, name in enumerate(SOME)}
    keys["slash"] = dg.AssetKey(["a/b", "c"])
    keys["slashes"] = dg.AssetKey(["a", "b/c"])
    given: dict[str, list[int]] = {}

    @dg.multi_asset(outs={output: dg.AssetOut(key=key) for output, key in keys.items()})
    def upstream():
        return tuple(pd.DataFrame({"n": [number]}) for number in range(len(keys)))

    @dg.asset(ins={output: dg.AssetIn(key=key) for output, key in keys.items()})
    def downstream(**frames: pd.DataFrame) -> None:
        given.update({output: frame["n"].tolist() for output, frame in frames.items()})

    assert materialize([upstream, downstream], io_manager).success
    assert given == {output: [number] for number, output in enumerate(keys)}


def test_partition_keys_of_any_text_are_stored_verbatim(
    database: Database, io_manager: PostgresIOManager
):
    keys = [*NAMES, "", "x" * 500, "2024-01-01,b|c", "NULL", "{a,b}"]
    partitions = dg.DynamicPartitionsDefinition(name="of_any_text")
    instance = dg.DagsterInstance.ephemeral()
    instance.add_dynamic_partitions("of_any_text", keys)
    facts: dict[str, Any] = {
        "asset_key": dg.AssetKey("t"),
        "asset_partitions_def": partitions,
        "asset_partition_key_range": dg.PartitionKeyRange(keys[0], keys[-1]),
        "instance": instance,
    }

    put(io_manager, {key: pa.table({"n": [at]}) for at, key in enumerate(keys)}, **facts)
    with dg.build_input_context(dagster_type=BY_PARTITION, **facts) as context:
        loaded: Any = io_manager.load_input(context)

    assert {key: table["n"].to_pylist() for key, table in loaded.items()} == {
        key: [number] for number, key in enumerate(keys)
    }
    assert {key for (key,) in query(database, "SELECT partition_key FROM meta.assets")} == set(keys)


def test_a_partition_of_any_name_goes_through_a_real_run(io_manager: PostgresIOManager):
    key = "\"; DROP TABLE x; -- '%s {} $1 é/|,"
    partitions = dg.StaticPartitionsDefinition([key, "other"])
    given: list[pd.DataFrame] = []

    @dg.asset(partitions_def=partitions)
    def upstream(context):
        return pd.DataFrame({"key": [context.partition_key]})

    @dg.asset(partitions_def=partitions)
    def downstream(upstream: pd.DataFrame) -> None:
        given.append(upstream)

    for partition_key in [key, "other"]:
        materialize([upstream, downstream], io_manager, partition_key=partition_key)

    assert [frame["key"].tolist() for frame in given] == [[key], ["other"]]


# --- names that are refused -----------------------------------------------------------------

TOO_LONG = "y" * 64
IMPOSSIBLE: list[tuple[str, list[str]]] = [
    (TOO_LONG, [repr(TOO_LONG), repr("y" * 63)]),
    ("z" * 62 + "é", [repr("z" * 62 + "é"), repr("z" * 62)]),
    ("🦆" * 16, [repr("🦆" * 16), repr("🦆" * 15)]),
    ("", ["is empty"]),
    ("a\0b", [r"'a\x00b'", "'a'"]),
    ("a\ud800", [r"'a\ud800'"]),
]
"""Names no object can have, with what the message shows: the name, and what would be stored."""

UNCOLUMNLIKE: list[tuple[Any, list[str]]] = [
    ("ctid", ["'ctid'"]),
    ("tableoid", ["'tableoid'"]),
    ("materialization_id", ["'materialization_id'"]),
]
UNTEXTLIKE: list[tuple[Any, list[str]]] = [
    (1, ["1", "int"]),
    (None, ["None", "NoneType"]),
    (("a", "b"), ["('a', 'b')", "tuple"]),
    (2.5, ["2.5", "float"]),
    (pd.Timestamp("2024-01-01"), ["2024-01-01", "Timestamp"]),
]

FRAME = pa.table({"n": [1]})

Attempt = Callable[[Database, Any], object]


def as_key_part(database: Database, name: str) -> None:
    write(manager_for(database), FRAME, ["s", name])


def as_key_prefix(database: Database, name: str) -> None:
    write(manager_for(database), FRAME, [name, "t"])


def as_metadata(key: str, wrap: Callable[[str], object] = lambda name: name) -> Attempt:
    return lambda database, name: write(manager_for(database), FRAME, ["t"], **{key: wrap(name)})


def as_option_of_an_input(key: str, wrap: Callable[[str], object]) -> Attempt:
    return lambda database, name: read(manager_for(database), ["t"], None, **{key: wrap(name)})


def as_pandas_column(database: Database, name: Any) -> None:
    frame = pd.DataFrame([[1, 2]])
    frame.columns = pd.Index(["first", name], dtype=object)
    write(manager_for(database), frame)


def as_pandas_index(database: Database, name: Any) -> None:
    write(manager_for(database), pd.DataFrame({"n": [1]}, index=pd.Index([7], name=name)))


def as_arrow_column(database: Database, name: str) -> None:
    write(manager_for(database), pa.table([pa.array([1])], names=[name]))


def as_column_of_a_stream(database: Database, name: str) -> None:
    write(manager_for(database), pa.table([pa.array([1])], names=[name]).to_reader())


def as_setting(key: str) -> Attempt:
    return lambda database, name: write(manager_for(database, **{key: name}), FRAME)


def refusal(attempt: Attempt, database: Database, name: object) -> str:
    """Return the message, having checked that nothing at all was written."""
    before = fingerprint(database)
    with pytest.raises(ConfigurationError) as refused:
        attempt(database, name)
    assert fingerprint(database) == before, name
    return str(refused.value)


@pytest.mark.parametrize(
    "attempt",
    [
        pytest.param(as_key_part, id="last part of the asset key"),
        pytest.param(as_key_prefix, id="prefix of the asset key"),
        pytest.param(as_metadata("schema"), id="schema"),
        pytest.param(as_metadata("table"), id="table"),
        pytest.param(as_metadata("primary_key"), id="primary_key"),
        pytest.param(as_metadata("columns", lambda name: {name: "int"}), id="columns"),
        pytest.param(as_setting("schema"), id="schema of the IO manager"),
        pytest.param(as_setting("tracking_schema"), id="tracking_schema"),
        pytest.param(as_pandas_column, id="column of a DataFrame"),
        pytest.param(as_option_of_an_input("columns", lambda name: [name]), id="columns to load"),
        pytest.param(
            as_option_of_an_input("columns", lambda name: {name: "text"}), id="columns to cast"
        ),
        pytest.param(as_option_of_an_input("order_by", lambda name: name), id="order_by"),
    ],
)
def test_what_postgresql_would_change_is_refused_before_anything_is_written(database, attempt):
    messages = {name: refusal(attempt, database, name) for name, _said in IMPOSSIBLE}

    unsaid = [
        (name, part) for name, said in IMPOSSIBLE for part in said if part not in messages[name]
    ]
    assert unsaid == []


@pytest.mark.parametrize("attempt", [as_arrow_column, as_column_of_a_stream])
def test_of_arrow_columns_too(database, attempt):
    possible_in_arrow = [case for case in IMPOSSIBLE if "\ud800" not in case[0]]
    messages = {name: refusal(attempt, database, name) for name, _said in possible_in_arrow}

    assert all(part in messages[name] for name, said in possible_in_arrow for part in said)


@pytest.mark.parametrize("attempt", [as_pandas_column, as_pandas_index])
def test_labels_that_are_no_text_are_refused_before_anything_is_written(database, attempt):
    labels = [case for case in UNTEXTLIKE if not (attempt is as_pandas_index and case[0] is None)]

    messages = {name: refusal(attempt, database, name) for name, _said in labels}

    assert all(part in messages[name] for name, said in labels for part in said)


@pytest.mark.parametrize(
    "attempt",
    [
        as_pandas_column,
        as_pandas_index,
        as_arrow_column,
        as_column_of_a_stream,
        as_metadata("columns", lambda name: {name: "int"}),
    ],
    ids=["DataFrame", "index", "Arrow", "stream", "columns"],
)
def test_columns_that_are_not_the_users_are_refused_before_anything_is_written(database, attempt):
    messages = {name: refusal(attempt, database, name) for name, _said in UNCOLUMNLIKE}

    assert all(part in messages[name] for name, said in UNCOLUMNLIKE for part in said)


def frame_of(*labels: object, index: str | None = None) -> pd.DataFrame:
    frame = pd.DataFrame([range(len(labels))], index=pd.Index([7], name=index))
    frame.columns = pd.Index(list(labels), dtype=object)
    return frame


@pytest.mark.parametrize(
    ("twice", "said"),
    [
        (frame_of("a", "a"), ["'a'"]),
        (frame_of(1, "1"), ["column 1 ", "column '1'"]),
        (frame_of("None", None), ["column 'None'", "column None "]),
        (frame_of("a", index="a"), ["index 'a'", "column 'a'"]),
        (pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), ["'a'"]),
        (pa.table([pa.array([1])] * 2, names=["a", "a"]).to_reader(), ["'a'"]),
    ],
    ids=["same", "same as text", "None", "index and column", "Arrow", "stream"],
)
def test_columns_that_would_be_one_are_refused_before_anything_is_written(database, twice, said):
    message = refusal(lambda *_: write(manager_for(database), twice), database, None)

    assert [part for part in said if part not in message] == []


def test_a_key_that_postgresql_cannot_hold_is_refused_before_anything_is_written(database):
    def as_partition(database: Database, key: str) -> None:
        put(
            manager_for(database),
            FRAME,
            asset_key=dg.AssetKey("t"),
            partition_key=key,
            asset_partitions_def=dg.StaticPartitionsDefinition([key]),
        )

    def as_asset(database: Database, key: str) -> None:
        write(manager_for(database), FRAME, [key, "s", "t"])

    # Dagster itself refuses NUL in the key of a partition.
    assert r"partition key 'a\ud800'" in refusal(as_partition, database, "a\ud800")
    assert r"asset key 'a\ud800/s/t'" in refusal(as_asset, database, "a\ud800")
    assert r"asset key 'a\x00b/s/t'" in refusal(as_asset, database, "a\0b")


@pytest.mark.parametrize("schema", ["pg_mine", "pg_catalog", "pg_temp"])
def test_schemas_that_are_postgresqls_own_are_refused(database, schema):
    for attempt in [as_metadata("schema"), as_setting("schema"), as_setting("tracking_schema")]:
        assert repr(schema) in refusal(attempt, database, schema)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("assets", "which run wrote which rows"),
        ("materializations", "which run wrote which rows"),
        ("leftovers", "which run wrote which rows"),
        ("watermarks", "which run wrote which rows"),
        ("sharepoint_libraries", "which SharePoint files were delivered"),
        ("sharepoint_addresses", "which SharePoint files were delivered"),
        ("sharepoint_items", "which SharePoint files were delivered"),
        ("sharepoint_assets", "which SharePoint files were delivered"),
        ("sharepoint_delivered", "which SharePoint files were delivered"),
        ("sharepoint_failures", "which SharePoint files were delivered"),
    ],
)
def test_an_asset_cannot_be_kept_in_the_tracking_tables(database, io_manager, table, says):
    write(io_manager, FRAME)

    message = refusal(
        lambda *_: write(io_manager, FRAME, ["meta", table]), database, "the tracking table"
    )

    assert f"meta.{table} is one of the tables that say {says}" in message


# --- names that are not executed ------------------------------------------------------------

CANARIES = [
    f"{opening} DROP TABLE victim; CREATE TABLE pwned(); --"
    for opening in ['";', "';", "\n;", '".";', "\\');", "$$*/;", "%s {} $1;"]
]


@pytest.fixture
def victim(database: Database) -> Callable[[], None]:
    """Make a table that canaries name; the function checks that it is alive and alone."""
    with database.connect() as connection:
        connection.execute("CREATE TABLE victim AS SELECT 1 AS n")

    def check() -> None:
        assert query(database, "SELECT n FROM public.victim") == [(1,)]
        assert query(database, "SELECT FROM pg_class WHERE relname = 'pwned'") == []

    return check


def test_a_canary_in_every_name_and_value_is_stored_verbatim(database, victim):
    values = pa.table(
        {canary: [other, canary] for canary, other in zip(CANARIES, CANARIES[::-1], strict=True)}
    )
    options = {
        "columns": dict.fromkeys(CANARIES, ("text", "not null", "index")),
        "primary_key": CANARIES[:4],
    }

    loaded = []
    for canary in CANARIES:
        manager = PostgresIOManager(
            connection=resource_for(database, application_name=canary), tracking_schema=canary
        )
        key = [canary, canary, canary]
        options |= {"schema": canary, "table": canary + "!"}
        write(manager, values, key, **options)
        write(manager, values, key, **options)
        loaded.append(
            read(
                manager,
                key,
                options,
                columns=dict.fromkeys(CANARIES, "varchar"),
                order_by=CANARIES,
                full_table=True,
            )
        )

    victim()
    assert all(
        sorted(map(str, table.to_pylist())) == sorted(map(str, values.to_pylist()))
        for table in loaded
    )
    assert stored_names(database) >= {(canary, canary + "!") for canary in CANARIES}


def test_a_canary_in_values_that_travel_as_text_is_stored_verbatim(database, io_manager, victim):
    """An `inet` column makes the whole COPY text."""
    values = pa.table({"t": [*CANARIES, r"\.", r"\N", ""], "i": ["::1"] * (len(CANARIES) + 3)})

    write(io_manager, values, columns={"i": "inet"})

    victim()
    assert read(io_manager, columns=["t"]).column("t").to_pylist() == [*CANARIES, r"\.", r"\N", ""]


def test_a_canary_in_keys_of_partitions_runs_and_tags_is_stored_verbatim(database, victim):
    partitions = dg.DynamicPartitionsDefinition(name="canaries")
    manager = manager_for(database)
    instance = dg.DagsterInstance.ephemeral()
    instance.add_dynamic_partitions("canaries", CANARIES)

    @dg.asset(partitions_def=partitions, op_tags={"canary": CANARIES[0]})
    def upstream():
        return pd.DataFrame({"n": [1]})

    result = materialize(
        upstream,
        manager,
        instance=instance,
        partition_key=CANARIES[0],
        tags={"canary": CANARIES[1], "dagster/canary": CANARIES[2]},
    )
    for canary in CANARIES:
        put(
            manager,
            FRAME,
            asset_key=dg.AssetKey("upstream"),
            run_id=canary,
            partition_key=canary,
            asset_partitions_def=partitions,
            instance=instance,
        )

    victim()
    assert result.success
    keys = query(database, "SELECT partition_key FROM meta.assets ORDER BY id")
    runs = query(database, "SELECT run_id FROM meta.materializations ORDER BY id")
    assert [key for (key,) in keys] == CANARIES
    assert [run for (run,) in runs] == [result.run_id, *CANARIES]


@pytest.mark.parametrize(
    "metadata",
    [
        pytest.param(lambda canary: {"columns": {"n": canary}}, id="type"),
        pytest.param(lambda canary: {"columns": {"n": f"int{canary}"}}, id="type after a type"),
        pytest.param(lambda canary: {"columns": {"n": f"numeric({canary})"}}, id="type modifier"),
        pytest.param(lambda canary: {"columns": {"n": f'"{canary}"'}}, id="quoted type"),
        pytest.param(
            lambda canary: {"columns": {"n": f'"{canary.replace(chr(34), chr(34) * 2)}"'}},
            id="type quoted well",
        ),
        pytest.param(lambda canary: {"columns": {"n": ("int", canary)}}, id="modifier"),
        pytest.param(lambda canary: {"columns": {"n": ("int", f"unique{canary}")}}, id="unique"),
        pytest.param(lambda canary: {"primary_key": canary}, id="primary_key"),
        pytest.param(lambda canary: {"chunk_size": canary}, id="chunk_size"),
        pytest.param(lambda canary: {"schema_evolution": canary}, id="schema_evolution"),
        pytest.param(lambda canary: {"incremental": canary}, id="incremental"),
        pytest.param(lambda canary: {"users": [canary]}, id="users"),
    ],
)
def test_a_canary_that_is_no_name_is_refused(database, victim, metadata):
    for canary in CANARIES[:3]:
        with pytest.raises(ConfigurationError):
            write(manager_for(database), FRAME, **metadata(canary))

    victim()
    assert stored_names(database) == {("public", "victim")}


@pytest.mark.parametrize(
    "metadata",
    [
        pytest.param(lambda canary: {"columns": [canary]}, id="columns"),
        pytest.param(lambda canary: {"columns": {"n": canary}}, id="cast"),
        pytest.param(lambda canary: {"columns": {"n": f"text{canary}"}}, id="cast after a type"),
        pytest.param(lambda canary: {"columns": {"n": f"varchar({canary})"}}, id="cast modifier"),
        pytest.param(lambda canary: {"order_by": canary}, id="order_by"),
        pytest.param(lambda canary: {"full_table": canary}, id="full_table"),
        pytest.param(lambda canary: {"environment": canary}, id="environment"),
        pytest.param(
            lambda canary: {"allow_missing_partitions": canary}, id="allow_missing_partitions"
        ),
    ],
)
def test_a_canary_that_is_no_column_of_an_input_is_refused(database, io_manager, victim, metadata):
    write(io_manager, FRAME)

    for canary in CANARIES[:3]:
        with pytest.raises(ConfigurationError):
            read(io_manager, **metadata(canary))

    victim()


def test_a_canary_in_quotes_is_a_type_that_the_server_does_not_have(database, io_manager, victim):
    write(io_manager, FRAME)

    for canary in CANARIES:
        quoted = '"' + canary.replace('"', '""') + '"'
        with pytest.raises(DagsterToolsError, match="does not exist"):
            read(io_manager, columns={"n": quoted})

    victim()


def test_a_canary_in_the_connection_connects_to_nothing(database, victim):
    for canary in CANARIES[:3]:
        for setting in ["dbname", "user"]:
            manager = PostgresIOManager(connection=resource_for(database, **{setting: canary}))
            with pytest.raises(DagsterToolsError):
                write(manager, FRAME)

    victim()
