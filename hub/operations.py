"""What people and programs do to the fleet, whichever way they ask: an action, and the audit row that tells of it.

`actor` is who it was, as `hub.core.audit.Entry` says. Each runs inside a write transaction of the caller's.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from edgeagent.proto.token import Token as JoinToken
from hub.core import actions, audit, policing
from hub.core.model import Device, Kind, Token
from hub.core.oidc import Oidc, check_settings
from hub.core.policy.compile import Policy
from hub.core.scribe import Scribe
from hub.store import oidcsettings
from hub.store.sqlite import SqliteTx


@dataclass(slots=True, frozen=True)
class Doing:
    """One write transaction, and who acts in it."""

    tx: SqliteTx
    scribe: Scribe
    wall_s: int
    actor: str

    def note(self, verb: str, object_: str, **detail: str | int) -> None:
        audit.record(self.tx, self.wall_s, self.actor, verb, object_, detail)


def create_token(
    do: Doing, *, uses: int = 1, not_after: int = 0, tags: tuple[str, ...] = (), needs_approval: bool = False
) -> JoinToken:
    token = actions.create_token(
        do.scribe, do.tx, do.wall_s, uses=uses, not_after=not_after, tags=tags, needs_approval=needs_approval
    )
    do.note("token.create", f"token:{token.claim}", uses=uses, expires=not_after, tags=" ".join(tags))
    return token


def invite_relay(do: Doing, *, region: str, uses: int = 1, not_after: int = 0) -> JoinToken:
    token = actions.invite_relay(do.scribe, do.tx, do.wall_s, region=region, uses=uses, not_after=not_after)
    do.note("relay.invite", f"token:{token.claim}", region=region, uses=uses, expires=not_after)
    return token


def revoke_token(do: Doing, claim: str) -> Token:
    token = actions.revoke_token(do.tx, claim, do.wall_s)
    do.note("token.revoke", f"token:{claim}", used=token.used)
    return token


def approve(do: Doing, device: Device) -> None:
    actions.approve_device(do.scribe, do.tx, device, do.wall_s)
    do.note("device.approve", f"device:{device.id}", name=device.name or "")
    do.tx.emit(f"{device.kind.value}.joined", do.wall_s, device=device.id, name=device.name or "")


def rename(do: Doing, device: Device, name: str) -> None:
    before = device.name or ""
    actions.rename_device(do.scribe, do.tx, device, name)
    do.note("device.rename", f"device:{device.id}", before=before, after=name)


def tag(do: Doing, device: Device, tags: tuple[str, ...]) -> None:
    before = " ".join(device.tags)
    actions.tag_device(do.scribe, do.tx, device, tags)
    do.note("device.tag", f"device:{device.id}", before=before, after=" ".join(device.tags))


def assign(do: Doing, device: Device, user: str) -> None:
    before = device.user
    actions.assign_device(do.scribe, do.tx, device, user)
    do.note("device.assign", f"device:{device.id}", before=before, after=user)


def expire(do: Doing, device: Device, not_after: int) -> None:
    """0: never."""
    actions.expire_device(do.scribe, do.tx, device, not_after, do.wall_s)
    do.note("device.expire", f"device:{device.id}", name=device.name or "", expires=not_after)


def remove(do: Doing, device: Device) -> None:
    """A device or a relay."""
    kind = "relay" if device.kind is Kind.RELAY else "device"
    actions.remove_device(do.scribe, do.tx, device, do.wall_s)
    do.note(f"{kind}.remove", f"{kind}:{device.id}", name=device.name or "")
    do.tx.emit(f"{kind}.removed", do.wall_s, device=device.id, name=device.name or "")


def set_oidc(do: Doing, settings: Oidc) -> None:
    """How people sign in elsewhere; an empty issuer ends that. The secret is not in the audit row."""
    before = oidcsettings.load(do.tx.connection)
    oidcsettings.save(do.tx.connection, check_settings(settings))
    changed = {name: value for name, value in asdict(settings).items() if value != getattr(before, name)}
    said = {name: "changed" if name == "client_secret" else str(value) for name, value in changed.items()}
    do.note("settings.oidc", "", **said)
    do.tx.note("settings")


def set_policy(do: Doing, text: str, author: str) -> Policy:
    """Raises PolicyError, and the one before goes on to hold."""
    policy = policing.set_policy(do.tx, do.wall_s, text, author)
    rules, tests = len(policy.document.rules), len(policy.document.tests)
    do.note("policy.set", f"policy:{policy.version}", rules=rules, tests=tests)
    do.tx.emit("policy.changed", do.wall_s, version=policy.version, by=author)
    do.tx.note("policy")
    return policy
