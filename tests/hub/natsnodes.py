"""NATS servers as brokers: processes on this machine, one or three in a cluster, and hubs that use them."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from hub.io.pki import der_to_pem
from hub.moving import attach
from hub.setup import External, initialise
from hub.state import State
from hub.store.postgres import PostgresStore
from tests.hub.kit import load_crypto
from tests.hub.rig import Client, Rig, free_port
from tests.hub.test_together import Together, wait_until

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
        """As docs/scale.md has it."""
        (self.directory / "edgehub.conf").write_text(included)
        routes = ", ".join(f'"nats://127.0.0.1:{other.route}"' for other in nodes if other is not self)
        files = f'cert_file: "{self.directory}/server.pem", key_file: "{self.directory}/server.key"'
        tls = f"tls {{ {files} }}"
        cluster = (
            f'cluster {{ name: "edge", listen: "127.0.0.1:{self.route}", routes: [{routes}], '
            f'tls {{ {files}, ca_file: "{self.directory}/ca.pem", verify: true }} }}'
        )
        (self.directory / "nats-server.conf").write_text(
            f'server_name: "{self.name}"\nlisten: "127.0.0.1:{self.client}"\n{tls}\ninclude "edgehub.conf"\n'
            f'jetstream {{ store_dir: "{self.directory}/jetstream" }}\n{cluster if len(nodes) > 1 else ""}\n'
            f'mqtt {{ listen: "127.0.0.1:{self.mqtt}", {tls}, ack_wait: "2s", max_ack_pending: 200, '
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
            external=External(brokers, None, nats=clients),
            database_url=database_url,
        )
        self.process = None
        self.log = directory / "serve.log"
        self.ca_pem = der_to_pem(self.network.ca_der)
        for node in self.nodes:
            self.run("nats", "certificate", "127.0.0.1", "--out", str(node.directory))
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


class NatsTogether(Together):
    """Three hubs, each with a state directory of its own, and three nodes."""

    def __init__(self, directory: Path, url: str) -> None:
        first = NatsRig(directory, 3, url)
        self.nats = first
        self.down: list[Node] = []
        self.hubs = [first]
        self.store = PostgresStore(url)
        for name in ("second", "third"):
            other = object.__new__(NatsRig)
            other.__dict__.update(first.__dict__, state=State(directory / name), log=directory / f"{name}.log")
            attach(other.state, url)
            self.hubs.append(other)
        for hub in self.hubs:
            hub.launch()

    @property
    def nodes(self) -> list[Node]:
        return self.nats.nodes

    def node_of(self, port: int) -> Node:
        return next(node for node in self.nodes if node.mqtt == port)

    def kill_node(self, node: Node) -> None:
        node.kill()
        self.down.append(node)

    def bring_back(self) -> None:
        """The nodes that were killed."""
        for node in self.down:
            node.log.unlink()
            node.start()
            node.wait_ready()
        self.down.clear()

    def leaders_node(self) -> Node:
        """Where the hub that leads is connected."""
        return self.node_of(int(self.leading().state.read_status()["broker"].rpartition(":")[2]))

    def end(self) -> None:
        for hub in self.hubs:
            Rig.end(hub)  # without the nodes, which are one for all of them
        for node in self.nodes:
            node.end()
        self.store.close()
