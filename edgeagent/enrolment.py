"""Joining: carries the Joiner's words to a broker and back, until the hub has said yes or no."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edgeagent.context import jitter
from edgeagent.io.mqtt import CaSeen, Closed, Connected, Received
from edgeagent.io.pahoclient import Login
from edgeagent.io.pinnedtls import Trust
from edgeagent.proto.join import Joined, Joiner, JoinRefused, JoinWaiting

if TYPE_CHECKING:
    from edgeagent.context import Context
    from edgeagent.io.mqtt import Event, MqttLink
    from edgeagent.proto.identity import Admission
    from edgeagent.proto.token import Token

log = logging.getLogger("edgeagent")
KEEPALIVE_S = 60

_REFUSALS = {
    "used-up": "the token has been used as often as it may be",
    "expired": "the token has expired",
    "revoked": "the token was revoked",
    "unknown": "the hub knows no such token",
    "denied": "a person at the hub said no",
    "name-taken": "the host name {name} is taken; ask for another with --hostname",
    "bad-request": "the hub does not accept what this device says of itself, or the token is one for relays",
    "credentials": "the broker does not accept the token: it may be revoked, expired or used up",
}


class Enrolment:
    """Drive it: `handle` for every event of the link, `on_timeout` at `poll_timeout()`, `settle` after either.

    `admission` is set when the hub took the device in, `refusal` (a sentence) when it did not; that is the end when
    `is_final`, and otherwise only the broker's word, which is asked again at long intervals. `progress` says in words
    where it stands; `waiting` is True while a person has to approve.
    """

    def __init__(self, now: float, context: Context, link: MqttLink, token: Token, host: str) -> None:
        self._context = context
        self._link = link
        self._ca: bytes | None = None
        self._token = token
        self._joiner = Joiner(
            now,
            crypto=context.crypto,
            entropy=context.entropy,
            jitter=jitter,
            token=token,
            identity=context.identity,
            host=host,
            boot=context.boot,
            facts=context.facts,
            wall=context.wall,
        )
        self.admission: Admission | None = None
        self.refusal = ""
        self.waiting = False
        self.progress = f"connecting to {', '.join(token.hosts)}"

    def handle(self, now: float, event: Event) -> None:
        if isinstance(event, Received):
            self._joiner.handle_message(now, event.topic, event.payload)
        elif isinstance(event, Connected):
            self.progress = f"connected to {event.broker}, waiting for the hub"
            log.info("%s", self.progress)
            # At NATS one of QoS 1 is made on three servers first; and who joins asks again until it is answered.
            self._link.subscribe(self._joiner.subscriptions, qos=0 if self._token.broker_pass else 1)
            self._joiner.handle_connected(now)
        elif isinstance(event, CaSeen):
            self._ca = event.ca
        elif isinstance(event, Closed):
            self.progress = f"trying again: {event.reason}"
            log.warning("no connection: %s", event.reason)
            if event.refused:
                self._joiner.handle_refused(now)
            else:
                self._joiner.handle_disconnected(now)

    @property
    def is_final(self) -> bool:
        return self._joiner.done

    def poll_timeout(self) -> float | None:
        times = [self._joiner.poll_timeout(), self._joiner.next_connect_at if self._link.is_idle else None]
        return min((at for at in times if at is not None), default=None)

    def on_timeout(self, now: float) -> None:
        joiner = self._joiner
        joiner.handle_timeout(now)
        if self._link.is_idle and joiner.next_connect_at is not None and joiner.next_connect_at <= now:
            login = Login(joiner.client_id, joiner.username, joiner.password, clean=True, keepalive_s=KEEPALIVE_S)
            trust = Trust(joiner.ca_sha256, self._ca, self._context.wall.known)
            self._link.open(now, joiner.hosts, login, trust)

    def settle(self, now: float) -> None:
        for event in self._joiner.drain_events():
            if isinstance(event, Joined):
                if self._token.lock_keys:
                    from edgeagent import locks

                    locks.pin(self._context, event.admission, self._token)
                self.admission = event.admission
            elif isinstance(event, JoinWaiting):
                self.waiting = True
                self.progress = f"waiting for approval: edgehub devices approve {self._context.identity.device_id}"
                log.info("%s", self.progress)
            elif isinstance(event, JoinRefused):
                text = _REFUSALS.get(event.reason, event.reason)
                self.refusal = f"the hub refused this device: {text.format(name=event.name)}"
        for publish in self._joiner.drain_publishes():
            self._link.publish(publish.topic, publish.payload, qos=publish.qos, retain=publish.retain)
