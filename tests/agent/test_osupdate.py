"""Images of the system: what each program is called with, and what its answers mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeagent import cli
from edgeagent.doctor_slots import image_rows
from edgeagent.io import osupdate

RAUC: dict[str, Any] = {
    "compatible": "board",
    "booted": "A",
    "slots": [
        {"rootfs.0": {"bootname": "A", "state": "booted", "boot_status": "good"}},
        {"rootfs.1": {"bootname": "B", "state": "inactive", "boot_status": "bad"}},
    ],
}


class Programs:
    """A folder of programs that note what they are called with, and say what they are told to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "bin"
        self.folder.mkdir()
        self.log = folder / "log"
        self.path = f"{self.folder}:/usr/bin:/bin"

    def add(self, name: str, says: str = "", status: int = 0, error: str = "") -> None:
        program = self.folder / name
        (self.folder / f"{name}.says").write_text(says)
        program.write_text(
            f"#!/bin/sh\necho {name} \"$@\" >> {self.log}\ncat {program}.says\necho '{error}' >&2\nexit {status}\n"
        )
        program.chmod(0o755)

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


def backend(programs: Programs) -> osupdate.Backend:
    found = osupdate.find(str(programs.folder))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("program", "calls"),
    [
        ("rauc", ["rauc install /i.img", "rauc status mark-good"]),
        ("swupdate", ["swupdate -i /i.img", "fw_setenv ustate 0"]),
        ("mender-update", ["mender-update install /i.img", "mender-update commit"]),
        ("sysupgrade", ["sysupgrade -T /i.img", "sysupgrade /i.img"]),
    ],
)
def test_each_is_called_as_its_manual_says(programs: Programs, program: str, calls: list[str]) -> None:
    programs.add(program)
    programs.add("fw_setenv")
    osupdate.install(backend(programs), "/i.img", programs.path)
    osupdate.keep(backend(programs), programs.path)
    assert programs.calls() == calls


def rauc(status: str) -> str:
    slots = [{"rootfs.0": {**RAUC["slots"][0]["rootfs.0"], "boot_status": status}}, RAUC["slots"][1]]
    return json.dumps({**RAUC, "slots": slots})


@pytest.mark.parametrize(
    ("program", "asked", "says", "on_trial"),
    [
        ("rauc", "rauc", rauc("good"), False),
        ("rauc", "rauc", rauc("bad"), True),
        ("swupdate", "fw_printenv", "0\n", False),
        ("swupdate", "fw_printenv", "1\n", True),
        ("swupdate", "fw_printenv", "2\n", True),
        ("mender-update", "fw_printenv", "0\n", False),
        ("mender-update", "fw_printenv", "1\n", True),
        ("sysupgrade", "sysupgrade", "", False),
    ],
)
def test_whether_the_booted_system_is_on_trial(
    programs: Programs, program: str, asked: str, says: str, on_trial: bool
) -> None:
    programs.add(program)
    programs.add(asked, says)
    assert osupdate.is_on_trial(backend(programs), programs.path) is on_trial


@pytest.mark.parametrize("says", ["", "no json", "[]", "{}", '{"slots": 1}', '{"slots": [1]}'])
def test_answers_of_another_form_are_said(programs: Programs, says: str) -> None:
    programs.add("rauc", says)
    with pytest.raises(osupdate.OsUpdateError, match="rauc: an answer of another form"):
        osupdate.is_on_trial(backend(programs), programs.path)


def test_a_program_that_refuses_is_quoted(programs: Programs) -> None:
    programs.add("sysupgrade", status=1, error="Image check failed: not for this board")
    with pytest.raises(osupdate.OsUpdateError, match="sysupgrade: exit status 1: Image check failed: not for this"):
        osupdate.install(backend(programs), "/i.img", programs.path)
    assert programs.calls() == ["sysupgrade -T /i.img"]  # and nothing was written


def test_none_is_here(programs: Programs) -> None:
    assert osupdate.find(str(programs.folder)) is None


def test_doctor_says_how_to_keep_it(programs: Programs) -> None:
    assert list(image_rows(programs.path)) == []
    programs.add("rauc", rauc("bad"))
    [(check, state, found, _, todo)] = image_rows(programs.path)
    assert (check, state, found) == ("system image", "warning", "booted, and on trial")
    assert todo == "Where it is good: edgeagent image keep"
    programs.add("rauc", rauc("good"))
    assert [row[1:3] for row in image_rows(programs.path)] == [("ok", "kept (RAUC)")]
    programs.add("rauc", status=1, error="no system bus")
    assert [row[1] for row in image_rows(programs.path)] == ["not checked"]


def test_the_command(programs: Programs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for function in (osupdate.find, osupdate.install, osupdate.keep, osupdate.is_on_trial):
        monkeypatch.setattr(function, "__defaults__", (programs.path,))
    assert cli.main(["image"]) == 4
    assert "none of rauc, mender-update, swupdate, sysupgrade" in capsys.readouterr().err
    programs.add("rauc", rauc("bad"))
    assert cli.main(["image", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"program": "RAUC", "on_trial": True}
    assert cli.main(["image", "install", "/b.raucb"]) == 0 and cli.main(["image", "keep"]) == 0
    assert [call for call in programs.calls() if "json" not in call] == [
        "rauc install /b.raucb",
        "rauc status mark-good",
    ]
    assert cli.main(["image", "install"]) == 2 and cli.main(["image", "keep", "/b.raucb"]) == 2
    programs.add("rauc", status=1, error="signature verification failed")
    assert cli.main(["image", "install", "/b.raucb"]) == 1
    assert "rauc: exit status 1: signature verification failed" in capsys.readouterr().err
