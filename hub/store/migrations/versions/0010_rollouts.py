"""Rollouts, and how far each of their devices is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from hub.store.types import Integer

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "rollout",
        sa.Column("id", Integer, nullable=False, autoincrement=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("selector", sa.Text(), nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("created_s", Integer, nullable=False),
        sa.Column("total", Integer, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("since_s", Integer, nullable=False),
        sa.Column("group", Integer, nullable=False),
        sa.Column("approved", Integer, nullable=False),
        sa.Column("approved_by", sa.Text(), nullable=False),
        sa.Column("group_s", Integer, nullable=False),
        sa.Column("forgiven", Integer, nullable=False),
        sa.Column("finished_s", Integer, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_rollout"),
    )
    op.create_index("ix_rollout_state", "rollout", ["state"], unique=False)
    op.create_table(
        "rollout_device",
        sa.Column("rollout", Integer, nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("rank", Integer, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("group", Integer, nullable=False),
        sa.Column("tries", Integer, nullable=False),
        sa.Column("order", Integer, nullable=False),
        sa.Column("due_s", Integer, nullable=False),
        sa.Column("changed_s", Integer, nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("rollout", "device", name="pk_rollout_device"),
        sa.ForeignKeyConstraint(["rollout"], ["rollout.id"], name="fk_rollout_device_rollout"),
        sa.ForeignKeyConstraint(["device"], ["device.id"], name="fk_rollout_device_device"),
        sa.UniqueConstraint("holder", name="uq_rollout_device_holder"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_rollout_device_device", "rollout_device", ["device"], unique=False)
    op.create_index("ix_rollout_device_rank", "rollout_device", ["rollout", "state", "rank"], unique=False)
    op.create_index("ix_rollout_device_due", "rollout_device", ["rollout", "due_s"], unique=False)


def downgrade() -> None:
    raise NotImplementedError("a hub's database only goes forward: restore the backup that was made before")
