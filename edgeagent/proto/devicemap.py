"""What the hub has told a device about itself: its map (docs/protocol.md, map)."""

from __future__ import annotations

from typing import Any

from edgeagent.proto.control import MAP_BYTES_MAX
from edgeagent.proto.crypto import Crypto
from edgeagent.proto.refusals import ControlDrop, ControlError
from edgeagent.proto.relaymap import RelayInfo
from edgeagent.proto.signed import Signed, open_signed

SIGNATURE_LEFT_S = 60 * 86_400  # a node key that is used for so long yet is signed again


class DeviceMap:
    """A verified map. `v4` and `v6` are the network's prefixes, `addresses` the device's own (4 B, 16 B).

    `node_keys` are (key, not_after), the one in use first; `not_after` ends the admission. Wall seconds, 0 for never.
    `names` is what the name server says beside hosts (dnssettings.py). `relays` are those that the device may use,
    `passes` lets it in there: a signed object for each of its node keys.
    `routes` are the prefixes behind others that it may use, `approved` those that others may reach through it, and
    `clients` the plain WireGuard clients that it is the gateway of: (key, IPv4, IPv6). `broker_pass` (brokerpass.py) is
    for brokers that know no accounts; empty where they do.
    """

    __slots__ = (
        "addresses",
        "approved",
        "broker_pass",
        "clients",
        "device",
        "domain",
        "feed_generation",
        "feed_key",
        "hosts",
        "hub_box_key",
        "lock",
        "name",
        "names",
        "node_keys",
        "not_after",
        "passes",
        "policy",
        "raw",
        "relays",
        "routes",
        "settings",
        "stamp",
        "tags",
        "trial",
        "update",
        "update_root",
        "v4",
        "v6",
        "wall_s",
    )

    def __init__(self, signed: Signed) -> None:
        body = signed.body
        self.raw = signed.raw
        self.stamp = signed.stamp
        self.wall_s = signed.wall_s
        self.device: str = body["id"]
        self.name: str = body["name"]
        self.addresses: tuple[bytes, bytes] = (body["addrs"][0], body["addrs"][1])
        self.tags: list[str] = body["tags"]
        self.domain: str = body["domain"]
        self.v4: tuple[bytes, int] = (body["v4"][0], body["v4"][1])
        self.v6: tuple[bytes, int] = (body["v6"][0], body["v6"][1])
        self.feed_key: bytes = body["fk"]
        self.feed_generation: int = body["fg"]
        self.hub_box_key: bytes = body["bx"]
        self.hosts: list[str] = body["h"]
        self.node_keys: list[tuple[bytes, int]] = [(key, not_after) for key, not_after in body["nk"]]
        self.not_after: int = body["na"]
        self.settings: dict[str, int] = body["set"]
        self.relays = [RelayInfo(relay) for relay in body.get("rl", [])]
        self.passes: list[bytes] = body.get("ps", [])
        self.policy: dict[str, Any] | None = body.get("po")  # policy.py reads it
        self.names: dict[str, Any] = body.get("dn", {})
        routes = body.get("ro")  # None: a hub that does not say, so that records alone do
        self.routes: list[tuple[bytes, int]] | None = (
            None if routes is None else [(each[0], each[1]) for each in routes]
        )
        self.approved: list[tuple[bytes, int]] = [(address, length) for address, length in body.get("ra", [])]
        self.clients: list[tuple[bytes, bytes, bytes]] = [(key, v4, v6) for key, v4, v6 in body.get("cl", [])]
        self.lock: dict[str, Any] | None = body.get("lk")  # statements `s`, and control.LOCK_FIELDS of this device
        # the version that is wanted, the first root of updates, and settings to be tried: as control.py has them
        self.update: dict[str, Any] | None = body.get("up")
        self.update_root: list[Any] | None = body.get("ur")
        self.trial: dict[str, Any] | None = body.get("se")
        self.broker_pass: bytes = body.get("bp", b"")
        if self.device != signed.subject:
            raise ControlError(ControlDrop.WRONG_SUBJECT, f"map.id: {signed.subject} expected, got {self.device}")

    def setting(self, name: str, default: int, low: int, high: int) -> int:
        """A setting of the hub's, held within what a device can bear."""
        return min(max(self.settings.get(name, default), low), high)

    def lacks_signature(self, node_key: bytes, wall_s: float) -> bool:
        """Whether the network has a lock, and the hub no signature by this device of a node key of its own that holds
        for a while."""
        if self.lock is None:
            return False
        ends = (not_after for key, not_after, _ in self.lock["k"] if key == node_key)
        return max(ends, default=0) < wall_s + SIGNATURE_LEFT_S

    def elsewhere(self) -> list[tuple[bytes, int]]:
        """Prefixes that others route and that share no address with what it routes itself."""
        from edgeagent.proto.prefixes import overlap  # only gateways ask

        return [
            prefix
            for prefix in self.routes or ()
            if prefix[1] and not any(overlap(prefix, own) for own in self.approved)
        ]

    def overlaps(self, address: bytes, length: int) -> bool:
        """Whether a prefix shares an address with the network's own."""
        prefix, own_length = self.v4 if len(address) == 4 else self.v6
        shift = 8 * len(address) - min(length, own_length)
        return int.from_bytes(address, "big") >> shift == int.from_bytes(prefix, "big") >> shift

    def holds(self, address: bytes) -> bool:
        """Whether an address (4 or 16 B) is within the network's own prefixes."""
        prefix, length = self.v4 if len(address) == 4 else self.v6
        shift = 8 * len(address) - length
        return int.from_bytes(address, "big") >> shift == int.from_bytes(prefix, "big") >> shift


def open_map(crypto: Crypto, network_key: bytes, data: bytes, *, network: str, device: str) -> DeviceMap:
    """A signed map object of this device. Raises ControlError; whether it is newer than another is the caller's."""
    return DeviceMap(
        open_signed(crypto, network_key, data, kind="map", network=network, subject=device, max_bytes=MAP_BYTES_MAX)
    )
