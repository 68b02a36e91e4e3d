"""The wireguard family as bytes: against the kernel's header by hand, against pyroute2, and whatever anybody says."""

from __future__ import annotations

import sys
from base64 import b64encode
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.generic.wireguard import wgmsg

from edgeagent.io import rtnetlink as rt
from edgeagent.io import wgnetlink as wg

KEY, PSK = bytes(range(32)), bytes(range(100, 132))
little = pytest.mark.skipif(sys.byteorder == "big", reason="the bytes below are a little-endian machine's")


@little
def test_the_bytes_of_a_peer() -> None:
    change = wg.PeerChange(
        KEY,
        preshared=PSK,
        endpoint=(bytes((192, 0, 2, 7)), 51820, 0),
        keepalive_s=25,
        prefixes=[(bytes((10, 9, 0, 2)), 32)],
    )
    (body,) = wg.peer_changes(7, [change])
    assert body.hex() == (
        "01010000"  # WG_CMD_SET_DEVICE, version 1
        "0800010007000000"  # WGDEVICE_A_IFINDEX 7
        "94000880"  # WGDEVICE_A_PEERS, nested
        "90000080"
        f"24000100{KEY.hex()}"  # WGPEER_A_PUBLIC_KEY
        "0800030002000000"  # WGPEER_A_FLAGS: replace allowed IPs
        f"24000200{PSK.hex()}"  # WGPEER_A_PRESHARED_KEY
        "140004000200ca6cc00002070000000000000000"  # WGPEER_A_ENDPOINT: a sockaddr_in
        "0600050019000000"  # WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL 25
        "20000980"  # WGPEER_A_ALLOWEDIPS, nested
        "1c000080"
        "0600010002000000"  # WGALLOWEDIP_A_FAMILY: AF_INET
        "080002000a090002"  # WGALLOWEDIP_A_IPADDR
        "0500030020000000"  # WGALLOWEDIP_A_CIDR_MASK
    )


@little
def test_the_bytes_of_an_interface() -> None:
    body = wg.device_change(7, private=KEY, listen_port=51820, fwmark=0x6E000000, replace_peers=True)
    assert body.hex() == (
        f"010100000800010007000000080005000100000024000300{KEY.hex()}060006006cca0000080007000000006e"
    )
    assert wg.device_query(7).hex() == "000100000800010007000000"
    assert wg.family_query().hex() == "030100000e000200776972656775617264000000"


def test_pyroute2_reads_what_is_built() -> None:
    changes = [
        wg.PeerChange(KEY, endpoint=(bytes(15) + b"\1", 443, 0), prefixes=[(bytes(16), 0), (bytes(4), 0)]),
        wg.PeerChange(PSK, remove=True),
    ]
    (body,) = wg.peer_changes(7, changes)
    message = wgmsg(rt.request(40, rt.NLM_F_ACK, 1, body))
    message.decode()
    first, second = message.get_attr("WGDEVICE_A_PEERS")
    assert first.get_attr("WGPEER_A_PUBLIC_KEY") == b64encode(KEY)
    assert first.get_attr("WGPEER_A_ENDPOINT")["addr"] == "::1"
    assert first.get_attr("WGPEER_A_ENDPOINT")["port"] == 443
    assert [each["addr"] for each in first.get_attr("WGPEER_A_ALLOWEDIPS")] == ["::/0", "0.0.0.0/0"]
    assert second.get_attr("WGPEER_A_FLAGS") == 1


def test_what_pyroute2_builds_is_read() -> None:
    message = wgmsg()
    message["cmd"] = wg.SET_DEVICE
    peer = {
        "attrs": [
            ["WGPEER_A_PUBLIC_KEY", b64encode(KEY).decode()],
            ["WGPEER_A_ENDPOINT", {"addr": "198.51.100.3", "port": 4242}],
            ["WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", 25],
            ["WGPEER_A_RX_BYTES", 1 << 40],
            ["WGPEER_A_TX_BYTES", 7],
        ]
    }
    message["attrs"] = [["WGDEVICE_A_LISTEN_PORT", 51820], ["WGDEVICE_A_FWMARK", 9], ["WGDEVICE_A_PEERS", [peer]]]
    message.encode()
    ((_, _, _, body),) = rt.messages(bytes(message.data))
    state = wg.DeviceState()
    wg.read_device(state, body)
    assert (state.listen_port, state.fwmark) == (51820, 9)
    (found,) = state.peers.values()
    assert (found.public, found.endpoint) == (KEY, (bytes((198, 51, 100, 3)), 4242, 0))
    assert (found.keepalive_s, found.rx_bytes, found.tx_bytes) == (25, 1 << 40, 7)


def test_a_peer_in_several_messages_is_one() -> None:
    prefixes = [(pack("!I", 10 << 24 | number), 32) for number in range(2_000)]
    bodies = list(wg.peer_changes(7, [wg.PeerChange(KEY, endpoint=(bytes(4), 1, 0), prefixes=prefixes)]))
    assert len(bodies) > 3
    assert max(map(len, bodies)) < 2 * wg.REQUEST_BYTES_MAX
    state = wg.DeviceState()
    for body in bodies:
        wg.read_device(state, body)
    assert state.peers[KEY].prefixes == prefixes
    assert state.peers[KEY].endpoint == (bytes(4), 1, 0)  # later messages do not say, and take nothing back


def test_many_peers_take_several_requests() -> None:
    changes = [wg.PeerChange(bytes((number >> 8, number & 255)) * 16, remove=True) for number in range(1_000)]
    bodies = list(wg.peer_changes(7, changes))
    assert len(bodies) > 1
    assert max(map(len, bodies)) <= wg.REQUEST_BYTES_MAX + 64
    state = wg.DeviceState()
    for body in bodies:
        wg.read_device(state, body)
    assert list(state.peers) == [change.public for change in changes]


def test_a_handshake_has_a_time() -> None:
    attribute = pack("=HHqq", 20, 6, 1_700_000_000, 500_000_000)
    peer = pack("=HH", 36, 1) + KEY + attribute
    nested = pack("=HH", len(peer) + 4, 0) + peer
    state = wg.DeviceState()
    wg.read_device(state, bytes(4) + pack("=HH", len(nested) + 4, 8) + nested)
    assert state.peers[KEY].handshake_s == 1_700_000_000.5


def test_a_family_has_a_number() -> None:
    assert wg.read_family(bytes(4) + pack("=HHHxx", 6, 1, 31)) == 31
    assert wg.read_family(bytes(4) + pack("=HHHxx", 5, 1, 31)) == 0
    assert wg.read_family(b"") == 0


@given(st.binary(max_size=400))
def test_anything_is_read_or_left(body: bytes) -> None:
    state = wg.DeviceState()
    wg.read_device(state, body)
    wg.read_family(body)
    assert len(state.peers) <= len(body)


@given(st.data())
def test_a_good_answer_with_bytes_changed(data: st.DataObject) -> None:
    change = wg.PeerChange(KEY, endpoint=(bytes(16), 9, 1), prefixes=[(bytes(4), 8), (bytes(16), 128)])
    body = bytearray(next(wg.peer_changes(7, [change])))
    for _ in range(data.draw(st.integers(1, 6))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    state = wg.DeviceState()
    wg.read_device(state, bytes(body[: data.draw(st.integers(0, len(body)))]))
    for peer in state.peers.values():
        assert len(peer.public) == wg.KEY_BYTES
        assert peer.endpoint is None or len(peer.endpoint[0]) in (4, 16)
        assert all(cidr <= 8 * len(address) for address, cidr in peer.prefixes)
