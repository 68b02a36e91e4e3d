"""What a device keeps of its network's lock between starts, and whose word it takes for the first."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeagent import config, locks
from edgeagent.context import Context
from edgeagent.io.keystore import StateError, StateFile
from edgeagent.proto.identity import Admission
from edgeagent.proto.lock import Lock
from edgeagent.proto.token import Token
from edgeagent.status import show_status
from tests.agent.test_context import PROVIDER, Start
from tests.control_kit import CLAIM, HUB_BOX_KEY, NETWORK, NETWORK_KEY
from tests.lock_kit import Owner

ANA, BEN, EVE = Owner(1), Owner(2), Owner(3)
ADMISSION = Admission(PROVIDER, network_key=NETWORK_KEY, ca_der=b"ca", map_object=b"map", hosts=["hub.test:8883"])
ELSEWHERE = Admission(PROVIDER, network_key=bytes(32), ca_der=b"ca", map_object=b"map", hosts=["hub.test:8883"])

Begin = Callable[..., Context]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """A start of the agent with the setting `lock`."""
    start = Start(tmp_path / "state")

    def begun(*keys: bytes) -> Context:
        text = ",".join(b64encode(key).decode() for key in keys)
        settings = config.load({"state-dir": start.keystore.directory, "lock": text}, {}, "/dev/null")
        return Context(
            0.0, settings=settings, crypto=PROVIDER, keystore=start.keystore, selector=start.selector, ring=start.ring
        )

    yield begun
    start.close()


def token(*keys: bytes) -> Token:
    return Token(
        hosts=["hub.test:8883"],
        network_key=NETWORK_KEY,
        hub_box_key=HUB_BOX_KEY,
        ca_sha256=bytes(32),
        claim=CLAIM,
        secret=bytes(16),
        lock_keys=list(keys),
    )


def test_without_word_of_a_lock_there_is_none(begin: Begin) -> None:
    assert locks.load(begin(), ADMISSION) is None


def test_a_token_carries_keys_and_is_as_before_without_them() -> None:
    text = token(ANA.key, BEN.key).encode(PROVIDER)
    assert Token.decode(PROVIDER, text).lock_keys == [ANA.key, BEN.key]
    assert len(token().encode(PROVIDER)) < len(text)
    assert Token.decode(PROVIDER, token().encode(PROVIDER)).lock_keys == []


def test_what_a_token_says_is_kept_and_what_is_held_stays(begin: Begin) -> None:
    locks.pin(begin(), ADMISSION, token(ANA.key))
    held = locks.load(begin(), ADMISSION)
    assert held is not None
    assert (held.keys, held.on, held.sequence) == ([ANA.key], True, 0)
    held.follow([ANA.statement(5, ANA.key, BEN.key, on=False)])
    locks.save(begin(), held)
    locks.pin(begin(), ADMISSION, token(EVE.key))  # the hub makes tokens: a new one is no reason to forget
    again = locks.load(begin(), ADMISSION)
    assert again is not None
    assert (again.keys, again.on, again.sequence) == ([ANA.key, BEN.key], False, 5)


def test_another_networks_lock_is_not_this_ones(begin: Begin) -> None:
    locks.pin(begin(), ADMISSION, token(ANA.key))
    assert locks.load(begin(), ELSEWHERE) is None


def test_keys_that_a_person_gives_begin_anew_once(begin: Begin) -> None:
    locks.pin(begin(), ADMISSION, token(EVE.key))
    held = locks.load(begin(ANA.key), ADMISSION)
    assert held is not None
    assert (held.keys, held.sequence) == ([ANA.key], 0)
    held.follow([ANA.statement(5, ANA.key, BEN.key), BEN.statement(6)])
    locks.save(begin(), held)
    for keys in ((ANA.key,), ()):  # the setting stays where it is, also when that key is void long since
        again = locks.load(begin(*keys), ADMISSION)
        assert again is not None
        assert (again.keys, again.sequence) == ([BEN.key], 6)
    changed = locks.load(begin(EVE.key), ADMISSION)
    assert changed is not None
    assert (changed.keys, changed.sequence) == ([EVE.key], 0)


@pytest.mark.parametrize("body", [b"", b"x", b"\xa0", Lock(PROVIDER, NETWORK).encode() + b"x"])
def test_a_damaged_file_is_counted(begin: Begin, body: bytes) -> None:
    context = begin()
    context.keystore.save(StateFile.LOCK, body)
    assert locks.load(context, ADMISSION) is None
    assert context.damaged_files == 1


def test_a_lock_that_cannot_be_kept_is_an_error(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    context = begin()

    def refuse(*_: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(context.keystore, "save", refuse)
    with pytest.raises(StateError, match="could not be kept"):
        locks.save(context, Lock(PROVIDER, NETWORK, [ANA.key]))


@pytest.mark.parametrize("text", ["x", "AA==", "A" * 44, ",".join([b64encode(bytes(32)).decode()] * 9)])
def test_a_setting_that_names_no_key_is_refused(text: str) -> None:
    with pytest.raises(config.ConfigError, match=r"--lock: .*want lock keys"):
        config.load({"lock": text}, {}, "/dev/null")


def test_status_says_where_this_device_stands() -> None:
    lock = {"on": True, "statement": 7, "keys": [], "signed": False, "withheld": True}
    status: dict[str, Any] = {
        "policy": None,
        "agent": {
            "state": "member",
            "version": "0",
            "uptime_s": 1,
            "progress": "",
            "rss_kib": 1,
            "ceiling_kib": None,
            "ceiling_hits": 0,
            "flash_writes": 0,
            "failed_writes": 0,
            "damaged_files": 0,
        },
        "mqtt": {"stage": "up", "broker": "b", "rx_bytes": 0, "tx_bytes": 0},
        "self": {
            "device": "d" * 24,
            "name": "a",
            "domain": "lab",
            "addresses": [],
            "endpoints": [],
            "mapped": [],
            "nat_mapping": None,
            "home_relay": None,
            "tags": [],
        },
        "interface": {"name": "edge0", "mtu": 1280, "port": 1},
        "relays": [],
        "port_mapping": None,
        "metered": [],
        "lock": lock,
        "drops": {"lock-void": 2, "lock-forged": 1},
    }
    line = next(line for line in show_status(status).splitlines() if line.startswith("lock"))
    assert f"on, statement 7; this device is NOT signed (edgehub lock sign {'d' * 24}); refused 3 records" in line
    assert "WARNING" in line
    quiet = {**status, "lock": {**lock, "signed": True, "withheld": False}, "drops": {}}
    assert "lock          on, statement 7\n" in show_status(quiet)
    assert "\nlock " not in show_status({**status, "lock": None})
