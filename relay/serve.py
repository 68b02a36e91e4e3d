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
from typing import Any

from edgeagent.crypto import load as load_crypto
from edgeagent.io.keystore import StateError
from edgeagent.proto.names import is_host_port
from edgeagent.proto.relay_frames import RelayError
from relay.config import ConfigError, Settings
from relay.connection import Call, Listener, Place, certificate_pin, server_context
from relay.core.doorway import Doorway
from relay.core.http import Site
from relay.core.lobby import REPLACED_MAX
from relay.core.metrics import render
from relay.core.relay import RelayCore
from relay.hub_session import Leave, Revoke, Serve
from relay.neighbours import Neighbourhood
from relay.registrar import Order, Registrar
from relay.server import StreamServer
from relay.state import StateUnusable, certificate, make_directory, read_tokens
from relay.udp import RelayUdp

log = logging.getLogger("edgerelay")

EVENTS_MAX = 256  # of one wake-up
WALL_CHECK_S = 30.0
COUNT_S = 5.0  # between two counts of members for hubs
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
        """Raises ConfigError, OSError and ssl.SSLError, and then nothing stays open."""
        with ExitStack() as self._stack:
            ports = self._open()
            self._stack = self._stack.pop_all()
        return ports

    def _open(self) -> Ports:
        settings = self._settings
        now = time.monotonic()
        self._cert, self._key = self._certificate()
        limits = settings.limits
        _raise_descriptor_limit(limits.members + REPLACED_MAX + limits.doorway + _DESCRIPTORS_SPARE)
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
        self._tls = server_context(self._cert, self._key)
        own_key = self._core.shared.admission.public
        self._given_calls = [
            Call(sibling.key, [Place(sibling.id, sibling.address.host, sibling.address.port)])
            for sibling in settings.siblings
            if own_key < sibling.key  # one of two relays calls the other
        ]
        self._server = StreamServer(
            self._core,
            Doorway(settings.limits, self._core.shared.drops),
            Site(crypto, settings.metrics_token, self._metrics),
            self._epoll,
            self._tls,
            self._given_calls,
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
        self._hosts = _public_hosts(settings, ports[0])
        self._registrar = self._open_registrar(own_key)
        if self._registrar is not None:
            while orders := self._registrar.take():
                self._obey(now, orders)
        return Ports(ports[0], self._udp.port, ports[1], ports[2])

    def _certificate(self) -> tuple[str, str]:
        """Files of the certificate and of its key."""
        settings = self._settings
        if settings.cert is not None and settings.key is not None:
            return settings.cert, settings.key
        names = [host.rpartition(":")[0].strip("[]") for host in _public_hosts(settings, 443)]
        try:
            return certificate(settings.state_dir, names or [settings.id])
        except StateUnusable as error:
            raise ConfigError(str(error)) from None

    def _open_registrar(self, own_key: bytes) -> Registrar | None:
        """For the hubs of the settings, and those that took this relay in earlier; None when there are none."""
        settings = self._settings
        crypto = load_crypto()  # a provider is for one thread
        try:
            tokens = read_tokens(settings.join_files, settings.saved_networks, crypto)
            networks = list(dict.fromkeys((*settings.saved_networks, *tokens)))
            if not networks:
                return None
            make_directory(settings.state_dir)
            registrar = Registrar(
                directory=settings.state_dir,
                networks=networks,
                tokens=tokens,
                crypto=crypto,
                host=settings.id,
                relay_key=own_key,
                version=self._version,
            )
            self._stack.callback(registrar.close)
            registrar.open()
        except (StateUnusable, StateError) as error:
            raise ConfigError(str(error)) from None
        self._epoll.register(registrar.fileno(), _IN)
        return registrar

    def _word(self) -> dict[str, Any]:
        """What hubs tell devices of this relay (RELAY_FIELDS without the region)."""
        return {
            "k": self._core.shared.admission.public,
            "h": self._hosts,
            "u": self._udp.port,
            "s": self._settings.second_port or 0,
            "pin": certificate_pin(self._cert),
        }

    def _obey(self, now: float, orders: list[Order]) -> None:
        """Do what hubs have said."""
        for order in orders:
            if isinstance(order, Serve):
                self._core.serve(now, order.network_key, order.relay, order.region)
            elif isinstance(order, Leave):
                self._core.leave(order.network)
            elif isinstance(order, Revoke):
                try:
                    self._core.revoke(order.data)
                except RelayError as error:
                    log.warning("a removal is not taken: %s", error)
            else:
                self._take_neighbourhood(order)

    def _take_neighbourhood(self, found: Neighbourhood) -> None:
        counting = self._core.set_siblings(found.neighbours)
        given = {call.key for call in self._given_calls}
        learned = [call for call in found.calls if call.key in counting and call.key not in given]
        self._server.set_calls([*self._given_calls, *learned])

    def stop(self) -> None:
        """Drain and end; may be called from a signal handler."""
        self._stopping = True

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until drained. Handles SIGTERM and SIGINT (drain; the second: at once) and SIGHUP (certificate).

        Raises RegistrarDied.
        """
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
            registrar = self._registrar
            try:
                if registrar is not None:
                    registrar.tell(self._word())
                    registrar.start()
                ready()
                self._loop()
            finally:
                if registrar is not None:
                    registrar.stop()
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
        core, server, udp, registrar = self._core, self._server, self._udp, self._registrar
        hubs_fd = registrar.fileno() if registrar is not None else -1
        count_at = time.monotonic()
        udp_fds, second_fds = frozenset(udp.fds), udp.second_fds
        blocked: set[int] = set()
        wall_at = time.monotonic() + WALL_CHECK_S
        while not core.drained:
            now = time.monotonic()
            due = min(core.poll_timeout(), wall_at)
            if registrar is not None:
                due = min(due, count_at)
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
                        try:
                            if fd in second_fds:
                                for train in trains:
                                    core.handle_stun(now, train)
                            else:
                                core.handle_trains(now, trains)
                        except Exception:  # noqa: BLE001  a bug that a datagram finds is not to end the relay
                            server.count_fault(now, "datagrams that came together are dropped")
                        udp.send(core.drain_trains())
                elif fd == self._wake_fd:
                    self._on_wake(now)
                elif fd == hubs_fd and registrar is not None:
                    self._obey(now, registrar.take())
                else:
                    server.ready(now, fd, mask)
            if now >= core.poll_timeout():
                core.handle_timeout(now)
            if server_due is not None and now >= server_due:
                server.handle_timeout(now)
            if now >= wall_at:
                wall_at = now + WALL_CHECK_S
                core.set_wall(now, time.time())
            if registrar is not None and now >= count_at:
                count_at = now + COUNT_S
                registrar.check()
                registrar.count({network.id: network.members for network in core.shared.roster.networks.values()})
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
                self._tls.load_cert_chain(self._cert, self._key)
                log.info("certificate: read again")
                if self._registrar is not None:
                    self._registrar.tell(self._word())
            except (OSError, ValueError) as error:
                log.error("certificate: %s. The old one stays in use", error)
        if self._stopping:
            self._server.stop_listening()
            self._core.begin_drain(now, self._settings.drain_s)

    def _metrics(self) -> str:
        registrations = self._registrar.states() if self._registrar is not None else []
        return render(
            self._core,
            uptime_s=time.monotonic() - self._began,
            version=self._version,
            registrations=[(at.network, at.relay, at.region, at.state, at.drops) for at in registrations],
        )


def _public_hosts(settings: Settings, port: int) -> list[str]:
    """ "host:port" of the TLS port as devices reach it."""
    wanted = settings.public
    if not wanted and settings.listen.host not in ("", "0.0.0.0", "::"):
        wanted = [settings.listen.host]
    hosts = []
    for text in wanted:
        for candidate in (text, f"{text}:{port}", f"[{text}]:{port}"):
            if is_host_port(candidate):
                hosts.append(candidate)
                break
    return hosts


def _raise_descriptor_limit(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft < wanted:
        log.warning("at most %d files may be open, %d are needed for all members (ulimit -n)", soft, wanted)
