"""What the local API answers, as text for people."""

from __future__ import annotations

import time

TYPE_CHECKING = False  # what the typing module would say, and 5 ms
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def show_status(status: dict[str, Any]) -> str:
    """`edgeagent status`: who, where, since when, with whom, and what went wrong."""
    agent, mqtt = status["agent"], status["mqtt"]
    lines = [("agent", f"{agent['state']}, version {agent['version']}, up {duration(agent['uptime_s'])}")]
    if agent["progress"]:
        lines.append(("", agent["progress"]))
    if me := status.get("self"):
        interface = status["interface"]
        lines += [
            ("name", f"{me['name']}.{me['domain']}"),
            ("addresses", " ".join(me["addresses"])),
            ("interface", f"{interface['name']}, MTU {interface['mtu']}, UDP port {interface['port']}"),
            *([("engine", f"{engine['name']}: {engine['why']}")] if (engine := status.get("engine")) else ()),
            ("reachable at", " ".join(me["endpoints"]) or "no address yet"),
            ("NAT", _nat(me)),
            ("relays", _relays(me, status["relays"])),
            ("tags", " ".join(me["tags"]) or "none"),
        ]
        if lock := status.get("lock"):
            lines.append(("lock", _lock(lock, status)))
        if opened := (status["port_mapping"] or {}).get("mappings"):
            ports = (f"{each['address']}:{each['port']} by {each['protocol']} on {each['uplink']}" for each in opened)
            lines.append(("opened ports", "; ".join(ports)))
        lines.append(("policy", policy_line(status["policy"])))
    if uplinks := status.get("uplinks"):
        lines.append(("uplinks", "; ".join(_uplink(uplink) for uplink in uplinks)))
    lines += [("modem", _modem(modem)) for modem in status.get("modems", ())]
    lines.append(("broker", _broker(status, mqtt)))
    if tables := status.get("tables"):
        lines.append(("peers", f"{tables['peers']['used']} of {tables['peers']['ceiling']}"))
        lines.append(("records", f"{tables['records']['used']} of {tables['records']['ceiling']}"))
    ceiling = "" if agent["ceiling_kib"] is None else f" of {_mib(agent['ceiling_kib'])}"
    hits = f", input dropped for want of it {agent['ceiling_hits']} times" if agent["ceiling_hits"] else ""
    lines.append(("memory", f"{_mib(agent['rss_kib'])}{ceiling}{hits}"))
    if written := agent.get("flash"):  # an agent of another release than this command may say less
        lines.append(("flash", flash(written)))
    if board := agent.get("board"):
        lines.append(("board", board["id"] or "unknown"))
        if board["problem"]:
            lines.append(("warning", board["problem"]))
    lines.append(("control", f"{size(mqtt['rx_bytes'])} received, {size(mqtt['tx_bytes'])} sent"))
    lines += [("metered", _metered(uplink)) for uplink in status["metered"]]
    drops = status.get("drops", {})
    lines.append(("dropped", ", ".join(f"{reason} {count}" for reason, count in drops.items()) or "nothing"))
    for key, text in (("failed_writes", "writes that the disk refused"), ("damaged_files", "damaged state files")):
        if agent[key]:
            lines.append(("warning", f"{agent[key]} {text}"))
    text = "\n".join(f"{name:<13} {value}".rstrip() for name, value in lines)
    if status.get("peers"):
        text += "\n\n" + show_peers(status["peers"])
    if "log" in status:
        text += "\n\n" + "\n".join(status["log"])
    return text


def flash(written: dict[str, Any]) -> str:
    """Of `agent.flash` in a status: what this agent wrote to flash."""
    day = written["day"]
    return (
        f"{day['writes']} writes, {size(day['bytes'])} in the last day; "
        f"{written['writes']} writes, {size(written['bytes'])} since the start"
    )


def show_memory(usage: dict[str, Any]) -> str:
    """`edgeagent status --memory`: the process beside its ceiling, then every table, the fullest first."""
    process, group, pump = usage["process"], usage["cgroup"], usage["pump"]
    ceiling = "no ceiling" if process["ceiling_kib"] is None else f"of {_mib(process['ceiling_kib'])}"
    parts = [f"{_mib(process['rss_kib'])} {ceiling}", f"peak {_mib(process['rss_peak_kib'])}"]
    if process["hits"]:
        parts.append(f"input dropped at the ceiling {process['hits']} times")
    lines = [("process", ", ".join(parts))]
    if group is not None:
        bound = "no limit" if group["limit_kib"] is None else f"of {_mib(group['limit_kib'])}"
        high = "" if group["high_kib"] is None else f", slowed down from {_mib(group['high_kib'])} on"
        lines.append(("control group", f"{_mib(group['usage_kib'] or 0)} {bound}{high}: {group['path']}"))
    if pump is not None:
        lines.append(("C library", f"{_mib(pump['mapped_kib'])} mapped, AEAD {' and '.join(pump['aead'])}"))
    lines.append(("profile", f"{usage['profile']}{', ' + usage['limits'] if usage['limits'] else ''}"))
    rows = [("TABLE", "USED", "PEAK", "CEILING", "FULL", "GAVE WAY")]
    for name, each in sorted(usage["tables"].items(), key=lambda item: (-_share(item[1]), item[0])):
        in_bytes = each.get("unit") == "bytes"
        used, peak, most = (
            "-" if value is None else size(value) if in_bytes else f"{value:,}"
            for value in (each.get("used"), each.get("peak"), each["ceiling"])
        )
        lost = each.get("gave_way")
        share = f"{100 * _share(each):.0f} %"
        rows.append((name.replace("_", " "), used, peak, most, share, "-" if lost is None else f"{lost:,}"))
    head = "\n".join(f"{name:<13} {value}" for name, value in lines)
    return f"{head}\n\n{table(rows, right=range(1, 6))}"


def _share(each: dict[str, Any]) -> float:
    """How full it is; where only the most is known that it ever was, that."""
    amount: int = each.get("used", each.get("peak", 0))
    return amount / max(1, int(each["ceiling"]))


def _mib(kib: int) -> str:
    return f"{kib / 1024:.1f} MiB"


def show_peers(peers: list[dict[str, Any]]) -> str:
    """`edgeagent peers`: one line for each."""
    if not peers:
        return "no peers: nothing was sent to or heard from another device lately"
    rows = [("NAME", "ADDRESS", "PATH", "ENDPOINT", "LATENCY", "MTU", "HANDSHAKE", "RECEIVED", "SENT")]
    rows += [
        (
            peer["name"],
            peer["addresses"][0] if peer["addresses"] else "-",
            peer["path"],
            peer["endpoint"] or peer.get("refused") or "-",
            "-" if peer["latency_ms"] is None else f"{peer['latency_ms']:.1f} ms",
            str(peer["path_mtu"] or "-"),
            "never" if peer["handshake_age_s"] is None else duration(peer["handshake_age_s"]) + " ago",
            size(peer["rx_bytes"]),
            size(peer["tx_bytes"]),
        )
        for peer in peers
    ]
    return table(rows)


def show_commands(commands: list[dict[str, Any]]) -> str:
    """`edgeagent commands`: one line for each, the newest first."""
    if not commands:
        return "the hub has told this device to do nothing, as far as it remembers"
    rows = [("WHEN", "COMMAND", "BY", "STATE", "WHY")]
    for each in commands:
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(each["at"]))
        rows.append((when, each["verb"], each["by"], each["state"], each["text"] or each["code"] or "-"))
    return table(rows)


def show_whois(record: dict[str, Any]) -> str:
    """`edgeagent whois`: what the hub signed of a device."""
    lines = [
        ("name", record["name"] + (" (this device)" if record.get("self") else "")),
        ("addresses", " ".join(record["addresses"])),
        ("device", record["device"]),
        ("tags", " ".join(record["tags"]) or "none"),
    ]
    if record.get("user"):
        lines.append(("user", record["user"]))
    if record.get("routes"):
        lines.append(("routes", " ".join(record["routes"])))
    if record.get("not_after"):
        lines.append(("valid until", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(record["not_after"]))))
    if "path" in record:
        lines.append(("path", record["path"] or "none: not spoken to lately"))
    return "\n".join(f"{name:<13} {value}" for name, value in lines)


def show_dns(about: dict[str, Any]) -> str:
    """`edgeagent dns status`: where the name server is, what it answers for, who was told of it, and what it did."""
    if about["mode"] == "off":
        return "off: this agent answers nobody about names (--dns)"
    tcp = "" if about["tcp"] else ", UDP only"
    resolver, counters = about["resolver"], about["counters"]
    lines = [
        ("server", f"{about['address']}, port {about['port']}{tcp}" if about["port"] else f"none: {about['why_not']}"),
        ("domain", f"{about['domain']}, and {about['reverse']} reverse zones"),
        ("search", " ".join(about["search"]) or "none"),
        ("records", str(about["records"])),
        *((f"split {domain}", " ".join(servers)) for domain, servers in about["split"].items()),
        ("other names", " ".join(about["global"] or about["found"]) or "refused"),
    ]
    if resolver is None:
        lines.append(("told", "nobody (--dns=server)"))
    else:
        lines.append(("told", f"{resolver['way']}: {resolver['state']} ({resolver['why']})"))
        if resolver["error"]:
            lines.append(("", resolver["error"]))
    lines += [
        ("queries", ", ".join(f"{name} {count}" for name, count in counters.items())),
        ("waiting", ", ".join(f"{for_} {used} of {most}" for for_, (used, most) in about["waiting"].items())),
        ("dropped", ", ".join(f"{reason} {count}" for reason, count in about["drops"].items()) or "nothing"),
    ]
    return "\n".join(f"{name:<13} {value}".rstrip() for name, value in lines)


def show_ledger(ledger: dict[str, Any]) -> str:
    """`edgeagent ledger`: sent and received by uplink and cause, then what that is of the budgets."""
    if not ledger["uplinks"]:
        return "nothing was sent or received yet"
    periods = ("since_start", "day", "month")
    day, month = ("TODAY", "THIS MONTH") if ledger["date_known"] else ("LAST DAY", "LAST MONTH")
    heads = ("SINCE START", day, month)
    rows = [("UPLINK", "CAUSE", *(cell for head in heads for cell in (head, "")))]
    rows.append(("", "", *("sent", "received") * len(periods)))
    for uplink in ledger["uplinks"]:
        totals = dict.fromkeys([(period, way) for period in periods for way in ("sent", "received")], 0)
        for cause in uplink["causes"]:
            for period, way in totals:
                totals[period, way] += cause[period][way]
            rows.append((uplink["uplink"], cause["cause"], *(size(cause[period][way]) for period, way in totals)))
        rows.append((uplink["uplink"], "total", *map(size, totals.values())))
    text = f"{table(rows)}\n\nstarted {duration(ledger['since_s'])} ago"
    metered = [uplink for uplink in ledger["uplinks"] if uplink["metered"]]
    if metered:
        text += "".join(f"\nmetered: {_metered(uplink)}" for uplink in metered)
    if not ledger["date_known"]:
        text += "\nThe hub has not told the time yet: what came since counts to the last day and month on record."
    return text


def _metered(uplink: dict[str, Any]) -> str:
    parts = [
        f"{uplink['used_percent'][period]:g} % of {size(uplink['budget'][key])} a {period}"
        for period, key in (("day", "daily_bytes"), ("month", "monthly_bytes"))
        if uplink["used_percent"][period] is not None
    ]
    used = " and ".join(parts) + " used" if parts else "no budget"
    return f"{uplink['uplink']}: {uplink['level']}, {used}{', bulk is to wait' if uplink['defer_bulk'] else ''}"


def duration(seconds: float) -> str:
    """The two greatest units: "3 d 4 h", "12 min 5 s", "0 s"."""
    rest = max(0, int(seconds))
    parts: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, length)
        if count or parts:
            parts.append(f"{count} {unit}")
        if len(parts) == 2:
            break
    return " ".join(parts) or "0 s"


def size(count: float) -> str:
    """Bytes in the greatest binary unit that leaves at least 1."""
    for unit in _UNITS[:-1]:
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} {_UNITS[-1]}"


def table(rows: Sequence[tuple[str, ...]], right: Sequence[int] = ()) -> str:
    """Columns as wide as their widest cell, two spaces apart; those of the numbers `right` end at their right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


_NATS = {
    None: "not known: too few servers answered",
    "eim": "endpoint-independent mapping: direct paths to most networks",
    "edm": "mapping depends on the destination: direct paths only to networks that let strangers in",
}


def _nat(me: dict[str, Any]) -> str:
    """How the NAT in front of us maps (RFC 4787, section 4.1), and where servers see us."""
    seen = " ".join(dict.fromkeys(me["mapped"]))
    return f"{seen}, {_NATS[me['nat_mapping']]}" if seen else _NATS[None]


def _relays(me: dict[str, Any], relays: list[dict[str, Any]]) -> str:
    parts = []
    for relay in relays:
        carrier = f" by {relay['carrier'].upper()}" if relay["carrier"] else ""
        latency = "" if relay["latency_ms"] is None else f", {relay['latency_ms']:.1f} ms"
        state = "" if relay["serves"] else ", does not answer"
        parts.append(f"{relay['id']}{carrier}{latency}{' (home)' if relay['home'] else ''}{state}")
    if not any(relay["home"] for relay in relays) and me["home_relay"]:
        parts.append(f"{me['home_relay']} (home, asleep until somebody calls)")
    return "; ".join(parts) or "none"


def policy_line(policy: dict[str, Any] | None) -> str:
    """Of `status`."""
    if policy is None:
        return "none: everything may pass"
    return (
        f"version {policy['version']}, {policy['connections']} of {policy['connections_max']} connections, "
        f"{policy['admitted']} let in, {policy['denied']} packets denied, {policy['prohibited']} not sent"
    )


def _lock(lock: dict[str, Any], status: dict[str, Any]) -> str:
    """Whether others let this device in, whom it has refused itself, and whether the hub hides news of the lock."""
    parts = [f"{'on' if lock['on'] else 'off'}, statement {lock['statement']}"]
    if not lock["signed"]:
        parts.append(f"this device is NOT signed (edgehub lock sign {status['self']['device']})")
    refused = sum(status["drops"].get(name, 0) for name in ("lock-unsigned", "lock-void", "lock-forged"))
    if refused:
        parts.append(f"refused {refused} records")
    if lock["withheld"]:
        parts.append("WARNING: what the hub says of the lock does not follow from what this device holds")
    return "; ".join(parts)


def _modem(modem: dict[str, Any]) -> str:
    signal = next((modem[key] for key in ("rsrp_dbm", "rssi_dbm") if modem[key] is not None), None)
    dbm = None if signal is None else f"{signal} dBm"
    parts = (modem["technology"], modem["band"], dbm, modem["registration"], modem["operator"])
    return f"{modem['uplink'] or modem['port']}: {', '.join(filter(None, parts)) or modem['why'] or 'says nothing'}"


def _uplink(uplink: dict[str, Any]) -> str:
    words = [f"{uplink['name']} {uplink['state']}"]
    words += [word for word in ("active", "metered") if uplink[word]]
    return ", ".join(words)


def _broker(status: dict[str, Any], mqtt: dict[str, Any]) -> str:
    hub = status.get("hub")
    text = f"{mqtt['broker'] or 'none'}: {mqtt['stage']}"
    if hub is None:
        return text
    if hub["reconnect_in_s"] is not None and mqtt["stage"] == "closed":
        text += f", next try in {duration(hub['reconnect_in_s'])}"
    if hub["connected"] and hub["hub_up"] is False:
        text += ", the hub is away"
    return text
