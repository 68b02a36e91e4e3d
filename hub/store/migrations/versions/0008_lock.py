"""The network lock: statements and signatures of lock keys, and devices' signatures of their own node keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from hub.store.types import BLOB, Integer

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "lock_statement",
        sa.Column("sequence", Integer, nullable=False),
        sa.Column("raw", BLOB, nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_lock_statement"),
    )
    op.create_table(
        "lock_signature",
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("by", BLOB, nullable=False),
        sa.Column("not_after", Integer, nullable=False),
        sa.Column("sequence", Integer, nullable=False),
        sa.Column("signature", BLOB, nullable=False),
        sa.ForeignKeyConstraint(["device"], ["device.id"], name="fk_lock_signature_device"),
        sa.PrimaryKeyConstraint("device", "by", name="pk_lock_signature"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "node_signature",
        sa.Column("key", BLOB, nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("not_after", Integer, nullable=False),
        sa.Column("signature", BLOB, nullable=False),
        sa.ForeignKeyConstraint(["device"], ["device.id"], name="fk_node_signature_device"),
        sa.ForeignKeyConstraint(["key"], ["node_key.key"], name="fk_node_signature_key"),
        sa.PrimaryKeyConstraint("key", name="pk_node_signature"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_node_signature_device", "node_signature", ["device"], unique=False)


def downgrade() -> None:
    raise NotImplementedError("a hub's database only goes forward: restore the backup that was made before")
