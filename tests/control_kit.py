"""What the tests of the control plane share: a provider, seeded entropy, one valid body of every kind."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from edgeagent import crypto as providers
from edgeagent.proto.crypto import Crypto
from edgeagent.proto.identity import Identity
from edgeagent.proto.names import network_id

CRYPTO: Crypto = providers.load("pynacl")
WALL_S = 1_800_000_000


def entropy_of(seed: int) -> Callable[[int], bytes]:
    """Bytes that are the same in every run."""
    return random.Random(seed).randbytes


NETWORK_SEED = bytes(range(32))
NETWORK_KEY = CRYPTO.ed25519_public(NETWORK_SEED)
NETWORK = network_id(CRYPTO, NETWORK_KEY)
HUB_BOX_PRIVATE = bytes(range(1, 33))
HUB_BOX_KEY = CRYPTO.x25519_base(HUB_BOX_PRIVATE)
DEVICE = Identity.create(CRYPTO, entropy_of(1))
OTHER = Identity.create(CRYPTO, entropy_of(2))
BOOT = bytes(16)
CLAIM = "c-abcdefghijklmnop"
ADDRESSES = [bytes((100, 64, 0, 1)), bytes.fromhex("fd00" + "00" * 13 + "01")]
V4: list[Any] = [bytes((100, 64, 0, 0)), 10]
V6: list[Any] = [bytes.fromhex("fd00" + "00" * 14), 48]

MAP_BODY: dict[str, Any] = {
    "id": DEVICE.device_id,
    "name": "gate",
    "addrs": ADDRESSES,
    "tags": ["tag:edge"],
    "domain": "fleet.example",
    "v4": V4,
    "v6": V6,
    "fk": bytes(32),
    "fg": 1,
    "bx": HUB_BOX_KEY,
    "h": ["hub.example:8883"],
    "nk": [[DEVICE.node_key, 0]],
    "na": 0,
    "set": {"mqtt_keepalive_s": 300},
}
RECORD_BODY: dict[str, Any] = {
    "name": "gate",
    "addrs": ADDRESSES,
    "dk": DEVICE.device_key,
    "nk": [[DEVICE.node_key, 0]],
    "tags": ["tag:edge"],
    "user": "ada@example.org",
    "routes": [[bytes((192, 168, 7, 0)), 24]],
}
FEED_BODY: dict[str, Any] = {
    "boot": BOOT,
    "nk": DEVICE.node_key,
    "ep": [[bytes((192, 0, 2, 1)), 51820], [bytes(15) + b"\x01", 51820]],
    "dk": None,
    "hr": None,
    "nat": None,
    "aw": True,
    "cap": None,
}
RELAY = {"rg": "fra", "k": bytes(32), "h": ["fra-1.example.org:443"], "u": 3478, "s": 3479, "pin": bytes(32)}
TARGET_FILE = f"targets/{'ab' * 32}.edgeagent-0.2.0-arm64.pyz"
LOCK = {"c": [[bytes(32), 0, WALL_S, bytes(64)]], "k": [[bytes(32), WALL_S, bytes(64)]]}
BODIES: dict[str, list[dict[str, Any]]] = {
    "join": [
        {
            "claim": CLAIM,
            "secret": bytes(16),
            "dk": DEVICE.device_key,
            "nk": DEVICE.node_key,
            "bk": DEVICE.box_key,
            "pw": DEVICE.password,
            "host": "gate",
            "boot": BOOT,
            "facts": {"model": "board", "os": "linux"},
        }
    ],
    "birth": [{"boot": BOOT, "ver": "0.1.0", "map": [1, 2], "nk": DEVICE.node_key, "facts": {}}],
    "state": [{"up": True}, {"up": False}],
    "ask": [
        {"id": 1, "a": ADDRESSES[0]},
        {"id": 2, "h": "gate"},
        {"id": 3, "k": bytes(32)},
        {"id": 4, "have": [[DEVICE.device_id, 1, 2, 3]]},
    ],
    "report": [
        {"nk": bytes(32)},
        {"nk": bytes(32), "ls": [[bytes(32), WALL_S, bytes(64)]]},
        {"up": {"r": 7, "s": 5, "v": "0.1.0", "w": "it never reached the hub"}},
        {"se": {"g": 3, "s": 4, "w": ""}},
    ],
    "fetch": [{"f": "metadata/timestamp.json", "o": 0, "n": 32_768}, {"f": TARGET_FILE, "o": 4_096, "n": 1}],
    "relay": [{**RELAY, "m": 12}],
    "answer": [
        {"id": bytes(8), "st": "accepted", "at": WALL_S},
        {"id": bytes(8), "st": "done", "at": 0, "no": 0, "d": b"output", "n": 1},
        {"id": bytes(8), "st": "failed", "at": 1, "c": "exit-status", "tx": "it ended with exit status 3", "n": 0},
    ],
    "cmd": [
        {"id": bytes(8), "v": "rekey", "x": WALL_S, "by": "cli:root", "a": {}},
        {"id": bytes(8), "v": "a-later-verb", "x": WALL_S, "by": "cli:root", "a": {"its": "own"}},
    ],
    "admit": [
        {"ok": True, "map": b"m", "ca": b"c"},
        {"wait": True},
        {"no": "name-taken", "name": "gate"},
    ],
    "map": [
        MAP_BODY,
        {**MAP_BODY, "rl": [{"id": "fra-1", **RELAY}], "ps": [b"p"]},
        {**MAP_BODY, "lk": {"s": [b"s"], **LOCK}},
        {
            **MAP_BODY,
            "up": {"v": "0.2.0", "r": 7, "t": "edgeagent-0.2.0-arm64.pyz"},
            "ur": [1, bytes(32)],
            "se": {"g": 3, "c": 600, "k": {"log-level": "debug"}},
        },
    ],
    "rec": [
        {"id": 1, "rec": b"r", "fk": bytes(32), "fg": 1},
        {"rec": b"r", "fk": bytes(32), "fg": 1},
        {"id": 1, "no": "unknown", "ttl": 30},
        {"gone": b"g"},
    ],
    "time": [{}, {"e": 7}],
    "part": [
        {"f": TARGET_FILE, "o": 4_096, "l": 4_100, "d": b"last"},
        {"f": "metadata/9.root.json", "no": "unknown", "s": 60},
    ],
    "hub": [{"up": True, "bx": HUB_BOX_KEY}],
    "record": [RECORD_BODY, {**RECORD_BODY, "lk": LOCK}],
    "lock": [{"by": bytes(32), "on": True, "k": [bytes(32)], "rv": [[DEVICE.device_id, 5]]}],
    "gone": [{}],
    "pass": [{"nk": DEVICE.node_key, "rl": ["fra-1"], "rg": ["fra"], "rc": 0}],
    "feed": [FEED_BODY],
}


def dates_of(kind: str) -> dict[str, int]:
    """The keywords `sign_object` needs for a kind that outlives its message."""
    return {"not_before": WALL_S - 10, "not_after": WALL_S + 10} if kind in ("record", "pass") else {}
