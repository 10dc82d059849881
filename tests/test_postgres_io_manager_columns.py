"""Types and modifiers of columns, declared in metadata or inferred from the frame."""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from dagster_tools.errors import BadValue, ConfigurationError, SchemaConflict
from tests.pipelines import (
    arrow_stream,
    arrow_table,
    column_types,
    fingerprint,
    manager_for,
    query,
    rows,
    store,
)


@pytest.fixture
def database(cleaned_database):
    return cleaned_database


@pytest.fixture(scope="module")
def typed(module_database):
    """The module's database, in UTC, with types of a user's own and the tracking tables."""
    with module_database.connect() as connection:
        connection.execute(TYPES)
        connection.execute(f"ALTER DATABASE {module_database.dbname} SET timezone TO 'UTC'")
    store(manager_for(module_database), arrow_table({"n": [1]}), key="first")
    return module_database


TYPES = """
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
    CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
    CREATE DOMAIN code AS varchar(3);
    CREATE DOMAIN short_code AS code CHECK (length(VALUE) = 2);
    CREATE SCHEMA lab;
    CREATE TYPE lab."My Mood" AS ENUM ('a, b', '"c"');
    CREATE TYPE pair AS (a int, b text);
"""


# --- declared types -------------------------------------------------------------------------


def test_the_words_of_the_guide_are_these_types(database, io_manager, frame):
    words = {
        "b": "bool",
        "i": "int",
        "i32": "int32",
        "u": "uint",
        "f": "float",
        "s": "string",
        "d": "date",
        "t": "datetime",
        "g": "geometry",
    }

    store(
        io_manager,
        frame(
            {
                "b": [True],
                "i": [1],
                "i32": [2],
                "u": [3],
                "f": [1.5],
                "s": ["text"],
                "d": ["2024-02-29"],
                "t": ["2024-02-29 12:30:00"],
                "g": ["POINT(1 2)"],
            }
        ),
        columns=words,
    )

    assert column_types(database) == {
        "b": "boolean",
        "i": "integer",
        "i32": "integer",
        "u": "integer",
        "f": "double precision",
        "s": "text",
        "d": "date",
        "t": "timestamp without time zone",
        "g": "geometry",
    }
    assert query(database, "SELECT b, i, i32, u, f, s, d, t, ST_AsText(g) FROM numbers") == [
        (True, 1, 2, 3, 1.5, "text", dt.date(2024, 2, 29), dt.datetime(2024, 2, 29, 12, 30),
         "POINT(1 2)")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("type_", "values", "stored"),
    [
        ("smallint", [1, None], ["1", None]),
        ("bigint", [2**53 + 1], ["9007199254740993"]),
        ("real", [0.5], ["0.5"]),
        ("numeric", [Decimal("1.50")], ["1.50"]),
        ("numeric(12,2)", [Decimal("1234567890.12"), None], ["1234567890.12", None]),
        ("numeric(12,2)", [1.1], ["1.10"]),
        ("decimal(4)", [1234], ["1234"]),
        ("varchar(5)", ["ab, c"], ["ab, c"]),
        ("character varying", ["ab"], ["ab"]),
        ("char(3)", ["ab"], ["ab"]),
        ("char", ["a"], ["a"]),
        ("timestamptz", ["2024-01-01 12:00:00+02:00"], ["2024-01-01 10:00:00+00"]),
        ("timestamp(0)", ["2024-01-01 12:00:00"], ["2024-01-01 12:00:00"]),
        ("time", [dt.time(1, 2, 3)], ["01:02:03"]),
        ("time with time zone", ["01:02:03+02"], ["01:02:03+02"]),
        ("interval", [dt.timedelta(days=1, seconds=1)], ["24:00:01"]),
        ("interval", ["1 mon 2 days"], ["1 mon 2 days"]),
        ("json", ['{"b": 1,  "a": null}', None], ['{"b": 1,  "a": null}', None]),
        ("jsonb", ['{"b": 1,  "a": null}', "null"], ['{"a": null, "b": 1}', "null"]),
        ("uuid", ["0F0F0F0F-0000-0000-0000-000000000001"],
         ["0f0f0f0f-0000-0000-0000-000000000001"]),
        ("bytea", [b"\x00\xff\\", b""], [r"\x00ff5c", r"\x"]),
        ("int[]", [[1, None, 3], [], None], ["{1,NULL,3}", "{}", None]),
        ("text[]", [['a"b', "c,d", None, "NULL", "{}", " \\ "]],
         ['{"a\\"b","c,d",NULL,"NULL","{}"," \\\\ "}']),
        ("numeric(6,1)[]", [[Decimal("1.5")]], ["{1.5}"]),
        ("uuid[]", [["0f0f0f0f-0000-0000-0000-000000000001"]],
         ["{0f0f0f0f-0000-0000-0000-000000000001}"]),
        ("timestamptz[]", [["2024-01-01 12:00:00+02:00"]], ['{"2024-01-01 10:00:00+00"}']),
        ("inet", ["192.168.0.1/24", None], ["192.168.0.1/24", None]),
        ("cidr", ["10.0.0.0/8"], ["10.0.0.0/8"]),
        ("macaddr", ["08:00:2b:01:02:03"], ["08:00:2b:01:02:03"]),
        ("int4range", ["[1,5)", "empty"], ["[1,5)", "empty"]),
        ("tstzrange", ['["2024-01-01 00:00:00+00","2024-02-01 00:00:00+00")'],
         ['["2024-01-01 00:00:00+00","2024-02-01 00:00:00+00")']),
        ("int4multirange", ["{[1,3),[5,7)}"], ["{[1,3),[5,7)}"]),
        ("point", ["(1,2)"], ["(1,2)"]),
        ("xml", ["<a>&lt;</a>"], ["<a>&lt;</a>"]),
        ("tsvector", ["a fat cat"], ["'a' 'cat' 'fat'"]),
        ("bit varying(4)", ["0101"], ["0101"]),
        ("bit", ["1"], ["1"]),
        ("money", ["1.50"], ["$1.50"]),
        ("oid", [5], ["5"]),
        ("mood", ["happy", None, "sad"], ["happy", None, "sad"]),
        ("mood[]", [["happy", None]], ["{happy,NULL}"]),
        ('lab."My Mood"', ["a, b", '"c"'], ["a, b", '"c"']),
        ("positive", [5], ["5"]),
        ("short_code", ["ab"], ["ab"]),
        ("pair", ["(1,x)"], ["(1,x)"]),
        ("geometry(Point,4326)", ["SRID=4326;POINT(1 2)"],
         ["0101000020E6100000000000000000F03F0000000000000040"]),
        ("geography(Point,4326)", ["POINT(1 2)"],
         ["0101000020E6100000000000000000F03F0000000000000040"]),
    ],
)  # fmt: skip
def test_any_type_the_server_knows_may_be_declared(typed, table_name, type_, values, stored):
    numbered = pd.DataFrame({"n": list(range(len(values))), "c": values})
    declared = {"key": table_name, "columns": {"c": type_}}
    everything = f"SELECT c::text FROM {table_name} ORDER BY n"

    store(manager_for(typed), numbered, **declared)
    first = query(typed, everything)
    store(manager_for(typed), numbered, **declared)

    assert first == [(text,) for text in stored]
    assert query(typed, everything) == first


def test_a_column_that_travels_as_text_does_not_change_the_others(database, io_manager, frame):
    """One column without a binary form makes the whole COPY text; nothing else may change."""
    columns = {
        "s": ["", None, "NULL", r"\N", "\\.", "tab\t nl\n cr\r bs\\ 🦆"],
        "b": [True, None, False, True, True, True],
        "f": [0.1, None, float("inf"), -0.0, 5e-324, 1e300],
        "y": [b"", None, b"\\x00", b"\x00\xff", b"a", b"\t\n"],
        "d": [dt.date(2024, 2, 29), None, dt.date(1, 1, 1), dt.date(9999, 12, 31)] + [None] * 2,
    }
    store(io_manager, frame(columns), key="as_binary")

    store(
        io_manager,
        frame(columns | {"address": ["::1"] * 6}),
        key="as_text",
        columns={"address": "inet"},
    )

    assert column_types(database, "public.as_text") == {
        **column_types(database, "public.as_binary"),
        "address": "inet",
    }
    assert [row[:-1] for row in rows(database, "public.as_text")] == rows(
        database, "public.as_binary"
    )


@pytest.mark.parametrize(
    "spelled", ["INT", " Int ", "integer", "int4", ("int",), ["INT", "NOT  NULL"]]
)
def test_a_declaration_is_read_as_people_write_it(typed, table_name, spelled):
    store(manager_for(typed), arrow_table({"n": [1]}), key=table_name, columns={"n": spelled})

    assert column_types(typed, table_name) == {"n": "integer"}


def test_an_unknown_type_is_named_with_its_column(database, io_manager, frame):
    before = fingerprint(database)

    with pytest.raises(ConfigurationError, match=r"columns\['n'\].*no type 'no_such_type'"):
        store(io_manager, frame({"n": [1]}), columns={"n": "no_such_type"})

    assert fingerprint(database) == before


def test_geometry_without_postgis_names_the_extension_and_how_to_install_it(embedded_database):
    with pytest.raises(ConfigurationError) as caught:
        store(
            manager_for(embedded_database),
            arrow_table({"g": ["POINT(1 2)"]}),
            columns={"g": "geometry"},
        )

    assert "CREATE EXTENSION postgis" in str(caught.value)
    assert "apt-get install" in str(caught.value)


def test_columns_nobody_declared_keep_the_type_of_their_values(database, io_manager, frame):
    store(io_manager, frame({"id": [1], "name": ["a"]}), columns={"id": "smallint"})

    assert column_types(database) == {"id": "smallint", "name": "text"}


def test_a_declared_column_the_frame_lacks_is_there_and_null(database, io_manager, frame):
    store(io_manager, frame({"id": [1]}), columns={"id": "int", "note": "string"})

    assert rows(database) == [(1, None)]
    assert column_types(database) == {"id": "integer", "note": "text"}


@pytest.mark.parametrize(
    ("type_", "given", "stored"),
    [
        ("int", ["12", "-7"], [-7, 12]),
        ("int", [1.0, 2.0], [1, 2]),
        ("float", [1, 2], [1.0, 2.0]),
        ("float", ["1.5", "2"], [1.5, 2.0]),
        ("bool", [1, 0], [False, True]),
        ("bool", ["true", "false"], [False, True]),
        ("date", ["2024-01-01"], [dt.date(2024, 1, 1)]),
        ("datetime", ["2024-01-01T10:00:00"], [dt.datetime(2024, 1, 1, 10)]),
        ("datetime", [dt.date(2024, 1, 1)], [dt.datetime(2024, 1, 1)]),
        ("date", [dt.datetime(2024, 1, 1)], [dt.date(2024, 1, 1)]),
    ],
)
def test_a_declared_type_casts_the_data(typed, table_name, frame, type_, given, stored):
    store(manager_for(typed), frame({"c": given}), key=table_name, columns={"c": type_})

    assert rows(typed, f"public.{table_name}") == [(value,) for value in stored]


@pytest.mark.parametrize(
    ("type_", "bad"),
    [
        ("int", 2**31),
        ("int", 1.5),
        ("uint", -1),
        ("smallint", 40000),
        ("int", "canary"),
        ("float", "canary"),
        ("bool", 2),
        ("bool", "canary"),
        ("date", "canary"),
        ("date", dt.datetime(2024, 1, 1, 1)),
        ("datetime", "canary"),
        ("varchar(3)", "canary"),
        ("numeric(5,2)", Decimal("1.234")),
        ("numeric(5,2)", Decimal(1000)),
        ("uuid", "canary"),
        ("string", "canary\0"),
        ("jsonb", "canary"),
        ("json", "{canary"),
        ("inet", "canary"),
        ("int4range", "canary"),
        ("mood", "canary"),
        ("positive", -987654),
        ("short_code", "canary"),
        ("int[]", [1, 2**31]),
        ("text[]", ["canary\0"]),
        ("geometry", "canary"),
        ("time", "canary"),
        ("interval", "canary"),
        ("timestamp(0)", dt.datetime(2024, 1, 1, 0, 0, 0, 5)),
    ],
)
def test_a_value_that_does_not_fit_is_told_by_column_and_row_and_nothing_is_written(
    typed, table_name, type_, bad
):
    frame = pd.DataFrame({"fine": [1, 2], "the column": [None, bad]}, dtype=object)

    with pytest.raises(BadValue) as caught:
        store(manager_for(typed), frame, key=table_name, columns={"the column": type_})

    assert (caught.value.column, caught.value.row) == ("the column", 1)
    assert "column 'the column', row 1" in str(caught.value)
    assert "canary" not in str(caught.value)
    assert "987654" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert query(typed, f"SELECT to_regclass('{table_name}')") == [(None,)]
    assert not query(typed, 'SELECT FROM meta.assets WHERE "table" = %s', table_name)


def test_only_text_becomes_text(database, io_manager, frame):
    with pytest.raises(SchemaConflict) as caught:
        store(io_manager, frame({"n": [1]}), columns={"n": "string"})

    assert "column 'n'" in str(caught.value)
    assert "text" in str(caught.value)
    assert "int64" in str(caught.value)


# --- inferred types -------------------------------------------------------------------------

INFERRED = {
    "int8": (pa.array([-128], pa.int8()), "smallint"),
    "int16": (pa.array([-(2**15)], pa.int16()), "smallint"),
    "int32": (pa.array([-(2**31)], pa.int32()), "integer"),
    "int64": (pa.array([-(2**63)], pa.int64()), "bigint"),
    "uint8": (pa.array([255], pa.uint8()), "smallint"),
    "uint16": (pa.array([2**16 - 1], pa.uint16()), "integer"),
    "uint32": (pa.array([2**32 - 1], pa.uint32()), "bigint"),
    "uint64": (pa.array([2**64 - 1], pa.uint64()), "numeric(20,0)"),
    "float16": (pa.array([np.float16(0.5)], pa.float16()), "real"),
    "float32": (pa.array([0.5], pa.float32()), "real"),
    "float64": (pa.array([0.1], pa.float64()), "double precision"),
    "decimal128": (pa.array([Decimal("1.50")], pa.decimal128(10, 2)), "numeric"),
    "decimal256": (pa.array([Decimal("1.50")], pa.decimal256(60, 2)), "numeric"),
    "bool": (pa.array([True]), "boolean"),
    "string": (pa.array(["a"]), "text"),
    "large_string": (pa.array(["a"], pa.large_string()), "text"),
    "string_view": (pa.array(["a"], pa.string_view()), "text"),
    "dictionary": (pa.array(["a"]).dictionary_encode(), "text"),
    "binary": (pa.array([b"a"]), "bytea"),
    "date32": (pa.array([dt.date(2024, 1, 1)]), "date"),
    "date64": (pa.array([dt.date(2024, 1, 1)], pa.date64()), "date"),
    "time32": (pa.array([dt.time(1)], pa.time32("s")), "time without time zone"),
    "time64": (pa.array([dt.time(1)], pa.time64("us")), "time without time zone"),
    "timestamp": (pa.array([dt.datetime(2024, 1, 1)]), "timestamp without time zone"),
    "timestamp, tz": (
        pa.array([dt.datetime(2024, 1, 1)], pa.timestamp("ns", "Europe/Berlin")),
        "timestamp with time zone",
    ),
    "duration": (pa.array([dt.timedelta(1)]), "interval"),
    "list": (pa.array([[1, 2]]), "bigint[]"),
    "list of lists": (pa.array([[[1], [2]]]), "jsonb"),
    "struct": (pa.array([{"a": 1}]), "jsonb"),
    "map": (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), "jsonb"),
    "uuid": (pa.array([uuid.uuid4().bytes], pa.uuid()), "uuid"),
    "json": (pa.array(['{"a": 1}'], pa.json_()), "jsonb"),
    "null": (pa.nulls(1), "text"),
}


@pytest.mark.parametrize("make", [arrow_table, arrow_stream], ids=["arrow", "stream"])
def test_each_arrow_type_has_its_postgresql_type(database, io_manager, make):
    store(io_manager, make({name: array for name, (array, _type) in INFERRED.items()}))

    assert column_types(database) == {name: type_ for name, (_array, type_) in INFERRED.items()}


def test_each_kind_of_pandas_column_has_its_postgresql_type(database, io_manager):
    columns = {
        "int64": (pd.Series([1]), "bigint"),
        "Int16": (pd.Series([1], dtype="Int16"), "smallint"),
        "float32": (pd.Series([0.5], dtype="float32"), "real"),
        "boolean": (pd.Series([True], dtype="boolean"), "boolean"),
        "str": (pd.Series(["a"]), "text"),
        "categorical": (pd.Series([5], dtype="category"), "bigint"),
        "datetime": (pd.Series(pd.to_datetime(["2024"])), "timestamp without time zone"),
        "zoned": (
            pd.Series(pd.to_datetime(["2024"])).dt.tz_localize("Europe/Berlin"),
            "timestamp with time zone",
        ),
        "timedelta": (pd.Series([pd.Timedelta("1h")]), "interval"),
        "dates": (pd.Series([dt.date(2024, 1, 1)], dtype=object), "date"),
        "decimals": (pd.Series([Decimal("1.5")], dtype=object), "numeric"),
        "uuids": (pd.Series([uuid.uuid4()], dtype=object), "uuid"),
        "dicts": (pd.Series([{"a": 1}], dtype=object), "jsonb"),
        "lists": (pd.Series([["a"]], dtype=object), "text[]"),
        "bytes": (pd.Series([b"a"], dtype=object), "bytea"),
        "nothing": (pd.Series([None], dtype=object), "text"),
    }

    store(io_manager, pd.DataFrame({name: series for name, (series, _type) in columns.items()}))

    assert column_types(database) == {name: type_ for name, (_series, type_) in columns.items()}


# --- modifiers ------------------------------------------------------------------------------


def _modifiers(database, table="numbers"):
    """Return what is said of the columns: the NOT NULL ones, and each index and CHECK."""
    return {
        "not null": [
            name
            for (name,) in query(
                database,
                "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 "
                "AND attnotnull ORDER BY attnum",
                table,
            )
        ],
        "indexes": query(
            database,
            """
            SELECT CASE WHEN i.indisprimary THEN 'primary key'
                        WHEN r.oid IS NOT NULL THEN 'unique constraint'
                        WHEN i.indisunique THEN 'unique index' ELSE 'index' END,
                   array_agg(a.attname ORDER BY k.position), i.indisvalid
            FROM pg_index AS i
            LEFT JOIN pg_constraint AS r ON r.conindid = i.indexrelid AND r.contype IN ('u', 'p')
            JOIN unnest(i.indkey) WITH ORDINALITY AS k (attnum, position) ON true
            JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
            WHERE i.indrelid = %s::regclass AND a.attname <> 'materialization_id'
            GROUP BY i.indexrelid, i.indisprimary, r.oid, i.indisunique, i.indisvalid
            ORDER BY 1, 2
            """,
            table,
        ),
        "checks": query(
            database,
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint "
            "WHERE conrelid = %s::regclass AND contype = 'c' ORDER BY 1",
            table,
        ),
    }


MODIFIED = {
    "id": ("int", "not null"),
    "code": ("string", "unique"),
    "day": ("date", "index"),
    "size": "uint",
    "all": ("int", "not null", "unique"),
}
MODIFIED_ROWS = {
    "id": [1, 2],
    "code": ["a", None],
    "day": ["2024-01-01", "2024-01-01"],
    "size": [0, 7],
    "all": [1, 2],
}
MODIFIERS = {
    "not null": ["id", "all"],
    "indexes": [
        ("index", ["day"], True),
        ("unique constraint", ["all"], True),
        ("unique constraint", ["code"], True),
    ],
    "checks": [("CHECK ((size >= 0))",)],
}


def test_modifiers_are_there_when_a_table_is_created(database, io_manager, frame):
    store(io_manager, frame(MODIFIED_ROWS), columns=MODIFIED)

    assert _modifiers(database) == MODIFIERS


def test_modifiers_declared_later_are_added(database, io_manager, frame):
    plain = {"id": "int", "code": "string", "day": "date", "size": "int", "all": "int"}
    store(io_manager, frame(MODIFIED_ROWS), columns=plain)

    store(io_manager, frame(MODIFIED_ROWS), columns=MODIFIED)

    assert _modifiers(database) == MODIFIERS
    assert len(rows(database)) == 2


def test_a_primary_key_declared_later_is_added(database, io_manager, frame):
    store(io_manager, frame({"a": [1, 1], "b": [1, 2]}))

    store(io_manager, frame({"a": [1, 1], "b": [1, 3]}), primary_key=["b", "a"])

    assert _modifiers(database) == {
        "not null": ["a", "b"],
        "indexes": [("primary key", ["b", "a"], True)],
        "checks": [],
    }


@pytest.mark.direct("pgbouncer", reason="a session of the pool keeps the settings it began with")
def test_indexes_of_a_live_table_are_built_concurrently(database, dev_server, io_manager):
    store(io_manager, arrow_table({"a": [1], "b": [2], "c": [3]}))
    with database.connect() as connection:
        connection.execute(f"ALTER DATABASE {database.dbname} SET log_statement TO 'ddl'")
    before = dev_server.log_tail(100_000)

    store(
        io_manager,
        arrow_table({"a": [1], "b": [2], "c": [3]}),
        primary_key="a",
        columns={"b": ("bigint", "unique"), "c": ("bigint", "index")},
    )

    log = dev_server.log_tail(100_000).removeprefix(before)
    assert log.count("INDEX CONCURRENTLY") == 3
    assert "USING INDEX" in log
    assert _modifiers(database)["indexes"] == [
        ("index", ["c"], True),
        ("primary key", ["a"], True),
        ("unique constraint", ["b"], True),
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"columns": {"n": ("bigint", "unique")}}, "repeat"),
        ({"primary_key": "n"}, "repeat"),
        ({"primary_key": "m"}, "NULL"),
        ({"columns": {"m": ("bigint", "not null")}}, "NULL"),
        ({"columns": {"k": "uint"}}, "zero"),
    ],
    ids=["unique", "repeated key", "null in key", "not null", "uint"],
)
def test_a_modifier_that_other_rows_of_the_table_forbid_is_a_conflict(
    database, io_manager, frame, options, said
):
    with database.connect() as connection:
        connection.execute(
            "CREATE TABLE numbers (n bigint, m bigint, k integer); "
            "INSERT INTO numbers VALUES (1, NULL, -1), (1, 2, 3)"
        )
    store(io_manager, frame({"n": [2], "m": [5], "k": [0]}))
    before = fingerprint(database)

    with pytest.raises(SchemaConflict) as caught:
        store(io_manager, frame({"n": [2], "m": [6], "k": [0]}), **options)

    assert said in str(caught.value)
    assert "public.numbers" in str(caught.value)
    assert rows(database) == [(1, 2, 3), (1, None, -1), (2, 5, 0)]
    assert fingerprint(database) == before


@pytest.mark.parametrize("existing", [False, True], ids=["new table", "existing table"])
@pytest.mark.parametrize(
    ("options", "columns", "said"),
    [
        ({"columns": {"n": ("int", "not null")}}, {"n": [1, None]}, "column 'n', row 1"),
        ({"primary_key": "n"}, {"n": [1, None]}, "column 'n': row 1"),
        ({"columns": {"n": ("int", "unique")}}, {"n": [1, 1]}, "n"),
        ({"primary_key": ["n", "m"]}, {"n": [1, 1], "m": [2, 2]}, "['n', 'm']"),
        ({"columns": {"n": "uint"}}, {"n": [1, -5]}, "column 'n'"),
    ],
    ids=["not null", "null in key", "unique", "repeated key", "uint"],
)
def test_rows_that_break_a_modifier_are_refused(
    database, io_manager, frame, options, columns, said, existing
):
    if existing:
        store(io_manager, frame({name: values[:1] for name, values in columns.items()}), **options)
    before = fingerprint(database)

    with pytest.raises(BadValue) as caught:
        store(io_manager, frame(columns), **options)

    assert said in str(caught.value)
    assert "asset numbers" in str(caught.value)
    if existing:
        assert fingerprint(database) == before
    else:
        assert query(database, "SELECT to_regclass('numbers')") == [(None,)]


def test_a_column_declared_not_null_must_be_in_the_frame(database, io_manager, frame):
    before = fingerprint(database)

    with pytest.raises(SchemaConflict, match=r"'note' is declared 'not null'.*lacks it.*\['id'\]"):
        store(io_manager, frame({"id": [1]}), columns={"note": ("string", "not null")})

    assert fingerprint(database) == before


def test_a_primary_key_must_be_among_the_columns(database, io_manager, frame):
    with pytest.raises(ConfigurationError, match=r"primary_key names \['id'\].*\['n'\]"):
        store(io_manager, frame({"n": [1]}), primary_key="id")


def test_another_primary_key_than_the_tables_is_a_conflict(database, io_manager, frame):
    store(io_manager, frame({"a": [1], "b": [1]}), primary_key="a")
    before = fingerprint(database)

    with pytest.raises(SchemaConflict, match=r"primary key \['a'\].*declares \['b'\]"):
        store(io_manager, frame({"a": [1], "b": [1]}), primary_key="b")

    assert fingerprint(database) == before
