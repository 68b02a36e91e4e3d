"""4via6 with a real translator: two sites with one IPv4 network, told apart by their numbers; what is refused, what is
said where the translator is missing, and what is left."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netlab import Lab, rights, until
from tests.netlab.host import Host
from tests.netlab.mesh import Device, Mesh

SITE = "192.168.1.0/24"
HOST = "192.168.1.20"
TCP = """
import socket, sys
sock = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
while True:
    made, address = sock.accept()
    with made:
        made.sendall(f"{sys.argv[3]} {address[0]}".encode())
"""
UDP = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((sys.argv[1], 7777))
print("ready", flush=True)
while True:
    data, address = sock.recvfrom(65535)
    sock.sendto(data, address)
"""
# By name, as programs do it: what the device's own name server says is what is connected to
FETCH = """
import socket, subprocess, sys
name, port, wait = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
if ":" not in name:
    command = ["dig", "@100.100.100.100", "+short", "+time=2", "+tries=1", name, "AAAA"]
    name = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
try:
    with socket.create_connection((name, port), wait) as sock:
        print(sock.recv(200).decode())
except OSError as error:
    print(f"refused: {error}")
"""
ASK_UDP = """
import os, socket, sys
size, tries = int(sys.argv[2]), int(sys.argv[3])
sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
sock.settimeout(2)
sock.connect((sys.argv[1], 7777))
for _ in range(tries):  # the first may be lost to the search for the path's MTU
    data = os.urandom(size)
    try:
        sock.send(data)
        while True:
            if sock.recv(65535) == data:
                print("whole")
                sys.exit()
    except OSError as error:
        print(error, file=sys.stderr)
"""
KERNEL = (
    "nft list ruleset; ip -o link show | sed 's/@.*//' | cut -d: -f2; ip route; ip -6 route show | grep -v fe80; "
    "sysctl net.ipv4.conf.eth0.forwarding net.ipv4.conf.eth1.forwarding net.ipv6.conf.all.forwarding"
)
MISSING = [
    name
    for name in ("nft", "tayga", "dig")
    if not any(os.access(f"{folder}/{name}", os.X_OK) for folder in ("/usr/sbin", "/sbin", "/usr/bin"))
]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


def address(site: int, host: str = HOST) -> str:
    a, b, c, d = (int(part) for part in host.split("."))
    return f"fd2e:966:3c02::{site:x}:{a << 8 | b:x}:{c << 8 | d:x}"


class Sites:
    """A hub, a device, and two sites: `r7` and `r8` with a leg in each, and a host at the same address in each."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.net = lab.net("198.51.100.0/24", "2001:db8::/64")
        self.mesh = Mesh(lab, self.net)
        self.mesh.start_hub()
        self.token = self.mesh.token("--uses", "0")
        self.a = self.device("a")
        self.a.up(self.token)
        self.hosts: dict[int, Host] = {}
        self.routers: dict[int, Device] = {}

    def device(self, name: str) -> Device:
        return self.mesh.device(name, self.net)

    def site(self, number: int) -> Device:
        """Its host serves, its router has not joined yet."""
        inside = self.lab.net(SITE, f"fd00:{number:x}::/64")
        host = self.lab.host(f"host{number}", inside)
        host.run("ip", "address", "add", f"{HOST}/24", "dev", "eth0")
        for port in (8080, 8081):
            host.start("python3", "-c", TCP, HOST, str(port), f"site{number}", name=f"tcp{port}").expect("ready")
        host.start("python3", "-c", UDP, HOST, name="udp").expect("ready")
        router = self.device(f"r{number}")
        router.host.attach(inside)
        router.options = ["--advertise-routes", f"{SITE}@{number}"]
        self.hosts[number], self.routers[number] = host, router
        return router

    def join(self, number: int) -> Device:
        router = self.site(number)
        router.up(self.token)
        router.options = []
        self.approve(number)
        until(lambda: tayga(router), 10, "a translator")
        until(lambda: self.fetch(number).startswith("site"), 15, f"an answer from site {number}")
        return router

    def approve(self, number: int) -> None:
        words = ("edgehub", "routes", "approve", f"r{number}", f"{SITE}@{number}")
        until(lambda: self.mesh.hub.run(*words, check=False).returncode == 0, 5, "approval")

    def fetch(self, number: int, port: int = 8080, wait_s: float = 2.0) -> str:
        name = f"{HOST.replace('.', '-')}-via-{number}.lab"
        return self.a.host.run("python3", "-c", FETCH, name, str(port), f"{wait_s:g}").stdout.strip()

    def fetch_address(self, there: str, port: int = 8080) -> str:
        return self.a.host.run("python3", "-c", FETCH, there, str(port), "2").stdout.strip()

    def udp(self, number: int, size: int) -> str:
        return self.a.host.run("python3", "-c", ASK_UDP, address(number), str(size), "4", check=False).stdout.strip()


@pytest.fixture
def sites() -> Iterator[Sites]:
    if why := rights.missing():
        pytest.skip(why)
    with Lab() as lab:
        yield Sites(lab)


def tayga(router: Device) -> list[int]:
    """Process ids of translators under this device's configuration."""
    marks = f"{router.host.directory}/".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if line.split(b"\0")[0].endswith(b"tayga") and marks in line:
                found.append(int(entry.name))
    return found


def test_two_sites_with_one_network(sites: Sites) -> None:
    a = sites.a
    r7, r8 = sites.join(7), sites.join(8)
    # By name, and each sees its own router as the source
    assert sites.fetch(7) == f"site7 {r7.host.ports[1].v4}"
    assert sites.fetch(8) == f"site8 {r8.host.ports[1].v4}"
    for number in (7, 8):
        assert a.host.ping(address(number), 3) is not None
        # More than fits in one packet: fragments on the way there, and back
        assert [sites.udp(number, size) for size in (1_400, 8_000)] == ["whole", "whole"]
    # The router's own address in the site is one of the prefix
    assert a.host.ping(address(7, r7.host.ports[1].v4), 3) is not None
    # The site's hosts learn what fits: larger TCP segments than the tunnel takes come whole
    sites.hosts[7].start("iperf3", "-s", "-1", "--forceflush", "-B", HOST, name="iperf3").expect("listening")
    sent = json.loads(a.host.run("iperf3", "-c", address(7), "-R", "-n", "2M", "--json", timeout_s=30).stdout)
    assert sent["end"]["sum_received"]["bytes"] >= 2_000_000
    # What the hub and the devices show
    rows = json.loads(sites.mesh.hub.run("edgehub", "routes", "list", "--json").stdout)
    assert {(row["via"], row["device"], row["state"]) for row in rows} == {
        (f"{SITE} via 7", "r7", "in use"),
        (f"{SITE} via 8", "r8", "in use"),
    }
    assert f"uses     {SITE} via 7" in a.host.run("edgeagent", "routes").stdout
    assert f"offers   {SITE} via 7" in r7.host.run("edgeagent", "routes").stdout
    # Through a device only what was approved: another prefix of the site's IPv4 world is refused behind it as well
    elsewhere = "10.9.9.9"
    sites.hosts[7].run("ip", "address", "add", f"{elsewhere}/32", "dev", "eth0")
    r7.host.run("ip", "route", "add", f"{elsewhere}/32", "dev", "eth1")
    serve = sites.hosts[7].start("python3", "-c", TCP, elsewhere, "8080", "elsewhere", name="elsewhere")
    serve.expect("ready")
    a.host.run("ip", "-6", "route", "add", f"{address(7, elsewhere)}/128", "dev", "edge0")
    assert sites.fetch_address(address(7, elsewhere)).startswith("refused")
    # Not even where the router's own kernel would lead there: the translator is let speak to the prefix alone
    r7.host.run("ip", "-6", "route", "add", f"{address(7, elsewhere)}/128", "dev", "edge0-via")
    direct = r7.host.run("python3", "-c", FETCH, address(7, elsewhere), "8080", "2").stdout
    assert direct.startswith("refused")
    inside = r7.host.run("python3", "-c", FETCH, address(7), "8080", "2").stdout
    assert inside.startswith("site7")  # the same way for what is approved


def test_a_policy_judges_what_is_translated(sites: Sites) -> None:
    sites.join(7)
    assert sites.fetch(7, 8081).startswith("site7")
    policy = {
        "hosts": {"plant": f"{address(7, '192.168.1.0')}/120"},
        "grants": [{"src": ["*"], "dst": ["plant"], "ip": ["tcp:8080"]}],
    }
    sites.mesh.hub.run("edgehub", "policy", "set", "-", input=json.dumps(policy))
    until(lambda: sites.fetch(7, 8081, 1.0).startswith("refused"), 15, "the other port is closed")
    assert sites.fetch(7, 8080).startswith("site7")


def test_a_translator_that_dies_comes_back(sites: Sites) -> None:
    router = sites.join(7)
    (first,) = tayga(router)
    os.kill(first, signal.SIGKILL)
    until(lambda: [pid for pid in tayga(router) if pid != first], 10, "another translator")
    until(lambda: sites.fetch(7, wait_s=1.0).startswith("site7"), 10, "an answer from the site")
    assert router.ask("routes")["problems"] == []


def test_all_is_put_back_at_the_end_and_after_a_kill(sites: Sites) -> None:
    router = sites.site(7)
    before = router.host.sh(KERNEL)
    router.up(sites.token)
    router.options = []
    sites.approve(7)
    until(lambda: sites.fetch(7, wait_s=1.0).startswith("site7"), 15, "an answer from the site")
    router.host.run("edgeagent", "down")
    assert (router.host.sh(KERNEL), tayga(router)) == (before, [])
    router.up()
    until(lambda: sites.fetch(7, wait_s=1.0).startswith("site7"), 15, "an answer from the site")
    (orphan,) = tayga(router)
    os.kill(router.pid(), signal.SIGKILL)
    until(lambda: '"agent": null' in router.host.run("edgeagent", "version", "--json").stdout, 5, "the end of it")
    assert tayga(router) == [orphan]  # nobody was there to end it
    router.up()
    until(lambda: tayga(router) and orphan not in tayga(router), 10, "a translator of the new agent's own")
    assert len(tayga(router)) == 1
    until(lambda: sites.fetch(7, wait_s=1.0).startswith("site7"), 15, "an answer from the site")
    router.host.run("edgeagent", "routes", "set", "--advertise-routes", "")
    until(lambda: "edge0-via" not in router.host.sh("ip link"), 5, "the interface is gone")
    router.host.run("edgeagent", "down")
    assert (router.host.sh(KERNEL), tayga(router)) == (before, [])


def test_without_the_program_it_is_said_and_not_offered(sites: Sites) -> None:
    router = sites.site(7)
    bare = router.host.directory / "none"
    bare.write_text("")
    bare.chmod(0o644)
    hide = ["unshare", "--mount", "sh", "-ec", 'mount --bind "$0" /usr/sbin/tayga && exec "$@"', str(bare)]
    router.words = hide
    router.up(sites.token)
    said = "tayga is not installed, so no IPv4 prefix under IPv6 (4via6) is offered. Install the package tayga"
    until(lambda: any(said in text for text in router.ask("routes")["problems"]), 5, "what is missing")
    assert f"PROBLEM  {said}" in router.host.run("edgeagent", "routes").stdout
    assert said in router.host.run("edgeagent", "status", "--log").stdout
    doctor = router.host.run(*hide, "edgeagent", "doctor", check=False).stdout
    assert "4via6" in doctor and "Install the package tayga" in doctor
    rows = json.loads(sites.mesh.hub.run("edgehub", "routes", "list", "--json").stdout)
    assert rows == []
