"""The story of a source that is loaded in batches: each a transaction, with its watermark."""

from __future__ import annotations

import logging
import time
from collections.abc import (
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import psycopg
import pyarrow as pa

from dagster_tools import json_text
from dagster_tools.errors import ConfigurationError
from dagster_tools.postgres.catalog import fetch_catalog
from dagster_tools.postgres.columns import ExistingTable
from dagster_tools.postgres.connection import Connection, libpq_uri
from dagster_tools.postgres.deletion import EVERYTHING
from dagster_tools.postgres.leftovers import warn_of_leftovers
from dagster_tools.postgres.names import Table
from dagster_tools.postgres.privileges import explained
from dagster_tools.postgres.rows import CallerError, Stream
from dagster_tools.postgres.table_write import EmptyWrite, Merge, Output, TableWrite, Written
from dagster_tools.postgres.tracking import Counts, Loaded
from dagster_tools.postgres.write import declare_table, table_write, write_together
from dagster_tools.sql import LAST, Batch, Batches

__all__ = ["ToArrow", "Totals", "load_batches"]

IDLE_SECONDS = 60.0
"""After so long the connection is opened anew: what stands between us and the server may have
dropped one that the source let wait."""

Converted = tuple["pa.Table | Stream", Merge | None]

_NO_MARKS: Mapping[str, str | None] = MappingProxyType({})

ToArrow = Callable[[Connection, Output, object], Converted]


@dataclass
class Totals:
    """What the batches of one output did.

    Args:
        existing: The table afterwards; None where there is none.
        batches: How many were committed.
        counts: What they did to its rows.
        high_watermark: Of the last of them, as JSON text; None where there is none.
    """

    database: str
    table: Table
    existing: ExistingTable | None
    batches: int = 0
    counts: Counts = field(default_factory=Counts)
    rows: int = 0
    bytes: int = 0
    high_watermark: str | None = None

    def add(self, written: Written) -> None:
        """Count another batch."""
        self.existing = written.existing
        self.batches += 1
        self.rows += written.rows or 0
        self.bytes += written.bytes
        for done in written.counts.values():
            self.counts += done


def load_batches(
    connect: Callable[[], Connection],
    outputs: Mapping[str, Output],
    own: str,
    batches: Batches,
    to_arrow: ToArrow,
    *,
    unselected: Collection[str] = (),
    nothing_new: Mapping[str, str | None] = _NO_MARKS,
) -> dict[str, Totals]:
    """Load a source batch by batch, from its last high watermark on.

    A batch is written as by `write_table`, its tables in one transaction, and with them its high
    watermark. An error, of the source too, leaves the batches before.

    Two runs at once never load the same: one that finds that the other has committed a batch
    gives up its own, before its rows are read, and begins where the other came to.

    Args:
        outputs: By name, those that may share the source; each of one partition.
        own: Which of them it is loaded for. Its data is a batch's, unless that is a dict of
            output to data.
        to_arrow: Turns the data of one output into Arrow, and says how its rows join the earlier
            ones; None where they are simply added.
        unselected: Outputs that are not written, whatever a batch has for them.
        nothing_new: Outputs that share the source and found no batch, and their high watermarks.

    Returns:
        The totals of the outputs that were written, or of `own` where there was no batch.

    Raises:
        ConfigurationError: What is no batch; two runs at once without high watermarks.
        Exception: Whatever the source raises, and what `before_visible` does.
        As `write_table`.
    """
    with closing(_Line(connect)) as line:
        load = _Load(
            line, dict(outputs), own, batches, to_arrow, frozenset(unselected), nothing_new
        )
        load.check()
        try:
            load.run(batches.start)
        except _OvertakenError:
            load.go_on()
        return load.totals


class _OvertakenError(Exception):
    """Another run has committed a batch since this one looked."""


class _Line:
    """The connection of a load, opened anew after a long pause."""

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self.connect = connect
        self._open: Connection | None = None
        self._used = 0.0

    @contextmanager
    def use(self) -> Iterator[Connection]:
        if self._open is None or time.monotonic() - self._used > IDLE_SECONDS:
            self.close()
            self._open = self.connect()
        # Not when the block ends: it may have waited for the source.
        self._used = time.monotonic()
        yield self._open

    def close(self) -> None:
        if self._open is not None:
            self._open.close()


@dataclass
class _Load:
    """What one run loads of a source.

    Args:
        loaded: How far each output has come, as this run knows it.
        high_watermark: Where the next run would go on, as JSON text.
        written: The outputs that the batches are for; known once there is one.
    """

    line: _Line
    outputs: dict[str, Output]
    own: str
    batches: Batches
    to_arrow: ToArrow
    unselected: frozenset[str]
    nothing_new: Mapping[str, str | None]
    loaded: dict[str, Loaded] = field(default_factory=dict)
    totals: dict[str, Totals] = field(default_factory=dict)
    high_watermark: str | None = None
    written: list[str] | None = None

    @property
    def log(self) -> logging.Logger:
        return self.outputs[self.own].log

    def check(self) -> None:
        """Refuse what cannot be loaded in batches, before anything is read."""
        output = self.outputs[self.own]
        keys = output.lineage.partition_keys
        if len(keys) > 1:
            raise ConfigurationError(
                f"The run covers {len(keys)} partitions, and a high watermark is of one. Run "
                "one partition at a time (backfill_policy=BackfillPolicy.multi_run(1))."
            )
        if self.batches.on_duplicate == "last" and not output.options.incremental:
            raise ConfigurationError(
                "on_duplicate='last' is about rows of the same primary key, and these are not "
                "upserted. Set incremental and primary_key in the metadata."
            )

    def go_on(self) -> None:
        """Begin where another run came to, as often as that happens."""
        while True:
            self.log.info("Another run loads %s too; going on where it came to.", self._table)
            try:
                self.run(LAST, again=True)
            except _OvertakenError:
                continue
            return

    def run(self, start: object, *, again: bool = False) -> None:
        """Load from a high watermark to the end of the source.

        Args:
            again: This run has begun before, and another has committed a batch since.
        """
        with self._connected() as connection:
            self._look_up(connection, self.written or [self.own])
        self._check_equally_far(self.nothing_new)
        self.high_watermark = self._begins_at(self.own)
        if again:
            self._check_told_apart()
        if self.high_watermark != self.loaded[self.own].high_watermark:
            self.log.info("%s has none of the rows loaded before; beginning anew.", self._table)
        known = json_text.loads(self.high_watermark) if self.high_watermark else None
        goes_on = start is LAST and known is not None and not self.loaded[self.own].finished
        replaces = self.batches.delete is not None and not goes_on
        with _opened(self.batches.function, known if start is LAST else start) as source:
            for batch in source:
                self._write(_checked(batch), replaces=replaces)
                replaces = False
        self._finish()

    @property
    def _table(self) -> Table:
        return self.outputs[self.own].table

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """Yield the connection, and say which GRANTs are missing where the server refuses."""
        schema = self.outputs[self.own].tracking.schema
        with (
            self.line.use() as connection,
            explained(libpq_uri(connection), self._table, schema, "look up", "record"),
        ):
            yield connection

    # --- how far it has come ----------------------------------------------------------------

    def _look_up(self, connection: Connection, names: Sequence[str]) -> None:
        """Find how far outputs have come, all at one moment."""
        tracking = self.outputs[self.own].tracking
        for name in names:
            table = self.outputs[name].table
            catalog = fetch_catalog(connection, table, tracking.schema)
            self.totals.setdefault(name, Totals(catalog.database, table, None))
            self.totals[name].existing = catalog.existing
            if not catalog.tracking_exists:
                # Or an older version has made it, which knew of no batches.
                tracking.create(connection)
        found = tracking.fetch_loaded(connection, [self.outputs[name].lineage for name in names])
        self.loaded = dict(zip(names, found, strict=True))

    def _look_up_all(self, connection: Connection, names: Sequence[str]) -> None:
        """Find how far those came that share the source: as far as the one it is loaded for."""
        before = self.loaded[self.own]
        self._look_up(connection, names)
        if not self.loaded[self.own].is_as_far_as(before):
            raise _OvertakenError
        self._check_equally_far({})

    def _begins_at(self, name: str) -> str | None:
        """Return the last high watermark, unless the rows it speaks of are not in the table.

        Somebody has dropped it, or the asset was pointed at another.
        """
        loaded, total = self.loaded[name], self.totals[name]
        stored = total.existing is not None and loaded.table == total.table
        return loaded.high_watermark if stored else None

    def _check_equally_far(self, others: Mapping[str, str | None]) -> None:
        """Refuse to go on with a source for outputs of different high watermarks."""
        marks = {name: self._begins_at(name) for name in self.loaded} | dict(others)
        if self.batches.start is LAST and len(set(marks.values())) > 1:
            raise ConfigurationError(
                "The outputs of one source go on from one high watermark, and theirs are "
                f"{', '.join(f'{name}: {mark}' for name, mark in sorted(marks.items()))}. Make "
                "them equal with: dagster-tools watermark set ASSET VALUE"
            )

    def _check_told_apart(self) -> None:
        """Refuse to add rows twice that only a high watermark could tell from new ones."""
        output = self.outputs[self.own]
        adds = not output.options.incremental and self.batches.delete is None
        if adds and self.high_watermark is None:
            raise ConfigurationError(
                f"Another run loads {output.table} at the same time, and without high watermarks "
                "neither can tell what the other has loaded. Give each Batch a high_watermark, or "
                "run the asset again when the other is done."
            )

    def _finish(self) -> None:
        """Note that the source is at its end; where it had nothing at all, make the table."""
        with self._connected() as connection:
            for name, total in self.totals.items():
                output, loaded = self.outputs[name], self.loaded[name]
                if not loaded.finished:
                    output.tracking.record_finished(connection, output.lineage, loaded.last)
                if total.existing is None and (output.options.columns or loaded.last is None):
                    total.existing = declare_table(connection, output).existing
                total.high_watermark = self.high_watermark
                warn_of_leftovers(connection, output.tracking, output.lineage, output.log)

    # --- one batch --------------------------------------------------------------------------

    def _write(self, batch: Batch, *, replaces: bool) -> None:
        started = time.monotonic()
        data = self._data(batch)
        loaded: dict[str, Loaded] = {}
        marks: list[str | None] = []
        with self.line.use() as connection:
            names = self._names(connection, data)
            # Reads the first rows, for which the source may take its time.
            converted = [self._converted(connection, name, data[name]) for name in names]
        with self.line.use() as connection:
            writes = [
                self._table_write(connection, name, given, number, replaces=replaces)
                for number, (name, given) in enumerate(zip(names, converted, strict=True))
            ]

            def record() -> None:
                self._show(connection, batch)
                mark = self._mark(batch)
                marks[:] = [mark]
                tracking = self.outputs[self.own].tracking
                lineages = [self.outputs[name].lineage for name in names]
                for lineage in lineages:
                    tracking.record_watermark(connection, lineage, mark, finished=False)
                found = tracking.fetch_loaded(connection, lineages)
                loaded.update(zip(names, found, strict=True))

            written = write_together(connection, writes, record)
        self.loaded, [self.high_watermark] = loaded, marks
        for name, done in zip(names, written, strict=True):
            self.totals[name].add(done)
            self._tell(name, done, time.monotonic() - started)

    def _data(self, batch: Batch) -> dict[str, object]:
        """Return the data of each output: of all that share the source, or of its own."""
        if not isinstance(batch.data, Mapping):
            return {self.own: batch.data}
        unknown = sorted(set(batch.data) - set(self.outputs) - self.unselected)
        if unknown:
            raise ConfigurationError(
                f"A batch that is a dict has data by output, and this one has some for {unknown}. "
                f"Outputs that can share the source are {sorted(self.outputs)}."
            )
        return {name: batch.data.get(name) for name in self.outputs}

    def _names(self, connection: Connection, data: Mapping[str, object]) -> list[str]:
        """Return the outputs that are written, in the order that all writers keep."""
        if self.written is None:
            names = sorted(data, key=lambda name: str(self.outputs[name].table))
            if names != [self.own]:
                self._look_up_all(connection, names)
            self.written = names
        if set(self.written) != set(data):
            raise ConfigurationError(
                "The batches of a source are all for one output, or each is a dict of output to "
                "data. This one is the one, and those before were the other."
            )
        return self.written

    def _converted(self, connection: Connection, name: str, data: object) -> Converted | None:
        return None if data is None else self.to_arrow(connection, self.outputs[name], data)

    def _table_write(
        self,
        connection: Connection,
        name: str,
        given: Converted | None,
        number: int,
        *,
        replaces: bool,
    ) -> TableWrite:
        """Make one table's part of a batch ready, which may be none."""
        rows, own = (None, None) if given is None else given
        output = replace(self.outputs[name], merge=self._merge(own, replaces=replaces))
        write: TableWrite = EmptyWrite(connection, output)
        if rows is not None:
            write = table_write(connection, output, rows, number=number)
        return _InTurn(write, self.loaded[name])

    def _merge(self, own: Merge | None, *, replaces: bool) -> Merge | None:
        repeated = self.batches.on_duplicate
        if not replaces:
            return Merge(upsert=False) if own is None else replace(own, repeated=repeated)
        return None if repeated == "error" else Merge(EVERYTHING, repeated=repeated)

    def _show(self, connection: Connection, batch: Batch) -> None:
        """Let the user's function see the rows before anybody else does."""
        if self.batches.before_visible is None:
            return
        tables = {name: self.outputs[name].table for name in self.written or ()}
        table = tables if isinstance(batch.data, Mapping) else tables[self.own]
        ours, connection.cursor_factory = connection.cursor_factory, psycopg.Cursor
        try:
            self.batches.before_visible(connection, table, batch.metadata)
        except psycopg.Error as error:
            raise CallerError(error) from error
        finally:
            connection.cursor_factory = ours

    def _mark(self, batch: Batch) -> str | None:
        """Return the batch's high watermark as JSON text, or the last where it has none."""
        mark = batch.high_watermark
        if callable(mark):
            try:
                mark = mark()
            except psycopg.Error as error:
                raise CallerError(error) from error
        if mark is None:
            return self.high_watermark
        try:
            text = json_text.dumps(mark)
            json_text.check(text)
        except ValueError as error:
            raise ConfigurationError(
                f"A high watermark is a JSON value, and this {type(mark).__name__} {error}."
            ) from None
        return text

    def _tell(self, name: str, done: Written, seconds: float) -> None:
        rows = done.rows or 0
        self.log.info(
            "Batch %s to %s: %s, %.1f MB in %.1f s (%s rows/s); high watermark %s.",
            self.totals[name].batches,
            self.outputs[name].table,
            "1 row" if rows == 1 else f"{rows:,} rows",
            done.bytes / 1e6,
            seconds,
            f"{rows / seconds:,.0f}",
            self.high_watermark or "none",
        )


@dataclass
class _InTurn:
    """A write that is given up where another run has committed a batch in the meantime.

    Whether it has is known once the partition is locked, which is before rows are read.
    """

    write: TableWrite
    loaded: Loaded

    @property
    def connection(self) -> Connection:
        return self.write.connection

    @property
    def output(self) -> Output:
        return self.write.output

    def prepare(self) -> None:
        self.write.prepare()

    def take_turn(self) -> None:
        self.write.take_turn()
        tracking, lineage = self.output.tracking, self.output.lineage
        [now] = tracking.fetch_loaded(self.write.connection, [lineage])
        if not now.is_as_far_as(self.loaded):
            raise _OvertakenError

    def move(self) -> Written:
        return self.write.move()

    def grant(self) -> None:
        self.write.grant()

    def finish(self, written: Written) -> Written:
        return self.write.finish(written)

    def abandon(self) -> None:
        self.write.abandon()


def _checked(batch: object) -> Batch:
    if not isinstance(batch, Batch):
        raise ConfigurationError(
            f"What the function of Batches yields is a Batch, and this is a "
            f"{type(batch).__name__}. Yield Batch(data, high_watermark=…)."
        )
    return batch


@contextmanager
def _opened(
    function: Callable[[object], object], high_watermark: object
) -> Iterator[Iterator[object]]:
    """Ask for the batches, and end a generator with its run: what it holds open is closed."""
    source = function(high_watermark)
    if not isinstance(source, Iterable):
        if isinstance(source, Coroutine):
            source.close()
        name = getattr(function, "__name__", "This")
        raise ConfigurationError(
            f"The function of Batches yields each Batch, and {name} returned an object of class "
            f"{type(source).__name__}. Write it as a plain generator, without async: "
            "yield Batch(data, high_watermark=…)."
        )
    iterator = iter(source)
    try:
        yield iterator
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()
