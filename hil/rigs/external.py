"""Programs of others that drivers run: which package has each, and a bounded run."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hil.errors import MissingProgram
from hil.programs import run

# How to get each, as the end of "X is not here: …".
SOURCES = {
    "uhubctl": "apt-get install uhubctl",
    "usbsdmux": "apt-get install usbsdmux (Debian 12 or newer), or pipx install usbsdmux",
    "rpiboot": "apt-get install rpiboot (Debian 13, Raspberry Pi OS), or build github.com/raspberrypi/usbboot",
    "ssh": "apt-get install openssh-client",
    "edgeflash": "pip install 'edgemesh[hil]' into the environment in which edgehil runs",
    "debugfs": "apt-get install e2fsprogs",
    "unshare": "apt-get install util-linux",
    "ip": "apt-get install iproute2",
    "mosquitto": "apt-get install mosquitto",
}


def program(name: str) -> str:
    """The path of a program. Raises MissingProgram, which says how to get it."""
    beside = Path(sys.executable).with_name(name)  # of the environment in which this runs, be it active or not
    if beside.exists():
        return str(beside)
    # Administrators' commands are not on everybody's PATH.
    for path in (None, "/usr/sbin:/sbin"):
        if found := shutil.which(name, path=path):
            return found
    raise MissingProgram(f"{name} is not here: {SOURCES.get(name, 'install it')}")


def call(name: str, words: Sequence[str], timeout_s: float, env: Mapping[str, str] | None = None) -> str:
    """What `name words…` printed. Raises MissingProgram or CommandFailed."""
    return run([program(name), *words], timeout_s, env, name=" ".join((name, *words[:2])))
