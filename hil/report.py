"""What a run did: each step with its time and outcome, what was measured, the load meanwhile; as JSON and text."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hil.errors import HilError

VERSION = 1


class Report:
    """Grows while a suite runs. `say` gets a line for each step, once it is done."""

    def __init__(self, suite: str, say: Callable[[str], None]) -> None:
        self.suite = suite
        self.steps: list[dict[str, Any]] = []
        self.figures: list[dict[str, Any]] = []
        self._say = say
        self._began = time.monotonic()
        self._wall = time.time()

    @property
    def passed(self) -> bool:
        return bool(self.steps) and all(step["outcome"] == "passed" for step in self.steps)

    @contextmanager
    def step(self, name: str) -> Iterator[dict[str, Any]]:
        """One step; what is put into it is kept. A HilError makes it failed, and goes on to the caller."""
        began = time.monotonic()
        step: dict[str, Any] = {"name": name, "at_s": round(began - self._began, 2), "outcome": "failed", "said": ""}
        self.steps.append(step)
        try:
            yield step
            step["outcome"] = "passed"
        except HilError as error:
            step["error"], step["said"] = error.name, str(error)
            raise
        except BaseException as error:
            step["error"], step["said"] = type(error).__name__, str(error)
            raise
        finally:
            step["seconds"] = round(time.monotonic() - began, 2)
            step["load"] = round(os.getloadavg()[0], 2)
            mark = "✓" if step["outcome"] == "passed" else "✗"
            self._say(f"  {mark} {name:<28} {step['seconds']:7.1f} s  {step['said']}")

    def figure(self, what: str, value: float, unit: str, guest: str = "") -> None:
        """Something that was measured."""
        self.figures.append({"what": what, "guest": guest, "value": round(value, 3), "unit": unit})

    def write(self, folder: Path) -> Path:
        """report.json and report.txt; returns the first."""
        told = {
            "version": VERSION,
            "suite": self.suite,
            "passed": self.passed,
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._wall)),
            "seconds": round(time.monotonic() - self._began, 1),
            "host": {"machine": platform.machine(), "cpus": os.cpu_count(), "load": os.getloadavg()},
            "steps": self.steps,
            "figures": self.figures,
        }
        path = folder / "report.json"
        path.write_text(json.dumps(told, indent=1, ensure_ascii=False), encoding="utf-8")
        (folder / "report.txt").write_text(self.text(), encoding="utf-8")
        return path

    def text(self) -> str:
        """Steps, then figures, for people."""
        lines = [f"{self.suite}: {'passed' if self.passed else 'FAILED'}", ""]
        for step in self.steps:
            took = f"{step['seconds']:7.1f} s  load {step['load']}"
            lines.append(f"{step['at_s']:8.1f} s  {step['outcome']:<7} {step['name']:<28} {took}")
            lines += [f"{'':12}{line}" for line in str(step["said"]).splitlines()]
        lines += ["", f"{'FIGURE':<34} {'GUEST':<10} {'VALUE':>10}"]
        lines += [f"{row['what']:<34} {row['guest']:<10} {row['value']:>10} {row['unit']}" for row in self.figures]
        return "\n".join(lines) + "\n"
