"""What people and programs do to the fleet, whichever way they ask: an action, and the audit row that tells of it.

`actor` is who it was, as `hub.core.audit.Entry` says. Each runs inside a write transaction of the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from edgeagent.proto import prefixes
from edgeagent.proto.token import Token as JoinToken
from hub.core import actions, audit, clients, naming, policing, routes
from hub.core.model import Client, Device, Kind, Token
from hub.core.oidc import Oidc, check_settings
from hub.core.people import check_login
from hub.core.policy.compile import Policy
from hub.core.scribe import Scribe
from hub.store import oidcsettings
from hub.store.sql import SqlTx


@dataclass(slots=True, frozen=True)
class Doing:
    """One write transaction, and who acts in it."""

    tx: SqlTx
    scribe: Scribe
    wall_s: int
    actor: str

    def note(self, verb: str, object_: str, **detail: str | int) -> None:
        audit.record(self.tx, self.wall_s, self.actor, verb, object_, detail)


def create_token(
    do: Doing,
    *,
    uses: int = 1,
    not_after: int = 0,
    tags: tuple[str, ...] = (),
    needs_approval: bool = False,
    user: str = "",
) -> JoinToken:
    """`user`: whose the devices are that join with it, a login."""
    token = actions.create_token(
        do.scribe,
        do.tx,
        do.wall_s,
        uses=uses,
        not_after=not_after,
        tags=tags,
        needs_approval=needs_approval,
        user=check_login(user) if user else "",
    )
    do.note("token.create", f"token:{token.claim}", uses=uses, expires=not_after, tags=" ".join(tags), user=user)
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


def approve_routes(do: Doing, device: Device, wanted: Iterable[str] = ()) -> list[str]:
    """Let others use what the device offers: prefixes, or `exit`; all without any. Returns those that are new."""
    new = routes.approve(do.scribe, do.tx, device, routes.read_prefixes(wanted))
    return _routes_changed(do, "routes.approve", device, new)


def unapprove_routes(do: Doing, device: Device, wanted: Iterable[str] = ()) -> list[str]:
    """Take approval back: of what is said, of all without any. Returns those that it was taken from."""
    gone = routes.unapprove(do.scribe, do.tx, device, routes.read_prefixes(wanted))
    return _routes_changed(do, "routes.unapprove", device, gone)


def _routes_changed(do: Doing, verb: str, device: Device, changed: list[prefixes.Prefix]) -> list[str]:
    texts = [prefixes.to_text(prefix) for prefix in changed]
    if texts:
        do.note(verb, f"device:{device.id}", name=device.name or "", prefixes=" ".join(texts))
        do.tx.note("routes")
    return texts


def add_client(
    do: Doing, *, name: str, gateway: Device, endpoint: str, public_key: bytes | None = None
) -> tuple[clients.Added, str]:
    """(the client, what its WireGuard app reads). The text has its private key where `public_key` is None."""
    added = clients.add(do.scribe, do.tx, do.wall_s, name=name, gateway=gateway, public_key=public_key)
    text = clients.config(do.tx, added, endpoint=endpoint)
    address = clients.addresses(added.client)[0]
    do.note("client.add", f"client:{name}", gateway=gateway.name or gateway.id, address=address)
    do.tx.emit("client.added", do.wall_s, client=name, gateway=gateway.id)
    do.tx.note("clients")
    return added, text


def remove_client(do: Doing, name: str) -> Client:
    gone = clients.remove(do.scribe, do.tx, name)
    do.note("client.remove", f"client:{name}", address=clients.addresses(gone)[0])
    do.tx.emit("client.removed", do.wall_s, client=name, gateway=gone.gateway)
    do.tx.note("clients")
    return gone


def set_search(do: Doing, domains: list[str] | None) -> None:
    """None: the network's own domain alone."""
    naming.set_search(do.tx, domains)
    _names_changed(do, "names.search", "", domains="default" if domains is None else " ".join(domains) or "none")


def set_split(do: Doing, domain: str, resolvers: list[str]) -> None:
    naming.set_split(do.tx, domain, resolvers)
    _names_changed(do, "names.split", f"domain:{domain}", resolvers=" ".join(resolvers))


def unset_split(do: Doing, domain: str) -> None:
    naming.unset_split(do.tx, domain)
    _names_changed(do, "names.unsplit", f"domain:{domain}")


def set_resolvers(do: Doing, resolvers: list[str]) -> None:
    """None of them: other names are left to what each device's host has."""
    naming.set_resolvers(do.tx, resolvers)
    _names_changed(do, "names.resolvers", "", resolvers=" ".join(resolvers) or "none")


def add_record(do: Doing, name: str, kind: str, value: str) -> naming.NameRecord:
    made = naming.add_record(do.tx, name, kind, value)
    _names_changed(do, "names.record.add", f"name:{made.name or naming.APEX}", type=made.kind, value=made.value)
    return made


def remove_record(do: Doing, name: str, kind: str = "", value: str = "") -> list[naming.NameRecord]:
    """Those of a name, or of one type, or the one of that value. Returns what was removed."""
    gone = naming.remove_record(do.tx, name, kind, value)
    said = " ".join(f"{each.kind} {each.value}" for each in gone)
    _names_changed(do, "names.record.remove", f"name:{gone[0].name or naming.APEX}", count=len(gone), records=said)
    return gone


def _names_changed(do: Doing, verb: str, object_: str, **detail: str | int) -> None:
    do.note(verb, object_, **detail)
    do.tx.note("names")
