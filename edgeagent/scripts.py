"""Which programs the hub may run: those that the device's owner has put into one directory, and nothing else."""

from __future__ import annotations

import os
import stat

from edgeagent.proto.commands import is_script_name

OWNER = 0  # root
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class ScriptError(Exception):
    """It may not be run; `code` for programs, the text for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def find(directory: str, name: str) -> str:
    """The path of a script that may be run. Raises ScriptError.

    What is checked cannot be changed afterwards but by root: neither the file, nor its directory, nor one above it.
    """
    if not is_script_name(name):
        raise ScriptError("unknown-script", "this is no name of a script")
    _check_directory(directory)
    path = os.path.join(directory, name)
    try:
        about = os.lstat(path)
    except OSError:
        raise ScriptError("unknown-script", f"{path}: not there") from None
    if stat.S_ISLNK(about.st_mode):
        raise ScriptError("unsafe-script", f"{path}: a symbolic link")
    if not stat.S_ISREG(about.st_mode):
        raise ScriptError("unsafe-script", f"{path}: not a file")
    if about.st_uid != OWNER or about.st_mode & _OTHERS_WRITE:
        raise ScriptError("unsafe-script", f"{path}: somebody but root may write to it")
    if not about.st_mode & 0o100:
        raise ScriptError("unsafe-script", f"{path}: not executable")
    return path


def _check_directory(directory: str) -> None:
    try:
        about = os.lstat(directory)
    except OSError:
        raise ScriptError("no-scripts", f"{directory}: not there, so nothing is run here") from None
    if not stat.S_ISDIR(about.st_mode):
        raise ScriptError("unsafe-directory", f"{directory}: not a directory")
    if about.st_uid != OWNER or about.st_mode & _OTHERS_WRITE:
        raise ScriptError("unsafe-directory", f"{directory}: somebody but root may write to it")
    above = os.path.realpath(directory)
    if above != directory.rstrip("/"):
        raise ScriptError("unsafe-directory", f"{directory}: there is a symbolic link in it: name {above}")
    while above != "/":
        above = os.path.dirname(above)
        about = os.stat(above)
        # In a sticky directory nobody takes away what is another's
        if about.st_uid != OWNER or (about.st_mode & _OTHERS_WRITE and not about.st_mode & stat.S_ISVTX):
            raise ScriptError("unsafe-directory", f"{above}: somebody but root may write to it")
