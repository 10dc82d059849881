"""Assets made of the files in a SharePoint folder, for `run.py` and for Dagster's UI.

Where SharePoint is and who signs in comes from the environment. Of a real tenant that is
TENANT, CLIENT_ID and CLIENT_SECRET; the emulator needs the other three too.
"""

import os

import dagster as dg
import pandas as pd

from dagster_tools import Eq, IncrementalDataFrame, PostgresIOManager, PostgresResource
from dagster_tools.sharepoint import SharePointFile
from dagster_tools.sharepoint_asset import (
    SharePointResource,
    Suffix,
    Watch,
    sharepoint_asset,
    sharepoint_sensor,
)


@sharepoint_asset(
    watch=Watch("/sites/lab", ["Results"], filters=[Suffix(".csv")]),
    on_file_error="quarantine",
    io_manager_key="postgres_io_manager",
    metadata={"schema": "lab"},
)
async def results(files: list[SharePointFile]) -> IncrementalDataFrame:
    frames = []
    for file in files:
        if not file.deleted:
            frame = await file.read_csv()
            frames.append(frame.assign(file_id=file.id, file_path=file.path))
    rows = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    return IncrementalDataFrame(rows, delete=Eq("file_id", [file.id for file in files]))


@dg.asset(
    io_manager_key="postgres_io_manager",
    metadata={"schema": "lab"},
    automation_condition=dg.AutomationCondition.eager(),
)
def means(results: pd.DataFrame) -> pd.DataFrame:
    return results.groupby("sample", as_index=False)["value"].mean()


defs = dg.Definitions(
    assets=[results, means],
    sensors=[
        sharepoint_sensor(
            minimum_interval_seconds=30, default_status=dg.DefaultSensorStatus.RUNNING
        )
    ],
    resources={
        "postgres_io_manager": PostgresIOManager(connection=PostgresResource()),
        "sharepoint": SharePointResource(
            tenant=dg.EnvVar("SHAREPOINT_TENANT"),
            client_id=dg.EnvVar("SHAREPOINT_CLIENT_ID"),
            client_secret=dg.EnvVar("SHAREPOINT_CLIENT_SECRET"),
            hostname="contoso.sharepoint.com",
            authority=os.environ.get("SHAREPOINT_EMULATOR"),
            graph=os.environ.get("SHAREPOINT_EMULATOR"),
            ca_file=os.environ.get("SHAREPOINT_EMULATOR_CA"),
            connection=PostgresResource(),
        ),
    },
)
