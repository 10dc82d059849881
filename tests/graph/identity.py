"""Microsoft Entra ID: one tenant, one app, tokens for what they may do."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count

import jwt
from cryptography.x509 import load_pem_x509_certificate

__all__ = ["Identity", "SignInRefused"]

ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


class SignInRefused(Exception):
    """A token was asked for in vain.

    Args:
        code: Of the AADSTS errors.
    """

    def __init__(self, error: str, code: int, message: str, status: int = 401) -> None:
        super().__init__(message)
        self.error, self.code, self.status = error, code, status


@dataclass
class Identity:
    """An app registration and the tokens given to it.

    Args:
        roles: Its application permissions.
        granted: Ids of the sites it may read by `Sites.Selected`.
        certificate: Its certificate in PEM; assertions are checked against it.
        lifetime: Seconds a token is good for.
    """

    tenant: str = "0f1e2d3c-0000-4000-8000-00000000000a"
    client_id: str = "5a6b7c8d-0000-4000-8000-00000000000b"
    secret: str = "emulator~secret"
    certificate: bytes | None = None
    roles: set[str] = field(default_factory=lambda: {"Sites.Read.All", "Files.Read.All"})
    granted: set[str] = field(default_factory=set)
    lifetime: int = 3599
    _tokens: dict[str, float] = field(default_factory=dict)
    _numbers: count[int] = field(default_factory=lambda: count(1))

    def grant_token(self, form: Mapping[str, str], tenant: str, audience: str) -> dict[str, object]:
        """Answer a token request.

        Args:
            audience: The token endpoint's URL, which an assertion must be addressed to.

        Raises:
            SignInRefused: With Entra's own codes.
        """
        if form.get("grant_type") == "refresh_token":  # what rclone does
            return self._token() | {"refresh_token": "another"}
        if tenant != self.tenant:
            raise SignInRefused("invalid_request", 90002, f"Tenant '{tenant}' not found.", 400)
        if form.get("client_id") != self.client_id:
            raise SignInRefused(
                "unauthorized_client", 700016, "Application was not found in the directory.", 400
            )
        if form.get("client_assertion_type") == ASSERTION:
            self._check_assertion(form.get("client_assertion", ""), audience)
        elif form.get("client_secret") != self.secret:
            # Entra does not say which. Who keeps it back even so, keeps it back in any case.
            reason = f"Invalid client secret provided: {form.get('client_secret')}."
            raise SignInRefused("invalid_client", 7000215, reason)
        return self._token()

    def knows(self, token: str) -> bool:
        """Tell whether a token was given out here and is still good."""
        return self._tokens.get(token, 0) > time.time()

    def issued(self, token: str) -> bool:
        """Tell whether a token was given out here at all."""
        return token in self._tokens

    def expire_tokens(self) -> None:
        """Let no token be good any longer, whatever was said of its lifetime."""
        self._tokens = dict.fromkeys(self._tokens, 0.0)

    def may_read(self, site_id: str) -> bool:
        """Tell whether the app's permissions reach a site."""
        return bool({"Sites.Read.All", "Sites.ReadWrite.All"} & self.roles) or (
            "Sites.Selected" in self.roles and site_id in self.granted
        )

    def _check_assertion(self, assertion: str, audience: str) -> None:
        assert self.certificate is not None, "No certificate is registered."
        key = load_pem_x509_certificate(self.certificate).public_key()
        try:
            jwt.decode(assertion, key, algorithms=["RS256", "PS256"], audience=audience)  # type: ignore[arg-type]  # RSA
        except jwt.InvalidTokenError as error:
            reason = f"Client assertion is not within its valid scope: {type(error).__name__}."
            raise SignInRefused("invalid_client", 700027, reason) from None

    def _token(self) -> dict[str, object]:
        claims = {"appid": self.client_id, "roles": sorted(self.roles), "n": next(self._numbers)}
        token = ".".join(_base64url(part) for part in ({"typ": "JWT", "alg": "none"}, claims, {}))
        self._tokens[token] = time.time() + self.lifetime
        return {
            "token_type": "Bearer",
            "expires_in": self.lifetime,
            "ext_expires_in": self.lifetime,
            "access_token": token,
        }


def _base64url(part: Mapping[str, object]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
