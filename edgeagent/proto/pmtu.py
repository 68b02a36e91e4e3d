"""How large a packet may be on one path: searched with probes (RFC 8899), and without a word from ICMP.

| state     | input                                    | then                                               |
|-----------|------------------------------------------|----------------------------------------------------|
| BASE      | the base size is confirmed               | SEARCHING                                          |
| BASE      | it is lost                               | ERROR, with the smallest size                      |
| ERROR     | the smallest size is confirmed           | SEARCHING below the base                           |
| ERROR     | it is lost                               | ERROR, asked again less and less often             |
| SEARCHING | a size is confirmed                      | SEARCHING above it; none left: COMPLETE            |
| SEARCHING | a size is lost                           | SEARCHING below it; none left: COMPLETE            |
| COMPLETE  | large packets went out for a while       | COMPLETE, the size in use is probed                |
| COMPLETE  | it is lost                               | BASE (or ERROR), which is in use at once           |
| COMPLETE  | large packets went out for a long while  | COMPLETE, the next size is probed once             |
| any       | payload is lost, though small probes are not | BASE (or ERROR), which is in use at once       |

Sizes are those of IP packets, with all headers. "Lost" is three probes without an answer (RFC 8899, section 5.1.2), two
where a larger size than the one in use is tried: there a mistake costs a little speed, until the next try.
"""

from __future__ import annotations

from enum import Enum

from edgeagent.proto.errors import LocalProtocolError

MTU_MIN = 576  # what every IPv4 host takes in (RFC 791)
MTU_BASE = 1_280
MTU_MAX = 9_000
PROBES_MAX, SEARCH_PROBES_MAX = 3, 2
PROBE_TIMEOUT_S, PROBE_TIMEOUT_MAX_S = 1.0, 10.0  # RFC 8899, section 5.1.1: not less than a second
STEP = 16  # a gain of less is not searched for
CONFIRM_AFTER_S = 15.0  # of large packets going out
RAISE_AFTER_S, RAISE_AFTER_MAX_S = 600.0, 21_600.0
DEAD_RETRY_S, DEAD_RETRY_MAX_S = 15.0, 600.0
ALARM_SPACING_S = 5.0
OUTSTANDING_MAX = 16

_UDP_HEADER, _IPV4_HEADER, _IPV6_HEADER = 8, 20, 40
_TRANSPORT_DATA = 32  # WireGuard's header and tag
# Ethernet, PPPoE, tunnels and radio as they occur (RFC 1191, section 7.1, has the old ones)
_COMMON = (1006, 1280, 1340, 1360, 1380, 1400, 1412, 1420, 1430, 1440, 1450, 1460, 1472, 1480, 1492, 1500, 2002, 4352)


class State(Enum):
    BASE = "base"
    ERROR = "error"
    SEARCHING = "searching"
    COMPLETE = "complete"


class Probe:
    """Send a packet of exactly `size` bytes, not to be fragmented; its answer brings `serial` back."""

    __slots__ = ("serial", "size")

    def __init__(self, serial: int, size: int) -> None:
        self.serial = serial
        self.size = size


class MtuChanged:
    """From now on packets of up to `mtu` may be sent; `before` was the limit so far."""

    __slots__ = ("before", "mtu")

    def __init__(self, before: int, mtu: int) -> None:
        self.before = before
        self.mtu = mtu


class PathMtu:
    """Drive it: report what becomes of probes and payload, `handle_timeout` at `poll_timeout()`; after any input drain
    probes and events. `mtu` is what may be used now: `base` until more, or less, is known.

    An idle path is not probed once the search is over. `ceiling` is the MTU of the first link.
    """

    __slots__ = (
        "_alarm_at",
        "_base",
        "_ceiling",
        "_deadline",
        "_doubt_at",
        "_events",
        "_high",
        "_hint",
        "_outstanding",
        "_probes",
        "_raise_at",
        "_raise_s",
        "_retry_s",
        "_serial",
        "_size",
        "_timeout_s",
        "_tries",
        "mtu",
        "state",
    )

    def __init__(self, now: float, *, ceiling: int, base: int = MTU_BASE) -> None:
        self._ceiling = _checked(ceiling)
        self._base = min(_checked(base), self._ceiling)
        self.mtu = self._base
        self._high = 0  # the smallest size that does not pass, as far as is known
        self._hint = 0  # to be probed next, if that makes sense
        self._size = 0  # being probed
        self._tries = 0
        self._serial = 0
        self._timeout_s = PROBE_TIMEOUT_S
        self._raise_s = self._retry_s = 0.0
        self._deadline: float | None = None  # of the probe under way, or when a dead path is asked again
        self._doubt_at: float | None = None  # when the size in use is to be confirmed
        self._raise_at: float | None = None
        self._alarm_at: float | None = None
        self._outstanding: dict[int, tuple[int, float]] = {}  # serial → size, when it was sent
        self._probes: list[Probe] = []
        self._events: list[MtuChanged] = []
        self.restart(now)

    def restart(self, now: float) -> None:
        """The path is another one now: what was found no longer holds."""
        self._high = self._ceiling + 1
        self._hint = 0
        self._timeout_s = PROBE_TIMEOUT_S
        self._raise_s = RAISE_AFTER_S
        self._retry_s = DEAD_RETRY_S
        self._alarm_at = None
        self._use(self._base)
        self._begin(now, State.BASE)

    def probe_confirmed(self, now: float, serial: int) -> None:
        """The other side received this probe. Late ones count too, but none from before a `restart` or an alarm."""
        size, sent_at = self._outstanding.pop(serial, (0, 0.0))
        if size == 0:
            return
        self._timeout_s = min(max(PROBE_TIMEOUT_S, 2 * (now - sent_at)), PROBE_TIMEOUT_MAX_S)
        if size > self.mtu or self.state in (State.BASE, State.ERROR):
            if size >= self._high:
                self._high = self._ceiling + 1
            self._use(size)
            self._retry_s = DEAD_RETRY_S
            self._search(now)
        elif size == self._size:
            self._rest()

    def probe_refused(self, now: float, serial: int) -> None:
        """The probe was too large for this host's own link: there is no need to wait."""
        size, _ = self._outstanding.pop(serial, (0, 0.0))
        if size and size == self._size:
            self._lost(now)

    def payload_sent(self, now: float, size: int) -> None:
        """Payload in a packet of `size` went out. Only large ones call for a look whether they still pass."""
        if self._doubt_at is None and self.state is State.COMPLETE and size > self.mtu // 2:
            self._doubt_at = now + CONFIRM_AFTER_S

    def payload_lost(self, now: float) -> None:
        """Payload is not answered on a path that answers small packets: use what is safe at once, and search anew."""
        if self._alarm_at is None or now >= self._alarm_at + ALARM_SPACING_S:
            self._alarm_at = now
            self._fall_back(now)

    def packet_too_big(self, now: float, mtu: int) -> None:
        """A router says that no more than `mtu` passes. Anybody can say so: it is looked into, not believed."""
        if not MTU_MIN <= mtu < self._high:
            return
        self._hint = mtu
        spaced = self._alarm_at is None or now >= self._alarm_at + ALARM_SPACING_S
        if mtu < self.mtu and self._size == 0 and self.state is State.COMPLETE and spaced:
            self._alarm_at = now
            self._probe(now, self.mtu)

    def set_ceiling(self, now: float, ceiling: int) -> None:
        """The first link's MTU changed."""
        ceiling = _checked(ceiling)
        before, self._ceiling = self._ceiling, ceiling
        self._base = min(self._base, ceiling)
        if ceiling > before:
            self.restart(now)
        elif ceiling < before:
            self._high = min(self._high, ceiling + 1)
            self._use(min(self.mtu, ceiling))
            if self.state in (State.BASE, State.ERROR):
                self._begin(now, self.state)
            else:
                self._search(now)

    def handle_timeout(self, now: float) -> None:
        if self._deadline is not None:
            if now < self._deadline:
                return
            if self._size == 0:
                self._begin(now, State.ERROR)
            elif self._tries < (SEARCH_PROBES_MAX if self._size > self.mtu else PROBES_MAX):
                self._send(now)
            else:
                self._lost(now)
        elif self._doubt_at is not None and now >= self._doubt_at:
            if self._raise_at is not None and now >= self._raise_at:
                self._raise_s = min(2 * self._raise_s, RAISE_AFTER_MAX_S)
                self._raise_at = now + self._raise_s
                self._probe(now, self._high, tries=SEARCH_PROBES_MAX - 1)
            else:
                self._probe(now, self.mtu)

    def poll_timeout(self) -> float | None:
        return self._deadline if self._deadline is not None else self._doubt_at

    def drain_probes(self) -> list[Probe]:
        probes, self._probes = self._probes, []
        return probes

    def drain_events(self) -> list[MtuChanged]:
        events, self._events = self._events, []
        return events

    def _begin(self, now: float, state: State) -> None:
        """BASE or ERROR: does anything pass at all?"""
        self.state = state
        self._outstanding.clear()
        self._raise_at = self._doubt_at = None
        self._probe(now, self._base if state is State.BASE else MTU_MIN)

    def _search(self, now: float) -> None:
        self.state = State.SEARCHING
        size = self._next_size()
        if size:
            self._probe(now, size)
            return
        self.state = State.COMPLETE
        self._raise_at = now + self._raise_s if self._high <= self._ceiling else None
        self._rest()

    def _next_size(self) -> int:
        low, high = self.mtu, self._high
        hint, self._hint = self._hint, 0
        if low < hint < high:
            return hint
        if high > self._ceiling:
            return self._ceiling if self._ceiling > low else 0
        common = [size for size in _COMMON if low < size < high]
        if common:
            return common[len(common) // 2]
        return (low + high) // 2 if high - low > STEP else 0

    def _probe(self, now: float, size: int, tries: int = 0) -> None:
        self._size = size
        self._tries = tries
        self._send(now)

    def _send(self, now: float) -> None:
        self._tries += 1
        self._serial += 1
        if len(self._outstanding) == OUTSTANDING_MAX:
            del self._outstanding[next(iter(self._outstanding))]
        self._outstanding[self._serial] = (self._size, now)
        self._probes.append(Probe(self._serial, self._size))
        self._deadline = now + self._timeout_s

    def _lost(self, now: float) -> None:
        if self._size > self.mtu:
            self._high = min(self._high, self._size)
            if self.state is State.COMPLETE:
                self._rest()
            else:
                self._search(now)
        elif self.state is State.COMPLETE:
            self._high = self.mtu
            self._fall_back(now)
        elif self.state is State.BASE:
            self._high = min(self._high, self._base)
            self._use(MTU_MIN)
            self._begin(now, State.ERROR)
        else:  # not even the smallest: the path is dead, and nothing is known about it any more
            self._high = self._ceiling + 1
            self._rest()
            self._deadline = now + self._retry_s
            self._retry_s = min(2 * self._retry_s, DEAD_RETRY_MAX_S)

    def _fall_back(self, now: float) -> None:
        if not 0 < self._hint < self.mtu:
            self._hint = self.mtu  # if it was a false alarm, this comes back at once
        state = State.BASE if self.mtu > self._base else State.ERROR
        self._use(self._base if state is State.BASE else MTU_MIN)
        self._begin(now, state)

    def _rest(self) -> None:
        self._size = 0
        self._deadline = self._doubt_at = None

    def _use(self, mtu: int) -> None:
        if mtu != self.mtu:
            self._events.append(MtuChanged(self.mtu, mtu))
            self.mtu = mtu


def tunnel_mtu(path_mtu: int, *, ipv6: bool, framing: int = 0) -> int:
    """The largest packet inside the tunnel for a path's MTU; `framing` is what a relay's carrier adds to a datagram."""
    return path_mtu - (_IPV6_HEADER if ipv6 else _IPV4_HEADER) - _UDP_HEADER - framing - _TRANSPORT_DATA


def _checked(mtu: int) -> int:
    if mtu < MTU_MIN:
        raise LocalProtocolError(f"pmtu: at least {MTU_MIN}, got {mtu}")
    return min(mtu, MTU_MAX)
