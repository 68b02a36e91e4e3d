"""Every command that changes something leaves exactly one audit row, with who gave it; no other leaves any."""

from __future__ import annotations

import json
import time
from contextlib import closing
from pathlib import Path

import pytest
import typer

from edgeagent.proto.token import Token as JoinToken
from hub import cli
from hub.core.audit import Entry
from hub.state import State
from hub.store.sqlite import SqliteStore
from tests.hub import agentfiles
from tests.hub.kit import Dev, Hub, RelayDev, load_crypto
from tests.hub.test_cli import Shell

# What changes nothing at this hub; or all of it (`init` begins one, the rest puts another's rows in place of its own,
# and is for whoever may write the files anyway); or keeps a row at what it calls (`watch`: see hub.commanding).
WITHOUT = {
    *("init", "serve", "status", "backup", "restore", "export", "import", "attach", "version"),
    *(
        "token list",
        "devices list",
        "devices show",
        "relays list",
        "relays show",
        "users list",
        "web show",
        "oidc show",
    ),
    *("audit list", "audit export", "audit verify", "commands list", "commands show"),
    *("webhooks list", "nats config", "nats certificate"),
    *("policy get", "policy check", "policy explain", "policy history", "policy diff", "dns show"),
    *("routes list", "client list"),
    *("update list", "update key", "update sign", "rollout list", "rollout show", "rollout devices"),
    "update refresh",  # what the hub does by itself when it is time
    *("lock status", "lock pending", "lock key", "lock export-requests", "lock sign-requests"),
}
GIVES_COMMANDS = {"logs", "watch"}  # the same row as `command` with that verb
ACLS = '{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}'

# In an order in which each can be done: command, arguments, verb of its row. {name}: see `Stage`.
CHANGES = [
    ("token create", "", "token.create"),
    ("token revoke", "{spare}", "token.revoke"),
    ("devices approve", "waits", "device.approve"),
    ("devices rename", "waits cam", "device.rename"),
    ("devices tag", "cam tag:camera", "device.tag"),
    ("devices assign", "cam ada", "device.assign"),
    ("devices expire", "cam --in 30d", "device.expire"),
    ("relays invite", "--region fra", "relay.invite"),
    ("relays remove", "fra-1 --yes", "relay.remove"),
    ("users add", "ada --role admin --no-password", "user.add"),
    ("users role", "ada operator", "user.role"),
    ("users reset-password", "ada --password-file {password}", "user.password"),
    ("users token", "ada --scope devices:read", "apitoken.create"),
    ("users disable", "ada", "user.disable"),
    ("users enable", "ada", "user.enable"),
    ("web set", "--url https://hub.example.org", "settings.web"),
    (
        "oidc set",
        "--issuer https://id.example.org --client-id edgehub --client-secret-file {password}",
        "settings.oidc",
    ),
    ("oidc off", "", "settings.oidc"),
    ("audit keep", "--days 90", "audit.keep"),
    ("audit accept", "1 --why known --yes", "audit.accept"),
    ("webhooks add", "https://hooks.test/x --event device.joined", "webhook.add"),
    ("webhooks test", "{hook}", "webhook.test"),
    ("webhooks remove", "{hook}", "webhook.remove"),
    ("command", "gw rekey --no-wait", "command.rekey"),
    ("policy set", "{policy}", "policy.set"),
    ("dns set-split", "corp.example 10.0.0.53", "names.split"),
    ("dns unset-split", "corp.example", "names.unsplit"),
    ("dns search", "corp.example", "names.search"),
    ("dns resolvers", "9.9.9.9", "names.resolvers"),
    ("dns record add", "printer A 192.168.7.20", "names.record.add"),
    ("dns record remove", "printer", "names.record.remove"),
    ("routes approve", "gw", "routes.approve"),
    ("routes unapprove", "gw", "routes.unapprove"),
    ("client add", "phone --gateway gw --endpoint vpn.example:51820", "client.add"),
    ("client remove", "phone", "client.remove"),
    ("lock init", "--key-file {key}", "lock.statement"),
    ("lock sign", "cam gw --key-file {key}", "lock.sign"),
    ("lock add-key", "{public} --key-file {key}", "lock.statement"),
    ("lock remove-key", "{public} --key-file {key}", "lock.statement"),
    ("lock revoke", "cam --key-file {key}", "lock.statement"),
    ("lock on", "--key-file {key} --force", "lock.statement"),
    ("lock off", "--key-file {key}", "lock.statement"),
    ("lock import-signatures", "{signed}", "lock.import"),
    ("update init", "--root-key {root}", "update.root"),
    ("update publish", "{agent}", "update.publish"),
    ("rollout create", "--version 0.2.0 --draft", "rollout.create"),
    ("rollout submit", "1", "rollout.submit"),
    ("rollout approve", "1", "rollout.approve"),
    ("rollout pause", "1", "rollout.pause"),
    ("rollout resume", "1", "rollout.resume"),
    ("rollout abort", "1", "rollout.abort"),
    ("update rotate", "--root-key {root}", "update.root"),
    ("update take", "{signed_root}", "update.root"),
    ("update revoke", "0.2.0", "update.revoke"),
    ("devices remove", "cam --yes", "device.remove"),
]


class Stage:
    """A hub with two devices, of which one waits, a relay, a route that is offered, and files for commands."""

    def __init__(self, shell: Shell, directory: Path) -> None:
        self.shell = shell
        shell("init", "--address", "hub.example.org", "--name", "fleet.test")
        with closing(SqliteStore(shell.state.database)) as store:
            with store.read() as tx:
                hub = Hub(store, load_crypto(), tx.network())
            hub.wall_s = int(time.time())
            gateway, waits = (
                Dev(hub, number, self._token(*options), name=name)
                for number, (name, options) in enumerate((("gw", ()), ("waits", ("--needs-approval",))), 1)
            )
            hub.hear(gateway.join(), waits.join())
            gateway.read(hub.sent())
            hub.hear(gateway.birth(ro=[[bytes((192, 168, 7, 0)), 24]]))
            invitation = JoinToken.decode(load_crypto(), shell("relays", "invite", "--region", "fra").strip())
            relay = RelayDev(hub, 3, invitation, "fra-1", "fra")
            hub.hear(relay.join())
            hub.sent()
        names = ("password", "policy", "key", "requests", "signed", "root", "root_request", "signed_root")
        self.files = {name: str(directory / name) for name in names}
        Path(self.files["password"]).write_text("correct horse battery staple\n")
        Path(self.files["policy"]).write_text(ACLS)
        self.values = {
            **self.files,
            "agent": str(agentfiles.make(directory)),
            "spare": self._token().claim,
            "public": shell("lock", "key", "--key-file", str(directory / "second")).strip(),
        }

    def _token(self, *options: str) -> JoinToken:
        return JoinToken.decode(load_crypto(), self.shell("token", "create", *options).strip())

    def rows(self) -> list[Entry]:
        with closing(SqliteStore(self.shell.state.database)) as store, store.read() as tx:
            return tx.audit_rows(limit=10_000)

    def spoil(self) -> None:
        """The first audit row, as somebody may who can write the database."""
        with closing(SqliteStore(self.shell.state.database)) as store, store.write() as tx:
            tx.connection.exec_driver_sql("UPDATE audit SET actor = 'cli:nobody' WHERE id = 1")

    def sign_elsewhere(self) -> None:
        requests, signed, key = (self.files[name] for name in ("requests", "signed", "key"))
        self.shell("lock", "export-requests", requests, "gw")
        self.shell("lock", "sign-requests", requests, "--key-file", key, "--out", signed)

    def sign_root_elsewhere(self) -> None:
        request, signed, root = (self.files[name] for name in ("root_request", "signed_root", "root"))
        self.shell("update", "rotate", "--request", request)
        self.shell("update", "sign", request, "--root-key", root, "--out", signed, "--yes")


def commands() -> set[str]:
    """All that there are, as people write them."""
    found: set[str] = set()

    def walk(group: object, words: tuple[str, ...]) -> None:
        inside = getattr(group, "commands", None)
        if inside is None:
            found.add(" ".join(words))
            return
        for name, each in inside.items():
            walk(each, (*words, name))

    walk(typer.main.get_command(cli.app), ())
    return found


def test_every_command_is_in_one_of_the_tables() -> None:
    changing = [command for command, _, _ in CHANGES]
    assert len(changing) == len(set(changing)) and not WITHOUT & set(changing)
    assert commands() == WITHOUT | GIVES_COMMANDS | set(changing)


def test_each_change_leaves_one_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGEHUB_LOCK_PASSPHRASE", raising=False)
    stage = Stage(Shell(State(tmp_path / "hub"), capsys, monkeypatch), tmp_path)
    before = len(stage.rows())
    for command, arguments, verb in CHANGES:
        if command == "lock import-signatures":
            stage.sign_elsewhere()
        if command == "update take":
            stage.sign_root_elsewhere()
        if command == "audit accept":
            stage.spoil()
        if command == "webhooks test":
            stage.values["hook"] = json.loads(stage.shell("webhooks", "list", "--json"))[0]["id"]
        words = [word.format(**stage.values) for word in arguments.split()]
        stage.shell(*command.split(), *words)
        new = stage.rows()[before:]
        assert [row.verb for row in new] == [verb], command
        assert new[0].actor.startswith("cli:") and isinstance(json.loads(new[0].detail), dict)
        before += 1
    secrets = [json.loads(Path(stage.files["key"]).read_text()), Path(stage.files["password"]).read_text().strip()]
    said = " ".join(row.detail for row in stage.rows())
    assert secrets[1] not in said
    assert all(value not in said for name, value in secrets[0].items() if name in ("seed", "private", "secret"))


def test_what_is_refused_or_was_so_leaves_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(Shell(State(tmp_path / "hub"), capsys, monkeypatch), tmp_path)
    stage.shell("routes", "approve", "gw")
    before = len(stage.rows())
    stage.shell("routes", "approve", "gw")
    stage.shell("routes", "approve", "gw", "10.0.0.0/8", code=1)
    stage.shell("client", "add", "..", "--gateway", "gw", "--endpoint", "vpn.example:1", code=1)
    stage.shell("client", "remove", "phone", code=1)
    stage.shell("dns", "record", "add", 'a"b', "A", "192.0.2.1", code=1)
    stage.shell("dns", "unset-split", "corp.example", code=1)
    stage.shell("lock", "init", "--key", "AAAA", "--request", str(tmp_path / "r"), code=1)
    assert len(stage.rows()) == before
