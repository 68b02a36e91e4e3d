"""Devices that ask to come in without a token."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from hub.core.claims import LIFE_S, Claim, ClaimState
from hub.store.schema import claim


def add(connection: Connection, new: Claim) -> None:
    connection.execute(insert(claim), _values(new))


def save(connection: Connection, changed: Claim) -> None:
    connection.execute(update(claim).where(claim.c.code == changed.code).values(_values(changed)))


def by_code(connection: Connection, code: str) -> Claim | None:
    return _to_claim(connection.execute(select(claim).where(claim.c.code == code)).first())


def by_secret(connection: Connection, secret_hash: bytes) -> Claim | None:
    return _to_claim(connection.execute(select(claim).where(claim.c.secret_hash == secret_hash)).first())


def waiting(connection: Connection, wall_s: int) -> list[Claim]:
    """Those that somebody can decide about, the oldest first; admission keeps them few."""
    query = select(claim).where(claim.c.state == ClaimState.WAITING.value, claim.c.created_s > wall_s - LIFE_S)
    rows = connection.execute(query.order_by(claim.c.created_s))
    return [found for row in rows if (found := _to_claim(row)) is not None]


def count(connection: Connection) -> int:
    number: int = connection.execute(select(func.count()).select_from(claim)).scalar_one()
    return number


def forget(connection: Connection, wall_s: int) -> None:
    """Those that are over, and tokens that nobody fetched with them."""
    connection.execute(delete(claim).where(claim.c.created_s <= wall_s - LIFE_S))


def _values(item: Claim) -> dict[str, Any]:
    return {**asdict(item), "facts": json.dumps(item.facts), "state": item.state.value}


def _to_claim(row: Row[Any] | None) -> Claim | None:
    if row is None:
        return None
    return Claim(**{**row._mapping, "facts": json.loads(row.facts), "state": ClaimState(row.state)})
