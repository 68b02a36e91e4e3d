"""A hub under load: thousands of devices that joined and stay, ask and move; then hub and broker are killed.

Devices are those of tools.load: real enrolment, real sessions over TLS, in one process on the same two cores.
EDGEMESH_BENCH_HUB_DEVICES and EDGEMESH_BENCH_HUB_S say how many, and how long they are watched.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from edgeagent.proto.control_client import Answer
from edgeagent.proto.node_events import MapChanged, NodeEvent, Resolved
from hub.io.mosquitto import find_broker
from tests.hub.rig import Rig
from tools.bench.figures import Figure, bench
from tools.load.fleet import Fleet
from tools.load.session import Session

DEVICES = int(os.environ.get("EDGEMESH_BENCH_HUB_DEVICES", "2000"))
HELD_S = float(os.environ.get("EDGEMESH_BENCH_HUB_S", "600"))
JOIN_TIMEOUT_S = 900.0
ASKS_PER_S, ASKING_S = 100, 20
ASK_MS_MAX = 50.0
LATE_MS, ANSWERED_S = (
    5_000.0,
    60.0,
)  # late is not lost: a device asks again after 4 s
ROAMS, ROAM_EACH_S, WATCHERS = 20, 3.0, 10
ROAM_BYTES_MAX = 600
TAGGED, POLICY_MS_MAX = 500, 2_000.0
CPU_TICK_MS = 1.0  # 20 ms, of which the kernel tells 10, by the number of moves
RSS_MIB_MAX = 256.0
BACK_S_MAX = 60.0
LOOK_S = 5.0
NO_PEER = "no other hub is installed here"


@bench
def hub(say: Callable[[str], None]) -> Iterator[Figure]:
    """Real sessions of real devices: joins, questions, moves, ten minutes watched, and everybody back after a crash."""
    with tempfile.TemporaryDirectory(prefix="edgemesh-hub-") as folder:
        rig = Rig(Path(folder, "hub"))
        fleet: Fleet | None = None
        try:
            rig.start()
            tagged = min(TAGGED, DEVICES // 2)
            cams = rig.run("token", "create", "--uses", "0", "--tag", "tag:cam").strip()
            fleet = Fleet((cams, tagged), (rig.run("token", "create", "--uses", "0").strip(), DEVICES - tagged))
            began = time.monotonic()
            fleet.join_all(JOIN_TIMEOUT_S, say)
            yield Figure(f"join, {DEVICES:,} devices", DEVICES / (time.monotonic() - began), "devices/s", peer=NO_PEER)
            say(f"{ASKS_PER_S} questions a second")
            took_ms, unanswered = asks(fleet, random.Random(1))
            asked_ms = sorted(took_ms)
            number = f"questions of {ASKS_PER_S * ASKING_S:,}"
            yield Figure(f"{number} never answered", unanswered, "", peer=NO_PEER, at_most=0)
            late = sum(ms > LATE_MS for ms in asked_ms)
            yield Figure(f"{number} answered after {LATE_MS / 1000:g} s", late, "", peer=NO_PEER, at_most=0)
            yield Figure("ask → answer, median", statistics.median(asked_ms), "ms", peer=NO_PEER)
            p99 = asked_ms[int(len(asked_ms) * 0.99)]
            yield Figure(f"ask → answer, p99 at {ASKS_PER_S}/s", p99, "ms", peer=NO_PEER, at_most=ASK_MS_MAX)
            say("devices move")
            idle_ms, moving_ms, watcher_bytes = roams(fleet, rig)
            yield Figure(
                f"hub CPU in {ROAM_EACH_S:g} s with a move",
                moving_ms,
                "ms",
                peer=("without", idle_ms),
                at_most=idle_ms + CPU_TICK_MS,
            )
            yield Figure(
                "a device moves: bytes to each watcher", watcher_bytes, "B", peer=NO_PEER, at_most=ROAM_BYTES_MAX
            )
            say("a policy changes")
            changed_ms, others = policy(fleet, rig, tagged)
            yield Figure(
                f"policy set → {tagged} maps at their devices, p99",
                changed_ms,
                "ms",
                peer=NO_PEER,
                at_most=POLICY_MS_MAX,
            )
            yield Figure("maps of devices that it does not concern", others, "", peer=NO_PEER, at_most=0)
            yield from held(fleet, rig, say)
            yield from crash(fleet, rig, say)
        finally:
            if fleet is not None:
                fleet.close()
            rig.end()


def asks(fleet: Fleet, chance: random.Random) -> tuple[list[float], int]:
    """(ms from each question to its answer, questions without one for a minute); the pairs have not met before."""
    asked: dict[tuple[str, str], float] = {}
    took: list[float] = []

    def answered(session: Session, now: float, event: NodeEvent) -> None:
        if isinstance(event, Resolved) and event.record is not None:
            began = asked.pop((session.device_id, event.record.name), None)
            if began is not None:
                took.append((now - began) * 1000)

    fleet.on_event = answered
    began = time.monotonic()
    for number in range(ASKS_PER_S * ASKING_S):
        fleet.run(max(0.0, began + number / ASKS_PER_S - time.monotonic()))
        asker, subject = chance.sample(fleet.sessions, 2)
        now = time.monotonic()
        if asker.lookup(now, ("h", subject.host)) is Answer.PENDING:
            asked.setdefault((asker.device_id, subject.host), now)
            fleet.settle(now, asker)
    fleet.run(ANSWERED_S, until=lambda: not asked)
    return took, len(asked)


def roams(fleet: Fleet, rig: Rig) -> tuple[float, float, float]:
    """(hub CPU ms in the time of a move without one, with one, bytes that the watcher who got most received a move)."""
    mover, *watchers = fleet.sessions[: WATCHERS + 1]
    assert mover.node is not None
    target = mover.node.map.addresses[0]
    for watcher in watchers:
        assert watcher.node is not None
        now = time.monotonic()
        watcher.node.handle_packets(now, [udp_packet(watcher.node.map.addresses[0], target)])
        fleet.settle(now, watcher)
    fleet.run(10.0)  # until all that it leads to is over
    assert rig.process is not None
    spent_s = []
    before: list[int] = []
    for moving in (False, True):
        before = [watcher.received for watcher in watchers]
        began_s = cpu_s(rig.process.pid)
        for number in range(ROAMS):
            if moving:
                now = time.monotonic()
                mover.roam(now, bytes((10, 98, number >> 8, number & 255)))
                fleet.settle(now, mover)
            fleet.run(ROAM_EACH_S)
        spent_s.append(cpu_s(rig.process.pid) - began_s)
    received = [watcher.received - was for watcher, was in zip(watchers, before, strict=True)]
    if min(received) == 0:
        raise RuntimeError("a watcher heard nothing of a device that moved")
    idle_s, busy_s = spent_s
    return idle_s * 1000 / ROAMS, busy_s * 1000 / ROAMS, max(received) / ROAMS


def policy(fleet: Fleet, rig: Rig, tagged: int) -> tuple[float, int]:
    """(p99 in ms from the command's end to the new map at each of the tagged devices, maps of others): of a change that
    concerns the tagged ones alone. A first policy, that concerns all, goes before."""
    came: dict[str, float] = {}

    def map_came(session: Session, now: float, event: NodeEvent) -> None:
        if isinstance(event, MapChanged) and event.map.policy is not None:
            came.setdefault(session.device_id, now)

    fleet.on_event = map_came
    text = """{"tagOwners": {"tag:cam": []},
        "acls": [{"action": "accept", "src": ["tag:cam"], "dst": ["tag:cam:%s"]}]}"""
    file = rig.state.directory / "policy.hujson"
    file.write_text(text % "443")
    rig.run("policy", "set", str(file))
    fleet.run(120.0, until=lambda: len(came) == len(fleet.sessions))
    if len(came) < len(fleet.sessions):
        raise TimeoutError(f"{len(came)} of {len(fleet.sessions)} devices got the first policy")
    fleet.run(5.0)
    came.clear()
    file.write_text(text % "8443")
    began = time.monotonic()
    rig.run("policy", "set", str(file))
    fleet.run(30.0, until=lambda: len(came) >= tagged)
    fleet.run(5.0)
    cams = [session.device_id for session in fleet.sessions[:tagged]]
    took = sorted((came[device] - began) * 1000 for device in cams if device in came)
    if len(took) < tagged:
        raise TimeoutError(f"{len(took)} of {tagged} devices got the change")
    return took[int(len(took) * 0.99)], len(came) - tagged


def held(fleet: Fleet, rig: Rig, say: Callable[[str], None]) -> Iterator[Figure]:
    assert rig.process is not None
    losses = sum(session.losses for session in fleet.sessions)
    rss, broker_rss = [], []
    end = time.monotonic() + HELD_S
    while (left := end - time.monotonic()) > 0:
        say(f"{len(fleet.up())} sessions, {left:.0f} s to go")
        fleet.run(min(LOOK_S, left))
        rss.append(rss_mib(rig.process.pid))
        broker_rss.append(rss_mib(rig.broker_pid()))
    lost = sum(session.losses for session in fleet.sessions) - losses
    yield Figure(f"sessions lost in {HELD_S:g} s", lost, "", peer=NO_PEER, at_most=0)
    yield Figure("hub, RSS, peak", max(rss), "MiB", peer=("broker", max(broker_rss)), at_most=RSS_MIB_MAX)


def crash(fleet: Fleet, rig: Rig, say: Callable[[str], None]) -> Iterator[Figure]:
    """Both are killed as by a power cut, and the hub is started again."""
    say("hub and broker killed")
    assert rig.process is not None
    broker = find_broker(rig.state.broker)
    assert broker is not None
    rig.kill()
    os.kill(broker[0], signal.SIGKILL)
    fleet.run(2.0)
    began = time.monotonic()
    rig.start()
    before = sum(session.connects for session in fleet.sessions)
    most = 0.0  # a turn of the load may take more than its second when thousands come back in it
    while len(fleet.up()) < len(fleet.sessions) and time.monotonic() - began < 3 * BACK_S_MAX:
        turned = time.monotonic()
        fleet.run(1.0)
        connects = sum(session.connects for session in fleet.sessions)
        most, before = max(most, (connects - before) / (time.monotonic() - turned)), connects
        say(f"{len(fleet.up())} of {len(fleet.sessions)} are back")
    yield Figure("hub started → all are back", time.monotonic() - began, "s", peer=NO_PEER, at_most=BACK_S_MAX)
    yield Figure("connections in the busiest second of that", most, "/s", peer=NO_PEER)


def udp_packet(source: bytes, target: bytes) -> bytes:
    """IPv4, UDP to the discard port, no payload; nobody looks at its checksum."""
    return bytes((0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0)) + source + target + bytes((0x9C, 0x40, 0, 9, 0, 8, 0, 0))


def cpu_s(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024
