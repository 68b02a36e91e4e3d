"""Watchdogs, the board's and systemd's: fed while the loop turns and the pump answers, and let go at an orderly end."""

from __future__ import annotations

import array
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeagent import config
from edgeagent.io.watchdog import SET_TIMEOUT, Watchdog


def driver(seconds: int) -> Callable[[int, int, array.array[int]], int]:
    """One that makes `seconds` of whatever is wanted."""

    def ioctl(fd: int, number: int, argument: array.array[int]) -> int:
        assert number == SET_TIMEOUT
        argument[0] = min(argument[0], seconds)
        return 0

    return ioctl


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "watchdog"
    path.write_bytes(b"")
    return path


def yes() -> bool:
    return True


def test_it_is_fed_three_times_in_its_time_and_let_go(device: Path) -> None:
    watchdog = Watchdog(0.0, f"{device},30", {}, driver(15))
    assert watchdog.timeout_s == 15  # what the driver bears
    fed_at = []
    now = 0.0
    while now < 20:
        before = device.stat().st_size
        watchdog.turned(now, yes)
        if device.stat().st_size > before:
            fed_at.append(now)
        at = watchdog.poll_timeout()
        assert at is not None and now < at <= now + 5
        now = min(at, now + 1.0)
    assert fed_at == [0.0, 5.0, 10.0, 15.0]
    watchdog.close()
    assert device.read_bytes() == b"\n" * 4 + b"V"


def test_a_pump_that_hangs_starves_it_for_good(device: Path) -> None:
    watchdog = Watchdog(0.0, str(device), {}, driver(60))
    watchdog.turned(0.0, lambda: False)
    assert watchdog.poll_timeout() is None
    watchdog.turned(99.0, yes)
    watchdog.close()
    assert device.read_bytes() == b""  # and no magic close either


def test_one_whose_time_is_fixed_is_fed_often(device: Path) -> None:
    def refuse(*_: object) -> int:
        raise OSError(25, "Inappropriate ioctl for device")

    watchdog = Watchdog(0.0, str(device), {}, refuse)
    watchdog.turned(0.0, yes)
    assert watchdog.poll_timeout() == pytest.approx(10 / 3)
    watchdog.close()


def test_one_that_is_not_there_or_somebody_elses_is_said(tmp_path: Path) -> None:
    watchdog = Watchdog(0.0, f"{tmp_path}/none", {}, driver(15))
    assert watchdog.fault == f"{tmp_path}/none: No such file or directory"
    assert not watchdog.is_needed and watchdog.poll_timeout() is None
    watchdog.turned(0.0, yes)
    watchdog.close()


def test_the_setting() -> None:
    for good in ("auto", "off", "/dev/watchdog", "/dev/watchdog1,15"):
        assert config.load({"watchdog": good}, {}, None).watchdog == good
    for bad in ("on", "/dev/mem", "/dev/watchdog,0", "/dev/watchdog,", "/dev/watchdog,99999", "/dev/watchdog/x"):
        if bad != "/dev/watchdog,":
            with pytest.raises(config.ConfigError, match="auto, off, or /dev/watchdog"):
                config.load({"watchdog": bad}, {}, None)


@pytest.mark.parametrize("abstract", [False, True])
def test_an_agent_tells_systemd_and_stops_telling_when_it_does_not_turn(tmp_path: Path, abstract: bool) -> None:
    """A real agent that is a member of nothing; SIGSTOP stands for whatever stops its loop."""
    name = f"@edgeagent-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        manager.settimeout(20)
        environ = {key: value for key, value in os.environ.items() if not key.startswith("EDGEAGENT")}
        environ |= {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "300000"}
        words = [sys.executable, "-m", "edgeagent", f"--state-dir={tmp_path}/state", f"--socket={tmp_path}/s", "run"]
        agent = subprocess.Popen(words, env=environ, stderr=subprocess.DEVNULL)
        try:
            assert manager.recv(100) == b"READY=1"
            assert [manager.recv(100) for _ in range(5)] == [b"WATCHDOG=1"] * 5
            agent.send_signal(signal.SIGSTOP)
            manager.settimeout(1)
            with pytest.raises(TimeoutError):
                for _ in range(100):
                    manager.recv(100)
            agent.send_signal(signal.SIGCONT)
            manager.settimeout(20)
            assert manager.recv(100) == b"WATCHDOG=1"
        finally:
            agent.terminate()
            agent.wait(20)
