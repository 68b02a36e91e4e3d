"""A rig belongs to a person, whatever their login; one of a login that nobody has is nobody's."""

from __future__ import annotations

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute('ALTER TABLE rig RENAME COLUMN "user" TO person')
    op.execute("UPDATE rig SET person = coalesce((SELECT id FROM person WHERE login = rig.person), '')")


def downgrade() -> None:
    raise NotImplementedError("a hub's database only goes forward: restore the backup that was made before")
