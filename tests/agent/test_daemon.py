"""How an agent ends, what it does about prices, and what it leaves: its parts are stand-ins."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeagent import daemon
from edgeagent.accounts import Accounts
from edgeagent.config import load
from edgeagent.context import Context
from edgeagent.daemon import Agent
from edgeagent.io.keystore import Keystore, StateError, StateFile
from edgeagent.io.tun import TunGone
from edgeagent.membership import Membership
from edgeagent.proto.budget import BudgetRules
from edgeagent.proto.ledger import Ledger
from edgeagent.proto.policies import Policies


class Link:
    """Takes what is published, and says how it ended."""

    def __init__(self, *args: Any) -> None:
        self.unacknowledged = 0
        self.ends: list[str] = []
        self.on_closing = None

    def sockets(self) -> list[Any]:
        return []

    def poll_timeout(self) -> None:
        return None

    def close(self) -> None:
        self.ends.append("DISCONNECT")

    def drop(self) -> None:
        self.ends.append("dropped")


class Member:
    """A membership whose farewell the broker acknowledges, or not."""

    def __init__(self, link: Link, *, acknowledged: bool = True) -> None:
        self._link = link
        self._acknowledged = acknowledged

    def farewell(self, now: float, *, returns: bool) -> None:
        assert not returns  # it was stopped
        self._link.unacknowledged = int(not self._acknowledged)

    def close(self) -> None:
        pass


@pytest.fixture
def settings(tmp_path: Path) -> Any:
    given = {"state-dir": str(tmp_path / "state"), "socket": str(tmp_path / "run" / "agent.sock")}
    return load({name.replace("-", "_"): value for name, value in given.items()} | given, {})


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (None, "DISCONNECT"),
        (TunGone("edge0"), "dropped"),
        (StateError("full"), "dropped"),
        (OSError(5, "x"), "dropped"),
    ],
    ids=["in order", "interface gone", "disk", "system"],
)
@pytest.mark.parametrize("acknowledged", [True, False])
def test_only_who_took_leave_says_disconnect(
    settings: Any, monkeypatch: pytest.MonkeyPatch, error: Exception | None, said: str, acknowledged: bool
) -> None:
    agents: list[Agent] = []

    def start(self: Agent, *args: Any) -> None:
        agents.append(self)
        self.membership = Member(self.link, acknowledged=acknowledged)  # type: ignore[assignment, arg-type]
        self._stopping = True

    def turn(self: Agent, deadline: float | None) -> None:
        """Nothing comes of it."""

    monkeypatch.setattr(daemon, "MqttLink", Link)
    monkeypatch.setattr(daemon, "FAREWELL_TIMEOUT_S", 0.0)
    monkeypatch.setattr(Agent, "start", start)
    monkeypatch.setattr(Agent, "_turn", turn)
    if error is not None:
        monkeypatch.setattr(Agent, "loop", lambda self: _raise(error))
    assert daemon.run(settings, None, None) == (daemon.FAILED if error else daemon.OK)
    (agent,) = agents
    assert agent.link.ends == [said if acknowledged else "dropped"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("background", [True, False])
def test_an_error_of_the_system_in_the_background_leaves_word(
    settings: Any, monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    def start(self: Agent, *args: Any) -> None:
        self._in_background = background

    monkeypatch.setattr(Agent, "start", start)
    monkeypatch.setattr(Agent, "loop", lambda self: _raise(OSError(errno.ENETDOWN, os.strerror(errno.ENETDOWN))))
    assert daemon.run(settings, None, None) == daemon.FAILED
    crash = Path(settings.state_dir) / "crash"
    assert crash.exists() is background
    assert not background or "Network is down" in crash.read_text()


def test_a_token_that_a_power_cut_left_is_removed_once_there_is_an_admission(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    keystore = Keystore(settings.state_dir)
    keystore.open()
    keystore.save(StateFile.TOKEN, b"secret")
    keystore.close()
    real = Context

    def context(*args: Any, **more: Any) -> Any:
        made = real(*args, **more)
        made.admission = SimpleNamespace()  # type: ignore[assignment]
        return made

    monkeypatch.setattr(daemon, "Context", context)
    monkeypatch.setattr(daemon, "Membership", lambda now, context, link, admission: Member(link))
    monkeypatch.setattr(Agent, "loop", lambda self: None)
    assert daemon.run(settings, None, None) == daemon.OK
    assert not (Path(settings.state_dir) / "token").exists()


@pytest.mark.parametrize("bound", [True, False])
def test_the_keepalive_is_that_of_the_uplink_that_the_connection_is_bound_to(bound: bool) -> None:
    """The routes still prefer the one that answers nobody."""
    accounts: Any = object.__new__(Accounts)
    accounts.names = SimpleNamespace(of_host=lambda host: "eth0", default=lambda: "eth0")
    accounts.policies = Policies(Ledger(), BudgetRules("auto", ""))
    uplinks = SimpleNamespace(active=SimpleNamespace(name="wwan0"), bound=[("eth0", 1), ("wwan0", 2)] if bound else [])
    client = SimpleNamespace(keepalive_factor=None)
    member: Any = object.__new__(Membership)
    member._context = SimpleNamespace(accounts=accounts)
    member.node = SimpleNamespace(hosts=["hub.example:8883"], client=client, reach=SimpleNamespace(uplinks=uplinks))
    member._agree_on_keepalive()
    factors = [accounts.policies.of(name).keepalive_factor for name in ("eth0", "wwan0")]
    assert factors[0] != factors[1] and client.keepalive_factor == factors[bound]


def test_who_connects_anew_for_a_longer_keepalive_says_again_what_the_hub_may_not_have_heard() -> None:
    told: list[str] = []
    nothing = SimpleNamespace(on_timeout=lambda now: None, poll_timeout=lambda: None)
    member: Any = object.__new__(Membership)
    member.routing = member._bindings = member.naming = member.modems = None
    member.relays, member.tunnel, member._cache, member._level_changes = nothing, nothing, nothing, 0
    member._commands = SimpleNamespace(on_timeout=lambda now: None, connection_lost=lambda: told.append("commands"))
    member._updates = SimpleNamespace(
        on_timeout=lambda now: None, connection_changed=lambda now, connected: told.append(f"updates {connected}")
    )
    member._settings = SimpleNamespace(
        on_timeout=lambda now: None, connection_lost=lambda unsure: told.append(f"settings {unsure}")
    )
    member._context = SimpleNamespace(accounts=SimpleNamespace(reconnect_wanted=True, level_changes=0))
    member._link = SimpleNamespace(is_up=True, is_idle=False, unheard=1, close=lambda: told.append("closed"))
    member.node = SimpleNamespace(
        mqtt_keepalive_s=300, poll_timeout=lambda: None, handle_disconnected=lambda now: told.append("node")
    )
    member._agree_on_keepalive = lambda: setattr(member.node, "mqtt_keepalive_s", 1_200)
    member.on_timeout(1.0)
    assert told == ["closed", "node", "commands", "updates False", "settings True"]


def test_what_a_membership_has_put_off_goes_with_it() -> None:
    dropped: list[str] = []
    member: Any = object.__new__(Membership)
    ended = SimpleNamespace(close=lambda: None, streams=None)
    member.lookups, member._bindings, member.naming, member._commands = {}, None, None, None
    member._link, member.relays, member.tunnel = SimpleNamespace(), ended, ended
    member.routing = member.modems = None
    member._context = SimpleNamespace(accounts=SimpleNamespace(undefer=dropped.append, unwatch=lambda streams: None))
    member.close()
    assert dropped == ["settled", "bindings", "bindings-save", "figures"]


def _raise(error: Exception) -> None:
    raise error
