"""The version that runs here: what the hub wants is fetched and tried, and a slot on trial is committed or given up.

Which slot is started is the launcher's to say (slots.py); what is believed of a file is TUF's (proto/tuf.py). This
brings the two together with the connection, the budget and the flash, and holds the gate that a slot on trial has to
pass: the hub was heard on this start's connection, a peer's handshake came where there was a peer before, and memory
stays below its ceiling, all of it for HOLD_S. Loaded when a version is wanted, or by an agent on trial.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from edgeagent import bytecode, ceiling, slots, zipped
from edgeagent.context import jitter
from edgeagent.io import durable
from edgeagent.io.child import Child
from edgeagent.io.keystore import StateFile
from edgeagent.proto.causes import Carried, Direction
from edgeagent.proto.codec import decode, encode
from edgeagent.proto.icmp import checksum
from edgeagent.proto.ledger import Cause
from edgeagent.proto.refusals import ControlError
from edgeagent.proto.updatestate import UpdateState
from edgeagent.proto.updating import StoreRefused, Updating
from edgeagent.slotwriter import NoSpace, SlotWriter
from edgeagent.version import VERSION

if TYPE_CHECKING:
    from edgeagent.context import Context
    from edgeagent.io.mqtt import MqttLink
    from edgeagent.membership import Membership
    from edgeagent.proto.tuf import Target

log = logging.getLogger("edgeagent")
HOLD_S = 15.0  # for which a slot on trial has to be in order
LOOK_S = 5.0  # between two looks whether it is
REPEAT_S = 30.0  # between two attempts to commit where the disk refuses
COMPILE_S = 900.0  # that making byte code may take on the slowest board; it is nice
COMPILE_SAYS_MAX = 4_096  # bytes
PEERS_MAX = 4  # of those that were up, one of which has to answer
PART_BYTES = {"small": 8_192, "normal": 16_384, "large": 32_768}
WIRE = 29 + 6  # TLS record and MQTT head of a message
IMAGE_ROOT = "/etc/edgeagent/root.json"
METADATA_BYTES_MAX = 131_072
ROLES = ("root", "timestamp", "snapshot", "targets")


class Updates:
    """Drive it: `follow_map`, `take_part`, `connection_changed`, `settle` after any input, `on_timeout` at
    `poll_timeout()`.

    `restart_wanted`: the agent is to end in order, and the launcher to be asked what is started now.
    """

    def __init__(self, now: float, context: Context, member: Membership, link: MqttLink) -> None:
        self._context = context
        self._member = member
        self._link = link
        self._directory = slots.directory_of(context.settings.state_dir)
        self._told: dict[str, Any] | None = None
        self.restart_wanted = False
        self.slot = os.environ.get(slots.SLOT_VARIABLE, slots.FACTORY)
        self._peers: list[bytes] = []  # addresses of some that were up when the version before this one ended
        self._healthy_since: float | None = None
        self._trial_ends: float | None = None
        self._look_at = now + LOOK_S
        self._compiling: Child | None = None
        self.machine = Updating(
            context.crypto,
            jitter,
            SlotStore(context, self._directory),
            running=VERSION,
            abi=context.facts.get("abi", ""),
            part_bytes=PART_BYTES[context.settings.memory_profile],
            wall_s=lambda at: context.wall.at(at) if context.wall.known else None,
            may_fetch=self._may_fetch,
        )
        self._load()
        self.machine.connection_changed(now, member.node.client.connected)
        self._look_at_choice(now)

    @property
    def on_trial(self) -> bool:
        return self._trial_ends is not None

    # Inputs

    def follow_map(self, now: float) -> None:
        if self._trial_ends is None:
            device_map = self._member.node.map
            self.machine.want(now, device_map.update, device_map.update_root)

    def take_part(self, now: float, body: dict[str, Any]) -> None:
        self._book(Direction.RECEIVED, len(body.get("d", b"")) + 300)
        self.machine.handle_part(now, body)

    def connection_changed(self, now: float, connected: bool) -> None:
        if not connected and self._link.unheard:
            self._told = None  # the hub may not have heard of it
        self.machine.connection_changed(now, connected)

    def settle(self, now: float) -> None:
        """After any input."""
        node, machine = self._member.node, self.machine
        if self._compiling is not None and self._compiling.ended:
            if self._compiling.code:
                log.warning("no byte code is kept: %s", self._compiling.output.decode(errors="replace").strip())
            self._compiling = None
        for ask in machine.drain_asks():
            self._book(Direction.SENT, node.tell(now, "fetch", ask))
        report = machine.report()
        if report is not None and report != self._told and node.client.connected:
            if self._told is None or report["s"] != self._told["s"]:
                log.info("version %s: %s %s", machine.version, machine.state.name.lower(), machine.why)
            node.tell(now, "report", {"up": report})
            self._told = report
            self._save()
        if machine.is_installed and not self.restart_wanted and not self._member.tries_settings:
            self._peers = [
                entry.record.addresses[0]
                for link in node.peering
                if link.is_live(now) and (entry := node.client.records.get(link.device)) is not None
            ][:PEERS_MAX]
            self._save()
            log.warning("version %s is in slot, and is tried now", machine.version)
            self.restart_wanted = True

    def poll_timeout(self) -> float | None:
        times = [self.machine.poll_timeout(), self._look_at if self._trial_ends is not None else None]
        if self._compiling is not None:
            times.append(self._compiling.poll_timeout())
        return min((at for at in times if at is not None), default=None)

    def on_timeout(self, now: float) -> None:
        due = self.machine.poll_timeout()
        if due is not None and due <= now:
            self.machine.handle_timeout(now)
        if self._trial_ends is not None and self._look_at <= now and not self.restart_wanted:
            self._look_at = now + LOOK_S
            self._judge_trial(now, self._trial_ends)
        if self._compiling is not None:
            self._compiling.on_timeout(now)

    # The trial

    def _look_at_choice(self, now: float) -> None:
        """What the launcher has left: a trial of ours, or the end of one."""
        try:
            choice = slots.read_choice(self._directory)
        except (slots.SlotError, OSError) as error:
            log.error("%s: %s", self._directory, error)
            return
        if choice is None:
            return
        if choice.trial and choice.trial == self.slot:
            self._trial_ends = now + choice.trial_s
            self.machine.settle_trial(UpdateState.TRIAL, choice.rollout, choice.version)
            log.warning("this is version %s on trial, for %d s at most", VERSION, choice.trial_s)
        elif choice.returned is not None:
            rollout, version, why = choice.returned
            if not any(row[:2] == (rollout, version) for row in self.machine.refused):
                log.error("version %s was tried and given up: %s", version, why)
            self.machine.settle_trial(UpdateState.RETURNED, rollout, version, why)
            self._save()

    def _judge_trial(self, now: float, ends: float) -> None:
        why = self._fault(now)
        if not why:
            self._healthy_since = self._healthy_since if self._healthy_since is not None else now
            if now - self._healthy_since >= HOLD_S:
                self._commit(now)
                return
        else:
            self._healthy_since = None
        if now >= ends:
            self._give_up(why or f"it was in order for less than {HOLD_S:.0f} s")

    def _fault(self, now: float) -> str:
        """Why this agent is not in order; "" where it is."""
        node = self._member.node
        if not (node.client.connected and node.client.time_is_fresh):
            return "the hub was not reached"
        if self._peers and not any(link.is_live(now) for link in node.peering):
            for address in self._peers:
                node.handle_packets(now, [_echo(node.map.addresses[0], address)])
            return f"none of {len(self._peers)} peers that were up before completed a handshake"
        limit = self._context.ceiling.kib
        taken = ceiling.process().get("rss_kib", 0)
        if self._context.ceiling.hits or (limit is not None and taken > limit):
            return f"memory: {taken} KiB of {limit}"
        return ""

    def _commit(self, now: float) -> None:
        try:
            choice = slots.read_choice(self._directory)
            if choice is None or choice.trial != self.slot:
                raise slots.SlotError("choice: it is about another trial")
            choice.commit()
            slots.write_choice(self._directory, choice)
        except (slots.SlotError, OSError) as error:
            log.error("the slot could not be committed: %s", error)
            self._look_at = now + REPEAT_S
            return
        signal.alarm(0)
        self._trial_ends = None
        log.warning("version %s is committed", VERSION)
        self.machine.settle_trial(UpdateState.COMMITTED, choice.rollout, choice.version)
        self._compile(now)
        self.follow_map(now)

    def _compile(self, now: float) -> None:
        """Its later starts are to compile nothing: what proved itself is worth the flash."""
        program = zipped.archive()
        if program is None or bytecode.path_of(program) != program:
            return
        words = [sys.executable, "-I", "-S", "-X", "no_debug_ranges", "-c", slots.COMPILE, program]
        try:
            self._compiling = Child(
                now, self._context.selector, words, {}, limit_s=COMPILE_S, output_max=COMPILE_SAYS_MAX
            )
        except OSError as error:
            log.warning("no byte code is kept: %s", error.strerror)

    def _give_up(self, why: str) -> None:
        log.error("version %s is given up: %s", VERSION, why)
        with suppress(slots.SlotError, OSError):  # then the launcher counts it out
            choice = slots.read_choice(self._directory)
            if choice is not None and choice.trial == self.slot:
                choice.give_up(why)
                slots.write_choice(self._directory, choice)
        self.restart_wanted = True

    # Inner

    def _may_fetch(self, now: float) -> str:
        if self._member.control_policy().defer_bulk:
            return "the budget of a metered uplink is nearly used up"
        return ""

    def _book(self, direction: Direction, size: int) -> None:
        if size:
            if self._link.told is None:
                self._link.told = Carried()
            self._link.told.book(direction, Cause.UPDATE, size + WIRE)

    def _load(self) -> None:
        saved = self._context.load_or_none(StateFile.UPDATE)
        if saved is None:
            return
        try:
            found = decode(saved, max_bytes=StateFile.UPDATE.bytes_max)
            pin = found["pin"]
            self.machine.root_pin = None if pin is None else (int(pin[0]), bytes(pin[1]))
            self.machine.refused = [(int(r), str(v), int(s), str(w)) for r, v, s, w in found["no"]]
            self._peers = [bytes(address) for address in found["pe"]]
        except (ControlError, KeyError, TypeError, ValueError) as error:
            self._context.damaged_files += 1
            log.warning("%s: %s; going on without it", self._context.keystore.path(StateFile.UPDATE), error)

    def _save(self) -> None:
        machine = self.machine
        pin = None if machine.root_pin is None else list(machine.root_pin)
        body = {"pin": pin, "no": [list(row) for row in machine.refused], "pe": self._peers}
        self._context.save(StateFile.UPDATE, encode(body))


def _echo(source: bytes, target: bytes) -> bytes:
    """An ICMP echo request that has a peer shake hands (RFC 792); its answer is nobody's."""
    message = bytes((8, 0, 0, 0)) + b"trial" + bytes(7)
    message = message[:2] + checksum(message).to_bytes(2, "big") + message[4:]
    head = bytes((0x45, 0, 0, 20 + len(message), 0, 0, 0, 0, 64, 1, 0, 0)) + source + target
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + message


class SlotStore:
    """Metadata in files beside the agent's state, the target in the slot that does not run."""

    def __init__(self, context: Context, directory: str) -> None:
        self._writer = SlotWriter(directory)
        self._metadata = f"{context.settings.state_dir}/updates"
        self._trial_s = context.settings.trial
        self._last: dict[str, bytes] = {}

    def kept(self) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for role in ROLES:
            paths = [f"{self._metadata}/{role}.json"] + ([IMAGE_ROOT] if role == "root" else [])
            for path in paths:
                with suppress(OSError), open(path, "rb") as file:
                    found[role] = file.read(METADATA_BYTES_MAX)
                    break
        self._last = dict(found)
        return found

    def keep(self, believed: dict[str, bytes]) -> None:
        try:
            durable.make_directory(self._metadata)
            for role, data in believed.items():
                if self._last.get(role) != data:
                    durable.replace(f"{self._metadata}/{role}.json", data)
                    self._last[role] = data
        except OSError as error:
            raise StoreRefused(f"{self._metadata}: {error.strerror}", wait=True) from None

    def begin(self, target: Target) -> int:
        try:
            return self._writer.begin(target)
        except NoSpace as error:
            raise StoreRefused(str(error), wait=True) from None
        except OSError as error:
            raise StoreRefused(f"{error.filename or 'disk'}: {error.strerror}", wait=True) from None

    def append(self, data: bytes) -> None:
        try:
            self._writer.append(data)
        except OSError as error:
            raise StoreRefused(f"slot {self._writer.slot}: {error.strerror}", wait=True) from None

    def start_over(self) -> None:
        with suppress(OSError):
            self._writer.start_over()

    def is_right(self, target: Target) -> bool:
        return self._writer.is_right(target)

    def install(self, target: Target, version: str, rollout: int) -> None:
        try:
            self._writer.finish(target, version, rollout, self._trial_s)
        except slots.SlotError as error:
            self._writer.forget()
            raise StoreRefused(str(error)) from None
        except OSError as error:
            raise StoreRefused(f"slot {self._writer.slot}: {error.strerror}", wait=True) from None
