"""The lab itself: makes hosts and segments, and takes care that nothing of them stays."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from tests.netlab import rights, sweep
from tests.netlab.host import Host, Net
from tests.netlab.process import STOP_GRACE_S, LabError, Process

HOSTS_MAX = 256
SWEEP_TIMEOUT_S = 30.0
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Lab:
    """A context manager: build with `net`, `host` and `router`, then use the hosts. Leaving it ends and removes all.

    Leaving is by the end of the block, an exception, Ctrl-C, SIGTERM or SIGHUP (both raise SystemExit in the main
    thread). After SIGKILL the warden does the same from outside; should that be killed too, the next lab does.
    """

    def __init__(self) -> None:
        self.id = ""
        self.directory = Path()
        self.hosts: dict[str, Host] = {}
        self.nets: list[Net] = []
        self._switch: Host | None = None
        self._warden: subprocess.Popen[bytes] | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Lab:
        missing = rights.missing()
        if missing:
            raise LabError(missing)
        for lab_id in sweep.leftovers():
            sweep.sweep(lab_id)
        self.id = sweep.new_id()
        self.directory = sweep.directory_of(self.id)
        self._catch_signals()
        try:
            # Passable, not listable: the broker drops its rights and must still reach its own files inside.
            self.directory.mkdir(mode=0o711)
            self._warden = subprocess.Popen(
                [sys.executable, "-I", "-S", sweep.__file__, self.id],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._switch = Host("switch", self.id, self.directory / "switch", self._warden.pid)
            self._switch.sysctl({"net/ipv6/conf/all/disable_ipv6": 1, "net/ipv6/conf/default/disable_ipv6": 1})
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def net(self, v4: str, v6: str | None = None, mtu: int = 1500) -> Net:
        """A new Ethernet segment with these prefixes."""
        assert self._switch is not None
        net = Net(self._switch, f"br{len(self.nets)}", IPv4Network(v4), IPv6Network(v6) if v6 else None, mtu)
        self.nets.append(net)
        return net

    def host(self, name: str, *nets: Net) -> Host:
        """A new machine, plugged into `nets` as eth0, eth1 …"""
        if name in self.hosts or name == "switch":
            raise LabError(f"host {name!r} exists already")
        if len(self.hosts) == HOSTS_MAX:
            raise LabError(f"a lab has at most {HOSTS_MAX} hosts")
        assert self._warden is not None
        host = self.hosts[name] = Host(name, self.id, self.directory / name, self._warden.pid)
        for net in nets:
            host.attach(net)
        return host

    def router(self, name: str, *nets: Net) -> Host:
        """A host that forwards; on each of `nets` that has no gateway yet it becomes the gateway."""
        router = self.host(name)
        router.forward()
        for net in nets:
            router.attach(net)
        return router

    def processes(self) -> list[Process]:
        """All that `Host.start` has started, ended or not, and long cables, which end last."""
        hosts = [*self.hosts.values(), *([self._switch] if self._switch else [])]
        return [process for host in hosts for process in host.processes]

    def close(self) -> None:
        """End the programs (SIGTERM, then SIGKILL) and remove everything. Signals wait meanwhile. Idempotent."""
        held = {number: signal.signal(number, signal.SIG_IGN) for number in self._handlers}
        try:
            self._end_programs()
            if self._warden is not None:
                self._dismiss_warden(self._warden)
                self._warden = None
        finally:
            for number in held:
                signal.signal(number, self._handlers.pop(number))

    def _end_programs(self) -> None:
        processes = self.processes()
        for process in processes:
            if process.running:
                process.signal(signal.SIGTERM)
        for process in processes:
            process.reap(STOP_GRACE_S)

    def _dismiss_warden(self, warden: subprocess.Popen[bytes]) -> None:
        """Closing its pipe makes the warden sweep: the path taken after a crash is the one taken each time."""
        assert warden.stdin is not None
        warden.stdin.close()
        try:
            warden.wait(SWEEP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            warden.kill()
            warden.wait()
        sweep.sweep(self.id)

    def _catch_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _ENDING:
            self._handlers[number] = signal.getsignal(number)
            if number != signal.SIGINT:
                signal.signal(number, _raise_exit)


def _raise_exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
