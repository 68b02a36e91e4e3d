"""Fills the slot that does not run: bytes as they come, then whole, checked, and chosen for a trial.

The order makes every power cut harmless: the manifest goes before anything else is touched, and comes back last; the choice is
changed when the slot is whole. The slot that is committed is never written.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING

from edgeagent import slots
from edgeagent.io import durable

if TYPE_CHECKING:
    from edgeagent.proto.tuf import Target

SPARE_BYTES = 262_144  # that stay free beside a slot that is written
LIBRARY_BYTES_MAX = 1 << 23
READ_BYTES = 65_536


class NoSpace(Exception):
    """The text says how much is missing."""


class SlotWriter:
    """`begin` tells where to go on; `append` what follows; `finish` when all is there. OSError where the disk refuses."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.slot = ""
        self._fd = -1
        self._hash = sha256()
        self._part = ""
        self.length = 0  # bytes that are there

    def begin(self, target: Target) -> int:
        """The first byte that is missing: what an earlier life has written of this target is kept. NoSpace."""
        self.close()
        durable.make_directory(self.directory)
        choice = self._choice()
        self.slot = next(slot for slot in slots.SLOTS if slot != choice.committed)
        folder = f"{self.directory}/{self.slot}"
        durable.make_directory(folder)
        durable.remove(f"{folder}/{slots.MANIFEST}")
        self._part = f"{folder}/part-{target.sha256.hex()[:32]}"
        for name in os.listdir(folder):
            if f"{folder}/{name}" != self._part:
                durable.remove(f"{folder}/{name}")
        about = os.statvfs(folder)
        there = os.path.getsize(self._part) if os.path.exists(self._part) else 0
        missing = target.length - there + SPARE_BYTES - about.f_bavail * about.f_frsize
        if missing > 0:
            raise NoSpace(f"{folder}: {missing // 1024 + 1} KiB more are needed")
        self._fd = durable.open_append(self._part)
        self._hash = sha256()
        self.length = 0
        if there <= target.length:
            while chunk := os.read(self._fd, READ_BYTES):
                self._hash.update(chunk)
                self.length += len(chunk)
        else:
            self.start_over()
        return self.length

    def append(self, data: bytes) -> None:
        durable.write_all(self._fd, data)
        self._hash.update(data)
        self.length += len(data)

    def start_over(self) -> None:
        os.ftruncate(self._fd, 0)
        self._hash = sha256()
        self.length = 0

    def is_right(self, target: Target) -> bool:
        """Whether all of the target is there, and it is the one that was signed."""
        return self.length == target.length and self._hash.digest() == target.sha256

    def finish(self, target: Target, version: str, rollout: int, trial_s: int) -> None:
        """The slot is whole and is what the next start tries. SlotError where the target is no agent."""
        folder = f"{self.directory}/{self.slot}"
        library = _library_of(self._part)
        durable.close_synced(self._fd)
        self._fd = -1
        files = {slots.PROGRAM: (target.length, target.sha256.hex())}
        if library is not None:
            durable.replace(f"{folder}/{slots.LIBRARY}", library)
            files[slots.LIBRARY] = (len(library), sha256(library).hexdigest())
        durable.rename(self._part, slots.PROGRAM)
        durable.replace(f"{folder}/{slots.MANIFEST}", json.dumps({"version": version, "files": files}).encode())
        if fault := slots.check_slot(self.directory, self.slot):
            raise slots.SlotError(fault)
        choice = self._choice()
        choice.begin_trial(self.slot, rollout, version, trial_s)
        slots.write_choice(self.directory, choice)

    def _choice(self) -> slots.Choice:
        """Where it is damaged the factory's agent runs, and each slot may be written."""
        try:
            return slots.read_choice(self.directory) or slots.Choice()
        except slots.SlotError:
            return slots.Choice()

    def forget(self) -> None:
        """What was fetched is of no use."""
        self.close()
        if self._part:
            with suppress(OSError):
                durable.remove(self._part)

    def close(self) -> None:
        if self._fd >= 0:
            with suppress(OSError):
                durable.close_synced(self._fd)
            self._fd = -1


def _library_of(path: str) -> bytes | None:
    """The C library that a zipapp brings: it has to lie in a file of its own to be loaded."""
    from zipfile import BadZipFile, ZipFile

    try:
        with ZipFile(path) as archive:
            for info in archive.infolist():
                if info.filename.rpartition("/")[2] == slots.LIBRARY:
                    if info.file_size > LIBRARY_BYTES_MAX:
                        raise slots.SlotError(f"{slots.LIBRARY} in it is larger than {LIBRARY_BYTES_MAX} bytes")
                    return archive.read(info)
            if not any(
                info.filename == "edgeagent/agentd.py" or info.filename == "edgeagent/agentd.pyc"
                for info in archive.infolist()
            ):
                raise slots.SlotError("it holds no agent")
    except (BadZipFile, NotImplementedError, ValueError, RuntimeError, EOFError) as error:
        raise slots.SlotError(f"it is no zipapp: {error}") from None
    return None
