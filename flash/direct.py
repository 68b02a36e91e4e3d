"""What of the agent and its surroundings goes straight into a root file system, and what has to be there for it."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from flash.agent import depends, fields
from flash.errors import FlashError
from flash.ext4 import Entry
from flash.image import Image
from flash.payload import Payload

PYTHON_MIN = 11  # 3.11
_UNIT = "/etc/systemd/system/edgeagent.service"
_WANTS = "/etc/systemd/system/multi-user.target.wants/edgeagent.service"
_DPKG = "/var/lib/dpkg"
_HOSTS = re.compile(r"^127\.0\.1\.1\s.*\n?", re.MULTILINE)


def check_agent(image: Image, payload: Payload) -> None:
    """FlashError when the package is not one for this system, or there is no agent at all."""
    agent, system = payload.agent, payload.system
    if agent is None:
        if image.root is None or not image.root.exists("/usr/bin/edgeagent"):
            raise FlashError("there is no agent in the image. Give one: --agent FILE, as tools/package makes them.")
        return
    if agent.kind == "zipapp":
        return
    wanted = ("ipk", "apk") if payload.openwrt else ("deb",)
    if agent.kind not in wanted or (system.package not in ("none", agent.kind)):
        raise FlashError(
            f"{agent.path}: is a .{agent.kind}, and {system.name} on {payload.board.id} takes "
            f".{system.package if system.package != 'none' else wanted[0]} or a zipapp."
        )
    arch = agent.control.get("architecture", "")
    if arch and arch not in ("all", "noarch") and system.package_arch and arch != system.package_arch:
        raise FlashError(
            f"{agent.path}: is for {arch}, and {payload.board.id} is {system.package_arch}. "
            "Take the package of that name."
        )


def need_python(image: Image, payload: Payload) -> None:
    """A zipapp brings everything but Python. FlashError when there is none in the image, or too old a one."""
    assert image.root is not None
    if payload.agent is None or payload.agent.kind != "zipapp":
        return
    name = PurePosixPath(image.root.resolve("/usr/bin/python3")).name
    match = re.fullmatch(r"python3\.(\d+)", name)
    if match is None or not image.root.exists("/usr/bin/python3"):
        raise FlashError("there is no Python 3 in the image (/usr/bin/python3). Take an image with it, or a package.")
    if int(match[1]) < PYTHON_MIN:
        raise FlashError(f"the image has Python 3.{match[1]}, and the agent needs 3.{PYTHON_MIN}. Take a newer image.")


def need_packages(image: Image, payload: Payload) -> None:
    """Where a .deb is installed without a network, what it depends on has to be in the image."""
    assert image.root is not None
    if payload.agent is None or payload.agent.kind != "deb":
        return
    there = {"edgeagent"}
    for paragraph in image.text(f"{_DPKG}/status").split("\n\n"):
        about = fields(paragraph.encode())
        if about.get("status", "").endswith(" installed"):
            there.add(about.get("package", ""))
            there |= {name.split("(")[0].strip() for name in about.get("provides", "").split(",")}
    missing = [" or ".join(names) for names in depends(payload.agent.control) if not there & set(names)]
    if missing:
        raise FlashError(
            f"{payload.agent.path}: needs {', '.join(missing)}, not in the image, and there is no network when it is "
            "installed. Build the image with it, or give the zipapp."
        )


def agent_in_place(image: Image, payload: Payload) -> dict[str, Entry]:
    """The files of a .deb, and dpkg's record of it, as if dpkg had unpacked it. Its scripts are not run."""
    agent = payload.agent
    if agent is None or agent.kind != "deb":
        return {}
    files, control = agent.files(), agent.control_files()
    name = agent.control.get("package", "edgeagent")
    status = image.text(f"{_DPKG}/status")
    if re.search(rf"^Package: {re.escape(name)}$", status, re.MULTILINE):
        raise FlashError(f"the package {name} is in the image already. Leave --agent out, or take another image.")
    if status:
        stanza = control["control"].decode("utf-8", "replace").strip().split("\n\n")[0]
        head, _, rest = stanza.partition("\n")
        status = f"{status.rstrip()}\n\n{head}\nStatus: install ok installed\n{rest}\n\n"
        folders = {str(parent) for path in files for parent in PurePosixPath(path).parents if str(parent) != "/"}
        listed = "".join(f"{path}\n" for path in ["/.", *sorted(folders | set(files))])
        files[f"{_DPKG}/status"] = Entry(status.encode())
        files[f"{_DPKG}/info/{name}.list"] = Entry(listed.encode())
        for file, data in control.items():
            if file != "control":
                mode = 0o755 if file in ("preinst", "postinst", "prerm", "postrm", "config") else 0o644
                files[f"{_DPKG}/info/{name}.{file}"] = Entry(data, mode)
    return files


def systemd_files(image: Image, payload: Payload, entries: dict[str, Entry]) -> dict[str, Entry]:
    """The service switched on; the host's name; and a machine id that each device makes for itself."""
    assert image.root is not None
    found = {}
    unit = next((path for path in entries if path.endswith("/system/edgeagent.service")), _UNIT)
    if payload.agent is None:
        places = (_UNIT, "/usr/lib/systemd/system/edgeagent.service", "/lib/systemd/system/edgeagent.service")
        unit = next((path for path in places if image.root.exists(path)), "")
        if not unit:
            raise FlashError("there is an agent in the image and no service for it. Give one: --agent FILE.")
    found[_WANTS] = Entry(link=unit, mode=0o777)
    if payload.hostname:
        found["/etc/hostname"] = Entry(f"{payload.hostname}\n".encode())
        hosts = _HOSTS.sub("", image.text("/etc/hosts") or "127.0.0.1\tlocalhost\n")
        found["/etc/hosts"] = Entry(f"{hosts.rstrip()}\n127.0.1.1\t{payload.hostname}\n".encode())
    if image.text("/etc/machine-id").strip() not in ("", "uninitialized"):
        found["/etc/machine-id"] = Entry(b"", 0o444)  # machine-id(5): empty is made anew at the first start
    return found
