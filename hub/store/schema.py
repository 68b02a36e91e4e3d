"""The tables. Any change here needs a migration beside it; a test compares the two."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from hub.store.types import BLOB, EmptyBlob, Integer

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# Conditions of partial indexes. A query that is to use one must say it in the same words, without parameters.
TOKEN_TO_FINISH = text("finished_s = 0 AND not_after > 0")
TOKEN_TO_CLOSE = text("account AND finished_s > 0")
DEVICE_ONLINE = text("online")
DEVICE_TO_EXPIRE = text("state = 'active' AND not_after > 0")
RECORD_TO_RENEW = text("state = 'active' AND record_renew_s > 0")
ABOUT_ACCOUNTS = text("op <> 'publish'")
IS_RELAY = text("kind = 'relay'")
PASS_TO_RENEW = text("state = 'active' AND pass_renew_s > 0")
BARRED = text("barred_s > 0")
CUT_OFF = text("removed_s > 0 AND kind <> 'relay'")  # with `=` SQLite would rather walk all of that kind

# The network's identity and the settings of this hub: secrets are here only. "relays" and "names" are parts of maps.
meta = Table(
    "meta",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", BLOB, nullable=False),
    sqlite_with_rowid=False,
)

counter = Table(
    "counter",
    metadata,
    Column("name", Text, primary_key=True),  # "seq", "devices" (rows), or "name " and a wished host name
    Column("value", Integer, nullable=False),
    sqlite_with_rowid=False,
)

token = Table(
    "token",
    metadata,
    Column("claim", Text, primary_key=True),
    Column("secret_hash", BLOB, nullable=False),
    Column("credential", Text, nullable=False),
    Column("created_s", Integer, nullable=False),
    Column("created_seq", Integer, nullable=False),
    Column("not_after", Integer, nullable=False),
    Column("uses", Integer, nullable=False),
    Column("used", Integer, nullable=False),
    Column("tags", Text, nullable=False),  # JSON
    Column("needs_approval", Boolean, nullable=False),
    Column("revoked_s", Integer, nullable=False),
    Column("finished_s", Integer, nullable=False),
    Column("account", Boolean, nullable=False),
    Column("kind", Text, nullable=False, server_default="device"),
    Column("user", Text, nullable=False, server_default=""),
    CheckConstraint("uses = 0 OR used <= uses", name="uses"),
)
Index("ix_token_finish", token.c.not_after, sqlite_where=TOKEN_TO_FINISH, postgresql_where=TOKEN_TO_FINISH)
Index("ix_token_close", token.c.finished_s, sqlite_where=TOKEN_TO_CLOSE, postgresql_where=TOKEN_TO_CLOSE)

device = Table(
    "device",
    metadata,
    Column("id", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("claim", Text, nullable=False),
    Column("device_key", BLOB, nullable=False),
    Column("box_key", BLOB, nullable=False),
    Column("node_key", BLOB, nullable=False),
    Column("created_s", Integer, nullable=False),
    Column("name", Text, unique=True),
    Column("v4", Integer, unique=True),
    Column("v6", BLOB, unique=True),
    Column("tags", Text, nullable=False),  # JSON
    Column("user", Text, nullable=False),
    Column("credential", Text, nullable=False),
    Column("pending_password", Text, nullable=False),
    Column("feed_key", BLOB, nullable=False),
    Column("feed_generation", Integer, nullable=False),
    Column("not_after", Integer, nullable=False),
    Column("boot", BLOB, nullable=False),
    Column("boot_before", BLOB, nullable=False),
    Column("cloned_s", Integer, nullable=False),
    Column("version", Text, nullable=False),
    Column("facts", Text, nullable=False),  # JSON
    Column("map_epoch", Integer, nullable=False),
    Column("map_seq", Integer, nullable=False),
    Column("record", BLOB, nullable=False),
    Column("record_epoch", Integer, nullable=False),
    Column("record_seq", Integer, nullable=False),
    Column("record_renew_s", Integer, nullable=False),
    Column("online", Boolean, nullable=False),
    Column("presence_epoch", Integer, nullable=False),
    Column("presence_seq", Integer, nullable=False),
    Column("state_digest", BLOB, nullable=False),
    Column("last_seen_s", Integer, nullable=False),
    Column("removed_s", Integer, nullable=False),
    Column("removed_seq", Integer, nullable=False),
    Column("kind", Text, nullable=False, server_default="device"),
    Column("relay", BLOB, nullable=False, server_default=EmptyBlob()),  # CBOR
    Column("members", Integer, nullable=False, server_default=text("0")),
    Column("pass_renew_s", Integer, nullable=False, server_default=text("0")),
    Column("slice_digest", BLOB, nullable=False, server_default=EmptyBlob()),
    Column("groups_digest", BLOB, nullable=False, server_default=EmptyBlob()),
    Column("barred_s", Integer, nullable=False, server_default=text("0")),
)
Index("ix_device_state", device.c.state, device.c.id)
Index("ix_device_online", device.c.online, sqlite_where=DEVICE_ONLINE, postgresql_where=DEVICE_ONLINE)
# For people's lists. What changes with every message (last_seen_s) is not in it.
Index(
    "ix_device_list",
    *(device.c.kind, device.c.state, device.c.name, device.c.user, device.c.tags, device.c.version, device.c.online),
    *(device.c.v4, device.c.created_s, device.c.not_after, device.c.id),
)
Index("ix_device_expire", device.c.not_after, sqlite_where=DEVICE_TO_EXPIRE, postgresql_where=DEVICE_TO_EXPIRE)
Index("ix_device_renew", device.c.record_renew_s, sqlite_where=RECORD_TO_RENEW, postgresql_where=RECORD_TO_RENEW)
Index("ix_device_relay", device.c.id, sqlite_where=IS_RELAY, postgresql_where=IS_RELAY)
Index("ix_device_pass", device.c.pass_renew_s, sqlite_where=PASS_TO_RENEW, postgresql_where=PASS_TO_RENEW)
Index("ix_device_barred", device.c.barred_s, sqlite_where=BARRED, postgresql_where=BARRED)
Index("ix_device_cut_off", device.c.id, device.c.removed_s, sqlite_where=CUT_OFF, postgresql_where=CUT_OFF)

node_key = Table(
    "node_key",
    metadata,
    Column("key", BLOB, primary_key=True),
    Column("device", Text, ForeignKey("device.id"), nullable=False, index=True),
    Column("not_after", Integer, nullable=False, index=True),
    sqlite_with_rowid=False,
)

# Prefixes that devices offer to route, or offered and had approved.
route = Table(
    "route",
    metadata,
    Column("device", Text, ForeignKey("device.id"), primary_key=True),
    Column("address", BLOB, primary_key=True),
    Column("length", Integer, primary_key=True),
    Column("advertised", Boolean, nullable=False),
    Column("approved", Boolean, nullable=False),
    Column("snat", Boolean, nullable=False),
    sqlite_with_rowid=False,
)
Index("ix_route_address", route.c.address, route.c.length)

# Plain WireGuard clients behind gateways.
client = Table(
    "client",
    metadata,
    Column("key", BLOB, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("gateway", Text, ForeignKey("device.id"), nullable=False, index=True),
    Column("v4", Integer, nullable=False, unique=True),
    Column("v6", BLOB, nullable=False, unique=True),
    Column("created_s", Integer, nullable=False),
    sqlite_with_rowid=False,
)

# Who knows whom, both ways round.
pair = Table(
    "pair",
    metadata,
    Column("device", Text, ForeignKey("device.id"), primary_key=True),
    Column("other", Text, ForeignKey("device.id"), primary_key=True),
    sqlite_with_rowid=False,
)

# The last (epoch, seq) that each device wrote, by kind of message.
stamp = Table(
    "stamp",
    metadata,
    Column("device", Text, ForeignKey("device.id"), primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("epoch", Integer, nullable=False),
    Column("seq", Integer, nullable=False),
    sqlite_with_rowid=False,
)

# The newest version holds; the others are its history.
policy = Table(
    "policy",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("text", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("created_s", Integer, nullable=False),
)

job = Table(
    "job",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("reader", Text, nullable=False),
    Column("subject", Text, nullable=False),
    UniqueConstraint("kind", "reader", "subject"),
    sqlite_autoincrement=True,
)

# What the broker has not confirmed yet. Ids go up only: the order of sending is theirs.
outgoing = Table(
    "outgoing",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("op", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("payload", BLOB, nullable=False),
    Column("retain", Boolean, nullable=False),
    Column("role", Text, nullable=False),
    Column("key", Text, unique=True),
    sqlite_autoincrement=True,
)
Index("ix_outgoing_account", outgoing.c.target, sqlite_where=ABOUT_ACCOUNTS, postgresql_where=ABOUT_ACCOUNTS)

# A person who uses the hub. `person` and not `user`: that word is the server's own in PostgreSQL.
person = Table(
    "person",
    metadata,
    Column("id", Text, primary_key=True),
    Column("login", Text, nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("password", Text, nullable=False),  # Argon2id, in PHC form; empty: none
    Column("issuer", Text),  # of OIDC; the pair is who it is, whatever the login
    Column("subject", Text),
    Column("disabled_s", Integer, nullable=False),
    Column("created_s", Integer, nullable=False),
    Column("seen_s", Integer, nullable=False),
    Column("role_from", Text, nullable=False),  # "oidc", or empty: somebody's decision here
    UniqueConstraint("issuer", "subject"),
)

session = Table(
    "session",
    metadata,
    Column("hash", BLOB, primary_key=True),  # of the token in the cookie
    Column("person", Text, ForeignKey("person.id"), nullable=False, index=True),
    Column("created_s", Integer, nullable=False, index=True),
    Column("seen_s", Integer, nullable=False),
    Column("ended_s", Integer, nullable=False),  # kept a while, so that a use of it afterwards is noticed
    Column("how", Text, nullable=False),  # password, passkey, oidc
    Column("address", Text, nullable=False),
    Column("browser", Text, nullable=False),
    sqlite_with_rowid=False,
)

passkey = Table(
    "passkey",
    metadata,
    Column("id", BLOB, primary_key=True),
    Column("person", Text, ForeignKey("person.id"), nullable=False, index=True),
    Column("public_key", BLOB, nullable=False),  # COSE
    Column("counter", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("created_s", Integer, nullable=False),
    Column("used_s", Integer, nullable=False),
    sqlite_with_rowid=False,
)

api_token = Table(
    "api_token",
    metadata,
    Column("id", Text, primary_key=True),
    Column("person", Text, ForeignKey("person.id"), nullable=False, index=True),
    Column("hash", BLOB, nullable=False),  # of its secret
    Column("name", Text, nullable=False),
    Column("scopes", Text, nullable=False),  # JSON
    Column("created_s", Integer, nullable=False),
    Column("not_after", Integer, nullable=False),
    Column("used_s", Integer, nullable=False),
    Column("revoked_s", Integer, nullable=False),
    sqlite_with_rowid=False,
)

# Each row's hash covers the one before: see hub.core.audit.
audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("wall_s", Integer, nullable=False),
    Column("actor", Text, nullable=False),
    Column("verb", Text, nullable=False),
    Column("object", Text, nullable=False),
    Column("detail", Text, nullable=False),  # JSON
    Column("hash", BLOB, nullable=False),
    Index(None, "object", "id"),
    Index(None, "actor", "id"),
    Index(None, "verb", "id"),
)

# A device that asks to come in without a token.
claim = Table(
    "claim",
    metadata,
    Column("code", Text, primary_key=True),
    Column("secret_hash", BLOB, nullable=False, unique=True),
    Column("address", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("created_s", Integer, nullable=False, index=True),
    Column("facts", Text, nullable=False),  # JSON
    Column("state", Text, nullable=False),
    Column("token", Text, nullable=False),  # only between approval and fetching
    sqlite_with_rowid=False,
)

webhook = Table(
    "webhook",
    metadata,
    Column("id", Text, primary_key=True),
    Column("url", Text, nullable=False),
    Column("secret", Text, nullable=False),  # signs, so it cannot be a hash
    Column("events", Text, nullable=False),  # JSON
    Column("created_s", Integer, nullable=False),
    Column("disabled_s", Integer, nullable=False),
    Column("last_s", Integer, nullable=False),
    Column("last_result", Text, nullable=False),
    sqlite_with_rowid=False,
)

# What web hooks have not been told yet.
delivery = Table(
    "delivery",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("webhook", Text, ForeignKey("webhook.id"), nullable=False, index=True),
    Column("event", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("due_s", Integer, nullable=False, index=True),
    sqlite_autoincrement=True,
)

# What devices were told to do. `seq` gives the order.
command = Table(
    "command",
    metadata,
    Column("id", Text, primary_key=True),
    Column("seq", Integer, nullable=False),
    Column("device", Text, ForeignKey("device.id"), nullable=False),
    Column("verb", Text, nullable=False),
    Column("args", Text, nullable=False),  # JSON
    Column("actor", Text, nullable=False),
    Column("created_s", Integer, nullable=False),
    Column("expires_s", Integer, nullable=False),
    Column("due_s", Integer, nullable=False),  # 0: it is over
    Column("changed_s", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("finished_s", Integer, nullable=False),
    Column("code", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("parts", Integer, nullable=False),
    sqlite_with_rowid=False,
)
Index("ix_command_device", command.c.device, command.c.seq)
Index("ix_command_due", command.c.due_s)
Index("ix_command_finished", command.c.finished_s)

command_output = Table(
    "command_output",
    metadata,
    Column("command", Text, ForeignKey("command.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("data", BLOB, nullable=False),
)

# The last that a watched device said of itself.
telemetry = Table(
    "telemetry",
    metadata,
    Column("device", Text, ForeignKey("device.id"), primary_key=True),
    Column("wall_s", Integer, nullable=False),
    Column("sample", BLOB, nullable=False),
)

# The network lock: what lock keys have said, and whom they have signed; and what devices signed of their own node keys.
lock_statement = Table(
    "lock_statement",
    metadata,
    Column("sequence", Integer, primary_key=True),
    Column("raw", BLOB, nullable=False),
)

lock_signature = Table(
    "lock_signature",
    metadata,
    Column("device", Text, ForeignKey("device.id"), primary_key=True),
    Column("by", BLOB, primary_key=True),
    Column("not_after", Integer, nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("signature", BLOB, nullable=False),
    sqlite_with_rowid=False,
)

node_signature = Table(
    "node_signature",
    metadata,
    Column("key", BLOB, ForeignKey("node_key.key"), primary_key=True),
    Column("device", Text, ForeignKey("device.id"), nullable=False, index=True),
    Column("not_after", Integer, nullable=False),
    Column("signature", BLOB, nullable=False),
    sqlite_with_rowid=False,
)

# `plan` is JSON (`hub.core.rollout.Plan`).
rollout = Table(
    "rollout",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("kind", Text, nullable=False),
    Column("selector", Text, nullable=False),
    Column("plan", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("created_s", Integer, nullable=False),
    Column("total", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("since_s", Integer, nullable=False),
    Column("group", Integer, nullable=False),
    Column("approved", Integer, nullable=False),
    Column("approved_by", Text, nullable=False),
    Column("group_s", Integer, nullable=False),
    Column("forgiven", Integer, nullable=False),
    Column("finished_s", Integer, nullable=False),
)
Index("ix_rollout_state", rollout.c.state)

# `holder` is the device where its map holds this rollout: no device is in two.
rollout_device = Table(
    "rollout_device",
    metadata,
    Column("rollout", Integer, ForeignKey("rollout.id"), primary_key=True),
    Column("device", Text, ForeignKey("device.id"), primary_key=True),
    Column("rank", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("group", Integer, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("order", Integer, nullable=False),
    Column("due_s", Integer, nullable=False),
    Column("changed_s", Integer, nullable=False),
    Column("version", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("holder", Text, unique=True),
    sqlite_with_rowid=False,
)
Index("ix_rollout_device_device", rollout_device.c.device)
Index("ix_rollout_device_rank", rollout_device.c.rollout, rollout_device.c.state, rollout_device.c.rank)
Index("ix_rollout_device_due", rollout_device.c.rollout, rollout_device.c.due_s)

# What rollouts have set at a device, and it has confirmed.
device_setting = Table(
    "device_setting",
    metadata,
    Column("device", Text, ForeignKey("device.id"), primary_key=True),
    Column("settings", Text, nullable=False),  # JSON
    sqlite_with_rowid=False,
)

# Rigs that test devices, and what CI told of their runs. `runs`: the number of the newest.
rig = Table(
    "rig",
    metadata,
    Column("name", Text, primary_key=True),
    Column("person", Text, nullable=False),  # id, or "" for nobody's
    Column("created_s", Integer, nullable=False),
    Column("runs", Integer, nullable=False),
    sqlite_with_rowid=False,
)

rig_run = Table(
    "rig_run",
    metadata,
    Column("rig", Text, ForeignKey("rig.name"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("id", Text, nullable=False),
    Column("suite", Text, nullable=False),
    Column("verdict", Text, nullable=False),
    Column("began_s", Integer, nullable=False),
    Column("received_s", Integer, nullable=False),
    Column("took_ms", Integer, nullable=False),
    Column("retries", Integer, nullable=False),
    Column("failed", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("steps", Integer, nullable=False),
    Column("passed", Integer, nullable=False),
    Column("detail", BLOB, nullable=False),  # zlib of JSON: host, versions, steps, guests
    Column("figures", BLOB, nullable=False),  # zlib of JSON
    UniqueConstraint("rig", "id"),
)
Index("ix_rig_run_suite", rig_run.c.rig, rig_run.c.suite, rig_run.c.number)

rig_page = Table(
    "rig_page",
    metadata,
    Column("rig", Text, ForeignKey("rig.name"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("page", BLOB, nullable=False),  # gzip of HTML
)
