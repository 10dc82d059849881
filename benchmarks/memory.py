"""Peak memory of a stream that is written and of one that is read: it must not grow with them.

A `RecordBatchReader` of two gigabytes goes into a table through the IO manager and comes back, each
in a process of its own. Counted is the peak of the resident set above what the process had after
its imports and a round trip of ten rows (Linux alone tells). The limit is 300 MB at any length.

    python benchmarks/memory.py                      # 2 GB of ten columns, under a minute
    python benchmarks/memory.py --gigabytes 10
    python benchmarks/memory.py --text 100000        # with a column of texts that long
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import re
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import final

import dagster as dg
import pyarrow as pa
from measuring import bench
from ten_columns import frame

from dagster_tools.postgres_io_manager import PostgresIOManager, PostgresResource

LIMIT = 300
BYTES_IN_BATCH = 10_000_000
STREAMED = dg.AssetKey(["public", "streamed"])
SMALL = dg.AssetKey(["public", "ten_rows"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--text", type=int, default=0, help="length of an eleventh column's texts")
    options = parser.parse_args()
    spawning = multiprocessing.get_context("spawn")
    with bench() as running, spawning.Pool(1, maxtasksperchild=1) as processes:
        print(f"{running}; peaks above the interpreter, which may be {LIMIT} MB")
        batch = _batch(options.text)
        count = max(1, round(options.gigabytes * 1e9 / batch.nbytes))
        print(processes.apply(write, [running.url(), batch, count]))
        print(processes.apply(read, [running.url()]))


def write(url: str, batch: pa.RecordBatch, count: int) -> str:
    manager = _after_a_small_round_trip(url)

    def batches() -> Iterator[pa.RecordBatch]:
        for _ in range(count):
            yield batch

    with _Peak() as peak:
        stream = pa.RecordBatchReader.from_batches(batch.schema, batches())
        context = dg.build_output_context(asset_key=STREAMED, run_id="a run", name="result")
        manager.handle_output(context, stream)
    return f"wrote {count * batch.nbytes / 1e9:5.2f} GB of Arrow {peak}"


def read(url: str) -> str:
    manager = _after_a_small_round_trip(url)
    with _Peak() as peak:
        stream = _load(manager, STREAMED)
        size = sum(batch.nbytes for batch in stream)
    return f"read  {size / 1e9:5.2f} GB of Arrow {peak}"


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


@final
class _Peak:
    """The highest resident set of the block, above the one at its beginning."""

    def __enter__(self) -> _Peak:
        gc.collect()
        pa.default_memory_pool().release_unused()
        Path("/proc/self/clear_refs").write_text("5")  # starts the kernel's peak anew
        self.before, self.began = _status("VmRSS"), time.perf_counter()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.seconds = time.perf_counter() - self.began
        self.megabytes = (_status("VmHWM") - self.before) / 1e6

    def __str__(self) -> str:
        return f"in {self.seconds:5.1f} s, peak {self.megabytes:4.0f} MB"


def _status(key: str) -> int:
    """Return a line of /proc/self/status in bytes (man 5 proc)."""
    found = re.search(rf"^{key}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
