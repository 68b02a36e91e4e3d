"""A FAT file system inside an image, by mtools: no mount, no root."""

from __future__ import annotations

from collections.abc import Mapping

from flash.errors import FlashError
from flash.run import ToolError, run


class Fat:
    """The file system at byte `offset` of the open file `fd`. Paths are relative to its root: `cmdline.txt`."""

    def __init__(self, fd: int, offset: int, what: str) -> None:
        self._fd = fd
        self._image = f"/proc/self/fd/{fd}@@{offset}"
        self._what = what

    def exists(self, path: str) -> bool:
        try:
            run(["mdir", "-b", "-i", self._image, f"::/{path}"], fds=[self._fd])
        except ToolError:
            return False
        return True

    def names(self) -> list[str]:
        """Of the files of the root directory, as they are spelled, sorted."""
        lines = run(["mdir", "-b", "-i", self._image, "::/"], fds=[self._fd]).decode("utf-8", "replace").splitlines()
        return sorted(line.removeprefix("::/") for line in lines if not line.endswith("/"))

    def read(self, path: str) -> bytes | None:
        """A file; None when there is none."""
        if not self.exists(path):
            return None
        return run(["mtype", "-i", self._image, f"::/{path}"], fds=[self._fd])

    def write(self, files: Mapping[str, bytes]) -> None:
        """Write over whatever was there, make directories of one level, read back. FlashError when it does not fit."""
        for folder in sorted({path.partition("/")[0] for path in files if "/" in path}):
            if not self.exists(folder):
                run(["mmd", "-i", self._image, f"::/{folder}"], fds=[self._fd])
        for path, data in files.items():
            try:
                run(["mcopy", "-o", "-i", self._image, "-", f"::/{path}"], feed=data, fds=[self._fd])
            except ToolError as error:
                raise FlashError(
                    f"{path}: {len(data)} bytes could not be written into {self._what} (FAT): {error.said}. "
                    "It is full or damaged: free room on the image's boot partition."
                ) from None
        for path, data in files.items():
            if self.read(path) != data:
                raise FlashError(
                    f"{path}: what is read back from {self._what} (FAT) is not what was written: it is full or "
                    "damaged. Free room on the image's boot partition."
                )
