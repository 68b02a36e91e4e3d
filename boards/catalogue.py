"""All boards that this release knows."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def ids() -> list[str]:
    """The id of each: the name of its file."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))
