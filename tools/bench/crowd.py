"""One agent with 64 active peers, all of them agents: what it takes idle, with all of them, and under full load."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from edgeagent.engine import choice
from tests.netlab import Lab, LabError, Process
from tests.netlab.mesh import Device, Mesh
from tools.bench.agent import ping_ms
from tools.bench.figures import Figure, Note, Say, bench
from tools.bench.procfs import forget_peak, peak_rss_mib, rss_mib
from tools.bench.tunnel import parse_iperf

PEERS = 64
STREAMS = 16
SECONDS = 8
SETTLE_S = 3.0  # the agent gives back what its start needed
LOADED_MIB_MAX = 28.0
DATAPATH_MIB_MAX = 8.0  # more than an idle agent without the C library


@bench
def crowd(say: Say) -> Iterator[Figure | Note]:
    """Memory of one agent: idle by each engine; with 64 peers that all are spoken to; then under full load as well."""
    with Lab() as lab:
        net = lab.net("198.51.100.0/24")
        mesh = Mesh(lab, net)
        say("hub")
        mesh.start_hub()
        token = mesh.token("--uses", "0")
        say("an idle agent without the C library")
        with engine("pure"):
            pure = mesh.device("pure", net)
            pure.up(token)
        time.sleep(SETTLE_S)
        idle_pure = rss_mib(pure.pid())
        pure.host.run("edgeagent", "down")
        kind = choice.choose()[0]
        one = mesh.device("one", net)
        one.up(token)
        time.sleep(SETTLE_S)
        pid = one.pid()
        idle = rss_mib(pid)
        yield Figure(f"RSS, idle, {kind}", idle, "MiB", peer=("pure", idle_pure), better="less")
        others = []
        for number in range(PEERS):
            say(f"peer {number + 1} of {PEERS}")
            other = mesh.device(f"p{number}", net)
            other.up(token)
            ping_ms(other, one)
            others.append(other)
        if one.pid() != pid:
            raise LabError("the agent is another one now")
        peers = one.ask("status")["tables"]["peers"]["used"]
        yield Figure(
            f"RSS, {peers} peers, {kind}",
            rss_mib(pid),
            "MiB",
            peer=("idle", idle),
            at_most=LOADED_MIB_MAX,
            better="less",
        )
        say(f"{STREAMS} streams and pings from {PEERS}")
        forget_peak(pid)
        gbit_s = load(one, others)
        peak = peak_rss_mib(pid)
        yield Figure(
            f"RSS, peak, {peers} peers, full load, {kind}",
            peak,
            "MiB",
            peer=("idle", idle),
            at_most=LOADED_MIB_MAX,
            better="less",
        )
        yield Figure(
            "of that the data path", peak - idle_pure, "MiB", peer=("pure, idle", idle_pure), at_most=DATAPATH_MIB_MAX
        )
        usage = one.ask("status", "--memory")
        mapped = 0 if usage["pump"] is None else usage["pump"]["mapped_kib"] / 1024
        yield Note(
            "load", f"{gbit_s:.2f} Gbit/s in {STREAMS} streams, {PEERS} peers pinged; pump {mapped:.1f} MiB mapped"
        )
        full = {name: table["gave_way"] for name, table in usage["tables"].items() if table.get("gave_way")}
        yield Note("gave way", ", ".join(f"{name} {count}" for name, count in full.items()) or "nothing")


def load(one: Device, others: list[Device]) -> float:
    """Gbit/s of streams to `one` from some of the others, and away from it to as many more, while all ping it."""
    pings = [each.host.start("ping", "-q", "-n", "-i", "0.2", one.address, name="ping") for each in others]
    servers: list[Process] = []
    clients: list[tuple[Device, Process]] = []
    for number, each in enumerate(others[:STREAMS]):
        port = str(5301 + number)
        server = one.host.start("iperf3", "-s", "-1", "--forceflush", "-p", port, name=f"server-{number}")
        server.expect("listening")
        servers.append(server)
        words = ["iperf3", "-J", "-t", str(SECONDS), "-p", port, "-c", one.address]
        words += ["-R"] if number % 2 else []
        clients.append((each, each.host.start(*words, name=f"client-{number}")))
    total = 0.0
    for _, client in clients:
        client.reap(SECONDS + 30)  # with all that it said
        total += parse_iperf(client.text())[0]
    for process in (*servers, *pings):
        process.stop()
    return total / 1000


@contextmanager
def engine(name: str) -> Iterator[None]:
    before = os.environ.get(choice.ENGINE_VARIABLE)
    os.environ[choice.ENGINE_VARIABLE] = name
    try:
        yield
    finally:
        del os.environ[choice.ENGINE_VARIABLE]
        if before is not None:
            os.environ[choice.ENGINE_VARIABLE] = before
