"""The emulator: Microsoft Graph, its sign-in and its download host, on loopback and over TLS.

It serves from a thread of its own, so that tests, whole Dagster runs and foreign programs can
talk to it alike. What it knows it has from Microsoft's documentation; what that leaves open is a
switch (`Behaviour`), and what goes wrong is planned (`Faults`).
"""

from __future__ import annotations

import asyncio
import re
import secrets
import ssl
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import trustme
from aiohttp import web

from tests.graph.delta import DeltaToken, delta_page
from tests.graph.drive import Drive, Node
from tests.graph.faults import Exchange, Faults, Usual
from tests.graph.identity import Identity, SignInRefused
from tests.graph.resources import Site, drive_json, error_json, item_json, listed_json, site_json

__all__ = ["Graph", "Received"]

HOST = "contoso.sharepoint.com"
NAMES = ("localhost", "127.0.0.1", HOST, "graph.microsoft.com", "login.microsoftonline.com")
LARGEST_PAGE = 1000


class Refused(Exception):
    """An answer of the service that is an error."""

    def __init__(
        self, status: int, code: str, message: str, inner: str | None = None, **headers: str
    ) -> None:
        super().__init__(message)
        self.status, self.body = status, error_json(code, message, inner)
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


@dataclass(frozen=True)
class Received:
    """A request that came in.

    Args:
        route: The name faults know it by.
        at: When, on the monotonic clock.
        authorization: Whether it carried a token.
    """

    route: str
    path: str
    at: float
    authorization: bool
    range: str | None = None
    user_agent: str = ""


@dataclass
class Graph:
    """One tenant. A context manager that serves while it is open.

    Args:
        page_size: Items in a page unless the client says `$top`.
        download_seconds: How long a pre-authenticated URL is good for.
        offers_urls: Items name their pre-authenticated URL; `content` leads there in any case.
        serves_etags: The download host says which version it serves.
        refuses_tokens: It does not serve requests that carry a token, as was seen
            (microsoftgraph/msgraph-sdk-dotnet#3057); others are said to get away with it.
        received: All requests, in the order they came in.
        url: Of Graph and of the sign-in.
        ca_file: The authority that signed the certificates, in PEM.
    """

    identity: Identity = field(default_factory=Identity)
    page_size: int = 200
    download_seconds: float = 3600
    offers_urls: bool = True
    serves_etags: bool = True
    refuses_tokens: bool = True
    sites: list[Site] = field(default_factory=list)
    faults: Faults = field(default_factory=Faults)
    received: list[Received] = field(default_factory=list)
    url: str = ""
    download_url: str = ""
    ca_file: Path = Path()

    def __post_init__(self) -> None:
        self._root = self.site("/", "Contoso")
        self._secret = secrets.token_hex(8)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def site(self, path: str, display_name: str) -> Site:
        """Create a site with its default library."""
        site_id = (
            f"{HOST},{uuid.uuid5(uuid.NAMESPACE_URL, path)},{uuid.uuid5(uuid.NAMESPACE_DNS, path)}"
        )
        site = Site(site_id, path, display_name, HOST)
        site.library()
        self.sites.append(site)
        return site

    def count(self, route: str | None = None) -> int:
        """Return how many requests came in, of one route or of all but the sign-in's."""
        names = [each.route for each in self.received]
        return sum(
            name not in {"token", "openid"} if route is None else name == route for name in names
        )

    # --- serving ----------------------------------------------------------------------------

    def __enter__(self) -> Graph:  # noqa: PYI034  # typing has no Self in Python 3.10
        self._folder = tempfile.TemporaryDirectory(prefix="graph-")
        self.ca_file = Path(self._folder.name) / "ca.pem"
        self._thread.start()
        assert self._ready.wait(30), "The emulator did not start."
        return self

    def __exit__(self, *failure: object) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()
        self._folder.cleanup()

    async def _serve(self) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca_file)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(*NAMES).configure_cert(context)
        graph, downloads = (
            web.ServerRunner(web.Server(handler, access_log=None), shutdown_timeout=0.1)
            for handler in (self._answer_graph, self._answer_download)
        )
        self.url = f"https://localhost:{await _listen(graph, context)}"
        self.download_url = f"https://127.0.0.1:{await _listen(downloads, context)}"
        self._ready.set()
        await self._closing.wait()
        for runner in (downloads, graph):
            await _stop(runner)

    async def _answer_graph(self, request: web.BaseRequest) -> web.StreamResponse:
        # A handler of web.Server, which gets BaseRequests; all that is used here is theirs.
        path = re.sub("/+", "/", request.path)
        for name, pattern, handler in ROUTES:
            found = pattern.fullmatch(path)
            if found and _told_apart(name, request):
                arguments = {k: v for k, v in found.groupdict().items() if v is not None}
                return await self._exchange(name, request, partial(handler, self, **arguments))
        return await self._exchange("unknown", request, _nothing_there)

    async def _answer_download(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self._exchange("download", request, self._download)

    async def _exchange(
        self, route: str, request: web.BaseRequest, usual: Usual
    ) -> web.StreamResponse:
        await request.read()
        self.received.append(
            Received(
                route,
                request.path_qs,
                time.monotonic(),
                "Authorization" in request.headers,
                request.headers.get("Range"),
                request.headers.get("User-Agent", ""),
            )
        )

        def answered(request: web.BaseRequest) -> web.Response:
            try:
                self._authenticate(route, request)
                return usual(request)
            except Refused as refusal:
                return web.json_response(
                    refusal.body, status=refusal.status, headers=refusal.headers
                )

        fault = self.faults.take(route)
        exchange = Exchange(request, _own_url(request), answered)
        response = answered(request) if fault is None else await fault(exchange)
        if not response.prepared:
            response.headers["request-id"] = str(uuid.uuid4())
        return response

    # --- who asks ---------------------------------------------------------------------------

    def _authenticate(self, route: str, request: web.BaseRequest) -> None:
        if route in {"token", "openid", "instance"}:
            return
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if route == "download":
            if scheme and self.refuses_tokens:
                raise Refused(401, "unauthenticated", "A pre-authenticated URL takes no token.")
        elif scheme.lower() != "bearer" or not self.identity.issued(token):
            raise Refused(401, "InvalidAuthenticationToken", "Access token is empty or unknown.")
        elif not self.identity.knows(token):
            raise Refused(
                401,
                "InvalidAuthenticationToken",
                "Lifetime validation failed, the token is expired.",
                WWW_Authenticate='Bearer error="invalid_token", error_description="expired_token"',
            )

    def _readable(self, site: Site) -> Site:
        if not self.identity.may_read(site.id):
            raise Refused(403, "accessDenied", "Access denied")
        return site

    def _token(self, request: web.BaseRequest, tenant: str) -> web.Response:
        form = dict(re.findall(r"([^&=]+)=([^&]*)", request._read_bytes.decode()))  # type: ignore[union-attr]  # read above
        form = {key: unquote(value.replace("+", " ")) for key, value in form.items()}
        try:
            return web.json_response(self.identity.grant_token(form, tenant, _own_url(request)))
        except SignInRefused as refusal:
            body = {
                "error": refusal.error,
                "error_description": f"AADSTS{refusal.code}: {refusal}",
                "error_codes": [refusal.code],
            }
            return web.json_response(body, status=refusal.status)

    def _openid(self, request: web.BaseRequest, tenant: str) -> web.Response:
        base = f"{_base(request)}/{tenant}"
        return web.json_response(
            {
                "issuer": f"{base}/v2.0",
                "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                "token_endpoint": f"{base}/oauth2/v2.0/token",
                "tenant_region_scope": "EU",
            }
        )

    def _instance(self, request: web.BaseRequest) -> web.Response:
        tenant = f"{_base(request)}/{self.identity.tenant}/v2.0/.well-known/openid-configuration"
        return web.json_response({"tenant_discovery_endpoint": tenant, "metadata": []})

    # --- sites and libraries ----------------------------------------------------------------

    def _search(self, request: web.BaseRequest) -> web.Response:
        if not {"Sites.Read.All", "Sites.ReadWrite.All"} & self.identity.roles:
            raise Refused(403, "accessDenied", "Access denied")
        words = request.query["search"].casefold().strip('"').split()
        found = [s for s in self.sites if any(w in s.display_name.casefold() for w in words)]
        return self._page(request, [site_json(site) for site in found])

    def _site(
        self, request: web.BaseRequest, site: str, path: str = "", tail: str = ""
    ) -> web.Response:
        found = self._readable(self._find_site(site, path.rstrip(":")))
        if tail == "/drives":
            return self._page(request, [drive_json(drive) for drive in found.drives])
        if tail == "/drive":
            return web.json_response(drive_json(found.drives[0]))
        return web.json_response(site_json(found))

    def _find_site(self, name: str, path: str) -> Site:
        if name == "root" or (name == HOST and path in {"", "/"}):
            return self._root
        for site in self.sites:
            if site.id == name or (name == HOST and site.path.casefold() == path.casefold()):
                return site
        raise Refused(404, "itemNotFound", "Requested site could not be found")

    def _drive(self, _request: web.BaseRequest, drive: str) -> web.Response:
        return web.json_response(drive_json(self._find_drive(drive)))

    def _find_drive(self, drive_id: str) -> Drive:
        for site in self.sites:
            for drive in site.drives:
                if drive.id == drive_id:
                    self._readable(site)
                    return drive
        raise Refused(404, "itemNotFound", "The resource could not be found.")

    # --- items ------------------------------------------------------------------------------

    def _item(self, request: web.BaseRequest, drive: str, **where: str) -> web.Response:
        library = self._find_drive(drive)
        with library.lock:
            node = self._find_node(library, **where)
            url = self._preauthenticated(library, node) if self.offers_urls else None
            return web.json_response(_selected(request, item_json(library, node, download_url=url)))

    def _children(self, request: web.BaseRequest, drive: str, **where: str) -> web.Response:
        library = self._find_drive(drive)
        with library.lock:
            node = self._find_node(library, **where)
            children = [item_json(library, child) for child in node.children.values()]
        return self._page(request, [_selected(request, child) for child in children])

    def _find_node(self, drive: Drive, anchor: str, path: str = "") -> Node:
        rooted = anchor in {"root", "items/root"}
        node = drive.root if rooted else drive.node(anchor.partition("/")[2])
        if node is not None and path:
            node = drive.find(path, beneath=node)
        if node is None:
            raise Refused(404, "itemNotFound", "The resource could not be found.")
        return node

    # --- delta ------------------------------------------------------------------------------

    def _delta(
        self, request: web.BaseRequest, drive: str, anchor: str, token: str | None = None
    ) -> web.Response:
        library = self._find_drive(drive)
        if self._find_node(library, anchor) is not library.root:
            raise Refused(501, "notSupported", "The emulator has deltas of whole libraries only.")
        with library.lock:
            position = self._delta_token(request, library, token or request.query.get("token", ""))
            with_ancestors = "deltaExcludeParent" not in request.headers
            page = delta_page(library, position, with_ancestors=with_ancestors)
            entries = [
                _selected(request, listed_json(library, node, stale=stale))
                for node, stale in page.entries
            ]
        return web.json_response(
            {
                "@odata.context": f"{_base(request)}/v1.0/$metadata#Collection(driveItem)",
                "value": entries,
                f"@odata.{'deltaLink' if page.last else 'nextLink'}": _delta_link(
                    request, library, page.following
                ),
            }
        )

    def _delta_token(self, request: web.BaseRequest, drive: Drive, token: str) -> DeltaToken:
        if token in {"", "latest"}:
            size = min(int(request.query.get("$top", self.page_size)), LARGEST_PAGE)
            return DeltaToken.beginning(drive, size, latest=token == "latest")
        try:
            position = DeltaToken.opened(token)
        except ValueError:
            raise Refused(400, "invalidRequest", "The provided token is malformed.") from None
        if position.generation != drive.generation:
            raise Refused(
                410,
                "resyncRequired",
                "Resync required.",
                "resyncChangesApplyDifferences",
                Location=f"{_base(request)}/v1.0/drives/{drive.id}/root/delta?token=",
            )
        return position

    # --- contents ---------------------------------------------------------------------------

    def _content(self, request: web.BaseRequest, drive: str, **where: str) -> web.Response:
        library = self._find_drive(drive)
        with library.lock:
            node = self._find_node(library, **where)
            if node.kind != "file":
                raise Refused(400, "invalidRequest", "Only files have content.")
            if request.headers.get("If-None-Match") in {node.etag, node.ctag}:
                return web.Response(status=304)
            return web.Response(
                status=302, headers={"Location": self._preauthenticated(library, node)}
            )

    def _preauthenticated(self, drive: Drive, node: Node) -> str:
        expiry = f"{time.time() + self.download_seconds:.3f}"
        return f"{self.download_url}/_dl/{drive.id}/{node.id}?tempauth={expiry}.{self._secret}"

    def _download(self, request: web.BaseRequest) -> web.Response:
        _, _, drive_id, item_id = unquote(request.path).split("/")
        expiry, _, secret = request.query.get("tempauth", "0.").rpartition(".")
        if secret != self._secret or float(expiry) < time.time():
            return web.Response(status=401, text="<html>expired</html>", content_type="text/html")
        drive = next(d for site in self.sites for d in site.drives if d.id == drive_id)
        with drive.lock:
            node = drive.node(item_id)
            if node is None:
                return web.Response(status=404, text="<html>gone</html>", content_type="text/html")
            data, etag = node.data, node.etag
        return _ranged(request, data, etag if self.serves_etags else None)

    # --- pages ------------------------------------------------------------------------------

    def _page(self, request: web.BaseRequest, values: list[Any]) -> web.Response:
        size = min(int(request.query.get("$top", self.page_size)), LARGEST_PAGE)
        start = int(request.query.get("$skiptoken", 0))
        page: dict[str, Any] = {"value": values[start : start + size]}
        if start + size < len(values):
            following = request.rel_url.update_query({"$skiptoken": str(start + size)})
            page["@odata.nextLink"] = f"{_base(request)}{following}"
        return web.json_response(page)


ITEM = (
    r"/(?:v1\.0|beta)/drives/(?P<drive>[^/]+)/(?P<anchor>root|items/[^/:]+)(?::(?P<path>/[^:]*):?)?"
)
TOKEN = r"(?:\((?:token='(?P<token>[^']*)')?\))?"
SITE = r"/(?:v1\.0|beta)/sites/(?P<site>[^/:]+)(?::(?P<path>/[^:]*):?)?"

_HANDLERS: list[tuple[str, str, Callable[..., web.Response]]] = [
    ("token", r"/(?P<tenant>[^/]+)/oauth2/v2\.0/token", Graph._token),
    ("openid", r"/(?P<tenant>[^/]+)/v2\.0/\.well-known/openid-configuration", Graph._openid),
    ("instance", r"/common/discovery/instance", Graph._instance),
    ("search", r"/(?:v1\.0|beta)/sites/?", Graph._search),
    ("site", SITE, Graph._site),
    ("drives", SITE + "(?P<tail>/drives?)", Graph._site),
    ("drive", r"/(?:v1\.0|beta)/drives/(?P<drive>[^/]+)/?", Graph._drive),
    ("delta", ITEM + r"/(?:microsoft\.graph\.)?delta" + TOKEN, Graph._delta),
    ("children", ITEM + "/children", Graph._children),
    ("content", ITEM + "/content", Graph._content),
    ("item", ITEM, Graph._item),
]
ROUTES = [(name, re.compile(pattern), handler) for name, pattern, handler in _HANDLERS]


async def _listen(runner: web.ServerRunner, context: ssl.SSLContext) -> int:
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    port: int = runner.addresses[0][1]
    return port


async def _stop(runner: web.ServerRunner) -> None:
    """Break the connections that clients still hold; over TLS a polite end takes both sides."""
    assert runner.server is not None
    for connection in runner.server.connections:
        transport = connection.transport
        if transport is not None:
            transport.abort()
    await runner.cleanup()


def _told_apart(name: str, request: web.BaseRequest) -> bool:
    return name != "search" or "search" in request.query


def _nothing_there(_request: web.BaseRequest) -> web.Response:
    raise Refused(400, "BadRequest", "Resource not found for the segment.")


def _base(request: web.BaseRequest) -> str:
    # By the name the client knows it, which a proxied one has chosen itself.
    return f"https://{request.host}"


def _own_url(request: web.BaseRequest) -> str:
    return f"{_base(request)}{request.rel_url}"


def _selected(request: web.BaseRequest, item: dict[str, Any]) -> dict[str, Any]:
    wanted = request.query.get("$select") or request.query.get("select")
    if not wanted:
        return item
    # A tombstone says of itself that it is one, whatever was selected.
    kept = {*wanted.split(","), "@odata.type", "deleted", "id"}
    if "content.downloadUrl" in kept:
        kept.add("@microsoft.graph.downloadUrl")
    return {key: value for key, value in item.items() if key in kept}


def _delta_link(request: web.BaseRequest, drive: Drive, token: DeltaToken) -> str:
    select = request.query.get("$select")
    more = f"&$select={quote(select, safe=',')}" if select else ""
    return f"{_base(request)}/v1.0/drives/{drive.id}/root/delta?token={token.sealed()}{more}"


def _ranged(request: web.BaseRequest, data: bytes, etag: str | None) -> web.Response:
    headers = {"Accept-Ranges": "bytes"} | ({} if etag is None else {"ETag": etag})
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if wanted is None or request.headers.get("If-Range", etag) != etag:
        return web.Response(body=data, headers=headers)
    start, end = int(wanted[1]), int(wanted[2] or len(data) - 1)
    if start >= len(data):
        return web.Response(status=416, headers={"Content-Range": f"bytes */{len(data)}"})
    headers["Content-Range"] = f"bytes {start}-{min(end, len(data) - 1)}/{len(data)}"
    return web.Response(status=206, body=data[start : end + 1], headers=headers)
