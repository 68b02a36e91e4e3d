"""coturn as a relay of packets, measured as tests/relay/bench_relay.py measures ours: CPU seconds, memory, latency.

One side has an allocation with a bound channel (RFC 8656), the other is a plain UDP socket: what TURN needs to bring
two devices together. Its header is 4 bytes, ours 8.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from struct import Struct

PROGRAM = shutil.which("turnserver")
LOAD_S = 3.0
IDLE_CLIENTS = 1_000
ROUND_TRIPS = 2_000
READY_S = 10.0
AHEAD_MAX = 256  # packets under way, as many as buffers hold
TRAIN = 40
_CHANNEL = 0x4000
_COOKIE = 0x2112A442
_HEAD = Struct("!HHI12s")  # type, length, magic cookie, transaction
_ATTRIBUTE = Struct("!HH")
_XOR_ADDRESS = Struct("!HHI")
_CHANNEL_HEAD = Struct("!HH")
_ALLOCATE, _ALLOCATED, _BIND, _BOUND = 0x0003, 0x0103, 0x0009, 0x0109
_CHANNEL_NUMBER, _XOR_PEER, _XOR_RELAYED, _TRANSPORT = 0x000C, 0x0012, 0x0016, 0x0019
_SOL_UDP, _UDP_SEGMENT = 17, 103


class Coturn:
    """`turnserver` on loopback with one relay thread, while the block runs."""

    def __enter__(self) -> Coturn:
        assert PROGRAM is not None
        self._folder = tempfile.TemporaryDirectory()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        words = [PROGRAM, "-n", "--no-auth", "--no-tls", "--no-dtls", "--no-cli", "--no-tcp", "-m", "1"]
        words += ["-L", "127.0.0.1", "-E", "127.0.0.1", "-p", str(self.port), "--allow-loopback-peers"]
        words += ["--log-file", "stdout", "--simple-log", "--pidfile", str(Path(self._folder.name, "pid"))]
        words += ["--userdb", str(Path(self._folder.name, "db")), "--min-port", "20000", "--max-port", "65000"]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + READY_S
        while True:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(0.2)
                try:
                    self.allocate(sock)
                    return self
                except OSError:
                    if time.monotonic() > deadline:
                        raise

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._folder.cleanup()

    def allocate(self, sock: socket.socket) -> tuple[str, int]:
        """Connect `sock` to it; the address where others reach `sock` from now on."""
        sock.connect(("127.0.0.1", self.port))
        answer = _ask(sock, _ALLOCATE, _ALLOCATED, _attribute(_TRANSPORT, bytes((17, 0, 0, 0))))
        at = 20
        while at < len(answer):
            kind, length = _ATTRIBUTE.unpack_from(answer, at)
            if kind == _XOR_RELAYED:
                _, port, address = _XOR_ADDRESS.unpack_from(answer, at + 4)
                return socket.inet_ntoa((address ^ _COOKIE).to_bytes(4, "big")), port ^ (_COOKIE >> 16)
            at += 4 + (length + 3 & ~3)
        raise OSError("no address in the answer")

    def bind(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        """What `sock` sends on the channel goes to `peer`."""
        address = int.from_bytes(socket.inet_aton(peer[0]), "big")
        value = _XOR_ADDRESS.pack(1, peer[1] ^ (_COOKIE >> 16), address ^ _COOKIE)
        number = _attribute(_CHANNEL_NUMBER, _CHANNEL_HEAD.pack(_CHANNEL, 0))
        _ask(sock, _BIND, _BOUND, number + _attribute(_XOR_PEER, value))

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_kib(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))


def throughput(size: int) -> float:
    """Thousands of packets of that size per second of the server's CPU."""
    with (
        Coturn() as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as a,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as b,
    ):
        _join(server, a, b)
        packet = _CHANNEL_HEAD.pack(_CHANNEL, size) + bytes(size)
        # Sent as one, so that the load takes little; the server has no GRO and gets them one by one
        train, ancillary = packet * TRAIN, [(_SOL_UDP, _UDP_SEGMENT, Struct("=H").pack(len(packet)))]
        for sock in (a, b):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        b.setblocking(False)
        before, arrived, ahead = server.cpu_s(), 0, 0
        end = time.monotonic() + LOAD_S
        while time.monotonic() < end:
            if ahead < AHEAD_MAX:
                a.sendmsg([train], ancillary)
                ahead += TRAIN
            try:
                while True:
                    b.recv(65_535)
                    arrived += 1
                    ahead -= 1
            except BlockingIOError:
                if ahead >= AHEAD_MAX and not select.select([b], [], [], 0.01)[0]:
                    ahead = 0
        return arrived / (server.cpu_s() - before) / 1e3


def idle_mib() -> float:
    """Memory for a thousand clients that do nothing."""
    with Coturn() as server:
        before = server.rss_kib()
        socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(IDLE_CLIENTS)]
        for sock in socks:
            sock.settimeout(1.0)
            server.allocate(sock)
        grown = server.rss_kib() - before
        for sock in socks:
            sock.close()
    return grown / IDLE_CLIENTS * 1_000 / 1_024


def one_way_us() -> float:
    """From one socket through the server to another, a packet of 100 B at a time, median."""
    with (
        Coturn() as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as a,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as b,
    ):
        _join(server, a, b)
        packet = _CHANNEL_HEAD.pack(_CHANNEL, 100) + bytes(100)
        took = []
        for _ in range(ROUND_TRIPS):
            began = time.perf_counter()
            a.send(packet)
            b.recv(200)
            took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e6


def _join(server: Coturn, a: socket.socket, b: socket.socket) -> None:
    for sock in (a, b):
        sock.settimeout(1.0)
    b.bind(("127.0.0.1", 0))
    server.allocate(a)
    server.bind(a, b.getsockname())


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(kind, len(value)) + value


def _ask(sock: socket.socket, kind: int, wanted: int, attributes: bytes) -> bytes:
    transaction = os.urandom(12)
    sock.send(_HEAD.pack(kind, len(attributes), _COOKIE, transaction) + attributes)
    answer = sock.recv(2_048)
    if _HEAD.unpack_from(answer)[::3] != (wanted, transaction):
        raise OSError(f"{answer[:2].hex()} for an answer")
    return answer
