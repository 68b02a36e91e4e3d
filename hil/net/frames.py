"""Frames as QEMU's `-netdev stream` sends them: their length as 32 bits, big-endian, then Ethernet."""

from __future__ import annotations

import struct

FRAME_BYTES_MAX = 16_384  # what a guest with a larger MTU would send is no frame of this network
_LENGTH = struct.Struct(">I")


class FrameError(ValueError):
    """What came is no stream of frames; it cannot be followed any further."""


class Frames:
    """Cuts a stream into frames."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that are whole by now. Raises FrameError."""
        data = self._rest + data
        found = []
        at = 0
        while at + 4 <= len(data):
            (length,) = _LENGTH.unpack_from(data, at)
            if not 14 <= length <= FRAME_BYTES_MAX:
                raise FrameError(f"a frame of {length} bytes")
            if at + 4 + length > len(data):
                break
            found.append(data[at + 4 : at + 4 + length])
            at += 4 + length
        self._rest = data[at:]
        return found


def encode(frame: bytes) -> bytes:
    """A frame with its length before it."""
    return _LENGTH.pack(len(frame)) + frame
