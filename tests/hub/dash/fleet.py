"""A fleet as somebody's real one: boards, sites, states, tags and versions of many kinds, as joins would write them."""

from __future__ import annotations

from random import Random

from edgeagent.proto import telemetry
from edgeagent.proto.ledger import Cause
from hub.core.model import Command, CommandState, Device, DeviceState, Kind, NodeKey
from hub.core.people import Person
from hub.core.relays import region_tag
from hub.core.roles import Access
from hub.people import add_person
from hub.store.sql import SqlTx

SITES = {
    "graz": (47.07, 15.44),
    "lyon": (45.76, 4.84),
    "porto": (41.15, -8.61),
    "oslo": (59.91, 10.75),
    "nairobi": (-1.29, 36.82),
    "austin": (30.27, -97.74),
    "osaka": (34.69, 135.50),
}
BOARDS = (
    ("cam", "tag:camera", "Raspberry Pi Zero 2 W Rev 1.0", "aarch64", "Debian GNU/Linux 12 (bookworm)"),
    ("gw", "tag:gateway", "GL.iNet GL-MT300N-V2", "mips", "OpenWrt 23.05.3"),
    ("meter", "tag:meter", "BeagleBone Black", "armv7l", "Debian GNU/Linux 11 (bullseye)"),
    ("kiosk", "tag:kiosk", "Raspberry Pi 4 Model B Rev 1.4", "aarch64", "Raspberry Pi OS 12"),
    ("edge", "tag:server", "Intel NUC11TNHi5", "x86_64", "Ubuntu 24.04 LTS"),
    ("pump", "tag:plc", "Banana Pi BPI-R3", "aarch64", "Alpine Linux v3.20"),
)
VERSIONS = ("0.1.0", "0.1.0", "0.1.0", "0.1.1", "0.1.1", "0.0.9")


def add_fleet(tx: SqlTx, wall_s: int, count: int = 48, seed: int = 5) -> list[str]:
    """Ids of what was added: `count` devices and two relays."""
    random, ids = Random(seed), []
    places = list(SITES.items())
    for number in range(count):
        base, tag, model, arch, system = BOARDS[number % len(BOARDS)]
        site, (latitude, longitude) = places[number % len(places)]
        facts = {
            "model": model,
            "arch": arch,
            "os": system,
            "kernel": random.choice(("6.1.0-25-arm64", "5.15.150", "6.6.31", "6.8.0-45")),
            "site": site,
            "memory": f"{random.uniform(6, 14):.1f} of 32.0 MiB, peak {random.uniform(14, 20):.1f}",
            **(
                {"modem": f"wwan0: LTE B20, {-95 - number} dBm, weak signal, home, Testnet"} if number % 17 == 7 else {}
            ),
            "tables": random.choice(("all below 1 %", "flows 212/4096", "peers 31/256, flows 88/4096")),
        }
        if number % 4 != 3:
            facts["lat"], facts["lon"] = (
                f"{latitude + random.uniform(-1, 1):.3f}",
                f"{longitude + random.uniform(-1, 1):.3f}",
            )
        state = (
            DeviceState.PENDING
            if number in (9, 20, 33)
            else DeviceState.EXPIRED
            if number == 14
            else DeviceState.ACTIVE
        )
        online = state is DeviceState.ACTIVE and number % 7 != 5
        user = "ada@example.org" if base == "edge" and number % 2 else ""
        device = make_device(
            random,
            name=f"{base}-{site}-{number // len(BOARDS) + 1}",
            number=number,
            wall_s=wall_s,
            state=state,
            online=online,
            tags=() if user else tuple(sorted({tag, f"tag:site-{site}"})),
            user=user,
            version="" if state is DeviceState.PENDING else random.choice(VERSIONS),
            facts=facts,
        )
        if number == 17:
            device.cloned_s = wall_s - 3_600
        if number == 23:
            device.not_after = wall_s + 3 * 86_400
        tx.add_device(device)
        if state is not DeviceState.PENDING:
            tx.save_node_key(NodeKey(device.node_key, device.id, wall_s + random.randrange(20, 150) * 86_400))
        ids.append(device.id)
    for number, region in enumerate(("fra", "sin")):
        relay = make_device(
            random, name=f"{region}-1", number=10_000 + number, wall_s=wall_s, facts={"os": "Debian 12"}
        )
        relay.kind, relay.tags, relay.online = Kind.RELAY, (region_tag(region),), number == 0
        relay.version = "0.1.1"
        relay.members = 31 if number == 0 else 0
        tx.add_device(relay)
    for one in ids:
        for other in random.sample(ids, k=2):
            if other != one:
                tx.introduce(one, other)
    return ids


def make_device(random: Random, *, name: str, number: int, wall_s: int, **changes: object) -> Device:
    """One row as it is after a join and a birth."""
    online = bool(changes.get("online"))
    fields: dict[str, object] = {
        "id": "".join(random.choices("abcdefghijklmnopqrstuvwxyz234567", k=24)),
        "state": DeviceState.ACTIVE,
        "claim": "c-abcdefghijklmnop",
        "device_key": random.randbytes(32),
        "box_key": random.randbytes(32),
        "node_key": random.randbytes(32),
        "created_s": wall_s - random.randrange(600, 200 * 86_400),
        "name": name,
        "v4": 0x64400000 + 256 + number if changes.get("state") is not DeviceState.PENDING else None,
        "v6": bytes.fromhex("fd5c7a3be19200000000") + random.randbytes(6)
        if changes.get("state") is not DeviceState.PENDING
        else None,
        "last_seen_s": wall_s - (random.randrange(3, 50) if online else random.randrange(4_000, 20 * 86_400)),
    }
    return Device(**{**fields, **changes})  # type: ignore[arg-type]


PASSWORD = "correct horse battery staple"
POLICY = """{
  // Who may reach what. What no rule allows is denied.
  "groups": {
    "group:operators": ["ada@example.org", "ben@example.org"],
  },
  "tagOwners": {
    "tag:camera": ["group:operators"],
    "tag:server": ["group:operators"],
    "tag:meter": ["group:operators"],
    "tag:gateway": ["group:operators"],
    "tag:site-graz": ["group:operators"],
  },
  "hosts": {
    "archive": "10.20.0.9",
  },
  "acls": [
    {"action": "accept", "src": ["group:operators"], "dst": ["*:*"]},
    // Cameras send their pictures to servers, and reach nothing else.
    {"action": "accept", "src": ["tag:camera"], "dst": ["tag:server:443", "archive:445"]},
    {"action": "accept", "src": ["tag:meter"], "proto": "udp", "dst": ["tag:gateway:5683"]},
    {"action": "accept", "src": ["tag:site-graz"], "dst": ["tag:site-graz:22,80"]},
  ],
  "tests": [
    {"src": "tag:camera", "accept": ["tag:server:443"], "deny": ["tag:camera:22"]},
  ],
}
"""


def add_people(tx: SqlTx, wall_s: int) -> list[Person]:
    people = (
        ("ada@example.org", Access.OWNER, "Ada Okafor"),
        ("ben@example.org", Access.OPERATOR, "Ben Lindqvist"),
        ("chi@example.org", Access.VIEWER, "Chi Tanaka"),
        ("audit", Access.AUDITOR, "Yearly audit"),
    )
    return [
        add_person(tx, wall_s, "cli:root", login=login, role=role, name=name, password=PASSWORD if at < 2 else "")
        for at, (login, role, name) in enumerate(people)
    ]


def add_live(tx: SqlTx, wall_s: int, device_id: str, peers: list[str]) -> None:
    """What a device that is watched says, and what it was told to do of late."""
    causes = {
        "control": (48_200, 91_300),
        "keepalive": (12_900, 12_400),
        "probe": (33_000, 31_800),
        "telemetry": (8_100, 0),
    }
    names = [cause.name.lower() for cause in Cause]
    sample = {
        "t": wall_s,
        "up": 412_000,
        "m": [14_300, 32_768, 0],
        "tb": [
            ["flows", 3_560, 4_096],
            ["peers", 31, 256],
            ["records", 60, 512],
            ["staged", 2, 64],
            ["lookups", 0, 32],
        ],
        "np": len(peers),
        "p": [
            [
                *(peer, name, "direct" if at % 3 else "relay", "wlan0" if at % 3 else "fra-1"),
                *(8_400 + 5_300 * at, 81_000 // (at + 1), 12_000 * (at + 1), 91_000_000, 12_000_000),
            ]
            for at, (peer, name) in enumerate((peer, _name(tx, peer)) for peer in peers)
        ],
        "l": [["wlan0", names.index(name), sent, received] for name, (sent, received) in causes.items()],
        "u": [["wlan0", "alive", True, False, "normal", None], ["wwan0", "untested", False, True, "roaming", -97]],
        "d": [["replayed", 4], ["no-peer", 2]],
        "po": 1,
        "pc": [212, 88, 1, 37, 0],
        "mo": [
            [
                "wwan0",
                "LTE",
                "B20",
                "Testnet Mobile",
                "roaming",
                "iot.example",
                2,
                -97,
                -11,
                9,
                -66,
                81_300_000,
                9_410_000,
                42,
            ]
        ],
    }
    tx.save_telemetry(device_id, wall_s, telemetry.write(sample))
    for at, (verb, state, text) in enumerate(
        (
            ("netcheck", CommandState.DONE, ""),
            ("collect-logs", CommandState.DONE, ""),
            ("run", CommandState.REFUSED, "there is no directory of scripts on this device"),
            ("rekey", CommandState.RUNNING, ""),
        )
    ):
        args = {"run": {"s": "clean-cache", "a": ["--older", "7d"], "t": 60}}.get(verb, {})
        finished = 0 if state is CommandState.RUNNING else wall_s - 500 + 100 * at
        tx.add_command(
            Command(
                id=f"{at + 1:016x}",
                seq=tx.next_seq(),
                device=device_id,
                verb=verb,
                args=args,
                actor="user:ada@example.org",
                created_s=wall_s - 520 + 100 * at,
                expires_s=wall_s + 600,
                due_s=0 if finished else wall_s + 600,
                changed_s=finished or wall_s,
                state=state,
                finished_s=finished,
                text=text,
                parts=1 if state is CommandState.DONE else 0,
            )
        )
    tx.save_output(
        f"{2:016x}", 0, b"12:01:44 info hub: connected\n12:01:45 info peers: cam-graz-1 direct by wlan0, 8.4 ms\n"
    )
    tx.save_output(f"{1:016x}", 0, b'{"udp": true, "nat": "endpoint-independent", "mtu": 1472}')


def _name(tx: SqlTx, device_id: str) -> str:
    found = tx.device(device_id)
    return found.name or "" if found is not None else ""
