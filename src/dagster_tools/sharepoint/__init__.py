"""SharePoint's files through Microsoft Graph, without Dagster and without a database.

    async with GraphClient(ClientSecret(tenant, client_id, secret)) as client:
        library = await find_library(client, await find_site(client, "/sites/lab"))
        async for page in changes(client, library):
            ...

Who signs in is in `auth`, where files lie in `sites`, what changed in `delta`, what that means
for which file in `tree`, and what is in a file in `files`.
"""

from __future__ import annotations

try:
    from dagster_tools.sharepoint.auth import (
        CLOUDS,
        ClientCertificate,
        ClientSecret,
        Cloud,
        Credentials,
        ManagedIdentity,
    )
    from dagster_tools.sharepoint.client import GraphClient
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"SharePoint needs {error.name}: pip install 'dagster-tools[sharepoint]'", name=error.name
    ) from None

from dagster_tools.sharepoint.blocking import BlockingFile
from dagster_tools.sharepoint.delta import Page, changes
from dagster_tools.sharepoint.files import SharePointFile
from dagster_tools.sharepoint.filters import Contains, FileFilter, Filter, Prefix, Suffix
from dagster_tools.sharepoint.items import Item, Tombstone
from dagster_tools.sharepoint.sites import Library, Site, find_folder, find_library, find_site
from dagster_tools.sharepoint.throttle import Retry
from dagster_tools.sharepoint.tree import (
    Change,
    Folders,
    Incomplete,
    Located,
    StoredTree,
    change_between,
    check_complete,
)
from dagster_tools.sharepoint.watch import Watch

__all__ = [
    "CLOUDS",
    "BlockingFile",
    "Change",
    "ClientCertificate",
    "ClientSecret",
    "Cloud",
    "Contains",
    "Credentials",
    "FileFilter",
    "Filter",
    "Folders",
    "GraphClient",
    "Incomplete",
    "Item",
    "Library",
    "Located",
    "ManagedIdentity",
    "Page",
    "Prefix",
    "Retry",
    "SharePointFile",
    "Site",
    "StoredTree",
    "Suffix",
    "Tombstone",
    "Watch",
    "change_between",
    "changes",
    "check_complete",
    "find_folder",
    "find_library",
    "find_site",
]
