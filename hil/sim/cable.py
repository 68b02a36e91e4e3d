"""A simulated board's network cable: a TAP with an address by DHCP, and frames between it and a port of the switch.

`python -P cable.py SOCKET`, inside the board's network namespace. While nothing is at the socket, the cable is out.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
TAP = "eth0"
FRAME_BYTES = 65_536
RETRY_S = 0.5
ANSWER_S = 2.0
DISCOVER, OFFER, REQUEST, ACK = 1, 2, 3, 5
_MAGIC = b"\x63\x82\x53\x63"


def main() -> None:
    path = Path(sys.argv[1])
    # Of the folder, because a mount may hide it later.
    folder = os.open(path.parent, os.O_PATH)
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", TAP.encode(), IFF_TAP | IFF_NO_PI))
    own = hardware()
    had = b""
    while True:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            link.connect(f"/proc/self/fd/{folder}/{path.name}")
            cable = Cable(link)
            address, bits, router = lease(cable, own)
            if address != had:
                ip("address", "flush", "dev", TAP)
                ip("address", "add", f"{socket.inet_ntoa(address)}/{bits}", "dev", TAP)
                ip("link", "set", TAP, "up")
                ip("route", "replace", "default", "via", socket.inet_ntoa(router))
                had = address
            carry(cable, tap)
        except (OSError, TimeoutError):
            pass  # nothing there, or not any more
        finally:
            link.close()
        time.sleep(RETRY_S)


class Cable:
    """Frames on a stream: 32 bits of length in front of each."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self._rest = b""

    def send(self, frame: bytes) -> None:
        self.link.sendall(len(frame).to_bytes(4, "big") + frame)

    def receive(self) -> list[bytes]:
        """Waits. Raises OSError at the end."""
        data = self.link.recv(1 << 18)
        if not data:
            raise OSError("the other end is gone")
        self._rest += data
        found = []
        while len(self._rest) >= 4 and len(self._rest) - 4 >= (size := int.from_bytes(self._rest[:4], "big")):
            found.append(self._rest[4 : 4 + size])
            self._rest = self._rest[4 + size :]
        return found


def carry(cable: Cable, tap: int) -> None:
    cable.link.settimeout(None)
    while True:
        ready, _, _ = select.select((tap, cable.link.fileno()), (), ())
        if tap in ready:
            cable.send(os.read(tap, FRAME_BYTES))
        if cable.link.fileno() in ready:
            for frame in cable.receive():
                os.write(tap, frame)


def lease(cable: Cable, mac: bytes) -> tuple[bytes, int, bytes]:
    """(address, bits of the network, router) by DHCP (RFC 2131). Raises OSError when nobody answers."""
    offered, options = ask(cable, mac, DISCOVER, b"", OFFER)
    wish = b"\x32\x04" + offered + b"\x36\x04" + options[54]
    address, options = ask(cable, mac, REQUEST, wish, ACK)
    return address, int.from_bytes(options[1], "big").bit_count(), options[3][:4]


def ask(cable: Cable, mac: bytes, kind: int, more: bytes, answer: int) -> tuple[bytes, dict[int, bytes]]:
    transaction = os.urandom(4)
    body = b"\x01\x01\x06\x00" + transaction + bytes(4 + 4 * 4) + mac + bytes(10 + 192)
    body += _MAGIC + bytes((53, 1, kind)) + more + b"\xff"
    cable.send(b"\xff" * 6 + mac + b"\x08\x00" + datagram(body))
    deadline = time.monotonic() + ANSWER_S
    while (left := deadline - time.monotonic()) > 0:
        cable.link.settimeout(left)
        for frame in cable.receive():
            # Ethernet, IPv4 without options, UDP to port 68
            if frame[12:14] == b"\x08\x00" and frame[23:24] == b"\x11" and frame[36:38] == b"\x00\x44":
                said = frame[42:]
                options = read_options(said[240:])
                if said[4:8] == transaction and options.get(53) == bytes((answer,)):
                    return said[16:20], options
    raise TimeoutError("no answer to DHCP")


def datagram(body: bytes) -> bytes:
    udp = struct.pack(">HHHH", 68, 67, 8 + len(body), 0) + body
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, bytes(4), b"\xff" * 4)
    total = sum(struct.unpack(">10H", head))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return head[:10] + struct.pack(">H", ~total & 0xFFFF) + head[12:] + udp


def read_options(data: bytes) -> dict[int, bytes]:
    found = {}
    at = 0
    while at + 1 < len(data) and data[at] != 255:
        found[data[at]] = data[at + 2 : at + 2 + data[at + 1]]
        at += 2 + data[at + 1]
    return found


def hardware() -> bytes:
    """The TAP's own address: SIOCGIFHWADDR, for /sys shows the interfaces of another network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        return bytes(fcntl.ioctl(asker, 0x8927, struct.pack("16s16x", TAP.encode()))[18:24])


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
