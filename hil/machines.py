"""The machines that QEMU is here: which Debian runs on each, and how it starts. What they are: boards/qemu-*.toml."""

from __future__ import annotations

from typing import NamedTuple

from boards import catalogue, schema

PCI = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4", "virtio_net", "virtio_rng")


class Machine(NamedTuple):
    """`arch` in Debian's words; `program` and `options` are QEMU's, `needs` the package that has it.

    `kernel` is Debian's package of it, `bus` what virtio devices sit on, `early` the modules by name that the initrd
    loads: those that root needs, and what guests have besides; what is built in is skipped.
    """

    name: str
    board: str
    arch: str
    needs: str
    kernel: str
    console: str
    bus: str
    early: tuple[str, ...]

    @property
    def program(self) -> str:
        return f"qemu-system-{self._qemu.system}"

    @property
    def options(self) -> tuple[str, ...]:
        """Board, processor and memory, as boards/ says."""
        told = self._qemu
        processor = ("-cpu", told.cpu) if told.cpu else ()
        return ("-M", told.machine, *processor, "-m", str(told.mib), "-smp", "1")

    @property
    def _qemu(self) -> schema.Qemu:
        told = catalogue.get(self.board).qemu
        assert told is not None, self.board
        return told


MACHINES = (
    Machine("arm64", "qemu-arm64", "arm64", "qemu-system-arm", "linux-image-cloud-arm64", "ttyAMA0", "pci", PCI),
    Machine("x86-64", "qemu-x86-64", "amd64", "qemu-system-x86", "linux-image-cloud-amd64", "ttyS0", "pci", PCI),
    Machine(
        "armhf",
        "qemu-armhf",
        "armhf",
        "qemu-system-arm",
        "linux-image-armmp",
        "ttyAMA0",
        "device",
        ("virtio_mmio", "virtio_blk", "crc32c_generic", "ext4", "virtio_net", "virtio_rng"),
    ),
    Machine("mipsel", "qemu-mipsel", "mipsel", "qemu-system-mips", "linux-image-4kc-malta", "ttyS0", "pci", PCI),
)
BY_NAME = {machine.name: machine for machine in MACHINES}
