"""Writes docs/reference.md from the source: every command and option, every setting, every reason for a drop.

What a program does not say about itself cannot be written: an option without help, or a reason without the comment
beside it, is an error here, and so fails `./dev check`.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import io
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "reference.md"
REASONS_IN = (
    "edgeagent/proto",
    "edgeagent/io",
    "edgeagent/engine",
    "edgeagent/engine/kernel",
    "hub/core",
    "relay/core",
)

Rows = Sequence[tuple[str, str]]

_WIREGUARD_OPTIONS = {
    "-f": "stay in the foreground (also with WG_PROCESS_FOREGROUND=1)",
    "--foreground": "the same",
    "--version": "print the version",
}

_HEAD = """\
# Reference

Every command, option, setting and drop reason. Made from the source by `./dev docs`; change the source, not this file.
"""


class Undocumented(Exception):
    """The source says too little; the text names the place."""


class Command:
    """A command line as it is shown: `name` with its parents, and the rows (words, meaning) of its parameters."""

    __slots__ = ("examples", "name", "rows", "text")

    def __init__(self, name: str, text: str, rows: Rows, examples: str = "") -> None:
        if not text:
            raise Undocumented(f"{name}: no description")
        for words, meaning in rows:
            if not meaning:
                raise Undocumented(f"{name}: {words} has no help text")
        self.name = name
        self.text = text
        self.rows = rows
        self.examples = examples


class Reason:
    """A member of an enumeration of drop reasons: the `value` that users see, and its one-line meaning."""

    __slots__ = ("meaning", "value")

    def __init__(self, value: str, meaning: str) -> None:
        self.value = value
        self.meaning = meaning


def render() -> str:
    """The whole text of docs/reference.md."""
    from edgeagent.proto import limits

    parts = [_HEAD]
    for program, commands in programs().items():
        parts.append(f"## {program}\n")
        parts += [_command_text(command) for command in commands]
    parts.append("## Settings of the agent\n")
    parts.append(_table(("setting", "environment", "default", "meaning"), settings()))
    parts.append("## Limits of the agent\n")
    parts.append("`memory-profile` chooses a column, `limits` sets single ones (`--limit NAME=VALUE`).\n")
    head, *rows = limits.rows()
    parts.append(_table(head, [(f"`{row[0]}`", *row[1:]) for row in rows]))
    parts.append("## Drop reasons\n")
    parts.append("Bad input is dropped and counted under one of these names, in `status` and in metrics.\n")
    for title, listed in reasons(ROOT).items():
        parts.append(f"### {title}\n")
        parts.append(_table(("reason", "meaning"), [(f"`{reason.value}`", reason.meaning) for reason in listed]))
    return "\n".join(parts)


def programs() -> dict[str, list[Command]]:
    """Console script → its commands, the program itself first."""
    import typer

    from edgeagent import cli_parser
    from flash import cli as flash_cli
    from hil import cli as hil_cli
    from hub import cli as hub_cli
    from relay import cli as relay_cli

    return {
        "edgeagent": list(_argparse_commands(cli_parser.parser())),
        "edge-wireguard": [_wireguard_command()],
        "edgehub": list(_click_commands("edgehub", typer.main.get_command(hub_cli.app))),
        "edgerelay": list(_argparse_commands(relay_cli.build_parser())),
        "edgeflash": list(_argparse_commands(flash_cli.parser())),
        "edgehil": list(_argparse_commands(hil_cli.parser())),
    }


def settings() -> list[tuple[str, ...]]:
    from edgeagent.config import SETTINGS

    return [
        (f"`{name}`", f"`{variable}`", f"`{default}`" if default else "", meaning)
        for name, (variable, default, _, meaning) in SETTINGS.items()
    ]


def reasons(root: Path) -> dict[str, list[Reason]]:
    """Title → members, of each Enum whose name ends in Drop or DropReason, in the folders REASONS_IN."""
    found = {}
    for folder in REASONS_IN:
        for path in sorted((root / folder).glob("*.py")):
            source = path.read_text(encoding="utf-8")
            for node in ast.parse(source).body:
                if isinstance(node, ast.ClassDef) and node.name.endswith(("Drop", "DropReason")):
                    title = (ast.get_docstring(node) or "").partition(",")[0].partition(";")[0].rstrip(".")
                    if not title:
                        raise Undocumented(f"{path.relative_to(root)}:{node.lineno}: {node.name} has no docstring")
                    found[title] = list(_members(path.relative_to(root), node, _comments(source)))
    return found


def _members(path: Path, node: ast.ClassDef, comments: dict[int, str]) -> Iterator[Reason]:
    for statement in node.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
            meaning = comments.get(statement.lineno, "")
            if not meaning:
                raise Undocumented(f"{path}:{statement.lineno}: no comment says what {ast.unparse(statement)} means")
            yield Reason(str(statement.value.value), meaning)


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def _argparse_commands(parser: argparse.ArgumentParser, common: Rows = ()) -> Iterator[Command]:
    """The parser's command and those below it; what a command shares with its parent is told there only."""
    rows = []
    nested: list[argparse.ArgumentParser] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            nested += action.choices.values()
        elif action.help != argparse.SUPPRESS and "--help" not in action.option_strings:
            value = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
            rows.append((_words(action.option_strings, value), action.help or ""))
    yield Command(parser.prog, parser.description or "", [row for row in rows if row not in common])
    for sub in nested:
        yield from _argparse_commands(sub, rows)


def _click_commands(name: str, command: Any) -> Iterator[Command]:
    """Named by parameter, not by its type: how types are called differs between versions of typer."""
    rows = []
    for parameter in command.params:
        if getattr(parameter, "hidden", False) or "--help" in parameter.opts:
            continue
        value = parameter.metavar or parameter.name.upper().replace("_", "-")
        meaning = getattr(parameter, "help", None) or ""
        if parameter.param_type_name == "argument":
            words = _words([], value)
        else:
            words = _words([*parameter.opts, *parameter.secondary_opts], "" if parameter.is_flag else value)
            if parameter.default not in (None, "", False):
                meaning += f" Default: `{parameter.default}`."
        rows.append((words, meaning))
    text, _, examples = inspect.cleandoc(command.help or "").partition("\b")
    yield Command(name, text.strip(), rows, examples.strip())
    for sub_name, sub in sorted(getattr(command, "commands", {}).items()):
        yield from _click_commands(f"{name} {sub_name}", sub)


def _wireguard_command() -> Command:
    """edge-wireguard takes what wireguard-go takes and reads it by hand: what it knows is in its source."""
    from edgeagent import wireguard

    tree = ast.parse(inspect.getsource(wireguard.main))
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    options = sorted(word for word in words if word.startswith("-") and len(word) > 1)
    rows = [(f"`{option}`", _WIREGUARD_OPTIONS.get(option, "")) for option in options]
    about = " ".join((wireguard.__doc__ or "").removeprefix("`edge-wireguard`: ").split())
    return Command("edge-wireguard", about, [("`INTERFACE-NAME`", "name of the interface to make"), *rows])


def _words(options: Sequence[str], value: str) -> str:
    return "`" + " ".join(filter(None, [", ".join(options), value])) + "`"


def _command_text(command: Command) -> str:
    parts = [f"### `{command.name}`\n", _sentence(command.text) + "\n"]
    if command.rows:
        parts.append(_table(("option or argument", "meaning"), command.rows))
    if command.examples:
        parts.append(f"```sh\n{command.examples}\n```\n")
    return "\n".join(parts)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |\n" for line in lines
    )


def main() -> None:
    try:
        TARGET.write_text(render(), encoding="utf-8")
    except Undocumented as error:
        sys.exit(f"reference: {error}")
    print(f"wrote {TARGET.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
