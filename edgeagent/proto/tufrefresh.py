"""The order in which a device reads a repository of updates (TUF 1.0, section 5): which file next, and when it is enough."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from edgeagent.proto.tuf import ROOTS_MAX, Distrust, Trust, TufError

if TYPE_CHECKING:
    from edgeagent.proto.crypto import Crypto

ROLES = ("root", "timestamp", "snapshot", "targets")


class Refresh:
    """`wanted` is the next file, None once targets are believed; give each to `take`, None for one that is not there.

    `root` is a root that is trusted; `kept` are files by role that were believed in an earlier life: what they say is not
    undone, and what is as new as it may be is not asked for again. Raises TufError, and is of no use after that.
    """

    def __init__(self, crypto: Crypto, root: bytes, wall_s: float | None, kept: dict[str, bytes]) -> None:
        self.trust = Trust(crypto, root, wall_s)
        self._kept = kept
        self._roots = 0
        self._role = "root"

    @property
    def wanted(self) -> str | None:
        return None if self._role == "" else self.trust.file(self._role)

    @property
    def bytes_max(self) -> int:
        return self.trust.bytes_max(self._role)

    def take(self, data: bytes | None) -> None:
        role = self._role
        if role == "root":
            if data is not None:
                self._roots += 1
                if self._roots > ROOTS_MAX:
                    raise TufError(Distrust.TOO_LONG, f"root: more than {ROOTS_MAX} new ones at once")
                self.trust.update_root(data)
                return
            if "timestamp" in self._kept:
                with suppress(TufError):  # by a key that has been revoked since, say
                    self.trust.update_timestamp(self._kept["timestamp"])
            self._role = "timestamp"
            return
        if data is None:
            raise TufError(Distrust.MISMATCH, f"{role}: the hub does not have {self.wanted}")
        if role == "timestamp":
            self.trust.update_timestamp(data)
            self._role = "snapshot"
            self._try_kept_snapshot()
        elif role == "snapshot":
            self.trust.update_snapshot(data)
            self._role = "targets"
            self._try_kept_targets()
        else:
            self.trust.update_targets(data)
            self._role = ""

    def _try_kept_snapshot(self) -> None:
        if "snapshot" in self._kept:
            with suppress(TufError):
                self.trust.update_snapshot(self._kept["snapshot"], kept=True)
                self._role = "targets"
                self._try_kept_targets()

    def _try_kept_targets(self) -> None:
        if "targets" in self._kept:
            with suppress(TufError):
                self.trust.update_targets(self._kept["targets"])
                self._role = ""
