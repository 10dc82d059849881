"""The emulator does what Microsoft's documentation says, as seen by a client that knows nothing.

What programs of others make of it is in foreign_clients.py.
"""

from __future__ import annotations

import ssl
from typing import Any

import aiohttp
import pytest

from tests.graph import Drive, Graph
from tests.graph.resources import quick_xor_hash


async def asked(graph: Graph, path: str, **headers: str) -> tuple[int, Any, Any]:
    """Status, JSON and headers of an answer to somebody who is signed in."""
    token = graph.identity._token()["access_token"]
    context = ssl.create_default_context(cafile=graph.ca_file)
    url = path if path.startswith("https:") else f"{graph.url}/v1.0{path}"
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"bearer {token}", **headers}) as session,
        session.get(url, ssl=context, allow_redirects=False) as answer,
    ):
        body = await answer.json() if "json" in answer.content_type else await answer.read()
        return answer.status, body, answer.headers


async def delta(graph: Graph, path: str, **headers: str) -> tuple[list[Any], str]:
    """All entries of a delta, and its link."""
    entries: list[Any] = []
    while True:
        status, page, _ = await asked(graph, path, **headers)
        assert status == 200
        entries += page["value"]
        if "@odata.deltaLink" in page:
            return entries, page["@odata.deltaLink"]
        path = page["@odata.nextLink"]


@pytest.mark.parametrize(
    "address",
    [
        "root:/Results/a%20%23.csv",
        "root:/Results/a%20%23.csv:",
        "root:/RESULTS/A%20%23.CSV",
        "items/{folder}:/a%20%23.csv:",
        "items/{file}",
        "/items/{file}",
    ],
)
async def test_an_item_has_many_addresses(graph, drive, address):
    file, folder = drive.write("/Results/a #.csv", "x"), drive["/Results"].id

    _, item, _ = await asked(
        graph, f"/drives/{drive.id}/{address.format(file=file, folder=folder)}"
    )

    assert (item["id"], item["parentReference"]["id"]) == (file, folder)


async def test_a_delta_leaves_out_what_is_documented_to_be_left_out(graph, drive):
    drive.write("/Results/a.csv", "x")
    _, link = await delta(graph, f"/drives/{drive.id}/root/delta")
    drive.write("/Results/b.csv", "x")
    drive.delete("/Results/a.csv")

    entries, _ = await delta(graph, link)

    tombstone, file = sorted(entries[2:], key=lambda entry: "deleted" not in entry)
    assert [entry["name"] for entry in entries[:2]] == ["root", "Results"]
    assert "cTag" not in file
    assert "path" not in file["parentReference"]
    assert tombstone.keys() == {"@odata.type", "id", "deleted", "parentReference", "file"}


async def test_the_folders_above_can_be_left_out(graph, drive):
    drive.write("/Results/a.csv", "x")
    _, link = await delta(graph, f"/drives/{drive.id}/root/delta?token=latest")
    drive.write("/Results/b.csv", "x")

    entries, _ = await delta(graph, link, deltaExcludeParent="true")

    assert [entry["name"] for entry in entries] == ["b.csv"]


async def test_a_renamed_folder_is_told_of_alone(graph, drive):
    drive.write("/Results/2024/a.csv", "x")
    _, link = await delta(graph, f"/drives/{drive.id}/root/delta")
    drive.rename("/Results", "Findings")

    entries, _ = await delta(graph, link)

    assert [entry["name"] for entry in entries] == ["root", "Findings"]


@pytest.mark.parametrize(("extent", "told"), [("top", 1), ("folders", 2), ("all", 3)])
async def test_the_deletion_of_a_folder_is_told_of_as_far_as_is_chosen(graph, drive, extent, told):
    drive.write("/Results/2024/a.csv", "x")
    drive.behaviour.deletion_tells = extent
    _, link = await delta(graph, f"/drives/{drive.id}/root/delta")
    drive.delete("/Results")

    entries, _ = await delta(graph, link)

    assert sum("deleted" in entry for entry in entries) == told


async def test_what_is_restored_has_its_old_id_and_what_was_deleted_before_stays_away(graph, drive):
    file = drive.write("/Results/a.csv", "x")
    drive.write("/Results/b.csv", "x")
    drive.delete("/Results/b.csv")
    folder = drive.delete("/Results")

    drive.restore(folder)

    entries, _ = await delta(graph, f"/drives/{drive.id}/root/delta")
    assert [entry["id"] for entry in entries if "file" in entry] == [file]


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/drives/{drive}/root/delta?token=nonsense", 400, "invalidRequest"),
        ("/drives/{drive}/root:/nowhere.csv", 404, "itemNotFound"),
        ("/drives/b!nowhere", 404, "itemNotFound"),
        ("/sites/contoso.sharepoint.com:/sites/nowhere", 404, "itemNotFound"),
        ("/users", 400, "BadRequest"),
    ],
)
async def test_what_is_not_there_is_an_error_of_graphs_kind(graph, drive, path, status, code):
    found, body, headers = await asked(graph, path.format(drive=drive.id))

    assert (found, body["error"]["code"]) == (status, code)
    assert headers["request-id"]


async def test_content_that_did_not_change_is_not_served(graph, drive):
    file = drive.write("/a.csv", "x")
    address = f"/drives/{drive.id}/items/{file}/content"

    unchanged, *_ = await asked(graph, address, **{"If-None-Match": drive["/a.csv"].ctag})
    changed, _, headers = await asked(graph, address, **{"If-None-Match": '"another"'})

    assert (unchanged, changed) == (304, 302)
    assert headers["Location"].startswith(graph.download_url)


async def test_a_preauthenticated_url_takes_no_token_and_expires(graph, drive):
    file = drive.write("/a.csv", "x")
    _, item, _ = await asked(graph, f"/drives/{drive.id}/items/{file}")
    graph.download_seconds = -1
    _, expired, _ = await asked(graph, f"/drives/{drive.id}/items/{file}")

    with_token, *_ = await asked(graph, item["@microsoft.graph.downloadUrl"])
    context = ssl.create_default_context(cafile=graph.ca_file)
    async with aiohttp.ClientSession() as session:
        async with session.get(item["@microsoft.graph.downloadUrl"], ssl=context) as answer:
            served = await answer.text()
        async with session.get(expired["@microsoft.graph.downloadUrl"], ssl=context) as answer:
            too_late = answer.status

    assert (with_token, served, too_late) == (401, "x", 401)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "AAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        (b"J", "SgAAAAAAAAAAAAAAAQAAAAAAAAA="),
        (b"Hi there, hello world" * 40, None),
    ],
)
def test_the_hash_is_microsofts(data, expected):
    """The first two are test values of rclone's, which checks the others when it copies."""
    assert quick_xor_hash(data) == (expected or _byte_by_byte(data))


def _byte_by_byte(data: bytes) -> str:
    import base64

    ring = 0
    for index, byte in enumerate(data):
        for bit in range(8):
            ring ^= (byte >> bit & 1) << (index * 11 + bit) % 160
    ring ^= len(data) << 96
    return base64.b64encode(ring.to_bytes(20, "little")).decode()


def test_a_drive_refuses_what_sharepoint_would():
    drive = Drive("b!0000", "Documents", "")
    drive.write("/a.csv", "x")
    drive.write("/b.csv", "x")

    with pytest.raises(AssertionError):
        drive.rename("/a.csv", "B.CSV")
