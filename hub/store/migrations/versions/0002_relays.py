"""Relays: they join as devices do, and maps carry a list of them and passes for them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from hub.store.types import BLOB, EmptyBlob, Integer

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("token", sa.Column("kind", sa.Text(), nullable=False, server_default="device"))
    op.add_column("device", sa.Column("kind", sa.Text(), nullable=False, server_default="device"))
    op.add_column("device", sa.Column("relay", BLOB, nullable=False, server_default=EmptyBlob()))
    op.add_column("device", sa.Column("members", Integer, nullable=False, server_default=sa.text("0")))
    op.add_column("device", sa.Column("pass_renew_s", Integer, nullable=False, server_default=sa.text("0")))
    op.create_index(
        "ix_device_relay",
        "device",
        ["id"],
        unique=False,
        sqlite_where=sa.text("kind = 'relay'"),
        postgresql_where=sa.text("kind = 'relay'"),
    )
    op.create_index(
        "ix_device_pass",
        "device",
        ["pass_renew_s"],
        unique=False,
        sqlite_where=sa.text("state = 'active' AND pass_renew_s > 0"),
        postgresql_where=sa.text("state = 'active' AND pass_renew_s > 0"),
    )
    op.create_index(
        "ix_device_cut_off",
        "device",
        ["id", "removed_s"],
        unique=False,
        sqlite_where=sa.text("removed_s > 0 AND state IN ('expired', 'removed')"),
        postgresql_where=sa.text("removed_s > 0 AND state IN ('expired', 'removed')"),
    )


def downgrade() -> None:
    raise NotImplementedError("a hub's database only goes forward: restore the backup that was made before")
