"""Signing in to Microsoft Entra ID: who we are, in which cloud, and the token that says so."""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
import os
import re
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from azure.core.credentials import AccessToken
from azure.core.exceptions import AzureError, ClientAuthenticationError
from azure.identity import aio

from dagster_tools.errors import ConfigurationError, SharePointAccessDenied, SharePointError

__all__ = [
    "CLOUDS",
    "AzureCredential",
    "ClientCertificate",
    "ClientSecret",
    "Cloud",
    "Credentials",
    "ManagedIdentity",
    "TokenSource",
]


@dataclass(frozen=True, slots=True)
class Cloud:
    """One of Microsoft's clouds, or an emulator.

    Args:
        authority: Where to sign in.
        graph: Where Microsoft Graph is.
    """

    authority: str = "https://login.microsoftonline.com"
    graph: str = "https://graph.microsoft.com"

    def __post_init__(self) -> None:
        for name in ("authority", "graph"):
            url = getattr(self, name).rstrip("/")
            if not url.startswith("https://"):
                raise ConfigurationError(
                    f"{name} is {url!r}; it must be an https URL, since secrets are sent there."
                )
            object.__setattr__(self, name, url)

    @property
    def scope(self) -> str:
        """What a token is asked for."""
        return f"{self.graph}/.default"


CLOUDS: Mapping[str, Cloud] = {
    "public": Cloud(),
    "us-government": Cloud("https://login.microsoftonline.us", "https://graph.microsoft.us"),
    "us-dod": Cloud("https://login.microsoftonline.us", "https://dod-graph.microsoft.us"),
    "china": Cloud("https://login.chinacloudapi.cn", "https://microsoftgraph.chinacloudapi.cn"),
}
"""Microsoft Graph documentation, "National cloud deployments"; GCC is in the public one."""


@runtime_checkable
class AzureCredential(Protocol):
    """Any credential of azure-identity or of one's own, asynchronous or not."""

    def get_token(self, *scopes: str, **options: Any) -> Any:
        """Return an `AccessToken`, or something that can be awaited for one."""


@dataclass(frozen=True, slots=True)
class ClientSecret:
    """An app registration with a secret: the secret's value, not its id.

    Args:
        tenant: The tenant's id or a domain of its.
    """

    tenant: str
    client_id: str
    secret: str = field(repr=False)

    def open(self, cloud: Cloud, ca_file: str | None) -> AzureCredential:
        """Return the credential that asks for tokens."""
        return aio.ClientSecretCredential(
            self.tenant, self.client_id, self.secret, **_options(cloud, ca_file)
        )


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """An app registration with a certificate.

    Args:
        tenant: The tenant's id or a domain of its.
        certificate: The certificate with its private key, in PEM or PKCS #12: a file's path, or
            what is in it.
        password: Of the private key.
    """

    tenant: str
    client_id: str
    certificate: str | os.PathLike[str] | bytes = field(repr=False)
    password: str | None = field(default=None, repr=False)

    def open(self, cloud: Cloud, ca_file: str | None) -> AzureCredential:
        """Return the credential that asks for tokens.

        Raises:
            ConfigurationError: The certificate cannot be read.
        """
        try:
            return aio.CertificateCredential(
                self.tenant,
                self.client_id,
                certificate_data=self._data(),
                password=self.password,
                **_options(cloud, ca_file),
            )
        except (ValueError, TypeError) as error:
            raise ConfigurationError(
                f"The certificate of app {self.client_id} cannot be used. It must be PEM or PKCS "
                f"#12, with its private key, and the password if it has one. ({error})"
            ) from None

    def _data(self) -> bytes:
        if isinstance(self.certificate, bytes):
            return self.certificate
        if isinstance(self.certificate, str) and "-----BEGIN" in self.certificate:
            return self.certificate.encode()
        try:
            return Path(self.certificate).read_bytes()
        except OSError as error:
            raise ConfigurationError(
                f"The certificate of app {self.client_id} cannot be read from a file: "
                f"{error.strerror}."
            ) from None


@dataclass(frozen=True, slots=True)
class ManagedIdentity:
    """The identity Azure gives to the machine this runs on.

    Args:
        client_id: Of a user-assigned identity; None for the system-assigned one.
    """

    client_id: str | None = None

    def open(self, _cloud: Cloud, _ca_file: str | None) -> AzureCredential:
        """Return the credential that asks for tokens."""
        return aio.ManagedIdentityCredential(client_id=self.client_id)


Credentials: TypeAlias = ClientSecret | ClientCertificate | ManagedIdentity | AzureCredential
"""Who signs in. An `AzureCredential` stays its owner's, who closes it."""


class TokenSource:
    """The token requests are sent with; an asynchronous context manager.

    Args:
        ca_file: Authorities to trust instead of the system's, in PEM.
    """

    def __init__(self, credentials: Credentials, cloud: Cloud, ca_file: str | None = None) -> None:
        self._credentials = credentials
        self._cloud = cloud
        self._ca_file = ca_file
        self._token = AccessToken("", 0)
        self._lock = asyncio.Lock()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> TokenSource:  # noqa: PYI034  # typing has no Self in Python 3.10
        await self._open()
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._stack.aclose()

    async def token(self) -> str:
        """Return a token, asking for a new one five minutes before the last one expires.

        Raises:
            SharePointAccessDenied: The sign-in was refused.
            SharePointError: It could not be reached.
        """
        async with self._lock:
            if self._token.expires_on < time.time() + 300:
                self._token = await self._ask()
            return self._token.token

    async def renew(self, refused: str) -> str:
        """Return another token than one that was refused, before its time or not."""
        async with self._lock:
            if self._token.token == refused:
                self._token = await self._ask_anew()
            return self._token.token

    @property
    def roles(self) -> tuple[str, ...] | None:
        """The application permissions of the last token; None where they cannot be told.

        Microsoft calls its tokens opaque, so this is for messages alone.
        """
        try:
            payload = self._token.token.split(".")[1]
            claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
            return tuple(sorted(claims["roles"]))
        except (IndexError, KeyError, TypeError, ValueError):
            return None

    async def _open(self) -> None:
        """Make a credential, whose cache is empty; or use the one that was given."""
        if isinstance(self._credentials, AzureCredential):
            self._credential = self._credentials
        else:
            await self._stack.aclose()
            self._credential = self._credentials.open(self._cloud, self._ca_file)
            await self._stack.enter_async_context(self._credential)  # type: ignore[arg-type]  # azure-identity's own

    async def _ask_anew(self) -> AccessToken:
        """Ask for a token that comes from no cache."""
        if isinstance(self._credentials, AzureCredential):
            # "Not from before": with claims, newer versions of azure-identity leave theirs aside.
            now = {"essential": True, "value": str(int(time.time()))}
            return await self._ask(claims=json.dumps({"access_token": {"nbf": now}}))
        await self._open()
        return await self._ask()

    async def _ask(self, **options: Any) -> AccessToken:
        try:
            get_token = self._credential.get_token
            if inspect.iscoroutinefunction(get_token):
                answer = get_token(self._cloud.scope, **options)
            else:
                answer = await asyncio.to_thread(get_token, self._cloud.scope, **options)
            if inspect.isawaitable(answer):
                answer = await answer
        except AzureError as error:
            raise self._refused(error) from None
        return AccessToken(answer.token, answer.expires_on)

    def _refused(self, error: AzureError) -> SharePointError:
        text = str(error.message).partition("Trace ID")[0].strip()
        if isinstance(self._credentials, ClientSecret):
            text = text.replace(self._credentials.secret, "***")
        code = re.search(r"AADSTS(\d+)", text)
        who = getattr(self._credentials, "client_id", None)
        app = f" as app {who}" if who else ""
        if code is None and not isinstance(error, ClientAuthenticationError):
            return SharePointError(
                f"Could not reach {self._cloud.authority} to sign in{app}: {text}"
            )
        remedy = _REMEDIES.get(code[1], "") if code else ""
        return SharePointAccessDenied(
            f"The sign-in{app} at {self._cloud.authority} was refused: {text} {remedy}".rstrip(),
            code=code[0] if code else None,
        )


_REMEDIES = {
    "7000215": "Give the secret's value, which is shown once, when it is made; not its id.",
    "7000222": "The secret has expired: make a new one under Certificates & secrets.",
    "700016": "Look up the client id (application id) and the tenant on the app's overview page.",
    "90002": "Look up the tenant (directory id) on the app's overview page.",
    "700027": "Upload the certificate's public part under Certificates & secrets.",
}
"""By the number of Entra's error (its documentation, "AADSTS error codes")."""


def _options(cloud: Cloud, ca_file: str | None) -> dict[str, Any]:
    known = {each.authority for each in CLOUDS.values()}
    options: dict[str, Any] = {
        "authority": cloud.authority,
        # Whether an authority is Microsoft's is looked up at Microsoft's.
        "disable_instance_discovery": cloud.authority not in known,
    }
    return options if ca_file is None else options | {"connection_verify": ca_file}
