"""`edgeagent netcheck` behind real routers, asking real relays: every kind is called by its name."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import re
import shutil
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from edgeagent.io.keystore import Keystore, StateFile
from edgeagent.proto.identity import Admission
from edgeagent.proto.keys import to_base64
from edgeagent.proto.relaymap import RelayInfo
from edgeagent.proto.signed import sign_object
from tests.control_kit import CRYPTO, DEVICE, MAP_BODY, NETWORK, NETWORK_KEY, NETWORK_SEED, WALL_S
from tests.netlab import Host, Lab, rights
from tests.netlab.host import Net
from tests.netlab.nat import Kind, NatRouter
from tests.netlab.sockets import inside
from tests.relay import kit
from tests.relay.driver import write_certificate
from tests.test_portmap import Router as PcpServer
from tests.test_portmap_miniupnpd import CONFIG as MINIUPNPD_CONFIG
from tests.test_portmap_miniupnpd import RULES as MINIUPNPD_RULES

pytestmark = pytest.mark.long

EI, AD, APD = "endpoint-independent", "address-dependent", "address-and-port-dependent"
EITHER = "endpoint-independent-or-address-dependent"
CHECK_TIMEOUT_S = 40.0


class Relay:
    """`edgerelay serve` on a host of its own, at the usual ports."""

    def __init__(self, lab: Lab, name: str, net: Net) -> None:
        self.name = name
        self.host = lab.host(name, net)
        folder = self.host.directory
        certificate, key = write_certificate(folder)
        self.sha256 = hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.read_text())).digest()
        secret = folder / "relay.key"
        secret.touch(0o600)
        secret.write_text(to_base64(kit.RELAY_PRIVATE))
        self.process = self.host.start(
            "edgerelay", "serve", "--json", "--id", name, "--region", "fra", "--http", "80", "--metrics", "no",
            "--cert", certificate, "--key", key, "--relay-key", secret, "--network-key", kit.NETWORK_KEY.hex(),
        )  # fmt: skip

    @property
    def option(self) -> list[str]:
        return ["--relay", f"{self.host.address}:443"]

    def info(self, sha256: bytes | None = None) -> dict[str, Any]:
        fields = {"id": self.name, "rg": "fra", "k": kit.RELAY_KEY, "h": [f"{self.host.address}:443"], "u": 3478}
        return RelayInfo({**fields, "s": 3479, "pin": sha256 or self.sha256}).encode()


class Internet:
    """Two relays, and homes behind routers of all kinds."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        # No documentation prefix: miniupnpd would not map to one.
        self.net = lab.net("11.0.0.0/24", "2001:db8:11::/64")
        self.relays = [Relay(lab, "fra-1", self.net), Relay(lab, "fra-2", self.net)]
        for relay in self.relays:
            relay.process.expect(r'"relay"')

    def home(self, kind: Kind, name: str) -> tuple[NatRouter, Host]:
        inside = self.lab.net("192.168.1.0/24")
        router = NatRouter(self.lab, f"{name}-router", inside, self.net, kind)
        return router, self.lab.host(name, inside)

    def check(self, host: Host, *options: str | Path, expect: int = 0) -> dict[str, Any]:
        relays = [word for relay in self.relays for word in relay.option]
        done = host.run("edgeagent", "netcheck", "--json", *(options or relays), check=False, timeout_s=CHECK_TIMEOUT_S)
        assert done.returncode == expect, done.stderr
        assert done.stderr == ""  # no terminal, no progress
        found: dict[str, Any] = json.loads(done.stdout)
        return found


@pytest.fixture(scope="module")
def internet() -> Iterator[Internet]:
    if why := rights.missing():
        pytest.skip(why)
    with Lab() as lab:
        yield Internet(lab)


@pytest.fixture(scope="module")
def by_kind(internet: Internet) -> dict[Kind, dict[str, Any]]:
    """One check behind each kind, all at the same time: they mostly wait."""
    hosts = {kind: internet.home(kind, kind.value.replace("_", "-"))[1] for kind in Kind}
    with ThreadPoolExecutor(len(hosts)) as pool:
        return dict(zip(hosts, pool.map(internet.check, hosts.values()), strict=True))


@pytest.mark.parametrize(
    ("kind", "mapping", "filtering", "hairpin", "port_kept"),
    [
        (Kind.FULL, EI, EITHER, False, True),
        (Kind.ADDRESS, EI, EITHER, False, True),
        (Kind.PORT, EI, APD, False, True),
        (Kind.SYMMETRIC, APD, APD, False, False),
        (Kind.HAIRPIN, EI, EITHER, True, True),
    ],
)
def test_a_kind_is_called_by_its_name(
    by_kind: dict[Kind, dict[str, Any]], kind: Kind, mapping: str, filtering: str, hairpin: bool, port_kept: bool
) -> None:
    found = by_kind[kind]
    nat = found["nat"]["ipv4"]
    assert (nat["mapping"], nat["filtering"], nat["hairpin"], nat["port_kept"]) == (
        mapping,
        filtering,
        hairpin,
        port_kept,
    )
    assert found["udp"] == {"ipv4": True, "ipv6": None} and found["unfinished"] == []
    assert nat["local"].startswith("192.168.1.2:") and len({text.split(":")[0] for text in nat["mapped"]}) == 1
    for relay in found["relays"]:
        [way] = relay["ways"]
        assert (way["udp"], way["tls"], way["mtu"], way["mtu_exact"]) == (True, True, 1_500, True)
        assert way["udp_ms"] > 0 and way["tls_connect_ms"] > 0
    assert found["captive_portal"] is False and found["tls_interception"] is None
    assert found["port_mapping"] == []
    first = found["advice"][0]
    assert ("symmetric NAT:" in first) == (kind is Kind.SYMMETRIC)
    assert ("all networks" in first) == (filtering == EITHER)
    assert ("most networks" in first) == (kind is Kind.PORT)


@pytest.mark.parametrize("kind", [Kind.UDP_BLOCKED, Kind.TCP_443])
def test_without_udp_relays_are_reached_by_tls(by_kind: dict[Kind, dict[str, Any]], kind: Kind) -> None:
    found = by_kind[kind]
    assert found["reachable"] and found["udp"]["ipv4"] is False and found["nat"]["ipv4"] is None
    assert found["advice"] == ["UDP is blocked: relays by TLS only, no direct paths."]
    assert all(way["tls"] and way["mtu"] is None for relay in found["relays"] for way in relay["ways"])
    assert found["captive_portal"] is False


def test_a_narrow_line(internet: Internet) -> None:
    router, host = internet.home(Kind.PORT, "narrow")
    router.impair(packet_bytes_max=1_300)
    found = internet.check(host)
    assert [(way["mtu"], way["mtu_exact"]) for row in found["relays"] for way in row["ways"]] == [(1_300, True)] * 2
    assert any("more than 1300 bytes do not reach" in line for line in found["advice"])


def test_without_a_nat_and_with_ipv6(internet: Internet) -> None:
    host = internet.lab.host("open", internet.net)
    found = internet.check(
        host, *internet.relays[0].option, "--relay", f"[{internet.relays[1].host.address6}]:443:3478:3479"
    )
    for family in ("ipv4", "ipv6"):
        assert found["udp"][family] is True
        assert (found["nat"][family]["mapping"], found["nat"][family]["filtering"]) == ("no-nat", EITHER)
    assert found["ipv6"] == {"address": host.address6, "relays": 1, "reached": True}
    assert [way["mtu"] for row in found["relays"] for way in row["ways"]] == [1_500, 1_500]


def test_one_relay_dead_and_no_relay_there(internet: Internet) -> None:
    host = internet.lab.host("nearby", internet.net)
    found = internet.check(host, *internet.relays[0].option, "--relay", "11.0.0.250:443", "--timeout", "4")
    assert [relay["reached"] for relay in found["relays"]] == [True, False]
    found = internet.check(host, "--relay", "nosuch.invalid:443", "--timeout", "4", expect=1)
    assert not found["reachable"] and found["relays"][0]["errors"] and "name server" in found["advice"][0]
    found = internet.check(host, "--relay", "192.0.2.1:443", expect=1)
    assert "no route" in found["advice"][0]


def test_a_captive_portal(internet: Internet) -> None:
    router, host = internet.home(Kind.TCP_443, "cafe")
    portal = (
        "from http.server import *\n"
        "class Portal(BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(302)\n"
        "        self.send_header('Location', 'http://login.cafe.example/')\n"
        "        self.end_headers()\n"
        "server = HTTPServer(('', 8080), Portal)\n"
        "print('open', flush=True)\n"
        "server.serve_forever()\n"
    )
    router.host.start("python3", "-c", portal, name="portal").expect("open")
    rule = 'iifname "lan" tcp dport 80 redirect to :8080'
    blocked = 'iifname "lan" tcp dport 443 drop'
    router.host.run(
        "nft", "-f", "-",
        input=f"table ip portal {{\n chain catch {{ type nat hook prerouting priority -110; {rule}; }}\n"
        f" chain shut {{ type filter hook forward priority -10; {blocked}; }}\n}}\n",
    )  # fmt: skip
    found = internet.check(host, expect=1)
    assert found["captive_portal"] is True and "captive portal" in found["advice"][0]


def test_relays_of_the_saved_network_and_interception(internet: Internet, tmp_path: Path) -> None:
    """The relays come from the signed map on disk, with their certificates; a proxy that opens TLS has another one."""
    router, host = internet.home(Kind.PORT, "office")
    proxy = Relay(internet.lab, "proxy", internet.net)
    proxy.process.expect(r'"relay"')
    write_state(tmp_path / "state", [relay.info() for relay in internet.relays])
    found = internet.check(host, "--state-dir", tmp_path / "state")
    assert found["tls_interception"] is False and found["udp"]["ipv4"] is True
    assert [(row["id"], row["region"]) for row in found["relays"]] == [("fra-1", "fra"), ("fra-2", "fra")]
    assert all(way["tls_certificate"] == "expected" for row in found["relays"] for way in row["ways"])

    rule = f'iifname "lan" tcp dport 443 dnat ip to {proxy.host.address}'
    router.host.run(
        "nft", "-f", "-",
        input=f"table ip proxy {{\n chain catch {{ type nat hook prerouting priority -110; {rule}; }}\n}}\n",
    )  # fmt: skip
    found = internet.check(host, "--state-dir", tmp_path / "state")
    assert found["tls_interception"] is True and "opens TLS" in " ".join(found["advice"])


def test_beside_a_running_agent(internet: Internet) -> None:
    """The relays are those that the agent knows now, and its own port is left alone."""
    _, host = internet.home(Kind.PORT, "member")
    write_state(host.directory / "edgeagent", [internet.relays[0].info()])
    agent = host.start("edgeagent", "run")
    agent.expect("edge0 is up as gate")
    write_state(host.directory / "other", [])
    found = internet.check(host, "--state-dir", host.directory / "other")
    assert [row["id"] for row in found["relays"]] == ["fra-1"]
    assert found["tls_interception"] is False and found["nat"]["ipv4"]["filtering"] == APD
    assert agent.stop() == 0
    none = host.run("edgeagent", "netcheck", "--state-dir", host.directory / "other", check=False)
    assert none.returncode == 1 and "this network has no relays" in none.stderr


def test_the_table_and_the_advice(internet: Internet) -> None:
    _, host = internet.home(Kind.PORT, "reader")
    relays = [word for relay in internet.relays for word in relay.option]
    text = host.run("edgeagent", "netcheck", *relays, timeout_s=CHECK_TIMEOUT_S).stdout
    assert re.search(r"^relays +2 of 2 reached, the nearest is 11\.0\.0\.[12]:443$", text, re.MULTILINE)
    assert re.search(r"^IPv4 +192\.168\.1\.2:(\d+) is seen as 11\.0\.0\.\d+:\1, port kept$", text, re.MULTILINE)
    assert re.search(r"^  mapping +endpoint-independent$", text, re.MULTILINE)
    assert re.search(r"^11\.0\.0\.1:443 +- +11\.0\.0\.1 +[\d.]+ ms +1500 +[\d.]+ ms +-$", text, re.MULTILINE)
    assert text.endswith("Direct paths to most networks; needs a relay with peers behind a symmetric NAT.\n")


@pytest.mark.parametrize("protocol", ["pcp", "upnp"])
def test_a_router_that_opens_ports(internet: Internet, protocol: str) -> None:
    if shutil.which("miniupnpd") is None:
        pytest.skip("needs miniupnpd: apt-get install miniupnpd-nftables")
    if protocol == "upnp" and importlib.util.find_spec("miniupnpc") is None:
        pytest.skip("needs miniupnpc: pip install miniupnpc")
    router, host = internet.home(Kind.PORT, f"open-{protocol}")
    config = MINIUPNPD_CONFIG
    if protocol == "upnp":
        config = config.replace("enable_natpmp=yes", "enable_natpmp=no").replace("enable_upnp=no", "enable_upnp=yes")
    router.host.run("nft", "-f", "-", input=MINIUPNPD_RULES)
    path = router.host.directory / "miniupnpd.conf"
    path.write_text(config)
    server = router.host.start("miniupnpd", "-d", "-f", path)
    server.expect("HTTP listening" if protocol == "upnp" else "Listening for NAT-PMP/PCP")
    found = internet.check(host)
    spoken = ["upnp"] if protocol == "upnp" else ["nat-pmp", "pcp"]
    assert sorted(row["protocol"] for row in found["port_mapping"]) == spoken
    assert {(row["gateway"], row["address"], row["interface"]) for row in found["port_mapping"]} == {
        ("192.168.1.1", router.address, "eth0")
    }
    assert "The router opens ports by" in found["advice"][0]
    assert (found["nat"]["ipv4"]["mapping"], found["nat"]["ipv4"]["filtering"]) == (EI, APD)
    rules = router.host.run("nft", "list", "chain", "inet", "filter", "prerouting_miniupnpd").stdout
    assert "dnat" not in rules  # what was opened to find out is closed again
    server.stop()


def test_a_gateway_of_ipv6_with_a_link_local_address(internet: Internet) -> None:
    net = internet.lab.net("192.168.1.0/24", "2001:db8:1::/64")
    router, host = internet.lab.host("v6-router", net), internet.lab.host("v6-host", net)
    router.ip("addr add fe80::1/64 dev eth0 nodad")
    host.ip("-6 route add default via fe80::1 dev eth0")
    server = PcpServer(2)
    server.address = ip_address(host.address6).packed  # not translated, only let in
    with inside(router), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as answering:
        answering.bind(("fe80::1", 5351, 0, socket.if_nametoindex("eth0")))
        answering.settimeout(CHECK_TIMEOUT_S)
        with ThreadPoolExecutor(1) as pool:
            checking = pool.submit(internet.check, host, *internet.relays[0].option, expect=1)
            asked, source = answering.recvfrom(2_048)
            answer = server.answer(1.0, asked)
            assert answer is not None
            answering.sendto(answer, source)
            found = checking.result(CHECK_TIMEOUT_S)
    [row] = found["port_mapping"]
    assert (row["protocol"], row["gateway"], row["address"]) == ("pcp", "fe80::1", host.address6)


# Against somebody else's server and client


@pytest.fixture(scope="module")
def coturn(internet: Internet) -> Host:
    """coturn with two addresses: it can answer from the other one, as no relay of ours does (RFC 5780)."""
    if shutil.which("turnserver") is None or shutil.which("turnutils_natdiscovery") is None:
        pytest.skip("needs coturn: apt-get install coturn")
    host = internet.lab.host("coturn", internet.net)
    host.ip("addr add 11.0.0.200/24 dev eth0")
    folder = host.directory
    host.start(
        "turnserver", "--stun-only", "--no-tls", "--no-dtls", "--no-cli", "-n", "--listening-port", "3478",
        "--alt-listening-port", "3479", "-L", host.address, "-L", "11.0.0.200", "--log-file", "stdout",
        "--pidfile", folder / "turnserver.pid",
    ).expect("Total General servers")  # fmt: skip
    return host


@pytest.mark.parametrize(
    ("kind", "mapping", "filtering"),
    [
        (Kind.FULL, EI, EI),
        pytest.param(Kind.ADDRESS, EI, AD, marks=pytest.mark.matrix),
        pytest.param(Kind.PORT, EI, APD, marks=pytest.mark.matrix),
        (Kind.SYMMETRIC, APD, APD),
    ],
)
def test_coturn_and_its_client_agree(
    internet: Internet, coturn: Host, kind: Kind, mapping: str, filtering: str
) -> None:
    """Their server with our check, and their check with their server: the same behaviour, in the same words."""
    _, host = internet.home(kind, f"theirs-{kind.value}")
    found = internet.check(host, "--relay", f"{coturn.address}:443", "--relay", "11.0.0.200:443", expect=0)
    nat = found["nat"]["ipv4"]
    assert (nat["mapping"], nat["filtering"]) == (mapping, filtering)
    said = host.run("turnutils_natdiscovery", "-m", "-f", coturn.address, check=False, timeout_s=CHECK_TIMEOUT_S)
    words = (said.stdout + said.stderr).lower()
    assert f"nat with {mapping.replace('-', ' ')} mapping" in re.sub(r"[-\s]+", " ", words), words
    assert f"nat with {filtering.replace('-', ' ')} filtering" in re.sub(r"[-\s]+", " ", words), words


def test_their_client_discovers_a_nat_by_our_relay(internet: Internet) -> None:
    if shutil.which("turnutils_stunclient") is None:
        pytest.skip("needs coturn: apt-get install coturn")
    router, host = internet.home(Kind.PORT, "theirs")
    said = host.run("turnutils_stunclient", internet.relays[0].host.address, check=False)
    assert f"UDP reflexive addr: {router.address}:" in said.stdout + said.stderr


def write_state(directory: Path, relays: list[dict[str, Any]]) -> None:
    """A device that has joined a network with these relays, and whose agent does not run."""
    signed = sign_object(
        CRYPTO, NETWORK_SEED, kind="map", network=NETWORK, subject=DEVICE.device_id, epoch=1, seq=1, wall_s=WALL_S,
        body={**MAP_BODY, "rl": relays},
    )  # fmt: skip
    admission = Admission(CRYPTO, network_key=NETWORK_KEY, ca_der=b"ca", map_object=signed, hosts=["hub.example:8883"])
    keystore = Keystore(str(directory))
    with contextlib.closing(keystore):
        keystore.open()
        keystore.save(StateFile.IDENTITY, DEVICE.encode())
        keystore.save(StateFile.ADMISSION, admission.encode())
