"""The largest map that there can be: every part at its own ceiling, from the hub to the flash of a device."""

from __future__ import annotations

from typing import Any

import pytest

from edgeagent.io.keystore import StateFile
from edgeagent.io.pahoclient import PACKET_BYTES_MAX
from edgeagent.proto.codec import encode
from edgeagent.proto.control import (
    CA_BYTES_MAX,
    CLIENTS_MAX,
    HOSTS_MAX,
    LOCK_SIGNATURES_MAX,
    MAP_BYTES_MAX,
    MAP_ROUTES_MAX,
    NODE_KEYS_MAX,
    PASS_BYTES_MAX,
    ROUTES_MAX,
    STATEMENT_BYTES_MAX,
    TAGS_MAX,
)
from edgeagent.proto.devicemap import open_map
from edgeagent.proto.dnssettings import NAMES_BYTES_MAX
from edgeagent.proto.identity import Admission
from edgeagent.proto.limits import TABLE
from hub.core.lock import WAY_BYTES_MAX
from hub.core.memory import MemoryStore
from hub.core.model import RELAY_LIST_BYTES_MAX, Client, NodeKey, Op, Route
from hub.core.policy.merging import BYTES_MAX
from hub.io import mosquitto
from tests.hub.kit import WALL_S, Dev, Hub, load_crypto, make_network, seeded

LONG_HOST = "h" * 63


def filled(made: Any, size: int) -> Any:
    """`made(count)` as large as it goes with at most `size` bytes."""
    count = 0
    while len(encode(made(count + 1))) <= size:
        count += 1
    return made(count)


def relay(number: int) -> dict[str, Any]:
    name = f"{number:02d}".ljust(63, "r")
    hosts = [f"{LONG_HOST}.{LONG_HOST}.{number}:{port}" for port in (40_001, 40_002)]
    return {"id": name, "rg": name, "k": b"k" * 32, "h": hosts, "u": 65_535, "s": 65_535, "pin": b"p" * 32}


def slice_of(count: int) -> dict[str, Any]:
    rule = [["tag:" + "x" * 60], ["me"], [[6, 10_000, 65_535]]]
    return {"v": 1 << 40, "u": "u" * 128, "in": [rule] * min(count, 256), "out": []}


def names_of(count: int) -> dict[str, Any]:
    return {"rr": [[f"r{number:03d}".ljust(50, "x") + "." + "y" * 40, "TXT", "x" * 100] for number in range(count)]}


@pytest.fixture
def largest() -> tuple[Hub, Dev]:
    crypto = load_crypto()
    domain = ".".join(["d" * 60] * 4)
    hosts = tuple(f"{number}{domain}:{40_000 + number}" for number in range(HOSTS_MAX))
    network = make_network(crypto, seeded(0), domain=domain, hosts=hosts, ca_der=b"c" * CA_BYTES_MAX)
    hub = Hub(MemoryStore(network), crypto, network)
    device = Dev(hub, 1, hub.token(tags=tuple(f"tag:{number:02d}".ljust(67, "t") for number in range(TAGS_MAX))))
    # What the other parts write, they keep below these ceilings by themselves: their own tests see to it
    policy = filled(slice_of, BYTES_MAX)
    hub.scribe.policing.slice_of = lambda tx, device: policy  # type: ignore[method-assign]
    lock = {
        "s": [b"s" * WAY_BYTES_MAX, b"s" * STATEMENT_BYTES_MAX],
        "c": [[b"k" * 32, 1 << 40, 1 << 40, b"s" * 64]] * LOCK_SIGNATURES_MAX,
        "k": [[b"k" * 32, 1 << 40, b"s" * 64]] * NODE_KEYS_MAX,
    }
    hub.scribe.lock.of_map = lambda tx, device, node_keys: {"lk": lock}  # type: ignore[method-assign]
    with hub.store.write() as tx:
        tx.save_relay_list(encode(filled(lambda n: [relay(number) for number in range(n)], RELAY_LIST_BYTES_MAX)))
        tx.save_names(encode(filled(names_of, NAMES_BYTES_MAX)))
        tx.save_route_list(
            encode([[bytes.fromhex("fd77") + n.to_bytes(2, "big") + bytes(12), 64] for n in range(MAP_ROUTES_MAX)])
        )
        for n in range(ROUTES_MAX):
            address = bytes.fromhex("fd78") + n.to_bytes(2, "big") + bytes(12)
            tx.save_route(Route(device.id, address, 64, advertised=True, approved=True, snat=True))
        for n in range(CLIENTS_MAX):
            key, v6 = n.to_bytes(32, "big"), b"\xfd" * 15 + bytes([n])
            tx.add_client(Client(key, f"c{n}", device.id, 0x64410000 + n, v6, WALL_S))
    return hub, device


def test_all_of_it_fits(largest: tuple[Hub, Dev]) -> None:
    """Through the hub's Scribe, the broker, the device's reader, and onto its flash."""
    hub, device = largest
    hub.hear(device.join())
    rows = hub.sent()
    [admitted] = [body for kind, body in device.read(rows) if kind == "admit"]
    with hub.store.write() as tx:
        for n in range(1, NODE_KEYS_MAX):
            tx.save_node_key(NodeKey(bytes([n]) * 32, device.id, WALL_S + 86_400))
        known = tx.device(device.id)
        assert known is not None
        hub.scribe.map(tx, known, WALL_S)
    rows += (later := hub.sent())
    device.read(later)
    assert device.map is not None
    read = open_map(hub.crypto, hub.network.key, device.map.raw, network=hub.network.id, device=device.id)
    assert len(read.raw) > 40_000, "this is no large map any more"
    assert len(read.raw) <= MAP_BYTES_MAX
    assert len(read.routes or ()) == MAP_ROUTES_MAX and len(read.approved) == ROUTES_MAX
    assert len(read.clients) == CLIENTS_MAX and len(read.tags) == TAGS_MAX and len(read.relays) > 8
    assert len(read.passes) == NODE_KEYS_MAX and max(map(len, read.passes)) <= PASS_BYTES_MAX
    sent = max(len(row.payload) + len(row.target) for row in rows if row.op is Op.PUBLISH)
    broker = int(next(line for line in mosquitto._LIMITS.splitlines() if "max_packet_size" in line).split()[1])
    assert sent < PACKET_BYTES_MAX < broker
    assert sent < min(TABLE["message_bytes"][1])
    kept = Admission(
        hub.crypto,
        network_key=hub.network.key,
        ca_der=admitted["ca"],
        map_object=read.raw,
        hosts=list(hub.network.hosts),
    )
    assert Admission.decode(hub.crypto, kept.encode()).open_map(hub.crypto, device.id).raw == read.raw
    assert len(kept.encode()) < StateFile.ADMISSION.bytes_max


def test_no_setting_of_a_device_makes_it_deaf() -> None:
    """A map in an admission, with the certificate beside it, and the envelope around both."""
    (lowest, _), _, _ = TABLE["message_bytes"]
    assert lowest > MAP_BYTES_MAX + CA_BYTES_MAX + 1_024
