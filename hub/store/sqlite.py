"""The store that lasts: SQLAlchemy Core on SQLite. One writer at a time, across processes; readers never wait."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, delete, func, insert, literal, literal_column, select
from sqlalchemy import update as update_
from sqlalchemy.dialects.postgresql import insert as upsert  # SQLite has taken its ON CONFLICT from there
from sqlalchemy.exc import OperationalError

from hub.core.audit import Entry
from hub.core.model import (
    Client,
    Command,
    Device,
    DeviceState,
    HubBusy,
    HubError,
    Job,
    JobKind,
    Kind,
    LockSignature,
    Network,
    NodeKey,
    Op,
    Outgoing,
    Role,
    Route,
    StoredPolicy,
    Token,
)
from hub.store import audits, commands, database, hooks, lock, policies
from hub.store import routes as route_rows
from hub.store.meta import (
    load_names,
    load_network,
    load_relay_list,
    load_route_list,
    save_names,
    save_relay_list,
    save_route_list,
)
from hub.store.rollouts import SqlRollouts
from hub.store.schema import (
    ABOUT_ACCOUNTS,
    CUT_OFF,
    DEVICE_ONLINE,
    DEVICE_TO_EXPIRE,
    IS_RELAY,
    PASS_TO_RENEW,
    RECORD_TO_RENEW,
    TOKEN_TO_CLOSE,
    TOKEN_TO_FINISH,
    counter,
    device,
    job,
    node_key,
    outgoing,
    pair,
    stamp,
    token,
)

_TOKEN_FIELDS = [field.name for field in fields(Token)]
_DEVICE_FIELDS = [field.name for field in fields(Device)]
_CONNECTING = (DeviceState.ACTIVE.value, DeviceState.EXPIRED.value)  # those that the broker knows

# Built once: building a statement costs more than running it.
_NEXT = (
    upsert(counter)
    .values(name=bindparam("name"), value=1)
    .on_conflict_do_update(index_elements=["name"], set_={"value": counter.c.value + 1})
    .returning(counter.c.value)
)
_TOKEN = select(token)
_DEVICE = select(device)
_ADD_TOKEN = insert(token)
_SAVE_TOKEN = update_(token).where(token.c.claim == bindparam("b_claim"))
_ADD_DEVICE = insert(device)
_SAVE_DEVICE = update_(device).where(device.c.id == bindparam("b_id"))
_DEVICE_BY_ID = _DEVICE.where(device.c.id == bindparam("value"))
_DEVICE_BY_NAME = _DEVICE.where(device.c.name == bindparam("value"))
_DEVICE_BY_V4 = _DEVICE.where(device.c.v4 == bindparam("value"))
_DEVICE_BY_V6 = _DEVICE.where(device.c.v6 == bindparam("value"))
_DEVICE_BY_NODE_KEY = _DEVICE.join(node_key, node_key.c.device == device.c.id).where(
    node_key.c.key == bindparam("value")
)
_NODE_KEYS = (
    select(node_key)
    .where(node_key.c.device == bindparam("value"))
    .order_by(node_key.c.not_after.desc(), node_key.c.key)
)
_SAVE_NODE_KEY = upsert(node_key).on_conflict_do_update(
    index_elements=["key"], set_={"not_after": literal_column("excluded.not_after")}
)
_INTRODUCE = upsert(pair).on_conflict_do_nothing()
_STAMP = select(stamp.c.epoch, stamp.c.seq).where(
    stamp.c.device == bindparam("device"), stamp.c.kind == bindparam("kind")
)
_SAVE_STAMP = upsert(stamp).on_conflict_do_update(
    index_elements=["device", "kind"],
    set_={"epoch": literal_column("excluded.epoch"), "seq": literal_column("excluded.seq")},
)
_ADD_JOB = upsert(job).on_conflict_do_nothing()
_JOBS = select(job).order_by(job.c.id).limit(bindparam("limit"))
_PUT_OUT = insert(outgoing)
_ROWS = select(func.coalesce(select(counter.c.value).where(counter.c.name == "devices").scalar_subquery(), 0))
_UNKEY = delete(outgoing).where(outgoing.c.key == bindparam("value"))
_OUTGOING = select(outgoing).where(outgoing.c.id > bindparam("after")).order_by(outgoing.c.id).limit(bindparam("limit"))
_DEPTH = select(
    func.coalesce(select(func.max(outgoing.c.id)).scalar_subquery(), 0)
    - func.coalesce(select(func.min(outgoing.c.id)).scalar_subquery(), 1)
    + 1
)


class SqliteStore:
    """One connection to the hub's database file. Raises HubError when the file is missing or of another form."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise HubError(f"{path}: there is no hub here. `edgehub init` makes one")
        self._engine = database.open_engine(path)
        found = database.revision(self._engine)
        if found != database.NEWEST:
            self._engine.dispose()
            raise HubError(
                f"{path}: the database has the form {found}, this program knows {database.NEWEST}. "
                "Restart `edgehub serve`: it brings an older one up to date"
            )
        self._connection = self._engine.connect()

    @contextmanager
    def write(self) -> Iterator[SqliteTx]:
        yield from self._transaction("BEGIN IMMEDIATE")

    @contextmanager
    def read(self) -> Iterator[SqliteTx]:
        yield from self._transaction("BEGIN")

    def changes(self) -> int:
        """A number that changes when another process has written."""
        version: int = self._connection.exec_driver_sql("PRAGMA data_version").scalar_one()
        self._connection.rollback()
        return version

    def close(self) -> None:
        self._connection.close()
        self._engine.dispose()

    def _transaction(self, begin: str) -> Iterator[SqliteTx]:
        with self._connection.begin():
            try:
                self._connection.exec_driver_sql(begin)
            except OperationalError as error:
                raise HubBusy(
                    f"the database is busy ({error.orig}): another `edgehub` holds it for more than "
                    f"{database.BUSY_TIMEOUT_S:.0f} s. Try again"
                ) from error
            yield SqliteTx(self._connection)


class SqliteTx:
    """See `hub.core.store.Tx`."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.changes: dict[str, None] = {}  # what `hub.io.live` shall say once this is committed

    def note(self, change: str) -> None:
        """`device ID`, or one word for a kind of thing: whoever shows it shall look anew."""
        self.changes[change] = None

    def network(self) -> Network:
        return load_network(self.connection)

    def next_seq(self) -> int:
        return self._next("seq")

    # tokens

    def add_token(self, new: Token) -> None:
        self.note("tokens")
        self.connection.execute(_ADD_TOKEN, _token_values(new))

    def save_token(self, changed: Token) -> None:
        self.note("tokens")
        self.connection.execute(_SAVE_TOKEN, {**_token_values(changed), "b_claim": changed.claim})

    def token(self, claim: str) -> Token | None:
        row = self.connection.execute(_TOKEN.where(token.c.claim == claim)).first()
        return None if row is None else to_token(row)

    def tokens(self, *, after: str = "", limit: int = 100) -> list[Token]:
        return self._tokens(_TOKEN.where(token.c.claim > after), limit)

    def tokens_to_finish(self, wall_s: int, limit: int) -> list[Token]:
        return self._tokens(_TOKEN.where(TOKEN_TO_FINISH, token.c.not_after <= wall_s), limit)

    def tokens_to_close(self, finished_before_s: int, limit: int) -> list[Token]:
        return self._tokens(_TOKEN.where(TOKEN_TO_CLOSE, token.c.finished_s < finished_before_s), limit)

    def token_count(self) -> int:
        return self._number(select(func.count()).select_from(token))

    # devices

    def add_device(self, new: Device) -> None:
        self.note(f"device {new.id}")
        self.connection.execute(_ADD_DEVICE, _device_values(new))
        self._next("devices")

    def save_device(self, changed: Device) -> None:
        self.note(f"device {changed.id}")
        self.connection.execute(_SAVE_DEVICE, {**_device_values(changed), "b_id": changed.id})

    def save_seen(self, device_id: str, wall_s: int) -> None:
        self.connection.execute(update_(device).where(device.c.id == device_id).values(last_seen_s=wall_s))

    def device(self, device_id: str) -> Device | None:
        return self._device(_DEVICE_BY_ID, device_id)

    def device_by_name(self, name: str) -> Device | None:
        return self._device(_DEVICE_BY_NAME, name)

    def device_by_v4(self, address: int) -> Device | None:
        return self._device(_DEVICE_BY_V4, address)

    def device_by_v6(self, address: bytes) -> Device | None:
        return self._device(_DEVICE_BY_V6, address)

    def device_by_node_key(self, key: bytes) -> Device | None:
        return self._device(_DEVICE_BY_NODE_KEY, key)

    def devices(self, *, after: str = "", limit: int = 100, state: DeviceState | None = None) -> list[Device]:
        query = _DEVICE.where(device.c.id > after)
        if state is not None:
            query = query.where(device.c.state == state.value)
        return self._devices(query, limit)

    def devices_to_expire(self, wall_s: int, limit: int) -> list[Device]:
        return self._devices(_DEVICE.where(DEVICE_TO_EXPIRE, device.c.not_after <= wall_s), limit)

    def records_to_renew(self, wall_s: int, limit: int) -> list[Device]:
        return self._devices(_DEVICE.where(RECORD_TO_RENEW, device.c.record_renew_s <= wall_s), limit)

    def relays(self) -> list[Device]:
        query = _DEVICE.where(IS_RELAY, device.c.state != DeviceState.REMOVED.value).order_by(device.c.id)
        return [_to_device(row) for row in self.connection.execute(query)]

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

    def passes_to_renew(self, wall_s: int, limit: int) -> list[Device]:
        return self._devices(_DEVICE.where(PASS_TO_RENEW, device.c.pass_renew_s <= wall_s), limit)

    def cut_off(self, since_s: int, *, after: str = "", limit: int = 100) -> list[str]:
        ended = select(device.c.id).where(CUT_OFF, device.c.id > after, device.c.removed_s > since_s)
        return list(self.connection.execute(ended.order_by(device.c.id).limit(limit)).scalars())

    def device_counts(self) -> dict[DeviceState, int]:
        by_state = select(device.c.state, func.count()).group_by(device.c.state)  # answered from an index alone
        counts = {DeviceState(state): count for state, count in self.connection.execute(by_state)}
        for state, count in self.connection.execute(by_state.where(IS_RELAY)):
            counts[DeviceState(state)] -= count
        return {state: count for state, count in counts.items() if count}

    def state_count(self, state: DeviceState) -> int:
        return self._number(select(func.count()).where(device.c.state == state.value))

    def online_count(self) -> int:
        online = select(func.count()).select_from(device).where(DEVICE_ONLINE)
        return self._number(online) - self._number(online.where(IS_RELAY))

    def row_count(self) -> int:
        return self._number(_ROWS)

    def next_suffix(self, base: str) -> int:
        return self._next(f"name {base}")

    # node keys

    def node_keys(self, device_id: str) -> list[NodeKey]:
        return [NodeKey(*row) for row in self.connection.execute(_NODE_KEYS, {"value": device_id})]

    def node_key(self, key: bytes) -> NodeKey | None:
        row = self.connection.execute(select(node_key).where(node_key.c.key == key)).first()
        return None if row is None else NodeKey(*row)

    def save_node_key(self, key: NodeKey) -> None:
        self.connection.execute(_SAVE_NODE_KEY, {"key": key.key, "device": key.device, "not_after": key.not_after})

    def drop_node_key(self, key: bytes) -> None:
        lock.drop_node_signature(self.connection, key)
        self.connection.execute(delete(node_key).where(node_key.c.key == key))

    def node_keys_expired(self, wall_s: int, limit: int) -> list[NodeKey]:
        query = (
            select(node_key)
            .join(device, device.c.id == node_key.c.device)
            .where(node_key.c.not_after <= wall_s, device.c.node_key != node_key.c.key)
            .limit(limit)
        )
        return [NodeKey(*row) for row in self.connection.execute(query)]

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

    # who knows whom

    def introduce(self, a: str, b: str) -> None:
        self.connection.execute(_INTRODUCE, [{"device": a, "other": b}, {"device": b, "other": a}])

    def acquaintances(self, device_id: str, *, after: str = "", limit: int = 100) -> list[str]:
        known = select(pair.c.other).where(pair.c.device == device_id, pair.c.other > after)
        return list(self.connection.execute(known.order_by(pair.c.other).limit(limit)).scalars())

    def forget_acquaintances(self, device_id: str) -> None:
        known = select(pair.c.other).where(pair.c.device == device_id)
        self.connection.execute(delete(pair).where(pair.c.device.in_(known), pair.c.other == device_id))
        self.connection.execute(delete(pair).where(pair.c.device == device_id))

    # what devices wrote last

    def stamp(self, device_id: str, kind: str) -> tuple[int, int]:
        row = self.connection.execute(_STAMP, {"device": device_id, "kind": kind}).first()
        return (-1, 0) if row is None else (row.epoch, row.seq)

    def save_stamp(self, device_id: str, kind: str, epoch: int, seq: int) -> None:
        self.connection.execute(_SAVE_STAMP, {"device": device_id, "kind": kind, "epoch": epoch, "seq": seq})

    def highest_epoch(self, device_id: str) -> int:
        return self._number(select(func.coalesce(func.max(stamp.c.epoch), -1)).where(stamp.c.device == device_id))

    # jobs and outgoing rows

    def add_job(self, kind: JobKind, reader: str, subject: str) -> None:
        self.connection.execute(_ADD_JOB, {"kind": kind.value, "reader": reader, "subject": subject})

    def add_jobs_for_acquaintances(self, kind: JobKind, device_id: str) -> None:
        columns: tuple[Any, Any] = (pair.c.other, literal(device_id))
        if kind is JobKind.ROTATE:
            columns = (literal(""), pair.c.other)
        known = select(literal(kind.value), *columns).where(pair.c.device == device_id).order_by(pair.c.other)
        self.connection.execute(upsert(job).from_select(["kind", "reader", "subject"], known).on_conflict_do_nothing())

    def jobs(self, limit: int) -> list[Job]:
        rows = self.connection.execute(_JOBS, {"limit": limit})
        return [Job(row.id, JobKind(row.kind), row.reader, row.subject) for row in rows]

    def has_round(self, kind: JobKind, reader: str) -> bool:
        found = select(job.c.id).where(job.c.kind == kind.value, job.c.reader == reader, job.c.subject > "")
        return self.connection.execute(found.limit(1)).first() is not None

    def drop_job(self, job_id: int) -> None:
        self.connection.execute(delete(job).where(job.c.id == job_id))

    def job_count(self) -> int:
        return self._number(select(func.count()).select_from(job))

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

    @property
    def rollouts(self) -> SqlRollouts:
        return SqlRollouts(self.connection, self.note, self._next)

    def put_out(self, item: Outgoing) -> None:
        if item.key is not None:
            self.connection.execute(_UNKEY, {"value": item.key})
        values = {"op": item.op.value, "target": item.target, "payload": item.payload, "retain": item.retain}
        self.connection.execute(_PUT_OUT, {**values, "role": item.role.value, "key": item.key})

    def outgoing(self, *, after: int = 0, limit: int = 100) -> list[Outgoing]:
        return [
            Outgoing(Op(row.op), row.target, row.payload, row.retain, Role(row.role), row.key, row.id)
            for row in self.connection.execute(_OUTGOING, {"after": after, "limit": limit})
        ]

    def drop_outgoing(self, ids: list[int]) -> None:
        if ids:
            self.connection.execute(
                delete(outgoing).where(outgoing.c.id == bindparam("b_id")), [{"b_id": number} for number in ids]
            )

    def outgoing_depth(self) -> int:
        return self._number(_DEPTH)

    # broker accounts

    def accounts(self, *, after: str = "", limit: int = 1000) -> list[tuple[str, str]]:
        devices = select(device.c.id, device.c.credential).where(device.c.id > after, device.c.state.in_(_CONNECTING))
        claims = select(token.c.claim, token.c.credential).where(token.c.claim > after, token.c.account)
        found = [
            *self.connection.execute(devices.order_by(device.c.id).limit(limit)),
            *self.connection.execute(claims.order_by(token.c.claim).limit(limit)),
        ]
        return sorted((user, credential) for user, credential in found)[:limit]

    def accounts_in_flight(self) -> set[str]:
        query = select(outgoing.c.target).where(ABOUT_ACCOUNTS)
        return set(self.connection.execute(query).scalars())

    # the audit log

    def last_audit(self) -> Entry | None:
        return audits.last(self.connection)

    def add_audit(self, entry: Entry) -> None:
        self.note("audit")
        audits.add(self.connection, entry)

    def audit_rows(self, *, after: int = 0, limit: int = 100) -> list[Entry]:
        return audits.rows(self.connection, after=after, limit=limit)

    def emit(self, event: str, wall_s: int, **fields: str | int) -> None:
        if hooks.emit(self.connection, event, wall_s, fields):
            self.note("webhooks")

    # rows

    def _next(self, name: str) -> int:
        value: int = self.connection.execute(_NEXT, {"name": name}).scalar_one()
        return value

    def _number(self, query: Select[Any]) -> int:
        number: int = self.connection.execute(query).scalar_one()
        return number

    def _tokens(self, query: Select[Any], limit: int) -> list[Token]:
        return [to_token(row) for row in self.connection.execute(query.order_by(token.c.claim).limit(limit))]

    def _device(self, query: Select[Any], value: object) -> Device | None:
        row = self.connection.execute(query, {"value": value}).first()
        return None if row is None else _to_device(row)

    def _devices(self, query: Select[Any], limit: int) -> list[Device]:
        return [_to_device(row) for row in self.connection.execute(query.order_by(device.c.id).limit(limit))]


def _token_values(item: Token) -> dict[str, Any]:
    values = {name: getattr(item, name) for name in _TOKEN_FIELDS}
    values["tags"] = json.dumps(item.tags)
    values["kind"] = item.kind.value
    return values


def to_token(row: Row[Any]) -> Token:
    values: dict[str, Any] = dict(row._mapping)
    values["tags"] = tuple(json.loads(values["tags"]))
    values["kind"] = Kind(values["kind"])
    return Token(**values)


def _device_values(item: Device) -> dict[str, Any]:
    values = {name: getattr(item, name) for name in _DEVICE_FIELDS}
    values["state"] = item.state.value
    values["tags"] = json.dumps(item.tags)
    values["facts"] = json.dumps(item.facts)
    values["kind"] = item.kind.value
    return values


def _to_device(row: Row[Any]) -> Device:
    values: dict[str, Any] = dict(row._mapping)
    values["state"] = DeviceState(values["state"])
    values["tags"] = tuple(json.loads(values["tags"]))
    values["facts"] = json.loads(values["facts"])
    values["kind"] = Kind(values["kind"])
    return Device(**values)
