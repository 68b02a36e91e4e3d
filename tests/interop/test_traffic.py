"""edge-wireguard and wireguard-go carry each other's traffic."""

from __future__ import annotations

import json
import time

import pytest

from tests.interop.kit import EDGE, GO, READY_S, End, connected, outer, two_ends
from tests.netlab import Lab, until

SEEN_S = 2.5  # in which ours has looked at the routes, and let go of what no longer leads anywhere


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("initiator", [EDGE, GO])
def test_either_side_begins(lab: Lab, initiator: str, version: int) -> None:
    edge, go = two_ends(lab)
    first, second = (edge, go) if initiator == EDGE else (go, edge)
    key = lab.directory / "psk"
    key.write_text(first.host.run("wg", "genpsk").stdout)
    first.add(second, "endpoint", outer(second, version), "preshared-key", str(key))
    second.add(first, "preshared-key", str(key))
    first.up()
    second.up()
    until(lambda: first.reaches(second), READY_S, "answers")
    assert second.reaches(first)
    assert second.endpoint_of(first) == outer(first, version)
    assert first.handshake_at(second) and second.handshake_at(first)
    for end, other in ((first, second), (second, first)):
        received, sent = end.shows("transfer")[other.public_key].split()
        assert int(received) > 500 and int(sent) > 500


def test_a_wrong_preshared_key_reaches_nobody(lab: Lab) -> None:
    edge, go = two_ends(lab)
    keys = [lab.directory / "psk1", lab.directory / "psk2"]
    for key in keys:
        key.write_text(edge.host.run("wg", "genpsk").stdout)
    edge.add(go, "endpoint", outer(go), "preshared-key", str(keys[0]))
    go.add(edge, "preshared-key", str(keys[1]))
    edge.up()
    go.up()
    assert not edge.reaches(go)
    assert not edge.handshake_at(go)
    edge.set("peer", go.public_key, "preshared-key", str(keys[1]))
    until(lambda: edge.reaches(go), READY_S, "a tunnel under the right key")


@pytest.mark.parametrize("off", ["tx-udp-segmentation", "tx"])
def test_an_interface_that_cannot_segment(lab: Lab, off: str) -> None:
    """Without UDP segmentation the kernel cuts up; without checksums it refuses to, and each datagram goes alone."""
    edge, go = connected(lab)
    for end in (edge, go):
        end.host.run("ethtool", "-K", "eth0", off, "off")
    for how in ((), ("-R",)):
        server = go.host.start("iperf3", "-s", "-1", "--forceflush")
        server.expect("listening")
        result = json.loads(edge.host.run("iperf3", "-c", "10.9.0.2", "-t1", "-J", *how, timeout_s=30).stdout)
        assert result["end"]["sum_received"]["bytes"] > 1 << 20
        server.wait()


@pytest.mark.parametrize(
    "how", [(), ("-R",), ("-6",), ("-6", "-R"), ("-u", "-b10M", "-l1300"), ("-u", "-R", "-b2M", "-l200")], ids=" ".join
)
def test_streams(lab: Lab, how: tuple[str, ...]) -> None:
    edge, go = connected(lab)
    six = "-6" in how
    server = go.host.start("iperf3", "-s", "-1", "--forceflush")
    server.expect("listening")
    address = "fd09::2" if six else "10.9.0.2"
    result = json.loads(edge.host.run("iperf3", "-c", address, "-t1", "-J", *how, timeout_s=30).stdout)
    end = result["end"]
    if "-u" in how:
        assert end["sum"]["packets"] > 500
        assert end["sum"]["lost_percent"] < 50  # a busy machine loses some
    else:
        assert end["sum_received"]["bytes"] > 1e6
    assert edge.process.running


def test_two_of_ours(lab: Lab) -> None:
    a, b = connected(lab, EDGE, EDGE)
    assert b.reaches(a)
    until(lambda: a.host.run("ping", "-c50", "-i0.002", "-q", "-s1300", "10.9.0.2").returncode == 0, 10, "50 echoes")


def test_a_destination_without_a_peer_is_unreachable(lab: Lab) -> None:
    edge, _ = connected(lab)
    for address in ("10.9.0.77", "fd09::77"):
        said = edge.host.run("ping", "-n", "-c1", "-W2", address, check=False).stdout
        assert "nreachable" in said, said


def test_noise_at_the_port_changes_nothing(lab: Lab) -> None:
    edge, go = connected(lab)
    noise = lab.host("noise", lab.nets[0])
    noise.run("python3", "-c", MAKE_NOISE, edge.host.address)
    assert edge.reaches(go)
    assert edge.process.running


MAKE_NOISE = """
import os, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for i in range(2000):
    size = (3, 148, 92, 64, 32, 1400)[i % 6]
    s.sendto((bytes((i % 6, 0, 0, 0)) + os.urandom(size))[:size], (sys.argv[1], 51820))
"""


def test_the_peer_moves(lab: Lab) -> None:
    edge, go = connected(lab)
    go.host.ip(f"addr del {go.host.address}/24 dev eth0", "addr add 192.0.2.222/24 dev eth0")
    go.set("listen-port", "51820")  # wireguard-go holds on to a source address that vanished until it opens a port
    until(lambda: go.reaches(edge), READY_S, "the peer, from its new address")
    assert edge.endpoint_of(go) == "192.0.2.222:51820"
    assert edge.reaches(go)


def test_we_move_and_let_go_of_the_source_that_vanished(lab: Lab) -> None:
    edge, go = connected(lab)
    assert go.reaches(edge)  # so that our endpoint of it is pinned to the source address
    edge.host.ip(f"addr del {edge.host.address}/24 dev eth0", "addr add 192.0.2.111/24 dev eth0")
    until(lambda: edge.reaches(go), READY_S, "the peer, from our new address")
    assert go.endpoint_of(edge) == "192.0.2.111:51820"
    edge.host.ip("link set eth0 down")
    assert not edge.reaches(go)
    edge.host.ip("link set eth0 up")
    until(lambda: edge.reaches(go), READY_S, "the peer, when the link is back")


def with_a_better_route(lab: Lab) -> tuple[End, End]:
    """Two that have talked over one link, and whose routes lead over another one since."""
    edge, go = connected(lab)
    second = lab.net("198.51.100.0/24")
    for end in (edge, go):
        end.host.attach(second)
    assert go.reaches(edge)
    edge.host.ip(f"route add {go.host.address}/32 via 198.51.100.2")
    go.host.ip("route add 198.51.100.0/24 dev eth1 metric 1")
    return edge, go


def test_a_better_route_is_taken(lab: Lab) -> None:
    """What came in over one link is not answered over it for ever, once the route leads over another."""
    edge, go = with_a_better_route(lab)

    def moved() -> bool:
        edge.reaches(go)
        return go.endpoint_of(edge) == "198.51.100.1:51820"

    until(moved, READY_S, "the other link")
    assert edge.reaches(go)


@pytest.mark.parametrize("engine", ["pure", "fast"])
def test_a_better_route_is_taken_by_who_only_answers(lab: Lab, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    """Long after the change datagrams come in where they always did: each pins the address that they came to."""
    monkeypatch.setenv("EDGEAGENT_ENGINE", engine)
    edge, go = with_a_better_route(lab)
    time.sleep(SEEN_S)

    def moved() -> bool:
        go.reaches(edge)
        return go.endpoint_of(edge) == "198.51.100.1:51820"

    until(moved, READY_S, "the other link")
    assert go.reaches(edge)


def test_the_port_changes_in_use(lab: Lab) -> None:
    edge, go = connected(lab)
    edge.set("listen-port", "4444")
    until(lambda: edge.reaches(go), READY_S, "answers at the new port")
    assert go.endpoint_of(edge) == f"{edge.host.address}:4444"
    with_taken = edge.host.start("python3", "-c", TAKE_PORT)
    with_taken.expect("taken")
    refused = edge.host.run("wg", "set", "wg0", "listen-port", "5555", check=False)
    assert refused.returncode != 0 and "in use" in refused.stderr
    assert "4444" in edge.host.run("wg", "show", "wg0", "listen-port").stdout
    assert edge.reaches(go)
    edge.set("listen-port", "0")
    until(lambda: edge.reaches(go), READY_S, "answers at a port of the kernel's choice")
    assert edge.host.run("wg", "show", "wg0", "listen-port").stdout.strip() not in ("0", "4444")


TAKE_PORT = """
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", 5555))
print("taken", flush=True)
time.sleep(60)
"""


def test_the_mark_is_on_every_packet(lab: Lab) -> None:
    edge, go = connected(lab)
    edge.host.sh("nft add table inet t; nft add chain inet t out '{ type filter hook output priority 0; }'")
    edge.host.sh("nft add rule inet t out udp sport 51820 meta mark != 0x1234 drop")
    assert not edge.reaches(go)
    edge.set("fwmark", "0x1234")
    until(lambda: edge.reaches(go), READY_S, "answers with the mark")
    assert edge.host.run("wg", "show", "wg0", "fwmark").stdout.strip() == "0x1234"


def test_down_and_up_again(lab: Lab) -> None:
    edge, go = connected(lab)
    edge.host.ip("link set wg0 down")
    until(lambda: "51820" not in edge.host.sh("ss -Hunl"), READY_S, "the port closed")
    edge.up()
    edge.host.ip("addr replace fd09::1/64 dev wg0 nodad")
    until(lambda: edge.reaches(go), READY_S, "a tunnel again")


def test_the_interface_moves_into_another_namespace(lab: Lab) -> None:
    """The sockets stay where the interface was made: a container whose only way out is the tunnel."""
    edge, go = connected(lab)
    container = lab.host("container")
    edge.host.ip(f"link set wg0 netns {container.namespace}")
    container.ip("addr add 10.9.0.1/24 dev wg0", "link set wg0 up")
    until(lambda: container.ping("10.9.0.2") is not None, READY_S, "the peer, from the container")
    container.ip("link del wg0")
    assert edge.process.wait() == 0
    assert go.process.running


def test_a_mtu_below_and_above(lab: Lab) -> None:
    edge, go = connected(lab)
    for mtu in (1280, 1420, 8000):
        for end in (edge, go):
            end.host.ip(f"link set wg0 mtu {mtu}")
        assert edge.host.run("ping", "-c2", "-i0.2", "-Mdo", f"-s{mtu - 28}", "10.9.0.2").returncode == 0


@pytest.mark.slow
def test_keys_are_renewed_in_time_and_nothing_is_lost(lab: Lab) -> None:
    edge, go = connected(lab)
    first = edge.handshake_at(go)
    pinger = edge.host.start("ping", "-i0.1", "-w200", "-q", "10.9.0.2")
    until(lambda: edge.handshake_at(go) > first, 150, "new keys")
    assert 119 <= edge.handshake_at(go) - first <= 130
    pinger.expect("packet loss", timeout_s=100)
    assert " 0% packet loss" in pinger.text()


def test_ecn_is_carried(lab: Lab) -> None:
    """The inner field is copied outside, and a mark that is set on the way arrives inside (RFC 6040)."""
    edge, other = connected(lab, EDGE, EDGE)
    other.host.sh("nft add table ip t; nft add chain ip t pre '{ type filter hook prerouting priority -300; }'")
    other.host.sh("nft add rule ip t pre udp dport 51820 ip ecn ect0 counter ip ecn set ce")
    receiver = other.host.start("python3", "-c", RECEIVE_TOS)
    receiver.expect("ready")
    edge.host.run("python3", "-c", SEND_ECT0)
    assert receiver.expect(r"tos (\d+)")[1] == "3"


RECEIVE_TOS = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IP, 13, 1)
s.bind(("10.9.0.2", 7))
s.settimeout(10)
print("ready", flush=True)
print("tos", s.recvmsg(100, 100)[1][0][2][0], flush=True)
"""
SEND_ECT0 = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 2)
s.sendto(b"x", ("10.9.0.2", 7))
"""


def test_a_site_behind_each_end(lab: Lab) -> None:
    """Forwarded streams: super-packets from a LAN through both ends, the checksums seen by the kernels behind."""
    wan, left, right = lab.net("192.0.2.0/24"), lab.net("10.1.0.0/24"), lab.net("10.2.0.0/24")
    gateways = [lab.router("ga", left, wan), lab.router("gb", right, wan)]
    clients = [lab.host("ca", left), lab.host("cb", right)]
    ends = []
    for number, (gateway, lan) in enumerate(zip(gateways, (left, right), strict=True), 1):
        gateway.ports.reverse()  # its address is the one on the WAN
        assert gateway.address.startswith("192.0.2.")
        ends.append(End(gateway, EDGE, number))
        assert lan.gateway is not None
    a, b = ends
    a.set("peer", b.public_key, "allowed-ips", "10.2.0.0/24", "endpoint", outer(b))
    b.set("peer", a.public_key, "allowed-ips", "10.1.0.0/24", "endpoint", outer(a))
    for end, route in ((a, "10.2.0.0/24"), (b, "10.1.0.0/24")):
        end.up()
        end.host.ip(f"route add {route} dev wg0")
    until(lambda: clients[0].ping(clients[1].address) is not None, READY_S, "the other site")
    server = clients[1].start("iperf3", "-s", "-1", "--forceflush")
    server.expect("listening")
    said = clients[0].run("iperf3", "-c", clients[1].address, "-t1", "-J", timeout_s=30).stdout
    assert json.loads(said)["end"]["sum_received"]["bytes"] > 5e6
    errors = clients[1].sh("grep ^Tcp: /proc/net/snmp | tail -1").split()[-1]
    assert errors == "0"
