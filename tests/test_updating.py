"""The machine that fetches: a repository of python-tuf's, a hub that answers, loses, lies, and a store in memory."""

from __future__ import annotations

from datetime import timedelta
from hashlib import sha256
from typing import Any

import pytest

from edgeagent.proto.tuf import Target
from edgeagent.proto.updatestate import UpdateState
from edgeagent.proto.updating import ANSWER_S, REMEMBERED_MAX, StoreRefused, Updating
from tests.control_kit import CRYPTO
from tests.tuf_kit import NOW, TARGET, Repository

PROGRAM = bytes(range(256)) * 300
PART = 4_096


class MemoryStore:
    def __init__(self) -> None:
        self.metadata: dict[str, bytes] = {}
        self.parts: dict[bytes, bytearray] = {}
        self.target: Target | None = None
        self.installed: list[tuple[str, str, int]] = []
        self.refuses: StoreRefused | None = None

    def kept(self) -> dict[str, bytes]:
        return dict(self.metadata)

    def keep(self, believed: dict[str, bytes]) -> None:
        self.metadata |= believed

    def begin(self, target: Target) -> int:
        if self.refuses is not None:
            raise self.refuses
        self.target = target
        return len(self.parts.setdefault(target.sha256, bytearray()))

    @property
    def part(self) -> bytearray:
        assert self.target is not None
        return self.parts[self.target.sha256]

    def append(self, data: bytes) -> None:
        self.part.extend(data)

    def start_over(self) -> None:
        self.part.clear()

    def is_right(self, target: Target) -> bool:
        return sha256(self.part).digest() == target.sha256

    def install(self, target: Target, version: str, rollout: int) -> None:
        self.installed.append((target.name, version, rollout))


class Rig:
    """A device and its hub, driven until nothing moves any more. `spoil` may change or lose (None) an answer."""

    def __init__(self, **custom: Any) -> None:
        self.repository = Repository()
        self.repository.add(TARGET, PROGRAM, **custom)
        self.repository.next()
        self.store = MemoryStore()
        self.now = 100.0
        self.time_known = True
        self.budget = ""
        self.asked: list[str] = []
        self.spoil: Any = lambda body: body
        self.bytes_in_flight_max = 0
        self.machine = self.make()
        self.connect()

    def make(self, running: str = "0.1.0") -> Updating:
        return Updating(
            CRYPTO,
            lambda: 0.5,
            self.store,
            running=running,
            abi="arm64",
            part_bytes=PART,
            wall_s=lambda now: NOW.timestamp() if self.time_known else None,
            may_fetch=lambda now: self.budget,
        )

    def connect(self) -> None:
        self.machine.connection_changed(self.now, True)

    def want(self, version: str = "0.2.0", rollout: int = 7, name: str = TARGET) -> None:
        root = self.repository.files["1.root.json"]
        self.machine.want(self.now, {"v": version, "r": rollout, "t": name}, [1, sha256(root).digest()])

    def files(self) -> dict[str, bytes]:
        target = self.repository.targets.targets[TARGET] if TARGET in self.repository.targets.targets else None
        found = {f"metadata/{name}": data for name, data in self.repository.files.items()}
        if target is not None:
            found[f"targets/{target.hashes['sha256']}.{TARGET}"] = PROGRAM
        return found

    def answer(self, ask: dict[str, Any]) -> dict[str, Any] | None:
        self.asked.append(ask["f"])
        data = self.files().get(ask["f"])
        if data is None or ask["o"] >= len(data):
            body: dict[str, Any] = {"f": ask["f"], "no": "unknown", "s": 60}
        else:
            part = data[ask["o"] : ask["o"] + ask["n"]]
            body = {"f": ask["f"], "o": ask["o"], "l": len(data), "d": part}
        changed: dict[str, Any] | None = self.spoil(body)
        return changed

    def exchange(self, steps_max: int = 1_000) -> None:
        """Questions and answers, until there is none."""
        for _ in range(steps_max):
            asks = self.machine.drain_asks()
            if not asks:
                return
            self.bytes_in_flight_max = max(self.bytes_in_flight_max, sum(ask["n"] for ask in asks))
            for ask in asks:
                if (body := self.answer(ask)) is not None:
                    self.machine.handle_part(self.now, body)

    def run(self, seconds: float = 40_000.0) -> None:
        """With all the pauses that the machine wants."""
        ends = self.now + seconds
        self.exchange()
        while (at := self.machine.poll_timeout()) is not None and at <= ends:
            self.now = at
            self.machine.handle_timeout(self.now)
            self.exchange()

    @property
    def said(self) -> tuple[UpdateState, str]:
        return self.machine.state, self.machine.why


def test_a_version_is_fetched_believed_and_installed() -> None:
    rig = Rig()
    rig.want()
    rig.exchange()
    assert rig.machine.is_installed and rig.said == (UpdateState.TRIAL, "")
    assert rig.store.installed == [(TARGET, "0.2.0", 7)]
    assert bytes(rig.store.part) == PROGRAM
    assert rig.bytes_in_flight_max <= 4 * PART
    assert set(rig.store.metadata) == {"root", "timestamp", "snapshot", "targets"}
    assert rig.machine.report() == {"r": 7, "s": 3, "v": "0.1.0", "w": ""}


def test_what_is_kept_is_not_asked_for_again() -> None:
    rig = Rig()
    rig.want()
    rig.exchange()
    rig.asked.clear()
    rig.machine = rig.make()
    rig.connect()
    rig.want(rollout=8)
    rig.exchange()
    assert rig.asked == ["metadata/2.root.json", "metadata/timestamp.json"]
    assert rig.store.installed[-1] == (TARGET, "0.2.0", 8)


def test_it_goes_on_at_the_byte_after_a_restart_and_after_a_lost_connection() -> None:
    rig = Rig()
    rig.want()
    rig.exchange(7)  # some of the target came
    had = len(rig.store.part)
    assert 0 < had < len(PROGRAM)
    rig.machine.connection_changed(rig.now, False)
    assert rig.machine.drain_asks() == []
    rig.connect()
    assert [ask["o"] for ask in rig.machine.drain_asks()][0] == had
    rig.machine = rig.make()  # a new life
    rig.connect()
    rig.want()
    offsets: list[int] = []
    rig.spoil = lambda body: offsets.append(body["o"]) or body if body["f"].startswith("targets/") else body
    rig.exchange()
    assert offsets[0] == had and rig.machine.is_installed


def test_lost_parts_are_asked_for_again() -> None:
    rig = Rig()
    count = 0

    def lose(body: dict[str, Any]) -> dict[str, Any] | None:
        nonlocal count
        count += 1
        return None if count % 5 == 0 else body

    rig.spoil = lose
    rig.want()
    rig.run()
    assert rig.machine.is_installed and bytes(rig.store.part) == PROGRAM
    assert rig.machine.strays > 0  # what followed a lost one was not kept


def test_a_silent_hub_is_asked_ever_more_rarely() -> None:
    rig = Rig()
    rig.spoil = lambda body: None
    rig.want()
    rig.run(86_400)
    assert rig.said == (UpdateState.FETCHING, "") and len(rig.asked) < 60


def test_a_busy_hub_is_given_time() -> None:
    rig = Rig()
    told = 0

    def busy(body: dict[str, Any]) -> dict[str, Any]:
        nonlocal told
        if body["f"].startswith("targets/") and told < 3:
            told += 1
            return {"f": body["f"], "no": "busy", "s": 20}
        return body

    rig.spoil = busy
    rig.want()
    before = rig.now
    rig.run()
    assert rig.machine.is_installed and rig.now - before >= 20


@pytest.mark.parametrize("bad", ["bytes", "length", "offset", "longer", "shorter", "endless", "cut"])
def test_lies_about_a_file_change_nothing(bad: str) -> None:
    rig = Rig()

    def lie(body: dict[str, Any]) -> dict[str, Any]:
        if not body["f"].startswith("targets/") or "d" not in body:
            return body
        return {
            "bytes": {**body, "d": bytes(len(body["d"]))},
            "length": {**body, "l": len(PROGRAM) + 1},
            "offset": {**body, "o": body["o"] + 1},
            "longer": {**body, "d": body["d"] * 9},
            "shorter": {**body, "l": 1},
            "endless": {**body, "l": 1 << 28},
            "cut": {**body, "d": body["d"][:1]} if body["o"] == 0 else {"f": body["f"], "no": "unknown", "s": 60},
        }[bad]

    rig.spoil = lie
    rig.want()
    rig.run(20_000)
    assert rig.store.installed == [] and not rig.machine.is_installed
    if bad not in ("offset", "longer", "shorter"):  # which are strays: a hub that says no more is patiently asked
        assert rig.machine.state is UpdateState.REFUSED
        assert rig.machine.why


def test_endless_metadata_is_refused_before_it_is_kept() -> None:
    rig = Rig()
    rig.spoil = lambda body: {**body, "l": 1 << 28} if "l" in body else body
    rig.want()
    rig.run()
    assert rig.machine.state is UpdateState.REFUSED and "at most" in rig.machine.why


def test_a_wrong_root_is_refused_and_nothing_kept() -> None:
    rig = Rig()
    other = Repository()
    rig.spoil = lambda body: body
    rig.machine.want(rig.now, {"v": "0.2.0", "r": 7, "t": TARGET}, [1, sha256(other.files["1.root.json"]).digest()])
    rig.run()
    assert rig.said[0] is UpdateState.REFUSED and "root: not the one that the hub's map names" in rig.said[1]
    assert rig.store.metadata == {}


def test_the_first_root_that_was_named_holds() -> None:
    """A hub in other hands, or another hub, cannot have the device believe other keys."""
    rig = Rig()
    rig.machine.want(rig.now, None, [1, bytes(32)])
    rig.want()
    rig.run()
    assert rig.said[0] is UpdateState.REFUSED and rig.store.metadata == {}


def test_without_a_root_nothing_is_believed() -> None:
    rig = Rig()
    rig.machine.want(rig.now, {"v": "0.2.0", "r": 7, "t": TARGET}, None)
    assert rig.said == (UpdateState.REFUSED, "no root: neither the image nor the hub has named one")


@pytest.mark.parametrize(
    ("custom", "version", "says"),
    [
        ({"abi": "mipsel"}, "0.2.0", "for mipsel, and this device is arm64"),
        ({"version": "0.3.0"}, "0.2.0", "signed as another version than 0.2.0"),
        ({"version": "0.0.9"}, "0.0.9", "0.0.9 is older than 0.1.0, and is not signed as a downgrade"),
    ],
)
def test_what_is_not_for_this_device_is_refused_with_the_reason(
    custom: dict[str, Any], version: str, says: str
) -> None:
    rig = Rig(**custom)
    rig.want(version)
    rig.exchange()
    assert rig.machine.state is UpdateState.REFUSED and says in rig.machine.why
    assert rig.store.target is None  # before a byte of it was fetched


def test_a_signed_downgrade_is_taken() -> None:
    rig = Rig(version="0.0.9", downgrade=True)
    rig.want("0.0.9")
    rig.exchange()
    assert rig.machine.is_installed


def test_a_rollout_that_was_refused_is_not_begun_again() -> None:
    rig = Rig(abi="mipsel")
    rig.want()
    rig.exchange()
    refused = rig.machine.refused
    rig.machine = rig.make()
    rig.machine.refused = refused
    rig.connect()
    rig.asked.clear()
    rig.want()
    rig.run()
    assert rig.asked == [] and rig.machine.state is UpdateState.REFUSED
    rig.repository.add(TARGET, PROGRAM, abi="arm64")
    rig.repository.next()
    rig.want(rollout=8)  # another rollout of it is
    rig.run()
    assert rig.machine.is_installed
    for rollout in range(9, 40):
        rig.machine.settle_trial(UpdateState.RETURNED, rollout, "0.2.0", "it hung")
    assert len(rig.machine.refused) == REMEMBERED_MAX
    assert rig.machine.refused[-1] == (39, "0.2.0", UpdateState.RETURNED, "it hung")


def test_the_budget_is_waited_for_and_what_came_is_kept() -> None:
    rig = Rig()
    rig.budget = "the budget is nearly used up"
    rig.want()
    rig.exchange()
    assert rig.asked == [] and rig.said == (UpdateState.WAITING, "the budget is nearly used up")
    rig.budget = ""
    rig.now += 600
    rig.machine.handle_timeout(rig.now)
    rig.exchange(7)
    had = len(rig.store.part)
    rig.budget = "again"
    rig.exchange()
    assert rig.said == (UpdateState.WAITING, "again") and len(rig.store.part) > had
    assert rig.machine.drain_asks() == []
    rig.budget = ""
    rig.run()
    assert rig.machine.is_installed


def test_no_space_is_waited_for() -> None:
    rig = Rig()
    rig.store.refuses = StoreRefused("slot b: 900 KiB more are needed", wait=True)
    rig.want()
    rig.exchange()
    assert rig.said == (UpdateState.WAITING, "slot b: 900 KiB more are needed")
    rig.store.refuses = None
    rig.run()
    assert rig.machine.is_installed


def test_a_wish_that_ends_or_changes_in_between() -> None:
    rig = Rig()
    rig.want()
    rig.exchange(6)
    rig.machine.want(rig.now, None, None)
    assert rig.machine.state is UpdateState.IDLE and rig.machine.drain_asks() == []
    rig.want()
    rig.exchange()
    assert rig.machine.is_installed


def test_expiry_needs_a_clock() -> None:
    rig = Rig()
    rig.repository.timestamp.expires = NOW - timedelta(days=1)
    rig.repository.next()
    rig.want()
    rig.run()
    assert rig.machine.state is UpdateState.REFUSED and "expired" in rig.machine.why
    rig.time_known = False
    rig.want(rollout=8)
    rig.run()
    assert rig.machine.is_installed


def test_the_version_that_runs_is_committed_without_a_byte() -> None:
    rig = Rig()
    rig.want("0.1.0")
    rig.run()
    assert rig.asked == [] and rig.said == (UpdateState.COMMITTED, "")
