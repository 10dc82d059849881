"""What an asset may return besides a frame, and what it may ask for besides one.

`SQL` runs statements in the server, `Query` makes a table of what a SELECT returns. Both
take parameters and `Relation`s: inputs that stay where they are.

An `IncrementalDataFrame` says which of the asset's earlier rows go before its own come in.
The rows that go are named by a small expression: `Eq`, combined with `And` and `Or`, or
with `&` and `|`.

`Batches` load a source too large for one frame or one transaction, a `Batch` at a time.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, TypeGuard

from dagster_tools.errors import ConfigurationError

__all__ = [
    "LAST",
    "SQL",
    "And",
    "Batch",
    "Batches",
    "Delete",
    "Eq",
    "IncrementalDataFrame",
    "Or",
    "Query",
    "Relation",
    "Transacted",
]


class _Last(enum.Enum):
    """Of one member, so that a type checker can tell it from any other value."""

    LAST = "the last high watermark"

    def __repr__(self) -> str:
        return self.name


LAST = _Last.LAST
"""Where `Batches` go on unless told otherwise: at the high watermark of the last batch."""


@dataclass(frozen=True)
class Relation:
    """An input that is not loaded: a handle to put into `SQL` or `Query` as `{name}`.

    An asset gets one for an input annotated `Relation`. In a statement it stands for the
    rows the input would load: those of the upstream asset, of the partitions asked for.

    Args:
        materialization_ids: Whose rows; None for a table that nothing here wrote.
        shared: The table has rows of other assets or partitions too.
    """

    schema: str
    table: str
    materialization_ids: tuple[int, ...] | None = None
    shared: bool = False
    environment: str = "development"


@dataclass(frozen=True, init=False, repr=False)
class _Statement:
    text: str
    parameters: Mapping[str, object]

    def __init__(self, text: str, /, **parameters: object) -> None:
        if not str(text).strip():
            raise ConfigurationError(f"{type(self).__name__} needs the text of a statement.")
        object.__setattr__(self, "text", text)
        object.__setattr__(self, "parameters", MappingProxyType(parameters))

    def __repr__(self) -> str:
        # Values may be personal, and a repr ends up in logs.
        return f"{type(self).__name__}(..., {', '.join(self.parameters)})"

    @property
    def relations(self) -> dict[str, Relation]:
        """The parameters that are inputs, by the name that stands in braces."""
        return {k: v for k, v in self.parameters.items() if isinstance(v, Relation)}

    @property
    def values(self) -> dict[str, object]:
        """The parameters that are values, by the name of their placeholder."""
        return {k: v for k, v in self.parameters.items() if not isinstance(v, Relation)}


class SQL(_Statement):
    """Statements to run as they are, all or nothing.

    Args:
        text: One or more statements; `%(name)s` stands for a value, `{name}` for a `Relation`.
            Without values a `%` is a `%`, and other braces are always left alone.
        parameters: Values and relations by name.

    Example:
        >>> SQL("DELETE FROM reports.daily WHERE day = %(day)s", day="2024-01-01")
        SQL(..., day)
    """


class Query(_Statement):
    """A SELECT whose rows become the asset's table, without leaving the server.

    It is materialized as a frame would be: with partitions, types, keys and tracking.
    `text` and `parameters` are those of `SQL`.

    Example:
        >>> Query("SELECT carrier, count(*) AS flights FROM {raw} GROUP BY 1", raw=...)
        Query(..., raw)
    """


class _Combinable:
    """Lets expressions be combined with `&` and `|`."""

    def __and__(self: Delete, other: Delete) -> And:  # type: ignore[misc]  # mixed into every member of Delete
        return And(self, other)

    def __or__(self: Delete, other: Delete) -> Or:  # type: ignore[misc]  # as above
        return Or(self, other)


@dataclass(frozen=True, init=False)
class Eq(_Combinable):
    """Rows whose columns have one of the values; NULL (`None`, `NaN`, `NaT`) matches NULL.

    Args:
        columns: A column, or several of a composite key.
        values: A value or many, as a list, set, array or Series; of a composite key a tuple or
            many. An empty list matches no row.

    Example:
        >>> Eq("file_id", "abc123")
        Eq('file_id', ...)
        >>> Eq(["user_id", "date"], [(1, "2024-01-01"), (2, "2024-01-02")])
        Eq(['user_id', 'date'], ...)
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]

    def __init__(self, columns: str | Sequence[str], values: object) -> None:
        names = _column_names(columns)
        values = _listed(names, values)
        rows = _single_rows(values) if isinstance(columns, str) else _composite_rows(names, values)
        object.__setattr__(self, "columns", names)
        object.__setattr__(self, "rows", rows)

    def __repr__(self) -> str:
        # Values may be personal, and a repr ends up in logs.
        shown = self.columns[0] if len(self.columns) == 1 else list(self.columns)
        return f"Eq({shown!r}, ...)"


@dataclass(frozen=True, init=False)
class And(_Combinable):
    """Rows that all of the expressions match."""

    operands: tuple[Delete, ...]

    def __init__(self, *operands: Delete) -> None:
        object.__setattr__(self, "operands", _operands("And", operands))

    def __repr__(self) -> str:
        return f"And({', '.join(map(repr, self.operands))})"


@dataclass(frozen=True, init=False)
class Or(_Combinable):
    """Rows that any of the expressions matches."""

    operands: tuple[Delete, ...]

    def __init__(self, *operands: Delete) -> None:
        object.__setattr__(self, "operands", _operands("Or", operands))

    def __repr__(self) -> str:
        return f"Or({', '.join(map(repr, self.operands))})"


Delete: TypeAlias = "Eq | And | Or"


@dataclass(frozen=True, eq=False)  # frames have no equality that is true or false
class IncrementalDataFrame:
    """A frame whose rows join the asset's earlier ones instead of replacing them.

    In one transaction, the asset's own rows that `delete` matches go (in a partitioned
    asset: those of the run's partitions), then the frame's come in: inserted, or upserted
    where the asset has a `primary_key`.

    Args:
        frame: Any frame an asset may return; an empty one still deletes.
        delete: Which rows go; without it the asset needs a `primary_key`.
    """

    frame: object
    delete: Delete | None = None

    def __post_init__(self) -> None:
        if self.frame is None:
            raise ConfigurationError(
                "IncrementalDataFrame needs a frame, and got None. An empty one, such as "
                "pandas.DataFrame(), adds no row, and `delete` still deletes."
            )
        if self.delete is not None and not isinstance(self.delete, (Eq, And, Or)):
            raise ConfigurationError(
                f"delete is a {type(self.delete).__name__}; it must be an Eq, And or Or."
            )

    def __repr__(self) -> str:
        # A frame shows its rows.
        return f"IncrementalDataFrame({type(self.frame).__name__}, delete={self.delete!r})"


@dataclass(frozen=True, eq=False)
class Transacted:
    """A value, and a function that runs in the transaction which writes it.

    Args:
        value: Anything an asset may return but `Batches`. With None nothing is written, and the
            function runs all the same.
        before_commit: Called with the psycopg connection when the rows are there. What it raises
            undoes them.
        partial: Why the rows are not all there are, so that they must not replace the earlier
            ones; None where they are.
    """

    value: object
    before_commit: Callable[[Any], object]
    partial: str | None = None

    def __repr__(self) -> str:
        # A frame shows its rows.
        return f"Transacted({type(self.value).__name__})"


@dataclass(frozen=True, eq=False)
class Batch:
    """A part of a source: its rows become visible together, and with them its high watermark.

    Args:
        data: Any frame; or an iterable, such as a generator, of tuples (in the order of the
            asset's `columns`), dicts, or instances of a dataclass. An `IncrementalDataFrame`
            around any of these says which earlier rows go before. For the assets of a
            multi-asset a dict: name of the output to its data.
        high_watermark: How far the source is loaded once this batch is, as a JSON value; dates
            and datetimes become ISO text. A function is called when the rows have been sent.
            None leaves it where it is.
        metadata: Whatever `before_visible` needs to know.
    """

    data: object
    high_watermark: object = None
    metadata: Any = None

    def __repr__(self) -> str:
        # A frame shows its rows.
        return f"Batch({type(self.data).__name__})"


@dataclass(frozen=True, eq=False)
class Batches:
    """A source that is loaded in parts, and where loading goes on in the next run.

    Each batch is committed by itself, together with its high watermark. A run that fails leaves
    the batches before, and the next begins where they ended.

    Rows are added to those there are; of an `incremental` asset with a `primary_key` they are
    upserted.

    Args:
        function: Called with the last high watermark, None at first; yields each `Batch`.
        delete: "before_first_batch" replaces what is there by the first batch, in one
            transaction. Where the last run was cut off and this one goes on from its high
            watermark, what that run loaded stays.
        on_duplicate: What becomes of rows of one batch that have the same primary key: "error",
            or the "last" one counts, of an incremental asset.
        before_visible: Called in each batch's transaction when its rows are there, with the
            psycopg connection, the table (its `schema` and `name`; for a multi-asset a dict of
            them by output) and the batch's metadata. What it raises undoes the batch.
        start: The high watermark to begin with instead of the last; None begins anew.

    Example:
        >>> def orders(high_watermark):
        ...     for day in ["2024-01-01", "2024-01-02"]:
        ...         if high_watermark is None or day > high_watermark:
        ...             yield Batch([(day, 1)], high_watermark=day)
        >>> Batches(orders)
        Batches(orders)
    """

    function: Callable[[Any], Iterable[Batch]]
    _: KW_ONLY
    delete: Literal["before_first_batch"] | None = None
    on_duplicate: Literal["error", "last"] = "error"
    before_visible: Callable[[Any, Any, Any], object] | None = None
    start: object = LAST

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise ConfigurationError(
                f"Batches takes a function of the high watermark, and got a "
                f"{type(self.function).__name__}."
            )
        if self.delete not in (None, "before_first_batch"):
            raise ConfigurationError(f"delete is {self.delete!r}; expected 'before_first_batch'.")
        if self.on_duplicate not in ("error", "last"):
            raise ConfigurationError(
                f"on_duplicate is {self.on_duplicate!r}; expected 'error' or 'last'."
            )

    def __repr__(self) -> str:
        return f"Batches({getattr(self.function, '__name__', 'function')})"


def _operands(kind: str, operands: tuple[Delete, ...]) -> tuple[Delete, ...]:
    if not operands or not all(isinstance(operand, (Eq, And, Or)) for operand in operands):
        raise ConfigurationError(f"{kind} takes one or more of Eq, And and Or.")
    return operands


def _column_names(columns: object) -> tuple[str, ...]:
    listed = [columns] if isinstance(columns, str) else columns
    names = tuple(listed) if isinstance(listed, Iterable) else ()
    if not names or not all(isinstance(n, str) for n in names) or len(set(names)) < len(names):
        raise ConfigurationError(f"Eq needs one or more different column names, not {columns!r}.")
    return names


def _listed(names: Sequence[str], values: object) -> object:
    """Return values of other libraries as Python has them."""
    if hasattr(values, "columns"):
        # Iterating over a frame gives the names of its columns: they would be taken for values.
        raise ConfigurationError(
            f"Eq({list(names)}, …) takes values, and got a {type(values).__name__}. Give its rows: "
            f"frame[{list(names)}].itertuples(index=False, name=None)"
        )
    if hasattr(values, "to_pylist"):
        return values.to_pylist()
    if _is_many(values) and getattr(values, "ndim", None) == 0:
        return values[()]  # type: ignore[index]  # how an array of no dimension gives its value
    return values


def _is_many(value: object) -> TypeGuard[Iterable[object]]:
    one = (str, bytes, bytearray, memoryview, Mapping)
    return isinstance(value, Iterable) and not isinstance(value, one)


def _single_rows(values: object) -> tuple[tuple[object, ...], ...]:
    return tuple((value,) for value in values) if _is_many(values) else ((values,),)


def _composite_rows(names: tuple[str, ...], values: object) -> tuple[tuple[object, ...], ...]:
    if not _is_many(values):
        raise ConfigurationError(
            f"Eq({list(names)}, …) takes tuples of {len(names)} values, one for each column."
        )
    listed = list(values)
    if isinstance(values, tuple) and not all(_is_many(row) for row in listed):
        listed = [values]
    rows = [tuple(row) if _is_many(row) else (row,) for row in listed]
    wrong = next((index for index, row in enumerate(rows) if len(row) != len(names)), None)
    if wrong is not None:
        raise ConfigurationError(
            f"Eq({list(names)}, …): value {wrong} has {len(rows[wrong])} parts for "
            f"{len(names)} columns."
        )
    return tuple(rows)
