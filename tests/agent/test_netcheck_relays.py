"""Where `edgeagent netcheck` gets its relays from: the running agent's answer, and the state directory."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent import requests
from edgeagent.config import load
from edgeagent.io.keystore import Keystore, StateFile
from edgeagent.io.localclient import LocalClient, LocalError
from edgeagent.io.netcheck import _Shell
from edgeagent.io.pinnedtls import RESOLVERS_MAX
from edgeagent.netcheck import NetcheckError, known_relays, parse_relays
from edgeagent.proto.identity import Admission
from edgeagent.proto.relaymap import RelayInfo
from edgeagent.proto.signed import sign_object
from tests.control_kit import CRYPTO, DEVICE, MAP_BODY, NETWORK, NETWORK_KEY, NETWORK_SEED, OTHER, RELAY, WALL_S

RELAYS = [RelayInfo({"id": "fra-1", **RELAY}), RelayInfo({"id": "ams-1", **RELAY, "pin": bytes(range(32)), "s": 0})]


def test_many_names_are_looked_up_in_turn_and_an_address_needs_no_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []
    together = threading.Barrier(RESOLVERS_MAX)

    def answer(host: bytes, port: int, **more: Any) -> list[Any]:
        asked.append(host)
        if len(asked) <= RESOLVERS_MAX:
            together.wait(20.0)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    names = [f"relay{number}.example" for number in range(2 * RESOLVERS_MAX)]
    relays = parse_relays([f"{name}:9:0:0" for name in [*names, "127.0.0.1"]])
    shell = _Shell(relays, [], 0.1)
    try:
        shell._push()
        while shell._resolvers:
            for key, _ in shell._selector.select(20.0):
                key.data(time.monotonic(), key.fd)
            shell._push()
    finally:
        shell.close()
    assert sorted(asked) == sorted(name.encode() for name in names)
    assert [error for relay in shell.check.relays for error in relay.errors if "name server" in error] == []
    assert all(relay.ways for relay in shell.check.relays)


class Answering:
    """The agent's end and the command's, without a socket between them."""

    def __init__(self, result: Any = None, refusal: str = "") -> None:
        self.result = result
        self.refusal = refusal

    def answer(self, result: Any) -> None:
        self.result = result

    def refuse(self, code: str, error: str) -> None:
        self.refusal = code

    def ask(self, request: dict[str, Any]) -> Any:
        assert request == {"do": "relays"}
        if self.refusal:
            raise LocalError(self.refusal, "no.")
        return self.result


def settings(tmp_path: Path) -> Any:
    return load({"state-dir": str(tmp_path / "state")}, {}, str(_empty(tmp_path)))


def _empty(tmp_path: Path) -> Path:
    path = tmp_path / "agent.conf"
    path.touch()
    return path


def ask(agent: Any, tmp_path: Path) -> list[RelayInfo]:
    return known_relays(settings(tmp_path), cast("LocalClient", agent))


def test_what_the_agent_answers_is_what_the_command_reads(tmp_path: Path) -> None:
    client = Answering()
    member = SimpleNamespace(node=SimpleNamespace(map=SimpleNamespace(relays=RELAYS)))
    requests.serve(0.0, cast("Any", SimpleNamespace(membership=member)), cast("Any", client), "relays", {})
    assert client.result[1]["pin"] == bytes(range(32)).hex()
    assert ask(client, tmp_path) == RELAYS


def test_an_agent_without_a_network(tmp_path: Path) -> None:
    client = Answering()
    requests.serve(0.0, cast("Any", SimpleNamespace(membership=None)), cast("Any", client), "relays", {})
    with pytest.raises(NetcheckError, match="member of no network"):
        ask(client, tmp_path)
    with pytest.raises(NetcheckError, match="no relays"):
        ask(Answering([]), tmp_path)
    with pytest.raises(LocalError):
        ask(Answering(refusal="timeout"), tmp_path)


@pytest.mark.parametrize("rows", [None, 7, [{}], [7], [{**RELAYS[0].encode(), "k": "xx", "pin": ""}], {"a": 1}])
def test_an_agent_that_answers_something_else(tmp_path: Path, rows: Any) -> None:
    with pytest.raises(NetcheckError, match="restart it"):
        ask(Answering(rows), tmp_path)


def save(directory: Path, relays: list[RelayInfo], subject: str = DEVICE.device_id) -> None:
    body = {**MAP_BODY, "id": subject, "rl": [relay.encode() for relay in relays]}
    signed = sign_object(
        CRYPTO, NETWORK_SEED, kind="map", network=NETWORK, subject=subject, epoch=1, seq=1, wall_s=WALL_S, body=body
    )
    admission = Admission(CRYPTO, network_key=NETWORK_KEY, ca_der=b"ca", map_object=signed, hosts=["hub.example:8883"])
    keystore = Keystore(str(directory))
    keystore.open()
    keystore.save(StateFile.IDENTITY, DEVICE.encode())
    keystore.save(StateFile.ADMISSION, admission.encode())
    keystore.close()


def test_relays_of_the_state_directory(tmp_path: Path) -> None:
    with pytest.raises(NetcheckError, match="member of no network"):
        known_relays(settings(tmp_path), None)
    assert not (tmp_path / "state").exists()
    save(tmp_path / "state", RELAYS)
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "state").iterdir())
    assert known_relays(settings(tmp_path), None) == RELAYS
    assert sorted(path.stat().st_mtime_ns for path in (tmp_path / "state").iterdir()) == before
    save(tmp_path / "state", [])
    with pytest.raises(NetcheckError, match="no relays"):
        known_relays(settings(tmp_path), None)


def test_a_state_directory_that_is_damaged_or_anothers(tmp_path: Path) -> None:
    save(tmp_path / "state", RELAYS, OTHER.device_id)
    with pytest.raises(NetcheckError, match=r"map\.s: "):
        known_relays(settings(tmp_path), None)
    (tmp_path / "state" / "admission").write_bytes(os.urandom(300))
    with pytest.raises(NetcheckError, match="admission: damaged"):
        known_relays(settings(tmp_path), None)


@pytest.mark.parametrize(
    ("text", "host", "udp", "second"),
    [
        ("relay.example:443", "relay.example:443", 3478, 3479),
        ("192.0.2.1:8443:3000", "192.0.2.1:8443", 3000, 3479),
        ("[2001:db8::1]:443:0:0", "[2001:db8::1]:443", 0, 0),
    ],
)
def test_relays_of_the_command_line(text: str, host: str, udp: int, second: int) -> None:
    [relay] = parse_relays([text])
    assert (relay.hosts, relay.udp_port, relay.stun_port, relay.certificate_sha256) == ([host], udp, second, b"")


@given(st.text(alphabet="a1:.[]-² ", max_size=40))
def test_whatever_is_typed_is_a_relay_or_refused(text: str) -> None:
    try:
        [relay] = parse_relays([text])
    except ValueError as error:
        assert str(error).startswith(repr(text))
    else:
        assert 0 <= relay.udp_port <= 65_535
