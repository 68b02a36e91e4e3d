"""The table of bodies: what every control message and every signed object holds (docs/protocol.md)."""

from __future__ import annotations

from typing import Any

from edgeagent.proto.dnssettings import NAMES
from edgeagent.proto.names import (
    DOMAIN_BYTES_MAX,
    is_capability,
    is_claim_id,
    is_device_id,
    is_domain,
    is_group,
    is_host_name,
    is_host_port,
    is_network_id,
    is_subject,
    is_tag,
    is_target,
    is_update_file,
)
from edgeagent.proto.refusals import ControlDrop, ControlError
from edgeagent.proto.schema import (
    Anything,
    Blob,
    Choice,
    Either,
    Fields,
    Flag,
    List,
    Nullable,
    Prefix,
    Raw,
    Row,
    Schema,
    Table,
    Text,
    Uint,
    Word,
    describe,
)

HAVE_MAX = 64  # records that one `ask` names
FEED_ENDPOINTS_MAX = 8
NODE_KEYS_MAX = 4  # one in use, one coming; more only while a renewal was cut off
ROUTES_MAX = 64
TAGS_MAX = 32
HOSTS_MAX = 8
MAP_ROUTES_MAX = 256  # prefixes behind others that one map names
ROUTERS_MAX = 4  # of one prefix that a device is told of
CLIENTS_MAX = 32  # plain WireGuard clients of one gateway
RELAYS_MAX = 16  # that one map names
RELAY_HOSTS_MAX = 4  # names or addresses of one relay
PASS_BYTES_MAX = 1_024
EPOCH_MAX = 1 << 48  # what the hub may raise a device to, so that there is always a next one
RECORD_BYTES_MAX = 10_240  # with all its tags, routes and groups it has 9 KiB
MAP_BYTES_MAX = 49_152  # the sum of all that it may hold is 44 KiB
RULES_MAX = 256  # of a device's slice of the policy, in each direction
SELECTORS_MAX = 128  # of sources, or of targets, of one rule
SERVICES_MAX = 64  # of one rule
GROUPS_MAX = 64  # of the policy's, that one user is in
GROUP_BYTES_MAX = 69
USER_BYTES_MAX = 128
SELECTOR_BYTES_MAX = 160  # "user:" and a login, and room for what newer hubs say
CA_BYTES_MAX = 8_192
ACTOR_BYTES_MAX = 128
ANSWER_DATA_BYTES_MAX = 7_168  # of one message, which may have 8 KiB
ANSWER_PARTS_MAX = 64
ANSWER_TEXT_BYTES_MAX = 256
LOCK_KEYS_MAX = 8  # of one network; any of them may sign
LOCK_SIGNATURES_MAX = 4  # of lock keys for one device, in its record
LOCK_REVOKED_MAX = 32  # devices whose signatures one statement voids
STATEMENT_BYTES_MAX = 2_048
FETCH_BYTES_MAX = 32_768  # of a file of updates, that one part has
FILE_BYTES_MAX = 1 << 28  # of a file of updates
UPDATE_TEXT_BYTES_MAX = 200  # why an update or settings came to what they came to
SETTINGS_MAX = 16  # that one rollout changes
SETTING_BYTES_MAX = 255
STATEMENTS_MAX = 4  # that lead to the one in force, in one map

KEY = Raw(32)
BOOT = Raw(16)
STAMP = Uint()
NETWORK = Text(16, "network id", is_network_id)
DEVICE = Text(24, "device id", is_device_id)
CLAIM = Text(18, "claim id", is_claim_id)
HOST = Text(63, "host name (one DNS label, lower case)", is_host_name)
HOSTS = List(Text(DOMAIN_BYTES_MAX + 6, "host:port", is_host_port), HOSTS_MAX, 1)
TAGS = List(Text(67, "tag:name", is_tag), TAGS_MAX)
DOMAIN = Text(DOMAIN_BYTES_MAX, "domain name", is_domain)
NODE_KEYS = List(Row(KEY, Uint()), NODE_KEYS_MAX, 1)
FACTS = Table(Text(128), 16)
ADVERTISED = List(Prefix(4, 16), ROUTES_MAX)
RELAY_LABEL = Text(63, "relay id or region (one DNS label, lower case)", is_host_name)
RELAYS = List(RELAY_LABEL, 8)
RELAY_HOSTS = List(Text(DOMAIN_BYTES_MAX + 6, "host:port", is_host_port), RELAY_HOSTS_MAX, 1)
PORT_OR_NONE = Uint(0, 65_535)
USER = Text(USER_BYTES_MAX)
# The slice of the policy that concerns one device (docs/protocol.md, map). What a selector means is in policy.py; one
# that the device does not know matches nothing.
SELECTORS = List(Either(Text(SELECTOR_BYTES_MAX), Prefix(4, 16)), SELECTORS_MAX)
SERVICES = List(Row(Uint(0, 255), PORT_OR_NONE, PORT_OR_NONE), SERVICES_MAX)
POLICY = Fields(
    {
        "v": Uint(),
        "u": USER,
        "in": List(Row(SELECTORS, SELECTORS, SERVICES), RULES_MAX),
        "out": List(Row(SELECTORS, SERVICES), RULES_MAX),
    },
    grows=True,
)
COMMAND = Raw(8)
VERB = Text(23, "verb (one DNS label, lower case)", is_host_name)
ANSWER_STATE = Word("accepted", "running", "done", "failed", "refused", "expired")
# Updates (docs/updates.md). The states: updatestate.py.
ROLLOUT = Uint(1)
UPDATE_FILE = Text(167, "metadata/ or targets/ and a file name", is_update_file)
UPDATE_STATE = Uint(0, 6)
VERSION_TEXT = Text(64)
UPDATE_REPORTS: dict[str, Schema] = {
    "up": Fields({"r": ROLLOUT, "s": UPDATE_STATE, "v": VERSION_TEXT, "w": Text(UPDATE_TEXT_BYTES_MAX)}),
    "se": Fields({"g": Uint(1), "s": UPDATE_STATE, "w": Text(UPDATE_TEXT_BYTES_MAX)}),
}
# What a relay says of itself to the hub, and the hub of it to devices: its region, X25519 key, TLS host:ports, UDP port
# (0: none), second STUN port (0: none), SHA-256 of its certificate (DER).
RELAY_FIELDS: dict[str, Schema] = {
    "rg": RELAY_LABEL,
    "k": KEY,
    "h": RELAY_HOSTS,
    "u": PORT_OR_NONE,
    "s": PORT_OR_NONE,
    "pin": KEY,
}

# The network lock (edgeagent/proto/lock.py): [lock key, not_after or 0, sequence, signature of the device key] …, and
# [node key, not_after, signature by the device key] …
NODE_SIGNATURES = List(Row(KEY, Uint(), Raw(64)), NODE_KEYS_MAX)
LOCK_FIELDS: dict[str, Schema] = {
    "c": List(Row(KEY, Uint(), Uint(), Raw(64)), LOCK_SIGNATURES_MAX),
    "k": NODE_SIGNATURES,
}

# The head of every signed object. `b` is checked against the body of its kind.
HEAD = Fields(
    {
        "t": Text(16),
        "n": NETWORK,
        "s": Text(24, "device id or hub", is_subject),
        "e": STAMP,
        "q": STAMP,
        "w": Uint(),
        "b": Anything(),
    },
    {"nb": Uint(), "na": Uint()},
)

BODIES: dict[str, Schema] = {
    # device → hub
    "join": Fields(
        {
            "claim": CLAIM,
            "secret": Raw(16),
            "dk": KEY,
            "nk": KEY,
            "bk": KEY,
            "pw": Text(128),
            "host": HOST,
            "boot": BOOT,
            "facts": FACTS,
        }
    ),
    "birth": Fields(
        {"boot": BOOT, "ver": Text(64), "map": Row(STAMP, STAMP), "nk": KEY, "facts": FACTS},
        # the prefixes that it offers to route, those of an exit node among them, and whether it translates sources
        {"ro": ADVERTISED, "sn": Flag()},
        grows=True,
    ),
    "state": Fields({"up": Flag()}),
    "ask": Choice(
        {
            "a": Fields({"id": Uint(), "a": Raw(4, 16)}),
            "h": Fields({"id": Uint(), "h": HOST}),
            "k": Fields({"id": Uint(), "k": KEY}),
            "have": Fields({"id": Uint(), "have": List(Row(DEVICE, STAMP, STAMP, Uint()), HAVE_MAX)}),
        }
    ),
    # a node key to be used, or what became of an update, or of settings
    "report": Choice(
        {
            "nk": Fields({"nk": KEY}, {"ls": NODE_SIGNATURES}),
            "up": Fields({"up": UPDATE_REPORTS["up"]}),
            "se": Fields({"se": UPDATE_REPORTS["se"]}),
        }
    ),
    "fetch": Fields({"f": UPDATE_FILE, "o": Uint(0, FILE_BYTES_MAX), "n": Uint(1, FETCH_BYTES_MAX)}, grows=True),
    # relay → hub: what it is, and how many members it has
    "relay": Fields({**RELAY_FIELDS, "m": Uint(0, 1_000_000)}, grows=True),
    # device → hub: what became of a command; a part of its output has a number, and the end says how many there are
    "answer": Fields(
        {"id": COMMAND, "st": ANSWER_STATE, "at": Uint()},
        {
            "c": Text(40, "code (one DNS label, lower case)", is_host_name),
            "tx": Text(ANSWER_TEXT_BYTES_MAX),
            "no": Uint(0, ANSWER_PARTS_MAX - 1),
            "d": Blob(ANSWER_DATA_BYTES_MAX),
            "n": Uint(0, ANSWER_PARTS_MAX),
        },
        grows=True,
    ),
    # hub → device
    "admit": Choice(
        {
            "ok": Fields({"ok": Flag(True), "map": Blob(MAP_BYTES_MAX), "ca": Blob(CA_BYTES_MAX)}, grows=True),
            "wait": Fields({"wait": Flag(True)}, grows=True),
            "no": Fields(
                {
                    "no": Word("used-up", "expired", "revoked", "unknown", "denied", "name-taken", "bad-request"),
                    "name": Text(63),
                },
                grows=True,
            ),
        }
    ),
    "map": Fields(
        {
            "id": DEVICE,
            "name": HOST,
            "addrs": Row(Raw(4), Raw(16)),
            "tags": TAGS,
            "domain": DOMAIN,
            "v4": Prefix(4),
            "v6": Prefix(16),
            "fk": KEY,
            "fg": Uint(),
            "bx": KEY,
            "h": HOSTS,
            "nk": NODE_KEYS,
            "na": Uint(),
            "set": Table(Uint(-(1 << 31), (1 << 31) - 1), 64),
        },
        {
            # relays that this device may use, and a pass for each of its node keys
            "rl": List(Fields({"id": RELAY_LABEL, **RELAY_FIELDS}, grows=True), RELAYS_MAX),
            "ps": List(Blob(PASS_BYTES_MAX), NODE_KEYS_MAX),
            # what others may reach here, and what this device may reach; without it everything
            "po": POLICY,
            "dn": NAMES,  # what the network's name server says beside hosts
            # prefixes behind others that it may use, those of its own that are approved, and its WireGuard clients
            "ro": List(Prefix(4, 16), MAP_ROUTES_MAX),
            "ra": ADVERTISED,
            "cl": List(Row(KEY, Raw(4), Raw(16)), CLIENTS_MAX),
            # the statements of the lock, the one in force last, and what the device's own record has in `lk`
            "lk": Fields({"s": List(Blob(STATEMENT_BYTES_MAX), STATEMENTS_MAX, 1), **LOCK_FIELDS}, grows=True),
            # the version that this device shall run, by which rollout, and the target that it is in; the first root
            # of updates: its version, and the SHA-256 of its file
            "up": Fields({"v": VERSION_TEXT, "r": ROLLOUT, "t": Text(94, "target name", is_target)}, grows=True),
            "ur": Row(Uint(1), KEY),
            "bp": Raw(112),  # brokerpass.py
            # settings to be tried: their generation, seconds within which the hub must be reached with them
            "se": Fields(
                {"g": Uint(1), "c": Uint(30, 86_400), "k": Table(Text(SETTING_BYTES_MAX), SETTINGS_MAX)}, grows=True
            ),
        },
        grows=True,
    ),
    "rec": Choice(
        {
            "rec": Fields(
                {"rec": Blob(RECORD_BYTES_MAX), "fk": KEY, "fg": Uint()},
                # of an address behind routers: the ids of all of them, in the order in which the hub would take them
                {"id": Uint(), "via": List(DEVICE, ROUTERS_MAX, 1)},
                grows=True,
            ),
            "no": Fields({"no": Word("unknown", "forbidden"), "ttl": Uint(0, 86_400), "id": Uint()}, grows=True),
            "gone": Fields({"gone": Blob(1_024)}, grows=True),
        }
    ),
    "time": Fields({}, {"e": Uint(0, EPOCH_MAX)}, grows=True),
    # of a file of updates: bytes from `o` on of `l`; or that there are none, or not before `s` seconds
    "part": Choice(
        {
            "d": Fields(
                {
                    "f": UPDATE_FILE,
                    "o": Uint(0, FILE_BYTES_MAX),
                    "l": Uint(0, FILE_BYTES_MAX),
                    "d": Blob(FETCH_BYTES_MAX),
                },
                grows=True,
            ),
            "no": Fields({"f": UPDATE_FILE, "no": Word("unknown", "busy"), "s": Uint(1, 86_400)}, grows=True),
        }
    ),
    # what is in `a` is the verb's (commands.py): an unknown one is answered, not dropped
    "cmd": Fields({"id": COMMAND, "v": VERB, "x": Uint(), "by": Text(ACTOR_BYTES_MAX), "a": Anything()}, grows=True),
    "hub": Fields({"up": Flag(), "bx": KEY}, grows=True),
    # signed by the hub, read by any device
    "record": Fields(
        {
            "name": HOST,
            "addrs": List(Raw(4, 16), 4, 1),
            "dk": KEY,
            "nk": NODE_KEYS,
            "tags": TAGS,
            "user": USER,
            "routes": List(Prefix(4, 16), ROUTES_MAX),
        },
        {
            "gr": List(
                Text(GROUP_BYTES_MAX, "group:name", is_group), GROUPS_MAX
            ),  # of the policy's, that the user is in
            "cl": List(Raw(4, 16), 2 * CLIENTS_MAX),  # addresses of plain WireGuard clients that are reached through it
            "lk": Fields(LOCK_FIELDS, grows=True),
        },
        grows=True,
    ),
    "gone": Fields({}, grows=True),
    # signed by a lock key, passed on by the hub
    "lock": Fields(
        {
            "by": KEY,
            "on": Flag(),
            "k": List(KEY, LOCK_KEYS_MAX, 1),
            "rv": List(Row(DEVICE, Uint()), LOCK_REVOKED_MAX),
        },
        grows=True,
    ),
    # signed by the hub, read by relays
    "pass": Fields({"nk": KEY, "rl": RELAYS, "rg": RELAYS, "rc": Uint(0, 7)}, grows=True),
    # device → devices
    "feed": Fields(
        {
            "boot": BOOT,
            "nk": KEY,
            "ep": List(Row(Raw(4, 16), Uint(1, 65_535)), FEED_ENDPOINTS_MAX),
            "dk": Nullable(KEY),
            "hr": Nullable(Text(64)),
            "nat": Nullable(Text(32)),
            "aw": Flag(),
            "cap": Nullable(Text(43, "capability", is_capability)),
        },
        grows=True,
    ),
}

VALIDITY_REQUIRED = ("record", "pass")
VALIDITY_ALLOWED = ("record", "pass", "gone", "map", "hub")


def check_body(kind: str, body: Any) -> dict[str, Any]:
    """`body` as the reader of `kind` should see it. Raises ControlError: WRONG_KIND, or BAD_FIELD naming the field."""
    schema = BODIES.get(kind)
    if schema is None:
        raise ControlError(ControlDrop.WRONG_KIND, "t: no kind of this version")
    checked: dict[str, Any] = schema.check(body, kind)
    return checked


def check_validity_fields(kind: str, not_before: int | None, not_after: int | None) -> None:
    """`nb` and `na` come together, where they must and nowhere else."""
    if (not_before is None) != (not_after is None):
        raise ControlError(ControlDrop.BAD_FIELD, f"{kind}.{'nb' if not_before is None else 'na'}: missing")
    if not_before is None and kind in VALIDITY_REQUIRED:
        raise ControlError(ControlDrop.BAD_FIELD, f"{kind}.nb: missing")
    if not_before is not None and kind not in VALIDITY_ALLOWED:
        raise ControlError(ControlDrop.BAD_FIELD, f"{kind}.nb: none in this kind")


def print_table() -> str:
    """The whole table as text, for people and for the documentation."""
    lines = describe(HEAD, "(head)")
    for kind, schema in BODIES.items():
        lines += describe(schema, kind)
    return "\n".join(lines)
