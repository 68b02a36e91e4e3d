"""How large a packet may be on one path: searched with probes (RFC 8899), and without a word from ICMP.

| state     | input                                                    | then                                         |
|-----------|----------------------------------------------------------|----------------------------------------------|
| BASE      | the base size is confirmed                               | SEARCHING                                    |
| BASE      | it is lost                                               | SEARCHING above what has passed; else ERROR  |
| ERROR     | the smallest size is confirmed                           | SEARCHING below the base                     |
| ERROR     | it is lost                                               | FAILED                                       |
| SEARCHING | a size is confirmed                                      | SEARCHING above it; none left: COMPLETE      |
| SEARCHING | a size is lost                                           | SEARCHING below it; none left: COMPLETE      |
| COMPLETE  | large payload goes out, much of it, or without an answer | COMPLETE, the size in use is probed          |
| COMPLETE  | it is lost                                               | SEARCHING above what has passed; else BASE   |
| COMPLETE  | large payload went out for a long while                  | COMPLETE, the next size is probed once       |
| FAILED    | large payload goes out, after a while                    | BASE                                         |
| any       | a size in use does not even leave this host              | BASE, or below it ERROR                      |
| any       | something is proven by other means                       | SEARCHING above it; none left: COMPLETE      |

Sizes are those of IP packets, with all headers. "Lost" is three probes without an answer (RFC 8899, section 5.1.2), two
where a larger size than the one in use is tried, for there a mistake costs a little speed until the next try; and two
where payload is not answered either. With the last probe of a size in use go those of LADDER_MTUS that are smaller, so
that it is known at once what is left. A size that is begun with, or fallen back to, is in use at once.
"""

from __future__ import annotations

from enum import Enum

from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.path import LADDER_MTUS, MTU_MAX, MTU_MIN

MTU_BASE = 1_280
PROBES_MAX, SEARCH_PROBES_MAX = 3, 2
PROBE_TIMEOUT_S, PROBE_TIMEOUT_MAX_S = 1.0, 10.0  # RFC 8899, section 5.1.1: not less than a second
STEP = 16  # a gain of less is not searched for
CONFIRM_AFTER_S = 15.0  # since the size in use was last confirmed,
CONFIRM_PACKETS = 16  # and after payload of so many packets of that size: a probe and its answer are an eighth of that
RAISE_AFTER_S, RAISE_AFTER_MAX_S = 600.0, 21_600.0
RETRY_AFTER_S, RETRY_AFTER_MAX_S = 15.0, 600.0
PATIENCE_PACKETS, PATIENCE_PACKETS_MAX = 3, 48  # large ones without an answer; traffic that wants none doubles it
OUTSTANDING_MAX = 16

# Ethernet, PPPoE, tunnels and radio as they occur (RFC 1191, section 7.1, has the old ones)
_COMMON = (1006, 1280, 1340, 1360, 1380, 1400, 1412, 1420, 1430, 1440, 1450, 1460, 1472, 1480, 1492, 1500, 2002, 4352)


class State(Enum):
    BASE = "base"
    ERROR = "error"
    SEARCHING = "searching"
    COMPLETE = "complete"
    FAILED = "failed"


class MtuProbe:
    """Send a packet of exactly `size` bytes, not to be fragmented; its answer brings `serial` back."""

    __slots__ = ("serial", "size")

    def __init__(self, serial: int, size: int) -> None:
        self.serial = serial
        self.size = size


class PathMtu:
    """Drive it: report what becomes of probes and payload, `handle_timeout` at `poll_timeout()`; after any input drain
    probes. `mtu` is what may be used now: `base` until more, or less, is known.

    `ceiling` is the largest size that is of any use. `proven` is one that has passed already, 0 for none; `lost` one
    that has not. When the search is over only payload causes probes, so an idle path has none; `sparing` makes these so
    many times rarer, where they cost money.
    """

    __slots__ = (
        "_base",
        "_ceiling",
        "_confirm_after_s",
        "_confirmed_at",
        "_deadline",
        "_high",
        "_large",
        "_large_bytes",
        "_outstanding",
        "_passed",
        "_patience",
        "_probes",
        "_raise_at",
        "_raise_s",
        "_retry_at",
        "_retry_s",
        "_serial",
        "_size",
        "_suspicious",
        "_timeout_s",
        "_tries",
        "mtu",
        "state",
    )

    def __init__(
        self, now: float, *, ceiling: int, base: int = MTU_BASE, proven: int = 0, lost: int = 0, sparing: int = 1
    ) -> None:
        self._ceiling = _checked(ceiling)
        self._base = min(_checked(base), self._ceiling)
        self._high = self._ceiling + 1  # the smallest size that does not pass, as far as is known
        self._size = 0  # being probed
        self._passed = 0  # a smaller one that was confirmed meanwhile
        self._tries = 0
        self._serial = 0
        self._suspicious = False  # whether payload was not answered either
        self._timeout_s = PROBE_TIMEOUT_S
        self._raise_s, self._retry_s = min(sparing * RAISE_AFTER_S, RAISE_AFTER_MAX_S), RETRY_AFTER_S
        self._confirm_after_s = sparing * CONFIRM_AFTER_S
        self._deadline: float | None = None  # of the probe under way
        self._raise_at: float | None = None
        self._retry_at = now
        self._confirmed_at = now
        self._large = self._large_bytes = 0  # payload since then
        self._patience = PATIENCE_PACKETS
        self._outstanding: dict[int, tuple[int, float]] = {}  # serial → size, when it was sent
        self._probes: list[MtuProbe] = []
        self.mtu = self._base
        self.state = State.BASE
        if proven:
            self.resume(now, proven, lost)
        else:
            self._begin(now, State.BASE)

    # Probes

    def probe_confirmed(self, now: float, serial: int) -> None:
        """The other side received this probe. Late ones count too, but none from before a fall or a `resume`."""
        size, sent_at = self._outstanding.pop(serial, (0, 0.0))
        if size == 0:
            return
        self._timeout_s = min(max(PROBE_TIMEOUT_S, 2 * (now - sent_at)), PROBE_TIMEOUT_MAX_S)
        if size < self._size <= self.mtu:
            self._passed = max(self._passed, size)
        elif size > self.mtu or self.state in (State.BASE, State.ERROR, State.FAILED):
            if size >= self._high:
                self._high = self._ceiling + 1
            self.mtu = size
            self._retry_s = RETRY_AFTER_S
            self._search(now)
        elif size == self._size:
            if self._suspicious:
                self._patience = min(2 * self._patience, PATIENCE_PACKETS_MAX)
            self._rest(now)

    def refused(self, now: float, size: int) -> None:
        """A packet of `size`, probe or payload, is too large for this host's own link: there is no need to wait."""
        if self.state is State.FAILED or (size >= self._high and size != self._size):
            return
        self._high = min(self._high, size)
        if size <= self.mtu and self.state is not State.ERROR:
            self._fall_back(now)
        elif size == self._size:
            self._lost(now)

    def resume(self, now: float, proven: int = 0, lost: int = 0) -> None:
        """The path was in doubt and is no more: what was under way tells nothing. `proven` has passed since then."""
        self._outstanding.clear()
        self._rest(now)
        if proven:
            self.mtu = min(proven, self._ceiling)
            if self.mtu >= self._high:
                self._high = self._ceiling + 1
            if lost > self.mtu:
                self._high = min(self._high, lost)
            self._search(now)
        elif self.state is State.SEARCHING:
            self._search(now)
        elif self.state in (State.BASE, State.ERROR):
            self._begin(now, self.state)

    # Payload

    def payload_sent(self, now: float, size: int, count: int = 1) -> None:
        """`count` packets of up to `size` went out. Only large ones call for a look whether they still pass."""
        if size < MTU_MIN:
            return
        self._large += count
        self._large_bytes += count * size
        if self.state is State.FAILED:
            if now >= self._retry_at:
                self._begin(now, State.BASE)
        elif self.state is State.COMPLETE and self._size == 0:
            if self._raise_at is not None and now >= self._raise_at:
                self._raise_s = min(2 * self._raise_s, RAISE_AFTER_MAX_S)
                self._raise_at = now + self._raise_s
                self._probe(now, self._high, tries=SEARCH_PROBES_MAX - 1)
            elif now >= self._confirmed_at + self._confirm_after_s and self._large_bytes >= CONFIRM_PACKETS * self.mtu:
                self._probe(now, self.mtu)

    def payload_unanswered(self, now: float) -> None:
        """What was sent last got no answer, on a path that should answer: too large, perhaps."""
        if self.state is State.COMPLETE and self._size == 0 and self._large >= self._patience:
            self._suspicious = True
            self._probe(now, self.mtu, tries=PROBES_MAX - SEARCH_PROBES_MAX)

    # Time and outputs

    def handle_timeout(self, now: float) -> None:
        if self._deadline is None or now < self._deadline:
            return
        if self._tries < (SEARCH_PROBES_MAX if self._size > self.mtu else PROBES_MAX):
            self._send(now)
        else:
            self._lost(now)

    def poll_timeout(self) -> float | None:
        return self._deadline

    def drain_probes(self) -> list[MtuProbe]:
        probes, self._probes = self._probes, []
        return probes

    # Moves

    def _begin(self, now: float, state: State) -> None:
        """BASE or ERROR: does anything pass at all?"""
        self.state = state
        self._outstanding.clear()
        self._raise_at = None
        self._patience = PATIENCE_PACKETS
        self.mtu = self._base if state is State.BASE else MTU_MIN
        self._probe(now, self.mtu)

    def _search(self, now: float) -> None:
        self.state = State.SEARCHING
        size = self._next_size()
        if size:
            self._probe(now, size)
            return
        self.state = State.COMPLETE
        if self._high > self._ceiling:
            self._raise_at = None
        elif self._raise_at is None:
            self._raise_at = now + self._raise_s
        self._rest(now)

    def _next_size(self) -> int:
        low, high = self.mtu, self._high
        if high > self._ceiling:
            return self._ceiling if self._ceiling > low else 0
        common = [size for size in _COMMON if low < size < high]
        if common:
            return common[len(common) // 2]
        return (low + high) // 2 if high - low > STEP else 0

    def _probe(self, now: float, size: int, tries: int = 0) -> None:
        self._size = size
        self._tries = tries
        self._passed = 0
        self._send(now)

    def _send(self, now: float) -> None:
        self._tries += 1
        self._deadline = now + self._timeout_s
        self._send_one(now, self._size)
        if self._tries == PROBES_MAX:
            for size in LADDER_MTUS:
                if size < self._size:
                    self._send_one(now, size)

    def _send_one(self, now: float, size: int) -> None:
        self._serial += 1
        if len(self._outstanding) == OUTSTANDING_MAX:
            del self._outstanding[next(iter(self._outstanding))]
        self._outstanding[self._serial] = (size, now)
        self._probes.append(MtuProbe(self._serial, size))

    def _lost(self, now: float) -> None:
        self._high = min(self._high, self._size)
        if self._size > self.mtu:
            if self.state is State.COMPLETE:
                self._rest(now)
            else:
                self._search(now)
        elif self._passed:
            self._high = min(size for size in (self._high, *LADDER_MTUS) if size > self._passed)
            self.mtu = self._passed
            self._search(now)
        elif self.state is State.COMPLETE:
            self._fall_back(now)
        elif self.state is State.BASE and self.mtu > MTU_MIN:
            self._begin(now, State.ERROR)
        else:  # not even the smallest: the path is dead, and nothing is known about it any more
            self.state = State.FAILED
            self._high = self._ceiling + 1
            self._retry_at = now + self._retry_s
            self._retry_s = min(2 * self._retry_s, RETRY_AFTER_MAX_S)
            self._rest(now)

    def _fall_back(self, now: float) -> None:
        self._begin(now, State.BASE if self.mtu > self._base else State.ERROR)

    def _rest(self, now: float) -> None:
        self._size = 0
        self._deadline = None
        self._confirmed_at = now
        self._large = self._large_bytes = 0
        self._suspicious = False


def _checked(mtu: int) -> int:
    if mtu < MTU_MIN:
        raise LocalProtocolError(f"pmtu: at least {MTU_MIN}, got {mtu}")
    return min(mtu, MTU_MAX)
