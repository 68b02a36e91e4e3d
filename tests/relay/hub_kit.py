"""A relay that registers at a real hub through a real broker, and devices that use it with what their maps say."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeagent.proto import topics
from edgeagent.proto.devicemap import DeviceMap
from edgeagent.proto.envelope import read_down
from edgeagent.proto.join import Joined
from edgeagent.proto.relay_client import RelayClient
from edgeagent.proto.relay_events import Carrier
from edgeagent.proto.relay_pass import peek_node_key
from edgeagent.proto.relaymap import RelayInfo
from relay.status import fetch, summarise
from tests.hub.rig import Client, Member, Rig, wait_until
from tests.relay import kit
from tests.relay.driver import DEADLINE_S, ROOT, Driver


class Enlisted:
    """`edgerelay serve --join-file` on loopback; its state outlives `stop` and `kill`."""

    def __init__(self, folder: Path, *tokens: str, name: str = "fra-1") -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.name = name
        self.log = folder / "log"
        self.files = [folder / f"token-{number}" for number in range(len(tokens))]
        for file, token in zip(self.files, tokens, strict=True):
            file.write_text(token + "\n")
        self.process: subprocess.Popen[bytes] | None = None
        self.ports: dict[str, Any] = {}

    def start(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "relay.cli", "serve", "--json", "--id", self.name]
        command += ["--state-dir", str(self.folder / "state"), "--listen", "127.0.0.1:0", "--udp", "127.0.0.1:0"]
        command += ["--second-port", "no", "--metrics", "127.0.0.1:0", "--drain", "0", *arguments]
        for file in self.files:
            command += ["--join-file", str(file)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, cwd=ROOT)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        self.ports = json.loads(line)

    def stop(self) -> int:
        assert self.process is not None and self.process.stdout is not None
        self.process.terminate()
        code = self.process.wait(DEADLINE_S)
        self.process.stdout.close()
        return code

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(DEADLINE_S)
        if self.process is not None and self.process.stdout is not None:
            self.process.stdout.close()

    def status(self) -> dict[str, Any]:
        return summarise(fetch("127.0.0.1", self.ports["metrics"]))

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """For something that is asked of the relay: the doorway does not bear being asked all the time."""
        wait_until(condition, what, lambda: time.sleep(0.05))

    def wait_state(self, network: str, state: str) -> dict[str, str]:
        def there() -> bool:
            return bool(self.status()["hubs"][network]["state"] == state)

        self.wait(there, f"{state}: {self.log.read_text()}")
        hub: dict[str, str] = self.status()["hubs"][network]
        return hub


@contextmanager
def enlisted(folder: Path, *tokens: str, name: str = "fra-1") -> Iterator[Enlisted]:
    relay = Enlisted(folder, *tokens, name=name)
    try:
        yield relay
    finally:
        relay.kill()


class Device:
    """A device of the rig that follows its map, and is a member of the relay that the map names."""

    def __init__(self, rig: Rig, client: Client, member: Member) -> None:
        assert isinstance(member.event, Joined)
        self.rig = rig
        self.client = client
        self.identity = member.identity
        self.map: DeviceMap = member.event.admission.open_map(rig.crypto, member.id)
        self._topic = topics.down(rig.network.id, member.id, "map")
        client.subscribe(self._topic)

    def read(self) -> None:
        self.client.turn()
        for topic, payload, _ in self.client.take():
            signed = read_down(
                self.rig.crypto,
                self.identity.box_private,
                self.rig.network.key,
                topic,
                payload,
                kind="map",
                network=self.rig.network.id,
                device=self.identity.device_id,
            )
            if signed.stamp > self.map.stamp:
                self.map = DeviceMap(signed)

    def wait_relays(self, *names: str) -> list[RelayInfo]:
        wait_until(lambda: [relay.id for relay in self.map.relays] == list(names), f"a map with {names}", self.read)
        return self.map.relays

    def pass_of(self) -> bytes:
        return next(data for data in self.map.passes if peek_node_key(data) == self.identity.node_key)

    def driver(self, relay: RelayInfo, *carriers: Carrier, number: int = 1) -> Driver:
        """At the relay as the map says it is reached."""
        host, _, port = relay.hosts[0].rpartition(":")
        assert host == "127.0.0.1"
        return MapDriver(self, relay, {"relay": relay.id, "tls": int(port), "udp": relay.udp_port}, *carriers)


@contextmanager
def device(rig: Rig, seed: int = 1, host: str = "box") -> Iterator[Device]:
    member = rig.join(rig.token(), seed, host)
    rig.wait_settled()
    with rig.client(member.id, member.identity.password, clean=False) as client:
        yield Device(rig, client, member)


class MapDriver(Driver):
    """A relay client with the keys and the pass of a device of a hub."""

    def __init__(self, of: Device, relay: RelayInfo, ports: dict[str, Any], *carriers: Carrier) -> None:
        class Somewhere:
            pass

        somewhere: Any = Somewhere()
        somewhere.ports = ports
        super().__init__(somewhere, 1, *carriers)
        self.key = of.identity.node_key
        self.client = RelayClient(
            crypto=kit.CRYPTO,
            entropy=os.urandom,
            jitter=random.random,
            relay=relay.id,
            relay_key=relay.key,
            private=of.identity.node_private,
            pass_object=of.pass_of(),
            carriers=carriers or (Carrier.DATAGRAM, Carrier.STREAM),
        )
