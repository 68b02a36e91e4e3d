"""Minutes of one TCP stream between two homes: direct and by relay by turns, another address, policies, rekeys."""

from __future__ import annotations

import json
import os
from pathlib import Path
from time import sleep, time

import pytest

from tests.netlab import Lab, until
from tests.netlab.arrivals import Arrivals
from tests.netlab.homes import Homes, Member, is_direct
from tests.netlab.nat import Kind, NatRouter
from tests.netlab.process import rss_kib

SECONDS = int(os.environ.get("EDGEMESH_SOAK_S", "600"))
PORT = 5201
RATE = "50M"  # a relay lets one member have 100 Mbit/s
TURN_S = 12  # between two events
SETTLE_S = 3.0  # what an event leads to
MOVE_TIMEOUT_S = 60.0
RSS_GROWTH_KIB_MAX = 2048
LATE_SHARE_MAX = 0.001  # of full segments: those that come out of order or twice, where nothing is done
SEGMENT_BYTES = 1_300
REBIND_EACH = 4  # turns
SEATS = ("192.168.1.50", "192.168.1.51")  # of the left device, by turns


class Soak:
    """`log` has (what, when it began, when it was over) of all that was done to the stream, in time.time()."""

    def __init__(self, lab: Lab) -> None:
        self.homes = Homes(lab)
        self.homes.start("fra-1", "fra-2")
        # The right router lets strangers in: the left device's packets arrive from wherever it is
        homes = (("left", Kind.PORT), ("right", Kind.FULL))
        self.a, self.b = (self.homes.member(name, self.homes.home(kind)) for name, kind in homes)
        self.a.host.sysctl({"net/ipv4/conf/eth0/promote_secondaries": 1})
        self.seat = self.a.host.address
        self.homes.up(self.a, self.b)
        self.log: list[tuple[str, float, float]] = []
        self.policies = 0
        self.handshakes: set[int] = set()
        self.resident: list[dict[str, int]] = []

    def until_direct(self) -> None:
        until(lambda: is_direct(self.a, self.b) and is_direct(self.b, self.a), MOVE_TIMEOUT_S, "a direct path")

    def cut(self) -> None:
        """Nothing passes between the two homes any more but what goes by a relay; nobody is told."""
        router, other = self._routers()
        began = time()
        drop = f"ip daddr {other} drop\n ip saddr {other} drop"
        chain = f"chain forward {{\n type filter hook forward priority -10;\n {drop}\n }}"
        router.host.run("nft", "-f", "-", input=f"table ip cut {{\n {chain}\n}}\n")
        until(lambda: not is_direct(self.a, self.b) and not is_direct(self.b, self.a), MOVE_TIMEOUT_S, "both by relay")
        self.log.append(("cut", began, time()))

    def mend(self) -> None:
        began = time()
        self._routers()[0].host.run("nft", "delete", "table", "ip", "cut")
        self.until_direct()
        self.log.append(("mend", began, time()))

    def roam(self) -> None:
        """The left device has another address at home, and so another mapping; the old one is gone."""
        began = time()
        old, self.seat = self.seat, SEATS[self.seat == SEATS[0]]
        self.a.host.ip(f"addr add {self.seat}/24 dev eth0", f"addr del {old}/24 dev eth0")
        sleep(SETTLE_S)
        self.until_direct()
        self.log.append(("roam", began, time()))

    def rebind(self) -> None:
        """The left router forgets what it translates, and takes other ports: for the relays too."""
        began = time()
        self._routers()[0].rebind()
        shut = time()
        self.until_direct()
        self.log.append(("rebind", began, time()))
        print(f"rebind: the router let nothing pass for up to {shut - began:.2f} s")

    def change_policy(self) -> None:
        """Another policy by which the stream may go on."""
        self.policies += 1
        rules = [("tcp", f"*:{PORT}"), ("icmp", "*:*"), ("udp", f"*:{7000 + self.policies}")]
        rules += [("tcp", f"*:{8000 + number}") for number in range(self.policies % 5)]
        acls = [{"action": "accept", "src": ["*"], "proto": proto, "dst": [to]} for proto, to in rules]
        if self.policies % 4 == 3:
            acls = [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]
        began = time()
        said = self.homes.mesh.hub.run("edgehub", "policy", "set", "-", "--json", input=json.dumps({"acls": acls}))
        version = json.loads(said.stdout)["version"]
        for member in (self.a, self.b):
            until(lambda member=member: self._version(member) == version, MOVE_TIMEOUT_S, f"{member.name}'s policy")  # type: ignore[misc]
        self.log.append(("policy", began, time()))

    def look(self) -> None:
        """Note handshakes and memory."""
        for row in self.a.request("peers"):
            if row["name"] == self.b.name and row["handshake_age_s"] is not None:
                self.handshakes.add(round((time() - row["handshake_age_s"]) / 10))
        self.resident.append({member.name: rss_kib(member.pid()) for member in (self.a, self.b)})

    def _routers(self) -> tuple[NatRouter, str]:
        assert self.a.router is not None and self.b.router is not None
        return self.a.router, self.b.router.address

    @staticmethod
    def _version(member: Member) -> int | None:
        policy = member.request("status")["policy"]
        return None if policy is None else policy["version"]


@pytest.mark.slow
def test_ten_minutes_of_changes(lab: Lab) -> None:
    soak = Soak(lab)
    a, b = soak.a, soak.b
    assert a.host.ping(b.address, 10) is not None
    soak.until_direct()
    server = b.host.start("iperf3", "-s", "-1", "-p", str(PORT), "--forceflush")
    server.expect("listening")
    arrivals = Arrivals(b.host, "edge0", PORT)
    log = Path(a.host.directory) / "soak.json"
    client = a.host.start(
        *("iperf3", "-c", b.address, "-p", str(PORT), "-t", str(SECONDS), "-b", RATE, "-i", "1"),
        *("-J", "--logfile", str(log)),
    )
    began, turns = time(), 0
    while time() - began < SECONDS - 7 * TURN_S:
        turns += 1
        steps = [soak.change_policy, soak.cut, soak.change_policy, soak.mend, soak.roam]
        for step in steps + [soak.rebind] * (turns % REBIND_EACH == 1):
            sleep(TURN_S / 2 if step == soak.change_policy else TURN_S)
            step()
            soak.look()
    client.wait(timeout_s=SECONDS)
    ended = time()
    arrivals.stop()
    end = json.loads(log.read_text())["end"]
    if keep := os.environ.get("EDGEMESH_SOAK_LOG"):
        Path(keep).write_text(json.dumps({"log": soak.log, "gaps": arrivals.gaps, "lates": arrivals.lates, "end": end}))
    quiet_late = arrivals.late
    for what in ("cut", "mend", "roam", "rebind", "policy"):
        spans = [(start, over + SETTLE_S) for name, start, over in soak.log if name == what]
        gaps = sorted(arrivals.longest_gap_s(*span) for span in spans)
        late = sum(arrivals.late_between(*span) for span in spans)
        quiet_late -= late
        print(f"{what}: {len(spans)} times, silence {' '.join(f'{gap * 1e3:.0f}' for gap in gaps)} ms, {late} late")
    print(
        f"{end['sum_received']['bits_per_second'] / 1e6:.0f} Mbit/s for {ended - began:.0f} s, longest silence "
        f"{arrivals.longest_gap_s(began, ended) * 1e3:.0f} ms, {end['sum_sent']['retransmits']} retransmits, "
        f"{arrivals.late} of {arrivals.segments} segments late, {quiet_late} of them where nothing was done; "
        f"{len(soak.handshakes)} handshakes seen; RSS {soak.resident[0]}, {soak.resident[-1]} KiB, at most "
        f"{ {name: max(row[name] for row in soak.resident) for name in soak.resident[0]} }"
    )
    done = [name for name, _, _ in soak.log]
    assert done.count("cut") == done.count("mend") > 0 and done.count("policy") == 2 * done.count("cut")
    assert done.count("roam") > 0 and done.count("rebind") > 0
    assert len(soak.handshakes) >= max(1, SECONDS // 150)
    assert quiet_late <= arrivals.bytes / SEGMENT_BYTES * LATE_SHARE_MAX
    assert end["sum_received"]["bytes"] > 0.9 * SECONDS * int(RATE[:-1]) * 1e6 / 8
    assert all(soak.resident[-1][name] - soak.resident[0][name] <= RSS_GROWTH_KIB_MAX for name in soak.resident[0])
