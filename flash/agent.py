"""The agent that goes into an image: a zipapp, a .deb, .ipk or .apk, told apart by what it is, not by its name."""

from __future__ import annotations

import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path, PurePosixPath

from flash.errors import FlashError
from flash.ext4 import Entry

FILE_BYTES_MAX = 64 << 20
UNPACKED_BYTES_MAX = 256 << 20


class Agent:
    """`kind` is zipapp, deb, ipk or apk; `control` the package's fields, lower case; `data` the file."""

    __slots__ = ("control", "data", "kind", "path")

    def __init__(self, path: Path, kind: str, data: bytes, control: dict[str, str]) -> None:
        self.path = path
        self.kind = kind
        self.data = data
        self.control = control

    @property
    def file_name(self) -> str:
        """What it is called in the image."""
        return f"agent.{'pyz' if self.kind == 'zipapp' else self.kind}"

    def dist(self, name: str) -> bytes:
        """A service file that goes with a zipapp: its own, else that of this release."""
        try:
            with zipfile.ZipFile(io.BytesIO(self.data)) as archive:
                return archive.read(f"edgeagent/dist/{name}")
        except KeyError:
            return (resources.files("edgeagent") / "dist" / name).read_bytes()

    def files(self) -> dict[str, Entry]:
        """What a .deb puts where; directories are implied."""
        found: dict[str, Entry] = {}
        size = 0
        for member, data in _tar_members(_deb_part(self.path, self.data, "data.tar")):
            path = str(PurePosixPath("/", member.name))
            size += len(data)
            if ".." in PurePosixPath(member.name).parts or size > UNPACKED_BYTES_MAX:
                raise FlashError(f"{self.path}: {member.name!r} cannot be unpacked. Is this a package of the agent?")
            if member.issym():
                found[path] = Entry(link=member.linkname, mode=0o777)
            elif member.isreg():
                found[path] = Entry(data, member.mode & 0o7777)
            elif not member.isdir():
                raise FlashError(f"{self.path}: {member.name!r} is no file, directory or link.")
        return found

    def control_files(self) -> dict[str, bytes]:
        """control, conffiles, md5sums, postinst … of a .deb."""
        parts = _tar_members(_deb_part(self.path, self.data, "control.tar"))
        return {PurePosixPath(member.name).name: data for member, data in parts if member.isreg()}


def load(path: Path) -> Agent:
    """FlashError when it is none of the four, or damaged."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise FlashError(f"{path}: {error.strerror}.") from None
    if len(data) > FILE_BYTES_MAX:
        raise FlashError(f"{path}: more than {FILE_BYTES_MAX >> 20} MiB. That is no package of the agent.")
    try:
        if data.startswith(b"!<arch>\n"):
            control = dict(_tar_files(_deb_part(path, data, "control.tar")))["control"]
            return Agent(path, "deb", data, fields(control))
        if data.startswith(b"\x1f\x8b") and (files := dict(_tar_files(data))).get("debian-binary"):
            return Agent(path, "ipk", data, fields(dict(_tar_files(files["control.tar.gz"]))["control"]))
        if data.startswith(b"ADB"):
            return Agent(path, "apk", data, {})
        if zipfile.is_zipfile(io.BytesIO(data)):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                if archive.testzip() is None and "__main__.py" in archive.namelist() and data.startswith(b"#!"):
                    return Agent(path, "zipapp", data, {})
    except (KeyError, EOFError, zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, OSError) as error:
        raise FlashError(f"{path}: is damaged ({error}). Build it again: tools/package.") from None
    raise FlashError(
        f"{path}: is no agent that can be put into an image: a .deb, .ipk, .apk, or a zipapp that starts with #!, "
        "as tools/package makes them."
    )


def fields(control: bytes) -> dict[str, str]:
    """Of a control file's first paragraph (deb822), names in lower case."""
    found: dict[str, str] = {}
    name = ""
    for line in control.decode("utf-8", "replace").splitlines():
        if not line.strip():
            break
        if line[0].isspace():
            found[name] = found.get(name, "") + "\n" + line
        else:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            found[name] = value.strip()
    return found


def depends(control: dict[str, str]) -> list[list[str]]:
    """Names of packages that are needed: one of each list; versions are left out."""
    found = []
    for group in f"{control.get('pre-depends', '')},{control.get('depends', '')}".split(","):
        names = [choice.split("(")[0].split(":")[0].strip() for choice in group.split("|")]
        if any(names):
            found.append([name for name in names if name])
    return found


def _deb_part(path: Path, data: bytes, wanted: str) -> bytes:
    """Of the ar archive of a .deb (deb(5)): the member that begins with `wanted`."""
    at = 8
    while at + 60 <= len(data):
        head = data[at : at + 60]
        name, size = head[:16].decode("ascii", "replace").strip().rstrip("/"), head[48:58].strip()
        if not size.isdigit() or at + 60 + int(size) > len(data):
            break
        if name.startswith(wanted):
            if name.endswith(".zst"):
                raise FlashError(f"{path}: is packed by zstd, which is not read here. Build it with gzip or xz.")
            return data[at + 60 : at + 60 + int(size)]
        at += 60 + int(size) + int(size) % 2
    raise FlashError(f"{path}: is damaged or cut short: there is no {wanted} in it.")


def _tar_members(data: bytes) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    size = 0
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            size += member.size
            if size > UNPACKED_BYTES_MAX:
                raise EOFError("more than it may hold unpacked")
            file = archive.extractfile(member) if member.isreg() else None
            yield member, file.read() if file is not None else b""


def _tar_files(data: bytes) -> Iterator[tuple[str, bytes]]:
    return ((PurePosixPath(member.name).name, content) for member, content in _tar_members(data) if member.isreg())
