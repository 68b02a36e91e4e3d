"""The suite `engines`: two guests that are members of a network, with each engine in turn; what each carries there."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hil.engine_choice import DROP_IN, by_itself
from hil.errors import CommandFailed, NotReached
from hil.interop.ends import SERVE, TALK, TALK_PORT
from hil.machines import Machine
from hil.programs import until
from hil.report import Report
from hil.rig import Device, Rig
from hil.smoke import raise_fleet

ENGINES = ("pure", "fast", "kernel", "auto")
INTERFACE = "edge0"
STREAM_BYTES = 4 << 20
RESTART_TIMEOUT_S = 600.0  # what a busy machine takes; an idle one a tenth of it
REACH_TIMEOUT_S = 600.0
FILTER_TIMEOUT_S = 60.0
BEHIND, PREFIX = "192.168.78.1", "192.168.78.0/24"
FILTER = "edgeagent_kernel_edge0_2d_wg"  # the table
ALIVE_S = 180.0  # that the kernel's filter outlives its agent
STREAM_TIMEOUT_S = 600.0
LINE_BYTES = 1024  # of what is typed at once


def engines(
    machine: Machine,
    store: Path,
    out: Path,
    say: Callable[[str], None],
    *,
    which: Sequence[str] = ENGINES,
    kinds: Sequence[str] = ("port", "full"),
) -> Report:
    """Each of `which` on both guests, `auto` being what they take by themselves. The report is in `out` however it
    ends."""
    report = Report("engines", say)
    try:
        with Rig(out) as rig:
            a, b = raise_fleet(report, rig, [machine] * len(kinds), store, out)
            with report.step("talk.py"):
                for device in (a, b):
                    _type(device, TALK.read_bytes(), "/root/talk.py")
                b.guest.console.shell(SERVE, 120.0)
            for engine in which:
                if engine == "auto":
                    by_itself(report, rig, a, b, _address(b), _reach)
                    continue
                _one(report, engine, a, b)
                if engine == "kernel":
                    _only_kernel(report, rig, a, b)
    finally:
        report.write(out)
    return report


def _one(report: Report, engine: str, a: Device, b: Device) -> None:
    with report.step(f"{engine}: agents start again") as step:
        for device in (a, b):
            _restart(device, engine)
        step["said"] = _reach(a, b)
    with report.step(f"{engine}: pings") as step:
        said = []
        for one, other in ((a, b), (b, a)):
            seconds, path = one.ping(other.name, 5)
            report.figure(f"{engine}: round trip to {other.name}", seconds * 1000, "ms", one.name)
            said.append(f"{one.name}→{other.name} {seconds * 1000:.0f} ms {path}")
        step["said"] = "; ".join(said)
    with report.step(f"{engine}: streams") as step:
        address = _address(b)
        rates = []
        for way in ("send", "receive"):
            before = a.guest.processor_s() + b.guest.processor_s()
            said_there = a.guest.console.shell(
                f"python3 /root/talk.py {way} {address} {TALK_PORT} {STREAM_BYTES}", STREAM_TIMEOUT_S
            )
            told = json.loads(said_there.strip().splitlines()[-1])
            if not told["ok"]:
                raise NotReached(f"{engine}: what came is not what was sent: {told}")
            cost = a.guest.processor_s() + b.guest.processor_s() - before
            mbit_s = 8e-6 * told["bytes"] / told["seconds"]
            rates.append(f"{way} {mbit_s:.1f} Mbit/s, {cost / (STREAM_BYTES >> 20):.2f} s of processor a MiB")
            report.figure(f"{engine}: {way}", mbit_s, "Mbit/s", a.name)
            report.figure(f"{engine}: {way}, processor time of both QEMU", cost / (STREAM_BYTES >> 20), "s/MiB", a.name)
        step["said"] = "; ".join(rates)
    for device in (a, b):
        report.figure(f"{engine}: agent, resident memory", device.rss_kb() / 1024, "MiB", device.name)


def _only_kernel(report: Report, rig: Rig, a: Device, b: Device) -> None:
    with report.step("kernel: it is the kernel") as step:
        step["said"] = _by_kernel(a, b)
    with report.step("kernel: a prefix behind the other one") as step:
        step["said"] = _behind(rig, a, b)
    with report.step("kernel: a filter that is flushed comes back") as step:
        step["said"] = _flushed(a)
    with report.step("kernel: after kill -9 it ends by itself, and begins again") as step:
        step["said"] = _killed(a, b)


def _restart(device: Device, engine: str) -> None:
    folder = DROP_IN.rpartition("/")[0]
    device.guest.console.shell(
        f"mkdir -p {folder}; printf '[Service]\\nEnvironment=EDGEAGENT_ENGINE={engine}\\n' >{DROP_IN}; "
        "systemctl daemon-reload; systemctl restart edgeagent; sleep 1; systemctl is-active edgeagent",
        RESTART_TIMEOUT_S,
    )


def _reach(a: Device, b: Device) -> str:
    began = time.monotonic()

    def look() -> str:
        try:
            a.ping(b.name, 1)
            b.ping(a.name, 1)
        except CommandFailed as error:
            return "" if time.monotonic() - began < REACH_TIMEOUT_S else str(error)
        return f"both reach each other after {time.monotonic() - began:.0f} s"

    return until(look, REACH_TIMEOUT_S, lambda: NotReached(f"{a.name} and {b.name} do not reach each other"), 2.0)


def _address(device: Device) -> str:
    said = device.guest.console.shell(f"ip -4 -o addr show dev {INTERFACE}")
    return said.split()[3].partition("/")[0]


def _by_kernel(a: Device, b: Device) -> str:
    """The kernel's interface has counted what the streams took, and routes to the other one go there."""
    said = a.guest.console.shell(f"ip -s -o link show {INTERFACE}-wg; ip route get {_address(b)}")
    if f"dev {INTERFACE}-wg" not in said:
        raise NotReached(f"packets to {b.name} do not go by the kernel's interface: {said}")
    carried = int(a.guest.console.shell(f"cat /sys/class/net/{INTERFACE}-wg/statistics/tx_bytes"))
    if carried < STREAM_BYTES:
        raise NotReached(f"the kernel's interface has sent {carried} bytes, fewer than the stream had")
    return f"{carried} bytes sent by {INTERFACE}-wg"


def _behind(rig: Rig, a: Device, b: Device) -> str:
    """`b` routes, which it does by Python here; what `a` sends there goes past Python."""
    b.guest.console.shell(f"ip address add {BEHIND}/24 dev lo")
    _restart(b, "pure")
    _reach(a, b)
    b.guest.console.shell(f"edgeagent routes set --advertise-routes {PREFIX}")
    until(
        lambda: PREFIX in rig.hub.ask("routes", "list", "--waiting"),
        FILTER_TIMEOUT_S,
        lambda: NotReached(f"the hub does not list what {b.name} offers"),
        2.0,
    )
    rig.hub.ask("routes", "approve", b.name, PREFIX)

    def look() -> bool:
        said = a.guest.console.shell(f"ping -c 1 -W 3 {BEHIND} >/dev/null; echo status=$?; ip route get {BEHIND}", 60.0)
        return f"dev {INTERFACE}-wg" in said and "status=0" in said

    until(look, REACH_TIMEOUT_S, lambda: NotReached(f"{BEHIND} is not reached by {INTERFACE}-wg"), 2.0)
    said = a.guest.console.shell(f"python3 /root/talk.py send {BEHIND} {TALK_PORT} {STREAM_BYTES}", STREAM_TIMEOUT_S)
    told = json.loads(said.strip().splitlines()[-1])
    if not told["ok"]:
        raise NotReached(f"{BEHIND}: what came is not what was sent: {told}")
    b.guest.console.shell("edgeagent routes set --advertise-routes ''")
    _restart(b, "kernel")
    return f"answers and a stream from {BEHIND}, {8e-6 * told['bytes'] / told['seconds']:.1f} Mbit/s; {_reach(a, b)}"


def _flushed(device: Device) -> str:
    """Another firewall's reload takes our table with it."""
    began = time.monotonic()
    device.guest.console.shell("nft flush ruleset")

    def look() -> str:
        said = device.guest.console.shell("nft list ruleset")
        return f"there again within {time.monotonic() - began:.0f} s" if FILTER in said else ""

    return until(look, FILTER_TIMEOUT_S, lambda: NotReached(f"{device.name} has no filter"), 1.0)


def _killed(a: Device, b: Device) -> str:
    """Nothing starts the agent of `a` again. Its address goes with the TUN, and what else its kernel would carry ends
    with an element of the filter that nobody renews."""
    address = _address(a)
    shell, restart = a.guest.console.shell, DROP_IN.replace("engine.conf", "restart.conf")
    shell(
        f"printf '[Service]\\nRestart=no\\n' >{restart}; systemctl daemon-reload; systemctl kill -s KILL edgeagent; "
        "sleep 1; ! systemctl is-active edgeagent"
    )
    began = time.monotonic()
    if "through" in b.guest.console.shell(f"ping -c 3 -W 3 {address} >/dev/null && echo through || echo nothing", 60.0):
        raise NotReached(f"{a.name} answers without an agent")
    if not _is_alive(a):
        raise NotReached(f"{a.name}'s filter ended before its time")

    def look() -> str:
        return (
            "" if _is_alive(a) else f"no answers at once, and the filter shut {time.monotonic() - began:.0f} s after it"
        )

    said = until(look, ALIVE_S + FILTER_TIMEOUT_S, lambda: NotReached(f"{a.name} goes on without an agent"), 5.0)
    shell(f"rm {restart}; systemctl daemon-reload; systemctl start edgeagent", RESTART_TIMEOUT_S)
    return f"{said}; started, {_reach(a, b)}"


def _is_alive(device: Device) -> bool:
    """Whether the filter of a kernel's interface lets anything through."""
    said = device.guest.console.shell(f"ip -o link show {INTERFACE}-wg; nft list set inet {FILTER} alive")
    return f'"{INTERFACE}-wg"' in said


def _type(device: Device, data: bytes, path: str) -> None:
    """Write a small file by the console."""
    text = base64.b64encode(data).decode()
    device.guest.console.shell(f": >{path}.b64")
    for at in range(0, len(text), LINE_BYTES):
        device.guest.console.shell(f"printf %s {text[at : at + LINE_BYTES]} >>{path}.b64")
    device.guest.console.shell(f"base64 -d {path}.b64 >{path}; rm {path}.b64")
