"""What only the store that lasts can get wrong: other processes, kills, migrations, indexes."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import LargeBinary

from hub.core import actions, chores
from hub.core.memory import MemoryStore
from hub.core.model import Device, DeviceState, HubError, JobKind, Kind, Network, NodeKey, Op, Outgoing
from hub.core.people import Person
from hub.core.rigs import Rig
from hub.core.roles import Access
from hub.core.store import Store
from hub.store import database, migrate, people, postgres, rigs, schema
from hub.store.meta import save_network
from hub.store.schema import metadata
from hub.store.sqlite import SqliteStore
from tests.hub.kit import (
    WALL_S,
    Dev,
    Hub,
    admitted,
    load_crypto,
    make_network,
    make_postgres,
    make_sqlite,
    open_store,
    row,
    seeded,
)
from tests.hub.postgres import PostgresServer

pytestmark = pytest.mark.long

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def network() -> Network:
    return make_network(load_crypto(), seeded(0))


# migrations


def test_migrations_give_the_tables_that_the_program_knows(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    migrate.create_file(path)
    assert path.stat().st_mode & 0o777 == 0o600
    engine = database.open_engine(path)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()
    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).with_name("migrations")))
    assert ScriptDirectory.from_config(config).get_current_head() == database.NEWEST


def test_a_database_of_the_first_form_is_brought_up_to_date(tmp_path: Path, network: Network) -> None:
    path = tmp_path / "hub.db"
    engine = database.open_engine(path)
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        config = migrate._config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        save_network(connection, network)
        tables = [("token", schema.token), ("device", schema.device)]
        for name, table in tables:
            columns = {row[1] for row in connection.exec_driver_sql(f"PRAGMA table_info({name})")}
            values = {c.name: _OLD.get(c.name, b"" if isinstance(c.type, LargeBinary) else 0) for c in table.c}
            row_of = {column: value for column, value in values.items() if column in columns}
            assert len(row_of) == len(columns) < len(table.c)
            marks = ", ".join("?" * len(row_of))
            connection.exec_driver_sql(
                f"INSERT INTO {name} ({', '.join(f'{column!r}' for column in row_of)}) VALUES ({marks})",
                tuple(row_of.values()),
            )
        connection.commit()
    engine.dispose()
    with pytest.raises(HubError, match="the form 0001"):
        SqliteStore(path)
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("UPDATE device SET removed_s = 7")  # it came back
        raw.commit()
    migrate.migrate(path)
    with closing(SqliteStore(path)) as store, store.write() as tx:
        [device], [token] = tx.devices(), tx.tokens()
        assert (device.kind, device.relay, device.pass_renew_s, device.name) == (Kind.DEVICE, b"", 0, "box")
        assert token.kind is Kind.DEVICE and token.tags == ("tag:cam",)
        assert device.barred_s == 7, "what it had before is not to count again"
        assert tx.relays() == [] and tx.relay_list() == b""
        assert tx.device_counts() == {DeviceState.ACTIVE: 1}


_OLD = {
    **dict.fromkeys(("id", "claim", "user", "credential", "pending_password", "version"), "x"),
    "state": "active",
    "name": "box",
    "tags": '["tag:cam"]',
    "facts": "{}",
}


def test_rigs_of_a_login_become_those_of_the_person(tmp_path: Path, network: Network) -> None:
    path = tmp_path / "hub.db"
    engine = database.open_engine(path)
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        config = migrate._config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0012")
        save_network(connection, network)
        someone = Person("u-aaaaaaaaaaaaaaaa", "olga", "", Access.OPERATOR, 1)
        people.add_person(connection, someone)
        connection.exec_driver_sql("INSERT INTO rig VALUES ('bench-1', 'olga', 1, 2), ('bench-2', 'gone', 3, 4)")
        connection.commit()
    engine.dispose()
    migrate.migrate(path)
    with closing(SqliteStore(path)) as store, store.read() as tx:
        assert rigs.all_(tx.connection) == [Rig("bench-1", someone.id, 1, 2, "olga"), Rig("bench-2", "", 3, 4, "")]


def test_migrating_again_changes_nothing(tmp_path: Path, network: Network) -> None:
    path = tmp_path / "hub.db"
    with closing(make_sqlite(path, network)) as store:
        with store.write() as tx:
            before = tx.next_seq()
        migrate.migrate(path)
        with store.write() as tx:
            assert tx.network() == network and tx.next_seq() == before + 1


def test_a_database_of_another_form_is_refused(tmp_path: Path, network: Network) -> None:
    path = tmp_path / "hub.db"
    with pytest.raises(HubError, match="edgehub init"):
        SqliteStore(path)
    make_sqlite(path, network).close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(HubError, match="the form 9999"):
        SqliteStore(path)


# concurrency


def _join_in_a_process(
    place: Path | str, network: Network, seed: int, token: bytes, barrier: object, out: object
) -> None:
    crypto = load_crypto()
    with closing(open_store(place)) as store:
        hub = Hub(store, crypto, network, seed=1_000 + seed)
        from edgeagent.proto.token import Token as JoinToken

        device = Dev(hub, seed, JoinToken.decode(crypto, token.decode()))
        message = device.join()
        barrier.wait()  # type: ignore[attr-defined]
        hub.hear(message)
    out.put(device.id)  # type: ignore[attr-defined]


def test_fifty_processes_join_with_one_token_for_one(place: Path | str, network: Network) -> None:
    with closing(open_store(place)) as store:
        hub = Hub(store, load_crypto(), network)
        token = hub.token(uses=1)
        hub.sent()
    barrier, out = FORK.Barrier(50), FORK.Queue()
    text = token.encode(load_crypto()).encode()
    processes = [
        FORK.Process(target=_join_in_a_process, args=(place, network, seed, text, barrier, out)) for seed in range(50)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
        process.close()
    out.close()
    out.join_thread()
    with closing(open_store(place)) as store:
        hub = Hub(store, load_crypto(), network)
        rows = hub.sent()
        answers = []
        for seed in range(50):
            device = Dev(hub, seed, token)
            device.read(rows)
            answers += [sorted(answer) for answer in device.answers]
        with store.read() as tx:
            assert tx.device_counts() == {DeviceState.ACTIVE: 1}
    assert answers.count(["ca", "map", "ok"]) == 1
    assert answers.count(["name", "no"]) == 49


def test_a_writer_that_is_too_slow_is_named(
    place: Path | str, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.05)
    monkeypatch.setattr(postgres, "LOCK_TIMEOUT_S", 0.05)
    with closing(open_store(place)) as one, closing(open_store(place)) as other:
        with one.write() as tx:
            tx.next_seq()
            with pytest.raises(HubError, match="busy"), other.write():
                pass
            with other.read() as reader:  # readers do not wait
                assert reader.network() == network
        with other.write() as tx:
            assert tx.next_seq() == 2


def test_other_processes_are_noticed(place: Path | str) -> None:
    with closing(open_store(place)) as one, closing(open_store(place)) as other:
        before = one.changes()
        assert one.changes() == before
        with other.write() as tx:
            tx.next_seq()
        assert one.changes() != before


# kills


def _count_until_killed(place: Path | str, pipe: int) -> None:
    with closing(open_store(place)) as store:
        while True:
            with store.write() as tx:
                seq = tx.next_seq()
                tx.put_out(Outgoing(Op.PUBLISH, f"topic/{seq}", b"x"))
            os.write(pipe, seq.to_bytes(4, "big"))


def test_after_kill_9_nothing_goes_back_and_nothing_is_lost(place: Path | str) -> None:
    for _ in range(3):
        reader, writer = os.pipe()
        process = FORK.Process(target=_count_until_killed, args=(place, writer))
        process.start()
        os.close(writer)
        seen = [int.from_bytes(os.read(reader, 4), "big") for _ in range(20)]
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        process.close()
        while rest := os.read(reader, 4):
            seen.append(int.from_bytes(rest, "big"))
        os.close(reader)
        with closing(open_store(place)) as store, store.write() as tx:
            assert tx.next_seq() > seen[-1]
            kept = {row.target for row in tx.outgoing(limit=100_000)}
            assert {f"topic/{seq}" for seq in seen} <= kept


def test_a_transaction_that_fails_leaves_nothing(tmp_path: Path, postgres_url: str, network: Network) -> None:
    stores: list[Store] = [
        MemoryStore(network),
        make_sqlite(tmp_path / "hub.db", network),
        make_postgres(postgres_url, network),
    ]
    for store in stores:
        with closing(store):
            hub = Hub(store, load_crypto(), network)
            [device] = admitted(hub, 1)
            with pytest.raises(ZeroDivisionError), store.write() as tx:
                tx.next_seq()
                tx.put_out(Outgoing(Op.PUBLISH, "a", b"", key="k"))
                actions.rename_device(hub.scribe, tx, row(tx, device), "other")
                tx.drop_node_key(device.identity.node_key)
                raise ZeroDivisionError
            with store.write() as tx:
                assert tx.device_by_name("other") is None
                assert tx.outgoing() == [] and tx.job_count() == 0
                assert tx.node_key(device.identity.node_key) is not None


# copies


def test_a_copy_is_consistent_and_whole(tmp_path: Path, network: Network) -> None:
    path, copy = tmp_path / "hub.db", tmp_path / "copy.db"
    with closing(make_sqlite(path, network)) as store:
        hub = Hub(store, load_crypto(), network)
        devices = admitted(hub, 3)
        with store.write() as tx:
            tx.next_seq()
            database.copy(path, copy)  # of what is committed, while somebody writes
    database.check(copy)
    assert copy.stat().st_mode & 0o777 == 0o600
    with closing(SqliteStore(copy)) as store, store.read() as tx:
        assert {device.id for device in tx.devices()} == {device.id for device in devices}


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 100, None])
def test_what_is_no_backup_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "file"
    if content is None:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("CREATE TABLE other (a)")
    else:
        path.write_bytes(content)
    with pytest.raises(HubError, match="not a backup"):
        database.check(path)


def test_a_damaged_backup_is_refused(tmp_path: Path, network: Network) -> None:
    path, copy = tmp_path / "hub.db", tmp_path / "copy.db"
    with closing(make_sqlite(path, network)) as store:
        admitted(Hub(store, load_crypto(), network), 5)
    database.copy(path, copy)
    data = bytearray(copy.read_bytes())
    data[8_192:40_000] = os.urandom(40_000 - 8_192)
    copy.write_bytes(data)
    with pytest.raises(HubError, match="damaged"):
        database.check(copy)


# twins

_COMMANDS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(["a", "b", None]), st.integers(0, 3)),
        st.tuples(st.just("job"), st.sampled_from(list(JobKind)), st.integers(0, 3)),
        st.tuples(st.just("meet"), st.integers(0, 3), st.integers(0, 3)),
        st.tuples(st.just("jobs for"), st.sampled_from(list(JobKind)), st.integers(0, 3)),
        st.tuples(st.just("forget"), st.integers(0, 3)),
        st.tuples(st.just("key"), st.integers(0, 9), st.integers(0, 3)),
        st.tuples(st.just("drop key"), st.integers(0, 9)),
        st.tuples(st.just("stamp"), st.integers(0, 3), st.integers(0, 9)),
        st.tuples(st.just("suffix"), st.sampled_from(["x", "y"])),
        st.tuples(st.just("drop"), st.integers(0, 9)),
    ),
    max_size=30,
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(_COMMANDS)
def test_all_stores_do_the_same(
    tmp_path: Path, postgres_server: PostgresServer, postgres_tables: str, commands: list[tuple[object, ...]]
) -> None:
    network = make_network(load_crypto(), seeded(0))
    template, path = tmp_path / "template.db", tmp_path / f"{os.urandom(8).hex()}.db"
    if not template.exists():
        make_sqlite(template, network).close()
    shutil.copyfile(template, path)
    server = make_postgres(postgres_server.url(postgres_server.database(postgres_tables)), network)
    stores: list[Store] = [MemoryStore(network), SqliteStore(path), server]
    expected, *others = [_run(store, commands) for store in stores]
    assert others == [expected] * len(others)
    for store in stores:
        store.close()


def _run(store: Store, commands: list[tuple[object, ...]]) -> list[object]:
    ids = [letter * 24 for letter in "abcd"]
    seen: list[object] = []
    with store.write() as tx:
        for number, device_id in enumerate(ids):
            tx.add_device(
                Device(
                    id=device_id,
                    state=DeviceState.ACTIVE,
                    claim="c",
                    device_key=b"",
                    box_key=b"",
                    node_key=bytes([number]),
                    created_s=WALL_S,
                )
            )
        for name, *arguments in commands:
            match name, arguments:
                case "put", [str() | None as key, int(value)]:
                    tx.put_out(Outgoing(Op.PUBLISH, "topic", bytes([value]), key=key))
                case "job", [JobKind() as kind, int(a)]:
                    tx.add_job(kind, "", ids[a])
                case "meet", [int(a), int(b)] if a != b:
                    tx.introduce(ids[a], ids[b])
                case "jobs for", [JobKind() as kind, int(a)]:
                    tx.add_jobs_for_acquaintances(kind, ids[a])
                case "forget", [int(a)]:
                    tx.forget_acquaintances(ids[a])
                case "key", [int(key), int(a)]:
                    known = tx.node_key(bytes([key]))
                    if known is None or known.device == ids[a]:
                        tx.save_node_key(NodeKey(bytes([key]), ids[a], 100 * key + a))
                case "drop key", [int(key)]:
                    tx.drop_node_key(bytes([key]))
                case "stamp", [int(a), int(epoch)]:
                    tx.save_stamp(ids[a], "ask", epoch, 1)
                case "suffix", [str(base)]:
                    seen.append(tx.next_suffix(base))
                case "drop", [int(row_id)]:
                    tx.drop_outgoing([row_id])
            seen.append([(r.key, r.payload) for r in tx.outgoing()])
            seen.append([(j.kind, j.reader, j.subject) for j in tx.jobs(100)])
            seen.append([tx.acquaintances(i) for i in ids])
            seen.append([tx.node_keys(i) for i in ids])
            seen.append(sorted(k.key for k in tx.node_keys_expired(400, 10)))
            seen.append([(tx.stamp(i, "ask"), tx.highest_epoch(i)) for i in ids])
            found = [tx.device_by_node_key(bytes([n])) for n in range(10)]
            seen.append([d.id if d else None for d in found])
    return seen


# size


def test_ten_thousand_devices_cost_a_question_nothing(tmp_path: Path, network: Network) -> None:
    """Every query of a join and a question uses an index; a question is as quick as in a small network."""
    path = tmp_path / "hub.db"
    with closing(make_sqlite(path, network)) as store:
        hub = Hub(store, load_crypto(), network)
        small = _time_of_a_question(hub, admitted(hub, 2))
        _fill(store, 10_000)
        token = hub.token(uses=0)
        before = time.perf_counter()
        late = Dev(hub, 77_000, token, name="raspberrypi")
        hub.hear(late.join())
        join_s = time.perf_counter() - before
        late.read(hub.sent())
        assert late.map is not None and late.map.body["name"] == "raspberrypi-1"
        large = _time_of_a_question(hub, [late, *admitted(hub, 1)])
        assert large < 5 * small + 0.02, (small, large)
        assert join_s < 0.5
        with store.write() as tx:
            assert not chores.look_at_dates(hub.scribe, tx, hub.wall_s)
        slow = _scans(path)
        assert slow == []


def _time_of_a_question(hub: Hub, devices: list[Dev]) -> float:
    asker, other = devices
    assert other.map is not None
    times = []
    for _ in range(20):
        message = asker.ask(h=other.map.body["name"])
        before = time.perf_counter()
        hub.hear(message)
        times.append(time.perf_counter() - before)
    hub.sent()
    return sorted(times)[10]


def _fill(store: Store, count: int) -> None:
    with store.write() as tx:
        for number in range(count):
            device_id = f"{number:024d}".translate(str.maketrans("0189", "wxyz"))
            tx.add_device(
                Device(
                    id=device_id,
                    state=DeviceState.ACTIVE,
                    claim="c-" + 16 * "a",
                    device_key=bytes(32),
                    box_key=bytes(32),
                    node_key=number.to_bytes(32, "big"),
                    created_s=WALL_S,
                    name=f"filler-{number}" if number else "raspberrypi",
                    v4=0x64400001 + number,
                    v6=number.to_bytes(16, "big"),
                    credential="$7$101$AAAA$AAAA",
                    feed_key=bytes(32),
                    feed_generation=1,
                    record_renew_s=WALL_S + 1_000_000,
                )
            )
            tx.save_node_key(NodeKey(number.to_bytes(32, "big"), device_id, WALL_S + 1_000_000))


def _scans(path: Path) -> list[str]:
    """Statements of the hot path whose plan walks a whole table, or all devices for the few that were cut off."""
    statements = [
        "SELECT * FROM device WHERE id = ?",
        "SELECT * FROM device WHERE name = ?",
        "SELECT * FROM device WHERE v4 = ?",
        "SELECT * FROM device WHERE v6 = ?",
        "SELECT * FROM device JOIN node_key ON node_key.device = device.id WHERE node_key.key = ?",
        "SELECT * FROM node_key WHERE device = ? ORDER BY not_after DESC, key",
        "SELECT max(rowid) FROM device",
        "SELECT count(*) FROM device WHERE state = ?",
        "SELECT count(*) FROM device WHERE online",
        "SELECT * FROM device WHERE kind = 'relay' AND state != ? ORDER BY id",
        "SELECT state, count(*) FROM device GROUP BY state",
        "SELECT state, count(*) FROM device WHERE kind = 'relay' GROUP BY state",
        "SELECT count(*) FROM device WHERE online AND kind = 'relay'",
        "SELECT * FROM device WHERE state = 'active' AND pass_renew_s > 0 AND pass_renew_s <= ? LIMIT 64",
        "SELECT id FROM device WHERE removed_s > 0 AND kind <> 'relay' AND id > '' AND removed_s > ?"
        " ORDER BY id LIMIT 32",
        "SELECT id, barred_s FROM device WHERE barred_s > 0 ORDER BY barred_s DESC, id LIMIT 80001",
        "SELECT id FROM job WHERE kind = ? AND reader = ? AND subject > '' LIMIT 1",
        "SELECT * FROM device WHERE state = 'active' AND not_after > 0 AND not_after <= ? LIMIT 64",
        "SELECT * FROM device WHERE state = 'active' AND record_renew_s > 0 AND record_renew_s <= ? LIMIT 64",
        "SELECT * FROM node_key JOIN device ON device.id = node_key.device"
        " WHERE node_key.not_after <= ? AND device.node_key != node_key.key LIMIT 64",
        "SELECT * FROM token WHERE finished_s = 0 AND not_after > 0 AND not_after <= ?",
        "SELECT * FROM token WHERE account AND finished_s > 0 AND finished_s < ?",
        "SELECT target FROM outgoing WHERE op <> 'publish'",
        "SELECT other FROM pair WHERE device = ? AND other > '' ORDER BY other LIMIT 100",
        "DELETE FROM outgoing WHERE key = ?",
    ]
    found = []
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            plan = connection.execute("EXPLAIN QUERY PLAN " + statement, [1] * statement.count("?")).fetchall()
            for *_, step in plan:
                elsewhere = "removed_s" in statement and "ix_device_cut_off" not in step
                if elsewhere or (step.startswith("SCAN") and "USING" not in step):
                    found.append(f"{statement}: {step}")
    return found
