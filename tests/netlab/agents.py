"""Agents as one file, made of this tree: as it is, and broken in the ways that an update may be."""

from __future__ import annotations

import zipfile
from io import BytesIO
from pathlib import Path

import edgeagent

PACKAGE = Path(edgeagent.__file__).parent
# What is put in place of a file's text: the module, its beginning, and what stands there instead.
BROKEN = {
    "exits": ("agentd.py", "def main(", "raise SystemExit(1)\n\n\ndef main("),
    "lacks a module": ("agentd.py", "import os\n", "import os\nimport a_module_that_is_not_there\n"),
    "hangs": ("daemon.py", "    def loop(self) -> None:", "    def loop(self) -> None:\n        while True:\n            pass\n\n    def was(self) -> None:"),
    "is deaf": ("membership.py", "    def _connect(self, now: float) -> None:", "    def _connect(self, now: float) -> None:\n        self.node.client.next_connect_at = now + 5\n        return\n\n    def was(self, now: float) -> None:"),
}


def zipapp(version: str, broken: str = "") -> bytes:
    """Compressed, as packages have it; the C library lies in it where one was built here."""
    name, before, after = BROKEN[broken] if broken else ("", "", "")
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(PACKAGE.rglob("*")):
            inside = path.relative_to(PACKAGE)
            if path.suffix == ".py" or path.name == "libedgefast.so":
                data = path.read_bytes()
                if str(inside) == "version.py":
                    data = data.replace(f'"{edgeagent_version()}"'.encode(), f'"{version}"'.encode())
                elif str(inside) == name:
                    assert before.encode() in data
                    data = data.replace(before.encode(), after.encode(), 1)
                archive.writestr(f"edgeagent/{inside}", data)
    return buffer.getvalue()


def edgeagent_version() -> str:
    from edgeagent.version import VERSION

    return VERSION
