"""When the kernel's engine is taken by itself, and when an agent that has it gives it up."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeagent import enginerule
from edgeagent.config import load
from edgeagent.engine import choice
from edgeagent.engine.kernel.engine import KernelDrop
from edgeagent.enginerule import Facts, facts_of, has_modem
from edgeagent.kerneltunnel import CHANGE_AFTER_S, REFUSED_FOR_S, KernelWatch
from edgeagent.proto.routewish import RouteWish

LAN = (bytes((192, 168, 7, 0)), 24)
PLAIN = Facts(uplinks=["eth0"])


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system where nothing is missing."""
    monkeypatch.setattr(choice, "why_no_kernel", lambda: None)
    for name in ("why_no_nft", "why_no_family"):
        monkeypatch.setattr(enginerule, name, lambda: "")
    monkeypatch.setattr(enginerule, "OF_SYSTEM", ())


def facts(*, names: tuple[str, ...] = ("eth0",), wish: RouteWish | None = None, **of_map: Any) -> Facts:
    given = of_map.pop("settings", {})
    settings = load({"modem": "off", **given}, {}, os.devnull)
    metered = of_map.pop("metered", ())
    policies = SimpleNamespace(budget=lambda name: SimpleNamespace(metered=name in metered))
    accounts: Any = SimpleNamespace(policies=policies)
    device_map: Any = SimpleNamespace(**{"approved": [], "clients": [], "routes": None, **of_map})
    return facts_of(settings, accounts, device_map, wish, names)


def wish(**what: Any) -> RouteWish:
    made = RouteWish()
    made.change(what)
    return made


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (PLAIN, ""),
        (facts(), ""),
        (facts(names=()), ""),  # not yet connected
        (facts(settings={"uplinks": "eth0"}), ""),
        (facts(routes=[LAN]), ""),
        (facts(wish=wish(advertise=["192.168.7.0/24"])), ""),  # not approved yet
        (facts(names=("eth0", "wlan0")), "several uplinks (eth0, wlan0)"),
        (facts(settings={"uplinks": "eth0,wwan0"}), "several uplinks (eth0, wwan0)"),
        (facts(settings={"modem": "/dev/ttyUSB2"}), "a modem is there"),
        (facts(metered=("eth0",)), "eth0 is metered"),
        (facts(approved=[LAN]), "it routes for others: 1 prefix"),
        (facts(clients=[(b"k", b"4", b"6")], approved=[LAN]), "for others: 1 prefix, 1 plain client"),
        (facts(routes=[LAN], wish=wish(exit_node="gw")), "it uses an exit node: gw"),
    ],
)
def test_what_a_device_has_to_be(able: None, found: Facts, said: str) -> None:
    why = enginerule.why_not(found)
    assert said in why if said else why == ""


@pytest.mark.parametrize("row", ["WireGuard", "rights", "memory"])
def test_what_a_system_has_to_have(monkeypatch: pytest.MonkeyPatch, row: str) -> None:
    rows = tuple(
        (name, wants, lambda name=name: "missing" if name == row else "") for name, wants, _ in enginerule.OF_SYSTEM
    )
    monkeypatch.setattr(enginerule, "OF_SYSTEM", rows)
    monkeypatch.setattr(enginerule, "why_no_family", lambda: pytest.fail("asked, though something is missing"))
    assert enginerule.why_not(PLAIN) == "missing"


def test_the_kernel_has_the_last_word(able: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module is not loaded for a device that would not use it."""
    assert enginerule.why_not(PLAIN) == ""
    monkeypatch.setattr(enginerule, "why_no_nft", lambda: "no program nft")
    assert enginerule.why_not(PLAIN) == "no program nft"
    monkeypatch.setattr(enginerule, "why_no_family", lambda: "this kernel has no WireGuard")
    assert enginerule.why_not(PLAIN) == "this kernel has no WireGuard"
    assert "metered" in enginerule.why_not(facts(metered=("eth0",)))


def test_the_kernel_is_asked_and_answers() -> None:
    said = enginerule.why_no_family()
    assert said == "" or "has no WireGuard" in said
    assert (said == "") >= os.path.exists("/sys/module/wireguard")


def test_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enginerule, "has_capability", lambda number: number == enginerule.CAP_NET_ADMIN)
    assert enginerule.why_no_rights() == "without CAP_NET_RAW"
    monkeypatch.setattr(enginerule, "has_capability", lambda number: None)
    assert enginerule.why_no_rights() == ""


@pytest.mark.parametrize(("kib", "said"), [(16_384, ""), (16_383, "15 MiB of memory"), (None, "")])
def test_memory(tmp_path: Path, kib: int | None, said: str) -> None:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal: 60000 kB\n" + ("" if kib is None else f"MemAvailable:  {kib} kB\n"))
    why = enginerule.why_no_memory(str(path))
    assert why.startswith(said) and bool(why) is bool(said)
    assert enginerule.why_no_memory(str(tmp_path / "none")) == ""


def test_a_serial_port_is_no_modem(tmp_path: Path) -> None:
    (tmp_path / "tty").mkdir()
    (tmp_path / "tty/ttyUSB0").touch()
    assert not has_modem("auto", str(tmp_path)) and has_modem("mmcli", str(tmp_path))
    (tmp_path / "usbmisc").mkdir()
    (tmp_path / "usbmisc/cdc-wdm0").touch()
    assert has_modem("auto", str(tmp_path)) and not has_modem("off", str(tmp_path))


class Engine:
    refused = 0

    @property
    def drops(self) -> dict[KernelDrop, int]:
        return {KernelDrop.REFUSED: self.refused}


def watch(*, auto: bool = True) -> tuple[KernelWatch, Engine]:
    engine = Engine()
    return KernelWatch(engine, "edge0-wg", "/nonesuch/starts", auto=auto), engine  # type: ignore[arg-type]


def test_it_is_given_up_once_a_condition_has_not_held_for_a_while() -> None:
    kernel, _ = watch()
    kernel.look(10.0, PLAIN)
    kernel.on_timeout(10.0)
    assert kernel.given_up == "" and kernel.poll_timeout() is None
    kernel.look(20.0, facts(approved=[LAN]))
    kernel.on_timeout(20.0)
    assert kernel.given_up == "" and kernel.poll_timeout() == 20.0 + CHANGE_AFTER_S
    kernel.look(21.0, facts(approved=[LAN, LAN]))  # which does not begin it anew
    kernel.on_timeout(20.0 + CHANGE_AFTER_S)
    assert kernel.given_up == "it routes for others: 2 prefixes" and kernel.poll_timeout() is None
    kernel.look(30.0, PLAIN)
    assert kernel.given_up  # it has been said, and the agent is about to end


def test_what_passes_at_once_changes_nothing() -> None:
    kernel, _ = watch()
    kernel.look(10.0, facts(names=("eth0", "wlan0")))
    kernel.look(11.0, facts(names=("wlan0",)))
    kernel.on_timeout(60.0)
    assert kernel.given_up == "" and kernel.poll_timeout() is None


def test_one_that_the_hub_named_is_given_up_only_where_it_does_not_work() -> None:
    kernel, _ = watch(auto=False)
    kernel.look(10.0, facts(approved=[LAN]))
    kernel.on_timeout(100.0)
    assert kernel.given_up == ""
    kernel.interface_gone()
    assert kernel.given_up == "somebody removed edge0-wg"


def refusals(*times: float) -> tuple[str, float]:
    """What a kernel that refuses something at these times comes to, and when."""
    kernel, engine = watch()
    for tenth in range(3000):
        now = 100.0 + tenth / 10
        engine.refused += sum(1 for each in times if now - 0.1 < 100.0 + each <= now)
        kernel.on_timeout(now)
        if kernel.given_up:
            return kernel.given_up, now - 100.0
    return "", 300.0


def test_a_kernel_that_goes_on_refusing_is_given_up() -> None:
    """A filter is tried each 5 s, a peer after ever longer times."""
    why, after_s = refusals(*(5.0 * turn for turn in range(20)))
    assert "has refused 6 times" in why and REFUSED_FOR_S <= after_s <= 30.0
    why, after_s = refusals(0, 1, 3, 7, 15, 31, 63)
    assert why and after_s <= 35.0


def test_a_moment_or_a_peer_now_and_then_are_no_reason() -> None:
    assert refusals(*([5.0] * 50))[0] == ""
    assert refusals(*(30.0 * turn for turn in range(10)))[0] == ""


def test_the_note_of_why_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choice.AVOIDED_VARIABLE, "x" * 1000)
    assert choice.take_note() == "x" * choice.NOTE_MAX
    assert choice.take_note() == "" and choice.AVOIDED_VARIABLE not in os.environ


def test_the_table_is_the_one_in_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs/agent.md").read_text(encoding="utf-8")
    for name, wants, _ in (*enginerule.OF_SYSTEM, *enginerule.OF_DEVICE, *enginerule.LAST):
        assert f"| {name} | {wants} |" in text, name
