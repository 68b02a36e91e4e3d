"""Names on a member: the name server between its sockets and the node, and what is done so that this host asks it."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING, Any

from edgeagent.io.dns import CLIENTS_MAX, DnsSockets
from edgeagent.proto.constants import NAME_SERVER
from edgeagent.proto.ip import ip_to_text

if TYPE_CHECKING:
    from edgeagent.context import Context
    from edgeagent.hostresolver import HostResolver
    from edgeagent.io.dns import Peer
    from edgeagent.membership import Membership
    from edgeagent.proto.devicemap import DeviceMap
    from edgeagent.proto.dns import NameServer
    from edgeagent.proto.records import Query, Record

log = logging.getLogger("edgeagent")
ADDRESS = ".".join(str(byte) for byte in NAME_SERVER)
ROUNDS_MAX = 16  # of what is answered, or fails, at once: each of four resolvers twice, and more


class Naming:
    """Made by the membership, which drives it: `apply` each map, `on_timeout` at `poll_timeout()`, and `close`.

    A device that nobody asks about names has two idle sockets: the name server is made for the first query.
    """

    def __init__(self, now: float, context: Context, member: Membership) -> None:
        self._context = context
        self._member = member
        self._server: NameServer | None = None
        self._sockets = DnsSockets(context.selector, self._asked, self._replied)
        self._resolver: HostResolver | None = None  # None where nobody is to be told
        self._driving = False
        self.why_not = ""  # the name server does not listen
        try:
            self._sockets.open(member.tunnel.tun.name, ADDRESS)
        except OSError as error:
            self.why_not = f"{ADDRESS}: {error.strerror}"
            log.warning("no names by DNS: %s", self.why_not)
            return
        self._sockets.own = _own_addresses(member.node.map)
        member.tunnel.keep(now, NAME_SERVER)
        log.info(
            "names of %s are answered at %s, port %d%s",
            member.node.map.domain,
            ADDRESS,
            self._sockets.port,
            "" if self._sockets.tcp else ", by UDP only: another program has the TCP port",
        )
        if context.settings.dns != "server":
            from edgeagent.hostresolver import HostResolver

            self._resolver = HostResolver(context, member.tunnel.tun.name, self._load)
            self._resolver.tell(now, self._sockets.port, member.node.map)

    def apply(self, now: float, device_map: DeviceMap) -> None:
        self._sockets.own = _own_addresses(device_map)
        if self._server is not None:
            self._server.set_map(device_map)
        if self._resolver is not None:
            self._resolver.tell(now, self._sockets.port, device_map)

    def poll_timeout(self) -> float | None:
        times = [
            self._sockets.poll_timeout(),
            None if self._server is None else self._server.poll_timeout(),
            None if self._resolver is None else self._resolver.poll_timeout(),
        ]
        return min((at for at in times if at is not None), default=None)

    def on_timeout(self, now: float) -> None:
        self._sockets.on_timeout(now)
        if self._resolver is not None:
            self._resolver.on_timeout(now)
        if self._server is not None:
            self._server.handle_timeout(now)
            self._drive(now)

    def close(self) -> None:
        """Nobody is answered any more, and this host's resolver is told so."""
        self._sockets.close()
        self._server = None
        if self._resolver is not None:
            self._resolver.close()
            self._resolver = None

    def describe(self) -> dict[str, Any]:
        """For `edgeagent dns status`."""
        from edgeagent.proto.dns_drops import DnsDrop

        server, sockets = self._load(), self._sockets
        about = server.describe()
        about["drops"] |= {
            reason.value: count
            for reason, count in (
                (DnsDrop.STRANGER, sockets.strangers),
                (DnsDrop.CLIENTS_FULL, sockets.full),
                (DnsDrop.CLIENT_BAD, sockets.bad),
            )
            if count
        }
        return {
            "mode": self._context.settings.dns,
            "address": ADDRESS,
            "port": sockets.port,
            "tcp": sockets.tcp,
            "why_not": self.why_not,
            "clients": sockets.clients,
            "resolver": None if self._resolver is None else self._resolver.describe(),
            **about,
        }

    def tables(self) -> dict[str, dict[str, int]]:
        """For `edgeagent status --memory`."""
        found = {"dns_clients": {"used": self._sockets.clients, "ceiling": CLIENTS_MAX, "gave_way": self._sockets.full}}
        return found if self._server is None else found | self._server.tables()

    def _load(self) -> NameServer:
        if self._server is None:
            from edgeagent.proto.dns import NameServer  # not before somebody asks

            self._server = NameServer(self._context.entropy, self._member.node.map)
        return self._server

    def _asked(self, now: float, data: bytes, peer: Peer) -> None:
        reachable = self._member.node.client.reachable
        server = self._load()
        if self._resolver is not None:
            self._resolver.look(now, server)
        server.cut_off = self._member.cut_off
        server.handle_query(now, data, peer, stream=peer.stream, reachable=reachable)
        self._drive(now)

    def _replied(self, now: float, number: int, data: bytes | None) -> None:
        if self._server is None:
            return
        if data is None:
            self._server.handle_failed(now, number)
        else:
            self._server.handle_reply(now, number, data)
        self._drive(now)

    def _drive(self, now: float) -> None:
        """Carry what the name server wants to whom it wants it from; an answer at once causes another round."""
        server = self._server
        if server is None or self._driving:
            return
        self._driving = True
        try:
            for _ in range(ROUNDS_MAX):
                lookups, ends, asks = server.drain_lookups(), server.drain_ends(), server.drain_asks()
                for query in lookups:
                    self._look_up(now, query)
                for number in ends:
                    self._sockets.end(number)
                for ask in asks:
                    self._sockets.ask(now, ask)
                for client, data in server.drain_answers():
                    self._sockets.answer(client, data)  # type: ignore[arg-type]  # it is what `_asked` gave
                if not (lookups or ends or asks):
                    break
        finally:
            self._driving = False

    def _look_up(self, now: float, query: Query) -> None:
        self._member.lookup(now, query, lambda record: self._resolved(query, record))

    def _resolved(self, query: Query, record: Record | None) -> None:
        server, now = self._server, monotonic()
        if server is not None:
            server.resolved(now, query, record, sure=self._member.node.client.questions.said_no(now, query))
            self._drive(now)


def _own_addresses(device_map: DeviceMap) -> tuple[str, ...]:
    return ADDRESS, ip_to_text(device_map.addresses[0])
