"""Commands to devices: given, said again to a device that comes back, answered, and forgotten after a while.

Each function runs inside a write transaction, but for those that only read. Who may give which command is the caller's
to know: `permitted` are the verbs that the actor may use.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from edgeagent.proto.commands import (
    EXPIRED,
    FAILED,
    OPEN_MAX,
    OUTPUT_BYTES_MAX,
    RUNNING,
    UNWATCH,
    VERBS,
    WATCH_S_MAX,
)
from edgeagent.proto.control import ACTOR_BYTES_MAX, ANSWER_PARTS_MAX
from edgeagent.proto.refusals import ControlError
from edgeagent.proto.telemetry import read as read_sample
from hub.core.model import Command, CommandState, Device, DeviceState, HubDrop, HubError, Kind
from hub.core.scribe import Scribe
from hub.core.store import Tx

EXPIRES_S = 600  # unless somebody says otherwise
EXPIRES_MAX_S = 7 * 86_400
EXPIRES_MIN_S = 5
ENDS_WITHIN_S = 3_600  # an accepted command that says nothing for so long is given up
KEPT_MAX, KEPT_S = 100, 30 * 86_400  # of one device; how long
WATCHES_KEPT_MAX = 1  # of those: they say nothing that lasts
WATCH_AGAIN_S = 20  # a watch that has less left is followed by another

# What the hub itself says of a command; a device that answers later knows better.
UNANSWERED, LOST = "unanswered", "lost"


def create(
    scribe: Scribe,
    tx: Tx,
    device: Device,
    verb: str,
    args: Mapping[str, Any],
    wall_s: int,
    *,
    actor: str,
    permitted: Collection[str] = tuple(VERBS),
    expires_in_s: int = EXPIRES_S,
) -> Command:
    """Tell a device to do something. It waits for a device that is offline, until it expires. Raises HubError."""
    schema = VERBS.get(verb)
    if schema is None:
        raise HubError(f"command {verb}: there is none of this name. Known are {', '.join(VERBS)}")
    if verb not in permitted:
        raise HubError(f"command {verb}: {actor} may not give it. Ask somebody with another role")
    if not actor or not actor.isprintable() or len(actor.encode()) > ACTOR_BYTES_MAX:
        raise HubError(f"actor: printable text of 1 to {ACTOR_BYTES_MAX} bytes expected. Say who gives the command")
    if not EXPIRES_MIN_S <= expires_in_s <= EXPIRES_MAX_S:
        raise HubError(
            f"command {verb}: it can wait between {EXPIRES_MIN_S} s and {EXPIRES_MAX_S // 86_400} days, "
            f"not {expires_in_s} s. Choose another time"
        )
    try:
        checked = schema.check(dict(args), verb)
    except ControlError as error:
        raise HubError(f"command {verb}: {error}. `edgehub command --help` shows what each takes") from error
    _refuse_device(device)
    waiting = tx.open_commands(device.id)
    if len(waiting) >= OPEN_MAX:
        raise HubError(
            f"device {device.name}: {OPEN_MAX} commands wait for it. "
            f"Wait until some are over: `edgehub commands list {device.name}`"
        )
    command = Command(
        id=scribe.entropy(8).hex(),
        seq=tx.next_seq(),
        device=device.id,
        verb=verb,
        args=checked,
        actor=actor,
        created_s=wall_s,
        expires_s=wall_s + expires_in_s,
        due_s=wall_s + expires_in_s,
        changed_s=wall_s,
    )
    tx.add_command(command)
    say(scribe, tx, device, command, wall_s)
    tx.drop_commands(tx.commands_beyond(device.id, KEPT_MAX))
    tx.drop_commands(tx.commands_beyond(device.id, WATCHES_KEPT_MAX, verb="watch"))
    return command


def say(scribe: Scribe, tx: Tx, device: Device, command: Command, wall_s: int) -> None:
    """Put it out; in the place of an earlier one of the same that did not go out yet."""
    body = {
        "id": bytes.fromhex(command.id),
        "v": command.verb,
        "x": command.expires_s,
        "by": command.actor,
        "a": command.args,
    }
    scribe.command(tx, device, body, wall_s)


def say_again(scribe: Scribe, tx: Tx, device: Device, wall_s: int) -> None:
    """The device has connected: whatever is open may have been lost, by it, by the broker or by a restored hub."""
    for command in tx.open_commands(device.id):
        if command.state is not CommandState.QUEUED or command.expires_s > wall_s:
            say(scribe, tx, device, command, wall_s)


def watch(
    scribe: Scribe, tx: Tx, device: Device, wall_s: int, *, actor: str, seconds: int = WATCH_S_MAX, every_s: int = 1
) -> Command:
    """Somebody looks at the device: the watch that is under way, or a new one when that ends soon. Call it again while
    they look, at least every WATCH_S_MAX − WATCH_AGAIN_S seconds; `unwatch` when they have gone."""
    for command in tx.open_commands(device.id):
        if command.verb == "watch" and command.created_s + command.args["s"] - wall_s > WATCH_AGAIN_S:
            return command
    args = {"s": seconds, "ev": every_s}
    return create(scribe, tx, device, "watch", args, wall_s, actor=actor, expires_in_s=max(EXPIRES_MIN_S, seconds))


def unwatch(scribe: Scribe, tx: Tx, device: Device, wall_s: int, *, actor: str) -> None:
    """Nobody looks any more."""
    for command in tx.open_commands(device.id):
        if command.verb == "watch":
            body = {"id": bytes.fromhex(command.id), "v": UNWATCH, "x": command.expires_s, "by": actor, "a": {}}
            scribe.command(tx, device, body, wall_s)
            if command.state is CommandState.QUEUED:
                finish(tx, command, CommandState.DONE, wall_s)


def handle_answer(tx: Tx, device: Device, body: Mapping[str, Any], wall_s: int) -> HubDrop | None:
    """What a device says of a command; why it was dropped, if it was."""
    command = tx.command(body["id"].hex())
    if command is None or command.device != device.id:
        return HubDrop.UNKNOWN_COMMAND
    if command.finished_s and command.code not in (UNANSWERED, LOST):
        return HubDrop.COMMAND_OVER
    if "d" in body:
        drop = _take_data(tx, command, body, wall_s)
        if drop is not None:
            return drop
        if command.verb == "watch" and (command.state.value, body["st"]) == (RUNNING, RUNNING):
            return None  # nothing is new but the sample
    if "n" in body:
        command.parts = body["n"]
    state = CommandState(body["st"])
    command.code, command.text = body.get("c", ""), body.get("tx", "")
    if state.is_open:
        if command.state is CommandState.RUNNING:
            state = CommandState.RUNNING  # an answer of before it began
        command.state, command.finished_s = state, 0
        command.changed_s, command.due_s = wall_s, wall_s + ENDS_WITHIN_S
        tx.save_command(command)
    else:
        finish(tx, command, state, wall_s)
    return None


def finish(tx: Tx, command: Command, state: CommandState, wall_s: int) -> None:
    command.state = state
    command.finished_s = command.changed_s = wall_s
    command.due_s = 0
    tx.save_command(command)


def expire(tx: Tx, wall_s: int, limit: int) -> int:
    """Give up what is over, and forget what is old; how many of both."""
    due = tx.commands_due(wall_s, limit)
    for command in due:
        if command.state is CommandState.QUEUED:
            command.code, command.text = UNANSWERED, "the device was not heard from in time"
            finish(tx, command, CommandState(EXPIRED), wall_s)
        else:
            command.code, command.text = LOST, "the device did not say how it ended"
            finish(tx, command, CommandState(FAILED), wall_s)
    old = tx.commands_finished(wall_s - KEPT_S, limit)
    tx.drop_commands(old)
    return len(due) + len(old)


def output(tx: Tx, command: Command) -> tuple[bytes, bool]:
    """(what it has said so far, whether that is all that the device sent)."""
    found = tx.output(command.id)
    numbers = [number for number, _ in found]
    return b"".join(data for _, data in found), numbers == list(range(command.parts))


def describe(tx: Tx, command: Command, *, with_output: bool = False) -> dict[str, Any]:
    """As JSON could say it. `output` is text; that of netcheck is JSON."""
    found: dict[str, Any] = {
        "id": command.id,
        "device": command.device,
        "verb": command.verb,
        "args": command.args,
        "actor": command.actor,
        "created": command.created_s,
        "expires": command.expires_s,
        "state": command.state.value,
        "changed": command.changed_s,
        "finished": command.finished_s or None,
        "code": command.code,
        "text": command.text,
    }
    if with_output:
        data, complete = output(tx, command)
        found["output"] = data.decode("utf-8", "replace")
        found["output_complete"] = complete
    return found


def telemetry(tx: Tx, device_id: str) -> dict[str, Any] | None:
    """The last sample of a device that was watched: `received` (the hub's time), and what proto/telemetry.py reads."""
    found = tx.telemetry(device_id)
    if found is None:
        return None
    received_s, data = found
    return {"received": received_s, **read_sample(data)}


def _take_data(tx: Tx, command: Command, body: Mapping[str, Any], wall_s: int) -> HubDrop | None:
    if command.verb == "watch":
        try:
            read_sample(body["d"])
        except ControlError:
            return HubDrop.BAD_SAMPLE
        tx.save_telemetry(command.device, wall_s, body["d"])
        return None
    number = body.get("no", 0)
    if number >= ANSWER_PARTS_MAX or tx.output_bytes(command.id) + len(body["d"]) > 2 * OUTPUT_BYTES_MAX:
        return HubDrop.ANSWER_TOO_LONG
    tx.save_output(command.id, number, body["d"])
    return None


def _refuse_device(device: Device) -> None:
    if device.kind is not Kind.DEVICE:
        raise HubError(f"{device.name}: this is a relay, which takes no commands")
    if device.state is not DeviceState.ACTIVE:
        raise HubError(
            f"device {device.name or device.id}: it is {device.state.value}, and takes no commands. "
            "`edgehub devices list` shows who does"
        )
