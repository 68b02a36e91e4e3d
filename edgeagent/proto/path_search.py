"""The MTU of one path to a peer: a search (pmtu.py) whose probes are pings of disco, in frames instead of packets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeagent.proto.path import INNER_MTU_UNKNOWN, MTU_MAX, TRANSPORT_OVERHEAD
from edgeagent.proto.pmtu import MTU_BASE, PathMtu, State

if TYPE_CHECKING:
    from edgeagent.proto.path import Path


class PathSearch:
    """Drive it like a PathMtu, from the first payload on; `drain` gives the pings that are to be sent along the path.

    `path.frame_bytes` follows what is found. It stays 0, for unknown, along a relay until something was answered. A
    direct path begins with what it was proven with; it `failed` when not even the smallest size passes any more.
    """

    __slots__ = ("_full_bytes", "_lost_bytes", "_path", "_search", "_sparing")

    def __init__(self, path: Path, full_bytes: int, lost_bytes: int = 0, sparing: int = 1) -> None:
        """`full_bytes` is the longest frame that is of any use, `lost_bytes` one that did not pass, 0 for none; for
        `sparing` see PathMtu."""
        self._path = path
        self._full_bytes = full_bytes
        self._lost_bytes = lost_bytes
        self._sparing = sparing
        self._search: PathMtu | None = None

    @property
    def failed(self) -> bool:
        return self._search is not None and self._search.state is State.FAILED

    def sent(self, now: float, frame_bytes: int, count: int) -> None:
        """Payload went out, in `count` frames of up to `frame_bytes`."""
        self._begun(now).payload_sent(now, frame_bytes + self._path.overhead, count)
        self._follow()

    def unanswered(self, now: float) -> None:
        """Payload got no answer, and the path is no longer sure."""
        if self._search is not None:
            self._search.payload_unanswered(now)

    def answered(self, now: float, serial: int, frame_bytes: int) -> None:
        """A ping of `frame_bytes` was answered along a path that is sure; `serial` is 0 for one that is not of here."""
        if self._search is None:
            self._path.frame_bytes = max(self._path.frame_bytes, frame_bytes)
        else:
            size = frame_bytes + self._path.overhead
            if serial:
                self._search.probe_confirmed(now, serial)
            elif size > self._search.mtu:
                self._search.resume(now, size)
            self._follow()

    def proven(self, now: float, frame_bytes: int, lost_bytes: int = 0) -> None:
        """The path was in doubt, and is sure again by a ping of `frame_bytes`; 0 where its size says nothing."""
        self._lost_bytes = lost_bytes
        if self._search is not None:
            overhead = self._path.overhead
            proven = frame_bytes + overhead if frame_bytes else 0
            self._search.resume(now, proven, lost_bytes + overhead if lost_bytes else 0)
            self._follow()

    def refused(self, now: float, frame_bytes: int) -> None:
        """The system would not send so long a frame: its own link takes less."""
        self._begun(now).refused(now, frame_bytes + self._path.overhead)
        self._follow()

    def handle_timeout(self, now: float) -> None:
        if self._search is not None:
            self._search.handle_timeout(now)
            self._follow()

    def poll_timeout(self) -> float | None:
        return None if self._search is None else self._search.poll_timeout()

    def drain(self) -> list[tuple[int, int]]:
        """(serial, frame bytes) of each ping that is due."""
        if self._search is None:
            return []
        overhead = self._path.overhead
        return [(probe.serial, probe.size - overhead) for probe in self._search.drain_probes()]

    def _begun(self, now: float) -> PathMtu:
        if self._search is None:
            path, overhead = self._path, self._path.overhead
            proven = path.frame_bytes + overhead if path.frame_bytes else 0
            lost = self._lost_bytes + overhead if self._lost_bytes else 0
            ceiling = min(self._full_bytes + overhead, MTU_MAX)
            # Where nothing is known, what is sent meanwhile is tried first
            base = MTU_BASE if proven else INNER_MTU_UNKNOWN + TRANSPORT_OVERHEAD + overhead
            self._search = PathMtu(now, ceiling=ceiling, base=base, proven=proven, lost=lost, sparing=self._sparing)
        return self._search

    def _follow(self) -> None:
        path, search = self._path, self._search
        if search is None or (search.state is State.BASE and not path.frame_bytes):
            return
        if search.state is not State.FAILED:
            path.frame_bytes = search.mtu - path.overhead
        elif path.is_relay:
            path.frame_bytes = 0
