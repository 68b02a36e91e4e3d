"""The device's signal inbox: a topic that only those can guess who read our feed.

Its name changes when somebody who knew it was removed, and with a connection when it is a day old: never for its own
sake, because a device that nobody talks to shall cost nothing.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from typing import TYPE_CHECKING

from edgeagent.proto import topics

if TYPE_CHECKING:
    from edgeagent.proto.keys import Entropy

CAPABILITY_SIZE = 16
CAPABILITY_LIFE_S = 86_400.0
STRAYS_MAX = 16  # inboxes of earlier lives that wait to be unsubscribed from


class Inbox:
    """Drive it: `take` what comes in, `connected` and `rotate`, and pass on what `drain` returns while connected.

    The capability before the present one is read too, for who has not seen the new feed yet.
    """

    __slots__ = ("_device", "_entropy", "_held", "_made_at", "_network", "_previous", "_strays", "capability")

    def __init__(self, now: float, network: str, device: str, entropy: Entropy) -> None:
        self._network = network
        self._device = device
        self._entropy = entropy
        self._held: dict[str, None] = {}
        self._previous: str | None = None
        self._strays: dict[str, None] = {}
        self.capability = self._make()
        self._made_at = now

    def take(self, topic: str) -> bool | None:
        """None for a topic that is no inbox of ours, False for one that is not read any more."""
        prefix = topics.signal(self._network, self._device, "")
        if not topic.startswith(prefix) or topics.parse(topic) is None:
            return None
        capability = topic[len(prefix) :]
        if capability in (self.capability, self._previous):
            return True
        if len(self._strays) < STRAYS_MAX:
            self._strays[capability] = None
        return False

    def connected(self, now: float) -> None:
        """What an earlier connection asked for may never have arrived."""
        self._held.clear()
        if now - self._made_at >= CAPABILITY_LIFE_S:
            self.rotate(now)

    def rotate(self, now: float) -> None:
        """A new capability, which is to be told in the feed."""
        self._made_at = now
        self._previous, self.capability = self.capability, self._make()

    def drain(self) -> list[tuple[str, bool]]:
        """(topic, whether to subscribe), and from now on they count as done."""
        wanted = [capability for capability in (self.capability, self._previous) if capability is not None]
        changes = [(capability, False) for capability in (*self._held, *self._strays) if capability not in wanted]
        changes += [(capability, True) for capability in wanted if capability not in self._held]
        self._held = dict.fromkeys(wanted)
        self._strays.clear()
        return [(topics.signal(self._network, self._device, capability), wish) for capability, wish in changes]

    def _make(self) -> str:
        return urlsafe_b64encode(self._entropy(CAPABILITY_SIZE)).decode("ascii").rstrip("=")
