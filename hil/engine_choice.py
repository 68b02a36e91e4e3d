"""Steps of the suite `engines` on the engine that agents take by themselves: which, what the hub's policy and relays
mean to it, and that it gives way where it cannot do what the device is to do.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence

from hil.errors import CommandFailed, NotReached
from hil.interop.ends import TALK_PORT
from hil.programs import until
from hil.report import Report
from hil.rig import Device, Rig

CHANGE_TIMEOUT_S = 180.0
CONNECT_TIMEOUT_S = 8  # of one attempt
STREAM_BYTES = 1 << 20
STREAM_TIMEOUT_S = 600.0
ROUTE = "192.168.77.0/24"
DROP_IN = "/run/systemd/system/edgeagent.service.d/engine.conf"
_CONNECT = "python3 -c \"import socket; socket.create_connection(('{}', {}), {})\" && echo open"

Reach = Callable[[Device, Device], str]


def by_itself(report: Report, rig: Rig, a: Device, b: Device, address: str, reach: Reach) -> None:
    """All of it; `address` is b's in the mesh, where talk.py serves. Both agents run by an engine that was named."""
    with report.step("by itself: the kernel") as step:
        for device in (a, b):
            unname(device)
        reach(a, b)
        step["said"] = "; ".join(f"{device.name} {_engine(device, 'kernel')}" for device in (a, b))
    _policy(report, rig, a, b, address)
    _relay(report, rig, a, b, address, reach)
    _removed(report, a, b, reach)
    _uplink(report, a, b, reach)
    _route(report, rig, a, b, address, reach)


def unname(device: Device) -> None:
    device.guest.console.shell(f"rm -f {DROP_IN}; systemctl daemon-reload; systemctl restart edgeagent", 600.0)


def _policy(report: Report, rig: Rig, a: Device, b: Device, address: str) -> None:
    """b's filter in the kernel follows the hub: what is forbidden ends, what is allowed again works."""
    with report.step("by itself: a policy cuts, and allows") as step:
        began = time.monotonic()
        _set_policy(rig, [{"action": "accept", "src": ["*"], "dst": [f"*:{TALK_PORT + 1}"]}])
        until(
            lambda: not _connects(a, address),
            CHANGE_TIMEOUT_S,
            lambda: NotReached(f"{a.name} still reaches {b.name}, which the policy forbids"),
        )
        cut_s, began = time.monotonic() - began, time.monotonic()
        for device in (a, b):
            _engine(device, "kernel")
        _set_policy(rig, [{"action": "accept", "src": ["*"], "dst": ["*:*"]}])
        until(
            lambda: _connects(a, address),
            CHANGE_TIMEOUT_S,
            lambda: NotReached(f"{a.name} does not reach {b.name}, which the policy allows again"),
        )
        step["said"] = f"cut after {cut_s:.0f} s, allowed again after {time.monotonic() - began:.0f} s"


def _relay(report: Report, rig: Rig, a: Device, b: Device, address: str, reach: Reach) -> None:
    """Both homes get routers between which there is no direct path, and get their old ones back."""
    with report.step("by itself: through the relay") as step:
        before = [rig.switch.set_kind(device.name, "symmetric") for device in (a, b)]
        reach(a, b)
        deadline = time.monotonic() + CHANGE_TIMEOUT_S
        while "relay" not in (path := a.ping(b.name)[1]):
            if time.monotonic() > deadline:
                raise NotReached(f"{a.name} reaches {b.name} by {path}: no relay is needed, though one should be")
            time.sleep(1.0)
        text = _stream(a, address)
        proxies = a.ask("status", "--memory")["tables"]["kernel_proxies"]["used"]
        if not proxies:
            raise NotReached(f"{a.name}: no proxy of the kernel's engine is in use")
        for device in (a, b):
            _engine(device, "kernel")
        for device, kind in zip((a, b), before, strict=True):
            rig.switch.set_kind(device.name, kind)
        reach(a, b)
        step["said"] = f"{path}, {proxies} proxy; {text}"


def _removed(report: Report, a: Device, b: Device, reach: Reach) -> None:
    """Somebody removes the kernel's interface."""
    with report.step("by itself: its interface is removed") as step:
        b.guest.console.shell("ip link delete edge0-wg")
        said = _changed(b)
        reach(a, b)
        step["said"] = f"{b.name} {said}"
        unname(b)
        reach(a, b)
        _engine(b, "kernel")


def _uplink(report: Report, a: Device, b: Device, reach: Reach) -> None:
    """a gets a second way out, which the kernel's WireGuard would not choose between."""
    with report.step("by itself: a second uplink") as step:
        # Of a name that the guest's networkd leaves alone
        a.guest.console.shell(
            "ip link add edgeup type dummy && ip addr add 192.0.2.2/24 dev edgeup && ip link set edgeup up && "
            "ip route add default via 192.0.2.1 dev edgeup metric 5000"
        )
        said = _changed(a)
        reach(a, b)
        step["said"] = f"{a.name} {said}"
        a.guest.console.shell("ip link delete edgeup")
        unname(a)
        reach(a, b)
        _engine(a, "kernel")


def _route(report: Report, rig: Rig, a: Device, b: Device, address: str, reach: Reach) -> None:
    """b becomes a router: no engine but `fast` and `pure` does that."""
    with report.step("by itself: a route is approved") as step:
        b.guest.console.shell(f"edgeagent routes set --advertise-routes {ROUTE}")
        until(
            lambda: ROUTE in rig.hub.ask("routes", "list", "--waiting"),
            CHANGE_TIMEOUT_S,
            lambda: NotReached(f"{b.name}: the hub does not list what it offers"),
        )
        rig.hub.ask("routes", "approve", b.name, ROUTE)
        said = [f"{b.name} {_changed(b)}"]
        reach(a, b)
        said.append(f"{a.name} {_engine(a, 'kernel')}")
        said.append(_stream(a, address))
        step["said"] = "; ".join(said)


def _engine(device: Device, name: str) -> str:
    told = device.ask("status")["engine"]
    if told["name"] != name:
        raise NotReached(f"{device.name}: engine {told['name']}, not {name}: {told['why']}")
    return f"{told['name']}: {told['why']}"


def _changed(device: Device) -> str:
    """What it says once it has another engine than the kernel's."""
    began = time.monotonic()

    def look() -> str:
        try:
            told = device.ask("status")["engine"]
        except (CommandFailed, KeyError, ValueError):  # it begins anew
            return ""
        return "" if told["name"] == "kernel" else f"{told['name']}: {told['why']}"

    said = until(look, CHANGE_TIMEOUT_S, lambda: NotReached(f"{device.name}: it goes on with the kernel's engine"))
    return f"{said} (after {time.monotonic() - began:.0f} s)"


def _connects(device: Device, address: str) -> bool:
    try:
        said = device.guest.console.shell(_CONNECT.format(address, TALK_PORT, CONNECT_TIMEOUT_S), 60.0)
    except CommandFailed:
        return False
    return "open" in said


def _stream(device: Device, address: str) -> str:
    said = device.guest.console.shell(
        f"python3 /root/talk.py send {address} {TALK_PORT} {STREAM_BYTES}", STREAM_TIMEOUT_S
    )
    told = json.loads(said.strip().splitlines()[-1])
    if not told["ok"]:
        raise NotReached(f"what came is not what was sent: {told}")
    return f"{told['bytes']} bytes in {told['seconds']:.1f} s"


def _set_policy(rig: Rig, rules: Sequence[dict[str, object]]) -> None:
    path = rig.folder / "policy.json"
    path.write_text(json.dumps({"acls": list(rules)}), encoding="utf-8")
    rig.hub.ask("policy", "set", str(path))
