from __future__ import annotations

import errno
import re
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.errors import RemoteProtocolError
from edgeagent.proto.relay_endpoint import RelayEndpoint
from edgeagent.proto.uapi import LINE_BYTES_MAX, OPERATION_BYTES_MAX, Uapi, parse_allowed_ip, parse_endpoint
from tests.engine.owner import Owner

PRIVATE = "e84b5a6d2717c1003a13b431570353dbaca9146cf150c5f8575680feba52027a"
PUBLIC_A = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33"
PUBLIC_B = "58402e695ba1772b1cc9309755f043251ea77fdcf10fbe63989ceb7e19321376"
PSK = "188515093e952f5f22e865cef3012e72f8b5f0b598ac0309d5dacce3b70fcf52"


def ask(owner: Owner, *lines: str) -> str:
    """The answer to one operation."""
    session = Uapi(owner)
    session.receive(1.0, "".join(f"{line}\n" for line in (*lines, "")).encode())
    return session.answer.decode()


def configure(owner: Owner, *lines: str) -> int:
    answer = re.fullmatch(r"errno=(-?\d+)\n\n", ask(owner, "set=1", *lines))
    assert answer is not None
    return -int(answer[1])


def get(owner: Owner) -> list[str]:
    *lines, last, first_empty, second_empty = ask(owner, "get=1").split("\n")
    assert (last, first_empty, second_empty) == ("errno=0", "", "")
    return lines


class TestSet:
    def test_everything_that_is_set_is_told_back(self) -> None:
        owner = Owner()
        assert not configure(
            owner,
            f"private_key={PRIVATE}",
            "listen_port=51820",
            "fwmark=42",
            "replace_peers=true",
            f"public_key={PUBLIC_A}",
            f"preshared_key={PSK}",
            "endpoint=[2001:db8::1]:51820",
            "persistent_keepalive_interval=25",
            "replace_allowed_ips=true",
            "allowed_ip=10.0.0.0/8",
            "allowed_ip=fd00::/8",
            "protocol_version=1",
            f"public_key={PUBLIC_B}",
            "endpoint=192.0.2.1:1",
        )
        assert get(owner) == [
            f"private_key={PRIVATE}",
            "listen_port=51820",
            "fwmark=42",
            f"public_key={PUBLIC_A}",
            f"preshared_key={PSK}",
            "protocol_version=1",
            "endpoint=[2001:db8::1]:51820",
            "last_handshake_time_sec=0",
            "last_handshake_time_nsec=0",
            "tx_bytes=148",
            "rx_bytes=0",
            "persistent_keepalive_interval=25",
            "allowed_ip=10.0.0.0/8",
            "allowed_ip=fd00::/8",
            f"public_key={PUBLIC_B}",
            f"preshared_key={'0' * 64}",
            "protocol_version=1",
            "endpoint=192.0.2.1:1",
            "last_handshake_time_sec=0",
            "last_handshake_time_nsec=0",
            "tx_bytes=0",
            "rx_bytes=0",
            "persistent_keepalive_interval=0",
        ]

    def test_a_key_of_zeros_is_none(self) -> None:
        owner = Owner()
        assert not configure(owner, f"private_key={PRIVATE}")
        assert get(owner) == [f"private_key={PRIVATE}"]
        assert not configure(owner, f"private_key={'0' * 64}")
        assert get(owner) == []

    def test_allowed_ips_are_added_taken_and_replaced(self) -> None:
        owner = Owner()
        peer = f"public_key={PUBLIC_A}"
        assert not configure(owner, peer, "allowed_ip=10.0.0.1/8", "allowed_ip=fd00::/64", "allowed_ip=0.0.0.0/0")
        assert not configure(owner, peer, "allowed_ip=-10.0.0.0/8")
        assert [line for line in get(owner) if line.startswith("allowed")] == [
            "allowed_ip=fd00::/64",
            "allowed_ip=0.0.0.0/0",
        ]
        assert not configure(owner, peer, "replace_allowed_ips=true", "allowed_ip=192.0.2.0/24")
        assert [line for line in get(owner) if line.startswith("allowed")] == ["allowed_ip=192.0.2.0/24"]
        assert not configure(owner, f"public_key={PUBLIC_B}", "allowed_ip=192.0.2.0/24")
        assert not list(owner.device.allowed_ips.of_peer(owner.device.peers[bytes.fromhex(PUBLIC_A)]))

    def test_peers_are_removed(self) -> None:
        owner = Owner()
        assert not configure(owner, f"public_key={PUBLIC_A}", f"public_key={PUBLIC_B}")
        assert not configure(owner, f"public_key={PUBLIC_A}", "remove=true", "allowed_ip=10.0.0.0/8")
        assert list(owner.device.peers) == [bytes.fromhex(PUBLIC_B)]
        assert len(owner.device.allowed_ips) == 0
        assert not configure(owner, "replace_peers=true", f"public_key={PUBLIC_A}")
        assert list(owner.device.peers) == [bytes.fromhex(PUBLIC_A)]

    def test_update_only_makes_no_peer(self) -> None:
        owner = Owner()
        assert not configure(owner, f"public_key={PUBLIC_A}", "update_only=true", "allowed_ip=10.0.0.0/8")
        assert not owner.device.peers
        assert not configure(owner, f"public_key={PUBLIC_A}")
        assert not configure(owner, f"public_key={PUBLIC_A}", "update_only=true", "allowed_ip=10.0.0.0/8")
        assert len(owner.device.allowed_ips) == 1

    def test_a_relay_is_no_endpoint_that_wg_could_read(self) -> None:
        owner = Owner()
        assert not configure(owner, f"public_key={PUBLIC_A}", "endpoint=192.0.2.1:1")
        (peer,) = owner.device.peers.values()
        peer.set_endpoint(RelayEndpoint("fra-1", peer.public_key))
        assert not any(line.startswith("endpoint=") for line in get(owner))

    def test_our_own_key_is_no_peer(self) -> None:
        owner = Owner()
        assert not configure(owner, f"private_key={PRIVATE}")
        assert not configure(owner, f"public_key={owner.device.public_key.hex()}", "allowed_ip=10.0.0.0/8")
        assert not owner.device.peers

    def test_a_keepalive_that_is_switched_on_goes_to_the_new_endpoint(self) -> None:
        owner = Owner()
        lines = ("persistent_keepalive_interval=25", "endpoint=192.0.2.1:7")
        assert not configure(owner, f"private_key={PRIVATE}", f"public_key={PUBLIC_A}", *lines)
        (transmit,) = owner.device.drain_transmits()
        assert transmit.endpoint == Endpoint(("192.0.2.1", 7))
        assert owner.device.poll_timeout() is not None

    def test_nothing_is_sent_while_the_interface_is_down(self) -> None:
        owner = Owner()
        owner.is_up = False
        lines = ("endpoint=192.0.2.1:7", "persistent_keepalive_interval=25")
        assert not configure(owner, f"private_key={PRIVATE}", f"public_key={PUBLIC_A}", *lines)
        assert owner.device.drain_transmits() == []
        assert "persistent_keepalive_interval=25" in get(owner)

    @pytest.mark.parametrize(
        "line",
        [
            "private_key=00",
            f"private_key={'g' * 64}",
            f"private_key={'0' * 63}é",
            "listen_port=65536",
            "listen_port=-1",
            "listen_port=+1",
            "listen_port=",
            "listen_port=1_0",
            "listen_port=٣",
            "fwmark=4294967296",
            "replace_peers=false",
            "endpoint=192.0.2.1:1",
            "unknown=1",
            "Listen_port=1",
            f"public_key={'0' * 62}",
            *(
                f"public_key={PUBLIC_A}\n{line}"
                for line in [
                    "listen_port=1",
                    "preshared_key=00",
                    "endpoint=192.0.2.1",
                    "endpoint=192.0.2.256:1",
                    "endpoint=192.0.2.01:1",
                    "endpoint=host.example:1",
                    "endpoint=2001:db8::1:1",
                    "endpoint=[2001:db8::1]",
                    "endpoint=[2001:db8::1]:65536",
                    "endpoint=[fe80::1%nosuch]:1",
                    "endpoint=[::1:1",
                    "persistent_keepalive_interval=65536",
                    "persistent_keepalive_interval=off",
                    "allowed_ip=10.0.0.0",
                    "allowed_ip=10.0.0.0/33",
                    "allowed_ip=10.0.0.0/-1",
                    "allowed_ip=10.0.0/8",
                    "allowed_ip=--10.0.0.0/8",
                    "allowed_ip=fd00::/129",
                    "allowed_ip=fe80::1%eth0/64",
                    "allowed_ip=",
                    "update_only=false",
                    "remove=1",
                    "replace_allowed_ips=no",
                    "protocol_version=2",
                ]
            ),
        ],
    )
    def test_a_wrong_line_changes_nothing(self, line: str) -> None:
        owner = Owner()
        assert not configure(owner, f"private_key={PRIVATE}", f"public_key={PUBLIC_B}", "allowed_ip=10.0.0.0/8")
        before = get(owner)
        assert configure(owner, "listen_port=7", f"public_key={PUBLIC_A}", f"public_key={PUBLIC_B}", "remove=true") == 0
        assert configure(owner, "replace_peers=true", f"public_key={PUBLIC_B}", "allowed_ip=10.0.0.0/8") == 0
        assert configure(owner, "listen_port=0", "fwmark=0", line) == errno.EINVAL
        assert get(owner) == [*before[:1], "listen_port=7", *before[1:]]

    def test_what_is_no_key_and_value(self) -> None:
        assert configure(Owner(), "private_key") == errno.EPROTO
        assert configure(Owner(), "listen_port=1" + "0" * LINE_BYTES_MAX) == errno.EINVAL

    def test_limits_and_the_owners_refusal(self) -> None:
        owner = Owner(peers=1, allowed_ips=2)
        assert configure(owner, f"public_key={PUBLIC_A}", f"public_key={PUBLIC_B}") == errno.ENOSPC
        ips = [f"allowed_ip=10.0.0.{i}/32" for i in range(3)]
        assert configure(owner, f"public_key={PUBLIC_A}", *ips) == errno.ENOSPC
        owner.port_errno = errno.EADDRINUSE
        assert configure(owner, "listen_port=1", "fwmark=1") == errno.EADDRINUSE
        assert owner.fwmark == 0

    def test_what_is_read_only_is_shown_and_not_set(self) -> None:
        owner = Owner()
        assert not configure(owner, f"private_key={PRIVATE}", "listen_port=7", f"public_key={PUBLIC_A}")
        before = get(owner)
        owner.read_only = True
        assert configure(owner, "listen_port=8", "replace_peers=true") == errno.EPERM
        assert configure(owner, "nonsense=1") == errno.EINVAL
        assert get(owner) == before

    def test_fifty_thousand_allowed_ips(self) -> None:
        owner = Owner()
        ips = [f"allowed_ip=10.{i >> 8 & 255}.{i & 255}.{i >> 16}/32" for i in range(50_000)]
        session = Uapi(owner)
        data = "".join(f"{line}\n" for line in ("set=1", f"public_key={PUBLIC_A}", *ips, "")).encode()
        for at in range(0, len(data), 65_536):
            session.receive(1.0, data[at : at + 65_536])
        assert bytes(session.answer) == b"errno=0\n\n"
        assert [line for line in get(owner) if line.startswith("allowed_ip")] == ips


class TestConversation:
    def test_bytes_may_come_in_any_pieces(self) -> None:
        owner = Owner()
        session = Uapi(owner)
        text = f"set=1\nlisten_port=7\n\nget=1\n\nset=1\n\nget=1\n\nset=1\nprivate_key={PRIVATE}\n\n"
        answers = []
        for byte in text.encode():
            session.receive(1.0, bytes((byte,)))
            while session.answer:
                answers.append(session.answer.decode())
                session.answered(1.0)
        done, told = "errno=0\n\n", "listen_port=7\nerrno=0\n\n"
        assert answers == [done, told, done, told, done]
        assert not session.closed

    def test_operations_wait_for_the_answer_before(self) -> None:
        session = Uapi(Owner())
        session.receive(1.0, b"get=1\n\n" * 1000)
        count = 0
        while session.answer:
            assert bytes(session.answer) == b"errno=0\n\n"
            session.answered(1.0)
            count += 1
        assert count == 1000

    @pytest.mark.parametrize("noise", [b"\n", b"GET / HTTP/1.1\r\n", b"get=2\n", b"set=1 \n", b"\0"])
    def test_what_is_no_operation_is_hung_up_on(self, noise: bytes) -> None:
        session = Uapi(Owner())
        session.receive(1.0, noise)
        assert session.closed
        assert not session.answer

    def test_a_get_has_no_lines(self) -> None:
        session = Uapi(Owner())
        session.receive(1.0, b"get=1\nlisten_port=1\n\n")
        assert bytes(session.answer) == b"errno=-%d\n\n" % errno.EINVAL
        assert session.closed

    def test_an_operation_without_end_is_refused(self) -> None:
        session = Uapi(Owner())
        session.receive(1.0, b"set=1\n")
        while not session.closed:
            session.receive(1.0, b"listen_port=1\n" * 65_536)
        assert bytes(session.answer) == b"errno=-%d\n\n" % errno.E2BIG
        assert OPERATION_BYTES_MAX > 50_000 * 64

    def test_an_operation_that_is_cut_off_is_not_applied(self) -> None:
        owner = Owner()
        session = Uapi(owner)
        session.receive(1.0, b"set=1\nlisten_port=7\n")
        session.close()
        assert owner.listen_port == 0

    @given(st.lists(st.binary(max_size=40), max_size=8))
    def test_any_bytes_are_survived(self, chunks: list[bytes]) -> None:
        session = Uapi(Owner())
        session.receive(1.0, b"set=1\n")
        for chunk in chunks:
            session.receive(1.0, chunk)
        assert session.answer == b"" or session.answer.startswith(b"errno=")
        assert session.answer or session.closed or b"\n\n" not in b"".join((b"set=1\n", *chunks))

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(
                    [
                        "private_key",
                        "listen_port",
                        "fwmark",
                        "replace_peers",
                        "public_key",
                        "remove",
                        "update_only",
                        "preshared_key",
                        "endpoint",
                        "persistent_keepalive_interval",
                        "replace_allowed_ips",
                        "allowed_ip",
                        "protocol_version",
                    ]
                ),
                st.sampled_from(["true", "1", PRIVATE, PUBLIC_A, PUBLIC_B, "192.0.2.1:5", "10.0.0.0/8", "-10.0.0.0/8"])
                | st.text(max_size=20),
            ),
            max_size=12,
        )
    )
    def test_any_lines_are_applied_or_refused(self, lines: list[tuple[str, str]]) -> None:
        owner = Owner()
        text = "".join(f"{key}={value}\n" for key, value in lines)
        answer = ask(owner, "set=1", *text.splitlines())
        assert answer == "" or re.match(r"errno=-?\d+\n\n", answer)


class TestValues:
    @pytest.mark.parametrize(
        ("text", "addr"),
        [
            ("192.0.2.1:51820", ("192.0.2.1", 51820)),
            ("[2001:DB8::1]:1", ("2001:db8::1", 1, 0, 0)),
            ("[fe80::1%eth0]:1", ("fe80::1", 1, 0, 2)),
            ("[fe80::1%3]:1", ("fe80::1", 1, 0, 3)),
            ("[::ffff:192.0.2.1]:1", ("192.0.2.1", 1)),
            ("0.0.0.0:0", ("0.0.0.0", 0)),
        ],
    )
    def test_endpoints(self, text: str, addr: tuple[str, int]) -> None:
        assert parse_endpoint(text, {"eth0": 2}.__getitem__).addr == addr

    @given(st.ip_addresses(), st.data())
    def test_allowed_ips_as_the_standard_library_reads_them(self, address: object, data: st.DataObject) -> None:
        cidr = data.draw(st.integers(0, 128 if ":" in str(address) else 32))
        add, packed, read = parse_allowed_ip(f"{address}/{cidr}")
        network = ip_network(f"{address}/{cidr}", strict=False)
        assert add
        assert ip_network((packed, read), strict=False) == network

    @given(st.text(max_size=30))
    def test_any_text_is_read_or_refused(self, text: str) -> None:
        for read in (parse_allowed_ip, lambda t: parse_endpoint(t, lambda _: 0)):
            try:
                read(text)
            except RemoteProtocolError as error:
                assert str(error)
