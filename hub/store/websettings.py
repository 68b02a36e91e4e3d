"""Where the dashboard and the API listen and under which address people reach them, in the `meta` table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.dialects.sqlite import insert

from hub.store.schema import meta

DEFAULT_LISTEN = "127.0.0.1:8480"
_NAME = "web"


@dataclass(slots=True, frozen=True)
class WebSettings:
    listen: str = DEFAULT_LISTEN  # "host:port"
    url: str = ""  # "https://hub.example.org", as browsers see it; "" = only as localhost
    cert: str = ""  # PEM files; "" = plain HTTP, for localhost or a reverse proxy that speaks TLS
    key: str = ""
    private_hooks: bool = False  # whether web hooks may go to private addresses
    proxies: tuple[str, ...] = ()  # addresses of reverse proxies whose X-Forwarded-For is believed


def load(connection: Connection) -> WebSettings:
    values = load_json(connection, _NAME)
    return WebSettings(**{**values, "proxies": tuple(values.get("proxies", ()))})


def save(connection: Connection, settings: WebSettings) -> None:
    save_json(connection, _NAME, asdict(settings))


def load_json(connection: Connection, name: str) -> dict[str, Any]:
    """One row of `meta`; empty when there is none."""
    found = connection.execute(select(meta.c.value).where(meta.c.name == name)).scalar()
    values: dict[str, Any] = json.loads(found) if found else {}
    return values


def save_json(connection: Connection, name: str, values: dict[str, Any]) -> None:
    statement = insert(meta).values(name=name, value=json.dumps(values).encode())
    connection.execute(
        statement.on_conflict_do_update(index_elements=["name"], set_={"value": statement.excluded.value})
    )
