"""People who use the hub, how they sign in, what they did, and who is told by web hooks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from hub.store.types import BLOB, Integer

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "person",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("login", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("password", sa.Text(), nullable=False),
        sa.Column("issuer", sa.Text(), nullable=True),
        sa.Column("subject", sa.Text(), nullable=True),
        sa.Column("disabled_s", Integer, nullable=False),
        sa.Column("created_s", Integer, nullable=False),
        sa.Column("seen_s", Integer, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_person")),
        sa.UniqueConstraint("login", name=op.f("uq_person_login")),
        sa.UniqueConstraint("issuer", "subject", name=op.f("uq_person_issuer_subject")),
    )
    op.create_table(
        "session",
        sa.Column("hash", BLOB, nullable=False),
        sa.Column("person", sa.Text(), nullable=False),
        sa.Column("created_s", Integer, nullable=False),
        sa.Column("seen_s", Integer, nullable=False),
        sa.Column("ended_s", Integer, nullable=False),
        sa.Column("how", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("browser", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["person"], ["person.id"], name=op.f("fk_session_person")),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_session")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_session_person"), "session", ["person"])
    op.create_index(op.f("ix_session_created_s"), "session", ["created_s"])
    op.create_table(
        "passkey",
        sa.Column("id", BLOB, nullable=False),
        sa.Column("person", sa.Text(), nullable=False),
        sa.Column("public_key", BLOB, nullable=False),
        sa.Column("counter", Integer, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_s", Integer, nullable=False),
        sa.Column("used_s", Integer, nullable=False),
        sa.ForeignKeyConstraint(["person"], ["person.id"], name=op.f("fk_passkey_person")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_passkey")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_passkey_person"), "passkey", ["person"])
    op.create_table(
        "api_token",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("person", sa.Text(), nullable=False),
        sa.Column("hash", BLOB, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.Column("created_s", Integer, nullable=False),
        sa.Column("not_after", Integer, nullable=False),
        sa.Column("used_s", Integer, nullable=False),
        sa.Column("revoked_s", Integer, nullable=False),
        sa.ForeignKeyConstraint(["person"], ["person.id"], name=op.f("fk_api_token_person")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_token")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_api_token_person"), "api_token", ["person"])
    op.create_table(
        "audit",
        sa.Column("id", Integer, nullable=False),
        sa.Column("wall_s", Integer, nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("verb", sa.Text(), nullable=False),
        sa.Column("object", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("hash", BLOB, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_index(op.f("ix_audit_object_id"), "audit", ["object", "id"])
    op.create_index(op.f("ix_audit_actor_id"), "audit", ["actor", "id"])
    op.create_table(
        "webhook",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("events", sa.Text(), nullable=False),
        sa.Column("created_s", Integer, nullable=False),
        sa.Column("disabled_s", Integer, nullable=False),
        sa.Column("last_s", Integer, nullable=False),
        sa.Column("last_result", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "delivery",
        sa.Column("id", Integer, nullable=False),
        sa.Column("webhook", sa.Text(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("tries", Integer, nullable=False),
        sa.Column("due_s", Integer, nullable=False),
        sa.ForeignKeyConstraint(["webhook"], ["webhook.id"], name=op.f("fk_delivery_webhook")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_delivery")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_delivery_due_s"), "delivery", ["due_s"])
    op.create_index(op.f("ix_delivery_webhook"), "delivery", ["webhook"])
    op.create_table(
        "claim",
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("secret_hash", BLOB, nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("created_s", Integer, nullable=False),
        sa.Column("facts", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("code", name=op.f("pk_claim")),
        sa.UniqueConstraint("secret_hash", name=op.f("uq_claim_secret_hash")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_claim_created_s"), "claim", ["created_s"])
    columns = ["kind", "state", "name", "user", "tags", "version", "online", "v4", "created_s", "not_after", "id"]
    op.create_index("ix_device_list", "device", columns)


def downgrade() -> None:
    raise NotImplementedError("a hub's database only goes forward: restore the backup that was made before")
