"""One device in a network of 10 and in one of 100,000: what it is told, and what it keeps, must not differ.

The fleet is rows in the hub's database, made by the hub's own code; hub, broker and the one agent are the real ones.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator

from edgeagent import crypto as providers
from edgeagent.proto.names import device_id
from hub.core import actions, ipam
from hub.core.credential import make_credential
from hub.core.model import NODE_KEY_LIFE_S, Device, DeviceState, NodeKey
from hub.core.scribe import Scribe
from hub.store.sqlite import SqliteStore
from tests.netlab import Lab
from tests.netlab.mesh import Mesh
from tools.bench.agent import rss_mib
from tools.bench.figures import Figure, bench

SMALL, LARGE = 10, 100_000
LOOKUPS = 9  # as many as the small network has strangers
MAP_SLACK_BYTES = 16  # sequence numbers of the larger network have more digits
RSS_SLACK_MIB = 1.0
CHUNK = 2_000  # devices in one transaction: the hub writes too


@bench
def fleet(say: Callable[[str], None]) -> Iterator[Figure]:
    """Map, traffic to join and memory of one device, beside the same in the small network."""
    small, large = (measure(size, say) for size in (SMALL, LARGE))
    beside = f"{SMALL} devices"
    for key, name, unit, slack in (
        ("map", "signed map", "B", MAP_SLACK_BYTES),
        ("joining", "received by MQTT to join", "B", None),
        ("rss", f"RSS after {LOOKUPS} lookups", "MiB", RSS_SLACK_MIB),
        ("up", "up with a token", "s", None),
    ):
        most = None if slack is None else small[key] + slack
        yield Figure(f"{name}, {LARGE:,} devices", large[key], unit, peer=(beside, small[key]), at_most=most)


def measure(size: int, say: Callable[[str], None]) -> dict[str, float]:
    """The figures of one agent in a network that has `size` devices with it."""
    with Lab() as lab:
        net = lab.net("198.51.100.0/24")
        mesh = Mesh(lab, net)
        say(f"network of {size}: hub and fleet")
        mesh.start_hub()  # before the fleet is there, which would all be given accounts at the broker first
        database = mesh.hub.directory / "edgehub" / "hub.db"
        names = populate(SqliteStore(database), size - 1)
        token = mesh.token()
        say(f"network of {size}: one agent")
        device = mesh.device("real", net)
        began = time.monotonic()
        device.up(token)
        up_s = time.monotonic() - began
        joining = device.ask("status")["mqtt"]["rx_bytes"]
        for name in names[:LOOKUPS]:
            assert json.loads(device.host.run("edgeagent", "whois", name, "--json").stdout)["name"] == name
        rss = rss_mib(device.pid())
        assert mesh.server is not None
        mesh.server.stop()
        return {"map": map_size(SqliteStore(database), "real"), "joining": joining, "rss": rss, "up": up_s}


def populate(store: SqliteStore, count: int) -> list[str]:
    """Admit `count` devices that will never connect; their names."""
    crypto, now_s = providers.load(), int(time.time())
    credential = make_credential(os.urandom, "never to be used")
    names = []
    for first in range(0, count, CHUNK):
        with store.write() as tx:
            network = tx.network()
            for number in range(first, min(count, first + CHUNK)):
                key = os.urandom(32)
                name, ident, node_key = f"d{number}", device_id(crypto, key), os.urandom(32)
                tx.add_device(
                    Device(
                        id=ident,
                        state=DeviceState.ACTIVE,
                        claim="",
                        device_key=key,
                        box_key=crypto.x25519_base(os.urandom(32)),
                        node_key=node_key,
                        created_s=now_s,
                        name=name,
                        v4=ipam.choose_v4(ident, lambda address: tx.device_by_v4(address) is not None),
                        v6=ipam.choose_v6(network.id, ident, lambda address: tx.device_by_v6(address) is not None),
                        credential=credential,
                        feed_key=os.urandom(32),
                        feed_generation=1,
                    )
                )
                tx.save_node_key(NodeKey(node_key, ident, now_s + NODE_KEY_LIFE_S))
                names.append(name)
    store.close()
    return names


def map_size(store: SqliteStore, name: str) -> int:
    """Bytes of the signed map that the hub makes for the device."""
    with store.write() as tx:
        scribe = Scribe(providers.load(), os.urandom, tx.network())
        size = len(scribe.map(tx, actions.find_device(tx, name), int(time.time())))
    store.close()
    return size
