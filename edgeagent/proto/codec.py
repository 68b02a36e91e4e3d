"""The subset of CBOR (RFC 8949) that the control plane speaks: deterministic, and checked before anything is allocated.

A walker without recursion reads the raw bytes once, and refuses whatever is not core-deterministic (RFC 8949, section
4.2.1), nests too deep, or claims a length that the message does not have. Only then does cbor2 build the value.
"""

from __future__ import annotations

from typing import Any

import cbor2

from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.refusals import ControlDrop, ControlError

MESSAGE_BYTES_MAX = 65_536
DEVICE_MESSAGE_BYTES_MAX = 8_192
DEPTH_MAX = 8
ARRAY_ITEMS_MAX = 4_096
MAP_ITEMS_MAX = 1_024
ITEMS_MAX = 16_384
KEY_BYTES_MAX = 23

_UINT, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_MINIMAL = (24, 1 << 8, 1 << 16, 1 << 32)  # the smallest argument that needs 1, 2, 4, 8 bytes
_SIMPLE_VALUES = (20, 21, 22)  # false, true, null


def encode(value: Any) -> bytes:
    """Core-deterministic CBOR of None, bool, int, bytes, str, list or tuple, and dict.

    Keys are text of at most 23 bytes or unsigned integers: for those the length-first order of RFC 7049, which is what
    cbor2 knows, and the bytewise order of RFC 8949 are one. Raises LocalProtocolError for anything else.
    """
    try:
        data: bytes = cbor2.dumps(value, canonical=True)
        scan(data, len(data))
    except (cbor2.CBOREncodeError, ControlError) as error:
        raise LocalProtocolError(f"cannot be encoded: {error}") from error
    return data


def decode(data: bytes, *, max_bytes: int = MESSAGE_BYTES_MAX) -> Any:
    """The value of one CBOR item. Raises ControlError: TOO_LONG, or NOT_CBOR with the offset of the fault."""
    scan(data, max_bytes)
    return cbor2.loads(data)


def scan(data: bytes, max_bytes: int) -> None:
    """Check that `data` is exactly one item of the subset; time and memory are linear in its length."""
    size = len(data)
    if size > max_bytes:
        raise ControlError(ControlDrop.TOO_LONG, f"message: at most {max_bytes} bytes, got {size}")
    # One frame a container that is still open: [items to come, is a map, key seen last, its major type, next is a key]
    open_containers: list[list[Any]] = []
    position = 0
    items = 0
    while True:
        start = position
        items += 1
        if items > ITEMS_MAX:
            raise _fault(start, f"more than {ITEMS_MAX} items")
        major, argument, position = _head(data, position, size)
        if major in (_BYTES, _TEXT):
            if argument > size - position:
                raise _fault(start, f"a string of {argument} bytes where {size - position} are left")
            position += argument
            if major == _TEXT:
                _check_text(data[position - argument : position], start)
        frame = open_containers[-1] if open_containers else None
        if frame is not None:
            frame[0] -= 1
            if frame[1]:
                if frame[4]:
                    _check_key(data[start:position], major, argument, frame, start)
                frame[4] = not frame[4]
        if major in (_ARRAY, _MAP):
            _check_container(major, argument, size - position, len(open_containers), start)
            open_containers.append([argument * (2 if major == _MAP else 1), major == _MAP, b"", -1, major == _MAP])
        while open_containers and open_containers[-1][0] == 0:
            open_containers.pop()
        if not open_containers:
            break
    if position != size:
        raise _fault(position, f"{size - position} bytes after the end")


def _head(data: bytes, position: int, size: int) -> tuple[int, int, int]:
    """Major type, argument and the position behind the head (RFC 8949, section 3)."""
    if position >= size:
        raise _fault(position, "cut short")
    major, info = data[position] >> 5, data[position] & 31
    if major == _TAG:
        raise _fault(position, "a tag")
    if major == _SIMPLE:
        if info not in _SIMPLE_VALUES:
            raise _fault(position, "a float, an undefined or a simple value")
        return major, info, position + 1
    if info < 24:
        return major, info, position + 1
    if info > 27:
        raise _fault(position, "an indefinite or reserved length")
    width = 1 << (info - 24)
    end = position + 1 + width
    if end > size:
        raise _fault(position, "cut short")
    argument = int.from_bytes(data[position + 1 : end], "big")
    if argument < _MINIMAL[info - 24]:
        raise _fault(position, f"{argument} is not in its shortest form")
    return major, argument, end


def _check_text(text: bytes, start: int) -> None:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        raise _fault(start, "text that is not UTF-8") from None


def _check_key(key: bytes, major: int, argument: int, frame: list[Any], start: int) -> None:
    if major not in (_UINT, _TEXT) or (major == _TEXT and argument > KEY_BYTES_MAX):
        raise _fault(start, f"a key that is neither text of at most {KEY_BYTES_MAX} bytes nor an unsigned integer")
    if frame[3] not in (-1, major):
        raise _fault(start, "keys of two kinds in one map")
    if key <= frame[2]:
        raise _fault(start, "the same key twice" if key == frame[2] else "keys out of order")
    frame[2], frame[3] = key, major


def _check_container(major: int, count: int, left: int, depth: int, start: int) -> None:
    if depth >= DEPTH_MAX:
        raise _fault(start, f"deeper than {DEPTH_MAX}")
    count_max = MAP_ITEMS_MAX if major == _MAP else ARRAY_ITEMS_MAX
    if count > count_max or count * (2 if major == _MAP else 1) > left:
        raise _fault(start, f"{count} items; at most {count_max}, and {left} bytes are left")


def _fault(position: int, what: str) -> ControlError:
    return ControlError(ControlDrop.NOT_CBOR, f"message: byte {position}: {what}")
