"""Which engine a tunnel gets, with its port: the kernel's where it is named or its rule allows, else another one.

An engine of the kernel's that nobody on this device named never keeps an agent from starting: what fails is said, and
another one is taken. Starts with it that did not settle are counted where a reboot empties it, so that one which
crashes the agent goes the same way.
"""

from __future__ import annotations

import errno
import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from edgeagent.engine import choice
from edgeagent.engine.pure import PureEngine
from edgeagent.engine.start import start
from edgeagent.io.marks import MARK
from edgeagent.io.udp import Udp

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeagent.context import Context
    from edgeagent.engine.start import Engine
    from edgeagent.enginerule import Facts
    from edgeagent.io.tun import Tun
    from edgeagent.kerneltunnel import KernelWatch
    from edgeagent.proto.node import Node

    Aead = Callable[[str], tuple[str, str] | None]

log = logging.getLogger("edgeagent")
UNSETTLED_STARTS = 3  # with the kernel's engine since the device was switched on
STARTS_FILE = "kernel-starts"


class TunnelError(Exception):
    """The interface or its port cannot be made; the text says why and what to do."""


class Chosen:
    """An engine that is bound to `port` by `udp`, its name, and why it is that one. `watch`: whether it is to stay;
    None where it is."""

    __slots__ = ("engine", "name", "port", "udp", "watch", "why")

    def __init__(
        self, engine: Engine, udp: Udp, port: int, name: str, why: str, watch: KernelWatch | None = None
    ) -> None:
        self.engine = engine
        self.udp = udp
        self.port = port
        self.name = name
        self.why = why
        self.watch = watch


def choose(context: Context, node: Node, tun: Tun, aead: Aead, facts: Callable[[], Facts]) -> Chosen:
    """`facts` are asked for where the kernel may have WireGuard. Raises EngineUnavailable, TunnelError, where what was
    named on this device cannot be had, or no port."""
    settings = context.settings
    asked = settings.engine
    by_name = asked != choice.AUTO and "engine" not in settings.by_hub
    note = choice.take_note()
    if asked == "kernel" and by_name:
        return _kernel(context, node, tun, "the setting `engine` says so", None)
    why = ""
    if asked in (choice.AUTO, "kernel"):
        why = note or _why_not(context, asked, facts)
        if not why:
            said = "all its conditions hold" if asked == choice.AUTO else "the hub's setting `engine` says so"
            try:
                return _kernel(context, node, tun, said, asked)
            except Exception as error:  # noqa: BLE001  a bug here would be the end of a device that nobody can visit
                why = str(error) or type(error).__name__
                log.warning("%s: another engine is taken", why)
                with suppress(OSError):
                    os.unlink(_starts_path(context))  # the agent has not ended with it
        asked = choice.AUTO
    if os.path.exists(f"/sys/class/net/{tun.name[:12]}-wg"):
        from edgeagent import kerneltunnel

        kerneltunnel.tidy(tun.name)
    if not by_name and asked == "fast":
        asked = choice.AUTO  # which is the same, but no error without the library
    return _plain(context, node, tun, aead, asked, why)


def _why_not(context: Context, asked: str, facts: Callable[[], Facts]) -> str:
    if asked == choice.AUTO:
        if missing := choice.why_no_kernel():
            return missing
        from edgeagent import enginerule  # most kernels have none

        if why := enginerule.why_not(facts()):
            return why
    path = _starts_path(context)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "ab+") as file:
            if file.tell() >= UNSETTLED_STARTS:
                return f"the agent ended {UNSETTLED_STARTS} times soon after its start with it"
            file.write(b"k")
    except OSError:  # it cannot be counted, as where nothing can be written at all
        return ""
    return ""


def _starts_path(context: Context) -> str:
    return os.path.join(os.path.dirname(context.settings.socket), STARTS_FILE)


def _kernel(context: Context, node: Node, tun: Tun, why: str, wanted: str | None) -> Chosen:
    """`wanted` None: nothing is to take its place."""
    from edgeagent import kerneltunnel  # only with that engine

    udp, engine = kerneltunnel.make(context, node, tun)
    _mark(udp)
    port = _bind(context, engine)
    watch = None
    if wanted is not None:
        watch = kerneltunnel.watch(engine, tun.name, _starts_path(context), auto=wanted == choice.AUTO)
    return Chosen(engine, udp, port, "kernel", why, watch)


def _plain(context: Context, node: Node, tun: Tun, aead: Aead, asked: str, why_not_kernel: str) -> Chosen:
    udp, limits = Udp(), context.limits
    _mark(udp)
    engine = start(
        node,
        tun,
        udp,
        context.selector,
        log,
        slots=limits.peers,
        flows=limits.flows,
        connections=limits.connections,
        ring_bytes=limits.pump_ring_bytes,
        new_flows_per_s=limits.new_flows_per_s,
        aead=aead,
        asked=asked,
    )
    port = _bind(context, engine)
    name, why = choice.choose(asked=asked)
    if isinstance(engine, PureEngine) and name != "pure":
        name, why = "pure", "the C library does not work here"
    return Chosen(engine, udp, port, name, f"{why}; not kernel: {why_not_kernel}" if why_not_kernel else why)


def _mark(udp: Udp) -> None:
    with suppress(OSError):  # EPERM: then nothing is ever routed by marks
        udp.set_mark(MARK)


def _bind(context: Context, engine: Engine) -> int:
    """The port that was asked for; when only the default is taken, any. Where there is none the engine is closed."""
    port = context.settings.port
    try:
        try:
            return engine.bind(port)
        except OSError as error:
            if context.settings.port_fixed or error.errno != errno.EADDRINUSE:
                raise
        log.warning("UDP port %d is taken: the kernel chooses another", port)
        return engine.bind(0)
    except OSError as error:
        engine.close()
        raise TunnelError(f"UDP port {port}: {error.strerror}. Give another with --port, or 0 for any") from None
