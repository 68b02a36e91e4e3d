"""Up to when nothing counts that a device was given for brokers that believe a signed word."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from hub.store.types import Integer

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("device", sa.Column("barred_s", Integer, nullable=False, server_default=sa.text("0")))
    # One whose admission has ended is still to hear of it with what it has; all others with a date were cut off.
    op.execute("UPDATE device SET barred_s = removed_s WHERE state <> 'expired'")
    op.create_index(
        "ix_device_barred",
        "device",
        ["barred_s"],
        unique=False,
        sqlite_where=sa.text("barred_s > 0"),
        postgresql_where=sa.text("barred_s > 0"),
    )


def downgrade() -> None:
    raise NotImplementedError("a hub's database only goes forward: restore the backup that was made before")
