"""`edgeflash image`: what is in the image afterwards, by debugfs, mtools, e2fsck and sfdisk; and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import subprocess
import tomllib
from email import message_from_bytes
from pathlib import Path

import pytest

from edgeagent.io.keystore import Keystore, StateFile
from flash.cli import main
from tests.flash import kit
from tests.flash.kit import CLOUD, DEBIAN, OPENWRT, PI_BOOT, cat, cat_fat, part, tool

DIRECT = ("--init", "direct")
CLOUD_PI: kit.Files = {**DEBIAN, **CLOUD, "etc/cloud/cloud.cfg.d/99.cfg": "x:\n  seedfrom: file:///boot/firmware\n"}
PI_PRESEED: kit.Files = {
    "usr/lib/rpi-preseed/rpi-preseed": "#!/bin/sh\n",
    "usr/share/rpi-preseed/rpi-preseed.schema": "system.hostname  string  pii\nruncmd.early   array  plain\n",
}


def image(folder: Path, source: Path, *more: str, board: str = "qemu-arm64", token: str | None = None) -> int:
    """Run `edgeflash image` into out.img."""
    (folder / "t").write_text((token or kit.token()) + "\n")
    agent = () if "--agent" in more else ("--agent", str(kit.zipapp(folder)))
    out = str(folder / "out.img")
    words = [
        "image",
        str(source),
        "-o",
        out,
        "--board",
        board,
        "--token-file",
        str(folder / "t"),
        "--force",
        *agent,
        *more,
    ]
    return main(words)


def refused(
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    source: Path,
    *more: str,
    board: str = "qemu-arm64",
    token: str = "",
) -> str:
    """The one sentence that is said, with nothing left behind and the source as it was."""
    before = hashlib.sha256(source.read_bytes()).digest() if source.is_file() else b""
    assert image(folder, source, *more, board=board, token=token or None) == 1
    assert not (folder / "out.img").exists() and not (folder / "out.img.part").exists()
    assert not before or hashlib.sha256(source.read_bytes()).digest() == before
    said = capsys.readouterr().err
    assert "Traceback" not in said and (token or kit.token())[:16] not in said
    return said


def joins_with(folder: Path, state_file: bytes) -> str:
    """The token that an agent finds in its state file."""
    state = folder / "state"
    state.mkdir(mode=0o700, exist_ok=True)
    (state / "token").write_bytes(state_file)
    return (Keystore(str(state)).load(StateFile.TOKEN) or b"").decode()


def test_files_go_straight_into_a_root_file_system(tmp_path: Path) -> None:
    source = kit.ext4(tmp_path, DEBIAN)
    assert image(tmp_path, source, "--init", "direct", "--hostname", "cam-1", "--set", "dns=off") == 0
    out = tmp_path / "out.img"
    tool("e2fsck", "-fn", out)
    assert cat(out, "/usr/lib/edgeagent/edgeagent.pyz") == (tmp_path / "agent.pyz").read_bytes()
    assert b"dns = off\nhostname = cam-1\n" in cat(out, "/etc/edgeagent.conf")
    assert json.loads(cat(out, "/etc/edgeagent/board.json"))["id"] == "qemu-arm64"
    assert joins_with(tmp_path, cat(out, "/var/lib/edgeagent/token")) == kit.token()
    assert cat(out, "/etc/hosts") == b"127.0.0.1\tlocalhost\n127.0.1.1\tcam-1\n"
    assert cat(out, "/etc/machine-id") == b""
    modes = tool("debugfs", "-R", "ls -l /var/lib/edgeagent", out) + tool("debugfs", "-R", "ls -l /usr/bin", out)
    assert " 40700 (2)      0      0 " in modes and " 100600 (1)      0      0 " in modes and "100755" in modes
    link = tool("debugfs", "-R", "stat /etc/systemd/system/multi-user.target.wants/edgeagent.service", out)
    assert 'Fast link dest: "/etc/systemd/system/edgeagent.service"' in link
    assert out.stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_equal_inputs_make_equal_images_and_the_source_is_not_changed(tmp_path: Path) -> None:
    source = kit.pi_image(tmp_path, CLOUD_PI)
    before, outs = hashlib.sha256(source.read_bytes()).digest(), []
    for init in ("cloud-init-nocloud", "cloud-init-nocloud", "direct", "direct"):
        assert image(tmp_path, source, "--init", init, "--hostname", "a", board="rpi-4b") == 0
        outs.append(hashlib.sha256((tmp_path / "out.img").read_bytes()).digest())
    assert outs[0] == outs[1] and outs[2] == outs[3] and outs[0] != outs[2]
    assert hashlib.sha256(source.read_bytes()).digest() == before


def test_cloud_init_by_the_boot_partition_of_a_raspberry_pi(tmp_path: Path) -> None:
    source = kit.pi_image(tmp_path, CLOUD_PI)
    assert image(tmp_path, source, "--hostname", "cam-1", board="rpi-4b") == 0
    out = tmp_path / "out.img"
    start, _ = part(out, 1)
    assert cat_fat(out, "meta-data", start).endswith(b"local-hostname: cam-1\n")
    user_data = cat_fat(out, "user-data", start).decode()
    assert user_data.startswith("#cloud-config\nruncmd:\n") and "sh /boot/firmware/edgeagent/install.sh" in user_data
    assert "em1." not in user_data
    assert joins_with(tmp_path, cat_fat(out, "edgeagent/token", start)) == kit.token()
    assert cat_fat(out, "edgeagent/agent.pyz", start) == (tmp_path / "agent.pyz").read_bytes()
    tool("fsck.vfat", "-n", _cut(out, 1))
    assert cat(out, "/var/lib/cloud/seed/nocloud/user-data", part(out, 2)[0]) == b""


def test_cloud_init_by_a_volume_cidata_and_by_the_seed_directory(tmp_path: Path) -> None:
    root = kit.ext4(tmp_path, {**DEBIAN, **CLOUD})
    linux, efi = "0fc63daf-8483-4772-8e79-3d69d8477de4", "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
    both = kit.gpt(tmp_path / "both.img", [(efi, kit.vfat(tmp_path, {}, "CIDATA")), (linux, root)])
    assert image(tmp_path, both, board="debian-arm64") == 0
    out = tmp_path / "out.img"
    assert "blkid -L cidata" in cat_fat(out, "user-data", part(out, 1)[0]).decode()
    one = kit.gpt(tmp_path / "one.img", [(linux, root)])
    (tmp_path / "net").write_text("version: 2\n")
    assert image(tmp_path, one, "--network-config", str(tmp_path / "net"), board="debian-arm64") == 0
    start, size = part(out, 1)
    seed = "/var/lib/cloud/seed/nocloud"
    assert "sh /var/lib/edgeflash/install.sh" in cat(out, f"{seed}/user-data", start).decode()
    assert cat(out, f"{seed}/network-config", start) == b"version: 2\n"
    assert joins_with(tmp_path, cat(out, "/var/lib/edgeflash/token", start)) == kit.token()
    tool("e2fsck", "-fn", f"{out}?offset={start}")
    assert "error" not in tool("sfdisk", "--verify", out).lower().replace("no errors detected", "")
    assert size == root.stat().st_size


def test_user_data_of_the_image_are_kept(tmp_path: Path) -> None:
    boot = {**PI_BOOT, "user-data": b"#cloud-config\npackages: [vim]\n"}
    files = {**DEBIAN, **CLOUD, "etc/cloud/cloud.cfg.d/99.cfg": "x:\n  seedfrom: /boot/firmware\n"}
    assert image(tmp_path, kit.pi_image(tmp_path, files, boot), board="rpi-4b") == 0
    out = tmp_path / "out.img"
    message = message_from_bytes(cat_fat(out, "user-data", part(out, 1)[0]))
    old, ours = (each.get_payload(decode=True) for each in message.walk() if not each.is_multipart())
    assert old == b"#cloud-config\npackages: [vim]\n" and isinstance(ours, bytes) and b"merge_how" in ours


def test_rpi_preseed(tmp_path: Path) -> None:
    assert image(tmp_path, kit.pi_image(tmp_path, {**DEBIAN, **PI_PRESEED}), "--hostname", "cam-1", board="rpi-4b") == 0
    out = tmp_path / "out.img"
    asked = tomllib.loads(cat_fat(out, "rpi-preseed.toml", part(out, 1)[0]).decode())
    assert asked["system"] == {"hostname": "cam-1"} and asked["config_version"] == "1.0"
    assert asked["runcmd"]["early"] == ["sh /boot/firmware/edgeagent/install.sh"]


def test_rpi_firstrun_takes_itself_away(tmp_path: Path) -> None:
    assert image(tmp_path, kit.pi_image(tmp_path, DEBIAN), "--hostname", "cam-1", board="rpi-4b") == 0
    out = tmp_path / "out.img"
    start, _ = part(out, 1)
    line = cat_fat(out, "cmdline.txt", start)
    assert line.endswith(b" systemd.run=/boot/firmware/firstrun.sh systemd.run_success_action=reboot "
                         b"systemd.unit=kernel-command-line.target\n") and line.count(b"\n") == 1  # fmt: skip
    boot = kit.tree(tmp_path / "boot", {"cmdline.txt": line, "firstrun.sh": cat_fat(out, "firstrun.sh", start)})
    script = (boot / "firstrun.sh").read_text().replace("/boot/firmware", str(boot))
    (boot / "edgeagent").mkdir()
    (boot / "edgeagent" / "install.sh").write_text("exit 1\n")
    subprocess.run(["sh", "-c", script], check=True)
    assert (boot / "cmdline.txt").read_bytes() == PI_BOOT["cmdline.txt"] and not (boot / "firstrun.sh").exists()


def test_install_sh_puts_everything_in_its_place_twice(tmp_path: Path) -> None:
    assert (
        image(
            tmp_path, kit.pi_image(tmp_path, DEBIAN), "--hostname", "cam-1", "--set", "log-level=debug", board="rpi-4b"
        )
        == 0
    )
    start, _ = part(tmp_path / "out.img", 1)
    names = ("install.sh", "agent.pyz", "edgeagent.sh", "token", "edgeagent.conf", "board.json", "edgeagent.service")
    seed = kit.tree(
        tmp_path / "seed", {name: cat_fat(tmp_path / "out.img", f"edgeagent/{name}", start) for name in names}
    )
    root, tools = tmp_path / "fs", kit.tree(tmp_path / "tools", {"systemctl": "#!/bin/sh\n", "hostname": "#!/bin/sh\n"})
    kit.tree(root, {"etc/hosts": "127.0.0.1\tlocalhost\n127.0.1.1\told\n"})
    script = seed.joinpath("install.sh").read_text()
    for place in ("/usr/bin", "/usr/lib", "/etc/", "/var/lib"):
        script = script.replace(f" {place}", f" {root}{place}").replace(f">{place}", f">{root}{place}")
    seed.joinpath("install.sh").write_text(script)
    for each in tools.iterdir():
        each.chmod(0o755)
    for _ in range(2):
        subprocess.run(["sh", seed / "install.sh"], check=True, env={"PATH": f"{tools}:/usr/bin:/bin"})
    assert joins_with(tmp_path, (root / "var/lib/edgeagent/token").read_bytes()) == kit.token()
    assert (root / "var/lib/edgeagent/token").stat().st_mode & 0o777 == 0o600
    assert (root / "usr/bin/edgeagent").stat().st_mode & 0o777 == 0o755
    assert not (seed / "token").exists()
    assert (root / "etc/hosts").read_text() == "127.0.0.1\tlocalhost\n127.0.1.1\tcam-1\n"


def test_uci_defaults_is_idempotent(tmp_path: Path) -> None:
    source = kit.mbr(tmp_path / "wrt.img", [(0x83, kit.ext4(tmp_path, OPENWRT))])
    assert image(tmp_path, source, "--hostname", "gw", board="openwrt-x86-64") == 0
    out = tmp_path / "out.img"
    start, _ = part(out, 1)
    tool("e2fsck", "-fn", f"{out}?offset={start}")
    assert b"state-dir = /etc/edgeagent/state\n" in cat(out, "/etc/edgeagent.conf", start)
    assert joins_with(tmp_path, cat(out, "/etc/edgeagent/state/token", start)) == kit.token()
    # A stand-in for OpenWrt's commands that remembers what was done
    tools = tmp_path / "tools"
    uci = (
        '#!/bin/sh\ncase "$*" in "-q get"*) cat name 2>/dev/null;; set*) echo "${2#*=}" >name; echo set >>log;; esac\n'
    )
    init = "#!/bin/sh\ncase $1 in enabled|running) [ -e $1 ];; start) touch running;; "
    init += "enable) touch enabled; echo enable >>log;; esac\n"
    kit.tree(tools, {"uci": uci, "edgeagent": init})
    for each in tools.iterdir():
        each.chmod(0o755)
    script = cat(out, "/etc/uci-defaults/99-edgeagent", start).decode().replace("/etc/init.d", str(tools))
    for _ in range(2):
        subprocess.run(["sh", "-c", script], check=True, cwd=tmp_path, env={"PATH": f"{tools}:/usr/bin:/bin"})
    assert (tmp_path / "log").read_text() == "set\nenable\n"


def test_a_squashfs_is_refused_and_an_overlay_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    squash = tmp_path / "squash"
    squash.write_bytes(b"hsqs" + bytes(36) + (96).to_bytes(8, "little") + bytes(4 * kit.MIB - 48))
    source = kit.mbr(tmp_path / "wrt.img", [(0x83, squash)])
    said = refused(capsys, tmp_path, source, board="openwrt-x86-64")
    assert "its root is a squashfs" in said and "--overlay" in said
    files, ipk = tmp_path / "files", kit.ipk(tmp_path, "mipsel_24kc")
    words = ["image", "--overlay", str(files), "--board", "glinet-gl-mt300n-v2", "--token-file", str(tmp_path / "t")]
    assert main([*words, "--agent", str(ipk), "--hostname", "gw"]) == 0
    assert joins_with(tmp_path, (files / "etc/edgeagent/state/token").read_bytes()) == kit.token()
    assert (files / "usr/share/edgeagent/agent.ipk").read_bytes() == ipk.read_bytes()
    assert "opkg install" in (files / "etc/uci-defaults/99-edgeagent").read_text()
    assert (files / "etc/uci-defaults/99-edgeagent").stat().st_mode & 0o777 == 0o755


def test_a_deb_in_place_is_known_to_dpkg(tmp_path: Path) -> None:
    source = kit.ext4(tmp_path, DEBIAN)
    assert image(tmp_path, source, "--init", "direct", "--agent", str(kit.deb(tmp_path))) == 0
    out = tmp_path / "out.img"
    admin = tmp_path / "dpkg"
    kit.tree(admin, {"status": cat(out, "/var/lib/dpkg/status"), "updates/.x": ""})
    said = tool("dpkg-query", f"--admindir={admin}", "-W", "-f", "${Status} ${Version}", "edgeagent")
    assert said.endswith("install ok installed 0.1.0")
    assert b"/usr/bin/edgeagent\n" in cat(out, "/var/lib/dpkg/info/edgeagent.list")
    sums = tool("dpkg-query", f"--admindir={admin}", "-W", "-f", "${Conffiles}", "edgeagent")
    assert hashlib.md5(b"# of the package\n").hexdigest() in sums
    assert cat(out, "/etc/edgeagent.conf").startswith(b"# Made by edgeflash.")
    link = tool("debugfs", "-R", "stat /etc/systemd/system/multi-user.target.wants/edgeagent.service", out)
    assert 'Fast link dest: "/lib/systemd/system/edgeagent.service"' in link


def test_a_tar_and_a_directory_become_an_image(tmp_path: Path) -> None:
    root = kit.tree(tmp_path / "root", DEBIAN)
    tar = tmp_path / "root.tar.gz"
    tool("tar", "-C", root, "--owner=0", "--group=0", "-czf", tar, ".")
    outs = []
    for source in (tar, tar, root):
        assert image(tmp_path, source, "--init", "direct", "--size", "64M") == 0
        out = tmp_path / "out.img"
        assert out.stat().st_size == 64 * kit.MIB and cat(out, "/usr/lib/os-release") == b"ID=debian\n"
        tool("e2fsck", "-fn", out)
        outs.append(hashlib.sha256(out.read_bytes()).digest())
    assert outs[0] == outs[1]


@pytest.mark.parametrize("packer", [lzma.compress, gzip.compress], ids=["xz", "gz"])
def test_packed_images_and_those_that_are_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], packer: object
) -> None:
    assert callable(packer)
    whole = packer(kit.ext4(tmp_path, DEBIAN).read_bytes())
    source = tmp_path / "image.packed"
    source.write_bytes(whole)
    assert image(tmp_path, source, "--init", "direct") == 0
    (tmp_path / "out.img").unlink()
    for damaged in (whole[: len(whole) // 2], whole[:-3], whole[:5000] + b"\xff\x00\xff" + whole[5003:]):
        source.write_bytes(damaged)
        assert "is damaged or cut short" in refused(capsys, tmp_path, source, "--init", "direct")


def test_openwrt_puts_metadata_behind_its_gzip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "wrt.img.gz"
    packed = gzip.compress(kit.mbr(tmp_path / "wrt.img", [(0x83, kit.ext4(tmp_path, OPENWRT))]).read_bytes())
    source.write_bytes(packed + b'{"supported_devices": []}' + b"FWx0" + bytes(12))
    assert image(tmp_path, source, board="openwrt-x86-64") == 0
    (tmp_path / "out.img").unlink()
    source.write_bytes(packed + b"rubbish that is long enough")
    assert "behind its end is something else" in refused(capsys, tmp_path, source, board="openwrt-x86-64")


@pytest.mark.parametrize(
    ("files", "more", "board", "said"),
    [
        (DEBIAN, (), "qemu-arm64", "cloud-init is not in it"),
        (DEBIAN, (), "openwrt-x86-64", "it is no OpenWrt"),
        (DEBIAN, ("--init", "kickstart"), "qemu-arm64", "'kickstart': no such init format"),
        (DEBIAN, ("--init", "uci-defaults"), "qemu-arm64", "qemu-arm64 takes cloud-init-nocloud, direct"),
        ({**DEBIAN, "usr/bin/dash": kit.elf(62)}, DIRECT, "qemu-arm64",
         "in the image is for x86-64 (64 bits, little-endian), and qemu-arm64 runs aarch64-glibc"),
        ({**DEBIAN, "usr/lib/ld-musl-aarch64.so.1": b""}, DIRECT, "qemu-arm64", "C library is musl"),
        ({**DEBIAN, "usr/bin/python3": "-> python3.9", "usr/bin/python3.9": b""}, DIRECT, "qemu-arm64",
         "the image has Python 3.9, and the agent needs 3.11"),
        ({**DEBIAN, "var/lib/edgeagent/identity": b"x"}, DIRECT, "qemu-arm64",
         "every copy would be the same device"),
        ({**DEBIAN, **CLOUD, "etc/cloud/cloud-init.disabled": b""}, (), "qemu-arm64", "cloud-init is switched off"),
        ({**DEBIAN, **CLOUD, "etc/cloud/cloud.cfg.d/91.cfg": "datasource_list: [Ec2]\n"}, (), "qemu-arm64",
         "does not read NoCloud"),
        ({**OPENWRT, "etc/openwrt_release": "DISTRIB_TARGET='ath79/generic'\n"}, (), "openwrt-x86-64",
         "target ath79/generic"),
        (DEBIAN, (), "rpi-4b", "there is no boot partition"),
        (DEBIAN, (*DIRECT, "--set", "mtu=9"), "qemu-arm64", "setting mtu: '9': want a whole number from 1280"),
        (DEBIAN, (*DIRECT, "--set", "colour=red"), "qemu-arm64", "setting 'colour'"),
        (DEBIAN, ("--init", "direct"), "rpi-9", "'rpi-9': no such board"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: kit.Files, more: tuple[str, ...], board: str, said: str
) -> None:
    assert said in refused(capsys, tmp_path, kit.ext4(tmp_path, files), *more, board=board)


def test_an_image_of_another_raspberry_pi_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = kit.pi_image(tmp_path, DEBIAN)
    assert "none of the 1 device trees in the image is for raspberrypi,5-model-b" in refused(
        capsys, tmp_path, source, board="rpi-5"
    )
    assert "starts by the Raspberry Pi's firmware" in refused(
        capsys, tmp_path, source, "--init", "direct", board="debian-arm64"
    )


def test_packages_that_do_not_fit_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = kit.ext4(tmp_path, DEBIAN)
    for agent, said in (
        (kit.deb(tmp_path, "armhf"), "is for armhf, and qemu-arm64 is arm64"),
        (kit.deb(tmp_path, "all", "python3, python3-nacl | nacl"), "needs python3-nacl or nacl, not in the image"),
        (kit.ipk(tmp_path, "all"), "is a .ipk, and"),
        (source, "is no agent that can be put into an image"),
    ):
        assert said in refused(capsys, tmp_path, source, "--init", "direct", "--agent", str(agent))
    agent = kit.zipapp(tmp_path, kit.elf(40, wide=False))
    said = refused(capsys, tmp_path, source, "--init", "direct", "--agent", str(agent))
    assert "the C library in it is for ARM (32 bits, little-endian)" in said
    agent = kit.zipapp(tmp_path, kit.elf())
    assert image(tmp_path, source, "--init", "direct", "--agent", str(agent)) == 0
    (tmp_path / "out.img").unlink()
    bare = kit.ext4(tmp_path, {name: text for name, text in DEBIAN.items() if "sodium" not in name}, name="bare.ext4")
    assert "neither libsodium nor PyNaCl" in refused(capsys, tmp_path, bare, "--init", "direct")


def test_tokens_that_cannot_work_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = kit.ext4(tmp_path, DEBIAN)
    good = kit.token()
    for token, said in (
        (kit.token(not_after=1_700_000_000), "expired at 2023-11-14 22:13 UTC. Make another: edgehub token create"),
        (good[:-5], "is cut short or mistyped"),
        ("hello", "this is not a join token"),
        (f"{good}\n{kit.token(1)}", "holds 2 tokens"),
    ):
        assert said in refused(capsys, tmp_path, source, "--init", "direct", token=token)


def test_a_full_file_system_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = kit.ext4(tmp_path, {**DEBIAN, "fill": bytes(range(256)) * 20_000}, 8 * kit.MIB)
    assert "with 4194304 to spare" in refused(capsys, tmp_path, source, "--init", "direct")


def test_a_full_disk_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, small = kit.ext4(tmp_path, {**DEBIAN, "fill": bytes(range(256)) * 40_000}), tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", small], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no mount: {mounted.stderr.strip()}")
    try:
        assert image(tmp_path, source, *DIRECT, "-o", str(small / "out.img")) == 1
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)
    assert "the disk is full. Free some room" in capsys.readouterr().err


def test_an_image_is_not_set_up_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert image(tmp_path, kit.pi_image(tmp_path, DEBIAN), board="rpi-4b") == 0
    first = tmp_path / "first.img"
    (tmp_path / "out.img").rename(first)
    assert "has been through edgeflash" in refused(capsys, tmp_path, first, board="rpi-4b")


def _cut(image: Path, number: int) -> Path:
    start, size = part(image, number)
    with image.open("rb") as file:
        file.seek(start)
        path = image.with_name(f"part{number}")
        path.write_bytes(file.read(size))
    return path
