"""Lock keys, and what they sign, for tests of the network lock."""

from __future__ import annotations

from typing import Any

from edgeagent.proto.lock import NODE_SIGNATURE_LIFE_S, device_input, node_input
from edgeagent.proto.signed import sign_object
from tests.control_kit import CRYPTO, NETWORK, WALL_S


class Owner:
    """Who has a lock key."""

    def __init__(self, number: int) -> None:
        self.seed = bytes([200 + number]) * 32
        self.key = CRYPTO.ed25519_public(self.seed)

    def statement(self, sequence: int, *keys: bytes, on: bool = True, **changes: Any) -> bytes:
        """The owner's own key is among `keys` if they are left out."""
        revoked = changes.pop("revoked", {})
        body = {"by": self.key, "on": on, "k": list(keys or (self.key,)), "rv": [list(row) for row in revoked.items()]}
        arguments: dict[str, Any] = {
            "kind": "lock",
            "network": NETWORK,
            "subject": "hub",
            "epoch": 0,
            "seq": sequence,
            "wall_s": WALL_S,
            "body": {**body, **changes.pop("body", {})},
        }
        return sign_object(CRYPTO, changes.pop("seed", self.seed), **{**arguments, **changes})

    def device(
        self, device: str, key: bytes, *, network: str = NETWORK, not_after: int = 0, sequence: int = int(WALL_S)
    ) -> list[Any]:
        """A row of `c` in the field `lk`."""
        text = device_input(network, device, key, not_after, sequence)
        return [self.key, not_after, sequence, CRYPTO.ed25519_sign(self.seed, text)]


def node_row(seed: bytes, device: str, key: bytes, *, network: str = NETWORK, not_after: int = 0) -> list[Any]:
    """A row of `k` in the field `lk`, signed by a device's own key."""
    end = not_after or int(WALL_S) + NODE_SIGNATURE_LIFE_S
    return [key, end, CRYPTO.ed25519_sign(seed, node_input(network, device, key, end))]
