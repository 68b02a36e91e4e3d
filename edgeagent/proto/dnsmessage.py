"""DNS messages (RFC 1035, 6891): queries read strictly, answers written, answers of other servers looked through.

A name is a tuple of its labels as bytes in lower case, without the root. Only what is looked at is decoded: an answer
of another server is handed on as it came, once its structure was walked to the last byte.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False  # what the typing module would say, and 5 ms
if TYPE_CHECKING:
    from collections.abc import Sequence

    Name = tuple[bytes, ...]
    Resource = tuple[Name, int, int, bytes]  # owner, type, TTL in s, data

HEADER = struct.Struct(">HHHHHH")  # id, flags, and the numbers of questions, answers, authorities, additional ones
_QUESTION = struct.Struct(">HH")  # type, class
_RESOURCE = struct.Struct(">HHIH")  # type, class, TTL, length of the data
_OPTION = struct.Struct(">HH")

A, NS, CNAME, SOA, PTR, TXT, AAAA, OPT, SVCB, HTTPS, IXFR, AXFR, ANY = 1, 2, 5, 6, 12, 16, 28, 41, 64, 65, 251, 252, 255
IN = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, BADVERS = 0, 1, 2, 3, 4, 5, 16
QR, AA, TC, RD, RA, AD, CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010
DO = 0x8000  # in OPT's TTL: DNSSEC is of use (RFC 3225)
_OPCODE, _RCODE = 0x7800, 0x000F
EDE = 15  # RFC 8914
BLOCKED = 15  # of its codes

LABEL_BYTES_MAX = 63
NAME_BYTES_MAX = 255  # on the wire, the root's byte among them
QUERY_BYTES_MAX = 4_096
UDP_BYTES = 512  # without EDNS
EDNS_BYTES = 1_232  # what passes everywhere unfragmented, and what we promise to take
_ADDITIONAL_MAX = 4  # of a query: OPT, and a signature that we ignore
_RESOURCES_MAX = 1_024  # of an answer
_PLAIN = "abcdefghijklmnopqrstuvwxyz0123456789-_"
_POINTER = b"\xc0\x0c"  # to the question's name


class DnsError(Exception):
    """A message is not of its form; `rcode` is what to answer, None for nothing."""

    def __init__(self, rcode: int | None, detail: str) -> None:
        super().__init__(detail)
        self.rcode = rcode


class Query:
    """A question. `question` are its bytes as they came: name, type, class. `bytes_max` bounds an answer by UDP."""

    __slots__ = ("bytes_max", "dnssec_ok", "edns", "flags", "id", "kind", "name", "question", "version")

    def __init__(self, id_: int, flags: int, question: bytes, name: Name, kind: int) -> None:
        self.id = id_
        self.flags = flags & (RD | CD)
        self.question = question
        self.name = name
        self.kind = kind
        self.edns = False
        self.version = 0
        self.dnssec_ok = False
        self.bytes_max = UDP_BYTES


class Scan:
    """What matters of another server's answer. `opt_at` is where the first OPT begins, with `before_opt` additional
    records before it; `addresses` are those that any of its records holds, as 4 or 16 B."""

    __slots__ = ("addresses", "before_opt", "flags", "id", "opt_at", "question")

    def __init__(self, id_: int, flags: int, question: bytes) -> None:
        self.id = id_
        self.flags = flags
        self.question = question
        self.addresses: list[bytes] = []
        self.opt_at: int | None = None
        self.before_opt = 0

    @property
    def rcode(self) -> int:
        return self.flags & _RCODE

    @property
    def truncated(self) -> bool:
        return bool(self.flags & TC)


# Reading


def read_query(data: bytes) -> Query:
    """Raises DnsError. One question of class IN, at most one OPT, nothing behind the end (RFC 1035, 6891, 9619)."""
    if len(data) < HEADER.size or len(data) > QUERY_BYTES_MAX:
        raise DnsError(None, "not of a query's length")
    id_, flags, questions, answers, authorities, additional = HEADER.unpack_from(data)
    if flags & QR:
        raise DnsError(None, "an answer")
    if flags & _OPCODE:
        raise DnsError(NOTIMP, "an operation that is no query")
    if questions != 1 or answers or authorities or flags & TC or additional > _ADDITIONAL_MAX:
        raise DnsError(FORMERR, "one question and nothing else expected")
    name, at = _read_name(data, HEADER.size)
    if at + _QUESTION.size > len(data):
        raise DnsError(FORMERR, "cut short in the question")
    kind, class_ = _QUESTION.unpack_from(data, at)
    at += _QUESTION.size
    query = Query(id_, flags, data[HEADER.size : at], name, kind)
    for _ in range(additional):
        owner, type_, class_of, ttl, start, end = _resource(data, at)
        if type_ == OPT:
            if query.edns or owner + 1 != start - _RESOURCE.size or data[owner]:
                raise DnsError(FORMERR, "one OPT of the root expected")
            _check_options(data, start, end)
            query.edns = True
            query.version = ttl >> 16 & 0xFF
            query.dnssec_ok = bool(ttl & DO)
            query.bytes_max = min(max(class_of, UDP_BYTES), EDNS_BYTES)
        at = end
    if at != len(data):
        raise DnsError(FORMERR, "bytes behind the end")
    if class_ != IN:
        raise DnsError(REFUSED, "a class that is not IN")
    return query


def scan(data: bytes) -> Scan:
    """Walk an answer to its end. Raises DnsError, without a code."""
    if len(data) < HEADER.size:
        raise DnsError(None, "shorter than a header")
    id_, flags, questions, *numbers = HEADER.unpack_from(data)
    if not flags & QR or flags & _OPCODE or questions != 1 or sum(numbers) > _RESOURCES_MAX:
        raise DnsError(None, "no answer to one question")
    at = _skip_name(data, HEADER.size) + _QUESTION.size
    if at > len(data):
        raise DnsError(None, "cut short in the question")
    found = Scan(id_, flags, data[HEADER.size : at])
    if found.truncated:
        return found  # what is there may end anywhere
    for section, number in enumerate(numbers):
        for index in range(number):
            start_of = at
            _, type_, _, _, start, at = _resource(data, at)
            if type_ == OPT and section == 2 and found.opt_at is None:
                found.opt_at, found.before_opt = start_of, index
            elif type_ in (A, AAAA):
                if at - start != (4 if type_ == A else 16):
                    raise DnsError(None, "an address of another length")
                found.addresses.append(data[start:at])
            elif type_ in (SVCB, HTTPS):
                found.addresses += _hints(data, start, at)
    if at != len(data):
        raise DnsError(None, "bytes behind the end")
    return found


def _read_name(data: bytes, at: int) -> tuple[Name, int]:
    """The name of a question: nothing is before it that a pointer could lead to."""
    labels: list[bytes] = []
    size = 1
    while at < len(data):
        length = data[at]
        at += 1
        if not length:
            return tuple(labels), at
        size += length + 1
        if length > LABEL_BYTES_MAX or size > NAME_BYTES_MAX:
            raise DnsError(FORMERR, "a name that is too long, or compressed")
        labels.append(data[at : at + length].lower())
        at += length
    raise DnsError(FORMERR, "cut short in a name")


def _skip_name(data: bytes, at: int) -> int:
    """Where a name ends. A pointer ends it and leads backwards (RFC 1035, section 4.1.4), so none can go in circles."""
    begin, size = at, 1
    while at < len(data):
        length = data[at]
        if length >= 0xC0:
            if at + 2 > len(data):
                break
            target = (length & 0x3F) << 8 | data[at + 1]
            if not HEADER.size <= target < begin:
                raise DnsError(FORMERR, "a pointer that does not lead backwards")
            return at + 2
        at += 1
        if not length:
            return at
        size += length + 1
        if length > LABEL_BYTES_MAX or size > NAME_BYTES_MAX:
            raise DnsError(FORMERR, "a name that is too long")
        at += length
    raise DnsError(FORMERR, "cut short in a name")


def _resource(data: bytes, at: int) -> tuple[int, int, int, int, int, int]:
    """(where its name begins, type, class, TTL, where its data begins and ends)."""
    start = _skip_name(data, at) + _RESOURCE.size
    if start > len(data):
        raise DnsError(FORMERR, "cut short in a record")
    type_, class_, ttl, length = _RESOURCE.unpack_from(data, start - _RESOURCE.size)
    if start + length > len(data):
        raise DnsError(FORMERR, "cut short in a record's data")
    return at, type_, class_, ttl, start, start + length


def _check_options(data: bytes, at: int, end: int) -> None:
    while at < end:
        if at + _OPTION.size > end:
            raise DnsError(FORMERR, "cut short in an option")
        at += _OPTION.size + _OPTION.unpack_from(data, at)[1]
    if at != end:
        raise DnsError(FORMERR, "cut short in an option's data")


def _hints(data: bytes, at: int, end: int) -> list[bytes]:
    """Addresses in the parameters ipv4hint and ipv6hint of an SVCB or HTTPS record (RFC 9460)."""
    found = []
    at = _skip_name(data, at + 2)
    while at + _OPTION.size <= end:
        key, length = _OPTION.unpack_from(data, at)
        at += _OPTION.size
        if at + length > end:
            break
        if key in (4, 6):
            size = 4 if key == 4 else 16
            found += [data[each : each + size] for each in range(at, at + length - size + 1, size)]
        at += length
    if at != end:
        raise DnsError(None, "parameters that do not fit their record")
    return found


# Writing


def write_name(name: Name) -> bytes:
    return b"".join(bytes((len(label),)) + label for label in name) + b"\0"


def to_name(text: str) -> Name:
    """Of a name that was checked to be a domain."""
    return tuple(text.lower().encode("ascii").split(b".")) if text else ()


def to_text(name: Name) -> str:
    """For people: other bytes than letters, digits, '-' and '_' as \\DDD (RFC 1035, section 5.1)."""
    return ".".join("".join(chr(c) if chr(c) in _PLAIN else f"\\{c:03d}" for c in label) for label in name)


def write_answer(
    query: Query,
    rcode: int,
    answers: Sequence[Resource] = (),
    authorities: Sequence[Resource] = (),
    *,
    flags: int = RA,
    bytes_max: int | None = None,
    blocked: bool = False,
) -> bytes:
    """A whole answer; with `bytes_max` at most that long, or empty and marked as truncated."""
    body = b"".join(_write_resource(query, resource) for resource in (*answers, *authorities))
    opt = _write_opt(query, rcode, blocked) if query.edns else b""
    flags |= QR | query.flags | (rcode & _RCODE)
    if bytes_max is not None and HEADER.size + len(query.question) + len(body) + len(opt) > bytes_max:
        return HEADER.pack(query.id, flags | TC, 1, 0, 0, bool(opt)) + query.question + opt
    head = HEADER.pack(query.id, flags, 1, len(answers), len(authorities), bool(opt))
    return head + query.question + body + opt


def write_error(data: bytes, rcode: int) -> bytes:
    """To something that is hardly a query: its header, without its question."""
    id_, flags = HEADER.unpack_from(data)[:2]
    return HEADER.pack(id_, QR | flags & (_OPCODE | RD) | rcode, 0, 0, 0, 0)


def write_query(id_: int, query: Query, question: bytes) -> bytes:
    """`query` for another server, under an id and in a spelling of our own."""
    opt = b"\0" + _RESOURCE.pack(OPT, EDNS_BYTES, DO if query.dnssec_ok else 0, 0)
    return HEADER.pack(id_, RD | query.flags & CD, 1, 0, 0, 1) + question + opt


def rewrite(query: Query, data: bytes, found: Scan, bytes_max: int | None) -> bytes:
    """Another server's answer for the client: its id and spelling, an OPT of our own where it has asked for one.

    What is additional and behind the other's OPT is left out: nothing lies there but signatures between servers.
    """
    opt = _write_opt(query, found.rcode, False) if query.edns else b""
    _, _, _, answers, authorities, additional = HEADER.unpack_from(data)
    end = len(data)
    if found.opt_at is not None:
        end, additional = found.opt_at, found.before_opt
    flags = (found.flags & ~(AA | TC | RD | AD | CD)) | query.flags | RA  # AD: who has verified that?
    if bytes_max is not None and end + len(opt) > bytes_max:
        return HEADER.pack(query.id, flags | TC, 1, 0, 0, bool(opt)) + query.question + opt
    head = HEADER.pack(query.id, flags, 1, answers, authorities, additional + bool(opt))
    return head + query.question + data[HEADER.size + len(query.question) : end] + opt


def _write_resource(query: Query, resource: Resource) -> bytes:
    name, type_, ttl, data = resource
    owner = _POINTER if name == query.name and name else write_name(name)
    return owner + _RESOURCE.pack(type_, IN, ttl, len(data)) + data


def _write_opt(query: Query, rcode: int, blocked: bool) -> bytes:
    option = _OPTION.pack(EDE, 2) + BLOCKED.to_bytes(2, "big") if blocked else b""
    return (
        b"\0" + _RESOURCE.pack(OPT, EDNS_BYTES, rcode >> 4 << 24 | (DO if query.dnssec_ok else 0), len(option)) + option
    )
