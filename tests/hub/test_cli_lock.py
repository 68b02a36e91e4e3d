"""`edgehub lock`: keys in files, what is refused and why, and a key that is on another machine."""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from nacl import pwhash

from edgeagent.proto.lock import NODE_SIGNATURE_LIFE_S, node_input
from edgeagent.proto.token import Token as JoinToken
from hub.state import State
from hub.store.sqlite import SqliteStore
from tests.hub.kit import WALL_S, Dev, Hub, load_crypto
from tests.hub.test_cli import Shell

Join = Callable[..., Dev]


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    shell = Shell(State(tmp_path / "hub"), capsys, monkeypatch)
    shell("init", "--address", "hub.example.org", "--name", "fleet.test")
    monkeypatch.delenv("EDGEHUB_LOCK_PASSPHRASE", raising=False)
    return shell


@pytest.fixture
def key(shell: Shell, tmp_path: Path) -> str:
    path = str(tmp_path / "lock.key")
    shell("lock", "init", "--key-file", path)
    return path


@pytest.fixture
def join(shell: Shell) -> Iterator[Join]:
    """A device that has joined and, like all that are online, signed its node key."""
    with closing(SqliteStore(shell.state.database)) as store:
        with store.read() as tx:
            network = tx.network()
        hub = Hub(store, load_crypto(), network)
        hub.wall_s = int(time.time())

        def joined(seed: int, name: str) -> Dev:
            token = JoinToken.decode(hub.crypto, shell("token", "create").strip())
            device = Dev(hub, seed, token, name=name)
            end = WALL_S + NODE_SIGNATURE_LIFE_S
            text = node_input(network.id, device.id, device.identity.node_key, end)
            row = [device.identity.node_key, end, hub.crypto.ed25519_sign(device.identity.device_seed, text)]
            hub.hear(device.join())
            hub.hear(device.write("report", {"nk": device.identity.node_key, "ls": [row]}))
            assert not hub.coordinator.drops
            return device

        yield joined


def test_the_key_is_its_owners_alone_and_never_written_over(shell: Shell, key: str) -> None:
    assert stat.S_IMODE(Path(key).stat().st_mode) == 0o600
    status = shell.json("lock", "status")
    assert status.pop("statement") > 0
    assert status == {
        "lock": "off",
        "keys": [json.loads(Path(key).read_text())["public"]],
        "revoked": {},
        "devices": 0,
        "pending": 0,
        "ending": 0,
    }
    before = Path(key).read_text()
    assert "never written over" in shell.fails("lock", "key", "--key-file", key)
    assert Path(key).read_text() == before
    Path(key).chmod(0o640)
    assert "others can read it (mode 640)" in shell.fails("lock", "on", "--key-file", key)


def test_a_passphrase_is_wanted_and_must_be_right(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = pwhash.argon2id
    monkeypatch.setattr(limits, "MEMLIMIT_MODERATE", limits.MEMLIMIT_MIN)  # or each try takes seconds
    path = str(tmp_path / "safe.key")
    assert "no terminal" in shell.fails("lock", "key", "--key-file", path, "--passphrase")
    monkeypatch.setenv("EDGEHUB_LOCK_PASSPHRASE", "correct horse")
    public = shell("lock", "key", "--key-file", path, "--passphrase").strip()
    assert "seed" not in json.loads(Path(path).read_text())
    shell("lock", "init", "--key-file", path)
    assert shell.json("lock", "status")["keys"] == [public]
    monkeypatch.setenv("EDGEHUB_LOCK_PASSPHRASE", "wrong horse")
    assert "passphrase is wrong" in shell.fails("lock", "on", "--key-file", path)
    monkeypatch.delenv("EDGEHUB_LOCK_PASSPHRASE")
    assert "no terminal to ask at" in shell.fails("lock", "on", "--key-file", path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "x" * 5_000,
        "[" * 4_000,
        '{"edgehub-lock": 1, "public": "AA==", "seed": "AA=="}',
        '{"edgehub-lock": 1, "ops": 3, "memory": 99999999999999, "box": "", "salt": ""}',
        '{"edgehub-lock": 1, "ops": 1000000, "memory": 8192, "box": "", "salt": ""}',
    ],
)
def test_a_file_that_holds_no_key_is_said_to_be_none(shell: Shell, tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.key"
    path.touch(0o600)
    path.write_text(text)
    assert "not a file of a lock key" in shell.fails("lock", "init", "--key-file", str(path))
    assert "no such file" in shell.fails("lock", "on", "--key-file", str(tmp_path / "none"))


def test_devices_are_signed_and_the_lock_is_turned_on_when_all_are(shell: Shell, key: str, join: Join) -> None:
    a, b = join(1, "cam-1"), join(2, "cam-2")
    assert shell.json("lock", "pending") == [
        {"id": device.id, "name": device.name, "lacks": ["signature"]} for device in sorted((a, b), key=lambda d: d.id)
    ]
    assert shell("devices", "list").count("active UNSIGNED") == 2
    assert "2 of 2 devices would be in nobody's reach" in shell.fails("lock", "on", "--key-file", key)
    assert "--key-file is missing" in shell.fails("lock", "sign", "cam-1")
    assert "name devices, or all" in shell.fails("lock", "sign", "--key-file", key)
    shell("lock", "sign", "cam-1", "--key-file", key)
    assert [row["name"] for row in shell.json("lock", "pending")] == ["cam-2"]
    shell("lock", "sign", "--all", "--key-file", key, "--for", "20d")
    assert "1 devices are signed" in shell.err
    shell("lock", "on", "--key-file", key)
    status = shell.json("lock", "status")
    assert (status["lock"], status["pending"], status["ending"]) == ("on", 0, 1)
    assert "end within 30 days" in (shell("lock", "status") and shell.err)
    assert "a time like" in shell.fails("lock", "sign", "cam-1", "--key-file", key, "--for", "soon")
    shell("lock", "revoke", "cam-1", "--key-file", key)
    assert [row["name"] for row in shell.json("lock", "pending")] == ["cam-1"]
    shell("lock", "sign", "cam-1", "--key-file", key)
    assert shell.json("lock", "pending") == []
    shell("lock", "off", "--key-file", key)
    assert shell.json("lock", "status")["lock"] == "off"


def test_keys_are_added_and_removed(shell: Shell, key: str, join: Join, tmp_path: Path) -> None:
    join(1, "cam-1")
    old, new = shell.json("lock", "status")["keys"][0], str(tmp_path / "new.key")
    public = shell("lock", "key", "--key-file", new).strip()
    assert "signed by a key that is none of the lock's" in shell.fails("lock", "add-key", public, "--key-file", new)
    shell("lock", "add-key", public, "--key-file", key)
    shell("lock", "sign", "--all", "--key-file", key)
    shell("lock", "on", "--key-file", key)
    assert "1 of 1 devices" in shell.fails("lock", "remove-key", old, "--key-file", new)
    shell("lock", "sign", "--all", "--key-file", new)
    shell("lock", "remove-key", old, "--key-file", new)
    assert shell.json("lock", "status")["keys"] == [public]
    assert "44 characters" in shell.fails("lock", "add-key", "x", "--key-file", new)


def test_a_key_on_another_machine_signs_by_files(shell: Shell, join: Join, tmp_path: Path) -> None:
    key, requests, signed = (str(tmp_path / name) for name in ("lock.key", "requests", "signed"))
    public = shell("lock", "key", "--key-file", key).strip()  # there
    assert "who signs?" in shell.fails("lock", "init")
    shell("lock", "init", "--key", public, "--request", requests)
    assert shell.json("lock", "status")["lock"] is None
    shell("lock", "sign-requests", requests, "--key-file", key, "--out", signed)  # there
    shell("lock", "import-signatures", signed)
    assert "is next" in shell.fails("lock", "import-signatures", signed)
    join(1, "cam-1")
    assert "there already" in shell.fails("lock", "export-requests", requests)
    shell("lock", "export-requests", requests + "2")
    assert "would be in nobody's reach" in shell.fails("lock", "on", "--request", requests + "3")
    shell("lock", "sign-requests", requests + "2", "--key-file", key, "--out", signed + "2")
    shell("lock", "import-signatures", signed + "2")
    assert shell.json("lock", "pending") == []
    shell("lock", "on", "--request", requests + "3")
    line = shell("lock", "sign-requests", requests + "3", "--key-file", key)
    Path(signed + "3").write_text(line)
    shell("lock", "import-signatures", signed + "3")
    assert shell.json("lock", "status")["lock"] == "on"


def test_a_file_with_one_wrong_line_changes_nothing(shell: Shell, key: str, join: Join, tmp_path: Path) -> None:
    join(1, "cam-1"), join(2, "cam-2")
    requests, signed = str(tmp_path / "requests"), tmp_path / "signed"
    shell("lock", "export-requests", requests)
    shell("lock", "sign-requests", requests, "--key-file", key, "--out", str(signed))
    first, second = signed.read_text().splitlines()
    signed.write_text(first + "\n" + second.replace('"not_after":0', '"not_after":7') + "\n")
    assert "it is wrong" in shell.fails("lock", "import-signatures", str(signed))
    assert len(shell.json("lock", "pending")) == 2
    other = first.replace(json.loads(first)["network"], "a" * 16)
    signed.write_text(other + "\n")
    assert "for network aaaaaaaaaaaaaaaa" in shell.fails("lock", "import-signatures", str(signed))
    assert "signed: device or statement expected" in shell.fails("lock", "import-signatures", key)
