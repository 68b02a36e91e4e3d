"""The small parts of the hub, each alone."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import ssl
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from hub.core import hostnames, ipam
from hub.core.credential import check_credential, is_strong, make_credential, split_credential
from hub.core.model import HubError, Op, Outgoing, Role
from hub.core.ratelimit import TokenBuckets
from hub.io import pki, poke
from hub.io.accounts import Done, Dynsec, Listed, document
from hub.output import ago, duration, parse_duration
from hub.state import State
from tests.hub.kit import load_crypto, make_network, seeded

DEVICE_IDS = st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=24, max_size=24)

# addresses and names


@given(st.lists(DEVICE_IDS, max_size=50, unique=True))
def test_addresses_are_given_once_and_never_the_reserved_ones(ids: list[str]) -> None:
    taken: set[int] = set()
    for device_id in ids:
        address = ipam.choose_v4(device_id, taken.__contains__)
        assert address not in taken and not ipam.is_reserved(address)
        assert str(ip_address(address)).startswith("100.") and 64 <= (address >> 16 & 255) <= 127
        assert ipam.choose_v4(device_id, taken.__contains__) == address  # it follows from the id
        taken.add(address)


def test_reserved_addresses() -> None:
    for text in ("100.64.0.0", "100.100.100.100", "100.127.255.255"):
        assert ipam.is_reserved(int(ip_address(text)))
    for text in ("100.64.0.1", "100.127.255.254", "100.100.101.0"):
        assert not ipam.is_reserved(int(ip_address(text)))


def test_a_clash_moves_on_and_wraps_around() -> None:
    last = next(i for i in _ids_near(ipam.V4_LAST))
    assert ipam.choose_v4(last, lambda address: address > ipam.V4_LAST - 100) == ipam.V4_NETWORK + 1
    with pytest.raises(HubError, match="no free IPv4"):
        ipam.choose_v4(last, lambda _: True)
    with pytest.raises(HubError, match="no free IPv6"):
        ipam.choose_v6(16 * "a", last, lambda _: True)


def _ids_near(address: int) -> list[str]:
    from base64 import b32encode

    raw = (address - ipam.V4_NETWORK).to_bytes(4, "big") + bytes(11)
    return [b32encode(raw).decode().lower()]


@given(DEVICE_IDS)
def test_ipv6_addresses_are_in_the_networks_48(device_id: str) -> None:
    network = make_network(load_crypto(), seeded(0)).id
    prefix = ipam.ula_network(network)
    address = ipam.choose_v6(network, device_id, lambda _: False)
    assert address[:6] == prefix[:6] and prefix[0] == 0xFD and prefix[6:] == bytes(10)
    assert ip_address(address).is_private


def test_a_name_that_is_taken_gets_a_number() -> None:
    taken = {"x", "x-1", "x-2"}
    numbers = iter(range(1, 10))
    assert hostnames.choose_name("x", taken.__contains__, lambda _: next(numbers)) == "x-3"
    assert hostnames.choose_name("y", taken.__contains__, lambda _: next(numbers)) == "y"
    long = "a" * 62 + "b"
    assert hostnames.choose_name(long, {long}.__contains__, lambda _: 7) == "a" * 61 + "-7"
    with pytest.raises(HubError, match="no free host name"):
        hostnames.choose_name("x", lambda _: True, lambda _: 1)


# limits, credentials


def test_buckets_refill_and_forget_the_oldest() -> None:
    buckets = TokenBuckets(2.0, 3, keys_max=2)
    assert [buckets.allow(0.0, "a") for _ in range(4)] == [True, True, True, False]
    assert buckets.allow(0.5, "a") and not buckets.allow(0.5, "a")
    assert not buckets.allow(1.0, "a", cost=2.0) and buckets.allow(1.5, "a", cost=2.0)
    assert buckets.allow(1.5, "b") and buckets.allow(1.5, "c")
    assert len(buckets) == 2


def test_credentials_are_mosquittos() -> None:
    credential = make_credential(os.urandom, "password of a device")
    assert check_credential(credential, "password of a device")
    assert not check_credential(credential, "password of a devicf")
    salt, digest = split_credential(credential)
    assert digest == hashlib.pbkdf2_hmac("sha512", b"password of a device", salt, 101)
    assert [is_strong(text) for text in ("short", "x" * 16, "ü" * 16, "x" * 15 + "\n")] == [False, True, False, False]


# the plugin's commands


def row(op: Op, number: int = 5) -> Outgoing:
    return Outgoing(op, "somebody", b"a password of a device", role=Role.DEVICE, id=number)


def answer(mark: str, command: str, error: str = "", **more: object) -> bytes:
    response = {"command": command, "correlationData": mark, **({"error": error} if error else {}), **more}
    return json.dumps({"responses": [response]}).encode()


def test_accounts_are_made_given_a_password_and_ended() -> None:
    dynsec = Dynsec(16 * "a")
    [command] = [json.loads(text)["commands"][0] for text in dynsec.send(row(Op.ADMIT))]
    assert (command["command"], command["clientid"], command["username"]) == ("createClient", "somebody", "somebody")
    assert command["roles"] == [{"rolename": "device-aaaaaaaaaaaaaaaa"}]
    assert dynsec.handle_response(answer("5", "createClient")) == ([Done(5)], [])
    assert dynsec.handle_response(answer("5", "createClient")) == ([], [])  # said twice, counted once

    dynsec.send(row(Op.ADMIT))
    events, [follow_up] = dynsec.handle_response(answer("5", "createClient", "Client already exists"))
    assert events == [] and json.loads(follow_up)["commands"][0]["command"] == "setClientPassword"
    assert dynsec.handle_response(answer("5", "setClientPassword")) == ([Done(5)], [])

    dynsec.send(row(Op.REPASS))
    events, [follow_up] = dynsec.handle_response(answer("5", "setClientPassword", "Client not found"))
    assert events == [] and json.loads(follow_up)["commands"][0]["command"] == "createClient"
    assert dynsec.handle_response(answer("5", "createClient", "Internal error")) == ([Done(5, "Internal error")], [])

    dynsec.send(row(Op.REVOKE))
    assert dynsec.handle_response(answer("5", "deleteClient", "Client not found")) == ([Done(5)], [])
    dynsec.send(row(Op.REVOKE))
    dynsec.reset()
    assert dynsec.handle_response(answer("5", "deleteClient")) == ([], [])


def test_accounts_are_listed_page_by_page() -> None:
    dynsec = Dynsec(16 * "a")
    [first] = dynsec.list_users()
    assert json.loads(first)["commands"][0]["offset"] == 0
    page = [f"{number:024d}".translate(str.maketrans("0189", "wxyz")) for number in range(500)]
    events, [second] = dynsec.handle_response(answer("list", "listClients", data={"clients": page}))
    assert events == [] and json.loads(second)["commands"][0]["offset"] == 500
    rest = ["hub", "c-" + 16 * "b", "an operator's"]
    events, more = dynsec.handle_response(answer("list", "listClients", data={"clients": rest}))
    assert more == [] and events == [Listed(frozenset([*page, rest[1]]))]


def test_the_plugins_file_grants_nothing_by_itself() -> None:
    content = json.loads(document(16 * "a", "hub", make_credential(os.urandom, "p"), ()))
    assert not any(content["defaultACLAccess"][kind] for kind in ("publishClientSend", "publishClientReceive"))
    allowed = [
        rule["acltype"]
        for role in content["roles"]
        for rule in role["acls"]
        if role["rolename"] != "hub" and rule["allow"]
    ]
    assert set(allowed) == {"subscribePattern", "subscribeLiteral"}


# certificates


def test_certificates() -> None:
    for wall_s in (0.0, 1_800_000_000.0):  # also on a hub whose clock was never set
        ca_key, ca_der = pki.make_ca("mesh.internal", wall_s)
        key, chain = pki.make_server(ca_key, ca_der, ("hub.example.org", "192.0.2.1", "2001:db8::1"))
        server, ca = x509.load_pem_x509_certificates(chain.encode())
        server.verify_directly_issued_by(ca)
        assert ca.public_bytes(Encoding.DER) == ca_der == pki.pem_to_der(chain.encode())
        for certificate in (server, ca):
            assert certificate.not_valid_before_utc == datetime(2000, 1, 1, tzinfo=UTC)
            assert certificate.not_valid_after_utc.year >= 2054
        names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == ["hub.example.org", "localhost"]
        assert {str(address) for address in names.get_values_for_type(x509.IPAddress)} == {
            "192.0.2.1",
            "2001:db8::1",
            "127.0.0.1",
            "::1",
        }
        assert "PRIVATE KEY" in key


def test_a_strict_client_takes_the_chain(tmp_path: Path) -> None:
    ca_key, ca_der = pki.make_ca("mesh.internal", 0.0)
    key, chain = pki.make_server(ca_key, ca_der, ("hub.example.org",))
    (tmp_path / "chain").write_text(chain)
    (tmp_path / "key").write_text(key)
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(tmp_path / "chain", tmp_path / "key")
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.verify_flags |= ssl.VERIFY_X509_STRICT
    client_context.load_verify_locations(cadata=pki.der_to_pem(ca_der))
    pairs = [(ssl.MemoryBIO(), ssl.MemoryBIO())]
    to_server, to_client = pairs[0]
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    client = client_context.wrap_bio(to_client, to_server, server_hostname="hub.example.org")
    done: set[str] = set()
    for _ in range(10):
        for name, side in (("client", client), ("server", server)):
            try:
                side.do_handshake()
                done.add(name)
            except ssl.SSLWantReadError:
                pass
    assert done == {"client", "server"}


# files, sockets, texts


def test_one_hub_at_a_time(tmp_path: Path) -> None:
    state = State(tmp_path)
    assert not state.is_running() and not state.lock.exists()
    with state.running():
        assert state.is_running()
        with pytest.raises(HubError, match="already"), state.running():
            pass
    assert not state.is_running()
    assert state.read_status() == {}
    state.write_status({"a": 1})
    assert state.read_status() == {"a": 1}
    state.status.write_text("{cut off")
    assert state.read_status() == {}


def test_a_poke_arrives_and_nobody_listening_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "poke"
    poke.send(path)
    receiver = poke.Receiver(path)
    assert path.stat().st_mode & 0o777 == 0o600
    for _ in range(100):
        poke.send(path)
    receiver.take()
    receiver.close()
    poke.send(path)
    with pytest.raises(OSError, match="too long"):
        poke.Receiver(tmp_path / ("x" * 200))
    assert socket.AF_UNIX


def test_times() -> None:
    assert [parse_duration(text) for text in ("30m", "24h", "7d", "2w", "5s")] == [1800, 86400, 604800, 1209600, 5]
    for text in ("", "7", "d", "-1d", "1y", "0h", "99999999w", "1.5h"):
        with pytest.raises(ValueError, match="expected"):
            parse_duration(text)
    assert [duration(seconds) for seconds in (1, 119, 120, 7_199, 7_200, 200_000)] == [
        "1 s",
        "119 s",
        "2 min",
        "120 min",
        "2 h",
        "2 d",
    ]
    assert ago(0) == "never"
