"""Which protocols a gateway opens ports by: all are asked at once, not one after the other as a mapper would."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeagent.proto import natpmp, pcp
from edgeagent.proto.natpmp import SERVER_PORT, PortMapDrop, PortMapError
from edgeagent.proto.netcheck_facts import PortmapFacts
from edgeagent.proto.portmap_gateway import is_usable_outside

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeagent.proto.records import UdpAddress

ASK_AT_S = (0.0, 0.25, 0.75, 1.75)  # RFC 6886, section 3.1
WAIT_S = 1.0  # after the last
LIFETIME_S = 120  # PCP tells its outside address with a mapping only, which is given back at the end


class GatewayProbe:
    """One gateway, asked from `own`, `port`. Drive it: `handle_datagram` with what comes in there, `handle_timeout` at
    `poll_timeout()`; after any input drain datagrams, which go to port 5351 of `gateway`; `close` at the end, and drain
    once more. `facts` says who has answered so far, and everything when `done`."""

    __slots__ = (
        "_asked_at",
        "_datagrams",
        "_found",
        "_nonce",
        "_port",
        "_tries",
        "done",
        "drops",
        "gateway",
        "interface",
        "own",
    )

    def __init__(
        self, now: float, interface: str, gateway: bytes, own: bytes, port: int, entropy: Callable[[int], bytes]
    ) -> None:
        self.interface = interface
        self.gateway = gateway
        self.own = own
        self._port = port
        self._nonce = entropy(pcp.NONCE_SIZE)
        self._asked_at = now
        self._tries = 0
        self._found: dict[str, PortmapFacts | None] = {}  # by protocol; None: it is not spoken
        self._datagrams: list[bytes] = []
        self.done = False
        self.drops: dict[PortMapDrop, int] = {}
        self.handle_timeout(now)

    def handle_datagram(self, now: float, source: UdpAddress, datagram: bytes) -> None:
        try:
            if source != (self.gateway, SERVER_PORT):
                raise PortMapError(PortMapDrop.STRANGER, "portmap: not from the gateway")
            if datagram[:1] == bytes((natpmp.VERSION,)):
                self._read_natpmp(natpmp.read(datagram))
            else:
                self._read_pcp(pcp.read(datagram))
        except PortMapError as error:
            self.drops[error.reason] = self.drops.get(error.reason, 0) + 1
        if len(self._found) == (2 if len(self.own) == 4 else 1):  # NAT-PMP is for IPv4
            self.done = True

    def handle_timeout(self, now: float) -> None:
        if self.done:
            return
        if self._tries == len(ASK_AT_S):
            self.done = now >= self._asked_at + ASK_AT_S[-1] + WAIT_S
        elif now >= self._asked_at + ASK_AT_S[self._tries]:
            self._tries += 1
            if "pcp" not in self._found:
                self._datagrams.append(pcp.write_map_request(self.own, self._nonce, self._port, None, LIFETIME_S))
            if "nat-pmp" not in self._found and len(self.own) == 4:
                self._datagrams.append(natpmp.write_address_request())

    def poll_timeout(self) -> float | None:
        if self.done:
            return None
        if self._tries == len(ASK_AT_S):
            return self._asked_at + ASK_AT_S[-1] + WAIT_S
        return self._asked_at + ASK_AT_S[self._tries]

    def close(self) -> None:
        """Give back what was opened."""
        found = self._found.get("pcp")
        if found is not None and found.address is not None:
            self._datagrams.append(pcp.write_map_request(self.own, self._nonce, self._port, None, 0))

    def drain_datagrams(self) -> list[bytes]:
        datagrams, self._datagrams = self._datagrams, []
        return datagrams

    def facts(self) -> list[PortmapFacts]:
        return [found for found in self._found.values() if found is not None]

    def _read_pcp(self, answer: pcp.Answer) -> None:
        if answer.result == pcp.UNSUPPORTED_VERSION:
            self._found.setdefault("pcp", None)
        elif not isinstance(answer, pcp.MapAnswer) or not answer.answers(self._nonce, self._port):
            raise PortMapError(PortMapDrop.UNEXPECTED, "pcp: an answer to no request of ours")
        elif answer.result != pcp.SUCCESS:
            self._found["pcp"] = self._fact("pcp", None, f"result {answer.result}")
        else:
            self._found["pcp"] = self._fact("pcp", answer.address)

    def _read_natpmp(self, answer: natpmp.AddressAnswer | natpmp.MapAnswer | natpmp.Refusal) -> None:
        if isinstance(answer, natpmp.AddressAnswer):
            self._found["nat-pmp"] = self._fact("nat-pmp", answer.address)
        elif isinstance(answer, natpmp.Refusal) and answer.result == natpmp.UNSUPPORTED_VERSION:
            self._found.setdefault("pcp", None)  # the answer of one that knows NAT-PMP only (RFC 6886, section 3.5)
        elif isinstance(answer, natpmp.Refusal) and answer.opcode == natpmp.ADDRESS:
            self._found["nat-pmp"] = self._fact("nat-pmp", None, f"result {answer.result}")
        else:
            raise PortMapError(PortMapDrop.UNEXPECTED, "nat-pmp: an answer to no request of ours")

    def _fact(self, protocol: str, address: bytes | None, refused: str = "") -> PortmapFacts:
        if address is not None and not is_usable_outside(address):
            address, refused = None, "no outside address"
        return PortmapFacts(self.interface, self.gateway, protocol, address, refused)
