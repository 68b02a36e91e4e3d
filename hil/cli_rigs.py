"""`edgehil` for rig files: run, console, power, reserve, release, sim."""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
import tty
from pathlib import Path
from typing import Any

from hil.cli_list import SUITES, folders, suites, verb
from hil.errors import HilError

OK, FAILED, USAGE = range(3)
ESCAPE = b"\x1d"  # Ctrl-]
RESERVE_S = 8 * 3600
SETTLE_S = 0.5  # after the last line of what is piped into a console


def add(verbs: Any) -> None:
    """The commands of this file."""
    console = verb(verbs, "console", _console, "a device's console in this terminal; Ctrl-] ends it", as_json=False)
    _of_rig(console)
    console.add_argument("--seconds", metavar="N", type=float, help="end after so long, for scripts")
    power = verb(verbs, "power", _power, "switch a device's power, or say what it is")
    power.add_argument("what", choices=("on", "off", "cycle", "get"), help="what to do")
    _of_rig(power)
    hold = verb(verbs, "reserve", _reserve, "keep a rig from others until this command ends, or while COMMAND runs")
    hold.add_argument("--rig", metavar="RIG", required=True, help="a name, or a file")
    hold.add_argument(
        "--for", metavar="N[smh]", dest="seconds", type=_duration, default=float(RESERVE_S), help="at most so long (8h)"
    )
    hold.add_argument("--why", metavar="TEXT", default="", help="what others are told")
    hold.add_argument("words", metavar="COMMAND", nargs="*", help="what to run meanwhile")
    free = verb(verbs, "release", _release, "end a reservation of yours")
    free.add_argument("--rig", metavar="RIG", required=True, help="a name, or a file")
    sim = verb(
        verbs, "sim", _sim, "simulated boards with a power strip, and a rig file of them, until this command ends"
    )
    sim.add_argument("folder", metavar="FOLDER", type=Path, help="gets rig.yaml, cards and what the boards hold")
    sim.add_argument("--boards", metavar="LIST", default="pump,camera", help="their names, with commas (pump,camera)")
    sim.add_argument("--run", metavar="SUITE", dest="wanted", help="run this suite on them, and end as it does")
    sim.add_argument(
        "--image", metavar="PATH", type=Path, help="root file system: a folder or an image (a small one is made)"
    )
    sim.add_argument("--agent", metavar="FILE", type=Path, help="the agent as a zipapp (made of this checkout)")
    sim.add_argument(
        "--board", metavar="ID", help="what they are, in `edgeflash boards list` (QEMU with this machine's processor)"
    )


def add_rig(made: argparse.ArgumentParser) -> None:
    """What a run on a rig takes."""
    made.add_argument("--rig", metavar="RIG", help="on this rig: a name, or a file (without: on guests)")
    made.add_argument("--target", metavar="NAME", action="append", default=[], help="only this device; may be repeated")
    made.add_argument("--without-hub", action="store_true", help="devices only: no hub, no network around them")
    made.add_argument("--keep-going", action="store_true", help="also after a step that failed")


def run_suite(options: argparse.Namespace) -> int:
    """A suite on a rig: pytest with the fixtures of hil/pytest_plugin.py."""
    import pytest

    from hil.rigs import reserve, rigfile

    path = rigfile.find(options.rig, folders(options))
    rigfile.load(path)  # what is wrong with it is said before pytest says anything
    suite = _suite(options.suite)
    out: Path = options.out or options.store / f"{path.stem}-{suite.stem}"
    report = out / "report.json"
    if options.out and out.exists() and not report.exists() and any(out.iterdir()):
        raise HilError(f"{out}: holds something that is no report, and would be emptied; name another folder")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    # Nothing of an ini file that lies about: a suite is the same wherever it runs.
    words = [str(suite), "-c", os.devnull, "--rootdir", str(suite.parent), "-p", "no:cacheprovider"]
    words += ["-p", "hil.pytest_plugin"]
    words += ["--rig", str(path), "--rig-out", str(out), "--rig-store", str(options.store), "--rig-suite", suite.stem]
    words += ["-q", "--no-header", "--tb=short", *([] if options.keep_going else ["-x"])]
    words += [flag for flag, on in (("--rig-pcap", options.pcap), ("--rig-without-hub", options.without_hub)) if on]
    for name in options.target:
        words += ["--rig-target", name]
    print(f"{suite.stem} suite on {path}", flush=True)
    # pytest takes down what is up when it is interrupted, which it is not by an exit.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    with reserve.working(path, f"suite {suite.stem}"):
        status = int(pytest.main(words))
    if status == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise HilError(f"{suite}: has no tests (functions whose names begin with test_)")
    if status == pytest.ExitCode.INTERRUPTED:
        return 130
    if not report.exists():
        return FAILED
    print(report.with_suffix(".html"))
    passed = status == pytest.ExitCode.OK and json.loads(report.read_text(encoding="utf-8"))["passed"]
    return OK if passed else FAILED


def _interrupt(_: int, __: object) -> None:
    raise KeyboardInterrupt


def _of_rig(made: argparse.ArgumentParser) -> None:
    made.add_argument("--rig", metavar="RIG", required=True, help="a name, or a file")
    made.add_argument("--target", metavar="NAME", help="the device; needed where the rig has several")


def _suite(name: str) -> Path:
    given = Path(name)
    if given.suffix == ".py":
        if not given.is_file():
            raise HilError(f"{name}: there is no such suite")
        return given
    known = suites()
    if name not in known:
        raise HilError(f"{name!r}: no such suite for rigs; known are {', '.join(known)}, or a file of yours (.py)")
    return SUITES / f"{name}.py"


def _power(options: argparse.Namespace) -> int:
    from hil.rigs import reserve
    from hil.rigs.openrig import OpenRig

    file, name = _one(options)
    work = reserve.working(file.path, f"power {options.what} of {name}")
    with OpenRig(file, Path(), options.store, surroundings=False, only=[name]) as rig:
        device = rig.devices[name]
        if device.guest is not None:
            raise HilError(f"{name}: a guest lives as long as the command that runs it: edgehil run")
        if options.what != "get":
            with work:
                getattr(device.power, options.what)()
        state = device.power.state()
    told = {True: "on", False: "off", None: "unknown"}[state]
    print(json.dumps({"target": name, "power": told}) if options.json else f"{name}: {told}")
    return OK


def _one(options: argparse.Namespace) -> tuple[Any, str]:
    """The rig file, and the device that is meant."""
    from hil.rigs import rigfile

    file = rigfile.load(rigfile.find(options.rig, folders(options)))
    names = list(file.targets)
    if options.target is None and len(names) > 1:
        raise HilError(f"{file.path}: has {len(names)} devices; say which: --target {' or '.join(names)}")
    return file, options.target or names[0]


def _console(options: argparse.Namespace) -> int:
    from hil.rigs import reserve
    from hil.rigs.openrig import OpenRig

    file, name = _one(options)
    with (
        tempfile.TemporaryDirectory(prefix="edgehil-") as folder,
        reserve.working(file.path, f"console of {name}"),
        OpenRig(file, Path(folder), options.store, surroundings=False, only=[name]) as rig,
    ):
        device = rig.devices[name]
        if device.guest is not None:
            raise HilError(f"{name}: a guest lives as long as the command that runs it: edgehil run")
        console: Any = device.console
        print(f"{name}: console; Ctrl-] ends it", file=sys.stderr)
        console.hear = _write_out
        _type(console, options.seconds)
    return OK


def _write_out(data: bytes) -> None:
    os.write(sys.stdout.fileno(), data)


def _type(console: Any, seconds: float | None) -> None:
    """What is typed here goes there, until Ctrl-], the end of the input or of the time."""
    here = sys.stdin.fileno()
    deadline = None if seconds is None else time.monotonic() + seconds
    before = termios.tcgetattr(here) if os.isatty(here) else None
    if before is not None:
        tty.setraw(here)
    try:
        while deadline is None or (left := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select((here,), (), (), None if deadline is None else left)
            data = os.read(here, 1024) if ready else b""
            if ready and (not data or ESCAPE in data):
                break
            if data:
                console.send(data.decode("utf-8", "replace"))
        time.sleep(SETTLE_S)
    finally:
        if before is not None:
            termios.tcsetattr(here, termios.TCSADRAIN, before)


def _duration(text: str) -> float:
    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:], 0)
    number = text[:-1] if unit else text
    if not number.isascii() or not number.isdecimal() or not 0 < int(number) * (unit or 1) <= 7 * 86_400:
        raise argparse.ArgumentTypeError("want a number with s, m or h, at most 168h")
    return float(int(number) * (unit or 1))


def _reserve(options: argparse.Namespace) -> int:
    from hil.rigs import reserve, rigfile

    path = rigfile.find(options.rig, folders(options))
    rigfile.load(path)
    lock = reserve.Lock(path, reserve.RESERVED)
    lock.take(options.why)
    until = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + options.seconds))
    if options.json:
        print(json.dumps({"rig": path.stem, "lock": str(lock.path), "pid": os.getpid(), "until": until}), flush=True)
    else:
        print(f"{path.stem} is yours until {until}, or this ends", file=sys.stderr, flush=True)
    try:
        if options.words:
            return subprocess.run(options.words, timeout=options.seconds).returncode
        time.sleep(options.seconds)
    except FileNotFoundError:
        raise HilError(f"{options.words[0]}: there is no such command") from None
    except subprocess.TimeoutExpired:
        raise HilError(f"{options.words[0]}: had not ended within {options.seconds:g} s") from None
    finally:
        lock.drop()
    return OK


def _release(options: argparse.Namespace) -> int:
    from hil.rigs import reserve, rigfile

    path = rigfile.find(options.rig, folders(options))
    found = reserve.Lock(path, reserve.RESERVED).end()
    print(json.dumps({"rig": path.stem, "was": found}) if options.json else f"{path.stem} was {reserve.told(found)}")
    return OK


def _sim(options: argparse.Namespace) -> int:
    from hil.sim import rootfs
    from hil.sim.lab import Lab

    for each in (options.image, options.agent):
        if each is not None and not each.exists():
            raise HilError(f"{each}: is not there")
    if options.wanted and options.json:
        raise HilError(f"--json is for boards that stay; a suite's data are in {options.folder}/report/report.json")
    if options.wanted:
        _suite(options.wanted)  # what is wrong with it is said before anything is made
    folder: Path = options.folder
    image, agent, board = options.image, options.agent, options.board
    if None in (image, agent, board):
        kind = rootfs.this_machine()
        board = board or rootfs.machine(kind).board
        image = image or rootfs.write(folder / "rootfs", kind)
        if agent is None:
            print("the agent of this checkout is made …", file=sys.stderr, flush=True)
            agent = rootfs.agent(folder / "made-agent", kind)
    lab = Lab(folder, options.boards.split(","), board=board, image=image, agent=agent)
    try:
        if options.wanted:
            return _run_on(lab.rig, options)
        boards = {name: board.port for name, board in lab.boards.items()}
        told = {"rig": str(lab.rig), "boards": boards, "pdu": lab.pdu.url}
        print(
            json.dumps(told)
            if options.json
            else f"{lab.rig}: {', '.join(f'{name} at {port}' for name, port in boards.items())}",
            flush=True,
        )
        while True:
            signal.pause()
    finally:
        lab.close()


def _run_on(rig: Path, options: argparse.Namespace) -> int:
    """By a process of its own: threads of this one serve the boards, whose answers are not to wait for a suite."""
    words = [sys.executable, "-m", "hil", "--store", str(options.store), "run", options.wanted, "--rig", str(rig)]
    done = subprocess.Popen([*words, "--out", str(rig.parent / "report")])
    try:
        return done.wait()
    except BaseException:
        done.terminate()
        done.wait()
        raise
