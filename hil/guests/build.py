"""A guest's kernel, initrd and root image: built once, kept under build/hil/ by the hash of what they are made of.

Everything runs as an ordinary user: apt with folders of its own, fakeroot for whom files belong to, mke2fs -d for the
image, and the packages' own scripts in the guest itself, in its first boot.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from hil.errors import BuildFailed, GuestStuck
from hil.guests import initrd
from hil.guests.packages import MIRROR, SUITE, Archive, run
from hil.machines import Machine
from hil.qemu import Boot, Guest

HERE = Path(__file__).parent
IMAGE_MB = 700
PACKAGES = ("systemd-sysv", "udev", "kmod", "iproute2", "iputils-ping", "nftables", "python3", "python3-nacl")
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
    seconds: float  # that building it took, 0 where it was there

    def boot(self, root: Path, root_format: str = "raw", words: str = "") -> Boot:
        return Boot(self.kernel, self.initrd, root, root_format, words)


def recipe(machine: Machine) -> str:
    """Hash of what the guest of `machine` is made of. Debian's updates are not in it: `fresh` is for those."""
    parts = [repr((machine.arch, machine.kernel, machine.early, PACKAGES, MODULES, IMAGE_MB, SUITE, MIRROR))]
    sources = [HERE / name for name in ("unpacked.py", "initrd.py", "configure.sh", "finish.sh", "build.py")]
    files = [*sources, *sorted(path for path in (HERE / "overlay").rglob("*") if path.is_file())]
    parts += [f"{path.relative_to(HERE)}\0{path.read_text(encoding='utf-8')}" for path in files]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def build(machine: Machine, store: Path, say: Callable[[str], None] = lambda _: None, fresh: bool = False) -> Built:
    """The guest of `machine`, from `store` where it is there. Raises BuildFailed."""
    store = store.resolve()
    target = store / f"{machine.name}-{recipe(machine)}"
    if fresh:
        shutil.rmtree(target, ignore_errors=True)
    built = Built(target / "kernel", target / "initrd", target / "root.img", target / "packages.json", 0.0)
    if built.packages.exists():  # written last
        return built
    began = time.monotonic()
    target.mkdir(parents=True, exist_ok=True)
    archive = Archive(machine.arch, store / f"apt-{machine.arch}")
    say("fetching packages")
    archive.update()
    archives = archive.closure(PACKAGES)
    kernel, busybox = archive.one(machine.kernel), archive.one("busybox-static")
    with tempfile.TemporaryDirectory(prefix="edgehil-") as name:
        work = Path(name)
        modules, version = _kernel(kernel, work, built.kernel)
        run(["dpkg-deb", "--extract", str(busybox), str(work / "busybox")], UNPACK_TIMEOUT_S)
        initrd.make(built.initrd, _one(work / "busybox", "busybox"), modules, machine.early)
        say("unpacking them")
        fresh_root = work / "root.img"
        plan = {
            "root": str(work / "root"),
            "archives": [str(path) for path in archives],
            "arch": machine.arch,
            "modules": str(modules),
            "version": version,
            "wanted": initrd.order(modules, MODULES),
            "overlays": [str(_scripts(work)), str(HERE / "overlay")],
            "image": str(fresh_root),
            "size_mb": IMAGE_MB,
        }
        (work / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
        run(
            ["fakeroot", "--", sys.executable, "-I", str(HERE / "unpacked.py"), str(work / "plan.json")],
            UNPACK_TIMEOUT_S,
        )
        shutil.rmtree(work / "root", ignore_errors=True)
        say("configuring them, in the machine itself")
        unpacked = time.monotonic()
        _configure(machine, built.boot(fresh_root, words="init=/hil-configure"), work)
        configured = time.monotonic()
        run(["cp", "--sparse=always", str(fresh_root), str(built.root)], UNPACK_TIMEOUT_S)
    notes = {
        "archives": [path.name for path in (*archives, kernel, busybox)],
        "unpack_s": round(unpacked - began, 1),
        "configure_s": round(configured - unpacked, 1),
    }
    built.packages.write_text(json.dumps(notes, indent=1), encoding="utf-8")
    return built._replace(seconds=time.monotonic() - began)


def _kernel(archive: Path, work: Path, out: Path) -> tuple[Path, str]:
    """Copies the kernel to `out`; returns where its modules are, and its release."""
    run(["dpkg-deb", "--extract", str(archive), str(work / "kernel")], UNPACK_TIMEOUT_S)
    images = [path for path in (work / "kernel/boot").iterdir() if path.name.startswith(("vmlinuz-", "vmlinux-"))]
    if len(images) != 1:
        raise BuildFailed(f"{archive.name}: {len(images)} kernels are in it")
    shutil.copy(images[0], out)
    release = images[0].name.partition("-")[2]
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
