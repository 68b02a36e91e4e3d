"""How a device comes from off to its agent: tables that can be printed, and the walk along them.

    off → bootloader → shell → agent

A row says what is done, what has to be said in answer, and within which time. Whatever fails leaves the state unknown,
and the next walk begins with the power cut.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from hil.errors import HilError

UNKNOWN, OFF, LOADER, SHELL, AGENT = "unknown", "off", "bootloader", "shell", "agent"
STATES = (OFF, LOADER, SHELL, AGENT)
POWER_TIMEOUT_S = 60.0
GUEST_TIMEOUT_S = 600.0  # what a busy machine takes to boot one


class Row(NamedTuple):
    """`run` does it all, and raises GuestStuck or GuestDied when `expects` does not come within `timeout_s`."""

    source: str
    target: str
    does: str
    expects: str
    timeout_s: float
    run: Callable[[float], None]


class Steps(NamedTuple):
    """What the rows of a table do; each takes the seconds that it may take."""

    power_on: Callable[[float], None]
    stop_loader: Callable[[float], None]
    boot_from_loader: Callable[[float], None]
    wait_for_shell: Callable[[float], None]
    wait_for_agent: Callable[[float], None]


def rows(
    steps: Steps,
    *,
    loader: Mapping[str, Any] | None,
    shell: Mapping[str, Any] | None,
    agent_s: float,
    guest: bool = False,
) -> list[Row]:
    """The table of a device: `loader` and `shell` are the values of UBootDriver and ShellDriver, where it has them."""
    found = []

    def both(first: Callable[[float], None]) -> Callable[[float], None]:
        def run(timeout_s: float) -> None:
            first(POWER_TIMEOUT_S)
            steps.wait_for_shell(timeout_s)

        return run

    if loader is not None:

        def stop(timeout_s: float) -> None:
            steps.power_on(POWER_TIMEOUT_S)
            steps.stop_loader(timeout_s)

        does = f"power on; type {loader['interrupt']!r} at {loader['autoboot']!r}"
        expects = f"{loader['boot_expression']!r}, then {loader['prompt']!r}"
        found.append(Row(OFF, LOADER, does, expects, float(loader["login_timeout"]), stop))
    if guest:
        found.append(Row(OFF, SHELL, "start QEMU", "a root shell", GUEST_TIMEOUT_S, both(steps.power_on)))
    elif shell is not None:
        log_in = f"{shell['login_prompt']!r}, then {shell['prompt']!r}"
        seconds = float(shell["login_timeout"])
        if loader is not None:
            kernel, seconds = f"{loader['bootstring']!r}, ", seconds + loader["boot_timeout"]

            def boot(timeout_s: float) -> None:
                steps.boot_from_loader(float(loader["boot_timeout"]))
                steps.wait_for_shell(timeout_s)

            does = f"type {loader['boot_command']!r}; log in as {shell['username']}"
            found.append(Row(LOADER, SHELL, does, kernel + log_in, seconds, boot))
            does = f"power on; let it count down; log in as {shell['username']}"
            seconds += loader["login_timeout"]
            found.append(Row(OFF, SHELL, does, kernel + log_in, seconds, both(steps.power_on)))
        else:
            does = f"power on; log in as {shell['username']}"
            found.append(Row(OFF, SHELL, does, log_in, seconds, both(steps.power_on)))
    if guest or shell is not None:
        ask = "ask `edgeagent status --json`"
        found.append(Row(SHELL, AGENT, ask, "a member that has its hub", agent_s, steps.wait_for_agent))
    return found


class Strategy:
    """Walks along `rows`. `power_off` is done from whatever state; `say` hears of each step."""

    def __init__(
        self,
        name: str,
        table: Sequence[Row],
        power_off: Callable[[], None],
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.name = name
        self.table = list(table)
        self.state = UNKNOWN
        self._power_off = power_off
        self._say = say

    def to(self, goal: str, through: Sequence[str] = ()) -> None:
        """From the present state to `goal`, by the fewest rows, first to each of `through`. A goal that lies behind is
        come to by the power cut."""
        for each in (*through, goal):
            self._to(each)

    def cut(self) -> None:
        """The power goes, whatever the device does just now."""
        self.state = UNKNOWN
        self._power_off()
        self.state = OFF

    def _to(self, goal: str) -> None:
        if goal not in STATES:
            raise HilError(f"{self.name}: no state {goal!r}; known are {', '.join(STATES)}")
        if self.state == goal:
            return
        way = None if self.state == UNKNOWN else self._way(self.state, goal)
        if way is None:
            self._say(f"{self.name}: {self.state} → {OFF}: power off")
            self.cut()
            way = self._way(OFF, goal)
        if way is None:
            raise HilError(
                f"{self.name}: no row of its table leads to {goal!r}: it wants a UBootDriver for {LOADER}, "
                f"a ShellDriver for {SHELL} and {AGENT}"
            )
        for row in way:
            self._say(f"{self.name}: {row.source} → {row.target}: {row.does}")
            self.state = UNKNOWN  # until it has come about
            row.run(row.timeout_s)
            self.state = row.target

    def _way(self, source: str, goal: str) -> list[Row] | None:
        queue: deque[tuple[str, list[Row]]] = deque([(source, [])])
        seen = {source}
        while queue:
            state, way = queue.popleft()
            if state == goal:
                return way
            for row in self.table:
                if row.source == state and row.target not in seen:
                    seen.add(row.target)
                    queue.append((row.target, [*way, row]))
        return None


def text(table: Sequence[Row]) -> list[tuple[str, str, str, str, str]]:
    """(from, to, does, expects, within) of each row; the power cut, which no table has, is the last."""
    told = [(row.source, row.target, row.does, row.expects, f"{row.timeout_s:g} s") for row in table]
    return [*told, ("any", OFF, "cut the power", "nothing", f"{POWER_TIMEOUT_S:g} s")]
