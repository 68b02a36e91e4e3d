"""`edgerelay` as a process: both carriers, a proxy, pages, drain, siblings, STUN by somebody else's client."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from edgeagent.proto import stun
from edgeagent.proto.keys import to_base64
from edgeagent.proto.relay_events import Carrier, RelayDown, RelayDraining
from tests.relay import kit
from tests.relay.driver import DEADLINE_S, ROOT, Driver, RelayProcess, driving, pump, turn, write_certificate

UDP, TLS = Carrier.DATAGRAM, Carrier.STREAM


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[RelayProcess]:
    with RelayProcess(tmp_path / "relay", "--http", "127.0.0.1:0") as started:
        yield started


def test_both_carriers_exchange(relay: RelayProcess) -> None:
    drivers = [Driver(relay, 1, TLS), Driver(relay, 2, TLS), Driver(relay, 3, UDP), Driver(relay, 4, UDP)]
    with driving(*drivers) as members:
        for source in members:
            for destination in members:
                if source is not destination:
                    source.send(destination.key, f"{source.number}>{destination.number}".encode())
        pump(members, lambda: all(len(member.packets) == 3 for member in members))
        for member in members:
            others = {
                (other.key, f"{other.number}>{member.number}".encode()) for other in members if other is not member
            }
            assert set(member.packets) == others
        text = relay.metrics()
        assert 'edgerelay_members{carrier="tls"} 2' in text and 'edgerelay_members{carrier="udp"} 2' in text


def test_bulk_arrives_in_order_and_whole(relay: RelayProcess) -> None:
    packets = [n.to_bytes(4, "big") * 300 for n in range(400)]
    with driving(Driver(relay, 1, TLS), Driver(relay, 2, UDP)) as (a, b):
        for at in range(0, len(packets), 20):
            a.send(b.key, *packets[at : at + 20])
            b.send(a.key, *packets[at : at + 20])
            pump([a, b], lambda most=at + 20: len(a.packets) == most and len(b.packets) == most)  # type: ignore[misc]
        assert [packet for _, packet in a.packets] == packets == [packet for _, packet in b.packets]


def test_udp_is_taken_when_both_work_and_a_changed_address_is_followed(relay: RelayProcess) -> None:
    with driving(Driver(relay, 1), Driver(relay, 2, UDP)) as (a, b):
        assert a.client.carrier is UDP
        a.send(b.key, b"x" * 100)
        pump([a, b], lambda: len(b.packets) == 1)
        a.rebind()
        began = time.monotonic()
        a.send(b.key, b"lost" * 20)  # it asks the relay's question; what follows the answer arrives
        pump([a, b], lambda: "udp" in relay.metrics() and a.client.alive)
        while len(b.packets) < 2:
            a.send(b.key, b"after" * 20)
            turn([a, b], 0.05)
            assert time.monotonic() - began < DEADLINE_S
        b.send(a.key, b"back")
        pump([a, b], lambda: bool(a.packets))
        assert 'reason="wrong-source"} 0' not in relay.metrics()


def test_through_an_http_proxy(relay: RelayProcess) -> None:
    with closing(Proxy()) as proxy, driving(Driver(relay, 1, TLS, proxy=proxy.port), Driver(relay, 2, UDP)) as (a, b):
        a.send(b.key, b"by proxy")
        b.send(a.key, b"and back")
        pump([a, b], lambda: bool(a.packets and b.packets))
        assert proxy.asked == [f"CONNECT 127.0.0.1:{relay.ports['tls']} HTTP/1.1"]


def test_no_udp_costs_a_moment(relay: RelayProcess) -> None:
    silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    silent.bind(("127.0.0.1", 0))
    with closing(silent):
        driver = Driver(relay, 1)
        driver._ports = {**relay.ports, "udp": silent.getsockname()[1]}
        with driving(driver) as (a,):
            assert a.client.carrier is TLS


def test_pages(relay: RelayProcess) -> None:
    assert relay.get("tls", "/")[0] == 200
    assert relay.get("tls", "/edgemesh/relay")[0] == 426
    assert relay.get("tls", "/metrics")[0] == 404
    assert relay.get("http", "/metrics")[0] == 404
    assert relay.get("http", "/healthz")[0] == 200
    status, text = relay.get("http", "/generate_204", "x-edgemesh-probe: abc123\r\n")
    assert status == 204 and "x-edgemesh-answer: answer abc123" in text
    assert relay.get("metrics", "/metrics")[0] == 200
    assert relay.get("http", "/nothing")[0] == 404


def test_status_and_the_other_commands(relay: RelayProcess, tmp_path: Path) -> None:
    with driving(Driver(relay, 1, UDP)):
        at = f"127.0.0.1:{relay.ports['metrics']}"
        status = json.loads(edgerelay("status", "--metrics", at, "--json").stdout)
        assert status["members"] == {"tls": 0, "udp": 1} and status["relay"] == kit.RELAY
        assert status["networks"][kit.NETWORK]["members"] == 1
        text = edgerelay("status", "--metrics", at).stdout
        assert "members   1 (0 tls, 1 udp)" in text
    assert edgerelay("status", "--metrics", "127.0.0.1:1", expect=3).stderr.startswith("edgerelay: no relay at")
    key = tmp_path / "k"
    public = edgerelay("keygen", str(key)).stdout.strip()
    assert edgerelay("keygen", str(key)).stdout.strip() == public and len(public) == 44
    assert key.stat().st_mode & 0o777 == 0o600
    assert "edgerelay" in edgerelay("version").stdout
    state = ["--state-dir", str(tmp_path / "state")]
    assert "join-file: missing. `edgehub relays invite" in edgerelay("serve", *state, expect=2).stderr
    assert "missing. Give it as --id" in edgerelay("serve", "--network-key", "0" * 64, *state, expect=2).stderr
    assert not (tmp_path / "state").exists()
    key.chmod(0o644)
    assert "chmod 600" in edgerelay("keygen", str(key), expect=2).stderr


def test_a_configuration_file(tmp_path: Path) -> None:
    file = tmp_path / "relay.toml"
    file.write_text("[limits]\nmembers = 1\n[classes.1]\nmbit = 5\n")
    with RelayProcess(tmp_path / "r", "--config", str(file)) as relay, driving(Driver(relay, 1, UDP)) as (a,):
        late = Driver(relay, 2, UDP)
        late.start()
        with closing(late):
            pump([a, late], lambda: 'reason="full"} 1' in relay.metrics())
    for text, said in (
        ("listen = 1.5", "listen: text or a whole number expected"),
        ("nonsense = 1", "nonsense: no such setting"),
        ('id = "a b"', "id: one DNS label"),
        ("[limits]\nmembers = 0", "limits.members: at least 1"),
        ("[classes.9]\nmbit = 1", "classes.9: a class from 1 to 7"),
        ("x", "not TOML"),
        (f'sibling = "fra-2=198.51.100.7:443={to_base64(bytes(32))}"', "sibling: ID=IP-ADDRESS:PORT=KEY"),
        (f'sibling = "fra-2=relay.example:443={to_base64(kit.RELAY_KEY)}"', "sibling: ID=IP-ADDRESS:PORT=KEY"),
    ):
        file.write_text(text)
        required = ["--region", "r", "--cert", "c", "--key", "k", "--relay-key", "k", "--network-key", "0" * 64]
        if not text.startswith("id"):
            required += ["--id", "r"]
        assert said in edgerelay("serve", "--config", str(file), *required, expect=2).stderr


def test_a_killed_relay_is_noticed(relay: RelayProcess) -> None:
    with driving(Driver(relay, 1, TLS), Driver(relay, 2)) as (a, b):
        assert b.client.carrier is UDP
        for member in (a, b):
            member.send(kit.public_key(9), b"somebody is sending")
        relay.process.kill()
        pump([a, b], lambda: any(isinstance(event, RelayDown) for event in a.events))
        pump([a, b], lambda: any(isinstance(event, RelayDown) for event in b.events))


def test_drain_tells_and_ends(relay: RelayProcess, tmp_path: Path) -> None:
    with driving(Driver(relay, 1, TLS), Driver(relay, 2, UDP)) as members:
        relay.process.send_signal(signal.SIGTERM)
        told = lambda: all(any(isinstance(event, RelayDraining) for event in m.events) for m in members)  # noqa: E731
        pump(members, told)
        assert relay.get("metrics", "/healthz")[0] == 503
        for member in members:
            member.client.stop(time.monotonic())
            member.push()
        assert relay.process.wait(DEADLINE_S) == 0
    assert "drained" in relay.log.read_text()


def test_one_hop_between_siblings(tmp_path: Path) -> None:
    other_private = bytes(range(100, 132))
    with socket.socket() as probe, socket.socket() as other:
        probe.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        one, two = probe.getsockname()[1], other.getsockname()[1]
    first_key, second_key = to_base64(kit.RELAY_KEY), to_base64(kit.CRYPTO.x25519_base(other_private))
    with (
        RelayProcess(
            tmp_path / "1", "--sibling", f"fra-2=127.0.0.1:{two}={second_key}", "--listen", f"127.0.0.1:{one}",
        ) as first,
        RelayProcess(
            tmp_path / "2", "--sibling", f"fra-1=127.0.0.1:{one}={first_key}", "--listen", f"127.0.0.1:{two}",
            relay="fra-2", private=other_private,
        ) as second,
        driving(Driver(first, 1, UDP), Driver(second, 2, TLS, private=other_private)) as (a, b),
    ):  # fmt: skip
        pump(
            [a, b],
            lambda: (
                "edgerelay_sibling_members 1" in first.metrics() and "edgerelay_sibling_members 1" in second.metrics()
            ),
        )
        a.send(b.key, b"over there")
        b.send(a.key, b"and back")
        pump([a, b], lambda: bool(a.packets and b.packets))
        assert a.packets == [(b.key, b"and back")] and b.packets == [(a.key, b"over there")]


def test_stun_on_both_ports(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        second = probe.getsockname()[1]
    with (
        RelayProcess(tmp_path / "r", "--second-port", str(second)) as relay,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        sock.settimeout(DEADLINE_S)
        sock.bind(("127.0.0.1", 0))
        loopback = bytes((127, 0, 0, 1))
        for change, port in ((0, relay.ports["udp"]), (stun.CHANGE_PORT, second)):
            transaction = os.urandom(12)
            sock.sendto(stun.write_request(transaction, change=change), ("127.0.0.1", relay.ports["udp"]))
            answer, source = sock.recvfrom(2_048)
            binding = stun.read_binding(answer, transaction)
            assert source[1] == port
            assert binding.mapped == (loopback, sock.getsockname()[1])
            assert binding.origin == (loopback, port)
            assert binding.other is not None and binding.other[1] == (second if not change else relay.ports["udp"])
        client = shutil.which("turnutils_stunclient")
        if client is None:
            pytest.skip("turnutils_stunclient (Debian: coturn) is not installed")
        done = subprocess.run(
            [client, "-p", str(relay.ports["udp"]), "127.0.0.1"], capture_output=True, text=True, timeout=DEADLINE_S
        )
        assert re.search(r"UDP reflexive addr: 127\.0\.0\.1:\d+", done.stdout + done.stderr)


def test_both_ip_versions_and_a_token_for_metrics(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text("correct horse battery staple")
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.bind(("::", 0))
        port = probe.getsockname()[1]
    with RelayProcess(tmp_path / "r", "--udp", str(port), "--metrics-token-file", str(token)) as relay:
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.settimeout(DEADLINE_S)
                transaction = os.urandom(12)
                sock.sendto(stun.write_request(transaction), (host, port))
                mapped = stun.read_binding(sock.recv(2_048), transaction).mapped
                assert mapped == (socket.inet_pton(family, host), sock.getsockname()[1])
        assert relay.get("tls", "/metrics", "Authorization: Bearer correct horse battery staple\r\n")[0] == 200
        assert relay.get("tls", "/metrics", "Authorization: Bearer wrong\r\n")[0] == 404


def test_noise_on_the_tls_port(relay: RelayProcess) -> None:
    """Whatever is not TLS, or TLS and not HTTP, or neither, costs its own connection and no more."""
    address = ("127.0.0.1", relay.ports["tls"])
    with driving(Driver(relay, 1, TLS)) as (a,):
        held = [socket.create_connection(address, DEADLINE_S) for _ in range(100)]
        for n, sock in enumerate(held):
            sock.settimeout(DEADLINE_S)
            with suppress(OSError):
                sock.sendall(os.urandom(n * 7) if n % 2 else b"GET / HTTP/1.1\r\n\r\n")
        pump([a], lambda: 'reason="door-source"} 0' not in relay.metrics())
        for sock in held:
            sock.close()
        assert relay.get_in("tls", "/\x00")[0] == 400
        pump([a], lambda: a.client.alive and 'edgerelay_members{carrier="tls"} 1' in relay.metrics())
        assert 'reason="tls-failed"} 0' not in relay.metrics()


def test_the_certificate_is_read_again(relay: RelayProcess) -> None:
    def served() -> str:
        return ssl.get_server_certificate(("127.0.0.1", relay.ports["tls"]), timeout=DEADLINE_S)

    with driving(Driver(relay, 1, TLS)) as (a,):
        before = served()
        write_certificate(relay.certificate.parent)
        relay.process.send_signal(signal.SIGHUP)
        pump([a], lambda: served() != before)
        assert a.client.alive


class Proxy:
    """An HTTP proxy that knows CONNECT and nothing else."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.asked: list[str] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        head = client.recv(4_096)
        self.asked.append(head.split(b"\r\n")[0].decode())
        host, _, port = head.split()[1].decode().rpartition(":")
        server = socket.create_connection((host, int(port)))
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        back = threading.Thread(target=self._copy, args=(server, client))
        back.start()
        self._copy(client, server)
        back.join()
        client.close()
        server.close()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65_536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()

    def close(self) -> None:
        self._listener.close()
        self._thread.join(DEADLINE_S)


def edgerelay(*arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "relay.cli", *arguments], capture_output=True, text=True, timeout=DEADLINE_S, cwd=ROOT
    )
    assert done.returncode == expect, done.stderr
    return done
