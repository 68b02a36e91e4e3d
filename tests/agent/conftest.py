"""Servers and streams that end with the test that made them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from edgeagent.io import pinnedtls
from tests.agent.servers import Handler, Proxy, Server, Tls
from tests.agent.streams import TURNS_S, Shell, SlowNames


@pytest.fixture
def shell() -> Iterator[Shell]:
    shell = Shell()
    yield shell
    shell.streams.close_all()
    assert not shell.selector.get_map() and not shell.streams._by_fd and shell.streams.poll_timeout() is None
    shell.selector.close()


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return Tls(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def serve() -> Iterator[Callable[[Handler], Server]]:
    servers: list[Server] = []

    def start(handler: Handler) -> Server:
        servers.append(Server(handler))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def proxy_of() -> Iterator[Callable[..., Proxy]]:
    proxies: list[Proxy] = []

    def start(**options: Any) -> Proxy:
        proxies.append(Proxy(**options))
        return proxies[-1]

    yield start
    for proxy in proxies:
        proxy.close()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowNames]:
    names = SlowNames(monkeypatch)
    yield names
    names.answer.set()
    for thread in pinnedtls.Resolver._threads:
        thread.join(TURNS_S)
        assert not thread.is_alive()
