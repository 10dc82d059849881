"""Write what the code knows into docs/: the reference, and the tables of docs/types.md.

    python scripts/generate_docs.py

tests/test_docs_generated.py fails where a committed page is not what this writes.
"""

from __future__ import annotations

import datetime as dt
import decimal
import inspect
import re
import types
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

import dagster_tools
from dagster_tools import errors, frames
from dagster_tools.errors import SchemaConflict, UnsupportedFrame
from dagster_tools.postgres import options
from dagster_tools.postgres.column_types import (
    ALIASES,
    DECLARED_WORDS,
    PgType,
    arrow_hint,
    infer,
    parse_type,
    wire_type,
)
from dagster_tools.postgres.columns import Column
from dagster_tools.postgres.evolution import WIDENINGS
from dagster_tools.postgres.projection import NATIVE, decoded_schema, empty_columns
from dagster_tools.postgres.wire import fit

DOCS = Path(__file__).resolve().parent.parent / "docs"
LINE = 100


def main() -> None:
    for path, text in generated_pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


def generated_pages() -> dict[Path, str]:
    """Return each page with generated parts as it ought to be."""
    types_page = DOCS / "types.md"
    pages = {types_page: fill_sections(types_page.read_text(encoding="utf-8"))}
    reference = DOCS / "reference"
    modules = public_names_by_module()
    pages[reference / "index.md"] = index_page(modules)
    pages[reference / "options.md"] = options_page()
    for module, names in modules.items():
        pages[reference / f"{module}.md"] = module_page(module, names)
    return pages


# --- tables of types.md ---------------------------------------------------------------------

PANDAS_COLUMNS: Mapping[str, Sequence[str]] = {}
SECTION = re.compile(r"(<!-- generated: (?P<name>[\w ]+) -->\n).*?(<!-- end -->\n)", re.DOTALL)


def fill_sections(page: str) -> str:
    """Put each table between the two comments that stand for it."""

    def filled(match: re.Match[str]) -> str:
        return f"{match[1]}\n{SECTIONS[match['name']]()}\n{match[3]}"

    return SECTION.sub(filled, page)


def declared_words() -> str:
    """Return the words of `columns` metadata that are not PostgreSQL's own spelling."""
    rows = [[code(word), code(str(PgType(name)))] for word, name in DECLARED_WORDS.items()]
    shorter = [[code(word), code(name)] for word, name in ALIASES.items()]
    return table(["Word", "PostgreSQL type"], rows + shorter)


def inferred_from_pandas() -> str:
    """Return what pandas columns become where nobody declared a type."""
    rows = []
    for target, labels in grouped(pandas_samples(), inferred_from_values).items():
        rows.append([", ".join(labels), target])
    return table(["pandas column", "PostgreSQL type"], rows)


def inferred_from_arrow() -> str:
    """Return what Arrow columns become where nobody declared a type."""
    rows = []
    for target, labels in grouped(arrow_types(), inferred_from_type).items():
        rows.append([", ".join(labels), target])
    return table(["Arrow type", "PostgreSQL type"], rows)


def accepted() -> str:
    """Return which kinds of values a column of each type takes."""
    rows = []
    for name in [*NATIVE, "text[]", "inet"]:
        target = parse_type(name) if name != "enum" else PgType("enum")
        kinds = [kind for kind, type_ in VALUE_KINDS.items() if takes(target, type_)]
        rows.append([column_type_label(name), ", ".join(kinds), copy_format(target)])
    return table(["Column", "takes", "sent as"], rows)


def loaded() -> str:
    """Return what a column of each type is loaded as."""
    rows = []
    for name in LOADED:
        stream = sample_stream(name, with_null=False)
        nullable = sample_stream(name, with_null=True)
        plain, with_null = pandas_class(stream), pandas_class(nullable)
        shown = plain if plain == with_null else f"{plain}; with NULL {with_null}"
        rows.append([column_type_label(name), shown, code(arrow_class(name))])
    return table(["Column", "pandas", "Arrow"], rows)


def widenings() -> str:
    """Return the types a column may be widened to."""
    rows = [[code(name), ", ".join(map(code, wider))] for name, wider in WIDENINGS.items()]
    return table(["Column", "may become"], rows)


SECTIONS: Mapping[str, Callable[[], str]] = {
    "declared words": declared_words,
    "inferred from pandas": inferred_from_pandas,
    "inferred from Arrow": inferred_from_arrow,
    "accepted": accepted,
    "loaded": loaded,
    "widenings": widenings,
}

VALUE_KINDS: Mapping[str, pa.DataType] = {
    "booleans": pa.bool_(),
    "integers": pa.int64(),
    "floats": pa.float64(),
    "decimals": pa.decimal128(10, 2),
    "text": pa.string(),
    "bytes": pa.binary(),
    "dates": pa.date32(),
    "times": pa.time64("us"),
    "timestamps": pa.timestamp("us"),
    "timestamps with a zone": pa.timestamp("us", "UTC"),
    "durations": pa.duration("us"),
    "UUIDs": pa.uuid(),
    "lists": pa.list_(pa.string()),
    "dicts": pa.struct({"key": pa.int64()}),
}

LOADED = (
    *NATIVE,
    "numeric(12,2)",
    "integer[]",
    "text[]",
    "numeric[]",
    "geometry",
    "inet",
)
"""All that is decoded, and one of each kind that is not."""


def pandas_samples() -> dict[str, pd.Series]:
    """Return a column of each kind, by what a page calls it."""
    instant = pd.Timestamp("2024-06-01 08:15")
    samples = {
        "`bool`, `boolean`": pd.Series([True]),
        "`int8`, `int16`, `uint8`": pd.Series([1], dtype="int16"),
        "`int32`, `uint16`": pd.Series([1], dtype="int32"),
        "`int64`, `Int64`, `uint32`": pd.Series([1], dtype="int64"),
        "`uint64`": pd.Series([1], dtype="uint64"),
        "`float16`, `float32`": pd.Series([1], dtype="float32"),
        "`float64`": pd.Series([1.5]),
        "text, as `object`, `str` or `string`": pd.Series(["a"]),
        "`category` of text": pd.Series(["a"], dtype="category"),
        "`datetime64`": pd.Series([instant]),
        "`datetime64` with a zone": pd.Series([instant.tz_localize("Europe/Berlin")]),
        "`timedelta64`": pd.Series([pd.Timedelta(hours=1)]),
        "`datetime.date`": pd.Series([dt.date(2024, 6, 1)]),
        "`datetime.time`": pd.Series([dt.time(8, 15)]),
        "`decimal.Decimal`": pd.Series([decimal.Decimal("1.50")]),
        "`uuid.UUID`": pd.Series([uuid.UUID(int=1)]),
        "`bytes`": pd.Series([b"a"]),
        "`dict`": pd.Series([{"key": 1}]),
        "`list` of text": pd.Series([["a"]]),
        "`list` of integers": pd.Series([[1]]),
        "`list` of `dict` or of `list`": pd.Series([[{"key": 1}]]),
        "nothing but missing values": pd.Series([None, None]),
        "`period`, `interval`, `complex`": pd.Series([pd.Period("2024-06")]),
    }
    one = {"`int8`, `int16`, `uint8`": ("int8", "int16", "uint8")}
    one |= {"`int32`, `uint16`": ("int32", "uint16")}
    one |= {"`int64`, `Int64`, `uint32`": ("int64", "Int64", "uint32")}
    for label, dtypes in one.items():  # a label that speaks for several is true of each
        kinds = {inferred_from_values(pd.Series([1], dtype=dtype)) for dtype in dtypes}
        if len(kinds) > 1:
            raise AssertionError(f"{label} become different types: {kinds}")
    return samples
