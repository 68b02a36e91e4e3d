"""How much of what it may take the agent takes: every table, queue and ring, the process, its control group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeagent import ceiling
from edgeagent.io.localapi import CLIENTS_MAX
from edgeagent.io.relaystream import STREAMS_MAX
from edgeagent.meter import CONNECTIONS_MAX
from edgeagent.proto.ledger import UPLINKS_MAX
from edgeagent.proto.node_status import tables as node_tables

if TYPE_CHECKING:
    from edgeagent.daemon import Agent
    from edgeagent.membership import Membership
    from edgeagent.proto.flashmeter import FlashMeter

FACT_BYTES_MAX = 128  # proto/control.py has it of each fact
SHOWN_MAX = 8  # tables in one fact


def usage(agent: Agent) -> dict[str, Any]:
    """For `status --memory`. `tables` by name: `used`, `peak`, `ceiling`, `gave_way` as far as they are known, in items
    or in what `unit` says."""
    context, member = agent.context, agent.membership
    settings, accounts = context.settings, context.accounts
    tables: dict[str, dict[str, Any]] = {
        "log_lines": {"used": len(context.ring.lines()), "ceiling": context.limits.log_lines},
        "local_api_clients": {"used": agent.api.clients, "ceiling": CLIENTS_MAX, "gave_way": agent.api.refused},
        "ledger_uplinks": {"used": accounts.ledger.books, "ceiling": UPLINKS_MAX},
        "metered_connections": {"used": accounts.meter.connections, "ceiling": CONNECTIONS_MAX},
    }
    if member is not None:
        tables |= member_tables(member)
    engine = None if member is None else member.tunnel.engine
    aead = getattr(engine, "aead", None)
    now_in_use = ceiling.process()
    return {
        "process": {
            "rss_kib": now_in_use.get("rss_kib", 0),
            "rss_peak_kib": now_in_use.get("rss_peak_kib", 0),
            "data_kib": now_in_use.get("data_kib", 0),
            "ceiling_kib": context.ceiling.kib,
            "hits": context.ceiling.hits,
        },
        "cgroup": ceiling.describe(ceiling.own_group()),
        "pump": None if aead is None else {"mapped_kib": getattr(engine, "mapped_kib", 0), "aead": list(aead)},
        "profile": settings.memory_profile,
        "limits": settings.limits,
        "tables": tables,
    }


def member_tables(member: Membership) -> dict[str, dict[str, Any]]:
    tunnel = member.tunnel
    return {
        **node_tables(member.node),
        **tunnel.engine.tables(),
        **tunnel.udp.tables(),
        "relay_streams": {"used": len(member.relays.streams.sockets()), "ceiling": STREAMS_MAX},
        **(member.naming.tables() if member.naming is not None else {}),
        "lookups": {"used": len(member.lookups), "ceiling": member.node.limits.asks},
        **member.command_tables(),
    }


def facts(now: float, member: Membership, own: ceiling.Ceiling, flash: FlashMeter) -> dict[str, str]:
    """The same for the hub, which keeps texts of a few words: the process, what is fullest, what gave way most, and
    what was written to flash."""
    used, tables = ceiling.process(), member_tables(member)
    most = "" if own.kib is None else f" of {_mib(own.kib)}"
    texts = [f"{_mib(used.get('rss_kib'))}{most} MiB, peak {_mib(used.get('rss_peak_kib'))}"]
    if own.hits:
        texts.append(f"dropped at the ceiling {own.hits}")
    group = ceiling.describe(ceiling.own_group())
    if group is not None and group["limit_kib"] is not None:
        texts.append(f"control group {_mib(group['usage_kib'])} of {_mib(group['limit_kib'])} MiB")
    amounts = {name: int(each.get("used", each.get("peak", 0))) for name, each in tables.items()}
    full = sorted(amounts, key=lambda name: -amounts[name] / tables[name]["ceiling"])
    fullest = [
        f"{name} {amounts[name]}/{tables[name]['ceiling']}"
        for name in full[:SHOWN_MAX]
        if amounts[name] * 100 >= tables[name]["ceiling"]
    ]
    lost = sorted(((each.get("gave_way") or 0, name) for name, each in tables.items()), reverse=True)
    gone = [f"{name} {count}" for count, name in lost[:SHOWN_MAX] if count]
    writes, written = flash.day(now)
    worn = f"{writes} writes, {(written + 1023) >> 10} KiB in the last day"
    return {
        "flash": worn,
        "memory": _join(texts),
        "tables": _join(fullest) or "all below 1 %",
        "gave_way": _join(gone) or "nothing",
    }


def _join(texts: list[str]) -> str:
    """As many of them as one fact holds."""
    found = ""
    for text in texts:
        longer = f"{found}, {text}" if found else text
        if len(longer.encode()) > FACT_BYTES_MAX:
            break
        found = longer
    return found


def _mib(kib: Any) -> str:
    return f"{(kib or 0) / 1024:.1f}"
