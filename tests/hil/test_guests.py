"""What guests are made of, without a guest: packages of the test's own, looked at by cpio, debugfs and e2fsck."""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hil.errors import BuildFailed, CommandFailed, GuestDied, HilError, MissingImage, MissingProgram
from hil.guests import initrd, trim, unpacked
from hil.guests.build import build, recipe
from hil.machines import BY_NAME, MACHINES
from hil.qemu import Boot, Guest
from hil.qmp import Qmp
from hil.report import Report

OVERLAY = Path(trim.__file__).with_name("overlay")
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
