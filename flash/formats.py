"""How settings get into an image: one class a format; each looks first whether the image understands it.

A format that is not found in the image is refused with what was looked for. Nothing is guessed, and nothing is tried
after another failed: an image that ignores what was written into it would be found out in the field.
"""

from __future__ import annotations

import hashlib
import re
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from typing import Protocol

from flash.bytecode import byte_code
from flash.direct import agent_in_place, check_agent, need_packages, need_python, systemd_files
from flash.errors import FlashError
from flash.ext4 import Entry, Ext4
from flash.fat import Fat
from flash.image import Image
from flash.payload import SEED, Payload

CMDLINE_BYTES_MAX = 2_048
_SYSTEMD_RUN = " systemd.run={path} systemd.run_success_action=reboot systemd.unit=kernel-command-line.target"
_LISTED = re.compile(r"^datasource_list:\s*(\[[^\]]*\]|(?:\n\s*-[^\n]*)*)", re.MULTILINE)
_SEEDFROM = re.compile(r"""^\s*seedfrom:\s*["']?(?:file://)?(/boot(?:/firmware)?)/?["']?\s*$""", re.MULTILINE)
_FS_LABEL = re.compile(r"""^\s*fs_label:\s*["']?([\w-]+)["']?\s*$""", re.MULTILINE)
_UNFINISHED = "This image has been through edgeflash, or another tool, already: take a new one."


class Format(Protocol):
    """`name` as boards call it."""

    name: str

    def missing(self, image: Image) -> str:
        """Why the image does not understand this format; empty when it does."""

    def apply(self, image: Image, payload: Payload) -> list[str]:
        """Write; returns what was written where, for the report."""


class CloudInit:
    """NoCloud (cloud-init's documentation, "NoCloud"): files on a volume cidata, on the boot partition that the image's
    cloud-init is told to read, or in the seed directory of the root file system."""

    name = "cloud-init-nocloud"
    _SEED_DIR = "/var/lib/cloud/seed/nocloud"
    _STAGE = "/var/lib/edgeflash"

    def missing(self, image: Image) -> str:
        if image.root is None:
            return "no ext4 root file system is in it, so cloud-init cannot be looked for"
        if not image.root.exists("/usr/bin/cloud-init") or not image.root.exists("/etc/cloud/cloud.cfg"):
            return "cloud-init is not in it (/usr/bin/cloud-init and /etc/cloud/cloud.cfg)"
        if image.root.exists("/etc/cloud/cloud-init.disabled"):
            return "cloud-init is switched off in it (/etc/cloud/cloud-init.disabled)"
        listed = [match[1] for match in _LISTED.finditer(self._config(image))]
        if listed and "NoCloud" not in listed[-1]:
            return "its cloud-init does not read NoCloud (datasource_list in /etc/cloud)"
        return ""

    def apply(self, image: Image, payload: Payload) -> list[str]:
        assert image.root is not None
        need_python(image, payload)
        seeded, digest = payload.seed(), hashlib.sha256(payload.token.encode()).hexdigest()[:24]
        meta = f"instance-id: edge-{digest}\n" + (f"local-hostname: {payload.hostname}\n" if payload.hostname else "")
        files = {"meta-data": meta.encode()}
        if payload.network_config:
            files["network-config"] = payload.network_config
        fat, where, folder = self._volume(image)
        if fat is None:
            before = image.root.read(f"{self._SEED_DIR}/user-data")
            files["user-data"] = _user_data(f"sh {self._STAGE}/install.sh", before)
            entries = {f"{self._SEED_DIR}/{name}": Entry(data, 0o600) for name, data in files.items()}
            entries |= {f"{self._STAGE}/{name}": Entry(data, 0o600) for name, data in seeded.items()}
            _new(image.root, self._STAGE)
            image.root.write(entries, {self._STAGE: 0o700})
            return [f"{self._SEED_DIR}: {', '.join(sorted(files))}", f"{self._STAGE}: {', '.join(sorted(seeded))}"]
        start = f"sh {folder}/{SEED}/install.sh"
        if fat is image.cidata:
            find = "$(blkid -L cidata || blkid -L CIDATA)"
            start = f'mkdir -p {folder} && mount "{find}" {folder} && {start} && umount {folder}'
        files["user-data"] = _user_data(start, fat.read("user-data"))
        _new(fat, SEED)
        fat.write(files | {f"{SEED}/{name}": data for name, data in seeded.items()})
        return [f"{where}: {', '.join(sorted(files))}, {SEED}/{{{','.join(sorted(seeded))}}}"]

    def _volume(self, image: Image) -> tuple[Fat | None, str, str]:
        """The volume that cloud-init reads, what to call it, and where the running system has it."""
        if image.cidata is not None:
            return image.cidata, "the volume cidata", "/run/edgeflash"
        config = self._config(image)
        labels = {match[1].lower() for match in _FS_LABEL.finditer(config)}
        if image.boot is not None and (_SEEDFROM.search(config) or image.boot_label.lower() in labels):
            return image.boot, "the boot partition", image.boot_mount()
        return None, "", ""

    @staticmethod
    def _config(image: Image) -> str:
        """Of all files in the order in which cloud-init reads them."""
        assert image.root is not None
        names = [f"/etc/cloud/cloud.cfg.d/{name}" for name in image.root.names("/etc/cloud/cloud.cfg.d")]
        return "\n".join(image.text(path) for path in ["/etc/cloud/cloud.cfg", *names] if path.endswith(".cfg"))


class RpiPreseed:
    """rpi-preseed.toml on the boot partition, read by the package rpi-preseed (its schema/rpi-preseed.schema)."""

    name = "rpi-preseed"
    _FILE = "rpi-preseed.toml"

    def missing(self, image: Image) -> str:
        if image.root is None or image.boot is None:
            return "there is no boot partition and ext4 root file system in it"
        if not image.root.exists("/usr/lib/rpi-preseed/rpi-preseed"):
            return "the package rpi-preseed is not in it (/usr/lib/rpi-preseed/rpi-preseed)"
        if not re.search(r"^runcmd\.early\s", image.text("/usr/share/rpi-preseed/rpi-preseed.schema"), re.MULTILINE):
            return "its rpi-preseed runs no commands (no runcmd.early in its schema)"
        return ""

    def apply(self, image: Image, payload: Payload) -> list[str]:
        assert image.boot is not None
        need_python(image, payload)
        need_packages(image, payload)
        _new(image.boot, SEED, self._FILE)
        seeded = payload.seed()
        lines = ['config_version = "1.0"', ""]
        if payload.hostname:
            lines += ["[system]", f'hostname = "{payload.hostname}"', ""]
        lines += ["[runcmd]", f'early = ["sh {image.boot_mount()}/{SEED}/install.sh"]', "early_cmd_timeout = 120", ""]
        image.boot.write(
            {f"{SEED}/{name}": data for name, data in seeded.items()} | {self._FILE: "\n".join(lines).encode()}
        )
        return [f"the boot partition: {self._FILE}, {SEED}/{{{','.join(sorted(seeded))}}}"]


class RpiFirstrun:
    """firstrun.sh on the boot partition, started by systemd.run= of cmdline.txt (systemd-run-generator(8)); the script
    takes both away and the device starts anew."""

    name = "rpi-firstrun"
    _FILE = "firstrun.sh"

    def missing(self, image: Image) -> str:
        if image.root is None or image.boot is None or not image.boot.exists("cmdline.txt"):
            return "there is no boot partition with a cmdline.txt and ext4 root file system in it"
        if not any(
            image.root.exists(f"{lib}/systemd/system-generators/systemd-run-generator") for lib in ("/usr/lib", "/lib")
        ):
            return "its systemd does not know systemd.run= (no systemd-run-generator)"
        if image.root.exists("/usr/bin/cloud-init") or image.root.exists("/usr/lib/rpi-preseed/rpi-preseed"):
            return "it is set up by cloud-init or rpi-preseed, and not by a firstrun.sh"
        return ""

    def apply(self, image: Image, payload: Payload) -> list[str]:
        assert image.boot is not None
        need_python(image, payload)
        need_packages(image, payload)
        _new(image.boot, SEED, self._FILE)
        mount = image.boot_mount()
        line = (image.boot.read("cmdline.txt") or b"").decode("ascii", "replace").rstrip("\r\n \0")
        if "\n" in line or not line:
            raise FlashError("cmdline.txt of the image is not one line. The image is damaged: fetch it again.")
        if "systemd.run" in line:
            raise FlashError(f"cmdline.txt of the image has a systemd.run= already. {_UNFINISHED}")
        line += _SYSTEMD_RUN.format(path=f"{mount}/{self._FILE}")
        if len(line) > CMDLINE_BYTES_MAX:
            raise FlashError(
                f"cmdline.txt would have {len(line)} characters, and the kernel takes {CMDLINE_BYTES_MAX}."
            )
        seeded = payload.seed()
        files = {f"{SEED}/{name}": data for name, data in seeded.items()}
        image.boot.write(files | {self._FILE: _firstrun(mount)})
        # Last: with it the image is complete
        image.boot.write({"cmdline.txt": f"{line}\n".encode()})
        return [f"the boot partition: {self._FILE}, cmdline.txt, {SEED}/{{{','.join(sorted(seeded))}}}"]


class UciDefaults:
    """A script in /etc/uci-defaults of an ext4 root, run at each start until it ends with 0, then deleted (OpenWrt)."""

    name = "uci-defaults"
    _SCRIPT = "/etc/uci-defaults/99-edgeagent"

    def missing(self, image: Image) -> str:
        if image.root is None and image.has_squashfs:
            return (
                "its root is a squashfs, which cannot be written to; what a sysupgrade keeps is not guessed. "
                "Take the ext4 image of the same target, or build one: edgeflash image --overlay DIR, and OpenWrt's "
                "image builder with FILES=DIR"
            )
        if image.root is None or not image.root.exists("/etc/openwrt_release"):
            return "it is no OpenWrt (no ext4 with /etc/openwrt_release)"
        if not image.root.exists("/etc/uci-defaults"):
            return "there is no /etc/uci-defaults in it"
        return ""

    def apply(self, image: Image, payload: Payload) -> list[str]:
        assert image.root is not None
        need_python(image, payload)
        if image.root.exists(self._SCRIPT):
            raise FlashError(f"{self._SCRIPT} is in the image already. {_UNFINISHED}")
        entries = self.files(payload)
        image.root.write(entries, payload.directories())
        return sorted(entries)

    def files(self, payload: Payload) -> dict[str, Entry]:
        """Also what OpenWrt's image builder takes as FILES."""
        entries = payload.files() | {self._SCRIPT: Entry(payload.uci_defaults(), 0o755)}
        if payload.agent is not None and payload.agent.kind in ("ipk", "apk"):
            entries[f"/usr/share/edgeagent/{payload.agent.file_name}"] = Entry(payload.agent.data)
        return entries


class Direct:
    """Everything at its final place in an ext4 root with systemd: for root file systems built for the board."""

    name = "direct"

    def missing(self, image: Image) -> str:
        if image.root is None:
            return "no ext4 root file system is in it"
        if not any(image.root.exists(path) for path in ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")):
            return "systemd is not in it, and nothing else would start the agent"
        return ""

    def apply(self, image: Image, payload: Payload) -> list[str]:
        assert image.root is not None
        need_python(image, payload)
        need_packages(image, payload)
        # In this order: the settings are ours, and not those that a package has for a start
        entries = agent_in_place(image, payload) | payload.files()
        entries |= byte_code(image, entries)
        entries |= systemd_files(image, payload, entries)
        image.root.write(entries, payload.directories())
        return sorted(entries)


FORMATS: tuple[Format, ...] = (CloudInit(), RpiPreseed(), RpiFirstrun(), UciDefaults(), Direct())


def get(name: str) -> Format:
    """FlashError for a name that is none."""
    for each in FORMATS:
        if each.name == name:
            return each
    raise FlashError(f"{name[:40]!r}: no such init format. Known are {', '.join(each.name for each in FORMATS)}.")


def apply(chosen: Format, image: Image, payload: Payload) -> list[str]:
    """Look at everything first, then write; returns what was written."""
    if why := chosen.missing(image):
        raise FlashError(f"the image cannot be set up by {chosen.name}: {why}.")
    image.check_fits(payload.board, payload.system)
    image.check_new()
    check_agent(image, payload)
    return chosen.apply(image, payload)


def _new(place: Fat | Ext4, *names: str) -> None:
    for name in names:
        if place.exists(name):
            raise FlashError(f"{name} is in the image already. {_UNFINISHED}")


def _user_data(start: str, before: bytes | None) -> bytes:
    """cloud-config that runs `start` until it works; with what the image's own user-data say, if they do."""
    command = f"n=0; until {start}; do n=$((n+1)); [ $n -lt 20 ] || exit 1; sleep 15; done"
    ours = f"#cloud-config\nruncmd:\n  - [sh, -c, '{command}']\n"
    old = (before or b"").decode("utf-8", "replace")
    if not [line for line in old.splitlines() if line.strip() and not line.startswith("#")]:
        return ours.encode()
    if not old.startswith("#cloud-config"):
        raise FlashError(
            "the user-data in the image are no cloud-config, and cannot be added to. Take an image without."
        )
    # Lists of both are run, and what the image says stands
    ours += "merge_how:\n  - {name: list, settings: [append]}\n  - {name: dict, settings: [no_replace, recurse_list]}\n"
    both = MIMEMultipart(boundary="==edgeflash==")
    both.attach(MIMEText(old, "cloud-config", "utf-8"))
    both.attach(MIMEText(ours, "cloud-config", "utf-8"))
    return both.as_bytes()


def _firstrun(mount: str) -> bytes:
    # What fails is kept in the log, and the board starts all the same: one that starts anew for ever cannot be mended
    return (
        "#!/bin/sh\n"
        "# Made by edgeflash: runs once, then takes itself out of the kernel's command line.\n"
        f"sh {mount}/{SEED}/install.sh >{mount}/{SEED}/install.log 2>&1\n"
        f"sed -i 's| systemd\\.run[^ ]*||g; s| systemd\\.unit=kernel-command-line\\.target||' {mount}/cmdline.txt\n"
        f"rm -f {mount}/{RpiFirstrun._FILE}\n"
        "sync\n"
        "exit 0\n"
    ).encode()
