"""What a card is, and why it must not be written: of sysfs and procfs, before the kernel is asked for it by O_EXCL."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from flash.errors import FlashError

CARDS_MAX = 32
_SYSTEM_MOUNTS = ("/", "/boot", "/boot/efi", "/boot/firmware", "/usr", "/var", "/home")


class Device:
    """`size` bytes; `name` as sdb or mmcblk0, empty for a regular file; `uses`: what it is in use for, in words."""

    __slots__ = ("model", "name", "path", "read_only", "removable", "size", "system", "uses")

    def __init__(self, path: str, name: str, size: int) -> None:
        self.path = path
        self.name = name
        self.size = size
        self.model = ""
        self.removable = False
        self.read_only = False
        self.system = False
        self.uses: list[str] = []


def look(path: str, root: Path = Path("/")) -> Device:
    """A block device, or a regular file that stands in for one; `root` has proc/ and sys/. FlashError: none there."""
    try:
        about = os.stat(path)
    except OSError as error:
        raise FlashError(f"{path}: {error.strerror}. lsblk shows which cards are there.") from None
    if stat.S_ISREG(about.st_mode):
        return Device(path, "", about.st_size)
    if not stat.S_ISBLK(about.st_mode):
        raise FlashError(f"{path}: is no block device. A card is one as /dev/sdb or /dev/mmcblk0: lsblk shows them.")
    node = root / "sys/dev/block" / f"{os.major(about.st_rdev)}:{os.minor(about.st_rdev)}"
    return look_at(path, node.resolve(), root)


def look_at(path: str, node: Path, root: Path) -> Device:
    """The device whose directory in sysfs is `node`."""
    if (node / "partition").exists():
        raise FlashError(f"{path}: is a partition. Name the whole card: /dev/{node.parent.name}.")
    device = Device(path, node.name, _number(node / "size") * 512)
    device.read_only = _number(node / "ro") == 1
    device.model = " ".join(_text(node / "device" / name) for name in ("vendor", "model", "name")).strip()
    usb = re.search(r"/usb\d+/", f"{node}/") is not None
    device.removable = _number(node / "removable") == 1 or usb or _text(node / "device/type") == "SD"
    parts = [node, *(child.parent for child in sorted(node.glob("*/partition")))]
    numbers = {_text(part / "dev"): part.name for part in parts}
    for part in parts:
        for holder in sorted((part / "holders").glob("*")):
            device.uses.append(f"{part.name} is a part of {_holder(holder)}")
    _mounts(device, numbers, root)
    for line in _text(root / "proc/swaps").splitlines()[1:]:
        name = os.path.basename(line.split()[0]) if line.split() else ""
        if name in numbers.values():
            device.uses.append(f"{name} is swap")
            device.system = True
    return device


def checked(paths: Sequence[str], needs: int, fixed: bool, root: Path = Path("/")) -> list[Device]:
    """All of them, or a FlashError with the reason for each that must not be written: then none is."""
    if len(paths) > CARDS_MAX:
        raise FlashError(f"{len(paths)} cards are more than the {CARDS_MAX} that are written at once.")
    devices = [look(path, root) for path in paths]
    numbers = [os.stat(path).st_rdev or os.stat(path).st_ino for path in paths]
    reasons = [why for device in devices if (why := refusal(device, needs, fixed))]
    reasons += [f"{path}: is given twice." for at, path in enumerate(paths) if numbers[at] in numbers[:at]]
    if reasons:
        raise FlashError("\n".join(reasons) + ("\nNothing was written." if len(paths) > 1 else ""))
    return devices


def refusal(device: Device, needs: int, fixed: bool) -> str:
    """Why `needs` bytes must not be written to it; empty when they may. `fixed`: also what is not removable."""
    if device.system:
        return f"{device.path}: this system runs from it ({'; '.join(device.uses)}). It is never written."
    if device.uses:
        return (
            f"{device.path}: is in use ({'; '.join(device.uses)}). Unmount it, or take it out of what it is a part of."
        )
    if device.read_only:
        return f"{device.path}: is read-only. Look at the card's lock switch."
    if device.size < needs:
        return f"{device.path}: has {device.size} bytes, and the image {needs}. Take a larger card."
    if not device.removable and not fixed:
        what = f"a fixed disk{f' ({device.model})' if device.model else ''}" if device.name else "a file"
        return f"{device.path}: is {what} and no card. If it is meant, give --fixed."
    return ""


def _mounts(device: Device, numbers: dict[str, str], root: Path) -> None:
    """mountinfo (proc(5)): by number, and by name, because some file systems show a number of their own there."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        fields, _, rest = line.partition(" - ")
        words, source = fields.split(), rest.split()[1:2]
        if len(words) < 5:
            continue
        name = numbers.get(words[2]) or next((name for name in numbers.values() if source == [f"/dev/{name}"]), "")
        if name:
            point = words[4].replace("\\040", " ")
            device.uses.append(f"{name} is mounted at {point}")
            device.system = device.system or point in _SYSTEM_MOUNTS


def _holder(holder: Path) -> str:
    if name := _text(holder / "dm/name"):
        return f"{name} (LVM, or encrypted)"
    return f"{holder.name} (RAID)" if (holder / "md").exists() else holder.name


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int:
    text = _text(path)
    return int(text) if text.isdecimal() else 0
