"""Transport keypairs: two symmetric keys, their counters and their age (WireGuard paper, 5.4.5 and 5.4.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeagent.proto.constants import REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME_S
from edgeagent.proto.crypto import Crypto
from edgeagent.proto.noise import TransportKeys
from edgeagent.proto.replay import ReplayWindow

if TYPE_CHECKING:
    from edgeagent.proto.peer import Peer


class Keypair:
    """Keys of one handshake. `may_send` is taken away when our private key changes: then it only still receives."""

    __slots__ = (
        "created_at",
        "is_initiator",
        "local_index",
        "may_send",
        "peer",
        "position",
        "receive_key",
        "remote_index",
        "replay",
        "send_counter",
        "send_key",
    )

    def __init__(self, now: float, peer: Peer, keys: TransportKeys, *, is_initiator: bool) -> None:
        self.peer = peer
        self.position: int | None = None  # in an engine's table; then that counts, seals and opens
        self.send_key = keys.send
        self.receive_key = keys.receive
        self.local_index = keys.local_index
        self.remote_index = keys.remote_index
        self.created_at = now
        self.is_initiator = is_initiator
        self.may_send = True
        self.send_counter = 0
        self.replay = ReplayWindow()

    def can_send(self, now: float, packets: int) -> bool:
        """Whether `packets` more may be sealed now (paper 6.1: Reject-After-Time, Reject-After-Messages)."""
        return (
            self.may_send
            and now - self.created_at < REJECT_AFTER_TIME_S
            and self.send_counter + packets <= REJECT_AFTER_MESSAGES
        )

    def wipe(self, crypto: Crypto) -> None:
        self.may_send = False
        self.position = None
        crypto.wipe(self.send_key)
        crypto.wipe(self.receive_key)


class Keypairs:
    """previous, current and next of a peer, as the paper's section 6.3 and 5.4.6 have them.

    `next` is a responder's newest pair until data arrives under it: only then is it known that the initiator
    has it too. Every method returns the pairs that fell out, for their owner to wipe and to forget their indices.
    """

    __slots__ = ("current", "next", "previous")

    def __init__(self) -> None:
        self.previous: Keypair | None = None
        self.current: Keypair | None = None
        self.next: Keypair | None = None

    def add(self, new: Keypair) -> list[Keypair]:
        if not new.is_initiator:
            fallen = [self.next, self.previous]
            self.next, self.previous = new, None
        elif self.next is not None:
            fallen = [self.previous, self.current]
            self.previous, self.current, self.next = self.next, new, None
        else:
            fallen = [self.previous]
            self.previous, self.current = self.current, new
        return [pair for pair in fallen if pair is not None]

    def confirm_next(self) -> list[Keypair]:
        """Data arrived under `next`: it becomes `current`."""
        fallen = [self.previous] if self.previous is not None else []
        self.previous, self.current, self.next = self.current, self.next, None
        return fallen

    def clear(self) -> list[Keypair]:
        fallen = [pair for pair in (self.previous, self.current, self.next) if pair is not None]
        self.previous = self.current = self.next = None
        return fallen
