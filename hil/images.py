"""Images for devices, as operators make them: the agent by tools.package, its token and board by `edgeflash batch`."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from boards import catalogue
from hil.errors import BuildFailed
from hil.machines import Machine
from hil.programs import run

ROOT = Path(__file__).parents[1]
PACKAGE_TIMEOUT_S = 600.0
FLASH_TIMEOUT_S = 600.0


def package(machine: Machine, out: Path) -> Path:
    """The agent of this checkout for `machine`: a .deb, or a zipapp where the board takes no package of Debian's."""
    system = catalogue.get(machine.board).systems[0]
    if system.package != "deb":
        return zipapp(machine, out)
    return _made("deb", system.package_arch, ".deb", out)


def zipapp(machine: Machine, out: Path) -> Path:
    """The agent of this checkout as one file, as rollouts bring it."""
    return _made("zipapp", abi(machine), ".pyz", out)


def abi(machine: Machine) -> str:
    """In the words of boards/: aarch64-glibc."""
    return catalogue.get(machine.board).systems[0].abi


def _made(form: str, name: str, ending: str, out: Path) -> Path:
    shutil.rmtree(out, ignore_errors=True)
    words = [sys.executable, "-m", "tools.package", form, "--arch", name, "--out", str(out.resolve())]
    run(["env", "-C", str(ROOT), *words], PACKAGE_TIMEOUT_S)
    made = [path for path in out.iterdir() if path.suffix == ending]
    if len(made) != 1:
        raise BuildFailed(f"tools.package {form} --arch {name} made {len(made)} files")
    return made[0]


def batch(
    machine: Machine, root: Path, agent: Path, names: Sequence[str], tokens: Sequence[str], out: Path
) -> dict[str, Path]:
    """An image for each name, each with a token of its own. `root` is not changed."""
    out.mkdir(parents=True, exist_ok=True)
    table, secrets = out / "units.csv", out / "tokens"
    table.write_text("name,board\n" + "".join(f"{name},{machine.board}\n" for name in names), encoding="utf-8")
    secrets.touch(mode=0o600)
    secrets.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    words = [str(Path(sys.executable).with_name("edgeflash")), "batch", str(table), "--image", str(root)]
    words += ["--init", "direct", "--agent", str(agent), "--tokens", str(secrets), "--out", str(out)]
    run(words, FLASH_TIMEOUT_S)
    secrets.unlink()
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return {unit["name"]: Path(unit["out"]) for unit in report["units"]}
