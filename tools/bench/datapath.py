"""TCP through a WireGuard tunnel between two namespaces: `edge-wireguard` and wireguard-go by turns.

The peer is the wireguard-go on the PATH; Debian's is of 2022, before its offloads. WIREGUARD_GO=/path/to/another
measures against a newer one.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.netlab import Host, Lab, Process, until
from tools.bench.figures import Figure, bench

ROUNDS = 3
SECONDS = 4
MTU = 1420
PEER = os.environ.get("WIREGUARD_GO", "wireguard-go")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Tunnel:
    """A tunnel between two hosts by one implementation, called as `wg-quick` calls it but in the foreground."""

    def __init__(self, name: str, command: tuple[str, ...], ifname: str, number: int, hosts: tuple[Host, Host]) -> None:
        self.name = name
        self.hosts = hosts
        self.addresses = tuple(f"10.77.{number}.{side}" for side in (1, 2))
        self.processes: list[Process] = []
        keys = [(private := host.sh("wg genkey").strip(), _public(host, private)) for host in hosts]
        for side, host in enumerate(hosts):
            self.processes.append(host.start(*command, ifname, name=ifname, env={"LOG_LEVEL": "error"}))
            socket = host.directory / "run/wireguard" / f"{ifname}.sock"
            until(socket.exists, 10, f"{name} in {host.name}")
            other = 1 - side
            port = str(51820 + number)
            host.run("wg", "set", ifname, "listen-port", port, "private-key", "/dev/stdin", input=keys[side][0])
            endpoint = f"{hosts[other].address}:{port}"
            allowed = f"{self.addresses[other]}/32"
            host.run("wg", "set", ifname, "peer", keys[other][1], "endpoint", endpoint, "allowed-ips", allowed)
            host.ip(f"addr add {self.addresses[side]}/24 dev {ifname}", f"link set {ifname} mtu {MTU} up")

    def measure(self) -> tuple[float, float]:
        """One iperf3 run of one stream: Mbit/s received, and CPU seconds of both ends' tunnel per GB."""
        sender, receiver = self.hosts
        server = receiver.start(
            "iperf3", "-s", "-1", "--forceflush", "-B", self.addresses[1], name=f"iperf3-{self.name}"
        )
        server.expect("listening")
        before = self._cpu_s()
        text = sender.sh(f"iperf3 -J -t {SECONDS} -c {self.addresses[1]}", timeout_s=SECONDS + 20)
        used_s = self._cpu_s() - before
        server.wait()
        received = json.loads(text)["end"]["sum_received"]
        return received["bits_per_second"] / 1e6, used_s / (received["bytes"] / 1e9)

    def round_trip_ms(self) -> float:
        text = self.hosts[0].sh(f"ping -n -q -i 0.01 -c 200 {self.addresses[1]}")
        return float(text.rpartition("=")[2].split("/")[1])

    def rss_mib(self) -> float:
        status = Path("/proc", str(self.processes[0].pid), "status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024

    def _cpu_s(self) -> float:
        ticks = 0
        for process in self.processes:
            fields = Path("/proc", str(process.pid), "stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])  # proc(5): utime, stime
        return ticks / TICKS_PER_S


@bench
def datapath(say: Callable[[str], None]) -> Iterator[Figure]:
    """Throughput, CPU, round trip and memory of the `pure` engine beside wireguard-go's."""
    with Lab() as lab:
        net = lab.net("198.51.100.0/24")
        hosts = (lab.host("left", net), lab.host("right", net))
        ours = Tunnel("edge-wireguard", ("edge-wireguard", "-f"), "edge0", 1, hosts)
        theirs = Tunnel(Path(PEER).name, (PEER, "-f"), "go0", 2, hosts)
        for tunnel in (ours, theirs):
            until(lambda tunnel=tunnel: hosts[0].ping(tunnel.addresses[1]), 15, f"a first ping by {tunnel.name}")  # type: ignore[misc]
        runs: dict[str, list[tuple[float, float]]] = {ours.name: [], theirs.name: []}
        for number in range(ROUNDS):
            for tunnel in (ours, theirs):
                say(f"{tunnel.name}, run {number + 1} of {ROUNDS}")
                runs[tunnel.name].append(tunnel.measure())
        say("round trips")
        trips = {tunnel.name: tunnel.round_trip_ms() for tunnel in (ours, theirs)}
        rss = {tunnel.name: tunnel.rss_mib() for tunnel in (ours, theirs)}
        for index, (name, unit) in enumerate((("TCP, one stream", "Mbit/s"), ("CPU, both ends", "s/GB"))):
            of = {key: statistics.median(run[index] for run in listed) for key, listed in runs.items()}
            yield Figure(name, of[ours.name], unit, peer=(theirs.name, of[theirs.name]))
        yield Figure("round trip, idle", trips[ours.name], "ms", peer=(theirs.name, trips[theirs.name]))
        yield Figure("RSS after the load", rss[ours.name], "MiB", peer=(theirs.name, rss[theirs.name]))


def _public(host: Host, private: str) -> str:
    return host.run("wg", "pubkey", input=private).stdout.strip()
