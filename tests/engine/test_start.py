"""Which AEAD the fast engine is started with, and what becomes of one that is not there."""

from __future__ import annotations

import errno
import logging
from typing import Any

import pytest

from edgeagent.engine import choice, start
from edgeagent.engine.fast import binding, engine, library


class Pump:
    """Stands for FastEngine: keeps how it was called; only `there` are AEADs of this device."""

    there = ("lanes", "libcrypto")

    def __init__(self, *_: Any, **how: Any) -> None:
        if not set(how["aead"]) <= set(self.there):
            raise OSError(errno.ENOENT, "fast engine: no such thing")
        self.how = how


@pytest.fixture(autouse=True)
def pump(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "FastEngine", Pump)
    monkeypatch.setattr(binding, "load", lambda path: path)
    monkeypatch.setattr(library, "path", lambda *_: "/lib/libedgefast.so")
    monkeypatch.setattr(choice, "choose", lambda *_: ("fast", "there"))
    monkeypatch.delenv("EDGEAGENT_AEAD", raising=False)
    monkeypatch.setenv("EDGEAGENT_ENGINE", "fast")


def begin(**more: Any) -> dict[str, Any]:
    nobody: Any = None
    made: Any = start.start(nobody, nobody, nobody, nobody, logging.getLogger("t"), slots=1 << 20, flows=7, **more)
    how: dict[str, Any] = made.how
    return how


def test_it_asks_for_what_is_known_of_the_library_it_loads() -> None:
    asked: list[str] = []

    def known(path: str) -> tuple[str, str]:
        asked.append(path)
        return "lanes", "libcrypto"

    how = begin(aead=known, ring_bytes=1 << 20, new_flows_per_s=5)
    assert asked == ["/lib/libedgefast.so"] and how["aead"] == ("lanes", "libcrypto")
    assert (how["slots"], how["flows"], how["ring_bytes"], how["new_flows_per_s"]) == (16_384, 7, 1 << 20, 5)


def test_it_starts_at_once_with_our_own_where_nothing_is_known() -> None:
    assert begin()["aead"] == begin(aead=lambda path: None)["aead"] == ("lanes", "lanes")


def test_one_that_is_gone_is_done_without(caplog: pytest.LogCaptureFixture) -> None:
    assert begin(aead=lambda path: ("lanes", "nettle"))["aead"] == ("lanes", "lanes")
    assert "nettle is gone since it was measured" in caplog.text


def test_the_environment_comes_first_and_is_taken_at_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEAGENT_AEAD", "libcrypto")
    assert begin(aead=lambda path: pytest.fail("asked"))["aead"] == ("libcrypto", "libcrypto")
    monkeypatch.setenv("EDGEAGENT_AEAD", "nettle")
    with pytest.raises(choice.EngineUnavailable, match="AEAD nettle: not on this device"):
        begin()
    monkeypatch.setenv("EDGEAGENT_AEAD", "rot13")
    with pytest.raises(choice.EngineUnavailable, match="'rot13': there is none"):
        begin()
