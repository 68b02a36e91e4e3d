"""Real agents that route for others: a site behind one and two, an exit node, a plain client; what is left."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.netlab import Lab, LabError, rights, until
from tests.netlab.host import Host
from tests.netlab.mesh import Device, Mesh

SITE, SITE_6 = "192.168.7.0/24", "fd00:7::/64"
LISTEN = """
import socket, sys
sock = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((sys.argv[1], 7777))
print("ready", flush=True)
while True:
    data, address = sock.recvfrom(2048)
    sock.sendto(address[0].encode(), address)
"""
ASK = """
import socket, sys
sock = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(float(sys.argv[2]))
sock.connect((sys.argv[1], 7777))
sock.send(b"who am I?")
print(sock.recv(2048).decode())
"""
KERNEL = (
    "nft list ruleset; ip rule; ip -6 rule; "
    "sysctl net.ipv4.conf.eth0.forwarding net.ipv4.conf.all.forwarding net.ipv4.conf.all.rp_filter "
    "net.ipv6.conf.all.forwarding net.ipv6.conf.eth0.accept_ra"
)
NFT = any(os.path.exists(f"{directory}/nft") for directory in ("/usr/sbin", "/sbin", "/usr/bin"))
pytestmark = pytest.mark.skipif(not NFT, reason="nft is not installed")


class Site:
    """A network, whose gateway leads to `outside`, and a site behind two devices with a host in it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.net = lab.net("198.51.100.0/24", "2001:db8::/64")
        self.outside = lab.net("203.0.113.0/24", "2001:db8:1::/64")
        self.inside = lab.net(SITE, SITE_6)
        lab.router("gateway", self.net, self.outside)
        self.mesh = Mesh(lab, self.net)
        self.mesh.start_hub()
        self.token = self.mesh.token("--uses", "0")
        self.host = lab.host("host", self.inside)
        for address in (self.host.ports[0].v4, self.host.ports[0].v6):
            listen(self.host, str(address))

    def join(self, name: str, *options: str) -> Device:
        device = self.mesh.device(name, self.net)
        device.options = list(options)
        device.up(self.token)
        return device

    def router(self, name: str, *options: str) -> Device:
        """A device with a leg in the site, which offers and may route it."""
        device = self.mesh.device(name, self.net)
        device.host.attach(self.inside)
        before = device.host.sh(KERNEL)
        device.options = ["--advertise-routes", f"{SITE},{SITE_6}", *options]
        device.up(self.token)
        device.options = []
        assert device.host.sh(KERNEL) == before  # not before it is approved
        self.approve(name)
        until(lambda: "masquerade" in device.host.sh(KERNEL) or "--no-snat" in options, 10, f"{name} routes")
        return device

    def approve(self, name: str, *prefixes: str) -> None:
        """As soon as the hub has heard of the offer."""
        until(
            lambda: self.mesh.hub.run("edgehub", "routes", "approve", name, *prefixes, check=False).returncode == 0,
            5,
            name,
        )

    def routes(self) -> dict[tuple[str, str], str]:
        """State by prefix and device, as the hub has it."""
        rows = json.loads(self.mesh.hub.run("edgehub", "routes", "list", "--json").stdout)
        return {(row["prefix"], row["device"]): row["state"] for row in rows}


@pytest.fixture
def site() -> Iterator[Site]:
    if why := rights.missing():
        pytest.skip(why)
    with Lab() as lab:
        yield Site(lab)


def listen(host: Host, address: str) -> None:
    host.start("python3", "-c", LISTEN, address, name="listen").expect("ready")


def seen_as(asker: Host, address: str, timeout_s: float = 3.0) -> str | None:
    """Which source a listener saw; None where no answer came."""
    result = asker.run("python3", "-c", ASK, address, f"{timeout_s:g}", check=False)
    return result.stdout.strip() or None


def kill(device: Device) -> None:
    """As a power cut would, but for the kernel."""
    os.kill(device.pid(), signal.SIGKILL)
    until(lambda: '"agent": null' in device.host.run("edgeagent", "version", "--json").stdout, 5, "the end of it")


def uses(device: Device, prefix: str = SITE) -> None:
    def has() -> bool:
        rows = {row["prefix"]: row["in_kernel"] for row in device.ask("routes")["used"]}
        return bool(rows.get(prefix))

    until(has, 10, f"{device.name} uses {prefix}")


def has_path(a: Device, b: Device) -> None:
    until(lambda: a.host.ping(b.address), 10, f"{b.name} answers {a.name}")


def test_a_host_behind_a_router_with_and_without_translation(site: Site) -> None:
    a = site.join("a")
    before_a, host = a.host.sh(KERNEL), site.host.ports[0]
    router = site.router("r")
    inside = router.host.ports[1]
    uses(a)
    until(lambda: seen_as(a.host, host.v4), 10, "an answer from the site")
    assert seen_as(a.host, host.v4) == inside.v4
    assert seen_as(a.host, str(host.v6)) == inside.v6
    # Nothing else is to be had through it, and what is not routed is not let through by mistake
    assert a.host.ping("203.0.113.1") is not None  # by its own gateway
    a.host.run("ip", "route", "add", "203.0.113.0/24", "dev", "edge0", "metric", "1")
    assert a.host.ping("203.0.113.1") is None
    a.host.run("ip", "route", "del", "203.0.113.0/24", "dev", "edge0", "metric", "1")
    # Sources as they are: the site has to know the way back
    router.host.run("edgeagent", "routes", "set", "--snat", "off")
    site.host.run("ip", "route", "add", "100.64.0.0/10", "via", inside.v4)
    site.host.run("ip", "route", "add", f"{a.addresses[1]}/128", "via", str(inside.v6))
    until(lambda: seen_as(a.host, host.v4) == a.address, 5, "the source as it is")
    # And the other way round, from a host that runs no agent
    assert site.host.ping(a.address, 3) is not None
    # Taken back
    site.mesh.hub.run("edgehub", "routes", "unapprove", "r", SITE)
    until(lambda: SITE not in a.host.sh("ip route show table 5300"), 10, "the route is gone")
    assert a.host.ping(host.v4) is None
    assert site.routes()[SITE, "r"] == "waits for approval"
    assert a.host.ping(str(host.v6)) is not None
    a.host.run("edgeagent", "routes", "set", "--accept-routes", "no")
    assert a.host.sh(KERNEL) == before_a


def test_what_a_killed_router_left_is_put_back(site: Site) -> None:
    a = site.join("a")
    router = site.mesh.device("r", site.net)
    router.host.attach(site.inside)
    before = router.host.sh(KERNEL)
    router.options = ["--advertise-routes", f"{SITE},{SITE_6}"]
    router.up(site.token)
    router.options = []
    site.approve("r")
    uses(a)
    until(lambda: seen_as(a.host, site.host.ports[0].v4), 10, "an answer from the site")
    during = router.host.sh(KERNEL)
    assert during != before
    kill(router)
    assert router.host.sh(KERNEL) == during  # nobody was there to put it back
    # What it offers is kept: it goes on, and ends in order
    router.up()
    until(lambda: seen_as(a.host, site.host.ports[0].v4), 10, "an answer from the site")
    router.host.run("edgeagent", "down")
    assert router.host.sh(KERNEL) == before
    # Killed, and the next one is to route no more
    router.up()
    until(lambda: router.host.sh(KERNEL) == during, 10, "it routes again")
    kill(router)
    router.options = ["--advertise-routes", ""]
    router.up()
    until(lambda: router.host.sh(KERNEL) == before, 5, "all is as it was")
    assert site.routes()[SITE, "r"] == "approved, not offered"


def test_two_sites_with_one_prefix(site: Site) -> None:
    a = site.join("a")
    other = site.lab.net(SITE, "fd00:8::/64")
    twin = site.lab.host("twin", other)
    assert twin.address == site.host.address
    listen(twin, twin.address)
    seen = {}
    for name, inside, shown in (("r1", site.inside, "10.77.1.0/24"), ("r2", other, "10.77.2.0/24")):
        router = site.mesh.device(name, site.net)
        port = router.host.attach(inside)
        router.options = ["--advertise-routes", f"{shown}={SITE}"]
        router.up(site.token)
        site.approve(name)
        uses(a, shown)
        address = shown.replace("0/24", site.host.address.rpartition(".")[2])
        until(lambda address=address: seen_as(a.host, address), 10, f"an answer from {address}")  # type: ignore[misc]
        assert seen_as(a.host, address) == port.v4
        seen[name] = router
    assert a.host.ping(site.host.address) is None  # there is no telling which
    # From the site on, its hosts are known as what the network calls them
    seen["r1"].host.run("edgeagent", "routes", "set", "--snat", "off")
    site.host.run("ip", "route", "add", "100.64.0.0/10", "via", seen["r1"].host.ports[1].v4)
    listen(a.host, a.address)
    until(lambda: seen_as(site.host, a.address) == "10.77.1.1", 10, "the mapped source")


def test_a_device_does_not_lose_its_own_network(site: Site) -> None:
    """It is in the site itself, and may use the site's prefix."""
    neighbour = site.mesh.device("neighbour", site.net)
    neighbour.host.attach(site.inside)
    neighbour.up(site.token)
    site.router("r")
    uses(neighbour)
    sees = seen_as(neighbour.host, site.host.ports[0].v4)
    assert sees == neighbour.host.ports[1].v4
    assert "dev eth1" in neighbour.host.run("ip", "route", "get", site.host.ports[0].v4).stdout


def test_another_router_takes_over(site: Site) -> None:
    a = site.join("a")
    routers = {device.name: device for device in (site.router("r1"), site.router("r2"))}
    address = site.host.ports[0].v4
    uses(a)
    until(lambda: seen_as(a.host, address), 10, "an answer from the site")
    (first,) = {row["router"] for row in a.ask("routes")["used"] if row["prefix"] == SITE}
    time.sleep(3)  # the other one stands by
    assert site.mesh.server is not None
    site.mesh.server.kill()  # nobody is asked
    kill(routers[first])
    routers[first].host.run("ip", "link", "set", "eth1", "down")
    gap_s = gap(a.host, address)
    print(f"another router has taken over after {gap_s:.1f} s")
    (second,) = {row["router"] for row in a.ask("routes")["used"] if row["prefix"] == SITE}
    assert {first, second} == set(routers)
    assert seen_as(a.host, address) == routers[second].host.ports[1].v4


def gap(asker: Host, address: str) -> float:
    """Seconds without an answer, from now on."""
    began = time.monotonic()
    while time.monotonic() - began < 30:
        if seen_as(asker, address, 0.2):
            return time.monotonic() - began
    raise LabError(f"{address} did not answer again")


def test_an_exit_node(site: Site) -> None:
    server = site.lab.host("server", site.outside)
    addresses = [server.ports[0].v4, str(server.ports[0].v6)]
    for address in addresses:
        listen(server, address)
    a, other = site.join("a"), site.join("other")
    before = a.host.sh(KERNEL)
    direct = [seen_as(a.host, address) for address in addresses]
    assert direct == [a.host.ports[0].v4, a.host.ports[0].v6]
    leaves = site.mesh.device("leaves", site.net)
    leaves.host.attach(site.outside)
    gateway = site.outside.gateway
    assert gateway is not None
    leaves.host.run("ip", "route", "replace", "default", "via", gateway.v4)
    leaves.host.run("ip", "-6", "route", "replace", "default", "via", str(gateway.v6))
    leaves.options = ["--advertise-exit-node"]
    leaves.up(site.token)
    refused = a.host.run("edgeagent", "exit-node", "set", "leaves", check=False)
    assert refused.returncode == 1 and "no exit node" in refused.stderr
    site.approve("leaves", "exit")
    until(lambda: "masquerade" in leaves.host.sh("nft list ruleset"), 10, "it is an exit node")
    until(lambda: a.host.run("edgeagent", "exit-node", "set", "leaves", check=False).returncode == 0, 10, "it is one")
    through = [leaves.host.ports[1].v4, leaves.host.ports[1].v6]
    until(lambda: [seen_as(a.host, address) for address in addresses] == through, 15, "everything goes through it")
    neighbour = str(site.mesh.hub.address)
    assert a.host.ping(neighbour) is None  # not even to its own network
    has_path(a, other)
    assert a.ask("status")["hub"]["connected"]
    a.host.run("edgeagent", "exit-node", "set", "leaves", "--allow-lan")
    assert a.host.ping(neighbour) is not None
    a.host.run("edgeagent", "exit-node", "set", "leaves")
    # A broker that is lost is found again past the tunnel
    assert site.mesh.server is not None
    site.mesh.server.kill()
    site.mesh.start_hub()
    until(lambda: a.ask("status")["hub"]["connected"], 30, "connected")
    # An agent that is killed comes back to it
    kill(a)
    a.up()
    until(lambda: [seen_as(a.host, address) for address in addresses] == through, 15, "everything goes through it")
    # The exit node is down: nothing leaves past it
    kill(leaves)
    for _ in range(3):
        assert [seen_as(a.host, address, 1.0) for address in addresses] == [None, None]
    a.host.run("edgeagent", "exit-node", "off")
    assert [seen_as(a.host, address) for address in addresses] == direct
    until(lambda: a.host.sh(KERNEL) == before, 5, "all is as it was")


@pytest.mark.parametrize("program", ["wireguard-go", "edge-wireguard"])
def test_a_plain_client_behind_a_gateway(site: Site, program: str) -> None:
    a = site.join("a")
    gateway = site.router("gw")
    before = gateway.host.sh(KERNEL)
    phone = site.lab.host("phone", site.net)
    endpoint = f"{gateway.host.address}:51820"
    made = site.mesh.hub.run("edgehub", "client", "add", "phone", "--gateway", "gw", "--endpoint", endpoint, "--json")
    added = json.loads(made.stdout)
    config = dict(line.split(" = ", 1) for line in added["config"].splitlines() if " = " in line)
    until(lambda: gateway.host.sh(KERNEL) != before, 10, "the gateway knows of it")
    phone.start(program, "-f", "wg0", env={"WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD": "1"})
    until(lambda: phone.run("ip", "link", "show", "wg0", check=False).returncode == 0, 5, "wg0")
    (phone.directory / "key").write_text(config["PrivateKey"])
    phone.run(
        *("wg", "set", "wg0", "private-key", str(phone.directory / "key"), "peer", config["PublicKey"]),
        *("allowed-ips", config["AllowedIPs"].replace(" ", ""), "endpoint", config["Endpoint"]),
    )
    for address in config["Address"].split(", "):
        phone.run("ip", "address", "add", address, "dev", "wg0")
    phone.run("ip", "link", "set", "wg0", "up", "mtu", "1280")
    for prefix in config["AllowedIPs"].split(", "):
        phone.run("ip", "route", "add", prefix, "dev", "wg0")
    v4, v6 = added["addresses"]
    until(lambda: phone.ping(a.address, 2), 15, "the client reaches a device")
    for address in a.addresses:
        assert phone.ping(address, 3) is not None
    for address in (v4, v6):  # and is reached
        assert a.host.ping(address, 3) is not None
    assert seen_as(phone, site.host.ports[0].v4) == gateway.host.ports[1].v4  # what its gateway routes, too
    whois = a.ask("whois", v4)
    assert whois["name"] == "gw"
    site.mesh.hub.run("edgehub", "client", "remove", "phone")
    until(lambda: phone.ping(a.address) is None, 10, "the client is cut off")
    until(lambda: gateway.host.sh(KERNEL) == before, 10, "the gateway has forgotten it")
