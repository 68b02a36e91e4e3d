"""Queries that other resolvers answer: who is asked, in which spelling, when again, and which answer is believed.

Against forgeries (RFC 5452): each attempt has a socket, and so a source port, of its own, a random id, and letters in
random case ("0x20"); an answer must come to that socket and carry all of it back. The second round is in lower case,
for servers that do not keep the spelling.
"""

from __future__ import annotations

from collections import OrderedDict

from edgeagent.proto import dnsmessage as dm
from edgeagent.proto.dns_drops import DnsDrop

TYPE_CHECKING = False  # what the typing module would say, and 5 ms
if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeagent.proto.dnsmessage import Query, Scan
    from edgeagent.proto.dnszone import Server
    from edgeagent.proto.keys import Entropy

FORWARDS_MAX = 64  # queries that wait for a resolver
SERVERS_MAX = 4  # that are asked in turn
DEADLINE_S = 4.5  # glibc asks again after 5
UDP_TIMEOUT_S = 1.0
TCP_TIMEOUT_S = 2.5
ROUNDS = 2
_LETTERS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


class Ask:
    """To be sent to `server` by a socket of its own, connected there; what comes back is `handle_reply(number)`."""

    __slots__ = ("message", "number", "server", "stream")

    def __init__(self, number: int, server: Server, stream: bool, message: bytes) -> None:
        self.number = number
        self.server = server
        self.stream = stream
        self.message = message


class Forward:
    """One query under way. `number` is that of its present attempt."""

    __slots__ = (
        "attempt",
        "client",
        "deadline",
        "due",
        "id",
        "number",
        "query",
        "question",
        "servers",
        "spoken",
        "stream",
    )

    def __init__(self, query: Query, client: object, servers: list[Server], deadline: float) -> None:
        self.query = query
        self.client = client
        self.servers = servers
        self.deadline = deadline
        self.due = 0.0
        self.number = 0
        self.attempt = -1
        self.stream = False
        self.id = 0
        self.question = b""
        self.spoken: tuple[bytes, Scan] | None = None  # a server's "I cannot", if nobody says more


class Forwarder:
    """`begin` a query; send what `drain_asks` has, close the sockets of `drain_ends`; say what came of them. Queries
    end in `done` (forward, answer with what `scan` found in it), answer None for nothing."""

    def __init__(self, entropy: Entropy, count: Callable[[DnsDrop], None]) -> None:
        self._entropy = entropy
        self._count = count
        self._open: OrderedDict[int, Forward] = OrderedDict()
        self._number = 0
        self._asks: list[Ask] = []
        self._ends: list[int] = []
        self.done: list[tuple[Forward, tuple[bytes, Scan] | None]] = []

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, now: float, query: Query, client: object, servers: list[Server]) -> None:
        if len(self._open) >= FORWARDS_MAX:
            self._count(DnsDrop.TABLE_FULL)
            self._end(next(iter(self._open.values())), None)
        forward = Forward(query, client, servers[:SERVERS_MAX], now + DEADLINE_S)
        self._next(now, forward)

    def handle_reply(self, now: float, number: int, data: bytes) -> None:
        forward = self._open.get(number)
        if forward is None:
            return
        try:
            found = dm.scan(data)
        except dm.DnsError:
            self._count(DnsDrop.REPLY_MALFORMED)
            if forward.stream:
                self._next(now, forward)
            return
        if found.id != forward.id or found.question != forward.question:
            self._count(DnsDrop.REPLY_MISMATCH)  # and wait on: the answer may follow the forgery
            if forward.stream:
                self._next(now, forward)
        elif found.truncated:
            self._send(now, forward, stream=True) if not forward.stream else self._next(now, forward)
        elif found.rcode in (dm.NOERROR, dm.NXDOMAIN):
            self._end(forward, (data, found))
        else:
            forward.spoken = data, found
            self._next(now, forward)

    def handle_failed(self, now: float, number: int) -> None:
        """Nobody is there, or the connection ended."""
        forward = self._open.get(number)
        if forward is not None:
            self._next(now, forward)

    def handle_timeout(self, now: float) -> None:
        for forward in [each for each in self._open.values() if min(each.due, each.deadline) <= now]:
            if forward.deadline <= now:
                self._end(forward, forward.spoken)
            else:
                self._next(now, forward)

    def poll_timeout(self) -> float | None:
        return min((min(each.due, each.deadline) for each in self._open.values()), default=None)

    def drain_asks(self) -> list[Ask]:
        asks, self._asks = self._asks, []
        return [ask for ask in asks if ask.number in self._open]

    def drain_ends(self) -> list[int]:
        ends, self._ends = self._ends, []
        return ends

    def _next(self, now: float, forward: Forward) -> None:
        """The next server; None is left after two rounds."""
        forward.attempt += 1
        if forward.attempt >= ROUNDS * len(forward.servers) or forward.deadline <= now:
            self._end(forward, forward.spoken)
        else:
            self._send(now, forward, stream=False)

    def _send(self, now: float, forward: Forward, *, stream: bool) -> None:
        self._close(forward)
        self._number += 1
        forward.number = self._number
        forward.stream = stream
        forward.id = int.from_bytes(self._entropy(2), "big")
        forward.question = forward.query.question
        if forward.attempt < len(forward.servers):
            forward.question = self._spell(forward.question)
        else:
            forward.question = forward.question[:-4].lower() + forward.question[-4:]
        forward.due = now + (TCP_TIMEOUT_S if stream else UDP_TIMEOUT_S)
        self._open[forward.number] = forward
        server = forward.servers[forward.attempt % len(forward.servers)]
        message = dm.write_query(forward.id, forward.query, forward.question)
        self._asks.append(Ask(forward.number, server, stream, message))

    def _spell(self, question: bytes) -> bytes:
        """Each letter of the name in upper or lower case, at random. Lengths of labels are no letters: below 64."""
        bits = int.from_bytes(self._entropy((len(question) + 7) // 8), "big")
        name = bytearray(question)
        for at in range(len(question) - 4):
            if name[at] in _LETTERS:
                name[at] = name[at] & 0xDF | (bits >> at & 1) << 5
        return bytes(name)

    def _close(self, forward: Forward) -> None:
        if self._open.pop(forward.number, None) is not None:
            self._ends.append(forward.number)

    def _end(self, forward: Forward, answer: tuple[bytes, Scan] | None) -> None:
        self._close(forward)
        self.done.append((forward, answer))
