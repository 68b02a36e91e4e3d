"""units.csv: a line for each device. What is wrong is told by line, all of it at once, before anything is made."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from boards import catalogue
from boards.schema import BoardError
from edgeagent.config import SETTINGS
from edgeagent.proto.names import is_tag
from flash import tokens
from flash.errors import FlashError
from flash.payload import check_settings

UNITS_MAX = 10_000
ERRORS_MAX = 20
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_OWN = ("name", "board", "tags", "token-file")
_SECRET = ("proxy",)  # may hold a password, so not even a digest of it is kept


class Unit:
    """`token` is empty while it has none; `line` is that of the CSV file."""

    __slots__ = ("board", "claim", "line", "name", "settings", "tags", "token")

    def __init__(self, line: int, name: str, board: str, tags: Sequence[str], settings: Mapping[str, str]) -> None:
        self.line = line
        self.name = name
        self.board = board
        self.tags = tuple(tags)
        self.settings = dict(settings)
        self.token = ""
        self.claim = ""

    def digest(self, source: str) -> str:
        """Of what was asked for: a unit that is done is not done any more when this has changed."""
        settings = {name: "" if name in _SECRET else value for name, value in self.settings.items()}
        text = json.dumps([source, self.name, self.board, self.tags, settings], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def read(path: Path, board: str) -> tuple[list[Unit], dict[str, Path]]:
    """The units, and by name the files of those that have a column token-file. `board` where the column is empty."""
    try:
        text = tokens.read_file(str(path)).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FlashError(f"{path}: byte {error.start} is no UTF-8. Save it as CSV in UTF-8.") from None
    reader = csv.DictReader(io.StringIO(text), strict=True, restkey="")
    units: list[Unit] = []
    files: dict[str, Path] = {}
    errors: list[str] = []
    try:
        _check_columns(path, [name.strip() for name in reader.fieldnames or []])
        for row in reader:
            if len(errors) >= ERRORS_MAX or len(units) >= UNITS_MAX:
                break
            cells = {(name or "").strip(): value.strip() for name, value in row.items() if isinstance(value, str)}
            if not any(cells.values()):
                continue
            try:
                if "" in row or None in row.values():
                    raise FlashError("has not as many cells as the first line.")
                unit = _unit(reader.line_num, cells, board, {unit.name: unit.line for unit in units})
            except (FlashError, BoardError) as error:
                errors.append(f"{path}:{reader.line_num}: {error}")
                continue
            units.append(unit)
            if cells.get("token-file"):
                files[unit.name] = path.parent / cells["token-file"]
    except csv.Error as error:
        errors.append(f"{path}:{reader.line_num}: is no CSV: {error}.")
    if len(units) >= UNITS_MAX:
        errors.append(f"{path}: more than {UNITS_MAX} units. Make several files of it.")
    if errors:
        raise FlashError("\n".join(errors))
    if not units:
        raise FlashError(
            f"{path}: there is no unit in it. The first line names the columns, each further one a device."
        )
    return units, files


def give_tokens(path: Path, units: Sequence[Unit], given: Mapping[str, str], wall_s: float) -> None:
    """`given`: unit's name -> token. Each is checked, and that no two have the same. FlashError by line."""
    errors: list[str] = []
    seen: dict[str, int] = {}
    for unit in units:
        if unit.name not in given:
            continue
        try:
            token = tokens.decode(given[unit.name], "its token", wall_s)
            if token.claim in seen:
                raise FlashError(
                    f"its token ({token.claim}) is that of line {seen[token.claim]} too. Each needs its own."
                )
            if missing := sorted(set(unit.tags) - set(token.tags)):
                raise FlashError(
                    f"its token ({token.claim}) does not give {', '.join(missing)}. Tags come with the token: "
                    f"edgehub token create {' '.join(f'--tag {tag}' for tag in unit.tags)}"
                )
        except FlashError as error:
            errors.append(f"{path}:{unit.line}: {unit.name}: {error}")
            continue
        seen[token.claim] = unit.line
        unit.token, unit.claim = given[unit.name], token.claim
    if errors:
        raise FlashError("\n".join(errors[:ERRORS_MAX]))


def _check_columns(path: Path, names: Sequence[str]) -> None:
    if "token" in names:
        raise FlashError(
            f"{path}: a column `token` would keep secrets in the table. Name files in a column token-file."
        )
    if unknown := sorted(set(names) - set(_OWN) - set(SETTINGS)):
        raise FlashError(
            f"{path}: column {', '.join(repr(name[:40]) for name in unknown)}: neither {', '.join(_OWN)} nor a setting "
            "of the agent (edgeagent run --help)."
        )
    if "name" not in names or len(set(names)) != len(names):
        raise FlashError(f"{path}: the first line has to name the columns, each once, and one of them `name`.")


def _unit(line: int, cells: Mapping[str, str], board: str, taken: Mapping[str, int]) -> Unit:
    name = cells["name"]
    if not _NAME.fullmatch(name):
        raise FlashError(f"name {name[:70]!r}: want a host name: a-z, 0-9 and '-', at most 63 characters.")
    if name in taken:
        raise FlashError(f"name {name!r}: is that of line {taken[name]} too.")
    chosen = cells.get("board") or board
    if not chosen:
        raise FlashError(f"{name}: has no board: fill the column, or give --board for all.")
    if not chosen.endswith(".toml"):
        catalogue.get(chosen)
    tags = [
        tag if tag.startswith("tag:") else f"tag:{tag}" for tag in re.split(r"[\s;,]+", cells.get("tags", "")) if tag
    ]
    for tag in tags:
        if not is_tag(tag):
            raise FlashError(f"{name}: tag {tag[:70]!r}: want tag: and a-z, 0-9, '-'.")
    settings = {key: value for key, value in cells.items() if key in SETTINGS and value}
    check_settings(settings)
    return Unit(line, name, chosen, sorted(set(tags)), settings)
