"""Look-ups of names for whoever cannot wait for them for ever: what is given up goes on, for the next try.

A resolver waits five seconds for a dead name server before it asks the next one (resolv.conf(5)). Whoever gave up
before that, and threw the answer away, would never get one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeagent.io.pinnedtls import Resolver

if TYPE_CHECKING:
    Name = tuple[str, int]  # host, port

LOOK_UP_TIMEOUT_S = 20.0  # for a look-up, where nothing else can be tried meanwhile: two dead servers, asked twice
GIVEN_UP_MAX = 8  # look-ups whose answers are waited for by nobody
LATE_MAX_S = 300.0  # an answer to a question older than that is asked for anew
KNOWN_MAX = 16  # hosts whose last addresses are remembered
ADDRESSES_MAX = 8  # of one host


class LookUps:
    """`begin` one, and `end` it when it is done or `give_up`. `known` has what a host's addresses were the last time
    that anybody said so, for when nobody does."""

    __slots__ = ("_given_up", "_known")

    def __init__(self) -> None:
        self._given_up: dict[Name, Resolver] = {}
        self._known: dict[Name, list[Any]] = {}

    def begin(self, now: float, host: str, port: int) -> Resolver:
        """The look-up that was given up, if its answer is still of use, else another. Raises OSError."""
        earlier = self._given_up.pop((host, port), None)
        if earlier is not None:
            is_late = now - earlier.asked_at > LATE_MAX_S
            if not earlier.done or (earlier.addresses and not is_late):
                earlier.listen()
                return earlier
        resolver = Resolver(host, port)
        resolver.asked_at = now
        return resolver

    def end(self, host: str, port: int, resolver: Resolver) -> tuple[list[Any], str]:
        """Of one that is done: addresses as getaddrinfo has them, at most ADDRESSES_MAX, or why there are none."""
        name = (host, port)
        resolver.close()
        found = resolver.addresses[:ADDRESSES_MAX]
        if found:
            self._known.pop(name, None)
            if len(self._known) >= KNOWN_MAX:
                del self._known[next(iter(self._known))]
            self._known[name] = list(found)
        return found, resolver.error

    def give_up(self, host: str, port: int, resolver: Resolver) -> None:
        """Nobody waits for it now; its descriptor is closed."""
        name = (host, port)
        resolver.close()
        if len(self._given_up) >= GIVEN_UP_MAX and name not in self._given_up:
            del self._given_up[next(iter(self._given_up))]
        self._given_up[name] = resolver

    def known(self, host: str, port: int) -> list[Any]:
        return list(self._known.get((host, port), ()))
