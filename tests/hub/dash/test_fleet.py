"""What the database counts of a fleet, against the same counted row by row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from hub.core.filters import parse
from hub.core.model import Device, DeviceState, Kind
from hub.store import devices, fleet
from hub.store.sqlite import SqliteStore
from hub.web.views.pictures import find_places
from tests.hub.dash.fleet import add_fleet
from tests.hub.kit import DAY_S, WALL_S, load_crypto, make_network, make_sqlite, seeded

COUNT = 90


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteStore]:
    made = make_sqlite(Path(tmp_path_factory.mktemp("fleet"), "hub.db"), make_network(load_crypto(), seeded(0)))
    with closing(made):
        with made.write() as tx:
            add_fleet(tx, WALL_S, COUNT)
            gone = next(device for device in tx.devices(limit=COUNT) if device.kind is Kind.DEVICE and device.online)
            gone.state, gone.name, gone.v4, gone.v6, gone.online = DeviceState.REMOVED, None, None, None, False
            tx.save_device(gone)
        yield made


@pytest.fixture(scope="module")
def there(store: SqliteStore) -> list[Device]:
    """All but relays and tombstones."""
    with store.read() as tx:
        found = tx.devices(limit=1_000)
    return [device for device in found if device.kind is Kind.DEVICE and device.state is not DeviceState.REMOVED]


def test_health(store: SqliteStore, there: list[Device]) -> None:
    with store.read() as tx:
        health = fleet.health(tx.connection, WALL_S)
    active = [device for device in there if device.state is DeviceState.ACTIVE]
    assert health.total == len(there) == COUNT - 1
    assert health.online == sum(device.online for device in active)
    assert health.pending == sum(device.state is DeviceState.PENDING for device in there) > 0
    assert health.expired == sum(device.state is DeviceState.EXPIRED for device in there) > 0
    assert health.cloned == sum(device.cloned_s > WALL_S - 7 * DAY_S for device in active) > 0
    assert health.ending == sum(0 < device.not_after - WALL_S <= 7 * DAY_S for device in active) > 0
    assert health.silent == sum(not device.online and device.last_seen_s < WALL_S - DAY_S for device in active) > 0


def test_tags_and_identities(store: SqliteStore, there: list[Device]) -> None:
    with store.read() as tx:
        tags = fleet.tag_counts(tx.connection, 100)
        identities = fleet.identities(tx.connection, 1_000)
        few = fleet.identities(tx.connection, 3)
    assert dict(tags) == Counter(tag for device in there for tag in device.tags)
    assert [count for _, count in tags] == sorted((count for _, count in tags), reverse=True)
    active = [device for device in there if device.state is DeviceState.ACTIVE]
    wanted = Counter((device.tags, "" if device.tags else device.user) for device in active)
    assert {(kind, user): count for kind, user, count in identities} == wanted
    assert few == identities[:3]


def test_the_latest(store: SqliteStore, there: list[Device]) -> None:
    newest = sorted(there, key=lambda device: (-device.created_s, device.id))
    with store.read() as tx:
        assert [row.id for row in fleet.latest(tx.connection, 7)] == [device.id for device in newest[:7]]
        assert fleet.latest(tx.connection, 7, "c-aaaaaaaaaaaaaaaa") == []


def test_the_graph_is_bounded_and_closed(store: SqliteStore) -> None:
    with store.read() as tx:
        rows, edges, total = fleet.graph(tx.connection, 20)
        everything, all_edges, _ = fleet.graph(tx.connection, 500)
        known = {row.id: set(tx.acquaintances(row.id, limit=500)) for row in everything}
    ids = {row.id for row in rows}
    assert len(rows) == 20 and all(row.online for row in rows) and total == len(everything)
    assert all(one in ids and other in ids for one, other in edges)
    pairs = {(a, b) for a in known for b in known[a] & known.keys() if a < b}
    assert set(all_edges) == pairs


def test_places_are_degrees(store: SqliteStore, there: list[Device]) -> None:
    with store.write() as tx:
        odd = tx.device(there[0].id)
        assert odd is not None
        for latitude in ("north", "91", "nan", "1e999"):
            odd.facts = {"lat": latitude, "lon": "15.4"}
            tx.save_device(odd)
            assert odd.id not in {row.id for row, _ in find_places(fleet.located(tx.connection, 1_000))}
        tx.save_device(there[0])
        found = find_places(fleet.located(tx.connection, 1_000))
    assert {row.id for row, _ in found} == {device.id for device in there if "lat" in device.facts}


def test_two_boards_under_one_identity_are_found(store: SqliteStore, there: list[Device]) -> None:
    with store.read() as tx:
        found = devices.find(tx.connection, parse("cloned:yes"), WALL_S)
        others = devices.find(tx.connection, parse("cloned:no"), WALL_S)
    assert [row.id for row in found.rows] == [device.id for device in there if device.cloned_s]
    assert found.total + others.total == len(there)
