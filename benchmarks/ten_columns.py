"""The table that all is measured with: ten columns of the usual types.

Two integers, two doubles (one with NULLs), a boolean, a timestamp with and one without time zone,
short and longer text, and a nullable integer: 143 bytes a row in COPY's binary format.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

COLUMNS = {
    "id": "bigint",
    "small": "integer",
    "x": "double precision",
    "y": "double precision",
    "flag": "boolean",
    "at": "timestamp with time zone",
    "local": "timestamp without time zone",
    "code": "text",
    "words": "text",
    "maybe": "bigint",
}

WORDS = ["copy", "arrow", "stream", "vacuum", "index", "lateral", "window", "toast", "heap", "page"]


def frame(rows: int) -> pd.DataFrame:
    """Make the frame; the same number of rows gives the same rows."""
    random = np.random.default_rng(rows)
    moments = pd.Timestamp("2024-01-01").value // 1000 + random.integers(0, 10**14, rows)
    maybe = pd.array(random.integers(0, 2**62, rows), "Int64")
    maybe[random.random(rows) < 0.2] = pd.NA
    return pd.DataFrame(
        {
            "id": np.arange(rows, dtype="int64"),
            "small": random.integers(-(2**31), 2**31, rows).astype("int32"),
            "x": random.normal(size=rows),
            "y": np.where(random.random(rows) < 0.1, np.nan, random.normal(size=rows)),
            "flag": random.random(rows) < 0.5,
            "at": pd.to_datetime(moments, unit="us", utc=True).as_unit("us"),
            "local": pd.to_datetime(moments, unit="us").as_unit("us"),
            "code": pd.Series(random.integers(0, 50_000, rows)).map("no {:05d}".format),
            "words": _sentences(random, rows),
            "maybe": maybe,
        }
    )


def _sentences(random: np.random.Generator, rows: int) -> pd.Series:
    words = np.array(WORDS)
    picked = [pd.Series(words[random.integers(0, len(words), rows)]) for _ in range(6)]
    text = picked[0].str.cat(picked[1:], sep=" ")
    return text + " #" + pd.Series(np.arange(rows)).astype(str)
