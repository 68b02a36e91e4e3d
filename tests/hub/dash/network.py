"""What a fleet's network has besides devices: routes, plain clients, names, and a lock that is being put on."""

from __future__ import annotations

import os

from edgeagent import crypto as providers
from edgeagent.proto import prefixes
from hub.core import clients, lock, naming
from hub.core.lock_signer import Signer
from hub.core.model import Device, LockSignature, Route
from hub.core.scribe import Scribe
from hub.store.sql import SqlTx

LOCK_SEED = bytes(range(32))
UNSIGNED = 5
# number of the device, prefix, offered, approved, SNAT
ROUTES = (
    (1, "192.168.7.0/24", True, True, True),
    (7, "192.168.7.0/24", True, True, True),
    (13, "192.168.7.0/24", True, False, True),
    (1, "fd00:7::/64", True, True, False),
    (19, "10.20.0.0/16", True, True, False),
    (25, "10.31.4.0/22", True, False, True),
    (31, "172.20.0.0/20", False, True, True),
    (4, "0.0.0.0/0", True, True, True),
    (4, "::/0", True, True, True),
    (10, "0.0.0.0/0", True, False, True),
)


def add_routes(tx: SqlTx, wall_s: int, ids: list[str]) -> None:
    for number, prefix, advertised, approved, snat in ROUTES:
        tx.save_route(Route(ids[number], *prefixes.parse(prefix), advertised=advertised, approved=approved, snat=snat))
    scribe = Scribe(providers.load(), os.urandom, tx.network())
    for number, name in ((1, "phone-anna"), (1, "label-printer"), (19, "tablet-line-3")):
        clients.add(scribe, tx, wall_s - 86_400 * number, name=name, gateway=_device(tx, ids[number]))


def add_names(tx: SqlTx) -> None:
    naming.set_search(tx, ["fleet.example", "plant.example"])
    naming.set_split(tx, "plant.example", ["10.20.0.53", "10.20.1.53"])
    naming.set_split(tx, "20.10.in-addr.arpa", ["10.20.0.53"])
    naming.add_record(tx, "printer", "A", "192.168.7.20")
    naming.add_record(tx, "archive", "CNAME", "edge-porto-1")
    naming.add_record(tx, "@", "TXT", "run by plant IT, +43 316 555 0199")


def add_lock(tx: SqlTx, wall_s: int, ids: list[str]) -> Signer:
    """In preparation: all but UNSIGNED devices are signed, and some of the others have not signed their node key."""
    crypto, network = providers.load(), tx.network().id
    signer, view = Signer(crypto, LOCK_SEED), lock.LockView(crypto, network)
    second = Signer(crypto, LOCK_SEED[::-1])
    draft = lock.first_draft(view, tx, [signer.public, second.public])
    lock.take_statement(view, crypto, tx, signer.statement(draft, wall_s))
    for number, device_id in enumerate(ids):
        device = _device(tx, device_id)
        if number % 9 != UNSIGNED:
            # A fleet's ids are drawn by lot, and no key is behind them: what counts is that a row is there.
            tx.save_lock_signature(LockSignature(device.id, signer.public, 0, wall_s, bytes(64)))
        if number % 11 != UNSIGNED and tx.node_key(device.node_key) is not None:
            tx.save_node_signature(device.node_key, device.id, wall_s + 90 * 86_400, bytes(64))
    return signer


def _device(tx: SqlTx, device_id: str) -> Device:
    found = tx.device(device_id)
    assert found is not None
    return found
