"""Settings of names at the hub: what is kept, what is refused and how that is said, and that all devices hear of it."""

from __future__ import annotations

from typing import Any

import pytest

from edgeagent.proto.control import MAP_BYTES_MAX, check_body
from edgeagent.proto.devicemap import DeviceMap
from edgeagent.proto.dnssettings import NAMES_BYTES_MAX, RECORDS_MAX, SPLIT_MAX
from hub.core import actions, naming
from hub.core.model import HubError
from hub.core.naming import NameRecord
from tests.hub.kit import Dev, Hub, admitted, relays_of


def change(hub: Hub, function: Any, *arguments: Any) -> Any:
    with hub.store.write() as tx:
        return function(tx, *arguments)


def refuse(hub: Hub, why: str, function: Any, *arguments: Any) -> None:
    with hub.store.read() as tx:
        before = tx.names(), tx.job_count()
    with pytest.raises(HubError, match=why):
        change(hub, function, *arguments)
    with hub.store.read() as tx:
        assert (tx.names(), tx.job_count()) == before


def shown(hub: Hub) -> dict[str, Any]:
    with hub.store.read() as tx:
        return naming.as_json(tx)


def joined(hub: Hub, *names: str) -> list[Dev]:
    devices = [Dev(hub, 100 + number, hub.token(), name=name) for number, name in enumerate(names)]
    hub.hear(*(device.join() for device in devices))
    rows = hub.sent()
    for device in devices:
        device.read(rows)
    return devices


def names_of(device: Dev) -> dict[str, Any]:
    assert device.map is not None
    check_body("map", device.map.body)
    return DeviceMap(device.map).names


def test_every_device_hears_of_a_change_and_of_no_change_none(hub: Hub) -> None:
    devices = admitted(hub, 3)
    assert [names_of(device) for device in devices] == [{}] * 3
    change(hub, naming.add_record, "db", "A", "192.0.2.7")
    change(hub, naming.set_split, "corp.example", ["10.20.0.53", "[fd00::53]:5353"])
    change(hub, naming.set_search, ["corp.example", "mesh.internal"])
    change(hub, naming.set_resolvers, ["9.9.9.9"])
    expected = {
        "sd": ["corp.example", "mesh.internal"],
        "sp": [["corp.example", [[b"\x0a\x14\0\x35", 53], [b"\xfd" + bytes(13) + b"\0\x53", 5353]]]],
        "gl": [[b"\x09\x09\x09\x09", 53]],
        "rr": [["db", "A", "192.0.2.7"]],
    }
    rows = hub.sent()
    for device in devices:
        assert "map" in [kind for kind, _ in device.read(rows)]
        assert names_of(device) == expected
    [late] = joined(hub, "late")
    assert names_of(late) == expected
    change(hub, naming.set_resolvers, ["9.9.9.9"])
    with hub.store.read() as tx:
        assert tx.job_count() == 0


def test_what_was_set_is_shown_and_taken_back(hub: Hub) -> None:
    assert shown(hub) == {
        "domain": "mesh.internal",
        "search": ["mesh.internal"],
        "split": {},
        "resolvers": [],
        "records": [],
    }
    change(hub, naming.add_record, "db", "cname", "DB-2.mesh.internal")
    change(hub, naming.add_record, "@", "TXT", 'a "b"')
    change(hub, naming.add_record, "v6.site-1.mesh.internal.", "A", "1.2.3.4")
    change(hub, naming.add_record, "_sip._tcp", "AAAA", "2001:DB8:0::7")
    change(hub, naming.set_split, "Corp.Example.", ["10.20.0.53"])
    change(hub, naming.set_search, [])
    assert shown(hub) == {
        "domain": "mesh.internal",
        "search": [],
        "split": {"corp.example": ["10.20.0.53"]},
        "resolvers": [],
        "records": [
            {"name": "mesh.internal", "type": "TXT", "value": 'a "b"'},
            {"name": "_sip._tcp.mesh.internal", "type": "AAAA", "value": "2001:db8::7"},
            {"name": "db.mesh.internal", "type": "CNAME", "value": "db-2.mesh.internal"},
            {"name": "v6.site-1.mesh.internal", "type": "A", "value": "1.2.3.4"},
        ],
    }
    assert change(hub, naming.remove_record, "DB") == [NameRecord("db", "CNAME", "db-2")]
    refuse(hub, "no such record", naming.remove_record, "@", "A")
    refuse(hub, "no such record", naming.remove_record, "@", "TXT", "another")
    change(hub, naming.remove_record, "@", "txt", 'a "b"')
    for name in ("_sip._tcp", "v6.site-1"):
        change(hub, naming.remove_record, name)
    change(hub, naming.unset_split, "corp.example")
    refuse(hub, "nothing is set for it", naming.unset_split, "corp.example")
    change(hub, naming.set_search, None)
    with hub.store.read() as tx:
        assert tx.names() == b""


BAD = ['a"b', "a'b", "a\nb", "a..b", ".a", "ä", "a" * 64, "a b", "-a", "a-", "*", "a\0", "_", "a/b", "", " a", "a.-b"]


@pytest.mark.parametrize("name", BAD)
def test_names_that_are_none_are_refused(hub: Hub, name: str) -> None:
    refuse(hub, "^name ", naming.add_record, name, "A", "192.0.2.1")
    refuse(hub, "^name ", naming.add_record, "good", "CNAME", name)
    refuse(hub, "^domain ", naming.set_split, name, ["192.0.2.1"])
    refuse(hub, "^domain ", naming.set_search, [name])
    [device] = admitted(hub, 1)
    with hub.store.write() as tx:
        found = tx.device(device.id)
        assert found is not None
        with pytest.raises(HubError, match=r"^name "):
            actions.rename_device(hub.scribe, tx, found, name)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("A", "2001:db8::1"), ("A", "192.0.2.256"), ("A", ""), ("AAAA", "192.0.2.1"), ("AAAA", "fe80::1%eth0"),
        ("TXT", ""), ("TXT", "ä"), ("TXT", "a\nb"), ("TXT", "x" * 256), ("CNAME", "@"), ("CNAME", "www.example."),
        ("MX", "10 mail"), ("", "x"),
    ],
)  # fmt: skip
def test_values_that_are_none_are_refused(hub: Hub, kind: str, value: str) -> None:
    refuse(hub, "^(value|type|name) ", naming.add_record, "x", kind, value)


@pytest.mark.parametrize(
    "text",
    ["", "host.example", "192.0.2.1:0", "192.0.2.1:65536", "192.0.2.1:", "192.0.2.1:+5", "192.0.2.1: 5", "[2001:db8::1",
     "[2001:db8::1]5", "[192.0.2.1]x", "0.0.0.0", "127.0.0.1", "224.0.0.1", "ff02::1", "fe80::1", "::",
     "100.100.100.100"],
)  # fmt: skip
def test_resolvers_that_are_none_are_refused(hub: Hub, text: str) -> None:
    refuse(hub, "^resolver ", naming.set_split, "corp.example", ["192.0.2.1", text])
    refuse(hub, "^resolver ", naming.set_resolvers, [text])


def test_what_contradicts_is_refused(hub: Hub) -> None:
    [device] = admitted(hub, 1)
    assert device.map is not None
    taken = DeviceMap(device.map).name
    refuse(hub, f"device {device.id} has it", naming.add_record, taken, "A", "192.0.2.1")
    change(hub, naming.add_record, "x", "A", "192.0.2.1")
    refuse(hub, "there already", naming.add_record, "x", "A", "192.0.2.1")
    refuse(hub, "must be alone", naming.add_record, "x", "CNAME", "y")
    change(hub, naming.add_record, "a1", "CNAME", "a2")
    refuse(hub, "must be alone", naming.add_record, "a1", "A", "192.0.2.1")
    refuse(hub, "circle", naming.add_record, "a2", "CNAME", "a1")
    refuse(hub, "circle", naming.add_record, "self", "CNAME", "self")
    for step in range(2, 5):
        change(hub, naming.add_record, f"a{step}", "CNAME", f"a{step + 1}")
    refuse(hub, "more than 4 steps", naming.add_record, "a5", "CNAME", "a6")
    refuse(hub, "cannot be an alias", naming.add_record, "@", "CNAME", "x")
    refuse(hub, "not in mesh.internal", naming.add_record, "x.example.", "A", "192.0.2.1")
    for domain in ("mesh.internal", "sub.mesh.internal"):
        refuse(hub, "the hub itself answers", naming.set_split, domain, ["192.0.2.1"])


def test_a_device_does_not_get_the_name_of_a_record(hub: Hub) -> None:
    change(hub, naming.add_record, "box", "A", "192.0.2.1")
    [device] = joined(hub, "box")
    assert device.map is not None and DeviceMap(device.map).name == "box-1"
    with hub.store.write() as tx:
        found = tx.device(device.id)
        assert found is not None
        with pytest.raises(HubError, match="a record has it"):
            actions.rename_device(hub.scribe, tx, found, "box")


def test_all_of_it_is_bounded_and_fits_a_map(hub: Hub) -> None:
    [device] = admitted(hub, 1)
    for number in range(SPLIT_MAX):
        change(hub, naming.set_split, f"d{number}.example", ["192.0.2.1"])
    refuse(hub, "no room", naming.set_split, "one-more.example", ["192.0.2.1"])
    refuse(hub, "want 1 to 4", naming.set_split, "d1.example", ["192.0.2.1"] * 5)
    refuse(hub, "want 1 to 4", naming.set_split, "d1.example", [])
    refuse(hub, "search domains", naming.set_search, [f"d{number}" for number in range(7)])
    with pytest.raises(HubError, match=f"a map has room for {NAMES_BYTES_MAX}"):
        for number in range(RECORDS_MAX):
            change(hub, naming.add_record, f"r{number}", "TXT", "x" * 100)
    rows = hub.sent()
    device.read(rows)
    assert device.map is not None and len(device.map.raw) < MAP_BYTES_MAX
    for record in shown(hub)["records"]:
        change(hub, naming.remove_record, record["name"])
    for number in range(SPLIT_MAX):
        change(hub, naming.unset_split, f"d{number}.example")
    for number in range(RECORDS_MAX):
        change(hub, naming.add_record, f"r{number}", "A", "192.0.2.1")
    refuse(hub, "no room", naming.add_record, "one-more", "A", "192.0.2.1")


def test_relays_hear_nothing_of_names(hub: Hub) -> None:
    change(hub, naming.add_record, "x", "A", "192.0.2.1")
    [relay] = relays_of(hub, "fra-1")
    assert names_of(relay) == {}
