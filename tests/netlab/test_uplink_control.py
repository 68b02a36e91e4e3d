"""Broker and relay by another uplink when the first one's router swallows everything, whatever default routes say."""

from __future__ import annotations

from tests.netlab import Lab, until
from tests.netlab.homes import SECOND_HOME, TLS_PORT, Homes, Member
from tests.netlab.nat import Kind

MOVED_WITHIN_S = 40.0  # a deadline, no figure


def test_connections_leave_a_router_that_drops_everything(lab: Lab) -> None:
    homes = Homes(lab)
    homes.start("fra-1")
    routers = [homes.home(Kind.PORT), homes.home(Kind.PORT, prefix=SECOND_HOME)]
    member = homes.member("a", routers[0])
    homes.add_uplink(member, routers[1])
    homes.up(member)
    until(lambda: broker_by(homes, member, "192.168.1."), MOVED_WITHIN_S, "the first uplink is in use")
    until(lambda: states(member) == {"alive"}, MOVED_WITHIN_S, "both uplinks were tried")
    routers[0].impair(loss_percent=100)
    until(lambda: broker_by(homes, member, "192.168.2."), MOVED_WITHIN_S, "the broker is reached by the second uplink")
    until(lambda: relay_is_up(member), MOVED_WITHIN_S, "a relay is home")
    routers[0].impair(loss_percent=0)
    until(lambda: broker_by(homes, member, "192.168.1."), 2 * MOVED_WITHIN_S, "it is reached by the first one again")


def states(member: Member) -> set[str]:
    return {row["state"] for row in member.request("status")["uplinks"] or ()}


def broker_by(homes: Homes, member: Member, prefix: str) -> bool:
    """Whether the device is logged in from an address with that prefix, and nothing else."""
    if member.request("status")["mqtt"]["stage"] != "up":
        return False
    own = [
        line.split()[3]
        for line in member.host.run(
            "ss", "-Htn", f"dst {homes.mesh.hub.address} and dport = :{TLS_PORT}"
        ).stdout.splitlines()
    ]
    return bool(own) and any(address.startswith(prefix) for address in own)


def relay_is_up(member: Member) -> bool:
    return member.request("status")["self"]["home_relay"] is not None
