"""What a board's file may say: one TOML file a board, its name the board's id.

Whoever writes one leaves out what he does not know: every key that may be left out means "nobody has confirmed it".
Sizes are in the unit that ends their name, 1 MiB = 1,048,576 bytes.
"""

from __future__ import annotations

# ruff: noqa: RUF009 - these calls make fields
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from boards.reading import flag, numbers, read, several, table, text, whole, word

FILE_BYTES_MAX = 32_768
ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
ID_CHARS_MAX = 40

# What a machine runs, as tools/cross.py builds it: machine-libc.
ABIS = tuple(
    f"{machine}-{libc}"
    for machine in ("x86-64", "aarch64", "armv7hf", "armv6hf", "mips", "mipshf", "mipsel", "mipselhf")
    for libc in ("glibc", "musl")
)
INITS = ("cloud-init-nocloud", "rpi-preseed", "rpi-firstrun", "uci-defaults", "none")
KERNEL = ("built-in", "module", "package", "absent")  # package: a module that has to be installed first
WRITES_A_DAY = 20  # what an idle agent may write; a board may ask for less


class BoardError(Exception):
    """A board's file is not as it must be; a line for each thing: the file, the key, what is wrong, what is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    soc: str = text(default="")
    model: str = text()
    cores: int = whole(1, 256)
    mhz: int | None = whole(50, 10_000, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """How the kernel of the systems below has them."""

    wireguard: str = word(*KERNEL)
    tun: str = word(*KERNEL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    name: str = text()
    holds: str = word("boot-loader", "boot", "root", "overlay", "data", "calibration", "firmware", "log", "swap")
    filesystem: str = word("vfat", "ext4", "squashfs", "jffs2", "ubifs", "ubi", "f2fs", "raw", default="raw")
    kib: int | None = whole(1, 1 << 32, default=None)
    writable: bool = flag(default=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flash:
    """`writes_a_day` is the budget of an idle agent."""

    medium: str = word("sd-card", "emmc", "spi-nor", "spi-nand", "disk")
    mib: int | None = whole(1, 1 << 24, default=None)
    removable: bool = flag()
    wear_levelling: bool = flag(default=True)
    writes_a_day: int = whole(1, WRITES_A_DAY, default=WRITES_A_DAY)
    partitions: tuple[Partition, ...] = several(table(Partition), default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """`recovery`: how somebody at the board gets it back when it does not start any more."""

    method: str = word("rpi-firmware", "u-boot", "bios", "uefi", "kernel")
    recovery: str = text(r"[^\x00-\x1f]{1,400}", "a text of 1 to 400 characters", default="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Serial:
    device: str = text(r"/dev/tty[A-Za-z0-9]+", "a device, as in /dev/ttyS0")
    baud: int = whole(1_200, 4_000_000)
    where: str = text(default="")


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A system that runs on the board: how settings get into its image, which package the agent comes in, which
    builder makes images. `abi` is that of its programs."""

    name: str = text()
    abi: str = word(*ABIS)
    init: str = word(*INITS)
    package: str = word("deb", "ipk", "apk", "none")
    package_arch: str = text(r"[a-z0-9_+.-]{1,40}", "an architecture as the package manager names it", default="")
    builder: str = word(
        "openwrt-imagebuilder", "rpi-image-gen", "debian-cloud-image", "mmdebstrap", "none", default="none"
    )
    target: str = text(r"[a-z0-9_/.-]{1,80}", "a target, as in ramips/mt76x8", default="")
    profile: str = text(r"[a-z0-9_.+-]{1,80}", "a profile of the image builder", default="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Uplink:
    interface: str = text(r"[A-Za-z0-9_.*-]{1,15}", "an interface's name, * for any characters")
    kind: str = word("ethernet", "wifi", "cellular")
    metered: bool = flag(default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Modem:
    """`driver`: what the agent talks to it by; `port` is the secondary one for AT commands."""

    model: str = text()
    driver: str = word("modemmanager", "uqmi", "at")
    control: str = text(r"/dev/[A-Za-z0-9_/-]+", "a device, as in /dev/cdc-wdm0", default="")
    port: str = text(r"/dev/[A-Za-z0-9_/-]+", "a device, as in /dev/ttyUSB2", default="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Crypto:
    """`extensions` of the processor that ciphers may use; `engines` beside it, by their names."""

    extensions: tuple[str, ...] = several(word("neon", "armv8-aes", "aes-ni", "avx2", "none"), default=())
    engines: tuple[str, ...] = several(text(), default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Led:
    name: str = text(r"[A-Za-z0-9_:.-]{1,60}", "a name below /sys/class/leds")
    meaning: str = text(default="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Watchdog:
    device: str = text(r"/dev/watchdog[0-9]*", "/dev/watchdog or /dev/watchdogN", default="/dev/watchdog")
    driver: str = text(default="")
    timeout_s_max: int | None = whole(1, 86_400, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """`rtc`: keeps the time without power as it is sold, `battery` when somebody adds one."""

    rtc: str = word("yes", "battery", "no", default="no")
    hwrng: str = text(default="")
    watchdog: Watchdog | None = table(Watchdog, default=None)
    leds: tuple[Led, ...] = several(table(Led), default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """Defaults of the agent here; what the operator sets wins. `limits`: names of edgeagent/proto/limits.py."""

    memory_profile: str = word("small", "normal", "large", default="normal")
    memory_ceiling_mib: int | None = whole(16, 65_536, default=None)
    limits: dict[str, int] = numbers(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Qemu:
    """`exact`: it stands for this very board; else for its processor and memory only."""

    system: str = word("x86_64", "aarch64", "arm", "mipsel", "mips")
    machine: str = text(r"[a-z0-9_.-]{1,40}", "a machine of QEMU")
    cpu: str = text(default="")
    mib: int = whole(16, 1 << 20)
    exact: bool = flag(default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Detect:
    """By what a running agent knows the board: the device tree's `compatible`, /tmp/sysinfo/board_name of OpenWrt, the
    product's name by DMI. `machine`, what uname -m prints (mipsel where it is little-endian), must hold as well where
    it is given, and is all there is where a board stands for a kind."""

    compatible: tuple[str, ...] = several(text(r"[a-z0-9,._+-]{3,80}", "vendor,model"), default=())
    board_name: tuple[str, ...] = several(text(r"[A-Za-z0-9,._+-]{3,80}", "OpenWrt's board_name"), default=())
    dmi_product: tuple[str, ...] = several(text(), default=())
    machine: tuple[str, ...] = several(text(r"[a-z0-9_]{2,20}", "what uname -m prints"), default=())
    os: str = word("any", "openwrt", "debian", default="any")


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """`id` is the file's name and not in it. `kind`: a product, a generic stand-in, or a machine of QEMU."""

    id: str = text(r"[a-z0-9-]+", "an id")
    name: str = text()
    kind: str = word("product", "generic", "qemu")
    notes: str = text(r"[^\x00]{1,1000}", "a text of at most 1000 characters", default="")
    ram_mib: tuple[int, ...] = several(whole(8, 1 << 22))
    cpu: Cpu = table(Cpu)
    kernel: Kernel = table(Kernel)
    flash: Flash = table(Flash)
    boot: Boot = table(Boot)
    serial: Serial | None = table(Serial, default=None)
    systems: tuple[System, ...] = several(table(System))
    uplinks: tuple[Uplink, ...] = several(table(Uplink), default=())
    modems: tuple[Modem, ...] = several(table(Modem), default=())
    crypto: Crypto = table(Crypto, default=Crypto())
    hardware: Hardware = table(Hardware, default=Hardware())
    agent: Agent = table(Agent, default=Agent())
    qemu: Qemu | None = table(Qemu, default=None)
    hil: str = text(r"[a-z0-9-]{1,40}", "a rig's name", default="")
    detect: Detect = table(Detect, default=Detect())


def load(path: Path) -> Board:
    """Raises BoardError with everything that is wrong."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BoardError(f"{path}: {error.strerror}") from None
    return parse(data, str(path), path.stem)


def parse(data: bytes, file: str, board_id: str) -> Board:
    """Of the file's bytes; `file` is for error texts."""
    if len(data) > FILE_BYTES_MAX:
        raise BoardError(f"{file}: {len(data)} bytes, at most {FILE_BYTES_MAX} expected")
    try:
        raw = tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BoardError(f"{file}: byte {error.start} is no UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BoardError(f"{file}: no TOML: {error}") from None
    problems: list[str] = []
    if not ID.fullmatch(board_id) or len(board_id) > ID_CHARS_MAX:
        problems.append(f"the file's name is the board's id: a-z, 0-9, single -, at most {ID_CHARS_MAX} characters")
    if "id" in raw:
        problems.append("id: not in the file: its name is the id")
    board = read(Board, raw | {"id": board_id if ID.fullmatch(board_id) else "x"}, "", problems)
    if board is not None:
        problems += _contradictions(board)
    if problems or board is None:
        raise BoardError("\n".join(f"{file}: {problem}" for problem in problems))
    return board


def _contradictions(board: Board) -> list[str]:
    """What every key allows and all together do not."""
    found = []
    if not board.ram_mib:
        found.append("ram_mib: empty. At least one size expected")
    if not board.systems:
        found.append("systems: empty. At least one system expected")
    for at, system in enumerate(board.systems):
        if (system.package == "none") is not (system.package_arch == ""):
            found.append(f"systems[{at}].package_arch: goes with a package, and with no other than none without")
        if (system.init == "uci-defaults") is not (system.package in ("ipk", "apk")) and system.init != "none":
            found.append(
                f"systems[{at}].init: uci-defaults goes with OpenWrt's packages, ipk and apk, and only with them"
            )
        if system.builder == "openwrt-imagebuilder" and not system.target:
            found.append(f"systems[{at}].target: missing. The image builder needs one, as in ramips/mt76x8")
    kib = sum(part.kib or 0 for part in board.flash.partitions)
    if board.flash.mib is not None and kib > board.flash.mib << 10:
        found.append(f"flash.partitions: {kib} KiB together, and the flash has {board.flash.mib << 10}")
    detect = board.detect
    by_name = detect.compatible or detect.board_name or detect.dmi_product
    if board.kind != "qemu" and not (by_name or detect.machine):
        found.append(
            "detect: nothing. By one of compatible, board_name, dmi_product, machine the agent knows the board"
        )
    if detect.machine and not by_name and board.kind != "generic":
        found.append("detect.machine: alone it says no more than the processor, which is for generic boards")
    return found
