"""What NATS nodes have to be told of the tables: who is cut off."""

from __future__ import annotations

from sqlalchemy import Connection, select

from hub.store.schema import BARRED, device, token


def cut_off(connection: Connection, limit: int) -> list[tuple[str, int]]:
    """(MQTT user, up to when nothing counts that it had), the latest first: tokens without an account, and devices
    that lost theirs once. Also those that came back: a node that did not hear it again would believe what they had."""
    devices = select(device.c.id, device.c.barred_s).where(BARRED).order_by(device.c.barred_s.desc(), device.c.id)
    claims = select(token.c.claim, token.c.finished_s).where(~token.c.account).order_by(token.c.claim)
    found = [*connection.execute(claims.limit(limit)), *connection.execute(devices.limit(limit))]
    return sorted(((user, until) for user, until in found), key=lambda each: -each[1])[:limit]
