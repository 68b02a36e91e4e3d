"""Each recipe is what it is called: told by probes that know nothing of how the router is made (RFC 4787, RFC 5780)."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from tests.netlab import Host, Lab, LabError
from tests.netlab.host import Net
from tests.netlab.nat import ADDRESS_CHANGES_MAX, Kind, NatRouter, carrier
from tests.netlab.sockets import Address, receive, udp_socket

SERVER_PORTS = (3478, 3479)
CLIENT_PORT = 41_641


class Server:
    """Two addresses with two ports each: [0][0] is asked first, the others tell the kinds apart."""

    def __init__(self, stack: contextlib.ExitStack, host: Host, net: Net) -> None:
        second = str(net.v4[100])
        host.ip(f"addr add {second}/{net.v4.prefixlen} dev eth0")
        self.addresses = (host.address, second)
        self.sockets = [
            [stack.enter_context(udp_socket(host, address, port)) for port in SERVER_PORTS]
            for address in self.addresses
        ]

    def mapped(self, client: socket.socket, address: int = 0, port: int = 0) -> Address:
        """Where the server sees the client when it is asked at this address and port; the answer reaches the client."""
        asked = self.sockets[address][port]
        client.sendto(b"request", asked.getsockname())
        request = receive(asked)
        assert request is not None and request[0] == b"request"
        asked.sendto(b"answer", request[1])
        assert receive(client) == (b"answer", asked.getsockname())
        return request[1]

    def passes(self, client: socket.socket, mapped: Address, address: int, port: int) -> bool:
        """Whether a datagram from this address and port comes in. The known server's comes behind it, and always does.

        `mapped` is what `mapped()` gave last, asked at [0][0].
        """
        self.sockets[address][port].sendto(b"stranger", mapped)
        self.sockets[0][0].sendto(b"known", mapped)
        heard = []
        while b"known" not in heard:
            datagram = receive(client)
            assert datagram is not None, "not even the known server's datagram came"
            heard.append(datagram[0])
        if b"stranger" not in heard and (late := receive(client, 0.02)) is not None:
            heard.append(late[0])  # sent on two processors, they may overtake each other
        return b"stranger" in heard


class Site:
    """A host behind a router, and the server outside."""

    def __init__(self, lab: Lab, stack: contextlib.ExitStack) -> None:
        self.stack = stack
        self.lab = lab
        self.internet = lab.net("198.51.100.0/24")
        self.server = Server(stack, lab.host("server", self.internet), self.internet)

    def home(self, kind: Kind, name: str = "home", outside: Net | None = None) -> tuple[NatRouter, Host]:
        net = self.lab.net("192.168.1.0/24")
        router = NatRouter(self.lab, f"{name}-router", net, outside or self.internet, kind)
        return router, self.lab.host(name, net)

    def client(self, host: Host, port: int = 0) -> socket.socket:
        return self.stack.enter_context(udp_socket(host, "", port))

    def classify(self, host: Host) -> tuple[str, str, bool]:
        """Mapping, filtering (E, A, P as in RFC 4787) and whether the port was kept."""
        client = self.client(host, CLIENT_PORT)
        first = self.server.mapped(client)
        if self.server.mapped(client, 1, 0) == first:
            mapping = "E"
        else:
            mapping = "A" if self.server.mapped(client, 0, 1) == first else "P"
        fresh = self.client(host)  # has sent to nobody but the first server
        mapped = self.server.mapped(fresh)
        if self.server.passes(fresh, mapped, 1, 1):
            filtering = "E"
        else:
            filtering = "A" if self.server.passes(fresh, mapped, 0, 1) else "P"
        return mapping, filtering, first[1] == CLIENT_PORT


@pytest.fixture
def site(lab: Lab) -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        yield Site(lab, stack)


@pytest.mark.parametrize(
    ("kind", "mapping", "filtering", "port_kept"),
    [
        (Kind.FULL, "E", "E", True),
        (Kind.ADDRESS, "E", "A", True),
        (Kind.PORT, "E", "P", True),
        (Kind.SYMMETRIC, "P", "P", False),
        (Kind.HAIRPIN, "E", "E", True),
    ],
)
def test_a_kind_is_what_it_is_called_and_stays_so(
    site: Site, kind: Kind, mapping: str, filtering: str, port_kept: bool
) -> None:
    router, host = site.home(kind)
    assert site.classify(host) == (mapping, filtering, port_kept)
    client = site.client(host)
    before = site.server.mapped(client)
    assert before[0] == router.address

    router.rebind()
    after = site.server.mapped(client)
    assert after[0] == before[0] and after[1] != before[1]
    assert (site.server.mapped(client, 1, 0) == after) == (mapping == "E")

    changed = router.change_address()
    assert changed != before[0]
    assert site.server.mapped(client)[0] == changed
    neighbour = site.client(host)
    mapped = site.server.mapped(neighbour)
    assert site.server.passes(neighbour, mapped, 1, 1) == (filtering == "E")
    assert site.server.passes(neighbour, mapped, 0, 1) == (filtering in "EA")


def test_no_stranger_comes_in_where_nobody_went_out(site: Site) -> None:
    router, host = site.home(Kind.FULL)
    client = site.client(host, CLIENT_PORT)
    known = site.client(host)
    mapped = site.server.mapped(known)
    site.server.sockets[0][0].sendto(b"stranger", (router.address, CLIENT_PORT))
    site.server.sockets[0][0].sendto(b"known", mapped)
    assert receive(known) is not None
    assert receive(client, 0.0) is None


@pytest.mark.parametrize(("kind", "works"), [(Kind.HAIRPIN, True), (Kind.FULL, False)])
def test_hairpin(site: Site, kind: Kind, works: bool) -> None:
    router, host = site.home(kind)
    a, b = site.client(host), site.client(site.lab.host("neighbour", router.inside))
    at_a, at_b = site.server.mapped(a), site.server.mapped(b)
    a.sendto(b"hairpin", at_b)
    if works:  # RFC 4787, REQ-9: from the outside address, so that the answer goes the same way
        assert receive(b) == (b"hairpin", at_a)
        b.sendto(b"back", at_a)
        assert receive(a) == (b"back", at_b)
    else:
        site.server.sockets[0][0].sendto(b"known", at_b)
        assert receive(b) == (b"known", site.server.sockets[0][0].getsockname())


@pytest.mark.parametrize(("kind", "mapping", "filtering"), [(Kind.SYMMETRIC, "P", "P"), (Kind.HAIRPIN, "E", "P")])
def test_two_homes_behind_a_carrier(site: Site, kind: Kind, mapping: str, filtering: str) -> None:
    provider = carrier(site.lab, "carrier", site.internet, kind)
    _, host = site.home(Kind.PORT, "one", provider.inside)
    _, other = site.home(Kind.PORT, "two", provider.inside)
    assert site.classify(host)[:2] == (mapping, filtering)
    a, b = site.client(host), site.client(other)
    at_a, at_b = site.server.mapped(a), site.server.mapped(b)
    assert at_a[0] == at_b[0] == provider.address
    a.sendto(b"opens", at_b)
    b.sendto(b"through", at_a)
    site.server.sockets[0][0].sendto(b"known", at_a)
    heard = receive(a)
    assert heard == (
        (b"through", at_b) if kind is Kind.HAIRPIN else (b"known", site.server.sockets[0][0].getsockname())
    )


def test_udp_blocked(site: Site) -> None:
    _, host = site.home(Kind.UDP_BLOCKED)
    web = site.lab.hosts["server"]
    ports = "import socket; s = [socket.create_server(('', p)) for p in (443, 80)]; print('on', flush=True); input()"
    served = web.start("sh", "-c", f'sleep 60 | python3 -c "{ports}"', name="ports")
    served.expect("on")
    assert not udp_passes(site, host)
    assert tcp_passes(host, web.address, 443) and tcp_passes(host, web.address, 80)
    _, strict = site.home(Kind.TCP_443, "office")
    assert not udp_passes(site, strict)
    assert tcp_passes(strict, web.address, 443) and not tcp_passes(strict, web.address, 80)


@pytest.mark.parametrize("kind", [Kind.PORT, Kind.FULL])
def test_a_binding_ends_when_it_is_said_to(site: Site, kind: Kind) -> None:
    router, host = site.home(kind)
    router.short_bindings(2)
    silent, kept = site.client(host), site.client(host)
    at_silent, at_kept = site.server.mapped(silent), site.server.mapped(kept)
    began = time.monotonic()
    for _ in range(4):
        time.sleep(0.8)
        assert site.server.mapped(kept) == at_kept
    assert time.monotonic() - began > 3
    site.server.sockets[0][0].sendto(b"late", at_silent)
    site.server.sockets[0][0].sendto(b"known", at_kept)
    assert receive(kept) == (b"known", site.server.sockets[0][0].getsockname())
    assert receive(silent, 0.0) is None


def test_a_line_that_loses_and_one_that_is_narrow(site: Site) -> None:
    router, host = site.home(Kind.PORT)
    client = site.client(host)
    server = site.server.sockets[0][0]
    mapped = site.server.mapped(client)
    router.impair(packet_bytes_max=1_000)
    for size in (1_000, 1_001):
        client.sendto(bytes(size - 28), server.getsockname())
    client.sendto(b"end", server.getsockname())
    received = [receive(server), receive(server)]
    assert [len(heard[0]) for heard in received if heard is not None] == [972, 3]
    router.impair(loss_percent=50)
    for _ in range(100):
        client.sendto(b"maybe", server.getsockname())
    router.impair()
    assert site.server.passes(client, mapped, 0, 0)
    passed = 0
    while receive(server, 0.0) is not None:
        passed += 1
    assert 10 < passed < 90


def test_addresses_run_out(site: Site) -> None:
    router, _ = site.home(Kind.PORT)
    seen = {router.change_address() for _ in range(ADDRESS_CHANGES_MAX)}
    assert len(seen) == ADDRESS_CHANGES_MAX
    with pytest.raises(LabError, match="changes of address"):
        router.change_address()


def udp_passes(site: Site, host: Host) -> bool:
    client = site.client(host)
    client.sendto(b"request", site.server.sockets[0][0].getsockname())
    return receive(site.server.sockets[0][0], 0.2) is not None


def tcp_passes(host: Host, address: str, port: int) -> bool:
    script = f"import socket; socket.create_connection(('{address}', {port}), 0.5).close()"
    return host.run("python3", "-c", script, check=False).returncode == 0
