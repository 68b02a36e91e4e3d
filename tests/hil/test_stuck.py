"""Guests that hang: told from those that are slow, named with their last words, booted again so often and no more."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from hil import console, rig, stuck
from hil.errors import GuestStuck
from hil.machines import BY_NAME
from hil.programs import Program
from hil.qemu import Boot, Guest
from hil.report import Report
from hil.rig import Device, Rig
from hil.stuck import BUSY_PROCESSOR_S, IDLE_S, Stillness

IDLE, BUSY = "its processor rests", "s of processor"


def looks(*rows: tuple[float, int, float]) -> list[str]:
    """What is said of (now, bytes said, processor seconds)."""
    stillness = Stillness()
    return [stillness.look(*row) for row in rows]


def test_one_that_rests_without_a_word_hangs() -> None:
    said = looks((10, 500, 3.0), (10 + IDLE_S - 1, 500, 3.5), (10 + IDLE_S, 500, 3.6))
    assert said[:2] == ["", ""] and IDLE in said[2]


def test_one_that_spins_without_a_word_hangs_by_its_processor_and_not_by_time() -> None:
    assert BUSY in looks((0, 0, 0.0), (300, 0, BUSY_PROCESSOR_S))[1]
    assert looks((0, 0, 0.0), (3_000, 0, BUSY_PROCESSOR_S - 1)) == ["", ""], "a busy host is slow"


def test_a_word_begins_it_anew() -> None:
    said = looks((0, 0, 0.0), (IDLE_S - 1, 1, 0.0), (2 * IDLE_S - 2, 1, 0.0), (2 * IDLE_S, 1, 0.0))
    assert said[:3] == ["", "", ""] and said[3]


def test_another_power_on_begins_it_anew() -> None:
    assert looks((0, 7, 90.0), (IDLE_S, 7, 0.0), (IDLE_S + 1, 7, 0.1)) == ["", "", ""]


class FakeConsole:
    said_bytes = 11

    def tail(self) -> str:
        return "Loading kernel"


class FakeGuest:
    """Off until it is powered on; online from its power-on number `boots` on, and before that it hangs."""

    running = True
    began = 0.0

    def __init__(self, name: str, boots: int) -> None:
        self.name, self.left, self.console = name, boots, FakeConsole()

    def power_on(self) -> None:
        self.left -= 1

    def processor_s(self) -> float:
        return 1.0

    def state(self) -> str:
        return "running"

    def hangs(self) -> Callable[[], str]:
        return lambda: "it has said nothing for 120 s and its processor rests" if self.left > 1 else ""


class FakeHub:
    def __init__(self, guests: list[FakeGuest]) -> None:
        self.guests = guests

    def devices(self) -> dict[str, dict[str, Any]]:
        return {guest.name: {"online": guest.left <= 1} for guest in self.guests}


@pytest.fixture
def waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, tuple[float, float]]]:
    monkeypatch.setattr(rig, "POLL_S", 0.001)

    def wait(**boots: int) -> dict[str, tuple[float, float]]:
        guests = [FakeGuest(name, number) for name, number in boots.items()]
        made = Rig(tmp_path)
        made.hub = cast(Any, FakeHub(guests))
        made.devices = {guest.name: Device(cast(Guest, guest)) for guest in guests}
        return made.wait_online(list(boots), 5.0)

    return wait


def test_a_boot_that_hangs_is_tried_again_and_counted(waits: Callable[..., Any], tmp_path: Path) -> None:
    report = Report("smoke", lambda line: None)
    with report.step("boot and join"):
        assert set(waits(pump=1, truck=1 + stuck.BOOT_RETRIES_MAX)) == {"pump", "truck"}
    assert report.retries == stuck.BOOT_RETRIES_MAX and report.verdict == "retried"
    told = report.told(tmp_path)
    [truck] = [guest for guest in told["guests"] if guest["name"] == "truck"]
    assert [event["kind"] for event in truck["events"]] == ["bad", "retry"] * stuck.BOOT_RETRIES_MAX + ["good"]


def test_one_that_always_hangs_is_named_with_its_last_words(waits: Callable[..., Any]) -> None:
    with pytest.raises(GuestStuck) as caught:
        waits(pump=1, truck=9)
    said = str(caught.value)
    assert said.startswith("truck: it has said nothing") and "at 3 boots. QEMU says running" in said
    assert said.endswith("it said last:\nLoading kernel")


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> Iterator[Guest]:
    """A real QEMU whose kernel is one instruction: a branch to itself."""
    monkeypatch.setattr(stuck, "BUSY_PROCESSOR_S", 1.0)
    monkeypatch.setattr(console, "LOOK_S", 0.05)
    with tempfile.TemporaryDirectory(prefix="edgehil-") as folder:
        kernel, initrd, root = (Path(folder, name) for name in ("kernel", "initrd", "root"))
        kernel.write_bytes(bytes.fromhex("00000014"))
        initrd.write_bytes(bytes(512))
        root.write_bytes(bytes(1 << 20))
        guest = Guest("spin", BY_NAME["arm64"], Boot(kernel, initrd, root), Path(folder, "spin"))
        try:
            guest.power_on()
            yield guest
        finally:
            guest.power_off()


@pytest.mark.skipif(shutil.which("qemu-system-aarch64") is None, reason="no QEMU")
def test_a_real_machine_that_spins_or_rests_is_named_while_somebody_waits(
    real: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(GuestStuck, match=r"spin: it has said nothing for \d+ s, in which it used \d+ s of processor"):
        real.login(120.0)
    monkeypatch.setattr(stuck, "IDLE_S", 1.0)  # not before: a busy host lets even one that spins rest
    [program] = [program for program in Program.running() if program.name == "spin"]
    os.kill(program.pid, signal.SIGSTOP)
    try:
        with pytest.raises(GuestStuck, match=r"spin: it has said nothing for \d+ s and its processor rests"):
            real.login(120.0)
    finally:
        os.kill(program.pid, signal.SIGCONT)
