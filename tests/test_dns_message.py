"""DNS messages: what is read and refused by RFC 1035 and 6891, what is written byte by byte, and noise."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto import dnsmessage as dm

NAME = (b"gw-2", b"lab")
QUESTION = dm.write_name(NAME) + struct.pack(">HH", dm.A, dm.IN)
OPT = b"\0" + struct.pack(">HHIH", dm.OPT, 4096, 0, 0)


def query(
    question: bytes = QUESTION, flags: int = dm.RD, counts: tuple[int, int, int, int] = (1, 0, 0, 0), rest: bytes = b""
) -> bytes:
    return dm.HEADER.pack(0x1234, flags, *counts) + question + rest


def reply(
    *records: bytes, question: bytes = QUESTION, additional: int = 0, flags: int = dm.QR | dm.RD | dm.RA
) -> bytes:
    counts = (1, len(records) - additional, 0, additional)
    return dm.HEADER.pack(0x1234, flags, *counts) + question + b"".join(records)


def record(type_: int, data: bytes, owner: bytes = b"\xc0\x0c", ttl: int = 60) -> bytes:
    return owner + struct.pack(">HHIH", type_, dm.IN, ttl, len(data)) + data


def test_a_query_is_read() -> None:
    found = dm.read_query(query(dm.write_name((b"GW-2", b"Lab")) + struct.pack(">HH", dm.AAAA, dm.IN)))
    assert (found.name, found.kind, found.id, found.flags) == (NAME, dm.AAAA, 0x1234, dm.RD)
    assert found.question.startswith(b"\x04GW-2\x03Lab\0")  # as it came: the asker compares
    assert (found.edns, found.bytes_max) == (False, 512)


@pytest.mark.parametrize(("offered", "used"), [(0, 512), (512, 512), (1_232, 1_232), (1_233, 1_232), (65_535, 1_232)])
def test_the_size_that_edns_offers_is_held_within_bounds(offered: int, used: int) -> None:
    opt = b"\0" + struct.pack(">HHIH", dm.OPT, offered, dm.DO, 0)
    found = dm.read_query(query(counts=(1, 0, 0, 1), rest=opt))
    assert (found.edns, found.dnssec_ok, found.bytes_max) == (True, True, used)


LONG = b"".join(b"\x3f" + b"a" * 63 for _ in range(4))  # 256 bytes


@pytest.mark.parametrize(
    ("data", "rcode"),
    [
        (b"", None),
        (b"\0" * 11, None),
        (query() + b"\0" * 4_096, None),
        (query(flags=dm.QR), None),  # an answer: replying to it would never end
        (query(flags=1 << 11), dm.NOTIMP),  # IQUERY
        (query(flags=5 << 11), dm.NOTIMP),  # UPDATE
        (query(flags=dm.TC), dm.FORMERR),
        (query(b"", counts=(0, 0, 0, 0)), dm.FORMERR),  # RFC 9619 for more; none asks nothing
        (query(QUESTION * 2, counts=(2, 0, 0, 0)), dm.FORMERR),
        (query(counts=(1, 1, 0, 0), rest=record(dm.A, bytes(4))), dm.FORMERR),
        (query(counts=(1, 0, 1, 0), rest=record(dm.A, bytes(4))), dm.FORMERR),
        (query(counts=(1, 0, 0, 5), rest=OPT * 5), dm.FORMERR),
        (query(QUESTION[:-1]), dm.FORMERR),
        (query(QUESTION[:3]), dm.FORMERR),
        (query(rest=b"\0"), dm.FORMERR),  # bytes behind the end
        (query(b"\xc0\x0c" + QUESTION[-4:]), dm.FORMERR),  # a pointer to itself
        (query(b"\x40" + b"a" * 64 + b"\0" + QUESTION[-4:]), dm.FORMERR),  # RFC 6891 has taken that type of label back
        (query(b"\x80" + QUESTION), dm.FORMERR),
        (query(LONG + b"\0" + QUESTION[-4:]), dm.FORMERR),
        (query(counts=(1, 0, 0, 2), rest=OPT * 2), dm.FORMERR),
        (query(counts=(1, 0, 0, 1), rest=b"\1a" + OPT), dm.FORMERR),  # not of the root
        (query(counts=(1, 0, 0, 1), rest=OPT[:-1]), dm.FORMERR),
        (query(counts=(1, 0, 0, 1), rest=OPT[:-1] + b"\3\0\1\0"), dm.FORMERR),  # an option that is cut short
        (query(counts=(1, 0, 0, 1), rest=OPT[:-1] + b"\4\0\1\0\1"), dm.FORMERR),
        (query(QUESTION[:-1] + b"\3"), dm.REFUSED),  # class CHAOS
    ],
)
def test_what_is_no_query_is_refused(data: bytes, rcode: int | None) -> None:
    with pytest.raises(dm.DnsError) as refused:
        dm.read_query(data)
    assert refused.value.rcode == rcode


def test_the_longest_name_is_read() -> None:
    name = (b"a" * 63, b"b" * 63, b"c" * 63, b"d" * 61)
    assert len(dm.write_name(name)) == 255
    assert dm.read_query(query(dm.write_name(name) + QUESTION[-4:])).name == name
    with pytest.raises(dm.DnsError):
        dm.read_query(query(dm.write_name((*name[:3], b"d" * 62)) + QUESTION[-4:]))


def test_answers_are_written_byte_by_byte() -> None:
    asked = dm.read_query(query(counts=(1, 0, 0, 1), rest=OPT))
    data = dm.write_answer(asked, dm.NOERROR, [(NAME, dm.A, 60, bytes((100, 64, 0, 7)))], flags=dm.RA | dm.AA)
    assert data.hex() == (
        "1234858000010001000000010467772d32036c61620000010001"
        "c00c000100010000003c000464400007"  # the name by a pointer
        "00002904d0000000000000"  # OPT: we take 1232 bytes
    )
    plain = dm.write_answer(dm.read_query(query()), dm.NXDOMAIN)
    assert plain.hex() == "1234818300010000000000000467772d32036c61620000010001"
    assert dm.write_error(query(flags=5 << 11 | dm.RD), dm.NOTIMP).hex() == "1234a9040000000000000000"


def test_what_is_too_long_for_udp_is_empty_and_says_so() -> None:
    asked = dm.read_query(query(counts=(1, 0, 0, 1), rest=OPT))
    texts = [(NAME, dm.TXT, 60, b"\xff" + bytes(255))] * 6
    whole = dm.write_answer(asked, dm.NOERROR, texts, bytes_max=65_535)
    cut = dm.write_answer(asked, dm.NOERROR, texts, bytes_max=1_232)
    assert len(whole) > 1_232 and not dm.HEADER.unpack_from(whole)[1] & dm.TC
    assert dm.HEADER.unpack_from(cut)[1:] == (dm.QR | dm.RD | dm.RA | dm.TC, 1, 0, 0, 1)
    assert cut.endswith(bytes.fromhex("00002904d0000000000000"))


def test_an_answer_is_walked_and_handed_on() -> None:
    theirs = b"\0" + struct.pack(">HHIH", dm.OPT, 4096, 0, 12) + b"\0\x0a\0\x08cookies!"
    data = reply(
        record(dm.CNAME, b"\3www\xc0\x0c"),
        record(dm.A, bytes((192, 0, 2, 7)), owner=b"\xc0\x26"),
        record(dm.AAAA, bytes(16), owner=b"\xc0\x26"),
        theirs,
        additional=1,
        flags=dm.QR | dm.RD | dm.RA | dm.AA | dm.AD,
    )
    found = dm.scan(data)
    assert found.addresses == [bytes((192, 0, 2, 7)), bytes(16)]
    assert (found.rcode, found.opt_at, found.before_opt) == (0, len(data) - len(theirs), 0)
    asked = dm.read_query(query())
    asked.id, asked.question = 0x9999, asked.question.upper()[:-4] + asked.question[-4:]
    plain = dm.rewrite(asked, data, found, None)
    assert plain[:2] == b"\x99\x99" and plain[12 : 12 + len(asked.question)] == asked.question
    assert plain[12 + len(asked.question) :] == data[12 + len(asked.question) : found.opt_at]
    assert dm.HEADER.unpack_from(plain)[1:] == (dm.QR | dm.RD | dm.RA, 1, 3, 0, 0)  # AA and AD are not ours to say
    asked.edns = True
    assert dm.scan(dm.rewrite(asked, data, found, None)).before_opt == 0
    assert dm.scan(dm.rewrite(asked, data, found, 40)).truncated


def test_addresses_are_found_in_the_hints_of_https_records() -> None:
    svcb = (
        struct.pack(">H", 1) + b"\0" + b"\0\4\0\x08" + bytes((10, 0, 0, 1, 10, 0, 0, 2)) + b"\0\6\0\x10" + b"\xfd" * 16
    )
    assert dm.scan(reply(record(dm.HTTPS, svcb))).addresses == [b"\x0a\0\0\1", b"\x0a\0\0\2", b"\xfd" * 16]
    with pytest.raises(dm.DnsError):
        dm.scan(reply(record(dm.SVCB, svcb[:-1])))


@pytest.mark.parametrize(
    "data",
    [
        query(),  # no answer
        reply(record(dm.A, bytes(3))),
        reply(record(dm.AAAA, bytes(4))),
        reply(record(dm.A, bytes(4))) + b"\0",
        reply(record(dm.A, bytes(4)))[:-1],
        reply(record(dm.A, bytes(4), owner=b"\xc0\xff")),  # forwards
        reply(record(dm.A, bytes(4), owner=b"\xc0\x1e")),  # to itself
        reply(record(dm.A, bytes(4), owner=b"\xc0\x04")),  # into the header
        reply(record(dm.A, bytes(4), owner=b"\xc0")),
        dm.HEADER.pack(1, dm.QR, 1, 60_000, 0, 0) + QUESTION,
    ],
)
def test_a_broken_answer_is_refused(data: bytes) -> None:
    with pytest.raises(dm.DnsError):
        dm.scan(data)


@given(st.binary(max_size=200))
def test_whatever_comes_is_read_or_refused(data: bytes) -> None:
    for read in (dm.read_query, dm.scan):
        with suppress(dm.DnsError):
            read(data)


@given(st.data())
def test_whatever_is_changed_in_a_message_is_read_or_refused(data: st.DataObject) -> None:
    svcb = struct.pack(">H", 1) + b"\0" + b"\0\4\0\4" + bytes(4)
    whole = reply(record(dm.CNAME, b"\3www\xc0\x0c"), record(dm.A, bytes(4)), record(dm.HTTPS, svcb), OPT, additional=1)
    message = bytearray(data.draw(st.sampled_from([whole, query(counts=(1, 0, 0, 1), rest=OPT)])))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(message)))
    asked = dm.read_query(query())
    for cut in (bytes(message), bytes(message[:end])):
        with suppress(dm.DnsError):
            dm.read_query(cut)
        try:
            found = dm.scan(cut)
        except dm.DnsError:
            continue
        if found.question == asked.question and not found.truncated:
            again = dm.scan(dm.rewrite(asked, cut, found, None))
            assert again.addresses == found.addresses[: len(again.addresses)] and again.opt_at is None


LABELS = st.lists(st.binary(min_size=1, max_size=63).map(bytes.lower), max_size=3)


@given(LABELS, st.integers(0, 65_535))
def test_names_come_back_as_they_were_written(labels: list[bytes], kind: int) -> None:
    found = dm.read_query(query(dm.write_name(tuple(labels)) + struct.pack(">HH", kind, dm.IN)))
    assert (found.name, found.kind) == (tuple(labels), kind)


def test_names_for_people() -> None:
    assert dm.to_text((b"a.b", b"_tcp", b"\xff")) == "a\\046b._tcp.\\255"
    assert dm.to_name("Gw-2.LAB") == NAME and dm.to_name("") == ()
