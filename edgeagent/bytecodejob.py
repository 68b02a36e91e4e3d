"""Makes the byte code of a zipapp (bytecode.py), as a program: compiling takes memory that an agent would keep.

Run it by the Python that is to use what it makes, or by one of the same minor version: byte code knows no processor.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib.util import MAGIC_NUMBER
from io import BytesIO
from marshal import dumps
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile, ZipInfo

from edgeagent.bytecode import kept_at, stamp, sum_of

FREE_BYTES_MIN = 64 << 20  # that have to be left: on a router's flash of 16 MiB nothing is kept
LEVEL = 6
_HEAD = MAGIC_NUMBER + bytes(12)  # neither date nor hash of a source: the stamp is what is looked at
_MAIN = "__main__.py"


def main(arguments: list[str]) -> int:
    """`SOURCE [FREE_BYTES_MIN]`: exit status 0 also where there is no room, 1 where something went wrong."""
    source = os.path.abspath(arguments[0])
    wanted = int(arguments[1]) if len(arguments) > 1 else FREE_BYTES_MIN
    kept, part = kept_at(source), f"{kept_at(source)}.part"
    try:
        about = os.statvfs(os.path.dirname(source))
        if about.f_bavail * about.f_frsize < wanted:
            print(f"{kept}: not made, less than {wanted >> 20} MiB are free there")
            return 0
        data = compiled(source)
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(data)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(part, kept)
    except (OSError, BadZipFile, SyntaxError, ValueError) as error:
        with suppress(OSError):  # where the disk became full, what is there of it keeps it so
            os.unlink(part)
        print(f"{kept}: not made: {error}", file=sys.stderr)
        return 1
    return 0


def compiled(source: str) -> bytes:
    """An archive of the modules of the zipapp `source` as byte code, without what runs once, and its stamp. OSError,
    BadZipFile, SyntaxError."""
    made = BytesIO()
    # One file from here to the stamp: another one may take its place meanwhile, and must not get this one's byte code
    with open(source, "rb") as file, ZipFile(file) as old, ZipFile(made, "w") as new:
        for name in old.namelist():
            if name.endswith(".py") and name != _MAIN:
                # As by -OO, which an agent runs with; and by -X no_debug_ranges: tracebacks have lines, not columns.
                code = compile(old.read(name), name, "exec", dont_inherit=True, optimize=2)
                new.writestr(ZipInfo(f"{name}c"), _HEAD + dumps(code), ZIP_DEFLATED, LEVEL)
        new.comment = stamp(0, 0)  # of the right length
        of = sum_of(file, os.fstat(file.fileno()).st_size)
    length = len(made.getvalue()) - len(stamp(0, 0))
    return made.getvalue()[:length] + stamp(of, sum_of(made, length))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
