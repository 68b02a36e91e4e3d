"""What every template may use: files under their lasting names, icons, times, states, and where the menu leads."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from hub.core.audit import Entry
from hub.core.model import DeviceState
from hub.core.roles import Principal
from hub.output import duration
from hub.store.devices import DeviceRow
from hub.web.assets import Assets
from hub.web.pages import environment

CLONED_SHOWN_S = 7 * 86_400
_BROWSERS = (("Edg/", "Edge"), ("OPR/", "Opera"), ("Firefox/", "Firefox"), ("Chrome/", "Chrome"), ("Safari/", "Safari"))
_SYSTEMS = (
    *(("Android", "Android"), ("iPhone", "iPhone"), ("iPad", "iPad"), ("Windows", "Windows")),
    *(("Mac OS X", "macOS"), ("Linux", "Linux")),
)


@dataclass(frozen=True)
class Place:
    """One line of the menu."""

    path: str
    text: str
    icon: str
    action: str  # that one must be allowed
    key: str = ""  # behind `g`


MENU: tuple[tuple[str, tuple[Place, ...]], ...] = (
    (
        "Fleet",
        (
            Place("/", "Overview", "layout-dashboard", "devices:read", "o"),
            Place("/devices", "Devices", "devices", "devices:read", "d"),
            Place("/updates", "Updates", "rocket", "rollouts:read", "v"),
            Place("/rigs", "Rigs", "cpu", "rigs:read", "b"),
            Place("/topology", "Topology", "topology-star-3", "devices:read", "t"),
            Place("/map", "Map", "map-2", "devices:read", "m"),
        ),
    ),
    (
        "Network",
        (
            Place("/policy", "Policy", "shield-check", "policy:read", "p"),
            Place("/routes", "Routes", "route", "routes:read", "e"),
            Place("/names", "Names", "world", "names:read", "w"),
            Place("/lock", "Network lock", "lock", "lock:read", "l"),
            Place("/tokens", "Join tokens", "ticket", "tokens:read", "k"),
            Place("/relays", "Relays", "access-point", "relays:read", "r"),
        ),
    ),
    (
        "Administration",
        (
            Place("/users", "Users and roles", "users", "users:read", "u"),
            Place("/api-tokens", "API tokens", "key", "apitokens:read"),
            Place("/audit", "Audit log", "list-details", "audit:read", "a"),
            Place("/settings", "Settings", "settings", "settings:read", "s"),
        ),
    ),
)


def menu_of(who: Principal) -> list[tuple[str, list[Place]]]:
    shown = [(title, [place for place in places if who.may(place.action)]) for title, places in MENU]
    return [(title, places) for title, places in shown if places]


def when(then_s: int, never: str = "never") -> Markup:
    """A time as how long ago it was, with the date behind it; the browser keeps it current and says it in its zone."""
    if not then_s:
        return Markup("{}").format(never)
    exact = datetime.fromtimestamp(then_s, UTC)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        exact.strftime("%Y-%m-%dT%H:%M:%SZ"), exact.strftime("%Y-%m-%d %H:%M:%S UTC"), _relative(then_s)
    )


def _relative(then_s: int) -> str:
    seconds = int(time.time()) - then_s
    if abs(seconds) < 5:
        return "just now"
    text = duration(abs(seconds))
    return f"{text} ago" if seconds > 0 else f"in {text}"


def state_of(row: DeviceRow) -> tuple[str, str]:
    """(kind of mark, word)."""
    if row.state is DeviceState.ACTIVE:
        return ("ok", "online") if row.online else ("off", "offline")
    return {
        DeviceState.PENDING: ("warn", "waiting for approval"),
        DeviceState.EXPIRED: ("bad", "expired"),
        DeviceState.REMOVED: ("off", "removed"),
    }[row.state]


def shown(row: DeviceRow) -> str:
    return row.name or row.id


def v4(row: DeviceRow) -> str:
    return "" if row.v4 is None else str(IPv4Address(row.v4))


def v6(row: DeviceRow) -> str:
    return "" if row.v6 is None else str(IPv6Address(row.v6))


def state_mark(kind: str, word: str) -> Markup:
    return Markup('<span class="state {}">{}</span>').format(kind, word)


def browser_of(text: str) -> str:
    """A user agent as people name it."""
    name = next((name for mark, name in _BROWSERS if mark in text), "A browser")
    system = next((system for mark, system in _SYSTEMS if mark in text), "")
    return f"{name} on {system}" if system else name


def is_cloned(row: DeviceRow) -> bool:
    return bool(row.cloned_s) and row.cloned_s > time.time() - CLONED_SHOWN_S


def bar(share: float, kind: str = "") -> Markup:
    """A bar from 0 to 1 as SVG: a width in a style would be an inline style, which the page's policy forbids."""
    width = round(max(0.0, min(1.0, share)) * 100, 1)
    return Markup(
        '<svg viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="bar-bg" width="100" height="6" rx="1.5"/><rect class="bar-fg {}" width="{}" height="6" rx="1.5"/>'
        "</svg>"
    ).format(kind, width)


def signal_bars(bars: int | None) -> Markup:
    """Four of them, as on a telephone; what they say stands beside them as text."""
    kind = "" if bars is None else "bad" if bars == 0 else "warn" if bars == 1 else "ok"
    parts = [
        Markup('<rect class="{}" x="{}" y="{}" width="4" height="{}" rx="1"/>').format(
            f"bar-fg {kind}" if bars is not None and at < bars else "bar-bg", 6 * at, 12 - 3 * at, 4 + 3 * at
        )
        for at in range(4)
    ]
    return Markup('<svg class="signal-bars" viewBox="0 0 22 16" aria-hidden="true">{}</svg>').format(
        Markup("").join(parts)
    )


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def thousands(number: int) -> str:
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def link_of(thing: str) -> str:
    """Where an audit row's object is shown: the page of its kind at least."""
    kind, _, name = thing.partition(":")
    if kind == "device":
        return f"/devices/{quote(name)}"
    places = {"token": "/tokens", "relay": "/relays", "user": "/users", "apitoken": "/api-tokens", "policy": "/policy"}
    if kind == "rollout":
        return f"/updates/{quote(name)}"
    if kind == "rig":
        return f"/rigs/{quote(name)}"
    places |= {"version": "/updates", "root": "/updates"}
    places |= {"client": "/routes", "name": "/names", "domain": "/names", "lock": "/lock"}
    return places.get(kind, f"/audit?object={quote(thing)}")


def details_of(event: Entry) -> list[tuple[str, str]]:
    """What an audit row says besides, without what is empty; times as dates."""
    found = event.details().items()
    return [(name, _date(value) if name in ("expires", "until") else str(value)) for name, value in found if value]


def _date(value: object) -> str:
    return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M} UTC" if isinstance(value, int) else str(value)


def install(assets: Assets) -> None:
    """Into the environment that `hub.web.pages` renders with."""
    helpers: dict[str, Any] = {
        "asset": assets.url,
        "icon": assets.icon,
        "menu_of": menu_of,
        "signal_bars": signal_bars,
        "when": when,
        "state_of": state_of,
        "state_mark": state_mark,
        "is_cloned": is_cloned,
        "bar": bar,
        "browser_of": browser_of,
        "shown": shown,
        "v4": v4,
        "v6": v6,
        "link_of": link_of,
        "details_of": details_of,
    }
    environment.globals.update(helpers)
    environment.filters.update({"thousands": thousands, "size": size, "span": duration})
    environment.trim_blocks = environment.lstrip_blocks = True
