"""Programs that know nothing of this project take the emulator for Microsoft Graph.

`make test-graph` runs this file in an environment of its own; Microsoft's SDK is large. rclone
comes from the system (`apt-get install rclone`).
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from azure.identity.aio import ClientSecretCredential
from kiota_abstractions.serialization import Parsable
from kiota_authentication_azure.azure_identity_authentication_provider import (
    AzureIdentityAuthenticationProvider,
)
from msgraph import GraphRequestAdapter, GraphServiceClient
from msgraph.generated.models.o_data_errors.o_data_error import ODataError
from msgraph_core import GraphClientFactory

from tests.graph import Drive, Graph
from tests.graph.faults import cut, failing, throttled
from tests.graph.tunnel import Tunnel

# What Microsoft's SDK thinks of its own parts is not our concern.
pytestmark = pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning")

FILES = {
    "/Results/2024/a.csv": b"x,y\n1,2\n" * 1000,
    "/Results/résumé #1 100%.csv": b"z\n",
    "/empty.txt": b"",
}


@pytest.fixture
def filled(drive: Drive) -> Drive:
    for path, data in FILES.items():
        drive.write(path, data)
    return drive


# --- rclone ---------------------------------------------------------------------------------

Rclone = Callable[..., str]


@pytest.fixture
def rclone(graph: Graph, filled: Drive, tmp_path: Path) -> Iterator[Rclone]:
    """Run rclone on the library, which is called `sp:`; returns what it prints."""
    graph.refuses_tokens = False  # rclone sends its own wherever it is redirected to
    token = {"access_token": "old", "refresh_token": "r", "expiry": "2020-01-01T00:00:00Z"}
    config = tmp_path / "rclone.conf"
    settings = {
        "type": "onedrive",
        "token": json.dumps(token),
        "drive_id": filled.id,
        "drive_type": "documentLibrary",
    }
    config.write_text("[sp]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()))
    with Tunnel(graph.url) as tunnel:

        def run(*arguments: str) -> str:
            done = subprocess.run(
                ["rclone", f"--config={config}", f"--ca-cert={graph.ca_file}", *arguments],
                env={**os.environ, "HTTPS_PROXY": tunnel.url, "NO_PROXY": "127.0.0.1,localhost"},
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        yield run


def downloaded(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {f"/{path.relative_to(folder)}": path.read_bytes() for path in files}


def test_rclone_lists_a_library(graph, rclone):
    graph.page_size = 1

    listed = rclone("lsf", "-R", "--files-only", "sp:")

    assert {f"/{line}" for line in listed.splitlines()} == FILES.keys()


def test_rclone_copies_a_library_and_finds_every_hash_right(rclone, tmp_path):
    copy = tmp_path / "copy"

    rclone("copy", "sp:", str(copy))
    rclone("check", "sp:", str(copy))

    assert downloaded(copy) == FILES


def test_rclone_finds_sizes_times_and_hashes(filled, rclone):
    (entry,) = json.loads(rclone("lsjson", "--hash", "sp:Results/2024"))

    node = filled["/Results/2024/a.csv"]
    assert (entry["ID"].partition("#")[2] or entry["ID"], entry["Size"]) == (node.id, 8000)
    assert entry["Hashes"]["quickxor"]


@pytest.mark.parametrize(
    ("route", "fault"),
    [
        pytest.param("children", throttled(1), id="429"),
        pytest.param("children", failing(503, "serviceNotAvailable"), id="503"),
        pytest.param("download", cut(4000), id="cut"),
    ],
)
def test_rclone_gets_over_what_goes_wrong(graph, rclone, tmp_path, route, fault):
    graph.faults.add(route, fault)

    rclone("copy", "sp:", str(tmp_path / "copy"))

    assert downloaded(tmp_path / "copy") == FILES


# --- Microsoft's SDK ------------------------------------------------------------------------


@asynccontextmanager
async def sdk_of(graph: Graph) -> AsyncIterator[GraphServiceClient]:
    """Microsoft's client, with its own sign-in, retries and redirects."""
    identity = graph.identity
    async with (
        ClientSecretCredential(
            identity.tenant,
            identity.client_id,
            identity.secret,
            authority=graph.url,
            disable_instance_discovery=True,
            connection_verify=str(graph.ca_file),
        ) as credential,
        httpx.AsyncClient(
            verify=ssl.create_default_context(cafile=graph.ca_file), base_url=f"{graph.url}/v1.0"
        ) as plain,
    ):
        provider = AzureIdentityAuthenticationProvider(
            credential, scopes=[f"{graph.url}/.default"], allowed_hosts=["localhost"]
        )
        client = GraphClientFactory.create_with_default_middleware(client=plain)
        adapter = GraphRequestAdapter(provider, client=client)
        adapter.base_url = f"{graph.url}/v1.0"
        yield GraphServiceClient(request_adapter=adapter)


def unknown_fields(model: object, where: str = "") -> Iterator[str]:
    """Yield the fields of an answer, at any depth, that Microsoft's models do not know.

    An annotation, such as `@microsoft.graph.downloadUrl`, is none of the model.
    """
    if isinstance(model, list):
        for each in model:
            yield from unknown_fields(each, where)
    elif isinstance(model, Parsable):
        for name, value in vars(model).items():
            if name == "additional_data":
                yield from (f"{where}.{key}" for key in value if not key.startswith("@"))
            else:
                yield from unknown_fields(value, f"{where}.{name}")


async def test_microsofts_models_know_every_field(graph, filled):
    filled.make_folder("/Notes", package=True)
    filled.behaviour.ctag_in_delta = filled.behaviour.path_in_delta = True
    filled.delete("/empty.txt")

    async with sdk_of(graph) as sdk:
        site = await sdk.sites.by_site_id("contoso.sharepoint.com:/sites/lab:").get()
        drives = await sdk.sites.by_site_id(site.id).drives.get()
        items = sdk.drives.by_drive_id(filled.id).items
        children = await items.by_drive_item_id("root").children.get()
        delta = await items.by_drive_item_id("root").delta.get()
        item = await items.by_drive_item_id(filled["/Results/2024/a.csv"].id).get()

    answers: list[Any] = [site, drives, children, delta, item]
    assert [field for answer in answers for field in unknown_fields(answer)] == []
    assert (site.display_name, drives.value[0].name) == ("Lab Data", "Documents")
    assert item.file.hashes.quick_xor_hash
    assert item.parent_reference.path.endswith("root:/Results/2024")


async def test_microsofts_client_follows_a_delta(graph, filled):
    graph.page_size = 2
    async with sdk_of(graph) as sdk:
        delta = sdk.drives.by_drive_id(filled.id).items.by_drive_item_id("root").delta
        page = await delta.get()
        listed = list(page.value)
        while page.odata_next_link:
            page = await delta.with_url(page.odata_next_link).get()
            listed += page.value
        deleted = filled.delete("/Results/2024/a.csv")
        filled.write("/new.csv", b"n")

        after = await delta.with_url(page.odata_delta_link).get()

    names = {item.name for item in listed if item.file}
    tombstones = {item.id: (item.deleted.state, item.name) for item in after.value if item.deleted}
    assert names == {path.rpartition("/")[2] for path in FILES}
    assert tombstones == {deleted: ("deleted", None)}


async def test_microsofts_client_is_told_of_a_resync(graph, filled):
    async with sdk_of(graph) as sdk:
        delta = sdk.drives.by_drive_id(filled.id).items.by_drive_item_id("root").delta
        page = await delta.get()
        filled.expire_tokens()

        with pytest.raises(ODataError) as caught:
            await delta.with_url(page.odata_delta_link).get()

    assert (caught.value.response_status_code, caught.value.error.code) == (410, "resyncRequired")
    assert caught.value.response_headers["location"]


async def test_microsofts_client_reads_content_through_the_redirect(graph, filled):
    async with sdk_of(graph) as sdk:
        item = sdk.drives.by_drive_id(filled.id).items.by_drive_item_id(
            filled["/Results/2024/a.csv"].id
        )
        graph.faults.add("content", throttled(1))

        content = await item.content.get()

    assert content == FILES["/Results/2024/a.csv"]
    assert graph.count("content") == 2


async def test_microsofts_client_is_told_what_is_refused(graph, filled):
    graph.identity.roles = set()
    async with sdk_of(graph) as sdk:
        with pytest.raises(ODataError) as caught:
            await sdk.drives.by_drive_id(filled.id).get()

    assert (caught.value.response_status_code, caught.value.error.code) == (403, "accessDenied")
    assert caught.value.error.inner_error.request_id
