"""The hub's beginning and its safety net: `init`, `backup`, `restore`."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.exc import DatabaseError

from edgeagent import crypto as providers
from edgeagent.proto.control import CA_BYTES_MAX
from edgeagent.proto.errors import RemoteProtocolError
from edgeagent.proto.keys import generate_private_key
from edgeagent.proto.names import is_domain, is_host_port, network_id, split_host_port
from hub import people
from hub.core.model import HubError, Network
from hub.core.roles import Access
from hub.database import demand_none
from hub.io import pki
from hub.moving import begin_again, new_database
from hub.opening import actor
from hub.state import State
from hub.store import database
from hub.store.meta import Site, save_network, save_site
from hub.store.migrate import migrate
from hub.store.sqlite import SqliteStore

HUB_USER = "hub"
NATS_PORT = 4222
ADDRESSES_MAX = 8


@dataclass(slots=True, frozen=True)
class External:
    """Brokers that somebody else runs: one, or with `nats` the nodes of one cluster."""

    addresses: tuple[str, ...]  # "host:port"
    ca_file: Path | None  # None, with `nats`: this hub makes one, and certificates under it
    user: str = ""  # none with `nats`: the hub signs what it may do itself
    password_file: Path | None = None
    nats: tuple[str, ...] = ()  # "host:port" of their ports for clients, where they are told who is cut off


@dataclass(slots=True, frozen=True)
class Owner:
    """The first person, who can make others."""

    login: str
    password: str


def initialise(
    state: State,
    *,
    domain: str,
    listen: str,
    addresses: list[str],
    external: External | None = None,
    owner: Owner | None = None,
    database_url: str = "",
) -> Network:
    """Make a new network; without an `owner` nobody can sign in yet. `database_url`: on a server, else in a file.

    Raises HubError, and then leaves nothing behind; never touches a hub that is there.
    """
    if not is_domain(domain):
        raise HubError(f"name {domain!r}: a domain has labels of a-z, 0-9 and -, with dots between. Try mesh.internal")
    listen_host, listen_port = _parse_listen(listen)
    if not addresses and external is not None:
        addresses = list(external.addresses)
    if not addresses:
        raise HubError("no address: devices must know where the broker is. Add --address NAME or --address 192.0.2.1")
    if len(addresses) > ADDRESSES_MAX:
        raise HubError(f"{len(addresses)} addresses: a token has room for {ADDRESSES_MAX}. Give fewer")
    hosts = tuple(dict.fromkeys(_parse_address(address, listen_port) for address in addresses))
    names = tuple(dict.fromkeys(split_host_port(host)[0] for host in hosts))
    if listen_host not in ("", "0.0.0.0", "::"):
        names = tuple(dict.fromkeys((*names, listen_host)))
    demand_none(state)

    wall_s = int(time.time())
    ca_key_pem = server_key_pem = server_cert_pem = ""
    if external is not None and external.ca_file is not None:
        ca_der = _read_ca(external.ca_file)
    else:
        ca_key_pem, ca_der = pki.make_ca(domain, wall_s)
    if external is None:
        server_key_pem, server_cert_pem = pki.make_server(ca_key_pem, ca_der, names)
    network = _make_network(domain, hosts, ca_der, epoch=wall_s, nats=bool(external and external.nats))
    site = Site(
        listen_host=listen_host,
        listen_port=listen_port,
        names=names,
        user=external.user if external else HUB_USER,
        password=_password(external),
        client_id=f"hub-{secrets.token_hex(12)}",
        ca_key_pem=ca_key_pem,
        server_key_pem=server_key_pem,
        server_cert_pem=server_cert_pem,
        external=",".join(_parse_address(address, listen_port) for address in external.addresses) if external else "",
        nats=",".join(_parse_address(address, NATS_PORT) for address in external.nats) if external else "",
    )
    with new_database(state, database_url) as tx:
        save_network(tx.connection, network)
        save_site(tx.connection, site)
        if owner is not None:
            people.add_person(tx, wall_s, actor(), login=owner.login, role=Access.OWNER, password=owner.password)
    return network


def backup(state: State, target: Path) -> None:
    """One consistent file, 0600, while the hub runs. Raises HubError; overwrites nothing."""
    if state.database_url():
        raise HubError(
            "backup: this hub's database is on a server. Back it up there (pg_dump), or use `edgehub export`"
        )
    if not state.database.is_file():
        raise HubError(f"{state.database}: there is no hub here. `edgehub init` makes one")
    if target.exists():
        raise HubError(f"{target}: it exists, and a backup overwrites nothing. Choose another name")
    try:
        with state.new_file(target) as new:
            database.copy(state.database, new)
            os.link(new, target)
    except OSError as error:
        raise HubError(f"{target}: cannot be written ({error.strerror})") from error


def restore(state: State, source: Path, *, force: bool) -> int:
    """Put a backup in place and raise its epoch, so that devices take its word over all that was said since.

    Returns the new epoch. With `force` a hub that is there is replaced; its database is kept beside, as `hub.db.old`.
    """
    database.check(source)
    if state.database_url():
        raise HubError(f"{state.server}: the database of the hub here is on a server. Restore it there")
    state.make()
    if state.database.exists() and not force:
        raise HubError(f"{state.database}: there is a hub here already. --force replaces it")
    with state.running(), state.new_file(state.database) as new:
        shutil.copyfile(source, new)
        new.chmod(0o600)
        migrate(new)
        with contextlib.closing(SqliteStore(new)) as store, store.write() as tx:
            epoch = begin_again(tx, _epoch_of(state.database), "restore")
        _move_aside(state.database)
        os.replace(new, state.database)
    return epoch


def _make_network(domain: str, hosts: tuple[str, ...], ca_der: bytes, *, epoch: int, nats: bool) -> Network:
    crypto = providers.load()
    seed = os.urandom(32)
    key = crypto.ed25519_public(seed)
    box_private = generate_private_key(os.urandom)
    return Network(
        id=network_id(crypto, key),
        domain=domain,
        seed=seed,
        key=key,
        box_private=box_private,
        box_key=crypto.x25519_base(box_private),
        epoch=epoch,
        ca_der=ca_der,
        hosts=hosts,
        nats=nats,
    )


def _parse_listen(text: str) -> tuple[str, int]:
    """`8883`, `*:8883`, `192.0.2.1:8883` or `[::1]:8883`: (host or "" for all, port)."""
    host, _, port = text.rpartition(":")
    if host in ("", "*"):
        if not port.isdecimal() or not 1 <= int(port) <= 65535:
            raise HubError(f"--listen {text}: a port of 1 to 65535 expected, as in 8883 or 192.0.2.1:8883")
        return "", int(port)
    try:
        return split_host_port(text, "--listen")
    except RemoteProtocolError as error:
        raise HubError(f"{error}. Write for example 8883 or 192.0.2.1:8883") from error


def _parse_address(text: str, port: int) -> str:
    """`host:port`, the port being the broker's own where none is given."""
    for candidate in (text, f"{text}:{port}", f"[{text}]:{port}"):
        if is_host_port(candidate):
            return candidate
    raise HubError(
        f"--address {text}: a host name, an IPv4 or an IPv6 address expected, and `:port` if it is not {port}"
    )


def _read_ca(path: Path) -> bytes:
    try:
        der = pki.pem_to_der(path.read_bytes())
    except OSError as error:
        raise HubError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, IndexError) as error:
        raise HubError(f"{path}: not a certificate in PEM form") from error
    if len(der) > CA_BYTES_MAX:
        raise HubError(f"{path}: a CA certificate of {len(der)} bytes; devices take {CA_BYTES_MAX}. Use a smaller one")
    return der


def _password(external: External | None) -> str:
    """The hub's at its broker."""
    if external is None:
        return secrets.token_urlsafe(32)
    return "" if external.password_file is None else _read_password(external.password_file)


def _read_password(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise HubError(f"{path}: cannot be read ({error.strerror})") from error


def _epoch_of(path: Path) -> int:
    """Of the hub that is about to be replaced; 0 when there is none that can be read."""
    if not path.is_file():
        return 0
    try:
        with contextlib.closing(SqliteStore(path)) as store, store.read() as tx:
            return tx.network().epoch
    except (HubError, DatabaseError, KeyError):
        return 0


def _move_aside(path: Path) -> None:
    """The database and its log of changes, together."""
    for suffix in ("", "-wal", "-shm"):
        old = path.with_name(path.name + suffix)
        if old.exists():
            os.replace(old, path.with_name(f"{path.name}.old{suffix}"))
