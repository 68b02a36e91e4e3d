"""A device's agent: its memory, how long until it is of use, and what an introduction costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from edgeagent.engine import choice
from tests.netlab import Lab, LabError
from tests.netlab.mesh import Device, Mesh
from tests.sim.device import SimDevice
from tests.sim.mesh import Mesh as SimMesh
from tests.test_footprint import footprint
from tools.bench.figures import Figure, bench
from tools.bench.imports import NAIVE

JOINS = 5
PING_TIMEOUT_S = 5
RSS_MIB_MAX = {"fast": 26.0, "pure": 24.5}
READY_S_MAX = 1.5
ONE_ROUND_TRIP = 1.1  # the rest is the time that hub and broker take in the simulator
NO_PEER = "no other mesh agent is installed here"


@bench
def agent(say: Callable[[str], None]) -> Iterator[Figure]:
    """Three peers, joined and talking; then devices that are new or restarted, timed to their first answered ping."""
    engine = choice.choose()[0]
    with Lab() as lab:
        net = lab.net("198.51.100.0/24")
        mesh = Mesh(lab, net)
        say("hub")
        mesh.start_hub()
        token = mesh.token("--uses", "0")
        say("four devices join and talk")
        old = [mesh.device(f"old-{number}", net) for number in range(4)]
        for device in old:
            device.up(token)
        meetings = [ping_ms(a, b) for index, a in enumerate(old) for b in old[index + 1 :]]
        rss = [rss_mib(device.pid()) for device in old]
        yield Figure(
            f"RSS, 3 peers, engine {engine}",
            max(rss),
            "MiB",
            peer=("naive imports alone", footprint(*NAIVE)[1]),
            at_most=RSS_MIB_MAX[engine],
        )
        new, again = [], []
        for number in range(JOINS):
            say(f"join {number + 1} of {JOINS}")
            device = mesh.device(f"new-{number}", net)
            new.append(ready_s(device, old[0], token))
            device.host.run("edgeagent", "down")
            again.append(ready_s(device, old[0], None))
        trip_ms = statistics.median(filter(None, (old[0].host.ping(mesh.hub.address) for _ in range(5))))
        yield Figure("up with a token → first ping", statistics.median(new), "s", peer=NO_PEER, at_most=READY_S_MAX)
        yield Figure("up again → first ping", statistics.median(again), "s", peer=NO_PEER, at_most=READY_S_MAX)
        yield Figure(
            "first ping to a stranger", statistics.median(meetings), "ms", peer=("plain ping to the hub", trip_ms)
        )
    say("introduction, in the simulator")
    asker, asked = introduction()
    alone = "virtual time; a lookup alone is one round trip"
    yield Figure("ask → asker has the record", asker, "round trips", peer=alone, at_most=ONE_ROUND_TRIP)
    yield Figure("ask → other side has the record", asked, "round trips", peer=alone, at_most=ONE_ROUND_TRIP)


def ready_s(device: Device, other: Device, token: str | None) -> float:
    """Seconds from typing `edgeagent up` to the answer of the first ping."""
    began = time.monotonic()
    device.up(token)
    ping_ms(device, other)
    return time.monotonic() - began


def ping_ms(a: Device, b: Device) -> float:
    trip_ms = a.host.ping(b.address, PING_TIMEOUT_S)
    if trip_ms is None:
        raise LabError(f"{a.name} got no answer from {b.name} within {PING_TIMEOUT_S} s")
    return trip_ms


def rss_mib(pid: int) -> float:
    lines = Path("/proc", str(pid), "smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Rss:")) / 1024


def introduction() -> tuple[float, float]:
    """From a packet to a stranger until each side has the other's record, in round trips device – broker – hub."""
    mesh = SimMesh(1)
    a, b = mesh.joined(2)
    mesh.world.run_for(10.0)
    round_trip_s = 4 * mesh.internet.conditions.delay_s
    mesh.traffic.send(a, b)
    began = mesh.world.now
    arrived: dict[str, float] = {}

    def both_know() -> bool:
        for who, whom in ((a, b), (b, a)):
            if knows(who, whom):
                arrived.setdefault(who.name, mesh.world.now)
        return len(arrived) == 2

    mesh.world.wait_for(both_know, 10.0, "both records")
    return (arrived[a.name] - began) / round_trip_s, (arrived[b.name] - began) / round_trip_s


def knows(who: SimDevice, whom: SimDevice) -> bool:
    return who.node is not None and who.node.client.records.get(whom.device_id) is not None
