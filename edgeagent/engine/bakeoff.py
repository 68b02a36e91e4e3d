"""Which AEAD seals and opens transport messages on this device: all are measured once, and the result is kept until
the kernel, the processor or a library is another.

Input: the path of the C library, what was stored. Output: a Result, and what to store. Nothing here loads a library.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from time import monotonic

from edgeagent import zipped
from edgeagent.proto.codec import decode, encode
from edgeagent.proto.errors import EdgeError, RemoteProtocolError
from edgeagent.proto.refusals import ControlError

TYPE_CHECKING = False  # what the typing module would say, and 5 ms
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

AEAD_VARIABLE = "EDGEAGENT_AEAD"
OWN = ("lanes-512", "lanes-256", "lanes-128", "portable")
SYSTEM = {  # the files of each, the first that is there counts
    "libcrypto": ("libcrypto.so.3", "libcrypto.so.1.1"),
    "libgcrypt": ("libgcrypt.so.20",),
    "libsodium": ("libsodium.so.23", "libsodium.so.26"),
    "nettle": ("libnettle.so.8",),
    "af_alg": (),
}
MEASURED = (*OWN, *SYSTEM)
NAMES = ("lanes", *MEASURED)  # "lanes" is the widest of its kind
SIZES = (64, 1420)  # as bakeoffjob.py has them, which imports nothing
BATCHES = (1, 16, 64)
CELL_MS = 6  # 9 providers, 6 cells each: 0.3 s
QUIET_S_MAX = 4.0  # between two words of the process: a known-answer test of scalar C on the slowest board takes 0.3 s
ALL_S_MAX = 20.0
WORDS_BYTES_MAX = 65_536
FORMAT = 1
# A library must be this much faster than our own code to be worth its memory.
WORTH_PERCENT = 5

# What is enough to notice another processor, of the lines of /proc/cpuinfo, on x86, ARM, MIPS.
_CPU_LINES = (b"model name", b"flags", b"Features", b"CPU part", b"cpu model", b"ASEs implemented")
_CPUINFO_BYTES_MAX = 65_536
_TEXT_CHARS_MAX = 200


class AeadUnavailable(EdgeError):
    """The provider that was asked for by name is not one; the text says which are."""


class Row:
    """One provider as measured: `ps` is picoseconds a message by (bytes, batch), empty when it is not there, for the
    reason `why`."""

    __slots__ = ("name", "ps", "version", "why")

    def __init__(
        self, name: str, version: str = "", why: str = "", ps: dict[tuple[int, int], int] | None = None
    ) -> None:
        self.name = name
        self.version = version
        self.why = why
        self.ps = {} if ps is None else ps


class Result:
    """Names to give to ea_aead_new, for batches of `small` and of `large` messages, a clause that says `why`, and the
    table behind it (empty when nothing was measured)."""

    __slots__ = ("large", "rows", "small", "why")

    def __init__(self, small: str, large: str, why: str, rows: list[Row]) -> None:
        self.small = small
        self.large = large
        self.why = why
        self.rows = rows


def asked(environ: Mapping[str, str] = os.environ) -> str:
    """What EDGEAGENT_AEAD names, or "". Raises AeadUnavailable for a name that is none."""
    name = environ.get(AEAD_VARIABLE, "")
    if name and name not in NAMES:
        raise AeadUnavailable(
            f"AEAD {name!r}: there is none of that name. Use one of {', '.join(NAMES)}, or leave {AEAD_VARIABLE} unset"
        )
    return name


def recall(library: str, stored: bytes) -> tuple[str, str] | None:
    """The names for small and for large messages as they were measured before; None where that does not hold, or
    nothing was measured."""
    rows = _held(stored, fingerprint(library)) or []
    small, large = (fastest(rows, size) for size in SIZES)
    return None if small is None or large is None else (small, large)


def choose(
    library: str, stored: bytes | None, *, anew: bool = False, environ: Mapping[str, str] = os.environ
) -> tuple[Result, bytes | None]:
    """(result, what to store or None): what EDGEAGENT_AEAD names, else what is stored while it holds and not `anew`,
    else what is measured now, for about 0.4 s. Raises AeadUnavailable for a name that is none."""
    name = asked(environ)
    device = fingerprint(library)
    rows = None if anew or stored is None else _held(stored, device)
    body = None
    how = "measured before"
    if rows is None and name and not anew:
        rows = []  # nobody needs the table
    elif rows is None:
        rows = measure(library)
        how = "measured now"
        if any(row.ps for row in rows):
            body = dump(rows, device)
    if name:
        return Result(name, name, f"{AEAD_VARIABLE} says so", rows), body
    small, large = (fastest(rows, size) for size in SIZES)
    if small is None or large is None:
        return Result("lanes", "lanes", "nothing could be measured", rows), body
    return Result(small, large, how, rows), body


def _held(stored: bytes, device: bytes) -> list[Row] | None:
    try:
        return load(stored, device)
    except RemoteProtocolError:  # damage of a file that can be made again at any time
        return None


def fastest(rows: list[Row], size: int) -> str | None:
    """Of messages of `size` in batches; None when there is none."""
    costs = {row.name: sum(row.ps[size, batch] for batch in BATCHES[1:]) for row in rows if row.ps}
    if not costs:
        return None
    best = min(costs, key=costs.__getitem__)
    own = min((name for name in costs if name in OWN), key=costs.__getitem__, default=best)
    return own if costs[own] * 100 <= costs[best] * (100 + WORTH_PERCENT) else best


# Measuring


def measure(library: str, names: tuple[str, ...] = MEASURED, cell_ms: int = CELL_MS) -> list[Row]:
    """All of it, waited for: half a second, or until `ALL_S_MAX`."""
    measuring = Measuring(monotonic(), library, names, cell_ms)
    while measuring.fd >= 0:
        wait_s = measuring.poll_timeout() - monotonic()
        if wait_s > 0 and select.select([measuring.fd], [], [], wait_s)[0]:
            measuring.readable(monotonic())
        else:
            measuring.on_timeout(monotonic())
    return measuring.rows


class Measuring:
    """Each of `names` in a process of its own making; one that a provider kills is followed by another for the rest.

    While `fd` is not negative: `readable` when it is (it may be another one afterwards), `on_timeout` at
    `poll_timeout()`, or `close`. Then `rows` has one for each of `names`.
    """

    def __init__(self, now: float, library: str, names: tuple[str, ...] = MEASURED, cell_ms: int = CELL_MS) -> None:
        self.fd = -1
        self.rows: list[Row] = []
        self._library = library
        self._cell_ms = cell_ms
        self._names = names
        self._found: dict[str, Row] = {}
        self._left = list(names)
        self._deadline = now + ALL_S_MAX
        self._begin(now)

    def poll_timeout(self) -> float:
        return min(self._quiet_until, self._deadline)

    def readable(self, now: float) -> None:
        """Take what the process said, and its end."""
        data = os.read(self.fd, 4096)
        self._said += data
        self._quiet_until = now + QUIET_S_MAX
        if not data or len(self._said) >= WORDS_BYTES_MAX:
            self._end(now, late=False)

    def on_timeout(self, now: float) -> None:
        if now >= self.poll_timeout():
            self._end(now, late=True)

    def close(self) -> None:
        """Give it up."""
        if self.fd >= 0:
            self._reap(late=True)

    def _begin(self, now: float) -> None:
        self._said = b""
        self._quiet_until = now + QUIET_S_MAX
        try:
            self._process, self.fd = _spawn(self._library, self._cell_ms, self._left)
        except OSError as error:
            self._finish(f"no process: {error.strerror}")

    def _reap(self, *, late: bool) -> int:
        os.close(self.fd)
        self.fd = -1
        if late or len(self._said) >= WORDS_BYTES_MAX:
            os.kill(self._process, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self._process, 0)[1])

    def _end(self, now: float, *, late: bool) -> None:
        status = self._reap(late=late)
        end = ""
        if late:
            end = f"no answer for {QUIET_S_MAX:.0f} s" if now < self._deadline else "not done in time"
        elif status < 0:
            end = f"it died of signal {-status}"
        elif status > 0:
            end = f"its process ended with status {status}"
        whole = self._said[: self._said.rfind(b"\n") + 1].decode("utf-8", "replace")
        rows, tried = self._found, ""  # and not done
        words = [line.split("\t") for line in whole.splitlines()]
        for word, *rest in words:
            _note(rows, word, rest)
            tried = rest[0] if word == "try" and rest else "" if word in ("not", "done") else tried
        self._left = [name for name in self._left if name not in rows]
        if end and tried in rows:
            rows[tried] = Row(tried, rows[tried].version, end)
        if self._left and words and now < self._deadline:  # without a word it is not the providers
            self._begin(now)
        else:
            self._finish(end)

    def _finish(self, end: str) -> None:
        self.rows = [self._found.get(name) or Row(name, "", end or "not reached in time") for name in self._names]


def _complete(row: Row) -> bool:
    return len(row.ps) == len(SIZES) * len(BATCHES)


def _note(rows: dict[str, Row], word: str, rest: list[str]) -> None:
    """A line of bakeoffjob.py. One that is cut short, by its death, says nothing."""
    if word == "try" and len(rest) == 1:
        rows[rest[0]] = Row(rest[0])
    elif word == "not" and len(rest) == 2 and rest[0] in rows:
        rows[rest[0]].why = rest[1] or "not there"
    elif word == "have" and len(rest) == 2 and rest[0] in rows:
        rows[rest[0]].version = rest[1]
    elif word == "cell" and len(rest) == 4 and rest[0] in rows and all(each.isdecimal() for each in rest[1:]):
        rows[rest[0]].ps[int(rest[1]), int(rest[2])] = int(rest[3])
    elif word == "done" and len(rest) == 1 and rest[0] in rows and not _complete(rows[rest[0]]):
        rows[rest[0]] = Row(rest[0], rows[rest[0]].version, "it could not be measured")


def _spawn(library: str, cell_ms: int, names: list[str]) -> tuple[int, int]:
    """(process, what it says). No `subprocess`: it would stay in the agent. Raises OSError."""
    script = os.path.join(os.path.dirname(__file__), "bakeoffjob.py")
    command = [sys.executable, "-I", "-S", "-X", "utf8", *zipped.script(script), library, str(cell_ms), *names]
    reading, writing = os.pipe()
    try:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            actions = [
                (os.POSIX_SPAWN_DUP2, null, 0),
                (os.POSIX_SPAWN_DUP2, writing, 1),
                (os.POSIX_SPAWN_DUP2, null, 2),
            ]
            environ = {name: value for name, value in os.environ.items() if name.startswith("LD_")}  # and no token
            return os.posix_spawn(command[0], command, environ, file_actions=actions), reading
        finally:
            os.close(null)
    except OSError:
        os.close(reading)
        raise
    finally:
        os.close(writing)


# What is stored


def fingerprint(library: str) -> bytes:
    """16 bytes that change with the kernel, the processor, our library and those of the system (by file, unopened)."""
    from hashlib import blake2s

    about = os.uname()
    parts = [about.release, about.machine, str(FORMAT), _file(zipped.lasting(library))]
    for files in SYSTEM.values():
        parts += [_file(found) if (found := _find(name)) else "" for name in files]
    return blake2s("\n".join(parts).encode() + b"\n" + _processor(), digest_size=16).digest()


def _processor() -> bytes:
    """Of the first one; where they differ, as on big.LITTLE, the set is what differs from board to board."""
    try:
        with open("/proc/cpuinfo", "rb") as file:
            lines = file.read(_CPUINFO_BYTES_MAX).split(b"\n")
    except OSError:
        return b""
    return b"\n".join(sorted({line for line in lines if line.startswith(_CPU_LINES)}))


def _file(path: str) -> str:
    try:
        about = os.stat(path)
    except OSError:
        return ""
    return f"{os.path.realpath(path)} {about.st_size} {about.st_mtime_ns}"


def _find(name: str) -> str | None:
    """Where the loader probably finds a library; one elsewhere is used too, but its change is not noticed."""
    multiarch = getattr(sys.implementation, "_multiarch", "")
    folders = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    for root in ("/usr/local/lib", "/lib", "/usr/lib"):
        folders += [f"{root}/{multiarch}", root, f"{root}64"]
    for folder in folders:
        if folder and os.path.exists(path := os.path.join(folder, name)):
            return path
    return None


def dump(rows: list[Row], device: bytes) -> bytes:
    """CBOR: {"v": FORMAT, "of": fingerprint, "rows": [[name, version, why, [picoseconds by size, then batch]]]}"""
    cells = [(size, batch) for size in SIZES for batch in BATCHES]
    table = [
        [row.name, row.version[:_TEXT_CHARS_MAX], row.why[:_TEXT_CHARS_MAX], [row.ps[cell] for cell in cells if row.ps]]
        for row in rows
    ]
    return encode({"v": FORMAT, "of": device, "rows": table})


def load(stored: bytes, device: bytes) -> list[Row] | None:
    """The rows, None where they are another device's, or of another format. RemoteProtocolError: they are damaged."""
    try:
        body = decode(stored)
    except ControlError as error:
        raise RemoteProtocolError(f"AEAD measurements: {error}") from error
    if not isinstance(body, dict) or body.get("v") != FORMAT or body.get("of") != device:
        return None
    table = body.get("rows")
    if not isinstance(table, list):
        raise RemoteProtocolError("AEAD measurements: rows: no list")
    return [_row(each) for each in table]


def _row(each: Any) -> Row:
    cells = [(size, batch) for size in SIZES for batch in BATCHES]
    if not isinstance(each, list) or len(each) != 4 or not all(isinstance(text, str) for text in each[:3]):
        raise RemoteProtocolError("AEAD measurements: a row is not name, version, why, numbers")
    numbers = each[3]
    if not isinstance(numbers, list) or len(numbers) not in (0, len(cells)) or not all(type(n) is int for n in numbers):
        raise RemoteProtocolError(f"AEAD measurements: {each[0]}: not {len(cells)} numbers")
    if each[0] not in MEASURED:
        raise RemoteProtocolError(f"AEAD measurements: {each[0]}: no provider of this name")
    return Row(each[0], each[1], each[2], dict(zip(cells, numbers, strict=True)) if numbers else {})
