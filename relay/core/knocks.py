"""Knocks: a small datagram to a member's other socket, so that it learns how long its NAT remembers a silent one.

To nobody else: the knock brings the challenge that this relay made for that very address, and so somebody there has
received from it before. What goes out is smaller than any hello, and at most one a second a member.
"""

from __future__ import annotations

from ipaddress import ip_address

from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.ratelimiter import RateLimiter
from edgeagent.proto.relay_frames import DATAGRAM_HEAD, KNOCK_TAIL_SIZE, KNOCKED, read_knock
from edgeagent.proto.relay_trial import CHALLENGE_LIFE_S
from relay.core.members import Member
from relay.core.reasons import RelayDrop
from relay.core.shared import Shared

KNOCKS_PER_S = 1.0
KNOCKS_BURST = 4.0


class Knocks:
    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._rates = RateLimiter(shared.limits.members, KNOCKS_PER_S, KNOCKS_BURST)

    def handle(self, now: float, member: Member, body: bytes) -> None:
        """A knock that the member sent within its session."""
        shared = self._shared
        knock = read_knock(body)
        if knock is None:
            shared.drop(RelayDrop.KNOCK_MALFORMED)
            return
        if not self._rates.allow(now, member.key):
            shared.drop(RelayDrop.KNOCK_RATE)
            return
        challenge, (ip, port) = knock
        endpoint = Endpoint((str(ip_address(ip)), port) if len(ip) == 4 else (str(ip_address(ip)), port, 0, 0))
        if not shared.admission.check_challenge(now, challenge, endpoint.source_bytes(), CHALLENGE_LIFE_S):
            shared.drop(RelayDrop.KNOCK_REFUSED)
            return
        # From the address that the member itself has reached: its NAT may let in nobody else
        session = member.session
        if session is not None and len(session.endpoint.addr) == len(endpoint.addr):
            endpoint = Endpoint(endpoint.addr, session.endpoint.local)
        shared.send(endpoint, DATAGRAM_HEAD.pack(KNOCKED, 0, 0, 0) + challenge[-KNOCK_TAIL_SIZE:])
