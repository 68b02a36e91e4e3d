"""Who may do what in the hub: one table, for pages, API and API tokens alike.

An action is `thing:verb`. An API token's scopes are actions too; what it may do is what both its scopes and its owner's
role allow.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Access(Enum):
    """What a person is to the hub. Not `Role`, which is what an MQTT account may do."""

    OWNER = "owner"  # everything, other owners too
    ADMIN = "admin"  # everything but owners and how people sign in
    OPERATOR = "operator"  # runs the fleet: devices, tokens, relays, routes, commands
    AUDITOR = "auditor"  # sees everything, the audit log too, and changes nothing
    VIEWER = "viewer"  # sees the fleet


_EVERYBODY = frozenset(Access)
_LOOKS_CLOSELY = frozenset((Access.OWNER, Access.ADMIN, Access.OPERATOR, Access.AUDITOR))
_RUNS = frozenset((Access.OWNER, Access.ADMIN, Access.OPERATOR))
_RULES = frozenset((Access.OWNER, Access.ADMIN))
_OVERSEES = frozenset((Access.OWNER, Access.ADMIN, Access.AUDITOR))
_OWNS = frozenset((Access.OWNER,))

PERMISSIONS: dict[str, frozenset[Access]] = {
    "network:read": _EVERYBODY,
    "devices:read": _EVERYBODY,
    "devices:write": _RUNS,
    "tokens:read": _LOOKS_CLOSELY,
    "tokens:write": _RUNS,
    "relays:read": _EVERYBODY,
    "relays:write": _RUNS,
    "routes:read": _EVERYBODY,
    "routes:write": _RUNS,
    "clients:read": _EVERYBODY,
    "clients:write": _RUNS,
    "names:read": _EVERYBODY,
    "names:write": _RULES,
    "policy:read": _LOOKS_CLOSELY,
    "policy:write": _RULES,
    "lock:read": _LOOKS_CLOSELY,
    "lock:write": _RULES,
    "commands:read": _LOOKS_CLOSELY,
    "commands:run": _RUNS,
    "rollouts:read": _EVERYBODY,
    "rollouts:write": _RUNS,
    "rollouts:approve": _RULES,
    "rigs:read": _EVERYBODY,
    "rigs:write": _RUNS,
    "rigs:manage": _RULES,
    "claims:read": _RUNS,
    "claims:write": _RUNS,
    "users:read": _OVERSEES,
    "users:write": _RULES,
    "apitokens:read": _OVERSEES,
    "apitokens:write": _RULES,
    "sessions:write": _RULES,
    "webhooks:read": _OVERSEES,
    "webhooks:write": _RULES,
    "audit:read": _OVERSEES,
    "metrics:read": _LOOKS_CLOSELY,
    "settings:read": _OVERSEES,
    "settings:write": _RULES,
    "signin:write": _OWNS,
}

# What everybody may do with what is their own, whatever their role.
OWN = frozenset(("devices:write", "apitokens:read", "apitokens:write", "sessions:write", "users:read"))


@dataclass(slots=True, frozen=True)
class Principal:
    """Who makes a request: a person in a browser, or a program with that person's API token."""

    user: str  # id
    login: str
    name: str
    role: Access
    scopes: frozenset[str] | None = None  # of an API token; None in a browser
    token: str = ""  # id of the API token
    session: bytes = b""  # hash of the session's token; empty for an API token
    csrf: str = ""  # what writes of this session must bring; empty for an API token

    @property
    def actor(self) -> str:
        """As audit rows name it."""
        return f"user:{self.login}" if not self.token else f"token:{self.token} of user:{self.login}"

    def may(self, action: str, owner: str | None = None) -> bool:
        """`owner`: the login whose object it is about, "" for nobody's. KeyError for an action not in the table."""
        allowed = self.role in PERMISSIONS[action]
        if self.scopes is not None and action not in self.scopes:
            return False
        return allowed or (bool(owner) and owner == self.login and action in OWN)
