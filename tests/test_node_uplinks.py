"""A node with two uplinks: from what the kernel says to where the packets go."""

from __future__ import annotations

import pytest

from edgeagent.proto.node_events import ActiveUplinkChanged, UplinkChanged
from edgeagent.proto.path import State as PathState
from edgeagent.proto.uplink import HOLD_MIN_S, State, UplinkFacts, UplinkSetting
from edgeagent.proto.uplinks import ACTIVE_S, FAILED_MAX_S, FAILURES_MAX, FORGET_S, RETRY_S, Uplinks
from tests.node_kit import World, send
from tests.test_path_uplinks import OURS, PORT, Pair

NAMES = {1: "eth0", 2: "wwan0"}


def facts(index: int, *, up: bool = True, host: int = 1) -> UplinkFacts:
    address = OURS[index][:3] + bytes((host,))
    return UplinkFacts(NAMES[index], index, addresses=[address], gateways={4: OURS[index][:3] + b"\xfe"}, is_up=up)


class Site(Pair):
    """Probes that the node wants are answered unless the uplink is a black hole; `tested` False leaves them be."""

    def begin(self) -> None:
        self.tested = True
        self.uplinks = Uplinks({"wwan0": UplinkSetting(is_metered=True)})
        self.wanted: list[int] = []
        self.a.node.outside.probe = lambda now, uplink, routed: self.wanted.append(uplink)  # type: ignore[method-assign]
        self.tell(facts(1), facts(2))

    def verdict(self, index: int, *, answered: bool) -> None:
        """What became of a probe by that uplink."""
        self.a.node.outside._verdicts.append((index, answered))
        self.a.node.handle_timeout(self.world.now)

    def tell(self, *links: UplinkFacts) -> None:
        self.uplinks.handle_links(self.world.now, list(links))
        self.a.node.handle_uplinks(self.world.now, self.uplinks)
        self.several = bool(self.uplinks.bound)
        self.settle()

    def settle(self) -> None:
        for _ in range(8):
            self.world.crank()
            wanted, self.wanted = self.wanted, []
            if not wanted:
                return
            for index in wanted if self.tested else ():
                self.verdict(index, answered=index not in self.black)
        raise AssertionError("probes without end")

    def talk(self, seconds: float, *, every_s: float = 0.05) -> None:
        for _ in range(round(seconds / every_s)):
            super().talk(every_s, every_s=every_s)
            self.settle()

    def state(self, index: int) -> State:
        return next(uplink.state for uplink in self.uplinks if uplink.index == index)


@pytest.fixture
def site() -> Site:
    made = Site(World())
    made.talk(3.0)
    made.a.events.clear()
    return made


def test_a_cable_that_is_pulled_costs_nothing_and_comes_back_after_a_while(site: Site) -> None:
    assert site.currents() == (1, OURS[1])
    site.black = {1}
    site.tell(facts(1, up=False), facts(2))
    assert [(event.name, event.reason.value) for event in site.a.events if isinstance(event, ActiveUplinkChanged)] == [
        ("wwan0", "lost")
    ]
    assert site.lost(3.0) == (0.0, 0.0)
    assert site.currents() == (2, OURS[2])
    site.black = set()
    site.tell(facts(1), facts(2))
    site.talk(HOLD_MIN_S + 2.0)
    assert site.currents() == (1, OURS[1])
    changes = [(event.name, event.state) for event in site.a.events if isinstance(event, UplinkChanged)]
    assert changes == [("eth0", State.DOWN), ("eth0", State.UNTESTED), ("eth0", State.ALIVE)]


def test_a_router_that_drops_everything(site: Site) -> None:
    site.black = {1}
    assert max(site.lost(2.0)) <= 1.0
    site.talk(ACTIVE_S + FAILURES_MAX * RETRY_S + 1.0)
    assert site.state(1) is State.FAILED
    assert site.paths() == {2: PathState.PROVEN}
    site.black = set()
    site.talk(FAILED_MAX_S, every_s=1.0)
    assert site.state(1) is State.ALIVE
    assert site.currents() == (1, OURS[1])


def test_peers_answers_tell_that_an_uplink_works(site: Site) -> None:
    site.tested = False
    for uplink in site.uplinks:
        uplink.answered_at = None
    site.talk(70.0, every_s=0.5)
    heard = {uplink.index for uplink in site.uplinks if uplink.answered_at is not None}
    assert heard == {1, 2}
    site.verdict(1, answered=False)
    assert site.state(1) is State.DOUBTFUL
    site.talk(70.0, every_s=0.5)
    assert site.state(1) is State.ALIVE


def test_when_the_servers_are_gone_direct_paths_go_on(site: Site) -> None:
    site.black = {1, 2}
    for _ in range(200):
        for index in (1, 2):
            site.verdict(index, answered=False)
        site.settle()
    site.black = set()
    assert site.lost(2.0) == (0.0, 0.0)
    assert site.currents() == (1, OURS[1])


def test_a_flapping_uplink_is_not_chosen_back_at_once(site: Site) -> None:
    for _ in range(4):
        site.black = {1}
        site.tell(facts(1, up=False), facts(2))
        assert site.lost(0.5) == (0.0, 0.0)
        site.black = set()
        site.tell(facts(1), facts(2))
        assert site.lost(3.0) == (0.0, 0.0)
        assert site.paths()[1] is PathState.PROVEN
    # 5 s of cost for the metered one still count for more than the hold
    assert site.uplinks.active is not None and site.uplinks.active.name == "wwan0"


def test_a_new_address_on_the_standby_disturbs_nobody(site: Site) -> None:
    replayed = site.b.node.device.drops
    before = dict(replayed)
    site.black = {2}
    site.tell(facts(1), facts(2, host=9))
    site.a.node.handle_addresses(site.world.now, [(OURS[1], PORT), (OURS[2][:3] + b"\x09", PORT)])
    site.settle()
    assert site.lost(1.0) == (0.0, 0.0)
    assert site.b.node.device.drops == before  # no copy was needed


def test_a_second_uplink_comes_and_is_forgotten() -> None:
    site = Site(World())
    site.uplinks = Uplinks({})
    site.tell(facts(1))
    assert site.uplinks.bound == []
    site.talk(2.0)
    assert site.paths() == {0: PathState.PROVEN}
    site.tell(facts(1), facts(2))
    site.talk(2.0)
    assert site.paths() == {1: PathState.PROVEN, 2: PathState.PROVEN}
    site.tell(facts(1))
    assert site.lost(1.0) == (0.0, 0.0)
    assert len(site.uplinks.bound) == 2
    for _ in range(round(FORGET_S)):
        site.world.run(1.0)
        site.several = bool(site.uplinks.bound)
        site.settle()
    assert site.uplinks.bound == []
    site.talk(2.0)
    assert site.paths() == {0: PathState.PROVEN}


def test_the_first_word_of_uplinks_disturbs_no_path() -> None:
    site = Site(World())
    site.a.node.reach.uplinks = None
    site.a.node._paths.handle_uplinks(site.world.now, [], several=False)  # as it is while nobody has looked
    site.several = False
    site.talk(2.0)
    path = site.a.node.finder.current(site.b.id)
    drops = dict(site.b.node.device.drops)
    site.uplinks = Uplinks({})
    site.tell(facts(1), facts(2))
    assert site.a.node.finder.current(site.b.id) is path and site.paths()[1] is PathState.PROVEN
    assert site.lost(2.0) == (0.0, 0.0)
    assert site.paths() == {1: PathState.PROVEN, 2: PathState.PROVEN}
    assert site.b.node.device.drops == drops


def test_what_status_says(site: Site) -> None:
    status = site.a.node.status(site.world.now)
    assert [(row["name"], row["state"], row["active"], row["metered"]) for row in status["uplinks"]] == [  # type: ignore[attr-defined]
        ("eth0", "alive", True, False),
        ("wwan0", "alive", False, True),
    ]
    (peer,) = site.a.node.peers(site.world.now)
    assert peer["path_uplink"] == "eth0"
    assert site.b.node.peers(site.world.now)[0]["path_uplink"] is None


def test_datagrams_of_the_device_itself_wait_for_no_path(site: Site) -> None:
    """An uplink goes down while a handshake is due: the initiation leaves by another one."""
    site.world.run(200.0)  # keys are too old
    site.black = {1}
    site.tell(facts(2))
    packet = send(site.world, site.a, site.b, b"after the rest")
    site.world.run(1.0)
    assert packet in site.b.received
