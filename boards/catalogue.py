"""All boards that this release knows."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from boards.schema import ID, Board, BoardError, load

FOLDER = Path(__file__).parent
SLICE_BYTES_MAX = 4_096
SLICE_VERSION = 1


def ids() -> list[str]:
    """The id of each: the name of its file."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def get(board_id: str) -> Board:
    """Raises BoardError when there is none of that id, or its file is not right."""
    if not ID.fullmatch(board_id) or board_id not in ids():
        near = difflib.get_close_matches(board_id, ids(), 3, 0.4)
        hint = f"Did you mean {' or '.join(near)}?" if near else "Known are those of edgeflash boards list."
        raise BoardError(f"{board_id[:60]!r}: no such board. {hint}")
    return load(FOLDER / f"{board_id}.toml")


def all_boards() -> list[Board]:
    """In the order of their ids. Raises BoardError when a file is not right."""
    return [load(FOLDER / f"{board_id}.toml") for board_id in ids()]


def slice_of(board: Board, system: int = 0) -> bytes:
    """What the board's agent is told: the content of `board.json`, compact JSON of at most SLICE_BYTES_MAX bytes.
    `system` is an index into the board's systems, for the ABI and the init format."""
    chosen, watchdog = board.systems[system], board.hardware.watchdog
    told: dict[str, Any] = {
        "v": SLICE_VERSION,
        "id": board.id,
        "name": board.name,
        "abi": chosen.abi,
        "init": chosen.init,
        "profile": board.agent.memory_profile,
        "limits": board.agent.limits,
        "flash": {"medium": board.flash.medium, "writes_a_day": board.flash.writes_a_day},
        "uplinks": [
            {"interface": each.interface, "kind": each.kind} | ({"metered": True} if each.metered else {})
            for each in board.uplinks
        ],
        "modems": [
            {"model": each.model, "driver": each.driver}
            | ({"control": each.control} if each.control else {})
            | ({"port": each.port} if each.port else {})
            for each in board.modems
        ],
    }
    if board.agent.memory_ceiling_mib is not None:
        told["ceiling_mib"] = board.agent.memory_ceiling_mib
    if watchdog is not None:
        told["watchdog"] = {"device": watchdog.device}
        if watchdog.timeout_s_max is not None:
            told["watchdog"]["timeout_s_max"] = watchdog.timeout_s_max
    data = json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode()
    if len(data) > SLICE_BYTES_MAX:
        raise BoardError(f"{board.id}: its slice has {len(data)} bytes, at most {SLICE_BYTES_MAX}. Shorten its lists")
    return data
