"""Routes and plain WireGuard clients, as rows. Functions over a connection, called by `hub.store.sql_parts`."""

from __future__ import annotations

from sqlalchemy import Connection, and_, bindparam, delete, func, insert, not_, or_, select
from sqlalchemy.dialects.postgresql import insert as upsert

from edgeagent.proto.prefixes import mask
from hub.core.model import Client, DeviceState, Route
from hub.store.prepared import Prepared
from hub.store.schema import client, device, route

_ROUTE = select(route)
_BY_KEY = (route.c.device, route.c.address, route.c.length)
_CLIENT = select(client)
_ROUTES = Prepared(_ROUTE.where(route.c.device == bindparam("value")).order_by(route.c.address, route.c.length))
_CLIENTS = Prepared(_CLIENT.where(client.c.gateway == bindparam("value")).order_by(client.c.name))
_CLIENT_BY_V4 = Prepared(_CLIENT.where(client.c.v4 == bindparam("value")))
_CLIENT_BY_V6 = Prepared(_CLIENT.where(client.c.v6 == bindparam("value")))


def routes(connection: Connection, device_id: str) -> list[Route]:
    return [Route(*row) for row in _ROUTES.all(connection, {"value": device_id})]


def all_routes(connection: Connection, after: tuple[str, bytes, int], limit: int) -> list[Route]:
    owner, address, length = after
    same = and_(
        route.c.device == owner,
        or_(route.c.address > address, and_(route.c.address == address, route.c.length > length)),
    )
    query = _ROUTE.where(or_(route.c.device > owner, same)).order_by(*_BY_KEY).limit(limit)
    return [Route(*row) for row in connection.execute(query)]


def save_route(connection: Connection, saved: Route) -> None:
    values = {name: getattr(saved, name) for name in ("advertised", "approved", "snat")}
    statement = upsert(route).values(device=saved.device, address=saved.address, length=saved.length, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["device", "address", "length"], set_=values))


def drop_route(connection: Connection, device_id: str, address: bytes, length: int) -> None:
    same = (route.c.device == device_id, route.c.address == address, route.c.length == length)
    connection.execute(delete(route).where(*same))


def routes_holding(connection: Connection, address: bytes) -> list[Route]:
    """Every prefix that holds an address is one of its networks: so it is found by the index."""
    networks = {mask(address, length) for length in range(8 * len(address) + 1)}
    query = _ROUTE.where(route.c.address.in_(sorted(networks)), route.c.advertised, route.c.approved)
    found = [Route(*row) for row in connection.execute(query.order_by(*_BY_KEY))]
    return [each for each in found if each.address == mask(address, each.length)]


def prefixes_in_use(connection: Connection, limit: int) -> list[tuple[bytes, int]]:
    query = (
        select(route.c.address, route.c.length)
        .join(device, device.c.id == route.c.device)
        .where(route.c.advertised, route.c.approved, route.c.length > 0, device.c.state == DeviceState.ACTIVE.value)
        .distinct()
        .order_by(route.c.address, route.c.length)
        .limit(limit)
    )
    return [(row.address, row.length) for row in connection.execute(query)]


def waiting(connection: Connection) -> int:
    """How many devices offer something that nobody has approved yet."""
    query = select(func.count(route.c.device.distinct())).join(device, device.c.id == route.c.device)
    query = query.where(route.c.advertised, not_(route.c.approved), device.c.state == DeviceState.ACTIVE.value)
    count: int = connection.execute(query).scalar_one()
    return count


def add_client(connection: Connection, new: Client) -> None:
    connection.execute(insert(client), {column.name: getattr(new, column.name) for column in client.columns})


def drop_client(connection: Connection, key: bytes) -> None:
    connection.execute(delete(client).where(client.c.key == key))


def clients(connection: Connection, gateway: str | None) -> list[Client]:
    if gateway is None:
        return [Client(*row) for row in connection.execute(_CLIENT.order_by(client.c.name))]
    return [Client(*row) for row in _CLIENTS.all(connection, {"value": gateway})]


def client_count(connection: Connection) -> int:
    count: int = connection.execute(select(func.count()).select_from(client)).scalar_one()
    return count


def client_by(connection: Connection, v4: int | None, v6: bytes | None) -> Client | None:
    query, value = (_CLIENT_BY_V4, v4) if v4 is not None else (_CLIENT_BY_V6, v6)
    row = query.first(connection, {"value": value})
    return None if row is None else Client(*row)
