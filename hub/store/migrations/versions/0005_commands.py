"""Commands to devices, their output, and what watched devices say of themselves."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "command",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("verb", sa.Text(), nullable=False),
        sa.Column("args", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("created_s", sa.Integer(), nullable=False),
        sa.Column("expires_s", sa.Integer(), nullable=False),
        sa.Column("due_s", sa.Integer(), nullable=False),
        sa.Column("changed_s", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("finished_s", sa.Integer(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("parts", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_command"),
        sa.ForeignKeyConstraint(["device"], ["device.id"], name="fk_command_device"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_command_device", "command", ["device", "seq"], unique=False)
    op.create_index("ix_command_due", "command", ["due_s"], unique=False)
    op.create_index("ix_command_finished", "command", ["finished_s"], unique=False)
    op.create_table(
        "command_output",
        sa.Column("command", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("data", sa.BLOB(), nullable=False),
        sa.PrimaryKeyConstraint("command", "number", name="pk_command_output"),
        sa.ForeignKeyConstraint(["command"], ["command.id"], name="fk_command_output_command"),
    )
    op.create_table(
        "telemetry",
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("wall_s", sa.Integer(), nullable=False),
        sa.Column("sample", sa.BLOB(), nullable=False),
        sa.PrimaryKeyConstraint("device", name="pk_telemetry"),
        sa.ForeignKeyConstraint(["device"], ["device.id"], name="fk_telemetry_device"),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    raise NotImplementedError("a hub's database only goes forward: restore the backup that was made before")
