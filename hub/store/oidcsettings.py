"""The OIDC provider's settings in the `meta` table, the client's secret among them."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import Connection

from hub.core.oidc import Oidc
from hub.store.websettings import load_json, save_json

_NAME = "oidc"


def load(connection: Connection) -> Oidc:
    values = load_json(connection, _NAME)
    return Oidc(**{**values, "domains": tuple(values.get("domains", ()))})


def save(connection: Connection, settings: Oidc) -> None:
    save_json(connection, _NAME, asdict(settings))
