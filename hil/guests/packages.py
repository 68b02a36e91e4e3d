"""Debian's packages of another architecture, fetched by apt with folders of its own; this host's are not touched."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from hil.errors import BuildFailed

MIRROR = os.environ.get("EDGEHIL_MIRROR", "http://deb.debian.org/debian")
ESSENTIAL = "?and(?essential,?not(?name(^apt$)))"  # apt counts itself in, and nothing is installed in a guest
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
FETCH_TIMEOUT_S = 900
TOOL_TIMEOUT_S = 120
LISTS_AGE_S = 24 * 3600


class Archive:
    """apt for `arch` and one release of Debian, with a folder of its own in `store`."""

    def __init__(self, store: Path, release: str, arch: str) -> None:
        self.folder = folder = store.resolve() / f"apt-{release}-{arch}"
        for name in ("lists/partial", "archives/partial", "etc/none", "log"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        source = f"deb [signed-by={KEYRING}] {MIRROR} {release} main\n"
        (folder / "etc/sources.list").write_text(source, encoding="utf-8")
        settings = {
            "Dir::State": folder / "log",
            "Dir::State::lists": folder / "lists",
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder,
            "Dir::Cache::archives": folder / "archives",
            "Dir::Etc::sourcelist": folder / "etc/sources.list",
            "Dir::Etc::sourceparts": folder / "etc/none",
            "Dir::Etc::preferencesparts": folder / "etc/none",
            "Dir::Log": folder / "log",
            "APT::Architecture": arch,
            "APT::Architectures": arch,
            "APT::Install-Recommends": "false",
            "Acquire::Languages": "none",
            "APT::Sandbox::User": "",
            "Debug::NoLocking": "true",
        }
        lines = [f'{name} "{value}";\n' for name, value in settings.items()]
        (folder / "apt.conf").write_text("".join(lines), encoding="utf-8")

    def update(self) -> None:
        """Fetch the lists of packages, signed by Debian's keyring."""
        self._apt("update", "-qq")

    def closure(self, names: Sequence[str]) -> list[Path]:
        """The archives of `names`, of all that is essential, and of what they depend on; fetched where not here."""
        self._apt("install", "-qqy", "--download-only", ESSENTIAL, *names)
        wanted = self._apt("install", "-qqy", "--print-uris", "--reinstall", ESSENTIAL, *names, empty_cache=True)
        return [self.folder / "archives" / line.split()[1] for line in wanted.splitlines() if line.startswith("'")]

    def one(self, name: str) -> Path:
        """The archive of `name`, or of the first thing it depends on where it is a metapackage for a kernel."""
        shown = self._run("apt-cache", "depends", "--important", name)
        depends = [line.split()[-1] for line in shown.splitlines() if "Depends:" in line]
        if name.startswith("linux-image") and depends:
            name = next((depend for depend in depends if depend.startswith("linux-image")), name)
        uris = self._apt("download", "--print-uris", name, cwd=self.folder / "etc/none", empty_cache=True)
        found = self.folder / "archives" / uris.split()[1]
        if not found.exists():
            self._apt("download", "-qq", name, cwd=self.folder / "archives")
        return found

    def _apt(self, *words: str, cwd: Path | None = None, empty_cache: bool = False) -> str:
        # Of what is in the cache apt prints no address, so all is asked for with an empty one.
        other = ("-o", f"Dir::Cache::archives={self.folder / 'etc/none'}") if empty_cache else ()
        return self._run("apt-get", *other, *words, cwd=cwd)

    def _run(self, *words: str, cwd: Path | None = None) -> str:
        environment = {**os.environ, "APT_CONFIG": str(self.folder / "apt.conf"), "LC_ALL": "C.UTF-8"}
        return run(words, FETCH_TIMEOUT_S, environment, cwd)


def run(words: Sequence[str], timeout_s: float, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """What a program of this host printed. Raises BuildFailed with the end of its complaint."""
    try:
        done = subprocess.run(words, env=env, cwd=cwd, capture_output=True, timeout=timeout_s, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise BuildFailed(f"{words[0]} is not here. `./dev hil` installs what is needed, as root.") from None
    except subprocess.TimeoutExpired:
        raise BuildFailed(f"{words[0]} {words[1]}: not done within {timeout_s:g} s") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-1500:]
        raise BuildFailed(f"{' '.join(words)[:300]} ended with {done.returncode}: {said}")
    return done.stdout.decode(errors="replace")


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
