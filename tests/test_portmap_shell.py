"""The shell of port mapping against miniupnpd on a router of the lab: PCP, NAT-PMP and UPnP, opened and given back."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from os import urandom
from random import random
from selectors import DefaultSelector

import pytest

from edgeagent.io.portmap import PortMapShell, Uplink
from edgeagent.io.upnpjob import ROOM_BYTES
from tests.netlab import Host, Lab, until
from tests.netlab.nat import Kind, NatRouter
from tests.netlab.process import Process
from tests.netlab.sockets import inside, receive, udp_socket
from tests.test_portmap import Router as PcpServer
from tests.test_portmap_miniupnpd import CONFIG, PORT, RULES, only_natpmp

UPNP_CONFIG = CONFIG.replace("enable_natpmp=yes", "enable_natpmp=no").replace("enable_upnp=no", "enable_upnp=yes")
TAKE_PORT = f"""
import sys, miniupnpc
router = miniupnpc.UPnP(sys.argv[1], None, 1_000, 0)
router.discover()
router.selectigd()
router.addportmapping({PORT}, "UDP", sys.argv[1], {PORT}, "neighbour", "", 600)
"""

# Answers every search for a router in the router's name, with a description that never ends
_BUFFERS = "4096 65536 262144"  # TCP's least, usual and most, bytes
ROGUE = """
import socket, sys, threading
address, most = sys.argv[1], 256 << 20
web = socket.create_server((address, 8080))
def serve():
    while True:
        client, _ = web.accept()
        sent = client.recv(4096) and 0
        try:
            client.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n")
            while sent < most:
                client.sendall(b"<a>" * 20_000)
                sent += 60_000
        except OSError:
            pass
        print("sent", sent >> 20, "MiB", flush=True)
        client.close()
threading.Thread(target=serve, daemon=True).start()
heard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
heard.bind(("239.255.255.250", 1900))
group = socket.inet_aton("239.255.255.250") + socket.inet_aton(address)
heard.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
print("listening", flush=True)
while True:
    asked, source = heard.recvfrom(2000)
    kind = next(line for line in asked.split(b"\\r\\n") if line.upper().startswith(b"ST:"))
    where = f"LOCATION: http://{address}:8080/d.xml".encode()
    heard.sendto(b"\\r\\n".join([b"HTTP/1.1 200 OK", kind, b"USN: x", where, b"", b""]), source)
"""


class Home:
    """A device behind a router that may run miniupnpd, a stranger outside, and the shell with its selector."""

    def __init__(self, lab: Lab, stack: contextlib.ExitStack) -> None:
        # Not a documentation prefix: miniupnpd would not map to one.
        internet, lan = lab.net("11.0.0.0/24"), lab.net("192.168.1.0/24")
        self.router = NatRouter(lab, "router", lan, internet, Kind.PORT)
        self.device = lab.host("device", lan)
        self.neighbour = lab.host("neighbour", lan)
        self.stranger = lab.host("stranger", internet)
        self.outside = packed(self.router.address)
        self.uplink: Uplink = ("eth0", packed(lan.ports[0].v4), packed(self.device.address), PORT)
        self.listening = stack.enter_context(udp_socket(self.device, "", PORT))
        self.selector = stack.enter_context(DefaultSelector())
        self.shell = PortMapShell(self.selector, urandom, random)
        self.ahead_s = 0.0

    def now(self) -> float:
        return time.monotonic() + self.ahead_s

    def start_server(self, config: str) -> Process:
        self.router.host.run("nft", "-f", "-", input=RULES)
        path = self.router.host.directory / "miniupnpd.conf"
        path.write_text(config)
        process = self.router.host.start("miniupnpd", "-d", "-f", path)
        process.expect("Listening for NAT-PMP/PCP" if config is CONFIG else "HTTP listening")
        return process

    def set_uplinks(self, *uplinks: Uplink) -> None:
        with inside(self.device):
            self.shell.set_uplinks(self.now(), list(uplinks))

    def turn(self) -> None:
        with inside(self.device):
            for key, _ in self.selector.select(0):
                key.data(self.now(), key.fd)
            due = self.shell.poll_timeout()
            if due is not None and due <= self.now():
                self.shell.on_timeout(self.now())

    def pump_until(self, done: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
        def step() -> bool:
            self.turn()
            return done()

        until(step, timeout_s, what)

    def is_open(self, port: int = PORT) -> bool:
        with udp_socket(self.stranger) as stranger:  # a new one each time: the router remembers those that came in
            stranger.sendto(b"stranger", (self.router.address, port))
            heard = receive(self.listening, 0.2)
        return heard is not None and heard[0] == b"stranger"

    def protocols(self) -> list[str]:
        return [mapping["protocol"] for mapping in self.shell.status()["mappings"]]

    def close(self) -> None:
        with inside(self.device):
            self.shell.close(self.now())
        assert self.shell.mappings() == [] and not self.selector.get_map()


@pytest.fixture
def home(lab: Lab) -> Iterator[Home]:
    if shutil.which("miniupnpd") is None:
        pytest.skip("needs miniupnpd: apt-get install miniupnpd-nftables")
    with contextlib.ExitStack() as stack:
        made = Home(lab, stack)
        stack.callback(made.close)
        yield made


def test_of_several_routers_of_one_interface_the_best_is_asked() -> None:
    """A standby has a worse metric, and comes later."""
    shell = PortMapShell(DefaultSelector(), urandom, random)
    asked: list[Uplink] = []
    shell._add = lambda now, key, uplink: asked.append(uplink)  # type: ignore[method-assign]
    own = packed("192.168.1.9")
    shell.set_uplinks(0.0, [("eth0", packed(f"192.168.1.{n}"), own, PORT) for n in (1, 2)] + [("eth1", own, own, PORT)])
    assert [(name, gateway) for name, gateway, _, _ in asked] == [("eth0", packed("192.168.1.1")), ("eth1", own)]


def packed(address: str) -> bytes:
    return ip_address(address).packed


@pytest.mark.parametrize("protocol", ["pcp", "nat-pmp"])
def test_a_port_is_opened_found_again_after_a_restart_and_given_back(home: Home, protocol: str) -> None:
    home.set_uplinks(home.uplink)  # before the server, so that its first announcement is heard
    server = home.start_server(CONFIG)
    if protocol == "nat-pmp":
        only_natpmp(home.router.host)
    home.pump_until(lambda: home.shell.changed, "a mapping")
    assert home.shell.mappings() == [(home.outside, PORT)] and home.protocols() == [protocol]
    assert home.is_open()
    home.shell.changed = False
    home.set_uplinks(home.uplink)
    changes = [home.shell.changed]

    # The router starts anew and says so on 224.0.0.1: nothing else would have the port asked for again in the hour
    server.stop()
    home.router.host.run("nft", "delete table inet filter")
    assert not home.is_open()
    home.ahead_s = 10.0  # two starts within two seconds could not be told apart (RFC 6887, section 8.5)
    server = home.start_server(CONFIG)
    home.pump_until(home.is_open, "the port, open again")
    changes.append(home.shell.changed)

    home.close()
    assert [*changes, home.shell.changed] == [False, False, True]
    until(lambda: not home.is_open(), 5.0, "the end of the mapping")
    server.stop()


def test_an_uplink_that_goes_gives_its_mapping_back(home: Home) -> None:
    server = home.start_server(CONFIG)
    home.set_uplinks(home.uplink)
    home.pump_until(lambda: home.shell.changed, "a mapping")
    home.shell.changed = False
    home.set_uplinks()
    assert home.shell.changed and home.shell.mappings() == [] and home.shell.poll_timeout() is None
    until(lambda: not home.is_open(), 5.0, "the end of the mapping")
    assert not home.selector.get_map()
    server.stop()


def test_an_address_that_is_not_there_yet_is_taken_up_later(home: Home) -> None:
    home.device.ip("addr flush dev eth0")
    home.set_uplinks(home.uplink, ("nosuch0", *home.uplink[1:]))
    assert home.shell.poll_timeout() is None and not home.selector.get_map()
    server = home.start_server(CONFIG)
    home.device.ip(f"addr add {home.device.address}/24 dev eth0")
    home.set_uplinks(home.uplink, ("nosuch0", *home.uplink[1:]))
    home.pump_until(lambda: home.shell.changed, "a mapping")
    home.close()
    server.stop()


def test_a_router_that_speaks_upnp_only(home: Home) -> None:
    if importlib.util.find_spec("miniupnpc") is None:
        pytest.skip("needs miniupnpc: pip install miniupnpc")
    server = home.start_server(UPNP_CONFIG)
    home.set_uplinks(home.uplink)
    home.pump_until(lambda: home.shell.changed, "a mapping by UPnP", 40.0)
    assert home.shell.mappings() == [(home.outside, PORT)] and home.protocols() == ["upnp"]
    assert home.is_open()
    home.close()
    assert not home.is_open()
    server.stop()


@pytest.mark.matrix
def test_upnp_finds_another_port_where_ours_is_taken(home: Home) -> None:
    if importlib.util.find_spec("miniupnpc") is None:
        pytest.skip("needs miniupnpc: pip install miniupnpc")
    server = home.start_server(UPNP_CONFIG)
    home.neighbour.run("python3", "-c", TAKE_PORT, home.neighbour.address)
    home.set_uplinks(home.uplink)
    home.pump_until(lambda: home.shell.changed, "a mapping by UPnP", 40.0)
    [(address, port)] = home.shell.mappings()
    assert address == home.outside and port >= 49_152
    assert home.is_open(port)
    home.close()
    server.stop()


def test_a_description_without_end_ends_a_process_and_not_the_agent(home: Home) -> None:
    if importlib.util.find_spec("miniupnpc") is None:
        pytest.skip("needs miniupnpc: pip install miniupnpc")
    # What the kernels hold between the two counts as sent: machines' buffers differ, from 6 to 32 MiB
    home.device.run("sh", "-c", f"echo {_BUFFERS} >/proc/sys/net/ipv4/tcp_rmem")
    home.router.host.run("sh", "-c", f"echo {_BUFFERS} >/proc/sys/net/ipv4/tcp_wmem")
    rogue = home.router.host.start("python3", "-c", ROGUE, ip_address(home.uplink[1]).compressed)
    rogue.expect("listening")
    home.set_uplinks(home.uplink)
    home.pump_until(lambda: home.shell.status()["upnp"] is not None, "the end of the job", 40.0)
    assert home.shell.status()["upnp"] in ("refused", "no-router") and home.shell.mappings() == []
    sent = int(rogue.expect(r"sent (\d+) MiB")[1])
    assert sent <= 2 * (ROOM_BYTES >> 20), "what it has room for, and what was under way"
    home.close()


def test_a_router_that_says_nothing_and_a_stranger_that_answers(home: Home) -> None:
    """Nobody but the gateway is believed, by whichever way it comes."""
    home.set_uplinks(home.uplink)
    liar = home.router.host
    liar.ip("addr add 192.168.1.66/24 dev lan")
    with udp_socket(liar, "192.168.1.66", 5351) as answering:
        forged = bytes.fromhex("008000000000000a") + bytes((203, 0, 113, 9))
        with inside(home.device):
            asking = next(key.fileobj for key in home.selector.get_map().values() if not _multicast(key.fileobj))
        assert isinstance(asking, socket.socket)
        answering.sendto(forged, asking.getsockname())
        home.pump_until(lambda: bool(home.shell.status()["drops"]), "the drop")
    assert home.shell.status()["drops"] == {"portmap-stranger": 1}
    assert home.shell.mappings() == []
    home.close()


def test_ipv6_by_a_gateway_that_has_but_a_link_local_address(lab: Lab) -> None:
    lan = lab.net("192.168.1.0/24", "2001:db8:1::/64")
    router, device = lab.host("router", lan), lab.host("device", lan)
    own, gateway = packed(device.address6), packed("fe80::1")
    router.ip("addr add fe80::1/64 dev eth0 nodad")
    server = PcpServer(2)
    server.address = own  # IPv6 is not translated, only let in
    with DefaultSelector() as selector, inside(router):
        answering = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        with answering, inside(device):
            answering.bind(("fe80::1", 5351, 0, _index(router)))
            shell = PortMapShell(selector, urandom, random)

            def step() -> bool:
                with contextlib.suppress(BlockingIOError):
                    asked, source = answering.recvfrom(2_048)
                    answer = server.answer(time.monotonic(), asked)
                    assert answer is not None
                    answering.sendto(answer, source)
                for key, _ in selector.select(0):
                    key.data(time.monotonic(), key.fd)
                shell.on_timeout(time.monotonic())
                return shell.changed

            shell.set_uplinks(time.monotonic(), [("eth0", gateway, own, PORT)])
            until(step, 10.0, "a mapping")
            assert shell.mappings() == [(own, PORT)]
            server.restart(time.monotonic())
            announcement = bytes.fromhex("0280") + bytes(22)
            answering.sendto(announcement, ("ff02::1", 5350, 0, _index(router)))
            until(lambda: step() and PORT in server.ends_at, 20.0, "the port, asked for again")
            shell.close(time.monotonic())
            step()
            assert shell.mappings() == [] and not selector.get_map()


def _index(host: Host) -> int:
    """Of eth0 there."""
    with inside(host):
        return socket.if_nametoindex("eth0")


def _multicast(opened: object) -> bool:
    return isinstance(opened, socket.socket) and opened.getsockname()[1] == 5350
