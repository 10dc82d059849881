from __future__ import annotations

import subprocess
import sys
from collections import UserList
from typing import Any

import geopandas as gpd
import pandas as pd
import pyarrow as pa
import pytest

from dagster_tools import geoarrow
from dagster_tools.errors import UnsupportedFrame
from dagster_tools.frames import frame_class, from_arrow, is_frame, to_arrow


class SalesFrame(pd.DataFrame):
    """A user's own DataFrame."""

    @property
    def _constructor(self):
        return SalesFrame


class NeedsMore(pd.DataFrame):
    def __init__(self, data, crs):
        super().__init__(data)


POINT = "0101000000000000000000f03f0000000000000040"
SUPPORTED = r"supported are geopandas.GeoDataFrame, pandas.DataFrame, polars.DataFrame"

WITHOUT_PANDAS = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "pandas":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
"""


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_frames_brings_no_frame_library():
    code = (
        "import sys, dagster_tools.frames; "
        "print([m for m in ('pandas', 'numpy', 'polars', 'geopandas') if m in sys.modules])"
    )

    assert python(code) in {"[]", "['numpy']"}  # pyarrow itself may import numpy


def test_arrow_passes_through_where_pandas_is_not_installed():
    code = (
        f"{WITHOUT_PANDAS}\n"
        "import pyarrow as pa\n"
        "from dagster_tools.frames import frame_class, from_arrow, to_arrow\n"
        "table = to_arrow(pa.table({'a': [1]}))\n"
        "print(from_arrow(table.to_reader(), frame_class(pa.Table)).equals(table))"
    )

    assert python(code) == "True"


def test_without_pandas_an_unannotated_input_names_the_install_command():
    code = (
        f"{WITHOUT_PANDAS}\n"
        "from dagster_tools.frames import frame_class\n"
        "try: frame_class(None)\n"
        "except Exception as e: print(type(e).__name__, e)"
    )

    said = python(code)

    assert said.startswith("UnsupportedFrame")
    assert "pip install 'dagster-tools[pandas]'" in said


def test_a_library_that_is_not_installed_is_listed_with_its_install_command():
    code = (
        "import sys; sys.modules['polars'] = None  # as where it is not installed\n"
        "from dagster_tools.frames import frame_class\n"
        "try: frame_class(int)\n"
        "except Exception as e: print(type(e).__name__, e)"
    )

    said = python(code)

    assert said.startswith("UnsupportedFrame")
    assert "polars.DataFrame or LazyFrame (not installed: pip install" in said
    assert "'dagster-tools[polars]'" in said


@pytest.mark.parametrize(
    "value", [None, 1, "text", [1], {"a": [1]}, (1,), UserList([1]), pd.Series([1]), pd.DataFrame]
)
def test_what_is_no_frame_is_refused_with_what_is_supported(value):
    assert not is_frame(value)
    with pytest.raises(UnsupportedFrame, match=SUPPORTED):
        to_arrow(value)


def test_a_series_is_refused_with_the_way_to_make_it_a_frame():
    with pytest.raises(UnsupportedFrame, match="to_frame"):
        to_arrow(pd.Series([1]))


@pytest.mark.parametrize("value", [pd.DataFrame({"a": [1]}), pa.table({"a": [1]})])
def test_frames_are_told_from_other_values(value):
    assert is_frame(value)


@pytest.mark.parametrize("annotation", [None, Any, object, pd.DataFrame])
def test_an_input_that_does_not_say_otherwise_is_a_pandas_frame(annotation):
    stream = pa.table({"a": [1]}).to_reader()

    loaded = from_arrow(stream, frame_class(annotation))

    assert type(loaded) is pd.DataFrame


@pytest.mark.parametrize("annotation", [None, Any, object])
def test_an_input_that_does_not_say_otherwise_is_a_geodataframe_where_a_column_is_geometry(
    annotation,
):
    geometry = geoarrow.mark(pa.field("g", pa.binary()), geoarrow.Crs("EPSG:4326"))
    stream = pa.table({"g": [bytes.fromhex(POINT)]}, pa.schema([geometry])).to_reader()

    loaded = from_arrow(stream, frame_class(annotation))

    assert type(loaded) is gpd.GeoDataFrame
    assert loaded.crs == "EPSG:4326"


@pytest.mark.parametrize("annotation", [pa.Table, pa.RecordBatchReader, pd.DataFrame])
def test_classes_stand_for_themselves(annotation):
    assert frame_class(annotation) is annotation


def test_a_subclass_of_dataframe_is_loaded_as_that_subclass():
    stream = pa.table({"a": [1]}).to_reader()

    loaded = from_arrow(stream, frame_class(SalesFrame))

    assert type(loaded) is SalesFrame
    assert loaded["a"].tolist() == [1]


def test_a_subclass_that_a_dataframe_does_not_make_is_refused():
    with pytest.raises(UnsupportedFrame, match=r"annotate the input as pandas\.DataFrame"):
        from_arrow(pa.table({"a": [1]}).to_reader(), NeedsMore)


@pytest.mark.parametrize("annotation", [int, pd.Series, "pd.DataFrame", dict[str, int], pa.Array])
def test_other_annotations_are_refused_with_what_is_supported(annotation):
    with pytest.raises(UnsupportedFrame, match=SUPPORTED):
        frame_class(annotation)


def test_a_geodataframe_is_not_taken_for_a_dataframe():
    """Told by its name, as geopandas need not be installed."""
    lookalike = type("GeoDataFrame", (pd.DataFrame,), {"__module__": "geopandas.geodataframe"})

    with pytest.raises(UnsupportedFrame):
        frame_class(lookalike)
