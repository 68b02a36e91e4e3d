"""One transaction of the hub's database, the same in a file of SQLite and on a PostgreSQL server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Select, delete, func, literal, select
from sqlalchemy.dialects.postgresql import insert as upsert  # SQLite has taken its ON CONFLICT from there

from hub.core.model import Device, DeviceState, Job, JobKind, Network, NodeKey, Op, Outgoing, Role, Token
from hub.store import lock, statements
from hub.store.meta import load_network
from hub.store.prepared import Prepared
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
    device,
    job,
    node_key,
    outgoing,
    pair,
    stamp,
    token,
)
from hub.store.sql_parts import Parts

_CONNECTING = (DeviceState.ACTIVE.value, DeviceState.EXPIRED.value)  # those that the broker knows


class SqlTx(Parts):
    """See `hub.core.store.Tx`."""

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """What is done inside is undone when it ends by an error, which goes on to the caller."""
        statements.SAVEPOINT.run(self.connection, {})
        try:
            yield
        except BaseException:
            if not self.connection.invalidated:
                statements.UNDO.run(self.connection, {})
                statements.RELEASE.run(self.connection, {})
            raise
        statements.RELEASE.run(self.connection, {})

    def network(self) -> Network:
        return load_network(self.connection)

    def next_seq(self) -> int:
        return self._next("seq")

    # tokens

    def add_token(self, new: Token) -> None:
        self.note("tokens")
        statements.ADD_TOKEN.run(self.connection, statements.token_values(new))

    def save_token(self, changed: Token) -> None:
        self.note("tokens")
        statements.SAVE_TOKEN.run(self.connection, {**statements.token_values(changed), "b_claim": changed.claim})

    def token(self, claim: str) -> Token | None:
        row = statements.TOKEN_BY_CLAIM.first(self.connection, {"value": claim})
        return None if row is None else statements.make_token(dict(zip(statements.TOKEN_FIELDS, row, strict=True)))

    def tokens(self, *, after: str = "", limit: int = 100) -> list[Token]:
        return self._tokens(statements.TOKEN.where(token.c.claim > after), limit)

    def tokens_to_finish(self, wall_s: int, limit: int) -> list[Token]:
        return self._tokens(statements.TOKEN.where(TOKEN_TO_FINISH, token.c.not_after <= wall_s), limit)

    def tokens_to_close(self, finished_before_s: int, limit: int) -> list[Token]:
        return self._tokens(statements.TOKEN.where(TOKEN_TO_CLOSE, token.c.finished_s < finished_before_s), limit)

    def token_count(self) -> int:
        return self._number(select(func.count()).select_from(token))

    # devices

    def add_device(self, new: Device) -> None:
        self.note(f"device {new.id}")
        statements.ADD_DEVICE.run(self.connection, statements.device_values(new))
        self._next("devices")

    def save_device(self, changed: Device) -> None:
        self.note(f"device {changed.id}")
        statements.SAVE_DEVICE.run(self.connection, {**statements.device_values(changed), "b_id": changed.id})

    def save_seen(self, device_id: str, wall_s: int) -> None:
        statements.SAVE_SEEN.run(self.connection, {"b_id": device_id, "last_seen_s": wall_s})

    def device(self, device_id: str) -> Device | None:
        return self._device(statements.DEVICE_BY_ID, device_id)

    def device_by_name(self, name: str) -> Device | None:
        return self._device(statements.DEVICE_BY_NAME, name)

    def device_by_v4(self, address: int) -> Device | None:
        return self._device(statements.DEVICE_BY_V4, address)

    def device_by_v6(self, address: bytes) -> Device | None:
        return self._device(statements.DEVICE_BY_V6, address)

    def device_by_node_key(self, key: bytes) -> Device | None:
        return self._device(statements.DEVICE_BY_NODE_KEY, key)

    def devices(self, *, after: str = "", limit: int = 100, state: DeviceState | None = None) -> list[Device]:
        page = {"after": after, "limit": limit}
        if state is None:
            rows = statements.DEVICES.all(self.connection, page)
        else:
            rows = statements.DEVICES_IN_STATE.all(self.connection, {**page, "state": state.value})
        return [statements.to_device(row) for row in rows]

    def devices_to_expire(self, wall_s: int, limit: int) -> list[Device]:
        return self._devices(statements.DEVICE.where(DEVICE_TO_EXPIRE, device.c.not_after <= wall_s), limit)

    def records_to_renew(self, wall_s: int, limit: int) -> list[Device]:
        return self._devices(statements.DEVICE.where(RECORD_TO_RENEW, device.c.record_renew_s <= wall_s), limit)

    def relays(self) -> list[Device]:
        return [statements.to_device(row) for row in statements.RELAYS.all(self.connection)]

    def passes_to_renew(self, wall_s: int, limit: int) -> list[Device]:
        return self._devices(statements.DEVICE.where(PASS_TO_RENEW, device.c.pass_renew_s <= wall_s), limit)

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
        return self._number(statements.ROWS)

    def next_suffix(self, base: str) -> int:
        return self._next(f"name {base}")

    # node keys

    def node_keys(self, device_id: str) -> list[NodeKey]:
        return [NodeKey(*row) for row in statements.NODE_KEYS.all(self.connection, {"value": device_id})]

    def node_key(self, key: bytes) -> NodeKey | None:
        row = statements.NODE_KEY.first(self.connection, {"value": key})
        return None if row is None else NodeKey(*row)

    def save_node_key(self, key: NodeKey) -> None:
        statements.SAVE_NODE_KEY.run(
            self.connection, {"key": key.key, "device": key.device, "not_after": key.not_after}
        )

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

    # who knows whom

    def introduce(self, a: str, b: str) -> None:
        statements.INTRODUCE.run_many(self.connection, [{"device": a, "other": b}, {"device": b, "other": a}])

    def acquaintances(self, device_id: str, *, after: str = "", limit: int = 100) -> list[str]:
        known = select(pair.c.other).where(pair.c.device == device_id, pair.c.other > after)
        return list(self.connection.execute(known.order_by(pair.c.other).limit(limit)).scalars())

    def forget_acquaintances(self, device_id: str) -> None:
        known = select(pair.c.other).where(pair.c.device == device_id)
        self.connection.execute(delete(pair).where(pair.c.device.in_(known), pair.c.other == device_id))
        self.connection.execute(delete(pair).where(pair.c.device == device_id))

    # what devices wrote last

    def stamp(self, device_id: str, kind: str) -> tuple[int, int]:
        row = statements.STAMP.first(self.connection, {"device": device_id, "kind": kind})
        return (-1, 0) if row is None else (row[0], row[1])

    def save_stamp(self, device_id: str, kind: str, epoch: int, seq: int) -> None:
        statements.SAVE_STAMP.run(self.connection, {"device": device_id, "kind": kind, "epoch": epoch, "seq": seq})

    def highest_epoch(self, device_id: str) -> int:
        return self._number(select(func.coalesce(func.max(stamp.c.epoch), -1)).where(stamp.c.device == device_id))

    # jobs and outgoing rows

    def add_job(self, kind: JobKind, reader: str, subject: str) -> None:
        statements.ADD_JOB.run(self.connection, {"kind": kind.value, "reader": reader, "subject": subject})

    def add_jobs_for_acquaintances(self, kind: JobKind, device_id: str) -> None:
        columns: tuple[Any, Any] = (pair.c.other, literal(device_id))
        if kind is JobKind.ROTATE:
            columns = (literal(""), pair.c.other)
        known = select(literal(kind.value), *columns).where(pair.c.device == device_id).order_by(pair.c.other)
        self.connection.execute(upsert(job).from_select(["kind", "reader", "subject"], known).on_conflict_do_nothing())

    def jobs(self, limit: int) -> list[Job]:
        rows = statements.JOBS.all(self.connection, {"limit": limit})
        return [Job(number, JobKind(kind), reader, subject) for number, kind, reader, subject in rows]

    def has_round(self, kind: JobKind, reader: str) -> bool:
        found = select(job.c.id).where(job.c.kind == kind.value, job.c.reader == reader, job.c.subject > "")
        return self.connection.execute(found.limit(1)).first() is not None

    def drop_job(self, job_id: int) -> None:
        statements.DROP_JOB.run(self.connection, {"value": job_id})

    def job_count(self) -> int:
        return self._number(select(func.count()).select_from(job))

    # rollouts

    @property
    def rollouts(self) -> SqlRollouts:
        return SqlRollouts(self.connection, self.note, self._next)

    def put_out(self, item: Outgoing) -> None:
        if item.key is not None:
            statements.UNKEY.run(self.connection, {"value": item.key})
        values = {"op": item.op.value, "target": item.target, "payload": item.payload, "retain": item.retain}
        statements.PUT_OUT.run(self.connection, {**values, "role": item.role.value, "key": item.key})

    def outgoing(self, *, after: int = 0, limit: int = 100) -> list[Outgoing]:
        return [
            Outgoing(Op(op), target, payload, retain, Role(role), key, number)
            for op, target, payload, retain, role, key, number in statements.OUTGOING.all(
                self.connection, {"after": after, "limit": limit}
            )
        ]

    def drop_outgoing(self, ids: list[int]) -> None:
        statements.DROP_OUTGOING.run_many(self.connection, [{"value": number} for number in ids])

    def outgoing_depth(self) -> int:
        depth: int = statements.DEPTH.scalar(self.connection)
        return depth

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

    # rows

    def _next(self, name: str) -> int:
        value: int = statements.NEXT.scalar(self.connection, {"name": name})
        return value

    def _number(self, query: Select[Any]) -> int:
        number: int = self.connection.execute(query).scalar_one()
        return number

    def _tokens(self, query: Select[Any], limit: int) -> list[Token]:
        return [statements.to_token(row) for row in self.connection.execute(query.order_by(token.c.claim).limit(limit))]

    def _device(self, query: Prepared, value: object) -> Device | None:
        row = query.first(self.connection, {"value": value})
        return None if row is None else statements.to_device(row)

    def _devices(self, query: Select[Any], limit: int) -> list[Device]:
        return [statements.to_device(row) for row in self.connection.execute(query.order_by(device.c.id).limit(limit))]
