"""Web hooks as command and API ask for them: an action, and the audit row that tells of it."""

from __future__ import annotations

import os

from hub.core import web
from hub.core.events import HOOKS_MAX, Webhook
from hub.core.model import HubError
from hub.core.people import make_id, make_secret
from hub.operations import Doing
from hub.store import hooks


def add(do: Doing, url: str, events: tuple[str, ...]) -> Webhook:
    """The secret is in what is returned, and shown this once. Raises HubError."""
    url, events = web.check_hook_url(url), web.check_events(events)
    if len(hooks.all_(do.tx.connection)) >= HOOKS_MAX:
        raise HubError(f"{HOOKS_MAX} web hooks: there is no room for another. Remove one that nobody needs")
    hook = Webhook(make_id(os.urandom, "h-"), url, make_secret(os.urandom), events, do.wall_s)
    hooks.add(do.tx.connection, hook)
    do.note("webhook.add", f"webhook:{hook.id}", host=host(hook))
    do.tx.note("webhooks")
    return hook


def remove(do: Doing, hook: Webhook) -> None:
    hooks.drop(do.tx.connection, hook.id)
    do.note("webhook.remove", f"webhook:{hook.id}")
    do.tx.note("webhooks")


def test(do: Doing, hook: Webhook, by: str) -> None:
    """It is told the event `test`, whatever it wants to hear of."""
    hooks.emit(do.tx.connection, "test", do.wall_s, {"by": by}, only=hook.id)
    do.note("webhook.test", f"webhook:{hook.id}")
    do.tx.note("webhooks")


def host(hook: Webhook) -> str:
    """What of the URL may be told: paths of hooks are often secrets themselves."""
    return hook.url.split("/")[2]
