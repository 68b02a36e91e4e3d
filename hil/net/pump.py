"""The host's end of the network: a TAP in a network namespace of its own, and frames between it and the switch.

Run as a program inside `unshare --net`, `python -I pump.py SOCKET ADDRESS/BITS ROUTER ROUTED…`; it says "ready" once.
So the hub's side of every connection is the kernel's, and nothing outside the namespace is touched. Nothing of ours is
imported.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import subprocess
import sys

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
TAP = "hil0"
FRAME_BYTES = 65_536


def main() -> None:
    path, address, router, *routed = sys.argv[1:]
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", TAP.encode(), IFF_TAP | IFF_NO_PI))
    ip("link", "set", "lo", "up")
    ip("address", "add", address, "dev", TAP)
    ip("link", "set", TAP, "up")
    for network in routed:
        ip("route", "add", network, "via", router)
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.connect(path)
    print("ready", flush=True)
    rest = b""
    while True:
        ready, _, _ = select.select((tap, link.fileno()), (), ())
        if tap in ready:
            frame = os.read(tap, FRAME_BYTES)
            link.sendall(len(frame).to_bytes(4, "big") + frame)
        if link.fileno() in ready:
            data = link.recv(1 << 18)
            if not data:
                return
            rest += data
            at = 0
            while len(rest) - at >= 4 and len(rest) - at - 4 >= (size := int.from_bytes(rest[at : at + 4], "big")):
                os.write(tap, rest[at + 4 : at + 4 + size])
                at += 4 + size
            rest = rest[at:]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


if __name__ == "__main__":
    main()
