from __future__ import annotations

import asyncio
import json
import logging
import re
import subprocess
import time

import pytest
from azure.core.credentials import AccessToken
from azure.identity import aio

from dagster_tools.errors import (
    ConfigurationError,
    SharePointAccessDenied,
    SharePointError,
    SharePointThrottled,
)
from dagster_tools.sharepoint import (
    CLOUDS,
    ClientCertificate,
    ClientSecret,
    Cloud,
    GraphClient,
    ManagedIdentity,
    Retry,
)
from dagster_tools.sharepoint.throttle import requested_pause
from tests.fix_graph import HASTY, client_of
from tests.graph import Graph
from tests.graph.faults import delayed, failing, garbled, reset, throttled


async def ask(graph: Graph, **options: object) -> object:
    async with client_of(graph, **options) as client:
        answer = await client.get("/sites/root", "root site")
        return answer.body["displayName"]


class Credential:
    """One of the user's own, that is not asynchronous."""

    def __init__(self, graph: Graph, lifetime: int = 3600) -> None:
        self.graph, self.lifetime = graph, lifetime
        self.options: list[dict[str, object]] = []

    def get_token(self, *scopes, **options):
        self.options.append(options)
        token = self.graph.identity._token()["access_token"]
        return AccessToken(token, int(time.time()) + self.lifetime)


# --- signing in -----------------------------------------------------------------------------


async def test_an_app_signs_in_with_its_secret(graph):
    assert await ask(graph) == "Contoso"


@pytest.mark.parametrize("given", ["path", "text", "bytes"])
async def test_an_app_signs_in_with_its_certificate(graph, tmp_path, given):
    path = certificate(tmp_path)
    graph.identity.certificate = path.read_bytes()
    values = {"path": str(path), "text": path.read_text(), "bytes": path.read_bytes()}
    credentials = ClientCertificate(graph.identity.tenant, graph.identity.client_id, values[given])

    assert await ask(graph, credentials=credentials) == "Contoso"


async def test_another_apps_certificate_is_refused(graph, tmp_path):
    graph.identity.certificate = certificate(tmp_path).read_bytes()
    other = certificate(tmp_path).read_bytes()
    credentials = ClientCertificate(graph.identity.tenant, graph.identity.client_id, other)

    with pytest.raises(SharePointAccessDenied, match=r"AADSTS700027.*Upload the certificate"):
        await ask(graph, credentials=credentials)


async def test_a_credential_of_azure_identity_is_used_and_stays_open(graph):
    identity = graph.identity
    async with aio.ClientSecretCredential(
        identity.tenant,
        identity.client_id,
        identity.secret,
        authority=graph.url,
        disable_instance_discovery=True,
        connection_verify=str(graph.ca_file),
    ) as credential:
        assert await ask(graph, credentials=credential) == "Contoso"
        assert (await credential.get_token("another/.default")).token


async def test_a_credential_that_is_not_asynchronous_is_used_too(graph):
    assert await ask(graph, credentials=Credential(graph)) == "Contoso"


@pytest.mark.parametrize(
    ("credentials", "code", "remedy"),
    [
        ({"secret": "wrong~but~secret"}, "AADSTS7000215", "Give the secret's value"),
        ({"client_id": "unknown"}, "AADSTS700016", "Look up the client id"),
        ({"tenant": "elsewhere"}, "AADSTS90002", "Look up the tenant"),
    ],
)
async def test_a_refused_sign_in_says_what_to_do_and_no_secret(graph, credentials, code, remedy):
    identity = graph.identity
    right = {
        "tenant": identity.tenant,
        "client_id": identity.client_id,
        "secret": identity.secret,
    }
    given = right | credentials

    with pytest.raises(SharePointAccessDenied, match=f"{code}.*{remedy}") as caught:
        await ask(graph, credentials=ClientSecret(**given))

    assert caught.value.code == code
    assert given["secret"] not in str(caught.value)


async def test_a_sign_in_that_cannot_be_reached_names_the_place(graph):
    cloud = Cloud("https://localhost:1", graph.url)

    with pytest.raises(SharePointError, match="Could not reach https://localhost:1 to sign in"):
        await ask(graph, cloud=cloud)


async def test_a_certificate_that_cannot_be_read_is_an_error_before_anything_is_sent(graph):
    credentials = ClientCertificate("tenant", "app", "-----BEGIN NOTHING-----")

    with pytest.raises(ConfigurationError, match="certificate of app app cannot be used"):
        await ask(graph, credentials=credentials)

    assert graph.received == []


def test_each_cloud_has_its_own_sign_in_and_graph():
    assert CLOUDS["us-dod"].scope == "https://dod-graph.microsoft.us/.default"
    assert len({cloud.graph for cloud in CLOUDS.values()}) == len(CLOUDS)


def test_a_secret_is_not_sent_where_anybody_can_read_it():
    with pytest.raises(ConfigurationError, match="must be an https URL"):
        Cloud("http://localhost:1", "https://localhost:2")


@pytest.mark.parametrize(
    "credentials",
    [
        ClientSecret("tenant", "app", "hush"),
        ClientCertificate("tenant", "app", "hush", "hush"),
        GraphClient(ClientSecret("tenant", "app", "hush")),
    ],
)
def test_no_repr_shows_a_secret(credentials):
    assert "hush" not in f"{credentials!r} {credentials}"


async def test_a_managed_identity_is_asked_for_where_there_is_one(graph, monkeypatch):
    """By the protocol of App Service: Azure documentation, "REST endpoint reference"."""
    monkeypatch.setenv("IDENTITY_ENDPOINT", "http://127.0.0.1:1/token")
    monkeypatch.setenv("IDENTITY_HEADER", "header")

    with pytest.raises(SharePointError, match="sign in"):
        await ask(graph, credentials=ManagedIdentity())


# --- tokens that expire ---------------------------------------------------------------------


async def test_an_expired_token_is_renewed_and_the_request_repeated(graph):
    async with client_of(graph) as client:
        await client.get("/sites/root", "root site")
        graph.identity.expire_tokens()

        answer = await client.get("/sites/root", "root site")

    assert answer.status == 200
    assert graph.count("token") == 2


async def test_a_credential_of_the_users_is_asked_for_a_token_that_is_not_from_before(graph):
    credential = Credential(graph)

    async with client_of(graph, credentials=credential) as client:
        await client.get("/sites/root", "root site")
        graph.identity.expire_tokens()
        await client.get("/sites/root", "root site")

    first, second = credential.options
    assert first == {}
    assert json.loads(second["claims"])["access_token"]["nbf"]["essential"]


async def test_requests_that_find_the_token_expired_together_renew_it_once(graph):
    async with client_of(graph, concurrency=8) as client:
        await client.get("/sites/root", "root site")
        graph.identity.expire_tokens()

        await asyncio.gather(*(client.get("/sites/root", "root site") for _ in range(8)))

    assert graph.count("token") == 2


@pytest.mark.parametrize(("lifetime", "asked"), [(3600, 1), (200, 2)])
async def test_a_token_near_its_end_is_replaced_before_it_is_used(graph, lifetime, asked):
    credential = Credential(graph, lifetime)

    async with client_of(graph, credentials=credential) as client:
        await client.get("/sites/root", "root site")
        await client.get("/sites/root", "root site")

    assert len(credential.options) == asked


async def test_a_token_that_is_refused_again_is_an_error(graph):
    graph.faults.add("site", failing(401, "InvalidAuthenticationToken"), times=9)

    with pytest.raises(SharePointAccessDenied, match="401 InvalidAuthenticationToken"):
        await ask(graph)

    assert graph.count("site") == 2


# --- patience -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        *(pytest.param(failing(status), id=str(status)) for status in (408, 500, 502, 503, 504)),
        pytest.param(garbled(), id="half of an answer"),
        pytest.param(reset(), id="connection reset"),
    ],
)
async def test_trouble_of_the_service_is_waited_out(graph, fault):
    graph.faults.add("site", fault, times=3)

    assert await ask(graph) == "Contoso"
    assert graph.count("site") == 4


async def test_a_service_that_stays_in_trouble_is_an_error_in_the_end(graph):
    graph.faults.add("site", failing(502, "badGateway"), times=99)

    with pytest.raises(SharePointError, match=r"root site.*502 badGateway") as caught:
        await ask(graph)

    assert (caught.value.status, graph.count("site")) == (502, HASTY.attempts)
    assert caught.value.request_id


async def test_no_answer_in_time_is_tried_again(graph):
    graph.faults.add("site", delayed(30))

    assert await ask(graph, timeout=0.1) == "Contoso"


@pytest.mark.parametrize("status", [400, 403, 404, 409, 423])
async def test_what_the_service_refuses_is_not_asked_for_again(graph, status):
    graph.faults.add("site", failing(status, "refused"), times=9)

    with pytest.raises(SharePointError, match="refused"):
        await ask(graph)

    assert graph.count("site") == 1


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("as_date", [False, True], ids=["seconds", "date"])
async def test_nobody_in_the_process_sends_anything_before_the_time_is_over(graph, status, as_date):
    """Two clients, one of which is told to wait."""
    graph.faults.add("site", throttled(1, status=status, as_date=as_date))

    async with client_of(graph) as one, client_of(graph) as other:
        first = asyncio.create_task(one.get("/sites/root", "root site"))
        while not graph.count("site"):  # noqa: ASYNC110  # it happens in another thread
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        await asyncio.gather(first, *(other.get("/sites/root", "root site") for _ in range(3)))

    told, *others = [each.at for each in graph.received if each.route == "site"]
    assert len(others) == 4
    assert min(others) - told >= 1


async def test_more_patience_than_there_is_is_an_error_at_once(graph):
    graph.faults.add("site", throttled(3600))

    with pytest.raises(SharePointThrottled, match=r"left alone for 3600 s.*root site") as caught:
        await ask(graph, retry=Retry(patience=60))

    assert caught.value.retry_after == pytest.approx(3600, abs=5)
    assert graph.count("site") == 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "7", "RateLimit-Reset": "30"}, 30),
        ({"Retry-After": "soon"}, None),
        # A date is the service's, and so is the time it counts from.
        (
            {
                "Retry-After": "Wed, 21 Oct 2015 07:28:30 GMT",
                "Date": "Wed, 21 Oct 2015 07:28:00 GMT",
            },
            30,
        ),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
    ],
)
def test_a_pause_is_asked_for_in_seconds_or_until_a_date(headers, seconds):
    assert requested_pause(headers) == seconds


# --- discretion -----------------------------------------------------------------------------


async def test_neither_token_nor_secret_reaches_a_log_or_an_error(graph, caplog):
    caplog.set_level(logging.DEBUG)
    graph.faults.add("site", failing(403, "accessDenied"))

    with pytest.raises(SharePointError) as caught:
        await ask(graph)

    tokens = list(graph.identity._tokens)
    seen = f"{caplog.text} {caught.value} {caught.value.__dict__} {caught.value!r}"
    assert tokens
    assert not any(secret in seen for secret in [graph.identity.secret, *tokens])


async def test_a_missing_permission_is_named_with_those_there_are(graph):
    graph.identity.roles = {"User.Read.All"}

    with pytest.raises(
        SharePointAccessDenied, match=r"needs.*Sites.Selected.*It has: User.Read.All"
    ):
        await ask(graph)


async def test_a_certificate_that_is_not_trusted_is_an_error_at_once(graph):
    with pytest.raises(SharePointError, match=r"not signed by an authority.*ca_file"):
        await ask(graph, credentials=Credential(graph), ca_file=None)


async def test_requests_at_a_time_are_no_more_than_the_concurrency(graph):
    graph.faults.add("site", delayed(0.05), times=20)
    most = 0

    async with client_of(graph, concurrency=3) as client:
        requests = [asyncio.create_task(client.get("/sites/root", "site")) for _ in range(9)]
        while not all(request.done() for request in requests):
            answered = sum(request.done() for request in requests)
            most = max(most, graph.count("site") - answered)
            await asyncio.sleep(0.005)

    assert most == 3


async def test_microsoft_is_told_who_asks(graph):
    await ask(graph)

    assert re.match(r"NONISV\|dagster-tools/\d", graph.received[-1].user_agent)


def certificate(folder):
    """A new self-signed certificate with its key, in PEM."""
    key, cert, both = (folder / name for name in ("key.pem", "cert.pem", "both.pem"))
    files = ["-keyout", str(key), "-out", str(cert)]
    subprocess.run(
        [*["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=app"], *files],
        check=True,
        capture_output=True,
    )
    both.write_bytes(key.read_bytes() + cert.read_bytes())
    return both
