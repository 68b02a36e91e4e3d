"""What the agent wants of others: the modules that it imports, and the packages of OpenWrt that have them.

OpenWrt cuts Python's standard library into packages; what none of them has is in python3-light
(openwrt/packages, lang/python/python3/files/python3-package-*.mk).
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tools.package import contents

# First part of a module's name → package. `_hashlib` and `_ssl` are extension modules; ssl.py itself is in light.
OPENWRT = {
    "asyncio": "python3-asyncio", "_asyncio": "python3-asyncio",
    "cgi": "python3-cgi", "cgitb": "python3-cgitb",
    "unicodedata": "python3-codecs",
    "ctypes": "python3-ctypes", "_ctypes": "python3-ctypes",
    "curses": "python3-ncurses", "_curses": "python3-ncurses",
    "dbm": "python3-dbm",
    "decimal": "python3-decimal", "_decimal": "python3-decimal",
    "distutils": "python3-distutils",
    "email": "python3-email",
    "logging": "python3-logging",
    "lzma": "python3-lzma", "_lzma": "python3-lzma",
    "multiprocessing": "python3-multiprocessing", "_multiprocessing": "python3-multiprocessing",
    "doctest": "python3-pydoc", "pydoc": "python3-pydoc", "pydoc_data": "python3-pydoc",
    "readline": "python3-readline",
    "sqlite3": "python3-sqlite3", "_sqlite3": "python3-sqlite3",
    "ssl": "python3-openssl", "_ssl": "python3-openssl", "_hashlib": "python3-openssl",
    "unittest": "python3-unittest",
    "urllib": "python3-urllib",
    "uuid": "python3-uuid", "_uuid": "python3-uuid",
    "venv": "python3-venv",
    "xml": "python3-xml", "pyexpat": "python3-xml", "xmlrpc": "python3-xml",
}  # fmt: skip
LIGHT = "python3-light"
SPARED = ("lzma", "_lzma")  # shutil does without
# Each has another way round it, and the agent says so where it matters.
OPTIONAL = {
    "miniupnpc": "UPnP, where it is installed",
    "nacl": "one of two providers of libsodium",
}
# Imported where they are there; nothing of ours comes by there.
UNUSED = {
    "socks": "paho, through a proxy; ours is its own",
    "dns": "paho, for SRV records",
    "typing_extensions": "paho, for Pythons before 3.8",
    "_cffi_backend": "pynacl's, asked after for its absence",
}
# paho imports these at its start; the agent puts empty modules in their place (edgeagent/io/pahoclient.py).
STUBBED = ("urllib.request", "urllib.parse", "uuid", "platform")
# Of paho, what neither its client nor we import.
PAHO_UNUSED = ("paho/mqtt/publish.py", "paho/mqtt/subscribe.py")


def direct() -> tuple[set[str], set[str]]:
    """(modules of the standard library, first names of others) that some statement of what is shipped imports."""
    wanted: set[str] = set()
    for path in contents.modules():
        wanted |= set(_imports(path))
    for name, path in contents.bundled():
        if name not in PAHO_UNUSED:
            wanted |= set(_imports(path)) - set(STUBBED)
    ours = {module for module in wanted if module.split(".")[0] in ("edgeagent", "paho")}
    library = {module for module in wanted - ours if module.split(".")[0] in sys.stdlib_module_names}
    return library, {module.split(".")[0] for module in wanted - ours - library}


def loaded(modules: set[str]) -> set[str]:
    """What is in an interpreter that has imported them: these and all that they import themselves."""
    probe = "import sys\nfor name in sys.argv[1:]:\n    __import__(name)\nprint(*sys.modules)"
    command = [sys.executable, "-I", "-S", "-c", probe, *sorted(modules)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


def openwrt_packages() -> list[str]:
    """What an .ipk or .apk depends on, of Python."""
    library, others = direct()
    if unknown := others - set(OPTIONAL) - set(UNUSED):
        raise LookupError(f"imported and nowhere to be had on a device: {', '.join(sorted(unknown))}")
    found = {OPENWRT[first] for module in loaded(library) if (first := module.split(".")[0]) in OPENWRT}
    found -= {OPENWRT[module] for module in SPARED}
    return [LIGHT, *sorted(found)]


def _imports(path: Path) -> Iterator[str]:
    """Absolute imports that are executed; those under `if TYPE_CHECKING` are not."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for branch in node.body
        for inner in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""
