"""Where the C library is, and whether it is one for this machine, without loading it."""

from __future__ import annotations

import os
import struct

from edgeagent import zipped

TYPE_CHECKING = False  # what the typing module would say, and 5 ms
if TYPE_CHECKING:
    from collections.abc import Mapping

LIBRARY_VARIABLE = "EDGEAGENT_FAST_LIBRARY"
_FOLDER = os.path.dirname(os.path.abspath(__file__))
BESIDE = os.path.join(_FOLDER, "libedgefast.so")
NOTE = os.path.join(_FOLDER, "libedgefast.why")  # what the build left instead
NOTE_BYTES_MAX = 8_192

_SHARED_OBJECT = 3  # e_type ET_DYN; position-independent programs are of this type too
_LOAD = 1  # p_type PT_LOAD
_SEGMENTS_MAX = 64
_MACHINES = {3: "i386", 8: "MIPS", 20: "PowerPC", 40: "ARM", 62: "x86-64", 183: "AArch64", 243: "RISC-V"}


def path(environ: Mapping[str, str] = os.environ) -> str | None:
    """The library to load: what EDGEAGENT_FAST_LIBRARY names, there or not, else the one beside this file, else that of
    the zipapp that this is in."""
    if named := environ.get(LIBRARY_VARIABLE):
        return named
    return BESIDE if os.path.exists(BESIDE) else zipped.library()


def why_missing() -> str:
    """Why none lies beside this file, as the build has put it down; one line."""
    try:
        with open(NOTE, "rb") as file:
            text = file.read(NOTE_BYTES_MAX).decode("utf-8", "replace").strip()
    except OSError:
        text = ""
    return text.split("\n")[0] or "it was not built"


def fault(library: str) -> str | None:
    """Why the file cannot be loaded into this process: missing, cut short, no ELF, another machine's. None: it may be.

    Only its headers are read (ELF: System V ABI, chapter 4). The loader may still refuse it, for another libc, say.
    """
    try:
        with open(library, "rb") as file:
            head, bytes_there = _read_head(file.fileno())
    except OSError as error:
        return f"{error.strerror}"
    if head[:4] != b"\x7fELF":
        return "it is no ELF file"
    try:
        own = _own_machine()
        kind = _machine(head)
        if own is not None and kind != own:
            return f"it is for {_words(kind)}, and this Python is for {_words(own)}"
        if _fields(head, 16, "H")[0] != _SHARED_OBJECT:
            return "it is an ELF file, but no shared object"
        if bytes_there < _bytes_needed(head):
            return f"it is damaged or cut short: {bytes_there} bytes of at least {_bytes_needed(head)}"
    except (struct.error, IndexError, OverflowError):  # headers that lead out of what was read
        return f"it is damaged or cut short: {bytes_there} bytes"
    return None


_HEAD_BYTES = 64 + _SEGMENTS_MAX * 56  # ELF64's header and that many program headers


def _read_head(fd: int) -> tuple[bytes, int]:
    return os.read(fd, _HEAD_BYTES), os.fstat(fd).st_size


def _own_machine() -> tuple[int, int, int] | None:
    try:
        with open("/proc/self/exe", "rb") as file:
            head = file.read(20)
        return _machine(head) if head[:4] == b"\x7fELF" else None
    except (OSError, struct.error, IndexError):
        return None


def _machine(head: bytes) -> tuple[int, int, int]:
    """(word size: 1 is 32 bits, 2 is 64; byte order: 1 is little, 2 is big; e_machine)"""
    return head[4], head[5], _fields(head, 18, "H")[0]


def _words(machine: tuple[int, int, int]) -> str:
    bits, order, number = machine
    name = _MACHINES.get(number, f"machine {number}")
    return f"{name}, {32 if bits == 1 else 64} bits, {'big' if order == 2 else 'little'} endian"


def _bytes_needed(head: bytes) -> int:
    """Where the last loaded segment ends in the file."""
    wide = head[4] == 2
    offset = _fields(head, 32 if wide else 28, "Q" if wide else "I")[0]
    size, count = _fields(head, 54 if wide else 42, "HH")
    ends = [0]
    for number in range(min(count, _SEGMENTS_MAX)):
        at = offset + number * size
        if wide:
            kind, _, start, _, _, length = _fields(head, at, "IIQQQQ")
        else:
            kind, start, _, _, length = _fields(head, at, "IIIII")
        if kind == _LOAD:
            ends.append(start + length)
    return max(ends)


def _fields(head: bytes, at: int, form: str) -> tuple[int, ...]:
    return struct.unpack_from((">" if head[5] == 2 else "<") + form, head, at)
