"""While somebody at the hub looks at this device: what it says of itself, in whole numbers, a few kilobytes at most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeagent import ceiling
from edgeagent.proto.node_status import peers, policy
from edgeagent.proto.telemetry import POLICY_COUNTS, write
from edgeagent.usage import member_tables

if TYPE_CHECKING:
    from edgeagent.context import Context
    from edgeagent.membership import Membership
    from edgeagent.proto.commands import Entry

FACTOR_MAX = 4  # how much rarer a sample may become on a metered uplink, before there is none


class Watch:
    """Call `sample` at `next_at`, unless it `is_over` or `costs_too_much`. `entry` is the command that began it."""

    def __init__(self, now: float, entry: Entry, context: Context, member: Membership) -> None:
        self.entry = entry
        self.next_at = now
        self._until = now + entry.args["s"]
        self._context = context
        self._member = member
        self._before: dict[str, tuple[int, int]] = {}  # bytes received and sent, by device
        self._sampled_at = now

    def is_over(self, now: float) -> bool:
        return bool(now >= self._until)

    def costs_too_much(self, now: float) -> bool:
        return self._member.control_policy().telemetry_factor > FACTOR_MAX

    def skip(self, now: float) -> None:
        """`next_at` is set, and no more."""
        every_s = self.entry.args["ev"] * self._member.control_policy().telemetry_factor
        self.next_at = min(now + every_s, self._until)

    def sample(self, now: float) -> bytes:
        """The device as it is now; `next_at` is set."""
        self.skip(now)
        member, context = self._member, self._context
        member.tunnel.sync(now)
        used, own = ceiling.process(), context.ceiling
        tables = member_tables(member)
        amounts = [(name, int(t.get("used", t.get("peak", 0))), int(t["ceiling"])) for name, t in tables.items()]
        amounts.sort(key=lambda row: -row[1] / max(1, row[2]))
        rows = self._peers(now)
        return write(
            {
                "t": max(0, int(context.wall.at(now))),
                "up": int(now - context.started_at),
                "m": [used.get("rss_kib", 0), own.kib, own.hits],
                "tb": [list(row) for row in amounts],
                "np": len(rows),
                "p": rows,
                "l": self._ledger(now),
                "u": self._uplinks(now),
                "d": self._drops(now),
                **self._policy(),
                **self._modems(now),
            }
        )

    def _peers(self, now: float) -> list[list[Any]]:
        """Those with most traffic first."""
        span_s = now - self._sampled_at
        self._sampled_at = now
        found: list[list[Any]] = []
        seen: dict[str, tuple[int, int]] = {}
        carriers = {
            session.relay.id: session.client.carrier.value
            for session in self._member.node.relays.sessions.all
            if session.client.carrier is not None
        }
        for row in peers(now, self._member.node):
            rx, tx = row["rx_bytes"], row["tx_bytes"]
            assert isinstance(rx, int) and isinstance(tx, int)
            device = str(row["device"])
            before = self._before.get(device, (rx, tx))
            seen[device] = (rx, tx)
            rates = [
                max(0, round((new - old) / span_s)) if span_s else 0 for new, old in zip((rx, tx), before, strict=True)
            ]
            latency = row["latency_ms"]
            micros = round(1000 * latency) if isinstance(latency, int | float) else None
            carrier = row["path_uplink"] or ""
            endpoint = str(row["endpoint"] or "")
            if row["path"] == "relay":
                relay = endpoint.partition(":")[2]
                carrier = f"{relay} {carriers.get(relay, '')}".strip()
            found.append([device, str(row["name"])[:63], str(row["path"]), str(carrier)[:63], micros, *rates, rx, tx])
        self._before = seen
        found.sort(key=lambda row: -(row[5] + row[6]))
        return found

    def _ledger(self, now: float) -> list[list[Any]]:
        lines = self._context.accounts.ledger.lines(now)
        return [[line.uplink, int(line.cause), *line.day] for line in lines if any(line.day)]

    def _uplinks(self, now: float) -> list[list[Any]]:
        uplinks, policies = self._member.node.reach.uplinks, self._context.accounts.policies
        modems = self._member.modems
        found: list[list[Any]] = []
        for row in [] if uplinks is None else uplinks.rows(now):
            name = row["name"]
            modem = None if modems is None else modems.of_uplink(name, now)
            signal = None if modem is None else modem.signal_dbm
            level = policies.level(name).name.lower()
            found.append([name, row["state"], row["active"], row["metered"], level, signal])
        return found

    def _modems(self, now: float) -> dict[str, Any]:
        """Nothing where there are none; they are asked more often while somebody looks."""
        modems = self._member.modems
        if modems is None:
            return {}
        modems.watched(now)
        names = ("technology", "band", "operator", "registration", "apn")
        values = ("bars", "rsrp_dbm", "rsrq_db", "sinr_db", "rssi_dbm", "received", "sent", "age_s")
        rows = [row for row in modems.rows(now) if row["fresh"]]
        return {
            "mo": [
                [
                    row["uplink"] or row["port"][:64],
                    *(row[name] or "" for name in names),
                    *(row[name] for name in values),
                ]
                for row in rows
            ]
        }

    def _drops(self, now: float) -> list[list[Any]]:
        """The most frequent first. An engine and the machine that it drives may drop for the same reason."""
        tunnel, node = self._member.tunnel, self._member.node
        counts: dict[str, int] = {}
        for drops in (node.device.drops, node.client.all_drops(), tunnel.engine.drops, tunnel.udp.drops):
            for reason, count in drops.items():
                if count:
                    counts[reason.value] = counts.get(reason.value, 0) + count
        return [[reason, count] for reason, count in sorted(counts.items(), key=lambda item: -item[1])]

    def _policy(self) -> dict[str, Any]:
        """Nothing where none is in force."""
        told = policy(self._member.node)
        return {} if told is None else {"po": told["version"], "pc": [told[name] for name in POLICY_COUNTS]}
