"""The way to a relay: names that are looked up, and HTTP proxies that are asked."""

from __future__ import annotations

import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable

import pytest

from edgeagent.io import pinnedtls
from edgeagent.io.pinnedtls import RESOLVERS_MAX
from edgeagent.io.proxy import parse_proxy
from edgeagent.io.relaystream import (
    ADDRESS_TIMEOUT_S,
    Opened,
)
from edgeagent.proto.errors import RemoteProtocolError
from tests.agent.broker import free_port
from tests.agent.servers import Proxy, Tls, wait_for_end
from tests.agent.streams import TURNS_S, Serve, Shell, SlowNames, echo, fds, reason

# Name servers


def test_a_name_server_that_does_not_answer_holds_nothing_up_and_few_threads(shell: Shell, slow: SlowNames) -> None:
    before = threading.active_count()
    for number in range(20):
        shell.streams.open(time.monotonic(), 1, [f"a{number}.example:443", f"b{number}.example:443"])
        assert shell.stage() == "resolving"
        shell.streams.on_timeout(time.monotonic() + ADDRESS_TIMEOUT_S)
        assert threading.active_count() - before <= RESOLVERS_MAX
    assert slow.asked <= RESOLVERS_MAX
    shell.streams.close(1)
    assert "name servers do not answer" in reason(shell.open("c.example:443"))
    slow.answer.set()
    for thread in list(pinnedtls.Resolver._threads):
        thread.join(TURNS_S)
    assert "Temporary failure" in reason(shell.open("c.example:443"))


def test_a_look_up_that_ends_after_its_stream(shell: Shell, slow: SlowNames) -> None:
    before = fds()
    shell.streams.open(time.monotonic(), 1, ["a.example:443"])
    shell.streams.close(1)
    assert not shell.selector.get_map()
    slow.answer.set()
    for thread in list(pinnedtls.Resolver._threads):
        thread.join(TURNS_S)
    assert fds() == before and not shell.streams.events


def test_an_answer_that_comes_too_late_is_used_the_next_time(
    shell: Shell, serve: Serve, tls: Tls, slow: SlowNames
) -> None:
    server = serve(tls.relay(echo))
    port = server.host.rpartition(":")[2]
    host = f"relay.example:{port}"
    slow.found = [("127.0.0.1", int(port))]
    before = fds()
    shell.streams.open(time.monotonic(), 1, [host])
    assert "resolving" in reason(shell.give_up()) and fds() <= before + 1
    shell.streams.open(time.monotonic(), 1, [host])  # while it is still asked for
    assert shell.stage() == "resolving"
    shell.streams.close(1)
    slow.answer.set()
    for thread in list(pinnedtls.Resolver._threads):
        thread.join(TURNS_S)
    assert isinstance(shell.open(host), Opened) and slow.asked == 1


def test_a_relay_whose_name_is_not_found_is_where_it_was(shell: Shell, serve: Serve, tls: Tls, slow: SlowNames) -> None:
    server = serve(tls.relay(echo))
    port = server.host.rpartition(":")[2]
    host = f"relay.example:{port}"
    slow.found = [("127.0.0.1", int(port))]
    slow.answer.set()
    assert isinstance(shell.open(host), Opened)
    slow.found = []
    assert isinstance(shell.open(host), Opened), "an error"
    slow.answer.clear()
    shell.streams.open(time.monotonic(), 1, [host])
    due = shell.streams.poll_timeout()
    assert due is not None
    shell.streams.on_timeout(due)
    assert isinstance(shell.next(), Opened), "no answer"
    slow.answer.set()


# Proxies


def test_through_a_proxy(
    shell: Shell, serve: Serve, proxy_of: Callable[..., Proxy], tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which looks up names itself: here nobody may know them."""
    relay, proxy = serve(tls.relay(echo)), proxy_of(names={"relay.example": "127.0.0.1"})
    shell.use(parse_proxy(proxy.host))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **more: pytest.fail("looked up"))
    assert isinstance(shell.open(f"relay.example:{relay.port}"), Opened)
    shell.streams.write(time.monotonic(), 1, b"through")
    assert shell.received(7) == b"through"
    assert proxy.heads == [f"CONNECT relay.example:{relay.port} HTTP/1.1\r\nHost: relay.example:{relay.port}\r\n\r\n"]


def test_through_a_proxy_with_a_name(shell: Shell, serve: Serve, proxy_of: Callable[..., Proxy], tls: Tls) -> None:
    relay, proxy = serve(tls.relay(echo)), proxy_of()
    shell.use(parse_proxy(f"localhost:{proxy.port}"))
    assert isinstance(shell.open(relay.host), Opened)


def test_a_proxy_that_wants_to_know_who(shell: Shell, serve: Serve, proxy_of: Callable[..., Proxy], tls: Tls) -> None:
    login = "me@site:p:w@1"
    relay, proxy = serve(tls.relay(echo)), proxy_of(wanted=b64encode(login.encode()).decode())
    shell.use(parse_proxy(f"{login}@{proxy.host}"))
    assert isinstance(shell.open(relay.host), Opened)
    shell.use(parse_proxy(f"me:secret-word@{proxy.host}"))
    why = reason(shell.open(relay.host))
    assert "407 (user and password)" in why and "secret-word" not in why
    shell.use(parse_proxy(proxy.host))
    assert "407" in reason(shell.open(relay.host))


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "the proxy answers 403"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://portal.example/\r\n\r\n", "the proxy answers 302"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "the proxy answers 100"),
        (b"HTTP/1.1 200 OK\r\n\r\nand more", "the proxy answers 200"),
        (b"SOCKS\r\n\r\n", "status line"),
        (b"y" * 10_000, "8192"),
    ],
)
def test_a_proxy_that_does_not(
    shell: Shell, serve: Serve, proxy_of: Callable[..., Proxy], tls: Tls, answer: bytes, why: str
) -> None:
    shell.use(parse_proxy(proxy_of(answer=answer).host))
    assert why in reason(shell.open(serve(tls.relay(echo)).host))


def test_a_proxy_that_cannot_get_there(shell: Shell, proxy_of: Callable[..., Proxy]) -> None:
    shell.use(parse_proxy(proxy_of().host))
    assert "the proxy answers 502" in reason(shell.open(f"127.0.0.1:{free_port()}"))


def test_a_proxy_that_hangs_or_hangs_up(shell: Shell, serve: Serve) -> None:
    shell.use(parse_proxy(serve(wait_for_end).host))
    shell.streams.open(time.monotonic(), 1, ["relay.example:443"])
    shell.until(lambda: shell.stage() == "waiting for the proxy")
    assert reason(shell.give_up()) == "no answer from relay.example (waiting for the proxy)"
    shell.use(parse_proxy(serve(lambda sock: sock.close()).host))
    assert "relay.example: " in reason(shell.open("relay.example:443"))
    shell.use(parse_proxy(f"127.0.0.1:{free_port()}"))
    assert "refused" in reason(shell.open("relay.example:443"))


def test_every_host_goes_through_the_proxy(
    shell: Shell, serve: Serve, proxy_of: Callable[..., Proxy], tls: Tls
) -> None:
    relay, proxy = serve(tls.relay(echo)), proxy_of()
    shell.use(parse_proxy(proxy.host))
    assert isinstance(shell.open(f"127.0.0.1:{free_port()}", relay.host), Opened)
    assert len(proxy.heads) == 2


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("proxy.example:3128", ("proxy.example", 3128, "", "")),
        ("[2001:db8::1]:8080", ("2001:db8::1", 8080, "", "")),
        ("me:word@192.0.2.1:80", ("192.0.2.1", 80, "me", "word")),
        ("me:@192.0.2.1:80", ("192.0.2.1", 80, "me", "")),
        ("a@b:c:d@e@proxy:1", ("proxy", 1, "a@b", "c:d@e")),
    ],
)
def test_the_setting_is_read(text: str, parts: tuple[str, int, str, str]) -> None:
    proxy = parse_proxy(text)
    assert proxy is not None and (proxy.host, proxy.port, proxy.user, proxy.password) == parts


def test_no_setting_and_a_wrong_one() -> None:
    assert parse_proxy("") is None
    with pytest.raises(RemoteProtocolError, match="proxy"):
        parse_proxy("proxy:0")
