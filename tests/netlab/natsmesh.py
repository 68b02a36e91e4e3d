"""A network in the lab whose brokers are NATS servers: docs/scale.md, on hosts of their own."""

from __future__ import annotations

import re
import shutil

from tests.netlab.host import Host, Net
from tests.netlab.lab import Lab
from tests.netlab.mesh import Mesh
from tests.netlab.process import Process

PROGRAM = shutil.which("nats-server", path="/usr/sbin:/usr/bin:/usr/local/bin")
CLIENTS, ROUTES = 4222, 6222
READY_TIMEOUT_S = 30.0


class Node:
    """A host with a nats-server. `start` it as often as it was killed."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.process: Process | None = None

    def start(self) -> None:
        assert PROGRAM is not None
        self.process = self.host.start(PROGRAM, "-c", self.host.directory / "nats-server.conf")
        self.process.expect("Server is ready", READY_TIMEOUT_S)

    def kill(self) -> None:
        """As a power cut would."""
        assert self.process is not None
        self.process.kill()


class NatsMesh(Mesh):
    """`start_hub` brings the nodes up first."""

    size = 1

    def __init__(self, lab: Lab, net: Net, port: int = 8883, hub: str = "hub") -> None:
        super().__init__(lab, net, port, hub)
        self.nodes = [Node(lab.host(f"n{number}", net)) for number in range(1, self.size + 1)]

    def init_hub(self) -> None:
        words = ["edgehub", "init", "--name", "lab"]
        for node in self.nodes:
            words += ["--external-broker", f"{node.host.address}:{self.port}"]
            words += ["--nats", f"{node.host.address}:{CLIENTS}"]
        found = re.search(r"^password +(\S+)", self.hub.run(*words).stdout, re.MULTILINE)
        assert found is not None
        self.password = found[1]
        for node in self.nodes:
            self._configure(node)
        for node in self.nodes:
            node.start()

    def _configure(self, node: Node) -> None:
        at = node.host.directory
        config = self.hub.run("edgehub", "nats", "config", "--accounts", at / "accounts").stdout
        (at / "edgehub.conf").write_text(config)
        self.hub.run("edgehub", "nats", "certificate", node.host.address, "--out", at)
        files = f'cert_file: "{at}/server.pem", key_file: "{at}/server.key"'
        others = ", ".join(f'"nats://{other.host.address}:{ROUTES}"' for other in self.nodes if other is not node)
        cluster = (
            f'cluster {{ name: edge, listen: "0.0.0.0:{ROUTES}", routes: [{others}],'
            f' tls {{ {files}, ca_file: "{at}/ca.pem", verify: true }} }}\n'
        )
        (at / "nats-server.conf").write_text(
            f'server_name: {node.host.name}\ninclude edgehub.conf\nlisten: "0.0.0.0:{CLIENTS}"\ntls {{ {files} }}\n'
            f'jetstream {{ store_dir: "{at}/jetstream" }}\n{cluster if others else ""}'
            f'mqtt {{ listen: "0.0.0.0:{self.port}", tls {{ {files} }}, stream_replicas: {self.size},'
            " ack_wait: 2s, max_ack_pending: 200 }\n"
        )

    def node_of(self, host: Host) -> Node | None:
        """Where the programs of that host are connected to a server; None where they are to none."""
        listed = host.run("ss", "-Htn", "state", "established").stdout.split()
        return next((node for node in self.nodes if f"{node.host.address}:{self.port}" in listed), None)


class Cluster(NatsMesh):
    size = 3
