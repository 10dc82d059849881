"""Items, drives and sites as Microsoft Graph writes them in JSON."""

from __future__ import annotations

import base64
import mimetypes
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import quote

from tests.graph.drive import Drive, Node

__all__ = [
    "Site",
    "drive_json",
    "error_json",
    "item_json",
    "listed_json",
    "quick_xor_hash",
    "site_json",
]

Json = dict[str, Any]


@dataclass
class Site:
    """A SharePoint site; the first of its drives is its default library."""

    id: str
    path: str
    display_name: str
    host: str
    drives: list[Drive] = field(default_factory=list)
    _made: int = 0

    @property
    def url(self) -> str:
        return f"https://{self.host}{quote(self.path)}"

    def library(self, name: str = "Documents") -> Drive:
        """Return the library of this name, created if need be."""
        for drive in self.drives:
            if drive.name == name:
                return drive
        segment = "Shared Documents" if name == "Documents" else name
        drive_id = f"b!{self.id[-36:-28]}{self._made:04}"
        drive = Drive(drive_id, name, f"{self.url}/{quote(segment)}")
        self.drives.append(drive)
        self._made += 1
        return drive

    def delete_library(self, name: str = "Documents") -> None:
        """Delete the library of this name; one that is made later has another id."""
        self.drives = [drive for drive in self.drives if drive.name != name]


def site_json(site: Site) -> Json:
    return {
        "id": site.id,
        "name": site.path.rpartition("/")[2],
        "displayName": site.display_name,
        "webUrl": site.url,
        "createdDateTime": "2025-11-03T09:00:00Z",
        "lastModifiedDateTime": "2026-01-05T08:00:00Z",
        "siteCollection": {"hostname": site.host},
        **({"root": {}} if site.path in {"", "/"} else {}),
    }


def drive_json(drive: Drive) -> Json:
    return {
        "id": drive.id,
        "name": drive.name,
        "description": "",
        "driveType": "documentLibrary",
        "webUrl": drive.url,
        "createdDateTime": "2025-11-03T09:00:00Z",
        "lastModifiedDateTime": "2026-01-05T08:00:00Z",
        "quota": {"used": 0, "deleted": 0, "remaining": 10**12, "total": 10**12, "state": "normal"},
    }


def item_json(
    drive: Drive, node: Node, *, download_url: str | None = None, in_delta: bool = False
) -> Json:
    """Return a driveItem, or the tombstone of one.

    Args:
        download_url: The pre-authenticated URL of a file.
        in_delta: Deltas leave out some properties, see `Behaviour`.
    """
    parent = _parent_reference(drive, node, in_delta=in_delta)
    if node.deletion is not None:
        facet = "file" if node.kind == "file" else "folder"
        return {
            "@odata.type": "#microsoft.graph.driveItem",
            "id": node.id,
            "deleted": {"state": "deleted"},
            "parentReference": parent,
            facet: {},
        }
    item: Json = {
        "id": node.id,
        "name": node.name,
        "eTag": node.etag,
        "size": _size(drive, node),
        "webUrl": drive.url + quote(node.path),
        "createdDateTime": _iso(node.created),
        "lastModifiedDateTime": _iso(node.modified),
        "createdBy": _person(node.author),
        "lastModifiedBy": _person(node.author),
        # What the uploading client said: an old file that arrives today is old here.
        "fileSystemInfo": {
            "createdDateTime": "2019-06-01T00:00:00Z",
            "lastModifiedDateTime": "2019-06-01T00:00:00Z",
        },
        "parentReference": parent,
    }
    match node.kind:
        case "file":
            item["file"] = _file_facet(drive, node)
            if not in_delta or drive.behaviour.ctag_in_delta:
                item["cTag"] = node.ctag
        case "package":
            item["package"] = {"type": "oneNote"}
        case "root":
            item["root"] = {}
    if node.kind in {"root", "folder"}:
        item["folder"] = {"childCount": len(node.children)}
    if download_url is not None and node.kind == "file":
        item["@microsoft.graph.downloadUrl"] = download_url
    return item


def listed_json(drive: Drive, node: Node, *, stale: bool = False) -> Json:
    """Return an item as a delta tells it.

    Args:
        stale: As it was some time ago.
    """
    item = item_json(drive, node, in_delta=True)
    if stale and node.deletion is None and node.parent is not None:
        item |= {"name": f"stale {node.name}", "eTag": f'"{{{node.guid}}},0"'}
    return item


def error_json(code: str, message: str, inner: str | None = None) -> Json:
    details: Json = {
        "date": "2026-01-05T08:00:00",
        "request-id": "5f0c9a52-0000-4000-8000-000000000001",
        "client-request-id": "5f0c9a52-0000-4000-8000-000000000001",
    }
    if inner is not None:
        details["code"] = inner
    return {"error": {"code": code, "message": message, "innerError": details}}


def quick_xor_hash(data: bytes) -> str:
    """Return Microsoft's QuickXorHash, as rclone checks it.

    Each byte is XORed into a ring of 160 bits, 11 bits further on than the one before; then
    the length into its last 64 bits.
    """
    # 160 bytes on, the ring is where it was: blocks of that size can be folded first.
    folded = 0
    for start in range(0, len(data), 160):
        folded ^= int.from_bytes(data[start : start + 160], "little")
    ring = 0
    for index, byte in enumerate(folded.to_bytes(160, "little")):
        value = byte << index * 11 % 160
        ring ^= (value & ((1 << 160) - 1)) | (value >> 160)
    ring ^= len(data) << 96
    return base64.b64encode(ring.to_bytes(20, "little")).decode()


def _parent_reference(drive: Drive, node: Node, *, in_delta: bool) -> Json:
    reference: Json = {"driveId": drive.id, "driveType": "documentLibrary"}
    if node.parent is not None:
        reference["id"] = node.parent.id
        if not in_delta or drive.behaviour.path_in_delta:
            reference["path"] = f"/drives/{drive.id}/root:{quote(node.parent.path)}"
    return reference


def _file_facet(drive: Drive, node: Node) -> Json:
    mime_type = mimetypes.guess_type(node.name)[0] or "application/octet-stream"
    if not drive.behaviour.quick_xor_hash:
        return {"mimeType": mime_type}
    return {"mimeType": mime_type, "hashes": {"quickXorHash": quick_xor_hash(node.data)}}


def _size(drive: Drive, node: Node) -> int:
    if node.kind != "file":
        return sum(len(each.data) for each in node.descendants())
    return len(node.data) + drive.behaviour.inflated


def _person(name: str) -> Json:
    first, *_ = name.lower().split()
    return {"user": {"displayName": name, "id": f"id-of-{first}"}}


def _iso(moment: datetime) -> str:
    # The service writes milliseconds at times.
    if moment.second % 2:
        return moment.strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
