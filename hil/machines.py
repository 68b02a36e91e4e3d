"""The machines that QEMU is here: which Debian runs on each, and how it starts. What they are: boards/qemu-*.toml."""

from __future__ import annotations

from typing import NamedTuple

from boards import catalogue, schema

BULLSEYE, BOOKWORM, TRIXIE = "bullseye", "bookworm", "trixie"  # Debian 11, 12 and 13

# `tun` is loaded by the initrd, too: then no service of the guest has to make its device node.
_DISK = ("virtio_blk", "crc32c_generic", "ext4", "virtio_net", "virtio_rng", "tun")
PCI = ("virtio_pci", *_DISK)
MMIO = ("virtio_mmio", *_DISK)
# Of the Pi's chip, what root on its SD card and a network on its USB want, in this order.
PI = (
    "bcm2835_mbox",
    "raspberrypi",
    "raspberrypi_power",
    "clk_raspberrypi",
    "reset_raspberrypi",
    "gpio_raspberrypi_exp",
    "bcm2835_dma",
    "bcm2835",
    "sdhci_iproc",
    "mmc_block",
    "phy_generic",
    "dwc2",
    "usbnet",
    "cdc_ether",
    "rndis_host",
    "crc32c_generic",
    "ext4",
    "tun",
)


class Machine(NamedTuple):
    """`arch` in Debian's words; `program` and `options` are QEMU's, `needs` the package that has it.

    `kernel` is Debian's package of it, `bus` what virtio devices sit on (`usb`: there are none, but a card, and a
    network adapter on USB), `early` the modules by name that the initrd loads: those that root needs, and what guests
    have besides; what is built in is skipped. `tree`: the device tree, of those in the kernel's package; QEMU makes the
    others'. `stand_in`: the machine that its packages are configured on, where that is not this one.

    `release` is Debian's that its packages are from. Where its kernel is another's, `kernel_release` says so; `older`
    are the packages that are from there, too.
    """

    name: str
    board: str
    arch: str
    needs: str
    kernel: str
    console: str
    bus: str
    early: tuple[str, ...]
    tree: str = ""
    stand_in: str = ""
    release: str = BOOKWORM  # the last one with mipsel
    kernel_release: str = ""
    older: tuple[str, ...] = ()

    @property
    def debian(self) -> str:
        """Its release, and that of its kernel where it is another, in a word or two."""
        return self.release + (f", kernel of {self.kernel_release}" if self.kernel_release else "")

    @property
    def program(self) -> str:
        return f"qemu-system-{self._qemu.system}"

    @property
    def options(self) -> tuple[str, ...]:
        """Board, processor and memory, as boards/ says."""
        told = self._qemu
        processor = ("-cpu", told.cpu) if told.cpu else ()
        cores = () if self.bus == "usb" else ("-smp", "1")  # a Pi has the four that it has
        return ("-M", told.machine, *processor, "-m", str(told.mib), *cores)

    @property
    def root(self) -> str:
        """The block device of the root file system."""
        return "/dev/mmcblk0" if self.bus == "usb" else "/dev/vda"

    @property
    def image_mb(self) -> int:
        """A card is as large as a power of two, or QEMU refuses it."""
        return 1024 if self.bus == "usb" else 700

    @property
    def _qemu(self) -> schema.Qemu:
        told = catalogue.get(self.board).qemu
        assert told is not None, self.board
        return told


_ARM64 = Machine("arm64", "qemu-arm64", "arm64", "qemu-system-arm", "linux-image-cloud-arm64", "ttyAMA0", "pci", PCI)
MACHINES = (
    _ARM64,
    Machine("mipsel", "qemu-mipsel", "mipsel", "qemu-system-mips", "linux-image-4kc-malta", "ttyS0", "pci", PCI),
    Machine("armhf", "qemu-armhf", "armhf", "qemu-system-arm", "linux-image-armmp", "ttyAMA0", "device", MMIO),
    Machine("x86-64", "qemu-x86-64", "amd64", "qemu-system-x86", "linux-image-cloud-amd64", "ttyS0", "pci", PCI),
    Machine(
        "raspi3b",
        "qemu-raspi3b",
        "arm64",
        "qemu-system-arm",
        "linux-image-arm64",
        "ttyS1",
        "usb",
        PI,
        tree="broadcom/bcm2837-rpi-3-b.dtb",
        stand_in="arm64",
    ),
    _ARM64._replace(name="arm64-trixie", release=TRIXIE),
    # The agent wants Python 3.11, so it is an old kernel, and what speaks to its packet filter, under a newer Debian.
    _ARM64._replace(name="arm64-5.10", kernel_release=BULLSEYE, older=("nftables", "libnftables1")),
)
BY_NAME = {machine.name: machine for machine in MACHINES}
