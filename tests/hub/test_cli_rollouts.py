"""`edgehub update` and `edgehub rollout`: an operator's way from a key to a fleet, and what each refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hub.cli_updates import PASSPHRASE
from tests.hub import agentfiles
from tests.hub.kit import Dev
from tests.hub.test_cli import Shell, join, ready, shell

__all__ = ["join", "ready", "shell"]


def test_from_a_key_to_a_rollout(ready: Shell, tmp_path: Path, join: Callable[..., Dev]) -> None:
    ready("update", "list")
    assert "there is no repository of updates" in ready.err
    key = tmp_path / "root.key"
    ready("update", "init", "--root-key", str(key))
    assert key.stat().st_mode & 0o777 == 0o600 and "root 1 is in force" in ready.err
    assert "there is a repository already" in ready.fails("update", "init", "--root-key", str(key))
    ready("update", "list")
    assert "nothing is published" in ready.err
    ready("update", "publish", str(agentfiles.make(tmp_path)))
    ready("update", "publish", str(agentfiles.make(tmp_path, "0.3.0")))
    listed = ready.json("update", "list")
    assert [each["version"] for each in listed["versions"]] == ["0.3.0", "0.2.0"]
    assert "older than 0.3.0" in ready.fails("update", "publish", str(agentfiles.make(tmp_path, "0.1.9")))

    assert "no device fits" in ready.fails("rollout", "create", "--version", "0.2.0")
    ready("rollout", "list")
    assert "there is no rollout" in ready.err
    devices = [join(number, f"cam-{number}") for number in (1, 2, 3)]
    made = ready.json(
        "rollout", "create", "--version", "0.2.0", "--select", "name~cam", "--groups", "1,100%", "--draft"
    )
    assert (made["state"], made["devices"], [group["devices"] for group in made["groups"]]) == ("draft", 3, [1, 2])
    for verb, state in (
        ("submit", "awaiting-approval"),
        ("approve", "running"),
        ("pause", "paused"),
        ("resume", "running"),
    ):
        assert ready.json("rollout", verb, "1")["state"] == state
    rows = ready.json("rollout", "devices", "1")
    assert {row["device"] for row in rows} == {device.id for device in devices}
    assert "pending" in ready("rollout", "devices", "1", "--state", "pending") or ready.err
    ready("update", "revoke", "0.2.0")
    assert "paused: rollout 1" in ready.err
    assert ready.json("rollout", "show", "1")["why"] == "version 0.2.0 was revoked"
    assert "paused: version 0.2.0 was revoked" in ready("rollout", "show", "1")
    assert ready("rollout", "list").splitlines()[1].split()[:3] == ["1", "version", "0.2.0"]
    ready("rollout", "abort", "1", "--why", "bad idea")
    assert ready.err == "edgehub: rollout 1 (version 0.2.0): aborted\n"
    assert "it is aborted, and resume makes no sense then" in ready.fails("rollout", "resume", "1")
    verbs = [json.loads(line)["verb"] for line in ready("audit", "list", "--limit", "100", "--json").splitlines()]
    assert {"update.root", "update.publish", "update.revoke", "rollout.create", "rollout.approve"} <= set(verbs)


def test_the_root_key_may_live_on_another_machine(
    ready: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, PASSPHRASE, "correct horse battery staple")
    key, request, signed = (str(tmp_path / name) for name in ("root.key", "root.json", "signed.json"))
    public = ready("update", "key", "--root-key", key, "--passphrase").strip()
    assert len(public) == 64 and "correct horse" not in Path(key).read_text()
    ready("update", "init", "--root-public", public, "--request", request)
    assert "Sign it: edgehub update sign" in ready.err
    assert "not signed by the keys that it takes" in ready.fails("update", "take", request)
    ready("update", "sign", request, "--root-key", key, "--out", signed, "--yes")
    ready("update", "take", signed)
    again, signed_again = str(tmp_path / "again.json"), str(tmp_path / "signed-again.json")
    ready("update", "rotate", "--request", again, "--role", "targets")
    ready("update", "sign", again, "--root-key", key, "--out", signed_again, "--yes")
    ready("update", "take", signed_again)
    assert {role["role"]: role["version"] for role in ready.json("update", "list")["roles"]}["root"] == 2
    assert "version 3 expected, not 2" in ready.fails("update", "take", signed_again)
    monkeypatch.setitem(os.environ, PASSPHRASE, "wrong")
    assert "the passphrase is wrong" in ready.fails("update", "rotate", "--root-key", key)
    assert "--role root: one of targets" in ready.fails("update", "rotate", "--root-key", key, "--role", "root")
    for name in (request, signed):
        assert "seed" not in json.dumps(json.loads(Path(name).read_text()))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "what is to be rolled out?"),
        (("--version", "1", "--set", "a=b"), "what is to be rolled out?"),
        (("--set", "budget"), "NAME=VALUE expected"),
        (("--set", "colour=red"), "setting colour: the hub may change budget"),
        (("--version", "1", "--soak", "soon"), "--soak: 'soon'"),
        (("--version", "1", "--groups", "1"), "the last one 100%"),
        (("--version", "1", "--windows", "noon"), "windows: 'noon' cannot be read"),
        (("--version", "1", "--select", "x:y"), "x: is no field"),
    ],
)
def test_what_makes_no_sense_says_why(ready: Shell, words: tuple[str, ...], said: str) -> None:
    assert said in ready.fails("rollout", "create", *words)


def test_names_that_are_not_there(ready: Shell, tmp_path: Path) -> None:
    for verb in ("show", "devices", "approve", "pause", "resume", "abort", "submit"):
        assert "rollout 9: there is none" in ready.fails("rollout", verb, "9")
    assert "--state happy: one of pending" in ready.fails("rollout", "devices", "9", "--state", "happy")
    for words in (("publish", str(agentfiles.make(tmp_path))), ("revoke", "1"), ("rotate", "--root-key", "x")):
        assert "there is no repository here" in ready.fails("update", *words)
    assert "where is the root key?" in ready.fails("update", "init")
    assert "64 hexadecimal digits" in ready.fails("update", "init", "--root-public", "xy", "--request", "r")
