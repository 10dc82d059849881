"""SharePoint as a Dagster resource: who signs in, and where the feed is kept."""

# No `from __future__ import annotations`: Dagster finds ResourceDependency fields by their
# evaluated annotations when the class is made (decision 007).

from collections.abc import Iterator
from typing import Any

import dagster as dg
from pydantic import ConfigDict, Field

from dagster_tools.configuration import refuse_unknown, resolved
from dagster_tools.errors import ConfigurationError
from dagster_tools.postgres.connection import ConnectionSettings
from dagster_tools.postgres.feed import FeedTables
from dagster_tools.postgres_io_manager import PostgresResource
from dagster_tools.sharepoint import (
    CLOUDS,
    ClientCertificate,
    ClientSecret,
    Cloud,
    Credentials,
    GraphClient,
    ManagedIdentity,
)

__all__ = ["SharePointResource"]

SECRETS = ("client_secret", "certificate", "certificate_password")
MEGABYTE = 2**20


class SharePointResource(dg.ConfigurableResource):  # type: ignore[type-arg]  # generic for factories only
    """Who signs in to SharePoint, and where what is known of its libraries is kept.

    Args:
        credential: Any credential of azure-identity, instead of the fields.
        connection: The PostgreSQL that the assets' IO manager writes to, since what is stored
            and what was delivered are one transaction; None as for `PostgresIOManager`.

    Example:
        >>> SharePointResource(tenant="contoso.com", client_id="5a6b7c8d", client_secret="…")
        SharePointResource(tenant='contoso.com', client_id='5a6b7c8d', client_secret='***')
    """

    tenant: str | None = Field(default=None, description="The tenant's id, or a domain of its.")
    client_id: str | None = Field(
        default=None,
        description="The app registration's application (client) id; with `managed_identity` that "
        "of a user-assigned identity.",
    )
    client_secret: str | None = Field(
        default=None,
        description="The value of the app's secret, not its id; better an EnvVar than a literal.",
        json_schema_extra={"dagster__is_secret": True},
    )
    certificate: str | None = Field(
        default=None,
        description="The app's certificate with its private key, in PEM or PKCS #12: a file's "
        "path, or PEM itself.",
        json_schema_extra={"dagster__is_secret": True},
    )
    certificate_password: str | None = Field(
        default=None,
        description="Password of the certificate's private key.",
        json_schema_extra={"dagster__is_secret": True},
    )
    managed_identity: bool = Field(
        default=False, description="Sign in as the identity Azure gives to this machine."
    )
    credential: dg.ResourceDependency[Any]
    connection: dg.ResourceDependency[PostgresResource | None]
    tracking_schema: str = Field(
        default="meta", description="Schema of the feed's tables; the IO manager's tracking_schema."
    )
    cloud: str = Field(
        default="public", description="'public', 'us-government', 'us-dod' or 'china'."
    )
    authority: str | None = Field(
        default=None, description="Where to sign in, if not at the cloud's own."
    )
    graph: str | None = Field(
        default=None, description="Where Microsoft Graph is, if not at the cloud's own."
    )
    hostname: str | None = Field(
        default=None,
        description="The tenant's host, such as contoso.sharepoint.com: needed for sites given by "
        "their path where the app may not read every site.",
    )
    concurrency: int = Field(default=4, description="Files read at a time.")
    page_size: int = Field(default=200, description="Items in a page of changes.")
    spool_megabytes: int = Field(
        default=32, description="Of a file that is read, what is more than this goes to disk."
    )
    ca_file: str | None = Field(
        default=None, description="File of authorities to trust instead of the system's, in PEM."
    )

    # pydantic's errors would else quote the value of a field, the secret's too.
    model_config = ConfigDict(hide_input_in_errors=True)

    def __init__(self, **values: Any) -> None:
        refuse_unknown(type(self), values)
        # A resource dependency has no class default.
        super().__init__(**{"credential": None, "connection": None} | values)

    def client(self) -> GraphClient:
        """Return a client, which is opened by `async with`.

        Raises:
            ConfigurationError: It does not say who signs in, or says it twice.
        """
        return GraphClient(
            self._credentials(),
            cloud=self._cloud(),
            hostname=resolved(self.hostname),
            concurrency=resolved(self.concurrency),
            page_size=resolved(self.page_size),
            spool_limit=resolved(self.spool_megabytes) * MEGABYTE,
            ca_file=resolved(self.ca_file),
        )

    def feed(self) -> FeedTables:
        """Return where what is known of the libraries is kept."""
        connection = self.connection
        settings = connection.settings() if connection is not None else ConnectionSettings()
        return FeedTables(settings, resolved(self.tracking_schema))

    def _credentials(self) -> Credentials:
        tenant, client_id = resolved(self.tenant) or "", resolved(self.client_id) or ""
        secret, certificate = resolved(self.client_secret), resolved(self.certificate)
        ways: dict[str, Credentials] = {}
        if self.credential is not None:
            ways["credential"] = self.credential
        if secret is not None:
            ways["client_secret"] = ClientSecret(tenant, client_id, secret)
        if certificate is not None:
            password = resolved(self.certificate_password)
            ways["certificate"] = ClientCertificate(tenant, client_id, certificate, password)
        if resolved(self.managed_identity):
            ways["managed_identity"] = ManagedIdentity(client_id or None)
        if len(ways) != 1:
            raise ConfigurationError(
                "SharePointResource needs one way to sign in: client_secret, certificate, "
                f"managed_identity or credential. It has: {', '.join(ways) or 'none'}."
            )
        ((way, credentials),) = ways.items()
        if way in {"client_secret", "certificate"} and not (tenant and client_id):
            raise ConfigurationError(
                f"SharePointResource has a {way}, and needs tenant and client_id with it: they "
                "stand on the overview page of the app registration."
            )
        return credentials

    def _cloud(self) -> Cloud:
        name = resolved(self.cloud)
        if name not in CLOUDS:
            raise ConfigurationError(
                f"cloud of SharePointResource is {name!r}; expected one of {', '.join(CLOUDS)}."
            )
        known = CLOUDS[name]
        return Cloud(
            resolved(self.authority) or known.authority, resolved(self.graph) or known.graph
        )

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            default = type(self).model_fields[name].default if name else None
            if value is not None and value != default:
                yield name, "***" if name in SECRETS else value

    def __str__(self) -> str:
        return repr(self)
