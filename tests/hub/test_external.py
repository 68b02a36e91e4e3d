"""A broker that somebody else runs: with the dynamic security plugin, and without."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from base64 import b64encode
from collections.abc import Iterator
from hashlib import pbkdf2_hmac
from pathlib import Path

import pytest

from hub.core.credential import make_credential
from hub.io.accounts import access_list, document
from hub.io.mosquitto import Files, MosquittoChild, find_program
from hub.io.pki import der_to_pem, make_ca, make_server
from hub.setup import External, initialise
from hub.state import State
from tests.hub.kit import load_crypto
from tests.hub.rig import Rig, free_port, wait_until

pytestmark = pytest.mark.skipif(shutil.which("mosquitto", path="/usr/sbin:/usr/bin") is None, reason="no mosquitto")

PASSWORD = "the operator's own password"


class ExternalRig(Rig):
    """A hub whose broker is not its own."""

    def __init__(self, directory: Path, database_url: str = "") -> None:
        self.ca_key_pem, ca_der = make_ca("someone else's", time.time())
        self.ca_pem = der_to_pem(ca_der)
        ca_file, password_file = directory / "ca.pem", directory / "password"
        ca_file.write_text(self.ca_pem)
        password_file.write_text(PASSWORD + "\n")
        self.key_pem, self.chain_pem = make_server(self.ca_key_pem, ca_der, ("127.0.0.1",))
        self.port = free_port()
        self.state = State(directory / "hub")
        self.crypto = load_crypto()
        self.network = initialise(
            self.state,
            domain="mesh.test",
            listen="8883",
            addresses=[],
            external=External((f"127.0.0.1:{self.port}",), ca_file, "admin", password_file),
            database_url=database_url,
        )
        self.process = None
        self.log = directory / "serve.log"

    def start_broker(self, directory: Path) -> MosquittoChild:
        """Theirs, with the plugin."""
        net = self.network.id

        def accounts() -> bytes:
            content = json.loads(document(net, "admin", make_credential(os.urandom, PASSWORD), ()))
            content["roles"] = [role for role in content["roles"] if role["rolename"] == "hub"]
            return json.dumps(content).encode()

        files = Files(self.chain_pem, self.key_pem, access_list(net, "admin"), accounts)
        broker = MosquittoChild(directory, "127.0.0.1", self.port, files)
        broker.start(0.0)
        wait_until(lambda: "ACL pattern" in broker.last_words() or broker.pid == 0, "their broker")
        return broker


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[ExternalRig]:
    made = ExternalRig(tmp_path)
    try:
        yield made
    finally:
        made.end()


def test_with_the_plugin(rig: ExternalRig, tmp_path: Path) -> None:
    net = rig.network.id

    broker = rig.start_broker(tmp_path / "theirs")
    try:
        rig.start()
        member = rig.join(rig.token())
        assert member.is_in
        with rig.client(member.id, member.identity.password) as client:
            assert client.code == 0
            assert not client.subscribe(f"em1/{net}/+/p")
            rig.run("devices", "remove", "box")
            wait_until(lambda: client.ended, "the end of its session", client.turn)
        assert rig.stop() == 0
        assert broker.pid != 0
    finally:
        broker.stop()


def test_without_the_plugin_the_operator_gets_files(rig: ExternalRig, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    salt = os.urandom(12)
    digest = pbkdf2_hmac("sha512", PASSWORD.encode(), salt, 101)
    admin = f"admin:$7$101${b64encode(salt).decode()}${b64encode(digest).decode()}\n"
    (theirs / "server.pem").write_text(rig.chain_pem)
    (theirs / "server.key").write_text(rig.key_pem)
    (theirs / "passwords").write_text(admin)
    (theirs / "acl").write_text(access_list(rig.network.id, "admin"))
    (theirs / "mosquitto.conf").write_text(
        f"listener {rig.port} 127.0.0.1\ncertfile {theirs}/server.pem\nkeyfile {theirs}/server.key\n"
        f"password_file {theirs}/passwords\nacl_file {theirs}/acl\nuser root\n"
    )
    with (tmp_path / "theirs.log").open("wb") as log:
        broker = subprocess.Popen([find_program(), "-c", str(theirs / "mosquitto.conf")], stdout=log, stderr=log)
    try:
        wait_until(lambda: b"running" in (tmp_path / "theirs.log").read_bytes(), "their broker")
        rig.start()
        token = rig.token()
        passwords = rig.state.external / "passwords"
        wait_until(lambda: passwords.exists() and token.claim in passwords.read_text(), "the file for the operator")
        (theirs / "passwords").write_text(admin + passwords.read_text())
        assert (rig.state.external / "acl").read_text() == (theirs / "acl").read_text()
        broker.send_signal(signal.SIGHUP)
        loaded = theirs.parent / "theirs.log"
        wait_until(lambda: b"Reloading config" in loaded.read_bytes(), "the operator's reload")
        member = rig.join(token)
        assert member.is_in
        wait_until(lambda: member.id in passwords.read_text(), "the device's line")
    finally:
        broker.kill()
        broker.wait()
