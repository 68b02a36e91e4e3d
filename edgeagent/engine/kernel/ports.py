"""What the engine wants of the system: all of it is handed to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from edgeagent.engine.kernel.rights import Element

    Prefix = tuple[bytes, int]
    SocketAddress = tuple[bytes, int, int]  # address of 4 or 16 B, port, scope id


class PeerFigures(Protocol):
    """One peer as the kernel has it: `edgeagent.io.wgnetlink.PeerState`."""

    @property
    def endpoint(self) -> SocketAddress | None: ...

    @property
    def handshake_s(self) -> float: ...

    @property
    def rx_bytes(self) -> int: ...

    @property
    def tx_bytes(self) -> int: ...


class KernelPort(Protocol):
    """The kernel's WireGuard: `edgeagent.kernelport.KernelPort`. Raises OSError as the kernel says it."""

    filter_fd: int  # readable when `filter_stands` may be another than it was

    def bind(self, port: int) -> int:
        """Up at this UDP port, 0 for any; returns it. Raises EADDRINUSE."""

    def unbind(self) -> None: ...

    def set_private_key(self, key: bytes) -> None: ...

    def set_peer(self, public: bytes, endpoint: SocketAddress | None, prefixes: list[Prefix] | None) -> None:
        """Make a peer, or change what is not None of it."""

    def remove_peer(self, public: bytes) -> None:
        """With its keys, and the routes to it."""

    def set_routes(self, public: bytes, prefixes: list[Prefix]) -> None:
        """What this host sends to a peer goes to the interface from now on, not to the TUN."""

    def begin(self, public: bytes) -> None:
        """Have it send a keepalive, which makes a session where there is none."""

    def inject(self, packet: bytes) -> bool:
        """Send an IP packet of this host's through the interface. False where the kernel would not."""

    def let_in(self, ruleset: str) -> None:
        """Take the place of the filter that is there. Raises FilterError, and the one that was there stays."""

    def change_filter(self, gone: Iterable[Element], new: Iterable[tuple[Element, str]]) -> None:
        """Elements of its maps, and the chains that new ones lead to, all or nothing; those that change are in both."""

    def renew_filter(self) -> None:
        """For another ruleset.ALIVE_S it lets through what it lets through. Raises ENOENT where it does not stand."""

    def filter_stands(self) -> bool:
        """False where somebody else has removed it."""

    def read(self) -> Mapping[bytes, PeerFigures]: ...

    def close(self) -> None: ...


class FilterError(Exception):
    """Why the filter could not be put in place; a sentence without its full stop."""
