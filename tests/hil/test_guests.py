"""What guests are made of, without a guest: packages of the test's own, looked at by cpio, debugfs and e2fsck."""

from __future__ import annotations

import contextlib
import gzip
import json
import lzma
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hil import cli, cli_suites
from hil.errors import BuildFailed, CommandFailed, GuestDied, HilError, MissingImage, MissingProgram
from hil.guests import build as building
from hil.guests import initrd, trim, unpacked
from hil.guests.build import build, recipe
from hil.guests.packages import Archive
from hil.machines import BOOKWORM, BULLSEYE, BY_NAME, MACHINES, TRIXIE
from hil.qemu import Boot, Guest
from hil.qmp import Qmp
from hil.report import Report

OVERLAY = Path(trim.__file__).with_name("overlay")
DOCS = Path(__file__).parents[2] / "docs/hil.md"
needs = pytest.mark.skipif(
    any(shutil.which(name) is None for name in ("dpkg-deb", "fakeroot", "mke2fs", "debugfs", "depmod")),
    reason="`./dev hil` installs what guests are made with",
)


def archive(folder: Path, name: str, files: dict[str, str], *, fields: str = "", conffiles: str = "") -> Path:
    root = folder / name
    (root / "DEBIAN").mkdir(parents=True)
    control = (
        f"Package: {name}\nVersion: 1\nArchitecture: arm64\nMaintainer: nobody\n{fields}Description: of a test\n more\n"
    )
    (root / "DEBIAN/control").write_text(control)
    (root / "DEBIAN/postinst").write_text("#!/bin/sh\n")
    (root / "DEBIAN/postinst").chmod(0o755)
    if conffiles:
        (root / "DEBIAN/conffiles").write_text(conffiles)
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    made = folder / f"{name}.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", root, made], check=True, stdout=subprocess.PIPE)
    return made


def modules(folder: Path) -> Path:
    """A kernel's folder of modules, in which ext4 needs two others."""
    made = folder / "lib/modules/6.1"
    for name in ("fs/ext4.ko", "fs/jbd2.ko", "lib/crc16.ko", "drivers/virtio_blk.ko"):
        (made / "kernel" / name).parent.mkdir(parents=True, exist_ok=True)
        (made / "kernel" / name).write_bytes(name.encode())
    needs = "kernel/fs/ext4.ko: kernel/fs/jbd2.ko kernel/lib/crc16.ko\nkernel/fs/jbd2.ko:\nkernel/lib/crc16.ko:\n"
    (made / "modules.dep").write_text(needs + "kernel/drivers/virtio_blk.ko:\n")
    return made


@needs
def test_packages_become_an_image_that_belongs_to_root(tmp_path: Path) -> None:
    base = {
        "usr/share/base-passwd/passwd.master": "root:*:0:0:root:/root:/bin/sh\n",
        "usr/share/base-passwd/group.master": "root:*:0:\n",
        "usr/bin/mawk": "awk",
        "lib/x.so": "a library in /lib, which is a link",
        "etc/x.conf": "x",
        "usr/share/doc/base/README": "left out",
    }
    archives = [
        archive(tmp_path, "base", base, conffiles="/etc/x.conf\n"),
        archive(tmp_path, "same", {"usr/lib/same": "s"}, fields="Multi-Arch: same\n"),
    ]
    plan = {
        "root": str(tmp_path / "root"),
        "archives": [str(path) for path in archives],
        "arch": "arm64",
        "modules": str(modules(tmp_path)),
        "version": "6.1",
        "wanted": ["kernel/fs/jbd2.ko"],
        "overlays": [],
        "image": str(tmp_path / "root.img"),
        "size_mb": 16,
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    words = ["fakeroot", "--", sys.executable, "-I", unpacked.__file__, str(tmp_path / "plan.json")]
    subprocess.run(words, check=True, stderr=subprocess.PIPE)
    image = str(tmp_path / "root.img")
    subprocess.run(["e2fsck", "-fn", image], check=True, capture_output=True)

    def debugfs(command: str) -> str:
        return subprocess.run(["debugfs", "-R", command, image], check=True, capture_output=True).stdout.decode()

    for path in ("/", "/usr/bin/mawk", "/usr/lib/x.so", "/etc/passwd", "/usr/lib/modules/6.1/kernel/fs/jbd2.ko"):
        assert "User:     0   Group:     0" in debugfs(f"stat {path}")
    assert "Mode:  01777" in debugfs("stat /tmp")
    assert 'Fast link dest: "usr/lib"' in debugfs("stat /lib") and 'dest: "mawk"' in debugfs("stat /usr/bin/awk")
    assert "README" not in debugfs("ls /usr/share/doc")
    status = debugfs("cat /var/lib/dpkg/status")
    assert status.count("Status: install ok unpacked\n") == 2 and "Conffiles:\n /etc/x.conf newconffile\n" in status
    assert "/lib/x.so\n" in debugfs("cat /var/lib/dpkg/info/base.list")
    assert "#!/bin/sh" in debugfs("cat /var/lib/dpkg/info/same:arm64.postinst")


def test_an_initrd_loads_what_a_module_needs_before_it(tmp_path: Path) -> None:
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"a program")
    folder = modules(tmp_path)
    assert initrd.order(folder, ["virtio-blk", "ext4", "built_in"]) == [
        "kernel/drivers/virtio_blk.ko",
        "kernel/fs/jbd2.ko",
        "kernel/lib/crc16.ko",
        "kernel/fs/ext4.ko",
    ]
    initrd.make(tmp_path / "initrd", busybox, folder, ["ext4"])
    if shutil.which("cpio") is None:
        pytest.skip("no cpio to read it with")
    data = gzip.decompress((tmp_path / "initrd").read_bytes())
    subprocess.run(["cpio", "-idm", "--quiet"], input=data, cwd=tmp_path, check=True)
    assert (tmp_path / "bin/busybox").read_bytes() == b"a program" and (tmp_path / "init").stat().st_mode & 0o111
    assert (tmp_path / "modules/order").read_text().split() == ["jbd2.ko", "crc16.ko", "ext4.ko"]
    assert (tmp_path / "modules/ext4.ko").read_bytes() == b"fs/ext4.ko"


def test_an_initrd_has_modules_as_they_are_loaded(tmp_path: Path) -> None:
    """Of trixie's kernel they are compressed."""
    folder = tmp_path / "lib/modules/6.12"
    folder.mkdir(parents=True)
    (folder / "ext4.ko.xz").write_bytes(lzma.compress(b"ext4, as it is loaded"))
    (folder / "tun.ko").write_bytes(b"tun")
    (folder / "modules.dep").write_text("ext4.ko.xz:\ntun.ko:\n")
    (tmp_path / "busybox").write_bytes(b"a program")
    initrd.make(tmp_path / "initrd", tmp_path / "busybox", folder, ["ext4", "tun"])
    data = gzip.decompress((tmp_path / "initrd").read_bytes())
    assert b"modules/ext4.ko\0" in data and b"ext4, as it is loaded" in data
    assert b"ext4.ko\ntun.ko" in data and b".xz" not in data


@needs
@pytest.mark.parametrize("folder", ["lib", "usr/lib"])
def test_a_kernel_is_found_with_its_modules_where_debian_puts_them(tmp_path: Path, folder: str) -> None:
    """Below /lib up to bookworm, below /usr/lib since trixie."""
    files = {"boot/vmlinuz-6.12-cloud": "a kernel", f"{folder}/modules/6.12-cloud/kernel/x.ko": "x"}
    package = archive(tmp_path, "linux-image-cloud", files)
    (tmp_path / "work").mkdir()
    found, version = building._kernel(package, tmp_path / "work", tmp_path / "kernel")
    assert (tmp_path / "kernel").read_text() == "a kernel" and version == "6.12-cloud"
    assert (found / "kernel/x.ko").read_text() == "x" and (found / "modules.dep").exists()


@needs
def test_what_a_guest_does_without_is_masked_and_settings_are_put_in(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc/systemd/system").mkdir(parents=True)
    (root / "etc/hostname").write_text("debian\n")
    (root / "etc/systemd/system/fstrim.timer").symlink_to("/lib/systemd/system/fstrim.timer")
    image = tmp_path / "root.img"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", root, image, "8M"], check=True)
    trim.trim(image, OVERLAY)

    def debugfs(command: str) -> str:
        return subprocess.run(["debugfs", "-R", command, image], check=True, capture_output=True).stdout.decode()

    assert debugfs("cat /etc/hostname") == (OVERLAY / "etc/hostname").read_text() == "hil\n"
    about = debugfs("stat /etc/systemd/network/10-uplink.network")
    assert "Mode:  0644" in about and "User:     0   Group:     0" in about
    for path in ("system/fstrim.timer", "system-generators/systemd-getty-generator"):
        assert 'Fast link dest: "/dev/null"' in debugfs(f"stat /etc/systemd/{path}")
    subprocess.run(["e2fsck", "-fn", image], check=True, capture_output=True)
    (tmp_path / "large").write_bytes(b"x" * (9 << 20))
    with pytest.raises(BuildFailed, match="/etc/large: not as written"):
        trim.put(image, {"/etc/large": tmp_path / "large"}, {})  # debugfs ends well all the same


def test_each_machine_is_another_recipe_and_has_a_board() -> None:
    assert len({recipe(machine) for machine in MACHINES}) == len(MACHINES)
    assert BY_NAME["arm64"].program == "qemu-system-aarch64"
    assert BY_NAME["mipsel"].options[:2] == ("-M", "malta")
    assert "-smp" not in BY_NAME["raspi3b"].options  # QEMU refuses another number than its own


def test_a_guest_is_of_one_release_of_debian_and_its_hash_says_so() -> None:
    ours = BY_NAME["arm64"]
    assert (ours.release, BY_NAME["mipsel"].release, BY_NAME["arm64-trixie"].release) == (BOOKWORM, BOOKWORM, TRIXIE)
    others = [ours._replace(release=TRIXIE), ours._replace(kernel_release=BULLSEYE), ours._replace(older=("nftables",))]
    assert len({recipe(machine) for machine in (ours, *others)}) == 4
    names = [machine.name for machine in MACHINES]
    assert len(set(names)) == len(names)
    assert not {"arm64-trixie", "arm64-5.10"} & set(cli_suites.MATRIX.split(","))
    asked = cli_suites.asked("arm64-trixie,arm64-5.10", 2)
    assert [machine.name for machine in asked] == ["arm64-trixie", "arm64-5.10"]


def test_packages_of_each_release_are_kept_apart(tmp_path: Path) -> None:
    folders = {release: Archive(tmp_path, release, "arm64").folder for release in (BOOKWORM, TRIXIE)}
    assert len(set(folders.values())) == 2
    for release, folder in folders.items():
        assert f" {release} main\n" in (folder / "etc/sources.list").read_text()
        assert f'Dir::State::lists "{folder}/lists"' in (folder / "apt.conf").read_text()


class FakeArchive(Archive):
    """Says where each package would be from."""

    def update(self) -> None:
        (self.folder / "updated").touch()

    def closure(self, names: object) -> list[Path]:
        known = ("libc6_1_arm64", "libnftables1_2_arm64", "nftables_2_arm64", "nftables-more_2_all")
        return [self.folder / f"{name}.deb" for name in known]

    def one(self, name: str) -> Path:
        return self.folder / f"{name}_0_arm64.deb"


def test_of_an_older_release_come_the_kernel_and_what_speaks_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "Archive", FakeArchive)

    def told(name: str) -> list[str]:
        archives, kernel, busybox = building._fetched(BY_NAME[name], tmp_path)
        return [str(path.relative_to(tmp_path)) for path in (*archives, kernel, busybox)]

    older, ours = "apt-bullseye-arm64", "apt-bookworm-arm64"
    assert told("arm64-5.10") == [
        f"{ours}/libc6_1_arm64.deb",
        f"{ours}/nftables-more_2_all.deb",
        f"{older}/nftables_0_arm64.deb",
        f"{older}/libnftables1_0_arm64.deb",
        f"{older}/linux-image-cloud-arm64_0_arm64.deb",
        f"{ours}/busybox-static_0_arm64.deb",
    ]
    assert (tmp_path / older / "updated").exists()
    assert {Path(each).parent.name for each in told("arm64-trixie")} == {"apt-trixie-arm64"}


def test_the_list_says_which_debian_a_machine_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "--rigs", str(tmp_path)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert "  bookworm  " in lines["arm64"] and "  trixie  " in lines["arm64-trixie"]
    assert "  bookworm, kernel of bullseye  " in lines["arm64-5.10"]
    assert cli.main(["list", "--rigs", str(tmp_path), "--json"]) == 0
    told = {each["machine"]: each for each in json.loads(capsys.readouterr().out)["machines"]}
    assert list(told) == [machine.name for machine in MACHINES]
    assert (told["arm64-5.10"]["release"], told["arm64-5.10"]["kernel_release"]) == (BOOKWORM, BULLSEYE)
    assert (told["arm64"]["release"], told["arm64"]["kernel_release"]) == (BOOKWORM, BOOKWORM)


def test_the_manual_has_a_row_for_each_machine() -> None:
    rows = [line.split("|") for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    about = {row[1].strip(" `"): row for row in rows}
    for machine in MACHINES:
        assert machine.release in about[machine.name][3] and machine.kernel in about[machine.name][3], machine.name
        assert machine.kernel_release in about[machine.name][3], machine.name


def boot_of(folder: Path) -> Boot:
    paths = [folder / name for name in ("kernel", "initrd", "root.img")]
    for path in paths:
        path.write_bytes(b"")
    return Boot(paths[0], paths[1], paths[2])


def test_a_missing_image_is_said_before_anything_is_started(tmp_path: Path) -> None:
    boot = boot_of(tmp_path)
    boot.initrd.unlink()
    guest = Guest("pump", BY_NAME["mipsel"], boot, tmp_path / "pump")
    with pytest.raises(MissingImage, match=r"pump: .*/initrd is not there.*hil build mipsel"):
        guest.power_on()
    with pytest.raises(MissingImage, match="tree"):
        Guest("gate", BY_NAME["raspi3b"], boot_of(tmp_path)._replace(tree=tmp_path / "tree"), tmp_path).power_on()
    assert not guest.running and not (tmp_path / "pump").exists()


def test_a_machine_that_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingProgram, match="qemu-system-mipsel"):
        build(BY_NAME["mipsel"], tmp_path / "store")
    guest = Guest("pump", BY_NAME["mipsel"], boot_of(tmp_path), tmp_path / "pump")
    with pytest.raises(MissingProgram, match="qemu-system-mipsel"):
        guest.power_on()
    assert not guest.running


def test_a_machine_with_a_card_gets_no_virtio(tmp_path: Path) -> None:
    boot = boot_of(tmp_path)._replace(tree=tmp_path / "tree")
    guest = Guest("pi", BY_NAME["raspi3b"], boot, tmp_path, ["user"])
    words = guest._words(tmp_path / "console.sock", guest._image("unsafe"), "")
    assert not [word for word in words if word.startswith("virtio")]
    assert f"file={boot.root},format=raw,cache=unsafe,if=sd" in words and words[words.index("-dtb") + 1] == str(
        boot.tree
    )
    assert words[-1].startswith("usb-net,netdev=net0,mac=52:54:00:") and "root=/dev/mmcblk0" in " ".join(words)


def test_a_report_has_what_was_said_of_what_failed(tmp_path: Path) -> None:
    said: list[str] = []
    report = Report("trial", said.append)
    with report.step("one") as step:
        step["said"] = "well"
    with pytest.raises(HilError), report.step("two"):
        raise CommandFailed("it ended with 3")
    report.figure("round trip", 1.23456, "ms", "pump")
    told = json.loads(report.write(tmp_path).read_text())
    assert [(step["name"], step["outcome"]) for step in told["steps"]] == [("one", "passed"), ("two", "failed")]
    assert told["steps"][1]["error"] == "command-failed" and told["passed"] is False
    (figure,) = told["figures"]
    assert (figure["what"], figure["guest"], figure["value"], figure["unit"]) == ("round trip", "pump", 1.235, "ms")
    text = (tmp_path / "report.txt").read_text()
    assert text.startswith("trial: FAILED") and "it ended with 3" in text
    assert [line.split()[0] for line in said] == ["✓", "✗"]
    well = Report("trial", said.append)
    with well.step("one"):
        pass
    assert well.passed


@pytest.mark.skipif(shutil.which("qemu-system-aarch64") is None, reason="no QEMU")
def test_qmp_asks_a_machine_that_stands_still(tmp_path: Path) -> None:
    path = tmp_path / "qmp.sock"
    words = ["qemu-system-aarch64", "-M", "none", "-S", "-nodefaults", "-display", "none"]
    machine = subprocess.Popen([*words, "-qmp", f"unix:{path},server=on,wait=off"])
    try:
        session = None
        while session is None and machine.poll() is None:
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):  # bound, and not yet listening
                session = Qmp("guest", path)
        assert session is not None
        assert session.ask("query-status")["running"] is False
        with pytest.raises(CommandFailed, match="no-such-thing"):
            session.ask("no-such-thing")
        machine.kill()
        machine.wait()
        with pytest.raises(GuestDied):
            session.ask("query-status")
        session.close()
    finally:
        machine.kill()
        machine.wait()
