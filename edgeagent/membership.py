"""A member at work: the node between its tunnel and its broker connection, with what it learned kept on flash."""

from __future__ import annotations

import hashlib
import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from edgeagent.context import jitter
from edgeagent.io.keystore import CacheWriter, StateError, StateFile
from edgeagent.io.mqtt import Closed, Connected, Received
from edgeagent.io.pahoclient import Login
from edgeagent.io.pinnedtls import Trust
from edgeagent.proto.codec import encode
from edgeagent.proto.control_client import Answer
from edgeagent.proto.ledger import Cause
from edgeagent.proto.node import Node
from edgeagent.proto.node_events import (
    ActiveUplinkChanged,
    AdmissionChanged,
    CacheDirty,
    Commanded,
    IdentityChanged,
    LockPinned,
    MapChanged,
    NodeKeyRenewed,
    PathChanged,
    PeerGone,
    PeerUp,
    ReconnectWanted,
    RelayNamesChanged,
    Removed,
    Resolved,
    UpdatePart,
    UplinkChanged,
)
from edgeagent.proto.records import Record
from edgeagent.relaylinks import RelayLinks
from edgeagent.tunnel import Tunnel
from edgeagent.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeagent.bindings import Bindings
    from edgeagent.commands import Commands
    from edgeagent.context import Context
    from edgeagent.io.mqtt import Event, MqttLink
    from edgeagent.modems import Modems
    from edgeagent.naming import Naming
    from edgeagent.proto.budget import Policy
    from edgeagent.proto.identity import Admission
    from edgeagent.proto.lock import Lock
    from edgeagent.proto.node_events import NodeEvent
    from edgeagent.proto.records import Query
    from edgeagent.proto.routewish import RouteWish
    from edgeagent.routing import Routing
    from edgeagent.settingstrial import SettingsTrial
    from edgeagent.updates import Updates

    OnResolved = Callable[[Record | None], None]

log = logging.getLogger("edgeagent")
DAY_S = 86_400.0
SETTLED_S = 60.0  # after which an agent out of a slot is no longer one that ends at once
TELL_MODEM_S = 3_600.0  # between two messages to the hub because of a modem
BINDINGS_LOOK_S = 60.0  # between two looks whether there is a binding to be kept


class Membership:
    """Drive it: `handle` for every event of the link, `on_timeout` at `poll_timeout()`, `settle` after any input.

    `cut_off` tells that the hub has removed the device, or that its broker refuses it: then only a new token helps.
    Raises TunnelError when the interface cannot be made, StateError when keys cannot be kept, TunGone later on.
    """

    def __init__(self, now: float, context: Context, link: MqttLink, admission: Admission) -> None:
        self._context = context
        self._link = link
        self._pin = hashlib.sha256(admission.ca_der).digest()
        self._cache = CacheWriter()
        self.refused = False  # the broker did not accept the device's credentials the last time
        self.lookups: dict[Query, list[OnResolved]] = {}
        self._bindings: Bindings | None = None
        self._commands: Commands | None = None
        self._updates: Updates | None = None
        self._settings: SettingsTrial | None = None
        self._level_changes = 0  # of those, which are followed
        self._told_at = float("-inf")  # when the hub was last told more than at a connection
        self.node = Node(
            now,
            crypto=context.crypto,
            entropy=context.entropy,
            jitter=jitter,
            tai64n=context.tai64n,
            limits=context.limits,
            identity=context.identity,
            admission=admission,
            wall=context.wall,
            boot=context.boot,
            version=VERSION,
            facts=context.facts,
            saved=context.load_or_none(StateFile.CACHE),
            mtu=context.settings.mtu,
            lock=_load_lock(context, admission),
        )
        self.tunnel = Tunnel(now, context, self.node)
        self.relays = RelayLinks(context, self.node)
        self.relays.streams.steer = link.steer = self.tunnel.steer
        self.tunnel.streams_kept = self.relays.streams.as_routed
        self.tunnel.engine.count_with(context.accounts.meter)
        self.routing: Routing | None = None  # None as long as this device neither offers routes nor may use any
        self._follow_routes(now)
        context.accounts.watch(self.relays.streams, Cause.RELAY, self.relays.carried_of)
        context.accounts.set_hub_budget(now, self.node.map)
        self._look_for_bindings(now)
        self._follow_updates(now)
        self.naming: Naming | None = None
        if context.settings.dns != "off":
            from edgeagent.naming import Naming

            self.naming = Naming(now, context, self)
        self.modems: Modems | None = None  # None as long as nothing looks as if there was one
        self._look_for_modems(now)
        if os.environ.get("EDGEAGENT_SLOT", "factory") != "factory":
            context.accounts.defer("settled", self._settled, now + SETTLED_S, SETTLED_S / 2)
        self._tell_at = now + DAY_S
        context.accounts.defer("figures", self._tell_figures, self._tell_at, DAY_S / 2)
        log.info("%s is up as %s, UDP port %d", context.settings.interface, self.node.map.name, self.tunnel.port)

    @property
    def cut_off(self) -> bool:
        return self.node.removed or self.refused

    @property
    def restart_wanted(self) -> bool:
        """The hub wants the agent to be begun anew, or another slot is to be started."""
        return any(part is not None and part.restart_wanted for part in (self._commands, self._updates, self._settings))

    @property
    def engine_given_up(self) -> str:
        """Why the agent is to be begun anew with another engine; "" where it is not, or while anything is on trial,
        of which each start counts."""
        why = self.tunnel.given_up
        if not why or self.tries_settings or (self._updates is not None and self._updates.on_trial):
            return ""
        return why

    def commands(self, now: float) -> Commands:
        """Made when there is one, or somebody asks: most devices are never told to do anything."""
        if self._commands is None:
            from edgeagent.commands import Commands

            self._commands = Commands(now, self._context, self, self._link)
        return self._commands

    def command_tables(self) -> dict[str, dict[str, int]]:
        """For `usage`: none where none came."""
        return {} if self._commands is None else self._commands.tables()

    def handle(self, now: float, event: Event) -> None:
        if isinstance(event, Received):
            log.debug("received %s, %d B", event.topic, len(event.payload))
            self.node.handle_message(now, event.topic, event.payload)
        elif isinstance(event, Connected):
            log.info("connected to %s", event.broker)
            self.refused = False
            self.node.handle_connected(now, event.session_present)
            if self._updates is not None:
                self._updates.connection_changed(now, True)
        elif isinstance(event, Closed):
            log.warning("no connection: %s", event.reason)
            self.refused = event.refused
            self._disconnected(now)

    def poll_timeout(self) -> float | None:
        times = [
            self.node.poll_timeout(),
            self.tunnel.poll_timeout(),
            self.relays.poll_timeout(),
            self._cache.poll_timeout(),
            self._bindings.poll_timeout() if self._bindings is not None else None,
            self.naming.poll_timeout() if self.naming is not None else None,
            self._commands.poll_timeout() if self._commands is not None else None,
            self._updates.poll_timeout() if self._updates is not None else None,
            self._settings.poll_timeout() if self._settings is not None else None,
            self.routing.poll_timeout() if self.routing is not None else None,
            self.modems.poll_timeout() if self.modems is not None else None,
            self.node.next_connect_at if self._link.is_idle else None,
        ]
        return min((at for at in times if at is not None), default=None)

    def on_timeout(self, now: float) -> None:
        node = self.node
        due = node.poll_timeout()
        if due is not None and due <= now:
            node.handle_timeout(now)
        addresses = self.tunnel.on_timeout(now)
        if addresses is not None:
            self._context.accounts.interfaces_changed()
            self._link.keep_if_local(addresses)
            self._look_for_modems(now)
            self._follow_price(now)
            if self.routing is not None:
                self.routing.looked(now)
        if self.routing is not None:
            self.routing.on_timeout(now)
        self.relays.on_timeout(now)
        if self._bindings is not None:
            self._bindings.on_timeout(now)
        if self.naming is not None:
            self.naming.on_timeout(now)
        if self._commands is not None:
            self._commands.on_timeout(now)
        if self._updates is not None:
            self._updates.on_timeout(now)
        if self._settings is not None:
            self._settings.on_timeout(now)
        if self.modems is not None:
            self._follow_modems(now, self.modems)
        due = self._cache.poll_timeout()
        if due is not None and due <= now:
            self.save_cache(now)
        if self._context.accounts.level_changes != self._level_changes:
            self._follow_price(now)
        if self._context.accounts.reconnect_wanted:
            before_s = node.mqtt_keepalive_s
            self._agree_on_keepalive()
            if node.mqtt_keepalive_s > before_s and self._link.is_up:
                self._link.close()
                self._disconnected(now)
        if self._link.is_idle and node.next_connect_at is not None and node.next_connect_at <= now:
            self._connect(now)

    def settle(self, now: float) -> None:
        """Save first, then let the world know (the order that Node asks for)."""
        self.tunnel.take_ports(now)
        self._take_events(now)
        if self._commands is not None:
            self._commands.settle(now)
            self._take_events(now)  # of the key that it may have renewed
        if self._updates is not None:
            self._updates.settle(now)
        if self._settings is not None:
            self._settings.settle(now)
        if changes := self.node.drain_subscriptions():
            self._link.subscribe([topic for topic, wanted in changes if wanted])
            self._link.unsubscribe([topic for topic, wanted in changes if not wanted])
        for publish in self.node.drain_publishes():
            log.debug("publishing %s, %d B", publish.topic, len(publish.payload))
            self._link.publish(publish.topic, publish.payload, qos=publish.qos, retain=publish.retain)
        self.relays.settle(now)
        self.tunnel.flush(now)

    def lookup(self, now: float, query: Query, on_resolved: OnResolved) -> None:
        """Calls back with the record, or None for no: at once when it is known."""
        found = self.node.lookup(now, query)
        if found is Answer.PENDING:
            self.lookups.setdefault(query, []).append(on_resolved)
        else:
            on_resolved(found if isinstance(found, Record) else None)

    def set_routes(self, now: float, wish: RouteWish) -> None:
        """What the device offers to route, and what it uses, from now on; it is kept already."""
        self._follow_routes(now, wish)
        self.tunnel.reconsider(now, wish)

    def _follow_routes(self, now: float, wish: RouteWish | None = None) -> None:
        device_map, keystore = self.node.map, self._context.keystore
        if self.routing is None:
            is_kept = wish is not None or os.path.exists(keystore.path(StateFile.ROUTES))
            if not (is_kept or device_map.routes or device_map.approved or device_map.clients):
                return
            from edgeagent.routing import Routing  # most devices never need it

            self.routing = Routing(now, self._context, self.node, self.tunnel)
            self.tunnel.on_change = self.routing.changed
        if wish is None:
            self.routing.apply(now)
        else:
            self.routing.set_wish(now, wish)

    def _follow_updates(self, now: float) -> None:
        """Most of the time no version is wanted, no setting, and nothing is on trial."""
        device_map = self.node.map
        if device_map.update_root is not None and not os.path.exists(self._context.keystore.path(StateFile.UPDATE)):
            pinned = {"pin": device_map.update_root, "no": [], "pe": []}
            self._context.save(StateFile.UPDATE, encode(pinned))  # at once: who names another one later is not believed
        if self._updates is None and (device_map.update is not None or "EDGEAGENT_ON_TRIAL" in os.environ):
            from edgeagent.updates import Updates

            self._updates = Updates(now, self._context, self, self._link)
        if self._updates is not None:
            self._updates.follow_map(now)
        if self._settings is None and (
            device_map.trial is not None or os.path.exists(self._context.keystore.path(StateFile.SETTINGS))
        ):
            from edgeagent.settingstrial import SettingsTrial

            self._settings = SettingsTrial(now, self._context, self)
        if self._settings is not None and (self._updates is None or not self._updates.on_trial):
            self._settings.follow(now, device_map.trial)

    @property
    def tries_settings(self) -> bool:
        """Whether settings of the hub are on trial: one trial at a time."""
        return self._settings is not None and self._settings.poll_timeout() is not None

    def _settled(self, now: float) -> None:
        """A start out of a slot was a good one: the launcher counts those that were not (slots.py)."""
        with suppress(OSError):
            os.unlink(os.path.join(os.path.dirname(self._context.settings.socket), "starts"))

    def farewell(self, now: float, *, returns: bool = False) -> None:
        """Publish that the device goes, and keep what it knows; `returns`: the agent begins anew at once."""
        if self._commands is not None:
            self._commands.farewell(now)
        self.node.farewell(now, returns=returns)
        self.tunnel.farewell()
        self.settle(now)
        self.save_cache(now)
        self._context.save_clock(now)

    def save_cache(self, now: float) -> None:
        self._context.save(StateFile.CACHE, self.node.snapshot(now))
        self._cache.written(now)

    def close(self) -> None:
        if self.naming is not None:
            self.naming.close()
        for waiting in self.lookups.values():
            for on_resolved in waiting:
                on_resolved(None)
        self.lookups.clear()
        if self._bindings is not None:
            self._bindings.close()
        if self._commands is not None:
            self._commands.close()
        if self.modems is not None:
            self.modems.close()
        for job in ("settled", "bindings", "bindings-save", "figures"):
            self._context.accounts.undefer(job)
        self._link.steer = None
        if self.routing is not None:
            self.routing.close()
        self.relays.close()
        self._context.accounts.unwatch(self.relays.streams)
        self.tunnel.close()

    def _connect(self, now: float) -> None:
        node = self.node
        self._agree_on_keepalive()
        self._set_figures(now)
        node.begin_session(now)
        self._take_events(now)
        will = node.last_will(now)
        login = Login(
            node.client_id,
            node.username,
            node.password,
            clean=False,
            keepalive_s=node.mqtt_keepalive_s,
            will=(will.topic, will.payload),
        )
        self._link.open(now, node.hosts, login, Trust(self._pin, node.ca_der, self._context.wall.known))

    def _disconnected(self, now: float) -> None:
        self.node.handle_disconnected(now)
        if self._commands is not None:
            self._commands.connection_lost()
        if self._updates is not None:
            self._updates.connection_changed(now, False)
        if self._settings is not None:
            self._settings.connection_lost(unsure=bool(self._link.unheard))

    def _set_figures(self, now: float) -> None:
        """How full it is here goes with the facts that the hub keeps of a device."""
        from edgeagent.usage import facts

        context = self._context
        of_modems = {} if self.modems is None else self.modems.facts()
        self.node.set_facts(context.facts | facts(now, self, context.ceiling, context.keystore.flash) | of_modems)

    def _tell_figures(self, now: float) -> None:
        self._told_at, self._tell_at = now, now + DAY_S
        self._context.accounts.defer("figures", self._tell_figures, self._tell_at, DAY_S / 2)
        self._set_figures(now)
        self.node.tell_facts(now)

    def _look_for_modems(self, now: float) -> None:
        """Most devices have none, and none of the code for them."""
        if self.modems is not None:
            self.modems.look(now)
        elif modems_likely(self._context.settings.modem):
            from edgeagent.modems import Modems

            self.modems = Modems(now, self._context)

    def _follow_modems(self, now: float, modems: Modems) -> None:
        modems.on_timeout(now)
        if modems.price_changed:
            modems.price_changed = False
            self.tunnel.look_soon(now)
        if modems.news:
            modems.news = False
            soonest = max(now, self._told_at + TELL_MODEM_S)
            if soonest < self._tell_at:
                self._tell_at = soonest
                self._context.accounts.defer("figures", self._tell_figures, soonest, 0.0)

    def _follow_price(self, now: float) -> None:
        """On a metered uplink no session at a relay is kept without need, and little is probed."""
        accounts, uplinks = self._context.accounts, self.node.reach.uplinks
        active = None if uplinks is None else uplinks.active
        policy = accounts.policy if active is None else accounts.policies.of(active.name)
        self._level_changes = accounts.level_changes
        self.node.set_price(now, on_demand=policy.on_demand, sparing=policy.probe_factor)

    def _look_for_bindings(self, now: float) -> None:
        """Begin to learn how rarely a keepalive will do, once there is one to be sent: a metered device has none."""
        relays, accounts = self.node.relays, self._context.accounts
        if relays.home is None or relays.on_demand:
            accounts.defer("bindings", self._look_for_bindings, now + DAY_S, DAY_S - BINDINGS_LOOK_S)
            return
        from edgeagent.bindings import Bindings, way_home

        self._bindings = Bindings(
            now,
            self._context,
            find_way=lambda: way_home(self.node, accounts),
            moves=lambda: relays.moves,
            knock=self.node.knock,
            use_interval=self.node.keep_bindings,
        )

    def _agree_on_keepalive(self) -> None:
        """A connection's keepalive is told to the broker at its beginning: a longer one takes another connection."""
        self.node.client.keepalive_factor = self.control_policy().keepalive_factor
        self._context.accounts.reconnect_wanted = False

    def control_policy(self) -> Policy:
        """Of the uplink that the connection to the broker takes."""
        accounts, uplinks = self._context.accounts, self.node.reach.uplinks
        if uplinks is not None and uplinks.active is not None and uplinks.bound:  # the connection is bound to it
            return accounts.policies.of(uplinks.active.name)
        return accounts.control_policy(self.node.hosts)

    def _take_events(self, now: float) -> None:
        for event in self.node.drain_events():
            take = _EVENTS.get(type(event))
            if take is not None:
                take(self, now, event)
            else:  # news that asks for nothing
                log.debug("%s", type(event).__name__)

    def _cache_dirty(self, now: float, event: CacheDirty) -> None:
        if event.urgent:
            self.save_cache(now)
        else:
            self._cache.dirty(now)

    def _identity_changed(self, now: float, event: IdentityChanged) -> None:
        if not self._context.save(StateFile.IDENTITY, self.node.identity.encode()):
            raise StateError("a new node key could not be kept, and one that may be lost must not be used")

    def _admission_changed(self, now: float, event: AdmissionChanged) -> None:
        self._context.save(StateFile.ADMISSION, self.node.admission.encode())

    def _lock_pinned(self, now: float, event: LockPinned) -> None:
        from edgeagent import locks

        if (lock := self.node.client.lock) is not None:
            locks.save(self._context, lock)
            log.info("the network's lock: statement %d, %s", lock.sequence, "on" if lock.on else "off")

    def _map_changed(self, now: float, event: MapChanged) -> None:
        log.info("the hub's map is new: this is %s", event.map.name)
        self.tunnel.apply(now, event.map)
        self.tunnel.reconsider(now, None if self.routing is None else self.routing.wish)
        if self.naming is not None:
            self.naming.apply(now, event.map)
        self._follow_routes(now)
        self._follow_updates(now)
        self._context.accounts.set_hub_budget(now, event.map)

    def _resolved(self, now: float, event: Resolved) -> None:
        for on_resolved in self.lookups.pop(event.query, ()):
            on_resolved(event.record)

    def _peer_up(self, now: float, event: PeerUp) -> None:
        log.info("%s is up, at %s", event.name, event.endpoint)

    def _peer_gone(self, now: float, event: PeerGone) -> None:
        log.info("%s is gone: %s", event.name, event.reason)

    def _path_changed(self, now: float, event: PathChanged) -> None:
        latency = "" if event.latency_ms is None else f", {event.latency_ms:.1f} ms"
        log.info("%s is reached by %s (%s%s)", event.name, event.endpoint, event.kind, latency)

    def _relay_names_changed(self, now: float, event: RelayNamesChanged) -> None:
        self.relays.look_up(now)

    def _uplink_changed(self, now: float, event: UplinkChanged) -> None:
        log.info("uplink %s: %s (%s)", event.name, event.state.value, event.reason.value)

    def _active_uplink_changed(self, now: float, event: ActiveUplinkChanged) -> None:
        log.info("what is bound to no uplink goes by %s now (%s)", event.name or "none", event.reason.value)
        self._follow_price(now)
        uplinks = self.node.reach.uplinks
        if event.name is None or uplinks is None or not uplinks.bound:
            return
        if self._link.sockets() and self.tunnel.is_elsewhere(self._link.sockets()[0], event.index):
            self._link.close()
            self._disconnected(now)

    def _key_renewed(self, now: float, event: NodeKeyRenewed) -> None:
        log.info("the node key was renewed")
        if self._commands is not None:
            self._commands.key_renewed(now)

    def _commanded(self, now: float, event: Commanded) -> None:
        self.commands(now).take(now, event.body)

    def _update_part(self, now: float, event: UpdatePart) -> None:
        if self._updates is not None:
            self._updates.take_part(now, event.body)

    def _reconnect(self, now: float, event: ReconnectWanted) -> None:
        log.info("the hub wants this device to connect anew")
        self._link.close()
        self._disconnected(now)

    def _removed(self, now: float, event: Removed) -> None:
        log.error("the hub has removed this device from the network")
        if self.naming is not None:
            self.naming.close()
            self.naming = None


def _load_lock(context: Context, admission: Admission) -> Lock | None:
    if not context.settings.lock and not os.path.exists(context.keystore.path(StateFile.LOCK)):
        return None  # most networks have none, and the code for it would be loaded for nothing
    from edgeagent import locks

    return locks.load(context, admission)


def modems_likely(setting: str, root: str = "/sys/class") -> bool:
    """Whether it is worth the memory to look closer: a modem is named, or something of the kind is plugged in."""
    if setting != "auto":
        return setting != "off"
    for kind, names in (("usbmisc", ("cdc-wdm",)), ("wwan", ("",)), ("tty", ("ttyUSB", "ttyACM"))):
        try:
            found = os.listdir(f"{root}/{kind}")
        except OSError:
            continue
        if any(name.startswith(names) for name in found):
            return True
    return False


_EVENTS: dict[type[NodeEvent], Callable[[Membership, float, Any], None]] = {
    CacheDirty: Membership._cache_dirty,
    IdentityChanged: Membership._identity_changed,
    AdmissionChanged: Membership._admission_changed,
    LockPinned: Membership._lock_pinned,
    MapChanged: Membership._map_changed,
    Resolved: Membership._resolved,
    PeerUp: Membership._peer_up,
    PeerGone: Membership._peer_gone,
    NodeKeyRenewed: Membership._key_renewed,
    PathChanged: Membership._path_changed,
    RelayNamesChanged: Membership._relay_names_changed,
    UplinkChanged: Membership._uplink_changed,
    ActiveUplinkChanged: Membership._active_uplink_changed,
    ReconnectWanted: Membership._reconnect,
    Removed: Membership._removed,
    Commanded: Membership._commanded,
    UpdatePart: Membership._update_part,
}
