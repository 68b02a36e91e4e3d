"""What `edgeagent doctor` says of slots and of the watchdog: check, state, what is there, its meaning, what to do."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from edgeagent import slots
from edgeagent.io import osupdate
from edgeagent.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgeagent.config import Settings

    Row = tuple[str, str, str, str, str]

OK, WARNING, FAILED, NOT_CHECKED = "ok", "warning", "failed", "not checked"
DRIVERS = "/sys/class/watchdog"
_SLOTS = "Updates fill one of two slots beside the installed version, which runs where a slot is not whole."
_WATCHDOG = "A board that hangs is started anew by its watchdog, where nobody is to pull its plug."


def slot_rows(settings: Settings) -> Iterator[Row]:
    directory = slots.directory_of(settings.state_dir)
    again = f"Nothing is lost: {VERSION} runs. Another rollout of the version writes the slot anew."
    try:
        choice = slots.read_choice(directory)
    except slots.SlotError as error:
        yield "slots", WARNING, f"{error}; the installed version runs", _SLOTS, again
        return
    except PermissionError:
        yield "slots", NOT_CHECKED, f"{directory}: not permitted", _SLOTS, "Run it as root: sudo edgeagent doctor."
        return
    except OSError as error:
        yield "slots", WARNING, f"{directory}: {error.strerror}", _SLOTS, again
        return
    if choice is None:
        yield "slots", OK, "none filled yet; the installed version runs", _SLOTS, ""
        return
    if choice.committed == slots.FACTORY:
        said = "the installed version is committed"
    elif fault := slots.check_slot(directory, choice.committed):
        yield "slots", WARNING, f"{fault}; the installed version runs", _SLOTS, again
        return
    else:
        said = f"slot {choice.committed} is committed: {slots.read_manifest(directory, choice.committed)['version']}"
    if choice.trial:
        starts = f"started {choice.starts} of {slots.TRIAL_STARTS} times"
        said += f"; slot {choice.trial} is on trial: {choice.version}, {starts}"
    if choice.returned is None:
        yield "slots", OK, said, _SLOTS, ""
        return
    _, version, why = choice.returned
    mend = (
        f"Look into what {version} wrote before it ended (journalctl -u edgeagent; logread), and roll out a mended one."
    )
    yield "slots", WARNING, f"{said}; {version} was given up: {why}", _SLOTS, mend


def slot_version(settings: Settings) -> str | None:
    """Of the version that an update has committed; None where it is the installed one, or nobody can tell."""
    directory = slots.directory_of(settings.state_dir)
    try:
        choice = slots.read_choice(directory)
        if choice is None or choice.committed == slots.FACTORY:
            return None
        return str(slots.read_manifest(directory, choice.committed)["version"])
    except (slots.SlotError, OSError):
        return None


def watchdog_rows(settings: Settings, drivers: str = DRIVERS) -> Iterator[Row]:
    try:
        devices = sorted(os.listdir(drivers))
    except OSError:
        devices = []
    setting = settings.watchdog
    if setting == "auto":
        from edgeagent.board import find

        setting = str((find(settings.state_dir).told.get("watchdog") or {}).get("device", "off"))
    if not devices:
        state = OK if setting == "off" else WARNING
        mend = (
            ""
            if state == OK
            else "Load its driver (ls /lib/modules/*/kernel/drivers/watchdog), or set `watchdog = off`."
        )
        yield "watchdog", state, "this kernel knows none", _WATCHDOG, mend
        return
    about = ", ".join(
        f"{name} ({_word(drivers, name, 'identity')}, {_word(drivers, name, 'state')})" for name in devices
    )
    if any(_word(drivers, name, "state") == "active" for name in devices):
        yield "watchdog", OK, f"{about}: somebody feeds it", _WATCHDOG, ""
    elif setting == "off":
        yield "watchdog", OK, f"{about}: not used; `watchdog = /dev/{devices[0]}` has the agent feed it", _WATCHDOG, ""
    else:
        mend = (
            f"The running agent says why: edgeagent status --log. In use by others? fuser {setting.partition(',')[0]}."
        )
        yield "watchdog", WARNING, f"{about}: named, and nobody feeds it", _WATCHDOG, mend


def image_rows(path: str = osupdate.PATH) -> Iterator[Row]:
    backend = osupdate.find(path)
    if backend is None or not backend.ask:
        return
    meaning = f"{backend.name} updates the whole system here; one that nobody keeps goes at the next boot."
    try:
        on_trial = osupdate.is_on_trial(backend, path)
    except osupdate.OsUpdateError as error:
        yield "system image", NOT_CHECKED, str(error), meaning, "Run it as root, and see what the program itself says."
        return
    if on_trial:
        yield "system image", WARNING, "booted, and on trial", meaning, "Where it is good: edgeagent image keep"
    else:
        yield "system image", OK, f"kept ({backend.name})", meaning, ""


def _word(drivers: str, name: str, file: str) -> str:
    try:
        with open(f"{drivers}/{name}/{file}", "rb") as opened:
            return opened.read(64).decode("utf-8", "replace").strip()
    except OSError:
        return "unknown"
