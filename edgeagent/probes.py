"""What the kernel lets this process do: tried on descriptors of its own, which nothing outlives."""

from __future__ import annotations

import json
import os
import socket
import sys
from contextlib import suppress

from edgeagent.io.tun import Tun

TUN_DEVICE = "/dev/net/tun"
CAP_NET_ADMIN = 12  # capability.h
_CLONE_NEWUSER, _CLONE_NEWNET = 0x1000_0000, 0x4000_0000  # sched.h
_SOL_UDP, _UDP_SEGMENT, _UDP_GRO = 17, 103, 104  # udp(7)
_SEGMENT_BYTES, _SEGMENTS = 100, 3
_ANSWER_BYTES_MAX = 1024
_NO_LIMIT = 1 << 60  # version 1 says so with a number near 2^63


class TunTrial:
    """`interface`: one could be made, with the offloads that the kernel then agreed to; `error` says why not."""

    __slots__ = ("error", "interface", "tcp_offload", "udp_offload")

    def __init__(self, interface: bool, tcp_offload: bool, udp_offload: bool, error: str) -> None:
        self.interface = interface
        self.tcp_offload = tcp_offload
        self.udp_offload = udp_offload
        self.error = error


def try_tun() -> TunTrial:
    """Make an interface and remove it, in a network namespace of its own where that may be made, so that nobody's
    network manager sees it; that needs no root where user namespaces are allowed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        answer = b""
        try:
            answer = _tun_answer()
        finally:
            os.write(writing, answer)
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answer = pipe.read(_ANSWER_BYTES_MAX)
    os.waitpid(child, 0)
    try:
        return TunTrial(*json.loads(answer))
    except (ValueError, TypeError):
        return TunTrial(False, False, False, "the trial ended without an answer")


def _tun_answer() -> bytes:
    with suppress(ImportError, OSError, AttributeError):
        import ctypes

        unshare = ctypes.CDLL(None).unshare
        if unshare(_CLONE_NEWNET) != 0:
            unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
    try:
        tun = Tun("trial%d")
    except OSError as error:
        return json.dumps((False, False, False, error.strerror or str(error))).encode()
    return json.dumps((True, tun.tcp_offload, tun.udp_offload, "")).encode()


def try_udp_offloads() -> tuple[bool, bool]:
    """(UDP_SEGMENT works, UDP_GRO is known), seen on three segments sent at once through the loopback, which takes them
    apart on its way before Linux 5.11: what is not joined there may be elsewhere. Raises OSError."""
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_INET, kind) as receiver, socket.socket(socket.AF_INET, kind) as sender:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(1.0)
        joins = True
        try:
            receiver.setsockopt(_SOL_UDP, _UDP_GRO, 1)
        except OSError:
            joins = False
        sent = bytes(_SEGMENT_BYTES * _SEGMENTS)
        segment = _SEGMENT_BYTES.to_bytes(2, sys.byteorder)
        try:
            sender.sendmsg([sent], [(_SOL_UDP, _UDP_SEGMENT, segment)], 0, receiver.getsockname())
        except OSError:
            sender.sendto(sent, receiver.getsockname())
        try:
            data, ancillary, _, _ = receiver.recvmsg(len(sent), 64)
        except TimeoutError:
            return False, False
        joined = len(data) == len(sent) and any(level == _SOL_UDP and what == _UDP_GRO for level, what, _ in ancillary)
        # A kernel before UDP_SEGMENT ignores the request and sends one datagram of all.
        return joined or len(data) == _SEGMENT_BYTES, joins


def default_route_interfaces() -> list[str]:
    """Of IPv4, each once."""
    names: dict[str, None] = {}
    with suppress(OSError), open("/proc/net/route", encoding="ascii", errors="replace") as routes:
        for line in routes:
            fields = line.split()
            if len(fields) > 7 and fields[1] == fields[7] == "00000000":
                names[fields[0]] = None
    return list(names)


def read_number(path: str) -> int | None:
    """The one that a file of /proc or /sys holds; None where there is no such file, or it holds a word."""
    try:
        with open(path, "rb") as file:
            return int(file.read(32))
    except (OSError, ValueError):
        return None


def memory_kib() -> tuple[int, int] | None:
    """(all of it, what can be had without swapping), in KiB."""
    found: dict[str, int] = {}
    with suppress(OSError, ValueError, IndexError), open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            name, _, rest = line.partition(":")
            found[name] = int(rest.split()[0])
    if "MemTotal" not in found:
        return None
    return found["MemTotal"], found.get("MemAvailable", found.get("MemFree", 0))


def memory_limit_kib(root: str = "/sys/fs/cgroup") -> int | None:
    """The least memory limit of this process's control groups, in KiB; None where there is none."""
    try:
        with open("/proc/self/cgroup", encoding="ascii", errors="replace") as file:
            groups = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return None
    limits = []
    for _, controllers, group in (fields for fields in groups if len(fields) == 3):
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        base, name = (root, "memory.max") if not controllers else (f"{root}/memory", "memory.limit_in_bytes")
        while True:
            limit = read_number(f"{base}{group.rstrip('/')}/{name}")
            if limit is not None and limit < _NO_LIMIT:
                limits.append(limit // 1024)
            if group in ("", "/"):
                break
            group = os.path.dirname(group)
    return min(limits, default=None)
