"""The network and the broker that everything else here stands on."""

from __future__ import annotations

import pytest

from edgeagent.proto.endpoint import Endpoint, Transmit
from tests.sim.broker import Broker, Connection, Login, Role, may_publish, may_subscribe
from tests.sim.net import Batch, Conditions, Host, Net
from tests.sim.world import SimFailure, World

NETWORK = "aaaaaaaaaaaaaaaa"
DEVICE, OTHER, CLAIM = "b" * 24, "c" * 24, "c-" + "d" * 16


class Listener:
    """Counts what comes in at a port."""

    def __init__(self, host: Host, port: int = 9) -> None:
        self.got: Batch = []
        host.bind(port, self.got.extend)


class Client:
    """One MQTT client, and what it heard."""

    def __init__(self, broker: Broker, host: Host, name: str, *, clean: bool = False, will: bytes = b"") -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.present: list[bool] = []
        self.acked: list[int] = []
        self.closed: list[bool] = []
        self._broker, self._host = broker, host
        self._login = Login(
            name, name, f"secret of {name}", clean=clean, will=(f"em1/{NETWORK}/{name}/u/state", will) if will else None
        )
        broker.admit(name, f"secret of {name}", Role.DEVICE)
        self.connection = self.connect()

    def connect(self) -> Connection:
        self.connection = Connection(
            self._broker,
            self._host,
            self._login,
            on_connected=self.present.append,
            on_closed=self.closed.append,
            on_message=lambda topic, payload, _mid: self.heard.append((topic, payload)),
            on_acked=self.acked.append,
        )
        return self.connection


def internet(world: World, conditions: Conditions | None = None) -> tuple[Net, Host, Host]:
    net = Net(world)
    segment = net.segment("internet", "0.0.0.0/0", "::/0", conditions=conditions)
    a, b = net.host("a"), net.host("b")
    a.attach(segment, "192.0.2.1", "2001:db8::1")
    b.attach(segment, "192.0.2.2", "2001:db8::2")
    return net, a, b


def mqtt(world: World) -> tuple[Net, Broker, Host, Host]:
    net, a, b = internet(world)
    server = net.host("broker")
    server.attach(net.segments["internet"], "192.0.2.9")
    return net, Broker(world, net, server, NETWORK), a, b


def send(host: Host, to: str, count: int = 1, *, port: int = 9) -> list[Endpoint]:
    endpoint = Endpoint((to, port, 0, 0) if ":" in to else (to, port))
    return host.transmit(7, [Transmit(endpoint, [bytes([number % 256]) for number in range(count)])])


def test_datagrams_arrive_late_and_in_order() -> None:
    world = World(1)
    _, a, b = internet(world, Conditions(delay_s=0.1, jitter_s=0.05))
    listener = Listener(b)
    send(a, "192.0.2.2", 100)
    world.run_for(0.09)
    assert listener.got == []
    world.run_for(1.0)
    assert [datagram[0] for datagram, _, _ in listener.got] == list(range(100))
    source = listener.got[0][1]
    assert source.addr == ("192.0.2.1", 7) and source.local == (bytes((192, 0, 2, 2)), 1)


def test_conditions_do_what_they_say() -> None:
    world = World(1)
    _, a, b = internet(world, Conditions(loss=0.25, duplicate=0.5, reorder=0.1))
    listener = Listener(b)
    send(a, "2001:db8::2", 4_000)
    world.run_for(5.0)
    assert 4_000 * (0.75 + 0.5) * 0.95 < len(listener.got) < 4_000 * (0.75 + 0.5) * 1.05
    order = [datagram[0] for datagram, _, _ in listener.got]
    assert order != sorted(order)


def test_a_cut_is_in_both_directions_and_ends() -> None:
    world = World(1)
    net, a, b = internet(world)
    listeners = Listener(a), Listener(b)
    net.cut(a, b)
    send(a, "192.0.2.2")
    send(b, "192.0.2.1")
    world.run_for(1.0)
    net.heal()
    world.run_for(1.0)
    assert [len(listener.got) for listener in listeners] == [0, 0]
    send(a, "192.0.2.2")
    world.run_for(1.0)
    assert [len(listener.got) for listener in listeners] == [0, 1]


def test_routers_forward_by_the_longest_prefix() -> None:
    world = World(1)
    net, a, b = internet(world)
    lan = net.segment("lan", "10.0.0.0/24")
    router, inside = net.router("router"), net.host("inside")
    outer = router.attach(net.segments["internet"], "192.0.2.254")
    router.attach(lan, "10.0.0.1")
    inside.attach(lan, "10.0.0.2", gateway="10.0.0.1")
    a.add_route(lan.prefixes[0], "192.0.2.254", a.interfaces[0])
    out, back = Listener(inside), Listener(a)
    send(a, "10.0.0.2")
    send(inside, "192.0.2.1")
    send(b, "10.0.0.2")  # b has no route to the LAN but its own subnet, where nobody has that address
    world.run_for(1.0)
    assert len(out.got) == len(back.got) == 1
    assert net.way(inside, "192.0.2.1") is not None and outer.address == "192.0.2.254"


def test_a_pinned_source_that_is_gone_is_reported_and_let_go() -> None:
    world = World(1)
    _, a, b = internet(world)
    listener = Listener(b)
    pinned = Endpoint(("192.0.2.2", 9), (bytes((192, 0, 2, 77)), 1))
    assert a.transmit(7, [Transmit(pinned, [b"x"])]) == [pinned]
    world.run_for(1.0)
    assert len(listener.got) == 1


def test_a_session_keeps_what_it_misses_and_repeats_what_was_not_acknowledged() -> None:
    world = World(1)
    _, broker, a, b = mqtt(world)
    reader, writer = Client(broker, a, DEVICE), Client(broker, b, OTHER)
    world.run_for(1.0)
    topic = f"em1/{NETWORK}/{DEVICE}/s/aaaa"
    reader.connection.subscribe(topic)
    world.run_for(1.0)
    writer.connection.publish(topic, b"1", qos=1, retain=False)
    world.run_for(0.041)  # it has come, and the acknowledgement is on its way …
    reader.connection.die()  # … but is lost with the power
    world.run_for(200.0)
    writer.connection.publish(topic, b"2", qos=1, retain=False)
    writer.connection.publish(topic, b"0", qos=0, retain=False)
    world.run_for(1.0)
    reader.connect()
    world.run_for(1.0)
    assert reader.present == [False, True]
    assert [payload for _, payload in reader.heard] == [b"1", b"1", b"2"]
    assert len(writer.acked) == 2


def test_retained_messages_wills_and_takeovers() -> None:
    world = World(1)
    _, broker, a, b = mqtt(world)
    first = Client(broker, a, DEVICE, will=b"gone")
    world.run_for(1.0)
    topic = f"em1/{NETWORK}/{DEVICE}/u/state"
    first.connection.publish(topic, b"here", qos=1, retain=True)
    world.run_for(1.0)
    assert broker.retained == {topic: b"here"}
    second = Client(broker, b, DEVICE, will=b"gone")
    world.run_for(1.0)
    assert broker.retained == {topic: b"gone"} and first.closed == [False]
    second.connection.publish(topic, b"", qos=1, retain=True)
    second.connection.close(politely=True)
    world.run_for(1.0)
    assert broker.retained == {}


def test_a_revoked_user_is_out_and_cannot_come_back() -> None:
    world = World(1)
    _, broker, a, _ = mqtt(world)
    client = Client(broker, a, DEVICE)
    world.run_for(1.0)
    broker.revoke(DEVICE)
    world.run_for(1.0)
    assert client.closed == [False] and broker.sessions == {}
    client.connect()
    world.run_for(1.0)
    assert client.closed == [False, True]


def test_a_dead_connection_is_noticed_by_its_keepalive() -> None:
    world = World(1)
    net, broker, a, _ = mqtt(world)
    client = Client(broker, a, DEVICE, will=b"gone")
    world.run_for(1.0)
    net.isolate(a)
    world.run_for(60.0)
    net.restore(a)  # TCP outlives it
    world.run_for(60.0)
    assert client.closed == [] and broker.retained == {}
    net.isolate(a)
    world.run_for(91.0)
    assert client.closed == [False] and len(broker.retained) == 1


@pytest.mark.parametrize(("state", "present", "kept"), [("kept", True, 1), ("saved", False, 0), ("lost", False, 0)])
def test_a_broker_that_restarts(state: str, present: bool, kept: int) -> None:
    world = World(1)
    _, broker, a, _ = mqtt(world)
    broker.save()
    client = Client(broker, a, DEVICE)
    world.run_for(1.0)
    client.connection.publish(f"em1/{NETWORK}/{DEVICE}/p", b"feed", qos=1, retain=True)
    world.run_for(1.0)
    broker.restart(down_s=5.0, state=state)
    world.run_for(1.0)
    assert client.closed == [False]
    client.connect()
    world.run_for(1.0)
    assert client.closed == [False, False]
    world.run_for(5.0)
    client.connect()
    world.run_for(1.0)
    assert client.present == [False, present] and len(broker.retained) == kept


def test_the_brokers_rules_are_those_of_the_protocol() -> None:
    device, claim = Login(DEVICE, DEVICE, "", clean=False), Login(DEVICE, CLAIM, "", clean=True)
    net = f"em1/{NETWORK}"
    publish = {
        f"{net}/{DEVICE}/u/birth": (True, False),
        f"{net}/{DEVICE}/p": (True, False),
        f"{net}/{OTHER}/s/abc": (True, False),
        f"{net}/{CLAIM}/u/join": (False, True),
        f"{net}/{OTHER}/u/birth": (False, False),
        f"{net}/{OTHER}/p": (False, False),
        f"{net}/{DEVICE}/d/map": (False, False),
        f"{net}/hub/state": (False, False),
    }
    for topic, (by_device, by_claim) in publish.items():
        assert may_publish(NETWORK, Role.DEVICE, device, topic) is by_device, topic
        assert may_publish(NETWORK, Role.CLAIM, claim, topic) is by_claim, topic
        assert may_publish(NETWORK, Role.HUB, device, topic)
    subscribe = {
        f"{net}/{DEVICE}/d/#": (True, False),
        f"{net}/{OTHER}/p": (True, False),
        f"{net}/+/p": (False, False),
        f"{net}/hub/state": (True, False),
        f"{net}/{CLAIM}/d/{DEVICE}": (False, True),
        f"{net}/{CLAIM}/d/{OTHER}": (False, False),
        f"{net}/{OTHER}/d/#": (False, False),
        f"{net}/+/u/+": (False, False),
        "#": (False, False),
    }
    for topic, (by_device, by_claim) in subscribe.items():
        assert may_subscribe(NETWORK, Role.DEVICE, device, topic) is by_device, topic
        assert may_subscribe(NETWORK, Role.CLAIM, claim, topic) is by_claim, topic


def test_a_failure_names_its_seed() -> None:
    world = World(4711)
    world.note("something happened")
    with pytest.raises(SimFailure, match=r"(?s)seed 4711.*something happened.*seed 4711: the end of the world"):
        world.fail("the end of the world")
