"""What every part of the agent stands on, made once at the start."""

from __future__ import annotations

import logging
import os
import struct
import sys
from typing import TYPE_CHECKING

from edgeagent.accounts import Accounts
from edgeagent.ceiling import Ceiling
from edgeagent.io.keystore import Keystore, StateDamaged, StateError, StateFile, entropy
from edgeagent.proto.identity import Admission, Identity
from edgeagent.proto.limits import Limits, read_limits
from edgeagent.proto.refusals import ControlError
from edgeagent.proto.tai64n import RESERVE_NS, Tai64nClock
from edgeagent.proto.walltime import WallFloor
from edgeagent.version import BUILD_TIME_S, VERSION

if TYPE_CHECKING:
    from selectors import BaseSelector

    from edgeagent.config import Settings
    from edgeagent.io.logring import LogRing
    from edgeagent.proto.crypto import Crypto

log = logging.getLogger("edgeagent")
_CLOCK = struct.Struct(">QQ")  # TAI64N reservation, ns; time floor, s
_NS = 1_000_000_000


class Context:
    """Settings, keys, clocks and accounts. Raises StateError when the state directory cannot be used as it is."""

    def __init__(
        self,
        now: float,
        *,
        settings: Settings,
        crypto: Crypto,
        keystore: Keystore,
        selector: BaseSelector,
        ring: LogRing,
    ) -> None:
        self.settings = settings
        self.crypto = crypto
        self.keystore = keystore
        self.selector = selector
        self.ring = ring
        self.entropy = entropy
        self.limits = limits_of(settings)
        self.ceiling = Ceiling(settings)
        self.boot = entropy(16)  # of this run: a peer that sees another one knows that our sessions are gone
        self.facts = facts(settings.board)
        self.started_at = now
        self.damaged_files = 0
        self.failed_writes = 0
        self.admission = self._load_admission()
        self.identity = self._load_identity()
        ring.hide(self.identity.password)
        reserved_ns, floor_s = self._load_clock()
        self.wall = WallFloor(now, floor_s)
        self._stamps_reserved_ns = reserved_ns
        self.tai64n = Tai64nClock(now, floor_s, reserved_ns, self._reserve_stamps)
        self.accounts = Accounts(now, self)

    def save(self, file: StateFile, body: bytes) -> bool:
        """False when the disk refused: said and counted."""
        try:
            self.keystore.save(file, body)
        except OSError as error:
            self.failed_writes += 1
            log.error("%s: not saved: %s", self.keystore.path(file), error.strerror)
            return False
        return True

    def save_clock(self, now: float) -> None:
        """Keep how late it is."""
        self.save(StateFile.CLOCK, _CLOCK.pack(self._stamps_reserved_ns, int(self.wall.at(now))))

    def load_or_none(self, file: StateFile) -> bytes | None:
        """For files that may be done without: a damaged one is counted, and is as good as none."""
        try:
            return self.keystore.load(file)
        except StateDamaged as error:
            self.damaged_files += 1
            log.warning("%s; going on without it", error)
            return None

    def _load_admission(self) -> Admission | None:
        try:
            data = self.keystore.load(StateFile.ADMISSION)
            return None if data is None else Admission.decode(self.crypto, data)
        except (StateDamaged, ControlError) as error:
            raise StateError(
                f"{error}. Remove {self.keystore.path(StateFile.ADMISSION)} and join again with a token: "
                "the device keeps its keys, its name and its addresses"
            ) from None

    def _load_identity(self) -> Identity:
        """The device's keys. Made here only on a device that was never admitted: lost keys are never made up for."""
        path = self.keystore.path(StateFile.IDENTITY)
        what_next = (
            f"This device is a member of a network under keys that are lost. Restore {path} from a backup, or remove "
            f"{self.keystore.directory} and join again as a new device"
        )
        try:
            data = self.keystore.load(StateFile.IDENTITY)
            if data is not None:
                return Identity.decode(self.crypto, data)
            if self.admission is not None:
                raise StateError(f"{path}: not there. {what_next}")
        except (StateDamaged, ControlError) as error:
            if self.admission is not None:
                raise StateError(f"{error}. {what_next}") from None
            self.damaged_files += 1
            log.warning("%s; no network knows these keys yet: making new ones", error)
        identity = Identity.create(self.crypto, entropy)
        try:
            self.keystore.save(StateFile.IDENTITY, identity.encode())
        except OSError as error:
            raise StateError(f"{path}: not saved: {error.strerror}") from None
        return identity

    def _load_clock(self) -> tuple[int, int]:
        """(TAI64N reservation ns, time floor s)."""
        data = self.load_or_none(StateFile.CLOCK)
        if data is not None and len(data) == _CLOCK.size:
            reserved_ns, floor_s = _CLOCK.unpack(data)
            return reserved_ns, max(BUILD_TIME_S, floor_s)
        # A member that lost its reservation may have stamped up to one block beyond what it knows now.
        return (BUILD_TIME_S * _NS + RESERVE_NS if self.admission is not None else 0), BUILD_TIME_S

    def _reserve_stamps(self, reserved_ns: int) -> None:
        self._stamps_reserved_ns = reserved_ns
        # The wall as the stamps know it is at most a block behind: good enough for a floor.
        floor_s = max(BUILD_TIME_S, (reserved_ns - RESERVE_NS) // _NS)
        self.save(StateFile.CLOCK, _CLOCK.pack(reserved_ns, floor_s))


def limits_of(settings: Settings) -> Limits:
    return Limits(settings.memory_profile, **read_limits(settings.limits))


def jitter() -> float:
    """In [0, 1): scatters timers, guards nothing."""
    return int.from_bytes(os.urandom(4), "big") / (1 << 32)


def facts(board: str) -> dict[str, str]:
    """What the operator may want to know of this device: at most 16 texts of at most 128 bytes."""
    system = os.uname()
    found = {
        "agent": VERSION,
        "board": board,
        "arch": system.machine,
        "kernel": system.release,
        "python": "{}.{}.{}".format(*sys.version_info[:3]),
        "os": _os_release(),
        "model": _first_line("/proc/device-tree/model") or _first_line("/sys/class/dmi/id/product_name"),
    }
    return {name: _clip(text) for name, text in found.items() if text}


def _os_release() -> str:
    try:
        with open("/etc/os-release", encoding="utf-8", errors="replace") as file:
            for line in file.read(65_536).splitlines():
                if line.startswith("PRETTY_NAME="):
                    return line.partition("=")[2].strip("\"'")
    except OSError:
        pass
    return ""


def _first_line(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(256).split(b"\n")[0].rstrip(b"\0").decode("utf-8", "replace")
    except OSError:
        return ""


def _clip(text: str) -> str:
    text = "".join(c for c in text if c.isprintable())
    return text.encode()[:128].decode("utf-8", "ignore")
