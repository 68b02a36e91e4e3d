"""Which modems are asked and when, what programs say of them, and what follows for the price of an uplink."""

from __future__ import annotations

import json
import selectors
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeagent import config, modems
from edgeagent.io.child import GRACE_S
from edgeagent.io.modem_at import AtDriver
from edgeagent.io.modem_programs import LIMIT_S, MmcliDriver, ProgramDriver, UqmiDriver, net_of_wdm
from edgeagent.membership import modems_likely
from edgeagent.modems import LOOK_AFTER_S, POLL_S, RETRY_MAX_S, WATCHED_S, Modems, choose
from edgeagent.proto.budget import Level
from edgeagent.proto.ledger import Cause
from edgeagent.proto.modem import HOME, ROAMING, ROAMING_ENDS_S, Reading
from tests.agent.modem_programs import MODEM, UQMI, FakeProgram, fake_mmcli, fake_uqmi
from tests.agent.modem_sim import ModemSim
from tests.agent.test_accounts import Agents

DEADLINE_S = 60.0


@pytest.fixture
def selector() -> Iterator[selectors.BaseSelector]:
    with selectors.DefaultSelector() as made:
        yield made


def poll(
    selector: selectors.BaseSelector, driver: ProgramDriver, ahead_s: float = 0.0
) -> list[tuple[str, str, Reading]]:
    """`ahead_s` passes at once, after the program began."""
    driver.begin(time.monotonic())
    deadline = time.monotonic() + DEADLINE_S
    while not driver.done:
        assert time.monotonic() < deadline
        for key, _ in selector.select(0.01) if selector.get_map() else ():
            key.data(time.monotonic() + ahead_s, key.fd)
        driver.on_timeout(time.monotonic() + ahead_s)
    assert not selector.get_map()
    return driver.found


EXPECTED = {
    "technology": "LTE", "band": "B3", "rsrp": -97, "rsrq": -11, "sinr": 12, "rssi": -66, "operator": "Testnet",
    "apn": "internet.test",
}  # fmt: skip


def test_what_modemmanager_says(selector: selectors.BaseSelector, tmp_path: Path) -> None:
    fake = fake_mmcli(tmp_path / "bin")
    [(port, uplink, reading)] = poll(selector, MmcliDriver(selector, str(fake.path)))
    assert (port, uplink) == ("cdc-wdm0", "wwan0")
    expected = EXPECTED | {"registration": HOME, "sim": "READY"}
    assert {name: getattr(reading, name) for name in expected} == expected
    assert not [words for words in fake.asked if "setup" in words]


def test_modemmanager_is_told_once_to_look_at_the_signal(selector: selectors.BaseSelector, tmp_path: Path) -> None:
    fake = fake_mmcli(tmp_path / "bin")
    fake.says(f"-m {MODEM} --signal-get -J", {"modem": {"signal": {"lte": {"rsrp": "--"}, "refresh": {"rate": "0"}}}})
    [(_, _, reading)] = poll(selector, MmcliDriver(selector, str(fake.path)))
    assert reading.rsrp is None and fake.asked.count(f"-m {MODEM} --signal-setup=60") == 1


def test_what_uqmi_says(selector: selectors.BaseSelector, tmp_path: Path) -> None:
    fake = fake_uqmi(tmp_path / "bin")
    [(port, uplink, reading)] = poll(selector, UqmiDriver(selector, str(fake.path), "/dev/cdc-wdm0", "wwan0"))
    assert (port, uplink) == ("/dev/cdc-wdm0", "wwan0")
    expected = EXPECTED | {"registration": ROAMING}
    assert {name: getattr(reading, name) for name in expected} == expected


def test_5g_beside_lte_by_uqmi(selector: selectors.BaseSelector, tmp_path: Path) -> None:
    fake = fake_uqmi(tmp_path / "bin")
    lte = {"type": "lte", "rssi": -60, "rsrq": -9, "rsrp": -88, "snr": 18.0}
    fake.says(f"{UQMI} --get-signal-info", [lte, {"type": "5gnr", "rsrp": -101, "snr": 4.0}])
    [(_, _, reading)] = poll(selector, UqmiDriver(selector, str(fake.path), "/dev/cdc-wdm0"))
    assert (reading.technology, reading.rsrp, reading.sinr) == ("LTE+NR", -88, 18)


@pytest.mark.parametrize("text", ["", "Failed to connect to service", "{", "[" * 30_000, '{"modem":', "\xff\x00"])
def test_what_is_no_answer_is_none(selector: selectors.BaseSelector, tmp_path: Path, text: str) -> None:
    fake = fake_uqmi(tmp_path / "bin")
    for words in ("--get-signal-info", "--get-serving-system"):
        fake.says(f"{UQMI} {words}", text)
    driver = UqmiDriver(selector, str(fake.path), "/dev/cdc-wdm0")
    assert poll(selector, driver) == []
    assert driver.why.startswith("uqmi: ")


def test_modemmanager_that_does_not_run_is_said(selector: selectors.BaseSelector, tmp_path: Path) -> None:
    driver = MmcliDriver(selector, str(FakeProgram(tmp_path / "bin", "mmcli").path))
    assert poll(selector, driver) == []
    assert driver.why == "mmcli: error: couldn't find the ModemManager process in the bus"


def test_a_program_that_is_not_there_is_said(selector: selectors.BaseSelector, tmp_path: Path) -> None:
    driver = MmcliDriver(selector, str(tmp_path / "mmcli"))
    assert poll(selector, driver) == []
    assert driver.why.endswith("No such file or directory")


def test_a_program_that_hangs_or_floods_is_ended(selector: selectors.BaseSelector, tmp_path: Path) -> None:
    fake = fake_mmcli(tmp_path / "bin")
    (fake.directory / "hang").touch()
    driver = MmcliDriver(selector, str(fake.path))
    assert poll(selector, driver, ahead_s=LIMIT_S + GRACE_S) == []
    assert driver.why == "mmcli: time-limit" and len(fake.asked) <= 1
    (fake.directory / "hang").unlink()
    (fake.directory / "flood").touch()
    assert poll(selector, driver) == []
    assert (driver.why, driver.dropped) == ("mmcli: too-much-output", 2)


# Which


def test_auto_asks_modemmanager_where_it_runs_and_else_uqmi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    devices = str(tmp_path / "cdc-wdm*")
    monkeypatch.setattr(modems, "is_running", lambda name: False)
    assert choose("auto", [], devices) == []
    (tmp_path / "cdc-wdm0").touch()
    assert choose("auto", [], devices) == []
    fake_uqmi(tmp_path)
    assert choose("auto", [], devices) == [str(tmp_path / "cdc-wdm0")]
    board = [{"model": "EC25", "driver": "uqmi", "control": "/dev/cdc-wdm3", "port": "/dev/ttyUSB2"}]
    assert choose("auto", board, devices) == ["/dev/cdc-wdm3"]
    (tmp_path / "uqmi").unlink()
    assert choose("auto", board, devices) == ["/dev/ttyUSB2"]
    fake_mmcli(tmp_path)
    assert choose("auto", board, devices) == ["/dev/ttyUSB2"]
    monkeypatch.setattr(modems, "is_running", lambda name: name == "ModemManager")
    assert choose("auto", board, devices) == ["mmcli"]
    assert choose("off", board, devices) == []
    assert choose("/dev/ttyUSB3=wwan0,mmcli", board, devices) == ["/dev/ttyUSB3=wwan0", "mmcli"]


@pytest.mark.parametrize(
    "each",
    [
        {"driver": "at", "port": "/etc/passwd"},
        {"driver": "at", "port": "/dev/../etc/x"},
        {"driver": "at"},
        {"driver": 7, "port": []},
    ],
)
def test_a_damaged_board_names_no_port(each: dict[str, Any]) -> None:
    assert choose("auto", [each], "/nowhere/*") == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"v": 1, "id": "x", "modems": 7}', '{"v": 1, "id": "x", "modems": [7, null]}', "[" * 4_000]
)
def test_a_damaged_slice_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "board.json").write_text(text)
    assert modems.board_modems(str(tmp_path)) == []


def test_the_slice_of_the_board(tmp_path: Path) -> None:
    wanted = [{"model": "EC25", "driver": "at", "port": "/dev/ttyUSB2"}]
    (tmp_path / "board.json").write_text(json.dumps({"v": 1, "id": "x", "modems": wanted}))
    assert modems.board_modems(str(tmp_path)) == wanted


def test_what_looks_as_if_there_was_a_modem(tmp_path: Path) -> None:
    assert not modems_likely("auto", str(tmp_path))
    assert not modems_likely("off", str(tmp_path)) and modems_likely("/dev/ttyS0", str(tmp_path))
    (tmp_path / "tty/ttyS0").mkdir(parents=True)
    assert not modems_likely("auto", str(tmp_path))
    (tmp_path / "tty/ttyUSB0").mkdir()
    assert modems_likely("auto", str(tmp_path))


def test_the_interface_beside_a_control_device(tmp_path: Path) -> None:
    (tmp_path / "cdc-wdm0/device/net/wwan0").mkdir(parents=True)
    assert net_of_wdm("/dev/cdc-wdm0", str(tmp_path)) == "wwan0" and net_of_wdm("/dev/cdc-wdm1", str(tmp_path)) == ""


@pytest.mark.parametrize(
    "text", ["auto", "off", "mmcli", "/dev/ttyUSB2", "/dev/serial/by-id/usb-if02=wwan0,/dev/cdc-wdm0"]
)
def test_what_may_be_set(text: str) -> None:
    assert config.load({"modem": text}, {}, "/dev/null").modem == text


@pytest.mark.parametrize(
    "text",
    [
        "ttyUSB2",
        "/dev/",
        "/dev/../etc/passwd;",
        "/etc/passwd",
        "a,b",
        "/dev/x=",
        "mmcli,mmcli",
        ",".join(f"/dev/t{n}" for n in range(5)),
    ],
)
def test_what_may_not(text: str) -> None:
    with pytest.raises(config.ConfigError, match="--modem"):
        config.load({"modem": text}, {}, "/dev/null")


# When, and at what price


class FakeDriver:
    """Ends each poll at once, with what the test gave it."""

    name = "AT"

    def __init__(self) -> None:
        self.gives: list[tuple[str, str, Reading]] = []
        self.found: list[tuple[str, str, Reading]] = []
        self.why, self.done, self.dropped, self.polls = "", True, 0, 0

    def begin(self, now: float) -> None:
        self.polls += 1
        self.found = self.gives
        self.why = "" if self.gives else "/dev/ttyUSB2: no answer to AT"

    def poll_timeout(self) -> None:
        return None

    def on_timeout(self, now: float) -> None:
        raise AssertionError("it is done")

    def close(self) -> None:
        self.done = True


class Site:
    def __init__(self, agents: Agents, monkeypatch: pytest.MonkeyPatch, metered: str = "auto") -> None:
        self.driver = FakeDriver()
        monkeypatch.setattr(modems, "make", lambda selector, key: self.driver)
        self.accounts = agents(modem="/dev/ttyUSB2", metered=metered)
        self.modems = Modems(0.0, agents.context)
        self.now = 0.0

    def says(self, **values: Any) -> None:
        reading = Reading()
        for name, value in values.items():
            setattr(reading, name, value)
        self.driver.gives = [("/dev/ttyUSB2", "lan9", reading)]

    def next(self) -> float:
        """Lets time pass until the next poll; returns how long that was."""
        at = self.modems.poll_timeout()
        assert at is not None
        before, self.now = self.now, max(at, self.now)
        self.modems.on_timeout(self.now)
        return self.now - before

    def told(self) -> bool:
        """Whether the hub is to hear of something; resets it."""
        news, self.modems.news = self.modems.news, False
        return news


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[Agents]:
    made = Agents(tmp_path / "state")
    yield made
    made.context.accounts.names.close()
    made.keystore.close()
    made.selector.close()


@pytest.fixture
def site(agents: Agents, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(agents, monkeypatch)


def test_it_is_asked_every_five_minutes_and_every_minute_while_somebody_looks(site: Site) -> None:
    site.says(rsrp=-90, registration=HOME)
    assert [site.next() for _ in range(3)] == [0.0, POLL_S, POLL_S]
    for _ in range(100):  # a page that asks every second
        site.now += 1.0
        site.modems.watched(site.now)
        site.modems.on_timeout(site.now)
    assert site.driver.polls == 3 + 1
    assert site.modems.poll_timeout() == 2 * POLL_S + 60 + WATCHED_S


def test_a_real_port_in_the_loop_is_asked_once(agents: Agents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its poll ends while the loop handles what came in, not in a turn of `on_timeout`."""
    with ModemSim(str(tmp_path / "ttyUSB2")) as sim:
        accounts = agents(modem="/dev/ttyUSB2")
        monkeypatch.setattr(modems, "make", lambda selector, key: AtDriver(selector, sim.port, "lan9"))
        watched = Modems(0.0, agents.context)
        deadline, now = time.monotonic() + DEADLINE_S, 0.0
        while now < 20.0 or not watched.all:
            assert time.monotonic() < deadline
            due = watched.poll_timeout()
            assert due is not None
            for key, _ in agents.selector.select(0.02) if agents.selector.get_map() else ():
                key.data(now, key.fd)
            watched.on_timeout(now)
            now += 0.01 if not watched.all else 1.0
        assert sim.asked.count("AT+CSQ") == 1 and accounts.policies.budget("lan9").metered
        watched.close()


def test_one_that_says_nothing_is_asked_ever_more_rarely(site: Site) -> None:
    site.next()
    assert [site.next() for _ in range(5)] == [600.0, 1_200.0, 2_400.0, RETRY_MAX_S, RETRY_MAX_S]
    [driver] = site.modems.describe(site.now)["drivers"]
    assert driver["why"] == "/dev/ttyUSB2: no answer to AT" and driver["failures"] == 6
    site.modems.look(site.now + 10)  # an interface came
    assert site.modems.poll_timeout() == site.now + 10 + LOOK_AFTER_S
    site.modems.on_timeout(site.now + 10 + LOOK_AFTER_S)
    assert site.modems.poll_timeout() == site.now + WATCHED_S
    site.now += WATCHED_S
    site.says(rsrp=-90, registration=HOME)
    site.modems.on_timeout(site.now)
    assert site.modems.poll_timeout() == site.now + POLL_S


def test_the_uplink_of_a_modem_is_metered_whatever_it_is_called(site: Site) -> None:
    policies = site.accounts.policies
    assert not policies.budget("lan9").metered
    site.says(rsrp=-90, registration=HOME)
    site.next()
    assert policies.budget("lan9").metered and policies.of("lan9").on_demand and site.modems.price_changed
    assert policies.level("lan9") is Level.NORMAL and not policies.budget("lan8").metered


def test_unless_somebody_said_that_it_is_not(agents: Agents, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(agents, monkeypatch, metered="none")
    site.says(registration=ROAMING)
    site.next()
    assert not site.accounts.policies.budget("lan9").metered
    assert site.accounts.policies.level("lan9") is Level.NORMAL


def test_roaming_is_a_level_of_its_own(site: Site, agents: Agents) -> None:
    policies = site.accounts.policies
    site.says(registration=ROAMING)
    site.next()
    assert policies.level("lan9") is Level.ROAMING
    roaming, normal = policies.of("lan9"), policies.of("wwan0")
    assert roaming.defer_bulk and roaming.keepalive_factor > normal.keepalive_factor
    assert any("lan9: roaming, was normal" in line for line in agents.ring.lines())
    site.says(registration=HOME)
    while site.now < ROAMING_ENDS_S:
        assert policies.level("lan9") is Level.ROAMING
        site.next()
    site.next()
    assert policies.level("lan9") is Level.NORMAL


def test_a_used_up_budget_counts_more_than_roaming(site: Site) -> None:
    policies = site.accounts.policies
    site.says(registration=ROAMING)
    site.next()
    policies.set_defaults(0.0, 1_000, 0)
    site.accounts.ledger.book(site.now, "lan9", Cause.PAYLOAD, 950, 0)
    policies.assess(site.now)
    assert policies.level("lan9") is Level.EMERGENCY


def test_the_hub_hears_of_what_changed_and_not_of_each_decibel(site: Site) -> None:
    site.says(technology="LTE", rsrp=-90, registration=HOME, operator="Testnet")
    site.next()
    assert site.told() and site.modems.facts() == {"modem": "lan9: LTE, -90 dBm, home, Testnet"}
    site.says(technology="LTE", rsrp=-93, registration=HOME, operator="Testnet")
    site.next()
    assert not site.told()
    site.says(technology="LTE", rsrp=-119, registration=HOME, operator="Testnet")
    site.next()
    assert site.told() and "weak signal" in site.modems.facts()["modem"]


def test_its_clock_is_a_hint_and_only_before_the_hub_told_the_time(site: Site, agents: Agents) -> None:
    wall = agents.context.wall
    certain = wall.at(0.0)
    site.says(network_s=int(certain) + 86_400)
    site.next()
    assert wall.likely(site.now) >= certain + 86_400 and wall.at(0.0) == certain and not wall.known
    agents.tell_time(site.now, certain + 10)
    assert wall.likely(site.now) == wall.at(site.now) == certain + 10


def test_bytes_of_the_interface_stand_beside_the_agents_own(agents: Agents, monkeypatch: pytest.MonkeyPatch) -> None:
    counters = iter([(1_000, 500), (4_000, 700), (100, 50)])  # the third time it has begun anew
    monkeypatch.setattr(modems, "counters", lambda interface: next(counters))
    site = Site(agents, monkeypatch)
    site.says(rsrp=-90)
    site.next()
    site.accounts.ledger.book(site.now, "lan9", Cause.PAYLOAD, 120, 80)
    site.next()
    [row] = site.modems.rows(site.now)
    assert (row["received"], row["sent"]) == (3_100, 250)
    assert (row["agent_sent"], row["agent_received"], row["ledger_agrees"]) == (120, 80, None)


def test_a_ledger_that_has_more_than_the_interface_is_said(agents: Agents, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = [1_000, 500]
    monkeypatch.setattr(modems, "counters", lambda interface: tuple(counted))
    site = Site(agents, monkeypatch)
    site.accounts.ledger.book(0.0, "lan9", Cause.PAYLOAD, 70_000, 70_000)  # before it was found
    site.says(rsrp=-90)
    site.next()
    counted[:] = [9_000, 9_500]
    site.accounts.ledger.book(site.now, "lan9", Cause.PAYLOAD, 9_000, 7_000)
    assert [row["ledger_agrees"] for row in site.modems.rows(site.now)] == [True]
    site.accounts.ledger.book(site.now, "lan9", Cause.PAYLOAD, 18_000, 0)
    for _ in range(2):
        assert [row["ledger_agrees"] for row in site.modems.rows(site.now)] == [False]
    assert len([line for line in agents.ring.lines() if "the ledger has more" in line]) == 1


def test_the_hub_hears_that_it_does_not_answer_any_more(site: Site) -> None:
    site.says(technology="LTE", rsrp=-90, registration=HOME)
    site.next()
    site.driver.gives = []
    assert site.told()
    site.next()
    assert not site.told()
    site.next()
    assert site.told() and site.modems.facts() == {"modem": "lan9: no answer"}


def test_the_counters_of_an_interface() -> None:
    counted = modems.counters("lo")
    assert counted is not None and counted[0] == counted[1] >= 0
    assert modems.counters("nosuch0") is None and modems.counters("") is None


def test_what_people_see(site: Site) -> None:
    assert "No modem is known" in modems.show({"modems": [], "drivers": []})
    site.says(
        technology="LTE", band="B3", rsrp=-97, rsrq=-11, sinr=12, registration=HOME, operator="Testnet", apn="internet"
    )
    site.next()
    text = modems.show(json.loads(json.dumps(site.modems.describe(site.now))))
    assert "LTE B3, home, Testnet" in text and "RSRP -97 dBm, RSRQ -11 dB, SINR 12 dB" in text
    site.driver.gives = []
    site.next()
    assert "Asked again in" in modems.show(site.modems.describe(site.now))
