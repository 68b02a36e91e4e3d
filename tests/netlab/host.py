"""Hosts, routers and the Ethernet segments between them."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from tests.netlab import cable
from tests.netlab.process import LabError, LabTimeout, Process

RUN_TIMEOUT_S = 30.0
HOST_NAME_MAX = 32

# Duplicate address detection would hold each IPv6 address back for a second; in here nobody else can have it.
_SYSCTLS = {
    "net/ipv4/conf/all/rp_filter": 0,
    "net/ipv4/conf/default/rp_filter": 0,
    "net/ipv6/conf/all/accept_dad": 0,
    "net/ipv6/conf/default/accept_dad": 0,
}
_ROUTER_SYSCTLS = {"net/ipv4/ip_forward": 1, "net/ipv6/conf/all/forwarding": 1}

# The host's own /run: a socket or pid file at its usual place does not meet the one of the host next to it.
_ENTER = """\
#!/bin/sh
# Runs the command given, or a shell, in lab host {name}.
ns=/run/netns/{namespace}
[ -e "$ns" ] || exec nsenter --target {warden} --user --mount --preserve-credentials -- sh "$0" "$@"
export {exports}
if [ $# -eq 0 ]; then
    export PS1='{name}# '
    if command -v bash >/dev/null; then set -- bash --norc; else set -- sh; fi
fi
exec nsenter --net="$ns" -- unshare --mount -- sh -c 'mount --bind "$0" /run && exec "$@"' {run} "$@"
"""


class Port:
    """An interface of a host on a segment, with the addresses it got there."""

    __slots__ = ("ifname", "net", "v4", "v6")

    def __init__(self, net: Net, ifname: str, v4: str, v6: str | None) -> None:
        self.net = net
        self.ifname = ifname
        self.v4 = v4
        self.v6 = v6

    def pull(self) -> None:
        """The cable out of its socket: the interface has no carrier."""
        self._far_end("down")

    def plug_in(self) -> None:
        """And back."""
        self._far_end("up")

    def _far_end(self, state: str) -> None:
        self.net.switch.ip(f"link set {self.net.bridge}p{self.net.ports.index(self) + 1} {state}")


class Net:
    """An Ethernet segment: a bridge without addresses. Hosts get its addresses in the order in which they attach.

    `gateway` is the port of the first router attached; who attaches later gets its default routes through it.
    """

    def __init__(self, switch: Host, bridge: str, v4: IPv4Network, v6: IPv6Network | None, mtu: int) -> None:
        self.v4 = v4
        self.v6 = v6
        self.mtu = mtu
        self.bridge = bridge
        self.switch = switch
        self.ports: list[Port] = []
        self.gateway: Port | None = None
        switch.ip(f"link add {bridge} mtu {mtu} type bridge stp_state 0 forward_delay 0", f"link set {bridge} up")

    def plug(self, host: Host, ifname: str, delay_ms: float = 0.0) -> Port:
        """Lay a cable from `host` to this segment and give it the next addresses."""
        number = len(self.ports) + 1
        if number > self.v4.num_addresses - 2:
            raise LabError(f"{self.v4} has no address left for {host.name}")
        port = Port(self, ifname, str(self.v4[number]), str(self.v6[number]) if self.v6 else None)
        far = f"{self.bridge}p{number}"
        if delay_ms:
            self._lay_long_cable(host, ifname, far, delay_ms)
        else:
            peer = f"peer name {ifname} mtu {self.mtu} netns {host.namespace}"
            self.switch.ip(f"link add {far} mtu {self.mtu} type veth {peer}")
        self.switch.ip(f"link set {far} master {self.bridge} up")
        host.ip(f"link set {ifname} up", f"addr add {port.v4}/{self.v4.prefixlen} dev {ifname}")
        if self.v6:
            host.ip(f"addr add {port.v6}/{self.v6.prefixlen} dev {ifname} nodad")
        self.ports.append(port)
        return port

    def _lay_long_cable(self, host: Host, ifname: str, far: str, delay_ms: float) -> None:
        words = [sys.executable, "-I", "-S", cable.__file__, f"{delay_ms:g}"]
        words += [host.namespace, ifname, self.switch.namespace, far]
        process = Process(f"cable:{far}", words, self.switch.directory / f"cable-{far}.log", os.environ)
        self.switch.processes.append(process)
        process.expect(cable.READY)
        for end, name in ((host, ifname), (self.switch, far)):
            end.ip(f"link set {name} mtu {self.mtu}")


class Host:
    """A machine of the lab: a network namespace, a directory, a /run of its own, and the programs in it.

    `run` and `sh` wait for a command, `start` leaves one running until the lab ends. All take the command's words; the
    environment says where the agent and the hub of this host keep their state (EDGEAGENT_STATE, EDGEHUB_STATE).
    """

    def __init__(self, name: str, lab_id: str, directory: Path, warden: int) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name) or len(name) > HOST_NAME_MAX:
            raise LabError(f"host name {name!r}: use a DNS label of at most {HOST_NAME_MAX} characters")
        self.name = name
        self.namespace = f"{lab_id}-{name}"
        self.directory = directory
        self.forwards = False
        self._routed = False
        self.ports: list[Port] = []
        self.processes: list[Process] = []
        directory.mkdir(mode=0o711)
        (directory / "run").mkdir(mode=0o755)
        self.env: dict[str, str] = {
            "HOME": str(directory),
            "PATH": os.pathsep.join(
                [str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]
            ),
            "EDGEAGENT_STATE": str(directory / "edgeagent"),
            "EDGEHUB_STATE": str(directory / "edgehub"),
        }
        self.enter = directory / "enter"
        self.enter.write_text(
            _ENTER.format(
                name=name,
                namespace=self.namespace,
                warden=warden,
                exports=" ".join(f"{key}={shlex.quote(value)}" for key, value in self.env.items()),
                run=shlex.quote(str(directory / "run")),
            )
        )
        self.enter.chmod(0o755)
        _check(["ip", "netns", "add", self.namespace])
        self.ip("link set lo up")
        self.sysctl(_SYSCTLS)

    # --- the network ---

    def attach(self, net: Net, ifname: str | None = None, delay_ms: float = 0.0) -> Port:
        """Plug into `net` as `ifname` (eth0, eth1 … unless told). The first gateway met becomes the default route.

        With a delay, packets take so long each way; this takes some 20 µs of CPU a packet, so it is for few of them.
        """
        port = net.plug(self, ifname or f"eth{len(self.ports)}", delay_ms)
        self.ports.append(port)
        if net.gateway is None and self.forwards:
            net.gateway = port
        elif net.gateway is not None and not self._routed:
            self._routed = True
            self.ip(f"route add default via {net.gateway.v4}")
            if net.gateway.v6 and port.v6:
                self.ip(f"-6 route add default via {net.gateway.v6}")
        return port

    def forward(self) -> None:
        """Become a router: packets between the segments pass."""
        self.forwards = True
        self.sysctl(_ROUTER_SYSCTLS)

    @property
    def address(self) -> str:
        """The IPv4 address on the segment attached first."""
        return self.ports[0].v4

    @property
    def address6(self) -> str:
        """The IPv6 address on the segment attached first."""
        address = self.ports[0].v6
        if address is None:
            raise LabError(f"{self.name} has no IPv6 address: give its net a `v6` prefix")
        return address

    def ip(self, *lines: str) -> None:
        """Run iproute2 commands in this host's namespace, each a line without the leading `ip`."""
        for line in lines:
            _check(["ip", "-netns", self.namespace, *shlex.split(line)])

    def sysctl(self, values: Mapping[str, int]) -> None:
        """Set kernel parameters of this namespace, named as under /proc/sys."""
        script = "\n".join(f"echo {value} >/proc/sys/{name}" for name, value in values.items())
        _check(["nsenter", f"--net=/run/netns/{self.namespace}", "--", "sh", "-ec", script])

    # --- programs ---

    def run(
        self, *command: str | Path, timeout_s: float = RUN_TIMEOUT_S, check: bool = True, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end. With `check`, any exit code but 0 is a LabError that quotes the output."""
        with subprocess.Popen(
            self._words(command),
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environ(None),
            text=True,
            start_new_session=True,
        ) as popen:
            try:
                out, err = popen.communicate(input, timeout_s)
            except BaseException as error:
                os.killpg(popen.pid, signal.SIGKILL)
                out, err = popen.communicate()
                if isinstance(error, subprocess.TimeoutExpired):
                    raise LabTimeout(self._told(command, f"not within {timeout_s:g} s", out, err)) from None
                raise
        if check and popen.returncode != 0:
            raise LabError(self._told(command, f"exit code {popen.returncode}", out, err))
        return subprocess.CompletedProcess(command, popen.returncode, out, err)

    def sh(self, script: str, timeout_s: float = RUN_TIMEOUT_S) -> str:
        """Run a shell script that stops at the first error; its standard output."""
        return self.run("sh", "-ec", script, timeout_s=timeout_s).stdout

    def start(
        self,
        *command: str | Path,
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        fds: Sequence[int] = (),
    ) -> Process:
        """Start a program that stays. Its log is `<directory>/<name>.log`; it ends with the lab at the latest. It gets
        the descriptors `fds` of ours under the same numbers."""
        stem = name or Path(command[0]).name
        taken = sum(process.name.split("#")[0] == f"{self.name}:{stem}" for process in self.processes)
        label = stem if taken == 0 else f"{stem}#{taken + 1}"
        process = Process(
            f"{self.name}:{label}", self._words(command), self.directory / f"{label}.log", self._environ(env), fds
        )
        self.processes.append(process)
        return process

    def ping(self, address: str, timeout_s: int = 1) -> float | None:
        """The round trip of one echo request in ms, or None when no answer came in `timeout_s`."""
        result = self.run("ping", "-n", "-c1", f"-W{timeout_s}", address, check=False, timeout_s=timeout_s + 5)
        found = re.search(r"time=([\d.]+) ms", result.stdout)
        return float(found[1]) if result.returncode == 0 and found else None

    def _words(self, command: tuple[str | Path, ...]) -> list[str]:
        return ["sh", str(self.enter), *map(str, command)]

    def _environ(self, more: Mapping[str, str] | None) -> dict[str, str]:
        return {**os.environ, **(more or {})}

    def _told(self, command: tuple[str | Path, ...], what: str, out: str, err: str) -> str:
        words = shlex.join(map(str, command))
        return f"{self.name}: {words}: {what}\n{(out + err).strip()[-2000:]}"


def _check(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)
    if result.returncode != 0:
        raise LabError(f"{shlex.join(command)}: {(result.stderr or result.stdout).strip()}")
