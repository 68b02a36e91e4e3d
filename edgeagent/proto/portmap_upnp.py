"""Ports by UPnP IGD, where a router speaks neither PCP nor NAT-PMP: what to ask it, and when; the asking blocks.

For each uplink:

| state   | input                            | then                                                        |
|---------|----------------------------------|-------------------------------------------------------------|
| ASKING  | opened                           | HELD                                                        |
| ASKING  | the port is somebody else's      | ASKING for another one; WAITING after a few of them         |
| ASKING  | any other failure                | WAITING                                                     |
| HELD    | half of the lease is over        | ASKING, with the mapping still counted on                   |
| WAITING | the wait is over                 | ASKING                                                      |
| any     | the lease is over                | no mapping                                                  |
| any     | not wanted any more              | gone; what was opened is closed                             |
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from edgeagent.proto.backoff import Backoff
from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.portmap_gateway import is_usable_outside

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeagent.proto.records import UdpAddress

LEASE_S = 3_600
PORT_TRIES_MAX = 4
WAIT_MIN_S, WAIT_MAX_S = 600.0, 86_400.0
CLOSINGS_MAX = 8
_PORT_FIRST, _PORT_LAST = 49_152, 65_535  # RFC 6335, section 6: nobody's

Target = tuple[str, bytes, bytes, int]  # uplink, its gateway, own address on it (4 B each), port


class Want(Enum):
    """What a job is for."""

    LOOK = "look"  # is there a router that speaks UPnP, and what is its outside address
    OPEN = "open"
    CLOSE = "close"


class UpnpFailure(Enum):
    """Why a job came to nothing; the value is its name in `status` and in netcheck."""

    NOT_INSTALLED = "not-installed"  # this system has no miniupnpc
    NO_ROUTER = "no-router"  # nobody answers
    NOT_THE_GATEWAY = "not-the-gateway"  # somebody else answers
    PORT_TAKEN = "port-taken"  # by another device
    REFUSED = "refused"  # or an answer that makes no sense


class Job:
    """To be done in a thread, because it blocks: with the router `gateway`, from our address `own`."""

    __slots__ = ("gateway", "outside_port", "own", "port", "uplink", "want")

    def __init__(self, want: Want, target: Target, outside_port: int = 0) -> None:
        self.want = want
        self.uplink, self.gateway, self.own, self.port = target
        self.outside_port = outside_port


class Done:
    """A job that was done. `address` is the router's outside address (4 B)."""

    __slots__ = ("address",)

    def __init__(self, address: bytes) -> None:
        self.address = address


Outcome = Done | UpnpFailure


class _Uplink:
    __slots__ = ("backoff", "deadline", "ends_at", "mapped", "target", "tries", "wish")

    def __init__(self, now: float, target: Target, jitter: Callable[[], float]) -> None:
        self.target = target
        self.backoff = Backoff(jitter, WAIT_MIN_S, WAIT_MAX_S)
        self.deadline = now
        self.tries = 0
        self.wish = target[3]
        self.mapped: UdpAddress | None = None
        self.ends_at = 0.0


class UpnpPlan:
    """Drive it: `want` with all targets there are; whenever no job runs take the `next_job`, do it, and say how it
    ended by `finished`; `handle_timeout` at `poll_timeout()`. `close` at the end, and do the jobs that are left.

    `available` is False once it is known that this system has nothing to speak UPnP with.
    """

    __slots__ = ("_closings", "_jitter", "_running", "_uplinks", "available", "failure")

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._uplinks: dict[str, _Uplink] = {}
        self._closings: list[Job] = []
        self._running: Job | None = None
        self.available = True
        self.failure: UpnpFailure | None = None  # of the last job, None when it was done

    def want(self, now: float, targets: list[Target]) -> None:
        """All uplinks that are to have a port. Who is there already keeps its state, who is not there any more goes."""
        wanted = {target[0]: target for target in targets}
        for name in [name for name, uplink in self._uplinks.items() if wanted.get(name) != uplink.target]:
            self._release(self._uplinks.pop(name))
        for name, target in wanted.items():
            if name not in self._uplinks:
                self._uplinks[name] = _Uplink(now, target, self._jitter)

    def close(self, now: float) -> None:
        """Nothing is wanted any more."""
        self.want(now, [])

    def next_job(self, now: float) -> Job | None:
        """What to do now, None when nothing is due or a job runs."""
        if self._running is not None or not self.available:
            return None
        if self._closings:
            self._running = self._closings.pop(0)
            return self._running
        for uplink in self._uplinks.values():
            if now >= uplink.deadline:
                self._running = Job(Want.OPEN, uplink.target, uplink.wish)
                return self._running
        return None

    def finished(self, now: float, outcome: Outcome) -> None:
        """The job that was taken has ended."""
        job, self._running = self._running, None
        if job is None:
            raise LocalProtocolError("upnp: no job was under way")
        self.failure = outcome if isinstance(outcome, UpnpFailure) else None
        if outcome is UpnpFailure.NOT_INSTALLED:
            self.available = False
            self._closings.clear()
        if job.want is not Want.OPEN:
            return
        uplink = self._uplinks.get(job.uplink)
        if uplink is None or uplink.target != (job.uplink, job.gateway, job.own, job.port):
            if isinstance(outcome, Done):  # nobody wants it any more
                self._close_later(job)
        elif isinstance(outcome, Done) and is_usable_outside(outcome.address):
            uplink.mapped = (outcome.address, job.outside_port)
            uplink.ends_at = now + LEASE_S
            uplink.deadline = now + LEASE_S * (0.5 + self._jitter() / 8)
            uplink.tries = 0
            uplink.backoff.reset()
        elif outcome is UpnpFailure.PORT_TAKEN and uplink.tries + 1 < PORT_TRIES_MAX:
            uplink.mapped = None
            uplink.tries += 1
            uplink.wish = _PORT_FIRST + int(self._jitter() * (_PORT_LAST + 1 - _PORT_FIRST))
        else:
            uplink.tries = 0
            uplink.deadline = now + uplink.backoff.wait_s()

    def handle_timeout(self, now: float) -> None:
        for uplink in self._uplinks.values():
            if uplink.mapped is not None and now >= uplink.ends_at:
                uplink.mapped = None

    def poll_timeout(self) -> float | None:
        """When a lease ends or the next job is due; a job under way has no time of its own."""
        due = [uplink.ends_at for uplink in self._uplinks.values() if uplink.mapped is not None]
        if self._running is None and self.available:
            due += [uplink.deadline for uplink in self._uplinks.values()]
        return min(due, default=None)

    def mappings(self) -> list[tuple[str, UdpAddress]]:
        """All that hold, with their uplinks."""
        return [(name, uplink.mapped) for name, uplink in self._uplinks.items() if uplink.mapped is not None]

    def _release(self, uplink: _Uplink) -> None:
        if uplink.mapped is not None:
            self._close_later(Job(Want.CLOSE, uplink.target, uplink.mapped[1]))

    def _close_later(self, job: Job) -> None:
        """Full means that the oldest stays open: its lease ends all the same."""
        self._closings.append(Job(Want.CLOSE, (job.uplink, job.gateway, job.own, job.port), job.outside_port))
        del self._closings[:-CLOSINGS_MAX]
