"""Boards' files: what is right is read, what is wrong is said with its key and with what is allowed, all at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boards import catalogue
from boards.schema import ABIS, FILE_BYTES_MAX, BoardError, parse
from edgeagent.proto.limits import read_limits
from flash.cli import main
from flash.cli_boards import check
from tools.cross import LIBCS, MACHINES

GOOD = (catalogue.FOLDER / "teltonika-rut955.toml").read_text(encoding="utf-8")

WANTED = {
    "rpi-zero-w", "rpi-zero-2-w", "rpi-3b", "rpi-4b", "rpi-5", "rpi-cm4", "glinet-gl-mt300n-v2", "glinet-gl-mt3000",
    "openwrt-mipsel", "openwrt-x86-64", "teltonika-rut955", "nanopi-r2s", "debian-arm64", "debian-armhf",
    "debian-x86-64", "qemu-x86-64", "qemu-arm64", "qemu-raspi3b", "qemu-armhf", "qemu-mipsel",
}  # fmt: skip


def test_the_boards_of_the_release_are_right() -> None:
    assert set(catalogue.ids()) >= WANTED
    assert [problem for path in catalogue.FOLDER.glob("*.toml") for problem in check(path)] == []


def test_abis_are_those_that_the_c_library_is_built_for() -> None:
    assert set(ABIS) == {f"{machine.name}-{libc}" for machine in MACHINES for libc in LIBCS}


def test_each_board_says_where_its_facts_come_from() -> None:
    for path in catalogue.FOLDER.glob("*.toml"):
        head = path.read_text(encoding="utf-8").split("\nname = ")[0]
        assert "Sources: " in head, path


def test_slices_are_small_and_nothing_is_known_as_two_boards() -> None:
    seen: set[tuple[str, str, str]] = set()
    for board in catalogue.all_boards():
        for at in range(len(board.systems)):
            told = json.loads(catalogue.slice_of(board, at))
            assert told["id"] == board.id and told["abi"] == board.systems[at].abi
            assert len(catalogue.slice_of(board, at)) <= catalogue.SLICE_BYTES_MAX
        detect = board.detect
        for kind in ("compatible", "board_name", "dmi_product"):
            for name in getattr(detect, kind):
                for machine in detect.machine or ("",):
                    assert (kind, name, machine) not in seen
                    seen.add((kind, name, machine))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("cores = 1", 'cores = "one"', "x.toml: cpu.cores: 'one': a whole number from 1 to 256 expected"),
        ("cores = 1", "cores = true", "x.toml: cpu.cores: True: a whole number from 1 to 256 expected"),
        ("cores = 1", "cores = 1\ncolour = 3", "x.toml: cpu.colour: no such key. Known are soc, model, cores, mhz"),
        ('model = "MIPS 74Kc"\n', "", "x.toml: cpu.model: missing. Expected is a text of 1 to 200 characters"),
        ('abi = "mips-musl"', 'abi = "mips"', "x.toml: systems[0].abi: 'mips': one of x86-64-glibc, "),
        ('init = "uci-defaults"', 'init = "ignition"', "systems[0].init: 'ignition': one of cloud-init-nocloud, "),
        ("kib = 15552", "kib = 99999", "flash.partitions: 100831 KiB together, and the flash has 16384"),
        ("writes_a_day = 10", "writes_a_day = 500", "flash.writes_a_day: 500: a whole number from 1 to 20 expected"),
        ("metered = true", 'metered = "yes"', "uplinks[1].metered: 'yes': true or false expected"),
        ("ram_mib = [128]", "ram_mib = 128", "ram_mib: 128: a list of at most 64, each a whole number from 8 to"),
        ("ram_mib = [128]", "ram_mib = [128, 128]", "ram_mib: one of them is there twice"),
        ("ram_mib = [128]", "ram_mib = []", "ram_mib: empty. At least one size expected"),
        ('device = "/dev/ttyS0"', 'device = "ttyS0"', "serial.device: 'ttyS0': a device, as in /dev/ttyS0 expected"),
        ('target = "ath79/generic"\n', "", "systems[0].target: missing. The image builder needs one"),
        ('package = "ipk"', 'package = "deb"', "systems[0].init: uci-defaults goes with OpenWrt's packages"),
        ('kind = "product"', 'kind = "product"\nid = "y"', "id: not in the file: its name is the id"),
        ('name = "Teltonika RUT955"', 'name = "Teltonika', "x.toml: no TOML: "),
        ('memory_profile = "small"', "limits = { peers = 0 }", "agent.limits.peers: 0: a whole number from 1 on"),
        ('memory_profile = "small"', "limits = 3", "agent.limits: 3: a table of name = whole number expected"),
    ],
)
def test_what_is_wrong_is_said(old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(BoardError) as error:
        parse(GOOD.replace(old, new, 1).encode(), "x.toml", "x")
    assert said in str(error.value)


def test_all_that_is_wrong_is_said_at_once() -> None:
    bad = GOOD.replace("cores = 1", "cores = 0").replace("baud = 115200", "baud = 1").replace("mib = 16\n", "mib = 0\n")
    with pytest.raises(BoardError) as error:
        parse(bad.encode(), "x.toml", "x")
    assert [line.split(": ")[1] for line in str(error.value).split("\n")] == ["cpu.cores", "flash.mib", "serial.baud"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xff", "byte 0 is no UTF-8"),
        (b"#" * (FILE_BYTES_MAX + 1), "at most 32768 expected"),
        (b"", "name: missing"),
        (b"a = " + b"[" * 20_000, "no TOML"),
    ],
)
def test_files_that_are_none_are_refused(data: bytes, said: str) -> None:
    with pytest.raises(BoardError, match=said):
        parse(data, "x.toml", "x")


@given(st.binary(max_size=200), st.integers(0, len(GOOD)), st.integers(0, 200))
def test_damage_is_an_error_or_a_board_and_never_else(junk: bytes, at: int, cut: int) -> None:
    data = GOOD.encode()
    try:
        parse(data[:at] + junk + data[at + cut :], "x.toml", "x")
    except BoardError as error:
        assert str(error).startswith("x.toml: ")


def test_check_names_a_limit_that_the_agent_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(GOOD.replace('memory_profile = "small"', "limits = { peers = 32, pears = 3 }"))
    assert main(["boards", "check", str(file)]) == 1
    said = capsys.readouterr().out
    assert "agent.limits.pears: 3: want limits that there are, not 'pears': " in said
    assert said.endswith("1 checked, 1 not right\n") and "Traceback" not in said
    file.write_text(GOOD.replace('memory_profile = "small"', "limits = { peers = 32 }"))
    assert main(["boards", "check", "--json", str(file)]) == 0
    assert json.loads(capsys.readouterr().out) == [{"file": str(file), "ok": True, "problems": []}]


def test_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["boards", "list"]) == 0
    listed = capsys.readouterr().out
    assert "rpi-zero-2-w" in listed and "cloud-init-nocloud, rpi-firstrun, rpi-preseed" in listed
    assert main(["boards", "list", "--json"]) == 0
    assert {each["id"] for each in json.loads(capsys.readouterr().out)} == set(catalogue.ids())
    assert main(["boards", "show", "rpi-4b"]) == 0
    assert "cpu.model                    Cortex-A72\n" in capsys.readouterr().out
    assert main(["boards", "show", "rpi-4b", "--slice"]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == "rpi-4b"
    assert main(["boards", "check"]) == 0
    capsys.readouterr()
    assert main(["boards", "show", "rpi-4"]) == 1
    assert capsys.readouterr().err.startswith("edgeflash: 'rpi-4': no such board. Did you mean rpi-4b")
    assert main(["boards", "show", "/nowhere/x.toml"]) == 1
    assert capsys.readouterr().err == "edgeflash: /nowhere/x.toml: No such file or directory\n"


def test_limits_of_boards_are_the_agents() -> None:
    for board in catalogue.all_boards():
        for name, value in board.agent.limits.items():
            assert read_limits(f"{name}={value}") == {name: value}
