"""Plain WireGuard clients: a phone, or whatever runs no agent, behind a gateway device of the network.

The hub gives a client an address and tells the gateway its public key; others reach it through the gateway. Where the
hub makes the key pair, the private key is in what `add` returns and nowhere else.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address

from edgeagent.proto import prefixes
from edgeagent.proto.control import CLIENTS_MAX, MAP_ROUTES_MAX
from edgeagent.proto.keys import clamp
from edgeagent.proto.names import device_id, is_host_name, is_host_port
from hub.core import ipam
from hub.core.model import NODE_KEY_LIFE_S, Client, Device, DeviceState, HubError
from hub.core.scribe import Scribe
from hub.core.store import Tx

CLIENTS_KNOWN_MAX = 4_096
KEEPALIVE_S = 25  # what a phone behind a NAT needs to be reached


@dataclass(slots=True, frozen=True)
class Added:
    """A new client. `private` is None where the client made its keys itself."""

    client: Client
    private: bytes | None


def add(scribe: Scribe, tx: Tx, wall_s: int, *, name: str, gateway: Device, public_key: bytes | None = None) -> Added:
    """Raises HubError."""
    if not is_host_name(name):
        raise HubError(f"name {name!r}: one DNS label expected, a-z, 0-9 and -, at most 63 characters")
    if tx.device_by_name(name) is not None or any(client.name == name for client in tx.clients()):
        raise HubError(f"name {name}: a device or a client has it. Choose another")
    if gateway.state is not DeviceState.ACTIVE:
        raise HubError(f"gateway {gateway.name or gateway.id}: it is {gateway.state.value}, and has to be active")
    if len(tx.clients(gateway.id)) >= CLIENTS_MAX or tx.client_count() >= CLIENTS_KNOWN_MAX:
        raise HubError(f"gateway {gateway.name}: {CLIENTS_MAX} clients are all that one gateway has. Use another one")
    private = None
    if public_key is None:
        private = clamp(scribe.entropy(32))
        public_key = scribe.crypto.x25519_base(private)
    elif tx.node_key(public_key) is not None or any(client.key == public_key for client in tx.clients()):
        raise HubError("public key: a device or a client has it already. Each client needs keys of its own")
    elif not any(scribe.crypto.x25519(scribe.network.box_private, public_key)):
        raise HubError("public key: not one that WireGuard could use (RFC 7748, section 6.1)")
    like = device_id(scribe.crypto, public_key)
    client = Client(
        key=public_key,
        name=name,
        gateway=gateway.id,
        v4=ipam.choose_v4(like, lambda address: ipam.is_taken_v4(tx, address)),
        v6=ipam.choose_v6(scribe.network.id, like, lambda address: ipam.is_taken_v6(tx, address)),
        created_s=wall_s,
    )
    tx.add_client(client)
    scribe.push(tx, gateway)
    return Added(client, private)


def remove(scribe: Scribe, tx: Tx, name: str) -> Client:
    """The gateway lets go of it with its next map, and others no longer reach its address. Raises HubError."""
    client = next((client for client in tx.clients() if client.name == name), None)
    if client is None:
        raise HubError(f"client {name}: there is none of this name. `edgehub client list` shows them")
    tx.drop_client(client.key)
    gateway = tx.device(client.gateway)
    if gateway is not None:
        scribe.push(tx, gateway)
    return client


def forget(tx: Tx, gateway: Device) -> None:
    """The gateway is removed, and its clients with it."""
    for client in tx.clients(gateway.id):
        tx.drop_client(client.key)


def keep_keys(scribe: Scribe, tx: Tx, wall_s: int) -> None:
    """Nobody tells a plain client that its gateway has another key: one that has clients keeps its own."""
    if not tx.client_count():
        return
    for owner in sorted({client.gateway for client in tx.clients()}):
        gateway = tx.device(owner)
        known = None if gateway is None else tx.node_key(gateway.node_key)
        if gateway is not None and known is not None and known.not_after < wall_s + NODE_KEY_LIFE_S // 2:
            tx.save_node_key(replace(known, not_after=wall_s + NODE_KEY_LIFE_S))
            scribe.push(tx, gateway)


def read_key(text: str) -> bytes:
    """A public key as `wg pubkey` prints it. Raises HubError."""
    try:
        key = b64decode(text.strip(), validate=True)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise HubError("--public-key: want what `wg pubkey` prints: 44 characters that end in =")
    return key


def addresses(client: Client) -> tuple[str, str]:
    return str(IPv4Address(client.v4)), str(IPv6Address(client.v6))


def config(tx: Tx, added: Added, *, endpoint: str) -> str:
    """What the client's WireGuard app reads. `endpoint` is HOST:PORT of the gateway. Raises HubError."""
    if not is_host_port(endpoint):
        raise HubError(f"--endpoint {endpoint[:80]!r}: want HOST:PORT, where the client finds the gateway's UDP port")
    gateway = tx.device(added.client.gateway)
    assert gateway is not None
    v4, v6 = addresses(added.client)
    allowed = [
        f"{IPv4Address(ipam.V4_NETWORK)}/{ipam.V4_PREFIX}",
        f"{IPv6Address(ipam.ula_network(tx.network().id))}/{ipam.V6_PREFIX}",
        *(prefixes.to_text(prefix) for prefix in tx.prefixes_in_use(MAP_ROUTES_MAX)),
    ]
    key = "# PrivateKey = (the one whose public key you gave)"
    if added.private is not None:
        key = f"PrivateKey = {b64encode(added.private).decode()}"
    return "\n".join(
        [
            "[Interface]",
            key,
            f"Address = {v4}/32, {v6}/128",
            "MTU = 1280",
            "",
            "[Peer]",
            f"PublicKey = {b64encode(gateway.node_key).decode()}",
            f"AllowedIPs = {', '.join(allowed)}",
            f"Endpoint = {endpoint}",
            f"PersistentKeepalive = {KEEPALIVE_S}",
            "",
        ]
    )
