"""The verbs of the local API. What is asked here is in docs/agent.md."""

from __future__ import annotations

import os
import socket
from time import monotonic
from typing import TYPE_CHECKING, Any

from edgeagent.io.keystore import StateFile
from edgeagent.proto.ip import ip_to_text
from edgeagent.proto.names import is_host_name
from edgeagent.proto.token import Token, TokenError
from edgeagent.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeagent.context import Context
    from edgeagent.daemon import Agent
    from edgeagent.io.localapi import Client
    from edgeagent.membership import Membership
    from edgeagent.proto.records import Query, Record

LOG_LINES_SHOWN = 40
TARGET_CHARS_MAX = 300
_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


def serve(now: float, agent: Agent, client: Client, verb: str, request: dict[str, Any]) -> None:
    """Answer one request, now or later."""
    handler = _VERBS.get(verb)
    if handler is None:
        client.refuse("usage", f"do: {verb[:40]!r}: no such request; known are {', '.join(_VERBS)}.")
    else:
        handler(now, agent, client, request)


def _up(now: float, agent: Agent, client: Client, request: dict[str, Any]) -> None:
    """`token` joins; without one the device must be a member. Answered when the interface is there."""
    text, host = request.get("token"), request.get("hostname")
    if host is not None and not is_host_name(host):
        client.refuse("usage", "hostname: one DNS label expected, lower case.")
        return
    if "routes" in request and not _set_routes(now, agent, client, request["routes"]):
        return
    if text is None:
        agent.await_up(now, client)
        return
    try:
        token = Token.decode(agent.context.crypto, text if isinstance(text, str) else "")
    except TokenError as error:
        client.refuse("usage", f"join token: {error}.")
        return
    member = agent.membership
    if member is not None and token.network_id(agent.context.crypto) != member.node.admission.network:
        client.refuse(
            "failed",
            f"this device is a member of another network, {member.node.admission.network}. "
            f"To leave it: edgeagent down, remove {agent.context.keystore.directory}, then join.",
        )
        return
    if (member is None or member.cut_off) and not agent.join(now, token, str(text), host):
        client.refuse("failed", "the join token could not be kept: the disk refuses; see edgeagent status --log.")
        return
    agent.await_up(now, client)


def _status(now: float, agent: Agent, client: Client, request: dict[str, Any]) -> None:
    """What this device is doing; `log` true adds the newest lines."""
    context, link, member = agent.context, agent.link, _up_to_date(now, agent)
    status: dict[str, Any] = {
        "agent": {
            "state": agent.state,
            "version": VERSION,
            "pid": os.getpid(),
            "uptime_s": round(now - context.started_at),
            "rss_kib": _rss_kib(),
            "ceiling_kib": context.ceiling.kib,
            "ceiling_hits": context.ceiling.hits,
            "crypto": context.crypto.name,
            "state_dir": context.keystore.directory,
            "flash_writes": context.keystore.flash_writes,
            "flash": _flash(context),
            "board": _board(context),
            "failed_writes": context.failed_writes,
            "damaged_files": context.damaged_files,
            "progress": agent.progress,
            "local_api": {"refused": agent.api.refused, "malformed": agent.api.malformed},
        },
        "metered": context.accounts.describe_metered(now),
        "mqtt": {"stage": link.stage, "broker": link.broker, **link.counters},
    }
    if member is not None:
        status |= member.node.status(now)
        tunnel = member.tunnel
        status["interface"] = {"name": tunnel.tun.name, "mtu": context.settings.mtu, "port": tunnel.port}
        status["engine"] = {"name": tunnel.chosen.name, "why": tunnel.chosen.why}
        status["port_mapping"] = tunnel.describe_ports()
        for drops in (tunnel.engine.drops, tunnel.udp.drops):
            for reason, count in drops.items():
                if count:  # an engine and the machine that it drives may drop for the same reason
                    status["drops"][reason.value] = status["drops"].get(reason.value, 0) + count
        status["peers"] = member.node.peers(now)
        status["modems"] = [] if member.modems is None else member.modems.rows(now)
    if request.get("log") is True:
        status["log"] = context.ring.lines(LOG_LINES_SHOWN)
    client.answer(status)


def _flash(context: Context) -> dict[str, Any]:
    meter = context.keystore.flash
    writes, size = meter.day(monotonic())
    return {"writes": meter.writes, "bytes": meter.bytes, "day": {"writes": writes, "bytes": size}}


def _board(context: Context) -> dict[str, Any]:
    """Which one, and what is wrong with its slice, "" where nothing is."""
    from edgeagent.board import find

    found = find(context.settings.state_dir)
    return {"id": context.settings.board or found.id, "by": found.by, "problem": found.problem}


def _policy(_now: float, agent: Agent, client: Client, _request: dict[str, Any]) -> None:
    """This device's slice of the policy, rule by rule; null where there is none."""
    if member := _member(agent, client):
        from edgeagent.proto.node_status import policy

        client.answer({"name": member.node.map.name, "policy": policy(member.node, rules=True)})


def _memory(_now: float, agent: Agent, client: Client, _request: dict[str, Any]) -> None:
    from edgeagent.usage import usage

    client.answer(usage(agent))


def _peers(now: float, agent: Agent, client: Client, _request: dict[str, Any]) -> None:
    if _member(agent, client) and (member := _up_to_date(now, agent)):
        client.answer(member.node.peers(now))


def _ip(_now: float, agent: Agent, client: Client, _request: dict[str, Any]) -> None:
    if member := _member(agent, client):
        client.answer(describe(member))


def _whois(now: float, agent: Agent, client: Client, request: dict[str, Any]) -> None:
    """`target`: an address or a host name, with or without the network's domain."""
    member = _member(agent, client)
    if member is None:
        return
    target = request.get("target")
    query = _query(member, target) if isinstance(target, str) and len(target) <= TARGET_CHARS_MAX else None
    if query is None:
        client.refuse("usage", "target: an IP address or a host name of this network expected.")
    elif query[1] == member.node.map.name or query[1] in member.node.map.addresses:
        client.answer(describe(member) | {"self": True})
    else:
        member.lookup(now, query, lambda record: _tell(agent, member, client, str(target), record))


def _ledger(now: float, agent: Agent, client: Client, _request: dict[str, Any]) -> None:
    _up_to_date(now, agent)
    client.answer(agent.context.accounts.describe(now))


def _modem(now: float, agent: Agent, client: Client, _request: dict[str, Any]) -> None:
    """What is known of modems; `drivers` says who was asked."""
    if member := _member(agent, client):
        client.answer({"drivers": [], "modems": []} if member.modems is None else member.modems.describe(now))


def _dns(_now: float, agent: Agent, client: Client, _request: dict[str, Any]) -> None:
    """The name server: where it listens, what it answers for, how it is made known here, counters and drops."""
    if member := _member(agent, client):
        if member.naming is None:
            client.answer({"mode": "off"})
        else:
            client.answer(member.naming.describe())


def _routes(now: float, agent: Agent, client: Client, request: dict[str, Any]) -> None:
    """What is offered, used and wrong; `set` changes what it names. An exit node has to be known as one."""
    asked = request.get("set")
    if asked is None:
        client.answer(_describe_routes(agent))
        return
    member, name = agent.membership, asked.get("exit_node") if isinstance(asked, dict) else None

    def set_it(record: Record | None = None) -> None:
        if record is not None and not record.is_exit:
            client.refuse("failed", f"{name}: it is no exit node, or the hub's operator has not approved it.")
        elif _set_routes(agent.now, agent, client, asked):
            client.answer(_describe_routes(agent))

    def known(record: Record | None) -> None:
        if record is None:
            client.refuse("unknown", f"{name}: nobody in this network that this device may know of.")
        else:
            set_it(record)

    if member is not None and is_host_name(name):
        member.lookup(now, ("h", str(name)), known)
    else:
        set_it()


def _set_routes(now: float, agent: Agent, client: Client, asked: Any) -> bool:
    """False when it is refused, which the client is told."""
    from edgeagent.routing import load_wish

    wish = load_wish(agent.context)
    try:
        if not isinstance(asked, dict):
            raise ValueError("routes: want settings by their names")
        wish.change(asked)
    except ValueError as error:
        client.refuse("usage", f"{error}.")
        return False
    if not agent.context.save(StateFile.ROUTES, wish.encode()):
        client.refuse("failed", "the routes could not be kept: the disk refuses; see edgeagent status --log.")
        return False
    if agent.membership is not None:
        agent.membership.set_routes(now, wish)
    return True


def _describe_routes(agent: Agent) -> dict[str, Any]:
    from edgeagent.routing import describe, load_wish

    member = agent.membership
    if member is not None and member.routing is not None:
        return member.routing.describe()
    return describe(load_wish(agent.context))


def _relays(_now: float, agent: Agent, client: Client, _request: dict[str, Any]) -> None:
    """The relays of the hub's map, as RelayInfo.encode() has them, bytes in hexadecimal."""
    if member := _member(agent, client):
        rows = [relay.encode() for relay in member.node.map.relays]
        client.answer([row | {"k": row["k"].hex(), "pin": row["pin"].hex()} for row in rows])


def _commands(now: float, agent: Agent, client: Client, _request: dict[str, Any]) -> None:
    """What the hub told this device to do of late, the newest first."""
    if member := _member(agent, client):
        client.answer(member.commands(now).describe())


def _down(_now: float, agent: Agent, client: Client, _request: dict[str, Any]) -> None:
    agent.stop(client)


def _version(_now: float, _agent: Agent, client: Client, _request: dict[str, Any]) -> None:
    client.answer({"version": VERSION})


_VERBS: dict[str, Callable[[float, Agent, Client, dict[str, Any]], None]] = {
    "up": _up,
    "status": _status,
    "policy": _policy,
    "memory": _memory,
    "peers": _peers,
    "ip": _ip,
    "whois": _whois,
    "ledger": _ledger,
    "modem": _modem,
    "relays": _relays,
    "dns": _dns,
    "commands": _commands,
    "routes": _routes,
    "down": _down,
    "version": _version,
}


def _up_to_date(now: float, agent: Agent) -> Membership | None:
    """The membership, with all traffic up to now counted."""
    if agent.membership is not None:
        agent.membership.tunnel.sync(now)
    return agent.membership


def _member(agent: Agent, client: Client) -> Membership | None:
    if agent.membership is None:
        client.refuse("not-joined", "this device is a member of no network. Join one: edgeagent up --join TOKEN.")
    return agent.membership


def describe(member: Membership) -> dict[str, Any]:
    """What `up` and `ip` answer."""
    device_map = member.node.map
    return {
        "name": device_map.name,
        "domain": device_map.domain,
        "addresses": [ip_to_text(address) for address in device_map.addresses],
        "device": device_map.device,
        "network": member.node.admission.network,
        "tags": device_map.tags,
    }


def _query(member: Membership, target: str) -> Query | None:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return "a", socket.inet_pton(family, target)
        except (OSError, ValueError):
            continue
    name = target.lower().removesuffix(".").removesuffix("." + member.node.map.domain)
    return ("h", name) if is_host_name(name) else None


def _tell(agent: Agent, member: Membership, client: Client, target: str, record: Record | None) -> None:
    if record is None:
        client.refuse("unknown", f"{target}: nobody in this network that this device may know of.")
        return
    row: dict[str, Any] = next(
        (row for row in member.node.peers(agent.now) if row["device"] == record.device), {"endpoint": None}
    )
    client.answer(
        {
            "name": record.name,
            "addresses": [ip_to_text(address) for address in record.addresses],
            "device": record.device,
            "tags": record.tags,
            "user": record.user,
            "routes": [f"{ip_to_text(address)}/{length}" for address, length in record.routes],
            "exit_node": record.is_exit,
            "not_after": record.not_after,
            "path": row["endpoint"],
            "handshake_age_s": row.get("handshake_age_s"),
        }
    )


def _rss_kib() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE_KIB
