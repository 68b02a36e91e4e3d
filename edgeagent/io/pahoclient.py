"""paho-mqtt as a device can bear it: without what it imports for others, and with a ceiling on what brokers send."""

from __future__ import annotations

import errno
import sys
from time import monotonic
from types import ModuleType
from typing import TYPE_CHECKING

# paho imports these for proxies from the environment, for random client ids and to tell Windows from others, none of
# which is wanted here; they cost 2.9 MiB. Empty modules stand in while it is imported.
_STUBS = [name for name in ("urllib.request", "urllib.parse", "uuid", "platform") if name not in sys.modules]
sys.modules.update((name, ModuleType(name)) for name in _STUBS)
if "platform" in _STUBS:
    sys.modules["platform"].system = lambda: "Linux"  # type: ignore[attr-defined]
from paho.mqtt.client import Client  # noqa: E402
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion  # noqa: E402

for _name in _STUBS:
    del sys.modules[_name]

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

INFLIGHT_MAX = 20  # QoS 1 messages that the broker has not acknowledged
QUEUED_MAX = 128  # with those that wait for their turn
PACKET_BYTES_MAX = 65_536 + 256  # a control message and its topic
_CHECK_MARGIN_S = 0.1  # paho notes what was sent a little later than we do
SUCCESS = MQTTErrorCode.MQTT_ERR_SUCCESS


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


class PahoClient(Client):
    """A client on a socket whose TLS handshake is done. `room` says whether another packet may be read.

    Three private methods of paho are overridden and one private field is read: a test holds the versions this was
    written for. `rx_bytes` and `tx_bytes` count MQTT, `oversize` packets that were too long.
    """

    def __init__(self, ready: ssl.SSLSocket, login: Login, room: Callable[[], bool]) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id=login.client_id,
            clean_session=login.clean,
            protocol=MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        self.rx_bytes = 0
        self.tx_bytes = 0
        self.oversize = 0
        self._said_at = self._heard_at = monotonic()  # paho's clock
        self._ready = ready
        self._room = room
        self.username_pw_set(login.username, login.password)
        self.max_inflight_messages_set(INFLIGHT_MAX)
        self.max_queued_messages_set(QUEUED_MAX)
        if login.will is not None:
            self.will_set(login.will[0], login.will[1], qos=1, retain=True)

    def next_check(self, now: float) -> float:
        """When to call `loop_misc` again, after having done so: paho then pings, if nothing else was said or heard.

        Sooner than a quarter of the keepalive it never has to be; so an answer that is missing is waited for.
        """
        since = min(self._said_at, self._heard_at)
        return max(since + self.keepalive + _CHECK_MARGIN_S, now + self.keepalive / 4)

    def _create_socket(self) -> ssl.SSLSocket:
        return self._ready

    def _sock_recv(self, bufsize: int) -> bytes:
        # The first read of a packet's rest asks for all of it: the length that the broker claims.
        if bufsize > PACKET_BYTES_MAX:
            self.oversize += 1
            raise ConnectionAbortedError(errno.EMSGSIZE, "the broker sent a packet over the limit")
        command = self._in_packet["command"]
        if command == 0 and not self._room():
            raise BlockingIOError  # a new packet waits until what came before has been drained
        if command & 0xF6 == 0x34:  # PUBLISH at QoS 2: never subscribed to, and paho holds it
            raise ConnectionAbortedError(errno.EPROTO, "the broker sent a QoS 2 message")
        data = super()._sock_recv(bufsize)
        self.rx_bytes += len(data)
        self._heard_at = monotonic()
        return data

    def _sock_send(self, buf: bytes | bytearray) -> int:
        sent = super()._sock_send(buf)
        self.tx_bytes += sent
        self._said_at = monotonic()
        return sent
