"""NATS servers as brokers: processes on this machine, one or three in a cluster, and hubs that use them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from hub.io.pki import der_to_pem, make_ca, make_server
from hub.setup import External, initialise
from hub.state import State
from tests.hub.kit import load_crypto
from tests.hub.rig import Client, Rig, free_port, wait_until

PROGRAM = shutil.which("nats-server", path="/usr/sbin:/usr/bin:/usr/local/bin")
needs_nats = pytest.mark.skipif(PROGRAM is None, reason="no nats-server")


class Node:
    """One nats-server in a directory of its own."""

    def __init__(self, directory: Path, name: str) -> None:
        directory.mkdir()
        self.directory = directory
        self.name = name
        self.mqtt, self.client, self.route = free_port(), free_port(), free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def configure(self, included: str, nodes: list[Node]) -> None:
        """As docs/scale.md has it, but for TLS between the nodes: they are on one machine."""
        (self.directory / "edgehub.conf").write_text(included)
        routes = ", ".join(f'"nats://route:secret@127.0.0.1:{other.route}"' for other in nodes if other is not self)
        cluster = (
            f'cluster {{ name: "edge", listen: "127.0.0.1:{self.route}", '
            f'authorization {{ user: "route", password: "secret" }}, routes: [{routes}] }}'
        )
        tls = f'tls {{ cert_file: "{self.directory}/server.pem", key_file: "{self.directory}/server.key" }}'
        (self.directory / "nats-server.conf").write_text(
            f'server_name: "{self.name}"\nlisten: "127.0.0.1:{self.client}"\n{tls}\ninclude "edgehub.conf"\n'
            f'jetstream {{ store_dir: "{self.directory}/jetstream" }}\n{cluster if len(nodes) > 1 else ""}\n'
            f'mqtt {{ listen: "127.0.0.1:{self.mqtt}", {tls}, ack_wait: "10s", max_ack_pending: 1024, '
            f"stream_replicas: {len(nodes)} }}\n"
            f'logfile: "{self.log}"\npid_file: "{self.directory}/pid"\n'
        )

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def start(self) -> None:
        assert PROGRAM is not None
        self.process = subprocess.Popen([PROGRAM, "-c", str(self.directory / "nats-server.conf")])

    def wait_ready(self) -> None:
        wait_until(lambda: self.log.exists() and "Server is ready" in self.log.read_text(), f"node {self.name}")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.kill()


class NatsRig(Rig):
    """A hub whose brokers are NATS servers. `port` is where `client` connects."""

    def __init__(self, directory: Path, size: int, database_url: str = "") -> None:
        ca_key_pem, ca_der = make_ca("test", time.time())
        self.ca_pem = der_to_pem(ca_der)
        ca_file = directory / "ca.pem"
        ca_file.write_text(self.ca_pem)
        self.nodes = [Node(directory / f"n{number}", f"n{number}") for number in range(1, size + 1)]
        self.port = self.nodes[0].mqtt
        self.state = State(directory / "hub")
        self.crypto = load_crypto()
        brokers = tuple(f"127.0.0.1:{node.mqtt}" for node in self.nodes)
        clients = tuple(f"127.0.0.1:{node.client}" for node in self.nodes)
        self.network = initialise(
            self.state,
            domain="mesh.test",
            listen="8883",
            addresses=[],
            external=External(brokers, ca_file, nats=clients),
            database_url=database_url,
        )
        self.process = None
        self.log = directory / "serve.log"
        key_pem, chain_pem = make_server(ca_key_pem, ca_der, ("127.0.0.1",))
        for node in self.nodes:
            (node.directory / "server.pem").write_text(chain_pem)
            descriptor = os.open(node.directory / "server.key", os.O_CREAT | os.O_WRONLY, 0o600)
            os.write(descriptor, key_pem.encode())
            os.close(descriptor)
            node.configure(self.run("nats", "config", "--accounts", f"{node.directory}/accounts"), self.nodes)
            node.start()
        for node in self.nodes:
            node.wait_ready()

    def at(self, node: Node, user: str, password: str, client_id: str, *, clean: bool = True) -> Client:
        """A plain MQTT client of that node."""
        self.port = node.mqtt
        return Client(self, user, password, client_id, clean=clean)

    def end(self) -> None:
        super().end()
        for node in self.nodes:
            node.end()
