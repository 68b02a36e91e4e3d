"""The hub is killed again and again while devices join: each gets its answer, and its account works."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeagent.proto import topics
from hub.core.model import Op, Outgoing
from tests.hub.kit import Dev
from tests.hub.postgres import PostgresServer
from tests.hub.rig import Rig, wait_until

pytestmark = pytest.mark.skipif(shutil.which("mosquitto", path="/usr/sbin:/usr/bin") is None, reason="no mosquitto")

DEVICES = 24


@pytest.fixture(params=["sqlite", "postgres"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    if request.param == "sqlite":
        made = Rig(tmp_path)
    else:
        server: PostgresServer = request.getfixturevalue("postgres_server")
        made = Rig(tmp_path, server.url(server.database(request.getfixturevalue("postgres_tables"))))
    try:
        made.start()
        yield made
    finally:
        made.end()


def test_no_join_is_lost(rig: Rig) -> None:
    token = rig.token("--uses", str(DEVICES))
    devices = {device.id: device for device in (Dev(rig, seed, token, f"n{seed}") for seed in range(DEVICES))}
    net = rig.network.id

    def turn() -> None:
        claim.turn()
        for topic, payload, _ in claim.take():
            parts = topics.parse(topic)
            assert parts is not None
            devices[parts.leaf].read([Outgoing(Op.PUBLISH, topic, payload)])

    def answered() -> int:
        return sum(bool(device.answers) for device in devices.values())

    with rig.client(token.claim, token.password(rig.crypto), "them all") as claim:
        assert claim.subscribe(topics.admit(net, token.claim, "+"))
        waiting = list(devices.values())
        for _ in range(3):
            batch, waiting = waiting[: DEVICES // 3], waiting[DEVICES // 3 :]
            before = answered()
            for device in batch:
                claim.publish(*device.join())
            wait_until(lambda before=before: answered() > before, "the first answer", turn)  # type: ignore[misc]
            rig.kill()  # with some answered, some stored, some not read yet
            rig.start()
        wait_until(lambda: answered() == DEVICES, "all answers", turn)
    assert all(device.answers[0].get("ok") for device in devices.values())
    addresses = {device.map.body["addrs"][0] for device in devices.values() if device.map}
    names = {device.map.body["name"] for device in devices.values() if device.map}
    assert len(addresses) == len(names) == DEVICES
    for device in devices.values():
        with rig.client(device.id, device.identity.password) as client:
            assert client.code == 0
    assert rig.json("token", "list")[0]["used"] == DEVICES
    assert rig.json_status()["devices"]["active"] == DEVICES
