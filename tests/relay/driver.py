"""Real sockets around relay clients, and a real `edgerelay serve`: what the tests and the bench stand on."""

from __future__ import annotations

import datetime
import json
import os
import random
import selectors
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgeagent.proto.keys import to_base64
from edgeagent.proto.relay_client import RelayClient
from edgeagent.proto.relay_events import Carrier, CloseStream, OpenStream, RelayEvent
from edgeagent.proto.relay_http import ResponseReader, connect_request, upgrade_request
from tests.relay import kit

ROOT = Path(__file__).parents[2]
DEADLINE_S = 20.0


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """A throwaway certificate for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "relay.test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    chain, private = folder / "cert.pem", folder / "key.pem"
    chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return chain, private


class RelayProcess:
    """`edgerelay serve` on loopback, on ports that the kernel chose."""

    def __init__(
        self, folder: Path, *arguments: str, relay: str = kit.RELAY, private: bytes = kit.RELAY_PRIVATE
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.certificate, key = write_certificate(folder)
        secret = folder / "relay.key"
        secret.touch(0o600)
        secret.write_text(to_base64(private))
        self.log = folder / "log"
        command = [sys.executable, "-m", "relay.cli", "serve", "--json", "--id", relay, "--region", kit.REGION]
        if "--listen" not in arguments:
            command += ["--listen", "127.0.0.1:0"]
        if "--udp" not in arguments:
            command += ["--udp", "127.0.0.1:0"]
        command += ["--metrics", "127.0.0.1:0"]
        command += ["--cert", str(self.certificate), "--key", str(key), "--relay-key", str(secret)]
        command += ["--network-key", kit.NETWORK_KEY.hex(), *arguments]
        if "--second-port" not in arguments:
            command += ["--second-port", "no"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, cwd=ROOT)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.close()
            raise AssertionError(f"no relay: {self.log.read_text()}")
        self.ports: dict[str, Any] = json.loads(line)

    def __enter__(self) -> RelayProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def metrics(self) -> str:
        return self.get_in("metrics", "/metrics")[1]

    def get_in(self, port: str, path: str) -> tuple[int, str]:
        """Asked again when the doorway was full: everybody here comes from one address."""
        end = time.monotonic() + DEADLINE_S
        while True:
            try:
                return self.get(port, path)
            except ConnectionError:
                assert time.monotonic() < end
                time.sleep(0.05)

    def get(self, port: str, path: str, headers: str = "") -> tuple[int, str]:
        """Status and text of a plain or TLS request."""
        with socket.create_connection(("127.0.0.1", self.ports[port]), DEADLINE_S) as plain:
            try:
                sock = _client_tls().wrap_socket(plain) if port == "tls" else plain
            except ssl.SSLEOFError:
                raise ConnectionError("closed without a handshake") from None
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: relay\r\n{headers}\r\n".encode())
            answer = b""
            with suppress(ConnectionResetError):  # closed with more of ours unread: what it said came before
                while chunk := sock.recv(65_536):
                    answer += chunk
            sock.close()
        if not answer:
            raise ConnectionError("closed without an answer")
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), head.decode() + "\n" + body.decode()

    def rss_kib(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Driver:
    """One client on real sockets; `proxy` is an HTTP proxy that the stream goes through."""

    def __init__(
        self,
        relay: RelayProcess,
        number: int,
        *carriers: Carrier,
        proxy: int | None = None,
        interval_s: int = 25,
        pass_object: bytes | None = None,
        private: bytes | None = None,
    ) -> None:
        self.number = number
        self.key = kit.public_key(number)
        self._ports = relay.ports
        self._proxy = proxy
        ago = int(time.time()) - kit.WALL_S
        self.client = RelayClient(
            crypto=kit.CRYPTO,
            entropy=os.urandom,
            jitter=random.random,
            relay=str(relay.ports["relay"]),
            relay_key=kit.RELAY_KEY if private is None else kit.CRYPTO.x25519_base(private),
            private=kit.private_key(number),
            pass_object=pass_object or kit.make_pass(number, issued=ago, begins=ago - 9, ends=1 << 31, regions=["fra"]),
            carriers=carriers or (Carrier.DATAGRAM, Carrier.STREAM),
            idle_s=interval_s,
        )
        self.events: list[RelayEvent] = []
        self.packets: list[tuple[bytes, bytes]] = []
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.udp.bind(("127.0.0.1", 0))
        self.stream: ssl.SSLSocket | None = None
        self._out = b""

    def close(self) -> None:
        self.udp.close()
        self._close_stream()

    def start(self) -> None:
        self.client.start(time.monotonic())
        self.push()

    def rebind(self) -> None:
        """Another source port, as after a NAT has lost its mapping."""
        self.udp.close()
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.udp.bind(("127.0.0.1", 0))

    def send(self, key: bytes, *packets: bytes) -> None:
        self.client.send(time.monotonic(), key, list(packets))
        self.push()

    def socks(self) -> list[socket.socket]:
        return [self.udp] if self.stream is None else [self.udp, self.stream]

    def pull(self) -> None:
        """Read what is there."""
        now = time.monotonic()
        batch: list[tuple[bytes, int]] = []
        while len(batch) < 256:
            try:
                batch.append((self.udp.recv(65_535), 0))
            except BlockingIOError:
                break
        if batch:
            self.client.handle_datagrams(now, batch)
        while self.stream is not None:
            try:
                data = self.stream.recv(16_384)
            except (ssl.SSLWantReadError, BlockingIOError):
                break
            except OSError:
                data = b""
            if not data:
                self._close_stream()
                self.client.stream_closed(now)
                break
            self.client.handle_stream(now, data)
        if (due := self.client.poll_timeout()) is not None and now >= due:
            self.client.handle_timeout(now)
        self.push()

    def push(self) -> None:
        """Do what the client wants done."""
        for event in self.client.drain_events():
            self.events.append(event)
            if isinstance(event, OpenStream):
                self._open_stream()
            elif isinstance(event, CloseStream):
                self._close_stream()
        for datagram, _ in self.client.drain_datagrams():
            self.udp.sendto(datagram, ("127.0.0.1", self._ports["udp"]))
        self._out += self.client.drain_stream()
        while self._out and self.stream is not None:
            try:
                self._out = self._out[self.stream.send(self._out) :]
            except (ssl.SSLWantWriteError, BlockingIOError):
                break
            except OSError:
                self._close_stream()
                self.client.stream_closed(time.monotonic())
                return
        if self._out:
            self.client.stream_blocked()
        else:
            self.client.stream_writable()
        self.packets += [(key, packet) for key, packet, _ in self.client.drain_packets()]

    def _open_stream(self) -> None:
        """Connecting blocks here: this is a test."""
        try:
            plain = socket.create_connection(("127.0.0.1", self._proxy or self._ports["tls"]), DEADLINE_S)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._proxy is not None:
                plain.sendall(connect_request("127.0.0.1", self._ports["tls"]))
                assert _read_response(plain) == (200, b"")
            stream = _client_tls().wrap_socket(plain)
            stream.sendall(upgrade_request("relay.test"))
            status, rest = _read_response(stream)
        except OSError:
            self.client.stream_closed(time.monotonic())
            return
        assert status == 101
        stream.setblocking(False)
        self.stream = stream
        self.client.stream_opened(time.monotonic())
        self.client.handle_stream(time.monotonic(), rest)

    def _close_stream(self) -> None:
        self._out = b""
        if self.stream is not None:
            self.stream.close()
            self.stream = None


def pump(drivers: list[Driver], until: Callable[[], bool], seconds: float = DEADLINE_S) -> None:
    """Drive all until `until` holds; AssertionError when it does not in time."""
    end = time.monotonic() + seconds
    while not until():
        left = end - time.monotonic()
        assert left > 0, [(driver.number, driver.client.carrier, driver.events) for driver in drivers]
        turn(drivers, left)


def turn(drivers: list[Driver], most_s: float) -> None:
    """Wait until something is there or due, and see to it."""
    with selectors.DefaultSelector() as selector:
        for driver in drivers:
            for sock in driver.socks():
                selector.register(sock, selectors.EVENT_READ)
        dues = [due for driver in drivers if (due := driver.client.poll_timeout()) is not None]
        selector.select(max(0.0, min([most_s, 0.5, *(due - time.monotonic() for due in dues)])))
    for driver in drivers:
        driver.pull()


@contextmanager
def driving(*drivers: Driver) -> Iterator[list[Driver]]:
    """Started, up, and closed at the end."""
    try:
        for driver in drivers:
            driver.start()
        pump(list(drivers), lambda: all(driver.client.alive for driver in drivers))
        yield list(drivers)
    finally:
        for driver in drivers:
            driver.close()


def _client_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _read_response(sock: socket.socket) -> tuple[int, bytes]:
    reader = ResponseReader()
    while True:
        data = sock.recv(4_096)
        if not data:
            raise OSError("closed")
        response = reader.feed(data)
        if response is not None:
            return response.status, response.rest
