"""One broker connection: TCP, TLS with a pinned CA, MQTT 3.1.1 by paho, all under the caller's selector.

paho's own `connect` blocks through name resolution, TCP and TLS, up to its timeout each; on this device the same thread
carries the tunnel. So the connection is made here, non-blocking and with a deadline at each stage, and paho is handed
the finished TLS socket. Only getaddrinfo cannot be made non-blocking: it runs in a thread, one at a time.
"""

from __future__ import annotations

import errno
import hashlib
import selectors
import socket
import ssl
import sys
import threading
from collections import deque
from enum import Enum
from types import ModuleType
from typing import TYPE_CHECKING, Any

# paho imports these for proxies from the environment and for random client ids, neither of which is used here; they
# cost 2.8 MiB. Empty modules stand in while it is imported.
_STUBS = [name for name in ("urllib.request", "urllib.parse", "uuid") if name not in sys.modules]
sys.modules.update((name, ModuleType(name)) for name in _STUBS)
from paho.mqtt.client import Client  # noqa: E402
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion  # noqa: E402

from edgeagent.proto.names import split_host_port  # noqa: E402

for _name in _STUBS:
    del sys.modules[_name]

if TYPE_CHECKING:
    from collections.abc import Sequence
    from selectors import BaseSelector

CONNECT_TIMEOUT_S = 5.0  # resolution, and TCP to one address
HANDSHAKE_TIMEOUT_S = 10.0  # TLS; 2.5 s of CPU on the slowest board
CONNACK_TIMEOUT_S = 10.0
ADDRESSES_PER_HOST_MAX = 8
HOSTS_MAX = 8
INFLIGHT_MAX = 20  # QoS 1 messages that the broker has not acknowledged
QUEUED_MAX = 128  # with those that wait for their turn
PACKET_BYTES_MAX = 65_536 + 256  # a control message and its topic
EVENTS_PER_TURN_MAX = 32  # then they are drained and the data path has its turn
READS_PER_TURN_MAX = 32
_NO_CHECK_TIME = 0x20_0000  # X509_V_FLAG_NO_CHECK_TIME; the ssl module has no name for it


class Trust:
    """What a broker has to prove: that its certificate comes from the network's CA.

    `pin` is the SHA-256 of the CA certificate (DER) from the join token. `ca` is the certificate itself once it has
    been seen. `check_time` is False while the device does not know the time: then dates of certificates are ignored.
    """

    __slots__ = ("ca", "check_time", "pin")

    def __init__(self, pin: bytes, ca: bytes | None, check_time: bool) -> None:
        self.pin = pin
        self.ca = ca if ca is not None and hashlib.sha256(ca).digest() == pin else None
        self.check_time = check_time


class Login:
    """What one MQTT session presents. `will` is (topic, payload), published retained with QoS 1."""

    __slots__ = ("clean", "client_id", "keepalive_s", "password", "username", "will")

    def __init__(
        self,
        client_id: str,
        username: str,
        password: str,
        *,
        clean: bool,
        keepalive_s: int = 60,
        will: tuple[str, bytes] | None = None,
    ) -> None:
        self.client_id = client_id
        self.username = username
        self.password = password
        self.clean = clean
        self.keepalive_s = keepalive_s
        self.will = will


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
    LOOKING = "looking for the pinned CA"  # TLS without verification, nothing is sent on it
    HANDSHAKE = "TLS handshake"
    CONNACK = "waiting for the broker's answer"
    UP = "up"


class MqttLink:
    """At most one connection, to the first of the given brokers that answers.

    Drive: `open`; its descriptor is registered in `selector` with `ready` as its data, to be called as
    `key.data(now, key.fd)`; call `on_timeout` at `poll_timeout()`. After any of these drain `events`.
    """

    def __init__(self, selector: BaseSelector) -> None:
        self._selector = selector
        self._registered: tuple[int, int] | None = None  # (descriptor, mask)
        self.events: deque[Event] = deque()
        self.unacknowledged = 0  # published on this connection and not yet known to be with the broker
        self.rx_bytes = 0
        self.tx_bytes = 0
        self.oversize = 0
        self._stage = _Stage.CLOSED
        self._deadline: float | None = None
        self._hosts: list[tuple[str, int]] = []
        self._next_host = 0
        self._tries_left = 0
        self._addresses: list[Any] = []
        self._sock: socket.socket | None = None
        self._mask = 0
        self._client: _Client | None = None
        self._login: Login | None = None
        self._trust: Trust | None = None
        self._reason = ""
        self._backlog = False
        self._resolver: _Resolver | None = None

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
        taken = bool(info.rc == MQTTErrorCode.MQTT_ERR_SUCCESS)
        self.unacknowledged += taken
        return taken

    def subscribe(self, topics: Sequence[str], qos: int = 1) -> bool:
        """False when there is no connection. Broker refusals are not told from silence: both mean no messages."""
        if not topics:
            return True
        if self._client is None or self._stage is not _Stage.UP:
            return False
        rc, _ = self._client.subscribe([(topic, qos) for topic in topics])
        self._watch()
        return rc == MQTTErrorCode.MQTT_ERR_SUCCESS

    def unsubscribe(self, topics: Sequence[str]) -> bool:
        """False when there is no connection."""
        if not topics:
            return True
        if self._client is None or self._stage is not _Stage.UP:
            return False
        rc, _ = self._client.unsubscribe(list(topics))
        self._watch()
        return rc == MQTTErrorCode.MQTT_ERR_SUCCESS

    def ready(self, now: float, _fd: int) -> None:
        """The descriptor can be read or written."""
        stage = self._stage
        if stage is _Stage.RESOLVING:
            self._resolved(now)
        elif stage is _Stage.CONNECTING:
            self._connected(now)
        elif stage in (_Stage.LOOKING, _Stage.HANDSHAKE):
            self._shake(now)
        elif self._client is not None:
            if self._client.want_write():
                self._client.loop_write()
            self._read()
        self._watch()

    def on_timeout(self, now: float) -> None:
        if self._backlog:
            self._read()
        if self._deadline is not None and now >= self._deadline:
            if self._stage is not _Stage.UP:
                self._failed(now, f"no answer from {self.broker} ({self._stage.value})")
            elif self._client is not None and self._login is not None:
                # paho counts the keepalive on its own clock; it has to be asked often enough, not exactly.
                self._deadline = now + self._login.keepalive_s / 4
                self._client.loop_misc()
        self._watch()

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
        host, port = self._hosts[self._next_host]
        family = _literal_family(host)
        if family is not None:
            self._addresses = [(family, (host, port))]
            self._try_address(now)
            return
        if self._resolver is not None and not self._resolver.done:
            self._failed(now, f"{host}: the name server does not answer")
            return
        self._stage, self._deadline = _Stage.RESOLVING, now + CONNECT_TIMEOUT_S
        if self._resolver is not None:
            self._resolver.close()
        self._resolver = _Resolver(host, port)

    def _resolved(self, now: float) -> None:
        if self._resolver is None or not self._resolver.done:
            return
        self._unwatch()
        resolver, self._resolver = self._resolver, None
        self._addresses = resolver.addresses[:ADDRESSES_PER_HOST_MAX]
        error = resolver.error
        resolver.close()
        if error:
            self._failed(now, error)
        else:
            self._try_address(now)

    def _try_address(self, now: float) -> None:
        family, address = self._addresses[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        code = sock.connect_ex(address)
        if code not in (0, errno.EINPROGRESS):
            self._failed(now, f"{self.broker}: {errno.errorcode.get(code, str(code))}")
            return
        self._stage, self._mask = _Stage.CONNECTING, selectors.EVENT_WRITE
        self._deadline = now + CONNECT_TIMEOUT_S

    def _connected(self, now: float) -> None:
        assert self._sock is not None and self._trust is not None
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code != 0:
            self._failed(now, f"{self.broker}: {errno.errorcode.get(code, str(code))}")
            return
        host, _ = self._hosts[self._next_host]
        context = _context(self._trust)
        try:
            self._sock = context.wrap_socket(self._sock, do_handshake_on_connect=False, server_hostname=_sni(host))
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
        client = _Client(tls, login, self)
        client.on_connect = self._on_connack
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        self._client = client
        self._stage, self._deadline = _Stage.CONNACK, now + CONNACK_TIMEOUT_S
        host, port = self._hosts[self._next_host]
        client.connect(host, port, login.keepalive_s)

    def _read(self) -> None:
        for _ in range(READS_PER_TURN_MAX):
            client = self._client
            if client is None or client.want_write() or client.loop_read() != MQTTErrorCode.MQTT_ERR_SUCCESS:
                self._backlog = False
                return
            # What OpenSSL has decrypted already, no selector reports.
            self._backlog = isinstance(self._sock, ssl.SSLSocket) and self._sock.pending() > 0
            if not self._backlog or len(self.events) >= EVENTS_PER_TURN_MAX:
                return

    def _on_connack(self, _client: Client, _data: Any, flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            refused = reason.value in (0x86, 0x87)  # MQTT 3.1.1 return codes 4 and 5, as paho translates them
            self._closed(f"{self.broker}: {reason}", refused=refused)
            return
        self._stage = _Stage.UP
        self.events.append(Connected(flags.session_present, self.broker))

    def _on_message(self, _client: Client, _data: Any, message: Any) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            return
        self.events.append(Received(topic, bytes(message.payload), bool(message.retain)))

    def _on_publish(self, _client: Client, _data: Any, _mid: int, _reason: Any, _properties: Any) -> None:
        self.unacknowledged -= 1

    def _on_disconnect(self, _client: Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if self._client is not None:
            why = "" if reason.value == 0x80 else f" ({reason})"  # 0x80: paho knows no more than that
            self._closed(f"{self.broker}: connection lost{why}", refused=False)

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
        if self._resolver is not None and self._resolver.done:
            self._resolver.close()
            self._resolver = None
        self._stage, self._deadline, self._mask = _Stage.CLOSED, None, 0

    def _drop_socket(self) -> None:
        self._unwatch()
        self._backlog = False
        self.unacknowledged = 0
        client, self._client = self._client, None
        if client is not None:
            client.on_disconnect = None
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()


class _Client(Client):
    """paho with the socket made outside, and with a ceiling on what a broker can make it hold."""

    def __init__(self, ready: ssl.SSLSocket, login: Login, link: MqttLink) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id=login.client_id,
            clean_session=login.clean,
            protocol=MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        self._ready = ready
        self._link = link
        self.username_pw_set(login.username, login.password)
        self.max_inflight_messages_set(INFLIGHT_MAX)
        self.max_queued_messages_set(QUEUED_MAX)
        if login.will is not None:
            self.will_set(login.will[0], login.will[1], qos=1, retain=True)

    def _create_socket(self) -> ssl.SSLSocket:
        return self._ready

    def _sock_recv(self, bufsize: int) -> bytes:
        # The first read of a packet's rest asks for all of it: the length that the broker claims.
        if bufsize > PACKET_BYTES_MAX:
            self._link.oversize += 1
            raise ConnectionAbortedError(errno.EMSGSIZE, "the broker sent a packet over the limit")
        command = self._in_packet["command"]
        if command == 0 and len(self._link.events) >= EVENTS_PER_TURN_MAX:
            raise BlockingIOError  # a new packet waits until what came before has been drained
        if command & 0xF6 == 0x34:  # PUBLISH at QoS 2: never subscribed to, and paho holds it
            raise ConnectionAbortedError(errno.EPROTO, "the broker sent a QoS 2 message")
        data = super()._sock_recv(bufsize)
        self._link.rx_bytes += len(data)
        return data

    def _sock_send(self, buf: bytes | bytearray) -> int:
        sent = super()._sock_send(buf)
        self._link.tx_bytes += sent
        return sent


class _Resolver:
    """getaddrinfo in a thread; `wake` becomes readable when `done`."""

    def __init__(self, host: str, port: int) -> None:
        self.addresses: list[Any] = []
        self.error = ""
        self.done = False
        self.wake, self._signal = socket.socketpair()
        threading.Thread(target=self._run, args=(host, port), daemon=True).start()

    def _run(self, host: str, port: int) -> None:
        try:
            # Bytes: for text the idna codec and its tables would be loaded, 0.4 MiB
            found = socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM)
            self.addresses = [(family, address) for family, _, _, _, address in found]
            self.error = "" if found else f"{host}: no address"
        except (OSError, UnicodeError) as error:
            self.error = f"{host}: {getattr(error, 'strerror', None) or error}"
        self.done = True
        self._signal.close()

    def close(self) -> None:
        self.wake.close()


def presented_chain(tls: ssl.SSLSocket) -> list[bytes]:
    """The certificates (DER) that the other side sent, unverified. Public only from Python 3.13 on."""
    if sys.version_info >= (3, 13):
        return list(tls.get_unverified_chain())
    inner: Any = tls._sslobj  # type: ignore[attr-defined]
    return [certificate.public_bytes(ssl._ssl.ENCODING_DER) for certificate in inner.get_unverified_chain() or ()]  # type: ignore[attr-defined]


def _context(trust: Trust) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Host names prove nothing here: the CA is the network's own, and it is pinned.
    context.check_hostname = False
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if trust.ca is None:
        context.verify_mode = ssl.CERT_NONE
        return context
    context.load_verify_locations(cadata=trust.ca)
    if not trust.check_time:
        context.verify_flags |= _NO_CHECK_TIME
    return context


def _sni(host: str) -> Any:
    """For proxies that choose by name; none for an address (RFC 6066, section 3). Bytes, as for getaddrinfo."""
    return host.encode("ascii") if _literal_family(host) is None else None


def _literal_family(host: str) -> socket.AddressFamily | None:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return family
    return None
