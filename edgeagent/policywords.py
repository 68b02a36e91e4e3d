"""`edgeagent policy`: a device's slice of the policy in words."""

from __future__ import annotations

from edgeagent.status import table

TYPE_CHECKING = False  # what the typing module would say, and 5 ms
if TYPE_CHECKING:
    from typing import Any

_WORDS = {
    "*": "anybody",
    "member": "devices of users",
    "tagged": "devices with tags",
    "self": "devices of the same user",
    "me": "this device",
    "internet": "the internet",
}
_PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP", 47: "GRE", 50: "ESP", 58: "ICMPv6", 132: "SCTP"}
_PORT_MAX = 65_535


def show_policy(told: dict[str, Any]) -> str:
    """Rules in both directions, then what came of them."""
    policy = told["policy"]
    if policy is None:
        return "The network has no policy: every device may reach every other."
    text = [f"Policy version {policy['version']}. What no rule allows is refused.", ""]
    text += _direction(f"Who may reach {told['name']}:", "nobody", [
        (", ".join(map(_selector, rule["from"])), ", ".join(map(_selector, rule["to"])), _services(rule["services"]))
        for rule in policy["in"]
    ], ("FROM", "TO", "SERVICES"))  # fmt: skip
    text += _direction(f"Whom {told['name']} may reach:", "nobody", [
        (", ".join(map(_selector, rule["to"])), _services(rule["services"])) for rule in policy["out"]
    ], ("TO", "SERVICES"))  # fmt: skip
    text.append(
        f"{policy['connections']} of {policy['connections_max']} connections; {policy['admitted']} were let in, "
        f"{policy['opened']} went out, {policy['revoked']} were ended by a change; {policy['denied']} packets were "
        f"denied, {policy['prohibited']} not sent."
    )
    return "\n".join(text)


def _direction(title: str, none: str, rows: list[tuple[str, ...]], heads: tuple[str, ...]) -> list[str]:
    if not rows:
        return [f"{title} {none}", ""]
    return [title, *("  " + line for line in table([heads, *rows]).splitlines()), ""]


def _selector(selector: str) -> str:
    return _WORDS.get(selector, selector)


def _services(services: list[list[int]]) -> str:
    return ", ".join(_service(*service) for service in services) or "nothing"


def _service(protocol: int, low: int, high: int) -> str:
    every = low == 0 and high == _PORT_MAX
    ports = "" if every else str(low) if low == high else f"{low}-{high}"
    if protocol == 0:
        return "everything" if every else f"port {ports} and ICMP"
    return f"{_PROTOCOLS.get(protocol, f'protocol {protocol}')} {ports}".rstrip()
