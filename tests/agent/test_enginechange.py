"""A kernel's engine that nobody named never costs a device its agent: at the start, nor later. By stand-ins."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeagent import daemon, enginerule, kerneltunnel, tunnelengine
from edgeagent.config import load
from edgeagent.daemon import Agent
from edgeagent.engine import choice
from edgeagent.engine.choice import AVOIDED_VARIABLE, EngineUnavailable
from edgeagent.engine.kernel.engine import KernelDrop
from edgeagent.io.tun import TunGone
from edgeagent.kerneltunnel import SETTLED_S, KernelWatch
from edgeagent.membership import Membership
from edgeagent.tunnel import Tunnel
from edgeagent.tunnelengine import STARTS_FILE, UNSETTLED_STARTS, TunnelError, choose


def nobody_asks() -> Any:
    """What the rule would ask of a device; the rule is a stand-in, too."""


class Engine:
    """Binds any port, or fails as the system does."""

    def __init__(self, error: int = 0) -> None:
        self.error = error
        self.closed = False

    def bind(self, port: int) -> int:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        return port

    def close(self) -> None:
        self.closed = True


class Start:
    """What a tunnel starts with: `kernel` is the kernel's engine, or why there is none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, why_not: str = "") -> None:
        self.kernel: Engine | Exception = Engine()
        self.folder = folder
        self.plain = Engine()
        self.asked: list[str] = []
        monkeypatch.setattr(kerneltunnel, "make", self._make)
        monkeypatch.setattr(tunnelengine, "start", self._start)
        monkeypatch.setattr(choice, "why_no_kernel", lambda: None)
        monkeypatch.setattr(enginerule, "why_not", lambda facts: why_not)
        monkeypatch.delenv("EDGEAGENT_ENGINE", raising=False)
        monkeypatch.delenv(AVOIDED_VARIABLE, raising=False)
        self.tries = 0

    def begin(self, engine: str = "auto", by_hub: tuple[str, ...] = ()) -> Any:
        settings = load({"engine": engine, "socket": f"{self.folder}/run/agent.sock"}, {}, os.devnull)
        settings.by_hub = by_hub
        limits = SimpleNamespace(peers=1, flows=1, connections=1, pump_ring_bytes=1, new_flows_per_s=1)
        context: Any = SimpleNamespace(settings=settings, limits=limits, selector=None)
        nobody: Any = None
        return choose(context, nobody, SimpleNamespace(name="edge0", index=9), nobody, nobody_asks)  # type: ignore[arg-type]

    def _make(self, *_: Any) -> tuple[Any, Engine]:
        self.tries += 1
        if isinstance(self.kernel, Exception):
            raise self.kernel
        return SimpleNamespace(set_mark=lambda mark: None), self.kernel

    def _start(self, *_: Any, asked: str, **limits: Any) -> Engine:
        self.asked.append(asked)
        return self.plain


def test_where_all_holds_it_is_the_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begun = Start(monkeypatch, tmp_path)
    made = begun.begin()
    assert made.engine is begun.kernel and made.name == "kernel"
    assert made.watch is not None and made.watch.interface == "edge0-wg" and made.watch.given_up == ""


def test_where_a_condition_does_not_hold_it_is_not_even_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begun = Start(monkeypatch, tmp_path, "eth0 is metered")
    made = begun.begin()
    assert made.engine is begun.plain and begun.asked == ["auto"] and begun.tries == 0
    assert made.name in ("fast", "pure") and made.why.endswith("; not kernel: eth0 is metered")


@pytest.mark.parametrize("error", [errno.EPERM, errno.EAFNOSUPPORT, errno.ENODEV])
@pytest.mark.parametrize("by_hub", [False, True])
def test_one_that_cannot_start_gives_way(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, error: int, by_hub: bool
) -> None:
    """Whether it cannot be made, or not be bound; nothing of it is left."""
    for failing in (EngineUnavailable(f"engine kernel: {os.strerror(error)}"), Engine(error)):
        begun = Start(monkeypatch, tmp_path)
        begun.kernel = failing
        caplog.clear()
        made = begun.begin("kernel", ("engine",)) if by_hub else begun.begin()
        assert made.engine is begun.plain and made.port == 51820 and made.watch is None
        assert isinstance(failing, Exception) or failing.closed
        (said,) = caplog.messages
        assert os.strerror(error) in said and "another engine is taken" in said
        assert os.strerror(error) in made.why
        assert not (tmp_path / "run" / STARTS_FILE).exists()  # the agent did not end with it


def test_who_names_it_gets_it_or_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begun = Start(monkeypatch, tmp_path, "eth0 is metered")
    made = begun.begin("kernel")
    assert made.engine is begun.kernel and made.why == "the setting `engine` says so"
    assert made.watch is None  # nothing takes its place
    begun.kernel = EngineUnavailable("engine kernel: no")
    with pytest.raises(EngineUnavailable, match="engine kernel: no"):
        begun.begin("kernel")
    begun.kernel = broken = Engine(errno.EPERM)
    with pytest.raises(TunnelError, match="not permitted"):
        begun.begin("kernel")
    assert broken.closed


def test_what_the_hub_names_is_a_wish(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begun = Start(monkeypatch, tmp_path)
    begun.begin("fast", ("engine",))
    begun.begin("pure", ("engine",))
    begun.begin("fast")
    assert begun.asked == ["auto", "pure", "fast"] and begun.tries == 0


def test_the_start_after_it_was_given_up_takes_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And only that one."""
    begun = Start(monkeypatch, tmp_path)
    monkeypatch.setenv(AVOIDED_VARIABLE, "it routes for others: 1 prefix")
    made = begun.begin()
    assert made.engine is begun.plain and made.why.endswith("not kernel: it routes for others: 1 prefix")
    assert begun.begin().engine is begun.kernel


def test_a_bug_in_it_is_no_reason_to_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun = Start(monkeypatch, tmp_path)
    begun.kernel = KeyError("peer")
    assert begun.begin().engine is begun.plain and "'peer': another engine is taken" in caplog.text


def test_an_agent_that_ends_with_it_again_and_again_takes_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun = Start(monkeypatch, tmp_path)
    for _ in range(UNSETTLED_STARTS):
        assert begun.begin().engine is begun.kernel  # and the agent dies
    made = begun.begin()
    assert made.engine is begun.plain and made.why.endswith("ended 3 times soon after its start with it")
    assert begun.begin("kernel").engine is begun.kernel  # whoever names it knows
    assert begun.begin().engine is begun.plain


@pytest.mark.parametrize("settled", ["a minute", "in order"])
def test_a_good_start_ends_the_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settled: str) -> None:
    begun = Start(monkeypatch, tmp_path)
    begun.kernel.drops = {KernelDrop.REFUSED: 0}  # type: ignore[union-attr]
    for _ in range(2 * UNSETTLED_STARTS):
        made = begun.begin()
        assert made.engine is begun.kernel
        made.watch.on_timeout(10.0)
        if settled == "in order":
            made.watch.settle()
        else:
            made.watch.on_timeout(10.0 + SETTLED_S)


def test_the_agent_begins_anew_and_tells_the_next_start_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(AVOIDED_VARIABLE, raising=False)
    given = {"state-dir": str(tmp_path / "state"), "socket": str(tmp_path / "run/agent.sock")}
    member: Any = SimpleNamespace(restart_wanted=False, engine_given_up="", close=lambda: None, turns=0)
    member.poll_timeout = lambda: 0.0
    member.settle = lambda now: None
    leaves: list[bool] = []
    member.farewell = lambda now, *, returns: leaves.append(returns)

    def on_timeout(now: float) -> None:
        member.turns += 1
        member.engine_given_up = "eth0 is metered" if member.turns > 3 else ""

    member.on_timeout = on_timeout

    def start(self: Agent, *_: Any) -> None:
        self.membership = member

    monkeypatch.setattr(Agent, "start", start)
    assert daemon.run(load(given, {}), None, None) == daemon.RESTART
    assert leaves == [True]
    assert member.turns == 4 and os.environ[AVOIDED_VARIABLE] == "eth0 is metered"
    assert "engine kernel: eth0 is metered. Beginning anew with another one" in capsys.readouterr().err
    assert choice.take_note() == "eth0 is metered"


def test_an_interface_that_is_gone_ends_no_agent_that_has_another_engine() -> None:
    made = object.__new__(Tunnel)

    def gone(now: float) -> None:
        raise TunGone(name)

    made.engine = SimpleNamespace(flush=gone, sync=gone)  # type: ignore[assignment]
    name = "edge0-wg"
    made._kernel = None
    with pytest.raises(TunGone):
        made.flush(1.0)
    made._kernel = KernelWatch(Engine(), name, "/nonesuch", auto=True)  # type: ignore[arg-type]
    made.flush(1.0)
    made.sync(1.0)
    assert made.given_up == "somebody removed edge0-wg"
    name = "edge0"
    with pytest.raises(TunGone):
        made.flush(1.0)


@pytest.mark.parametrize("trial", ["settings", "update"])
def test_it_waits_for_the_end_of_a_trial(trial: str) -> None:
    """Each start of one counts."""
    member = object.__new__(Membership)
    member.tunnel = SimpleNamespace(given_up="eth0 is metered")  # type: ignore[assignment]
    ends: list[float | None] = [60.0 if trial == "settings" else None]
    member._settings = SimpleNamespace(poll_timeout=lambda: ends[0])  # type: ignore[assignment]
    member._updates = updates = SimpleNamespace(on_trial=trial == "update")  # type: ignore[assignment]
    assert member.engine_given_up == ""
    ends[0], updates.on_trial = None, False
    assert member.engine_given_up == "eth0 is metered"
