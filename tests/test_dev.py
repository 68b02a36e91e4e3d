"""`./dev` itself: what can be checked without setting a machine up."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def dev(*arguments: str, shell: str = "sh") -> subprocess.CompletedProcess[str]:
    command = [shell, str(ROOT / "dev"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_help_names_every_command() -> None:
    result = dev("help")
    assert result.returncode == 0
    source = (ROOT / "dev").read_text(encoding="utf-8")
    commands = re.findall(r"^cmd_(\w+)\(\)", source, re.MULTILINE)
    assert sorted(commands) == ["bench", "check", "clean", "demo", "docs", "fuzz", "hil", "test"]
    assert [command for command in commands if not re.search(rf"^  {command}\b", result.stdout, re.MULTILINE)] == []
    assert dev().stdout == result.stdout


def test_an_unknown_command_is_a_usage_error_and_sets_nothing_up() -> None:
    result = dev("bulid")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("usage: ./dev COMMAND")


def test_the_scripts_are_plain_sh() -> None:
    for script in (ROOT / "dev", ROOT / ".ci" / "run"):
        assert script.read_text(encoding="utf-8").startswith("#!/bin/sh\n")
        assert script.stat().st_mode & 0o111
        # dash is Debian's sh and knows none of bash's extensions.
        assert subprocess.run(["dash", "-n", script], capture_output=True, check=False).stderr == b""


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="no git, or no clone")
def test_no_source_is_ignored_by_git() -> None:
    """What is ignored here is missing in every clone."""
    command = [
        "git",
        "ls-files",
        "--others",
        "--ignored",
        "--exclude-standard",
        "--",
        "edgeagent",
        "hub",
        "docs",
        "tests",
    ]
    ignored = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    made = ("__pycache__", "node_modules", ".hypothesis", "libedgefast.so", "libedgefast.why", "vendor", "vendor.why")
    assert [path for path in ignored if not any(part in made for part in Path(path).parts)] == []
