"""The policy: its versions, and what of it each device was told last."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "policy",
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("created_s", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("version", name="pk_policy"),
    )
    op.add_column("device", sa.Column("slice_digest", sa.BLOB(), nullable=False, server_default=sa.text("x''")))
    op.add_column("device", sa.Column("groups_digest", sa.BLOB(), nullable=False, server_default=sa.text("x''")))


def downgrade() -> None:
    raise NotImplementedError("a hub's database only goes forward: restore the backup that was made before")
