"""`SRC` and `DST:PORT` as people write them, looked up, and what a policy says of the two."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hub.core.model import Device, HubError, Kind
from hub.core.policing import facts_of
from hub.core.policy import words
from hub.core.policy.compile import Facts, Policy
from hub.core.policy.document import ANY_OF_THESE, PORT_MAX, TCP, WITH_PORTS, Rule
from hub.core.policy.evaluate import End, describe, rules_between, services_text, verdict
from hub.core.store import Tx

_PORT = re.compile(r"[0-9]{1,5}")


@dataclass(slots=True, frozen=True)
class Verdict:
    """`service` for people: `tcp 22`, `IPv6 any *`. `rule` None: denied."""

    service: str
    rule: Rule | None


@dataclass(slots=True, frozen=True)
class Answer:
    source: str  # what the two are to the policy
    target: str
    verdicts: tuple[Verdict, ...]


def explain(tx: Tx, policy: Policy, source: str, target: str, proto: str = "") -> Answer:
    """Whether `source` may reach `target`: devices by name, id or address, other addresses, `tag:x` or `user@`.

    `target` may have a port, `proto` be the name or number of an IP protocol. Without a port all is told that leads
    there. Raises HubError.
    """
    target, port = split_port(target)
    try:
        protocols = words.read_protocol(proto) if proto else ()
    except ValueError as error:
        raise HubError(f"--proto {error}") from error
    if port is not None and protocols and not set(protocols) <= set(WITH_PORTS):
        raise HubError(f"--proto {proto}: only tcp, udp and sctp have ports. Leave out the port")
    sources, targets = find_ends(tx, source), find_ends(tx, target)
    pairs = [
        (one, other)
        for one in sources
        for other in targets
        if one.address is None or other.address is None or len(one.address) == len(other.address)
    ]
    if not pairs:
        raise HubError(f"{source} and {target}: one is an IPv4 address, the other an IPv6 address. Name the same kind")
    found = [_verdicts(policy, one, other, protocols, port) for one, other in pairs]
    if all(verdicts == found[0] for verdicts in found):
        verdicts = found[0]
    else:
        verdicts = [
            Verdict(f"{_family(one, other)} {verdict.service}", verdict.rule)
            for (one, other), some in zip(pairs, found, strict=True)
            for verdict in some
        ]
    return Answer(describe(policy, pairs[0][0]), describe(policy, pairs[0][1]), tuple(verdicts))


def split_port(text: str) -> tuple[str, int | None]:
    """(name, port) of `name:port`, `[IPv6]:port`, or of either without a port."""
    if text.startswith("["):
        address, _, rest = text[1:].partition("]")
        if rest and not rest.startswith(":"):
            raise HubError(f"{text}: [address]:port expected")
        return address, _port(rest[1:]) if rest else None
    name, colon, port = text.rpartition(":")
    if not colon or words.read_prefix(text) is not None or _PORT.fullmatch(port) is None:
        return text, None
    return name, _port(port)


def find_ends(tx: Tx, text: str) -> list[End]:
    """A device by each of its addresses, one address, or a kind of device. Raises HubError."""
    if text.startswith("tag:"):
        return [End(Facts(tags=(text,)))]
    if "@" in text:
        try:
            return [End(Facts(user=words.read_user(text)))]
        except ValueError as error:
            raise HubError(str(error)) from error
    found = words.read_prefix(text)
    if found is not None and "/" not in text:
        address = found[0][0]
        is_v4 = len(address) == 4
        owner = tx.device_by_v4(int.from_bytes(address, "big")) if is_v4 else tx.device_by_v6(address)
        return [End(None if owner is None else facts_of(tx, owner), address)]
    device: Device | None = tx.device(text) or tx.device_by_name(text.lower())
    if device is None or device.kind is Kind.RELAY:
        raise HubError(
            f"{text}: no device of this name or id, and neither an address, tag:NAME nor USER@. "
            "`edgehub devices list` shows the devices"
        )
    facts = facts_of(tx, device)
    return [End(facts, address) for address in facts.addresses] or [End(facts)]


def _verdicts(policy: Policy, one: End, other: End, protocols: tuple[int, ...], port: int | None) -> list[Verdict]:
    if port is not None:
        return [
            Verdict(services_text([(protocol, port, port)]), verdict(policy, one, other, protocol, port))
            for protocol in protocols or (TCP,)
        ]
    found = [Verdict(services_text(services), rule) for rule, services in rules_between(policy, one, other, protocols)]
    asked = [(protocol, 0, PORT_MAX) for protocol in protocols or (ANY_OF_THESE,)]
    return found or [Verdict(services_text(asked), None)]


def _family(one: End, other: End) -> str:
    address = one.address or other.address
    return "IPv4" if address is not None and len(address) == 4 else "IPv6"


def _port(text: str) -> int:
    if _PORT.fullmatch(text) is None or int(text) > PORT_MAX:
        raise HubError(f"port {text}: a number from 0 to {PORT_MAX} expected")
    return int(text)
