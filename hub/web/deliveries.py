"""Web hooks are told: a thread that takes what is due from the outbox, posts it, and writes down what came of it.

Signed: `X-Edgehub-Signature: t=<seconds>,v1=<hex HMAC-SHA256 of "<seconds>.<body>">` with the hook's secret, so that
who receives it knows whose word it is, and how old.
"""

from __future__ import annotations

import hmac
import logging
import threading
import time

from hub.core.events import Delivery, Webhook
from hub.core.model import HubError
from hub.io.fetch import FetchError, fetch
from hub.store import hooks
from hub.web.backend import Backend

LOOK_S = 5.0
LEASE_S = 60  # longer than a batch takes: another process of this hub leaves them alone meanwhile
BATCH_MAX = 4
TIMEOUT_S = 10.0
ANSWER_MAX = 64 << 10

log = logging.getLogger("edgehub.web")


class Courier:
    """Runs from `start` to `stop`; `hurry` when there is something new."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def hurry(self) -> None:
        self._wake.set()

    def stop(self) -> None:
        """It may be in the middle of a post; that one is told again later."""
        self._stopping = True
        self._wake.set()
        self._thread.join(1.0)

    def _run(self) -> None:
        while not self._stopping:
            try:
                more = self.work()
            except HubError as error:
                log.warning("webhooks: %s", error)
                more = False
            if not more:
                self._wake.wait(LOOK_S)
                self._wake.clear()

    def work(self) -> bool:
        """One batch; whether there may be more."""
        with self._backend.read() as tx:
            if not hooks.any_due(tx.connection, int(time.time())):
                return False
        with self._backend.write() as (tx, _, wall_s):
            due = hooks.take_due(tx.connection, wall_s, LEASE_S, BATCH_MAX)
            known = {hook.id: hook for hook in hooks.all_(tx.connection)}
        for item in due:
            if self._stopping:
                return False
            ok, result = post(known[item.webhook], item, private=self._backend.settings.private_hooks)
            with self._backend.write() as (tx, _, wall_s):
                (hooks.done if ok else hooks.failed)(tx.connection, item, wall_s, result)
                tx.note("webhooks")
        return len(due) == BATCH_MAX


def post(hook: Webhook, item: Delivery, *, private: bool) -> tuple[bool, str]:
    """(whether it arrived, what is shown of it)."""
    stamp = int(time.time())
    body = item.body.encode()
    headers = {
        "Content-Type": "application/json",
        "X-Edgehub-Event": item.event,
        "X-Edgehub-Delivery": str(item.id),
        "X-Edgehub-Signature": f"t={stamp},v1={sign(hook.secret, stamp, body)}",
    }
    try:
        answer = fetch(
            "POST", hook.url, headers=headers, body=body, private=private, answer_max=ANSWER_MAX, timeout_s=TIMEOUT_S
        )
    except FetchError as error:
        return False, str(error)
    return 200 <= answer.status < 300, f"status {answer.status}"


def sign(secret: str, stamp: int, body: bytes) -> str:
    return hmac.digest(secret.encode(), f"{stamp}.".encode() + body, "sha256").hex()
