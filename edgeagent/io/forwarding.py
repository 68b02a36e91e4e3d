"""What makes a device a router for others: sysctls, set and put back, and an nftables table of its own.

The table takes from the tunnel only what is for the prefixes that are routed, puts our address in place of the source
where that is wanted, and keeps TCP segments within the tunnel. One table an IP version: nft's `inet` has no NAT before
Linux 5.2.
"""

from __future__ import annotations

import os
import re
import select
import signal
from time import monotonic
from typing import TYPE_CHECKING

from edgeagent.proto.ip import ip_to_text
from edgeagent.proto.prefixes import Prefix, to_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

NFT_TIMEOUT_S = 10.0
_SAID_BYTES = 4_096
_SEARCH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
# An exit node leads to the internet, and to no neighbour: those are prefixes, to be approved as such
_PRIVATE = {
    4: ("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"),
    16: ("fc00::/7", "fe80::/10"),
}


class NftError(Exception):
    """Why the table cannot be made; a sentence without its full stop."""


class Sysctls:
    """`set` values by their path under /proc/sys; `before` has what they were when we came, also for a later life."""

    def __init__(self, before: dict[str, str], root: str = "/proc/sys") -> None:
        self.before = before
        self._root = root

    def get(self, name: str) -> str | None:
        try:
            with open(f"{self._root}/{name}") as file:
                return file.read(64).strip()
        except OSError:
            return None

    def note(self, name: str, value: str) -> bool:
        """Remember what it is before it is set. False where there is nothing to do."""
        found = self.get(name)
        if found is None or found == value:
            return False
        self.before.setdefault(name, found)
        return True

    def set(self, name: str, value: str) -> None:
        """Raises OSError."""
        with open(f"{self._root}/{name}", "w") as file:
            file.write(value)

    def restore(self, names: Iterable[str] | None = None) -> None:
        """The last first: what one change brought about for others is undone before it."""
        for name in list(self.before if names is None else names)[::-1]:
            value = self.before.pop(name)
            try:
                self.set(name, value)
            except OSError:
                continue  # the interface is gone, and its setting with it


class Translated:
    """What goes through a translator behind the tunnel (4via6): by `interface`, to `prefixes` (IPv6 as it is offered →
    IPv4 as it is at the site), from `source`, its (IPv4, IPv6) address, in place of all who send."""

    __slots__ = ("interface", "prefixes", "source")

    def __init__(self, interface: str, source: tuple[bytes, bytes], prefixes: dict[Prefix, Prefix]) -> None:
        self.interface = interface
        self.source = source
        self.prefixes = prefixes


class Ruleset:
    """What the table of one interface is to do."""

    __slots__ = ("clients", "exits", "interface", "networks", "prefixes", "real", "snat", "translated")

    def __init__(
        self,
        interface: str,
        *,
        networks: tuple[Prefix, Prefix],
        prefixes: list[Prefix],
        clients: list[bytes],
        exits: bool,
        snat: bool,
        real: dict[Prefix, Prefix] | None = None,
        translated: Translated | None = None,
    ) -> None:
        self.interface = interface
        self.networks = networks  # the mesh's own
        self.prefixes = prefixes
        self.real = real or {}  # of `prefixes` those that are others at the site
        self.translated = translated  # beside `prefixes`
        self.clients = clients  # addresses of plain WireGuard clients
        self.exits = exits
        self.snat = snat

    def text(self) -> str:
        """For `nft -f -`: takes the place of the table that is there."""
        return removal(self.interface) + "".join(self._table(size) for size in (4, 16))

    def _table(self, size: int) -> str:
        tun, ip = f'"{self.interface}"', "ip" if size == 4 else "ip6"
        network = to_text(self.networks[0 if size == 4 else 1])
        mine = [prefix for prefix in self.prefixes if len(prefix[0]) == size]
        routed = [to_text(self.real.get(prefix, prefix)) for prefix in mine]  # as packets have it behind `prerouting`
        mapped = {to_text(prefix): to_text(self.real[prefix]) for prefix in mine if prefix in self.real}
        clients = [ip_to_text(address) for address in self.clients if len(address) == size]
        forward = [
            f"oifname {tun} tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu",
            *self._before_translation(size),
            "ct state established,related accept",
            "ct status dnat accept",
            # The site's hosts are to be had by one address each
            *(f"iifname {tun} {ip} daddr {inside} drop" for inside in mapped.values()),
        ]
        if clients:
            among = f"{{ {', '.join(clients)} }}"
            forward += [f"iifname {tun} oifname {tun} {ip} {end} {among} accept" for end in ("saddr", "daddr")]
        forward.append(f"iifname {tun} oifname {tun} drop")
        if routed:
            forward.append(f"iifname {tun} {ip} daddr {{ {', '.join(routed)} }} accept")
        forward += self._translation(size)
        if self.exits:
            forward.append(f"iifname {tun} {ip} daddr {{ {', '.join(_PRIVATE[size])} }} drop")
        else:
            forward.append(f"iifname {tun} drop")
        lines = [
            f"table {ip} {table_name(self.interface)} {{",
            "  chain forward {",
            "    type filter hook forward priority 0; policy accept;",
            *(f"    {rule}" for rule in forward),
            "  }",
        ]
        if mapped:
            pairs = ", ".join(f"{shown} : {inside}" for shown, inside in mapped.items())
            lines += [
                "  chain prerouting {",
                "    type nat hook prerouting priority -100; policy accept;",
                f"    iifname {tun} dnat {ip} prefix to {ip} daddr map {{ {pairs} }}",
                "  }",
            ]
        sources = self._translated_sources(size)  # before the exit node's, which is for all that leaves
        if mapped:
            pairs = ", ".join(f"{inside} : {shown}" for shown, inside in mapped.items())
            sources.append(f"oifname {tun} snat {ip} prefix to {ip} saddr map {{ {pairs} }}")
        if self.snat and (routed or self.exits):
            to = "" if self.exits else f" {ip} daddr {{ {', '.join(routed)} }}"
            sources.append(f"{ip} saddr {network}{to} oifname != {tun} masquerade")
        if sources:
            lines += [
                "  chain postrouting {",
                "    type nat hook postrouting priority 100; policy accept;",
                *(f"    {rule}" for rule in sources),
                "  }",
            ]
        return "\n".join([*lines, "}", ""])

    def _before_translation(self, size: int) -> list[str]:
        """What is refused even of flows that were let through. Devices begin flows, sites never do."""
        if self.translated is None:
            return []
        tun, via = f'"{self.interface}"', f'"{self.translated.interface}"'
        if size == 16:
            return [f"iifname {via} oifname != {tun} drop", f"oifname {via} iifname != {tun} drop"]
        inside = ", ".join(sorted({to_text(each) for each in self.translated.prefixes.values()}))
        return [
            f"iifname {via} oifname {{ {tun}, {via} }} drop",
            f"iifname {via} ip daddr != {{ {inside} }} drop",
            f"oifname {via} ct state != {{ established, related }} drop",
        ]

    def _translation(self, size: int) -> list[str]:
        """Into the translator by what is approved, and from it as its one source; without it the prefix is nowhere."""
        if self.translated is None:
            return []
        tun, via = f'"{self.interface}"', f'"{self.translated.interface}"'
        if size == 4:
            return [f"iifname {via} ip saddr {ip_to_text(self.translated.source[0])} accept", f"iifname {via} drop"]
        shown = ", ".join(map(to_text, self.translated.prefixes))
        network = to_text(self.networks[1])
        return [
            f"iifname {tun} oifname {via} ip6 saddr {network} ip6 daddr {{ {shown} }} accept",
            f"iifname {tun} ip6 daddr {{ {shown} }} drop",
            f"iifname {via} drop",
        ]

    def _translated_sources(self, size: int) -> list[str]:
        """Always: the translator knows one source, and the site does not know that."""
        if self.translated is None:
            return []
        via, (v4, v6) = f'"{self.translated.interface}"', self.translated.source
        if size == 16:
            return [f"oifname {via} snat to {ip_to_text(v6)}"]
        return [f"ip saddr {ip_to_text(v4)} oifname != {via} masquerade"]


def table_name(interface: str) -> str:
    return "edgeagent_" + re.sub(r"[^A-Za-z0-9]", lambda match: f"_{ord(match[0]):x}_", interface)


def removal(interface: str) -> str:
    """For `nft -f -`: the tables of an interface are gone, whether they were there or not."""
    name = table_name(interface)
    return "".join(f"table {ip} {name}\ndelete table {ip} {name}\n" for ip in ("ip", "ip6"))


def find_nft() -> str | None:
    return find_program("nft")


def find_program(name: str) -> str | None:
    """Its path, where there is one. (shutil would look for it too, and load three compressors.)"""
    found = (os.path.join(directory, name) for directory in _SEARCH.split(os.pathsep) if directory)
    return next((path for path in found if os.access(path, os.X_OK)), None)


def nft(script: str, *, find: Callable[[], str | None] = find_nft) -> None:
    """Run a script as a whole or not at all. Raises NftError. It takes some 20 ms, and the agent waits meanwhile."""
    program = find()
    if program is None:
        raise NftError("nft is not installed. Install the package nftables")
    script_end, script_in = os.pipe()
    said, said_in = os.pipe()
    try:
        actions = [
            (os.POSIX_SPAWN_DUP2, script_end, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, said_in, 2),
        ]
        process = os.posix_spawn(program, [program, "-f", "-"], {"LC_ALL": "C"}, file_actions=actions)
    except OSError as error:
        for fd in (script_in, said):
            os.close(fd)
        raise NftError(f"{program}: {error.strerror}") from None
    finally:
        os.close(script_end)
        os.close(said_in)
    try:
        text, ended = _talk(script_in, script.encode(), said, monotonic() + NFT_TIMEOUT_S)
    finally:
        os.close(said)
    if not ended:
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    if not ended or status:
        line = next((line for line in text.splitlines() if "rror" in line), text.strip()[:200])
        raise NftError(f"nft: {line or f'no answer in {NFT_TIMEOUT_S:.0f} s'}")


def _talk(to: int, script: bytes, said: int, deadline: float) -> tuple[str, bool]:
    """Hand over a script by `to`, which is closed. Returns what is said meanwhile, and whether that came to an end."""
    data, left, poll = b"", memoryview(script), select.poll()
    os.set_blocking(to, False)
    poll.register(said, select.POLLIN)
    poll.register(to, select.POLLOUT)
    open_to = True
    try:
        while (left_s := deadline - monotonic()) > 0:
            for fd, _ in poll.poll(1_000 * left_s):
                if fd == said:
                    more = os.read(said, _SAID_BYTES)
                    if not more:
                        return data.decode("utf-8", "replace"), True
                    data = (data + more)[:_SAID_BYTES]
                    continue
                try:
                    left = left[os.write(to, left) :]
                except BlockingIOError:
                    continue
                except BrokenPipeError:  # it says why, or its status does
                    left = left[:0]
                if not left:
                    poll.unregister(to)
                    os.close(to)
                    open_to = False
        return data.decode("utf-8", "replace"), False
    finally:
        if open_to:
            os.close(to)
