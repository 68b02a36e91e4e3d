"""MQTT topics of the control plane: built from checked ids, and taken apart against their exact form."""

from __future__ import annotations

from edgeagent.proto.names import HUB, is_capability, is_claim_id, is_device_id, is_network_id

ROOT = "em1"
UP_VERBS = ("birth", "state", "ask", "report", "relay", "answer", "fetch", "log")
DOWN_VERBS = ("map", "rec", "cmd", "time", "part")
_TOPIC_BYTES_MAX = 128


class Topic:
    """A topic taken apart: `way` is u, d, p, s or hub, `owner` a device id, a claim id or hub, `leaf` what follows."""

    __slots__ = ("leaf", "network", "owner", "way")

    def __init__(self, network: str, owner: str, way: str, leaf: str) -> None:
        self.network = network
        self.owner = owner
        self.way = way
        self.leaf = leaf


def up(network: str, device: str, verb: str) -> str:
    """What the device writes."""
    return f"{ROOT}/{network}/{device}/u/{verb}"


def down(network: str, device: str, verb: str) -> str:
    """What the device reads."""
    return f"{ROOT}/{network}/{device}/d/{verb}"


def down_filter(network: str, device: str) -> str:
    return f"{ROOT}/{network}/{device}/d/#"


def feed(network: str, device: str) -> str:
    """The device's feed: it writes, others read."""
    return f"{ROOT}/{network}/{device}/p"


def signal(network: str, device: str, capability: str) -> str:
    return f"{ROOT}/{network}/{device}/s/{capability}"


def join(network: str, claim: str) -> str:
    """What a joining device writes."""
    return f"{ROOT}/{network}/{claim}/u/join"


def admit(network: str, claim: str, device: str) -> str:
    """The answer to one joining device."""
    return f"{ROOT}/{network}/{claim}/d/{device}"


def hub_state(network: str) -> str:
    return f"{ROOT}/{network}/{HUB}/state"


def hub_filter(network: str) -> str:
    """Everything that devices and claims write to the hub."""
    return f"{ROOT}/{network}/+/u/+"


def parse(topic: str) -> Topic | None:
    """The parts of one of our topics; None for any other, and for ids that are not of their exact form."""
    if len(topic) > _TOPIC_BYTES_MAX:
        return None
    parts = topic.split("/")
    if len(parts) not in (4, 5) or parts[0] != ROOT or not is_network_id(parts[1]):
        return None
    network, owner, way, leaf = parts[1], parts[2], parts[3], parts[4] if len(parts) == 5 else ""
    if is_device_id(owner):
        known = (
            (way == "u" and leaf in UP_VERBS)
            or (way == "d" and leaf in DOWN_VERBS)
            or (way == "p" and len(parts) == 4)
            or (way == "s" and is_capability(leaf))
        )
    elif is_claim_id(owner):
        known = (way == "u" and leaf == "join") or (way == "d" and is_device_id(leaf))
    else:
        return Topic(network, HUB, "hub", "state") if (owner, way, len(parts)) == (HUB, "state", 4) else None
    return Topic(network, owner, way, leaf) if known else None
