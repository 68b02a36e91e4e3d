"""The C library for tests: functions of the signatures of their Python twins."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import pytest

from edgeagent.engine import fast
from edgeagent.engine.offload import SEGMENTS_MAX, VNET_HEADER_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

SOURCES = Path(fast.__file__).parent
OFFLOAD_SOURCES = ("split.c", "coalesce.c", "offload_test.c")
FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror", "-O2")
LIES = -1  # of ea_test_split


@cache
def library() -> ctypes.CDLL:
    """$EDGEAGENT_FAST_LIBRARY, or what is built beside the sources, or what gcc makes of those of offload here."""
    chosen = os.environ.get("EDGEAGENT_FAST_LIBRARY")
    if chosen:
        return ctypes.CDLL(chosen)
    built = SOURCES / "libedgefast.so"
    if built.exists() and built.stat().st_mtime >= max(file.stat().st_mtime for file in SOURCES.glob("*.[ch]")):
        return ctypes.CDLL(str(built))
    if not shutil.which("gcc"):
        pytest.skip("neither libedgefast.so nor gcc is here")
    folder = mkdtemp(prefix="edgefast-")
    try:
        made = f"{folder}/liboffload.so"
        sources = [str(SOURCES / name) for name in OFFLOAD_SOURCES]
        subprocess.run(["gcc", *FLAGS, "-fPIC", "-fvisibility=hidden", "-shared", "-o", made, *sources], check=True)
        return ctypes.CDLL(made)
    finally:
        shutil.rmtree(folder)


def split(frame: bytes) -> list[bytes] | None:
    """As `offload.split`."""
    room = len(frame) + SEGMENTS_MAX * len(frame)  # each segment repeats the headers
    out = _scratch(min(room, 1 << 25))
    sizes = (ctypes.c_uint32 * SEGMENTS_MAX)()
    count = library().ea_test_split(
        frame, ctypes.c_size_t(len(frame)), out, ctypes.c_size_t(len(out)), sizes, SEGMENTS_MAX
    )
    if count == LIES:
        return None
    assert count >= 0, "no room"
    return _cut(out, sizes[:count])


def coalesce(packets: Sequence[bytes], *, udp: bool, verify: bool) -> list[list[bytes]]:
    """As `offload.coalesce`, but that frames are in one buffer, and that a batch may be cut: it has a ceiling."""
    count = len(packets)
    data = b"".join(packets)
    out = _scratch(len(data) + VNET_HEADER_SIZE * count)
    sizes = (ctypes.c_uint32 * (count + 1))(*map(len, packets))
    frame_sizes = (ctypes.c_uint32 * (count + 1))()
    made = library().ea_test_coalesce(
        data, sizes, count, int(udp), int(verify), out, ctypes.c_size_t(len(out)), frame_sizes, count
    )
    assert made >= 0, "no room"
    return [[frame] for frame in _cut(out, frame_sizes[:made])]


def _scratch(size: int) -> ctypes.Array[ctypes.c_char]:
    return (ctypes.c_char * max(size, 1))()


def _cut(out: ctypes.Array[ctypes.c_char], sizes: list[int]) -> list[bytes]:
    data = ctypes.string_at(out, sum(sizes))
    return [data[at:end] for at, end in pairwise(accumulate(sizes, initial=0))]
