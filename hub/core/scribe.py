"""What the hub signs and seals, and where it goes: every message to a device is made here and put into the outbox."""

from __future__ import annotations

from typing import Any

from edgeagent.proto import topics
from edgeagent.proto.codec import decode, encode
from edgeagent.proto.crypto import Crypto
from edgeagent.proto.envelope import write_down, write_hub_state
from edgeagent.proto.keys import Entropy
from edgeagent.proto.relay_pass import write_pass
from edgeagent.proto.seal import seal_box
from edgeagent.proto.signed import sign_object
from hub.core import ipam, on_rollouts, on_routes
from hub.core.lock import LockView
from hub.core.model import (
    NODE_KEY_GRACE_S,
    NODE_KEY_LIFE_S,
    PASS_LIFE_S,
    PASS_RENEW_S,
    RECORD_LIFE_S,
    RECORD_RENEW_S,
    Device,
    DeviceState,
    JobKind,
    Kind,
    Network,
    Op,
    Outgoing,
)
from hub.core.nats import Authority, hosts_for
from hub.core.policing import Policing, groups_digest
from hub.core.policy.compile import digest
from hub.core.store import Tx

UNKNOWN_TTL_S = 30  # an operator who opens a way tries it soon
FORBIDDEN_TTL_S = 300
PASS_REGIONS_MAX = PASS_RELAYS_MAX = 8
PASS_NAMES_BYTES_MAX = 720  # what they may take of a pass
NODE_KEYS_SHOWN_MAX = 4
_DATES_SLACK_S = 3_600
_EMPTY = b""


class Scribe:
    """Stateless but for the network's keys, and what was decoded last of relays, policy, names and the lock.

    Each method writes rows of the transaction it is given, and no more.
    """

    def __init__(self, crypto: Crypto, entropy: Entropy, network: Network) -> None:
        self.crypto = crypto
        self.entropy = entropy
        self.network = network
        self.policing = Policing()
        self._relays: tuple[bytes, list[dict[str, Any]]] = (b"", [])
        self._names: tuple[bytes, dict[str, Any]] = (b"", {})
        self.lock = LockView(crypto, network.id)
        self.nats = Authority(crypto, network) if network.nats else None

    def record(self, tx: Tx, device: Device, wall_s: int) -> bytes:
        """The device's signed record; signed anew, and the device saved, when there is none that holds."""
        if device.record:
            return device.record
        end = wall_s + RECORD_LIFE_S
        if device.not_after:
            end = min(end, device.not_after)
        groups = self.policing.groups_of(tx, device)
        device.groups_digest = groups_digest(groups)
        device.record_epoch, device.record_seq = self.network.epoch, tx.next_seq()
        node_keys = self._node_keys(tx, device)
        device.record = sign_object(
            self.crypto,
            self.network.seed,
            kind="record",
            network=self.network.id,
            subject=device.id,
            epoch=device.record_epoch,
            seq=device.record_seq,
            wall_s=wall_s,
            not_before=min(wall_s, end) - _DATES_SLACK_S,
            not_after=end,
            body={
                "name": device.name,
                "addrs": addresses(device),
                "dk": device.device_key,
                "nk": node_keys,
                "tags": list(device.tags),
                "user": device.user,
                **({"gr": groups} if groups else {}),
                **on_routes.for_record(tx, device),
                **self.lock.of_record(tx, device, node_keys),
            },
        )
        device.record_renew_s = wall_s + RECORD_RENEW_S
        tx.save_device(device)
        return device.record

    def map(self, tx: Tx, device: Device, wall_s: int) -> bytes:
        """A new signed map, published retained; the device is saved. Returns the signed object."""
        network = self.network
        relays = self._relays_for(tx, device, wall_s)
        policy = self.policing.slice_of(tx, device)
        device.slice_digest = digest(policy)
        node_keys = self._node_keys(tx, device)
        device.map_epoch, device.map_seq = network.epoch, tx.next_seq()
        signed = sign_object(
            self.crypto,
            network.seed,
            kind="map",
            network=network.id,
            subject=device.id,
            epoch=device.map_epoch,
            seq=device.map_seq,
            wall_s=wall_s,
            body={
                "id": device.id,
                "name": device.name,
                "addrs": addresses(device),
                "tags": list(device.tags),
                "domain": network.domain,
                "v4": [ipam.V4_NETWORK.to_bytes(4, "big"), ipam.V4_PREFIX],
                "v6": [ipam.ula_network(network.id), ipam.V6_PREFIX],
                "fk": device.feed_key,
                "fg": device.feed_generation,
                "bx": network.box_key,
                "h": hosts_for(network, device.id),
                "nk": node_keys,
                "na": device.not_after,
                "set": {"node_key_life_s": NODE_KEY_LIFE_S, "node_key_grace_s": NODE_KEY_GRACE_S},
                **relays,
                **({} if policy is None else {"po": policy}),
                **({} if device.kind is Kind.RELAY else self._names_for(tx)),
                **on_routes.for_map(tx, device),
                **on_rollouts.for_map(tx, device),
                **self.lock.of_map(tx, device, node_keys),
                **({} if self.nats is None else {"bp": self.nats.device_pass(device)}),
            },
        )
        tx.save_device(device)
        topic = topics.down(network.id, device.id, "map")
        sealed = seal_box(self.crypto, self.entropy, device.box_key, topic, signed)
        tx.put_out(Outgoing(Op.PUBLISH, topic, sealed, retain=True, key=topic))
        return signed

    def rec(
        self, tx: Tx, reader: Device, subject: Device, wall_s: int, ask: int | None = None, via: list[str] | None = None
    ) -> None:
        """Tell `reader` the record and the feed key of `subject`; `ask` is the id of the question, if one was asked,
        and `via` are the ids of all routers to an address that was asked for."""
        body: dict[str, Any] = {
            "rec": self.record(tx, subject, wall_s),
            "fk": subject.feed_key,
            "fg": subject.feed_generation,
        }
        if ask is not None:
            body["id"] = ask
        if via:
            body["via"] = via
        self._down(tx, reader, "rec", body, wall_s, key=None if ask is not None else f"rec/{reader.id}/{subject.id}")

    def no(self, tx: Tx, reader: Device, ask: int, why: str, wall_s: int) -> None:
        """`unknown` or `forbidden`."""
        ttl = UNKNOWN_TTL_S if why == "unknown" else FORBIDDEN_TTL_S
        self._down(tx, reader, "rec", {"id": ask, "no": why, "ttl": ttl}, wall_s)

    def gone(self, tx: Tx, reader: Device, subject: str, wall_s: int, since_s: int | None = None) -> None:
        """Tell `reader` that `subject` is cut off, for a relay: that its passes from `since_s` or before are void."""
        signed = sign_object(
            self.crypto,
            self.network.seed,
            kind="gone",
            network=self.network.id,
            subject=subject,
            epoch=self.network.epoch,
            seq=tx.next_seq(),
            wall_s=wall_s if since_s is None else since_s,
            body={},
        )
        self._down(tx, reader, "rec", {"gone": signed}, wall_s, key=f"rec/{reader.id}/{subject}")

    def time(self, tx: Tx, device: Device, wall_s: int, highest_epoch: int | None = None) -> None:
        """The hub's time; with the highest epoch seen of the device when its own is not newer."""
        body = {} if highest_epoch is None else {"e": highest_epoch}
        self._down(tx, device, "time", body, wall_s, key=topics.down(self.network.id, device.id, "time"))

    def command(self, tx: Tx, device: Device, body: dict[str, Any], wall_s: int) -> None:
        """`cmd`, and in the place of an earlier one of its id that is still here."""
        self._down(tx, device, "cmd", body, wall_s, key=f"cmd/{device.id}/{body['id'].hex()}")

    def admit(self, tx: Tx, claim: str, device_id: str, box_key: bytes, body: dict[str, Any], wall_s: int) -> None:
        """The answer to a join."""
        topic = topics.admit(self.network.id, claim, device_id)
        tx.put_out(Outgoing(Op.PUBLISH, topic, self._write(tx, topic, "admit", device_id, box_key, body, wall_s)))

    def clear(self, tx: Tx, device_id: str) -> None:
        """Take back what the broker retains of a device that is gone."""
        net = self.network.id
        for topic in (
            topics.down(net, device_id, "map"),
            topics.up(net, device_id, "state"),
            topics.feed(net, device_id),
        ):
            tx.put_out(Outgoing(Op.PUBLISH, topic, _EMPTY, retain=True, key=topic))

    def hub_states(self, tx: Tx, wall_s: int) -> tuple[bytes, bytes]:
        """(presence, Last Will) for one connection to the broker; each is newer than all of earlier connections."""
        up, down = (
            write_hub_state(
                self.crypto,
                self.network.seed,
                network=self.network.id,
                epoch=self.network.epoch,
                seq=tx.next_seq(),
                wall_s=wall_s,
                up=is_up,
                hub_box_key=self.network.box_key,
            )
            for is_up in (True, False)
        )
        return up, down

    def push(self, tx: Tx, device: Device) -> None:
        """Something that others see has changed: a new map, and a new record for all who know the device."""
        device.record = b""
        tx.save_device(device)
        tx.add_job(JobKind.MAP, "", device.id)
        tx.add_jobs_for_acquaintances(JobKind.REC, device.id)

    def _relays_for(self, tx: Tx, device: Device, wall_s: int) -> dict[str, Any]:
        """What a map says of relays: nothing when there are none, and nothing to an expired device."""
        encoded = tx.relay_list()
        device.pass_renew_s = 0
        if not encoded or device.state is not DeviceState.ACTIVE:
            return {}
        if encoded != self._relays[0]:
            self._relays = (encoded, decode(encoded))
        relays = self._relays[1]
        if device.kind is Kind.RELAY:
            return {"rl": relays}
        return {"rl": relays, "ps": self._passes(tx, device, relays, wall_s)}

    def _names_for(self, tx: Tx) -> dict[str, Any]:
        """What a map says of names: nothing when the operator set nothing."""
        encoded = tx.names()
        if encoded != self._names[0]:
            self._names = (encoded, {"dn": decode(encoded)} if encoded else {})
        return self._names[1]

    def _passes(self, tx: Tx, device: Device, relays: list[dict[str, Any]], wall_s: int) -> list[bytes]:
        """One for each node key. They name regions, so that they hold for relays that come later, too."""
        regions = list(dict.fromkeys(relay["rg"] for relay in relays))[:PASS_REGIONS_MAX]
        others = [relay["id"] for relay in relays if relay["rg"] not in regions][:PASS_RELAYS_MAX]
        while len(encode([regions, others])) > PASS_NAMES_BYTES_MAX:
            (others or regions).pop()
        end = wall_s + PASS_LIFE_S
        if device.not_after:
            end = min(end, device.not_after)
        device.pass_renew_s = wall_s + PASS_RENEW_S
        return [
            write_pass(
                self.crypto,
                self.network.seed,
                network=self.network.id,
                device=device.id,
                epoch=self.network.epoch,
                seq=tx.next_seq(),
                wall_s=max(wall_s, device.removed_s + 1),  # relays void all that is not later than a removal
                not_before=min(wall_s, end) - _DATES_SLACK_S,
                not_after=end,
                node_key=key,
                relays=others,
                regions=regions,
            )
            for key, _ in self._node_keys(tx, device)
        ]

    def _down(
        self, tx: Tx, reader: Device, kind: str, body: dict[str, Any], wall_s: int, *, key: str | None = None
    ) -> None:
        topic = topics.down(self.network.id, reader.id, kind)
        data = self._write(tx, topic, kind, reader.id, reader.box_key, body, wall_s)
        tx.put_out(Outgoing(Op.PUBLISH, topic, data, key=key))

    def _write(
        self, tx: Tx, topic: str, kind: str, device_id: str, box_key: bytes, body: dict[str, Any], wall_s: int
    ) -> bytes:
        return write_down(
            self.crypto,
            self.entropy,
            self.network.seed,
            box_key,
            topic,
            kind=kind,
            network=self.network.id,
            device=device_id,
            epoch=self.network.epoch,
            seq=tx.next_seq(),
            wall_s=wall_s,
            body=body,
        )

    def _node_keys(self, tx: Tx, device: Device) -> list[list[Any]]:
        """The one in use first."""
        keys = sorted(tx.node_keys(device.id), key=lambda known: known.key != device.node_key)
        return [[known.key, known.not_after] for known in keys[:NODE_KEYS_SHOWN_MAX]]


def addresses(device: Device) -> list[bytes]:
    """[IPv4, IPv6] of an admitted device."""
    assert device.v4 is not None and device.v6 is not None
    return [device.v4.to_bytes(4, "big"), device.v6]
