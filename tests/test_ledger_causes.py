"""The cause of every datagram, and batches whose sum is what its parts are."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto import disco, stun
from edgeagent.proto.causes import Carried, Direction, book_batch, cause_of
from edgeagent.proto.ledger import IPV4_UDP, IPV6_UDP, Cause, Ledger
from edgeagent.proto.relay_frames import (
    CHALLENGED,
    DATAGRAM_HEAD,
    HELLO,
    OWN_CHANNEL,
    PROBE,
    WELCOMED,
    data_datagram,
)

KEY = bytes(range(32))
INITIATION, RESPONSE, COOKIE = (bytes((kind, 0, 0, 0)) + bytes(size - 4) for kind, size in ((1, 148), (2, 92), (3, 64)))
KEEPALIVE = b"\4\0\0\0" + bytes(28)
DATA = b"\4\0\0\0" + bytes(44)
PING = disco.MAGIC + bytes(100)
STUN = stun.write_request(bytes(12))
STUN_ANSWER = bytes.fromhex("0101000c2112a442") + bytes(24)
JUNK = b"\x80" + bytes(50)

PLAIN = [
    (INITIATION, Cause.REKEY),
    (RESPONSE, Cause.REKEY),
    (COOKIE, Cause.REKEY),
    (KEEPALIVE, Cause.KEEPALIVE),
    (DATA, Cause.PAYLOAD),
    (PING, Cause.PROBE),
    (STUN, Cause.PROBE),
    (STUN_ANSWER, Cause.PROBE),
    (JUNK, Cause.PAYLOAD),
    (b"", Cause.PAYLOAD),
    (b"\4", Cause.PAYLOAD),
    (b"\1\0\0", Cause.PAYLOAD),
]


def booked(datagrams: list[bytes], *, ipv6: bool = False, direction: Direction = Direction.SENT) -> dict[Cause, int]:
    ledger = Ledger()
    book_batch(ledger, 1.0, "eth0", direction, datagrams, ipv6=ipv6)
    lines = ledger.lines(2.0)
    way = 0 if direction is Direction.SENT else 1
    assert all(line.uplink == "eth0" and not line.since_start[1 - way] for line in lines)
    return {line.cause: line.since_start[way] for line in lines}


@pytest.mark.parametrize(("datagram", "cause"), PLAIN)
def test_a_datagram_has_a_cause(datagram: bytes, cause: Cause) -> None:
    assert cause_of(datagram) is cause
    assert booked([datagram]) == {cause: len(datagram) + IPV4_UDP}
    assert booked([datagram], ipv6=True, direction=Direction.RECEIVED) == {cause: len(datagram) + IPV6_UDP}


@pytest.mark.parametrize(("packet", "cause"), [row for row in PLAIN if row[0]])
@pytest.mark.parametrize(("channel", "key"), [(0, KEY), (2, b""), (0xFFFF, b"")])
def test_a_relay_is_paid_for_its_head_and_the_packet_for_the_rest(
    packet: bytes, cause: Cause, channel: int, key: bytes
) -> None:
    datagram = data_datagram(7, channel, key + packet)
    assert booked([datagram]) == {Cause.RELAY: 8 + len(key), cause: len(packet) + IPV4_UDP}


@pytest.mark.parametrize(
    "datagram",
    [
        DATAGRAM_HEAD.pack(HELLO, 0, 0, 0) + bytes(32),
        DATAGRAM_HEAD.pack(CHALLENGED, 0, 0, 0) + bytes(32),
        DATAGRAM_HEAD.pack(WELCOMED, 0, 0, 9) + bytes(24),
        data_datagram(7, OWN_CHANNEL, bytes((PROBE,)) + bytes(8)),
        data_datagram(7, OWN_CHANNEL, DATA),  # nobody else's
        data_datagram(7, 5, b""),
        data_datagram(7, 0, KEY),
        data_datagram(7, 0, KEY[:9]),
        b"\xe5",
        b"\xef",
    ],
)
def test_words_with_a_relay_are_its_own(datagram: bytes) -> None:
    assert booked([datagram]) == {Cause.RELAY: len(datagram) + IPV4_UDP}


def test_a_relay_in_a_relay_is_a_packet_as_any() -> None:
    inner = data_datagram(1, 9, DATA)
    assert booked([data_datagram(7, 5, inner)]) == {Cause.RELAY: 8 + len(inner) + IPV4_UDP}


def twin(datagram: bytes, headers: int) -> dict[Cause, int]:
    """The slow one: by the table of the module."""
    head = 0
    if datagram[:1] == b"\xe5" and len(datagram) > 8 and datagram[2:4] != b"\0\1":
        head = 40 if datagram[2:4] == b"\0\0" else 8
        head = head if len(datagram) > head else 0
    inner = datagram[head:]
    if inner[:1] == b"\4" and len(inner) > 32:
        cause = Cause.PAYLOAD
    elif inner[1:4] == b"\0\0\0" and inner[0] in (1, 2, 3, 4):
        cause = Cause.KEEPALIVE if inner[0] == 4 else Cause.REKEY
    elif inner[:4] == disco.MAGIC or (len(inner) >= 20 and inner[0] < 64 and inner[4:8] == b"\x21\x12\xa4\x42"):
        cause = Cause.PROBE
    else:
        cause = Cause.RELAY if 0xE0 <= (inner or b"\0")[0] <= 0xEF else Cause.PAYLOAD
    sizes = Counter({cause: len(inner) + headers})
    sizes[Cause.RELAY] += head
    return sizes


HEADS = st.sampled_from([b"\1\0\0\0", b"\3\0\0\0", b"\4\0\0\0", b"\4", disco.MAGIC, STUN[:20], b"\xe0", b""])
RELAYED = st.sampled_from([b"", b"", b"\xe5\0\0\0\0\0\0\0" + KEY, b"\xe5\0\0\1" + bytes(4), b"\xe5\0\0\2" + bytes(4)])
DATAGRAMS = st.lists(st.builds(lambda relay, head, rest: relay + head + rest, RELAYED, HEADS, st.binary(max_size=60)))


@given(DATAGRAMS, st.booleans(), st.sampled_from(Direction))
def test_a_batch_is_the_sum_of_its_datagrams(datagrams: list[bytes], ipv6: bool, direction: Direction) -> None:
    expected: Counter[Cause] = Counter()
    for datagram in datagrams:
        expected.update(twin(datagram, IPV6_UDP if ipv6 else IPV4_UDP))
    assert booked(datagrams, ipv6=ipv6, direction=direction) == {cause: n for cause, n in expected.items() if n}


def test_what_a_stream_carried_is_taken_once() -> None:
    carried = Carried()
    for packet in (DATA, KEEPALIVE, DATA):
        carried.add(Direction.SENT, b"head" + packet, 4)
    carried.add(Direction.RECEIVED, INITIATION)
    sent = carried.take(Direction.SENT)
    assert (sent[Cause.PAYLOAD], sent[Cause.KEEPALIVE], sum(sent)) == (96, 32, 128)
    assert sum(carried.take(Direction.SENT)) == 0
    assert carried.take(Direction.RECEIVED)[Cause.REKEY] == 148
