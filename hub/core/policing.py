"""The network's policy at work: which one holds, what devices are told of it, and who is told anew when it changes.

A new policy starts a round through all members in small steps. A device gets a new map if its slice is another than the
one in its map, and those who know it get its new record if its user's groups are others than those in it.
"""

from __future__ import annotations

from typing import Any

from edgeagent.proto.prefixes import Prefix
from hub.core.model import Device, DeviceState, HubError, JobKind, Kind, StoredPolicy
from hub.core.on_routes import in_use
from hub.core.policy.compile import Facts, Policy, digest
from hub.core.policy.document import Document
from hub.core.policy.evaluate import check, load
from hub.core.policy.problems import PolicyError
from hub.core.relays import ROUND_STEP, round_waits
from hub.core.store import Tx

HISTORY_MAX = 100  # versions that are kept, the newest first
AUTHOR_MAX = 200


class Policing:
    """The policy that holds, compiled once a version. Without a policy everything is allowed."""

    def __init__(self) -> None:
        self._compiled: Policy | None = None

    def current(self, tx: Tx) -> Policy | None:
        """None when there is none."""
        version = tx.policy_version()
        if not version:
            return None
        if self._compiled is None or self._compiled.version != version:
            stored = tx.policy(version)
            assert stored is not None
            try:
                self._compiled = load(stored.text, version)
            except PolicyError:  # another version of this program took it: what it cannot read allows nothing
                self._compiled = Policy(Document(), version)
        return self._compiled

    def slice_of(self, tx: Tx, device: Device) -> dict[str, Any] | None:
        """A map's `po`; None for none. Relays have no traffic of their own to judge."""
        policy = self.current(tx)
        return None if policy is None or device.kind is Kind.RELAY else policy.slice_for(facts_of(tx, device))

    def groups_of(self, tx: Tx, device: Device) -> list[str]:
        """A record's `gr`."""
        policy = self.current(tx)
        return [] if policy is None else list(policy.groups_of(facts_of(tx, device).person))

    def may_meet(self, tx: Tx, a: Device, b: Device) -> bool:
        """Whether either may reach the other by anything."""
        policy = self.current(tx)
        return policy is None or policy.may_meet(facts_of(tx, a), facts_of(tx, b))

    def approves_route(self, tx: Tx, prefix: Prefix, device: Device) -> bool:
        """Whether a device's word that it routes `prefix` needs nobody's approval (autoApprovers)."""
        policy = self.current(tx)
        if policy is None:
            return False
        person = facts_of(tx, device).person
        return policy.auto_approves(prefix, device.tags, person, policy.groups_of(person))

    def step(self, tx: Tx, after: str) -> bool:
        """One step of a round through all members. True: it was the last one."""
        if round_waits(tx, JobKind.POLICY, "", after):
            return False
        members = tx.devices(after=after, limit=ROUND_STEP, state=DeviceState.ACTIVE)
        for member in members:
            if member.kind is Kind.DEVICE:
                self._refresh(tx, member)
        if len(members) == ROUND_STEP:
            tx.add_job(JobKind.POLICY, "", members[-1].id)
        return len(members) < ROUND_STEP

    def _refresh(self, tx: Tx, member: Device) -> None:
        if digest(self.slice_of(tx, member)) != member.slice_digest:
            tx.add_job(JobKind.MAP, "", member.id)
        if member.record and groups_digest(self.groups_of(tx, member)) != member.groups_digest:
            member.record = b""
            tx.save_device(member)
            tx.add_jobs_for_acquaintances(JobKind.REC, member.id)


def facts_of(tx: Tx, device: Device) -> Facts:
    """What a policy looks at in a device of the store `tx`."""
    addresses = []
    if device.v4 is not None:
        addresses.append(device.v4.to_bytes(4, "big"))
    if device.v6 is not None:
        addresses.append(device.v6)
    routes = tuple(sorted(in_use(tx.routes(device.id))))
    clients = tuple(address for each in tx.clients(device.id) for address in (each.v4.to_bytes(4, "big"), each.v6))
    return Facts(
        tags=device.tags, user=device.user, addresses=tuple(addresses), routes=routes, id=device.id, clients=clients
    )


def groups_digest(groups: list[str]) -> bytes:
    """Empty for no groups."""
    return digest({"u": "", "in": groups, "out": []}) if groups else b""


def check_policy(tx: Tx, text: str, version: int = 0) -> Policy:
    """The policy that `text` is, its tests run against the devices that there are. Raises PolicyError."""
    return check(text, version, lambda address: _find(tx, address))


def set_policy(tx: Tx, wall_s: int, text: str, author: str) -> Policy:
    """From now on this policy holds; raises PolicyError, and the one before goes on to hold."""
    if not author or len(author) > AUTHOR_MAX or not author.isprintable():
        raise HubError(f"author: printable text of 1 to {AUTHOR_MAX} characters expected")
    version = tx.policy_version() + 1
    policy = check_policy(tx, text, version)
    tx.add_policy(StoredPolicy(version, text, author, wall_s))
    tx.drop_policies(version - HISTORY_MAX)
    tx.add_job(JobKind.POLICY, "", "")
    return policy


def find_policy(tx: Tx, version: int = 0) -> StoredPolicy:
    """One version that is kept; 0 = the newest. Raises HubError when there is none."""
    newest = tx.policy_version()
    if not newest:
        raise HubError("there is no policy: every device may reach every other. `edgehub policy set FILE` sets one")
    stored = tx.policy(version or newest)
    if stored is None:
        raise HubError(f"policy version {version}: it is not kept. `edgehub policy history` shows those that are")
    return stored


def _find(tx: Tx, address: bytes) -> Facts | None:
    found = tx.device_by_v4(int.from_bytes(address, "big")) if len(address) == 4 else tx.device_by_v6(address)
    return None if found is None else facts_of(tx, found)
