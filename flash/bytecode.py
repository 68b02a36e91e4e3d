"""The agent's byte code, made here for the Python that is in an image: then even its first start compiles nothing."""

from __future__ import annotations

import shutil
import sys
import tempfile
from functools import lru_cache
from importlib import resources
from pathlib import Path, PurePosixPath

from flash.ext4 import Entry
from flash.image import Image
from flash.payload import HOME
from flash.run import ToolError, run

PROGRAM = f"{HOME}/edgeagent.pyz"
ROOM_BYTES = 64 << 20  # free in the image, or nothing is made: as on a device (edgeagent/bytecodejob.py)
# The agent's own program for it, of this release; what it makes for an agent of another one is not used by that.
_JOB = "import sys; sys.path.insert(0, sys.argv.pop(1)); from edgeagent.bytecodejob import main; main(sys.argv[1:])"


def byte_code(image: Image, entries: dict[str, Entry]) -> dict[str, Entry]:
    """What lies beside the program in `entries`, or nothing: where this machine has no Python of the image's version,
    the device makes it, or its starts take longer."""
    program = entries.get(PROGRAM)
    if program is None or image.root is None or image.root.free < ROOM_BYTES:
        return {}
    name, data = made(program.data, PurePosixPath(image.root.resolve("/usr/bin/python3")).name)
    return {f"{HOME}/{name}": Entry(data)} if data else {}


@lru_cache(maxsize=4)
def made(program: bytes, python: str) -> tuple[str, bytes]:
    """File name and contents of a zipapp's byte code for `python` ("python3.11"); empty ones where there is none."""
    here = f"python{sys.version_info.major}.{sys.version_info.minor}"
    interpreter = sys.executable if python == here else shutil.which(python)
    if interpreter is None:
        return "", b""
    home = str(Path(str(resources.files("edgeagent"))).parent)
    with tempfile.TemporaryDirectory(prefix="edgeflash-") as folder:
        source = Path(folder, PurePosixPath(PROGRAM).name)
        source.write_bytes(program)
        try:
            run([interpreter, "-I", "-X", "no_debug_ranges", "-c", _JOB, home, str(source), "0"])
        except ToolError:  # such as a program that this Python cannot read
            return "", b""
        found = [path for path in Path(folder).iterdir() if path.suffix == source.suffix and path != source]
        return (found[0].name, found[0].read_bytes()) if len(found) == 1 else ("", b"")
