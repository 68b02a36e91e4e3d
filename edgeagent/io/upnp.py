"""UPnP IGD by the package `miniupnpc`, where it is installed. It blocks, so jobs run in a thread, one at a time."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from edgeagent.proto.portmap_upnp import LEASE_S, Done, Outcome, UpnpFailure, Want

if TYPE_CHECKING:
    from edgeagent.proto.portmap_upnp import Job

DISCOVER_MS = 1_000  # how long routers are waited for
_DESCRIPTION = "edgeagent"
# Names that miniupnpc has for UPnP's errors 718, 729 and 725
_TAKEN = ("ConflictInMappingEntry", "ConflictWithOtherMechanisms")
_ONLY_PERMANENT = "OnlyPermanentLeasesSupported"


class UpnpWorker:
    """`start` a job; when `wake` becomes readable, `result()` is what came of it. No other job before that.

    The thread ends on its own, in seconds: discovery has its time, and miniupnpc bounds each of its few requests.
    """

    def __init__(self) -> None:
        self.wake, self._signal = socket.socketpair()
        for end in (self.wake, self._signal):
            end.setblocking(False)
        self._thread: threading.Thread | None = None
        self._outcome: Outcome = UpnpFailure.REFUSED
        self._routers: dict[tuple[bytes, bytes], Any] = {}  # (gateway, own address) → what discovery found

    def start(self, job: Job) -> None:
        self._thread = threading.Thread(target=self._run, args=(job,), name="upnp", daemon=True)
        self._thread.start()

    def result(self) -> Outcome | None:
        """None while the job is not done."""
        try:
            self.wake.recv(1)
        except BlockingIOError:
            return None
        self._thread = None
        return self._outcome

    def wait(self, timeout_s: float) -> bool:
        """For the end, where nothing else is to be done: whether the job was done in time."""
        if self._thread is not None:
            self._thread.join(timeout_s)
            return not self._thread.is_alive()
        return True

    def close(self) -> None:
        """A job that still runs is left to itself."""
        self.wake.close()
        self._signal.close()

    def _run(self, job: Job) -> None:
        self._outcome = self._do(job)
        with suppress(OSError):  # closed meanwhile
            self._signal.send(b"\0")

    def _do(self, job: Job) -> Outcome:
        try:
            import miniupnpc
        except ImportError:
            return UpnpFailure.NOT_INSTALLED
        at = (job.gateway, job.own)
        known = self._routers.pop(at, None)
        if known is not None:
            try:
                return self._ask(at, known, job)
            except Exception:  # noqa: BLE001, S110  it may have started anew, at another port: look again
                pass
        try:
            router = miniupnpc.UPnP(socket.inet_ntoa(job.own), None, DISCOVER_MS, 0)
            router.discover()
            control = str(router.selectigd())
        except Exception:  # noqa: BLE001  miniupnpc raises nothing more special
            return UpnpFailure.NO_ROUTER
        if control.partition("://")[2].partition("/")[0].partition(":")[0] != socket.inet_ntoa(job.gateway):
            return UpnpFailure.NOT_THE_GATEWAY
        try:
            return self._ask(at, router, job)
        except Exception:  # noqa: BLE001
            return UpnpFailure.REFUSED

    def _ask(self, at: tuple[bytes, bytes], router: Any, job: Job) -> Outcome:
        """Raises Exception where the router does not answer, or refuses for a reason that another try may mend."""
        address = socket.inet_aton(router.externalipaddress())
        self._routers[at] = router
        if job.want is Want.CLOSE:
            router.deleteportmapping(job.outside_port, "UDP")
        elif job.want is Want.OPEN:
            try:
                _open(router, job)
            except Exception as error:
                if str(error) in _TAKEN:
                    return UpnpFailure.PORT_TAKEN
                raise
        return Done(address)


def _open(router: Any, job: Job) -> None:
    lease_s = LEASE_S
    wish = [job.outside_port, "UDP", socket.inet_ntoa(job.own), job.port, _DESCRIPTION, ""]
    try:
        router.addportmapping(*wish, lease_s)
    except Exception as error:
        if str(error) != _ONLY_PERMANENT:
            raise
        router.addportmapping(*wish, 0)
