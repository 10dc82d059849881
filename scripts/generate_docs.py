"""Write what the code knows into docs/: the reference, and the tables of docs/types.md.

    python scripts/generate_docs.py

tests/test_docs_generated.py fails where a committed page is not what this writes.
"""

from __future__ import annotations

import datetime as dt
import decimal
import inspect
import re
import textwrap
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa

import dagster_tools
from dagster_tools import frames, geoarrow, sharepoint_asset
from dagster_tools.errors import DagsterToolsError, SchemaConflict
from dagster_tools.postgres.column_types import (
    ALIASES,
    DECLARED_WORDS,
    PgType,
    infer,
    parse_type,
)
from dagster_tools.postgres.columns import Column
from dagster_tools.postgres.evolution import WIDENINGS
from dagster_tools.postgres.options import INPUT_KEYS, OUTPUT_KEYS
from dagster_tools.postgres.projection import NATIVE, decoded_schema, empty_columns
from dagster_tools.postgres.wire import fit
from dagster_tools.sharepoint import SharePointFile

DOCS = Path(__file__).resolve().parent.parent / "docs"
TYPES = DOCS / "types.md"
REFERENCE = DOCS / "reference"


def main() -> None:
    """Write all pages."""
    REFERENCE.mkdir(exist_ok=True)
    for path, text in generated_pages().items():
        path.write_text(text, encoding="utf-8")


def generated_pages() -> dict[Path, str]:
    """Return each page that is generated, or has generated parts, as it ought to be."""
    modules = public_names()
    return {
        TYPES: fill_sections(TYPES.read_text(encoding="utf-8")),
        REFERENCE / "index.md": index_page(modules),
        REFERENCE / "options.md": options_page(),
        **{REFERENCE / f"{name}.md": module_page(name, modules[name]) for name in modules},
        REFERENCE / "sharepoint_asset.md": sharepoint_page(),
    }


# --- the tables of types.md -----------------------------------------------------------------

SECTION = re.compile(r"(<!-- generated: ([\w ]+) -->\n).*?(<!-- end -->\n)", re.DOTALL)


def fill_sections(page: str) -> str:
    """Put each table between the two comments that mark its place."""
    return SECTION.sub(lambda found: f"{found[1]}\n{SECTIONS[found[2]]()}\n{found[3]}", page)


def declared_words() -> str:
    """Return the words of `columns` metadata that PostgreSQL spells otherwise."""
    words = {word: PgType(name) for word, name in (DECLARED_WORDS | ALIASES).items()}
    return table(["word", "PostgreSQL"], [[code(word), code(words[word])] for word in words])


def inferred_from_pandas() -> str:
    """Return what pandas columns become where nobody declared a type."""
    samples = {name: pd.Series(values, dtype=dtype) for name, dtype, values in PANDAS_SAMPLES}
    frames_of = {name: pd.DataFrame({"column": samples[name]}) for name in samples}
    return inferred("pandas", {name: infer_frame(frames_of[name]) for name in samples})


def inferred_from_polars() -> str:
    """Return what Polars columns become where nobody declared a type."""
    frames_of = {code(dtype): pl.DataFrame(schema={"column": dtype}) for dtype in POLARS_TYPES}
    return inferred("Polars", {name: infer_frame(frame) for name, frame in frames_of.items()})


def inferred_from_arrow() -> str:
    """Return what Arrow columns become where nobody declared a type."""
    types = {arrow_label(type_): infer(pa.field("column", type_)) for type_ in ARROW_TYPES}
    return inferred("Arrow", {source: str(types[source]) for source in types})


def accepted() -> str:
    """Return the kinds of values a column of each type takes, if each value fits."""
    targets = {name: PgType(name) for name in (*NATIVE, "geometry")}
    targets |= {"text[]": PgType("text", array=True), "inet": PgType("inet")}
    rows = [
        [label(name), ", ".join(kind for kind in KINDS if takes(target, KINDS[kind]))]
        for name, target in targets.items()
    ]
    return table(["column", "takes"], rows)


def loaded() -> str:
    """Return what columns of each type are loaded as."""
    extra = ("numeric(12,2)", "integer[]", "numeric[]", "geometry", "inet")
    rows = []
    for name in (*NATIVE, *extra):
        full, gaps = (load_sample(name, pd.DataFrame, with_null=null) for null in (False, True))
        full, gaps = describe(full), describe(gaps)
        shown = full if full == gaps else f"{full}; with NULL {gaps}"
        rows.append([label(name), shown, loaded_as("Polars", name), loaded_as("Arrow", name)])
    return table(["column", "pandas", "Polars", "Arrow"], rows)


def loaded_as(library: str, name: str) -> str:
    """Return what a library has for a column of this type."""
    match library:
        case "pandas":
            return describe(load_sample(name, pd.DataFrame, with_null=False))
        case "Polars":
            return code(load_sample(name, pl.DataFrame, with_null=False)["column"].dtype)
        case _:
            arrow = load_sample(name, pa.Table, with_null=False).schema.field(0)
            is_geometry = geoarrow.is_geometry(arrow)
            return code("geoarrow.wkb") if is_geometry else arrow_label(arrow.type)


def widenings() -> str:
    """Return what a column's type may widen to."""
    rows = [[code(name), ", ".join(map(code, wider))] for name, wider in WIDENINGS.items()]
    return table(["column", "may become"], rows)


SECTIONS: Mapping[str, Callable[[], str]] = {
    "declared words": declared_words,
    "inferred from pandas": inferred_from_pandas,
    "inferred from Polars": inferred_from_polars,
    "inferred from Arrow": inferred_from_arrow,
    "accepted": accepted,
    "loaded": loaded,
    "widenings": widenings,
}

NOON = pd.Timestamp("2024-06-01 12:00")

PANDAS_SAMPLES: Sequence[tuple[str, str | None, list[Any]]] = (
    ("`bool`", "bool", [True]),
    ("`boolean`", "boolean", [True]),
    *((f"`{name}`", name, [1]) for name in ("int8", "int16", "int32", "int64")),
    *((f"`{name}`", name, [1]) for name in ("uint8", "uint16", "uint32", "uint64")),
    ("`Int64` and the other nullable ones alike", "Int64", [1]),
    *((f"`{name}`", name, [1.5]) for name in ("float16", "float32", "float64")),
    ("text (`str`, `string`, `object`)", None, ["a"]),
    ("`category` of text", "category", ["a"]),
    ("`datetime64`", None, [NOON]),
    ("`datetime64` with a zone", None, [NOON.tz_localize("UTC")]),
    ("`timedelta64`", None, [pd.Timedelta(hours=1)]),
    ("`datetime.date`", None, [dt.date(2024, 6, 1)]),
    ("`datetime.time`", None, [dt.time(12)]),
    ("`decimal.Decimal`", None, [decimal.Decimal("1.50")]),
    ("`uuid.UUID`", None, [uuid.UUID(int=1)]),
    ("`bytes`", None, [b"a"]),
    ("`dict`", None, [{"key": 1}]),
    ("`list` of text", None, [["a"]]),
    ("`list` of integers", None, [[1]]),
    ("`list` of `dict`", None, [[{"key": 1}]]),
    ("only missing values", "object", [None]),
    ("`period`", None, [pd.Period("2024-06")]),
    ("`complex128`", None, [1j]),
)
"""What a page calls a column, its dtype where that is not what pandas makes of the values."""

POLARS_TYPES: Sequence[Any] = (
    pl.Boolean(),
    *(pl.Int8(), pl.Int16(), pl.UInt8(), pl.Int32(), pl.UInt16()),
    *(pl.Int64(), pl.UInt32(), pl.UInt64(), pl.Int128()),
    *(pl.Float32(), pl.Float64(), pl.Decimal(12, 2)),
    *(pl.String(), pl.Categorical(), pl.Enum(["a", "b"]), pl.Null(), pl.Binary()),
    *(pl.Date(), pl.Time(), pl.Datetime("us"), pl.Datetime("us", "UTC"), pl.Duration("us")),
    *(pl.List(pl.String()), pl.List(pl.Int64()), pl.Array(pl.Int64(), 2)),
    *(pl.Struct({"a": pl.Int64()}), pl.List(pl.List(pl.Int64()))),
)

ARROW_TYPES: Sequence[pa.DataType] = (
    pa.bool_(),
    *(pa.int8(), pa.int16(), pa.uint8(), pa.int32(), pa.uint16()),
    *(pa.int64(), pa.uint32(), pa.uint64()),
    *(pa.float16(), pa.float32(), pa.float64()),
    *(pa.decimal128(10, 2), pa.decimal256(50, 2)),
    *(pa.string(), pa.large_string(), pa.string_view(), pa.null()),
    pa.dictionary(pa.int32(), pa.string()),
    *(pa.binary(), pa.large_binary(), pa.binary(16), pa.binary_view()),
    *(pa.date32(), pa.date64(), pa.time32("s"), pa.time64("us")),
    *(pa.timestamp("ns"), pa.timestamp("us", "UTC")),
    *(pa.duration("us"), pa.month_day_nano_interval()),
    *(pa.uuid(), pa.json_()),
    *(pa.struct({"a": pa.int64()}), pa.map_(pa.string(), pa.int64())),
    *(pa.list_(pa.string()), pa.large_list(pa.int64())),
    *(pa.list_(pa.list_(pa.int64())), pa.list_(pa.struct({"a": pa.int64()}))),
)

KINDS: Mapping[str, pa.DataType] = {
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

EXAMPLES: Mapping[pa.DataType, Any] = {
    pa.bool_(): True,
    pa.int16(): 1,
    pa.int32(): 1,
    pa.int64(): 1,
    pa.float32(): 1.5,
    pa.float64(): 1.5,
    pa.string(): "1",
    pa.binary(): b"a",
    pa.date32(): dt.date(2024, 6, 1),
    pa.time64("us"): dt.time(12),
    pa.timestamp("us"): dt.datetime(2024, 6, 1),  # noqa: DTZ001  # a timestamp without time zone
    pa.timestamp("us", "UTC"): dt.datetime(2024, 6, 1, tzinfo=dt.timezone.utc),
    pa.duration("us"): dt.timedelta(hours=1),
    pa.uuid(): uuid.UUID(int=1).bytes,
    pa.json_(): '{"key": 1}',
    pa.list_(pa.string()): ["1.5"],
    pa.list_(pa.int32()): [1],
    pa.list_(pa.int64()): [1],
}
"""A value as it arrives, for each Arrow type that does."""

LOST: Mapping[str, Mapping[str, str]] = {
    "pandas": {
        "smallint": "that `int8` was narrower, and `uint8` unsigned",
        "integer": "that `uint16` was unsigned",
        "bigint": "that `uint32` was unsigned; nullable without a NULL",
        "numeric(20,0)": "the dtype",
        "real": "that `float16` was narrower",
        "text": "categories",
        "timestamp without time zone": "the unit; nanoseconds are refused",
        "timestamp with time zone": "the zone, but not the instant",
        "interval": "the unit; nanoseconds are refused",
        "numeric": "nothing but trailing zeros that other rows do not have",
        "jsonb": "the order of keys",
    },
    "Polars": {
        "smallint": "that `Int8` was narrower, and `UInt8` unsigned",
        "integer": "that `UInt16` was unsigned",
        "bigint": "that `UInt32` was unsigned",
        "numeric(20,0)": "the dtype",
        "numeric": "the dtype, unless the column is declared, such as `numeric(12,2)`",
        "text": "categories",
        "timestamp with time zone": "the zone, but not the instant",
        "jsonb": "the dtype, and the order of fields",
        "bigint[]": "the width of an `Array`",
    },
    "Arrow": {
        "smallint": "that `int8` was narrower, and `uint8` unsigned",
        "integer": "that `uint16` was unsigned",
        "bigint": "that `uint32` was unsigned",
        "numeric(20,0)": "the type",
        "numeric": "precision and scale, unless the column is declared",
        "real": "that `halffloat` was narrower",
        "text": "the layout, a dictionary",
        "bytea": "the layout, a fixed size",
        "timestamp without time zone": "the unit; nanoseconds are refused",
        "timestamp with time zone": "the zone, but not the instant",
        "jsonb": "the type, and the order of fields",
    },
}
"""What does not come back, by library and column."""


def inferred(library: str, types: Mapping[str, str]) -> str:
    """Compose the table of one library, a row for each PostgreSQL type."""
    sources: dict[str, list[str]] = {}
    for source, target in types.items():
        sources.setdefault(target, []).append(source)
    rows = [
        [", ".join(sources[target]), code(target), loaded_as(library, target),
         LOST[library].get(target, "")]
        if target != REFUSED
        else [", ".join(sources[target]), REFUSED, "", ""]
        for target in sources
    ]  # fmt: skip
    return table([library, "PostgreSQL", "loaded again as", "what does not come back"], rows)


REFUSED = "none: refused"


def infer_frame(frame: object) -> str:
    """Return the type that the only column of a frame becomes, or that it is refused."""
    try:
        return str(infer(frames.to_arrow(frame).schema.field(0)))
    except DagsterToolsError:
        return REFUSED


def takes(target: PgType, type_: pa.DataType) -> bool:
    """Whether values of an Arrow type can be put into such a column at all."""
    if type_ == pa.uuid() and target.name == "geometry":
        return False  # sixteen bytes pass here as bytes do, but are nobody's EWKB
    try:
        fit(pa.array([], type_), pa.field("column", type_), target)
    except SchemaConflict:
        return False
    return True


def load_sample(name: str, as_type: type, *, with_null: bool) -> Any:
    """Build a frame of one column, the way a table's is loaded."""
    columns = empty_columns([Column("column", parse_type(name))], None)
    schema = decoded_schema(columns)
    example = POINT if geoarrow.is_geometry(schema.field(0)) else EXAMPLES[schema.field(0).type]
    values = [example, *([None] if with_null else [])]
    storage = getattr(schema.field(0).type, "storage_type", schema.field(0).type)
    array = pa.array(values, storage)
    if isinstance(schema.field(0).type, pa.BaseExtensionType):
        array = pa.ExtensionArray.from_storage(schema.field(0).type, array)
    batch = pa.RecordBatch.from_arrays([array], schema=schema)
    return frames.from_arrow(pa.RecordBatchReader.from_batches(schema, [batch]), as_type)


POINT = bytes.fromhex("0101000000000000000000f03f0000000000000040")
"""POINT (1 2) in WKB."""


def describe(frame: pd.DataFrame) -> str:
    """Return a column's dtype, or the class of its objects."""
    column = frame["column"]
    if column.dtype != object:
        return code(column.dtype)
    value = column.iloc[0]
    if type(value).__module__.startswith("shapely"):
        return f"{code('shapely')} objects"
    inside = f" of {code(type(value[0]).__qualname__)}" if isinstance(value, list) else ""
    cls = type(value)
    module = "" if cls.__module__ == "builtins" else f"{cls.__module__}."
    return f"{code(module + cls.__qualname__)}{inside} objects"


def arrow_label(type_: pa.DataType) -> str:
    """Return an Arrow type the way its documentation writes it."""
    if isinstance(type_, pa.DictionaryType):
        return code(f"dictionary<{type_.value_type}>")
    return code(re.sub(r"extension<arrow\.(\w+)>", r"\1", str(type_)).replace("item: ", ""))


def label(name: str) -> str:
    """Return what a page calls a column of this type."""
    if name == "enum":
        return "an enum"
    return f"{code(name)} and any other type" if name == "inet" else code(PgType(name))


# --- the options ----------------------------------------------------------------------------

PARTITION_EXPR = """\
Column that tells a row's partition, or a dict of dimension to column, where one output \
[covers several](../how-to/store-partitioned-assets.md#several-partitions-in-one-run)."""

OPTIONS = (
    ("schema", "output", "see below", "Schema of the table."),
    ("table", "output", "see below", "Name of the table."),
    ("primary_key", "output", "none", "Column or columns of the primary key."),
    ("incremental", "output", "`False`", "[Upsert](../how-to/upsert.md) by `primary_key`."),
    (
        "columns",
        "output",
        "none",
        "[Types and modifiers](../how-to/declare-columns.md) by column.",
    ),
    ("chunk_size", "output", "`'300MB'`", "How much of a large frame is encoded at a time."),
    ("users", "output", "none", "Roles that get USAGE on the schema and SELECT on the table."),
    (
        "schema_evolution",
        "output",
        "`'evolve'`",
        "`'strict'` refuses what would [change the table](../how-to/evolve-the-schema.md).",
    ),
    (
        "partition_expr",
        "output",
        "none",
        PARTITION_EXPR,
    ),
    (
        "environment",
        "input, consumer",
        "`'development'`",
        "`'production'` loads [from production](../how-to/read-production.md).",
    ),
    (
        "full_table",
        "input, consumer",
        "`False`",
        "[Every row of the table](../how-to/load-partitions.md#every-row-of-the-table).",
    ),
    (
        "columns",
        "input",
        "all",
        "[Columns to load](../how-to/select-columns.md), and perhaps the type to cast to.",
    ),
    ("order_by", "input", "none", "Column or columns to sort by."),
    (
        "allow_missing_partitions",
        "input",
        "`False`",
        "Skip partitions that were never materialized instead of raising.",
    ),
)
"""Each key, where it may stand, its default and its meaning."""

ABOUT_OPTIONS = """\
Options are metadata. They stand in one of three places:

- *output*: in the metadata of an asset, of an `AssetOut` or of an `Out`; or at run time in
  `dg.Output(…, metadata=…)` and `context.add_output_metadata(…)`, which win.
- *input*: in the metadata of an `AssetIn` or an `In`; in a multi-asset of specs, of an `AssetDep`.
- *consumer*: in the metadata of the asset that loads, for all its inputs that do not say otherwise.
"""

BELOW_OPTIONS = """\
Without `schema`, an asset goes to the schema of the IO manager, else to the last part of its key's
prefix, else to `public`. Without `table`, its table is the last part of its key; of an op, it is
the name of the output.

Values may be plain Python or Dagster's `MetadataValue`. Booleans may be spelled `"true"` and
`"false"`; what is one column may also be a list or a tuple of several. A key that is none of these
is ignored, as other tools keep metadata there too, but one that looks like a slip of the pen
(`primay_key`) is warned of in the run's log. A value that cannot be meant is a
`ConfigurationError`, before anything is written.
"""


def options_page() -> str:
    """Return the page of all options."""
    if {key for key, *_rest in OPTIONS} != {*OUTPUT_KEYS, *INPUT_KEYS}:
        raise AssertionError("OPTIONS does not have the keys of postgres/options.py")
    rows = [[code(key), *rest] for key, *rest in OPTIONS]
    rendered = table(["key", "where", "default", "meaning"], rows)
    return "\n".join([*heading("Options"), ABOUT_OPTIONS, rendered, BELOW_OPTIONS])


# --- the reference --------------------------------------------------------------------------

GENERATED = "<!-- Written by scripts/generate_docs.py from the code; do not edit it here. -->"
HEADING = re.compile(r"(Args|Returns|Yields|Raises|Example):\n")
TITLES = {"Args": "Arguments"}
ITEM = re.compile(r"(\w[\w, ]*): ")
INTERNAL = {"PostgresResource.settings"}


MODULES = ("postgres_io_manager", "sql", "errors", "embedded")
"""In the order in which a reader meets them."""


def public_names() -> dict[str, list[str]]:
    """Return the public names by the module that is their home."""
    modules: dict[str, list[str]] = {module: [] for module in MODULES}
    for name in sorted(dagster_tools.__all__):
        home = getattr(dagster_tools, name).__module__.split(".")[1]
        modules[home].append(name)
    return modules


ABOUT_NAMES = """\
All of this can be imported from `dagster_tools`. What may stand in an asset's metadata is on the
page of [options](options.md). What makes assets of SharePoint files has
[a module of its own](sharepoint_asset.md).
"""


def index_page(modules: Mapping[str, Sequence[str]]) -> str:
    """Return the list of all public names."""
    rows = [
        [f"[{code(name)}]({module}.md#{name.lower()})", first_line(getattr(dagster_tools, name))]
        for module, names in modules.items()
        for name in names
    ]
    return "\n".join(
        [
            *heading("Reference"),
            ABOUT_NAMES,
            table(["name", "what it is"], rows),
        ]
    )


def module_page(module: str, names: Sequence[str]) -> str:
    """Return the page of one module."""
    lines = heading(f"`dagster_tools.{module}`")
    if module != "postgres_io_manager":  # whose own docstring speaks to its maintainers
        lines += rendered(inspect.getdoc(import_module(f"dagster_tools.{module}")))
    for name in names:
        lines += class_section(getattr(dagster_tools, name))
    return "\n".join(lines)


def sharepoint_page() -> str:
    """Return the page of what comes from `dagster_tools.sharepoint_asset`, and of a file."""
    lines = heading("`dagster_tools.sharepoint_asset`")
    lines += rendered(inspect.getdoc(sharepoint_asset))
    members = {name: getattr(sharepoint_asset, name) for name in sharepoint_asset.__all__}
    for name, member in members.items():
        if inspect.isclass(member):
            lines += class_section(member)
        else:
            lines += [f"## {name}\n", *fenced(signature(name, member))]
            lines += rendered(inspect.getdoc(member))
    lines += class_section(SharePointFile)
    return "\n".join(lines)


def class_section(cls: type) -> Iterator[str]:
    """Yield a class: how it is made, what it is, what it can do."""
    yield f"## {cls.__name__}\n"
    if issubclass(cls, (dg.ConfigurableResource, dg.ConfigurableIOManager)):
        about, arguments = without_arguments(inspect.getdoc(cls) or "")
        yield from rendered(about)
        yield fields_table(cls, arguments)
    else:
        if inspect.isfunction(cls.__init__):
            yield from fenced(signature(cls.__name__, cls))
        if issubclass(cls, Exception):
            bases = ", ".join(code(base.__name__) for base in cls.__bases__)
            yield f"Bases: {bases}\n"
        yield from rendered(inspect.getdoc(cls))
    if not issubclass(cls, Exception):
        for name, member in vars(cls).items():
            yield from member_section(cls, name, member)


def member_section(cls: type, name: str, member: Any) -> Iterator[str]:
    """Yield a method or a property, if it is public and says what it does."""
    is_property = isinstance(member, property)
    function = getattr(member, "__func__", member) if not is_property else member
    doc = inspect.getdoc(function) if is_property or inspect.isroutine(function) else None
    if name.startswith("_") or f"{cls.__name__}.{name}" in INTERNAL or not doc:
        return
    yield f"### {cls.__name__}.{name}\n"
    if not is_property:
        yield from fenced(signature(name, function))
    yield from rendered(doc)


def without_arguments(docstring: str) -> tuple[str, dict[str, str]]:
    """Take the `Args` out of a docstring: those of a resource are fields, told in their table."""
    found = re.search(r"^Args:\n((?: {4}.*\n)+)\n", docstring, re.MULTILINE)
    if found is None:
        return docstring, {}
    joined = re.sub(r"\n {8}", " ", found[1])
    arguments = dict(re.findall(r"^ {4}(\w+): (.*)$", joined, re.MULTILINE))
    return docstring.replace(found[0], ""), arguments


def fields_table(cls: Any, arguments: Mapping[str, str]) -> str:
    """Return what a resource can be configured with."""
    rows = []
    for name, field in cls.model_fields.items():
        needed = field.is_required()  # of a resource dependency, which has no class default
        kind = annotation(field.annotation)
        if needed:
            kind = "Any" if name == "credential" else "PostgresResource | None"
        default = None if needed else field.default
        meaning = field.description or arguments[name]
        rows.append([code(field.alias or name), code(kind), code(repr(default)), meaning])
    return table(["field", "type", "default", "meaning"], rows)


def signature(name: str, called: Callable[..., Any]) -> str:
    """Return how something is called, on one line or one for each parameter."""
    found = inspect.signature(called)
    parameters = [p for p in found.parameters.values() if p.name not in {"self", "cls"}]
    shown: list[str] = []
    for before, parameter in zip([None, *parameters], parameters, strict=False):
        if parameter.kind is parameter.KEYWORD_ONLY and (
            before is None or before.kind is not parameter.KEYWORD_ONLY
        ):
            shown.append("*")
        shown.append(parameter_text(parameter))
        if parameter.kind is parameter.POSITIONAL_ONLY:
            shown.append("/")
    returned = annotation(found.return_annotation)
    if hasattr(called, "__wrapped__"):  # by contextlib.contextmanager
        returned = returned.replace("Iterator", "AbstractContextManager", 1)
    arrow = "" if inspect.isclass(called) or returned == "None" else f" -> {returned}"
    line = f"{name}({', '.join(shown)}){arrow}"
    if len(line) <= 88:
        return line
    return f"{name}(\n" + "".join(f"    {item},\n" for item in shown) + f"){arrow}"


STARS = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}


def parameter_text(parameter: inspect.Parameter) -> str:
    """Return a parameter as it stands in its signature."""
    text = STARS.get(parameter.kind.name, "") + parameter.name
    if parameter.annotation is not parameter.empty:
        text += f": {annotation(parameter.annotation)}"
    if parameter.default is parameter.empty:
        return text
    factory = type(parameter.default).__name__ == "_HAS_DEFAULT_FACTORY_CLASS"
    default = "…" if factory else repr(parameter.default)
    return f"{text} = {default}"


def annotation(hint: Any) -> str:
    """Return a type as a person writes it."""
    text = hint.strip("'\"") if isinstance(hint, str) else inspect.formatannotation(hint)
    return re.sub(r"\b(?:dagster_tools|dagster|typing|collections)\.(?:\w+\.)*(?=\w)", "", text)


def rendered(docstring: str | None) -> Iterator[str]:
    """Yield a docstring as Markdown: its lists as lists, its examples as code."""
    title = ""
    for part in paragraphs(docstring or ""):
        found = HEADING.match(part)
        if found:
            title = found[1]
            part = textwrap.dedent(part[found.end() :])  # noqa: PLW2901  # what is under the title
            yield f"{TITLES.get(title, title)}:\n"
        if title == "Example":
            yield from fenced(re.sub(r" *# doctest:.*", "", part))
        elif title:
            yield items(part.splitlines())
        elif part.startswith("    "):
            yield from fenced(textwrap.dedent(part))
        elif "├" in part:
            yield f"```text\n{part}\n```\n"
        else:
            yield part + "\n"


def paragraphs(docstring: str) -> list[str]:
    """Split a docstring at its empty lines, but for those within indented code."""
    found: list[str] = []
    for part in docstring.split("\n\n"):
        if found and part.startswith("    ") and found[-1].startswith("    "):
            found[-1] += f"\n\n{part}"
        else:
            found.append(part)
    return found


def items(lines: Sequence[str]) -> str:
    """Return the entries of `Args` or `Raises` as a list."""
    entries = [
        "- " + ITEM.sub(lambda found: f"{code(found[1])}: ", line, count=1)
        if not line.startswith(" ")
        else "  " + line.strip()
        for line in lines
    ]
    return "\n".join(entries) + "\n"


def fenced(source: str) -> Iterator[str]:
    """Yield code that is shown only: it has run already, or does not stand on its own."""
    yield "<!-- not run: part of a docstring, whose examples test_docs_generated.py runs -->"
    yield f"```python\n{source}\n```\n"


# --- Markdown -------------------------------------------------------------------------------


def heading(title: str) -> list[str]:
    """Return how a page begins that nobody edits."""
    return [GENERATED, "", f"# {title}", ""]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; a bar within a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(
        "| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines
    )


def code(text: object) -> str:
    """Return text set as code."""
    return f"`{text}`"


def first_line(cls: type) -> str:
    """Return the sentence that says what something is."""
    return (inspect.getdoc(cls) or "").partition("\n\n")[0].replace("\n", " ")


if __name__ == "__main__":
    main()
