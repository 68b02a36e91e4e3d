"""Images, packages and tokens that the tests of edgeflash make themselves, with mke2fs, mkfs.vfat and a GPT writer."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import UUID

from edgeagent import crypto
from edgeagent.proto.token import Token

MIB = 1 << 20
ENVIRON = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin", "MTOOLS_SKIP_CHECK": "1"}
NOW = 1_795_000_000

Files = Mapping[str, str | bytes]  # path -> content; "-> TARGET" is a symbolic link


def tool(*command: str | Path, feed: bytes = b"") -> str:
    """What an independent tool says, with its errors."""
    done = subprocess.run(
        [str(word) for word in command], input=feed, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=ENVIRON
    )
    assert done.returncode == 0, done.stdout.decode("utf-8", "replace")
    return done.stdout.decode("utf-8", "replace")


def elf(machine: int = 183, wide: bool = True, big: bool = False, flags: int = 0) -> bytes:
    """The head of a program: AArch64 unless told."""
    order = ">" if big else "<"
    head = b"\x7fELF" + bytes((2 if wide else 1, 2 if big else 1, 1)) + bytes(9)
    head += struct.pack(order + "HHI", 3, machine, 1)
    return (
        head
        + (bytes(24) + struct.pack(order + "I", flags) if wide else bytes(12) + struct.pack(order + "I", flags))
        + bytes(64)
    )


DEBIAN: Files = {
    "etc/os-release": "-> ../usr/lib/os-release",
    "usr/lib/os-release": "ID=debian\n",
    "bin": "-> usr/bin",
    "lib": "-> usr/lib",
    "usr/bin/sh": "-> dash",
    "usr/bin/dash": elf(),
    "usr/bin/python3": "-> python3.11",
    "usr/bin/python3.11": elf(),
    "usr/lib/systemd/systemd": elf(),
    "usr/lib/systemd/system-generators/systemd-run-generator": elf(),
    "usr/lib/aarch64-linux-gnu/libsodium.so.23": elf(),
    "etc/hostname": "localhost\n",
    "etc/hosts": "127.0.0.1\tlocalhost\n127.0.1.1\told\n",
    "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    "etc/fstab": "PARTUUID=1-01  /boot/firmware  vfat  defaults  0  2\n",
    "var/lib/dpkg/status": "Package: python3\nStatus: install ok installed\nVersion: 3.11.2\n\n",
}
CLOUD: Files = {
    "usr/bin/cloud-init": "#!/bin/sh\n",
    "etc/cloud/cloud.cfg": "users: [default]\n",
    "etc/cloud/cloud.cfg.d/90.cfg": "datasource_list: [ NoCloud, None ]\n",
}
OPENWRT: Files = {
    "etc/openwrt_release": "DISTRIB_ID='OpenWrt'\nDISTRIB_TARGET='x86/64'\n",
    "etc/uci-defaults/10-first": "#!/bin/sh\n",
    "bin/sh": "-> busybox",
    "bin/busybox": elf(62),
    "lib/ld-musl-x86_64.so.1": elf(62),
    "usr/lib/libsodium.so.26": elf(62),
    "usr/bin/python3": "-> python3.11",
    "usr/bin/python3.11": elf(62),
}
PI_BOOT: dict[str, bytes] = {
    "cmdline.txt": b"console=tty1 root=PARTUUID=1-02 rootwait\n",
    "config.txt": b"arm_64bit=1\n",
    "bcm2711-rpi-4-b.dtb": b"\xd0\x0d\xfe\xed....raspberrypi,4-model-b\0brcm,bcm2711\0",
}


def tree(folder: Path, files: Files) -> Path:
    """A directory with these files."""
    for path, content in files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str) and content.startswith("-> "):
            place.symlink_to(content[3:])
        else:
            place.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def ext4(folder: Path, files: Files, size: int = 24 * MIB, name: str = "root.ext4") -> Path:
    """A bare ext4 with these files, all of root."""
    path = folder / name
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    root = tree(folder / f"{name}.d", files)
    tool("mke2fs", "-q", "-F", "-t", "ext4", "-E", "root_owner=0:0", "-d", root, path)
    return path


def vfat(folder: Path, files: Mapping[str, bytes], label: str = "bootfs", size: int = 16 * MIB) -> Path:
    path = folder / f"{label}.vfat"
    with path.open("wb") as file:
        file.truncate(size)
    tool("mkfs.vfat", "-n", label, path)
    for name, data in files.items():
        tool("mcopy", "-i", path, "-", f"::/{name}", feed=data)
    return path


def mbr(path: Path, parts: Sequence[tuple[int, Path]]) -> Path:
    """An image of partitions (type, file system), each at the next MiB."""
    at, table = MIB, b""
    with path.open("wb") as file:
        for kind, part in parts:
            data = part.read_bytes()
            table += struct.pack("<B3sB3sII", 0, b"\0\0\0", kind, b"\0\0\0", at // 512, len(data) // 512)
            file.seek(at)
            file.write(data)
            at += -(-len(data) // MIB) * MIB
        file.truncate(at)
        file.seek(446)
        file.write(table.ljust(64, b"\0") + b"\x55\xaa")
    return path


def gpt(path: Path, parts: Sequence[tuple[str, Path]]) -> Path:
    """The same with a GPT: (UUID of the type, file system)."""
    entries, at = b"", MIB
    with path.open("wb") as file:
        for number, (kind, part) in enumerate(parts, 1):
            data = part.read_bytes()
            entries += struct.pack(
                "<16s16sQQQ72s",
                UUID(kind).bytes_le,
                UUID(int=number).bytes_le,
                at // 512,
                (at + len(data)) // 512 - 1,
                0,
                f"part{number}".encode("utf-16-le"),
            )
            file.seek(at)
            file.write(data)
            at += -(-len(data) // MIB) * MIB
        size = at + MIB
        file.truncate(size)
        entries = entries.ljust(128 * 128, b"\0")
        last = size // 512 - 1
        for here, other, table in ((1, last, 2), (last, 1, last - 32)):
            head = struct.pack("<8sIIIIQQQQ", b"EFI PART", 0x10000, 92, 0, 0, here, other, 34, last - 33)
            head += struct.pack("<16sQIII", UUID(int=9).bytes_le, table, 128, 128, zlib.crc32(entries))
            head = head[:16] + struct.pack("<I", zlib.crc32(head)) + head[20:]
            file.seek(here * 512)
            file.write(head)
            file.seek(table * 512)
            file.write(entries)
        file.seek(446)
        file.write(struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff" * 3, 1, last).ljust(64, b"\0") + b"\x55\xaa")
    return path


def pi_image(folder: Path, files: Files, boot: Mapping[str, bytes] | None = None) -> Path:
    """As for a Raspberry Pi 4: FAT and ext4 behind an MBR."""
    fat = vfat(folder, PI_BOOT if boot is None else boot)
    return mbr(folder / "pi.img", [(0x0C, fat), (0x83, ext4(folder, files))])


def part(image: Path, number: int) -> tuple[int, int]:
    """(start, size) in bytes, as sfdisk sees it."""
    for line in tool("sfdisk", "-d", image).splitlines():
        if line.split(" :")[0].endswith(f"{image.name}{number}"):
            fields = dict(field.strip().split("=") for field in line.split(" : ")[1].split(",") if "=" in field)
            return int(fields["start"].strip()) * 512, int(fields["size"].strip()) * 512
    raise AssertionError(f"no partition {number}")


def cat(image: Path, path: str, offset: int = 0) -> bytes:
    """A file of an ext4, as debugfs sees it."""
    command = ["debugfs", "-R", f"cat {path}", f"{image}?offset={offset}"]
    return subprocess.run(command, capture_output=True, env=ENVIRON, check=True).stdout


def cat_fat(image: Path, path: str, offset: int) -> bytes:
    command = ["mtype", "-i", f"{image}@@{offset}", f"::/{path}"]
    return subprocess.run(command, capture_output=True, env=ENVIRON, check=True).stdout


def token(number: int = 0, not_after: int = 0, tags: Sequence[str] = ()) -> str:
    made = Token(
        hosts=["hub.example:8883"],
        network_key=bytes(range(32)),
        hub_box_key=bytes(32),
        ca_sha256=bytes(32),
        claim="c-" + "abcdefgh"[number] * 16,
        secret=bytes([number]) * 16,
        not_after=not_after,
        uses=1,
        tags=list(tags),
    )
    return made.encode(crypto.load())


def zipapp(folder: Path, library: bytes = b"") -> Path:
    path = folder / "agent.pyz"
    data = io.BytesIO(b"#!/usr/bin/env python3\n")
    data.seek(0, io.SEEK_END)
    with zipfile.ZipFile(data, "a") as archive:
        archive.writestr(zipfile.ZipInfo("__main__.py"), "print('agent')\n")
        archive.writestr(
            zipfile.ZipInfo("edgeagent/dist/edgeagent.service"), "[Service]\nExecStart=/usr/bin/edgeagent run\n"
        )
        archive.writestr(zipfile.ZipInfo("edgeagent/dist/edgeagent.init"), "#!/bin/sh /etc/rc.common\n")
        if library:
            archive.writestr(zipfile.ZipInfo("edgeagent/engine/fast/libedgefast.so"), library)
    path.write_bytes(data.getvalue())
    return path


def deb(folder: Path, arch: str = "arm64", depends: str = "python3 (>= 3.11)") -> Path:
    control = f"Package: edgeagent\nVersion: 0.1.0\nArchitecture: {arch}\nDepends: {depends}\n"
    control += "Description: an agent\n of a mesh\n"
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": _tar(
            {"./control": control.encode(), "./postinst": b"#!/bin/sh\n", "./conffiles": b"/etc/edgeagent.conf\n"}
        ),
        "data.tar.xz": _tar(
            {
                "./usr/bin/edgeagent": b"#!/usr/bin/python3\n",
                "./lib/systemd/system/edgeagent.service": b"[Service]\n",
                "./etc/edgeagent.conf": b"# of the package\n",
            },
            "xz",
        ),
    }
    out = b"!<arch>\n"
    for name, data in members.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
    path = folder / f"edgeagent_{arch}.deb"
    path.write_bytes(out)
    return path


def ipk(folder: Path, arch: str) -> Path:
    control = _tar({"./control": f"Package: edgeagent\nArchitecture: {arch}\n".encode()})
    path = folder / f"edgeagent_{arch}.ipk"
    path.write_bytes(_tar({"./debian-binary": b"2.0\n", "./control.tar.gz": control, "./data.tar.gz": _tar({})}))
    return path


def _tar(files: Mapping[str, bytes], packed: str = "gz") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=f"w:{packed}") as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o755
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()
