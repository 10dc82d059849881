"""Promise 3: OID, owner, grants, views, foreign keys, indexes, triggers, comments, row security.

Everything that can hang on a table is hung on one, and its whole catalog is compared before and
after three replaces. What other tables refer to it by is in the second half.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from dagster_tools.errors import BadValue, DatabaseError
from tests.fix_servers import Database
from tests.oracle import fetch_catalog_entries
from tests.promises.writing import ids, numbers, write

DECORATED = """
    COMMENT ON TABLE sales.numbers IS 'what is counted';
    COMMENT ON COLUMN sales.numbers.label IS 'what it is called';
    ALTER TABLE sales.numbers ADD COLUMN sorted serial;
    ALTER TABLE sales.numbers ADD COLUMN doubled bigint GENERATED ALWAYS AS (id * 2) STORED;
    ALTER TABLE sales.numbers ADD COLUMN counted bigint GENERATED ALWAYS AS IDENTITY;
    ALTER TABLE sales.numbers ALTER COLUMN label SET STATISTICS 321;
    ALTER TABLE sales.numbers ALTER COLUMN label SET STORAGE EXTERNAL;
    ALTER TABLE sales.numbers ALTER COLUMN label SET (n_distinct = 7);
    ALTER TABLE sales.numbers ADD CONSTRAINT short CHECK (length(label) < 100);
    ALTER TABLE sales.numbers SET (fillfactor = 80, autovacuum_vacuum_threshold = 99);
    ALTER TABLE sales.numbers REPLICA IDENTITY FULL;
    CREATE INDEX by_label ON sales.numbers (label);
    CREATE INDEX by_lower ON sales.numbers (lower(label)) INCLUDE (id) WHERE id > 0;
    ALTER TABLE sales.numbers CLUSTER ON by_label;
    CREATE STATISTICS sales.together (dependencies) ON id, label FROM sales.numbers;
    CREATE VIEW sales.seen AS SELECT id, label FROM sales.numbers;
    CREATE VIEW sales.seen_through AS SELECT id FROM sales.seen;
    CREATE MATERIALIZED VIEW sales.kept AS SELECT id FROM sales.numbers;
    CREATE UNIQUE INDEX kept_id ON sales.kept (id);
    CREATE TABLE sales.written (what text);
    CREATE FUNCTION sales.note() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO sales.written VALUES (tg_op); RETURN NULL; END $$;
    CREATE TRIGGER note AFTER INSERT OR DELETE ON sales.numbers
        FOR EACH STATEMENT EXECUTE FUNCTION sales.note();
    CREATE TRIGGER idle BEFORE UPDATE ON sales.numbers
        FOR EACH ROW EXECUTE FUNCTION sales.note();
    ALTER TABLE sales.numbers DISABLE TRIGGER idle;
    CREATE RULE also AS ON UPDATE TO sales.numbers
        DO ALSO INSERT INTO sales.written VALUES ('rule');
    CREATE TABLE sales.refers (number bigint REFERENCES sales.numbers);
    ALTER TABLE sales.numbers ENABLE ROW LEVEL SECURITY;
    CREATE POLICY few ON sales.numbers FOR SELECT TO reader USING (id < 100);
    GRANT USAGE ON SCHEMA sales TO reader;
    GRANT SELECT ON sales.numbers TO reader;
    GRANT UPDATE (label) ON sales.numbers TO reader WITH GRANT OPTION;
    GRANT SELECT ON sales.seen_through TO PUBLIC;
    CREATE PUBLICATION changes FOR TABLE sales.numbers;
    GRANT ALL ON SCHEMA sales TO keeper;
    GRANT ALL ON ALL TABLES IN SCHEMA sales TO keeper;
    ALTER TABLE sales.numbers OWNER TO keeper;
"""


def entries_of(database: Database) -> dict[str, str]:
    with closing(database.connect()) as connection:
        return fetch_catalog_entries(connection, ["sales"])


def run(database: Database, *statements: str) -> None:
    with closing(database.connect()) as connection:
        for statement in statements:
            connection.execute(statement)


def rows(database: Database, query: str) -> list[tuple[Any, ...]]:
    with closing(database.connect()) as connection:
        return connection.execute(query).fetchall()


@pytest.fixture
def decorated(database, role):
    role("reader")
    role("keeper")
    write(database, numbers(1, 2, label="first"), primary_key="id")
    run(database, DECORATED)
    return database


@pytest.mark.parametrize("way", [{}, {"incremental": True}], ids=["replace", "upsert"])
def test_all_that_hangs_on_a_table_survives_three_writes(decorated, way):
    before = entries_of(decorated)

    for number in (2, 3, 4):
        frame = numbers(number, number + 1, label=f"version {number}")
        write(decorated, frame, primary_key="id", **way)

    after = entries_of(decorated)
    assert {name for name in before | after if before.get(name) != after.get(name)} == set()


def test_views_triggers_and_policies_work_on_the_new_rows(decorated):
    write(decorated, numbers(2, 100, label="second"), primary_key="id")

    assert rows(decorated, "SELECT id FROM sales.seen_through ORDER BY 1") == [(2,), (100,)]
    assert rows(decorated, "SELECT id FROM sales.kept ORDER BY 1") == [(1,), (2,)]
    written = rows(decorated, "SELECT what FROM sales.written ORDER BY 1")
    assert {what for (what,) in written} == {"DELETE", "INSERT"}
    with closing(decorated.connect()) as connection:
        connection.execute("SET ROLE reader")
        assert connection.execute("SELECT id FROM sales.numbers").fetchall() == [(2,)]


def test_the_catalog_comparison_notices_what_a_swap_of_tables_loses(decorated):
    """The test above proves something only if this one can tell the difference."""
    before = entries_of(decorated)

    run(
        decorated,
        "DROP MATERIALIZED VIEW sales.kept; CREATE MATERIALIZED VIEW sales.kept AS "
        "SELECT id FROM sales.numbers",
        "REVOKE UPDATE (label) ON sales.numbers FROM reader",
        "DROP PUBLICATION changes",
    )

    after = entries_of(decorated)
    changed = " ".join(name for name in before | after if before.get(name) != after.get(name))
    assert "kept" in changed
    assert "sales.numbers.label" in changed
    assert "pg_class table sales.numbers" in changed


# --- foreign keys of other tables ------------------------------------------------------------


ACTIONS = ["NO ACTION", "RESTRICT", "CASCADE", "SET NULL", "SET DEFAULT"]
TIMINGS = ["", "DEFERRABLE INITIALLY IMMEDIATE", "DEFERRABLE INITIALLY DEFERRED"]


def refer(database: Database, action: str, timing: str = "") -> None:
    """Reference number 1, and say what happens when it goes."""
    write(database, numbers(1, 2), primary_key="id")
    run(
        database,
        "CREATE TABLE sales.refers (number bigint DEFAULT 2 REFERENCES sales.numbers "
        f"ON DELETE {action} {timing})",
        "INSERT INTO sales.refers VALUES (1)",
    )


@contextmanager
def untouched(database: Database, table: str) -> Iterator[None]:
    """Compare a table's rows with the transactions that wrote them."""
    query = f"SELECT xmin::text, xmax::text, ctid, t::text FROM {table} AS t"
    before = rows(database, query)
    yield
    assert rows(database, query) == before


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("action", ACTIONS)
def test_no_on_delete_action_fires_for_a_key_that_stays(database, action, timing):
    refer(database, action, timing)
    run(
        database,
        "CREATE FUNCTION sales.refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE 'a row that refers was touched'; END $$",
        "CREATE TRIGGER refuse BEFORE UPDATE OR DELETE ON sales.refers "
        "FOR EACH ROW EXECUTE FUNCTION sales.refuse()",
    )

    for label in ("a", "b", "c"):
        write(database, numbers(1, 3, label=label), primary_key="id")

    assert rows(database, "SELECT number FROM sales.refers") == [(1,)]
    assert rows(database, "SELECT id, label FROM sales.numbers ORDER BY 1") == [(1, "c"), (3, "c")]


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("action", ["NO ACTION", "RESTRICT"])
def test_a_key_that_others_refer_to_cannot_vanish(database, action, timing):
    refer(database, action, timing)

    with pytest.raises(DatabaseError, match="refers_number_fkey") as error:
        write(database, numbers(2, 3), primary_key="id")

    assert error.value.sqlstate in {"23503", "23001"}
    assert ids(database) == [1, 2]
    assert rows(database, "SELECT number FROM sales.refers") == [(1,)]


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize(
    ("action", "left"), [("CASCADE", []), ("SET NULL", [(None,)]), ("SET DEFAULT", [(2,)])]
)
def test_a_key_that_vanishes_fires_the_action_that_was_declared(database, action, left, timing):
    refer(database, action, timing)

    write(database, numbers(2, 3), primary_key="id")

    assert ids(database) == [2, 3]
    assert rows(database, "SELECT number FROM sales.refers") == left


@pytest.mark.parametrize("action", ["NO ACTION", "CASCADE"])
def test_a_repeated_key_is_refused_though_rows_refer_to_it(database, action):
    """Updated in place, one of the two rows would be lost without a word."""
    refer(database, action)

    with pytest.raises(BadValue):
        write(database, numbers(1, 1, 2), primary_key="id")

    assert ids(database) == [1, 2]


@pytest.mark.parametrize("action", ["NO ACTION", "CASCADE"])
def test_rows_that_refer_to_each_other_are_replaced_as_a_whole(database, action):
    """A tree whose root goes, with its branches under a new one."""

    def tree(**parents: int | None) -> pa.Table:
        keys = [int(name[1:]) for name in parents]
        return pa.table({"id": keys, "parent": pa.array(parents.values(), pa.int64())})

    write(database, tree(n1=None, n2=1, n3=1), primary_key="id")
    run(
        database,
        f"ALTER TABLE sales.numbers ADD FOREIGN KEY (parent) REFERENCES sales.numbers "
        f"ON DELETE {action}",
    )

    write(database, tree(n2=4, n3=2, n4=None), primary_key="id")

    found = rows(database, "SELECT id, parent FROM sales.numbers ORDER BY 1")
    assert found == [(2, 4), (3, 2), (4, None)]


def test_values_of_another_unique_column_may_be_swapped_where_rows_are_referenced(database):
    unique = {"label": ("string", "unique")}
    frame = pa.table({"id": [1, 2], "label": ["a", "b"]})
    write(database, frame, primary_key="id", columns=unique)
    run(
        database,
        "CREATE TABLE sales.refers (number bigint REFERENCES sales.numbers)",
        "INSERT INTO sales.refers VALUES (1), (2)",
    )
    swapped = pa.table({"id": [1, 2], "label": ["b", "a"]})

    with untouched(database, "sales.refers"):
        write(database, swapped, primary_key="id", columns=unique)

    found = rows(database, "SELECT id, label FROM sales.numbers ORDER BY 1")
    assert found == [(1, "b"), (2, "a")]


def test_a_referenced_partition_is_replaced_and_others_are_left_alone(database):
    for partition, number in (("a", 1), ("b", 2)):
        write(database, numbers(number), partition=partition, primary_key="id")
    run(
        database,
        "CREATE TABLE sales.refers (number bigint REFERENCES sales.numbers ON DELETE CASCADE)",
        "INSERT INTO sales.refers VALUES (1), (2)",
    )

    with untouched(database, "sales.refers"):
        write(database, numbers(1, 3, label="new"), partition="a", primary_key="id")

    found = rows(database, "SELECT id, label FROM sales.numbers ORDER BY 1")
    assert found == [(1, "new"), (2, ""), (3, "new")]


def test_a_foreign_key_is_checked_when_the_rows_that_refer_are_replaced(database):
    """The other way round: the written table refers to one that nobody writes."""
    write(database, numbers(1))
    run(
        database,
        "CREATE TABLE sales.known (number bigint PRIMARY KEY)",
        "INSERT INTO sales.known VALUES (1)",
        "ALTER TABLE sales.numbers ADD FOREIGN KEY (id) REFERENCES sales.known",
    )

    with pytest.raises((DatabaseError, BadValue, psycopg.Error)) as error:
        write(database, numbers(1, 2))

    assert isinstance(error.value, DatabaseError)
    assert ids(database) == [1]
