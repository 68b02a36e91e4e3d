"""A modem by AT commands: a real port (a pseudo terminal) in a real loop, and a modem that behaves badly."""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeagent.io.modem_at import AtDriver, net_beside, open_port
from edgeagent.proto import at
from edgeagent.proto.modem import HOME, ROAMING, Reading
from tests.agent.modem_sim import COMMON, DIALECTS, ModemSim

DEADLINE_S = 60.0


class Loop:
    """The agent's own, in small. `fast` makes its clock run faster than the real one: for what waits for time-outs."""

    def __init__(self, fast: float = 1.0) -> None:
        self.selector = selectors.DefaultSelector()
        self._began, self._fast = time.monotonic(), fast

    @property
    def now(self) -> float:
        return (time.monotonic() - self._began) * self._fast

    def poll(self, driver: AtDriver) -> Reading | None:
        driver.begin(self.now)
        deadline = time.monotonic() + DEADLINE_S
        while not driver.done:
            assert time.monotonic() < deadline
            if self.selector.get_map():
                for key, _ in self.selector.select(0.01):
                    key.data(self.now, key.fd)
            driver.on_timeout(self.now)
        assert not self.selector.get_map(), "between polls nothing is listened to"
        return driver.found[0][2] if driver.found else None


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.selector.close()


@pytest.fixture
def link(tmp_path: Path) -> str:
    return str(tmp_path / "ttyUSB2")


def told(reading: Reading | None) -> dict[str, Any]:
    assert reading is not None
    return {name: getattr(reading, name) for name in reading.__slots__}


EXPECTED: dict[str, dict[str, Any]] = {
    "quectel": {
        "technology": "LTE",
        "band": "B3",
        "rsrp": -97,
        "rsrq": -11,
        "sinr": 12,
        "rssi": -66,
        "model": "Quectel EC25",
    },
    "quectel-5g": {"technology": "LTE+NR", "band": "B7", "rsrp": -88, "rsrq": -9, "sinr": 18, "rssi": -60},
    "simcom": {"technology": "LTE", "band": "B20", "rsrp": -104, "rsrq": -11, "sinr": 8, "rssi": -73},
    "huawei": {
        "technology": "LTE",
        "band": None,
        "rsrp": -107,
        "rsrq": -10,
        "sinr": 1,
        "rssi": -76,
        "registration": ROAMING,
    },
    "u-blox": {"technology": "LTE", "band": "B20", "rsrp": -113, "rsrq": -4, "sinr": 14, "rssi": -73},
    "generic": {"technology": "LTE", "band": None, "rsrp": -95, "rsrq": -10, "sinr": None, "rssi": -73},
}


@pytest.mark.parametrize("dialect", sorted(DIALECTS))
@pytest.mark.parametrize(("echo", "split"), [(True, True), (False, True), (True, False)])
def test_each_dialect_is_read_whatever_stands_between(
    loop: Loop, link: str, dialect: str, echo: bool, split: bool
) -> None:
    with ModemSim(link, dialect, echo=echo, split=split) as sim:
        driver = AtDriver(loop.selector, link)
        first = told(loop.poll(driver))
        second = told(loop.poll(driver))
        driver.close()
    common = {"operator": "Testnet Home", "apn": "internet.test", "sim": "READY", "registration": HOME}
    expected = common | {"network_s": 1_795_701_845} | EXPECTED[dialect]
    assert {name: first[name] for name in expected} == expected
    assert second == first
    assert sim.asked.count("AT+CGMI") == 1


def test_what_it_does_not_know_is_not_asked_a_third_time(loop: Loop, link: str) -> None:
    with ModemSim(link) as sim:
        driver = AtDriver(loop.selector, link)
        for _ in range(4):
            loop.poll(driver)
        driver.close()
    assert sim.asked.count("AT+C5GREG?") == 2
    assert sim.asked.count("AT+CESQ") == 4


def test_a_command_at_which_it_hangs_costs_one_time_out(link: str) -> None:
    loop = Loop(fast=20.0)
    with ModemSim(link) as sim:
        sim.answers["AT+CESQ"] = None
        driver = AtDriver(loop.selector, link)
        assert told(loop.poll(driver))["rsrp"] == -97
        assert told(loop.poll(driver))["rsrp"] == -97
        driver.close()
    assert sim.asked.count("AT+CESQ") == 1
    loop.selector.close()


def test_one_that_hangs_at_everything_is_given_up_soon(link: str) -> None:
    loop = Loop(fast=20.0)
    with ModemSim(link) as sim:
        sim.answers = dict.fromkeys(sim.answers)
        driver = AtDriver(loop.selector, link)
        assert loop.poll(driver) is None
        assert driver.why == f"{link}: no answer to AT"
        assert sim.asked == ["AT"]
        sim.answers = {**COMMON, **DIALECTS["quectel"]}  # it was reset
        assert told(loop.poll(driver))["rsrp"] == -97
        driver.close()
    loop.selector.close()


def test_one_that_falls_silent_in_the_middle_is_believed_until_there(link: str) -> None:
    loop = Loop(fast=20.0)
    with ModemSim(link) as sim:
        for command in ("AT+CGDCONT?", "AT+CCLK?", "AT+QNWINFO"):
            sim.answers[command] = None
        driver = AtDriver(loop.selector, link)
        reading = told(loop.poll(driver))
        assert (reading["rsrp"], reading["operator"], reading["apn"]) == (-95, "Testnet Home", None)
        assert driver.why == f"{link}: no answer to AT+CCLK?"
        driver.close()
    loop.selector.close()


def test_a_port_that_goes_away_and_comes_back(loop: Loop, link: str) -> None:
    sim = ModemSim(link)
    driver = AtDriver(loop.selector, link)
    assert loop.poll(driver) is None
    assert driver.why == f"{link}: the port is not there, or went away"
    with sim:
        assert told(loop.poll(driver))["model"] == "Quectel EC25"
    assert loop.poll(driver) is None  # pulled while it was open
    assert driver.why == f"{link}: the port is not there, or went away"
    with ModemSim(link, "huawei"):  # another one in its place
        assert told(loop.poll(driver))["model"] == "huawei ME909s-120"
        driver.close()


def test_a_port_that_goes_away_in_the_middle_of_an_answer(loop: Loop, link: str) -> None:
    with ModemSim(link) as sim:
        sim.answers["AT+CESQ"] = None
        driver = AtDriver(loop.selector, link)
        driver.begin(loop.now)
        deadline = time.monotonic() + DEADLINE_S
        while "AT+CESQ" not in sim.asked:
            assert time.monotonic() < deadline
            for key, _ in loop.selector.select(0.01):
                key.data(loop.now, key.fd)
    for key, _ in loop.selector.select(5.0):
        key.data(loop.now, key.fd)
    assert driver.done and driver.why == f"{link}: the port is not there, or went away"
    assert not loop.selector.get_map()


def test_a_port_that_somebody_has_is_left_to_them(loop: Loop, link: str) -> None:
    with ModemSim(link):
        theirs = open_port(link)
        driver = AtDriver(loop.selector, link)
        assert loop.poll(driver) is None
        assert "another program has the port" in driver.why
        os.close(theirs)
        assert loop.poll(driver) is not None
        driver.close()


def test_what_is_no_port_is_said(loop: Loop, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("AT\r\nOK\r\n")
    driver = AtDriver(loop.selector, str(tmp_path / "file"))
    assert loop.poll(driver) is None
    assert driver.why.endswith("it is no serial port")


GARBAGE: dict[str, Callable[[Any], bytes]] = {
    "bytes": lambda random: random.randbytes(4_096).replace(b"\r", b"x").replace(b"\n", b"x"),
    "zeros": lambda random: bytes(4_096),
    "lines": lambda random: b"$GPGGA,123519,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,*47\r\n" * 60,
    "ends": lambda random: b"\r\n" * 2_000,
    "mixed": lambda random: random.randbytes(4_096),
    "answers": lambda random: b"\r\n+CESQ: 99,99,255,255,20,46\r\n" * 100,
}


@pytest.mark.parametrize("kind", sorted(GARBAGE))
def test_a_stream_of_garbage_ends_the_poll_and_takes_neither_memory_nor_time(loop: Loop, link: str, kind: str) -> None:
    with ModemSim(link, split=False) as sim:
        sim.answers = dict.fromkeys(sim.answers)
        sim.garbage = GARBAGE[kind]
        driver = AtDriver(loop.selector, link)
        before_kib, before_s = rss_kib(), time.thread_time()
        for _ in range(20):
            assert loop.poll(driver) is None
            assert "without an end of line" in driver.why or "which are no answers" in driver.why
        spent_s = time.thread_time() - before_s
        assert sim.written > 20 * at.UNBROKEN_BYTES_MAX
    assert rss_kib() - before_kib < 1_024
    assert spent_s < 20 * 0.25, "processor time of this thread alone: 32 KiB a poll at most"


def test_a_garbage_stream_between_polls_costs_nothing(loop: Loop, link: str) -> None:
    """What a port writes while nothing is asked stays in the kernel's buffer, which is emptied before the next poll."""
    with ModemSim(link, split=False) as sim:
        driver = AtDriver(loop.selector, link)
        assert loop.poll(driver) is not None
        sim.garbage = GARBAGE["lines"]
        before, full = -1, sim.written
        while before != full:  # until it takes no more
            time.sleep(0.1)
            before, full = full, sim.written
        sim.garbage = None
        time.sleep(0.05)
        assert loop.selector.select(0.2) == []
        assert told(loop.poll(driver))["rsrp"] == -97
        driver.close()


def rss_kib() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))


def test_the_interface_of_a_port_is_that_of_its_usb_device(tmp_path: Path) -> None:
    device = tmp_path / "devices/usb1/1-1"
    (device / "1-1:1.2/ttyUSB2").mkdir(parents=True)
    (device / "1-1:1.4/net/wwan0").mkdir(parents=True)
    (device / "idVendor").write_text("2c7c")
    (tmp_path / "devices/usb1/1-2/1-2:1.0/net/eth1").mkdir(parents=True)
    tty = tmp_path / "class/tty/ttyUSB2"
    tty.mkdir(parents=True)
    (tty / "device").symlink_to(device / "1-1:1.2/ttyUSB2")
    assert net_beside("/dev/ttyUSB2", str(tmp_path / "class/tty")) == "wwan0"
    assert net_beside("/dev/ttyUSB9", str(tmp_path / "class/tty")) == ""
