"""WireGuard's userspace API (https://www.wireguard.com/xplatform/), what `wg` speaks to userspace implementations.

Text lines `key=value`; an operation begins with `get=1` or `set=1` and ends with an empty line, and so does its
answer, whose last line is `errno=` 0 or a negated error number. A set is parsed as a whole before any of it is
applied, so that one with a wrong line changes nothing; it is then applied line by line, in order.
"""

from __future__ import annotations

from binascii import Error as HexError
from binascii import unhexlify
from typing import TYPE_CHECKING, Any, Protocol

from edgeagent.proto.constants import KEY_SIZE, PERSISTENT_KEEPALIVE_MAX_S
from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.errors import LimitReached, RemoteProtocolError
from edgeagent.proto.ip import ip_to_bytes, ip_to_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edgeagent.proto.device import Device

    Step = tuple[str, Any]

OPERATION_BYTES_MAX = 8 << 20  # some 150,000 allowed IPs
LINE_BYTES_MAX = 512
EPERM, E2BIG, EINVAL, ENOSPC, EPROTO = 1, 7, 22, 28, 71  # the same on every architecture that agents are built for

_KEY_NONE = bytes(KEY_SIZE)
_MAPPED = bytes(10) + b"\xff\xff"  # IPv4 in an IPv6 address


class Target(Protocol):
    """What is configured: a device, and the sockets that its owner holds. The setters answer 0 or an error number."""

    device: Device
    listen_port: int
    fwmark: int
    is_up: bool  # only then peers may send at once
    read_only: bool  # somebody else decides what the device does: every set is refused

    def set_listen_port(self, now: float, port: int) -> int: ...

    def set_fwmark(self, now: float, mark: int) -> int: ...

    def refresh(self, now: float) -> None:
        """Figures are about to be asked for."""

    def scope_index(self, name: str) -> int:
        """The index of the interface of an IPv6 scope; 0 for none of that name."""


class Uapi:
    """One client's conversation. `receive` what it sends; when there is an `answer`, send it and then call `answered`.

    Operations wait while there is an answer. `closed` becomes true when the client spoke out of turn: send the rest
    of the answer and hang up.
    """

    __slots__ = ("_buffer", "_scanned", "_target", "answer", "closed")

    def __init__(self, target: Target) -> None:
        self._target = target
        self._buffer = bytearray()
        self._scanned = 0
        self.answer = bytearray()
        self.closed = False

    def receive(self, now: float, data: bytes) -> None:
        self._buffer += data
        while not self.closed and not self.answer and self._step(now):
            pass

    def answered(self, now: float) -> None:
        """The answer is sent: forget it, and go on with what the client asked meanwhile."""
        wipe(self.answer)
        self.receive(now, b"")

    def close(self) -> None:
        """The client is gone; an operation that it did not end is not applied."""
        self.closed = True
        wipe(self._buffer)
        wipe(self.answer)

    def _step(self, now: float) -> bool:
        """One operation, if it is here as a whole."""
        buffer = self._buffer
        end = buffer.find(b"\n\n", self._scanned)
        if end < 0:
            self._scanned = max(0, len(buffer) - 1)
            known = (b"get=1\n", b"set=1\n")
            if not any(buffer.startswith(first[: len(buffer)]) for first in known):
                self.closed = True  # as wireguard-go: what is no operation gets no answer
            elif len(buffer) > OPERATION_BYTES_MAX:
                self._finish(len(buffer), E2BIG)
                self.closed = True
            return False
        self._scanned = 0
        if buffer.startswith(b"get=1\n"):
            self._target.refresh(now)
            if end != 5:
                self._finish(end + 2, EINVAL)
                self.closed = True
                return False
            for line in describe(now, self._target):
                self.answer += line
            self._finish(end + 2, 0)
        elif buffer.startswith(b"set=1\n"):
            self._finish(end + 2, self._configure(now, buffer[6 : end + 1]))
        else:
            self.closed = True
            return False
        return True

    def _configure(self, now: float, lines: bytearray) -> int:
        number = configure(now, self._target, lines)
        wipe(lines)
        return number

    def _finish(self, consumed: int, number: int) -> None:
        self._buffer[:consumed] = bytes(consumed)  # it may have held keys
        del self._buffer[:consumed]
        self.answer += b"errno=%d\n\n" % -number


def wipe(secret: bytearray) -> None:
    """Overwrite, then empty."""
    secret[:] = bytes(len(secret))
    secret.clear()


# get


def describe(now: float, target: Target) -> Iterator[bytes]:
    """Lines of the answer to `get=1`, without the last one. The private key is among them."""
    device = target.device
    if device.private_key is not None:
        yield b"private_key=%s\n" % device.private_key.hex().encode()
    if target.listen_port:
        yield b"listen_port=%d\n" % target.listen_port
    if target.fwmark:
        yield b"fwmark=%d\n" % target.fwmark
    for peer in device.peers.values():
        yield b"public_key=%s\n" % peer.public_key.hex().encode()
        yield b"preshared_key=%s\nprotocol_version=1\n" % peer.preshared_key.hex().encode()
        if peer.endpoint is not None and not peer.endpoint.is_relay:  # `wg` reads addresses, and dies of anything else
            yield b"endpoint=%s\n" % str(peer.endpoint).encode()
        seconds = int(peer.last_handshake_wall_s)
        yield b"last_handshake_time_sec=%d\nlast_handshake_time_nsec=%d\ntx_bytes=%d\nrx_bytes=%d\n" % (
            seconds,
            int((peer.last_handshake_wall_s - seconds) * 1e9),
            peer.tx_bytes,
            peer.rx_bytes,
        )
        yield b"persistent_keepalive_interval=%d\n" % peer.persistent_keepalive_s
        for address, cidr in device.allowed_ips.of_peer(peer):
            if len(address) == 4:
                yield b"allowed_ip=%d.%d.%d.%d/%d\n" % (*address, cidr)
            else:
                yield b"allowed_ip=%s/%d\n" % (ip_to_text(address).encode(), cidr)


# set


class PeerChange:
    """The lines of a set from one `public_key` to the next."""

    __slots__ = ("public_key", "steps", "update_only")

    def __init__(self, public_key: bytes) -> None:
        self.public_key = public_key
        self.update_only = False
        self.steps: list[Step] = []


def configure(now: float, target: Target, lines: bytearray) -> int:
    """Parse the lines of a set, apply them, and return 0 or an error number.

    EPROTO for what is no `key=value`, EINVAL for a wrong key or value, EPERM when the target is read-only: then
    nothing has changed. ENOSPC at a limit, or what the owner answered about the port or the mark: then the lines
    before have been applied.
    """
    try:
        steps, changes = parse(lines, target.scope_index)
    except NotKeyValue:
        return EPROTO
    except RemoteProtocolError:
        return EINVAL
    if target.read_only:
        return EPERM
    for key, value in steps:
        number = _apply_device(now, target, key, value)
        if number:
            return number
    try:
        for change in changes:
            _apply_peer(now, target, change)
    except LimitReached:
        return ENOSPC
    return 0


class NotKeyValue(RemoteProtocolError):
    """A line without `=`."""


def parse(lines: bytearray, scope_index: Callable[[str], int]) -> tuple[list[Step], list[PeerChange]]:
    """Steps for the device, and changes to peers. Raises RemoteProtocolError naming the key that is wrong."""
    device: list[Step] = []
    changes: list[PeerChange] = []
    steps, known = device, _DEVICE_VALUES
    at = 0
    while at < len(lines):
        end = lines.find(b"\n", at)
        if end < 0:
            end = len(lines)
        equals = lines.find(b"=", at, end)
        if equals < 0:
            raise NotKeyValue("line: not key=value")
        if end - at > LINE_BYTES_MAX:
            raise RemoteProtocolError(f"line: longer than {LINE_BYTES_MAX} bytes")
        key, value = _ascii(lines[at:equals]), lines[equals + 1 : end]
        at = end + 1
        if key == "public_key":
            changes.append(PeerChange(_key(value)))
            steps, known = changes[-1].steps, _PEER_VALUES
        elif key == "endpoint" and steps is not device:
            steps.append((key, parse_endpoint(_ascii(value), scope_index)))
        elif key == "update_only" and steps is not device:
            changes[-1].update_only = _true(value)
        else:
            read = known.get(key)
            if read is None:
                raise RemoteProtocolError(f"{key}: no such key here")
            steps.append((key, read(value)))
    return device, changes


def _apply_device(now: float, target: Target, key: str, value: Any) -> int:
    if key == "listen_port":
        return target.set_listen_port(now, value)
    if key == "fwmark":
        return target.set_fwmark(now, value)
    if key == "private_key":
        target.device.set_private_key(now, None if value == _KEY_NONE else value)
    else:
        target.device.remove_all_peers(now)
    return 0


def _apply_peer(now: float, target: Target, change: PeerChange) -> None:
    device = target.device
    peer = device.peers.get(change.public_key)
    if change.public_key == device.public_key or (peer is None and change.update_only):
        return
    if peer is None:
        peer = device.add_peer(now, change.public_key)
    keepalive_s = None
    for key, value in change.steps:
        if key == "allowed_ip":
            add, address, cidr = value
            if add:
                device.allowed_ips.insert(address, cidr, peer)
            else:
                device.allowed_ips.remove(address, cidr, peer)
        elif key == "endpoint":
            peer.set_endpoint(value)
        elif key == "preshared_key":
            peer.set_preshared_key(value)
        elif key == "persistent_keepalive_interval":
            keepalive_s = value
        elif key == "replace_allowed_ips":
            device.allowed_ips.remove_peer(peer)
        elif key == "remove":
            device.remove_peer(now, change.public_key)
            return
    if not target.is_up:
        if keepalive_s is not None:
            peer.timers.set_persistent_keepalive(now, keepalive_s)
        return
    # last, because it may send at once, and to the endpoint that this very change has set
    if keepalive_s is not None:
        peer.set_persistent_keepalive(now, keepalive_s)
    peer.send_staged(now)
    device.touched(peer)


# Values


def parse_endpoint(text: str, scope_index: Callable[[str], int]) -> Endpoint:
    """`192.0.2.1:51820` or `[2001:db8::1]:51820`, the scope of a link-local address by name or index."""
    host, _, port_text = text.rpartition(":")
    port = _number(port_text, 65_535)
    try:
        if not (host.startswith("[") and host.endswith("]")):
            return Endpoint((ip_to_text(_sized(host, 4)), port))
        host, _, scope = host[1:-1].partition("%")
        address = _sized(host, 16)
    except ValueError as error:
        raise RemoteProtocolError(f"endpoint: {error}") from None
    if address.startswith(_MAPPED):
        return Endpoint((ip_to_text(address[len(_MAPPED) :]), port))
    index = 0
    if scope:
        index = _number(scope, 0xFFFFFFFF) if scope.isdecimal() else scope_index(scope)
        if not index:
            raise RemoteProtocolError(f"endpoint: there is no interface {scope!r}")
    return Endpoint((ip_to_text(address), port, 0, index))


def parse_allowed_ip(text: str) -> tuple[bool, bytes, int]:
    """(add, address, cidr); a leading `-` takes the prefix away instead."""
    add = not text.startswith("-")
    host, slash, cidr_text = text.removeprefix("-").partition("/")
    if not slash:
        raise RemoteProtocolError("allowed_ip: a prefix has a '/'")
    try:
        address = ip_to_bytes(host)
    except ValueError as error:
        raise RemoteProtocolError(f"allowed_ip: {error}") from None
    return add, address, _number(cidr_text, len(address) * 8)


def _sized(text: str, size: int) -> bytes:
    address = ip_to_bytes(text)
    if len(address) != size:
        raise ValueError(f"no IPv{4 if size == 4 else 6} address")
    return address


def _ascii(value: bytearray) -> str:
    try:
        return value.decode("ascii")
    except UnicodeDecodeError:
        raise RemoteProtocolError("line: not ASCII") from None


def _number(text: str, highest: int) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 10 or int(text) > highest:
        raise RemoteProtocolError(f"number: 0 to {highest}")
    return int(text)


def _key(value: bytearray) -> bytes:
    if len(value) != 2 * KEY_SIZE:
        raise RemoteProtocolError(f"key: {2 * KEY_SIZE} hexadecimal digits")
    try:
        return unhexlify(value)
    except HexError:
        raise RemoteProtocolError(f"key: {2 * KEY_SIZE} hexadecimal digits") from None
    finally:
        wipe(value)


def _true(value: bytearray) -> bool:
    if value != b"true":
        raise RemoteProtocolError("flag: only 'true'")
    return True


def _version(value: bytearray) -> int:
    if value != b"1":
        raise RemoteProtocolError("protocol_version: only 1")
    return 1


def _up_to(highest: int) -> Callable[[bytearray], int]:
    return lambda value: _number(_ascii(value), highest)


_DEVICE_VALUES: dict[str, Callable[[bytearray], Any]] = {
    "private_key": _key,
    "listen_port": _up_to(65_535),
    "fwmark": _up_to(0xFFFFFFFF),
    "replace_peers": _true,
}
_PEER_VALUES: dict[str, Callable[[bytearray], Any]] = {
    "remove": _true,
    "preshared_key": _key,
    "persistent_keepalive_interval": _up_to(PERSISTENT_KEEPALIVE_MAX_S),
    "replace_allowed_ips": _true,
    "allowed_ip": lambda value: parse_allowed_ip(_ascii(value)),
    "protocol_version": _version,
}
