"""What `up`, `routes` and `exit-node` ask of the agent about routes, and how its answer is shown."""

from __future__ import annotations

TYPE_CHECKING = False  # what the typing module would say, and 5 ms
if TYPE_CHECKING:
    import argparse
    from typing import Any


def asked_of(options: argparse.Namespace) -> dict[str, Any]:
    """Of a command line: what it says of routes, as the local API wants it; without what it does not say."""
    asked: dict[str, Any] = {}
    if options.advertise_routes is not None:
        asked["advertise"] = [text.strip() for text in options.advertise_routes.split(",") if text.strip()]
    if options.accept_routes is not None:
        asked["accept"] = options.accept_routes == "yes"
    for name in ("snat", "offers_exit"):
        if getattr(options, name) is not None:
            asked[name] = getattr(options, name) == "on"
    exit_node = getattr(options, "exit_node", None)
    if exit_node is not None:
        asked["exit_node"] = "" if exit_node == "off" else exit_node.lower()
        asked["allow_lan"] = options.exit_node_allow_lan
    return asked


def show_routes(found: dict[str, Any], *, only_exit: bool = False) -> str:
    lines = []
    if not only_exit:
        for row in found["advertised"]:
            state = "approved" if row["approved"] else "waits for approval"
            here = f", as {row['prefix']}" if row["via"] else f", {row['real']} here" if row["real"] else ""
            lines.append(f"offers   {row['via'] or row['prefix']:<24} {state}{here}")
        if found["exit_node_offered"]:
            state = "approved" if found["exit_node_approved"] else "waits for approval"
            lines.append(f"offers   {'exit node':<24} {state}")
        if lines and not found["snat"]:
            lines.append("         sources stay as they are (--snat off)")
        for row in found["used"]:
            by = f"by {row['router']}" if row["router"] else "not used yet"
            lines.append(
                f"uses     {row['via'] or row['prefix']:<24} {by}{'' if row['in_kernel'] else ', not in the kernel'}"
            )
        if not found["accept"]:
            lines.append("uses     nothing of others (--accept-routes no)")
    if found["exit_node"]:
        lan = ", but not to its own networks" if found["exit_node_allow_lan"] else ""
        lines.append(f"exits    everything goes through {found['exit_node']}{lan}")
    elif only_exit:
        lines.append("no exit node is used. Choose one: edgeagent exit-node set NAME")
    lines += [f"PROBLEM  {text}" for text in found["problems"]]
    return "\n".join(lines) or "no routes. Offer some: edgeagent routes set --advertise-routes 192.168.7.0/24"
