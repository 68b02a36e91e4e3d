"""A root file system of packages that are unpacked and not yet configured, and an ext4 image of it.

What needs the machine itself, the packages' own scripts, runs in its first boot (configure.sh). Run as a program under
fakeroot, `python -I unpacked.py PLAN`: whom each file belongs to is then what Debian says, whoever runs it. So nothing
of ours is imported here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

MERGED = ("bin", "sbin", "lib")
# Beside python's own, documentation and translations are most of what is unpacked.
LEFT_OUT = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian")


def main() -> None:
    """`sys.argv[1]` is a JSON file: root, archives, arch, modules, version, wanted, overlay, image, size_mb."""
    plan = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    root = Path(plan["root"])
    unpack(root, [Path(archive) for archive in plan["archives"]], plan["arch"])
    install_modules(root, Path(plan["modules"]), plan["version"], plan["wanted"])
    for source in plan["overlays"]:
        shutil.copytree(source, root, dirs_exist_ok=True, symlinks=True)
    compile_python(root)
    for name in LEFT_OUT:
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir()
    make_image(root, Path(plan["image"]), plan["size_mb"])


def unpack(root: Path, archives: list[Path], arch: str) -> None:
    """Every archive's files, and dpkg's notes of them as "unpacked"."""
    for name in MERGED:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    if arch == "amd64":
        (root / "usr/lib64").mkdir()
        (root / "lib64").symlink_to("usr/lib64")
    for name in ("dev", "proc", "sys", "run", "tmp"):
        (root / name).mkdir()
    info = root / "var/lib/dpkg/info"
    stanzas = []
    info.mkdir(parents=True)
    for archive in archives:
        files = subprocess.run(["dpkg-deb", "--fsys-tarfile", archive], check=True, stdout=subprocess.PIPE).stdout
        # Packages of this Debian still have files in /lib and /bin, which are links.
        subprocess.run(["tar", "-x", "-p", "--keep-directory-symlink", "-C", root], input=files, check=True)
        stanzas.append(_note(info, archive, files))
    (root / "var/lib/dpkg/status").write_text("\n".join(stanzas), encoding="utf-8")
    (root / "var/lib/dpkg/available").touch()
    (info / "format").write_text("1\n")
    os.chmod(root / "tmp", 0o1777)
    # What the first scripts want before their packages are configured.
    shutil.copy(root / "usr/share/base-passwd/passwd.master", root / "etc/passwd")
    shutil.copy(root / "usr/share/base-passwd/group.master", root / "etc/group")
    (root / "usr/bin/awk").symlink_to("mawk")


def _note(info: Path, archive: Path, files: bytes) -> str:
    with tempfile.TemporaryDirectory() as name:
        control = Path(name)
        subprocess.run(["dpkg-deb", "--control", archive, control], check=True)
        stanza = (control / "control").read_text(encoding="utf-8")
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and line[0] not in " \t")
        stem = fields["Package"] + (f":{fields['Architecture']}" if fields.get("Multi-Arch") == "same" else "")
        conffiles = ""
        for file in control.iterdir():
            if file.name == "conffiles":
                conffiles = "".join(f" {line} newconffile\n" for line in file.read_text().splitlines() if line)
            if file.name != "control":
                shutil.move(str(file), info / f"{stem}.{file.name}")
    names = subprocess.run(["tar", "-t"], input=files, check=True, stdout=subprocess.PIPE).stdout.decode()
    paths = [line[1:].rstrip("/") or "/." for line in names.splitlines()]
    (info / f"{stem}.list").write_text("\n".join(paths) + "\n", encoding="utf-8")
    status = "Status: install ok unpacked\n" + (f"Conffiles:\n{conffiles}" if conffiles else "")
    package, _, rest = stanza.partition("\n")
    return f"{package}\n{status}{rest.rstrip()}\n"


def compile_python(root: Path) -> None:
    """What the scripts of Python's packages would compile there, in a third of their time, is compiled here where this
    is the same Python: byte code knows no processor. configure.sh looks for the file that says so."""
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if not (root / "usr/lib" / python).is_dir():
        return
    folders = [root / "usr/lib" / python, root / "usr/lib/python3/dist-packages"]
    words = [sys.executable, "-I", "-m", "compileall", "-q", "-s", str(root), "-p", "/"]
    # 2to3's tests are not Python 3, and stay as they are.
    subprocess.run([*words, *(str(folder) for folder in folders if folder.is_dir())], check=False)
    (root / "hil").mkdir(exist_ok=True)
    (root / "hil/compiled").touch()


def install_modules(root: Path, modules: Path, version: str, wanted: list[str]) -> None:
    """Of the kernel's modules under `modules` those named by path relative to it, and depmod's tables of them."""
    target = root / "usr/lib/modules" / version
    for name in wanted:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(modules / name, target / name)
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        if (modules / name).exists():
            shutil.copy(modules / name, target / name)
    subprocess.run(["depmod", "-b", root, version], check=True)


def make_image(root: Path, image: Path, size_mb: int) -> None:
    """ext4 without a partition table, sparse."""
    features = "^metadata_csum_seed,^orphan_file" if _knows_orphan_file() else "^metadata_csum_seed"
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-O", features, "-m", "1", "-L", "edgehil", "-d", root, image, f"{size_mb}M"],
        check=True,
    )


def _knows_orphan_file() -> bool:
    said = subprocess.run(["mke2fs", "-V"], stderr=subprocess.PIPE, check=True).stderr.decode()
    return tuple(int(part) for part in said.split()[1].split("-")[0].split(".")[:2]) >= (1, 47)


if __name__ == "__main__":
    main()
