"""A real mosquitto with a CA of its own, for tests: started on free loopback ports, ended by its pid."""

from __future__ import annotations

import datetime
import selectors
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgeagent.io.mqtt import Event, MqttLink

MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")


class Authority:
    """A CA, and the server certificate that it signs. `der` is the CA certificate."""

    def __init__(self, valid_from: datetime.datetime, valid_to: datetime.datetime) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._window = (valid_from, valid_to)
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test network CA")])
        builder = self._builder(self._name, self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self.certificate = builder.sign(self._key, hashes.SHA256())
        self.der = self.certificate.public_bytes(serialization.Encoding.DER)
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM)

    @classmethod
    def valid_now(cls) -> Authority:
        now = datetime.datetime.now(datetime.UTC)
        return cls(now - datetime.timedelta(days=1), now + datetime.timedelta(days=30))

    @classmethod
    def expired(cls) -> Authority:
        now = datetime.datetime.now(datetime.UTC)
        return cls(now - datetime.timedelta(days=30), now - datetime.timedelta(days=1))

    def server(self) -> tuple[bytes, bytes]:
        """(certificate, private key), PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker")])
        certificate = self._builder(name, key.public_key()).sign(self._key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM), key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def _builder(self, subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(public)
        builder = builder.serial_number(x509.random_serial_number())
        return builder.not_valid_before(self._window[0]).not_valid_after(self._window[1])


class Broker:
    """mosquitto with TLS on `port` and users `name: password`; `chain` tells whether it presents the CA too."""

    def __init__(self, directory: Path, authority: Authority, users: dict[str, str], *, chain: bool = True) -> None:
        self.port = free_port()
        self._directory = directory
        certificate, key = authority.server()
        (directory / "server.pem").write_bytes(certificate + (authority.pem if chain else b""))
        (directory / "server.key").write_bytes(key)
        passwords = directory / "passwords"
        passwords.write_text("".join(f"{name}:{password}\n" for name, password in users.items()))
        passwords.chmod(0o600)
        subprocess.run(["mosquitto_passwd", "-U", passwords], check=True, capture_output=True)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Until it listens. The first time on another port when somebody was quicker to take the one that was free."""
        for _ in range(10):
            if self._try_start():
                return
            self.port = free_port()
        raise AssertionError("mosquitto does not start: " + (self._directory / "log").read_text())

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _try_start(self) -> bool:
        assert MOSQUITTO is not None
        directory, log = self._directory, self._directory / "log"
        log.unlink(missing_ok=True)
        (directory / "mosquitto.conf").write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous false\npassword_file {directory / 'passwords'}\n"
            f"certfile {directory / 'server.pem'}\nkeyfile {directory / 'server.key'}\n"
            f"user root\nlog_dest file {log}\n"
        )
        self._process = subprocess.Popen([MOSQUITTO, "-c", str(directory / "mosquitto.conf")])
        deadline = time.monotonic() + 30
        while not (log.exists() and b" running" in log.read_bytes()):
            if self._process.poll() is not None:
                return False
            assert time.monotonic() < deadline, "mosquitto says nothing"
            select_nothing(0.01)
        return True

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def select_nothing(timeout_s: float) -> None:
    with selectors.DefaultSelector() as selector:
        selector.select(timeout_s)


def drive(
    selector: selectors.BaseSelector, links: list[MqttLink], until: Callable[[], bool], timeout_s: float = 20.0
) -> float:
    """Run a loop over the links until `until`; returns the longest single call into a link, seconds."""
    deadline = time.monotonic() + timeout_s
    longest = 0.0
    while not until():
        now = time.monotonic()
        assert now < deadline, f"nothing came: {[(link.stage, list(link.events)) for link in links]}"
        timeouts = [at for link in links if (at := link.poll_timeout()) is not None]
        for key, _ in selector.select(max(0.0, min([*timeouts, deadline]) - now)):
            began = time.monotonic()
            key.data(began, key.fd)
            longest = max(longest, time.monotonic() - began)
        for link in links:
            link.on_timeout(time.monotonic())
    return longest


def take(link: MqttLink, kind: type[Event]) -> list[Event]:
    """Remove and return the events of one kind."""
    found = [event for event in link.events if isinstance(event, kind)]
    for event in found:
        link.events.remove(event)
    return found
