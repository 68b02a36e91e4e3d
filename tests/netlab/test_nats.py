"""Everybody's real processes with NATS servers as brokers: hub, relay, agents; and what comes of a server that dies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import pytest

from tests.netlab import Host, Lab, rights, until
from tests.netlab.homes import Homes, Member, way
from tests.netlab.nat import Kind
from tests.netlab.natsmesh import PROGRAM, Cluster, NatsMesh, Node

pytestmark = (
    pytest.mark.slow
)  # nats-server takes its time to keep sessions on its disk, and three of them for elections

BACK_TIMEOUT_S = 90.0  # connections to a server that is not there are tried at growing intervals


@pytest.fixture(params=[NatsMesh, Cluster])
def homes(request: pytest.FixtureRequest) -> Iterator[Homes]:
    if why := rights.missing() or ("" if PROGRAM else "no nats-server"):
        pytest.skip(why)
    with Lab() as lab:
        made = Homes(lab, mesh=request.param)
        made.start("fra-1")
        yield made


def test_all_come_back_after_a_server_died(homes: Homes) -> None:
    mesh, [relay] = homes.mesh, homes.relays
    assert isinstance(mesh, NatsMesh) and relay.process is not None
    deaf = homes.join("deaf", homes.home(Kind.UDP_BLOCKED))
    other = homes.join("other", homes.home(Kind.PORT))
    homes.first_answer_s(deaf, other)
    for here, there in ((deaf, other), (other, deaf)):
        until(partial(is_by_relay, here, there), BACK_TIMEOUT_S, f"{here.name} reaches {there.name} by the relay")
    relay.process.expect("connected to")

    lost = until(partial(mesh.node_of, deaf.host), BACK_TIMEOUT_S, "a server of deaf")
    assert lost is not None
    lost.kill()
    began = time.monotonic()
    homes.first_answer_s(deaf, other)  # what runs needs no broker
    if mesh.size == 1:
        until(lambda: not connected(deaf) and not connected(other), BACK_TIMEOUT_S, "the end of their connections")
        assert not mesh.status()["process"]["connected"]
        lost.start()
        relay.process.expect("connected to", BACK_TIMEOUT_S)
    for host in (mesh.hub, relay.host, deaf.host, other.host):
        until(partial(is_at_another, mesh, host, lost), BACK_TIMEOUT_S, host.name)
    until(lambda: connected(deaf) and connected(other), BACK_TIMEOUT_S, "the devices")
    until(lambda: mesh.status()["process"].get("connected"), BACK_TIMEOUT_S, "the hub")
    print(f"{mesh.size} node(s): all connected {time.monotonic() - began:.1f} s after a kill")

    late = homes.join("late", homes.home(Kind.PORT))
    for member in (deaf, other):
        until(partial(late.host.ping, member.address), BACK_TIMEOUT_S, f"{member.name} by late")
    until(partial(is_by_relay, late, deaf), BACK_TIMEOUT_S, "late reaches deaf by the relay")
    homes.until_online(relay)
    mesh.hub.run("edgehub", "devices", "remove", "other", "--yes")
    for member in (deaf, late):
        until(partial(has_dropped, member, "other"), BACK_TIMEOUT_S, f"{member.name} drops it")
    assert deaf.host.ping(other.address) is None
    until(partial(late.host.ping, deaf.address), BACK_TIMEOUT_S, "deaf by late")


def connected(member: Member) -> bool:
    return bool(member.request("status")["hub"]["connected"])


def is_by_relay(here: Member, there: Member) -> bool:
    return str(way(here, there)) == "relay fra-1"


def is_at_another(mesh: NatsMesh, host: Host, lost: Node) -> bool:
    """Connected, and where there are more than one, to one that runs."""
    node = mesh.node_of(host)
    return node is not None and (node is not lost or mesh.size == 1)


def has_dropped(member: Member, name: str) -> bool:
    return name not in member.ways()
