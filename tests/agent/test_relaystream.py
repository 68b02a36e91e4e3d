"""Connections to relays, over loopback: servers that are relays, that are none, and proxies before them."""

from __future__ import annotations

import errno
import os
import selectors
import socket
import ssl
import threading
import time
from typing import Any

import pytest

from edgeagent.io import pinnedtls
from edgeagent.io.proxy import parse_proxy
from edgeagent.io.relaystream import (
    ADDRESS_TIMEOUT_S,
    CONNECT_TIMEOUT_S,
    OUT_BYTES_MAX,
    READS_PER_TURN_MAX,
    STREAMS_MAX,
    Closed,
    Data,
    Flow,
    Opened,
    _Stage,
)
from edgeagent.proto.relay_http import ResponseReader
from tests.agent.broker import free_port
from tests.agent.servers import UPGRADED, Handler, Tls, say, wait_for_end
from tests.agent.streams import TURNS_S, Serve, Shell, SlowNames, echo, fds, reason

# There


def test_bytes_go_to_a_relay_and_come_back(shell: Shell, serve: Serve, tls: Tls) -> None:
    relay = serve(tls.relay(echo))
    assert isinstance(shell.open(relay.host), Opened) and shell.streams.poll_timeout() is None
    for number in range(50):
        shell.streams.write(time.monotonic(), 1, bytes((number,)) * number)
    assert shell.received(sum(range(50))) == b"".join(bytes((number,)) * number for number in range(50))
    assert len(shell.streams.sockets()) == 1


def test_frames_behind_the_answer_are_not_lost(shell: Shell, serve: Serve, tls: Tls) -> None:
    relay = serve(tls.answer(UPGRADED + b"first frame"))
    assert isinstance(shell.open(relay.host), Opened)
    assert shell.received(11) == b"first frame"


def test_an_answer_in_single_bytes(shell: Shell, serve: Serve, tls: Tls) -> None:
    def drip(sock: socket.socket) -> None:
        sock.recv(65_536)
        for byte in UPGRADED + b"frame":
            sock.sendall(bytes((byte,)))
        wait_for_end(sock)

    assert isinstance(shell.open(serve(tls.serve(drip)).host), Opened)
    assert shell.received(5) == b"frame"


def test_much_at_once_comes_in_portions_and_in_order(shell: Shell, serve: Serve, tls: Tls) -> None:
    sent = os.urandom(1 << 20) * 4
    relay = serve(tls.relay(say(sent)))
    assert isinstance(shell.open(relay.host), Opened)
    got, most = b"", 0
    while len(got) < len(sent):
        shell.turn()
        most = max(most, len(shell.streams.events))
        while shell.streams.events:
            event = shell.streams.events.popleft()
            assert isinstance(event, Data)
            got += event.data
    assert got == sent and most <= 2 * READS_PER_TURN_MAX  # of the selector, and of what TLS held back


def test_names_are_looked_up(shell: Shell, serve: Serve, tls: Tls) -> None:
    relay = serve(tls.relay(wait_for_end))
    assert isinstance(shell.open("no-such-host.invalid:1", f"localhost:{relay.port}"), Opened)


def test_the_relay_closes(shell: Shell, serve: Serve, tls: Tls) -> None:
    assert isinstance(shell.open(serve(tls.relay(lambda sock: None)).host), Opened)
    assert reason(shell.next()) == "closed by the relay"
    shell.streams.write(time.monotonic(), 1, b"nobody")
    shell.streams.close(1)
    assert not shell.streams.events


def test_a_second_opening_replaces_the_first(shell: Shell, serve: Serve, tls: Tls) -> None:
    first, second = serve(tls.relay(echo)), serve(tls.relay(echo))
    assert isinstance(shell.open(first.host), Opened)
    assert isinstance(shell.open(second.host), Opened)
    assert len(shell.streams.sockets()) == 1 and not shell.streams.events


def test_more_than_there_is_room_for(shell: Shell, serve: Serve, tls: Tls) -> None:
    relay = serve(tls.relay(wait_for_end))
    for number in range(STREAMS_MAX):
        assert isinstance(shell.open(relay.host, number=number), Opened)
    assert "too many" in reason(shell.open(relay.host, number=STREAMS_MAX))


# Not there


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "HTTP status 200"),
        (b"HTTP/1.1 302 Found\r\nLocation: https://portal.example/\r\n\r\n", "HTTP status 302"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n", "HTTP status 101"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "HTTP status 101"),
        (b"HTTP/2 200\r\n\r\n", "status line"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "status line"),
        (b"HTTP/1.1 101 x\r\n: y\r\n\r\n", "header"),
        (b"HTTP/1.1 101 x\r\n" + b"a: b\r\n" * 65 + b"\r\n", "headers"),
        (b"x" * 9_000, "8192"),
    ],
)
def test_a_tls_server_that_is_no_relay(shell: Shell, serve: Serve, tls: Tls, answer: bytes, why: str) -> None:
    assert why in reason(shell.open(serve(tls.answer(answer)).host))


def test_an_answer_that_never_ends(shell: Shell, serve: Serve, tls: Tls) -> None:
    def endless(sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\n")
        while True:
            sock.sendall(b"x-more: and more\r\n")

    assert "8192" in reason(shell.open(serve(tls.serve(endless)).host))


def test_a_server_without_tls(shell: Shell, serve: Serve) -> None:
    event = shell.open(serve(say(b"220 smtp.example\r\n")).host)
    assert "127.0.0.1" in reason(event)


def test_nobody_listens(shell: Shell) -> None:
    assert "refused" in reason(shell.open(f"127.0.0.1:{free_port()}"))
    assert reason(shell.open()) == "no host"


def test_hosts_are_tried_in_turn(shell: Shell, serve: Serve, tls: Tls) -> None:
    portal = serve(tls.answer(b"HTTP/1.1 403 Forbidden\r\n\r\n"))
    hung_up = serve(lambda sock: None)
    relay = serve(tls.relay(echo))
    hosts = [f"127.0.0.1:{free_port()}", f"[::1]:{free_port()}", portal.host, hung_up.host, relay.host]
    assert isinstance(shell.open(*hosts), Opened)


def test_silence_is_given_up_and_the_next_host_tried(shell: Shell, serve: Serve, tls: Tls) -> None:
    silent, relay = serve(wait_for_end), serve(tls.relay(echo))
    began = time.monotonic()
    shell.streams.open(began, 1, [silent.host, relay.host])
    shell.until(lambda: shell.stage() == "TLS handshake")
    due = shell.streams.poll_timeout()
    assert due is not None and began + ADDRESS_TIMEOUT_S <= due
    assert isinstance(shell.give_up(), Opened)


def test_an_address_that_swallows_everything_costs_little_while_others_are_left(shell: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        waiting = []
        for _ in range(3):  # whom nobody accepts: the kernel takes no more of them
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(full.getsockname())
        now = time.monotonic()
        host = f"127.0.0.1:{full.getsockname()[1]}"
        for hosts, timeout_s in (([host, f"127.0.0.1:{free_port()}"], CONNECT_TIMEOUT_S), ([host], ADDRESS_TIMEOUT_S)):
            shell.streams.open(now, 1, hosts)
            assert shell.stage() == "connecting" and shell.streams.poll_timeout() == now + timeout_s
            shell.streams.on_timeout(now + timeout_s)
            assert ("refused" if len(hosts) > 1 else "(connecting)") in reason(shell.next())
        for sock in waiting:
            sock.close()


@pytest.mark.parametrize("stage", ["TLS handshake", "waiting for the relay"])
def test_silence_at_each_stage_is_named(shell: Shell, serve: Serve, tls: Tls, stage: str) -> None:
    host = serve(wait_for_end if stage == "TLS handshake" else tls.serve(wait_for_end)).host
    shell.streams.open(time.monotonic(), 1, [host])
    shell.until(lambda: shell.stage() == stage)
    assert reason(shell.give_up()) == f"no answer from 127.0.0.1 ({stage})"


def test_a_system_without_ipv6(shell: Shell, serve: Serve, tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    made = socket.socket

    def only_ipv4(family: int = -1, *args: Any, **more: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        return made(family, *args, **more)

    relay = serve(tls.relay(echo))
    monkeypatch.setattr(socket, "socket", only_ipv4)
    assert os.strerror(errno.EAFNOSUPPORT) in reason(shell.open("[::1]:443"))
    assert isinstance(shell.open("[::1]:443", relay.host), Opened)


def test_whoever_steers_sees_each_socket_before_it_leaves(shell: Shell, serve: Serve, tls: Tls) -> None:
    seen: list[object] = []

    def steer(sock: socket.socket, address: tuple[object, ...]) -> None:
        seen.append(address)
        assert sock.getsockname()[1] == 0

    def refuse(sock: socket.socket, address: tuple[object, ...]) -> None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    relay = serve(tls.relay(echo))
    shell.streams.steer = steer
    assert isinstance(shell.open(f"127.0.0.1:{free_port()}", relay.host), Opened)
    assert len(seen) == 2 and seen[1] == ("127.0.0.1", relay.port)
    shell.streams.steer = refuse
    assert reason(shell.open(relay.host)) == f"127.0.0.1: {os.strerror(errno.ENODEV)}"


def test_addresses_that_are_to_be_avoided(shell: Shell, serve: Serve, tls: Tls) -> None:
    """Those inside the mesh, by name or by number."""
    relay = serve(tls.relay(echo))
    shell.use(avoid=lambda address: address in (bytes((127, 0, 0, 1)), bytes(15) + b"\x01"))
    assert "route" in reason(shell.open(relay.host))
    assert "route" in reason(shell.open(f"localhost:{relay.port}"))


# Streams that take nothing


class Stubborn:
    """A relay that does not read until it is told to."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.got = b""
        self.reset = False

    def __call__(self, sock: socket.socket) -> None:
        self.go.wait(TURNS_S)
        if self.reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            return
        while data := sock.recv(65_536):
            self.got += data


def fill(shell: Shell, piece: bytes) -> int:
    """Write until the stream takes no more; how many pieces it was given."""
    for count in range(1, 10_000):
        shell.streams.write(time.monotonic(), 1, piece)
        if shell.streams.events:
            event = shell.streams.events.popleft()
            assert isinstance(event, Flow) and event.blocked
            return count
    raise AssertionError("it takes everything")


def test_a_stream_that_is_full_says_so_and_loses_nothing(shell: Shell, serve: Serve, tls: Tls) -> None:
    relay = Stubborn()
    server = serve(tls.relay(relay))
    assert isinstance(shell.open(server.host), Opened)
    pieces = fill(shell, bytes(range(256)) * 256)
    shell.streams.write(time.monotonic(), 1, b"one more")
    for _ in range(5):
        shell.turn(0.01)
    assert not shell.streams.events, "told once"
    relay.go.set()
    event = shell.next()
    assert isinstance(event, Flow) and not event.blocked
    shell.until(lambda: len(relay.got) == pieces * 65_536 + 8)
    assert relay.got == bytes(range(256)) * 256 * pieces + b"one more"


def test_a_stream_that_stays_full_is_ended_before_it_takes_much(shell: Shell, serve: Serve, tls: Tls) -> None:
    relay = Stubborn()
    assert isinstance(shell.open(serve(tls.relay(relay)).host), Opened)
    fill(shell, bytes(65_536))
    for _ in range(100):
        shell.streams.write(time.monotonic(), 1, bytes(65_536))
        stream = shell.streams._streams.get(1)
        assert stream is None or len(stream.out) <= OUT_BYTES_MAX
    assert reason(shell.next()) == "the relay does not read" and not shell.streams.events
    relay.go.set()


def test_a_full_stream_that_is_reset(shell: Shell, serve: Serve, tls: Tls) -> None:
    relay = Stubborn()
    relay.reset = True
    assert isinstance(shell.open(serve(tls.relay(relay)).host), Opened)
    fill(shell, bytes(65_536))
    relay.go.set()
    assert reason(shell.next()) and not shell.streams.events and shell.stage() == ""


def test_a_read_that_has_to_write_first_waits_for_room(shell: Shell, serve: Serve, tls: Tls) -> None:
    """A key update of the relay's: what else it sends would wake the agent without end."""
    relay = serve(tls.relay(echo))
    assert isinstance(shell.open(relay.host), Opened)
    stream = shell.streams._streams[1]
    sock: Any = stream.sock

    def want_write(size: int) -> bytes:
        raise ssl.SSLWantWriteError

    def watched() -> int:
        return shell.selector.get_key(sock).events

    for stage in (_Stage.UP, _Stage.UPGRADE):
        stream.stage, stream.reader = stage, ResponseReader()
        sock.recv = want_write
        shell.streams.ready(time.monotonic(), sock.fileno())
        assert watched() == selectors.EVENT_WRITE
        shell.streams.write(time.monotonic(), 1, b"a frame")
        assert watched() == selectors.EVENT_WRITE
        del sock.recv
        stream.stage = _Stage.UP
        shell.streams.ready(time.monotonic(), sock.fileno())
        assert watched() == selectors.EVENT_READ
    shell.streams.write(time.monotonic(), 1, b"another")
    assert shell.received(14) == b"a frameanother"


# Ends


def test_which_connections_would_be_made_from_the_same_address_now(shell: Shell, serve: Serve, tls: Tls) -> None:
    server = serve(tls.relay(wait_for_end))
    shell.streams.steer = lambda sock, address: sock.bind(("127.0.0.2", 0))  # the kernel would take 127.0.0.1
    assert isinstance(shell.open(server.host, number=1), Opened)
    shell.streams.steer = None
    assert isinstance(shell.open(server.host, number=2), Opened)
    shell.streams.open(time.monotonic(), 3, [server.host])  # not up yet
    assert shell.streams.as_routed() == [2]


@pytest.mark.parametrize(
    "stage", ["resolving", "connecting", "waiting for the proxy", "TLS handshake", "waiting for the relay", "up"]
)
def test_closing_leaves_nothing_behind_at_any_stage(
    shell: Shell, serve: Serve, tls: Tls, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers: dict[str, Handler] = {
        "waiting for the relay": tls.serve(wait_for_end),
        "up": tls.relay(wait_for_end),
    }
    server = serve(handlers.get(stage, wait_for_end))
    if stage == "waiting for the proxy":
        shell.use(parse_proxy(server.host))
    if stage == "resolving":
        slow = SlowNames(monkeypatch)
    for how in ("close", "timeout", "close_all", "open"):
        before = fds()
        host = "a.example:443" if stage == "resolving" else server.host
        shell.streams.open(time.monotonic(), 1, [host])
        shell.until(lambda: shell.stage() == stage)
        if how == "close":
            shell.streams.close(1)
        elif how == "close_all":
            shell.streams.close_all()
        elif how == "open":
            shell.streams.open(time.monotonic(), 1, [])
        elif stage == "up":
            continue
        else:
            shell.streams.on_timeout(time.monotonic() + 60.0)
        assert shell.stage() == "" and not shell.selector.get_map() and not shell.streams._by_fd
        if stage == "resolving":
            slow.answer.set()
            for thread in list(pinnedtls.Resolver._threads):
                thread.join(TURNS_S)
            slow.answer.clear()
        shell.until_fds(before)
        shell.streams.events.clear()
    if stage == "resolving":
        slow.answer.set()


def test_failures_leave_no_descriptor(shell: Shell, serve: Serve, tls: Tls) -> None:
    portal = serve(tls.answer(b"HTTP/1.1 403 Forbidden\r\n\r\n"))
    hosts, before = [f"127.0.0.1:{free_port()}", "[::1]:1", portal.host], fds()
    for _ in range(20):
        assert isinstance(shell.open(*hosts), Closed)
    shell.until_fds(before)
    assert not shell.selector.get_map()
    assert not shell.streams._by_fd
