"""`edgeagent netcheck`: where its relays come from, and how its findings are shown."""

from __future__ import annotations

import json
import socket
import sys
from typing import TYPE_CHECKING

from edgeagent.io.localclient import LocalError
from edgeagent.io.netcheck import check_network
from edgeagent.io.netlink import Netlink
from edgeagent.proto.errors import RemoteProtocolError
from edgeagent.proto.names import is_host_port
from edgeagent.proto.netcheck import RELAYS_MAX, Uplink
from edgeagent.proto.netcheck_report import report
from edgeagent.proto.relaymap import RelayInfo
from edgeagent.status import table

if TYPE_CHECKING:
    from typing import Any

    from edgeagent.config import Settings
    from edgeagent.io.localclient import LocalClient

UDP_PORT, SECOND_PORT = 3478, 3479  # what `edgerelay serve` listens at unless it is told otherwise
# Nobody's, and so reached by the default route (RFC 5737, RFC 3849)
_ELSEWHERE = (bytes((203, 0, 113, 1)), bytes.fromhex("20010db8000000000000000000000001"))
_YES_NO = {True: "yes", False: "no", None: "not known"}


class NetcheckError(Exception):
    """There is nothing to check; the text says why and what to do."""


def netcheck(relays: list[RelayInfo], timeout_s: float, *, as_json: bool, proxy: bool = False) -> bool:
    """Check and print; True when a relay can be reached. Raises OSError where no socket can be made. `proxy`: the agent
    has one, which nothing is asked through here."""
    progress = _Progress()
    try:
        check = check_network(relays, _uplinks(), timeout_s, progress.show)
    finally:
        progress.clear()
    found = report(check) | {"proxy": proxy}
    if proxy:
        found["advice"].append(
            "A proxy is set: by it the agent reaches relays over TLS, and this was asked without. What `edgeagent "
            "status` says of relays counts."
        )
    print(json.dumps(found) if as_json else show(found))
    return bool(found["reachable"])


# Relays


def parse_relays(texts: list[str]) -> list[RelayInfo]:
    """HOST:TLSPORT[:UDPPORT[:STUNPORT]] each. Raises ValueError, which says what is wrong and what is expected."""
    if len(texts) > RELAYS_MAX:
        raise ValueError(f"given {len(texts)} times: at most {RELAYS_MAX}")
    return [_parse_relay(text) for text in texts]


def _parse_relay(text: str) -> RelayInfo:
    head, bracket, tail = text.rpartition("]")
    host, *ports = tail.split(":")
    if not 1 <= len(ports) <= 3 or (bracket and host):
        raise ValueError(f"{text[:80]!r}: want HOST:TLSPORT[:UDPPORT[:STUNPORT]], an IPv6 address in brackets")
    where = f"{head}{bracket}{host}:{ports[0]}"
    if not is_host_port(where):
        raise ValueError(f"{text[:80]!r}: want a host name or an address, then a port of 1 to 65535")
    for port in ports:
        if not port.isascii() or not port.isdecimal() or len(port) > 5 or int(port) > 65_535:
            raise ValueError(f"{text[:80]!r}: want ports of at most 65535, 0 for none")
    _, udp, second = [*map(int, ports), *(UDP_PORT, SECOND_PORT)[len(ports) - 1 :]]
    return RelayInfo({"id": where, "rg": "", "k": bytes(32), "h": [where], "u": udp, "s": second, "pin": b""})


def known_relays(settings: Settings, client: LocalClient | None) -> list[RelayInfo]:
    """Those of the running agent's network, else of the one that the state directory tells of.

    Raises NetcheckError, and LocalError when the agent does not answer.
    """
    relays = _of_state(settings) if client is None else _of_agent(client)
    if relays is None:
        raise NetcheckError("this device is a member of no network: name a relay with --relay HOST:TLSPORT")
    if not relays:
        raise NetcheckError("this network has no relays: name one with --relay HOST:TLSPORT")
    return relays


def _of_agent(client: LocalClient) -> list[RelayInfo] | None:
    try:
        rows = client.ask({"do": "relays"})
        return [RelayInfo({**row, "k": bytes.fromhex(row["k"]), "pin": bytes.fromhex(row["pin"])}) for row in rows]
    except LocalError as error:
        if error.code == "not-joined":
            return None
        raise
    except (KeyError, TypeError, ValueError):
        raise NetcheckError("the running agent does not say which relays there are: restart it") from None


def _of_state(settings: Settings) -> list[RelayInfo] | None:
    from edgeagent import crypto
    from edgeagent.io.keystore import Keystore, StateError, StateFile
    from edgeagent.proto.identity import Admission, Identity

    keystore = Keystore(settings.state_dir)
    try:
        admission, identity = keystore.load(StateFile.ADMISSION), keystore.load(StateFile.IDENTITY)
        if admission is None or identity is None:
            return None
        provider = crypto.load()
        device = Identity.decode(provider, identity).device_id
        return Admission.decode(provider, admission).open_map(provider, device).relays
    except (StateError, RemoteProtocolError, crypto.CryptoUnavailable) as error:
        raise NetcheckError(str(error)) from None


# The network around


def _uplinks() -> list[Uplink]:
    """The default gateways, each with the address that we have towards it."""
    found = []
    try:
        netlink = Netlink()
    except OSError:
        return []
    for elsewhere in _ELSEWHERE:
        try:
            route = netlink.route_to(elsewhere)
            name = socket.if_indextoname(route.index)
        except OSError:  # no such route
            continue
        if len(route.gateway) == len(route.source) > 0:
            found.append(Uplink(name, route.gateway, route.source))
    netlink.close()
    return found


class _Progress:
    """One line on a terminal that says what is still waited for; nothing where standard error is none."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._shown = ""

    def show(self, waiting: list[str]) -> None:
        text = "asking: " + ", ".join(waiting)
        if self._is_terminal and text != self._shown:
            self._shown = text
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


# As text


def show(found: dict[str, Any]) -> str:
    reached = [relay for relay in found["relays"] if relay["reached"]]
    nearest = f", the nearest is {found['nearest_relay']}" if found["nearest_relay"] else ""
    udp = found["udp"]
    lines = [
        ("relays", f"{len(reached)} of {len(found['relays'])} reached{nearest}"),
        ("UDP", f"IPv4 {_YES_NO[udp['ipv4']]}, IPv6 {_YES_NO[udp['ipv6']]}"),
    ]
    for family, title in (("ipv4", "IPv4"), ("ipv6", "IPv6")):
        if found["nat"][family] is not None:
            lines += _nat_lines(title, found["nat"][family])
    if found["nat"]["ipv6"] is None:
        lines.append(("IPv6", _no_ipv6(found["ipv6"])))
    for number, mapping in enumerate(found["port_mapping"]):
        lines.append(("" if number else "port mapping", _mapping_line(mapping)))
    if not found["port_mapping"]:
        lines.append(("port mapping", "no router that opens ports was found"))
    for name, title in (("captive_portal", "captive portal"), ("tls_interception", "TLS opened")):
        lines.append((title, {True: "suspected", False: "no", None: "not known"}[found[name]]))
    if found["unfinished"]:
        lines.append(("not finished", ", ".join(found["unfinished"])))
    text = "\n".join(f"{name:<15} {value}".rstrip() for name, value in lines)
    rows: list[tuple[str, ...]] = [("RELAY", "REGION", "ADDRESS", "UDP", "MTU", "TLS", "CERTIFICATE")]
    rows += [row for relay in found["relays"] for row in _relay_rows(relay)]
    return "\n\n".join([text, table(rows), "\n".join(found["advice"])])


def _nat_lines(title: str, nat: dict[str, Any]) -> list[tuple[str, str]]:
    def words(value: str) -> str:
        return value.replace("-or-", " or ")

    where = f"{nat['local'] or 'this device'} is seen as {', '.join(nat['mapped'])}"
    lines = [(title, where + (", port kept" if nat["port_kept"] else ""))]
    if nat["mapping"] == "no-nat":
        lines = [(title, f"{nat['local']}, no NAT")]
    else:
        lines += [("  mapping", words(nat["mapping"]))]
    lines += [("  filtering", words(nat["filtering"]))]
    if nat["mapping"] != "no-nat":
        lines += [("  hairpin", _YES_NO[nat["hairpin"]])]
    return lines


def _no_ipv6(ipv6: dict[str, Any]) -> str:
    if not ipv6["relays"]:
        return "not asked: no relay is known to have it"
    if ipv6["address"] is None:
        return "no route"
    return f"{ipv6['address']}, {'relays by TLS' if ipv6['reached'] else 'but no relay answers'}"


def _mapping_line(mapping: dict[str, Any]) -> str:
    name = {"pcp": "PCP", "nat-pmp": "NAT-PMP", "upnp": "UPnP"}[mapping["protocol"]]
    outcome = mapping["address"] or f"refused ({mapping['refused']})"
    return f"{name} by {mapping['gateway']} on {mapping['interface']}: {outcome}"


def _relay_rows(relay: dict[str, Any]) -> list[tuple[str, ...]]:
    names = (relay["id"], relay["region"] or "-")
    rows: list[tuple[str, ...]] = []
    for way in relay["ways"]:
        udp = {None: "-", False: "no answer", True: _ms(way["udp_ms"])}[way["udp"]]
        mtu = "-" if way["mtu"] is None else f"{way['mtu']}" if way["mtu_exact"] else f"{way['mtu']} or more"
        tls = {None: "no answer", False: way["tls_error"] or "not the relay", True: _ms(way["tls_connect_ms"])}[
            way["tls"]
        ]
        if not way["route"]:
            udp = tls = "no route"
        rows.append((*names, way["address"], udp, mtu, tls, way["tls_certificate"] or "-"))
    rows += [(*names, error, "-", "-", "-", "-") for error in relay["errors"]]
    return rows


def _ms(value: float | None) -> str:
    return "yes" if value is None else f"{value:.1f} ms"
