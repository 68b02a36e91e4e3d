"""Which agent runs here: the launcher, and the one small file that says it.

```
<slots>/choice            which slot is committed, which is on trial, how often that was started
<slots>/a, <slots>/b      edgeagent.pyz, libedgefast.so, manifest.json: an agent that was fetched; its byte code
the installed package     the factory slot: never written, and what runs where anything else is in doubt
```

Each start of a slot on trial is counted on flash before it is made; a slot that has not committed itself after
TRIAL_STARTS of them, or that is not whole, is given up. So the old agent comes back by itself, whatever the new one
does: ends, hangs (an alarm that outlives exec ends it), or never reaches the hub (then it says so itself, and ends).

agentd.py of the factory asks `launch` where there is a choice, and goes on as the agent of the slot that it names.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from hashlib import blake2s, sha256
from time import monotonic

from edgeagent import bytecode, zipped
from edgeagent.io import durable

TYPE_CHECKING = False  # what the typing module would say, and 5 ms
if TYPE_CHECKING:
    from typing import Any

FACTORY = "factory"
SLOTS = ("a", "b")
PROGRAM, LIBRARY, MANIFEST, CHOICE = "edgeagent.pyz", "libedgefast.so", "manifest.json", "choice"
TRIAL_STARTS = 3
UNSETTLED_STARTS = 5  # of a committed slot since the device was switched on, each over before it settled
ALARM_SLACK_S = 60  # after the trial's own end: whoever is still there then does not turn any more
CHOICE_BYTES_MAX, MANIFEST_BYTES_MAX = 4_096, 4_096
PROGRAM_BYTES_MAX = 1 << 26
# What an agent out of a slot is told of its start.
SLOT_VARIABLE, FACTORY_VARIABLE, TRIAL_VARIABLE = "EDGEAGENT_SLOT", "EDGEAGENT_FACTORY", "EDGEAGENT_ON_TRIAL"
_BOOT = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from edgeagent.agentd import main; sys.exit(main(sys.argv[1:]))"
)


# What a committed slot is compiled by, once.
COMPILE = (
    "import sys; sys.path.insert(0, sys.argv[1]); from edgeagent.bytecodejob import main; sys.exit(main(sys.argv[1:]))"
)


class SlotError(Exception):
    """A slot, or the choice, is not what was written; the text says what."""


class Choice:
    """`committed` and `trial` name slots; `starts` counts those of the trial, whose rollout, version and seconds it
    has.

    `boot` and `since_s` say when the trial began: the kernel's boot id, and seconds since that boot.
    `returned` is (rollout, version, why) of the last trial that was given up.
    """

    __slots__ = ("boot", "committed", "returned", "rollout", "since_s", "starts", "trial", "trial_s", "version")

    def __init__(self) -> None:
        self.committed = FACTORY
        self.trial = ""
        self.starts = 0
        self.rollout = 0
        self.version = ""
        self.trial_s = 0
        self.boot = ""
        self.since_s = 0
        self.returned: tuple[int, str, str] | None = None

    def begin_trial(self, slot: str, rollout: int, version: str, trial_s: int) -> None:
        self.trial, self.starts, self.boot, self.since_s = slot, 0, "", 0
        self.rollout, self.version, self.trial_s = rollout, version, trial_s

    def start(self, boot: str, now_s: int) -> str:
        """Count a start. Returns why there is to be none: enough were made, or too long ago, as far as can be told."""
        if self.starts >= TRIAL_STARTS:
            return f"it was started {self.starts} times and did not commit itself"
        if self.starts and self.boot == boot and now_s - self.since_s >= self.trial_s:
            return f"it did not commit itself in {self.trial_s} s"
        if self.boot != boot:
            self.boot, self.since_s = boot, now_s
        self.starts += 1
        return ""

    def commit(self) -> None:
        self.committed, self.trial, self.returned = self.trial, "", None

    def give_up(self, why: str) -> None:
        self.returned = (self.rollout, self.version, why)
        self.trial = ""

    def encode(self) -> bytes:
        line = json.dumps({name: getattr(self, name) for name in self.__slots__}, separators=(",", ":")).encode()
        return line + b"\n" + blake2s(line).hexdigest().encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Choice:
        """Raises SlotError."""
        line, _, digest = data.partition(b"\n")
        if digest.strip() != blake2s(line).hexdigest().encode():
            raise SlotError("choice: damaged")
        try:
            fields = json.loads(line)
            self = cls()
            for name in ("boot", "committed", "trial", "version"):
                setattr(self, name, _text(fields[name]))
            for name in ("rollout", "since_s", "starts", "trial_s"):
                setattr(self, name, _number(fields[name]))
            if fields["returned"] is not None:
                rollout, version, why = fields["returned"]
                self.returned = (_number(rollout), _text(version), _text(why))
        except (ValueError, KeyError, TypeError) as error:
            raise SlotError(f"choice: {type(error).__name__}") from None
        if self.committed not in (*SLOTS, FACTORY) or self.trial not in (*SLOTS, "") or self.trial == self.committed:
            raise SlotError("choice: names no slot")
        return self


class Picked:
    """What is to be started: a slot, whether on trial and for how long, and why it is not the one that was chosen."""

    __slots__ = ("slot", "trial_s", "why")

    def __init__(self, slot: str, why: str = "", trial_s: int = 0) -> None:
        self.slot = slot
        self.why = why
        self.trial_s = trial_s


def read_choice(directory: str) -> Choice | None:
    """None: there never was one. SlotError, OSError."""
    try:
        with open(f"{directory}/{CHOICE}", "rb") as file:
            return Choice.decode(file.read(CHOICE_BYTES_MAX))
    except FileNotFoundError:
        return None


def write_choice(directory: str, choice: Choice) -> None:
    """OSError when the disk refuses: then the one before holds."""
    durable.replace(f"{directory}/{CHOICE}", choice.encode())


def read_manifest(directory: str, slot: str) -> dict[str, Any]:
    """`version`, and `files`: their length and SHA-256 in hex. SlotError, OSError."""
    with open(f"{directory}/{slot}/{MANIFEST}", "rb") as file:
        data = file.read(MANIFEST_BYTES_MAX)
    try:
        found = json.loads(data)
        files = {name: (_number(length), _text(digest)) for name, (length, digest) in found["files"].items()}
        version = _text(found["version"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SlotError(f"slot {slot}: its manifest is none") from None
    if PROGRAM not in files or not set(files) <= {PROGRAM, LIBRARY}:
        raise SlotError(f"slot {slot}: its manifest names other files")
    return {"version": version, "files": files}


def check_slot(directory: str, slot: str) -> str:
    """Why the slot cannot be started; "" where it is whole."""
    try:
        manifest = read_manifest(directory, slot)
        for name, (length, digest) in manifest["files"].items():
            with open(f"{directory}/{slot}/{name}", "rb") as file:
                if os.fstat(file.fileno()).st_size != length or length > PROGRAM_BYTES_MAX:
                    return f"slot {slot}: {name} is not as long as its manifest says"
                hashed = sha256()
                while chunk := file.read(65_536):
                    hashed.update(chunk)
            if hashed.hexdigest() != digest:
                return f"slot {slot}: {name} is damaged"
    except SlotError as error:
        return str(error)
    except OSError as error:
        return f"slot {slot}: {error.filename or 'disk'}: {error.strerror}"
    return ""


def pick(directory: str, run_directory: str) -> Picked:
    """The slot to start now. Counts the start before it returns; whatever is in doubt ends at the factory's."""
    try:
        choice = read_choice(directory)
    except SlotError as error:
        return Picked(FACTORY, str(error))
    except OSError as error:
        return Picked(FACTORY, f"{error.filename or directory}: {error.strerror}")
    if choice is None:
        return Picked(FACTORY)
    why = ""
    if choice.trial:
        slot = choice.trial
        why = check_slot(directory, slot) or choice.start(_boot_id(), int(monotonic()))
        if why:
            choice.give_up(why)
        try:
            write_choice(directory, choice)
        except OSError as error:
            why = why or f"{error.filename or directory}: {error.strerror}"  # what is not counted is not started
        else:
            if choice.trial:
                return Picked(slot, trial_s=choice.trial_s)
    if choice.committed == FACTORY:
        return Picked(FACTORY, why)
    fault = check_slot(directory, choice.committed)
    if not fault and not _count_start(run_directory, choice.committed):
        fault = f"slot {choice.committed}: it ended {UNSETTLED_STARTS} times soon after its start"
    return Picked(FACTORY, fault) if fault else Picked(choice.committed, why)


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return file.read(64).decode("ascii", "replace").strip()
    except OSError:
        return ""


def _count_start(run_directory: str, slot: str) -> bool:
    """In a directory that a reboot empties, so this costs no flash. False: there were too many. An agent that has run
    for a minute removes the file."""
    path = f"{run_directory}/starts"
    try:
        os.makedirs(run_directory, exist_ok=True)
        with open(path, "ab+") as file:
            file.seek(0)
            if file.read(64).count(slot.encode()) >= UNSETTLED_STARTS:
                return False
            file.write(slot.encode())
    except OSError:  # it cannot be counted: started it is all the same, since it was committed
        return True
    return True


def factory_words(words: list[str]) -> list[str]:
    """What the interpreter is given to be the factory's launcher, from what it was given to be this agent of a slot."""
    factory = os.environ.get(FACTORY_VARIABLE, "")
    at = words.index(_BOOT)
    program = [factory] if factory.endswith(".py") else [factory, zipped.AGENTD]
    return [*words[: at - 1], *program, *words[at + 2 :]]


def directory_of(state_dir: str) -> str:
    return f"{state_dir}/slots"


def launch(arguments: list[str], state_dir: str, run_directory: str) -> None:
    """Go on as the agent of the slot that is to run, in this process; returns where that is the factory's.

    `arguments` are the agent's, which it gets as they are.
    """
    import signal

    directory = directory_of(state_dir)
    try:
        picked = pick(directory, run_directory)
    except Exception as error:  # noqa: BLE001  a bug here would be the end of the device
        picked = Picked(FACTORY, f"launcher: {type(error).__name__}: {error}")
    if picked.why:
        print(f"edgeagent: {picked.slot}: {picked.why}", file=sys.stderr)
    os.environ[SLOT_VARIABLE] = picked.slot
    os.environ.pop(TRIAL_VARIABLE, None)
    if picked.trial_s:
        os.environ[TRIAL_VARIABLE] = "on"
    if picked.slot == FACTORY:
        signal.alarm(0)  # what an agent on trial has left
        return
    os.environ[FACTORY_VARIABLE] = zipped.archive() or f"{os.path.dirname(os.path.abspath(__file__))}/agentd.py"
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    signal.alarm(picked.trial_s + ALARM_SLACK_S if picked.trial_s else 0)  # alarms outlive exec(3)
    program = bytecode.path_of(f"{directory}/{picked.slot}/{PROGRAM}")
    with suppress(OSError):
        os.execv(sys.executable, [sys.executable, *_flags(), "-c", _BOOT, program, *arguments])
    os.environ[SLOT_VARIABLE] = FACTORY  # the interpreter cannot be started: this one runs


def _flags() -> list[str]:
    """Options of the interpreter that runs this."""
    words = sys.orig_argv[1:]
    flags: list[str] = []
    while words and words[0].startswith("-") and words[0] != "-c":
        flags.append(words.pop(0))
        if flags[-1] in ("-X", "-W") and words:
            flags.append(words.pop(0))
    return flags


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError
    return value
