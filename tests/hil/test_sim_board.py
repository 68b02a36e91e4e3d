"""A simulated board as rigs see it: serial port, power by HTTP, card; with the right to namespaces also its system."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeagent.version import VERSION
from hil.errors import CommandFailed, GuestStuck, HilError
from hil.rigs import rigfile
from hil.rigs.device import Device
from hil.rigs.external import program
from hil.rigs.openrig import OpenRig
from hil.rigs.strategy import LOADER, OFF, SHELL
from hil.sim.lab import Lab
from hil.sim.uboot import BOOT, RESET, Prompt
from tests.flash import kit
from tests.hil import rig_kit
from tests.netlab import rights

TICK_S = 0.15


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lab = Lab(
            folder,
            ["pump"],
            board=rig_kit.BOARD,
            image=rig_kit.tree(folder),
            agent=folder / rig_kit.AGENT,  # made where it is wanted: it takes seconds
            tick_s=TICK_S,
        )
        self.file = rigfile.load(self.lab.rig)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("sim"))
    yield made
    made.lab.close()
    assert not made.lab.rig.exists()


@pytest.fixture
def device(bench: Bench) -> Iterator[Device]:
    with OpenRig(bench.file, bench.folder / "out", bench.folder, surroundings=False) as rig:
        yield rig.devices["pump"]
        rig.devices["pump"].cut()


def test_the_prompt_knows_what_rigs_ask_it() -> None:
    prompt = Prompt({"bootcmd": "boot", "a": "b c"}, 64 << 20)
    assert prompt.feed("printenv a\n") == "printenv a\r\na=b c\r\n=> "
    assert prompt.feed("printenv x; echo $?\n").endswith('## Error: "x" not defined\r\n1\r\n=> ')
    assert prompt.feed("setenv y 1 2\nprintenv y\n").endswith("y=1 2\r\n=> ")
    assert prompt.feed("mmx\b\bmc info\n").endswith("Device: mmc@0\r\nCapacity: 64.0 MiB\r\n=> ")
    assert prompt.feed("echo 'ab''cd'; nonsense\n").endswith("abcd\r\nUnknown command 'nonsense' - try 'help'\r\n=> ")
    assert prompt.feed("echo 'x\n").endswith("syntax error\r\n=> ") and prompt.feed("abc\x03").endswith(
        "<INTERRUPT>\r\n=> "
    )
    assert prompt.feed("reset\nprintenv\n").endswith("resetting ...\r\n") and prompt.wish == RESET
    again = Prompt({}, 0)
    again.feed("mmc info; run bootcmd\n")
    assert again.wish == BOOT


def test_the_boot_loader_is_stopped_and_asked_and_the_power_cut(device: Device, bench: Bench) -> None:
    board = bench.lab.boards["pump"]
    assert device.power.state() is False
    device.to(LOADER)
    assert device.power.state() is True
    assert device.loader("printenv serial#") == "serial#=pump\n"
    assert "bootdelay=2" in device.loader("printenv")
    device.cut()
    assert not board.is_on and device.power.state() is False
    device.console.send("printenv\n")
    device.console.skip()
    with pytest.raises(GuestStuck):
        device.console.expect("serial#", 0.1)
    device.to(LOADER)  # and on again
    assert device.loader("version").startswith("U-Boot 2025")


def test_without_a_card_and_with_a_damaged_one_nothing_boots(device: Device, bench: Bench) -> None:
    card = bench.lab.boards["pump"].card
    card.unlink(missing_ok=True)
    device.to(LOADER)
    assert "Card did not respond" in device.loader("mmc info")
    device.console.send("boot\n")
    device.console.expect(r"Bad device specification mmc 0", 60.0)
    device.console.expect(r"stop autoboot", 60.0)  # it begins anew
    card.write_bytes(os.urandom(1 << 20))
    device.cut()
    device.console.skip()
    device.power.on()
    device.console.expect("Kernel panic - not syncing: VFS: Unable to mount root fs", 60.0)
    card.unlink()


@pytest.mark.netlab
@pytest.mark.skipif(rights.missing() is not None, reason=str(rights.missing()))
def test_what_edgeflash_wrote_is_what_boots(device: Device, bench: Bench) -> None:
    image, token = bench.folder / "made.img", bench.folder / "token"
    rig_kit.agent(bench.folder)
    token.write_text(kit.token())
    words: list[str | Path] = [
        program("edgeflash"),
        "image",
        bench.folder / "rootfs",
        "-o",
        image,
        "--board",
        rig_kit.BOARD,
        "--init",
        "direct",
    ]
    words += ["--hostname", "pump", "--agent", bench.folder / rig_kit.AGENT, "--token-file", token, "--force"]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    assert "bytes" in device.flash(image)
    assert device.strategy.state == OFF
    device.to(SHELL)
    assert device.console.shell("hostname").strip() == "pump"
    assert device.console.shell("cat /etc/hostname").strip() == "pump"
    assert VERSION in device.console.shell("edgeagent version --json")
    with pytest.raises(CommandFailed, match="ended with 3"):
        device.console.shell("exit_code() { return 3; }; exit_code")
    device.console.shell("echo kept >/var/lib/kept; sync")
    inside = int(device.console.shell("readlink /proc/self/ns/pid").strip()[5:-1])
    device.cut()
    assert inside not in {namespace(pid) for pid in Path("/proc").glob("[0-9]*")}
    device.to(SHELL)
    assert device.console.shell("cat /var/lib/kept").strip() == "kept"
    device.flash(image)
    device.to(SHELL, through=(LOADER,))
    with pytest.raises(CommandFailed):  # the card was written anew
        device.console.shell("cat /var/lib/kept")


def namespace(process: Path) -> int:
    try:
        return int(os.readlink(process / "ns/pid")[5:-1])
    except (OSError, ValueError):
        return 0


def test_a_rig_says_which_devices_it_has(bench: Bench) -> None:
    with (
        pytest.raises(HilError, match="no target 'barn'; known are pump"),
        OpenRig(bench.file, bench.folder, bench.folder, surroundings=False, only=["barn"]),
    ):
        pytest.fail("opened")


def test_power_by_the_command_line_reaches_the_board(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    from hil.cli import main

    assert main(["power", "on", "--rig", str(bench.lab.rig)]) == 0
    assert bench.lab.boards["pump"].is_on
    assert main(["power", "get", "--rig", str(bench.lab.rig), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"target": "pump", "power": "on"}
    assert main(["power", "off", "--rig", str(bench.lab.rig)]) == 0
    deadline = time.monotonic() + 5.0
    while bench.lab.boards["pump"].is_on and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not bench.lab.boards["pump"].is_on
