"""Whether a person's role is what the provider's groups said last."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("person", sa.Column("role_from", sa.Text(), nullable=False, server_default=""))
