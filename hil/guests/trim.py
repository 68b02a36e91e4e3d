"""What makes a small server of Debian that is quick to boot where each process costs a second: services and generators
for disks, desktops, logins and first starts that a guest has not are masked, and settings of ours are put in.

By debugfs, into the image of packages that are configured: no boot, no root.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from hil.errors import BuildFailed
from hil.guests.packages import TOOL_TIMEOUT_S, run

_UNITS = "/etc/systemd/system"
_GENERATORS = "/etc/systemd/system-generators"
NOWHERE = "/dev/null"
MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty-static.service",
    "kmod-static-nodes.service",
    "ldconfig.service",
    "modprobe@configfs.service",
    "modprobe@dm_mod.service",
    "modprobe@drm.service",
    "modprobe@efi_pstore.service",
    "modprobe@fuse.service",
    "modprobe@loop.service",
    "motd-news.timer",
    "proc-sys-fs-binfmt_misc.automount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-ask-password-console.path",
    "systemd-ask-password-wall.path",
    "systemd-binfmt.service",
    "systemd-firstboot.service",
    "systemd-fsckd.socket",
    "systemd-hwdb-update.service",
    "systemd-initctl.socket",
    "systemd-journal-catalog-update.service",
    "systemd-journal-flush.service",
    "systemd-journald-audit.socket",
    "systemd-logind.service",
    "systemd-machine-id-commit.service",
    "systemd-modules-load.service",
    "systemd-network-generator.service",
    "systemd-networkd-wait-online.service",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-remount-fs.service",
    "systemd-repart.service",
    "systemd-sysctl.service",
    "systemd-sysusers.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-tmpfiles-setup-dev-early.service",
    "systemd-tmpfiles-setup-dev.service",
    "systemd-tmpfiles-setup.service",
    "systemd-update-done.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
    "systemd-user-sessions.service",
)
GENERATORS = (
    "systemd-bless-boot-generator",
    "systemd-cryptsetup-generator",
    "systemd-debug-generator",
    "systemd-fstab-generator",
    "systemd-getty-generator",
    "systemd-gpt-auto-generator",
    "systemd-hibernate-resume-generator",
    "systemd-integritysetup-generator",
    "systemd-rc-local-generator",
    "systemd-run-generator",
    "systemd-ssh-generator",
    "systemd-system-update-generator",
    "systemd-sysv-generator",
    "systemd-tpm2-generator",
    "systemd-veritysetup-generator",
)


def trim(image: Path, overlay: Path) -> None:
    """Masks, and the files under `overlay`, in the ext4 `image`. Raises BuildFailed."""
    links = {f"{_UNITS}/{unit}": NOWHERE for unit in MASKED}
    links |= {f"{_GENERATORS}/{name}": NOWHERE for name in GENERATORS}
    files = {f"/{path.relative_to(overlay)}": path for path in sorted(overlay.rglob("*")) if path.is_file()}
    put(image, files, links)


def put(image: Path, files: Mapping[str, Path], links: Mapping[str, str]) -> None:
    """Files (mode 0644) and symbolic links, root's, over whatever was there. Raises BuildFailed."""
    parents = {str(parent) for path in (*files, *links) for parent in PurePosixPath(path).parents}
    # debugfs complains of folders that are there and files that are not, and goes on; what counts is looked at below.
    lines = [f"mkdir {folder}" for folder in sorted(parents - {"/"})]
    for path, source in files.items():
        lines += [f"rm {path}", f"write {source} {path}"]
        lines += [f"sif {path} mode 0100644", f"sif {path} uid 0", f"sif {path} gid 0"]
    for path, target in links.items():
        lines += [f"rm {path}", f"symlink {path} {target}"]
    _debugfs(image, lines, write=True)
    with tempfile.TemporaryDirectory(prefix="edgehil-") as name:
        back = {Path(name, str(number)): path for number, path in enumerate(files)}
        _debugfs(image, [f"dump {path} {file}" for file, path in back.items()])
        lost = [path for file, path in back.items() if not file.exists() or not _same(file, files[path])]
    said = _debugfs(image, [f"stat {path}" for path in links])
    if lost or said.count("Type: symlink") != len(links):
        raise BuildFailed(f"{image}: {', '.join(lost) or 'links'}: not as written. Is it full?")
    run(["e2fsck", "-fn", str(image)], TOOL_TIMEOUT_S)


def _same(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


def _debugfs(image: Path, lines: list[str], write: bool = False) -> str:
    with tempfile.NamedTemporaryFile("w", prefix="edgehil-", suffix=".debugfs") as file:
        file.write("\n".join(lines) + "\n")
        file.flush()
        return run(["debugfs", *(["-w"] if write else []), "-f", file.name, str(image)], TOOL_TIMEOUT_S)
