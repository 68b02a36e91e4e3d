"""NATS as the broker: one real nats-server, one real hub, and what devices, tokens and strangers may do there."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeagent.proto.brokerpass import DEVICE, bearer
from tests.hub.natsnodes import NatsRig, needs_nats
from tests.hub.rig import Member, wait_until


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsRig]:
    made = NatsRig(tmp_path_factory.mktemp("nats"), 1)
    try:
        made.start()
        yield made
    finally:
        made.end()


def login(rig: NatsRig, member: Member) -> tuple[str, str]:
    return member.identity.broker_login(
        rig.network.id, member.event.admission.open_map(rig.crypto, member.id).broker_pass
    )


@needs_nats
def test_a_device_joins_and_has_its_rights_and_no_others(rig: NatsRig) -> None:
    member = rig.join(rig.token())
    assert member.is_in
    session, password = login(rig, member)
    print(session, len(password))
    net = rig.network.id
    with rig.client(member.id, password, session) as client:
        assert client.code == 0
