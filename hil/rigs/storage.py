"""Drivers of Storage: a card behind a USB-SD-Mux, a compute module's own storage, a file that stands for a card.

All are written by `edgeflash write`, which verifies what it wrote, and never writes a disk that this system uses.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hil.errors import HilError, StorageFailed
from hil.programs import until
from hil.rigs.external import call

WRITE_TIMEOUT_S = 1_800.0
SWITCH_TIMEOUT_S = 30.0
APPEAR_TIMEOUT_S = 30.0
BOOT_TIMEOUT_S = 120.0
HOST, DUT = "host", "dut"  # in usbsdmux's words


def flash(name: str, image: Path, target: Path, fixed: bool) -> str:
    """`edgeflash write`; returns what to tell of it. Raises StorageFailed."""
    if not image.exists():
        raise StorageFailed(f"{name}: there is no image {image}.")
    words = ["write", str(image), str(target), "--yes", "--json", *(["--fixed"] if fixed else [])]
    try:
        said = call("edgeflash", words, WRITE_TIMEOUT_S)
    except HilError as error:
        if error.name == "missing-program":
            raise
        raise StorageFailed(f"{name}: {error}") from None
    events = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    card = next((event for event in events if event.get("event") == "card"), None)
    if card is None:
        raise StorageFailed(f"{name}: edgeflash did not say how it went: {said[-200:]}")
    return f"{card['size']} bytes written in {card['written_s']:.1f} s, verified in {card['verified_s']:.1f} s"


class CardFile:
    """A file in the place of a card. Beside it stands whose it is just now, which the simulated board looks at."""

    def __init__(self, name: str, path: Path, size_mb: int) -> None:
        self.name = name
        self.path = path
        self._size = size_mb << 20

    def write(self, image: Path) -> str:
        set_side(self.path, HOST)
        try:
            if not self.path.exists():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("wb") as file:
                    file.truncate(self._size)
            said = flash(self.name, image, self.path, fixed=True)
        except OSError as error:
            raise StorageFailed(f"{self.name}: {error}.") from None
        set_side(self.path, DUT)
        return said


def set_side(card: Path, side: str) -> None:
    """Whose the card is from now on: HOST or DUT."""
    card.with_name(card.name + ".side").write_text(side, encoding="ascii")


def side_of(card: Path) -> str:
    with suppress(OSError):
        return card.with_name(card.name + ".side").read_text(encoding="ascii")
    return DUT


class SDMux:
    """A card in a USB-SD-Mux. The device has to be off: the card is taken from it."""

    def __init__(self, name: str, values: Mapping[str, Any]) -> None:
        self.name = name
        self._control = Path(values["control"])
        self._disk = Path(values["disk"]) if values["disk"] else None

    def write(self, image: Path) -> str:
        if not self._control.exists():
            raise StorageFailed(
                f"{self.name}: there is no {self._control}. Is the mux plugged in? Those that are: ls /dev/usb-sd-mux"
            )
        self._switch(HOST)
        try:
            return flash(self.name, image, self._appeared(), fixed=False)
        finally:
            self._switch(DUT)

    def _switch(self, side: str) -> None:
        call("usbsdmux", [str(self._control), side], SWITCH_TIMEOUT_S)

    def _appeared(self) -> Path:
        disk = self._disk
        look: Callable[[], Path | None] = self._of_sysfs if disk is None else lambda: appeared(disk)
        return until_disk(self.name, str(self._disk or self._control), look)

    def _of_sysfs(self) -> Path | None:
        """The disk of the same SCSI device as the control, which is its generic one."""
        generic = Path(os.path.realpath(self._control)).name
        for block in Path("/sys/class/scsi_generic", generic, "device/block").glob("*"):
            if int((block / "size").read_text(encoding="ascii")) > 0:
                return Path("/dev", block.name)
        return None


class USBBoot:
    """A Raspberry Pi compute module, powered with its USB boot jumper set: rpiboot shows its storage as a disk."""

    def __init__(
        self, name: str, values: Mapping[str, Any], power_on: Callable[[], None], power_off: Callable[[], None]
    ) -> None:
        self.name = name
        self._disk = Path(values["disk"])
        self._folder = values["folder"]
        self._power_on = power_on
        self._power_off = power_off

    def write(self, image: Path) -> str:
        self._power_on()
        try:
            call("rpiboot", ["-d", self._folder] if self._folder else [], BOOT_TIMEOUT_S)
            disk = until_disk(self.name, str(self._disk), lambda: appeared(self._disk))
            return flash(self.name, image, disk, fixed=False)
        finally:
            self._power_off()


def appeared(disk: Path) -> Path | None:
    """The disk, once it is there and has a medium."""
    try:
        if not stat.S_ISBLK(disk.stat().st_mode):
            return None
        with disk.open("rb") as file:
            return Path(os.path.realpath(disk)) if file.seek(0, os.SEEK_END) > 0 else None
    except OSError:
        return None


def until_disk(name: str, what: str, look: Callable[[], Path | None]) -> Path:
    """Raises StorageFailed when no disk came in time."""
    late = StorageFailed(
        f"{name}: no disk appeared for {what} within {APPEAR_TIMEOUT_S:g} s. Is a card in it, and may this user "
        "open it (group disk)?"
    )
    found = until(look, APPEAR_TIMEOUT_S, lambda: late)
    assert found is not None
    return found
