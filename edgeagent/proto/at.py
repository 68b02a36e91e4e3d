"""AT commands without a port: what a modem writes cut into lines, and one conversation of commands with their answers.

A modem's port carries more than answers (3GPP TS 27.007, V.250): an echo of each command, result codes that nobody
asked for (URCs) between any two lines, lines cut anywhere, and on a bad day bytes that mean nothing. So a line counts
for a command only if it begins as that command's answers do, each command has its time, and a conversation has an end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

LINE_BYTES_MAX = 512  # the longest answer that is read, +QENG of three cells, has 300
UNBROKEN_BYTES_MAX = 4_096  # without an end of line: whoever writes that is no modem
TALK_BYTES_MAX = 32_768  # of one conversation, whose answers have 1 KiB
ANSWER_LINES_MAX = 16  # of one command
TIMEOUT_S = 5.0
SILENT_COMMANDS_MAX = 2  # that stay without an end, before nothing more is asked

OK = "OK"
TIMED_OUT = "time-out"
_FAILURES = ("ERROR", "+CME ERROR", "+CMS ERROR", "COMMAND NOT SUPPORT", "TOO MANY PARAMETERS")
# Results without a prefix that modems send by themselves
_NEWS = (
    "RING", "NO CARRIER", "BUSY", "NO ANSWER", "CONNECT", "RDY", "POWERED DOWN", "NORMAL POWER DOWN", "SMS READY",
    "SMS DONE", "CALL READY", "PB DONE", "APP RDY",
)  # fmt: skip


class LineAssembler:
    """Bytes to lines, however they were cut: at CR, LF or both, without what is no ASCII text, empty ones left out.

    What is longer than LINE_BYTES_MAX is dropped and counted. `unbroken` is how many bytes came since the last end of
    a line.
    """

    __slots__ = ("_line", "_skipping", "overlong", "unbroken")

    def __init__(self) -> None:
        self._line = bytearray()
        self._skipping = False
        self.overlong = 0
        self.unbroken = 0

    def feed(self, data: bytes) -> list[str]:
        lines = []
        *ended, rest = data.replace(b"\r", b"\n").split(b"\n")
        for part in ended:
            self._add(part)
            line = "".join(chr(byte) for byte in self._line if 32 <= byte < 127).strip()
            if line and not self._skipping:
                lines.append(line)
            self._line.clear()
            self._skipping = False
            self.unbroken = 0
        self._add(rest)
        return lines

    def _add(self, part: bytes) -> None:
        self.unbroken += len(part)
        if self._skipping:
            return
        if len(self._line) + len(part) > LINE_BYTES_MAX:
            self.overlong += 1
            self._skipping = True
            self._line.clear()
        else:
            self._line += part


class Command:
    """`text` is sent with a CR; lines of the answer begin with one of `prefixes`. `plain`: also what begins with none
    ("Quectel" for AT+CGMI)."""

    __slots__ = ("plain", "prefixes", "text", "timeout_s")

    def __init__(self, text: str, *prefixes: str, plain: bool = False, timeout_s: float = TIMEOUT_S) -> None:
        self.text = text
        self.prefixes = prefixes
        self.plain = plain
        self.timeout_s = timeout_s

    def __repr__(self) -> str:
        return f"Command({self.text})"


class Talk:
    """One conversation. Drive it: `handle_data` with what came, `handle_timeout` at `poll_timeout()`; after each input
    write what `drain()` returns; until `done`.

    Then `answers` has the lines of each command that ended with OK, `failures` why others did not ("ERROR", "+CME
    ERROR: 10", "time-out"). `fault` is why it ended early: the port is no modem's, or the modem hangs; else "".
    """

    __slots__ = (
        "_at",
        "_bytes",
        "_commands",
        "_echoed",
        "_lines",
        "_silent",
        "_until",
        "_writes",
        "answers",
        "assembler",
        "done",
        "failures",
        "fault",
        "news",
        "noise",
    )  # fmt: skip

    def __init__(self, now: float, commands: Sequence[Command]) -> None:
        self._commands = list(commands)
        self._at = -1
        self._lines: list[str] = []
        self._echoed = False
        self._bytes = 0
        self._silent = 0
        self._until = now
        self._writes: list[bytes] = []
        self.assembler = LineAssembler()
        self.answers: dict[str, list[str]] = {}
        self.failures: dict[str, str] = {}
        self.noise = 0  # lines that are nothing that is known
        self.news = 0  # URCs
        self.fault = ""
        self.done = False
        self._next(now)

    def handle_data(self, now: float, data: bytes) -> None:
        self._bytes += len(data)
        for line in self.assembler.feed(data):
            self._take(now, line)
        if self.done:
            return
        if self.assembler.unbroken > UNBROKEN_BYTES_MAX:
            self._end(f"{self.assembler.unbroken} bytes without an end of line")
        elif self._bytes > TALK_BYTES_MAX:
            self._end(f"{self._bytes} bytes, which are no answers")

    def handle_timeout(self, now: float) -> None:
        if self.done or now < self._until:
            return
        self.failures[self._command.text] = TIMED_OUT
        self._silent += 1
        # A modem that does not even answer AT will not answer the rest, and a late OK would end the wrong command.
        if self._silent >= SILENT_COMMANDS_MAX or self._at == 0:
            self._end(f"no answer to {self._command.text}")
        else:
            self._next(now)

    def poll_timeout(self) -> float | None:
        return None if self.done else self._until

    def drain(self) -> bytes:
        writes, self._writes = self._writes, []
        return b"".join(writes)

    @property
    def _command(self) -> Command:
        return self._commands[self._at]

    def _next(self, now: float) -> None:
        self._at += 1
        self._lines = []
        self._echoed = False
        if self._at >= len(self._commands):
            self.done = True
            return
        self._until = now + self._command.timeout_s
        self._writes.append(self._command.text.encode("ascii") + b"\r")

    def _end(self, fault: str) -> None:
        self.fault = fault
        self.done = True

    def _take(self, now: float, line: str) -> None:
        if self.done:  # what comes after the last answer
            return
        command = self._command
        if not self._echoed and line.endswith(command.text):  # what a modem had in its buffer may stand before it
            self._echoed = True
        elif line == OK:
            self.answers[command.text] = self._lines
            self._next(now)
        elif line.startswith(_FAILURES):
            self.failures[command.text] = line
            self._next(now)
        elif line.startswith(command.prefixes) or (command.plain and line[0] not in "+^*%" and not _is_news(line)):
            if len(self._lines) < ANSWER_LINES_MAX:
                self._lines.append(line)
        elif line[0] in "+^*%" or _is_news(line):
            self.news += 1
        else:
            self.noise += 1


def _is_news(line: str) -> bool:
    return line.upper().startswith(_NEWS)


def fields(line: str) -> list[str]:
    """What stands after the first ":", cut at commas outside quotes, without the quotes. Never raises."""
    found: list[str] = []
    text: list[str] = []
    quoted = False
    for char in line.partition(":")[2]:
        if char == '"':
            quoted = not quoted
        elif char == "," and not quoted:
            found.append("".join(text).strip())
            text = []
        else:
            text.append(char)
    found.append("".join(text).strip())
    return found
