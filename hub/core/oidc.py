"""Signing in by OpenID Connect: the settings, and what an ID token must say (Core 1.0, section 3.1.3.7)."""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

from hub.core.model import HubError
from hub.core.roles import Access

LEEWAY_S = 60
TOKEN_AGE_MAX_S = 600
ISSUER_MAX = 300
GROUPS_MAX = 64  # that are mapped
# Signed by the provider's private key: `none` and HMAC with the client's secret are not among them.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA", "Ed25519")

# https, or plain HTTP on this very machine; neither query nor fragment (OpenID Connect Discovery 1.0, section 3).
_ISSUER = re.compile(r"(https://[^\s/?#@\\]+|http://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?)(/[^\s?#\\]*)?")


@dataclass(slots=True, frozen=True)
class Oidc:
    """The provider, and who of those that it vouches for may come in as what."""

    issuer: str = ""  # "" = nobody signs in this way
    client_id: str = ""
    client_secret: str = ""
    label: str = "single sign-on"  # on the button
    domains: tuple[str, ...] = ()  # of email addresses; none = all
    groups_claim: str = "groups"
    roles: dict[str, str] = field(default_factory=dict)  # group: role
    default_role: str = ""  # of those in no such group; "" = they may not come in


@dataclass(slots=True, frozen=True)
class Vouched:
    """Who the provider says it is."""

    issuer: str
    subject: str
    login: str  # verified email address, in small letters
    name: str
    role: Access | None  # by groups or by default; None = nothing was said


class Untrusted(Exception):
    """Why the provider's answer does not count; `code` is for the audit log."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def challenge(verifier: str) -> str:
    """PKCE, S256 (RFC 7636, section 4.2)."""
    return urlsafe_b64encode(sha256(verifier.encode()).digest()).decode().rstrip("=")


def check_claims(settings: Oidc, claims: dict[str, Any], nonce: str, wall_s: int) -> Vouched:
    """Of an ID token whose signature is good. Raises Untrusted."""
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    subject, expires, issued = claims.get("sub"), claims.get("exp"), claims.get("iat")
    if claims.get("iss") != settings.issuer:
        raise Untrusted("oidc-issuer", "the token is of another issuer")
    if settings.client_id not in audiences:
        raise Untrusted("oidc-audience", "the token is for somebody else")
    if (len(audiences) > 1 or "azp" in claims) and claims.get("azp") != settings.client_id:
        raise Untrusted("oidc-azp", "the token was given to somebody else")
    if not isinstance(expires, int | float) or wall_s >= expires + LEEWAY_S:
        raise Untrusted("oidc-expired", "the token is too old. Is a clock wrong?")
    if not isinstance(issued, int | float) or not -LEEWAY_S <= wall_s - issued <= TOKEN_AGE_MAX_S:
        raise Untrusted("oidc-expired", "the token is of another time. Is a clock wrong?")
    said_nonce = claims.get("nonce")
    if not isinstance(said_nonce, str) or not hmac.compare_digest(said_nonce.encode(), nonce.encode()):
        raise Untrusted("oidc-nonce", "the token is not of this sign-in")
    if not isinstance(subject, str) or not 0 < len(subject) <= 255:
        raise Untrusted("oidc-subject", "the token names nobody")
    email = claims.get("email")
    if not isinstance(email, str) or claims.get("email_verified") is not True:
        raise Untrusted("oidc-email", "the provider did not verify an email address")
    login = email.lower()
    if settings.domains and login.rpartition("@")[2] not in settings.domains:
        raise Untrusted("oidc-domain", "addresses of this domain are not let in")
    name = claims.get("name")
    return Vouched(
        settings.issuer, subject, login, name[:100] if isinstance(name, str) else "", _role(settings, claims)
    )


def check_settings(settings: Oidc) -> Oidc:
    """Raises HubError."""
    if settings.issuer and not (len(settings.issuer) <= ISSUER_MAX and _ISSUER.fullmatch(settings.issuer)):
        raise HubError(
            f"issuer {settings.issuer[:ISSUER_MAX]}: https:// and a host expected, exactly as the provider names itself"
        )
    if settings.issuer and not (settings.client_id and settings.client_secret):
        raise HubError("oidc: a client id and its secret are needed too (--client-id, --client-secret-file)")
    check_roles(settings.roles, settings.default_role)
    return settings


def keep_secret(new: Oidc, before: Oidc) -> Oidc:
    """Without a secret of their own `new` settings go on with the one of `before`, where they name the same provider
    and client: another provider would be told it."""
    same = (new.issuer, new.client_id) == (before.issuer, before.client_id)
    return replace(new, client_secret=before.client_secret) if same and not new.client_secret else new


def check_roles(roles: dict[str, str], default: str) -> None:
    """Raises HubError. Nobody becomes owner by a group: a provider's mistake must not give the hub away."""
    if len(roles) > GROUPS_MAX:
        raise HubError(f"{len(roles)} groups: at most {GROUPS_MAX} expected")
    known = [access.value for access in Access if access is not Access.OWNER]
    for role in (*roles.values(), *([default] if default else [])):
        if role not in known:
            raise HubError(f"role {role!r}: one of {', '.join(known)} expected")


def _role(settings: Oidc, claims: dict[str, Any]) -> Access | None:
    said = claims.get(settings.groups_claim)
    groups = {group for group in said if isinstance(group, str)} if isinstance(said, list) else set()
    given = {settings.roles[group] for group in groups if group in settings.roles}
    for access in Access:  # the highest of them
        if access.value in given:
            return access
    return Access(settings.default_role) if settings.default_role else None
