"""What a relay costs: `python -m tests.relay.bench_relay`. A real `edgerelay serve`, loads from another process.

Per-core figures are packets by CPU seconds of the relay's process, system time included, so that a machine that shares
its cores with the load says the same as one that does not.
"""

from __future__ import annotations

import json
import os
import resource
import select
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from struct import Struct

from edgeagent.proto.relay_events import Carrier
from edgeagent.proto.relay_frames import DATA, DATAGRAM_HEAD, SEND, frame
from tests.relay import kit
from tests.relay.driver import Driver, RelayProcess, driving, pump

UDP, TLS = Carrier.DATAGRAM, Carrier.STREAM
OPEN_RATES = [
    "--member-mbit", "1000000", "--member-packets", "100000000",
    "--network-mbit", "1000000", "--network-packets", "100000000",
]  # fmt: skip
LOAD_S = 3.0
IDLE_MEMBERS = 1_000
ROUND_TRIPS = 2_000
_SOL_UDP, _UDP_SEGMENT, _UDP_GRO = 17, 103, 104
_U16 = Struct("=H")

Row = dict[str, float | str]


def measure() -> list[Row]:
    """All figures."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for number, (name, carrier, size, segments) in enumerate(
            (
                ("UDP, 1,360 B in trains of 40", UDP, 1_360, 40),
                ("UDP, 1,360 B one by one", UDP, 1_360, 1),
                ("UDP, 100 B in trains of 40", UDP, 100, 40),
                ("UDP, 100 B one by one", UDP, 100, 1),
                ("TLS, 1,360 B", TLS, 1_360, 0),
                ("TLS, 100 B", TLS, 100, 0),
            )
        ):
            with RelayProcess(Path(folder) / str(number), *OPEN_RATES) as relay:
                rows.append(_throughput(relay, name, carrier, size, segments))
        for carrier in (UDP, TLS):
            with RelayProcess(Path(folder) / f"rss-{carrier.value}", *OPEN_RATES) as relay:
                rows.append(_idle(relay, carrier))
            with RelayProcess(Path(folder) / f"rtt-{carrier.value}", *OPEN_RATES) as relay:
                rows.append(_latency(relay, carrier))
        return rows


def _throughput(relay: RelayProcess, name: str, carrier: Carrier, size: int, segments: int) -> Row:
    with driving(Driver(relay, 1, carrier), Driver(relay, 2, carrier)) as (a, b):
        a.send(b.key, b"bind")
        b.send(a.key, b"bind")
        pump([a, b], lambda: bool(a.packets and b.packets))
        a.send(b.key, b"bound")
        pump([a, b], lambda: len(b.packets) == 2)
        before = relay.cpu_s()
        if carrier is UDP:
            packets = _load_udp(relay, a, b, size, segments)
        else:
            packets = _load_tls(a, b, size)
        cpu_s = relay.cpu_s() - before
    return {
        "what": name,
        "Gbit/s": packets * size * 8 / LOAD_S / 1e9,
        "kpps": packets / LOAD_S / 1e3,
        "relay CPU %": 100 * cpu_s / LOAD_S,
        "Gbit/s per core": packets * size * 8 / cpu_s / 1e9,
        "kpps per core": packets / cpu_s / 1e3,
    }


def _load_udp(relay: RelayProcess, a: Driver, b: Driver, size: int, segments: int) -> int:
    """Packets that arrived."""
    carrier = a.client._datagram
    head = DATAGRAM_HEAD.pack(DATA, 0, carrier._bindings[b.key].number, carrier._session)
    train = (head + bytes(size)) * segments
    ancillary = [(_SOL_UDP, _UDP_SEGMENT, _U16.pack(len(head) + size))] if segments > 1 else []
    target = ("127.0.0.1", relay.ports["udp"])
    b.udp.setsockopt(_SOL_UDP, _UDP_GRO, 1)
    for sock in (a.udp, b.udp):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    arrived = 0
    end = time.monotonic() + LOAD_S
    ahead = 0
    while time.monotonic() < end:
        # As much under way as buffers hold, so that what is measured is forwarding and not dropping
        if ahead < 256:
            a.udp.sendmsg([train], ancillary, 0, target)
            ahead += segments
        try:
            while True:
                got = len(b.udp.recv(65_535)) // (size + 8)
                arrived += got
                ahead -= got
        except BlockingIOError:
            if ahead >= 256 and not select.select([b.udp], [], [], 0.01)[0]:
                ahead = 0
    return arrived


def _load_tls(a: Driver, b: Driver, size: int) -> int:
    assert a.stream is not None and b.stream is not None
    sender, receiver = a.stream, b.stream
    block = frame(SEND, b.key, bytes(size)) * max(1, 65_536 // (size + 35))
    arrived = 0
    stop = threading.Event()

    def send() -> None:
        try:
            while not stop.is_set():
                sender.sendall(block)
        except OSError:
            return

    for sock in (sender, receiver):
        sock.setblocking(True)
    receiver.settimeout(0.2)
    thread = threading.Thread(target=send)
    thread.start()
    end = time.monotonic() + LOAD_S
    while time.monotonic() < end:
        try:
            arrived += len(receiver.recv(65_536))
        except TimeoutError:
            continue
    stop.set()
    sender.shutdown(socket.SHUT_RDWR)
    thread.join(10)
    for sock in (sender, receiver):
        sock.setblocking(False)
    return arrived // (size + 35)


def _idle(relay: RelayProcess, carrier: Carrier) -> Row:
    warm = [Driver(relay, 50_000 + n, carrier) for n in range(8)]
    with driving(*warm):
        before_kib = relay.rss_kib()
        drivers: list[Driver] = []
        try:
            for n in range(IDLE_MEMBERS):
                driver = Driver(relay, n, carrier, interval_s=600)
                drivers.append(driver)
                driver.start()
                pump([driver], lambda driver=driver: driver.client.alive)  # type: ignore[misc]
            kib = (relay.rss_kib() - before_kib) / IDLE_MEMBERS
        finally:
            for driver in drivers:
                driver.close()
    return {
        "what": f"{IDLE_MEMBERS} idle members by {carrier.value}",
        "KiB each": kib,
        "MiB per 1,000": kib * 1_000 / 1_024,
        "MiB before": before_kib / 1_024,
    }


def _latency(relay: RelayProcess, carrier: Carrier) -> Row:
    """From one member to another, one way, both in this process."""
    took = []
    with driving(Driver(relay, 1, carrier), Driver(relay, 2, carrier)) as (a, b):
        for n in range(ROUND_TRIPS):
            began = time.perf_counter()
            a.send(b.key, bytes(100))
            while len(b.packets) <= n:
                b.pull()
            took.append(time.perf_counter() - began)
    direct = direct_latency_s()
    return {
        "what": f"one way by {carrier.value}, a packet at a time",
        "median µs": statistics.median(took) * 1e6,
        "p99 µs": sorted(took)[int(len(took) * 0.99)] * 1e6,
        "added median µs": (statistics.median(took) - direct) * 1e6,
    }


def direct_latency_s() -> float:
    """The same over two sockets without a relay, in seconds."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as a, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as b:
        b.bind(("127.0.0.1", 0))
        took = []
        for _ in range(ROUND_TRIPS):
            began = time.perf_counter()
            a.sendto(bytes(100), b.getsockname())
            b.recv(200)
            took.append(time.perf_counter() - began)
    return statistics.median(took)


def main() -> None:
    rows = measure()
    if "--json" in sys.argv[1:]:
        print(json.dumps(rows))
        return
    for row in rows:
        name, *figures = row.items()
        print(f"{name[1]!s:<42}" + "  ".join(f"{value:9.2f} {unit}" for unit, value in figures))
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, {kit.CRYPTO.name}")


if __name__ == "__main__":
    main()
