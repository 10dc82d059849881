"""Peak memory of a stream that is written and of one that is read: it must not grow with them.

Two gigabytes go into a table through the IO manager, as a `RecordBatchReader`, as an iterator of
pandas frames and as a Polars LazyFrame, and come back as a stream, each in a process of its own.
Counted is the peak of the resident set above what the process had after its imports and a round
trip of ten rows (Linux alone tells). The limit is 300 MB at any length. For comparison, pandas'
`to_sql` and `read_sql` move a tenth of it; a LazyFrame's peak includes what Polars takes to read
its file.

    python benchmarks/memory.py                      # 2 GB of ten columns, some minutes
    python benchmarks/memory.py --gigabytes 10 --no-pandas
    python benchmarks/memory.py --text 100000        # with a column of texts that long
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa
from measuring import Peak, bench
from ten_columns import frame

from dagster_tools.postgres_io_manager import PostgresIOManager, PostgresResource

LIMIT = 300
BYTES_IN_BATCH = 10_000_000
STREAMED = dg.AssetKey(["public", "streamed"])
SMALL = dg.AssetKey(["public", "ten_rows"])
SHARE_OF_PANDAS = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--text", type=int, default=0, help="length of an eleventh column's texts")
    parser.add_argument("--no-pandas", action="store_true", help="leave to_sql and read_sql out")
    options = parser.parse_args()
    spawning = multiprocessing.get_context("spawn")
    with bench() as running, tempfile.TemporaryDirectory() as folder:
        print(f"{running}; peaks above the interpreter, which may be {LIMIT} MB")
        batch = _batch(options.text)
        count = max(1, round(options.gigabytes * 1e9 / batch.nbytes))
        url, file = running.url(), str(Path(folder, "rows.parquet"))

        def measured(task: Callable[..., str], *arguments: Any) -> None:
            with spawning.Pool(1) as processes:
                print(processes.apply(task, [url, *arguments]), flush=True)

        for source in SOURCES:
            if source is lazy_frame:
                _write_parquet(file, batch, count)
            measured(write, source.__name__, batch, count, file)
            Path(file).unlink(missing_ok=True)
        measured(read)
        if not options.no_pandas:
            few = max(1, round(count * SHARE_OF_PANDAS))
            measured(to_sql, batch, few)
            measured(read_sql)


def record_batch_reader(batch: pa.RecordBatch, count: int, _file: str) -> Any:
    return pa.RecordBatchReader.from_batches(batch.schema, (batch for _ in range(count)))


def pandas_frames(batch: pa.RecordBatch, count: int, _file: str) -> Any:
    return (batch.to_pandas() for _ in range(count))


def lazy_frame(_batch: pa.RecordBatch, _count: int, file: str) -> Any:
    return pl.scan_parquet(file)


SOURCES: tuple[Callable[[pa.RecordBatch, int, str], Any], ...] = (
    record_batch_reader,
    pandas_frames,
    lazy_frame,
)


def write(url: str, source: str, batch: pa.RecordBatch, count: int, file: str) -> str:
    manager = _after_a_small_round_trip(url)
    make = next(make for make in SOURCES if make.__name__ == source)
    with Peak() as peak:
        context = dg.build_output_context(asset_key=STREAMED, run_id="a run", name="result")
        manager.handle_output(context, make(batch, count, file))
    return f"{source:24} wrote {count * batch.nbytes / 1e9:5.2f} GB of Arrow {peak}"


def read(url: str) -> str:
    manager = _after_a_small_round_trip(url)
    with Peak() as peak:
        stream = _load(manager, STREAMED)
        size = sum(batch.nbytes for batch in stream)
    return f"{'record_batch_reader':24} read  {size / 1e9:5.2f} GB of Arrow {peak}"


def to_sql(url: str, batch: pa.RecordBatch, count: int) -> str:
    _after_a_small_round_trip(url)
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg2://"))
    rows = pa.Table.from_batches([batch] * count).to_pandas()
    with Peak() as peak:
        rows.to_sql("by_pandas", engine, index=False, chunksize=10_000)
    return f"{'pandas.to_sql':24} wrote {count * batch.nbytes / 1e9:5.2f} GB of Arrow {peak}"


def read_sql(url: str) -> str:
    _after_a_small_round_trip(url)
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg2://"))
    with Peak() as peak:
        rows = pd.read_sql("SELECT * FROM by_pandas", engine)
    size = pa.Table.from_pandas(rows).nbytes
    return f"{'pandas.read_sql':24} read  {size / 1e9:5.2f} GB of Arrow {peak}"


def _write_parquet(file: str, batch: pa.RecordBatch, count: int) -> None:
    with pq.ParquetWriter(file, batch.schema, compression="zstd") as writer:
        for _ in range(count):
            writer.write_batch(batch)


def _after_a_small_round_trip(url: str) -> PostgresIOManager:
    warnings.simplefilter("ignore")
    manager = PostgresIOManager(connection=PostgresResource.from_url(url))
    context = dg.build_output_context(asset_key=SMALL, run_id="a run", name="result")
    manager.handle_output(context, pa.Table.from_pandas(frame(10)))
    assert _load(manager, SMALL).read_all().num_rows == 10
    return manager


def _load(manager: PostgresIOManager, key: dg.AssetKey) -> pa.RecordBatchReader:
    asked = dg.PythonObjectDagsterType(pa.RecordBatchReader)
    stream = manager.load_input(
        dg.build_input_context(asset_key=key, name="stream", dagster_type=asked)
    )
    assert isinstance(stream, pa.RecordBatchReader)
    return stream


def _batch(text: int) -> pa.RecordBatch:
    """Make the batch that is sent again and again, as large as other libraries make them."""
    rows = max(1, BYTES_IN_BATCH // (150 + text))
    table = pa.Table.from_pandas(frame(rows), preserve_index=False)
    if text:
        table = table.append_column("text", pa.array(["x" * text] * rows))
    [batch] = table.combine_chunks().to_batches()
    return batch


if __name__ == "__main__":
    main()
