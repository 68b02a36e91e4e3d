"""Files of updates as devices fetch them: whose names lead nowhere else, in bounded number and size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeagent.proto import topics
from edgeagent.proto.envelope import read_down
from edgeagent.proto.refusals import ControlDrop, ControlError
from hub.core.memory import MemoryStore
from hub.core.model import HubDrop, Kind
from hub.fetching import BUSY_S, FETCHER_IDLE_S, FETCHERS_MAX, TARGET_BYTES_AT_ONCE, UNKNOWN_S, Fetching
from tests.hub.kit import Dev, Hub, load_crypto, make_network, seeded

NAME = f"targets/{'ab' * 32}.edgeagent.pyz"
DATA = bytes(range(256)) * 400


class Rig:
    def __init__(self, directory: Path) -> None:
        crypto = load_crypto()
        network = make_network(crypto, seeded(7))
        self.hub = Hub(MemoryStore(network), crypto, network)
        self.directory = directory
        for part in ("metadata", "targets"):
            (directory / part).mkdir(parents=True)
        (directory / NAME).write_bytes(DATA)
        (directory / "metadata/timestamp.json").write_text("{}")
        self.fetching = Fetching(crypto, seeded(8), network, directory)
        self.devices = 0

    def device(self) -> Dev:
        self.devices += 1
        found = Dev(self.hub, self.devices, self.hub.token(uses=0), f"n{self.devices}")
        self.hub.hear(found.join())
        found.read(self.hub.sent())
        return found

    def fetch(self, device: Dev, name: str, offset: int, count: int) -> dict[str, Any] | None:
        """The answer, as the device reads it; None: there was none."""
        self.hub.hear(device.write("fetch", {"f": name, "o": offset, "n": count}))
        fetches, self.hub.coordinator.fetches = self.hub.coordinator.fetches, []
        for found, body in fetches:
            topic, data = self.fetching.answer(self.hub.now, self.hub.wall_s, found, body)
            assert topic == topics.down(device.net, device.id, "part")
            signed = read_down(
                device.crypto,
                device.identity.box_private,
                self.hub.network.key,
                topic,
                data,
                kind="part",
                network=device.net,
                device=device.id,
            )
            return signed.body
        return None


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path / "updates")


def test_a_file_in_parts(rig: Rig) -> None:
    device, got = rig.device(), b""
    while len(got) < len(DATA):
        part = rig.fetch(device, NAME, len(got), 32_768)
        assert part is not None and (part["f"], part["o"], part["l"]) == (NAME, len(got), len(DATA))
        got += part["d"]
    assert got == DATA
    assert rig.fetch(device, NAME, len(DATA), 1) == {"f": NAME, "no": "unknown", "s": UNKNOWN_S}
    assert rig.hub.coordinator.drops == {}
    assert rig.hub.sent() == []  # nothing of it goes by the outbox


@pytest.mark.parametrize(
    "name",
    [
        "metadata/../../hub.db",
        "metadata/timestamp.json/../x.json",
        "/etc/passwd",
        "targets/../metadata/timestamp.json",
        "targets/x",
        f"targets/{'ab' * 32}.",
        f"targets/{'ab' * 32}..hidden",
        f"targets/{'AB' * 32}.edgeagent.pyz",
        f"targets/{'ab' * 32}.a/b",
        "metadata/0.root.json",
        "metadata/1.mirrors.json",
        "metadata/timestamp.json\n",
        "",
    ],
)
def test_names_that_are_none_are_refused_on_both_sides(rig: Rig, name: str) -> None:
    from edgeagent.proto.control import check_body

    with pytest.raises(ControlError) as caught:
        check_body("fetch", {"f": name, "o": 0, "n": 1})
    assert caught.value.reason is ControlDrop.BAD_FIELD


def test_links_devices_and_directories_are_no_files(rig: Rig, tmp_path: Path) -> None:
    device = rig.device()
    secret = tmp_path / "secret"
    secret.write_text("secret")
    links = rig.directory / "metadata/1.root.json", rig.directory / "metadata/2.root.json"
    links[0].symlink_to(secret)
    links[1].mkdir()
    for number in (1, 2, 3):
        name = f"metadata/{number}.root.json"
        assert rig.fetch(device, name, 0, 100) == {"f": name, "no": "unknown", "s": UNKNOWN_S}


def test_only_so_many_fetch_a_target_at_a_time_and_metadata_is_for_all(rig: Rig) -> None:
    devices = [rig.device() for _ in range(FETCHERS_MAX + 1)]
    for device in devices[:-1]:
        part = rig.fetch(device, NAME, 0, 100)
        assert part is not None and "d" in part
    assert rig.fetch(devices[-1], NAME, 0, 100) == {"f": NAME, "no": "busy", "s": BUSY_S}
    part = rig.fetch(devices[-1], "metadata/timestamp.json", 0, 100)
    assert part is not None and part["d"] == b"{}"
    rig.hub.later(FETCHER_IDLE_S + 1)
    part = rig.fetch(devices[-1], NAME, 0, 100)
    assert part is not None and "d" in part and rig.fetching.fetchers == 1


def test_bytes_of_all_together_are_bounded(rig: Rig) -> None:
    served = 0
    for _ in range(8):
        device = rig.device()
        for _ in range(60):
            part = rig.fetch(device, NAME, 0, 32_768)
            assert part is not None
            served += len(part.get("d", b""))
    assert TARGET_BYTES_AT_ONCE - 32_768 <= served <= TARGET_BYTES_AT_ONCE


def test_one_device_is_held_back(rig: Rig) -> None:
    device = rig.device()
    for _ in range(100):
        rig.fetch(device, "metadata/timestamp.json", 0, 10)
    assert rig.hub.coordinator.drops == {HubDrop.RATE_LIMITED: 36}


def test_relays_fetch_nothing(rig: Rig) -> None:
    from hub.core import actions
    from tests.hub.kit import RelayDev

    with rig.hub.store.write() as tx:
        token = actions.create_token(rig.hub.scribe, tx, rig.hub.wall_s, tags=("tag:fra",), kind=Kind.RELAY)
    relay = RelayDev(rig.hub, 1, token, "fra-1", "fra")
    rig.hub.hear(relay.join())
    rig.hub.sent()
    assert rig.fetch(relay, NAME, 0, 10) is None
    assert rig.hub.coordinator.drops == {HubDrop.NOT_A_DEVICE: 1}
