"""Starts the engine that this device is to use: `fast` where it is there and works, else `pure`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from edgeagent.engine import choice
from edgeagent.engine.fast import library
from edgeagent.engine.pure import PureEngine

if TYPE_CHECKING:
    from logging import Logger
    from selectors import BaseSelector

    from edgeagent.engine.fast.engine import FastEngine
    from edgeagent.engine.machine import FastMachine
    from edgeagent.engine.pure import TunPort, UdpPort

    Engine = PureEngine | FastEngine


def start(
    machine: FastMachine,
    tun: TunPort,
    udp: UdpPort,
    selector: BaseSelector,
    log: Logger,
    *,
    slots: int,
    flows: int,
    aead: tuple[str, str] | None = None,
) -> Engine:
    """`slots` and `flows` bound the tables of `fast`; `aead` names its providers for small and for large messages.

    Raises EngineUnavailable when an engine is asked for by name that cannot be had.
    """
    engine, why = choice.choose()
    if engine == "fast":
        # Not before it is known that it is there: ctypes costs 0.6 MiB
        from edgeagent.engine.fast.binding import LibraryUnusable, load
        from edgeagent.engine.fast.engine import FastEngine

        try:
            return FastEngine(
                machine,
                tun,
                udp,
                selector,
                load(library.path() or ""),
                slots=slots,
                flows=flows,
                aead=aead or ("lanes", "lanes"),
            )
        except (LibraryUnusable, OSError) as error:
            why = str(error)
            if os.environ.get(choice.ENGINE_VARIABLE) == "fast":
                raise choice.EngineUnavailable(f"engine fast: {why}. See `edgeagent doctor`") from None
    log.info("packets are moved by Python: %s", why)
    return PureEngine(machine, tun, udp, selector)
