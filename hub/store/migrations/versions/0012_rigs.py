"""Rigs, their runs, and the pages that were sent along."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from hub.store.types import BLOB, Integer

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "rig",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("created_s", Integer, nullable=False),
        sa.Column("runs", Integer, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_rig"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "rig_run",
        sa.Column("rig", sa.Text(), nullable=False),
        sa.Column("number", Integer, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("suite", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("began_s", Integer, nullable=False),
        sa.Column("received_s", Integer, nullable=False),
        sa.Column("took_ms", Integer, nullable=False),
        sa.Column("retries", Integer, nullable=False),
        sa.Column("failed", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("steps", Integer, nullable=False),
        sa.Column("passed", Integer, nullable=False),
        sa.Column("detail", BLOB, nullable=False),
        sa.Column("figures", BLOB, nullable=False),
        sa.PrimaryKeyConstraint("rig", "number", name="pk_rig_run"),
        sa.ForeignKeyConstraint(["rig"], ["rig.name"], name="fk_rig_run_rig"),
        sa.UniqueConstraint("rig", "id", name="uq_rig_run_rig_id"),
    )
    op.create_index("ix_rig_run_suite", "rig_run", ["rig", "suite", "number"], unique=False)
    op.create_table(
        "rig_page",
        sa.Column("rig", sa.Text(), nullable=False),
        sa.Column("number", Integer, nullable=False),
        sa.Column("page", BLOB, nullable=False),
        sa.PrimaryKeyConstraint("rig", "number", name="pk_rig_page"),
        sa.ForeignKeyConstraint(["rig"], ["rig.name"], name="fk_rig_page_rig"),
    )


def downgrade() -> None:
    raise NotImplementedError("a hub's database only goes forward: restore the backup that was made before")
