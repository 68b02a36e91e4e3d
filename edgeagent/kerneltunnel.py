"""Makes the engine `kernel` for a member, or says why it cannot be."""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING

from edgeagent.engine import choice
from edgeagent.engine.kernel.engine import KernelEngine
from edgeagent.engine.kernel.ports import FilterError
from edgeagent.io.rawudp import RawSocket
from edgeagent.io.udp import Udp
from edgeagent.kernelport import KernelPort, interface_name, remove_leftover

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeagent.context import Context
    from edgeagent.io.tun import Tun
    from edgeagent.proto.node import Node

log = logging.getLogger("edgeagent")


def prepare(context: Context, node: Node, tun: Tun) -> tuple[Udp, Callable[[], KernelEngine]]:
    """(what is beside the kernel's UDP port, what makes the engine). The latter raises EngineUnavailable."""
    udp = Udp(kind=RawSocket)
    return udp, lambda: _make(context, node, tun, udp)


def tidy(tun: str) -> None:
    """For whoever starts with another engine."""
    name = interface_name(tun)
    if remove_leftover(name):
        log.info("%s was left by an agent that was killed, and is removed", name)


def _make(context: Context, node: Node, tun: Tun, udp: Udp) -> KernelEngine:
    settings = context.settings
    if node.map.clients or node.map.approved:
        # Not the end of the agent: the hub says so, and would end a device for good that nobody is near
        log.error(
            "engine kernel: this device is to route for others, which only `fast` and `pure` do: nothing is forwarded. "
            "Unset %s",
            choice.ENGINE_VARIABLE,
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
    except FilterError as error:
        port.close()
        raise choice.EngineUnavailable(f"engine kernel: {error}") from None


def _why(name: str, error: OSError) -> str:
    if error.errno == errno.EOPNOTSUPP:
        return "this kernel has no WireGuard. Install its module, or unset " + choice.ENGINE_VARIABLE
    if error.errno == errno.EEXIST:
        return f"{name}: there is such an interface already. Remove it (ip link delete {name})"
    if error.errno == errno.EPERM:
        return f"{name}: not permitted to make an interface. Run as root, or with CAP_NET_ADMIN and CAP_NET_RAW"
    return f"{name}: {error.strerror}"
