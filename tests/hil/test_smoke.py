"""The smoke suite itself, on two guests; builds the guest where it is not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hil.machines import BY_NAME
from hil.smoke import smoke

PROGRAMS = ("qemu-system-aarch64", "fakeroot", "mke2fs", "debugfs", "depmod", "mosquitto", "unshare")


@pytest.mark.slow
@pytest.mark.skipif(any(shutil.which(name) is None for name in PROGRAMS), reason="`./dev hil` installs what it needs")
def test_two_guests_join_reach_each_other_and_come_back(tmp_path: Path) -> None:
    store = Path(__file__).parents[2] / "build/hil"
    report = smoke([BY_NAME["arm64"]] * 2, store, tmp_path, print)
    assert report.passed, report.text()
    written = json.loads((tmp_path / "report.json").read_text())
    assert {figure["what"] for figure in written["figures"]} > {"power-on to online, first", "agent, resident memory"}
    assert "root@pump" in (tmp_path / "pump/console.log").read_text()
