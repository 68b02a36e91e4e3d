"""A tunnel between two hosts of the lab by one implementation, and what can be measured of it.

All are started, configured and measured alike, by the commands that a user would type.
"""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress

from tests.netlab import Host, LabError, Process, until
from tools.bench import blast, procfs
from tools.bench.peers import FAST_LIBRARY, OURS, Contender
from tools.bench.rounds import percentile

MTU = 1420
TX_QUEUE_PACKETS = 5_000
READY_S = 15
PING_EVERY_S = 0.01
LOST_MS = 1_000.0  # what an echo that never came counts as
WARM_UP_S = 0.3

Gauges = dict[str, float | None]


class Tunnel:
    """Both ends. `number` (1 to 250) makes its addresses and ports."""

    def __init__(self, contender: Contender, number: int, hosts: tuple[Host, Host]) -> None:
        self.contender = contender
        self.hosts = hosts
        self.addresses = (f"10.77.{number}.1", f"10.77.{number}.2")
        self.ifname = f"b-{contender.key}"
        self.processes = [start(contender, host, self.ifname) for host in hosts]
        keys = [(private := host.sh("wg genkey").strip(), public_key(host, private)) for host in hosts]
        port = str(51820 + number)
        for side, host in enumerate(hosts):
            other = 1 - side
            configure(host, self.ifname, keys[side][0], port)
            allowed = f"{self.addresses[other]}/32"
            endpoint = f"{hosts[other].address}:{port}"
            host.run("wg", "set", self.ifname, "peer", keys[other][1], "endpoint", endpoint, "allowed-ips", allowed)
            bring_up(host, self.ifname, f"{self.addresses[side]}/24")
        until(lambda: hosts[0].ping(self.addresses[1]), READY_S, f"a first ping by {contender.name}")
        self._range = blast.Range(*hosts, self.addresses[1], self.cpu_s)

    def stop(self) -> None:
        self._range.close()
        for process in self.processes:
            process.stop()

    def engine(self) -> str | None:
        """For one of ours, the engine that really runs at both ends; None for others."""
        if self.contender.key not in OURS:
            return None
        fast = [procfs.has_mapped(process.pid, FAST_LIBRARY) for process in self.processes]
        return "fast" if all(fast) else "pure" if not any(fast) else "one of each"

    def cpu_s(self) -> float:
        return procfs.cpu_s(*(process.pid for process in self.processes))

    def rss_mib(self) -> float:
        return max(procfs.rss_mib(process.pid) for process in self.processes)

    def peak_rss_mib(self) -> float:
        return max(procfs.peak_rss_mib(process.pid) for process in self.processes)

    def forget_peak(self) -> None:
        for process in self.processes:
            procfs.forget_peak(process.pid)

    def tcp(self, seconds: int, streams: int = 1, *, reverse: bool = False) -> tuple[float, float]:
        """One run of iperf3: Mbit/s received, and CPU seconds of both ends per GB."""
        server = self._serve()
        before = self.cpu_s()
        more = " -R" if reverse else ""
        words = f"iperf3 -J -t {seconds} -P {streams}{more} -c {self.addresses[1]}"
        text = self.hosts[0].sh(words, timeout_s=seconds + 20)
        used_s = self.cpu_s() - before
        server.wait()
        mbits, received = parse_iperf(text)
        return mbits, used_s / (received / 1e9)

    def round_trips(self, seconds: int, *, loaded: bool) -> tuple[float, float]:
        """Median and 99th percentile in ms, of a hundred echoes a second, while one TCP stream fills it or nothing."""
        server = client = None
        if loaded:
            server = self._serve()
            words = ("iperf3", "-t", str(seconds + 2), "-c", self.addresses[1])
            client = self.hosts[0].start(*words, name=f"client-{self.contender.key}")
            time.sleep(1.0)  # slow start is another matter
        count = int(seconds / PING_EVERY_S)
        text = (
            self.hosts[0]
            .run(
                "ping", "-n", f"-i{PING_EVERY_S}", f"-c{count}", self.addresses[1], timeout_s=seconds + 30, check=False
            )
            .stdout
        )
        for process in (client, server):
            if process is not None:
                process.wait(20)
        trips = parse_ping(text, count)
        return percentile(trips, 50), percentile(trips, 99)

    def udp(self, packet_bytes: int, start_pps: float, seconds: float) -> blast.Probe | None:
        """The best rate that loses less than one per cent."""
        return blast.highest(lambda pps: self._range.probe(packet_bytes, pps, seconds), start_pps)

    def _serve(self) -> Process:
        name = f"iperf3-{self.contender.key}"
        server = self.hosts[1].start("iperf3", "-s", "-1", "--forceflush", "-B", self.addresses[1], name=name)
        server.expect("listening")
        return server


def start(contender: Contender, host: Host, ifname: str) -> Process:
    """The process of one end, when its configuration socket is there."""
    process = host.start(*contender.command, ifname, name=ifname, env={"LOG_LEVEL": "error", **contender.env})
    socket = host.directory / "run/wireguard" / f"{ifname}.sock"
    try:
        until(lambda: socket.exists() or not process.running, READY_S, f"{contender.name} in {host.name}")
        if not process.running:
            raise LabError(f"{contender.name} ended with {process.wait()}")
    except LabError as error:
        raise LabError(f"{error}:\n{process.tail()}") from None
    return process


def configure(host: Host, ifname: str, private: str, port: str) -> None:
    host.run("wg", "set", ifname, "listen-port", port, "private-key", "/dev/stdin", input=private)


def bring_up(host: Host, ifname: str, address: str) -> None:
    host.ip(f"addr add {address} dev {ifname}", f"link set {ifname} mtu {MTU} txqueuelen {TX_QUEUE_PACKETS} up")


def public_key(host: Host, private: str) -> str:
    return host.run("wg", "pubkey", input=private).stdout.strip()


def segment_before_wire(hosts: tuple[Host, ...], wanted: bool) -> None:
    """Whether the kernel cuts UDP trains (UDP_SEGMENT, udp(7)) before the wire, as it must for most NICs."""
    for host in hosts:
        host.run("ethtool", "-K", host.ports[0].ifname, "tx-udp-segmentation", "off" if wanted else "on")


def parse_iperf(text: str) -> tuple[float, int]:
    """Mbit/s and bytes received, of `iperf3 -J`. Raises LabError with what it says went wrong."""
    with suppress(ValueError, KeyError, TypeError):
        received = json.loads(text)["end"]["sum_received"]
        if received["bytes"] > 0:
            return received["bits_per_second"] / 1e6, received["bytes"]
    raise LabError(f"iperf3 measured nothing: {text.strip()[-300:]}")


def parse_ping(text: str, count: int) -> list[float]:
    """Round trips in ms of `count` echoes; one without an answer is LOST_MS."""
    trips = [float(found) for found in re.findall(r"time=([\d.]+) ms", text)][:count]
    return trips + [LOST_MS] * (count - len(trips))
