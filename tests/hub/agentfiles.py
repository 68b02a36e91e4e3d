"""Files as `tools/package zipapp` makes them, but small."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path


def make(
    directory: Path, version: str = "0.2.0", abi: str = "any", *, body: str = "print('new')", **more: object
) -> Path:
    path = directory / f"{version}-{abi}.pyz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("__main__.py", body)
        archive.writestr("manifest.json", json.dumps({"version": version, "abi": abi, **more}))
    return path
