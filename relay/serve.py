"""Runs a relay: sockets, clock and signals around the core."""

from __future__ import annotations

import logging
import os
import random
import resource
import select
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack

from edgeagent.crypto import load as load_crypto
from relay.config import Settings
from relay.connection import Call, Listener, server_context
from relay.core.doorway import Doorway
from relay.core.http import Site
from relay.core.metrics import render
from relay.core.relay import RelayCore
from relay.server import StreamServer
from relay.udp import RelayUdp

log = logging.getLogger("edgerelay")

EVENTS_MAX = 256  # of one wake-up
WALL_CHECK_S = 30.0
_IN, _OUT = select.EPOLLIN, select.EPOLLOUT
_DESCRIPTORS_SPARE = 64
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Ports:
    """Where it listens, once it does; 0 for what it does not."""

    __slots__ = ("http", "metrics", "tls", "udp")

    def __init__(self, tls: int, udp: int, http: int, metrics: int) -> None:
        self.tls = tls
        self.udp = udp
        self.http = http
        self.metrics = metrics


class Relay:
    """`open`, then `run` until it has drained; `stop` (what SIGTERM does) begins that."""

    def __init__(self, settings: Settings, version: str) -> None:
        self._settings = settings
        self._version = version
        self._began = time.monotonic()
        self._stack = ExitStack()
        self._stopping = False
        self._reloading = False

    def open(self) -> Ports:
        """Raises OSError and ssl.SSLError, and then nothing stays open."""
        with ExitStack() as self._stack:
            ports = self._open()
            self._stack = self._stack.pop_all()
        return ports

    def _open(self) -> Ports:
        settings = self._settings
        now = time.monotonic()
        _raise_descriptor_limit(settings.limits.members + settings.limits.doorway + _DESCRIPTORS_SPARE)
        self._epoll = select.epoll()
        self._stack.callback(self._epoll.close)
        self._udp = RelayUdp()
        self._stack.callback(self._udp.close)
        self._udp.open(settings.udp.host, settings.udp.port, settings.second_port)
        crypto = load_crypto()
        self._core = RelayCore(
            now,
            time.time(),
            crypto=crypto,
            entropy=os.urandom,
            relay=settings.id,
            region=settings.region,
            private=settings.private,
            networks=settings.network_keys,
            siblings={sibling.key: sibling.id for sibling in settings.siblings},
            limits=settings.limits,
            network_rate=settings.network_rate,
            member_rates=settings.member_rates,
            total_bytes_per_s=settings.total_bytes_per_s,
            ports=(self._udp.port, settings.second_port),
        )
        self._tls = server_context(settings.cert, settings.key)
        calls = [
            Call(sibling.id, sibling.address.host, sibling.address.port, sibling.key)
            for sibling in settings.siblings
            if settings.id < sibling.id  # one of two relays calls the other
        ]
        self._server = StreamServer(
            self._core,
            Doorway(settings.limits, self._core.shared.drops),
            Site(crypto, settings.metrics_token, self._metrics),
            self._epoll,
            self._tls,
            calls,
            random.random,
        )
        self._stack.callback(self._server.close)
        for fd in self._udp.fds:
            self._epoll.register(fd, _IN)
        ports = [0, 0, 0]
        listeners = (
            (Listener.TLS, settings.listen),
            (Listener.PLAIN, settings.http),
            (Listener.METRICS, settings.metrics),
        )
        for i, (listener, address) in enumerate(listeners):
            if address is not None:
                ports[i] = self._server.listen(listener, address.host, address.port)
        return Ports(ports[0], self._udp.port, ports[1], ports[2])

    def stop(self) -> None:
        """Drain and end; may be called from a signal handler."""
        self._stopping = True

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until drained. Handles SIGTERM and SIGINT (drain; the second: at once) and SIGHUP (certificate)."""
        with self._stack:
            wake_in, wake_out = socket.socketpair()
            self._stack.callback(wake_in.close)
            self._stack.callback(wake_out.close)
            wake_in.setblocking(False)
            wake_out.setblocking(False)
            self._wake_fd = wake_in.fileno()
            self._wake = wake_in
            self._epoll.register(self._wake_fd, _IN)
            before = [
                signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
            ]
            before_fd = signal.set_wakeup_fd(wake_out.fileno(), warn_on_full_buffer=False)
            try:
                ready()
                self._loop()
            finally:
                signal.set_wakeup_fd(before_fd)
                for number, handler in zip(_SIGNALS, before, strict=True):
                    signal.signal(number, handler)

    def _on_signal(self, number: int, frame: object) -> None:
        if number == signal.SIGHUP:
            self._reloading = True
        elif self._stopping:
            raise KeyboardInterrupt
        else:
            self._stopping = True

    def _loop(self) -> None:
        core, server, udp = self._core, self._server, self._udp
        udp_fds, second_fds = frozenset(udp.fds), udp.second_fds
        blocked: set[int] = set()
        wall_at = time.monotonic() + WALL_CHECK_S
        while not core.drained:
            now = time.monotonic()
            due = min(core.poll_timeout(), wall_at)
            server_due = server.poll_timeout()
            if server_due is not None:
                due = min(due, server_due)
            events = self._epoll.poll(max(0.0, due - now), EVENTS_MAX)
            now = time.monotonic()
            for fd, mask in events:
                if fd in udp_fds:
                    if mask & _OUT:
                        udp.resume()
                    if mask & _IN:
                        trains = udp.receive(fd)
                        if fd in second_fds:
                            for train in trains:
                                core.handle_stun(now, train)
                        else:
                            core.handle_trains(now, trains)
                        udp.send(core.drain_trains())
                elif fd == self._wake_fd:
                    self._on_wake(now)
                else:
                    server.ready(now, fd, mask)
            if now >= core.poll_timeout():
                core.handle_timeout(now)
            if server_due is not None and now >= server_due:
                server.handle_timeout(now)
            if now >= wall_at:
                wall_at = now + WALL_CHECK_S
                core.set_wall(now, time.time())
            server.flush(now)
            udp.send(core.drain_trains())
            if blocked != udp.blocked_fds:
                for fd in udp_fds:
                    self._epoll.modify(fd, _IN | _OUT if fd in udp.blocked_fds else _IN)
                blocked = set(udp.blocked_fds)
            for happening, detail in core.drain_happenings():
                log.info("%s: %s", happening.value, detail)

    def _on_wake(self, now: float) -> None:
        while True:
            try:
                if not self._wake.recv(64):
                    break
            except BlockingIOError:
                break
        if self._reloading:
            self._reloading = False
            try:
                self._tls.load_cert_chain(self._settings.cert, self._settings.key)
                log.info("certificate: read again")
            except OSError as error:
                log.error("certificate: %s. The old one stays in use", error)
        if self._stopping:
            self._server.stop_listening()
            self._core.begin_drain(now, self._settings.drain_s)

    def _metrics(self) -> str:
        return render(self._core, uptime_s=time.monotonic() - self._began, version=self._version)


def _raise_descriptor_limit(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft < wanted:
        log.warning("at most %d files may be open, %d are needed for all members (ulimit -n)", soft, wanted)
