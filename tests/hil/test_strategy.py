"""Strategies: tables that are walked and printed; what fails leaves the state unknown, and the next begins anew."""

from __future__ import annotations

import pytest

from hil.errors import GuestStuck, HilError
from hil.rigs.schema import KINDS
from hil.rigs.strategy import AGENT, LOADER, OFF, SHELL, UNKNOWN, Row, Steps, Strategy, rows, text

LOADER_VALUES = {name: key.default for name, key in KINDS["UBootDriver"].keys.items()}
SHELL_VALUES = {"prompt": "# ", "login_prompt": "login: ", "username": "root", "login_timeout": 60}


class Done:
    """What was done, in its order; `fails` names a step that does."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.fails = ""
        self.said: list[str] = []

    def step(self, name: str) -> None:
        self.done.append(name)
        if name == self.fails:
            raise GuestStuck(f"no {name}")

    def steps(self) -> Steps:
        return Steps(
            lambda _: self.step("on"),
            lambda _: self.step("stop"),
            lambda _: self.step("boot"),
            lambda _: self.step("shell"),
            lambda _: self.step("agent"),
        )

    def strategy(self, table: list[Row]) -> Strategy:
        return Strategy("pump", table, lambda: self.step("off"), self.said.append)


@pytest.fixture
def done() -> Done:
    return Done()


def board(done: Done) -> Strategy:
    return done.strategy(rows(done.steps(), loader=LOADER_VALUES, shell=SHELL_VALUES, agent_s=180.0))


def test_a_board_comes_from_off_to_its_agent_by_the_fewest_rows(done: Done) -> None:
    strategy = board(done)
    assert strategy.state == UNKNOWN
    strategy.to(AGENT)
    assert done.done == ["off", "on", "shell", "agent"] and strategy.state == AGENT
    strategy.to(AGENT)
    assert len(done.done) == 4  # it is there already
    assert done.said[0] == "pump: unknown → off: power off" and "shell → agent" in done.said[-1]


def test_a_state_on_the_way_may_be_asked_for_and_one_behind_is_come_to_by_the_power_cut(done: Done) -> None:
    strategy = board(done)
    strategy.to(SHELL, through=[LOADER])
    assert done.done == ["off", "on", "stop", "boot", "shell"]
    done.done.clear()
    strategy.to(LOADER)
    assert done.done == ["off", "on", "stop"]
    strategy.cut()
    assert strategy.state == OFF and done.done[-1] == "off"


def test_what_fails_leaves_the_state_unknown_and_the_next_walk_begins_with_the_power(done: Done) -> None:
    strategy = board(done)
    done.fails = "shell"
    with pytest.raises(GuestStuck, match="no shell"):
        strategy.to(SHELL)
    assert strategy.state == UNKNOWN
    done.fails = ""
    done.done.clear()
    strategy.to(SHELL)
    assert done.done == ["off", "on", "shell"]


def test_what_no_row_leads_to_is_said(done: Done) -> None:
    guest = done.strategy(rows(done.steps(), loader=None, shell=None, agent_s=180.0, guest=True))
    with pytest.raises(HilError, match="no row of its table leads to 'bootloader': it wants a UBootDriver"):
        guest.to(LOADER)
    with pytest.raises(HilError, match="no state 'running'; known are off, bootloader, shell, agent"):
        guest.to("running")
    bare = done.strategy(rows(done.steps(), loader=None, shell=None, agent_s=180.0))
    with pytest.raises(HilError, match="a ShellDriver for shell and agent"):
        bare.to(AGENT)


def test_tables_say_what_is_done_and_expected_and_within_which_time(done: Done) -> None:
    told = text(board(done).table)
    assert [row[:2] for row in told] == [
        (OFF, LOADER),
        (LOADER, SHELL),
        (OFF, SHELL),
        (SHELL, AGENT),
        ("any", OFF),
    ]
    assert told[0][2:] == (r"power on; type '\n' at 'stop autoboot'", r"'U-Boot 20\\d+', then '=> '", "30 s")
    assert told[1][4] == "90 s" and told[2][4] == "120 s"  # kernel and login; and the loader's count-down
    assert all(row[3] for row in told)
