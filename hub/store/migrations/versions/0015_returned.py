"""Relays are told also of devices that were cut off and came back: the index of who was cut off has them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_CUT_OFF = "removed_s > 0 AND kind <> 'relay'"


def upgrade() -> None:
    op.drop_index("ix_device_cut_off", "device")
    op.create_index(
        "ix_device_cut_off",
        "device",
        ["id", "removed_s"],
        unique=False,
        sqlite_where=sa.text(_CUT_OFF),
        postgresql_where=sa.text(_CUT_OFF),
    )


def downgrade() -> None:
    raise NotImplementedError("a hub's database only goes forward: restore the backup that was made before")
