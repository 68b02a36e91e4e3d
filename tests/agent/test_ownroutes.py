"""What a map puts on the interface, while it is up, down, or somebody else's plaything; and looks that fail."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace
from typing import Any

import pytest

from edgeagent.io import rtnetlink as rt
from edgeagent.io.netlink import AddressChanged, EventsLost, LinkChanged, RouteChanged
from edgeagent.ownroutes import REPAIR_AFTER_S, REPAIR_SPACING_S, OwnRoutes
from edgeagent.tunnel import LOOK_AGAIN_S, Tunnel

INDEX = 7
V4, V6 = (bytes((100, 64, 0, 0)), 10), (b"\xfd" + bytes(15), 48)
ADDRESSES = [bytes((100, 64, 0, 3)), b"\xfd" + bytes(14) + b"\x03"]


def device_map(*addresses: bytes) -> Any:
    return SimpleNamespace(addresses=list(addresses or ADDRESSES), v4=V4, v6=V6)


class Kernel:
    """What a Netlink of it does to one interface, as Linux does it."""

    def __init__(self) -> None:
        self.up = True
        self.addresses: list[bytes] = []
        self.routes: list[tuple[bytes, int]] = []
        self.refuses: dict[int, int] = {}  # by length of an address
        self.own = OwnRoutes(self, INDEX, "edge0")  # type: ignore[arg-type]
        self.now = 0.0

    def add_address(self, index: int, address: bytes, cidr: int) -> None:
        if number := self.refuses.get(len(address)):
            raise OSError(number, os.strerror(number))
        if address not in self.addresses:
            self.addresses.append(address)

    def delete_address(self, index: int, address: bytes, cidr: int) -> None:
        if address not in self.addresses:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        self.addresses.remove(address)

    def replace_route(self, route: rt.Route) -> None:
        if not self.up:
            raise OSError(errno.ENETDOWN, os.strerror(errno.ENETDOWN))
        if (route.destination, route.cidr) not in self.routes:
            self.routes.append((route.destination, route.cidr))

    def set_up(self, up: bool) -> None:
        self.up = up
        if not up:
            self.routes.clear()
            self.addresses = [each for each in self.addresses if len(each) == 4]
        self.own.changed(self.now, LinkChanged(rt.Link(INDEX, "edge0", rt.IFF_UP if up else 0, 1280), False))

    def advance(self, seconds: float) -> int:
        """Returns how often it was woken."""
        end, wakes = self.now + seconds, 0
        while (due := self.own.poll_timeout()) is not None and due <= end:
            self.now = max(self.now, due)
            self.own.on_timeout(self.now)
            wakes += 1
        self.now = end
        return wakes

    def is_right(self) -> bool:
        return sorted(self.addresses) == sorted(ADDRESSES) and self.routes == [V4, V6]


@pytest.fixture
def kernel() -> Kernel:
    made = Kernel()
    made.own.put(device_map())
    assert made.is_right() and made.own.poll_timeout() is None
    return made


def test_what_went_with_the_interface_comes_back_with_it(kernel: Kernel) -> None:
    kernel.set_up(False)
    assert kernel.advance(60.0) == 0
    kernel.set_up(True)
    kernel.advance(REPAIR_AFTER_S)
    assert kernel.is_right()


def test_a_map_that_comes_while_it_is_down_waits(kernel: Kernel) -> None:
    kernel.set_up(False)
    moved = bytes((100, 64, 0, 9))
    kernel.own.take(kernel.now, device_map(moved, ADDRESSES[1]))
    assert kernel.advance(60.0) == 0
    kernel.set_up(True)
    kernel.advance(REPAIR_AFTER_S)
    assert sorted(kernel.addresses) == sorted([moved, ADDRESSES[1]]) and kernel.routes == [V4, V6]


def test_an_address_that_somebody_took_off_is_no_trouble_when_it_has_to_go(kernel: Kernel) -> None:
    kernel.addresses.clear()
    kernel.own.take(kernel.now, device_map(bytes((100, 64, 0, 9)), ADDRESSES[1]))
    assert kernel.addresses == [bytes((100, 64, 0, 9)), ADDRESSES[1]]


@pytest.mark.parametrize(
    "change",
    [
        AddressChanged(rt.Address(INDEX, ADDRESSES[1], 128, 0, 0), True),
        RouteChanged(rt.Route(*V4, INDEX), True),
        EventsLost(),
    ],
    ids=["address", "route", "unknown"],
)
def test_what_is_taken_off_is_put_back_and_not_in_a_hurry_the_second_time(kernel: Kernel, change: Any) -> None:
    kernel.routes.clear()
    kernel.addresses.clear()
    kernel.own.changed(kernel.now, change)
    kernel.advance(REPAIR_AFTER_S)
    assert kernel.is_right()
    kernel.routes.clear()
    for _ in range(100):
        kernel.own.changed(kernel.now, change)
    assert kernel.advance(REPAIR_SPACING_S - 2 * REPAIR_AFTER_S) == 0
    assert kernel.advance(2 * REPAIR_AFTER_S) == 1 and kernel.is_right()


def test_what_others_have_and_what_we_do_is_no_reason(kernel: Kernel) -> None:
    for change in (
        AddressChanged(rt.Address(INDEX, ADDRESSES[0], 32, 0, 0), False),
        RouteChanged(rt.Route(*V4, INDEX), False),
        RouteChanged(rt.Route(*V4, INDEX + 1), True),
        RouteChanged(rt.Route(bytes(4), 0, INDEX), True),
        AddressChanged(rt.Address(INDEX, bytes((192, 0, 2, 1)), 32, 0, 0), True),
        LinkChanged(rt.Link(INDEX, "edge0", rt.IFF_UP, 1280), False),
    ):
        kernel.own.changed(kernel.now, change)
    assert kernel.own.poll_timeout() is None


def test_what_the_kernel_refuses_is_tried_again_now_and_then(kernel: Kernel) -> None:
    kernel.refuses = {4: errno.ENOBUFS}
    kernel.own.take(kernel.now, device_map())
    assert kernel.advance(3 * REPAIR_SPACING_S) == 3
    kernel.refuses = {}
    assert kernel.advance(2 * REPAIR_SPACING_S) == 1 and kernel.is_right()


def test_without_ipv6_there_is_ipv4() -> None:
    kernel = Kernel()
    kernel.refuses = {16: errno.EACCES}
    kernel.own.put(device_map())
    assert kernel.addresses == ADDRESSES[:1] and kernel.routes == [V4]


def test_a_look_at_the_interfaces_that_fails_is_had_a_second_later() -> None:
    def busy() -> list[rt.Route]:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    tunnel = object.__new__(Tunnel)
    tunnel._watch = tunnel._ports = tunnel._uapi = tunnel._aead_job = tunnel._kernel = None
    tunnel._look_at = 5.0
    tunnel._own = SimpleNamespace(on_timeout=lambda now: None)  # type: ignore[assignment]
    tunnel.tun = SimpleNamespace(name="edge0", index=INDEX)  # type: ignore[assignment]
    tunnel.udp = SimpleNamespace(mark=0)  # type: ignore[assignment]
    tunnel.device = SimpleNamespace(peers={}, sources_changed=lambda: None)  # type: ignore[assignment]
    tunnel.engine = SimpleNamespace(sync=lambda now: None)  # type: ignore[assignment]
    tunnel._netlink = SimpleNamespace(default_routes=busy)  # type: ignore[assignment]
    assert tunnel.on_timeout(5.0) is None and tunnel._look_at == 5.0 + LOOK_AGAIN_S
