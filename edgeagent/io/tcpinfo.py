"""What the kernel has counted of a TCP connection: TLS, headers, acknowledgements and retransmissions included."""

from __future__ import annotations

import socket
from struct import Struct

_BYTES = 232  # as much of struct tcp_info (linux/tcp.h) as any kernel has of what is read here
_TOTAL_RETRANS = Struct("=I")  # at 100
_SND_MSS = Struct("=I")  # at 16
_ACKED_RECEIVED = Struct("=QQ")  # at 120: tcpi_bytes_acked, tcpi_bytes_received; Linux 4.1
_SEGMENTS = Struct("=II")  # at 136: tcpi_segs_out, tcpi_segs_in; Linux 4.2
_SENT = Struct("=Q")  # at 200: tcpi_bytes_sent, what was sent again included; Linux 4.19
_SIZE_MIN, _SIZE_WITH_SENT = 144, 208
_ESTABLISHED, _CLOSE_WAIT = 1, 8


class TcpCounts:
    """Since the connection began: bytes of the stream and segments, both ways.

    `farewell` is how many segments each way its end will take, which nobody can count any more.
    """

    __slots__ = ("farewell", "received", "segments_in", "segments_out", "sent")

    def __init__(self, sent: int, received: int, segments_out: int, segments_in: int, farewell: int) -> None:
        self.sent = sent
        self.received = received
        self.segments_out = segments_out
        self.segments_in = segments_in
        self.farewell = farewell


NOTHING = TcpCounts(0, 0, 0, 0, 0)  # when it began


def counts(sock: socket.socket) -> TcpCounts | None:
    """None for what is no TCP socket, and from kernels before 4.2."""
    try:
        return read(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES))
    except OSError:
        return None


def read(info: bytes) -> TcpCounts | None:
    """From struct tcp_info as far as the kernel gave it; None when it is too old to count."""
    if len(info) < _SIZE_MIN:
        return None
    sent, received = _ACKED_RECEIVED.unpack_from(info, 120)
    if len(info) >= _SIZE_WITH_SENT:
        sent = _SENT.unpack_from(info, 200)[0]
    else:
        sent += _TOTAL_RETRANS.unpack_from(info, 100)[0] * _SND_MSS.unpack_from(info, 16)[0]
    segments_out, segments_in = _SEGMENTS.unpack_from(info, 136)
    # FIN and ACK each way, or, when the other side has said it already, ours and its acknowledgement
    farewell = {_ESTABLISHED: 2, _CLOSE_WAIT: 1}.get(info[0], 0)
    return TcpCounts(sent, received, segments_out, segments_in, farewell)
