"""Settings that the hub rolls out: tried, confirmed by reaching the hub with them, else taken back.

A closed table says which; each value is checked as the command line's would be, and one that is wrong refuses all.
They go over those of the file and the command line, from the next start on, and every start of a trial is counted on
flash before anything is done with them: settings with which the agent cannot start, or the device cannot reach its
hub, go by themselves.
"""

from __future__ import annotations

import logging
import os
import signal
from typing import TYPE_CHECKING, Any

from edgeagent import slots
from edgeagent.config import SETTINGS
from edgeagent.io.keystore import StateDamaged, StateFile
from edgeagent.proto.codec import decode, encode
from edgeagent.proto.refusals import ControlError
from edgeagent.proto.updatestate import UpdateState

if TYPE_CHECKING:
    from edgeagent.config import Settings
    from edgeagent.context import Context
    from edgeagent.io.keystore import Keystore
    from edgeagent.membership import Membership

log = logging.getLogger("edgeagent")
NAMES = ("budget", "engine", "log-level", "memory-ceiling", "metered", "port-mapping", "trial", "uplinks")
STARTS_MAX = 3
ALARM_SLACK_S = 60
REPORT_TEXT_MAX = 200


class Kept:
    """What is on flash: (generation, settings) that are confirmed, those on trial with their seconds and starts, and
    (generation, state, why) of the last that did not come so far."""

    __slots__ = ("confirmed", "ended", "trial")

    def __init__(self) -> None:
        self.confirmed: tuple[int, dict[str, str]] = (0, {})
        self.trial: tuple[int, dict[str, str], int, int] | None = None
        self.ended: tuple[int, int, str] | None = None

    def encode(self) -> bytes:
        trial, ended = self.trial, self.ended
        return encode(
            {
                "c": list(self.confirmed),
                "t": None if trial is None else list(trial),
                "e": None if ended is None else list(ended),
            }
        )

    @classmethod
    def load(cls, keystore: Keystore) -> Kept:
        """As good as none where it is damaged."""
        self = cls()
        try:
            data = keystore.load(StateFile.SETTINGS)
            if data is None:
                return self
            found = decode(data)
            self.confirmed = (int(found["c"][0]), _texts(found["c"][1]))
            if (trial := found["t"]) is not None:
                self.trial = (int(trial[0]), _texts(trial[1]), int(trial[2]), int(trial[3]))
            if (ended := found["e"]) is not None:
                self.ended = (int(ended[0]), int(ended[1]), str(ended[2]))
        except (StateDamaged, ControlError, KeyError, TypeError, ValueError, IndexError) as error:
            log.warning("settings of the hub: %s; going on without them", error)
            return cls()
        return self

    def end_trial(self, state: UpdateState, why: str) -> None:
        if self.trial is not None:
            self.ended = (self.trial[0], int(state), why[:REPORT_TEXT_MAX])
            self.trial = None


def overlay(settings: Settings, keystore: Keystore) -> None:
    """Put the hub's settings over those given, at the agent's start. Counts a start of those on trial. OSError where
    that cannot be kept: then they are left out."""
    alone = slots.TRIAL_VARIABLE not in os.environ  # else the alarm is that of a version on trial, and stays so
    if alone:
        signal.alarm(0)  # what the trial before this start has left
    kept = Kept.load(keystore)
    generation, values = kept.confirmed
    if kept.trial is not None:
        generation, tried, confirm_s, starts = kept.trial
        if starts >= STARTS_MAX:
            kept.end_trial(UpdateState.RETURNED, f"the agent was started {starts} times and did not reach the hub")
            keystore.save(StateFile.SETTINGS, kept.encode())
        else:
            kept.trial = (generation, tried, confirm_s, starts + 1)
            keystore.save(StateFile.SETTINGS, kept.encode())
            values = tried
            if alone:
                signal.alarm(confirm_s + ALARM_SLACK_S)
    for name, text in values.items():
        if name in NAMES:
            setattr(settings, name.replace("-", "_"), SETTINGS[name][2](text))
            settings.by_hub += (name,)


def check(values: dict[str, str]) -> str:
    """Why these settings are refused; "" where they may be tried."""
    for name, text in values.items():
        if name not in NAMES:
            return f"{name[:40]}: not a setting that the hub may change; those are {', '.join(NAMES)}"
        try:
            SETTINGS[name][2](text)
        except ValueError as error:
            return f"{name}: {error} expected"
    return ""


class SettingsTrial:
    """Drive it: `follow` after each map, `settle` after any input, `on_timeout` at `poll_timeout()`."""

    def __init__(self, now: float, context: Context, member: Membership) -> None:
        self._context = context
        self._member = member
        self.kept = Kept.load(context.keystore)
        self.restart_wanted = False
        self._told: dict[str, Any] | None = None
        self._ends = None if self.kept.trial is None else now + self.kept.trial[2]

    def follow(self, now: float, wanted: dict[str, Any] | None) -> None:
        """`se` of the map, as control.py has it."""
        kept = self.kept
        if wanted is None or self._ends is not None:
            return
        generation, values = wanted["g"], wanted["k"]
        if generation == kept.confirmed[0] or (kept.ended is not None and generation == kept.ended[0]):
            return
        kept.trial = (generation, values, wanted["c"], 0)
        if why := check(values):
            kept.end_trial(UpdateState.REFUSED, why)
            log.warning("settings of the hub, %d: %s", generation, why)
        elif values == kept.confirmed[1]:
            kept.confirmed, kept.trial = (generation, values), None
        if not self._save():
            kept.trial = None
            kept.ended = (
                generation,
                int(UpdateState.REFUSED),
                "the disk refuses, and what is not kept could not be undone",
            )
        elif kept.trial is not None:
            log.warning("settings of the hub, %d: tried from now on", generation)
            self.restart_wanted = True

    def settle(self, now: float) -> None:
        node, kept = self._member.node, self.kept
        if self._ends is not None and kept.trial is not None and node.client.connected and node.client.time_is_fresh:
            before = (kept.confirmed, kept.trial, kept.ended)
            kept.confirmed, kept.trial, kept.ended = kept.trial[:2], None, None
            if not self._save():
                kept.confirmed, kept.trial, kept.ended = before
                return
            self._ends = None
            if slots.TRIAL_VARIABLE not in os.environ:
                signal.alarm(0)
            log.warning("settings of the hub, %d: confirmed", kept.confirmed[0])
        report = self.report()
        if report is not None and report != self._told and node.tell(now, "report", {"se": report}):
            self._told = report

    def report(self) -> dict[str, Any] | None:
        kept = self.kept
        if kept.trial is not None:
            return {"g": kept.trial[0], "s": int(UpdateState.TRIAL), "w": ""}
        if kept.ended is not None:
            return {"g": kept.ended[0], "s": kept.ended[1], "w": kept.ended[2]}
        if kept.confirmed[0]:
            return {"g": kept.confirmed[0], "s": int(UpdateState.COMMITTED), "w": ""}
        return None

    def connection_lost(self, *, unsure: bool) -> None:
        if unsure:
            self._told = None

    def poll_timeout(self) -> float | None:
        return None if self.restart_wanted else self._ends

    def on_timeout(self, now: float) -> None:
        if self._ends is None or now < self._ends or self.restart_wanted or self.kept.trial is None:
            return
        self.kept.end_trial(UpdateState.RETURNED, f"the hub was not reached in {self.kept.trial[2]} s")
        log.error("settings of the hub: taken back, because the hub was not reached with them")
        self._save()  # where the disk refuses, starts are counted
        self.restart_wanted = True

    def _save(self) -> bool:
        return self._context.save(StateFile.SETTINGS, self.kept.encode())


def _texts(values: dict[str, str]) -> dict[str, str]:
    return {str(name): str(text) for name, text in values.items()}
