"""The UDP carrier, the member's side: hello, login, channels, a changed address, probes."""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum

from edgeagent.proto.relay_events import (
    Inbox,
    Login,
    RelayClientDrop,
    RelayDraining,
    RelayPeerGone,
    RelaySawUsMove,
)
from edgeagent.proto.relay_frames import (
    BIND,
    BIND_BODY,
    BOUND,
    BYE,
    CHALLENGED,
    CHANNEL_MAX,
    DATA,
    DATAGRAM_HEAD,
    DATAGRAM_HEAD_SIZE,
    DENIED,
    DRAINING,
    ECHO_SIZE,
    GONE,
    KEY_SIZE,
    KNOCKING,
    LOGGING_IN,
    OWN_CHANNEL,
    PACKET_BYTES_MAX,
    REBIND,
    RELAY_CONTROLS,
    SECONDS,
    WELCOMED,
    WELCOMED_BODY,
    Refusal,
    RelayError,
    control_datagram,
    data_datagram,
    echo_of,
    hello_datagram,
    open_control,
    read_challenged,
    to_gone,
    to_refusal,
    write_knock,
)
from edgeagent.proto.relay_login import Role, SessionKeys, write_login
from edgeagent.proto.relay_probe import Liveness

ATTEMPT_S = (0.3, 0.6, 1.2, 2.4)  # waits for an answer to hello, and to login
CHALLENGES_MAX = 4  # that one login follows
BIND_RETRY_S = 1.0
REBIND_SPACING_S = 0.2
CHANNELS_MAX = 256  # that we bind, however many the relay would bear


class DatagramState(Enum):
    IDLE = "idle"
    HELLO = "hello"  # hello is out
    LOGIN = "login"  # login is out
    UP = "up"


class _Binding:
    """The channel of one peer."""

    __slots__ = ("asked_at", "bound", "forgets", "number")

    def __init__(self, number: int, forgets: int) -> None:
        self.number = number
        self.forgets = forgets  # the channel that gave way to this one, 0 for none
        self.bound = False
        self.asked_at = -BIND_RETRY_S


class DatagramClient:
    """`start`, then datagrams in by `handle`, out by `drain`; after any input look at `state` and `failure`.

    A failure ends a try: `failure` holds what the relay said or None for silence, `failed` is True until `start`.
    """

    def __init__(self, login: Login, inbox: Inbox, *, active_s: float) -> None:
        self._login = login
        self._inbox = inbox
        self._active_s = active_s
        self._out: list[tuple[bytes, int]] = []
        self.state = DatagramState.IDLE
        self.failed = False
        self.failure: Refusal | None = None
        self.liveness: Liveness | None = None
        self.pass_used = b""  # of the last login
        self._begin()

    def _begin(self) -> None:
        self._attempt = 0
        self._retry_at: float | None = None
        self._datagram = b""  # hello or login, to be sent again
        self._challenges = 0
        self._keys: SessionKeys | None = None
        self._session = 0
        self._up_counter = -1
        self._down_counter = -1
        self._rebind = b""
        self._rebind_at = 0.0
        self._channels_max = OWN_CHANNEL
        self._next_number = OWN_CHANNEL
        self._bindings: OrderedDict[bytes, _Binding] = OrderedDict()
        self._keys_of: dict[int, bytes] = {}
        self.liveness = None

    def start(self, now: float) -> None:
        """Say hello; what was before is forgotten."""
        self._begin()
        self.failed, self.failure = False, None
        self.state = DatagramState.HELLO
        self._datagram = hello_datagram(self._login.entropy(ECHO_SIZE))
        self._send_attempt(now)

    def stop(self) -> None:
        """Take leave."""
        if self.state is DatagramState.UP:
            self._control(BYE, bytes((Refusal.LEAVING.value,)))
        self.state = DatagramState.IDLE
        self._begin()

    def give_up(self) -> None:
        """Something else says that the relay is not there: do not wait for more probes to be lost."""
        self._fail(None)

    def set_idle_interval(self, idle_s: float) -> None:
        if self.liveness is not None:
            self.liveness.set_idle(idle_s)

    def nudge(self, now: float) -> None:
        """Let the relay hear from us now: if that is from another address, it asks who we are."""
        if self.liveness is not None:
            self._out.append((data_datagram(self._session, OWN_CHANNEL, self.liveness.probe(now, long=True)), 0))

    def takes(self, datagram: bytes) -> bool:
        """Of several clients at one relay, whose session it is; what begins one is for who is beginning."""
        if len(datagram) < DATAGRAM_HEAD_SIZE:
            return False
        kind, _, _, session = DATAGRAM_HEAD.unpack_from(datagram)
        if self.state is DatagramState.UP:
            return bool(session == self._session)
        return kind in (CHALLENGED, DENIED, WELCOMED) and self.state is not DatagramState.IDLE

    def send(self, now: float, key: bytes, packets: list[bytes], ecn: int) -> None:
        """While `state` is UP."""
        assert self.liveness is not None
        binding = self._bindings.get(key)
        if binding is None:
            binding = self._bind(key)
        else:
            self._bindings.move_to_end(key)
        if not binding.bound and now - binding.asked_at >= BIND_RETRY_S:
            self._ask_for(now, key, binding)
        head = DATAGRAM_HEAD.pack(DATA, 0, binding.number if binding.bound else 0, self._session)
        if not binding.bound:
            head += key
        self._out += [(head + packet, ecn) for packet in packets]
        self.liveness.sent_data_at = now

    def channel_of(self, key: bytes) -> tuple[int, int] | None:
        """(session, channel) behind whose header packets for the member `key` may go by themselves."""
        binding = self._bindings.get(key)
        if self.state is not DatagramState.UP or binding is None or not binding.bound:
            return None
        return self._session, binding.number

    def source_of(self, session: int, channel: int) -> bytes | None:
        """The member that is meant by that header in a datagram from the relay."""
        return self._keys_of.get(channel) if self.state is DatagramState.UP and session == self._session else None

    @property
    def session(self) -> int | None:
        return self._session if self.state is DatagramState.UP else None

    def knock(self, challenge: bytes, address: tuple[bytes, int]) -> None:
        """While `state` is UP."""
        self._control(KNOCKING, write_knock(challenge, address))

    def handle(self, now: float, datagram: bytes, ecn: int) -> None:
        """One datagram from the relay's address."""
        if len(datagram) < DATAGRAM_HEAD_SIZE or datagram[1]:
            self._inbox.drop(RelayClientDrop.MALFORMED)
            return
        kind, _, channel, session = DATAGRAM_HEAD.unpack_from(datagram)
        if kind == DATA:
            self._on_data(now, datagram, channel, session, ecn)
        elif kind == CHALLENGED:
            self._on_challenged(now, datagram, session)
        elif kind == DENIED:
            self._on_denied(now, datagram)
        elif kind in RELAY_CONTROLS:
            self._on_control(now, kind, channel, session, datagram)
        else:
            self._inbox.drop(RelayClientDrop.MALFORMED)

    def handle_timeout(self, now: float) -> None:
        if self._retry_at is not None and now >= self._retry_at:
            self._send_attempt(now)
        if self.liveness is not None:
            probe = self.liveness.next_probe(now)
            if probe is not None:
                self._out.append((data_datagram(self._session, OWN_CHANNEL, probe), 0))
            elif self.liveness.is_dead(now):
                self._fail(None)

    def poll_timeout(self) -> float | None:
        return self._retry_at if self.liveness is None else self.liveness.due()

    def drain(self) -> list[tuple[bytes, int]]:
        """(datagram, ECN field) for the relay's UDP address."""
        out, self._out = self._out, []
        return out

    # Login

    def _send_attempt(self, now: float) -> None:
        if self._attempt >= len(ATTEMPT_S):
            self._fail(None)
            return
        self._out.append((self._datagram, 0))
        self._retry_at = now + ATTEMPT_S[self._attempt]
        self._attempt += 1

    def _on_challenged(self, now: float, datagram: bytes, session: int) -> None:
        challenged = read_challenged(datagram)
        if challenged is None:
            self._inbox.drop(RelayClientDrop.MALFORMED)
            return
        echo, challenge = challenged
        if self.state is DatagramState.UP and session == self._session:
            self._on_hint(now, challenge)
        elif (
            (self.state is DatagramState.HELLO and echo == self._datagram[DATAGRAM_HEAD_SIZE:][:ECHO_SIZE])
            or (self.state is DatagramState.LOGIN and echo == echo_of(self._datagram))
        ) and self._challenges < CHALLENGES_MAX:
            self._challenges += 1
            self._log_in(now, challenge)
        else:
            self._inbox.drop(RelayClientDrop.UNEXPECTED)

    def _log_in(self, now: float, challenge: bytes) -> None:
        login = self._login
        self.pass_used = login.pass_object
        sealed, self._keys = write_login(
            login.crypto,
            login.entropy,
            relay=login.relay,
            relay_key=login.relay_key,
            challenge=challenge,
            private=login.private,
            role=Role.MEMBER,
            interval_s=login.told_s,
            pass_object=login.pass_object,
        )
        self.state = DatagramState.LOGIN
        self._datagram = DATAGRAM_HEAD.pack(LOGGING_IN, 0, 0, 0) + challenge + sealed
        self._attempt = 0
        self._send_attempt(now)

    def _on_denied(self, now: float, datagram: bytes) -> None:
        if len(datagram) != DATAGRAM_HEAD_SIZE + ECHO_SIZE + 1:
            self._inbox.drop(RelayClientDrop.MALFORMED)
            return
        echo = datagram[DATAGRAM_HEAD_SIZE : DATAGRAM_HEAD_SIZE + ECHO_SIZE]
        try:
            reason = to_refusal(datagram[-1])
        except RelayError:
            self._inbox.drop(RelayClientDrop.MALFORMED)
            return
        if self.state is DatagramState.LOGIN and echo == echo_of(self._datagram):
            self._fail(reason)
        elif self.state is DatagramState.UP and self._rebind and echo == echo_of(self._rebind):
            self.start(now)  # the relay has forgotten us, most likely it was restarted
        else:
            self._inbox.drop(RelayClientDrop.UNEXPECTED)

    def _on_hint(self, now: float, challenge: bytes) -> None:
        """The relay heard us from an address that it does not know: show that we are there."""
        if now - self._rebind_at >= REBIND_SPACING_S:
            self._rebind_at = now
            self._inbox.events.append(RelaySawUsMove())
            self._control(REBIND, challenge)
            self._rebind = self._out[-1][0]

    # Within a session

    def _on_control(self, now: float, kind: int, channel: int, session: int, datagram: bytes) -> None:
        if self._keys is None or self.state not in (DatagramState.LOGIN, DatagramState.UP):
            self._inbox.drop(RelayClientDrop.UNEXPECTED)
            return
        if self.state is DatagramState.UP and session != self._session:
            self._inbox.drop(RelayClientDrop.OTHER_SESSION)
            return
        opened = open_control(self._login.crypto, self._keys.down, datagram, self._down_counter)
        if opened is None:
            self._inbox.drop(RelayClientDrop.BAD_MAC)
            return
        counter, body = opened
        if (self.state is DatagramState.LOGIN) != (kind == WELCOMED):
            if kind != WELCOMED:  # a second welcome answers a login that was sent twice
                self._inbox.drop(RelayClientDrop.UNEXPECTED)
            return
        self._down_counter = counter
        try:
            if kind == WELCOMED:
                self._on_welcomed(now, session, body)
            elif kind == BOUND:
                self._on_bound(channel)
            elif kind == GONE and len(body) == KEY_SIZE + 1:
                self._inbox.events.append(RelayPeerGone(body[:KEY_SIZE], to_gone(body[-1])))
            elif kind == DRAINING and len(body) == SECONDS.size:
                self._inbox.events.append(RelayDraining(SECONDS.unpack(body)[0]))
            elif kind == BYE and len(body) == 1:
                self._fail(to_refusal(body[0]))
        except RelayError:
            self._inbox.drop(RelayClientDrop.MALFORMED)

    def _on_welcomed(self, now: float, session: int, body: bytes) -> None:
        if len(body) != WELCOMED_BODY.size:
            raise RelayError(Refusal.BAD_FRAME, "welcome: its length")
        silence_s, channels = WELCOMED_BODY.unpack(body)
        self._channels_max = min(channels, CHANNELS_MAX)
        self._session = session
        self._retry_at = None
        self.state = DatagramState.UP
        self.liveness = Liveness(
            now, self._login.entropy, active_s=self._active_s, idle_s=self._login.idle_s, silence_s=silence_s
        )
        # At once: it measures, and a relay that takes logins and forwards nothing is found before it is relied on
        self._out.append((data_datagram(session, OWN_CHANNEL, self.liveness.probe(now)), 0))

    def _on_bound(self, channel: int) -> None:
        key = self._keys_of.get(channel)
        if key is not None:
            self._bindings[key].bound = True

    def _on_data(self, now: float, datagram: bytes, channel: int, session: int, ecn: int) -> None:
        if self.state is not DatagramState.UP or session != self._session:
            self._inbox.drop(RelayClientDrop.OTHER_SESSION)
            return
        at = DATAGRAM_HEAD_SIZE
        if channel == OWN_CHANNEL:
            assert self.liveness is not None
            if not self.liveness.is_probe_answer(now, datagram[at:]):
                self._inbox.drop(RelayClientDrop.STRANGE_PROBE)
            return
        if channel:
            found = self._keys_of.get(channel)
            if found is None:
                self._inbox.drop(RelayClientDrop.UNKNOWN_CHANNEL)
                return
            key = found
        else:
            key = datagram[at : at + KEY_SIZE]
            at += KEY_SIZE
        if not 0 < len(datagram) - at <= PACKET_BYTES_MAX or key == self._login.node_key:
            self._inbox.drop(RelayClientDrop.MALFORMED)
            return
        self._inbox.packets.append((key, datagram[at:], ecn))
        if not channel and key not in self._bindings:
            self._ask_for(now, key, self._bind(key))

    def _bind(self, key: bytes) -> _Binding:
        """A number not used before, so that no late datagram is taken for another peer's; after 65,534, again."""
        forgets = 0
        if len(self._bindings) >= max(1, self._channels_max - 1):  # one of the relay's is our own
            _, oldest = self._bindings.popitem(last=False)
            del self._keys_of[oldest.number]
            forgets = oldest.number
        number = self._next_number
        while True:
            number = number + 1 if number < CHANNEL_MAX else OWN_CHANNEL + 1
            if number not in self._keys_of:
                break
        self._next_number = number
        binding = self._bindings[key] = _Binding(number, forgets)
        self._keys_of[number] = key
        return binding

    def _ask_for(self, now: float, key: bytes, binding: _Binding) -> None:
        binding.asked_at = now
        self._control(BIND, BIND_BODY.pack(key, binding.forgets), binding.number)

    def _control(self, kind: int, body: bytes, channel: int = 0) -> None:
        assert self._keys is not None
        self._up_counter += 1
        login = self._login
        datagram = control_datagram(login.crypto, self._keys.up, kind, self._session, self._up_counter, body, channel)
        self._out.append((datagram, 0))

    def _fail(self, refusal: Refusal | None) -> None:
        self.state = DatagramState.IDLE
        self.failed, self.failure = True, refusal
        self._begin()
