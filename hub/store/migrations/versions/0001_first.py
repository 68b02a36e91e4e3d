"""The first form: network, tokens, devices, pairs, jobs, outgoing rows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from hub.store.types import BLOB, Integer

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "counter",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", Integer, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_counter"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "device",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("claim", sa.Text(), nullable=False),
        sa.Column("device_key", BLOB, nullable=False),
        sa.Column("box_key", BLOB, nullable=False),
        sa.Column("node_key", BLOB, nullable=False),
        sa.Column("created_s", Integer, nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("v4", Integer, nullable=True),
        sa.Column("v6", BLOB, nullable=True),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("credential", sa.Text(), nullable=False),
        sa.Column("pending_password", sa.Text(), nullable=False),
        sa.Column("feed_key", BLOB, nullable=False),
        sa.Column("feed_generation", Integer, nullable=False),
        sa.Column("not_after", Integer, nullable=False),
        sa.Column("boot", BLOB, nullable=False),
        sa.Column("boot_before", BLOB, nullable=False),
        sa.Column("cloned_s", Integer, nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("facts", sa.Text(), nullable=False),
        sa.Column("map_epoch", Integer, nullable=False),
        sa.Column("map_seq", Integer, nullable=False),
        sa.Column("record", BLOB, nullable=False),
        sa.Column("record_epoch", Integer, nullable=False),
        sa.Column("record_seq", Integer, nullable=False),
        sa.Column("record_renew_s", Integer, nullable=False),
        sa.Column("online", sa.Boolean(), nullable=False),
        sa.Column("presence_epoch", Integer, nullable=False),
        sa.Column("presence_seq", Integer, nullable=False),
        sa.Column("state_digest", BLOB, nullable=False),
        sa.Column("last_seen_s", Integer, nullable=False),
        sa.Column("removed_s", Integer, nullable=False),
        sa.Column("removed_seq", Integer, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_device"),
        sa.UniqueConstraint("name", name="uq_device_name"),
        sa.UniqueConstraint("v4", name="uq_device_v4"),
        sa.UniqueConstraint("v6", name="uq_device_v6"),
    )
    op.create_index(
        "ix_device_expire",
        "device",
        ["not_after"],
        unique=False,
        sqlite_where=sa.text("state = 'active' AND not_after > 0"),
        postgresql_where=sa.text("state = 'active' AND not_after > 0"),
    )
    op.create_index(
        "ix_device_online",
        "device",
        ["online"],
        unique=False,
        sqlite_where=sa.text("online"),
        postgresql_where=sa.text("online"),
    )
    op.create_index(
        "ix_device_renew",
        "device",
        ["record_renew_s"],
        unique=False,
        sqlite_where=sa.text("state = 'active' AND record_renew_s > 0"),
        postgresql_where=sa.text("state = 'active' AND record_renew_s > 0"),
    )
    op.create_index("ix_device_state", "device", ["state", "id"], unique=False)
    op.create_table(
        "job",
        sa.Column("id", Integer, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("reader", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_job"),
        sa.UniqueConstraint("kind", "reader", "subject", name="uq_job_kind_reader_subject"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "meta",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", BLOB, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_meta"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "outgoing",
        sa.Column("id", Integer, nullable=False),
        sa.Column("op", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("payload", BLOB, nullable=False),
        sa.Column("retain", sa.Boolean(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_outgoing"),
        sa.UniqueConstraint("key", name="uq_outgoing_key"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_outgoing_account",
        "outgoing",
        ["target"],
        unique=False,
        sqlite_where=sa.text("op <> 'publish'"),
        postgresql_where=sa.text("op <> 'publish'"),
    )
    op.create_table(
        "token",
        sa.Column("claim", sa.Text(), nullable=False),
        sa.Column("secret_hash", BLOB, nullable=False),
        sa.Column("credential", sa.Text(), nullable=False),
        sa.Column("created_s", Integer, nullable=False),
        sa.Column("created_seq", Integer, nullable=False),
        sa.Column("not_after", Integer, nullable=False),
        sa.Column("uses", Integer, nullable=False),
        sa.Column("used", Integer, nullable=False),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("needs_approval", sa.Boolean(), nullable=False),
        sa.Column("revoked_s", Integer, nullable=False),
        sa.Column("finished_s", Integer, nullable=False),
        sa.Column("account", sa.Boolean(), nullable=False),
        sa.CheckConstraint("uses = 0 OR used <= uses", name="ck_token_uses"),
        sa.PrimaryKeyConstraint("claim", name="pk_token"),
    )
    op.create_index(
        "ix_token_close",
        "token",
        ["finished_s"],
        unique=False,
        sqlite_where=sa.text("account AND finished_s > 0"),
        postgresql_where=sa.text("account AND finished_s > 0"),
    )
    op.create_index(
        "ix_token_finish",
        "token",
        ["not_after"],
        unique=False,
        sqlite_where=sa.text("finished_s = 0 AND not_after > 0"),
        postgresql_where=sa.text("finished_s = 0 AND not_after > 0"),
    )
    op.create_table(
        "node_key",
        sa.Column("key", BLOB, nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("not_after", Integer, nullable=False),
        sa.ForeignKeyConstraint(["device"], ["device.id"], name="fk_node_key_device"),
        sa.PrimaryKeyConstraint("key", name="pk_node_key"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_node_key_device", "node_key", ["device"], unique=False)
    op.create_index("ix_node_key_not_after", "node_key", ["not_after"], unique=False)
    op.create_table(
        "pair",
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("other", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["device.id"], name="fk_pair_device"),
        sa.ForeignKeyConstraint(["other"], ["device.id"], name="fk_pair_other"),
        sa.PrimaryKeyConstraint("device", "other", name="pk_pair"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "stamp",
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("epoch", Integer, nullable=False),
        sa.Column("seq", Integer, nullable=False),
        sa.ForeignKeyConstraint(["device"], ["device.id"], name="fk_stamp_device"),
        sa.PrimaryKeyConstraint("device", "kind", name="pk_stamp"),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    raise NotImplementedError("a hub's database only goes forward: restore the backup that was made before")
