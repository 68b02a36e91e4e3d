"""Routes at work: what this device offers to others and what it uses of theirs, in its kernel. Most never load this.

Whatever is changed outside of our own interface (sysctls, nftables, rules) is noted on flash before, and is put back at
the end, or by the next agent when this one was killed.
"""

from __future__ import annotations

import errno
import logging
import os
from typing import TYPE_CHECKING, Any

from edgeagent.io import pinnedtls
from edgeagent.io.keystore import StateFile
from edgeagent.io.marks import MARK
from edgeagent.io.netlink import EventsLost, LinkChanged, Netlink, RouteChanged
from edgeagent.policyroutes import TABLE, PolicyRoutes, remove_leftovers
from edgeagent.proto import prefixes
from edgeagent.proto.codec import decode, encode
from edgeagent.proto.prefixes import EXIT, Prefix
from edgeagent.proto.refusals import ControlError
from edgeagent.proto.routewish import RouteWish
from edgeagent.proto.schema import Fields, List, Row, Text

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeagent.context import Context
    from edgeagent.io.forwarding import Sysctls, Translated
    from edgeagent.io.netlink import Change
    from edgeagent.proto.node import Node
    from edgeagent.translator import Translator
    from edgeagent.tunnel import Tunnel

log = logging.getLogger("edgeagent")
REPAIR_AFTER_S = 0.2  # changes come in bursts
REPAIR_SPACING_S = 5.0
LOOK_S = 30.0  # between two tries of what did not succeed
AGAIN_S = 300.0  # between two makings of tables that somebody may have flushed with his own
_BOOT_ID = "kernel/random/boot_id"
_NO_TRANSLATOR = (
    "tayga is not installed, so no IPv4 prefix under IPv6 (4via6) is offered. Install the package tayga; "
    "its own service is not needed"
)
_CHANGED = Fields({"boot": Text(64), "sysctl": List(Row(Text(128), Text(64)), 256), "nft": List(Text(15), 8)})


class Routing:
    """Drive it: `apply` after each map and each wish, `changed` with what netlink tells, `on_timeout` at
    `poll_timeout`, `close` at the end."""

    def __init__(self, now: float, context: Context, node: Node, tunnel: Tunnel) -> None:
        self._context = context
        self._node = node
        self._tunnel = tunnel
        self._netlink = Netlink()
        self._routes = PolicyRoutes(self._netlink, tunnel.tun.index)
        self._sysctls: Sysctls | None = None  # None as long as this was no router
        self._tables = False  # whether there are nftables tables of ours
        self._applied: Any = None  # what they say
        self._translator: Translator | None = None  # None as long as this is no router of 4via6
        self._due: float | None = None
        self._put_at = float("-inf")
        self._is_up = True
        self.wish = load_wish(context)
        self.problems: dict[str, str] = {}  # part: why it is not as it should be

    # What is wanted

    def set_wish(self, now: float, wish: RouteWish) -> None:
        self.wish = wish
        self.apply(now, anew=True)

    def apply(self, now: float, *, anew: bool = False) -> None:
        """Bring kernel, node and hub in step with the wish and the map; `anew`: also what should be there already."""
        self._due, self._put_at = None, now
        problems = dict(self.problems)
        self.problems.clear()
        wish, node = self.wish, self._node
        node.use_routes(now, accept=wish.accept, exit_name=wish.exit_node)
        self._try("used", lambda: self._use(wish))
        self._try("router", lambda: self._be_router(wish, anew=anew))
        self._try("translator", lambda: self._translate(now, wish))
        offered = [] if "router" in self.problems else wish.offered
        if _NO_TRANSLATOR in self.problems.values():
            offered = [prefix for prefix in offered if prefix not in wish.translated]
        node.advertise(now, offered, snat=wish.snat)
        for part, why in self.problems.items():
            if problems.get(part) != why:
                log.warning("routes: %s", why)
        if self.problems:
            self._due = now + LOOK_S
        elif self._tables:
            self._due = now + AGAIN_S

    # Time, and what happens to it

    def changed(self, now: float, change: Change) -> None:
        if isinstance(change, EventsLost):
            self._plan(now)
        elif isinstance(change, LinkChanged):
            if change.link.index == self._tunnel.tun.index and not change.removed:
                if change.link.is_up and not self._is_up:  # the kernel has dropped its routes
                    self._plan(now)
                self._is_up = change.link.is_up
        elif isinstance(change, RouteChanged) and change.removed and change.route.table == TABLE:
            prefix = (change.route.destination, change.route.cidr)
            if prefix in self._routes.routes and change.route.index == self._tunnel.tun.index:
                self._plan(now)

    def looked(self, now: float) -> None:
        """The device's own interfaces or routes are others: other ones may have to forward."""
        if self._sysctls is not None or "router" in self.problems:
            self._plan(now)

    def poll_timeout(self) -> float | None:
        due = None if self._translator is None else self._translator.poll_timeout()
        return min((at for at in (self._due, due) if at is not None), default=None)

    def on_timeout(self, now: float) -> None:
        is_other = self._translator is not None and self._translator.on_timeout(now)
        if is_other or (self._due is not None and now >= self._due):
            self.apply(now, anew=True)

    def close(self) -> None:
        self.problems.clear()
        pinnedtls.look_up = None
        self.wish = RouteWish()
        self._try("used", self._routes.remove)
        self._stop_routing()
        self._netlink.close()
        for why in self.problems.values():
            log.warning("routes: %s", why)

    def describe(self) -> dict[str, Any]:
        """For `routes list`: texts and flags."""
        return describe(self.wish, self._node, list(self._routes.routes), list(self.problems.values()))

    # Using

    def _use(self, wish: RouteWish) -> None:
        device_map = self._node.map
        offered = set(wish.offered)
        used = [prefix for prefix in device_map.routes or [] if prefix not in offered] if wish.accept else []
        is_out = bool(wish.exit_node)
        if not self._is_up:
            return  # until then the kernel takes no routes
        if is_out:
            from edgeagent import markedlookup

            pinnedtls.look_up = markedlookup.getaddrinfo
            self._loosen()
        else:
            pinnedtls.look_up = None
            if self._sysctls is not None and _rp("all") in self._sysctls.before:
                self._sysctls.restore([_rp("all")])
        if used or is_out or self._routes.routes:
            self._note()
            self._routes.put(used, device_map.addresses, exit_node=is_out, allow_lan=wish.allow_lan)

    def _loosen(self) -> None:
        """Answers to the agent come in by an interface that packets of others would not leave by: with strict filters
        (rp_filter, RFC 3704) the kernel takes them for forged."""
        sysctls = self._remember()
        strict = [name for name in ("all", *self._names().values()) if sysctls.get(_rp(name)) == "1"]
        if strict:
            self._set({_rp("all"): "2"})

    # Being a router

    def _be_router(self, wish: RouteWish, *, anew: bool) -> None:
        device_map = self._node.map
        routed = [prefix for prefix in device_map.approved if prefix in wish.offered and prefix not in EXIT]
        translated = self._translated(wish)
        exits = wish.offers_exit and any(prefix in device_map.approved for prefix in EXIT)
        clients = [address for _, v4, v6 in device_map.clients for address in (v4, v6)]
        if not (wish.offered or clients):
            self._stop_routing()
            return
        from edgeagent.io import forwarding

        if forwarding.find_nft() is None:
            self.problems["router"] = (
                "nft is not installed, so this device cannot route for others. Install the package nftables"
            )
            return
        if not (routed or exits or clients):
            self._stop_routing()
            return
        ruleset = forwarding.Ruleset(
            self._tunnel.tun.name,
            networks=(device_map.v4, device_map.v6),
            prefixes=[prefix for prefix in routed if prefix not in wish.translated],
            clients=clients,
            exits=exits,
            snat=wish.snat,
            real=wish.real,
            translated=translated,
        )
        v6 = exits or bool(clients) or any(len(prefix[0]) == 16 for prefix in routed)
        inside = [wish.real.get(prefix, prefix) for prefix in routed]
        wanted = self._wanted_sysctls(inside, exits=exits, v6=v6)
        if translated is not None and translated.interface in self._names().values():
            wanted[f"net/ipv4/conf/{translated.interface}/forwarding"] = "1"
        sysctls = self._remember()
        sysctls.restore([name for name in sysctls.before if name not in wanted and name != _rp("all")])
        text = ruleset.text()
        if text != self._applied or anew:
            self._tables = True
            self._note()
            try:
                forwarding.nft(text)
            except forwarding.NftError as error:
                self.problems["router"] = f"{error}"
                return  # nothing is forwarded that no table looks at
            if text != self._applied:
                self._applied = text
                self._tunnel.look()
        self._set(wanted)

    def _translated(self, wish: RouteWish) -> Translated | None:
        """What of the approved prefixes is IPv4 under IPv6; None where nothing is."""
        found = {shown: inside for shown, inside in wish.translated.items() if shown in self._node.map.approved}
        if not found:
            return None
        from edgeagent.io import forwarding, tayga

        ends = tayga.Ends(self._tunnel.tun.name)
        return forwarding.Translated(ends.interface, ends.source, found)

    def _translate(self, now: float, wish: RouteWish) -> None:
        """After the tables, which are there before anything comes through."""
        program = None
        if wish.translated:
            from edgeagent.io import forwarding

            program = forwarding.find_program("tayga")
            if program is None:
                self.problems["translator"] = _NO_TRANSLATOR
        translated = self._translated(wish)
        if program is None or translated is None or "router" in self.problems:
            self._end_translator()
            return
        if self._translator is None:
            from edgeagent.translator import Translator

            self._translator = Translator(
                self._context.selector,
                self._netlink,
                self._tunnel.tun.name,
                program,
                self._context.keystore.directory,
            )
        self._translator.serve(now, list(translated.prefixes))
        if self._translator.problem:
            self.problems["translator"] = f"IPv4 prefixes under IPv6 (4via6) are not routed: {self._translator.problem}"

    def _end_translator(self) -> None:
        if self._translator is not None:
            self._translator.close()
            self._translator = None

    def _wanted_sysctls(self, routed: list[Prefix], *, exits: bool, v6: bool) -> dict[str, str]:
        """Packets are forwarded by what the interface says that they come in by: ours, and for their answers those that
        lead to the prefixes. IPv6 knows one switch for all, and with it takes no more router advertisements (RFC 4861)
        unless told to."""
        names = self._names()
        indexes = {self._tunnel.tun.index}
        own = [address for address in self._netlink.addresses() if len(address.address) == 4]
        for prefix in [each for each in routed if len(each[0]) == 4]:
            here = {each.index for each in own if prefixes.holds(prefix, each.address)}
            ends = (prefix[0][:3] + bytes([prefix[0][3] | 1]), prefixes.last(prefix))
            for inside in ends if prefix[1] < 32 else ends[1:]:
                try:
                    here.add(self._netlink.route_to(inside, mark=MARK).index)
                except OSError as error:
                    log.debug("routes: %s: no way there: %s", prefixes.to_text(prefix), error.strerror)
            indexes |= here
        if exits:
            indexes |= {route.index for route in self._netlink.default_routes() if len(route.destination) == 4}
        wanted = {f"net/ipv4/conf/{names[index]}/forwarding": "1" for index in sorted(indexes) if index in names}
        if v6:
            sysctls = self._remember()
            for setting in [f"net/ipv6/conf/{name}/accept_ra" for name in names.values() if name != "lo"]:
                if setting in sysctls.before or sysctls.get(setting) == "1":
                    wanted[setting] = "2"
            wanted["net/ipv6/conf/all/forwarding"] = "1"
        return wanted

    def _stop_routing(self) -> None:
        self._end_translator()
        if self._tables:
            from edgeagent.io import forwarding

            self._tables, self._applied = False, None
            try:
                forwarding.nft(forwarding.removal(self._tunnel.tun.name))
            except forwarding.NftError as error:
                self.problems["router"] = f"{error}"
        if self._sysctls is not None:
            keep = _rp("all") if self.wish.exit_node else ""
            self._sysctls.restore([name for name in self._sysctls.before if name != keep])
        if not self.wish.exit_node and not self._routes.routes:
            self._context.keystore.remove(StateFile.ROUTING)

    # What is to be put back

    def _remember(self) -> Sysctls:
        if self._sysctls is None:
            from edgeagent.io.forwarding import Sysctls

            self._sysctls = Sysctls({})
        return self._sysctls

    def _set(self, wanted: dict[str, str]) -> None:
        sysctls = self._remember()
        changes = {name: value for name, value in wanted.items() if sysctls.note(name, value)}
        if not changes:
            return
        self._note()
        for name, value in changes.items():
            try:
                sysctls.set(name, value)
            except OSError as error:
                self.problems["sysctl"] = f"{name.replace('/', '.')} cannot be set to {value}: {error.strerror}"
        self._tunnel.look()

    def _note(self) -> None:
        """Before anything outside is changed: a power cut may come at any time."""
        before = [] if self._sysctls is None else [list(row) for row in self._sysctls.before.items()]
        nft = [self._tunnel.tun.name] if self._tables else []
        body = encode({"boot": _boot_id(), "sysctl": before, "nft": nft})
        self._context.save(StateFile.ROUTING, body)

    # Inner

    def _plan(self, now: float) -> None:
        at = max(now + REPAIR_AFTER_S, self._put_at + REPAIR_SPACING_S)
        self._due = at if self._due is None else min(self._due, at)

    def _names(self) -> dict[int, str]:
        return {link.index: link.name for link in self._netlink.links()}

    def _try(self, part: str, change: Callable[[], None]) -> None:
        try:
            change()
        except OSError as error:
            if error.errno != errno.ENETDOWN:
                what = "routes of others cannot be used" if part == "used" else "this device cannot route for others"
                self.problems[part] = f"{what}: {error.strerror or error}"


def describe(
    wish: RouteWish, node: Node | None = None, in_kernel: list[Prefix] | None = None, problems: list[str] | None = None
) -> dict[str, Any]:
    """What `routes list` shows; of a device that is no member, what it wants."""
    approved = [] if node is None else node.map.approved
    used = []
    for prefix in [] if node is None or not wish.accept else node.map.routes or []:
        assert node is not None
        group = None if node.routers is None else node.routers.groups.get(prefix)
        entry = None if group is None or group.active is None else node.client.records.get(group.active)
        used.append(
            {
                "prefix": prefixes.to_text(prefix),
                "via": _via(prefix),
                "router": None if entry is None else entry.record.name,
                "switches": 0 if group is None else group.switches,
                "in_kernel": prefix in (in_kernel or ()),
            }
        )
    return {
        "advertised": [
            {
                "prefix": prefixes.to_text(each),
                "real": prefixes.to_text(wish.real[each]) if each in wish.real else None,
                "via": _via(each),
                "approved": each in approved,
            }
            for each in wish.advertise
        ],
        "exit_node_offered": wish.offers_exit,
        "exit_node_approved": wish.offers_exit and any(prefix in approved for prefix in EXIT),
        "snat": wish.snat,
        "accept": wish.accept,
        "used": used,
        "exit_node": wish.exit_node or None,
        "exit_node_allow_lan": wish.allow_lan,
        "problems": problems or [],
    }


def _via(prefix: Prefix) -> str | None:
    """ "192.168.1.0/24 via 7", of an IPv6 prefix that is that."""
    if len(prefix[0]) == 4:
        return None
    from edgeagent.proto import via

    return via.to_text(prefix) or None


def load_wish(context: Context) -> RouteWish:
    data = context.load_or_none(StateFile.ROUTES)
    try:
        return RouteWish() if data is None else RouteWish.decode(data)
    except ControlError as error:
        context.damaged_files += 1
        log.warning("%s: %s; going on without it", context.keystore.path(StateFile.ROUTES), error)
        return RouteWish()


def restore(context: Context) -> None:
    """Put back what an agent that was killed had changed. After a reboot nothing of it is left."""
    folder = os.path.join(context.keystore.directory, "tayga")  # translator.py makes it
    if os.path.exists(folder):
        from edgeagent.io import tayga  # few devices need it

        tayga.end_leftovers(folder)
    data = context.load_or_none(StateFile.ROUTING)
    context.keystore.remove(StateFile.ROUTING)
    if data is None:
        return
    try:
        noted = _CHANGED.check(decode(data), "routing")
    except ControlError as error:
        log.warning("%s: %s", context.keystore.path(StateFile.ROUTING), error)
        return
    if noted["boot"] != _boot_id():
        return
    from edgeagent.io import forwarding

    log.info("the agent before this one was killed: what it changed to route is put back")
    netlink = Netlink()
    try:
        remove_leftovers(netlink)
    finally:
        netlink.close()
    for interface in noted["nft"]:
        try:
            forwarding.nft(forwarding.removal(interface))
        except forwarding.NftError as error:
            log.warning("%s: its table is not removed: %s", interface, error)
    forwarding.Sysctls(dict(noted["sysctl"])).restore()


def _boot_id() -> str:
    try:
        with open("/proc/sys/" + _BOOT_ID) as file:
            return file.read(64).strip()
    except OSError:
        return ""


def _rp(interface: str) -> str:
    return f"net/ipv4/conf/{interface}/rp_filter"
