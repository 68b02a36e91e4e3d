"""Messages that came together are one commit, by a real hub and its broker."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from struct import unpack_from

import pytest

from edgeagent.proto import topics
from hub.core.model import Op, Outgoing
from tests.hub.kit import Dev
from tests.hub.rig import Rig, wait_until

pytestmark = pytest.mark.skipif(shutil.which("mosquitto", path="/usr/sbin:/usr/bin") is None, reason="no mosquitto")

DEVICES = 24  # fewer than the broker sends unacknowledged


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.end()


def commits(database: Path) -> int:
    """Frames of the write-ahead log that end one (SQLite, Database File Format, section 4.1)."""
    log = database.with_name(database.name + "-wal").read_bytes()
    page_size, salt = unpack_from(">I", log, 8)[0], log[16:24]
    found = 0
    for at in range(32, len(log) - 23, 24 + page_size):
        if log[at + 8 : at + 16] != salt:
            break
        found += unpack_from(">I", log, at + 4)[0] != 0
    return found


def test_what_waited_while_the_hub_was_held_up_is_one_commit(rig: Rig) -> None:
    token = rig.token("--uses", str(DEVICES))
    rig.wait_settled()
    devices = {device.id: device for device in (Dev(rig, seed, token, f"n{seed}") for seed in range(DEVICES))}
    assert rig.process is not None
    with rig.client(token.claim, token.password(rig.crypto), "them all") as claim:
        assert claim.subscribe(topics.admit(rig.network.id, token.claim, "+"))
        before = commits(rig.state.database)
        os.kill(rig.process.pid, signal.SIGSTOP)
        try:
            for device in devices.values():
                claim.publish(*device.join())
        finally:
            os.kill(rig.process.pid, signal.SIGCONT)

        def turn() -> None:
            claim.turn()
            for topic, payload, _ in claim.take():
                parts = topics.parse(topic)
                assert parts is not None
                devices[parts.leaf].read([Outgoing(Op.PUBLISH, topic, payload)])

        wait_until(lambda: all(device.answers for device in devices.values()), "all answers", turn)
        assert 0 < commits(rig.state.database) - before < DEVICES // 2  # of the messages, and of what was confirmed
