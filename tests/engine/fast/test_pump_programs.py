"""Programs around the pump: nothing is allocated on the way of a packet, and two threads do not race."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from edgeagent.engine.fast.build import BuildError, build, find_compiler
from tools import OBJECTS

pytestmark = pytest.mark.long

HERE = Path(__file__).parent
WRAPPED = "-Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc"
THREADS_S = 2


def made(program: Path, **options: object) -> Path:
    try:
        build(program, find_compiler(), mains=[HERE / f"{program.name}.c"], cache=OBJECTS, **options)  # type: ignore[arg-type]
    except BuildError as error:
        if "no C compiler" in str(error) or "tsan" in str(error):
            pytest.skip(str(error))
        raise
    return program


def run(command: list[str | Path]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_nothing_is_allocated_on_the_way_of_a_packet(tmp_path: Path) -> None:
    said = run([made(tmp_path / "pump_allocations", flags=[WRAPPED]), "100000"])
    assert said.endswith("calls=0\n"), said


@pytest.mark.slow
def test_threads_do_not_race_and_no_bell_is_lost(tmp_path: Path) -> None:
    said = run([made(tmp_path / "pump_threads", sanitize="thread"), str(THREADS_S)])
    assert said.count("unbelled=0") == 2, said


def test_nothing_is_read_or_written_beyond_its_end_at_full_speed(tmp_path: Path) -> None:
    said = run([made(tmp_path / "pump_threads", sanitize="address"), str(THREADS_S)])
    assert said.count("unbelled=0") == 2, said
