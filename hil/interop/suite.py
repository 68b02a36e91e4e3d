"""The suite `interop`: a guest's kernel WireGuard and `edge-wireguard` carry each other's traffic, whoever begins."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from hil.errors import NotReached
from hil.guests.build import build
from hil.interop.ends import TALK, HostEnd, KernelEnd, disk, endpoint_of_host, keys, preshared
from hil.machines import Machine
from hil.net.host import HostPlace
from hil.net.switch import Switch
from hil.programs import run
from hil.qemu import Guest
from hil.report import Report

ADDRESS_TIMEOUT_S = 300.0
PINGS = 5
LARGE = 1392  # with ICMP and IPv4 a packet of the interface's MTU
STREAM_BYTES = 4 << 20
REKEY_AFTER_S = 120.0  # WireGuard paper, section 6.1
REKEY_WITHIN_S = 150
ENGINES = ("fast", "pure")


def interop(
    machine: Machine, store: Path, out: Path, say: Callable[[str], None], *, engines: Sequence[str] = ENGINES
) -> Report:
    """For each of `engines` of edge-wireguard; the first of them also lives through new keys. The report is in `out`
    however it ends."""
    report = Report("interop", say)
    try:
        with ExitStack() as stack:
            _run(report, stack, machine, store, out, engines)
    finally:
        report.write(out)
    return report


def _run(report: Report, stack: ExitStack, machine: Machine, store: Path, out: Path, engines: Sequence[str]) -> None:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgehil-")))
    with report.step(f"guest {machine.name}") as step:
        built = build(machine, store)
        step["said"] = f"built: {built.root}" if built.seconds else "kept"
    with report.step("keys, and the guest's disk") as step:
        host_key, host_public = keys(folder, "host")
        guest_key, guest_public = keys(folder, "guest")
        psk = preshared(folder)
        files = {"/root/talk.py": TALK, "/root/wg.key": guest_key, "/root/wg.psk": psk}
        root = disk(machine, built, store, files, folder / "root.img")
    switch = Switch(folder)
    stack.callback(_keep_logs, folder, out)
    stack.callback(switch.close)
    place = HostPlace(switch, folder)
    stack.callback(place.close)
    # What is outside its router finds it again by the binding that it made itself
    guest = Guest("kernel", machine, built.boot(root), folder / "kernel", [switch.plug("kernel", switch.home("full"))])
    stack.callback(guest.power_off)
    with report.step("boot"):
        guest.power_on()
        guest.login()
        guest.console.shell("until ip -4 route | grep -q ^default; do sleep 1; done", ADDRESS_TIMEOUT_S)
    kernel = KernelEnd(guest, 2, guest_public)
    with report.step("the kernel's interface") as step:
        kernel.make()
        kernel.configure("/root/wg.key")
        kernel.serve()
        step["said"] = kernel.do("uname -r").strip()
    for number, engine in enumerate(engines):
        host = HostEnd(place, folder, 1, host_public, engine)
        stack.callback(host.stop)
        _pair(report, kernel, host, engine, str(host_key), str(psk), rekey=number == 0)
        host.stop()


def _pair(report: Report, kernel: KernelEnd, host: HostEnd, engine: str, key: str, psk: str, *, rekey: bool) -> None:
    with report.step(f"{engine}: edge-wireguard"):
        host.start()
        host.configure(key)
        host.serve()
    with report.step(f"{engine}: the kernel begins") as step:
        host.add(kernel, psk)
        kernel.add(host, "/root/wg.psk", endpoint_of_host())
        step["said"] = _reach(kernel, host)
    for on in (True, False):
        with report.step(f"{engine}: streams, GSO {'on' if on else 'off'}") as step:
            kernel.offload(on)
            host.offload(on)
            step["said"] = _streams(report, kernel, host, engine, "GSO" if on else "no GSO")
    kernel.offload(True)
    if rekey:
        with report.step(f"{engine}: new keys, the kernel asks") as step:
            step["said"] = _renew(kernel, host)
    with report.step(f"{engine}: edge-wireguard begins") as step:
        seen_at = host.shows("endpoints", kernel)[0]
        host.start()  # with no session and no address from before, and the kernel not told where it is
        kernel.remove(host)
        kernel.add(host, "/root/wg.psk")
        host.configure(key)
        host.serve()
        host.add(kernel, psk, seen_at)
        step["said"] = _reach(host, kernel)
    with report.step(f"{engine}: streams again") as step:
        host.offload(True)
        step["said"] = _streams(report, kernel, host, engine, "edge-wireguard began")
    if rekey:
        with report.step(f"{engine}: new keys, edge-wireguard asks") as step:
            step["said"] = _renew(host, kernel)
    kernel.remove(host)


def _reach(a: KernelEnd | HostEnd, b: KernelEnd | HostEnd) -> str:
    """`a` pings `b`, which has not heard of it; both then tell of a handshake, and of bytes both ways."""
    # The first may be lost while a cold neighbour table is filled
    answered = [a.ping(b.v4, PINGS), a.ping(b.v6, PINGS), a.ping(b.v4, PINGS, size=LARGE), b.ping(a.v4, PINGS)]
    if min(answered) < PINGS - 1:
        raise NotReached(f"of {PINGS} pings each were answered: {answered} (IPv4, IPv6, large, back)")
    for one, other in ((a, b), (b, a)):
        received, sent = map(int, one.shows("transfer", other))
        if not one.handshake_at(other) or min(received, sent) < 500:
            raise NotReached(f"{one.interface}: handshake {one.handshake_at(other)}, {received} B in, {sent} B out")
    return f"{sum(answered)} of {4 * PINGS} pings answered"


def _streams(report: Report, kernel: KernelEnd, host: HostEnd, engine: str, what: str) -> str:
    """Bytes with a hash, both ways and by both versions of IP; the guest connects, and the host does."""
    said = []
    for way, one, address in (
        ("send", kernel, host.v4),
        ("receive", kernel, host.v6),
        ("send", host, kernel.v6),
        ("receive", host, kernel.v4),
    ):
        told = one.stream(way, address, STREAM_BYTES)
        mbit_s = 8e-6 * told["bytes"] / told["seconds"]
        to = "host" if (way == "send") is (one is kernel) else "guest"
        said.append(f"to {to} {mbit_s:.0f}")
        asked = "guest" if one is kernel else "host"
        version = "6" if ":" in address else "4"
        report.figure(f"{engine}, {what}: to the {to} by IPv{version}, {asked} asks", mbit_s, "Mbit/s")
    return ", ".join(said) + " Mbit/s"


def _renew(a: KernelEnd | HostEnd, b: KernelEnd | HostEnd) -> str:
    """`a`, which began the session, sends until it has begun another one; nothing is lost meanwhile."""
    before = a.handshake_at(b), b.handshake_at(a)
    began = time.monotonic()
    sent = REKEY_WITHIN_S
    answered = a.ping(b.v4, sent, every_s=1.0)
    after = a.handshake_at(b), b.handshake_at(a)
    if not (after[0] > before[0] and after[1] > before[1]):
        raise NotReached(f"no new keys within {time.monotonic() - began:.0f} s of traffic: {before} → {after}")
    if answered < sent - 1:
        raise NotReached(f"new keys lost packets: {answered} of {sent} pings answered")
    return f"{after[0] - before[0]} s after the last handshake; {answered} of {sent} pings answered"


def _keep_logs(folder: Path, out: Path) -> None:
    for path in folder.rglob("*.log"):
        run(["cp", str(path), str(out / path.name)], 60.0)
