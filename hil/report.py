"""What a run did: each step with its time and outcome, what was measured with its limits, what happened to guests, what
was kept. `write` makes report.json, report.txt, junit.xml and report.html of it (docs/hil.md, "The report")."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from hil import journal, report_html, report_junit
from hil.errors import HilError
from hil.programs import run
from hil.report_load import Load
from hil.report_series import Series

VERSION = 2
VERDICTS = ("passed", "retried", "failed")
FIGURES_MAX = 2_000
SERIES_MAX = 200
KEPT_MAX = 200
SUFFIXES = (".log", ".pcap")  # kept without being named, where they lie in the report's folder
CONSOLE = "console.log"  # FOLDER/GUEST/console.log is that guest's transcript


class Limit(NamedTuple):
    """What a figure may be: at most `value`, or at least."""

    value: float
    least: bool = False

    def holds(self, figure: float) -> bool:
        return figure >= self.value if self.least else figure <= self.value

    def __str__(self) -> str:
        return f"{'≥' if self.least else '≤'} {self.value:g}"


def at_least(value: float) -> Limit:
    return Limit(value, least=True)


class Report:
    """Grows while a suite runs. `say` gets a line for each step, once it is done.

    A suite has failed when a step has, or a figure is beyond its limit; a retry of a boot is told, and fails nothing.
    """

    def __init__(self, suite: str, say: Callable[[str], None], *, rig: str = "") -> None:
        self.suite = suite
        self.rig = rig
        self.id = secrets.token_hex(16)  # by which a hub knows an upload that it has already
        self.steps: list[dict[str, Any]] = []
        self.figures: list[dict[str, Any]] = []
        self._series: dict[tuple[str, str, str], Series] = {}
        self._kept: list[tuple[str, Path]] = []
        self._say = say
        self._began = time.monotonic()
        self._wall = time.time()
        self._load = Load(self.sample)

    @property
    def passed(self) -> bool:
        return bool(self.steps) and all(step["outcome"] == "passed" for step in self.steps) and not self.beyond

    @property
    def beyond(self) -> list[dict[str, Any]]:
        """Figures beyond their limits."""
        return [row for row in self.figures if not row["ok"]]

    @property
    def retries(self) -> int:
        return sum(event.kind is journal.Kind.RETRY for event in journal.since(self._began))

    @property
    def verdict(self) -> str:
        """passed, retried (passed, but a boot had to be tried again) or failed."""
        return "failed" if not self.passed else "retried" if self.retries else "passed"

    @contextmanager
    def step(self, name: str) -> Iterator[dict[str, Any]]:
        """One step; what is put into it is kept. A HilError makes it failed, and goes on to the caller."""
        self._load.begin()
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

    def figure(self, what: str, value: float, unit: str, guest: str = "", limit: float | Limit | None = None) -> None:
        """Something that was measured. `limit`: at most that, or `at_least(…)`; beyond it the suite has failed, and
        goes on."""
        if len(self.figures) >= FIGURES_MAX:
            return
        if limit is not None and not isinstance(limit, Limit):
            limit = Limit(limit)
        ok = limit is None or limit.holds(value)
        row = {"what": what, "guest": guest, "value": round(value, 3), "unit": unit, "at_s": self._now(), "ok": ok}
        if limit is not None:
            row["limit"], row["least"] = limit.value, limit.least
        self.figures.append(row)
        if not ok:
            self._say(f"  ✗ {what} {guest}: {value:g} {unit}, {limit} is allowed")

    def sample(self, what: str, value: float, unit: str, guest: str = "") -> None:
        """One point of something that goes on: a graph, and no row of the table."""
        key = (what, guest, unit)
        if key in self._series or len(self._series) < SERIES_MAX:
            self._series.setdefault(key, Series()).add(self._now(), value)

    def keep(self, name: str, path: Path) -> None:
        """A file that belongs to the run: capture, log, picture. It is copied into the report's folder unless it lies
        there; logs and captures in that folder need no call."""
        if len(self._kept) < KEPT_MAX:
            self._kept.append((name, path))

    def write(self, folder: Path) -> Path:
        """report.json, which this returns, report.txt, junit.xml, report.html."""
        self._load.end()
        told = self.told(folder)
        path = folder / "report.json"
        path.write_text(json.dumps(told, indent=1, ensure_ascii=False), encoding="utf-8")
        (folder / "report.txt").write_text(self.text(), encoding="utf-8")
        (folder / "junit.xml").write_bytes(report_junit.render(told))
        (folder / "report.html").write_text(report_html.render(told, folder), encoding="utf-8")
        return path

    def told(self, folder: Path) -> dict[str, Any]:
        """All of it, as report.json has it. Times are seconds since the run's beginning."""
        kept = self._files(folder)
        return {
            "version": VERSION,
            "id": self.id,
            "suite": self.suite,
            "rig": self.rig,
            "verdict": self.verdict,
            "passed": self.passed,
            "retries": self.retries,
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._wall)),
            "seconds": round(time.monotonic() - self._began, 1),
            "host": {
                "name": platform.node(),
                "machine": platform.machine(),
                "system": f"{platform.system()} {platform.release()}",
                "cpus": os.cpu_count(),
                "load": [round(each, 2) for each in os.getloadavg()],
            },
            "versions": versions(),
            "steps": self.steps,
            "figures": self.figures,
            "series": [
                {"what": what, "guest": guest, "unit": unit, "points": found.points()}
                for (what, guest, unit), found in self._series.items()
            ],
            "guests": self._guests(kept),
            "kept": kept,
        }

    def text(self) -> str:
        """Steps, then figures, for people."""
        said = {"passed": "passed", "retried": f"passed with {self.retries} retries", "failed": "FAILED"}[self.verdict]
        lines = [f"{self.suite}: {said}", ""]
        for step in self.steps:
            took = f"{step['seconds']:7.1f} s  load {step['load']}"
            lines.append(f"{step['at_s']:8.1f} s  {step['outcome']:<7} {step['name']:<28} {took}")
            lines += [f"{'':12}{line}" for line in str(step["said"]).splitlines()]
        lines += ["", f"{'FIGURE':<38} {'GUEST':<10} {'VALUE':>10} {'':<6} LIMIT"]
        for row in self.figures:
            limit = f"{Limit(row['limit'], row['least'])}{'' if row['ok'] else '  BEYOND IT'}" if "limit" in row else ""
            line = f"{row['what']:<38} {row['guest']:<10} {row['value']:>10} {row['unit']:<6} {limit}"
            lines.append(line.rstrip())
        return "\n".join(lines) + "\n"

    def _now(self) -> float:
        return round(time.monotonic() - self._began, 2)

    def _guests(self, kept: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}

        def known(name: str) -> dict[str, Any]:
            return found.setdefault(name, {"name": name, "about": journal.about(name), "events": [], "transcript": ""})

        for event in journal.since(self._began):
            at_s = round(event.at - self._began, 2)
            known(event.guest)["events"].append({"at_s": at_s, "what": event.what, "kind": event.kind.value})
        for file in kept:
            path = Path(file["path"])
            if path.name == CONSOLE and len(path.parts) == 2:
                known(path.parts[0])["transcript"] = file["path"]
        return list(found.values())

    def _files(self, folder: Path) -> list[dict[str, Any]]:
        """What was kept, by its place in `folder`; what lay elsewhere is copied to there."""
        named: dict[Path, str] = {}
        for name, path in self._kept:
            if not path.is_file():
                continue
            if not path.resolve().is_relative_to(folder.resolve()):
                target = folder / "kept" / path.name
                target.parent.mkdir(exist_ok=True)
                shutil.copy(path, target)
                path = target
            named[path.resolve().relative_to(folder.resolve())] = name
        for path in sorted(folder.rglob("*")):
            if path.suffix in SUFFIXES and path.is_file() and not path.is_symlink() and len(named) < KEPT_MAX:
                place = path.relative_to(folder)
                named.setdefault(place, place.as_posix())
        return [
            {"name": name, "path": place.as_posix(), "bytes": (folder / place).stat().st_size}
            for place, name in named.items()
        ]


def versions() -> dict[str, str]:
    """What was tested, as far as it can be told."""
    found = {"python": platform.python_version()}
    with contextlib.suppress(metadata.PackageNotFoundError):
        found["edgemesh"] = metadata.version("edgemesh")
    with contextlib.suppress(HilError):  # no git, or no checkout
        found["commit"] = run(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"], 5.0).strip()
    return found
