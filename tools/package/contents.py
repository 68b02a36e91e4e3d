"""The zipapp: the agent and paho-mqtt as sources without comments and docstrings, the C library, the licences.

Sources, not byte code: that is of one Python version, and more than twice as large. Lines stay where they were, so
that a traceback of a device still names them.
"""

from __future__ import annotations

import ast
import io
import json
import os
import time
import tokenize
import zipfile
from collections.abc import Iterator
from functools import cache
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import TypeGuard

from edgeagent.version import BUILD_TIME_S, VERSION

ROOT = Path(__file__).parents[2]
BUNDLED = "paho-mqtt"  # pure Python, and newer than what Debian 12 has
# Runs where there are sources and a compiler only, or on a desk.
LEFT_OUT = ("edgeagent/__main__.py",)
SHEBANG = b"#!/usr/bin/env python3\n"
MAIN = """\
import sys

from edgeagent.bytecode import path_of

kept = path_of(sys.path[0])
if kept != sys.path[0]:
    sys.path[0] = kept
    for name in [name for name in sys.modules if name.partition(".")[0] == "edgeagent"]:
        del sys.modules[name]
if sys.argv[1:2] == ["--agentd"]:
    from edgeagent.agentd import main

    sys.exit(main(sys.argv[2:]))
from edgeagent.cli import main

sys.exit(main())
"""


def epoch() -> int:
    """What all files are dated: SOURCE_DATE_EPOCH, else the release's own time."""
    return int(os.environ.get("SOURCE_DATE_EPOCH", BUILD_TIME_S))


def zipapp(library: Path | None, abi: str = "") -> bytes:
    """The archive, runnable by itself; the same bytes for the same sources and date. With `library` inside, and where
    it is for an `abi`, with a manifest that says so: hubs publish only what says what it is."""
    when = time.gmtime(max(epoch(), 315_532_800))[:6]  # ZIP knows no time before 1980
    made = io.BytesIO()
    made.write(SHEBANG)
    with zipfile.ZipFile(made, "w") as archive:
        for name, data in _files(library, abi):
            entry = zipfile.ZipInfo(name, when)
            entry.external_attr = 0o100644 << 16
            entry.create_system = 3
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED, 9)
    return made.getvalue()


def modules() -> list[Path]:
    """The agent's own, as they lie here."""
    found = sorted((ROOT / "edgeagent").rglob("*.py"))
    return [path for path in found if path.relative_to(ROOT).as_posix() not in LEFT_OUT]


def bundled() -> list[tuple[str, Path]]:
    """(name in the archive, file) of paho's modules."""
    return [(name, path) for name, path in _distributed() if name.endswith(".py")]


def _files(library: Path | None, abi: str) -> Iterator[tuple[str, bytes]]:
    yield "__main__.py", MAIN.encode()
    if abi:
        yield "manifest.json", json.dumps({"version": VERSION, "abi": abi}).encode()
    for path in modules():
        yield path.relative_to(ROOT).as_posix(), lean(path.read_text(encoding="utf-8")).encode()
    if library is not None:
        yield "edgeagent/engine/fast/libedgefast.so", library.read_bytes()
    for name, path in bundled():
        yield name, lean(path.read_text(encoding="utf-8")).encode()
    yield "LICENSE.edgeagent", (ROOT / "LICENSE").read_bytes()
    for name, path in licences():
        yield name, path.read_bytes()


def licences() -> list[tuple[str, Path]]:
    """Of what is bundled: (name in the archive, file)."""
    found = [(path.name, path) for name, path in _distributed() if "licen" in name.lower() and ".dist-info/" in name]
    found += [(path.name, path) for name, path in _distributed() if path.name in ("edl-v10", "epl-v20", "NOTICE.html")]
    return [(f"LICENSE.paho-mqtt/{name}", path) for name, path in dict(sorted(found)).items()]


def _distributed() -> Iterator[tuple[str, Path]]:
    found: Distribution = distribution(BUNDLED)
    for file in sorted(found.files or (), key=str):
        yield str(file), Path(str(found.locate_file(file)))


@cache
def lean(source: str) -> str:
    """The same program without comments and docstrings, each statement on the line where it was."""
    lines = source.splitlines()
    keep = [list(line) for line in lines]
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            del keep[row - 1][column:]
    for docstring, alone in _docstrings(ast.parse(source)):
        first, last = docstring.lineno - 1, (docstring.end_lineno or 0) - 1
        # ast counts columns in bytes of UTF-8.
        start = len(lines[first].encode()[: docstring.col_offset].decode())
        end = len(lines[last].encode()[: docstring.end_col_offset].decode())
        rest = keep[last][end:]
        keep[first][start:] = list("pass" if alone else "")
        for row in range(first + 1, last + 1):
            keep[row] = []
        if first == last:
            keep[first] += rest
        elif "".join(rest).strip():
            raise ValueError(f"line {last + 1}: something follows a docstring on its line")
    text = "\n".join("".join(line).rstrip() for line in keep).rstrip() + "\n"
    text = "" if text == "\n" else text
    if ast.dump(_bare(ast.parse(text))) != ast.dump(_bare(ast.parse(source))):
        raise ValueError("the program would be another one")
    return text


def _docstrings(tree: ast.Module) -> Iterator[tuple[ast.Expr, bool]]:
    """Each docstring, and whether nothing else is in its body."""
    for node in _documented(tree):
        first = node.body[0] if node.body else None
        if _is_docstring(first):
            yield first, len(node.body) == 1 and not isinstance(node, ast.Module)


def _bare(tree: ast.Module) -> ast.Module:
    """Without docstrings, and `pass` where nothing else is left."""
    for node in _documented(tree):
        if node.body and _is_docstring(node.body[0]):
            node.body[:1] = []
        if not node.body and not isinstance(node, ast.Module):
            node.body = [ast.Pass()]
    return tree


def _documented(tree: ast.Module) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """What may have a docstring. Only statements are walked: there are a tenth as many of them as of all nodes."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node
        for within in ("body", "orelse", "finalbody", "handlers", "cases"):
            waiting += getattr(node, within, ())


def _is_docstring(first: ast.stmt | None) -> TypeGuard[ast.Expr]:
    """Of the first statement of a body."""
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
