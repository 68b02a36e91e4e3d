"""A guest's kernel, initrd and root image: built once, kept under build/hil/ by the hash of what they are made of.

Everything runs as an ordinary user: apt with folders of its own, fakeroot for whom files belong to, mke2fs -d for the
image, and the packages' own scripts in the guest itself, in its first boot. That takes minutes, so the image as it is
then (`base-…`) is kept, too: what is trimmed from it and put into it afterwards takes seconds.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from hil.errors import BuildFailed, GuestStuck, MissingProgram
from hil.guests import initrd, trim
from hil.guests.packages import MIRROR, Archive, run
from hil.machines import BY_NAME, Machine
from hil.qemu import Boot, Guest

HERE = Path(__file__).parent
PACKAGES = (
    "systemd-sysv",
    "usr-is-merged",  # else usrmerge, which brings all of Perl
    "udev",
    "kmod",
    "iproute2",
    "iputils-ping",
    "nftables",
    "python3",
    "python3-nacl",
    "wireguard-tools",
    "iperf3",
)
# Of the kernel's modules, by their names in modprobe: what the agent, the network between guests and fault suites want.
MODULES = [
    "virtio_net",
    "virtio_rng",
    "virtio_blk",
    "tun",
    "wireguard",
    "sch_netem",
    "sch_tbf",
    "sch_ingress",
    "cls_u32",
    "act_mirred",
    "dummy",
    "veth",
    "bridge",
    "nf_tables",
    "nft_chain_nat",
    "nft_ct",
    "nft_masq",
    "nft_redir",
    "nft_limit",
    "nft_log",
    "nft_reject_inet",
    "nf_conntrack_netlink",
    "nft_numgen",
    "nft_hash",
    "nft_fib_inet",
    "nft_fib_ipv4",
    "nft_fib_ipv6",
    "nft_socket",
    "nft_tproxy",
    "nft_queue",
    "nft_objref",
    "nft_quota",
    "dm_log_writes",
    "dm_flakey",
    "dm_mod",
    "overlay",
    "squashfs",
    "loop",
    "vfat",
    "nls_ascii",
    "nls_cp437",
    "nls_utf8",
    "isofs",
    "softdog",
    "i6300esb",
    "autofs4",
    "fuse",
    "ext4",
    "xt_tcpudp",
    "nft_compat",
    "e1000",
    "pcnet32",
    "algif_aead",
]
UNPACK_TIMEOUT_S = 600.0
CONFIGURE_TIMEOUT_S = 1800.0


class Built(NamedTuple):
    """Files of one guest, read only: machines start from copies or overlays of `root`."""

    kernel: Path
    initrd: Path
    root: Path
    packages: Path  # JSON: names of the archives, and how long each step took
    tree: Path | None  # device tree, where QEMU makes none
    seconds: float  # that building it took, 0 where it was there

    def boot(self, root: Path, root_format: str = "raw", words: str = "") -> Boot:
        return Boot(self.kernel, self.initrd, root, root_format, words, self.tree)

    @property
    def missing(self) -> list[Path]:
        """Of its files, those that are not there."""
        return [path for path in (self.kernel, self.initrd, self.root, self.tree) if path and not path.exists()]


def recipe(machine: Machine) -> str:
    """Hash of what the guest of `machine` is made of. Debian's updates are not in it: `fresh` is for those."""
    parts = [_base_recipe(machine), (HERE / "trim.py").read_text(encoding="utf-8")]
    files = sorted(path for path in (HERE / "overlay").rglob("*") if path.is_file())
    parts += [f"{path.relative_to(HERE)}\0{path.read_text(encoding='utf-8')}" for path in files]
    return _hash(parts)


def _base_recipe(machine: Machine) -> str:
    """Of its configured packages."""
    parts = [repr((machine, machine.image_mb, PACKAGES, MODULES, MIRROR))]
    sources = ("unpacked.py", "initrd.py", "configure.sh", "finish.sh")
    return _hash([*parts, *(f"{name}\0{(HERE / name).read_text(encoding='utf-8')}" for name in sources)])


def _hash(parts: list[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def build(machine: Machine, store: Path, say: Callable[[str], None] = lambda _: None, fresh: bool = False) -> Built:
    """The guest of `machine`, from `store` where it is there. Raises BuildFailed, MissingProgram."""
    store = store.resolve()
    store.mkdir(parents=True, exist_ok=True)
    if shutil.which(machine.program) is None:
        raise MissingProgram(
            f"{machine.program} is not here (package {machine.needs}): `./dev hil` installs what is needed, as root"
        )
    base = store / f"base-{machine.name}-{_base_recipe(machine)}"
    target = store / f"{machine.name}-{recipe(machine)}"
    with _alone(store / f"{machine.name}.lock"):
        if fresh:
            for folder in (base, target):
                shutil.rmtree(folder, ignore_errors=True)
        built = _built(machine, target)
        if built.packages.exists() and not built.missing:  # written last
            return built
        began = time.monotonic()
        found = _base(machine, store, base, say)
        say("trimming it")
        target.mkdir(parents=True, exist_ok=True)
        for old, new in zip(found[:3], built[:3], strict=True):
            run(["cp", "--sparse=always", "--reflink=auto", str(old), str(new)], UNPACK_TIMEOUT_S)
        if found.tree is not None and built.tree is not None:
            shutil.copy(found.tree, built.tree)
        trim.trim(built.root, HERE / "overlay")
        shutil.copy(found.packages, built.packages)
        return built._replace(seconds=time.monotonic() - began)


def _built(machine: Machine, folder: Path) -> Built:
    names = ("kernel", "initrd", "root.img", "packages.json")
    kernel, first, root, packages = (folder / name for name in names)
    return Built(kernel, first, root, packages, folder / "board.dtb" if machine.tree else None, 0.0)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Until another process that builds the same has ended."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _base(machine: Machine, store: Path, target: Path, say: Callable[[str], None]) -> Built:
    """Debian's packages on `machine`, configured and otherwise as Debian has them."""
    built = _built(machine, target)
    if built.packages.exists() and not built.missing:
        return built
    began = time.monotonic()
    target.mkdir(parents=True, exist_ok=True)
    say("fetching packages")
    archives, kernel, busybox = _fetched(machine, store)
    host = BY_NAME[machine.stand_in] if machine.stand_in else machine
    with tempfile.TemporaryDirectory(prefix="edgehil-") as name:
        work = Path(name)
        modules, version = _kernel(kernel, work, built.kernel)
        if built.tree is not None:
            shutil.copy(work / "kernel/usr/lib" / f"linux-image-{version}" / machine.tree, built.tree)
        run(["dpkg-deb", "--extract", str(busybox), str(work / "busybox")], UNPACK_TIMEOUT_S)
        program = _one(work / "busybox", "busybox")
        initrd.make(built.initrd, program, modules, machine.early)
        first = built.initrd
        if host is not machine:
            first = work / "initrd"
            initrd.make(first, program, modules, host.early)
        say("unpacking them")
        fresh_root = work / "root.img"
        plan = {
            "root": str(work / "root"),
            "archives": [str(path) for path in archives],
            "arch": machine.arch,
            "modules": str(modules),
            "version": version,
            "wanted": initrd.order(modules, MODULES),
            "overlays": [str(_scripts(work))],
            "image": str(fresh_root),
            "size_mb": machine.image_mb,
        }
        (work / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
        run(
            ["fakeroot", "--", sys.executable, "-I", str(HERE / "unpacked.py"), str(work / "plan.json")],
            UNPACK_TIMEOUT_S,
        )
        shutil.rmtree(work / "root", ignore_errors=True)
        say("configuring them, in the machine itself")
        unpacked = time.monotonic()
        _configure(host, Boot(built.kernel, first, fresh_root, words="init=/hil-configure"), work)
        configured = time.monotonic()
        run(["cp", "--sparse=always", str(fresh_root), str(built.root)], UNPACK_TIMEOUT_S)
    notes = {
        "archives": [path.name for path in (*archives, kernel, busybox)],
        "unpack_s": round(unpacked - began, 1),
        "configure_s": round(configured - unpacked, 1),
    }
    built.packages.write_text(json.dumps(notes, indent=1), encoding="utf-8")
    return built._replace(seconds=time.monotonic() - began)


def _fetched(machine: Machine, store: Path) -> tuple[list[Path], Path, Path]:
    """The guest's packages, its kernel and its busybox: of `release`, but for what is to be older."""
    archive = Archive(store, machine.release, machine.arch)
    archive.update()
    archives, older = archive.closure(PACKAGES), archive
    if machine.kernel_release:
        older = Archive(store, machine.kernel_release, machine.arch)
        older.update()
        # Whether they fit the rest, dpkg says in the guest: what a package depends on is looked at there.
        archives = [path for path in archives if path.name.partition("_")[0] not in machine.older]
        archives += [older.one(name) for name in machine.older]
    return archives, older.one(machine.kernel), archive.one("busybox-static")


def _kernel(archive: Path, work: Path, out: Path) -> tuple[Path, str]:
    """Copies the kernel to `out`; returns where its modules are, and its release."""
    run(["dpkg-deb", "--extract", str(archive), str(work / "kernel")], UNPACK_TIMEOUT_S)
    images = [path for path in (work / "kernel/boot").iterdir() if path.name.startswith(("vmlinuz-", "vmlinux-"))]
    if len(images) != 1:
        raise BuildFailed(f"{archive.name}: {len(images)} kernels are in it")
    shutil.copy(images[0], out)
    release = images[0].name.partition("-")[2]
    if not (work / "kernel/lib").exists():  # since trixie all is below usr, where this host's depmod does not look
        (work / "kernel/lib").symlink_to("usr/lib")
    run(["depmod", "-b", str(work / "kernel"), release], UNPACK_TIMEOUT_S)
    return work / "kernel/lib/modules" / release, release


def _scripts(work: Path) -> Path:
    folder = work / "scripts"
    (folder / "hil").mkdir(parents=True)
    shutil.copy(HERE / "configure.sh", folder / "hil-configure")
    (folder / "hil-configure").chmod(0o755)
    shutil.copy(HERE / "finish.sh", folder / "hil")
    return folder


def _configure(machine: Machine, boot: Boot, work: Path) -> None:
    guest = Guest(f"configure-{machine.name}", machine, boot, work / "guest")
    try:
        guest.power_on(cache="unsafe")  # nothing is kept of a boot that has not ended well
        status = guest.console.expect(r"^hil: configured with status (\d)", CONFIGURE_TIMEOUT_S)
        if status[1] != b"0":
            raise BuildFailed(f"the packages' scripts failed in the guest; it said last:\n{guest.console.tail()}")
        guest.wait_off(60.0)
    except GuestStuck as error:
        raise BuildFailed(str(error)) from None
    finally:
        guest.power_off()
    # The first looks at it as a guest's start would, and may tidy directories up; the second must find nothing.
    run(["sh", "-c", 'e2fsck -fp "$0" || [ $? = 1 ]', str(boot.root)], UNPACK_TIMEOUT_S)
    run(["e2fsck", "-fn", str(boot.root)], UNPACK_TIMEOUT_S)


def _one(folder: Path, name: str) -> Path:
    return next(path for path in folder.rglob(name) if path.is_file() and path.parent.name == "bin")
