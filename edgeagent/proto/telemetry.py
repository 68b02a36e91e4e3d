"""What a device that is watched says of itself, a few kilobytes at most: the table that both sides check with, and how
the hub shows it. Whole numbers only; the names are short on the wire, because somebody may pay for each byte."""

from __future__ import annotations

from typing import Any

from edgeagent.proto.codec import decode, encode
from edgeagent.proto.ledger import CAUSES, UPLINKS_MAX, Cause
from edgeagent.proto.schema import Fields, Flag, List, Nullable, Row, Text, Uint

SAMPLE_BYTES_MAX = 4_096
PEERS_MAX, TABLES_MAX, DROPS_MAX = 32, 48, 32

# Flows that others began, that it began, that a change ended; packets of others, and of its own, that it dropped
POLICY_COUNTS = ("admitted", "opened", "revoked", "denied", "prohibited")

MODEMS_MAX = 4
_NAME = Text(64)
_SIGNED = Uint(-(1 << 31), (1 << 31) - 1)
# uplink, technology, band, operator, registration, APN ("" for what is not known), bars of 4, RSRP dBm, RSRQ dB, SINR
# dB, RSSI dBm, bytes received and sent by its interface since it was found, seconds since it said so
_DB = Nullable(Uint(-200, 200))
_MODEM = Row(
    *(_NAME, _NAME, _NAME, _NAME, _NAME, _NAME), Nullable(Uint(0, 4)), *(_DB, _DB, _DB, _DB), Uint(), Uint(), Uint()
)
# device, name, path (direct, relay, none, refused), what carries it (uplink, or relay and how), latency µs, B/s
# and then bytes received and sent, the latter since the peer is known
_PEER = Row(_NAME, _NAME, _NAME, _NAME, Nullable(Uint()), Uint(), Uint(), Uint(), Uint())
SAMPLE = Fields(
    {
        "t": Uint(),  # wall time
        "up": Uint(),  # seconds since the agent's start
        "m": Row(Uint(), Nullable(Uint()), Uint()),  # KiB in use, KiB of the ceiling, input dropped at it
        "tb": List(Row(_NAME, Uint(), Uint()), TABLES_MAX),  # table, used, ceiling: the fullest
        "np": Uint(),  # peers
        "p": List(_PEER, PEERS_MAX),  # those with most traffic
        "l": List(Row(_NAME, Uint(0, CAUSES - 1), Uint(), Uint()), UPLINKS_MAX * CAUSES),  # uplink, cause, today's B
        # name, state, in use, metered, how much of its budget is used, signal in dBm
        "u": List(Row(_NAME, _NAME, Flag(), Flag(), _NAME, Nullable(_SIGNED)), UPLINKS_MAX),
        "d": List(Row(_NAME, Uint()), DROPS_MAX),  # reason, count: the most frequent
    },
    {
        "po": Uint(),  # version of the policy in force
        "pc": Row(Uint(), Uint(), Uint(), Uint(), Uint()),  # what came of it: POLICY_COUNTS, since the agent's start
        "mo": List(_MODEM, MODEMS_MAX),
    },
    grows=True,
)


def write(sample: dict[str, Any]) -> bytes:
    """A sample as it is sent. What does not fit is left out: the quietest peers first, then the emptiest tables."""
    sample = {**sample, "p": sample["p"][:PEERS_MAX], "tb": sample["tb"][:TABLES_MAX], "d": sample["d"][:DROPS_MAX]}
    while True:
        data = encode(sample)
        if len(data) <= SAMPLE_BYTES_MAX:
            return data
        for key in ("p", "tb", "d", "l", "u"):
            if sample[key]:
                sample[key] = sample[key][: len(sample[key]) * 3 // 4]
                break


def read(data: bytes) -> dict[str, Any]:
    """A sample in full words, as JSON could say it. Raises ControlError."""
    found = SAMPLE.check(decode(data, max_bytes=SAMPLE_BYTES_MAX), "sample")
    uplinks: dict[str, list[dict[str, Any]]] = {}
    for name, cause, sent, received in found["l"]:
        row = {"cause": Cause(cause).name.lower(), "sent": sent, "received": received}
        uplinks.setdefault(name, []).append(row)
    used, ceiling, hits = found["m"]
    return {
        "at": found["t"],
        "uptime_s": found["up"],
        "memory": {"used_kib": used, "ceiling_kib": ceiling, "hits": hits},
        "tables": [{"name": name, "used": amount, "ceiling": most} for name, amount, most in found["tb"]],
        "peer_count": found["np"],
        "peers": [
            {
                "device": device,
                "name": name,
                "path": path,
                "carrier": carrier,
                "latency_ms": None if latency is None else latency / 1000,
                "rx_bytes_per_s": rx_rate,
                "tx_bytes_per_s": tx_rate,
                "rx_bytes": rx,
                "tx_bytes": tx,
            }
            for device, name, path, carrier, latency, rx_rate, tx_rate, rx, tx in found["p"]
        ],
        "ledger_today": [{"uplink": name, "causes": causes} for name, causes in uplinks.items()],
        "uplinks": [
            {"name": name, "state": state, "active": active, "metered": metered, "level": level, "signal_dbm": signal}
            for name, state, active, metered, level, signal in found["u"]
        ],
        "modems": [_modem(row) for row in found.get("mo", [])],
        "drops": dict(found["d"]),
        "policy": found.get("po"),
        "policy_counts": dict(zip(POLICY_COUNTS, found["pc"], strict=True)) if "pc" in found else None,
    }


def _modem(row: list[Any]) -> dict[str, Any]:
    names = ("uplink", "technology", "band", "operator", "registration", "apn")
    found: dict[str, Any] = {name: text or None for name, text in zip(names, row[:6], strict=True)}
    numbers = ("bars", "rsrp_dbm", "rsrq_db", "sinr_db", "rssi_dbm", "received", "sent", "age_s")
    return {**found, **dict(zip(numbers, row[6:], strict=True)), "roaming": found["registration"] == "roaming"}
