"""The command line as a user meets it: help, errors, exit codes, and an agent in the background without a network."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator
from importlib.util import cache_from_source
from pathlib import Path

import pytest

from edgeagent import background, crypto
from edgeagent.proto.identity import Identity
from edgeagent.proto.token import Token
from edgeagent.version import VERSION
from tests.agent.broker import free_port

PROVIDER = crypto.load()
VERBS = ("up", "down", "status", "peers", "ping", "ip", "whois", "policy", "ledger", "netcheck", "version", "run")


class Cli:
    """`edgeagent` with a state directory and a socket of its own."""

    def __init__(self, directory: Path) -> None:
        self.state = directory / "state"
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("EDGEAGENT_")} | {
            "EDGEAGENT_STATE": str(self.state),
            "EDGEAGENT_SOCKET": str(directory / "agent.sock"),
            "EDGEAGENT_LOG": "debug",
        }

    def __call__(self, *words: str, input: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "edgeagent", *words],
            env=self.environ | environ,
            input=input,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    cli = Cli(tmp_path)
    yield cli
    cli("down")


def make_token() -> tuple[str, Token]:
    token = Token(
        hosts=[f"127.0.0.1:{free_port()}"],
        network_key=PROVIDER.ed25519_public(os.urandom(32)),
        hub_box_key=PROVIDER.x25519_base(os.urandom(32)),
        ca_sha256=os.urandom(32),
        claim="c-abcdefghijklmnop",
        secret=os.urandom(16),
    )
    return token.encode(PROVIDER), token


def test_help_names_every_verb(cli: Cli) -> None:
    result = cli("--help")
    assert result.returncode == 0
    assert all(verb in result.stdout for verb in VERBS)
    assert "examples:" in result.stdout and "exit status:" in result.stdout
    for verb in VERBS:
        assert cli(verb, "--help").returncode == 0
    assert "can be read by other users" in " ".join(cli("up", "--help").stdout.split())


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ((), 2, "COMMAND"),
        (("fly",), 2, "invalid choice"),
        (("status", "extra"), 2, "unrecognized"),
        (("ping",), 2, "NAME|IP"),
        (("ping", "x", "-c", "0"), 2, "-c: 0"),
        (("ping", "x", "-c", "1", "-W", "-1"), 2, "seconds"),
        (("--port", "70000", "status"), 2, "--port: '70000'"),
        (("status", "--port", "70000"), 2, "--port: '70000'"),
        (("--state-dir", "relative", "status"), 2, "--state-dir"),
        (("--config", "/nonexistent.conf", "status"), 2, "no such file"),
        (("up", "--timeout", "0"), 2, "--timeout"),
        (("--limit", "peers=1", "up", "--limit", "peers=2"), 2, "--limit: 'peers=1,peers=2': want peers once"),
        (("run", "--limit", "nobody=1"), 2, "want limits that there are, not 'nobody'"),
        (("run", "--memory-profile", "huge"), 2, "--memory-profile: 'huge': want small, normal or large"),
        (("run", "--memory-ceiling", "5"), 2, "--memory-ceiling: '5': want auto, off"),
        (("up", "--join", "a", "--join-file", "b"), 2, "give one of them"),
        (("up", "--join", "nonsense"), 2, "em1."),
        (("up", "--join", "em1.\u00e9"), 2, "em1."),
        (("up", "--join", "em1." + "a" * 9000), 2, "em1."),
        (("up", "--join-file", "/nonexistent"), 1, "No such file"),
        (("run", "--join-file", "/nonexistent"), 1, "No such file"),
        (("up", "--hostname", "no_label"), 2, "--hostname"),
        (("status",), 3, "not running"),
        (("down",), 3, "not running"),
        (("peers", "--json"), 3, "not running"),
        (("ip",), 3, "not running"),
        (("whois", "x"), 3, "not running"),
        (("ping", "x"), 3, "not running"),
        (("netcheck",), 1, "member of no network: name a relay with --relay"),
        (("netcheck", "--timeout", "0"), 2, "--timeout: 0.0"),
        (("netcheck", "--timeout", "nan"), 2, "--timeout: nan"),
        (("netcheck", "--relay", "relay.example"), 2, "--relay: 'relay.example': want HOST:TLSPORT"),
        (("netcheck", "--relay", "a:1:2:3:4"), 2, "want HOST:TLSPORT"),
        (("netcheck", "--relay", "[::1]x:443"), 2, "want HOST:TLSPORT"),
        (("netcheck", "--relay", "2001:db8::1:443"), 2, "IPv6 address in brackets"),
        (("netcheck", "--relay", "relay.example:0"), 2, "want a host name or an address"),
        (("netcheck", "--relay", "[nonsense]:443"), 2, "want a host name or an address"),
        (("netcheck", "--relay", "no_label:443"), 2, "want a host name or an address"),
        (("netcheck", "--relay", "relay.example:443:65536"), 2, "ports of at most 65535"),
        (("netcheck", "--relay", "relay.example:443:3478:²"), 2, "ports of at most 65535"),
        (("netcheck", *["--relay", "relay.example:443"] * 17), 2, "given 17 times: at most 16"),
    ],
)
def test_errors(cli: Cli, words: tuple[str, ...], status: int, said: str) -> None:
    result = cli(*words)
    assert (result.returncode, result.stdout) == (status, "")
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_version_works_without_an_agent(cli: Cli) -> None:
    assert cli("version").stdout == f"edgeagent {VERSION}\n"
    assert json.loads(cli("version", "--json").stdout) == {"command": VERSION, "agent": None}


def test_up_without_a_network_or_a_token_leaves_nothing_running(cli: Cli) -> None:
    result = cli("up")
    assert result.returncode == 1
    assert "member of no network" in result.stderr and "--join" in result.stderr
    deadline = time.monotonic() + 20
    while (status := cli("status").returncode) != 3 and time.monotonic() < deadline:
        assert status == 1  # it is asked while it ends
    assert status == 3


def test_a_token_with_a_typing_error_is_told_from_a_foreign_one(cli: Cli) -> None:
    text, _ = make_token()
    result = cli("up", "--join", text[:-5])
    assert result.returncode == 2 and "cut short" in result.stderr
    assert cli("status").returncode == 3


def test_a_hub_that_does_not_answer(cli: Cli) -> None:
    """`up` gives up, the agent does not: it goes on in the background, also after a restart, and tells no secrets."""
    text, token = make_token()
    began = time.monotonic()
    result = cli("up", "--join-file", "-", "--hostname", "gate-1", "--timeout", "1", input=text + "\n")
    assert result.returncode == 5 and "goes on trying" in result.stderr
    assert time.monotonic() - began < 20
    status = json.loads(cli("status", "--json", "--log").stdout)
    assert status["agent"]["state"] == "joining"
    pid = status["agent"]["pid"]
    shown = cli("status", "--log").stdout
    assert "joining" in shown and token.hosts[0] in shown
    for verb in ("peers", "ip", "whois", "netcheck"):
        refused = cli(verb, *(["x"] if verb == "whois" else []))
        assert refused.returncode == 1 and "member of no network" in refused.stderr
    ledger = json.loads(cli("ledger", "--json").stdout)  # tries cost something, too
    assert [row["cause"] for uplink in ledger["uplinks"] for row in uplink["causes"]] == ["control"]
    assert "control" in cli("ledger").stdout

    identity = Identity.decode(PROVIDER, (cli.state / "identity").read_bytes()[44:])
    secrets = [text, text[4:40], token.password(PROVIDER), identity.password]
    for key in (token.secret, identity.device_seed, identity.box_private, identity.node_private):
        secrets += forms(key)
    seen = result.stderr + result.stdout + shown + json.dumps(status)
    for source in ("cmdline", "environ"):
        seen += Path(f"/proc/{pid}/{source}").read_bytes().decode("utf-8", "replace")
    assert [secret for secret in secrets if secret in seen] == []
    assert [path.name for path in cli.state.iterdir() if path.stat().st_mode & 0o077] == []

    assert cli("down").returncode == 0
    assert cli("status").returncode == 3
    again = cli("up", "--timeout", "1")
    assert again.returncode == 5
    assert json.loads(cli("status", "--json").stdout)["agent"]["state"] == "joining"


def test_a_proxys_password_is_in_nobodys_sight(cli: Cli, tmp_path: Path) -> None:
    """It is in a file, or in the environment, which only this user reads; the agent gets it there as well."""
    text, _ = make_token()
    settings = tmp_path / "edgeagent.conf"
    settings.write_text(f"proxy = me:Very-Secret@127.0.0.1:{free_port()}\n")
    result = cli("--config", str(settings), "up", "--join", text, "--timeout", "1")
    assert result.returncode == 5
    status = cli("status", "--json", "--log").stdout
    log = "".join(json.loads(status)["log"])
    assert "refused" in log, "nobody listens there"
    pid = json.loads(status)["agent"]["pid"]
    command = Path(f"/proc/{pid}/cmdline").read_bytes()
    assert b"agentd.py" in command and b"--hostname" in command
    assert b"Very-Secret" in Path(f"/proc/{pid}/environ").read_bytes()
    seen = result.stdout + result.stderr + status + cli("status", "--log").stdout + command.decode()
    assert "Very-Secret" not in seen
    assert cli("down").returncode == 0
    wrong = cli("up", EDGEAGENT_PROXY="me:Very-Secret@nowhere")
    assert wrong.returncode == 2 and "EDGEAGENT_PROXY: want HOST:PORT" in wrong.stderr
    assert "Very-Secret" not in wrong.stderr


def test_the_foreground_agent_takes_its_token_from_the_environment_and_keeps_it_out_of_sight(cli: Cli) -> None:
    text, _ = make_token()
    environ = cli.environ | {"EDGEAGENT_TOKEN": text}
    with subprocess.Popen([sys.executable, "-m", "edgeagent", "run"], env=environ, stderr=subprocess.PIPE) as agent:
        assert agent.stderr is not None
        line = agent.stderr.readline()
        assert b"no connection" in line
        assert json.loads(cli("status", "--json").stdout)["agent"]["pid"] == agent.pid
        assert text not in Path(f"/proc/{agent.pid}/environ").read_text()
        assert text not in Path(f"/proc/{agent.pid}/cmdline").read_text()
        second = cli("run")
        assert second.returncode == 1 and "another agent is running" in second.stderr
        agent.terminate()
        rest = agent.stderr.read()
        assert agent.wait(10) == 0
    assert text.encode()[4:40] not in line + rest
    assert not Path(cli.environ["EDGEAGENT_SOCKET"]).exists()


def test_a_damaged_state_directory_is_named(cli: Cli) -> None:
    cli.state.write_text("a file")
    result = cli("up")
    assert result.returncode == 1
    assert str(cli.state) in result.stderr and "Traceback" not in result.stderr


def test_status_starts_fast(cli: Cli) -> None:
    """What `status` imports: nothing of the agent itself."""
    probe = "import sys, edgeagent.cli as c; c.main(['status']); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", probe], env=cli.environ, capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert not loaded & {"ssl", "paho", "cbor2", "nacl", "logging", "typing.io", "edgeagent.daemon", "subprocess"}


def forms(key: bytes) -> list[str]:
    return [key.hex(), b64encode(key).decode()[:-1], urlsafe_b64encode(key).decode().rstrip("="), repr(key)[2:-1]]


def test_the_agent_is_compiled_smaller_where_that_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert background._optimization(str(tmp_path)) == []  # nowhere to keep it
    (tmp_path / "__pycache__").mkdir()
    assert background._optimization(str(tmp_path)) == ["-OO"]
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert background._optimization(str(tmp_path)) == []
    Path(cache_from_source(str(tmp_path / "daemon.py"), optimization="2")).touch()
    assert background._optimization(str(tmp_path)) == ["-OO"]


@pytest.mark.parametrize("closed", [(), (0,), (2,), (0, 2), (0, 1, 2)], ids=str)
def test_the_background_has_its_descriptors_whatever_the_caller_had_closed(
    tmp_path: Path, closed: tuple[int, ...]
) -> None:
    """What is opened then gets the numbers of those that are missing, and 3 may be the right one already."""
    told = tmp_path / "told"
    script = f"""
import os
for fd in {closed}:
    os.close(fd)
from edgeagent import background
def execute(arguments, settings):
    os.write(3, b"here")
    open_fds = sorted(int(fd) for fd in os.listdir("/proc/self/fd"))
    text = repr(([os.get_inheritable(fd) for fd in range(4)], open_fds[:4], os.readlink("/proc/self/fd/2")))
    with open({str(told)!r}, "w") as file:
        file.write(text)
background._execute = execute
background._arguments = lambda settings: []
client = background.start(None, 10.0)
assert client._sock.recv(4) == b"here"
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30, stderr=subprocess.PIPE)
    inheritable, fds, error = ast.literal_eval(told.read_text())
    assert inheritable == [True] * 4 and fds == [0, 1, 2, 3]
    assert (error == "/dev/null") is (2 in closed)
