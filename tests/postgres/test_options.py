from __future__ import annotations

import pytest

from dagster_tools.errors import ConfigurationError
from dagster_tools.postgres.column_types import PgType
from dagster_tools.postgres.options import (
    INPUT_KEYS,
    OUTPUT_KEYS,
    InputOptions,
    OutputOptions,
    misspelled_keys,
    parse_boolean,
    parse_size,
)
from tests.postgres.tables import declared


def written(**metadata: object) -> OutputOptions:
    return OutputOptions.from_metadata(metadata, "a/b")


def read(**metadata: object) -> InputOptions:
    return InputOptions.from_metadata(metadata, "a/b")


def test_without_metadata_every_option_has_its_default():
    assert written() == OutputOptions()
    assert read() == InputOptions()


def test_none_is_the_default_of_every_known_key():
    assert OutputOptions.from_metadata(dict.fromkeys(OUTPUT_KEYS), "a") == OutputOptions()
    assert InputOptions.from_metadata(dict.fromkeys(INPUT_KEYS), "a") == InputOptions()


@pytest.mark.parametrize("key", [("a", "b"), ["a", "b"]])
def test_a_primary_key_is_a_list_or_a_tuple(key):
    assert written(primary_key=key).primary_key == ("a", "b")


def test_a_single_column_needs_no_list():
    assert written(primary_key="a").primary_key == ("a",)
    assert read(order_by="a").order_by == ("a",)
    assert list(read(columns="a").columns or {}) == ["a"]


def test_columns_are_read_once_into_checked_values():
    columns = {"id": ("int", "not null"), "name": "string"}

    assert written(columns=columns).columns == declared(**columns)


def test_selected_columns_are_a_list_or_a_dict_of_casts():
    assert read(columns=["b", "a"]).columns == {"b": None, "a": None}
    assert read(columns={"b": "text", "a": None}).columns == {"b": PgType("text"), "a": None}


@pytest.mark.parametrize("value", [True, "true", "True", " TRUE "])
def test_true_is_true_in_each_spelling(value):
    assert parse_boolean(value) is True
    assert read(full_table=value).full_table is True


@pytest.mark.parametrize("value", [False, "false", "False"])
def test_false_is_false_in_each_spelling(value):
    assert parse_boolean(value) is False
    assert read(full_table=value).full_table is False


def test_the_word_of_the_input_wins_over_the_asset_that_takes_it():
    said = InputOptions.from_metadata({"full_table": False}, "a", full_table=True)
    silent = InputOptions.from_metadata({}, "a", full_table=True)

    assert (said.full_table, silent.full_table) == (False, True)


@pytest.mark.parametrize(
    ("written_size", "size"),
    [
        ("300MB", 300_000_000),
        ("300 mb", 300_000_000),
        ("1.5GB", 1_500_000_000),
        ("64 KiB", 65_536),
        ("1MiB", 1_048_576),
        ("10B", 10),
        ("1000", 1000),
        (1000, 1000),
    ],
)
def test_sizes_are_read_in_each_unit(written_size, size):
    assert parse_size(written_size) == size


@pytest.mark.parametrize(
    "value", ["", "MB", "-1MB", "0", "0.5B", "1 XB", "1e6", True, None, "1,5GB"]
)
def test_what_is_no_size_is_refused(value):
    with pytest.raises(ValueError, match="a size such as '300MB'"):
        parse_size(value)


@pytest.mark.parametrize(
    ("key", "value", "legal"),
    [
        ("schema", 3, "names must be text"),
        ("schema", "", "schema name is empty"),
        ("table", "x" * 64, "PostgreSQL keeps 63 bytes"),
        ("table", "a\0", "NUL"),
        ("primary_key", 3, "a column name, or a list or tuple of them"),
        ("primary_key", ["a", 1], "a column name, or a list or tuple of them"),
        ("primary_key", ("a", "a"), "each column once"),
        ("primary_key", "", "column name is empty"),
        ("primary_key", {"a"}, "a column name, or a list or tuple of them"),
        ("columns", ["a"], "a dict of column name to type"),
        ("columns", {"a": "int; DROP TABLE t"}, "not the name of a PostgreSQL type"),
        ("columns", {1: "int"}, "names must be text"),
        ("columns", {"": "int"}, "column name is empty"),
        ("columns", {"ctid": "int"}, "system column"),
        ("columns", {"materialization_id": "int"}, "links rows to their materialization"),
        ("chunk_size", "large", "a size such as '300MB'"),
        ("schema_evolution", "loose", "'evolve' or 'strict'"),
        ("schema_evolution", True, "'evolve' or 'strict'"),
    ],
)
def test_a_bad_value_is_refused_with_key_asset_and_legal_values(key, value, legal):
    with pytest.raises(ConfigurationError, match=r"^asset a/b, metadata") as refused:
        written(**{key: value})

    assert repr(key) in str(refused.value)
    assert legal in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value", "legal"),
    [
        ("columns", 3, "a column name, or a list or tuple of them"),
        ("columns", [], "at least one column"),
        ("columns", {}, "at least one column"),
        ("columns", {"a": 3}, "a dict of column name to a type's name"),
        ("columns", {"a": "text; DROP TABLE t"}, "not the name of a PostgreSQL type"),
        ("columns", {"": "text"}, "column name is empty"),
        ("order_by", ["a", "a"], "each column once"),
        ("order_by", 1, "a column name, or a list or tuple of them"),
        ("full_table", "yes", "True, False, 'true' or 'false'"),
        ("full_table", 1, "True, False, 'true' or 'false'"),
        ("allow_missing_partitions", "maybe", "True, False, 'true' or 'false'"),
    ],
)
def test_a_bad_value_of_an_input_is_refused_with_key_asset_and_legal_values(key, value, legal):
    with pytest.raises(ConfigurationError, match=r"^asset a/b, metadata") as refused:
        read(**{key: value})

    assert repr(key) in str(refused.value)
    assert legal in str(refused.value)


def test_a_plain_bad_value_is_shown():
    with pytest.raises(ConfigurationError, match=r"metadata 'chunk_size' is 'large'; expected"):
        written(chunk_size="large")


def test_metadata_of_others_is_ignored():
    options = written(owner="team", **{"dagster/column_schema": object(), "url": 3})

    assert options == OutputOptions()


@pytest.mark.parametrize(
    ("slip", "right"),
    [
        ("primay_key", "primary_key"),
        ("Primary_Key", "primary_key"),
        ("column", "columns"),
        ("shema", "schema"),
        ("chunksize", "chunk_size"),
    ],
)
def test_a_slip_of_a_known_key_is_found_with_the_right_spelling(slip, right):
    assert misspelled_keys({slip: 1}, OUTPUT_KEYS) == {slip: right}


@pytest.mark.parametrize(
    "key", [*OUTPUT_KEYS, *INPUT_KEYS, "dagster/column_schema", "my/primay_key", "owner", "uri"]
)
def test_known_keys_and_those_of_others_are_no_slips(key):
    assert misspelled_keys({key: 1}, OUTPUT_KEYS) == {}
