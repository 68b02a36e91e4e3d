"""Which dashboards `edgeagent up --hub`, and edgeflash, take for theirs: by a server with a CA of its own."""

from __future__ import annotations

import http.server
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from edgeagent.approval import ApprovalError, _Hub
from flash.hubapi import Hub, Unreached


def signed(name: str, key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    """For ten days, by "our CA"; no more extensions than whoever calls adds."""
    now = datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
    made = made.issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "our CA")]))
    made = made.public_key(key.public_key()).serial_number(x509.random_serial_number())
    return made.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=9))


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Of a client that does not trust it."""


class Dashboard(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"it": "answers"}')

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A dashboard whose CA says neither what its key is for nor its key's name, as people make them: `ca.pem`. Beside
    it `other.pem`, a CA that has not signed it."""
    ca, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    is_ca = x509.BasicConstraints(ca=True, path_length=None)
    for name, authority in (("ca", ca), ("other", ec.generate_private_key(ec.SECP256R1()))):
        made = signed("our CA", authority, authority).add_extension(is_ca, critical=True)
        (tmp_path / f"{name}.pem").write_bytes(made.sign(authority, hashes.SHA256()).public_bytes(Encoding.PEM))
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = signed("dashboard", key, ca).add_extension(here, critical=False).sign(ca, hashes.SHA256())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "server.pem").write_bytes(certificate.public_bytes(Encoding.PEM) + pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    server = Server(("127.0.0.1", 0), Dashboard)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def newer_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python 3.13 makes contexts."""
    made = ssl.create_default_context

    def strict(cafile: str | None = None) -> ssl.SSLContext:
        context = made(cafile=cafile)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)


def test_a_dashboard_of_a_plain_ca_is_taken_by_newer_pythons_too(url: str, tmp_path: Path) -> None:
    ca = str(tmp_path / "ca.pem")
    assert _Hub(url, ca).post("/join/begin", {}) == (200, {"it": "answers"})
    assert Hub(url, "em_" + "a" * 43, ca).ask("GET", "/api/v1/devices") == {"it": "answers"}


def test_a_dashboard_of_another_ca_is_not(url: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other.pem")
    with pytest.raises(ApprovalError, match="its certificate is not good"):
        _Hub(url, other).post("/join/begin", {})
    with pytest.raises(Unreached):
        Hub(url, "em_" + "a" * 43, other).ask("GET", "/api/v1/devices")


def test_its_name_is_still_looked_at(url: str, tmp_path: Path) -> None:
    with pytest.raises(ApprovalError, match="its certificate is not good"):
        _Hub(url.replace("127.0.0.1", "localhost"), str(tmp_path / "ca.pem")).post("/join/begin", {})
