"""The command line: what it prints, where, with which exit code, and what it says when something is wrong."""

from __future__ import annotations

import json
import re
import socket
import stat
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from edgeagent.proto.token import Token as JoinToken
from hub import cli, cli_clients
from hub.core.model import HubDrop
from hub.state import State
from hub.store.sqlite import SqliteStore
from tests.hub.kit import Dev, Hub, RelayDev, load_crypto

DOCS = Path(__file__).parents[2] / "docs" / "hub.md"
COMMANDS = [
    ["init"],
    ["serve"],
    ["status"],
    ["backup"],
    ["restore"],
    ["export"],
    ["import"],
    ["attach"],
    ["version"],
    ["token", "create"],
    ["token", "list"],
    ["token", "revoke"],
    ["devices", "list"],
    ["devices", "show"],
    ["devices", "approve"],
    ["devices", "rename"],
    ["devices", "tag"],
    ["devices", "assign"],
    ["devices", "expire"],
    ["devices", "remove"],
    ["relays", "invite"],
    ["relays", "list"],
    ["relays", "show"],
    ["relays", "remove"],
    ["users", "add"],
    ["users", "list"],
    ["users", "role"],
    ["users", "disable"],
    ["users", "enable"],
    ["users", "reset-password"],
    ["users", "token"],
    ["web", "set"],
    ["web", "show"],
    ["oidc", "set"],
    ["oidc", "show"],
    ["oidc", "off"],
    ["audit", "list"],
    ["audit", "export"],
    ["audit", "verify"],
    ["command"],
    ["commands", "list"],
    ["commands", "show"],
    ["logs"],
    ["watch"],
    ["policy", "get"],
    ["policy", "set"],
    ["policy", "check"],
    ["policy", "explain"],
    ["policy", "history"],
    ["policy", "diff"],
    ["dns", "show"],
    ["dns", "set-split"],
    ["dns", "unset-split"],
    ["dns", "search"],
    ["dns", "resolvers"],
    ["dns", "record", "add"],
    ["dns", "record", "remove"],
    ["routes", "list"],
    ["routes", "approve"],
    ["routes", "unapprove"],
    ["client", "add"],
    ["client", "list"],
    ["client", "remove"],
    *(["lock", verb] for verb in ("init", "status", "pending", "sign", "on", "off", "add-key", "remove-key", "revoke")),
    *(["lock", verb] for verb in ("key", "export-requests", "sign-requests", "import-signatures")),
    *(["update", verb] for verb in ("init", "key", "sign", "take", "rotate", "publish", "list", "revoke", "refresh")),
    *(
        ["rollout", verb]
        for verb in ("create", "list", "show", "devices", "submit", "approve", "pause", "resume", "abort")
    ),
]


class Shell:
    """Runs `edgehub` in this process."""

    def __init__(self, state: State, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.state = state
        self._capsys = capsys
        self._monkeypatch = monkeypatch
        self.err = ""

    def __call__(self, *arguments: str, code: int = 0) -> str:
        self._monkeypatch.setattr(sys, "argv", ["edgehub", *arguments, "--state-dir", str(self.state.directory)])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, self.err = self._capsys.readouterr()
        assert (ended.value.code or 0) == code, (arguments, out, self.err)
        return out

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self(*arguments, "--json", code=code))

    def fails(self, *arguments: str) -> str:
        """What it says, on one line of stderr."""
        assert self(*arguments, code=1) == ""
        assert self.err.startswith("edgehub: ") and self.err.count("\n") == 1, self.err
        return self.err


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(State(tmp_path / "hub"), capsys, monkeypatch)


@pytest.fixture
def ready(shell: Shell) -> Shell:
    shell("init", "--address", "hub.example.org", "--name", "fleet.test")
    return shell


@pytest.fixture
def join(ready: Shell) -> Iterator[Callable[..., Dev]]:
    """Devices join straight at the coordinator: the broker is tested elsewhere."""
    with closing(SqliteStore(ready.state.database)) as store:
        with store.read() as tx:
            network = tx.network()
        hub = Hub(store, load_crypto(), network)
        hub.wall_s = int(time.time())

        def joined(seed: int, name: str, *options: str) -> Dev:
            token = JoinToken.decode(hub.crypto, ready("token", "create", *options).strip())
            device = Dev(hub, seed, token, name=name)
            hub.hear(device.join())
            device.read(hub.sent())
            return device

        yield joined


# init


def test_init_makes_a_hub_and_says_what_next(shell: Shell) -> None:
    out = shell("init", "--address", "hub.example.org", "--address", "2001:db8::1", "--listen", "10.0.0.1:999")
    assert "hub.example.org:999, [2001:db8::1]:999" in out
    assert "edgehub serve" in out and "edgehub token create" in out
    assert stat.S_IMODE(shell.state.database.stat().st_mode) == 0o600
    assert sorted(path.name for path in shell.state.directory.iterdir()) == ["hub.db"]


def test_init_touches_no_hub_that_is_there(ready: Shell) -> None:
    before = ready.state.database.read_bytes()
    assert "already" in ready.fails("init", "--address", "other.example.org")
    assert ready.state.database.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Add --address"),
        (["--address", "not a name"], "--address not a name"),
        (["--address", "a", "--listen", "70000"], "port of 1 to 65535"),
        (["--address", "a", "--listen", "nowhere:x"], "--listen"),
        (["--address", "a", "--name", "Fleet!"], "Try mesh.internal"),
        ([f"--address=h{n}" for n in range(9)], "Give fewer"),
        (["--external-broker", "b:1"], "--broker-ca"),
        (["--external-broker", "b:1", "--broker-ca", "/none", "--broker-password-file", "/none"], "/none"),
        (["--external-broker", "b:1", "--broker-ca", __file__, "--broker-password-file", __file__], "PEM"),
        (["--external-broker", "b:1", "--listen", "443"], "--listen: no broker is started here"),
        (["--address", "a", "--broker-user", "x"], "--broker-user: it is about a broker that somebody else runs"),
        (
            ["--address", "a", "--broker-ca", __file__, "--broker-password-file", "/x"],
            "--broker-ca, --broker-password-",
        ),
        (
            ["--nats", "n:4222", "--external-broker", "n:1", "--broker-user", "x"],
            "--broker-user: the hub has no account",
        ),
        (["--nats", "n:4222", "--external-broker", "n:1", "--broker-password-file", "/x"], "Leave it out"),
        (["--nats", "n:4222", "--broker-user", "x"], "Add --external-broker"),
    ],
)
def test_init_refuses(shell: Shell, arguments: list[str], said: str) -> None:
    assert said in shell.fails("init", *arguments)
    assert not shell.state.database.exists()


def test_without_init_every_command_says_so(shell: Shell) -> None:
    for arguments in (
        ["serve"],
        ["status"],
        ["token", "create"],
        ["token", "list"],
        ["devices", "list"],
        ["devices", "show", "x"],
        ["backup", str(shell.state.directory.parent / "b")],
    ):
        assert "`edgehub init` makes one" in shell.fails(*arguments)


# tokens


def test_a_token_is_alone_on_standard_output(ready: Shell) -> None:
    out = ready("token", "create", "--uses", "3", "--expires", "7d", "--tag", "tag:cam", "--tag", "tag:roof")
    assert out.count("\n") == 1
    token = JoinToken.decode(load_crypto(), out.strip())
    assert (token.uses, token.tags, token.hosts) == (3, ["tag:cam", "tag:roof"], ["hub.example.org:8883"])
    assert "not running" in ready.err
    [listed] = ready.json("token", "list")
    assert (listed["id"], listed["state"], listed["used"]) == (token.claim, "good", 0)
    assert listed["not_after"] == token.not_after > 0
    assert token.secret.hex() not in ready.state.database.read_bytes().hex()
    table = ready("token", "list")
    assert re.search(rf"^{token.claim}  good   0 of 3  in 7 d", table, re.MULTILINE)
    assert not any(line.endswith(" ") for line in table.splitlines())
    ready("token", "revoke", token.claim)
    assert ready.json("token", "list")[0]["state"] == "revoked"


def test_tokens_refuse(ready: Shell) -> None:
    assert "tag:camera" in ready.fails("token", "create", "--tag", "camera")
    assert "24h" in ready.fails("token", "create", "--expires", "soon")
    assert "token list" in ready.fails("token", "revoke", "c-nonsense")
    ready("token", "create", "--uses", "-1", code=2)
    assert ready.json("token", "list") == []
    assert ready("token", "list") == "" and "token create" in ready.err


# devices


def test_the_life_of_a_device(ready: Shell, join: Callable[..., Dev]) -> None:
    device = join(1, "cam", "--tag", "tag:cam")
    join(2, "door")
    assert [found["name"] for found in ready.json("devices", "list")] == ["cam", "door"]
    assert [found["name"] for found in ready.json("devices", "list", "--tag", "tag:cam")] == ["cam"]
    assert "cam   active" in ready("devices", "list")
    shown = ready.json("devices", "show", "cam")
    assert shown["id"] == device.id and shown["facts"] == {"board": "test"} and len(shown["node_keys"]) == 1
    for selector in (device.id, *shown["addresses"], "CAM"):
        assert ready.json("devices", "show", selector)["name"] == "cam"
    assert re.search(r"^board +test$", ready("devices", "show", "cam"), re.MULTILINE)
    ready("devices", "rename", "cam", "front")
    assert "has it" in ready.fails("devices", "rename", "front", "door")
    ready("devices", "expire", "front", "--in", "3d")
    assert "in 3 d" in ready.err
    ready("devices", "expire", "front")
    assert ready.json("devices", "list", "--state", "expired")[0]["name"] == "front"
    ready("devices", "expire", "front", "--never")
    assert ready.json("devices", "show", "front")["not_after"] == 0
    assert "Choose" in ready.fails("devices", "expire", "front", "--never", "--in", "1d")
    assert "--in" in ready.fails("devices", "expire", "front", "--in", "1 day")
    ready("devices", "remove", "front")
    assert [found["name"] for found in ready.json("devices", "list")] == ["door"]
    assert ready.json("devices", "list", "--state", "removed")[0]["id"] == device.id
    assert "devices list" in ready.fails("devices", "show", "front")
    assert "new token" in ready.fails("devices", "rename", device.id, "back")


def test_approval(ready: Shell, join: Callable[..., Dev]) -> None:
    join(1, "guest", "--needs-approval")
    assert [found["name"] for found in ready.json("devices", "list", "--state", "pending")] == ["guest"]
    assert "Approve" in ready.fails("devices", "expire", "guest")
    ready("devices", "approve", "guest")
    assert "is in, with address 100." in ready.err
    assert "not waiting" in ready.fails("devices", "approve", "guest")


def test_what_devices_say_is_no_markup_and_no_control_sequence(ready: Shell, join: Callable[..., Dev]) -> None:
    join(1, "cam")
    with closing(SqliteStore(ready.state.database)) as store, store.write() as tx:
        found = tx.device_by_name("cam")
        assert found is not None
        found.facts = {"[red]model": "[bold]x[/bold]"}
        tx.save_device(found)
    assert re.search(r"^\[red]model +\[bold]x\[/bold]$", ready("devices", "show", "cam"), re.MULTILINE)


# routes and plain clients


def test_the_life_of_a_route(ready: Shell, join: Callable[..., Dev]) -> None:
    router = join(1, "gw")
    hub = router.hub
    assert isinstance(hub, Hub)
    assert "edgeagent up --advertise-routes" in (ready("routes", "list") or ready.err)
    hub.hear(router.birth(ro=[[bytes((192, 168, 7, 0)), 24], [bytes(4), 0], [bytes(16), 0]], sn=False))
    hub.sent()
    assert re.search(r"^192\.168\.7\.0/24 +gw +waits for approval +no +yes$", ready("routes", "list"), re.MULTILINE)
    assert "0.0.0.0/0 (exit)" in ready("routes", "list")
    assert "does not offer 10.0.0.0/8" in ready.fails("routes", "approve", "gw", "10.0.0.0/8")
    assert "want a prefix" in ready.fails("routes", "approve", "gw", "all")
    ready("routes", "approve", "gw", "192.168.7.0/24")
    assert "192.168.7.0/24 approved" in ready.err
    ready("routes", "approve", "gw", "exit")
    assert "0.0.0.0/0, ::/0 approved" in ready.err
    ready("routes", "approve", "gw")
    assert "nothing that was not approved before" in ready.err
    rows = ready.json("routes", "list", "--device", "gw")
    assert {row["state"] for row in rows} == {"in use"} and {row["snat"] for row in rows} == {False}
    assert ready.json("routes", "list", "--waiting") == []
    ready("routes", "unapprove", "gw")
    assert len(ready.json("routes", "list", "--waiting")) == 3
    assert "is not approved" in ready.fails("routes", "unapprove", "gw", "192.168.7.0/24")


def test_the_life_of_a_plain_client(ready: Shell, join: Callable[..., Dev]) -> None:
    join(1, "gw")
    assert "client add" in (ready("client", "list") or ready.err)
    text = ready("client", "add", "phone", "--gateway", "gw", "--endpoint", "vpn.example:51820")
    private = re.search(r"^PrivateKey = (\S{44})$", text, re.MULTILINE)
    assert private and text.startswith("[Interface]\n") and "Endpoint = vpn.example:51820" in text
    kept = ready.state.database.read_bytes()
    assert private[1].encode() not in kept and b64decode(private[1]) not in kept
    (listed,) = ready.json("client", "list")
    assert (listed["name"], listed["gateway"]) == ("phone", "gw") and listed["addresses"][0] in text
    assert listed["public_key"] in ready("client", "list")
    assert "has it" in ready.fails("client", "add", "phone", "--gateway", "gw", "--endpoint", "vpn.example:51820")
    assert "HOST:PORT" in ready.fails("client", "add", "other", "--gateway", "gw", "--endpoint", "vpn.example")
    assert "wg pubkey" in ready.fails(
        "client", "add", "x", "--gateway", "gw", "--endpoint", "v.example:1", "--public-key", "k"
    )
    assert [row["name"] for row in ready.json("client", "list")] == ["phone"]
    ready("client", "remove", "phone")
    assert ready.json("client", "list") == []
    assert "client list" in ready.fails("client", "remove", "phone")


def test_a_configuration_is_a_qr_code_too(capsys: pytest.CaptureFixture[str]) -> None:
    cli_clients._print_qr("[Interface]\n" * 30)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 20 and len({len(line) for line in lines if line.strip()}) <= 3


# relays


@pytest.fixture
def relay(ready: Shell, join: Callable[..., Dev]) -> Iterator[RelayDev]:
    """Invited by the command, joined and heard at the coordinator."""
    with closing(SqliteStore(ready.state.database)) as store:
        with store.read() as tx:
            hub = Hub(store, load_crypto(), tx.network())
        hub.wall_s = int(time.time())
        text = ready("relays", "invite", "--region", "fra")
        found = RelayDev(hub, 1, JoinToken.decode(hub.crypto, text.strip()), "fra-1", "fra")
        hub.hear(found.join())
        found.read(hub.sent())
        yield found


def test_an_invitation_is_alone_on_standard_output(ready: Shell) -> None:
    out = ready("relays", "invite", "--region", "fra", "--uses", "0", "--expires", "never")
    assert out.count("\n") == 1 and "not running" in ready.err
    token = JoinToken.decode(load_crypto(), out.strip())
    assert (token.uses, token.not_after, token.tags) == (0, 0, ["tag:fra"])
    [listed] = ready.json("token", "list")
    assert (listed["id"], listed["for"]) == (token.claim, "relay")
    made = ready.json("relays", "invite", "--region", "ams")
    assert (made["region"], made["uses"]) == ("ams", 1) and made["not_after"] > time.time() + 86_000
    assert "one DNS label" in ready.fails("relays", "invite", "--region", "Main Street")
    assert "--expires" in ready.fails("relays", "invite", "--region", "fra", "--expires", "soon")
    ready("relays", "invite", code=2)


def test_the_life_of_a_relay(ready: Shell, relay: RelayDev, join: Callable[..., Dev]) -> None:
    hub = relay.hub
    assert isinstance(hub, Hub)
    [listed] = ready.json("relays", "list")
    assert (listed["id"], listed["state"], listed["addresses"], listed["key"]) == ("fra-1", "never", [], None)
    assert re.search(r"^fra-1  fra +never  - +-    -", ready("relays", "list"), re.MULTILINE)
    hub.hear(relay.birth(), relay.say(members=12))
    hub.sent()
    shown = ready.json("relays", "show", "fra-1")
    assert (shown["state"], shown["members"], shown["udp_port"]) == ("online", 12, 3478)
    assert shown["addresses"] == ["fra-1.example:443"] and shown["device_id"] == relay.id
    assert re.search(r"^fra-1  fra +online  fra-1\.example:443  3478  12 ", ready("relays", "list"), re.MULTILINE)
    text = ready("relays", "show", "fra-1")
    assert re.search(r"^address +fra-1\.example:443$", text, re.MULTILINE) and relay.fields["pin"].hex() in text
    device = join(1, "cam")
    assert device.map is not None and device.map.body["rl"][0]["id"] == "fra-1"
    # It is no device
    assert [found["name"] for found in ready.json("devices", "list")] == ["cam"]
    assert "edgehub relays" in ready.fails("devices", "remove", "fra-1")
    status = ready.json("status", code=3)
    assert status["relays"] == {"joined": 1, "online": 1} and status["devices"]["active"] == 1
    assert re.search(r"^relays +1; 1 online$", ready("status", code=3), re.MULTILINE)
    assert "relays list" in ready.fails("relays", "remove", "cam")
    ready("relays", "remove", "fra-1")
    assert "new token" in ready.err
    assert ready.json("relays", "list") == [] and "relays invite" in (ready("relays", "list") or ready.err)
    assert "relays list" in ready.fails("relays", "show", "fra-1")
    device.read(hub.sent())
    assert "rl" not in device.map.body


# status, backup, the rest


def test_status_of_a_hub_that_does_not_run(ready: Shell) -> None:
    status = ready.json("status", code=3)
    assert (status["running"], status["domain"], status["hosts"]) == (False, "fleet.test", ["hub.example.org:8883"])
    assert "not running" in ready("status", code=3)
    assert "systemctl start edgehub" in ready.err
    with ready.state.running():
        assert ready.json("status")["running"]
        assert "already" in ready.fails("serve")


def test_backup_and_restore(ready: Shell, join: Callable[..., Dev], tmp_path: Path) -> None:
    device = join(1, "cam")
    file = tmp_path / "backup.db"
    ready("backup", str(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "overwrites nothing" in ready.fails("backup", str(file))
    assert "cannot be written" in ready.fails("backup", str(tmp_path / "no" / "where"))
    before = ready.json("status", code=3)
    assert "--force" in ready.fails("restore", str(file))
    ready.state = State(tmp_path / "elsewhere")
    ready("restore", str(file))
    first = ready.json("status", code=3)
    assert first["epoch"] > before["epoch"] and first["network"] == before["network"]
    ready("restore", "--force", str(file))
    assert ready.json("status", code=3)["epoch"] > first["epoch"]
    assert ready.json("devices", "show", "cam")["id"] == device.id
    assert ready.state.database.with_name("hub.db.old").exists()
    assert "not a backup" in ready.fails("restore", "--force", __file__)
    assert "no such file" in ready.fails("restore", str(tmp_path / "none"))
    with ready.state.running():
        assert "running" in ready.fails("restore", "--force", str(file))


def test_a_backup_to_a_pipe(ready: Shell, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hub", "--state-dir", str(ready.state.directory), "backup", "-"],
        capture_output=True,
        cwd=DOCS.parents[1],
        check=True,
    )
    file = tmp_path / "piped.db"
    file.write_bytes(done.stdout)
    ready.state = State(tmp_path / "elsewhere")
    ready("restore", str(file))


def test_a_port_in_use_is_named(shell: Shell) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        shell("init", "--address", "127.0.0.1", "--listen", f"127.0.0.1:{port}")
        done = subprocess.run(
            [sys.executable, "-m", "hub", "--state-dir", str(shell.state.directory), "serve", "--no-web"],
            capture_output=True,
            text=True,
            cwd=DOCS.parents[1],
            check=False,
        )
    assert done.returncode == 1
    assert f"127.0.0.1:{port} is in use" in done.stderr and "Traceback" not in done.stderr


def test_a_missing_broker_is_named(ready: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    from hub.io import mosquitto

    monkeypatch.setattr(mosquitto, "_PLUGIN_PLACES", ())
    assert "Install Mosquitto" in ready.fails("serve").splitlines()[-1]
    monkeypatch.setattr(mosquitto, "_PROGRAM_PLACES", ())
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "Install Mosquitto" in ready.fails("serve").splitlines()[-1]


def test_a_damaged_database_is_no_traceback(ready: Shell) -> None:
    ready.state.database.write_bytes(b"garbage" * 1000)
    assert "database: " in ready.fails("devices", "list")


def test_names(ready: Shell) -> None:
    assert ready("dns", "search") == "fleet.test\n"
    ready("dns", "record", "add", "db", "A", "192.0.2.7")
    assert "db.fleet.test A 192.0.2.7: added" in ready.err
    ready("dns", "record", "add", "@", "TXT", "by plant IT")
    ready("dns", "set-split", "corp.example", "10.20.0.53", "10.20.1.53:5353")
    ready("dns", "resolvers", "9.9.9.9")
    ready("dns", "search", "fleet.test", "corp.example")
    shown = ready("dns", "show")
    for line in (
        "search              fleet.test corp.example",
        "split corp.example  10.20.0.53 10.20.1.53:5353",
        "other names         9.9.9.9",
        "db.fleet.test  A     192.0.2.7",
        "fleet.test     TXT   by plant IT",
    ):
        assert line in shown.splitlines()
    assert ready.json("dns", "show")["records"][1] == {"name": "db.fleet.test", "type": "A", "value": "192.0.2.7"}
    assert "a name has labels" in ready.fails("dns", "record", "add", "a..b", "A", "192.0.2.1")
    assert "Use one of them" in ready.fails("dns", "search", "x", "--none")
    assert "Use one of them" in ready.fails("dns", "resolvers", "9.9.9.9", "--none")
    ready("dns", "record", "remove", "db", "A")
    assert "1 record removed" in ready.err
    ready("dns", "unset-split", "corp.example")
    ready("dns", "resolvers", "--none")
    ready("dns", "search", "--none")
    assert ready("dns", "search") == ready("dns", "resolvers") == ""
    ready("dns", "search", "--default")
    assert ready.json("dns", "show")["search"] == ["fleet.test"]


def test_version_and_usage(ready: Shell) -> None:
    assert ready("version").startswith("edgehub ")
    ready("nonsense", code=2)
    ready("devices", "list", "--nonsense", code=2)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_teaches_with_examples(shell: Shell, command: list[str]) -> None:
    assert f"edgehub {' '.join(command)}" in shell(*command, "--help").partition("Usage")[2].partition("\n")[2] or (
        command == ["version"]
    )


def test_every_command_option_and_drop_reason_is_documented(shell: Shell) -> None:
    text = DOCS.read_text()
    missing = [f"edgehub {' '.join(command)}" for command in COMMANDS if f"edgehub {' '.join(command)}" not in text]
    for command in COMMANDS:
        options = set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", shell(*command, "--help"), re.MULTILINE)) - {"--help"}
        missing += [f"{' '.join(command)} {option}" for option in sorted(options) if option not in text]
    missing += [reason.value for reason in HubDrop if f"`{reason.value}`" not in text]
    assert missing == []
