"""A sample of a watched device as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

BARS = 4
TABLES_SHOWN = 6
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def render(name: str, sample: dict[str, Any]) -> RenderableType:
    """`sample` as hub.core.commands.telemetry gives it. What a device says of itself is text, never markup."""
    memory = sample["memory"]
    most = "" if memory["ceiling_kib"] is None else f" of {size(memory['ceiling_kib'] * 1024)}"
    head = f"{name}  up {sample['uptime_s']} s  memory {size(memory['used_kib'] * 1024)}{most}"
    parts: list[RenderableType] = [Text(head), _peers(sample)]
    if sample["uplinks"]:
        parts.append(_uplinks(sample))
    if sample["modems"]:
        parts.append(_modems(sample))
    parts += [_ledger(sample), _tables(sample)]
    if sample["drops"]:
        parts.append(Text("dropped: " + ", ".join(f"{reason} {count}" for reason, count in sample["drops"].items())))
    return Group(*parts)


def size(count: float) -> str:
    for unit in _UNITS[:-1]:
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} {_UNITS[-1]}"


def _peers(sample: dict[str, Any]) -> Table:
    shown, count = len(sample["peers"]), sample["peer_count"]
    title = f"{count} peers" + (f", the busiest {shown}" if shown < count else "")
    return _table(
        ("PEER", "PATH", "BY", "LATENCY", "RECEIVES", "SENDS"),
        [
            (
                peer["name"],
                peer["path"],
                peer["carrier"] or "-",
                "-" if peer["latency_ms"] is None else f"{peer['latency_ms']:.1f} ms",
                f"{size(peer['rx_bytes_per_s'])}/s",
                f"{size(peer['tx_bytes_per_s'])}/s",
            )
            for peer in sample["peers"]
        ],
        title,
    )


def _uplinks(sample: dict[str, Any]) -> Table:
    rows = [
        (
            uplink["name"],
            uplink["state"] + (", in use" if uplink["active"] else ""),
            f"metered, {uplink['level']}" if uplink["metered"] else "-",
            "-" if uplink["signal_dbm"] is None else f"{uplink['signal_dbm']} dBm",
        )
        for uplink in sample["uplinks"]
    ]
    return _table(("UPLINK", "STATE", "METERED", "SIGNAL"), rows)


def _modems(sample: dict[str, Any]) -> Table:
    rows = [
        (
            modem["uplink"],
            " ".join(filter(None, (modem["technology"], modem["band"]))) or "-",
            "-" if modem["bars"] is None else f"{modem['bars']} of {BARS}",
            *(
                "-" if modem[key] is None else f"{modem[key]} {unit}"
                for key, unit in (("rsrp_dbm", "dBm"), ("rsrq_db", "dB"), ("sinr_db", "dB"))
            ),
            modem["operator"] or "-",
            modem["registration"] or "-",
        )
        for modem in sample["modems"]
    ]
    return _table(("MODEM", "NETWORK", "BARS", "RSRP", "RSRQ", "SINR", "OPERATOR", "STATE"), rows)


def _ledger(sample: dict[str, Any]) -> Table:
    rows = [
        (ledger["uplink"], cause["cause"], size(cause["sent"]), size(cause["received"]))
        for ledger in sample["ledger_today"]
        for cause in ledger["causes"]
    ]
    return _table(("UPLINK", "CAUSE", "SENT TODAY", "RECEIVED TODAY"), rows)


def _tables(sample: dict[str, Any]) -> Table:
    rows = [(each["name"], f"{each['used']:,}", f"{each['ceiling']:,}") for each in sample["tables"][:TABLES_SHOWN]]
    return _table(("TABLE", "USED", "CEILING"), rows)


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], title: str = "") -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title or None, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
