"""Audit rows of one kind are looked up: of pruning, and those that accept a break of the chain."""

from __future__ import annotations

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(op.f("ix_audit_verb_id"), "audit", ["verb", "id"])


def downgrade() -> None:
    raise NotImplementedError("a hub's database only goes forward: restore the backup that was made before")
