"""Out of maps: who a region's other relays are, and where those are that this one is to call."""

from __future__ import annotations

import errno
import os
import selectors
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from edgeagent.io import pinnedtls
from edgeagent.proto.relaymap import RelayInfo
from relay.connection import Place
from relay.neighbours import RESOLVE_AGAIN_S, RETRY_S, Neighbourhood, Neighbours
from tests.hub.rig import wait_until

A, B = 16 * "a", 16 * "b"
LOW, OWN, HIGH = (bytes((n,)) * 32 for n in (1, 5, 9))


def info(key: bytes, *hosts: str, name: str = "fra-2") -> RelayInfo:
    fields = {"id": name, "rg": "fra", "k": key, "h": list(hosts), "u": 3478, "s": 0, "pin": bytes(32)}
    return RelayInfo(fields)


@pytest.mark.parametrize("lacking", ["socketpair", "Thread", "register"])
def test_a_look_up_without_descriptors_or_threads_is_made_later(
    found: Found, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    def no_descriptor(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patched:
        if lacking == "socketpair":
            patched.setattr(socket, "socketpair", no_descriptor)
        elif lacking == "Thread":
            patched.setattr(threading.Thread, "start", no_thread)
        else:
            patched.setattr(found.selector, "register", no_descriptor)
        found.neighbours.set(0.0, A, [info(HIGH, "localhost:8443")])
        assert found.neighbours.poll_timeout() == RETRY_S
        found.neighbours.on_timeout(RETRY_S)
        assert found.neighbours.poll_timeout() == 2 * RETRY_S
        if lacking != "register":  # whose thread ends when it likes
            assert len(os.listdir("/proc/self/fd")) == before
    found.neighbours.take()
    found.neighbours.on_timeout(2 * RETRY_S)
    wait_until(lambda: bool((new := found.neighbours.take()) and new.calls), "the address of localhost", found.turn)


class Found:
    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.neighbours = Neighbours(OWN, self.selector)

    def turn(self) -> None:
        for key, _ in self.selector.select(0.05):
            key.data(time.monotonic(), key.fd)


@pytest.fixture
def found() -> Iterator[Found]:
    made = Found()
    yield made
    made.neighbours.close()
    made.selector.close()


def taken(found: Found) -> Neighbourhood:
    taken = found.neighbours.take()
    assert taken is not None
    return taken


def test_maps_are_put_together_by_key(found: Found) -> None:
    found.neighbours.set(0.0, A, [info(HIGH, "198.51.100.7:443"), info(LOW, "198.51.100.8:443", name="fra-3")])
    found.neighbours.set(0.0, B, [info(HIGH, "198.51.100.7:443", name="r-1")])
    both = taken(found)
    assert {key: (n.id, n.networks) for key, n in both.neighbours.items()} == {
        HIGH: ("fra-2", frozenset((A, B))),
        LOW: ("fra-3", frozenset((A,))),
    }
    # The one with the lesser key calls
    assert [(call.places, call.key) for call in both.calls] == [
        ([Place("fra-2", "198.51.100.7", 443, bytes(32)), Place("r-1", "198.51.100.7", 443, bytes(32))], HIGH)
    ]
    assert found.neighbours.take() is None and found.neighbours.poll_timeout() is None
    found.neighbours.set(1.0, A, [])
    left = taken(found)
    assert {key: n.networks for key, n in left.neighbours.items()} == {HIGH: frozenset((B,))}
    assert left.calls[0].place.sibling == "r-1"


def test_a_key_of_small_order_is_nobodys(found: Found) -> None:
    weak = bytes.fromhex("ec" + 30 * "ff" + "7f")
    found.neighbours.set(0.0, A, [info(weak, "198.51.100.7:443")])
    assert not (got := taken(found)).neighbours and not got.calls


def test_an_address_goes_before_names(found: Found) -> None:
    found.neighbours.set(0.0, A, [info(HIGH, "relay.invalid:1", "[2001:db8::7]:8443")])
    [call] = taken(found).calls
    assert (call.place.host, call.place.port) == ("2001:db8::7", 8443)


def test_names_are_looked_up_one_by_one_and_again(found: Found) -> None:
    others = [info(HIGH, "no-such-host.invalid:443", "localhost:8443"), info(LOW, "localhost:1", name="calls-us")]
    found.neighbours.set(0.0, A, others)
    assert len(taken(found).neighbours) == 2
    calls = []

    def called() -> bool:
        new = found.neighbours.take()
        calls.extend([] if new is None else new.calls)
        return bool(calls)

    wait_until(called, "the address of localhost", found.turn, 90.0)  # a resolver that is asked first may take 20 s
    assert calls[0].place.port == 8443 and calls[0].place.host in ("127.0.0.1", "::1")
    assert found.neighbours.poll_timeout() == RESOLVE_AGAIN_S
    found.neighbours.on_timeout(RESOLVE_AGAIN_S)
    assert found.neighbours.poll_timeout() == 2 * RESOLVE_AGAIN_S


def test_a_name_that_fails_before_anyone_looks_does_not_hold_up_the_next(
    found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def answer(host: bytes, *_: object, **__: object) -> list[object]:
        asked.append(host)
        if host == b"gone.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.7", 0))]

    monkeypatch.setattr(pinnedtls, "look_up", answer)
    monkeypatch.setattr(threading.Thread, "start", threading.Thread.run)
    found.neighbours.set(0.0, A, [info(HIGH, "gone.invalid:443", "here.invalid:8443")])
    assert found.neighbours.poll_timeout() == RESOLVE_AGAIN_S
    found.turn()
    found.turn()
    assert asked == [b"gone.invalid", b"here.invalid"]
    assert [(call.place.host, call.place.port) for call in taken(found).calls] == [("192.0.2.7", 8443)]
