"""What a running relay is doing, from its metrics."""

from __future__ import annotations

import http.client
import re
from typing import Any

_SAMPLE = re.compile(r"edgerelay_([a-z_]+)(?:\{([^}]*)\})? (-?[0-9.e+]+)")
_LABEL = re.compile(r'([a-z_]+)="([^"]*)"')
METRICS_BYTES_MAX = 4 << 20
TIMEOUT_S = 5.0

Sample = tuple[str, dict[str, str], float]


class NoAnswer(Exception):
    """There is no relay there; the text says why."""


def fetch(host: str, port: int) -> list[Sample]:
    """All samples of the metrics listener. Raises NoAnswer."""
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        text = answer.read(METRICS_BYTES_MAX).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswer(str(error) or type(error).__name__) from None
    finally:
        connection.close()
    if answer.status != 200 or "edgerelay_" not in text:
        raise NoAnswer(f"answered {answer.status}, and not as a relay does")
    return parse(text)


def parse(text: str) -> list[Sample]:
    samples = []
    for line in text.splitlines():
        match = _SAMPLE.fullmatch(line)
        if match is not None:
            samples.append((match[1], dict(_LABEL.findall(match[2] or "")), float(match[3])))
    return samples


def summarise(samples: list[Sample]) -> dict[str, Any]:
    """The figures that an operator asks for, drops and refusals only where there were some."""
    status: dict[str, Any] = {"members": {}, "networks": {}, "hubs": {}, "traffic": {}, "drops": {}, "refusals": {}}
    for name, labels, number in samples:
        value = int(number) if number == int(number) else number
        if name == "info":
            status.update(labels)
        elif name == "members":
            status["members"][labels["carrier"]] = value
        elif name in ("packets_total", "bytes_total"):
            carrier = status["traffic"].setdefault(labels["carrier"], {})
            carrier[f"{name.removesuffix('_total')}_{labels['way']}"] = value
        elif name == "registration":
            status["hubs"][labels["network"]] = {part: labels[part] for part in ("relay", "region", "state")}
        elif name == "hub_drops_total":
            status["hubs"][labels["network"]].setdefault("drops", {})[labels["reason"]] = value
        elif name.startswith("network_"):
            network = status["networks"].setdefault(labels["network"], {})
            network[name.removeprefix("network_").removesuffix("_total")] = value
        elif name in ("drops_total", "refusals_total"):
            if value:
                status[name.removesuffix("_total")][labels["reason"]] = value
        else:
            status[name] = value
    status["draining"] = bool(status.get("draining"))
    return status


def show(status: dict[str, Any]) -> str:
    """The same for people."""
    members = status["members"]
    lines = [
        f"relay {status.get('relay', '?')} in {status.get('region', '?')}, version {status.get('version', '?')}, "
        f"up {_duration(status.get('uptime_seconds', 0))}" + (", draining" if status["draining"] else ""),
        f"members   {sum(members.values())} ({', '.join(f'{count} {name}' for name, count in members.items())})",
        f"siblings  {status.get('siblings', 0)} linked, {status.get('sibling_members', 0)} members on them",
        f"waiting   {status.get('queued_bytes', 0)} bytes for members that read slowly",
    ]
    for network, hub in status["hubs"].items():
        known = f" as {hub['relay']} in {hub['region']}" if hub["relay"] else ""
        dropped = "".join(f", dropped {reason} {count}" for reason, count in hub.get("drops", {}).items())
        lines.append(f"hub       {network} {hub['state']}{known}{dropped}")
    lines += [
        "",
        f"{'carrier':<10}{'packets in':>14}{'packets out':>14}{'bytes in':>18}{'bytes out':>18}",
    ]
    for carrier, of in status["traffic"].items():
        lines.append(
            f"{carrier:<10}{of['packets_in']:>14}{of['packets_out']:>14}{of['bytes_in']:>18}{of['bytes_out']:>18}"
        )
    lines += ["", f"{'network':<18}{'members':>9}{'packets':>14}{'bytes':>18}{'dropped':>12}"]
    for network, of in status["networks"].items():
        lines.append(f"{network:<18}{of['members']:>9}{of['packets']:>14}{of['bytes']:>18}{of['dropped']:>12}")
    for title in ("refusals", "drops"):
        if status[title]:
            lines += ["", title]
            lines += [f"  {reason:<24}{count:>12}" for reason, count in status[title].items()]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
