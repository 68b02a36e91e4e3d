"""Commands of the hub to a device: what each verb takes, and a book that lets each be done once.

| state    | what it means                                    | it ends                                   |
|----------|--------------------------------------------------|-------------------------------------------|
| accepted | kept, and waits for its turn                     | when its turn comes, or the agent ends    |
| running  | under way                                        | done, failed                              |
| done     | over                                             |                                           |
| failed   | over, and not as it was meant: `code` says why   |                                           |
| refused  | not begun: `code` says why                       |                                           |
| expired  | not begun: it came after its end                 |                                           |

An id is forgotten only after its command's end has passed: whoever says it again then is told that it is expired.
"""

from __future__ import annotations

import re
from typing import Any

from edgeagent.proto.codec import decode, encode
from edgeagent.proto.control import (
    ACTOR_BYTES_MAX,
    ANSWER_DATA_BYTES_MAX,
    ANSWER_TEXT_BYTES_MAX,
    COMMAND,
    VERB,
)
from edgeagent.proto.refusals import ControlDrop, ControlError
from edgeagent.proto.schema import Fields, List, Row, Schema, Text, Uint, Word

OPEN_MAX = 16  # commands that wait or run; the hub keeps the same number
BOOK_MAX = 64  # commands that are remembered
IDS_MAX = 512  # beyond those: of which no more is remembered than that they were begun, and when their end is
BOOK_BYTES_MAX = 32_768  # as it is saved
LIFE_MAX_S = 8 * 86_400  # between now and a command's end: the hub gives seven days at most
OUTPUT_BYTES_MAX = 262_144  # of one command
LOG_LINES_MAX = 2_000
NETCHECK_S_MAX = 60
RUN_S_MAX = 600
RUN_ARGS_MAX, RUN_ARG_BYTES_MAX = 8, 128
WATCH_S_MAX, WATCH_EVERY_S_MAX = 120, 60

_SCRIPT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


def is_script_name(text: object) -> bool:
    """The name of a file in one directory: no path, nothing hidden, nothing that looks like an option."""
    return isinstance(text, str) and _SCRIPT.fullmatch(text) is not None


# verb → what its `a` holds
VERBS: dict[str, Schema] = {
    "reboot-agent": Fields({}),
    "collect-logs": Fields({"n": Uint(1, LOG_LINES_MAX)}, {"lv": Word("debug", "info", "warning", "error")}),
    "netcheck": Fields({"t": Uint(1, NETCHECK_S_MAX)}),
    "rekey": Fields({}),
    "run": Fields(
        {
            "s": Text(64, "name of a script (letters, digits, _ . -)", is_script_name),
            "a": List(Text(RUN_ARG_BYTES_MAX), RUN_ARGS_MAX),
            "t": Uint(1, RUN_S_MAX),
        }
    ),
    "watch": Fields({"s": Uint(1, WATCH_S_MAX), "ev": Uint(1, WATCH_EVERY_S_MAX)}),
}
UNWATCH = "unwatch"  # takes a watch back that has the same id
# Not to be done twice, so kept on flash before they are begun. The others change nothing.
_DURABLE = ("reboot-agent", "rekey", "run")
# A hub in wrong hands could keep a fleet busy with these and nothing else.
_RESTED, REST_S = ("reboot-agent", "rekey"), 60

ACCEPTED, RUNNING, DONE, FAILED, REFUSED, EXPIRED = "accepted", "running", "done", "failed", "refused", "expired"
OPEN = (ACCEPTED, RUNNING)

_SAVED = Fields(
    {
        "v": Uint(1, 1),
        "c": List(Row(COMMAND, VERB, Text(ACTOR_BYTES_MAX), Uint(), Uint()), BOOK_MAX),
        "o": List(Row(COMMAND, Uint()), IDS_MAX),
    }
)


class Entry:
    """One command: `by` says who gave it, `expires_s` and `at_s` (when its state changed last) are wall times."""

    __slots__ = ("args", "at_s", "by", "code", "expires_s", "id", "state", "text", "verb")

    def __init__(self, number: bytes, verb: str, by: str, expires_s: int, at_s: int, args: dict[str, Any]) -> None:
        self.id = number
        self.verb = verb
        self.by = by
        self.expires_s = expires_s
        self.at_s = at_s
        self.args = args
        self.state = ACCEPTED
        self.code = ""
        self.text = ""

    @property
    def is_open(self) -> bool:
        return self.state in OPEN

    @property
    def is_durable(self) -> bool:
        return self.verb in _DURABLE and self.state not in (REFUSED, EXPIRED)

    def settle(self, wall_s: float, state: str, code: str = "", text: str = "") -> None:
        """It is in another state now. `text` is cut to what an answer may hold."""
        self.state, self.code, self.text, self.at_s = state, code, clip(text), int(wall_s)


class Book:
    """The commands of late. `take` judges one that came; what it accepts is kept (`export`) before it is begun, where
    it is durable. `allowed`: the verbs that this device's owner allows, None for all."""

    __slots__ = ("_entries", "_older", "allowed")

    def __init__(self, allowed: frozenset[str] | None) -> None:
        self.allowed = allowed
        self._entries: dict[bytes, Entry] = {}  # the oldest first
        self._older: dict[bytes, int] = {}  # id: its end

    def __len__(self) -> int:
        return len(self._entries)

    def entries(self) -> list[Entry]:
        return list(self._entries.values())

    def get(self, number: bytes) -> Entry | None:
        return self._entries.get(number)

    def take(self, wall_s: float, body: dict[str, Any]) -> tuple[Entry, ControlDrop | None]:
        """(the command, why it is not to be begun), `body` being that of a `cmd`. `wall_s` is no older than the hub's
        newest word."""
        known = self._entries.get(body["id"])
        if known is not None:
            return known, ControlDrop.COMMAND_AGAIN
        entry = Entry(body["id"], body["v"], body["by"], body["x"], int(wall_s), {})
        if self._older.get(entry.id, 0) > wall_s:
            entry.settle(wall_s, FAILED, "again", "it was begun before, and how it ended is forgotten")
            return entry, ControlDrop.COMMAND_AGAIN
        if entry.expires_s <= wall_s:
            entry.settle(wall_s, EXPIRED, "expired")
        else:
            self._judge(wall_s, entry, body["a"])
        if not self._make_room(wall_s):  # nothing but commands that must not be forgotten
            entry.settle(wall_s, REFUSED, "busy", "so many commands are remembered that may not be forgotten yet")
        else:
            self._entries[entry.id] = entry
        if entry.state == EXPIRED:
            return entry, ControlDrop.COMMAND_EXPIRED
        return entry, ControlDrop.COMMAND_REFUSED if entry.state == REFUSED else None

    def export(self) -> bytes:
        """The durable ones."""
        rows = [[e.id, e.verb, e.by, e.expires_s, e.at_s] for e in self._entries.values() if e.is_durable]
        return encode({"v": 1, "c": rows, "o": [[number, end_s] for number, end_s in self._older.items()]})

    def load(self, data: bytes) -> None:
        """What an earlier life of the agent kept: it was ended by the agent's own end. Raises ControlError."""
        saved = _SAVED.check(decode(data, max_bytes=BOOK_BYTES_MAX), "commands")
        self._older = dict(saved["o"])
        for number, verb, by, expires_s, at_s in saved["c"]:
            entry = Entry(number, verb, by, expires_s, at_s, {})
            if verb == "reboot-agent":
                entry.state = DONE
            else:
                entry.state, entry.code = FAILED, "interrupted"
                entry.text = "the agent was started again before it had said how this ended"
            self._entries[number] = entry

    def _judge(self, wall_s: float, entry: Entry, args: dict[str, Any]) -> None:
        schema = VERBS.get(entry.verb)
        if schema is None:
            entry.settle(wall_s, REFUSED, "unknown-verb", f"this agent knows {', '.join(VERBS)}")
        elif self.allowed is not None and entry.verb not in self.allowed:
            entry.settle(wall_s, REFUSED, "not-allowed", "the device's own settings forbid it (allow-commands)")
        elif entry.expires_s > wall_s + LIFE_MAX_S:
            entry.settle(wall_s, REFUSED, "too-far", f"it ends later than {LIFE_MAX_S // 86_400} days from now")
        elif entry.verb in _RESTED and self._is_too_soon(wall_s, entry.verb):
            entry.settle(wall_s, REFUSED, "too-soon", f"the one before was less than {REST_S} s ago")
        elif sum(known.is_open for known in self._entries.values()) >= OPEN_MAX:
            entry.settle(wall_s, REFUSED, "busy", f"{OPEN_MAX} commands wait or run")
        else:
            try:
                entry.args = schema.check(args, entry.verb)
            except ControlError as error:
                entry.settle(wall_s, REFUSED, "bad-arguments", str(error))

    def _is_too_soon(self, wall_s: float, verb: str) -> bool:
        same = (entry for entry in self._entries.values() if entry.verb == verb and entry.is_durable)
        return any(abs(wall_s - entry.at_s) < REST_S for entry in same)

    def _make_room(self, wall_s: float) -> bool:
        if len(self._entries) < BOOK_MAX:
            return True
        idle = [entry for entry in self._entries.values() if not entry.is_open]
        for entry in [e for e in idle if e.expires_s <= wall_s or not e.is_durable] or idle:
            if entry.is_durable and entry.expires_s > wall_s:
                self._older = {number: end_s for number, end_s in self._older.items() if end_s > wall_s}
                if len(self._older) >= IDS_MAX:
                    return False
                self._older[entry.id] = entry.expires_s
            del self._entries[entry.id]
            return True
        return False


def answer(entry: Entry, **more: Any) -> dict[str, Any]:
    """The body of an `answer` about a command as it is now."""
    body: dict[str, Any] = {"id": entry.id, "st": entry.state, "at": max(0, entry.at_s), **more}
    if entry.code:
        body["c"] = entry.code
    if entry.text:
        body["tx"] = entry.text
    return body


def parts(data: bytes | bytearray) -> list[bytes]:
    """Output as messages carry it; what is beyond OUTPUT_BYTES_MAX is cut off. Fewer than ANSWER_PARTS_MAX."""
    view, size = memoryview(data)[:OUTPUT_BYTES_MAX], ANSWER_DATA_BYTES_MAX
    return [bytes(view[at : at + size]) for at in range(0, len(view), size)]


def clip(text: str) -> str:
    """Printable, and as long as an answer's text may be."""
    text = "".join(c if c.isprintable() else " " for c in text)
    while len(text.encode()) > ANSWER_TEXT_BYTES_MAX:
        text = text[: ANSWER_TEXT_BYTES_MAX if len(text) > ANSWER_TEXT_BYTES_MAX else len(text) - 1]
    return text
