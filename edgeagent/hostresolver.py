"""This host's own resolver and us: which one it is, what it is told, and how that is taken back whatever happens.

What is changed is in the state directory before it is changed: the next start undoes what a crash has left, and so does
`edgeagent dns restore`. The commands run in a thread: a service manager may take seconds.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from contextlib import suppress
from selectors import EVENT_READ
from typing import TYPE_CHECKING, Any

from edgeagent.io import resolver as ways
from edgeagent.io import resolverfile
from edgeagent.io.keystore import Keystore, StateDamaged, StateFile
from edgeagent.io.resolver import ResolverError, Wanted
from edgeagent.proto.codec import decode, encode
from edgeagent.proto.constants import NAME_SERVER
from edgeagent.proto.dnsmessage import to_name
from edgeagent.proto.ip import ip_to_bytes, ip_to_text
from edgeagent.proto.names import is_domain
from edgeagent.proto.refusals import ControlError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeagent.context import Context
    from edgeagent.proto.devicemap import DeviceMap
    from edgeagent.proto.dns import NameServer

log = logging.getLogger("edgeagent")
LOOK_S = 2.0  # between two looks whether resolv.conf has changed
RETRY_S, RETRY_MAX_S = 10.0, 320.0  # after a failure: at boot a resolver may come up after us
CLOSE_TIMEOUT_S = 10.0  # for commands that still run when the agent ends
DNS_PORT = 53
FOUND_MAX = 4  # resolvers of the host's that are made use of
UCI_CONFIG, DNSMASQ_INIT = "/etc/config/dhcp", "/etc/init.d/dnsmasq"
DNSMASQ_CONF = "/etc/dnsmasq.conf"

NONE = "none"
_TAKE: dict[str, Callable[[Wanted], object]] = {
    "resolved": ways.take_resolved,
    "resolvconf": lambda wanted: ways.take_resolvconf(wanted, _by_resolvconf(wanted.interface).search),
    "uci": ways.take_uci,
    "dnsmasq": ways.take_dnsmasq,
    "file": lambda wanted: _take_file(wanted),
}
_UNDO: dict[str, Callable[[Wanted], object]] = {
    "resolved": ways.undo_resolved,
    "resolvconf": ways.undo_resolvconf,
    "uci": ways.undo_uci,
    "dnsmasq": ways.undo_dnsmasq,
    "file": lambda wanted: _undo_file(),
}
_ADDS = ("uci",)  # what is told anew does not take the place of what was told before


class HostResolver:
    """`tell` it of each map; `look` before the name server answers, so that it knows the resolvers of this host;
    `on_timeout` at `poll_timeout()`; `close` takes everything back."""

    def __init__(self, context: Context, interface: str, load: Callable[[], NameServer]) -> None:
        self._context = context
        self._interface = interface
        self._load = load
        self.way, self.why = choose(context.settings.dns)
        self.error = ""
        self._left = _left_over(context.keystore)[0]  # that could not be taken back at the start
        self._told: Wanted | None = None  # or being told
        self._next: Wanted | None = None
        self._thread: threading.Thread | None = None
        self._wake, self._signal = socket.socketpair()
        self._wake.setblocking(False)
        context.selector.register(self._wake, EVENT_READ, self._ended)
        self._outcome = ""
        self._look_at = 0.0
        self._retry_at: float | None = None
        self._retry_s = RETRY_S
        self._seen: tuple[int, int] | None = None  # inode and time of what says who they are
        if self.way == NONE:
            log.warning("no program here is told of the network's names: %s", self.why)

    def tell(self, now: float, port: int, device_map: DeviceMap) -> None:
        """What is to be asked of us follows from the map."""
        if self.way == NONE:
            return
        zone = self._load().zone
        split = [".".join(label.decode() for label in name) for name in zone.split]
        domains = [device_map.domain, *split, *zone.reverse_domains()]
        server = ip_to_text(NAME_SERVER)
        self._next = Wanted(self._interface, server, port, domains, zone.search, bool(zone.servers))
        self._begin()

    def poll_timeout(self) -> float | None:
        return self._retry_at

    def on_timeout(self, now: float) -> None:
        if self._retry_at is not None and self._retry_at <= now:
            self._retry_at, self._retry_s = None, min(2 * self._retry_s, RETRY_MAX_S)
            self._next = self._next or self._told
            self._begin()

    def look(self, now: float, server: NameServer) -> None:
        """The resolvers that this host had before us answer for what is neither ours nor anybody's."""
        if self.way not in ("file", "resolvconf") or now < self._look_at:
            return
        self._look_at = now + LOOK_S
        try:
            if self.way == "resolvconf":
                text, changed_ns = resolverfile.by_resolvconf(ways.resolvconf_name(self._interface))
                found, seen = resolverfile.parse(text), (0, changed_ns)
            else:
                about = os.stat(resolverfile.RESOLV_CONF)
                found, seen = resolverfile.before(), (about.st_ino, about.st_mtime_ns)
        except OSError:
            return
        if seen == self._seen:
            return
        self._seen = seen
        servers = [address for address in map(_address, found.servers) if address not in (b"", NAME_SERVER)]
        server.found = [(address, DNS_PORT) for address in servers[:FOUND_MAX]]
        server.local = [to_name(domain.lower()) for domain in found.search if is_domain(domain.lower())]

    def describe(self) -> dict[str, Any]:
        state = "nothing to do" if self.way == NONE else "failed" if self.error else "done"
        if self._thread is not None:
            state = "under way"
        elif self.way == "file" and state == "done":
            with suppress(OSError):
                if not resolverfile.is_ours(resolverfile.read(resolverfile.RESOLV_CONF)):
                    state = "overwritten by another program"
        return {"way": self.way, "why": self.why, "state": state, "error": self.error}

    def close(self) -> None:
        self._next = None
        if self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT_S)
        self._context.selector.unregister(self._wake)
        self._wake.close()
        self._signal.close()
        if self._told is not None:
            undo_all([*self._left, (self.way, self._told)], self._context.keystore)

    def _begin(self) -> None:
        wanted = self._next
        if self._thread is not None or wanted is None or (wanted == self._told and not self.error):
            return
        self._retry_at = None
        before = self._told if self.way in _ADDS else None
        kept = [(self.way, each) for each in (before, wanted) if each is not None]
        if not self._context.save(StateFile.RESOLVER, _encode([*self._left, *kept])):
            self.error = "what is changed could not be kept on disk, so nothing was changed"
            return
        self._told, self._next = wanted, None
        self._thread = threading.Thread(target=self._run, args=(before, wanted), daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._thread, self.error = None, str(error)

    def _run(self, before: Wanted | None, wanted: Wanted) -> None:
        self._outcome = ""
        try:
            if before is not None:
                _UNDO[self.way](before)
            _TAKE[self.way](wanted)
        except (ResolverError, OSError) as error:
            self._outcome = str(error)
        with suppress(OSError):  # closed meanwhile
            self._signal.send(b"\0")

    def _ended(self, now: float, _fd: int) -> None:
        with suppress(BlockingIOError):
            self._wake.recv(16)
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.error = self._outcome
        if self.error:
            self._retry_at = now + self._retry_s
            log.warning("this host's resolver (%s) was not told of the network's names: %s", self.way, self.error)
        elif self._told is not None:
            self._retry_s = RETRY_S
            log.info("this host's resolver (%s) asks us about %s", self.way, self._told.domains[0])
        self._begin()


def choose(mode: str) -> tuple[str, str]:
    """(way, why) for a value of the setting `dns`; the first that fits, in this order: another namespace than the
    system's, OpenWrt's dnsmasq, systemd-resolved, resolvconf, a local dnsmasq, a file that nobody manages."""
    on_openwrt = ways.has("uci") and os.path.exists(UCI_CONFIG) and os.path.exists(DNSMASQ_INIT)
    if mode == "dnsmasq":
        return ("uci" if on_openwrt else "dnsmasq"), "as told"
    if mode != "auto":
        return mode, "as told"
    if not is_hosts_own():
        return NONE, "this agent is in another network namespace than the system. Give --dns a way to have it used"
    if on_openwrt:
        return "uci", "OpenWrt's dnsmasq answers here"
    path = resolverfile.RESOLV_CONF
    try:
        text = resolverfile.read(path) or ""
        managed = resolverfile.who_manages()
    except OSError as error:
        return NONE, f"{path}: {error.strerror}"
    leads_to, servers = os.path.realpath(path), resolverfile.parse(text).servers
    if leads_to.startswith("/run/systemd/resolve/") or "127.0.0.53" in servers:
        if ways.has("resolvectl") or ways.has("busctl"):
            return "resolved", f"{path} leads to systemd-resolved"
        return NONE, "systemd-resolved answers here, and neither resolvectl nor busctl is here to tell it"
    if ways.has("resolvconf") and ("/resolvconf/" in leads_to or "resolvconf" in text.lower()):
        return "resolvconf", f"resolvconf writes {path}"
    if servers and all(server.startswith("127.") for server in servers) and _dnsmasq_reads():
        return "dnsmasq", "dnsmasq answers here"
    if managed:
        return NONE, f"{path}: {managed}. If it stays as it is otherwise, --dns=file takes it"
    return "file", f"nobody else writes {path}"


def is_hosts_own() -> bool:
    """Whether our network is that of process 1: another's resolver is not ours to tell.

    By files that each network has of its own: to read the namespace's name takes the right to trace process 1, which
    the service has not.
    """
    try:
        return os.stat("/proc/self/net/dev").st_ino == os.stat("/proc/1/net/dev").st_ino
    except OSError:
        return False


def restore(keystore: Keystore) -> list[str]:
    """Take back what an agent that died has left; what could not be, as text. The keystore is open. Raises OSError."""
    left, error = _left_over(keystore)
    if error:
        keystore.remove(StateFile.RESOLVER)
        return [f"{error}; what was changed is not known"]
    return undo_all(left, keystore)


def undo_all(left: list[tuple[str, Wanted]], keystore: Keystore) -> list[str]:
    """What fails stays in the state directory, to be tried again."""
    failed: list[tuple[str, Wanted]] = []
    errors = []
    for way, wanted in left:
        try:
            _UNDO[way](wanted)
        except (ResolverError, OSError) as error:
            failed.append((way, wanted))
            errors.append(f"{way}: {error}")
            log.warning("this host's resolver was not restored: %s: %s", way, error)
    with suppress(OSError):
        if failed:
            keystore.save(StateFile.RESOLVER, _encode(failed))
        else:
            keystore.remove(StateFile.RESOLVER)
    return errors


def _by_resolvconf(interface: str) -> resolverfile.Found:
    return resolverfile.parse(resolverfile.by_resolvconf(ways.resolvconf_name(interface))[0])


def _take_file(wanted: Wanted) -> None:
    if wanted.port != DNS_PORT:
        raise ResolverError(f"port {wanted.port}: another program has port 53, and resolv.conf knows no other")
    resolverfile.take(wanted.server, wanted.search)


def _undo_file() -> None:
    if not resolverfile.undo():
        log.warning("%s was overwritten by another program: left as it is", resolverfile.RESOLV_CONF)


def _dnsmasq_reads() -> bool:
    """Whether a dnsmasq runs that reads the directory in which our file would be."""
    directory = os.path.dirname(ways.DNSMASQ_FILE)
    if not os.path.isdir(directory):
        return False
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        with suppress(OSError), open(f"/proc/{entry}/cmdline", "rb") as file:
            words = file.read(4_096).split(b"\0")
            if os.path.basename(words[0]) == b"dnsmasq":
                conf = resolverfile.read(DNSMASQ_CONF) or ""
                own = [line for line in conf.splitlines() if line.startswith("conf-dir=" + directory)]
                return bool(own) or any(word.startswith((b"-7", b"--conf-dir")) for word in words)
    return False


def _address(text: str) -> bytes:
    try:
        return ip_to_bytes(text)
    except ValueError:  # with a scope: a router's link-local address
        return b""


def _encode(left: list[tuple[str, Wanted]]) -> bytes:
    return encode([{"way": way, **wanted.encode()} for way, wanted in left])


def _left_over(keystore: Keystore) -> tuple[list[tuple[str, Wanted]], str]:
    """(what the state directory says was changed, what is wrong with that)."""
    try:
        data = keystore.load(StateFile.RESOLVER)
        return [] if data is None else _decode(data), ""
    except (StateDamaged, ControlError, KeyError, TypeError, ValueError) as error:
        return [], str(error)


def _decode(data: bytes) -> list[tuple[str, Wanted]]:
    found = [(fields["way"], Wanted.decode(fields)) for fields in decode(data)]
    if any(way not in _UNDO for way, _ in found):
        raise ValueError("a way that this version does not know")
    return found
