"""What the coordinator asks of a store. `hub.core.memory` is the slow twin, `hub.store` the one that lasts.

A write transaction sees all that was committed before it and no other runs beside it; it is kept whole or not at all,
also through a power cut.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from hub.core.model import Device, DeviceState, Job, JobKind, LockSignature, Network, NodeKey, Outgoing, Token


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

    def passes_to_renew(self, wall_s: int, limit: int) -> list[Device]:
        """Active ones whose passes are old."""

    def cut_off(self, since_s: int, *, after: str = "", limit: int = 100) -> list[str]:
        """Ids of those that were cut off after `since_s` and still are, in order."""

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
        """Whether a MAPS or CUT_OFF job of this reader is under way: one that has a subject."""

    def drop_job(self, job_id: int) -> None: ...

    def job_count(self) -> int: ...

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


class Store(Protocol):
    def write(self) -> AbstractContextManager[Tx]:
        """Begins with the write lock; raises HubError when another process holds it for too long."""

    def read(self) -> AbstractContextManager[Tx]: ...

    def close(self) -> None: ...
