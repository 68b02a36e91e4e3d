"""What the coordinator asks of a store. `hub.core.memory` is the slow twin, `hub.store` the one that lasts.

A write transaction sees all that was committed before it and no other runs beside it; it is kept whole or not at all,
also through a power cut.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from hub.core.audit import Entry
from hub.core.model import (
    Client,
    Command,
    Device,
    DeviceState,
    Job,
    JobKind,
    LockSignature,
    Network,
    NodeKey,
    Outgoing,
    Route,
    StoredPolicy,
    Token,
)
from hub.core.rollout_rows import RolloutRows


class Tx(Protocol):
    """One transaction. What it hands out are copies: a change counts when it is saved."""

    def network(self) -> Network: ...

    def next_seq(self) -> int:
        """One counter for all that the hub signs: never the same twice, never lower, within an epoch."""

    def add_token(self, token: Token) -> None: ...

    def save_token(self, token: Token) -> None: ...

    def token(self, claim: str) -> Token | None: ...

    def tokens(self, *, after: str = "", limit: int = 100) -> list[Token]:
        """In the order of their claims, those after `after`."""

    def tokens_to_finish(self, wall_s: int, limit: int) -> list[Token]:
        """Expired ones that nobody has marked as finished."""

    def tokens_to_close(self, finished_before_s: int, limit: int) -> list[Token]:
        """Finished ones whose broker account is still there."""

    def token_count(self) -> int: ...

    def add_device(self, device: Device) -> None: ...

    def save_device(self, device: Device) -> None: ...

    def save_seen(self, device_id: str, wall_s: int) -> None: ...

    def device(self, device_id: str) -> Device | None: ...

    def device_by_name(self, name: str) -> Device | None: ...

    def device_by_v4(self, address: int) -> Device | None: ...

    def device_by_v6(self, address: bytes) -> Device | None: ...

    def device_by_node_key(self, key: bytes) -> Device | None: ...

    def devices(self, *, after: str = "", limit: int = 100, state: DeviceState | None = None) -> list[Device]:
        """In the order of their ids, those after `after`."""

    def devices_to_expire(self, wall_s: int, limit: int) -> list[Device]:
        """Active ones whose admission is over."""

    def records_to_renew(self, wall_s: int, limit: int) -> list[Device]:
        """Active ones whose record is old."""

    def relays(self) -> list[Device]:
        """All relays that were not removed, in the order of their ids; admission keeps them few."""

    def relay_list(self) -> bytes:
        """What the newest maps say of relays; empty for nothing."""

    def save_relay_list(self, encoded: bytes) -> None: ...

    def policy_version(self) -> int:
        """Of the policy that holds; 0 for none."""

    def policy(self, version: int) -> StoredPolicy | None: ...

    def policies(self, limit: int = 100) -> list[StoredPolicy]:
        """The newest first."""

    def add_policy(self, new: StoredPolicy) -> None: ...

    def drop_policies(self, up_to: int) -> None:
        """Those up to this version."""

    def names(self) -> bytes:
        """What maps say of names, as `hub.core.naming` encodes it; empty for nothing."""

    def save_names(self, encoded: bytes) -> None: ...

    def passes_to_renew(self, wall_s: int, limit: int) -> list[Device]:
        """Active ones whose passes are old."""

    def cut_off(self, since_s: int, *, after: str = "", limit: int = 100) -> list[str]:
        """Ids of devices that were cut off after `since_s`, and may be back, in order; no relays."""

    def device_counts(self) -> dict[DeviceState, int]:
        """Without relays."""

    def state_count(self, state: DeviceState) -> int: ...

    def online_count(self) -> int:
        """Without relays."""

    def row_count(self) -> int:
        """An upper bound of the device rows, tombstones included; in constant time."""

    def next_suffix(self, base: str) -> int:
        """1, 2, 3 … for a host name that many devices wish for; a number is given once."""

    def node_keys(self, device_id: str) -> list[NodeKey]:
        """The one that lasts longest first."""

    def node_key(self, key: bytes) -> NodeKey | None: ...

    def save_node_key(self, key: NodeKey) -> None: ...

    def drop_node_key(self, key: bytes) -> None: ...

    def node_keys_expired(self, wall_s: int, limit: int) -> list[NodeKey]:
        """Those past their end that are not the one in use."""

    def routes(self, device_id: str) -> list[Route]:
        """Of one device, by address and length."""

    def all_routes(self, *, after: tuple[str, bytes, int], limit: int = 100) -> list[Route]:
        """By device, address and length, those after (device, address, length)."""

    def save_route(self, route: Route) -> None: ...

    def drop_route(self, device_id: str, address: bytes, length: int) -> None: ...

    def routes_holding(self, address: bytes) -> list[Route]:
        """Those advertised and approved that an address (4 or 16 B) is in, of any device."""

    def prefixes_in_use(self, limit: int) -> list[tuple[bytes, int]]:
        """What active devices route, advertised and approved, each once, in order; without default routes."""

    def route_list(self) -> bytes:
        """What the newest maps say of prefixes; empty for nothing."""

    def save_route_list(self, encoded: bytes) -> None: ...

    def add_client(self, client: Client) -> None: ...

    def drop_client(self, key: bytes) -> None: ...

    def clients(self, gateway: str | None = None) -> list[Client]:
        """By name; of one gateway, or all, which its ceiling keeps few."""

    def client_count(self) -> int: ...

    def client_by_v4(self, address: int) -> Client | None: ...

    def client_by_v6(self, address: bytes) -> Client | None: ...
    def lock_statements(self) -> list[bytes]:
        """Of the network lock, the first first."""

    def add_lock_statement(self, sequence: int, raw: bytes) -> None: ...

    def lock_signatures(self, devices: list[str]) -> list[LockSignature]:
        """Of at most 500 devices, in the order of devices and keys."""

    def save_lock_signature(self, signature: LockSignature) -> None: ...

    def drop_lock_signature(self, device_id: str, by: bytes) -> None: ...

    def node_signatures(self, device_id: str) -> dict[bytes, tuple[int, bytes]]:
        """Node key → (not_after, the device's own signature); it goes with the node key."""

    def signed_node_keys(self, devices: list[str], wall_s: int) -> set[bytes]:
        """Of at most 500 devices: node keys whose signature has not ended."""

    def save_node_signature(self, key: bytes, device_id: str, not_after: int, signature: bytes) -> None: ...

    def introduce(self, a: str, b: str) -> None:
        """From now on the two know each other."""

    def acquaintances(self, device_id: str, *, after: str = "", limit: int = 100) -> list[str]:
        """Ids, in order."""

    def forget_acquaintances(self, device_id: str) -> None: ...

    def stamp(self, device_id: str, kind: str) -> tuple[int, int]:
        """The last (epoch, seq) that the device wrote in messages of this kind; (-1, 0) for none."""

    def save_stamp(self, device_id: str, kind: str, epoch: int, seq: int) -> None: ...

    def highest_epoch(self, device_id: str) -> int:
        """Of all kinds; -1 for none."""

    def add_job(self, kind: JobKind, reader: str, subject: str) -> None:
        """Nothing when the same job is waiting already."""

    def add_jobs_for_acquaintances(self, kind: JobKind, device_id: str) -> None:
        """REC and GONE: one for every device that knows this one, as the reader. ROTATE: for each, as the subject."""

    def jobs(self, limit: int) -> list[Job]:
        """The oldest first."""

    def has_round(self, kind: JobKind, reader: str) -> bool:
        """Whether a MAPS, POLICY or CUT_OFF job of this reader is under way: one that has a subject."""

    def drop_job(self, job_id: int) -> None: ...

    def job_count(self) -> int: ...

    def add_command(self, command: Command) -> None: ...

    def save_command(self, command: Command) -> None: ...

    def command(self, command_id: str) -> Command | None: ...

    def commands(self, device_id: str, *, limit: int = 100) -> list[Command]:
        """The newest first."""

    def open_commands(self, device_id: str) -> list[Command]:
        """Those that are not over, the oldest first."""

    def commands_due(self, wall_s: int, limit: int) -> list[Command]:
        """Open ones that are to be given up."""

    def commands_finished(self, before_s: int, limit: int) -> list[str]:
        """Ids of those that were over before `before_s`."""

    def commands_beyond(self, device_id: str, count: int, *, verb: str = "") -> list[str]:
        """Ids of those (of one verb) that are over, but for the newest `count`."""

    def drop_commands(self, ids: list[str]) -> None:
        """With their output."""

    def save_output(self, command_id: str, number: int, data: bytes) -> None:
        """A part that is there already is replaced."""

    def output(self, command_id: str) -> list[tuple[int, bytes]]:
        """(number, data) in order."""

    def output_bytes(self, command_id: str) -> int: ...

    def save_telemetry(self, device_id: str, wall_s: int, sample: bytes) -> None:
        """In the place of the last one."""

    def telemetry(self, device_id: str) -> tuple[int, bytes] | None: ...

    @property
    def rollouts(self) -> RolloutRows: ...

    def put_out(self, item: Outgoing) -> None: ...

    def outgoing(self, *, after: int = 0, limit: int = 100) -> list[Outgoing]:
        """In the order they were put out."""

    def drop_outgoing(self, ids: list[int]) -> None: ...

    def outgoing_depth(self) -> int:
        """An upper bound of the rows; in constant time."""

    def accounts(self, *, after: str = "", limit: int = 1000) -> list[tuple[str, str]]:
        """(MQTT user, credential) of every device and claim that may connect, in the order of the users."""

    def accounts_in_flight(self) -> set[str]:
        """Users that an outgoing row is about."""

    def last_audit(self) -> Entry | None: ...

    def add_audit(self, entry: Entry) -> None: ...

    def audit_rows(self, *, after: int = 0, limit: int = 100) -> list[Entry]:
        """In their order, those after `after`."""

    def audit_of(self, verb: str, *, limit: int) -> list[Entry]:
        """The newest first; by an index."""

    def drop_audit(self, up_to: int) -> None:
        """The oldest rows, those up to this id: see hub.core.retention."""

    def audit_keep(self) -> bytes:
        """Empty when nothing was ever set."""

    def save_audit_keep(self, encoded: bytes) -> None: ...

    def emit(self, event: str, wall_s: int, **fields: str | int) -> None:
        """Tell the web hooks that want to hear of it: see hub.core.events."""

    def note(self, change: str) -> None:
        """Tell those who show the hub's state, once this is committed: `device ID`, or one word for a kind of thing."""


class Store(Protocol):
    def write(self) -> AbstractContextManager[Tx]:
        """Begins with the write lock; raises HubError when another process holds it for too long."""

    def read(self) -> AbstractContextManager[Tx]: ...

    def close(self) -> None: ...
