"""Real processes under the network lock: a running network is locked, and goes on; who is not signed stays outside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.netlab import Lab, rights, until
from tests.netlab.mesh import Device, Mesh


class Locked:
    """A hub, and a key that is nowhere but in a file of the lab."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.net = lab.net("198.51.100.0/24", "2001:db8::/64")
        self.mesh = Mesh(lab, self.net)
        self.mesh.start_hub()
        self.key = str(self.mesh.hub.directory / "lock.key")

    def lock(self, *words: str, check: bool = True) -> str:
        result = self.mesh.hub.run("edgehub", "lock", *words, check=check)
        return result.stdout + result.stderr

    def pending(self) -> dict[str, list[str]]:
        return {
            row["name"]: row["lacks"]
            for row in json.loads(self.mesh.hub.run("edgehub", "lock", "pending", "--json").stdout)
        }

    def join(self, name: str, token: str) -> Device:
        device = self.mesh.device(name, self.net)
        device.up(token)
        return device


@pytest.fixture
def locked() -> Iterator[Locked]:
    if why := rights.missing():
        pytest.skip(why)
    with Lab() as lab:
        yield Locked(lab)


def lock_of(device: Device) -> dict[str, Any]:
    return device.ask("status")["lock"] or {}


def reach(a: Device, b: Device, within_s: float = 20.0) -> None:
    until(lambda: a.host.ping(b.address), within_s, f"{b.name} answers {a.name}")


def test_a_running_network_is_locked_and_one_is_left_outside_until_it_is_signed(locked: Locked) -> None:
    token = locked.mesh.token("--uses", "0")
    a, b, c = (locked.join(name, token) for name in ("a", "b", "c"))
    for one, other in ((a, b), (a, c), (b, c)):
        reach(one, other)

    locked.lock("init", "--key-file", locked.key)
    until(lambda: all(lock_of(each) for each in (a, b, c)), 10, "all hold the lock's key")
    until(lambda: locked.pending() == {name: ["signature"] for name in "abc"}, 20, "all have signed their node keys")
    assert "3 of 3 devices would be in nobody's reach" in locked.lock("on", "--key-file", locked.key, check=False)
    locked.lock("sign", "a", "b", "--key-file", locked.key)
    assert locked.pending() == {"c": ["signature"]}
    assert a.host.ping(c.address)  # not on yet

    locked.lock("on", "--force", "--key-file", locked.key)
    until(lambda: all(lock_of(each).get("on") for each in (a, b, c)), 10, "all insist on it")
    for one in (a, b):
        assert one.host.ping(c.address) is None
        assert c.host.ping(one.address) is None
        assert {row["name"]: row["refused"] for row in one.ask("peers")}["c"] == "lock-unsigned"
        assert "refused  lock-unsigned" in one.host.run("edgeagent", "peers").stdout
        assert one.ask("status")["drops"]["lock-unsigned"] > 0
    reach(a, b)
    assert "NOT signed" in c.host.run("edgeagent", "status").stdout
    assert "UNSIGNED" in locked.mesh.hub.run("edgehub", "devices", "list").stdout

    locked.lock("sign", "c", "--key-file", locked.key)
    for one, other in ((a, c), (c, b), (a, b)):
        reach(one, other, 70)  # a refusal is remembered for a minute by the side that was refused
    assert lock_of(c)["signed"]
    assert all(row["refused"] is None for row in a.ask("peers"))

    # The lock outlives the agent, and the hub's word that there is none
    a.host.run("edgeagent", "down")
    a.up()
    assert lock_of(a)["on"]
    reach(a, c)

    # Who comes later is signed by a machine that is not the hub, or stays outside
    late = locked.join("late", locked.mesh.token())
    assert lock_of(late)["on"]
    assert a.host.ping(late.address) is None
    requests, signed = str(late.host.directory / "requests"), str(late.host.directory / "signed")
    until(lambda: locked.pending() == {"late": ["signature"]}, 20, "it has signed its node key")
    locked.lock("export-requests", requests)
    late.host.run("edgehub", "lock", "sign-requests", requests, "--key-file", locked.key, "--out", signed)
    locked.lock("import-signatures", signed)
    reach(late, a, 70)
    reach(b, late, 70)


def test_a_token_that_names_the_key_trusts_no_other(locked: Locked) -> None:
    locked.lock("init", "--key-file", locked.key)
    a, b = (locked.join(name, locked.mesh.token()) for name in ("a", "b"))
    until(lambda: set(locked.pending()) == {"a", "b"}, 10, "both are known")
    locked.lock("sign", "--all", "--key-file", locked.key)
    until(lambda: not locked.pending(), 20, "both have signed their node keys")
    locked.lock("on", "--key-file", locked.key)
    until(lambda: all(lock_of(each).get("on") for each in (a, b)), 10, "both insist on it")
    reach(a, b)
    held = lock_of(a)["statement"]
    # A hub that was broken into begins a lock of its own: it can, and no device follows
    locked.lock("init", "--replace", "--key-file", str(locked.mesh.hub.directory / "evil.key"))
    until(lambda: all(lock_of(each)["withheld"] for each in (a, b)), 10, "both have refused it")
    for each in (a, b):
        assert each.ask("status")["drops"]["lock-statement"] > 0
        assert lock_of(each)["statement"] == held
    reach(a, b)
    # The owner takes it over, by hand, on each device
    keys = json.loads(locked.lock("status", "--json"))["keys"]
    a.host.run("edgeagent", "down")
    a.options = ["--lock", keys[0]]
    a.up()
    until(lambda: lock_of(a)["statement"] == held + 1, 10, "it follows the key that it was given")
    assert not lock_of(a)["withheld"]


# The hub of the product with node keys that live a minute: a device renews one after 40 s.
HASTY = """
import sys
from hub.core import model
model.NODE_KEY_LIFE_S, model.NODE_KEY_GRACE_S = 60, 2
from hub.cli import main
sys.argv = ["edgehub", "serve"]
main()
"""


def test_node_keys_are_renewed_under_the_lock_while_its_key_is_away(locked: Locked) -> None:
    mesh = locked.mesh
    assert mesh.server is not None
    mesh.server.kill()
    mesh.server = mesh.hub.start("python", "-c", HASTY, name="hasty")
    until(lambda: bool(mesh.status()["process"].get("connected")), 30, "a hub in haste")
    locked.lock("init", "--key-file", locked.key)
    a, b = (locked.join(name, mesh.token()) for name in ("a", "b"))
    until(lambda: set(locked.pending()) == {"a", "b"}, 10, "both are known")
    locked.lock("sign", "--all", "--key-file", locked.key)
    until(lambda: not locked.pending(), 20, "both have signed their node keys")
    locked.lock("on", "--key-file", locked.key)
    mesh.hub.run("rm", locked.key)

    def keys(name: str) -> set[str]:
        shown = json.loads(mesh.hub.run("edgehub", "devices", "show", name, "--json").stdout)
        return {row["key"] for row in shown["node_keys"]}

    first = {name: keys(name) for name in "ab"}
    reach(a, b)
    until(lambda: all(not keys(name) & first[name] for name in "ab"), 90, "both have other node keys")
    assert not locked.pending()
    for one, other in ((a, b), (b, a)):
        reach(one, other)
        assert lock_of(one)["on"]
    a.host.run("edgeagent", "down")  # no session from before is left
    a.up()
    reach(a, b)
    reach(b, a)
