"""A hub's rows from one engine to the other and back: all of them, or none."""

from __future__ import annotations

import io
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.core.model import HubError
from hub.store import transfer
from hub.store.migrate import create_file
from hub.store.postgres import PostgresStore
from hub.store.sqlite import SqliteStore
from tests.hub.kit import WALL_S, Hub, admitted, load_crypto, make_network, make_sqlite, seeded


@pytest.fixture
def exported(tmp_path: Path) -> bytes:
    """A hub with tokens, devices that know each other, jobs and rows for the broker."""
    network = make_network(load_crypto(), seeded(0))
    with closing(make_sqlite(tmp_path / "old.db", network)) as store:
        hub = Hub(store, load_crypto(), network)
        devices = admitted(hub, 3)
        hub.hear(devices[0].ask(k=devices[1].identity.node_key))
        out = io.BytesIO()
        with store.read() as tx:
            assert transfer.export(tx.connection, out, WALL_S) > 20
    return out.getvalue()


def dump(store: SqliteStore | PostgresStore) -> list[Any]:
    """All rows, without what the database numbers itself."""
    out = io.BytesIO()
    with store.read() as tx:
        transfer.export(tx.connection, out, WALL_S)
    rows = [json.loads(line) for line in out.getvalue().splitlines()[1:-1]]
    for row in rows:
        if row["t"] in ("job", "outgoing"):
            del row["r"]["id"]
    return rows


def test_there_and_back(tmp_path: Path, postgres_url: str, exported: bytes) -> None:
    create_file(tmp_path / "new.db")
    with closing(SqliteStore(tmp_path / "old.db")) as old, closing(PostgresStore(postgres_url)) as server:
        before = dump(old)
        with server.write() as tx:
            assert transfer.is_empty(tx.connection)
            transfer.load(tx.connection, io.BytesIO(exported))
        assert dump(server) == before
        with server.read() as tx:
            assert not transfer.is_empty(tx.connection)
            again = io.BytesIO()
            transfer.export(tx.connection, again, WALL_S)
        with server.write() as tx:  # numbers go on behind those that came
            [last] = [row.id for row in tx.outgoing(limit=1000)][-1:] or [0]
            tx.put_out(tx.outgoing(limit=1)[0])
            assert [row.id for row in tx.outgoing(limit=1000)][-1] > last
    with closing(SqliteStore(tmp_path / "new.db")) as new:
        with new.write() as tx:
            transfer.load(tx.connection, io.BytesIO(again.getvalue()))
        assert dump(new) == before


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda lines: lines[:-1], "cut off"),
        (lambda lines: [line for line in lines if b'"seq"' not in line], "damaged"),
        (lambda lines: [line for line in lines if b'"t":"device"' not in line], "contradict"),
        (lambda lines: [*lines[:3], lines[3].replace(b'"name"', b'"nome"'), *lines[4:]], "line 4: no row"),
        (lambda lines: [*lines, b"{}"], "goes on"),
        (lambda lines: [lines[0].replace(b'"form":"', b'"form":"9'), *lines[1:]], "the form 9"),
        (lambda lines: [b'{"edgehub":2}', *lines[1:]], "not an export"),
        (lambda lines: [*lines[:2], b"[" * 100_000, *lines[2:]], "line 3: not JSON"),
        (lambda lines: [], "not an export"),
    ],
)
def test_what_is_refused_leaves_nothing(tmp_path: Path, exported: bytes, change: Any, why: str) -> None:
    create_file(tmp_path / "new.db")
    bad = b"\n".join(change(exported.splitlines()))
    with closing(SqliteStore(tmp_path / "new.db")) as store:
        with pytest.raises(HubError, match=why), store.write() as tx:
            transfer.load(tx.connection, io.BytesIO(bad))
        with store.read() as tx:
            assert transfer.is_empty(tx.connection)


@given(st.lists(st.binary(max_size=60), max_size=6))
def test_any_file_is_refused_in_words(lines: list[bytes]) -> None:
    with pytest.raises(HubError, match=r"^import: "):
        transfer.load(None, io.BytesIO(b"\n".join(lines)))  # type: ignore[arg-type]  # it never comes to a row
