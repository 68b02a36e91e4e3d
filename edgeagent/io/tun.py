"""A layer-3 TUN interface by plain ioctl, with the kernel's segmentation offloads (its docs: networking/tuntap)."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from fcntl import ioctl
from struct import Struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME_MAX = 15  # IFNAMSIZ - 1
READ_MAX = 10 + 65_535  # virtio_net_hdr and the longest IP packet
MTU_MAX = 65_535

_CLONE_DEVICE = "/dev/net/tun"
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6, _TUN_F_TSO_ECN, _TUN_F_USO4, _TUN_F_USO6 = 0x01, 0x02, 0x04, 0x08, 0x20, 0x40
_TCP_OFFLOADS = _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6 | _TUN_F_TSO_ECN
_UDP_OFFLOADS = _TUN_F_USO4 | _TUN_F_USO6  # Linux 6.2
_SIOCGIFMTU, _SIOCSIFMTU = 0x8921, 0x8922
_IFREQ_FLAGS = Struct("16sH22x")
_IFREQ_INT = Struct("16si20x")
_GONE = (errno.EBADFD, errno.ENODEV, errno.ENXIO)


def _ioc(read: bool, write: bool, number: int) -> int:
    """_IOR/_IOW('T', number, int): MIPS, PowerPC and SPARC number the directions in their own way."""
    other = os.uname().machine.startswith(("mips", "ppc", "sparc"))
    directions = (2 if read else 0, 4 if write else 0) if other else (2 if read else 0, 1 if write else 0)
    return sum(directions) << (29 if other else 30) | 4 << 16 | ord("T") << 8 | number


_TUNSETIFF, _TUNSETOFFLOAD, _TUNGETIFF = _ioc(False, True, 202), _ioc(False, True, 208), _ioc(True, False, 210)


class TunGone(Exception):
    """The interface was removed."""


class Tun:
    """One TUN interface. `fd` is non-blocking: register it for reading; each frame begins with a virtio_net_hdr.

    `name` may hold `%d`, for the kernel to number. Raises OSError as the kernel says it: EPERM without CAP_NET_ADMIN,
    EBUSY for a name in use, ENOENT where the kernel has no TUN. The interface lives until `close()` or the end of the
    process. `tcp_offload` and `udp_offload` tell what the kernel agreed to.
    """

    __slots__ = ("fd", "index", "name", "tcp_offload", "udp_offload")

    def __init__(self, name: str, mtu: int | None = None) -> None:
        encoded = name.encode("ascii", "replace")
        if not 0 < len(encoded) <= NAME_MAX or b"/" in encoded or b"?" in encoded:
            raise OSError(errno.EINVAL, f"interface name {name!r}: 1 to {NAME_MAX} ASCII characters without '/'")
        self.fd = os.open(_CLONE_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            ioctl(self.fd, _TUNSETIFF, _IFREQ_FLAGS.pack(encoded, _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR))
            self.name = self.current_name()
            self.index = socket.if_nametoindex(self.name)
            self.tcp_offload, self.udp_offload = self._set_offloads()
            if mtu is not None:
                self.set_mtu(mtu)
        except OSError:
            os.close(self.fd)
            raise

    def _set_offloads(self) -> tuple[bool, bool]:
        for offloads in (_TCP_OFFLOADS | _UDP_OFFLOADS, _TCP_OFFLOADS):
            with suppress(OSError):
                ioctl(self.fd, _TUNSETOFFLOAD, offloads)
                return True, bool(offloads & _UDP_OFFLOADS)
        return False, False

    def read(self) -> bytes | None:
        """The next frame, or None when there is none now. Raises TunGone."""
        try:
            return os.read(self.fd, READ_MAX)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in _GONE:
                raise TunGone(self.name) from None
            if error.errno == errno.EIO:  # the interface is down
                return None
            raise

    def write(self, frame: Sequence[bytes]) -> bool:
        """Hand over a frame, in at most 1,024 buffers. False when the kernel refuses it: down, or malformed."""
        try:
            os.writev(self.fd, frame)
        except OSError as error:
            if error.errno in _GONE:
                raise TunGone(self.name) from None
            return False
        return True

    def current_name(self) -> str:
        """The interface's name, which may have been changed since."""
        answer = ioctl(self.fd, _TUNGETIFF, bytes(_IFREQ_FLAGS.size))
        return str(_IFREQ_FLAGS.unpack(answer)[0].rstrip(b"\0").decode("ascii"))

    def mtu(self) -> int:
        """In bytes. Asked in this process's network namespace: ENODEV once the interface was moved to another."""
        return int(_IFREQ_INT.unpack(self._ifreq(_SIOCGIFMTU, 0))[1])

    def set_mtu(self, mtu: int) -> None:
        self._ifreq(_SIOCSIFMTU, mtu)

    def _ifreq(self, request: int, value: int) -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
            return ioctl(control.fileno(), request, _IFREQ_INT.pack(self.name.encode("ascii"), value))

    def close(self) -> None:
        """Remove the interface. Harmless when repeated."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
