"""Settings of the hub: a closed table, counted starts, and what is on flash after each step."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from edgeagent import config
from edgeagent.io.keystore import Keystore, StateFile
from edgeagent.settingstrial import NAMES, STARTS_MAX, Kept, SettingsTrial, check, overlay


@pytest.fixture(autouse=True)
def no_alarm(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    set_to: list[int] = []
    monkeypatch.setattr(signal, "alarm", lambda seconds: set_to.append(seconds))
    return set_to


class Client:
    connected = True
    time_is_fresh = False


class Node:
    def __init__(self) -> None:
        self.client = Client()
        self.told: list[dict[str, Any]] = []

    def tell(self, now: float, verb: str, body: dict[str, Any]) -> int:
        if self.client.connected:
            self.told.append(body["se"])
        return int(self.client.connected)


class Device:
    """What a trial sees of an agent, over several starts."""

    def __init__(self, directory: Path) -> None:
        self.keystore = Keystore(str(directory))
        self.node = Node()
        self.disk_full = False
        self.start(0.0)

    def start(self, now: float) -> None:
        self.settings = config.load({}, {}, None)
        overlay(self.settings, self.keystore)
        self.trial = SettingsTrial(now, self, self)  # type: ignore[arg-type]

    def save(self, file: StateFile, body: bytes) -> bool:
        if not self.disk_full:
            self.keystore.save(file, body)
        return not self.disk_full


@pytest.fixture
def device(tmp_path: Path) -> Device:
    (tmp_path / "state").mkdir(mode=0o700)
    return Device(tmp_path / "state")


def restarts(device: Device) -> bool:
    return device.trial.restart_wanted


def se(generation: int, **values: str) -> dict[str, Any]:
    return {"g": generation, "c": 60, "k": {name.replace("_", "-"): text for name, text in values.items()}}


def test_what_reaches_the_hub_is_kept(device: Device, no_alarm: list[int]) -> None:
    device.trial.follow(0.0, se(1, log_level="debug", budget="wwan0=2MB/day"))
    assert restarts(device)
    device.start(10.0)
    assert (device.settings.log_level, device.settings.budget) == ("debug", "wwan0=2MB/day") and no_alarm[-1] == 120
    device.trial.settle(10.0)
    assert device.trial.report() == {"g": 1, "s": 3, "w": ""}
    device.node.client.time_is_fresh = True
    device.trial.settle(11.0)
    assert device.node.told[-1] == {"g": 1, "s": 4, "w": ""} and no_alarm[-1] == 0
    assert device.trial.poll_timeout() is None
    device.start(99.0)
    assert device.settings.log_level == "debug"
    device.trial.follow(99.0, se(1, log_level="debug", budget="wwan0=2MB/day"))
    assert not restarts(device)


def test_what_does_not_is_taken_back_and_not_tried_again(device: Device, no_alarm: list[int]) -> None:
    device.trial.follow(0.0, se(1, log_level="debug"))
    device.start(0.0)
    device.node.client.time_is_fresh = True
    device.trial.settle(1.0)
    device.node.client.time_is_fresh = False
    device.trial.follow(2.0, se(2, uplinks="nowhere0"))
    device.start(10.0)
    assert (device.settings.uplinks, device.settings.log_level) == ("nowhere0", "info")
    assert device.trial.poll_timeout() == 70.0
    device.trial.on_timeout(69.9)
    assert not restarts(device)
    device.trial.on_timeout(70.0)
    assert restarts(device)
    device.start(80.0)
    assert no_alarm[-1] == 0  # the one that was set before would end this agent, which is in order
    assert (device.settings.uplinks, device.settings.log_level) == ("", "debug")
    assert device.trial.report() == {"g": 2, "s": 5, "w": "the hub was not reached in 60 s"}
    device.trial.follow(80.0, se(2, uplinks="nowhere0"))
    assert not restarts(device)


def test_starts_are_counted_over_crashes_and_power_cuts(device: Device) -> None:
    device.trial.follow(0.0, se(1, memory_ceiling="20"))
    for _ in range(STARTS_MAX):
        device.start(0.0)
        assert device.settings.memory_ceiling == "20"
    device.start(0.0)
    assert device.settings.memory_ceiling == "auto"
    assert device.trial.report() == {"g": 1, "s": 5, "w": "the agent was started 3 times and did not reach the hub"}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"state_dir": "/tmp"}, "state-dir: not a setting that the hub may change; those are budget, engine, "),
        ({"lock": ""}, "lock: not a setting"),
        ({"log_level": "loud"}, "log-level: debug, info, warning or error expected"),
        ({"log_level": "debug", "budget": "much"}, "budget: interface=amount"),
        ({"uplinks": "a b"}, "uplinks: an interface name"),
        ({"trial": "1"}, "trial: a whole number from 20"),
    ],
)
def test_wrong_ones_are_refused_whole(device: Device, values: dict[str, str], says: str) -> None:
    device.trial.follow(0.0, se(1, **values))
    report = device.trial.report()
    assert report is not None and report["s"] == 6 and report["w"].startswith(says)
    assert not restarts(device) and Kept.load(device.keystore).trial is None


def test_nothing_of_it_takes_all_back(device: Device) -> None:
    device.trial.follow(0.0, se(1, log_level="debug"))
    device.start(0.0)
    device.node.client.time_is_fresh = True
    device.trial.settle(0.0)
    device.trial.follow(0.0, se(2))
    device.start(0.0)
    device.trial.settle(0.0)
    assert device.settings.log_level == "info" and device.trial.report() == {"g": 2, "s": 4, "w": ""}


def test_a_full_disk_refuses_and_changes_nothing(device: Device) -> None:
    device.disk_full = True
    device.trial.follow(0.0, se(1, log_level="debug"))
    report = device.trial.report()
    assert report is not None and report["s"] == 6 and not restarts(device)
    device.start(0.0)
    assert device.settings.log_level == "info"


def test_a_damaged_file_is_as_good_as_none(device: Device) -> None:
    device.trial.follow(0.0, se(1, log_level="debug"))
    path = Path(device.keystore.path(StateFile.SETTINGS))
    whole = path.read_bytes()
    for data in (b"", whole[:-1], whole[:50] + b"\xff" + whole[51:]):
        path.write_bytes(data)
        device.start(0.0)
        assert device.settings.log_level == "info" and device.trial.report() is None


def test_the_table_is_of_settings_that_there_are() -> None:
    assert set(NAMES) <= set(config.SETTINGS)
    assert check({name: config.SETTINGS[name][1] for name in NAMES}) == ""


def test_the_alarm_of_a_version_on_trial_is_left_alone(
    device: Device, no_alarm: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    device.trial.follow(0.0, se(1, log_level="debug"))
    no_alarm.clear()
    monkeypatch.setenv("EDGEAGENT_ON_TRIAL", "on")
    device.start(0.0)
    device.node.client.time_is_fresh = True
    device.trial.settle(0.0)
    assert device.node.told[-1]["s"] == 4 and no_alarm == []
