"""`edgehub command`, `commands`, `logs` and `watch`: tell devices to do something, and look at them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from typing import Annotated, Any

import typer

from edgeagent.proto.commands import RUN_S_MAX, VERBS
from edgeagent.proto.names import is_tag
from hub import commanding
from hub.core import actions, commands
from hub.core.model import Command, CommandState, Device, DeviceState, HubError, Kind
from hub.database import Database
from hub.opening import current_state, doing, open_store
from hub.output import FAILED, OK, ago, parse_duration, print_error, print_json, print_table
from hub.store.sql import SqlTx

app = typer.Typer(help="What devices were told to do.", no_args_is_help=True, rich_markup_mode=None)

DEVICES_MAX = 1_000  # that one command is given to
LOOK_S = 0.1  # between two looks at the database
LATE_S = 2  # after which the end of a command that nobody answered is written down here
LOG_LINES, RUN_S = 200, 60

Name = Annotated[str, typer.Argument(metavar="DEVICE", help="Host name, address or id.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the end, and print the output.")]
Expires = Annotated[str, typer.Option(help="How long it waits for a device that is offline: 30s, 10m, 7d.")]


def command(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="DEVICE... VERB [ARGUMENT]...",
            help="Host names, addresses, ids, or tag:NAME for all that have it; then what to do, and with what.",
            show_default=False,
        ),
    ],
    wait: Wait = True,
    expires: Expires = "10m",
    limit: Annotated[int, typer.Option(min=1, max=RUN_S_MAX, help="Of run: seconds it may take.")] = RUN_S,
    as_json: Json = False,
) -> None:
    """Tell devices to do something. Ends with code 0 when all have done it.

    \b
    reboot-agent              end the agent in order and begin it anew, in the same process
    collect-logs [LINES]      the newest lines of its log
    netcheck [SECONDS]        what its network lets through
    rekey                     make another node key, and use it as soon as the others know it
    run SCRIPT [ARGUMENT]...  a program that the device's owner allowed (docs/commands.md)
    watch SECONDS             say how it is; `edgehub watch` shows it

    \b
    edgehub command cam-3 netcheck
    edgehub command cam-3 cam-4 reboot-agent
    edgehub command tag:camera rekey --expires 7d --no-wait
    edgehub command cam-3 run --limit 300 -- clean-cache --older 7d
    """
    names, verb, args = _split(words, limit)
    _give(names, verb, args, expires=expires, wait=wait, as_json=as_json)


def logs(
    device: Name,
    lines: Annotated[int, typer.Option("-n", "--lines", min=1, max=2_000, help="How many.")] = LOG_LINES,
    level: Annotated[str, typer.Option(help="From which level on: debug, info, warning, error.")] = "",
    expires: Expires = "1m",
    as_json: Json = False,
) -> None:
    """Show the newest lines of a device's log, which the device keeps in its memory.

    \b
    edgehub logs cam-3
    edgehub logs cam-3 -n 50 --level warning
    """
    args: dict[str, Any] = {"lines": lines} | ({"level": level} if level else {})
    _give([device], "collect-logs", args, expires=expires, wait=True, as_json=as_json)


@app.command("list")
def list_(
    device: Name,
    number: Annotated[int, typer.Option("-n", "--number", min=1, max=1_000, help="How many.")] = 20,
    as_json: Json = False,
) -> None:
    """List what a device was told to do, the newest first.

    \b
    edgehub commands list cam-3
    """
    with open_store() as store, store.read() as tx:
        found = tx.commands(actions.find_device(tx, device).id, limit=number)
        if as_json:
            print_json([commanding.describe(tx, each) for each in found])
            return
    print_table(
        ("ID", "COMMAND", "BY", "GIVEN", "STATE", "WHY"),
        (
            (
                each.id,
                _words(each),
                each.actor,
                ago(each.created_s),
                each.state.value,
                each.text or each.code or "-",
            )
            for each in found
        ),
        empty="it was told to do nothing yet. `edgehub command --help` shows what there is",
    )


@app.command()
def show(
    command_id: Annotated[str, typer.Argument(metavar="ID", help="As `edgehub commands list` shows it.")],
    as_json: Json = False,
) -> None:
    """Print what a command has put out.

    \b
    edgehub commands show 1f0c5a9e33b2d471
    """
    with open_store() as store, store.read() as tx:
        found = tx.command(command_id)
        if found is None:
            raise HubError(f"command {command_id}: there is none of this id. `edgehub commands list DEVICE` shows them")
        shown = commanding.describe(tx, found, with_output=True)
    if as_json:
        print_json(shown)
    else:
        _print_output(shown)
        print_error(_sentence(shown["device"], found))


# Giving one


def _split(words: list[str], limit: int) -> tuple[list[str], str, dict[str, Any]]:
    """Names, verb, arguments as `hub.commanding` has them; the first word behind a name that is a verb is the verb."""
    at = next((number for number, word in enumerate(words) if number and word in VERBS), 0)
    if not at:
        raise HubError(
            f"command {' '.join(words)[:80]}: DEVICE... VERB expected, VERB being one of {', '.join(VERBS)}. "
            "`edgehub command --help` has examples"
        )
    names, verb, rest = words[:at], words[at], words[at + 1 :]
    if verb == "run":
        if not rest:
            raise HubError("command run: the name of a script expected. Write for example: run clean-cache")
        return names, verb, {"script": rest[0], "arguments": rest[1:], "seconds": limit}
    numbers = {"collect-logs": "lines", "netcheck": "seconds", "watch": "seconds"}
    if len(rest) > (verb in numbers):
        raise HubError(f"command {verb}: {' '.join(rest)[:80]!r} is more than it takes. See `edgehub command --help`")
    if verb not in numbers:
        return names, verb, {}
    if rest and not (rest[0].isascii() and rest[0].isdecimal() and len(rest[0]) < 9):
        raise HubError(f"command {verb}: a number expected, not {rest[0][:80]!r}")
    return names, verb, {numbers[verb]: int(rest[0])} if rest else {}


def _give(names: list[str], verb: str, args: dict[str, Any], *, expires: str, wait: bool, as_json: bool) -> None:
    try:
        expires_in_s = parse_duration(expires)
    except ValueError as error:
        raise HubError(f"--expires {error}") from error
    given: list[tuple[Device, Command]] = []
    with doing() as do:
        for device in _devices(do.tx, names):
            given.append((device, commanding.give(do, device, verb, args, expires_in_s=expires_in_s)))
    if not current_state().is_running():
        print_error("the hub is not running: devices hear of this when it is started with `edgehub serve`")
    if not wait:
        if as_json:
            print_json([{"id": made.id, "device": device.id, "name": device.name} for device, made in given])
        else:
            for device, made in given:
                sys.stdout.write(f"{made.id}  {device.name}\n")
        return
    with open_store() as store:
        _wait(store, given, quiet=as_json)
        with store.read() as tx:
            shown = [
                (device, commanding.describe(tx, made, with_output=True), made) for device, made in _now(tx, given)
            ]
    if as_json:
        print_json([{"name": device.name, **described} for device, described, _ in shown])
    else:
        for device, described, made in shown:
            if len(shown) > 1:
                sys.stdout.write(f"--- {device.name}\n")
            _print_output(described)
            if made.state is not CommandState.DONE or not described["output"]:
                print_error(_sentence(device.name or device.id, made))
    raise typer.Exit(OK if all(made.state is CommandState.DONE for _, _, made in shown) else FAILED)


def _devices(tx: SqlTx, names: Iterable[str]) -> list[Device]:
    found: dict[str, Device] = {}
    for name in names:
        if is_tag(name):
            tagged = [device for device in _active(tx) if name in device.tags]
            if not tagged:
                raise HubError(f"{name}: no active device has this tag. `edgehub devices list` shows tags")
            found |= {device.id: device for device in tagged}
        else:
            device = actions.find_device(tx, name)
            found[device.id] = device
    if len(found) > DEVICES_MAX:
        raise HubError(f"{len(found)} devices: one command is given to {DEVICES_MAX} at most. Name fewer")
    return list(found.values())


def _active(tx: SqlTx) -> Iterator[Device]:
    after = ""
    while page := tx.devices(after=after, limit=500, state=DeviceState.ACTIVE):
        yield from (device for device in page if device.kind is Kind.DEVICE)
        after = page[-1].id


# Waiting


def _now(tx: SqlTx, given: list[tuple[Device, Command]]) -> list[tuple[Device, Command]]:
    return [(device, tx.command(made.id) or made) for device, made in given]


def _wait(store: Database, given: list[tuple[Device, Command]], *, quiet: bool) -> None:
    """Until all are over. One whose time is up is written off here, so that nobody waits for the hub to do it."""
    said: dict[str, str] = {}
    while True:
        with store.read() as tx:
            seen = _now(tx, given)
        for device, made in seen:
            news = made.state.value
            if said.get(made.id) != news and not quiet and made.state.is_open and sys.stderr.isatty():
                where = "" if device.online or made.state is not CommandState.QUEUED else " (the device is offline)"
                print_error(f"{device.name}: {news}{where}")
            said[made.id] = news
        if not any(made.state.is_open for _, made in seen):
            return
        wall_s = int(time.time())
        if any(0 < made.due_s <= wall_s - LATE_S for _, made in seen):
            with store.write() as tx:
                commands.expire(tx, wall_s, limit=100)
        time.sleep(LOOK_S)


def _print_output(shown: dict[str, Any]) -> None:
    output: str = shown["output"]
    if output:
        sys.stdout.write(_printable(output) + ("" if output.endswith("\n") else "\n"))
    if shown["output"] and not shown["output_complete"]:
        print_error("some of the output is missing: the connection ended before all of it was sent")


def _printable(text: str) -> str:
    """What a device says moves no cursor."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


def _sentence(name: str, made: Command) -> str:
    why = made.text or made.code
    return f"{name}: {_words(made)}: {made.state.value}{f' ({why})' if why else ''}"


def _words(made: Command) -> str:
    if made.verb == "run":
        return " ".join(["run", made.args["s"], *made.args["a"]])
    return made.verb


# Looking


def watch(
    device: Name,
    every: Annotated[int, typer.Option(min=1, max=60, help="Seconds between two samples.")] = 2,
    seconds: Annotated[int, typer.Option(help="End after so many; 0: when Ctrl-C is pressed.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print each sample as a line of JSON.")] = False,
) -> None:
    """Look at a device live: peers, memory, traffic by cause, uplinks, drops. The device sends this only meanwhile.

    \b
    edgehub watch cam-3
    edgehub watch cam-3 --every 5 --json
    """
    until = time.monotonic() + seconds if seconds else None
    with open_store() as store:
        with store.read() as tx:
            found = actions.find_device(tx, device)
            before = commands.telemetry(tx, found.id)
        if not found.online:
            print_error(f"{found.name} is offline: it shows when it is back. Ctrl-C ends this")
        try:
            _follow(store, found, every, until, before, as_json=as_json)
        except KeyboardInterrupt:
            sys.stderr.write("\n")
        finally:
            with doing() as do:
                commanding.unwatch(do, found)


def _follow(
    store: Database, device: Device, every: int, until: float | None, last: dict[str, Any] | None, *, as_json: bool
) -> None:
    with closing(_Screen(as_json=as_json)) as screen:
        while until is None or time.monotonic() < until:
            with doing() as do:
                watching = commanding.watch(do, device, every_s=every)
            again_at = time.monotonic() + 10.0
            while time.monotonic() < again_at and (until is None or time.monotonic() < until):
                with store.read() as tx:
                    sample, now = commands.telemetry(tx, device.id), tx.command(watching.id)
                if sample is not None and sample != last:
                    last = sample
                    screen.show(device, sample)
                if now is not None and (now.state is CommandState.REFUSED or now.code == "metered"):
                    raise HubError(f"{_sentence(device.name or device.id, now)}")
                time.sleep(LOOK_S)


class _Screen:
    """Samples one after the other: in place on a terminal, else as lines."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._live: Any = None
        if not as_json and sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(auto_refresh=False, screen=True)
            self._live.start()

    def show(self, device: Device, sample: dict[str, Any]) -> None:
        if self._as_json:
            sys.stdout.write(json.dumps(sample) + "\n")
            sys.stdout.flush()
        elif self._live is not None:
            from hub.live_view import render

            self._live.update(render(device.name or device.id, sample), refresh=True)
        else:
            from rich.console import Console

            from hub.live_view import render

            Console(file=sys.stdout, width=120, highlight=False).print(render(device.name or device.id, sample))
            sys.stdout.flush()

    def close(self) -> None:
        if self._live is not None:
            with suppress(OSError):
                self._live.stop()
