"""What the repository of updates has to offer, read from its files as they lie. Knows nothing of signatures: those who
publish (`hub.updates`) and devices do.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hub.core.filters import version_key

ROLES = ("root", "targets", "snapshot", "timestamp")
SOON_S = {"root": 90 * 86_400, "targets": 30 * 86_400, "snapshot": 3 * 86_400, "timestamp": 86_400}
_NAME = re.compile(r"([0-9]{1,9})\.root\.json")


@dataclass(slots=True, frozen=True)
class Target:
    """One file that devices can fetch."""

    name: str
    version: str
    abi: str
    length: int
    sha256: str
    published_s: int


@dataclass(slots=True, frozen=True)
class Role:
    name: str
    version: int
    expires_s: int

    def is_soon(self, wall_s: int) -> bool:
        """Whether it ends so soon that somebody should see to it."""
        return self.expires_s - wall_s < SOON_S[self.name]


@dataclass(slots=True, frozen=True)
class Published:
    """All of it; without `roles` there is no repository."""

    targets: tuple[Target, ...] = ()  # the newest version first
    roles: tuple[Role, ...] = ()
    revoked: tuple[str, ...] = ()

    @property
    def versions(self) -> list[str]:
        """The newest first."""
        return list(dict.fromkeys(target.version for target in self.targets))

    def of_version(self, version: str) -> dict[str, str]:
        """ABI → name of the target."""
        return {target.abi: target.name for target in self.targets if target.version == version}


def read(directory: Path) -> Published:
    """Of `State.updates`. What is not there, or cannot be read, is not published."""
    metadata = directory / "metadata"
    try:
        timestamp = _signed(metadata / "timestamp.json")
        snapshot = _signed(metadata / f"{timestamp['meta']['snapshot.json']['version']}.snapshot.json")
        targets = _signed(metadata / f"{snapshot['meta']['targets.json']['version']}.targets.json")
        root = _signed(metadata / f"{newest_root(metadata)}.root.json")
        bodies = dict(zip(ROLES, (root, targets, snapshot, timestamp), strict=True))
        found = [_target(name, about) for name, about in targets["targets"].items()]
        revoked = tuple(targets.get("x-edgemesh-revoked", ()))
        roles = tuple(Role(name, body["version"], _seconds(body["expires"])) for name, body in bodies.items())
    except (OSError, ValueError, KeyError, TypeError):
        return Published()
    found.sort(key=lambda target: (version_key(target.version), target.version, target.abi), reverse=True)
    return Published(tuple(found), roles, revoked)


def newest_root(metadata: Path) -> int:
    """Its version; 0 for none."""
    found = [_NAME.fullmatch(path.name) for path in metadata.glob("*.root.json")]
    return max((int(match[1]) for match in found if match is not None), default=0)


def _signed(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_bytes())["signed"]
    return found


def _target(name: str, about: dict[str, Any]) -> Target:
    custom = about["custom"]
    return Target(
        name, custom["version"], custom["abi"], about["length"], about["hashes"]["sha256"], custom.get("published", 0)
    )


def _seconds(date: str) -> int:
    return int(datetime.strptime(date, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp())
