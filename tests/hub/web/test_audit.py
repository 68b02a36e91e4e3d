"""The audit log: a chain that shows every tampering, by both stores, and what the command line writes into it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import delete, update

from hub import cli
from hub.core import audit
from hub.core.audit import START, first_break, record
from hub.core.memory import MemoryStore
from hub.core.store import Store
from hub.database import open_database
from hub.store import schema
from tests.hub.kit import WALL_S, load_crypto, make_network, make_sqlite, seeded
from tests.hub.web.kit import Site


def test_both_stores_keep_the_same_chain(tmp_path: Path) -> None:
    network = make_network(load_crypto(), seeded(0))
    stores: list[Store] = [MemoryStore(network), make_sqlite(tmp_path / "hub.db", network)]
    chains = []
    for store in stores:
        with closing(store):
            for number in range(5):
                with store.write() as tx:
                    record(tx, WALL_S + number, "cli:root", "test", f"thing:{number}", {"b": number, "a": "ü"})
            with pytest.raises(ZeroDivisionError), store.write() as tx:
                record(tx, WALL_S, "cli:root", "never")
                raise ZeroDivisionError
            with store.read() as tx:
                chains.append(tx.audit_rows(after=1, limit=3))
                whole = tx.audit_rows()
                assert first_break(START, 1, whole) == (None, whole[-1].hash, 6)
    assert chains[0] == chains[1] and [entry.id for entry in chains[0]] == [2, 3, 4]


@pytest.mark.parametrize(
    ("what", "broken"),
    [
        (lambda table: update(table).where(table.c.id == 3).values(actor="cli:nobody"), 3),
        (lambda table: update(table).where(table.c.id == 3).values(detail="{}"), 3),
        (lambda table: update(table).where(table.c.id == 3).values(wall_s=1), 3),
        (lambda table: update(table).where(table.c.id == 3).values(hash=bytes(32)), 3),
        (lambda table: delete(table).where(table.c.id == 3), 4),
        (lambda table: delete(table).where(table.c.id == 1), 2),
    ],
)
def test_tampering_is_found(
    site: Site,
    what: Callable[..., object],
    broken: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with site.write() as tx:
        for number in range(6):
            record(tx, WALL_S, "cli:root", "test", f"thing:{number}", {"n": number})
    assert edgehub(site, monkeypatch, "audit", "verify") == 0
    assert "7 rows, unbroken" in capsys.readouterr().err
    with site.write() as tx:
        tx.connection.execute(what(schema.audit))  # type: ignore[call-overload]
    assert edgehub(site, monkeypatch, "audit", "verify") == 1
    assert f"broken at row {broken}:" in capsys.readouterr().err


def test_values_are_cut_and_clean(site: Site) -> None:
    with site.write() as tx:
        entry = record(
            tx, WALL_S, "a\nb", "test", "x" * 1_000, {str(n): "\x1b[31m\u202e" + "y" * 1_000 for n in range(99)}
        )
    detail = json.loads(entry.detail)
    assert "\n" not in entry.actor and len(entry.object) == audit.TEXT_MAX
    assert len(detail) == audit.DETAIL_MAX and all(len(value) <= audit.TEXT_MAX for value in detail.values())
    assert "\x1b" not in entry.detail and "\\u001b" not in entry.detail and "\u202e" not in detail["0"]


def test_commands_leave_rows(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    site.add_device(1)
    site.add_device(2)
    password = tmp_path / "password"
    password.write_text("a password from a file\n")
    for arguments in (
        ("token", "create", "--tag", "tag:cam"),
        ("devices", "rename", "box-1", "one"),
        ("devices", "tag", "one", "tag:a", "tag:b"),
        ("devices", "assign", "one", "ada"),
        ("devices", "expire", "one", "--in", "1h"),
        ("devices", "remove", "box-2", "--yes"),
        ("relays", "invite", "--region", "fra"),
        ("users", "add", "ada", "--role", "operator", "--password-file", str(password)),
        ("users", "role", "ada", "viewer"),
        ("users", "reset-password", "ada", "--password-file", str(password)),
        ("users", "token", "ada", "--scope", "devices:read"),
        ("users", "disable", "ada"),
        ("users", "enable", "ada"),
        ("web", "set", "--url", "https://hub.example.org"),
        ("oidc", "off"),
    ):
        assert edgehub(site, monkeypatch, *arguments) == 0, capsys.readouterr().err
    capsys.readouterr()
    rows = [entry for entry in site.audit() if entry.id > 1]
    assert [entry.verb for entry in rows] == [
        *("token.create", "device.rename", "device.tag", "device.assign", "device.expire", "device.remove"),
        *("relay.invite", "user.add", "user.role", "user.password", "apitoken.create", "user.disable", "user.enable"),
        *("settings.web", "settings.oidc"),
    ]
    assert {entry.actor.partition(":")[0] for entry in rows} == {"cli"}
    assert edgehub(site, monkeypatch, "audit", "export", "--after", "1") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["verb"] for line in lines] == [entry.verb for entry in rows]
    assert edgehub(site, monkeypatch, "audit", "list", "--verb", "device.", "--limit", "2") == 0
    assert capsys.readouterr().out.count(" device.") == 2


def test_commands_that_refuse(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    weak = tmp_path / "weak"
    weak.write_text("short\n")
    for arguments, said in (
        (("users", "add", "ada", "--role", "king"), "owner, admin, operator"),
        (("users", "add", "A B"), "login"),
        (("users", "add", "ada", "--password-file", str(weak)), "12 to 256 characters"),
        (("users", "add", "olga", "--no-password"), "somebody has it"),
        (("users", "role", "olga", "viewer"), "the last owner"),
        (("users", "disable", "olga"), "the last owner"),
        (("users", "role", "nobody", "viewer"), "edgehub users list"),
        (("users", "token", "olga", "--scope", "everything"), "there is none of this name"),
        (("users", "token", "olga", "--scope", "devices:read", "--expires", "500d"), "at most 400 days"),
        (("web", "set"), "nothing to change"),
        (("web", "set", "--url", "hub.example.org"), "https://"),
        (("web", "set", "--url", "https://hub.example.org/path"), "nothing behind it"),
        (("web", "set", "--listen", "8480"), "127.0.0.1:8480"),
        (("web", "set", "--cert", "/nowhere.pem"), "no such file"),
        (("web", "set", "--cert", str(weak)), "both are needed"),
        (("web", "set", "--proxy", "localhost"), "an IP address"),
        (("oidc", "set"), "nothing to change"),
        (("oidc", "set", "--issuer", "http://id.example.org"), "https://"),
        (("oidc", "set", "--issuer", "https://id.example.org"), "--client-id"),
        (("oidc", "set", "--group", "x"), "GROUP=ROLE"),
        (("oidc", "set", "--group", "x=owner"), "role 'owner'"),
    ):
        assert edgehub(site, monkeypatch, *arguments) == 1, arguments
        out, err = capsys.readouterr()
        assert said in err and "Traceback" not in err and err.count("\n") == 1, (arguments, err)
        assert "short" not in err and out == ""
    assert len(site.audit()) == 1


def edgehub(site: Site, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["edgehub", "--state-dir", str(site.state.directory), *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_a_store_that_is_read_in_pages(site: Site) -> None:
    with site.write() as tx:
        for number in range(2_500):
            record(tx, WALL_S, "cli:root", "test", f"thing:{number}")
    with closing(open_database(site.state)) as store, store.read() as tx:
        after, before, next_id = 0, START, 1
        while page := tx.audit_rows(after=after, limit=1_000):
            broken, before, next_id = first_break(before, next_id, page)
            assert broken is None
            after = page[-1].id
    assert after == 2_501
