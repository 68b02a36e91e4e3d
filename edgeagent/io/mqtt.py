"""One broker connection: TCP, perhaps a proxy, TLS with a pinned CA, MQTT 3.1.1 by paho, under the caller's selector.

paho's own `connect` blocks through name resolution, TCP and TLS, up to its timeout each; on this device the same thread
carries the tunnel. So the connection is made here, non-blocking and with a deadline at each stage, and paho is handed
the finished TLS socket. Only getaddrinfo cannot be made non-blocking: it runs in a thread, one at a time.
"""

from __future__ import annotations

import errno
import hashlib
import os
import selectors
import socket
import ssl
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Any

from edgeagent.io.pahoclient import SUCCESS, Login, PahoClient
from edgeagent.io.pinnedtls import LOOK_UP_TIMEOUT_S, LookUps, Trust, literal_family, presented_chain, wrap
from edgeagent.io.proxy import is_through
from edgeagent.proto.names import split_host_port
from edgeagent.proto.relay_http import HttpError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from selectors import BaseSelector

    from edgeagent.io.pinnedtls import Resolver
    from edgeagent.io.proxy import Proxy
    from edgeagent.proto.causes import Carried
    from edgeagent.proto.relay_http import ResponseReader

    Steer = Callable[[socket.socket, tuple[Any, ...]], None]

CONNECT_TIMEOUT_S = 5.0  # resolution where something else is left to be tried, TCP to one address, a proxy's answer
HANDSHAKE_TIMEOUT_S = 10.0  # TLS; 2.5 s of CPU on the slowest board
CONNACK_TIMEOUT_S = 10.0
HOSTS_MAX = 8
EVENTS_PER_TURN_MAX = 32  # then they are drained and the data path has its turn
READS_PER_TURN_MAX = 32


class Connected:
    """The broker accepted the login. `broker` is the "host:port" that did."""

    __slots__ = ("broker", "session_present")

    def __init__(self, session_present: bool, broker: str) -> None:
        self.session_present = session_present
        self.broker = broker


class CaSeen:
    """The pinned CA certificate (DER) came with the broker's chain; worth keeping."""

    __slots__ = ("ca",)

    def __init__(self, ca: bytes) -> None:
        self.ca = ca


class Received:
    __slots__ = ("payload", "retained", "topic")

    def __init__(self, topic: str, payload: bytes, retained: bool) -> None:
        self.topic = topic
        self.payload = payload
        self.retained = retained


class Closed:
    """No connection any more, or none of the brokers could be reached.

    `refused` is True when a broker answered and did not accept the login (CONNACK 4 or 5).
    """

    __slots__ = ("reason", "refused")

    def __init__(self, reason: str, refused: bool) -> None:
        self.reason = reason
        self.refused = refused


Event = Connected | CaSeen | Received | Closed


class _Stage(Enum):
    CLOSED = "closed"
    RESOLVING = "resolving"
    CONNECTING = "connecting"
    PROXY = "waiting for the proxy"
    LOOKING = "looking for the pinned CA"  # TLS without verification, nothing is sent on it
    HANDSHAKE = "TLS handshake"
    CONNACK = "waiting for the broker's answer"
    UP = "up"


class MqttLink:
    """At most one connection, to the first of the given brokers that answers, through `proxy` if there is one.

    Drive: `open`; its descriptor is registered in `selector` with `ready` as its data, to be called as
    `key.data(now, key.fd)`; call `on_timeout` at `poll_timeout()`. After any of these drain `events`.
    `steer`, if it is set, sees each socket with the address that it is about to be connected to. Whoever counts what
    connections take asks for `sockets`, and sets `on_closing` to hear of one before it is closed.
    """

    def __init__(self, selector: BaseSelector, proxy: Proxy | None = None) -> None:
        self._selector = selector
        self._proxy = proxy
        self._proxy_reader: ResponseReader | None = None
        self._registered: tuple[int, int] | None = None  # (descriptor, mask)
        self.events: deque[Event] = deque()
        self.unacknowledged = 0  # published on this connection and not yet known to be with the broker
        self.unheard = 0  # of the last one that was up: what it was when that ended
        self.on_closing: Callable[[socket.socket], None] | None = None
        self.steer: Steer | None = None
        self.told: Carried | None = None  # what is published for other causes than control, where there is any
        self._rx_bytes = self._tx_bytes = self._oversize = 0  # of connections that ended
        self._stage = _Stage.CLOSED
        self._deadline: float | None = None
        self._hosts: list[tuple[str, int]] = []
        self._next_host = 0
        self._tries_left = 0
        self._addresses: list[Any] = []
        self._sock: socket.socket | None = None
        self._mask = 0
        self._client: PahoClient | None = None
        self._login: Login | None = None
        self._trust: Trust | None = None
        self._reason = ""
        self._backlog = False
        self._look_ups = LookUps()
        self._resolver: Resolver | None = None

    @property
    def counters(self) -> dict[str, int]:
        """Bytes of MQTT both ways, without TLS, and packets that were too long, since the start."""
        client = self._client
        return {
            "rx_bytes": self._rx_bytes + (0 if client is None else client.rx_bytes),
            "tx_bytes": self._tx_bytes + (0 if client is None else client.tx_bytes),
            "oversize": self._oversize + (0 if client is None else client.oversize),
        }

    def sockets(self) -> list[socket.socket]:
        """Of the connection that is there or being made."""
        return [] if self._sock is None else [self._sock]

    @property
    def is_idle(self) -> bool:
        """No connection and none being made."""
        return self._stage is _Stage.CLOSED

    @property
    def is_up(self) -> bool:
        return self._stage is _Stage.UP

    @property
    def stage(self) -> str:
        """Where the connection stands, in words for `status`."""
        return self._stage.value

    @property
    def broker(self) -> str:
        """ "host:port" of the broker in use or being tried."""
        if not self._hosts:
            return ""
        host, port = self._hosts[self._next_host]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def open(self, now: float, hosts: Sequence[str], login: Login, trust: Trust) -> None:
        """Begin to connect; the outcome is an event. A connection that is there is dropped without a word."""
        self._drop()
        parsed = [split_host_port(text) for text in hosts[:HOSTS_MAX]]
        if parsed != self._hosts:
            self._hosts, self._next_host = parsed, 0
        self._login, self._trust = login, trust
        self._tries_left = len(parsed)
        self._reason = "no broker is known"
        self._try_host(now)
        self._watch()

    def close(self) -> None:
        """Say DISCONNECT if possible, so that the broker does not publish the Last Will, and drop the connection."""
        if self._client is not None and self._stage is _Stage.UP:
            self._client.on_disconnect = None
            self._client.disconnect()
            self._client.loop_write()
        self._drop()

    def drop(self) -> None:
        """Without a word: the broker publishes the Last Will."""
        self._drop()

    def keep_if_local(self, addresses: Sequence[bytes]) -> None:
        """Give up a connection whose own end is none of `addresses` (4 or 16 B): nothing comes back to it any more.

        TCP would find out in minutes; what is published meanwhile would be lost.
        """
        if self._sock is None:
            return
        try:
            host = self._sock.getsockname()[0]
            local = socket.inet_pton(self._sock.family, host)
        except OSError:
            return
        if any(local) and local not in addresses:
            self._closed(f"{self.broker}: this device no longer has the address {host}", refused=False)

    def poll_timeout(self) -> float | None:
        return 0.0 if self._backlog else self._deadline

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool) -> bool:
        """False when there is no connection or no room: the caller keeps the message or drops it."""
        client = self._client
        if client is None or self._stage is not _Stage.UP or (qos == 0 and client.want_write()):
            return False
        info = client.publish(topic, payload, qos=qos, retain=retain)
        self._watch()
        taken = bool(info.rc == SUCCESS)
        self.unacknowledged += taken
        return taken

    def subscribe(self, topics: Sequence[str], qos: int = 1) -> bool:
        """False when there is no connection. A broker that refuses one ends it: there would be silence else."""
        if not topics:
            return True
        if self._client is None or self._stage is not _Stage.UP:
            return False
        rc, _ = self._client.subscribe([(topic, qos) for topic in topics])
        self._watch()
        return rc == SUCCESS

    def unsubscribe(self, topics: Sequence[str]) -> bool:
        """False when there is no connection."""
        if not topics:
            return True
        if self._client is None or self._stage is not _Stage.UP:
            return False
        rc, _ = self._client.unsubscribe(list(topics))
        self._watch()
        return rc == SUCCESS

    def ready(self, now: float, _fd: int) -> None:
        """The descriptor can be read or written."""
        stage = self._stage
        if stage is _Stage.RESOLVING:
            self._resolved(now)
        elif stage is _Stage.CONNECTING:
            self._connected(now)
        elif stage is _Stage.PROXY:
            self._read_proxy(now)
        elif stage in (_Stage.LOOKING, _Stage.HANDSHAKE):
            self._shake(now)
        elif self._client is not None:
            if self._client.want_write():
                self._client.loop_write()
            self._read()
            self._plan_check(now)
        self._watch()

    def on_timeout(self, now: float) -> None:
        if self._backlog:
            self._read()
        if self._deadline is not None and now >= self._deadline:
            if self._stage is _Stage.RESOLVING:
                self._not_found(now, f"no answer from {self.broker} ({self._stage.value})")
            elif self._stage is not _Stage.UP:
                self._failed(now, f"no answer from {self.broker} ({self._stage.value})")
            elif self._client is not None and self._login is not None:
                self._client.loop_misc()
                self._plan_check(now)
        self._watch()

    def _plan_check(self, now: float) -> None:
        """While it is up, nothing wakes us but a ping that is due, or an answer that does not come."""
        if self._client is not None and self._stage is _Stage.UP:
            self._deadline = self._client.next_check(now)

    def _watch(self) -> None:
        """Register what the stage waits for. The descriptor changes with the stages, and so does the mask."""
        fd, mask = -1, self._mask
        if self._stage is _Stage.RESOLVING and self._resolver is not None:
            fd, mask = self._resolver.wake.fileno(), selectors.EVENT_READ
        elif self._sock is not None:
            fd = self._sock.fileno()
            if self._client is not None:
                # Nothing is read while something waits to be written: a broker that floods and never reads cannot
                # make our acknowledgements pile up.
                mask = selectors.EVENT_WRITE if self._client.want_write() else selectors.EVENT_READ
        wanted = (fd, mask) if fd >= 0 else None
        if wanted != self._registered:
            self._unwatch()
            if wanted is not None:
                self._selector.register(fd, mask, self.ready)
                self._registered = wanted

    def _unwatch(self) -> None:
        if self._registered is not None:
            self._selector.unregister(self._registered[0])
            self._registered = None

    # Finding a way to the broker

    def _try_host(self, now: float) -> None:
        if self._tries_left == 0:
            self._closed(self._reason, refused=False)
            return
        self._tries_left -= 1
        host, port = self._target
        family = literal_family(host)
        if family is not None:
            self._addresses = [(family, (host, port))]
            self._try_address(now)
            return
        self._stage = _Stage.RESOLVING
        try:
            self._resolver = self._look_ups.begin(now, host, port)
        except OSError as error:
            self._not_found(now, f"{host}: {error.strerror}")
            return
        more = self._tries_left or self._look_ups.known(host, port)
        self._deadline = now + (CONNECT_TIMEOUT_S if more else LOOK_UP_TIMEOUT_S)

    @property
    def _target(self) -> tuple[str, int]:
        """Host and port that TCP leads to."""
        return self._hosts[self._next_host] if self._proxy is None else (self._proxy.host, self._proxy.port)

    def _resolved(self, now: float) -> None:
        if self._resolver is None or not self._resolver.done:
            return
        self._unwatch()
        resolver, self._resolver = self._resolver, None
        self._addresses, error = self._look_ups.end(*self._target, resolver)
        if self._addresses:
            self._try_address(now)
        else:
            self._not_found(now, error)

    def _not_found(self, now: float, why: str) -> None:
        """Nobody says where the host is: it may still be where it was."""
        self._unwatch()
        self._give_up_look_up()
        self._addresses = self._look_ups.known(*self._target)
        if self._addresses:
            self._try_address(now)
        else:
            self._failed(now, why)

    def _give_up_look_up(self) -> None:
        resolver, self._resolver = self._resolver, None
        if resolver is not None:
            self._look_ups.give_up(*self._target, resolver)

    def _try_address(self, now: float) -> None:
        family, address = self._addresses[0]
        try:
            self._sock = sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.steer is not None:
                self.steer(sock, address)
            code = sock.connect_ex(address)
        except OSError as error:  # this kernel has no such family
            code = error.errno or errno.EIO
        if code not in (0, errno.EINPROGRESS):
            self._failed(now, f"{self.broker}: {os.strerror(code)}")
            return
        self._stage, self._mask = _Stage.CONNECTING, selectors.EVENT_WRITE
        self._deadline = now + CONNECT_TIMEOUT_S

    def _connected(self, now: float) -> None:
        assert self._sock is not None
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code != 0:
            self._failed(now, f"{self.broker}: {os.strerror(code)}")
        elif self._proxy is None:
            self._begin_tls(now)
        else:
            try:
                self._proxy_reader = self._proxy.ask(self._sock, *self._hosts[self._next_host])
            except OSError as error:
                self._failed(now, f"{self.broker}: proxy: {error.strerror}")
                return
            self._stage, self._mask = _Stage.PROXY, selectors.EVENT_READ
            self._deadline = now + CONNECT_TIMEOUT_S

    def _read_proxy(self, now: float) -> None:
        assert self._sock is not None and self._proxy_reader is not None
        try:
            through = is_through(self._sock, self._proxy_reader)
        except (OSError, HttpError) as error:
            self._failed(now, f"{self.broker}: {getattr(error, 'strerror', None) or error}")
            return
        if through:
            self._begin_tls(now)

    def _begin_tls(self, now: float) -> None:
        assert self._sock is not None and self._trust is not None
        host, _ = self._hosts[self._next_host]
        try:
            self._sock = wrap(self._sock, host, self._trust)
        except (OSError, ValueError) as error:  # reset meanwhile, or a host that is no DNS name
            self._failed(now, f"{self.broker}: {error}")
            return
        self._stage = _Stage.LOOKING if self._trust.ca is None else _Stage.HANDSHAKE
        self._deadline = now + HANDSHAKE_TIMEOUT_S
        self._shake(now)

    def _shake(self, now: float) -> None:
        tls = self._sock
        assert isinstance(tls, ssl.SSLSocket)
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            self._mask = selectors.EVENT_READ
        except ssl.SSLWantWriteError:
            self._mask = selectors.EVENT_WRITE
        except ssl.SSLCertVerificationError as error:
            self._failed(now, f"{self.broker}: certificate refused: {error.verify_message}")
        except OSError as error:
            self._failed(now, f"{self.broker}: TLS: {error.strerror or error}")
        else:
            if self._stage is _Stage.LOOKING:
                self._look_for_ca(now, tls)
            else:
                self._log_in(now, tls)

    def _look_for_ca(self, now: float, tls: ssl.SSLSocket) -> None:
        assert self._trust is not None
        for certificate in presented_chain(tls):
            if hashlib.sha256(certificate).digest() == self._trust.pin:
                self._trust.ca = certificate
                self.events.append(CaSeen(certificate))
                self._drop_socket()
                self._try_address(now)
                return
        self._failed(now, f"{self.broker}: its certificates do not come from this network's CA")

    # The MQTT session

    def _log_in(self, now: float, tls: ssl.SSLSocket) -> None:
        login = self._login
        assert login is not None
        client = PahoClient(tls, login, lambda: len(self.events) < EVENTS_PER_TURN_MAX)
        client.on_connect = self._on_connack
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_socket_close = self._on_socket_close
        self._client = client
        self._stage, self._deadline = _Stage.CONNACK, now + CONNACK_TIMEOUT_S
        host, port = self._hosts[self._next_host]
        client.connect(host, port, login.keepalive_s)

    def _read(self) -> None:
        for _ in range(READS_PER_TURN_MAX):
            client = self._client
            if client is None or client.want_write() or client.loop_read() != SUCCESS:
                self._backlog = False
                return
            # What OpenSSL has decrypted already, no selector reports.
            self._backlog = isinstance(self._sock, ssl.SSLSocket) and self._sock.pending() > 0
            if not self._backlog or len(self.events) >= EVENTS_PER_TURN_MAX:
                return

    def _on_connack(self, _client: Any, _data: Any, flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            refused = reason.value in (0x86, 0x87)  # MQTT 3.1.1 return codes 4 and 5, as paho translates them
            self._closed(f"{self.broker}: {reason}", refused=refused)
            return
        self._stage = _Stage.UP
        self.events.append(Connected(flags.session_present, self.broker))

    def _on_message(self, _client: Any, _data: Any, message: Any) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            return
        self.events.append(Received(topic, bytes(message.payload), bool(message.retain)))

    def _on_subscribe(self, _client: Any, _data: Any, _mid: int, reasons: Any, _properties: Any) -> None:
        """A cluster of brokers that is busy electing a leader refuses what it takes a moment later."""
        if any(reason.is_failure for reason in reasons):
            self._closed(f"{self.broker}: a subscription was refused", refused=False)

    def _on_publish(self, _client: Any, _data: Any, _mid: int, _reason: Any, _properties: Any) -> None:
        self.unacknowledged -= 1

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if self._client is not None:
            why = "" if reason.value == 0x80 else f" ({reason})"  # 0x80: paho knows no more than that
            self._closed(f"{self.broker}: connection lost{why}", refused=False)

    def _on_socket_close(self, _client: Any, _data: Any, sock: Any) -> None:
        """paho closes by itself, after its DISCONNECT and when the connection is lost."""
        if self.on_closing is not None:
            self.on_closing(sock)

    # Endings

    def _failed(self, now: float, reason: str) -> None:
        """This address did not work: the next one, then the next host."""
        self._reason = reason
        self._drop_socket()
        del self._addresses[:1]
        if self._addresses:
            self._try_address(now)
            return
        self._next_host = (self._next_host + 1) % len(self._hosts)
        self._try_host(now)

    def _closed(self, reason: str, *, refused: bool) -> None:
        self._drop()
        self.events.append(Closed(reason, refused))

    def _drop(self) -> None:
        self._drop_socket()
        self._addresses.clear()
        self._give_up_look_up()
        self._stage, self._deadline, self._mask = _Stage.CLOSED, None, 0

    def _drop_socket(self) -> None:
        self._unwatch()
        self._backlog = False
        if self._stage is _Stage.UP:
            self.unheard = self.unacknowledged
        self.unacknowledged = 0
        client, self._client = self._client, None
        if client is not None:
            client.on_disconnect = None
            self._rx_bytes += client.rx_bytes
            self._tx_bytes += client.tx_bytes
            self._oversize += client.oversize
        sock, self._sock = self._sock, None
        if sock is not None:
            if self.on_closing is not None and sock.fileno() >= 0:
                self.on_closing(sock)
            sock.close()
