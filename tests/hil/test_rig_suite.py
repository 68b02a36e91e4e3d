"""Suites on rigs: `edgehil run` with files of pytest's, on simulated boards and on guests; the same file on both."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hil.sim.lab import Lab
from tests.hil import rig_kit
from tests.netlab import rights

ROOT = Path(__file__).parents[2]
PROGRAMS = ("qemu-system-aarch64", "fakeroot", "mke2fs", "debugfs", "depmod", "mosquitto", "unshare")
MINE = """
import pytest

def test_boot_loader(device, console, told):
    device.to("bootloader")
    told(device.loader("printenv serial#").strip())

def test_power(power, report):
    assert power.state()
    report.figure("outlets", 1, "outlets", "pump")

def test_not_for_this_rig():
    pytest.skip("no modem")

def test_network(network):
    pass
"""


def edgehil(*words: str | Path, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hil", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Lab]:
    image, agent = rig_kit.tree(tmp_path), tmp_path / rig_kit.AGENT
    made = Lab(tmp_path / "lab", ["pump", "camera"], board=rig_kit.BOARD, image=image, agent=agent, tick_s=0.2)
    yield made
    made.close()


def test_a_suite_of_ones_own_runs_on_a_rig_and_is_reported(bench: Lab, tmp_path: Path) -> None:
    suite, out = tmp_path / "mine.py", tmp_path / "out"
    suite.write_text(MINE)
    options = ("--without-hub", "--target", "pump", "--keep-going")
    done = edgehil("run", suite, "--rig", bench.rig, "--out", out, *options)
    assert done.returncode == 1, done.stdout + done.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["suite"] == "mine" and not report["passed"]
    steps = {step["name"]: step for step in report["steps"]}
    assert steps["boot loader"]["said"] == "serial#=pump" and steps["power"]["outcome"] == "passed"
    assert "not for this rig" not in steps
    assert "no driver gives Network; known are SSHDriver" in done.stdout
    assert any(figure["what"] == "outlets" for figure in report["figures"])
    assert "U-Boot 2025" in (out / "pump/console.log").read_text()
    # The board has its power still, and stands at its prompt.
    words: list[str | Path] = [
        sys.executable,
        "-m",
        "hil",
        "console",
        "--rig",
        bench.rig,
        "--target",
        "pump",
        "--seconds",
        "120",
    ]
    console = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    assert console.stdin is not None and console.stdout is not None
    console.stdin.write(b"printenv board\n")
    said = b""
    while b"board=edgehil" not in said and (more := console.stdout.read(100)):
        said += more
    assert b"board=edgehil" in said
    console.stdin.close()
    assert console.wait(60) == 0
    console.stdout.close()


def test_boards_are_made_for_one_suite_and_end_with_it(tmp_path: Path) -> None:
    suite, folder = tmp_path / "mine.py", tmp_path / "sim"
    suite.write_text(
        "def test_boot_loader(device, told):\n"
        "    device.to('bootloader')\n"
        "    told(device.loader('printenv serial#').strip())\n"
        "def test_modem(device):\n"
        "    assert 'modem' in device.loader('printenv')\n"
    )
    agent = rig_kit.agent(tmp_path)
    done = edgehil("sim", folder, "--boards", "solo", "--agent", agent, "--run", suite)
    steps = json.loads((folder / "report/report.json").read_text())["steps"]
    assert [(step["name"], step["outcome"]) for step in steps] == [("boot loader", "passed"), ("modem", "failed")]
    assert done.returncode == 1 and str(folder / "report/report.html") in done.stdout, done.stdout + done.stderr
    assert not (folder / "rig.yaml").exists()


def test_mistakes_are_one_line(bench: Lab, tmp_path: Path) -> None:
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    broken = tmp_path / "broken.yaml"
    broken.write_text("targets: {a: {drivers: {Serial: {}}}}")
    for words, said in (
        (("run", "smoke", "--rig", broken), f"edgehil: rig-file: {broken}:1: targets.a.drivers.Serial: no such driver"),
        (("run", "smoek", "--rig", bench.rig), "edgehil: rig: 'smoek': no such suite for rigs; known are smoke"),
        (("run", "none.py", "--rig", bench.rig), "edgehil: rig: none.py: there is no such suite"),
        (("run", "smoke", "--rig", bench.rig, "--out", ROOT / "docs"), "docs: holds something that is no report"),
        (("run", "smoek"), "edgehil: rig: 'smoek': no such suite for guests; known are smoke, rollout"),
        (("sim", tmp_path / "new", "--run", "smoek"), "edgehil: rig: 'smoek': no such suite for rigs; known are smoke"),
        (("sim", tmp_path / "new", "--run", "smoke", "--json"), "edgehil: rig: --json is for boards that stay"),
        (("power", "on", "--rig", bench.rig), "has 2 devices; say which: --target pump or camera"),
        (("console", "--rig", "guests", "--target", "pump"), "a guest lives as long as the command that runs it"),
    ):
        done = edgehil(*words)
        assert done.returncode == 1 and said in done.stderr, (words, done.stderr)
        assert "Traceback" not in done.stdout + done.stderr


def test_lists_and_doctor_are_for_scripts_too(bench: Lab) -> None:
    listed = json.loads(edgehil("list", "--rigs", bench.rig.parent, "--json").stdout)
    rigs = {row["rig"]: row for row in listed["rigs"]}
    assert rigs["rig"]["targets"] == ["pump", "camera"] and rigs["guests"]["error"] == ""
    assert listed["suites"] == ["smoke"] and {each["machine"] for each in listed["machines"]} >= {"arm64", "mipsel"}
    tables = json.loads(edgehil("list", "--strategy", bench.rig, "--json").stdout)
    assert [row["to"] for row in tables["pump"]] == ["bootloader", "shell", "shell", "agent", "off"]
    checks = json.loads(edgehil("doctor", "--rig", bench.rig, "--json").stdout)
    assert any(check["about"] == "pump" and check["said"] == "power: off" and check["ok"] for check in checks)
    bench.boards["camera"].card.unlink(missing_ok=True)
    (bench.rig.parent / "pdu.authorization").unlink()
    done = edgehil("doctor", "--rig", bench.rig)
    assert done.returncode == 1 and "NO  pump" in done.stdout and "→ mend HTTPPowerPort" in done.stdout


def test_a_rig_is_reserved_while_a_command_runs_and_released(bench: Lab) -> None:
    held = subprocess.Popen(
        [sys.executable, "-m", "hil", "reserve", "--rig", bench.rig, "--why", "soldering", "--for", "60s", "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    assert held.stdout is not None
    assert json.loads(held.stdout.readline())["pid"] == held.pid
    again = edgehil("reserve", "--rig", bench.rig)
    assert again.returncode == 1 and f"(process {held.pid})" in again.stderr and "soldering" in again.stderr
    freed = edgehil("release", "--rig", bench.rig)
    assert freed.returncode == 0 and "soldering" in freed.stdout
    assert held.wait(10) == 128 + signal.SIGTERM
    held.stdout.close()
    assert edgehil("reserve", "--rig", bench.rig, "--for", "5s", "--", "true").returncode == 0
    assert edgehil("reserve", "--rig", bench.rig, "--for", "1s", "--", "sleep", "9").returncode == 1


def test_a_run_that_is_ended_leaves_nothing(bench: Lab, tmp_path: Path) -> None:
    suite, rooms = tmp_path / "long.py", tmp_path / "rooms"
    suite.write_text("import time\n\ndef test_it(device):\n    device.to('bootloader')\n    time.sleep(60)\n")
    rooms.mkdir()
    words: list[str | Path] = [
        sys.executable,
        "-m",
        "hil",
        "run",
        suite,
        "--rig",
        bench.rig,
        "--out",
        tmp_path / "out",
        "--without-hub",
    ]
    run = subprocess.Popen(
        words, cwd=ROOT, env={**os.environ, "TMPDIR": str(rooms)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert run.stdout is not None
    try:
        for line in run.stdout:
            if b"type" in line:
                break
        assert edgehil("run", suite, "--rig", bench.rig).returncode == 1  # the rig is taken
        run.send_signal(signal.SIGTERM)
        rest = run.stdout.read()
        assert run.wait(30) == 130, rest
    finally:
        run.kill()
        run.wait()
        run.stdout.close()
    assert list(rooms.iterdir()) == []
    assert json.loads((tmp_path / "out/report.json").read_text())["steps"][0]["error"] == "KeyboardInterrupt"
    assert edgehil("reserve", "--rig", bench.rig, "--for", "5s", "--", "true").returncode == 0


@pytest.mark.slow
@pytest.mark.netlab
@pytest.mark.skipif(rights.missing() is not None, reason=str(rights.missing()))
def test_the_smoke_suite_on_simulated_boards(bench: Lab, tmp_path: Path) -> None:
    rig_kit.agent(tmp_path)
    done = edgehil("run", "smoke", "--rig", bench.rig, "--out", tmp_path / "out", timeout_s=900.0)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "out/report.json").read_text())
    names = [step["name"] for step in report["steps"]]
    assert names == ["flash", "boot loader", "boot", "join", "ping", "power cut", "rejoin"]
    assert report["passed"] and {figure["guest"] for figure in report["figures"]} == {"pump", "camera"}
    assert "pump login:" in (tmp_path / "out/pump/console.log").read_text()


@pytest.mark.slow
@pytest.mark.skipif(any(shutil.which(name) is None for name in PROGRAMS), reason="`./dev hil` installs what it needs")
def test_the_same_suite_on_guests(tmp_path: Path) -> None:
    rig = tmp_path / "two.yaml"
    agent = rig_kit.agent(tmp_path)
    rig.write_text(
        f"targets:\n  pump: {{drivers: {{GuestDriver: {{machine: arm64, nat: port}}}}, options: {{agent: {agent}}}}}\n"
        f"  camera: {{drivers: {{GuestDriver: {{machine: arm64, nat: full}}}}, options: {{agent: {agent}}}}}\n"
    )
    done = edgehil("run", "smoke", "--rig", rig, "--out", tmp_path / "out", timeout_s=2_400.0)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["passed"] and [step["outcome"] for step in report["steps"]] == ["passed"] * 7
    assert "root@pump" in (tmp_path / "out/pump/console.log").read_text()
