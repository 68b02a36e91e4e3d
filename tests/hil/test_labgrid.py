"""labgrid itself, in an environment of its own, loads edgehil's rig files and works with a simulated board by them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hil.rigs import rigfile
from hil.sim.lab import Lab
from tests.hil import rig_kit

ROOT = Path(__file__).parents[2]
LABGRID = "labgrid>=26,<27"
# What labgrid makes of a file: of each target the classes of its resources and drivers, in their order.
LOAD = """
import json, sys
from labgrid import Environment
told = {}
for path in sys.argv[1:]:
    env = Environment(path)
    for role in env.config.get_targets():
        target = env.get_target(role)
        told[f"{path} {role}"] = [type(each).__name__ for each in (*target.resources, *target.drivers)]
print(json.dumps(told))
"""
WORK = """
import sys
from labgrid import Environment
target = Environment(sys.argv[1]).get_target("pump")
strategy = target.get_driver("BoardStrategy")
strategy.transition("bootloader")
power = target.get_driver("HTTPPowerDriver")
print(power.get(), target.get_driver("UBootDriver").run_check("printenv board"))
strategy.transition("off")
print(power.get())
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment with labgrid, and without anything of ours: its `serial` and pyserial's are two."""
    folder = tmp_path_factory.mktemp("labgrid")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    made = folder / "bin/python"
    done = subprocess.run([made, "-m", "pip", "install", "-q", LABGRID], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"labgrid cannot be fetched here: {done.stderr.strip()[-300:]}")
    return made


def run(python: Path, code: str, *words: Path) -> str:
    done = subprocess.run(
        [python, "-c", code, *words],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_labgrid_loads_the_same_files_and_switches_the_same_board(python: Path, tmp_path: Path) -> None:
    image, agent = rig_kit.tree(tmp_path), tmp_path / rig_kit.AGENT
    lab = Lab(tmp_path / "lab", ["pump"], board=rig_kit.BOARD, image=image, agent=agent, tick_s=0.3)
    try:
        paths = [lab.rig, *sorted(Path(rigfile.__file__).parent.glob("*.yaml"))]
        told = json.loads(run(python, LOAD, *paths))
        for path in paths:
            for name, target in rigfile.load(path).targets.items():
                ours = [*target.resources, *target.drivers]
                assert told[f"{path} {name}"] == ours
        said = run(python, WORK, lab.rig).splitlines()
        assert said[0].startswith("True ") and "board=edgehil" in said[0] and said[1] == "False"
        assert not lab.boards["pump"].is_on
    finally:
        lab.close()
