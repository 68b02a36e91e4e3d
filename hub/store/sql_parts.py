"""Of `SqlTx`: what modules of their own ask of the tables, a part of the hub each."""

from __future__ import annotations

from sqlalchemy import Connection

from hub.core.audit import Entry
from hub.core.model import Client, Command, LockSignature, Route, StoredPolicy
from hub.store import audits, commands, hooks, lock, policies
from hub.store import routes as route_rows
from hub.store.meta import (
    load_audit_keep,
    load_names,
    load_relay_list,
    load_route_list,
    save_audit_keep,
    save_names,
    save_relay_list,
    save_route_list,
)


class Parts:
    """`changes` are told to those who show the hub's state once the transaction is committed."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.changes: dict[str, None] = {}

    def note(self, change: str) -> None:
        """`device ID`, or one word for a kind of thing: whoever shows it shall look anew."""
        self.changes[change] = None

    # policy, names and lists of maps

    def relay_list(self) -> bytes:
        return load_relay_list(self.connection)

    def save_relay_list(self, encoded: bytes) -> None:
        save_relay_list(self.connection, encoded)

    def policy_version(self) -> int:
        return policies.newest_version(self.connection)

    def policy(self, version: int) -> StoredPolicy | None:
        return policies.load_policy(self.connection, version)

    def policies(self, limit: int = 100) -> list[StoredPolicy]:
        return policies.load_policies(self.connection, limit)

    def add_policy(self, new: StoredPolicy) -> None:
        policies.save_policy(self.connection, new)

    def drop_policies(self, up_to: int) -> None:
        policies.drop_policies(self.connection, up_to)

    def names(self) -> bytes:
        return load_names(self.connection)

    def save_names(self, encoded: bytes) -> None:
        save_names(self.connection, encoded)

    # routes and plain clients

    def routes(self, device_id: str) -> list[Route]:
        return route_rows.routes(self.connection, device_id)

    def all_routes(self, *, after: tuple[str, bytes, int], limit: int = 100) -> list[Route]:
        return route_rows.all_routes(self.connection, after, limit)

    def save_route(self, route: Route) -> None:
        route_rows.save_route(self.connection, route)

    def drop_route(self, device_id: str, address: bytes, length: int) -> None:
        route_rows.drop_route(self.connection, device_id, address, length)

    def routes_holding(self, address: bytes) -> list[Route]:
        return route_rows.routes_holding(self.connection, address)

    def prefixes_in_use(self, limit: int) -> list[tuple[bytes, int]]:
        return route_rows.prefixes_in_use(self.connection, limit)

    def route_list(self) -> bytes:
        return load_route_list(self.connection)

    def save_route_list(self, encoded: bytes) -> None:
        save_route_list(self.connection, encoded)

    def add_client(self, client: Client) -> None:
        route_rows.add_client(self.connection, client)

    def drop_client(self, key: bytes) -> None:
        route_rows.drop_client(self.connection, key)

    def clients(self, gateway: str | None = None) -> list[Client]:
        return route_rows.clients(self.connection, gateway)

    def client_count(self) -> int:
        return route_rows.client_count(self.connection)

    def client_by_v4(self, address: int) -> Client | None:
        return route_rows.client_by(self.connection, address, None)

    def client_by_v6(self, address: bytes) -> Client | None:
        return route_rows.client_by(self.connection, None, address)

    # the network lock

    def lock_statements(self) -> list[bytes]:
        return lock.statements(self.connection)

    def add_lock_statement(self, sequence: int, raw: bytes) -> None:
        lock.add_statement(self.connection, sequence, raw)

    def lock_signatures(self, devices: list[str]) -> list[LockSignature]:
        return lock.signatures(self.connection, devices)

    def save_lock_signature(self, signature: LockSignature) -> None:
        lock.save_signature(self.connection, signature)

    def drop_lock_signature(self, device_id: str, by: bytes) -> None:
        lock.drop_signature(self.connection, device_id, by)

    def node_signatures(self, device_id: str) -> dict[bytes, tuple[int, bytes]]:
        return lock.node_signatures(self.connection, device_id)

    def signed_node_keys(self, devices: list[str], wall_s: int) -> set[bytes]:
        return lock.signed_node_keys(self.connection, devices, wall_s)

    def save_node_signature(self, key: bytes, device_id: str, not_after: int, signature: bytes) -> None:
        lock.save_node_signature(self.connection, key, device_id, not_after, signature)

    # commands

    def add_command(self, new: Command) -> None:
        self.note(f"commands:{new.device}")
        commands.add(self.connection, new)

    def save_command(self, changed: Command) -> None:
        self.note(f"commands:{changed.device}")
        commands.save(self.connection, changed)

    def command(self, command_id: str) -> Command | None:
        return commands.find(self.connection, command_id)

    def commands(self, device_id: str, *, limit: int = 100) -> list[Command]:
        return commands.of_device(self.connection, device_id, limit)

    def open_commands(self, device_id: str) -> list[Command]:
        return commands.open_of_device(self.connection, device_id)

    def commands_due(self, wall_s: int, limit: int) -> list[Command]:
        return commands.due(self.connection, wall_s, limit)

    def commands_finished(self, before_s: int, limit: int) -> list[str]:
        return commands.finished(self.connection, before_s, limit)

    def commands_beyond(self, device_id: str, count: int, *, verb: str = "") -> list[str]:
        return commands.beyond(self.connection, device_id, count, verb)

    def drop_commands(self, ids: list[str]) -> None:
        commands.drop(self.connection, ids)

    def save_output(self, command_id: str, number: int, data: bytes) -> None:
        commands.save_output(self.connection, command_id, number, data)

    def output(self, command_id: str) -> list[tuple[int, bytes]]:
        return commands.output(self.connection, command_id)

    def output_bytes(self, command_id: str) -> int:
        return commands.output_bytes(self.connection, command_id)

    def save_telemetry(self, device_id: str, wall_s: int, sample: bytes) -> None:
        self.note(f"telemetry:{device_id}")
        commands.save_telemetry(self.connection, device_id, wall_s, sample)

    def telemetry(self, device_id: str) -> tuple[int, bytes] | None:
        return commands.load_telemetry(self.connection, device_id)

    # the audit log

    def last_audit(self) -> Entry | None:
        return audits.last(self.connection)

    def add_audit(self, entry: Entry) -> None:
        self.note("audit")
        audits.add(self.connection, entry)

    def audit_rows(self, *, after: int = 0, limit: int = 100) -> list[Entry]:
        return audits.rows(self.connection, after=after, limit=limit)

    def audit_of(self, verb: str, *, limit: int) -> list[Entry]:
        return audits.of(self.connection, verb, limit=limit)

    def drop_audit(self, up_to: int) -> None:
        audits.drop(self.connection, up_to)

    def audit_keep(self) -> bytes:
        return load_audit_keep(self.connection)

    def save_audit_keep(self, encoded: bytes) -> None:
        save_audit_keep(self.connection, encoded)

    def emit(self, event: str, wall_s: int, **fields: str | int) -> None:
        if hooks.emit(self.connection, event, wall_s, fields):
            self.note("webhooks")
