"""The relay as one machine."""

from __future__ import annotations

from edgeagent.proto.crypto import Crypto
from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.keys import Entropy, has_small_order
from edgeagent.proto.relay_frames import DRAIN, DRAINING, SECONDS, Refusal, frame
from relay.core.admission import Admission, Neighbour
from relay.core.datagrams import Datagrams
from relay.core.forwarding import Forwarder
from relay.core.knocks import Knocks
from relay.core.limits import MEMBER_RATE, NETWORK_RATE, Rate, RelayLimits
from relay.core.lobby import REPLACED_LINGER_S, Lobby
from relay.core.members import COUNTER_LAST, StreamState
from relay.core.shared import Happening, Shared, Train
from relay.core.siblings import Siblings
from relay.core.streams import Streams
from relay.core.stun_server import StunServer

SWEEP_S = 2.0
SCARCE_WRITE_BYTES = (
    16_384  # of one write while what waits for slow members is half of what may: it may have to wait too
)
DRAIN_MAX_S = 600


class RelayCore:
    """One relay: members by stream and by datagram, siblings, STUN.

    Inputs: `stream_opened` (the HTTP upgrade was answered), `stream_called` (we connected to a sibling),
    `stream_received`, `stream_blocked` / `stream_writable` (a write did not take all; it does again), `stream_closed`;
    `handle_trains`; `handle_stun` for the second port; `handle_timeout`; `set_wall`; what hubs say: `serve`, `leave`,
    `set_siblings`, `revoke`; `begin_drain`.
    After any input drain `drain_writes`, `drain_closes` (close what is named once its writes are out), `drain_brakes`,
    `drain_trains` and `drain_happenings`, then wait until `poll_timeout`.

    `networks` are the keys whose passes count, `siblings` the region's other relays by relay key; both are there before
    and beside what hubs say. `member_rates` are the
    rate of each class of pass (class 0 must be there), `total_bytes_per_s` what the relay's own uplink bears, `ports`
    the UDP ports that STUN answers name. Raises LocalProtocolError for settings that cannot be.
    """

    def __init__(
        self,
        now: float,
        wall_s: float,
        *,
        crypto: Crypto,
        entropy: Entropy,
        relay: str,
        region: str,
        private: bytes,
        networks: list[bytes] | None = None,
        siblings: dict[bytes, str] | None = None,
        limits: RelayLimits | None = None,
        network_rate: Rate = NETWORK_RATE,
        member_rates: dict[int, Rate] | None = None,
        total_bytes_per_s: int | None = None,
        ports: tuple[int, int | None] = (0, None),
    ) -> None:
        limits = limits or RelayLimits()
        member_rates = member_rates or {0: MEMBER_RATE}
        self._given_siblings = {key: Neighbour(sibling) for key, sibling in (siblings or {}).items()}
        if 0 not in member_rates or len(self._given_siblings) > limits.siblings:
            raise LocalProtocolError("relay: a rate for class 0, and no more siblings than the limit")
        admission = Admission(
            crypto=crypto,
            entropy=entropy,
            relay=relay,
            region=region,
            private=private,
            networks=networks or [],
            siblings=dict(self._given_siblings),
            limits=limits,
        )
        self.shared = Shared(
            now,
            wall_s=wall_s,
            crypto=crypto,
            entropy=entropy,
            limits=limits,
            admission=admission,
            network_rate=network_rate,
            member_rates=member_rates,
        )
        for network in admission.networks:
            self.shared.network(now, network)
        self._forwarder = Forwarder(now, self.shared, total_bytes_per_s)
        self._siblings = Siblings(self.shared)
        self._lobby = Lobby(self.shared, self._siblings)
        self.stun = StunServer(now, self.shared, ports)
        knocks = Knocks(self.shared)
        self.streams = Streams(self.shared, self._forwarder, self._lobby, self._siblings, knocks, private)
        self._datagrams = Datagrams(self.shared, self._forwarder, self._lobby, self.stun, knocks)
        self._sweep_at = now + SWEEP_S
        self._drain_at: float | None = None
        self.drained = False

    # Inputs

    def stream_opened(self, now: float, conn: int, source: bytes) -> None:
        """`conn` is a number of the shell's that is not used again, `source` the other end's address (4 or 16 B)."""
        self.streams.opened(now, conn, source)

    def stream_called(self, now: float, conn: int, sibling: str, sibling_key: bytes) -> None:
        self.streams.called(now, conn, sibling, sibling_key)

    def stream_received(self, now: float, conn: int, data: bytes) -> None:
        self.streams.received(now, conn, data)

    def stream_blocked(self, conn: int, unsent_bytes: int = 0) -> None:
        """`unsent_bytes` of the last write wait in the shell; said again when they are fewer."""
        stream = self.shared.streams.get(conn)
        if stream is not None:
            self.shared.block(stream, unsent_bytes)

    def stream_writable(self, conn: int) -> None:
        stream = self.shared.streams.get(conn)
        if stream is not None:
            self.shared.unblock(stream)

    def stream_closed(self, conn: int) -> None:
        self.streams.closed(conn)

    def handle_trains(self, now: float, trains: list[Train]) -> None:
        for train in trains:
            self._datagrams.received(now, train)

    def handle_stun(self, now: float, train: Train) -> None:
        """What came at the second port: STUN and nothing else."""
        for datagram in train.datagrams():
            answer = self.stun.answer(now, datagram, train.endpoint, at_second_port=True)
            if answer is not None:
                self.shared.trains.append(answer)

    def set_wall(self, now: float, wall_s: float) -> None:
        """The system's clock was set, or some time has passed."""
        self.shared.set_wall(now, wall_s)

    def revoke(self, data: bytes) -> None:
        """A signed `gone` of the hub's: its device is put out, and no pass of it from before counts again.

        Raises RelayError.
        """
        revoked = self.shared.admission.revoke(data)
        if revoked is None:
            return
        network, device, wall_s = revoked
        for member in self.shared.roster.of_device(network, device):
            if member.pass_.wall_s <= wall_s:
                self._lobby.dismiss(member, Refusal.REVOKED)

    def serve(self, now: float, network_key: bytes, relay: str, region: str) -> None:
        """Passes of one more network count, which knows this relay as `relay` in `region`; or its names are new."""
        self.shared.network(now, self.shared.admission.serve(network_key, relay, region))

    def leave(self, network: str) -> None:
        """A network takes its relay back: its members go, and no pass of it counts any more."""
        shared = self.shared
        shared.admission.networks.pop(network, None)
        for member in shared.roster:
            if member.network.id == network:
                self._lobby.dismiss(member, Refusal.WRONG_NETWORK)
        shared.roster.forget_network(network)

    def set_siblings(self, learned: dict[bytes, Neighbour]) -> list[bytes]:
        """What maps say of the region's other relays. Returns the keys of those that count: as many as the limit, the
        networks in turn.

        Those of the settings stay, whatever maps say. A link to one that is other than before ends, and begins anew.
        """
        admission = self.shared.admission
        chosen = dict(self._given_siblings)
        turns: dict[str, list[bytes]] = {}  # network → keys, the least first
        for key in sorted(learned):
            # One of small order nobody can prove to be theirs
            if key not in chosen and key != admission.public and not has_small_order(key):
                for network in learned[key].networks or ("",):
                    turns.setdefault(network, []).append(key)
        while turns and len(chosen) < self.shared.limits.siblings:
            for network in sorted(turns):
                keys = turns[network] = [key for key in turns[network] if key not in chosen]
                if not keys:
                    del turns[network]
                elif len(chosen) < self.shared.limits.siblings:
                    chosen[keys[0]] = learned[keys[0]]
        before, admission.siblings = admission.siblings, chosen
        for key, link in list(self.shared.links.items()):
            if key not in before or key not in chosen or before[key].networks != chosen[key].networks:
                self._siblings.link_down(link)
                self.shared.refuse(link, Refusal.REPLACED)
        return list(chosen)

    def begin_drain(self, now: float, seconds: int) -> None:
        """Admit nobody from now on, tell all, and end what is left after `seconds`."""
        if self.shared.draining:
            return
        seconds = max(0, min(seconds, DRAIN_MAX_S))
        self.shared.draining = True
        self._drain_at = now + seconds if len(self.shared.roster) else now
        self.shared.happenings.append((Happening.DRAINING, f"{len(self.shared.roster)} members, {seconds} s"))
        told = SECONDS.pack(seconds)
        for member in self.shared.roster:
            if member.stream is not None:
                self.shared.write_control(member.stream, frame(DRAIN, told))
            else:
                self.shared.send_control(member, DRAINING, told)
        for link in list(self.shared.links.values()):
            self.shared.write_control(link, frame(DRAIN, told))

    def handle_timeout(self, now: float) -> None:
        self._forwarder.release(now)
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_S
            self._sweep(now)
        if self._drain_at is not None and (now >= self._drain_at or not len(self.shared.roster)):
            self._finish_drain()

    def poll_timeout(self) -> float:
        due = self._sweep_at
        for at in (self._forwarder.ready_at(), self._drain_at):
            if at is not None:
                due = min(due, at)
        return due

    # Outputs

    def drain_writes(self) -> list[tuple[int, bytes]]:
        """(connection, what to write to it), of connections that are not blocked. Again until there is nothing."""
        self._siblings.tell()
        shared = self.shared
        if not shared.dirty:
            return []
        dirty, shared.dirty = shared.dirty, {}
        limits = shared.limits
        most = SCARCE_WRITE_BYTES if shared.queued_bytes > limits.queues_bytes // 2 else limits.queue_bytes
        writes = []
        for conn, stream in dirty.items():
            if stream.queue.blocked:
                continue
            # What waits is not taken apart for one that is to be closed now
            writes.append((conn, stream.queue.take(None if stream.state is StreamState.CLOSED else most)))
            if stream.queue:
                shared.dirty[conn] = stream
        return writes

    def drain_closes(self) -> list[int]:
        closes, self.shared.closes = self.shared.closes, []
        return closes

    def drain_brakes(self) -> dict[int, float]:
        """Connections whose members sent too much, and until when they are not to be read."""
        brakes, self.shared.brakes = self.shared.brakes, {}
        return brakes

    def drain_trains(self) -> list[Train]:
        return self.shared.drain_trains()

    def drain_happenings(self) -> list[tuple[Happening, str]]:
        happenings, self.shared.happenings = self.shared.happenings, []
        return happenings

    # Time

    def _sweep(self, now: float) -> None:
        wall_s = self.shared.wall_at(now)
        for member in self.shared.roster.replaced_before(now - REPLACED_LINGER_S):
            self._lobby.dismiss(member, Refusal.REPLACED)
        for member in self.shared.roster:
            if now - member.heard_at > member.silence_s:
                self._lobby.dismiss(member, Refusal.IDLE)
            elif member.session is not None and member.session.down_counter >= COUNTER_LAST:
                self._lobby.dismiss(member, Refusal.NO_SESSION)  # it logs in again, and counts from the start
            elif member.pass_.not_after < wall_s:
                self._lobby.dismiss(member, Refusal.EXPIRED)
        self.streams.sweep(now)

    def _finish_drain(self) -> None:
        self._drain_at = None
        self.drained = True
        for member in self.shared.roster:
            self._lobby.dismiss(member, Refusal.DRAINING)
        for link in list(self.shared.links.values()):
            self._siblings.link_down(link)
            self.shared.refuse(link, Refusal.DRAINING)
        self.shared.happenings.append((Happening.DRAINED, "all told"))
