"""nebula in the laboratory: the mesh in Debian that punches holes and has relays, timed as ours is.

It speaks UDP alone. Hosts have a certificate, the lighthouse's address and `relays`, as its documentation recommends.
"""

from __future__ import annotations

import json
import shutil

from tests.netlab import Host, Lab
from tests.netlab.homes import HOME, INTERNET
from tests.netlab.nat import Kind, NatRouter

PROGRAM = shutil.which("nebula")
PORT = 4242
PREFIX = "10.99.0."
SETTLE_S = 10.0  # until hosts have told the lighthouse where they are
ANSWER_TIMEOUT_S = 6


class Nebula:
    """A lighthouse that is a relay too, on the internet, and hosts that know it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.internet = lab.net(INTERNET)
        self.addresses: dict[str, str] = {}
        self._light = lab.host("lighthouse", self.internet)
        self._light.sh(f"cd {self._light.directory} && nebula-cert ca -name bench")
        self._start(self._light, {"am_lighthouse": True}, {"am_relay": True}, {})

    def join(self, name: str, kind: Kind, delay_ms: float) -> Host:
        """A host in a home of its own."""
        router = NatRouter(self.lab, f"{name}-router", self.lab.net(HOME), self.internet, kind, delay_ms)
        host = self.lab.host(name, router.inside)
        light = f"{PREFIX}1"
        static = {light: [f"{self._light.address}:{PORT}"]}
        self._start(host, {"am_lighthouse": False, "hosts": [light]}, {"relays": [light], "use_relays": True}, static)
        return host

    def first_answer_s(self, a: Host, b: Host) -> float | None:
        """Seconds until the answer to the first of a packet a second; None where none came in time."""
        for second in range(ANSWER_TIMEOUT_S):
            trip_ms = a.ping(self.addresses[b.name])
            if trip_ms is not None:
                return second + trip_ms / 1e3
        return None

    def _start(self, host: Host, lighthouse: dict[str, object], relay: dict[str, object], static: object) -> None:
        address = self.addresses[host.name] = f"{PREFIX}{len(self.addresses) + 1}"
        ca, own = self._light.directory, host.directory
        host.sh(
            f"cd {own} && nebula-cert sign -ca-crt {ca}/ca.crt -ca-key {ca}/ca.key -name {host.name} -ip {address}/24"
        )
        everything = [{"port": "any", "proto": "any", "host": "any"}]
        settings = {
            "pki": {"ca": f"{ca}/ca.crt", "cert": f"{own}/{host.name}.crt", "key": f"{own}/{host.name}.key"},
            "static_host_map": static,
            "lighthouse": {"interval": 10, **lighthouse},
            "listen": {"host": "0.0.0.0", "port": PORT},
            "punchy": {"punch": True, "respond": True, "delay": "1s"},
            "relay": relay,
            "tun": {"dev": "nebula1", "mtu": 1280},
            "firewall": {"outbound": everything, "inbound": everything},
        }
        file = own / "nebula.yml"
        file.write_text(json.dumps(settings))  # which is YAML too
        host.start("nebula", "-config", file).expect("Nebula interface is active")
