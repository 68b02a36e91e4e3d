"""The name server's sockets: queries by UDP and TCP from this host alone, and what goes to other resolvers.

The sockets that listen are bound to the mesh interface, on which the kernel lets a host's own packets to the address
arrive: for what comes from the LAN or from a container there is no socket. What peers send to the address is dropped as
it leaves the tunnel (`Device.keep`). And a source that is not of this host is not answered, should both fail.

Other name servers on this host must be able to start: one that binds every address it finds, or the wildcard, would
fail on ours. By UDP both can have the port, and ours, being narrower, gets what is for our address. By TCP they cannot:
where another server listens beyond the loopback, ours does not.
"""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import suppress
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from selectors import BaseSelector

    from edgeagent.proto.dnsforward import Ask

    OnQuery = Callable[[float, bytes, "Peer"], None]
    OnReply = Callable[[float, int, bytes | None], None]  # (now, number of the ask, answer or None for no more)

CLIENTS_MAX = 8  # TCP connections
UNANSWERED_MAX = 16  # queries of one of them
IDLE_TIMEOUT_S = 8.0  # of a connection that nothing is written to or read from (RFC 7766, section 6.2.3)
QUERY_BYTES_MAX = 4_096
OUTPUT_BYTES_MAX = 262_144
DATAGRAMS_MAX = 32  # at one wake-up
REPLY_BYTES_MAX = 65_535
ACCEPT_AGAIN_S = 1.0  # where no descriptor is left for who knocks: the listener would wake us without end
PORTS = (53, 5354)  # the second where somebody else has the first
_LISTENS = "0A"
_LENGTH = struct.Struct(">H")
_IP_FREEBIND = 15  # ip(7): the interface may lose its address, and get it back


class Peer:
    """Who asked: a UDP address, or a TCP connection."""

    __slots__ = ("address", "client")

    def __init__(self, address: tuple[str, int] | None, client: Client | None) -> None:
        self.address = address
        self.client = client

    @property
    def stream(self) -> bool:
        return self.client is not None


class Client:
    """A TCP connection: messages with their length before them, several at a time."""

    __slots__ = ("deadline", "input", "output", "peer", "sock", "unanswered")

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self.sock = sock
        self.deadline = deadline
        self.input = b""
        self.output = b""
        self.unanswered = 0
        self.peer = Peer(None, self)


class DnsSockets:
    """`open`, then hand every `on_query` to the name server and its answers to `answer`; `ask` for it, and hand it what
    `on_reply` brings. `on_timeout` at `poll_timeout()`.

    `port` is where it listens, 0 where it does not; `tcp` whether by TCP too. `strangers` counts what came from
    elsewhere than this host, `full` and `bad` connections that
    were turned away, and that were ended because they were slow or said nothing that is DNS.
    """

    def __init__(self, selector: BaseSelector, on_query: OnQuery, on_reply: OnReply) -> None:
        self._selector = selector
        self._on_query = on_query
        self._on_reply = on_reply
        self._udp: socket.socket | None = None
        self._listener: socket.socket | None = None
        self._accept_at: float | None = None  # while nobody is listened to
        self._clients: dict[int, Client] = {}
        self._asks: dict[int, _Outgoing] = {}
        self.port = 0
        self.tcp = False
        self.own: tuple[str, ...] = ()  # addresses of this host that may ask, beside 127.0.0.0/8
        self.strangers = 0
        self.full = 0
        self.bad = 0

    @property
    def clients(self) -> int:
        return len(self._clients)

    def open(self, interface: str, address: str) -> None:
        """Listen at an IPv4 address of an interface. Raises OSError where neither of the ports can be had."""
        for port in PORTS:
            try:
                self._udp = _bound(socket.SOCK_DGRAM, interface, address, port)
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE or port == PORTS[-1]:
                    raise
        self.port = port
        assert self._udp is not None
        self._selector.register(self._udp, EVENT_READ, self._datagrams)
        if port == PORTS[0] and _has_neighbour(port):
            return  # UDP alone will do, but for answers that are very long
        with suppress(OSError):
            self._listener = _bound(socket.SOCK_STREAM, interface, address, port)
            self._listener.listen(CLIENTS_MAX)
            self._selector.register(self._listener, EVENT_READ, self._accept)
            self.tcp = True

    def close(self) -> None:
        for client in list(self._clients.values()):
            self._drop(client)
        for number in list(self._asks):
            self.end(number)
        for sock in (self._udp, self._listener):
            if sock is not None:
                with suppress(KeyError):
                    self._selector.unregister(sock)
                sock.close()
        self._udp = self._listener = self._accept_at = None
        self.port, self.tcp = 0, False

    def answer(self, peer: Peer, data: bytes) -> None:
        if peer.client is None:
            if self._udp is not None and peer.address is not None:
                with suppress(OSError):  # it asks again
                    self._udp.sendto(data, peer.address)
            return
        client = peer.client
        if client.sock.fileno() < 0:
            return
        client.unanswered -= 1
        client.output += _LENGTH.pack(len(data)) + data
        if len(client.output) > OUTPUT_BYTES_MAX:
            self.bad += 1
            self._drop(client)
        else:
            self._pump(client)

    def poll_timeout(self) -> float | None:
        times = [client.deadline for client in self._clients.values()]
        return min(times if self._accept_at is None else [*times, self._accept_at], default=None)

    def on_timeout(self, now: float) -> None:
        for client in [client for client in self._clients.values() if client.deadline <= now]:
            self.bad += bool(client.input or client.output)
            self._drop(client)
        if self._accept_at is not None and self._accept_at <= now and self._listener is not None:
            self._accept_at = None
            self._selector.register(self._listener, EVENT_READ, self._accept)

    # What this host asks

    def _datagrams(self, now: float, _fd: int) -> None:
        for _ in range(DATAGRAMS_MAX):
            if self._udp is None:
                return
            try:
                data, address = self._udp.recvfrom(QUERY_BYTES_MAX + 1)
            except BlockingIOError:
                return
            except OSError:  # what the kernel has to say of an answer that nobody took
                continue
            if self._is_own(address[0]):
                self._on_query(now, data, Peer(address, None))
            else:
                self.strangers += 1

    def _accept(self, now: float, _fd: int) -> None:
        if self._listener is None:
            return
        try:
            sock, address = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:  # the client gave up, or no descriptor is left
            self._selector.unregister(self._listener)
            self._accept_at = now + ACCEPT_AGAIN_S
            return
        if not self._is_own(address[0]):
            self.strangers += 1
            sock.close()
            return
        if len(self._clients) >= CLIENTS_MAX:
            self.full += 1
            sock.close()
            return
        sock.setblocking(False)
        self._clients[sock.fileno()] = Client(sock, now + IDLE_TIMEOUT_S)
        self._selector.register(sock, EVENT_READ, self._ready)

    def _is_own(self, address: str) -> bool:
        return address in self.own or address.startswith("127.")

    def _ready(self, now: float, fd: int) -> None:
        client = self._clients.get(fd)
        if client is None:
            return
        client.deadline = now + IDLE_TIMEOUT_S
        if client.output:
            self._pump(client)
        if fd not in self._clients or client.unanswered >= UNANSWERED_MAX:
            return
        try:
            data = client.sock.recv(QUERY_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        client.input += data
        self._queries(now, client)

    def _queries(self, now: float, client: Client) -> None:
        while len(client.input) >= _LENGTH.size and client.sock.fileno() >= 0:
            (length,) = _LENGTH.unpack_from(client.input)
            if not 12 <= length <= QUERY_BYTES_MAX:
                self.bad += 1
                self._drop(client)
                return
            if len(client.input) < _LENGTH.size + length:
                break
            data, client.input = client.input[2 : 2 + length], client.input[2 + length :]
            client.unanswered += 1
            if client.unanswered > UNANSWERED_MAX:
                self.bad += 1
                self._drop(client)
                return
            self._on_query(now, data, client.peer)

    def _pump(self, client: Client) -> None:
        try:
            while client.output:
                client.output = client.output[client.sock.send(client.output) :]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)
            return
        self._selector.modify(client.sock, EVENT_READ | (EVENT_WRITE if client.output else 0), self._ready)

    def _drop(self, client: Client) -> None:
        if self._clients.pop(client.sock.fileno(), None) is not None:
            self._selector.unregister(client.sock)
            client.sock.close()

    # What other resolvers are asked

    def ask(self, now: float, ask: Ask) -> None:
        """A socket of its own, so a port of its own, which the kernel chooses at random (RFC 5452)."""
        try:
            outgoing = _Outgoing(ask)
        except OSError:
            self._on_reply(now, ask.number, None)
            return
        self._asks[ask.number] = outgoing
        events = EVENT_READ | (EVENT_WRITE if outgoing.output else 0)
        self._selector.register(outgoing.sock, events, lambda at, _fd: self._replied(at, outgoing))

    def end(self, number: int) -> None:
        outgoing = self._asks.pop(number, None)
        if outgoing is not None:
            self._selector.unregister(outgoing.sock)
            outgoing.sock.close()

    def _replied(self, now: float, outgoing: _Outgoing) -> None:
        if outgoing.number not in self._asks:  # ended in this very turn
            return
        try:
            if outgoing.output:
                outgoing.output = outgoing.output[outgoing.sock.send(outgoing.output) :]
                if not outgoing.output:
                    key = self._selector.get_key(outgoing.sock)
                    self._selector.modify(outgoing.sock, EVENT_READ, key.data)
                return
            data = outgoing.sock.recv(REPLY_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:  # nobody is there
            self._on_reply(now, outgoing.number, None)
            return
        if not outgoing.stream:
            self._on_reply(now, outgoing.number, data)
            return
        outgoing.input += data
        if not data:
            self._on_reply(now, outgoing.number, None)
        elif len(outgoing.input) >= 2 and len(outgoing.input) >= 2 + _LENGTH.unpack_from(outgoing.input)[0]:
            self._on_reply(now, outgoing.number, outgoing.input[2 : 2 + _LENGTH.unpack_from(outgoing.input)[0]])


class _Outgoing:
    """An ask on its way. A UDP socket is connected too: then the kernel drops what comes from elsewhere."""

    __slots__ = ("input", "number", "output", "sock", "stream")

    def __init__(self, ask: Ask) -> None:
        address, port = ask.server
        family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
        kind = socket.SOCK_STREAM if ask.stream else socket.SOCK_DGRAM
        self.number = ask.number
        self.stream = ask.stream
        self.input = b""
        self.output = _LENGTH.pack(len(ask.message)) + ask.message if ask.stream else b""
        self.sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
        try:
            code = self.sock.connect_ex((socket.inet_ntop(family, address), port))
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, "connect")
            if not ask.stream:
                self.sock.send(ask.message)
        except OSError:
            self.sock.close()
            raise


def _bound(kind: int, interface: str, address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
        sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        if kind == socket.SOCK_STREAM or port == PORTS[0]:  # the other port any user might then share, and listen in
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
    except OSError:
        sock.close()
        raise
    return sock


def _has_neighbour(port: int) -> bool:
    """Whether a program listens at the TCP port of other addresses than loopback ones (proc_net_tcp)."""
    for table, loopback in (("/proc/net/tcp", "7F"), ("/proc/net/tcp6", f"{'0' * 24}01000000")):
        with suppress(OSError), open(table) as file:
            for line in file.readlines()[1:]:
                words = line.split()
                address, _, hexadecimal = words[1].partition(":")
                if words[3] == _LISTENS and int(hexadecimal, 16) == port and not address.endswith(loopback):
                    return True
    return False
