"""Commands to devices as people and programs give them: with arguments in whole words, and an audit row each.

Each runs inside a write transaction of the caller's, but for `describe`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from edgeagent.proto.commands import VERBS, WATCH_S_MAX
from hub.core import commands
from hub.core.model import Command, Device, HubError
from hub.operations import Doing
from hub.store.sql import SqlTx

# verb → {word for people: (name on the wire, what it is when nobody says; None: left out, ...: it must be said)}
ARGUMENTS: Mapping[str, Mapping[str, tuple[str, Any]]] = {
    "reboot-agent": {},
    "collect-logs": {"lines": ("n", 200), "level": ("lv", None)},
    "netcheck": {"seconds": ("t", 6)},
    "rekey": {},
    "run": {"script": ("s", ...), "arguments": ("a", ()), "seconds": ("t", 60)},
    "watch": {"seconds": ("s", 60), "every": ("ev", 2)},
}


def give(
    do: Doing,
    device: Device,
    verb: str,
    words: Mapping[str, Any],
    *,
    permitted: Collection[str] = tuple(VERBS),
    expires_in_s: int = commands.EXPIRES_S,
) -> Command:
    """Raises HubError."""
    known = ARGUMENTS.get(verb, {})
    for word in words:
        if word not in known:
            raise HubError(f"command {verb}: it takes no {word!r}. What it takes: {', '.join(known) or 'nothing'}")
    args = {}
    for word, (name, default) in known.items():
        value = words.get(word, default)
        if value is ...:
            raise HubError(f"command {verb}: {word} is missing. What it takes: {', '.join(known)}")
        if value is not None:
            args[name] = list(value) if isinstance(value, tuple) else value
    made = commands.create(
        do.scribe,
        do.tx,
        device,
        verb,
        args,
        do.wall_s,
        actor=do.actor,
        permitted=permitted,
        expires_in_s=expires_in_s,
    )
    detail: dict[str, str | int] = {"command": made.id, "name": device.name or ""}
    if verb == "run":
        detail["script"] = made.args["s"]
    do.note(f"command.{verb}", f"device:{device.id}", **detail)
    return made


def watch(do: Doing, device: Device, *, seconds: int = WATCH_S_MAX, every_s: int = 2) -> Command:
    """Somebody looks, or still does; the first of it is audited."""
    before = {command.id for command in do.tx.open_commands(device.id)}
    watched = any(command.verb == "watch" for command in do.tx.open_commands(device.id))
    made = commands.watch(do.scribe, do.tx, device, do.wall_s, actor=do.actor, seconds=seconds, every_s=every_s)
    if made.id not in before and not watched:
        do.note("command.watch", f"device:{device.id}", command=made.id, name=device.name or "")
    return made


def unwatch(do: Doing, device: Device) -> None:
    commands.unwatch(do.scribe, do.tx, device, do.wall_s, actor=do.actor)


def describe(tx: SqlTx, command: Command, *, with_output: bool = False) -> dict[str, Any]:
    """As JSON could say it, arguments in whole words."""
    found = commands.describe(tx, command, with_output=with_output)
    words = {name: word for word, (name, _) in ARGUMENTS.get(command.verb, {}).items()}
    return {**found, "args": {words.get(name, name): value for name, value in command.args.items()}}
