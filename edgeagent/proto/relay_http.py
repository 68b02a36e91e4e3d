"""The little HTTP/1.1 (RFC 9112) that brings a stream to a relay: CONNECT through a proxy, and the upgrade."""

from __future__ import annotations

import re
from base64 import b64encode

from edgeagent.proto.errors import LocalProtocolError, RemoteProtocolError

RELAY_PATH = "/edgemesh/relay"
UPGRADE = "edgemesh-relay/1"
PROBE_PATH = "/generate_204"  # answered with 204 by a relay, and by something else where a portal catches requests
PROBE_HEADER = "x-edgemesh-probe"  # letters and digits that come back as "answer <them>" in x-edgemesh-answer
ANSWER_HEADER = "x-edgemesh-answer"
HEAD_BYTES_MAX = 8_192
HEADERS_MAX = 64

_STATUS_LINE = re.compile(r"HTTP/1\.[01] ([1-5][0-9]{2})(?: [\x20-\x7e\x80-\xff]*)?")
# One way to match and no other: blanks around the value, as parts of the pattern, cost cubic time on a hostile head
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}):([\x20-\x7e\t\x80-\xff]*)")
_HOST = re.compile(r"[A-Za-z0-9.:\[\]-]{1,262}")


class HttpError(RemoteProtocolError):
    """Not the HTTP that it should be; the text says what."""


class Response:
    """Status and headers (names in lower case) of an answer, and the bytes behind them."""

    __slots__ = ("headers", "rest", "status")

    def __init__(self, status: int, headers: dict[str, str], rest: bytes) -> None:
        self.status = status
        self.headers = headers
        self.rest = rest

    @property
    def upgraded(self) -> bool:
        return self.status == 101 and self.headers.get("upgrade", "").lower() == UPGRADE


class HeadReader:
    """`feed` it bytes until it gives the first line, the headers, and what came behind them."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> tuple[str, dict[str, str], bytes] | None:
        """None while the head is not whole. Raises HttpError."""
        self._buffer += data
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not end:
            if len(self._buffer) > HEAD_BYTES_MAX:
                raise HttpError(f"http: a head of more than {HEAD_BYTES_MAX} bytes")
            return None
        if len(head) > HEAD_BYTES_MAX:
            raise HttpError(f"http: a head of more than {HEAD_BYTES_MAX} bytes")
        self._buffer = b""
        first, *lines = head.decode("latin-1").split("\r\n")
        if len(lines) > HEADERS_MAX:
            raise HttpError(f"http: more than {HEADERS_MAX} headers")
        headers: dict[str, str] = {}
        for line in lines:
            match = _HEADER.fullmatch(line)
            if match is None:
                raise HttpError("http: a header that is none")
            headers.setdefault(match[1].lower(), match[2].strip(" \t"))
        return first, headers, rest


class ResponseReader:
    """`feed` it bytes until it gives a Response."""

    __slots__ = ("_head",)

    def __init__(self) -> None:
        self._head = HeadReader()

    def feed(self, data: bytes) -> Response | None:
        """None while the head is not whole. Raises HttpError."""
        read = self._head.feed(data)
        if read is None:
            return None
        first, headers, rest = read
        match = _STATUS_LINE.fullmatch(first)
        if match is None:
            raise HttpError("http: a status line that is none")
        return Response(int(match[1]), headers, rest)


def upgrade_request(host: str) -> bytes:
    """To the relay, inside TLS."""
    return _request(f"GET {RELAY_PATH}", host, f"Connection: Upgrade\r\nUpgrade: {UPGRADE}\r\n")


def connect_request(host: str, port: int, user: str = "", password: str = "") -> bytes:
    """To an HTTP proxy (RFC 9110, section 9.3.6), with credentials when there is a user. IPv6 without brackets."""
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    more = ""
    if user:
        more = f"Proxy-Authorization: Basic {b64encode(f'{user}:{password}'.encode()).decode('ascii')}\r\n"
    return _request(f"CONNECT {target}", target, more)


def probe_request(host: str, nonce: str) -> bytes:
    """In the clear: whether requests are caught on the way. `nonce`: letters and digits."""
    return _request(f"GET {PROBE_PATH}", host, f"{PROBE_HEADER}: {nonce}\r\nConnection: close\r\n")


def is_probe_answer(response: Response, nonce: str) -> bool:
    """Whether a relay answered itself, and no portal in its name."""
    return response.status == 204 and response.headers.get(ANSWER_HEADER) == f"answer {nonce}"


def _request(line: str, host: str, more: str) -> bytes:
    if not _HOST.fullmatch(host):
        raise LocalProtocolError("http: a host that is none")
    return f"{line} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode("latin-1")
