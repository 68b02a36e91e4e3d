"""The network lock: node keys count only under a chain of signatures that begins with a key which the hub never had.

```
lock key (offline) ──signs──▶ device key ──signs──▶ node key      both travel in the device's record, field `lk`
       └──signs──▶ statement: lock keys, on or off, who is void   travels in every map, field `lk`
```

A device that holds a lock leaves to a record the node keys that are signed, and refuses one that has none. It follows
a statement only if a key signed it that it held before, and never an older one. See docs/lock.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeagent.proto.codec import decode, encode
from edgeagent.proto.control import KEY, LOCK_KEYS_MAX, NETWORK, STATEMENT_BYTES_MAX
from edgeagent.proto.refusals import ControlDrop, ControlError
from edgeagent.proto.schema import Blob, Fields, List, Nullable, Uint
from edgeagent.proto.signed import open_signed, peek_payload

if TYPE_CHECKING:
    from edgeagent.proto.crypto import Crypto
    from edgeagent.proto.identity import Identity
    from edgeagent.proto.records import Record

LOCK_FILE_BYTES_MAX = 8_192
NODE_SIGNATURE_LIFE_S = 400 * 86_400  # more than two lives of a node key: only a stalled renewal ever sees its end
REFUSED_MAX = 16
_FILE = Fields(
    {
        "v": Uint(1, 1),
        "n": NETWORK,
        "g": List(KEY, LOCK_KEYS_MAX),
        "k": List(KEY, LOCK_KEYS_MAX),
        "s": Nullable(Blob(STATEMENT_BYTES_MAX)),
    }
)


class Statement:
    """What the lock's owner says: `keys` may sign from now on, `on` makes all devices insist on it, and of a device in
    `revoked` no signature counts that was made up to that moment (wall seconds). `by` is the key that signed it."""

    __slots__ = ("by", "keys", "on", "raw", "revoked", "sequence")

    def __init__(self, raw: bytes, sequence: int, body: dict[str, Any]) -> None:
        self.raw = raw
        self.sequence = sequence
        self.by: bytes = body["by"]
        self.on: bool = body["on"]
        self.keys: list[bytes] = body["k"]
        self.revoked: dict[str, int] = dict(body["rv"])


def open_statement(crypto: Crypto, network: str, data: bytes) -> Statement:
    """A statement that is what its signer wrote; whether that one may is another matter. Raises ControlError."""
    by = peek_payload(data, "lock", max_bytes=STATEMENT_BYTES_MAX)["b"].get("by")
    KEY.check(by, "lock.by")
    signed = open_signed(crypto, by, data, kind="lock", network=network, subject="hub", max_bytes=STATEMENT_BYTES_MAX)
    statement = Statement(data, signed.seq, signed.body)
    # Who signs stays, so that the next statement can follow from this one
    if by not in statement.keys or statement.sequence == 0:
        raise ControlError(ControlDrop.LOCK_STATEMENT, "lock.k: the key that signed it is to be among them")
    return statement


def device_input(network: str, device: str, device_key: bytes, not_after: int, sequence: int) -> bytes:
    """What a lock key signs of a device: valid until `not_after` (wall seconds, 0 = no end), made at `sequence`."""
    return b"".join(
        (
            b"em1 lock device\0",
            network.encode(),
            device.encode(),
            device_key,
            not_after.to_bytes(8, "big"),
            sequence.to_bytes(8, "big"),
        )
    )


def node_input(network: str, device: str, node_key: bytes, not_after: int) -> bytes:
    """What a device key signs of its own node key, good until `not_after` (wall seconds)."""
    return b"".join((b"em1 lock node\0", network.encode(), device.encode(), node_key, not_after.to_bytes(8, "big")))


def sign_node_keys(crypto: Crypto, identity: Identity, network: str, wall_s: float) -> list[list[Any]]:
    """Rows [node key, not after, signature] of the keys that the device has, by its device key, as of `wall_s`."""
    end = int(wall_s) + NODE_SIGNATURE_LIFE_S
    return [
        [
            key,
            end,
            crypto.ed25519_sign(identity.device_seed, node_input(network, identity.device_id, key, end)),
        ]
        for key in (identity.node_key, identity.next_key)
        if key is not None
    ]


class Lock:
    """What this device holds of the lock of its network. `given` are keys that a person named on the device itself.

    Before the first statement `keys` are those of the join token or of that person, and the lock is on: whoever named
    a key wants it to count. `sequence` is 0 then. `refused` are some devices that were refused, and why, for people.
    """

    __slots__ = ("_crypto", "given", "keys", "network", "on", "refused", "revoked", "sequence", "statement", "withheld")

    def __init__(self, crypto: Crypto, network: str, keys: list[bytes] | None = None, *, given: bool = False) -> None:
        self._crypto = crypto
        self.network = network
        self.keys = keys or []
        self.given = self.keys if given else []
        self.on = bool(self.keys)
        self.revoked: dict[str, int] = {}
        self.sequence = 0
        self.statement: bytes | None = None
        self.refused: dict[str, tuple[Record, ControlDrop]] = {}
        self.withheld = False  # the hub's newest map does not lead here

    def follow(self, statements: list[bytes]) -> bool:
        """Take over what the hub passes on, the oldest first; True when something is new. A device that holds no key
        takes the last for its first.

        Raises ControlError(LOCK_STATEMENT) where they do not lead from what is held to the last of them: what does
        lead on was taken over all the same.
        """
        if statements and statements[-1] == self.statement:
            self.withheld = False  # as with nearly every map: nothing to verify
            return False
        before = self.statement
        fault: ControlError | None = None
        if not self.keys:
            statements = statements[-1:]
        for data in statements:
            try:
                statement = open_statement(self._crypto, self.network, data)
            except ControlError as error:
                fault = ControlError(ControlDrop.LOCK_STATEMENT, str(error))
                continue
            if statement.sequence > self.sequence and (not self.keys or statement.by in self.keys):
                self._take(statement)
        if fault is None and (not statements or statements[-1] != self.statement):
            fault = ControlError(ControlDrop.LOCK_STATEMENT, "lock: older than what is held, or signed by none of it")
        self.withheld = fault is not None
        if fault is not None and self.statement == before:
            raise fault
        return self.statement != before

    def _take(self, statement: Statement) -> None:
        self.statement = statement.raw
        self.sequence = statement.sequence
        self.keys = statement.keys
        self.on = statement.on
        self.revoked = statement.revoked
        self.refused.clear()

    def admit(self, record: Record, wall_s: float, *, verified: bool = False) -> None:
        """Leave to a record the node keys that are signed, and no longer than the signature of its device holds.

        Raises ControlError: LOCK_UNSIGNED, LOCK_VOID or LOCK_FORGED. One wrong signature spoils the record, so that
        what was `verified` before, under the same statement, need not be verified again.
        """
        if not self.on:
            return
        try:
            self._admit(record, wall_s, verified)
        except ControlError as error:
            self.refused[record.device] = (record, error.reason)
            if len(self.refused) > REFUSED_MAX:
                del self.refused[next(iter(self.refused))]
            raise
        self.refused.pop(record.device, None)

    def _admit(self, record: Record, wall_s: float, verified: bool) -> None:
        if record.lock is None:
            raise ControlError(ControlDrop.LOCK_UNSIGNED, "record.lk: missing, and the network is locked")
        end = self.device_end(record.device, record.device_key, record.lock["c"], wall_s, verified=verified)
        signed = set()
        for key, not_after, signature in record.lock["k"]:
            text = node_input(self.network, record.device, key, not_after)
            if not verified and not self._crypto.ed25519_verify(record.device_key, text, signature):
                raise ControlError(ControlDrop.LOCK_FORGED, "record.lk.k: not signed by the device's own key")
            if not_after >= wall_s:
                signed.add(key)
        keys = [row for row in record.node_keys if row[0] in signed]
        if not keys:
            raise ControlError(ControlDrop.LOCK_UNSIGNED, "record.nk: none that the device has signed")
        record.node_keys = keys
        if end:
            record.not_after = min(record.not_after, end)

    def device_end(
        self, device: str, device_key: bytes, signatures: list[list[Any]], wall_s: float, *, verified: bool = False
    ) -> int:
        """Until when a device counts by `signatures`, [lock key, not_after, sequence, signature] each; 0 for no end.

        Raises ControlError as `admit` does.
        """
        ends = []
        for by, not_after, sequence, signature in signatures:
            if by not in self.keys:
                continue
            text = device_input(self.network, device, device_key, not_after, sequence)
            if not verified and not self._crypto.ed25519_verify(by, text, signature):
                raise ControlError(ControlDrop.LOCK_FORGED, "record.lk.c: not signed by the lock key that it names")
            if sequence > self.revoked.get(device, -1) and (not_after == 0 or not_after >= wall_s):
                ends.append(not_after)
        if not ends:
            reason = ControlDrop.LOCK_VOID if signatures else ControlDrop.LOCK_UNSIGNED
            raise ControlError(reason, "record.lk.c: no signature that counts")
        return 0 if 0 in ends else max(ends)

    def describe(self, device: str, device_key: bytes, signatures: list[list[Any]], wall_s: float) -> dict[str, Any]:
        """For people, as JSON could say it; `signatures` are this device's own, as its map has them."""
        try:
            self.device_end(device, device_key, signatures, wall_s)
            signed = True
        except ControlError:
            signed = False
        return {
            "on": self.on,
            "statement": self.sequence,
            "keys": [key.hex() for key in self.keys],
            "signed": signed,
            "withheld": self.withheld,
        }

    def digest(self) -> bytes:
        """Names the statement that is held, for what was verified under it (32 B)."""
        return self._crypto.blake2s(b"em1 lock held" + (self.statement or b"".join(self.keys)))

    def encode(self) -> bytes:
        """For the device's own flash; not secret, but nobody else may write it."""
        return encode({"v": 1, "n": self.network, "g": self.given, "k": self.keys, "s": self.statement})

    @classmethod
    def decode(cls, crypto: Crypto, data: bytes) -> Lock:
        """What `encode` wrote. Raises ControlError."""
        fields = _FILE.check(decode(data, max_bytes=LOCK_FILE_BYTES_MAX), "lock")
        lock = cls(crypto, fields["n"], fields["k"])
        lock.given = fields["g"]
        if fields["s"] is not None:
            lock._take(open_statement(crypto, lock.network, fields["s"]))
        return lock
