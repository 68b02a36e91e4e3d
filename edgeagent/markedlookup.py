"""Name look-ups that do not go through the tunnel: while an exit node is used, the system's own resolver would ask
through it, and whoever needs a name to get there would never arrive. A stub resolver (RFC 1035, 7.3) on marked sockets.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from edgeagent.io.marks import mark

SERVERS_MAX = 3  # resolv.conf(5)
TRIES, TIMEOUT_S = 2, 2.5
ANSWERS_MAX = 16
_PORT = 53
_BYTES_MAX = 4_096
# Where systemd-resolved says whom it asks: its own address in /etc/resolv.conf is on this host
_FILES = ("/run/systemd/resolve/resolv.conf", "/etc/resolv.conf")
_TYPES = {1: (socket.AF_INET, 4), 28: (socket.AF_INET6, 16)}  # A, AAAA (RFC 3596)
_RCODE = 0x000F


def getaddrinfo(host: bytes, port: int, type: int = socket.SOCK_STREAM) -> list[Any]:
    """As the socket module's, for names of the DNS and of /etc/hosts. Raises OSError."""
    found = _from_hosts(host) or _from_servers(host)
    if not found:
        raise OSError(0, "the name servers know no address of it")
    return [
        (family, type, 0, "", (text, port) if family == socket.AF_INET else (text, port, 0, 0))
        for family, text in found
    ]


def servers(files: tuple[str, ...] = _FILES) -> list[str]:
    """Addresses of name servers on other hosts."""
    for path in files:
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                lines = [line.split() for line in file.read(65_536).splitlines()]
        except OSError:
            continue
        named = [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]
        usable = [address for address in named if not address.startswith("127.") and address != "::1"]
        if usable:
            return usable[:SERVERS_MAX]
    return []


def write_query(number: int, name: bytes, kind: int) -> bytes:
    """Raises ValueError for what is no name."""
    labels = name.rstrip(b".").split(b".")
    if not all(0 < len(label) < 64 for label in labels) or len(name) > 253:
        raise ValueError("no DNS name")
    head = number.to_bytes(2, "big") + b"\x01\x00\x00\x01" + bytes(6)  # recursion desired, one question
    return head + b"".join(bytes([len(label)]) + label for label in labels) + b"\0" + kind.to_bytes(2, "big") + b"\0\1"


def read_answer(query: bytes, answer: bytes) -> list[bytes] | None:
    """The addresses in it, of the type that was asked for; None for what answers something else, or says nothing."""
    question = query[12:]
    if len(answer) < 12 + len(question) or answer[:2] != query[:2] or not answer[2] & 0x80:
        return None
    flags, count = int.from_bytes(answer[2:4], "big"), int.from_bytes(answer[6:8], "big")
    if answer[12 : 12 + len(question)].lower() != question.lower() or flags & _RCODE not in (0, 3):
        return None
    found, at = [], 12 + len(question)
    kind = int.from_bytes(question[-4:-2], "big")
    for _ in range(min(count, ANSWERS_MAX)):
        at = _behind_name(answer, at)
        if at + 10 > len(answer):
            break
        size = int.from_bytes(answer[at + 8 : at + 10], "big")
        data = answer[at + 10 : at + 10 + size]
        if answer[at : at + 4] == kind.to_bytes(2, "big") + b"\0\1" and len(data) == size == _TYPES[kind][1]:
            found.append(data)
        at += 10 + size
    return found


def _behind_name(data: bytes, at: int) -> int:
    while at < len(data):
        size = data[at]
        if size >= 0xC0:
            return at + 2
        at += 1 + size
        if not size:
            return at
    return len(data)


def _from_servers(host: bytes) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    asked = servers()
    for kind, (family, _) in _TYPES.items():
        for address in [address for _ in range(TRIES) for address in asked]:
            answer = _ask(address, write_query(int.from_bytes(os.urandom(2), "big"), host, kind))
            if answer is not None:
                found += [(family, socket.inet_ntop(family, each)) for each in answer]
                break
    return found


def _ask(server: str, query: bytes) -> list[bytes] | None:
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            mark(sock)
            sock.settimeout(TIMEOUT_S)
            sock.connect((server.partition("%")[0], _PORT))
            sock.send(query)
            for _ in range(4):  # whoever guesses the port may send first
                found = read_answer(query, sock.recv(_BYTES_MAX))
                if found is not None:
                    return found
    except OSError:
        pass
    return None


def _from_hosts(host: bytes, path: str = "/etc/hosts") -> list[tuple[int, str]]:
    name, found = host.decode("ascii").lower(), []
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            lines = [line.partition("#")[0].split() for line in file.read(65_536).splitlines()]
    except OSError:
        return []
    for words in lines:
        if name in [word.lower() for word in words[1:]]:
            family = socket.AF_INET6 if ":" in words[0] else socket.AF_INET
            try:
                socket.inet_pton(family, words[0])
            except OSError:
                continue
            found.append((int(family), words[0]))
    return found
