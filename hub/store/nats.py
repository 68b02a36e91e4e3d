"""What NATS nodes have to be told of the tables: who is cut off."""

from __future__ import annotations

from sqlalchemy import Connection, and_, or_, select

from hub.core.model import DeviceState
from hub.store.schema import device, token


def cut_off(connection: Connection, limit: int) -> list[tuple[str, int]]:
    """(MQTT user, up to when nothing counts that it had), the latest first: devices and tokens without an account."""
    # One that waits after it was cut off has lost its account as well.
    gone = or_(
        device.c.state == DeviceState.REMOVED.value,
        and_(device.c.state == DeviceState.PENDING.value, device.c.removed_s > 0),
    )
    devices = select(device.c.id, device.c.removed_s).where(gone).order_by(device.c.removed_s.desc(), device.c.id)
    claims = select(token.c.claim, token.c.finished_s).where(~token.c.account).order_by(token.c.claim)
    found = [*connection.execute(claims.limit(limit)), *connection.execute(devices.limit(limit))]
    return sorted(((user, until) for user, until in found), key=lambda each: -each[1])[:limit]
