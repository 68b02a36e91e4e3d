"""What maps ask of the tunnel: plain clients become peers, move and go."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edgeagent import crypto
from edgeagent.proto.device import Device
from edgeagent.proto.limits import Limits
from edgeagent.proto.refusals import ControlDrop
from edgeagent.proto.tai64n import Tai64nClock
from edgeagent.proto.tunnelrules import TunnelRules

PHONE, PRINTER, THIRD = b"\7" * 32, b"\x08" * 32, b"\x09" * 32
A, B = (bytes((100, 64, 0, 20)), bytes(15) + b"\1"), (bytes((100, 64, 0, 21)), bytes(15) + b"\2")


class Gateway:
    def __init__(self, **limits: int) -> None:
        self.device = Device(
            0.0,
            crypto=crypto.load(),
            entropy=bytes,
            jitter=lambda: 0.0,
            tai64n=Tai64nClock(0.0, 1.7e9),
            limits=Limits(**{"peers": 2} | limits),
        )
        self.map = SimpleNamespace(clients=[])
        self.drops: list[ControlDrop] = []
        client: Any = SimpleNamespace(map=self.map, count=self.drops.append)
        self.rules = TunnelRules(self.device, client)

    def meet(self, *clients: tuple[bytes, tuple[bytes, bytes]]) -> dict[bytes, list[tuple[bytes, int]]]:
        """A map with these clients comes; the prefixes of each peer after it."""
        self.map.clients = [(key, *addresses) for key, addresses in clients]
        self.rules.meet_clients(1.0)
        return {key: sorted(self.device.allowed_ips.of_peer(peer)) for key, peer in self.device.peers.items()}


def prefixes(addresses: tuple[bytes, bytes]) -> list[tuple[bytes, int]]:
    return sorted((address, 8 * len(address)) for address in addresses)


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


def test_clients_come_and_go(gateway: Gateway) -> None:
    assert gateway.meet((PHONE, A)) == {PHONE: prefixes(A)}
    peer = gateway.device.peers[PHONE]
    assert gateway.meet((PHONE, A), (PRINTER, B)) == {PHONE: prefixes(A), PRINTER: prefixes(B)}
    assert gateway.device.peers[PHONE] is peer
    assert gateway.meet((PRINTER, B)) == {PRINTER: prefixes(B)}


def test_a_client_that_was_made_anew_has_its_new_addresses_only(gateway: Gateway) -> None:
    """Removed and added again under the same key, while this device heard nothing of either."""
    gateway.meet((PHONE, A))
    assert gateway.meet((PHONE, B)) == {PHONE: prefixes(B)}
    assert gateway.meet((PHONE, A), (PRINTER, B)) == {PHONE: prefixes(A), PRINTER: prefixes(B)}
    assert gateway.meet((PHONE, B), (PRINTER, A)) == {PHONE: prefixes(B), PRINTER: prefixes(A)}


def test_where_there_is_no_room_it_is_counted_and_the_next_map_tries_again(gateway: Gateway) -> None:
    assert set(gateway.meet((PHONE, A), (PRINTER, B), (THIRD, A))) == {PHONE, PRINTER}
    assert gateway.drops == [ControlDrop.TABLE_FULL]
    assert set(gateway.meet((PRINTER, B), (THIRD, A))) == {PRINTER, THIRD}


def test_a_device_that_is_a_peer_already_is_no_client(gateway: Gateway) -> None:
    peer = gateway.device.add_peer(0.0, PHONE)
    assert gateway.meet((PHONE, A)) == {PHONE: []}
    assert gateway.meet() == {PHONE: []} and gateway.device.peers[PHONE] is peer


def test_a_client_with_room_for_half_of_it_is_no_peer() -> None:
    gateway = Gateway(allowed_ips=3)
    assert gateway.meet((PHONE, A), (PRINTER, B)) == {PHONE: prefixes(A)}
    assert gateway.drops == [ControlDrop.TABLE_FULL]
    assert gateway.meet((PRINTER, B)) == {PRINTER: prefixes(B)}
