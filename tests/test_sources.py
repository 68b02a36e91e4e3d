"""Source addresses that are new are looked at once, a bounded number at a time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from edgeagent.proto.endpoint import Endpoint
from edgeagent.surroundings import LOOKS_MAX, NewSources


class Kernel:
    """Leads everything out by `interface`, and counts how often it is asked."""

    def __init__(self, interface: int) -> None:
        self.interface = interface
        self.asked = 0

    def route_to(self, _to: bytes, _source: bytes, _mark: int) -> Any:
        self.asked += 1
        return SimpleNamespace(index=self.interface)


class Peers:
    def __init__(self, count: int) -> None:
        self.peers = {i.to_bytes(32, "big"): SimpleNamespace(endpoint=None) for i in range(count)}

    def pin(self, interface: int) -> None:
        for i, peer in enumerate(self.peers.values()):
            peer.endpoint = Endpoint(("192.0.2.9", 1 + i), (bytes((192, 0, 2, 1)), interface))

    def pinned(self) -> int:
        return sum(peer.endpoint is not None and peer.endpoint.local is not None for peer in self.peers.values())

    def sources_changed(self) -> None:
        pass

    def transmit_failed(self, _now: float, endpoint: Endpoint) -> None:
        for peer in self.peers.values():
            if peer.endpoint == endpoint:
                peer.endpoint = endpoint.unpinned()


def check(sources: NewSources, peers: Peers, kernel: Kernel, *, anew: bool = False) -> int:
    """How many questions the kernel was asked."""
    before = kernel.asked
    sources.check(0.0, peers, kernel, 0, anew=anew)  # type: ignore[arg-type]
    return kernel.asked - before


def test_what_is_fine_is_asked_about_once_and_after_each_change() -> None:
    sources, peers, kernel = NewSources(), Peers(3), Kernel(2)
    assert check(sources, peers, kernel, anew=True) == 0, "none is pinned"
    peers.pin(2)
    assert [check(sources, peers, kernel) for _ in range(3)] == [3, 0, 0]
    assert check(sources, peers, kernel, anew=True) == 3
    assert peers.pinned() == 3


def test_what_is_pinned_anew_after_the_change_is_let_go_again() -> None:
    sources, peers, kernel = NewSources(), Peers(3), Kernel(2)
    peers.pin(2)
    check(sources, peers, kernel)
    kernel.interface = 3
    check(sources, peers, kernel, anew=True)
    assert peers.pinned() == 0
    peers.pin(2)  # by what was on its way
    check(sources, peers, kernel)
    assert peers.pinned() == 0


def test_many_are_looked_at_in_turns() -> None:
    sources, peers, kernel = NewSources(), Peers(2 * LOOKS_MAX + 5), Kernel(2)
    peers.pin(2)
    asked = [check(sources, peers, kernel, anew=not turn) for turn in range(4)]
    assert asked == [LOOKS_MAX, LOOKS_MAX, 5, 0]
    kernel.interface = 3
    for turn in range(3):
        check(sources, peers, kernel, anew=not turn)
    assert peers.pinned() == 0
