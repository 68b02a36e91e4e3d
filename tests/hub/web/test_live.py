"""Changes reach those who look on: by datagrams from whoever commits them, and by server-sent events to pages."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import Request

from hub import people
from hub.core.roles import Access, Principal
from hub.io.live import DEVICES_MAX, Listener, announce
from hub.web import live
from hub.web.auth import current_user
from hub.web.errors import Problem
from tests.hub.web.kit import Browser, Site


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    listener = Listener(tmp_path / "live")
    yield listener
    listener.close()


def test_what_is_announced_is_heard_once(tmp_path: Path, listener: Listener) -> None:
    announce(tmp_path / "live", ["device d-1", "tokens", "device d-1", "device d-2"])
    assert listener.take() == [{"kind": "tokens"}, {"device": "d-1"}, {"device": "d-2"}]
    assert listener.take() == []
    announce(tmp_path / "live", [f"device {number}" for number in range(DEVICES_MAX + 1)])
    assert listener.take() == [{"kind": "devices"}]
    announce(tmp_path / "live", [])
    announce(tmp_path / "nowhere", ["tokens"])
    assert listener.take() == []


def test_a_listener_that_sleeps_holds_nobody_up(tmp_path: Path, listener: Listener) -> None:
    for number in range(5_000):
        announce(tmp_path / "live", [f"device {number}"])
    assert 0 < len(listener.take(10_000)) < 5_000


def test_a_listener_that_was_killed_is_cleared_away(tmp_path: Path) -> None:
    dead = Listener(tmp_path / "live")
    dead._socket.close()
    assert len(os.listdir(tmp_path / "live")) == 1
    announce(tmp_path / "live", ["tokens"])
    assert os.listdir(tmp_path / "live") == []


def test_nonsense_in_a_datagram(tmp_path: Path, listener: Listener) -> None:
    import socket

    [name] = os.listdir(tmp_path / "live")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        for data in (b"", b"{", b"[]", b"\xff", b'{"kind": "x"}'):
            sender.sendto(data, str(tmp_path / "live" / name))
    assert listener.take() == [{"kind": "x"}]


class Quiet(Listener):
    """Hears what the test puts into it."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    def take(self, limit: int = 256) -> list[dict[str, Any]]:
        taken, self.messages = self.messages, []
        return taken


def heard(messages: list[list[dict[str, Any]]], **also: Any) -> list[dict[str, Any]]:
    """What a viewer has in its queue after these were announced, a gathering each."""

    async def run() -> list[dict[str, Any]]:
        quiet = Quiet()
        broadcaster = live.Broadcaster(quiet, also)
        got = []
        with broadcaster.viewer("u-1") as queue:
            for part in messages:
                quiet.messages = part
                broadcaster._read()
                broadcaster._say()
            while not queue.empty():
                got.append(queue.get_nowait())
        assert len(broadcaster) == 0
        return got

    return asyncio.run(run())


def test_a_viewer_hears_each_change_once_a_gathering() -> None:
    one, two = {"device": "d-1"}, {"kind": "tokens"}
    assert heard([[one, two, one], [one]]) == [one, two, one]


def test_many_devices_are_one_change() -> None:
    assert heard([[{"device": str(n)} for n in range(live.DEVICES_MAX + 1)]]) == [{"kind": "devices"}]


def test_a_viewer_that_reads_nothing_is_told_that_it_missed_something() -> None:
    parts = [[{"device": str(n)}] for n in range(3 * live.QUEUE_MAX)]
    got = heard(parts)
    assert len(got) < live.QUEUE_MAX and {"kind": "all"} in got


def test_what_changed_while_a_page_was_on_its_way() -> None:
    """Between the making of the page and the opening of its stream."""

    async def run() -> None:
        quiet = Quiet()
        broadcaster = live.Broadcaster(quiet, {})

        def say(name: str) -> None:
            quiet.messages = [{"kind": name}]
            broadcaster._read()
            broadcaster._say()

        def told(mark: str) -> list[dict[str, Any]]:
            with broadcaster.viewer("u-1", mark) as queue:
                return [queue.get_nowait() for _ in range(queue.qsize())]

        say("tokens")
        mark = broadcaster.mark
        assert told(mark) == []
        say("users")
        say("policy")
        assert told(mark) == [{"kind": "users"}, {"kind": "policy"}]
        assert told("") == []
        everything = [{"kind": "all"}]
        assert told("beef-1") == told("nonsense") == told(mark + "0") == told(mark.replace("-", "--")) == everything
        for number in range(live.RECENT_MAX):
            say(f"kind-{number}")
        assert told(mark) == everything

    asyncio.run(run())


def test_what_else_is_to_be_done() -> None:
    done: list[str] = []
    heard([[{"kind": "settings"}, {"kind": "tokens"}]], settings=lambda: done.append("settings"))
    assert done == ["settings"]


def test_viewers_are_few() -> None:
    async def run() -> None:
        broadcaster = live.Broadcaster(Quiet(), {})
        viewers = [broadcaster.viewer("u-1") for _ in range(live.VIEWERS_MAX_EACH)]
        for viewer in viewers:
            viewer.__enter__()
        with pytest.raises(Problem), broadcaster.viewer("u-1"):
            pass
        with broadcaster.viewer("u-2"):
            pass
        for viewer in viewers:
            viewer.__exit__(None, None, None)

    asyncio.run(run())


@pytest.mark.parametrize(("kind", "may"), [("tokens", False), ("users", False), ("audit", False), ("routes", True)])
def test_who_may_not_read_it_is_not_told(kind: str, may: bool) -> None:
    viewer = Principal("u", "vic", "", Access.VIEWER)
    assert live.may_hear(viewer, {"kind": kind}) is may
    assert live.may_hear(viewer, {"device": "d-1"}) and live.may_hear(viewer, {"kind": "all"})


def test_the_store_says_what_was_changed(owner: Browser, tmp_path: Path) -> None:
    site: Site = owner.site
    device = site.add_device(1)
    listener = Listener(site.state.live)
    try:
        owner.send("PATCH", "/api/v1/devices/box-1", name="one")
        owner.send("POST", "/api/v1/tokens")
        said = listener.take()
    finally:
        listener.close()
    assert {"device": device.id} in said and {"kind": "tokens"} in said and {"kind": "audit"} in said
    assert json.dumps(said).count("one") == 0


def listening(site: Site, owner: Browser, busy: bool) -> list[str]:
    """What a viewer is sent whose account is disabled meanwhile, in a network where things happen all the time or
    nothing does."""

    async def run() -> list[str]:
        broadcaster = live.Broadcaster(Quiet(), {})
        cookie = "; ".join(f"{name}={value}" for name, value in owner.client.cookies.items())
        headers = [(b"host", b"127.0.0.1:8480"), (b"cookie", cookie.encode())]
        scope = {"type": "http", "method": "GET", "path": "/live", "query_string": b"", "headers": headers}
        request = Request({**scope, "app": SimpleNamespace(state=SimpleNamespace(**site.app.state._state))})
        request.app.state.broadcaster = broadcaster
        lines = live.listen(request, await current_user(request))
        got = [await anext(lines)]
        with site.write() as tx:
            people.set_disabled(tx, 1, "test", people.find_person(tx, "ada"), True)
        async with asyncio.timeout(10):
            while True:
                if busy:
                    for queue in broadcaster._queues:
                        if queue.empty():
                            queue.put_nowait({"kind": "tokens"})
                try:
                    got.append(await anext(lines))
                except StopAsyncIteration:
                    assert len(broadcaster) == 0
                    return got

    return asyncio.run(run())


@pytest.mark.parametrize("busy", [True, False])
def test_who_is_shut_out_hears_no_more(site: Site, monkeypatch: pytest.MonkeyPatch, busy: bool) -> None:
    monkeypatch.setattr(live, "BEAT_S", 0.2)
    site.add_person("ada", Access.ADMIN)
    browser = site.browser()
    assert browser.sign_in("ada").status_code == 303
    got = listening(site, browser, busy)
    assert got[0].startswith("retry") and (len(got) > 1) is busy


def test_a_viewer_that_goes_away_at_once_takes_no_place(site: Site, owner: Browser) -> None:
    """Its stream is never begun, so nothing in it is ever ended."""

    async def run() -> None:
        broadcaster = live.Broadcaster(Quiet(), {})
        request = SimpleNamespace(app=SimpleNamespace(state=SimpleNamespace(broadcaster=broadcaster)))
        who = Principal("u-1", "olga", "", Access.OWNER)
        for _ in range(2 * live.VIEWERS_MAX_EACH):
            answer: Any = await live.live(request, who)  # type: ignore[arg-type]
            await answer.body_iterator.aclose()
        assert len(broadcaster) == 0

    asyncio.run(run())
