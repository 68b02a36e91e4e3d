"""What a relay keeps on disk, what it makes there by itself, and what it says when it cannot."""

from __future__ import annotations

import os
import ssl
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeagent.io.keystore import StateError
from edgeagent.proto.identity import Admission
from edgeagent.proto.keys import to_base64
from edgeagent.proto.token import Token
from relay.config import ConfigError, Settings, load
from relay.connection import certificate_pin
from relay.hub_store import GONE_MAX, HubStore
from relay.state import (
    StateUnusable,
    certificate,
    make_directory,
    own_name,
    read_tokens,
    relay_key,
    saved_networks,
)
from tests.hub.kit import load_crypto
from tests.relay.test_registration import Pair

CRYPTO = load_crypto()


def token_of(pair: Pair) -> Token:
    assert pair.keys.token is not None
    return pair.keys.token


def joined(path: Path, pair: Pair) -> HubStore:
    """A store that holds what a join left."""
    store = HubStore(str(path), pair.hub.network.id, CRYPTO)
    store.identity = pair.identity
    store._keystore.save(_file("IDENTITY"), pair.identity.encode())
    store.keep_admission(pair.admission)
    return store


def _file(name: str) -> Any:
    from edgeagent.io.keystore import StateFile

    return StateFile[name]


# the hub's folder


def test_what_was_learned_is_there_after_a_restart(tmp_path: Path) -> None:
    pair = Pair()
    store = joined(tmp_path / pair.hub.network.id, pair)
    assert store.epochs.begin()
    store.keep_epochs(0.0)
    store.keep_gone(1.0, b"first")
    store.keep_gone(1.0, b"second")
    store.keep_gone(1.0, b"first")
    due = store.poll_timeout()
    assert due is not None
    store.save_if_due(due)
    assert store.poll_timeout() is None
    store.keep_gone(2.0, b"third")
    store.save(2.0)
    store.close()
    assert saved_networks(str(tmp_path)) == [pair.hub.network.id]
    again = HubStore(str(tmp_path / pair.hub.network.id), pair.hub.network.id, CRYPTO)
    assert again.identity.device_id == pair.identity.device_id
    assert isinstance(again.admission, Admission) and again.admission.map_object == pair.admission.map_object
    assert (again.epochs.reserved, list(again.gone)) == (store.epochs.reserved, [b"first", b"second", b"third"])
    again.forget_admission()
    again.close()
    assert saved_networks(str(tmp_path)) == []
    last = HubStore(str(tmp_path / pair.hub.network.id), pair.hub.network.id, CRYPTO)
    assert last.admission is None and last.identity.device_id == pair.identity.device_id
    last.close()


def test_removals_that_are_kept_are_bounded(tmp_path: Path) -> None:
    store = HubStore(str(tmp_path / "x"), 16 * "a", CRYPTO)
    for number in range(GONE_MAX + 10):
        store.keep_gone(0.0, number.to_bytes(4, "big"))
    assert len(store.gone) == GONE_MAX and store.gone[0] == (10).to_bytes(4, "big")
    for number in range(2_000):
        store.keep_gone(0.0, number.to_bytes(4, "big") + bytes(1_000))
    store.save(0.0)
    store.close()
    again = HubStore(str(tmp_path / "x"), 16 * "a", CRYPTO)
    assert again.gone and again.gone[-1][:4] == (1_999).to_bytes(4, "big")
    again.close()


def test_damage_is_named_and_what_can_be_done_without_is(tmp_path: Path) -> None:
    pair = Pair()
    path = tmp_path / pair.hub.network.id
    joined(path, pair).close()
    network = pair.hub.network.id
    (path / "cache").write_bytes(b"torn")
    HubStore(str(path), network, CRYPTO).close()
    identity, admission = (path / "identity").read_bytes(), (path / "admission").read_bytes()
    for break_it, said in (
        (lambda: (path / "identity").unlink(), "edgehub relays invite"),
        (lambda: (path / "identity").write_bytes(identity[:-1]), "edgehub relays invite"),
        (lambda: (path / "admission").write_bytes(admission[:-1] + b"x"), "edgehub relays invite"),
    ):
        break_it()
        with pytest.raises(StateError, match=said):
            HubStore(str(path), network, CRYPTO)
        (path / "identity").write_bytes(identity)
        (path / "admission").write_bytes(admission)
    with pytest.raises(StateError, match="it is of network"):
        HubStore(str(path), 16 * "a", CRYPTO)
    store = HubStore(str(path), network, CRYPTO)
    with pytest.raises(StateError, match="running"):
        HubStore(str(path), network, CRYPTO)
    store.close()
    (path / "admission").unlink()
    (path / "identity").write_bytes(b"torn")  # nobody knows these keys: new ones
    fresh = HubStore(str(path), network, CRYPTO)
    assert fresh.identity.device_id != pair.identity.device_id
    fresh.close()


# what it makes by itself


def test_a_key_and_a_certificate_are_made_once(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    key = relay_key(state)
    assert relay_key(state) == key and len(key) == 32
    files = certificate(state, ["relay.example", "192.0.2.7", "relay.example"])
    before = Path(files[0]).read_bytes()
    assert certificate(state, ["other.example"]) == files and Path(files[0]).read_bytes() == before
    assert {path.stat().st_mode & 0o777 for path in Path(state).iterdir()} == {0o600}
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*files)
    assert len(certificate_pin(files[0])) == 32
    assert Path(state).stat().st_mode & 0o777 == 0o700


def test_without_cryptography_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(StateUnusable, match=r"edgemesh\[relay\].*--cert"):
        certificate(str(tmp_path), ["x"])


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for call in (lambda path: make_directory(path), relay_key, lambda path: certificate(path, ["x"])):
        with pytest.raises(StateUnusable, match=r"state-dir: .*--state-dir"):
            call(str(tmp_path / "file" / "below"))


def test_its_own_name_is_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    for host, label in (("Fra_1.example.org", "fra-1"), ("-", "relay"), ("", "relay")):
        monkeypatch.setattr("socket.gethostname", lambda host=host: host)
        assert own_name() == label


# join files


def test_join_files(tmp_path: Path) -> None:
    pair, other = Pair(), Pair(seed=2)
    one, two, none = tmp_path / "one", tmp_path / "two", str(tmp_path / "none")
    one.write_text(token_of(pair).encode(CRYPTO) + "\n")
    two.write_text(token_of(other).encode(CRYPTO))
    tokens = read_tokens([str(one), str(two)], [], CRYPTO)
    assert list(tokens) == [pair.hub.network.id, other.hub.network.id]
    with pytest.raises(StateUnusable, match="edgehub relays invite"):
        read_tokens([none], [], CRYPTO)
    assert read_tokens([none], [pair.hub.network.id], CRYPTO) == {}
    with pytest.raises(StateUnusable, match="a second token"):
        read_tokens([str(one), str(one)], [], CRYPTO)
    two.write_text(token_of(other).encode(CRYPTO)[:-3])
    with pytest.raises(StateUnusable, match="copy the whole line"):
        read_tokens([str(two)], [], CRYPTO)
    with pytest.raises(StateUnusable, match="directory"):
        read_tokens([str(tmp_path)], [], CRYPTO)
    two.write_bytes(os.urandom(9_000))
    with pytest.raises(StateUnusable, match="not a join token"):
        read_tokens([str(two)], [], CRYPTO)


# settings


def settings(tmp_path: Path, **given: str | list[str]) -> Settings:
    texts = {name.replace("_", "-"): [text] if isinstance(text, str) else text for name, text in given.items()}
    return load(None, {"state-dir": [str(tmp_path / "state")], **texts})


def test_a_join_file_is_enough(tmp_path: Path) -> None:
    made = settings(tmp_path, join_file="x", public=["relay.example", "[2001:db8::1]:8443", "192.0.2.1"])
    assert (made.id, made.region, made.cert, made.network_keys) == (own_name(), "", None, [])
    assert made.private == relay_key(str(tmp_path / "state"))
    assert settings(tmp_path, join_file="x", listen="192.0.2.1:443").public == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "join-file: missing"),
        ({"join_file": "x"}, "public: missing"),
        ({"join_file": "x", "public": "not a name"}, "public: a host name"),
        ({"join_file": "x", "public": 5 * ["a"]}, "public: 5 given, at most 4"),
        ({"join_file": 17 * ["x"], "public": "a"}, "join-file: 17 given"),
        ({"join_file": "x", "public": "a", "cert": "c"}, "cert and key"),
        ({"network_key": "0" * 64}, "id: missing"),
        ({"network_key": "0" * 64, "id": "a"}, "region: missing"),
    ],
)
def test_what_goes_together(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        settings(tmp_path, **given)


def test_network_keys_alone_do_not_look_for_hubs(tmp_path: Path) -> None:
    pair = Pair()
    joined(tmp_path / "state" / pair.hub.network.id, pair).close()
    static = {"network_key": "0" * 64, "id": "a", "region": "fra"}
    assert settings(tmp_path, **static).saved_networks == []
    assert settings(tmp_path, public="a").saved_networks == [pair.hub.network.id]
    assert settings(tmp_path, **static, join_file="x", public="a").saved_networks == [pair.hub.network.id]
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_text(to_base64(bytes(range(32))))
    assert settings(tmp_path, **static, relay_key=str(key)).private[1:31] == bytes(range(1, 31))
