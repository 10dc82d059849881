"""The new rows of one output, whichever way they come: copied from a frame, or selected."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from psycopg import sql
from psycopg.sql import Composed, Identifier

from dagster_tools.postgres import alter
from dagster_tools.postgres.column_types import PgType
from dagster_tools.postgres.columns import Column
from dagster_tools.postgres.connection import Connection, translated
from dagster_tools.postgres.copy import Copied, Progress, copy_in, has_binary_form
from dagster_tools.postgres.evolution import (
    Evolution,
    Widening,
    misfit_error,
    widened_type,
)
from dagster_tools.postgres.merge import compose_insert_selected
from dagster_tools.postgres.names import MATERIALIZATION_ID, Table
from dagster_tools.postgres.options import OutputOptions
from dagster_tools.postgres.rows import Feed, Misfit, Numbered

__all__ = ["CopiedRows", "Plan", "Rows", "SelectedRows"]

INTEGER = PgType("integer")


@dataclass(frozen=True, slots=True)
class Plan:
    """What the table must become.

    Args:
        wanted: All columns the asset asks for, those of the frame first.
        evolution: Changes of an existing table, and what each column is encoded as.
    """

    options: OutputOptions
    wanted: tuple[Column, ...]
    evolution: Evolution


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
    progress: Progress
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
    def bytes(self) -> int:
        """See `Rows`."""
        return self.copied.bytes

    def fill(self, target: Identifier) -> None:
        """Copy all of the feed, widening a column on the way where a stream asks for it.

        Of a staging table only its own column is widened at once: the table itself is locked
        for that, and not as long as rows are on the way.
        """
        staged = target != self.table.identifier
        later: list[Widening] = []
        while not self.feed.exhausted:
            self.copied += copy_in(
                self.connection,
                target,
                self.feed.columns,
                self.feed,
                self.feed.targets | {MATERIALIZATION_ID: INTEGER},
                binary=has_binary_form(self.feed.schema, self.feed.targets),
                first_row=self.feed.row,
                progress=self.progress,
            )
            if self.feed.misfit is not None:
                widening = self._widening(self.feed.misfit)
                if staged:
                    self._widen_staging(target, widening)
                    later.append(widening)
                else:
                    alter.widen(self.connection, self.table, widening, self.log)
                self.feed.retarget(widening.column, widening.new)
        for widening in later:
            alter.widen(self.connection, self.table, widening, self.log)
        if self.copied.rows != self.feed.row:
            self.log.warning(
                "%s rows were sent to %s and %s arrived; a trigger of the table keeps some out.",
                self.feed.row,
                self.table,
                self.copied.rows,
            )

    def _widening(self, misfit: Misfit) -> Widening:
        """Return the widening that makes a batch of a stream fit, or raise why it does not."""
        name = misfit.field.name
        wanted = next(column for column in self.plan.wanted if column.name == name)
        old = self.feed.targets[name]
        if wanted.declared or name in self.plan.evolution.fixed:
            raise misfit.error
        values = [misfit.values]
        new = widened_type(old, misfit.field, values, wanted)
        if new is None or self.plan.options.schema_evolution == "strict":
            raise misfit_error(self.table, old, wanted, values, misfit.error, wider=new)
        return Widening(name, old, new)

    def _widen_staging(self, staging: Identifier, widening: Widening) -> None:
        with translated("widening the staging table"):
            self.connection.execute(
                sql.SQL("ALTER TABLE {} ALTER COLUMN {} TYPE {}").format(
                    staging, Identifier(widening.column), widening.new.as_sql
                )
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

    def fill(self, target: Identifier) -> None:
        """See `Rows`."""
        statement = compose_insert_selected(
            target, self.query, self.names, self.casts, self.partition.materialization_id
        )
        with translated("running the query", data=True):
            self.count = self.connection.execute(statement).rowcount
