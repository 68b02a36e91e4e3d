"""Home routers, carriers and firewalls as real routers: nftables' NAT in the kinds that RFC 4787 tells apart."""

from __future__ import annotations

from enum import Enum

from tests.netlab.host import Host, Net
from tests.netlab.lab import Lab
from tests.netlab.process import LabError

CARRIER_PREFIX = "100.64.0.0/24"  # RFC 6598
ADDRESS_CHANGES_MAX = 4  # per router; the new addresses are taken from the end of the outside's prefix
_BINDING_S = 120  # RFC 4787, REQ-5: at least two minutes

WAN, LAN = "wan", "lan"


class Kind(Enum):
    """What a router does to UDP: mapping (E endpoint-independent, A address-, P port-dependent), then filtering."""

    FULL = "full"  # E, E: "full cone"
    ADDRESS = "address"  # E, A: "address-restricted cone"
    PORT = "port"  # E, P: "port-restricted cone", Linux' own masquerading
    SYMMETRIC = "symmetric"  # P, P, with ports drawn at random
    HAIRPIN = "hairpin"  # like FULL, and hosts inside reach each other by the outside address
    UDP_BLOCKED = "udp_blocked"  # like PORT for TCP; no UDP passes
    TCP_443 = "tcp_443"  # like PORT; nothing but TCP to port 443 passes


_BLOCKS = {
    Kind.UDP_BLOCKED: "meta l4proto udp drop",
    Kind.TCP_443: f'iifname "{LAN}" tcp dport != 443 drop\n    meta l4proto != tcp drop',
}
# Which entry lets a stranger's datagram in: found by the port that it was sent to, or by that and where it comes from.
_OPENINGS = {Kind.FULL: "open_to_all", Kind.HAIRPIN: "open_to_all", Kind.ADDRESS: "open_to_known"}

_TABLE = """\
table ip nat
delete table ip nat
table ip nat {{
  map mappings {{
    type ipv4_addr . inet_service : ipv4_addr . inet_service
    flags dynamic,timeout
    timeout {binding_s}s
  }}
  map open_to_all {{
    type inet_service : ipv4_addr . inet_service
    flags dynamic,timeout
    timeout {binding_s}s
  }}
  map open_to_known {{
    type inet_service . ipv4_addr : ipv4_addr . inet_service
    flags dynamic,timeout
    timeout {binding_s}s
  }}
  chain forward {{
    type filter hook forward priority 0; policy drop;
    {block}
    ct state established,related accept
    iifname "{lan}" accept
    ct status dnat accept
  }}
  chain input {{
    type filter hook input priority 0; policy accept;
    iifname "{wan}" ct state new drop
  }}
  chain inbound {{
    type nat hook prerouting priority dstnat;
    {inbound}
  }}
  chain outbound {{
    type nat hook postrouting priority srcnat;
    {outbound}
  }}
  chain learn {{
    type filter hook postrouting priority srcnat + 50;
    {learn}
  }}
}}
"""
_SHUT = """\
table ip shut {
  chain forward {
    type filter hook forward priority -300; policy drop;
  }
}
"""
# Read from the connection and not from the packet, whose source has been rewritten by then.
_LEARNT = f'oifname "{WAN}" meta l4proto udp ct direction original update'
_INSIDE = "ct original ip saddr . ct original proto-src"
_LEARN = {
    "mappings": f"{_LEARNT} @mappings {{ {_INSIDE} : ct reply ip daddr . ct reply proto-dst }}",
    "open_to_all": f"{_LEARNT} @open_to_all {{ ct reply proto-dst : {_INSIDE} }}",
    "open_to_known": f"{_LEARNT} @open_to_known {{ ct reply proto-dst . ip daddr : {_INSIDE} }}",
}


class NatRouter:
    """A router between a segment inside, whose gateway it becomes, and one outside.

    A packet takes `delay_ms` on the line outside. `short_bindings`, `rebind` and `change_address` forget all bindings,
    as a router that starts anew does; connections that hosts inside continue get new ones.
    """

    def __init__(
        self, lab: Lab, name: str, inside: Net, outside: Net, kind: Kind = Kind.PORT, delay_ms: float = 0.0
    ) -> None:
        self.kind = kind
        self.inside = inside
        self.outside = outside
        self.host: Host = lab.host(name)
        # Outside first, and before it forwards: it is a guest there, not the gateway.
        self.wan = self.host.attach(outside, WAN, delay_ms)
        self.address = self.wan.v4
        self.host.forward()
        self.host.attach(inside, LAN)
        # Without it the address that is left after a change would go with the first.
        self.host.sysctl({f"net/ipv4/conf/{WAN}/promote_secondaries": 1})
        self._binding_s = _BINDING_S
        self._moved = 0
        self._address_changes = 0
        self._load()

    def short_bindings(self, seconds: int) -> None:
        """Bindings end after so many seconds without a packet."""
        self._binding_s = seconds
        names = ("nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream")
        self.host.sysctl({f"net/netfilter/{name}": seconds for name in names})
        self._begin_anew()

    def rebind(self) -> None:
        """All mappings move to other outside ports; the kind stays what it is."""
        self._moved += 1
        self._begin_anew()

    def change_address(self) -> str:
        """The provider gives another outside address; the old one is gone. Returns the new one."""
        if self._address_changes == ADDRESS_CHANGES_MAX:
            raise LabError(f"{self.host.name}: at most {ADDRESS_CHANGES_MAX} changes of address")
        self._address_changes += 1
        seat = self.outside.ports.index(self.wan) * ADDRESS_CHANGES_MAX + self._address_changes
        number = self.outside.v4.num_addresses - 1 - seat
        if number <= len(self.outside.ports):
            raise LabError(f"{self.outside.v4} has no address left for {self.host.name}")
        old, self.address = self.address, str(self.outside.v4[number])
        length = self.outside.v4.prefixlen
        self.host.ip(f"addr add {self.address}/{length} dev {WAN}", f"addr del {old}/{length} dev {WAN}")
        self._begin_anew()
        return self.address

    def impair(self, *, loss_percent: int = 0, packet_bytes_max: int = 65_535) -> None:
        """Lose forwarded packets, in silence: some by chance, and all that are longer. Bindings stay."""
        loss = "drop" if loss_percent >= 100 else f"numgen random mod 100 < {loss_percent} drop"
        rules = f"{loss}\n  meta length > {packet_bytes_max} drop"
        chain = f"chain forward {{\n type filter hook forward priority -10;\n {rules}\n }}"
        self.host.run("nft", "-f", "-", input=f"table ip bad\ndelete table ip bad\ntable ip bad {{\n {chain}\n}}\n")

    def _load(self) -> None:
        self.host.run("nft", "-f", "-", input=self._rules())

    def _begin_anew(self) -> None:
        """Nothing passes meanwhile: a packet of an old binding between the two steps would be learnt as a new one."""
        rules = self.host.directory / "rules.nft"
        rules.write_text(self._rules())
        anew = f"nft -f - && nft -f {rules} && conntrack -F && nft delete table ip shut"
        self.host.run("sh", "-ec", anew, input=_SHUT)  # in one go: it is an outage for as long as it takes

    def _rules(self) -> str:
        opening = _OPENINGS.get(self.kind)
        learn, inbound, outbound = [], [], []
        if opening is not None:
            key = "udp dport" if opening == "open_to_all" else "udp dport . ip saddr"
            learn.append(_LEARN[opening])
            inbound.append(f'iifname "{WAN}" meta l4proto udp dnat ip to {key} map @{opening}')
        if self.kind is Kind.HAIRPIN:
            inbound.append(
                f'iifname "{LAN}" ip daddr {self.address} meta l4proto udp dnat ip to udp dport map @open_to_all'
            )
            outbound.append(f'iifname "{LAN}" oifname "{LAN}" snat ip to {self.address}')
        if self.kind is Kind.SYMMETRIC:
            outbound.append(f'oifname "{WAN}" meta l4proto udp masquerade to :20000-60000 fully-random')
        elif self._moved:
            # The kernel draws a port for each connection; a second one of the same socket gets the port of the first.
            low = 30_000 if self._moved % 2 else 45_000
            learn.append(_LEARN["mappings"])
            outbound.append(f'oifname "{WAN}" meta l4proto udp snat ip to ip saddr . udp sport map @mappings')
            outbound.append(f'oifname "{WAN}" meta l4proto udp masquerade to :{low}-{low + 9_999} fully-random')
        outbound.append(f'oifname "{WAN}" masquerade')
        return _TABLE.format(
            binding_s=self._binding_s,
            wan=WAN,
            lan=LAN,
            block=_BLOCKS.get(self.kind, ""),
            inbound="\n    ".join(inbound),
            outbound="\n    ".join(outbound),
            learn="\n    ".join(learn),
        )


def carrier(
    lab: Lab,
    name: str,
    outside: Net,
    kind: Kind = Kind.SYMMETRIC,
    prefix: str = CARRIER_PREFIX,
    delay_ms: float = 0.0,
) -> NatRouter:
    """Carrier-grade NAT: homes are routers whose outside is the `inside` of the one returned."""
    return NatRouter(lab, name, lab.net(prefix), outside, kind, delay_ms)
