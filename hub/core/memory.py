"""A store in memory: the slow twin of `hub.store`, and what the simulator runs the coordinator on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from edgeagent.proto import prefixes
from hub.core.audit import Entry
from hub.core.memory_rollouts import MemoryRollouts
from hub.core.model import (
    Client,
    Command,
    Device,
    DeviceState,
    Job,
    JobKind,
    Kind,
    LockSignature,
    Network,
    NodeKey,
    Op,
    Outgoing,
    Route,
    StoredPolicy,
    Token,
)

Row = TypeVar("Row", Token, Device, Command)
_MISSING: Any = object()


class MemoryStore:
    """Plain dictionaries; a transaction that fails is undone step by step."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._tables: dict[str, dict[Any, Any]] = defaultdict(dict)

    @contextmanager
    def write(self) -> Iterator[MemoryTx]:
        tx = MemoryTx(self._network, self._tables)
        try:
            yield tx
        except BaseException:
            tx.undo()
            raise

    @contextmanager
    def read(self) -> Iterator[MemoryTx]:
        yield MemoryTx(self._network, self._tables)

    def close(self) -> None:
        """Nothing to close."""


class MemoryTx:
    """See `hub.core.store.Tx`."""

    def __init__(self, network: Network, tables: dict[str, dict[Any, Any]]) -> None:
        self._network = network
        self._tables = tables
        self._undo: list[Callable[[], None]] = []

    def undo(self) -> None:
        for step in reversed(self._undo):
            step()

    def network(self) -> Network:
        return self._network

    def next_seq(self) -> int:
        return self._count("seq")

    # tokens

    def add_token(self, token: Token) -> None:
        self._put("token", token.claim, replace(token))

    def save_token(self, token: Token) -> None:
        self._put("token", token.claim, replace(token))

    def token(self, claim: str) -> Token | None:
        return _copy(self._tables["token"].get(claim))

    def tokens(self, *, after: str = "", limit: int = 100) -> list[Token]:
        return self._some("token", lambda token: token.claim > after, limit)

    def tokens_to_finish(self, wall_s: int, limit: int) -> list[Token]:
        return self._some("token", lambda t: not t.finished_s and 0 < t.not_after <= wall_s, limit)

    def tokens_to_close(self, finished_before_s: int, limit: int) -> list[Token]:
        return self._some("token", lambda t: t.account and 0 < t.finished_s < finished_before_s, limit)

    def token_count(self) -> int:
        return len(self._tables["token"])

    # devices

    def add_device(self, device: Device) -> None:
        self._put("device", device.id, replace(device))

    def save_device(self, device: Device) -> None:
        self._put("device", device.id, replace(device))

    def save_seen(self, device_id: str, wall_s: int) -> None:
        self._put("device", device_id, replace(self._tables["device"][device_id], last_seen_s=wall_s))

    def device(self, device_id: str) -> Device | None:
        return _copy(self._tables["device"].get(device_id))

    def device_by_name(self, name: str) -> Device | None:
        return self._first(lambda device: device.name == name)

    def device_by_v4(self, address: int) -> Device | None:
        return self._first(lambda device: device.v4 == address)

    def device_by_v6(self, address: bytes) -> Device | None:
        return self._first(lambda device: device.v6 == address)

    def device_by_node_key(self, key: bytes) -> Device | None:
        known = self._tables["node_key"].get(key)
        return None if known is None else self.device(known.device)

    def devices(self, *, after: str = "", limit: int = 100, state: DeviceState | None = None) -> list[Device]:
        return self._some("device", lambda d: d.id > after and state in (None, d.state), limit)

    def devices_to_expire(self, wall_s: int, limit: int) -> list[Device]:
        return self._some("device", lambda d: d.state is DeviceState.ACTIVE and 0 < d.not_after <= wall_s, limit)

    def records_to_renew(self, wall_s: int, limit: int) -> list[Device]:
        return self._some("device", lambda d: d.state is DeviceState.ACTIVE and 0 < d.record_renew_s <= wall_s, limit)

    def relays(self) -> list[Device]:
        everything = len(self._tables["device"])
        return self._some(
            "device", lambda d: d.kind is Kind.RELAY and d.state is not DeviceState.REMOVED, limit=everything
        )

    def relay_list(self) -> bytes:
        encoded: bytes = self._tables["relays"].get("list", b"")
        return encoded

    def save_relay_list(self, encoded: bytes) -> None:
        self._put("relays", "list", encoded)

    def policy_version(self) -> int:
        return max(self._tables["policy"], default=0)

    def policy(self, version: int) -> StoredPolicy | None:
        stored: StoredPolicy | None = self._tables["policy"].get(version)
        return stored

    def policies(self, limit: int = 100) -> list[StoredPolicy]:
        return [self._tables["policy"][version] for version in sorted(self._tables["policy"], reverse=True)[:limit]]

    def add_policy(self, new: StoredPolicy) -> None:
        self._put("policy", new.version, new)

    def drop_policies(self, up_to: int) -> None:
        for version in [version for version in self._tables["policy"] if version <= up_to]:
            self._put("policy", version, _MISSING)

    def names(self) -> bytes:
        encoded: bytes = self._tables["names"].get("", b"")
        return encoded

    def save_names(self, encoded: bytes) -> None:
        self._put("names", "", encoded)

    def passes_to_renew(self, wall_s: int, limit: int) -> list[Device]:
        return self._some("device", lambda d: d.state is DeviceState.ACTIVE and 0 < d.pass_renew_s <= wall_s, limit)

    def cut_off(self, since_s: int, *, after: str = "", limit: int = 100) -> list[str]:
        def is_told(d: Device) -> bool:
            return d.id > after and d.removed_s > since_s and d.kind is Kind.DEVICE

        found = self._some("device", is_told, limit)
        return [device.id for device in found]

    def device_counts(self) -> dict[DeviceState, int]:
        states = [device.state for device in self._tables["device"].values() if device.kind is Kind.DEVICE]
        return {state: states.count(state) for state in DeviceState if state in states}

    def state_count(self, state: DeviceState) -> int:
        return sum(device.state is state for device in self._tables["device"].values())

    def online_count(self) -> int:
        return sum(device.online and device.kind is Kind.DEVICE for device in self._tables["device"].values())

    def row_count(self) -> int:
        return len(self._tables["device"])

    def next_suffix(self, base: str) -> int:
        return self._count(f"name {base}")

    # node keys

    def node_keys(self, device_id: str) -> list[NodeKey]:
        keys = [known for known in self._tables["node_key"].values() if known.device == device_id]
        return sorted(keys, key=lambda known: (-known.not_after, known.key))

    def node_key(self, key: bytes) -> NodeKey | None:
        known: NodeKey | None = self._tables["node_key"].get(key)
        return known

    def save_node_key(self, key: NodeKey) -> None:
        self._put("node_key", key.key, key)

    def drop_node_key(self, key: bytes) -> None:
        self._put("node_key", key, _MISSING)
        self._put("node_signature", key, _MISSING)

    def node_keys_expired(self, wall_s: int, limit: int) -> list[NodeKey]:
        keys: list[NodeKey] = [key for key in self._tables["node_key"].values() if key.not_after <= wall_s]
        return [key for key in keys if self._tables["device"][key.device].node_key != key.key][:limit]

    # routes and plain clients

    def routes(self, device_id: str) -> list[Route]:
        return self._routes(lambda route: route.device == device_id)

    def all_routes(self, *, after: tuple[str, bytes, int], limit: int = 100) -> list[Route]:
        return self._routes(lambda route: (route.device, *route.prefix) > after)[:limit]

    def save_route(self, route: Route) -> None:
        self._put("route", (route.device, *route.prefix), route)

    def drop_route(self, device_id: str, address: bytes, length: int) -> None:
        self._put("route", (device_id, address, length), _MISSING)

    def routes_holding(self, address: bytes) -> list[Route]:
        return self._routes(lambda r: r.advertised and r.approved and prefixes.holds(r.prefix, address))

    def prefixes_in_use(self, limit: int) -> list[tuple[bytes, int]]:
        def counts(route: Route) -> bool:
            state = self._tables["device"][route.device].state
            return route.advertised and route.approved and route.length > 0 and state is DeviceState.ACTIVE

        return sorted({route.prefix for route in self._routes(counts)})[:limit]

    def route_list(self) -> bytes:
        encoded: bytes = self._tables["route_list"].get("list", b"")
        return encoded

    def save_route_list(self, encoded: bytes) -> None:
        self._put("route_list", "list", encoded)

    def add_client(self, client: Client) -> None:
        self._put("client", client.key, client)

    def drop_client(self, key: bytes) -> None:
        self._put("client", key, _MISSING)

    def clients(self, gateway: str | None = None) -> list[Client]:
        found: list[Client] = [each for each in self._tables["client"].values() if gateway in (None, each.gateway)]
        return sorted(found, key=lambda client: client.name)

    def client_count(self) -> int:
        return len(self._tables["client"])

    def client_by_v4(self, address: int) -> Client | None:
        return next((client for client in self.clients() if client.v4 == address), None)

    def client_by_v6(self, address: bytes) -> Client | None:
        return next((client for client in self.clients() if client.v6 == address), None)

    def _routes(self, wanted: Callable[[Route], bool]) -> list[Route]:
        rows: dict[Any, Route] = self._tables["route"]
        return [rows[key] for key in sorted(rows) if wanted(rows[key])]

    # the network lock

    def lock_statements(self) -> list[bytes]:
        return [raw for _, raw in sorted(self._tables["lock"].items())]

    def add_lock_statement(self, sequence: int, raw: bytes) -> None:
        self._put("lock", sequence, raw)

    def lock_signatures(self, devices: list[str]) -> list[LockSignature]:
        rows = self._tables["lock_signature"]
        return [rows[key] for key in sorted(rows) if key[0] in devices]

    def save_lock_signature(self, signature: LockSignature) -> None:
        self._put("lock_signature", (signature.device, signature.by), signature)

    def drop_lock_signature(self, device_id: str, by: bytes) -> None:
        self._put("lock_signature", (device_id, by), _MISSING)

    def node_signatures(self, device_id: str) -> dict[bytes, tuple[int, bytes]]:
        rows = self._tables["node_signature"].items()
        return {key: (end, signature) for key, (owner, end, signature) in rows if owner == device_id}

    def signed_node_keys(self, devices: list[str], wall_s: int) -> set[bytes]:
        rows = self._tables["node_signature"].items()
        return {key for key, (owner, end, _) in rows if owner in devices and end >= wall_s}

    def save_node_signature(self, key: bytes, device_id: str, not_after: int, signature: bytes) -> None:
        self._put("node_signature", key, (device_id, not_after, signature))

    # who knows whom

    def introduce(self, a: str, b: str) -> None:
        self._put("pair", (a, b), True)
        self._put("pair", (b, a), True)

    def acquaintances(self, device_id: str, *, after: str = "", limit: int = 100) -> list[str]:
        return sorted(b for a, b in self._tables["pair"] if a == device_id and b > after)[:limit]

    def forget_acquaintances(self, device_id: str) -> None:
        for pair in [pair for pair in self._tables["pair"] if device_id in pair]:
            self._put("pair", pair, _MISSING)

    # what devices wrote last

    def stamp(self, device_id: str, kind: str) -> tuple[int, int]:
        stamp: tuple[int, int] = self._tables["stamp"].get((device_id, kind), (-1, 0))
        return stamp

    def save_stamp(self, device_id: str, kind: str, epoch: int, seq: int) -> None:
        self._put("stamp", (device_id, kind), (epoch, seq))

    def highest_epoch(self, device_id: str) -> int:
        return max((stamp[0] for (owner, _), stamp in self._tables["stamp"].items() if owner == device_id), default=-1)

    # jobs and outgoing rows

    def add_job(self, kind: JobKind, reader: str, subject: str) -> None:
        if not any((j.kind, j.reader, j.subject) == (kind, reader, subject) for j in self._tables["job"].values()):
            job = Job(self._count("job"), kind, reader, subject)
            self._put("job", job.id, job)

    def add_jobs_for_acquaintances(self, kind: JobKind, device_id: str) -> None:
        for other in self.acquaintances(device_id, limit=len(self._tables["pair"])):
            if kind is JobKind.ROTATE:
                self.add_job(kind, "", other)
            else:
                self.add_job(kind, other, device_id)

    def jobs(self, limit: int) -> list[Job]:
        return _head(self._tables["job"], limit)

    def has_round(self, kind: JobKind, reader: str) -> bool:
        return any((j.kind, j.reader) == (kind, reader) and j.subject for j in self._tables["job"].values())

    def drop_job(self, job_id: int) -> None:
        self._put("job", job_id, _MISSING)

    def job_count(self) -> int:
        return len(self._tables["job"])

    # commands

    def add_command(self, command: Command) -> None:
        self._put("command", command.id, replace(command))

    def save_command(self, command: Command) -> None:
        self._put("command", command.id, replace(command))

    def command(self, command_id: str) -> Command | None:
        return _copy(self._tables["command"].get(command_id))

    def commands(self, device_id: str, *, limit: int = 100) -> list[Command]:
        return self._commands(lambda c: c.device == device_id)[::-1][:limit]

    def open_commands(self, device_id: str) -> list[Command]:
        return self._commands(lambda c: c.device == device_id and c.state.is_open)

    def commands_due(self, wall_s: int, limit: int) -> list[Command]:
        return self._commands(lambda c: 0 < c.due_s <= wall_s)[:limit]

    def commands_finished(self, before_s: int, limit: int) -> list[str]:
        return [command.id for command in self._commands(lambda c: 0 < c.finished_s < before_s)][:limit]

    def commands_beyond(self, device_id: str, count: int, *, verb: str = "") -> list[str]:
        over = self._commands(lambda c: c.device == device_id and not c.state.is_open and verb in ("", c.verb))
        return [command.id for command in over[: max(0, len(over) - count)]]

    def drop_commands(self, ids: list[str]) -> None:
        for command_id in ids:
            self._put("command", command_id, _MISSING)
            for key in [key for key in self._tables["output"] if key[0] == command_id]:
                self._put("output", key, _MISSING)

    def save_output(self, command_id: str, number: int, data: bytes) -> None:
        self._put("output", (command_id, number), data)

    def output(self, command_id: str) -> list[tuple[int, bytes]]:
        return sorted((number, data) for (owner, number), data in self._tables["output"].items() if owner == command_id)

    def output_bytes(self, command_id: str) -> int:
        return sum(len(data) for _, data in self.output(command_id))

    def save_telemetry(self, device_id: str, wall_s: int, sample: bytes) -> None:
        self._put("telemetry", device_id, (wall_s, sample))

    def telemetry(self, device_id: str) -> tuple[int, bytes] | None:
        found: tuple[int, bytes] | None = self._tables["telemetry"].get(device_id)
        return found

    def _commands(self, wanted: Callable[[Command], bool]) -> list[Command]:
        found = [replace(command) for command in self._tables["command"].values() if wanted(command)]
        return sorted(found, key=lambda command: command.seq)

    @property
    def rollouts(self) -> MemoryRollouts:
        return MemoryRollouts(self._tables, self._put, self._count, _MISSING)

    def put_out(self, item: Outgoing) -> None:
        if item.key is not None:
            self.drop_outgoing([row.id for row in self._tables["out"].values() if row.key == item.key])
        row = replace(item, id=self._count("out"))
        self._put("out", row.id, row)

    def outgoing(self, *, after: int = 0, limit: int = 100) -> list[Outgoing]:
        return _head({number: row for number, row in self._tables["out"].items() if number > after}, limit)

    def drop_outgoing(self, ids: list[int]) -> None:
        for number in ids:
            self._put("out", number, _MISSING)

    def outgoing_depth(self) -> int:
        return len(self._tables["out"])

    # broker accounts

    def accounts(self, *, after: str = "", limit: int = 1000) -> list[tuple[str, str]]:
        known = [(token.claim, token.credential) for token in self._tables["token"].values() if token.account]
        for device in self._tables["device"].values():
            if device.state in (DeviceState.ACTIVE, DeviceState.EXPIRED):
                known.append((device.id, device.credential))
        return sorted(account for account in known if account[0] > after)[:limit]

    def accounts_in_flight(self) -> set[str]:
        return {row.target for row in self._tables["out"].values() if row.op is not Op.PUBLISH}

    # the audit log

    def last_audit(self) -> Entry | None:
        rows = self._tables["audit"]
        return rows[max(rows)] if rows else None

    def add_audit(self, entry: Entry) -> None:
        self._put("audit", entry.id, entry)

    def audit_rows(self, *, after: int = 0, limit: int = 100) -> list[Entry]:
        return _head({number: row for number, row in self._tables["audit"].items() if number > after}, limit)

    def audit_of(self, verb: str, *, limit: int) -> list[Entry]:
        found = [row for row in self._tables["audit"].values() if row.verb == verb]
        return sorted(found, key=lambda row: -row.id)[:limit]

    def drop_audit(self, up_to: int) -> None:
        for number in [number for number in self._tables["audit"] if number <= up_to]:
            self._put("audit", number, _MISSING)

    def audit_keep(self) -> bytes:
        encoded: bytes = self._tables["meta"].get("audit_keep", b"")
        return encoded

    def save_audit_keep(self, encoded: bytes) -> None:
        self._put("meta", "audit_keep", encoded)

    def emit(self, event: str, wall_s: int, **fields: str | int) -> None:
        """Nobody is told."""

    def note(self, change: str) -> None:
        """Nobody looks on."""

    # the tables

    def _put(self, table: str, key: Any, value: Any) -> None:
        rows = self._tables[table]
        old = rows.get(key, _MISSING)

        def restore() -> None:
            if old is _MISSING:
                rows.pop(key, None)
            else:
                rows[key] = old

        self._undo.append(restore)
        if value is _MISSING:
            rows.pop(key, None)
        else:
            rows[key] = value

    def _count(self, name: str) -> int:
        value: int = self._tables["counter"].get(name, 0) + 1
        self._put("counter", name, value)
        return value

    def _some(self, table: str, wanted: Callable[[Any], bool], limit: int) -> list[Any]:
        rows = self._tables[table]
        return [replace(rows[key]) for key in sorted(rows) if wanted(rows[key])][:limit]

    def _first(self, wanted: Callable[[Device], bool]) -> Device | None:
        return next((replace(device) for device in self._tables["device"].values() if wanted(device)), None)


def _copy(row: Row | None) -> Row | None:
    return None if row is None else replace(row)


def _head(rows: dict[int, Any], limit: int) -> list[Any]:
    ordered: Iterable[int] = sorted(rows)
    return [rows[number] for number in ordered][:limit]
