"""Agents as one file, as they are released, and broken in the ways that an update may be."""

from __future__ import annotations

import zipfile
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import edgeagent
from edgeagent.version import VERSION
from tools.package import contents

LIBRARY = Path(edgeagent.__file__).parent / "engine/fast/libedgefast.so"
_CONNECT = "    def _connect(self, now: float) -> None:\n"
# The module, what is in it, and what stands there instead.
BROKEN = {
    "exits": ("agentd.py", "def main(", "raise SystemExit(1)\ndef main("),
    "lacks a module": ("agentd.py", "import os\n", "import os\nimport a_module_that_is_not_there\n"),
    "hangs": (
        "daemon.py",
        "    def loop(self) -> None:\n",
        "    def loop(self) -> None:\n        while True:\n            pass\n    def was(self) -> None:\n",
    ),
    "is deaf": (
        "membership.py",
        _CONNECT,
        _CONNECT + "        self.node.client.next_connect_at = now + 5\n    def was(self, now: float) -> None:\n",
    ),
}


def zipapp(version: str, broken: str = "") -> bytes:
    """What `tools/package zipapp` makes, said to be another version."""
    name, before, after = BROKEN[broken] if broken else ("", "", "")
    buffer = BytesIO()
    with zipfile.ZipFile(BytesIO(_released())) as release, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        for info in release.infolist():
            data = release.read(info)
            if info.filename == "edgeagent/version.py":
                data = data.replace(f'"{VERSION}"'.encode(), f'"{version}"'.encode())
            elif name and info.filename == f"edgeagent/{name}":
                assert data.count(before.encode()) == 1, (info.filename, before)
                data = data.replace(before.encode(), after.encode())
            made.writestr(info.filename, data)
    return buffer.getvalue()


@lru_cache
def _released() -> bytes:
    return contents.zipapp(LIBRARY if LIBRARY.exists() else None)
