"""The driver for machines of QEMU: power, console and storage in one. It lives as long as what made it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from hil import console, images
from hil.errors import PowerFailed, StorageFailed
from hil.guests.build import Built, build
from hil.machines import Machine
from hil.qemu import Guest
from hil.rigs.storage import flash


class GuestMachine:
    """`folder` wants a short path. The guest is built where it is not there yet, which takes minutes."""

    def __init__(
        self, name: str, machine: Machine, store: Path, folder: Path, nets: Sequence[str], delay_s: float
    ) -> None:
        self.name = name
        self.machine = machine
        self._store = store
        self._folder = folder
        self._nets = nets
        self._delay_s = delay_s
        self._disk = folder / "disk.img"
        self._guest: Guest | None = None
        self._built: Built | None = None

    @property
    def built(self) -> Built:
        if self._built is None:
            self._built = build(self.machine, self._store)
        return self._built

    @property
    def console(self) -> console.Console:
        if self._guest is None or not self._guest.running:
            raise PowerFailed(f"{self.name}: is off, and has no console before it is on")
        return self._guest.console

    def on(self) -> None:
        if not self._disk.exists():
            raise StorageFailed(f"{self.name}: nothing has been written to its disk yet")
        if self._guest is None:
            self._guest = Guest(self.name, self.machine, self.built.boot(self._disk), self._folder, self._nets)
        if not self._guest.running:
            self._guest.power_on()

    def off(self) -> None:
        if self._guest is not None:
            self._guest.power_off()

    def cycle(self) -> None:
        self.off()
        time.sleep(self._delay_s)
        self.on()

    def state(self) -> bool | None:
        return self._guest is not None and self._guest.running

    def login(self, timeout_s: float) -> None:
        assert self._guest is not None
        self._guest.login(timeout_s)

    def write(self, image: Path) -> str:
        """A disk of the image's size, written as a card is."""
        if self.state():
            raise StorageFailed(f"{self.name}: is on; its disk is written while it is off")
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._disk.open("wb") as file:
            file.truncate(image.stat().st_size)
        return flash(self.name, image, self._disk, fixed=True)

    def package(self, out: Path) -> Path:
        """The agent of this checkout for it."""
        return images.package(self.machine, out)
