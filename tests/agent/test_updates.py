"""The gate of a trial, on a device that is only what the gate looks at: when it commits, and when it gives up."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from selectors import DefaultSelector
from typing import Any

import pytest

from edgeagent import bytecode, ceiling, config, slots, zipped
from edgeagent.io.keystore import Keystore, StateFile
from edgeagent.proto.budget import POLICIES, UNMETERED, Level
from edgeagent.proto.causes import Direction
from edgeagent.proto.icmp import checksum
from edgeagent.proto.ledger import Cause
from edgeagent.proto.walltime import WallFloor
from edgeagent.updates import HOLD_S, LOOK_S, Updates, _echo
from edgeagent.version import VERSION
from tests.agent.test_slots_powercut import NEW, install
from tests.control_kit import CRYPTO
from tests.test_bytecode import zipapp

TRIAL_S = 600


class Link:
    unacknowledged = unheard = 0
    told: Any = None


class Peer:
    def __init__(self, live: bool) -> None:
        self.device = "peer"
        self.live = live

    def is_live(self, now: float) -> bool:
        return self.live


class Node:
    def __init__(self) -> None:
        self.client = self
        self.map = self
        self.connected = True
        self.time_is_fresh = False
        self.update: dict[str, Any] | None = None
        self.update_root: list[Any] | None = None
        self.addresses = (bytes((100, 64, 0, 1)), bytes(16))
        self.peering: list[Peer] = []
        self.records: dict[str, Any] = {}
        self.told: list[dict[str, Any]] = []
        self.packets: list[bytes] = []

    def tell(self, now: float, verb: str, body: dict[str, Any]) -> int:
        self.told.append(body.get("up", body))
        return 200

    def handle_packets(self, now: float, packets: list[bytes]) -> None:
        self.packets += packets


class Device:
    """What Updates asks of Context and Membership."""

    tries_settings = False

    def __init__(self, directory: Path) -> None:
        self.settings = config.load({"state-dir": str(directory), "trial": str(TRIAL_S)}, {}, None)
        self.keystore = Keystore(str(directory))
        self.crypto = CRYPTO
        self.facts: dict[str, str] = {}
        self.wall = WallFloor(0.0, 1_800_000_000)
        self.node = Node()
        self.ceiling = self
        self.kib: int | None = 40 * 1024
        self.hits = 0
        self.damaged_files = 0
        self.policy = UNMETERED
        self.link = Link()
        self.saves: Counter[StateFile] = Counter()
        self.selector = DefaultSelector()

    def start(self, now: float = 0.0) -> Updates:
        self.updates = Updates(now, self, self, self.link)  # type: ignore[arg-type]
        self.updates.follow_map(now)
        return self.updates

    def save(self, file: StateFile, body: bytes) -> bool:
        self.keystore.save(file, body)
        self.saves[file] += 1
        return True

    def load_or_none(self, file: StateFile) -> bytes | None:
        return self.keystore.load(file)

    def control_policy(self) -> Any:
        return self.policy

    def run(self, start: float, end: float) -> None:
        now = start
        while now <= end and not self.updates.restart_wanted:
            self.updates.on_timeout(now)
            self.updates.settle(now)
            now += 1.0


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    (tmp_path / "state").mkdir(mode=0o700)
    monkeypatch.setattr(signal, "alarm", lambda seconds: 0)
    monkeypatch.setattr(ceiling, "process", lambda: {"rss_kib": 25_000})
    return Device(tmp_path / "state")


@pytest.fixture
def trial(device: Device, monkeypatch: pytest.MonkeyPatch) -> Device:
    """Started by the launcher out of slot a."""
    directory = Path(device.settings.state_dir) / "slots"
    install(directory, NEW, "0.2.0", 7)
    assert slots.pick(str(directory), device.settings.state_dir + "/run").slot == "a"
    monkeypatch.setitem(os.environ, slots.SLOT_VARIABLE, "a")
    device.start()
    return device


def restarts(device: Device) -> bool:
    return device.updates.restart_wanted


def on_trial(device: Device) -> bool:
    return device.updates.on_trial


def choice(device: Device) -> slots.Choice:
    found = slots.read_choice(slots.directory_of(device.settings.state_dir))
    assert found is not None
    return found


def test_in_order_for_a_while_it_commits_itself(trial: Device) -> None:
    assert on_trial(trial)
    trial.node.time_is_fresh = True
    trial.run(0.0, LOOK_S + HOLD_S - 1)
    assert choice(trial).trial == "a" and trial.node.told[-1]["s"] == 3
    trial.run(LOOK_S + HOLD_S, 2 * (LOOK_S + HOLD_S))
    assert (choice(trial).committed, choice(trial).trial) == ("a", "")
    assert trial.node.told[-1] == {"r": 7, "s": 4, "v": VERSION, "w": ""}
    assert not on_trial(trial) and not restarts(trial)


def test_committed_it_is_compiled_once_beside_the_agents_work(
    trial: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = zipapp(tmp_path / "edgeagent.pyz")
    monkeypatch.setattr(zipped, "archive", lambda: str(program))
    trial.node.time_is_fresh = True
    trial.run(0.0, 2 * (LOOK_S + HOLD_S))
    compiling = trial.updates._compiling
    assert choice(trial).committed == "a" and compiling is not None and trial.updates.poll_timeout() is not None
    while not compiling.ended:
        for key, _ in trial.selector.select(0.25):
            key.data(0.0, key.fd)
        trial.updates.on_timeout(0.0)
    trial.updates.settle(0.0)
    assert (compiling.code, trial.updates._compiling) == (0, None)
    assert compiling.output or bytecode.path_of(str(program)) == bytecode.kept_at(str(program))
    trial.updates._compile(0.0)
    assert compiling.output or trial.updates._compiling is None


def test_never_heard_of_the_hub_it_gives_up_in_time(trial: Device) -> None:
    trial.run(0.0, TRIAL_S - 1)
    assert not restarts(trial)
    trial.run(TRIAL_S, TRIAL_S + LOOK_S)
    assert restarts(trial)
    assert choice(trial).returned == (7, "0.2.0", "the hub was not reached") and choice(trial).committed == "factory"


def test_an_order_that_does_not_last_is_none(trial: Device) -> None:
    for now in range(0, TRIAL_S + 10, 10):
        trial.node.time_is_fresh = not trial.node.time_is_fresh
        trial.run(now, now + 9.0)
    assert restarts(trial) and choice(trial).returned is not None


def test_memory_above_its_ceiling_is_no_order(trial: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    trial.node.time_is_fresh = True
    monkeypatch.setattr(ceiling, "process", lambda: {"rss_kib": 50_000})
    trial.run(0.0, TRIAL_S + LOOK_S)
    assert choice(trial).returned == (7, "0.2.0", "memory: 50000 KiB of 40960")


def test_hits_of_the_ceiling_are_none_either(trial: Device) -> None:
    trial.node.time_is_fresh = True
    trial.hits = 1
    trial.run(0.0, TRIAL_S + LOOK_S)
    assert choice(trial).returned is not None


def test_a_peer_has_to_answer_where_one_was_up_before(trial: Device) -> None:
    trial.node.time_is_fresh = True
    trial.updates._peers = [bytes((100, 64, 0, 9))]
    trial.run(0.0, 100.0)
    assert choice(trial).trial == "a"
    assert trial.node.packets[0][16:20] == bytes((100, 64, 0, 9)) and trial.node.packets[0][9] == 1
    trial.node.peering.append(Peer(live=True))
    trial.run(101.0, 101.0 + LOOK_S + HOLD_S + LOOK_S)
    assert choice(trial).committed == "a"


def test_a_disk_that_refuses_is_asked_again(trial: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    trial.node.time_is_fresh = True
    real = slots.write_choice

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(slots, "write_choice", refuse)
    trial.run(0.0, 100.0)
    assert on_trial(trial) and choice(trial).trial == "a"
    monkeypatch.setattr(slots, "write_choice", real)
    trial.run(101.0, 160.0)
    assert choice(trial).committed == "a"


def test_the_one_before_says_what_became_of_it_and_does_not_try_again(trial: Device, monkeypatch: Any) -> None:
    trial.run(0.0, TRIAL_S + LOOK_S)
    monkeypatch.setitem(os.environ, slots.SLOT_VARIABLE, slots.FACTORY)
    trial.node.told.clear()
    trial.node.update = {"v": "0.2.0", "r": 7, "t": "edgeagent.pyz"}
    trial.node.update_root = [1, bytes(32)]
    updates = trial.start()
    trial.run(0.0, 10.0)
    assert trial.node.told == [{"r": 7, "s": 5, "v": VERSION, "w": "the hub was not reached"}]
    trial.start().settle(0.0)  # also in the next life, with what is on flash
    assert updates.machine.drain_asks() == []
    trial.node.update = {"v": "0.2.0", "r": 8, "t": "edgeagent.pyz"}  # another rollout of it is tried
    trial.updates.follow_map(0.0)
    trial.updates.settle(0.0)
    assert {"f": "metadata/1.root.json", "o": 0, "n": 16_384} in trial.node.told


def test_a_spent_budget_is_waited_for_and_bytes_are_booked(device: Device) -> None:
    device.policy = POLICIES[Level.THRIFTY]
    device.node.update, device.node.update_root = {"v": "0.2.0", "r": 7, "t": "edgeagent.pyz"}, [1, bytes(32)]
    device.start().settle(0.0)
    assert device.node.told[-1]["s"] == 1 and "budget" in device.node.told[-1]["w"]
    device.policy = UNMETERED
    device.run(0.0, 130.0)
    assert device.link.told.take(Direction.SENT)[Cause.UPDATE] > 200
    device.updates.take_part(131.0, {"f": "metadata/1.root.json", "o": 0, "l": 9, "d": b"x"})
    assert device.link.told.take(Direction.RECEIVED)[Cause.UPDATE] > 300


def test_a_trial_of_settings_comes_first(device: Device) -> None:
    device.start()
    device.updates.machine.is_installed = True
    device.tries_settings = True
    device.updates.settle(0.0)
    assert not restarts(device)
    device.tries_settings = False
    device.updates.settle(1.0)
    assert restarts(device)


def test_the_ping_is_a_packet_that_any_host_answers() -> None:
    packet = _echo(bytes((100, 64, 0, 1)), bytes((100, 64, 0, 2)))
    assert checksum(packet[:20]) == 0 and checksum(packet[20:]) == 0
    assert int.from_bytes(packet[2:4], "big") == len(packet) and packet[20] == 8
