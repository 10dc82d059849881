"""What goes wrong on demand: each fault is a way of answering one request.

graph.faults.add("delta", throttled(2), times=3)
graph.faults.add("content", meanwhile(lambda: drive.delete("/a.csv")))
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from aiohttp import web

from tests.graph.resources import error_json

__all__ = [
    "Exchange",
    "Fault",
    "Faults",
    "Usual",
    "asking_for_resync",
    "cut",
    "delayed",
    "failing",
    "garbled",
    "ignoring_range",
    "looping",
    "meanwhile",
    "outdated",
    "reset",
    "stalled",
    "throttled",
    "truncated",
]


Usual: TypeAlias = Callable[[web.BaseRequest], web.Response]


@dataclass(frozen=True)
class Exchange:
    """A request, and how requests of its kind are answered when nothing goes wrong.

    Args:
        url: The request's own, as links in answers must repeat it.
    """

    request: web.BaseRequest
    url: str
    answer: Usual

    def usual(self) -> web.Response:
        """Return the answer it would get."""
        return self.answer(self.request)

    def abort(self) -> None:
        """Break the connection."""
        transport = self.request.transport
        if transport is not None:
            transport.abort()


Fault: TypeAlias = Callable[[Exchange], Awaitable[web.StreamResponse]]


@dataclass
class _Planned:
    route: str
    fault: Fault
    skip: int
    times: int


class Faults:
    """What is going to happen, by the name of the route."""

    def __init__(self) -> None:
        self._planned: list[_Planned] = []
        self._lock = threading.Lock()

    def add(self, route: str, fault: Fault, *, times: int = 1, after: int = 0) -> None:
        """Plan a fault.

        Args:
            after: Requests of the route that are answered as usual before.
        """
        with self._lock:
            self._planned.append(_Planned(route, fault, after, times))

    def take(self, route: str) -> Fault | None:
        """Return what is to happen to a request of this route now, if anything."""
        with self._lock:
            for planned in self._planned:
                if planned.route != route or not planned.times:
                    continue
                if planned.skip:
                    planned.skip -= 1
                    continue
                planned.times -= 1
                return planned.fault
        return None


# --- answers of the service -----------------------------------------------------------------


def throttled(seconds: int, *, status: int = 429, as_date: bool = False) -> Fault:
    """Ask to be left alone for a while, in seconds or until a date, both of which HTTP has."""

    async def answer(_exchange: Exchange) -> web.Response:
        # A date has whole seconds; one must not come out sooner than was meant.
        until = email.utils.formatdate(int(time.time()) + seconds + 1, usegmt=True)
        code = "activityLimitReached" if status == 429 else "serviceNotAvailable"
        return web.json_response(
            error_json(code, "The request has been throttled.", "throttledRequest"),
            status=status,
            headers={"Retry-After": until if as_date else str(seconds)},
        )

    return answer


def failing(status: int, code: str = "generalException", inner: str | None = None) -> Fault:
    """Answer with an error."""

    async def answer(_exchange: Exchange) -> web.Response:
        return web.json_response(error_json(code, "An error was asked for.", inner), status=status)

    return answer


def asking_for_resync(
    *, location: bool = True, code: str = "resyncChangesApplyDifferences"
) -> Fault:
    """Say that a delta token has expired, and where to begin anew, or not."""

    async def answer(exchange: Exchange) -> web.Response:
        fresh = exchange.url.partition("/delta")[0] + "/delta?token="
        return web.json_response(
            error_json("resyncRequired", "Resync required.", code),
            status=410,
            headers={"Location": fresh} if location else {},
        )

    return answer


def looping() -> Fault:
    """Let a page name itself as the next."""

    async def answer(exchange: Exchange) -> web.Response:
        usual = exchange.usual()
        page = json.loads(usual.body)  # type: ignore[arg-type]  # bytes: it is of our own making
        page.pop("@odata.deltaLink", None)
        page["@odata.nextLink"] = exchange.url
        return web.json_response(page)

    return answer


def outdated() -> Fault:
    """Answer as the first time this fault was used, whatever happened since."""
    first: list[bytes] = []

    async def answer(exchange: Exchange) -> web.Response:
        if not first:
            first.append(_body(exchange.usual()))
        return web.Response(body=first[0], content_type="application/json")

    return answer


def ignoring_range() -> Fault:
    """Serve a file from its beginning whatever range was asked for, as HTTP allows."""

    async def answer(exchange: Exchange) -> web.Response:
        headers = exchange.request.headers.copy()
        del headers["Range"]
        return exchange.answer(exchange.request.clone(headers=headers))

    return answer


# --- what networks do -----------------------------------------------------------------------


def reset() -> Fault:
    """Break the connection before there is an answer."""

    async def answer(exchange: Exchange) -> web.StreamResponse:
        exchange.abort()
        raise asyncio.CancelledError

    return answer


def delayed(seconds: float) -> Fault:
    """Answer late."""

    async def answer(exchange: Exchange) -> web.Response:
        await asyncio.sleep(seconds)
        return exchange.usual()

    return answer


def garbled() -> Fault:
    """End an answer in the middle of its JSON, with all the marks of a complete one."""

    async def answer(exchange: Exchange) -> web.Response:
        body = _body(exchange.usual())
        return web.Response(body=body[: len(body) // 2], content_type="application/json")

    return answer


def truncated(size: int) -> Fault:
    """Serve the first bytes of a file as if they were all."""

    async def answer(exchange: Exchange) -> web.Response:
        usual = exchange.usual()
        usual.body = _body(usual)[:size]
        return usual

    return answer


def cut(size: int) -> Fault:
    """Break the connection after some bytes of the body."""

    async def answer(exchange: Exchange) -> web.StreamResponse:
        response = await _begun(exchange, size)
        exchange.abort()
        return response

    return answer


def stalled(size: int, seconds: float) -> Fault:
    """Say nothing more after some bytes of the body."""

    async def answer(exchange: Exchange) -> web.StreamResponse:
        response = await _begun(exchange, size)
        await asyncio.sleep(seconds)
        exchange.abort()
        return response

    return answer


# --- what other people do -------------------------------------------------------------------


def meanwhile(act: Callable[[], object]) -> Fault:
    """Let something happen to the library just before the answer."""

    async def answer(exchange: Exchange) -> web.Response:
        act()
        return exchange.usual()

    return answer


async def _begun(exchange: Exchange, size: int) -> web.StreamResponse:
    usual = exchange.usual()
    body = _body(usual)
    response = web.StreamResponse(status=usual.status, headers=usual.headers)
    response.content_length = len(body)
    await response.prepare(exchange.request)
    await response.write(body[:size])
    return response


def _body(response: web.Response) -> bytes:
    assert isinstance(response.body, bytes)
    return response.body
