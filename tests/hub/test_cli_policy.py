"""`edgehub policy`: what it prints, and how it says where a policy is wrong."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hub.core.policy.hujson import BYTES_MAX
from tests.hub.kit import Dev
from tests.hub.test_cli import Shell, join, ready, shell

__all__ = ["join", "ready", "shell"]

GOOD = """// who may reach what
{
  "groups": { "group:ops": ["alice@", "bob@example.org"] },
  "tagOwners": { "tag:cam": ["group:ops"], "tag:nvr": [] },
  "acls": [
    { "action": "accept", "src": ["group:ops"], "dst": ["tag:cam:22,443"] },
    { "action": "accept", "src": ["tag:cam"], "proto": "udp", "dst": ["tag:nvr:5000-5010"] },
  ],
  "tests": [{ "src": "alice@", "accept": ["tag:cam:22"], "deny": ["tag:nvr:22"] }],
}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "policy.hujson"
    path.write_text(GOOD)
    return path


def test_set_get_and_history(ready: Shell, file: Path) -> None:
    assert "there is no policy" in ready.fails("policy", "get")
    ready("policy", "set", str(file))
    assert ready.err == "edgehub: policy version 1 holds: 2 rules, 1 groups, 2 tags, 1 tests passed\n"
    assert ready("policy", "get") == GOOD
    file.write_text(GOOD.replace("22,443", "22"))
    assert ready.json("policy", "set", str(file)) == {
        "version": 2,
        "rules": 2,
        "groups": 1,
        "tags": 2,
        "tests": 1,
        "warnings": [],
    }
    assert ready.json("policy", "get", "--version", "1")["text"] == GOOD
    listed = ready.json("policy", "history")
    assert [stored["version"] for stored in listed] == [2, 1]
    assert all(stored["author"].startswith("cli:") for stored in listed)
    assert [line.split()[0] for line in ready("policy", "history").splitlines()] == ["VERSION", "2", "1"]
    assert "version 7: it is not kept" in ready.fails("policy", "get", "--version", "7")
    assert ready.json("status", code=3)["policy"] == 2


def test_a_refused_policy_is_shown_with_its_places_and_the_old_one_stays(ready: Shell, file: Path) -> None:
    ready("policy", "set", str(file))
    file.write_text(
        GOOD.replace('"tag:cam:22,443"', '"tag:cam"').replace('["tag:cam"], "proto"', '["tag:car"], "proto"')
    )
    assert ready("policy", "set", str(file), code=1) == ""
    lines = ready.err.splitlines()
    assert lines[0] == f"{file}:6:57: 'tag:cam': ports are missing. Write tag:cam:443, or :* for all"
    assert lines[1].strip() == '{ "action": "accept", "src": ["group:ops"], "dst": ["tag:cam"] },'
    assert lines[1][lines[2].index("^") :].startswith('"tag:cam"')
    assert lines[3].startswith(f"{file}:7:35: 'tag:car': there is no such tag.")
    assert lines[6] == f"edgehub: {file}: refused, 2 mistakes. Nothing is changed"
    assert ready("policy", "get") == GOOD
    found = ready.json("policy", "set", str(file), code=1)
    assert [(problem["line"], problem["column"]) for problem in found["problems"]] == [(6, 57), (7, 35)]
    assert ready.json("policy", "check", str(file), code=1) == found


def test_check_changes_nothing_and_needs_no_hub(shell: Shell, file: Path) -> None:
    shell("policy", "check", str(file))
    assert shell.err == f"edgehub: {file}: no mistakes; 2 rules, 1 groups, 2 tags, 1 tests passed\n"
    assert not shell.state.directory.exists()
    file.write_text(GOOD.replace('"deny": ["tag:nvr:22"]', '"deny": ["tag:cam:443"]'))
    shell("policy", "check", str(file), code=1)
    assert f"{file}:9:67: test failed: tag:cam:443 from alice@ is accepted, by acls[0] in line 6" in shell.err


def test_a_policy_comes_on_standard_input(ready: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def put(data: bytes, code: int) -> str:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        ready("policy", "set", "-", code=code)
        return ready.err

    assert "version 1 holds" in put(GOOD.encode(), 0)
    assert put(b'{\n"\xff": 1}', 1).startswith("<stdin>:2:2: byte 0xff is no UTF-8. Save it as UTF-8\n")
    assert "a policy has at most 262144" in put(b" " * (BYTES_MAX + 10), 1)
    warned = put(b'{"randomizeClientPort": true}', 0)
    assert "<stdin>:1:25: warning: randomizeClientPort: has no effect here" in warned
    assert "warning: there are no rules, so no device may reach any other" in warned


def test_files_that_are_not_there_are_said_so(ready: Shell, tmp_path: Path) -> None:
    for command in ("set", "check"):
        assert "No such file" in ready.fails("policy", command, str(tmp_path / "none"))
        assert "Is a directory" in ready.fails("policy", command, str(tmp_path))


def test_explain_says_who_the_two_are_and_which_rule(
    ready: Shell, join: Callable[..., Dev], file: Path, tmp_path: Path
) -> None:
    join(1, "cam-1", "--tag", "tag:cam")
    join(2, "nvr-1", "--tag", "tag:nvr")
    assert "there is no policy" in ready.fails("policy", "explain", "cam-1", "nvr-1:5000")
    ready("policy", "set", str(file))
    said = ready("policy", "explain", "cam-1", "nvr-1:5000", "--proto", "udp").splitlines()
    assert said[0].startswith("from     a device tagged tag:cam (100.")
    assert said[1].startswith("to       a device tagged tag:nvr (100.")
    assert said[2].startswith('allowed  udp 5000: by acls[1] in line 7: { "action"')
    denied = ready("policy", "explain", "cam-1", "nvr-1:5000").splitlines()[2]
    assert denied == "denied  tcp 5000: no rule allows it, and what no rule allows is denied"
    found = ready.json("policy", "explain", "bob@example.org", "cam-1")
    assert found["source"] == "a device of user bob@example.org, who is in group:ops"
    [verdict] = found["verdicts"]
    assert (verdict["service"], verdict["allowed"], verdict["rule"]["line"]) == ("any 22, 443", True, 6)
    draft = tmp_path / "draft"
    draft.write_text('{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}')
    [verdict] = ready.json("policy", "explain", "nvr-1", "cam-1:80", "--file", str(draft))["verdicts"]
    assert verdict["allowed"]
    assert "no device of this name" in ready.fails("policy", "explain", "cam-9", "nvr-1")
    draft.write_text("{")
    ready("policy", "explain", "nvr-1", "cam-1:80", "--file", str(draft), code=1)
    assert ready.err.startswith(f"{draft}:1:1: this {{ is not closed")


def test_diff(ready: Shell, file: Path) -> None:
    ready("policy", "set", str(file))
    assert "there is none before it" in ready.fails("policy", "diff")
    file.write_text(GOOD.replace("22,443", "22"))
    said = ready("policy", "diff", "--file", str(file)).splitlines()
    assert said[:2] == ["--- version 1", f"+++ {file}"]
    ready("policy", "set", str(file))
    changed = [line for line in ready("policy", "diff").splitlines() if line[0] in "+-"]
    assert changed[:2] == ["--- version 1", "+++ version 2"]
    assert [line[0] for line in changed[2:]] == ["-", "+"] and "22,443" in changed[2]
    assert ready("policy", "diff", "2", "2") == ""
    assert ready.json("policy", "diff", "1", "2")["old"] == 1
    assert "not kept" in ready.fails("policy", "diff", "1", "9")
    assert "only one of them" in ready.fails("policy", "diff", "1", "2", "--file", str(file))
