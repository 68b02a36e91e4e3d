"""The dashboard's assets that others made: fetched with `npm pack`, checked, and only the files that are served kept.

`python tools/vendor.py` does nothing when what is there was made from the same hub/web/vendor.lock. hatch_build.py
loads this file by its path, so it needs nothing but the standard library.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

LOCK = "hub/web/vendor.lock"
FOLDER = "hub/web/static/vendor"
STAMP = ".lock"  # in FOLDER: the digest of the lock file that it was made from
NOTE = "vendor.why"  # beside FOLDER: why there are no assets
FILE_MAX = 4 << 20
NPM_TIMEOUT_S = 180
SQUEEZED = (".js", ".css", ".json", ".svg")  # served as gzip; a font is compressed already


class VendorError(Exception):
    """The text says what is wrong and what to do."""


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    integrity: str  # "sha512-" and base64, of the archive, as in a package-lock.json
    files: dict[str, str]  # path in the package → path in FOLDER


def read_lock(path: Path) -> list[Package]:
    """Raises VendorError for an entry that is not whole, or a file that would be put outside of the folder."""
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))["package"]
        packages = [Package(e["name"], e["version"], e["integrity"], dict(e["files"])) for e in entries]
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise VendorError(f"{path}: not a list of packages ({error!r})") from error
    for package in packages:
        if not package.integrity.startswith("sha512-"):
            raise VendorError(f"{path}: {package.name} has no sha512 integrity")
        for target in package.files.values():
            if Path(target).is_absolute() or ".." in Path(target).parts:
                raise VendorError(f"{path}: {package.name}: {target} is outside of the folder")
    return packages


def is_current(root: Path) -> bool:
    """Whether the folder was made from the lock file that is there now."""
    try:
        return (root / FOLDER / STAMP).read_text(encoding="ascii") == _digest(root / LOCK)
    except OSError:
        return False


def bring(root: Path) -> None:
    """Fill the folder anew; the old one stays when this fails. Raises VendorError."""
    packages = read_lock(root / LOCK)
    npm = shutil.which("npm")
    if npm is None:
        raise VendorError("npm is not installed: it brings the dashboard's assets (Debian: apt-get install npm)")
    folder = root / FOLDER
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = root / "build"  # on the same file system, so that all of it is there at once
    beside.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vendor-", dir=beside) as scratch:
        made = Path(scratch, "made")
        made.mkdir()
        for package in packages:
            extract(package, fetch(npm, package, Path(scratch)), made)
        (made / STAMP).write_text(_digest(root / LOCK), encoding="ascii")
        made.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    (folder.parent / NOTE).unlink(missing_ok=True)


def fetch(npm: str, package: Package, scratch: Path) -> Path:
    """The package's archive, which has the digest that the lock file says."""
    where = Path(tempfile.mkdtemp(dir=scratch))
    wanted = f"{package.name}@{package.version}"
    try:
        done = subprocess.run(
            [npm, "pack", "--silent", "--pack-destination", str(where), wanted],
            capture_output=True,
            text=True,
            timeout=NPM_TIMEOUT_S,
            cwd=where,
        )
    except subprocess.TimeoutExpired as error:
        raise VendorError(f"npm pack {wanted}: no answer within {NPM_TIMEOUT_S} s. Try again when online") from error
    archives = list(where.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise VendorError(f"npm pack {wanted}: {said}")
    found = "sha512-" + base64.b64encode(hashlib.sha512(archives[0].read_bytes()).digest()).decode()
    if found != package.integrity:
        raise VendorError(f"{wanted}: its digest is {found}, {LOCK} says {package.integrity}. It is not used")
    return archives[0]


def extract(package: Package, archive: Path, made: Path) -> None:
    """The named files, and a gzip of each text beside it."""
    with tarfile.open(archive) as tar:
        for source, target in package.files.items():
            try:
                content = _member(tar, f"package/{source}")
            except KeyError as error:
                raise VendorError(f"{package.name}@{package.version}: there is no {source} in it") from error
            path = made / target
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            if path.suffix in SQUEEZED:
                Path(f"{path}.gz").write_bytes(gzip.compress(content, 9, mtime=0))


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    member: IO[bytes] | None = tar.extractfile(name)
    if member is None:
        raise KeyError(name)
    content = member.read(FILE_MAX + 1)
    if len(content) > FILE_MAX:
        raise VendorError(f"{name}: larger than {FILE_MAX} B")
    return content


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> int:
    root = Path(__file__).resolve().parents[1]
    if is_current(root):
        return 0
    try:
        bring(root)
    except VendorError as error:
        print(f"vendor: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
