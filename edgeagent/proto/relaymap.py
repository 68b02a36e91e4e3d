"""The relays that a device may use, as the hub's signed map names them (docs/protocol.md, map)."""

from __future__ import annotations

from typing import Any


class RelayInfo:
    """One relay. `hosts` are "host:port" of its TLS carrier; the UDP carrier and STUN are at the same hosts' addresses.

    `key` is its X25519 key, `udp_port` and `stun_port` (the second port of STUN) are 0 where it has none,
    `certificate_sha256` tells TLS that was intercepted from TLS that was not; trust comes from `key` alone.
    """

    __slots__ = ("certificate_sha256", "hosts", "id", "key", "region", "stun_port", "udp_port")

    def __init__(self, fields: dict[str, Any]) -> None:
        self.id: str = fields["id"]
        self.region: str = fields["rg"]
        self.key: bytes = fields["k"]
        self.hosts: list[str] = fields["h"]
        self.udp_port: int = fields["u"]
        self.stun_port: int = fields["s"]
        self.certificate_sha256: bytes = fields["pin"]

    def encode(self) -> dict[str, Any]:
        """What the constructor takes."""
        return {
            "id": self.id,
            "rg": self.region,
            "k": self.key,
            "h": self.hosts,
            "u": self.udp_port,
            "s": self.stun_port,
            "pin": self.certificate_sha256,
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RelayInfo) and self.encode() == other.encode()

    def __hash__(self) -> int:
        return hash(self.key)
