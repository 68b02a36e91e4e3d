"""People who use the hub: what is known of them, and the rules that need no clock and no database."""

from __future__ import annotations

import re
from base64 import b32encode, urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2s

from hub.core.model import HubError
from hub.core.roles import OWN, PERMISSIONS, Access, Principal

SESSION_IDLE_S = 8 * 3_600
SESSION_LIFE_S = 7 * 86_400
SESSION_KEPT_S = 2 * SESSION_LIFE_S  # an ended one is known so long, so that its use afterwards is noticed
SESSION_SEEN_S = 60  # how exactly the hub remembers when one was used last
SESSIONS_MAX = 32  # of one person that have not ended; a new one ends the oldest
PEOPLE_MAX = 5_000
API_TOKENS_MAX = 100  # of one person, revoked and expired ones included
API_TOKEN_LIFE_MAX_S = 400 * 86_400
PASSKEYS_MAX = 16  # of one person
PASSWORD_MIN, PASSWORD_MAX = 12, 256  # characters
NAME_MAX = 100
TOKEN_PREFIX = "em_"

_LOGIN = re.compile(r"[a-z0-9][a-z0-9._+-]{0,62}(@[a-z0-9][a-z0-9.-]{0,189})?")
_API_TOKEN = re.compile(r"em_([a-z2-7]{12})_([A-Za-z0-9_-]{43})")


@dataclass(slots=True)
class Person:
    id: str  # "u-" and 16 of a-z, 2-7
    login: str
    name: str
    role: Access
    created_s: int
    password: str = ""  # Argon2id, in PHC form; "" = cannot sign in by password
    issuer: str | None = None  # of OIDC; with `subject` who it is there
    subject: str | None = None
    disabled_s: int = 0
    seen_s: int = 0
    role_from: str = ""  # "oidc": groups there gave the role, and take it; "" = somebody here did


@dataclass(slots=True)
class Session:
    """One browser that has signed in. `hash` is of its token; the token is in the cookie alone."""

    hash: bytes
    person: str
    created_s: int
    seen_s: int
    ended_s: int = 0
    how: str = "password"
    address: str = ""
    browser: str = ""

    def refusal(self, wall_s: int) -> str | None:
        """Why it does not count; None when it does."""
        if self.ended_s:
            return "session-ended"
        if wall_s >= self.created_s + SESSION_LIFE_S or wall_s >= self.seen_s + SESSION_IDLE_S:
            return "session-expired"
        return None


@dataclass(slots=True)
class Passkey:
    id: bytes
    person: str
    public_key: bytes  # COSE
    counter: int
    name: str
    created_s: int
    used_s: int = 0


@dataclass(slots=True)
class ApiToken:
    """Without its secret, which is shown once."""

    id: str
    person: str
    hash: bytes
    name: str
    scopes: tuple[str, ...]
    created_s: int
    not_after: int
    used_s: int = 0
    revoked_s: int = 0

    def refusal(self, wall_s: int) -> str | None:
        if self.revoked_s:
            return "token-revoked"
        return "token-expired" if wall_s >= self.not_after else None


def digest(secret: str) -> bytes:
    """What is stored of a session's or API token's secret: 256 random bits need no slow hash."""
    return blake2s(secret.encode()).digest()


def make_id(entropy: Callable[[int], bytes], prefix: str) -> str:
    return prefix + b32encode(entropy(10)).decode().lower()


def make_secret(entropy: Callable[[int], bytes]) -> str:
    """256 bits, as 43 characters that a cookie, a header and a file take."""
    return urlsafe_b64encode(entropy(32)).decode().rstrip("=")


def csrf_token(session_token: str) -> str:
    """What forms of a session carry: no page of somebody else knows it, because it comes of the cookie's secret."""
    mark = blake2s(b"csrf", key=blake2s(session_token.encode()).digest(), digest_size=24).digest()
    return urlsafe_b64encode(mark).decode()


def make_api_token(entropy: Callable[[int], bytes]) -> tuple[str, str, str]:
    """(id, secret, the whole text that is shown once)."""
    token_id = b32encode(entropy(8)).decode().lower().rstrip("=")[:12]
    secret = make_secret(entropy)
    return token_id, secret, f"{TOKEN_PREFIX}{token_id}_{secret}"


def split_api_token(text: str) -> tuple[str, str] | None:
    """(id, secret); None when it has not the form of one."""
    found = _API_TOKEN.fullmatch(text)
    return (found[1], found[2]) if found else None


def check_login(login: str) -> str:
    """Raises HubError."""
    if not _LOGIN.fullmatch(login):
        raise HubError(
            f"login {login!r}: a-z, 0-9 and . _ + - expected, at most 63 characters, or an email address "
            "in small letters. Write for example ada or ada@example.org"
        )
    return login


def check_name(name: str) -> str:
    """Raises HubError."""
    if len(name) > NAME_MAX or not name.isprintable():
        raise HubError(f"name: at most {NAME_MAX} printable characters expected. Use a shorter one")
    return name


def check_password(password: str, login: str) -> str:
    """Length is what counts (NIST SP 800-63B, section 5.1.1.2). Raises HubError, which never quotes the password."""
    if not PASSWORD_MIN <= len(password) <= PASSWORD_MAX:
        raise HubError(f"password: {PASSWORD_MIN} to {PASSWORD_MAX} characters expected. Several words make a good one")
    if password.lower() in (login, login * 2) or len(set(password)) < 5:
        raise HubError("password: too easily guessed. Several words make a good one")
    return password


def check_role(text: str) -> Access:
    try:
        return Access(text)
    except ValueError:
        raise HubError(f"role {text!r}: one of {', '.join(access.value for access in Access)} expected") from None


def check_scopes(scopes: tuple[str, ...], principal: Principal) -> tuple[str, ...]:
    """Known ones, of those that `principal` may do at all, or may do with what is their own. Raises HubError."""
    if not scopes:
        raise HubError("scopes: a token without any may do nothing. Give at least one, as in devices:read")
    unknown = sorted(set(scopes) - set(PERMISSIONS))
    if unknown:
        raise HubError(f"scope {unknown[0]!r}: there is none of this name. Known are {', '.join(PERMISSIONS)}")
    for scope in scopes:
        if not principal.may(scope) and not (scope in OWN and (principal.scopes is None or scope in principal.scopes)):
            raise HubError(f"scope {scope}: your role ({principal.role.value}) does not have it. Leave it out")
    return tuple(sorted(set(scopes)))
