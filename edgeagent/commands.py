"""Commands of the hub: begun one after the other, beside the agent's work, and answered.

```
cmd ──take──▶ held until the hub has told the time ──▶ Book ──▶ at once: rekey, reboot-agent, watch
                                                         └────▶ in turn: run, netcheck, collect-logs ──▶ output in parts
```

What a connection that ends takes along is said again: output by itself, all else when the hub asks again.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from typing import TYPE_CHECKING, Any

from edgeagent import scripts, zipped
from edgeagent.io.child import Child
from edgeagent.io.keystore import StateFile
from edgeagent.proto.causes import Carried, Direction
from edgeagent.proto.commands import (
    BOOK_MAX,
    DONE,
    FAILED,
    OPEN_MAX,
    OUTPUT_BYTES_MAX,
    REFUSED,
    RUNNING,
    UNWATCH,
    Book,
    Entry,
    answer,
    parts,
)
from edgeagent.proto.ledger import TLS_RECORD, Cause
from edgeagent.proto.refusals import ControlDrop, ControlError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeagent.context import Context
    from edgeagent.io.mqtt import MqttLink
    from edgeagent.membership import Membership
    from edgeagent.watch import Watch

log = logging.getLogger("edgeagent")
SMALL_OUTPUT_BYTES_MAX = 65_536  # on a device of 32 MiB
IN_FLIGHT_MAX = 4  # messages of output that the broker has not confirmed
PART_S = 0.125  # between two of them: what the hub takes from one device in the long run
TIME_WAIT_S, TIME_AGAIN_S = 10.0, 60.0  # for the hub to tell the time, before it is asked
METERED_LOG_LINES = 50  # that are told where a budget is nearly used up
NETCHECK_SLACK_S = 15.0  # its start and its end
MQTT_HEAD = 6  # of a short PUBLISH, without its topic
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Commands:
    """Drive it: `take` what came, `settle` after any input, `on_timeout` at `poll_timeout()`, `farewell` and `close`.

    `restart_wanted`: the agent is to end in order, and to be begun anew.
    """

    def __init__(self, now: float, context: Context, member: Membership, link: MqttLink) -> None:
        self._context = context
        self._member = member
        self._link = link
        self.restart_wanted = False
        self.book = Book(_allowed(context.settings.allow_commands))
        self._held: deque[dict[str, Any]] = deque(maxlen=2 * OPEN_MAX)
        self._ask_time_at: float | None = None
        self._queue: deque[Entry] = deque()
        self._job: Entry | None = None  # the one whose turn it is
        self._child: Child | None = None
        self._output: list[bytes] | None = None  # of the job, once it is over
        self._next_part = 0  # of those; beyond the last: all are written
        self._write_at = now
        self._watch: Watch | None = None
        self._rekeying: list[Entry] = []
        self._carried = link.told = Carried()
        saved = context.load_or_none(StateFile.COMMANDS)
        if saved is not None:
            try:
                self.book.load(saved)
            except ControlError as error:
                context.damaged_files += 1
                log.warning("%s: %s; going on without it", context.keystore.path(StateFile.COMMANDS), error)

    # Inputs

    def take(self, now: float, body: dict[str, Any]) -> None:
        """A `cmd` of the hub. It may have waited at the broker for long: judged when the hub has told the time."""
        self._held.append(body)
        if self._ask_time_at is None and not self._member.node.client.time_is_fresh:
            self._ask_time_at = now + TIME_WAIT_S

    def key_renewed(self, now: float) -> None:
        entries, self._rekeying = self._rekeying, []
        for entry in entries:
            self._move(now, entry, DONE)

    def connection_lost(self) -> None:
        """The hub says again what it has not heard the end of."""
        self._held.clear()
        self._ask_time_at = None
        self._next_part = 0

    def settle(self, now: float) -> None:
        while self._held and self._member.node.client.time_is_fresh:
            self._judge(now, self._held.popleft())
        if not self._held:
            self._ask_time_at = None
        if self._child is not None and self._child.ended:
            self._child_ended(now, self._child)
        while True:
            if self._output is not None:
                self._write_output(now)
            if self._job is not None or not self._queue:
                break
            self._begin(now, self._queue.popleft())

    def poll_timeout(self) -> float | None:
        times = [
            self._ask_time_at,
            self._child.poll_timeout() if self._child is not None else None,
            self._watch.next_at if self._watch is not None else None,
            self._write_at if self._may_write() else None,
        ]
        return min((at for at in times if at is not None), default=None)

    def on_timeout(self, now: float) -> None:
        if self._ask_time_at is not None and self._ask_time_at <= now:
            self._ask_time_at = now + TIME_AGAIN_S
            self._member.node.tell_facts(now)  # the answer to a birth is the time
        if self._child is not None:
            self._child.on_timeout(now)
        if self._watch is not None and self._watch.next_at <= now:
            self._look(now, self._watch)

    def farewell(self, now: float) -> None:
        """The agent ends: what is under way is ended with it, and the hub hears of it. `close` next."""
        if self._watch is not None:
            self._end_watch(now, FAILED, "interrupted")
        for entry in self.book.entries():
            if entry.is_open and not (entry.verb == "reboot-agent" and self.restart_wanted):
                self._move(now, entry, FAILED, "interrupted", "the agent ended before this did")
            elif entry is self._job and self._output is not None:
                self._say(now, entry, n=len(self._output))  # what is missing is missing

    def close(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None
        self._link.told = None

    # What came

    def _judge(self, now: float, body: dict[str, Any]) -> None:
        wall_s = self._context.wall.at(now)
        if body["v"] == UNWATCH:
            if self._watch is not None and self._watch.entry.id == body["id"]:
                self._end_watch(now, DONE)
            return
        entry, drop = self.book.take(wall_s, body)
        if drop is None and entry.verb == "run":
            drop = self._refuse_script(wall_s, entry)
        if drop is None and entry.is_durable and not self._context.save(StateFile.COMMANDS, self.book.export()):
            entry.settle(wall_s, REFUSED, "not-kept", "the disk refuses, and what is not kept could be done twice")
            drop = ControlDrop.COMMAND_REFUSED
        if drop is not None:
            self._member.node.client.count(drop)
            if drop is not ControlDrop.COMMAND_AGAIN:
                log.warning("%s by %s: %s (%s)", entry.verb, entry.by, entry.state, entry.code)
            if entry is not self._job or self._output is None:  # else its end is being said
                self._say(now, entry)
            return
        log.info("%s, asked for by %s", entry.verb, entry.by)
        at_once = _AT_ONCE.get(entry.verb)
        if at_once is not None:
            at_once(self, now, entry)
        else:
            self._queue.append(entry)
            if self._job is not None:
                self._say(now, entry)

    def _refuse_script(self, wall_s: float, entry: Entry) -> ControlDrop | None:
        try:
            scripts.find(self._context.settings.scripts, entry.args["s"])
        except scripts.ScriptError as error:
            entry.settle(wall_s, REFUSED, error.code, str(error))
            return ControlDrop.COMMAND_REFUSED
        return None

    def _say(self, now: float, entry: Entry, **more: Any) -> None:
        size = self._member.node.answer(now, answer(entry, **more))
        if size:
            self._carried.book(Direction.SENT, Cause.TELEMETRY, size + MQTT_HEAD + TLS_RECORD)

    def _move(self, now: float, entry: Entry, state: str, code: str = "", text: str = "") -> None:
        entry.settle(self._context.wall.at(now), state, code, text)
        self._say(now, entry)

    # What is done at once

    def _reboot(self, now: float, entry: Entry) -> None:
        self._move(now, entry, RUNNING)
        self.restart_wanted = True

    def _rekey(self, now: float, entry: Entry) -> None:
        self._move(now, entry, RUNNING)
        self._rekeying.append(entry)
        self._member.node.renew_key(now)

    def _begin_watch(self, now: float, entry: Entry) -> None:
        from edgeagent.watch import Watch

        if self._watch is not None:
            self._end_watch(now, DONE, "replaced")
        entry.settle(self._context.wall.at(now), RUNNING)
        self._watch = Watch(now, entry, self._context, self._member)
        self._look(now, self._watch)

    def _look(self, now: float, watch: Watch) -> None:
        if watch.is_over(now):
            self._end_watch(now, DONE)
        elif not self._member.node.client.connected:
            self._end_watch(now, FAILED, "no-connection")
        elif watch.costs_too_much(now):
            self._end_watch(now, FAILED, "metered", "the budget of a metered uplink is nearly used up")
        elif self._link.unacknowledged >= IN_FLIGHT_MAX:
            watch.skip(now)  # the line takes less than this
        else:
            watch.entry.at_s = int(self._context.wall.at(now))
            self._say(now, watch.entry, d=watch.sample(now))

    def _end_watch(self, now: float, state: str, code: str = "", text: str = "") -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            self._move(now, watch.entry, state, code, text)

    # What is done in turn

    def _begin(self, now: float, entry: Entry) -> None:
        if not entry.is_open:  # ended while it waited
            return
        self._job = entry
        try:
            _IN_TURN[entry.verb](self, now, entry)
        except scripts.ScriptError as error:
            self._job_over(now, FAILED, error.code, str(error))
        except OSError as error:
            self._job_over(now, FAILED, "not-begun", error.strerror or str(error))
        except MemoryError:
            self._job_over(now, FAILED, "no-memory")
            raise

    def _run(self, now: float, entry: Entry) -> None:
        path = scripts.find(self._context.settings.scripts, entry.args["s"])
        environ = {"PATH": _PATH, "HOME": "/", "LANG": "C.UTF-8", "EDGEAGENT_COMMAND": entry.id.hex()}
        self._spawn(now, entry, [path, *entry.args["a"]], environ, entry.args["t"])

    def _netcheck(self, now: float, entry: Entry) -> None:
        """In a process of its own, as anybody's: it asks us for the relays by the local API."""
        settings, limit_s = self._context.settings, entry.args["t"]
        words = [sys.executable, "-P", *zipped.command(), "netcheck", "--json", f"--timeout={limit_s}"]
        words += [f"--socket={settings.socket}", f"--state-dir={settings.state_dir}"]
        environ = {name: value for name, value in os.environ.items() if name.startswith(("LD_", "PYTHON"))}
        environ |= {"PATH": _PATH, "EDGEAGENT_PROXY": settings.proxy}
        self._spawn(now, entry, words, environ, limit_s + NETCHECK_SLACK_S)

    def _collect_logs(self, now: float, entry: Entry) -> None:
        count = entry.args["n"]
        if self._member.control_policy().defer_bulk:
            count = min(count, METERED_LOG_LINES)
        floor = getattr(logging, entry.args.get("lv", "debug").upper())
        levels = [name for number, name in logging._levelToName.items() if number >= floor]
        lines = [line for line in self._context.ring.lines() if line.partition(" ")[2].partition(" ")[0] in levels]
        output = "\n".join(lines[-count:]).encode()
        if len(output) > self._output_bytes_max:  # the newest of them, and whole lines
            output = output[-self._output_bytes_max :].partition(b"\n")[2]
        self._job_over(now, DONE, output=output)

    def _spawn(self, now: float, entry: Entry, words: list[str], environ: dict[str, str], limit_s: float) -> None:
        self._child = Child(
            now, self._context.selector, words, environ, limit_s=limit_s, output_max=self._output_bytes_max
        )
        self._move(now, entry, RUNNING)

    def _child_ended(self, now: float, child: Child) -> None:
        self._child = None
        if self._job is None or not self._job.is_open:
            return
        output = child.output
        if child.why:
            self._job_over(now, FAILED, child.why, "it was stopped for that", output=output)
        elif child.code == 0 or (self._job.verb == "netcheck" and output.startswith(b"{")):
            self._job_over(now, DONE, output=output)
        elif child.code < 0:
            self._job_over(now, FAILED, "killed", f"by signal {-child.code}", output=output)
        else:
            self._job_over(now, FAILED, "exit-status", f"it ended with exit status {child.code}", output=output)

    def _job_over(
        self, now: float, state: str, code: str = "", text: str = "", *, output: bytes | bytearray = b""
    ) -> None:
        assert self._job is not None
        self._next_part = 0
        self._write_at = now
        try:
            self._output = parts(output)
        except MemoryError:  # it is over all the same
            self._output = []
            state, code, text = FAILED, "no-memory", "its output does not fit below the agent's memory ceiling"
        self._job.settle(self._context.wall.at(now), state, code, text)

    @property
    def _output_bytes_max(self) -> int:
        small = self._context.settings.memory_profile == "small"
        return SMALL_OUTPUT_BYTES_MAX if small else OUTPUT_BYTES_MAX

    # Output

    def _may_write(self) -> bool:
        """A part of the output could go out now, but for its time."""
        return (
            self._output is not None
            and self._next_part <= max(0, len(self._output) - 1)
            and self._member.node.client.connected
            and self._link.unacknowledged < IN_FLIGHT_MAX
        )

    def _write_output(self, now: float) -> None:
        """Parts in order, the last with the end; the next job begins when the broker has them all."""
        assert self._output is not None and self._job is not None
        last = max(0, len(self._output) - 1)
        if self._may_write() and self._write_at <= now:
            number = self._next_part
            self._next_part += 1
            self._write_at = now + PART_S
            more: dict[str, Any] = {"no": number, "d": self._output[number]} if self._output else {}
            if number == last:
                self._say(now, self._job, n=len(self._output), **more)
            else:
                body = {"id": self._job.id, "st": RUNNING, "at": self._job.at_s, **more}
                size = self._member.node.answer(now, body)
                self._carried.book(Direction.SENT, Cause.TELEMETRY, size + MQTT_HEAD + TLS_RECORD)
        elif self._next_part > last and self._member.node.client.connected and not self._link.unacknowledged:
            self._job = self._output = None

    # For people

    def tables(self) -> dict[str, dict[str, int]]:
        return {
            "commands": {"used": len(self.book), "ceiling": BOOK_MAX},
            "commands_held": {"used": len(self._held), "ceiling": 2 * OPEN_MAX},
        }

    def describe(self) -> list[dict[str, Any]]:
        """The newest first."""
        return [
            {
                "id": entry.id.hex(),
                "verb": entry.verb,
                "by": entry.by,
                "at": entry.at_s,
                "expires": entry.expires_s,
                "state": entry.state,
                "code": entry.code,
                "text": entry.text,
            }
            for entry in reversed(self.book.entries())
        ]


def _allowed(setting: str) -> frozenset[str] | None:
    if setting == "all":
        return None
    return frozenset() if setting == "none" else frozenset(setting.split(","))


_AT_ONCE: dict[str, Callable[[Commands, float, Entry], None]] = {
    "reboot-agent": Commands._reboot,
    "rekey": Commands._rekey,
    "watch": Commands._begin_watch,
}
_IN_TURN: dict[str, Callable[[Commands, float, Entry], None]] = {
    "run": Commands._run,
    "netcheck": Commands._netcheck,
    "collect-logs": Commands._collect_logs,
}
