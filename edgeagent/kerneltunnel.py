"""Makes the engine `kernel` for a member, or says why it cannot be; and watches whether it is to stay."""

from __future__ import annotations

import errno
import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from edgeagent.engine import choice
from edgeagent.engine.kernel.engine import KernelDrop, KernelEngine
from edgeagent.engine.kernel.ports import FilterError
from edgeagent.enginerule import why_not_by_device
from edgeagent.io.rawudp import RawSocket
from edgeagent.io.udp import Udp
from edgeagent.kernelport import KernelPort, interface_name, remove_leftover

if TYPE_CHECKING:
    from edgeagent.context import Context
    from edgeagent.enginerule import Facts
    from edgeagent.io.tun import Tun
    from edgeagent.proto.node import Node

log = logging.getLogger("edgeagent")
CHANGE_AFTER_S = 3.0  # of a condition that does not hold any more: approvals, and addresses of a cable, come in bursts
SETTLED_S = 60.0  # after which an agent is no longer one that ends soon after its start
REFUSED_LOOK_S = 1.0
REFUSED_MAX, REFUSED_FOR_S, REFUSED_WITHIN_S = 6, 20.0, 60.0  # so many refusals, over so long, in no more than that


def make(context: Context, node: Node, tun: Tun) -> tuple[Udp, KernelEngine]:
    """(what is beside the kernel's UDP port, the engine). Raises EngineUnavailable, and then nothing is left of it."""
    udp = Udp(kind=RawSocket)
    try:
        return udp, _make(context, node, tun, udp)
    except choice.EngineUnavailable:
        udp.close()
        raise


def watch(engine: KernelEngine, tun: str, starts: str, *, auto: bool) -> KernelWatch:
    return KernelWatch(engine, interface_name(tun), starts, auto=auto)


def tidy(tun: str) -> None:
    """For whoever starts with another engine."""
    name = interface_name(tun)
    if remove_leftover(name):
        log.info("%s was left by an agent that was killed, and is removed", name)


def _make(context: Context, node: Node, tun: Tun, udp: Udp) -> KernelEngine:
    settings = context.settings
    if node.map.clients or node.map.approved:  # only where it was asked for by name
        # Not the end of the agent: the hub says so, and would end a device for good that nobody is near
        log.error(
            "engine kernel: this device is to route for others, which only `fast` and `pure` do: nothing is forwarded. "
            "Leave the setting `engine` at auto"
        )
    name = interface_name(tun.name)

    def source(size: int) -> bytes | None:
        return next((address for address in node.map.addresses if len(address) == size), None)

    if remove_leftover(name):
        log.info("%s was left by an agent that was killed: it is made anew", name)
    try:
        port = KernelPort(name, settings.mtu, source)
    except OSError as error:
        raise choice.EngineUnavailable(f"engine kernel: {_why(name, error)}") from None
    try:
        return KernelEngine(node, tun, udp, context.selector, port, log, interface=name, peers_max=context.limits.peers)
    except (FilterError, OSError) as error:
        port.close()
        raise choice.EngineUnavailable(f"engine kernel: {error}") from None


class KernelWatch:
    """Whether the kernel's engine goes on being the right one. `given_up` says why not, once it has been so for a
    while: then the agent is to be begun anew with another one. It never comes back on itself.

    Drive it: `look` when something has changed, `interface_gone`, `on_timeout` at `poll_timeout()`.
    """

    def __init__(self, engine: KernelEngine, interface: str, starts: str, *, auto: bool) -> None:
        """`starts` is the file in which those that did not settle are counted. `auto`: the conditions of the rule hold
        for it, too; else only that it works."""
        self.interface = interface
        self._engine = engine
        self._starts = starts
        self._settles_at: float | None = None
        self._auto = auto
        self._why = ""
        self._since = 0.0
        self._refused = self._refused_before = 0
        self._first_at = float("-inf")
        self._checked_at = float("-inf")
        self.given_up = ""

    def look(self, now: float, facts: Facts) -> None:
        """At what the rule asks of the device."""
        if not self._auto or self.given_up:
            return
        why = why_not_by_device(facts)
        if why and not self._why:
            self._since = now
        self._why = why

    def settle(self) -> None:
        """This start was a good one."""
        with suppress(OSError):
            os.unlink(self._starts)

    def interface_gone(self) -> None:
        self.given_up = self.given_up or f"somebody removed {self.interface}"

    def poll_timeout(self) -> float | None:
        return self._since + CHANGE_AFTER_S if self._why and not self.given_up else None

    def on_timeout(self, now: float) -> None:
        """Also at any other time: what the kernel refuses is looked at whenever the agent is awake."""
        if self._settles_at is None:
            self._settles_at = now + SETTLED_S
        elif now >= self._settles_at:
            self._settles_at = float("inf")
            self.settle()
        if self.given_up:
            return
        if self._why and now - self._since >= CHANGE_AFTER_S:
            self.given_up = self._why
        elif now - self._checked_at >= REFUSED_LOOK_S:
            self._checked_at = now
            self._count_refusals(now)

    def _count_refusals(self, now: float) -> None:
        """Many at once may be one moment's, and one peer's now and then be that peer's."""
        refused = self._engine.drops[KernelDrop.REFUSED]
        if refused == self._refused:
            return
        if now - self._first_at > REFUSED_WITHIN_S:
            self._first_at, self._refused_before = now, self._refused
        elif now - self._first_at >= REFUSED_FOR_S and refused - self._refused_before >= REFUSED_MAX:
            self.given_up = f"the kernel has refused {refused - self._refused_before} times what it was told"
        self._refused = refused


def _why(name: str, error: OSError) -> str:
    if error.errno == errno.EOPNOTSUPP:
        return "this kernel has no WireGuard. Install its module, or leave the setting `engine` at auto"
    if error.errno == errno.EEXIST:
        return f"{name}: there is such an interface already. Remove it (ip link delete {name})"
    if error.errno == errno.EPERM:
        return f"{name}: not permitted to make an interface. Run as root, or with CAP_NET_ADMIN and CAP_NET_RAW"
    return f"{name}: {error.strerror}"
