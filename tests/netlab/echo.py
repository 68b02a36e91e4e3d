"""Flows that say when they were alive: a server that sends back what comes, a client that tells each round trip."""

from __future__ import annotations

import sys

from tests.netlab.host import Host
from tests.netlab.process import Process

ALIVE_ROUND_TRIPS = 20
SERVER = """
import selectors, socket, sys
host, port = sys.argv[1], int(sys.argv[2])
tcp, udp = socket.create_server((host, port)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind((host, port))
selector = selectors.DefaultSelector()
for each in (tcp, udp):
    selector.register(each, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in selector.select():
        if key.fileobj is tcp:
            selector.register(tcp.accept()[0], selectors.EVENT_READ)
            continue
        try:
            data, source = key.fileobj.recvfrom(65536)
            if key.fileobj is udp:
                udp.sendto(data, source)
            elif data:
                key.fileobj.sendall(data)
            else:
                selector.unregister(key.fileobj)
        except OSError as error:  # what was asked of it is prohibited by now
            print(error, flush=True)
            if key.fileobj is not udp:
                selector.unregister(key.fileobj)
"""
# One line a round trip; the last one says why it ended
CLIENT = """
import socket, sys, time
kind, host, port, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
try:
    if kind == "tcp":
        connection = socket.create_connection((host, port), timeout=3)
    else:
        connection = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        connection.connect((host, port))
        connection.settimeout(3)
    while True:
        connection.sendall(bytes(size))
        left = size
        while left > 0:
            left -= len(connection.recv(65536))
        print("echo", time.time(), flush=True)
        time.sleep(0.05)
except OSError as error:
    print("end", type(error).__name__, error.errno, flush=True)
"""


def serve(host: Host, address: str, port: int) -> Process:
    """TCP and UDP; returns when it listens."""
    server = host.start(sys.executable, "-c", SERVER, address, str(port), name=f"server{port}")
    server.expect("ready")
    return server


def client(host: Host, address: str, port: int, *, kind: str = "tcp", size: int = 500) -> Process:
    """`size` bytes there and back, twenty times a second, until it fails."""
    name = f"{kind}-{address}-{port}"
    return host.start(sys.executable, "-c", CLIENT, kind, address, str(port), str(size), name=name)


def echoes(flow: Process) -> list[float]:
    """When each round trip was over, in seconds since 1970."""
    whole_lines = flow.text().split("\n")[:-1]  # the last one may still be being written
    return [float(line.split()[1]) for line in whole_lines if line.startswith("echo")]


def is_alive(flow: Process) -> bool:
    """It has gone round often enough to be called a flow."""
    return len(echoes(flow)) > ALIVE_ROUND_TRIPS
