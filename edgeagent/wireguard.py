"""`edge-wireguard`: a WireGuard interface in userspace, called and configured exactly like wireguard-go.

It creates the TUN interface and the socket at which `wg` configures it, goes into the background and ends when the
interface or the socket is removed. wg-quick runs it as WG_QUICK_USERSPACE_IMPLEMENTATION=edge-wireguard.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from selectors import EVENT_READ, DefaultSelector
from time import monotonic, time
from typing import TYPE_CHECKING

from edgeagent import crypto
from edgeagent.engine import choice
from edgeagent.engine.start import start
from edgeagent.io import uapi_socket
from edgeagent.io.netlink import AddressChanged, EventsLost, LinkChanged, Netlink, NetlinkMonitor
from edgeagent.io.tun import Tun, TunGone
from edgeagent.io.udp import Udp
from edgeagent.proto.constants import MTU_DEFAULT, MTU_MAX
from edgeagent.proto.device import Device
from edgeagent.proto.limits import Limits
from edgeagent.proto.tai64n import Tai64nClock
from edgeagent.surroundings import NewSources, forwards
from edgeagent.version import VERSION

if TYPE_CHECKING:
    from edgeagent.io.rtnetlink import Link
    from edgeagent.proto.crypto import Crypto
    from edgeagent.proto.endpoint import Endpoint, Transmit
    from edgeagent.proto.peer import Peer
    from edgeagent.proto.records import UdpAddress

TICK_S = 1.0  # how soon the socket's removal is noticed; at most how often source addresses are checked
PEERS_MAX = 1 << 16
ALLOWED_IPS_MAX = 1 << 20
FAST_PEERS, FAST_FLOWS = 1024, 1 << 16  # that the fast engine carries; more go through Python
_EXIT_OK, _EXIT_FAILED, _EXIT_USAGE = 0, 1, 2
_LEVELS = {"verbose": logging.DEBUG, "debug": logging.DEBUG, "silent": logging.CRITICAL + 1}

log = logging.getLogger("edge-wireguard")


def main() -> int:
    """The command: 0 once the interface is ready (in the foreground: gone again), 1 if it cannot be, 2 for usage."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        print(f"edge-wireguard {VERSION}: WireGuard in userspace, configured by wg(8)")
        try:
            print("engine: {} ({})".format(*choice.choose()))
        except choice.EngineUnavailable as error:
            print(f"engine: {error}")
        return _EXIT_OK
    foreground = os.environ.get("WG_PROCESS_FOREGROUND") == "1"
    if arguments[:1] in (["-f"], ["--foreground"]):
        foreground = True
        arguments = arguments[1:]
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("Usage: edge-wireguard [-f|--foreground] INTERFACE-NAME", file=sys.stderr)
        return _EXIT_USAGE
    return _start(arguments[0], foreground)


def _start(name: str, foreground: bool) -> int:
    _log_as(name)
    try:
        provider = crypto.load()
        tun = Tun(name, MTU_DEFAULT)
    except (crypto.CryptoUnavailable, OSError) as error:
        log.error("Failed to create TUN device: %s", error)
        return _EXIT_FAILED
    _log_as(tun.name)
    try:
        listener = uapi_socket.listen(tun.name)
    except OSError as error:
        log.error("UAPI listen error: %s", error)
        tun.close()
        return _EXIT_FAILED
    if foreground:
        return _run(tun, listener, provider, None)
    ready, report = os.pipe()
    if os.fork():
        os.close(report)
        started = os.read(ready, 1) == b"1"
        os._exit(_EXIT_OK if started else _EXIT_FAILED)  # what is open is the child's
    os.close(ready)
    os.setsid()
    return _run(tun, listener, provider, report)


def _run(tun: Tun, listener: socket.socket, provider: Crypto, report: int | None) -> int:
    try:
        interface = Interface(tun, listener, provider)
    except choice.EngineUnavailable as error:
        log.error("Failed to start: %s", error)
        return _EXIT_FAILED
    try:
        if report is not None:
            _detach_output()
            os.write(report, b"1")
            os.close(report)
        interface.run()
    except TunGone:
        log.debug("Interface is gone")
    finally:
        interface.close()
        log.debug("Shutting down")
    return _EXIT_OK


def _log_as(interface: str) -> None:
    form = logging.Formatter(f"%(levelname)s: ({interface}) %(asctime)s %(message)s", "%Y/%m/%d %H:%M:%S")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(form)
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(_LEVELS.get(os.environ.get("LOG_LEVEL", ""), logging.ERROR))


def _detach_output() -> None:
    """In the background only who set LOG_LEVEL sees messages."""
    keep = os.environ.get("LOG_LEVEL", "silent") != "silent"
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0,) if keep else (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    os.chdir("/")


class Interface:
    """The interface's life: wires device, engine and sockets, and runs them. It is the Target of the userspace API."""

    read_only = False

    def __init__(self, tun: Tun, listener: socket.socket, provider: Crypto) -> None:
        now = monotonic()
        self._tun = tun
        self._wall = Tai64nClock(now, time())
        limits = Limits(peers=PEERS_MAX, allowed_ips=ALLOWED_IPS_MAX)
        self.device = Device(now, crypto=provider, entropy=os.urandom, jitter=_jitter, tai64n=self._wall, limits=limits)
        self.listen_port = 0
        self.fwmark = 0
        self.is_up = False
        self._wants_up = False
        self._bind_failed = False
        self._sources = NewSources()
        self._sources_stale = False
        self._tick_at = now
        self._stopping = False
        self._selector = DefaultSelector()
        self._udp = Udp(mtu_by_kernel=True)  # as other implementations leave it
        self._engine = start(
            _Flow(self.device), tun, self._udp, self._selector, log, slots=FAST_PEERS, flows=FAST_FLOWS
        )
        self._netlink = Netlink()
        self._monitor = NetlinkMonitor()
        self._selector.register(self._monitor.fd, EVENT_READ, self._network_changed)
        self._uapi = uapi_socket.UapiSocket(listener, self, self._selector)
        self._look_anew(now)
        self._signals, self._wakeup = socket.socketpair()
        for end in (self._signals, self._wakeup):
            end.setblocking(False)
        self._selector.register(self._signals, EVENT_READ, self._signalled)
        signal.set_wakeup_fd(self._wakeup.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)

    def run(self) -> None:
        """Until a signal, or until the socket is removed. Raises TunGone when the interface is."""
        log.debug("Device started")
        gc.freeze()
        device, engine, select = self.device, self._engine, self._selector.select
        while not self._stopping:
            deadline = device.poll_timeout()
            times = (self._tick_at, deadline, engine.poll_timeout())
            wake_at = min(at for at in times if at is not None)
            for key, _ in select(max(0.0, wake_at - monotonic())):
                key.data(monotonic(), key.fd)
            now = monotonic()
            if deadline is not None and deadline <= now:
                device.handle_timeout(now)
            if self._tick_at <= now:
                self._tick(now)
            engine.flush(now)
            for event in device.drain_events():
                log.debug("%r - %s", getattr(event, "peer", None), type(event).__name__)

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        self._uapi.close()
        self._engine.close()
        self._monitor.close()
        self._netlink.close()
        self._signals.close()
        self._wakeup.close()
        self._selector.close()
        self.device.remove_all_peers(monotonic())
        self._tun.close()

    # Target of the userspace API

    def set_listen_port(self, now: float, port: int) -> int:
        if self.is_up and port and port == self._udp.port:
            return 0
        if not self.is_up:
            self.listen_port = port
            return 0
        try:
            self.listen_port = self._engine.bind(port)
        except OSError as error:
            log.error("Unable to update bind: %s", error)
            self.is_up = False
            self._bring_up(now)  # at the port that it had
            return error.errno or errno.EADDRINUSE
        self._unpin_sources(now)
        return 0

    def set_fwmark(self, now: float, mark: int) -> int:
        try:
            self._udp.set_mark(mark)
        except OSError as error:
            return error.errno or errno.EPERM
        self.fwmark = mark
        self._unpin_sources(now)
        return 0

    def refresh(self, now: float) -> None:
        self._engine.sync(now)

    def scope_index(self, name: str) -> int:
        try:
            return socket.if_nametoindex(name)
        except OSError:
            return 0

    # Changes around us

    def _tick(self, now: float) -> None:
        self._tick_at = now + TICK_S
        self._uapi.on_timeout(now)
        self._wall.set_wall(now, time())
        if not self._uapi.is_listed():
            log.debug("UAPI socket was removed")
            self._stopping = True
        if self._wants_up and not self.is_up:
            self._bring_up(now)
        self._engine.is_router = forwards(self._tun.name)
        if self._sources_stale:
            self._engine.sync(now)  # what was heard before must not be taken for news after it
        self._sources.check(now, self.device, self._netlink, self.fwmark, anew=self._sources_stale)
        self._sources_stale = False

    def _bring_up(self, now: float) -> None:
        try:
            self.listen_port = self._engine.bind(self.listen_port)
        except OSError as error:
            if not self._bind_failed:
                log.error("Unable to update bind: %s", error)
            self._bind_failed = True  # tried again at each tick, said once
            return
        log.debug("Interface is up, port %d", self.listen_port)
        self._bind_failed = False
        self.is_up = True
        for peer in self.device.peers.values():
            if peer.persistent_keepalive_s:
                peer.set_persistent_keepalive(now, peer.persistent_keepalive_s)
                peer.send_keepalive(now)
                self.device.touched(peer)

    def _take_down(self, now: float) -> None:
        log.debug("Interface is down")
        self.is_up = False
        self._engine.unbind()
        for peer in self.device.peers.values():
            peer.expire_keys(now)
            peer.stop()

    def _network_changed(self, now: float, _fd: int) -> None:
        for change in self._monitor.drain():
            if isinstance(change, LinkChanged) and change.link.index == self._tun.index:
                # Removed, and the TUN still there: moved to a namespace out of sight. Be up, as wireguard-go is.
                self._link_changed(now, change.link, change.removed or change.link.is_up)
            elif isinstance(change, EventsLost):
                self._look_anew(now)
            elif not isinstance(change, AddressChanged) or change.address.index != self._tun.index:
                self._sources_stale = True

    def _look_anew(self, now: float) -> None:
        self._sources_stale = True
        with suppress(OSError):
            link = self._netlink.link(self._tun.current_name())
            self._link_changed(now, link, link.is_up)

    def _link_changed(self, now: float, link: Link, up: bool) -> None:
        self.device.mtu = min(link.mtu or self.device.mtu, MTU_MAX)
        self._wants_up = up
        if up and not self.is_up:
            self._bring_up(now)
        elif self.is_up and not up:
            self._take_down(now)

    def _unpin_sources(self, now: float) -> None:
        for peer in self.device.peers.values():
            if peer.endpoint is not None and peer.endpoint.local is not None:
                peer.set_endpoint(peer.endpoint.unpinned())

    def _signalled(self, _now: float, _fd: int) -> None:
        with suppress(BlockingIOError):
            self._signals.recv(64)
        self._stopping = True


class _Flow:
    """The device as an engine drives it: what has nowhere to go is refused at once. No relays here."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.handle_datagrams = device.handle_datagrams
        self.handle_opened = device.handle_opened
        self.handle_traffic = device.handle_traffic
        self.transmit_failed = device.transmit_failed
        self.drain_transmits = device.drain_transmits
        self.drain_packets = device.drain_packets

    def handle_packets(self, now: float, packets: list[bytes]) -> None:
        for unsent in self.device.handle_packets(now, packets):
            self.device.refuse(unsent)

    def transmit_too_long(self, now: float, endpoint: Endpoint, datagram_bytes: int) -> None:
        """Counted by the port: paths and their MTU are the kernel's business here."""

    def carry_sealed(self, now: float, transmit: Transmit) -> None:
        """Nothing goes by another way than UDP."""

    def ways(self, peer: Peer) -> list[Endpoint]:
        return [] if peer.endpoint is None else [peer.endpoint]

    def quiet_s(self, peer: Peer) -> float | None:
        return None

    def relay_sessions(self) -> list[tuple[Endpoint, int]]:
        return []

    def relay_way(self, endpoint: Endpoint) -> tuple[Endpoint, int, int] | None:
        return None

    def relay_source(self, address: UdpAddress, session: int, channel: int) -> Endpoint | None:
        return None


def _jitter() -> float:
    return int.from_bytes(os.urandom(4), "big") / (1 << 32)


if __name__ == "__main__":
    sys.exit(main())
