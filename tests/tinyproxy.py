"""The settings of a tinyproxy: an HTTP proxy that none of us wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

PROGRAM = shutil.which("tinyproxy", path="/usr/bin:/usr/local/bin:/usr/sbin")


def write_settings(folder: Path, port: int, connect_ports: list[int], login: tuple[str, str] | None = None) -> Path:
    """For `tinyproxy -d -c FILE`, which logs to its standard output. CONNECT is allowed to these ports alone."""
    lines = [f"Port {port}", "Timeout 600", "LogLevel Info", f'PidFile "{folder}/tinyproxy.pid"', "MaxClients 64"]
    lines += [f"ConnectPort {allowed}" for allowed in connect_ports]
    if login is not None:
        lines.append(f"BasicAuth {login[0]} {login[1]}")
    file = folder / "tinyproxy.conf"
    file.write_text("\n".join(lines) + "\n")
    return file
