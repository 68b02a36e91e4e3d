"""The relay at real hubs: it joins, is in the maps, admits by their passes, obeys, and serves on with the hub dead."""

from __future__ import annotations

import hashlib
import os
import re
import ssl
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from edgeagent.proto import topics
from edgeagent.proto.relay_events import Carrier, PassRefused, RelayDown
from edgeagent.proto.relay_frames import Refusal
from relay.status import show
from tests.hub.rig import Rig, wait_until
from tests.relay.driver import driving, pump
from tests.relay.hub_kit import device, enlisted

pytestmark = pytest.mark.long

UDP, TLS = Carrier.DATAGRAM, Carrier.STREAM


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "hub")
    try:
        made.start()
        yield made
    finally:
        made.end()


def invite(rig: Rig, *options: str, region: str = "fra") -> str:
    token = rig.run("relays", "invite", "--region", region, *options).strip()
    rig.wait_settled()
    return token


def test_from_an_invitation_to_packets_between_devices(rig: Rig, tmp_path: Path) -> None:
    with (
        enlisted(tmp_path / "relay", invite(rig)) as relay,
        device(rig, 1, "a") as a,
        device(rig, 2, "b") as b,
    ):
        assert a.map.relays == [] and a.map.passes == []
        relay.start()
        hub = relay.wait_state(rig.network.id, "registered")
        assert hub == {"relay": "fra-1", "region": "fra", "state": "registered"}
        assert re.search(rf"^hub +{rig.network.id} registered as fra-1 in fra$", show(relay.status()), re.MULTILINE)
        [info] = a.wait_relays("fra-1")
        b.wait_relays("fra-1")
        assert info.udp_port == relay.ports["udp"] and info.hosts == [f"127.0.0.1:{relay.ports['tls']}"]
        served = ssl.get_server_certificate(("127.0.0.1", relay.ports["tls"]), timeout=20)
        assert hashlib.sha256(ssl.PEM_cert_to_DER_cert(served)).digest() == info.certificate_sha256
        with driving(a.driver(info, UDP), b.driver(info, TLS)) as (one, two):
            one.send(two.key, b"there")
            two.send(one.key, b"and back")
            pump([one, two], lambda: bool(one.packets and two.packets))
            assert one.packets == [(two.key, b"and back")] and two.packets == [(one.key, b"there")]
        [listed] = rig.json("relays", "list")
        assert (listed["id"], listed["state"], listed["addresses"]) == ("fra-1", "online", info.hosts)
        for name in ("relay.key", "tls.key", f"{rig.network.id}/identity", f"{rig.network.id}/admission"):
            assert (relay.folder / "state" / name).stat().st_mode & 0o077 == 0
        assert relay.stop() == 0
        wait_until(lambda: rig.json("relays", "list")[0]["state"] == "offline", "the relay's good-bye")


def test_a_relay_serves_with_hub_and_broker_dead_after_its_own_restart_too(rig: Rig, tmp_path: Path) -> None:
    with enlisted(tmp_path / "relay", invite(rig)) as relay, device(rig) as a:
        relay.start()
        a.wait_relays("fra-1")
        rig.end()
        relay.files[0].unlink()
        relay.files.clear()
        for end in (relay.stop, relay.kill):
            end()
            relay.start()
            assert relay.status()["hubs"][rig.network.id]["relay"] == "fra-1"
            [info] = a.map.relays
            info.udp_port, info.hosts = relay.ports["udp"], [f"127.0.0.1:{relay.ports['tls']}"]
            with driving(a.driver(info, UDP)) as (member,):
                assert member.client.alive


def test_a_removed_device_is_put_out_and_stays_out(rig: Rig, tmp_path: Path) -> None:
    with (
        enlisted(tmp_path / "relay", invite(rig)) as relay,
        device(rig, 1, "a") as a,
        device(rig, 2, "b") as b,
    ):
        relay.start()
        [info] = a.wait_relays("fra-1")
        b.wait_relays("fra-1")
        with driving(a.driver(info, UDP), b.driver(info, UDP)) as (one, two):
            rig.run("devices", "remove", "a")
            pump([one, two], lambda: any(isinstance(event, RelayDown) for event in one.events))
            assert two.client.alive
            with closing(a.driver(info, TLS)) as again:
                again.start()
                pump([again, two], lambda: any(isinstance(event, PassRefused) for event in again.events))
                [refused] = [event for event in again.events if isinstance(event, PassRefused)]
                assert refused.refusal is Refusal.REVOKED
        # It is known after a restart without the hub, because it was kept …
        cache = relay.folder / "state" / rig.network.id / "cache"
        wait_until(lambda: cache.stat().st_size > 150, "a removal on disk")
        relay.kill()
        rig.kill()
        relay.start()
        info.udp_port = relay.ports["udp"]
        with closing(a.driver(info, UDP)) as again:
            again.start()
            pump([again], lambda: any(isinstance(event, PassRefused) for event in again.events))
        # … and when that is lost the hub says it again
        relay.kill()
        cache.unlink()
        relay.start()
        rig.start()
        relay.wait_state(rig.network.id, "registered")
        info.udp_port = relay.ports["udp"]

        def refused_again() -> bool:
            with closing(a.driver(info, UDP)) as member:
                member.start()
                pump([member], lambda: member.client.alive or any(isinstance(e, PassRefused) for e in member.events))
                return Refusal.REVOKED in [e.refusal for e in member.events if isinstance(e, PassRefused)]

        wait_until(refused_again, "the removal, said again")
        # It comes back with the same keys: what it had before stays void at a relay that has forgotten all of it
        with device(rig, 1, "a") as back:
            assert back.identity.node_key == a.identity.node_key and back.identity.device_id == a.identity.device_id
            back.wait_relays("fra-1")
            relay.kill()
            cache.unlink()
            relay.start()
            relay.wait_state(rig.network.id, "registered")
            info.udp_port = relay.ports["udp"]
            wait_until(refused_again, "the removal of a device that is back")
            with driving(back.driver(info, UDP)) as (member,):
                assert member.client.alive


def test_a_removed_relay_lets_its_members_go_and_comes_back_with_a_new_token(rig: Rig, tmp_path: Path) -> None:
    with enlisted(tmp_path / "relay", invite(rig)) as relay, device(rig) as a:
        relay.start()
        [info] = a.wait_relays("fra-1")
        with driving(a.driver(info, UDP)) as (member,):
            rig.run("relays", "remove", "fra-1")
            pump([member], lambda: any(isinstance(event, RelayDown) for event in member.events))
        relay.wait_state(rig.network.id, "removed")
        a.wait_relays()
        assert relay.stop() == 0
        relay.start()  # with the old token
        relay.wait_state(rig.network.id, "refused: used-up")
        relay.stop()
        relay.files[0].write_text(invite(rig))
        relay.start()
        relay.wait_state(rig.network.id, "registered")
        a.wait_relays("fra-1")


@pytest.mark.slow
def test_an_account_that_is_gone_comes_back_with_a_new_token(rig: Rig, tmp_path: Path) -> None:
    """As after a restore of a backup from before it joined, or a removal that it did not hear of."""
    with enlisted(tmp_path / "relay", invite(rig)) as relay, device(rig) as a:
        relay.start()
        [info] = a.wait_relays("fra-1")
        relay.stop()
        rig.run("relays", "remove", "fra-1")
        rig.wait_settled()
        pass_object = a.pass_of()
        a.wait_relays()
        relay.files[0].unlink()
        relay.start()
        relay.wait_state(rig.network.id, "refused by the broker")  # nobody signed that: it serves
        a.pass_of = lambda: pass_object  # type: ignore[method-assign]
        info.udp_port = relay.ports["udp"]
        with driving(a.driver(info, UDP)) as (member,):
            assert member.client.alive
        relay.stop()
        relay.files[0].write_text(invite(rig))
        relay.start()
        relay.wait_state(rig.network.id, "registered")
        a.wait_relays("fra-1")


def test_a_broker_that_talks_nonsense_is_counted(rig: Rig, tmp_path: Path) -> None:
    site = rig.site
    with enlisted(tmp_path / "relay", invite(rig)) as relay, device(rig) as a:
        relay.start()
        a.wait_relays("fra-1")
        [listed] = rig.json("relays", "list")
        topic = topics.down(rig.network.id, listed["device_id"], "rec")
        with rig.client(site.user, site.password, "somebody-in-the-broker") as client:
            for _ in range(50):
                client.publish(topic, os.urandom(300))

        def counted() -> bool:
            return bool(relay.status()["hubs"][rig.network.id].get("drops") == {"bad-box": 50})

        relay.wait(counted, "drops")
        assert "dropped bad-box 50" in show(relay.status())
        with driving(a.driver(a.map.relays[0], UDP)) as (member,):
            assert member.client.alive


def test_a_token_for_devices_is_no_invitation(rig: Rig, tmp_path: Path) -> None:
    token = rig.run("token", "create").strip()
    rig.wait_settled()
    with enlisted(tmp_path / "relay", token) as relay:
        relay.start()
        relay.wait_state(rig.network.id, "refused: bad-request")
        assert "edgehub relays invite" in relay.log.read_text()
        assert rig.json("devices", "list") == [] and rig.json("relays", "list") == []


def test_relays_of_a_region_find_each_other_by_their_maps(rig: Rig, tmp_path: Path) -> None:
    with (
        enlisted(tmp_path / "1", invite(rig), name="fra-1") as first,
        enlisted(tmp_path / "2", invite(rig), name="fra-2") as second,
        enlisted(tmp_path / "3", invite(rig, region="ams"), name="ams-1") as third,
        device(rig, 1, "a") as a,
        device(rig, 2, "b") as b,
    ):
        for relay in (first, second, third):
            relay.start()
        infos = {info.id: info for info in a.wait_relays("ams-1", "fra-1", "fra-2")}
        b.wait_relays("ams-1", "fra-1", "fra-2")
        first.wait(lambda: first.status()["siblings"] == second.status()["siblings"] == 1, "a link")
        with driving(a.driver(infos["fra-1"], UDP), b.driver(infos["fra-2"], TLS)) as (one, two):
            first.wait(lambda: first.status()["sibling_members"] == second.status()["sibling_members"] == 1, "members")
            one.send(two.key, b"over there")
            pump([one, two], lambda: two.packets == [(one.key, b"over there")])
        assert third.status()["siblings"] == 0
        rig.run("relays", "remove", "fra-2")
        first.wait(lambda: first.status()["siblings"] == 0, "no link to a relay that was removed")


@pytest.mark.slow
def test_one_relay_for_two_networks(rig: Rig, tmp_path: Path) -> None:
    other = Rig(tmp_path / "other")
    try:
        other.start()
        with (
            enlisted(tmp_path / "relay", invite(rig), invite(other, region="eu")) as relay,
            device(rig, 1, "fra-1") as a,  # it has taken the name in one of them
            device(other, 2, "b") as b,
        ):
            relay.start()
            assert relay.wait_state(rig.network.id, "registered")["relay"] == "fra-1-1"
            assert relay.wait_state(other.network.id, "registered")["region"] == "eu"
            [here], [there] = a.wait_relays("fra-1-1"), b.wait_relays("fra-1")
            with driving(a.driver(here, UDP), b.driver(there, TLS)) as (one, two):
                one.send(two.key, b"to a stranger")
                pump([one, two], lambda: relay.status()["drops"].get("other-tenant") == 1)
                other.run("relays", "remove", "fra-1")
                pump([one, two], lambda: any(isinstance(event, RelayDown) for event in two.events))
                assert one.client.alive
    finally:
        other.end()
