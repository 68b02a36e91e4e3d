"""The hub's connection to its broker: paho without threads, under the caller's poll loop."""

from __future__ import annotations

import select
import socket
import ssl
from dataclasses import dataclass
from typing import Any

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

KEEPALIVE_S = 30
CONNECT_TIMEOUT_S = 5.0
IN_FLIGHT_MAX = 256  # messages to the broker that it has not confirmed
_READS_MAX = 512  # packets a turn, so that others get theirs


@dataclass(slots=True, frozen=True)
class Endpoint:
    """Where the broker is, and as whom the hub goes there."""

    host: str
    port: int
    ca_pem: str
    user: str
    password: str
    client_id: str


@dataclass(slots=True, frozen=True)
class Connected:
    session_present: bool


@dataclass(slots=True, frozen=True)
class Disconnected:
    why: str


@dataclass(slots=True, frozen=True)
class Received:
    """A message; `MqttLink.acknowledge` it when what it caused is safe."""

    topic: str
    payload: bytes
    mid: int
    qos: int
    again: bool = False  # the broker may have delivered it before (DUP)


@dataclass(slots=True, frozen=True)
class Confirmed:
    """The broker has a message of ours (PUBACK)."""

    mid: int


Event = Connected | Disconnected | Received | Confirmed


class MqttLink:
    """One connection. `open` blocks for a few seconds at most; then poll `fileno()`, call `read`, `write` when it is
    ready and `tick` each second, and after each of them drain the events. After Disconnected, make a new one."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._events: list[Event] = []
        self._is_over = False
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=endpoint.client_id,
            clean_session=False,  # what devices say while the hub restarts waits in the broker
            protocol=MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(cadata=endpoint.ca_pem)
        self._client.tls_set_context(context)
        self._client.username_pw_set(endpoint.user, endpoint.password)
        self._client.connect_timeout = CONNECT_TIMEOUT_S
        self._client.max_inflight_messages_set(IN_FLIGHT_MAX)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message
        self._client.on_publish = self._on_publish
        self._client.on_subscribe = self._on_subscribe

    def open(self, will_topic: str, will: bytes) -> None:
        """Raises OSError (ssl.SSLError is one)."""
        self._client.will_set(will_topic, will, qos=1, retain=True)
        self._client.connect(self._endpoint.host, self._endpoint.port, KEEPALIVE_S)
        raw = self._client.socket()
        if isinstance(raw, socket.socket):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def fileno(self) -> int:
        """-1 when the connection has ended."""
        raw = self._client.socket()
        return -1 if raw is None else raw.fileno()

    def wants_write(self) -> bool:
        return self._client.want_write()

    def read(self) -> None:
        """All that is there: what came together is answered together. paho reads one packet at a time."""
        for _ in range(_READS_MAX):
            if self._client.loop_read() is not MQTTErrorCode.MQTT_ERR_SUCCESS:
                return
            raw = self._client.socket()
            if not isinstance(raw, ssl.SSLSocket) or raw.fileno() < 0 or not _has_more(raw):
                return

    def write(self) -> None:
        self._client.loop_write()

    def tick(self) -> None:
        self._client.loop_misc()

    def subscribe(self, *filters: str) -> None:
        self._client.subscribe([(text, 1) for text in filters])

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int:
        """QoS 1; the message id that Confirmed will name."""
        return self._client.publish(topic, payload, qos=1, retain=retain).mid

    def publish_once(self, topic: str, payload: bytes) -> None:
        """QoS 0: for what nobody wants late."""
        self._client.publish(topic, payload, qos=0)

    def acknowledge(self, message: Received) -> None:
        self._client.ack(message.mid, message.qos)

    def drain_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Say good-bye, so that the will is not published."""
        self._client.disconnect()
        self._client.loop_write()
        raw = self._client.socket()
        if raw is not None:
            raw.close()

    def drop(self) -> None:
        """End without a good-bye: the broker publishes the will."""
        raw = self._client.socket()
        if raw is not None:
            raw.close()

    def _on_connect(self, _client: Any, _data: Any, flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._note_end(f"refused: {reason}")
        else:
            self._events.append(Connected(bool(flags.session_present)))

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._note_end(str(reason).lower())

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        self._events.append(Received(message.topic, bytes(message.payload), message.mid, message.qos, message.dup))

    def _on_subscribe(self, _client: Any, _data: Any, _mid: int, reasons: Any, _properties: Any) -> None:
        if reasons[0].is_failure:  # the others may be unknown to a broker of somebody else's
            self.drop()
            self._note_end("what devices write could not be subscribed to")

    def _note_end(self, why: str) -> None:
        """Once: paho tells of the end of a connection that was refused, or dropped here, as well."""
        if not self._is_over:
            self._is_over = True
            self._events.append(Disconnected(why))

    def _on_publish(self, _client: Any, _data: Any, mid: int, _reason: Any, _properties: Any) -> None:
        self._events.append(Confirmed(mid))


def _has_more(raw: ssl.SSLSocket) -> bool:
    if raw.pending():
        return True  # what TLS has already decrypted would not wake a poll
    poll = select.poll()
    poll.register(raw, select.POLLIN)
    return bool(poll.poll(0))
