"""What the device's programs weigh once imported, beside the bare interpreter and the obvious heavier choices."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.test_footprint import BUDGET_MIB, footprint
from tools.bench.figures import Figure, bench

# What an agent that takes the first tool at hand for each job would import.
NAIVE = ("asyncio", "dataclasses", "logging", "ssl", "nacl.bindings", "nacl.public", "paho.mqtt.client", "cbor2")


@bench
def import_(say: Callable[[str], None]) -> Iterator[Figure]:
    """Resident memory after the import, nothing running yet."""
    say("bare interpreter")
    bare = footprint()[1]
    yield Figure("bare interpreter", bare, "MiB", peer="it is the floor")
    naive = footprint(*NAIVE)[1]
    for module, budget in BUDGET_MIB.items():
        say(module)
        yield Figure(
            f"import {module}", footprint(module)[1], "MiB", peer=("naive imports", naive), at_most=bare + budget
        )
