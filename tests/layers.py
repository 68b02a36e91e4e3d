"""The stairs of the house: who may import whom, as a table, and the walk over the source that holds it.

roof        cli, daemon … directly in edgeagent/, hub/, relay/      may import all of its own
2nd floor   edgeagent/io, edgeagent/engine, hub/store, hub/io …     sockets, disk, clock: never one another
1st floor   edgeagent/proto/node.py, hub/core                       machines, pure
ground      edgeagent/proto, edgeagent/crypto                       pure; crypto may use what it wraps
yard        tests, tools, hil                                       may look in; nobody looks out
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

OURS = ("edgeagent", "hub", "relay", "boards", "flash", "hil", "tools", "tests")
PRODUCT = ("edgeagent", "hub", "relay", "flash")

# A pure module reads no clock, entropy, socket, file or thread, and logs nothing. What it may use of others is listed,
# so that whatever is new is looked at once.
PURE_OTHERS = frozenset(
    (
        "__future__",
        "abc",
        "array",
        "base64",
        "binascii",
        "bisect",
        "collections",
        "contextlib",
        "dataclasses",
        "enum",
        "functools",
        "hashlib",
        "heapq",
        "hmac",
        "ipaddress",
        "json",
        "itertools",
        "math",
        "operator",
        "re",
        "string",
        "struct",
        "types",
        "typing",
    )
)
IMPURE_CALLS = frozenset(("open", "print", "input", "eval", "exec", "compile", "breakpoint", "__import__"))


class Rule:
    """Modules under `who` may import, of ours, only what is under `may`; `pure` ones, of others, only PURE_OTHERS and
    what `also` names."""

    __slots__ = ("also", "may", "pure", "who")

    def __init__(self, who: str, may: tuple[str, ...], pure: bool = False, also: tuple[str, ...] = ()) -> None:
        self.who = who
        self.may = may
        self.pure = pure
        self.also = also


GROUND = ("edgeagent.proto", "edgeagent.crypto")

# What carries the control plane of an agent, and of a relay too.
CONTROL_SHELLS = ("edgeagent.io.keystore", "edgeagent.io.mqtt", "edgeagent.io.pahoclient", "edgeagent.io.pinnedtls")

# The longest `who` that fits a module is its rule.
RULES = (
    Rule("edgeagent.proto", ("edgeagent.proto",), pure=True),
    Rule("edgeagent.crypto", GROUND),
    Rule("edgeagent.bytecode", ()),
    Rule("edgeagent.zipped", ("edgeagent.bytecode",)),  # where we run from: the cellar of shells
    Rule("edgeagent.io", (*GROUND, "edgeagent.zipped")),
    # Twins of one thing; sockets and TUN are handed to them.
    Rule("edgeagent.engine", (*GROUND, "edgeagent.engine", "edgeagent.zipped")),
    Rule("edgeagent", ("edgeagent",)),
    Rule("hub.core", ("edgeagent.proto", "hub.core"), pure=True),
    Rule("hub.core.windows", ("hub.core",), pure=True, also=("datetime", "zoneinfo")),  # asks no clock: converts
    Rule("hub.store", (*GROUND, "hub.core", "hub.store")),
    Rule("hub.io", (*GROUND, "hub.core")),
    Rule("hub", (*GROUND, "hub")),
    Rule("relay.core", ("edgeagent.proto", "relay.core"), pure=True),
    # A relay talks to hubs as a device does, and a second MQTT client would be worse: ARCHITECTURE.md, "Parts".
    Rule("relay", (*GROUND, "relay", *CONTROL_SHELLS)),
    Rule("boards", ("boards",)),
    # On an operator's machine; settings are checked there as the device will check them
    Rule("flash", ("edgeagent.proto", "edgeagent.config", "boards", "flash")),
    Rule("hil", ("hil", "boards", "flash.hubapi", "flash.errors")),  # of edgeflash the hub's API alone
    Rule("tools", ("tools", "tests", "hil", "boards", *PRODUCT)),
    Rule("tests", OURS),
)

# What several shells stand on: imports nothing of ours but the ground, and is a shell to nobody.
SHELL_HELPERS = frozenset(
    (
        "edgeagent.io.child",
        "edgeagent.io.pahoclient",
        "edgeagent.io.pinnedtls",
        "edgeagent.io.proxy",
        "edgeagent.io.rtnetlink",
        "edgeagent.io.udpsocket",
        "edgeagent.io.upnp",
        "edgeagent.io.wgnetlink",
    )
)


class Import:
    """What one import statement names: a dotted module, at `line`; not `runtime` when only the type checker sees it."""

    __slots__ = ("line", "runtime", "target")

    def __init__(self, target: str, line: int, runtime: bool) -> None:
        self.target = target
        self.line = line
        self.runtime = runtime


def violations(root: Path) -> list[str]:
    """Every breach of the table in the source under `root`, as `path:line: what`."""
    modules = dict(_modules(root))
    graph: dict[str, list[Import]] = {}
    found = []
    for name, path in modules.items():
        # Trees are not kept: a million nodes make the collector's rounds long.
        nodes = list(ast.walk(ast.parse((root / path).read_text(encoding="utf-8"), str(path))))
        rule = _rule_of(name)
        graph[name] = list(_imports(name, nodes, modules))
        for imported in graph[name]:
            if why := _breach(name, rule, imported):
                found.append(f"{path}:{imported.line}: {why}")
        if rule.pure:
            found += [f"{path}:{line}: {name} is pure and calls {call}()" for call, line in _impure_calls(nodes)]
    return found + [f"cycle: {' → '.join(cycle)}" for cycle in _cycles(graph)]


def _modules(root: Path) -> Iterator[tuple[str, Path]]:
    for top in OURS:
        for path in sorted((root / top).rglob("*.py")):
            relative = path.relative_to(root)
            parts = relative.with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), relative


def _imports(name: str, nodes: list[ast.AST], modules: dict[str, Path]) -> Iterator[Import]:
    typing_only = {
        id(inner)
        for node in nodes
        if isinstance(node, ast.If) and _is_type_checking(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in nodes:
        runtime = id(node) not in typing_only
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, runtime)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(name, node, modules)
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield Import(whole if whole in modules else base, node.lineno, runtime)


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _absolute(name: str, node: ast.ImportFrom, modules: dict[str, Path]) -> str:
    if node.level == 0:
        return node.module or ""
    package = name.split(".") if modules[name].name == "__init__.py" else name.split(".")[:-1]
    parents = package[: len(package) - node.level + 1]
    return ".".join([*parents, *([node.module] if node.module else [])])


def _rule_of(name: str) -> Rule:
    return max((rule for rule in RULES if _within(name, rule.who)), key=lambda rule: len(rule.who))


def _breach(name: str, rule: Rule, imported: Import) -> str | None:
    target = imported.target
    top = target.partition(".")[0]
    if top not in OURS:
        if rule.pure and top not in PURE_OTHERS and top not in rule.also:
            return f"{name} is pure and imports {target}"
        return None
    if any(_within(target, allowed) for allowed in rule.may) or _within(name, target):
        return None
    if target in SHELL_HELPERS and _rule_of(target).who == rule.who:
        return None
    return f"{name} may not import {target} (of ours only: {', '.join(rule.may)})"


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def _impure_calls(nodes: list[ast.AST]) -> Iterator[tuple[str, int]]:
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS:
            yield node.func.id, node.lineno


def _cycles(graph: dict[str, list[Import]]) -> list[list[str]]:
    """Circles among the imports made at run time, each once, as the modules on it."""
    done: set[str] = set()
    found = []
    for start in graph:
        path: list[str] = []
        stack = [(start, False)]
        while stack:
            name, leaving = stack.pop()
            if leaving:
                path.pop()
                done.add(name)
            elif name in path:
                found.append([*path[path.index(name) :], name])
            elif name not in done:
                path.append(name)
                stack.append((name, True))
                stack += [(edge.target, False) for edge in graph[name] if edge.runtime and edge.target in graph]
    return found
