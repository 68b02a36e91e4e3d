"""What a rig lacks on this host, and how to mend it. Nothing is switched, written or typed: only looked at."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hil.errors import HilError
from hil.machines import BY_NAME, MACHINES, Machine
from hil.rigs import reserve
from hil.rigs.device import Device
from hil.rigs.external import SOURCES, program
from hil.rigs.rigfile import RigFile, TargetFile

CONNECT_S = 3.0
MODULES = (("yaml", "PyYAML"), ("serial", "pyserial"), ("pytest", "pytest"))
OF_GUESTS = ("fakeroot", "dpkg-deb", "apt-get", "depmod", "mke2fs", "debugfs", "mcopy")
OF_NETWORK = ("unshare", "nsenter", "ip", "mosquitto")
_DRIVERS = {"USBPowerDriver": "uhubctl", "SDMuxDriver": "usbsdmux", "USBBootDriver": "rpiboot", "SSHDriver": "ssh"}


class Check(NamedTuple):
    """`mend`: what to do, where it is not `ok`."""

    about: str
    ok: bool
    said: str
    mend: str = ""


def of_host() -> Iterator[Check]:
    """For guests, and for edgehil's own network."""
    for module, package in MODULES:
        there = importlib.util.find_spec(module) is not None
        yield Check("python", there, f"{package}{'' if there else ' is not here'}", "pip install 'edgemesh[hil]'")
    there = importlib.util.find_spec("tools") is not None
    yield Check(
        "checkout",
        there,
        "the sources of the agent" + ("" if there else ": not here, so no package of it can be made"),
        "run edgehil in a checkout, or name a package by the option `agent` of a target",
    )
    for name in (*OF_NETWORK, *OF_GUESTS, "edgeflash"):
        yield _program("host", name)
    for machine in MACHINES:
        yield _machine(machine)
    yield _tun()
    yield _namespaces()


def of_rig(rig: RigFile, folder: Path, store: Path) -> Iterator[Check]:
    """`folder`: where something may be made meanwhile."""
    holder = reserve.Lock(rig.path, reserve.RESERVED).holder()
    yield Check("reserved", True, reserve.told(holder))
    for name, target in rig.targets.items():
        try:
            device = Device(rig, target, folder=folder, out=folder, store=store)
        except HilError as error:
            yield Check(name, False, str(error), "mend the rig file")
            continue
        yield from _target(rig, device, target)
        device.close()
    if rig.options["hub_token_file"]:
        yield _file("hub", rig.file(rig.options["hub_token_file"]), "an API token: edgehub users token NAME")


def _target(rig: RigFile, device: Device, target: TargetFile) -> Iterator[Check]:
    name = target.name
    for driver, needed in _DRIVERS.items():
        if driver in target.drivers:
            yield _program(name, needed)
    if guest := target.drivers.get("GuestDriver"):
        yield _machine(BY_NAME[guest.values["machine"]], name)
    if "SerialDriver" in target.drivers:
        port = target.bound("SerialDriver")
        if port.kind == "RawSerialPort":
            yield _device(name, Path(port.values["port"]), "dialout")
        else:
            yield _connects(name, port.values["host"], port.values["port"])
    if "SDMuxDriver" in target.drivers:
        yield _device(name, Path(target.bound("SDMuxDriver").values["control"]), "disk")
    if "SSHDriver" in target.drivers and (key := target.drivers["SSHDriver"].values["keyfile"]):
        yield _file(name, rig.file(key), "a private key: ssh-keygen")
    if "HTTPPowerDriver" in target.drivers:
        try:
            state = device.power.state()
            said = {True: "on", False: "off", None: "cannot be told: no state_url"}[state]
            yield Check(name, True, f"power: {said}")
        except HilError as error:
            yield Check(name, False, f"power: {error}", "mend HTTPPowerPort, or the network to it")
    for option in ("image", "agent"):
        if target.options[option]:
            yield _file(name, rig.file(target.options[option]), f"name it by the option `{option}`, or make it", option)


def _program(about: str, name: str) -> Check:
    try:
        return Check(about, True, program(name))
    except HilError as error:
        return Check(about, False, str(error).partition(":")[0], SOURCES.get(name, "`./dev hil` installs it, as root"))


def _machine(machine: Machine, about: str = "") -> Check:
    found = shutil.which(machine.program)
    said = found or f"{machine.program} is not here"
    return Check(about or f"guest {machine.name}", found is not None, said, f"apt-get install {machine.needs}")


def _tun() -> Check:
    ok = os.access("/dev/net/tun", os.R_OK | os.W_OK)
    return Check(
        "host", ok, "/dev/net/tun" + ("" if ok else " cannot be opened"), "modprobe tun; chmod 666 /dev/net/tun"
    )


def _namespaces() -> Check:
    rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    try:
        done = subprocess.run(["unshare", *rights, "--net", "true"], capture_output=True, timeout=CONNECT_S)
        ok = done.returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        ok = False
    mend = "run as root, or allow user namespaces: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone"
    return Check("host", ok, "network namespaces" + ("" if ok else " cannot be made"), mend)


def _device(about: str, path: Path, group: str) -> Check:
    if not path.exists():
        return Check(about, False, f"{path} is not there", f"plug it in; those that are: ls {path.parent}")
    ok = os.access(path, os.R_OK | os.W_OK)
    return Check(
        about, ok, f"{path}{'' if ok else ' may not be opened'}", f"usermod -aG {group} {_user()}; log in again"
    )


def _connects(about: str, host: str, port: int) -> Check:
    try:
        with socket.create_connection((host, port), CONNECT_S):
            return Check(about, True, f"{host}:{port}")
    except OSError as error:
        return Check(about, False, f"{host}:{port}: {error.strerror or error}", "start the terminal server")


def _file(about: str, path: Path, mend: str, what: str = "file") -> Check:
    ok = os.access(path, os.R_OK)
    return Check(about, ok, f"{what} {path}{'' if ok else ' is not there, or may not be read'}", mend)


def _user() -> str:
    return os.environ.get("USER") or str(os.geteuid())
