"""`edgeflash boards`: what is known of boards."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from boards import catalogue
from boards.schema import Board, BoardError, load
from edgeagent.proto.limits import read_limits

_LIST_EPILOG = """\
examples:
  edgeflash boards list
  edgeflash boards list --json | jq -r '.[] | select(.kind == "product") | .id'
"""
_SHOW_EPILOG = """\
examples:
  edgeflash boards show rpi-zero-2-w
  edgeflash boards show teltonika-rut955 --slice > board.json    what an agent there is told
"""
_CHECK_EPILOG = """\
examples:
  edgeflash boards check                  all boards of this release
  edgeflash boards check my-board.toml    one that you write; its name is the board's id

docs/boards.md says what may stand in a file.
"""


def add(verbs: Any) -> None:
    text = "the boards that are known, all that is known of one, or whether a board's file is right"
    boards = verbs.add_parser("boards", help=text, description=text, allow_abbrev=False)
    actions = boards.add_subparsers(title="actions", metavar="ACTION", required=True)

    def action(name: str, run: Any, text: str, epilog: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = actions.add_parser(
            name,
            help=text,
            description=text,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        made.set_defaults(run=run)
        made.add_argument("--json", action="store_true", help="data instead of text")
        return made

    action("list", _list, "the boards that are known, one a line", _LIST_EPILOG)
    show = action("show", _show, "all that is known of one board", _SHOW_EPILOG)
    show.add_argument("board", metavar="ID", help="a board of edgeflash boards list, or a file")
    show.add_argument("--slice", action="store_true", help="instead: what the agent is told of it, its board.json")
    check = action("check", _check, "whether boards' files are right, and what is wrong with them", _CHECK_EPILOG)
    check.add_argument("files", metavar="FILE", nargs="*", help="files to check (all boards of this release)")


def _list(options: argparse.Namespace) -> int:
    boards = catalogue.all_boards()
    if options.json:
        print(json.dumps([asdict(board) for board in boards]))
        return 0
    rows = [("ID", "NAME", "KIND", "RAM", "ABI", "INIT")]
    rows += [
        (
            board.id,
            board.name,
            board.kind,
            _ram(board),
            ", ".join(dict.fromkeys(system.abi for system in board.systems)),
            ", ".join(dict.fromkeys(system.init for system in board.systems)),
        )
        for board in boards
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _show(options: argparse.Namespace) -> int:
    given = options.board
    board = load(Path(given)) if given.endswith(".toml") or "/" in given else catalogue.get(given)
    if options.slice:
        print(catalogue.slice_of(board).decode())
    elif options.json:
        print(json.dumps(asdict(board)))
    else:
        for name, value in _lines("", asdict(board)):
            print(f"{name:<28} {value}")
    return 0


def _check(options: argparse.Namespace) -> int:
    files = [Path(file) for file in options.files] or sorted(catalogue.FOLDER.glob("*.toml"))
    found = {str(file): check(file) for file in files}
    bad = sum(bool(problems) for problems in found.values())
    if options.json:
        told = [{"file": file, "ok": not problems, "problems": problems} for file, problems in found.items()]
        print(json.dumps(told))
    else:
        for problems in found.values():
            print("".join(f"{problem}\n" for problem in problems), end="")
        print(f"{len(files)} checked, {bad} not right" if bad else f"{len(files)} checked, all right")
    return 1 if bad else 0


def check(file: Path) -> list[str]:
    """What is wrong with it, a line each: with its own keys, and with the limits that it names for the agent."""
    try:
        board = load(file)
        catalogue.slice_of(board)
    except BoardError as error:
        return str(error).split("\n")
    found = []
    for name, value in board.agent.limits.items():
        try:
            read_limits(f"{name}={value}")
        except ValueError as error:
            found.append(f"{file}: agent.limits.{name}: {value}: want {error}")
    return found


def _ram(board: Board) -> str:
    sizes = [f"{mib >> 10} GiB" if mib % 1024 == 0 else f"{mib} MiB" for mib in board.ram_mib]
    return sizes[0] if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"


def _lines(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Each leaf by its dotted key; what nobody has said is left out."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _lines(f"{name}.{key}" if name else key, inner)
    elif isinstance(value, (list, tuple)) and any(isinstance(inner, dict) for inner in value):
        for at, inner in enumerate(value):
            yield from _lines(f"{name}[{at}]", inner)
    elif isinstance(value, (list, tuple)):
        if value:
            yield name, ", ".join(map(str, value))
    elif value is not None and value != "":
        yield name, str(value).lower() if isinstance(value, bool) else str(value)
