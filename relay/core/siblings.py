"""The relays of one region: each tells the others who is with it, and packets go at most one hop between them.

A relay tells what it has before anybody asks, so a member that sends to keys that nobody has makes no traffic between
relays. What a sibling forwarded is delivered here or dropped, never forwarded again: there can be no loop.
"""

from __future__ import annotations

from edgeagent.proto.names import is_network_id
from edgeagent.proto.relay_frames import (
    ABSENT,
    KEY_SIZE,
    KEYS_PER_FRAME_MAX,
    NETWORK_ID_SIZE,
    PRESENT,
    Refusal,
    RelayError,
    frame,
)
from relay.core.members import (
    SIBLING_CONTROLS_MAX,
    SIBLING_PACKETS_MAX,
    SIBLING_QUEUE_BYTES_MAX,
    Member,
    Stream,
    StreamState,
)
from relay.core.reasons import RelayDrop
from relay.core.shared import Happening, Shared

LOGIN_SPACING_S = 1.0  # between two of one sibling: each has it told of all members


class Siblings:
    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._logged_in_at: dict[bytes, float] = {}  # by relay key
        self._news: dict[str, dict[bytes, bool]] = {}  # network → key → whether it is here; not told yet

    def check_login(self, now: float, key: bytes) -> None:
        """Of a sibling that has proved who it is. Raises RelayError(TOO_OFTEN)."""
        if now - self._logged_in_at.get(key, -LOGIN_SPACING_S) < LOGIN_SPACING_S:
            raise RelayError(Refusal.TOO_OFTEN, "login: of this sibling, too soon after its last")
        self._logged_in_at = {key: at for key, at in self._logged_in_at.items() if now - at < LOGIN_SPACING_S}
        self._logged_in_at[key] = now

    def link_up(self, stream: Stream, sibling: str) -> None:
        """Both sides have proved who they are: say who is here. A second link to a sibling replaces the first."""
        shared = self._shared
        before = shared.links.get(stream.sibling_key)
        if before is not None:
            self.link_down(before)
            shared.refuse(before, Refusal.REPLACED)
        stream.state = StreamState.SIBLING
        stream.sibling = sibling
        stream.queue.controls_max = SIBLING_CONTROLS_MAX
        stream.queue.packets_max = SIBLING_PACKETS_MAX
        stream.queue.bytes_max = SIBLING_QUEUE_BYTES_MAX
        shared.links[stream.sibling_key] = stream
        shared.happenings.append((Happening.SIBLING_UP, sibling))
        by_network: dict[str, list[bytes]] = {}
        for key, member in shared.roster.by_key.items():
            by_network.setdefault(member.network.id, []).append(key)
        for network, keys in by_network.items():
            if not shared.admission.shares(stream.sibling_key, network):
                continue
            self._say_all(stream, PRESENT, network, keys)

    def link_down(self, stream: Stream) -> None:
        """The stream of a sibling that was up has ended."""
        shared = self._shared
        if shared.links.get(stream.sibling_key) is stream:
            del shared.links[stream.sibling_key]
            shared.roster.forget_link(stream)
            shared.happenings.append((Happening.SIBLING_DOWN, stream.sibling))

    def announce(self, member: Member, *, here: bool) -> None:
        """To all siblings that may hear of it, at the next `tell`."""
        if self._shared.links:
            self._news.setdefault(member.network.id, {})[member.key] = here

    def tell(self) -> None:
        """Say what is new. Many that come or go at once are a few frames: a link does not hold one for each."""
        if not self._news:
            return
        news, self._news = self._news, {}
        for sibling, link in list(self._shared.links.items()):
            for network, keys in news.items():
                if not self._shared.admission.shares(sibling, network):
                    continue
                for kind, here in ((ABSENT, False), (PRESENT, True)):
                    self._say_all(link, kind, network, [key for key, is_here in keys.items() if is_here is here])

    def learn(self, stream: Stream, kind: int, payload: bytes) -> None:
        """PRESENT or ABSENT of a sibling. Raises RelayError(BAD_FRAME)."""
        shared = self._shared
        network = payload[:NETWORK_ID_SIZE].decode("ascii", "replace")
        if not is_network_id(network) or (len(payload) - NETWORK_ID_SIZE) % KEY_SIZE:
            raise RelayError(Refusal.BAD_FRAME, "present: a network id and keys of 32 bytes expected")
        if network not in shared.admission.networks:
            return  # of a network that the other relay serves and this one does not
        if not shared.admission.shares(stream.sibling_key, network):
            shared.drop(RelayDrop.SIBLING_FOREIGN)
            return
        roster, all_max = shared.roster, shared.limits.sibling_members
        link_max = all_max // max(1, len(shared.admission.siblings))
        for at in range(NETWORK_ID_SIZE, len(payload), KEY_SIZE):
            key = payload[at : at + KEY_SIZE]
            if kind == ABSENT:
                roster.unset_away(key, stream, network)
            elif not roster.set_away(key, stream, network, link_max, all_max):
                shared.drop(RelayDrop.SIBLING_FULL)

    def _say_all(self, link: Stream, kind: int, network: str, keys: list[bytes]) -> None:
        for at in range(0, len(keys), KEYS_PER_FRAME_MAX):
            told = frame(kind, network.encode(), *keys[at : at + KEYS_PER_FRAME_MAX])
            self._shared.write_control(link, told)
