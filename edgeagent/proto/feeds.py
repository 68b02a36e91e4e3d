"""Which feeds this device is subscribed to: those of the peers it uses, and at most so many."""

from __future__ import annotations

from collections import OrderedDict

from edgeagent.proto import topics


class FeedSubscriptions:
    """Drive it: `use`, `leave`, `again`; then pass on what `drain` returns to the broker, while connected."""

    def __init__(self, network: str, feeds_max: int) -> None:
        self._network = network
        self._feeds_max = feeds_max
        self.gave_way = 0  # feeds left because others needed the room
        self._wanted: OrderedDict[str, None] = OrderedDict()  # device ids, least recently used first
        self._held: dict[str, None] = {}  # what the broker's session has, as far as is known
        self._again: dict[str, None] = {}  # of those, what is to be subscribed to once more
        self._unheard: dict[str, None] = {}  # of those, what this connection asked for and nothing came of yet

    def __len__(self) -> int:
        return len(self._wanted)

    def __contains__(self, device: str) -> bool:
        return device in self._wanted

    @property
    def is_full(self) -> bool:
        return len(self._wanted) >= self._feeds_max

    def use(self, device: str) -> None:
        """A peer came into use; the least recently used feed gives way."""
        if device not in self._wanted:
            self._again[device] = None  # what came while nobody wanted it was not read
        self._wanted[device] = None
        self._wanted.move_to_end(device)
        if len(self._wanted) > self._feeds_max:
            self._wanted.popitem(last=False)
            self.gave_way += 1

    def touch(self, device: str) -> None:
        """A peer is still in use; if its feed gave way to another, it stays so."""
        if device in self._wanted:
            self._wanted.move_to_end(device)

    def leave(self, device: str) -> None:
        self._wanted.pop(device, None)

    def again(self, device: str) -> None:
        """Subscribe again, which makes the broker send the retained feed again."""
        if device in self._wanted:
            self._again[device] = None

    def stray(self, device: str) -> None:
        """A feed came that nobody wants: an earlier life subscribed to it."""
        if device not in self._wanted:
            self._held[device] = None

    def heard(self, device: str) -> None:
        """A feed came: the broker has the subscription."""
        self._unheard.pop(device, None)

    def connection_lost(self) -> None:
        """What it asked for last may never have arrived."""
        for device in self._unheard:
            self._held.pop(device, None)
        self._unheard.clear()

    def session_lost(self) -> None:
        """The broker knows nothing of us any more."""
        self._held.clear()

    def drain(self) -> list[tuple[str, bool]]:
        """(topic, whether to subscribe), and from now on they count as done."""
        changes = [(topics.feed(self._network, device), False) for device in self._held if device not in self._wanted]
        for device in self._wanted:
            if device not in self._held or device in self._again:
                changes.append((topics.feed(self._network, device), True))
                self._unheard[device] = None
        self._again.clear()
        self._unheard = {device: None for device in self._unheard if device in self._wanted}
        self._held = dict.fromkeys(self._wanted)
        return changes
