"""NATS as the broker: one real nats-server, one real hub, and what devices, tokens and strangers may do there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import selectors
import socket
import ssl
import time
from base64 import urlsafe_b64decode
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeagent.io.mqtt import Closed, Connected, MqttLink
from edgeagent.io.pahoclient import Login
from edgeagent.io.pinnedtls import Trust
from edgeagent.proto.brokerpass import SIZE, bearer
from edgeagent.proto.devicemap import DeviceMap
from edgeagent.proto.join import Joined
from edgeagent.proto.token import Token
from hub import natsaccounts
from hub.core import actions
from hub.core.model import DeviceState, Op, Outgoing
from hub.core.nats import Authority
from hub.io import natsclaims
from hub.io.mqtt import Received
from hub.io.natsclaims import Manager, NatsError, tell
from hub.io.pki import der_to_pem, make_ca
from hub.natsaccounts import HOLD_S, NatsAccounts
from hub.store.meta import Site
from hub.store.nats import cut_off
from tests.hub.kit import Dev, Hub, admitted, load_crypto, make_network, make_sqlite, row, seeded
from tests.hub.natsnodes import NatsRig, needs_nats
from tests.hub.rig import Member, Rig, wait_until


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsRig]:
    made = NatsRig(tmp_path_factory.mktemp("nats"), 1)
    try:
        made.start()
        yield made
    finally:
        made.end()


class In:
    """A device that is in, and how it logs in."""

    def __init__(self, rig: NatsRig, seed: int, name: str, token: Token | None = None) -> None:
        self.member: Member = rig.join(token or rig.token(), seed, name)
        assert isinstance(self.member.event, Joined)
        self.id = self.member.id
        admission = self.member.event.admission
        device_map = admission.open_map(rig.crypto, self.id)
        self.broker_pass = device_map.broker_pass
        self.session, self.password = self.member.identity.broker_login(rig.network.id, device_map)


@needs_nats
def test_a_device_has_its_rights_and_no_others(rig: NatsRig) -> None:
    one, other = In(rig, 1, "one"), In(rig, 2, "other")
    net = f"em1/{rig.network.id}"
    assert one.session != one.id and len(one.broker_pass) == SIZE
    with (
        rig.client(other.id, other.password, other.session) as theirs,
        rig.client(one.id, one.password, one.session) as client,
    ):
        assert client.code == theirs.code == 0
        for allowed in (f"{one.id}/d/#", f"{one.id}/s/x", f"{other.id}/p", "hub/state"):
            assert client.subscribe(f"{net}/{allowed}"), allowed
        for denied in ("#", "+/d/#", f"{other.id}/d/#", f"{other.id}/s/#", "+/s/#", "+/u/+", f"{one.id}/u/#"):
            assert not client.subscribe(f"{net}/{denied}"), denied
        for denied in ("#", "$MQTT/#", "$MQTT/sub/#", "$JS/#", "$SYS/#", "em1/+/+/p"):
            assert not client.subscribe(denied), denied
        assert theirs.subscribe(f"{net}/{other.id}/d/#") and theirs.subscribe(f"{net}/{other.id}/s/x", 0)
        client.publish(f"{net}/{other.id}/d/map", b"not the hub's")
        client.publish(f"{net}/{other.id}/p", b"not its own", retain=True)
        client.publish(f"{net}/{other.id}/s/x", b"a call")
        assert theirs.expect(f"{net}/{other.id}/s/x") == b"a call"
        assert client.subscribe(f"{net}/{other.id}/p")
        client.publish(f"{net}/{one.id}/p", b"its own", retain=True)
        assert theirs.subscribe(f"{net}/{one.id}/p")
        assert theirs.expect(f"{net}/{one.id}/p") == b"its own"
        seen = {topic: payload for topic, payload, _ in client.take()}
        assert f"{net}/{other.id}/p" not in seen and b"not the hub's" not in seen.values()


@needs_nats
def test_who_has_but_a_token_sees_no_feeds(rig: NatsRig) -> None:
    token = rig.token()
    net = f"em1/{rig.network.id}"
    with rig.client(token.claim, token.password(rig.crypto), "any") as client:
        assert client.code == 0
        assert client.subscribe(f"{net}/{token.claim}/d/{'a' * 24}") and client.subscribe(f"{net}/hub/state")
        for denied in ("+/p", f"{'a' * 24}/p", f"{'a' * 24}/d/#", "+/d/#", "#"):
            assert not client.subscribe(f"{net}/{denied}"), denied


@needs_nats
def test_whoever_knows_a_device_id_does_not_get_its_session(rig: NatsRig) -> None:
    one, other = In(rig, 3, "mine"), In(rig, 4, "thief")
    net = f"em1/{rig.network.id}"
    with rig.client(one.id, one.password, one.session, clean=False) as mine:
        assert mine.subscribe(f"{net}/{one.id}/d/#")
        with rig.client(other.id, other.password, one.id) as thief:
            assert thief.code == 0
            assert not thief.subscribe(f"{net}/{one.id}/d/#")
            mine.turn()
            assert not mine.ended
    with rig.client(other.id, one.password, "x") as named, rig.client(one.id, other.password, "y") as wrong:
        # A name is nothing to NATS: what counts is who was signed for.
        assert named.code == wrong.code == 0
        assert not wrong.subscribe(f"{net}/{one.id}/d/#") and named.subscribe(f"{net}/{one.id}/d/#")


@needs_nats
def test_strangers_are_refused(rig: NatsRig) -> None:
    one = In(rig, 5, "real")
    forged = one.broker_pass[:-1] + bytes([one.broker_pass[-1] ^ 1])
    earlier = (0).to_bytes(8, "big") + one.broker_pass[8:]
    others = Authority(load_crypto(), make_network(load_crypto(), seeded(9)))
    network = rig.network.id
    for user, password in (
        (one.id, bearer(network, "device", one.id, forged)),
        (one.id, bearer(network, "device", one.id, earlier)),
        (one.id, bearer(network, "device", "b" * 24, one.broker_pass)),
        (one.id, bearer(network, "claim", one.id, one.broker_pass)),
        ("hub", others.hub_password()),
        (one.id, one.member.identity.password),
    ):
        with rig.client(user, password, "stranger") as client:
            assert client.code != 0
    # NATS' own protocol knows no permissions of MQTT topics alone: nobody with a word for MQTT gets in there.
    raw = socket.create_connection(("127.0.0.1", rig.nodes[0].client), 5.0)
    assert b'"tls_required":true' in raw.recv(65_536)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=rig.ca_pem)
    with context.wrap_socket(raw, server_hostname="127.0.0.1") as tls:
        tls.sendall(f"CONNECT {json.dumps({'jwt': one.password, 'tls_required': True})}\r\nPING\r\n".encode())
        assert b"Authorization Violation" in tls.recv(65_536)


@needs_nats
def test_a_removed_device_is_out_at_once_and_back_with_a_new_token(rig: NatsRig) -> None:
    one = In(rig, 6, "leaver")
    with rig.client(one.id, one.password, one.session, clean=False) as client:
        rig.run("devices", "remove", "leaver")
        wait_until(lambda: client.ended, "the end of its session", client.turn)
    rig.wait_settled()
    with rig.client(one.id, one.password, one.session) as client:
        assert client.code != 0
    again = In(rig, 6, "leaver")
    assert again.id == one.id and again.password != one.password
    assert again.session == one.session
    with rig.client(again.id, again.password, again.session, clean=False) as client:
        assert client.code == 0 and not client.session_present, "nothing of what was before is left at the broker"


@needs_nats
def test_what_a_removed_device_had_stays_void_after_it_came_back(rig: NatsRig) -> None:
    """Also for a node that hears the account anew, as it does at each later removal and each start of a hub."""
    one, other = In(rig, 9, "returner"), In(rig, 10, "later")
    rig.run("devices", "remove", "returner")
    rig.wait_settled()
    again = In(rig, 9, "returner")
    with rig.client(again.id, again.password, again.session) as client:
        rig.run("devices", "remove", "later")
        rig.wait_settled()
        with rig.client(other.id, other.password, other.session) as gone:
            assert gone.code != 0, "the account was told anew"
        with rig.client(one.id, one.password, "another-session") as thief:
            assert thief.code != 0, "what it had before its removal counts no more"
        client.turn()
        assert client.code == 0 and not client.ended
    assert rig.stop() == 0
    rig.start()
    rig.wait_settled()
    with (
        rig.client(one.id, one.password, "another-session") as thief,
        rig.client(again.id, again.password, again.session) as client,
    ):
        assert thief.code != 0 and client.code == 0


@needs_nats
def test_what_nodes_missed_they_hear_at_the_start_of_a_hub(rig: NatsRig) -> None:
    one = In(rig, 7, "missed")
    assert rig.stop() == 0
    rig.run("devices", "remove", "missed")
    with rig.client(one.id, one.password, one.session) as client:
        assert client.code == 0, "nobody has told the node yet"
        rig.start()
        wait_until(lambda: client.ended, "the end of its session", client.turn)


@needs_nats
@pytest.mark.slow  # nodes compare what they know every ten seconds
def test_a_node_that_was_away_hears_from_the_others_who_is_cut_off(tmp_path: Path) -> None:
    """Also one that no hub is told of, or while none is there."""
    rig = NatsRig(tmp_path, 2)
    try:
        authority = Authority(rig.crypto, rig.network)
        claims, seed = authority.manager()
        manager = Manager((), rig.ca_pem, claims, seed)

        def tell_first(wall_s: int, user: str) -> int:
            account = authority.account_claims(wall_s, [(user, 5)])
            return tell(rig.crypto, manager, "127.0.0.1", rig.nodes[0].client, account.encode())

        def known(number: int) -> set[str]:
            return {file.read_text() for file in (rig.nodes[number].directory / "accounts").rglob("*.jwt")}

        wait_until(lambda: tell_first(1_000_000, "c-aaaaaaaaaaaaaaaa") == 2, "both nodes")
        rig.nodes[1].kill()
        before = known(1)
        assert tell_first(1_000_010, "c-bbbbbbbbbbbbbbbb") == 1 and known(0) != before
        rig.nodes[1].log.unlink()
        rig.nodes[1].start()
        rig.nodes[1].wait_ready()
        wait_until(lambda: known(1) == known(0), "the other node's account", deadline_s=60.0)
    finally:
        rig.end()


def test_no_two_accounts_have_one_id() -> None:
    """Nodes do not take one from another that has the id of theirs (DirJWTStore.saveIfNewer of nats-server)."""
    crypto = load_crypto()
    authority = Authority(crypto, make_network(crypto, seeded(0), nats=True))
    ids = []
    for wall_s in (1, 2, 3):
        payload = authority.account_claims(wall_s, [("c-aaaaaaaaaaaaaaaa", 5)]).split(".")[1]
        ids.append(json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["jti"])
    assert len(set(ids)) == 3


def test_a_word_is_the_same_each_time_and_another_after_a_return(hub: Hub) -> None:
    crypto = load_crypto()
    network = make_network(crypto, seeded(0), nats=True)
    authority = Authority(crypto, network)
    device = admitted(hub, 1)[0]
    with hub.store.read() as tx:
        row = tx.device(device.id)
    assert row is not None
    assert authority.device_pass(row) == Authority(crypto, network).device_pass(row)
    since = int.from_bytes(authority.device_pass(row)[:8], "big")
    assert since == row.created_s
    row.barred_s = row.created_s + 5
    assert int.from_bytes(authority.device_pass(row)[:8], "big") == row.barred_s + 1
    claim = authority.claim_pass("c-aaaaaaaaaaaaaaaa", 1000)
    assert int.from_bytes(claim[8:16], "big") > 1000
    assert authority.claim_pass("c-aaaaaaaaaaaaaaaa", 0)[8:16] == bytes(8)
    assert authority.session_id(row) == device.identity.session_id(network.box_key), "both ends work it out"
    others = make_network(crypto, seeded(9), nats=True)
    assert Authority(crypto, others).device_pass(row) != authority.device_pass(row)


def test_who_waits_after_its_admission_ended_has_lost_every_word_it_had(tmp_path: Path) -> None:
    crypto = load_crypto()
    network = make_network(crypto, seeded(0), nats=True)
    with contextlib.closing(make_sqlite(tmp_path / "hub.db", network)) as store:
        hub = Hub(store, crypto, network)
        [device] = admitted(hub, 1)
        with store.write() as tx:
            actions.expire_device(hub.scribe, tx, row(tx, device), hub.wall_s, hub.wall_s)
        device.read(hub.sent())
        assert device.map is not None
        had = int.from_bytes(DeviceMap(device.map).broker_pass[:8], "big")
        hub.hear(device.join(hub.token(needs_approval=True)))
        with store.read() as tx:
            waiting = row(tx, device)
            assert waiting.state is DeviceState.PENDING
            assert dict(cut_off(tx.connection, 10))[device.id] >= had == waiting.created_s
        with store.write() as tx:
            actions.approve_device(hub.scribe, tx, row(tx, device), hub.wall_s)
        with store.read() as tx:
            approved = row(tx, device)
            barred = dict(cut_off(tx.connection, 10))[device.id]
        since = int.from_bytes(Authority(crypto, network).device_pass(approved)[:8], "big")
        assert had <= waiting.barred_s == barred < since


def test_whoever_is_removed_and_returns_within_a_second_has_a_later_word_each_time(tmp_path: Path) -> None:
    crypto = load_crypto()
    network = make_network(crypto, seeded(0), nats=True)
    with contextlib.closing(make_sqlite(tmp_path / "hub.db", network)) as store:
        hub = Hub(store, crypto, network)
        [device] = admitted(hub, 1)
        hub.wall_s -= 10  # the clock was set back
        dates = []
        for _ in range(3):
            with store.read() as tx:
                assert tx.device(device.id) is not None
                dates.append(int.from_bytes(Authority(crypto, network).device_pass(row(tx, device))[:8], "big"))
            with store.write() as tx:
                actions.remove_device(hub.scribe, tx, row(tx, device), hub.wall_s)
            hub.hear(device.join(hub.token()))
            with store.read() as tx:
                assert row(tx, device).state is DeviceState.ACTIVE
                barred = dict(cut_off(tx.connection, 10))[device.id]
                now = int.from_bytes(Authority(crypto, network).device_pass(row(tx, device))[:8], "big")
            assert dates[-1] <= barred < now
        assert dates == sorted(set(dates))


def test_maps_and_tokens_have_a_word_only_where_nodes_want_it(tmp_path: Path) -> None:
    from hub.core.memory import MemoryStore

    crypto = load_crypto()
    for nats in (False, True):
        network = make_network(crypto, seeded(0), nats=nats)
        hub = Hub(MemoryStore(network), crypto, network)
        token = hub.token(uses=1)
        assert (
            bool(token.broker_pass) is nats
            and Token.decode(crypto, token.encode(crypto)).broker_pass == token.broker_pass
        )
        device = Dev(hub, 1, token)
        hub.hear(device.join())
        device.read(hub.sent())
        assert device.map is not None
        assert ("bp" in device.map.body) is nats
        client_id, password = device.identity.broker_login(network.id, DeviceMap(device.map))
        assert (client_id == device.id, password == device.identity.password) == (not nats, not nats)


def test_a_network_with_another_broker_has_nothing_for_nats(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "hub")
    assert "no NATS server" in rig.run("nats", "config", code=1)
    other = Rig.__new__(Rig)
    other.__dict__.update(state=type(rig.state)(tmp_path / "other"))
    said = other.run("init", "--nats", "n1:4222", code=1)
    assert "--external-broker" in said


class Fake:
    """Answers one connection with `words`."""

    def __init__(self, words: bytes) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        self.words = words

    def accept(self) -> None:
        other, _ = self.sock.accept()
        other.sendall(self.words)
        other.close()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (b"220 mail.example.org\r\n", "does not speak NATS"),
        (b'INFO {"nonce":"x"}\r\n', "asks for no TLS"),
        (b"x" * 70_000, "does not speak NATS"),
        (b"INFO ", "ended the connection"),
    ],
)
def test_who_is_no_node_is_told_nothing(words: bytes, said: str) -> None:
    import threading

    fake = Fake(words)
    thread = threading.Thread(target=fake.accept, daemon=True)
    thread.start()
    with pytest.raises((NatsError, OSError), match=f"{said}|reset"):
        tell(load_crypto(), Manager((), "", "jwt", bytes(32)), "127.0.0.1", fake.port, b"account")
    thread.join(5.0)
    fake.sock.close()


@needs_nats
def test_a_refused_subscription_ends_a_devices_connection(rig: NatsRig) -> None:
    one = In(rig, 8, "deaf")
    with selectors.DefaultSelector() as selector:
        link = MqttLink(selector)
        now = time.monotonic()
        login = Login(one.session, one.id, one.password, clean=False, keepalive_s=60)
        pin = hashlib.sha256(rig.network.ca_der).digest()
        link.open(now, [f"127.0.0.1:{rig.port}"], login, Trust(pin, rig.network.ca_der, False))
        seen: list[object] = []

        def turn() -> None:
            for key, _ in selector.select(0.02):
                key.data(time.monotonic(), key.fd)
            seen.extend(link.events)
            link.events.clear()

        wait_until(lambda: any(isinstance(event, Connected) for event in seen), "a connection", turn)
        assert link.subscribe([f"em1/{rig.network.id}/{one.id}/d/#", f"em1/{rig.network.id}/+/d/#"])
        wait_until(lambda: any(isinstance(event, Closed) for event in seen), "its end", turn)
        assert link.is_idle and any("subscription" in event.reason for event in seen if isinstance(event, Closed))


@pytest.fixture
def accounts(tmp_path: Path) -> Iterator[NatsAccounts]:
    """At nodes of which none is there."""
    crypto = load_crypto()
    network = make_network(crypto, seeded(0), nats=True)
    site = Site("", 8883, (), "", "", "hub-x", "", "", "", external="127.0.0.1:1", nats="127.0.0.1:1,127.0.0.1:2")
    with contextlib.closing(make_sqlite(tmp_path / "hub.db", network)) as store:
        yield NatsAccounts(store, Authority(crypto, network), site, der_to_pem(make_ca("x", time.time())[1]))


def test_what_is_delivered_again_goes_before_what_is_new(accounts: NatsAccounts) -> None:
    first, new, newer = Received("t", b"1", 1, 1, True), Received("t", b"2", 2, 1), Received("t", b"3", 3, 1)
    assert accounts.in_order(0.0, [new]) == [new], "a session of its own has nothing to wait for"
    accounts.hold(0.0)
    assert accounts.in_order(1.0, [new]) == accounts.in_order(2.0, [first]) == []
    assert accounts.in_order(HOLD_S, [newer]) == [first, new, newer]
    assert accounts.in_order(HOLD_S, [new]) == [new]
    accounts.hold(10.0)
    assert accounts.in_order(11.0, [new]) == []
    accounts.reset()
    assert accounts.in_order(12.0, [newer]) == [newer], "what the lost connection held comes again by itself"


def test_so_many_wait_and_no_more(accounts: NatsAccounts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(natsaccounts, "HELD_MAX", 3)
    new, again = Received("t", b"1", 0, 0), Received("t", b"2", 1, 1, True)
    accounts.hold(0.0)
    assert accounts.in_order(0.1, [new, new]) == []
    assert accounts.in_order(0.2, [again]) == [again, new, new]
    assert accounts.in_order(0.3, [new]) == [new]


def test_a_later_account_has_a_later_date_wherever_the_clock_goes(
    accounts: NatsAccounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes take from each other what has the later date: an older list would let in again who is cut off."""
    dates: list[int] = []

    def take(_crypto: object, _manager: object, _host: str, _port: int, message: bytes) -> int:
        payload = message.split(b".")[1]
        dates.append(json.loads(urlsafe_b64decode(payload + b"=" * (-len(payload) % 4)))["iat"])
        return 2

    monkeypatch.setattr(natsclaims, "tell", take)
    for number, wall_s in enumerate((2_000_000_000, 100, 100, 2_000_000_001, 2_100_000_000)):
        monkeypatch.setattr(time, "time", lambda wall_s=wall_s: float(wall_s))
        accounts.send(Outgoing(Op.REVOKE, "c-aaaaaaaaaaaaaaaa", id=number + 1))
        accounts.tick(10.0 * number)
        wait_until(lambda: accounts.is_quiet, "an end")
        accounts.tick(10.0 * number)
    assert dates == [2_000_000_000, 2_000_000_001, 2_000_000_002, 2_000_000_003, 2_100_000_000]


def test_who_is_cut_off_is_told_until_a_node_takes_it(
    accounts: NatsAccounts, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tells: list[str] = []

    def take(_crypto: object, _manager: object, host: str, port: int, message: bytes) -> int:
        tells.append(f"{host}:{port}")
        return 3

    accounts.send(Outgoing(Op.REVOKE, "c-aaaaaaaaaaaaaaaa", id=7))
    assert accounts.tick(0.0) == []
    wait_until(lambda: accounts.is_quiet, "an attempt")
    assert accounts.tick(1.0) == [] and "127.0.0.1:1" in caplog.text and "127.0.0.1:2" in caplog.text
    monkeypatch.setattr(natsclaims, "tell", take)
    assert accounts.tick(2.0) == [] and accounts.is_quiet, "not at once"
    assert accounts.tick(7.0) == []
    wait_until(lambda: accounts.is_quiet, "another attempt")
    assert accounts.tick(8.0) == [7] and tells == ["127.0.0.1:1"]
    assert accounts.tick(20.0) == [] and tells == ["127.0.0.1:1"]
