"""Running from a zipapp: what else is in the archive, and how programs of ours are started from it.

Nothing is unpacked to disk: a device may have nowhere to write to.
"""

from __future__ import annotations

import os

from edgeagent.bytecode import source_of

AGENTD = "--agentd"  # the first argument that makes the archive's __main__ the agent without its command line
_LIBRARY = "edgeagent/engine/fast/libedgefast.so"
# The script of a module in the archive: ARCHIVE/FOLDER MODULE ARGUMENT …. No runpy, which takes 0.4 MiB.
_RUN = (
    "import sys, zipimport; del sys.argv[0]; loader = zipimport.zipimporter(sys.argv.pop(0)); "
    "exec(loader.get_code(sys.argv[0]), {'__name__': '__main__'})"
)


def archive() -> str | None:
    """The zipapp that this runs from, by itself or by its byte code, absolute; None where it runs from files."""
    found = getattr(__spec__.loader, "archive", None)
    return None if found is None else source_of(os.path.abspath(found))


def command() -> list[str]:
    """What the interpreter is to be given to be the command `edgeagent`."""
    found = archive()
    return ["-m", "edgeagent"] if found is None else [found]


def agentd(package: str) -> list[str]:
    """The same for agentd.py; `package` is the folder of ours where there is one."""
    found = archive()
    return [f"{package}/agentd.py"] if found is None else [found, AGENTD]


def script(file: str) -> list[str]:
    """The same for a module that imports nothing of ours; `file` is its path, in the archive or not."""
    found = archive()
    if found is None:
        return [file]
    return ["-c", _RUN, os.path.dirname(file), os.path.splitext(os.path.basename(file))[0]]


def library() -> str | None:
    """The C library beside the archive, else the one in it, mapped from memory: 150 KiB, for as long as we run."""
    found = archive()
    if found is None:
        return None
    beside = os.path.join(os.path.dirname(found), os.path.basename(_LIBRARY))
    if os.path.exists(beside):
        return beside
    global _mapped
    if _mapped is None:
        from zipimport import zipimporter

        try:
            data = zipimporter(found).get_data(_LIBRARY)
            fd = os.memfd_create("libedgefast.so", os.MFD_CLOEXEC)
            with open(fd, "wb", closefd=False) as file:
                file.write(data)
        except OSError:
            return None
        # By our number: programs that we start to try the library open it by the same path.
        _mapped = f"/proc/{os.getpid()}/fd/{fd}"
    return _mapped


_mapped: str | None = None


def lasting(library: str) -> str:
    """The file on disk that a library's path stands for: its dates tell whether it is still the same."""
    return archive() or library if library.startswith("/proc/") else library
