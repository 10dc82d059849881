"""Requests to Microsoft Graph: signed in, patient, and discreet about what must not be told."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any
from urllib.parse import urlencode

import aiohttp
from yarl import URL

from dagster_tools.errors import (
    ConfigurationError,
    SharePointAccessDenied,
    SharePointError,
    SharePointNotFound,
    SharePointThrottled,
)
from dagster_tools.sharepoint.auth import CLOUDS, Cloud, Credentials, TokenSource
from dagster_tools.sharepoint.throttle import RETRIED, THROTTLED, Attempts, Pause, Retry
from dagster_tools.sharepoint.throttle import requested_pause as _requested_pause

__all__ = ["Answer", "GraphClient", "Unreachable"]

CONNECT_TIMEOUT = 30.0


class Unreachable(Exception):
    """A connection failed before or while it was used."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What Graph answered.

    Args:
        location: Where it said to go on; an opaque link.
    """

    status: int
    body: Mapping[str, Any] = field(repr=False)
    request_id: str | None = None
    location: str | None = field(default=None, repr=False)


class GraphClient:
    """A connection to Microsoft Graph; an asynchronous context manager, for one event loop.

    Answers that ask for patience are waited out by the whole process. Neither errors nor logs
    hold tokens, secrets or pre-authenticated URLs.

    Args:
        credentials: Who signs in: `ClientSecret`, `ClientCertificate`, `ManagedIdentity` or any
            credential of azure-identity.
        cloud: One of `CLOUDS`, or endpoints of one's own.
        hostname: The tenant's, such as `contoso.sharepoint.com`. It is asked for where a site is
            given by its path, unless the app may read every site.
        concurrency: Files read at a time, and requests at a time.
        page_size: Items in a page of changes; the service may send fewer.
        spool_limit: Bytes of a file kept in memory while it is read; what is more goes to disk.
        retry: How long to keep trying.
        timeout: Seconds without a byte after which a connection is given up.
        ca_file: Authorities to trust instead of the system's, in PEM.

    Example:
        >>> client = GraphClient(ClientSecret("contoso.com", "5a6b7c8d-…", "…"))
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        cloud: Cloud = CLOUDS["public"],
        hostname: str | None = None,
        concurrency: int = 4,
        page_size: int = 200,
        spool_limit: int = 32 * 2**20,
        retry: Retry = Retry(),  # noqa: B008  # frozen
        timeout: float = 60.0,
        ca_file: str | None = None,
    ) -> None:
        if concurrency < 1 or page_size < 1:
            raise ConfigurationError("concurrency and page_size must be 1 or more.")
        self.cloud = cloud
        self.hostname = hostname
        self.page_size = page_size
        self.spool_limit = spool_limit
        self.retry = retry
        self.file_slots = asyncio.Semaphore(concurrency)
        self._request_slots = asyncio.Semaphore(concurrency)
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT, sock_read=timeout
        )
        self._ca_file = ca_file
        self._tokens = TokenSource(credentials, cloud, ca_file)
        self._pause = Pause.of(cloud.graph)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> GraphClient:  # noqa: PYI034  # typing has no Self in Python 3.10
        await self._stack.enter_async_context(self._tokens)
        context = ssl.create_default_context(cafile=self._ca_file)
        self._session = await self._stack.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=context),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=self._timeout,
                trust_env=True,
                headers={"User-Agent": f"NONISV|dagster-tools/{version('dagster-tools')}"},
            )
        )
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._stack.aclose()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.cloud.graph}>"

    @property
    def roles(self) -> tuple[str, ...] | None:
        """The app's application permissions, once a request was sent; None where not known."""
        return self._tokens.roles

    async def sign_in(self) -> None:
        """Sign in, which otherwise happens with the first request.

        Raises:
            SharePointAccessDenied: The sign-in was refused.
            SharePointError: It could not be reached.
        """
        await self._tokens.token()

    async def get(
        self,
        path: str,
        subject: str,
        *,
        params: Mapping[str, str] | None = None,
        accept: Collection[int] = (),
    ) -> Answer:
        """Ask Graph for something.

        Args:
            path: Percent-encoded, from the version on, such as `/sites/root`; or a link that
                Graph gave, which is used as it is.
            subject: What is asked for, as an error calls it.
            accept: Statuses besides 200 that are answers and not errors.

        Raises:
            SharePointAccessDenied: The sign-in was refused, or a permission is missing.
            SharePointNotFound: It is not there.
            SharePointThrottled: The service wants to be left alone for longer than there is
                patience.
            SharePointError: Anything else, after all attempts.
        """
        url = self._url(path, params)
        attempts = Attempts(self.retry)
        token, renewed = await self._tokens.token(), False
        while True:
            await self.wait_for_turn(attempts, subject)
            try:
                answer, pause = await self._send(url, token)
            except Unreachable as error:
                if not await attempts.next_after_failure():
                    raise SharePointError(
                        f"Could not ask Microsoft Graph for {subject}: {error}"
                    ) from None
                continue
            if answer.status == 200 or answer.status in accept:
                return answer
            if answer.status == 401 and not renewed:
                token, renewed = await self._tokens.renew(token), True
            elif answer.status in THROTTLED and pause:
                self.pause(pause)
            elif answer.status not in RETRIED or not await attempts.next_after_failure():
                raise self.error(answer, subject)

    async def pages(
        self, path: str, subject: str, *, params: Mapping[str, str] | None = None
    ) -> AsyncIterator[Mapping[str, Any]]:
        """Yield the entries of a collection, page after page."""
        answer = await self.get(path, subject, params=params)
        while True:
            for entry in answer.body.get("value", []):
                yield entry
            link = answer.body.get("@odata.nextLink")
            if link is None:
                return
            answer = await self.get(link, subject)

    @asynccontextmanager
    async def download(
        self, url: str, headers: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Open a pre-authenticated URL, which takes no token and is told to nobody.

        Raises:
            Unreachable: The connection failed, also while the response was read in the block.
        """
        async with _connection_errors():
            request = self._session.get(
                URL(url, encoded=True), headers={"Accept-Encoding": "identity", **headers}
            )
            async with request as response:
                yield response

    def pause(self, seconds: float) -> None:
        """Let no client of this process send anything to this service for some time."""
        self._pause.extend(seconds)

    async def wait_for_turn(self, attempts: Attempts, subject: str) -> None:
        """Return when a request may be sent.

        Raises:
            SharePointThrottled: That is too long.
        """
        seconds = self._pause.seconds_left
        if not attempts.allow_wait(seconds):
            raise SharePointThrottled(
                f"Microsoft Graph asks to be left alone for {seconds:.0f} s, and could not be "
                f"asked for {subject}. Try again later, or less often.",
                retry_after=seconds,
                status=429,
            )
        await self._pause.over()

    async def _send(self, url: str, token: str) -> tuple[Answer, float | None]:
        """Return Graph's answer, and the pause it asks for if it does."""
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        async with self._request_slots, _connection_errors():
            request = self._session.get(
                URL(url, encoded=True), headers=headers, allow_redirects=False
            )
            async with request as response:
                text = await response.read()
                answer = Answer(
                    response.status,
                    _parsed(text, complete=response.status == 200),
                    response.headers.get("request-id"),
                    response.headers.get("Location"),
                )
                return answer, _requested_pause(response.headers)

    def _url(self, path: str, params: Mapping[str, str] | None) -> str:
        if path.startswith("/"):
            query = f"?{urlencode(params, safe='$,')}" if params else ""
            return f"{self.cloud.graph}/v1.0{path}{query}"
        if not path.startswith(f"{self.cloud.graph}/"):
            # Where the token goes, anybody can use it.
            raise SharePointError(
                f"Microsoft Graph gave a link to {URL(path).host}, and not to {self.cloud.graph}. "
                "It was not followed."
            )
        return path

    def error(self, answer: Answer, subject: str) -> SharePointError:
        """Return the error that an answer means."""
        details = answer.body.get("error") or {}
        code, message = details.get("code"), str(details.get("message", ""))[:300]
        said = f"{answer.status} {code}: {message}" if code else f"status {answer.status}"
        facts = SharePointError(
            f"Microsoft Graph could not give {subject} ({said}; request id {answer.request_id}).",
            status=answer.status,
            code=code,
            request_id=answer.request_id,
        )
        if answer.status in {401, 403}:
            needed = self.permissions_needed()
            return SharePointAccessDenied.because_of(
                facts, f"Microsoft Graph refuses {subject} ({said}). {needed}"
            )
        if answer.status == 404:
            return SharePointNotFound.because_of(
                facts, f"Microsoft Graph finds no {subject} ({said})."
            )
        return facts

    def permissions_needed(self) -> str:
        """Return which permissions the app needs to read a site, and which it has."""
        has = "" if self.roles is None else f" It has: {', '.join(self.roles) or 'none'}."
        return (
            "The app needs the application permission Sites.Selected, with an administrator's "
            "consent and the role read on this site (POST /sites/{site-id}/permissions); or, for "
            f"all sites, Sites.Read.All and Files.Read.All.{has}"
        )


@asynccontextmanager
async def _connection_errors() -> AsyncIterator[None]:
    """Translate what can happen to a connection. aiohttp's own messages may have the whole URL."""
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as error:
        raise SharePointError(
            f"The certificate of {error.host} is not signed by an authority that is trusted here. "
            "If a proxy of your own stands in between, give its authority as ca_file."
        ) from None
    except aiohttp.ClientConnectorError as error:
        raise Unreachable(f"no connection to {error.host} ({type(error).__name__})") from None
    except asyncio.TimeoutError:
        raise Unreachable("no answer in time") from None
    except (aiohttp.ClientError, ConnectionError, ssl.SSLError) as error:
        raise Unreachable(f"the connection broke ({type(error).__name__})") from None


def _parsed(text: bytes, *, complete: bool) -> Mapping[str, Any]:
    """Return an answer's JSON; of an error, what there is of it.

    Raises:
        Unreachable: It is to be complete and is not, as happens when a proxy gives up halfway.
    """
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    if isinstance(body, dict):
        return body
    if complete:
        raise Unreachable("the answer is no complete JSON")
    return {}
