"""What the world outside can be told of by web hooks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

HOOKS_MAX = 32
DELIVERIES_MAX = 10_000  # that wait; above it what happens is not told, and counted
TRIES_MAX = 12
FIRST_RETRY_S, LAST_RETRY_S = 10, 6 * 3_600  # doubling between: about six hours in all

EVENTS = {
    "device.joined": "a device came in",
    "device.waiting": "a device asks to come in, and waits for a person's approval",
    "device.online": "a device is there",
    "device.offline": "a device is gone",
    "device.removed": "a device was removed",
    "relay.joined": "a relay came in",
    "relay.waiting": "a relay asks to come in, and waits for a person's approval",
    "relay.online": "a relay is there",
    "relay.offline": "a relay is gone",
    "relay.removed": "a relay was removed",
    "policy.changed": "another policy holds",
    "route.waiting": "a device offers a route, which waits for a person's approval",
    "client.added": "a plain WireGuard client has an address",
    "client.removed": "a plain WireGuard client was removed",
    "rollout.waiting": "a rollout waits for a person's approval",
    "rollout.running": "somebody has approved or resumed a rollout",
    "rollout.paused": "a rollout has paused: somebody wanted it, or too many devices failed",
    "rollout.done": "a rollout is over",
    "rollout.aborted": "somebody ended a rollout",
    "rollout.device-failed": "a device could not take what a rollout brought it",
    "rig.failed": "a run of a rig has failed",
    "rig.mended": "a suite that had failed on a rig passes again",
    "lock.changed": "another statement of the network lock holds",
    "test": "somebody pressed the button",
}


@dataclass(slots=True)
class Webhook:
    """`secret` signs (HMAC-SHA256); it is shown once, when the hook is made."""

    id: str
    url: str
    secret: str
    events: tuple[str, ...]
    created_s: int
    disabled_s: int = 0
    last_s: int = 0
    last_result: str = ""


@dataclass(slots=True, frozen=True)
class Delivery:
    id: int
    webhook: str
    event: str
    body: str
    tries: int
    due_s: int


def body(event: str, wall_s: int, fields: Mapping[str, str | int]) -> str:
    """What is posted; JSON."""
    return json.dumps({"event": event, "time": wall_s, **fields}, separators=(",", ":"))


def retry_after_s(tries: int) -> int:
    return int(min(FIRST_RETRY_S * 2 ** (tries - 1), LAST_RETRY_S))
