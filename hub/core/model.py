"""What the hub knows: the network, join tokens, devices, who knows whom, and what is still to be said.

Times are whole seconds since 1970; 0 stands for "never" where a field says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

NODE_KEY_LIFE_S = 180 * 86_400
NODE_KEY_GRACE_S = 3_600  # how long a device waits with a new key that the hub has spread
NODE_KEY_UNUSED_S = 7 * 86_400  # a reported key that no birth names, when a newer one is reported
RECORD_LIFE_S = 90 * 86_400  # how long a cached record counts when the hub is not heard from
RECORD_RENEW_S = 30 * 86_400  # a record is signed again when it is this old
PASS_LIFE_S = 30 * 86_400  # how long a device may use relays when the hub is not heard from
PASS_RENEW_S = 10 * 86_400  # a pass is signed again when it is this old
RELAY_GRACE_S = 3_600  # how long a relay that went offline stays in the maps: a blip must not renew them all
CLAIM_GRACE_S = 30 * 86_400  # a finished token can still ask why; then its broker account goes
DEVICES_MAX = 200_000  # rows, removed devices included
PENDING_MAX = 1_000  # devices that wait for a person
RELAY_CHANGE_S = 600  # between two changes of one relay in the maps, which are written anew for all devices
RELAY_CHANGE_MAX_S = 3_600  # the same for one that goes on changing: it doubles each time
RELAYS_KNOWN_MAX = 256  # relays that have joined; a map names the best of them
RELAY_LIST_BYTES_MAX = 8_192  # what relays may take of a map
TOKENS_MAX = 10_000
OUTBOX_MAX = 50_000  # rows; above it devices are not answered, so that they ask again later


class HubError(Exception):
    """An operator's action cannot be done; the text says what, why and what next."""


class HubBusy(HubError):
    """Another process holds the database: the same will do later."""


class HubDrop(Enum):
    """Why the hub did not answer a message; the value is its name in `status`."""

    UNKNOWN_DEVICE = "unknown-device"  # no device of that id
    UNKNOWN_CLAIM = "unknown-claim"  # a join under a claim that this hub never made, or removed long ago
    NOT_ADMITTED = "not-admitted"  # the device waits for approval, or was removed
    RATE_LIMITED = "rate-limited"  # more messages of this kind than a device needs
    OUTBOX_FULL = "outbox-full"  # too much is waiting for the broker: the device asks again
    RESERVED_KIND = "reserved-kind"  # a verb that this version gives no meaning
    UNKNOWN_NODE_KEY = "unknown-node-key"  # a birth under a node key that was never reported
    NODE_KEY_TAKEN = "node-key-taken"  # a node key that is another device's
    WEAK_KEY = "weak-key"  # an X25519 key of small order (RFC 7748, section 6.1)
    BAD_NODE_SIGNATURE = "bad-node-signature"  # a node key of a locked network that its device has signed wrongly
    WEAK_PASSWORD = "weak-password"  # an MQTT password shorter than 16 characters, or not ASCII
    NOT_A_RELAY = "not-a-relay"  # a device said that it is a relay, and joined with no token for one
    NOT_A_DEVICE = "not-a-device"  # a relay asked or reported what only devices do
    WRONG_REGION = "wrong-region"  # a relay said another region than the one it was invited for
    RELAY_KEY_TAKEN = "relay-key-taken"  # a relay said a relay key that is another relay's: remove that one first
    UNKNOWN_COMMAND = "unknown-command"  # an answer about a command that the device was never given, or long ago
    COMMAND_OVER = "command-over"  # an answer about a command whose end the device has told before
    ANSWER_TOO_LONG = "answer-too-long"  # more output than a command may have
    BAD_SAMPLE = "bad-sample"  # what a watched device says of itself is not of its form
    ROUTE_REFUSED = "route-refused"  # a device offered a prefix that nobody may route: the network's own, loopback, …
    UNKNOWN_ROLLOUT = "unknown-rollout"  # a report about a rollout, or settings, that the device was never in
    STUMBLED = "stumbled"  # a mistake of the hub's own, which its log names; what the message had changed is undone
    RELAY_RESTLESS = "relay-restless"  # a relay changed what it says of itself again so soon that maps follow later


class DeviceState(Enum):
    PENDING = "pending"  # joined with a token that needs a person's approval
    ACTIVE = "active"
    EXPIRED = "expired"  # admission over; it may still listen, and join again
    REMOVED = "removed"  # only a tombstone: refuses old messages and old tokens


class Kind(Enum):
    """What joins: both do it the same way."""

    DEVICE = "device"
    RELAY = "relay"  # is in no other's reach but by the relay map


class Role(Enum):
    """What an MQTT account may do."""

    DEVICE = "device"
    CLAIM = "claim"


@dataclass(slots=True, frozen=True)
class Network:
    """The hub's identity and secrets."""

    id: str
    domain: str
    seed: bytes  # Ed25519, 32 B
    key: bytes  # its public key
    box_private: bytes  # X25519, 32 B
    box_key: bytes  # its public key
    epoch: int  # of everything that this hub signs; only `restore` raises it
    ca_der: bytes
    hosts: tuple[str, ...]  # "host:port" of the broker, as devices reach it
    nats: bool = False  # the brokers keep no accounts but believe what this hub signs: hub.core.nats


@dataclass(slots=True)
class Token:
    """A join token without its secret. `used` counts different devices."""

    claim: str
    secret_hash: bytes  # BLAKE2s-256
    credential: str  # of the claim's MQTT user, see hub.core.credential
    created_s: int
    created_seq: int  # the hub's counter then: tells what came before what within a second
    not_after: int  # 0 = never
    uses: int  # 0 = no limit
    used: int = 0
    tags: tuple[str, ...] = ()
    needs_approval: bool = False
    revoked_s: int = 0  # 0 = not revoked
    finished_s: int = 0  # when it was used up, expired or revoked; 0 = it still works
    account: bool = True  # the broker still knows the claim's user
    kind: Kind = Kind.DEVICE  # of what joins with it; a relay's region is its one tag
    user: str = ""  # whose the devices are that join with it: a login

    def refusal(self, wall_s: int) -> str | None:
        """Why nobody new may join with it, as `admit` says it; None when it is good."""
        if self.revoked_s:
            return "revoked"
        if self.not_after and wall_s >= self.not_after:
            return "expired"
        if self.uses and self.used >= self.uses:
            return "used-up"
        return None


@dataclass(slots=True)
class Device:
    """One device. A tombstone (REMOVED) has no name, addresses or keys but its device key."""

    id: str
    state: DeviceState
    claim: str  # that it joined with
    device_key: bytes
    box_key: bytes
    node_key: bytes  # in use, as far as the hub knows
    created_s: int
    name: str | None = None
    v4: int | None = None
    v6: bytes | None = None
    tags: tuple[str, ...] = ()
    user: str = ""
    credential: str = ""
    pending_password: str = ""  # only while PENDING: the broker hears it at approval
    feed_key: bytes = b""
    feed_generation: int = 0
    not_after: int = 0  # when the admission ends; 0 = never
    boot: bytes = b""
    boot_before: bytes = b""
    cloned_s: int = 0  # two boots of this device were seen to alternate: a copied card
    version: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    map_epoch: int = 0
    map_seq: int = 0
    record: bytes = b""  # signed, as others get it; empty = to be signed
    record_epoch: int = 0
    record_seq: int = 0
    record_renew_s: int = 0
    online: bool = False
    presence_epoch: int = 0
    presence_seq: int = 0
    state_digest: bytes = b""  # of the last state as it came: the broker says retained ones again and again
    last_seen_s: int = 0
    removed_s: int = 0  # when it was cut off last: removed, or its admission ended
    removed_seq: int = 0
    barred_s: int = 0  # brokers that believe a signed word believe none of it that is not later: hub.core.nats
    kind: Kind = Kind.DEVICE
    relay: bytes = b""  # what a relay said of itself, as maps have it (CBOR); empty: nothing yet
    members: int = 0  # that a relay said it has
    pass_renew_s: int = 0  # when the passes in its map are to be signed again; 0 = there are none
    slice_digest: bytes = b""  # of the policy's slice in its map; empty = its map has none
    groups_digest: bytes = b""  # of the policy's groups in its record; empty = it has none


@dataclass(slots=True, frozen=True)
class Route:
    """A prefix that a device offers to route, or offered and had approved."""

    device: str
    address: bytes  # 4 or 16 B, no bits behind the prefix
    length: int
    advertised: bool
    approved: bool
    snat: bool  # whether the device says that it puts its own address in place of the source

    @property
    def prefix(self) -> tuple[bytes, int]:
        return self.address, self.length


@dataclass(slots=True, frozen=True)
class Client:
    """A plain WireGuard client, reached through a gateway device."""

    key: bytes  # WireGuard public key
    name: str
    gateway: str  # device id
    v4: int
    v6: bytes
    created_s: int


@dataclass(slots=True, frozen=True)
class NodeKey:
    """A WireGuard public key of a device."""

    key: bytes
    device: str
    not_after: int


@dataclass(slots=True, frozen=True)
class StoredPolicy:
    """One version of the network's policy, as it was written."""

    version: int  # from 1
    text: str
    author: str
    created_s: int


class CommandState(Enum):
    """As docs/commands.md has it; the device says all but the first, and EXPIRED also the hub."""

    QUEUED = "queued"
    ACCEPTED = "accepted"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    REFUSED = "refused"
    EXPIRED = "expired"

    @property
    def is_open(self) -> bool:
        return self in (CommandState.QUEUED, CommandState.ACCEPTED, CommandState.RUNNING)


@dataclass(slots=True)
class Command:
    """Something that a device was told to do."""

    id: str  # 16 hexadecimal digits
    seq: int  # tells what came before what
    device: str
    verb: str
    args: dict[str, Any]  # as edgeagent/proto/commands.py has it of the verb
    actor: str  # who gave it
    created_s: int
    expires_s: int  # a device that hears of it later does not begin it
    due_s: int  # when the hub gives it up; 0 = it is over
    changed_s: int
    state: CommandState = CommandState.QUEUED
    finished_s: int = 0
    code: str = ""
    text: str = ""
    parts: int = 0  # of the output, as the device says at the end


@dataclass(slots=True, frozen=True)
class LockSignature:
    """A lock key's word for a device key: `not_after` 0 = no end; `sequence` is when it was made (wall seconds)."""

    device: str
    by: bytes
    not_after: int
    sequence: int
    signature: bytes


class JobKind(Enum):
    """Work that a change left behind, done in small steps after it."""

    GONE = "gone"  # tell reader that subject is cut off
    ROTATE = "rotate"  # give subject a new feed key
    MAP = "map"  # publish subject's map
    REC = "rec"  # tell reader what subject's record is now
    MAPS = "maps"  # a MAP for each member behind subject, in the order of their ids
    POLICY = "policy"  # a MAP and RECs for each member behind subject whom a new policy concerns
    CUT_OFF = "cut-off"  # a GONE for reader, a relay, about each that was cut off, behind subject


@dataclass(slots=True, frozen=True)
class Job:
    id: int
    kind: JobKind
    reader: str  # "" for ROTATE, MAP, MAPS and POLICY
    subject: str  # of MAPS, POLICY and CUT_OFF: the last id that was dealt with, "" at the beginning


class Op(Enum):
    PUBLISH = "publish"
    ADMIT = "admit"  # make an MQTT account
    REPASS = "repass"  # give an account a new password
    REVOKE = "revoke"  # delete an account and end its session


@dataclass(slots=True, frozen=True)
class Outgoing:
    """One thing to tell the broker, kept until the broker has confirmed it.

    `target` is a topic or an MQTT user, `payload` a message or a password. A later row with the same `key` takes the
    place of an earlier one. `id` is 0 until it is stored, and then gives the order.
    """

    op: Op
    target: str
    payload: bytes = b""
    retain: bool = False
    role: Role = Role.DEVICE
    key: str | None = None
    id: int = 0
