"""The machines that QEMU is here, as a table: which Debian runs on each, how its kernel is started, what it is called."""

from __future__ import annotations

from typing import NamedTuple

# Root's image is the first disk of each; the configuring boot and the guests use one initrd.
VIRTIO_PCI = ("virtio_pci", "virtio_blk", "ext4")


class Machine(NamedTuple):
    """`arch` in Debian's words; `board` is the id of boards/; `extra` are QEMU's options beside memory and disks.

    `early` are kernel modules by name that the initrd loads to find root; what is built in is skipped. `cross` is the
    target of tools.cross for the agent's C library.
    """

    name: str
    arch: str
    board: str
    qemu: str
    package: str
    extra: tuple[str, ...]
    kernel: str
    console: str
    bus: str
    memory_mb: int
    cpus: int
    early: tuple[str, ...]
    cross: str


MACHINES = (
    Machine(
        "arm64",
        "arm64",
        "qemu-arm64",
        "qemu-system-aarch64",
        "qemu-system-arm",
        ("-M", "virt", "-cpu", "cortex-a53"),
        "linux-image-cloud-arm64",
        "ttyAMA0",
        "pci",
        256,
        1,
        VIRTIO_PCI,
        "aarch64-glibc",
    ),
    Machine(
        "x86-64",
        "amd64",
        "qemu-x86-64",
        "qemu-system-x86_64",
        "qemu-system-x86",
        ("-M", "q35", "-cpu", "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt"),
        "linux-image-cloud-amd64",
        "ttyS0",
        "pci",
        256,
        1,
        VIRTIO_PCI,
        "x86-64-glibc",
    ),
    Machine(
        "armhf",
        "armhf",
        "qemu-armhf",
        "qemu-system-arm",
        "qemu-system-arm",
        ("-M", "virt", "-cpu", "cortex-a15"),
        "linux-image-armmp",
        "ttyAMA0",
        "device",
        256,
        1,
        ("virtio_mmio", "virtio_blk", "ext4"),
        "armv7hf-glibc",
    ),
    Machine(
        "mipsel",
        "mipsel",
        "qemu-mipsel",
        "qemu-system-mipsel",
        "qemu-system-mips",
        ("-M", "malta", "-cpu", "24Kf"),
        "linux-image-4kc-malta",
        "ttyS0",
        "pci",
        256,
        1,
        VIRTIO_PCI,
        "mipsel-glibc",
    ),
)
BY_NAME = {machine.name: machine for machine in MACHINES}
