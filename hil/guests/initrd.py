"""An initrd that finds root and goes there: busybox, the modules that it takes, and a script; made by anybody."""

from __future__ import annotations

import gzip
import lzma
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
root=/dev/vda init=/sbin/init
for word in $($b cat /proc/cmdline); do
    case $word in
        root=*) root=${word#root=} ;;
        init=*) init=${word#init=} ;;
    esac
done
for module in $($b cat /modules/order); do $b insmod /modules/$module; done
tries=0
until [ -b $root ]; do
    tries=$((tries + 1))
    [ $tries -le 200 ] || { echo "hil: no $root"; $b sleep 600; }
    $b usleep 50000
done
$b mount -t ext4 -o noatime $root /root || { echo "hil: $root does not mount"; $b sleep 600; }
$b umount /proc
$b mount --move /dev /root/dev
exec $b switch_root /root $init
"""


def order(modules: Path, names: Sequence[str]) -> list[str]:
    """Paths below `modules` of what `names` (as in modprobe) need and are, each behind what it needs.

    `modules` holds depmod's modules.dep. A name that is not there is built in, or not of this kernel.
    """
    needs: dict[str, list[str]] = {}
    path_of: dict[str, str] = {}
    for line in (modules / "modules.dep").read_text(encoding="utf-8").splitlines():
        path, _, after = line.partition(":")
        needs[path] = after.split()
        path_of[Path(path).name.partition(".ko")[0].replace("-", "_")] = path
    found: list[str] = []

    def take(path: str) -> None:
        for need in needs[path]:
            take(need)
        if path not in found:
            found.append(path)

    for name in names:
        if (known := path_of.get(name.replace("-", "_"))) is not None:
            take(known)
    return found


def make(out: Path, busybox: Path, modules: Path, early: Sequence[str]) -> None:
    """Write the initrd to `out`: `early` are names of modules in `modules`."""
    paths = order(modules, early)
    loaded = {Path(path).name.removesuffix(".xz"): _plain(modules / path) for path in paths}
    files: list[tuple[str, int, bytes]] = [(name, stat.S_IFDIR | 0o755, b"") for name in FOLDERS]
    files.append(("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes()))
    files.append(("init", stat.S_IFREG | 0o755, INIT.encode()))
    files += [(f"modules/{name}", stat.S_IFREG | 0o644, data) for name, data in loaded.items()]
    files.append(("modules/order", stat.S_IFREG | 0o644, "\n".join(loaded).encode()))
    out.write_bytes(gzip.compress(b"".join(_cpio(files)), mtime=0))


def _plain(module: Path) -> bytes:
    """Newer kernels' modules are compressed, and this host is quicker at it than the guest."""
    data = module.read_bytes()
    return lzma.decompress(data) if module.suffix == ".xz" else data


FOLDERS = ("bin", "dev", "proc", "root", "modules")


def _cpio(files: Sequence[tuple[str, int, bytes]]) -> Iterator[bytes]:
    """The "newc" format of the kernel's Documentation/driver-api/early-userspace/buffer-format.rst."""
    for inode, (name, mode, data) in enumerate((*files, ("TRAILER!!!", 0, b"")), 1):
        encoded = name.encode() + b"\0"
        fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        yield head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)
