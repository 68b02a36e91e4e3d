"""Runs at both ends, by any Python 3.9 without more: streams with checksums, and an interface's offloads.

    talk.py serve PORT                     until it is ended; answers the two below
    talk.py send HOST PORT BYTES           to the server, which says what hash it has received
    talk.py receive HOST PORT BYTES        from the server, which says first what hash it will send
    talk.py offload INTERFACE on|off       GSO and TSO (ethtool's ioctl)

`send` and `receive` print one line of JSON: bytes, seconds, ok.
"""

from __future__ import annotations

import array
import fcntl
import hashlib
import json
import os
import socket
import struct
import sys
import time

PIECE = 65_536
BYTES_MAX = 1 << 30
TIMEOUT_S = 120.0
SIOCETHTOOL, SET_GSO, SET_TSO = 0x8946, 0x24, 0x1F  # linux/sockios.h, linux/ethtool.h
HEAD = struct.Struct("!cI")


def serve(port: int) -> None:
    listener = socket.socket(socket.AF_INET6)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind(("::", port))
    listener.listen(4)
    print("listening", flush=True)
    while True:
        stream, _ = listener.accept()
        with stream:
            stream.settimeout(TIMEOUT_S)
            try:
                what, count = HEAD.unpack(_exactly(stream, HEAD.size))
                if count > BYTES_MAX:
                    continue
                if what == b"s":
                    stream.sendall(_swallow(stream, count))
                else:
                    data = os.urandom(count)
                    stream.sendall(hashlib.sha256(data).digest())
                    stream.sendall(data)
            except OSError as error:
                print(f"gave up: {error}", flush=True)


def send(host: str, port: int, count: int) -> bool:
    data = os.urandom(count)
    began = time.monotonic()
    with socket.create_connection((host, port), TIMEOUT_S) as stream:
        stream.sendall(HEAD.pack(b"s", count))
        stream.sendall(data)
        heard = _exactly(stream, 32)
    return _tell(count, began, heard == hashlib.sha256(data).digest())


def receive(host: str, port: int, count: int) -> bool:
    began = time.monotonic()
    with socket.create_connection((host, port), TIMEOUT_S) as stream:
        stream.sendall(HEAD.pack(b"r", count))
        said = _exactly(stream, 32)
        heard = _swallow(stream, count)
    return _tell(count, began, heard == said)


def offload(interface: str, on: bool) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for command in (SET_GSO, SET_TSO):
            value = array.array("I", (command, int(on)))
            address, _ = value.buffer_info()
            fcntl.ioctl(control, SIOCETHTOOL, struct.pack("16sP16x", interface.encode(), address))


def _tell(count: int, began: float, ok: bool) -> bool:
    print(json.dumps({"bytes": count, "seconds": time.monotonic() - began, "ok": ok}), flush=True)
    return ok


def _exactly(stream: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = stream.recv(count - len(data))
        if not more:
            raise OSError("the other end has closed")
        data += more
    return data


def _swallow(stream: socket.socket, count: int) -> bytes:
    """The hash of the next `count` bytes."""
    hashed = hashlib.sha256()
    while count:
        more = stream.recv(min(count, PIECE))
        if not more:
            raise OSError("the other end has closed")
        hashed.update(more)
        count -= len(more)
    return hashed.digest()


def main(words: list[str]) -> int:
    if words[:1] == ["serve"] and len(words) == 2:
        serve(int(words[1]))
    elif words[:1] in (["send"], ["receive"]) and len(words) == 4:
        return 0 if (send if words[0] == "send" else receive)(words[1], int(words[2]), int(words[3])) else 1
    elif words[:1] == ["offload"] and len(words) == 3 and words[2] in ("on", "off"):
        offload(words[1], words[2] == "on")
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
