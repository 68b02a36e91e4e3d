"""What the settings of the dashboard and of web hooks may be."""

from __future__ import annotations

import re

from edgeagent.proto.errors import RemoteProtocolError
from edgeagent.proto.names import split_host_port
from hub.core.events import EVENTS
from hub.core.model import HubError

_ORIGIN = re.compile(r"(https?)://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?")
_HOOK = re.compile(r"https?://[^\s/?#@\\]{1,260}(/[!-~]*)?")
URL_MAX = 1_000


def check_url(url: str) -> str:
    """Where browsers reach the dashboard: scheme, host and port, nothing behind. Raises HubError."""
    url = url.rstrip("/").lower()
    found = _ORIGIN.fullmatch(url)
    if found is None:
        raise HubError(f"url {url!r}: https:// and a host expected, and nothing behind it, as https://hub.example.org")
    default = {"https": ":443", "http": ":80"}[found[1]]
    return url.removesuffix(default)


def check_listen(listen: str) -> str:
    """`host:port`. Raises HubError."""
    try:
        split_host_port(listen, "listen")
    except RemoteProtocolError as error:
        raise HubError(f"{error}. Write for example 127.0.0.1:8480 or 0.0.0.0:443") from error
    return listen


def check_hook_url(url: str) -> str:
    """Raises HubError. Credentials have no place in it: it is shown and audited."""
    if len(url) > URL_MAX or not _HOOK.fullmatch(url):
        raise HubError("url: https://host/path expected, without a user or password in it")
    return url


def check_events(events: tuple[str, ...]) -> tuple[str, ...]:
    unknown = sorted(set(events) - set(EVENTS))
    if unknown or not events:
        what = f"event {unknown[0]!r}: there is none of this name" if unknown else "events: none given"
        raise HubError(f"{what}. Known are {', '.join(EVENTS)}")
    return tuple(sorted(set(events)))
