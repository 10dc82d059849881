"""The tracking tables say who wrote what, and make writers of the same partition take turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

import pytest
from psycopg.sql import SQL, Identifier

from dagster_tools.embedded import Server
from dagster_tools.errors import ConfigurationError, DatabaseError
from dagster_tools.postgres.connection import Connection, connect, transaction
from dagster_tools.postgres.names import Table
from dagster_tools.postgres.tracking import Counts, Lineage, Tracking, lock_table
from tests.fix_servers import Database, _database
from tests.pipelines import query, resource_for

pytestmark = pytest.mark.direct(
    "pgbouncer", reason="one of two sessions waits for the other, with a lock_timeout of its own"
)

META = Tracking("meta")
NUMBERS = Table("public", "numbers")


@pytest.fixture(scope="module")
def database(dev_server: Server) -> Iterator[Database]:
    """One database for all tests here: each makes its tracking tables and drops them."""
    yield from _database(dev_server, "template1")


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    """A connection of the core's, to a database with tracking tables."""
    with closing(connect(resource_for(database).settings())) as connection:
        META.create(connection)
        yield connection
        connection.execute("DROP SCHEMA meta CASCADE")


@pytest.fixture
def other(database: Database, connection: Connection) -> Iterator[Connection]:
    """Another session, which waits for no lock."""
    with closing(connect(resource_for(database).settings())) as other:
        other.execute("SET lock_timeout = '50ms'")
        yield other


def lineage(*partition_keys: str, asset: str = "numbers") -> Lineage:
    return Lineage(asset, "run", partition_keys or (None,))


def write(
    connection: Connection, lineage: Lineage, table: Table = NUMBERS, *, rows: int = 1
) -> list[int]:
    """Track a write of each partition; return its numbers."""
    with transaction(connection):
        partitions = META.lock_partitions(connection, table, lineage)
        counts = {partition.key: Counts(inserted=rows) for partition in partitions}
        META.record(connection, lineage, partitions, counts)
    return [partition.materialization_id for partition in partitions]


def stored(
    connection: Connection, keys: Sequence[str] | None, asset: str = "numbers"
) -> dict[str | None, tuple[int, ...]]:
    return {
        item.partition_key: item.materialization_ids
        for item in META.fetch_stored(connection, asset, keys)
    }


# --- which materializations -----------------------------------------------------------------


def test_each_write_of_a_partition_has_a_number_of_its_own(connection):
    assert write(connection, lineage("a", "b")) == [1, 2]
    assert write(connection, lineage("b", "c")) == [3, 4]

    assert stored(connection, ["a", "b", "c"]) == {"a": (1,), "b": (2, 3), "c": (4,)}


def test_partitions_are_numbered_in_the_order_the_writer_names_them(connection):
    with transaction(connection):
        partitions = META.lock_partitions(connection, NUMBERS, lineage("b", "a", "Z", "ä"))

    assert [partition.key for partition in partitions] == ["b", "a", "Z", "ä"]
    assert len({partition.materialization_id for partition in partitions}) == 4


def test_exactly_the_partitions_asked_for_are_found_in_the_order_of_their_keys(connection):
    write(connection, lineage("b", "Z", "a", "ä"))
    write(connection, lineage("b", asset="other"))
    write(connection, lineage(asset="numbers"))

    assert list(stored(connection, ["ä", "b", "Z", "missing"])) == ["Z", "b", "ä"]
    assert stored(connection, []) == {}
    assert stored(connection, ["b"], asset="nobody") == {}


@pytest.mark.parametrize(
    "key", ["", "'; DROP TABLE meta.assets; --", "%s {} $1", "a\nb\\", "ключ", "x" * 3000]
)
def test_keys_are_stored_as_they_are(connection, key):
    write(connection, lineage(key, asset=f"sales/{key}"))

    assert stored(connection, [key], asset=f"sales/{key}") == {key: (1,)}


def test_without_keys_all_partitions_are_meant(connection):
    write(connection, lineage("a", "b"))

    assert stored(connection, None) == {"a": (1,), "b": (2,)}


def test_of_an_asset_that_became_partitioned_or_stopped_being_the_latest_form_is_meant(connection):
    write(connection, lineage())
    write(connection, lineage("a", "b"))
    partitioned = stored(connection, None)
    write(connection, lineage())
    unpartitioned = stored(connection, None)

    assert partitioned == {"a": (2,), "b": (3,)}
    assert unpartitioned == {None: (1, 4)}


def test_what_the_last_write_left_says_whether_a_partition_has_rows(connection):
    write(connection, lineage("a", "b"), rows=5)
    write(connection, lineage("b"), rows=0)

    found = META.fetch_stored(connection, "numbers", ["a", "b"])

    assert [item.filled for item in found] == [True, False]


def test_earlier_materializations_are_those_of_the_partitions_being_written(connection):
    write(connection, lineage("a", "b"))
    write(connection, lineage("a", asset="other"))
    write(connection, lineage("a"))

    with transaction(connection):
        partitions = META.lock_partitions(connection, NUMBERS, lineage("a"))
        earlier = META.fetch_earlier(connection, partitions)

    assert earlier == {1: "a", 4: "a"}


def test_a_write_is_recorded_with_its_run_and_what_it_did_to_the_rows(connection):
    with transaction(connection):
        partitions = META.lock_partitions(connection, NUMBERS, lineage("a", "b"))
        META.record(connection, lineage("a", "b"), partitions, {"b": Counts(4, 3, 2, 1)})

    recorded = connection.execute(
        """
        SELECT m.run_id, a.partition_key, a.schema, a."table", m.rows_inserted, m.rows_updated,
               m.rows_deleted, m.rows_unchanged, now() - m.timestamp < '1 minute'
        FROM meta.materializations AS m
        JOIN meta.assets AS a ON a.id = m.asset_id
        ORDER BY m.id
        """
    ).fetchall()
    assert recorded == [
        ("run", "a", "public", "numbers", 0, 0, 0, 0, True),
        ("run", "b", "public", "numbers", 4, 3, 2, 1, True),
    ]


# --- where ----------------------------------------------------------------------------------


def test_a_partition_is_where_its_last_write_put_it(connection):
    moved = Table("other", "moved")
    write(connection, lineage("a", "b"))
    write(connection, lineage("b"), moved)

    tables = {
        item.partition_key: item.table
        for item in META.fetch_stored(connection, "numbers", ["a", "b"])
    }

    assert tables == {"a": NUMBERS, "b": moved}


def test_only_a_move_leaves_something_behind(connection):
    places = """
        SELECT a.partition_key, l.schema, l."table"
        FROM meta.leftovers AS l
        JOIN meta.assets AS a ON a.id = l.asset_id
        ORDER BY 1, 2, 3
    """

    write(connection, lineage("a", "b"))
    write(connection, lineage("a", "b"))
    at_rest = connection.execute(places).fetchall()
    write(connection, lineage("a"), Table("public", "second"))
    write(connection, lineage("a"), Table("public", "third"))
    moved = connection.execute(places).fetchall()
    write(connection, lineage("a"), Table("public", "second"))
    returned = connection.execute(places).fetchall()

    assert at_rest == []
    assert moved == [("a", "public", "numbers"), ("a", "public", "second")]
    assert returned == [("a", "public", "numbers"), ("a", "public", "third")]


@pytest.mark.parametrize(
    ("others", "asset_ids", "expected"),
    [
        ([], (1,), False),
        ([], (), False),
        ([lineage("a")], (1,), True),
        ([lineage("a")], (1, 2), False),
        ([lineage("a")], (), True),
        ([lineage(asset="other")], (1,), True),
        ([lineage(asset="other")], (), True),
    ],
)
def test_whoever_else_is_kept_in_a_table_is_another_owner(connection, others, asset_ids, expected):
    write(connection, lineage())
    for other in others:
        write(connection, other)
    write(connection, lineage(asset="elsewhere"), Table("public", "elsewhere"))

    assert META.has_other_owners(connection, NUMBERS, "numbers", asset_ids) is expected


def test_what_was_left_behind_counts_as_another_owner(connection):
    write(connection, lineage(asset="moving"))
    write(connection, lineage(asset="moving"), Table("public", "elsewhere"))
    write(connection, lineage())

    assert META.has_other_owners(connection, NUMBERS, "numbers", [2])
    assert not META.has_other_owners(connection, Table("public", "elsewhere"), "moving", [1])


@pytest.mark.parametrize("name", ["assets", "materializations", "leftovers", "watermarks"])
def test_a_tracking_table_is_no_place_for_an_asset(name):
    with pytest.raises(ConfigurationError, match=f"meta.{name} is one of the tables that say"):
        META.check_target(Table("meta", name))


# --- taking turns ---------------------------------------------------------------------------


def test_a_writer_waits_for_one_of_the_same_partition(connection, other):
    write(connection, lineage("a"))

    with transaction(connection):
        META.lock_partitions(connection, NUMBERS, lineage("a", "b"))
        with pytest.raises(DatabaseError, match="lock timeout"), transaction(other):
            META.lock_partitions(other, NUMBERS, lineage("a"))
        with pytest.raises(DatabaseError, match="lock timeout"), transaction(other):
            META.lock_partitions(other, NUMBERS, lineage("b"))  # which is not committed yet


def test_a_writer_waits_for_none_of_another_partition_asset_or_form(connection, other):
    write(connection, lineage("a"))

    with transaction(connection):
        META.lock_partitions(connection, NUMBERS, lineage("a"))
        for free in (lineage("b"), lineage("a", asset="other"), lineage()):
            write(other, free)


def test_a_reader_waits_for_no_writer(connection, other):
    write(connection, lineage("a"))

    with transaction(connection):
        META.lock_partitions(connection, Table("public", "moved"), lineage("a", "b"))

        assert stored(other, ["a", "b"]) == {"a": (1,)}


def test_writers_of_a_table_share_its_name_and_its_first_writer_has_it_alone(connection, other):
    with transaction(connection):
        lock_table(connection, NUMBERS, first_write=False)
        with transaction(other):
            lock_table(other, NUMBERS, first_write=False)
            lock_table(other, Table("public", "other"), first_write=True)
        with pytest.raises(Exception, match="lock timeout"), transaction(other):
            lock_table(other, NUMBERS, first_write=True)


def test_many_partitions_are_locked_without_a_lock_each(connection, database):
    keys = [f"{number:04}" for number in range(2_000)]

    with transaction(connection):
        META.lock_partitions(connection, NUMBERS, lineage(*keys))
        [(locks,)] = query(database, "SELECT count(*) FROM pg_locks")

    assert locks < 50


# --- their creation -------------------------------------------------------------------------


@pytest.mark.parametrize("schema", ["meta", 'Tracking "of" it; --'])
def test_the_tracking_tables_are_made_once(database, schema):
    tracking = Tracking(schema)

    with closing(connect(resource_for(database).settings())) as connection:
        for _time in range(2):
            tracking.create(connection)
        with transaction(connection):
            tracking.lock_partitions(connection, NUMBERS, lineage("a"))
        tables = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = $1 ORDER BY 1", [schema]
        ).fetchall()
        connection.execute(SQL("DROP SCHEMA {} CASCADE").format(Identifier(schema)))

    assert tables == [("assets",), ("leftovers",), ("materializations",), ("watermarks",)]


def test_each_tracking_table_is_explained_to_the_dba_who_meets_it(connection):
    described = connection.execute(
        """
        SELECT c.relname, obj_description(c.oid, 'pg_class') IS NOT NULL
        FROM pg_class AS c
        WHERE c.relnamespace = 'meta'::regnamespace AND c.relkind = 'r'
        """
    ).fetchall()

    assert {name for name, explained in described if explained} == {
        "assets",
        "leftovers",
        "watermarks",
        "materializations",
    }
