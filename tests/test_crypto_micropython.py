"""The pure provider, unchanged, under MicroPython: its WebAssembly port, which node runs.

That port has integers of 31 bits before the heap and lacks `hashlib.sha512`, as small boards do.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "micropython"
PURE = HERE.parents[1] / "edgeagent" / "crypto" / "pure"
LOCK = HERE / "package-lock.json"
INSTALLED = HERE / "node_modules" / ".package-lock.json"


@pytest.fixture
def node() -> str:
    """The path of node, with MicroPython installed for it as tests/micropython/package-lock.json pins it."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not on this machine: apt-get install nodejs npm")
    with LOCK.open() as lock:  # pytest-xdist runs two tests of this file at the same time
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not INSTALLED.exists() or INSTALLED.stat().st_mtime < LOCK.stat().st_mtime:
            run([npm, "ci"])
    return node


def test_the_pure_provider_knows_its_answers_under_micropython(node: str) -> None:
    assert "\nok " in run([node, "run.mjs", str(PURE)])


def test_a_wrong_answer_under_micropython_is_seen(node: str, tmp_path: Path) -> None:
    broken = tmp_path / "pure"
    shutil.copytree(PURE, broken)
    source = broken / "x25519.py"
    source.write_text(source.read_text().replace("pow(z2, p - 2, p)", "pow(z2, -1, p)"))
    with pytest.raises(AssertionError, match="WrongAnswer: x25519"):
        run([node, "run.mjs", str(broken)])


def run(command: list[str]) -> str:
    """Its output; AssertionError with all that it said when it fails."""
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout
