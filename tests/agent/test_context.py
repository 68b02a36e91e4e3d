"""What a start makes of the state that it finds: keys are never made up for, a cache may be done without."""

from __future__ import annotations

import logging
import os
import selectors
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeagent import config, crypto
from edgeagent.context import Context, facts
from edgeagent.io import logring
from edgeagent.io.keystore import Keystore, StateError, StateFile
from edgeagent.io.logring import LogRing
from edgeagent.proto.identity import Admission
from edgeagent.proto.tai64n import RESERVE_NS
from edgeagent.version import BUILD_TIME_S

PROVIDER = crypto.load()


class Start:
    """Starts on one state directory; `ring` has what was logged."""

    def __init__(self, directory: Path) -> None:
        self.keystore = Keystore(str(directory))
        self.keystore.open()
        self.selector = selectors.DefaultSelector()
        self.ring = LogRing(100, None)
        logring.install(self.ring, logging.DEBUG)

    def __call__(self) -> Context:
        settings = config.load({"state-dir": self.keystore.directory}, {}, "/dev/null")
        return Context(
            0.0, settings=settings, crypto=PROVIDER, keystore=self.keystore, selector=self.selector, ring=self.ring
        )

    def path(self, file: StateFile) -> Path:
        return Path(self.keystore.path(file))

    def admit(self) -> None:
        admission = Admission(PROVIDER, network_key=bytes(32), ca_der=b"ca", map_object=b"map", hosts=["hub.test:8883"])
        self.keystore.save(StateFile.ADMISSION, admission.encode())

    def close(self) -> None:
        self.keystore.close()
        self.selector.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    start = Start(tmp_path / "state")
    yield start
    start.close()


def test_keys_are_made_once(start: Start) -> None:
    first, second = start(), start()
    assert first.identity.encode() == second.identity.encode()
    assert first.admission is None
    assert first.boot != second.boot


@pytest.mark.parametrize("harm", ["removed", "emptied", "cut", "flipped"])
def test_a_member_without_its_keys_is_told_and_nothing_is_made_up(start: Start, harm: str) -> None:
    start()
    start.admit()
    path = start.path(StateFile.IDENTITY)
    damage(path, harm)
    with pytest.raises(StateError, match=r"identity.*(Restore|restore).*join again"):
        start()
    assert not path.exists() if harm == "removed" else path.stat().st_size < 300


@pytest.mark.parametrize("harm", ["emptied", "cut", "flipped"])
def test_damaged_keys_that_no_network_knows_are_made_anew(start: Start, harm: str) -> None:
    before = start().identity.device_id
    damage(start.path(StateFile.IDENTITY), harm)
    context = start()
    assert context.identity.device_id != before and context.damaged_files == 1
    assert "making new ones" in start.ring.lines()[-1]


@pytest.mark.parametrize("harm", ["emptied", "cut", "flipped"])
def test_a_damaged_admission_says_how_to_go_on(start: Start, harm: str) -> None:
    start()
    start.admit()
    damage(start.path(StateFile.ADMISSION), harm)
    with pytest.raises(StateError, match=r"admission: damaged.*join again with a token"):
        start()


def test_a_sound_file_with_a_wrong_body_is_no_better(start: Start) -> None:
    start()
    start.keystore.save(StateFile.ADMISSION, b"\xa0")
    with pytest.raises(StateError, match="admission"):
        start()


@pytest.mark.parametrize("file", [StateFile.CACHE, StateFile.TOKEN, StateFile.CLOCK])
def test_what_may_be_done_without_is_counted(start: Start, file: StateFile) -> None:
    start()
    start.keystore.save(file, bytes(16))
    damage(start.path(file), "flipped")
    context = start()
    assert context.load_or_none(file) is None
    assert context.damaged_files >= 1


def test_time_and_stamps_never_go_back(start: Start) -> None:
    context = start()
    context.wall.raise_to(10.0, BUILD_TIME_S + 5_000_000)
    context.tai64n.set_wall(10.0, context.wall.at(10.0))
    last = context.tai64n.stamp(10.0)
    context.save_clock(20.0)
    again = start()
    assert again.wall.at(0.0) >= BUILD_TIME_S + 5_000_000 and not again.wall.known
    assert again.tai64n.stamp(0.0) > last


def test_stamps_of_a_member_that_lost_its_reservation_are_beyond_a_block(start: Start) -> None:
    last = start().tai64n.stamp(0.0)
    start.admit()
    start.path(StateFile.CLOCK).unlink()
    start.keystore.load(StateFile.IDENTITY)
    assert start().tai64n.stamp(0.0) > last
    assert RESERVE_NS > 0


def test_a_full_disk_is_counted_and_said(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    context = start()

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    assert not context.save(StateFile.CACHE, b"x")
    assert context.failed_writes == 1
    assert "No space left" in start.ring.lines()[-1]


def test_the_password_is_hidden_from_the_log(start: Start) -> None:
    context = start()
    logging.getLogger("edgeagent").info("%s", context.identity.password)
    assert context.identity.password not in "\n".join(start.ring.lines())


def test_facts_fit_their_message() -> None:
    found = facts("rpi-4b")
    assert {"agent", "arch", "kernel", "python"} <= found.keys() and len(found) <= 16
    assert all(0 < len(text.encode()) <= 128 and text.isprintable() for text in found.values())


def damage(path: Path, harm: str) -> None:
    data = path.read_bytes()
    if harm == "removed":
        path.unlink()
    elif harm == "emptied":
        path.write_bytes(b"")
    elif harm == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
