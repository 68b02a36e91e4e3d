"""Which board it is, by slice or by itself; a slice is below what the operator sets, and never stops an agent."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boards import catalogue
from edgeagent import board
from edgeagent.boardnames import GENERIC, NAMES
from edgeagent.cli import main
from edgeagent.config import load
from edgeagent.context import facts

SLICE = catalogue.slice_of(catalogue.get("teltonika-rut955"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("etc/edgeagent", "proc/device-tree", "tmp/sysinfo", "sys/class/dmi/id", "state"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def find(root: Path) -> board.Board:
    return board.find(str(root / "state"), str(root))


def test_the_names_are_those_of_the_boards_files() -> None:
    names, generic = {}, {}
    for each in catalogue.all_boards():
        detect = each.detect
        exact = [*detect.compatible, *detect.board_name, *detect.dmi_product]
        names.update({f"{name} {machine}".strip(): each.id for name in exact for machine in detect.machine or ("",)})
        if not exact:
            generic.update({(detect.os, machine): each.id for machine in detect.machine})
    assert names == NAMES and generic == GENERIC


@pytest.mark.parametrize("board_id", catalogue.ids())
def test_every_slice_is_understood(board_id: str) -> None:
    whole = catalogue.get(board_id)
    for at in range(len(whole.systems)):
        told = board.read_slice(catalogue.slice_of(whole, at))
        assert told["id"] == board_id and told["profile"] == whole.agent.memory_profile
    assert (catalogue.SLICE_BYTES_MAX, catalogue.SLICE_VERSION) == (board.SLICE_BYTES_MAX, board.SLICE_VERSION)


@pytest.mark.parametrize(
    ("machine", "files", "expected"),
    [
        (
            "aarch64",
            {"proc/device-tree/compatible": "raspberrypi,4-model-b\0brcm,bcm2711\0"},
            ("rpi-4b", "device tree"),
        ),
        ("aarch64", {"proc/device-tree/compatible": "linux,dummy-virt\0"}, ("qemu-arm64", "device tree")),
        ("armv7l", {"proc/device-tree/compatible": "linux,dummy-virt\0"}, ("qemu-armhf", "device tree")),
        ("mips", {"tmp/sysinfo/board_name": "glinet,gl-mt300n-v2\n"}, ("glinet-gl-mt300n-v2", "OpenWrt's board name")),
        (
            "x86_64",
            {"sys/class/dmi/id/product_name": "Standard PC (Q35 + ICH9, 2009)\n"},
            ("qemu-x86-64", "product name"),
        ),
        # One that no file describes has its own name; a PC of whatever name is a PC.
        ("aarch64", {"proc/device-tree/compatible": "acme,gizmo\0acme,soc\0"}, ("acme,gizmo", "device tree")),
        ("mips", {"tmp/sysinfo/board_name": "acme,box\n"}, ("acme,box", "OpenWrt's board name")),
        (
            "x86_64",
            {"sys/class/dmi/id/product_name": "Gizmo 3\n", "etc/debian_version": "12.1\n"},
            ("debian-x86-64", "system and processor"),
        ),
        ("mips", {"etc/openwrt_release": ""}, ("openwrt-mipsel", "system and processor")),
        ("riscv64", {"etc/debian_version": "13\n"}, ("", "nothing")),
        ("aarch64", {}, ("", "nothing")),
        ("aarch64", {"proc/device-tree/compatible": "\xff" * 9_000}, ("", "nothing")),
        ("aarch64", {"proc/device-tree/compatible": "a,b c;$(d)\0"}, ("", "nothing")),
    ],
)
def test_a_board_is_detected(
    root: Path, monkeypatch: pytest.MonkeyPatch, machine: str, files: dict[str, str], expected: tuple[str, str]
) -> None:
    uname = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*uname[:4], machine)))
    for name, content in files.items():
        (root / name).write_text(content)
    assert board.detect(str(root)) == expected
    found = find(root)
    assert (found.id, found.by, found.problem) == (*expected, "")


def test_the_systems_slice_comes_before_the_states(root: Path) -> None:
    (root / "state/board.json").write_bytes(catalogue.slice_of(catalogue.get("rpi-5")))
    assert find(root).id == "rpi-5"
    (root / "etc/edgeagent/board.json").write_bytes(SLICE)
    found = find(root)
    assert (found.id, found.by, found.path) == ("teltonika-rut955", "slice", f"{root}/etc/edgeagent/board.json")


BROKEN = {
    "": "no JSON",
    "{": "no JSON",
    "[" * 4_000: "no JSON",
    " " * 4_097: "longer than 4096 bytes",
    "[]": "no slice of version 1",
    '{"v": 2, "id": "x"}': "no slice of version 1",
    '{"v": 1}': "id: a board's id expected",
    '{"v": 1, "id": "a b"}': "id: a board's id expected",
    '{"v": 1, "id": "x", "profile": "huge"}': "profile: one of small, normal, large expected",
    '{"v": 1, "id": "x", "limits": [1]}': "limits: a table of name and number expected",
    '{"v": 1, "id": "x", "limits": {"pears": 3}}': "limits: want limits that there are, not 'pears'",
    '{"v": 1, "id": "x", "limits": {"peers": "3,flows=9"}}': "limits: whole numbers expected",
    '{"v": 1, "id": "x", "limits": {"peers": true}}': "limits: whole numbers expected",
    '{"v": 1, "id": "x", "limits": {"peers": 0}}': "limits: want peers to be a whole number",
    '{"v": 1, "id": "x", "ceiling_mib": true}': "ceiling_mib: a whole number from 16 to 65536 expected",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_slice_is_said_and_as_good_as_none(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    path = root / "etc/edgeagent/board.json"
    path.write_text(text)
    found = find(root)
    assert found.problem.startswith(f"{path}: {BROKEN[text]}") and found.told == {}
    monkeypatch.setattr(board, "SYSTEM_SLICE", str(path))
    settings = load({"state-dir": str(root / "state")}, {})
    before = {name: getattr(settings, name) for name in settings.__slots__ if name != "board"}
    assert board.apply(settings).problem == found.problem
    assert {name: getattr(settings, name) for name in settings.__slots__ if name != "board"} == before
    assert main(["board", f"--state-dir={root}/state"]) == 0
    assert f"warning       {found.problem}. Going on without it.\n" in capsys.readouterr().out
    assert main(["doctor", "--json", f"--state-dir={root}/state", f"--socket={root}/none"]) in (0, 1)
    checks = {each["check"]: each for each in json.loads(capsys.readouterr().out)["checks"]}
    assert (checks["board"]["state"], checks["board"]["found"]) == ("warning", found.problem)


@pytest.mark.parametrize("kind", ["folder", "fifo", "secret"])
def test_what_is_no_readable_file_stops_nobody(root: Path, kind: str) -> None:
    path = root / "etc/edgeagent/board.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(path)
    (root / "state/board.json").write_bytes(SLICE)
    found = find(root)
    assert found.problem.startswith(f"{path}: ") and found.id == "teltonika-rut955"


@given(st.binary(max_size=120), st.integers(0, len(SLICE)), st.integers(0, 60))
def test_damage_is_an_error_or_a_slice(junk: bytes, at: int, cut: int) -> None:
    try:
        told = board.read_slice(SLICE[:at] + junk + SLICE[at + cut :])
    except ValueError as error:
        assert str(error)
    else:
        assert board.is_id(told["id"])


def test_ceilings_are_below_what_the_operator_sets(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = root / "board.json"
    monkeypatch.setattr(board, "SYSTEM_SLICE", str(path))
    path.write_text(
        json.dumps({"v": 1, "id": "x", "profile": "small", "ceiling_mib": 25, "limits": {"peers": 8, "flows": 2_048}})
    )

    def applied(**given: str) -> tuple[str, str, str, str]:
        named = {name.replace("_", "-"): value for name, value in given.items()}
        settings = load({"state-dir": str(root), **named}, {})
        board.apply(settings)
        return settings.board, settings.memory_profile, settings.limits, settings.memory_ceiling

    assert applied() == ("x", "small", "peers=8,flows=2048", "25")
    assert applied(limits="peers=99") == ("x", "small", "flows=2048,peers=99", "25")
    assert applied(memory_ceiling="off") == ("x", "small", "peers=8,flows=2048", "off")
    assert applied(memory_profile="normal") == ("x", "normal", "", "auto")
    assert applied(board="mine") == ("mine", "small", "peers=8,flows=2048", "25")


def test_the_hub_is_told(root: Path) -> None:
    assert facts("rpi-4b")["board"] == "rpi-4b"
    assert "board" not in facts("")


def test_the_command_shows_the_slice(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(board, "SYSTEM_SLICE", str(root / "board.json"))
    (root / "board.json").write_bytes(SLICE)
    assert main(["board", f"--state-dir={root}/state"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^board +teltonika-rut955\nknown by +slice\n", said) and "memory        small\n" in said
    assert main(["board", "--json", f"--state-dir={root}/state"]) == 0
    assert json.loads(capsys.readouterr().out)["told"] == json.loads(SLICE)
