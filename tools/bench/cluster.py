"""Three hubs on one PostgreSQL server and three NATS servers: devices ask, while a hub and a server are killed.

All of it on one machine: that says what is lost (nothing may be) and how long it takes, not what a cluster bears.
EDGEMESH_BENCH_CLUSTER_DEVICES says how many devices.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

from edgeagent.proto.control_client import Answer
from edgeagent.proto.node_events import NodeEvent, Resolved
from tests.hub.natsnodes import NatsTogether
from tests.hub.postgres import PostgresServer
from tools.bench.figures import Figure, bench
from tools.bench.hub import NO_PEER, cpu_s, rss_mib
from tools.load.fleet import Fleet
from tools.load.session import Session

DEVICES = int(os.environ.get("EDGEMESH_BENCH_CLUSTER_DEVICES", "60"))
ASKS_PER_S, ASKING_S = 10, 20  # in all fewer than there are pairs: who knows the other asks nobody
JOIN_TIMEOUT_S, ANSWERED_S, BACK_S = 600.0, 120.0, 120.0


@bench
def cluster(say: Callable[[str], None]) -> Iterator[Figure]:
    """Real sessions of real devices at three NATS servers: questions while a hub, a server, and both are killed."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="edgemesh-cluster-"))
        server = stack.enter_context(closing(PostgresServer()))
        together = NatsTogether(Path(folder), server.url(server.database()))
        stack.callback(together.end)
        together.wait_ready()
        fleet = Fleet((together.nats.run("token", "create", "--uses", "0").strip(), DEVICES))
        stack.callback(fleet.close)
        began = time.monotonic()
        fleet.join_all(JOIN_TIMEOUT_S, say)
        yield Figure(f"join, {DEVICES} devices", DEVICES / (time.monotonic() - began), "devices/s", peer=NO_PEER)
        chance = random.Random(1)
        for what, kill in _kills(together).items():
            say(f"{ASKS_PER_S} questions a second, killed: {what}")
            took_ms, unanswered, gap_s, back_s = ask(fleet, chance, kill)
            asked = f"{ASKS_PER_S * ASKING_S} questions, killed: {what}"
            yield Figure(f"{asked}: never answered", unanswered, "", peer=NO_PEER, at_most=0)
            yield Figure(f"{asked}: median", statistics.median(took_ms), "ms", peer=NO_PEER)
            yield Figure(f"{asked}: p99", took_ms[int(len(took_ms) * 0.99)], "ms", peer=NO_PEER)
            yield Figure(f"{asked}: longest without any answer", gap_s, "s", peer=NO_PEER)
            yield Figure(f"{asked}: all sessions are back after", back_s, "s", peer=NO_PEER, at_most=BACK_S)
            together.bring_back()
            together.wait_ready()
        pids = [node.process.pid for node in together.nodes if node.process is not None]
        yield Figure("a node, RSS, the largest", max(map(rss_mib, pids)), "MiB", peer=NO_PEER)
        yield Figure("nodes, CPU since their starts", sum(map(cpu_s, pids)), "s", peer=NO_PEER)


def _kills(together: NatsTogether) -> dict[str, Callable[[], None]]:
    def both() -> None:
        together.kill_node(together.leaders_node())
        together.kill(together.leading())

    return {
        "nothing": lambda: None,
        "the hub that leads": lambda: together.kill(together.leading()),
        "the leader's node": lambda: together.kill_node(together.leaders_node()),
        "both": both,
    }


def ask(fleet: Fleet, chance: random.Random, kill: Callable[[], None]) -> tuple[list[float], int, float, float]:
    """(ms from each question to its answer, in order; questions without one; the longest time without any answer, s;
    the time from the kill until all sessions are up, s). Pairs that have met before ask nobody."""
    askers = {session.device_id: session for session in fleet.sessions}
    asked: dict[tuple[str, str], float] = {}
    took: list[float] = []
    last, gap_s = time.monotonic(), 0.0

    def answered(session: Session, now: float, event: NodeEvent) -> None:
        nonlocal last, gap_s
        if isinstance(event, Resolved) and event.record is not None:
            began = asked.pop((session.device_id, event.record.name), None)
            if began is not None:
                took.append((now - began) * 1000)
                gap_s, last = max(gap_s, now - last), now

    fleet.on_event = answered
    began = time.monotonic()
    killed_at = 0.0
    for number in range(ASKS_PER_S * ASKING_S):
        fleet.run(max(0.0, began + number / ASKS_PER_S - time.monotonic()))
        if number == ASKS_PER_S * ASKING_S // 3:
            kill()
            killed_at = time.monotonic()
        for _ in range(10):
            asker, subject = chance.sample(fleet.sessions, 2)
            now = time.monotonic()
            if (asker.device_id, subject.host) in asked:
                continue
            if asker.node is not None and asker.lookup(now, ("h", subject.host)) is Answer.PENDING:
                asked[asker.device_id, subject.host] = now
                fleet.settle(now, asker)
                break
    back_s = 0.0

    def lacking() -> list[tuple[str, str]]:
        """Without those who heard of the other because it asked for them."""
        return [pair for pair in asked if not known(askers[pair[0]], pair[1])]

    fleet.run(ANSWERED_S, until=lambda: not lacking())
    while len(fleet.up()) < len(fleet.sessions) and time.monotonic() - killed_at < BACK_S:
        fleet.run(0.1)
        back_s = time.monotonic() - killed_at
    return sorted(took), len(lacking()), gap_s, back_s


def known(asker: Session, host: str) -> bool:
    assert asker.node is not None
    return asker.node.client.is_known(time.monotonic(), ("h", host))
