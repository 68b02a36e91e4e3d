"""The file of an agent, as `tools/package` makes it: a zipapp that has a manifest of what it is."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeagent.proto.names import is_target
from hub.core.filters import version_key
from hub.core.model import HubError

FILE_BYTES_MAX = 16 << 20
MANIFEST_BYTES_MAX = 65_536
MANIFEST = "manifest.json"
_MADE_BY = "`tools/package zipapp` makes such files"


@dataclass(slots=True, frozen=True)
class AgentFile:
    data: bytes
    version: str
    abi: str

    @property
    def name(self) -> str:
        """Of the target."""
        return f"edgeagent-{self.version}-{self.abi}.pyz"


def read(path: Path, *, version: str = "", abi: str = "") -> AgentFile:
    """`version` and `abi`: what somebody thinks it is; the manifest must say the same. Raises HubError."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise HubError(f"{path}: cannot be read ({error.strerror}). Name a file that `tools/package` made") from None
    if len(data) > FILE_BYTES_MAX:
        raise HubError(f"{path}: longer than {FILE_BYTES_MAX >> 20} MiB, which no agent is. Is this the right file?")
    manifest = _manifest(path)
    found = {name: manifest.get(name) for name in ("version", "abi")}
    for name, value in found.items():
        if not isinstance(value, str) or not value or len(value) > 48:
            raise HubError(f"{path}: its {MANIFEST} does not say which {name} it is. {_MADE_BY}")
    agent = AgentFile(data, str(found["version"]), str(found["abi"]))
    if not is_target(agent.name) or not version_key(agent.version):
        raise HubError(f"{path}: version {agent.version!r} for {agent.abi!r} makes no name of a file. {_MADE_BY}")
    for name, wanted in (("version", version), ("abi", abi)):
        if wanted and wanted != found[name]:
            raise HubError(f"{path}: its {name} is {found[name]}, not {wanted}. Name the right file, or leave --{name}")
    return agent


def _manifest(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            about = archive.getinfo(MANIFEST)
            if about.file_size > MANIFEST_BYTES_MAX:
                raise ValueError
            with archive.open(about) as file:
                manifest = json.loads(file.read(MANIFEST_BYTES_MAX))
            if archive.testzip() is not None:
                raise HubError(f"{path}: it is damaged. Make it again, or copy it again")
    except KeyError:
        raise HubError(f"{path}: it has no {MANIFEST}, so nobody knows what it is. {_MADE_BY}") from None
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RecursionError):
        raise HubError(f"{path}: not the zipapp of an agent, or cut. {_MADE_BY}") from None
    if not isinstance(manifest, dict):
        raise HubError(f"{path}: its {MANIFEST} says nothing. {_MADE_BY}")
    return manifest
