"""The agent's side of commands around a real node, real children and a real state directory; time is the test's."""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeagent import config, crypto
from edgeagent.commands import METERED_LOG_LINES, TIME_AGAIN_S, TIME_WAIT_S, Commands
from edgeagent.context import Context
from edgeagent.io import logring
from edgeagent.io.keystore import Keystore, StateFile
from edgeagent.io.logring import LogRing
from edgeagent.proto.budget import POLICIES, UNMETERED, Level
from edgeagent.proto.causes import Direction
from edgeagent.proto.commands import Entry
from edgeagent.proto.errors import DropReason
from edgeagent.proto.ledger import Cause
from edgeagent.proto.node_events import Commanded, NodeKeyRenewed
from edgeagent.proto.policy import Slice
from edgeagent.proto.refusals import ControlDrop
from edgeagent.watch import Watch
from tests.control_kit import WALL_S
from tests.netlab import until
from tests.node_kit import World, opened

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="scripts belong to root")


class Link:
    """As much of an MQTT link as commands look at."""

    def __init__(self) -> None:
        self.unacknowledged = 0
        self.told: Any = None


class Rig:
    """One device of a small world, with commands around its node. It is its own member."""

    def __init__(self, directory: Path, **settings: str) -> None:
        self.directory = directory
        self.world = World()
        self.board = self.world.add(1, "a", online=False)
        self.node = self.board.node
        self.policy = UNMETERED
        self.link = Link()
        self.selector = selectors.DefaultSelector()
        self.keystore = Keystore(str(directory / "state"))
        self.keystore.open()
        self.ring = LogRing(512, None)
        self.log = logring.install(self.ring, 10)
        self.scripts = directory.resolve() / "scripts"
        given = {"state-dir": str(directory / "state"), "scripts": str(self.scripts), **settings}
        self.context = Context(
            self.world.now,
            settings=config.load(given, {}, "/dev/null"),
            crypto=crypto.load(),
            keystore=self.keystore,
            selector=self.selector,
            ring=self.ring,
        )
        self.context.wall = self.node.wall
        self.commands = self.make()
        self.next = 0

    def make(self) -> Commands:
        return Commands(self.world.now, self.context, self, self.link)  # type: ignore[arg-type]

    def control_policy(self) -> Any:
        return self.policy

    def restart(self) -> None:
        """The agent ends, as by a power cut, and is there again."""
        self.commands.close()
        self.commands = self.make()

    def close(self) -> None:
        self.commands.close()
        self.keystore.close()
        self.selector.close()

    # What the hub does

    def connect(self) -> None:
        self.world.connect(self.board)
        self.settle()

    def disconnect(self) -> None:
        self.world.disconnect(self.board)
        self.commands.connection_lost()

    def say(self, verb: str, number: int = 0, *, in_s: int = 600, **args: Any) -> bytes:
        """Returns the id; a new one unless told."""
        self.next += not number
        command = (number or self.next).to_bytes(8, "big")
        end_s = int(WALL_S + self.world.now) + in_s
        self.world.say(self.board, "cmd", {"id": command, "v": verb, "x": end_s, "by": "web:ann", "a": args})
        self.settle()
        return command

    # What the agent's loop does

    def settle(self) -> None:
        for event in self.board.events:
            if isinstance(event, Commanded):
                self.commands.take(self.world.now, event.body)
            elif isinstance(event, NodeKeyRenewed):
                self.commands.key_renewed(self.world.now)
        self.board.events.clear()
        self.commands.settle(self.world.now)
        self.world.crank()

    def later(self, seconds: float) -> None:
        """Time goes on, from one deadline of the commands to the next."""
        end = self.world.now + seconds
        for _ in range(2_000):
            due = self.commands.poll_timeout()
            if due is None or due > end:
                break
            self.world.now = max(self.world.now, due)
            self.commands.on_timeout(self.world.now)
            self.settle()
        self.world.run(max(0.0, end - self.world.now))
        self.settle()

    def children(self) -> bool:
        """A turn of the loop; whether none runs."""
        for key, _ in self.selector.select(0.02):
            key.data(self.world.now, key.fd)
        self.settle()
        return self.commands._child is None

    def answers(self, command: bytes | None = None) -> list[dict[str, Any]]:
        """What the device has said, taken out."""
        said = [p for p in self.board.publishes if p.topic.endswith("/u/answer")]
        self.board.publishes.clear()
        bodies = [opened(self.board, "answer", publish.payload).body for publish in said]
        return [body for body in bodies if command in (None, body["id"])]

    def states(self, command: bytes | None = None) -> list[tuple[str, str]]:
        return [(body["st"], body.get("c", "")) for body in self.answers(command)]

    def drops(self, reason: ControlDrop) -> int:
        return self.node.client.drops[reason]

    def script(self, name: str, text: str) -> None:
        self.scripts.mkdir(mode=0o755, exist_ok=True)
        (self.scripts / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.scripts / name).chmod(0o755)

    def run(self, name: str, *arguments: str, limit_s: int = 60) -> bytes:
        return self.say("run", s=name, a=list(arguments), t=limit_s)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    made.connect()
    yield made
    made.close()


# When it is begun


def test_a_command_waits_for_the_hubs_time_and_asks_for_it(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.world.hub_answers = False
    rig.connect()
    births = len(rig.board.births)
    command = rig.say("collect-logs", n=5)
    assert rig.answers() == []
    rig.later(TIME_WAIT_S + 1)
    assert len(rig.board.births) == births + 1
    rig.later(TIME_AGAIN_S + 1)
    assert len(rig.board.births) == births + 2 and rig.answers() == []
    rig.world.say(rig.board, "time", {})
    rig.settle()
    assert rig.states(command) == [("done", "")]
    rig.later(3 * TIME_AGAIN_S)
    assert len(rig.board.births) == births + 2
    rig.close()


def test_what_a_broker_held_back_does_not_run_on_a_device_without_a_clock(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.script("mark", f"echo x >{tmp_path}/mark")
    rig.world.hub_answers = False
    rig.connect()
    command = rig.run("mark")  # signed now, and valid for ten minutes
    rig.world.now += 86_400.0  # so much later the device hears of it; its uptime does not say so
    rig.node.wall._anchor_s -= 86_400.0
    rig.settle()
    rig.world.say(rig.board, "time", {})
    rig.settle()
    assert rig.states(command) == [("expired", "expired")]
    assert rig.drops(ControlDrop.COMMAND_EXPIRED) == 1 and not (tmp_path / "mark").exists()
    rig.close()


def test_each_connection_tells_the_time_anew(rig: Rig) -> None:
    rig.disconnect()
    rig.world.hub_answers = False
    rig.connect()
    rig.say("collect-logs", n=5)
    assert rig.answers() == []
    rig.world.say(rig.board, "time", {})
    rig.settle()
    assert rig.states() == [("done", "")]


def test_a_command_that_comes_again_is_answered_again_and_done_once(rig: Rig, tmp_path: Path) -> None:
    rig.script("mark", f"echo x >>{tmp_path}/mark; echo out")
    command = rig.run("mark")
    until(rig.children, 5, "the end of the script")
    rig.later(1)
    assert rig.states(command) == [("running", ""), ("done", "")]
    for _ in range(3):
        rig.say("run", 1, s="mark", a=[], t=60)
    assert rig.states(command) == 3 * [("done", "")]
    rig.restart()
    rig.say("run", 1, s="mark", a=[], t=60)
    assert rig.states(command) == [("failed", "interrupted")]
    assert (tmp_path / "mark").read_text() == "x\n"
    assert rig.drops(ControlDrop.COMMAND_AGAIN) == 4


def test_one_write_to_flash_for_one_command_and_none_for_what_changes_nothing(rig: Rig) -> None:
    rig.script("x", ":")
    before = rig.keystore.flash_writes
    rig.run("x")
    until(rig.children, 5, "the end of the script")
    rig.later(1)
    assert rig.keystore.flash_writes == before + 1
    for verb, args in (("collect-logs", {"n": 1}), ("nonsense", {}), ("run", {"s": "absent", "a": [], "t": 1})):
        rig.say(verb, **args)
    rig.later(1)
    assert rig.keystore.flash_writes == before + 1


def test_what_cannot_be_kept_is_not_begun(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.script("mark", f"echo x >{tmp_path}/mark")

    def full(file: StateFile, body: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rig.keystore, "save", full)
    command = rig.run("mark")
    assert rig.states(command) == [("refused", "not-kept")]
    assert rig.commands._child is None and not (tmp_path / "mark").exists()


def test_a_damaged_book_is_counted_and_gone_on_without(rig: Rig) -> None:
    rig.keystore.save(StateFile.COMMANDS, b"\x00 no book")
    damaged = rig.context.damaged_files
    rig.restart()
    assert rig.context.damaged_files == damaged + 1
    rig.say("collect-logs", n=1)
    assert rig.states() == [("done", "")]


# Output


def test_output_is_paced_and_said_again_after_a_lost_connection(rig: Rig) -> None:
    rig.script("talk", "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done")
    command = rig.run("talk")
    until(rig.children, 5, "the end of the script")
    rig.link.unacknowledged = 4  # the broker takes no more
    rig.later(1)
    early = rig.answers(command)
    assert early[0]["st"] == "running" and len(early) <= 2
    rig.disconnect()
    rig.link.unacknowledged = 0
    rig.later(5)
    rig.connect()
    rig.later(5)
    said = [body for body in rig.answers(command) if "no" in body]
    assert [body["no"] for body in said] == list(range(len(said))) and len(said) == 3
    assert [body["st"] for body in said] == ["running", "running", "done"] and said[-1]["n"] == 3
    assert b"".join(body["d"] for body in said) == b"".join(b"line %d\n" % i for i in range(2_000))
    assert rig.commands._job is None


def test_jobs_take_turns_and_each_says_that_it_waits(rig: Rig) -> None:
    rig.script("slow", "sleep 0.2; echo $1")
    first, second = rig.run("slow", "one"), rig.run("slow", "two")
    assert rig.states(second) == [("accepted", "")]
    third = rig.say("collect-logs", n=1)
    until(rig.children, 5, "the end of a script")
    rig.later(1)
    until(rig.children, 5, "the end of a script")
    rig.later(1)
    said = rig.answers()
    assert [body["id"] for body in said if body["st"] == "done"] == [first, second, third]
    assert [body.get("d") for body in said if body["st"] == "done"][:2] == [b"one\n", b"two\n"]


def test_a_small_device_holds_less_output(tmp_path: Path) -> None:
    rig = Rig(tmp_path, **{"memory-profile": "small"})
    rig.connect()
    rig.script("talk", "yes | head -c 100000")
    command = rig.run("talk")
    until(rig.children, 5, "the end of the script")
    rig.later(5)
    assert sum(len(body.get("d", b"")) for body in rig.answers(command)) == 65_536
    assert rig.commands.describe()[0]["code"] == "too-much-output"
    rig.close()


def test_what_is_sent_is_booked_as_telemetry(rig: Rig) -> None:
    rig.say("collect-logs", n=5)
    counts = rig.link.told.take(Direction.SENT)
    [size] = [count for count in counts if count]
    assert counts[Cause.TELEMETRY] == size > 200


def test_logs_by_number_and_level(rig: Rig) -> None:
    for number in range(200):
        rig.log.info("line %d", number)
        rig.log.warning("warning %d", number)
    rig.say("collect-logs", n=3, lv="warning")
    [body] = rig.answers()
    lines = body["d"].decode().splitlines()
    assert [line.partition("warning ")[2] for line in lines] == ["197", "198", "199"]
    rig.policy = POLICIES[Level.EMERGENCY]
    rig.later(1)
    rig.say("collect-logs", n=2_000, lv="info")
    [body] = rig.answers()
    assert len(body["d"].decode().splitlines()) == METERED_LOG_LINES


def test_a_full_ring_arrives_whole(rig: Rig) -> None:
    for number in range(600):
        rig.log.info("%d %s", number, "x" * 600)
    command = rig.say("collect-logs", n=2_000)
    rig.later(10)
    data = b"".join(body["d"] for body in rig.answers(command))
    lines = data.decode().splitlines()
    numbers = [int(line.split()[2]) for line in lines[:-1]]
    assert lines[-1].endswith("asked for by web:ann")
    assert 500 < len(numbers) < 512 and numbers == list(range(600 - len(numbers), 600))


# Scripts


def test_time_limit_and_what_was_said_until_then(rig: Rig) -> None:
    rig.script("hang", "echo begun; trap '' TERM; while :; do sleep 0.05; done")
    command = rig.run("hang", limit_s=5)
    deadline = time.monotonic() + 5
    while rig.commands._child is not None and b"begun" not in rig.commands._child.output:
        assert time.monotonic() < deadline
        rig.children()
    rig.later(10)
    until(rig.children, 5, "the end of the script")
    rig.later(1)
    [*_, last] = rig.answers(command)
    assert (last["st"], last["c"], last["d"]) == ("failed", "time-limit", b"begun\n")


def test_what_changes_between_judging_and_its_turn_is_judged_again(rig: Rig) -> None:
    rig.script("slow", "sleep 0.2")
    rig.script("victim", "echo should not run")
    rig.run("slow")
    second = rig.run("victim")
    (rig.scripts / "victim").chmod(0o777)
    until(rig.children, 5, "the end of the first")
    rig.later(1)
    assert rig.states(second) == [("accepted", ""), ("failed", "unsafe-script")]


def test_without_an_interpreter_it_fails_and_the_next_has_its_turn(rig: Rig) -> None:
    rig.script("x", ":")
    (rig.scripts / "x").write_text("echo no interpreter\n")
    first, second = rig.run("x"), rig.say("collect-logs", n=1)
    rig.later(1)
    said = rig.answers()
    assert [(body["id"], body["st"], body.get("c")) for body in said if body["st"] != "accepted"] == [
        (first, "failed", "not-begun"),
        (second, "done", None),
    ]


def test_the_end_of_the_agent_ends_what_it_runs_and_says_so(rig: Rig) -> None:
    rig.script("long", "sleep 60")
    command, waiting = rig.run("long"), rig.say("collect-logs", n=1)
    child = rig.commands._child
    assert child is not None
    rig.answers()
    rig.commands.farewell(rig.world.now)
    rig.world.crank()
    assert {body["id"]: body.get("c") for body in rig.answers()} == {command: "interrupted", waiting: "interrupted"}
    rig.commands.close()
    assert child.ended


# At once


def test_reboot_is_answered_before_and_after(rig: Rig) -> None:
    command = rig.say("reboot-agent")
    assert rig.states(command) == [("running", "")]
    wanted = rig.commands.restart_wanted
    assert wanted
    rig.commands.farewell(rig.world.now)
    rig.world.crank()
    assert rig.states(command) == []
    rig.restart()
    assert not rig.commands.restart_wanted
    rig.say("reboot-agent", 1)
    assert rig.states(command) == [("done", "")] and not rig.commands.restart_wanted


def test_rekey_is_done_when_the_key_is_in_use(rig: Rig) -> None:
    before = rig.node.identity.node_key
    command = rig.say("rekey")
    assert rig.states(command) == [("running", "")]
    assert rig.node.identity.node_key == before
    rig.later(11)
    assert rig.states(command) == [("done", "")]
    assert rig.node.identity.node_key != before and rig.node.identity.next_key is None


# Watching


@pytest.fixture
def watched(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Rig:
    def sample(watch: Watch, now: float) -> bytes:
        watch.skip(now)
        return b"sample"

    monkeypatch.setattr(Watch, "sample", sample)
    return rig


def test_a_watch_says_how_it_is_until_its_time_is_over(watched: Rig) -> None:
    command = watched.say("watch", s=10, ev=2)
    watched.later(60)
    said = watched.answers(command)
    assert [body["st"] for body in said] == 5 * ["running"] + ["done"]
    assert all(body["d"] == b"sample" and "no" not in body for body in said[:-1])
    watched.later(600)
    assert watched.answers() == []


def test_a_watch_is_taken_back_or_replaced(watched: Rig) -> None:
    first = watched.say("watch", s=60, ev=1)
    watched.later(3.5)
    watched.say("unwatch", 99)
    assert len(watched.answers(first)) == 4
    second = watched.say("watch", s=60, ev=1)
    assert watched.states(first) == [("done", "replaced")]
    watched.say("unwatch", 2)
    watched.later(60)
    assert watched.states(second) == [("done", "")]
    assert watched.commands._watch is None


def test_a_watch_costs_what_a_budget_allows(watched: Rig) -> None:
    watched.policy = POLICIES[Level.THRIFTY]
    command = watched.say("watch", s=20, ev=1)
    watched.later(9.5)
    assert len(watched.answers(command)) == 3  # every four seconds
    watched.policy = POLICIES[Level.EMERGENCY]
    watched.later(9)
    assert watched.states(command) == [("failed", "metered")]
    refused = watched.say("watch", s=20, ev=1)
    assert watched.states(refused) == [("failed", "metered")]


def test_a_watch_does_not_pile_up_and_ends_with_the_connection(watched: Rig) -> None:
    command = watched.say("watch", s=60, ev=1)
    watched.answers()
    watched.link.unacknowledged = 4
    watched.later(5)
    assert watched.answers() == []
    watched.link.unacknowledged = 0
    watched.later(2)
    assert len(watched.answers(command)) == 2
    watched.disconnect()
    watched.later(5)
    assert watched.commands._watch is None
    assert watched.commands.describe()[0]["code"] == "no-connection"


def test_a_sample_says_which_policy_is_in_force_and_what_came_of_it(rig: Rig) -> None:
    entry = Entry(bytes(8), "watch", "ada", WALL_S + 60, WALL_S, {"s": 10, "ev": 1})
    member: Any = SimpleNamespace(node=rig.node)
    context: Any = None  # of which a sample's other parts are
    watch = Watch(rig.world.now, entry, context, member)
    assert watch._policy() == {}
    rig.node.device.set_policy(rig.world.now, Slice({"v": 7, "u": "", "in": [], "out": []}, (), (), ()))
    firewall = rig.node.device.firewall
    assert firewall is not None
    firewall.admitted, firewall.opened = 3, 2
    rig.node.device.drops[DropReason.POLICY] += 5
    assert watch._policy() == {"po": 7, "pc": [3, 2, 0, 5, 0]}
