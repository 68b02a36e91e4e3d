"""The network's identity and this hub's settings, in the `meta` table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, bindparam, select
from sqlalchemy.dialects.postgresql import insert  # SQLite takes it too

from hub.core.model import Network
from hub.store.prepared import Prepared
from hub.store.schema import meta

_VALUE = Prepared(select(meta.c.value).where(meta.c.name == bindparam("name")))


@dataclass(slots=True, frozen=True)
class Site:
    """How this hub reaches its broker and proves itself to it; nothing here is told to devices."""

    listen_host: str  # where this hub's own broker listens; "" = all addresses
    listen_port: int
    names: tuple[str, ...]  # host names and addresses in the broker's certificate
    user: str  # the hub's account at the broker
    password: str
    client_id: str  # its MQTT client id: random, because whoever knows it could end its session
    ca_key_pem: str  # "" where somebody else makes the brokers' certificates
    server_key_pem: str
    server_cert_pem: str
    external: str = ""  # "host:port" of a broker that somebody else runs; several with commas between
    nats: str = ""  # where NATS nodes are told of accounts, in the same form; "" when the broker is none of them


def save_network(connection: Connection, network: Network) -> None:
    _save(
        connection,
        {
            "network_id": network.id.encode(),
            "domain": network.domain.encode(),
            "network_seed": network.seed,
            "network_key": network.key,
            "box_private": network.box_private,
            "box_key": network.box_key,
            "epoch": str(network.epoch).encode(),
            "ca_der": network.ca_der,
            "hosts": json.dumps(network.hosts).encode(),
            "nats": b"nats" if network.nats else b"",
        },
    )


def load_network(connection: Connection) -> Network:
    values = {row.name: row.value for row in connection.execute(select(meta.c.name, meta.c.value))}
    return Network(
        id=values["network_id"].decode(),
        domain=values["domain"].decode(),
        seed=values["network_seed"],
        key=values["network_key"],
        box_private=values["box_private"],
        box_key=values["box_key"],
        epoch=int(values["epoch"]),
        ca_der=values["ca_der"],
        hosts=tuple(json.loads(values["hosts"])),
        nats=bool(values.get("nats")),
    )


def save_site(connection: Connection, site: Site) -> None:
    _save(connection, {"site": json.dumps(asdict(site)).encode()})


def load_site(connection: Connection) -> Site:
    values = json.loads(connection.execute(select(meta.c.value).where(meta.c.name == "site")).scalar_one())
    return Site(**{**values, "names": tuple(values["names"])})


def save_relay_list(connection: Connection, encoded: bytes) -> None:
    _save(connection, {"relays": encoded})


def load_relay_list(connection: Connection) -> bytes:
    """Empty when there never was one."""
    return _load(connection, "relays")


def save_names(connection: Connection, encoded: bytes) -> None:
    _save(connection, {"names": encoded})


def load_names(connection: Connection) -> bytes:
    """Empty when nothing was ever set."""
    return _load(connection, "names")


def save_audit_keep(connection: Connection, encoded: bytes) -> None:
    _save(connection, {"audit_keep": encoded})


def load_audit_keep(connection: Connection) -> bytes:
    """Empty when nothing was ever set."""
    return _load(connection, "audit_keep")


def save_update_root(connection: Connection, version: int, digest: bytes) -> None:
    """The first root that devices believe updates by; the SHA-256 of its file."""
    _save(connection, {"update_root": version.to_bytes(4, "big") + digest})


def load_update_root(connection: Connection) -> tuple[int, bytes] | None:
    found = _load(connection, "update_root")
    return (int.from_bytes(found[:4], "big"), found[4:]) if found else None


def save_has_plugin(connection: Connection) -> None:
    """That the broker somebody else runs has answered as Mosquitto's dynamic security plugin does."""
    _save(connection, {"broker_plugin": b"seen"})


def load_has_plugin(connection: Connection) -> bool:
    return bool(_load(connection, "broker_plugin"))


def take_account_time(connection: Connection, wall_s: int) -> int:
    """The `iat` of the account that NATS nodes are told next: later than any before, wherever the clock has gone."""
    last = int(_load(connection, "nats_told") or b"0")
    taken = max(wall_s, last + 1)
    _save(connection, {"nats_told": str(taken).encode()})
    return taken


def _load(connection: Connection, name: str) -> bytes:
    row = _VALUE.first(connection, {"name": name})
    return (row[0] if row else None) or b""


def save_route_list(connection: Connection, encoded: bytes) -> None:
    _save(connection, {"routes": encoded})


def load_route_list(connection: Connection) -> bytes:
    """Empty when there never was one."""
    return _load(connection, "routes")


def _save(connection: Connection, values: dict[str, bytes]) -> None:
    statement = insert(meta)
    statement = statement.on_conflict_do_update(index_elements=["name"], set_={"value": statement.excluded.value})
    connection.execute(statement, [{"name": name, "value": value} for name, value in values.items()])
