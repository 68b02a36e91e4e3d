"""An ext4 file system inside an image, read and written by debugfs: no mount, no root.

debugfs ends with status 0 whatever happens: what was written is read back and compared, and e2fsck has the last word.
"""

from __future__ import annotations

import re
import stat
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from flash.errors import FlashError
from flash.run import ToolError, run

LINKS_MAX = 40  # as in Linux
READ_MAX = 64 << 20
_SPARE = 4 << 20  # what stays free, for the first boot to write to
_FIELDS = re.compile(
    r"Type: (?P<type>[a-z ]+?)\s+Mode:\s+(?P<mode>[0-7]+).*?User:\s+(?P<uid>\d+)\s+Group:\s+(?P<gid>\d+)"
    r".*?Size: (?P<size>\d+)",
    re.DOTALL,
)
_FAST_LINK = re.compile(r'Fast link dest: "(.*)"')
_NOT_IN_A_COMMAND = frozenset('"\n\r\0')


class Entry:
    """What is to be written: bytes of a file, or the target of a symbolic link, with its mode. Owned by root."""

    __slots__ = ("data", "link", "mode")

    def __init__(self, data: bytes = b"", mode: int = 0o644, link: str = "") -> None:
        self.data = data
        self.mode = mode
        self.link = link


class Stat:
    """`kind` is regular, directory or symlink, or debugfs' word for another; `link` is the target as it is."""

    __slots__ = ("gid", "kind", "link", "mode", "size", "uid")

    def __init__(self, kind: str, mode: int, uid: int, gid: int, size: int, link: str) -> None:
        self.kind = kind
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.size = size
        self.link = link


class Ext4:
    """The file system at byte `offset` of the open file `fd`. Paths are absolute, as the device will see them."""

    def __init__(self, fd: int, offset: int, free: int, what: str) -> None:
        self._fd = fd
        self._device = f"/proc/self/fd/{fd}?offset={offset}"  # no name of a file, so no character of one to be quoted
        self._free = free
        self._what = what

    @property
    def free(self) -> int:
        """Bytes."""
        return self._free

    def stat(self, path: str) -> Stat | None:
        """Of the path itself, not followed; None when there is none."""
        text = self._ask(f"stat {_quoted(path)}").decode("utf-8", "surrogateescape")
        match = _FIELDS.search(text)
        if match is None:
            return None
        kind, size = match["type"], int(match["size"])
        link = ""
        if kind == "symlink":
            fast = _FAST_LINK.search(text)
            link = fast[1] if fast else self._ask(f"cat {_quoted(path)}").decode("utf-8", "surrogateescape")
        return Stat(kind, int(match["mode"], 8), int(match["uid"]), int(match["gid"]), size, link)

    def resolve(self, path: str) -> str:
        """The path with every symbolic link followed, as far as it exists. FlashError when links run in a circle."""
        done = PurePosixPath("/")
        todo = list(PurePosixPath(path).parts[1:])
        links = 0
        while todo:
            part = todo.pop(0)
            if part == "..":
                done = done.parent
                continue
            about = self.stat(str(done / part))
            if about is not None and about.kind == "symlink":
                links += 1
                if links > LINKS_MAX:
                    raise FlashError(f"{path}: too many symbolic links in the image's file system.")
                target = PurePosixPath(about.link)
                if target.is_absolute():
                    done = PurePosixPath("/")
                todo = [*(part for part in target.parts if part != "/"), *todo]
            else:
                done = done / part
        return str(done)

    def exists(self, path: str) -> bool:
        return self.stat(self.resolve(path)) is not None

    def read(self, path: str) -> bytes | None:
        """A regular file, links followed; None when there is none."""
        path = self.resolve(path)
        about = self.stat(path)
        if about is None or about.kind != "regular":
            return None
        if about.size > READ_MAX:
            raise FlashError(
                f"{path}: {about.size} bytes in the image, more than the {READ_MAX} that are read of a file."
            )
        data = self._ask(f"cat {_quoted(path)}")
        if len(data) != about.size:
            raise FlashError(f"{path}: cannot be read whole from the image. It is damaged: fetch it again.")
        return data

    def names(self, path: str) -> list[str]:
        """Of what is in a directory, sorted; empty when there is none."""
        path = self.resolve(path)
        if (about := self.stat(path)) is None or about.kind != "directory":
            return []
        lines = self._ask(f"ls -p {_quoted(path)}").decode("utf-8", "surrogateescape").splitlines()
        names = [line.split("/")[5] for line in lines if line.count("/") >= 6]
        return sorted(name for name in names if name not in (".", ".."))

    def write(self, entries: Mapping[str, Entry], directories: Mapping[str, int] | None = None) -> None:
        """Write files and links over whatever was there, make their directories (mode 0755 unless `directories` says
        otherwise), then read everything back, and check the file system. FlashError when anything is not as asked."""
        need = sum(len(entry.data) + 8192 for entry in entries.values())
        if need + _SPARE > self._free:
            raise FlashError(
                f"{self._what} has {self._free} bytes free, and {need} are to be written, with {_SPARE} to spare. "
                "Give an image with more room, or a smaller package."
            )
        self.check("before anything was written")
        real = {self._real(path): entry for path, entry in entries.items()}
        modes = {self._real(path): mode for path, mode in (directories or {}).items()}
        with tempfile.TemporaryDirectory(prefix="edgeflash-") as folder:
            script = []
            for path in sorted({parent for below in [*real, *modes] for parent in _parents(below)} | set(modes)):
                missing = self.stat(path) is None
                if missing:
                    script.append(f"mkdir {_quoted(path)}")
                if missing or path in modes:
                    script += _owned(path, stat.S_IFDIR | modes.get(path, 0o755))
            for number, (path, entry) in enumerate(real.items()):
                parent, name = str(PurePosixPath(path).parent), PurePosixPath(path).name
                if self.stat(path) is not None:
                    script.append(f"rm {_quoted(path)}")
                # `write` and `symlink` take a name in the present directory: a path would become a name with slashes
                script.append(f"cd {_quoted(parent)}")
                if entry.link:
                    script.append(f"symlink {_quoted(name)} {_quoted(entry.link)}")
                else:
                    file = Path(folder, str(number))
                    file.touch(mode=0o600)
                    file.write_bytes(entry.data)
                    script += [f"write {number} {_quoted(name)}", *_owned(path, stat.S_IFREG | entry.mode)]
            said = self._script(script, folder)
        self._compare(real, modes, said)
        self.check("after the files were written")

    def check(self, when: str) -> None:
        """By e2fsck, changing nothing. FlashError with what it said."""
        try:
            run(["e2fsck", "-f", "-n", self._device], fds=[self._fd])
        except ToolError as error:
            raise FlashError(f"{self._what} is not clean {when}: e2fsck says: {error.said}") from None

    def _compare(self, entries: Mapping[str, Entry], modes: Mapping[str, int], said: str) -> None:
        for path, entry in entries.items():
            about = self.stat(path)
            if entry.link:
                good = about is not None and about.kind == "symlink" and about.link == entry.link
            else:
                good = (
                    about is not None
                    and (about.kind, about.mode, about.uid, about.gid) == ("regular", entry.mode, 0, 0)
                    and self.read(path) == entry.data
                )
            if not good:
                raise FlashError(f"{path}: could not be written into {self._what}. debugfs says: {said or 'nothing'}")
        for path, mode in modes.items():
            about = self.stat(path)
            if about is None or about.kind != "directory" or about.mode != mode:
                raise FlashError(f"{path}: is not the directory of mode {mode:o} in {self._what} that it has to be.")

    def _real(self, path: str) -> str:
        """Where a file goes: links of its directories are followed, and the name itself is not."""
        pure = PurePosixPath(path)
        return str(PurePosixPath(self.resolve(str(pure.parent))) / pure.name)

    def _ask(self, command: str) -> bytes:
        return run(["debugfs", "-R", command, self._device], fds=[self._fd])

    def _script(self, lines: Sequence[str], folder: str) -> str:
        """What debugfs said of the lines, without its echo of them."""
        feed = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
        out = run(["debugfs", "-w", "-f", "-", self._device], feed=feed, fds=[self._fd], cwd=folder)
        lines = [line for line in out.decode("utf-8", "replace").splitlines() if not line.startswith("debugfs: ")]
        return " / ".join(line for line in lines if line and not line.startswith("Allocated inode"))[-300:]


def _parents(path: str) -> list[str]:
    return [str(parent) for parent in PurePosixPath(path).parents if str(parent) != "/"]


def _owned(path: str, mode: int) -> list[str]:
    return [
        f"sif {_quoted(path)} mode 0{mode:o}",
        f"sif {_quoted(path)} uid 0",
        f"sif {_quoted(path)} gid 0",
    ]


def _quoted(path: str) -> str:
    if _NOT_IN_A_COMMAND & set(path):
        raise FlashError(f"{path!r}: a quote or a line break in a name cannot be handed to debugfs.")
    return f'"{path}"'
