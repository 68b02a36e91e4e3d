"""What doctor says of slots and watchdogs."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeagent import config, slots
from edgeagent.doctor_slots import OK, WARNING, slot_rows, slot_version, watchdog_rows
from tests.agent.test_slots_powercut import NEW, commit, install


@pytest.fixture
def settings(tmp_path: Path) -> config.Settings:
    return config.load({"state-dir": str(tmp_path), "watchdog": "off"}, {}, None)


def said(settings: config.Settings) -> tuple[str, str, str]:
    [(check, state, found, meaning, todo)] = slot_rows(settings)
    assert check == "slots" and meaning and bool(todo) is (state != OK)
    return state, found, todo


def test_slots_through_their_life(settings: config.Settings, tmp_path: Path) -> None:
    directory = tmp_path / "slots"
    assert said(settings)[:2] == (OK, "none filled yet; the installed version runs")
    install(directory, NEW, "0.2.0", 7)
    slots.pick(str(directory), str(tmp_path / "run"))
    on_trial = "the installed version is committed; slot a is on trial: 0.2.0, started 1 of 3 times"
    assert said(settings)[:2] == (OK, on_trial)
    commit(directory)
    assert said(settings)[:2] == (OK, "slot a is committed: 0.2.0")
    install(directory, NEW, "0.3.0", 8)
    for _ in range(4):
        slots.pick(str(directory), str(tmp_path / "run"))
    state, found, todo = said(settings)
    assert state == WARNING and "roll out a mended one" in todo
    assert found == "slot a is committed: 0.2.0; 0.3.0 was given up: it was started 3 times and did not commit itself"
    assert slot_version(settings) == "0.2.0"
    (directory / "a" / slots.PROGRAM).write_bytes(b"")
    assert said(settings)[0] == WARNING and "not as long as its manifest says" in said(settings)[1]
    (directory / slots.CHOICE).write_bytes(b"x")
    assert said(settings)[:2] == (WARNING, "choice: damaged; the installed version runs")


def test_watchdogs(settings: config.Settings, tmp_path: Path) -> None:
    drivers = tmp_path / "watchdogs"

    def row() -> tuple[str, str]:
        [(_, state, found, _, todo)] = watchdog_rows(settings, str(drivers))
        assert bool(todo) is (state != OK)
        return state, found

    assert row() == (OK, "this kernel knows none")
    settings.watchdog = "/dev/watchdog,15"
    assert row() == (WARNING, "this kernel knows none")
    one = drivers / "watchdog0"
    one.mkdir(parents=True)
    (one / "identity").write_text("Broadcom BCM2835 Watchdog timer\n")
    (one / "state").write_text("inactive\n")
    about = "watchdog0 (Broadcom BCM2835 Watchdog timer, inactive)"
    assert row() == (WARNING, f"{about}: named, and nobody feeds it")
    settings.watchdog = "off"
    assert row()[0] == OK and "not used" in row()[1]
    (one / "state").write_text("active\n")
    assert row()[1].endswith("active): somebody feeds it")
