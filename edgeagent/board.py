"""Which board this is, and what its slice says: defaults below what the operator sets.

A slice is `board.json`, made by `edgeflash boards show ID --slice` and put there by images and packages. Without one
the board is told from the device tree, OpenWrt's board name or the firmware's product name. Nothing here stops an
agent: a slice that cannot be used is said by `edgeagent board`, `status` and `doctor`, and is as good as none.

The command that starts an agent asks this module, and hands the result over as settings: a running agent never loads it
before somebody asks.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # what the typing module would say, and 5 ms
if TYPE_CHECKING:
    from typing import Any

    from edgeagent.config import Settings

SYSTEM_SLICE = "/etc/edgeagent/board.json"
SLICE_BYTES_MAX = 4_096
SLICE_VERSION = 1
ID_CHARS_MAX = 64
_READ_BYTES_MAX = 4_096
_ID_CHARS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789,._+-"


class Board:
    """`id` is "" where nobody knows; `by` says what told it; `told` is the slice as it was read, `problem` why there is
    none although a file is there."""

    __slots__ = ("by", "id", "path", "problem", "told")

    def __init__(self, path: str = "") -> None:
        self.id = ""
        self.by = "nothing"
        self.path = path
        self.problem = ""
        self.told: dict[str, Any] = {}

    def describe(self) -> dict[str, Any]:
        return {"id": self.id, "by": self.by, "slice": self.path or None, "problem": self.problem, "told": self.told}


def find(state_dir: str, root: str = "") -> Board:
    """The board by its slice, of the system's or else of the state directory, else as it is detected. `root` is put
    before the paths of the system."""
    problem = ""
    for path in (root + SYSTEM_SLICE, os.path.join(state_dir, "board.json")):
        try:
            data = _read(path, SLICE_BYTES_MAX + 1)
        except FileNotFoundError:
            continue
        except OSError as error:
            problem = problem or f"{path}: {error.strerror}"
            continue
        board = Board(path)
        try:
            board.told = read_slice(data)
        except ValueError as error:
            problem = problem or f"{path}: {error}"
            continue
        board.id, board.by, board.problem = board.told["id"], "slice", problem
        return board
    board = Board()
    board.id, board.by = detect(root)
    board.problem = problem
    return board


def read_slice(data: bytes) -> dict[str, Any]:
    """Of a slice's bytes. Raises ValueError with what is wrong; what a newer one says beside is left alone."""
    import json

    from edgeagent.proto.limits import PROFILE_NAMES, read_limits

    if len(data) > SLICE_BYTES_MAX:
        raise ValueError(f"longer than {SLICE_BYTES_MAX} bytes")
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("no JSON") from None
    if not isinstance(told, dict) or told.get("v") != SLICE_VERSION:
        raise ValueError(f"no slice of version {SLICE_VERSION}")
    if not is_id(told.get("id")) or not told["id"]:
        raise ValueError("id: a board's id expected")
    if told.get("profile") not in (None, *PROFILE_NAMES):
        raise ValueError(f"profile: one of {', '.join(PROFILE_NAMES)} expected")
    limits = told.get("limits", {})
    if not isinstance(limits, dict):
        raise ValueError("limits: a table of name and number expected")
    for name, value in limits.items():
        if type(value) is not int:
            raise ValueError("limits: whole numbers expected")
        try:
            read_limits(f"{name}={value}")
        except ValueError as error:
            raise ValueError(f"limits: want {error}") from None
    ceiling = told.get("ceiling_mib")
    if ceiling is not None and (type(ceiling) is not int or not 16 <= ceiling <= 65_536):
        raise ValueError("ceiling_mib: a whole number from 16 to 65536 expected")
    return told


def apply(settings: Settings) -> Board:
    """Fill in what the operator has left open: the board's id, and the slice's ceilings."""
    board = find(settings.state_dir)
    if not settings.board:
        settings.board = board.id
    told, named = board.told, settings.named
    # Who names a profile has chosen all ceilings; single ones go over those of the slice.
    if "memory-profile" not in named:
        settings.memory_profile = told.get("profile") or settings.memory_profile
        own = {limit.partition("=")[0].strip() for limit in settings.limits.split(",")}
        limits = [f"{name}={value}" for name, value in told.get("limits", {}).items() if name not in own]
        settings.limits = ",".join([*limits, settings.limits] if settings.limits else limits)
        if "ceiling_mib" in told and "memory-ceiling" not in named:
            settings.memory_ceiling = str(told["ceiling_mib"])
    return board


def is_id(text: object) -> bool:
    return isinstance(text, str) and len(text) <= ID_CHARS_MAX and all(char in _ID_CHARS for char in text)


# Detection


def detect(root: str = "") -> tuple[str, str]:
    """(id, what told it). A board that no file of this release describes has the name that it gives itself, in the
    device tree or to OpenWrt; ("", "nothing") where it gives none."""
    from edgeagent.boardnames import GENERIC, NAMES

    machine = _machine()
    compatible = [name for name in _text(f"{root}/proc/device-tree/compatible").split("\0") if name]
    board_name = _text(f"{root}/tmp/sysinfo/board_name").strip()
    product = _text(f"{root}/sys/class/dmi/id/product_name").strip()
    said = [("device tree", name) for name in compatible]
    said += [("OpenWrt's board name", board_name), ("product name", product)]
    for by, name in said:
        for known in (f"{name} {machine}", name):
            if name and known in NAMES:
                return NAMES[known], by
    for by, name in (("device tree", compatible[0] if compatible else ""), ("OpenWrt's board name", board_name)):
        if name and is_id(name) and "," in name:
            return name, by
    for os_name, file in (("openwrt", "/etc/openwrt_release"), ("debian", "/etc/debian_version")):
        if os.path.exists(root + file) and (os_name, machine) in GENERIC:
            return GENERIC[os_name, machine], "system and processor"
    return "", "nothing"


def _machine() -> str:
    """As uname says it, but little-endian MIPS, which it calls mips too."""
    machine = os.uname().machine
    return "mipsel" if machine == "mips" and sys.byteorder == "little" else machine


def _text(path: str) -> str:
    try:
        return _read(path, _READ_BYTES_MAX).decode("utf-8", "replace")
    except OSError:
        return ""


def _read(path: str, size: int) -> bytes:
    """At most `size` bytes; of a file only, whatever somebody has put there."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return os.read(fd, size)
    finally:
        os.close(fd)


def show(board: dict[str, Any]) -> str:
    """`edgeagent board`."""
    told = board["told"]
    lines = [("board", board["id"] or "unknown"), ("known by", board["by"])]
    if board["slice"]:
        lines.append(("slice", board["slice"]))
    if board["problem"]:
        lines.append(("warning", f"{board['problem']}. Going on without it."))
    for key, name in (("name", "name"), ("abi", "ABI"), ("init", "settings by"), ("profile", "memory")):
        if told.get(key):
            lines.append((name, str(told[key])))
    if limits := told.get("limits"):
        lines.append(("limits", ", ".join(f"{name}={value}" for name, value in limits.items())))
    return "\n".join(f"{name:<13} {value}" for name, value in lines)
