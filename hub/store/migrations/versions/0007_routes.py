"""Prefixes that devices route for others, and plain WireGuard clients behind gateways."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from hub.store.types import BLOB, Integer

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "route",
        sa.Column("device", sa.Text(), sa.ForeignKey("device.id"), primary_key=True),
        sa.Column("address", BLOB, primary_key=True),
        sa.Column("length", Integer, primary_key=True),
        sa.Column("advertised", sa.Boolean(), nullable=False),
        sa.Column("approved", sa.Boolean(), nullable=False),
        sa.Column("snat", sa.Boolean(), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_route_address", "route", ["address", "length"])
    op.create_table(
        "client",
        sa.Column("key", BLOB, primary_key=True),
        sa.Column("name", sa.Text(), nullable=False, unique=True),
        sa.Column("gateway", sa.Text(), sa.ForeignKey("device.id"), nullable=False),
        sa.Column("v4", Integer, nullable=False, unique=True),
        sa.Column("v6", BLOB, nullable=False, unique=True),
        sa.Column("created_s", Integer, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_client_gateway", "client", ["gateway"])


def downgrade() -> None:
    raise NotImplementedError("a hub's database only goes forward: restore the backup that was made before")
