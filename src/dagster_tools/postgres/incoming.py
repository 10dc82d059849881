"""The new rows of one output, whichever way they come: copied from a frame, or selected."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import pyarrow.types as pat
from psycopg import sql
from psycopg.sql import Composed, Identifier

from dagster_tools.errors import BadValue, SchemaConflict
from dagster_tools.postgres import alter
from dagster_tools.postgres.column_types import PgType, infer
from dagster_tools.postgres.columns import Column
from dagster_tools.postgres.connection import Connection, translated
from dagster_tools.postgres.copy import Copied, copy_in, has_binary_form
from dagster_tools.postgres.ddl import compose_alter_type
from dagster_tools.postgres.evolution import (
    Evolution,
    Widening,
    check_values,
    misfit_error,
    widened_type,
)
from dagster_tools.postgres.geometry import is_spatial, settled_type
from dagster_tools.postgres.merge import compose_insert_selected, compose_selected
from dagster_tools.postgres.names import MATERIALIZATION_ID, Table
from dagster_tools.postgres.options import OutputOptions
from dagster_tools.postgres.progress import Progress
from dagster_tools.postgres.rows import Feed, Misfit, Numbered

__all__ = ["CopiedRows", "Plan", "Rows", "SelectedRows"]

INTEGER, DOUBLE, NUMERIC = PgType("integer"), PgType("double precision"), PgType("numeric")

EXACT_IN_DOUBLES = 2**53
"""Up to here, a double precision holds every integer."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the table must become.

    Args:
        wanted: All columns the asset asks for, those of the frame first.
        evolution: Changes of an existing table, and what each column is encoded as.
        postgis: Schema of the PostGIS extension, None where the database has none.
        new_table: There is no table yet.
    """

    options: OutputOptions
    wanted: tuple[Column, ...]
    evolution: Evolution
    postgis: str | None
    new_table: bool = False

    def column(self, name: str) -> Column:
        """Return what the asset asks for under this name."""
        return next(column for column in self.wanted if column.name == name)

    def makes(self, name: str) -> bool:
        """Whether the column is this write's own, and older rows have none."""
        return self.new_table or any(name == column.name for column in self.evolution.additions)


class Rows(Protocol):
    """New rows, still on this side of their table."""

    @property
    def names(self) -> Sequence[str]:
        """Columns they have values for, without the materialization's number."""

    @property
    def targets(self) -> Mapping[str, PgType]:
        """What each of these columns is encoded as."""

    @property
    def partitions(self) -> Sequence[Numbered]:
        """The partitions they belong to."""

    @property
    def counts(self) -> Mapping[str | None, int]:
        """How many there are of each partition, once they were moved."""

    @property
    def srids(self) -> Mapping[str, int]:
        """SRIDs of the geometry that was moved, by column, of columns that name none."""

    @property
    def bytes(self) -> int:
        """What travelled from here to the server."""

    def fill(self, target: Identifier) -> None:
        """Move all of them into a table that has these columns, each with its number."""


@dataclass
class CopiedRows:
    """Rows of a frame, which travel by COPY."""

    connection: Connection
    table: Table
    plan: Plan
    feed: Feed
    log: logging.Logger
    copied: Copied = field(default_factory=Copied)

    @property
    def names(self) -> Sequence[str]:
        """See `Rows`."""
        return list(self.feed.schema.names)

    @property
    def targets(self) -> Mapping[str, PgType]:
        """See `Rows`."""
        return self.feed.targets

    @property
    def partitions(self) -> Sequence[Numbered]:
        """See `Rows`."""
        return self.feed.partitions

    @property
    def counts(self) -> Mapping[str | None, int]:
        """See `Rows`."""
        return self.feed.rows

    @property
    def srids(self) -> Mapping[str, int]:
        """See `Rows`."""
        return self.feed.srids

    @property
    def bytes(self) -> int:
        """See `Rows`."""
        return self.copied.bytes

    def fill(self, target: Identifier) -> None:
        """Copy all of the feed, widening a column on the way where a stream asks for it.

        Of a staging table only its own column is widened at once: the table itself is locked
        for that, and not as long as rows are on the way.
        """
        staged = target != self.table.identifier
        later: list[tuple[Widening, Misfit]] = []
        progress = Progress(self.log, f"to {self.table}")
        while not self.feed.exhausted:
            self.copied += copy_in(
                self.connection,
                target,
                self.feed.columns,
                self.feed,
                self.feed.targets | {MATERIALIZATION_ID: INTEGER},
                binary=has_binary_form(self.feed.schema, self.feed.targets),
                first_row=self.feed.row,
                progress=progress,
            )
            if self.feed.misfit is not None:
                widening = self._widening(self.feed.misfit, target)
                if staged:
                    self._widen_staging(target, widening)
                    later.append((widening, self.feed.misfit))
                else:
                    self._widen(widening, self.feed.misfit)
                self.feed.retarget(widening.column, widening.new)
        for widening, misfit in later:
            self._widen(widening, misfit)
        if self.copied.rows != self.feed.row:
            self.log.warning(
                "%s rows were sent to %s and %s arrived; a trigger of the table keeps some out.",
                self.feed.row,
                self.table,
                self.copied.rows,
            )

    def _widening(self, misfit: Misfit, target: Identifier) -> Widening:
        """Return the change of type that makes a batch of a stream fit, or raise why none does."""
        name, old = misfit.field.name, self.feed.targets[misfit.field.name]
        wanted = self.plan.column(name)
        if wanted.declared or name in self.plan.evolution.fixed:
            raise misfit.error
        new = widened_type(old, misfit.field, [misfit.values], wanted)
        if self.plan.options.schema_evolution == "strict" and not self.plan.makes(name):
            raise self._refusal(misfit, wider=new)
        if new == NUMERIC and self._may_become_float(misfit, target):
            return Widening(name, old, DOUBLE)
        if new is not None:
            return Widening(name, old, new)
        never_filled = name not in self.feed.filled
        if never_filled and alter.holds_no_value(self.connection, self.table, name):
            return Widening(name, old, self._inferred(misfit), empty=True)
        raise self._refusal(misfit)

    def _inferred(self, misfit: Misfit) -> PgType:
        """Return the type of a column that held nothing so far."""
        inferred, options = infer(misfit.field), self.plan.options
        if not is_spatial(inferred):
            return inferred
        ewkb = options.geometry_storage == "ewkb"
        if not ewkb and self.plan.postgis is None:
            raise self._refusal(misfit)
        settled = settled_type(inferred, misfit.field, [misfit.values], ewkb=ewkb)
        return settled if ewkb else replace(settled, schema=self.plan.postgis)

    def _refusal(self, misfit: Misfit, *, wider: PgType | None = None) -> BadValue | SchemaConflict:
        name = misfit.field.name
        # Told is what the frame has now, not what its first batch made of the column.
        wanted = replace(self.plan.column(name), type=infer(misfit.field))
        old, values = self.feed.targets[name], [misfit.values]
        error = misfit_error(self.table, old, wanted, values, misfit.error, wider=wider)
        if error is misfit.error or not self.plan.makes(name):
            return error
        return SchemaConflict(
            f"{misfit.error}; the column is {old} by the rows before, and {wanted.type} here. Give "
            "it one type from the first rows on, in pandas.read_csv with dtype."
        )

    def _may_become_float(self, misfit: Misfit, target: Identifier) -> bool:
        """Whether a column of integers may become one of floats, as a whole frame's would be.

        Only where this write makes the column: what is there already stays exact.
        """
        wanted = self.plan.column(misfit.field.name)
        if not (pat.is_floating(misfit.field.type) and self.plan.makes(wanted.name)):
            return False
        try:
            check_values(misfit.field, [misfit.values], DOUBLE, wanted)
        except BadValue:
            return False
        beyond = sql.SQL("SELECT FROM {} WHERE abs({}::numeric) > {} LIMIT 1").format(
            target, Identifier(wanted.name), sql.Literal(EXACT_IN_DOUBLES)
        )
        with translated("looking for integers that no float holds"):
            return self.connection.execute(beyond).fetchone() is None

    def _widen(self, widening: Widening, misfit: Misfit) -> None:
        try:
            alter.widen(self.connection, self.table, widening, self.log)
        except alter.TableChangedError:
            # Another writer was the first to fill the column. A stream cannot begin again.
            raise self._refusal(misfit) from None

    def _widen_staging(self, staging: Identifier, widening: Widening) -> None:
        with translated("widening the staging table"):
            self.connection.execute(
                compose_alter_type(staging, widening.column, widening.new, empty=widening.empty)
            )


@dataclass
class SelectedRows:
    """Rows of a query, which never leave the server."""

    connection: Connection
    query: Composed
    names: Sequence[str]
    targets: Mapping[str, PgType]
    casts: Mapping[str, PgType]
    partition: Numbered
    count: int = 0
    bytes: int = 0

    @property
    def partitions(self) -> Sequence[Numbered]:
        """See `Rows`."""
        return [self.partition]

    @property
    def counts(self) -> Mapping[str | None, int]:
        """See `Rows`."""
        return {self.partition.key: self.count}

    @property
    def srids(self) -> Mapping[str, int]:
        """See `Rows`; what a query gives is not looked at."""
        return {}

    @property
    def selected(self) -> Composed:
        """The query that returns them, each with its number."""
        return compose_selected(
            self.query, self.names, self.casts, self.partition.materialization_id
        )

    def fill(self, target: Identifier) -> None:
        """See `Rows`."""
        statement = compose_insert_selected(
            target, self.query, self.names, self.casts, self.partition.materialization_id
        )
        with translated("running the query", data=True):
            self.count = self.connection.execute(statement).rowcount
