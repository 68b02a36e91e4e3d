"""What a node tells its shell, besides packets, datagrams and messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeagent.proto.devicemap import DeviceMap
from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.records import Query, Record

if TYPE_CHECKING:
    from typing import Any

    from edgeagent.proto.uplink import Reason, State


class NodeEvent:
    __slots__ = ()


class CacheDirty(NodeEvent):
    """`snapshot()` is worth saving; `urgent`: before anything is published and before a connection is made."""

    __slots__ = ("urgent",)

    def __init__(self, *, urgent: bool) -> None:
        self.urgent = urgent


class IdentityChanged(NodeEvent):
    """Save `identity.encode()` before anything is published or sent."""

    __slots__ = ()


class AdmissionChanged(NodeEvent):
    """Save `admission.encode()`: it holds a newer map, and with it perhaps other brokers."""

    __slots__ = ()


class LockPinned(NodeEvent):
    """Save `lock.encode()` of the client before anything is published or sent: the hub may never take it back."""

    __slots__ = ()


class MapChanged(NodeEvent):
    """The device's addresses, name or the network's prefixes may be others."""

    __slots__ = ("map",)

    def __init__(self, device_map: DeviceMap) -> None:
        self.map = device_map


class Resolved(NodeEvent):
    """The end of a lookup that was pending; `record` is None for no."""

    __slots__ = ("query", "record")

    def __init__(self, query: Query, record: Record | None) -> None:
        self.query = query
        self.record = record


class PeerUp(NodeEvent):
    """A session with a peer began."""

    __slots__ = ("device", "endpoint", "name")

    def __init__(self, device: str, name: str, endpoint: Endpoint | None) -> None:
        self.device = device
        self.name = name
        self.endpoint = endpoint


class PeerGone(NodeEvent):
    """A peer was let go: idle, silent, given way to another, or removed."""

    __slots__ = ("device", "name", "reason")

    def __init__(self, device: str, name: str, reason: str) -> None:
        self.device = device
        self.name = name
        self.reason = reason


class PathChanged(NodeEvent):
    """Traffic for a peer goes another way: `kind` as in PathKind, `latency_ms` as far as it is known."""

    __slots__ = ("device", "endpoint", "kind", "latency_ms", "name")

    def __init__(self, device: str, name: str, kind: str, endpoint: Endpoint, latency_ms: float | None) -> None:
        self.device = device
        self.name = name
        self.kind = kind
        self.endpoint = endpoint
        self.latency_ms = latency_ms


class RelayNamesChanged(NodeEvent):
    """Look up `relays.names_to_resolve()`, and `handle_relay_addresses`: again when the network changed."""

    __slots__ = ()


class UplinkChanged(NodeEvent):
    """One of several uplinks is in another state."""

    __slots__ = ("index", "name", "reason", "state")

    def __init__(self, name: str, index: int, state: State, reason: Reason) -> None:
        self.name = name
        self.index = index
        self.state = state
        self.reason = reason


class ActiveUplinkChanged(NodeEvent):
    """What is bound to no uplink is to go by another one now: connections to the broker and to relays are to be made
    anew, and servers asked where they see us. `name` is None and `index` 0 where there is none left."""

    __slots__ = ("index", "name", "reason")

    def __init__(self, name: str | None, index: int, reason: Reason) -> None:
        self.name = name
        self.index = index
        self.reason = reason


class NodeKeyRenewed(NodeEvent):
    """Another node key is in use."""

    __slots__ = ()


class ReconnectWanted(NodeEvent):
    """Drop the MQTT connection and connect again at `next_connect_at`."""

    __slots__ = ()


class Commanded(NodeEvent):
    """The hub wants something done; `body` as control.py has it of `cmd`."""

    __slots__ = ("body",)

    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body


class UpdatePart(NodeEvent):
    """A part of a file of updates; `body` as control.py has it of `part`."""

    __slots__ = ("body",)

    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body


class Removed(NodeEvent):
    """The hub has cut this device off; all peers are gone."""

    __slots__ = ()
