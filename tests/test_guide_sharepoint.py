"""The user guide's SharePoint examples, as printed there."""

from __future__ import annotations

import textwrap
from typing import Any

import dagster as dg
import pandas as pd

from tests.graph import Graph
from tests.test_sharepoint_asset import database, failure, metadata, resources, rows, run

__all__ = ["database", "resources"]

XRF_RESULTS = """
from dagster_tools.sharepoint_asset import sharepoint_asset, Watch, Suffix
from shared.sharepoint.client_v2 import SharePointFile
from shared.db.sql import Eq, IncrementalDataFrame
@sharepoint_asset(
    watch=Watch("Lab Data", ["XRF Results"], filters=[Suffix(".csv")]),
    io_manager_key="postgres_io_manager",
    metadata={"schema": "analytical"},
)
async def xrf_results(files: list[SharePointFile]):
    dfs = []
    file_ids = []
    for file in files:
        if file.deleted:
            file_ids.append(file.id)
            continue
        df = await file.read_csv()
        df["file_id"] = file.id
        df["file_url"] = file.url
        df["file_modified"] = file.modified
        dfs.append(df)
        file_ids.append(file.id)
    result = pd.concat(dfs) if dfs else pd.DataFrame()
    return IncrementalDataFrame(result, delete=Eq("file_id", file_ids))
"""

PROCESS_REPORTS = """
from dagster_tools.sharepoint_asset import sharepoint_multi_asset
@sharepoint_multi_asset(
    watch=Watch("Data", ["Reports"]),
    outs={
        "samples": dg.AssetOut(metadata={"schema": "lab"}),
        "measurements": dg.AssetOut(metadata={"schema": "lab"}),
        "metadata": dg.AssetOut(metadata={"schema": "lab"}),
    },
)
async def process_reports(files):
    # ... process files into three DataFrames ...
{processed}
    delete = Eq("file_id", file_ids)
    return (
        IncrementalDataFrame(df_samples, delete=delete),
        IncrementalDataFrame(df_measurements, delete=delete),
        IncrementalDataFrame(df_metadata, delete=delete),
    )
"""

PROCESSED = """
file_ids = [file.id for file in files]
frames = [(await file.read_csv()).assign(file_id=file.id) for file in files if not file.deleted]
df_samples = df_measurements = df_metadata = pd.concat(frames) if frames else pd.DataFrame()
"""


def defined(*sources: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {"dg": dg, "pd": pd}
    for source in sources:
        exec(compile(source, "the guide", "exec", dont_inherit=True), namespace)
    return namespace


def test_sharepoint_file_processing(resources, graph: Graph, database):
    drive = graph.site("/sites/lab", "Lab Data").library()
    asset = defined(XRF_RESULTS)["xrf_results"]
    drive.write("/XRF Results/a.csv", "x\n1\n")
    drive.write("/XRF Results/2024/b.csv", "x\n2\n")
    first = run(asset, resources)
    assert first.success, failure(first)
    drive.write("/XRF Results/a.csv", "x\n10\n")
    drive.delete("/XRF Results/2024")

    result = run(asset, resources)

    assert result.success, failure(result)
    assert rows(database, "analytical.xrf_results") == [(10,)]
    assert metadata(result, "xrf_results")["sharepoint/deleted"] == 1
    ((url,),) = rows(database, "analytical.xrf_results", "file_url")
    assert url.endswith("/XRF%20Results/a.csv")


def test_multi_asset_output(resources, graph: Graph, database):
    drive = graph.site("/sites/data", "Data").library()
    processed = textwrap.indent(PROCESSED, "    ")
    asset = defined(XRF_RESULTS, PROCESS_REPORTS.replace("{processed}", processed))[
        "process_reports"
    ]
    resources["io_manager"] = resources["postgres_io_manager"]
    drive.write("/Reports/a.csv", "x\n1\n")
    drive.write("/Reports/b.csv", "x\n2\n")
    first = run(asset, resources)
    assert first.success, failure(first)
    drive.delete("/Reports/a.csv")

    result = run(asset, resources)

    assert result.success, failure(result)
    for table in ("samples", "measurements", "metadata"):
        assert rows(database, f"lab.{table}") == [(2,)]
