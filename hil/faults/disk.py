"""What a device would find on its disk after a power cut: its journal replayed as the mount does, by e2fsprogs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hil.errors import CommandFailed, HilError, MissingProgram

STATE = "/var/lib/edgeagent"
FACTORY = "/usr/lib/edgeagent"
HEAD_BYTES = 4096  # the first block, with the superblock
TIMEOUT_S = 120.0
DAMAGED = "damaged"
# Run with the image's own agent, which is what would look at these files: argv has its folder, then states.
_LOOK = """
import hashlib, json, os, sys, tempfile
sys.path.insert(0, sys.argv[1])
from edgeagent import slots
from edgeagent.io.keystore import Keystore, StateDamaged, StateFile
for state in sys.argv[2:]:
    files, clock, committed = {}, [0, 0], ""
    store = Keystore(state)
    for file in StateFile:
        try:
            body = store.load(file)
        except StateDamaged as error:
            files[file.filename] = "damaged"
        else:
            if body is not None:
                files[file.filename] = hashlib.sha256(body).hexdigest()[:16]
                if file is StateFile.CLOCK:
                    clock = [int.from_bytes(body[:8], "big"), int.from_bytes(body[8:], "big")]
    directory = slots.directory_of(state)
    with tempfile.TemporaryDirectory() as run:
        picked = slots.pick(directory, run)
    whole = slots.check_slot(directory, picked.slot) if picked.slot != slots.FACTORY else ""
    version = slots.read_manifest(directory, picked.slot)["version"] if picked.slot != slots.FACTORY else ""
    try:
        choice = slots.read_choice(directory)
        if choice is not None and choice.committed != slots.FACTORY:
            committed = slots.read_manifest(directory, choice.committed)["version"]
    except (slots.SlotError, OSError):
        pass  # `pick` has said why
    found = {"files": files, "slot": picked.slot, "why": picked.why, "fault": whole, "version": version}
    print(json.dumps({**found, "clock": clock, "committed": committed}))
"""


class Found(NamedTuple):
    """`files`: digest, or DAMAGED, by name of each state file; `slot` would be started, of `version` ("": factory's);
    `why` it is not the chosen one; `fault` of the slot that would be started. `clock`: the last TAI64N that may have
    been used, ns, and the least that the time can be, s. `committed` is the version of the slot that is committed ("":
    the factory's is, or it cannot be read)."""

    files: dict[str, str]
    slot: str
    why: str
    fault: str
    version: str
    clock: tuple[int, int] = (0, 0)
    committed: str = ""


class NotUndone(HilError):
    """e2undo could not take back what a replay of the journal has changed."""

    name = "not-undone"


def debugfs(image: Path, *requests: str) -> str:
    """What debugfs said. The image is not changed."""
    return _run("debugfs", "-f", "-", str(image), typed="\n".join(requests) + "\n")


def mounted(image: Path, to: Path, undo: Path) -> Path:
    """The state directory as it is once the journal has been replayed, under `to`. The image is as before, or this
    raises NotUndone."""
    undo.unlink(missing_ok=True)
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    with image.open("rb") as file:
        head = file.read(HEAD_BYTES)
    _run("e2fsck", "-y", "-E", "journal_only", "-z", str(undo), str(image), good=(0, 1))
    debugfs(image, f"rdump {STATE} {to}")
    if undo.exists() and undo.stat().st_size:
        try:
            _run("e2undo", "-f", str(undo), str(image))
        except CommandFailed as error:
            raise NotUndone(str(error)) from None
    with image.open("r+b") as file:  # e2undo leaves the superblock's state as one to be checked
        file.write(head)
    return to / Path(STATE).name


def _run(*words: str, typed: str = "", good: Sequence[int] = (0,)) -> str:
    try:
        done = subprocess.run(words, input=typed, capture_output=True, text=True, timeout=TIMEOUT_S, errors="replace")
    except FileNotFoundError:
        raise MissingProgram(f"{words[0]} is not here: package e2fsprogs") from None
    except subprocess.TimeoutExpired:
        raise CommandFailed(f"{words[0]}: not done within {TIMEOUT_S:g} s") from None
    if done.returncode not in good:
        raise CommandFailed(f"{words[0]} ended with {done.returncode}: {(done.stdout + done.stderr).strip()[-500:]}")
    return done.stdout + done.stderr


def look(factory: Path, states: Sequence[Path]) -> list[Found]:
    """What the image's own agent makes of each state directory. They are changed by it."""
    for state in states:
        state.mkdir(parents=True, exist_ok=True)  # where the device never came that far
    words = [sys.executable, "-I", "-c", _LOOK, str(factory), *map(str, states)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode:
        raise CommandFailed(f"the image's agent ended with {done.returncode}: {done.stderr.strip()[-800:]}")
    rows: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    return [Found(**{**row, "clock": tuple(row["clock"])}) for row in rows]
