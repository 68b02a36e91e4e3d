"""Random disturbances, the cases that once failed, and that a run is a function of its seed.

With EDGEMESH_SIM_SEEDS=500 `./dev test --slow` plays seeds 1 to 500; a failing one is looked at by
`python -m tests.sim.chaos SEED`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim import chaos

pytestmark = pytest.mark.long

QUICK = 3
SEEDS = int(os.environ.get("EDGEMESH_SIM_SEEDS", "30"))
CASES = sorted(chaos.CORPUS.glob("*.json"))


@pytest.mark.parametrize("seed", [pytest.param(n, marks=[pytest.mark.slow] * (n > QUICK)) for n in range(1, SEEDS + 1)])
def test_chaos(seed: int) -> None:
    chaos.play(chaos.draw(seed))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_a_case_that_once_failed(case: Path) -> None:
    chaos.play(chaos.Script.decode(case.read_text()))


def test_a_run_does_not_depend_on_the_order_of_sets() -> None:
    """Whoever iterates a set, in the product or here, makes runs differ between two processes."""
    program = "from tests.sim import chaos; print(chaos.play(chaos.draw(3)).world.digest())"
    digests = []
    for hash_seed in ("1", "2"):
        process = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        digests.append(process.stdout)
    assert digests[0] == digests[1]


def test_a_script_survives_being_written_and_read() -> None:
    script = chaos.draw(5)
    again = chaos.Script.decode(script.encode())
    assert (again.seed, again.devices, again.steps) == (script.seed, script.devices, script.steps)


def test_a_failing_script_is_shrunk_to_what_makes_it_fail() -> None:
    script = chaos.draw(5)
    guilty = [script.steps[2], script.steps[-1]]
    shrunk = chaos.shrink(script, lambda shorter: all(step in shorter.steps for step in guilty))
    assert shrunk.steps == guilty
