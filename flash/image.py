"""A raw image that is open for changes: its table, its file systems, and whether it is for the board."""

from __future__ import annotations

import os
import re
from typing import BinaryIO

from boards.schema import Board, System
from flash.elf import mismatch
from flash.errors import FlashError
from flash.ext4 import Ext4
from flash.fat import Fat
from flash.partitions import read_table
from flash.volumes import Volume, volumes

_PROGRAMS = ("/bin/sh", "/usr/bin/dash", "/bin/busybox", "/usr/bin/bash")
_IDENTITIES = ("/var/lib/edgeagent/identity", "/etc/edgeagent/state/identity")
_FSTAB_BOOT = re.compile(r"^\s*\S+\s+(/boot(?:/firmware)?)\s+vfat\s", re.MULTILINE)
_TARGET = re.compile(r"""^DISTRIB_TARGET=['"]?([a-z0-9_/-]+)""", re.MULTILINE)


class Image:
    """`root` is the ext4 with the system in it, `boot` the FAT that the board's firmware starts from, `cidata` the FAT
    of that label; each None where there is none. FlashError when the image is not whole."""

    def __init__(self, file: BinaryIO) -> None:
        size = os.fstat(file.fileno()).st_size
        self.table = read_table(file, size)
        self.volumes = volumes(file, size, self.table)
        self._fd = file.fileno()
        self.root = self._find_root()
        self.boot: Fat | None = None
        self.boot_label = ""
        self.cidata: Fat | None = None
        for volume in self.volumes:
            if volume.kind == "vfat":
                fat = Fat(self._fd, volume.offset, str(volume))
                if volume.label.lower() == "cidata":
                    self.cidata = fat
                elif self.boot is None and (
                    fat.exists("cmdline.txt") or fat.exists("config.txt") or fat.exists("user-data")
                ):
                    self.boot, self.boot_label = fat, volume.label

    @property
    def has_squashfs(self) -> bool:
        return any(volume.kind == "squashfs" for volume in self.volumes)

    def boot_mount(self) -> str:
        """Where the running system finds the boot partition: of its fstab."""
        match = _FSTAB_BOOT.search(self.text("/etc/fstab"))
        if match is None:
            raise FlashError(
                "the image's /etc/fstab does not say where the boot partition is mounted, and the script on it must be "
                "named by its path. Is this an image for a Raspberry Pi?"
            )
        return match[1]

    def text(self, path: str) -> str:
        """Of a file of the root file system; empty when there is none."""
        data = self.root.read(path) if self.root is not None else None
        return (data or b"").decode("utf-8", "replace")

    def check_fits(self, board: Board, system: System) -> None:
        """FlashError when programs, C library, boot files or OpenWrt's target are not the board's."""
        if self.root is None:
            return
        wrong = f"Is this the image for {board.name}? The board's systems: edgeflash boards show {board.id}"
        for path in _PROGRAMS:
            program = self.root.read(path)
            if program is not None:
                if why := mismatch(program, system.abi):
                    raise FlashError(f"{path} in the image {why}, and {board.id} runs {system.abi}. {wrong}")
                break
        else:
            raise FlashError(f"there is no shell in the image's root file system (looked for {', '.join(_PROGRAMS)}).")
        libc = "musl" if any(name.startswith("ld-musl-") for name in self.root.names("/lib")) else "glibc"
        if not system.abi.endswith(f"-{libc}"):
            raise FlashError(
                f"the image's C library is {libc}, and {system.name} on {board.id} has {system.abi}. {wrong}"
            )
        target = _TARGET.search(self.text("/etc/openwrt_release"))
        if target is not None and system.target and target[1] != system.target:
            raise FlashError(
                f"the image is of OpenWrt's target {target[1]}, and {board.id} is {system.target}. {wrong}"
            )
        self._check_firmware(board, wrong)

    def check_new(self) -> None:
        """FlashError when the image is that of a device that has joined: every copy would be that device."""
        for path in _IDENTITIES:
            if self.root is not None and self.root.exists(path):
                raise FlashError(
                    f"{path} is in the image: it was taken from a device that is a member, and every copy would be the "
                    "same device. Remove the agent's state there before the image is taken."
                )

    def _check_firmware(self, board: Board, wrong: str) -> None:
        pi = board.boot.method == "rpi-firmware"
        if self.boot is None or not self.boot.exists("config.txt"):
            if pi:
                raise FlashError(f"there is no boot partition with a config.txt, which {board.id} starts by. {wrong}")
            return
        if not pi:
            raise FlashError(
                f"the image starts by the Raspberry Pi's firmware, and {board.id} by {board.boot.method}. {wrong}"
            )
        trees = [name for name in self.boot.names() if name.endswith(".dtb")]
        wanted = [text.encode() + b"\0" for text in board.detect.compatible]
        if (
            trees
            and wanted
            and not any(any(text in (self.boot.read(name) or b"") for text in wanted) for name in trees)
        ):
            raise FlashError(
                f"none of the {len(trees)} device trees in the image is for {board.detect.compatible[0]}. {wrong}"
            )

    def _find_root(self) -> Ext4 | None:
        for volume in self.volumes:
            if volume.kind == "ext4":
                ext4 = _ext4(self._fd, volume)
                if ext4.exists("/etc/os-release") or ext4.exists("/etc/openwrt_release"):
                    return ext4
        return None


def _ext4(fd: int, volume: Volume) -> Ext4:
    return Ext4(fd, volume.offset, volume.free, str(volume))
