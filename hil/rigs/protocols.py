"""What a suite may ask of a device, in labgrid's terms: Power, Console, Storage, Network. Drivers give them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol


class Power(Protocol):
    """All raise PowerFailed. `off` is a cut: nothing is shut down before it."""

    def on(self) -> None: ...
    def off(self) -> None: ...
    def cycle(self) -> None: ...

    def state(self) -> bool | None:
        """Whether it is on; None where nobody can say."""


class Console(Protocol):
    """hil.console.Console is one. Raise GuestStuck for what does not come in time, GuestDied when nothing more can."""

    name: str

    def expect(self, pattern: str, timeout_s: float) -> re.Match[bytes]:
        """The first match of what was said behind the match before."""

    def send(self, text: str) -> None: ...

    def shell(self, command: str, timeout_s: float = 30.0, *, check: bool = True) -> str:
        """What a command says. Raises CommandFailed for a status other than 0."""

    def skip(self) -> None:
        """What was said so far is expected no more."""

    def tail(self) -> str:
        """The last lines that were said."""


class Storage(Protocol):
    """What the device starts from."""

    def write(self, image: Path) -> str:
        """Write and verify `image` while the device is off; returns what to tell of it. Raises StorageFailed."""


class Network(Protocol):
    """The device over its own network."""

    def run(self, command: str, timeout_s: float = 30.0) -> str:
        """What a command says. Raises CommandFailed, or NotReached when the device does not answer."""
