"""What simulated boards are flashed with, where nobody brings an image: a root file system as far as edgeflash looks.

A simulated board runs with the /usr of this machine, so the programs in it are only the heads of programs: enough for
edgeflash to tell a Debian of this processor with systemd, Python and libsodium.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import NamedTuple

from hil import images, machines
from hil.errors import HilError
from hil.machines import Machine

ELF_X86_64, ELF_AARCH64 = 62, 183


class Kind(NamedTuple):
    """A machine of machines.py, the number of its processor in ELF headers, Debian's name for its libraries' folder."""

    machine: str
    elf: int
    libraries: str


KINDS = {
    "x86_64": Kind("x86-64", ELF_X86_64, "x86_64-linux-gnu"),
    "aarch64": Kind("arm64", ELF_AARCH64, "aarch64-linux-gnu"),
}


def this_machine() -> Kind:
    """Raises HilError where no board of edgeflash's has such a processor."""
    name = os.uname().machine
    if name not in KINDS:
        raise HilError(f"no board in the catalogue has this machine's {name}: give --board, --image and --agent")
    return KINDS[name]


def machine(kind: Kind) -> Machine:
    return machines.BY_NAME[kind.machine]


def write(folder: Path, kind: Kind) -> Path:
    """`folder`, with all that edgeflash looks at; files of before with these names are written anew."""
    program = _head_of_program(kind.elf)
    links = {
        "etc/os-release": "../usr/lib/os-release",
        "bin": "usr/bin",
        "lib": "usr/lib",
        "usr/bin/sh": "dash",
        "usr/bin/python3": "python3.11",
    }
    programs = (
        "usr/bin/dash",
        "usr/bin/python3.11",
        "usr/lib/systemd/systemd",
        "usr/lib/systemd/system-generators/systemd-run-generator",
        f"usr/lib/{kind.libraries}/libsodium.so.23",
    )
    texts = {
        "usr/lib/os-release": "ID=debian\nPRETTY_NAME='simulated board'\n",
        "etc/hostname": "localhost\n",
        "etc/hosts": "127.0.0.1\tlocalhost\n",
        "etc/machine-id": "uninitialized\n",
        "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
        "var/lib/dpkg/status": "Package: python3\nStatus: install ok installed\nVersion: 3.11.2\n\n",
    }
    for name in (*links, *programs, *texts):
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if name in links:
            if not place.is_symlink():
                place.symlink_to(links[name])
        else:
            place.write_bytes(program if name in programs else texts[name].encode())
    return folder


def agent(folder: Path, kind: Kind) -> Path:
    """The agent of this checkout with its C library, as a zipapp. Takes a minute where that was never built."""
    return images.zipapp(machine(kind), folder)


def _head_of_program(number: int) -> bytes:
    """An ELF header of 64 bits, little-endian, of a shared object (System V ABI, chapter 4)."""
    return b"\x7fELF" + bytes((2, 1, 1)) + bytes(9) + struct.pack("<HHI", 3, number, 1) + bytes(24 + 4 + 64)
