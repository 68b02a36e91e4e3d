"""What idle devices cost for real; tests/sim/idle.py asks the same in virtual time.

python -m tests.netlab.idle [MINUTES] [nats]

A metered device and one that is not, each behind a NAT, with ten peers that they have spoken to and say no more. What
their ledgers book is scaled to a day, for each ten minutes and for the whole time. With `nats` the broker is a
nats-server.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor

from tests.netlab import Lab
from tests.netlab.homes import Homes, Member
from tests.netlab.mesh import Mesh
from tests.netlab.nat import Kind
from tests.netlab.natsmesh import NatsMesh

PEERS = 10
MINUTES = 60.0
SLICE_S = 600.0  # is told of by itself: the first hours go into learning
SETTLE_S = 180.0  # until sessions and paths that nobody uses are let go
DAY_S = 86_400.0


def main() -> int:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else MINUTES
    with Lab() as lab:
        homes = Homes(lab, mesh=NatsMesh if "nats" in sys.argv[2:] else Mesh)
        homes.start("fra-1", "fra-2")
        measured = [homes.member(name, homes.home(Kind.PORT)) for name in ("metered", "unmetered")]
        measured[0].options = ["--metered", "eth0"]
        peers = [homes.member(f"peer-{number}", homes.home(Kind.PORT)) for number in range(PEERS)]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(homes.up, [*measured, *peers]))
        for member in measured:
            for peer in peers:
                assert member.host.ping(peer.address, 10) is not None, f"{member.name} does not reach {peer.name}"
        print(f"{PEERS} peers were spoken to; settling for {SETTLE_S:.0f} s", flush=True)
        time.sleep(SETTLE_S)
        start, began = [booked(member) for member in measured], time.monotonic()
        before, then = start, began
        while (left_s := began + 60 * minutes - time.monotonic()) > 1:
            time.sleep(min(SLICE_S, left_s))
            after, now = [booked(member) for member in measured], time.monotonic()
            for member, was, became in zip(measured, before, after, strict=True):
                tell(member, was, became, f"{(then - began) / 60:.0f}–{(now - began) / 60:.0f} min", now - then)
            before, then = after, now
        for member, was, became in zip(measured, start, before, strict=True):
            tell(member, was, became, "in all", then - began)
    return 0


def tell(member: Member, before: dict[str, int], after: dict[str, int], when: str, took_s: float) -> None:
    by_cause = {cause: count - before.get(cause, 0) for cause, count in after.items()}
    a_day = {cause: round(count * DAY_S / took_s) for cause, count in by_cause.items() if count}
    rows = ", ".join(f"{cause} {count:,}" for cause, count in a_day.items())
    print(
        f"{member.name:<10} {when:<10} {sum(by_cause.values()):>8,} B; a day: {sum(a_day.values()):,} B ({rows});",
        end=" ",
    )
    print(f"a keepalive each {member.request('status')['self']['keepalive_s']:g} s", flush=True)


def booked(member: Member) -> dict[str, int]:
    """Bytes sent and received since the start, by cause."""
    total: dict[str, int] = {}
    for uplink in member.request("ledger")["uplinks"]:
        for row in uplink["causes"]:
            total[row["cause"]] = total.get(row["cause"], 0) + sum(row["since_start"].values())
    return total


if __name__ == "__main__":
    sys.exit(main())
