"""Many devices in one run: one image or card each, with a report from which the next run goes on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flash.devices import Device
from flash.errors import FlashError
from flash.make import Made, Order, make_image
from flash.source import kind_of, make_rootfs, part_file, unpack
from flash.telling import Telling
from flash.units import Unit
from flash.whole import look_over
from flash.writer import write

REPORT_BYTES_MAX = 64 << 20
REPORT_VERSION = 1

TokenFor = Callable[[Unit], str]


class Report:
    """What became of each unit, by name: board, state (done, failed), claim, out, size, init, error, digest, at. No
    token is ever in it: a claim names a token to the hub and lets nobody in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.units: dict[str, dict[str, Any]] = {}
        if path.exists():
            try:
                with path.open("rb") as file:
                    data = json.loads(file.read(REPORT_BYTES_MAX))
                if data["version"] != REPORT_VERSION:
                    raise ValueError("it is of another version")
                self.units = {str(unit["name"]): dict(unit) for unit in data["units"]}
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise FlashError(
                    f"{path}: is no report of edgeflash batch ({error}). Move it away, or name another."
                ) from None

    def is_done(self, unit: Unit, digest: str, out: Path | None) -> bool:
        """FlashError when the unit was made of something else than is asked for now."""
        entry = self.units.get(unit.name)
        if entry is None or entry.get("state") != "done" or (out is not None and not out.exists()):
            return False
        if entry.get("digest") != digest:
            raise FlashError(
                f"{unit.name} (line {unit.line}) has been made already, of another image or other settings. "
                f"Take it out of {self.path}, or give --force."
            )
        return True

    def claims(self, but: Sequence[str]) -> set[str]:
        """Of the tokens that are in images already, but for those of the units `but`."""
        done = (unit for unit in self.units.values() if unit.get("state") == "done" and unit["name"] not in but)
        return {str(unit.get("claim", "")) for unit in done}

    def put(self, unit: Unit, **about: Any) -> None:
        """Kept at once: what comes later may fail."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.units[unit.name] = {"name": unit.name, "board": unit.board, "tags": list(unit.tags), "at": at, **about}
        text = json.dumps({"version": REPORT_VERSION, "units": list(self.units.values())}, indent=1)
        with part_file(self.path, force=True, mode=0o644) as file:
            file.write(text.encode())


class Batch:
    """`orders` by board. Images for cards are made in the folder `work`, and removed once they are written."""

    def __init__(self, orders: dict[str, Order], report: Report, telling: Telling, work: Path) -> None:
        self._orders = orders
        self._report = report
        self._telling = telling
        self._work = work
        self._base = work / f".edgeflash-base-{os.getpid()}"

    def unpack(self, source: Path) -> None:
        """Once for all units: each image is then a copy of what is unpacked."""
        kind = kind_of(source)
        if kind == "raw":
            return
        rootfs = next(iter(self._orders.values())).rootfs_bytes
        with part_file(self._base, force=True) as file:
            if kind in ("dir", "tar"):
                make_rootfs(source, kind, file, rootfs)
            else:
                name = str(source)
                unpack(source, kind, file, lambda done, total: self._telling.progress(name, "unpacking", done, total))
        for order in self._orders.values():
            order.source = self._base

    def clean(self) -> None:
        self._base.unlink(missing_ok=True)

    def image(self, unit: Unit, target: Path, digest: str, token_for: TokenFor) -> bool:
        """One unit's image; False when it failed, which is in the report."""
        try:
            made = self._make(unit, target, token_for)
        except FlashError as error:
            self._failed(unit, digest, str(error))
            return False
        self._done(unit, digest, made, str(target))
        return True

    def cards(self, units: Sequence[tuple[Unit, str]], devices: Sequence[Device], token_for: TokenFor) -> int:
        """One card each; returns how many failed."""
        failed = 0
        for (unit, digest), device in zip(units, devices, strict=False):
            target = self._work / f".edgeflash-{unit.name}-{os.getpid()}.img"
            try:
                made = self._make(unit, target, token_for)
                kind, size = look_over(target, None)
                (card,) = write(target, kind, size, None, [device], self._telling.progress)
                if card.error:
                    raise FlashError(card.error)
            except FlashError as error:
                self._failed(unit, digest, str(error))
                failed += 1
            else:
                self._done(unit, digest, made, device.path)
            finally:
                target.unlink(missing_ok=True)
        return failed

    def _make(self, unit: Unit, target: Path, token_for: TokenFor) -> Made:
        token = token_for(unit)
        settings, name = unit.settings, str(target)
        return make_image(
            self._orders[unit.board],
            target,
            token,
            hostname=unit.name,
            settings=settings,
            force=True,
            progress=lambda done, total: self._telling.progress(name, "copying", done, total),
        )

    def _done(self, unit: Unit, digest: str, made: Made, out: str) -> None:
        about = {
            "state": "done",
            "claim": unit.claim,
            "out": out,
            "size": made.size,
            "init": made.init,
            "digest": digest,
        }
        self._report.put(unit, **about)
        self._telling.event("unit", name=unit.name, line=unit.line, **about)
        self._telling.say(f"{unit.name}: {out}, token {unit.claim}")

    def _failed(self, unit: Unit, digest: str, error: str) -> None:
        self._report.put(unit, state="failed", claim=unit.claim, error=error, digest=digest)
        self._telling.event("unit", name=unit.name, line=unit.line, state="failed", error=error)
        self._telling.say(f"edgeflash: line {unit.line}: {unit.name}: {error}")


def table(report: Report, units: Sequence[Unit]) -> str:
    """NAME BOARD STATE TOKEN OUT, a line a unit."""
    rows = [("NAME", "BOARD", "STATE", "TOKEN", "OUT")]
    for unit in units:
        entry = report.units.get(unit.name, {})
        state, out = str(entry.get("state", "to do")), str(entry.get("out", "") or entry.get("error", ""))
        rows.append((unit.name, unit.board, state, str(entry.get("claim", "")) or "-", out or "-"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]).rstrip()
        for row in rows
    )
