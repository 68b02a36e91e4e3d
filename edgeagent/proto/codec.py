"""The subset of CBOR (RFC 8949) that the control plane speaks: deterministic, and checked as it is read.

A walker without recursion reads the bytes once, and refuses whatever is not core-deterministic (RFC 8949, section
4.2.1), nests too deep, or claims a length that the message does not have. A general library would have to be kept from
everything else that it can do, and brings what a device never needs: 0.8 MiB.
"""

from __future__ import annotations

from typing import Any

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
_SIMPLE_VALUES = {20: False, 21: True, 22: None}


def encode(value: Any) -> bytes:
    """Core-deterministic CBOR of None, bool, int, bytes, str, list or tuple, and dict.

    Keys are text of at most 23 bytes or unsigned integers. Raises LocalProtocolError for anything else.
    """
    return encode_and_read(value)[0]


def encode_and_read(value: Any) -> tuple[bytes, Any]:
    """As `encode`, and what a reader will get of it."""
    out = bytearray()
    try:
        _write(out, value, 0)
        data = bytes(out)
        return data, decode(data, max_bytes=len(data))  # by the reader's own rules
    except (UnicodeEncodeError, ControlError) as error:
        raise LocalProtocolError(f"cannot be encoded: {error}") from error


def encode_strings(*strings: bytes) -> bytes:
    """An array of byte strings: as `encode`, which has nothing to refuse there but more than ARRAY_ITEMS_MAX."""
    out = bytearray()
    _write(out, strings, 0)
    return bytes(out)


def decode(data: bytes, *, max_bytes: int = MESSAGE_BYTES_MAX) -> Any:
    """The value of one CBOR item; time and memory are linear in its length. Raises ControlError: TOO_LONG, or NOT_CBOR
    with the offset of the fault."""
    size = len(data)
    if size > max_bytes:
        raise ControlError(ControlDrop.TOO_LONG, f"message: at most {max_bytes} bytes, got {size}")
    whole: list[Any] = []
    # One frame a container that is still open: [items to come, key seen last as bytes, its major type, what holds the
    # items, the key of the next item (None: the next item is a key)]
    frames: list[list[Any]] = []
    position = 0
    items = 0
    while True:
        start = position
        items += 1
        if items > ITEMS_MAX:
            raise _fault(start, f"more than {ITEMS_MAX} items")
        major, argument, position = _head(data, position, size)
        value: Any = argument
        if major in (_BYTES, _TEXT):
            if argument > size - position:
                raise _fault(start, f"a string of {argument} bytes where {size - position} are left")
            value = data[position : position + argument]
            position += argument
            if major == _TEXT:
                value = _to_text(value, start)
        elif major == _NEGATIVE:
            value = -1 - argument
        elif major == _SIMPLE:
            value = _SIMPLE_VALUES[argument]
        elif major != _UINT:
            value = [] if major == _ARRAY else {}
        if frames:
            frame = frames[-1]
            frame[0] -= 1
            holder = frame[3]
            if type(holder) is list:
                holder.append(value)
            elif frame[4] is None:
                _check_key(data[start:position], major, argument, frame, start)
                frame[4] = value
            else:
                holder[frame[4]] = value
                frame[4] = None
        else:
            whole.append(value)
        if major in (_ARRAY, _MAP):
            _check_container(major, argument, size - position, len(frames), start)
            frames.append([argument * (2 if major == _MAP else 1), b"", -1, value, None])
        while frames and frames[-1][0] == 0:
            frames.pop()
        if not frames:
            break
    if position != size:
        raise _fault(position, f"{size - position} bytes after the end")
    return whole[0]


def _write(out: bytearray, value: Any, depth: int) -> None:
    if value is None or value is True or value is False:
        out.append(0xF6 if value is None else 0xF5 if value else 0xF4)
    elif isinstance(value, int):
        _write_head(out, _UINT if value >= 0 else _NEGATIVE, value if value >= 0 else -1 - value)
    elif isinstance(value, (bytes, bytearray)):
        _write_head(out, _BYTES, len(value))
        out += value
    elif isinstance(value, str):
        text = value.encode()
        _write_head(out, _TEXT, len(text))
        out += text
    elif isinstance(value, (list, tuple, dict)):
        if depth >= DEPTH_MAX:
            raise LocalProtocolError(f"cannot be encoded: deeper than {DEPTH_MAX}")
        _write_head(out, _MAP if isinstance(value, dict) else _ARRAY, len(value))
        for item in _pairs(value) if isinstance(value, dict) else value:
            _write(out, item, depth + 1)
    else:
        raise LocalProtocolError(f"cannot be encoded: {type(value).__name__}")


def _pairs(value: dict[Any, Any]) -> list[Any]:
    """Keys and items in turn, the keys in the order of their encodings: numbers by size, text by length before all."""
    keys = list(value)
    if all(isinstance(key, str) for key in keys):
        keys.sort(key=lambda key: (len(encoded := key.encode()), encoded))
    elif all(isinstance(key, int) for key in keys):
        keys.sort()
    return [each for key in keys for each in (key, value[key])]


def _write_head(out: bytearray, major: int, argument: int) -> None:
    if argument < 24:
        out.append(major << 5 | argument)
        return
    for info, width in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if argument < 1 << (8 * width):
            out.append(major << 5 | info)
            out += argument.to_bytes(width, "big")
            return
    raise LocalProtocolError("cannot be encoded: an integer of more than 64 bits")


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


def _to_text(text: bytes, start: int) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        raise _fault(start, "text that is not UTF-8") from None


def _check_key(key: bytes, major: int, argument: int, frame: list[Any], start: int) -> None:
    if major not in (_UINT, _TEXT) or (major == _TEXT and argument > KEY_BYTES_MAX):
        raise _fault(start, f"a key that is neither text of at most {KEY_BYTES_MAX} bytes nor an unsigned integer")
    if frame[2] not in (-1, major):
        raise _fault(start, "keys of two kinds in one map")
    if key <= frame[1]:
        raise _fault(start, "the same key twice" if key == frame[1] else "keys out of order")
    frame[1], frame[2] = key, major


def _check_container(major: int, count: int, left: int, depth: int, start: int) -> None:
    if depth >= DEPTH_MAX:
        raise _fault(start, f"deeper than {DEPTH_MAX}")
    count_max = MAP_ITEMS_MAX if major == _MAP else ARRAY_ITEMS_MAX
    if count > count_max or count * (2 if major == _MAP else 1) > left:
        raise _fault(start, f"{count} items; at most {count_max}, and {left} bytes are left")


def _fault(position: int, what: str) -> ControlError:
    return ControlError(ControlDrop.NOT_CBOR, f"message: byte {position}: {what}")
