"""The hub's machine: messages of devices in, rows of the outbox and small jobs out.

Drive it inside a write transaction of the store, one or many messages a transaction:

    with store.write() as tx:
        coordinator.handle_message(now, wall_s, tx, topic, payload)

and afterwards `hub.core.chores.work` until there are no jobs, and send what `tx.outgoing()` lists. Bad input is a
counted drop (`drops`); it never raises.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

from edgeagent.proto import topics
from edgeagent.proto.codec import DEVICE_MESSAGE_BYTES_MAX
from edgeagent.proto.crypto import Crypto
from edgeagent.proto.envelope import read_join, read_up
from edgeagent.proto.keys import Entropy
from edgeagent.proto.refusals import ControlDrop, ControlError
from edgeagent.proto.signed import Signed
from hub.core import admission, commands, lock, relays, rollouts, routes
from hub.core.credential import is_strong
from hub.core.model import OUTBOX_MAX, Device, DeviceState, HubDrop, JobKind, Kind, Network
from hub.core.ratelimit import TokenBuckets
from hub.core.scribe import Scribe
from hub.core.store import Tx

VERBS = ("birth", "state", "ask", "report", "relay", "answer", "fetch")
_OF_DEVICES, _OF_RELAYS = ("ask", "report", "answer", "fetch"), ("relay",)
_ZERO = bytes(32)


class Coordinator:
    """Answers all that devices and relays write; keeps counters and rate limits, the store all else."""

    def __init__(self, crypto: Crypto, entropy: Entropy, network: Network) -> None:
        self.scribe = Scribe(crypto, entropy, network)
        self.fetches: list[tuple[Device, dict[str, Any]]] = []  # to be answered with files, which this cannot read
        self.drops: Counter[HubDrop | ControlDrop] = Counter()
        self._crypto = crypto
        self._network = network
        self._limits = {  # messages a second, and at once; a device, or a claim for joins
            "join": TokenBuckets(20.0, 200),
            "birth": TokenBuckets(0.2, 20),
            "state": TokenBuckets(0.5, 40),
            "ask": TokenBuckets(5.0, 128),
            "report": TokenBuckets(1 / 30, 16),
            "key": TokenBuckets(1 / 600, 4),  # of those, the ones that bring a node key
            "fetch": TokenBuckets(64.0, 512),  # what a near device asks in a row; its bytes are bounded in fetching.py
            "relay": TokenBuckets(1 / 20, 8),
            "answer": TokenBuckets(16.0, 160),  # the output of one command is 37 of them, and a device sends 8 a second
            "sample": TokenBuckets(2.0, 8),
        }

    def handle_message(self, now: float, wall_s: int, tx: Tx, topic: str, payload: bytes) -> None:
        """One message as the broker delivered it."""
        parts = topics.parse(topic)
        if parts is None or parts.way != "u" or parts.network != self._network.id:
            self.drops[ControlDrop.UNKNOWN_TOPIC] += 1
        elif len(payload) > DEVICE_MESSAGE_BYTES_MAX:
            self.drops[ControlDrop.TOO_LONG] += 1
        elif not payload and parts.leaf == "state":
            pass  # a retained state that the hub itself has cleared
        elif tx.outgoing_depth() > OUTBOX_MAX:
            self.drops[HubDrop.OUTBOX_FULL] += 1
        else:
            try:
                if parts.leaf == "join":
                    self._handle_join(now, wall_s, tx, topic, parts.owner, payload)
                else:
                    self._handle_up(now, wall_s, tx, topic, parts.owner, parts.leaf, payload)
            except ControlError as error:
                self.drops[error.reason] += 1

    # joins

    def _handle_join(self, now: float, wall_s: int, tx: Tx, topic: str, claim: str, payload: bytes) -> None:
        token = tx.token(claim)
        if token is None:
            self.drops[HubDrop.UNKNOWN_CLAIM] += 1
            return
        if not self._limits["join"].allow(now, claim):
            self.drops[HubDrop.RATE_LIMITED] += 1
            return
        private = self._network.box_private
        signed = read_join(self._crypto, private, topic, payload, network=self._network.id, claim=claim)
        join = admission.Join(claim, signed.subject, signed.body)
        if self._is_weak(join.box_key):
            self.drops[HubDrop.WEAK_KEY] += 1  # and no answer: nothing can be sealed for it
            return
        if self._is_weak(join.node_key):
            self.drops[HubDrop.WEAK_KEY] += 1
            admission.refuse(self.scribe, tx, join, "bad-request", wall_s)
            return
        if not is_strong(join.password):
            self.drops[HubDrop.WEAK_PASSWORD] += 1
            admission.refuse(self.scribe, tx, join, "bad-request", wall_s)
            return
        if not self._crypto.equal(self._crypto.blake2s(signed.body["secret"]), token.secret_hash):
            admission.refuse(self.scribe, tx, join, "unknown", wall_s)
            return
        device = tx.device(join.device_id)
        newest = device is None or signed.stamp > tx.stamp(device.id, "join")
        admission.answer_join(self.scribe, tx, join, token, device, wall_s, newest=newest)
        if newest and tx.device(join.device_id) is not None:
            tx.save_stamp(join.device_id, "join", signed.epoch, signed.seq)

    def _is_weak(self, public_key: bytes) -> bool:
        return self._crypto.equal(self._crypto.x25519(self._network.box_private, public_key), _ZERO)

    # devices

    def _handle_up(
        self, now: float, wall_s: int, tx: Tx, topic: str, device_id: str, verb: str, payload: bytes
    ) -> None:
        if verb not in VERBS:
            self.drops[HubDrop.RESERVED_KIND] += 1
            return
        device = tx.device(device_id)
        if device is None:
            self.drops[HubDrop.UNKNOWN_DEVICE] += 1
            return
        if device.state not in (DeviceState.ACTIVE, DeviceState.EXPIRED):
            self.drops[HubDrop.NOT_ADMITTED] += 1
            return
        if device.kind is Kind.RELAY and verb in _OF_DEVICES:
            self.drops[HubDrop.NOT_A_DEVICE] += 1
            return
        if device.kind is Kind.DEVICE and verb in _OF_RELAYS:
            self.drops[HubDrop.NOT_A_RELAY] += 1
            return
        digest = self._crypto.blake2s(payload, size=16)
        if verb == "state" and digest == device.state_digest:
            return
        if not self._limits[verb].allow(now, device_id):
            self.drops[HubDrop.RATE_LIMITED] += 1
            return
        signed = read_up(
            self._crypto,
            self._network.box_private,
            device.device_key,
            topic,
            payload,
            kind=verb,
            network=self._network.id,
            device=device_id,
        )
        if signed.stamp <= tx.stamp(device_id, verb):
            self.drops[ControlDrop.REPLAYED] += 1
            if verb == "birth":
                self._note_boot(tx, device, signed.body["boot"], wall_s)
                self.scribe.time(tx, device, wall_s, highest_epoch=tx.highest_epoch(device_id))
            return
        tx.save_stamp(device_id, verb, signed.epoch, signed.seq)
        device.last_seen_s = wall_s
        was_online = device.online
        if verb == "birth":
            self._handle_birth(wall_s, tx, device, signed)
        elif verb == "state":
            _set_presence(device, signed.stamp, online=signed.body["up"])
            device.state_digest = digest
            tx.save_device(device)
            if device.kind is Kind.RELAY:
                relays.refresh(tx, wall_s)
        elif verb == "ask":
            self._handle_ask(now, wall_s, tx, device, signed.body)
            tx.save_seen(device_id, wall_s)
        elif verb == "relay":
            self._handle_relay(wall_s, tx, device, signed.body)
        elif verb == "answer":
            self._handle_answer(now, wall_s, tx, device, signed.body)
            tx.save_seen(device_id, wall_s)
        elif verb == "fetch":
            self.fetches.append((device, signed.body))
        elif "nk" in signed.body:
            if not self._limits["key"].allow(now, device_id):
                self.drops[HubDrop.RATE_LIMITED] += 1
                return
            self._handle_report(wall_s, tx, device, signed.body)
        elif (drop := rollouts.take_report(self.scribe, tx, device, signed.body, wall_s)) is not None:
            self.drops[drop] += 1
        if device.online is not was_online:
            event = f"{device.kind.value}.{'online' if device.online else 'offline'}"
            tx.emit(event, wall_s, device=device.id, name=device.name or "")

    def _handle_birth(self, wall_s: int, tx: Tx, device: Device, signed: Signed) -> None:
        body = signed.body
        _set_presence(device, (signed.epoch, 0), online=True)
        self._note_boot(tx, device, body["boot"], wall_s)
        device.version = body["ver"]
        device.facts = body["facts"]
        has_newest_map = tuple(body["map"]) == (device.map_epoch, device.map_seq)
        if body["nk"] != device.node_key:
            known = tx.node_key(body["nk"])
            if known is None or known.device != device.id:
                self.drops[HubDrop.UNKNOWN_NODE_KEY] += 1
            else:
                admission.use_node_key(tx, device, body["nk"])
                self.scribe.push(tx, device)
        if device.kind is Kind.DEVICE:
            approves = partial(self.scribe.policing.approves_route, tx)
            refused = routes.take_word(self.scribe, tx, device, body, approves, wall_s)
            if refused:
                self.drops[HubDrop.ROUTE_REFUSED] += refused
        tx.save_device(device)
        self.scribe.time(tx, device, wall_s)
        if not has_newest_map:
            tx.add_job(JobKind.MAP, "", device.id)
        commands.say_again(self.scribe, tx, device, wall_s)
        if device.kind is Kind.RELAY:
            relays.refresh(tx, wall_s)
            relays.tell_all_cut_off(tx, device)

    def _note_boot(self, tx: Tx, device: Device, boot: bytes, wall_s: int) -> None:
        """A boot id that comes back after another one: two boards run under one identity."""
        if boot == device.boot:
            return
        if boot == device.boot_before:
            device.cloned_s = wall_s
        device.boot, device.boot_before = boot, device.boot
        tx.save_device(device)

    def _handle_ask(self, now: float, wall_s: int, tx: Tx, reader: Device, body: dict[str, Any]) -> None:
        if "have" in body:
            if self._limits["ask"].allow(now, reader.id, len(body["have"]) / 8):
                self._handle_have(wall_s, tx, reader, body["have"])
            else:
                self.drops[HubDrop.RATE_LIMITED] += 1
            return
        subject = self._find(tx, body)
        via: list[Device] = []
        if subject is None and "a" in body:
            via = routes.routers_of(tx, reader, body["a"])
            subject = via[0] if via else None
        if reader.state is DeviceState.EXPIRED:
            self.scribe.no(tx, reader, body["id"], "forbidden", wall_s)  # whatever it asks: so that tells of nobody
        elif subject is None or subject.id == reader.id or not self._may_see(tx, reader, subject):
            self.scribe.no(tx, reader, body["id"], "unknown", wall_s)
        else:
            tx.introduce(reader.id, subject.id)
            self.scribe.rec(tx, reader, subject, wall_s, ask=body["id"], via=[router.id for router in via])
            self.scribe.rec(tx, subject, reader, wall_s)  # one question is the rendezvous
            for router in via[1:]:
                tx.introduce(reader.id, router.id)
                self.scribe.rec(tx, reader, router, wall_s)
                self.scribe.rec(tx, router, reader, wall_s)

    def _may_see(self, tx: Tx, reader: Device, subject: Device) -> bool:
        """Who may not is answered as if there were nobody: a refusal would tell which names and addresses exist."""
        return (
            _can_be_met(subject)
            and subject.state is not DeviceState.EXPIRED
            and self.scribe.policing.may_meet(tx, reader, subject)
        )

    def _find(self, tx: Tx, body: dict[str, Any]) -> Device | None:
        if "h" in body:
            return tx.device_by_name(body["h"])
        if "k" in body:
            return tx.device_by_node_key(body["k"])
        address: bytes = body["a"]
        if len(address) == 4:
            number = int.from_bytes(address, "big")
            found, client = tx.device_by_v4(number), tx.client_by_v4(number)
        else:
            found, client = tx.device_by_v6(address), tx.client_by_v6(address)
        return tx.device(client.gateway) if client is not None else found

    def _handle_have(self, wall_s: int, tx: Tx, reader: Device, have: list[list[Any]]) -> None:
        """What the reader holds in its cache: tell it what has changed, and what went."""
        if reader.state is DeviceState.EXPIRED:
            self.drops[HubDrop.NOT_ADMITTED] += 1
            return
        for subject_id, epoch, seq, generation in have:
            subject = tx.device(subject_id)
            if subject is None or not _can_be_met(subject):
                self.scribe.gone(tx, reader, subject_id, wall_s)
                continue
            if subject.id != reader.id and not self.scribe.policing.may_meet(tx, reader, subject):
                continue  # an id may be known without an introduction: it is in topics
            self.scribe.record(tx, subject, wall_s)
            if subject.id != reader.id:
                tx.introduce(reader.id, subject.id)  # a restored hub may not remember that it did
            if (epoch, seq, generation) != (subject.record_epoch, subject.record_seq, subject.feed_generation):
                self.scribe.rec(tx, reader, subject, wall_s)

    def _handle_answer(self, now: float, wall_s: int, tx: Tx, device: Device, body: dict[str, Any]) -> None:
        is_sample = "d" in body and "no" not in body
        if is_sample and not self._limits["sample"].allow(now, device.id):
            self.drops[HubDrop.RATE_LIMITED] += 1
            return
        drop = commands.handle_answer(tx, device, body, wall_s)
        if drop is not None:
            self.drops[drop] += 1

    def _handle_relay(self, wall_s: int, tx: Tx, relay: Device, body: dict[str, Any]) -> None:
        if self._is_weak(body["k"]):
            self.drops[HubDrop.WEAK_KEY] += 1
        elif body["rg"] != relays.region_of(relay):
            self.drops[HubDrop.WRONG_REGION] += 1
        elif relays.has_key(tx, body["k"], relay.id):
            self.drops[HubDrop.RELAY_KEY_TAKEN] += 1
        elif not relays.take_word(tx, relay, body, wall_s):
            self.drops[HubDrop.RELAY_RESTLESS] += 1

    def _handle_report(self, wall_s: int, tx: Tx, device: Device, body: dict[str, Any]) -> None:
        key: bytes = body["nk"]
        if self._is_weak(key):
            self.drops[HubDrop.WEAK_KEY] += 1
            return
        known = tx.node_key(key)
        if known is not None and known.device != device.id:
            self.drops[HubDrop.NODE_KEY_TAKEN] += 1
            return
        if known is None:
            admission.add_node_key(tx, device, key, wall_s)
        right, signed_anew = lock.take_node_signatures(self._crypto, tx, device, body.get("ls", []))
        if not right:
            self.drops[HubDrop.BAD_NODE_SIGNATURE] += 1
        if known is None or signed_anew:
            self.scribe.push(tx, device)
        else:
            tx.save_device(device)
            tx.add_job(JobKind.MAP, "", device.id)


def _can_be_met(device: Device) -> bool:
    """Whether other devices may know of it at all: relays they know from their maps alone."""
    return device.kind is Kind.DEVICE and device.state in (DeviceState.ACTIVE, DeviceState.EXPIRED)


def _set_presence(device: Device, stamp: tuple[int, int], *, online: bool) -> None:
    """A late Last Will of an old session is older than the new session's birth, and changes nothing."""
    if stamp > (device.presence_epoch, device.presence_seq):
        device.presence_epoch, device.presence_seq = stamp
        device.online = online
