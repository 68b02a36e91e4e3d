"""What an idle device costs in a day of virtual time, by cause: behind a router, with peers it once spoke to.

python -m tests.sim.idle [PEERS] [HOURS]
"""

from __future__ import annotations

import sys

from edgeagent.proto.budget import POLICIES, Level
from edgeagent.proto.ledger import Cause
from tests.sim.bill import Bill
from tests.sim.homes import Homes
from tests.sim.nat import PORT

DAY_H = 24.0
MINUTE_S, HOUR_S = 60.0, 3_600.0


class Idle:
    """One device whose bill is taken; `peers` others, each in a home of its own, all but it metered."""

    def __init__(self, seed: int, peers: int, *, metered: bool, keepalive_s: float, learnt: bool) -> None:
        self.homes = Homes(seed)
        self.device = self.homes.add_device_at(self.homes.home("me", PORT, binding_s=1_200.0))
        others = [self.homes.add_device_at(self.homes.home(f"peer-{number}", PORT)) for number in range(peers)]
        self.homes.wait_joined()
        self.homes.world.run_for(5.0)
        node = self.device.node
        assert node is not None
        node.set_price(self.device.now, on_demand=metered)
        node.keep_bindings(self.device.now, keepalive_s, learnt)
        if metered:
            node.client.keepalive_factor = POLICIES[Level.NORMAL].keepalive_factor
        for other in others:
            self.homes.traffic.send(self.device, other)
            self.homes.traffic.send(other, self.device)
        self.homes.world.run_for(10 * MINUTE_S)

    def bill(self, hours: float) -> dict[Cause, tuple[int, int]]:
        """(sent, received) in so many hours in which nobody has anything to send."""
        self.device.bill = Bill()
        node = self.device.node
        assert node is not None and self.device.connected
        self.device.bill.goes_on(self.device.now, float(node.mqtt_keepalive_s))
        self.homes.world.run_for(hours * HOUR_S)
        return self.device.bill.by_cause(self.device.now)


# Metered, seconds between keepalives, whether that was learnt
CASES = {
    "unmetered, nothing learnt yet": (False, 25.0, False),
    "unmetered, bindings of 30 s": (False, 25.5, True),
    "unmetered, bindings of 2 minutes": (False, 102.0, True),
    "metered": (True, 25.0, False),
}


def main(arguments: list[str]) -> None:
    peers = int(arguments[0]) if arguments else 10
    hours = float(arguments[1]) if len(arguments) > 1 else DAY_H
    for name, (metered, keepalive_s, learnt) in CASES.items():
        shares = Idle(1, peers, metered=metered, keepalive_s=keepalive_s, learnt=learnt).bill(hours)
        daily = {cause.name.lower(): round(sum(both) * DAY_H / hours) for cause, both in shares.items()}
        print(f"{name}, {peers} idle peers: {sum(daily.values()):,} B a day: {daily}")


if __name__ == "__main__":
    main(sys.argv[1:])
