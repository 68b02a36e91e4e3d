"""Starts the engine that this device is to use: `fast` where it is there and works, else `pure`."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from edgeagent.engine import choice
from edgeagent.engine.fast import library
from edgeagent.engine.pure import PureEngine
from edgeagent.proto.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Callable
    from logging import Logger
    from selectors import BaseSelector

    from edgeagent.engine.fast.engine import FastEngine
    from edgeagent.engine.kernel.engine import KernelEngine
    from edgeagent.engine.machine import FastMachine
    from edgeagent.engine.pure import TunPort, UdpPort

    Engine = PureEngine | FastEngine | KernelEngine

RING_BYTES, NEW_FLOWS_PER_S = Limits.DEFAULTS["pump_ring_bytes"], Limits.DEFAULTS["new_flows_per_s"]
CONNECTIONS = Limits.DEFAULTS["connections"]
SLOTS_MAX = 16_384  # EA_PEERS_MAX; what is beyond them goes through Python
OWN_AEAD = ("lanes", "lanes")


def start(
    machine: FastMachine,
    tun: TunPort,
    udp: UdpPort,
    selector: BaseSelector,
    log: Logger,
    *,
    slots: int,
    flows: int,
    connections: int = CONNECTIONS,
    ring_bytes: int = RING_BYTES,
    new_flows_per_s: int = NEW_FLOWS_PER_S,
    aead: Callable[[str], tuple[str, str] | None] = lambda library: None,
    asked: str | None = None,
) -> PureEngine | FastEngine:
    """`slots`, `flows`, `connections`, `ring_bytes` and `new_flows_per_s` bound `fast`; `aead` names, for
    the library at a path, its providers for small and for large messages where that is known. What EDGEAGENT_AEAD
    names comes first. `asked` is as choice.choose() has it.

    Raises EngineUnavailable when an engine or an AEAD is asked for by name that cannot be had.
    """
    engine, why = choice.choose(os.environ, asked)
    if engine == "kernel":
        raise choice.EngineUnavailable(
            "engine kernel: only `edgeagent` has it. An interface of the kernel's own is made by "
            "`ip link add NAME type wireguard`"
        )
    if engine == "fast":
        # Not before it is known that it is there: ctypes costs 0.6 MiB
        from edgeagent.engine import bakeoff
        from edgeagent.engine.fast.binding import LibraryUnusable, load
        from edgeagent.engine.fast.engine import FastEngine

        path = library.path() or ""
        try:
            asked = bakeoff.asked()
        except bakeoff.AeadUnavailable as error:
            raise choice.EngineUnavailable(str(error)) from None
        wanted = (asked, asked) if asked else aead(path)

        def make(names: tuple[str, str]) -> FastEngine:
            return FastEngine(
                machine,
                tun,
                udp,
                selector,
                load(path),
                slots=min(slots, SLOTS_MAX),
                flows=flows,
                connections=connections,
                ring_bytes=ring_bytes,
                new_flows_per_s=new_flows_per_s,
                aead=names,
            )

        try:
            try:
                return make(wanted or OWN_AEAD)
            except OSError as error:
                if error.errno != errno.ENOENT or wanted is None:  # that is what a provider says that is not there
                    raise
                if asked:
                    raise choice.EngineUnavailable(
                        f"AEAD {asked}: not on this device. Unset {bakeoff.AEAD_VARIABLE}, or see `edgeagent crypto`"
                    ) from None
                log.warning("AEAD %s or %s is gone since it was measured: our own instead", *wanted)
                return make(OWN_AEAD)
        except (LibraryUnusable, OSError) as error:
            why = str(error)
            if (os.environ.get(choice.ENGINE_VARIABLE) if asked is None else asked) == "fast":
                raise choice.EngineUnavailable(f"engine fast: {why}. See `edgeagent doctor`") from None
    log.info("packets are moved by Python: %s", why)
    return PureEngine(machine, tun, udp, selector)
