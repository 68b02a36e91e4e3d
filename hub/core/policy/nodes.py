"""Reading what HuJSON holds: objects, arrays and text as a policy wants them, and a list of what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from hub.core.policy.document import ITEMS_MAX
from hub.core.policy.hujson import Node
from hub.core.policy.problems import SHOWN_MAX, Problem
from hub.core.policy.words import clip

T = TypeVar("T")


class TooManyProblems(Exception):
    """As many as anybody wants to read at once."""


class NodeReader:
    """Collects problems and warnings while nodes are read; raises TooManyProblems."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []

    def fields(
        self, node: Node, known: tuple[str, ...], what: str, where: str, untold: Iterable[str] = ()
    ) -> dict[str, Node]:
        """The members of an object by their names; case does not matter, as for the programs these files come from.

        `untold` names are known too, but nobody is told to write them.
        """
        if not isinstance(node.value, dict):
            self.problem(node, f"{where}: an object {{ … }} expected, found {node.kind}")
            return {}
        by_lower = {name.lower(): name for name in (*known, *untold)}
        found: dict[str, Node] = {}
        for key, value in node.value.values():
            text = str(key.value)
            name = by_lower.get(text.lower())
            if text.startswith("#"):
                continue  # what editors keep for themselves
            if name is None:
                self.problem(key, f"{clip(text)}: {where} has no such {what}. There are {', '.join(known)}")
            elif name in found:
                self.problem(key, f"{clip(text)}: stands here a second time. Put the two together")
            else:
                found[name] = value
        return found

    def members(self, node: Node | None, what: str, most: int) -> list[tuple[Node, Node]]:
        """(key, value) of an object whose keys are the writer's own."""
        if node is None or node.value is None:
            return []
        if not isinstance(node.value, dict):
            self.problem(node, f"{what}: an object {{ … }} expected, found {node.kind}")
            return []
        if len(node.value) > most:
            self.problem(node, f"{what}: {len(node.value)} items, at most {most} are possible")
        return list(node.value.values())

    def items(self, node: Node | None, what: str, most: int = ITEMS_MAX) -> Iterator[Node]:
        """Of an array; nothing is an empty one."""
        if node is None or node.value is None:
            return
        if not isinstance(node.value, list):
            self.problem(node, f"{what}: an array [ … ] expected, found {node.kind}")
            return
        if len(node.value) > most:
            self.problem(node, f"{what}: {len(node.value)} items, at most {most} are possible")
        yield from node.value

    def one_of(self, fields: dict[str, Node], node: Node, where: str, name: str, older: str) -> Node | None:
        """A field under its name, or the one that it had before."""
        if name in fields and older in fields:
            self.problem(fields[older], f'{where}: "{older}" is the old name of "{name}". Keep one')
        found = fields.get(name, fields.get(older))
        if found is None:
            self.problem(node, f'{where}: "{name}" is missing')
        return found

    def text(self, node: Node) -> str | None:
        """None when it is none, which is a problem then."""
        if isinstance(node.value, str):
            return node.value
        self.problem(node, f"text in quotation marks expected, found {node.kind}")
        return None

    def attempt(
        self, node: Node, read: Callable[[str], T] | Callable[[list[tuple[int, int]]], T], value: object
    ) -> T | None:
        """What `read` makes of a value, or None, and the problem that its ValueError tells."""
        try:
            return read(value)  # type: ignore[arg-type]
        except ValueError as error:
            self.problem(node, str(error))
            return None

    def problem(self, node: Node, text: str) -> None:
        self.problems.append(node.problem(text))
        if len(self.problems) >= SHOWN_MAX:
            raise TooManyProblems

    def warn(self, node: Node, text: str) -> None:
        if len(self.warnings) < SHOWN_MAX:
            self.warnings.append(node.problem(text))
